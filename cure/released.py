"""Heads under two protocols, on arrays: the sound one, and that of the released CURE-FM code on balanced samples.

Every setting of a head is fitted, so that a protocol is only a way of choosing among scores. Trees use 16 bins per
column, for speed, and are fitted once with the most trees of the grid, of which fewer are a prefix.
"""

from dataclasses import dataclass
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
import pandas as pd

from cure.bootstrap import Array, metrics
from cure.estimators import PAPER_C, Data, candidates
from cure.heads import best_threshold
from cure.splits import Split

HEADS = ("logistic", "xgboost")
TREES = (100, 200, 300, 400)
#: Depth, learning rate and child weight of the released grid.
BOOSTERS = list(product((3, 6, 8, 10, 12), (0.01, 0.1, 0.3), (1, 3)))

#: Random choices of boosters that `Grid.of` picks from.
_N_CHOICES = 1000


@dataclass(frozen=True)
class Grid:
    """The settings that are tried under every protocol: logistic regressions, then boosted trees.

    Attributes
    ----------
    boosters : list of (depth, rate, child weight)
        Each stands for as many settings as there are numbers of trees.
    """

    boosters: list[tuple[int, float, int]]

    @classmethod
    def of(cls, n_xgboost: int) -> "Grid":
        """Choose `n_xgboost` settings of the released grid, balanced and the same every time.

        Of many random choices the one that ties no axis to another, as far as so few settings allow, and that takes
        the values of each axis about equally often; among equals the widest range of depths, then the smallest trees,
        which are the fastest. From 12 settings on no axis follows from another.
        """
        n = n_xgboost // len(TREES)
        rng = np.random.default_rng(0)
        drawn = [np.sort(rng.choice(len(BOOSTERS), n, replace=False)) for _ in range(_N_CHOICES)]
        return cls(min(([BOOSTERS[i] for i in rows] for rows in drawn), key=_unevenness))

    @property
    def heads(self) -> Array:
        """Name of the head of every setting, (n_settings,)."""
        return np.repeat(HEADS, [len(PAPER_C), len(self.boosters) * len(TREES)])

    @property
    def names(self) -> list[str]:
        """Every setting in words."""
        trees = [
            f"depth={depth}, rate={rate:g}, child={child}, trees={n}"
            for (depth, rate, child), n in product(self.boosters, TREES)
        ]
        return [*(f"C={c:g}" for c in PAPER_C), *trees]

    def scores(self, x: Array, y: Array, x_new: Array, seed: int) -> Array:
        """Fit every setting and score new records.

        Parameters
        ----------
        x, y : (n, dim) and (n,) arrays
            Training records. Where they hold one class only, every score is 0 or 1.
        x_new : (m, dim) array
        seed : int
            Of the boosted trees.

        Returns
        -------
        (n_settings, m) float64 array
        """
        if y.all() or not y.any():
            return np.full((len(self.heads), len(x_new)), float(y[0]))
        none = Data(x, y, x[:0], y[:0])
        rows = [model.predict_proba(x_new)[:, 1] for model, _ in candidates("logistic", none, seed, "paper")]
        for booster in self.boosters:
            rows += boosted(x, y, x_new, booster, seed)
        return np.stack(rows).astype(float)


def _unevenness(boosters: list[tuple[int, float, int]]) -> tuple[float, ...]:
    """Axes that are a function of another one; how unequally often values are taken; depths; how far off the rates."""
    tied = sum(
        len({(one[a], one[b]) for one in boosters}) == len({one[a] for one in boosters})
        for a, b in permutations(range(3), 2)
    )
    counts = [[sum(one[a] == value for one in boosters) for value in {b[a] for b in BOOSTERS}] for a in range(3)]
    depths, rates, _ = zip(*boosters, strict=True)
    off = abs(np.mean(rates) - np.mean([rate for _, rate, _ in BOOSTERS]))
    uneven = sum(float(np.var(count)) for count in counts)
    return tied, round(uneven, 9), min(depths) - max(depths), sum(depths), round(float(off), 9)


def boosted(x: Array, y: Array, x_new: Array, booster: tuple[int, float, int], seed: int) -> list[Array]:
    """Probabilities of boosted trees after each number of trees in `TREES`, from one fit of the largest."""
    from xgboost import DMatrix, XGBClassifier

    depth, rate, child = booster
    model = XGBClassifier(
        n_estimators=max(TREES),
        max_depth=depth,
        learning_rate=rate,
        min_child_weight=child,
        subsample=0.8,
        colsample_bytree=0.8,
        max_bin=16,
        n_jobs=1,
        random_state=seed,
    ).fit(x, y.astype(int))
    matrix = DMatrix(x_new, nthread=1)
    return [model.get_booster().predict(matrix, iteration_range=(0, n)) for n in TREES]


# --- sound ----------------------------------------------------------------------------------------------


def sound(grid: Grid, x: Array, y: Array, split: Split, seed: int) -> list[tuple[Array, float, str]]:
    """Scores of a split's test records by the setting with the lowest validation log loss, per head of the grid.

    The rule of `cure.heads`, on the settings of the released grid.

    Returns
    -------
    list of (score (n_test,), threshold, setting)
        The threshold is the one with the highest validation F1.
    """
    both = grid.scores(x[split.train], y[split.train], x[np.r_[split.val, split.test]], seed)
    val, test = both[:, : len(split.val)], both[:, len(split.val) :]
    y_val = y[split.val]
    loss = -np.log(np.where(y_val, val, 1 - val).clip(1e-12)).mean(axis=1)
    found = []
    for head in dict.fromkeys(grid.heads):
        best = _best(-loss, grid.heads == head)
        found.append((test[best], best_threshold(y_val, val[best]), grid.names[best]))
    return found


def _best(values: Array, among: Array) -> int:
    at = np.flatnonzero(among)
    return int(at[values[at].argmax()])


# --- balanced samples -----------------------------------------------------------------------------------


def balanced_sample(y: Array, percentage: float, at_most: int, rng: np.random.Generator) -> Array:
    """Positions of equally many records of both classes: `percentage` of the smaller class, but `at_most`; sorted."""
    size = min(int(min(y.sum(), (~y).sum()) * percentage), at_most)
    return np.sort(np.concatenate([rng.choice(np.flatnonzero(y == c), size, replace=False) for c in (True, False)]))


def stratified_folds(y: Array, unit: Array, n_folds: int, rng: np.random.Generator) -> Array:
    """Random folds that keep units together and hold about as many positive units each.

    Parameters
    ----------
    y : (n,) bool array
    unit : (n,) array
        Patient ids, or a number of its own for each record, which makes it the ordinary stratified k-fold.
    n_folds : int
    rng : numpy.random.Generator

    Returns
    -------
    (n,) int array
    """
    _, code = np.unique(unit, return_inverse=True)
    positive = np.bincount(code, y) > 0
    order = rng.permutation(len(positive))
    order = order[np.argsort(~positive[order], kind="stable")]
    fold = np.empty(len(positive), int)
    fold[order] = np.arange(len(positive)) % n_folds
    return fold[code]


class Fold(NamedTuple):
    """One fold of a cross-validation: its labels, the scores of every setting, and the inner F1 of every setting."""

    y: Array  # (n_test,)
    scores: Array  # (n_settings, n_test)
    inner: Array  # (n_settings,)


def cross_validate(grid: Grid, x: Array, y: Array, unit: Array, n_folds: int, rng: np.random.Generator) -> list[Fold]:
    """Score every setting in every fold, and judge it by a two-fold cross-validation inside the training records."""
    fold = stratified_folds(y, unit, n_folds, rng)
    seed = int(rng.integers(2**31))
    found = []
    for k in range(n_folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        half = stratified_folds(y[train], unit[train], 2, rng)
        inner = np.zeros(len(grid.heads))
        for h in (0, 1):
            fit, held = train[half != h], train[half == h]
            inner += f1(y[held], grid.scores(x[fit], y[fit], x[held], seed)) / 2
        found.append(Fold(y[test], grid.scores(x[train], y[train], x[test], seed), inner))
    return found


def f1(y: Array, scores: Array) -> Array:
    """F1 at 0.5 of each row of `scores`, (n_rows, n); 0 where neither labels nor calls hold a positive."""
    called = scores >= 0.5
    hits = called[:, y].sum(axis=1)
    return 2 * hits / np.maximum(called.sum(axis=1) + y.sum(), 1)


def reported(folds: list[Fold], among: Array, how: str) -> dict[str, float]:
    """What a protocol reports of a cross-validation.

    Parameters
    ----------
    folds : list of Fold
    among : (n_settings,) bool array
        Settings of one head.
    how : {"median fold", "best fold", "best setting"}
        The median over folds, each at the setting with its highest inner F1; the fold with the highest F1 of these; the
        setting and fold with the highest F1 of all.

    Returns
    -------
    dict of str to float
        AUROC, AUPRC and F1 at 0.5, and `n` and `n_pos` of the test records they are of.
    """
    if how == "best setting":
        every = [(_best(f1(fold.y, fold.scores), among), fold) for fold in folds]
    else:
        every = [(_best(fold.inner, among), fold) for fold in folds]
    numbers = pd.DataFrame(
        [
            metrics(fold.y, fold.scores[chosen], names=("auroc", "auprc", "f1_half"))
            | {"n": len(fold.y), "n_pos": int(fold.y.sum())}
            for chosen, fold in every
        ]
    )
    if how == "median fold":
        return {**numbers.median().to_dict(), "n": numbers["n"].sum(), "n_pos": numbers["n_pos"].sum()}
    return numbers.loc[numbers["f1_half"].fillna(0).idxmax()].to_dict()

"""Metrics of a binary score under many weightings at once; patient bootstrap, paired tests, permutation null.

Everything here works on arrays; `cure.evaluate` makes tables of it. A bootstrap draw is a vector of integer
record weights, so a score is sorted once and every draw is a sum of rows of the weight matrix: one sparse
product per score gives all metrics of all draws, with no loop over draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.stats import rankdata
from statsmodels.stats.multitest import multipletests

Array = npt.NDArray[Any]

#: Every metric, and how a table or an axis names it.
METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "f1_half": "F1 at 0.5",
    "f1_tuned": "F1 at the validation threshold",
    "sensitivity": "Sensitivity at the validation threshold",
    "specificity": "Specificity at the validation threshold",
    "brier": "Brier score",
    "ece": "Expected calibration error (10 equal-mass bins)",
}
ECE_BINS = 10
RANKING = frozenset({"auroc", "auprc"})
#: Size of the float64 weights of one chunk of draws: every score reads them, so they should stay in cache.
_CHUNK_BYTES = 2**22


# --- metrics under weights -----------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The sums over records that one score needs, as one sparse matrix: `matrix @ weights.T` is all it takes.

    Walking down the score, records with equal scores form a tie; only ties that hold a positive move AUROC or
    AUPRC. For the g-th of these the rows hold (1) its positives, (2) the negatives since the previous one and
    its own. Then follow (3) the negatives inside ties that hold both classes, which earn half credit, and,
    unless only ranking metrics are wanted, (4) true and false positives at both thresholds, squared error,
    and `y - score` per calibration bin.
    """

    matrix: csr_array
    n_ties: int
    mixed: Array  # (n_mixed,) which ties hold both classes

    @classmethod
    def of(
        cls,
        y: Array,
        score: Array,
        threshold: Array | float = 0.5,
        *,
        columns: Array | None = None,
        n_columns: int | None = None,
        ranking_only: bool = False,
    ) -> "Plan":
        """Sort a score once and write down its sums.

        Parameters
        ----------
        y, score : (n,) arrays
            0/1 labels and scores.
        threshold : (n,) array or float
            Score from which a record is called positive; one per record when splits tuned their own.
        columns, n_columns : (n,) int array and int, optional
            Which column of the weights each record is, and how many there are, when they cover more records.
        ranking_only : bool
            Leave out what AUROC and AUPRC do not need.
        """
        y, score, threshold = _checked(y, score, threshold)
        columns = np.arange(len(y)) if columns is None else np.asarray(columns)
        order = np.argsort(-score, kind="stable")
        positive, descending = y[order], score[order]
        tie = np.cumsum(np.r_[False, descending[1:] != descending[:-1]])
        has_positive = np.bincount(tie, positive) > 0
        n_ties = int(has_positive.sum())
        # 0 .. n_ties - 1, and n_ties for the negatives below every positive
        segment: Array = (np.cumsum(has_positive) - has_positive)[tie]
        tied = ~positive & has_positive[tie]
        mixed: Array
        mixed, mixed_row = np.unique(segment[tied], return_inverse=True)
        base = 2 * n_ties + 1
        rows = [np.where(positive, segment, n_ties + segment), base + mixed_row]
        records = [order, order[tied]]
        data = [np.ones(len(y)), np.ones(len(mixed_row))]
        base += len(mixed)
        if not ranking_only:
            for cut in (0.5, threshold):
                called = np.flatnonzero(score >= cut)
                rows.append(np.where(y[called], base, base + 1))
                records.append(called)
                data.append(np.ones(len(called)))
                base += 2
            everyone, residual = np.arange(len(y)), y - score
            edges = np.quantile(score, np.arange(1, ECE_BINS) / ECE_BINS)
            rows += [np.full(len(y), base), base + 1 + np.searchsorted(edges, score, side="right")]
            records += [everyone, everyone]
            data += [residual**2, residual]
            base += 1 + ECE_BINS
        entries = np.concatenate(rows), columns[np.concatenate(records)]
        matrix = csr_array((np.concatenate(data), entries), shape=(base, n_columns or len(y)))
        return cls(matrix, n_ties, mixed)

    def metrics(self, weights: Array, names: Sequence[str]) -> Array:
        """Return the named metrics, `(len(names), draws)`, for float64 `weights` `(n, draws)`."""
        sums = self.matrix @ weights
        g, m = self.n_ties, len(self.mixed)
        hits, misses, tied, rest = np.split(sums, [g, 2 * g + 1, 2 * g + 1 + m])
        n_pos, n_neg = hits.sum(axis=0), misses.sum(axis=0)
        above = np.cumsum(misses[:-1], axis=0)  # negatives that score at least as high as tie g
        out = {}
        if "auroc" in names:
            lost = np.einsum("gd,gd->d", hits, above) - np.einsum("gd,gd->d", hits[self.mixed], tied) / 2
            out["auroc"] = _ratio(n_pos * n_neg - lost, n_pos * n_neg)
        if "auprc" in names:
            found = np.cumsum(hits, axis=0)
            above += found
            above[above == 0] = 1  # nothing drawn so far: found is 0 as well
            out["auprc"] = _ratio(np.einsum("gd,gd->d", hits, found / above), n_pos)
        if len(rest):
            (tp_half, fp_half, tp, fp, squared), bins = rest[:5], rest[5:]
            total = n_pos + n_neg
            some_pos = n_pos > 0
            out["f1_half"] = _ratio(2 * tp_half, np.where(some_pos, tp_half + fp_half + n_pos, 0))
            out["f1_tuned"] = _ratio(2 * tp, np.where(some_pos, tp + fp + n_pos, 0))
            out["sensitivity"] = _ratio(tp, n_pos)
            out["specificity"] = _ratio(n_neg - fp, n_neg)
            out["brier"] = _ratio(squared, total)
            out["ece"] = _ratio(np.abs(bins).sum(axis=0), total)
        return np.stack([out[name] for name in names])


def apply(plans: Sequence[Plan], weights: Array, names: Sequence[str] = tuple(METRICS)) -> Array:
    """Metrics of several scores over the same draws, chunk by chunk of draws.

    Parameters
    ----------
    plans : sequence of Plan
        One per score (a task, a method), all over the same `n` columns.
    weights : (draws, n) array
        How often each record counts in each draw; integers or non-negative floats.
    names : sequence of str
        Keys of `METRICS`.

    Returns
    -------
    (len(plans), len(names), draws) float64 array
        NaN where a draw leaves a metric undefined: AUROC needs both classes; AUPRC, F1 and sensitivity a
        positive; specificity a negative.
    """
    if unknown := set(names) - set(METRICS):
        raise ValueError(f"unknown metrics {sorted(unknown)}: choose from {', '.join(METRICS)}")
    weights = np.asarray(weights)
    if weights.ndim != 2 or any(plan.matrix.shape[1] != weights.shape[1] for plan in plans):
        widths = {plan.matrix.shape[1] for plan in plans}
        raise ValueError(f"weights have shape {weights.shape}; expected (draws, n) with n = {widths}")
    if weights.dtype.kind not in "bu" and weights.size and not weights.min() >= 0:
        raise ValueError("weights must be non-negative numbers")
    n_draws, n = weights.shape
    out = np.empty((len(plans), len(names), n_draws))
    step = max(32, _CHUNK_BYTES // (8 * max(n, 1)))
    for at in range(0, n_draws, step):
        chunk = np.ascontiguousarray(weights[at : at + step].T, dtype=np.float64)
        for i, plan in enumerate(plans):
            out[i, :, at : at + step] = plan.metrics(chunk, names)
    return out


def metrics_weighted(
    y: Array, score: Array, threshold: Array | float, weights: Array, names: Sequence[str] = tuple(METRICS)
) -> dict[str, Array]:
    """Metrics of one score in every draw, as (draws,) arrays; parameters as in `metrics` and `apply`."""
    plan = Plan.of(y, score, threshold, ranking_only=set(names) <= RANKING)
    return dict(zip(names, apply([plan], weights, names)[0], strict=True))


def metrics(
    y: Array, score: Array, threshold_tuned: Array | float = 0.5, names: Sequence[str] = tuple(METRICS)
) -> dict[str, float]:
    """Metrics of one score.

    AUROC is the Mann-Whitney statistic with half credit for ties; AUPRC is average precision (no
    interpolation), ties entering together, as in scikit-learn. F1 is given at 0.5 and at the tuned threshold,
    sensitivity and specificity at the tuned one; `score >= threshold` is a call.

    ECE is `sum_b |sum_{i in b} w_i (y_i - s_i)| / sum_i w_i` over 10 equal-mass bins: equal-width bins would
    put nearly all records of a rare label in the first. The bins are cut at the deciles of the scores as
    given (equal scores stay together), and the cuts stay where they are under resampling. Noise adds to an
    absolute value, in a draw once more than in the sample: the interval of a well-calibrated head can lie
    above its ECE.

    Parameters
    ----------
    y, score : (n,) arrays
        0/1 labels and probabilities.
    threshold_tuned : (n,) array or float
        Tuned on validation data; aligned with the records when several splits are pooled.
    names : sequence of str
        Keys of `METRICS`, and of the dict returned. A value is NaN where the metric is undefined.
    """
    drawn = metrics_weighted(y, score, threshold_tuned, np.ones((1, np.size(y)), np.uint8), names)
    return {name: float(value[0]) for name, value in drawn.items()}


def macro(values: Array, supported: Array) -> tuple[Array, int]:
    """Average over supported tasks inside each draw: `(tasks, ...)` -> `(...)`, and how many tasks that were.

    A draw that leaves a task undefined is NaN here too: averaging the others would estimate something else.
    """
    supported = np.asarray(supported, bool)
    n_tasks = int(supported.sum())
    return (values[supported].mean(axis=0) if n_tasks else np.full(values.shape[1:], np.nan)), n_tasks


# --- draws, intervals, tests ---------------------------------------------------------------------


def patient_draws(patient_id: Array, n_draws: int, rng: np.random.Generator) -> Array:
    """Patient-cluster bootstrap: how often each record counts in each draw.

    A draw takes as many patients as there are, with replacement; a record counts as often as its patient was
    taken. Records of one patient are not independent, patients are (Davison & Hinkley 1997, section 3.8). The
    draws depend on the set of patients and on `rng` only, not on the order of the records. For `patient_id`
    (n,) the result is (n_draws, n) uint8, a view of record-major memory, which `apply` reads fastest.
    """
    patients, patient = np.unique(patient_id, return_inverse=True)
    n = len(patients)
    counts = np.empty((n, n_draws), np.uint8)
    step = max(1, 2**20 // max(n, 1))
    for at in range(0, n_draws, step):
        size = min(step, n_draws - at)
        cell = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        block = np.bincount(cell.ravel(), minlength=size * n).reshape(size, n)
        counts[:, at : at + size] = block.T  # the chance of a count above 255 is below 1e-500
    return counts[patient].T


class Interval(NamedTuple):
    """Bounds, and how many draws were left out because the metric was undefined in them."""

    lo: Any
    hi: Any
    n_undefined: Any


def interval(values: Array, level: float = 0.95) -> Interval:
    """Percentile interval over the last axis of `(..., draws)`; NaN draws are left out and counted.

    Equal to `numpy.nanquantile` (linear), without its Python loop over rows.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    ordered = np.sort(np.asarray(values, float), axis=-1)  # NaN last
    defined = np.isfinite(ordered).sum(axis=-1)
    bounds = []
    for q in ((1 - level) / 2, (1 + level) / 2):
        at = np.maximum(defined - 1, 0) * q
        below = np.floor(at).astype(np.intp)
        above = np.minimum(below + 1, np.maximum(defined - 1, 0))
        x, x_next = (np.take_along_axis(ordered, i[..., None], axis=-1)[..., 0] for i in (below, above))
        bounds.append(x + (at - below) * (x_next - x))
    return Interval(bounds[0], bounds[1], ordered.shape[-1] - defined)


class Difference(NamedTuple):
    """A paired difference: `value` with bounds, two-sided bootstrap p-value, draws left out."""

    value: float
    lo: float
    hi: float
    p: float
    n_undefined: int


def paired_difference(
    value: float, reference: float, draws: Array, reference_draws: Array, level: float = 0.95
) -> Difference:
    """Difference of two methods over the same draws.

    The p-value inverts the percentile interval: twice the smaller share of draws on either side of zero,
    `2 min_side (1 + count) / (1 + draws)`, at most 1 (Davison & Hinkley 1997, chapter 4). A draw at exactly
    zero counts on both sides: a method never differs from itself. No p-value is below `2 / (1 + draws)`.

    Parameters
    ----------
    value, reference : float
        The metric of each method on the full sample.
    draws, reference_draws : (draws,) arrays
        Their metric in each draw, from the same weights.
    """
    difference = np.asarray(draws, float) - np.asarray(reference_draws, float)
    lo, hi, undefined = interval(difference, level)
    used = difference[~np.isnan(difference)]
    p = math.nan
    if len(used):
        tail = min(int((used <= 0).sum()), int((used >= 0).sum()))
        p = min(1.0, 2 * (1 + tail) / (1 + len(used)))
    return Difference(float(value - reference), float(lo), float(hi), p, int(undefined))


def holm(p_values: Array) -> Array:
    """Holm-adjusted p-values (Holm 1979); a NaN is no test: it stays NaN and does not count in the family."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method="holm")[1]
    return adjusted


# --- permutation null ------------------------------------------------------------------------------


def label_permutations(y: Array, patient_id: Array, n: int, rng: np.random.Generator, min_patients: int = 1) -> Array:
    """Labels moved between patients that have the same number of records.

    A patient's labels move as one block, in record order. Shuffling single records would make the labels of
    one patient as unlike as those of strangers while their signals stay alike: the effective sample would look
    larger than it is, and the null too narrow. A block only fits a patient with as many records, so the count
    of positives is kept, in all and per number of records; a patient whose number of records is unique keeps
    their labels. What that number alone tells about a label is thus part of the null, which for scores that were
    not refitted need not centre on 0.5 exactly.

    Parameters
    ----------
    y : (n_records,) or (n_records, n_labels) array
        Several labels move together, which keeps their co-occurrence.
    patient_id : (n_records,) array
    n : int
        Number of permutations; the returned array has one more axis, of this length, in front.
    rng : numpy.random.Generator
    min_patients : int
        Numbers of records that fewer patients share are permuted record by record: blocks with nowhere to go would keep
        their true labels, and a probe would learn from them.
    """
    y, patient_id = np.asarray(y), np.asarray(patient_id)
    if len(y) != len(patient_id):
        raise ValueError(f"{len(y)} labels for {len(patient_id)} patient ids")
    _, patient, size = np.unique(patient_id, return_inverse=True, return_counts=True)
    rare = np.bincount(size)[size] < min_patients
    if rare.any():
        apart = np.where(rare[patient], len(size) + np.arange(len(y)), patient)
        _, patient, size = np.unique(apart, return_inverse=True, return_counts=True)
    by_patient = np.argsort(patient, kind="stable")
    start = np.cumsum(size) - size
    source = np.tile(np.arange(len(y)), (n, 1))
    for k in np.unique(size):
        blocks = by_patient[start[size == k][:, None] + np.arange(k)]  # (patients, k) records
        shuffled = rng.permuted(np.tile(np.arange(len(blocks)), (n, 1)), axis=1)
        source[:, blocks.ravel()] = blocks[shuffled].reshape(n, -1)
    return y[source]


def null_auroc(y: Array, score: Array, level: float = 0.95) -> dict[str, float]:
    """Distribution of the AUROC under permuted labels.

    Parameters
    ----------
    y : (n_perm, n) array
        From `label_permutations`.
    score : (n_perm, n) or (n,) array
        Row i: the scores of the head that was *fitted* to row i of `y`; one vector only if nothing was fitted.
    level : float
        Of the percentiles `lo` and `hi`: what chance alone reaches at this support.
    """
    y, score = np.asarray(y, bool), np.asarray(score, float)
    if y.ndim != 2 or score.shape not in (y.shape, y.shape[1:]):
        raise ValueError(f"expected labels (n_perm, n) and aligned scores, got {y.shape} and {score.shape}")
    if np.isnan(score).any():
        raise ValueError("scores under permuted labels contain NaN: a fit failed")
    n_pos = y.sum(axis=1)
    n_pairs = n_pos * (y.shape[1] - n_pos)
    if len(y) < 2 or not n_pairs.all():
        raise ValueError(f"a null needs at least 2 permutations with both classes, got {int((n_pairs > 0).sum())}")
    # AUROC from mid-ranks: (rank sum of positives - its minimum) / number of pairs
    rank_sum = np.where(y, rankdata(score, axis=-1), 0).sum(axis=1)
    auroc = (rank_sum - n_pos * (n_pos + 1) / 2) / n_pairs
    lo, hi, _ = interval(auroc, level)
    spread = {"sd": float(auroc.std(ddof=1)), "lo": float(lo), "hi": float(hi)}
    return {"mean": float(auroc.mean()), **spread, "n": len(auroc)}


def _checked(y: Array, score: Array, threshold: Array | float) -> tuple[Array, Array, Array]:
    y, score = np.asarray(y), np.asarray(score, float)
    if y.ndim != 1 or y.shape != score.shape or not len(y):
        raise ValueError(f"expected one score per label, got labels {y.shape} and scores {score.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(y)[:5]}")
    threshold = np.broadcast_to(np.asarray(threshold, float), y.shape)
    for name, x in (("score", score), ("threshold", threshold)):
        if np.isnan(x).any():
            raise ValueError(f"{name} is NaN for {int(np.isnan(x).sum())} of {len(x)} records")
    return y.astype(bool), score, threshold


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)

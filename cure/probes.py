"""Linear probes: how well age, sex and the intervals of an ECG can be read off a frozen representation.

A ridge regression is fitted to the training records of each outer split, its penalty is the one with the least squared
error on the validation records, and the test records are predicted once. Every probe is also fitted to labels that
changed places between patients: many labels share one decomposition of the records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import joblib
import numpy as np
import pandas as pd
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from cure import embed
from cure.bootstrap import Array, Plan, apply, holm, interval, label_permutations, paired_difference, patient_draws
from cure.cohorts.base import Cohort
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES, support
from cure.heads import scaler
from cure.progress import progress
from cure.settings.probes import ProbesConfig
from cure.splits import Split
from cure.structure import Measured, Results, averaged

#: Ridge penalties tried, per training record and strongest first: of two that do equally well the stronger is taken.
PENALTIES = 10.0 ** np.arange(3, -4, -1)
#: Label permutations of the control.
N_PERMUTATIONS = 200
#: Patients that must share a number of records for their labels to be permuted in blocks.
_MIN_BLOCKS = 10
#: Hand-crafted measurements that are probed for, and their units.
MEASURED = {"heart_rate": ("heart_rate_bpm", "bpm"), "pr": ("pr_ms", "ms"), "qrs": ("qrs_ms", "ms")}
MEASURED |= {"qt": ("qt_ms", "ms")}

#: Labels, out-of-fold predictions and training means, (3, n_tested), of every target in every representation.
Guesses = dict[Representation, dict[str, Array]]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Target:
    """What a probe predicts.

    Attributes
    ----------
    name : str
    unit : str
        Of the values; empty for a binary target.
    values : (n_records,) float64 array
        NaN where it is not known; 0 and 1 for a binary target.
    binary : bool
    """

    name: str
    unit: str
    values: Array
    binary: bool


def targets(config: ProbesConfig, cohort: Cohort) -> list[Target]:
    """Age in years, sex (1: male), and heart rate, PR, QRS and QT where they could be measured.

    A cohort that knows none of a target goes without it. Ages that the source masks (over 89) are not known.
    The measurements are hand-crafted features of the same record.
    """
    age = cohort.records["age"].to_numpy(float)
    sex = cohort.records["sex"].map({"male": 1.0, "female": 0.0}).to_numpy(float)
    measured = embed.read_features(config.embeddings_folder, cohort)
    found = [Target("age", "years", age, False), Target("sex", "", sex, True)]
    found += [Target(name, unit, measured[column].to_numpy(float), False) for name, (column, unit) in MEASURED.items()]
    return [target for target in found if np.isfinite(target.values).any()]


# --- one probe ----------------------------------------------------------------------------------------


def ridge(x: Array, y: Array, x_val: Array, y_val: Array, x_test: Array) -> tuple[Array, Array]:
    """Ridge regressions of many targets on the same records, each with the penalty that validation chose.

    Minimises `sum (y - x b - c)^2 + n a |b|^2` for every a in `PENALTIES`, with n training records: one eigenvalue
    decomposition of `x' x`, or of `x x'` where there are fewer records than dimensions, serves all targets and
    penalties.

    Parameters
    ----------
    x, x_val, x_test : (n, dim), (n_val, dim), (n_test, dim) float64 arrays
        Standardised by training records.
    y, y_val : (n, m), (n_val, m) float64 arrays
        One column per target.

    Returns
    -------
    (n_test, m) float64 array
        Predictions.
    (m,) float64 array
        The penalties chosen.
    """
    centre, level = x.mean(axis=0), y.mean(axis=0)
    x, y = x - centre, y - level
    wide = x.shape[1] > len(x)
    value, basis = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    inner = basis.T @ (y if wide else x.T @ y)
    basis = x.T @ basis if wide else basis
    penalty = len(x) * PENALTIES
    value = np.maximum(value, 0)[:, None]
    seen = (x_val - centre) @ basis
    loss = [np.square(seen @ (inner / (value + p)) + level - y_val).mean(axis=0) for p in penalty]
    best = np.argmin(loss, axis=0)
    return ((x_test - centre) @ basis) @ (inner / (value + penalty[best])) + level, PENALTIES[best]


@dataclass(frozen=True)
class Trial:
    """A target, under its own and under permuted values, and the draws over patients that are shared by all probes.

    Attributes
    ----------
    target : Target
    labels : (n_records, 1 + n_permutations) float64 array
        The first column is the target as it is; NaN in a whole row or nowhere in it.
    tested : list of int arrays
        Test records of each split that have a value.
    weights : (1 + n_draws, n_tested) float64 array
        The first row is the sample as it is.
    """

    target: Target
    labels: Array
    tested: list[Array]
    weights: Array


def make_trials(
    cohort: Cohort, splits: list[Split], found: list[Target], config: ProbesConfig, n_permutations: int = N_PERMUTATIONS
) -> list[Trial]:
    """Draws over patients, and values that change places between patients among the records that have one.

    Raises
    ------
    CureError
        If a part of a split has no value of a target.
    """
    patient_id = cohort.records["patient_id"].to_numpy()
    every = np.concatenate([split.test for split in splits])
    draws = patient_draws(patient_id[every], config.n_draws, np.random.default_rng(config.seed))
    weights = np.vstack([np.ones(len(every)), draws])
    trials = []
    for target in found:
        known = np.isfinite(target.values)
        for split in splits:
            for part in ("train", "val", "test"):
                if not known[getattr(split, part)].any():
                    raise CureError(f"no {part} record of {split.name} has a value of {target.name}: nothing to probe")
        rows = np.flatnonzero(known)
        rng = np.random.default_rng([config.seed, 2])  # the same for all: targets of the same records move together
        labels = np.full((len(cohort), 1 + n_permutations), np.nan)
        labels[:, 0] = target.values
        moved = label_permutations(target.values[rows], patient_id[rows], n_permutations, rng, min_patients=_MIN_BLOCKS)
        labels[rows, 1:] = moved.T
        tested = [split.test[known[split.test]] for split in splits]
        trials.append(Trial(target, labels, tested, weights[:, known[every]]))
    return trials


def predict(
    trials: list[Trial], splits: list[Split], spaces: list[Array]
) -> Iterator[tuple[Trial, Array, Array, Array]]:
    """Fit all targets in one representation; `spaces` holds all records, (n_records, dim), of each split.

    Yields
    ------
    trial : Trial
    y, predicted, mean : (n_tested, 1 + n_permutations) float64 arrays
        Labels, out-of-fold predictions and training means, in the order of `trial.tested`.
    """
    alike: dict[bytes, list[Trial]] = {}
    for trial in trials:
        alike.setdefault(np.isfinite(trial.target.values).tobytes(), []).append(trial)
    for several in alike.values():
        # Targets of the same records share a decomposition.
        labels = np.concatenate([trial.labels for trial in several], axis=1)
        ends = np.cumsum([trial.labels.shape[1] for trial in several])[:-1]
        predicted, mean = [], []
        for split, z, rows in zip(splits, spaces, several[0].tested, strict=True):
            train, val = (part[np.isfinite(labels[part, 0])] for part in (split.train, split.val))
            predicted.append(ridge(z[train], labels[train], z[val], labels[val], z[rows])[0])
            mean.append(np.broadcast_to(labels[train].mean(axis=0), predicted[-1].shape))
        arrays = labels[np.concatenate(several[0].tested)], np.concatenate(predicted), np.concatenate(mean)
        columns = (np.split(array, ends, axis=1) for array in arrays)
        yield from zip(several, *columns, strict=True)


def probe(trials: list[Trial], splits: list[Split], spaces: list[Array]) -> dict[tuple[str, str], Measured]:
    """All metrics of all targets in one representation; parameters as in `predict`, metrics as in `score`."""
    found: dict[tuple[str, str], Measured] = {}
    for trial, y, predicted, mean in predict(trials, splits, spaces):
        metrics = score(y, predicted, mean, trial.weights, trial.target.binary)
        found |= {(trial.target.name, name): measured for name, measured in metrics.items()}
    return found


def score(y: Array, predicted: Array, mean: Array, weights: Array, binary: bool) -> dict[str, Measured]:
    """Metrics of out-of-fold predictions, in the sample and all draws for the first column, in the sample for the rest.

    `r2` is `1 - sum (y - prediction)^2 / sum (y - training mean)^2` over out-of-fold predictions: 0 for a probe that
    knows the training mean only, negative for one that does worse. `mae` is in the unit of the target. `auroc`, of a
    binary target, ranks records by how far the prediction lies above the training mean: a split whose training part
    holds more positives tests fewer, and pooled predictions of an ignorant probe would rank worse than chance.

    Parameters
    ----------
    y, predicted, mean : (n, 1 + n_permutations) float64 arrays
        Labels, predictions and training means.
    weights : (1 + n_draws, n) float64 array
    binary : bool
    """
    if binary:
        above = predicted - mean
        drawn = apply([Plan.of(y[:, 0], above[:, 0], ranking_only=True)], weights, ["auroc"])[0, 0]
        n_pos = y[:, 1:].sum(axis=0)
        ranks = (rankdata(above[:, 1:], axis=0) * y[:, 1:]).sum(axis=0)
        null = (ranks - n_pos * (n_pos + 1) / 2) / (n_pos * (len(y) - n_pos))
        return {"auroc": Measured(drawn, null, 0.5)}
    error, spread = np.square(y - predicted), np.square(y - mean)
    r2 = 1 - (weights @ error[:, 0]) / (weights @ spread[:, 0])
    away = np.abs(y - predicted)
    mae = (weights @ away[:, 0]) / weights.sum(axis=1)
    return {
        "r2": Measured(r2, 1 - error[:, 1:].sum(axis=0) / spread[:, 1:].sum(axis=0), 0.0),
        "mae": Measured(mae, away[:, 1:].mean(axis=0), float(np.abs(y - mean)[:, 0].mean())),
    }


# --- a study ------------------------------------------------------------------------------------------


def each(work: Callable[[T], R], items: Sequence[T], desc: str) -> list[R]:
    """Do `work` on every item, several at a time and one thread each: a result does not depend on the others."""

    def alone(item: T) -> R:
        # OpenMP keeps its number of threads per thread, so that it has to be set in the worker.
        with threadpool_limits(1):
            return work(item)

    # BLAS has one number for the whole process: without this, the first worker to end would raise it for the others.
    with threadpool_limits(1):
        done = joblib.Parallel(n_jobs=joblib.cpu_count(), backend="threading", return_as="generator")(
            joblib.delayed(alone)(item) for item in items
        )
        return list(progress(done, desc=desc, total=len(items), unit="representation"))


def scaled(config: ProbesConfig, cohort: Cohort, splits: list[Split], one: Representation) -> list[Array]:
    """All records of a representation, (n_records, dim) float64, standardised by the training records of each split."""
    arrays = (embed.read_split(config, one, config.pooling, cohort, split) for split in splits)
    return [
        scaler().fit(x[split.train]).transform(x).astype(np.float64) for x, split in zip(arrays, splits, strict=True)
    ]


def probe_all(
    config: ProbesConfig, cohort: Cohort, splits: list[Split], trials: list[Trial]
) -> tuple[Results, Guesses]:
    """Metrics of every target in every representation, and the predictions behind them.

    Hand-crafted features are probed for age and sex only: the measurements are among them.
    """

    def work(one: Representation) -> tuple[dict[tuple[str, str], Measured], dict[str, Array]]:
        mine = [t for t in trials if one.encoder != FEATURES or t.target.name not in MEASURED]
        found: dict[tuple[str, str], Measured] = {}
        guesses: dict[str, Array] = {}
        for trial, y, predicted, mean in predict(mine, splits, scaled(config, cohort, splits, one)):
            metrics = score(y, predicted, mean, trial.weights, trial.target.binary)
            found |= {(trial.target.name, name): measured for name, measured in metrics.items()}
            guesses[trial.target.name] = np.stack([y[:, 0], predicted[:, 0], mean[:, 0]])
        return found, guesses

    everyone = embed.representations(config)
    found, guesses = zip(*each(work, everyone, "probes"), strict=True)
    return dict(zip(everyone, found, strict=True)), dict(zip(everyone, guesses, strict=True))


def probes_table(config: ProbesConfig, cohort: Cohort, trials: list[Trial], results: Results) -> pd.DataFrame:
    """One row per representation, target and metric, with 95 % intervals over patients; no interval without support.

    `chance` is what the training mean reaches; rows with seed `mean` average over initialisations inside each draw.
    """
    about = {trial.target.name: describe(cohort, trial) for trial in trials}
    rows = []
    for key, (task, metric), measured in averaged(config, results):
        lo, hi, _ = interval(measured.draws[1:]) if about[task]["supported"] else (np.nan, np.nan, 0)
        number = {"value": measured.draws[0], "lo": lo, "hi": hi, "chance": measured.chance}
        unit = about[task]["unit"] if metric == "mae" else ""
        rows.append({"cohort": cohort.name, **key, "task": task, "metric": metric, **number, **about[task]})
        rows[-1]["unit"] = unit
    seen = {(one.encoder, one.weights): embed.contaminated(one, config) for one in results}
    table = pd.DataFrame(rows).astype({"n_pos": "Int64"})
    return table.assign(contaminated=[seen[pair] for pair in zip(table["encoder"], table["weights"], strict=True)])


def describe(cohort: Cohort, trial: Trial) -> dict:
    """Unit and support of a target among the records that are tested."""
    rows = np.concatenate(trial.tested)
    values = trial.target.values[rows]
    about = support(values > 0, cohort.records["patient_id"].to_numpy()[rows])
    binary = trial.target.binary
    enough = about.supported if binary else about.n >= MIN_POSITIVES
    n_pos = about.n_pos if binary else pd.NA
    counts = {"n": about.n, "n_pos": n_pos, "n_patients": about.n_patients, "supported": enough}
    return {"unit": trial.target.unit, **counts}


def comparisons(
    config: ProbesConfig, cohort: Cohort, splits: list[Split], trials: list[Trial], guesses: Guesses
) -> pd.DataFrame:
    """Paired differences in R2 and AUROC: trained weights against the same encoder untrained, all against features.

    The initialisations of an encoder count as their mean, inside each draw. Holm's correction is over the table. There
    are 100 draws per test, from `config.n_draws` to 20,000: p is at least `2 / (1 + draws)`, and with 1,000 draws no
    difference, however large, would stay below 0.05 in a family of 26 tests or more.
    """
    about = {trial.target.name: describe(cohort, trial) for trial in trials}
    members: dict[tuple[str, str], list[Representation]] = {}
    for one in guesses:
        members.setdefault((one.encoder, one.weights), []).append(one)
    pairs = [
        (name, other, trial)
        for name in members
        for other in ((name[0], "random"), (FEATURES, "none"))
        for trial in trials
        if other != name and name[0] != FEATURES and other in members and about[trial.target.name]["supported"]
        if all(trial.target.name in guesses[members[which][0]] for which in (name, other))
    ]
    if not pairs:
        return pd.DataFrame()
    every = np.concatenate([split.test for split in splits])
    patient_id = cohort.records["patient_id"].to_numpy()[every]
    n_draws = max(config.n_draws, min(100 * len(pairs), 20_000))
    draws = patient_draws(patient_id, n_draws, np.random.default_rng(config.seed))
    weights = np.vstack([np.ones(len(every), np.uint8), draws])
    drawn: dict[tuple[str, tuple[str, str]], Array] = {}
    for trial in trials:
        task, columns = trial.target.name, np.flatnonzero(np.isfinite(trial.target.values[every]))
        known = [one for one in guesses if task in guesses[one]]
        values = _redrawn([guesses[one][task] for one in known], weights, columns, trial.target.binary)
        for name, ones in members.items():
            if at := [known.index(one) for one in ones if one in known]:
                drawn[task, name] = values[at].mean(axis=0)
    rows = []
    for name, other, trial in pairs:
        task = trial.target.name
        mine, theirs = drawn[task, name], drawn[task, other]
        d = paired_difference(mine[0], theirs[0], mine[1:], theirs[1:])
        row: dict = {"cohort": cohort.name, "encoder": name[0], "weights": name[1], "task": task}
        row |= {"metric": "auroc" if trial.target.binary else "r2", "comparator": ", ".join(other), "value": d.value}
        rows.append(row | {"lo": d.lo, "hi": d.hi, "p": d.p, "n": about[task]["n"]})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def _redrawn(several: list[Array], weights: Array, columns: Array, binary: bool) -> Array:
    """AUROC or R2, as in `score`, of predictions of one target, which are of `columns` of `weights`; (m, draws)."""
    if binary:
        how: dict = {"columns": columns, "n_columns": weights.shape[1], "ranking_only": True}
        return apply([Plan.of(y, guess - mean, **how) for y, guess, mean in several], weights, ["auroc"])[:, 0]
    y, _, mean = several[0]  # the same for all
    sums = np.stack([*(np.square(y - guess) for _, guess, _ in several), np.square(y - mean)], axis=1)
    chunks = np.split(weights, range(500, len(weights), 500))  # all at once would be large as float64
    total = np.concatenate([chunk[:, columns].astype(float) @ sums for chunk in chunks])
    return (1 - total[:, :-1] / total[:, -1:]).T


def view(main: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """`value [lo, hi]` per representation, a column per target and metric; the last row is the training mean.

    `titles` names the metrics to show; `main` holds main rows with their `label`.
    """
    rows = main[main["metric"].isin(list(titles))]
    names = rows["metric"].map(titles)
    column = rows["task"] + ", " + names.where(rows["unit"] == "", names + " in " + rows["unit"])
    texts = [
        f"{r.value:.2f} [{r.lo:.2f}, {r.hi:.2f}]" if r.supported else f"({r.value:.2f})" for r in rows.itertuples()
    ]
    wide = rows.assign(column=column, text=texts).pivot(index="label", columns="column", values="text")
    wide = wide.loc[list(rows["label"].unique()), list(column.unique())].fillna("")
    chance = rows.assign(column=column).groupby("column", sort=False)["chance"].first()
    wide.loc["training mean"] = [f"{chance[name]:.2f}" for name in wide.columns]
    return wide.rename_axis(index=None, columns=None)

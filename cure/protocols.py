"""What a protocol alone is worth: one representation, one set of heads, scored soundly and as the released code does.

The released code of CURE-FM cuts both classes to the size of the smaller one, over the whole cohort and before any
split; splits records, not patients, into stratified folds; takes the setting of a head by the F1 of a cross-validation;
and reports the fold with the highest F1, beside the median over folds, which it calls the average. Nothing is held out
for a last test. Here one thing is changed after the other, from the sound protocol to that one (`STEPS`), so that each
shows what it is worth.

What is not known of the released code is read in its favour: the scaler is fitted inside the training records. The
fits are in `cure.released`.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import sklearn

from cure import embed, predictions
from cure.bootstrap import Array, interval, label_permutations, metrics
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES, evaluate
from cure.progress import progress
from cure.released import HEADS, Grid, balanced_sample, cross_validate, reported, sound
from cure.scores import MEAN
from cure.settings.protocols import ProtocolsConfig
from cure.splits import Split

#: From the sound protocol to the released one, each with what it changes in the one before (short: tables cut at 50).
STEPS = {
    "sound": "patients apart, natural prevalence",
    "balanced test": "same scores, as many negatives as positives",
    "balanced cohort": "balanced training too, folds by patient, median",
    "by record": "a patient's records may be on both sides",
    "best fold": "the fold with the highest F1, not the median",
    "released": "the setting with the highest reported F1",
}
#: How the steps that split by record report their folds.
_REPORTS = {"by record": "median fold", "best fold": "best fold", "released": "best setting"}
#: Metrics of every step; F1 at 0.5, as the released code has it. `f1_tuned` exists where there is a validation part.
METRICS = {"auroc": "auroc", "auprc": "auprc", "f1_half": "f1", "f1_tuned": "f1_tuned"}
#: Records of each class in every part of the inner cross-validation, at least.
_MIN_PER_PART = 2
#: Patients that must share a number of records for their labels to be permuted in blocks.
_MIN_BLOCKS = 10
#: Columns of the table, in order.
_COLUMNS = ["cohort", "protocol", "encoder", "weights", "pooling", "head", "strategy", "leads", "fraction", "seed"]
_COLUMNS += ["contaminated", "labels", "task", "sample", "metric", "value", "lo", "hi", "spread"]
_COLUMNS += ["n", "n_pos", "n_patients", "n_tasks", "supported"]


def subject(config: ProtocolsConfig, cohort: Cohort) -> tuple[dict, Array]:
    """Columns that name the representation, and its (n_records, dim) array.

    Raises
    ------
    CureError
        If the profile does not extract it, or its weights differ between outer splits: one sample of the whole cohort
        then has no single representation.
    """
    one = predictions.find(config, config.representation)
    if one.per_split:
        raise CureError(
            f"section protocols: '{one.folder}' has weights for each outer split, but the released protocol splits the "
            "cohort anew; choose a representation that is the same in all splits"
        )
    about = predictions.key(config, one, config.pooling, "")
    return about, embed.read_split(config, one, config.pooling, cohort, None)


class Task(NamedTuple):
    """A binary task: its number among all of the cohort, its labels, records of a class in a balanced sample."""

    name: str
    number: int
    y: Array
    size: int


def chosen_tasks(config: ProtocolsConfig, cohort: Cohort) -> list[Task]:
    """Tasks of the settings that a balanced sample can be folded on.

    Raises
    ------
    CureError
        For a task that the cohort does not have, or when none is left.
    """
    labels = cohort.binary()
    if unknown := [name for name in config.tasks if name not in labels.names]:
        raise CureError(f"section protocols: no task {unknown[0]!r}: choose from {', '.join(labels.names)}")
    found = []
    for name in config.tasks:
        y = labels.y[:, labels.names.index(name)].astype(bool)
        size = min(int(min(y.sum(), (~y).sum()) * config.sample_percentage), config.max_per_class)
        if size >= 2 * _MIN_PER_PART * config.n_folds:
            found.append(Task(name, labels.names.index(name), y, size))
    if not found:
        raise CureError("section protocols: no task has enough positive records to fold; raise sample_percentage")
    return found


def run(config: ProtocolsConfig, cohort: Cohort, splits: list[Split]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit and score everything.

    Returns
    -------
    predicted : DataFrame
        Out-of-fold predictions of the sound protocol, as stage `heads` has them.
    sampled : DataFrame
        One row per step, head, labels (`true`, `shuffled`), task, sample and metric; steps as in `STEPS`.
    """
    about, x = subject(config, cohort)
    patients = cohort.records["patient_id"].to_numpy()
    tasks, grid = chosen_tasks(config, cohort), Grid.of(config.n_xgboost)
    true, shuffled = range(config.n_seeds), range(config.n_shuffled)
    # Long jobs first, so that no core waits for the last of them.
    sounds = [(task, split) for task in tasks for split in splits]
    work = [joblib.delayed(_sound)(grid, x, task.y, split, config.seed) for task, split in sounds]
    work += [joblib.delayed(_sound_shuffled)(config, x, t, patients, splits, i) for t in tasks for i in shuffled]
    cells = [(t, i, labels) for labels, n in (("true", true), ("shuffled", shuffled)) for t in tasks for i in n]
    work += [joblib.delayed(_sampled)(config, grid, x, t, patients, splits, i, labels) for t, i, labels in cells]
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")
    done = list(progress(parallel(work), desc="protocols", total=len(work), unit="fit"))
    record_id = cohort.records["record_id"].to_numpy()
    frames = []
    for (task, split), found in zip(sounds, done, strict=False):
        for head, (score, threshold, setting) in zip(HEADS, found, strict=True):
            what = {"task": task.name, "split": split.name, "record_id": record_id[split.test]}
            values = {"y": task.y[split.test].astype(int), "score": score, "threshold": threshold, "setting": setting}
            frames.append(pd.DataFrame({**about, "head": head, **what, **values}))
    predicted = pd.concat(frames, ignore_index=True)
    rows = [row for part in done[len(sounds) :] for row in part]
    rows += list(_balanced_test(config, predicted, tasks))
    return predicted, pd.DataFrame([{**about, **row} for row in rows])


def _sound(grid: Grid, x: Array, y: Array, split: Split, seed: int) -> list[tuple[Array, float, str]]:
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return sound(grid, x, y, split, seed)


def _sound_shuffled(
    config: ProtocolsConfig, x: Array, task: Task, patients: Array, splits: list[Split], i: int
) -> list[dict]:
    """The sound protocol on permuted labels, logistic regression only: trees would double the stage's runtime."""
    y = _permuted(config, task, patients, splits, i)
    parts = []
    for split in splits:
        ((score, threshold, _),) = _sound(Grid([]), x, y, split, config.seed)
        parts.append((y[split.test], score, np.full(len(score), threshold)))
    truth, scores, thresholds = (np.concatenate(part) for part in zip(*parts, strict=True))
    numbers = metrics(truth, scores, thresholds, tuple(METRICS)) | {"n": len(truth), "n_pos": int(truth.sum())}
    return _rows("sound", HEADS[0], task, "shuffled", i, numbers)


def _sampled(
    config: ProtocolsConfig,
    grid: Grid,
    x: Array,
    task: Task,
    patients: Array,
    splits: list[Split],
    i: int,
    labels: str,
) -> list[dict]:
    """All numbers of one balanced sample: cross-validated with patients apart, and by record."""
    y = task.y if labels == "true" else _permuted(config, task, patients, splits, i)
    rng = np.random.default_rng([config.seed, 2, task.number, i])
    rows = balanced_sample(y, config.sample_percentage, config.max_per_class, rng)
    out = []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        by_record = cross_validate(grid, x[rows], y[rows], np.arange(len(rows)), config.n_folds, rng)
        for head, (step, how) in product(HEADS, _REPORTS.items()):
            out += _rows(step, head, task, labels, i, reported(by_record, grid.heads == head, how))
        if labels == "true":
            apart = cross_validate(grid, x[rows], y[rows], patients[rows], config.n_folds, rng)
            for head in HEADS:
                numbers = reported(apart, grid.heads == head, "median fold")
                out += _rows("balanced cohort", head, task, labels, i, numbers)
    return out


def _permuted(config: ProtocolsConfig, task: Task, patients: Array, splits: list[Split], i: int) -> Array:
    """Labels that changed places between patients with equally many records, within the parts of the splits."""
    rng = np.random.default_rng([config.seed, 1, task.number, i])
    parts = [splits[0].train, splits[0].val, splits[0].test] if len(splits) == 1 else [split.test for split in splits]
    y = task.y.copy()
    for part in parts:
        y[part] = label_permutations(task.y[part], patients[part], 1, rng, min_patients=_MIN_BLOCKS)[0]
    return y


def _balanced_test(config: ProtocolsConfig, predicted: pd.DataFrame, tasks: list[Task]) -> Iterator[dict]:
    """The sound scores again, on balanced samples of the test records."""
    for (name, head), frame in predicted.groupby(["task", "head"], sort=False, observed=True):
        (task,) = (task for task in tasks if task.name == name)
        y, score, threshold = (frame[column].to_numpy() for column in ("y", "score", "threshold"))
        for i in range(config.n_seeds):
            rng = np.random.default_rng([config.seed, 3, task.number, i])
            rows = balanced_sample(y.astype(bool), config.sample_percentage, config.max_per_class, rng)
            numbers = metrics(y[rows], score[rows], threshold[rows], tuple(METRICS))
            about = {"n": len(rows), "n_pos": len(rows) // 2}
            yield from _rows("balanced test", head, task, "true", i, numbers | about)


def _rows(step: str, head: str, task: Task, labels: str, i: int, numbers: dict) -> list[dict]:
    what = {"protocol": step, "head": head, "labels": labels, "task": task.name, "sample": i}
    about = {"n": int(numbers["n"]), "n_pos": int(numbers["n_pos"])}
    return [{**what, "metric": name, "value": numbers[key], **about} for key, name in METRICS.items() if key in numbers]


# --- tables -----------------------------------------------------------------------------------------------


def protocols_table(
    config: ProtocolsConfig, cohort: Cohort, predicted: pd.DataFrame, sampled: pd.DataFrame
) -> pd.DataFrame:
    """All numbers of all steps: one row per sample, and rows with sample `mean` that average over samples.

    Rows with task `macro` average over the `n_tasks` tasks with enough positives in every step: `MIN_POSITIVES` in a
    fold of the balanced sample. `spread` says what `lo` and `hi` are: 95 % over `patients`
    (bootstrap), or the central 95 % of the `samples` (and permutations). Numbers without support have neither.
    """
    sizes = {task.name: task.size for task in chosen_tasks(config, cohort)}
    counted = [name for name, size in sizes.items() if size // config.n_folds >= MIN_POSITIVES]
    patients = cohort.records.set_index("record_id")["patient_id"]
    plain = predicted.drop(columns="setting")
    options = {"n_draws": config.n_draws, "seed": config.seed, "macros": {"macro": counted}}
    whole = evaluate(plain, patients, metrics=tuple(METRICS), **options)  # type: ignore[arg-type]
    whole = whole.assign(labels="true", sample=MEAN, spread="patients", metric=whole["metric"].map(METRICS))
    sampled = sampled.assign(supported=sampled["task"].isin(counted))
    names = [name for name in sampled if name not in ("task", "value", "n", "n_pos")]
    macro = sampled[sampled["supported"]].groupby(names, sort=False, observed=True)["value"].agg(["mean", "size"])
    macro = macro.rename(columns={"mean": "value", "size": "n_tasks"}).reset_index().assign(task="macro")
    single = pd.concat([sampled, macro], ignore_index=True)
    names = [name for name in single if name not in ("sample", "value", "n", "n_pos")]
    rows = []
    for key, part in single.groupby(names, sort=False, observed=True, dropna=False):
        row = dict(zip(names, key, strict=True))
        lo, hi, _ = interval(part["value"].to_numpy()) if row["supported"] else (np.nan, np.nan, 0)
        about = {name: part[name].median().round() for name in ("n", "n_pos") if part[name].notna().any()}
        rows.append({**row, "sample": MEAN, "value": part["value"].mean(), "lo": lo, "hi": hi, **about})
    averaged = pd.DataFrame(rows).assign(spread="samples")
    table = pd.concat([whole, averaged, single], ignore_index=True)[_COLUMNS]
    order = {name: i for i, name in enumerate([*STEPS, "true", "shuffled", *HEADS])}
    table = table.sort_values(["labels", "protocol", "head"], key=lambda c: c.map(order), kind="stable")
    counts = dict.fromkeys(("n", "n_pos", "n_patients", "n_tasks"), "Int64")
    return table.astype({**counts, "supported": bool}).reset_index(drop=True)


def steps_legend() -> pd.DataFrame:
    """What each step changes, in words."""
    return pd.DataFrame({"step": STEPS.keys(), "what changes": STEPS.values()})


def steps_view(table: pd.DataFrame, labels: str = "true") -> pd.DataFrame:
    """Averages over tasks as a paper prints them, `value [lo, hi]`: a row per step, a column per head and metric."""
    chosen = table[(table["task"] == "macro") & (table["sample"] == MEAN) & (table["labels"] == labels)]
    text = [f"{r.value:.3f} [{r.lo:.3f}, {r.hi:.3f}]" for r in chosen.itertuples()]
    wide = chosen.assign(text=text).pivot(index="protocol", columns=["head", "metric"], values="text").fillna("")
    columns = pd.MultiIndex.from_product([HEADS, ["auroc", "auprc", "f1"]])
    return wide.reindex([step for step in STEPS if step in wide.index])[columns].rename_axis(index=None)


def gains_view(table: pd.DataFrame) -> pd.DataFrame:
    """What each step adds to the one before, averaged over tasks, and in all; true labels."""
    chosen = table[(table["task"] == "macro") & (table["sample"] == MEAN) & (table["labels"] == "true")]
    wide = chosen.pivot(index="protocol", columns=["head", "metric"], values="value").loc[list(STEPS)]
    wide = wide[pd.MultiIndex.from_product([HEADS, ["auroc", "auprc", "f1"]])]
    gains = pd.concat([wide.diff().iloc[1:], (wide.iloc[-1] - wide.iloc[0]).rename("in all").to_frame().T])
    gains.insert(0, "what changes", [*list(STEPS.values())[1:], "released minus sound"])
    return gains.map(lambda value: value if isinstance(value, str) else f"{value:+.3f}")

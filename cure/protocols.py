"""What a protocol alone is worth: one representation, one set of heads, scored soundly and as the released code does.

The released code of CURE-FM cuts both classes to the size of the smaller one, over the whole cohort and before any
split; splits records, not patients, into stratified folds; takes the setting of a head by the F1 of a cross-validation;
and reports the fold with the highest F1, beside the median over folds, which it calls the average. Nothing is held out
for a last test. `STEPS` lead from the sound protocol to that one. Each changes one thing, but for `balanced cohort`,
where a new cross-validation brings several at once (`ALSO`).

What is not known of the released code is read in its favour: the scaler is fitted inside the training records. The
fits are in `cure.released`.
"""

from itertools import product
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import sklearn

from cure import embed, predictions
from cure.bootstrap import Array, Plan, apply, interval, label_permutations, metrics, patient_draws
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
    "sound": "patients apart, natural prevalence, parts pooled",
    "within parts": "same scores, metrics averaged over test parts",
    "balanced test": "same scores, both classes weigh alike in a part",
    "balanced cohort": "balanced training, fewer records, choice by F1",
    "by record": "a patient's records may be on both sides",
    "best fold": "the fold with the highest F1, not the median",
    "released": "the setting with the highest reported F1",
}
#: What a step changes besides.
ALSO = {"balanced cohort": "no validation, new folds by patient, median"}
#: Steps that score the sound predictions within each test part, and whether both classes weigh alike there.
_WITHIN = {"within parts": False, "balanced test": True}
#: How the steps that split by record report their folds.
_REPORTS = {"by record": "median fold", "best fold": "best fold", "released": "best setting"}
#: Metrics of every step; F1 at 0.5, as the released code has it. `f1_tuned` exists where there is a validation part.
METRICS = {"auroc": "auroc", "auprc": "auprc", "f1_half": "f1", "f1_tuned": "f1_tuned"}
#: Metrics of `steps_view`.
_SHOWN = ["auroc", "auprc", "f1", "f1_tuned"]
#: Samples that an interval over samples needs: the central 95 % of fewer are little more than their range.
MIN_SAMPLES = 10
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
    about = {"n": len(truth), "n_pos": int(truth.sum())}
    found = _rows("sound", HEADS[0], task, "shuffled", i, metrics(truth, scores, thresholds, tuple(METRICS)) | about)
    once = [np.ones((1, len(truth)), np.uint8) for truth, *_ in parts]
    for step, balanced in _WITHIN.items():
        numbers = dict(zip(METRICS, within(parts, once, balanced)[:, 0], strict=True))
        found += _rows(step, HEADS[0], task, "shuffled", i, numbers | about)
    return found


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
    """All numbers of one balanced sample: cross-validated with patients apart, and by record.

    On permuted labels only logistic regression is fitted with patients apart, as on the sound side.
    """
    y = task.y if labels == "true" else _permuted(config, task, patients, splits, i)
    rng = np.random.default_rng([config.seed, 2, task.number, i])
    rows = balanced_sample(y, config.sample_percentage, config.max_per_class, rng)
    out = []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        by_record = cross_validate(grid, x[rows], y[rows], np.arange(len(rows)), config.n_folds, rng)
        for head, (step, how) in product(HEADS, _REPORTS.items()):
            out += _rows(step, head, task, labels, i, reported(by_record, grid.heads == head, how))
        tried = grid if labels == "true" else Grid([])
        apart = cross_validate(tried, x[rows], y[rows], patients[rows], config.n_folds, rng)
        for head in dict.fromkeys(tried.heads):
            numbers = reported(apart, tried.heads == head, "median fold")
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


def _rows(step: str, head: str, task: Task, labels: str, i: int, numbers: dict) -> list[dict]:
    what = {"protocol": step, "head": head, "labels": labels, "task": task.name, "sample": i}
    about = {"n": int(numbers["n"]), "n_pos": int(numbers["n_pos"])}
    return [{**what, "metric": name, "value": numbers[key], **about} for key, name in METRICS.items() if key in numbers]


# --- tables -----------------------------------------------------------------------------------------------


def within(parts: list[tuple[Array, Array, Array]], weights: list[Array], balanced: bool) -> Array:
    """Metrics of each test part, averaged over the parts that hold both classes, each part weighted alike.

    The heads of different outer splits put their scores on different scales. Pooled over parts, AUROC and AUPRC pay
    for that; within a part, as in the fold of a cross-validation, they do not.

    Parameters
    ----------
    parts : list of (y, score, threshold)
        Bool labels, scores and tuned thresholds, (n_part,) each.
    weights : list of (n_draws, n_part) arrays
        How often each record of a part counts in each draw.
    balanced : bool
        Weigh the negatives of a part down (or up) to its positives, in every draw. AUROC does not depend on that.

    Returns
    -------
    (len(METRICS), n_draws) float64 array
        NaN in draws where no part holds both classes.
    """
    total = np.zeros((len(METRICS), len(weights[0])))
    count = np.zeros(len(weights[0]), int)
    for (y, score, threshold), drawn in zip(parts, weights, strict=True):
        y, weight = np.asarray(y, bool), drawn.astype(float)
        n_pos, n_neg = weight[:, y].sum(axis=1), weight[:, ~y].sum(axis=1)
        if balanced:
            weight[:, ~y] *= (n_pos / np.maximum(n_neg, 1))[:, None]
        both = (n_pos > 0) & (n_neg > 0)
        total += np.where(both, apply([Plan.of(y, score, threshold)], weight, tuple(METRICS))[0], 0)
        count += both
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _within_table(
    config: ProtocolsConfig, predicted: pd.DataFrame, patients: pd.Series, counted: list[str]
) -> pd.DataFrame:
    """Rows of the steps in `_WITHIN`, true labels, with patient-bootstrap intervals; draws as `evaluate` has them."""
    record_id = np.sort(predicted["record_id"].unique())
    patient = patients.loc[record_id].to_numpy()
    draws = patient_draws(patient, config.n_draws, np.random.default_rng(config.seed))
    weights = np.concatenate([np.ones((1, len(record_id)), np.uint8), draws])
    constant = [name for name in predicted if name in _COLUMNS and name not in ("task", "head")]
    rows = []
    for (step, balanced), (head, one) in product(_WITHIN.items(), predicted.groupby("head", sort=False, observed=True)):
        about = {**one.iloc[0][constant].to_dict(), "protocol": step, "head": head}
        found = {}
        for name, frame in one.groupby("task", sort=False, observed=True):
            split = [part for _, part in frame.groupby("split", sort=False, observed=True)]
            parts = [(p["y"].to_numpy(bool), p["score"].to_numpy(), p["threshold"].to_numpy()) for p in split]
            held = [weights[:, np.searchsorted(record_id, part["record_id"])] for part in split]
            found[name] = within(parts, held, balanced)
            used = [part for part in split if part["y"].nunique() == 2]
            members = pd.concat(used or split)
            behind = {"n": len(members), "n_pos": members["y"].sum()}
            behind |= {"n_patients": patients.loc[members["record_id"]].nunique(), "supported": name in counted}
            rows += _with_intervals({**about, "task": name, **behind}, found[name])
        behind = {"n": len(record_id), "n_patients": len(np.unique(patient)), "supported": bool(counted)}
        values = np.mean([found[name] for name in counted], axis=0) if counted else np.full_like(found[name], np.nan)
        rows += _with_intervals({**about, "task": "macro", **behind, "n_tasks": len(counted)}, values)
    return pd.DataFrame(rows)


def _with_intervals(about: dict, values: Array) -> list[dict]:
    """One row per metric from (n_metrics, 1 + n_draws) values, of which the first is the number itself."""
    lo, hi, _ = interval(values[:, 1:]) if about["supported"] else (np.full(len(values), np.nan),) * 2 + (0,)
    named = zip(METRICS.values(), values[:, 0], lo, hi, strict=True)
    return [{**about, "metric": name, "value": value, "lo": low, "hi": high} for name, value, low, high in named]


def protocols_table(
    config: ProtocolsConfig, cohort: Cohort, predicted: pd.DataFrame, sampled: pd.DataFrame
) -> pd.DataFrame:
    """All numbers of all steps: one row per sample, and rows with sample `mean` that average over samples.

    Rows with task `macro` average over the `n_tasks` tasks with enough positives in every step: `MIN_POSITIVES` in a
    fold of the balanced sample. `spread` says what `lo` and `hi` are: 95 % over `patients` (bootstrap), or the central
    95 % of the `samples` (and permutations), of which there must be `MIN_SAMPLES`. Numbers without support have
    neither.
    """
    sizes = {task.name: task.size for task in chosen_tasks(config, cohort)}
    counted = [name for name, size in sizes.items() if size // config.n_folds >= MIN_POSITIVES]
    patients = cohort.records.set_index("record_id")["patient_id"]
    plain = predicted.drop(columns="setting")
    options = {"n_draws": config.n_draws, "seed": config.seed, "macros": {"macro": counted}}
    pooled = evaluate(plain, patients, metrics=tuple(METRICS), **options)  # type: ignore[arg-type]
    pooled = pooled.assign(protocol="sound", metric=pooled["metric"].map(METRICS))
    whole = pd.concat([pooled, _within_table(config, plain, patients, counted)], ignore_index=True)
    whole = whole.assign(labels="true", sample=MEAN, spread="patients")
    sampled = sampled.assign(supported=sampled["task"].isin(counted))
    names = [name for name in sampled if name not in ("task", "value", "n", "n_pos")]
    macro = sampled[sampled["supported"]].groupby(names, sort=False, observed=True)["value"].agg(["mean", "size"])
    macro = macro.rename(columns={"mean": "value", "size": "n_tasks"}).reset_index().assign(task="macro")
    single = pd.concat([sampled, macro], ignore_index=True)
    names = [name for name in single if name not in ("sample", "value", "n", "n_pos")]
    rows = []
    for key, part in single.groupby(names, sort=False, observed=True, dropna=False):
        row = dict(zip(names, key, strict=True))
        enough = row["supported"] and part["value"].notna().sum() >= MIN_SAMPLES
        lo, hi, _ = interval(part["value"].to_numpy()) if enough else (np.nan, np.nan, 0)
        about = {name: part[name].median().round() for name in ("n", "n_pos") if part[name].notna().any()}
        rows.append({**row, "sample": MEAN, "value": part["value"].mean(), "lo": lo, "hi": hi, **about})
    averaged = pd.DataFrame(rows).assign(spread="samples")
    table = pd.concat([whole, averaged, single], ignore_index=True)[_COLUMNS]
    table["spread"] = table["spread"].where(table["lo"].notna())
    order = {name: i for i, name in enumerate([*STEPS, "true", "shuffled", *HEADS])}
    table = table.sort_values(["labels", "protocol", "head"], key=lambda c: c.map(order), kind="stable")
    counts = dict.fromkeys(("n", "n_pos", "n_patients", "n_tasks"), "Int64")
    return table.astype({**counts, "supported": bool}).reset_index(drop=True)


def steps_legend() -> pd.DataFrame:
    """What each step changes, in words."""
    also = [ALSO.get(step, "") for step in STEPS]
    return pd.DataFrame({"step": STEPS.keys(), "what changes": STEPS.values(), "and with it": also})


def steps_view(table: pd.DataFrame, labels: str = "true") -> pd.DataFrame:
    """Averages over tasks as a paper prints them, `value [lo, hi]`: a row per step, a column per head and metric.

    The last column says what the brackets are over; empty where there are none. `f1_tuned` is F1 at the threshold of
    the validation part, for steps that have one.
    """
    chosen = table[(table["task"] == "macro") & (table["sample"] == MEAN) & (table["labels"] == labels)]
    text = [f"{r.value:.3f}" + (f" [{r.lo:.3f}, {r.hi:.3f}]" if np.isfinite(r.lo) else "") for r in chosen.itertuples()]
    wide = chosen.assign(text=text).pivot(index="protocol", columns=["head", "metric"], values="text").fillna("")
    columns = pd.MultiIndex.from_product([HEADS, _SHOWN])
    view = wide.reindex([step for step in STEPS if step in wide.index], columns=columns, fill_value="")
    over = chosen.dropna(subset="spread").groupby("protocol")["spread"].first()
    view["brackets over", ""] = over.reindex(view.index).fillna("")
    return view.rename_axis(index=None)


def gains_view(table: pd.DataFrame) -> pd.DataFrame:
    """What each step adds to the one before, averaged over tasks, and in all; true labels.

    AUPRC and F1 compare from `balanced test` on, where prevalence stays; the row before the last has their sum.
    """
    chosen = table[(table["task"] == "macro") & (table["sample"] == MEAN) & (table["labels"] == "true")]
    wide = chosen.pivot(index="protocol", columns=["head", "metric"], values="value")
    wide = wide.reindex(list(STEPS), columns=pd.MultiIndex.from_product([HEADS, ["auroc", "auprc", "f1"]]))
    sums = {
        "at equal prevalence": wide.loc["released"] - wide.loc["balanced test"],
        "in all": wide.loc["released"] - wide.loc["sound"],
    }
    gains = pd.concat([wide.diff().iloc[1:], pd.DataFrame(sums).T])
    words = [*list(STEPS.values())[1:], "released minus balanced test", "released minus sound"]
    gains.insert(0, "what changes", words)
    return gains.map(lambda value: value if isinstance(value, str) else f"{value:+.3f}")

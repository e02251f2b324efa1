"""What the choices of the heads study are worth: encoder, pooling and head, and training on balanced classes."""

from collections.abc import Sequence

import joblib
import numpy as np
import pandas as pd
import sklearn

from cure import embed
from cure.bootstrap import Array, holm, interval, paired_difference
from cure.cohorts.base import Cohort
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.evaluate import support
from cure.heads import fit_head
from cure.progress import progress
from cure.ranks import MACRO, Draws, metric_draws, rank_table
from cure.settings.ablations import AblationsConfig
from cure.splits import Split
from cure.tables import marks

#: What is compared between balanced and natural training.
COMPARED = ("auroc", "auprc", "f1_half", "f1_tuned", "brier", "ece")
BALANCED, NATURAL = "balanced", "natural"


def main_pooling(methods: pd.DataFrame) -> Array:
    """Which rows are of mean pooling, or of features, which have none: bool array."""
    return methods["pooling"].astype(str).isin(["mean", "none"]).to_numpy()


def shared_heads(predicted: pd.DataFrame) -> list[str]:
    """Heads that every representation was fitted under, mean pooling: only under these can all be compared."""
    mean = predicted.loc[main_pooling(predicted), ["encoder", "weights", "head"]].drop_duplicates()
    counts = mean["head"].astype(str).value_counts(sort=False)
    return [str(head) for head in mean["head"].astype(str).unique() if counts[head] == counts.max()]


def patients_of(cohort: Cohort) -> pd.Series:
    """`patient_id` by record_id."""
    return cohort.records.set_index("record_id")["patient_id"]


def subject_rows(config: AblationsConfig, predicted: pd.DataFrame, heads: Sequence[str] | None = None) -> pd.DataFrame:
    """Predictions of the profile's subjects under mean pooling, in the subjects' order, with their name in `subject`.

    Parameters
    ----------
    config : AblationsConfig
    predicted : DataFrame
        Of stage `heads`.
    heads : sequence of str, optional
        By default all that are there.

    Raises
    ------
    CureError
        If a subject or a head has no predictions: names those that have.
    """
    chosen = predicted[main_pooling(predicted)].drop(columns="setting", errors="ignore")
    names = chosen[["encoder", "weights", "seed"]].drop_duplicates()
    folders = {_representation(row).folder: row for row in names.to_dict("records")}
    if unknown := [name for name in config.subjects if name not in folders]:
        raise CureError(f"subjects: no predictions of {unknown[0]!r}; stage heads made those of {', '.join(folders)}")
    fitted = list(chosen["head"].unique())
    if missing := [head for head in heads or [] if head not in fitted]:
        raise CureError(
            f"no predictions of head {missing[0]!r} in profile {config.profile}, only of {', '.join(fitted)}: "
            "add it to `heads` in the profile's section heads"
        )
    parts = []
    for name in config.subjects:
        mine = np.logical_and.reduce([chosen[column] == value for column, value in folders[name].items()])
        part = chosen[mine]
        part.insert(0, "subject", name)
        parts.append(part)
    found = pd.concat(parts, ignore_index=True)
    return found if heads is None else found[found["head"].isin(list(heads))].reset_index(drop=True)


def _representation(row: dict) -> Representation:
    return Representation(str(row["encoder"]), str(row["weights"]), int(row["seed"]))


# --- balanced against natural training ------------------------------------------------------------------


def balanced(y: Array, patient_id: Array, rng: np.random.Generator) -> Array:
    """Positions of a class-balanced subsample: all records of the rarer class, as many of the other.

    Patients are put in random order, and their records of the commoner class are taken until there are enough; the last
    patient's only in part. All records of a patient come together, as they do when a smaller cohort is collected.

    Parameters
    ----------
    y : (n,) bool array
    patient_id : (n,) array
    rng : numpy.random.Generator

    Returns
    -------
    (2 n_rare,) int array, sorted
    """
    y = np.asarray(y, bool)
    common = y.sum() > len(y) / 2
    rare, many = np.flatnonzero(y != common), np.flatnonzero(y == common)
    _, patient = np.unique(np.asarray(patient_id)[many], return_inverse=True)
    place = rng.permutation(patient.max() + 1)
    taken = many[np.argsort(place[patient], kind="stable")[: len(rare)]]
    return np.sort(np.concatenate([rare, taken]))


def balanced_predictions(
    config: AblationsConfig, cohort: Cohort, splits: list[Split], natural: pd.DataFrame
) -> pd.DataFrame:
    """Scores of the same test records by the same head, trained on class-balanced subsamples of the training records.

    Validation records, which choose regularisation and threshold, and test records stay as they are. Of the tasks
    asked for, those with support are fitted. Every subject is trained on the same subsamples.

    Parameters
    ----------
    natural : DataFrame
        Predictions of the subjects trained on all training records, as `subject_rows` returns them for one head.

    Returns
    -------
    DataFrame
        As `natural`, with `sampling` and `n_train`, the mean number of training records over splits; the `seed` counts
        the subsamples.
    """
    labels, patient_id = cohort.binary(), cohort.records["patient_id"].to_numpy()
    record_id = cohort.records["record_id"].to_numpy()
    supported = supported_tasks(natural, patients_of(cohort))
    tasks = [task for task in config.balanced_tasks if task in supported]
    if not tasks:
        raise CureError(f"balanced_tasks: none of {config.balanced_tasks} has support; choose from {supported}")
    units, work = [], []
    for subject, rows in natural.groupby("subject", sort=False):
        first = rows.iloc[0]
        one = _representation(first.to_dict())
        shared = None if one.per_split else embed.read_split(config, one, "mean", cohort, None)
        key = first[list(natural.columns[: list(natural.columns).index("task")])].to_dict()
        for s, split in enumerate(splits):
            x = embed.read_split(config, one, "mean", cohort, split) if shared is None else shared
            for task in tasks:
                t = labels.names.index(task)
                parts = []
                for k in range(config.n_balanced):
                    rng = np.random.default_rng([config.seed, s, t, k])
                    chosen = split.train[balanced(labels.y[split.train, t], patient_id[split.train], rng)]
                    parts.append(Split(split.name, chosen, split.val, split.test))
                units.append((key | {"subject": subject}, task, t, parts))
                work.append(joblib.delayed(_fit_all)(config.head, x, labels.y[:, t], parts, config.seed))
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")
    fits = progress(parallel(work), desc="balanced training", total=len(units), unit="task")
    frames = []
    for (key, task, t, parts), fitted in zip(units, fits, strict=True):
        for k, (part, (score, threshold)) in enumerate(zip(parts, fitted, strict=True)):
            columns = {"task": task, "split": part.name, "record_id": record_id[part.test]}
            columns |= {"y": labels.y[part.test, t].astype(np.int8), "score": score, "threshold": threshold}
            about = {"sampling": BALANCED, "seed": np.int16(k), "n_train": len(part.train)}
            frames.append(pd.DataFrame({**key, **about, **columns}))
    table = pd.concat(frames, ignore_index=True)
    mean = table.drop_duplicates(["task", "split", "seed"]).groupby("task")["n_train"].mean()
    table["n_train"] = table["task"].map(mean).astype(np.float32)
    return table.astype({name: "category" for name in table if table[name].dtype == object})


def supported_tasks(predicted: pd.DataFrame, patients: pd.Series) -> list[str]:
    """Tasks with ten positives and ten negatives among the test records."""
    first = predicted.drop_duplicates(["task", "record_id"])
    found = first.groupby("task", observed=True, sort=False)
    return [
        str(task) for task, rows in found if support(rows["y"], patients.loc[rows["record_id"]].to_numpy()).supported
    ]


def _fit_all(head: str, x: Array, y: Array, parts: list[Split], seed: int) -> list[tuple[Array, np.float32]]:
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        fits = [fit_head(head, x, y, part, seed) for part in parts]
    return [
        (fit.score(x[part.test]).astype(np.float32), np.float32(fit.threshold))
        for fit, part in zip(fits, parts, strict=True)
    ]


def natural_size(cohort: Cohort, splits: list[Split]) -> float:
    """Mean number of training records over splits."""
    return float(np.mean([len(split.train) for split in splits]))


def balanced_table(
    config: AblationsConfig, cohort: Cohort, splits: list[Split], natural: pd.DataFrame, scored: pd.DataFrame
) -> pd.DataFrame:
    """Balanced minus natural training: paired differences, the subsamples averaged inside each bootstrap draw.

    Returns
    -------
    DataFrame
        One row per subject, task (`macro`: over supported tasks) and metric: `value`, `lo`, `hi`, `reference` (natural
        training), `seed_sd` (standard deviation of the difference over subsamples), `p` and `p_holm` of macro rows (the
        family of tests), `n_train` and `n_train_reference`.
    """
    size = scored.drop_duplicates("task").set_index("task")["n_train"]
    tasks = list(size.index.astype(str))
    same = natural[natural["task"].isin(tasks)].assign(sampling=NATURAL)
    same["task"] = same["task"].astype(str)
    frame = pd.concat([same, scored.drop(columns="n_train").astype({"task": str})], ignore_index=True)[list(same)]
    # Initialisations have become subsamples; the name of a method must stand before the task.
    frame.insert(1, "sampling", frame.pop("sampling"))
    drawn = metric_draws(frame, patients_of(cohort), COMPARED, n_draws=config.n_draws, seed=config.seed)
    names, values, draws = drawn.with_macro()
    spread = {task: drawn.seed_sd[:, t] for t, task in enumerate(drawn.tasks)}
    rows = []
    for subject in dict.fromkeys(drawn.methods["subject"]):
        pick = (drawn.methods["subject"] == subject).to_numpy()
        (i,) = np.flatnonzero(pick & (drawn.methods["sampling"] == BALANCED).to_numpy())
        (j,) = np.flatnonzero(pick & (drawn.methods["sampling"] == NATURAL).to_numpy())
        key = drawn.methods.iloc[i].drop("sampling").to_dict()
        for t, task in enumerate(names):
            for m, metric in enumerate(drawn.metrics):
                test = paired_difference(values[i, t, m], values[j, t, m], draws[i, t, m], draws[j, t, m])
                row = {**key, "task": task, "metric": metric, "value": test.value, "lo": test.lo, "hi": test.hi}
                row |= {"comparator": NATURAL, "reference": values[j, t, m], "p": test.p if task == MACRO else np.nan}
                row["seed_sd"] = spread[task][i, m] if task in spread else np.nan
                row |= {"n_train": size[task] if task in size.index else size.mean()}
                rows.append({**row, "n_train_reference": natural_size(cohort, splits), **drawn.about(task)})
    table = pd.DataFrame(rows).astype({"n_pos": "Int64", "n_tasks": "Int64"})
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"].to_numpy()))
    return table


def balanced_view(table: pd.DataFrame) -> pd.DataFrame:
    """Macro rows as a paper prints them: `difference [lo, hi], p`, one column per metric."""
    rows = table[table["task"] == MACRO]
    text = [f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}], p = {r.p_holm:.2g}" for r in rows.itertuples()]
    wide = rows.assign(text=text).pivot(index=["subject", "head"], columns="metric", values="text")
    return wide.reindex(rows["subject"].unique(), level=0)[list(rows["metric"].unique())].rename_axis(columns=None)


# --- encoder x pooling x head x task --------------------------------------------------------------------


def labelled(table: pd.DataFrame) -> pd.Series:
    """What a figure calls each method: encoder, its weights, and the mark of weights that saw the cohort."""
    encoder, weights = table["encoder"].astype(str), table["weights"].astype(str)
    return encoder.where(encoder == FEATURES, encoder + " (" + weights + ")") + pd.Series(marks(table), table.index)


def grid_view(table: pd.DataFrame, task: str = MACRO) -> pd.DataFrame:
    """Scores of one task, head and pooling by encoder, whatever combinations there are; features stand under each head.

    Parameters
    ----------
    table : DataFrame
        From `cure.ranks.score_table`, of one metric.
    task : str
    """
    chosen = table[table["task"] == task]
    row = chosen["head"].astype(str) + ", " + chosen["pooling"].astype(str).replace("none", "mean")
    chosen = chosen.assign(label=labelled(chosen), row=row)
    wide = chosen.pivot(index="row", columns="label", values="value")
    order = dict.fromkeys(row[chosen["pooling"].astype(str) != "none"])
    heads = list(dict.fromkeys(chosen["head"].astype(str)))
    rows = sorted(order or dict.fromkeys(row), key=lambda name: heads.index(name.split(", ")[0]))
    return wide.loc[rows].rename_axis(index=None, columns=None)


def choices_table(drawn: Draws) -> pd.DataFrame:
    """How far the macro score moves with each choice while the others stay: the mean range, with its 95 % interval.

    For each choice the methods are grouped by the other two, groups with a single method are left out, and the range
    (best minus worst) is averaged over groups, inside each draw. The range of more methods is wider, and noise widens
    every range, so that the interval can lie above the value: compare choices, not single values with zero.
    """
    _, values, draws = drawn.with_macro()
    value, resampled = values[:, 0, 0], draws[:, 0, 0]
    methods = drawn.methods.astype(str)
    methods["pooling"] = methods["pooling"].replace("none", "mean")  # features stand beside mean pooling
    methods["representation"] = methods["encoder"] + " (" + methods["weights"] + ")"
    choices = ("representation", "pooling", "head")
    rows = []
    for choice in choices:
        groups = [
            found
            for found in methods.groupby([name for name in choices if name != choice], sort=False).indices.values()
            if len(found) > 1
        ]
        if not groups:
            continue
        spans = [np.ptp(value[found]) for found in groups]
        lo, hi, _ = interval(np.mean([np.ptp(resampled[found], axis=0) for found in groups], axis=0))
        row = {"choice": choice, "metric": f"range of {drawn.metrics[0]}", "value": np.mean(spans), "lo": lo, "hi": hi}
        size = {"n_groups": len(groups), "n_levels": np.mean([len(found) for found in groups])}
        rows.append({"cohort": methods["cohort"].iloc[0], **row, **size, **drawn.about(MACRO)})
    return pd.DataFrame(rows).drop(columns="n_pos")


def rank_tables(drawn: Draws, heads: Sequence[str]) -> pd.DataFrame:
    """`cure.ranks.rank_table` of each head under mean pooling, one below the other."""
    mean = main_pooling(drawn.methods)
    parts = [rank_table(drawn.select(mean & (drawn.methods["head"].astype(str) == head).to_numpy())) for head in heads]
    return pd.concat(parts, ignore_index=True)

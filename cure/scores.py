"""Score tables of the heads study: per initialisation and averaged, against a comparator, under permuted labels."""

from collections.abc import Iterable
from itertools import product
from math import lcm

import numpy as np
import pandas as pd

from cure import predictions, resampled
from cure.bootstrap import null_auroc
from cure.cohorts.base import Cohort
from cure.embed import FEATURES, HUB, STATISTICS
from cure.errors import CureError
from cure.resampled import Frame
from cure.settings.heads import HeadsConfig
from cure.splits import Split
from cure.tables import marks
from cure.tasks import SUPERCLASSES

#: Names of averages over tasks, inside each bootstrap draw and over supported tasks only; see `averages`.
MACROS = ("macro", "macro-super")
#: What the seed column says on a row that averages over initialisations.
MEAN = "mean"
_SEED = "#"


def averages(tasks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Averages over binary tasks and what goes into them: all tasks, and the superclasses where there are two or more.

    A cohort without superclasses has no `macro-super`: an average over NORM alone would only look like one.
    """
    names = tuple(str(task) for task in tasks)
    supers = tuple(name for name in SUPERCLASSES if name in names)
    return {"macro": names} | ({"macro-super": supers} if len(supers) > 1 else {})


def seed_averaged(predicted: pd.DataFrame, cohort: Cohort, n_draws: int, seed: int) -> pd.DataFrame:
    """All metrics of all methods: one row per seed, and rows with seed `mean` that average over seeds.

    The average is taken inside each draw, so its interval is right: it covers the sampling of patients, given these
    initialisations and trainings.
    """
    patients = cohort.records.set_index("record_id")["patient_id"]
    plain = predicted.drop(columns="setting")
    frames = [Frame(plain, averages(plain["task"].unique())), Frame(*fold_seeds(plain), per_task=False)]
    single, averaged = resampled.evaluate(frames, patients, n_draws=n_draws, seed=seed)
    averaged = averaged.assign(seed=MEAN)
    # The folded frame counts each record once per seed, and gives no number where a task lacks support.
    about = ["n", "n_pos", "n_patients", "n_pos_patients", "prevalence", "n_tasks", "supported"]
    support = single.drop_duplicates("task").set_index("task")[about]
    averaged[about] = support.loc[averaged["task"]].to_numpy()
    # A macro leaves out what lacks support; a single task is shown all the same, as the mean of its seeds.
    names = [name for name in averaged if name in predicted and name not in ("seed", "task")] + ["task", "metric"]
    plain_mean = single.groupby(names, observed=True)["value"].mean()
    lost = averaged["value"].isna()
    averaged.loc[lost, "value"] = plain_mean.reindex(pd.MultiIndex.from_frame(averaged.loc[lost, names])).to_numpy()
    return pd.concat([single, averaged.astype(single[about].dtypes.to_dict())], ignore_index=True)[single.columns]


def heads_table(config: HeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """All metrics of all settings of the heads study, see `seed_averaged`."""
    return seed_averaged(predicted, cohort, config.n_draws, config.seed)


def against_features(config: HeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Paired AUROC differences to hand-crafted features under the same head; encoders averaged over initialisations.

    Mean pooling only: one comparison per encoder, head and task, Holm-adjusted over the table.
    """
    shared = predicted["head"].isin(config.heads) & predicted["pooling"].isin(["mean", "none"])
    plain = predicted[shared].drop(columns="setting")
    folded, macros = fold_seeds(plain.drop(columns="contaminated"))
    comparator = {"encoder": FEATURES, "weights": "none", "pooling": "none"}
    patients = cohort.records.set_index("record_id")["patient_id"]
    table = resampled.compare(folded, comparator, patients, macros=macros, seed=config.seed)
    return _said(table, plain).assign(comparator=FEATURES)


def against_untrained(config: HeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Paired AUROC differences of pre-trained weights to the same architecture untrained, averaged over its seeds.

    Mean pooling; one comparison per kind of weights, head and comparator, Holm-adjusted over the table. Comparators
    are `random` weights and, where the profile extracts them, `statistics`: random ones with the training records'
    batch statistics. What is gained over the latter was learned; what it gains itself is normalisation. What
    pre-training adds to measured features stands in `against_features`.
    """
    kinds = [*config.pretrained, *([HUB] if config.weights == HUB and config.published else [])]
    if not kinds:
        raise CureError("no pre-trained weights are part of this profile: list them in its heads section")
    trained = predicted.loc[predicted["weights"].isin(kinds), "encoder"].unique()
    shared = predicted["head"].isin(config.heads) & (predicted["pooling"] == "mean")
    plain = predicted[predicted["encoder"].isin(trained) & shared].drop(columns="setting")
    folded, macros = fold_seeds(plain.drop(columns="contaminated"))
    control = [encoder for encoder in config.statistics if encoder in set(trained)]
    pairs = [({"weights": name}, {"weights": "random"}) for name in [*kinds, *([STATISTICS] if control else [])]]
    present = set(zip(plain["encoder"], plain["weights"], strict=True))
    learned = [(encoder, name) for encoder, name in product(control, kinds) if (encoder, name) in present]
    pairs += [({"encoder": encoder, "weights": name}, {"weights": STATISTICS}) for encoder, name in learned]
    patients = cohort.records.set_index("record_id")["patient_id"]
    table = resampled.compare(folded, pairs, patients, macros=macros, seed=config.seed)
    return _said(table, plain).assign(comparator=table["comparator"].str.removeprefix("weights="))


def _said(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Differences of seed-averaged methods without columns that mean nothing there, and with what each has seen."""
    seen = predicted[["encoder", "weights", "contaminated"]].drop_duplicates().astype(str)
    table = table.astype({"encoder": str, "weights": str})
    table = table.merge(seen, on=["encoder", "weights"], how="left", validate="many_to_one")
    return table.assign(seed=MEAN).drop(columns=["n_pos", "n_pos_patients", "prevalence", "n_tasks"])


def groups_table(config: HeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Metrics of every supported label of the label groups, and a macro row per group."""
    macros = {str(g): [t for t in predicted["task"].unique() if t.split("/")[0] == g] for g in config.groups}
    patients = cohort.records.set_index("record_id")["patient_id"]
    plain = predicted.drop(columns="setting")
    (table,) = resampled.evaluate([Frame(plain, macros)], patients, n_draws=config.n_draws, seed=config.seed)
    return table


def null_table(config: HeadsConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """AUROC under label permutation per task, of a retrained ridge probe.

    `mean`, `sd`, `lo` and `hi` (the central 95 %) are of the AUROC that the score tables show, pooled over test parts.
    `mean_within` and `se_within` are of its average within test parts. Without a leak the latter is 0.50. The former
    may lie below: probes trained on more positives score higher, and theirs are the test parts with fewer.
    """
    rows = []
    for key, parts in predictions.null_scores(config, cohort, splits):
        y, score = (np.concatenate(arrays).T for arrays in zip(*parts, strict=True))
        pooled = null_auroc(y, score)
        both = [null_auroc(y.T, score.T) | {"n": len(y)} for y, score in parts if 0 < y[:, 0].sum() < len(y)]
        share = np.array([part["n"] for part in both]) / sum(part["n"] for part in both)
        within = share @ [part["mean"] for part in both]
        error = np.sqrt(share**2 @ [part["sd"] ** 2 for part in both] / config.n_permutations)
        rows.append({**key, "n_permutations": pooled.pop("n"), **pooled, "mean_within": within, "se_within": error})
    return pd.DataFrame(rows)


def main_rows(table: pd.DataFrame, metric: str | None = "auroc") -> pd.DataFrame:
    """Rows of the main table: mean pooling (or features), averaged over initialisations, one metric or all."""
    chosen = (table["seed"].astype(str) == MEAN) & table["pooling"].isin(["mean", "none"])
    return table[chosen & ((table["metric"] == metric) | (metric is None))]


def comparison_view(table: pd.DataFrame) -> pd.DataFrame:
    """Differences as a paper prints them: `difference [lo, hi]` and Holm's p; method and comparator by task."""
    text = [f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}], p = {r.p_holm:.2g}" for r in table.itertuples()]
    method = ["encoder", "weights", "head"] + ["comparator"] * (table["comparator"].nunique() > 1)
    wide = table.assign(text=text).pivot(index=method, columns="task", values="text")
    tasks = list(table["task"].unique())
    first = [name for name in MACROS if name in tasks]
    return wide[first + [task for task in tasks if task not in first]].rename_axis(columns=None)


def with_label(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Add `label`: the named columns in one text, the weights of encoders beside it, and the mark of seen cohorts."""
    text = table[columns].astype(str).agg(", ".join, axis=1)
    named = text.where(table["weights"] == "none", text + " (" + table["weights"].astype(str) + ")")
    return table.assign(label=named + pd.Series(marks(table), index=table.index))


def pooling_view(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Macro score of the logistic head, encoder by pooling, averaged over initialisations; features stand alone."""
    averaged = table["seed"].astype(str) == MEAN
    chosen = table[averaged & (table["head"] == "logistic") & (table["task"] == "macro") & (table["metric"] == metric)]
    wide = with_label(chosen, ["encoder"]).pivot(index="label", columns="pooling", values="value")
    return wide[list(chosen["pooling"].unique())].rename_axis(index=None, columns=None)


def group_view(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Macro score of every label group by encoder, with the number of labels behind it."""
    chosen = table[(table["metric"] == metric) & table["n_tasks"].notna()]
    text = [f"{r.value:.3f} [{r.lo:.3f}, {r.hi:.3f}]" for r in chosen.itertuples()]
    chosen = with_label(chosen.assign(text=text, n_tasks=chosen["n_tasks"].astype(int)), ["encoder"])
    wide = chosen.pivot(index=["task", "n_tasks", "n"], columns="label", values="text")
    wide = wide.reindex(chosen["task"].unique(), level=0)
    return wide.rename_axis(index=["group", "labels", "records"], columns=None)


def fold_seeds(predicted: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Turn the seed into a part of the task's name: an average over seeds is then a macro average.

    Methods with fewer seeds are repeated, so that all have as many and each seed weighs the same.

    Returns
    -------
    folded : DataFrame
        Tasks named `task#i`, no column `seed`.
    macros : dict
        For `cure.evaluate`: each task, and each macro average, with the members that make it up.
    """
    method = [name for name in _method_columns(predicted) if name != "seed"]
    seeds = predicted.groupby(method, observed=True)["seed"]
    count = seeds.transform("nunique").astype(int)
    position = seeds.transform(lambda seed: pd.factorize(seed, sort=True)[0]).astype(int)
    total = lcm(*count.unique())
    parts = []
    for i in range(total):
        at = position + i * count
        chosen = at < total
        names = predicted["task"].astype(str) + _SEED + at.astype(str)
        parts.append(predicted.assign(task=names)[chosen])
    folded = pd.concat(parts, ignore_index=True).drop(columns="seed").astype({"task": "category"})
    tasks = list(predicted["task"].unique())
    groups = {**{str(task): (task,) for task in tasks}, **averages(tasks)}
    members = {name: [f"{task}{_SEED}{i}" for task in group for i in range(total)] for name, group in groups.items()}
    return folded, members


def _method_columns(predicted: pd.DataFrame) -> list[str]:
    """Columns of a predictions frame that name a method."""
    return list(predicted.columns[: list(predicted.columns).index("task")])

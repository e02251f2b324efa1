"""Tables of post-training: scores, gains over plain fine-tuning, absolute and relative, ablation, light strategies.

Every number is an average over the supported labels of a group and over seeds, taken inside each bootstrap draw over
patients; draws are the same for all strategies, so differences and ratios are paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cure.bootstrap import Array, holm, interval, macro, paired_difference, patient_draws
from cure.cohorts.base import Cohort
from cure.evaluate import aligned
from cure.finetune_tables import STRATEGY, with_label
from cure.posttrain import REFITTED, ablated
from cure.scores import MEAN, fold_seeds
from cure.settings.posttrain import PosttrainConfig
from cure.tables import marks

#: What strategies are compared by: ranking, rare labels, and calls at the threshold that validation chose.
METRICS = ("auroc", "auprc", "f1_tuned")
METHOD = [*STRATEGY, "head", "fraction"]


@dataclass(frozen=True)
class Drawn:
    """A method's averages over a group: `values` (n_metrics,) and `draws` (n_metrics, n_draws)."""

    about: dict
    group: str
    values: Array
    draws: Array
    n: int
    n_patients: int
    n_tasks: int
    contaminated: str


def drawn(config: PosttrainConfig, cohort: Cohort, predicted: pd.DataFrame, n_draws: int) -> list[Drawn]:
    """Averages of every method and group, all over the same draws of patients."""
    folded, members = fold_seeds(predicted.drop(columns=["setting", "contaminated"]))
    seen = predicted.drop_duplicates(["encoder", "weights"]).set_index(["encoder", "weights"])["contaminated"]
    patients = cohort.records.set_index("record_id")["patient_id"]
    (one,) = aligned(folded, patients)
    weights = patient_draws(one.patient, n_draws, np.random.default_rng(config.seed))
    every = [str(task) for task in predicted["task"].unique()]
    found = []
    for method in one.methods:
        tasks = list(method.tasks)
        values, draws = method.results(one, tasks, weights, METRICS)
        about = {name: method.name[name] for name in METHOD} | {"fraction": float(f"{method.name['fraction']:.4g}")}
        for group in config.groups:
            named = [task for task in every if task.split("/")[0] == group]
            used = [task for name in named for task in members[name] if task in tasks and one.support[task].supported]
            if used:
                inside = np.isin(tasks, used)
                columns = np.unique(np.concatenate([one.columns[task] for task in used]))
                n_tasks = sum(bool(set(members[name]) & set(used)) for name in named)
                counts = len(columns), len(np.unique(one.patient[columns])), n_tasks
                saw = str(seen[about["encoder"], about["weights"]])
                found.append(Drawn(about, group, macro(values, inside)[0], macro(draws, inside)[0], *counts, saw))
    return found


def score_table(config: PosttrainConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Scores of every strategy of the grid, one row per group, fraction and metric."""
    rows = []
    for one in drawn(config, cohort, _grid(config, predicted), config.n_draws):
        lo, hi, _ = interval(one.draws)
        for i, metric in enumerate(METRICS):
            rows.append(_about(cohort, one) | {"metric": metric, "value": one.values[i], "lo": lo[i], "hi": hi[i]})
    return pd.DataFrame(rows)


def gain_table(config: PosttrainConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """What each strategy gains over plain fine-tuning with as many labels; Holm's correction runs over the table.

    Returns
    -------
    DataFrame
        Tidy: `value, lo, hi` are the difference, `relative, relative_lo, relative_hi` its share of `reference`, the
        score of fine-tuning; `p` and `p_holm` are of the difference.
    """
    same = lambda one: {**one, "strategy": "full", "head": "linear"}  # noqa: E731
    return _gains(config, cohort, _grid(config, predicted), same)


def light_table(config: PosttrainConfig, cohort: Cohort, predicted: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    """The same for strategies that train few parameters, with how many those are: one seed, the first group."""
    chosen = _once(config, predicted)
    chosen = chosen[chosen["strategy"].astype(str).isin(["full", *config.light])]
    if not config.light:
        return pd.DataFrame(columns=[*METHOD, "task", "metric", "value", "lo", "hi", "trainable", "parameters"])
    same = lambda one: {**one, "strategy": "full"}  # noqa: E731
    return _gains(config, cohort, chosen, same).merge(sizes.drop(columns="cohort"), on=STRATEGY, how="left")


def refit_table(config: PosttrainConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """What a new head on the tuned network gains over the head that it was trained with, same network and labels."""
    chosen = predicted[predicted["fraction"] == predicted["fraction"].max()]
    names = chosen["strategy"].astype(str)
    again = sorted(set(names[names.str.endswith(REFITTED)]))
    if not again:
        return pd.DataFrame(columns=[*METHOD, "task", "metric", "value", "lo", "hi"])
    chosen = chosen[names.isin([*again, *(name.removesuffix(REFITTED) for name in again)])]
    own = lambda one: {**one, "strategy": one["strategy"].removesuffix(REFITTED), "head": "linear"}  # noqa: E731
    return _gains(config, cohort, chosen, own)


def ablation_table(config: PosttrainConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Preview on and off at every rate of stochastic depth: scores, and gains over plain fine-tuning; one seed.

    Returns
    -------
    DataFrame
        As `gain_table`, with `preview`, `drop_path`, and the score itself in `score`.
    """
    names = {ablated(config, preview, rate): (preview, rate) for preview in (False, True) for rate in config.drop_paths}
    chosen = _once(config, predicted)
    chosen = chosen[chosen["strategy"].astype(str).isin([*names, "full"])]
    if len(names) < 2:
        return pd.DataFrame(columns=[*METHOD, "task", "metric", "value", "lo", "hi", "preview", "drop_path", "score"])
    table = _gains(config, cohort, chosen, lambda one: {**one, "strategy": "full"}, itself=True)
    table = table[table["strategy"].isin(names)]
    preview, rate = zip(*(names[name] for name in table["strategy"]), strict=True)
    table = table.assign(preview=preview, drop_path=rate, score=table["reference"] + table["value"])
    order = ["encoder", "metric", "preview", "drop_path"]
    return table.sort_values(order, kind="stable", key=_ranked).reset_index(drop=True)


def _ranked(column: pd.Series) -> pd.Series:
    return column.map({name: i for i, name in enumerate(METRICS)}) if column.name == "metric" else column


def _grid(config: PosttrainConfig, predicted: pd.DataFrame) -> pd.DataFrame:
    return predicted[predicted["strategy"].astype(str).isin(config.strategies)]


def _once(config: PosttrainConfig, predicted: pd.DataFrame) -> pd.DataFrame:
    """What ablation and light strategies share: the first group, the most labels, the first seed."""
    group = predicted["task"].astype(str).str.split("/").str[0] == config.groups[0]
    top = predicted["fraction"] == predicted["fraction"].max()
    return predicted[group & top & (predicted["seed"] == config.seeds[0])]


def _gains(
    config: PosttrainConfig,
    cohort: Cohort,
    predicted: pd.DataFrame,
    comparator: Callable[[dict], dict],
    *,
    itself: bool = False,
) -> pd.DataFrame:
    """Differences to, and ratios with, the method that `comparator` names; `itself`: rows of that one too, zero."""
    plain = predicted[["encoder", "strategy", "fraction"]].drop_duplicates()
    tests = len(plain) * len(config.groups) * len(METRICS)
    found = drawn(config, cohort, predicted, min(max(config.n_draws, 100 * tests), 20_000))
    by_name = {(*one.about.values(), one.group): one for one in found}
    rows = []
    for one in found:
        other = comparator(one.about)
        reference = by_name.get((*other.values(), one.group))
        if reference is None or (reference is one and not itself):
            continue
        for i, metric in enumerate(METRICS):
            mine, theirs = one.draws[i], reference.draws[i]
            test = paired_difference(one.values[i], reference.values[i], mine, theirs)
            lo, hi, _ = interval(mine / theirs - 1)
            number = {"value": test.value, "lo": test.lo, "hi": test.hi, "reference": reference.values[i]}
            number |= {"relative": one.values[i] / reference.values[i] - 1, "relative_lo": lo, "relative_hi": hi}
            p = np.nan if reference is one else test.p
            rows.append(_about(cohort, one) | {"metric": metric, "comparator": other["strategy"], **number, "p": p})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def _about(cohort: Cohort, one: Drawn) -> dict:
    counts = {"n": one.n, "n_patients": one.n_patients, "n_tasks": one.n_tasks, "contaminated": one.contaminated}
    return {"cohort": cohort.name, **one.about, "seed": MEAN, "task": one.group, **counts}


# --- views -------------------------------------------------------------------------------------------------


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Add `label`, what readers call a strategy, without the encoder where there is only one."""
    parts = table["strategy"].astype(str).str.removesuffix(REFITTED).str.split("-", n=1, expand=True)
    text = with_label(table.assign(strategy=parts[0]))["label"]
    if table["encoder"].nunique() == 1:
        text = text.str.partition(":")[0]
    if 1 in parts:  # a rate of stochastic depth of its own
        text += (" " + parts[1]).fillna("")
    new = table["strategy"].astype(str).str.endswith(REFITTED)
    return table.assign(label=text.where(~new, text + REFITTED))


def _wide(table: pd.DataFrame, text: Sequence[str], rows: list[str], columns: list[str]) -> pd.DataFrame:
    table = table.assign(text=text, labels=[f"{row.task} ({row.n_tasks})" for row in table.itertuples()])
    table["share"] = [f"{fraction:.0%}" for fraction in table["fraction"]]
    wide = table.pivot(index=rows, columns=columns, values="text")
    index, order = _seen(table, rows), _seen(table, columns)
    return wide.reindex(index=index, columns=order).fillna("").rename_axis(columns=[None] * len(columns))


def _seen(table: pd.DataFrame, names: list[str]) -> pd.Index:
    """Combinations in order of appearance."""
    return pd.MultiIndex.from_frame(table[names].drop_duplicates()) if len(names) > 1 else table[names[0]].unique()


def score_view(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores of one metric: strategy by group (with its number of labels) and share of labels."""
    rows = labelled(table[table["metric"] == metric])
    text = [
        f"{row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]{mark}"
        for row, mark in zip(rows.itertuples(), marks(rows), strict=True)
    ]
    return _wide(rows, text, ["label"], ["labels", "share"])


def gain_view(table: pd.DataFrame) -> pd.DataFrame:
    """Gains as papers give them: relative, with interval and Holm's p; strategy and metric by group and share."""
    rows = labelled(table)
    text = [
        f"{row.relative:+.1%} [{row.relative_lo:+.1%}, {row.relative_hi:+.1%}], p = {row.p_holm:.2g}"
        for row in rows.itertuples()
    ]
    return _wide(rows, text, ["label", "metric"], ["labels", "share"])


def difference_view(table: pd.DataFrame) -> pd.DataFrame:
    """Absolute differences, with interval and Holm's p: strategy by metric, a row per group; empty where none."""
    if table.empty:
        return table
    rows = labelled(table)
    text = [f"{row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}], p = {row.p_holm:.2g}" for row in rows.itertuples()]
    more = ["trainable"] if "trainable" in rows else []
    return _wide(rows, text, ["label", "labels", *more], ["metric"])


def answer(table: pd.DataFrame, strategy: str = "preview+depth") -> str:
    """What the claim comes to here: ranges of the relative gains over groups, at each share of labels, in words."""
    rows = table[table["strategy"] == strategy]
    if rows.empty:
        return f"Strategy `{strategy}` is not part of this profile."
    said = []
    for (encoder, fraction, metric), part in rows.groupby(["encoder", "fraction", "metric"], sort=False):
        if metric not in ("auroc", "auprc"):
            continue
        low, high = part["relative"].min(), part["relative"].max()
        span = f"{low:+.1%}" if len(part) == 1 else f"{low:+.1%} to {high:+.1%}"
        sure = part["p_holm"] < 0.05
        better, worse = int((sure & (part["value"] > 0)).sum()), int((sure & (part["value"] < 0)).sum())
        verdict = f"better in {better}, worse in {worse}, not told apart in {len(part) - better - worse}"
        said.append(f"* {encoder}, {fraction:.0%} of the labels, {metric.upper()}: {span} ({verdict})")
    n = rows["task"].nunique()
    return (
        f"`{strategy}` relative to plain fine-tuning with as many labels, over {n} label group{'s' if n > 1 else ''}; "
        "verdicts at p < 0.05 after Holm's correction over patients, given these trainings; *not told apart* is no "
        "proof of equality:\n\n" + "\n".join(said)
    )

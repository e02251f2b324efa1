"""Tables of label efficiency: scores over the share of labels, differences to fine-tuning, and what they come to."""

import numpy as np
import pandas as pd

from cure import resources
from cure.cohorts.base import Cohort
from cure.evaluate import compare, evaluate
from cure.paths import atomic
from cure.scores import MACROS, MEAN, averages, fold_seeds
from cure.settings.efficiency import EfficiencyConfig

METRICS = ("auroc", "auprc")
#: A spread over samples is claimed from so many on.
MIN_DRAWS = 10
METHOD = ["strategy", "encoder", "weights", "head"]


def curve_table(config: EfficiencyConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """AUROC and AUPRC of every method at every fraction, averaged over samples inside each bootstrap draw.

    `sd` is the spread of the value over samples, given from `MIN_DRAWS` samples on; `n_samples` says how many there
    are. The interval is over patients, given these samples.
    """
    patients = cohort.records.set_index("record_id")["patient_id"]
    folded, macros = fold_seeds(predicted.drop(columns="setting"))
    table = evaluate(folded, patients, metrics=METRICS, macros=macros, n_draws=config.n_draws, seed=config.seed)
    member = table["task"].str.contains("#")
    averaged, single = table[~member].copy(), table[member]
    names = [*METHOD, "fraction"]
    count = predicted.groupby(names, observed=True)["seed"].nunique().rename("n_samples").reset_index()
    averaged = averaged.merge(count.astype({name: averaged[name].dtype for name in names}), on=names, how="left")
    # Counts of a task are those of one of its members.
    first = single[single["task"].str.endswith("#0")].assign(task=lambda t: t["task"].str.removesuffix("#0"))
    support = first.drop_duplicates("task").set_index("task")[["n", "n_pos", "n_patients", "prevalence", "supported"]]
    for name in support:
        averaged[name] = averaged["task"].map(support[name]).where(averaged["task"].isin(support.index), averaged[name])
    averaged["n_tasks"] = averaged["task"].map(
        {name: support.loc[list(tasks), "supported"].sum() for name, tasks in averages(support.index).items()}
    )
    averaged = averaged.merge(_spread(single, names), on=[*names, "task", "metric"], how="left")
    # Members are repeated samples: their variance is that of the samples, times (n - 1) / n.
    n = averaged["n_samples"]
    averaged["sd"] = (averaged["sd"] * np.sqrt(n / (n - 1).clip(lower=1))).where(n >= MIN_DRAWS)
    return averaged.assign(seed=MEAN).drop(columns=["n_pos_patients", "n_undefined"])


def _spread(single: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Standard deviation over samples of each task and macro average; repeated members count once."""
    parts = single["task"].str.split("#", expand=True)
    rows = single.assign(task=parts[0], member=parts[1])[single["supported"].astype(bool)]
    groups = averages(rows["task"].unique())
    macros = [rows[rows["task"].isin(tasks)].assign(task=name) for name, tasks in groups.items()]
    every = pd.concat([rows, *macros], ignore_index=True)
    by_member = every.groupby([*names, "task", "metric", "member"], observed=True)["value"].mean()
    return by_member.groupby([*names, "task", "metric"], observed=True).std(ddof=0).rename("sd").reset_index()


def difference_table(config: EfficiencyConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Paired AUROC differences of averages over tasks: against fine-tuning with as many labels, and with all of them.

    Every method is compared with fine-tuning at its own fraction, and with fine-tuning at the largest fraction; the
    latter is what "rivals fine-tuning with far less data" claims. Holm's correction runs over the table. Empty where
    nothing is fine-tuned.
    """
    if not (predicted["strategy"] == "full").any():
        return pd.DataFrame(
            columns=[*METHOD, "fraction", "task", "metric", "comparator", "value", "lo", "hi", "p_holm"]
        )
    folded, macros = fold_seeds(predicted.drop(columns=["setting", "contaminated"]))
    tuned = folded.loc[folded["strategy"] == "full", [*METHOD, "pooling"]].iloc[0].to_dict()
    top = folded["fraction"].max()
    fewer = [fraction for fraction in folded["fraction"].unique() if fraction < top]
    pairs = [({}, tuned), *(({"fraction": fraction}, {**tuned, "fraction": top}) for fraction in fewer)]
    patients = cohort.records.set_index("record_id")["patient_id"]
    macros = {name: members for name, members in macros.items() if name in MACROS}
    table = compare(folded, pairs, patients, seed=config.seed, macros=macros, per_task=False)
    against = np.where(table["comparator"].str.contains("fraction="), f"fine-tuned, {top:.0%} of labels", "fine-tuned")
    # A task counts once, however many samples of patients stand for it.
    table["n_tasks"] //= len(macros["macro"]) // predicted["task"].nunique()
    return table.assign(comparator=against, seed=MEAN).drop(columns=["n_pos", "n_pos_patients", "prevalence"])


def panels(table: pd.DataFrame) -> dict[str, str]:
    """Averages over tasks with the number of tasks behind them, for the figure."""
    rows = table[table["n_tasks"].notna()].drop_duplicates("task")
    titles = {"macro": "all tasks", "macro-super": "superclasses"}
    return {row.task: f"{titles[row.task]} ({row.n_tasks:.0f})" for row in rows.itertuples()}


def save_cost(config: EfficiencyConfig, seconds: pd.DataFrame) -> None:
    """Write `efficiency_cost.csv`: seconds per training of each strategy and fraction, one thread each; not hashed."""
    if seconds.empty:
        return
    machine = resources.machine()
    by = ["strategy", "encoder", "weights", "fraction"]
    table = seconds.groupby(by, sort=False)["seconds"].agg(seconds="mean", n="size").reset_index()
    with atomic(config.measured("efficiency_cost")) as part:
        table.round(1).assign(cpu=machine["cpu"], cores=machine["cores"]).to_csv(part, index=False, lineterminator="\n")


def with_label(table: pd.DataFrame) -> pd.DataFrame:
    """Add `label`: the method in words."""
    how = {"frozen": "frozen", "full": "fine-tuned", "scratch": "from scratch"}
    weights = table["weights"].astype(str).where(table["weights"] != "none", "")
    head = table["head"].astype(str).where(table["strategy"] == "frozen", "")
    parts = [table["encoder"].astype(str), weights.where(table["strategy"] != "scratch", ""), head]
    what = [", ".join(part for part in row if part) for row in zip(*parts, strict=True)]
    strategy = table["strategy"].map(how)
    return table.assign(label=[f"{name} ({way})" for name, way in zip(what, strategy, strict=True)])


def curve_view(table: pd.DataFrame, task: str = "macro", metric: str = "auroc") -> pd.DataFrame:
    """One average over tasks, method by share of labels: value [interval]."""
    rows = with_label(table[(table["task"] == task) & (table["metric"] == metric)])
    text = [f"{r.value:.3f} [{r.lo:.3f}, {r.hi:.3f}]" for r in rows.itertuples()]
    rows = rows.assign(text=text, share=[f"{fraction:.0%}" for fraction in rows["fraction"]])
    wide = rows.pivot(index="label", columns="share", values="text").reindex(rows["label"].unique())
    return wide[list(rows.sort_values("fraction")["share"].unique())].rename_axis(index=None, columns=None)


def difference_view(table: pd.DataFrame, task: str = "macro") -> pd.DataFrame:
    """Differences to fine-tuning with all labels, method by share of labels: difference [interval], Holm's p."""
    rows = with_label(table[(table["task"] == task) & table["comparator"].str.contains("%")])
    rows = pd.concat([rows, _at_top(with_label(table[table["task"] == task]))])
    text = [f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}], p = {r.p_holm:.2g}" for r in rows.itertuples()]
    rows = rows.assign(text=text, share=[f"{fraction:.0%}" for fraction in rows["fraction"]])
    wide = rows.pivot(index="label", columns="share", values="text")
    return wide[list(rows.sort_values("fraction")["share"].unique())].fillna("").rename_axis(index=None, columns=None)


def _at_top(rows: pd.DataFrame) -> pd.DataFrame:
    """With all labels, as many labels are all labels."""
    return rows[(rows["fraction"] == rows["fraction"].max()) & ~rows["comparator"].str.contains("%")]


def answer(differences: pd.DataFrame, folder: str, task: str = "macro") -> str:
    """What the claim comes to: how a frozen encoder with few labels stands to fine-tuning with all of them."""
    rows = differences[(differences["task"] == task) & (differences["strategy"] == "frozen")]
    mine = [folder.startswith(f"{row.encoder}-{row.weights}-") for row in rows.itertuples()]
    rows = rows[np.array(mine, bool)]
    against_all = pd.concat([rows[rows["comparator"].str.contains("%")], _at_top(rows)]).sort_values("fraction")
    if against_all.empty:
        return "Nothing is fine-tuned in this profile, so there is nothing to rival."
    said = [f"{row.fraction:.0%} of the labels: {_verdict(row)}" for row in against_all.itertuples()]
    return (
        f"Heads on `{folder}`, frozen, against fine-tuning with **all** labels, macro AUROC, "
        f"p < 0.05 after Holm's correction: " + "; ".join(said) + ". *Not told apart* is no proof of equality: the "
        "interval says how large a difference may be. Heads choose their regularisation in every sample; fine-tuning "
        "chooses among its learning rates with all labels only."
    )


def _verdict(row: tuple) -> str:
    if np.isnan(row.p_holm):  # type: ignore[attr-defined]
        return "not known, too few positives"
    decided = row.p_holm < 0.05  # type: ignore[attr-defined]
    word = ("better" if row.value > 0 else "worse") if decided else "not told apart"  # type: ignore[attr-defined]
    return f"{word} ({row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}])"  # type: ignore[attr-defined]

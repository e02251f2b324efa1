"""What was found, one sentence per question; every number is read from a published table.

A question whose table is not there, or whose rows a profile does not have, is left out here: the pages say which stages
did not run.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cure import config
from cure.embed import FEATURES
from cure.errors import CureError
from cure.scores import MACROS

#: Level of Holm's correction, as everywhere in the study.
LEVEL = 0.05


@dataclass(frozen=True)
class Answer:
    """An answer to one question of the study, and the table that it is read from."""

    question: str
    text: str
    table: str


class Tables:
    """Published tables of one profile."""

    def __init__(self, profile: str, folder: Path) -> None:
        self.profile, self._folder = profile, folder

    def macro(self, name: str, **where: object) -> pd.DataFrame:
        """Rows of a table that average AUROC over all tasks, and match `where`."""
        table = self.read(name)
        table = table[(table["task"] == "macro") & (table["metric"] == "auroc")]
        for column, value in where.items():
            table = table[table[column] == value]
        if table.empty:
            raise CureError(f"table {name} has no such row")
        return table

    def read(self, name: str) -> pd.DataFrame:
        """A whole table."""
        file = self._folder / f"{name}.csv"
        if not file.is_file():
            raise CureError(f"no table {name}: `make repro PROFILE={self.profile}`")
        return pd.read_csv(file, dtype={"seed": str}, low_memory=False)


def answers(profile: str, folder: Path) -> list[Answer]:
    """All questions that the tables in `folder` answer, in the order of the study."""
    tables = Tables(profile, folder)
    found = []
    for ask in (
        _light_head,
        _few_labels,
        _post_training,
        _pretraining,
        _ruler,
        _leads,
        _scoring,
        _elsewhere,
        _groups,
        _chance,
    ):
        try:
            found.append(ask(tables))
        except CureError:
            continue
    return found


def _number(row: pd.Series) -> str:
    return f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"


def _name(row: pd.Series) -> str:
    return f"`{row['encoder']}`" if row["weights"] == "none" else f"`{row['encoder']}` (`{row['weights']}`)"


def _after_holm(row: pd.Series) -> str:
    alone = ", though the interval alone excludes zero" if row["p_holm"] >= LEVEL and row["lo"] * row["hi"] > 0 else ""
    return f"p = {row['p_holm']:.2g} after Holm's correction over the whole table{alone}"


def _stands(row: pd.Series, better: str, worse: str, neither: str) -> str:
    if not row["p_holm"] < LEVEL:
        return neither
    return better if row["value"] > 0 else worse


def _light_head(tables: Tables) -> Answer:
    row = tables.macro("finetune_vs_linear", comparator="linear probe").iloc[0]
    verdict = _stands(row, "is worse than", "is better than", "cannot be told apart from")
    return Answer(
        "Does a light head rival fine-tuning?",
        f"With all labels, a linear probe on the frozen {_name(row)} {verdict} the same encoder trained whole: macro "
        f"AUROC of fine-tuning minus that of the probe {_number(row)}, {_after_holm(row)}.",
        "finetune_vs_linear",
    )


def _few_labels(tables: Tables) -> Answer:
    folder = config.parameters("efficiency", tables.profile)["representations"][0]
    rows = tables.macro("label_efficiency_differences", strategy="frozen")
    rows = rows[[folder.startswith(f"{row.encoder}-{row.weights}-") for row in rows.itertuples()]]
    rows = rows[rows["head"] == rows["head"].iloc[0]] if len(rows) else rows
    same = rows[rows["comparator"] == "fine-tuned"].sort_values("fraction")
    everything = rows[rows["comparator"].str.contains("%")].sort_values("fraction")
    if same.empty or everything.empty or same["p_holm"].isna().iloc[0] or everything["p_holm"].isna().iloc[0]:
        raise CureError("nothing is fine-tuned, or support is too small")
    few, all_of_them = same.iloc[0], everything.iloc[0]
    against = _stands(few, "is better than", "is worse than", "cannot be told apart from")
    replaces = _stands(all_of_them, "and better than", "but is worse than", "and cannot be told apart from")
    return Answer(
        "With how few labels?",
        f"With {few['fraction']:.0%} of the labels, a {few['head']} head on `{folder}` {against} fine-tuning with as "
        f"many ({_number(few)}, {_after_holm(few)}), {replaces} fine-tuning with all of them ({_number(all_of_them)}, "
        f"{_after_holm(all_of_them)}).",
        "label_efficiency_differences",
    )


def _post_training(tables: Tables) -> Answer:
    table = tables.read("post_training_gains")
    rows = table[
        (table["strategy"] == "preview+depth") & (table["comparator"] == "full") & (table["metric"] == "auroc")
    ]
    rows = rows[rows["fraction"] == rows["fraction"].max()].dropna(subset=["value", "lo", "hi"])
    if rows.empty:
        raise CureError("post-training was not compared with plain fine-tuning")
    worst, best = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    better = rows[(rows["p_holm"] < LEVEL) & (rows["value"] > 0)]
    return Answer(
        "Is there a better way to adapt an encoder than fine-tuning it?",
        f"With its head fitted first, then with stochastic depth (`preview+depth`), `{worst['encoder']}` gains over "
        f"plain fine-tuning, {worst['fraction']:.0%} of the labels, between {_number(worst)} (label group "
        f"{worst['task']}) and {_number(best)} (label group {best['task']}) in macro AUROC; better in {len(better)} of "
        f"{len(rows)} label groups after Holm's correction.",
        "post_training_gains",
    )


def _pretraining(tables: Tables) -> Answer:
    rows = tables.macro("pretraining", head="logistic")
    first = rows.iloc[0]
    mine = rows[(rows["encoder"] == first["encoder"]) & (rows["weights"] == first["weights"])].set_index("comparator")
    untrained = mine.loc["random"] if "random" in mine.index else first
    verdict = _stands(untrained, "adds to", "takes from", "changes nothing that can be told in")
    said = (
        f"Pre-training (`{first['weights']}`) {verdict} a logistic head's macro AUROC, against the same "
        f"`{first['encoder']}` never trained: {_number(untrained)}, {_after_holm(untrained)}"
    )
    if "statistics" in mine.index:
        row = mine.loc["statistics"]
        said += (
            f"; against one that only took the training records' batch statistics: {_number(row)}, {_after_holm(row)}"
        )
    return Answer("What does pre-training without labels add?", said + ".", "pretraining")


def _ruler(tables: Tables) -> Answer:
    row = tables.macro("heads_vs_features", head="logistic").iloc[0]
    table = tables.read("heads_vs_features")
    mine = table[(table["encoder"] == row["encoder"]) & (table["weights"] == row["weights"])]
    single = mine[(mine["head"] == "logistic") & mine["supported"].astype(bool) & ~mine["task"].isin(list(MACROS))]
    clear = single["p_holm"] < LEVEL
    better, worse = int((clear & (single["value"] > 0)).sum()), int((clear & (single["value"] < 0)).sum())
    verdict = _stands(row, "is better than", "is worse than", "cannot be told apart from")
    return Answer(
        "And against hand-crafted ECG measurements?",
        f"Under a logistic head, {_name(row)} {verdict} hand-crafted ECG features (`{FEATURES}`) in macro AUROC: "
        f"{_number(row)}, {_after_holm(row)}; of {len(single)} tasks it is better on {better}, worse on {worse}.",
        "heads_vs_features",
    )


def _leads(tables: Tables) -> Answer:
    rows = tables.macro(
        "leads_differences", weights="selection", pooling="adaptive", strategy="frozen", against="alone"
    )
    rows = rows[rows["n_leads"] < 12]
    if rows.empty:
        raise CureError("no configuration with fewer than twelve leads")
    worst, best = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    clear = rows[rows["p_holm"] < LEVEL]
    told = f"{len(clear)} of {len(rows)} can be told apart after Holm's correction"
    return Answer(
        "Does one encoder serve any leads?",
        f"Pre-trained once with selected leads, `{worst['encoder']}` differs in macro AUROC from an encoder "
        f"pre-trained for the same leads alone by {_number(worst)} (leads: {worst['leads']}) to {_number(best)} "
        f"(leads: {best['leads']}); {told}.",
        "leads_differences",
    )


def _scoring(tables: Tables) -> Answer:
    table = tables.read("protocols")
    rows = table[(table["task"] == "macro") & (table["sample"] == "mean") & (table["metric"] == "auroc")]
    value = rows.set_index(["labels", "head", "protocol"])["value"]
    shuffled = table[(table["task"] == "macro") & (table["sample"] == "mean") & (table["metric"] == "f1")]
    f1 = shuffled.set_index(["labels", "head", "protocol"])["value"]
    head = rows["head"].iloc[0]
    keys = [("shuffled", head, step) for step in ("balanced cohort", "released")]
    if not all(key in value.index and key in f1.index for key in keys):
        raise CureError("the released protocol was not run on shuffled labels")
    return Answer(
        "What is the way of scoring worth?",
        f"On shuffled labels, where there is nothing to find, choosing fold and setting by F1 (the released protocol) "
        f"takes the F1 of a {head} head from {f1[keys[0]]:.3f} to {f1[keys[1]]:.3f}; its macro AUROC stays at chance, "
        f"{value[keys[0]]:.3f} and {value[keys[1]]:.3f}.",
        "protocols",
    )


def _elsewhere(tables: Tables) -> Answer:
    rows = tables.macro("transfer_drop", head="logistic")
    study = config.load(tables.profile)
    if study.external is None:
        raise CureError("this profile has no second cohort")
    row = rows.iloc[0]
    is_simulated = study.external.source.startswith("synthetic")
    bound = " (simulated records bound nothing about a real cohort)" if is_simulated else ""
    return Answer(
        "Does it hold on another cohort?",
        f"A logistic head on {_name(row)}, trained on {study.cohort.title} and tested on "
        f"{study.external.title}{bound}, has a macro AUROC of {row['external']:.3f} there against "
        f"{row['internal']:.3f} at home, a difference of {_number(row)}, {_after_holm(row)}.",
        "transfer_drop",
    )


def _groups(tables: Tables) -> Answer:
    gaps = tables.read("subgroup_gaps")
    tested = gaps[gaps["supported"].astype(bool)]
    if tested.empty:
        raise CureError("no group has support")
    clear = tested[tested["p_holm"] < LEVEL]
    said = f"{len(clear)} of {len(tested)} differences between groups of age and sex hold after Holm's correction"
    if len(clear):
        row = clear.loc[clear["value"].abs().idxmax()]
        said += (
            f"; the widest of those is {row['metric']} of {row['task']}, {row['group']} minus {row['comparator']}, "
            f"{_number(row)} (`{row['subject']}`)"
        )
    return Answer("For whom are scores lower?", said + ".", "subgroup_gaps")


def _chance(tables: Tables) -> Answer:
    null = tables.read("null")
    far = null[(null["mean_within"] - 0.5).abs() > 4 * null["se_within"]]
    leak = (
        f"**{', '.join(far['task'])} lies further from 0.50 than four standard errors**"
        if len(far)
        else ("no task lies further from 0.50 than four standard errors")
    )
    widest = null.loc[null["hi"].idxmax()]
    return Answer(
        "What does the same scoring find in permuted labels?",
        f"Retrained on permuted labels, a ridge probe has a mean AUROC of {null['mean_within'].min():.3f} to "
        f"{null['mean_within'].max():.3f} within test parts, and {leak}; on {widest['task']} "
        f"({widest['n_pos']:.0f} positives) chance reaches {widest['hi']:.3f} in its best 2.5 %.",
        "null",
    )

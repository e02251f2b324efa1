"""What the report says of the study beyond its main table; every number is read from a table.

Label efficiency, post-training, fewer leads, protocols, ablations, transfer to another cohort, what representations
hold, faithfulness of attributions.
"""

import pandas as pd

from cure import (
    config,
    efficiency_tables,
    faithfulness,
    lead_cost,
    lead_tables,
    paths,
    posttrain_tables,
    selection,
    tables,
)
from cure.findings import source
from cure.protocols import STEPS
from cure.scores import MEAN
from cure.settings.report import ReportConfig


def _table(report: ReportConfig, stage: str, name: str) -> pd.DataFrame:
    return tables.read(paths.stage(report.profile, stage), name)


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"


def _gap(row: pd.Series) -> str:
    return f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"


def efficiency(report: ReportConfig) -> str:
    """How far few labels go on a frozen encoder, against fine-tuning with all of them."""
    settings = config.parameters("efficiency", report.profile)
    table = _table(report, "efficiency", "label_efficiency_differences")
    text = efficiency_tables.answer(table, settings["representations"][0])
    n = settings["n_splits"]
    splits = f"Scored on the test records of the first {f'{n} outer splits' if n > 1 else 'outer split'}. "
    return text + "\n\n" + splits + source(report.profile, "efficiency", "label_efficiency")


def posttraining(report: ReportConfig) -> str:
    """Whether head first and stochastic depth beat plain fine-tuning, and which learning rate that had."""
    gained = posttrain_tables.answer(_table(report, "posttrain", "post_training_gains"))
    rates = _table(report, "posttrain", "post_training_rates")
    rates["text"] = [f"{rate:g}" for rate in rates["rate"]]
    tried = ", ".join(rates.sort_values("rate")["text"].unique())
    chosen = rates[rates["chosen"]].groupby("group", sort=False)["text"].unique()
    said = "; ".join(f"{group}: {', '.join(found)}" for group, found in chosen.items())
    return (
        f"{gained}\n\nAll strategies learn at the rate that plain fine-tuning chose on validation records: of {tried}, "
        f"{said}. " + source(report.profile, "posttrain", "post_training_gains")
    )


def fewer_leads(report: ReportConfig) -> str:
    """What is lost with fewer leads, and what they save."""
    said = lead_tables.answer(_table(report, "leads", "leads_differences"))
    cost = lead_cost.savings(_table(report, "leads", "leads_counted"))
    return f"{said}\n\n{cost} " + source(report.profile, "leads", "leads_differences")


def protocols(report: ReportConfig) -> str:
    """What the released way of scoring is worth, and what it makes of shuffled labels."""
    table = _table(report, "protocols", "protocols")
    macro = table[(table["task"] == "macro") & (table["sample"] == MEAN) & table["metric"].isin(["auroc", "f1"])]
    heads = list(macro["head"].unique())
    lines = [
        "| protocol | labels | "
        + " | ".join(f"{head}, {metric}" for head in heads for metric in ("AUROC", "F1"))
        + " |",
        "|---|---|" + "---|" * (2 * len(heads)),
    ]
    for labels in macro["labels"].unique():
        for step in ("sound", "within parts", "balanced test", "released"):
            rows = macro[(macro["labels"] == labels) & (macro["protocol"] == step)].set_index(["head", "metric"])
            cells = [
                f"{rows['value'][head, metric]:.3f}" if (head, metric) in rows.index else "not run"
                for head in heads
                for metric in ("auroc", "f1")
            ]
            lines.append(f"| {step} | {labels} | " + " | ".join(cells) + " |")
    return (
        "The same heads on the same embeddings, scored soundly and as the public code does it (balanced sampling by "
        f"record, best fold, best setting by F1), with {len(STEPS) - 2} steps between. `sound` pools the outer splits; "
        "`within parts` and all later steps score one test part or fold at a time. AUROC compares from `within parts` "
        "on, F1 from `balanced test` on: calling every record positive has F1 .667 on balanced data. On shuffled "
        "labels there is nothing to find: AUROC should be .50 within a fold (pooled it may lie below). What is above "
        "is what the protocol adds by choosing. Read F1 against the shuffled row of the same step. "
        + source(report.profile, "protocols", "protocols")
        + "\n\n"
        + "\n".join(lines)
    )


def ablations(report: ReportConfig) -> str:
    """Which choice moves scores most, who ranks first, what balancing costs, and for whom scores are lower."""
    choices = _table(report, "ablations", "choices").set_index("choice")
    moved = "; ".join(f"{name} {_interval(row)} over {row['n_levels']:.1f} levels" for name, row in choices.iterrows())
    ranks = _table(report, "ablations", "ranks")
    ranks = ranks[ranks["task"] == "mean rank"]
    best = ranks[ranks["metric"] == "rank"]
    share = ranks[ranks["metric"] == "p_best"].set_index(["head", "encoder", "weights"])["value"]
    first = "; ".join(
        f"{head}: {_leaders(rows[rows['value'] == rows['value'].min()], share)} of {rows['n_methods'].iloc[0]:.0f}"
        for head, rows in best.groupby("head", sort=False)
    )
    balanced = _table(report, "ablations", "balanced")
    macro = balanced[(balanced["task"] == "macro") & balanced["metric"].isin(["auroc", "auprc", "ece"])]
    cost = "; ".join(f"{row['subject']}, {row['metric'].upper()} {_gap(row)}" for _, row in macro.iterrows())
    gaps = _table(report, "ablations", "subgroup_gaps")
    tested = gaps[gaps["supported"].astype(bool)]
    clear = tested[tested["p_holm"] < 0.05]
    worst = "" if clear.empty else _worst(clear.loc[clear["value"].abs().idxmax()])
    return (
        f"Mean range of macro AUROC when one choice varies and the others are held (representations include untrained "
        f"ones): {moved}. First by mean rank over tasks, under each head: {first}. Training on balanced records minus "
        f"training on all, same test records: {cost}. Gaps between groups of age and sex: {len(clear)} of "
        f"{len(tested)} with support hold after Holm's correction.{worst} "
        + source(report.profile, "ablations", "subgroup_gaps")
    )


def _leaders(rows: pd.DataFrame, share: pd.Series) -> str:
    """Methods of the lowest mean rank, all of them where they tie, and in how many draws each is best."""
    names = [
        f"{row['encoder']} ({row['weights']}; best in {share[tuple(row[['head', 'encoder', 'weights']])]:.0%} of draws)"
        for _, row in rows.iterrows()
    ]
    row = rows.iloc[0]
    return f"{' and '.join(names)}, mean rank {row['value']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]"


def _worst(row: pd.Series) -> str:
    return (
        f" The widest: {row['metric']} of {row['task']}, {row['group']} minus {row['comparator']}, {_gap(row)} "
        f"({row['subject']})."
    )


def transfer(report: ReportConfig) -> str:
    """Scores on another cohort beside those at home."""
    table = _table(report, "transfer", "transfer_drop")
    rows = table[(table["task"] == "macro") & (table["metric"] == "auroc")]
    if rows.empty:
        return "This profile has no second cohort (section `external`), so nothing is transferred."
    lines = ["| direction | representation | head | at home | elsewhere | difference |", "|---|---|---|---|---|---|"]
    for _, row in rows.iterrows():
        name = row["encoder"] if row["weights"] == "none" else f"{row['encoder']} ({row['weights']})"
        scores = f"{row['internal']:.3f} | {row['external']:.3f} | {_gap(row)}"
        lines.append(f"| {row['direction']} | {name} | {row['head']} | {scores} |")
    external = config.load(report.profile).external
    title = external.title if external else ""
    simulated = external is not None and external.source.startswith("synthetic")
    bound = " Simulated records bound nothing about a real cohort." if simulated else ""
    return (
        f"Heads trained on one cohort, tested on the other ({title}), macro AUROC over the tasks both have, 95 % "
        f"intervals over patients of both.{bound} " + source(report.profile, "transfer", "transfer_drop") + "\n\n"
        "" + "\n".join(lines)
    )


def probes(report: ReportConfig) -> str:
    """What can be read linearly from each representation, and what choosing a picture by its labels gains."""
    table = _table(report, "probes", "probes")
    settings = config.parameters("probes", report.profile)
    mine = table[(table["encoder"] == settings["encoder"]) & (table["seed"].astype(str) == MEAN)]
    lines = []
    for weights in (settings["weights"], "random"):
        rows = mine[(mine["weights"] == weights) & mine["metric"].isin(["r2", "auroc"])].drop_duplicates("task")
        said = ", ".join(f"{row['task']} {_interval(row)}" for _, row in rows.iterrows())
        lines.append(f"* `{settings['encoder']}`, {weights}: {said}.")
    gain = selection.gain_view(_table(report, "probes", "selection"))
    picture, held = (gain.loc[(records, "chosen UMAP")] for records in ("fitted", "held out"))
    return (
        "Ridge probes, out of fold: explained variance (AUROC for sex); untrained: mean over initialisations.\n\n"
        + "\n".join(lines)
        + f"\n\nA UMAP picture whose settings are chosen by the labels of {settings['task']}: silhouette "
        f"{picture['true labels']:.3f} with true labels, {picture['shuffled, largest']:.3f} at most with shuffled "
        f"ones; of records held out {held['true labels']:.3f} and {held['shuffled, largest']:.3f}. "
        + source(report.profile, "probes", "selection")
    )


def faithful(report: ReportConfig) -> str:
    """Which attributions name what moves the model."""
    table = _table(report, "faithfulness", "faithfulness")
    return (
        "What is taken out or put back first, by each attribution, and how fast the log-odds follow; against a random "
        "order, the signal's amplitude and the same method on an untrained twin.\n\n"
        + faithfulness.answer(table)
        + "\n\n"
        + source(report.profile, "faithfulness", "faithfulness")
    )

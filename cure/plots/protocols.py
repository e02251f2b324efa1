"""What each step from the sound protocol to the released one does to the scores."""

import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS, MARKERS

_AXES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1 at 0.5"}
_NAMES = {"logistic": "logistic regression", "xgboost": "XGBoost"}


def steps(table: pd.DataFrame, order: list[str]) -> Figure:
    """Averages over tasks at every step, a panel per metric, a colour per head; hollow and dotted: permuted labels.

    Parameters
    ----------
    table : DataFrame
        `protocol, head, labels, metric, value, lo, hi`: the averages over tasks and samples.
    order : list of str
        Steps from top to bottom.
    """
    heads = list(table["head"].unique())
    figure = Figure(figsize=(8.6, 0.42 * len(order) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for axes, (metric, title) in zip(panels, _AXES.items(), strict=True):
        for i, head in enumerate(heads):
            for labels, filled in (("true", True), ("shuffled", False)):
                one = table[(table["head"] == head) & (table["metric"] == metric) & (table["labels"] == labels)]
                rows = one.set_index("protocol").reindex([step for step in order if step in set(one["protocol"])])
                height = [order.index(step) + 0.24 * (i - (len(heads) - 1) / 2) for step in rows.index]
                style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4.5, "linewidth": 0.9}
                if not filled:
                    style |= {"fillstyle": "none", "linestyle": ":"}
                name = _NAMES.get(head, head) + ("" if filled else ", permuted labels")
                axes.hlines(height, rows["lo"], rows["hi"], color=COLOURS[i], linewidth=1.3, alpha=0.55)
                axes.plot(rows["value"], height, label=name, **style)
        axes.set_xlabel(title)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].axvline(0.5, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    panels[0].set_yticks(range(len(order)), order)
    panels[0].set_ylim(len(order) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def dumbbells(table: pd.DataFrame, first: str, last: str, head: str) -> Figure:
    """Each task under two protocols, joined by a line, a panel per metric; grey: too few positives for an interval.

    Parameters
    ----------
    table : DataFrame
        `protocol, head, labels, task, metric, value, lo, hi, n_pos, supported`, averages over samples, true labels.
    first, last : str
        The two protocols.
    head : str
    """
    rows = table[(table["head"] == head) & (table["labels"] == "true") & table["protocol"].isin([first, last])]
    tasks = list(rows["task"].unique())
    counts = rows[rows["protocol"] == first].groupby("task")["n_pos"].first()
    figure = Figure(figsize=(8.6, 0.36 * len(tasks) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for axes, (metric, title) in zip(panels, _AXES.items(), strict=True):
        wide = rows[rows["metric"] == metric].pivot(index="task", columns="protocol", values="value").loc[tasks]
        for y, (a, b) in enumerate(zip(wide[first], wide[last], strict=True)):
            axes.plot([a, b], [y - 0.16, y + 0.16], color="#BBBBBB", linewidth=1.6, zorder=1)
        for i, step in enumerate((first, last)):
            one = rows[(rows["metric"] == metric) & (rows["protocol"] == step)].set_index("task").loc[tasks]
            solid = one["supported"].to_numpy(bool)
            height = pd.Series(range(len(tasks)), index=tasks, dtype=float) + 0.16 * (2 * i - 1)
            axes.hlines(height[solid], one["lo"][solid], one["hi"][solid], color=COLOURS[i], linewidth=1.1)
            axes.plot(one["value"][solid], height[solid], MARKERS[i], color=COLOURS[i], markersize=4.5, label=step)
            grey = {"color": "#999999", "markersize": 4.5, "fillstyle": "none"}
            axes.plot(one["value"][~solid], height[~solid], MARKERS[i], **grey)
        axes.set_xlabel(title)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    names = [f"{task}  (n+ = {counts[task]:,})" if pd.notna(counts.get(task)) else task for task in tasks]
    panels[0].set_yticks(range(len(tasks)), names)
    panels[0].set_ylim(len(tasks) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure

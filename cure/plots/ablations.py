"""What choices are worth: ranks, reliability, gaps between groups, and balanced against natural training."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cure.plots import COLOURS, MARKERS

_GREY = "#999999"


def ranks(table: pd.DataFrame, heads: list[str]) -> Figure:
    """Mean rank over tasks with its 95 % interval, a panel per head, and beside it the probability of being best.

    Parameters
    ----------
    table : DataFrame
        `label, head, metric (rank, p_best), value, lo, hi`, one task only.
    heads : list of str
        Panels, in this order; methods stand in the order of the first.
    """
    rank, best = (table[table["metric"] == name] for name in ("rank", "p_best"))
    first = rank[rank["head"] == heads[0]].sort_values("value", kind="stable")
    names = list(dict.fromkeys([*first["label"], *rank["label"]]))
    figure = Figure(figsize=(2.6 * len(heads) + 1.6, 0.3 * len(names) + 1.0), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(heads), sharey=True, sharex=True))
    for axes, head in zip(panels, heads, strict=True):
        rows = rank[rank["head"] == head]
        y = [names.index(name) for name in rows["label"]]
        axes.hlines(y, rows["lo"], rows["hi"], color=COLOURS[0], linewidth=1.6)
        axes.plot(rows["value"], y, "o", color=COLOURS[0], markersize=5)
        for row in best[best["head"] == head].itertuples():
            text = f"{row.value:.0%}"
            axes.text(1.02, names.index(row.label), text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.text(1.02, -0.85, "P(best)", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_title(head)
        axes.set_xlabel("mean rank over tasks")
        _quiet(axes, "x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_xlim(0.7, len(names) + 0.3)
    return figure


def reliability(table: pd.DataFrame) -> Figure:
    """Reliability curves, a panel per task and a line per head, on the diagonal of a calibrated score.

    Parameters
    ----------
    table : DataFrame
        `head, task, bin, predicted, value, lo, hi, n_pos, supported`, of one representation.
    """
    tasks, heads = list(table["task"].unique()), list(table["head"].unique())
    n_columns = min(4, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    figure = Figure(figsize=(2.15 * n_columns + 0.4, 2.2 * n_rows + 0.5), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, task in zip(grid, tasks, strict=False):
        rows = table[table["task"] == task]
        top = min(1.0, 1.08 * float(np.nanmax(rows[["predicted", "value", "hi"]].to_numpy(float))))
        axes.plot([0, top], [0, top], color="#BBBBBB", linewidth=0.9, zorder=0)
        for i, head in enumerate(heads):
            mine = rows[rows["head"] == head]
            solid = bool(mine["supported"].iloc[0])
            colour = COLOURS[i % len(COLOURS)] if solid else _GREY
            axes.vlines(mine["predicted"], mine["lo"], mine["hi"], color=colour, linewidth=0.9, alpha=0.55)
            axes.plot(
                mine["predicted"],
                mine["value"],
                marker=MARKERS[i % len(MARKERS)],
                color=colour,
                markersize=3.2,
                linewidth=0.9,
                label=head,
            )
        axes.set(xlim=(0, top), ylim=(0, top))
        axes.set_box_aspect(1)
        axes.set_title(f"{task}  (n+ = {rows['n_pos'].iloc[0]:,})", fontsize=8.5)
        axes.tick_params(labelsize=7.5)
        axes.locator_params(nbins=4)
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("mean predicted probability of a bin", fontsize=9)
    figure.supylabel("share of positives in the bin", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(heads), fontsize=8)
    return figure


def gaps(table: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Differences between groups with 95 % intervals: a row of panels per metric, a column per pair of groups.

    Parameters
    ----------
    table : DataFrame
        `label, task, metric, group, comparator, value, lo, hi, n_pos, n_pos_comparator, supported`.
    titles : dict of str to str
        Metrics to show, and what their axes say.
    """
    pairs = table[["group", "comparator"]].drop_duplicates().to_numpy().tolist()
    tasks = list(table["task"].unique())
    figure = Figure(figsize=(9.2, (0.24 * len(tasks) + 0.75) * len(titles) + 0.5), layout="constrained")
    grid = figure.subplots(len(titles), len(pairs), sharey=True, sharex="row", squeeze=False)
    for line, (metric, title) in zip(grid, titles.items(), strict=True):
        for axes, (group, other) in zip(line, pairs, strict=True):
            rows = table[(table["metric"] == metric) & (table["group"] == group) & (table["comparator"] == other)]
            _differences(axes, rows, tasks)
            for row in rows.drop_duplicates("task").itertuples():
                text, y = f"{row.n_pos}/{row.n_pos_comparator}", tasks.index(row.task)
                axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color="#555555")
            axes.set_title(f"{group} minus {other}")
            axes.set_xlabel(title)
    grid[0, 0].set_yticks(range(len(tasks)), tasks)
    grid[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    figure.legend(*_handles(grid.ravel()), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def differences(table: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Paired differences per task with 95 % intervals, a panel per metric, one marker per series.

    Parameters
    ----------
    table : DataFrame
        `label, task, metric, value, lo, hi, n_pos, supported`.
    titles : dict of str to str
        Metrics to show, and what their axes say.
    """
    tasks = list(table["task"].unique())
    figure = Figure(figsize=(2.1 * len(titles) + 1.3, 0.32 * len(tasks) + 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(titles), sharey=True))
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        _differences(axes, table[table["metric"] == metric], tasks)
        axes.set_xlabel(title)
        axes.locator_params(axis="x", nbins=4)
    counts = table.groupby("task", sort=False)["n_pos"].first()
    labels = [f"{task}  (n+ = {counts[task]:,})" if pd.notna(counts[task]) else task for task in tasks]
    panels[0].set_yticks(range(len(tasks)), labels)
    panels[0].set_ylim(len(tasks) - 0.5, -0.5)
    figure.legend(*_handles(panels), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _differences(axes: Axes, rows: pd.DataFrame, tasks: list[str]) -> None:
    names = list(rows["label"].unique())
    axes.axvline(0, color="#888888", linewidth=0.8)
    for i, name in enumerate(names):
        mine = rows[rows["label"] == name]
        y = np.array([tasks.index(task) for task in mine["task"]]) + 0.26 * (i - (len(names) - 1) / 2)
        solid = mine["supported"].to_numpy(bool)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.hlines(y[solid], mine["lo"][solid], mine["hi"][solid], color=colour, linewidth=1.2)
        axes.plot(mine["value"][solid], y[solid], marker, color=colour, markersize=3.8, label=name)
        axes.plot(mine["value"][~solid], y[~solid], marker, color=_GREY, markersize=3.2, fillstyle="none")
    _quiet(axes, "x")


def _handles(panels: np.ndarray) -> tuple[list, list]:
    """Legend entries of the panel that has most: one without support has none."""
    return max((axes.get_legend_handles_labels() for axes in panels), key=lambda pair: len(pair[1]))


def _quiet(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color="#E5E5E5", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)

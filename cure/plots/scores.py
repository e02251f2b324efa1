"""Scores with their intervals."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS, MARKERS


def forest(table: pd.DataFrame, null: pd.DataFrame, series: str, metric_name: str) -> Figure:
    """Scores per task with 95 % intervals, one marker per series, on the band that label permutations reach by chance.

    Parameters
    ----------
    table : DataFrame
        `task, value, lo, hi, n_pos, supported` and the column named by `series`; one row per task and series.
    null : DataFrame
        `task, lo, hi`: the central 95 % of the permutation null. Empty for metrics without one.
    series : str
        Column whose values are told apart by marker and colour.
    metric_name : str
        Axis label.
    """
    tasks = list(table["task"].unique())
    names = list(table[series].unique())
    step, size = min(0.22, 0.8 / len(names)), 5 if len(names) < 5 else 4
    figure = Figure(figsize=(7.5, max(0.42, 0.11 * len(names)) * len(tasks) + 1.4), layout="constrained")
    axes = figure.subplots()
    for row in null.itertuples():
        if row.task in tasks:
            y = tasks.index(row.task)
            axes.fill_betweenx([y - 0.4, y + 0.4], row.lo, row.hi, color="#DDDDDD", linewidth=0, zorder=0)
    for i, name in enumerate(names):
        rows = table[table[series] == name]
        height = np.array([tasks.index(task) for task in rows["task"]]) + (i - (len(names) - 1) / 2) * step
        solid = rows["supported"].to_numpy(bool)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.hlines(height[solid], rows["lo"][solid], rows["hi"][solid], color=colour, linewidth=1.4)
        axes.plot(rows["value"][solid], height[solid], marker, color=colour, markersize=size, label=name)
        axes.plot(rows["value"][~solid], height[~solid], marker, color="#999999", markersize=4, fillstyle="none")
    counts = table.groupby("task", sort=False)["n_pos"].first()
    labels = [f"{task}  (n+ = {counts[task]:.0f})" if pd.notna(counts[task]) else task for task in tasks]
    axes.set_yticks(range(len(tasks)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(metric_name)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 3), fontsize=8)
    return figure


def heatmap(wide: pd.DataFrame, label: str, title: str = "") -> Figure:
    """Values of a small matrix, written into coloured cells.

    Parameters
    ----------
    wide : DataFrame of float
        NaN cells stay empty.
    label : str
        What the numbers are.
    """
    import seaborn as sns

    figure = Figure(figsize=(0.72 * wide.shape[1] + 2.6, 0.34 * wide.shape[0] + 1.2), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(
        wide, annot=True, fmt=".3f", cmap="cividis", ax=axes, cbar_kws={"label": label}, annot_kws={"size": 7.5}
    )
    axes.set(xlabel="", ylabel="")
    axes.set_title(title)
    return figure

"""Where records lie: measures per task, and pictures."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS, MARKERS

_GREY = "#C8C8C8"


def by_task(table: pd.DataFrame, null: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Measures per task with 95 % intervals, a panel each, one marker per representation; grey: permuted labels.

    Parameters
    ----------
    table : DataFrame
        `label, task, metric, value, lo, hi, n_pos, supported`.
    null : DataFrame
        `task, metric, lo, hi` under permuted labels; the widest over its rows is drawn.
    titles : dict of str to str
        Metrics to show, and what their axes say.
    """
    tasks, names = list(table["task"].unique()), list(table["label"].unique())
    figure = Figure(figsize=(9.5, len(tasks) * (0.1 * len(names) + 0.14) + 1.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(titles), sharey=True))
    bands = null.groupby(["metric", "task"]).agg(lo=("lo", "min"), hi=("hi", "max"))
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        for y, task in enumerate(tasks):
            band = bands.loc[(metric, task)]
            axes.fill_betweenx([y - 0.45, y + 0.45], band["lo"], band["hi"], color="#DDDDDD", linewidth=0, zorder=0)
        for i, name in enumerate(names):
            rows = table[(table["label"] == name) & (table["metric"] == metric)]
            height = np.array([tasks.index(task) for task in rows["task"]])
            height = height + 0.8 * ((i + 0.5) / len(names) - 0.5)
            solid = rows["supported"].to_numpy(bool)
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.hlines(height[solid], rows["lo"][solid], rows["hi"][solid], color=colour, linewidth=1.1)
            axes.plot(rows["value"][solid], height[solid], marker, color=colour, markersize=3.6, label=name)
            axes.plot(rows["value"][~solid], height[~solid], marker, color="#999999", markersize=3.2, fillstyle="none")
        axes.set_xlabel(title)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    counts = table.groupby("task", sort=False)["n_pos"].first()
    ticks = [f"{task}  (n+ = {counts[task]:,})" if pd.notna(counts[task]) else task for task in tasks]
    panels[0].set_yticks(range(len(tasks)), ticks)
    panels[0].set_ylim(len(tasks) - 0.5, -0.5)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(names), 4), fontsize=8)
    return figure


def maps(points: pd.DataFrame, rest: str) -> Figure:
    """Small multiples of records in two dimensions: a row per method, a column per representation.

    Parameters
    ----------
    points : DataFrame
        `label, method, x, y, superclass`, one row per record, representation and method.
    rest : str
        The value of `superclass` that is drawn in grey, below the others.
    """
    methods, names = list(points["method"].unique()), list(points["label"].unique())
    counts = points[(points["method"] == methods[0]) & (points["label"] == names[0])]["superclass"].value_counts()
    classes = [rest, *sorted(set(counts.index) - {rest})]
    colours = [_GREY, *COLOURS]
    figure = Figure(figsize=(2.35 * len(names) + 0.3, 2.35 * len(methods) + 0.6), layout="constrained")
    grid = figure.subplots(len(methods), len(names), squeeze=False)
    for i, method in enumerate(methods):
        for j, name in enumerate(names):
            axes = grid[i, j]
            shown = points[(points["method"] == method) & (points["label"] == name)]
            for colour, one in zip(colours, classes, strict=False):
                mine = shown[shown["superclass"] == one]
                text = f"{one}, n = {counts.get(one, 0):,}"
                axes.scatter(mine["x"], mine["y"], s=7, color=colour, linewidths=0, alpha=0.85, label=text)
            axes.set(xticks=[], yticks=[])
            axes.margins(0.06)
            axes.set_box_aspect(1)
            axes.spines[:].set_visible(True)
            axes.spines[:].set_color("#BBBBBB")
            if i == 0:
                axes.set_title(name, fontsize=8.5)
            if j == 0:
                axes.set_ylabel(method)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(classes), 6), fontsize=8, markerscale=2)
    return figure

"""Scores on the own cohort beside those on another."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cure import plots
from cure.plots import COLOURS, MARKERS

_GREY = "#999999"


def save(table: pd.DataFrame, folder: Path, name: str, text: str, table_name: str) -> None:
    """Save and show `draw(table)`; nothing where the table has no rows, which is a profile with one cohort."""
    if len(table):
        plots.save(draw(table), folder, name, text, table=table_name)


def draw(table: pd.DataFrame) -> Figure:
    """Internal and external scores per task with 95 % intervals: one panel per direction, one colour per method.

    Parameters
    ----------
    table : DataFrame
        `direction, trained_on, tested (internal or external), label (of the method), task, value, lo, hi, n_pos,
        supported` of one metric and one head. Hollow markers are internal, filled ones external.
    """
    directions, labels = list(table["direction"].unique()), list(table["label"].unique())
    tasks = list(table["task"].unique())
    figure = Figure(figsize=(7.8, (0.19 * len(labels) + 0.14) * len(tasks) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(directions), sharex=True, squeeze=False)[0]
    for axes, direction in zip(panels, directions, strict=True):
        _panel(axes, table[table["direction"] == direction], tasks, labels)
        axes.set_title(direction.replace(" to ", "\nto "), fontsize=9)
        axes.set_xlabel("AUROC")
    keys = [Line2D([], [], color=COLOURS[i], marker=MARKERS[i], label=label) for i, label in enumerate(labels)]
    for text, style in (("own test folds", "none"), ("other cohort", "full")):
        keys.append(Line2D([], [], color="black", marker="o", linestyle="", fillstyle=style, label=text))  # type: ignore[arg-type]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _panel(axes: Axes, table: pd.DataFrame, tasks: list[str], labels: list[str]) -> None:
    step = 0.8 / (2 * len(labels))
    for row in table.itertuples():
        i, external = labels.index(row.label), row.tested == "external"
        y = tasks.index(row.task) + (2 * i + external - len(labels) + 0.5) * step
        colour = COLOURS[i] if row.supported else _GREY
        if row.supported:
            axes.hlines(y, row.lo, row.hi, color=colour, linewidth=1.5 if external else 0.8)
        fill = "full" if external else "none"
        axes.plot(row.value, y, MARKERS[i], color=colour, markersize=4, fillstyle=fill)
    counts = table.pivot_table(index="task", columns="tested", values="n_pos", aggfunc="first", observed=True)
    names = []
    for task in tasks:
        known = task in counts.index and counts.loc[task].notna().all()
        names.append(
            f"{task}\n{counts.loc[task, 'internal']:.0f} / {counts.loc[task, 'external']:.0f}" if known else task
        )
    axes.set_yticks(range(len(tasks)), names, fontsize=8)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.axvline(0.5, color="#CCCCCC", linewidth=0.8, zorder=0)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)

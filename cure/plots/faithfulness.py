"""Deletion and insertion, agreement between attributions, and attributions on the median beat."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from cure import plots
from cure.beat_attribution import DIFFERENCE, MS, NEGATIVES, POSITIVES
from cure.beats import TIME_MS
from cure.faithfulness import DELETION, GAP, INSERTION, OVERLAP, SIGNED, SPEARMAN, TWIN_SIGNED
from cure.plots import COLOURS
from cure.plots.ecg import LAYOUT
from cure.pointing import AMPLITUDE, GRADIENT, IG, TWIN
from cure.signals import LEADS
from cure.tasks import TITLES

_SIGNED_MAP = LinearSegmentedColormap.from_list("signed", [COLOURS[0], "white", COLOURS[1]])
_GREY = "#8A8A8A"
#: Methods whose curves are drawn: colour and line. Controls are dashed. The others are in the panel of areas.
_LINES = {
    SIGNED: (COLOURS[0], "-"),
    IG: (COLOURS[5], "-"),
    GRADIENT: (COLOURS[1], "-"),
    TWIN_SIGNED: (COLOURS[3], "--"),
    AMPLITUDE: (COLOURS[4], "--"),
    "random order": (COLOURS[6], "--"),
}
_HALF = (MS[1] - MS[0]) / 2


def removal(curves: pd.DataFrame, areas: pd.DataFrame) -> Figure:
    """Log-odds under deletion and insertion, and the areas between, a row of panels per task.

    Parameters
    ----------
    curves, areas : DataFrame
        From `cure.faithfulness.curves_table` and `areas_table`.
    """
    tasks = list(curves["task"].unique())
    figure = Figure(figsize=(11.4, 2.75 * len(tasks) + 0.7), layout="constrained")
    grid = figure.subplots(len(tasks), 3, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1.05]})
    for row, task in zip(grid, tasks, strict=True):
        mine = curves[curves["task"] == task]
        for axes, metric in zip(row[:2], (DELETION, INSERTION), strict=True):
            _curves(axes, mine[mine["metric"] == metric])
        row[0].set_title(f"{task} (n = {mine['n'].max()})")
        row[0].set_ylabel("log-odds, mean over records")
        drawn = mine[mine["method"].isin(list(_LINES))]
        ends = drawn["value"].to_list() + drawn.loc[drawn["method"] == SIGNED, ["lo", "hi"]].to_numpy().ravel().tolist()
        low, high = np.nanmin(ends), np.nanmax(ends)
        for axes in row[:2]:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        _areas(row[2], areas[(areas["task"] == task) & (areas["metric"] == GAP) & areas["comparator"].isna()])
    grid[-1, 0].set_xlabel("share of bins deleted, highest rank first")
    grid[-1, 1].set_xlabel("share of bins inserted, highest rank first")
    grid[-1, 2].set_xlabel("area: insertion less deletion (log-odds)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _curves(axes: Axes, table: pd.DataFrame) -> None:
    for method, (colour, line) in _LINES.items():
        rows = table[table["method"] == method].sort_values("share")
        axes.plot(rows["share"], rows["value"], line, color=colour, linewidth=1.5, label=method)
        if method == SIGNED:
            axes.fill_between(rows["share"], rows["lo"], rows["hi"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(0, 1)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _areas(axes: Axes, table: pd.DataFrame) -> None:
    height = np.arange(len(table))
    colours = [_LINES.get(method, (_GREY,))[0] for method in table["method"]]
    axes.hlines(height, table["lo"], table["hi"], color=colours, linewidth=1.4)
    axes.scatter(table["value"], height, color=colours, s=18, zorder=3)
    axes.axvline(0, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(height, table["method"], fontsize=7.5)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def agreement(table: pd.DataFrame) -> Figure:
    """How far methods agree, a panel per task: Spearman's correlation below the diagonal, overlap of the top above it.

    Parameters
    ----------
    table : DataFrame
        From `cure.faithfulness.agreement_table`.
    """
    tasks = list(table["task"].unique())
    names = list(dict.fromkeys([*table["method"], *table["compared_with"]]))
    columns = min(len(tasks), 2)
    rows = -(-len(tasks) // columns)
    labels = [name.replace(IG, "IG") for name in names]
    width, height = 4.6 * columns + 3.0, 4.8 * rows + 1.8
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    # by hand: a constrained layout cuts long slanted labels off
    right = 1 - 0.95 / width
    figure.subplots_adjust(2.0 / width, 1.75 / height, right, 1 - 0.35 / height, wspace=0.06, hspace=0.1)
    for axes, task in zip(grid.flat, tasks, strict=False):
        values = np.full((len(names), len(names)), np.nan)
        for one in table[table["task"] == task].itertuples():
            i, j = names.index(one.method), names.index(one.compared_with)
            values[(j, i) if one.metric == SPEARMAN else (i, j)] = one.value
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
        for i, j in np.argwhere(~np.isnan(values)):
            ink = "black" if values[i, j] > 0.55 else "white"
            axes.text(
                j, i, f"{values[i, j]:.2f}".replace("-0.00", "0.00"), ha="center", va="center", fontsize=7, color=ink
            )
        axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), labels, fontsize=8)
        axes.set_title(f"{task} (n = {table.loc[table['task'] == task, 'n'].max()})")
        axes.spines[:].set_visible(False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, cax=figure.add_axes((right + 0.15 / width, 0.4, 0.15 / width, 0.4)))
    bar.set_label(f"below: Spearman; above: {OVERLAP}", fontsize=8)
    bar.outline.set_linewidth(0.4)
    return figure


def beat(
    table: pd.DataFrame, waves: dict[str, np.ndarray], method: str = IG, twin: str = TWIN, title: str = ""
) -> Figure:
    """Attributions on the average median beat of each lead (left), and their band over patients (right).

    Parameters
    ----------
    table : DataFrame
        Rows of one task from `cure.faithfulness.beats_table`.
    waves : dict of (12, n_samples) arrays
        From `cure.beat_attribution.class_waves`.
    method, twin : str
        Whose difference between classes is drawn, and its control.
    title : str
    """
    gap = table[table["group"] == DIFFERENCE]
    own, other = (gap[gap["method"] == name].set_index(["lead", "ms"]) for name in (method, twin))
    clear = (own["lo"] > 0) | (own["hi"] < 0)
    top = float(own["value"].abs().quantile(0.99)) or 1.0
    norm = Normalize(-top, top)
    figure = Figure(figsize=(13.2, 6.0))
    left = figure.add_gridspec(3, 4, left=0.045, right=0.475, top=0.86, bottom=0.09, hspace=0.16, wspace=0.08)
    right = figure.add_gridspec(3, 4, left=0.6, right=0.99, top=0.86, bottom=0.09, hspace=0.16, wspace=0.08)
    both = np.concatenate(list(waves.values()))
    heights = (np.nanmin(both) - 0.15, np.nanmax(both) + 0.15)
    reach = 1.1 * np.nanmax(np.abs(own[["value", "lo", "hi"]].to_numpy()))
    for row, leads in enumerate(LAYOUT):
        for column, lead in enumerate(leads):
            i, last = LEADS.index(lead), row == len(LAYOUT) - 1
            axes = figure.add_subplot(left[row, column])
            shown = own.loc[lead, "value"].where(clear.loc[lead]).to_numpy()
            edges = np.append(MS - _HALF, MS[-1] + _HALF)
            image = axes.pcolormesh(
                edges, heights, shown[None], norm=norm, cmap=_SIGNED_MAP, rasterized=True, zorder=-1
            )
            axes.plot(TIME_MS, waves[NEGATIVES][i], color=_GREY, linewidth=0.8, label=NEGATIVES)
            axes.plot(TIME_MS, waves[POSITIVES][i], color="black", linewidth=1.0, label=POSITIVES)
            axes.set(ylim=heights)
            _frame(axes, lead, column == 0, last, "mV")
            axes = figure.add_subplot(right[row, column])
            for part, colour, name in (
                (other.loc[lead], _GREY, "untrained twin"),
                (own.loc[lead], COLOURS[1], "trained"),
            ):
                axes.fill_between(MS, part["lo"], part["hi"], color=colour, alpha=0.3, linewidth=0)
                axes.plot(MS, part["value"], color=colour, linewidth=1.2, label=name)
            axes.axhline(0, color="#999999", linewidth=0.6, zorder=0)
            axes.set(ylim=(-reach, reach))
            _frame(axes, lead, column == 0, last, "log-odds per 40 ms" if row == 1 else "")
    handles = [figure.axes[k].get_legend_handles_labels() for k in (0, 1)]
    for (marks, names), at in zip(handles, (0.25, 0.795), strict=True):
        figure.legend(marks, names, loc="upper center", bbox_to_anchor=(at, 0.95), ncols=2, fontsize=8)
    bar = figure.colorbar(image, cax=figure.add_axes((0.484, 0.2, 0.007, 0.55)))
    bar.ax.tick_params(labelsize=7)
    bar.set_label("log-odds per 40 ms", fontsize=7.5)
    bar.outline.set_linewidth(0.4)
    figure.suptitle(title, x=0.045, ha="left", fontsize=10, weight="bold")
    return figure


def _frame(axes: Axes, lead: str, first: bool, last: bool, unit: str) -> None:
    axes.set_xlim(MS[0] - _HALF, MS[-1] + _HALF)
    axes.set_xticks([-300, 0, 300])
    axes.tick_params(labelsize=7, labelleft=first, labelbottom=last)
    axes.axvline(0, color="#BBBBBB", linewidth=0.5, linestyle=":", zorder=0)
    axes.text(0.03, 0.97, lead, transform=axes.transAxes, va="top", fontsize=8.5, weight="bold")
    if first:
        axes.set_ylabel(unit, fontsize=7.5)
    if last:
        axes.set_xlabel("ms from R", fontsize=7.5)


def save_beats(
    table: pd.DataFrame, waves: dict[str, dict[str, np.ndarray]], folder: Path, model: str, cohort: str
) -> None:
    """Draw, save and show figure `beat_<task>` for every task.

    Parameters
    ----------
    table : DataFrame
        From `cure.faithfulness.beats_table`.
    waves : dict
        From `cure.faithfulness.beat_waves`.
    folder : Path
        Of the stage's output.
    model, cohort : str
        What captions call them.
    """
    for task, drawn in waves.items():
        mine = table[table["task"] == task]
        if not (mine["group"] == DIFFERENCE).any():
            continue  # no R peak was found in one of the classes
        counts = mine[mine["method"] == IG].groupby("group")["n"].first()
        text = (
            f"Integrated gradients of the log-odds of {task}, averaged over beats and then over test records: "
            f"positives (n = {counts[POSITIVES]}) less negatives (n = {counts[NEGATIVES]}). Left: on the mean median "
            "beat of each lead; orange raises the log-odds of positives more, blue less; coloured only where the "
            "pointwise 95 % interval over patients excludes zero; scale to the 99th percentile. Right: the same "
            "difference with its interval, and that of the untrained twin, which may leave the panel. "
            f"{model} with a logistic head, {cohort}."
        )
        title = f"{TITLES.get(task, task)} ({task})"
        plots.save(beat(mine, drawn, title=title), folder, f"beat_{task}", text, table="beat_attribution")

"""Attributions: on the ECG itself, and how they score against what was planted."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from cure import plots
from cure.attribution import BIN_S, binned
from cure.explain import Example
from cure.plots import COLOURS, MARKERS
from cure.plots.ecg import LAYOUT, ROW_MV, SECONDS, STRIP_MV, draw_on
from cure.pointing import METRICS
from cure.signals import LEADS
from cure.tasks import TITLES

#: Blue lowers and orange raises the log-odds; white does neither.
_SIGNED = LinearSegmentedColormap.from_list("signed", [COLOURS[0], "white", COLOURS[1]])
_CHANCE = {"enrichment": 1.0, "auroc": 0.5}
_NAMES = {
    "enrichment": "share of attribution in the windows\nover their share of time",
    "auroc": "AUROC of 40 ms bins\nfor lying in a window",
    "pointing_game": "records whose highest bin\nlies in a window",
}


def draw_attribution(x: np.ndarray, fs: float, attribution: np.ndarray, title: str = "") -> Figure:
    """Draw one record on ECG paper with its attribution as coloured bands behind the traces, as `draw_ecg` lays it out.

    Each band is one lead over 40 ms, a small square wide: orange where it raises the log-odds, blue where it lowers
    them. The scale is symmetric and ends at the 99th percentile of absolute values.

    Parameters
    ----------
    x : (12, n_samples) array
        mV, leads in CURE's order, at least 10 s.
    fs : float
        Hz.
    attribution : (12, n_samples) array
        Log-odds.
    title : str
        What stands above.
    """
    bands = binned(attribution, fs)
    top = float(np.quantile(np.abs(bands), 0.99)) or 1.0
    norm = Normalize(-top, top)
    figure = Figure(figsize=(11.4, 6.6), layout="constrained")
    axes = figure.subplots()
    draw_on(axes, x, fs, title)
    for row, leads in enumerate(LAYOUT):
        for column, lead in enumerate(leads):
            _bands(axes, bands[LEADS.index(lead)], column * SECONDS, (column + 1) * SECONDS, -ROW_MV * row, norm)
    _bands(axes, bands[LEADS.index("II")], 0.0, 4 * SECONDS, STRIP_MV, norm)
    bar = figure.colorbar(ScalarMappable(norm, _SIGNED), ax=axes, shrink=0.7, pad=0.01, extend="both")
    bar.set_label("integrated gradients (log-odds per lead and 40 ms)")
    bar.outline.set_linewidth(0.4)
    return figure


def save_examples(examples: Iterable[Example], folder: Path, model: str, cohort: str) -> None:
    """Draw, save and show one record per task as figure `attribution_<task>`.

    Parameters
    ----------
    examples : iterable of Example
    folder : Path
        Of the stage's output.
    model, cohort : str
        What captions call them.
    """
    for one in examples:
        title = f"{TITLES.get(one.task, one.task)} ({one.task}), record {one.record_id}"
        text = (
            f"Integrated gradients of the log-odds of {one.task} for record {one.record_id} ({cohort}), {model} with a "
            f"logistic head: log-odds {one.log_odds:+.2f}, the highest among the test records of the first split that "
            "list it. Orange raises the log-odds, blue lowers them; per lead and 40 ms, scale to the 99th percentile. "
            "The trace is what the encoder was given: high-passed, in mV."
        )
        plots.save(draw_attribution(one.mv, one.fs, one.attribution, title), folder, f"attribution_{one.task}", text)


def save_pointing(table: pd.DataFrame, folder: Path, text: str) -> None:
    """Draw, save and show figure `pointing`, where there is a truth to score against."""
    if len(table):
        plots.save(pointing(table), folder, "pointing", text, table="pointing")


def pointing(table: pd.DataFrame, region: str = "time") -> Figure:
    """Scores of every attribution method against the planted windows, a panel per score, a marker per task.

    Parameters
    ----------
    table : DataFrame
        From `cure.explain.pointing_table`.
    region : {"time", "time and leads"}
    """
    figure = Figure(figsize=(10.2, 4.8), layout="constrained")
    rows = table[(table["region"] == region) & table["comparator"].isna()]
    methods, tasks = list(rows["method"].unique()), list(rows["task"].unique())
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        for i, task in enumerate(tasks):
            mine = rows[(rows["metric"] == metric) & (rows["task"] == task)]
            height = np.array([methods.index(m) for m in mine["method"]]) + (i - (len(tasks) - 1) / 2) * 0.22
            axes.hlines(height, mine["lo"], mine["hi"], color=COLOURS[i % len(COLOURS)], linewidth=1.4)
            mark = {"color": COLOURS[i % len(COLOURS)], "markersize": 4.5, "label": f"{task} (n = {mine['n'].max()})"}
            axes.plot(mine["value"], height, MARKERS[i % len(MARKERS)], **mark)
        if metric in _CHANCE:
            axes.axvline(_CHANCE[metric], color="#999999", linewidth=0.8, linestyle="--", zorder=0)
        axes.set_xlabel(_NAMES[metric])
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks), fontsize=8)
    return figure


def _bands(axes: Axes, lead: np.ndarray, start: float, stop: float, offset: float, norm: Normalize) -> None:
    """Colour the row of one lead below the grid; as pixels, for thousands of rectangles would swell an SVG."""
    edges = np.clip(np.arange(int(start / BIN_S), np.ceil(stop / BIN_S) + 1) * BIN_S, start, stop)
    first = int(start / BIN_S)
    axes.pcolormesh(
        edges,
        [offset - 1.25, offset + 1.25],
        lead[None, first : first + len(edges) - 1],
        norm=norm,
        cmap=_SIGNED,
        rasterized=True,
        zorder=-1,
    )

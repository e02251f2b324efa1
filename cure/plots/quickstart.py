"""Drawings of one record: its probabilities, and itself above the records that lie nearest."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from cure.plots import COLOURS
from cure.signals import LEADS

#: Leads and seconds that a strip shows, and millivolts from strip to strip.
STRIP_LEADS, STRIP_S, STEP_MV = ("II", "V1"), 5.0, 2.5
_SMALL, _LARGE = "#F8DEDC", "#F2B8B5"


class Named(Protocol):
    """What `strips` draws: (12, n_samples) mV at `fs` Hz with a name."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fs(self) -> float: ...  # noqa: D102
    def on_paper(self) -> np.ndarray: ...  # noqa: D102


def probabilities(table: pd.DataFrame) -> Figure:
    """Calibrated probability of every task with its interval, beside the training prevalence and the threshold.

    Parameters
    ----------
    table : DataFrame
        From `cure.quickstart.predictions`.
    """
    rows = table.iloc[::-1].reset_index(drop=True)
    at = np.arange(len(rows))
    figure = Figure(figsize=(8.2, 0.36 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    axes.hlines(at, rows["lo"], rows["hi"], color=COLOURS[0], linewidth=2.2)
    axes.plot(rows["prevalence"], at, "|", color="#777777", markersize=11, markeredgewidth=1.6)
    axes.plot(rows["threshold"], at, "|", color=COLOURS[1], markersize=11, markeredgewidth=1.6)
    bare = rows["lo"].isna()
    for chosen, face in ((~bare, COLOURS[0]), (bare, "white")):
        axes.plot(rows["value"][chosen], at[chosen], "o", color=COLOURS[0], markerfacecolor=face, markersize=6.5)
    titles = [f"{r.title} ({r.task})" + (" *" if r.listed is True else "") for r in rows.itertuples()]
    axes.set_yticks(at, titles)
    axes.set(xlim=(-0.02, 1.02), xlabel="probability", ylim=(-0.6, len(rows) - 0.4))
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(handles=_legend(bool(bare.any())), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _legend(some_bare: bool) -> list[Line2D]:
    dot: dict[str, Any] = {"color": COLOURS[0], "marker": "o", "markersize": 6.5}
    handles = [Line2D([], [], **dot, linewidth=2.2, label="calibrated probability, 95 % interval of the calibration")]
    if some_bare:
        handles.append(Line2D([], [], **dot, markerfacecolor="white", linewidth=0, label="not calibrated: no interval"))
    tick: dict[str, Any] = {"marker": "|", "markersize": 11, "markeredgewidth": 1.6, "linewidth": 0}
    handles.append(Line2D([], [], color="#777777", label="share of training records", **tick))
    handles.append(Line2D([], [], color=COLOURS[1], label="threshold (highest F1 in validation)", **tick))
    return handles


def strips(records: Sequence[Named]) -> Figure:
    """Leads II and V1 of several records, one below the other: 5 s each, 25 mm/s and 10 mm/mV; the first in black.

    Parameters
    ----------
    records : sequence of Named
        12 leads in CURE's order, mV.
    """
    width, height = 2 * STRIP_S, STEP_MV * len(records)
    figure = Figure(figsize=(10.6, 0.42 * height + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(1.5 - height, 2.2), aspect=0.4)
    for step, colour, line in ((1, _SMALL, 0.25), (5, _LARGE, 0.6)):
        _grid(axes, 0.04 * step, 0.1 * step, colour, line, minor=step == 1)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.spines[:].set_visible(False)
    for i, one in enumerate(records):
        mv, n = one.on_paper(), round(STRIP_S * one.fs)
        time = np.arange(n) / one.fs
        for column, lead in enumerate(STRIP_LEADS):
            trace = mv[LEADS.index(lead), :n]
            colour = "black" if i == 0 else COLOURS[0]
            axes.plot(column * STRIP_S + time, trace - np.median(trace) - STEP_MV * i, color=colour, linewidth=0.7)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            text = f"{lead}   {one.name}" if column == 0 else lead
            axes.text(column * STRIP_S + 0.05, 1.05 - STEP_MV * i, text, fontsize=8, weight="bold", bbox=box)
    axes.set_xlabel("25 mm/s, 10 mm/mV: a large square is 0.2 s by 0.5 mV")
    return figure


def _grid(axes: Axes, seconds: float, mv: float, colour: str, line: float, *, minor: bool) -> None:
    for axis, step in ((axes.xaxis, seconds), (axes.yaxis, mv)):
        (axis.set_minor_locator if minor else axis.set_major_locator)(MultipleLocator(step))
        axis.grid(which="minor" if minor else "major", color=colour, linewidth=line)
    axes.set_axisbelow(True)

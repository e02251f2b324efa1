"""ECGs on paper."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cure.signals import LEADS

_LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
#: The clinical layout: four columns of 2.5 s, and lead II in full below.
LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
#: Seconds per column, millivolts from row to row, and the height of the rhythm strip's baseline.
SECONDS, ROW_MV, STRIP_MV = 2.5, 3.5, -11.0


def draw_ecg(x: np.ndarray, fs: float, title: str = "") -> Figure:
    """Draw one record on ECG paper: 25 mm/s and 10 mm/mV, 3 x 4 leads and a rhythm strip of lead II.

    Parameters
    ----------
    x : (12, n_samples) array
        mV, leads in CURE's order, at least 10 s.
    fs : float
        Hz.
    title : str
        What stands above.
    """
    figure = Figure(figsize=(10.6, 6.6), layout="constrained")
    draw_on(figure.subplots(), x, fs, title)
    return figure


def draw_on(axes: Axes, x: np.ndarray, fs: float, title: str) -> None:
    """Draw a record as `draw_ecg` does, onto axes."""
    _paper(axes, seconds=10, top=2.0, bottom=-13.0)
    quarter = int(SECONDS * fs)
    for row, leads in enumerate(LAYOUT):
        for column, lead in enumerate(leads):
            piece = slice(column * quarter, (column + 1) * quarter)
            _trace(axes, x[LEADS.index(lead)], fs, piece, -ROW_MV * row, lead)
    _trace(axes, x[LEADS.index("II")], fs, slice(0, int(10 * fs)), STRIP_MV, "II")
    axes.set_title(title)
    axes.set_xlabel("25 mm/s, 10 mm/mV: a large square is 0.2 s by 0.5 mV")


def _paper(axes: Axes, seconds: float, top: float, bottom: float) -> None:
    for step_x, step_y, width in ((0.04, 0.1, 0.25), (0.2, 0.5, 0.6)):
        axes.vlines(np.arange(0, seconds + 1e-9, step_x), bottom, top, color="#F2B8B5", linewidth=width, zorder=0)
        axes.hlines(np.arange(bottom, top + 1e-9, step_y), 0, seconds, color="#F2B8B5", linewidth=width, zorder=0)
    axes.set(xlim=(0, seconds), ylim=(bottom, top), xticks=[], yticks=[], aspect=0.4)
    axes.spines[:].set_visible(False)


def _trace(axes: Axes, lead: np.ndarray, fs: float, piece: slice, offset: float, name: str) -> None:
    time = np.arange(piece.start, piece.stop) / fs
    axes.plot(time, lead[piece] - np.median(lead) + offset, color="black", linewidth=0.7)
    axes.text(time[0] + 0.05, offset + 0.85, name, fontsize=9, weight="bold", bbox=_LABEL)

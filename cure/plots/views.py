"""What self-supervision sees."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cure.augment import View
from cure.plots import COLOURS
from cure.signals import LEADS


def views(x: np.ndarray, pair: Sequence[View], fs: int, unit_mv: float, record: int = 0) -> Figure:
    """A record and two random views of it, lead by lead; a lead that a view leaves out is missing there.

    Parameters
    ----------
    x : (n, 12, n_samples) array
        Model-ready input.
    pair : sequence of View
        Of the same records.
    fs : int
        Hz.
    unit_mv : float
        Millivolts that are 1.0 in `x`.
    record : int
        Which of the n is drawn.
    """
    panels: list[tuple[str, np.ndarray, Sequence[int]]] = [("record", x[record], range(len(LEADS)))]
    panels += [(f"view {i}: {len(v.leads)} leads", v.x[record].numpy(), v.leads) for i, v in enumerate(pair, 1)]
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, width_ratios=[p[1].shape[1] for p in panels])
    for axis, (title, signals, leads) in zip(axes, panels, strict=True):
        for lead, trace in zip(leads, signals, strict=True):
            colour = COLOURS[0] if title == "record" else "black"
            axis.plot(np.arange(len(trace)) / fs, trace * unit_mv - 1.5 * lead, color=colour, linewidth=0.5)
        axis.set(title=title, xlabel="s", xlim=(0, signals.shape[1] / fs))
        axis.set_yticks([-1.5 * i for i in range(len(LEADS))], LEADS)
        axis.tick_params(axis="y", length=0)
    return figure

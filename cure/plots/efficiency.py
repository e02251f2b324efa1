"""Label efficiency: scores against the share of labels."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS, MARKERS


def label_efficiency(table: pd.DataFrame, sizes: pd.DataFrame, panels: dict[str, str], unit: str) -> Figure:
    """Score against the share of labels, one line per method, one panel per average over tasks.

    Parameters
    ----------
    table : DataFrame
        `task, label, strategy, fraction, value, lo, hi`: one metric. Trained networks are drawn dashed.
    sizes : DataFrame
        `fraction, metric, value`: the median number of training records is written below each share.
    panels : dict
        Task -> title of its panel.
    unit : str
        Name of the metric.
    """
    figure = Figure(figsize=(4.1 * len(panels) + 0.6, 4.6), layout="constrained")
    every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    fractions = np.sort(table["fraction"].unique())
    records = sizes[sizes["metric"] == "records"].set_index("fraction")["value"]
    names = list(table["label"].unique())
    for axes, (task, title) in zip(every, panels.items(), strict=True):
        rows = table[table["task"] == task]
        for i, name in enumerate(names):
            one = rows[rows["label"] == name].sort_values("fraction")
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            # Side by side, so that intervals can be told apart.
            x = np.searchsorted(fractions, one["fraction"]) + (i - (len(names) - 1) / 2) * 0.07
            style = "-" if (one["strategy"] == "frozen").all() else "--"
            axes.vlines(x, one["lo"], one["hi"], color=colour, linewidth=1.1, alpha=0.7)
            axes.plot(x, one["value"], style, marker=marker, color=colour, markersize=5, linewidth=1.3, label=name)
        shares = [f"{fraction:.0%}\nn = {_nearest(records, fraction):.0f}" for fraction in fractions]
        axes.set_xticks(range(len(fractions)), shares)
        axes.set_xlabel("share of labelled patients, training records")
        axes.set_title(title)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    every[0].set_ylabel(unit)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _nearest(records: pd.Series, fraction: float) -> float:
    """Fractions are stored as float32 in predictions."""
    return float(records.iloc[np.abs(records.index.to_numpy() - fraction).argmin()])

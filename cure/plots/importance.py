"""On how few dimensions of an embedding the importance, and the score, rests."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from cure.plots import COLOURS, MARKERS
from cure.topk import SELECTIONS, curve_points


def concentration_curve(shap: pd.DataFrame) -> Figure:
    """Share of the total mean |SHAP| that the most important dimensions hold, one panel per task, one line per head.

    Parameters
    ----------
    shap : DataFrame
        `head, task, split, dimension, value`. Lines are means over splits, bands their lowest and highest.
    """
    tasks, heads = list(shap["task"].unique()), list(shap["head"].unique())
    dim = shap["dimension"].nunique()
    count = np.arange(1, dim + 1)
    figure, panels = _panels(len(tasks))
    for task, axes in zip(tasks, panels, strict=True):
        axes.plot(count, count / dim, color="#999999", linewidth=1, linestyle=":", label="all alike")
        for i, head in enumerate(heads):
            rows = shap[(shap["task"] == task) & (shap["head"] == head)]
            values = np.stack([part["value"].to_numpy() for _, part in rows.groupby("split", observed=True)])
            shares = np.sort(values)[:, ::-1].cumsum(axis=1) / values.sum(axis=1, keepdims=True)
            axes.fill_between(count, shares.min(axis=0), shares.max(axis=0), color=COLOURS[i], alpha=0.2, linewidth=0)
            axes.plot(count, shares.mean(axis=0), color=COLOURS[i], linewidth=1.6, label=head)
        _log2(axes, dim)
        axes.set(ylim=(0, 1.02), title=task, xlabel=f"most important of {dim} dimensions")
    panels[0].set_ylabel("share of total mean |SHAP|")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def topk_curve(table: pd.DataFrame) -> Figure:
    """AUROC of a head that is given k dimensions only, one panel per task.

    Parameters
    ----------
    table : DataFrame
        `task, selection, k, draw, value, lo, hi, n_pos, supported` of one head; see `cure.topk.topk_table`. Bands
        are the 95 % interval of `shap` and the span over draws of `random`; that of `pca` stays in the table. A task
        below the support rule is grey, without bands.
    """
    points = curve_points(table)
    tasks, names = list(points["task"].unique()), [name for name in SELECTIONS if (table["selection"] == name).any()]
    figure, panels = _panels(len(tasks))
    for task, axes in zip(tasks, panels, strict=True):
        rows, mean = table[table["task"] == task], points[points["task"] == task]
        full = rows[rows["selection"] == "all"].iloc[0]
        supported = bool(full["supported"])
        axes.axhline(full["value"], color="#000000", linewidth=1, linestyle="--", label=f"all {full['k']} dimensions")
        for i, name in enumerate(names):
            line = mean[mean["selection"] == name].sort_values("k")
            colour = COLOURS[i] if supported else "#999999"
            axes.plot(line["k"], line["mean"], MARKERS[i] + "-", color=colour, markersize=4, label=SELECTIONS[name])
            if supported and name != "pca":
                one = rows[rows["selection"] == name].sort_values("k")
                low, high = (line["min"], line["max"]) if name == "random" else (one["lo"], one["hi"])
                axes.fill_between(line["k"], low, high, color=colour, alpha=0.18, linewidth=0)
        _log2(axes, int(full["k"]))
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        axes.set(title=f"{task}  (n+ = {full['n_pos']:.0f})", xlabel="dimensions given to the head")
    panels[0].set_ylabel("AUROC")
    coloured = panels[max(range(len(tasks)), key=lambda i: table.loc[table["task"] == tasks[i], "supported"].any())]
    figure.legend(*coloured.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.7 * max(n, 2) + 0.6, 3.5), layout="constrained")
    return figure, list(figure.subplots(1, n, sharey=True, squeeze=False)[0])


def _log2(axes: Axes, dim: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.85, 1.2 * dim)
    axes.xaxis.set_major_locator(FixedLocator([4**i for i in range(12) if 4**i <= dim]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda k, _: f"{k:.0f}")

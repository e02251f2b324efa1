"""What post-training gains, and what each of its parts does."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS, MARKERS


def gains(table: pd.DataFrame, metrics: dict[str, str]) -> Figure:
    """Relative gain over plain fine-tuning with its 95 % interval; a panel per metric, a colour per share of labels.

    Parameters
    ----------
    table : DataFrame
        `label, task, n_tasks, fraction, metric, relative, relative_lo, relative_hi`.
    metrics : dict
        Metric -> title of its panel.
    """
    kinds = table[["label", "task", "n_tasks"]].drop_duplicates().to_records(index=False)
    fractions = np.sort(table["fraction"].unique())
    figure = Figure(figsize=(3.6 + 2.4 * len(metrics), 0.34 * len(kinds) + 1.5), layout="constrained")
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (metric, title) in zip(grid, metrics.items(), strict=True):
        axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
        rows = table[table["metric"] == metric].set_index(["label", "task", "fraction"])
        for i, fraction in enumerate(fractions):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            shift = (i - (len(fractions) - 1) / 2) * 0.22
            name: str | None = f"{fraction:.0%} of the labels"
            for y, (label, task, _) in enumerate(kinds):
                if (label, task, fraction) not in rows.index:
                    continue
                one = 100 * rows.loc[(label, task, fraction), ["relative", "relative_lo", "relative_hi"]].astype(float)
                axes.hlines(y + shift, one["relative_lo"], one["relative_hi"], color=colour, linewidth=1.3)
                axes.plot(one["relative"], y + shift, marker, color=colour, markersize=5, label=name)
                name = None
        axes.set_title(title)
        axes.set_xlabel("gain over plain fine-tuning (%)")
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    grid[0].set_yticks(range(len(kinds)), [f"{label}: {task} ({n})" for label, task, n in kinds], fontsize=8.5)
    grid[0].invert_yaxis()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(fractions), fontsize=8)
    return figure


def ablation(table: pd.DataFrame, metrics: dict[str, str]) -> Figure:
    """Score against the rate of stochastic depth, with and without preview; a panel per metric and encoder.

    Parameters
    ----------
    table : DataFrame
        `encoder, preview, drop_path, metric, score, value, lo, hi`: intervals are of the difference to plain
        fine-tuning, the first point, and are drawn around each score.
    metrics : dict
        Metric -> axis label.
    """
    if table.empty:
        figure = Figure(figsize=(4, 0.8))
        figure.text(0.5, 0.5, "no rates of stochastic depth are compared in this profile", ha="center", va="center")
        return figure
    encoders = list(table["encoder"].unique())
    figure = Figure(figsize=(3.2 * len(metrics) + 0.6, 2.8 * len(encoders) + 0.5), layout="constrained")
    grid = figure.subplots(len(encoders), len(metrics), squeeze=False)
    for line, encoder in zip(grid, encoders, strict=True):
        for axes, (metric, title) in zip(line, metrics.items(), strict=True):
            chosen = table[(table["encoder"] == encoder) & (table["metric"] == metric)]
            for i, preview in enumerate((False, True)):
                rows = chosen[chosen["preview"] == preview].sort_values("drop_path")
                x, base = rows["drop_path"] + (0.006 if preview else -0.006), rows["reference"]
                axes.vlines(x, base + rows["lo"], base + rows["hi"], color=COLOURS[i], linewidth=1.1, alpha=0.7)
                label = "head first" if preview else "all at once"
                axes.plot(x, rows["score"], "-", marker=MARKERS[i], color=COLOURS[i], markersize=5, label=label)
            axes.set_title(encoder)
            axes.set_xlabel("rate of stochastic depth")
            axes.set_ylabel(title)
            axes.set_xticks(sorted(chosen["drop_path"].unique()))
            axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
            axes.set_axisbelow(True)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure

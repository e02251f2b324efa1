"""What a representation holds: probes per target, layers, and a picture that was chosen by its labels."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from cure.plots import COLOURS, MARKERS

_BAND = "#DDDDDD"


def by_target(table: pd.DataFrame, null: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Probes, a panel per target, a row per representation, with 95 % intervals; grey: permuted labels.

    Parameters
    ----------
    table : DataFrame
        `label, task, metric, value, lo, hi, supported`; one row per representation and target.
    null : DataFrame
        `label, task, lo, hi` under permuted labels.
    titles : mapping of str to str
        Targets to show, and what their axes say.
    """
    names = list(table["label"].unique())
    figure = Figure(figsize=(10.5, 0.3 * len(names) + 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(titles), sharey=True))
    for axes, (task, title) in zip(panels, titles.items(), strict=True):
        rows, bands = (frame[frame["task"] == task].set_index("label") for frame in (table, null))
        for i, name in enumerate(names):
            if name not in rows.index:
                axes.text(
                    0.5, i, "holds it", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=7
                )
                continue
            row, band = rows.loc[name], bands.loc[name]
            axes.fill_betweenx([i - 0.35, i + 0.35], band["lo"], band["hi"], color=_BAND, linewidth=0, zorder=0)
            colour = COLOURS[i % len(COLOURS)] if row["supported"] else "#999999"
            if row["supported"]:
                axes.hlines(i, row["lo"], row["hi"], color=colour, linewidth=1.4)
            style = "full" if row["supported"] else "none"
            axes.plot(row["value"], i, MARKERS[i % len(MARKERS)], color=colour, markersize=5, fillstyle=style)
        _widen(axes)
        axes.set_title(title, fontsize=8.5)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _widen(axes: Axes, least: float = 0.2) -> None:
    """Let an axis span at least so much: noise around 0 must not look like a spread."""
    lo, hi = axes.get_xlim()
    more = max(least - (hi - lo), 0) / 2
    axes.set_xlim(lo - more, hi + more)
    axes.locator_params(axis="x", nbins=4)


def layers(cka: pd.DataFrame, depth: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """CKA of every pair of layers, and what each layer holds with depth.

    Parameters
    ----------
    cka : DataFrame
        `weights_a, layer_a, weights_b, layer_b, value`.
    depth : DataFrame
        `weights, layer, depth, task, value, lo, hi, null_lo, null_hi`; a layer that no weights share with others (the
        hand-crafted features) becomes a horizontal line.
    titles : mapping of str to str
        Targets to show, a panel each, and what their axes say.
    """
    order = list(dict.fromkeys(zip(cka["weights_a"], cka["layer_a"], strict=True)))
    wide = cka.pivot(index=["weights_a", "layer_a"], columns=["weights_b", "layer_b"], values="value")
    square = wide.loc[order, order].to_numpy()
    figure = Figure(figsize=(11, 4.6 if len(titles) <= 4 else 5.2), layout="constrained")
    left, right = np.ravel(figure.subfigures(1, 2, width_ratios=(1, 1.15)))  # type: ignore[arg-type]
    axes = left.subplots()
    image = axes.imshow(square, cmap="cividis", vmin=0, vmax=1)
    left.colorbar(image, ax=axes, label="debiased linear CKA", shrink=0.75)
    size = 7.5 if len(order) <= 12 else 6
    for i, row in enumerate(square):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", size=size, color="k" if value > 0.55 else "w")
    text = [f"{weights}: {layer}" for weights, layer in order]
    axes.set_xticks(range(len(order)), text, rotation=90, fontsize=8)
    axes.set_yticks(range(len(order)), text, fontsize=8)
    middle = len(order) / 2 - 0.5
    axes.axhline(middle, color="w", linewidth=2)
    axes.axvline(middle, color="w", linewidth=2)
    axes.spines[:].set_visible(False)
    _depth(right, depth, titles)
    return figure


def _depth(figure: SubFigure, depth: pd.DataFrame, titles: Mapping[str, str]) -> None:
    columns = 2
    rows = -(-len(titles) // columns)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    trained = [name for name in depth["weights"].unique() if name != "none"]
    inside = depth[depth["weights"] != "none"]
    names = list(inside.sort_values("depth")["layer"].unique())
    for axes, (task, title) in zip(panels, titles.items(), strict=False):
        # A target that the cohort does not know leaves its panel empty.
        shown = inside[inside["task"] == task]
        band = shown.groupby("depth").agg(lo=("null_lo", "min"), hi=("null_hi", "max"))
        axes.fill_between(band.index, band["lo"], band["hi"], color=_BAND, linewidth=0, zorder=0)
        for i, weights in enumerate(trained):
            mine = shown[shown["weights"] == weights].sort_values("depth")
            x = mine["depth"] + 0.08 * (i - 0.5)
            error = np.abs(mine[["lo", "hi"]].to_numpy().T - mine["value"].to_numpy())
            style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "linewidth": 1.2}
            axes.errorbar(x, mine["value"], error, label=weights, elinewidth=0.9, **style)
        reference = depth[(depth["weights"] == "none") & (depth["task"] == task)]
        for value in reference["value"]:
            axes.axhline(value, color="k", linestyle=":", linewidth=1, label="hand-crafted features")
        axes.set_title(title, fontsize=8.5)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    for axes in panels[max(len(titles) - columns, 0) : len(titles)]:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7.5)
        axes.tick_params(labelbottom=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def selection(points: pd.DataFrame, table: pd.DataFrame, class_names: tuple[str, str]) -> Figure:
    """The chosen pictures of true and shuffled labels, and the silhouette after each step of the choice.

    Parameters
    ----------
    points : DataFrame
        `labels, axis_1, axis_2, y, n_neighbors, min_dist`.
    table : DataFrame
        `labels, records, step, value, lo, hi`.
    class_names : tuple of str
        What y = 0 and y = 1 are called.
    """
    kinds = list(points["labels"].unique())
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    panels = figure.subplots(1, len(kinds) + 1, width_ratios=[1] * len(kinds) + [1.5])
    for axes, kind in zip(panels, kinds, strict=False):
        mine = points[points["labels"] == kind]
        for value, name in enumerate(class_names):
            part = mine[mine["y"] == value]
            style = {"s": 11, "color": COLOURS[value], "marker": MARKERS[value], "linewidths": 0, "alpha": 0.8}
            axes.scatter(part["axis_1"], part["axis_2"], label=f"{name}, n = {len(part):,}", **style)
        first = mine.iloc[0]
        axes.set_title(f"{kind} labels", fontsize=9)
        axes.set_xlabel(f"{first['n_neighbors']} neighbours, minimal distance {first['min_dist']:g}", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(1)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#BBBBBB")
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)
    _steps(panels[-1], table)
    return figure


def _steps(axes: Axes, table: pd.DataFrame) -> None:
    keys = list(dict.fromkeys(zip(table["records"], table["step"], strict=True)))
    for y, (records, step) in enumerate(keys):
        rows = table[(table["records"] == records) & (table["step"] == step)]
        shuffled, true = rows[rows["labels"] == "shuffled"], rows[rows["labels"] == "true"].iloc[0]
        style: dict = {"linestyle": "none", "fillstyle": "none", "color": "#777777", "markersize": 5}
        axes.plot(shuffled["value"], [y + 0.15] * len(shuffled), "o", label="" if y else "shuffled labels", **style)
        axes.hlines(y - 0.15, true["lo"], true["hi"], color=COLOURS[1], linewidth=1.4)
        axes.plot(true["value"], y - 0.15, "s", color=COLOURS[1], markersize=5, label="" if y else "true labels")
    axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(keys)), [f"{step}\n({records})" for records, step in keys], fontsize=8)
    axes.set_ylim(len(keys) - 0.5, -0.5)
    axes.set_xlabel("mean silhouette of the labels")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2, fontsize=8)

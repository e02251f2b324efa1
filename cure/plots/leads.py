"""Scores and costs against the leads that there are, and one record seen with some of its leads."""

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cure.lead_training import ALONE
from cure.leads import title
from cure.plots import COLOURS, MARKERS

#: Blue lowers and orange raises the log-odds; white does neither.
_SIGNED = LinearSegmentedColormap.from_list("signed", [COLOURS[0], "white", COLOURS[1]])


def degradation(table: pd.DataFrame, panels: dict[str, str], unit: str) -> Figure:
    """Score against the lead configuration, a line per method, a panel per average over tasks.

    Parameters
    ----------
    table : DataFrame
        `task, label, pooling, leads, value, lo, hi`, configurations in the order of the axis. Methods that fill
        missing leads with zeros are dashed, controls dotted.
    panels : dict
        Task -> title of its panel.
    unit : str
        Axis label.
    """
    names, configurations = list(table["label"].unique()), list(table["leads"].astype(str).unique())
    width = max((1.05 * len(configurations) + 0.8) * len(panels), 7.2)
    figure = Figure(figsize=(width, 5.0), layout="constrained")
    every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (task, text) in zip(every, panels.items(), strict=True):
        rows = table[table["task"] == task]
        for i, name in enumerate(names):
            one = rows[rows["label"] == name]
            # Side by side, so that intervals can be told apart.
            places = [configurations.index(str(leads)) for leads in one["leads"]]
            x = np.array(places) + (i - (len(names) - 1) / 2) * 0.08
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            style = {"fixed": "--", "none": ":"}.get(str(one["pooling"].iloc[0]), ":" if "untrained" in name else "-")
            axes.vlines(x, one["lo"], one["hi"], color=colour, linewidth=1.0, alpha=0.6)
            axes.plot(x, one["value"], style, marker=marker, color=colour, markersize=4.5, linewidth=1.2, label=name)
        axes.set_xticks(range(len(configurations)), [_tick(name) for name in configurations], fontsize=7.5)
        axes.set_title(text)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    every[0].set_ylabel(unit)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _tick(name: str) -> str:
    """A configuration in a few short lines, so that neighbours do not run into each other."""
    leads, count = title(name).split("\n")
    return "\n".join([*_broken(leads), count])


def _broken(leads: str) -> list[str]:
    """Names joined by + in lines of at most three."""
    names = leads.split("+")
    return ["+".join(names[i : i + 3]) for i in range(0, len(names), 3)]


def cost(table: pd.DataFrame) -> Figure:
    """Arithmetic and activations against the number of leads: as they are selected, and with zeros in their place.

    Parameters
    ----------
    table : DataFrame
        From `cure.lead_cost.counted`.
    """
    titles = {"mflop": "MFLOP, forward pass", "activation_kb": "kB kept for the backward pass"}
    figure = Figure(figsize=(8.6, 3.7), layout="constrained")
    every = figure.subplots(1, 2)
    for axes, (metric, text) in zip(every, titles.items(), strict=True):
        rows = table[table["metric"] == metric]
        lines = rows.groupby(["encoder", "way"], sort=False)
        for i, ((encoder, way), one) in enumerate(lines):
            one = one.sort_values("n_leads")
            axes.plot(one["n_leads"], one["value"], marker=MARKERS[i], color=COLOURS[i], label=f"{encoder}, {way}")
        axes.set(xlabel="leads", xticks=sorted(rows["n_leads"].unique()))
        axes.set_title(f"{text}, per 5 s", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.grid(color="#E5E5E5", linewidth=0.6)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def losses(curves: pd.DataFrame) -> Figure:
    """Training loss by epoch, a line per pre-training; those of one configuration alone are thin.

    Parameters
    ----------
    curves : DataFrame
        From `cure.lead_training.pretrain_all`.
    """
    rows = curves[curves["metric"] == "loss"]
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, ((weights, leads), one) in enumerate(rows.groupby(["weights", "leads"], sort=False)):
        alone = weights == ALONE
        text = f"{weights}: {leads}" if alone else str(weights)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(
            one["epoch"],
            one["value"],
            color=colour,
            marker=marker,
            markersize=3 if alone else 4.5,
            linewidth=0.8 if alone else 1.6,
            label=text,
        )
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#E5E5E5", linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def one_record(mv: np.ndarray, attribution: np.ndarray, names: list[str], fs: float, text: str) -> Figure:
    """Some leads of a record, one below the other, with attribution as coloured bands behind them.

    Parameters
    ----------
    mv : (n_leads, n_samples) array
    attribution : (n_leads, n_bins) array
        Log-odds per lead and bin; bins have one width. Orange raises the log-odds, blue lowers them.
    names : list of str
    fs : float
    text : str
        What stands above.
    """
    seconds = mv.shape[1] / fs
    top = float(np.quantile(np.abs(attribution), 0.99)) or 1.0
    norm = Normalize(-top, top)
    figure = Figure(figsize=(10.4, 0.85 * len(names) + 1.3), layout="constrained")
    rows = np.atleast_1d(figure.subplots(len(names), 1, sharex=True, sharey=True))
    edges = np.linspace(0, seconds, attribution.shape[1] + 1)
    low, high = float(np.quantile(mv, 0.0005)) - 0.2, float(np.quantile(mv, 0.9995)) + 0.2
    for axes, wave, bands, name in zip(rows, mv, attribution, names, strict=True):
        axes.pcolormesh(edges, [low, high], bands[None], norm=norm, cmap=_SIGNED, rasterized=True)
        axes.plot(np.arange(len(wave)) / fs, wave, color="black", linewidth=0.7)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", weight="bold")
        axes.set(ylim=(low, high), xlim=(0, seconds), yticks=[])
    rows[-1].set_xlabel(f"seconds; each trace from {low:.1f} to {high:.1f} mV")
    rows[0].set_title(text)
    bar = figure.colorbar(ScalarMappable(norm, _SIGNED), ax=list(rows), pad=0.01, extend="both")
    bar.set_label("log-odds per bin")
    bar.outline.set_linewidth(0.4)
    return figure

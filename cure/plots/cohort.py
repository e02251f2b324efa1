"""Who is in a cohort, and what was measured in its records."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS


def prevalence(table: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Positives of each binary task in the whole cohort, with the count beside the bar."""
    rows = table[(table["part"] == "all") & (table["variable"] == "prevalence")].iloc[::-1]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.barh([f"{titles[task]} ({task})" for task in rows["task"]], 100 * rows["value"], color=COLOURS[0])
    for y, (value, count) in enumerate(zip(rows["value"], rows["n_pos"], strict=True)):
        axes.text(100 * value + 0.6, y, f"{count:,}", va="center", fontsize=8)
    axes.set_xlabel(f"share of {rows['n'].iloc[0]:,} records (%), and number")
    axes.margins(x=0.08)
    return figure


def distributions(table: pd.DataFrame, pairs: list[tuple[str, str, str]]) -> Figure:
    """Measured quantities in the records with and without a label; pairs whose label the cohort lacks are left out.

    Parameters
    ----------
    table : DataFrame
        One row per record, a column per quantity and a boolean one per label.
    pairs : list of (quantity, label, axis text)
    """
    import seaborn as sns

    pairs = [pair for pair in pairs if pair[1] in table]
    if not pairs:
        figure = Figure(figsize=(5, 1))
        figure.text(0.5, 0.5, "no label of this cohort has a textbook measurement", ha="center", va="center")
        return figure
    columns = 3
    figure = Figure(figsize=(8.5, 2.8 * -(-len(pairs) // columns)), layout="constrained")
    for i, (quantity, label, text) in enumerate(pairs):
        axes = figure.add_subplot(-(-len(pairs) // columns), columns, i + 1)
        low, high = np.percentile(table[quantity].dropna(), [0.5, 99.5])
        chosen = table[label].to_numpy()
        for name, rows, colour, filled in (("rest", ~chosen, COLOURS[6], True), (label, chosen, COLOURS[1], False)):
            measured = table.loc[rows, quantity].dropna().clip(low, high)
            name = f"{name}, n = {len(measured):,}"
            sns.kdeplot(x=measured, ax=axes, color=colour, fill=filled, clip=(low, high), label=name, linewidth=1.6)
        axes.set(xlabel=text, ylabel="", yticks=[])
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.2)
    figure.axes[0].set_ylabel("density")
    return figure

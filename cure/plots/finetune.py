"""What each way of training scores."""

import pandas as pd
from matplotlib.figure import Figure

from cure.plots import COLOURS


def strategies(table: pd.DataFrame, panels: list[str], reference: str, unit: str) -> Figure:
    """One score per strategy with its 95 % interval, a panel per average, a line through the one that is compared with.

    Parameters
    ----------
    table : DataFrame
        `label, strategy, task, value, lo, hi, n_tasks`; a row per strategy and task.
    panels : list of str
        Tasks that are shown, side by side.
    reference : str
        Strategy that the line goes through.
    unit : str
        Axis label.
    """
    names = list(table["label"].unique())
    height = 0.3 * len(names) + 1.3
    figure = Figure(figsize=(3.4 + 2.5 * len(panels), height), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, task in zip(grid, panels, strict=True):
        rows = table[table["task"] == task].set_index("label").loc[names]
        main = rows["strategy"].astype(str).to_numpy() == reference
        axes.axvline(float(rows["value"][main].iloc[0]), color="#999999", linewidth=0.8, zorder=0)
        for y, (row, is_main) in enumerate(zip(rows.itertuples(), main, strict=True)):
            colour = COLOURS[0] if is_main else COLOURS[1]
            axes.hlines(y, row.lo, row.hi, color=colour, linewidth=1.4)
            axes.plot(row.value, y, "s" if is_main else "o", color=colour, markersize=5)
        axes.set_title(f"{task} ({rows['n_tasks'].iloc[0]:.0f} tasks)", fontsize=9)
        axes.set_xlabel(unit)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
    grid[0].set_yticks(range(len(names)), names, fontsize=8.5)
    grid[0].invert_yaxis()
    return figure

"""How training went, and what it cost."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cure.plots import COLOURS, MARKERS

#: How each loss of a history is drawn; others get the next style.
_STYLES = ("-", "--", ":", "-.")


def loss_curves(history: pd.DataFrame, panel: str, line: list[str], unit: str, columns: int = 3) -> Figure:
    """Losses by epoch, a small panel per method and a line per training; the lowest of the last metric is marked.

    Parameters
    ----------
    history : DataFrame
        Tidy: `epoch, metric, value`, and the columns named by `panel` and `line`. Metrics are told apart by line style
        and colour, in order of appearance; a mark stands where each line of the last one is lowest.
    panel : str
        Column whose values are panels.
    line : list of str
        Columns that tell the trainings of a panel apart, as `["split", "seed"]`.
    unit : str
        Axis label of the losses, with its unit.
    columns : int
        Panels in a row.
    """
    names, metrics = list(history[panel].unique()), list(history["metric"].unique())
    n_rows, n_columns = -(-len(names) // columns), min(columns, len(names))
    figure = Figure(figsize=(2.9 * n_columns + 0.6, 2.5 * n_rows + 0.6), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        chosen = history[history[panel] == name]
        for i, metric in enumerate(metrics):
            colour, style = COLOURS[i % len(COLOURS)], _STYLES[i % len(_STYLES)]
            for k, (_, run) in enumerate(chosen[chosen["metric"] == metric].groupby(line, sort=False, observed=True)):
                label = metric if k == 0 else None
                axes.plot(run["epoch"], run["value"], style, color=colour, linewidth=1.1, alpha=0.75, label=label)
                if i == len(metrics) - 1:
                    lowest = run.loc[run["value"].idxmin()]
                    axes.plot(lowest["epoch"], lowest["value"], "o", color=colour, markersize=4)
        axes.set_title(f"{name}\n(n = {len(chosen[line].drop_duplicates())})", fontsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(color="#E5E5E5", linewidth=0.6)
        axes.set_xlabel("epoch")
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(unit)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(metrics), fontsize=8)
    return figure


def lead_cost(table: pd.DataFrame) -> Figure:
    """Arithmetic of one forward pass against the number of leads, a line per encoder; one that takes all is a point."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, rows) in enumerate(table.groupby("encoder", sort=False)):
        text = f"{name} ({rows['parameters'].iloc[0] / 1e6:.2f} M parameters)"
        axes.plot(rows["n_leads"], rows["gflops"], marker=MARKERS[i], color=COLOURS[i], label=text)
    axes.set(xlabel="leads", ylabel="GFLOP per 10 s record", xticks=sorted(table["n_leads"].unique()))
    axes.set_ylim(bottom=0)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.legend(fontsize=8)
    return figure


def families(validation: pd.DataFrame, test: pd.DataFrame, unit: str) -> Figure:
    """One score per objective: open on the validation records, that it is chosen by, filled with interval on the test.

    Parameters
    ----------
    validation, test : DataFrame
        `label, value, lo, hi, chosen`, in the same order; the first row is the untrained encoder, drawn as a line too.
    unit : str
        Axis label.
    """
    figure = Figure(figsize=(6.4, 0.38 * len(test) + 1.5), layout="constrained")
    axes = figure.subplots()
    y = range(len(test))
    axes.axvline(test["value"].iloc[0], color="#999999", linewidth=0.8, zorder=0)
    axes.hlines(y, test["lo"], test["hi"], color=COLOURS[0], linewidth=1.4)
    axes.plot(test["value"], y, "o", color=COLOURS[0], markersize=5, label="test")
    axes.plot(validation["value"], y, "D", color=COLOURS[1], markersize=4.5, fillstyle="none", label="validation")
    names = [f"{row.label}  (chosen)" if row.chosen else row.label for row in test.itertuples()]
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(unit)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure

"""One figure style. Figures are drawn from tables and signals, never from models.

Every figure is a PNG and an SVG with a caption; colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cure.paths import atomic
from cure.signals import LEADS

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]

mpl.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "savefig.dpi": 160,
        "svg.hashsalt": "cure",
        "svg.fonttype": "none",
    }
)

#: The clinical layout: four columns of 2.5 s, and lead II in full below.
_LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
_LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))


def save(figure: Figure, folder: Path, name: str, text: str, table: str | None = None) -> None:
    """Write `<folder>/figures/<name>.{png,svg,json}` and, in a notebook, show the picture with its caption.

    The JSON file holds the caption and the name of the table that the figure was drawn from.
    """
    target = folder / "figures"
    undated = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, metadata in undated.items():
        with atomic(target / f"{name}.{kind}") as part:
            figure.savefig(part, format=kind, metadata=metadata)
    with atomic(target / f"{name}.json") as part:
        part.write_text(json.dumps({"caption": text, "table": table}, indent=1, ensure_ascii=False) + "\n")
    show(target / f"{name}.png")


def show(png: Path) -> None:
    """Show a saved figure and its caption in a notebook."""
    from IPython.display import Image, Markdown, display

    text = caption(png)["caption"]
    display(Image(filename=str(png), alt=text))
    display(Markdown(f"*{text}*"))


def caption(png: Path) -> dict:
    """Caption of a saved figure and the name of its table: `{"caption": ..., "table": ...}`."""
    return json.loads(png.with_suffix(".json").read_text())


def ecg(x: np.ndarray, fs: float, title: str = "") -> Figure:
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
    axes = figure.subplots()
    _paper(axes, seconds=10, top=2.0, bottom=-13.0)
    quarter = int(2.5 * fs)
    for row, leads in enumerate(_LAYOUT):
        for column, lead in enumerate(leads):
            piece = slice(column * quarter, (column + 1) * quarter)
            _trace(axes, x[LEADS.index(lead)], fs, piece, -3.5 * row, lead)
    _trace(axes, x[LEADS.index("II")], fs, slice(0, int(10 * fs)), -11.0, "II")
    axes.set_title(title)
    axes.set_xlabel("25 mm/s, 10 mm/mV: a large square is 0.2 s by 0.5 mV")
    return figure


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
    """Measured quantities in the records with and without a label.

    Parameters
    ----------
    table : DataFrame
        One row per record, a column per quantity and a boolean one per label.
    pairs : list of (quantity, label, axis text)
    """
    import seaborn as sns

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


def forest(table: pd.DataFrame, null: pd.DataFrame, series: str, metric_name: str) -> Figure:
    """Scores per task with 95 % intervals, one marker per series, on the band that label permutations reach by chance.

    Parameters
    ----------
    table : DataFrame
        `task, value, lo, hi, n_pos, supported` and the column named by `series`; one row per task and series.
    null : DataFrame
        `task, lo, hi`: the central 95 % of the permutation null. Empty for metrics without one.
    series : str
        Column whose values are told apart by marker and colour.
    metric_name : str
        Axis label.
    """
    tasks = list(table["task"].unique())
    names = list(table[series].unique())
    figure = Figure(figsize=(7.5, 0.42 * len(tasks) + 1.4), layout="constrained")
    axes = figure.subplots()
    for row in null.itertuples():
        if row.task in tasks:
            y = tasks.index(row.task)
            axes.fill_betweenx([y - 0.4, y + 0.4], row.lo, row.hi, color="#DDDDDD", linewidth=0, zorder=0)
    for i, name in enumerate(names):
        rows = table[table[series] == name]
        height = np.array([tasks.index(task) for task in rows["task"]]) + (i - (len(names) - 1) / 2) * 0.22
        solid = rows["supported"].to_numpy(bool)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.hlines(height[solid], rows["lo"][solid], rows["hi"][solid], color=colour, linewidth=1.4)
        axes.plot(rows["value"][solid], height[solid], marker, color=colour, markersize=5, label=name)
        axes.plot(rows["value"][~solid], height[~solid], marker, color="#999999", markersize=4, fillstyle="none")
    counts = table.groupby("task", sort=False)["n_pos"].first()
    labels = [f"{task}  (n+ = {counts[task]:.0f})" if pd.notna(counts[task]) else task for task in tasks]
    axes.set_yticks(range(len(tasks)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(metric_name)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 4), fontsize=8)
    return figure


def heatmap(wide: pd.DataFrame, label: str, title: str = "") -> Figure:
    """Values of a small matrix, written into coloured cells.

    Parameters
    ----------
    wide : DataFrame of float
        NaN cells stay empty.
    label : str
        What the numbers are.
    """
    import seaborn as sns

    figure = Figure(figsize=(0.72 * wide.shape[1] + 2.6, 0.34 * wide.shape[0] + 1.2), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(
        wide, annot=True, fmt=".3f", cmap="cividis", ax=axes, cbar_kws={"label": label}, annot_kws={"size": 7.5}
    )
    axes.set(xlabel="", ylabel="")
    axes.set_title(title)
    return figure

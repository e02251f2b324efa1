"""The landscape of open ECG foundation models: what they are built of, and how they were pre-trained."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cure.plots import COLOURS

FAMILIES = {
    "cnn": "CNN",
    "cnn+transformer": "CNN +\ntransformer",
    "transformer": "Transformer",
    "state-space": "State space",
    "recurrent": "Recurrent",
    "unknown": "not\nestablished",
}
OBJECTIVES = {
    "supervised": "Supervised",
    "contrastive": "Contrastive",
    "masked": "Masked",
    "predictive": "Predictive\n(latent targets)",
    "ecg-text": "ECG and text",
    "hybrid": "Several\nof these",
    "distillation": "Self-distillation",
    "unknown": "not\nestablished",
}
#: What pre-training saw of PTB-XL: words, colour, marker, and the area at which the marker looks as large as a disc.
SEEN = {
    "no": ("PTB-XL not seen", COLOURS[0], "o", 1.0),
    "signals": ("PTB-XL signals seen", COLOURS[1], "s", 0.8),
    "signals and labels": ("PTB-XL signals and labels seen", COLOURS[3], "^", 1.0),
    "unknown": ("PTB-XL: not known, or up to the user", "#777777", "D", 0.65),
}
_LINE = 0.235  # inches per model in a cell
_COLUMN = 1.72  # inches
_SIZES = (1e6, 1e7, 1e8)


def landscape(table: pd.DataFrame) -> Figure:
    """Draw models by architecture family and pre-training objective.

    The area of a marker grows with the logarithm of the parameters, its colour and shape say whether pre-training saw
    PTB-XL, filled ones run here, hollow ones are listed only. A hollow marker of the smallest size stands for a number
    of parameters that is not known.

    Parameters
    ----------
    table : DataFrame
        As `cure.catalogue.catalogue_table` makes it: `title, runnable, family, objective, parameters, ptb_xl`.
    """
    table = table.assign(family=table["family"].fillna("unknown"), objective=table["objective"].fillna("unknown"))
    rows = [name for name in FAMILIES if (table["family"] == name).any()]
    columns = [name for name in OBJECTIVES if (table["objective"] == name).any()]
    counts = table.groupby(["family", "objective"]).size()
    heights = np.array([counts[row].max() for row in rows]) + 0.9
    top = np.concatenate([[0.0], np.cumsum(heights)])

    size = (_COLUMN * len(columns) + 1.1, _LINE * top[-1] + 1.35)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for (family, objective), cell in table.groupby(["family", "objective"]):
        _cell(axes, cell, columns.index(objective), *top[[rows.index(family), rows.index(family) + 1]])
    axes.set(xlim=(0, len(columns)), ylim=(top[-1], 0))
    axes.set_xticks(np.arange(len(columns)) + 0.5, [OBJECTIVES[name] for name in columns])
    axes.set_yticks((top[:-1] + top[1:]) / 2, [FAMILIES[name] for name in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    axes.hlines(top, 0, len(columns), color="#CCCCCC", linewidth=0.7)
    axes.vlines(range(len(columns) + 1), 0, top[-1], color="#CCCCCC", linewidth=0.7)
    axes.spines[:].set_visible(False)
    figure.legend(handles=_keys(table), loc="outside lower center", ncols=3, fontsize=8, columnspacing=3.0)
    return figure


def _cell(axes: Axes, cell: pd.DataFrame, column: int, upper: float, lower: float) -> None:
    """The models of one cell under each other, the largest first, names to the right of the markers."""
    cell = cell.sort_values(["parameters", "title"], ascending=[False, True], na_position="last")
    heights = (upper + lower) / 2 + np.arange(len(cell)) - (len(cell) - 1) / 2
    for y, one in zip(heights, cell.itertuples(), strict=True):
        _, colour, marker, share = SEEN[one.ptb_xl]
        face, area = colour if one.runnable else "none", share * _area(one.parameters)
        axes.scatter(column + 0.1, y, s=area, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.1)
        axes.text(column + 0.19, y, one.title, va="center", fontsize=7.8, color="black" if one.runnable else "#444444")


def _area(parameters: float) -> float:
    """Marker area in square points, linear in the logarithm of the number of parameters."""
    known = parameters if pd.notna(parameters) else 10**5.5
    return 12 + 42 * max(np.log10(float(known)) - 5.5, 0.0)


def _keys(table: pd.DataFrame) -> list[Line2D]:
    def key(label: str, marker: str, colour: str, face: str, area: float) -> Line2D:
        look = {"marker": marker, "markeredgecolor": colour, "markerfacecolor": face, "markersize": area**0.5}
        return Line2D([], [], linestyle="none", label=label, **look)

    seen = [SEEN[name] for name in SEEN if (table["ptb_xl"] == name).any()]
    keys = [key(words, marker, colour, colour, share * 60) for words, colour, marker, share in seen]
    keys += [key("runs here", "o", "black", "black", 60), key("listed only", "o", "black", "none", 60)]
    keys += [key("number of parameters not known", "o", "black", "none", _area(np.nan))]
    return keys + [key(f"{n / 1e6:,.0f} M parameters", "o", "#777777", "#CCCCCC", _area(n)) for n in _SIZES]

"""One figure style. Figures are drawn from tables and signals, never from models.

Every figure is a PNG and an SVG with a caption; colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cure.paths import atomic

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
#: One more than there are colours: past the last colour, a series has a pair of its own.
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "*"]

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

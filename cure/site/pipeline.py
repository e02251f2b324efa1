"""The pipeline as a graph, drawn from `dvc.yaml`: what each stage needs, how long it took and how much memory.

The graph is one SVG with styles of its own, light and dark; times differ from run to run, so nothing that shows them
is hashed.
"""

import html
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

_WIDTH, _HEIGHT = 108, 52
_GAP_X, _GAP_Y = 25, 14
_MARGIN = 8

_STYLE = """
.stage rect { fill: #f6f8fa; stroke: #8c959f; }
.stage.waits rect { stroke-dasharray: 4 3; }
.stage .share { fill: #0b5cad; stroke: none; }
text { fill: #1b1f24; font: 600 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
text.cost { fill: #57606a; font-weight: 400; font-size: 11px; }
path { fill: none; stroke: #8c959f; stroke-width: 1.2; }
a:focus rect { stroke: #0b5cad; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  .stage rect { fill: #161b22; stroke: #6e7681; }
  .stage .share { fill: #6cb6ff; }
  text { fill: #e6edf3; } text.cost { fill: #9aa4af; } path { stroke: #6e7681; }
  a:focus rect { stroke: #6cb6ff; }
}
"""


@dataclass(frozen=True)
class Stage:
    """One stage of `dvc.yaml`: its command and the stages whose outputs it reads."""

    name: str
    command: str
    needs: tuple[str, ...]


def stages(file: Path, profile: str) -> list[Stage]:
    """Stages of a `dvc.yaml`, in its order, with paths and commands of one profile.

    A stage needs another where one of its dependencies is, or lies in, an output of the other.
    """
    raw = yaml.safe_load(file.read_text())["stages"]

    def own(path: str) -> str:
        return path.replace("${item.profile}", profile)

    makes = {}
    for name, stage in raw.items():
        for out in stage.get("outs", []):
            makes[own(out if isinstance(out, str) else next(iter(out)))] = name

    def maker(path: str) -> str | None:
        folders = [path, *map(str, Path(path).parents)]
        return next((makes[folder] for folder in folders if folder in makes), None)

    found = []
    for name, stage in raw.items():
        needed = dict.fromkeys(maker(own(dep)) for dep in stage.get("deps", []))
        command = stage["cmd"] if isinstance(stage["cmd"], str) else " && ".join(stage["cmd"])
        found.append(Stage(name, own(command), tuple(one for one in needed if one not in (None, name))))
    return found


def levels(graph: list[Stage]) -> dict[str, int]:
    """Column of each stage: one more than the last of those it needs."""
    needs = {stage.name: stage.needs for stage in graph}
    known: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in known:
            known[name] = 1 + max((level(other) for other in needs[name]), default=-1)
        return known[name]

    return {stage.name: level(stage.name) for stage in graph}


def direct(graph: list[Stage]) -> list[tuple[str, str]]:
    """Arrows worth drawing: those that no longer way round says already."""
    needs = {stage.name: stage.needs for stage in graph}
    before: dict[str, set[str]] = {}

    def ancestors(name: str) -> set[str]:
        if name not in before:
            before[name] = set().union(*({other} | ancestors(other) for other in needs[name]))
        return before[name]

    return [
        (other, stage.name)
        for stage in graph
        for other in stage.needs
        if not any(other in ancestors(between) for between in stage.needs if between != other)
    ]


def seconds(value: float) -> str:
    """A duration as people say it."""
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def megabytes(value: float) -> str:
    """An amount of memory as people say it."""
    return f"{value:.0f} MB" if value < 1000 else f"{value / 1000:.1f} GB"


def draw(graph: list[Stage], cost: pd.DataFrame, pages: dict[str, str]) -> str:
    """The graph as SVG, stages from left to right.

    Parameters
    ----------
    graph : list of Stage
        See `stages`.
    cost : DataFrame
        `stage, wall_s, cpu_s, peak_rss_mb` of the stages that were measured.
    pages : dict
        Stage -> address of its page.
    """
    place = _places(graph)
    width = max(x for x, _ in place.values()) + _WIDTH + _MARGIN
    height = max(y for _, y in place.values()) + _HEIGHT + _MARGIN
    measured = cost.set_index("stage")
    longest = measured["wall_s"].max() if len(measured) else 1.0
    arrows = "\n".join(_arrow(place[a], place[b]) for a, b in direct(graph))
    boxes = "\n".join(
        _box(
            stage, place[stage.name], measured.loc[stage.name] if stage.name in measured.index else None, longest, pages
        )
        for stage in graph
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-labelledby="graph-title"><title id="graph-title">'
        f"{html.escape(description(graph, cost))}</title><style>{_STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M1 1 L7 4 L1 7"/></marker></defs>\n{arrows}\n{boxes}\n</svg>\n'
    )


def _places(graph: list[Stage]) -> dict[str, tuple[float, float]]:
    """Upper left corner of each stage's box: a column per level, each stage beside those it follows."""
    column = levels(graph)
    follows: dict[str, list[str]] = {}
    for other, name in direct(graph):
        follows.setdefault(name, []).append(other)
    row: dict[str, float] = {}
    for number in sorted(set(column.values())):
        names = [stage.name for stage in graph if column[stage.name] == number]
        wanted = {
            name: sum(row[o] for o in follows[name]) / len(follows[name]) if name in follows else 0.0 for name in names
        }
        start = sum(wanted.values()) / len(names) - (len(names) - 1) / 2
        for i, name in enumerate(sorted(names, key=wanted.__getitem__)):
            row[name] = start + i
    top = min(row.values())
    return {
        name: (_MARGIN + column[name] * (_WIDTH + _GAP_X), _MARGIN + (row[name] - top) * (_HEIGHT + _GAP_Y))
        for name in column
    }


def description(graph: list[Stage], cost: pd.DataFrame) -> str:
    """The graph in a sentence, for those who do not see it."""
    measured = cost.set_index("stage")["wall_s"]
    total = f", {seconds(measured.sum())} in all" if len(measured) else ""
    return (
        f"The pipeline: {len(graph)} stages, {len(measured)} of them measured{total}; the table of stages says what "
        "each needs, its time and its memory."
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0, x1, y1 = start[0] + _WIDTH, start[1] + _HEIGHT / 2, end[0], end[1] + _HEIGHT / 2
    bend = min(40.0, (x1 - x0) / 2)
    return f'<path marker-end="url(#tip)" d="M{x0:g} {y0:g} C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"/>'


def _box(stage: Stage, at: tuple[float, float], cost: pd.Series | None, longest: float, pages: dict[str, str]) -> str:
    x, y = at
    said = "not measured" if cost is None else f"{seconds(cost['wall_s'])} · {megabytes(cost['peak_rss_mb'])}"
    share = (
        ""
        if cost is None
        else (
            f'<rect class="share" x="{x + 1:g}" y="{y + _HEIGHT - 5:g}" height="4" rx="2" '
            f'width="{max(2.0, (_WIDTH - 2) * cost["wall_s"] / longest):.1f}"/>'
        )
    )
    group = (
        f'<g class="stage{"" if cost is not None else " waits"}">'
        f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>{share}'
        f'<text x="{x + 10:g}" y="{y + 20:g}">{html.escape(stage.name)}</text>'
        f'<text class="cost" x="{x + 10:g}" y="{y + 37:g}">{said}</text></g>'
    )
    page = pages.get(stage.name)
    return f'<a href="{html.escape(page)}">{group}</a>' if page else group


def table(graph: list[Stage], cost: pd.DataFrame, about: dict[str, str]) -> pd.DataFrame:
    """The graph as a table: what each stage does, what it needs, its time and memory, and its command."""
    measured = cost.set_index("stage")
    rows = []
    for stage in graph:
        row = measured.loc[stage.name] if stage.name in measured.index else None
        rows.append(
            {
                "stage": stage.name,
                "what it does": about.get(stage.name, ""),
                "wall time (s)": None if row is None else row["wall_s"],
                "CPU time (s)": None if row is None else row["cpu_s"],
                "peak memory (MB)": None if row is None else row["peak_rss_mb"],
                "needs": ", ".join(stage.needs),
                "command": stage.command,
            }
        )
    return pd.DataFrame(rows)

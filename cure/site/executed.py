"""Executed notebooks as pages, and where in them a table or a figure was made."""

import base64
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from cure import findings
from cure.site.markup import boxed, local, scoped
from cure.site.pictures import Gallery, digest


@dataclass(frozen=True)
class Executed:
    """One stage's executed notebook."""

    stage: str
    notebook: NotebookNode
    #: SHA-256 of every picture in it -> id of the cell that shows it first.
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name without its ending, also of the page."""
        return findings.notebook_name(self.stage)

    @property
    def title(self) -> str:
        """Its heading, without the number."""
        return re.sub(r"^\W*\d+\w?\s*·\s*", "", _heading(self.notebook.cells[0].source) or self.stage)

    @property
    def question(self) -> str:
        """What it asks, as its first cell says; empty where that says nothing of the kind."""
        found = re.search(r"\*\*Question\.?\*\*\s*(.*?)(?:\n\n|\Z)", self.notebook.cells[0].source, flags=re.S)
        return " ".join(found[1].split()) if found else ""

    def cell_of_picture(self, png: bytes) -> str | None:
        """Id of the first cell that shows a picture; None where none does."""
        return self.pictures.get(digest(png))

    def cell_of_table(self, name: str) -> str | None:
        """Id of the code cell that saves the table, else of the first that names it; None where none does."""
        named = [
            cell
            for cell in self.notebook.cells
            if cell.cell_type == "code" and re.search(rf"[\"']{re.escape(name)}[\"']", cell.source)
        ]
        saving = [cell for cell in named if "tables.save(" in cell.source]
        return (saving or named)[0].id if named else None

    def section_of(self, cell_id: str | None) -> str:
        """Nearest heading above a cell, without its number; the notebook's title where there is none."""
        said = self.title
        for cell in self.notebook.cells[1:]:
            if cell.cell_type == "markdown":
                said = _heading(cell.source) or said
            if cell.id == cell_id:
                return said
        return self.title


def _heading(source: str) -> str:
    found = re.match(r"#+\s*(.+)", source.lstrip())
    return found[1].strip() if found else ""


def read(stage: str, path: Path) -> Executed:
    """Read a stage's executed notebook."""
    notebook = nbformat.read(path, as_version=4)
    pictures: dict[str, str] = {}
    for cell, output in _pictures(notebook):
        pictures.setdefault(digest(_decoded(output)), cell.id)
    return Executed(stage, notebook, pictures)


def _pictures(notebook: NotebookNode) -> list[tuple[NotebookNode, NotebookNode]]:
    return [
        (cell, output)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def _decoded(output: NotebookNode) -> bytes:
    return base64.b64decode(output.data["image/png"])


@cache
def _exporter() -> HTMLExporter:
    return HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)


def body(executed: Executed, gallery: Gallery, profile: str, pages: set[str]) -> str:
    """The notebook as HTML for a page: cells have their ids as anchors, pictures are files of the site.

    nbconvert's template `basic` brings no scripts: MathJax and the like would reach for the network.
    """
    notebook = nbformat.from_dict(executed.notebook)
    for cell, output in _pictures(notebook):
        picture = gallery.add_encoded(output.data["image/png"])
        known = output.metadata.get("image/png", {})
        said = {"alt": f"Picture from cell {cell.id} of {executed.name}", **known}
        output.metadata = NotebookNode(
            {
                **output.metadata,
                "filenames": {"image/png": picture.path},
                "image/png": NotebookNode(said, width=picture.width, height=picture.height),
            }
        )
    text, _ = _exporter().from_notebook_node(notebook)
    text = text.replace('id="cell-id=', 'id="').replace("<img ", '<img loading="lazy" ')
    text = re.sub(r'<a class="anchor-link"[^>]*>.*?</a>', "", text)
    text = text.replace(
        '<div class="highlight">', '<div class="highlight" tabindex="0" role="region" aria-label="Code">'
    )
    return local(boxed(scoped(text), "Table"), profile, pages)

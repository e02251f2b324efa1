"""Assembles the site of one profile from what is published, and writes it whole or not at all."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pygments.formatters import HtmlFormatter

from cure import claims, config, contents, course, paths, plots
from cure.settings.report import ReportConfig
from cure.site import answers, browse, cards, executed, items, markup, pipeline, results
from cure.site.pictures import Gallery, Picture

#: The figure that the first page opens with.
MAIN_FIGURE = "label_efficiency"
#: Pages that are neither a table's nor a notebook's, in words.
_PAGES = {
    "index.html": "overview",
    "results.html": "findings in full",
    "pipeline.html": "pipeline",
    "cards.html": "data and models",
    "reporting.html": "reporting",
}
#: Statuses of claims -> class of their text's style.
_STATUS_STYLES = {
    claims.HOLDS: "holds",
    claims.FAILS: "fails",
    claims.OPEN: "open",
    claims.NOT_RUN: "waits",
    "answered": "answered",
    "partly": "partly",
}


@dataclass(frozen=True)
class Figure:
    """A published figure: its picture, caption, table, and the cell that drew it."""

    name: str
    stage: str
    caption: str
    table: str | None
    picture: Picture
    cell: str

    @property
    def title(self) -> str:
        """First sentence of the caption: what the picture shows, for those who do not see it."""
        return re.split(r"(?<=[a-z)])[.;:] ", self.caption)[0]


@dataclass(frozen=True)
class Table:
    """A published table: its sheet, what it is, and the cell that made it."""

    sheet: browse.Sheet
    stage: str
    about: str
    cell: str


class Site:
    """The site of one profile.

    Parameters
    ----------
    profile : str
        A profile's name.
    out : Path
        Folder to write to, empty.
    ran : list of str
        Stages that have an executed notebook, in the pipeline's order.
    cost : DataFrame
        Time and memory of the stages; see `cure.resources.table`.
    """

    def __init__(self, profile: str, out: Path, ran: list[str], cost: pd.DataFrame) -> None:
        self.profile, self.out, self.ran, self.cost = profile, out, ran, cost
        self.missing = [stage for stage in config.STAGES if stage not in ran]
        self.notebooks = {stage: executed.read(stage, self._made(stage) / "notebook.ipynb") for stage in ran}
        self.gallery = Gallery(out)
        self.figures = [self._figure(stage, file) for stage in ran for file in self._files(stage, "figures", "*.png")]
        self.tables = [self._table(stage, file) for stage in ran for file in self._files(stage, "tables", "*.csv")]
        self.pages = {*_PAGES, *(f"{one.name}.html" for one in self.notebooks.values())}
        self.pages |= {f"tables/{table.sheet.name}.html" for table in self.tables}
        report = config.check(ReportConfig, **config.parameters("report", profile))
        self.writer = results.Writer(report, self.pages, self.missing)
        self.graph = pipeline.stages(paths.root() / "dvc.yaml", profile)
        self._templates = Environment(
            loader=PackageLoader("cure", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters |= {"number": number, "code": code, "time": claims.time}

    def _made(self, stage: str) -> Path:
        return paths.stage(self.profile, stage)

    def _files(self, stage: str, kind: str, pattern: str) -> list[Path]:
        return sorted((self._made(stage) / kind).glob(pattern))

    def _figure(self, stage: str, file: Path) -> Figure:
        about, notebook = plots.caption(file), self.notebooks[stage]
        content = file.read_bytes()
        picture = self.gallery.add(content, file.stem)
        cell = notebook.cell_of_picture(content)
        anchor = f"{notebook.name}.html" + (f"#{cell}" if cell else "")
        return Figure(file.stem, stage, about["caption"], about["table"], picture, anchor)

    def _table(self, stage: str, file: Path) -> Table:
        notebook = self.notebooks[stage]
        cell = notebook.cell_of_table(file.stem)
        about = contents.TABLES.get(file.stem) or notebook.section_of(cell)
        return Table(browse.read(file), stage, about, f"{notebook.name}.html" + (f"#{cell}" if cell else ""))

    def write(self) -> None:
        """Write every page, the style sheet and the script."""
        templates = Path(__file__).resolve().parents[1] / "templates"
        light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
        style = (templates / "style.css").read_text()
        kept = ".highlight, .highlight pre { background: var(--box); }"
        (self.out / "style.css").write_text(
            f"{style}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{kept}\n"
        )
        shutil.copyfile(templates / "site.js", self.out / "site.js")
        self._write_tables()
        for stage, notebook in self.notebooks.items():
            body = executed.body(notebook, self.gallery, self.profile, self.pages)
            self._page(f"{notebook.name}.html", "notebook.html", page=stage, notebook=notebook, body=body)
        self._write_pipeline()
        sections = results.sections(self.writer)
        self._page("results.html", "results.html", page="results", sections=sections)
        self._page("cards.html", "cards.html", page="cards", **self._cards())
        lists = [(checklist, self._checklist(checklist)) for checklist in items.checklists()]
        self._page("reporting.html", "reporting.html", page="reporting", checklists=lists)
        self._page("index.html", "index.html", page="index", **self._index())

    def _page(self, path: str, template: str, **values: Any) -> None:
        common = {
            "profile": self.profile,
            "study": config.load(self.profile),
            "up": "../" * path.count("/"),
            "notebooks": self.notebooks,
            "missing": self.missing,
            "command": f"make repro PROFILE={self.profile}",
        }
        text = self._templates.get_template(template).render(common | values)
        file = self.out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def _write_tables(self) -> None:
        for table in self.tables:
            used = [figure for figure in self.figures if figure.table == table.sheet.name]
            sheet = table.sheet
            self._page(
                f"tables/{sheet.name}.html",
                "table.html",
                page="tables",
                table=table,
                shown=sheet.rows[: browse.SHOWN],
                numeric=sheet.numeric(),
                packed=sheet.packed,
                figures=used,
            )
            if not sheet.is_packed:
                (self.out / "tables" / f"{sheet.name}.csv").write_bytes(sheet.content)

    def _write_pipeline(self) -> None:
        pages = {stage: f"{notebook.name}.html" for stage, notebook in self.notebooks.items()}
        about = course.course(self.profile).stages
        graph = pipeline.draw(self.graph, self.cost, pages)
        (self.out / "pipeline.svg").write_text(graph)
        machine = f"{self.cost['cpu'].iloc[0]}, {self.cost['cores'].iloc[0]} cores" if len(self.cost) else ""
        self._page(
            "pipeline.html",
            "pipeline.html",
            page="pipeline",
            graph=graph,
            stages=markup.table(pipeline.table(self.graph, self.cost, about), "Stages of the pipeline"),
            strategies=results.strategies(self.profile, paths.root() / "tables" / self.profile),
            measured=results.measured(self.profile),
            machine=machine,
            claims=self._claims(measured=True),
            styles=_STATUS_STYLES,
        )

    def _cards(self) -> dict[str, Any]:
        folder = paths.root() / "tables" / self.profile
        return {
            "data": cards.data(self.profile, folder),
            "own": cards.own(self.profile, folder),
            "models": cards.models(),
        }

    def _checklist(self, checklist: items.Checklist) -> str:
        rows = [
            {
                "item": item.item,
                "part": item.section,
                "asks": item.asks,
                "status": item.status,
                "answer": item.answer,
                "where": [(self._link(target), target, self._place(target)) for target in item.where],
            }
            for item in checklist.items
        ]
        return self._templates.get_template("checklist.html").render(
            absent="not run" if self.missing else "not in this profile",
            rows=rows,
            name=checklist.name,
            styles=_STATUS_STYLES,
        )

    def _link(self, target: str) -> bool:
        """Whether the site has a page; what belongs to a stage that has not run has none."""
        return target.partition("#")[0] in self.pages

    def _place(self, target: str) -> str:
        """A page of the site in words."""
        page, _, part = target.partition("#")
        kind, name = ("table", page[7:-5]) if page.startswith("tables/") else ("notebook", page[:-5])
        where = _PAGES.get(page, f"{kind} {name}")
        return f"{where}: {part.replace('-', ' ')}" if part else where

    def _index(self) -> dict[str, Any]:
        main = next((figure for figure in self.figures if figure.name == MAIN_FIGURE), None)
        found = answers.answers(self.profile, paths.root() / "tables" / self.profile)
        judged = self._claims(measured=False)
        return {
            "studied": results.studied(self.writer),
            "scores": results.scores(self.writer),
            "limits": results.limits(self.writer),
            "answers": [(one, markup.markdown(one.text, self.profile, self.pages)) for one in found],
            "main": main,
            "figures": [figure for figure in self.figures if figure is not main],
            "tables": self.tables,
            "claims": judged,
            "n_measured": 0 if judged is None else len(claims.load()) - len(judged),
            "counts": judged["status"].value_counts().to_dict() if judged is not None else {},
            "styles": _STATUS_STYLES,
            "statuses": claims.STATUSES,
            "lists": items.checklists(),
            "graph": pipeline.description(self.graph, self.cost.iloc[:0]),
        }

    def _claims(self, measured: bool) -> pd.DataFrame | None:
        """Claims with their status and the page of their table, or None without a file of claims.

        Those about measured time and memory are apart: they would make pages differ from run to run.
        """
        if not (paths.root() / "claims.yaml").is_file():
            return None
        chosen = {claim.id for claim in claims.load() if claim.measured == measured}
        table = claims.judged(self.profile, measured=paths.resources(self.profile) if measured else None)
        table = table[table["id"].isin(chosen)]
        known = {path.stem for path in paths.resources(self.profile).glob("*.csv")}
        pages = [
            (f"#measured-{name}" if name in known else "")
            if measured
            else (f"tables/{name}.html" if f"tables/{name}.html" in self.pages else "")
            for name in table["table"]
        ]
        return table.assign(page=pages)


def code(text: str) -> Markup:
    """Text in which what stands in backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped just here


def number(row: Any) -> str:
    """Value of a row with its interval, as far as there are any."""
    value, lo, hi = row.value, row.lo, row.hi
    if pd.isna(value):
        return ""
    return f"{value:.3g}" if pd.isna(lo) else f"{value:.3g} [{lo:.3g}, {hi:.3g}]"

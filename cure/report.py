"""The last, cheap stage: publish what the stages made, and turn it into the pages that a reviewer opens.

Writes `tables/`, `figures/`, `reports/`, `results/predictions/` and `site/` of one profile, each whole or not at all.
The pages need no network: styles are inline, pictures are files beside them or inside the notebook.
"""

import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter

from cure import analyses, config, contents, findings, finetune_tables, paths, plots, resources, tables
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES
from cure.settings.report import ReportConfig

_UNITS = {"wall_s": "wall time (s)", "cpu_s": "CPU time (s)", "peak_rss_mb": "peak memory (MB)", "cpu": "processor"}
_MAIN_FIGURE = ("efficiency", "label_efficiency")
#: Sections of the first page that the template names.
_ANALYSES = {
    "efficiency": analyses.efficiency,
    "protocols": analyses.protocols,
    "ablations": analyses.ablations,
    "transfer": analyses.transfer,
    "probes": analyses.probes,
    "faithful": analyses.faithful,
}


def render(profile: str) -> None:
    """Publish one profile.

    Raises
    ------
    CureError
        If a stage has not run.
    """
    root = paths.root()
    for stage in config.STAGES:
        if not (paths.stage(profile, stage) / "notebook.ipynb").is_file():
            raise CureError(f"stage {stage} of profile {profile} has not run: `make repro PROFILE={profile}`")
    for kind in ("tables", "figures"):
        _publish(profile, kind, root / kind / profile)
    _publish(profile, "predictions", root / "results" / "predictions" / profile)
    with paths.atomic(root / "reports" / profile) as out:
        out.mkdir(parents=True)
        for stage in config.STAGES:
            shutil.copyfile(
                paths.stage(profile, stage) / "notebook.ipynb", out / f"{findings.notebook_name(stage)}.ipynb"
            )
    cost = resources.table(paths.resources(profile), list(config.STAGES))
    with paths.atomic(root / "tables" / profile / "resources.csv") as part:
        cost.to_csv(part, index=False, lineterminator="\n")
    _site(profile, cost)


def _publish(profile: str, kind: str, target: Path) -> None:
    """Copy one kind of output of all stages into one folder; two stages must not claim one name."""
    with paths.atomic(target) as out:
        out.mkdir(parents=True)
        for stage in config.STAGES:
            for file in sorted((paths.stage(profile, stage) / kind).glob("*")):
                if (out / file.name).exists():
                    raise CureError(f"two stages write {kind}/{file.name}, one of them is {stage}: rename one")
                shutil.copyfile(file, out / file.name)


def _site(profile: str, cost: pd.DataFrame) -> None:
    root, study = paths.root(), config.load(profile)
    report = config.check(ReportConfig, **config.parameters("report", profile))
    environment = Environment(
        loader=PackageLoader("cure", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    common = {
        "profile": profile,
        "study": study,
        "notebooks": {stage: findings.notebook_name(stage) for stage in config.STAGES},
        "code_light": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "code_dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    with paths.atomic(root / "site" / profile) as out:
        out.mkdir(parents=True)
        for kind in ("tables", "figures"):
            shutil.copytree(root / kind / profile, out / kind, ignore=shutil.ignore_patterns("resources.csv"))
        for stage, name in common["notebooks"].items():
            body = _notebook_body(paths.stage(profile, stage) / "notebook.ipynb", profile)
            page = environment.get_template("notebook.html").render(common, stage=stage, name=name, body=body)
            (out / f"{name}.html").write_text(page)
        page = environment.get_template("index.html").render(common, **_index(report))
        (out / "index.html").write_text(page)
        page = environment.get_template("resources.html").render(
            common, table=_html(cost.rename(columns=_UNITS)), strategies=_html(_strategies(profile))
        )
        (out / "resources.html").write_text(page)


def _strategies(profile: str) -> pd.DataFrame:
    """What fine-tuning and its alternatives cost, as a reader wants to see it."""
    table = finetune_tables.cost_table(profile)
    shown = {
        "label": "strategy",
        "trainable": "trainable parameters",
        "records_seen": "records seen",
        "seconds": "seconds per split, one thread",
        "peak_mb": "peak memory above start (MB)",
        "cpu": "processor",
    }
    return (
        table[list(shown)]
        .rename(columns=shown)
        .round(0)
        .astype(dict.fromkeys(("trainable parameters", "records seen"), int))
    )


def _index(report: ReportConfig) -> dict:
    """What the first page shows: the answer, the main figure, the main table, then everything else."""
    profile = report.profile
    figures = [
        {"name": png.stem, "stage": stage, **plots.caption(png)}
        for stage in config.STAGES
        for png in sorted((paths.stage(profile, stage) / "figures").glob("*.png"))
    ]
    files = [
        {"name": csv.stem, "stage": stage, "about": contents.TABLES.get(csv.stem, ""), "rows": len(pd.read_csv(csv))}
        for stage in config.STAGES
        for csv in sorted((paths.stage(profile, stage) / "tables").glob("*.csv"))
    ]
    main = [figure for figure in figures if (figure["stage"], figure["name"]) == _MAIN_FIGURE]
    cohort = tables.cohort_view(tables.read(paths.stage(profile, "prepare"), "cohort"))
    return {
        "headline": _markdown(findings.headline(report), profile),
        "main_result": _markdown(findings.main_result(report), profile),
        "comparison": _markdown(findings.comparison(report), profile),
        "pretraining": _markdown(findings.pretraining(report), profile),
        "finetuning": _markdown(findings.finetuning(report), profile),
        "structure": _markdown(findings.structure(report), profile),
        "explanation": _markdown(findings.explanation(report), profile),
        **{name: _markdown(say(report), profile) for name, say in _ANALYSES.items()},
        "null": _markdown(findings.null(report), profile),
        "limits": _markdown(findings.limits(report), profile),
        "main_figure": main[0],
        "figures": [figure for figure in figures if figure not in main],
        "tables": files,
        "main_table": _html(findings.main_table(report).rename_axis(columns=None).reset_index()),
        "groups_table": _html(findings.groups(report).reset_index()),
        "cohort_table": _html(cohort.rename_axis("").reset_index()),
        "metric": findings.METRIC_NAMES[report.metric],
        "titles": findings.titles(report),
        "n_draws": config.parameters("heads", profile)["n_draws"],
        "min_positives": MIN_POSITIVES,
    }


def _notebook_body(path: Path, profile: str) -> str:
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    # Anchors and MathJax would reach for scripts that the page does not carry.
    body, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    return _local(body, profile)


def _markdown(text: str, profile: str) -> str:
    return _local(markdown2html(text), profile)


def _local(html: str, profile: str) -> str:
    """Point links that lead to published files, or to other notebooks, at their copies beside the page."""
    html = re.sub(rf"\.\./\.\./(tables|figures)/{re.escape(profile)}/", r"\1/", html)
    return re.sub(r'href="(\d\d[a-z]?_[a-z]+)\.ipynb"', r'href="\1.html"', html)


def _html(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, classes="data", na_rep="")

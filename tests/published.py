"""A project with the stages' folders of the committed study, so that its pages can be rendered without running it."""

import re
import shutil
from pathlib import Path

import nbformat
from conftest import ROOT, make_project

from cure import findings

PROFILE = "ptbxl-subset"


def _made() -> list[tuple[str, str, str]]:
    """(kind, name, stage) of every committed table and figure, as the report's index lists them."""
    report = nbformat.read(ROOT / "reports" / PROFILE / "10_report.ipynb", as_version=4)
    text = "\n".join(
        str(output.data) for cell in report.cells for output in cell.get("outputs", []) if "data" in output
    )
    found = re.findall(r"\[`([\w.+-]+)\.(csv|png)`\]\([^)]*\) \| \[\d\d\w?_(\w+)\]", text)
    own = [("csv", "catalogue", "report"), ("csv", "contamination", "report"), ("png", "landscape", "report")]
    return [(ending, name, stage) for name, ending, stage in found] + own


def project_of(folder: Path, stages: list[str] | None = None) -> Path:
    """A project in which `stages` (all that are committed, by default) of the committed study have run."""
    make_project(folder)
    committed = {file.stem.split("_", 1)[1]: file for file in (ROOT / "reports" / PROFILE).glob("*.ipynb")}
    for stage in stages or committed:
        out = folder / "data" / "stages" / PROFILE / stage
        out.mkdir(parents=True)
        shutil.copyfile(committed[stage], out / "notebook.ipynb")
        assert committed[stage].stem == findings.notebook_name(stage)
    for ending, name, stage in dict.fromkeys(_made()):
        out = folder / "data" / "stages" / PROFILE / stage
        kind = "tables" if ending == "csv" else "figures"
        if not out.is_dir():
            continue
        (out / kind).mkdir(exist_ok=True)
        for file in (ROOT / kind / PROFILE).glob(f"{name}.*"):
            shutil.copyfile(file, out / kind / file.name)
    shutil.copytree(ROOT / "results" / "resources" / PROFILE, folder / "results" / "resources" / PROFILE)
    return folder

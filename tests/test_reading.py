"""Reading in JupyterLab: every notebook runs from anywhere after a run of the pipeline, and changes nothing of it."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import dvc, git

from cure import config, notebooks, paths

#: Below a project, what running a notebook by hand may write to.
FREE = ("data/interactive", "data/scratch")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of a project outside `FREE`."""
    found = {}
    for where, names, files in os.walk(folder):
        inside = Path(where).relative_to(folder)
        names[:] = [n for n in names if (inside / n).as_posix() not in FREE and n not in (".git", "__pycache__", "tmp")]
        for name in files:
            about = (Path(where) / name).lstat()
            found[(inside / name).as_posix()] = (about.st_size, about.st_mtime_ns)
    return found


def read_through(file: Path, cwd: Path, settings: dict) -> nbformat.NotebookNode:
    """Run all cells in a kernel whose working directory is `cwd`, with other values in the parameters cell."""
    notebook = nbformat.read(file, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(cwd)}})
    client.execute()
    return notebook


@pytest.mark.long
@pytest.mark.parametrize("stage", config.STAGES)
def test_all_cells_run_from_another_folder_and_touch_nothing(reproduced, tmp_path, monkeypatch, stage):
    # The checkout's package is found by its place: the kernel is somewhere else.
    monkeypatch.setenv("PYTHONPATH", str(reproduced))
    monkeypatch.delenv(paths.STAGE, raising=False)
    monkeypatch.chdir(reproduced)
    settings = config.parameters(stage, "tiny")
    before = tree(reproduced)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ran = read_through(reproduced / "notebooks" / notebooks.file_name(stage), elsewhere, settings)
    shown = [cell for cell in ran.cells if cell.cell_type == "code" and cell.outputs]
    assert shown, "a reader sees something"
    assert tree(reproduced) == before
    assert not list(elsewhere.iterdir())
    made = reproduced / "data/interactive/stages/tiny" / stage
    published = reproduced / "data/stages/tiny" / stage
    assert {file.name for file in (made / "tables").glob("*")} == {f.name for f in (published / "tables").glob("*")}
    assert {file.name for file in (made / "figures").glob("*")} == {f.name for f in (published / "figures").glob("*")}


@pytest.mark.long
def test_after_reading_the_pipeline_is_up_to_date(reproduced):
    assert (reproduced / "data/interactive").is_dir()
    assert "up to date" in dvc(reproduced, "status", "render")
    assert dvc(reproduced, "repro").count("Running stage") == 1
    assert git(reproduced, "status", "--porcelain") == ""

import ast
import json

import nbclient
import nbformat
import psutil
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cure import config, notebooks
from cure.errors import CureError

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(file):
    return [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_notebooks_call_show_and_say(file):
    notebook = nbformat.read(file, as_version=4)
    cells = code_cells(file)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith(f"# {file.stem.split('_')[0]} · ")
    assert len(notebook.cells) <= 32
    assert sum(len(cell.source.splitlines()) for cell in cells) <= 120
    for cell in cells:
        assert not cell.outputs, "outputs are stripped"
        # A stage with many settings lists them one a line.
        assert len(cell.source.splitlines()) <= (20 if "parameters" in cell.metadata.get("tags", []) else 15)
        kinds = (ast.For, ast.While, ast.If, ast.FunctionDef, ast.ClassDef, ast.Try)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source))), cell.source


@pytest.mark.parametrize("stage", config.STAGES)
def test_defaults_of_the_parameters_cell_are_the_demo_profiles(stage):
    cells = [
        c
        for c in code_cells(ROOT / "notebooks" / notebooks.file_name(stage))
        if "parameters" in c.metadata.get("tags", [])
    ]
    (cell,) = cells
    written = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert written == config.parameters(stage, "demo")


def executed():
    cell = new_code_cell(
        "print(1)", execution_count=3, metadata={"papermill": {"duration": 1.2}, "tags": ["parameters"]}
    )
    cell.outputs = [
        new_output("stream", name="stdout", text="a"),
        new_output("stream", name="stderr", text="warning"),
        new_output("stream", name="stdout", text="b\n"),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# t"), cell])
    notebook.metadata = {"papermill": {"start": "now"}, "language_info": {"name": "python", "version": "3.11.7"}}
    return notebook


def test_two_equal_runs_normalise_to_the_same_bytes():
    one, two = executed(), executed()
    two.cells[1].outputs = [new_output("stream", name="stdout", text="ab\n")]
    two.cells[1].id = "random-id"
    two.metadata["papermill"] = {"start": "later"}
    assert nbformat.writes(notebooks.normalised(one)) == nbformat.writes(notebooks.normalised(two))
    text = nbformat.writes(one)
    assert "papermill" not in text
    assert "3.11.7" not in text
    assert "warning" not in text
    assert one.cells[1].outputs[0].text == "ab\n"
    assert one.cells[1].metadata["tags"] == ["parameters"]


def test_clean_copies_do_not_change_when_a_notebook_is_executed(project):
    notebooks.clean()
    copy = project / "data" / "notebooks" / "05_heads.ipynb"
    before = copy.read_bytes()
    source = project / "notebooks" / "05_heads.ipynb"
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        cell.metadata["collapsed"] = True
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [new_output("stream", name="stdout", text="x")], 7
    nbformat.write(notebook, source)
    notebooks.clean()
    assert copy.read_bytes() == before
    source.write_text(source.read_text().replace("n_draws = 1000", "n_draws = 500"))
    notebooks.clean()
    assert copy.read_bytes() == before, "a default that every profile overrides"
    source.write_text(source.read_text().replace("scores.heads_table(", "scores.heads_table (", 1))
    notebooks.clean()
    assert copy.read_bytes() != before
    (cell,) = [c for c in code_cells(copy) if "parameters" in c.metadata.get("tags", [])]
    assert "n_draws = None  # patient-cluster bootstrap" in cell.source.splitlines()
    assert cell.source.count("= None") == len(config.parameters("heads", "demo"))


def test_a_broken_notebook_is_named(project):
    (project / "notebooks" / "05_heads.ipynb").write_text("{}")
    with pytest.raises(CureError, match=r"notebooks/05_heads.ipynb is not a valid notebook"):
        notebooks.clean()


@pytest.mark.parametrize("added", ["seeds = [\n    0,\n]", "a = b = 1", "print(1)", "x.y = 1", "a = ("])
def test_a_parameters_cell_that_is_more_than_a_list_of_settings_is_refused(project, added):
    file = project / "notebooks" / "05_heads.ipynb"
    notebook = nbformat.read(file, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    at = len(cell.source.splitlines()) + 2
    cell.source += f"\n\n{added}"
    nbformat.write(notebook, file)
    with pytest.raises(CureError, match=rf"05_heads.ipynb, parameters cell, line {at}: the cell holds one setting a"):
        notebooks.clean()


def test_running_what_does_not_exist_says_what_does(project):
    with pytest.raises(CureError, match="unknown stage 'head': choose one of download, prepare"):
        notebooks.run("head", "tiny")
    with pytest.raises(CureError, match=r"no clean copy data/notebooks/04_embed.ipynb: make it with `cure clean`"):
        notebooks.run("embed", "tiny")


def test_a_failing_cell_is_named_and_kept_and_nothing_is_half_written(project):
    notebooks.clean()
    with pytest.raises(CureError) as caught:
        notebooks.run("embed", "tiny")  # nothing was prepared
    text = str(caught.value)
    assert "stage embed of profile tiny failed in cell [" in text
    assert "no prepared cohort at data/cohorts/tiny/tiny: make it with `make repro PROFILE=tiny`" in text
    assert "data/scratch/tiny/notebooks/04_embed.ipynb" in text
    kept = json.loads((project / "data/scratch/tiny/notebooks/04_embed.ipynb").read_text())
    assert any("CureError" in json.dumps(cell.get("outputs", "")) for cell in kept["cells"])
    assert not (project / "data/stages/tiny/embed/notebook.ipynb").exists()
    assert not (project / "results/resources/tiny/embed.json").exists()


def test_running_an_edited_notebook_says_that_the_copy_is_older(project, capsys):
    notebooks.clean()
    source = project / "notebooks" / "04_embed.ipynb"
    source.write_text(source.read_text().replace("embed.embed_all(", "embed.embed_all (", 1))
    with pytest.raises(CureError, match="failed in cell"):
        notebooks.run("embed", "tiny")
    assert "notebooks/04_embed.ipynb was edited after `cure clean`" in capsys.readouterr().err


@pytest.mark.parametrize("ignores", [False, True])
def test_a_kernel_is_gone_when_its_stage_ends_whatever_it_does_with_signals(monkeypatch, ignores):
    monkeypatch.setattr(notebooks, "_PATIENCE_S", 0.5)
    source = "import os, signal\nprint(os.getpid())"
    source += "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)" if ignores else ""
    notebook = new_notebook(cells=[new_code_cell(source)])
    client = nbclient.NotebookClient(notebook, kernel_manager_class=notebooks._Kernel, kernel_name="python3")
    client.execute()
    assert not psutil.pid_exists(int(notebook.cells[0].outputs[0].text))

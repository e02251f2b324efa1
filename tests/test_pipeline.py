"""The pipeline's promises: declared dependencies, byte-identical reruns, profiles that leave each other alone."""

import ast
import subprocess
import sys
from functools import cache

import nbclient
import nbformat
import pytest
import yaml
from conftest import ROOT, SMALL, TINY, dvc, git

from cure import config, notebooks, repro
from cure.errors import CureError

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@cache
def modules_of(source: str) -> frozenset[str]:
    """Files of `cure` that some code imports, directly or not, wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "cure":
                continue
            for depth in range(1, len(parts) + 1):
                path = ROOT.joinpath(*parts[:depth])
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                if file.is_file():
                    found.add(str(file.relative_to(ROOT)))
    return frozenset(found)


def closure(source: str) -> set[str]:
    todo, done = set(modules_of(source)), set()
    while todo:
        file = todo.pop()
        done.add(file)
        todo |= modules_of((ROOT / file).read_text()) - done
    return done


def code_of(stage: str) -> str:
    if stage == "render":
        return (ROOT / "cure/report.py").read_text()
    notebook = nbformat.read(ROOT / "notebooks" / notebooks.file_name(stage), as_version=4)
    cells = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return cells + "\nimport cure.notebooks"  # what executes it and normalises its output


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "clean"])
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(stage):
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith("cure/") and dep.endswith(".py")}
    assert declared == closure(code_of(stage)) | ({"cure/report.py"} if stage == "render" else set())
    assert "runtime.lock" in STAGES[stage]["deps"]


def test_dependencies_that_are_not_modules_are_declared():
    assert "cure/cohorts/scp_statements.csv" in STAGES["download"]["deps"]
    assert "cure/templates" in STAGES["render"]["deps"]
    for name, stage in STAGES.items():
        deps = stage.get("deps", [])
        assert ("cure/models/catalogue.yaml" in deps) == ("cure/catalogue.py" in deps), name


def test_dvc_knows_every_stage_its_notebook_and_its_settings():
    assert list(STAGES) == ["clean", *config.STAGES, "render"]
    for stage in config.STAGES:
        assert f"data/notebooks/{notebooks.file_name(stage)}" in STAGES[stage]["deps"]
        (params,) = STAGES[stage]["params"]
        assert {"cohort", stage} <= set(params["profiles/${item.profile}.yaml"])


def test_only_demo_runs_by_default():
    assert yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"] == ["demo"]


def test_another_profile_is_listed_for_the_length_of_a_run_only(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("# mine\nprofiles: [demo]\n")
    with pytest.raises(KeyboardInterrupt), repro.only("tiny", file):
        assert yaml.safe_load(file.read_text())["profiles"] == ["tiny"]
        raise KeyboardInterrupt
    assert file.read_text() == "# mine\nprofiles: [demo]\n"
    with repro.only("demo", file):
        assert file.read_text().startswith("# mine")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_run_that_was_killed_outright_is_put_right_by_the_next(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("profiles: [tiny]  # for the length of this run\n")
    (tmp_path / ".params.yaml.before").write_text("# mine\nprofiles: [demo]\n")
    with repro.only("other", file):
        assert yaml.safe_load(file.read_text())["profiles"] == ["other"]
    assert file.read_text() == "# mine\nprofiles: [demo]\n"


def test_repro_of_an_unknown_profile_fails_before_anything_runs(project):
    with pytest.raises(CureError, match="unknown profile 'nope'"):
        repro.repro("nope")
    assert (project / "params.yaml").read_text() == "profiles: [tiny]\n"
    broken = {**TINY, "report": {"metrik": "auroc"}}
    (project / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(CureError, match="metrik"):
        repro.repro("tiny")


# --- end to end, with DVC ---------------------------------------------------------------------------------


@pytest.mark.long
def test_nothing_to_do_runs_nothing(reproduced):
    said = dvc(reproduced, "repro")
    assert "Running stage 'clean'" in said
    assert said.count("Running stage") == 1
    assert git(reproduced, "status", "--porcelain") == ""


@pytest.mark.long
def test_a_clean_clone_runs_every_stage_to_the_same_bytes_and_the_same_lock(reproduced, tmp_path):
    git(tmp_path, "clone", "-q", str(reproduced), "clone")
    before = (reproduced / "dvc.lock").read_bytes()
    said = dvc(tmp_path / "clone", "repro", "--force")
    assert said.count("Running stage") == len(STAGES)
    assert (tmp_path / "clone" / "dvc.lock").read_bytes() == before
    assert git(tmp_path / "clone", "status", "--porcelain") == ""


@pytest.mark.long
def test_a_notebook_run_by_a_reader_makes_nothing_stale(reproduced, monkeypatch):
    """Open it in its own folder, change a parameter, run all cells, save: as JupyterLab does."""
    monkeypatch.chdir(reproduced)
    for stage, change in {"embed": {"seeds": [0, 1, 2]}, "heads": {"n_draws": 150}}.items():
        file = reproduced / "notebooks" / notebooks.file_name(stage)
        notebook = nbformat.read(file, as_version=4)
        (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        settings = {**config.parameters(stage, "tiny"), **change}
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(file.parent)}}).execute()
        nbformat.write(notebook, file)
    table = reproduced / "data/interactive/stages/tiny/heads/tables/heads.csv"
    assert table.is_file(), "the reader's own table"
    assert table.read_bytes() != (reproduced / "tables/tiny/heads.csv").read_bytes()
    git(reproduced, "checkout", "-q", "notebooks")
    assert "up to date" in dvc(reproduced, "status", "heads", "embed", "render")
    assert dvc(reproduced, "repro").count("Running stage") == 1
    assert git(reproduced, "status", "--porcelain") == ""


@pytest.mark.long
def test_an_executed_notebook_makes_nothing_stale(reproduced):
    file = reproduced / "notebooks" / "05_heads.ipynb"
    clean = file.read_bytes()
    executed, report = (nbformat.read(f, as_version=4) for f in (file, reproduced / "reports/tiny/05_heads.ipynb"))
    ran = [c for c in report.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell, run in zip(executed.cells, ran, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
    executed.metadata["widgets"] = {"some": "state"}
    nbformat.write(executed, file)
    assert file.read_bytes() != clean
    said = dvc(reproduced, "repro")
    assert said.count("Running stage") == 1
    file.write_bytes(clean)


@pytest.mark.long
def test_another_profile_leaves_the_first_ones_entries_and_outputs_alone(reproduced):
    """Up to stage heads, from which on nothing new could happen."""
    before = yaml.safe_load((reproduced / "dvc.lock").read_text())["stages"]
    other = {**SMALL, "cohort": TINY["cohort"], "download": {"n_records": 160, "max_id_500": 0}}
    (reproduced / "profiles" / "other.yaml").write_text(yaml.safe_dump(other))
    files = ["data/stages/tiny/heads/tables/heads.csv", "tables/tiny/heads.csv"]
    tables = [(reproduced / file).read_bytes() for file in files]
    with repro.only("other", reproduced / "params.yaml"):
        dvc(reproduced, "repro", "heads@other")
    after = yaml.safe_load((reproduced / "dvc.lock").read_text())["stages"]
    assert {name: after[name] for name in before} == before
    assert "heads@other" in after
    assert [(reproduced / file).read_bytes() for file in files] == tables
    assert (reproduced / "data/stages/other/heads/tables/heads.csv").read_bytes() != tables[0]
    assert (reproduced / "params.yaml").read_text() == "profiles: [tiny]\n"
    said = subprocess.run(
        [sys.executable, "-m", "cure.cli", "repro", "--profile", "tiny"],
        cwd=reproduced,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.count("Running stage") == 1
    assert "profile tiny is up to date" in said


@pytest.mark.long
def test_a_failing_stage_says_where_and_the_next_run_goes_on(reproduced):
    file = reproduced / "profiles" / "tiny.yaml"
    good = file.read_text()
    file.write_text(yaml.safe_dump({**SMALL, "embed": {**SMALL["embed"], "encoders": ["resnet2d"]}}))
    lock = (reproduced / "dvc.lock").read_bytes()
    said = dvc(reproduced, "repro", check=False)
    assert "stage embed of profile tiny failed in cell" in said
    assert "unknown encoder 'resnet2d'" in said
    failed = reproduced / "data/scratch/tiny/notebooks/04_embed.ipynb"
    assert "unknown encoder" in failed.read_text()
    assert (reproduced / "dvc.lock").read_bytes() == lock
    file.write_text(good)
    assert dvc(reproduced, "repro").count("Running stage") <= 2
    assert (reproduced / "dvc.lock").read_bytes() == lock

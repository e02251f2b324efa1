"""The pipeline's promises: declared dependencies, byte-identical reruns, profiles that leave each other alone."""

import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import yaml
from conftest import ROOT, SMALL, TINY, dvc, git

from cure import config, imports, notebooks, repro
from cure.errors import CureError

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "clean"])
def test_a_stage_depends_on_the_code_it_runs_and_on_the_runtime(stage):
    assert {f"data/code/{stage}.txt", "runtime.lock"} <= set(STAGES[stage]["deps"])
    assert not [dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")]


@pytest.mark.parametrize("stage", ["heads", "leads", "render"])
def test_modules_found_by_reading_are_those_that_are_loaded(stage):
    """What an interpreter has loaded after the notebook's first cell is among them, and they all are modules."""
    source = "import cure.report"
    if stage != "render":
        notebook = nbformat.read(ROOT / "notebooks" / notebooks.file_name(stage), as_version=4)
        source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    listing = "import sys; print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'cure'), sep='\\n')"
    command = [sys.executable, "-c", f"{source}\n{listing}"]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    loaded = {str(Path(file).relative_to(ROOT)) for file in loaded if file}
    assert len(loaded) > 20
    assert loaded <= set(imports.modules(stage))


def test_an_edited_module_changes_the_code_of_the_stages_that_use_it_and_of_no_others(project, monkeypatch):
    monkeypatch.setattr(imports, "_HOME", project)
    imports.write()
    before = {file.stem: file.read_text() for file in (project / "data/code").iterdir()}
    assert set(before) == {*config.STAGES, "render"}
    with (project / "cure/leads.py").open("a") as module:
        module.write("# edited\n")
    imports.write()
    changed = {file.stem for file in (project / "data/code").iterdir() if file.read_text() != before[file.stem]}
    assert "leads" in changed
    assert not changed & {"download", "prepare", "heads", "finetune"}
    assert changed == {stage for stage, text in before.items() if "cure/leads.py" in text}


def test_imports_are_found_wherever_they_stand():
    source = "def f():\n    from cure.models import ked\nimport os, cure.cohorts.base\nfrom cure import tasks"
    packages = {"cure/__init__.py", "cure/models/__init__.py", "cure/cohorts/__init__.py"}
    assert imports.imported(source) == {*packages, "cure/models/ked.py", "cure/cohorts/base.py", "cure/tasks.py"}


def test_dependencies_that_are_not_modules_are_declared():
    assert "cure/cohorts/scp_statements.csv" in STAGES["download"]["deps"]
    assert "cure/templates" in STAGES["render"]["deps"]
    for name in [*config.STAGES, "render"]:
        listed = "cure/models/catalogue.yaml" in STAGES[name]["deps"]
        assert listed == ("cure/catalogue.py" in imports.modules(name)), name


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
    assert said.count(": unchanged\n") == len(STAGES) - 1
    assert "  ran (1): clean " in said


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

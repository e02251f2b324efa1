"""The how-to pages: every file, edit and command in them works as it stands, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import howto
import pytest
from conftest import ROOT, make_project

from cure import paths

PAGES = ("add-a-model", "add-a-head", "add-a-task", "add-a-cohort", "change-a-figure", "cluster", "own-weights")
DOCS = ROOT / "docs"


def copy(folder: Path) -> Path:
    """A project with its tests, pages and committed tables."""
    make_project(folder)
    shutil.copytree(DOCS, folder / "docs")
    (folder / "tests").mkdir()
    for name in ("conftest", "golden", "howto"):
        shutil.copy(ROOT / "tests" / f"{name}.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tables/ptbxl-subset").mkdir(parents=True)
    shutil.copy(ROOT / "tables/ptbxl-subset/heads.csv", folder / "tables/ptbxl-subset")
    return folder


def driver(folder: Path, *arguments: str, **environment: str) -> str:
    """What `howto.py` prints in a copy of the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CURE_")}
    command = [sys.executable, "-W", "ignore", "tests/howto.py", *arguments]
    # The copy's package and tests, not the checkout's; a page's scripts lie in folders of their own.
    where = os.pathsep.join([str(folder), str(folder / "tests")])
    env = {**kept, "PYTHONPATH": where, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_page_is_run_and_short():
    # Tests of their own, or pages that describe and are no how-to.
    others = {"own-cohort", "own-ecgs", "models", "package", "results", "scoring"}
    assert {page.stem for page in DOCS.glob("*.md")} - others == set(PAGES)
    for name in PAGES:
        text = (DOCS / f"{name}.md").read_text()
        assert text.startswith("# ")
        assert len(text.splitlines()) <= 190, name
        assert max(map(len, text.splitlines())) <= 125, name
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (DOCS / target).exists(), f"{name}: {target}"
        for path in re.findall(r"`((?:cure|profiles|notebooks|benchmarks)/[\w/.-]+)`", text):
            made = {one for language, block in howto.blocks(DOCS / f"{name}.md") if (one := _file(block))}
            assert path in made or (ROOT / path).exists() or path == "profiles/challenge.yaml", f"{name}: {path}"


def _file(block: str) -> str | None:
    named = howto._NAMED.match(block)
    return named and named[1]


@pytest.fixture(scope="module")
def said(cohort, tmp_path_factory) -> dict[str, str]:
    """What the pages print, by page: all that takes no stage, in one process."""
    folder = copy(tmp_path_factory.mktemp("howto") / "project")
    shutil.copytree(cohort.folder, folder / "data/cohorts/demo/synthetic")
    text = driver(folder, "quick", *PAGES)
    parts = dict(part.split("\n", 1) for part in text.split("== ")[1:])
    parts["folder"] = str(folder)
    return parts


def test_a_model_is_added(said):
    assert "(2, 12, 1000) torch.Size([2, 63, 64])" in said["add-a-model"]
    assert "1 passed" in said["add-a-model"]
    folder = Path(said["folder"])
    clean = [sys.executable, "-m", "cure.cli", "clean"]
    subprocess.run(clean, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, check=True)
    code = [file.read_text() for file in (folder / "data/code").glob("*.txt")]
    uses = ["cure/models/meancnn.py" in text for text in code]
    assert uses == ["cure/models/registry.py" in text for text in code]
    assert sum(uses) > 9


def test_a_head_is_added(said):
    setting, threshold, auroc = said["add-a-head"].split()
    assert setting == "shrinkage=auto"
    assert 0 < float(threshold) < 1
    assert 0.7 < float(auroc) < 1


def test_a_task_is_added_and_counted(said, cohort):
    counts = [int(n) for n in re.findall(r"test (\d+)", said["add-a-task"])]
    assert sum(counts) == cohort.listed["IMI"].sum() > 0
    assert len(counts) == 5


def test_a_cohort_gets_its_labels_from_headers(said):
    folder = Path(said["folder"]) / "challenge"
    lines = (folder / "labels.csv").read_text().splitlines()
    assert lines[0] == "record,patient_id,age,sex,AFIB,1AVB,CRBBB,sinus_rhythm"
    assert len(lines) == 41
    first = (folder / "g1" / "JS00000.hea").read_text()
    assert lines[1].split(",")[4] == str(int("164889003" in first))
    assert f"AFIB            {sum(line.split(',')[4] == '1' for line in lines[1:])}" in said["add-a-cohort"]


def test_the_five_places_of_a_source_are_where_the_page_says():
    from cure.cohorts import acquire, pack
    from cure.config import CohortConfig

    known = set(CohortConfig.model_fields["source"].annotation.__args__)
    assert known == set(acquire._SOURCES) == set(acquire._SETTINGS) == set(pack._SOURCES)
    assert known == set(paths.RAW_VARIABLES) | set(paths.GENERATED)


def test_a_figure_is_drawn_from_a_committed_table(said):
    png = (Path(said["folder"]) / "mine.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def test_the_job_is_a_valid_script_and_devices_are_understood(said):
    script = Path(said["folder"]) / "cure.sbatch"
    assert script.read_text().startswith("#!/bin/bash\n#SBATCH")
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "('cpu', 4)" in said["cluster"]


def test_own_weights_are_converted_loaded_and_pinned(said):
    text, folder = said["own-weights"], Path(said["folder"])
    assert "True ('unknown',)" in text
    assert "(160, 256)" in text
    lock = (folder / "weights.lock.yaml").read_text()
    assert "clef-small" in lock
    assert "url: by hand" in lock


# --- with stages: minutes


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A project in which a small `demo` has run as far as stage `heads`, with commands as an environment has them."""
    folder = copy(tmp_path_factory.mktemp("howto-long") / "project")
    demo = folder / "profiles" / "demo.yaml"
    text = demo.read_text()
    smaller = {
        r"max_id_500: \d+": "max_id_500: 10",
        r"n_records: 160": "n_records: 60",
        r"(?m)^  epochs: \d+": "  epochs: 1",
        r"n_simulated: \d+": "n_simulated: 200",
        r"published: \[ked, merl-vit-tiny, clef-small\]": "published: [clef-small]",
        r"n_draws: \d+": "n_draws: 200",
        r"n_permutations: \d+": "n_permutations: 100",
    }
    for old, new in smaller.items():
        text, n = re.subn(old, new, text)
        assert n, old
    demo.write_text(text)
    tools, venv = folder / "tools", folder / ".venv" / "bin"
    tools.mkdir()
    venv.mkdir(parents=True)
    (venv / "activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    # No scheduler here: the job's script is run as the shell script that it is.
    for name, line in {"cure": f'exec "{sys.executable}" -m cure.cli "$@"', "sbatch": 'exec bash "$@"'}.items():
        (tools / name).write_text(f"#!/bin/bash\n{line}\n")
        (tools / name).chmod(0o755)
    stages = " && ".join(f"cure run {stage}" for stage in ("download", "prepare", "pretrain", "embed", "heads"))
    shell(folder, f"cure clean && {stages}")
    return folder


def tools_of(folder: Path) -> str:
    return os.pathsep.join([str(folder / "tools"), str(Path(sys.executable).parent), os.environ["PATH"]])


def shell(folder: Path, text: str) -> None:
    env = {**os.environ, "PATH": tools_of(folder), "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_the_whole_page_works_with_the_stages_it_runs(base, tmp_path, page):
    folder = tmp_path / "project"
    shutil.copytree(base, folder, symlinks=True)
    text = driver(folder, "whole", page, PATH=tools_of(folder))
    expected = {
        "add-a-model": r"random\s+mean\s+logistic",
        "add-a-head": r"leadcnn\s+ssl-simulated\s+mean",
        "add-a-task": r"ssl-simulated\s+mean\s+logistic",
        "add-a-cohort": r"40 \[500\] {'AFIB': ",
        "change-a-figure": r"prevalence\.png Prevalence of the binary tasks",
        "cluster": r"\('cpu', 4\)",
        "own-weights": r"hub\s+mean\s+logistic",
    }
    assert re.search(expected[page], text), text[-3000:]
    if page == "cluster":
        assert (folder / "data/stages/demo/finetune/notebook.ipynb").is_file()

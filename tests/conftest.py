"""Shared fixtures: a small simulated PTB-XL folder, the cohort packed from it, and a project to run stages in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

from cure import config, notebooks, paths
from cure.cohorts import ptbxl, synthetic
from cure.cohorts.base import Cohort
from cure.cohorts.pack import pack

ROOT = Path(__file__).resolve().parents[1]
INFO = {"name": "small", "title": "a small cohort", "source": "synthetic", "license": "MIT", "manifest": ""}


def pack_folder(raw: Path, out: Path, scratch: Path, **settings) -> Cohort:
    """Pack every record of a folder, as stage `prepare` does."""
    files = {str(file.relative_to(raw)) for file in raw.glob("records*/*/*")}
    pack(raw, ptbxl.read_metadata(raw), ptbxl.read_statements(raw), files, INFO, out, scratch, **settings)
    return Cohort.open(out)


# A busy machine is no fault of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

#: Fixtures that take minutes.
COSTLY = ("finished", "reproduced")


def pytest_collection_modifyitems(items):
    """Tests that need a costly fixture come first: with two workers, a file each, the others run beside it."""
    items.sort(key=lambda item: not any(name in item.fixturenames for name in COSTLY))


@pytest.fixture(autouse=True)
def _environment():
    """`notebooks.run` sets the environment of its process, which in the pipeline ends with the stage. Not so here."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory) -> Path:
    """160 simulated records at 100 Hz, 20 of them also at 500 Hz, on disk as PTB-XL is. Do not write to it."""
    folder = tmp_path_factory.mktemp("raw") / "small"
    synthetic.write(folder, n_records=160, seed=1, max_id_500=20)
    return folder


@pytest.fixture
def raw_copy(raw_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(raw_folder, tmp_path / "raw"))


@pytest.fixture(scope="session")
def cohort(raw_folder, tmp_path_factory) -> Cohort:
    """The packed form of `raw_folder`."""
    folder = tmp_path_factory.mktemp("cohort")
    return pack_folder(raw_folder, folder / "small", folder / "scratch")


TINY = {
    "summary": "A cohort for tests.",
    "cohort": {"name": "tiny", "title": "320 simulated ECGs", "source": "synthetic", "split": "rotate"},
    "external": {
        "name": "other",
        "title": "120 simulated ECGs in the layout of CODE-15 %",
        "source": "synthetic-code15",
        "split": "rotate",
        "download": {"n_records": 120, "seed": 5},
    },
    "download": {"n_records": 320, "max_id_500": 10, "seed": 3},
    "prepare": {},
    "pretrain": {
        "weights": ["ssl-folds", "ssl-simulated"],
        "epochs": 1,
        "n_simulated": 200,
        "batch_size": 64,
        "families": ["contrastive", "jepa"],
        "families_epochs": 1,
    },
    "embed": {
        "encoders": ["leadcnn"],
        "seeds": [0, 1],
        "pretrained": ["ssl-folds", "ssl-simulated"],
        "published": ["clef-small"],
        "poolings": ["mean", "max"],
        "shard_size": 100,
    },
    "heads": {
        "encoders": ["leadcnn"],
        "seeds": [0, 1],
        "pretrained": ["ssl-folds", "ssl-simulated"],
        "published": ["clef-small"],
        "heads": ["logistic", "xgboost"],
        "poolings": ["mean", "max"],
        "groups": ["super"],
        "n_draws": 200,
        "n_permutations": 100,
    },
    "ablations": {
        "subjects": ["leadcnn-ssl-folds-0", "ecg-features"],
        "balanced_tasks": ["NORM", "STTC"],
        "n_draws": 200,
    },
    "protocols": {"tasks": ["CRBBB", "AFIB"], "n_xgboost": 4, "n_seeds": 2, "n_shuffled": 2, "n_draws": 200},
    "transfer": {"pretrained": ["ssl-simulated"], "heads": ["logistic"], "n_draws": 200},
    "finetune": {
        "encoder": "leadcnn",
        "weights": "ssl-folds",
        "strategies": ["linear", "full", "scratch"],
        "floors": ["resnet1d_wang"],
        "training": {kind: {"rates": [0.001], "window_s": 2.5} for kind in ("tuned", "scratch")},
        "seeds": [0],
        "epochs": 1,
        "patience": 1,
        "weight_decay": 0.02,
        "n_draws": 200,
    },
    "efficiency": {
        "fractions": [0.5, 1.0],
        "representations": ["leadcnn-ssl-folds-0", "ecg-features"],
        "heads": ["logistic"],
        "draws": 2,
        "training_draws": 1,
        "n_splits": 1,
        "trained": ["full"],
        "least_steps": 0.0,
        "n_draws": 200,
    },
    "posttrain": {
        "subjects": [{"encoder": "leadcnn", "weights": "ssl-folds", "rates": [0.001]}],
        "strategies": ["linear", "full", "preview+depth"],
        "groups": ["super"],
        "fractions": [1.0],
        "seeds": [0],
        "drop_paths": [0.0, 0.2],
        "light": ["bitfit"],
        "epochs": 1,
        "patience": 1,
        "adaptation": {"preview_epochs": 1},
        "n_draws": 200,
    },
    "leads": {
        "configurations": ["12", "1"],
        "epochs": 1,
        "tuned_epochs": 1,
        "published_configurations": ["1"],
        "cost_records": 64,
        "cost_epochs": 1,
        "n_draws": 200,
    },
    "structure": {"k": 3, "n_draws": 200},
    "probes": {"n_balanced": 20, "n_neighbors": [5], "min_dist": [0.1], "n_shuffles": 1, "n_draws": 200},
    "explain": {
        "encoder": "leadcnn",
        "weights": "ssl-folds",
        "tasks": ["CRBBB"],
        "heads": ["logistic"],
        "shap_records": 20,
        "top_k": [4, 64],
        "n_random": 1,
        "n_records": 12,
        "steps": 8,
        "n_draws": 200,
    },
    "faithfulness": {
        "encoder": "leadcnn",
        "weights": "ssl-folds",
        "tasks": ["CRBBB"],
        "n_records": 4,
        "steps": 8,
        "n_draws": 200,
    },
    "quickstart": {"encoder": "leadcnn", "weights": "ssl-folds", "task": "CRBBB", "k": 3, "steps": 8},
    "report": {},
}


#: The same with one training of each kind, for the tests that run all stages through DVC again and again. With the
#: official split, so that this is run end to end too; of fewer records most tasks would have no positive in fold 10.
SMALL = {
    **TINY,
    "cohort": {**TINY["cohort"], "title": "500 simulated ECGs", "split": "official"},
    "download": {**TINY["download"], "n_records": 500},
    "pretrain": {**TINY["pretrain"], "weights": ["ssl-simulated"], "families": []},
    "embed": {**TINY["embed"], "pretrained": ["ssl-simulated"]},
    "heads": {**TINY["heads"], "pretrained": ["ssl-simulated"], "heads": ["logistic"]},
    "finetune": {**TINY["finetune"], "weights": "ssl-simulated"},
    "ablations": {**TINY["ablations"], "subjects": ["leadcnn-ssl-simulated-0", "ecg-features"]},
    "efficiency": {**TINY["efficiency"], "representations": ["leadcnn-ssl-simulated-0", "ecg-features"], "trained": []},
    "posttrain": {
        **TINY["posttrain"],
        "subjects": [{"encoder": "leadcnn", "weights": "ssl-simulated", "rates": [0.001]}],
        "strategies": ["linear", "full"],
        "drop_paths": [],
        "light": [],
    },
    "explain": {**TINY["explain"], "weights": "ssl-simulated"},
    "faithfulness": {**TINY["faithfulness"], "weights": "ssl-simulated"},
    "quickstart": {**TINY["quickstart"], "weights": "ssl-simulated"},
}


def make_project(folder: Path, profile: dict = TINY) -> Path:
    """A copy of what the pipeline consists of, besides the package, with profile `tiny` as the only one listed."""
    for name in ("notebooks", "profiles", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for name in ("dvc.yaml", "claims.yaml", "runtime.lock", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / "cure", folder / "cure", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "params.yaml").write_text("profiles: [tiny]\n")
    (folder / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(profile))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A project in which every stage of profile `tiny` has run. Do not write to it."""
    from cure import report

    folder = make_project(tmp_path_factory.mktemp("project"))
    before, environment = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    try:
        notebooks.clean()
        for stage in config.STAGES:
            notebooks.run(stage, "tiny")
        report.render("tiny")
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project with profile `tiny`, as working directory."""
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    assert paths.root() == folder
    return folder


def dvc(folder: Path, *arguments: str, check: bool = True) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["dvc", *arguments], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> Path:
    """A git checkout in which `dvc repro` has run once on the tiny cohort."""
    folder = make_project(tmp_path_factory.mktemp("dvc"), SMALL)
    git(folder, "init", "-q")
    dvc(folder, "repro")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "reproduced")
    return folder

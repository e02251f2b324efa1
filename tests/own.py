"""A project with kept heads, for tests of them and of `cure embed` and `cure predict`."""

import shutil
from pathlib import Path

from safetensors.torch import save_file

from cure import embed, keeping, models, paths
from cure.cohorts.base import Cohort
from cure.config import check, parameters
from cure.settings.heads import HeadsConfig
from cure.splits import make_splits

#: As if stage `pretrain` had made them: what weights say does not matter here.
WEIGHTS = "leadcnn-ssl-simulated-0"


def config() -> HeadsConfig:
    return check(HeadsConfig, **{**parameters("heads", "tiny"), "pretrained": ["ssl-simulated"]})


#: A copy of what `with_heads` made first: all tests of a session ask for the same, and it takes a while.
_MADE: dict[str, Path] = {}


def with_heads(project: Path, small: Cohort, monkeypatch) -> Path:
    """Cohort, weights, embeddings and kept heads in a project's folders; returns that of the cohort."""
    one = config()
    key = str(small.folder)
    if key not in _MADE:
        _make(project, small, monkeypatch)
        _MADE[key] = Path(shutil.copytree(project / "data", small.folder.parent / "kept"))
    else:
        shutil.copytree(_MADE[key], project / "data", dirs_exist_ok=True)
    return one.cohort_folder


def _make(project: Path, small: Cohort, monkeypatch) -> None:
    one = config()
    shutil.copytree(small.folder, one.cohort_folder)
    cohort = Cohort.open(one.cohort_folder)
    encoder = models.load("leadcnn", seed=3)
    file = one.weights_folder / WEIGHTS / "all.safetensors"
    file.parent.mkdir(parents=True)
    save_file(encoder.state_dict(), file)
    scratch = project / "scratch"
    embed.extract(cohort, encoder, ["mean"], one.embeddings_folder / WEIGHTS, scratch)
    embed.extract_features(cohort, one.embeddings_folder / embed.FEATURES, scratch)
    monkeypatch.setenv(paths.STAGE, "heads")
    keeping.keep(one, cohort, make_splits(cohort.records, "rotate"))
    monkeypatch.delenv(paths.STAGE)

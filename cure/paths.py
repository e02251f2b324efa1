"""Where things live. Everything is relative to the project's root; nothing stored ever holds a machine's path."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Environment variable of each raw source: the folder of a local copy.
RAW_VARIABLES = {"ptbxl": "CURE_PTBXL_DIR", "code15": "CURE_CODE15_DIR", "wfdb": "CURE_WFDB_DIR"}
#: Sources that are simulated by stage `download`.
GENERATED = ("synthetic", "synthetic-code15")
#: Environment variable that names the pipeline stage a kernel runs for; unset in JupyterLab.
STAGE = "CURE_STAGE"


def root() -> Path:
    """Project root: the nearest folder at or above the working directory with `dvc.yaml` and `profiles/`.

    Falls back to the checkout that holds this package, so that notebooks and scripts run from anywhere.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "profiles").is_dir():
            return folder
    return Path(__file__).resolve().parents[1]


def output(path: Path, stage: str) -> Path:
    """Where `stage` writes what the pipeline keeps at `path`, a folder or file below `data/`.

    In a pipeline run that is `path`. In JupyterLab or a shell it is the same place below `data/interactive/`, so that a
    reader who changes a parameter never changes what DVC tracks.
    """
    if os.environ.get(STAGE) == stage:
        return path
    return root() / "data" / "interactive" / path.relative_to(root() / "data")


def raw(source: str, profile: str) -> Path:
    """Folder of the raw records of `source`: the one its environment variable names, else under `data/raw/`.

    Generated sources are kept per profile; a downloaded one is shared by all profiles.
    """
    if source in GENERATED:
        return root() / "data" / "raw" / f"{source}-{profile}"
    named = os.environ.get(RAW_VARIABLES[source])
    return Path(named).expanduser() if named else root() / "data" / "raw" / source


def manifest(profile: str, external: str | None = None) -> Path:
    """Content manifest of a profile's raw records, or of its second cohort's: the download stage's output."""
    name = "manifest.csv" if external is None else f"manifest-{external}.csv"
    return root() / "data" / "manifests" / profile / name


def cohort(profile: str, name: str) -> Path:
    """Packed store of one cohort."""
    return root() / "data" / "cohorts" / profile / name


def embeddings(profile: str, cohort_name: str) -> Path:
    """Embeddings of one cohort."""
    return root() / "data" / "embeddings" / profile / cohort_name


def weights(profile: str) -> Path:
    """Weights that a profile pre-trained."""
    return root() / "data" / "weights" / profile


def stage(profile: str, name: str) -> Path:
    """Tables, figures, predictions and the executed notebook of one stage: all of it a DVC output, cached."""
    return root() / "data" / "stages" / profile / name


def scratch(profile: str, name: str) -> Path:
    """Undeclared working folder of a stage, kept when the stage is interrupted so that the next run resumes there."""
    return root() / "data" / "scratch" / profile / name


def resources(profile: str) -> Path:
    """Measured time and memory of each stage. Timings differ from run to run, so DVC never hashes this folder."""
    return root() / "results" / "resources" / profile


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write a file or a folder to; rename it onto `path` on success.

    On any error the temporary is removed and what was at `path` stays as it was, so nothing half-written is ever seen.
    A file is replaced in one step; a folder in two, and put back if the second fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            # A folder cannot be renamed onto a non-empty one.
            retired = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(retired)
            try:
                temporary.rename(path)
            except OSError:
                retired.rename(path)
                raise
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)

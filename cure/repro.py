"""`dvc repro` of a single profile.

DVC reads the list of profiles from `params.yaml`, and only from there. To run another profile than those listed without
leaving a changed file behind, the list is replaced for the duration of the run and put back, also after an error or
Ctrl-C.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from cure import config, paths
from cure.errors import CureError


def repro(profile: str) -> None:
    """Run the pipeline for `profile`.

    Raises
    ------
    CureError
        For an unknown profile, when DVC is not installed, or when a stage fails (DVC has said why by then).
    """
    config.load(profile)
    for stage in config.STAGES:
        config.parameters(stage, profile)  # a mistyped setting of the last stage should not wait for the first
    dvc = shutil.which("dvc", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if dvc is None:
        raise CureError("dvc is not installed here: `make env` sets up the environment")
    with only(profile, paths.root() / "params.yaml"):
        status = subprocess.run([dvc, "repro"], cwd=paths.root(), check=False).returncode
    if status:
        raise CureError(f"`dvc repro` of profile {profile} stopped (exit status {status}); the reason is above")


@contextmanager
def only(profile: str, file: Path) -> Iterator[None]:
    """List nothing but `profile` in `params.yaml` inside the block; the file's bytes are put back afterwards."""
    before = file.read_bytes()
    if yaml.safe_load(before)["profiles"] == [profile]:
        yield
        return
    try:
        with paths.atomic(file) as part:
            part.write_text(
                f"profiles: [{profile}]  # for the length of this run; `git checkout params.yaml` restores it\n"
            )
        yield
    finally:
        with paths.atomic(file) as part:
            part.write_bytes(before)

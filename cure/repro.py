"""`dvc repro` of a single profile.

DVC reads the list of profiles from `params.yaml`, and only from there. To run another profile than those listed without
leaving a changed file behind, the list is replaced for the duration of the run and put back, also after an error or
Ctrl-C.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from cure import config, paths
from cure.course import Course, course
from cure.errors import CureError


def repro(profile: str) -> None:
    """Run the pipeline for `profile`.

    Raises
    ------
    CureError
        For an unknown profile, when DVC is not installed, when published weights that the profile asks for are not here
        or not those that are pinned, or when a stage fails (DVC has said why by then).
    """
    study = config.load(profile)
    for stage in config.STAGES:
        config.parameters(stage, profile)  # a mistyped setting of the last stage should not wait for the first
    if study.embed.get("weights") == "hub":
        _check_weights(study.embed.get("published", []))
    # Stages call `python`: that must be this one, also when its environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    dvc = shutil.which("dvc", path=path)
    if dvc is None:
        raise CureError("dvc is not installed here: `make env` sets up the environment")
    if not (paths.root() / ".git").exists():  # a downloaded archive: DVC would refuse to work outside git
        subprocess.run([dvc, "config", "--local", "core.no_scm", "true"], cwd=paths.root(), check=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with only(profile, paths.root() / "params.yaml"):
        followed = course(profile)
        status = follow([dvc, "repro"], followed, {**os.environ, "PATH": path})
    print(followed.summary(status), flush=True)
    if status:
        raise CureError(f"`dvc repro` of profile {profile} stopped (exit status {status}); the reason is above")


def _check_weights(published: list[str]) -> None:
    """Say now which weights have to be got; the stage that reads them may be hours away, and fetches none."""
    from cure.models import weights

    faults = []
    for name in published:
        try:
            weights.verify(name)
        except CureError as error:
            faults.append(str(error))
    if faults:
        raise CureError("\n  ".join(["published weights that the profile asks for cannot be used:", *faults]))


def follow(command: list[str], followed: Course, environment: dict[str, str]) -> int:
    """Run DVC, saying at each stage where it stands; returns its exit status.

    Only its standard output is read. Standard error stays what it is, mostly a terminal: stages draw their bars there.
    Ctrl-C reaches DVC too: it gets the time to stop its stage and leave its lock in order.
    """
    unbuffered = {**environment, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=paths.root(), env=unbuffered, stdout=subprocess.PIPE, text=True, errors="replace", bufsize=1
    ) as process:
        try:
            _relay(process, followed)
        except KeyboardInterrupt:
            _relay(process, followed)
            process.wait()
            print(followed.summary(130), flush=True)
            raise
        return process.wait()


def _relay(process: subprocess.Popen, followed: Course) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(followed.read(line), end="", flush=True)


@contextmanager
def only(profile: str, file: Path) -> Iterator[None]:
    """List nothing but `profile` in `params.yaml` inside the block; the file is put back afterwards.

    It waits in a sibling meanwhile, so that a run that was killed outright is put right by the next one.
    """
    kept = file.with_name(f".{file.name}.before")
    if kept.exists():
        print(f"cure: the last run was killed; {file.name} is put back as it was before")
        kept.replace(file)
    if yaml.safe_load(file.read_text())["profiles"] == [profile]:
        yield
        return
    shutil.copyfile(file, kept)
    try:
        with paths.atomic(file) as part:
            part.write_text(
                f"profiles: [{profile}]  # for the length of this run; `git checkout params.yaml` restores it\n"
            )
        yield
    finally:
        kept.replace(file)

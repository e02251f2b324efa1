"""Whether files are what they were: installed packages against their lock, outputs against `dvc.lock`, kept heads."""

import fnmatch
import hashlib
import json
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import yaml
from packaging.markers import Marker
from packaging.version import Version

from cure import paths
from cure.errors import CureError

PASS, FAIL, SKIPPED = "PASS", "FAIL", "SKIPPED"
#: Problems that a line of the report names; the rest is counted.
_NAMED = 3


class Check(NamedTuple):
    """One check of the artifact: what it looks at, its status, and what was seen."""

    name: str
    status: str
    detail: str
    seconds: float = 0.0


def some(items: list[str], n: int = _NAMED) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - n} more" if len(items) > n else ""
    return "; ".join(items[:n]) + more


def pins(lock: Path | None = None, installed: Callable[[str], str] = metadata.version) -> tuple[str, str]:
    """Compare installed packages with `runtime.lock` (or another lock).

    Packages of the lock that are not installed are not held against it (CUDA libraries on a machine without), as long
    as no direct dependency of the project is among them. Status and detail.
    """
    lock = lock or paths.root() / "runtime.lock"
    if not lock.is_file():
        return FAIL, f"{lock.name} is missing: `git checkout {lock.name}`"
    project = tomllib.loads((paths.root() / "pyproject.toml").read_text())["project"]["dependencies"]
    direct = {_bare(line) for line in project}
    wrong, same = [], 0
    for line in lock.read_text().splitlines():
        pin, _, marker = line.partition(";")
        name, _, version = pin.strip().partition("==")
        if not version or (marker.strip() and not Marker(marker.strip()).evaluate()):
            continue
        try:
            here = installed(name)
        except metadata.PackageNotFoundError:
            if _bare(name) in direct:
                wrong.append(f"{name} {version} is not installed")
            continue
        if Version(here).public == Version(version).public:
            same += 1
        else:
            wrong.append(f"{name} {here} instead of {version}")
    if wrong:
        return FAIL, f"{some(wrong)}; `make env` installs what {lock.name} pins"
    return PASS, f"{same} installed packages have the versions of {lock.name}, Python {sys.version.split()[0]}"


def _bare(requirement: str) -> str:
    name = requirement
    for mark in "<>=!~;[ ":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-")


# --- hashes -----------------------------------------------------------------------------------------------------------


def folder_md5(folder: Path, root: Path | None = None) -> str:
    """DVC's hash of a folder: MD5 of the sorted list of its files and their MD5, without what `.dvcignore` names."""
    root = root or paths.root()
    entries = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not _ignored(file, root):
            with file.open("rb") as stream:
                md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            entries.append({"md5": md5, "relpath": file.relative_to(folder).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _ignored(file: Path, root: Path) -> bool:
    rules = root / ".dvcignore"
    lines = rules.read_text().splitlines() if rules.is_file() else []
    path = "/" + file.relative_to(root).as_posix()
    return any(line.startswith("/") and fnmatch.fnmatchcase(path, line.strip()) for line in lines)


def locked(profile: str, root: Path | None = None) -> dict[str, str]:
    """Outputs of a profile in `dvc.lock`: path -> hash."""
    file = (root or paths.root()) / "dvc.lock"
    if not file.is_file():
        return {}
    stages = (yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages", {})  # noqa: S506
    return {
        out["path"]: out["md5"]
        for name, stage in stages.items()
        if name.partition("@")[2] == profile
        for out in stage.get("outs", [])
    }


def hashes(profile: str, root: Path | None = None) -> Iterator[Check]:
    """Compare every output that `dvc.lock` records with the files: shipped ones must be there, `data/` may be."""
    root = root or paths.root()
    found = locked(profile, root)
    if not found:
        yield Check("hashes", SKIPPED, f"dvc.lock has no profile {profile}: `cure repro --profile {profile}` makes it")
        return
    inside, missing, start = [], [], time.perf_counter()
    for path, md5 in sorted(found.items()):
        shipped = not path.startswith("data/")
        if not (root / path).exists():
            if shipped:
                yield Check(f"hash of {path}", FAIL, f"it is not there: `git checkout {path}` or `cure repro`")
            else:
                missing.append(path)
            continue
        same = folder_md5(root / path, root) == md5
        if shipped or not same:
            detail = "as in dvc.lock" if same else "differs from dvc.lock: a file was changed, added or removed"
            seconds = round(time.perf_counter() - start, 1)
            yield Check(f"hash of {path}", PASS if same else FAIL, detail, seconds)
            start = time.perf_counter()
        else:
            inside.append(path)
    if inside:
        yield Check("hashes of data/", PASS, f"{len(inside)} outputs as in dvc.lock")
    if missing:
        again = f"`cure repro --profile {profile}` makes them"
        yield Check("hashes of data/", SKIPPED, f"{len(missing)} outputs are not here ({some(missing)}); {again}")


def kept_heads(profile: str) -> tuple[str, str]:
    """Load every head that was kept: cards and files are hashed."""
    from cure import kept

    folder = kept.folder_of(profile)
    if not folder.is_dir():
        return SKIPPED, f"no heads are kept here: `cure repro --profile {profile}` makes them"
    wrong, n = [], 0
    try:
        for representation, head, task in kept.available(folder):
            n += 1
            try:
                kept.load(folder, representation, head, task)
            except CureError as error:
                wrong.append(str(error))
    except CureError as error:
        wrong.append(str(error))
    return (FAIL, some(wrong)) if wrong else (PASS, f"{n} heads load, their files have the hashes of their cards")

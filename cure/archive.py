"""The bundle for a DOI archive, and its check: a tar file that is the same, byte for byte, each time it is made.

It holds what is in git (code, locks, notebooks, claims) and what one profile shows: tables, predictions, figures,
executed notebooks, site, measured times. `SHA256SUMS` lists every file, `ARCHIVE.json` says of which profile, version
and commit.
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from pathlib import Path, PurePosixPath

from cure import config, paths, verify
from cure.errors import CureError
from cure.integrity import FAIL, Check, some
from cure.progress import progress

#: 2026-01-01, as everywhere: the time of every file in the bundle.
EPOCH = 1767225600
SUMS, ABOUT = "SHA256SUMS", "ARCHIVE.json"
#: What a profile shows; folders of other profiles are left out.
SHOWN = ("tables", "figures", "results/predictions", "results/resources", "reports", "site")
#: Working files that a source tree without git may hold.
_LEFT_OUT = re.compile(
    r"(^|/)(\.git|\.venv|__pycache__|\.dvc/(cache|tmp)|[^/]*\.egg-info|\.[a-z]+_cache|\.ipynb_checkpoints)(/|$)"
)
#: More than a bundle can hold: a check that unpacks must not fill a disk.
_LARGEST = 8 * 2**30


def make(profile: str, out: Path | None = None) -> Path:
    """Write the bundle of a profile.

    Parameters
    ----------
    profile : str
    out : Path, optional
        By default `cure-<version>-<profile>.tar` in the working directory.

    Raises
    ------
    CureError
        For an unknown profile, one whose results are not here, or a file that git knows and that is gone.
    """
    config.load(profile)
    root = paths.root()
    missing = [f"{kind}/{profile}" for kind in SHOWN if not (root / kind / profile).is_dir()]
    if missing:
        raise CureError(f"nothing to bundle: {some(missing)} is not there; `cure repro --profile {profile}` makes it")
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    top = f"cure-{version}-{profile}"
    out = out or Path(f"{top}.tar")
    about = {"profile": profile, "version": version, **_commit(root)}
    files = {name: root / name for name in _files(root, profile) if (root / name).resolve() != out.resolve()}
    if gone := [name for name, file in files.items() if not file.is_file()]:
        raise CureError(f"{some(gone)} is in git but not here: `git checkout -- {gone[0]}` brings it back")
    sums = {ABOUT: (json.dumps(about, indent=1) + "\n").encode()}
    lines = [f"{hashlib.sha256(sums[ABOUT]).hexdigest()}  {ABOUT}"]
    with paths.atomic(out) as part, tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in progress(sorted([*files, ABOUT]), desc=out.name, unit="file"):
            blob = sums[name] if name in sums else files[name].read_bytes()
            if name not in sums:
                lines.append(f"{hashlib.sha256(blob).hexdigest()}  {name}")
            executable = name in files and bool(files[name].stat().st_mode & 0o100)
            _add(tar, f"{top}/{name}", blob, executable)
        listed = sorted(lines, key=lambda line: line.split("  ", 1)[1])
        _add(tar, f"{top}/{SUMS}", ("\n".join(listed) + "\n").encode(), False)
    return out


def _add(tar: tarfile.TarFile, name: str, blob: bytes, executable: bool) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(blob), EPOCH, 0o755 if executable else 0o644
    tar.addfile(member, io.BytesIO(blob))


def _files(root: Path, profile: str) -> list[str]:
    """Files of the bundle: what git tracks, or without git what lies here, and what the profile shows."""
    git = _git(root, "ls-files", "-z")
    if git is not None:
        names = [name for name in git.split("\0") if name]
    else:
        every = (file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        names = [name for name in every if not name.startswith("data/") and not _LEFT_OUT.search(name)]
        names += ["data/README.md"] if (root / "data" / "README.md").is_file() else []
    names = [name for name in names if not name.startswith(tuple(f"{kind}/" for kind in SHOWN))]
    shown = [
        file.relative_to(root).as_posix()
        for kind in SHOWN
        for file in (root / kind / profile).rglob("*")
        if file.is_file()
    ]
    return sorted({*names, *shown} - {SUMS, ABOUT})


def _commit(root: Path) -> dict[str, str | bool]:
    """Commit of the working tree, and whether it was changed since."""
    head, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    if head is None:
        about = root / ABOUT  # an unpacked bundle stays what it was
        return {k: v for k, v in json.loads(about.read_text()).items() if k == "commit"} if about.is_file() else {}
    return {"commit": head.strip(), "changed": bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout if done.returncode == 0 else None


# --- checking ----------------------------------------------------------------------------------------------------


def check(file: Path) -> list[Check]:
    """Unpack a bundle aside, compare its checksums, and make its tables and figures again from what is in it.

    The code that does so is this installation's: nothing of the bundle is run.

    Raises
    ------
    CureError
        If the file is no bundle, is damaged, or holds something that must not be unpacked (an absolute path, one that
        climbs out, a link, a device): then nothing is unpacked.
    """
    if not file.is_file():
        raise CureError(f"there is no file {file}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(file, Path(temporary))
        about = _about(folder, file)
        wrong = checksums(folder)
        if wrong:
            return [Check("checksums", FAIL, some(wrong))]
        n = sum(each.is_file() for each in folder.rglob("*"))
        checks = [Check("checksums", "PASS", f"{n} files as {SUMS} lists them, {about['profile']}, {about['version']}")]
        return checks + list(verify.replayed(about["profile"], folder))


def unpack(file: Path, target: Path) -> Path:
    """Unpack a bundle into an empty folder; returns its one top folder. Errors as in `check`."""
    try:
        with tarfile.open(file, "r:") as tar:
            members = tar.getmembers()
            tops = {_safe(member, file) for member in members}
            names = [member.name for member in members]
            if len(tops) != 1 or len(set(names)) != len(names):
                raise CureError(f"{file.name} is no bundle: it needs one top folder and no file twice")
            if sum(member.size for member in members) > _LARGEST:
                raise CureError(f"{file.name} is larger than any bundle: it is not unpacked")
            if hasattr(tarfile, "data_filter"):
                tar.extractall(target, members=members, filter="data")
            else:  # Python before 3.11.4; `_safe` let only regular files with plain names through
                tar.extractall(target, members=members)  # noqa: S202
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CureError(f"{file.name} cannot be read as a bundle: {error}") from error
    return target / tops.pop()


def _safe(member: tarfile.TarInfo, file: Path) -> str:
    """Top folder of a member that may be unpacked."""
    path = PurePosixPath(member.name)
    odd = path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in path.parts[0] or len(path.parts) < 2
    if odd or not member.isreg():
        raise CureError(f"{file.name} holds {member.name!r}, which must not be unpacked: nothing was")
    return path.parts[0]


def _about(folder: Path, file: Path) -> dict[str, str]:
    try:
        about = json.loads((folder / ABOUT).read_text())
        config.load(about["profile"])
        return {"profile": str(about["profile"]), "version": str(about["version"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CureError(f"{file.name} has no valid {ABOUT}: {error}") from error


def checksums(folder: Path) -> list[str]:
    """What differs from `SHA256SUMS`: changed, missing and unlisted files, a line each."""
    sums = folder / SUMS
    if not sums.is_file():
        return [f"{SUMS} is missing"]
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in sums.read_text().splitlines())}
    there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file() and file != sums}
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - there.keys())]
    wrong += [f"{name} is not listed" for name in sorted(there.keys() - listed.keys())]
    for name in sorted(listed.keys() & there.keys()):
        with there[name].open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != listed[name]:
                wrong.append(f"{name} was changed")
    return wrong


# --- commands ----------------------------------------------------------------------------------------------------


def main_make(profile: str, out: Path | None) -> None:
    """`cure archive`: make the bundle and say what it is."""
    file = make(profile, out)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    print(f"{file}: {file.stat().st_size / 1e6:.0f} MB, SHA-256 {digest}")
    print(f"`cure archive --check {file}` checks it")


def main_check(file: Path) -> None:
    """`cure archive --check`: print what was found.

    Raises
    ------
    CureError
        If a check failed.
    """
    checks = check(file)
    print(verify.report(checks))
    if failed := [one.name for one in checks if one.status == FAIL]:
        raise CureError(f"{file.name}: {len(failed)} of {len(checks)} checks failed: {some(failed)}")

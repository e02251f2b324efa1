"""Which records lie below the paths that a user names."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cure.errors import CureError

#: Format of a file by its extension, in lower case. A WFDB record is found by its header.
FORMATS = {
    ".hea": "wfdb",
    ".csv": "csv",
    ".tsv": "csv",
    ".edf": "edf",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".npy": "numpy",
    ".npz": "numpy",
}
#: Signal files of WFDB, which their header stands for.
_SIGNALS = {".dat", ".mat"}
#: DICOM files often have no extension: these four bytes stand behind a preamble of 128.
_DICOM = b"DICM"


@dataclass(frozen=True)
class Item:
    """A record that is to be read.

    Attributes
    ----------
    path : Path
        Its file, as it was reached from what the user named.
    format : str
        A value of `FORMATS`.
    index : int or None
        Which of the records that a stacked array holds.
    """

    path: Path
    format: str
    index: int | None = None

    @property
    def name(self) -> str:
        """What the output calls it."""
        return self.path.as_posix() + ("" if self.index is None else f"#{self.index}")


def find(paths: Iterable[Path], formats: Iterable[str] | None = None) -> list[Item]:
    """All records of files and folders, in the order of the paths, those of a folder by name, none twice.

    A folder is searched with all folders below it, but for hidden ones; files of other kinds are passed over. A `.npy`
    of three dimensions is as many records as its first axis has.

    Parameters
    ----------
    paths : iterable of Path
        Files, folders, or WFDB records without extension.
    formats : iterable of str, optional
        Only these, values of `FORMATS`.

    Raises
    ------
    CureError
        If a path is not there, a file is of no known format, or nothing is found.
    """
    wanted, paths = set(formats or FORMATS.values()), list(paths)
    files: dict[Path, str] = {}
    for path in paths:
        for file, kind in _files(path):
            if kind in wanted:
                files.setdefault(file, kind)
    items = [item for file, kind in files.items() for item in _items(file, kind)]
    if not items:
        raise CureError(f"no record of {_or(sorted(wanted))} at {', '.join(map(str, paths))}")
    return items


def stamp(items: list[Item]) -> str:
    """SHA-256 over names, sizes and times of the records' files: other records, or changed ones, have another."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.name}\n".encode())
        for suffix in (item.path.suffix, *sorted(_SIGNALS), ".json"):
            file = item.path.with_suffix(suffix)
            if file.is_file():
                about = file.stat()
                digest.update(f"{suffix} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            kind = None if hidden else _format(file)
            if kind and file.is_file():
                yield file, kind
        return
    header = path.with_name(f"{path.name}.hea")
    if path.suffix.lower() in _SIGNALS:
        header = path.with_suffix(".hea")
    kind = _format(path) if path.is_file() else None
    if kind:
        yield path, kind
    elif header.is_file():
        yield header, "wfdb"
    elif path.exists():
        raise CureError(f"{path} is of no known format: {_or(sorted(FORMATS))}, or a WFDB record by its name")
    else:
        raise CureError(f"{path} is not there")


def _format(path: Path) -> str | None:
    if path.suffix:
        return FORMATS.get(path.suffix.lower())
    try:
        with path.open("rb") as stream:
            return "dicom" if stream.read(132)[128:] == _DICOM else None
    except OSError:
        return None


def _items(file: Path, kind: str) -> list[Item]:
    if file.suffix.lower() == ".npy":
        try:
            shape = np.load(file, mmap_mode="r").shape
        except (ValueError, OSError, EOFError):  # damaged: the reader says so
            shape = ()
        if len(shape) == 3:
            return [Item(file, kind, i) for i in range(shape[0])]
    return [Item(file, kind)]


def _or(names: list[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else names[0]

"""Resumable work: compute an array job in shards, each one file, so that an interrupted run goes on where it was."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import joblib
import numpy as np

from cure.paths import atomic, root
from cure.progress import counted

Arrays = dict[str, np.ndarray]


def fingerprint(*parts: object) -> str:
    """Short SHA-256 of anything JSON can hold, and of this package's code and its pinned packages.

    Two jobs share shards only if all that decides their result is equal: shards made before an edit are not taken up
    after it.
    """
    return hashlib.sha256(json.dumps([*parts, _code()], sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def _code() -> str:
    files = [*sorted(Path(__file__).parent.rglob("*.py")), root() / "runtime.lock"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


def compute_shards(
    folder: Path, n: int, size: int, compute: Callable[[np.ndarray], Arrays], *, desc: str, n_jobs: int = 1
) -> list[Path]:
    """Apply `compute` to rows `0..n-1` in shards of `size`; shard i of N is the file `i-of-N.npz`.

    A shard that is there is not computed again: it is written aside and renamed, so a shard that exists is whole.
    `folder` must name the job (see `fingerprint`): other inputs, other folder.

    Parameters
    ----------
    folder : Path
        Scratch folder of this very job.
    n, size : int
        Number of rows, each of which is a record; rows per shard.
    compute : callable
        Takes an int array of row positions, returns named arrays. With `n_jobs > 1` it must be picklable.
    desc : str
        What the progress bar says, before records/s and the time left.
    n_jobs : int
        Worker processes; the result does not depend on it.

    Returns
    -------
    list of Path
        The shard files in row order; read them with `numpy.load`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    files = [folder / f"{i:05d}-of-{len(pieces):05d}.npz" for i in range(len(pieces))]
    missing = [(file, rows) for file, rows in zip(files, pieces, strict=True) if not file.exists()]
    jobs = (joblib.delayed(_one)(file, rows, compute) for file, rows in missing)
    done = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
    for _ in counted(done, [len(rows) for _, rows in missing], desc, n, "record"):
        continue
    return files


def _one(file: Path, rows: np.ndarray, compute: Callable[[np.ndarray], Arrays]) -> None:
    arrays = compute(rows)
    with atomic(file) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]

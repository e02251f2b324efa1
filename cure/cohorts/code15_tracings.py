"""The HDF5 files of CODE-15 %: what a row holds, read into digital samples with a reason where it is unusable."""

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from cure.download import few
from cure.errors import CureError
from cure.shards import Arrays
from cure.signals import LEADS

DOI = "10.5281/zenodo.4916206"
FS = 400
N_SAMPLES = 4096
#: A shorter exam holds too few beats for what is measured here.
MIN_SECONDS = 5
PADDING = "padding row of a file (exam 0), no exam"
#: Largest value that is stored, in units of 1 uV: 32.767 mV.
_RAIL = 32767


@contextmanager
def unpacked(file: Path, scratch: Path) -> Iterator[Path]:
    """The HDF5 file of a part; of a zip, a copy in `scratch` that is removed afterwards."""
    if file.suffix == ".hdf5":
        yield file
        return
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"{file.stem}.hdf5"
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.endswith(".hdf5")]
            if len(inside) != 1:
                raise CureError(f"{file} holds {few(archive.namelist())}, expected one .hdf5 file: get it again.")
            with archive.open(inside[0]) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        yield path
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CureError(f"{file} is damaged: {error}. Delete it and run the download stage again.") from error
    finally:
        path.unlink(missing_ok=True)


def read_ids(path: Path) -> np.ndarray:
    """Exam ids of a part, after a check that the file is what it should be."""
    again = f"Get this part again from doi:{DOI}."
    try:
        with h5py.File(path) as file:
            ids, tracings = file["exam_id"], file["tracings"]
            if ids.ndim != 1 or tracings.shape != (len(ids), N_SAMPLES, len(LEADS)) or tracings.dtype.kind != "f":
                raise CureError(
                    f"{path.name}: `tracings` is {tracings.dtype} {tracings.shape} for {ids.shape} ids, expected "
                    f"float32 (n, {N_SAMPLES}, {len(LEADS)}). {again}"
                )
            return ids[:].astype(np.int64)
    except (OSError, KeyError) as error:
        raise CureError(
            f"{path.name} is damaged or no HDF5 file with `exam_id` and `tracings`: {error}. {again}"
        ) from error


def read_chunk(path: Path, rows: np.ndarray) -> Arrays:
    """Read some rows of a part: digital samples, where they are valid, a reason where unusable, and quality."""
    part = slice(rows[0], rows[-1] + 1)
    try:
        with h5py.File(path) as file:
            x, ids = file["tracings"][part].astype(np.float32, copy=False), file["exam_id"][part].astype(np.int64)
    except OSError as error:
        raise CureError(f"{path.name} is damaged: {error}. Get this part again from doi:{DOI}.") from error
    written = (x != 0).any(axis=2)
    start = written.argmax(axis=1)
    n_valid = np.where(written.any(axis=1), N_SAMPLES - written[:, ::-1].argmax(axis=1) - start, 0)
    invalid = ~np.isfinite(x).all(axis=(1, 2))
    x *= 1000  # mV to the stored unit
    np.nan_to_num(x, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    np.rint(x, out=x)
    n_clipped = ((x > _RAIL) | (x < -_RAIL)).sum(axis=(1, 2))
    np.clip(x, -_RAIL, _RAIL, out=x)
    signals = np.ascontiguousarray(x.astype(np.int16).transpose(0, 2, 1))
    at = np.arange(N_SAMPLES)
    valid = ((at >= start[:, None]) & (at < (start + n_valid)[:, None]))[:, None]
    highest = signals.max(axis=2, where=valid, initial=-_RAIL).astype(np.int32)
    lowest = signals.min(axis=2, where=valid, initial=_RAIL).astype(np.int32)
    flat = (highest <= lowest).sum(axis=1)
    reason = np.full(len(rows), "", dtype="U60")
    for fault, text in (
        ((ids == 0) & (n_valid == 0), PADDING),
        (invalid, "invalid (NaN or infinite) samples"),
        (n_valid == 0, "all samples are zero"),
        (n_valid < MIN_SECONDS * FS, f"shorter than {MIN_SECONDS} s"),
        (flat == len(LEADS), "all leads flat"),
    ):
        reason[fault & (reason == "")] = text
    ends = start + n_valid
    digests = [hashlib.blake2b(signals[i, :, start[i] : ends[i]].tobytes(), digest_size=16) for i in range(len(rows))]
    return {
        "signals": signals,
        "exam_id": ids,
        "start": start.astype(np.int32),
        "n_valid": n_valid.astype(np.int32),
        "reason": reason,
        "n_flat_leads": flat.astype(np.int8),
        "clipped_share": (n_clipped / np.maximum(n_valid * len(LEADS), 1)).astype(np.float32),
        "range": highest - lowest,
        "tracing": np.array([digest.hexdigest() for digest in digests]),
    }

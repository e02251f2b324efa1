"""CODE-15 %: 345,779 exams of 233,770 patients in 18 HDF5 files, from Zenodo or from a local copy, whole or partial.

Ribeiro et al. 2021, doi:10.5281/zenodo.4916206, CC BY 4.0. What the files are like, and what is done about it:

* A row of `tracings` is 4,096 samples at 400 Hz with the exam in the middle and zeros on both sides: `start` and
  `n_valid` say which samples are the exam's. They are found as the first and last sample that is not zero in every
  lead, so an exam that begins on an exact zero in all leads loses that sample.
* A file may end in rows of exam 0, which are no exams; some exams are all zero, some shorter than 5 s (`MIN_SECONDS`),
  some the same tracing (in whole microvolts) as another exam, even of another patient. Each is left out and counted. Of
  equal tracings the one with the lowest exam_id stays; this happens before folds are drawn, so that no tracing lies on
  two sides of a split.
* **Amplitude scale.** The record on Zenodo names no unit. The authors' code says both that the values are "at the scale
  1e-4V" and that volts are to be multiplied by 1000, which is millivolts. One unit is stored as 1 mV, nothing is
  rescaled, and `cohort.json` says so, with the median range of each lead beside it. Compare that range with another
  cohort's before comparing amplitudes.
* Labels are not PTB-XL's: CODE's RBBB and LBBB do not say "complete", so CRBBB and CLBBB stand for somewhat broader
  classes here, and an exam with none of the seven labels has some other finding.
* Leads have the standard order, that of `cure.signals.LEADS`.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import requests
import wfdb

from cure.cohorts.code15_tracings import DOI, FS, PADDING, read_chunk, read_ids, unpacked
from cure.cohorts.store import write_store
from cure.cohorts.synthetic import STATEMENTS, folds
from cure.download import fetch, few, manifest
from cure.errors import CureError
from cure.paths import RAW_VARIABLES, atomic
from cure.settings.download import DownloadConfig
from cure.settings.prepare import PrepareConfig
from cure.shards import compute_shards, fingerprint
from cure.signals import LEADS

FILES_URL = "https://zenodo.org/records/4916206/files/"
RECORD_URL = "https://zenodo.org/api/records/4916206"
LICENSE = "CC BY 4.0"

EXAMS = "exams.csv"
N_PARTS = 18
#: CODE's label -> PTB-XL's statement.
CODES = {
    "normal_ecg": "NORM",
    "1dAVb": "1AVB",
    "RBBB": "CRBBB",
    "LBBB": "CLBBB",
    "SB": "SBRAD",
    "ST": "STACH",
    "AF": "AFIB",
}
COLUMNS = ("exam_id", "patient_id", "age", "is_male", "trace_file", *CODES)
SCALE = "one unit of `tracings` is stored as 1 mV; the source names no unit, and nothing is rescaled"

#: Rows of a part that pay for starting worker processes.
_WORTH_WORKERS = 2000
#: Rows read at a time in search of one to show: 30 MB.
_LOOK = 64
_PART = re.compile(r"exams_part(\d+)\.(hdf5|zip)")
_VARIABLE = RAW_VARIABLES["code15"]
_TWICE = "same tracing as another exam"
#: Reasons that are a property of the published files, however good the copy: they never stop the stage.
_EXPECTED = (PADDING, _TWICE)


# --- files


def acquire(folder: Path, config: DownloadConfig) -> pd.DataFrame:
    """Make `exams.csv` and the chosen parts available in `folder` and return the manifest of their contents.

    A part is `exams_part<i>.hdf5`, or `exams_part<i>.zip` as Zenodo has it, which stays packed: stage `prepare` unpacks
    one at a time. What is in `folder` is used as it is. What is missing is downloaded, if `config.fetch`, and compared
    with the MD5 that Zenodo publishes; where its record cannot be reached for that, only the manifest's SHA-256 holds
    the contents fast. Without `config.fetch` an absent part makes a smaller cohort, unless `config.parts` lists it.

    Parameters
    ----------
    folder : Path
        With `fetch` it may be empty or not exist yet.
    config : DownloadConfig
        `parts` and `fetch`.

    Returns
    -------
    DataFrame
        `path, size, sha256`.

    Raises
    ------
    CureError
        Another folder, no part at all, a listed part that is not there, or a download that failed (run it again: it
        continues).
    """
    parts = range(N_PARTS) if config.parts is None else sorted(set(config.parts))
    names = {part: _find(folder, part) for part in parts}
    absent = [f"exams_part{part}.zip" for part, name in names.items() if name is None]
    missing = [] if (folder / EXAMS).is_file() else [EXAMS]
    if config.fetch and missing + absent:
        _download(folder, missing + absent)
        names = {part: _find(folder, part) for part in parts}
    elif missing or len(absent) == len(names) or (absent and config.parts is not None):
        raise CureError(
            f"{folder} holds no {few(missing or absent)}: it is no folder of CODE-15 %. Set {_VARIABLE} to the folder "
            f"with {EXAMS} and exams_part0.hdf5 (or .zip) and so on, or set `fetch: true` under `download` in the "
            "profile to get them from Zenodo, or correct `parts` there."
        )
    return manifest(folder, [EXAMS, *(name for name in names.values() if name)])


def _find(folder: Path, part: int) -> str | None:
    names = (f"exams_part{part}.{end}" for end in ("hdf5", "zip"))
    return next((name for name in names if (folder / name).is_file()), None)


def _download(folder: Path, names: list[str]) -> None:
    others = [path.name for path in folder.glob("[!.]*")] if folder.is_dir() else []
    if others and not any(name.startswith("exams") for name in others):
        raise CureError(
            f"{folder} is neither empty nor a folder of CODE-15 % (it holds {few(sorted(others))}): nothing was "
            f"downloaded into it. Set {_VARIABLE} to another folder, or unset it to use data/raw/."
        )
    sums = published_sums()
    fetch(FILES_URL, {name: sums.get(name) for name in names}, folder)


def published_sums() -> dict[str, str]:
    """File name -> `md5:<hex>` from Zenodo's record; empty where the record cannot be reached or read."""
    try:
        reply = requests.get(RECORD_URL, timeout=60)
        reply.raise_for_status()
        sums = {str(file["key"]): str(file["checksum"]) for file in reply.json()["files"]}
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in sums.items() if re.fullmatch("md5:[0-9a-f]{32}", value)}


def first_record(folder: Path, names: Iterable[str], scratch: Path) -> wfdb.Record:
    """Read the first exam that is usable and in `exams.csv`, without its padding.

    Parameters
    ----------
    folder : Path
    names : iterable of str
        Relative paths of the study: the manifest's.
    scratch : Path
        Where a zip is unpacked.

    Returns
    -------
    wfdb.Record
        `p_signal` (n_valid, 12) in mV.

    Raises
    ------
    CureError
        If no part holds such an exam.
    """
    parts = sorted((_part(name), name) for name in names if _PART.fullmatch(name))
    known = read_exams(folder).index
    for number, name in parts:
        with unpacked(folder / name, scratch) as path:
            n = len(read_ids(path))
            for first in range(0, n, _LOOK):
                chunk = read_chunk(path, np.arange(first, min(first + _LOOK, n)))
                usable = np.flatnonzero((chunk["reason"] == "") & np.isin(chunk["exam_id"], known))
                if not len(usable):
                    continue
                i = usable[0]
                valid = slice(chunk["start"][i], chunk["start"][i] + chunk["n_valid"][i])
                return wfdb.Record(
                    record_name=f"exams_part{number}, exam {chunk['exam_id'][i]}",
                    fs=FS,
                    sig_name=list(LEADS),
                    p_signal=chunk["signals"][i, :, valid].T / 1000,
                )
    raise CureError(
        f"{folder}: no exam of {few(name for _, name in parts)} is usable and in {EXAMS}. Get the files again from "
        f"doi:{DOI}."
    )


# --- exams.csv


def read_exams(folder: Path) -> pd.DataFrame:
    """Read and check `exams.csv`.

    Returns
    -------
    DataFrame
        Indexed by `exam_id`: `patient_id` (int64), `age` in years (float32, NaN where it is not within 0 to 120),
        `is_male` and the labels (bool), `trace_file`.

    Raises
    ------
    CureError
        A column is missing, an exam is listed twice, or a value cannot be what it should be.
    """
    where = folder / EXAMS
    try:
        exams = pd.read_csv(where, low_memory=False)
    except (OSError, ValueError) as error:
        raise CureError(f"{where} cannot be read: {error}. Get it again from doi:{DOI}.") from error
    if missing := [name for name in COLUMNS if name not in exams]:
        raise CureError(f"{where} has no column {few(missing)}. Get it again from doi:{DOI}.")
    exams = exams[list(COLUMNS)]
    for name in ("exam_id", "patient_id"):
        numbers = pd.to_numeric(exams[name], errors="coerce")
        _refuse(where, f"{name} is not a whole number", exams["exam_id"][numbers.isna() | (numbers % 1 != 0)])
        exams = exams.assign(**{name: numbers.astype("int64")})
    _refuse(where, "exam_id occurs twice", exams["exam_id"][exams["exam_id"].duplicated()])
    for name in ("is_male", *CODES):
        flags = exams[name].astype(str).str.lower().map({"true": True, "false": False, "1": True, "0": False})
        _refuse(where, f"{name} is neither true nor false", exams["exam_id"][flags.isna()])
        exams = exams.assign(**{name: flags.astype(bool)})
    age = pd.to_numeric(exams["age"], errors="coerce").astype("float32")
    return exams.assign(age=age.where(age.between(0, 120))).set_index("exam_id")


def _refuse(where: Path, fault: str, exams: pd.Series) -> None:
    if len(exams):
        raise CureError(
            f"{where}: {fault} in {len(exams):,} row(s), exam_id {few(exams)}. Get it again from doi:{DOI}."
        )


# --- tracings


def pack_raw(raw: Path, files: set[str], info: dict, out: Path, scratch: Path, config: PrepareConfig) -> None:
    """Read the parts among `files` and write the store to `out`, all or nothing.

    Bounds, whatever the size of the cohort: about 0.5 MB of memory per exam of a chunk and worker (130 MB for a chunk
    of 256); on disk, beside the raw files, one part unpacked at a time (4 GB) and the signals once (34 GB for all 18
    parts: a finished chunk is deleted when it has been copied into the store). An interrupted run goes on behind the
    last finished chunk; only what was already copied is read again.

    Parameters
    ----------
    raw, files, info, out, scratch
        As `cure.cohorts.pack.pack` takes them.
    config : PrepareConfig
        `chunk_size` and `max_excluded`; repeated tracings and rows that are no exams do not count for the latter.

    Raises
    ------
    CureError
        A damaged part, one of another form, or too many unusable exams.
    """
    exams, parts = read_exams(raw), sorted(name for name in files if _PART.fullmatch(name))
    if not parts:
        raise CureError(f"no part of CODE-15 % in the manifest of {info['name']}: run the download stage again")
    shards = [
        shard for name in sorted(parts, key=_part) for shard in _read_part(raw / name, info, scratch, config.chunk_size)
    ]
    table = pd.concat([_quality(shard) for shard in shards], ignore_index=True)
    table["reason"], table["detail"] = _judge(table, exams)
    usable = (table["reason"] == "").to_numpy()
    stems = {f"exams_part{_part(name)}.hdf5" for name in parts}
    lost = exams.index[exams["trace_file"].isin(stems) & ~exams.index.isin(table["exam_id"])]
    absent = pd.DataFrame({"exam_id": lost, "reason": f"in {EXAMS}, not in its part", "detail": ""})
    excluded = pd.concat([table.loc[~usable, ["exam_id", "reason", "detail"]], absent], ignore_index=True)
    excluded = excluded.rename(columns={"exam_id": "record_id"})
    _check_share(excluded, len(table) + len(absent), info["name"], config)
    records = _records(table[usable], exams)
    about = {
        **info,
        **({"doi": DOI, "scale": SCALE} if info["source"] == "code15" else {"scale": "simulated in mV"}),
        "median_range_mv": _median_range(shards, usable),
        "parts": sorted(map(_part, parts)),
        "excluded": {str(reason): int(n) for reason, n in excluded["reason"].value_counts().sort_index().items()},
        "n_clipped": int((records["clipped_share"] > 0).sum()),
        "n_age_unknown": int(records["age"].isna().sum()),
    }
    signals = {FS: (np.ones(len(records), dtype=bool), _chosen(shards, usable))}
    write_store(out, records, excluded, _statements(), about, signals)
    shutil.rmtree(scratch)


def _part(name: str) -> int:
    match = _PART.fullmatch(name)
    if match is None:
        raise CureError(f"{name} is no part of CODE-15 %: expected exams_part<number>.hdf5 or .zip")
    return int(match[1])


def _read_part(file: Path, info: dict, scratch: Path, chunk_size: int) -> list[Path]:
    """Chunks of one part, computed where they are not there yet; a zip is unpacked only for that."""
    folder = scratch / f"part{_part(file.name)}-{fingerprint(info, file.name, chunk_size)}"
    count = folder / "rows.txt"
    if count.is_file():
        done = sorted(folder.glob("*.npz"))
        if len(done) == -(-int(count.read_text()) // chunk_size):
            return done
    with unpacked(file, scratch) as path:
        n = len(read_ids(path))
        job = partial(read_chunk, path)
        n_jobs = joblib.cpu_count() if n >= _WORTH_WORKERS else 1
        shards = compute_shards(folder, n, chunk_size, job, desc=f"read {file.stem}", n_jobs=n_jobs)
    with atomic(count) as temporary:
        temporary.write_text(str(n))
    return shards


def _quality(shard: Path) -> pd.DataFrame:
    """Everything of a chunk but its signals, one row per exam."""
    with np.load(shard) as arrays:
        return pd.DataFrame({name: arrays[name] for name in arrays if name not in ("signals", "range")})


def _judge(table: pd.DataFrame, exams: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Reason and detail of every row: those of the reading, then what only all parts together show."""
    reason, detail = table["reason"].astype(object), pd.Series("", index=table.index)
    reason[(reason == "") & ~table["exam_id"].isin(exams.index)] = f"not in {EXAMS}: no labels, no patient"
    reason[(reason == "") & table["exam_id"].where(reason == "").duplicated()] = "exam_id occurs again"
    good = table[reason == ""].sort_values("exam_id", kind="stable")
    first = good.groupby("tracing")["exam_id"].transform("first")
    again = good.index[good["exam_id"] != first]
    patient = exams["patient_id"]
    reason[again] = _TWICE
    detail[again] = [f"exam {exam} of patient {patient[exam]}" for exam in first[again]]
    return reason, detail


def _check_share(excluded: pd.DataFrame, n: int, name: str, config: PrepareConfig) -> None:
    unusable = excluded[~excluded["reason"].isin(_EXPECTED)]
    if len(unusable) > config.max_excluded * n:
        shown = "; ".join(f"{reason}: {count:,}" for reason, count in unusable["reason"].value_counts().items())
        raise CureError(
            f"{len(unusable):,} of {n:,} exams of {name} cannot be used, more than max_excluded = "
            f"{config.max_excluded:g} allows ({shown}). Get the parts again with `cure run download --profile "
            f"{config.profile}`, or raise max_excluded"
        )


def _records(table: pd.DataFrame, exams: pd.DataFrame) -> pd.DataFrame:
    """Columns of `records.parquet`, with folds 1 to 10 by patient, stratified by the seven labels."""
    about = exams.loc[table["exam_id"]]
    flags = about[list(CODES)].to_numpy()
    codes = np.array(list(CODES.values()))
    labels = pd.Series([list(codes[row]) for row in flags], index=about.index, dtype=object)
    return pd.DataFrame(
        {
            "patient_id": about["patient_id"],
            "fold": folds(about["patient_id"], [dict.fromkeys(row, 0.0) for row in labels], np.random.default_rng(0)),
            "age": about["age"],
            "age_over_89": False,
            "sex": about["is_male"].map({True: "male", False: "female"}),
            "labels": labels,
        }
        | {name: table[name].to_numpy() for name in ("start", "n_valid", "n_flat_leads", "clipped_share")},
        index=about.index.rename("record_id"),
    ).astype({"fold": "int8"})


def _statements() -> pd.DataFrame:
    """The seven rows of PTB-XL's statement table that CODE-15 % knows: each is a task, in no label group but `all`.

    A diagnostic or rhythm group would leave out every exam without one of its few labels here, whatever else it shows.
    """
    statements = pd.read_csv(STATEMENTS, index_col="code").loc[list(CODES.values())]
    empty = {"diagnostic_class": None, "diagnostic_subclass": None}
    return statements.assign(**dict.fromkeys(("diagnostic", "form", "rhythm"), False), **empty, task=True)


def _median_range(shards: list[Path], usable: np.ndarray) -> dict[str, float]:
    """Median over exams of the range (largest minus smallest sample) of each lead, mV."""
    median = np.median(np.concatenate([np.load(shard)["range"] for shard in shards])[usable], axis=0)
    return {lead: round(float(value) / 1000, 3) for lead, value in zip(LEADS, median, strict=True)}


def _chosen(shards: list[Path], usable: np.ndarray) -> Iterator[np.ndarray]:
    """Signals of the usable exams; a chunk is deleted once the store has taken it, so nothing is on disk twice."""
    read = 0
    for shard in shards:
        signals = np.load(shard)["signals"]
        yield signals[usable[read : read + len(signals)]]
        read += len(signals)
        shard.unlink()

"""Any folder of WFDB records with a table of labels as a cohort.

The folder is searched recursively. Its `labels.csv` has one row per record: `record` (path below the folder, without
extension) and `patient_id`, optionally `age` (years), `sex` and `fold` (1..10); every other column is a label, 0 or 1,
and one binary task. `docs/own-cohort.md` shows it on an example.

What is read is the record's first `LONGEST_SECONDS`, leads by name, in the header's unit. What is missing is made up
only where it follows exactly: any two limb leads give the other four (Einthoven and Goldberger). Another missing lead
is zero, and counted as flat. Nothing is resampled or filtered: the store holds each record at its own rate.
"""

import io
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import wfdb

from cure import paths
from cure.cohorts.base import RESOLUTION_MV
from cure.cohorts.store import write_store
from cure.cohorts.synthetic import folds
from cure.cohorts.wfdb_record import Header, UnusableError, read_record
from cure.download import check_relative, few, manifest
from cure.errors import CureError
from cure.settings.download import DownloadConfig
from cure.settings.prepare import PrepareConfig
from cure.shards import Arrays, compute_shards, fingerprint
from cure.signals import LEADS
from cure.tasks import TITLES

LABELS = "labels.csv"
#: Columns of `labels.csv` that are no labels; the first two are required.
COLUMNS = ("record", "patient_id", "age", "sex", "fold")
#: Signals are stored at least this long, the shorter ones with zeros behind them.
STORED_SECONDS = 10

_VARIABLE = paths.RAW_VARIABLES["wfdb"]
#: What wfdb raises for a truncated signal file or an odd header.
_UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OSError, AttributeError)
_SEX = {"male": "male", "m": "male", "female": "female", "f": "female"}


# --- labels


def read_labels(folder: Path) -> pd.DataFrame:
    """Read and check `labels.csv`.

    Returns
    -------
    DataFrame
        Indexed by `record` (str), in the file's order: `patient_id` (str), `age` (float32, years, NaN where not
        given), `sex` ("male", "female" or None), `fold` (int8, 1..10), and a bool column per label. Where the file
        gives no folds they are made here: by patient, with nearly equal shares of every label, the same for the same
        file.

    Raises
    ------
    CureError
        If the file is missing, or a column or value is not what it should be: names the column and the first record.
    """
    where = folder / LABELS
    if not where.is_file():
        raise CureError(f"{folder} has no {LABELS}: it lists the records and their labels, see docs/own-cohort.md")
    try:
        given = pd.read_csv(where, dtype=str, encoding="utf-8-sig", keep_default_na=False).rename(columns=str.strip)
    except ValueError as error:  # also the parser's errors and wrong encodings
        raise CureError(f"{where} cannot be read as CSV in UTF-8: {error}") from error
    if "record" not in given:
        raise CureError(f"{where} has no column record: the path of each record below the folder, without extension")
    if "patient_id" not in given:
        raise CureError(
            f"{where} has no column patient_id: without it no split by patient can be made, and a score on patients "
            "that a head was trained on says nothing. Where every record is another patient, write the record's name"
        )
    given = given.apply(lambda column: column.str.strip().replace("", np.nan))
    names = given["record"]
    for column in ("record", "patient_id"):
        _refuse(where, f"{column} is empty", names.fillna("a row without a name")[given[column].isna()])
    if not len(given):
        raise CureError(f"{where} lists no record")
    _refuse(where, "the record is listed twice", names[names.duplicated()])
    names.map(check_relative)
    given = given.set_index("record")
    labels = _binary(where, given.drop(columns=[name for name in COLUMNS if name in given]))
    about = pd.DataFrame({"patient_id": given["patient_id"], "age": _age(where, given), "sex": _sex(where, given)})
    about["fold"] = _folds(where, given, labels)
    return about.join(labels)


def _binary(where: Path, given: pd.DataFrame) -> pd.DataFrame:
    """The label columns as booleans."""
    if not given.shape[1]:
        raise CureError(f"{where} has no label: every column besides {', '.join(COLUMNS)} is one, with 0 and 1")
    for name in given:
        if not str(name).isprintable() or set("#/") & set(name) or name.startswith(("Unnamed:", "macro")):
            raise CureError(f"{where}: {name!r} cannot name a label: no '#', no '/', not beginning with 'macro'")
        odd = given.index.to_series()[~given[name].isin(["0", "1", "0.0", "1.0"])]
        what = f"column {name!r} is not 0 or 1 (every column besides {', '.join(COLUMNS)} is a label)"
        _refuse(where, what, odd)
    return given.isin(["1", "1.0"])


def _age(where: Path, given: pd.DataFrame) -> pd.Series:
    age = pd.to_numeric(given.get("age", pd.Series(np.nan, given.index)), errors="coerce")
    wrong = ~age.between(0, 120) & (given["age"].notna() if "age" in given else False)
    _refuse(where, "age is not a number of years between 0 and 120", given.index.to_series()[wrong])
    return age.astype("float32")


def _sex(where: Path, given: pd.DataFrame) -> pd.Series:
    said = given.get("sex", pd.Series(np.nan, given.index, dtype=object))
    sex = said.str.lower().map(_SEX) if said.notna().any() else said
    odd = given.index.to_series()[sex.isna() & said.notna()]
    _refuse(where, "sex is not male, female, m, f or empty", odd)
    return sex.astype(object).where(sex.notna(), None)


def _folds(where: Path, given: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray:
    """The folds that the file gives, else folds that are made: by patient, stratified."""
    if "fold" in given:
        fold = pd.to_numeric(given["fold"], errors="coerce")
        _refuse(where, "fold is not one of 1..10", given.index.to_series()[~fold.isin(range(1, 11))])
        several = fold.groupby(given["patient_id"]).transform("nunique") > 1
        _refuse(where, "fold: the patient's records are in several folds", given.index.to_series()[several])
        return fold.to_numpy(np.int8)
    patients = given["patient_id"].nunique()
    if patients < 10:
        raise CureError(f"{where} lists {patients} patients: ten folds by patient need ten or more")
    listed = [dict.fromkeys(codes, 1.0) for codes in _codes(labels)]
    return folds(given["patient_id"], listed, np.random.default_rng(0)).astype(np.int8)


def _codes(labels: pd.DataFrame) -> list[list[str]]:
    """The labels of each record, as lists of names."""
    names = labels.columns.to_numpy()
    return [list(names[row]) for row in labels.to_numpy(bool)]


def statements(names: list[str]) -> pd.DataFrame:
    """Statement table of the labels: each is a task, in none of PTB-XL's label groups but `all`.

    A label called like one of CURE's tasks (NORM, AFIB, ...) gets its title. It joins no diagnostic or rhythm group:
    those leave out records without any label of the group, which says nothing where not all of them were labelled.

    Raises
    ------
    CureError
        If a name would not be the same after it was written as CSV.
    """
    flags = {"diagnostic": False, "form": False, "rhythm": False}
    empty = {"diagnostic_class": None, "diagnostic_subclass": None}
    table = pd.DataFrame({"description": [TITLES.get(name, name) for name in names]}, pd.Index(names, name="code"))
    table = table.assign(**flags, **empty, task=True)
    again = pd.read_csv(io.StringIO(table.to_csv()), index_col="code").index
    if odd := [name for name, read in zip(names, again, strict=True) if name != read]:
        raise CureError(f"{LABELS}: {odd[0]!r} cannot name a label: it reads as a number or a missing value; rename it")
    return table


def _refuse(where: Path, what: str, records: pd.Series) -> None:
    if len(records):
        raise CureError(f"{where}: {what} in {len(records):,} row(s): {few(records)}. Correct the file.")


# --- files


def acquire(folder: Path, config: DownloadConfig) -> pd.DataFrame:
    """List the files of the study: `labels.csv`, all headers, and the signal files of the labelled records.

    Returns
    -------
    DataFrame
        `path, size, sha256`, see `cure.download.manifest`. A record whose files are not all there is left to the stage
        that reads it, which lists it with this reason; so is one that has no labels.

    Raises
    ------
    CureError
        If the folder is not there, its `labels.csv` cannot be used, or it holds none of the records.
    """
    if not folder.is_dir():
        raise CureError(
            f"there is no folder {folder}: set {_VARIABLE} to the one that holds {LABELS} and the records, then "
            f"`cure run download --profile {config.profile}`"
        )
    labelled = set(read_labels(folder).index)
    headers = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.hea"))
    found = [name for name in headers if name.removesuffix(".hea") in labelled]
    if not found:
        seen = f"the first record there is {headers[0].removesuffix('.hea')!r}" if headers else "it holds no .hea file"
        raise CureError(
            f"{folder} holds none of the {len(labelled):,} records of its {LABELS}, of which one is {min(labelled)!r}; "
            f"{seen}. The column record is the path below the folder, without extension"
        )
    signals = {name for header in found for name in _signal_files(folder, header.removesuffix(".hea"))}
    return manifest(folder, [LABELS, *headers, *(name for name in signals if (folder / name).is_file())])


def first_record(folder: Path, files: Iterable[str]) -> wfdb.Record:
    """The first labelled record that can be used, as stage prepare reads it: `p_signal` (n_samples, 12) in mV.

    Parameters
    ----------
    folder : Path
    files : iterable of str
        Relative paths of the study: the manifest's.

    Raises
    ------
    CureError
        If none of the records can be used: names the first and the reason.
    """
    there, faults = set(files), []
    for name in read_labels(folder).index:
        if fault := _absent(folder, name, there):
            faults.append(f"{name}: {fault}")
            continue
        try:
            one = read_record(folder / name)
        except (UnusableError, *_UNREADABLE) as error:
            faults.append(f"{name}: {error}")
            continue
        mv = one.signal.T * RESOLUTION_MV
        how = {"n_sig": len(LEADS), "sig_len": len(mv), "sig_name": list(LEADS), "units": ["mV"] * len(LEADS)}
        return wfdb.Record(record_name=name, fs=one.fs, p_signal=mv, **how)
    raise CureError(f"no record of {folder} can be used ({faults[0]})")


def _signal_files(folder: Path, record: str) -> list[str]:
    """Files below `folder` that a header names; none where it cannot be read, or names files elsewhere."""
    try:
        header = Header.read(folder / f"{record}.hea")
        names = dict.fromkeys((Path(record).parent / name).as_posix() for name in header.files)
        return [check_relative(name) for name in names]
    except (UnusableError, OSError, CureError):
        return []


# --- store


def _read_chunk(raw: Path, names: list[str], rows: np.ndarray) -> Arrays:
    """Read some records: samples one behind the other, and per record its rate, length, quality and fault."""
    reason = np.full(len(rows), "", dtype="U120")
    number = {name: np.zeros(len(rows), np.int64) for name in ("fs", "length", "n_flat_leads", "n_derived", "cut")}
    clipped, signals = np.zeros(len(rows), np.float32), [np.zeros((len(LEADS), 0), np.int16)]
    for i, row in enumerate(rows):
        try:
            one = read_record(raw / names[row])
        except FileNotFoundError as error:
            reason[i] = f"missing file {Path(str(error.filename)).suffix}"
        except UnusableError as error:
            reason[i] = str(error)
        except _UNREADABLE as error:
            reason[i] = f"unreadable or truncated ({type(error).__name__}: {error})"
        else:
            flat = int((np.ptp(one.signal, axis=1) == 0).sum())
            about = {"fs": one.fs, "length": one.signal.shape[1], "n_flat_leads": flat}
            for name, value in (about | {"n_derived": one.n_derived, "cut": one.cut}).items():
                number[name][i] = value
            clipped[i] = one.clipped
            signals.append(one.signal)
    return {"samples": np.concatenate(signals, axis=1), "reason": reason, "clipped_share": clipped, **number}


def pack_raw(raw: Path, files: set[str], info: dict, out: Path, scratch: Path, config: PrepareConfig) -> None:
    """Read the labelled records whose files the manifest lists and write the store to `out`, all or nothing.

    Every rate that a record has is a rate of the store, and a record is at its own only. All signals are as long as the
    longest record (10 s at least, 60 s at most), with zeros behind shorter ones: `n_valid` counts the samples before
    them, at the store's lowest rate. Record ids are the names in `labels.csv`, in its order.

    Memory: `config.chunk_size` records of at most 60 s per worker. Chunks that are read survive an interruption.

    Parameters
    ----------
    raw : Path
        The folder.
    files : set of str
        Relative paths that belong to the study: the manifest's.
    info : dict
        `name`, `title`, `source`, `license` and `manifest` for `cohort.json`; what reading found is added.
    out, scratch : Path
        The store, and where finished chunks wait.
    config : PrepareConfig

    Raises
    ------
    CureError
        If more than `config.max_excluded` of the labelled records are unusable: names the first and their reasons.
    """
    table = read_labels(raw)
    names = list(table.index)
    labels = table.drop(columns=["patient_id", "age", "sex", "fold"])
    described = statements(list(labels))
    reason = pd.Series([_absent(raw, name, files) for name in names], table.index, dtype=object)
    _limit(reason, info["name"], config)
    there = [name for name in names if not reason[name]]
    shards = compute_shards(
        scratch / fingerprint(info, there, config.chunk_size),
        len(there),
        config.chunk_size,
        partial(_read_chunk, raw, there),
        desc="read",
        n_jobs=joblib.cpu_count(),
    )
    parts = [{name: part[name] for name in part if name != "samples"} for part in map(np.load, shards)]
    read = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True).set_index(pd.Index(there))
    reason[there] = read["reason"]
    unlabelled = sorted(name.removesuffix(".hea") for name in files if name.endswith(".hea"))
    unlabelled = [name for name in unlabelled if name not in table.index]
    _limit(reason, info["name"], config)
    read = read[read["reason"] == ""]
    seconds = max(STORED_SECONDS, (read["length"] / read["fs"]).max())
    lowest = int(read["fs"].min())
    kept = table.loc[read.index]
    records = pd.DataFrame(
        {
            **{name: kept[name] for name in ("patient_id", "fold", "age", "sex")},
            "age_over_89": False,
            "labels": _codes(labels.loc[read.index]),
            "start": np.int32(0),
            "n_valid": (read["length"] * lowest // read["fs"]).astype(np.int32),
            "n_flat_leads": read["n_flat_leads"].astype(np.int8),
            "clipped_share": read["clipped_share"].astype(np.float32),
        }
    )
    found = {
        "folds": "given" if "fold" in pd.read_csv(raw / LABELS, nrows=0) else "made by patient, stratified by labels",
        "n_cut_to_60_s": int(read["cut"].sum()),
        "n_with_derived_limb_leads": int((read["n_derived"] > 0).sum()),
    }
    why = [*reason[reason != ""].items(), *((name, f"not in {LABELS}") for name in unlabelled)]
    excluded = pd.DataFrame(why, columns=["record_id", "reason"], dtype=object)
    signals = {
        int(fs): (
            (read["fs"] == fs).to_numpy(),
            _signals(shards, int(fs), int(np.ceil(seconds * fs))),
        )
        for fs in sorted(read["fs"].unique())
    }
    write_store(out, records, excluded, described, info | found, signals)
    shutil.rmtree(scratch)


def _absent(raw: Path, record: str, files: set[str]) -> str:
    """Why a record is not to be read: a file of it is not in the manifest."""
    if f"{record}.hea" not in files:
        return "no such record in the folder"
    missing = [name for name in _signal_files(raw, record) if name not in files]
    return f"missing file {Path(missing[0]).suffix}" if missing else ""


def _limit(reason: pd.Series, name: str, config: PrepareConfig) -> None:
    """Raise if too many labelled records are unusable, or all."""
    bad = reason[reason != ""]
    if len(bad) > config.max_excluded * len(reason) or len(bad) == len(reason):
        shown = "; ".join(f"{record}: {why}" for record, why in bad.head(5).items())
        raise CureError(
            f"{len(bad)} of {len(reason)} records of {name} cannot be used, more than max_excluded = "
            f"{config.max_excluded:g} allows ({shown}). Correct them or take them out of {LABELS}, and run `cure run "
            f"download --profile {config.profile}` again, or raise max_excluded"
        )


def _signals(shards: list[Path], fs: int, n_samples: int) -> Iterator[np.ndarray]:
    """The usable records of one rate, a chunk at a time: (k, 12, n_samples) int16, zeros behind shorter ones."""
    for shard in shards:
        part = np.load(shard)
        end = np.cumsum(part["length"])
        chosen = np.flatnonzero((part["fs"] == fs) & (part["reason"] == ""))
        if not len(chosen):
            continue
        samples, signals = part["samples"], np.zeros((len(chosen), len(LEADS), n_samples), np.int16)
        for signal, i in zip(signals, chosen, strict=True):
            length = part["length"][i]
            signal[:, :length] = samples[:, end[i] - length : end[i]]
        yield signals

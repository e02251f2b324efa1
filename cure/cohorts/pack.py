"""Stage `prepare`: from raw records to the packed store; for PTB-XL's layout, WFDB read once, checked, never again."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import wfdb

from cure import paths
from cure.cohorts import code15, ptbxl, wfdb_folder
from cure.cohorts.base import RESOLUTION_MV, Cohort
from cure.cohorts.store import write_store
from cure.download import read_manifest, sha256_file, verify_manifest
from cure.errors import CureError
from cure.settings.prepare import PrepareConfig
from cure.shards import Arrays, compute_shards, fingerprint
from cure.signals import LEADS

SECONDS = 10
#: WFDB format 16 marks an invalid sample so.
_INVALID = -32768
#: An int16 sample this large sits at the recorder's rail.
_RAIL = 32767


def prepare(config: PrepareConfig) -> Cohort:
    """Pack the records that the manifest lists into the cohort store, and open it.

    Raises
    ------
    CureError
        If files of the manifest are gone or changed, or too many records are unusable.
    """
    source, raw, manifest = config.cohort.source, config.raw_folder, read_manifest(config.manifest)
    verify_manifest(raw, manifest)
    license_, pack_source = _SOURCES[source]
    info = {
        "name": config.cohort.name,
        "title": config.cohort.title,
        "source": source,
        "license": license_,
        "manifest": sha256_file(config.manifest),
    }
    scratch = paths.scratch(config.profile, f"prepare-{config.cohort.name}")
    pack_source(raw, set(manifest["path"]), info, config.cohort_folder, scratch, config)
    return Cohort.open(config.cohort_folder)


def pack_raw(raw: Path, files: set[str], info: dict, out: Path, scratch: Path, config: PrepareConfig) -> None:
    """Pack a folder in PTB-XL's layout; see `pack`."""
    pack(
        raw,
        ptbxl.read_metadata(raw),
        ptbxl.read_statements(raw),
        files,
        info,
        out,
        scratch,
        chunk_size=config.chunk_size,
        max_excluded=config.max_excluded,
        n_jobs=joblib.cpu_count(),
    )


#: Source -> licence of the recordings, and what reads the raw files of the manifest and writes the store.
_SOURCES: dict[str, tuple[str, Callable[[Path, set[str], dict, Path, Path, PrepareConfig], None]]] = {
    "ptbxl": (ptbxl.LICENSE, pack_raw),
    "synthetic": ("MIT", pack_raw),
    "code15": (code15.LICENSE, code15.pack_raw),
    "synthetic-code15": ("MIT", code15.pack_raw),
    "wfdb": ("as the folder's owner states", wfdb_folder.pack_raw),
}


def pack(
    raw: Path,
    metadata: pd.DataFrame,
    statements: pd.DataFrame,
    files: set[str],
    info: dict,
    out: Path,
    scratch: Path,
    *,
    chunk_size: int = 256,
    max_excluded: float = 0.02,
    n_jobs: int = 1,
) -> None:
    """Read every record that `files` holds and write the store to `out`, all or nothing.

    Parameters
    ----------
    raw : Path
        Folder in PTB-XL's layout.
    metadata : DataFrame indexed by ecg_id
        From `cure.cohorts.ptbxl.read_metadata`.
    statements : DataFrame indexed by statement code
        Its statement table.
    files : set of str
        Relative paths that belong to the study: the manifest's.
    info : dict
        `name`, `title`, `source`, `license` and `manifest` (SHA-256 of the manifest) for `cohort.json`. The hash keeps
        chunks of other files from being taken for these.
    out, scratch : Path
        The store, and where finished chunks wait when a run is interrupted.
    chunk_size : int
        Records per chunk.
    max_excluded : float
        Largest share of records that may be unusable before this is an error.
    n_jobs : int
        Worker processes.

    Raises
    ------
    CureError
        If more than `max_excluded` of the records are unusable: names the first and their reasons.
    """
    columns = {100: "filename_lr", 500: "filename_hr"}
    has = {fs: (metadata[column] + ".hea").isin(files).to_numpy() for fs, column in columns.items()}
    if not has[100].any():
        raise CureError(f"no 100 Hz record of {info['name']} in the manifest: run the download stage again")
    listed = has[100] | has[500]
    records = _records(metadata[listed])
    reasons = pd.Series("", index=records.index).mask(~has[100][listed], "no 100 Hz signal")
    parts: dict[int, tuple[list[Path], np.ndarray]] = {}
    for fs, column in columns.items():
        present = np.flatnonzero(has[fs][listed])
        if not len(present):
            continue
        names = metadata.loc[records.index[present], column].tolist()
        shards = compute_shards(
            scratch / f"{fs}-{fingerprint(info, names, chunk_size)}",
            len(names),
            chunk_size,
            partial(_read_chunk, raw, names, fs),
            desc=f"read {fs} Hz",
            n_jobs=n_jobs,
        )
        why = np.concatenate([np.load(shard)["reason"] for shard in shards])
        reasons.iloc[present] = np.where(reasons.iloc[present] == "", why, reasons.iloc[present])
        parts[fs] = (shards, present)
    usable = (reasons == "").to_numpy()
    excluded = reasons[~usable].rename("reason").rename_axis("record_id").reset_index()
    if len(excluded) > max_excluded * len(records):
        shown = "; ".join(f"{r.record_id}: {r.reason}" for r in excluded.head(5).itertuples())
        raise CureError(
            f"{len(excluded)} of {len(records)} records of {info['name']} cannot be used, more than max_excluded = "
            f"{max_excluded:g} allows ({shown}). Delete their files and get them again with `cure run download "
            "--profile "
            f"{out.parent.name}`, or raise max_excluded"
        )
    _add_quality(records, *parts[100])
    signals = {
        fs: (np.isin(np.flatnonzero(usable), present), _chosen(shards, usable[present]))
        for fs, (shards, present) in parts.items()
    }
    truth = raw / "truth.parquet"
    write_store(out, records[usable], excluded, statements, info, signals, truth=truth if truth.is_file() else None)
    shutil.rmtree(scratch)


def _records(metadata: pd.DataFrame) -> pd.DataFrame:
    """Columns of `records.parquet` that the metadata gives; PTB-XL codes sex 0 as male, 1 as female."""
    return pd.DataFrame(
        {
            "patient_id": metadata["patient_id"].astype("int64"),
            "fold": metadata["strat_fold"].astype("int8"),
            "age": metadata["age"].astype("float32"),
            "age_over_89": metadata["age_over_89"].astype(bool),
            "sex": metadata["sex"].map({0: "male", 1: "female"}),
            "labels": metadata["scp_codes"].map(list),
            "start": np.int32(0),
        },
        index=metadata.index.rename("record_id"),
    )


def _add_quality(records: pd.DataFrame, shards: list[Path], present: np.ndarray) -> None:
    """Columns of `records.parquet` that the 100 Hz signals give; zero for a record that has none."""
    quality = [np.load(shard) for shard in shards]
    records["n_valid"] = np.int32(SECONDS * 100)
    for name, missing in (("n_flat_leads", np.int8(0)), ("clipped_share", np.float32(0))):
        records[name] = missing
        records.iloc[present, records.columns.get_loc(name)] = np.concatenate([q[name] for q in quality])


def _chosen(shards: list[Path], keep: np.ndarray) -> Iterator[np.ndarray]:
    """Signals of the records to keep, shard by shard."""
    read = 0
    for shard in shards:
        signals = np.load(shard)["signals"]
        yield signals[keep[read : read + len(signals)]]
        read += len(signals)


def _read_chunk(raw: Path, names: list[str], fs: int, rows: np.ndarray) -> Arrays:
    """Read and check some records: digital samples, a reason where one cannot be used, and quality flags."""
    signals = np.zeros((len(rows), len(LEADS), SECONDS * fs), dtype=np.int16)
    reason = np.full(len(rows), "", dtype="U120")
    sums = np.zeros((len(rows), len(LEADS)), dtype=np.int64)
    for i, row in enumerate(rows):
        try:
            record = wfdb.rdrecord(str(raw / names[row]), physical=False, return_res=16)
            reason[i] = _header_fault(record, fs)
            if not reason[i]:
                signals[i], sums[i] = record.d_signal.T, record.checksum
        except FileNotFoundError as error:
            reason[i] = f"missing file {Path(str(error.filename)).name}"
        except (ValueError, IndexError, KeyError, TypeError, OSError) as error:
            # What wfdb raises for a truncated .dat or an unreadable .hea.
            reason[i] = f"unreadable or truncated ({type(error).__name__}: {error})"
    ok = reason == ""
    invalid = (signals == _INVALID).sum(axis=(1, 2))
    flat = (signals == signals[:, :, :1]).all(axis=2).sum(axis=1)
    corrupt = ((signals.sum(axis=2, dtype=np.int64) - sums) % 65536 != 0).any(axis=1)
    for fault, text in (
        (invalid > 0, "invalid (NaN) samples"),
        (corrupt, "samples do not match the header's checksum"),
        (flat == len(LEADS), "all leads flat"),
    ):
        reason[ok & fault & (reason == "")] = text
    clipped = (np.abs(signals.astype(np.int32)) >= _RAIL).mean(axis=(1, 2), dtype=np.float32)
    return {
        "signals": signals,
        "reason": reason,
        "n_flat_leads": flat.astype(np.int8),
        "clipped_share": clipped.astype(np.float32),
    }


def _header_fault(record: wfdb.Record, fs: int) -> str:
    """What in the header is not what PTB-XL's are like, or nothing."""
    if record.fs != fs:
        return f"sampling rate {record.fs:g} Hz, expected {fs} Hz"
    if tuple(name.upper() for name in record.sig_name) != tuple(lead.upper() for lead in LEADS):
        return f"leads {' '.join(record.sig_name)}, expected {' '.join(LEADS)}"
    if record.sig_len != SECONDS * fs:
        return f"{record.sig_len} samples, expected {SECONDS * fs}"
    if set(record.units) != {"mV"} or set(record.adc_gain) != {1 / RESOLUTION_MV} or set(record.baseline) != {0}:
        return (
            f"unit {record.units[0]}, gain {record.adc_gain[0]:g}, baseline {record.baseline[0]}: expected mV, 1000, 0"
        )
    return ""

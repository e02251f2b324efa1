"""Write a cohort store: signals streamed into memory maps, tables beside them, all of it or nothing."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cure.cohorts.base import RECORD_COLUMNS, RESOLUTION_MV
from cure.errors import CureError
from cure.paths import atomic
from cure.signals import LEADS

#: Sampling rate in Hz -> which records have a signal at that rate, and those signals in the records' order.
Signals = Mapping[int, tuple[np.ndarray, Iterable[np.ndarray]]]


def write_store(
    out: Path,
    records: pd.DataFrame,
    excluded: pd.DataFrame,
    statements: pd.DataFrame,
    info: dict,
    signals: Signals,
    *,
    truth: Path | None = None,
) -> None:
    """Write a store in the layout of `cure.cohorts.base` to `out`; what was there stays until the new one is whole.

    Memory: one chunk at a time is read and written to a memory map, so the largest chunk is the bound.

    Parameters
    ----------
    out : Path
        The store's folder, replaced.
    records : DataFrame indexed by record_id
        Usable records in the order of everything derived from the cohort: all of `RECORD_COLUMNS` but `record_id`.
        `start` and `n_valid` count samples at the lowest rate. Other columns are kept behind them; `row_<rate>` is
        added here.
    excluded : DataFrame
        `record_id` and `reason`; other columns, with what a reason does not name, are kept behind them.
    statements : DataFrame indexed by statement code
        With the columns of PTB-XL's `scp_statements.csv` that `cure.tasks` reads.
    info : dict
        `name`, `title`, `source`, `license`, `manifest` and whatever else `cohort.json` is to say.
    signals : mapping from int to (bool array, iterable of int16 arrays)
        For each rate in Hz: `present` (n_records,), and chunks (k, 12, n_samples) at 1 uV per unit, one row per present
        record in the order of `records`. `n_samples` is the same within a rate.
    truth : Path or None
        `truth.parquet` of a simulated cohort, copied.

    Raises
    ------
    CureError
        If a column is missing, an id occurs twice, there is no record, or the chunks do not hold one row per present
        record.
    """
    wanted = [name for name in RECORD_COLUMNS if name != "record_id"]
    if missing := [name for name in wanted if name not in records]:
        raise CureError(f"the records of {info['name']} lack the columns {', '.join(missing)}: nothing was written")
    if not len(records) or not signals:
        raise CureError(f"no record of {info['name']} can be used: nothing was written")
    if not records.index.is_unique:
        raise CureError(f"record_id {records.index[records.index.duplicated()][0]} of {info['name']} occurs twice")
    table = records[[*wanted, *(name for name in records if name not in wanted)]].rename_axis("record_id").reset_index()
    with atomic(out) as store:
        store.mkdir(parents=True)
        rates = {}
        for fs, (present, chunks) in signals.items():
            present = np.asarray(present, dtype=bool)
            if not present.any():
                continue  # no usable record has this rate
            row = np.full(len(table), -1, dtype=np.int32)
            row[present] = np.arange(present.sum())
            table[f"row_{fs}"] = row
            shape = _write_signals(store / f"signals_{fs}.npy", int(present.sum()), chunks)
            rates[fs] = {"n": shape[0], "n_samples": shape[2]}
        table.to_parquet(store / "records.parquet")
        excluded[["record_id", "reason", *excluded.columns.difference(["record_id", "reason"])]].to_parquet(
            store / "excluded.parquet"
        )
        statements.rename_axis("code").to_csv(store / "statements.csv")
        if truth is not None:
            shutil.copyfile(truth, store / "truth.parquet")
        about = {**info, "leads": LEADS, "unit": "uV", "resolution_mv": RESOLUTION_MV, "rates": rates}
        (store / "cohort.json").write_text(json.dumps(about, indent=2) + "\n")


def _write_signals(path: Path, n: int, chunks: Iterable[np.ndarray]) -> tuple[int, int, int]:
    """Write chunks one after the other into one array of `n` rows; its shape."""
    packed, end = None, 0
    for chunk in chunks:
        if chunk.dtype != np.int16 or chunk.ndim != 3 or chunk.shape[1] != len(LEADS):
            raise CureError(f"{path.name}: a chunk is {chunk.dtype} {chunk.shape}, expected int16 (k, 12, n_samples)")
        if packed is None:
            shape = (n, *chunk.shape[1:])
            packed = np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=shape)
        if chunk.shape[1:] != packed.shape[1:] or end + len(chunk) > n:
            raise CureError(f"{path.name}: a chunk of {chunk.shape} does not fit behind row {end} of {packed.shape}")
        packed[end : end + len(chunk)] = chunk
        end += len(chunk)
    if packed is None or end != n:
        raise CureError(f"{path.name}: {end} signals came for {n} records")
    packed.flush()
    return packed.shape[0], packed.shape[1], packed.shape[2]

"""The packed cohort store: one table of records and one memory-mapped array per sampling rate.

Layout of a store (a folder)::

    cohort.json          name, title, source, license, leads, unit, the rates and what they hold
    records.parquet      one row per usable record, see `RECORD_COLUMNS`
    excluded.parquet     record_id and the reason, for every record that cannot be used (some sources add a detail)
    statements.csv       the statement table of the source
    signals_100.npy      int16, (n_records_at_that_rate, 12, n_samples), 1 uV per unit: lossless for PTB-XL
    truth.parquet        only where the truth is known (a simulated cohort): what was planted where

`start` and `n_valid` of `records.parquet` say which samples are the record's own and not padding: the first one and how
many, counted at the cohort's lowest stored rate; at another rate both scale with it.

A record's row in `signals_<rate>.npy` is its `row_<rate>` (-1: not recorded at that rate).
"""

import json
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import resample_poly

from cure import tasks
from cure.errors import CureError

#: Millivolts per stored unit.
RESOLUTION_MV = 0.001

#: Columns every cohort's `records.parquet` has, whatever its source.
RECORD_COLUMNS = (
    "record_id",
    "patient_id",
    "fold",
    "age",
    "age_over_89",
    "sex",
    "labels",
    "start",
    "n_valid",
    "n_flat_leads",
    "clipped_share",
)


def _ratio(to: int, source: int) -> tuple[int, int]:
    """Steps up and down between two rates."""
    common = gcd(to, source)
    return to // common, source // common


@dataclass(frozen=True)
class Cohort:
    """A packed cohort, opened for reading.

    Attributes
    ----------
    folder : Path
        The store.
    records : DataFrame
        One row per usable record; row order is the order of everything derived from the cohort.
    statements : DataFrame
        Statement table, indexed by statement code.
    info : dict
        Contents of `cohort.json`.
    """

    folder: Path
    records: pd.DataFrame
    statements: pd.DataFrame
    info: dict

    @classmethod
    def open(cls, folder: Path) -> "Cohort":
        """Open a store.

        Raises
        ------
        CureError
            If the folder holds no store, or a record column is missing.
        """
        if not (folder / "cohort.json").is_file():
            profile = folder.parent.name
            raise CureError(
                f"no prepared cohort at data/cohorts/{profile}/{folder.name}: make it with `make repro "
                f"PROFILE={profile}`"
            )
        records = pd.read_parquet(folder / "records.parquet")
        missing = [name for name in RECORD_COLUMNS if name not in records]
        if missing:
            again = f"`cure run prepare --profile {folder.parent.name}`"
            raise CureError(f"{folder.name}/records.parquet lacks {missing}: rebuild it with {again}")
        statements = pd.read_csv(folder / "statements.csv", index_col="code")
        return cls(folder, records, statements, json.loads((folder / "cohort.json").read_text()))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def name(self) -> str:
        """Name of the cohort, as tables give it."""
        return self.info["name"]

    @property
    def rates(self) -> list[int]:
        """Sampling rates held, in Hz, lowest first."""
        return sorted(map(int, self.info["rates"]))

    @cached_property
    def listed(self) -> pd.DataFrame:
        """(n_records, n_statements) boolean frame: which statements each record lists."""
        return tasks.statement_matrix(self.records.set_index("record_id")["labels"], self.statements)

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """Records that could not be used, with the reason."""
        return pd.read_parquet(self.folder / "excluded.parquet")

    def packed(self, fs: int) -> np.ndarray:
        """The memory-mapped int16 array of one rate, (n, 12, n_samples) at 1 uV per unit.

        Raises
        ------
        CureError
            If the cohort has no such rate.
        """
        if fs not in self.rates:
            raise CureError(f"cohort '{self.name}' is stored at {self.rates} Hz, not at {fs} Hz")
        return np.load(self.folder / f"signals_{fs}.npy", mmap_mode="r")

    def signals(self, rows: np.ndarray, fs: int) -> np.ndarray:
        """Read records.

        Parameters
        ----------
        rows : int array
            Positions in `records`.
        fs : int
            One of `rates`, in Hz.

        Returns
        -------
        (len(rows), 12, n_samples) float32 array
            In mV, leads in the order of `LEADS`.

        Raises
        ------
        CureError
            If one of the records was not recorded at that rate.
        """
        packed = self.packed(fs)
        position = self.records[f"row_{fs}"].to_numpy()[rows]
        if (position < 0).any():
            first = self.records["record_id"].to_numpy()[rows][position < 0][0]
            raise CureError(f"{(position < 0).sum()} records have no {fs} Hz signal, the first is {first}")
        return packed[position].astype(np.float32) * np.float32(RESOLUTION_MV)

    def resampled(self, rows: np.ndarray, fs: int) -> np.ndarray:
        """Read records at any rate: as stored where there is such a rate, else resampled from the next higher one.

        Parameters
        ----------
        rows : int array
        fs : int
            In Hz.

        Returns
        -------
        (len(rows), 12, n_samples) float32 array, in mV
            Padding of short records is part of it, as in `signals`.

        Raises
        ------
        CureError
            If a record is stored at lower rates only.
        """
        rows = np.asarray(rows)
        left, out = np.ones(len(rows), bool), None
        for rate in (rate for rate in self.rates if rate >= fs):
            here = left & (self.records[f"row_{rate}"].to_numpy()[rows] >= 0)
            if not here.any():
                continue
            part = self.signals(rows[here], rate)
            part = part if rate == fs else resample_poly(part, *_ratio(fs, rate), axis=-1).astype(np.float32)
            out = np.empty((len(rows), *part.shape[1:]), np.float32) if out is None else out
            out[here], left = part, left & ~here
        if out is None or left.any():
            first = self.records["record_id"].to_numpy()[rows][left][0]
            raise CureError(f"{left.sum()} records have no signal at {fs} Hz or more, the first is {first}")
        return out

    def example(self, code: str, without: str) -> int:
        """Row of the first record that lists one statement and not another; the first of all where none does."""
        nobody = np.zeros(len(self), bool)
        has = {name: self.listed[name].to_numpy() if name in self.listed else nobody for name in (code, without)}
        return int((has[code] & ~has[without]).argmax())

    def binary(self) -> tasks.Labels:
        """Labels of the cohort's binary tasks."""
        return tasks.binary(self.listed, self.statements)

    def group(self, name: tasks.Group) -> tasks.Labels:
        """Labels of one label group."""
        return tasks.group(self.listed, self.statements, name)

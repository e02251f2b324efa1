"""A simulated cohort in CODE-15 %'s own layout, with its traps, for demonstrations and tests that need no download.

Patients, ECGs and annotators are those of `cure.cohorts.synthetic`, drawn anew: `exams.csv` and two HDF5 files of exams
at 400 Hz, zero-padded on both sides to 4,096 samples, 40 % of them 7.3 s long and the others 10 s. As in the published
files, each part ends in a row of exam 0; one exam is all zero and one repeats the tracing of another patient.
"""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from cure import paths, simulate
from cure.cohorts import code15, synthetic
from cure.cohorts.code15_tracings import FS, N_SAMPLES
from cure.download import few
from cure.errors import CureError
from cure.progress import progress
from cure.settings.download import DownloadConfig
from cure.signals import LEADS

N_PARTS = 2
SECONDS = 10.0
SHORT_SECONDS = 7.3
SHORT_SHARE = 0.4
LICENSE = """Synthetic electrocardiograms made by cure.cohorts.synthetic_code15. No patient is behind any of them.
MIT License: use, copy, change and pass them on as you like, without warranty of any kind.
"""
#: Keeps the patients of a seed apart from those that `cure.cohorts.synthetic` draws with the same seed.
_STREAM = 15


def acquire(folder: Path, config: DownloadConfig) -> pd.DataFrame:
    """Simulate `config.n_records` exams into `folder` and return the manifest.

    Raises
    ------
    CureError
        If the size is missing, a part is asked for that is not made, or `folder` holds anything else.
    """
    if absent := [part for part in config.parts or () if part >= N_PARTS]:
        raise CureError(
            f"profiles/{config.profile}.yaml: parts under download lists {few(map(str, absent))}, but source "
            f"synthetic-code15 has only 0 to {N_PARTS - 1}: take it out"
        )
    if config.n_records is None:
        raise CureError(
            f"profiles/{config.profile}.yaml: n_records is missing under download; a simulated cohort needs a size"
        )
    write(folder, n_records=config.n_records, seed=config.seed)
    return code15.acquire(folder, config.model_copy(update={"fetch": False}))


def write(folder: Path, *, n_records: int, seed: int) -> None:
    """Write `n_records` exams (two of them unusable) to `folder`, all of it or nothing.

    Parameters
    ----------
    folder : Path
        Replaced if it is empty or a cohort that this function made.
    n_records : int
        Rows of `exams.csv`, at least 4.
    seed : int
        Same seed, same bytes.

    Raises
    ------
    CureError
        If `folder` holds anything else.
    """
    if n_records < 4:
        raise ValueError(f"n_records={n_records}: two of the exams are unusable, so at least 4 are needed")
    if folder.exists() and not _is_ours(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise CureError(f"{folder} exists and is not a simulated CODE-15 % cohort; nothing was written. Move it away.")
    rng = np.random.default_rng([seed, _STREAM])
    records = synthetic.draw_records(n_records, rng)
    planned = simulate.plan(records.drop(columns=synthetic.DEMOGRAPHY), seconds=SECONDS, rng=rng)
    exams = _exams(records, synthetic.annotate(records, planned, rng), rng)
    length = np.where(rng.random(n_records) < SHORT_SHARE, round(SHORT_SECONDS * FS), round(SECONDS * FS))
    zero, repeat, original = _victims(records["patient"].to_numpy())
    with paths.atomic(folder) as draft:
        draft.mkdir(parents=True)
        parts = [h5py.File(draft / f"exams_part{i}.hdf5", "w") for i in range(N_PARTS)]
        for part, file in enumerate(parts):
            file["exam_id"] = np.append(exams["exam_id"].to_numpy()[part::N_PARTS], 0)
            file.create_dataset("tracings", (len(file["exam_id"]), N_SAMPLES, len(LEADS)), np.float32)
        repeated = np.zeros((N_SAMPLES, len(LEADS)), np.float32)
        for rows, child in progress(list(simulate.chunks(n_records, rng)), desc="simulated exams"):
            # Whole microvolts: float32 sums that differ in the last bit elsewhere must not change the files.
            signals = synthetic.to_microvolts(simulate.render(planned, rows, fs=FS, rng=child)) / np.float32(1000)
            for row, mv in zip(range(rows.start, rows.stop), signals, strict=True):
                n = length[row]
                first = (N_SAMPLES - n) // 2
                x = np.zeros_like(repeated)
                x[first : first + n] = mv[:, :n].T
                if row == original:
                    repeated = x
                x = np.zeros_like(x) if row == zero else repeated if row == repeat else x
                parts[row % N_PARTS]["tracings"][row // N_PARTS] = x
        for file in parts:
            file.close()
        exams.to_csv(draft / code15.EXAMS, index=False)
        (draft / "LICENSE.txt").write_text(LICENSE)


def _is_ours(folder: Path) -> bool:
    licence = folder / "LICENSE.txt"
    return licence.is_file() and licence.read_text(errors="replace").startswith(LICENSE.splitlines()[0])


def _exams(records: pd.DataFrame, said: list[dict[str, float]], rng: np.random.Generator) -> pd.DataFrame:
    """Return `exams.csv` with the published columns; what nobody knows about simulated patients stays empty."""
    n = len(records)
    table = pd.DataFrame({"exam_id": np.sort(rng.choice(np.arange(1000, 1000 + 20 * n), n, replace=False))})
    table["age"] = records["age"].to_numpy().astype(int)
    table["is_male"] = (records["sex"] == 0).to_numpy()
    table["nn_predicted_age"] = np.nan
    for label in ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"):
        table[label] = [code15.CODES[label] in codes for codes in said]
    table["patient_id"] = records["patient"].to_numpy()
    table["death"], table["timey"] = np.nan, np.nan
    table["normal_ecg"] = ["NORM" in codes for codes in said]
    table["trace_file"] = [f"exams_part{i % N_PARTS}.hdf5" for i in range(n)]
    return table


def _victims(patients: np.ndarray) -> tuple[int, int, int]:
    """Rows of the all-zero exam, of the one that repeats a tracing, and of the other patient's exam that it repeats."""
    repeat = int(np.flatnonzero(patients != patients[0])[-1])
    zero = next(row for row in range(1, len(patients)) if row != repeat)
    return zero, repeat, 0

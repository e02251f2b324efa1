"""PTB-XL 1.0.3: its metadata and its record files, from PhysioNet or from a local copy, whole or partial."""

import ast
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cure import paths
from cure.download import check_relative, fetch, few, manifest, parse_sums, sha256_file
from cure.errors import CureError

VERSION = "1.0.3"
URL = "https://physionet.org/files/ptb-xl/1.0.3/"
DOI = "10.13026/kfzx-aw45"
LICENSE = "CC BY 4.0"

DATABASE = "ptbxl_database.csv"
STATEMENTS = "scp_statements.csv"
SUMS = "SHA256SUMS.txt"
#: SHA-256 of the metadata files of this version.
PINNED = {
    DATABASE: "7600de9c1b27d181d850b3c6038a35d7c3ddb6bb33b702e3a20252a6859d216b",
    STATEMENTS: "ad05b0b1fcae83bb1230755ad9cfc7c96f303feddc08a4a9ad5bdc9ca63bac8f",
}
#: Sampling rate in Hz -> the column with a record's path, without extension.
FILENAMES = {100: "filename_lr", 500: "filename_hr"}
REQUIRED = (
    *("ecg_id", "patient_id", "age", "sex", "recording_date", "scp_codes", "strat_fold"),
    *FILENAMES.values(),
)
REQUIRED_STATEMENTS = (
    *("description", "diagnostic", "form", "rhythm"),
    *("diagnostic_class", "diagnostic_subclass"),
)
#: How PTB-XL writes an age over 89.
AGE_OVER_89 = 300

_VARIABLE = paths.RAW_VARIABLES["ptbxl"]
_POINT = f"Set {_VARIABLE} to the folder that holds {DATABASE}, {STATEMENTS} and records100/"
_GET = f"unset {_VARIABLE} and run the same command again to download what the profile needs of PTB-XL {VERSION}"
_FETCH = "`fetch: true` under `download` in the profile"


# --- metadata


def read_metadata(folder: Path) -> pd.DataFrame:
    """Read and check `ptbxl_database.csv`: one row per record, whether or not its signal is in `folder`.

    Returns
    -------
    DataFrame
        Indexed by `ecg_id` (int64), in the file's order. All columns of the file, with `patient_id`, `sex`
        (0 male, 1 female) and `strat_fold` (1..10) int64, `scp_codes` a dict (statement -> likelihood in
        percent, 0 where none is given), `recording_date` datetime64, `age` in years (float64, NaN where the
        file says 300), and one more, `age_over_89` (bool): the age is coded 300, which in 1.0.3 also stands
        for "not recorded".

    Raises
    ------
    CureError
        `folder` is no PTB-XL folder, a column is missing, or values cannot be what they should be.
    """
    df = _read_csv(folder, DATABASE, REQUIRED)
    where = folder / DATABASE
    for column in ("ecg_id", "patient_id", "sex", "strat_fold"):
        numbers = pd.to_numeric(df[column], errors="coerce")
        _refuse(where, f"{column} is not a whole number", df["ecg_id"][numbers.isna() | (numbers % 1 != 0)])
        df[column] = numbers.astype("int64")
    _refuse(where, "ecg_id occurs twice", df["ecg_id"][df["ecg_id"].duplicated()])
    df = df.set_index("ecg_id")
    ids = df.index.to_series()
    _refuse(where, "strat_fold is outside 1..10", ids[~df["strat_fold"].between(1, 10)])

    age = pd.to_numeric(df["age"], errors="coerce")
    _refuse(where, "age is not a number", ids[age.isna() & df["age"].notna()])
    df["age_over_89"] = age == AGE_OVER_89
    df["age"] = age.mask(df["age_over_89"]).astype("float64")
    _refuse(where, "age is outside 0..120", ids[(df["age"] < 0) | (df["age"] > 120)])

    date = pd.to_datetime(df["recording_date"], format="%Y-%m-%d %H:%M:%S", errors="coerce")
    _refuse(where, "recording_date is not YYYY-MM-DD HH:MM:SS", ids[date.isna() & df["recording_date"].notna()])
    df["recording_date"] = date

    codes = [_parse_codes(text) for text in df["scp_codes"]]
    unparsable = np.array([c is None for c in codes], dtype=bool)
    _refuse(where, "scp_codes is not a dict of statement: likelihood", ids[unparsable])
    df["scp_codes"] = pd.Series(codes, index=df.index, dtype=object)
    return df


def read_statements(folder: Path) -> pd.DataFrame:
    """Read and check `scp_statements.csv`.

    Returns
    -------
    DataFrame
        Indexed by `code` (the SCP-ECG statement, 71 in PTB-XL). All columns of the file, with the group flags
        `diagnostic`, `form` and `rhythm` bool; `diagnostic_class` and `diagnostic_subclass` are NaN where a
        statement is not diagnostic.

    Raises
    ------
    CureError
        `folder` is no PTB-XL folder, a column is missing, or a code occurs twice.
    """
    df = _read_csv(folder, STATEMENTS, REQUIRED_STATEMENTS)
    df = df.rename(columns={df.columns[0]: "code"})
    _refuse(folder / STATEMENTS, "the code occurs twice", df["code"][df["code"].duplicated()], "code")
    flags = ["diagnostic", "form", "rhythm"]
    df[flags] = df[flags].eq(1)
    return df.set_index("code")


def _read_csv(folder: Path, name: str, required: Iterable[str]) -> pd.DataFrame:
    _check_folder(folder)
    where = folder / name
    try:
        df = pd.read_csv(where, low_memory=False)
    except ValueError as error:  # also pandas' parser errors and wrong encodings
        raise CureError(f"{where} cannot be read as CSV: {error}. Restore it, or {_GET}.") from error
    if missing := [column for column in required if column not in df]:
        raise CureError(f"{where} has no column {few(missing)}. Restore PTB-XL's own file, or {_GET}.")
    return df


def _parse_codes(text: Any) -> dict[str, float] | None:
    try:
        codes = ast.literal_eval(text)
        return {str(code): float(likelihood) for code, likelihood in codes.items()}
    except (ValueError, TypeError, SyntaxError, AttributeError, MemoryError, RecursionError):
        return None


def _refuse(where: Path, fault: str, rows: pd.Series, key: str = "ecg_id") -> None:
    """Raise if any rows are at fault, naming the first few."""
    if len(rows):
        raise CureError(
            f"{where}: {fault} in {len(rows):,} row(s), {key} {few(rows)}. Restore PTB-XL's own file, or {_GET}."
        )


def _check_folder(folder: Path) -> None:
    absent = [name for name in PINNED if not (folder / name).is_file()]
    if absent:
        inside = sorted(folder.glob(f"*/{DATABASE}")) if folder.is_dir() else []
        hint = f"Did you mean {inside[0].parent}? " if inside else ""
        what = f"has no {few(absent)}" if folder.is_dir() else "does not exist"
        raise CureError(f"{folder} is not a PTB-XL folder: it {what}. {hint}{_POINT}, or {_GET}.")


# --- record files


def acquire(
    folder: Path, *, max_id_100: int | None, max_id_500: int | None, download: bool, pinned: bool
) -> pd.DataFrame:
    """Make the record files of a study available in `folder` and return the manifest of their contents.

    What is in `folder` is used as it is and never overwritten; it may be read-only as long as nothing has to
    be downloaded. Where it holds PhysioNet's SHA256SUMS.txt (after a download it does), every file is checked
    against that.

    Parameters
    ----------
    folder : Path
        Folder in PTB-XL's own layout; with `download` it may be empty or not exist yet.
    max_id_100, max_id_500 : int or None
        Highest `ecg_id` taken at 100 Hz and at 500 Hz; None takes all, 0 takes none.
    download : bool
        Get from PhysioNet what is missing. Otherwise a record that is absent is left out: a partial copy is a
        smaller cohort. A record with only one of its two files, .hea and .dat, is a broken copy and an error.
    pinned : bool
        Insist that the metadata are those of version 1.0.3 (implied by `download`).

    Returns
    -------
    DataFrame
        `path`, `size` (bytes), `sha256` of the two metadata files and of the records' .hea and .dat, by path.

    Raises
    ------
    CureError
        Not a PTB-XL folder, another version, no record at all, half a record, a file that differs from the
        published one, or a download that failed (run it again: it continues).
    """
    folder = Path(folder)
    if max_id_100 == 0 and max_id_500 == 0:
        raise CureError("max_id_100 and max_id_500 are both 0: no record is taken. Raise one in the profile.")
    if download:
        _download(folder, [name for name in PINNED if not (folder / name).is_file()])
    _check_folder(folder)
    if pinned or download:
        _check_version(folder)

    wanted = _record_files(read_metadata(folder), {100: max_id_100, 500: max_id_500})
    here = wanted & _listing(folder, wanted)
    if download:
        _download(folder, sorted(wanted - here))
        here = wanted
    elif not here:
        raise CureError(
            f"{folder} holds none of the {len(wanted) // 2:,} records that the profile takes. {_POINT}, or {_GET}."
        )
    elif half := sorted(name for name in here if _other_half(name) not in here):
        raise CureError(
            f"{folder} is a broken copy: {len(half):,} record file(s) lack the other of .hea and .dat: "
            f"{few(half)}. Copy these records again, or get what is missing with {_FETCH}."
        )
    df = manifest(folder, [*PINNED, *here])
    _check_sums(folder, df)
    return df


def _record_files(metadata: pd.DataFrame, max_ids: dict[int, int | None]) -> set[str]:
    """Relative paths of the .hea and .dat files of the records up to the highest `ecg_id` per rate."""
    stems = [
        metadata.loc[slice(None) if highest is None else metadata.index <= highest, FILENAMES[fs]].dropna()
        for fs, highest in max_ids.items()
    ]
    return {check_relative(str(stem)) + end for stem in pd.concat(stems) for end in (".hea", ".dat")}


def _other_half(name: str) -> str:
    return name[:-4] + (".dat" if name.endswith(".hea") else ".hea")


def _listing(folder: Path, names: set[str]) -> set[str]:
    """Names of all files in the subfolders that `names` lie in: 44 listings instead of 87,196 look-ups."""
    found: set[str] = set()
    for parent in {name[: name.rfind("/") + 1] for name in names}:
        try:
            found.update(parent + path.name for path in (folder / parent).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def _download(folder: Path, names: list[str]) -> None:
    """Get `names` and, before them, the published checksums."""
    if not names:
        return
    _check_destination(folder)
    fetch(URL, {SUMS: None}, folder)
    sums = _read_sums(folder) | PINNED
    if unlisted := [name for name in names if name not in sums]:
        raise CureError(
            f"{folder / SUMS} does not list {few(unlisted)}. It is not that of PTB-XL {VERSION}: "
            "delete it and run this again."
        )
    fetch(URL, {name: sums[name] for name in names}, folder)


def _check_destination(folder: Path) -> None:
    """Refuse to pour PTB-XL over something else or into a folder that cannot be written."""
    ours = (*PINNED, SUMS, "records100", "records500")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CureError(
            f"Files of PTB-XL are missing and cannot be downloaded into {folder}: {error.strerror or error}. "
            f"Set {_VARIABLE} to a folder that you may write to, or unset it to use data/raw/; "
            "to study only what is there, set `fetch: false` under `download` in the profile."
        ) from error
    if names and not any(name.startswith(ours) for name in names):
        raise CureError(
            f"{folder} is neither empty nor a PTB-XL folder (it holds {few(sorted(names))}): "
            f"nothing was downloaded into it. {_POINT}, or to an empty folder."
        )


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        return parse_sums((folder / SUMS).read_text(encoding="utf-8"))
    except (CureError, UnicodeDecodeError) as error:
        raise CureError(f"{folder / SUMS} is damaged: {error} Delete it and run this again.") from error


def _check_version(folder: Path) -> None:
    found = {name: sha256_file(folder / name) for name in PINNED}
    if other := [name for name, sha256 in PINNED.items() if found[name] != sha256]:
        details = "; ".join(f"{name} has sha256 {found[name]}, published is {PINNED[name]}" for name in other)
        raise CureError(
            f"{folder} is not PTB-XL {VERSION}, or its metadata were edited: {details}. "
            f"{_POINT} of version {VERSION}, or {_GET}."
        )


def _check_sums(folder: Path, df: pd.DataFrame) -> None:
    if not (folder / SUMS).is_file():
        return
    differ = df["path"][df["path"].map(_read_sums(folder)) != df["sha256"]]
    if len(differ):
        raise CureError(
            f"{len(differ):,} file(s) in {folder} are not those that its {SUMS} lists: {few(differ)}. "
            f"Delete them, then copy them again or download them with {_FETCH}."
        )

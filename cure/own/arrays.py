"""CSV and NumPy files: what they say of themselves, in columns, keys, or a JSON file of the same name beside them."""

import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cure.cohorts.wfdb_record import UnusableError
from cure.own.find import Item
from cure.own.names import lead_of, split_unit
from cure.own.record import Given, Raw

#: Keys of a `.npz` or of the JSON file, and columns of a CSV, that say what the signal is; case does not matter.
RATE = ("rate", "fs", "sampling_rate", "sampling_frequency", "sample_rate", "frequency", "hz")
UNIT = ("unit", "units")
GAIN = ("gain", "adc_gain")
LEADS_KEYS = ("leads", "lead_names", "names", "channels", "sig_name")
SIGNAL = ("signal", "signals", "ecg", "x", "data", "p_signal", "val")
#: A column of time, with its unit: `time_s`, `t (ms)`.
_TIME = re.compile(r"(?:time|t|timestamp)(?:[\s_]*[\[(]?\s*(s|sec|seconds?|ms|us|µs)\s*[\])]?)?", re.IGNORECASE)
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "µs": 1e6}
#: Rows that are read to learn a rate from times.
_HEAD_ROWS = 1000


def read_csv(item: Item, given: Given) -> Raw:
    """A table of one row per sample and one column per lead; comma, semicolon or tab between them, `#` for remarks.

    The rate is in a column of that name, or follows from a column of times that names its unit; units stand behind the
    names of leads (`I (mV)`, `V1_uV`) or in a column `unit`. Without a line of names, `--leads` gives them.
    """
    about = _sidecar(item.path)
    with item.path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = [line.strip() for line in islice((line for line in stream if line.strip()[:1] not in ("", "#")), 2)]
    if not lines:
        raise UnusableError("an empty file")
    separator = max(";\t,", key=lines[0].count)
    # Where a semicolon separates, a comma may stand for the decimal point.
    decimal = "," if separator == ";" and "," in lines[-1] else "."
    named = any(not _number(cell, decimal) for cell in lines[0].split(separator))
    how: dict[str, Any] = {"sep": separator, "decimal": decimal, "comment": "#", "encoding": "utf-8-sig"}
    how |= {"header": 0 if named else None, "skipinitialspace": True}
    table = pd.read_csv(item.path, nrows=_HEAD_ROWS, **how)
    raw = _of_table(table, about, named)
    fs = raw.fs or given.rate
    if len(table) == _HEAD_ROWS and fs:
        rows = int(given.max_seconds * fs) + 2
        raw = _of_table(pd.read_csv(item.path, nrows=rows, **how), about, named)
        raw.longer = raw.values.shape[1] == rows
    return raw


def _of_table(table: pd.DataFrame, about: Mapping[str, Any], named: bool) -> Raw:
    names = [str(name).strip() for name in table] if named else None
    said, signals, units = dict(about), list(table), [""] * table.shape[1]
    if names is not None:
        signals, units, kept = [], [], []
        for column, name in zip(table, names, strict=True):
            if name.lower() in (*RATE, *UNIT, *GAIN):
                said.setdefault(name.lower(), _constant(table[column], name))
            elif (time := _TIME.fullmatch(name)) is not None:
                if time[1] and _get(said, RATE) is None:
                    said[RATE[0]] = _rate_of(table[column], time[1].lower())
            elif pd.api.types.is_numeric_dtype(table[column]) or lead_of(name) is not None:
                plain, unit = split_unit(name)
                signals.append(column)
                kept.append(plain if unit else name)
                units.append(unit or "")
        names = kept
    values = table[signals]
    for column, kind in values.dtypes.items():
        if not pd.api.types.is_numeric_dtype(kind):
            raise UnusableError(f"column {column!r} is not numbers")
    raw = _described(values.to_numpy(float).T, said)
    raw.names = _same_length(_get(said, LEADS_KEYS), names)
    unit = raw.units[0] if raw.units else ""
    raw.units = [one or unit for one in units]
    return raw


def read_numpy(item: Item, given: Given) -> Raw:
    """An array of leads and samples, in either order, or a stack of them in a `.npy`; nothing is unpickled.

    A `.npz` may say `rate`, `unit` and `leads` beside its `signal`, or hold one array per lead under the lead's name.
    """
    about = _sidecar(item.path)
    if item.path.suffix.lower() == ".npy":
        array = np.load(item.path, mmap_mode="r")
        array = array if item.index is None else array[item.index]
    else:
        with np.load(item.path) as archive:
            arrays = {name: archive[name] for name in archive}
        about = {**about, **{name: one.tolist() for name, one in arrays.items() if one.size < _HEAD_ROWS}}
        leads = [name for name, one in arrays.items() if lead_of(name) is not None and one.ndim == 1]
        if len({arrays[name].size for name in leads}) > 1:
            raise UnusableError("its leads differ in length")
        array = np.stack([arrays[name] for name in leads]) if leads else arrays[_signal_key(arrays)]
        about |= {LEADS_KEYS[0]: leads} if leads else {}
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise UnusableError(f"an array of shape {array.shape} and type {array.dtype}: it should be (leads, samples)")
    names = _get(about, LEADS_KEYS)
    count = len(names) if names else len(given.leads) if given.leads else None
    array = _leads_first(array, count)
    raw = _described(array, about)
    raw.names = _same_length(names, None)
    fs = raw.fs or given.rate
    if fs:
        longest = int(given.max_seconds * fs) + 1
        raw.longer = array.shape[1] > longest
        raw.values = np.asarray(array[:, :longest])
    return raw


def _leads_first(array: np.ndarray, n_leads: int | None) -> np.ndarray:
    """(n_leads, n_samples); the axis of leads is the one of their number, or the shorter one."""
    rows, columns = array.shape
    if n_leads is None:
        return array if rows < columns else array.T
    if rows != n_leads != columns:
        raise UnusableError(f"an array of shape {array.shape}, but {n_leads} leads are named")
    return array if rows == n_leads else array.T


def _signal_key(archive: Mapping[str, np.ndarray]) -> str:
    named = [name for name in archive if name.lower() in SIGNAL]
    names = named or [name for name in archive if archive[name].ndim == 2]
    if len(names) != 1:
        raise UnusableError(f"which of its arrays is the signal? Call it 'signal' (it has {', '.join(archive)})")
    return names[0]


def _described(values: np.ndarray, about: Mapping[str, Any]) -> Raw:
    """A `Raw` with the rate, unit and gain of a sidecar, of keys or of columns."""
    unit, rate, gain = _get(about, UNIT), _get(about, RATE), _get(about, GAIN)
    units = [str(unit)] * len(values) if isinstance(unit, str) and unit else None
    if isinstance(unit, list | tuple):
        units = _same_length([str(one) for one in unit], None)
        if len(unit) != len(values):
            raise UnusableError(f"{len(values)} channels, but {len(unit)} units")
    return Raw(values, units=units, fs=_positive(rate, "rate"), gain=_positive(gain, "gain"))


def _get(about: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((value for name, value in about.items() if name.lower() in keys and value not in ("", None)), None)


def _positive(value: Any, what: str) -> float | None:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if number is not None and not 0 < number < np.inf:
        raise UnusableError(f"{what} {value!r} is not a positive number")
    return number


def _same_length(said: Any, other: list[str] | None) -> list[str] | None:
    """Names as a list of text; those of the sidecar or of keys count before those of columns."""
    if said is None:
        return other
    names = [part.strip() for part in said.split(",")] if isinstance(said, str) else [str(one) for one in said]
    if other is not None and len(names) != len(other):
        raise UnusableError(f"{len(other)} columns of numbers, but {len(names)} leads are named")
    return names


def _sidecar(path: Path) -> dict[str, Any]:
    file = path.with_suffix(".json")
    if not file.is_file():
        return {}
    try:
        about = json.loads(file.read_text())
    except ValueError as error:
        raise UnusableError(f"{file.name} beside it is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise UnusableError(f"{file.name} beside it is not a JSON object")
    return about


def _constant(column: pd.Series, name: str) -> Any:
    values = column.dropna().unique()
    if len(values) != 1:
        raise UnusableError(f"column {name!r} does not have one value")
    return values[0].item() if hasattr(values[0], "item") else values[0]


def _rate_of(times: pd.Series, unit: str) -> float:
    """Samples per second of evenly spaced times, which may be rounded by less than a step."""
    unit = "s" if unit.startswith("s") else unit
    t = pd.to_numeric(times, errors="coerce").to_numpy(float) / _PER_SECOND[unit]
    if len(t) < 2 or not np.isfinite(t).all() or t[-1] <= t[0]:
        raise UnusableError(f"column {times.name!r} does not rise")
    step = (t[-1] - t[0]) / (len(t) - 1)
    off = np.abs(t - t[0] - step * np.arange(len(t))).max()
    if off > step:
        raise UnusableError(f"times in column {times.name!r} are not evenly spaced")
    # Rounded times leave the rate open by so much: a whole number of Hz in that range is meant.
    whole = round(1 / step)
    return float(whole) if whole and abs(1 / (whole * step) - 1) <= 2 * off / (t[-1] - t[0]) + 1e-6 else 1 / step


def _number(cell: str, decimal: str) -> bool:
    try:
        float(cell.strip().strip('"').replace(decimal, "."))
    except ValueError:
        return cell.strip() == ""
    return True

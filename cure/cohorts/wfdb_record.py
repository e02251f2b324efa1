"""One WFDB record as a cohort stores it: twelve leads by name, in the header's unit, at 1 uV per unit."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wfdb

from cure.cohorts.base import RESOLUTION_MV
from cure.download import few
from cure.signals import LEADS

#: A record shorter than this is not used: it may hold two beats or none.
SHORTEST_SECONDS = 5
#: A longer record is cut after this.
LONGEST_SECONDS = 60

_RAIL = 32767
_UNITS = {"nv": 1e-6, "uv": 1e-3, "microv": 1e-3, "microvolt": 1e-3, "mv": 1.0, "millivolt": 1.0, "v": 1e3, "volt": 1e3}
#: Frontal leads from I and II: I, II, III, aVR, aVL, aVF.
_LIMB = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])
_BY_NAME = {lead.upper(): i for i, lead in enumerate(LEADS)}
#: IEC's names of the precordial leads, and those usual in Spanish and Portuguese.
_BY_NAME |= {f"C{i}": _BY_NAME[f"V{i}"] for i in range(1, 7)}
_BY_NAME |= {f"D{i}": i - 1 for i in (1, 2, 3)} | {f"D{'I' * i}": i - 1 for i in (1, 2, 3)}
_PREFIX = re.compile(r"(?:MDC)?(?:E[CK]G)?(?:LEAD)?")
#: A minus before or behind a name means an inverted lead; between two I's, a difference that is not III.
_MINUS = re.compile(r"^-|-$|[\s_.:]-\w|I-I", re.IGNORECASE)
_GAIN = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?:\([-+]?\d+\))?(?:/(\S+))?", re.IGNORECASE)


class UnusableError(Exception):
    """A record that a cohort cannot take; the message is the reason that `excluded.parquet` gives."""


@dataclass(frozen=True)
class Header:
    """What of a WFDB header decides whether its record can be used; `wfdb` hides some of it.

    Without a gain, or with gain 0, `wfdb` assumes 200 per mV; of a unit in Greek letters it keeps the V only.
    """

    files: list[str]
    gains: list[float]
    units: list[str]

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Parse a header's signal lines (header(5) of the WFDB Applications Guide).

        Raises
        ------
        UnusableError
            If it is no header of one segment.
        """
        data = path.read_bytes()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not lines or len(lines[0]) < 2 or not lines[0][1].isdigit():
            raise UnusableError("not a WFDB header")
        if "/" in lines[0][0]:
            raise UnusableError("a record of several segments: write it as one")
        fields = lines[1 : 1 + int(lines[0][1])]
        if len(fields) < int(lines[0][1]):
            raise UnusableError("the header lacks signal lines")
        found = [_GAIN.fullmatch(line[2]) if len(line) > 2 else None for line in fields]
        gains = [float(match[1]) if match else 0.0 for match in found]
        return cls([line[0] for line in fields], gains, [(match and match[2]) or "mV" for match in found])


def lead_index(name: str) -> int | None:
    """Position in `LEADS` of a channel's name, whatever its case, prefix or usual alias; None for other channels.

    `MDC_ECG_LEAD_AVR`, `Lead aVR` and `avr` are one lead; `C1` is V1 (IEC), `DI` is I. A name with a minus (`-aVR`,
    `aVR-`) is an inverted lead and none of these, as is `MLII`, whose electrodes are elsewhere.
    """
    if _MINUS.search(name.strip()):
        return None
    plain = re.sub(r"[\s_.:-]", "", name).upper()
    return _BY_NAME.get(_PREFIX.sub("", plain, count=1))


def complete(x: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Add the limb leads that two recorded ones determine.

    III = II - I, aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2, and these solved for I and II where others
    were recorded. Two leads that are constant were not recorded and determine nothing.

    Parameters
    ----------
    x : (12, n_samples) float64 array
        Zero where `present` is False.
    present : (12,) bool array

    Returns
    -------
    (12, n_samples) float64 array
        Leads that are present stay as they are.
    """
    recorded = np.flatnonzero(present[:6] & (np.ptp(x[:6], axis=1) > 0))[:2]
    missing = np.flatnonzero(~present[:6])
    if len(recorded) < 2 or not len(missing):
        return x
    x = x.copy()
    x[missing] = _LIMB[missing] @ np.linalg.inv(_LIMB[recorded]) @ x[recorded]
    return x


@dataclass(frozen=True)
class Record:
    """A record as it is stored.

    Attributes
    ----------
    signal : (12, n_samples) int16 array
        1 uV per unit, leads in the order of `LEADS`.
    fs : int
        Sampling rate in Hz: the source's.
    n_derived : int
        Limb leads that were not recorded and follow from others.
    cut : bool
        Whether the source goes on after `LONGEST_SECONDS`.
    clipped : float
        Share of samples beyond what int16 holds, 32.767 mV.
    """

    signal: np.ndarray
    fs: int
    n_derived: int
    cut: bool
    clipped: float


def read_record(path: Path) -> Record:
    """Read and check one record, the first `LONGEST_SECONDS` of it.

    Parameters
    ----------
    path : Path
        Without extension.

    Raises
    ------
    UnusableError
        Says why the record cannot be used. What `wfdb` raises for files that it cannot read comes through as it is.
    """
    raw = Header.read(path.with_name(f"{path.name}.hea"))
    header = wfdb.rdheader(str(path))
    places = [lead_index(name or "") for name in header.sig_name or []]
    channels = [i for i, place in enumerate(places) if place is not None]
    if not channels:
        raise UnusableError(f"no standard lead among its channels ({few(map(str, header.sig_name or ['none']))})")
    leads = np.array([places[i] for i in channels])
    if len(set(leads)) < len(leads):
        raise UnusableError("two channels are the same lead")
    frame = {header.samps_per_frame[i] for i in channels}
    fs = header.fs * min(frame)
    if len(frame) > 1 or fs != round(fs) or fs < 1:
        raise UnusableError(f"sampling rate {fs:g} Hz is not a whole number, or not the same in all leads")
    if any(raw.gains[i] == 0 for i in channels):
        raise UnusableError("no gain in the header: amplitudes are not calibrated")
    scale = np.array([_millivolts(raw.units[i]) for i in channels]) / RESOLUTION_MV
    longest = round(LONGEST_SECONDS * header.fs)
    cut = header.sig_len is not None and header.sig_len > longest
    record = wfdb.rdrecord(
        str(path), sampto=longest if cut else None, channels=channels, physical=False, smooth_frames=False
    )
    digital = record.e_d_signal
    # The sum is over the whole record; some writers put 0 for "not computed".
    if not cut and record.checksum and any(record.checksum):
        pairs = zip(digital, record.checksum, strict=True)
        if any((np.sum(samples, dtype=np.int64) - told) % 65536 for samples, told in pairs if told is not None):
            raise UnusableError("samples do not match the header's checksum")
    physical = np.stack(record.dac(expanded=True))[:, : round(LONGEST_SECONDS * fs)]
    if np.isnan(physical).any():
        raise UnusableError("invalid (NaN) samples")
    if physical.shape[1] < SHORTEST_SECONDS * fs:
        raise UnusableError(f"shorter than {SHORTEST_SECONDS} s")
    x, present = np.zeros((len(LEADS), physical.shape[1])), np.zeros(len(LEADS), bool)
    x[leads], present[leads] = physical * scale[:, None], True
    x = complete(x, present).round()
    if not np.ptp(x, axis=1).any():
        raise UnusableError("all leads flat")
    derived = int((~present & (np.ptp(x, axis=1) > 0)).sum())
    clipped = float((np.abs(x) >= _RAIL).mean())
    cut = cut or len(digital[0]) > physical.shape[1]
    return Record(x.clip(-_RAIL, _RAIL).astype(np.int16), round(fs), derived, cut, clipped)


def _millivolts(unit: str) -> float:
    plain = unit.lower().replace("µ", "u").replace("μ", "u").removesuffix("s")
    if plain not in _UNITS:
        raise UnusableError(f"unit {unit!r} is not a voltage")
    return _UNITS[plain]

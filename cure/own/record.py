"""One record: what its file says, and the twelve leads in mV that are made of it."""

from dataclasses import dataclass, field

import numpy as np

from cure.cohorts.wfdb_record import UnusableError, complete
from cure.own.names import ADC, UNITS, lead_of, shown, unit_of
from cure.signals import LEADS

#: A shorter record is refused: no filter or beat fits into it.
LEAST_SECONDS = 2.0
#: Rates that differ by less than this share are the same; one so near to a whole number of Hz is that.
_SAME = 1e-6
#: No surface ECG has such a range, in mV, in the median of its leads; one in another unit does.
_IMPLAUSIBLE_MV = 100.0
_SHOWN = 6


@dataclass(frozen=True)
class Given:
    """What the user says of files that do not say it themselves.

    Attributes
    ----------
    rate : float or None
        Sampling rate, Hz.
    unit : str or None
        One of V, mV, uV, nV, adc.
    gain : float or None
        Counts per mV, for unit adc.
    leads : tuple of str or None
        Name of each channel in order; `-` for one that is no lead.
    max_seconds : float
        A longer record is cut after this.
    """

    rate: float | None = None
    unit: str | None = None
    gain: float | None = None
    leads: tuple[str, ...] | None = None
    max_seconds: float = 60.0


@dataclass
class Raw:
    """What a reader finds in a file; None for what the file does not say.

    Attributes
    ----------
    values : (n_channels, n_samples) array
        In the file's own unit; at most a sample more than `max_seconds`, where that can be known.
    names : list of str or None
        Of the channels.
    units : list of str or None
        Of the channels, as the file spells them; an empty one is not said.
    fs : float or None
        Hz.
    gain : float or None
        Counts per mV where the unit is adc.
    longer : bool
        Whether the file goes on behind `values`.
    """

    values: np.ndarray
    names: list[str] | None = None
    units: list[str] | None = None
    fs: float | None = None
    gain: float | None = None
    longer: bool = False


@dataclass
class Record:
    """Twelve leads.

    Attributes
    ----------
    x : (12, n_samples) float32 array
        mV, in the order of `LEADS`.
    fs : float
        Hz.
    present, derived : (12,) bool arrays
        Leads that were recorded; limb leads that follow exactly from two of those. All others are zero.
    notes : list of str
        What was done to it, for people.
    quality : list of str
        Flags of `cure.own.quality`.
    """

    x: np.ndarray
    fs: float
    present: np.ndarray
    derived: np.ndarray
    notes: list[str] = field(default_factory=list)
    quality: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Length."""
        return self.x.shape[1] / self.fs


def standard(raw: Raw, given: Given) -> Record:
    """Twelve leads in mV of what a file and the user say. The file comes first; what is left unsaid is never guessed.

    Raises
    ------
    UnusableError
        Says why the record cannot be used, and where an option fills a gap, which.
    """
    notes: list[str] = []
    fs = _rate(raw, given, notes)
    places = _places(raw, given, notes)
    chosen = [i for i, place in enumerate(places) if place is not None]
    leads = [place for place in places if place is not None]
    if len(set(leads)) < len(leads):
        twice = sorted({lead for lead in leads if leads.count(lead) > 1})
        raise UnusableError(f"two channels are the same lead ({shown(twice)})")
    n = min(raw.values.shape[1], round(given.max_seconds * fs))
    if raw.longer or n < raw.values.shape[1]:
        notes.append(f"cut to {given.max_seconds:g} s")
    if n < LEAST_SECONDS * fs:
        raise UnusableError(f"shorter than {LEAST_SECONDS:g} s ({n} samples at {fs:g} Hz)")
    values = np.asarray(raw.values)[chosen, :n].astype(np.float64)
    bad = [lead for lead, row in zip(leads, values, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise UnusableError(f"invalid (NaN) samples in {shown(bad)}")
    x, present = np.zeros((len(LEADS), n)), np.zeros(len(LEADS), bool)
    x[leads], present[leads] = values * _scale(raw, given, chosen, notes)[:, None], True
    ranges = np.ptp(x[leads], axis=1)
    if not ranges.any():
        raise UnusableError("all leads flat")
    if np.median(ranges) > _IMPLAUSIBLE_MV:
        raise UnusableError(
            f"its leads range over {np.median(ranges):,.0f} mV, which no ECG does: the unit is wrong; --unit says it "
            "where the file does not"
        )
    x = complete(x, present).astype(np.float32)
    derived = ~present & (np.ptp(x, axis=1) > 0)
    return Record(x, fs, present, derived, notes)


def _rate(raw: Raw, given: Given, notes: list[str]) -> float:
    fs = given.rate if raw.fs is None else raw.fs
    if fs is None:
        raise UnusableError("the file does not say its sampling rate: say it with --rate")
    if not np.isfinite(fs) or fs <= 0:
        raise UnusableError(f"sampling rate {fs:g} Hz is none")
    if abs(fs - round(fs)) < _SAME * fs:
        fs = float(round(fs))
    if given.rate is not None and abs(given.rate - fs) > _SAME * fs:
        notes.append(f"--rate not used: the file says {fs:g} Hz")
    return fs


def _places(raw: Raw, given: Given, notes: list[str]) -> list[int | None]:
    """Position in `LEADS` of each channel."""
    places = [lead_of(name) for name in raw.names or []]
    n = len(raw.values)
    if any(place is not None for place in places):
        if given.leads and [lead_of(name) for name in given.leads] != places:
            notes.append("--leads not used: the file names its leads")
        return places
    about = f"no standard lead among its channels ({_few(raw.names)})" if raw.names else "its channels have no names"
    if given.leads is None:
        raise UnusableError(f"{about}: name all {n} in order with --leads, such as --leads I,II,V1")
    if len(given.leads) != n:
        raise UnusableError(f"{n} channels, but --leads names {len(given.leads)}")
    return [None if name == "-" else lead_of(name) for name in given.leads]


def _scale(raw: Raw, given: Given, chosen: list[int], notes: list[str]) -> np.ndarray:
    """Millivolts per unit of each chosen channel."""
    said = [raw.units[i] if raw.units else "" for i in chosen]
    if given.unit and any(text and unit_of(text) != given.unit for text in said):
        notes.append(f"--unit not used: the file says {_few(sorted({text for text in said if text}))}")
    scale = []
    for text in said:
        unit = unit_of(text) if text else given.unit
        if unit is None and text:
            raise UnusableError(f"unit {text!r} is not a voltage: correct the file, amplitudes are unknown")
        if unit is None:
            raise UnusableError("the file does not say its unit: say it with --unit (V, mV, uV, nV, or adc and --gain)")
        if unit != ADC:
            scale.append(UNITS[unit])
            continue
        gain = given.gain if raw.gain is None else raw.gain
        if gain is None or not np.isfinite(gain) or gain <= 0:
            raise UnusableError("its samples are counts of a converter: say how many are 1 mV with --gain")
        scale.append(1 / gain)
    return np.array(scale)


def _few(names: list[str] | None) -> str:
    names = names or []
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

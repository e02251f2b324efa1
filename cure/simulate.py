"""A 12-lead ECG simulator: a heart dipole, beat by beat, seen by nine electrodes.

A torso matrix per patient projects the waves of `cure.heart` onto the electrodes RA, LA, LL, V1..V6; noise and faults
are added *there*, so that Einthoven's and Goldberger's relations hold for the noise as well. Rendering is two array
operations per chunk: bumps in time `(n, waves, samples)`, then a matrix product.

`plan` turns a table of patients into small arrays, `render` turns rows of a plan into signals (any rows, any order, any
process), `find_beats` and `find_truth` tell where each wave is and what was planted; `simulate` does it all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray

from cure import heart
from cure.heart import ELECTRODES, ST, VENTRICLE, WAVES, P, T
from cure.signals import LEADS

Floats = NDArray[np.floating]

CHUNK = 16  # records rendered at once: the working set stays near the cache

INFERIOR, CHEST, LATERAL = ("II", "III", "aVF"), LEADS[6:], ("I", "aVL", "V5", "V6")
#: condition -> (severity column or interval, planted from, windows, leads that show it best, other leads).
PLANTED: dict[str, tuple[str, float, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "1AVB": ("pr_ms", 200.0, ("pr",), ("II",), LEADS),
    "CRBBB": ("rbbb", 0.55, ("late_qrs",), ("V1", "V2", "I", "V6"), ()),
    "CLBBB": ("lbbb", 0.55, ("qrs",), ("I", "V6", "V1", "V2"), ("aVL", "V3", "V5")),
    "AMI": ("mi_anterior", 0.3, ("early_qrs", "st_t"), ("V1", "V2", "V3", "V4"), ()),
    "IMI": ("mi_inferior", 0.3, ("early_qrs", "st_t"), INFERIOR, ()),
    "LMI": ("mi_lateral", 0.3, ("early_qrs", "st_t"), LATERAL, ()),
    "NST_": ("st_depression", 0.3, ("st_t",), ("V4", "V5", "V6"), ("I", "II", "aVL", "aVF")),
    "NDT": ("t_inversion", 0.3, ("st_t",), ("V4", "V5", "V6"), ("I", "II", "aVL", "aVF")),
    "LVH": ("lvh", 0.3, ("qrs",), ("V1", "V2", "V5", "V6"), ("I", "aVL", "V3", "V4")),
    "AFIB": ("afib", 1e-9, ("tq",), ("II", "V1"), LEADS),
    "SBRAD": ("rate_bpm", -60.0, ("tq",), LEADS, ()),  # negative: planted *below* this rate, in sinus rhythm
    "STACH": ("rate_bpm", 100.0, ("tq",), LEADS, ()),
}


@dataclass(frozen=True)
class Plan:
    """Everything that decides a set of records, except its noise: small arrays, one row per record."""

    patients: pd.DataFrame  # every column of HEALTHY, indexed by record
    seconds: float
    mixing: Floats  # (n, 9 electrodes, 13 waves) mV
    centre: Floats  # (n, 13) s; P before the QRS onset, the others after it
    rise: Floats  # (n, 13) s, half-width before the centre
    fall: Floats  # (n, 13) s, half-width after the centre
    onset: Floats  # (n, beats) s, QRS onsets; the first is at or before 0
    qt: Floats  # (n, beats) s
    breath_hz: Floats  # (n,)
    breath_phase: Floats  # (n,) rad
    breathing: Floats  # (n, 9) share by which respiration scales an electrode's potential

    @property
    def qrs(self) -> Floats:
        """Duration of the QRS complex, `(n,)` s, blocks included."""
        return heart.qrs_ms(self.patients) / 1000

    @property
    def axis_deg(self) -> Floats:
        """Frontal QRS axis, `(n,)` degrees, from the net area of leads I and aVF."""
        ra, la, ll = np.moveaxis((self.mixing * (self.rise + self.fall)[:, None])[:, :3, VENTRICLE].sum(2), 1, 0)
        return np.degrees(np.arctan2((2 * ll - ra - la) / np.sqrt(3), la - ra))


@dataclass(frozen=True)
class Simulation:
    """Signals `(n, 12, samples)` float32 mV in the order of LEADS, and what is in them."""

    signals: NDArray[np.float32]
    beats: pd.DataFrame
    truth: pd.DataFrame


def simulate(patients: pd.DataFrame, *, fs: int, seconds: float, rng: np.random.Generator) -> Simulation:
    """Simulate one 12-lead record per row of `patients`.

    Parameters
    ----------
    patients : DataFrame
        Any columns of `cure.heart.HEALTHY` (missing ones take the healthy value) and optionally `patient`: records
        with the same value share one anatomy. The index names the records in `beats` and `truth`.
    fs : int
        Sampling rate in Hz, at least 100.
    seconds : float
        Length of a record.
    rng : numpy.random.Generator
        The only source of chance.
    """
    planned = plan(patients, seconds=seconds, rng=rng)
    signals = np.empty((len(patients), len(LEADS), round(seconds * fs)), np.float32)
    for rows, child in chunks(len(patients), rng):
        signals[rows] = render(planned, rows, fs=fs, rng=child)
    return Simulation(signals, find_beats(planned), find_truth(planned))


def chunks(n: int, rng: np.random.Generator, size: int = CHUNK) -> Iterator[tuple[slice, np.random.Generator]]:
    """Rows to render together, each with its own generator: the result does not depend on who renders what."""
    starts = range(0, n, size)
    for start, child in zip(starts, rng.spawn(len(starts)), strict=True):
        yield slice(start, min(start + size, n)), child


def plan(patients: pd.DataFrame, *, seconds: float, rng: np.random.Generator) -> Plan:
    """Decide rhythm, waves and torso of every record; see `simulate` for the arguments.

    Raises
    ------
    ValueError
        For an unknown column, a value out of range or an unknown fault; the message names it.
    """
    people = heart.checked(patients)
    n = len(people)
    owner, owners = pd.factorize(patients["patient"]) if "patient" in patients else (np.arange(n), np.arange(n))
    # Anatomy belongs to the patient: one row of normals each, shared by all records of that patient.
    traits = rng.standard_normal((len(owners), 9 * 3 + 9 + len(WAVES) * 4))[owner] * people[["variety"]].to_numpy()
    place, habitus, shape, gain = np.split(traits, np.cumsum([27, 9, len(WAVES) * 3]), axis=1)

    dipoles = heart.dipoles(people) * np.exp(0.13 * gain)[:, :, None]
    dipoles += 0.14 * np.linalg.norm(dipoles, axis=2, keepdims=True) * shape.reshape(n, -1, 3)
    torso = heart.torso() + 0.05 * place.reshape(n, 9, 3)
    torso[:, 3:] *= np.exp(0.12 * habitus[:, 3:])[:, :, None]  # a chest electrode nearer to or farther from the heart
    turned = torso @ heart.rotation(people["axis_deg"].to_numpy(), people["yaw_deg"].to_numpy())
    mixing = people["voltage"].to_numpy()[:, None, None] * (turned @ dipoles.transpose(0, 2, 1))

    breath_hz, breath_phase = rng.uniform(0.18, 0.33, n), rng.uniform(0, 2 * np.pi, n)
    rr = _rr(people, seconds, breath_hz, breath_phase, rng)
    onset = np.cumsum(rr, axis=1) - rr[:, :1] * (1 + rng.random((n, 1)))
    # QT follows the rate slowly (Fridericia's cube root of the mean RR) and only a little the last interval.
    mean = rr.mean(axis=1, keepdims=True)
    memory = 0.75 * mean + 0.25 * np.roll(rr, 1, axis=1)
    qt = (people[["qtc_ms"]].to_numpy() + 0.6 * (heart.qrs_ms(people) - people["qrs_ms"].to_numpy())[:, None]) / 1000
    qt = np.minimum(qt * np.cbrt(memory), 0.92 * np.append(rr[:, 1:], rr[:, -1:], axis=1))
    centre, rise, fall = heart.timing(people, qt.mean(axis=1))
    breathing = rng.normal(0.03, 0.03, (n, 9))
    waves = {"mixing": mixing, "centre": centre, "rise": rise, "fall": fall, "breathing": breathing}
    single = {name: values.astype(np.float32) for name, values in waves.items()}
    return Plan(people, seconds, onset=onset, qt=qt, breath_hz=breath_hz, breath_phase=breath_phase, **single)


def render(planned: Plan, rows: slice, *, fs: int, rng: np.random.Generator, noise: bool = True) -> NDArray[np.float32]:
    """Signals `(rows, 12, samples)` in mV of some records of a plan; without `noise`, the heart alone."""
    if fs < 100:
        raise ValueError(f"fs={fs} Hz is too low to draw a QRS complex; use 100 Hz or more")
    mixing, centre, rise, fall = (a[rows] for a in (planned.mixing, planned.centre, planned.rise, planned.fall))
    n, samples = len(mixing), round(planned.seconds * fs)
    time = (np.arange(samples) / fs).astype(np.float32)
    since, until, repolarising = _beat_clocks(planned, rows, time, fs)

    bumps = np.empty((n, len(WAVES), samples), np.float32)
    for wave in range(len(WAVES)):
        clock = until if wave < P.stop else repolarising if wave >= ST else since
        _bump(clock, centre[:, wave], rise[:, wave], fall[:, wave], out=bumps[:, wave])
    electrodes = mixing @ bumps

    breath = np.sin(2 * np.pi * planned.breath_hz[rows, None] * time + planned.breath_phase[rows, None])
    breath = breath.astype(np.float32)[:, None]
    electrodes *= 1 + planned.breathing[rows, :, None].astype(np.float32) * breath
    people = planned.patients.iloc[rows]
    _fibrillate(electrodes, people, fs, rng)
    if noise:
        _add_noise(electrodes, breath, people, fs, rng)
        _break_electrodes(electrodes, people["fault"].to_numpy(), time, rng)
    return to_leads(electrodes)


def to_leads(electrodes: Floats) -> NDArray[np.float32]:
    """Twelve leads `(n, 12, samples)` from the potentials `(n, 9, samples)` of RA, LA, LL, V1..V6.

    Einthoven: I = LA - RA, II = LL - RA, III = II - I. Goldberger: aVR = -(I + II)/2, aVL = I - II/2,
    aVF = II - I/2. Wilson: V1..V6 against the mean of RA, LA and LL.
    """
    ra, la, ll = electrodes[:, 0], electrodes[:, 1], electrodes[:, 2]
    leads = np.empty((len(electrodes), 12, electrodes.shape[2]), np.float32)
    one, two = leads[:, 0], leads[:, 1]
    np.subtract(la, ra, out=one)
    np.subtract(ll, ra, out=two)
    leads[:, 2] = two - one
    leads[:, 3] = -(one + two) / 2
    leads[:, 4] = one - two / 2
    leads[:, 5] = two - one / 2
    np.subtract(electrodes[:, 3:], ((ra + la + ll) / 3)[:, None], out=leads[:, 6:])
    return leads


def find_beats(planned: Plan) -> pd.DataFrame:
    """One row per beat: the record, its number, RR to the next beat and the edges of its waves in seconds.

    Columns: ecg_id, beat, rr, p_start, p_end, qrs_start, qrs_end, t_peak, t_end, previous_t_end. P is missing (NaN)
    in atrial fibrillation. Times may lie outside the record for beats that are cut by its edge.
    """
    n, b = planned.onset.shape
    people, onset = planned.patients, planned.onset
    sinus = np.where(people["afib"].to_numpy() > 0, np.nan, 1.0)[:, None]
    p_start = (onset - people[["pr_ms"]].to_numpy() / 1000) * sinus
    stretch = planned.qt / planned.qt.mean(axis=1, keepdims=True)
    t_end = onset + planned.qt
    columns = {
        "ecg_id": np.repeat(people.index.to_numpy(), b).reshape(n, b),
        "beat": np.broadcast_to(np.arange(b), (n, b)),
        "rr": np.diff(onset, axis=1, append=np.nan),
        "p_start": p_start,
        "p_end": p_start + people[["p_ms"]].to_numpy() / 1000,
        "qrs_start": onset,
        "qrs_end": onset + planned.qrs[:, None],
        "t_peak": onset + planned.centre[:, [T]] * stretch,
        "t_end": t_end,
        "previous_t_end": np.concatenate([onset[:, :1] - 0.35, t_end[:, :-1]], axis=1),
    }
    beats = pd.DataFrame({name: np.ravel(values) for name, values in columns.items()})
    shown = (beats["qrs_start"] - people["pr_ms"].max() / 1000 < planned.seconds) & (beats["t_end"] > 0)
    return beats[shown].reset_index(drop=True)


def find_truth(planned: Plan) -> pd.DataFrame:
    """Tell what was planted where: one row per record, condition, wave, lead and beat.

    Columns: ecg_id, condition, severity (the planted value), wave, lead, strength (1 in the leads that show
    the condition best, 0.5 in the others that show it), beat, start, end (s, within the record). It says what is in
    the *signal*; the statements of annotators may miss it or claim more.
    """
    beats, people = find_beats(planned), planned.patients
    qrs = beats["qrs_end"] - beats["qrs_start"]
    windows = {
        "pr": (beats["p_start"], beats["qrs_start"]),
        "qrs": (beats["qrs_start"], beats["qrs_end"]),
        "early_qrs": (beats["qrs_start"], beats["qrs_start"] + 0.5 * qrs),
        "late_qrs": (beats["qrs_start"] + 0.4 * qrs, beats["qrs_end"]),
        "st_t": (beats["qrs_end"], beats["t_end"]),
        "tq": (beats["previous_t_end"], beats["qrs_start"]),
    }
    found = []
    for condition, (column, threshold, waves, best, others) in PLANTED.items():
        value = people[column]
        planted = value < -threshold if threshold < 0 else value >= threshold
        if condition in ("1AVB", "SBRAD", "STACH"):
            planted &= people["afib"] == 0
        ids = people.index[planted]
        strength = dict.fromkeys(others, 0.5) | dict.fromkeys(best, 1.0)
        leads = pd.DataFrame({"lead": list(strength), "strength": list(strength.values())})
        of_ids = beats["ecg_id"].isin(ids)
        for wave in waves:
            start, end = (edge[of_ids].clip(0, planned.seconds) for edge in windows[wave])
            rows = beats.loc[of_ids, ["ecg_id", "beat"]].assign(start=start, end=end)
            rows = rows[rows["end"] > rows["start"]].assign(
                condition=condition,
                wave=wave,
                severity=lambda r: r["ecg_id"].map(value),  # noqa: B023 - used at once
            )
            found.append(rows.merge(leads, how="cross"))
    order = ["ecg_id", "condition", "severity", "wave", "lead", "strength", "beat", "start", "end"]
    truth = pd.concat(found, ignore_index=True)[order]
    return truth.sort_values(["ecg_id", "condition", "wave", "beat"], kind="stable", ignore_index=True)


def _rr(people: pd.DataFrame, seconds: float, breath_hz: Floats, phase: Floats, rng: np.random.Generator) -> Floats:
    """RR intervals `(n, beats)` s: slow and respiratory variability, early beats, or atrial fibrillation."""
    mean = 60 / people["rate_bpm"].to_numpy()[:, None]
    beats = int(np.ceil(1.6 * seconds / mean.min())) + 6
    time = mean * np.arange(beats)
    n = len(people)
    slow = np.sin(2 * np.pi * (rng.uniform(0.07, 0.12, (n, 1)) * time + rng.random((n, 1))))
    breathing = np.sin(2 * np.pi * breath_hz[:, None] * time + phase[:, None] + 1.2)
    jitter = rng.standard_normal((n, beats))
    rr = mean * (1 + people[["hrv"]].to_numpy() * (0.7 * slow + breathing + 0.3 * jitter))
    early = rng.random((n, beats)) < people[["premature"]].to_numpy()
    early[:, 1:] &= ~early[:, :-1]  # no two in a row
    rr = rr * np.where(early, rng.uniform(0.6, 0.8, (n, beats)), 1.0)
    rr[:, 1:] *= np.where(early[:, :-1], rng.uniform(1.1, 1.3, (n, beats - 1)), 1.0)
    spread = 0.06 + 0.22 * people[["afib"]].to_numpy()
    chaotic = mean * np.exp(spread * jitter - spread**2 / 2)
    return np.maximum(np.where(people[["afib"]].to_numpy() > 0, chaotic, rr), 0.27)


def _beat_clocks(planned: Plan, rows: slice, time: Floats, fs: int) -> tuple[Floats, Floats, Floats]:
    """Per sample `(n, samples)` s: since the last QRS onset, until the next (negative), repolarisation time."""
    onset, qt = planned.onset[rows], planned.qt[rows]
    n = len(onset)
    first = np.clip(np.ceil(onset * fs), 0, len(time)).astype(np.int64)
    first[:, 0] = 0
    counts = np.diff(first, axis=1, append=len(time)).ravel()

    def spread(per_beat: Floats) -> Floats:
        return np.repeat(per_beat.astype(np.float32).ravel(), counts).reshape(n, len(time))

    since = time - spread(onset)
    until = time - spread(np.concatenate([onset[:, 1:], np.full((n, 1), 1e6)], axis=1))
    return since, until, since * spread(qt.mean(axis=1, keepdims=True) / qt)


def _bump(clock: Floats, centre: Floats, rise: Floats, fall: Floats, out: Floats) -> None:
    """(1 - u^2)^3 on |u| < 1: close to a Gaussian, yet it ends exactly at centre - rise and centre + fall."""
    u = clock - centre[:, None]
    if np.array_equal(rise, fall):
        u /= rise[:, None]
    else:
        u *= np.where(u < 0, 1 / rise[:, None], 1 / fall[:, None])
    np.multiply(u, u, out=u)
    np.subtract(1, u, out=u)
    np.maximum(u, 0, out=u)
    np.multiply(u, u, out=out)
    out *= u


def _spectrum(shape: Floats, channels: tuple[int, int], rng: np.random.Generator, n_fft: int) -> NDArray[np.complex64]:
    """Random spectra `(n, channels, bins)` of noise of unit variance with amplitude spectrum `shape` `(bins,)`."""
    used = np.flatnonzero(shape)
    scale = shape[used] * (n_fft / 2 / np.sqrt((shape**2).sum()))
    parts = rng.standard_normal((*channels, len(used), 2), dtype=np.float32)
    spectra = np.zeros((*channels, len(shape)), np.complex64)
    spectra[..., used] = parts.view(np.complex64)[..., 0] * scale.astype(np.float32)
    return spectra


def _grid(samples: int, fs: int) -> tuple[int, Floats]:
    """FFT length 20 % longer than the record (noise must not be periodic in it) and its frequencies in Hz."""
    n_fft = int(np.ceil(samples * 1.2 / fs)) * fs  # whole seconds: 50 Hz falls on a bin
    return n_fft, np.fft.rfftfreq(n_fft, 1 / fs)


def _fibrillate(electrodes: Floats, people: pd.DataFrame, fs: int, rng: np.random.Generator) -> None:
    """Add fibrillatory waves, 4 to 9 Hz, largest in V1 and the inferior leads."""
    rows = np.flatnonzero(people["afib"].to_numpy() > 0)
    if not len(rows):
        return
    samples = electrodes.shape[2]
    n_fft, hz = _grid(samples, fs)
    shape = np.exp(-0.5 * ((hz - 6.2) / 1.1) ** 2) * ((hz > 3.5) & (hz < 10))
    waves = scipy.fft.irfft(_spectrum(shape, (len(rows), 3), rng, n_fft), n_fft)[..., :samples]
    size = (0.012 + 0.035 * people["afib"].to_numpy()[rows]) * np.exp(0.4 * rng.standard_normal(len(rows)))
    electrodes[rows] += (heart.torso() * [0.5, 0.8, 1.0] * size[:, None, None]).astype(np.float32) @ waves


def _add_noise(electrodes: Floats, breath: Floats, people: pd.DataFrame, fs: int, rng: np.random.Generator) -> None:
    """Add wander (1/f, respiration), muscle noise (10 to 150 Hz) and hum (50 Hz) to each electrode on its own."""
    n, k, samples = electrodes.shape
    n_fft, hz = _grid(samples, fs)
    size = np.exp(0.45 * rng.standard_normal((3, n, k, 1), dtype=np.float32))  # contact differs between electrodes
    size *= people[["wander_mv", "muscle_mv", "hum_mv"]].to_numpy(np.float32).T[:, :, None, None]
    size[1, :, :3] *= 1.6  # limbs tremble more than the chest
    slow = np.where((hz > 0.04) & (hz < 10), np.maximum(hz, 0.1) ** -1.7, 0.0)
    fast = np.where((hz >= 10) & (hz < 150), np.exp(-hz / 75), 0.0)
    top = np.searchsorted(hz, 10.0)
    spectra = _spectrum(fast, (n, k), rng, n_fft) * size[1]
    spectra[..., :top] = _spectrum(slow[:top], (n, k), rng, n_fft) * size[0]
    mains = np.searchsorted(hz, 50.0)
    if mains < len(hz) - 1:  # absent at 100 Hz, where 50 Hz is the Nyquist frequency
        phase = rng.normal(0, 0.6, (n, k)) + rng.uniform(0, 2 * np.pi, (n, 1))
        spectra[..., mains] += (size[2][..., 0] * np.exp(1j * phase) * n_fft / np.sqrt(2)).astype(np.complex64)
    electrodes += scipy.fft.irfft(spectra, n_fft, overwrite_x=True)[..., :samples]
    electrodes += (0.5 * size[0] * rng.standard_normal((n, k, 1), dtype=np.float32)) * breath


def _break_electrodes(electrodes: Floats, faults: NDArray, time: Floats, rng: np.random.Generator) -> None:
    """Break electrodes: loose (steps that decay as in an amplifier), flat (no contact), swapped (RA and LA)."""
    for row in np.flatnonzero(faults != ""):
        kind, name = str(faults[row]).split(":")
        if kind == "swap":
            electrodes[row, :2] = electrodes[row, 1::-1].copy()
        elif kind == "flat":
            electrodes[row, ELECTRODES.index(name)] = electrodes[row, :3].mean(axis=0)
        else:
            after = time - rng.uniform(0, time[-1], (5, 1))
            decay = np.exp(-np.maximum(after, 0) / rng.uniform(0.3, 1.5, (5, 1))) * (after > 0)
            electrodes[row, ELECTRODES.index(name)] += rng.normal(0, 0.5, 5) @ decay

"""Hand-crafted ECG features: what a cardiologist's ruler measures, for thousands of records at once.

The path is clean -> R peaks -> aligned median beat -> wave boundaries -> table. R peaks come from neurokit2; everything
after them is array code over all beats and leads of a chunk of records. Measuring one median beat instead of every beat
averages noise away before a boundary is sought, and costs a fraction of a per-beat delineation.

Every record is band-limited to 40 Hz and brought to one grid, so 100 Hz and 500 Hz copies of it measure alike.
Amplitudes are in mV relative to the PQ segment, times in ms, angles in degrees. What cannot be measured is NaN, never a
guess: a head imputes it within its training folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import joblib
import neurokit2 as nk
import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft, ndimage

from cure.progress import progress

Float = NDArray[np.floating]
Int = NDArray[np.integer]
Bool = NDArray[np.bool_]
Columns = dict[str, Float]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

#: The grid of every measurement. 250 Hz holds the 40 Hz band with room to spare, whatever the source's rate.
FS = 250
STEP_MS = 1000 / FS
#: A beat reaches from 440 ms before its R peak (a PR interval of 400 ms) to 640 ms after it (a QT of 600 ms).
BEFORE, AFTER = 440 * FS // 1000, 640 * FS // 1000
TIME_MS = STEP_MS * np.arange(-BEFORE, AFTER)
#: Half-width of the QRS window in which beats are aligned and compared, and how far a beat may shift.
CORE, SLACK = 100 * FS // 1000, 40 * FS // 1000
#: A median beat needs MIN_BEATS, and MIN_SHARE of all, whose QRS is ALIKE their median's (cosine over all leads).
MIN_BEATS, MIN_SHARE, ALIKE = 3, 0.25, 0.8

#: Pass band of the measurements, and the band in which QRS energy dominates P, T and wander; powerline notches.
BAND_HZ, QRS_BAND_HZ, POWERLINE_HZ = (0.5, 40.0), (5.0, 25.0), (50.0, 60.0)
#: QRS begins and ends where the speed has fallen to this share between its quiet level and its top.
QRS_EDGE = 0.06
#: A P wave counts as present when the beats repeat it: mean correlation with the median beat's P wave.
P_REPEATS = 0.7
#: A lead whose range stays below this is flat.
FLAT_MV = 0.02
#: Records per task. Fixed, so that results do not depend on the number of workers.
CHUNK = 64

#: Frank's X, Y, Z from the eight independent leads: regression of Kors et al., Eur Heart J 1990;11:1083.
INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]
KORS = np.array(
    [
        [0.38, -0.07, -0.13, 0.05, -0.01, 0.14, 0.06, 0.54],
        [-0.07, 0.93, 0.06, -0.02, -0.05, 0.06, -0.17, 0.13],
        [0.11, -0.23, -0.43, -0.06, -0.14, -0.20, -0.11, 0.31],
    ]
)


@dataclass(frozen=True)
class MedianBeats:
    """The median beat of every record and how the beats follow each other."""

    beats: NDArray[np.float32]  #: (n, 12, window) mV; NaN for a record without a median beat, or a flat or missing lead
    r_sample: int  #: the R peak's index in the window
    fs: float  #: sampling rate of `beats` in Hz: the grid's, not the record's
    rhythm: pd.DataFrame  #: (n, ...) float32: RR statistics, and what share of the beats is premature or odd


def ecg_features(signals: Float, fs: float, *, n_jobs: int | None = None) -> pd.DataFrame:
    """Measure rate, rhythm, intervals, axes and amplitudes of every record.

    Parameters
    ----------
    signals : (n, 12, samples) float, mV
        Leads in the order of `LEADS`. Non-finite samples count as missing.
    fs : sampling rate in Hz.
    n_jobs : joblib workers; the values do not depend on it.

    Returns
    -------
    (n, n_features) float32 table; a column's name carries its unit and lead. `q` and `s` are depths (positive), `st` is
    the level 60 ms after the J point, QTc is Fridericia's, axes are frontal. A record without a median beat (flat,
    noise, too few alike beats) is a row of NaN: `unmeasurable` finds these.

    Raises
    ------
    ValueError
        If `signals` is not (n, 12, samples), or `fs` or the duration is too small to hold beats.
    """
    parts = list(_by_chunk(_measure, signals, fs, n_jobs, "features"))
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True).astype(np.float32)


def median_beats(signals: Float, fs: float, *, n_jobs: int | None = None) -> MedianBeats:
    """Align the beats of every record and take their median; premature and odd beats are left out.

    Parameters and errors as for `ecg_features`.
    """
    parts = list(_by_chunk(_median_of, signals, fs, n_jobs, "median beats"))
    rhythm = pd.concat([pd.DataFrame(part[1]) for part in parts], ignore_index=True).astype(np.float32)
    return MedianBeats(np.concatenate([part[0] for part in parts]), BEFORE, FS, rhythm)


def unmeasurable(features: pd.DataFrame) -> Bool:
    """Which rows of `ecg_features` hold no measurement at all, (n,) bool."""
    return features.isna().all(axis=1).to_numpy()


def _by_chunk(work: Callable[..., Any], signals: Float, fs: float, n_jobs: int | None, desc: str) -> Iterator[Any]:
    signals = np.asarray(signals)
    if signals.ndim != 3 or signals.shape[1] != len(LEADS):
        raise ValueError(f"signals must be (n, 12, samples), leads {', '.join(LEADS)}; got shape {signals.shape}")
    if fs < 2 * BAND_HZ[1] or signals.shape[2] < 2 * fs:
        raise ValueError(
            f"features need >= {2 * BAND_HZ[1]:g} Hz and >= 2 s; got {signals.shape[2]} samples at {fs:g} Hz"
        )
    starts = range(0, max(len(signals), 1), CHUNK)
    tasks = (joblib.delayed(work)(signals[i : i + CHUNK], fs) for i in starts)
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        results = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
        yield from progress(results, desc=desc, total=len(starts), unit="chunk")


def _median_of(signals: Float, fs: float) -> tuple[Float, Columns]:
    _, _, median, rhythm = _align(signals, fs)
    return median, rhythm


def _measure(signals: Float, fs: float) -> Columns:
    beats, record, median, rhythm = _align(signals, fs)
    missing = np.isnan(median[..., 0])
    waves = delineate(np.nan_to_num(median), rhythm["rr_ms"])
    columns = _atrial(beats, record, waves, missing) | _amplitudes(waves, missing)
    columns |= _intervals(waves, rhythm["rr_ms"], missing, columns["p_present"] > 0)
    return rhythm | {name: np.where(missing.all(1), np.nan, value) for name, value in columns.items()}


# --- signals -> R peaks -> median beat ---


def _clean(signals: Float, fs: float) -> tuple[Float, Float, Bool]:
    """Filter (FFT, zero phase) and move to the grid: (n, 12, t) signals, (n, t) QRS magnitude, (n, 12) lead present."""
    x = np.array(signals, dtype=np.float32)
    finite = np.isfinite(x)
    share = finite.mean(2)
    if not finite.all():
        filled = np.where(finite, x, np.nan)
        filled[share == 0] = 0
        x = np.where(finite, x, np.nanmedian(filled, axis=2, keepdims=True))
    present = (np.ptp(x, axis=2) > FLAT_MV) & (share > 0.5)
    x *= present[..., None]

    # an odd reflection at both ends keeps the FFT's wrap-around away from the record
    samples, ratio = x.shape[2], Fraction(fs / FS).limit_denominator(1000)
    pad = min(int(fs), samples - 1)
    x = np.concatenate([2 * x[..., :1] - x[..., pad:0:-1], x, 2 * x[..., -1:] - x[..., -2 : -pad - 2 : -1]], axis=2)
    cycles = fft.next_fast_len(-(-x.shape[2] // ratio.numerator), real=True)
    size, grid_size = cycles * ratio.numerator, cycles * ratio.denominator
    x = np.concatenate([x, np.repeat(x[..., -1:], size - x.shape[2], axis=2)], axis=2)
    spectrum = fft.rfft(x, axis=2)
    f = fft.rfftfreq(size, 1 / fs)

    def band(low: float, high: float) -> Float:
        gain = (f / low) ** 4 / (1 + (f / low) ** 4) / (1 + (f / high) ** 8)
        return (gain * grid_size / size).astype(np.float32)

    notch = np.prod([1 - np.exp(-((f - hum) ** 2)) for hum in POWERLINE_HZ], axis=0).astype(np.float32)
    start = round(pad / ratio)
    inside = slice(start, start + int(samples / ratio))
    clean = fft.irfft(spectrum * band(*BAND_HZ) * notch, grid_size, axis=2)[..., inside]
    qrs = fft.irfft(spectrum * band(*QRS_BAND_HZ), grid_size, axis=2)[..., inside]
    # the square root keeps an artefact in one lead from outvoting the QRS of eleven
    return clean, np.sqrt(np.abs(qrs)).mean(1) ** 2, present


def _r_peaks(magnitude: Float) -> tuple[Int, Int]:
    """R peaks of all records, one after another: (beats,) record and (beats,) sample."""
    found = [np.zeros(0, int)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # neurokit2 averages no QRS at all when a row has none
        for row in magnitude:
            at = np.asarray(nk.ecg_findpeaks(row, FS)["ECG_R_Peaks"] if row.any() else [], dtype=int)
            found.append(at[row[at] > 0.3 * np.quantile(row[at], 0.8)] if len(at) else at)
    return np.repeat(np.arange(len(magnitude)), [len(at) for at in found[1:]]), np.concatenate(found)


def _align(signals: Float, fs: float) -> tuple[Float, Int, Float, Columns]:
    """(beats, 12, window) beats of the median, (beats,) their record, (n, 12, window) median, rhythm columns."""
    n = len(signals)
    clean, magnitude, present = _clean(signals, fs)
    record, at = _r_peaks(magnitude)
    reach = CORE + SLACK
    inside = (at >= reach) & (at < clean.shape[2] - reach)
    record, at = record[inside], at[inside]

    rr = _rr(record, at)
    regular = ~(rr < 0.85 * _over_beats(np.nanmedian, rr, record, n)[record])  # premature beats; NaN passes
    core = _cut(clean, record, at - reach, 2 * reach + 1)
    template = _median(core[regular][:, :, SLACK:-SLACK], record[regular], n)[record]
    score = np.einsum("bcst,bct->bs", sliding_window_view(core, 2 * CORE + 1, axis=2), template)
    shift = score.argmax(1)
    at = at + shift - SLACK
    core = core[np.arange(len(at))[:, None], :, shift[:, None] + np.arange(2 * CORE + 1)].transpose(0, 2, 1)
    template = _median(core[regular], record[regular], n)[record]
    alike = _cosine(core, template) >= ALIKE

    keep = regular & alike & (at >= BEFORE) & (at + AFTER <= clean.shape[2])
    kept = np.bincount(record[keep], minlength=n)
    enough = (kept >= MIN_BEATS) & (kept >= MIN_SHARE * np.bincount(record, minlength=n))
    keep &= enough[record]
    beats, owner = _cut(clean, record[keep], at[keep] - BEFORE, BEFORE + AFTER), record[keep]
    median = _median(beats, owner, n)
    median[~(present & enough[:, None])] = np.nan
    rhythm = _rhythm(record, at, regular, alike, n)
    return beats, owner, median, {name: np.where(enough, value, np.nan) for name, value in rhythm.items()}


def _rhythm(record: Int, at: Int, regular: Bool, alike: Bool, n: int) -> Columns:
    """RR statistics from intervals between two beats that look alike, so that an artefact adds no irregularity."""
    rr = _rr(record, at)
    normal = np.where(alike & np.roll(alike, 1), rr, np.nan)
    middle = _over_beats(np.nanmedian, normal, record, n)
    middle = np.where(np.isnan(middle), _over_beats(np.nanmedian, rr, record, n), middle)  # bigeminy: no normal pair
    change = np.diff(normal, prepend=np.nan)
    change[np.diff(record, prepend=-1) != 0] = np.nan
    return {
        "heart_rate_bpm": 60000 / middle,
        "rr_ms": middle,
        "rr_sd_ms": _over_beats(np.nanstd, normal, record, n),
        "rr_cv": _over_beats(np.nanstd, normal, record, n) / _over_beats(np.nanmean, normal, record, n),
        "rr_rmssd_ms": np.sqrt(_over_beats(np.nanmean, change**2, record, n)),
        "rr_irregularity": _over_beats(np.nanmedian, np.abs(change), record, n) / middle,
        "rr_min_ratio": _over_beats(np.nanmin, normal, record, n) / middle,
        "rr_max_ratio": _over_beats(np.nanmax, normal, record, n) / middle,
        "premature_fraction": _over_beats(np.nanmean, ~regular, record, n),
        "odd_beat_fraction": _over_beats(np.nanmean, ~alike, record, n),
    }


def _rr(record: Int, at: Int) -> Float:
    """Interval before each beat in ms; NaN before the first of a record."""
    rr = np.diff(at, prepend=0) * STEP_MS
    rr[np.diff(record, prepend=-1) != 0] = np.nan
    return rr


def _cut(clean: Float, record: Int, start: Int, width: int) -> Float:
    return sliding_window_view(clean, width, axis=2)[record, :, start]


def _cosine(a: Float, b: Float) -> Float:
    dot, aa, bb = (np.einsum("bct,bct->b", u, v) for u, v in ((a, b), (a, a), (b, b)))
    return dot / np.sqrt(np.maximum(aa * bb, 1e-20))


def _by_record(values: Any, record: Int, n: int, fill: float) -> tuple[Any, Int]:
    """Spread beats over a (n, most beats, ...) array padded with `fill`; also the beats per record."""
    count = np.bincount(record, minlength=n)
    slot = np.arange(len(record)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full(
        (n, max(count.max(initial=0), 1), *values.shape[1:]), fill, np.result_type(values.dtype, np.float32)
    )
    table[record, slot] = values
    return table, count


def _over_beats(statistic: Callable[..., Float], values: Any, record: Int, n: int) -> Float:
    """Apply a nan-statistic to the values of each record; NaN where it has none."""
    table, _ = _by_record(values, record, n, np.nan)
    some = ~np.isnan(table).all(1)
    result = np.full(n, np.nan)
    if some.any():
        result[some] = statistic(table[some], axis=1)
    return result


def _median(beats: Float, record: Int, n: int) -> Float:
    """Median beat of each record, zero without beats. Sorting beats padded with +inf is faster than np.nanmedian."""
    table, count = _by_record(beats, record, n, np.inf)
    table.sort(axis=1)
    rows, last = np.arange(n), np.maximum(count - 1, 0)
    median = (table[rows, last // 2] + table[rows, (last + 1) // 2]) / 2
    median[count == 0] = 0
    return median


# --- median beat -> waves -> columns ---


@dataclass(frozen=True)
class Waves:
    """Boundaries (ms from the R peak, NaN if unmeasurable) and P, QRS, T on the beat's own baselines."""

    x: Float  # (n, 12, window) relative to the PQ segment
    qrs_on: Float
    qrs_off: Float
    p_on: Float
    p_peak: Float
    p_off: Float
    t_peak: Float
    t_end: Float
    p: Float  # (n, 12, window) relative to the chord under the P wave
    p_axis: Float  # (n, 12) direction of the P peak, unit length

    @property
    def qrs(self) -> Bool:
        """Which samples of the window are QRS, (n, window)."""
        return _between(self.qrs_on, self.qrs_off)


def delineate(beats: Float, rr_ms: Float) -> Waves:
    """Find P, QRS and T in median beats, for all records at once.

    QRS: where the spatial speed (root sum of squared slopes over leads) leaves its quiet level. T end: the beat is
    projected on the lead direction of the T peak; the tangent at its steepest descent meets the baseline (Lepeschkin &
    Surawicz, Circulation 1952;6:378). P: the same tangents on the magnitude over leads.

    Parameters
    ----------
    beats : (n, 12, window) mV, missing leads zero. rr_ms : (n,) median RR interval.
    """
    t = TIME_MS
    speed = ndimage.uniform_filter1d(np.sqrt((np.gradient(beats, axis=2) ** 2).sum(1)), 3, axis=1)
    top = np.where(np.abs(t) <= 100, speed, 0).argmax(1)[:, None]
    floor = np.quantile(speed, 0.2, axis=1, keepdims=True)
    quiet = speed < floor + QRS_EDGE * (np.take_along_axis(speed, top, 1) - floor)
    index = np.arange(len(t))
    on = _last(_calm(quiet, 16, before=True) & (index < top) & (t > -160))
    off = _first(_calm(quiet, 28, before=False) & (index > top) & (t < 220))

    x = beats - np.nan_to_num(_mean(beats, _between(on - 16, on)))[..., None]

    last = np.minimum(rr_ms - 200, 600)[:, None]
    t_window = (t > off[:, None] + 60) & (t < np.minimum(off[:, None] + 420, last))
    t_peak, _, y = _peak(x, t_window)
    falling = (t >= t_peak[:, None]) & (t < np.minimum(t_peak[:, None] + 180, last + 80))
    t_end = _tangent(y, falling, -1)

    start = np.fmax(-BEFORE * STEP_MS + 8, t_end - rr_ms + 20)
    start = np.minimum(start, on - 120)[:, None]
    p = x - _chord(x, start, on[:, None] - 8)
    p_peak, p_axis, _ = _peak(p, (t > start + 16) & (t < on[:, None] - 28))
    y = np.linalg.norm(p, axis=1)  # not the projection: right and left atrium point in different directions
    rising = (t > np.maximum(start, p_peak[:, None] - 120)) & (t <= p_peak[:, None])
    falling = (t >= p_peak[:, None]) & (t < np.minimum(on[:, None], p_peak[:, None] + 120))
    return Waves(x, on, off, _tangent(y, rising, 1), p_peak, _tangent(y, falling, -1), t_peak, t_end, p, p_axis)


def _between(start: Float, end: Float) -> Bool:
    """Which samples of the window lie from `start` to `end` (ms per record), (n, window)."""
    return np.asarray((start[:, None] <= TIME_MS) & (end[:, None] >= TIME_MS))


def _calm(quiet: Bool, ms: float, before: bool) -> Bool:
    """Quiet for `ms` up to (before) or from a sample on."""
    width = round(ms / STEP_MS)
    padded = np.pad(quiet, ((0, 0), (width - 1, 0) if before else (0, width - 1)))
    return np.asarray(sliding_window_view(padded, width, axis=1).all(2))


def _first(mask: Bool) -> Float:
    return np.where(mask.any(1), TIME_MS[mask.argmax(1)], np.nan)


def _last(mask: Bool) -> Float:
    return np.where(mask.any(1), TIME_MS[::-1][mask[:, ::-1].argmax(1)], np.nan)


def _mean(x: Float, mask: Bool) -> Float:
    """Mean over the masked samples, (n, 12); NaN for an empty mask."""
    count = mask.sum(1)[:, None]
    return np.einsum("nct,nt->nc", x, mask.astype(x.dtype)) / np.where(count, count, np.nan)


def _at(x: Float, ms: Float) -> Float:
    """Values at one time per record, (n, 12); NaN where the time is."""
    index = np.clip(np.round(np.nan_to_num(ms) / STEP_MS).astype(int) + BEFORE, 0, len(TIME_MS) - 1)
    return np.where(np.isnan(ms)[:, None], np.nan, x[np.arange(len(x)), :, index])


def _chord(x: Float, start: Float, end: Float) -> Float:
    """Straight line through the beat around `start` and `end`, (n, 12, window)."""
    a, b = (_mean(x, np.abs(TIME_MS - at) <= 8)[..., None] for at in (start, end))
    return a + (b - a) * ((TIME_MS - start) / (end - start))[:, None]


def _peak(x: Float, window: Bool) -> tuple[Float, Float, Float]:
    """Time of the largest deflection over leads in the window, its unit direction, and the beat seen from there."""
    size = np.where(window, (x**2).sum(1), -1)
    found = size.max(1) > 0
    peak = np.where(found, TIME_MS[size.argmax(1)], np.nan)
    direction = _at(x, peak)
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    return peak, direction, np.einsum("nct,nc->nt", x, direction)


def _tangent(y: Float, window: Bool, sign: int) -> Float:
    """Where the steepest rising (+1) or falling (-1) tangent in the window meets zero, ms."""
    slope = np.gradient(y, axis=1) / STEP_MS * sign
    best = np.where(window, np.nan_to_num(slope, nan=-1.0), -1.0).argmax(1)
    rows = np.arange(len(y))
    steepest, height = slope[rows, best], y[rows, best]
    sound = window.any(1) & (steepest > 0) & (height > 0)
    return np.where(sound, TIME_MS[best] - sign * height / np.where(sound, steepest, 1), np.nan)


def _intervals(w: Waves, rr_ms: Float, missing: Bool, p_present: Bool) -> Columns:
    """Durations, frontal axes and the dipole's (Frank) directions."""
    qt = w.t_end - w.qrs_on
    p_on = np.where(p_present, w.p_on, np.nan)
    columns = {
        "p_ms": w.p_off - p_on,
        "pr_ms": w.qrs_on - p_on,
        "qrs_ms": w.qrs_off - w.qrs_on,
        "qt_ms": qt,
        "qtc_ms": qt / np.cbrt(rr_ms / 1000),
        "jt_peak_ms": w.t_peak - w.qrs_off,
        "t_peak_end_ms": w.t_end - w.t_peak,
    }
    area = _mean(w.x, w.qrs) * columns["qrs_ms"][:, None]
    t_wave = _mean(w.x, np.abs(TIME_MS - w.t_peak[:, None]) <= 40)
    p_wave = np.where(p_present[:, None], _at(w.p, w.p_peak), np.nan)
    vectors = {"qrs": area, "p": p_wave, "t": t_wave}
    for name, vector in vectors.items():
        vector[missing] = np.nan
        angle = np.arctan2(vector[:, 5] * 2 / np.sqrt(3), vector[:, 0])
        # a linear head cannot use an angle that wraps: it gets the cosine and sine beside the degrees
        columns |= {
            f"{name}_axis_deg": np.degrees(angle),
            f"{name}_axis_cos": np.cos(angle),
            f"{name}_axis_sin": np.sin(angle),
        }
    qrs, t = (vector[:, INDEPENDENT] @ KORS.T for vector in (area, t_wave))
    qrs_size, t_size = np.linalg.norm(qrs, axis=1), np.linalg.norm(t, axis=1)
    cosine = (qrs * t).sum(1) / np.maximum(qrs_size * t_size, 1e-9)
    columns |= {"qrs_t_angle_deg": np.degrees(np.arccos(np.clip(cosine, -1, 1)))}
    columns |= {"qrs_area_mvms": qrs_size, "t_size_mv": t_size}
    columns |= {f"qrs_{axis}_mvms": qrs[:, i] for i, axis in enumerate("xyz")}
    return columns | {f"t_{axis}_mv": t[:, i] for i, axis in enumerate("xyz")}


def _atrial(beats: Float, record: Int, w: Waves, missing: Bool) -> Columns:
    """Tell a P wave, the same before every beat, from fibrillation."""
    n, t = len(w.x), TIME_MS
    axis = np.nan_to_num(w.p_axis)
    near = (np.abs(t - w.p_peak[:, None]) <= 80) & (t < w.qrs_on[:, None] - 8)
    own = _centred(np.einsum("bct,bc->bt", beats, axis[record]), near[record])
    typical = _centred(np.einsum("nct,nc->nt", w.x, axis), near)[record]
    repeats = (own * typical).sum(1) / np.sqrt(np.maximum((own**2).sum(1) * (typical**2).sum(1), 1e-20))
    repeats = _over_beats(np.nanmean, repeats, record, n)

    # what a beat holds beyond the median beat before its QRS: noise in every lead, fibrillation most in V1
    rest_window = _between(w.qrs_on - 250, w.qrs_on - 20)[record, None, :BEFORE]
    rest = _centred((beats - w.x[record])[..., :BEFORE], rest_window)
    power = (rest**2).sum(2) / np.maximum(rest_window.sum(2), 1)
    power = np.stack([_over_beats(np.nanmean, lead, record, n) for lead in power.T], axis=1)
    rest_mv = np.where(missing, np.nan, np.sqrt(power))
    noise = _over_beats(np.nanmedian, rest_mv[~missing], np.nonzero(~missing)[0], n)
    size = np.sqrt((_at(w.p, w.p_peak) ** 2).sum(1) / np.maximum((~missing).sum(1), 1))
    return {
        "p_present": np.where(np.isnan(repeats), np.nan, repeats >= P_REPEATS),
        "p_consistency": repeats,
        "p_size_mv": size,
        "p_strength": size * np.maximum(repeats, 0) / np.maximum(noise, 1e-4),
        "f_wave_mv_II": rest_mv[:, 1],
        "f_wave_mv_V1": rest_mv[:, 6],
        "noise_mv": noise,
    }


def _centred(x: Float, mask: Bool) -> Float:
    """Subtract the mean over the masked samples of the last axis; zero outside the mask."""
    mean = (x * mask).sum(-1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1)
    return np.where(mask, x - mean, 0)


def _amplitudes(w: Waves, missing: Bool) -> Columns:
    """Per-lead amplitudes, and the voltages and terminal forces built from them."""
    t, on, off, index = TIME_MS, w.qrs_on[:, None], w.qrs_off[:, None], np.arange(len(TIME_MS))
    qrs = w.qrs[:, None]
    in_qrs = np.where(qrs, w.x, -np.inf)
    r, r_at = np.maximum(in_qrs.max(2), 0), in_qrs.argmax(2)
    no_r = (r < 0.03)[..., None]  # a QS complex: its depth is both Q and S
    before, after = (qrs & (no_r | side) for side in (index < r_at[..., None], index > r_at[..., None]))
    q, s = (np.maximum(-np.where(side, w.x, 0).min(2), 0) for side in (before, after))
    t_part = np.where(((t > off + 60) & (t < np.fmax(w.t_end, w.t_peak + 20)[:, None]))[:, None], w.x, 0)
    p_part = np.where(((t > w.p_on[:, None] - 10) & (t < w.p_off[:, None] + 10))[:, None], w.p, 0)
    per_lead = {
        "p_mv": _extreme(p_part),
        "q_mv": q,
        "q_ms": (before & (w.x < -0.03)).sum(2) * STEP_MS,
        "r_mv": r,
        "s_mv": s,
        "r_share": r / np.maximum(r + s, 0.05),
        "qrs_mvms": _mean(w.x, w.qrs) * (off - on),
        "terminal_mv": _mean(w.x, (t > off - 40) & (t <= off)),
        "st_mv": _at(w.x, w.qrs_off + 60),
        "t_mv": _extreme(t_part),
        "t_mvms": t_part.sum(2) * STEP_MS,
    }
    unknown = missing | np.isnan(off - on)
    per_lead = {name: np.where(unknown, np.nan, value) for name, value in per_lead.items()}
    columns = {f"{name}_{lead}": value[:, i] for name, value in per_lead.items() for i, lead in enumerate(LEADS)}
    columns |= {f"r_peak_ms_{LEADS[i]}": np.where(no_r[:, i, 0], np.nan, t[r_at[:, i]] - w.qrs_on) for i in (0, 6, 11)}

    r, s = per_lead["r_mv"], per_lead["s_mv"]
    voltage = r + np.maximum(s, per_lead["q_mv"])
    late_p = (t > w.p_peak[:, None]) & (t < w.p_off[:, None] + 10)
    return columns | {
        "sokolow_lyon_mv": s[:, 6] + np.fmax(r[:, 10], r[:, 11]),
        "cornell_mv": r[:, 4] + s[:, 8],
        "cornell_mvms": (r[:, 4] + s[:, 8]) * (off - on)[:, 0],
        "limb_voltage_mv": np.fmax.reduce(voltage[:, :6], axis=1),
        "chest_voltage_mv": np.fmax.reduce(voltage[:, 6:], axis=1),
        "p_terminal_mv_V1": np.where(missing[:, 6], np.nan, np.where(late_p, w.p[:, 6], 0).min(1)),
    }


def _extreme(x: Float) -> Float:
    """The value farthest from zero along time, with its sign, (n, 12)."""
    high, low = x.max(2), x.min(2)
    return np.where(high >= -low, high, low)

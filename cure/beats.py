"""R peaks and the aligned median beat of every record: clean -> R peaks -> beats -> median.

R peaks come from neurokit2; everything after them is array code over all beats and leads of a chunk of records. Every
record is band-limited to 40 Hz and brought to one grid, so 100 Hz and 500 Hz copies of it give the same beat.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft

from cure.progress import progress
from cure.signals import LEADS

Float = NDArray[np.floating]
Int = NDArray[np.integer]
Bool = NDArray[np.bool_]
Columns = dict[str, Float]

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
#: A lead whose range stays below this is flat.
FLAT_MV = 0.02
#: Records per task. Fixed, so that results do not depend on the number of workers.
CHUNK = 64


@dataclass(frozen=True)
class MedianBeats:
    """The median beat of every record and how the beats follow each other."""

    beats: NDArray[np.float32]  #: (n, 12, window) mV; NaN for a record without a median beat, or a flat or missing lead
    r_sample: int  #: the R peak's index in the window
    fs: float  #: sampling rate of `beats` in Hz: the grid's, not the record's
    rhythm: pd.DataFrame  #: (n, ...) float32: RR statistics, and what share of the beats is premature or odd


def median_beats(signals: Float, fs: float, *, n_jobs: int | None = None) -> MedianBeats:
    """Align the beats of every record and take their median; premature and odd beats are left out.

    Parameters and errors as for `cure.features.ecg_features`.
    """
    parts = list(by_chunk(_median_of, signals, fs, n_jobs, "median beats"))
    rhythm = pd.concat([pd.DataFrame(part[1]) for part in parts], ignore_index=True).astype(np.float32)
    return MedianBeats(np.concatenate([part[0] for part in parts]), BEFORE, FS, rhythm)


def by_chunk(work: Callable[..., Any], signals: Float, fs: float, n_jobs: int | None, desc: str) -> Iterator[Any]:
    """Run `work` over fixed chunks of records, in parallel, behind a progress bar."""
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
    _, _, median, rhythm = align(signals, fs)
    return median, rhythm


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
    # Most of what it loads is not needed here: 0.7 s of each stage, and of each of its workers, that finds no peaks.
    import neurokit2 as nk

    found = [np.zeros(0, int)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # neurokit2 averages no QRS at all when a row has none
        for row in magnitude:
            at = np.asarray(nk.ecg_findpeaks(row, FS)["ECG_R_Peaks"] if row.any() else [], dtype=int)
            found.append(at[row[at] > 0.3 * np.quantile(row[at], 0.8)] if len(at) else at)
    return np.repeat(np.arange(len(magnitude)), [len(at) for at in found[1:]]), np.concatenate(found)


def r_peaks(signals: Float, fs: float) -> tuple[Int, Float]:
    """R peaks of every record: (beats,) position of its record and (beats,) time in s, in order.

    Parameters
    ----------
    signals : (n, 12, samples) array
        mV.
    fs : float
        Hz.
    """
    record, at = _r_peaks(_clean(signals, fs)[1])
    return record, at / FS


def align(signals: Float, fs: float) -> tuple[Float, Int, Float, Columns]:
    """(beats, 12, window) beats of the median, (beats,) their record, (n, 12, window) median, rhythm columns."""
    n = len(signals)
    clean, magnitude, present = _clean(signals, fs)
    record, at = _r_peaks(magnitude)
    reach = CORE + SLACK
    inside = (at >= reach) & (at < clean.shape[2] - reach)
    record, at = record[inside], at[inside]

    rr = _rr(record, at)
    regular = ~(rr < 0.85 * over_beats(np.nanmedian, rr, record, n)[record])  # premature beats; NaN passes
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
    middle = over_beats(np.nanmedian, normal, record, n)
    middle = np.where(np.isnan(middle), over_beats(np.nanmedian, rr, record, n), middle)  # bigeminy: no normal pair
    change = np.diff(normal, prepend=np.nan)
    change[np.diff(record, prepend=-1) != 0] = np.nan
    return {
        "heart_rate_bpm": 60000 / middle,
        "rr_ms": middle,
        "rr_sd_ms": over_beats(np.nanstd, normal, record, n),
        "rr_cv": over_beats(np.nanstd, normal, record, n) / over_beats(np.nanmean, normal, record, n),
        "rr_rmssd_ms": np.sqrt(over_beats(np.nanmean, change**2, record, n)),
        "rr_irregularity": over_beats(np.nanmedian, np.abs(change), record, n) / middle,
        "rr_min_ratio": over_beats(np.nanmin, normal, record, n) / middle,
        "rr_max_ratio": over_beats(np.nanmax, normal, record, n) / middle,
        "premature_fraction": over_beats(np.nanmean, ~regular, record, n),
        "odd_beat_fraction": over_beats(np.nanmean, ~alike, record, n),
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


def over_beats(statistic: Callable[..., Float], values: Any, record: Int, n: int) -> Float:
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

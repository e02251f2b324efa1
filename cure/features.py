"""Hand-crafted ECG features: what a cardiologist's ruler measures, for thousands of records at once.

The path is clean -> R peaks -> aligned median beat -> wave boundaries -> table. R peaks come from neurokit2; everything
after them is array code over all beats and leads of a chunk of records. Measuring one median beat instead of every beat
averages noise away before a boundary is sought, and costs a fraction of a per-beat delineation.

Every record is band-limited to 40 Hz and brought to one grid, so 100 Hz and 500 Hz copies of it measure alike.
Amplitudes are in mV relative to the PQ segment, times in ms, angles in degrees. What cannot be measured is NaN, never a
guess: a head imputes it within its training folds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from cure.beats import (
    BEFORE,
    STEP_MS,
    TIME_MS,
    Bool,
    Columns,
    Float,
    Int,
    align,
    by_chunk,
    over_beats,
)
from cure.signals import LEADS

#: QRS begins and ends where the speed has fallen to this share between its quiet level and its top.
QRS_EDGE = 0.06
#: A P wave counts as present when the beats repeat it: mean correlation with the median beat's P wave.
P_REPEATS = 0.7

#: Frank's X, Y, Z from the eight independent leads: regression of Kors et al., Eur Heart J 1990;11:1083.
INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]
KORS = np.array(
    [
        [0.38, -0.07, -0.13, 0.05, -0.01, 0.14, 0.06, 0.54],
        [-0.07, 0.93, 0.06, -0.02, -0.05, 0.06, -0.17, 0.13],
        [0.11, -0.23, -0.43, -0.06, -0.14, -0.20, -0.11, 0.31],
    ]
)


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
    parts = list(by_chunk(_measure, signals, fs, n_jobs, "features"))
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True).astype(np.float32)


def unmeasurable(features: pd.DataFrame) -> Bool:
    """Which rows of `ecg_features` hold no measurement at all, (n,) bool."""
    return features.isna().all(axis=1).to_numpy()


def _measure(signals: Float, fs: float) -> Columns:
    beats, record, median, rhythm = align(signals, fs)
    missing = np.isnan(median[..., 0])
    waves = delineate(np.nan_to_num(median), rhythm["rr_ms"])
    columns = _atrial(beats, record, waves, missing) | _amplitudes(waves, missing)
    columns |= _intervals(waves, rhythm["rr_ms"], missing, columns["p_present"] > 0)
    return rhythm | {name: np.where(missing.all(1), np.nan, value) for name, value in columns.items()}


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
    repeats = over_beats(np.nanmean, repeats, record, n)

    # what a beat holds beyond the median beat before its QRS: noise in every lead, fibrillation most in V1
    rest_window = _between(w.qrs_on - 250, w.qrs_on - 20)[record, None, :BEFORE]
    rest = _centred((beats - w.x[record])[..., :BEFORE], rest_window)
    power = (rest**2).sum(2) / np.maximum(rest_window.sum(2), 1)
    power = np.stack([over_beats(np.nanmean, lead, record, n) for lead in power.T], axis=1)
    rest_mv = np.where(missing, np.nan, np.sqrt(power))
    noise = over_beats(np.nanmedian, rest_mv[~missing], np.nonzero(~missing)[0], n)
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

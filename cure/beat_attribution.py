"""Attributions cut around the R peaks and averaged: per record over its beats, then per class over its records.

Records of one class differ in heart rate and phase; around the R peak their waves, and what is attributed to them, come
to lie on each other. What is left after averaging over patients is not an accident of one record.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cure import beats
from cure.attribution import BIN_S, binned
from cure.bootstrap import interval, patient_draws
from cure.pointing import MIN_RECORDS
from cure.signals import LEADS

#: Middles of the bins in ms from the R peak, one of which lies in the middle of the QRS; as far as median beats reach.
MS = np.arange(-400, 601, round(1000 * BIN_S))
#: Half the width of the window in which a beat is compared with the others of its record, in s, as in `cure.beats`.
_CORE_S = 0.1
POSITIVES, NEGATIVES, DIFFERENCE = "positives", "negatives", "positives less negatives"


@dataclass(frozen=True)
class BeatMaps:
    """Records of one task, positives and negatives, averaged over their beats; leads in CURE's order.

    Attributes
    ----------
    methods : list of str
    maps : (n, n_methods, 12, len(MS)) array
        NaN for a record without a usable beat.
    wave : (n, 12, n_samples) array
        Median beats in mV at the times `cure.beats.TIME_MS`; NaN where there is none.
    positive : (n,) bool array
    patient : (n,) array
    """

    methods: list[str]
    maps: np.ndarray
    wave: np.ndarray
    positive: np.ndarray
    patient: np.ndarray


def usable_beats(mv: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """Beats that lie in a record with their whole window and look like the others of that record.

    Parameters
    ----------
    mv : (n, 12, samples) array
        mV, leads in CURE's order.
    fs : float
        Hz.

    Returns
    -------
    record, peak : (n_beats,) arrays
        Position of the record, and time of the R peak in s. A QRS unlike the record's median QRS (cosine over all leads
        below `cure.beats.ALIKE`), such as an ectopic one, is left out.
    """
    record, peak = beats.r_peaks(mv, fs)
    reach = BIN_S / 2
    inside = (peak + MS[0] / 1000 - reach >= 0) & (peak + MS[-1] / 1000 + reach <= mv.shape[2] / fs)
    record, peak = record[inside], peak[inside]
    if not len(record):
        return record, peak
    half = round(_CORE_S * fs)
    qrs = _cut(mv, record, np.round(peak * fs).astype(int) - half, 2 * half + 1)
    qrs = qrs - qrs.mean(axis=2, keepdims=True)
    typical = np.zeros((len(mv), *qrs.shape[1:]))
    for i in np.unique(record):
        typical[i] = np.median(qrs[record == i], axis=0)
    dot, own, other = (np.einsum("bct,bct->b", a, b) for a, b in _pairs(qrs, typical[record]))
    alike = dot >= beats.ALIKE * np.sqrt(own * other)
    return record[alike], peak[alike]


def _pairs(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(a, b), (a, a), (b, b)]


def _cut(values: np.ndarray, record: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """Windows (n_beats, ..., width) of (n, ..., samples) values."""
    at = np.clip(start[:, None] + np.arange(width), 0, values.shape[-1] - 1)
    return np.moveaxis(values[record[:, None], ..., at], 1, -1)


def beat_average(values: np.ndarray, record: np.ndarray, peak: np.ndarray, fs: float) -> np.ndarray:
    """Sums over bins of `BIN_S` around each R peak, averaged over the beats of a record.

    Parameters
    ----------
    values : (n, ..., samples) array
        Attributions, at `fs` Hz.
    record, peak : (n_beats,) arrays
        From `usable_beats`.
    fs : float
        Hz; the rate of `values`, which may differ from that of the signals in which the peaks were found.

    Returns
    -------
    (n, ..., len(MS)) float64 array
        The mean, not the median: means of attributions still add up. NaN for a record without beats.
    """
    width = round(BIN_S * fs)
    start = np.round((peak + MS[0] / 1000) * fs).astype(int) - width // 2
    bins = binned(_cut(values, record, start, width * len(MS)), fs)
    total = np.zeros((len(values), *bins.shape[1:]))
    np.add.at(total, record, bins)
    count = np.bincount(record, minlength=len(values)).reshape(-1, *[1] * (bins.ndim - 1))
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def band(values: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over records, of the sample and in every draw of patients.

    Parameters
    ----------
    values : (n, k) array
        NaN does not count.
    draws : (n_draws, n) array
        From `cure.bootstrap.patient_draws`.

    Returns
    -------
    mean : (k,) array
    drawn : (k, n_draws) array
        NaN in a draw that holds none of these records.
    """
    there = ~np.isnan(values)
    filled, weights = np.where(there, values, 0), draws.T.astype(float)
    total, count = filled.T @ weights, there.T @ weights
    drawn = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    n = there.sum(axis=0)
    return np.divide(filled.sum(axis=0), n, out=np.full(len(n), np.nan), where=n > 0), drawn


def class_table(found: BeatMaps, twins: set[str], n_draws: int, seed: int) -> pd.DataFrame:
    """Average attribution of the positives, of the negatives, and their difference, per lead and bin.

    Parameters
    ----------
    found : BeatMaps
    twins : set of str
        Methods that are controls: only the difference is given.
    n_draws, seed : int
        Of the patient bootstrap, which draws the patients of both classes at once. Intervals are pointwise.

    Returns
    -------
    DataFrame
        `method, group, lead, ms, value, lo, hi, n, n_patients, supported`; `n` counts records with a usable beat, for a
        difference those of the smaller class.
    """
    columns = ["method", "group", "lead", "ms", "value", "lo", "hi", "n", "n_patients", "supported"]
    used = np.flatnonzero(~np.isnan(found.maps).any(axis=(1, 2, 3)))
    if not len(used):
        return pd.DataFrame(columns=columns)
    positive, patient = found.positive[used], found.patient[used]
    draws = patient_draws(patient, n_draws, np.random.default_rng(seed))
    counts = [(int(c.sum()), len(np.unique(patient[c]))) for c in (positive, ~positive)]
    frames = []
    for method, maps in zip(found.methods, found.maps[used].swapaxes(0, 1), strict=True):
        flat = maps.reshape(len(used), -1)
        parts = [band(flat[c], draws[:, c]) if c.any() else None for c in (positive, ~positive)]
        groups = (
            {} if method in twins else dict(zip((POSITIVES, NEGATIVES), zip(parts, counts, strict=True), strict=True))
        )
        if parts[0] and parts[1]:
            gap = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
            groups[DIFFERENCE] = gap, min(counts)
        for group, (part, (n, n_patients)) in groups.items():
            if part is None:
                continue
            lo, hi, _ = interval(part[1])
            enough = n >= MIN_RECORDS
            where = pd.MultiIndex.from_product([LEADS, MS], names=["lead", "ms"]).to_frame(index=False)
            numbers = {"value": part[0], "lo": np.where(enough, lo, np.nan), "hi": np.where(enough, hi, np.nan)}
            about = {"n": n, "n_patients": n_patients, "supported": enough}
            frames.append(where.assign(**numbers, **about, method=method, group=group))
    return pd.concat(frames, ignore_index=True)[columns]


def class_waves(found: BeatMaps) -> dict[str, np.ndarray]:
    """Average median beat of positives and of negatives, (12, n_samples) in mV; a missing lead does not count."""
    waves = {}
    for group, chosen in ((POSITIVES, found.positive), (NEGATIVES, ~found.positive)):
        there = ~np.isnan(found.wave[chosen])
        total = np.where(there, found.wave[chosen], 0).sum(axis=0)
        count = there.sum(axis=0)
        waves[group] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return waves


def contrast_view(table: pd.DataFrame) -> pd.DataFrame:
    """Of the differences between classes, per task and method: how many bins stand out, and which lies highest.

    `excluding zero` is the share of lead-and-time bins whose pointwise 95 % interval does not hold zero. If nothing
    were there, 0.05 would be expected, but neighbouring bins and leads go together: read it beside the twin's. The
    highest of many bins is a selection: no interval is given for it.
    """
    rows = []
    for (task, method), part in table[table["group"] == DIFFERENCE].groupby(["task", "method"], sort=False):
        top = part.loc[part["value"].abs().idxmax()]
        outside = ((part["lo"] > 0) | (part["hi"] < 0)).mean() if part["supported"].all() else np.nan
        place = {
            "largest in": top["lead"],
            "ms from R": top["ms"],
            "value": top["value"],
        }
        rows.append({"task": task, "method": method, "excluding zero": outside, **place, "n": top["n"]})
    return pd.DataFrame(rows).set_index(["task", "method"]).round(3)

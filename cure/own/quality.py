"""What is wrong with a record as a signal: flags, each with its criterion.

The criteria are simple on purpose. How often they fire on PTB-XL records as they are, and on the same records with a
fault put in, is in `docs/own-ecgs.md`; tests put in each fault. They know nothing of diseases: a dextrocardia looks
like swapped arms.
"""

import numpy as np
from scipy import signal as sps

from cure.own.record import Record
from cure.signals import LEADS

FLAGS = {
    "flat": "a recorded lead stays within 0.02 mV for two whole seconds one after the other",
    "clipped": "a lead rests at its own highest or lowest value for 10 ms or more, in three places or for 0.2 s in one",
    "noisy": "above 20 Hz, a lead's noise (1.48 times the median absolute value, which the QRS hardly moves) exceeds "
    "0.05 mV in some two seconds; or the medians of two such stretches lie more than 2 mV apart",
    "swapped-limb-leads": "lead I, or lead II, mirrors V6 (correlation below -0.5): both arms, or right arm and left "
    "leg, are swapped; or I, II or III spans less than 0.1 mV, as when the right leg is swapped with an arm",
    "inconsistent-limb-leads": "of I, II and III all recorded, III is not II - I: leads carry wrong names or signs",
    "short": "less than 5 s",
    "missing-leads": "the encoder reads leads that were neither recorded nor follow from two limb leads: they are zero",
}

FLAT_MV = 0.02
REST_SECONDS, STUCK_SECONDS, REST_PLACES = 0.01, 0.2, 3
#: A lead of less range is not called clipped: coarse steps repeat its extremes.
CLIPPED_LEAST_MV = 0.5
NOISE_HZ, NOISE_MV, DRIFT_MV = 20.0, 0.05, 2.0
MIRRORED = -0.5
LIMB_LEAST_MV = 0.1
#: Share of the limb leads' size by which III may differ from II - I, and mV that rounding may cause.
INCONSISTENT, ROUNDING_MV = 0.2, 0.02
SHORT_SECONDS = 5.0
_I, _II, _III, _V6 = (LEADS.index(lead) for lead in ("I", "II", "III", "V6"))


def flag(records: list[Record], needed: tuple[int, ...]) -> None:
    """Set `quality` of each record, in the order of `FLAGS`. Only leads in `needed` count, but for the limb leads'.

    Records of one length and rate are looked at together.
    """
    groups: dict[tuple[int, float], list[Record]] = {}
    for one in records:
        groups.setdefault((one.x.shape[1], one.fs), []).append(one)
    for (_, fs), some in groups.items():
        x = np.stack([one.x for one in some])
        present = np.stack([one.present for one in some])
        read = np.zeros(len(LEADS), bool)
        read[list(needed)] = True
        derived = np.stack([one.derived for one in some])
        found = {
            "flat": flat(x, fs) & present & read,
            "clipped": clipped(x, fs) & present & read,
            "noisy": noisy(x, fs) & present & read,
            "swapped-limb-leads": swapped(x, fs, present | derived)[:, None],
            "inconsistent-limb-leads": inconsistent(x, present)[:, None],
            "short": np.full((len(x), 1), x.shape[2] < SHORT_SECONDS * fs),
            "missing-leads": ~(present | derived) & read,
        }
        for i, one in enumerate(some):
            one.quality = [name for name in FLAGS if found[name][i].any()]


def flat(x: np.ndarray, fs: float) -> np.ndarray:
    """Which leads of (n, 12, n_samples) mV are flat, (n, 12) bool: see `FLAGS`."""
    seconds = _blocks(x, fs, 1)
    pairs = np.maximum(seconds.max(-1)[..., 1:], seconds.max(-1)[..., :-1])
    pairs = pairs - np.minimum(seconds.min(-1)[..., 1:], seconds.min(-1)[..., :-1])
    return (pairs < FLAT_MV).any(-1)


def clipped(x: np.ndarray, fs: float) -> np.ndarray:
    """Which leads are clipped, (n, 12) bool."""
    high, low = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    same = (high - low) * 1e-4
    rest = max(2, int(np.ceil(REST_SECONDS * fs)))
    result = np.zeros(x.shape[:2], bool)
    for at in (x >= high - same, x <= low + same):
        # Only a lead that is at its extreme more often than it must be is looked at sample by sample.
        for i, lead in np.argwhere(at.sum(-1) >= min(rest * REST_PLACES, STUCK_SECONDS * fs)):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], at[i, lead].astype(np.int8), [0]))))
            runs = edges[1::2] - edges[::2]
            result[i, lead] |= (runs >= rest).sum() >= REST_PLACES or runs.max() >= STUCK_SECONDS * fs
    return result & (np.ptp(x, axis=-1) >= CLIPPED_LEAST_MV)


def noisy(x: np.ndarray, fs: float) -> np.ndarray:
    """Which leads are noisy or drift, (n, 12) bool."""
    blocks = _blocks(x, fs, 2)
    result = np.ptp(np.median(blocks, axis=-1), axis=-1) > DRIFT_MV
    if fs > 2 * NOISE_HZ:
        sos = sps.butter(2, NOISE_HZ, "highpass", fs=fs, output="sos")
        above = _blocks(sps.sosfilt(sos, x - x[..., :1], axis=-1), fs, 2)
        result |= (1.4826 * np.median(np.abs(above), axis=-1) > NOISE_MV).any(-1)
    return result


def swapped(x: np.ndarray, fs: float, known: np.ndarray) -> np.ndarray:
    """Which records look as if limb electrodes were swapped, (n,) bool; False where the leads to tell are missing.

    Left arm with left leg cannot be told this way: I and II change places, and both stay likely.
    """
    sos = sps.butter(2, 0.5, "highpass", fs=fs, output="sos")
    leads = x[:, [_I, _II, _III, _V6]]
    leads = sps.sosfilt(sos, leads - leads[..., :1], axis=-1)
    size = np.sqrt((leads**2).sum(-1))
    product = (leads[:, :2] * leads[:, 3:]).sum(-1)
    mirrored = product < MIRRORED * size[:, :2] * size[:, 3:]
    tiny = (np.ptp(leads[:, :3], axis=-1) < LIMB_LEAST_MV).any(-1)
    result = (mirrored & known[:, [_I, _II]] & known[:, [_V6]]).any(-1)
    return result | (tiny & known[:, [_I, _II, _III]].all(-1))


def inconsistent(x: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Which records' I, II and III do not obey Einthoven, (n,) bool; False where one was not recorded."""
    one, two, three = (x[:, lead] - x[:, lead].mean(-1, keepdims=True) for lead in (_I, _II, _III))
    off = np.sqrt(((three - (two - one)) ** 2).mean(-1))
    size = np.sqrt((one**2 + two**2 + three**2).mean(-1))
    return present[:, [_I, _II, _III]].all(-1) & (off > np.maximum(INCONSISTENT * size, ROUNDING_MV))


def _blocks(x: np.ndarray, fs: float, seconds: float) -> np.ndarray:
    """(n, 12, k, samples): whole stretches of so many seconds; what is left at the end takes part in none."""
    length = min(int(seconds * fs), x.shape[-1])
    k = x.shape[-1] // length
    return x[..., : k * length].reshape(*x.shape[:2], k, length)

"""Signal conditioning in arrays: filters and resampling. Shapes are (n_records, n_leads, n_samples), units mV."""

import numpy as np
from scipy import signal as sps

#: Order of the leads of every array in this project.
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def highpass(x: np.ndarray, fs: float, cutoff: float) -> np.ndarray:
    """Remove baseline wander: second-order Butterworth, forward and backward (zero phase).

    Parameters
    ----------
    x : (..., n_samples) array
        Any unit.
    fs, cutoff : float
        Sampling rate and -6 dB frequency (both passes together), in Hz.
    """
    sos = sps.butter(2, cutoff, "highpass", fs=fs, output="sos")
    return sps.sosfiltfilt(sos, x, axis=-1).astype(np.float32)


def resample(x: np.ndarray, fs_from: int, fs_to: int) -> np.ndarray:
    """Change the sampling rate with an anti-aliasing polyphase filter; a straight line keeps its ends.

    Parameters
    ----------
    x : (..., n_samples) array
    fs_from, fs_to : int
        Rates in Hz.

    Returns
    -------
    (..., n_samples * fs_to / fs_from) float32 array
    """
    if fs_from == fs_to:
        return x.astype(np.float32, copy=False)
    common = int(np.gcd(fs_from, fs_to))
    y = sps.resample_poly(x, fs_to // common, fs_from // common, axis=-1, padtype="line")
    return y.astype(np.float32)

"""Steps that turn a stored record into what an encoder was trained on: filters, resampling, normalisation.

A step takes (n_records, n_leads, n_samples) at a rate and returns the same at the rate that it leaves; it is applied to
all records at once and does to each what scipy's function of that name does to one. `InputSpec` lists an encoder's
steps in order.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy import signal as sps

from cure import signals
from cure.errors import CureError

#: What a mean, deviation or range is taken over: each lead of a record by itself, or all leads of a record together.
Scope = Literal["lead", "record"]
_AXES: dict[Scope, tuple[int, ...]] = {"lead": (-1,), "record": (-2, -1)}


class Step:
    """Base class: `rate` says at which rate the samples leave, calling it does the work."""

    def rate(self, fs: int) -> int:
        """Sampling rate after the step, Hz."""
        return self._rate(fs)

    def __call__(self, x: np.ndarray, fs: int) -> np.ndarray:
        """Apply to (n, n_leads, n_samples) at `fs` Hz."""
        return self._apply(x, fs)

    def as_dict(self) -> dict:
        """For manifests: the step's name and its settings."""
        return {"step": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]

    def _rate(self, fs: int) -> int:
        return fs

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        raise CureError(f"{type(self).__name__} does nothing")


@dataclass(frozen=True)
class Highpass(Step):
    """Zero-phase Butterworth high-pass of second order; `cutoff` in Hz (-6 dB)."""

    cutoff: float

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        return signals.highpass(x, fs, self.cutoff)


@dataclass(frozen=True)
class Butterworth(Step):
    """Zero-phase Butterworth filter of any kind and order, as second-order sections; frequencies in Hz."""

    kind: Literal["lowpass", "highpass", "bandpass"]
    order: int
    cutoff: float | tuple[float, float]

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        sos = sps.butter(self.order, self.cutoff, self.kind, fs=fs, output="sos")
        return sps.sosfiltfilt(sos, x, axis=-1)


@dataclass(frozen=True)
class Notch(Step):
    """Zero-phase second-order notch at `frequency` Hz with quality `q`."""

    frequency: float
    q: float

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        return sps.filtfilt(*sps.iirnotch(self.frequency, self.q, fs=fs), x, axis=-1)


@dataclass(frozen=True)
class FirBandpass(Step):
    """Zero-phase FIR band-pass (windowed sinc, Hamming) over `seconds` of taps, made odd; frequencies in Hz."""

    low: float
    high: float
    seconds: float

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        n_taps = int(self.seconds * fs) | 1
        taps = sps.firwin(n_taps, (self.low, self.high), pass_zero=False, fs=fs)
        return sps.filtfilt(taps, [1.0], x, axis=-1)


@dataclass(frozen=True)
class SubtractMedian(Step):
    """Subtract the running median over `seconds` (made odd), with zeros beyond the ends, as `scipy.signal.medfilt`."""

    seconds: float

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        size = (int(self.seconds * fs) + 1) | 1
        # All leads in one row with half a window of zeros between them: scipy's filter of one axis is 40 times faster.
        padded = np.pad(x, ((0, 0), (0, 0), (0, size // 2)))
        median = ndimage.median_filter(padded.ravel(), size=size, mode="constant", cval=0.0)
        return x - median.reshape(padded.shape)[..., : x.shape[-1]]


@dataclass(frozen=True)
class Resample(Step):
    """Change the rate: `polyphase` (anti-aliased, straight ends), `fourier` (periodic) or `linear` (interpolation)."""

    to: int
    method: Literal["polyphase", "fourier", "linear"] = "polyphase"

    def _rate(self, fs: int) -> int:
        return self.to

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        n = round(x.shape[-1] * self.to / fs)
        if fs == self.to:
            return x
        if self.method == "fourier":
            return sps.resample(x, n, axis=-1)
        if self.method == "linear":
            at = np.minimum(np.arange(n) * (fs / self.to), x.shape[-1] - 1)
            left = np.minimum(at.astype(int), x.shape[-1] - 2)
            share = (at - left).astype(np.float32)
            return x[..., left] * (1 - share) + x[..., left + 1] * share
        return signals.resample(x, fs, self.to)


@dataclass(frozen=True)
class ZScore(Step):
    """Subtract the mean and divide by the standard deviation plus `eps`; what is constant becomes 0."""

    over: Scope
    eps: float = 0.0

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        axes = _AXES[self.over]
        centred = x - x.mean(axis=axes, keepdims=True, dtype=np.float64)
        flat = np.ptp(x, axis=axes, keepdims=True) == 0
        return np.where(flat, 0.0, centred / np.where(flat, 1.0, centred.std(axis=axes, keepdims=True) + self.eps))


@dataclass(frozen=True)
class MinMax(Step):
    """Map the smallest value to `low` and the largest to `high`; what is constant becomes their mean."""

    over: Scope
    low: float
    high: float

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        axes = _AXES[self.over]
        least, range_ = x.min(axis=axes, keepdims=True), np.ptp(x, axis=axes, keepdims=True)
        share = np.where(range_ == 0, 0.5, (x - least) / np.where(range_ == 0, 1.0, range_))
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True)
class Scale(Step):
    """Divide by `unit_mv`: that many millivolts become 1."""

    unit_mv: float

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        return x / np.float32(self.unit_mv)


@dataclass(frozen=True)
class FlattenDecimate(Step):
    """Leads one after the other in one vector, then every `factor`-th sample behind scipy's order-8 Chebyshev filter.

    Returns (n, n_leads * n_samples / factor). The filter runs across the borders between leads, as HuBERT-ECG's does.
    """

    factor: int

    def _rate(self, fs: int) -> int:
        return fs // self.factor

    def _apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        return sps.decimate(x.reshape(len(x), -1), self.factor, axis=-1)

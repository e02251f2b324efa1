"""What every encoder offers: its input interface, tokens and its own read-out."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.models.steps import FlattenDecimate, Highpass, Resample, Scale, Step
from cure.signals import LEADS

#: A remainder shorter than this share of a window gets no window of its own.
REMAINDER = 0.05


@dataclass(frozen=True)
class InputSpec:
    """What an encoder wants to be fed. The interface belongs to the model: it is applied in one place, from its spec.

    Attributes
    ----------
    fs : int
        Sampling rate of the model-ready input, Hz.
    seconds : float
        Length of a window. A longer record is covered by several, see `starts`; a shorter one is filled up with zeros
        at its end, behind the steps that normalise.
    leads : tuple of str
        Lead names in the encoder's order.
    record : tuple of Step
        Applied in order to the whole record, from the rate it is stored at.
    window : tuple of Step
        Applied to each window after that.
    n_windows : int
        At least so many windows of a record that is longer than one.
    """

    fs: int
    seconds: float
    leads: tuple[str, ...] = LEADS
    record: tuple[Step, ...] = ()
    window: tuple[Step, ...] = ()
    n_windows: int = 1

    @property
    def unit_mv(self) -> float:
        """Millivolts that are 1.0 in the input; 1 where the records are normalised instead."""
        return next((step.unit_mv for step in self.record if isinstance(step, Scale)), 1.0)

    @property
    def source_fs(self) -> int:
        """Rate that `record` brings records to: stored at this rate they need no resampling."""
        return next((step.to for step in self.record if isinstance(step, Resample)), self.fs)

    def read(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Model-ready input of the first window of some records, (len(rows), n_leads, n_samples) float32."""
        return self.windows(cohort, rows, first=True)[:, 0]

    def windows(self, cohort: Cohort, rows: np.ndarray, *, first: bool = False) -> np.ndarray:
        """Model-ready input of some records, each from the rate that `source_rates` gives.

        The steps see a record's valid samples only (`start` and `n_valid` of `records.parquet`). All records of a
        cohort have as many windows as its longest needs: those of a shorter one overlap more.

        Parameters
        ----------
        cohort : Cohort
        rows : (n,) int array
        first : bool
            Only the first window of each record.

        Returns
        -------
        (n, n_windows, n_leads, n_samples) float32 array
            Without the axis of leads where the spec flattens them.
        """
        rates, k = self.source_rates(cohort, rows), self._most(cohort)
        groups: list[tuple[np.ndarray, np.ndarray]] = []
        for fs in np.unique(rates):
            of_rate = np.flatnonzero(rates == fs)
            signals = cohort.signals(rows[of_rate], int(fs))
            start, length = _valid(cohort, rows[of_rate], int(fs), signals.shape[-1])
            for n in np.unique(length):
                chosen = length == n
                x = _cut(signals[chosen], start[chosen], int(n)) if n < signals.shape[-1] else signals[chosen]
                groups.append((of_rate[chosen], self.apply(x, int(fs), first=first, n_windows=k)))
        if len(groups) == 1:
            return groups[0][1]
        result = np.empty((len(rows), *groups[0][1].shape[1:]), np.float32)
        for at, part in groups:
            result[at] = part
        return result

    def padded(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Which records are shorter than a window and so end in zeros, (len(rows),) bool."""
        return self.filled(cohort, rows)[:, 0] < 1

    def filled(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Share of each of the `windows` of some records that holds valid samples; zeros follow them.

        A record shorter than a window has one, repeated; the windows of any other hold valid samples only. So none is
        empty.

        Returns
        -------
        (n, n_windows) float64 array
            Above 0; exactly 1 but for records that are `padded`.
        """
        n_valid = np.round(cohort.records["n_valid"].to_numpy()[rows] * (self.source_fs / cohort.rates[0]))
        share = np.minimum(n_valid / round(self.source_fs * self.seconds), 1)
        return np.repeat(share[:, None], self._most(cohort), axis=1)

    def _most(self, cohort: Cohort) -> int:
        """How many windows the longest record of a cohort needs."""
        longest = round(cohort.records["n_valid"].max() * self.source_fs / cohort.rates[0])
        return self.count(longest, round(self.source_fs * self.seconds))

    def upsampled(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Which records are not stored at the rate that the steps work at, nor above it, (len(rows),) bool."""
        return self.source_rates(cohort, rows) < self.source_fs

    def source_rates(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Stored rate in Hz that each record is read at: the encoder's own where there is one, else its highest.

        Below `source_fs` a record is upsampled: it holds no more than its source did.
        """
        best = np.zeros(len(rows), dtype=int)
        for fs in sorted(cohort.rates, key=lambda fs: (fs == self.source_fs, fs)):
            best[cohort.records[f"row_{fs}"].to_numpy()[rows] >= 0] = fs
        return best

    def apply(self, x: np.ndarray, fs: int, *, first: bool = False, n_windows: int | None = None) -> np.ndarray:
        """Turn (n, 12, n_samples) mV at `fs`, leads in CURE's order, into (n, n_windows, ...) model-ready input.

        A lead that is constant was not recorded: it is 0 before the first step, as what filters leave of a constant
        would be blown up by a normalisation. `n_windows` overrides how many windows `count` gives.
        """
        x = x[:, [LEADS.index(lead) for lead in self.leads]]
        x = np.where(np.ptp(x, axis=-1, keepdims=True) == 0, np.float32(0), x)
        for step in self.record:
            x, fs = step(x, fs), step.rate(fs)
        length = round(fs * self.seconds)
        starts = self.starts(x.shape[-1], length, n_windows)[: 1 if first else None]
        # A short record has one window; it is made once and repeated.
        different = np.unique(starts)
        cuts = np.stack([x[..., start : start + length] for start in different], axis=1)
        n, k = cuts.shape[:2]
        y = cuts.reshape(n * k, *cuts.shape[2:])
        for step in self.window:
            if isinstance(step, FlattenDecimate):
                y = _fill(y, round(fs * self.seconds))
            y, fs = step(y, fs), step.rate(fs)
        if fs != self.fs:
            raise CureError(f"the steps end at {fs} Hz, not at the {self.fs} Hz of the input: add a Resample")
        if y.ndim == 3:
            y = _fill(y, round(fs * self.seconds))
        y = y.reshape(n, k, *y.shape[1:]).astype(np.float32, copy=False)
        return y if k == len(starts) else y[:, np.searchsorted(different, starts)]

    def count(self, n_samples: int, length: int) -> int:
        """How many windows cover a record: as few as do, up to a remainder of `REMAINDER`, but at least `n_windows`.

        A record that is no longer than a window has one.
        """
        if n_samples <= length:
            return 1
        whole, rest = divmod(n_samples, length)
        return max(whole + (rest >= REMAINDER * length), self.n_windows)

    def starts(self, n_samples: int, length: int, k: int | None = None) -> np.ndarray:
        """First samples of the `k` windows that cover a record evenly from end to end; a single one is centred."""
        k, spare = self.count(n_samples, length) if k is None else k, max(n_samples - length, 0)
        return np.array([spare // 2]) if k == 1 else np.linspace(0, spare, k).round().astype(int)

    def as_dict(self) -> dict:
        """For manifests: plain values only."""
        steps = {name: [step.as_dict() for step in getattr(self, name)] for name in ("record", "window")}
        plain = {"fs": self.fs, "seconds": self.seconds, "leads": list(self.leads)}
        return {**plain, **steps, "n_windows": self.n_windows}


def _valid(cohort: Cohort, rows: np.ndarray, fs: int, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """First valid sample and number of valid samples at `fs` of some records; they are counted at the lowest rate."""
    ratio = fs / cohort.rates[0]
    about = cohort.records[["start", "n_valid"]].to_numpy()[rows]
    start, n_valid = np.round(about * ratio).astype(int).T
    return start, np.minimum(n_valid, n_samples - start)


def _cut(x: np.ndarray, start: np.ndarray, n: int) -> np.ndarray:
    """`n` samples of each record from its own start on."""
    return np.take_along_axis(x, (start[:, None] + np.arange(n))[:, None], axis=-1)


def _fill(x: np.ndarray, length: int) -> np.ndarray:
    """Zeros at the end up to `length` samples."""
    return np.pad(x, ((0, 0), (0, 0), (0, length - x.shape[-1]))) if x.shape[-1] < length else x


#: Input of the encoders that are trained here: 100 Hz, without baseline wander, in units of 0.2 mV.
PLAIN = InputSpec(fs=100, seconds=10, record=(Highpass(0.5), Resample(100), Scale(0.2)))


class Encoder(nn.Module):
    """Base class of all encoders.

    Attributes
    ----------
    input_spec : InputSpec
    dim : int
        Width of a token and of the embedding.
    license : str
        Licence of the weights.
    pretraining : tuple of str
        Cohorts that the weights have seen; empty for random weights.
    timed : bool
        Whether the tokens of a window stand in the order of time, each for as long a stretch of it, so that the first
        ones belong to its first samples. False where leads follow one another.
    """

    input_spec: InputSpec
    dim: int
    license: str = "MIT"
    pretraining: tuple[str, ...] = ()
    timed: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) float32 model-ready input to (n, t, dim) tokens."""
        raise CureError(f"{type(self).__name__} does not define forward")

    def readout(self, tokens: Tensor) -> Tensor:
        """(n, t, dim) tokens to the encoder's own embedding, (n, dim): here their mean."""
        return tokens.mean(dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) model-ready input to the encoder's own embedding, (n, dim)."""
        return self.readout(self(x))

    def stages(self) -> list[nn.Module]:
        """The modules that a record passes one after the other, from input to output: for training the last ones only.

        Parameters in none of them, such as a last norm, count to the stage that is registered before them, else to the
        first.

        Raises
        ------
        CureError
            If the encoder does not say.
        """
        raise CureError(f"{type(self).__name__} does not name its stages: it can be probed or trained whole")

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn a published state dict into this module's names, dropping only what is known not to be the encoder.

        What is not known stays, so that strict loading names it.
        """
        return state

    def weights_sha256(self) -> str:
        """SHA-256 over the names, dtypes, shapes and bytes of the state dict, in name order."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            array = value.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def pool(tokens: Tensor, pooling: str, share: np.ndarray | None = None) -> Tensor:
    """Reduce (n, t, dim) tokens to (n, dim) by `mean`, `max` or `min` over time, or by taking the `last` token.

    Of row i only the first t * share[i] tokens count, to the nearest number but at least one. Rounded up, the last one
    could be of zeros only: many encoders round t up.
    """
    if share is not None:
        pooled, counts = pool(tokens, pooling).clone(), np.floor(tokens.shape[1] * share + 0.5).clip(1).astype(int)
        for count in np.unique(counts[counts < tokens.shape[1]]):
            chosen = torch.from_numpy(counts == count).to(tokens.device)
            pooled[chosen] = pool(tokens[chosen, :count], pooling)
        return pooled
    match pooling:
        case "mean":
            return tokens.mean(dim=1)
        case "max":
            return tokens.amax(dim=1)
        case "min":
            return tokens.amin(dim=1)
        case "last":
            return tokens[:, -1]
    raise CureError(f"unknown pooling {pooling!r}: choose from mean, max, min, last")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, from which layers initialise themselves, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for each operation, because sums differ between thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

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
from cure.models.steps import Highpass, Resample, Scale, Step
from cure.signals import LEADS


@dataclass(frozen=True)
class InputSpec:
    """What an encoder wants to be fed. The interface belongs to the model: it is applied in one place, from its spec.

    Attributes
    ----------
    fs : int
        Sampling rate of the model-ready input, Hz.
    seconds : float
        Length of a window. A longer record is covered by several, see `starts`.
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

        Raises
        ------
        CureError
            If the records are shorter than a window.
        """
        rates = self.source_rates(cohort, rows)
        parts = {
            int(fs): self.apply(cohort.signals(rows[rates == fs], int(fs)), int(fs), first=first)
            for fs in np.unique(rates)
        }
        if len(parts) == 1:
            return next(iter(parts.values()))
        one = next(iter(parts.values()))
        x = np.empty((len(rows), *one.shape[1:]), np.float32)
        for fs, part in parts.items():
            x[rates == fs] = part
        return x

    def source_rates(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Stored rate in Hz that each record is read at: the encoder's own where there is one, else its highest.

        Below `source_fs` a record is upsampled: it holds no more than its source did.
        """
        best = np.zeros(len(rows), dtype=int)
        for fs in sorted(cohort.rates, key=lambda fs: (fs == self.source_fs, fs)):
            best[cohort.records[f"row_{fs}"].to_numpy()[rows] >= 0] = fs
        return best

    def apply(self, x: np.ndarray, fs: int, *, first: bool = False) -> np.ndarray:
        """Turn (n, 12, n_samples) mV at `fs`, leads in CURE's order, into (n, n_windows, ...) model-ready input.

        A lead that is constant was not recorded: it is 0 before the first step, as what filters leave of a constant
        would be blown up by a normalisation.
        """
        x = x[:, [LEADS.index(lead) for lead in self.leads]]
        x = np.where(np.ptp(x, axis=-1, keepdims=True) == 0, np.float32(0), x)
        for step in self.record:
            x, fs = step(x, fs), step.rate(fs)
        length = round(fs * self.seconds)
        starts = self.starts(x.shape[-1], length, fs)[: 1 if first else None]
        cuts = np.stack([x[..., start : start + length] for start in starts], axis=1)
        n, k = cuts.shape[:2]
        y = cuts.reshape(n * k, *cuts.shape[2:])
        for step in self.window:
            y, fs = step(y, fs), step.rate(fs)
        if fs != self.fs:
            raise CureError(f"the steps end at {fs} Hz, not at the {self.fs} Hz of the input: add a Resample")
        return y.reshape(n, k, *y.shape[1:]).astype(np.float32, copy=False)

    def starts(self, n_samples: int, length: int, fs: int) -> np.ndarray:
        """First samples of the windows that cover a record evenly: as few as do, but at least `n_windows`.

        Raises
        ------
        CureError
            If the record is shorter than a window.
        """
        if n_samples < length:
            raise CureError(
                f"records of {n_samples / fs:g} s are shorter than the {self.seconds:g} s that the encoder takes"
            )
        if n_samples == length:
            return np.zeros(1, dtype=int)
        k = max(-(-n_samples // length), self.n_windows)
        return np.linspace(0, n_samples - length, k).round().astype(int)

    def as_dict(self) -> dict:
        """For manifests: plain values only."""
        steps = {name: [step.as_dict() for step in getattr(self, name)] for name in ("record", "window")}
        plain = {"fs": self.fs, "seconds": self.seconds, "leads": list(self.leads)}
        return {**plain, **steps, "n_windows": self.n_windows}


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
    """

    input_spec: InputSpec
    dim: int
    license: str = "MIT"
    pretraining: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) float32 model-ready input to (n, t, dim) tokens."""
        raise CureError(f"{type(self).__name__} does not define forward")

    def readout(self, tokens: Tensor) -> Tensor:
        """(n, t, dim) tokens to the encoder's own embedding, (n, dim): here their mean."""
        return tokens.mean(dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) model-ready input to the encoder's own embedding, (n, dim)."""
        return self.readout(self(x))

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

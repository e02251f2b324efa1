"""What every encoder offers: its input interface, tokens and its own read-out."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cure import signals
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.signals import LEADS


@dataclass(frozen=True)
class InputSpec:
    """What an encoder wants to be fed. The interface belongs to the model: it is applied in one place, from its spec.

    Attributes
    ----------
    fs : int
        Sampling rate, Hz.
    seconds : float
        Length of the window, from the start of the record.
    leads : tuple of str
        Lead names in the encoder's order.
    highpass_hz : float or None
        Cutoff of the zero-phase high-pass.
    unit_mv : float
        Millivolts that become 1.0.
    """

    fs: int
    seconds: float
    leads: tuple[str, ...] = LEADS
    highpass_hz: float | None = None
    unit_mv: float = 1.0

    def read(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Model-ready input of some records, each from the rate that `source_rates` gives.

        Returns
        -------
        (len(rows), len(leads), fs * seconds) float32 array
        """
        rates = self.source_rates(cohort, rows)
        x = np.empty((len(rows), len(self.leads), round(self.fs * self.seconds)), np.float32)
        for fs in np.unique(rates):
            mine = rates == fs
            x[mine] = self.apply(signals.window(cohort.signals(rows[mine], int(fs)), fs, self.seconds), int(fs))
        return x

    def source_rates(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Stored rate in Hz that each record is read at: the encoder's own where there is one, else its highest.

        Below `fs` a record is upsampled: it holds no more than its source did.
        """
        best = np.zeros(len(rows), dtype=int)
        for fs in sorted(cohort.rates, key=lambda fs: (fs == self.fs, fs)):
            best[cohort.records[f"row_{fs}"].to_numpy()[rows] >= 0] = fs
        return best

    def apply(self, x: np.ndarray, fs: int) -> np.ndarray:
        """Turn (n, 12, n_samples) mV at `fs`, leads in CURE's order, into model-ready input.

        The filter comes before the resampling: its edges are then those of the record.
        """
        x = x[:, [LEADS.index(lead) for lead in self.leads]]
        if self.highpass_hz is not None:
            x = signals.highpass(x, fs, self.highpass_hz)
        return signals.resample(x, fs, self.fs) / np.float32(self.unit_mv)

    def as_dict(self) -> dict:
        """For manifests: plain values only."""
        return asdict(self)


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

    def embed(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) to the encoder's own read-out, (n, dim): here the mean over tokens."""
        return self(x).mean(dim=1)

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

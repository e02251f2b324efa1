"""Random views of a record for self-supervision: what may change without changing whose heart it is.

Crops, leads left out, gain, noise, baseline wander and time masks, all in arrays over a batch. Each is something that
happens to real recordings of one heart; none changes the shape of a beat for good.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Seconds of a view, and the smallest number of leads in it.
VIEW_SECONDS, MIN_LEADS = 5.0, 6
#: Gain jitter (SD of its logarithm); upper ends of noise SD and wander amplitude, mV; longest time mask (share); masks.
GAIN, NOISE_MV, WANDER_MV, MASK, N_MASKS = 0.1, 0.05, 0.1, 0.2, 2


@dataclass(frozen=True)
class View:
    """Signals `(n, n_leads, n_samples)` float32 and which of the twelve leads they are."""

    x: Tensor
    leads: list[int]


def view(x: Tensor, fs: int, unit_mv: float, rng: np.random.Generator) -> View:
    """Draw one view of each record: its own crop and disturbances, and leads that the whole batch shares.

    Leads that are left out are taken out of the array, not set to zero: where cost falls with their number, that of
    training does too.

    Parameters
    ----------
    x : (n, 12, n_samples) float32 Tensor
        Model-ready input of whole records.
    fs : int
        Hz.
    unit_mv : float
        Millivolts that are 1.0 in `x`.
    """
    n_leads = x.shape[1]
    count = int(rng.integers(MIN_LEADS, n_leads + 1))
    leads = sorted(rng.choice(n_leads, count, replace=False).tolist())
    cropped = crop(x[:, leads], round(VIEW_SECONDS * fs), rng)
    return View(disturbed(cropped, fs, unit_mv, rng), leads)


def crop(x: Tensor, length: int, rng: np.random.Generator) -> Tensor:
    """Cut `length` samples out of each record of (n, n_leads, n_samples), each at its own random place."""
    start = torch.from_numpy(rng.integers(0, x.shape[2] - length + 1, len(x)))
    at = start[:, None] + torch.arange(length)
    return x.gather(2, at[:, None].expand(-1, x.shape[1], -1))


def disturbed(x: Tensor, fs: int, unit_mv: float, rng: np.random.Generator) -> Tensor:
    """Gain, noise, wander and time masks on (n, n_leads, n_samples), drawn for each record."""
    n, n_leads, n_samples = x.shape

    def uniform(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random(shape, dtype=np.float32))

    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    time = torch.arange(n_samples, dtype=torch.float32) / fs
    hz, phase = 0.05 + 0.45 * uniform(n, 1, 1), 2 * torch.pi * uniform(n, n_leads, 1)
    wander = torch.sin(2 * torch.pi * hz * time + phase)
    gain = torch.exp(GAIN * torch.from_numpy(rng.standard_normal((n, 1, 1), dtype=np.float32)))
    y = x * gain + (NOISE_MV / unit_mv) * uniform(n, 1, 1) * noise
    y += (WANDER_MV / unit_mv) * uniform(n, n_leads, 1) * wander
    width, start = MASK * uniform(n, N_MASKS, 1), uniform(n, N_MASKS, 1)
    place = torch.linspace(0, 1, n_samples)
    masked = ((place >= start) & (place < start + width)).any(dim=1)
    return y.masked_fill(masked[:, None], 0.0)

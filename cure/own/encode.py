"""Batches of own records through an encoder: conditioned as its input spec says, pooled, one vector per record.

The same as stage `embed` does with a cohort: `tests/test_own_embed.py` compares the two.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy import signal as sps

from cure.embed import OWN
from cure.models import Encoder
from cure.models.base import InputSpec, one_thread, pool
from cure.models.steps import Butterworth, FirBandpass, Highpass, Notch, Resample
from cure.own.record import Record

#: A record is conditioned at its own rate where that is this many times the highest edge of a filter, else after it was
#: brought to the rate that the encoder works at: there is no such filter at a lower rate.
_LEAST_RATIO = 2.05


@dataclass(frozen=True)
class Runner:
    """An encoder in use.

    Attributes
    ----------
    encoder : Encoder
    pooling : str
        See `cure.models.base.pool`; `own` is the encoder's own read-out.
    batch_size : int
        Windows per forward pass.
    threads : int
        Batches at work at the same time, each on one thread: the result does not depend on it.
    device : {"cpu", "cuda"}
    """

    encoder: Encoder
    pooling: str = "mean"
    batch_size: int = 32
    threads: int = 2
    device: str = "cpu"

    def __call__(self, records: Sequence[Record]) -> list[np.ndarray | str]:
        """One (dim,) float32 vector per record, or the reason why there is none.

        A record that makes a batch fail is found by itself and does not stop the others.
        """
        return _each(self._all, list(records))

    def _all(self, records: list[Record]) -> list[np.ndarray | str]:
        spec = self.encoder.input_spec
        groups: dict[tuple[float, int], list[int]] = {}
        for i, one in enumerate(records):
            groups.setdefault((one.fs, one.x.shape[1]), []).append(i)
        size = self.batch_size
        pieces = [some[k : k + size] for some in groups.values() for k in range(0, len(some), size)]
        with one_thread(), ThreadPoolExecutor(self.threads) as workers:
            made = list(workers.map(lambda some: condition(spec, [records[i] for i in some]), pieces))
            owner = np.concatenate([np.repeat(some, part.shape[1]) for some, part in zip(pieces, made, strict=True)])
            windows = np.concatenate([part.reshape(-1, *part.shape[2:]) for part in made])
            share = np.array([self._share(records[i]) for i in owner])
            batches = [slice(start, start + size) for start in range(0, len(windows), size)]
            vectors = np.concatenate(list(workers.map(lambda at: self._encode(windows[at], share[at]), batches)))
        rows = [vectors[owner == i].mean(axis=0) for i in range(len(records))]
        return [row if np.isfinite(row).all() else "its embedding is not finite" for row in rows]

    def _share(self, record: Record) -> float:
        """Share of a window that the record fills, as `InputSpec.filled`; 1 where tokens do not follow time."""
        spec = self.encoder.input_spec
        return min(record.seconds / spec.seconds, 1.0) if self.encoder.timed else 1.0

    def _encode(self, windows: np.ndarray, share: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            tokens = self.encoder(torch.from_numpy(windows).to(self.device)).float()
            pooled = self.encoder.readout(tokens) if self.pooling == OWN else pool(tokens, self.pooling, share)
        return pooled.cpu().numpy()


def condition(spec: InputSpec, records: list[Record]) -> np.ndarray:
    """Model-ready windows of records of one rate and length, (n, n_windows, ...) float32."""
    x, fs = np.stack([one.x for one in records]), records[0].fs
    to = working_rate(spec, fs)
    return spec.apply(x if to == fs else resample(x, fs, to), to)


def working_rate(spec: InputSpec, fs: float) -> int:
    """Rate in Hz that steps start at: the record's own, the next whole one, or the encoder's where filters need it."""
    return spec.source_fs if fs < _LEAST_RATIO * _highest_edge(spec) and fs < spec.source_fs else int(np.ceil(fs))


def notes(spec: InputSpec, record: Record) -> list[str]:
    """What an encoder's input holds that the record does not."""
    said = []
    if record.fs < spec.source_fs:
        said.append(f"upsampled from {record.fs:g} Hz")
    if record.seconds < spec.seconds:
        said.append(f"{record.seconds:g} s filled up to {spec.seconds:g} s")
    return said


def resample(x: np.ndarray, fs: float, to: float) -> np.ndarray:
    """Change any rate to any other with an anti-aliasing polyphase filter; a straight line keeps its ends."""
    ratio = Fraction(to / fs).limit_denominator(10_000)
    return sps.resample_poly(x, ratio.numerator, ratio.denominator, axis=-1, padtype="line").astype(np.float32)


def _highest_edge(spec: InputSpec) -> float:
    """Highest frequency in Hz that a filter names while the record is at its own rate."""
    edges = [0.0]
    for step in spec.record:
        if isinstance(step, Highpass):
            edges.append(step.cutoff)
        elif isinstance(step, Notch):
            edges.append(step.frequency)
        elif isinstance(step, Butterworth):
            edges.append(float(np.max(step.cutoff)))
        elif isinstance(step, FirBandpass):
            edges.append(step.high)
        elif isinstance(step, Resample):
            break  # from here on the rate is the encoder's
    return max(edges)


def _each(work: Callable[[list[Record]], list[Any]], records: list[Record]) -> list[Any]:
    """Apply work to all records at once; if that fails, to halves, until the ones at fault are alone."""
    if not records:
        return []
    try:
        return work(records)
    except Exception as error:
        if len(records) == 1:
            return [f"cannot be encoded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"]
    half = len(records) // 2
    return _each(work, records[:half]) + _each(work, records[half:])

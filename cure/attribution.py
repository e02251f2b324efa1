"""From a log-odds back to leads and time: gradients, occlusions, and the check that they depend on the weights.

The model explained is a frozen encoder, the mean over its tokens and a logistic head, folded into one `Probe` whose
output is a log-odds. Attributions have the shape of its input and the unit log-odds.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients
from scipy.stats import rankdata
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from cure import beats, features, models
from cure.embed import pool
from cure.errors import CureError
from cure.models import Encoder

#: Width of the bins in which attributions are compared, scored and drawn: a small square of ECG paper.
BIN_S = 0.04
#: How far the sum of integrated gradients may lie from f(x) - f(0), as a share of the sum of their absolute values.
TOLERANCE = 0.05
#: Records whose paths are in memory at once, and points of these paths per forward pass: small batches stay in cache.
RECORDS, POINTS = 8, 16
#: Parts of each beat, in the order of their codes in `beat_segments`; `P` reaches to the QRS onset.
SEGMENTS = ("P", "QRS", "ST", "T", "TQ")
#: The ST segment ends, and the T wave begins, this long after the J point; without a P wave, `P` is this long.
ST_S, NO_P_S = 0.08, 0.16
#: Parts of the encoders trained here, from output to input: the order in which they are randomised.
_PARTS: dict[str, tuple[str, ...]] = {
    "leadcnn": ("trunk", "lead", "stem"),
    "resnet1d": ("norm", "blocks", "stem"),
    "resnet1d_wang": ("blocks", "stem"),
    "vit1d": ("layers", "patches"),
}


def parts(encoder: str) -> tuple[str, ...]:
    """Parts of an encoder's state dict from its output to its input; published ones name theirs in reading order."""
    if encoder in _PARTS:
        return _PARTS[encoder]
    with torch.device("meta"):
        state = models.load(encoder).state_dict()
    return tuple(reversed(dict.fromkeys(name.split(".")[0] for name in state)))


class Probe(nn.Module):
    """Encoder, mean over tokens and logistic head in one: model-ready input (n, n_leads, n_samples) to log-odds (n,).

    The head's standardisation is folded into its coefficients. Nothing in it is trainable.

    Parameters
    ----------
    encoder : Encoder
        Shared, not copied.
    head : Pipeline
        The estimator of `cure.heads.fit_head("logistic", ...)`, fitted on mean-pooled embeddings of that encoder. They
        have no gaps, so its imputer does nothing.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: Encoder, head: Pipeline):
        super().__init__()
        scale, model = head[0][-1], head[-1]
        weight = model.coef_[0] / scale.scale_
        self.encoder = encoder
        self.register_buffer("weight", torch.from_numpy(weight))
        self.register_buffer("bias", torch.from_numpy(model.intercept_ - weight @ scale.mean_))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Log-odds, (n,) float64: summed in the head's own precision."""
        return pool(self.encoder(x), "mean").double() @ self.weight + self.bias

    def score(self, x: np.ndarray) -> np.ndarray:
        """Log-odds of an array, in small batches, (n,) float64."""
        with torch.inference_mode():
            return np.concatenate([self(part).numpy() for part in torch.from_numpy(x).split(POINTS)])


@dataclass(frozen=True)
class Attribution:
    """What a path from the isoelectric line to each record tells.

    Attributes
    ----------
    gradient : (n, n_leads, n_samples) float32 array
        Mean gradient on the path: by how much the log-odds move with the signal there, whatever its height.
    value : (n, n_leads, n_samples) float32 array
        Integrated gradients: `gradient` times the record, log-odds.
    error : (n,) float64 array
        Sum over `value` less f(x) - f(0), as a share of the sum of absolute values.
    """

    gradient: np.ndarray
    value: np.ndarray
    error: np.ndarray


def integrated_gradients(probe: nn.Module, x: np.ndarray, steps: int, tolerance: float = TOLERANCE) -> Attribution:
    """Integrated gradients from the isoelectric line to the record (Sundararajan et al. 2017, equation 1).

    The baseline is zero: after the high-pass that every encoder here has, a heart without electrical activity.

    Parameters
    ----------
    probe : nn.Module
        (n, n_leads, n_samples) to (n,) log-odds.
    x : (n, n_leads, n_samples) float32 array
        Model-ready input.
    steps : int
        Points of the Gauss-Legendre rule on the path.
    tolerance : float
        Largest absolute `error` that is let pass; infinite for controls, whose values nobody reads.

    Raises
    ------
    CureError
        If an error exceeds `tolerance`: names the remedy.
    """
    method = IntegratedGradients(probe, multiply_by_inputs=False)
    gradients, rises = [], []
    for part in torch.from_numpy(x).split(RECORDS):
        gradients.append(method.attribute(part, n_steps=steps, internal_batch_size=max(POINTS, len(part))).numpy())
        with torch.inference_mode():
            rises.append((probe(part) - probe(torch.zeros_like(part[:1]))).numpy())
    gradient = np.concatenate(gradients)
    value = (gradient * x).astype(np.float32)
    missing = value.sum(axis=(1, 2), dtype=np.float64) - np.concatenate(rises)
    error = missing / np.maximum(np.abs(value).sum(axis=(1, 2), dtype=np.float64), 1e-12)
    if (np.abs(error) > tolerance).any():
        raise CureError(
            f"integrated gradients of record {np.abs(error).argmax()} of {len(x)} miss f(x) - f(0) by "
            f"{np.abs(error).max():.1%} of their absolute sum, more than {tolerance:.0%}: raise `steps` (now {steps}) "
            "in section explain of the profile"
        )
    return Attribution(gradient.astype(np.float32), value, error)


def gradient_times_input(probe: nn.Module, x: np.ndarray) -> np.ndarray:
    """Gradient times input (Shrikumar et al. 2016), shape and unit of `integrated_gradients`."""
    method = InputXGradient(probe)
    parts = (part.clone().requires_grad_() for part in torch.from_numpy(x).split(POINTS))
    return np.concatenate([method.attribute(part).detach().numpy() for part in parts])


def lead_drop(probe: Probe, x: np.ndarray) -> np.ndarray:
    """By how much the log-odds fall when one lead is zero throughout, (n, n_leads); negative where they rise."""
    full = probe.score(x)
    drops = []
    for lead in range(x.shape[1]):
        without = x.copy()
        without[:, lead] = 0
        drops.append(full - probe.score(without))
    return np.stack(drops, axis=1)


def segment_drop(probe: Probe, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """By how much the log-odds fall when one segment of every beat becomes a straight line, (n, len(SEGMENTS)).

    NaN where a record has no such segment. Parameters as for `without_segment`.
    """
    full = probe.score(x)
    drops = []
    for code in range(len(SEGMENTS)):
        drop = full - probe.score(without_segment(x, codes, code))
        drops.append(np.where((codes == code).any(axis=1), drop, np.nan))
    return np.stack(drops, axis=1)


def without_segment(x: np.ndarray, codes: np.ndarray, code: int) -> np.ndarray:
    """Replace one segment of every beat, in all leads, by the line between the samples at its two ends.

    A line adds no step: zeros would, and the model would answer to the step.

    Parameters
    ----------
    x : (n, n_leads, n_samples) float32 array
    codes : (n, n_samples) int array
        From `beat_segments`.
    code : int
        Position in `SEGMENTS`.
    """
    result = x.copy()
    at = np.arange(x.shape[2])
    for record, cut in zip(result, codes == code, strict=True):
        if cut.any() and not cut.all():
            for lead in record:
                lead[cut] = np.interp(at[cut], at[~cut], lead[~cut])
    return result


def beat_segments(mv: np.ndarray, fs: float, seconds: float, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Which segment of a beat each sample belongs to, by measured R peaks and the boundaries of the median beat.

    Parameters
    ----------
    mv : (n, 12, n_source) array
        mV, leads in CURE's order, at `fs` Hz.
    fs : float
    seconds, samples : float, int
        Length of the window that is coded, from the start of the record.

    Returns
    -------
    codes : (n, samples) int8 array
        Position in `SEGMENTS`; -1 before the first whole beat, after the last, and in records that could not be
        measured. P begins `NO_P_S` before the QRS where no P wave is found.
    rr : (n,) float array
        Median RR interval in s; NaN below two beats.
    """
    _, _, median, rhythm = beats.align(mv, fs)
    waves = features.delineate(np.nan_to_num(median), rhythm["rr_ms"])
    record, peak = beats.r_peaks(mv, fs)
    on, off, p_on, t_end = (edge / 1000 for edge in (waves.qrs_on, waves.qrs_off, waves.p_on, waves.t_end))
    p_on = np.where(np.isnan(p_on), on - NO_P_S, p_on)
    edges = np.stack([p_on, on, off, np.minimum(off + ST_S, t_end), t_end], axis=1)
    codes = np.full((len(mv), samples), -1, np.int8)
    rr = np.full(len(mv), np.nan)
    for i in range(len(mv)):
        r = peak[record == i]
        rr[i] = np.median(np.diff(r)) if len(r) > 1 else np.nan
        if len(r) and np.isfinite(edges[i]).all():
            codes[i] = _coded(np.round((r[:, None] + edges[i]) * samples / seconds).astype(int), samples)
    return codes, rr


def _coded(beat_edges: np.ndarray, samples: int) -> np.ndarray:
    """Paint the beats of one record; later layers win where a fast rhythm makes segments overlap."""
    codes = np.full(samples, -1, np.int8)
    edges = np.clip(beat_edges, 0, samples)
    codes[edges[0, 0] : edges[-1, -1]] = SEGMENTS.index("TQ")
    for name, first in (("T", 3), ("ST", 2), ("P", 0), ("QRS", 1)):
        for start, end in edges[:, [first, first + 1]]:
            codes[start:end] = SEGMENTS.index(name)
    return codes


def binned(attribution: np.ndarray, fs: float) -> np.ndarray:
    """Sums over bins of `BIN_S`: (..., n_samples) to (..., n_bins); the last bin may be narrower."""
    starts = np.arange(0, attribution.shape[-1], round(BIN_S * fs))
    return np.add.reduceat(attribution, starts, axis=-1)


def segment_shares(attribution: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Share of |attribution| per lead and segment, (n, n_leads, len(SEGMENTS)).

    A record's shares add up to one; NaN for records without segments. What lies outside whole beats does not count.
    """
    inside = np.stack([codes == code for code in range(len(SEGMENTS))], axis=2)
    sums = np.einsum("nct,nts->ncs", np.abs(attribution), inside)
    total = sums.sum(axis=(1, 2), keepdims=True)
    return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


def similarity(one: np.ndarray, other: np.ndarray, fs: float, signed: bool = False) -> np.ndarray:
    """Spearman's rank correlation of two attributions over leads and bins of time, (n,).

    Of their absolute values, summed over each bin, or, if `signed`, of their sums.
    """
    values = (binned(a if signed else np.abs(a), fs) for a in (one, other))
    ranks = [rankdata(value.reshape(len(value), -1), axis=1) for value in values]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def randomised(probe: Probe, encoder: str, seed: int) -> dict[str, Probe]:
    """Copies of a probe with ever more of it initialised anew, from the head down to the input.

    The cascading check of Adebayo et al. 2018: an attribution that explains the weights must change with them.

    Parameters
    ----------
    probe : Probe
    encoder : str
        Name of its encoder.
    seed : int
        Of the new weights. The new head's coefficients are normal, with the spread of the old.

    Returns
    -------
    dict
        What is random, such as `head` and `head to trunk`, to the probe in which it is.
    """
    state = probe.encoder.state_dict()
    rng = np.random.default_rng(seed)
    fresh = models.load(encoder, "random", int(rng.integers(2**31))).state_dict()
    current = copy.deepcopy(probe)
    current.weight = torch.from_numpy(rng.normal(0, float(probe.weight.std()), len(probe.weight)))
    stages = {"head": current}
    for part in parts(encoder):
        current = copy.deepcopy(current)
        new = {name: value for name, value in fresh.items() if name.split(".")[0] == part}
        current.encoder.load_state_dict(state | new)
        state = current.encoder.state_dict()
        stages[f"head to {part}"] = current
    return stages

"""Take parts of an ECG away, or put them back, in the order of an attribution; and how far attributions agree.

Deletion and insertion follow Petsiuk et al. 2018 (RISE), over bins of one lead and 40 ms.
"""

import numpy as np
from scipy.stats import rankdata

from cure.attribution import BIN_S, SEGMENTS, Probe

#: Shares of all bins at which curves are read, besides none and all. Symmetric, so that an order that says nothing has
#: the same expected area under deletion and insertion: what it keeps is random either way.
SHARES = (0.05, 0.15, 0.35, 0.65, 0.85, 0.95)
#: Share of bins that is called the top.
TOP = 0.1


def emptied(x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Replace what is not kept by straight lines between the samples at its two ends, lead by lead.

    A line adds no step, to which the model would answer. The record counts as isoelectric just before its first sample
    and just after its last, so a lead of which nothing is kept is zero: the baseline of integrated gradients.

    Parameters
    ----------
    x : (n, n_leads, n_samples) float32 array
    kept : bool array
        Of the same shape.
    """
    samples = x.shape[-1]
    at = np.arange(samples)
    left = np.maximum.accumulate(np.where(kept, at, -1), axis=-1)
    right = np.minimum.accumulate(np.where(kept, at, samples)[..., ::-1], axis=-1)[..., ::-1]
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1)])
    start, end = (np.take_along_axis(padded, edge + 1, axis=-1) for edge in (left, right))
    line = start + (end - start) * ((at - left) / np.maximum(right - left, 1))
    return np.where(kept, x, line).astype(np.float32)


def order(score: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Position of every bin when the highest comes first, (n, ...) ints; equal scores follow each other at random."""
    flat = score.reshape(len(score), -1)
    sequence = np.lexsort((rng.random(flat.shape), -flat), axis=-1)
    place = np.empty_like(sequence)
    np.put_along_axis(place, sequence, np.broadcast_to(np.arange(flat.shape[1]), flat.shape), axis=1)
    return place.reshape(score.shape)


def curves(probe: Probe, x: np.ndarray, place: np.ndarray, fs: float) -> np.ndarray:
    """Log-odds while bins are removed from the record, or put into an empty one, in a given order.

    Parameters
    ----------
    probe : Probe
    x : (n, n_leads, n_samples) float32 array
        Model-ready input.
    place : (n, n_leads, n_bins) int array
        From `order`.
    fs : float
        Hz.

    Returns
    -------
    (n, 2, len(SHARES)) array
        Deletion and insertion.
    """
    width, n_bins = round(BIN_S * fs), place.shape[1] * place.shape[2]
    cuts = [round(share * n_bins) for share in SHARES]
    kept = [place >= cut for cut in cuts] + [place < cut for cut in cuts]
    left = [emptied(x, np.repeat(mask, width, axis=2)[..., : x.shape[2]]) for mask in kept]
    found = probe.score(np.concatenate(left)).reshape(2, len(SHARES), len(x))
    return np.moveaxis(found, 2, 0)


def area(curve: np.ndarray) -> np.ndarray:
    """Mean height of curves over the share of bins, (..., len(SHARES) + 2) to (...,): log-odds, by trapezoids."""
    return np.trapezoid(curve, [0, *SHARES, 1], axis=-1)


def occlusion(probe: Probe, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Fall of the log-odds without one segment of every beat in one lead, spread evenly over what was taken away.

    A record without segments (no R peak was found) gets zeros throughout, and so a random order.

    Parameters
    ----------
    probe : Probe
    x : (n, n_leads, n_samples) float32 array
    codes : (n, n_samples) int array
        From `cure.attribution.beat_segments`.

    Returns
    -------
    (n, n_leads, n_samples) float64 array
    """
    full, found = probe.score(x), np.zeros(x.shape)
    for code in range(len(SEGMENTS)):
        cut = codes == code
        some = np.flatnonzero(cut.any(axis=1))
        if not len(some):
            continue
        for lead in range(x.shape[1]):
            kept = np.ones(x[some].shape, bool)
            kept[:, lead] = ~cut[some]
            drop = full[some] - probe.score(emptied(x[some], kept))
            found[some, lead] += cut[some] * (drop / cut[some].sum(axis=1))[:, None]
    return found


# --- agreement -------------------------------------------------------------------------------------


def agreement(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far methods rank the same bins of a record high.

    Parameters
    ----------
    sizes : (n, n_methods, n_bins) array
        Absolute attributions.
    rng : numpy.random.Generator
        Chooses among equal values at the edge of the top.

    Returns
    -------
    (n, 2, n_methods, n_methods) array
        Spearman's correlation over bins, NaN against a constant; and the share of the top tenth of one method's bins
        that is in the other's too, 0.1 by chance.
    """
    n, methods, bins = sizes.shape
    ranks = rankdata(sizes, axis=2)
    ranks -= ranks.mean(axis=2, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=2))
    scale = norm[:, :, None] * norm[:, None]
    product = np.einsum("nab,ncb->nac", ranks, ranks, optimize=True)
    spearman = np.divide(product, scale, out=np.full(product.shape, np.nan), where=scale > 0)
    count = max(round(TOP * bins), 1)
    top = (order(sizes.reshape(-1, bins), rng) < count).reshape(n, methods, bins).astype(float)
    return np.stack([spearman, np.einsum("nab,ncb->nac", top, top, optimize=True) / count], axis=1)

"""Whether scores can be taken at their word: reliability curves, calibration slope and intercept."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from cure.bootstrap import ECE_BINS, Array, interval, patient_draws
from cure.evaluate import support
from cure.progress import progress
from cure.ranks import metric_draws, score_table

#: Scores this near to 0 or 1 count as this: a logit must be finite.
_EDGE = 1e-6
#: A slope beyond this means that the scores separate the classes: the estimate is infinite.
_STEEPEST = 50.0
#: Weights in memory at a time, in elements.
_CHUNK = 2**17
_Part = tuple[dict, Array, Array, Array, Array]


class Curve(NamedTuple):
    """Bins of a reliability curve, (n_bins,) each, from the lowest scores to the highest; empty bins are left out."""

    predicted: Array
    observed: Array
    lo: Array
    hi: Array
    n: Array
    n_pos: Array


def bin_codes(score: Array) -> Array:
    """Equal-count bin of each score, as the ECE of `cure.bootstrap.metrics` cuts them: equal scores stay together."""
    edges = np.quantile(score, np.arange(1, ECE_BINS) / ECE_BINS)
    return np.searchsorted(edges, score, side="right")


def reliability(y: Array, score: Array, patient_id: Array, weights: Array) -> Curve:
    """Mean score and observed share of positives in ten bins of equal count, with 95 % intervals over patients.

    A bin that holds one class only is the same in every draw; it gets Wilson's interval for the number of its patients
    instead, since no spread is not certainty.

    Parameters
    ----------
    y, score, patient_id : (n,) arrays
    weights : (n_draws, n) array
        How often each record counts in each draw.
    """
    codes = bin_codes(score)
    member = (codes[:, None] == np.unique(codes)).astype(float)
    n, n_pos = member.sum(axis=0), y @ member
    drawn = weights.astype(float)
    size = drawn @ member
    share = np.divide(drawn @ (member * y[:, None]), size, out=np.full(size.shape, np.nan), where=size > 0)
    lo, hi, _ = interval(share.T)
    for b in np.flatnonzero((n_pos == 0) | (n_pos == n)):
        n_patients = len(np.unique(patient_id[member[:, b] > 0]))
        room = 1.96**2 / (n_patients + 1.96**2)
        lo[b], hi[b] = (0.0, room) if n_pos[b] == 0 else (1 - room, 1.0)
    return Curve(score @ member / n, n_pos / n, lo, hi, n.astype(int), n_pos.astype(int))


def recalibration(y: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """Calibration slope and intercept by logistic recalibration, in every draw.

    The slope is b in `logit P(y = 1) = a + b logit(score)`: below 1 where scores are too extreme, above where they are
    too timid. The intercept is a with b held at 1: calibration in the large, above 0 where the scores are too low on
    the whole (Cox 1958; Van Calster et al. 2016, J Clin Epidemiol 74).

    Parameters
    ----------
    y, score : (n,) arrays
        0/1 labels and probabilities.
    weights : (n_draws, n) array

    Returns
    -------
    slope, intercept : (n_draws,) arrays
        NaN where a draw holds one class only or the estimate is infinite.
    """
    z = logit(np.clip(np.asarray(score, float), _EDGE, 1 - _EDGE))
    y = np.asarray(y, float)
    centre, scale = z.mean(), max(z.std(), 1e-12)
    steep, flat = np.stack([np.ones_like(z), (z - centre) / scale]), np.ones((1, len(z)))
    slope = _logistic(y, steep, np.zeros_like(z), weights)[:, 1] / scale
    return np.where(np.abs(slope) > _STEEPEST, np.nan, slope), _logistic(y, flat, z, weights)[:, 0]


def _logistic(y: Array, x: Array, offset: Array, weights: Array) -> Array:
    """Weighted logistic regressions on the rows of `x`, (k, n), one per row of `weights`: (n_draws, k)."""
    k = len(x)
    start = _newton(y, x, offset, np.ones((1, len(y))), np.zeros((1, k)))
    if np.isnan(start).any():  # no estimate in the sample: draws, which repeat its records, have none either
        return np.full((len(weights), k), np.nan)
    # The draws start at the estimate of the sample, where the first step is a matrix product for all of them.
    out = np.empty((len(weights), k))
    step = max(1, _CHUNK // len(y))
    for at in range(0, len(weights), step):
        part = np.ascontiguousarray(weights[at : at + step], dtype=float)
        n_pos, n = part @ y, part.sum(axis=1)
        out[at : at + step] = _newton(y, x, offset, part, np.repeat(start, len(part), axis=0))
        out[at : at + step][(n_pos == 0) | (n_pos == n)] = np.nan
    return out


def _newton(y: Array, x: Array, offset: Array, weights: Array, theta: Array) -> Array:
    """Newton's method from `theta`, (n_draws, k), the same in all rows; NaN where it does not converge."""
    theta = theta.copy()
    k = len(x)
    pairs = np.stack([x[i] * x[j] for i in range(k) for j in range(k)], axis=1)
    active = np.arange(len(weights))
    for step in range(50):
        p = expit((theta[:1] if step == 0 else theta[active]) @ x + offset)
        w = weights[active]
        if step == 0:
            gradient, hessian = w @ ((y - p) * x).T, w @ ((p * (1 - p)).T * pairs)
        else:
            gradient = (w * (y - p)) @ x.T
            hessian = (w * (p * (1 - p))) @ pairs
        curvature = hessian.reshape(-1, k, k) + 1e-12 * np.eye(k)
        move = np.clip(np.linalg.solve(curvature, gradient[..., None])[..., 0], -2, 2)
        theta[active] += move
        # Errors are squared in every step: after a step of 1e-4 some 1e-8 is left.
        active = active[np.abs(move).max(axis=1) > 1e-4]
        if not len(active):
            return theta
    theta[active] = np.nan
    return theta


def reliability_table(predicted: pd.DataFrame, patients: pd.Series, *, n_draws: int, seed: int) -> pd.DataFrame:
    """Reliability curves of every method and task: one row per bin, `value` the observed share, `predicted` the mean.

    A task with fewer than ten positives, or negatives, has no intervals.

    Parameters
    ----------
    predicted : DataFrame
        Predictions of a few methods, one seed each.
    patients : Series
        `patient_id` by record_id.
    n_draws, seed : int
        Of the patient bootstrap.
    """
    rows = []
    for name, y, score, patient_id, weights in _parts(predicted, patients, n_draws, seed):
        about = support(y, patient_id)
        curve = reliability(y, score, patient_id, weights)
        for b, (mean, share, lo, hi, n, n_pos) in enumerate(zip(*curve, strict=True)):
            bounds = (lo, hi) if about.supported else (np.nan, np.nan)
            number = {"metric": "observed", "bin": b + 1, "predicted": mean, "value": share}
            number |= dict(zip(("lo", "hi"), bounds, strict=True)) | {"n_bin": n, "n_pos_bin": n_pos}
            rows.append({**name, **number, "n": about.n, "n_pos": about.n_pos, "supported": about.supported})
    return pd.DataFrame(rows)


def calibration_table(predicted: pd.DataFrame, patients: pd.Series, *, n_draws: int, seed: int) -> pd.DataFrame:
    """Brier score, ECE, calibration slope and intercept of every method and task, with 95 % intervals over patients.

    `target` is what a perfectly calibrated score reaches: slope 1, intercept 0, ECE 0; for the Brier score it is what
    always saying the prevalence reaches, which a useful score is below.
    """
    rows = []
    for name, *arrays in _parts(predicted, patients, n_draws, seed):
        rows += [{**name, **row} for row in _recalibrated(*arrays)]
    plain = score_table(metric_draws(predicted, patients, ("brier", "ece"), n_draws=n_draws, seed=seed))
    plain = plain[plain["n_tasks"].isna()].drop(columns="n_tasks")
    prevalence = (plain["n_pos"] / plain["n"]).astype(float)
    plain["target"] = np.where(plain["metric"] == "brier", prevalence * (1 - prevalence), 0.0)
    table = pd.concat([plain, pd.DataFrame(rows)], ignore_index=True)
    return table.drop(columns=["seed"], errors="ignore").astype({"n_pos": "Int64", "n_undefined": "Int64"})


def _recalibrated(y: Array, score: Array, patient_id: Array, weights: Array) -> list[dict]:
    """Rows on slope and intercept of one method and task."""
    about = support(y, patient_id)
    counts = {"n": about.n, "n_pos": about.n_pos, "n_patients": about.n_patients, "supported": about.supported}
    drawn = recalibration(y, score, np.vstack([np.ones((1, len(y)), np.uint8), weights]))
    rows = []
    for metric, target, values in zip(("slope", "intercept"), (1.0, 0.0), drawn, strict=True):
        lo, hi, lost = interval(values[1:]) if about.supported else (np.nan, np.nan, pd.NA)
        number = {"metric": metric, "value": values[0], "lo": lo, "hi": hi, "target": target}
        rows.append({**number, **counts, "n_undefined": lost})
    return rows


def _parts(predicted: pd.DataFrame, patients: pd.Series, n_draws: int, seed: int) -> Iterator[_Part]:
    """Every method and task: the columns that name it, labels, scores, patients and the draws of its records."""
    names = list(predicted.columns[: list(predicted.columns).index("task") + 1])
    record_id = np.unique(predicted["record_id"])
    weights = patient_draws(patients.loc[record_id].to_numpy(), n_draws, np.random.default_rng(seed))
    parts = predicted.groupby(names, observed=True, sort=False)
    for key, part in progress(parts, desc="calibration", total=parts.ngroups, unit="method"):
        order = part.sort_values("record_id")
        columns = np.searchsorted(record_id, order["record_id"])
        patient_id = patients.loc[order["record_id"]].to_numpy()
        y, score = order["y"].to_numpy(float), order["score"].to_numpy(float)
        yield (
            {str(name): value for name, value in zip(names, key, strict=True)},
            y,
            score,
            patient_id,
            weights[:, columns],
        )

"""Heads: light classifiers on frozen representations, fitted, chosen and tested on the parts of a split meant for each.

A head is fitted on the training records, its setting, stopping point and decision threshold are chosen on the
validation records, and the test records are scored once. Setting and stopping minimise the validation log loss, a
proper score defined for any labels; the threshold maximises F1. What is tried for each head: `cure.estimators`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
import sklearn
from sklearn.linear_model import Ridge
from sklearn.metrics import precision_recall_curve

from cure.errors import CureError
from cure.estimators import HEADS, Candidate, Data, Grid, candidates, log_loss, scaler
from cure.progress import progress
from cure.splits import Split


@dataclass(frozen=True)
class Fit:
    """A fitted head.

    Attributes
    ----------
    estimator : Pipeline or classifier with `predict_proba`
    setting : str
        What validation chose.
    threshold : float
        Probability above which F1 is highest on the validation records.
    """

    estimator: object
    setting: str
    threshold: float

    def score(self, x: np.ndarray) -> np.ndarray:
        """Probability of the positive class, (n,) float64."""
        return self.estimator.predict_proba(x)[:, 1]  # type: ignore[attr-defined]


def fit_head(name: str, x: np.ndarray, y: np.ndarray, split: Split, seed: int = 0, grid: Grid = "compact") -> Fit:
    """Fit one head on one task of one split.

    Parameters
    ----------
    name : str
        A key of `cure.estimators.HEADS`.
    x : (n_records, dim) float32 array
        Frozen representation, NaN where a feature could not be measured.
    y : (n_records,) bool array
    split : Split
        Only `train` and `val` are looked at.
    seed : int
        Of everything random in the head.
    grid : {"compact", "paper"}
        Which settings are tried.

    Raises
    ------
    CureError
        For an unknown head, or a training part with one class only.
    """
    if name not in HEADS:
        raise CureError(f"unknown head {name!r}: choose from {', '.join(HEADS)}")
    if y[split.train].all() or not y[split.train].any():
        raise CureError(f"{split.name}: the training records hold one class only; leave this task out")
    data = Data(x[split.train], y[split.train], x[split.val], y[split.val])
    return choose(candidates(name, data, seed, grid), data.x_val, data.y_val)


def choose(fitted: Iterable[Candidate], x_val: np.ndarray, y_val: np.ndarray) -> Fit:
    """Take the candidate with the lowest log loss on the validation records, and its threshold from them."""
    best, setting = min(fitted, key=lambda one: log_loss(one[0], x_val, y_val))
    return Fit(best, setting, best_threshold(y_val, best.predict_proba(x_val)[:, 1]))


def best_threshold(y: np.ndarray, score: np.ndarray) -> float:
    """Score at and above which F1 is highest; 0.5 where `y` has no positive to choose by."""
    if not y.any():
        return 0.5
    precision, recall, threshold = precision_recall_curve(y, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(threshold[np.argmax(f1[:-1])])


@dataclass(frozen=True)
class Job:
    """One representation under one head on some tasks: all its scores come out of one call.

    `key` holds the columns of the predictions table that say what this is; `x` the (n_records, dim) array of each
    split by name, one and the same where the representation does not differ between splits.
    """

    key: dict
    x: Mapping[str, np.ndarray]
    head: str
    names: list[str]
    y: np.ndarray
    rows: np.ndarray


def out_of_fold(
    jobs: list[Job], splits: list[Split], record_id: np.ndarray, *, seed: int = 0, grid: Grid = "compact"
) -> pd.DataFrame:
    """Test-fold scores of every job on every task and split.

    Parameters
    ----------
    jobs : list of Job
    splits : list of Split
        Of the whole cohort; a job whose tasks cover fewer records uses those.
    record_id : (n_records,) array
    seed : int
        Given to every head.
    grid : {"compact", "paper"}
        Which settings every head tries.

    Returns
    -------
    DataFrame
        One row per record x task x job: the job's key, `task`, `split`, `record_id`, `y`, `score`, `threshold`,
        `setting`.
    """
    units, work = [], []
    for job in jobs:
        # One array for each that differs, so that joblib shares it between workers instead of sending it with each fit.
        arrays = {id(x): x[job.rows] for x in job.x.values()}
        for split in (split.restrict(job.rows) for split in splits):
            for task in range(len(job.names)):
                units.append((job, task, split))
                x = arrays[id(job.x[split.name])]
                work.append(joblib.delayed(_score)(job.head, x, job.y[:, task], split, seed, grid))
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")
    fits = list(progress(parallel(work), desc="heads", total=len(units), unit="fit"))
    frames = []
    for (job, task, split), (score, threshold, setting) in zip(units, fits, strict=True):
        rows = split.test
        columns = {
            "task": job.names[task],
            "split": split.name,
            "record_id": record_id[job.rows[rows]],
            "y": job.y[rows, task].astype(np.int8),
            "score": score,
            "threshold": np.float32(threshold),
            "setting": setting,
        }
        frames.append(pd.DataFrame({**job.key, **columns}))
    table = pd.concat(frames, ignore_index=True)
    constant = [*jobs[0].key, "task", "split", "setting"]
    return table.astype({name: "category" for name in constant if table[name].dtype == object})


def _score(
    head: str, x: np.ndarray, y: np.ndarray, split: Split, seed: int, grid: Grid
) -> tuple[np.ndarray, float, str]:
    # Thousands of small fits on checked input: scikit-learn's own checks would cost as much as the fits.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        fit = fit_head(head, x, y, split, seed, grid)
        return fit.score(x[split.test]).astype(np.float32), fit.threshold, fit.setting


def permuted_scores(x: np.ndarray, labels: np.ndarray, splits: list[Split], alpha: float = 1.0) -> np.ndarray:
    """Out-of-fold scores of a linear probe retrained on each of many label columns at once: for the permutation null.

    A ridge probe has a closed form that all label columns share, so that hundreds of retrainings cost one decomposition
    per split; as a linear classifier on standardised embeddings it stands for the logistic head.

    Parameters
    ----------
    x : (n_records, dim) array
    labels : (n_records, n_permutations) array
    splits : list of Split
        Whose test parts cover the records to score.
    alpha : float
        Ridge penalty per training record.

    Returns
    -------
    (n_records, n_permutations) float32 array, NaN for records that no split tests.
    """
    scores = np.full(labels.shape, np.nan, dtype=np.float32)
    for split in splits:
        scale = scaler().fit(x[split.train])
        probe = Ridge(alpha=alpha * len(split.train)).fit(scale.transform(x[split.train]), labels[split.train])
        scores[split.test] = probe.predict(scale.transform(x[split.test]))
    return scores

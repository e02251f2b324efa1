"""Metrics of many methods over one set of bootstrap draws, and the ranks that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cure.bootstrap import Array, interval, macro, patient_draws
from cure.errors import CureError
from cure.evaluate import COHORT, Support, aligned
from cure.progress import progress

#: Metrics of which less is better.
LOWER = frozenset({"brier", "ece"})
#: What the task column says where ranks are averaged over tasks, and where scores are.
OVERALL, MACRO = "mean rank", "macro"


@dataclass(frozen=True)
class Draws:
    """Metrics of methods in the sample and in every draw; all methods share the draws, so differences are paired.

    Attributes
    ----------
    methods : DataFrame of n_methods rows
        The columns that name each method; seeds are averaged, so there is none.
    tasks : list of str
    metrics : tuple of str
        Keys of `cure.bootstrap.METRICS`.
    support : dict of str to Support
        What stands behind each task.
    n, n_patients : int
        Records and patients behind the supported tasks together.
    values : (n_methods, n_tasks, n_metrics) array
        In the sample, mean over seeds.
    draws : (n_methods, n_tasks, n_metrics, n_draws) array
        In each draw, mean over seeds; NaN for tasks without support.
    seed_sd : (n_methods, n_tasks, n_metrics) array
        Standard deviation of the values between seeds; NaN where there is one seed.
    """

    methods: pd.DataFrame
    tasks: list[str]
    metrics: tuple[str, ...]
    support: dict[str, Support]
    n: int
    n_patients: int
    values: Array
    draws: Array
    seed_sd: Array

    def select(self, chosen: Array) -> "Draws":
        """The methods at which the boolean array `chosen` is true."""
        values, draws, seed_sd = self.values[chosen], self.draws[chosen], self.seed_sd[chosen]
        methods = self.methods[chosen].reset_index(drop=True)
        return replace(self, methods=methods, values=values, draws=draws, seed_sd=seed_sd)

    @property
    def supported(self) -> Array:
        """Which tasks have support, (n_tasks,) bool."""
        return np.array([self.support[task].supported for task in self.tasks], bool)

    def with_macro(self) -> tuple[list[str], Array, Array]:
        """Tasks, values and draws with the mean over supported tasks, taken inside each draw, as first task."""
        value, _ = macro(self.values.swapaxes(0, 1), self.supported)
        drawn, _ = macro(self.draws.swapaxes(0, 1), self.supported)
        values = np.concatenate([value[:, None], self.values], axis=1)
        return [MACRO, *self.tasks], values, np.concatenate([drawn[:, None], self.draws], axis=1)

    def about(self, task: str) -> dict:
        """Columns of a table that say what stands behind a task, or behind an average over the supported ones."""
        counts = ("n", "n_pos", "n_patients", "supported")
        if task in self.support:
            one = self.support[task]
            return dict(zip(counts, (one.n, one.n_pos, one.n_patients, one.supported), strict=True)) | {
                "n_tasks": pd.NA
            }
        n_tasks = int(self.supported.sum())
        return dict(zip(counts, (self.n, pd.NA, self.n_patients, n_tasks > 0), strict=True)) | {"n_tasks": n_tasks}


def metric_draws(
    predicted: pd.DataFrame,
    patients: pd.Series,
    metrics: Sequence[str] = ("auroc",),
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> Draws:
    """Metrics of every method and task over one set of patient-bootstrap draws, seeds averaged inside each draw.

    Parameters
    ----------
    predicted : DataFrame
        As `cure.evaluate.evaluate` takes it, with a column `seed`; one cohort under one protocol.
    patients : Series
        `patient_id` by record_id.
    metrics : sequence of str
        Keys of `cure.bootstrap.METRICS`.
    n_draws, seed : int
        Of the bootstrap.

    Raises
    ------
    CureError
        With several cohorts or protocols, or methods that do not cover the same tasks.
    ValueError
        As `evaluate`.
    """
    found = aligned(predicted.drop(columns="setting", errors="ignore"), patients)
    if len(found) > 1:
        names = [name for name in COHORT if name in predicted]
        raise CureError(f"ranks compare methods on the same test records, but {names} take {len(found)} values")
    cohort = found[0]
    tasks = list(cohort.support)
    weights = patient_draws(cohort.patient, n_draws, np.random.default_rng(seed))
    named: list[dict] = []
    values: list[list[Array]] = []
    sums: list[Array] = []
    at: dict[tuple, int] = {}
    for method in progress(cohort.methods, desc="bootstrap", unit="method"):
        if missing := sorted(set(tasks) - set(method.tasks)):
            raise CureError(f"{method.name} has no predictions of {missing}: methods can only be ranked over all tasks")
        name = {key: value for key, value in method.name.items() if key != "seed"}
        value, drawn = method.results(cohort, tasks, weights, metrics)
        i = at.setdefault(tuple(name.values()), len(named))
        if i == len(named):
            named.append(name)
            values.append([value])
            sums.append(drawn)
        else:
            values[i].append(value)
            sums[i] += drawn
    columns = [cohort.columns[task] for task in tasks if cohort.support[task].supported]
    used = np.unique(np.concatenate(columns)) if columns else np.array([], int)
    return Draws(
        pd.DataFrame(named),
        tasks,
        tuple(metrics),
        cohort.support,
        len(used),
        len(np.unique(cohort.patient[used])),
        np.stack([np.mean(one, axis=0) for one in values]),
        np.stack([total / len(one) for total, one in zip(sums, values, strict=True)]),
        np.stack([np.std(one, axis=0, ddof=1) if len(one) > 1 else np.full(one[0].shape, np.nan) for one in values]),
    )


def ranks(values: Array, *, lower: bool = False) -> Array:
    """Rank methods along axis 0: 1 is best, ties share the mean of their ranks, NaN for all if one is NaN."""
    ranked = rankdata(values if lower else -np.asarray(values), axis=0, method="average")
    return np.where(np.isnan(values).any(axis=0), np.nan, ranked)


def share_best(ranked: Array) -> Array:
    """Share of draws, the last axis, in which each method of axis 0 has the lowest rank; ties share a draw."""
    defined = ~np.isnan(ranked).any(axis=0)
    best = np.where(defined, ranked == np.where(defined, ranked, np.inf).min(axis=0), False)
    wins = (best / np.maximum(best.sum(axis=0), 1)).sum(axis=-1)
    return wins / np.where(defined.any(axis=-1), defined.sum(axis=-1), np.nan)


def rank_table(drawn: Draws) -> pd.DataFrame:
    """Rank of every method on each supported task and their mean, by the first metric of `drawn`.

    Ranks are computed anew in every draw, on the same resampled patients for all methods. A draw adds noise to the
    noise of the sample, which moves ranks towards the middle: the interval of a method that comes first leans to one
    side of its rank.

    Returns
    -------
    DataFrame
        Method columns; `task` (`OVERALL`: the mean over supported tasks); `metric`: `rank`, with its 95 % interval, and
        `p_best`, the share of draws in which the method comes first; `ranked_by`, `n_methods`, and the support.
    """
    if not drawn.supported.any():
        raise CureError("no task has ten positives and ten negatives among the test records: nothing can be ranked")
    lower = drawn.metrics[0] in LOWER
    tasks = [task for task, used in zip(drawn.tasks, drawn.supported, strict=True) if used]
    sample = ranks(drawn.values[:, drawn.supported, 0], lower=lower)
    resampled = ranks(drawn.draws[:, drawn.supported, 0], lower=lower)
    sample = np.concatenate([sample.mean(axis=1, keepdims=True), sample], axis=1)
    resampled = np.concatenate([resampled.mean(axis=1, keepdims=True), resampled], axis=1)
    lo, hi, lost = interval(resampled)
    best = share_best(resampled)
    rows = []
    for m, name in enumerate(drawn.methods.to_dict("records")):
        for t, task in enumerate([OVERALL, *tasks]):
            number = {"value": sample[m, t], "lo": lo[m, t], "hi": hi[m, t]}
            tail = {"ranked_by": drawn.metrics[0], "n_methods": len(drawn.methods), **drawn.about(task)}
            tail["n_undefined"] = lost[m, t]
            rows.append({**name, "task": task, "metric": "rank", **number, **tail})
            rows.append({**name, "task": task, "metric": "p_best", "value": best[m, t], **tail})
    return pd.DataFrame(rows).astype({"n_pos": "Int64", "n_tasks": "Int64"})


def score_table(drawn: Draws) -> pd.DataFrame:
    """Metrics of every method on each task and their mean over supported tasks, seeds averaged, with 95 % intervals."""
    tasks, values, draws = drawn.with_macro()
    lo, hi, _ = interval(draws)
    rows = [
        {
            **name,
            "task": task,
            "metric": metric,
            "value": values[m, t, k],
            "lo": lo[m, t, k],
            "hi": hi[m, t, k],
            **drawn.about(task),
        }
        for m, name in enumerate(drawn.methods.to_dict("records"))
        for t, task in enumerate(tasks)
        for k, metric in enumerate(drawn.metrics)
    ]
    return pd.DataFrame(rows).astype({"n_pos": "Int64", "n_tasks": "Int64"})

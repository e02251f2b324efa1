"""The tables of `cure.evaluate` for many methods: each prediction is resampled once, and all cores take part.

An average over initialisations repeats the methods that have fewer of them, and takes the same draws as the table of
the single ones. Here equal predictions share their draws, and a worker takes a method with all its seeds from the
predictions to the rows of the table. Every number is that of `cure.evaluate`, to the last bit: same draws, same sums.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from warnings import warn

import joblib
import numpy as np
import pandas as pd

from cure.bootstrap import METRICS, Array, holm, interval, paired_difference, patient_draws
from cure.evaluate import Aligned, Method, aligned, tidy, with_macros
from cure.progress import progress

Macros = Mapping[str, Sequence[str]]
Rows = list[dict[str, Any]]
#: Values and draws of predictions by their content; one such store for one set of draws.
Known = dict[bytes, tuple[Array, Array]]
#: Comparisons with one method that a worker makes at a time; that method is resampled once for all of them.
_AT_A_TIME = 4


class Frame(NamedTuple):
    """Predictions, the macro averages over their tasks, and whether rows of single tasks are wanted beside these."""

    predictions: pd.DataFrame
    macros: Macros
    per_task: bool = True


class _Part(NamedTuple):
    """One method of one frame: which frame, its cohort without the other methods, and where its rows belong."""

    frame: int
    cohort: Aligned
    method: Method
    place: tuple[int, int]


def evaluate(
    frames: Sequence[Frame], patients: pd.Series | pd.DataFrame | None = None, *, n_draws: int = 1000, seed: int = 0
) -> list[pd.DataFrame]:
    """A table for each frame, as `cure.evaluate.evaluate` makes it; its errors too.

    Methods that differ in no column but `seed`, in one frame or in several, are one job: what they share is computed
    once.
    """
    groups: dict[tuple, list[_Part]] = {}
    weights: dict[bytes, Array] = {}
    for i, frame in enumerate(frames):
        for c, cohort in enumerate(aligned(frame.predictions, patients)):
            draws_of = cohort.patient.tobytes()
            if draws_of not in weights:
                weights[draws_of] = patient_draws(cohort.patient, n_draws, np.random.default_rng(seed))
            about = replace(cohort, methods=[])
            for m, method in enumerate(cohort.methods):
                group = (draws_of, *(item for item in method.name.items() if item[0] != "seed"))
                groups.setdefault(group, []).append(_Part(i, about, method, (c, m)))
    shown = [(frame.macros, frame.per_task) for frame in frames]
    jobs = [joblib.delayed(_evaluated)(parts, shown, weights[group[0]]) for group, parts in groups.items()]
    found: list[dict[tuple[int, int], Rows]] = [{} for _ in frames]
    for made in _in_order(jobs, "bootstrap"):
        for i, place, rows in made:
            found[i][place] = rows
    return [tidy([row for place in sorted(of) for row in of[place]]) for of in found]


def _evaluated(parts: list[_Part], shown: list[tuple[Macros, bool]], weights: Array) -> list[tuple]:
    known: Known = {}
    return [(p.frame, p.place, _rows(p.cohort, p.method, *shown[p.frame], weights, known)) for p in parts]


def _rows(cohort: Aligned, method: Method, macros: Macros, per_task: bool, weights: Array, known: Known) -> Rows:
    tasks, rows = list(method.tasks), []
    values, draws = _results(cohort, method, tasks, weights, list(METRICS), known)
    labels, about, values, draws = with_macros(cohort, tasks, values, draws, macros)
    first = 0 if per_task else len(tasks)
    lo, hi, undefined = interval(draws[first:])
    for t in range(first, len(labels)):
        for m, metric in enumerate(METRICS):
            number = {"value": values[t, m], "lo": lo[t - first, m], "hi": hi[t - first, m]}
            lost = undefined[t - first, m] if about[t]["supported"] else pd.NA
            rows.append({**method.name, "task": labels[t], "metric": metric, **number, **about[t], "n_undefined": lost})
    return rows


def compare(
    predictions: pd.DataFrame,
    comparator: Mapping[str, Any] | Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    patients: pd.Series | pd.DataFrame | None = None,
    *,
    macros: Macros,
    metric: str = "auroc",
    seed: int = 0,
) -> pd.DataFrame:
    """Paired differences of macro averages, as `cure.evaluate.compare` makes them with `per_task=False`."""
    pairs = [({}, comparator)] if isinstance(comparator, Mapping) else list(comparator)
    plan = [(cohort, cohort.pairs(pairs)) for cohort in aligned(predictions, patients)]
    tests = len(macros) * sum(len(found) for _, found in plan)
    if not tests:
        raise ValueError(f"nothing to compare: no method differs from its comparator {comparator}")
    n_draws = min(max(1000, 100 * tests), 20_000)
    if 2 / (1 + n_draws) * tests >= 0.05:
        warn(
            f"{n_draws} draws cannot give p_holm < 0.05 over {tests} comparisons: make fewer of them",
            stacklevel=2,
        )
    jobs = []
    for cohort, found in plan:
        weights = patient_draws(cohort.patient, n_draws, np.random.default_rng(seed))
        about = replace(cohort, methods=[])
        for some in _by_reference(found):
            jobs.append(joblib.delayed(_compared)(about, some, macros, metric, weights))
    table = tidy([row for rows in _in_order(jobs, f"compare {metric}") for row in rows])
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"].to_numpy()))
    return table


def _by_reference(found: list[tuple[Method, Method, str]]) -> Iterator[list[tuple[Method, Method, str]]]:
    """Cut pairs, which come sorted by reference, into runs of at most `_AT_A_TIME` with the same one."""
    some: list[tuple[Method, Method, str]] = []
    for pair in found:
        if some and (len(some) == _AT_A_TIME or pair[1] is not some[0][1]):
            yield some
            some = []
        some.append(pair)
    if some:
        yield some


def _compared(
    cohort: Aligned, pairs: list[tuple[Method, Method, str]], macros: Macros, metric: str, weights: Array
) -> Rows:
    known: Known = {}
    rows = []
    for method, reference, label in pairs:
        tasks = method.shared(reference)
        both = [_results(cohort, one, tasks, weights, [metric], known) for one in (method, reference)]
        values, draws = (np.concatenate(arrays, axis=1) for arrays in zip(*both, strict=True))
        labels, about, values, draws = with_macros(cohort, tasks, values, draws, macros)
        for t in range(len(tasks), len(labels)):
            test = paired_difference(values[t, 0], values[t, 1], draws[t, 0], draws[t, 1])
            names = {**method.name, "task": labels[t], "metric": metric, "comparator": label}
            number = {"value": test.value, "lo": test.lo, "hi": test.hi, "reference": values[t, 1]}
            lost = test.n_undefined if about[t]["supported"] else pd.NA
            rows.append({**names, **number, "p": test.p, **about[t], "n_undefined": lost})
    return rows


def _results(
    cohort: Aligned, method: Method, tasks: list[str], weights: Array, metrics: list[str], known: Known
) -> tuple[Array, Array]:
    """Values and draws of a method, as its `results` gives them, without computing what is known already."""
    content = [(cohort.columns[t], cohort.y[t], *method.tasks[t]) for t in tasks]
    keys = [b"".join(array.tobytes() for array in arrays) for arrays in content]
    if new := {key: t for key, t in zip(keys, tasks, strict=True) if key not in known}:
        computed = method.results(cohort, list(new.values()), weights, metrics)
        known.update(zip(new, zip(*computed, strict=True), strict=True))
    values, draws = zip(*(known[key] for key in keys), strict=True)
    return np.stack(values), np.stack(draws)


def _in_order(jobs: list, what: str) -> Iterator[Any]:
    made = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")(jobs)
    return progress(made, desc=what, total=len(jobs), unit="job")

"""Tables of metrics with intervals, and of paired differences between methods, from out-of-fold predictions.

`evaluate` and `compare` take the long predictions frame (one row per record x task x method) and return tidy
tables. A method is a combination of all columns that do not describe the record, the task or the prediction.
All methods of a cohort and protocol share one set of bootstrap draws, so every difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import pandas as pd

from cure.bootstrap import METRICS, RANKING, Array, Plan, apply, holm, interval, macro, paired_difference, patient_draws
from cure.progress import progress

#: With fewer test positives (or negatives) a number has no interval and enters no average or test.
MIN_POSITIVES = 10
#: Columns of a predictions frame that do not name a method.
PREDICTION = ("record_id", "patient_id", "task", "y", "score", "threshold", "split")
#: Columns within which methods share their test records, and so their bootstrap draws.
COHORT = ("cohort", "protocol")


class Support(NamedTuple):
    """What stands behind a number; `prevalence` is the share of positive records."""

    n: int
    n_pos: int
    n_patients: int
    n_pos_patients: int
    prevalence: float

    @property
    def supported(self) -> bool:
        """Whether both classes reach `MIN_POSITIVES` records."""
        return min(self.n_pos, self.n - self.n_pos) >= MIN_POSITIVES


def support(y: Array, patient_id: Array) -> Support:
    """Count records and patients behind a task; `y` 0/1 `(n,)`, `patient_id` `(n,)`."""
    positive, patient_id = np.asarray(y, bool), np.asarray(patient_id)
    n, n_pos = len(positive), int(positive.sum())
    n_pos_patients = len(np.unique(patient_id[positive]))
    return Support(n, n_pos, len(np.unique(patient_id)), n_pos_patients, n_pos / n if n else float("nan"))


# --- tables ----------------------------------------------------------------------------------------


def evaluate(
    predictions: pd.DataFrame,
    patients: pd.Series | pd.DataFrame | None = None,
    *,
    n_draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    metrics: Sequence[str] = tuple(METRICS),
    macros: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Every metric of every method and task, with its patient-bootstrap interval and its support.

    Parameters
    ----------
    predictions : pandas.DataFrame
        One row per record x task x method: `record_id`, `patient_id`, `task`, `y` (0/1), `score`
        (probability), `threshold` (validation-tuned, per row) and any columns that name the method (`cohort`,
        `protocol`, `encoder`, `head`, ...); `split` is ignored, since out-of-fold predictions are pooled.
    patients : pandas.Series or pandas.DataFrame, optional
        Where `predictions` has no `patient_id`: a series by record_id, or columns record_id, patient_id (and
        cohort, where cohorts share record ids).
    n_draws, seed : int
        Bootstrap draws, the same for all methods of a cohort and protocol.
    level : float
        Of the percentile intervals.
    metrics : sequence of str
        Keys of `cure.bootstrap.METRICS`.
    macros : mapping of str to sequence of str, optional
        Macro averages: row name -> tasks; by default `{"macro": all tasks}`. Only supported tasks enter,
        `n_tasks` of them; the average is taken inside each draw, so that its interval is right.

    Returns
    -------
    pandas.DataFrame
        Method columns, task, metric, value, lo, hi, n, n_pos, n_patients, n_pos_patients, prevalence, supported,
        n_tasks (macro rows), n_undefined (draws left out because the metric was undefined).

    Raises
    ------
    ValueError
        A column is missing, a value is NaN or out of range, a record occurs twice, or the methods of a task cover
        different records: the message names the method and task.
    """
    rows: list[dict[str, Any]] = []
    for cohort in aligned(predictions, patients):
        weights = patient_draws(cohort.patient, n_draws, np.random.default_rng(seed))
        for method in progress(cohort.methods, desc=f"bootstrap {cohort.name}".strip(), unit="method"):
            tasks = list(method.tasks)
            values, draws = method.results(cohort, tasks, weights, metrics)
            labels, about, values, draws = with_macros(cohort, tasks, values, draws, macros)
            lo, hi, undefined = interval(draws, level)
            for t, label in enumerate(labels):
                for m, metric in enumerate(metrics):
                    number = {"value": values[t, m], "lo": lo[t, m], "hi": hi[t, m]}
                    lost = undefined[t, m] if about[t]["supported"] else pd.NA
                    names = {**method.name, "task": label, "metric": metric}
                    rows.append({**names, **number, **about[t], "n_undefined": lost})
    return tidy(rows)


def compare(
    predictions: pd.DataFrame,
    comparator: Mapping[str, Any] | Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    patients: pd.Series | pd.DataFrame | None = None,
    *,
    metric: str = "auroc",
    n_draws: int | None = None,
    seed: int = 0,
    level: float = 0.95,
    macros: Mapping[str, Sequence[str]] | None = None,
    per_task: bool = True,
) -> pd.DataFrame:
    """Paired differences between methods: intervals, p-values, and Holm's adjustment over the whole table.

    Parameters
    ----------
    predictions, patients, seed, level, macros
        As in `evaluate`. A macro runs over the supported tasks that both methods of a pair cover.
    comparator : mapping, or sequence of (mapping, mapping)
        `{"encoder": "random_cnn"}` compares every method with the one that differs from it in just these
        columns: same cohort, pooling, head, ... A sequence of `(which, comparator)` does so for the methods
        that match `which`: `[({"strategy": "full"}, {"strategy": "probe"})]`.
    metric : str
        A key of `cure.bootstrap.METRICS`.
    n_draws : int, optional
        By default as many as Holm's adjustment needs: the smallest p-value is `2 / (1 + n_draws)`, so a table
        of m tests can only show p < 0.05 from 40 m draws on; 100 m are taken, within 1,000 to 20,000.
    per_task : bool
        False: only macro rows, hence a smaller family.

    Returns
    -------
    pandas.DataFrame
        Method columns, task, metric, comparator, value (method minus comparator), lo, hi, reference (the
        comparator's own value), p, p_holm, then support as in `evaluate`. Rows without support have no
        interval, no p, and no part in Holm's family.

    Raises
    ------
    ValueError
        As `evaluate`; also when a comparator names an unknown column or a method that is not there.

    Warns
    -----
    UserWarning
        With so few draws that no adjusted p-value can fall below 0.05.
    """
    pairs = [({}, comparator)] if isinstance(comparator, Mapping) else list(comparator)
    plan = [(cohort, cohort.pairs(pairs)) for cohort in aligned(predictions, patients)]
    if not any(found for _, found in plan):
        raise ValueError(f"nothing to compare: no method differs from its comparator {comparator}")
    tests = 0
    for cohort, found in plan:
        for method, reference, _ in found:
            tests += 1 if macros is None else len(macros)
            tests += per_task * sum(cohort.support[t].supported for t in method.shared(reference))
    n_draws = min(max(1000, 100 * tests), 20_000) if n_draws is None else n_draws
    if 2 / (1 + n_draws) * tests >= 0.05:
        warn(
            f"{n_draws} draws cannot give p_holm < 0.05 over {tests} comparisons: pass n_draws >= {40 * tests}, "
            "fewer comparators, or per_task=False",
            stacklevel=2,
        )
    rows: list[dict[str, Any]] = []
    for cohort, found in plan:
        weights = patient_draws(cohort.patient, n_draws, np.random.default_rng(seed))
        at: Method | None = None
        for method, reference, label in progress(found, desc=f"compare {metric} {cohort.name}", unit="pair"):
            if reference is not at:  # pairs come sorted by reference
                at = reference
                theirs = reference.results(cohort, list(reference.tasks), weights, [metric])
            tasks = method.shared(reference)
            same = [list(reference.tasks).index(t) for t in tasks]
            ours = method.results(cohort, tasks, weights, [metric])
            values, draws = (np.concatenate([o, r[same]], axis=1) for o, r in zip(ours, theirs, strict=True))
            labels, about, values, draws = with_macros(cohort, tasks, values, draws, macros)
            for t in range(0 if per_task else len(tasks), len(labels)):
                test = paired_difference(values[t, 0], values[t, 1], draws[t, 0], draws[t, 1], level)
                names = {**method.name, "task": labels[t], "metric": metric, "comparator": label}
                number = {"value": test.value, "lo": test.lo, "hi": test.hi, "reference": values[t, 1]}
                lost = test.n_undefined if about[t]["supported"] else pd.NA
                rows.append({**names, **number, "p": test.p, **about[t], "n_undefined": lost})
    table = tidy(rows)
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"].to_numpy()))
    return table


def with_macros(
    cohort: "Aligned",
    tasks: list[str],
    values: Array,
    draws: Array,
    macros: Mapping[str, Sequence[str]] | None,
) -> tuple[list[str], list[dict[str, Any]], Array, Array]:
    """Append the macro averages to (tasks, ...) values and draws, and describe what stands behind each row."""
    supports = [cohort.support[t] for t in tasks]
    about = [{**s._asdict(), "supported": s.supported, "n_tasks": pd.NA} for s in supports]
    macros = {"macro": tasks} if macros is None else macros
    for name, members in macros.items():
        if name in tasks:
            raise ValueError(f"the macro average {name!r} has the name of a task: rename it")
        inside = np.array([t in members and s.supported for t, s in zip(tasks, supports, strict=True)], bool)
        value, n_tasks = macro(values[: len(tasks)], inside)
        drawn, _ = macro(draws[: len(tasks)], inside)
        values, draws = np.concatenate([values, value[None]]), np.concatenate([draws, drawn[None]])
        columns = [cohort.columns[t] for t, used in zip(tasks, inside, strict=True) if used]
        records = np.unique(np.concatenate(columns)) if columns else np.array([], int)
        count = {"n": len(records), "n_pos": pd.NA, "n_patients": len(np.unique(cohort.patient[records]))}
        count |= {"n_pos_patients": pd.NA, "prevalence": np.nan}
        about.append({**count, "supported": n_tasks > 0, "n_tasks": n_tasks})
    return [*tasks, *macros], about, values, draws


def tidy(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table whose counts may be missing."""
    counts = ("n", "n_pos", "n_patients", "n_pos_patients", "n_tasks", "n_undefined")
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))


# --- reading a predictions frame -------------------------------------------------------------------


@dataclass
class Method:
    """One method's predictions: task -> (scores, thresholds), aligned with the cohort's columns of that task."""

    name: dict[str, Any]
    tasks: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def shared(self, other: "Method") -> list[str]:
        """Tasks that both have, in the order of this one."""
        return [task for task in self.tasks if task in other.tasks]

    def results(
        self, cohort: "Aligned", tasks: Sequence[str], weights: Array, metrics: Sequence[str]
    ) -> tuple[Array, Array]:
        """Values (tasks, metrics) and draws (tasks, metrics, n_draws); draws of unsupported tasks stay NaN."""
        n = len(cohort.patient)
        ranking_only = set(metrics) <= RANKING
        plans = [
            Plan.of(cohort.y[t], *self.tasks[t], columns=cohort.columns[t], n_columns=n, ranking_only=ranking_only)
            for t in tasks
        ]
        values = apply(plans, np.ones((1, n), np.uint8), metrics)[..., 0]
        draws = np.full((*values.shape, len(weights)), np.nan)
        used = [i for i, t in enumerate(tasks) if cohort.support[t].supported]
        draws[used] = apply([plans[i] for i in used], weights, metrics)
        return values, draws


@dataclass
class Aligned:
    """Methods that share test records: one cohort under one protocol."""

    name: str
    patient: Array  # (n,) patient code of every record that a task of this cohort uses
    methods: list[Method] = field(default_factory=list)
    columns: dict[str, Array] = field(default_factory=dict)  # task -> which of the n records it covers
    y: dict[str, Array] = field(default_factory=dict)
    support: dict[str, Support] = field(default_factory=dict)

    def pairs(self, wanted: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[tuple[Method, Method, str]]:
        """Methods with their comparators, those of one comparator together."""
        found = []
        by_name = {tuple(m.name.items()): m for m in self.methods}
        for which, comparator in wanted:
            label = ", ".join(f"{k}={v}" for k, v in comparator.items())
            for method in self.methods:
                if unknown := (set(which) | set(comparator)) - set(method.name):
                    raise ValueError(f"{sorted(unknown)} name no method column: there are {list(method.name)}")
                other = {**method.name, **comparator}
                if other == method.name or any(method.name[k] != v for k, v in which.items()):
                    continue
                if (reference := by_name.get(tuple(other.items()))) is None:
                    raise ValueError(
                        f"{_say(method.name)}: its comparator ({_say(other)}) has no predictions here; "
                        "name further columns in the comparator, or leave this method out"
                    )
                found.append((method, reference, label))
        order = {id(m): i for i, m in enumerate(self.methods)}
        return sorted(found, key=lambda pair: order[id(pair[1])])


def aligned(predictions: pd.DataFrame, patients: pd.Series | pd.DataFrame | None) -> list[Aligned]:
    """Check a predictions frame and cut it into aligned arrays; parameters and errors as in `evaluate`."""
    frame = predictions.reset_index(drop=True)
    needed = [c for c in PREDICTION if c not in ("split", "patient_id")]
    if missing := [c for c in needed if c not in frame]:
        raise ValueError(f"predictions lack the columns {missing}: each row needs {', '.join(needed)}")
    if frame.empty:
        raise ValueError("predictions are empty")
    keys = [c for c in frame.columns if c not in PREDICTION]
    method, first = _combinations(frame, keys)
    named = frame.loc[first, keys].to_dict("records")
    names = [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in named] or [{}]
    task, tasks = pd.factorize(frame["task"])
    patient = _patients(frame, patients)

    y, score, threshold = (frame[c].to_numpy(float, na_value=np.nan) for c in ("y", "score", "threshold"))
    for bad, what in (
        (~((y == 0) | (y == 1)), "y is not 0 or 1"),
        (np.isnan(score), "score is NaN"),
        ((score < 0) | (score > 1), "score is not a probability"),
        (np.isnan(threshold), "threshold is NaN (use 0.5 where validation could not tune one)"),
        (pd.isna(frame["record_id"]) | pd.isna(patient), "record_id or patient_id is missing"),
    ):
        if np.any(bad):
            i = int(np.argmax(bad))
            group = (method == method[i]) & (task == task[i])
            where = f"{_say(names[method[i]])}, task={tasks[task[i]]}"
            count = f"{int(np.sum(bad & group))} of {int(group.sum())} records"
            raise ValueError(f"{where}: {what} for {count} (record_id {frame['record_id'][i]})")

    record, ids = pd.factorize(frame["record_id"], sort=True)
    patient, _ = pd.factorize(patient, sort=True)
    within = [c for c in COHORT if c in keys]
    cohort_of_method, _ = _combinations(frame.loc[first], within)
    cohort_of_row = cohort_of_method[method]
    cohorts, column = [], np.empty(len(frame), np.intp)
    for k in range(cohort_of_row.max() + 1):
        rows = np.flatnonzero(cohort_of_row == k)
        records, column[rows] = np.unique(record[rows], return_inverse=True)
        owner = np.empty(len(records), np.intp)
        owner[column[rows]] = patient[rows]
        if np.any(clash := owner[column[rows]] != patient[rows]):
            raise ValueError(f"record_id {ids[record[rows[np.argmax(clash)]]]} belongs to two patients")
        name = names[method[rows[0]]]
        cohorts.append(Aligned(_say({c: name[c] for c in within}), owner))

    order = np.lexsort((record, task, method))
    cuts = np.flatnonzero((np.diff(method[order]) != 0) | (np.diff(task[order]) != 0)) + 1
    current: Method | None = None
    for rows in np.split(order, cuts):
        name, label, cohort = names[method[rows[0]]], tasks[task[rows[0]]], cohorts[cohort_of_row[rows[0]]]
        columns, labels = column[rows], y[rows].astype(bool)
        if np.any(twice := np.diff(columns) == 0):
            which = ids[record[rows[np.argmax(twice)]]]
            raise ValueError(f"{_say(name)}, task={label}: record_id {which} occurs twice; is a column missing?")
        if label not in cohort.support:
            cohort.columns[label], cohort.y[label] = columns, labels
            cohort.support[label] = support(labels, cohort.patient[columns])
        elif not np.array_equal(columns, cohort.columns[label]):
            odd = np.setxor1d(columns, cohort.columns[label])
            raise ValueError(
                f"{_say(name)}, task={label}: covers {len(columns)} records, {_say(cohort.methods[0].name)} "
                f"{len(cohort.columns[label])}; {len(odd)} are in only one of them. Methods of a task must share "
                f"their test records (methods are told apart by {keys})"
            )
        elif not np.array_equal(labels, cohort.y[label]):
            raise ValueError(f"{_say(name)}, task={label}: labels differ from {_say(cohort.methods[0].name)}")
        if current is None or current.name is not name:
            current = Method(name)
            cohort.methods.append(current)
        current.tasks[label] = score[rows], threshold[rows]
    return cohorts


def _patients(frame: pd.DataFrame, patients: pd.Series | pd.DataFrame | None) -> Array:
    if patients is None:
        if "patient_id" not in frame:
            raise ValueError("predictions have no patient_id: add the column or pass `patients`")
        return frame["patient_id"].to_numpy()
    if isinstance(patients, pd.Series):
        return frame["record_id"].map(patients).to_numpy()
    keys = [c for c in ("cohort", "record_id") if c in patients and c in frame]
    table = patients[[*keys, "patient_id"]].drop_duplicates()
    return frame[keys].merge(table, on=keys, how="left", validate="many_to_one")["patient_id"].to_numpy()


def _combinations(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[Array, Array]:
    """Return a code per row for its combination of columns, by first appearance, and each one's first row."""
    code = np.zeros(len(frame), np.int64)
    for column in columns:
        values, distinct = pd.factorize(frame[column])  # missing: -1
        code, _ = pd.factorize(code * (len(distinct) + 1) + values)
    _, first = np.unique(code, return_index=True)
    return code, first


def _say(name: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in name.items() if v is not None)

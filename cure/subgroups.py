"""Scores within groups of patients by age and sex, and the gaps between groups."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cure.bootstrap import Array, Plan, apply, holm, interval, paired_difference, patient_draws
from cure.evaluate import Aligned, Support, aligned, support
from cure.progress import progress

#: Age groups in years, lower bound inclusive, upper exclusive; fixed before any score was seen. Ages above 89, which
#: PTB-XL masks, belong to the last.
AGES = {"under 50": (0, 50), "50 to 65": (50, 66), "over 65": (66, np.inf)}
#: Variable, group, and the group it is compared with.
GAPS = (("sex", "female", "male"), ("age", "under 50", "over 65"), ("age", "50 to 65", "over 65"))
METRICS = ("auroc", "sensitivity")


class Group(NamedTuple):
    """Records of one group."""

    variable: str
    name: str
    member: Array  # (n,) bool


def groups(records: pd.DataFrame) -> list[Group]:
    """Groups by sex and age; a record whose sex or age is not known is in none of that variable.

    Parameters
    ----------
    records : DataFrame
        With columns `sex` (female, male), `age` in years and `age_over_89`.
    """
    age = records["age"].to_numpy(float, na_value=np.nan)
    masked = records["age_over_89"].to_numpy(bool)
    found = [Group("sex", name, (records["sex"] == name).to_numpy(bool)) for name in ("female", "male")]
    for name, (low, high) in AGES.items():
        member = ((age >= low) & (age < high)) | (masked & np.isinf(high))
        found.append(Group("age", name, member & ~(masked & np.isfinite(high))))
    return found


def subgroup_tables(
    predicted: pd.DataFrame, records: pd.DataFrame, *, n_draws: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUROC and sensitivity at the tuned threshold within groups, and paired differences between groups.

    All groups share the draws over patients, so that the records that tie groups together move together. A group with
    fewer than ten positives or ten negatives has no interval, and its gaps neither interval nor test. The gaps have as
    many draws as Holm's adjustment over their table needs, as in `cure.evaluate.compare`.

    Parameters
    ----------
    predicted : DataFrame
        Predictions of a few methods, one cohort and protocol.
    records : DataFrame
        Of the cohort: `record_id`, `patient_id`, `sex`, `age`, `age_over_89`.
    n_draws, seed : int
        Of the patient bootstrap; more draws are taken for the gaps where needed.

    Returns
    -------
    scores, gaps : DataFrame
        One row per method, task, group and metric. A gap has `group`, `comparator` (the other group), `value` (group
        minus comparator), `lo`, `hi`, `reference` (the comparator's own value), `p`, `p_holm`, and the support of both.
    """
    by_id = records.set_index("record_id")
    (cohort,) = aligned(predicted.drop(columns="setting", errors="ignore"), by_id["patient_id"])
    everyone = groups(by_id.loc[np.unique(predicted["record_id"])])
    about = {(task, g.variable, g.name): _support(cohort, task, g) for task in cohort.support for g in everyone}

    def enough(task: str, gap: tuple[str, str, str]) -> bool:
        return about[task, gap[0], gap[1]].supported and about[task, gap[0], gap[2]].supported

    tests = len(cohort.methods) * len(METRICS) * sum(enough(task, gap) for task in cohort.support for gap in GAPS)
    weights = patient_draws(cohort.patient, max(n_draws, min(100 * tests, 20_000)), np.random.default_rng(seed))
    scores, gaps = [], []
    for method in progress(cohort.methods, desc="subgroups", unit="method"):
        for task in method.tasks:
            values, draws = _measure(cohort, task, method.tasks[task], everyone, weights)
            for k, metric in enumerate(METRICS):
                what = {**method.name, "task": task, "metric": metric}
                for i, g in enumerate(everyone):
                    one = about[task, g.variable, g.name]
                    # As many draws as other tables have; the gaps need more.
                    lo, hi, _ = interval(draws[i, k, :n_draws]) if one.supported else (np.nan, np.nan, 0)
                    number = {"value": values[i, k], "lo": lo, "hi": hi}
                    scores.append({**what, "variable": g.variable, "group": g.name, **number, **_counts(one)})
                for variable, group, other in GAPS:
                    i, j = (_position(everyone, variable, name) for name in (group, other))
                    test = paired_difference(values[i, k], values[j, k], draws[i, k], draws[j, k])
                    supported = enough(task, (variable, group, other))
                    lo, hi, p = (test.lo, test.hi, test.p) if supported else (np.nan, np.nan, np.nan)
                    number = {"value": test.value, "lo": lo, "hi": hi, "reference": values[j, k], "p": p}
                    mine, theirs = (_counts(about[task, variable, name]) for name in (group, other))
                    behind = mine | {f"{name}_comparator": n for name, n in theirs.items() if name != "supported"}
                    named = {"variable": variable, "group": group, "comparator": other}
                    gaps.append({**what, **named, **number, **behind, "supported": supported})
    table = pd.DataFrame(gaps)
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"].to_numpy()))
    return pd.DataFrame(scores), table


def _support(cohort: Aligned, task: str, group: Group) -> Support:
    columns = cohort.columns[task]
    inside = group.member[columns]
    return support(cohort.y[task][inside], cohort.patient[columns[inside]])


def _counts(one: Support) -> dict:
    return {"n": one.n, "n_pos": one.n_pos, "n_patients": one.n_patients, "supported": one.supported}


def _position(everyone: list[Group], variable: str, name: str) -> int:
    return next(i for i, g in enumerate(everyone) if (g.variable, g.name) == (variable, name))


def _measure(
    cohort: Aligned,
    task: str,
    scored: tuple[Array, Array],
    everyone: list[Group],
    weights: Array,
) -> tuple[Array, Array]:
    """AUROC and sensitivity of one method and task in every group: (n_groups, 2) and (n_groups, 2, n_draws)."""
    n, columns, y = weights.shape[1], cohort.columns[task], cohort.y[task]
    score, threshold = scored
    plans: dict[int, Plan] = {}
    hits, positives = np.zeros((n, len(everyone))), np.zeros((n, len(everyone)))
    for g, group in enumerate(everyone):
        inside = group.member[columns]
        positives[columns[inside], g] = y[inside]
        hits[columns[inside], g] = y[inside] & (score[inside] >= threshold[inside])
        if inside.any():
            plans[g] = Plan.of(y[inside], score[inside], columns=columns[inside], n_columns=n, ranking_only=True)
    values, draws = np.full((len(everyone), 2), np.nan), np.full((len(everyone), 2, len(weights)), np.nan)
    for out, drawn in ((values[..., None], np.ones((1, n), np.uint8)), (draws, weights)):
        out[list(plans), 0] = apply(list(plans.values()), drawn, ["auroc"])[:, 0]
        found, total = (_total(drawn, of) for of in (hits, positives))
        out[:, 1] = np.divide(found, total, out=np.full(total.shape, np.nan), where=total > 0)
    return values, draws


def _total(weights: Array, of: Array) -> Array:
    """Weighted sums of the columns of `of`, (n_columns, n_draws); only rows that hold something are read."""
    rows = np.flatnonzero(of.any(axis=1))
    return of[rows].T @ weights[:, rows].T.astype(float)

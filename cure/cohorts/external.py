"""A profile's second cohort: the same stages beside the study's own, and the two cohorts side by side.

It exists for stage `transfer`: no other table or decision of a study looks at it. A profile without the section
`external` has none, and each function says so in a sentence.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pandas as pd
from IPython.display import Markdown

from cure import tasks
from cure.cohorts.base import Cohort
from cure.config import AnyStage, StageConfig

#: What the rows of `side_by_side` count, in words.
VARIABLES = {
    "records": "Records",
    "patients": "Patients",
    "fs": "Sampling rate of the store (Hz)",
    "seconds_q25": "Length, lower quartile (s)",
    "seconds_median": "Length, median (s)",
    "shorter_than_10_s": "Shorter than 10 s (share)",
    "age_median": "Age, median (years)",
    "female": "Female (share)",
    "ptp_q25": "Peak to peak, lower quartile (mV)",
    "ptp_median": "Peak to peak, median (mV)",
    "ptp_q75": "Peak to peak, upper quartile (mV)",
}
#: Records read at a time, so that memory does not grow with a cohort.
_CHUNK = 512

Made = TypeVar("Made")


def none(config: StageConfig) -> Markdown:
    """The sentence that a notebook shows where a profile has no second cohort."""
    return Markdown(f"Profile `{config.profile}` has no second cohort (no section `external`).")


def also(work: Callable[[AnyStage], Made], config: AnyStage) -> Made | Markdown:
    """Do for the second cohort what a stage did for the study's own: `also(acquire.acquire, config)`.

    Returns
    -------
    What `work` returns, or a sentence where the profile has no second cohort.
    """
    return none(config) if config.external is None else work(config.external)


def open_second(config: StageConfig) -> Cohort | None:
    """The packed second cohort, or None where the profile has none."""
    return None if config.external is None else Cohort.open(config.external.cohort_folder)


def shared_tasks(one: Cohort, other: Cohort) -> list[str]:
    """Binary tasks that mean the same in both cohorts: one statement, or a superclass of the same statements.

    CODE-15 shares CURE-FM's seven tasks with PTB-XL. It has no CD: three of its statements are conduction disturbances
    there, but not the others that make up PTB-XL's class.
    """
    both = [task for task in tasks.offered(one.statements) if task in tasks.offered(other.statements)]
    return [task for task in both if _members(one, task) == _members(other, task)]


def _members(cohort: Cohort, task: str) -> set[str]:
    if task in cohort.statements.index:
        return {task}
    diagnostic = cohort.statements["diagnostic"] == 1
    return set(cohort.statements.index[diagnostic & (cohort.statements["diagnostic_class"] == task)])


def side_by_side(cohort: Cohort, second: Cohort | None) -> pd.DataFrame:
    """What the two cohorts are: counts, lengths, amplitudes, exclusions and the positives of the tasks that both have.

    Returns
    -------
    DataFrame
        Tidy: `cohort, variable, task, value, n, n_pos, n_patients`; without rows where there is no second cohort.
        Amplitudes are peak to peak in mV, as stored: no cohort is rescaled to the other.
    """
    rows: list[dict] = []
    for each in () if second is None else (cohort, second):
        base = {"cohort": each.name, "n": len(each), "n_patients": each.records["patient_id"].nunique()}
        rows += [{**base, "variable": name, "value": value} for name, value in _summary(each).items()]
        for reason, count in each.excluded["reason"].value_counts().sort_index().items():
            rows.append({"cohort": each.name, "variable": f"excluded: {reason}", "value": count})
        labels = tasks.binary(each.listed, each.statements, tuple(shared_tasks(cohort, second or cohort)))
        for task, y in zip(labels.names, labels.y.T, strict=True):
            rows.append({**base, "variable": "prevalence", "task": task, "value": y.mean(), "n_pos": int(y.sum())})
    columns = ["cohort", "variable", "task", "value", "n", "n_pos", "n_patients"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("n", "n_pos", "n_patients"), "Int64"))


def _summary(cohort: Cohort) -> dict[str, float]:
    records = cohort.records
    seconds = records["n_valid"] / cohort.rates[0]
    ptp = peak_to_peak(cohort)
    return {
        "records": len(cohort),
        "patients": records["patient_id"].nunique(),
        "fs": cohort.rates[0],
        "seconds_q25": seconds.quantile(0.25),
        "seconds_median": seconds.median(),
        "shorter_than_10_s": (seconds < 10).mean(),
        "age_median": records["age"].dropna().median(),
        "female": (records["sex"] == "female").mean(),
        **{f"ptp_{name}": float(np.quantile(ptp, q)) for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))},
    }


def peak_to_peak(cohort: Cohort) -> np.ndarray:
    """Peak-to-peak amplitude of every record: the median over leads, (n_records,) float32, mV as stored.

    Of the valid samples at the lowest stored rate, unfiltered: padding counts in no record.
    """
    out = np.empty(len(cohort), np.float32)
    for rows in np.split(np.arange(len(cohort)), range(_CHUNK, len(cohort), _CHUNK)):
        for some, signals, _ in stretches(cohort, rows):
            out[some] = np.median(np.ptp(signals, axis=2), axis=1)
    return out


def lowest_rates(cohort: Cohort) -> np.ndarray:
    """Lowest rate that each record is stored at, (n_records,) int, Hz."""
    lowest = np.zeros(len(cohort), dtype=int)
    for fs in reversed(cohort.rates):
        lowest[cohort.records[f"row_{fs}"].to_numpy() >= 0] = fs
    return lowest


def stretches(cohort: Cohort, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Valid samples of some records at their lowest rate, those of one rate, start and length together.

    Yields
    ------
    rows : (k,) int array
    signals : (k, 12, n_valid) float32 array
        In mV.
    fs : int
        Their rate in Hz.
    """
    about = cohort.records[["start", "n_valid"]].iloc[rows].assign(fs=lowest_rates(cohort)[rows], row=rows)
    for (start, n_valid, fs), group in about.groupby(["start", "n_valid", "fs"]):
        some, scale = group["row"].to_numpy(), fs / cohort.rates[0]  # both count samples at the cohort's lowest rate
        first, length = round(start * scale), round(n_valid * scale)
        yield some, cohort.signals(some, int(fs))[..., first : first + length], int(fs)


def side_by_side_view(table: pd.DataFrame) -> pd.DataFrame | Markdown:
    """The table of both cohorts as a paper prints it, one column per cohort; a sentence where there is one only."""
    if table.empty:
        return Markdown("There is no second cohort to compare with.")
    prevalence = table["task"].notna()
    exclusion = table["variable"].str.startswith("excluded: ")
    label = table["variable"].map(VARIABLES).fillna(table["variable"]).where(~prevalence, table["task"])
    text = [
        f"{n:,.0f} ({100 * value:.1f} %)" if positive else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
        for value, n, positive in zip(table["value"], table["n_pos"], prevalence, strict=True)
    ]
    # Exclusions last, whichever cohort they come from.
    rows = table.assign(row=label, text=text).iloc[np.argsort(exclusion, kind="stable")]
    wide = rows.pivot(index="row", columns="cohort", values="text").fillna("0")
    return (
        wide.reindex(index=rows["row"].unique(), columns=rows["cohort"].unique())
        .rename_axis(None)
        .rename_axis(None, axis=1)
    )

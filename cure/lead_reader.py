"""Tick leads and see what becomes of one record: its prediction, what it rests on, and what it costs."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cure import lead_cost, lead_study, paths, tasks
from cure.attribution import Probe, binned, integrated_gradients
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.heads import fit_head
from cure.lead_study import Windowed, embedded
from cure.leads import configuration, independent
from cure.models import leadgrid
from cure.models.leadgrid import LeadGrid
from cure.settings.leads import LeadsConfig
from cure.signals import LEADS
from cure.splits import Split

#: Points of the path that an attribution is integrated over.
STEPS = 16


@dataclass(frozen=True)
class Seen:
    """One test record seen with some of its leads.

    Attributes
    ----------
    record_id : int
    leads : list of str
    mv : (n_leads, n_samples) array
        What the encoder was given, in mV.
    attribution : (n_leads, n_bins) array
        Integrated gradients summed over bins of 40 ms, log-odds.
    error : float
        By how much their sum misses the change of the log-odds from the baseline, as a share of their absolute sum.
    table : DataFrame
        A row for the leads that were ticked and one for all twelve: probability, log-odds, and counted cost.
    """

    record_id: int
    leads: list[str]
    mv: np.ndarray
    attribution: np.ndarray
    error: float
    table: pd.DataFrame


def pretrained(config: LeadsConfig) -> LeadGrid:
    """The encoder that was pre-trained with leads selected, from this session's run or the pipeline's.

    Raises
    ------
    CureError
        If neither is there.
    """
    for folder in (config.output, paths.stage(config.profile, config.stage)):
        if (file := folder / "weights" / "selection.safetensors").is_file():
            return leadgrid.load(file)
    raise CureError(f"no weights of stage leads: `make repro PROFILE={config.profile}` makes them")


def see(config: LeadsConfig, cohort: Cohort, split: Split, ticked: list[str], record_id: int | None = None) -> Seen:
    """Fit a head on the ticked leads, apply it to a test record, and say what it rests on and costs.

    Parameters
    ----------
    ticked : list of str
        Names of leads, in any order.
    record_id : int, optional
        A test record; by default the first that has the task's finding.

    Raises
    ------
    CureError
        For a lead, task or record that there is not.
    """
    leads, names = configuration("+".join(ticked)), cohort.binary().names
    if config.task not in names:
        raise CureError(f"unknown task {config.task!r}: choose from {', '.join(names)}")
    y = cohort.binary().y[:, names.index(config.task)]
    row = _row(cohort, split, y, record_id)
    rows = np.concatenate([split.train, split.val, [row]])
    part = Split(split.name, *(np.searchsorted(np.sort(rows), one) for one in (split.train, split.val, [row])))
    rows = np.sort(rows)
    model = pretrained(config)
    x = model.input_spec.read(cohort, rows)
    made, shown = [], None
    for chosen in (leads, list(range(len(LEADS)))):
        probe, log_odds = _probe(model, x, y[rows], part, chosen)
        shown = shown or (probe, log_odds)
        made.append(_row_of(config, chosen, log_odds))
    assert shown is not None
    mine = lead_study.given(model, x[part.test], leads)
    found = integrated_gradients(shown[0], mine, STEPS, tolerance=float("inf"))
    table = pd.DataFrame(made).set_index("leads")
    for name in ("MFLOP", "activations, kB"):
        change = 100 * (table[name] / table[name].iloc[-1] - 1)
        table[name] = [f"{value:,.1f} ({percent:+.0f} %)" for value, percent in zip(table[name], change, strict=True)]
    window = mine[0] * model.input_spec.unit_mv
    return Seen(
        int(cohort.records["record_id"].iloc[row]),
        [LEADS[lead] for lead in leads],
        window,
        binned(found.value[0], model.input_spec.fs),
        abs(float(found.error[0])),
        table,
    )


def _row(cohort: Cohort, split: Split, y: np.ndarray, record_id: int | None) -> int:
    if record_id is None:
        return int(split.test[np.argmax(y[split.test])])
    at = np.flatnonzero(cohort.records["record_id"].to_numpy() == record_id)
    if not len(at) or at[0] not in split.test:
        raise CureError(f"record {record_id} is no test record of {split.name}: choose another, or None for the first")
    return int(at[0])


def _probe(model: LeadGrid, x: np.ndarray, y: np.ndarray, part: Split, leads: list[int]) -> tuple[Probe, float]:
    """The head on these leads and the log-odds of the test record."""
    fit = fit_head("logistic", embedded(model, x, leads), y, part)
    probe = Probe(Windowed(model, leads), fit.estimator)
    return probe, float(probe.score(lead_study.given(model, x[part.test], leads))[0])


def _row_of(config: LeadsConfig, leads: list[int], log_odds: float) -> dict:
    cost = lead_cost.count("adaptive", leads)
    return {
        "leads": "all twelve" if len(leads) == len(LEADS) else ", ".join(LEADS[lead] for lead in leads),
        "independent": independent(leads),
        f"probability of {config.task}": round(1 / (1 + np.exp(-log_odds)), 3),
        "log-odds": round(log_odds, 2),
        "MFLOP": cost["mflop"],
        "activations, kB": cost["activation_kb"],
    }


def caption(config: LeadsConfig, seen: Seen, cohort_title: str) -> str:
    """What the figure of `see` shows."""
    what = tasks.TITLES.get(config.task, config.task)
    return (
        f"Integrated gradients of the log-odds of {config.task} ({what}) for record {seen.record_id} ({cohort_title}), "
        f"seen with {', '.join(seen.leads)} only: orange raises the log-odds, blue lowers them, per lead and 40 ms. "
        "Their sum misses the change from the baseline "
        f"by {seen.error:.1%} of their absolute sum. What such attributions are worth is asked in notebook 09."
    )

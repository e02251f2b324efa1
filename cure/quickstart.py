"""Stage `quickstart`: one ECG through all that the study made: how likely what is, why, and which records are like it.

What is used, and how one record is read and embedded: `cure.onerecord`.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cure import attribution, kept, pointing
from cure.attribution import Probe
from cure.errors import CureError
from cure.estimators import scaler
from cure.models.base import one_thread
from cure.onerecord import Recording, Study, embedded, of_cohort, open_study, part_of, record
from cure.own.encode import condition
from cure.signals import LEADS

__all__ = ["embedded", "open_study", "record"]


@dataclass(frozen=True)
class Explanation:
    """What the log-odds of one task rest on in one record.

    Attributes
    ----------
    mv, value : (12, n_samples) float32 arrays
        The encoder's input in mV, its first window, and integrated gradients in log-odds; leads in CURE's order.
    fs : int
        Hz.
    log_odds : float
        Of the head for that window, before calibration.
    table : DataFrame
        `task, quantity, value`: the log-odds, how exactly the attribution adds up to them, and its checks.
    """

    mv: np.ndarray
    value: np.ndarray
    fs: int
    log_odds: float
    table: pd.DataFrame


# --- prediction -----------------------------------------------------------------------------------------


def predictions(study: Study, z: np.ndarray, ecg: Recording) -> pd.DataFrame:
    """Calibrated probability of every task for one record, with its interval.

    Parameters
    ----------
    study : Study
    z : (dim,) array
        From `embedded`.
    ecg : Recording

    Returns
    -------
    DataFrame
        `task, title, value, lo, hi, threshold, positive, listed, prevalence, auroc, auroc_lo, auroc_hi, n_pos`: the
        interval is that of `cure.kept.Kept.interval`, empty for a head that is not calibrated; `positive`: at or above
        the validation threshold; `listed`: the record's label, empty where it has none; `prevalence` of the training
        records; AUROC and positives of the validation records.
    """
    listed = _listed(study, ecg)
    rows = []
    for task, head in study.heads.items():
        card = head.card
        (value,), (lo,), (hi,) = head.probability(z[None]), *head.interval(z[None])
        auroc = next(score for score in card.scores if score.metric == "auroc")
        rows.append(
            {
                "task": task,
                "title": card.title,
                "value": value,
                "lo": lo,
                "hi": hi,
                "threshold": head.threshold,
                "positive": bool(value >= head.threshold),
                "listed": listed.get(task),
                "prevalence": card.train.n_pos / card.train.n,
                "auroc": auroc.value,
                "auroc_lo": auroc.lo,
                "auroc_hi": auroc.hi,
                "n_pos": card.val.n_pos,
            }
        )
    return pd.DataFrame(rows).astype({"auroc": float, "auroc_lo": float, "auroc_hi": float})


def predictions_view(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions as a reader wants them: the most unusual first, measured by how far they are above prevalence."""
    order = (table["value"] / table["prevalence"]).sort_values(ascending=False).index
    rows = table.loc[order]
    view = pd.DataFrame(
        {
            "task": rows["title"] + " (" + rows["task"] + ")",
            "probability": [f"{r.value:.2f}{_span(r.lo, r.hi)}" for r in rows.itertuples()],
            "threshold": rows["threshold"].map("{:.2f}".format),
            "above it": rows["positive"].map({True: "yes", False: ""}),
            "listed": rows["listed"].map({True: "yes", False: "", None: "not known"}),
            "in training": rows["prevalence"].map("{:.0%}".format),
            "validation AUROC": [f"{r.auroc:.2f}{_span(r.auroc_lo, r.auroc_hi)}" for r in rows.itertuples()],
        }
    )
    return view.set_index("task").rename_axis(None)


def _span(lo: float, hi: float) -> str:
    return "" if np.isnan(lo) or np.isnan(hi) else f" [{lo:.2f}, {hi:.2f}]"


def _listed(study: Study, ecg: Recording) -> dict[str, bool]:
    if ecg.row is None:
        return {}
    labels = study.cohort.binary()
    return dict(zip(labels.names, labels.y[ecg.row].tolist(), strict=True))


def caution(study: Study, z: np.ndarray) -> str:
    """What a reader of these predictions must know, as Markdown: notes of the heads, and whether the record is odd."""
    notes: dict[str, list[str]] = {}
    for task, head in study.heads.items():
        for note in head.card.notes:
            notes.setdefault(note, []).append(task)
    lines = [
        f"* {note}" if len(which) == len(study.heads) else f"* {', '.join(which)}: {note}"
        for note, which in notes.items()
    ]
    head = study.heads[study.config.task]
    distance, odd = float(head.distance(z[None])[0]), bool(head.unusual(z[None])[0])
    lines.append(
        f"* This record lies {distance:.2f} from the training records (1: an average one; 99 % of the validation "
        f"records stay below {head.card.limit:.2f})"
        + (": **it is unlike all that the heads have seen, do not rely on its probabilities.**" if odd else ".")
    )
    return "\n".join(lines)


# --- explanation ----------------------------------------------------------------------------------------


def explain(study: Study, ecg: Recording) -> Explanation:
    """Integrated gradients of one task's logistic head over the first window of one record, and what checks them.

    As in stage `explain`: encoder, mean over tokens and logistic head are one function of the ECG. Its attribution is
    compared with that of the same function with all weights drawn anew and with the size of the signal: what it shares
    with these says nothing of what was learned. Where it is known what was planted, it is scored against that.

    Raises
    ------
    CureError
        If the attribution does not add up to the log-odds.
    """
    settings, spec = study.config, study.encoder.input_spec
    folder, card = kept.folder_of(settings.profile), study.heads[settings.task].card
    linear = kept.load(folder, f"{card.encoder}-{card.weights}-{card.seed}", "logistic", settings.task)
    x = condition(spec, [ecg.record])[:, 0]
    order = [spec.leads.index(lead) for lead in LEADS]
    with one_thread():
        probe = Probe(study.encoder, linear.pipeline())
        found = attribution.integrated_gradients(probe, x, settings.steps, tolerance=np.inf)
        fresh = list(attribution.randomised(probe, settings.encoder, settings.seed).values())[-1]
        other = attribution.integrated_gradients(fresh, x, settings.steps, tolerance=np.inf)
        log_odds = float(probe.score(x)[0])
    if abs(found.error[0]) > attribution.TOLERANCE:
        raise CureError(
            f"integrated gradients of {ecg.name} miss the log-odds by {abs(found.error[0]):.1%} of their absolute sum, "
            f"more than {attribution.TOLERANCE:.0%}: raise `steps` (now {settings.steps}) in section quickstart"
        )
    quantities = {
        "log-odds": log_odds,
        "completeness error": float(found.error[0]),
        "Spearman, all weights random": _alike(found.value, other.value, spec.fs),
        "Spearman, all weights random, signed": _alike(found.value, other.value, spec.fs, signed=True),
        "Spearman, signal amplitude": _alike(found.value, x, spec.fs),
    }
    maps = {"": found.gradient, ", all weights random": other.gradient, ", signal amplitude": x}
    quantities |= _pointing(study, ecg, {name: value[:, order] for name, value in maps.items()})
    table = pd.DataFrame({"task": settings.task, "quantity": list(quantities), "value": list(quantities.values())})
    return Explanation(x[0, order] * spec.unit_mv, found.value[0, order], spec.fs, log_odds, table)


def _alike(one: np.ndarray, other: np.ndarray, fs: int, signed: bool = False) -> float:
    return float(attribution.similarity(one, other, fs, signed)[0])


def _pointing(study: Study, ecg: Recording, maps: dict[str, np.ndarray]) -> dict[str, float]:
    """AUROC of mean gradients for the windows in which the task's condition was planted, where that is known."""
    truth = pointing.read_truth(study.cohort)
    if ecg.row is None or not len(truth):
        return {}
    record_id = study.cohort.records["record_id"].to_numpy()[[ecg.row]]
    fs = study.encoder.input_spec.fs
    samples = next(iter(maps.values())).shape[2]
    time, _ = pointing.planted(truth, record_id, study.config.task, fs, samples)
    if not time.any():
        return {}
    where = "AUROC for the planted windows"
    over_leads = {name: np.abs(value).sum(axis=1, keepdims=True) for name, value in maps.items()}
    return {where + name: float(pointing.score(value, time, fs)["auroc"][0]) for name, value in over_leads.items()}


def checks(found: Explanation) -> str:
    """The checks of an attribution in words, as Markdown."""
    task = found.table["task"].iloc[0]
    q = found.table.set_index("quantity")["value"]
    lines = [
        f"* It adds up: the sum over all bins misses the log-odds of {task} ({q['log-odds']:+.2f}), less those of a "
        f"flat line, by {abs(q['completeness error']):.1%} of its absolute sum.",
        f"* Sizes, rank correlation over bins with **all weights drawn anew** {q['Spearman, all weights random']:.2f} "
        f"(signed {q['Spearman, all weights random, signed']:.2f}), with the **height of the signal** "
        f"{q['Spearman, signal amplitude']:.2f}: what is shared with these two was not learned.",
    ]
    planted = q[q.index.str.startswith("AUROC")]
    if len(planted):
        values = planted.to_numpy()
        lines.append(
            f"* The simulator planted {task} here. Mean gradients tell its windows from the rest with AUROC "
            f"{values[0]:.2f} (all weights random {values[1]:.2f}, height of the signal {values[2]:.2f}, chance 0.50). "
            "One record decides nothing: notebook 09 scores many."
        )
    return "\n".join(lines)


# --- neighbours -----------------------------------------------------------------------------------------


def neighbours(study: Study, z: np.ndarray, ecg: Recording) -> pd.DataFrame:
    """The cohort's records that lie nearest to one record, none of the same patient.

    Distances are Euclidean in the native space, standardised by the training records, as stage `structure` measures.

    Returns
    -------
    DataFrame
        `rank, record_id, row, distance, relative, part, age, sex, labels`: `relative` is the distance over the median
        distance to all records of other patients.
    """
    scale = scaler().fit(study.z[study.split.train])
    distance = np.linalg.norm(scale.transform(study.z) - scale.transform(z[None]), axis=1)
    others = np.flatnonzero(_strangers(study, ecg))
    near = others[np.argsort(distance[others], kind="stable")[: study.config.k]]
    records = study.cohort.records.iloc[near]
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(near) + 1),
            "record_id": records["record_id"].to_numpy(),
            "row": near,
            "distance": distance[near],
            "relative": distance[near] / np.median(distance[others]),
            "part": [part_of(study, row) for row in near],
            "age": records["age"].to_numpy(),
            "sex": records["sex"].to_numpy(),
            "labels": [", ".join(codes) for codes in records["labels"]],
        }
    )


def _strangers(study: Study, ecg: Recording) -> np.ndarray:
    """Which records of the cohort are of another patient than this one; all of them where it is not of the cohort."""
    patient = study.cohort.records["patient_id"].to_numpy()
    return np.ones(len(patient), bool) if ecg.row is None else patient != patient[ecg.row]


def neighbours_view(table: pd.DataFrame) -> pd.DataFrame:
    """Neighbours as a reader wants them."""
    columns = {"record_id": "record", "relative": "distance / median", "part": "part of the split"}
    view = table.rename(columns=columns).drop(columns=["row", "distance"]).round({"distance / median": 2})
    view["age"] = view["age"].map(lambda age: "masked" if pd.isna(age) else f"{age:.0f}")
    return view.set_index("rank").rename_axis(None)


def agreement(study: Study, table: pd.DataFrame, ecg: Recording) -> str:
    """How many neighbours list the task, beside the share of all records of other patients: a sentence."""
    labels = study.cohort.binary()
    y = labels.y[:, labels.names.index(study.config.task)]
    return (
        f"{study.config.task} is listed by {int(y[table['row']].sum())} of {len(table)} neighbours, and by "
        f"{y[_strangers(study, ecg)].mean():.0%} of all records of other patients."
    )


def beside(study: Study, table: pd.DataFrame, ecg: Recording) -> list[Recording]:
    """The record and its neighbours, for drawing one below the other."""
    near = [of_cohort(study, int(row)) for row in table["row"]]
    named = [
        replace(one, name=f"{i}. {one.name}: {labels or 'nothing listed'}")
        for i, one, labels in zip(table["rank"], near, table["labels"], strict=True)
    ]
    return [ecg, *named]

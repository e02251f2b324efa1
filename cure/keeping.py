"""Keeping heads for use on other records: the last step of stage `heads`.

Which ones is a rule, not a choice by scores: every representation of `whose`, under each of `HEADS` that the profile
fits, for every binary task that can be fitted, on mean pooling and on one outer split: the official one, or the first
where folds rotate. Of that split only training and validation records are looked at. How they are stored: `cure.kept`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import pandas as pd
import sklearn
from safetensors.numpy import save as save_arrays

from cure import embed, paths
from cure.bootstrap import interval, metrics, metrics_weighted, patient_draws
from cure.cohorts.base import Cohort
from cure.embed import FEATURES, HUB, Representation
from cure.estimators import platt, scaler
from cure.evaluate import support
from cure.heads import Fit, best_threshold, fit_head
from cure.kept import ARRAYS, CARD, INDEX, MODEL, Card, Kept, Part, Score, log_odds, sha256_of
from cure.paths import atomic
from cure.predictions import fittable
from cure.progress import progress
from cure.settings.heads import HeadsConfig
from cure.splits import Split
from cure.tasks import titles

#: Heads that can be kept without pickling; a profile keeps those of them that it fits.
HEADS: tuple[Literal["logistic", "xgboost"], ...] = ("logistic", "xgboost")
METRICS = ("auroc", "auprc", "f1_tuned", "sensitivity", "specificity", "brier")
#: Draws of the calibration, and of the validation scores, over patients.
N_DRAWS = 200
#: A record farther from the training records than this share of the validation records is called unusual.
USUAL = 0.99


def whose(config: HeadsConfig) -> list[Representation]:
    """Whose heads are kept: the first weights made here, published models with their own, hand-crafted features."""
    every = embed.representations(config)
    own = [one for one in every if one.weights in config.pretrained][:1]
    return [*own, *(one for one in every if one.weights == HUB or one.encoder == FEATURES)]


def keep(config: HeadsConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Fit the heads to be kept and write them below the stage's output, in `heads/`, all or nothing.

    Returns
    -------
    DataFrame
        One row per head: `encoder, weights, head, task`, the validation AUROC with its interval, records and positives
        of training and validation (`n`, `n_pos`), `calibrated`, and the threshold as a calibrated probability.
    """
    labels = fittable(cohort.binary(), splits)
    part, records = splits[0].restrict(labels.rows), cohort.records.iloc[labels.rows]
    jobs: list[tuple[dict, np.ndarray, np.ndarray]] = []
    for one in whose(config):
        x = embed.read_split(config, one, "mean", cohort, splits[0])[labels.rows]
        about = {**_representation(config, cohort, one, splits[0]), **_population(config, records.iloc[part.train])}
        for head in (name for name in HEADS if name in config.heads):
            for task, y in zip(labels.names, labels.y.T, strict=True):
                name = {"task": task, "title": titles(cohort.statements)[task], "head": head, "folder": one.folder}
                jobs.append(({**about, **name, "split": part.name}, x, y))
    patients = records["patient_id"].to_numpy()
    work = (joblib.delayed(_fit)(job, patients, part, config) for job in jobs)
    made = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")(work)
    rows, index = [], {}
    with atomic(config.output / "heads") as folder:
        for (about, _, _), one in zip(jobs, progress(made, "kept heads", len(jobs), "fit"), strict=True):
            where = f"{about['folder']}/{about['head']}/{about['task']}"
            index[where] = _write(folder / where, one)
            rows.append(_row(one))
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return pd.DataFrame(rows)


def _representation(config: HeadsConfig, cohort: Cohort, one: Representation, split: Split) -> dict:
    """What the card says of the encoder and of the data."""
    features = one.encoder == FEATURES
    part = split.name.replace(" ", "-") if one.per_split else "all"
    folder = config.embeddings_folder / one.folder / (part if one.per_split else "")
    spec = pd.read_parquet(folder / "manifest.parquet", columns=["input_spec"])["input_spec"].iloc[0]
    return {
        "profile": config.profile,
        "cohort": cohort.name,
        "cohort_title": config.cohort.title,
        "simulated": config.cohort.source in paths.GENERATED,
        "encoder": one.encoder,
        "weights": one.weights,
        "seed": one.seed,
        # Published weights are found by the model's name.
        "weights_file": None if features or one.weights == HUB else f"{one.folder}/{part}.safetensors",
        "weights_sha256": embed.read_sha256(config, one, split),
        "contaminated": embed.contaminated(one, config),
        "input_spec": json.loads(spec),
        "pooling": "none" if features else "mean",
        "columns": list(embed.read_features(config.embeddings_folder, cohort)) if features else None,
    }


def _population(config: HeadsConfig, records: pd.DataFrame) -> dict:
    """What the card says of the training records."""
    ages = records["age"].dropna()
    known = (int(ages.min()), int(ages.max())) if len(ages) else None
    return {"ages": known, "female": _rounded((records["sex"] == "female").mean())}


def _fit(job: tuple[dict, np.ndarray, np.ndarray], patients: np.ndarray, part: Split, config: HeadsConfig) -> Kept:
    """Fit one head on training records; calibrate, score and describe it on validation records."""
    about, x, y = job
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        fit = fit_head(about["head"], x, y, part, config.seed, config.grid)
    y_val, x_val, patient_val = y[part.val], x[part.val], patients[part.val]
    weights = patient_draws(patient_val, N_DRAWS, np.random.default_rng(config.seed))
    supported = support(y_val, patient_val).supported
    card = Card(
        **{name: value for name, value in about.items() if name != "folder"},
        setting=fit.setting,
        train=_part(y[part.train], patients[part.train]),
        val=_part(y_val, patient_val),
        calibrated=supported,
    )
    # The kept form is what gets its threshold and its calibration, not the estimator that it was made of.
    raw = Kept(card, *_portable(about["head"], x[part.train], fit))
    score = raw.own_score(x_val)
    found: dict[str, Any] = {"threshold": best_threshold(y_val, score)}
    found["limit"] = float(np.quantile(raw.distance(x_val), USUAL))
    if supported:
        z = log_odds(score)
        found["slope"], found["intercept"] = platt(z, y_val)
        raw.arrays["calibration"] = np.array(list(_drawn(z, y_val, weights))).reshape(-1, 2)
    one = Kept(card.model_copy(update=found), raw.arrays, raw.booster)
    found["scores"] = _scores(one.probability(x_val), y_val, one.threshold, weights if supported else None)
    found["notes"] = _notes(card)
    return Kept(card.model_copy(update=found), raw.arrays, raw.booster)


def _portable(head: str, train: np.ndarray, fit: Fit) -> tuple[dict[str, np.ndarray], Any]:
    """What a fitted head consists of: arrays, and the boosted trees up to the best one."""
    impute, scale = scaler().fit(train)
    estimator: Any = fit.estimator
    arrays = {"median": impute.statistics_, "mean": scale.mean_, "scale": scale.scale_}
    arrays["calibration"] = np.empty((0, 2))
    booster = None
    if head == "logistic":
        arrays |= {"coef": estimator[-1].coef_[0], "intercept": estimator[-1].intercept_}
    else:
        booster = estimator.get_booster()[: estimator.best_iteration + 1]
    return {name: value.astype(float) for name, value in arrays.items()}, booster


def _part(y: np.ndarray, patient_id: np.ndarray) -> Part:
    return Part(n=len(y), n_pos=int(y.sum()), n_patients=len(np.unique(patient_id)))


def _drawn(z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Iterator[tuple[float, float]]:
    """Calibrations of resampled validation patients; a draw of one class has none."""
    for count in weights:
        some = np.repeat(np.arange(len(y)), count)
        if y[some].any() and not y[some].all():
            yield platt(z[some], y[some])


def _scores(p: np.ndarray, y: np.ndarray, threshold: float, weights: np.ndarray | None) -> list[Score]:
    values, scores = metrics(y, p, threshold, METRICS), []
    drawn = {} if weights is None else metrics_weighted(y, p, threshold, weights, METRICS)
    for name in METRICS:
        lo, hi = interval(drawn[name])[:2] if drawn else (np.nan, np.nan)
        scores.append(Score(metric=name, value=_rounded(values[name]), lo=_rounded(lo), hi=_rounded(hi)))
    return scores


def _rounded(value: float) -> float | None:
    """Six significant digits, as tables have; None where it is undefined."""
    return None if np.isnan(value) else float(f"{value:.6g}")


def _notes(card: Card) -> list[str]:
    """What a reader of its output must know."""
    notes = ["Research only: not for clinical use."]
    if card.simulated:
        notes.append("Fitted on simulated ECGs: it says nothing about patients.")
    if not card.calibrated:
        least = min(card.val.n_pos, card.val.n - card.val.n_pos)
        notes.append(f"Not calibrated, no interval: the rarer class has {least} validation records, ten are needed.")
    if card.contaminated != "no":
        notes.append(f"What pre-training saw of this cohort: {card.contaminated}.")
    if card.ages:
        notes.append(f"Fitted on patients of {card.ages[0]} to {card.ages[1]} years: others are out of its support.")
    return notes


def _write(folder: Path, one: Kept) -> str:
    """Write one head; returns the hash of its card."""
    folder.mkdir(parents=True)
    blobs = {ARRAYS: save_arrays({name: np.ascontiguousarray(value) for name, value in one.arrays.items()})}
    if one.booster is not None:
        blobs[MODEL] = bytes(one.booster.save_raw("json"))
    for name, blob in blobs.items():
        (folder / name).write_bytes(blob)
    card = one.card.model_copy(update={"files": {name: sha256_of(blob) for name, blob in blobs.items()}})
    text = (card.model_dump_json(indent=1) + "\n").encode()
    (folder / CARD).write_bytes(text)
    return sha256_of(text)


def _row(one: Kept) -> dict:
    card = one.card
    auroc = next(score for score in card.scores if score.metric == "auroc")
    names = {"encoder": card.encoder, "weights": card.weights, "head": card.head, "task": card.task}
    number = {"metric": "auroc", "value": auroc.value, "lo": auroc.lo, "hi": auroc.hi}
    counts = {"n": card.val.n, "n_pos": card.val.n_pos, "n_patients": card.val.n_patients}
    trained = {"n_train": card.train.n, "n_pos_train": card.train.n_pos}
    return {**names, "split": card.split, **number, **counts, **trained, "calibrated": card.calibrated}

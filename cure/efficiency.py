"""Label efficiency: what a score costs in labels, for heads on frozen embeddings and for trained networks.

Samples are drawn by patient and nested: who is in the 10 % is in the 30 % too. Training and validation patients are
reduced alike, since whoever has few labels has few to choose by; test records stay the same for every method and
fraction, so that all differences are paired. Encoders that were pre-trained without labels have seen the signals of all
training records whatever the fraction: what is scarce here is labels, not ECGs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from cure import embed, finetune, heads, paths, predictions
from cure.cohorts.base import Cohort
from cure.config import check, parameters
from cure.embed import Representation
from cure.errors import CureError
from cure.heads import Job
from cure.progress import progress
from cure.settings.efficiency import EfficiencyConfig
from cure.settings.finetune import FinetuneConfig
from cure.splits import Split
from cure.tasks import Labels

#: Expected records of the rarer class in the smallest training sample, below which a task is left out of the study.
MIN_EXPECTED = 2
#: Orders of patients tried.
_TRIES = 1000


@dataclass(frozen=True)
class Sample:
    """The patients whose labels may be used: a share of a split's training and validation patients.

    `tried` orders of patients were drawn until the smallest sample held both classes of every task.
    """

    fraction: float
    draw: int
    split: Split
    tried: int


def sample(
    split: Split, patients: np.ndarray, y: np.ndarray, fraction: float, draw: int, *, smallest: float, seed: int
) -> Sample:
    """Keep a share of the patients of a split's training and validation part; the test part stays whole.

    Patients are ordered once per draw, so smaller samples lie inside larger ones. An order whose smallest training
    sample lacks a class of a task is drawn again: with too few labels to hold one, nobody would start to train.

    Parameters
    ----------
    split : Split
    patients : (n_records,) array
        Patient of every record of the cohort.
    y : (n_records, n_tasks) bool array
    fraction : float
        In (0, 1].
    draw : int
        Which sample.
    smallest : float
        Smallest fraction of the study.
    seed : int

    Raises
    ------
    CureError
        If no order was found whose smallest sample has both classes of every task.
    """
    rng = np.random.default_rng([seed, draw, int(split.test[0])])
    tried, held = 0, False
    while not held and tried < _TRIES:
        order = rng.permutation(np.unique(patients[split.train]))
        first = y[_of(split.train, patients, order, smallest)]
        tried, held = tried + 1, bool((first.any(axis=0) & ~first.all(axis=0)).all())
    if not held:
        raise CureError(f"{split.name}: no sample of {smallest:.0%} of the patients has both classes of all tasks")
    chosen = rng.permutation(np.unique(patients[split.val]))
    train, val = _of(split.train, patients, order, fraction), _of(split.val, patients, chosen, fraction)
    return Sample(fraction, draw, replace(split, train=train, val=val), tried)


def _of(rows: np.ndarray, patients: np.ndarray, order: np.ndarray, fraction: float) -> np.ndarray:
    """Rows of the first patients of an order."""
    return rows[np.isin(patients[rows], order[: int(np.ceil(fraction * len(order)))])]


def samples(
    config: EfficiencyConfig, cohort: Cohort, splits: list[Split], fraction: float, n: int
) -> list[list[Sample]]:
    """`n` samples of one fraction, each a list over the outer splits that take part; with all labels there is one."""
    patients, y = cohort.records["patient_id"].to_numpy(), labels(config, cohort, splits).y
    smallest, part = min(config.fractions), taking_part(config, splits)
    return [
        [sample(split, patients, y, fraction, draw, smallest=smallest, seed=config.seed) for split in part]
        for draw in range(1 if fraction == 1 else n)
    ]


def taking_part(config: EfficiencyConfig, splits: list[Split]) -> list[Split]:
    """The outer splits of the study."""
    return splits[: config.n_splits]


def labels(config: EfficiencyConfig, cohort: Cohort, splits: list[Split]) -> Labels:
    """The binary tasks of which the smallest sample can be expected to hold `MIN_EXPECTED` records of either class.

    All fractions share them, so that averages are over the same tasks.

    Raises
    ------
    CureError
        If there is none.
    """
    every, smallest = cohort.binary(), min(config.fractions)
    parts = [every.y[split.train] for split in taking_part(config, splits)]
    rarer = np.min([np.minimum(part.sum(axis=0), (~part).sum(axis=0)) for part in parts], axis=0)
    keep = smallest * rarer >= MIN_EXPECTED
    if not keep.any():
        raise CureError(
            f"no task has {MIN_EXPECTED} records of either class in {smallest:.0%} of the training records: raise the "
            f"smallest of `fractions` in the efficiency section of profiles/{config.profile}.yaml"
        )
    names = [name for name, kept in zip(every.names, keep, strict=True) if kept]
    return Labels(names, every.y[:, keep], every.rows)


def chosen(config: EfficiencyConfig) -> list[Representation]:
    """The representations that heads are fitted on.

    Raises
    ------
    CureError
        If the profile does not extract one of them.
    """
    known = {one.folder: one for one in embed.representations(config)}
    missing = [name for name in config.representations if name not in known]
    if missing:
        raise CureError(f"profile {config.profile} extracts no {missing[0]}: choose from {', '.join(known)}")
    return [known[name] for name in config.representations]


def frozen(config: EfficiencyConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Test scores of every head on every representation and sample, in the columns of `cure.predictions`.

    Column `fraction` is the share of patients, `seed` the draw; each representation appears with one initialisation.
    """
    found, record_id = labels(config, cohort, splits), cohort.records["record_id"].to_numpy()
    part = taking_part(config, splits)
    read = {
        one: {split.name: embed.read_split(config, one, "mean", cohort, split) for split in part}
        if one.per_split
        else dict.fromkeys((split.name for split in part), embed.read_split(config, one, "mean", cohort, None))
        for one in chosen(config)
    }
    frames = []
    drawn_samples = [
        drawn for f in sorted(config.fractions) for drawn in samples(config, cohort, splits, f, config.draws)
    ]
    for drawn in progress(drawn_samples, desc="samples", unit="sample"):
        about = {"fraction": np.float32(drawn[0].fraction), "seed": np.int16(drawn[0].draw)}
        jobs = [
            Job(
                predictions.key(config, one, "mean", head) | about,
                read[one],
                head,
                found.names,
                found.y,
                found.rows,
            )
            for one, head in product(read, config.heads)
        ]
        frames.append(heads.out_of_fold(jobs, [one.split for one in drawn], record_id, seed=drawn[0].draw))
    return _plain(pd.concat(frames, ignore_index=True))


@dataclass(frozen=True)
class Trained:
    """What training on samples left behind: test scores, and seconds of each training (never hashed)."""

    predicted: pd.DataFrame
    seconds: pd.DataFrame


def trained(config: EfficiencyConfig, cohort: Cohort, splits: list[Split], *, n_jobs: int = -1) -> Trained:
    """Fine-tune and train from scratch on every sample, by the recipe of the profile's stage `finetune`.

    With the most labels the learning rate is chosen on validation among all that the recipe lists; smaller samples take
    the first, since a search in every one would double the time. A small sample is repeated within an epoch until it
    gives `least_steps` of the steps of all records, or a tenth of the labels would also mean a tenth of the training.
    Each training is resumable, see `cure.finetune`.
    """
    if not config.trained:
        return Trained(pd.DataFrame(), pd.DataFrame())
    recipe = check(FinetuneConfig, **parameters("finetune", config.profile))
    found = labels(config, cohort, splits)
    work = list(_trainings(config, recipe, cohort, splits))
    jobs = [job for _, job in work]
    results = finetune.train_all(jobs, cohort, found, paths.scratch(config.profile, config.stage), n_jobs)
    frames, seconds = [], []
    for (one, job), result in zip(work, results, strict=True):
        about = {"fraction": np.float32(one.fraction), "seed": np.int16(one.draw)}
        key = finetune.key(recipe, job) | about
        frames.append(finetune.frame(key, result, job.split, found, cohort))
        names = {"strategy": job.strategy.name, "encoder": job.strategy.encoder, "weights": job.strategy.weights}
        cost = {"fraction": one.fraction, "seed": one.draw, "split": job.split.name}
        seconds.append({**names, **cost, "seconds": float(result["seconds"])})
    return Trained(_plain(pd.concat(frames, ignore_index=True)), pd.DataFrame(seconds))


def _trainings(
    config: EfficiencyConfig, recipe: FinetuneConfig, cohort: Cohort, splits: list[Split]
) -> Iterator[tuple[Sample, finetune.Job]]:
    patients, y = cohort.records["patient_id"].to_numpy(), labels(config, cohort, splits).y
    part = taking_part(config, splits)
    jobs = [job for job in finetune.jobs(recipe, part) if job.strategy.name in config.trained]
    once = [job for job in jobs if job.seed == recipe.seeds[0] and job.strategy.encoder == recipe.encoder]
    smallest = min(config.fractions)
    for job, fraction, draw in product(once, sorted(config.fractions), range(config.training_draws)):
        one = sample(job.split, patients, y, fraction, draw, smallest=smallest, seed=config.seed)
        repeats = max(1, ceil(config.least_steps * len(job.split.train) / len(one.split.train)))
        split = replace(one.split, train=np.tile(one.split.train, repeats))
        rates = job.strategy.rates[: None if fraction == max(config.fractions) else 1]
        strategy = replace(job.strategy, rates=rates)
        yield one, finetune.reseeded(replace(job, split=split, strategy=strategy), draw)


def _plain(predicted: pd.DataFrame) -> pd.DataFrame:
    """Text columns as categories, whatever the parts were."""
    text = [name for name in predicted if predicted[name].dtype == object or name in ("split", "setting")]
    return predicted.astype(dict.fromkeys(text, "category"))


def sizes(config: EfficiencyConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """What each fraction holds: training records, patients and positives per task, over splits and draws.

    Returns
    -------
    DataFrame
        `fraction, metric, task, value, lo, hi`: median, lowest and highest. Metric is `records`, `patients`,
        `positives` or `orders tried`: more than one means that samples hold more of rare findings than chance gives.
    """
    found, patients, rows = labels(config, cohort, splits), cohort.records["patient_id"].to_numpy(), []
    for fraction in sorted(config.fractions):
        for one in chain.from_iterable(samples(config, cohort, splits, fraction, config.draws)):
            train = one.split.train
            count = {("records", ""): len(train), ("patients", ""): len(np.unique(patients[train]))}
            count[("orders tried", "")] = one.tried
            count |= {
                ("positives", task): int(n) for task, n in zip(found.names, found.y[train].sum(axis=0), strict=True)
            }
            rows += [{"fraction": one.fraction, "metric": m, "task": t, "value": n} for (m, t), n in count.items()]
    grouped = pd.DataFrame(rows).groupby(["fraction", "metric", "task"], sort=False)["value"]
    return grouped.agg(value="median", lo="min", hi="max").reset_index().assign(cohort=cohort.name)


def together(frozen: pd.DataFrame, trained: pd.DataFrame, stage: Path) -> pd.DataFrame:
    """All predictions in one frame; those of trained networks, if there are any, are saved beside those of heads."""
    if trained.empty:
        return frozen
    predictions.save(trained, stage, "trained")
    return _plain(pd.concat([frozen, trained], ignore_index=True))

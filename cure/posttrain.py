"""Post-training: preview the head, then fine-tune with stochastic depth; against plain fine-tuning, paired.

After Zhou et al. 2025 (arXiv 2509.12991). Every strategy starts from the same pre-trained weights, sees the same
samples of patients for as many epochs, and learns at one rate: the one that plain fine-tuning chose on the validation
records of the sample of the first seed, so what all else is compared with is never at a disadvantage. Epochs that a
preview spends on the head alone are added to the strategies without one. Each training is a job of `cure.finetune`:
resumable, on one thread, whatever the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from cure import devices, embed, finetune, heads, models, paths, predictions
from cure.cohorts.base import Cohort
from cure.efficiency import MIN_EXPECTED, sample
from cure.embed import Representation
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES
from cure.finetune import Job, taking_part, whole
from cure.models import Encoder
from cure.settings.posttrain import PosttrainConfig, Subject
from cure.shards import Arrays
from cure.splits import Split
from cure.strategies import Strategy, adapted
from cure.tasks import Group, Labels
from cure.training import Recipe

#: Ending of a strategy's name where a new head was fitted on the network that it left.
REFITTED = ", new head"
#: Learning rates by split and share of labels.
Rates = dict[tuple[str, float], float]


@dataclass(frozen=True)
class Trained:
    """What all strategies left behind.

    Attributes
    ----------
    predicted : DataFrame
        Test scores in the columns of `cure.predictions`; tasks are named `group/label`.
    history : DataFrame
        Tidy, one row per training, epoch and metric: `training` and `validation` loss, nats per task.
    rates : DataFrame
        One row per search and learning rate: the lowest value of what decides, and whether it was chosen.
    sizes : DataFrame
        One row per strategy: `trainable` and all `parameters`, heads included, for the first group.
    """

    predicted: pd.DataFrame
    history: pd.DataFrame
    rates: pd.DataFrame
    sizes: pd.DataFrame


@dataclass(frozen=True)
class Training:
    """One training of the study, of a group's labels."""

    group: Group
    fraction: float
    job: Job

    @property
    def about(self) -> dict:
        """Columns that tell its rows from those of others."""
        return {**self.job.about, "group": self.group, "fraction": self.fraction}


def ablated(config: PosttrainConfig, preview: bool, rate: float) -> str:
    """Name of a strategy at a rate of stochastic depth; without any it is `full` or `preview`."""
    if not rate:
        return "preview" if preview else "full"
    name = "preview+depth" if preview else "depth"
    return name if rate == config.adaptation.drop_path else f"{name}-{rate:g}"


def labels(config: PosttrainConfig, cohort: Cohort, splits: list[Split], group: Group) -> Labels:
    """The labels of a group that can be learned and scored: named `group/label`.

    A label has at least `MIN_POSITIVES` records of either class among the test records, and at least `MIN_EXPECTED` of
    the rarer class can be expected in the smallest training sample. All strategies and fractions share them.

    Raises
    ------
    CureError
        If there is none.
    """
    found, part = cohort.group(group), splits[: config.n_splits]
    y, taken = whole(found, len(cohort)), [taking_part(split, found) for split in part]
    tested = y[np.concatenate([split.test for split in taken])]
    rarer = np.min([np.minimum(y[s.train].sum(axis=0), (~y[s.train]).sum(axis=0)) for s in taken], axis=0)
    keep = np.minimum(tested.sum(axis=0), (~tested).sum(axis=0)) >= MIN_POSITIVES
    keep &= min(config.fractions) * rarer >= MIN_EXPECTED
    if not keep.any():
        raise CureError(
            f"label group '{group}': no label has {MIN_POSITIVES} test records of either class and "
            f"{MIN_EXPECTED} training records of either class in {min(config.fractions):.0%} of the patients: take it "
            f"out of `groups`, or raise the smallest of `fractions`, in section posttrain of profiles/{config.profile}."
            "yaml"
        )
    names = [f"{group}/{name}" for name, kept in zip(found.names, keep, strict=True) if kept]
    return Labels(names, found.y[:, keep], found.rows)


def start(config: PosttrainConfig, subject: Subject) -> Representation:
    """The representation whose weights a subject starts from.

    Raises
    ------
    CureError
        If the profile does not extract it.
    """
    models.check([subject.encoder])
    known = embed.representations(config)
    for one in known:
        if (one.encoder, one.weights) == (subject.encoder, subject.weights):
            return one
    raise CureError(
        f"profile {config.profile} extracts no {subject.encoder} with weights '{subject.weights}': list it in section "
        f"embed of profiles/{config.profile}.yaml, or choose from {', '.join(one.folder for one in known)}"
    )


def run(config: PosttrainConfig, cohort: Cohort, splits: list[Split], *, n_jobs: int | None = None) -> Trained:
    """Adapt every subject by every strategy, on every group, fraction and seed; then the ablation and light strategies.

    An interrupted run goes on where it was, see `cure.finetune.run`.

    Parameters
    ----------
    config : PosttrainConfig
    cohort : Cohort
    splits : list of Split
    n_jobs : int, optional
        Trainings at a time, one thread each; by default one per core, or one on a GPU. The result does not depend on
        it.

    Raises
    ------
    CureError
        If the profile lacks the pre-trained weights, a group has no label with support, or training fails.
    """
    if n_jobs is None:
        n_jobs = 1 if devices.requested()[0] == "cuda" else -1
    scratch, frames = paths.scratch(config.profile, config.stage), []
    history: list[dict] = []
    rates: list[dict] = []
    sizes: list[dict] = []
    for subject, group in product(config.subjects, config.groups):
        study = Study.of(config, cohort, splits, subject, group)
        if "linear" in config.strategies:
            frames.append(study.linear())
        chosen = study.chosen_rates(scratch, n_jobs, rates)
        todo = list(study.trainings(chosen))
        results = finetune.train_all([one.job for one in todo], cohort, study.found, scratch, n_jobs)
        for one, result in zip(todo, results, strict=True):
            frames += _frames(config, one, result, study.found, cohort)
            about = {"cohort": config.cohort.name, **one.about}
            history += [{**about, **row} for row in finetune._melted(result)]
            if group == config.groups[0]:
                size = finetune._size(one.job, result, study.found)
                sizes.append({**about, **{name: size[name] for name in ("trainable", "parameters")}})
    predicted = pd.concat(frames, ignore_index=True)
    text = [name for name in predicted if predicted[name].dtype == object or predicted[name].dtype == "category"]
    names = ["cohort", "strategy", "encoder", "weights", "trainable", "parameters"]
    return Trained(
        predicted.astype(dict.fromkeys(text, str)).astype(dict.fromkeys(text, "category")),
        pd.DataFrame(history),
        pd.DataFrame(rates),
        pd.DataFrame(sizes)[names].drop_duplicates(ignore_index=True),
    )


@dataclass(frozen=True)
class Study:
    """One subject on one group of labels: the outer splits that take part, and the weights it starts from on each."""

    config: PosttrainConfig
    cohort: Cohort
    splits: list[Split]
    subject: Subject
    group: Group
    found: Labels
    starts: dict[str, Encoder]

    @classmethod
    def of(
        cls, config: PosttrainConfig, cohort: Cohort, splits: list[Split], subject: Subject, group: Group
    ) -> "Study":
        """Find the labels and load the weights."""
        part, one = splits[: config.n_splits], start(config, subject)
        found = labels(config, cohort, splits, group)
        shared = {} if one.per_split else dict.fromkeys((s.name for s in part), embed.load_encoder(config, one, None))
        starts = shared or {split.name: embed.load_encoder(config, one, split) for split in part}
        return cls(config, cohort, part, subject, group, found, starts)

    def chosen_rates(self, scratch: Path, n_jobs: int, rates: list[dict]) -> Rates:
        """The learning rate of each split and share of labels, by the lowest validation value of plain fine-tuning.

        That is from the first seed, on its sample. What was tried is added to `rates`. The training that was chosen is
        one of the grid, where it is a finished file.
        """
        cells = list(product(self.splits, self.config.fractions))
        tried = [
            self.training("full", fraction, self.config.seeds[0], split, rate)
            for (split, fraction), rate in product(cells, self.subject.rates)
        ]
        results = finetune.train_all([one.job for one in tried], self.cohort, self.found, scratch, n_jobs)
        chosen: Rates = {}
        for split, fraction in cells:
            mine = [i for i, one in enumerate(tried) if (one.job.split.name, one.fraction) == (split.name, fraction)]
            best = min(mine, key=lambda i: float(results[i]["lowest"][0]))
            for i in mine:
                rate, kept = tried[i].job.strategy.rates[0], int(results[i]["kept"][0])
                value = {"metric": str(results[i]["judged_by"]), "value": float(results[i]["lowest"][0])}
                about = {"cohort": self.config.cohort.name, **tried[i].about, "rate": rate}
                rates.append({**about, **value, "epoch_kept": kept, "chosen": i == best})
            chosen[split.name, fraction] = tried[best].job.strategy.rates[0]
        return chosen

    def trainings(self, chosen: Rates) -> Iterator[Training]:
        """The grid, and for the first group the ablation and the light strategies, at the rates of their samples.

        Light strategies have learning rates of their own, and each training chooses among them.
        """
        config = self.config
        top, first = max(config.fractions), config.seeds[0]
        networks = [name for name in config.strategies if name != "linear"]
        todo: dict[tuple[str, float, int], float | None] = dict.fromkeys(
            product(networks, config.fractions, config.seeds)
        )
        if self.group == config.groups[0]:
            for preview, rate in product((False, True), config.drop_paths):
                todo.setdefault((ablated(config, preview, rate), top, first), rate)
            todo |= dict.fromkeys(product(config.light, [top], [first]))
        for split, ((name, fraction, seed), drop_path) in product(self.splits, todo.items()):
            yield self.training(name, fraction, seed, split, chosen[split.name, fraction], drop_path)

    def training(
        self, name: str, fraction: float, seed: int, split: Split, rate: float, drop_path: float | None = None
    ) -> Training:
        """One training; `drop_path` instead of the rate that the settings give."""
        config, subject = self.config, self.subject
        how, one = config.adaptation, start(config, subject)
        rates = tuple(subject.light_rates) if name in config.light else (rate,)
        plain = Strategy(name.split("-")[0], one.encoder, one.weights, "mean", rates, subject.window_s)
        refit = config.refit and name in config.strategies and fraction == max(config.fractions)
        strategy = replace(adapted(plain, how), name=name, refit=refit)
        if drop_path is not None:
            strategy = replace(strategy, drop_path=drop_path)
        recipe = Recipe(
            config.epochs + (0 if strategy.preview else how.preview_epochs),
            config.batch_size,
            rates[0],
            config.weight_decay,
            warmup=how.warmup,
            clip=how.clip,
            patience=config.patience,
            seed=seed,
            precision=config.precision,
        )
        part = self.sampled(split, fraction, seed)
        repeats = max(1, ceil(config.least_steps * len(taking_part(split, self.found).train) / len(part.train)))
        part = replace(part, train=np.tile(part.train, repeats))
        seen = embed.contaminated(one, config)
        return Training(self.group, fraction, Job(strategy, part, seed, self.starts[split.name], seen, recipe))

    def sampled(self, split: Split, fraction: float, seed: int) -> Split:
        """The split with a share of its training and validation patients, nested; see `cure.efficiency.sample`."""
        patients, y = self.cohort.records["patient_id"].to_numpy(), whole(self.found, len(self.cohort))
        smallest, part = min(self.config.fractions), taking_part(split, self.found)
        return sample(part, patients, y, fraction, seed, smallest=smallest, seed=self.config.seed).split

    def linear(self) -> pd.DataFrame:
        """Strategy `linear`: the logistic head on mean-pooled embeddings, on the same samples; one of all records."""
        config, one = self.config, start(self.config, self.subject)
        x = {
            split.name: embed.read_split(config, one, "mean", self.cohort, split if one.per_split else None)
            for split in self.splits
        }
        frames, record_id = [], self.cohort.records["record_id"].to_numpy()
        for fraction in config.fractions:
            for seed in config.seeds if fraction < 1 else config.seeds[:1]:
                about = {"fraction": np.float32(fraction), "seed": np.int16(seed)}
                key = predictions.key(config, one, "mean", "logistic", "linear") | about
                job = heads.Job(key, x, "logistic", self.found.names, self.found.y, self.found.rows)
                drawn = [self.sampled(split, fraction, seed) for split in self.splits]
                frames.append(heads.out_of_fold([job], drawn, record_id, seed=seed))
        return pd.concat(frames, ignore_index=True)


def _frames(
    config: PosttrainConfig, one: Training, result: Arrays, found: Labels, cohort: Cohort
) -> Iterator[pd.DataFrame]:
    """Test scores of a training, and of the head that was fitted afterwards where there is one."""
    about = {"fraction": np.float32(one.fraction), "seed": np.int16(one.job.seed)}
    key = finetune.key(config, one.job) | about
    yield finetune.frame(key, result, one.job.split, found, cohort)
    if "refit_score" in result:
        key |= {"strategy": one.job.strategy.name + REFITTED, "head": "logistic"}
        again = {name: result[f"refit_{name}"] for name in ("score", "threshold", "setting")}
        yield finetune.frame(key, again, one.job.split, found, cohort)

"""Fine-tuning: heads on the frozen encoder, the same encoder trained in part and whole, and training from scratch.

All strategies see the same splits and the same tasks. Networks learn all tasks at once from random crops; a record's
score is the mean over windows that cover it. Learning rate, the epoch that is kept and the thresholds are chosen on
validation records; test records are scored once. Each training is a job of its own, resumable, run on one thread, so
that its result depends neither on the other jobs nor on the number of workers.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from cure import embed, heads, models, paths, predictions
from cure.adapt import choose, input_file, token_file
from cure.cohorts.base import Cohort
from cure.config import StageConfig
from cure.embed import Representation
from cure.errors import CureError
from cure.models import Encoder
from cure.networks import AttentiveProbe, Classifier, Network
from cure.paths import atomic
from cure.progress import progress
from cure.settings.finetune import FinetuneConfig
from cure.shards import Arrays, fingerprint
from cure.splits import Split
from cure.strategies import Strategy, strategies
from cure.tasks import Labels
from cure.training import Recipe, alone


@dataclass(frozen=True)
class Trained:
    """What all strategies left behind.

    Attributes
    ----------
    predicted : DataFrame
        Test scores in the columns of `cure.predictions`.
    history : DataFrame
        Tidy, one row per training, epoch and metric: `training` and `validation` loss, in nats per task, at the
        learning rate that was chosen.
    rates : DataFrame
        One row per training and learning rate: the lowest value of what decides (`validation`: the loss; or `1 - macro
        AUROC`), and whether it was chosen.
    sizes : DataFrame
        Tidy, one row per strategy, split, seed and metric: parameters, trainable parameters, records seen in training
        at all learning rates, epochs run and the epoch kept at the one that was chosen.
    seconds : DataFrame
        Wall seconds of each training, all learning rates together. They differ from run to run: nothing that is hashed
        may hold them.
    """

    predicted: pd.DataFrame
    history: pd.DataFrame
    rates: pd.DataFrame
    sizes: pd.DataFrame
    seconds: pd.DataFrame


@dataclass(frozen=True)
class Job:
    """One training: a strategy on a split from a seed; `starts` is its encoder before the first step.

    `split` may hold a part of the training records, or some of them more than once.
    """

    strategy: Strategy
    split: Split
    seed: int
    starts: Encoder
    contaminated: str
    recipe: Recipe

    @property
    def about(self) -> dict:
        """Columns that tell its rows from those of other trainings."""
        one = self.strategy
        names = {"strategy": one.name, "encoder": one.encoder, "weights": one.weights}
        return {**names, "split": self.split.name, "seed": self.seed}

    def classifier(self, n_tasks: int) -> Network:
        """The network before its first step; the job's own encoder stays as it is."""
        one = self.strategy
        if one.name == "attentive":
            return AttentiveProbe(self.starts.dim, n_tasks)
        model = Classifier(copy.deepcopy(self.starts), one.pooling, n_tasks, one.window_s)
        one.prepare(model, self.seed)
        return model

    def run(self, x: np.ndarray, y: np.ndarray, checkpoint: Path) -> Arrays:
        """Train with every learning rate of the strategy, keep the best; see `cure.adapt.choose`."""
        make, one = partial(self.classifier, y.shape[1]), self.strategy
        return choose(make, one.rates, x, y, self.split, self.recipe, checkpoint, refit=one.refit)


def reseeded(job: Job, seed: int) -> Job:
    """The same training from another seed: order and crops, and the weights where they are random."""
    starts = job.starts if job.strategy.adapts else models.load(job.strategy.encoder, seed=seed)
    return replace(job, seed=seed, starts=starts, recipe=replace(job.recipe, seed=seed))


def jobs(config: FinetuneConfig, splits: list[Split]) -> list[Job]:
    """Every training of the stage: strategy x split x seed."""
    start = pretrained(config)
    found = []
    for (one, recipe), split, seed in product(strategies(config), splits, config.seeds):
        encoder = embed.load_encoder(config, start, split) if one.adapts else models.load(one.encoder, seed=seed)
        contaminated = embed.contaminated(start, config) if one.adapts else "no"
        found.append(Job(one, split, seed, encoder, contaminated, replace(recipe, seed=seed)))
    return found


def pretrained(config: FinetuneConfig) -> Representation:
    """The representation whose weights fine-tuning starts from.

    Raises
    ------
    CureError
        If the profile does not extract it.
    """
    for one in embed.representations(config):
        if (one.encoder, one.weights) == (config.encoder, config.weights):
            return one
    raise CureError(
        f"profile {config.profile} extracts no {config.encoder} with weights '{config.weights}': list them in "
        f"profiles/{config.profile}.yaml, then `make repro PROFILE={config.profile}`"
    )


def run(config: FinetuneConfig, cohort: Cohort, splits: list[Split], *, n_jobs: int = -1) -> Trained:
    """Probe, fine-tune and train from scratch on every split, all on the same tasks.

    An interrupted run goes on: a finished training is a file in the stage's scratch folder, an unfinished one has its
    last whole epoch there. The folder goes when the whole stage has succeeded.

    Parameters
    ----------
    config : FinetuneConfig
    cohort : Cohort
    splits : list of Split
    n_jobs : int
        Jobs at a time, one thread each; -1: one per core. The result does not depend on it.

    Raises
    ------
    CureError
        If the profile lacks the pre-trained weights, or training fails.
    """
    labels = targets(config, cohort, splits)
    scratch = paths.scratch(config.profile, config.stage)
    found = jobs(config, splits)
    results = train_all(found, cohort, labels, scratch, n_jobs)
    probed = "linear" in config.strategies
    frames = [probe(config, cohort, splits, labels)] if probed else []
    sizes = _probe_sizes(config, splits, labels) if probed else []
    history, rates, seconds = [], [], []
    for job, result in zip(found, results, strict=True):
        about = {"cohort": config.cohort.name, **job.about}
        frames.append(frame(key(config, job), result, job.split, labels, cohort))
        history += [{**about, **row} for row in _melted(result)]
        rates += [{**about, **row} for row in _tried(result)]
        sizes += [{**about, "metric": name, "value": value} for name, value in _size(job, result, labels).items()]
        seconds.append({**about, "seconds": float(result["seconds"])})
    predicted = pd.concat(frames, ignore_index=True)
    predicted = predicted.astype({name: "category" for name in predicted if predicted[name].dtype == object})
    return Trained(predicted, *(pd.DataFrame(rows) for rows in (history, rates, sizes, seconds)))


def targets(config: FinetuneConfig, cohort: Cohort, splits: list[Split]) -> Labels:
    """The tasks of the study: those that have both classes in every training part.

    With `tasks: all`, statements are named `all/<statement>` and only records that list any take part.
    """
    if config.tasks == "binary":
        return predictions.fittable(cohort.binary(), splits)
    found = predictions.fittable(cohort.group("all"), splits)
    return replace(found, names=[f"all/{name}" for name in found.names])


def whole(labels: Labels, n: int) -> np.ndarray:
    """Labels of all n records of the cohort, (n, n_tasks) bool; of those that take no part they mean nothing."""
    y = np.zeros((n, labels.y.shape[1]), bool)
    y[labels.rows] = labels.y
    return y


def taking_part(split: Split, labels: Labels) -> Split:
    """The parts of a split without the records that have no labels; rows keep their numbers."""
    parts = (part[np.isin(part, labels.rows)] for part in (split.train, split.val, split.test))
    return Split(split.name, *parts)


def train_all(found: list[Job], cohort: Cohort, labels: Labels, scratch: Path, n_jobs: int = -1) -> list[Arrays]:
    """Run trainings, each on one thread, and give what `choose` gives for each, in their order.

    Parameters
    ----------
    found : list of Job
    cohort : Cohort
    labels : Labels
        Of the records that take part; others are left out of the jobs' splits.
    scratch : Path
        Where finished trainings and unfinished ones' checkpoints stay; the caller removes it when all is safe.
    n_jobs : int
        Jobs at a time; -1: one per core. The result does not depend on it.
    """
    files, work, y = [], [], whole(labels, len(cohort))
    for job in found:
        job = replace(job, split=taking_part(job.split, labels))
        x = input_file(job.starts.input_spec, cohort, scratch)
        parts = [part.tolist() for part in (job.split.train, job.split.val, job.split.test)]
        made_of = [asdict(job.strategy), asdict(job.recipe), job.starts.weights_sha256(), job.split.name, parts]
        file = scratch / f"{fingerprint(*made_of, labels.names, labels.y.tolist(), x.name)}.npz"
        files.append(file)
        if not file.exists():
            work.append(joblib.delayed(_compute)(job, x, y, file))
    done = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(work)
    for _ in progress(done, desc="trainings", total=len(work), unit="training"):
        continue
    return [dict(np.load(file)) for file in files]


def _compute(job: Job, x: Path, y: np.ndarray, file: Path) -> None:
    with alone():
        x = token_file(job.starts, x) if job.strategy.name == "attentive" else x
        result = job.run(np.load(x, mmap_mode="r"), y, file)
    with atomic(file) as part, part.open("wb") as stream:
        np.savez(stream, **result)  # type: ignore[arg-type]
    for checkpoint in file.parent.glob(f"{file.stem}.*.checkpoint"):
        checkpoint.unlink()


def frozen(config: FinetuneConfig) -> list[Representation]:
    """Every frozen version of the encoder that the profile extracts, pre-trained or not."""
    return [one for one in embed.representations(config) if one.encoder == config.encoder]


def probe(config: FinetuneConfig, cohort: Cohort, splits: list[Split], labels: Labels) -> pd.DataFrame:
    """Strategy `linear`: the logistic head on mean-pooled embeddings; the encoder's weights stay as they are."""
    found = []
    for one in frozen(config):
        # One array where the embeddings do not differ between splits.
        each = splits if one.per_split else splits[:1]
        arrays = [embed.read_split(config, one, "mean", cohort, split) for split in each]
        x = dict(zip([split.name for split in splits], arrays * (len(splits) // len(each)), strict=True))
        about = predictions.key(config, one, "mean", "logistic", "linear")
        found.append(heads.Job(about, x, "logistic", labels.names, labels.y, labels.rows))
    return heads.out_of_fold(found, splits, cohort.records["record_id"].to_numpy())


def _probe_sizes(config: FinetuneConfig, splits: list[Split], labels: Labels) -> list[dict]:
    encoder, rows = models.load(config.encoder), []
    trainable = len(labels.names) * (encoder.dim + 1)
    for one, split in product(frozen(config), splits):
        names = {"strategy": "linear", "encoder": one.encoder, "weights": one.weights, "split": split.name}
        made = {"parameters": encoder.n_parameters() + trainable, "trainable": trainable}
        made["records_seen"] = len(taking_part(split, labels).train)
        about = {"cohort": config.cohort.name, **names, "seed": one.seed}
        rows += [{**about, "metric": name, "value": value} for name, value in made.items()]
    return rows


def _size(job: Job, result: Arrays, labels: Labels) -> dict[str, int]:
    model = job.classifier(len(labels.names))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen_too = job.starts.n_parameters() if job.strategy.name == "attentive" else 0
    batch, at = job.recipe.batch_size, int(result["chosen"])
    per_epoch = len(taking_part(job.split, labels).train) // batch * batch
    return {
        "parameters": frozen_too + sum(p.numel() for p in model.parameters()),
        "trainable": trainable,
        "records_seen": per_epoch * int(result["epochs"].sum() + result["previewed"].sum()),
        "epochs": int(result["epochs"][at]),
        "epoch_kept": int(result["kept"][at]),
    }


def _tried(result: Arrays) -> Iterator[dict]:
    for i, (rate, value) in enumerate(zip(result["rate"], result["lowest"], strict=True)):
        about = {"rate": float(rate), "metric": str(result["judged_by"]), "value": float(value)}
        yield {**about, "epoch_kept": int(result["kept"][i]), "chosen": i == result["chosen"]}


def key(config: StageConfig, job: Job) -> dict:
    """Columns that say what a job's predictions are of."""
    one = Representation(job.strategy.encoder, job.strategy.weights, job.seed)
    columns = predictions.key(config, one, job.strategy.pooling, job.strategy.head, job.strategy.name)
    return {**columns, "contaminated": job.contaminated}


def frame(key: dict, result: Arrays, split: Split, labels: Labels, cohort: Cohort) -> pd.DataFrame:
    """Test scores of a job in the columns of `cure.predictions`."""
    split, y = taking_part(split, labels), whole(labels, len(cohort))
    n, n_tasks = result["score"].shape
    columns = {
        "task": np.repeat(np.array(labels.names, object), n),
        "split": split.name,
        "record_id": np.tile(cohort.records["record_id"].to_numpy()[split.test], n_tasks),
        "y": y[split.test].T.ravel().astype(np.int8),
        "score": result["score"].T.ravel(),
        "threshold": np.repeat(result["threshold"], n),
        "setting": np.repeat(result["setting"].astype(object), n),
    }
    return pd.DataFrame({**key, **columns})


def _melted(result: Arrays) -> Iterator[dict]:
    for i, epoch in enumerate(result["epoch"]):
        for metric, name in (("training", "loss"), ("validation", "validation")):
            yield {"epoch": int(epoch), "metric": metric, "value": float(result[name][i])}

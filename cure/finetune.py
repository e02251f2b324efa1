"""Fine-tuning: a head on the frozen encoder, the same encoder trained whole, and training from scratch, on equal terms.

All strategies see the same splits and the same binary tasks. Networks learn all tasks at once from random crops of 5 s;
a record's score is the mean over its two halves. The epoch that is kept and the thresholds are chosen on validation
records; test records are scored once. Each training is a job of its own, resumable, run on one thread, so that its
result depends neither on the other jobs nor on the number of workers.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from cure import embed, heads, models, paths, predictions
from cure.cohorts.base import Cohort
from cure.embed import Representation, pool
from cure.errors import CureError
from cure.heads import best_threshold
from cure.models import Encoder, InputSpec
from cure.paths import atomic
from cure.progress import progress
from cure.settings.finetune import FinetuneConfig
from cure.shards import Arrays, fingerprint
from cure.splits import Split
from cure.tasks import Labels
from cure.training import Recipe, alone, train

#: Length of a training crop and of a scored window, seconds: half a record.
WINDOW_S = 5.0


@dataclass(frozen=True)
class Strategy:
    """One way to train a network: where its weights start, how tokens are pooled, how fast it learns.

    Attributes
    ----------
    name : {"full", "scratch"}
    encoder, weights : str
    pooling : str
        Poolings of `cure.embed.pool`, joined by `+`: the head reads them side by side.
    rate : float
        Peak learning rate of encoder and head.
    """

    name: str
    encoder: str
    weights: str
    pooling: str
    rate: float


def strategies(config: FinetuneConfig) -> list[Strategy]:
    """Fine-tuning, the same architecture from scratch, and the supervised floor with the read-out of its benchmark."""
    models.check([config.encoder, config.floor])
    return [
        Strategy("full", config.encoder, config.weights, "mean", config.rate),
        Strategy("scratch", config.encoder, "random", "mean", config.scratch_rate),
        Strategy("scratch", config.floor, "random", "mean+max", config.scratch_rate),
    ]


class Classifier(nn.Module):
    """An encoder and a linear head with one logit per task. The head starts at zero: every probability at a half."""

    def __init__(self, encoder: Encoder, pooling: str, n_tasks: int):
        super().__init__()
        self.encoder = encoder
        self.poolings = pooling.split("+")
        self.head = nn.Linear(encoder.dim * len(self.poolings), n_tasks)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) model-ready input to (n, n_tasks) float32 logits."""
        tokens = self.encoder(x)
        read_out = torch.cat([pool(tokens, name) for name in self.poolings], dim=1)
        # Eight bits of mantissa would make ties of scores that differ.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(read_out.float())


def crops(x: np.ndarray, rows: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random window of each record: (n_records, n_leads, n_samples) and n rows to (n, n_leads, length)."""
    starts = rng.integers(0, x.shape[-1] - length + 1, len(rows))
    return np.lib.stride_tricks.sliding_window_view(x, length, axis=-1)[rows, :, starts]


@torch.inference_mode()
def logits(model: nn.Module, x: np.ndarray, rows: np.ndarray, length: int, batch_size: int) -> np.ndarray:
    """Mean of the logits over the first and the last window of each record, (len(rows), n_tasks) float32."""
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = torch.from_numpy(x[rows[start : start + batch_size]])
        parts.append((model(batch[..., :length]) + model(batch[..., -length:])) / 2)
    return torch.cat(parts).float().numpy()


def fit(model: Classifier, x: np.ndarray, y: np.ndarray, split: Split, recipe: Recipe, checkpoint: Path) -> Arrays:
    """Train on the training records of a split, choose on its validation records, score its test records once.

    Parameters
    ----------
    model : Classifier
        Trained in place.
    x : (n_records, n_leads, n_samples) float32 array
        Model-ready input; may be memory-mapped.
    y : (n_records, n_tasks) bool array
    split : Split
    recipe : Recipe
    checkpoint : Path
        See `cure.training.train`.

    Returns
    -------
    dict of arrays
        `score` (n_test, n_tasks) float32, `threshold` and `setting` (n_tasks,), `epoch`, `loss` and `validation` (one
        per epoch), `seconds`.
    """
    spec = model.encoder.input_spec
    length = round(WINDOW_S * spec.fs)
    target = torch.from_numpy(y.astype(np.float32))

    def step(rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"loss": bce(model(torch.from_numpy(crops(x, rows, length, rng))), target[rows])}

    def predict(rows: np.ndarray) -> np.ndarray:
        return logits(model, x, rows, length, recipe.batch_size)

    def validate() -> float:
        return float(bce(torch.from_numpy(predict(split.val)), target[split.val]))

    desc = f"{type(model.encoder).__name__}, {split.name}"
    run = train(model, step, split.train, recipe, checkpoint, validate=validate, desc=desc)
    model.eval()
    chosen, score = (1 / (1 + np.exp(-predict(rows).astype(np.float64))) for rows in (split.val, split.test))
    thresholds = [best_threshold(y[split.val, task], chosen[:, task]) for task in range(y.shape[1])]
    history = {name: run.history[name].to_numpy() for name in ("epoch", "loss", "validation")}
    kept = np.array([f"epoch={1 + history['validation'].argmin()}"] * y.shape[1])
    return {
        "score": score.astype(np.float32),
        "threshold": np.array(thresholds, np.float32),
        "setting": kept,
        "seconds": np.float64(run.seconds),
        **history,
    }


@dataclass(frozen=True)
class Trained:
    """What all strategies left behind.

    Attributes
    ----------
    predicted : DataFrame
        Test scores in the columns of `cure.predictions`.
    history : DataFrame
        Tidy, one row per training, epoch and metric: `training` and `validation` loss, in nats per task.
    sizes : DataFrame
        Tidy, one row per strategy, split, seed and metric: parameters, trainable parameters, records seen in training,
        epochs run and the epoch kept.
    seconds : DataFrame
        Wall seconds of each training. They differ from run to run: nothing that is hashed may hold them.
    """

    predicted: pd.DataFrame
    history: pd.DataFrame
    sizes: pd.DataFrame
    seconds: pd.DataFrame


@dataclass(frozen=True)
class Job:
    """One training: a strategy on a split from a seed; `starts` is its encoder before the first step."""

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

    def classifier(self, n_tasks: int) -> Classifier:
        """The network before its first step; the job's own encoder stays as it is."""
        return Classifier(copy.deepcopy(self.starts), self.strategy.pooling, n_tasks)


def jobs(config: FinetuneConfig, splits: list[Split]) -> list[Job]:
    """Every training of the stage: strategy x split x seed."""
    start = pretrained(config)
    found = []
    for one, split, seed in product(strategies(config), splits, config.seeds):
        adapts = one.name == "full"
        encoder = embed.load_encoder(config, start, split) if adapts else models.load(one.encoder, seed=seed)
        recipe = Recipe(config.epochs, config.batch_size, one.rate, config.weight_decay)
        recipe = replace(recipe, patience=config.patience, seed=seed)
        found.append(Job(one, split, seed, encoder, embed.contaminated(start, config) if adapts else "no", recipe))
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
    """Probe, fine-tune and train from scratch on every split, all on the binary tasks that can be fitted.

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
    labels = predictions.fittable(cohort.binary(), splits)
    scratch = paths.scratch(config.profile, config.stage)
    found = jobs(config, splits)
    results = _train_all(found, cohort, labels, scratch, n_jobs)
    frames, sizes, history, seconds = (
        [probe(config, cohort, splits, labels)],
        _probe_sizes(config, splits, labels),
        [],
        [],
    )
    for job, result in zip(found, results, strict=True):
        about = {"cohort": config.cohort.name, **job.about}
        frames.append(_frame(_key(config, job), result, job.split, labels, cohort))
        history += [{**about, **row} for row in _melted(result)]
        n, epochs = len(job.split.train) // job.recipe.batch_size * job.recipe.batch_size, len(result["epoch"])
        count = sum(p.numel() for p in job.classifier(len(labels.names)).parameters())
        made = {"parameters": count, "trainable": count, "records_seen": n * epochs, "epochs": epochs}
        made |= {"epoch_kept": 1 + int(result["validation"].argmin())}
        sizes += [{**about, "metric": name, "value": value} for name, value in made.items()]
        seconds.append({**about, "seconds": float(result["seconds"])})
    predicted = pd.concat(frames, ignore_index=True)
    predicted = predicted.astype({name: "category" for name in predicted if predicted[name].dtype == object})
    return Trained(predicted, pd.DataFrame(history), pd.DataFrame(sizes), pd.DataFrame(seconds))


def _train_all(found: list[Job], cohort: Cohort, labels: Labels, scratch: Path, n_jobs: int) -> list[Arrays]:
    files, work = [], []
    for job in found:
        x = _inputs(job.starts.input_spec, cohort, scratch)
        parts = [part.tolist() for part in (job.split.train, job.split.val, job.split.test)]
        made_of = [asdict(job.strategy), asdict(job.recipe), job.starts.weights_sha256(), job.split.name, parts]
        file = scratch / f"{fingerprint(*made_of, labels.names, labels.y.tolist(), x.name)}.npz"
        files.append(file)
        if not file.exists():
            work.append(joblib.delayed(_compute)(job, x, labels.y, file))
    done = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(work)
    for _ in progress(done, desc="trainings", total=len(work), unit="training"):
        continue
    return [dict(np.load(file)) for file in files]


def _inputs(spec: InputSpec, cohort: Cohort, scratch: Path) -> Path:
    """Model-ready input of the whole cohort, in a file that all workers map."""
    file = scratch / f"input-{fingerprint(spec.as_dict(), cohort.info, len(cohort))}.npy"
    if not file.exists():
        with atomic(file) as part:
            shape = (len(cohort), len(spec.leads), round(spec.fs * spec.seconds))
            x = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            for rows in np.array_split(np.arange(len(cohort)), -(-len(cohort) // 512)):
                x[rows] = spec.read(cohort, rows)
    return file


def _compute(job: Job, x: Path, y: np.ndarray, file: Path) -> None:
    checkpoint = file.with_suffix(".checkpoint")
    with alone():
        result = fit(job.classifier(y.shape[1]), np.load(x, mmap_mode="r"), y, job.split, job.recipe, checkpoint)
    with atomic(file) as part, part.open("wb") as stream:
        np.savez(stream, **result)  # type: ignore[arg-type]
    checkpoint.unlink(missing_ok=True)


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
        key = predictions.key(config, one, "mean", "logistic", "linear")
        found.append(heads.Job(key, x, "logistic", labels.names, labels.y, labels.rows))
    return heads.out_of_fold(found, splits, cohort.records["record_id"].to_numpy())


def _probe_sizes(config: FinetuneConfig, splits: list[Split], labels: Labels) -> list[dict]:
    encoder, rows = models.load(config.encoder), []
    trainable = len(labels.names) * (encoder.dim + 1)
    for one, split in product(frozen(config), splits):
        names = {"strategy": "linear", "encoder": one.encoder, "weights": one.weights, "split": split.name}
        made = {"parameters": encoder.n_parameters() + trainable, "trainable": trainable}
        made["records_seen"] = len(split.train)
        about = {"cohort": config.cohort.name, **names, "seed": one.seed}
        rows += [{**about, "metric": name, "value": value} for name, value in made.items()]
    return rows


def _key(config: FinetuneConfig, job: Job) -> dict:
    one = Representation(job.strategy.encoder, job.strategy.weights, job.seed)
    key = predictions.key(config, one, job.strategy.pooling, "linear", job.strategy.name)
    return {**key, "contaminated": job.contaminated}


def _frame(key: dict, result: Arrays, split: Split, labels: Labels, cohort: Cohort) -> pd.DataFrame:
    n, n_tasks = result["score"].shape
    columns = {
        "task": np.repeat(np.array(labels.names, object), n),
        "split": split.name,
        "record_id": np.tile(cohort.records["record_id"].to_numpy()[split.test], n_tasks),
        "y": labels.y[split.test].T.ravel().astype(np.int8),
        "score": result["score"].T.ravel(),
        "threshold": np.repeat(result["threshold"], n),
        "setting": np.repeat(result["setting"].astype(object), n),
    }
    return pd.DataFrame({**key, **columns})


def _melted(result: Arrays) -> Iterator[dict]:
    for i, epoch in enumerate(result["epoch"]):
        for metric, name in (("training", "loss"), ("validation", "validation")):
            yield {"epoch": int(epoch), "metric": metric, "value": float(result[name][i])}

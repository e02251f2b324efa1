"""Pre-training on twelve leads, with leads masked, with leads selected, and on one configuration alone; and of a twin.

All see the training records of one split, the same objective, epochs and seed, and differ in the leads they are shown;
the twin is an encoder that mixes all leads in its first layer. No label is read. Where the objective predicts the
median beat, that is the beat of all twelve leads, whatever an encoder is shown. Each training is a job on one thread,
resumable from its last epoch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch

from cure import models, paths
from cure.adapt import input_file
from cure.augment import crop, disturbed
from cure.beats import median_beats
from cure.cohorts.base import Cohort
from cure.leads import Augmentation, Augmented, Kind, configuration
from cure.models import Encoder, leadgrid
from cure.models.base import seeded
from cure.models.leadgrid import LeadGrid
from cure.objectives import OBJECTIVES, Batch, Contrastive, Objective
from cure.paths import atomic
from cure.pretrain import Corpus, beat_targets, no_targets, write_weights
from cure.progress import progress
from cure.settings.leads import LeadsConfig
from cure.settings.pretrain import PretrainConfig
from cure.shards import fingerprint
from cure.splits import Split
from cure.training import Recipe, alone, train

#: Length of a view, of a training crop and of a window that is scored, seconds.
WINDOW_S = 5.0
#: How the weights of a table's rows were pre-trained -> what happened to the leads. Those of one configuration alone
#: are named `alone`.
KINDS: dict[str, Kind] = {"twelve": "none", "masking": "masking", "selection": "selection"}
ALONE = "alone"
#: An encoder that mixes leads, for comparison, and the name of its weights, pre-trained on twelve leads.
MIXING, TWIN = "resnet1d", "twin"


class _Crops(Contrastive):
    """Views are crops, without zeros behind them: the encoder takes any length."""

    def _embedding(self, x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        spec = self.encoder.input_spec
        cropped = crop(x, round(WINDOW_S * spec.fs), rng)
        return self.encoder.embed(disturbed(cropped, spec.fs, spec.unit_mv, rng))


def objective(name: str, encoder: Encoder, augmentation: Augmentation, config: PretrainConfig) -> Objective:
    """Any objective of `cure.objectives` on an encoder that is shown fewer leads.

    What an objective asks for stays what it is: hidden samples of all leads, a teacher's tokens of the whole record.
    """
    kind = OBJECTIVES[name]
    if issubclass(kind, Contrastive):
        kind = type(f"Cropped{kind.__name__}", (_Crops, kind), {})
    return kind(Augmented(encoder, augmentation), config)


def learned(model: Objective) -> Encoder:
    """The encoder to keep, without what dropped its leads."""
    kept = model.learned()
    assert isinstance(kept, Augmented)
    return kept.encoder


@dataclass(frozen=True)
class Job:
    """One pre-training: `weights` names it in tables, `leads` is its configuration."""

    weights: str
    leads: str
    augmentation: Augmentation

    @property
    def name(self) -> str:
        """For bars and files: `selection`, or `alone-3`."""
        return self.weights if self.weights != ALONE else f"{ALONE}-{self.leads}"

    def load(self, weights: str | Path = "random", seed: int = 0) -> Encoder:
        """The encoder, untrained or with the weights of a file."""
        return models.load(MIXING, weights, seed) if self.weights == TWIN else leadgrid.load(weights, seed)


def jobs(config: LeadsConfig) -> list[Job]:
    """Three and the twin on twelve leads, longest first, then one for each smaller configuration.

    Of twelve leads alone is what `twelve` is.
    """
    every = [Job(name, "12", Augmentation(kind, config.per)) for name, kind in KINDS.items()]
    every.append(Job(TWIN, "12", Augmentation("none", config.per)))
    smaller = [name for name in config.configurations if name != "12"]
    return every + [Job(ALONE, name, Augmentation("none", leads=tuple(configuration(name)))) for name in smaller]


def pretrain_all(config: LeadsConfig, cohort: Cohort, split: Split) -> pd.DataFrame:
    """Run what has not been run; see `file` for where the weights are until the stage has succeeded.

    Returns
    -------
    DataFrame
        Loss curves: `weights, leads, n, epoch, metric, value`.
    """
    recipe, todo = config.pretraining, jobs(config)
    corpus = _corpus(config, cohort, split)
    files = [file(config, cohort, split, job.name) for job in todo]
    work = (joblib.delayed(_run)(recipe, corpus, job, target) for job, target in zip(todo, files, strict=True))
    done = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator", max_nbytes="1M")(work)
    for _ in progress(done, desc="pre-training", total=len(todo), unit="run"):
        continue
    frames = [pd.read_parquet(target.with_suffix(".parquet")) for target in files]
    return pd.concat(frames, ignore_index=True).assign(cohort=cohort.name)


def _corpus(config: LeadsConfig, cohort: Cohort, split: Split) -> Corpus:
    """The training records; beats are measured if the objective asks for them."""
    x = input_file(LeadGrid.input_spec, cohort, paths.scratch(config.profile, config.stage))
    measured = OBJECTIVES[config.objective].beats
    beats = median_beats(cohort.resampled(np.arange(len(cohort)), 100), 100) if measured else None
    patient = pd.factorize(cohort.records["patient_id"])[0]
    return Corpus(
        np.load(x, mmap_mode="r"), beats, patient, split.train, f"{cohort.name}, training part of {split.name}"
    )


def file(config: LeadsConfig, cohort: Cohort, split: Split, name: str) -> Path:
    """Weights of one pre-training, in the stage's scratch folder, named after all that made them."""
    made_of = fingerprint(config.pretraining.model_dump(), config.per, split.name, name, cohort.info)
    return paths.scratch(config.profile, config.stage) / f"{name}-{made_of}.safetensors"


def _run(recipe: PretrainConfig, corpus: Corpus, job: Job, target: Path) -> None:
    if target.is_file():
        return
    seed, size = recipe.seeds[0], recipe.batch_size
    with seeded(seed):
        model = objective(recipe.objective, job.load(seed=seed), job.augmentation, recipe)
    measured = model.beats and corpus.beats is not None
    told = beat_targets(corpus.beats, corpus.rows) if measured else no_targets(len(corpus.x))  # type: ignore[arg-type]

    def step(rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        mates = corpus.mates(rows, rng) if model.mates else rows
        x, mate = (torch.from_numpy(np.asarray(corpus.x[some])) for some in (rows, mates))
        values, known = torch.from_numpy(told.values[rows]), torch.from_numpy(told.known[rows])
        return model.losses(Batch(x, mate, torch.from_numpy(corpus.patient[rows]), values, known), rng)

    how = Recipe(recipe.epochs, size, recipe.rate, seed=seed, precision=recipe.precision)
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone():
        checkpoint = target.with_suffix(".checkpoint")
        run = train(model, step, corpus.rows, how, checkpoint, after_step=model.after_step, desc=job.name)
    table = run.history.drop(columns="rate").melt("epoch", var_name="metric")
    table = table.assign(weights=job.weights, leads=job.leads, n=len(corpus.rows))
    with atomic(target.with_suffix(".parquet")) as part:
        table.to_parquet(part)
    with atomic(target) as part:
        shown = {"augmentation": asdict(job.augmentation), "epochs": recipe.epochs, "objective": recipe.objective}
        write_weights(learned(model), part, source=corpus.source, recipe=json.loads(json.dumps(shown)))
    checkpoint.unlink(missing_ok=True)

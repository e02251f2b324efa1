"""Self-supervised pre-training of the in-repo encoder: jobs, corpora, weights.

Two kinds of weights, told apart in every table: `ssl-folds` are trained on the training folds of one outer split, so
that there is an encoder per split and none has seen a record it is tested on; `ssl-simulated` are trained on simulated
ECGs alone and have seen no patient at all. No label is read here.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from cure import models, paths
from cure.augment import view
from cure.beats import MedianBeats, median_beats
from cure.cohorts import synthetic
from cure.cohorts.base import Cohort
from cure.models import Encoder
from cure.models.leadcnn import LeadCNN
from cure.objectives import SelfSupervised, Targets, beat_targets
from cure.paths import atomic
from cure.progress import progress
from cure.settings.pretrain import PretrainConfig
from cure.shards import fingerprint
from cure.simulate import simulate
from cure.splits import Split
from cure.training import Recipe, Step, alone, train

#: Seed of the simulated corpus: two numbers, and a cohort's is one, so no cohort holds its patients.
_CORPUS = (2026, 3)


@dataclass(frozen=True)
class Corpus:
    """What one run learns from: model-ready `(n, 12, n_samples)` float32, its beats, and the rows it may look at."""

    x: np.ndarray
    beats: MedianBeats
    rows: np.ndarray
    source: str


@dataclass(frozen=True)
class Job:
    """One pre-training run: its weights go to `file`."""

    weights: str
    part: str
    seed: int
    corpus: Corpus

    @property
    def name(self) -> str:
        """For progress bars and tables."""
        return f"{self.weights}-{self.seed} {self.part}"


def jobs(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> list[Job]:
    """Every run of a profile: one per seed for `ssl-simulated`, one per outer split and seed for `ssl-folds`.

    The largest corpus comes first: two runs at a time then end at about the same time.
    """
    spec = models.load(config.encoder).input_spec
    found = []
    if "ssl-simulated" in config.weights:
        signals = simulated(config.n_simulated)
        source = f"{config.n_simulated} simulated records"
        corpus = Corpus(spec.apply(signals, 100), median_beats(signals, 100), np.arange(len(signals)), source)
        found += [Job("ssl-simulated", "all", seed, corpus) for seed in config.seeds]
    if "ssl-folds" in config.weights:
        every = np.arange(len(cohort))
        x = spec.read(cohort, every)
        beats = median_beats(cohort.signals(every, 100), 100)
        for split in splits:
            corpus = Corpus(x, beats, split.train, f"{cohort.name}, training part of {split.name}")
            found += [Job("ssl-folds", split.name, seed, corpus) for seed in config.seeds]
    return found


def simulated(n: int) -> np.ndarray:
    """Signals of `n` simulated records of patients that no cohort holds, (n, 12, 1000) float32 mV at 100 Hz."""
    rng = np.random.default_rng(_CORPUS)
    drawn = synthetic.draw_records(n, rng).drop(columns=synthetic.DEMOGRAPHY)
    return simulate(drawn, fs=100, seconds=synthetic.SECONDS, rng=rng).signals


def pretrain_all(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Run what has not been run, several runs at a time, and write the weights.

    Every run is one thread: its result does not depend on how many run beside it. A finished run waits in the scratch
    folder until the whole stage has succeeded, an unfinished one goes on from its last epoch.

    Returns
    -------
    DataFrame
        Loss curves: `weights, part, seed, n, epoch, metric, value, uninformed`; the last is the loss of a network that
        has learned nothing.
    """
    todo = jobs(config, cohort, splits)
    scratch = paths.scratch(config.profile, "pretrain")
    recipe = config.model_dump(exclude={"profile", "weights", "seeds", "n_simulated"})
    keys = [fingerprint(recipe, job.name, len(job.corpus.x), job.corpus.source, cohort.info) for job in todo]
    work = (joblib.delayed(_run)(config, job, scratch / key) for job, key in zip(todo, keys, strict=True))
    done = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator", max_nbytes="1M")(work)
    curves = list(progress(done, desc="pre-training", total=len(todo), unit="run"))
    with atomic(config.weights_folder) as out:
        for job, key in zip(todo, keys, strict=True):
            target = out / f"{config.encoder}-{job.weights}-{job.seed}" / f"{job.part.replace(' ', '-')}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(scratch / key / "weights.safetensors", target)
    return pd.concat(curves, ignore_index=True)


def _run(config: PretrainConfig, job: Job, scratch: Path) -> pd.DataFrame:
    finished, curve = scratch / "weights.safetensors", scratch / "curve.parquet"
    if finished.is_file():
        return pd.read_parquet(curve)
    corpus = job.corpus
    targets = beat_targets(corpus.beats, corpus.rows)
    encoder = models.load(config.encoder, seed=job.seed)
    with models.base.seeded(job.seed):
        model = SelfSupervised(encoder, targets.values.shape[1])
    recipe = Recipe(config.epochs, config.batch_size, config.rate, seed=job.seed)
    step = _step(config, model, corpus, targets)
    with alone():
        run = train(model, step, corpus.rows, recipe, scratch / "checkpoint.pt", desc=job.name)
    history = _tidy(run.history, targets, corpus.rows, config.batch_size)
    history = history.assign(weights=job.weights, part=job.part, seed=job.seed, n=len(corpus.rows))
    with atomic(curve) as part:
        history.to_parquet(part)
    with atomic(finished) as part:
        write_weights(encoder, part, source=corpus.source, recipe=config.model_dump(exclude={"profile"}))
    return history


def _tidy(history: pd.DataFrame, targets: Targets, rows: np.ndarray, batch_size: int) -> pd.DataFrame:
    """One row per epoch and loss. Uninformed: all candidates look alike; every beat is told to be the mean, zero."""
    values = torch.from_numpy(targets.values[rows[targets.known[rows]]])
    beat = torch.nn.functional.smooth_l1_loss(torch.zeros_like(values), values).item()
    uninformed = {"contrast": float(np.log(2 * batch_size - 1)), "beat": beat}
    table = history.melt("epoch", list(uninformed), var_name="metric")
    return table.assign(uninformed=table["metric"].map(uninformed))


def _step(config: PretrainConfig, model: SelfSupervised, corpus: Corpus, targets: Targets) -> Step:
    spec = model.encoder.input_spec

    def step(rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.asarray(corpus.x[rows]))
        views = view(x, spec.fs, spec.unit_mv, rng), view(x, spec.fs, spec.unit_mv, rng)
        values, known = torch.from_numpy(targets.values[rows]), torch.from_numpy(targets.known[rows])
        return model.losses(views, values, known, config.temperature, config.beat_weight)

    return step


def write_weights(encoder: Encoder, file: Path, *, source: str, recipe: dict) -> None:
    """Write a state dict as safetensors; the header says what the weights have seen and how they were trained."""
    about = {
        "architecture": type(encoder).__name__,
        "license": encoder.license,
        "pretraining": source,
        "recipe": recipe,
    }
    state = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    # One entry: safetensors writes several in an order that differs from run to run.
    save_file(state, file, metadata={"about": json.dumps(about, sort_keys=True)})


def weights_table(config: PretrainConfig) -> pd.DataFrame:
    """What was written: file, parameters, SHA-256 of the weights, and what they have seen."""
    rows = []
    for file in sorted(config.weights_folder.glob("*/*.safetensors")):
        encoder = models.load(config.encoder, file)
        about = {"parameters": encoder.n_parameters(), "sha256": encoder.weights_sha256()[:12]}
        rows.append({"weights": f"{file.parent.name}/{file.stem}", **about, "has_seen": "; ".join(encoder.pretraining)})
    return pd.DataFrame(rows)


@torch.inference_mode()
def recognition(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """How often the two halves of a validation record find each other among the halves of all validation records.

    A check that reads no label: 5 s and the following 5 s of one record come from one heart. `value` is the share of
    records whose second half is, by cosine similarity, nearest to the first; `chance` is 1 / n.

    Returns
    -------
    DataFrame
        `encoder, weights, seed, part, metric, value, chance, n`; random weights stand beside the trained ones.
    """
    kinds = [(name, seed) for name in ["random", *config.weights] for seed in config.seeds]
    rows = []
    for split in splits:
        for name, seed in kinds:
            folder = config.weights_folder / f"{config.encoder}-{name}-{seed}"
            file = folder / f"{(split.name if name == 'ssl-folds' else 'all').replace(' ', '-')}.safetensors"
            encoder = models.load(config.encoder, "random" if name == "random" else file, seed)
            x = torch.from_numpy(encoder.input_spec.read(cohort, split.val))
            one, two = (encoder.embed(half) for half in x.chunk(2, dim=2))
            centre = torch.cat([one, two]).mean(dim=0)
            normalise = torch.nn.functional.normalize
            near = normalise(one - centre) @ normalise(two - centre).T
            found = (near.argmax(dim=1) == torch.arange(len(x))).float().mean().item()
            row = {"encoder": config.encoder, "weights": name, "seed": seed, "part": split.name}
            rows.append({**row, "metric": "halves_found", "value": found, "chance": 1 / len(x), "n": len(x)})
    return pd.DataFrame(rows).assign(cohort=cohort.name)


def lead_cost(names: list[str], counts: tuple[int, ...] = (12, 8, 6, 4, 3, 2, 1)) -> pd.DataFrame:
    """Arithmetic of one forward pass over 10 s, counted by torch: what fewer leads save where they can be left out.

    Returns
    -------
    DataFrame
        `encoder, n_leads, parameters, gflops` (a multiplication with addition counts as two). Encoders that mix leads
        in their first layer only take all of them.
    """
    rows = []
    for name in names:
        encoder = models.load(name)
        length = round(encoder.input_spec.fs * encoder.input_spec.seconds)
        every = len(encoder.input_spec.leads)
        for n_leads in [count for count in counts if count == every or isinstance(encoder, LeadCNN)]:
            x = torch.zeros(1, n_leads, length)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                encoder(x, range(n_leads)) if isinstance(encoder, LeadCNN) else encoder(x)
            row = {"encoder": name, "n_leads": n_leads, "parameters": encoder.n_parameters()}
            rows.append({**row, "gflops": counter.get_total_flops() / 1e9})
    return pd.DataFrame(rows)

"""Self-supervised pre-training of an encoder: jobs, corpora, weights.

Two kinds of weights, told apart in every table: `ssl-folds` are trained on the training folds of one outer split, so
that there is an encoder per split and none has seen a record it is tested on; `ssl-simulated` are trained on simulated
ECGs alone and have seen no patient at all. No label is read here.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from torch.utils.flop_counter import FlopCounterMode

from cure import models, paths
from cure.beats import MedianBeats, median_beats
from cure.cohorts import synthetic
from cure.cohorts.base import Cohort
from cure.devices import require_processor
from cure.lengths import require_whole
from cure.models import Encoder, InputSpec
from cure.models.leadcnn import LeadCNN
from cure.objectives import N_TARGETS, OBJECTIVES, Batch, Objective
from cure.paths import atomic
from cure.progress import progress
from cure.settings.pretrain import PretrainConfig
from cure.shards import fingerprint
from cure.simulate import simulate
from cure.splits import Split
from cure.training import Recipe, Step, alone, train

#: Seed of the simulated corpus: two numbers, and a cohort's is one, so no cohort holds its patients.
_CORPUS = (2026, 3)
#: What is told of a record's rhythm and, by principal components, of its median beat; a target is cut off at `LIMIT`.
RHYTHM = ("heart_rate_bpm", "rr_cv", "rr_irregularity", "premature_fraction")
N_COMPONENTS, LIMIT = N_TARGETS - len(RHYTHM), 5.0


@dataclass(frozen=True)
class Targets:
    """What a view has to predict: `(n, 52)` float32 standardised values, and which records have them, `(n,)` bool."""

    values: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Corpus:
    """What one run learns from: records, and the rows it may look at.

    Attributes
    ----------
    x : (n, 12, n_samples) float32 array
        Model-ready; may be memory-mapped.
    beats : MedianBeats or None
        Of all n records, where an objective asks for them.
    patient : (n,) int array
        Equal numbers, equal patients.
    rows : int array
        Training records.
    source : str
        Said in the weights file.
    """

    x: np.ndarray
    beats: MedianBeats | None
    patient: np.ndarray
    rows: np.ndarray
    source: str

    def mates(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each of `rows` another training record of its patient, by chance; itself where there is none."""
        same = self.patient[rows][:, None] == self.patient[self.rows]
        same &= rows[:, None] != self.rows
        drawn = (rng.random(same.shape) * same).argmax(axis=1)
        return np.where(same.any(axis=1), self.rows[drawn], rows)


@dataclass(frozen=True)
class Job:
    """One pre-training run."""

    weights: str
    part: str
    seed: int
    corpus: Corpus
    objective: str
    epochs: int

    @property
    def name(self) -> str:
        """For progress bars and tables."""
        return f"{self.weights}-{self.seed} {self.part}"


def jobs(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> list[Job]:
    """Every run of a profile: one per seed for `ssl-simulated`, one per outer split and seed for `ssl-folds`.

    The largest corpus comes first: two runs at a time then end at about the same time.
    """
    found = []
    how = config.objective, config.epochs
    if "ssl-simulated" in config.weights:
        signals, patient = simulated(config.n_simulated)
        x = models.load(config.encoder).input_spec.apply(signals, 100, first=True)[:, 0]
        beats = median_beats(signals, 100) if OBJECTIVES[config.objective].beats else None
        corpus = Corpus(x, beats, patient, np.arange(len(x)), f"{config.n_simulated} simulated records")
        found += [Job("ssl-simulated", "all", seed, corpus, *how) for seed in config.seeds]
    if "ssl-folds" in config.weights:
        for split, corpus in zip(splits, corpora(config, cohort, splits, [config.objective]), strict=True):
            found += [Job("ssl-folds", split.name, seed, corpus, *how) for seed in config.seeds]
    return found


def corpora(config: PretrainConfig, cohort: Cohort, splits: list[Split], objectives: Iterable[str]) -> list[Corpus]:
    """The training part of each split, all with the same arrays; beats are measured if an objective asks for them."""
    every = np.arange(len(cohort))
    require_whole(models.load(config.encoder).input_spec, cohort, config.stage)
    x = _inputs(models.load(config.encoder).input_spec, cohort, paths.scratch(config.profile, "pretrain"))
    measured = any(OBJECTIVES[name].beats for name in objectives)
    beats = median_beats(cohort.resampled(every, 100), 100) if measured else None
    patient = pd.factorize(cohort.records["patient_id"])[0]
    sources = [f"{cohort.name}, training part of {split.name}" for split in splits]
    return [Corpus(x, beats, patient, split.train, source) for split, source in zip(splits, sources, strict=True)]


def _inputs(spec: InputSpec, cohort: Cohort, scratch: Path) -> np.ndarray:
    """Model-ready input of the whole cohort, memory-mapped: all workers share one copy, and it may exceed memory."""
    file = scratch / f"input-{fingerprint(spec.as_dict(), cohort.info, len(cohort))}.npy"
    if not file.is_file():
        with atomic(file) as part:
            shape = (len(cohort), len(spec.leads), round(spec.fs * spec.seconds))
            x = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            for rows in np.array_split(np.arange(len(cohort)), -(-len(cohort) // 512)):
                x[rows] = spec.read(cohort, rows)
    return np.load(file, mmap_mode="r")


def simulated(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 12, 1000) float32 signals of simulated records in mV at 100 Hz, and their patients, who are in no cohort."""
    rng = np.random.default_rng(_CORPUS)
    drawn = synthetic.draw_records(n, rng).drop(columns=synthetic.DEMOGRAPHY)
    signals = simulate(drawn, fs=100, seconds=synthetic.SECONDS, rng=rng).signals
    return signals, pd.factorize(drawn["patient"])[0]


def pretrain_all(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Run what has not been run, and write the weights.

    A finished run waits in the scratch folder until the whole stage has succeeded.

    Returns
    -------
    DataFrame
        Loss curves: `weights, part, seed, n, epoch, metric, value, uninformed`; the last is the loss of a network that
        has learned nothing.
    """
    todo = jobs(config, cohort, splits)
    folders = run_jobs(config, cohort, todo)
    with atomic(config.weights_folder) as out:
        for job, folder in zip(todo, folders, strict=True):
            target = out / f"{config.encoder}-{job.weights}-{job.seed}" / f"{job.part.replace(' ', '-')}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "weights.safetensors", target)
    return pd.concat([pd.read_parquet(folder / "curve.parquet") for folder in folders], ignore_index=True)


def run_jobs(config: PretrainConfig, cohort: Cohort, todo: list[Job]) -> list[Path]:
    """Run what has not been run, several runs at a time, each one thread: a result does not depend on the others.

    An unfinished run goes on from its last epoch.

    Returns
    -------
    list of Path
        A scratch folder per job: `weights.safetensors`, `curve.parquet`, and `cost.json` with its seconds.
    """
    scratch = paths.scratch(config.profile, "pretrain")
    keys = [
        fingerprint(_recipe(config, job), job.name, len(job.corpus.x), job.corpus.source, cohort.info) for job in todo
    ]
    work = (joblib.delayed(_run)(config, job, scratch / key) for job, key in zip(todo, keys, strict=True))
    done = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator", max_nbytes="1M")(work)
    for _ in progress(done, desc="pre-training", total=len(todo), unit="run"):
        continue
    return [scratch / key for key in keys]


def _recipe(config: PretrainConfig, job: Job) -> dict:
    """The settings that make a run's weights what they are."""
    unused = {"profile", "weights", "seeds", "n_simulated", "families", "families_epochs"}
    return {**config.model_dump(exclude=unused), "objective": job.objective, "epochs": job.epochs}


def _run(config: PretrainConfig, job: Job, scratch: Path) -> None:
    finished = scratch / "weights.safetensors"
    if finished.is_file():
        return
    require_processor(job.name)
    corpus, batch_size = job.corpus, config.batch_size
    encoder = models.load(config.encoder, seed=job.seed)
    with models.base.seeded(job.seed):
        model = OBJECTIVES[job.objective](encoder, config)
    targets = (
        beat_targets(corpus.beats, corpus.rows)
        if model.beats and corpus.beats is not None
        else no_targets(len(corpus.x))
    )
    recipe = Recipe(job.epochs, batch_size, config.rate, seed=job.seed, precision=config.precision)
    with alone():
        few = _batch(corpus, targets, corpus.rows[:batch_size], corpus.rows[:batch_size])
        with torch.inference_mode():
            uninformed = model.uninformed(replace(few, **_told(targets, corpus.rows)))
        step = _step(model, corpus, targets)
        run = train(
            model, step, corpus.rows, recipe, scratch / "checkpoint.pt", after_step=model.after_step, desc=job.name
        )
    table = run.history.melt("epoch", list(uninformed), var_name="metric")
    table = table.assign(uninformed=table["metric"].map(uninformed))
    table = table.assign(weights=job.weights, part=job.part, seed=job.seed, n=len(corpus.rows))
    with atomic(scratch / "curve.parquet") as part:
        table.to_parquet(part)
    with atomic(scratch / "cost.json") as part:
        part.write_text(json.dumps({"seconds": run.seconds, "core_seconds": run.core_seconds}))
    with atomic(finished) as part:
        write_weights(model.learned(), part, source=corpus.source, recipe=_recipe(config, job))


def _step(model: Objective, corpus: Corpus, targets: Targets) -> Step:
    def step(rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        mates = corpus.mates(rows, rng) if model.mates else rows
        return model.losses(_batch(corpus, targets, rows, mates), rng)

    return step


def _batch(corpus: Corpus, targets: Targets, rows: np.ndarray, mates: np.ndarray) -> Batch:
    x = torch.from_numpy(np.asarray(corpus.x[rows]))
    mate = x if mates is rows else torch.from_numpy(np.asarray(corpus.x[mates]))
    return Batch(x, mate, torch.from_numpy(corpus.patient[rows]), **_told(targets, rows))


def _told(targets: Targets, rows: np.ndarray) -> dict[str, torch.Tensor]:
    return {"values": torch.from_numpy(targets.values[rows]), "known": torch.from_numpy(targets.known[rows])}


def no_targets(n: int) -> Targets:
    """Of n records, none of which has any."""
    return Targets(np.zeros((n, N_TARGETS), np.float32), np.zeros(n, bool))


def beat_targets(beats: MedianBeats, train: np.ndarray) -> Targets:
    """Compress the median beats and standardise; components, means and spreads come from the training records only.

    Parameters
    ----------
    beats : MedianBeats
        Of all records. A record without a median beat has no target; a flat lead counts as zero.
    train : int array
        Row positions that the components are fitted on; with too few for all components, the rest are zero.
    """
    rhythm = beats.rhythm[list(RHYTHM)].to_numpy(np.float64)
    shape = beats.beats.reshape(len(beats.beats), -1)
    known = np.isfinite(shape).any(axis=1) & np.isfinite(rhythm).all(axis=1)
    fitted = train[known[train]]
    shape = np.nan_to_num(shape)
    pca = PCA(min(N_COMPONENTS, len(fitted) - 1), svd_solver="full", whiten=True).fit(shape[fitted])
    mean, spread = rhythm[fitted].mean(axis=0), rhythm[fitted].std(axis=0) + 1e-9
    missing = np.zeros((len(shape), N_COMPONENTS - pca.n_components_))
    values = np.concatenate([pca.transform(shape), missing, (rhythm - mean) / spread], axis=1)
    values = np.where(known[:, None], values, 0.0).clip(-LIMIT, LIMIT)
    return Targets(values.astype(np.float32), known)


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
            one, two = (torch.cat([_half(encoder, part, i) for part in x.split(64)]) for i in (0, 1))
            centre = torch.cat([one, two]).mean(dim=0)
            normalise = torch.nn.functional.normalize
            near = normalise(one - centre) @ normalise(two - centre).T
            found = (near.argmax(dim=1) == torch.arange(len(x))).float().mean().item()
            row = {"encoder": config.encoder, "weights": name, "seed": seed, "part": split.name}
            rows.append({**row, "metric": "halves_found", "value": found, "chance": 1 / len(x), "n": len(x)})
    return pd.DataFrame(rows).assign(cohort=cohort.name)


def _half(encoder: Encoder, x: torch.Tensor, i: int) -> torch.Tensor:
    """Embedding of one half of each record; with zeros behind it where the encoder may need a whole one."""
    half = x.chunk(2, dim=2)[i]
    if not isinstance(encoder, LeadCNN):
        half = torch.nn.functional.pad(half, (0, x.shape[2] - half.shape[2]))
    return encoder.embed(half)


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

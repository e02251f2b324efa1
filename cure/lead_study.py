"""One encoder on fewer leads: every pre-training under every pooling on every configuration, frozen and fine-tuned.

What is compared: weights pre-trained on twelve leads, with leads masked, with leads selected, and on one configuration
alone; read through adaptive pooling (missing leads are not there) or fixed pooling (missing leads are zeros). Controls
are the untrained encoder, hand-crafted features of the same leads, and on twelve leads an encoder that mixes them.
Heads are chosen on validation records, test records of the first outer split are scored once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cure import adapt, lead_training, models, paths, predictions
from cure.adapt import Classifier, input_file
from cure.cohorts.base import Cohort
from cure.embed import FEATURES
from cure.evaluate import MIN_POSITIVES
from cure.features import ecg_features
from cure.heads import fit_head
from cure.lead_training import ALONE, KINDS, MIXING, TWIN, WINDOW_S
from cure.leads import OnLeads, complete, configuration, fewer
from cure.models import Encoder, leadgrid
from cure.models.leadgrid import LeadGrid
from cure.paths import atomic
from cure.progress import progress
from cure.settings.leads import LeadsConfig
from cure.shards import Arrays, fingerprint
from cure.splits import Split
from cure.tasks import Labels
from cure.training import Recipe, alone

ENCODER = "leadgrid"
#: What fine-tuning is compared on: weights and pooling.
TUNED = (("twelve", "fixed"), ("masking", "fixed"), ("selection", "adaptive"), (ALONE, "adaptive"))


@dataclass(frozen=True)
class Unit:
    """One representation on one configuration, under all heads; or one fine-tuning, if `strategy` says so.

    `weights` is a key of `KINDS`, `alone`, `twin`, `random`, or `none` for hand-crafted features.
    """

    weights: str
    pooling: str
    leads: str
    strategy: str = "frozen"

    @property
    def trained(self) -> str:
        """The pre-training that its weights are from; of all twelve leads alone is what `twelve` is."""
        if self.weights == ALONE:
            return "twelve" if self.leads == "12" else f"{ALONE}-{self.leads}"
        return self.weights

    @property
    def same(self) -> "Unit":
        """The unit that has the same result by construction: on twelve leads both poolings are one function."""
        whole = self.leads == "12"
        pooling = "adaptive" if whole and self.pooling != "none" else self.pooling
        return Unit("twelve" if whole and self.weights == ALONE else self.weights, pooling, self.leads, self.strategy)


def units(config: LeadsConfig) -> list[Unit]:
    """Everything that is scored, the fine-tuned last."""
    methods = [*product(KINDS, ("fixed", "adaptive")), (ALONE, "adaptive"), ("random", "adaptive"), ("none", "none")]
    frozen = [Unit(weights, pooling, leads) for (weights, pooling), leads in product(methods, config.configurations)]
    frozen.append(Unit(TWIN, "none", "12"))
    return frozen + [Unit(*method, leads, "full") for method, leads in product(TUNED, config.tuned)]


def labels(config: LeadsConfig, cohort: Cohort, split: Split) -> Labels:
    """The binary tasks with both classes among the training records and enough of both among the test records."""
    found = predictions.fittable(cohort.binary(), [split])
    n_pos = found.y[split.test].sum(axis=0)
    enough = np.minimum(n_pos, len(split.test) - n_pos) >= MIN_POSITIVES
    return Labels(
        [name for name, keep in zip(found.names, enough, strict=True) if keep], found.y[:, enough], found.rows
    )


def run(config: LeadsConfig, cohort: Cohort, split: Split) -> pd.DataFrame:
    """Score every unit; what `cure.lead_training.pretrain_all` made has to be there.

    An interrupted run goes on: what is finished is a file in the stage's scratch folder.

    Returns
    -------
    DataFrame
        Test scores in the columns of `cure.predictions`.
    """
    tasks, every = labels(config, cohort, split), units(config)
    scratch = paths.scratch(config.profile, config.stage)
    x = input_file(LeadGrid.input_spec, cohort, scratch)
    wanted = list(dict.fromkeys(unit.same for unit in every))
    # The longest first, so that workers end together.
    wanted.sort(key=lambda unit: (unit.strategy == "frozen", unit.pooling == "adaptive" and unit.leads != "12"))
    files = {unit: scratch / f"{_name(config, cohort, split, tasks, unit)}.npz" for unit in wanted}
    work = [joblib.delayed(_compute)(config, cohort, split, tasks, unit, x, files[unit]) for unit in wanted]
    done = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator_unordered", max_nbytes="1M")(work)
    for _ in progress(done, desc="lead configurations", total=len(work), unit="fit"):
        continue
    frames = [_frame(config, cohort, split, tasks, unit, dict(np.load(files[unit.same]))) for unit in every]
    found = pd.concat(frames, ignore_index=True)
    return found.astype({name: "category" for name in found if found[name].dtype == object})


def _name(config: LeadsConfig, cohort: Cohort, split: Split, tasks: Labels, unit: Unit) -> str:
    tuned = (config.tuned_epochs, *config.tuned_rates) if unit.strategy == "full" else ()
    weights = None
    if unit.trained not in ("random", "none"):
        weights = lead_training.file(config, cohort, split, unit.trained).name
    return fingerprint(unit.__dict__, weights, tasks.names, split.name, cohort.info, config.seed, tuned)


def encoder(config: LeadsConfig, cohort: Cohort, split: Split, unit: Unit) -> Encoder:
    """The encoder of a unit, with its weights and pooling."""
    if unit.weights == TWIN:
        return models.load(MIXING, lead_training.file(config, cohort, split, TWIN))
    random = unit.trained == "random"
    weights = "random" if random else lead_training.file(config, cohort, split, unit.trained)
    return leadgrid.load(weights, config.seed, "fixed" if unit.pooling == "fixed" else "adaptive")


def _compute(
    config: LeadsConfig, cohort: Cohort, split: Split, tasks: Labels, unit: Unit, x: Path, target: Path
) -> None:
    if target.is_file():
        return
    with alone():
        if unit.strategy == "full":
            result = _tuned(config, cohort, split, tasks, unit, np.load(x, mmap_mode="r"), target)
        elif unit.weights == "none":
            result = probed(hand_crafted(cohort, configuration(unit.leads)), tasks.y, split)
        else:
            model = encoder(config, cohort, split, unit)
            z = embedded(model, np.load(x, mmap_mode="r"), configuration(unit.leads))
            result = probed(z, tasks.y, split)
    with atomic(target) as part, part.open("wb") as stream:
        np.savez(stream, **result)  # type: ignore[arg-type]
    target.with_suffix(".checkpoint").unlink(missing_ok=True)


def takes_all(model: Encoder) -> bool:
    """Whether an encoder needs twelve leads, so that missing ones are zeros."""
    return not (isinstance(model, LeadGrid) and model.pooling == "adaptive")


def given(model: Encoder, x: np.ndarray, leads: list[int]) -> np.ndarray:
    """What an encoder is fed of (n, 12, n_samples) input: some of its leads, or twelve with zeros for the others."""
    return complete(x, leads, "zero-fill") if takes_all(model) else np.ascontiguousarray(x[:, leads])


class Windowed(Encoder):
    """An encoder that reads a record in windows as long as training's crops: their tokens one after the other.

    Parameters
    ----------
    encoder : Encoder
    leads : list of int
        Which leads its input holds; an encoder that `takes_all` has twelve, zeros in the place of others.
    """

    def __init__(self, encoder: Encoder, leads: list[int]):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim
        self.input_spec = encoder.input_spec
        self.leads = None if takes_all(encoder) else leads
        self.length = round(WINDOW_S * encoder.input_spec.fs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) to (n, tokens, dim); what is left behind the last whole window is not read."""
        windows = [x[..., i : i + self.length] for i in range(0, x.shape[2] - self.length + 1, self.length)]
        extra = () if self.leads is None else (self.leads,)
        return torch.cat([self.encoder(window, *extra) for window in windows], dim=1)


@torch.inference_mode()
def embedded(model: Encoder, x: np.ndarray, leads: list[int], batch_size: int = 64) -> np.ndarray:
    """Embeddings of all records from some leads, (n, dim) float32: the mean over the tokens of `Windowed`.

    Parameters
    ----------
    model : Encoder
    x : (n, 12, n_samples) float32 array
        Model-ready; may be memory-mapped.
    leads : list of int
    batch_size : int
    """
    reader, parts = Windowed(model, leads), []
    for start in range(0, len(x), batch_size):
        batch = given(model, np.asarray(x[start : start + batch_size]), leads)
        parts.append(reader.embed(torch.from_numpy(batch)))
    return torch.cat(parts).numpy()


def hand_crafted(cohort: Cohort, leads: list[int]) -> np.ndarray:
    """Hand-crafted features of some leads, (n, n_features) float32; the dependent limb leads are computed.

    What needs a lead that is not there is missing, and a head imputes it.
    """
    part = fewer(cohort, leads, "reconstruct")
    return ecg_features(part.resampled(np.arange(len(part)), 100), 100, n_jobs=1).to_numpy(np.float32)


def probed(x: np.ndarray, y: np.ndarray, split: Split) -> Arrays:
    """A logistic head for each task: `score` (n_test, n_tasks), `threshold` and `setting` (n_tasks,)."""
    fits = [fit_head("logistic", x, task, split) for task in y.T]
    return {
        "score": np.stack([fit.score(x[split.test]) for fit in fits], axis=1).astype(np.float32),
        "threshold": np.array([fit.threshold for fit in fits], np.float32),
        "setting": np.array([fit.setting for fit in fits]),
    }


def classifier(model: Encoder, leads: list[int], n_tasks: int) -> Classifier:
    """The network that is fine-tuned: the encoder on its leads, and a linear head that starts at zero."""
    some = OnLeads(model, leads) if isinstance(model, LeadGrid) and not takes_all(model) else model
    return Classifier(some, "mean", n_tasks, WINDOW_S)


def _tuned(
    config: LeadsConfig, cohort: Cohort, split: Split, tasks: Labels, unit: Unit, x: np.ndarray, target: Path
) -> Arrays:
    leads, rates = configuration(unit.leads), config.tuned_rates
    make = lambda: classifier(encoder(config, cohort, split, unit), leads, len(tasks.names))  # noqa: E731
    recipe = Recipe(config.tuned_epochs, config.batch_size, rates[0], seed=config.seed)
    mine = given(encoder(config, cohort, split, unit), np.asarray(x), leads)
    found = adapt.choose(make, rates, mine, tasks.y, split, recipe, target.with_suffix(".checkpoint"))
    return {name: found[name] for name in ("score", "threshold", "setting")}


def _key(config: LeadsConfig, unit: Unit) -> dict:
    """Columns that say what a unit's predictions are of."""
    features = unit.weights == "none"
    return {
        "cohort": config.cohort.name,
        "protocol": "sound",
        "encoder": FEATURES if features else MIXING if unit.weights == TWIN else ENCODER,
        "weights": unit.weights,
        "pooling": unit.pooling,
        "head": "linear" if unit.strategy == "full" else "logistic",
        "strategy": unit.strategy,
        "leads": unit.leads,
        "fraction": np.float32(1),
        "seed": np.int16(config.seed),
        "contaminated": "no",
    }


def _frame(
    config: LeadsConfig, cohort: Cohort, split: Split, tasks: Labels, unit: Unit, result: Arrays
) -> pd.DataFrame:
    return rows(_key(config, unit), result, cohort, split, tasks)


def rows(key: dict, result: Arrays, cohort: Cohort, split: Split, tasks: Labels) -> pd.DataFrame:
    """Test scores of one unit in the columns of `cure.predictions`."""
    n = len(split.test)
    columns = {
        "task": np.repeat(np.array(tasks.names, object), n),
        "split": split.name,
        "record_id": np.tile(cohort.records["record_id"].to_numpy()[split.test], len(tasks.names)),
        "y": tasks.y[split.test].T.ravel().astype(np.int8),
        "score": result["score"].T.ravel(),
        "threshold": np.repeat(result["threshold"], n),
        "setting": np.repeat(result["setting"].astype(object), n),
    }
    return pd.DataFrame({**key, **columns})


def keep_weights(config: LeadsConfig, cohort: Cohort, split: Split) -> pd.DataFrame:
    """Copy the pre-trained weights to the stage's output, for readers, and say what they are."""
    about = []
    with atomic(config.output / "weights") as folder:
        folder.mkdir(parents=True)
        for job in lead_training.jobs(config):
            made = lead_training.file(config, cohort, split, job.name)
            (folder / f"{job.name}.safetensors").write_bytes(made.read_bytes())
            one, name = job.load(made), MIXING if job.weights == TWIN else ENCODER
            row = {"encoder": name, "weights": job.weights, "leads": job.leads, "parameters": one.n_parameters()}
            about.append({**row, "sha256": one.weights_sha256()[:12], "has_seen": "; ".join(one.pretraining)})
    return pd.DataFrame(about)


def recorded(cohort: Cohort, chunk: int = 512) -> Iterator[np.ndarray]:
    """Absolute difference, in microvolts, of the recorded dependent limb leads to those computed from I and II."""
    for part in np.array_split(np.arange(len(cohort)), -(-len(cohort) // chunk)):
        x = cohort.signals(part, cohort.rates[0])
        yield 1000 * np.abs(complete(x, (0, 1), "reconstruct")[:, 2:6] - x[:, 2:6])


def reconstruction(cohort: Cohort) -> pd.DataFrame:
    """How far recorded III, aVR, aVL and aVF are from what follows from I and II, in microvolts.

    Returns
    -------
    DataFrame
        `cohort, lead, metric, value, n`: largest and 99.9th percentile of the differences of all samples.
    """
    found = np.concatenate(list(recorded(cohort)))
    table = []
    for i, lead in enumerate(("III", "aVR", "aVL", "aVF")):
        values = {"largest": found[:, i].max(), "p99.9": np.quantile(found[:, i], 0.999)}
        base = {"cohort": cohort.name, "lead": lead, "n": len(cohort)}
        table += [{**base, "metric": name, "value": float(value)} for name, value in values.items()]
    return pd.DataFrame(table)

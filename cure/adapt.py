"""How a network is trained on a split: random crops, what validation chooses, one score for every test record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from cure.cohorts.base import Cohort
from cure.devices import device_of, share
from cure.errors import CureError
from cure.heads import best_threshold, fit_head
from cure.lengths import require_whole
from cure.models import Encoder, InputSpec
from cure.networks import Classifier, Network
from cure.paths import atomic
from cure.shards import Arrays, fingerprint
from cure.splits import Split
from cure.training import Recipe, Run, train


@torch.inference_mode()
def frozen_tokens(encoder: Encoder, x: np.ndarray, keep: Callable[[slice, np.ndarray], None]) -> None:
    """Hand the tokens of all records to `keep`, batch by batch, (n, t, dim) float16.

    Half precision has eleven bits of mantissa: three more than the products of a training step.

    Raises
    ------
    CureError
        If a token is not finite or does not fit into half precision.
    """
    for start in range(0, len(x), 64):
        rows = slice(start, min(start + 64, len(x)))
        found = encoder(torch.from_numpy(np.array(x[rows]))).numpy()
        if not np.abs(found).max() < np.finfo(np.float16).max:
            raise CureError(
                f"{type(encoder).__name__}: a token of records {rows.start} to {rows.stop - 1} is not finite"
            )
        keep(rows, found.astype(np.float16))


def crops(x: np.ndarray, rows: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random window of each record: (n_records, n_leads, n_samples) and n rows to (n, n_leads, length)."""
    starts = rng.integers(0, x.shape[-1] - length + 1, len(rows))
    return np.lib.stride_tricks.sliding_window_view(x, length, axis=-1)[rows, :, starts]


@torch.inference_mode()
def logits(model: nn.Module, x: np.ndarray, rows: np.ndarray, length: int | None, batch_size: int) -> np.ndarray:
    """Mean of the logits over the fewest windows that cover a record evenly, (len(rows), n_tasks) float32.

    With `length` None the model takes what `x` holds of a record whole.
    """
    return _averaged(model, device_of(model), x, rows, length, batch_size)


def _averaged(
    apply: Callable[[Tensor], Tensor],
    device: torch.device,
    x: np.ndarray,
    rows: np.ndarray,
    length: int | None,
    batch_size: int,
) -> np.ndarray:
    n_samples = x.shape[-1] if length is None else x.shape[-1] - length
    starts = [0] if length is None else np.linspace(0, n_samples, -(-x.shape[-1] // length)).round().astype(int)
    parts = []
    for first in range(0, len(rows), batch_size):
        batch = torch.from_numpy(x[rows[first : first + batch_size]]).to(device)
        windows = [batch if length is None else batch[..., start : start + length] for start in starts]
        parts.append(torch.stack([apply(window) for window in windows]).mean(dim=0))
    return torch.cat(parts).float().cpu().numpy()


@dataclass(frozen=True)
class Tuned:
    """One training: what came of all, and before that, where there was a preview, of the head alone."""

    rate: float
    run: Run
    preview: Run | None

    @property
    def lowest(self) -> float:
        """The lowest value of what decides."""
        return float(self.run.history["validation"].min())

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.run.seconds + (self.preview.seconds if self.preview else 0.0)


def fit(model: Network, x: np.ndarray, y: np.ndarray, split: Split, recipe: Recipe, checkpoint: Path) -> Arrays:
    """Train on the training records of a split, choose on its validation records, score its test records once.

    Parameters
    ----------
    model : Classifier or AttentiveProbe
        Trained in place.
    x : (n_records, n_leads, n_samples) float32 array
        Model-ready input; may be memory-mapped. For the probe (n_records, t, dim) tokens.
    y : (n_records, n_tasks) bool array
    split : Split
    recipe : Recipe
    checkpoint : Path
        See `cure.training.train`.

    Returns
    -------
    dict of arrays
        `score` (n_test, n_tasks) float32, `threshold` and `setting` (n_tasks,), `epoch`, `loss` and `validation` (loss;
        one per epoch), `rate`, `lowest` (of what decides), `epochs`, `kept` and `previewed` (epochs of the head alone;
        one per learning rate), `judged_by`, `seconds`.
    """
    return _scored(model, x, y, split, recipe, [_tuned(model, x, y, split, recipe, checkpoint)], 0)


def choose(
    make: Callable[[], Network],
    rates: Sequence[float],
    x: np.ndarray,
    y: np.ndarray,
    split: Split,
    recipe: Recipe,
    checkpoint: Path,
    *,
    refit: bool = False,
) -> Arrays:
    """As `fit`, with a new network from `make` for every learning rate; the lowest validation loss decides.

    Checkpoints are named after `checkpoint`, one for each rate. With `refit` a logistic head is fitted on the read-out
    of the network that is kept, a diagnostic of how far its own head lags behind: `refit_score`, `refit_threshold` and
    `refit_setting` are of it.
    """
    runs: list[Tuned] = []
    best, at = make(), 0
    for i, rate in enumerate(rates):
        model, file = make(), checkpoint.with_suffix(f".{i}.checkpoint")
        runs.append(_tuned(model, x, y, split, replace(recipe, rate=rate), file))
        if i == 0 or runs[i].lowest < runs[at].lowest:
            best, at = model, i
    found = _scored(best, x, y, split, recipe, runs, at)
    return found | _refitted(best, x, y, split, recipe.batch_size) if refit else found


def _tuned(model: Network, x: np.ndarray, y: np.ndarray, split: Split, recipe: Recipe, checkpoint: Path) -> Tuned:
    target = torch.from_numpy(y.astype(np.float32))

    def step(rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        batch = x[rows] if model.window is None else crops(x, rows, model.window, rng)
        inputs, wanted = share(batch, target[rows])
        return {"loss": bce(model(inputs), wanted)}

    def validate() -> float | dict[str, float]:
        found = logits(model, x, split.val, model.window, recipe.batch_size)
        loss = float(bce(torch.from_numpy(found), target[split.val]))
        if model.judged_by == "loss":
            return loss
        return {"validation": 1 - macro_auroc(y[split.val], found, split.name), "validation loss": loss}

    desc, first = f"{model.title}, {split.name}", None
    if isinstance(model, Classifier) and model.preview is not None:
        alone = replace(recipe, epochs=model.preview.epochs, rate=model.preview.rate)
        file = checkpoint.with_name(f"{checkpoint.stem}.preview.checkpoint")
        with model.head_only():
            first = train(model, step, split.train, alone, file, validate=validate, desc=f"{desc}, head")
    run = train(model, step, split.train, recipe, checkpoint, validate=validate, scales=model.scales, desc=desc)
    model.eval()
    return Tuned(recipe.rate, run, first)


def macro_auroc(y: np.ndarray, score: np.ndarray, where: str) -> float:
    """AUROC averaged over the tasks that have both classes, (n, n_tasks) labels and scores.

    Raises
    ------
    CureError
        If there is none.
    """
    both = np.flatnonzero(y.any(axis=0) & ~y.all(axis=0))
    if not len(both):
        raise CureError(f"{where}: no task has both classes among the validation records: set `judged_by` to loss")
    return float(np.mean([roc_auc_score(y[:, task], score[:, task]) for task in both]))


def _scored(
    model: Network,
    x: np.ndarray,
    y: np.ndarray,
    split: Split,
    recipe: Recipe,
    runs: list[Tuned],
    at: int,
) -> Arrays:
    """What is kept of a search over learning rates whose run number `at` left `model`."""
    parts = (logits(model, x, rows, model.window, recipe.batch_size) for rows in (split.val, split.test))
    chosen, score = (1 / (1 + np.exp(-part.astype(np.float64))) for part in parts)
    thresholds = [best_threshold(y[split.val, task], chosen[:, task]) for task in range(y.shape[1])]
    history = runs[at].run.history
    loss = history["validation" if model.judged_by == "loss" else "validation loss"]
    kept = [1 + int(one.run.history["validation"].argmin()) for one in runs]
    return {
        "score": score.astype(np.float32),
        "threshold": np.array(thresholds, np.float32),
        "setting": np.array([f"rate={runs[at].rate:g}, epoch={kept[at]}"] * y.shape[1]),
        "seconds": np.float64(sum(one.seconds for one in runs)),
        "rate": np.array([one.rate for one in runs]),
        "lowest": np.array([one.lowest for one in runs]),
        "epochs": np.array([len(one.run.history) for one in runs]),
        "previewed": np.array([len(one.preview.history) if one.preview else 0 for one in runs]),
        "kept": np.array(kept),
        "chosen": np.int64(at),
        "judged_by": np.array("validation" if model.judged_by == "loss" else "1 - macro AUROC"),
        "epoch": history["epoch"].to_numpy(),
        "loss": history["loss"].to_numpy(),
        "validation": loss.to_numpy(),
    }


def _refitted(model: Network, x: np.ndarray, y: np.ndarray, split: Split, batch_size: int) -> Arrays:
    """Scores of logistic heads on the read-out of a trained classifier, its encoder as it is now."""
    if not isinstance(model, Classifier):
        raise CureError(f"{model.title}: only a classifier's read-out can be given a new head")
    rows = [np.unique(split.train), split.val, split.test]  # a small sample holds its records several times
    parts = Split(split.name, *np.split(np.arange(sum(map(len, rows))), np.cumsum([len(one) for one in rows])[:2]))
    every = np.concatenate(rows)
    with torch.inference_mode():
        z = _averaged(model.read_out, device_of(model), x, every, model.window, batch_size)
    heads = [fit_head("logistic", z, task, parts) for task in y[every].T]
    return {
        "refit_score": np.stack([head.score(z[parts.test]) for head in heads], axis=1).astype(np.float32),
        "refit_threshold": np.array([head.threshold for head in heads], np.float32),
        "refit_setting": np.array([head.setting for head in heads]),
    }


def input_file(spec: InputSpec, cohort: Cohort, scratch: Path) -> Path:
    """Model-ready input of the whole cohort, the first window of each record, in a file that all workers map.

    Raises
    ------
    CureError
        If a record does not fill a window.
    """
    require_whole(spec, cohort, "finetune")
    file = scratch / f"input-{fingerprint(spec.as_dict(), cohort.info, len(cohort))}.npy"
    if not file.exists():
        with atomic(file) as part:
            shape = (len(cohort), len(spec.leads), round(spec.fs * spec.seconds))
            x = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            for rows in np.array_split(np.arange(len(cohort)), -(-len(cohort) // 512)):
                x[rows] = spec.read(cohort, rows)
    return file


def token_file(encoder: Encoder, x: Path) -> Path:
    """Tokens of the whole cohort, computed once for each encoder, in a file that all workers map."""
    file = x.with_name(f"tokens-{encoder.weights_sha256()[:16]}-{x.name}")
    if not file.exists():
        signals = np.load(x, mmap_mode="r")
        with torch.inference_mode():
            shape = encoder(torch.from_numpy(signals[:1].copy())).shape[1:]
        with atomic(file) as part:
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(len(signals), *shape))
            frozen_tokens(encoder, signals, out.__setitem__)
    return file

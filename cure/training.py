"""One training loop for everything that is trained by gradient: AdamW, warm-up and cosine, resumable.

An epoch's order, crops and noise come from a generator seeded by (seed, epoch) alone, so a run that was killed goes on
from its last whole epoch and ends with the weights of an uninterrupted one.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cure.errors import CureError
from cure.models.base import one_thread, seeded
from cure.paths import atomic
from cure.progress import TERMINAL, progress

Precision = Literal["float32", "bfloat16"]
#: One step's losses by name, `loss` being what is minimised; takes row positions and the epoch's generator.
Step = Callable[[np.ndarray, np.random.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes
    ----------
    epochs, batch_size : int
        A last, smaller batch of an epoch is dropped: batch statistics and contrast need a full one.
    rate : float
        Peak learning rate: linear warm-up over the first `warmup` of all steps, then a cosine to zero.
    weight_decay : float
        Of matrices and filters; biases and the scales of normalisations are not decayed.
    patience : int or None
        Epochs without a better validation loss after which training stops; None: never.
    precision : {"float32", "bfloat16"}
        Of the products in a step. bfloat16 is 1.7 times faster where the processor has instructions for it, and three
        times slower where it has not.
    """

    epochs: int
    batch_size: int
    rate: float
    weight_decay: float = 0.02
    warmup: float = 0.05
    clip: float = 1.0
    patience: int | None = None
    seed: int = 0
    precision: Precision = "float32"


@dataclass(frozen=True)
class Run:
    """What a training left behind.

    Attributes
    ----------
    history : DataFrame
        One row per epoch: `epoch`, the mean of each loss, `rate` at its end, and `validation` where there is one.
    seconds, core_seconds : float
        Time spent in training steps and validation, and processor time of this process in it; all resumed parts
        together.
    """

    history: pd.DataFrame
    seconds: float
    core_seconds: float


def train(
    model: nn.Module,
    step: Step,
    rows: np.ndarray,
    recipe: Recipe,
    checkpoint: Path,
    *,
    validate: Callable[[], float] | None = None,
    after_step: Callable[[], None] | None = None,
    scales: Mapping[str, float] | None = None,
    desc: str = "training",
) -> Run:
    """Train in place; with `validate`, the weights of the epoch with the lowest validation loss are what remains.

    Parameters
    ----------
    model : nn.Module
        Everything that is trained: what does not require a gradient stays as it is.
    step : callable
        Losses of a batch; called in training mode under autocast to the recipe's precision.
    rows : int array
        Row positions of the training records.
    recipe : Recipe
    checkpoint : Path
        File that holds the state after each epoch; removed by the caller when what came of it is safe.
    validate : callable, optional
        Validation loss, lower is better; called in evaluation mode without gradients.
    after_step : callable, optional
        Called after each step of the optimiser. What it changes must be in the model's state to survive a resume.
    scales : mapping of str to float, optional
        Share of the recipe's rate that parameters of these names learn with; all others learn with the whole.
    desc : str
        What the progress bar says.

    Raises
    ------
    CureError
        If there are fewer records than a batch, or a loss is not finite: names the epoch.
    """
    n_batches = len(rows) // recipe.batch_size
    if not n_batches:
        raise CureError(f"{desc}: {len(rows)} training records are fewer than a batch of {recipe.batch_size}")
    optimizer = _optimizer(model, recipe, scales or {})
    state = _resume(checkpoint, model, optimizer)
    history, best, seconds, core_seconds = (state[name] for name in ("history", "best", "seconds", "core_seconds"))
    total = recipe.epochs * n_batches
    for epoch in progress(range(len(history), recipe.epochs), desc=desc, unit="epoch"):
        if recipe.patience is not None and _stale(history) >= recipe.patience:
            break
        start, core_start = time.perf_counter(), time.process_time()
        rng = np.random.default_rng([recipe.seed, epoch])
        sums: dict[str, float] = {}
        model.train()
        with seeded(int(rng.integers(2**31))):
            for i, batch in enumerate(np.split(rng.permutation(rows)[: n_batches * recipe.batch_size], n_batches)):
                for group in optimizer.param_groups:
                    group["lr"] = (
                        group["scale"] * recipe.rate * _schedule((epoch * n_batches + i + 1) / total, recipe.warmup)
                    )
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    losses = step(batch, rng)
                if not torch.isfinite(losses["loss"]):
                    raise CureError(f"{desc}: the loss of epoch {epoch + 1} is not finite; lower the learning rate")
                optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                if after_step is not None:
                    after_step()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / n_batches
        row = {"epoch": epoch + 1, **sums, "rate": max(group["lr"] for group in optimizer.param_groups)}
        if validate is not None:
            model.eval()
            with torch.inference_mode():
                row["validation"] = validate()
            if row["validation"] < min((past["validation"] for past in history), default=math.inf):
                best = copy.deepcopy(model.state_dict())
        history.append(row)
        seconds += time.perf_counter() - start
        core_seconds += time.process_time() - core_start
        spent = {"seconds": seconds, "core_seconds": core_seconds}
        _save(checkpoint, model, optimizer, {"history": history, "best": best, **spent})
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return Run(pd.DataFrame(history), seconds, core_seconds)


def _optimizer(model: nn.Module, recipe: Recipe, scales: Mapping[str, float]) -> torch.optim.AdamW:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for scale in sorted({scales.get(name, 1.0) for name in trained}):
        mine = [(p, _decays(name, p)) for name, p in trained.items() if scales.get(name, 1.0) == scale]
        groups += [
            {"params": [p for p, decays in mine if decays], "weight_decay": recipe.weight_decay, "scale": scale},
            {"params": [p for p, decays in mine if not decays], "weight_decay": 0.0, "scale": scale},
        ]
    return torch.optim.AdamW(groups, lr=recipe.rate)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and filters; an S4 layer's biases and its skip `D` are shaped like matrices, but are none."""
    return parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in ("bias", "D")


def _schedule(done: float, warmup: float) -> float:
    """Share of the peak rate when `done` of all steps have been taken."""
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _stale(history: list[dict]) -> int:
    """Epochs since the lowest validation loss."""
    losses = [row["validation"] for row in history]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _resume(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    if not checkpoint.is_file():
        return {"history": [], "best": None, "seconds": 0.0, "core_seconds": 0.0}
    saved = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["progress"]


def _save(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: dict) -> None:
    with atomic(checkpoint) as part:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": done}, part)


@contextmanager
def alone() -> Iterator[None]:
    """One thread, and no bar below the one over all jobs."""
    terminal = os.environ.get(TERMINAL)
    os.environ[TERMINAL] = ""
    try:
        with one_thread():
            yield
    finally:
        os.environ.pop(TERMINAL)
        if terminal is not None:
            os.environ[TERMINAL] = terminal

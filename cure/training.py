"""One training loop for everything that is trained by gradient: AdamW, warm-up and cosine, resumable.

The loop runs on Lightning Fabric, so it is the same on one processor, several, GPUs and nodes; `cure.devices` says
which. An epoch's order, crops and noise come from a generator seeded by (seed, epoch) alone, and a checkpoint within an
epoch holds how far it is, so a run that was killed goes on and ends with the weights of an uninterrupted one.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cure import devices, resume
from cure.errors import CureError
from cure.models.base import one_thread, seeded
from cure.progress import TERMINAL, bar, told
from cure.resume import Clock, State

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from tqdm.std import tqdm

Precision = Literal["float32", "bfloat16"]
#: One step's losses by name, `loss` being what is minimised; takes row positions and the epoch's generator.
Step = Callable[[np.ndarray, np.random.Generator], dict[str, Tensor]]
#: Seconds after which the state is saved within an epoch.
EVERY_S = 60.0
#: Name, beside those of the losses, under which processes agree to save.
_DUE = "checkpoint is due"


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
    validate: Callable[[], float | dict[str, float]] | None = None,
    after_step: Callable[[], None] | None = None,
    scales: Mapping[str, float] | None = None,
    desc: str = "training",
) -> Run:
    """Train in place; with `validate`, the weights of the epoch with the lowest validation loss are what remains.

    With several processes (`cure.devices`) each computes its share of every batch, gradients are averaged, batch
    normalisation sees the whole batch, and the first process validates and writes the checkpoint. The result is that
    of one process up to the rounding of sums, but for what torch draws within the network (dropout): each process
    draws its own. Whatever the devices, the model is on the processor afterwards.

    Parameters
    ----------
    model : nn.Module
        Everything that is trained: what does not require a gradient stays as it is.
    step : callable
        Losses of a batch; called in training mode under autocast to the recipe's precision. It draws for all rows it
        is given, then passes what it drew through `cure.devices.share`.
    rows : int array
        Row positions of the training records.
    recipe : Recipe
    checkpoint : Path
        File that holds the state after each epoch, and at most `EVERY_S` seconds of an epoch are not in it; removed by
        the caller when what came of it is safe. A training that was killed goes on from there: on one processor it
        ends with the very weights of an uninterrupted one.
    validate : callable, optional
        Validation loss, lower is better; or numbers by name for the history, of which `validation` decides. Called in
        evaluation mode without gradients.
    after_step : callable, optional
        Called after each step of the optimiser. What it changes must be in the model's state to survive a resume.
    scales : mapping of str to float, optional
        Share of the recipe's rate that parameters of these names learn with; all others learn with the whole.
    desc : str
        What the progress bar says.

    Raises
    ------
    CureError
        If there are fewer records than a batch, or a loss is not finite: names the epoch. If several processes are
        asked for and a batch cannot be divided equally, or the step does not divide it.
    """
    n_batches = len(rows) // recipe.batch_size
    if not n_batches:
        raise CureError(f"{desc}: {len(rows)} training records are fewer than a batch of {recipe.batch_size}")
    fabric = devices.fabric(recipe.precision)
    if recipe.batch_size % (world := devices.world(fabric)):
        raise CureError(
            f"{desc}: a batch of {recipe.batch_size} cannot be divided among {world} processes: "
            f"change batch_size or {devices.DEVICES}"
        )
    loop = _Loop(model, step, rows, recipe, checkpoint, validate, after_step, scales or {}, desc)
    if world > 1 and not devices.launched():
        # Weights come back in the checkpoint: memory shared with a process that ended cannot be read.
        if (fault := devices.fork(fabric, loop.guarded)) is not None:
            raise CureError(fault)
        state = resume.read(checkpoint)
        model.load_state_dict(state.best or state.model or model.state_dict())
    else:
        fabric.launch()
        state = loop.run(fabric)
        model.to("cpu")
    model.eval()
    return Run(pd.DataFrame(state.history), state.seconds, state.core_seconds)


class _Losses(nn.Module):
    """A step as a module, because Fabric averages the gradients of what passes through a module's forward."""

    def __init__(self, model: nn.Module, step: Step):
        super().__init__()
        self.model, self.step = model, step

    def forward(self, batch: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        losses = self.step(batch, rng)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


@dataclass
class _Loop:
    """The training of `train`, in one process."""

    model: nn.Module
    step: Step
    rows: np.ndarray
    recipe: Recipe
    checkpoint: Path
    validate: Callable[[], float | dict[str, float]] | None
    after_step: Callable[[], None] | None
    scales: Mapping[str, float]
    desc: str

    def guarded(self, fabric: "Fabric") -> str | None:
        """Run in a forked process; what went wrong as a text, because an error would arrive as its traceback."""
        torch.set_num_threads(1)  # more would wait for threads that a fork does not have
        try:
            self.run(fabric)
        except CureError as error:
            return str(error)
        return None

    def run(self, fabric: "Fabric") -> State:
        """Train from where the checkpoint is to the end."""
        recipe, n_batches = self.recipe, len(self.rows) // self.recipe.batch_size
        optimizer = _optimizer(self.model, recipe, self.scales)
        state = fabric.broadcast(resume.read(self.checkpoint) if fabric.is_global_zero else State())
        self.losses, self.optimizer = fabric.setup(_Losses(self.model, self.step), optimizer)
        if state.model is not None and state.optimizer is not None:
            self.model.load_state_dict(state.model)
            optimizer.load_state_dict(state.optimizer)
        place = devices.Place(fabric.device, fabric.global_rank, fabric.world_size)
        done, total = len(state.history) * n_batches + state.steps, recipe.epochs * n_batches
        with (
            devices.at(place),
            devices.whole_batch_statistics(self.model, place),
            bar(self.desc, done, total, first=place.rank == 0, forked=place.world > 1) as shown,
        ):
            while len(state.history) < recipe.epochs:
                if recipe.patience is not None and _stale(state.history) >= recipe.patience:
                    break
                self._epoch(fabric, place, state, n_batches, shown)
        state.best = fabric.broadcast(state.best)
        if state.best is not None:
            self.model.load_state_dict(state.best)
        return state

    def _epoch(self, fabric: "Fabric", place: devices.Place, state: State, n_batches: int, shown: "tqdm") -> None:
        """One epoch, or the rest of one."""
        recipe, epoch = self.recipe, len(state.history)
        clock = Clock(state)
        rng = np.random.default_rng([recipe.seed, epoch])
        self.model.train()
        with seeded(int(rng.integers(2**31)) + place.rank):
            batches = np.split(rng.permutation(self.rows)[: n_batches * recipe.batch_size], n_batches)
            if state.rng is not None:
                rng.bit_generator.state = state.rng
                # With another number of processes than before, there is no state to go on from.
                if len(state.torch_rng) == place.world:
                    resume.restore(state.torch_rng[place.rank], place.device)
            for i in range(state.steps, n_batches):
                done = (epoch * n_batches + i + 1) / (recipe.epochs * n_batches)
                for group in self.optimizer.param_groups:
                    group["lr"] = group["scale"] * recipe.rate * _schedule(done, recipe.warmup)
                due = self._step(fabric, place, state, batches[i], rng, n_batches, clock.running() >= EVERY_S)
                state.steps = i + 1
                shown.update()
                told(shown, _found(state, n_batches))
                if due and state.steps < n_batches:
                    clock.stop()
                    state.rng = dict(rng.bit_generator.state)
                    state.torch_rng = resume.gathered(resume.drawn(place.device), place.world)
                    self._save(fabric, state)
                    clock.start()
        row = {"epoch": epoch + 1, **state.sums, "rate": max(group["lr"] for group in self.optimizer.param_groups)}
        if self.validate is not None:
            row |= fabric.broadcast(self._validated() if fabric.is_global_zero else {})
            if row["validation"] < min((past["validation"] for past in state.history), default=math.inf):
                state.best = copy.deepcopy(self.model.state_dict()) if fabric.is_global_zero else None
        state.history.append(row)
        state.steps, state.sums, state.rng, state.torch_rng = 0, {}, None, []
        told(shown, _found(state, n_batches))
        clock.stop()
        self._save(fabric, state)

    def _step(
        self,
        fabric: "Fabric",
        place: devices.Place,
        state: State,
        batch: np.ndarray,
        rng: np.random.Generator,
        n_batches: int,
        due: bool,
    ) -> bool:
        """One step of the optimiser; whether a checkpoint is due, on which all processes agree."""
        losses = self.losses(batch, rng)
        if place.world > 1 and not place.divided:
            raise CureError(
                f"{self.desc}: this training compares the records of a batch with each other, which cannot be divided "
                f"among {place.world} processes: set {devices.DEVICES} to cpu or cuda"
            )
        values = {name: float(value.detach()) for name, value in losses.items()}
        values = devices.means({**values, _DUE: float(due)}, place)
        due = values.pop(_DUE) > 0
        if not math.isfinite(values["loss"]):
            epoch = len(state.history) + 1
            raise CureError(f"{self.desc}: the loss of epoch {epoch} is not finite; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(losses["loss"])
        # Not `fabric.clip_gradients`: it sums norms in the optimiser's order, so its result differs in the last bit.
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value / n_batches
        return due

    def _validated(self) -> dict[str, float]:
        assert self.validate is not None
        self.model.eval()
        with torch.inference_mode():
            found = self.validate()
        numbers = found if isinstance(found, dict) else {"validation": found}
        return {name: float(value) for name, value in numbers.items()}

    def _save(self, fabric: "Fabric", state: State) -> None:
        if fabric.is_global_zero:
            state.model, state.optimizer = self.model.state_dict(), dict(self.optimizer.state_dict())
            resume.write(state, self.checkpoint)


def _found(state: State, n_batches: int) -> dict[str, float]:
    """For the bar: mean losses of the epoch so far, beside what the last whole one and its validation gave."""
    last = state.history[-1] if state.history else {}
    sums = {name: value * n_batches / state.steps for name, value in state.sums.items()}
    return {**{name: value for name, value in last.items() if name not in ("epoch", "rate")}, **sums}


def _optimizer(model: nn.Module, recipe: Recipe, scales: Mapping[str, float]) -> torch.optim.AdamW:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for scale in sorted({scales.get(name, 1.0) for name in trained}):
        mine = [(p, _decays(name, p)) for name, p in trained.items() if scales.get(name, 1.0) == scale]
        groups += [
            {"params": [p for p, decays in mine if decays], "weight_decay": recipe.weight_decay, "scale": scale},
            {"params": [p for p, decays in mine if not decays], "weight_decay": 0.0, "scale": scale},
        ]
    return torch.optim.AdamW(groups, lr=recipe.rate, fused=True)


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

"""Where training runs: one processor, several, GPUs, several nodes; how a batch is divided and put together again.

`CURE_DEVICES` says it, and nothing else does: `cpu` (the default), `2xcpu`, `cuda` (one GPU), `4xcuda`. Several
processes are forked by `cure.training.train` itself, from a script or a notebook; a script started by `torchrun`, on
one node or many, uses the processes that `torchrun` made, and the number in `CURE_DEVICES` does not count. Processes
talk over gloo on processors and NCCL on GPUs. On processors all of it is tested; GPUs go through the same code of
Lightning Fabric, but no test here has seen one. What compares the records of a batch with each other, as the objectives
of pre-training do, runs in one process on the processor, and says so where more is asked for.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from cure.errors import CureError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Environment variable that names the devices.
DEVICES = "CURE_DEVICES"


@dataclass
class Place:
    """One of the processes that train together.

    Attributes
    ----------
    device : torch.device
    rank, world : int
        Which of how many.
    divided : bool
        Whether a step has divided its batch by `share`.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    divided: bool = False


_HERE: ContextVar[Place] = ContextVar("place", default=Place(torch.device("cpu")))  # noqa: B039 - `share` marks it


def requested() -> tuple[str, int]:
    """Kind of device and processes on this node, from `CURE_DEVICES`.

    Raises
    ------
    CureError
        If it is malformed, or asks for more GPUs than there are.
    """
    said = os.environ.get(DEVICES, "cpu")
    found = re.fullmatch(r"(?:([1-9]\d*)x)?(cpu|cuda)", said)
    if found is None:
        raise CureError(f"{DEVICES}={said} is not understood: set it to cpu, cuda, or a number of them such as 4xcuda")
    kind, count = found[2], int(found[1] or 1)
    if kind == "cuda" and (there := torch.cuda.device_count()) < count:
        raise CureError(f"{DEVICES}={said}, but torch sees {there} GPUs here: set {DEVICES} to what there is, or cpu")
    return kind, count


def require_processor(what: str) -> None:
    """Refuse GPUs for a training whose step does not pass what it draws through `share`.

    Raises
    ------
    CureError
        If `CURE_DEVICES` asks for them.
    """
    if requested()[0] != "cpu":
        raise CureError(f"{what} runs on the processor only: set {DEVICES} to cpu for this stage")


def launched() -> bool:
    """Whether `torchrun` made the processes."""
    return distributed.is_torchelastic_launched()


def fabric(precision: str) -> "Fabric":
    """Lightning Fabric for the devices asked for; its import takes seconds, so whoever trains nothing never waits."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else it says at each training how it runs
    kind, count = requested()
    nodes = 1
    if launched():
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // count
    if kind == "cuda":  # float32 is float32 on a GPU too
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    several: Any = DDPStrategy(start_method="popen" if launched() else "fork", find_unused_parameters=True)
    return Fabric(
        accelerator=kind,
        devices=count,
        num_nodes=nodes,
        strategy=several if count * nodes > 1 else "auto",
        precision="bf16-mixed" if precision == "bfloat16" else "32-true",
    )


def world(fabric: "Fabric") -> int:
    """How many processes train together; Fabric itself knows only after it has made them."""
    strategy = fabric.strategy
    return getattr(strategy, "num_nodes", 1) * getattr(strategy, "num_processes", 1)


def fork(fabric: "Fabric", work: Callable[["Fabric"], str | None]) -> str | None:
    """Let forked processes do some work, and return what the first of them returns."""
    before = set(os.environ)
    try:
        return fabric.launch(work)
    finally:
        for name in set(os.environ) - before:  # the next processes choose a port of their own
            del os.environ[name]


@contextmanager
def at(place: Place) -> Iterator[Place]:
    """Let `share` know where it is."""
    before = _HERE.set(place)
    try:
        yield place
    finally:
        _HERE.reset(before)


def share(*batch: np.ndarray | Tensor) -> tuple[Tensor, ...]:
    """What this process computes of a batch: an equal part of each array's first axis, on this process's device.

    A step draws for the whole batch, so that every process draws the same, and then takes its share. For the mean of a
    loss over records, the mean of the shares' gradients is the gradient of the whole. A loss that compares the records
    of a batch has no such shares.

    Parameters
    ----------
    *batch : arrays or Tensors, (n, ...) each
        Of the whole batch.

    Returns
    -------
    tuple of Tensor, (n / world, ...) each
        The tensors themselves where one process trains on the processor.
    """
    here = _HERE.get()
    here.divided = True
    return tuple(_part(torch.from_numpy(one) if isinstance(one, np.ndarray) else one, here) for one in batch)


def _part(one: Tensor, here: Place) -> Tensor:
    if here.world > 1:
        one = one.chunk(here.world)[here.rank]
    return one.to(here.device)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the processor if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def means(values: dict[str, float], here: Place) -> dict[str, float]:
    """Mean of each value over all processes, the same in each; as they are where there is one process."""
    if here.world == 1:
        return values
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=here.device)
    distributed.all_reduce(total)
    return dict(zip(values, (total / here.world).tolist(), strict=True))


class _Sum(torch.autograd.Function):
    """Sum over all processes; so is its gradient, as every process's loss depends on every part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


@contextmanager
def whole_batch_statistics(model: nn.Module, here: Place) -> Iterator[None]:
    """Let batch normalisations in training mode use the statistics of the whole batch, not of this process's share.

    As `torch.nn.SyncBatchNorm` does on GPUs only, but modules stay the ones they are. Nothing changes where there is
    one process.
    """
    norms: Sequence[nn.modules.batchnorm._BatchNorm] = []
    if here.world > 1:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalised, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalised(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    values = x.float()
    n = distributed.get_world_size() * x.numel() / x.shape[1]
    mean = _Sum.apply(values.sum(axes)) / n
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / n
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            pace = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, pace)
            norm.running_var.lerp_(variance * n / (n - 1), pace)
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(x.dtype)

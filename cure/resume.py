"""State of a training that can be interrupted: what a checkpoint holds, within an epoch too, and its file."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cure.paths import atomic


@dataclass
class State:
    """What a checkpoint holds. Within an epoch: the steps taken, sums of losses, and both generators' states."""

    model: dict[str, Tensor] | None = None
    optimizer: dict | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0
    core_seconds: float = 0.0
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    rng: dict | None = None
    torch_rng: list[dict[str, Tensor]] = field(default_factory=list)


def read(checkpoint: Path) -> State:
    """What the checkpoint holds; a state that has nothing yet where there is none."""
    if not checkpoint.is_file():
        return State()
    return State(**torch.load(checkpoint, weights_only=True, map_location="cpu"))


def drawn(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators that a network draws from."""
    found = {"cpu": torch.get_rng_state()}
    return found if device.type == "cpu" else {**found, device.type: torch.cuda.get_rng_state(device)}


def restore(states: dict[str, Tensor], device: torch.device) -> None:
    """Put them back."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.cuda.set_rng_state(states[device.type], device)


def gathered(states: dict[str, Tensor], world: int) -> list[dict[str, Tensor]]:
    """One of each process, by rank."""
    every: list[Any] = [states] * world
    if world > 1:
        torch.distributed.all_gather_object(every, states)
    return every


def write(state: State, checkpoint: Path) -> None:
    """Replace the checkpoint in one step."""
    with atomic(checkpoint) as part:
        torch.save(vars(state), part)


class Clock:
    """Adds wall and processor time to a state. It runs from the last checkpoint on, or the start of the epoch."""

    def __init__(self, state: State):
        self.state = state
        self.start()

    def start(self) -> None:
        """Count from now."""
        self.wall, self.core = time.perf_counter(), time.process_time()

    def running(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.wall

    def stop(self) -> None:
        """Add what has passed."""
        self.state.seconds += time.perf_counter() - self.wall
        self.state.core_seconds += time.process_time() - self.core

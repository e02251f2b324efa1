"""Low-rank updates of frozen weights (LoRA: Hu et al. 2022, ICLR): W + B A, with B zero at the start.

The update is a parametrization of the layer's weight: the layer computes with the sum, its own weight stays as it was.
A state dict of the encoder as it was loads into one with updates, which keep their values; `merge` makes plain weights
of the sums, under the old names.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cure.errors import CureError
from cure.models import Encoder, s4
from cure.peft import taking_part

#: Layers that are a matrix.
_MATRICES = (nn.Linear, s4._PerStep)


class LowRank(nn.Module):
    """A weight plus a matrix of low rank; filters count as rows.

    Parameters
    ----------
    weight : Tensor
        (n_out, ...); all axes but the first are flattened.
    rank : int
        At most; a weight with fewer rows or columns has a smaller one.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        n_out, n_in = weight.shape[0], math.prod(weight.shape[1:])
        rank = min(rank, n_out, n_in)
        self.down = nn.Parameter(torch.empty(rank, n_in, dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(torch.zeros(n_out, rank, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum, in the shape of `weight`."""
        return weight + (self.up @ self.down).view_as(weight)


def layers(encoder: Encoder, window_s: float | None = None) -> dict[str, nn.Module]:
    """The layers that get an update, by name: linear ones, and convolutions where those hold most of the weights.

    Raises
    ------
    CureError
        If there are none.
    """
    used = taking_part(encoder, window_s)
    mine = {name: module for name, module in encoder.named_modules() if f"{name}.weight" in used}
    linear: dict[str, nn.Module] = {name: one for name, one in mine.items() if isinstance(one, _MATRICES)}
    filters: dict[str, nn.Module] = {name: one for name, one in mine.items() if isinstance(one, nn.Conv1d)}
    if _size(filters) > _size(linear):
        linear |= filters
    if not linear:
        raise CureError(f"strategy 'lora': {type(encoder).__name__} has neither linear layers nor convolutions")
    return linear


def _size(found: Mapping[str, nn.Module]) -> int:
    return sum(module.get_parameter("weight").numel() for module in found.values())


def add_updates(encoder: Encoder, rank: int, window_s: float | None = None) -> set[str]:
    """Give the encoder low-rank updates, zero at the start, and return the names of their parameters.

    Random numbers come from torch's generator.
    """
    for layer in layers(encoder, window_s).values():
        weight = layer.get_parameter("weight")
        parametrize.register_parametrization(layer, "weight", LowRank(weight, rank))
        layer.register_load_state_dict_pre_hook(_rename)
    return {
        f"{name}.{part}"
        for name, module in encoder.named_modules()
        if isinstance(module, LowRank)
        for part in ("up", "down")
    }


def merge(encoder: Encoder) -> None:
    """Make plain weights of the sums: the encoder computes the same and has its old names."""
    updates = [name for name, module in encoder.named_modules() if isinstance(module, LowRank)]
    for layer in [encoder.get_submodule(name.removesuffix(".parametrizations.weight.0")) for name in updates]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _rename(layer: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state dict without updates load: its weight is the frozen one, updates stay as they are."""
    if (plain := state.pop(f"{prefix}weight", None)) is None:
        return
    state[f"{prefix}parametrizations.weight.original"] = plain
    for name, value in layer.get_submodule("parametrizations.weight.0").state_dict().items():
        state.setdefault(f"{prefix}parametrizations.weight.0.{name}", value)

"""Stochastic depth: residual branches are left out at random in training, record by record (Huang et al. 2016, ECCV).

A block computes x + f(x). In training f(x) is left out of a record with probability p, and divided by 1 - p where it
is kept, so that its expectation stays; the identity is always kept. Block l of L has p = l / L of the rate of the last
one (Huang et al., equation 4). Nothing happens in evaluation mode. Where the branches are, the table below says for
every architecture: hooks are set on modules as they are, so that weights and the names of the state dict stay.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cure.errors import CureError
from cure.models import (
    Encoder,
    ecg_fm,
    ecg_jepa,
    hubert_ecg,
    ked,
    leadcnn,
    merl,
    net1d,
    resnet1d,
    resnet1d_wang,
    s4,
    s4_classifier,
    vit,
    weimann_jepa,
    xresnet1d,
)

#: Block -> the parts of it whose output is added to the identity: modules by name, or a method. An empty name: the
#: whole module is a branch, and what calls it adds the identity.
_BRANCHES: dict[type[nn.Module], tuple[str, ...]] = {
    leadcnn._Residual: ("residual",),
    resnet1d._Block: ("residual",),
    resnet1d_wang._Block: ("residual",),
    xresnet1d._Bottleneck: ("residual",),
    ked._Bottleneck: ("convpath",),
    merl._BasicBlock: ("bn2",),
    net1d._Block: ("branch",),
    vit.Block: ("attn.fn", "ff.fn"),
    hubert_ecg._Layer: ("attention", "feed_forward"),
    ecg_fm._Layer: ("self_attn", "fc2"),
    ecg_jepa._Block: ("attn", "mlp"),
    weimann_jepa._Block: ("attn", "mlp"),
    nn.TransformerEncoderLayer: ("dropout1", "dropout2"),
    s4.S4: ("",),
    # Its branch is no module: the sum in front of its norm is taken apart again.
    s4_classifier._Layer: (),
}


def residual_blocks(encoder: Encoder) -> list[nn.Module]:
    """The residual blocks of an encoder, from input to output.

    Raises
    ------
    CureError
        If it has none that is known here.
    """
    found = [module for module in encoder.modules() if isinstance(module, tuple(_BRANCHES))]
    if not found:
        raise CureError(
            f"{type(encoder).__name__} has no residual block that cure/depth.py knows: stochastic depth needs one"
        )
    return found


def stochastic_depth(encoder: Encoder, rate: float) -> tuple[float, ...]:
    """Let the encoder leave out residual branches while it is in training mode.

    Random numbers come from torch's generator, so a training that is resumed goes on with the same ones. Both branches
    of a transformer's layer have its rate and are left out independently.

    Parameters
    ----------
    encoder : Encoder
        Changed in place, but for weights and names. With rate 0 it stays as it is.
    rate : float
        Probability that a record does without the branch of the last block, in [0, 1).

    Returns
    -------
    tuple of float
        Rate of each block, from input to output.

    Raises
    ------
    CureError
        If the encoder has no residual block that is known here.
    """
    blocks = residual_blocks(encoder)
    rates = tuple(rate * (i + 1) / len(blocks) for i in range(len(blocks)))
    if rate > 0:
        for block, one in zip(blocks, rates, strict=True):
            _attach(block, one)
    return rates


def dropped(branch: Tensor, rate: float) -> Tensor:
    """A branch, (n, ...), zero for a share `rate` of the records and divided by 1 - rate for the others."""
    keep = torch.empty(len(branch), device=branch.device).bernoulli_(1 - rate).div_(1 - rate)
    return branch * keep.to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))


def _attach(block: nn.Module, rate: float) -> None:
    names = next(names for kind, names in _BRANCHES.items() if isinstance(block, kind))
    if not names:
        carried: list[Tensor] = []
        block.register_forward_pre_hook(partial(_carry, carried))
        block.get_submodule("norm").register_forward_pre_hook(partial(_apart, carried, rate))
    for name in names:
        if name and not isinstance(getattr(block, name.partition(".")[0]), nn.Module):
            setattr(block, name, partial(_method, block, name, rate))
        else:
            block.get_submodule(name).register_forward_hook(partial(_output, rate))


def _output(rate: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return dropped(output, rate) if module.training else output


def _method(block: nn.Module, name: str, rate: float, x: Tensor) -> Tensor:
    branch = getattr(type(block), name)(block, x)
    return dropped(branch, rate) if block.training else branch


def _carry(carried: list[Tensor], block: nn.Module, given: tuple[Tensor, ...]) -> None:
    carried[:] = given if block.training else ()


def _apart(carried: list[Tensor], rate: float, norm: nn.Module, given: tuple[Tensor, ...]) -> Any:
    """The sum of identity and branch, time last but one, with some branches left out."""
    if not norm.training:
        return None
    identity = carried.pop().mT
    return (identity + dropped(given[0] - identity, rate),)

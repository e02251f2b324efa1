"""Which few parameters of an encoder are trained, all else frozen: biases, or the scales and shifts of normalisations.

BitFit: Ben Zaken et al. 2022 (ACL). Normalisations: Frankle et al. 2021 (ICLR), with transformers' norms as there with
batch normalisation. Low-rank updates are in `cure.lora`.
"""

import numpy as np
import torch
from torch import nn

from cure.errors import CureError
from cure.models import Encoder
from cure.signals import LEADS

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def taking_part(encoder: Encoder, window_s: float | None = None) -> set[str]:
    """Names of the parameters that the tokens depend on; others belong to pre-training, or are stored only.

    Found by one backward pass on two records of noise, `window_s` seconds of the encoder's input or the whole of it.
    """
    spec, rng = encoder.input_spec, np.random.default_rng(0)
    fs = spec.source_fs
    noise = rng.normal(size=(2, len(LEADS), round(fs * spec.seconds))).astype(np.float32)
    x = torch.from_numpy(spec.apply(noise, fs, first=True)[:, 0])
    if window_s is not None:
        x = x[..., : round(window_s * spec.fs)]
    named = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(encoder(x).sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def biases(encoder: Encoder, window_s: float | None = None) -> set[str]:
    """Names of the additive parameters: biases of layers, shifts of normalisations.

    Raises
    ------
    CureError
        If none takes part in the tokens.
    """
    return _some(encoder, {name for name in taking_part(encoder, window_s) if name.endswith("bias")}, "bitfit", "bias")


def norms(encoder: Encoder, window_s: float | None = None) -> set[str]:
    """Names of the scales and shifts of all normalisations: over batches, tokens and groups.

    Raises
    ------
    CureError
        If none takes part in the tokens.
    """
    affine = {
        f"{name}.{part}"
        for name, module in encoder.named_modules()
        if isinstance(module, _NORMS)
        for part in ("weight", "bias")
    }
    found = taking_part(encoder, window_s) & affine
    return _some(encoder, found, "layernorm", "normalisation with a scale or shift")


def _some(encoder: Encoder, found: set[str], strategy: str, what: str) -> set[str]:
    if not found:
        raise CureError(
            f"strategy '{strategy}': {type(encoder).__name__} has no {what} that takes part in its tokens; "
            "take this strategy out of the profile, or choose another such as lora"
        )
    return found

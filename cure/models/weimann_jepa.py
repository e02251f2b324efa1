"""ECG-JEPA of Weimann and Conrad (2024): a vision transformer over time patches, pre-trained by joint embedding."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cure.errors import CureError
from cure.models.base import Encoder, InputSpec
from cure.models.steps import Resample, Scale
from cure.models.vit1d import sinusoids
from cure.signals import LEADS


@dataclass(frozen=True)
class WeimannSize:
    """Width of a token, layers and attention heads of the transformer."""

    dim: int
    depth: int
    heads: int


# Widths and depths give the authors' parameter counts. The heads of xs are theirs; those of s and b are assumed to be
# 64 wide, as a ViT's usually are: counts do not tell.
SIZES = {
    "xs": WeimannSize(dim=192, depth=8, heads=4),
    "s": WeimannSize(dim=384, depth=8, heads=6),
    "b": WeimannSize(dim=768, depth=12, heads=12),
}


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch: int):
        super().__init__()
        self.proj = nn.Conv1d(len(LEADS), dim, patch, stride=patch, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, bias=False)


class _Block(nn.Module):
    """Pre-norm transformer layer without biases."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = _norm(dim)
        self.attn = _Attention(dim, heads)
        self.norm2 = _norm(dim)
        self.mlp = _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class WeimannJepa(Encoder):
    """Patches of 50 ms across 12 leads and a register token, through pre-norm layers: 200 tokens for 10 s at 500 Hz.

    Weimann and Conrad 2024, "Self-supervised pre-training with joint-embedding predictive architecture boosts ECG
    classification performance", arXiv 2410.13867. No weights are published.

    The authors feed every lead with the mean and deviation of the training set taken out. With no weights those
    statistics are unknown: as a stand-in, the input is in units of 0.2 mV, which brings leads to a spread near one.

    Random initialisation: truncated normal, 0.02.

    Parameters
    ----------
    size : {"xs", "s", "b"} or WeimannSize

    Attributes
    ----------
    n_tokens : int
        Tokens of a whole input, 200.
    """

    input_spec = InputSpec(fs=500, seconds=10, record=(Resample(500), Scale(0.2)))
    license = "MIT (no weights published)"
    patch = 25
    positions: Tensor

    def __init__(self, size: Literal["xs", "s", "b"] | WeimannSize = "xs"):
        super().__init__()
        size = size if isinstance(size, WeimannSize) else SIZES[size]
        self.dim = size.dim
        self.n_tokens = int(self.input_spec.fs * self.input_spec.seconds) // self.patch
        self.registers = nn.Parameter(torch.empty(1, 1, self.dim))
        self.patch_embed = _PatchEmbed(self.dim, self.patch)
        self.register_buffer("positions", sinusoids(self.n_tokens, self.dim), persistent=False)
        self.blocks = nn.Sequential(*(_Block(self.dim, size.heads) for _ in range(size.depth)))
        self.norm = _norm(self.dim)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to (n, n_samples / 25, dim) tokens, of up to 5000 samples.

        Raises
        ------
        CureError
            If the input is longer: there are no positions for it.
        """
        return self._transform(self._patches(x))

    def visible(self, x: Tensor, keep: Tensor) -> Tensor:
        """Tokens of some patches, from an encoder that sees no others.

        Parameters
        ----------
        x : (n, 12, n_samples) Tensor
            Model-ready input, up to 5000 samples.
        keep : (n, k) Tensor of int64
            Which patches each record keeps: 0 is the first of the input.

        Returns
        -------
        (n, k, dim) Tensor
            Their tokens, in the order of `keep`.

        Raises
        ------
        CureError
            As `forward`.
        """
        return self._transform(torch.take_along_dim(self._patches(x), keep[..., None], dim=1))

    def _patches(self, x: Tensor) -> Tensor:
        """Each patch with its position, (n, t, dim)."""
        patches = self.patch_embed(x)
        if patches.shape[1] > self.n_tokens:
            raise CureError(
                f"an input of {x.shape[-1]} samples is longer than the {self.n_tokens * self.patch} samples "
                "that ECG-JEPA (Weimann) has positions for: cut it into windows as its `input_spec` does"
            )
        return patches + self.positions[: patches.shape[1]]

    def _transform(self, patches: Tensor) -> Tensor:
        register = self.registers.expand(len(patches), -1, -1)
        tokens = self.norm(self.blocks(torch.cat([register, patches], dim=1)))
        return tokens[:, self.registers.shape[1] :]

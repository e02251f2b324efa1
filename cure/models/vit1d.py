"""A small vision transformer over time patches that mix all leads (Dosovitskiy et al. 2021, in one dimension)."""

import math

import torch
from torch import Tensor, nn

from cure.models.base import PLAIN, Encoder


def sinusoids(n: int, dim: int) -> Tensor:
    """Fixed position codes, (n, dim) float32 (Vaswani et al. 2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(n)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class ViT1d(Encoder):
    """Patches of 0.25 s across 12 leads, four pre-norm transformer layers: 40 tokens of 192 for 10 s."""

    input_spec = PLAIN
    dim = 192

    def __init__(self, patch: int = 25, depth: int = 4, heads: int = 6):
        super().__init__()
        n_tokens = int(self.input_spec.fs * self.input_spec.seconds) // patch
        self.patches = nn.Conv1d(len(self.input_spec.leads), self.dim, patch, stride=patch)
        self.register_buffer("positions", sinusoids(n_tokens, self.dim), persistent=False)
        # Not nn.TransformerEncoder: it copies one layer, so that all would start from the same weights.
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    self.dim, heads, 4 * self.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            ),
            nn.LayerNorm(self.dim),
        )

    def stages(self) -> list[nn.Module]:
        """The patches and the transformer layers."""
        return [self.patches, *list(self.layers)[:-1]]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, 1000) to (n, 40, 192) tokens."""
        return self.layers(self.patches(x).transpose(1, 2) + self.positions)

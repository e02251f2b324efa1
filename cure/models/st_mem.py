"""ST-MEM (Na et al. 2024, ICLR): a vision transformer over patches of every lead, pre-trained by masking them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cure.errors import CureError
from cure.models.base import Encoder, InputSpec
from cure.models.steps import Butterworth, Resample, ZScore
from cure.models.vit import Block
from cure.signals import LEADS

#: Samples of a patch, and patches of a lead that there are positions for.
_PATCH, _PATCHES = 75, 30


def position_table(dim: int) -> Tensor:
    """Codes of [left separator, patches 0...29, right separator], (1, 32, dim) float32: zero for the separators.

    Sines in the first half of the width, cosines in the second.
    """
    rate = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = torch.arange(_PATCHES, dtype=torch.float64)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1).float(), (0, 0, 1, 1))[None]


class StMem(Encoder):
    """One token per lead and 0.3 s, a separator before and after each lead, full attention over all of them.

    The tokens come before the last norm: the embedding is the norm of their mean. Input: 9 s at 250 Hz, band-passed
    0.67 to 40 Hz, one mean and deviation per window. Shorter windows and fewer leads can be given, see `forward`;
    the original takes twelve leads only.

    Parameters
    ----------
    dim, depth, heads, hidden : int
        Width, blocks, attention heads and width of the feed-forward layers; by default those of the published weights.
    """

    input_spec = InputSpec(
        fs=250,
        seconds=9,
        record=(Resample(250), Butterworth("highpass", 5, 0.67), Butterworth("lowpass", 5, 40.0)),
        window=(ZScore("record"),),
        n_windows=3,
    )
    license = "CC BY-NC 4.0 (non-commercial)"
    timed = False

    def __init__(self, dim: int = 768, depth: int = 12, heads: int = 12, hidden: int = 3072):
        super().__init__()
        self.dim = dim
        self.pos_embedding = nn.Parameter(position_table(dim), requires_grad=False)
        self.sep_embedding = nn.Parameter(torch.empty(dim))
        self.to_patch_embedding = nn.Sequential(
            nn.Unflatten(-1, (-1, _PATCH)), nn.LayerNorm(_PATCH), nn.Linear(_PATCH, dim), nn.LayerNorm(dim)
        )
        self.lead_embeddings = nn.ParameterList(torch.empty(dim) for _ in LEADS)
        self._blocks = [f"block{i}" for i in range(depth)]
        for name in self._blocks:
            self.add_module(name, Block(dim, heads, hidden))
        self.norm = nn.LayerNorm(dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for embedding in (self.sep_embedding, *self.lead_embeddings):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(self, x: Tensor, leads: Sequence[int] | None = None) -> Tensor:
        """(n, n_leads, n_samples) to (n, n_leads * n_samples / 75, dim) tokens, lead-major, without the separators.

        Parameters
        ----------
        x : Tensor
            Model-ready input: a multiple of 75 samples, at most 2250.
        leads : sequence of int, optional
            Which of the twelve leads the rows of `x` are, in `cure.signals.LEADS`; all by default.

        Raises
        ------
        CureError
            If `leads` does not fit `x`, or the length does not suit.
        """
        leads = range(len(LEADS)) if leads is None else leads
        if len(leads) != x.shape[1] or not set(leads) <= set(range(len(LEADS))):
            raise CureError(f"leads {list(leads)} (of 0 to {len(LEADS) - 1}) for an input of {x.shape[1]} leads")
        n_samples = x.shape[2]
        if n_samples % _PATCH or not 0 < n_samples <= _PATCH * _PATCHES:
            raise CureError(f"ST-MEM takes a multiple of {_PATCH} up to {_PATCH * _PATCHES} samples, not {n_samples}")
        positions = self.pos_embedding[0]
        left, right = ((self.sep_embedding + positions[end]).expand(len(x), len(leads), 1, self.dim) for end in (0, -1))
        patches = self.to_patch_embedding(x)
        x = torch.cat([left, patches + positions[1 : patches.shape[2] + 1], right], dim=2)
        x = x + torch.stack([self.lead_embeddings[lead] for lead in leads])[:, None]
        x = x.flatten(1, 2)
        for name in self._blocks:
            x = getattr(self, name)(x)
        return x.unflatten(1, (len(leads), -1))[:, :, 1:-1].flatten(1, 2)

    def readout(self, tokens: Tensor) -> Tensor:
        """(n, t, dim) tokens to the norm of their mean, (n, dim)."""
        return self.norm(tokens.mean(dim=1))

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the encoder out of a full autoencoder file, where its names begin with `encoder.`; leave others alone.

        Of a full file the decoder and the mask token are dropped.
        """
        if not any(name.startswith("encoder.") for name in state):
            return state
        kept = {name: value for name, value in state.items() if not _of_decoder(name)}
        return {name.removeprefix("encoder."): value for name, value in kept.items()}


def _of_decoder(name: str) -> bool:
    first = name.partition(".")[0]
    return "decoder" in first or first.startswith("mask")

"""ECG-JEPA (Kim, arXiv 2410.08559): a transformer over patches of eight leads that looks along a lead or a moment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cure.errors import CureError
from cure.models.base import Encoder, InputSpec
from cure.models.steps import Resample

#: Time steps that the position table has, and samples in each.
_STEPS, _PATCH = 50, 50


def _angles(n: int, dim: int) -> Tensor:
    """All sines, then all cosines, of the positions 0...n - 1: (n, dim) float64."""
    rate = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def lead_time_table(n_leads: int, dim: int) -> Tensor:
    """Fixed codes of (lead, time), lead-major: (n_leads * 50, dim) float32; time in the first half, lead in the second.

    Raises
    ------
    CureError
        If `dim` is not a multiple of four.
    """
    if dim % 4:
        raise CureError(f"a width of {dim}: sines and cosines of lead and time need a multiple of 4")
    time = _angles(_STEPS, dim // 2).repeat(n_leads, 1)
    lead = _angles(n_leads, dim // 2).repeat_interleave(_STEPS, dim=0)
    return torch.cat([time, lead], dim=1).float()


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(y.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _MLP(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class _Blocks(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x + positions, mask)
        return x


class EcgJepa(Encoder):
    """One token per lead and 0.2 s; each sees the tokens of its own lead and those of its own moment, no others.

    The position table is added again before every block. Input: 8 leads, 10 s at 250 Hz, in mV, neither filtered nor
    normalised. Any subset of the eight leads can be given, see `forward`.

    The attention is masked rather than split into its two directions: the split is 2.2 times as fast on a CPU, but
    attention is a tenth of the work of a block.

    Parameters
    ----------
    dim, depth, heads : int
        Width, blocks and attention heads; by default those of the published weights.
    """

    input_spec = InputSpec(
        fs=250,
        seconds=10,
        leads=("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
        record=(Resample(250, "fourier"),),
    )
    license = "not stated (code: MIT)"
    timed = False

    def __init__(self, dim: int = 768, depth: int = 12, heads: int = 16):
        super().__init__()
        self.dim = dim
        # A parameter, though fixed: the original counts and stores it as one.
        self.pos_embed = nn.Parameter(lead_time_table(len(self.input_spec.leads), dim), requires_grad=False)
        self.W_P = nn.Linear(_PATCH, dim)
        self.encoder_blocks = _Blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, leads: Sequence[int] | None = None) -> Tensor:
        """(n, n_leads, 2500) mV to (n, n_leads * 50, dim) normed tokens, lead-major.

        Parameters
        ----------
        x : Tensor
            Model-ready input.
        leads : sequence of int, optional
            Which of the eight leads of `input_spec.leads` the rows of `x` are; all by default.

        Raises
        ------
        CureError
            If `leads` does not fit `x`, or `x` is not 10 s long.
        """
        known = len(self.input_spec.leads)
        leads = range(known) if leads is None else leads
        if len(leads) != x.shape[1] or not set(leads) <= set(range(known)):
            raise CureError(f"leads {list(leads)} (of 0 to {known - 1}) for an input of {x.shape[1]} leads")
        if x.shape[2] != _STEPS * _PATCH:
            raise CureError(f"ECG-JEPA takes {_STEPS * _PATCH} samples (10 s at 250 Hz), not {x.shape[2]}")
        positions = self.pos_embed.unflatten(0, (known, _STEPS))[list(leads)].flatten(0, 1)
        patches = self.W_P(x.unflatten(2, (_STEPS, _PATCH))).flatten(1, 2)
        return self.norm(self.encoder_blocks(patches, positions, self._mask(len(leads), x.device)))

    @staticmethod
    def _mask(n_leads: int, device: torch.device) -> Tensor:
        """Who may look at whom, (tokens, tokens) bool: those that share the lead or the time step."""
        token = torch.arange(n_leads * _STEPS, device=device)
        lead, step = token // _STEPS, token % _STEPS
        return (lead[:, None] == lead) | (step[:, None] == step)

"""The pre-norm transformer block (Dosovitskiy et al. 2021, ICLR) of ST-MEM and of MERL, under their common names."""

from torch import Tensor, nn
from torch.nn import functional as F


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        # The original has dropout at place 2: the names of the weights count it.
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _PreNorm(nn.Module):
    """A function of the normed input beside the identity."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class Block(nn.Module):
    """(n, t, dim) to (n, t, dim): full self-attention, then a feed-forward layer with GELU.

    Parameters
    ----------
    dim, heads, hidden : int
        Width of a token, attention heads and width of the feed-forward layer.
    """

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.attn = _PreNorm(dim, _Attention(dim, heads))
        self.ff = _PreNorm(dim, _FeedForward(dim, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Both halves, each beside the identity."""
        return self.ff(self.attn(x))

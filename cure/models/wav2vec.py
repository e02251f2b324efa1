"""What HuBERT-ECG and ECG-FM share with wav2vec 2.0 (Baevski et al. 2020): convolved positions and self-attention."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def positional_convolution(dim: int, kernel: int = 128, groups: int = 16) -> nn.Conv1d:
    """Grouped convolution along tokens with weight normalisation over its taps: one magnitude for each of them.

    Random initialisation: truncated normal, 0.02; biases 0.
    """
    conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
    nn.init.trunc_normal_(conv.weight, std=0.02)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return weight_norm(conv, dim=2)


def add_positions(x: Tensor, conv: nn.Module) -> Tensor:
    """Add to (n, t, dim) tokens what a positional convolution makes of their neighbourhoods, behind a GELU."""
    # An even kernel that is padded by half of itself makes one token too many.
    return x + F.gelu(conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, four linear layers with biases: (n, t, dim) to (n, t, dim)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Every token attends to all."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def initialise(module: nn.Module) -> None:
    """Random weights: truncated normal, 0.02, for linear layers and embeddings, biases 0.

    Convolutions of raw signal, which have no bias: He et al. 2015. With torch's default, activations shrink from layer
    to layer.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.Conv1d) and layer.bias is None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)

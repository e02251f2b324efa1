"""ECG-FM: a wav2vec 2.0 of all leads (McKeen et al. 2024)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cure.models.base import Encoder, InputSpec
from cure.models.steps import Resample, ZScore
from cure.models.wav2vec import SelfAttention, add_positions, initialise, positional_convolution
from cure.signals import LEADS

#: Parts of `EcgFm` that served pre-training; fine-tuned files come without them.
_PRETRAINING = ("mask_emb", "quantizer", "project_q", "final_proj")


class _FeatureExtractor(nn.Module):
    """(n, 12, n_samples) to (n, channels, t): each of the four convolutions halves the rate."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_layers = nn.Sequential(*(self._layer(channels if i else len(LEADS), channels, i) for i in range(4)))

    @staticmethod
    def _layer(n_in: int, n_out: int, i: int) -> nn.Sequential:
        conv = nn.Conv1d(n_in, n_out, 2, stride=2, bias=False)
        # Channels are normalised over time in the first layer only. The identity keeps the published numbering.
        norm = [nn.GroupNorm(n_out, n_out)] if i == 0 else []
        return nn.Sequential(conv, nn.Identity(), *norm, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_layers(x)


class _Layer(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class _Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(*(_Layer(dim, heads, hidden) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.layer_norm(x))


class _Quantizer(nn.Module):
    """Code book of the pre-training targets; holds weights only."""

    def __init__(self, channels: int, groups: int, codes: int, width: int):
        super().__init__()
        self.vars = nn.Parameter(torch.empty(1, groups * codes, width // groups))
        self.weight_proj = nn.Linear(channels, groups * codes)


class EcgFm(Encoder):
    """ECG-FM (McKeen et al. 2024, "ECG-FM: an open electrocardiogram foundation model").

    Four convolutions over all leads, convolved positions and twelve post-norm transformer layers, as in wav2vec 2.0
    (Baevski et al. 2020): 156 tokens of 768 for 5 s at 500 Hz. Pre-trained by contrasts between masked tokens and
    between segments, on records that include PTB-XL's, each lead left out (set to 0) at random: a lead that is absent
    is passed as zeros. The embedding is the mean of the tokens.

    `mask_emb`, `quantizer`, `project_q` and `final_proj` served pre-training only and take no part in the tokens.

    Parameters
    ----------
    dim, depth, heads, hidden : int
        Of the transformer: width of a token, layers, attention heads, width between the two layers of a feed-forward.
    channels : int
        Of the convolutions.
    codes, projection : int
        Of pre-training: codes in each of the two groups of the code book, width of its targets.
    """

    input_spec = InputSpec(fs=500, seconds=5, record=(Resample(500, "linear"), ZScore("lead")))
    license = "not established (code and an earlier release: MIT)"

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        channels: int = 256,
        codes: int = 320,
        projection: int = 256,
    ):
        super().__init__()
        self.dim = dim
        self.feature_extractor = _FeatureExtractor(channels)
        self.layer_norm = nn.LayerNorm(channels)
        self.post_extract_proj = nn.Linear(channels, dim)
        self.conv_pos = nn.ModuleDict({"pos_conv": nn.Sequential(positional_convolution(dim))})
        self.encoder = _Transformer(dim, depth, heads, hidden)
        self.mask_emb = nn.Parameter(torch.empty(dim))
        self.quantizer = _Quantizer(channels, 2, codes, projection)
        self.project_q = nn.Linear(projection, projection)
        self.final_proj = nn.Linear(dim, projection)
        initialise(self)
        nn.init.trunc_normal_(self.mask_emb, std=0.02)
        nn.init.trunc_normal_(self.quantizer.vars, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, 2500) to (n, 156, dim) tokens; other lengths give one token in 16 samples."""
        features = self.feature_extractor(x).transpose(1, 2)
        tokens = self.post_extract_proj(self.layer_norm(features))
        return self.encoder(add_positions(tokens, self.conv_pos["pos_conv"]))

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take a pre-trained file as it is; of a fine-tuned one, the encoder.

        There the encoder's names begin with `encoder.`, its classifier `proj` is dropped, and the parts that served
        pre-training are absent: they are removed here too.
        """
        prefix = "encoder."
        if f"{prefix}post_extract_proj.weight" not in state:
            return state
        for part in _PRETRAINING:
            if hasattr(self, part) and not any(key.startswith(prefix + part) for key in state):
                delattr(self, part)
        head = ("proj.weight", "proj.bias")
        return {key.removeprefix(prefix): value for key, value in state.items() if key not in head}

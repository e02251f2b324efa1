"""HuBERT-ECG: a speech transformer that reads the twelve leads one after the other (Coppola et al. 2024)."""

from dataclasses import dataclass
from itertools import count, takewhile
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cure.models.base import Encoder, InputSpec
from cure.models.steps import FirBandpass, FlattenDecimate, MinMax, Resample
from cure.models.wav2vec import SelfAttention, add_positions, initialise, positional_convolution


@dataclass(frozen=True)
class HubertSize:
    """Widths and depths.

    Attributes
    ----------
    dim, depth, heads, hidden : int
        Of the transformer: width of a token, layers, attention heads, width between the two layers of a feed-forward.
    projection : int
        Width of the pre-training head.
    vocabulary : int
        Clusters that the pre-training head tells apart.
    channels : int
        Of the convolutions.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    projection: int = 256
    vocabulary: int = 500
    channels: int = 512


SIZES = {
    "small": HubertSize(dim=512, depth=8, heads=8, hidden=2048),
    "base": HubertSize(dim=768, depth=12, heads=12, hidden=3072),
    "large": HubertSize(dim=960, depth=16, heads=12, hidden=3840, projection=512),
}

#: Kernel and stride of each convolution.
_CONVOLUTIONS = ((10, 4), (3, 2), (3, 2), (2, 2), (2, 2))


class _ConvLayer(nn.Module):
    """Convolution without bias, in the first layer a normalisation of each channel over time, GELU."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, *, normed: bool):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride=stride, bias=False)
        self.layer_norm = nn.GroupNorm(n_out, n_out) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x)))


class _FeatureExtractor(nn.Module):
    """(n, 1, n_samples) to (n, channels, t): 6000 samples become 93 tokens."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(
                _ConvLayer(channels if i else 1, channels, kernel, stride, normed=i == 0)
                for i, (kernel, stride) in enumerate(_CONVOLUTIONS)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_layers(x)


class _FeatureProjection(nn.Module):
    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.intermediate_dense = nn.Linear(dim, hidden)
        self.output_dense = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class _Layer(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self, size: HubertSize):
        super().__init__()
        self.attention = SelfAttention(size.dim, size.heads)
        self.layer_norm = nn.LayerNorm(size.dim)
        self.feed_forward = _FeedForward(size.dim, size.hidden)
        self.final_layer_norm = nn.LayerNorm(size.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x))


class _Transformer(nn.Module):
    def __init__(self, size: HubertSize):
        super().__init__()
        self.pos_conv_embed = nn.ModuleDict({"conv": positional_convolution(size.dim)})
        self.layer_norm = nn.LayerNorm(size.dim)
        self.layers = nn.Sequential(*(_Layer(size) for _ in range(size.depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.layer_norm(add_positions(x, self.pos_conv_embed["conv"])))


class HubertEcg(Encoder):
    """HuBERT (Hsu et al. 2021) on ECGs: five convolutions, convolved positions, post-norm transformer layers.

    Five seconds of the twelve leads stand one after the other in one vector at 100 Hz, so a token is 0.64 s of one lead
    and attention runs over leads and time alike: 93 tokens. Pre-trained to tell clusters of masked tokens on records
    that include PTB-XL's (Coppola et al. 2024, "HuBERT-ECG as a self-supervised foundation model for broad and scalable
    cardiac applications").

    `masked_spec_embed`, `final_proj` and `label_embedding` served pre-training only and take no part in the tokens.

    Parameters
    ----------
    size : {"small", "base", "large"} or HubertSize
    """

    input_spec = InputSpec(
        fs=100,
        seconds=5,
        record=(FirBandpass(0.05, 47, 0.3), Resample(500, "polyphase"), MinMax("lead", -1, 1)),
        window=(FlattenDecimate(5),),
    )
    license = "CC BY-NC 4.0 (non-commercial)"
    timed = False

    def __init__(self, size: Literal["small", "base", "large"] | HubertSize = "base"):
        super().__init__()
        size = size if isinstance(size, HubertSize) else SIZES[size]
        self.dim = size.dim
        self.masked_spec_embed = nn.Parameter(torch.empty(size.dim))
        self.feature_extractor = _FeatureExtractor(size.channels)
        self.feature_projection = _FeatureProjection(size.channels, size.dim)
        self.encoder = _Transformer(size)
        self.final_proj = nn.ModuleList([nn.Linear(size.dim, size.projection)])
        self.label_embedding = nn.ModuleList([nn.Embedding(size.vocabulary, size.projection)])
        initialise(self)
        nn.init.trunc_normal_(self.masked_spec_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6000) flattened leads to (n, 93, dim) tokens.

        Other lengths give other numbers of tokens; the pre-trained weights have seen 6000.
        """
        features = self.feature_extractor(x[:, None]).transpose(1, 2)
        return self.encoder(self.feature_projection(features))

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the published names as they are, and make as many pre-training heads as the file has, of its sizes.

        Files differ in their vocabularies, and may come without the heads.
        """
        like = {"device": self.masked_spec_embed.device, "dtype": self.masked_spec_embed.dtype}
        self.final_proj = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, self.dim, len(weight), **like) for weight in _numbered(state, "final_proj")
        )
        self.label_embedding = nn.ModuleList(
            nn.utils.skip_init(nn.Embedding, *weight.shape, **like) for weight in _numbered(state, "label_embedding")
        )
        return state


def _numbered(state: dict[str, Tensor], name: str) -> list[Tensor]:
    """`name.0.weight`, `name.1.weight`, ... as far as there are."""
    keys = takewhile(state.__contains__, (f"{name}.{i}.weight" for i in count()))
    return [state[key] for key in keys]

"""KED's signal encoder: an xresnet1d101."""

from torch import Tensor, nn

from cure.models.base import Encoder, InputSpec
from cure.models.merl import MIMIC_LEADS
from cure.models.steps import Resample

_STEM = (32, 32, 64)
#: Per stage: number of blocks, channels inside a block, channels around it, stride.
_STAGES = ((3, 64, 256, 1), (4, 128, 512, 2), (23, 128, 512, 2), (3, 192, 768, 2))


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, with `act`, ReLU."""
    conv = nn.Conv1d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(n_out), *([nn.ReLU()] if act else []))


class _Bottleneck(nn.Module):
    """Convolutions of 1, 5 and 1 samples beside an identity that is averaged and projected where shapes differ."""

    def __init__(self, n_in: int, inner: int, outer: int, stride: int):
        super().__init__()
        self.convs = nn.Sequential(
            _conv(n_in, inner, 1), _conv(inner, inner, 5, stride), _conv(inner, outer, 1, act=False)
        )
        # The published files hold these convolutions under two names.
        self.convpath = nn.Sequential(self.convs)
        pool = [nn.AvgPool1d(2, ceil_mode=True)] if stride > 1 else []
        project = [_conv(n_in, outer, 1, act=False)] if n_in != outer else []
        self.idpath = nn.Sequential(*pool, *project)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.convpath(x) + self.idpath(x))


class Ked(Encoder):
    """KED (Tian et al. 2024, Cell Reports Medicine): trained to match ECGs with knowledge-enhanced reports; dim 768.

    An xresnet1d101 (the ResNet of He et al. 2019, "Bag of tricks", in one dimension) without its head: a stem of three
    convolutions and 33 bottleneck blocks. Tokens are the 32 steps of the last feature map. Input is 100 Hz in mV, in
    MIMIC's order of leads.
    """

    license = "not stated"
    dim = _STAGES[-1][2]
    input_spec = InputSpec(fs=100, seconds=10, leads=MIMIC_LEADS, record=(Resample(100, "fourier"),))

    def __init__(self) -> None:
        super().__init__()
        n_in = len(self.input_spec.leads)
        layers: list[nn.Module] = []
        for width, stride in zip(_STEM, (2, 1, 1), strict=True):
            layers.append(_conv(n_in, width, 5, stride))
            n_in = width
        layers.append(nn.MaxPool1d(3, stride=2, padding=1))
        for depth, inner, outer, stride in _STAGES:
            blocks = [_Bottleneck(n_in, inner, outer, stride)]
            blocks += [_Bottleneck(outer, inner, outer, 1) for _ in range(depth - 1)]
            layers.append(nn.Sequential(*blocks))
            n_in = outer
        # The published files number the layers from 0, without a name around them.
        for i, layer in enumerate(layers):
            self.add_module(str(i), layer)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to (n, n_samples / 32, 768) tokens, rounded up at each halving."""
        for layer in self.children():
            x = layer(x)
        return x.transpose(1, 2)

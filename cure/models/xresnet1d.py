"""xresnet1d101, the best single model of the PTB-XL benchmark (Strodthoff et al. 2021, IEEE J-BHI 25(5)).

A ResNet in 1-D with the changes of He et al. 2019 (Bag of tricks for image classification, CVPR): a stem of three small
convolutions, an average pool on the shortcut where time is halved, a last normalisation of each block that starts at
zero. The benchmark keeps 64 filters in all four stages, where ResNets for images double them from stage to stage.
"""

from itertools import pairwise

from torch import Tensor, nn

from cure.models.base import PLAIN, Encoder

#: Filters of the middle convolution of every block, and how many times that its output has.
_WIDTH, _EXPANSION = 64, 4


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm1d(n_out))


class _Bottleneck(nn.Module):
    """Convolutions of kernel 1, `kernel`, 1; the middle one may halve time, and the shortcut then pools over two."""

    def __init__(self, n_in: int, stride: int, kernel: int):
        super().__init__()
        n_out = _WIDTH * _EXPANSION
        self.residual = nn.Sequential(
            _conv(n_in, _WIDTH, 1),
            nn.ReLU(),
            _conv(_WIDTH, _WIDTH, kernel, stride),
            nn.ReLU(),
            _conv(_WIDTH, n_out, 1),
        )
        shortcut: list[nn.Module] = [nn.AvgPool1d(2, ceil_mode=True)] if stride > 1 else []
        self.shortcut = nn.Sequential(*shortcut, *([_conv(n_in, n_out, 1)] if n_in != n_out else []))

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.residual(x)).relu()


class XResNet1d101(Encoder):
    """Stem (stride 2), max pool, stages of 3, 4, 23 and 3 blocks: a token of 256 per 0.32 s.

    The benchmark trains it on crops of 2.5 s and reads out mean and maximum over time: pooling `mean+max`. Its head
    has a normalisation and dropout before the linear layer; the plain linear head here has neither. Input is 100 Hz,
    0.5 Hz high-passed, in units of 0.2 mV, of any length from 2 s; the benchmark standardises instead.
    """

    input_spec = PLAIN
    dim = _WIDTH * _EXPANSION

    def __init__(self, depths: tuple[int, ...] = (3, 4, 23, 3), kernel: int = 5):
        super().__init__()
        widths = (len(self.input_spec.leads), 32, 32, _WIDTH)
        layers = [
            nn.Sequential(_conv(n_in, n_out, 5, stride=2 if i == 0 else 1), nn.ReLU())
            for i, (n_in, n_out) in enumerate(pairwise(widths))
        ]
        self.stem = nn.Sequential(*layers, nn.MaxPool1d(3, stride=2, padding=1))
        self.residuals = nn.ModuleList(
            nn.Sequential(
                *(
                    _Bottleneck(_WIDTH if i == j == 0 else self.dim, stride=2 if i > 0 and j == 0 else 1, kernel=kernel)
                    for j in range(depth)
                )
            )
            for i, depth in enumerate(depths)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                # As the benchmark: He et al. 2015 with torch's default gain; every bias is zero.
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, _Bottleneck):
                nn.init.zeros_(layer.residual[-1][1].weight)  # type: ignore[index]

    def stages(self) -> list[nn.Module]:
        """The stem and the four stages."""
        return [self.stem, *self.residuals]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to (n, n_samples / 32, 256) tokens."""
        for stage in self.stages():
            x = stage(x)
        return x.transpose(1, 2)

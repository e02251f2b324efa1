"""ResNet of Wang, Yan and Oates 2017, as the PTB-XL benchmark of Strodthoff et al. 2021 configures it: `resnet1d_wang`.

Wang et al.: Time series classification from scratch with deep neural networks, IJCNN 2017, section II-C. Strodthoff et
al.: Deep learning for ECG analysis, IEEE J-BHI 25(5), 2021: there among the best of what is trained from scratch.
"""

from torch import Tensor, nn

from cure.models.base import PLAIN, Encoder


class _Block(nn.Module):
    """Residual block, normalised after each convolution and rectified after the sum; the first one may halve time."""

    def __init__(self, width: int, kernels: tuple[int, int], stride: int):
        super().__init__()
        first, second = kernels
        self.residual = nn.Sequential(
            nn.Conv1d(width, width, first, stride, padding=first // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, second, padding=second // 2, bias=False),
            nn.BatchNorm1d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv1d(width, width, 1, stride, bias=False), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.residual(x)).relu()


class ResNet1dWang(Encoder):
    """Stem of kernel 7 and three residual blocks of kernels 5 and 3, the last two halving time: a token per 0.04 s.

    Input is 100 Hz, 0.5 Hz high-passed, in units of 0.2 mV, of any length.
    """

    input_spec = PLAIN
    dim = 128

    def __init__(self, kernels: tuple[int, int] = (5, 3), strides: tuple[int, ...] = (1, 2, 2)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(len(self.input_spec.leads), self.dim, 7, padding=3, bias=False),
            nn.BatchNorm1d(self.dim),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(_Block(self.dim, kernels, stride) for stride in strides))
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                # He et al. 2015. With torch's default, activations shrink from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def stages(self) -> list[nn.Module]:
        """The stem and the blocks."""
        return [self.stem, *self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to (n, n_samples / 4, 128) tokens."""
        return self.blocks(self.stem(x)).transpose(1, 2)

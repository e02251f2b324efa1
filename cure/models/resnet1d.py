"""A small residual CNN over 12 leads, in the manner of He et al. 2016 with pre-activation blocks along time."""

from torch import Tensor, nn

from cure.models.base import PLAIN, Encoder


class _Block(nn.Module):
    """Pre-activation residual block that halves time: two convolutions beside a pooled 1x1 shortcut."""

    def __init__(self, width_in: int, width: int, kernel: int = 7):
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm1d(width_in),
            nn.ReLU(),
            nn.Conv1d(width_in, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False),
        )
        self.shortcut = nn.Sequential(nn.AvgPool1d(2, ceil_mode=True), nn.Conv1d(width_in, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class ResNet1d(Encoder):
    """Stem (stride 2) and four residual blocks: a token per 0.32 s, 32 tokens of 256 for 10 s.

    Input is 100 Hz, 0.5 Hz high-passed, in units of 0.2 mV, so that a typical QRS is of order one.
    """

    input_spec = PLAIN
    dim = 256

    def __init__(self, widths: tuple[int, ...] = (64, 128, 192, 256)):
        super().__init__()
        self.stem = nn.Conv1d(len(self.input_spec.leads), widths[0], 15, stride=2, padding=7, bias=False)
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairs))
        self.norm = nn.Sequential(nn.BatchNorm1d(widths[-1]), nn.ReLU())
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                # He et al. 2015. With torch's default, activations shrink from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def stages(self) -> list[nn.Module]:
        """The stem and the blocks."""
        return [self.stem, *self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, 1000) to (n, 32, 256) tokens."""
        return self.norm(self.blocks(self.stem(x))).transpose(1, 2)

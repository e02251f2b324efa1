"""An encoder that trains in no time, for tests of training."""

from torch import nn

from cure.models import Encoder, InputSpec
from cure.models.base import seeded
from cure.models.leadcnn import _Residual


class Small(Encoder):
    """Two stages, each a convolution and a batch normalisation."""

    input_spec = InputSpec(fs=100, seconds=10)
    dim = 16

    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv1d(12, self.dim, 9, stride=5), nn.BatchNorm1d(self.dim))
        self.mix = nn.Sequential(nn.Conv1d(self.dim, self.dim, 1), nn.BatchNorm1d(self.dim))

    def stages(self):
        return [self.enter, self.mix]

    def forward(self, x):
        return self.mix(self.enter(x).abs()).transpose(1, 2)


class Residual(Small):
    """Small, with a residual block of LeadCNN in it."""

    def __init__(self):
        super().__init__()
        self.block = _Residual(self.dim)

    def forward(self, x):
        return self.mix(self.block(self.enter(x).abs())).transpose(1, 2)


def small() -> Small:
    with seeded(0):
        return Small().eval()

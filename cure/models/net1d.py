"""Net1D, a grouped bottleneck CNN with squeeze-and-excitation, and its two families of weights: ECGFounder and CLEF."""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cure.errors import CureError
from cure.models.base import Encoder, InputSpec
from cure.models.steps import Butterworth, Notch, Resample, SubtractMedian, ZScore
from cure.signals import LEADS

_KERNEL = 16


@dataclass(frozen=True)
class Shape:
    """Sizes of a Net1D.

    Attributes
    ----------
    stem : int
        Channels of the first convolution.
    widths, depths : tuple of int
        Channels and number of blocks of each stage; each stage halves the number of samples.
    ratio : float
        Channels inside a block per channel around it.
    group : int
        Channels around a block per group of its middle convolution.
    """

    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratio: float = 1.0
    group: int = 16


ECGFOUNDER = Shape(64, (64, 160, 160, 400, 400, 1024, 1024), (2, 2, 2, 3, 3, 4, 4))
CLEF = {
    "small": Shape(32, (32, 64, 64, 128, 128, 256), (1, 1, 2, 2, 2, 2), ratio=0.5, group=8),
    "medium": ECGFOUNDER,
    "large": Shape(
        128, (128, 256, 256, 512, 512, 1024, 1024, 2048, 2048), (2, 3, 3, 4, 4, 5, 5, 6, 6), ratio=1.5, group=32
    ),
}


class _SameConv(nn.Module):
    """Convolution to ceil(n / stride) samples, padded by zeros: where their number is odd, one more on the right."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        (kernel,), (stride,), n = self.conv.kernel_size, self.conv.stride, x.shape[-1]
        total = max(0, (-(-n // stride) - 1) * stride + kernel - n)
        left, right = total // 2, total - total // 2
        weight, bias, groups = self.conv.weight, self.conv.bias, self.conv.groups
        if stride == 1:
            # With `right` zeros on both sides too, every output is one later: cheaper than a padded copy of the input.
            return F.conv1d(x, weight, bias, padding=right, groups=groups)[..., right - left :]
        if right > left:
            x = F.pad(x, (0, right - left))
        return F.conv1d(x, weight, bias, stride=stride, padding=left, groups=groups)


class _Block(nn.Module):
    """Pre-activation residual block: 1, k and 1 wide convolutions and a gate per channel, beside a shortcut.

    The batch norms belong to the published files and take no part: these networks were trained without them.
    """

    def __init__(self, n_in: int, n_out: int, shape: Shape, *, stride: int, first: bool):
        super().__init__()
        middle = int(n_out * shape.ratio)
        self.first, self.stride, self.grown = first, stride, n_out - n_in
        self.bn1 = nn.BatchNorm1d(n_in)
        self.conv1 = _SameConv(n_in, middle, 1)
        self.bn2 = nn.BatchNorm1d(middle)
        self.conv2 = _SameConv(middle, middle, _KERNEL, stride, groups=n_out // shape.group)
        self.bn3 = nn.BatchNorm1d(middle)
        self.conv3 = _SameConv(middle, n_out, 1)
        self.se_fc1 = nn.Linear(n_out, n_out // 2)
        self.se_fc2 = nn.Linear(n_out // 2, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, t) to (n, n_out, ceil(t / stride))."""
        return self.branch(x) + self.shortcut(x)

    def branch(self, x: Tensor) -> Tensor:
        """The learnt part: (n, n_in, t) to (n, n_out, ceil(t / stride))."""
        y = self.conv1(x if self.first else F.silu(x))
        y = self.conv2(F.silu(y))
        y = self.conv3(F.silu(y))
        gate = self.se_fc2(F.silu(self.se_fc1(y.mean(dim=-1)))).sigmoid()
        return y * gate[..., None]

    def shortcut(self, x: Tensor) -> Tensor:
        """The part without weights: maximum over each stride, zeros for channels that `x` lacks; shapes as `branch`."""
        if self.stride > 1:
            x = F.max_pool1d(F.pad(x, (0, 1)) if x.shape[-1] % 2 else x, self.stride)
        if self.grown:
            x = F.pad(x, (0, 0, self.grown // 2, self.grown - self.grown // 2))
        return x


class _Stage(nn.Module):
    """Blocks of one width; the first halves the number of samples."""

    def __init__(self, n_in: int, n_out: int, depth: int, shape: Shape, *, first: bool):
        super().__init__()
        self.block_list = nn.ModuleList(
            _Block(n_out if i else n_in, n_out, shape, stride=1 if i else 2, first=first and not i)
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block_list:
            x = block(x)
        return x


class Net1d(Encoder):
    """Stem and stages of gated bottleneck blocks, each halving the number of samples, for input of any length.

    The network is Hong et al.'s (HOLMES, KDD 2020) with squeeze-and-excitation after Hu et al. (2018). A token is one
    step of the last feature map.

    Parameters
    ----------
    n_leads : int
    shape : Shape
    """

    def __init__(self, n_leads: int, shape: Shape):
        super().__init__()
        self.dim = shape.widths[-1]
        self.first_conv = _SameConv(n_leads, shape.stem, _KERNEL, 2)
        self.first_bn = nn.BatchNorm1d(shape.stem)
        ends = pairwise((shape.stem, *shape.widths))
        self.stage_list = nn.ModuleList(
            _Stage(n_in, n_out, depth, shape, first=not i)
            for i, ((n_in, n_out), depth) in enumerate(zip(ends, shape.depths, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) to (n, t, dim) tokens; t is n_samples halved per stage and once more, rounded up."""
        x = F.silu(self.first_conv(x))
        for stage in self.stage_list:
            x = stage(x)
        return x.transpose(1, 2)


class EcgFounder(Net1d):
    """ECGFounder (Li et al., arXiv 2410.04133): Net1D trained on 150 diagnoses of 10.7 million ECGs; dim 1024.

    Input is 500 Hz, filtered 0.67-40 Hz without mains hum and running median, standardised over all leads together.
    The model for one lead is fed lead I: which lead it was trained on was not established.

    Parameters
    ----------
    n_leads : {12, 1}
    shape : Shape
        The published sizes, or others.

    Raises
    ------
    CureError
        For another number of leads.
    """

    license = "not stated (code: MIT)"

    def __init__(self, n_leads: int = 12, shape: Shape = ECGFOUNDER):
        if n_leads not in (1, 12):
            raise CureError(f"ECGFounder has weights for 12 leads and for 1, not for {n_leads}: set n_leads to 12 or 1")
        super().__init__(n_leads, shape)
        self.dense = nn.Linear(self.dim, 150)
        self.input_spec = InputSpec(
            fs=500,
            seconds=10,
            leads=LEADS[:n_leads],
            record=(Resample(500), Notch(50, q=30), Butterworth("bandpass", 4, (0.67, 40)), SubtractMedian(0.4)),
            window=(ZScore("record", eps=1e-8),),
        )

    def logits(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) model-ready input to the logits of the 150 diagnoses trained on, (n, 150)."""
        return self.dense(self.embed(x))


class Clef(Net1d):
    """CLEF (Shu et al., arXiv 2512.02180): Net1D for one lead, trained by contrasts weighted with clinical risk.

    Input is lead II at 500 Hz, standardised.

    Parameters
    ----------
    size : {"small", "medium", "large"}
        Of 256, 1024 and 2048 dimensions.

    Raises
    ------
    CureError
        For another size.
    """

    license = "Clear BSD (no patent rights)"

    def __init__(self, size: str = "small"):
        if size not in CLEF:
            raise CureError(f"CLEF has no size {size!r}: choose from {', '.join(CLEF)}")
        super().__init__(1, CLEF[size])
        self.input_spec = InputSpec(
            fs=500, seconds=10, leads=("II",), record=(Resample(500),), window=(ZScore("record"),)
        )

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published files have the encoder as `backbone`; its head `dense` is dropped, all else stays as it is."""
        kept = {name: value for name, value in state.items() if not name.startswith("backbone.dense.")}
        return {name.removeprefix("backbone."): value for name, value in kept.items()}

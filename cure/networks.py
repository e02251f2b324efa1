"""Networks that are trained on a split: an encoder under a linear head, or attention over its frozen tokens."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor, nn

from cure.depth import residual_blocks
from cure.embed import pool
from cure.errors import CureError
from cure.models import Encoder

#: Length of a training crop and of a scored window where nothing else is said, seconds: half a record.
WINDOW_S = 5.0
#: What decides on validation records: the loss, or one minus the macro AUROC.
Judge = Literal["loss", "auroc"]


@dataclass(frozen=True)
class Preview:
    """Training of the head alone, before all is trained: so many epochs at most, at this peak learning rate."""

    epochs: int
    rate: float


def stages(encoder: Encoder) -> list[nn.Module]:
    """The encoder's stages from input to output: those that it names, else what is before its blocks, and each block.

    Raises
    ------
    CureError
        If it names none and has no residual blocks.
    """
    if type(encoder).stages is not Encoder.stages:
        return encoder.stages()
    blocks = residual_blocks(encoder)
    first = id(next(blocks[0].parameters()))
    before = takewhile(lambda parameter: id(parameter) != first, encoder.parameters())
    return [nn.ParameterList(before), *blocks]


def depths(encoder: Encoder) -> dict[str, int]:
    """Which of the encoder's stages each parameter belongs to, by name, counted from the input."""
    owner = {id(p): i for i, stage in enumerate(stages(encoder)) for p in stage.parameters()}
    found, current = {}, 0
    for name, parameter in encoder.named_parameters():
        current = owner.get(id(parameter), current)
        found[name] = current
    return found


class Classifier(nn.Module):
    """An encoder and a linear head with one logit per task. The head starts at zero: every probability at a half.

    Attributes
    ----------
    window : int or None
        Samples of a training crop and of a scored window; None: the whole input.
    scales : dict of str to float
        Share of the learning rate by parameter, see `cure.training.train`.
    drop : Module
        Between read-out and head.
    preview : Preview or None
        Training of the head alone that comes first.
    judged_by : {"loss", "auroc"}
        What decides on validation records when to stop and which epoch to keep.
    """

    def __init__(self, encoder: Encoder, pooling: str, n_tasks: int, window_s: float | None = WINDOW_S):
        super().__init__()
        self.title = type(encoder).__name__
        self.encoder = encoder
        self.window = None if window_s is None else round(window_s * encoder.input_spec.fs)
        self.scales: dict[str, float] = {}
        self.drop: nn.Module = nn.Identity()
        self.preview: Preview | None = None
        self.judged_by: Judge = "loss"
        self._still: list[nn.Module] = []
        self.poolings = pooling.split("+")
        self.head = nn.Linear(encoder.dim * len(self.poolings), n_tasks)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) model-ready input to (n, n_tasks) float32 logits."""
        read_out = self.read_out(x)
        # Eight bits of mantissa would make ties of scores that differ.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.drop(read_out.float()))

    def read_out(self, x: Tensor) -> Tensor:
        """What the head reads, (n, dim times the number of poolings)."""
        tokens = self.encoder(x)
        return torch.cat([pool(tokens, name) for name in self.poolings], dim=1)

    def train_last(self, k: int) -> None:
        """Freeze all but the last k stages and the head, the statistics of frozen batch normalisations included.

        Raises
        ------
        CureError
            If the encoder has fewer stages, or does not name them.
        """
        every = stages(self.encoder)
        if not 1 <= k <= len(every):
            raise CureError(
                f"strategy 'last-{k}': {self.title} has {len(every)} stages; choose last-1 to last-{len(every)}"
            )
        first = len(every) - k
        for name, depth in depths(self.encoder).items():
            if depth < first:
                self.encoder.get_parameter(name).requires_grad_(False)
        norms = [m for m in self.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._still = every[:first] + [m for m in norms if m.weight is not None and not m.weight.requires_grad]

    def train_only(self, names: Collection[str]) -> None:
        """Freeze all of the encoder but these parameters; it stays in evaluation mode, statistics included."""
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(name in names)
        self._still = [self.encoder]

    @contextmanager
    def head_only(self) -> Iterator[None]:
        """Freeze the encoder within, in evaluation mode: neither its weights nor its statistics change."""
        trained = [p for p in self.encoder.parameters() if p.requires_grad]
        still, self._still = self._still, [self.encoder]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            self._still = still
            for parameter in trained:
                parameter.requires_grad_(True)

    def slow_down(self, factor: float) -> None:
        """Let each stage learn with `factor` times the rate of the one after it, the head with the whole.

        Layer-wise decay as in Clark et al. 2020 (ELECTRA, ICLR) and Bao et al. 2022 (BEiT, ICLR).
        """
        n = len(stages(self.encoder))
        self.scales = {f"encoder.{name}": factor ** (n - depth) for name, depth in depths(self.encoder).items()}

    def train(self, mode: bool = True) -> "Classifier":
        """As for any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self


class AttentiveProbe(nn.Module):
    """One learnt query per task attends to the tokens of a frozen encoder; a linear map reads what it finds.

    Tokens are standardised by batch statistics. Queries start at zero, so that attention starts as the mean over time,
    and so does the linear map: every probability at a half. Attentive probes as in Bardes et al. 2024 (V-JEPA), with a
    query for each task and neither values' projection nor MLP.
    """

    window = None
    title = "attentive probe"

    def __init__(self, dim: int, n_tasks: int):
        super().__init__()
        self.scales: dict[str, float] = {}
        self.judged_by: Judge = "loss"
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.query = nn.Parameter(torch.zeros(n_tasks, dim))
        self.weight = nn.Parameter(torch.zeros(n_tasks, dim))
        self.bias = nn.Parameter(torch.zeros(n_tasks))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, dim) tokens to (n, n_tasks) float32 logits."""
        with torch.autocast(tokens.device.type, enabled=False):
            z = self.norm(tokens.float().mT)
            attention = (self.query @ z * z.shape[1] ** -0.5).softmax(dim=-1)
            return (attention * (self.weight @ z)).sum(dim=-1) + self.bias


#: What can be trained on a split.
Network = Classifier | AttentiveProbe

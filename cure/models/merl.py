"""MERL's two signal encoders: a ResNet18 along time and a small vision transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cure.errors import CureError
from cure.models.base import Encoder, InputSpec
from cure.models.steps import MinMax, Resample
from cure.models.vit import Block

#: MIMIC-IV-ECG's order of leads: aVF comes before aVL.
MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")

_INPUT = InputSpec(
    fs=500, seconds=10, leads=MIMIC_LEADS, record=(Resample(500),), window=(MinMax("record", low=0.0, high=1.0),)
)
_LICENSE = "not stated (code: MIT)"


class _BasicBlock(nn.Module):
    """Two convolutions of three samples beside the identity, which is projected where shapes differ."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(n_out)
        self.conv2 = nn.Conv1d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(n_out)
        changed = stride > 1 or n_in != n_out
        project = [nn.Conv1d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm1d(n_out)] if changed else []
        self.shortcut = nn.Sequential(*project)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class MerlResNet18(Encoder):
    """MERL's ResNet18 (Liu et al. 2024, ICML), trained to match MIMIC-IV's ECGs with their reports; dim 512.

    Four stages of two basic blocks (He et al. 2016) in one dimension, without max-pooling: 313 tokens for 10 s. Input
    is 500 Hz, mapped to 0..1 over all leads together, in MIMIC's order of leads.
    """

    input_spec = _INPUT
    license = _LICENSE
    dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(len(MIMIC_LEADS), 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(64)
        self.layer1 = nn.Sequential(_BasicBlock(64, 64, 1), _BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(_BasicBlock(64, 128, 2), _BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(_BasicBlock(128, 256, 2), _BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(_BasicBlock(256, 512, 2), _BasicBlock(512, 512, 1))
        self.linear: nn.Linear | None = nn.Linear(self.dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to (n, n_samples / 16, 512) tokens, rounded up at each halving."""
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.transpose(1, 2)

    def logits(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) model-ready input to the logits of the linear head, (n, n_classes).

        Raises
        ------
        CureError
            If the weights loaded have no head.
        """
        if self.linear is None:
            raise CureError(
                "these MERL weights have no linear head: fit one on `embed`, or load a file with 'linear.*'"
            )
        return self.linear(self.embed(x))

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published file is a bare state dict; this module's head is given the size of the file's, or removed.

        The head takes no part in tokens.
        """
        weight = state.get("linear.weight")
        if weight is None and "linear.bias" not in state:
            self.linear = None
        elif weight is not None and weight.ndim == 2:
            self.linear = nn.Linear(self.dim, len(weight), device=self.conv1.weight.device)
        return state


class MerlViTTiny(Encoder):
    """MERL's ViT-tiny (Liu et al. 2024, ICML): patches of 0.1 s across 12 leads, 12 layers, 100 tokens of 192.

    The last norm follows the mean over tokens. Input as `MerlResNet18`. Names of the state dict are those of
    `utils/vit1d.py` in the MIT-licensed repository cheliu-computation/MERL-ICML2024; queries, keys and values have a
    bias, which the published number of parameters counts.
    """

    input_spec = _INPUT
    license = _LICENSE
    dim = 192

    def __init__(self) -> None:
        super().__init__()
        patch, depth = 50, 12
        n_tokens = round(self.input_spec.fs * self.input_spec.seconds) // patch
        self.to_patch_embedding = nn.Conv1d(len(MIMIC_LEADS), self.dim, patch, stride=patch, bias=False)
        self.pos_embedding = nn.Parameter(torch.empty(1, n_tokens, self.dim))
        self._blocks = [f"block{i}" for i in range(depth)]
        for name in self._blocks:
            self.add_module(name, Block(self.dim, heads=3, hidden=4 * self.dim))
        self.norm = nn.LayerNorm(self.dim)
        nn.init.trunc_normal_(self.pos_embedding, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, 5000) to (n, 100, 192) tokens, before the last norm."""
        x = self.to_patch_embedding(x).transpose(1, 2) + self.pos_embedding
        for name in self._blocks:
            x = getattr(self, name)(x)
        return x

    def readout(self, tokens: Tensor) -> Tensor:
        """(n, t, 192) tokens to the norm of their mean, (n, 192)."""
        return self.norm(tokens.mean(dim=1))

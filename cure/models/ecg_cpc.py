"""ECG-CPC (Al-Masud et al., arXiv 2509.25095): short convolutions and S4 layers, by contrastive predictive coding."""

from torch import Tensor, nn

from cure.models.base import Encoder, InputSpec
from cure.models.s4 import S4
from cure.models.steps import Resample
from cure.signals import LEADS


class _Predictor(nn.Module):
    """S4 layers with the norm after the shortcut."""

    def __init__(self, dim: int, depth: int, n_states: int, length: int):
        super().__init__()
        self.s4_layers = nn.ModuleList(S4(dim, n_states, length) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.s4_layers, self.norms, strict=True):
            x = norm((layer(x) + x).mT).mT
        return x


class EcgCpc(Encoder):
    """One token per two samples (8.3 ms); a token knows the past only, as far back as the window goes.

    Input: 12 leads at 240 Hz, in mV, neither filtered nor normalised. Any length works; records are read in windows of
    2.5 s whose embeddings are averaged, as in the benchmark that published the model, though it was trained on 10 s.
    The original drops units between the layers in training; that is left out. `head_ssl` belongs to the pre-training.

    Parameters
    ----------
    dim, depth : int
        Width, and number of S4 layers; by default those of the published weights.
    """

    input_spec = InputSpec(fs=240, seconds=2.5, record=(Resample(240),))
    license = "not stated"

    def __init__(self, dim: int = 512, depth: int = 4):
        super().__init__()
        self.dim = dim
        shapes = [(len(LEADS), 3, 2), *[(dim, 1, 1)] * 3]
        convolutions = (
            nn.Sequential(
                nn.Conv1d(width, dim, kernel, stride=stride, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(dim),
                nn.ReLU(),
            )
            for width, kernel, stride in shapes
        )
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*convolutions)})
        self.predictor = nn.ModuleDict({"predictor": _Predictor(dim, depth, n_states=8, length=1200)})
        self.head_ssl = nn.ModuleDict({"proj": nn.Sequential(nn.Linear(dim, dim, bias=False))})

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) mV to (n, n_samples / 2, dim) tokens."""
        return self.predictor["predictor"](self.encoder["layers"](x)).mT

    def accept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Strip the prefix `ts_encoder.` of the published file; a file without `head_ssl` removes it here too."""
        state = {name.removeprefix("ts_encoder."): value for name, value in state.items()}
        if hasattr(self, "head_ssl") and not any(name.startswith("head_ssl.") for name in state):
            del self.head_ssl
        return state

"""S4 for ECG, trained from scratch: the model of Mehari and Strodthoff 2023 (arXiv 2211.07579).

Towards quantitative precision for ECG analysis: leveraging state space models, self-supervision and patient metadata,
IEEE J-BHI 27(11). Their S4 reaches the highest macro AUROC on all statements of PTB-XL of what is trained from scratch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cure.models.base import PLAIN, Encoder
from cure.models.s4 import S4Kernel, _orbit, _pairs, _PerStep, _with_conjugates


class _TwoWayKernel(nn.Module):
    """Impulse responses forward and backward in time, of state spaces that share A, B and the time steps.

    As in the original only the output vectors are trained, one for each direction. The response is linear in them, so
    everything else is made once and kept: a step of training costs one small product.
    """

    def __init__(self, dim: int, n_states: int, length: int):
        super().__init__()
        self.space = S4Kernel(dim, n_states, length)  # its C is the forward direction's
        jump, _ = self.space._discrete()
        c = torch.view_as_real(torch.randn(dim, n_states // 2, dtype=torch.complex64))
        stored = _with_conjugates(c)[:, None] @ self.space._rest(jump)
        self.backward_C = nn.Parameter(_pairs(stored[None, :, 0, : n_states // 2]))
        self._basis = torch.empty(0)
        self._basis_of = torch.empty(0)

    def forward(self, length: int) -> Tensor:
        """(2, dim, length) float32: what an impulse becomes after, and before, each number of steps."""
        with torch.autocast(self.backward_C.device.type, enabled=False):
            c = torch.cat([self.space.C, self.backward_C]).flatten(-2).float()
            return torch.einsum("shn,hnl->shl", c, self._responses(length))

    # What is kept must be fit for training, even if it is first needed while scoring in inference mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _responses(self, length: int) -> Tensor:
        """What one unit of each real or imaginary part of the stored C gives, (dim, n_states, length) float32."""
        one = self.space
        source = torch.cat([t.flatten() for t in (one.log_dt, one.B, one.P, one.Q, one.w)])
        known = self._basis_of.shape == source.shape and torch.equal(self._basis_of, source)
        if not known or self._basis.shape[-1] < length or self._basis.device != source.device:
            jump, b = one._discrete()
            states = torch.linalg.solve(one._rest(jump), _orbit(jump, b, max(length, one.length)))
            half = 2 * states[:, : states.shape[1] // 2]  # the conjugates double the real part
            self._basis = torch.stack([half.real, -half.imag], dim=2).flatten(1, 2).float()
            self._basis_of = source
        return self._basis[..., :length]


class _Layer(nn.Module):
    """S4 in both directions, GELU, linear map, gate (GLU), shortcut, norm; whole channels are dropped in training."""

    def __init__(self, dim: int, n_states: int, length: int, dropout: float):
        super().__init__()
        self.D = nn.Parameter(torch.randn(1, dim))
        self.kernel = _TwoWayKernel(dim, n_states, length)
        self.linear = _PerStep(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout1d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim, t) to (n, dim, t)."""
        t = x.shape[-1]
        after, before = self.kernel(t)
        # On a circle of 2 t steps the second half is the past of the first: y_i = sum_j after_j x_(i-j) + sum_j
        # before_j x_(i+1+j).
        circle = torch.cat([after, before.flip(-1)], dim=-1)
        u = x.float()  # bfloat16 has no Fourier transform
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * t) * torch.fft.rfft(circle), n=2 * t)[..., :t] + self.D.mT * u
        z = F.glu(self.linear(self.drop(F.gelu(y))), dim=1)
        return self.norm((x + self.drop(z)).mT).mT


class S4Classifier(Encoder):
    """A linear map of the leads and four bidirectional S4 layers of width 512 and state 8: a token per sample (10 ms).

    The original is trained on crops of 2.5 s at 100 Hz, without filter, and reads out the mean over time; here input is
    100 Hz, 0.5 Hz high-passed, in units of 0.2 mV, of any length. Dropout of 0.2 over whole channels as there.
    """

    input_spec = PLAIN
    dim = 512

    def __init__(self, depth: int = 4, n_states: int = 8, length: int = 250, dropout: float = 0.2):
        super().__init__()
        self.enter = nn.Conv1d(len(self.input_spec.leads), self.dim, 1)
        self.layers = nn.ModuleList(_Layer(self.dim, n_states, length, dropout) for _ in range(depth))

    def stages(self) -> list[nn.Module]:
        """The map of the leads and the layers."""
        return [self.enter, *self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to (n, n_samples, 512) tokens."""
        for stage in self.stages():
            x = stage(x)
        return x.mT

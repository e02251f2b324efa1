"""S4: a layer that convolves along time with the impulse response of a linear state space (Gu et al. 2022, ICLR).

The matrix of the state space is normal plus low rank (NPLR): A = diag(w) - P Qᵀ. It starts as HiPPO-LegS.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Range of the initial time steps.
_DT = (1e-3, 1e-1)
#: The kernel is made as a product of this many first steps and all jumps of this many steps.
_STEPS = 64


def hippo_legs(n_states: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS in the basis where it is diagonal but for a term of rank one (Gu et al. 2022, appendix C).

    Parameters
    ----------
    n_states : int
        Even.

    Returns
    -------
    w, p, b : (n_states / 2,) complex128 tensors
        State matrix diag(w) - p p* and input vector b; of each conjugate pair the member whose w has the positive
        imaginary part. The free phase of each eigenvector is chosen so that b is real and positive.
    """
    n = torch.arange(n_states, dtype=torch.float64)
    b, p = (2 * n + 1).sqrt(), (n + 0.5).sqrt()
    legs = -torch.tril(torch.outer(b, b), -1) - torch.diag(n + 1)
    # With p pᵀ added it is -1/2 plus a skew-symmetric matrix: normal, so its eigenvectors are unitary.
    skew = legs + torch.outer(p, p) + 0.5 * torch.eye(n_states, dtype=torch.float64)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    frequencies, vectors = frequencies[n_states // 2 :], vectors[:, n_states // 2 :]
    vectors = vectors * torch.sgn(vectors.mH @ b.to(vectors.dtype))
    w = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    return w, vectors.mH @ p.to(vectors.dtype), vectors.mH @ b.to(vectors.dtype)


def _with_conjugates(pairs: Tensor) -> Tensor:
    """Stored (..., n / 2, 2) real and imaginary parts to all (..., n) complex128 states."""
    half = torch.view_as_complex(pairs.double().contiguous())
    return torch.cat([half, half.conj()], dim=-1)


def _orbit(matrix: Tensor, x: Tensor, n: int) -> Tensor:
    """x, Mx, M²x, ... side by side: (h, s, s) and (h, s, 1) to (h, s, n), by doubling."""
    while x.shape[-1] < n:
        x = torch.cat([x, matrix @ x], dim=-1)
        matrix = matrix @ matrix
    return x[..., :n]


class S4Kernel(nn.Module):
    """Impulse responses of `dim` independent state spaces with one input and one output each.

    Only the output vectors C are trained; A, B and the time steps stay as they start, as in ECG-CPC. What is stored as
    C is C (I - Ā^length), where Ā is the bilinear discretisation of A. `omega` and `z`, the frequencies of a kernel of
    `length` on the unit circle and their bilinear image, are stored by the original for its way to the same kernel and
    are not used here.

    Outside of training the kernel is kept, together with a copy of what it was made from, and made again when that
    differs. It is made in float64.

    Parameters
    ----------
    dim, n_states : int
        State spaces, and states of each (even).
    length : int
        Time steps that the stored C refers to. Kernels can be shorter or longer.
    """

    C: nn.Parameter
    omega: Tensor
    z: Tensor
    log_dt: Tensor
    B: Tensor
    P: Tensor
    w: Tensor
    Q: Tensor

    def __init__(self, dim: int, n_states: int, length: int):
        super().__init__()
        self.length = length
        self._made_from: Tensor | None = None
        self._made = torch.empty(0)
        w, p, b = hippo_legs(n_states)
        for name, value in (("B", b), ("P", p), ("Q", p.conj())):
            self.register_buffer(name, _pairs(value.expand(1, dim, -1)))
        self.register_buffer("w", _pairs(w.expand(dim, -1)))
        low, high = (math.log(dt) for dt in _DT)
        self.register_buffer("log_dt", low + (high - low) * torch.rand(dim))
        turn = torch.arange(length // 2 + 1) * (-2 * math.pi / length)
        omega = torch.complex(turn.cos(), turn.sin())
        self.register_buffer("omega", _pairs(omega))
        self.register_buffer("z", _pairs(2 * (1 - omega) / (1 + omega)))
        c = torch.randn(1, dim, n_states // 2, dtype=torch.complex64)
        jump, _ = self._discrete()
        stored = _with_conjugates(torch.view_as_real(c))[0, :, None] @ self._rest(jump)
        self.C = nn.Parameter(_pairs(stored[None, :, 0, : n_states // 2]))

    def forward(self, length: int) -> Tensor:
        """The first `length` steps of the responses, (dim, length) in the dtype of C."""
        if self.training or (torch.is_grad_enabled() and self.C.requires_grad):
            return self._make(length)
        with torch.no_grad():
            source = torch.cat([t.flatten() for t in (self.C, self.B, self.P, self.Q, self.w, self.log_dt)])
            if length > self._made.shape[-1] or not _same(source, self._made_from):
                self._made, self._made_from = self._make(max(length, self.length)), source
        return self._made[:, :length]

    def _make(self, length: int) -> Tensor:
        jump, b = self._discrete()
        c = torch.linalg.solve(self._rest(jump), _with_conjugates(self.C)[0, :, None], left=False)
        first = _orbit(jump, b, _STEPS)
        jumps = _orbit(torch.linalg.matrix_power(jump, _STEPS).mT, c.mT, -(-length // _STEPS))
        return (jumps.mT @ first).real.flatten(1)[:, :length].to(self.C.dtype)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """Bilinear discretisation: Ā (dim, n_states, n_states) and B̄ (dim, n_states, 1), complex128."""
        w, p, q, b = (_with_conjugates(t) for t in (self.w, self.P[0], self.Q[0], self.B[0]))
        half = 0.5 * self.log_dt.double().exp()[:, None, None] * (torch.diag_embed(w) - p[:, :, None] * q[:, None])
        one = torch.eye(w.shape[-1], dtype=half.dtype, device=half.device)
        right = torch.cat([one + half, self.log_dt.double().exp()[:, None, None] * b[:, :, None]], dim=-1)
        solved = torch.linalg.solve(one - half, right)
        return solved[..., :-1], solved[..., -1:]

    def _rest(self, jump: Tensor) -> Tensor:
        """I - Ā^length: what the stored C holds beside C."""
        one = torch.eye(jump.shape[-1], dtype=jump.dtype, device=jump.device)
        return one - torch.linalg.matrix_power(jump, self.length)


def _pairs(x: Tensor) -> Tensor:
    """Complex values to their own memory of float32 (..., 2) real and imaginary parts."""
    return torch.view_as_real(x.resolve_conj()).float().contiguous()


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.device != other.device or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other)


class _PerStep(nn.Module):
    """A linear map of the channels at each time step, (n, channels, t); its bias is a column, as the original's."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        bound = n_in**-0.5
        self.weight = nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out, 1).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x + self.bias


class S4(nn.Module):
    """Causal S4 layer: convolution with `S4Kernel` plus a multiple of the input, GELU, linear map, gate (GLU).

    Parameters
    ----------
    dim, n_states, length : int
        As for `S4Kernel`.
    """

    def __init__(self, dim: int, n_states: int, length: int):
        super().__init__()
        self.D = nn.Parameter(torch.randn(1, dim))
        self.kernel = nn.ModuleDict({"kernel": S4Kernel(dim, n_states, length)})
        self.output_linear = nn.Sequential(_PerStep(dim, 2 * dim))

    def forward(self, u: Tensor) -> Tensor:
        """(n, dim, t) to (n, dim, t)."""
        t = u.shape[-1]
        kernel = self.kernel["kernel"](t)
        u = u.to(kernel.dtype)  # under autocast u is bfloat16, which has no Fourier transform
        spectrum = torch.fft.rfft(u, n=2 * t) * torch.fft.rfft(kernel, n=2 * t)
        y = torch.fft.irfft(spectrum, n=2 * t)[..., :t] + self.D.mT * u
        return F.glu(self.output_linear(F.gelu(y)), dim=1)

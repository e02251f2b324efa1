"""A CNN that reads all leads with the same filters and adds them up: any leads, cheaper with fewer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cure.errors import CureError
from cure.models.base import PLAIN, Encoder
from cure.signals import LEADS


class _Residual(nn.Module):
    """Pre-activation residual block along time: two convolutions beside the identity."""

    def __init__(self, width: int, kernel: int = 3):
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class LeadCNN(Encoder):
    """Filters shared by all leads, a matrix per lead, a sum over the leads present, residual blocks: tokens of 0.32 s.

    Most of the work is done lead by lead, so fewer leads cost less time and memory, and a lead that was not recorded
    need not be imagined. The sum is scaled by sqrt(12 / n_leads): it keeps its spread whatever the number of leads.
    Input is 100 Hz, 0.5 Hz high-passed, in units of 0.2 mV, of any length from 2 s.
    """

    input_spec = PLAIN
    dim = 256

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)):
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(
            nn.Conv1d(1, first, 16, stride=4, padding=6, bias=False),
            nn.BatchNorm1d(first),
            nn.ReLU(),
            nn.Conv1d(first, second, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm1d(second),
            nn.ReLU(),
            nn.Conv1d(second, third, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(third),
            nn.ReLU(),
        )
        self.lead = nn.Parameter(torch.empty(len(LEADS), self.dim, third))
        self.trunk = nn.Sequential(
            _Residual(self.dim),
            nn.AvgPool1d(2, ceil_mode=True),
            _Residual(self.dim),
            nn.BatchNorm1d(self.dim),
            nn.ReLU(),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                # He et al. 2015. With torch's default, activations shrink from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.lead, std=(2 / (third * len(LEADS))) ** 0.5)

    def stages(self) -> list[nn.Module]:
        """The filters of the leads (with the matrix of each lead) and the two residual blocks."""
        return [self.stem, self.trunk[0], self.trunk[2]]

    def forward(self, x: Tensor, leads: Sequence[int] | None = None) -> Tensor:
        """(n, n_leads, n_samples) to (n, n_samples / 32, 256) tokens.

        Parameters
        ----------
        x : Tensor
            Model-ready input.
        leads : sequence of int, optional
            Which of the twelve leads the rows of `x` are, in `cure.signals.LEADS`; all twelve by default.

        Raises
        ------
        CureError
            If `leads` does not fit `x`.
        """
        leads = range(len(LEADS)) if leads is None else leads
        if len(leads) != x.shape[1]:
            raise CureError(f"{len(leads)} lead names for an input of {x.shape[1]} leads")
        n, n_leads, n_samples = x.shape
        each = self.stem(x.reshape(n * n_leads, 1, n_samples))
        matrix = self.lead[list(leads)] * (len(LEADS) / n_leads) ** 0.5
        mixed = torch.matmul(matrix.permute(1, 0, 2).flatten(1), each.reshape(n, -1, each.shape[-1]))
        return self.trunk(mixed).transpose(1, 2)

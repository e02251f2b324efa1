"""A CNN over a grid of leads and time: every lead under the same filters, pooled to one size whatever leads there are.

Dimension-adaptive pooling as in Malekzadeh et al. 2021 (DANA, arXiv:2008.02397): a map of any number of sensors and any
length becomes a grid of fixed size, a sensor standing in several rows where there are too few.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cure.errors import CureError
from cure.models.base import PLAIN, Encoder, seeded
from cure.models.checkpoints import about, read_state, shown
from cure.signals import LEADS

Pooling = Literal["adaptive", "fixed"]
#: Rows and columns of the pooled grid.
ROWS, COLUMNS = 4, 16
#: Samples of the window for which fixed pooling is made, 5 s at 100 Hz.
WINDOW = 500
#: Fewest samples that give a column.
_LEAST: dict[Pooling, int] = {"adaptive": 4, "fixed": 20}


def bins(n: int, size: int) -> list[tuple[int, int]]:
    """First and one past the last of the entries that each of `size` bins takes of n: together all, each at least one.

    The bins of torch's adaptive pooling: they overlap where `size` does not divide n, and repeat where n < size.
    """
    return [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]


class _Residual(nn.Module):
    """Pre-activation residual block along time: one convolution of kernel 3, then one of kernel 1."""

    def __init__(self, width: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class LeadGrid(Encoder):
    """Filters shared by all leads, a matrix per lead, pooling to a grid of 4 rows and 16 columns, a small trunk.

    All work up to the grid is done lead by lead, so it falls with their number; all after it has one size, so the
    parameters are the same for any leads and any length. Input is 100 Hz, 0.5 Hz high-passed, in units of 0.2 mV.

    Parameters
    ----------
    pooling : {"adaptive", "fixed"}
        `fixed` has windows of three leads and two steps of time instead: it needs all twelve leads, zeros where one was
        not recorded, and its columns grow with the length. It has the same parameters, and on twelve leads and 5 s it
        is the same function, so weights of one are weights of the other.
    """

    input_spec = PLAIN
    dim = 192

    def __init__(self, pooling: Pooling = "adaptive", widths: tuple[int, int, int] = (48, 96, 64)):
        super().__init__()
        first, second, third = widths
        self.pooling = pooling
        self.stem = nn.Sequential(
            nn.Conv1d(1, first, 24, stride=8, padding=10, bias=False),
            nn.BatchNorm1d(first),
            nn.ReLU(),
            nn.Conv1d(first, second, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm1d(second),
            nn.ReLU(),
        )
        self.lead = nn.Parameter(torch.empty(len(LEADS), third, second))
        self.trunk = nn.Sequential(
            nn.Conv1d(ROWS * third, self.dim, 1, bias=False),
            _Residual(self.dim),
            _Residual(self.dim),
            nn.BatchNorm1d(self.dim),
            nn.ReLU(),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                # He et al. 2015. With torch's default, activations shrink from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.lead, std=(2 / second) ** 0.5)

    def stages(self) -> list[nn.Module]:
        """The filters of the leads (with the matrix of each lead), the convolution of the grid, the two blocks."""
        return [self.stem, self.trunk[0], self.trunk[1], self.trunk[2]]

    def map_length(self, n_samples: int) -> int:
        """Columns of the map before pooling, for an input of `n_samples`."""
        for layer in self.stem:
            if isinstance(layer, nn.Conv1d):
                beside = 2 * int(layer.padding[0]) - layer.kernel_size[0]
                n_samples = (n_samples + beside) // layer.stride[0] + 1
        return n_samples

    def forward(self, x: Tensor, leads: Sequence[int] | Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """(n, n_leads, n_samples) to (n, columns, 192) tokens: 16 columns under adaptive pooling.

        Parameters
        ----------
        x : Tensor
            Model-ready input.
        leads : sequence of int, or (n, n_leads) int64 Tensor, optional
            Which of the twelve leads the rows of `x` are, in `cure.signals.LEADS`, in any order; all twelve by default.
            A tensor gives each record leads of its own.
        present : (n, n_leads) bool Tensor, optional
            With a tensor of leads: which rows of `x` are no padding. What stands in padding changes nothing, and no
            filter is run on it.

        Raises
        ------
        CureError
            If `leads` does not fit `x`, a lead occurs twice, the input is too short, or fixed pooling lacks leads.
        """
        if x.shape[2] < (least := _LEAST[self.pooling]):
            raise CureError(f"{x.shape[2]} samples are too few for LeadGrid: give it {least} or more")
        if isinstance(leads, Tensor):
            return self._trunk(self._own_leads(x, leads, present))
        leads = list(range(len(LEADS)) if leads is None else leads)
        if len(leads) != x.shape[1]:
            raise CureError(f"{len(leads)} lead names for an input of {x.shape[1]} leads")
        if len(set(leads)) != len(leads) or not leads:
            raise CureError(f"leads {leads}: name each lead once, and at least one")
        if leads != sorted(leads):
            order = sorted(range(len(leads)), key=leads.__getitem__)
            x, leads = x[:, order], sorted(leads)
        n, n_leads, n_samples = x.shape
        if self.pooling == "fixed" and n_leads != len(LEADS):
            raise CureError(f"fixed pooling takes all twelve leads, not {n_leads}: zero-fill those that are missing")
        columns = self._columns(x.reshape(n * n_leads, 1, n_samples)).unflatten(0, (n, n_leads))
        # A product for each lead over all records: `matmul` would copy the leads' matrices for every record.
        return self._trunk(self._rows(torch.einsum("lrc,nlct->nlrt", self.lead[leads], columns)))

    def _own_leads(self, x: Tensor, leads: Tensor, present: Tensor | None) -> Tensor:
        """Grid of records that have leads of their own: filters run on the rows present, all in one batch."""
        present = torch.ones_like(leads, dtype=torch.bool) if present is None else present
        if leads.shape != x.shape[:2] or present.shape != leads.shape or not present.any(dim=1).all():
            raise CureError(
                f"leads {tuple(leads.shape)} and present {tuple(present.shape)} for an input of {tuple(x.shape[:2])} "
                "records and leads: give one of each for every row, and every record a lead"
            )
        if self.pooling == "fixed":
            raise CureError("fixed pooling takes the same twelve leads of every record: zero-fill them")
        order = torch.where(present, leads, len(LEADS)).argsort(dim=1, stable=True)
        x = x.gather(1, order[..., None].expand_as(x))
        leads, present = leads.gather(1, order), present.gather(1, order)
        rows = torch.matmul(self.lead[leads[present]], self._columns(x[present][:, None]))
        counts = present.sum(dim=1).tolist()
        # One mean for each number of leads that occurs; rows of a record follow one another.
        grid, parts = rows.new_empty(len(x), ROWS * rows.shape[1], COLUMNS), rows.split(counts)
        for count in set(counts):
            at = [i for i, one in enumerate(counts) if one == count]
            grid[at] = self._rows(torch.stack([parts[i] for i in at]))
        return grid

    def _columns(self, x: Tensor) -> Tensor:
        """Maps of single leads, pooled over time: (n, 1, n_samples) to (n, width, columns)."""
        each = self.stem(x)
        if self.pooling == "fixed":
            return nn.functional.avg_pool1d(each, self.map_length(WINDOW) // COLUMNS)
        return nn.functional.adaptive_avg_pool1d(each, COLUMNS)

    @staticmethod
    def _rows(maps: Tensor) -> Tensor:
        """Means over leads: (n, n_leads, width, columns) to (n, rows x width, columns)."""
        return torch.cat([maps[:, a:b].mean(dim=1) for a, b in bins(maps.shape[1], ROWS)], dim=1)

    def _trunk(self, grid: Tensor) -> Tensor:
        return self.trunk(grid).transpose(1, 2)


def load(weights: str | Path = "random", seed: int = 0, pooling: Pooling = "adaptive") -> LeadGrid:
    """Build the encoder, in evaluation mode, on the CPU; as `cure.models.load` does for the others.

    Parameters
    ----------
    weights : "random" or path
        Freshly initialised from `seed`, or a safetensors file that stage `leads` wrote.

    Raises
    ------
    CureError
        If the file is not there, or of another architecture: names the first entry that does not fit.
    """
    with seeded(seed):
        encoder = LeadGrid(pooling).eval()
    if weights == "random":
        return encoder
    file = Path(weights)
    if not file.is_file():
        raise CureError(f"no weights {shown(file)}: make them with `make repro PROFILE=...`")
    state, mine = read_state(file), encoder.state_dict()
    for key in sorted(mine.keys() | state.keys()):
        if key not in state or key not in mine or state[key].shape != mine[key].shape:
            raise CureError(
                f"{shown(file)} does not fit LeadGrid: entry {key!r} is missing, unknown or of another shape"
            )
    encoder.load_state_dict(state)
    encoder.pretraining = (about(file).get("pretraining", "unknown"),)
    return encoder

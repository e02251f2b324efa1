"""Lead subsets: which leads there are, what is left out while an encoder learns, and what stands in for missing ones.

A configuration is a list of leads. Random Lead Selection takes leads out of the array, so that a step costs less with
fewer (Monachino et al. 2025, arXiv:2507.14151); random lead masking sets them to zero, at full cost (Oh et al. 2022,
arXiv:2203.06889). Where an encoder needs all twelve leads, one rule fills in the missing ones: `complete`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.models import Encoder
from cure.models.leadcnn import LeadCNN
from cure.models.leadgrid import LeadGrid
from cure.signals import LEADS

#: The lead sets of the PhysioNet/CinC Challenge 2021, and one lead.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "12": LEADS,
    "6": LEADS[:6],
    "4": ("I", "II", "III", "V2"),
    "3": ("I", "II", "V2"),
    "2": ("I", "II"),
    "1": ("I",),
}
#: The limb leads that follow from I and II, and their coefficients: Einthoven's law, Goldberger's definitions.
DERIVED: dict[str, tuple[float, float]] = {"III": (-1, 1), "aVR": (-0.5, -0.5), "aVL": (1, -0.5), "aVF": (-0.5, 1)}

Rule = Literal["zero-fill", "reconstruct"]
Kind = Literal["none", "selection", "masking"]
Per = Literal["batch", "record"]


def configuration(name: str) -> list[int]:
    """Positions in `LEADS`, in their order, of a configuration: a name such as `6`, or leads joined by `+` (`I+V5`).

    Raises
    ------
    CureError
        For a lead that there is not, or that is named twice.
    """
    names = CONFIGURATIONS.get(name) or tuple(name.split("+"))
    if unknown := [one for one in names if one not in LEADS]:
        known = f"{', '.join(CONFIGURATIONS)}, or leads joined by +: {', '.join(LEADS)}"
        raise CureError(f"lead configuration '{name}': no lead '{unknown[0]}'; choose from {known}")
    if len(set(names)) < len(names):
        raise CureError(f"lead configuration '{name}' names a lead twice")
    return sorted(LEADS.index(one) for one in names)


def independent(leads: Iterable[int]) -> int:
    """How many of some leads are no linear combination of the others: twelve hold eight, the six limb leads two."""
    basis = [one for one in LEADS if one not in DERIVED]
    rows = []
    for lead in leads:
        row = np.zeros(len(basis))
        if LEADS[lead] in DERIVED:
            row[:2] = DERIVED[LEADS[lead]]
        else:
            row[basis.index(LEADS[lead])] = 1
        rows.append(row)
    return int(np.linalg.matrix_rank(np.array(rows)))


def title(name: str) -> str:
    """A configuration in two lines: how many leads, and how many of them are independent."""
    leads = configuration(name)
    what = f"{len(leads)} lead{'s' if len(leads) > 1 else ''}" if name in CONFIGURATIONS else name
    return f"{what}\n({independent(leads)} independent)"


def complete(x: np.ndarray, leads: Sequence[int], rule: Rule) -> np.ndarray:
    """Twelve leads from those that were recorded, for encoders that need all.

    Parameters
    ----------
    x : (n, 12, n_samples) array
        Any linear unit; what stands in leads that are not in `leads` is not looked at.
    leads : sequence of int
        Positions of the recorded leads.
    rule : {"zero-fill", "reconstruct"}
        Zeros in the place of missing leads; or III, aVR, aVL and aVF from I and II, exactly, and zeros for the rest.
        Without both I and II nothing can be reconstructed.

    Returns
    -------
    (n, 12, n_samples) array of the type of `x`
    """
    y = np.zeros_like(x)
    y[:, list(leads)] = x[:, list(leads)]
    if rule == "reconstruct" and {0, 1} <= set(leads):
        for name, (of_one, of_two) in DERIVED.items():
            if (at := LEADS.index(name)) not in leads:
                y[:, at] = of_one * x[:, 0] + of_two * x[:, 1]
    return y


@dataclass(frozen=True)
class FewerLeads(Cohort):
    """A cohort of which only some leads were recorded, and the others follow a rule: whatever reads a cohort reads it.

    Attributes
    ----------
    leads : tuple of int
        Positions of the recorded leads.
    rule : str
        See `complete`.
    """

    leads: tuple[int, ...] = tuple(range(len(LEADS)))
    rule: Rule = "zero-fill"

    def signals(self, rows: np.ndarray, fs: int) -> np.ndarray:
        """As `Cohort.signals`, of fewer leads."""
        return complete(super().signals(rows, fs), self.leads, self.rule)


def fewer(cohort: Cohort, leads: Sequence[int], rule: Rule) -> FewerLeads:
    """A cohort with some of its leads only; what is computed from it is not taken for that of the whole."""
    info = {**cohort.info, "leads": [LEADS[lead] for lead in leads], "rule": rule}
    return FewerLeads(cohort.folder, cohort.records, cohort.statements, info, tuple(leads), rule)


@dataclass(frozen=True)
class Augmentation:
    """What happens to the leads of a batch while an encoder is trained.

    Attributes
    ----------
    kind : {"none", "selection", "masking"}
        Leads are taken out of the array, or set to zero in it.
    per : {"batch", "record"}
        One draw for the whole batch, or one for each record; selected leads are then padded to the longest record's.
    leads : tuple of int
        The leads that there are; the draw is among them.
    """

    kind: Kind = "none"
    per: Per = "batch"
    leads: tuple[int, ...] = field(default=tuple(range(len(LEADS))))

    def draw(self, n: int) -> Tensor:
        """Which leads stay, (n, n_leads) bool: first how many, 1 to all alike, then which. From torch's generator."""
        rows, n_leads = n if self.per == "record" else 1, len(self.leads)
        if self.kind == "none":
            return torch.ones(n, n_leads, dtype=torch.bool)
        count = torch.randint(1, n_leads + 1, (rows, 1))
        rank = torch.rand(rows, n_leads).argsort(dim=1).argsort(dim=1)
        return (rank < count).expand(n, n_leads)


@dataclass(frozen=True)
class Shown:
    """What an encoder is given: `x` (n, n_leads, n_samples), and `leads` and `present` as `LeadGrid.forward` has it."""

    x: Tensor
    leads: Sequence[int] | Tensor
    present: Tensor | None = None


def select(x: Tensor, stays: Tensor) -> Shown:
    """Take the leads that stay out of (n, 12, n_samples); (n, 12) `stays` may differ between records.

    Where it does, each record's leads come first and padding of zeros follows, up to the longest record's.
    """
    if (stays == stays[:1]).all():
        leads = stays[0].nonzero()[:, 0].tolist()
        return Shown(x[:, leads], leads)
    order = stays.int().argsort(dim=1, descending=True, stable=True)[:, : int(stays.sum(dim=1).max())]
    present = stays.gather(1, order)
    return Shown(x.gather(1, order[..., None].expand(-1, -1, x.shape[2])) * present[..., None], order, present)


def mask(x: Tensor, stays: Tensor) -> Tensor:
    """Zeros in (n, n_leads, n_samples) wherever (n, n_leads) `stays` is False; the shape, and the cost, stay."""
    return x * stays[..., None]


class Augmented(Encoder):
    """An encoder that sees fewer leads while it is trained: what every objective takes in the encoder's place.

    Leads are drawn only in training mode and where gradients are wanted, so a teacher, a validation and a test see all
    there are. Twelve-lead input goes in; of `augmentation.leads` only those are read.

    Raises
    ------
    CureError
        If the encoder mixes leads in its first layer, so that none can be taken out; or takes the same leads of every
        record and is to be given others.
    """

    def __init__(self, encoder: Encoder, augmentation: Augmentation):
        super().__init__()
        name, whole = type(encoder).__name__, len(augmentation.leads) == len(LEADS)
        if not isinstance(encoder, LeadCNN | LeadGrid) and not (whole and augmentation.kind != "selection"):
            raise CureError(f"{name} mixes all leads in its first layer: none can be left out, only masked")
        if not isinstance(encoder, LeadGrid) and (augmentation.kind, augmentation.per) == ("selection", "record"):
            raise CureError(f"{name} takes the same leads of every record: select per batch")
        self.encoder, self.augmentation = encoder, augmentation
        self.input_spec, self.dim, self.license = encoder.input_spec, encoder.dim, encoder.license

    def forward(self, x: Tensor) -> Tensor:
        """(n, 12, n_samples) to the encoder's tokens of what is shown of it."""
        one = self.augmentation
        if self.training and torch.is_grad_enabled() and one.kind != "none":
            stays = torch.zeros(x.shape[:2], dtype=torch.bool)
            stays[:, list(one.leads)] = one.draw(len(x))
            if one.kind == "selection":
                shown = select(x, stays)
                extra = () if shown.present is None else (shown.present,)
                return self.encoder(shown.x, shown.leads, *extra)
            x = mask(x, stays)
        return self.encoder(x) if len(one.leads) == len(LEADS) else self.encoder(x[:, list(one.leads)], one.leads)

    def readout(self, tokens: Tensor) -> Tensor:
        """The encoder's own."""
        return self.encoder.readout(tokens)

    def stages(self) -> list[nn.Module]:
        """The encoder's own."""
        return self.encoder.stages()


class OnLeads(Encoder):
    """An encoder bound to some leads: (n, n_leads, n_samples) of just these go in. For heads and fine-tuning."""

    def __init__(self, encoder: LeadGrid, leads: Sequence[int]):
        super().__init__()
        names = tuple(LEADS[lead] for lead in leads)
        self.encoder, self.leads, self.dim = encoder, list(leads), encoder.dim
        self.input_spec = replace(encoder.input_spec, leads=names)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) to tokens."""
        return self.encoder(x, self.leads)

    def stages(self) -> list[nn.Module]:
        """The encoder's own."""
        return self.encoder.stages()

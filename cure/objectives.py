"""What self-supervision asks for: two views of one record must agree, and a view must tell the record's median beat.

The contrastive loss is NT-Xent (Chen et al., SimCLR, ICML 2020, eq. 1). The targets of the second are measured, not
annotated: principal components of the aligned median beat, and four numbers about the rhythm.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional

from cure.augment import View
from cure.beats import MedianBeats
from cure.models import Encoder

RHYTHM = ("heart_rate_bpm", "rr_cv", "rr_irregularity", "premature_fraction")
N_COMPONENTS, LIMIT = 48, 5.0


@dataclass(frozen=True)
class Targets:
    """What a view has to predict: `(n, 52)` float32 standardised values, and which records have them, `(n,)` bool."""

    values: np.ndarray
    known: np.ndarray


def beat_targets(beats: MedianBeats, train: np.ndarray) -> Targets:
    """Compress the median beats and standardise; components, means and spreads come from the training records only.

    Parameters
    ----------
    beats : MedianBeats
        Of all records. A record without a median beat has no target; a flat lead counts as zero.
    train : int array
        Row positions that the components are fitted on.
    """
    rhythm = beats.rhythm[list(RHYTHM)].to_numpy(np.float64)
    shape = beats.beats.reshape(len(beats.beats), -1)
    known = np.isfinite(shape).any(axis=1) & np.isfinite(rhythm).all(axis=1)
    fitted = train[known[train]]
    shape = np.nan_to_num(shape)
    pca = PCA(min(N_COMPONENTS, len(fitted) - 1), svd_solver="full", whiten=True).fit(shape[fitted])
    mean, spread = rhythm[fitted].mean(axis=0), rhythm[fitted].std(axis=0) + 1e-9
    values = np.concatenate([pca.transform(shape), (rhythm - mean) / spread], axis=1)
    values = np.where(known[:, None], values, 0.0).clip(-LIMIT, LIMIT)
    return Targets(values.astype(np.float32), known)


def nt_xent(one: Tensor, two: Tensor, temperature: float) -> Tensor:
    """Normalised, temperature-scaled cross-entropy between (n, d) projections of two views of n records."""
    n = len(one)
    z = functional.normalize(torch.cat([one, two]).float(), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(similarity, torch.arange(2 * n).roll(n))


class SelfSupervised(nn.Module):
    """An encoder with the two heads that pre-training needs and throws away."""

    def __init__(self, encoder: Encoder, n_targets: int):
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Sequential(
            nn.Linear(encoder.dim, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128, bias=False)
        )
        self.beat = nn.Linear(encoder.dim, n_targets)

    def losses(
        self, views: tuple[View, View], values: Tensor, known: Tensor, temperature: float, beat_weight: float
    ) -> dict[str, Tensor]:
        """Contrast of two views of n records, and smooth L1 of what both tell about the records' beats.

        Parameters
        ----------
        views : pair of View
        values, known : (n, n_targets) float32 and (n,) bool Tensor
            Rows of `Targets`.
        """
        tokens = [self.encoder(view.x, view.leads).mean(dim=1) for view in views]
        one, two = (self.projector(embedding) for embedding in tokens)
        contrast = nt_xent(one, two, temperature)
        told = torch.stack([self.beat(embedding).float() for embedding in tokens])
        error = functional.smooth_l1_loss(told, values.expand_as(told), reduction="none").mean(dim=(0, 2))
        beat = (error * known).sum() / known.sum().clamp(min=1)
        return {"loss": contrast + beat_weight * beat, "contrast": contrast, "beat": beat}

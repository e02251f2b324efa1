"""What self-supervision asks for: one objective of each family that reviews of ECG pre-training name, one interface.

An objective is a module that holds an encoder and the heads that training needs and throws away. Contrastive: views of
a record, or of a patient, must agree. Masked: hidden samples are drawn from those seen. Joint-embedding prediction: so
are a teacher's tokens. Contrastive prediction: what comes next is told from other times and hearts. Beside the
contrast, the default asks for the record's median beat, which is measured, not annotated.
"""

import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cure.augment import VIEW_SECONDS, crop, disturbed, view
from cure.errors import CureError
from cure.models import Encoder
from cure.models.leadcnn import LeadCNN
from cure.models.vit1d import sinusoids
from cure.settings.pretrain import PretrainConfig

#: Numbers that describe a record's median beat and rhythm; see `cure.pretrain.beat_targets`.
N_TARGETS = 52
#: Width of the networks that predict, layers of the one that fills in, and the length of a block to fill.
WIDTH, DEPTH, BLOCK_SECONDS = 128, 2, 1.25
#: Weights of the variance and covariance terms beside JEPA's prediction.
VARIANCE, COVARIANCE = 1.0, 0.04
#: CPC: windows that a record is cut into, and tokens of the next one that are told.
N_WINDOWS, N_STEPS = 5, 6


@dataclass(frozen=True)
class Batch:
    """Records of one step.

    Attributes
    ----------
    x : (n, n_leads, n_samples) float32 Tensor
        Model-ready input.
    mate : Tensor like `x`
        Another record of the same patient, or the record itself where there is none or none is asked for.
    patient : (n,) int64 Tensor
        Equal numbers, equal patients.
    values, known : (n, 52) float32 and (n,) bool Tensor
        Median beat and rhythm in standardised numbers, and which records have them; none where `beats` is False.
    """

    x: Tensor
    mate: Tensor
    patient: Tensor
    values: Tensor
    known: Tensor


class Objective(nn.Module):
    """Base class: an encoder, its heads, and the losses of a batch.

    Attributes
    ----------
    mates, beats : bool
        Whether a batch needs other records of the same patients, and the numbers of median beats.
    weights : dict
        What a term is multiplied by in the loss, 1 where it is not named.
    """

    mates, beats = False, False

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__()
        self.encoder = encoder
        self.temperature = config.temperature
        self.weights: dict[str, float] = {}

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Terms by name, each a scalar, and `loss`, what is minimised: their weighted sum."""
        terms = self._terms(batch, rng)
        weighted = [self.weights.get(name, 1.0) * term for name, term in terms.items()]
        return {"loss": torch.stack(weighted).sum(), **terms}

    def uninformed(self, batch: Batch) -> dict[str, float]:
        """What terms are for a network that has learned nothing."""
        return self._uninformed(batch)

    def after_step(self) -> None:
        """What has to follow a step of the optimiser."""

    def learned(self) -> Encoder:
        """The encoder to keep."""
        return self.encoder

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        raise CureError(f"{type(self).__name__} does not define its terms")

    def _uninformed(self, batch: Batch) -> dict[str, float]:
        raise CureError(f"{type(self).__name__} does not say what its terms are for a network that knows nothing")


# --- contrast -------------------------------------------------------------------------------------------


def nt_xent(one: Tensor, two: Tensor, temperature: float, patient: Tensor | None = None) -> Tensor:
    """Normalised, temperature-scaled cross-entropy between (n, d) projections of two views of n records.

    SimCLR's (Chen et al., ICML 2020, eq. 1). With `patient`, (n,) int64, views of one patient are no negatives.
    """
    n = len(one)
    z = functional.normalize(torch.cat([one, two]).float(), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n).roll(n)
    if patient is not None:
        same = (patient[:, None] == patient).repeat(2, 2)
        same[torch.arange(2 * n), partner] = False
        similarity = similarity.masked_fill(same, -torch.inf)
    return functional.cross_entropy(similarity, partner)


class Contrastive(Objective):
    """Two views of one record find each other among the views of all records in the batch (SimCLR).

    Views are crops with some of the leads where the encoder takes any; others get all leads, and zeros behind the crop.
    """

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__(encoder, config)
        self.projector = nn.Sequential(
            nn.Linear(encoder.dim, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128, bias=False)
        )

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"contrast": self.contrast(self.embeddings(batch, rng))}

    def _uninformed(self, batch: Batch) -> dict[str, float]:
        return {"contrast": float(np.log(2 * len(batch.x) - 1))}

    def embeddings(self, batch: Batch, rng: np.random.Generator) -> list[Tensor]:
        """One view of each record and one of its mate, both as (n, dim) embeddings."""
        return [self._embedding(x, rng) for x in (batch.x, batch.mate)]

    def contrast(self, embeddings: list[Tensor], patient: Tensor | None = None) -> Tensor:
        """`nt_xent` of their projections."""
        one, two = (self.projector(embedding) for embedding in embeddings)
        return nt_xent(one, two, self.temperature, patient)

    def _embedding(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        spec = self.encoder.input_spec
        if isinstance(self.encoder, LeadCNN):
            one = view(x, spec.fs, spec.unit_mv, rng)
            return self.encoder.readout(self.encoder(one.x, one.leads))
        length = round(VIEW_SECONDS * spec.fs)
        cropped = disturbed(crop(x, length, rng), spec.fs, spec.unit_mv, rng)
        return self.encoder.embed(functional.pad(cropped, (0, x.shape[2] - length)))


class ContrastiveBeat(Contrastive):
    """The same, and from each view a linear head tells the record's median beat and rhythm (smooth L1)."""

    beats = True

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__(encoder, config)
        self.beat = nn.Linear(encoder.dim, N_TARGETS)
        self.weights = {"beat": config.beat_weight}

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        embeddings = self.embeddings(batch, rng)
        told = torch.stack([self.beat(embedding).float() for embedding in embeddings])
        error = functional.smooth_l1_loss(told, batch.values.expand_as(told), reduction="none").mean(dim=(0, 2))
        beat = (error * batch.known).sum() / batch.known.sum().clamp(min=1)
        return {"contrast": self.contrast(embeddings), "beat": beat}

    def _uninformed(self, batch: Batch) -> dict[str, float]:
        values = batch.values[batch.known]
        beat = functional.smooth_l1_loss(torch.zeros_like(values), values).item()
        return {**super()._uninformed(batch), "beat": beat}


class Patient(Contrastive):
    """Views of two records of one patient find each other; where there is but one record, its two views.

    CLOCS (Kiyasseh et al., ICML 2021), PCLR (Diamant et al. 2022). Records of one patient are never negatives.
    """

    mates = True

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"contrast": self.contrast(self.embeddings(batch, rng), batch.patient)}


# --- filling in -----------------------------------------------------------------------------------------


def blocks(n: int, n_tokens: int, share: float, length: int, rng: np.random.Generator) -> Tensor:
    """Hide about `share` of the tokens of n records, in blocks of `length` that do not overlap: (n, n_tokens) bool.

    Every record has equally many hidden, and at least one that is not; all arrangements are equally likely.
    """
    length = min(length, n_tokens - 1)
    count = min(max(1, round(share * n_tokens / length)), (n_tokens - 1) // length)
    # With every block shrunk to a point, an arrangement is a choice of points.
    places = n_tokens - count * (length - 1)
    starts = np.sort(rng.random((n, places)).argsort(axis=1)[:, :count], axis=1) + np.arange(count) * (length - 1)
    hidden = np.zeros((n, n_tokens), bool)
    np.put_along_axis(hidden, (starts[:, :, None] + np.arange(length)).reshape(n, -1), True, axis=1)
    return torch.from_numpy(hidden)


class Predictor(nn.Module):
    """Small transformer that tells, from the tokens seen, what stands at every place; thrown away after training."""

    positions: Tensor

    def __init__(self, dim: int, out: int, n_tokens: int):
        super().__init__()
        self.enter = nn.Linear(dim, WIDTH)
        self.blank = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.register_buffer("positions", sinusoids(n_tokens, WIDTH), persistent=False)
        layer = partial(nn.TransformerEncoderLayer, WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.Sequential(*(layer() for _ in range(DEPTH)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, out))

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """(n, t, dim) tokens, read where (n, t) `hidden` is False, to (n, t, out)."""
        return self.layers(torch.where(hidden[..., None], self.blank, self.enter(tokens)) + self.positions)


class FillIn(Objective):
    """Base of those that hide blocks of a record: what the encoder is shown, and which samples a token stands for.

    An encoder with `visible(x, keep)` is told which tokens to keep; for others the samples of hidden ones are blanked.
    """

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__(encoder, config)
        self.share = config.mask_share
        spec = encoder.input_spec
        n_samples = round(spec.fs * spec.seconds)
        with torch.no_grad():
            self.n_tokens = encoder(torch.zeros(1, len(spec.leads), n_samples)).shape[1]
        self.span = -(-n_samples // self.n_tokens)
        self.length = max(1, round(BLOCK_SECONDS / spec.seconds * self.n_tokens))

    def hide(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Draw what is hidden of each record, (n, n_tokens) bool."""
        return blocks(len(batch.x), self.n_tokens, self.share, self.length, rng)

    def samples(self, hidden: Tensor, n_samples: int) -> Tensor:
        """The samples that tokens stand for, (n, n_tokens) to (n, n_samples) bool."""
        return hidden.repeat_interleave(self.span, dim=1)[:, :n_samples]

    def seen(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(n, n_tokens, dim) tokens of an encoder that does not see what is hidden; those of hidden places are void."""
        visible = getattr(self.encoder, "visible", None)
        if visible is None:
            return self.encoder(x.masked_fill(self.samples(hidden, x.shape[2])[:, None], 0.0))
        keep = (~hidden).nonzero()[:, 1].reshape(len(x), -1)
        tokens = visible(x, keep)
        empty = tokens.new_zeros(len(x), self.n_tokens, tokens.shape[2])
        return empty.scatter(1, keep[..., None].expand_as(tokens), tokens)


def hidden_error(told: Tensor, x: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error of (n, n_leads, n_samples) over the samples where (n, n_samples) `hidden` is True."""
    error = (told - x).square() * hidden[:, None]
    return error.sum() / (hidden.sum() * x.shape[1])


class Masked(FillIn):
    """Draw the hidden samples from those seen: masked autoencoding (He et al., CVPR 2022; of ECGs, ST-MEM 2024)."""

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__(encoder, config)
        self.decoder = Predictor(encoder.dim, len(encoder.input_spec.leads) * self.span, self.n_tokens)

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        x, hidden = batch.x, self.hide(batch, rng)
        told = self.decoder(self.seen(x, hidden), hidden).float().unflatten(2, (x.shape[1], self.span))
        told = told.transpose(1, 2).flatten(2)[..., : x.shape[2]]
        return {"reconstruction": hidden_error(told, x, self.samples(hidden, x.shape[2]))}

    def _uninformed(self, batch: Batch) -> dict[str, float]:
        return {"reconstruction": batch.x.square().mean().item()}


def spread_terms(z: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and covariance terms of (n, d) embeddings (Bardes et al., VICReg, ICLR 2022, eqs. 1 to 4).

    The first is near 1 when all are alike and 0 once each dimension has a standard deviation of one; the second is 0
    when dimensions are uncorrelated.
    """
    z = z.float() - z.float().mean(dim=0)
    variance = functional.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
    covariance = z.T @ z / (len(z) - 1)
    return variance, (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


class Jepa(FillIn):
    """Tell the tokens of a teacher, who saw the whole record, where the encoder saw nothing.

    Joint-embedding prediction (Assran et al., I-JEPA, CVPR 2023; of ECGs, Weimann and Conrad 2024). The teacher is a
    moving average of the encoder, and what is kept. Without the terms of spread, small encoders collapse here.
    """

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__(encoder, config)
        self.ema = config.ema
        self.weights = {"variance": VARIANCE, "covariance": COVARIANCE}
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = Predictor(encoder.dim, encoder.dim, self.n_tokens)

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        hidden = self.hide(batch, rng)
        tokens = self.seen(batch.x, hidden)
        told = self.predictor(tokens, hidden).float()
        prediction = functional.smooth_l1_loss(told[hidden], self.targets(batch.x)[hidden])
        variance, covariance = spread_terms(tokens[~hidden])
        return {"prediction": prediction, "variance": variance, "covariance": covariance}

    def _uninformed(self, batch: Batch) -> dict[str, float]:
        targets = self.targets(batch.x)
        return {"prediction": functional.smooth_l1_loss(torch.zeros_like(targets), targets).item(), "variance": 1.0}

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """The teacher's tokens, each with mean 0 and variance 1: (n, n_tokens, dim) float32."""
        return functional.layer_norm(self.teacher(x).float(), (self.encoder.dim,))

    @torch.no_grad()
    def after_step(self) -> None:
        """Every weight of the teacher becomes `ema` of itself and the rest of the encoder's."""
        for teacher, student in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            teacher.mul_(self.ema).add_(student, alpha=1 - self.ema)

    def learned(self) -> Encoder:
        """The teacher: it has seen whole records, as it will."""
        return self.teacher


# --- what comes next ------------------------------------------------------------------------------------


def info_nce(told: Tensor, true: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each of n `true` by its `told`, both (n, d): cosine similarity over a temperature."""
    similarity = functional.normalize(told.float(), dim=1) @ functional.normalize(true.float(), dim=1).T
    return functional.cross_entropy(similarity / temperature, torch.arange(len(told)))


class Predictive(Objective):
    """Tell the next tokens among those of other times and hearts: contrastive predictive coding (van den Oord 2018).

    The record is cut into windows that the encoder sees one by one, as the authors do with images: its tokens look
    both ways, and over a whole record those before the cut would know what follows. A GRU reads all tokens up to the
    end of a window; from its state a matrix per step tells the first tokens of the next window.
    """

    def __init__(self, encoder: Encoder, config: PretrainConfig):
        super().__init__(encoder, config)
        spec = encoder.input_spec
        window = torch.zeros(1, len(spec.leads), round(spec.fs * spec.seconds) // N_WINDOWS)
        try:
            with torch.no_grad():
                n_tokens = encoder(window).shape[1]
        except RuntimeError as error:
            raise CureError(
                f"objective cpc feeds windows of {spec.seconds / N_WINDOWS:g} s, but {type(encoder).__name__} needs "
                "whole records: choose another `encoder` or `objective` in the profile's section pretrain"
            ) from error
        self.context = nn.GRU(encoder.dim, WIDTH, batch_first=True)
        self.true = nn.Linear(encoder.dim, WIDTH, bias=False)
        self.steps = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(min(N_STEPS, n_tokens)))

    def _terms(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        found = [info_nce(told, true, self.temperature) for told, true in self.pairs(batch.x)]
        return {"next": torch.stack(found).mean()}

    def _uninformed(self, batch: Batch) -> dict[str, float]:
        return {"next": float(np.log(len(batch.x) * (N_WINDOWS - 1)))}

    def pairs(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each step what is told and what is true, both (n * (N_WINDOWS - 1), WIDTH)."""
        length = x.shape[2] // N_WINDOWS
        windows = x[..., : N_WINDOWS * length].unflatten(2, (N_WINDOWS, length)).transpose(1, 2).flatten(0, 1)
        tokens = self.encoder(windows).float().unflatten(0, (len(x), N_WINDOWS))
        read = self.context(tokens.flatten(1, 2))[0].unflatten(1, tokens.shape[1:3])
        true = self.true(tokens[:, 1:]).flatten(0, 1)
        end = read[:, :-1, -1].flatten(0, 1)
        return [(step(end), true[:, k]) for k, step in enumerate(self.steps)]


#: Every objective by the name that a profile gives it. It is built from an encoder and the settings of the stage.
OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive+beat": ContrastiveBeat,
    "contrastive": Contrastive,
    "patient": Patient,
    "masked": Masked,
    "jepa": Jepa,
    "cpc": Predictive,
}

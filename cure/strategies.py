"""Strategies of adaptation: where weights start, what of a network is trained, and how. One word each in a profile.

`preview`: the head is trained first on the frozen encoder, then everything (Kumar et al. 2022, ICLR; Zhou et al. 2025,
arXiv 2509.12991, where stochastic depth joins it: `preview+depth`).
"""

from dataclasses import dataclass, replace

import torch

from cure import depth, lora, models, peft
from cure.models.base import seeded
from cure.networks import WINDOW_S, Classifier, Judge, Preview
from cure.settings.adaptation import Adaptation
from cure.settings.finetune import FinetuneConfig, Training
from cure.training import Recipe

#: Settings of the fine-tuning that was released with CURE-FM for HuBERT-ECG, whose pre-trained weights it never loads.
RELEASED_RATE, RELEASED_PATIENCE = 1e-7, 4


@dataclass(frozen=True)
class Strategy:
    """One way to train a network: where its weights start, what is trained, how tokens are pooled, how fast it learns.

    Attributes
    ----------
    name : str
        `attentive`, `last-1` to `last-k`, `full`, `full+decay`, `preview`, `preview+depth`, `depth`, `bitfit`,
        `layernorm`, `lora`, `scratch` or `released`.
    encoder, weights : str
    pooling : str
        Poolings of `cure.embed.pool`, joined by `+`: the head reads them side by side. `attention` for the probe.
    rates : tuple of float
        Peak learning rates to choose from on the validation records.
    window_s : float or None
        Length of a training crop and of a scored window, seconds; None: the whole input.
    decay : float
        Of the learning rate from stage to stage towards the input.
    preview : Preview or None
        Training of the head alone that comes first.
    drop_path : float
        Rate of stochastic depth at the last block.
    dropout : float
        Share of the read-out that the head does not see in training.
    rank : int
        Of low-rank updates.
    judged_by : {"loss", "auroc"}
        What decides on the validation records.
    refit : bool
        Whether a logistic head is fitted on the trained network's read-out afterwards.
    """

    name: str
    encoder: str
    weights: str
    pooling: str
    rates: tuple[float, ...]
    window_s: float | None = WINDOW_S
    decay: float = 1.0
    preview: Preview | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    rank: int = 0
    judged_by: Judge = "loss"
    refit: bool = False

    @property
    def adapts(self) -> bool:
        """Whether it starts from pre-trained weights."""
        return self.weights != "random"

    @property
    def head(self) -> str:
        """Name of its head in tables."""
        return "attentive" if self.name == "attentive" else "linear"

    def prepare(self, model: Classifier, seed: int) -> None:
        """Make of a plain classifier on the encoder what this strategy trains; `seed` is of new random weights.

        Raises
        ------
        CureError
            If the encoder has nothing that the strategy could train.
        """
        encoder = model.encoder
        if self.name == "released":
            # From zero, 1e-7 would leave a head of equal weights, which ranks records by the sum of their features.
            with seeded(seed):
                model.head.reset_parameters()
        elif self.name.startswith("last-"):
            model.train_last(int(self.name.removeprefix("last-")))
        elif self.name == "bitfit":
            model.train_only(peft.biases(encoder, self.window_s))
        elif self.name == "layernorm":
            model.train_only(peft.norms(encoder, self.window_s))
        elif self.name == "lora":
            with seeded(seed):
                model.train_only(lora.add_updates(encoder, self.rank, self.window_s))
        if self.decay < 1:
            model.slow_down(self.decay)
        if self.drop_path:
            depth.stochastic_depth(encoder, self.drop_path)
        model.drop = torch.nn.Dropout(self.dropout) if self.dropout else torch.nn.Identity()
        model.preview, model.judged_by = self.preview, self.judged_by


def strategies(config: FinetuneConfig) -> list[tuple[Strategy, Recipe]]:
    """Every strategy that trains a network, with its recipe, floors with the read-out of their benchmark last.

    `released` is the comparator as CURE-FM's public code runs it, on the encoder of this study: a learning rate of
    1e-7, and random weights, because the line that would load them is commented out; patience 4, as many epochs as the
    other strategies at most. There stopping looks at AUROC, here at the loss. Its head starts from random weights, as
    there; the heads of all others start at zero.
    """
    models.check([config.encoder, *config.floors])
    how = config.adaptation
    base = Recipe(
        config.epochs,
        config.batch_size,
        1.0,
        config.weight_decay,
        warmup=how.warmup,
        clip=how.clip,
        patience=config.patience,
        precision=config.precision,
    )
    found = []
    for name in config.strategies:
        kind = config.kind(name)
        if name == "released":
            one = Strategy(name, config.encoder, "random", "mean", (RELEASED_RATE,))
            found.append((one, replace(base, rate=RELEASED_RATE, patience=RELEASED_PATIENCE)))
        elif kind is not None:
            weights = "random" if name == "scratch" else config.weights
            pooling = "attention" if name == "attentive" else "mean"
            given = config.training[kind]
            one = Strategy(name, config.encoder, weights, pooling, tuple(given.rates), given.window_s)
            one = replace(one, decay=config.decay if name == "full+decay" else 1.0)
            found.append((adapted(one, how), _recipe(given, base)))
    for floor in config.floors:
        given = config.training.get(floor) or config.training["scratch"]
        pooling = "mean" if floor == "s4" else "mean+max"
        one = Strategy("scratch", floor, "random", pooling, tuple(given.rates), given.window_s)
        found.append((adapted(one, how), _recipe(given, base)))
    return found


def _recipe(given: Training, base: Recipe) -> Recipe:
    return replace(base, rate=given.rates[0], epochs=given.epochs or base.epochs)


def adapted(one: Strategy, how: Adaptation) -> Strategy:
    """The strategy with the settings of a profile that its name asks for."""
    words = one.name.split("+")
    return replace(
        one,
        preview=Preview(how.preview_epochs, how.preview_rate) if "preview" in words else None,
        drop_path=how.drop_path if "depth" in words else 0.0,
        dropout=how.dropout,
        rank=how.rank if one.name == "lora" else 0,
        judged_by=how.judged_by,
    )

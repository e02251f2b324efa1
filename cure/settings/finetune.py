"""Settings of stage `finetune`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cure.config import StageConfig, Weights
from cure.settings.adaptation import Adaptation

_WORDS = (
    r"^(linear|attentive|last-[1-9]\d?|full|full\+decay|preview|preview\+depth|depth|bitfit|layernorm|lora|scratch|"
    r"released)$"
)
StrategyName = Annotated[str, Field(pattern=_WORDS)]


class Training(BaseModel):
    """How one kind of strategy is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rates: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="peak learning rates to choose from")
    window_s: float | None = Field(
        5.0, gt=0, description="length of a training crop and of a scored window, seconds; null: the whole input"
    )
    epochs: int | None = Field(None, ge=1, description="at most; by default those of all strategies")

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict:
        """What was given, without defaults: notebooks and `params` stay short."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class FinetuneConfig(StageConfig):
    """Stage `finetune`: a frozen encoder, the same encoder trained in part and whole, and training from scratch."""

    stage = "finetune"

    encoder: str = Field(description="in-repo encoder that is probed, fine-tuned, and trained from scratch")
    weights: Weights = Field(description="pre-trained weights that probes and fine-tuning start from")
    strategies: list[StrategyName] = Field(
        min_length=1, description="what is done with the encoder; last-k trains its last k stages and the head"
    )
    floors: list[str] = Field(
        [], description="supervised floors: architectures that are trained from scratch beside it"
    )
    tasks: Literal["binary", "all"] = Field(
        "binary", description="the binary tasks, or all statements as one multi-label problem"
    )
    training: dict[str, Training] = Field(
        description="of `attentive`, `tuned` (last-k, full, preview, ...), `light` (bitfit, layernorm, lora), "
        "`scratch`, or one floor by its name"
    )
    adaptation: Adaptation = Field(
        default_factory=lambda: Adaptation.model_validate({}),
        description="preview, stochastic depth, dropout, warm-up, clipping, what decides when to stop",
    )
    decay: float = Field(0.7, gt=0, le=1, description="of the learning rate from each stage to the one before it")
    seeds: list[int] = Field(min_length=1, description="of each training: initialisation, order and crops")
    epochs: int = Field(ge=1, description="at most; validation loss decides which is kept")
    patience: int = Field(ge=1, description="epochs without a better validation loss after which training stops")
    batch_size: int = Field(64, ge=1, description="crops per step")
    weight_decay: float = Field(ge=0)
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the products in a training step")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of the bootstrap")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fine-tuning is what all else is compared with; each kind of training has its learning rates."""
        if "full" not in self.strategies:
            raise ValueError("strategies: 'full' is missing, which all others are compared with")
        if unknown := set(self.training) - {"attentive", "tuned", "light", "scratch", *self.floors}:
            known = ", ".join(["attentive", "tuned", "light", "scratch", *self.floors])
            raise ValueError(f"training: unknown kind '{min(unknown)}'; choose from {known}")
        for name in self.strategies:
            if (kind := self.kind(name)) not in (None, *self.training):
                raise ValueError(f"training: '{kind}' is missing, which strategy '{name}' needs")
        if missing := [name for name in self.floors if not {name, "scratch"} & set(self.training)]:
            raise ValueError(
                f"training: '{missing[0]}' and 'scratch' are missing, one of which floor {missing[0]} needs"
            )
        return self

    @staticmethod
    def kind(strategy: str) -> str | None:
        """Entry of `training` that a strategy uses; None where it has none."""
        kinds = {"linear": None, "released": None, "attentive": "attentive", "scratch": "scratch"}
        light = strategy in ("bitfit", "layernorm", "lora")
        return kinds.get(strategy, "light" if light else "tuned")

"""Settings of stage `posttrain`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cure.config import StageConfig, Weights
from cure.settings.adaptation import Adaptation
from cure.tasks import Group

Rate = Annotated[float, Field(gt=0)]


class Subject(BaseModel):
    """A pre-trained encoder that is adapted, and the learning rates that are tried on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str
    weights: Weights | Literal["hub"] = Field(description="made by stage `pretrain`, or the published ones")
    rates: list[Rate] = Field(min_length=1, description="peak learning rates; plain fine-tuning chooses for all")
    light_rates: list[Rate] = Field([0.01], min_length=1, description="the same for bitfit, layernorm and lora")
    window_s: float | None = Field(5.0, gt=0, description="of a training crop, seconds; null: the whole input")

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict:
        """What was given, without defaults: notebooks and `params` stay short."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class PosttrainConfig(StageConfig):
    """Stage `posttrain`: whether head first and stochastic depth adapt an encoder better than fine-tuning does."""

    stage = "posttrain"

    subjects: list[Subject] = Field(min_length=1, description="pre-trained encoders")
    strategies: list[Literal["linear", "full", "preview", "preview+depth", "depth"]] = Field(
        min_length=2, description="what is done with each; `full` is what all else is compared with"
    )
    groups: list[Group] = Field(min_length=1, description="label groups, each a multi-label problem of its own")
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="shares of the training and validation patients whose labels are used"
    )
    seeds: list[int] = Field(min_length=1, description="of each training, and of the sample of patients")
    n_splits: int = Field(1, ge=1, description="outer splits that take part, from the first")
    drop_paths: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [], description="rates of stochastic depth, each with and without preview: first group, most labels, first seed"
    )
    light: list[Literal["bitfit", "layernorm", "lora"]] = Field(
        [], description="strategies that train few parameters: first group, most labels, first seed"
    )
    refit: bool = Field(True, description="fit a new head on each network trained with the most labels: a diagnostic")
    epochs: int = Field(
        ge=1, description="at most, after a preview; without one its epochs are added. Validation decides what is kept"
    )
    patience: int = Field(ge=1, description="epochs without a better one after which training stops")
    batch_size: int = Field(64, ge=1, description="crops per step")
    weight_decay: float = Field(0.02, ge=0)
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the products in a training step")
    adaptation: Adaptation = Field(
        default_factory=lambda: Adaptation.model_validate({}),
        description="preview, stochastic depth, dropout, warm-up, clipping, what decides when to stop",
    )
    least_steps: float = Field(
        0.25, ge=0, le=1, description="a small sample is trained on for at least this share of the steps of all records"
    )
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws, at least")
    seed: int = Field(0, ge=0, description="of samples and bootstrap")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Gains are over fine-tuning; a word or a number twice would be one training with two rows."""
        if "full" not in self.strategies:
            raise ValueError("strategies: 'full' is missing, which all others are compared with")
        for name in ("strategies", "groups", "fractions", "seeds", "drop_paths", "light"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {values} holds a value twice")
        names = [one.encoder for one in self.subjects]
        if len(set(names)) < len(names):
            raise ValueError(f"subjects: {names} holds an encoder twice")
        return self

"""Settings that stages with fine-tuning share: how a pre-trained network is adapted."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Adaptation(BaseModel):
    """How networks are adapted; what is not given has these defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dropout: float = Field(0.0, ge=0, lt=1, description="share of the read-out that the head does not see in training")
    drop_path: float = Field(
        0.2, ge=0, lt=1, description="rate of stochastic depth at the last block, in strategies with `depth`"
    )
    preview_epochs: int = Field(3, ge=1, description="of the head alone, in strategies with `preview`")
    preview_rate: float = Field(0.005, gt=0, description="peak learning rate of the head alone")
    rank: int = Field(4, ge=1, description="of the updates in strategy `lora`")
    warmup: float = Field(0.05, gt=0, lt=1, description="share of the steps in which the learning rate rises")
    clip: float = Field(1.0, gt=0, description="norm that gradients are cut to")
    judged_by: Literal["loss", "auroc"] = Field(
        "loss", description="what decides on validation records when to stop and what to keep; auroc: its macro average"
    )

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict:
        """What was given, without defaults: notebooks and `params` stay short."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}

"""Settings of stage `leads`."""

from typing import Literal

from pydantic import Field

from cure.config import StageConfig, check, parameters
from cure.settings.pretrain import ObjectiveName, PretrainConfig


class LeadsConfig(StageConfig):
    """Stage `leads`: one encoder for any leads, and what fewer leads cost and save."""

    stage = "leads"

    configurations: list[str] = Field(
        min_length=1, description="12, 6, 4, 3, 2, 1, or leads joined by +, such as I+V5; 12 has to be one"
    )
    objective: ObjectiveName = Field("contrastive+beat", description="of pre-training; see cure/objectives.py")
    epochs: int = Field(ge=1, description="of each pre-training")
    batch_size: int = Field(128, ge=8)
    rate: float = Field(1e-3, gt=0, description="peak learning rate of pre-training")
    per: Literal["batch", "record"] = Field("batch", description="leads are drawn for a batch, or for each record")

    @property
    def pretraining(self) -> PretrainConfig:
        """Settings of stage `pretrain`, with this stage's own where it has them."""
        own = {name: getattr(self, name) for name in ("objective", "epochs", "batch_size", "rate")}
        return check(PretrainConfig, **parameters("pretrain", self.profile)).model_copy(update={**own, "encoder": "leadcnn"})

"""Settings of stage `pretrain`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cure import paths
from cure.config import StageConfig, Weights


class PretrainConfig(StageConfig):
    """Stage `pretrain`: the in-repo encoder, trained without labels."""

    stage = "pretrain"

    encoder: Literal["leadcnn"] = Field("leadcnn", description="architecture; it must take any leads")
    weights: list[Weights] = Field(
        min_length=1,
        description="ssl-folds: one encoder per outer split, of its training folds; ssl-simulated: of simulated ECGs",
    )
    seeds: list[int] = Field([0], min_length=1, description="one pre-training run each")
    epochs: int = Field(ge=1)
    n_simulated: int = Field(ge=200, description="simulated records for ssl-simulated, of patients of their own")
    batch_size: int = Field(128, ge=8)
    rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    temperature: float = Field(0.1, gt=0, description="of the contrastive loss")
    beat_weight: float = Field(100.0, ge=0, description="of the median-beat loss beside the contrastive one")

    @property
    def weights_folder(self) -> Path:
        """Folder that this stage writes weights to."""
        return paths.output(super().weights_folder, self.stage)

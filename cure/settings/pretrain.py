"""Settings of stage `pretrain`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cure import paths
from cure.config import StageConfig, Weights

ObjectiveName = Literal["contrastive+beat", "contrastive", "patient", "masked", "jepa", "cpc"]


class PretrainConfig(StageConfig):
    """Stage `pretrain`: an encoder, trained without labels, and how objectives compare."""

    stage = "pretrain"

    encoder: str = Field("leadcnn", description="architecture; only leadcnn is shown views that lack leads")
    objective: ObjectiveName = Field("contrastive+beat", description="what is asked for; see cure/objectives.py")
    weights: list[Weights] = Field(
        min_length=1,
        description="ssl-folds: one encoder per outer split, of its training folds; ssl-simulated: of simulated ECGs",
    )
    seeds: list[int] = Field([0], min_length=1, description="one pre-training run each")
    epochs: int = Field(ge=1)
    n_simulated: int = Field(ge=200, description="simulated records for ssl-simulated, of patients of their own")
    batch_size: int = Field(128, ge=8)
    rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the products in a training step")
    temperature: float = Field(0.1, gt=0, description="of the contrastive losses")
    beat_weight: float = Field(100.0, ge=0, description="of the median-beat loss beside the contrastive one")
    mask_share: float = Field(0.6, gt=0, lt=1, description="share of a record that masked and jepa hide")
    ema: float = Field(0.99, ge=0, lt=1, description="share of its past that jepa's teacher keeps in each step")
    families: list[ObjectiveName] = Field(
        [], description="objectives to compare on the first outer split; may be empty"
    )
    families_epochs: int = Field(16, ge=1, description="of each of them")

    @property
    def weights_folder(self) -> Path:
        """Folder that this stage writes weights to."""
        return paths.output(super().weights_folder, self.stage)

"""Settings of stage `finetune`."""

from pydantic import Field

from cure.config import StageConfig, Weights


class FinetuneConfig(StageConfig):
    """Stage `finetune`: a frozen encoder, the same encoder trained whole, and training from scratch, side by side."""

    stage = "finetune"

    encoder: str = Field(description="in-repo encoder that is probed, fine-tuned, and trained from scratch")
    weights: Weights = Field(description="pre-trained weights that fine-tuning starts from")
    floor: str = Field(description="well-known architecture, trained from scratch: the supervised floor")
    seeds: list[int] = Field(min_length=1, description="of each training: initialisation, order and crops")
    epochs: int = Field(ge=1, description="at most; validation loss decides which is kept")
    patience: int = Field(ge=1, description="epochs without a better validation loss after which training stops")
    batch_size: int = Field(64, ge=1, description="crops of 5 s per step")
    rate: float = Field(gt=0, description="peak learning rate of fine-tuning")
    scratch_rate: float = Field(gt=0, description="peak learning rate of training from scratch")
    weight_decay: float = Field(ge=0)
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of the bootstrap")

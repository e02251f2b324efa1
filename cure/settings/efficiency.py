"""Settings of stage `efficiency`."""

from pydantic import Field

from cure.config import HeadName, StageConfig


class EfficiencyConfig(StageConfig):
    """Stage `efficiency`: what a score costs in labels, for heads on frozen embeddings and for trained networks."""

    stage = "efficiency"

    fractions: list[float] = Field(min_length=1, description="shares of the training and validation patients")
    representations: list[str] = Field(min_length=1, description="folders of embeddings, such as leadcnn-ssl-folds-0")
    heads: list[HeadName] = Field(min_length=1, description="fitted on each of them")
    draws: int = Field(12, ge=2, description="samples of patients for heads; a multiple of `training_draws`")
    training_draws: int = Field(3, ge=1, description="of these, the ones that networks are trained on")
    n_splits: int = Field(ge=1, description="outer splits that take part, from the first")
    trained: list[str] = Field(
        ["full", "scratch"], description="full: from the weights of stage `finetune`; scratch: from random ones"
    )
    least_steps: float = Field(
        0.5, ge=0, le=1, description="a small sample is trained on for at least this share of the steps of all records"
    )
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of samples and bootstrap")

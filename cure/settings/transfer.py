"""Settings of stage `transfer`."""

from pydantic import Field

from cure.config import HeadName, Pooling, RepresentationConfig


class TransferConfig(RepresentationConfig):
    """Stage `transfer`: heads trained on one cohort and tested on the other. Idle without a section `external`."""

    stage = "transfer"

    encoders: list[str] = Field(["leadcnn"], min_length=1, description="architectures taken with random weights")
    seeds: list[int] = Field([0], min_length=1, description="initialisations of each")
    heads: list[HeadName] = Field(["logistic", "xgboost"], min_length=1)
    pooling: Pooling = Field("mean", description="of the embeddings; features have none")
    n_draws: int = Field(2000, ge=100, description="patient bootstrap draws of each cohort, independent of the other's")
    seed: int = Field(0, ge=0, description="of heads and draws")

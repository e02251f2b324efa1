"""Settings of stage `structure`."""

from pydantic import Field

from cure.config import Pooling, StageConfig


class StructureConfig(StageConfig):
    """Stage `structure`: how records lie in each representation, and how alike representations are."""

    stage = "structure"

    pooling: Pooling = Field("mean", description="of the embeddings; features have none")
    k: int = Field(10, ge=1, description="neighbours counted, none of them of the record's own patient")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of draws, permutations and pictures")

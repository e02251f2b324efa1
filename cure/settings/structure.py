"""Settings of stage `structure`, and what it shares with other measurements of one pooling."""

from pydantic import Field

from cure.config import Pooling, StageConfig


class DrawsConfig(StageConfig):
    """A stage that measures every representation under one pooling, with draws over patients."""

    pooling: Pooling = Field("mean", description="of the embeddings; features have none")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of draws, permutations and pictures")


class StructureConfig(DrawsConfig):
    """Stage `structure`: how records lie in each representation, and how alike representations are."""

    stage = "structure"

    k: int = Field(10, ge=1, description="neighbours counted, none of them of the record's own patient")

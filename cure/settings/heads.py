"""Settings of stage `heads`."""

from typing import Literal

from pydantic import Field

from cure.config import HeadName, Pooling, RepresentationConfig


class HeadsConfig(RepresentationConfig):
    """Stage `heads`: light classifiers on frozen representations."""

    stage = "heads"

    heads: list[HeadName] = Field(min_length=1, description="fitted on mean-pooled embeddings and on features")
    poolings: list[Pooling] = Field(min_length=1, description="compared under the logistic head")
    groups: list[Literal["all", "diag", "sub", "super", "form", "rhythm"]] = Field(
        description="label groups, logistic head, mean pooling, first seed"
    )
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    n_permutations: int = Field(200, ge=100, description="label permutations of the null")
    seed: int = 0

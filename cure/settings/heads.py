"""Settings of stage `heads`."""

from typing import Annotated, Literal

from pydantic import Field

from cure.config import HeadName, Pooling, RepresentationConfig


class HeadsConfig(RepresentationConfig):
    """Stage `heads`: light classifiers on frozen representations."""

    stage = "heads"

    heads: list[HeadName] = Field(min_length=1, description="fitted on mean-pooled embeddings and on features")
    grid: Literal["compact", "paper"] = Field(
        "compact", description="settings tried for each head: a few, or those of the released CURE-FM code"
    )
    poolings: list[Pooling] = Field(min_length=1, description="compared under the pooled heads")
    pooled_heads: list[HeadName] = Field(["logistic"], description="fitted on every pooling, the mean included")
    crossed: list[str] = Field(
        [], description="representations, by folder name, under every pooling and every one of `crossed_heads`"
    )
    crossed_heads: list[HeadName] = Field([], description="see `crossed`; all others are fitted under `heads`")
    concatenate: list[Annotated[list[str], Field(min_length=2)]] = Field(
        [], description="representations side by side, by folder name: [[leadcnn-ssl-folds-0, ecg-features]]"
    )
    groups: list[Literal["all", "diag", "sub", "super", "form", "rhythm"]] = Field(
        description="label groups, logistic head, mean pooling, first seed"
    )
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    n_permutations: int = Field(200, ge=100, description="label permutations of the null")
    seed: int = 0

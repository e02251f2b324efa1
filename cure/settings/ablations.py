"""Settings of stage `ablations`."""

from typing import Literal

from pydantic import Field

from cure.config import HeadName, StageConfig
from cure.tasks import BINARY

#: Keys of `cure.bootstrap.METRICS`.
Metric = Literal["auroc", "auprc", "f1_half", "f1_tuned", "sensitivity", "specificity", "brier", "ece"]


class AblationsConfig(StageConfig):
    """Stage `ablations`: what choices of the heads study are worth, for whom, and whether scores are probabilities."""

    stage = "ablations"

    subjects: list[str] = Field(
        min_length=1,
        max_length=3,
        description="representations looked at closely, by their folder below the embeddings, mean pooling",
    )
    head: HeadName = Field("logistic", description="of the subgroups and of balanced training")
    balanced_tasks: list[str] = Field(list(BINARY), min_length=1, description="binary tasks of balanced training")
    metric: Metric = Field("auroc", description="that methods are ranked by")
    n_balanced: int = Field(10, ge=10, description="class-balanced subsamples of the training records")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of draws and subsamples")

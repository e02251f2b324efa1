"""Settings of stage `explain`."""

from pydantic import Field

from cure.config import HeadName, StageConfig


class ExplainConfig(StageConfig):
    """Stage `explain`: which embedding dimensions heads use, and which leads and moments of the ECG they rest on."""

    stage = "explain"

    encoder: str = Field(description="whose representation is explained")
    weights: str = Field(description="its weights; the same encoder with random weights is the control")
    tasks: list[str] = Field(min_length=1, description="binary tasks")
    heads: list[HeadName] = Field(min_length=1, description="heads whose embedding dimensions are ranked")
    shap_records: int = Field(200, ge=10, description="test records explained by SHAP, per task and split")
    top_k: list[int] = Field(min_length=1, description="numbers of dimensions that heads are refitted on")
    n_random: int = Field(10, ge=1, description="random choices of k dimensions, as control")
    n_records: int = Field(40, ge=1, description="test positives attributed to leads and time, per task")
    steps: int = Field(12, ge=8, description="points on the path of integrated gradients")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = 0

"""Settings of stage `faithfulness`."""

from pydantic import Field

from cure.config import StageConfig


class FaithfulnessConfig(StageConfig):
    """Stage `faithfulness`: whether attributions name what moves the model, agree, and what they say of a beat."""

    stage = "faithfulness"

    encoder: str = Field(description="whose representation is explained")
    weights: str = Field(description="its weights; two random initialisations of the same encoder are the controls")
    tasks: list[str] = Field(min_length=1, description="binary tasks")
    n_records: int = Field(40, ge=1, description="test positives attributed per task, and as many negatives")
    steps: int = Field(12, ge=8, description="points on the path of integrated gradients")
    n_draws: int = Field(
        5000, ge=100, description="patient-cluster bootstrap draws; with few, no difference passes Holm's correction"
    )
    seed: int = 0

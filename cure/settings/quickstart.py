"""Settings of stage `quickstart`."""

from typing import Literal

from pydantic import Field

from cure.config import StageConfig


class QuickstartConfig(StageConfig):
    """Stage `quickstart`: one ECG from signal to probability, explanation and neighbours, with heads that were kept."""

    stage = "quickstart"

    path: str | None = Field(None, description="your own ECG; None takes a record of the cohort")
    given: dict[Literal["rate", "unit", "gain", "leads"], float | str | list[str]] = Field(
        {}, description="what that file does not say: {'rate': 500, 'unit': 'mV', 'leads': ['I', 'II']}"
    )
    record_id: int | str | None = Field(
        None, description="of the cohort; None takes the first test record that lists `task`"
    )
    encoder: str = Field(description="whose kept heads are used")
    weights: str = Field(description="its weights")
    head: Literal["logistic", "xgboost"] = Field("logistic", description="predicts; the logistic one is explained")
    task: str = Field("AFIB", description="binary task that is explained")
    k: int = Field(5, ge=1, le=20, description="nearest neighbours, none of the same patient")
    steps: int = Field(24, ge=8, description="points on the path of integrated gradients")
    seed: int = Field(0, description="of the random weights that the attribution is checked against")

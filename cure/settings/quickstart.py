"""Settings of stage `quickstart`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cure.config import StageConfig


class Said(BaseModel):
    """What a reader says of a file that does not say it; where the file does, that comes first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float | None = Field(default=None, gt=0, description="Hz")
    unit: Literal["V", "mV", "uV", "nV", "adc"] | None = Field(default=None, description="of its samples")
    gain: float | None = Field(default=None, gt=0, description="counts per mV, for unit adc")
    leads: tuple[str, ...] | None = Field(
        default=None, description="names of its channels in order; - for one that is no lead"
    )


class QuickstartConfig(StageConfig):
    """Stage `quickstart`: one ECG from signal to probability, explanation and neighbours, with heads that were kept."""

    stage = "quickstart"

    path: str | None = Field(None, description="your own ECG; None takes a record of the cohort")
    given: Said = Field(Said(), description="what that file does not say of itself")
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

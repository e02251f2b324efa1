"""Settings of stage `report`."""

from typing import Literal

from pydantic import Field

from cure.config import StageConfig


class ReportConfig(StageConfig):
    """Stage `report`: the paper in one notebook."""

    stage = "report"

    metric: Literal["auroc", "auprc"] = Field("auroc", description="metric of the headline and the main table")

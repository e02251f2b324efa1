"""Settings of stage `download`."""

from typing import Annotated

from pydantic import Field

from cure.config import StageConfig


class DownloadConfig(StageConfig):
    """Stage `download`: where raw records come from and which of them the study takes."""

    stage = "download"

    n_records: int | None = Field(None, ge=50, le=98_000, description="size of a synthetic cohort")
    max_id_100: int | None = Field(None, ge=1, description="highest ecg_id taken at 100 Hz; null takes all")
    max_id_500: int | None = Field(None, ge=0, description="highest ecg_id taken at 500 Hz; null takes all, 0 none")
    parts: list[Annotated[int, Field(ge=0, le=17)]] | None = Field(
        None, min_length=1, description="parts of CODE-15 %, 0 to 17; null takes all"
    )
    fetch: bool = Field(True, description="get missing files from PhysioNet or Zenodo; false studies what is there")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the synthetic cohort")

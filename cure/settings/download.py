"""Settings of stage `download`."""

from typing import Annotated

from pydantic import Field

from cure.config import StageConfig


class DownloadConfig(StageConfig):
    """Stage `download`: where raw records come from and which of them the study takes.

    A setting that the cohort's source does not use must keep its default, see `cure.cohorts.acquire`.
    """

    stage = "download"

    n_records: int | None = Field(None, ge=50, le=98_000, description="synthetic, synthetic-code15: size of the cohort")
    max_id_100: int | None = Field(
        None, ge=1, description="ptbxl, synthetic: highest ecg_id taken at 100 Hz; null takes all"
    )
    max_id_500: int | None = Field(
        None, ge=0, description="ptbxl, synthetic: highest ecg_id taken at 500 Hz; null takes all, 0 none"
    )
    parts: list[Annotated[int, Field(ge=0, le=17)]] | None = Field(
        None, min_length=1, description="code15: parts, 0 to 17, synthetic-code15: 0 and 1; null takes all"
    )
    fetch: bool = Field(
        True, description="ptbxl, code15: get missing files from PhysioNet or Zenodo; false studies what is there"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="synthetic, synthetic-code15: seed of the cohort")

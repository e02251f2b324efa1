"""Settings of stage `prepare`."""

from pathlib import Path

from pydantic import Field

from cure import paths
from cure.config import StageConfig


class PrepareConfig(StageConfig):
    """Stage `prepare`: from raw records to the packed cohort store."""

    stage = "prepare"

    chunk_size: int = Field(256, ge=1, description="records read per resumable chunk")
    max_excluded: float = Field(0.02, ge=0, le=1, description="stop when a larger share of records is unusable")

    @property
    def cohort_folder(self) -> Path:
        """Folder that this stage writes the store to."""
        return paths.output(super().cohort_folder, self.stage)

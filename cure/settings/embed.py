"""Settings of stage `embed`."""

from pathlib import Path

from pydantic import Field

from cure import paths
from cure.config import Pooling, RepresentationConfig


class EmbedConfig(RepresentationConfig):
    """Stage `embed`: frozen encoders and hand-crafted features, applied once to every record."""

    stage = "embed"

    poolings: list[Pooling] = Field(min_length=1)
    batch_size: int = Field(64, ge=1)
    shard_size: int = Field(512, ge=1, description="records per resumable shard")
    threads: int = Field(2, ge=1, description="fixed, because sums differ between thread counts")

    @property
    def embeddings_folder(self) -> Path:
        """Folder that this stage writes embeddings to."""
        return paths.output(super().embeddings_folder, self.stage)

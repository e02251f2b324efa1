"""Settings of stage `embed`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cure import paths
from cure.config import Pooling, RepresentationConfig


class EmbedConfig(RepresentationConfig):
    """Stage `embed`: frozen encoders and hand-crafted features, applied once to every record."""

    stage = "embed"

    poolings: list[Pooling] = Field(min_length=1)
    batch_size: int = Field(64, ge=1)
    shard_size: int = Field(512, ge=1, description="records per resumable shard")
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: faster, see benchmarks/README.md")
    threads: int = Field(2, ge=1, description="batches at work at the same time; no result depends on it")

    @property
    def embeddings_folder(self) -> Path:
        """Folder that this stage writes embeddings to."""
        return paths.output(super().embeddings_folder, self.stage)

"""Settings of stage `probes`."""

from pydantic import Field

from cure.settings.structure import DrawsConfig


class ProbesConfig(DrawsConfig):
    """Stage `probes`: clusters, dimensions, layers and linear probes; what choosing a picture by its labels gains."""

    stage = "probes"

    encoder: str = Field("leadcnn", description="whose layers and whose label-selected picture are looked at")
    weights: str = Field("ssl-simulated", description="its weights; the same encoder untrained is the twin")
    task: str = Field("NORM", description="binary task that the picture is chosen by")
    n_balanced: int = Field(2000, ge=20, description="records of the picture, half of them positive, where there are")
    n_neighbors: list[int] = Field([15, 30, 50, 80, 100], min_length=1, description="UMAP settings chosen from")
    min_dist: list[float] = Field([0.0, 0.1, 0.3, 0.5], min_length=1, description="UMAP settings chosen from")
    n_shuffles: int = Field(5, ge=1, description="repetitions of the whole choice under permuted labels")

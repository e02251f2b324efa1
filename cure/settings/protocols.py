"""Settings of stage `protocols`."""

from pydantic import Field

from cure.config import Pooling, StageConfig


class ProtocolsConfig(StageConfig):
    """Stage `protocols`: the same heads on the same representation, scored as the released code does and soundly."""

    stage = "protocols"

    representation: str = Field(
        "leadcnn-ssl-simulated-0", description="folder name; its weights must be the same in all outer splits"
    )
    pooling: Pooling = "mean"
    tasks: list[str] = Field(
        ["NORM", "1AVB", "CRBBB", "CLBBB", "SBRAD", "STACH", "AFIB"], min_length=1, description="binary tasks"
    )
    sample_percentage: float = Field(
        1.0, gt=0, le=1, description="of the minority class, kept of both classes; the released template has 0.20"
    )
    max_per_class: int = Field(200, ge=20, description="records kept of each class at most, to bound the time")
    n_folds: int = Field(2, ge=2, le=10, description="of the released cross-validation: 2, or 5 in a comment")
    n_xgboost: int = Field(
        12, ge=4, le=120, multiple_of=4, description="of the 120 XGBoost settings of the released grid"
    )
    n_seeds: int = Field(10, ge=2, description="random samples of the balanced protocols")
    n_shuffled: int = Field(10, ge=2, description="label permutations of the control, a sample each")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws of the sound protocol")
    seed: int = Field(0, ge=0, description="of samples, permutations, folds and trees")

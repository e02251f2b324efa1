"""Settings of stage `leads`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cure.config import StageConfig, check, parameters
from cure.settings.pretrain import ObjectiveName, PretrainConfig

_LEAD = "(I|II|III|aVR|aVL|aVF|V[1-6])"
LeadSet = Annotated[str, Field(pattern=rf"^(12|6|4|3|2|1|{_LEAD}(\+{_LEAD})*)$")]
LeadName = Annotated[str, Field(pattern=f"^{_LEAD}$")]


class LeadsConfig(StageConfig):
    """Stage `leads`: one encoder for any leads, and what fewer leads cost and save."""

    stage = "leads"

    configurations: list[LeadSet] = Field(
        min_length=2, description="12 first, then 6, 4, 3, 2, 1, or leads joined by +, such as I+V5"
    )
    objective: ObjectiveName = Field("contrastive+beat", description="of pre-training; see cure/objectives.py")
    epochs: int = Field(ge=1, description="of each pre-training")
    batch_size: int = Field(64, ge=8, description="records per step of pre-training")
    rate: float = Field(2e-3, gt=0, description="peak learning rate of pre-training")
    per: Literal["batch", "record"] = Field("batch", description="leads are drawn for a batch, or for each record")
    tuned: list[LeadSet] = Field([], description="configurations on which encoders are fine-tuned too; may be empty")
    tuned_epochs: int = Field(6, ge=1, description="at most; validation loss decides which is kept")
    tuned_rates: list[Annotated[float, Field(gt=0)]] = Field(
        [1e-3, 3e-3], min_length=1, description="peak learning rates of fine-tuning; validation loss chooses"
    )
    published: list[str] = Field([], description="of the profile's published models, those given fewer leads")
    published_configurations: list[LeadSet] = Field(["2", "1"], description="the leads they are given")
    cost_records: int = Field(512, ge=64, description="records of an epoch whose time and memory are measured")
    cost_epochs: int = Field(2, ge=1, description="measured epochs, after one to warm up")
    ticked: list[LeadName] = Field(
        ["I", "II", "V2"], min_length=1, description="the leads that the last cells are about"
    )
    task: str = Field("NORM", description="the task that they predict")
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    seed: int = Field(0, ge=0, description="of pre-training, fine-tuning and bootstrap")

    @model_validator(mode="after")
    def _twelve(self) -> Self:
        """Twelve leads are what all else is compared with."""
        if self.configurations[0] != "12":
            raise ValueError("configurations: '12' comes first, all others are compared with it")
        if unknown := [name for name in self.tuned if name not in self.configurations]:
            raise ValueError(f"tuned: '{unknown[0]}' is not among the configurations")
        return self

    @property
    def pretraining(self) -> PretrainConfig:
        """Settings of stage `pretrain`, with this stage's own where it has them."""
        own = {name: getattr(self, name) for name in ("objective", "epochs", "batch_size", "rate")}
        made = check(PretrainConfig, **parameters("pretrain", self.profile))
        return made.model_copy(update={**own, "encoder": "leadcnn", "seeds": [self.seed]})

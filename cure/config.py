"""Profiles: which study to run. One YAML file each; a value that does not fit fails here, in seconds."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cure import paths
from cure.errors import CureError

Pooling = Literal["mean", "max", "min", "last", "own"]
Weights = Literal["ssl-folds", "ssl-simulated"]
HeadName = Literal["logistic", "mlp", "xgboost"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CohortConfig(_Strict):
    """The cohort of a profile: every stage reads it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the cohort's folder and its rows in tables")
    title: str = Field(description="what the cohort is, in the words of a table's caption")
    source: Literal["ptbxl", "synthetic"]
    split: Literal["official", "rotate"] = Field(
        description="official: folds 1-8 train, 9 validate, 10 test; rotate: five outer splits of two folds"
    )


class StageConfig(_Strict):
    """What every stage knows: its profile, and through it the cohort."""

    stage: ClassVar[str]
    profile: str

    @property
    def output(self) -> Path:
        """Folder of this stage's tables, figures and predictions; see `cure.paths.output`."""
        return paths.output(paths.stage(self.profile, self.stage), self.stage)

    @property
    def cohort(self) -> CohortConfig:
        """The profile's cohort section."""
        return load(self.profile).cohort

    @property
    def cohort_folder(self) -> Path:
        """Folder of the packed cohort store."""
        return paths.cohort(self.profile, self.cohort.name)

    @property
    def embeddings_folder(self) -> Path:
        """Folder of the cohort's embeddings."""
        return paths.embeddings(self.profile, self.cohort.name)

    @property
    def weights_folder(self) -> Path:
        """Folder of the weights that stage `pretrain` made."""
        return paths.weights(self.profile)


class RepresentationConfig(StageConfig):
    """A stage with its own choice of representations."""

    encoders: list[str] = Field(min_length=1, description="architectures taken with random weights")
    seeds: list[int] = Field(min_length=1, description="initialisations of each")
    pretrained: list[Weights] = Field([], description="weights that stage `pretrain` made of its encoder")
    published: list[str] = Field([], description="published architectures, taken with random weights as their floor")
    weights: Literal["random", "hub"] = Field("random", description="hub: the published ones with their weights too")


class Profile(_Strict):
    """A whole profile file."""

    summary: str = Field(description="one sentence: what a reader may conclude from this profile")
    cohort: CohortConfig
    download: dict = {}
    prepare: dict = {}
    pretrain: dict = {}
    embed: dict = {}
    heads: dict = {}
    finetune: dict = {}
    structure: dict = {}
    explain: dict = {}
    report: dict = {}


#: Stage name -> number of its notebook, in the pipeline's order. Settings of a stage: `cure/settings/<stage>.py`.
STAGES = {
    "download": "01",
    "prepare": "02",
    "pretrain": "03",
    "embed": "04",
    "heads": "05",
    "finetune": "06",
    "structure": "08",
    "explain": "09",
    "report": "10",
}

AnyStage = TypeVar("AnyStage", bound=StageConfig)


def profiles() -> list[str]:
    """Names of the profiles that exist, sorted."""
    return sorted(path.stem for path in (paths.root() / "profiles").glob("*.yaml"))


@cache
def _read(path: Path, _stamp: int) -> Profile:
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise CureError(f"profiles/{path.name} is not a valid profile: {_plain(error)}") from error


def load(profile: str) -> Profile:
    """Read and check `profiles/<profile>.yaml`, all stages included.

    Raises
    ------
    CureError
        For an unknown profile, or a key or value that does not fit: names the file, the key and what is allowed.
    """
    path = paths.root() / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        raise CureError(f"unknown profile '{profile}': choose one of {', '.join(profiles())} (files in profiles/)")
    return _read(path, path.stat().st_mtime_ns)


def settings(stage: str) -> type[StageConfig]:
    """Class of a stage's settings. Looked up by name: no stage depends on another's settings."""
    return getattr(import_module(f"cure.settings.{stage}"), f"{stage.capitalize()}Config")


def parameters(stage: str, profile: str) -> dict:
    """Settings of one stage in one profile, as papermill injects them: all of them, defaults included."""
    return check(settings(stage), profile=profile, **getattr(load(profile), stage)).model_dump()


def check(model: type[AnyStage], **settings: object) -> AnyStage:
    """Build a stage's configuration; a mistyped name or value becomes one readable line.

    Raises
    ------
    CureError
        Names the setting, the value given and what is allowed.
    """
    try:
        config = model(**settings)  # type: ignore[arg-type]
    except ValidationError as error:
        where = f"profile '{settings.get('profile')}', section {model.stage}"
        raise CureError(f"{where}: {_plain(error)}; known settings: {', '.join(model.model_fields)}") from error
    load(config.profile)
    return config


def _plain(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    rows = []
    for fault in error.errors():
        name = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            rows.append(f"unknown setting '{name}'")
        else:
            rows.append(
                f"{name}: {fault['msg']}" + ("" if fault["type"] == "missing" else f" (got {fault['input']!r})")
            )
    return "; ".join(rows)

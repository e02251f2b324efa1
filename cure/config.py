"""Profiles: which study to run. One YAML file each; a value that does not fit fails here, in seconds."""

import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from cure import paths
from cure.errors import CureError

Pooling = Literal["mean", "max", "min", "last", "own"]
Weights = Literal["ssl-folds", "ssl-simulated"]
HeadName = Literal[
    "logistic", "lasso", "elastic-net", "mlp", "xgboost", "forest", "svm-linear", "svm-rbf", "tree", "knn"
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CohortConfig(_Strict):
    """The cohort of a profile: every stage reads it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the cohort's folder and its rows in tables")
    title: str = Field(description="what the cohort is, in the words of a table's caption")
    source: Literal["ptbxl", "synthetic", "code15", "synthetic-code15", "wfdb"]
    split: Literal["official", "rotate"] = Field(
        description="official: folds 1-8 train, 9 validate, 10 test; rotate: five outer splits of two folds"
    )


class ExternalConfig(CohortConfig):
    """A second cohort: downloaded, prepared and embedded beside the study's own, for stage `transfer`."""

    download: dict = Field({}, description="its own settings of stage download")
    prepare: dict = Field({}, description="its own settings of stage prepare")


class StageConfig(_Strict):
    """What every stage knows: its profile, and through it the cohort."""

    stage: ClassVar[str]
    profile: str
    _is_external: bool = PrivateAttr(False)

    @property
    def output(self) -> Path:
        """Folder of this stage's tables, figures and predictions; see `cure.paths.output`."""
        return paths.output(paths.stage(self.profile, self.stage), self.stage)

    def measured(self, name: str) -> Path:
        """CSV file for measured times and memory, which differ from run to run: nothing that is hashed may hold them.

        Beside the stage's other timings in a pipeline run, else with its interactive output.
        """
        in_pipeline = os.environ.get(paths.STAGE) == self.stage
        return (paths.resources(self.profile) if in_pipeline else self.output) / f"{name}.csv"

    @property
    def cohort(self) -> CohortConfig:
        """The profile's cohort section; of a configuration that `external` gave, the section `external`."""
        study = load(self.profile)
        return study.external if self._is_external and study.external else study.cohort

    @property
    def external(self) -> Self | None:
        """The configuration of the same stage for the profile's second cohort, or None where the profile has none.

        Its `cohort`, raw records, manifest and folders are that cohort's. Stages `download` and `prepare` have the
        settings that the section `external` gives them, all others this configuration's.

        Raises
        ------
        CureError
            If the section's settings do not fit the stage.
        """
        section = load(self.profile).external
        if section is None:
            return None
        own = getattr(section, self.stage, None)
        given = {"profile": self.profile, **own} if own is not None else self.model_dump()
        config = _build(type(self), f"external.{self.stage}" if own is not None else self.stage, given)
        config._is_external = True
        return config

    @property
    def raw_folder(self) -> Path:
        """Folder of the cohort's raw records; see `cure.paths.raw`."""
        return paths.raw(self.cohort.source, self.profile)

    @property
    def manifest(self) -> Path:
        """Content manifest of the cohort's raw records."""
        return paths.manifest(self.profile, self.cohort.name if self._is_external else None)

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
    statistics: list[str] = Field(
        [], description="architectures taken with random weights and the training records' batch statistics: a control"
    )
    published: list[str] = Field([], description="published architectures, taken with random weights as their floor")
    weights: Literal["random", "hub"] = Field("random", description="hub: the published ones with their weights too")


class Profile(_Strict):
    """A whole profile file."""

    summary: str = Field(description="one sentence: what a reader may conclude from this profile")
    cohort: CohortConfig
    external: ExternalConfig | None = Field(None, description="a second cohort, which only stage transfer studies")
    download: dict = {}
    prepare: dict = {}
    pretrain: dict = {}
    embed: dict = {}
    heads: dict = {}
    ablations: dict = {}
    protocols: dict = {}
    transfer: dict = {}
    finetune: dict = {}
    efficiency: dict = {}
    posttrain: dict = {}
    leads: dict = {}
    structure: dict = {}
    probes: dict = {}
    explain: dict = {}
    faithfulness: dict = {}
    quickstart: dict = {}
    report: dict = {}

    @model_validator(mode="after")
    def _two_cohorts(self) -> Self:
        """A second cohort of the same name or source would share folders with the first."""
        for key in ("name", "source"):
            if self.external and getattr(self.external, key) == getattr(self.cohort, key):
                raise ValueError(f"external.{key} is cohort.{key}: the second cohort needs another {key}")
        return self


#: Stage name -> number of its notebook, in the pipeline's order. Settings of a stage: `cure/settings/<stage>.py`.
STAGES = {
    "download": "01",
    "prepare": "02",
    "pretrain": "03",
    "embed": "04",
    "heads": "05",
    "ablations": "05b",
    "protocols": "05c",
    "transfer": "05d",
    "finetune": "06",
    "efficiency": "06b",
    "posttrain": "06c",
    "leads": "07",
    "structure": "08",
    "probes": "08b",
    "explain": "09",
    "faithfulness": "09b",
    "quickstart": "00",
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
    config = check(settings(stage), profile=profile, **getattr(load(profile), stage))
    _ = config.external  # a mistyped setting of the second cohort fails here too
    return config.model_dump()


def check(model: type[AnyStage], **settings: object) -> AnyStage:
    """Build a stage's configuration; a mistyped name or value becomes one readable line.

    Raises
    ------
    CureError
        Names the setting, the value given and what is allowed.
    """
    config = _build(model, model.stage, settings)
    load(config.profile)
    return config


def _build(model: type[AnyStage], section: str, settings: dict) -> AnyStage:
    try:
        return model(**settings)
    except ValidationError as error:
        where = f"profile '{settings.get('profile')}', section {section}"
        raise CureError(f"{where}: {_plain(error)}; known settings: {', '.join(model.model_fields)}") from error


def _plain(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    rows = []
    for fault in error.errors():
        name = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            rows.append(f"unknown setting '{name}'")
        elif fault["type"] == "value_error":
            rows.append(str(fault["ctx"]["error"]))
        else:
            rows.append(
                f"{name}: {fault['msg']}" + ("" if fault["type"] == "missing" else f" (got {fault['input']!r})")
            )
    return "; ".join(rows)

"""Profiles: which study to run. One YAML file each; a value that does not fit fails here, in seconds."""

from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cure import paths
from cure.errors import CureError

Pooling = Literal["mean", "max", "min", "last"]
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


class DownloadConfig(StageConfig):
    """Stage `download`: where raw records come from and which of them the study takes."""

    stage = "download"

    n_records: int | None = Field(None, ge=50, le=98_000, description="size of a synthetic cohort")
    max_id_100: int | None = Field(None, ge=1, description="highest ecg_id taken at 100 Hz; null takes all")
    max_id_500: int | None = Field(None, ge=0, description="highest ecg_id taken at 500 Hz; null takes all, 0 none")
    fetch: bool = Field(True, description="get missing PTB-XL files from PhysioNet; false studies what is there")
    seed: int = Field(0, ge=0, description="seed of the synthetic cohort")


class PrepareConfig(StageConfig):
    """Stage `prepare`: from WFDB files to the packed cohort store."""

    stage = "prepare"

    chunk_size: int = Field(256, ge=1, description="records read per resumable chunk")
    max_excluded: float = Field(0.02, ge=0, le=1, description="stop when a larger share of records is unusable")

    @property
    def cohort_folder(self) -> Path:
        """Folder that this stage writes the store to."""
        return paths.output(super().cohort_folder, self.stage)


class EmbedConfig(StageConfig):
    """Stage `embed`: frozen encoders and hand-crafted features, applied once to every record."""

    stage = "embed"

    encoders: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1, description="initialisations of each randomly initialised encoder")
    poolings: list[Pooling] = Field(min_length=1)
    batch_size: int = Field(64, ge=1)
    shard_size: int = Field(512, ge=1, description="records per resumable shard")
    threads: int = Field(2, ge=1, description="fixed, because sums differ between thread counts")

    @property
    def embeddings_folder(self) -> Path:
        """Folder that this stage writes embeddings to."""
        return paths.output(super().embeddings_folder, self.stage)


class HeadsConfig(StageConfig):
    """Stage `heads`: light classifiers on frozen representations."""

    stage = "heads"

    encoders: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    heads: list[HeadName] = Field(min_length=1, description="fitted on mean-pooled embeddings and on features")
    poolings: list[Pooling] = Field(min_length=1, description="compared under the logistic head")
    groups: list[Literal["all", "diag", "sub", "super", "form", "rhythm"]] = Field(
        description="label groups, logistic head, mean pooling, first seed"
    )
    n_draws: int = Field(1000, ge=100, description="patient-cluster bootstrap draws")
    n_permutations: int = Field(200, ge=100, description="label permutations of the null")
    seed: int = 0


class ReportConfig(StageConfig):
    """Stage `report`: the paper in one notebook."""

    stage = "report"

    metric: Literal["auroc", "auprc"] = Field("auroc", description="metric of the headline and the main table")


class Profile(_Strict):
    """A whole profile file."""

    summary: str = Field(description="one sentence: what a reader may conclude from this profile")
    cohort: CohortConfig
    download: dict = {}
    prepare: dict = {}
    embed: dict = {}
    heads: dict = {}
    report: dict = {}


#: Stage name -> number of its notebook and its settings. The order is the pipeline's.
STAGES: dict[str, tuple[str, type[StageConfig]]] = {
    "download": ("01", DownloadConfig),
    "prepare": ("02", PrepareConfig),
    "embed": ("04", EmbedConfig),
    "heads": ("05", HeadsConfig),
    "report": ("10", ReportConfig),
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


def parameters(stage: str, profile: str) -> dict:
    """Settings of one stage in one profile, as papermill injects them: all of them, defaults included."""
    return check(STAGES[stage][1], profile=profile, **getattr(load(profile), stage)).model_dump()


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

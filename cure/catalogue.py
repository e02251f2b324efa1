"""The catalogue of open ECG foundation models: the axes of the review, licences, homes of the weights, contamination.

The facts lie in `cure/models/catalogue.yaml`, each with the grade of its evidence; here they are read and checked.
"""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from cure.errors import CureError

Cohort = Literal["ptb-xl", "code-15", "chapman-ningbo", "cpsc-georgia", "mimic-iv-ecg"]
Seen = Literal["no", "signals", "signals and labels", "unknown"]
Grade = Literal["G", "C", "P", "C/P", "D", "3P", "I"]

#: Evaluation cohorts of the contamination matrix, in the order of its columns.
COHORTS: tuple[Cohort, ...] = ("ptb-xl", "code-15", "chapman-ningbo", "cpsc-georgia", "mimic-iv-ecg")
#: What the grades of evidence mean.
GRADES: dict[Grade, str] = {
    "G": "recomputed here against outputs of the original",
    "C": "read in released code or data",
    "P": "paper",
    "C/P": "code or paper, the source does not say which",
    "D": "stated by the authors elsewhere",
    "3P": "third party, unverified",
    "I": "inferred",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Home(_Strict):
    """Where a published file is."""

    kind: Literal["huggingface", "zenodo", "figshare", "page"] = Field(description="page: to be got by hand")
    repo: str | None = Field(None, description="owner/name on Hugging Face")
    record: str | None = Field(None, description="record of Zenodo, or file of figshare")
    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="name to keep it under")
    revision: str | None = Field(None, description="commit; the lock file has it where it is not fixed here")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="likewise")
    page: HttpUrl = Field(description="for people")

    @model_validator(mode="after")
    def _complete(self) -> "Home":
        needed = {"huggingface": self.repo, "zenodo": self.record, "figshare": self.record, "page": ""}
        if needed[self.kind] is None:
            raise ValueError(f"a home of kind {self.kind} needs its repo or record")
        return self


class Contamination(_Strict):
    """What pre-training saw of one evaluation cohort, and how that is known."""

    seen: Seen
    grade: Grade | None = None

    @model_validator(mode="after")
    def _graded(self) -> "Contamination":
        if (self.grade is None) != (self.seen == "unknown"):
            raise ValueError("a known answer has a grade of evidence, an unknown one has none")
        return self


class Entry(_Strict):
    """One model. None stands for what is not known."""

    title: str
    runnable: bool = Field(description="`cure.models.load` knows it")
    family: Literal["cnn", "transformer", "cnn+transformer", "state-space", "recurrent"] | None = None
    objective: (
        Literal["supervised", "contrastive", "masked", "predictive", "hybrid", "ecg-text", "distillation"] | None
    ) = None
    data: tuple[str, ...] = Field(description="pre-training corpora; empty where not known or the user's own")
    records: int | None = Field(None, gt=0, description="of pre-training, about")
    adaptation: tuple[str, ...] | None = Field(None, description="modes in which results were reported")
    parameters: int | None = Field(None, gt=0)
    fs: int | None = Field(None, gt=0, description="Hz, of the model's own input")
    seconds: float | None = Field(None, gt=0)
    leads: int | None = Field(None, ge=1, le=12)
    dim: int | None = Field(None, gt=0)
    licence_code: str | None = None
    licence_weights: str | None = None
    non_commercial: bool | None = None
    paper: str | None = None
    repository: HttpUrl | None = None
    commit: str | None = Field(None, description="of the repository that the facts were read at")
    evidence: Grade
    notes: str
    layout: str | None = Field(None, description="key of the published file under which the state dict lies")
    home: Home | None = None
    contamination: dict[Cohort, Contamination]

    @model_validator(mode="after")
    def _whole(self) -> "Entry":
        if tuple(self.contamination) != COHORTS:
            raise ValueError(f"contamination needs the cohorts {', '.join(COHORTS)}, in this order")
        missing = [name for name in ("parameters", "fs", "seconds", "leads", "dim") if getattr(self, name) is None]
        if self.runnable and missing:
            raise ValueError(f"a runnable model needs {', '.join(missing)}")
        return self


@cache
def catalogue() -> dict[str, Entry]:
    """All models by name, runnable ones first, as the file lists them."""
    text = resources.files("cure.models").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return {name: Entry.model_validate(entry) for name, entry in yaml.safe_load(text)["models"].items()}


def entry(name: str) -> Entry:
    """One model of the catalogue.

    Raises
    ------
    CureError
        For a name that is not in it; lists those that are.
    """
    if name not in catalogue():
        raise CureError(f"{name!r} is not in the catalogue: choose from {', '.join(catalogue())}")
    return catalogue()[name]


def contamination(name: str, cohort: str) -> tuple[Seen, Grade | None]:
    """What a model's pre-training saw of an evaluation cohort, and the grade of the evidence (None: unknown).

    Raises
    ------
    CureError
        For an unknown model or cohort.
    """
    if cohort not in COHORTS:
        raise CureError(f"the contamination matrix has no cohort {cohort!r}: choose from {', '.join(COHORTS)}")
    answer = entry(name).contamination[cohort]
    return answer.seen, answer.grade


def catalogue_table() -> pd.DataFrame:
    """One row per model: the axes of the review, sizes, input, licences, sources.

    Returns
    -------
    DataFrame
        The fields of `Entry` as columns, lists joined by semicolons, after `model`, the name; `ptb_xl` is what
        pre-training saw of PTB-XL, `home` the page of the weights. What is not known is missing.
    """
    rows = []
    for name, one in catalogue().items():
        plain = one.model_dump(mode="json", exclude={"contamination", "home"})
        lists = {key: "; ".join(plain[key]) if plain[key] else None for key in ("data", "adaptation")}
        home = str(one.home.page) if one.home else None
        rows.append({"model": name, **plain, **lists, "ptb_xl": one.contamination["ptb-xl"].seen, "home": home})
    whole = dict.fromkeys(["records", "parameters", "fs", "leads", "dim"], "Int64")
    return pd.DataFrame(rows).astype(whole | {"seconds": "float64", "non_commercial": "boolean"})


def contamination_table() -> pd.DataFrame:
    """One row per model and evaluation cohort: `model, title, cohort, seen, grade`."""
    return pd.DataFrame(
        [
            {"model": name, "title": one.title, "cohort": cohort, "seen": answer.seen, "grade": answer.grade}
            for name, one in catalogue().items()
            for cohort, answer in one.contamination.items()
        ]
    )


def catalogue_view(table: pd.DataFrame) -> pd.DataFrame:
    """The catalogue as a paper prints it: one row per model, text; what is not known is a dash."""

    def text(name: str, form: Callable[[Any], str] = str) -> pd.Series:
        return table[name].map(lambda value: "-" if pd.isna(value) else form(value))

    view = pd.DataFrame(
        {
            "model": text("title"),
            "runs here as": table["model"].where(table["runnable"], "-"),
            "architecture": text("family"),
            "pre-training": text("objective"),
            "on": text("data"),
            "adaptation reported": text("adaptation"),
            "parameters": text("parameters", lambda n: f"{n / 1e6:.1f} M"),
            "input": [_input(row) for row in table.itertuples()],
            "dim": text("dim"),
            "licence of the weights": text("licence_weights"),
            "PTB-XL seen": text("ptb_xl"),
            "evidence": text("evidence"),
        }
    )
    return view.set_index("model")


def _input(row: Any) -> str:
    parts = [f"{row.leads} x" if pd.notna(row.leads) else "", f"{row.seconds:g} s" if pd.notna(row.seconds) else ""]
    parts.append(f"at {row.fs} Hz" if pd.notna(row.fs) else "")
    return " ".join(part for part in parts if part) or "-"


def contamination_view(table: pd.DataFrame) -> pd.DataFrame:
    """Model by evaluation cohort: what pre-training saw of it, with the grade of the evidence in brackets."""
    text = [f"{row.seen} [{row.grade}]" if pd.notna(row.grade) else row.seen for row in table.itertuples()]
    wide = table.assign(text=text).pivot(index="title", columns="cohort", values="text")
    return wide.loc[table["title"].unique(), list(COHORTS)].rename_axis(index="model", columns=None)

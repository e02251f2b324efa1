"""Heads that were kept for use on other records: loading them, and what their output means.

`cure.keeping` writes them. A head's folder::

    card.json             what it is, what it was fitted on, how it did on validation records, the hashes of the others
    arrays.safetensors    training medians, means and deviations; coefficients; draws of the calibration
    model.json            boosted trees, as XGBoost writes them

and `index.json` beside the folders holds the hash of every card. Nothing is unpickled, no file can bring code with it,
and the same run writes the same bytes.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cure import paths
from cure.bootstrap import interval
from cure.errors import CureError

CARD, ARRAYS, MODEL, INDEX = "card.json", "arrays.safetensors", "model.json", "index.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Strict):
    """How many records and patients a part of the split holds."""

    n: int
    n_pos: int
    n_patients: int


class Score(_Strict):
    """A score on the validation records, with a 95 % interval over patients where there is support."""

    metric: str
    value: float | None
    lo: float | None
    hi: float | None


class Card(_Strict):
    """What a kept head is."""

    task: str
    title: str
    profile: str
    cohort: str
    cohort_title: str
    simulated: bool = Field(description="whether the cohort is simulated")
    encoder: str
    weights: str
    seed: int
    weights_file: str | None = Field(description="below the profile's weights; None where there is no such file")
    weights_sha256: str = Field(description="of the encoder's state dict; empty for features")
    contaminated: str
    input_spec: dict = Field(description="what the encoder is fed; for features the rate they are measured at")
    pooling: str
    columns: list[str] | None = Field(description="names of hand-crafted features")
    head: Literal["logistic", "xgboost"]
    setting: str = Field(description="what validation chose")
    split: str
    train: Part
    val: Part
    ages: tuple[int, int] | None = Field(description="youngest and oldest training patient; ages over 89 are masked")
    female: float = Field(description="share of training records")
    threshold: float = Field(0.5, description="of the head's own score: highest F1 on validation records")
    slope: float = Field(1.0, description="calibrated log-odds = slope x log-odds of the head's own score + intercept")
    intercept: float = 0.0
    calibrated: bool = Field(description="False below ten validation positives: then slope is 1 and intercept 0")
    scores: list[Score] = Field([], description="on the validation records, which also chose: an upper bound")
    limit: float = Field(0.0, description="distance from the training records that 99 % of validation records keep")
    notes: list[str] = Field([], description="what a reader of its output must know")
    files: dict[str, str] = Field({}, description="SHA-256 of the other files")


@dataclass(frozen=True)
class Kept:
    """A head that is ready for use.

    Attributes
    ----------
    card : Card
    arrays : dict of str to array
        `median`, `mean`, `scale` of the training records; `calibration` (n_draws, 2), slopes and intercepts drawn over
        validation patients, empty where there is no support; `coef` and `intercept` of a linear head.
    booster : xgboost.Booster or None
    """

    card: Card
    arrays: dict[str, np.ndarray]
    booster: Any = None

    def own_score(self, x: np.ndarray) -> np.ndarray:
        """The head's own probability of (n, dim) representations, (n,) float64, before calibration."""
        if self.booster is None:
            return expit(self._standard(x) @ self.arrays["coef"] + self.arrays["intercept"][0])
        return self.booster.inplace_predict(np.ascontiguousarray(x, np.float32)).astype(float)

    def probability(self, x: np.ndarray) -> np.ndarray:
        """Calibrated probability, (n,) float64."""
        return expit(self.card.slope * log_odds(self.own_score(x)) + self.card.intercept)

    def interval(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of the calibrated probability over resampled validation patients, two (n,) arrays.

        It says how well the validation records determine the calibration of this head. It does not hold what another
        training sample, another hospital or another device would change. NaN where the head is not calibrated.
        """
        z = log_odds(self.own_score(x))
        if not len(self.arrays["calibration"]):
            return np.full(len(z), np.nan), np.full(len(z), np.nan)
        slope, intercept = self.arrays["calibration"].T
        lo, hi, _ = interval(expit(z[:, None] * slope + intercept))
        return lo, hi

    @property
    def threshold(self) -> float:
        """The validation threshold as a calibrated probability."""
        return float(expit(self.card.slope * log_odds(np.array(self.card.threshold)) + self.card.intercept))

    def distance(self, x: np.ndarray) -> np.ndarray:
        """Root mean square of the standardised dimensions: 1 for an average training record, (n,) float64."""
        return np.sqrt((self._standard(x) ** 2).mean(axis=1))

    def unusual(self, x: np.ndarray) -> np.ndarray:
        """Which records lie farther from the training records than 99 % of the validation records, (n,) bool."""
        return self.distance(x) > self.card.limit

    def pipeline(self) -> Pipeline:
        """A linear head as scikit-learn's scaler and logistic regression, as `cure.attribution.Probe` takes it.

        Raises
        ------
        CureError
            If the head is not linear.
        """
        if self.booster is not None:
            raise CureError(f"{self.card.head} is not linear: explain the logistic head of task {self.card.task}")
        scale, model = StandardScaler(), LogisticRegression()
        scale.mean_, scale.scale_ = self.arrays["mean"], self.arrays["scale"]
        model.coef_, model.intercept_ = self.arrays["coef"][None], self.arrays["intercept"]
        model.classes_ = np.array([False, True])
        return make_pipeline(make_pipeline(scale), model)

    def _standard(self, x: np.ndarray) -> np.ndarray:
        filled = np.where(np.isnan(x), self.arrays["median"], x.astype(float))
        return (filled - self.arrays["mean"]) / self.arrays["scale"]


def log_odds(p: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, of which none is taken for certain."""
    return logit(np.clip(p, 1e-7, 1 - 1e-7))


# --- loading --------------------------------------------------------------------------------------------


def folder_of(profile: str) -> Path:
    """Where stage `heads` of a profile keeps its heads."""
    return paths.stage(profile, "heads") / "heads"


def available(folder: Path) -> list[tuple[str, str, str]]:
    """Representation, head and task of every head in a folder of kept heads.

    Raises
    ------
    CureError
        If there are none: says how to make them.
    """
    names = [where.split("/") for where in _index(folder)]
    return [(one, head, task) for one, head, task in names]


def load(folder: Path, representation: str, head: str, task: str) -> Kept:
    """Load a head; every byte of it is checked against the hashes that it was kept with.

    Raises
    ------
    CureError
        If it is not there: lists those that are. If a file is missing or was changed: names the file.
    """
    where, index = f"{representation}/{head}/{task}", _index(folder)
    if where not in index:
        raise CureError(f"no head '{where}' among the kept ones: {', '.join(index)}")
    text = _checked(folder / where / CARD, index[where])
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        raise CureError(f"{_shown(folder / where / CARD)} is not a head's card: {error}; {_again(folder)}") from error
    blobs = {name: _checked(folder / where / name, sha256) for name, sha256 in card.files.items()}
    try:
        arrays = load_arrays(blobs[ARRAYS])
    except (SafetensorError, KeyError) as error:
        raise CureError(f"{_shown(folder / where / ARRAYS)} cannot be read: {error}; {_again(folder)}") from error
    if card.head == "logistic":
        return Kept(card, arrays)
    import xgboost

    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(blobs[MODEL]))
    return Kept(card, arrays, booster)


def sha256_of(blob: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(blob).hexdigest()


def _index(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    if not file.is_file():
        raise CureError(f"no kept heads at {_shown(folder)}: {_again(folder)}")
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise CureError(f"{_shown(file)} is not an index of heads: {error}; {_again(folder)}") from error


def _checked(file: Path, sha256: str) -> bytes:
    if not file.is_file():
        raise CureError(f"{_shown(file)} is missing; {_again(file)}")
    blob = file.read_bytes()
    if sha256_of(blob) != sha256:
        raise CureError(f"{_shown(file)} was changed after it was written: it is not loaded; {_again(file)}")
    return blob


def _shown(path: Path) -> str:
    return str(path.relative_to(paths.root())) if path.is_relative_to(paths.root()) else path.name


def _again(path: Path) -> str:
    stages = paths.root() / "data" / "stages"
    profile = path.relative_to(stages).parts[0] if path.is_relative_to(stages) else "PROFILE"
    return f"`make repro PROFILE={profile}` makes them"

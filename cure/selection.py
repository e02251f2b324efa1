"""A picture chosen by its labels: what that choice gains, also where labels say nothing.

CURE-FM's released code shows UMAP maps of the 50 dimensions that matter most to a head, over records balanced by class,
with the UMAP settings whose map separates the labels best. Labels thus enter three times: the head, the dimensions, the
settings. Here the whole choice is repeated with labels that changed places between patients *before* the first step:
what it then reaches is gained by choosing, not by the representation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import joblib
import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression

from cure import embed
from cure.bootstrap import Array, interval, label_permutations, patient_draws
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES
from cure.geometry import silhouette, umap_map
from cure.heads import scaler
from cure.progress import progress
from cure.settings.probes import ProbesConfig
from cure.splits import Split

#: Dimensions kept, as in the released code.
N_DIMS = 50
#: The library's own UMAP settings: the map that nobody chose.
DEFAULT = (15, 0.1)
#: What a silhouette was measured on, in the order of the choices.
STEPS = ("all dimensions", "chosen dimensions", "default UMAP", "chosen UMAP")
TRUE, SHUFFLED = "true", "shuffled"
FITTED, HELD_OUT = "fitted", "held out"
#: Patients that must share a number of records for their labels to be permuted in blocks.
_MIN_BLOCKS = 10


@dataclass(frozen=True)
class Sample:
    """Records balanced by class, under one labelling.

    Attributes
    ----------
    z : (n, dim) float64 array
        Standardised by training records.
    y : (n,) bool array
    rows : (n,) int array
        Positions in the cohort.
    """

    z: Array
    y: Array
    rows: Array


@dataclass(frozen=True)
class Choice:
    """The choice under one labelling.

    Attributes
    ----------
    number : int
        0 for the true labels, then the permutations.
    fitted, held_out : Sample
        Training records, by which everything is chosen, and test records, by which nothing is.
    dims : (N_DIMS,) int array
        Dimensions with the largest mean |SHAP| of a logistic head on `fitted`.
    """

    number: int
    fitted: Sample
    held_out: Sample
    dims: Array

    @property
    def labels(self) -> str:
        """Whether labels are as they are or shuffled."""
        return SHUFFLED if self.number else TRUE


def linear_importance(weight: Array, z: Array) -> Array:
    """Mean |SHAP| of a linear head, (dim,): `|w_j| mean |z_j - mean z_j|`, exact for independent dimensions.

    Lundberg and Lee 2017, corollary 1. `weight` is (dim,), `z` (n, dim), its own background.
    """
    return np.abs(weight) * np.abs(z - z.mean(axis=0)).mean(axis=0)


def choose_dimensions(z: Array, y: Array, k: int = N_DIMS) -> Array:
    """The `k` dimensions of `z` (n, dim) that matter most to a logistic head (scikit-learn's settings) fitted there.

    Returns
    -------
    (min(k, dim),) int array
        Most important first.
    """
    head = LogisticRegression(max_iter=1000).fit(z, y)
    return np.argsort(-linear_importance(head.coef_[0], z), kind="stable")[:k]


def balanced(y: Array, n: int, rng: np.random.Generator) -> Array:
    """Positions of as many positives as negatives, at most `n` in all, in order; `y` is (m,) bool."""
    size = min(n // 2, int(y.sum()), int((~y).sum()))
    drawn = [rng.choice(np.flatnonzero(y == value), size, replace=False) for value in (True, False)]
    return np.sort(np.concatenate(drawn))


def choices(config: ProbesConfig, cohort: Cohort, split: Split, one: Representation) -> list[Choice]:
    """The true labels and `n_shuffles` permutations: samples of training and test records, and dimensions of each.

    Raises
    ------
    CureError
        For an unknown task, or one with fewer than ten positives or negatives in the training or the test part.
    """
    labels = cohort.binary()
    if config.task not in labels.names:
        raise CureError(f"unknown task '{config.task}': choose one of {', '.join(labels.names)} in section probes")
    y = labels.y[:, labels.names.index(config.task)]
    for part in ("train", "test"):
        fewest = int(np.bincount(y[getattr(split, part)], minlength=2).min())
        if fewest < MIN_POSITIVES:
            raise CureError(
                f"task {config.task}: only {fewest} positive or negative {part} records in {split.name}, a picture "
                f"needs {MIN_POSITIVES} of each; choose another `task` in section probes of the profile"
            )
    x = embed.read_split(config, one, config.pooling, cohort, split)
    z = scaler().fit(x[split.train]).transform(x).astype(np.float64)
    patient_id = cohort.records["patient_id"].to_numpy()
    rng = np.random.default_rng([config.seed, 3])
    labellings = [{part: y[getattr(split, part)] for part in ("train", "test")}]
    moved = {
        part: label_permutations(true, patient_id[getattr(split, part)], config.n_shuffles, rng, _MIN_BLOCKS)
        for part, true in labellings[0].items()
    }
    labellings += [{part: moved[part][i] for part in moved} for i in range(config.n_shuffles)]
    found = []
    for i, labelling in enumerate(labellings):
        samples = []
        for part, code in labelling.items():
            kept = balanced(code, config.n_balanced, rng)
            rows = getattr(split, part)[kept]
            samples.append(Sample(z[rows], code[kept], rows))
        found.append(Choice(i, samples[0], samples[1], choose_dimensions(samples[0].z, samples[0].y)))
    return found


# --- maps and silhouettes ---------------------------------------------------------------------------------


def label_silhouette(z: Array, y: Array) -> Array:
    """Silhouette of each record under its binary label, Euclidean, (n,)."""
    return silhouette(cdist(z, z), y[None].astype(int))[0]


@dataclass(frozen=True)
class Drawn:
    """One map: of whose records, with which settings; `xy` is (n, 2)."""

    number: int
    records: str
    k: int
    min_dist: float
    xy: Array


def draw_maps(config: ProbesConfig, found: list[Choice]) -> list[Drawn]:
    """Every map of the grid for every choice, and the default; then held-out records with the settings chosen."""
    grid = [*product(config.n_neighbors, config.min_dist)]
    grid += [] if DEFAULT in grid else [DEFAULT]
    maps = _draw(config, [(one, FITTED, *where) for one in found for where in grid])
    return maps + _draw(config, [(one, HELD_OUT, *chosen_settings(config, one, maps)) for one in found])


def _draw(config: ProbesConfig, jobs: list[tuple[Choice, str, int, float]]) -> list[Drawn]:
    def sample(one: Choice, records: str) -> Array:
        part = one.fitted if records == FITTED else one.held_out
        return part.z[:, one.dims].astype(np.float32)

    # A map takes one thread and well under a second; a worker spends ten compiling UMAP before its first.
    workers = joblib.cpu_count() if len(jobs) > _MANY else 1
    done = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=4)(
        joblib.delayed(umap_map)(sample(one, records), config.seed, k, min_dist) for one, records, k, min_dist in jobs
    )
    maps = progress(done, desc="maps", total=len(jobs), unit="map")
    return [
        Drawn(one.number, records, k, min_dist, xy.round(3))
        for (one, records, k, min_dist), xy in zip(jobs, maps, strict=True)
    ]


#: Maps from which on workers are worth their start.
_MANY = 60


def chosen_settings(config: ProbesConfig, one: Choice, maps: list[Drawn]) -> tuple[int, float]:
    """Neighbours and minimal distance of the grid's map whose labels have the largest mean silhouette."""
    best = max(_grid(config, one, maps), key=lambda m: float(label_silhouette(m.xy, one.fitted.y).mean()))
    return best.k, best.min_dist


def _grid(config: ProbesConfig, one: Choice, maps: list[Drawn]) -> list[Drawn]:
    mine = [m for m in maps if m.number == one.number and m.records == FITTED]
    return [m for m in mine if m.k in config.n_neighbors and m.min_dist in config.min_dist]


def selection_table(
    config: ProbesConfig, cohort: Cohort, one: Representation, found: list[Choice], maps: list[Drawn]
) -> pd.DataFrame:
    """Mean silhouette of the labels after each step of the choice, for true and shuffled labels.

    `records` says of whom: `fitted` are those that everything was chosen by, `held out` are test records seen with the
    same dimensions and settings. The 95 % intervals are over patients, for true labels and for what stands still (the
    choice is not repeated in the draws): they do not cover the gain of choosing.
    """
    patient_id = cohort.records["patient_id"].to_numpy()
    rows = []
    for choice in found:
        k, min_dist = chosen_settings(config, choice, maps)
        for records, sample in ((FITTED, choice.fitted), (HELD_OUT, choice.held_out)):
            draws = patient_draws(patient_id[sample.rows], config.n_draws, np.random.default_rng(config.seed))
            for step, space, how in _spaces(choice, sample, records, (k, min_dist), maps):
                values = label_silhouette(space, sample.y)
                lo, hi, _ = interval((draws @ values) / draws.sum(axis=1))
                known = (lo, hi) if choice.labels == TRUE else (np.nan, np.nan)
                row = {"cohort": cohort.name, "encoder": one.encoder, "weights": one.weights, "seed": one.seed}
                row |= {"pooling": config.pooling, "task": config.task, "labels": choice.labels}
                row |= {"permutation": choice.number, "records": records, "step": step, "n_neighbors": how[0]}
                row |= {"min_dist": how[1], "metric": "silhouette", "value": values.mean(), "lo": known[0]}
                n_patients = len(np.unique(patient_id[sample.rows]))
                row |= {"hi": known[1], "n": len(sample.y), "n_pos": int(sample.y.sum()), "n_patients": n_patients}
                rows.append(row)
    return pd.DataFrame(rows).astype({"n_neighbors": "Int64"})


_Step = tuple[str, Array, tuple[int | None, float | None]]


def _spaces(
    choice: Choice, sample: Sample, records: str, chosen: tuple[int, float], maps: list[Drawn]
) -> Iterator[_Step]:
    yield STEPS[0], sample.z, (None, None)
    yield STEPS[1], sample.z[:, choice.dims], (None, None)
    mine = {(m.k, m.min_dist): m.xy for m in maps if m.number == choice.number and m.records == records}
    if records == FITTED:
        yield STEPS[2], mine[DEFAULT], DEFAULT
    yield STEPS[3], mine[chosen], chosen


def grid_table(config: ProbesConfig, cohort: Cohort, found: list[Choice], maps: list[Drawn]) -> pd.DataFrame:
    """Mean silhouette of the labels on every map of the grid, under every labelling."""
    rows = []
    for one in found:
        for m in _grid(config, one, maps):
            key = {"cohort": cohort.name, "task": config.task, "labels": one.labels, "permutation": one.number}
            where = {"n_neighbors": m.k, "min_dist": m.min_dist, "metric": "silhouette"}
            value = label_silhouette(m.xy, one.fitted.y).mean()
            rows.append({**key, **where, "value": value, "n": len(one.fitted.y)})
    return pd.DataFrame(rows)


def points_table(
    config: ProbesConfig, cohort: Cohort, one: Representation, found: list[Choice], maps: list[Drawn]
) -> pd.DataFrame:
    """Coordinates of the chosen map of the true labels and of the first permutation."""
    frames = []
    for choice in found[:2]:
        chosen = chosen_settings(config, choice, maps)
        xy = next(
            m.xy for m in _grid(config, choice, maps) if (m.k, m.min_dist) == chosen and m.number == choice.number
        )
        about = {"encoder": one.encoder, "weights": one.weights, "task": config.task, "labels": choice.labels}
        frame = cohort.records[["record_id"]].iloc[choice.fitted.rows].reset_index(drop=True)
        frame = frame.assign(**about, n_neighbors=chosen[0], min_dist=chosen[1], y=choice.fitted.y.astype(int))
        frames.append(frame.assign(axis_1=xy[:, 0], axis_2=xy[:, 1]))
    return pd.concat(frames, ignore_index=True)


def gain_view(table: pd.DataFrame) -> pd.DataFrame:
    """Mean silhouette per step: true labels, and mean and largest of the shuffled ones."""
    keys = ["records", "step"]
    true = table[table["labels"] == TRUE].groupby(keys, sort=False)["value"].mean()
    shuffled = table[table["labels"] == SHUFFLED].groupby(keys, sort=False)["value"]
    wide = {"true labels": true, "shuffled, mean": shuffled.mean(), "shuffled, largest": shuffled.max()}
    return pd.DataFrame(wide).reindex(true.index).round(3)

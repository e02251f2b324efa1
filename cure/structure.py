"""Structure of representations: whether records of one label lie together, which representations are alike, pictures.

Everything is measured in the native space, standardised by training records, within the test records of each outer
split. Encoders whose weights differ from split to split, and those whose weights do not, are then measured alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cure import embed
from cure.bootstrap import Array, interval, label_permutations, patient_draws
from cure.cohorts.base import Cohort
from cure.embed import FEATURES, Representation
from cure.evaluate import MIN_POSITIVES, support
from cure.geometry import (
    Space,
    chance_purity,
    davies_bouldin,
    debiased_cka,
    principal,
    purity,
    silhouette,
    tsne_map,
    umap_map,
)
from cure.heads import scaler
from cure.progress import progress
from cure.scores import MEAN
from cure.settings.structure import DrawsConfig, StructureConfig
from cure.splits import Split
from cure.tasks import groups

#: The task that tells the superclasses apart, over records that list exactly one.
SUPERCLASS = "superclass"
#: What a picture calls records that list several superclasses, or none.
OTHER = "several or none"
METRICS = ("silhouette", "knn_purity", "knn_lift", "davies_bouldin")
#: Label permutations of the control.
N_PERMUTATIONS = 50
#: Patients that must share a number of records for their labels to be permuted in blocks.
_MIN_BLOCKS = 10


@dataclass(frozen=True)
class Grouping:
    """Records told apart by a label.

    Attributes
    ----------
    name : str
        The task.
    codes : (n_records,) int array
        Class of each record; -1 where it does not take part.
    counted : tuple of int
        Classes whose neighbours are looked at: the positives of a binary task, every superclass.
    """

    name: str
    codes: Array
    counted: tuple[int, ...]


def single_superclass(cohort: Cohort) -> pd.Series:
    """The superclass of each record that lists exactly one, by record_id; `OTHER` for the rest."""
    name = np.full(len(cohort), OTHER, dtype=object)
    if "super" in groups(cohort.statements):
        labels = cohort.group("super")
        alone = labels.y.sum(axis=1) == 1
        name[labels.rows[alone]] = np.array(labels.names, dtype=object)[labels.y[alone].argmax(axis=1)]
    return pd.Series(name, index=cohort.records["record_id"], name="superclass")


def groupings(cohort: Cohort, splits: list[Split]) -> list[Grouping]:
    """The superclasses, each with enough tested records to count, then the binary tasks that have both classes."""
    tested = np.concatenate([split.test for split in splits])
    alone = single_superclass(cohort).to_numpy()
    counts = pd.Series(alone[tested]).value_counts().drop(OTHER, errors="ignore")
    names = sorted(counts.index[counts >= MIN_POSITIVES])
    out = []
    if len(names) > 1:
        codes = pd.Categorical(alone, categories=names).codes.astype(int)
        out.append(Grouping(SUPERCLASS, codes, tuple(range(len(names)))))
    labels = cohort.binary()
    for name, y in zip(labels.names, labels.y.T, strict=True):
        if 0 < y[tested].sum() < len(tested):
            out.append(Grouping(name, y.astype(int), (1,)))
    return out


@dataclass(frozen=True)
class Part:
    """The test records of one split that take part in some tasks; the first row of each array is the sample as it is.

    Attributes
    ----------
    members : (n,) int array
        Positions among the split's test records.
    patient_id : (n,) array
    weights : (1 + n_draws, n) float64 array
    codes : dict of str to (1 + N_PERMUTATIONS, n) int array
        Classes under each task.
    chance : dict of str to (1 + N_PERMUTATIONS, n) float64 array
        Purity of neighbours drawn blindly.
    """

    members: Array
    patient_id: Array
    weights: Array
    codes: dict[str, Array]
    chance: dict[str, Array]


def make_parts(config: DrawsConfig, cohort: Cohort, splits: list[Split], tasks: list[Grouping]) -> list[list[Part]]:
    """Draws over patients, and labels that change places between patients; per split, one part per set of records."""
    patient_id = cohort.records["patient_id"].to_numpy()
    rng = np.random.default_rng([config.seed, 1])
    tested = np.concatenate([split.test for split in splits])
    draws = patient_draws(patient_id[tested], config.n_draws, np.random.default_rng(config.seed))
    weights = np.vstack([np.ones(len(tested)), draws])
    ends = np.cumsum([len(split.test) for split in splits])
    out: list[list[Part]] = []
    for split, columns in zip(splits, np.split(weights, ends[:-1], axis=1), strict=True):
        takes = np.array([task.codes[split.test] >= 0 for task in tasks])
        parts = []
        for pattern in np.unique(takes, axis=0):
            chosen = [task for task, row in zip(tasks, takes, strict=True) if (row == pattern).all()]
            members = np.flatnonzero(pattern)
            rows = split.test[members]
            true = np.column_stack([task.codes[rows] for task in chosen])
            moved = label_permutations(true, patient_id[rows], N_PERMUTATIONS, rng, min_patients=_MIN_BLOCKS)
            codes = np.concatenate([true[None], moved]).transpose(2, 0, 1)
            named = {task.name: code for task, code in zip(chosen, codes, strict=True)}
            chance = {name: chance_purity(patient_id[rows], code) for name, code in named.items()}
            parts.append(Part(members, patient_id[rows], columns[:, members], named, chance))
        out.append(parts)
    return out


# --- measures -----------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """One metric of one representation on one task: in the sample and every draw, and under permuted labels.

    `chance` is what blindly drawn neighbours give, where that is known without permuting.
    """

    draws: Array  # (1 + n_draws,)
    null: Array  # (N_PERMUTATIONS,)
    chance: float | None


Results = dict[Representation, dict[tuple[str, str], Measured]]


def standardised(config: StructureConfig, cohort: Cohort, splits: list[Split]) -> dict[Representation, list[Array]]:
    """The test records of every split in every representation, standardised by the split's training records.

    Returns
    -------
    dict of Representation to list of (n_tested, dim) arrays
    """
    everyone = embed.representations(config)
    return {one: [_scaled(config, cohort, one, split, split.test) for split in splits] for one in everyone}


def _scaled(config: StructureConfig, cohort: Cohort, one: Representation, split: Split, rows: Array) -> Array:
    x = embed.read_split(config, one, _pooling(config, one), cohort, split)
    return scaler().fit(x[split.train]).transform(x[rows]).astype(np.float64)


def _pooling(config: DrawsConfig, one: Representation) -> str:
    return "none" if one.encoder == FEATURES else config.pooling


def measure(
    config: StructureConfig, cohort: Cohort, splits: list[Split], spaces: dict[Representation, list[Array]]
) -> Results:
    """Every metric of every representation and task; all share their draws and their permutations."""
    tasks = groupings(cohort, splits)
    parts = make_parts(config, cohort, splits, tasks)
    return {
        one: measure_one(tasks, parts, z, config.k)
        for one, z in progress(spaces.items(), desc="structure", total=len(spaces), unit="representation")
    }


def measure_one(
    tasks: list[Grouping], parts: list[list[Part]], spaces: list[Array], k: int
) -> dict[tuple[str, str], Measured]:
    """All metrics of one representation; `spaces` holds the test records of each split, (n_tested, dim)."""
    pieces: dict[str, list[_Piece]] = {task.name: [] for task in tasks}
    for z, split_parts in zip(spaces, parts, strict=True):
        for part in split_parts:
            space = Space.of(z[part.members], part.patient_id, k)
            whole = part.weights @ space.gram
            for name in part.codes:
                pieces[name].append(_Piece.of(space, part, name, whole))
    return {(task.name, metric): m for task in tasks for metric, m in _joined(task, pieces[task.name]).items()}


class _Piece(NamedTuple):
    """What one split says about one task: values of records, and of the split where records have none of their own."""

    weights: Array
    codes: Array
    silhouette: Array  # (1 + N_PERMUTATIONS, n), as the next two
    purity: Array
    chance: Array
    bouldin: Array  # (1 + n_draws,)
    bouldin_null: Array

    @classmethod
    def of(cls, space: Space, part: Part, name: str, whole: Array) -> "_Piece":
        codes, weights = part.codes[name], part.weights
        index = davies_bouldin(space.gram, codes[:1], weights, whole)
        null = davies_bouldin(space.gram, codes[1:], weights[:1], whole[:1])
        values = silhouette(space.distance, codes), purity(space.neighbours, codes), part.chance[name]
        return cls(weights, codes, *values, index, null)


def _joined(task: Grouping, pieces: list[_Piece]) -> dict[str, Measured]:
    """Metrics over all splits: records together with classes weighted equally; indices averaged by records."""
    weights = np.concatenate([piece.weights for piece in pieces], axis=1)
    codes = np.concatenate([piece.codes for piece in pieces], axis=1)

    def means(name: str, classes: tuple[int, ...]) -> tuple[Array, Array]:
        values = np.concatenate([getattr(piece, name) for piece in pieces], axis=1)
        drawn = _class_mean(values[:1], codes[:1], weights, classes)
        return drawn, _class_mean(values[1:], codes[1:], weights[:1], classes)

    pure, pure_null = means("purity", task.counted)
    chance, chance_null = means("chance", task.counted)
    size = np.stack([piece.weights.sum(axis=1) for piece in pieces])
    index = split_mean(np.stack([piece.bouldin for piece in pieces]), size)
    # A resample holds records twice, which lie at distance 0: its index is too low. Its spread is what is wanted.
    index[1:] += index[0] - np.nanmean(index[1:])
    index_null = split_mean(np.stack([piece.bouldin_null for piece in pieces]), size[:, :1])
    return {
        "silhouette": Measured(*means("silhouette", tuple(range(codes.max() + 1))), None),
        "knn_purity": Measured(pure, pure_null, float(chance[0])),
        "knn_lift": Measured(_lift(pure, chance), _lift(pure_null, chance_null), 1.0),
        "davies_bouldin": Measured(index, index_null, None),
    }


def _lift(pure: Array, chance: Array) -> Array:
    """Purity over chance; NaN where no positive that was drawn has another one to find."""
    return np.divide(pure, chance, out=np.full(pure.shape, np.nan), where=chance > 0)


def _class_mean(values: Array, codes: Array, weights: Array, classes: tuple[int, ...]) -> Array:
    """Mean over classes of the weighted mean over records; one of (values and codes) and weights has a single row."""
    means = []
    for c in classes:
        member = (codes == c) & np.isfinite(values)
        total, size = weights @ np.where(member, values, 0).T, weights @ member.T.astype(float)
        means.append(np.divide(total, size, out=np.full(size.shape, np.nan), where=size > 0).ravel())
    return np.mean(means, axis=0)


def split_mean(values: Array, size: Array) -> Array:
    """Mean over splits (axis 0) weighted by records, of the splits where the value is defined."""
    size = np.where(np.isfinite(values), size, 0)
    total = size.sum(axis=0)
    return np.where(total > 0, np.nansum(values * size, axis=0) / np.maximum(total, 1), np.nan)


# --- tables -------------------------------------------------------------------------------------------


def structure_table(config: DrawsConfig, cohort: Cohort, splits: list[Split], results: Results) -> pd.DataFrame:
    """One row per representation, task and metric, with 95 % intervals over patients; no interval without support.

    Rows with seed `mean` average over initialisations, inside each draw. `chance` is the purity of neighbours drawn
    blindly, 1 for the lift, and the mean under permuted labels for silhouette and Davies-Bouldin index. For the
    superclasses `n` counts the records that list exactly one, and `n_pos` is empty.
    """
    about = {task.name: _support(task, cohort, splits) for task in groupings(cohort, splits)}
    rows = []
    for key, (task, metric), measured in averaged(config, results):
        lo, hi, _ = interval(measured.draws[1:]) if about[task]["supported"] else (np.nan, np.nan, 0)
        number = {"value": measured.draws[0], "lo": lo, "hi": hi}
        chance = measured.null.mean() if measured.chance is None else measured.chance
        rows.append(
            {"cohort": cohort.name, **key, "task": task, "metric": metric, **number, "chance": chance} | about[task]
        )
    return pd.DataFrame(rows).astype({"n_pos": "Int64"})


def null_table(config: DrawsConfig, cohort: Cohort, results: Results) -> pd.DataFrame:
    """Every metric under permuted labels: mean, its standard error, spread, and `mean ± 1.96 sd` as `lo` and `hi`.

    The mean must be `chance` where that is known without permuting.
    """
    rows = []
    for key, (task, metric), measured in averaged(config, results):
        mean, sd = measured.null.mean(), measured.null.std(ddof=1)
        spread = {"mean": mean, "se": sd / len(measured.null) ** 0.5, "sd": sd, "lo": mean - 1.96 * sd}
        spread |= {"hi": mean + 1.96 * sd, "chance": measured.chance, "n_permutations": len(measured.null)}
        rows.append({"cohort": cohort.name, **key, "task": task, "metric": metric, **spread})
    return pd.DataFrame(rows)


def _support(task: Grouping, cohort: Cohort, splits: list[Split]) -> dict:
    tested = np.concatenate([split.test for split in splits])
    rows = tested[task.codes[tested] >= 0]
    about = support(task.codes[rows] > 0, cohort.records["patient_id"].to_numpy()[rows])
    binary = task.name != SUPERCLASS  # superclasses without support take no part
    n_pos = about.n_pos if binary else pd.NA
    return {"n": about.n, "n_pos": n_pos, "n_patients": about.n_patients, "supported": about.supported or not binary}


def averaged(config: DrawsConfig, results: Results) -> Iterator[tuple[dict, tuple[str, str], Measured]]:
    """Every result with the columns that name its representation; then the averages over initialisations."""
    families: dict[tuple[str, str, str], list[dict[tuple[str, str], Measured]]] = {}
    for one, found in results.items():
        name = one.encoder, one.weights, _pooling(config, one)
        families.setdefault(name, []).append(found)
        for what, measured in found.items():
            yield _key(*name, one.seed), what, measured
    for name, members in families.items():
        for what in members[0]:
            draws, null, chance = zip(*(found[what] for found in members), strict=True)
            yield _key(*name, MEAN), what, Measured(np.mean(draws, axis=0), np.mean(null, axis=0), chance[0])


def _key(encoder: str, weights: str, pooling: str, seed: int | str) -> dict:
    return {"encoder": encoder, "weights": weights, "seed": seed, "pooling": pooling}


def cka_table(
    config: StructureConfig, cohort: Cohort, splits: list[Split], spaces: dict[Representation, list[Array]]
) -> pd.DataFrame:
    """Debiased linear CKA of every pair of representations, averaged over splits by test records."""
    size = np.array([len(split.test) for split in splits])
    each = [debiased_cka([z[i] for z in spaces.values()]) for i in range(len(splits))]
    value = np.average(each, axis=0, weights=size)
    rows = []
    for i, a in enumerate(spaces):
        for j, b in enumerate(spaces):
            key = {f"{name}_a": v for name, v in _key(a.encoder, a.weights, _pooling(config, a), a.seed).items()}
            key |= {f"{name}_b": v for name, v in _key(b.encoder, b.weights, _pooling(config, b), b.seed).items()}
            rows.append({"cohort": cohort.name, **key, "metric": "cka_debiased", "value": value[i, j], "n": size.sum()})
    return pd.DataFrame(rows)


def labelled(table: pd.DataFrame, suffix: str = "", seeds: bool = False) -> pd.Series:
    """A representation in one text: `encoder, weights`, then the seed where wanted; features stand alone."""
    encoder, weights = table[f"encoder{suffix}"].astype(str), table[f"weights{suffix}"].astype(str)
    text = encoder + ", " + weights + (", " + table[f"seed{suffix}"].astype(str) if seeds else "")
    return text.where(encoder != FEATURES, encoder)


def cka_view(table: pd.DataFrame) -> pd.DataFrame:
    """The square of CKA values, representation by representation."""
    named = table.assign(a=labelled(table, "_a", seeds=True), b=labelled(table, "_b", seeds=True))
    order = list(named["a"].unique())
    return named.pivot(index="a", columns="b", values="value").loc[order, order].rename_axis(index=None, columns=None)


def main_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Averages over initialisations, with a `label` of the representation."""
    chosen = table[table["seed"].astype(str) == MEAN]
    return chosen.assign(label=labelled(chosen))


# --- pictures -----------------------------------------------------------------------------------------


def pictured(everyone: list[Representation]) -> list[Representation]:
    """Features, and the encoder that comes with most kinds of weights, the first seed of each kind."""
    encoders = list(dict.fromkeys(one.encoder for one in everyone if one.encoder != FEATURES))
    kinds = {name: sorted({one.weights for one in everyone if one.encoder == name}) for name in encoders}
    most = max(encoders, key=lambda name: len(kinds[name]))
    features = [one for one in everyone if one.encoder == FEATURES]
    return features + [
        next(one for one in everyone if (one.encoder, one.weights) == (most, kind)) for kind in kinds[most]
    ]


def maps(config: StructureConfig, cohort: Cohort, split: Split) -> pd.DataFrame:
    """Coordinates of a split's validation and test records on a UMAP and a t-SNE of each pictured representation.

    Both start from the first 50 principal components; their settings are the libraries' own.
    """
    rows = np.concatenate([split.val, split.test])
    about = single_superclass(cohort).reset_index().iloc[rows]
    frames = []
    for one in pictured(embed.representations(config)):
        z = principal(_scaled(config, cohort, one, split, rows))
        for method, place in (("UMAP", umap_map), ("t-SNE", tsne_map)):
            x, y = place(z, config.seed).T.round(3)
            key = {"encoder": one.encoder, "weights": one.weights, "seed": one.seed, "method": method}
            frames.append(about.assign(**key, x=x, y=y))
    order = ["record_id", "encoder", "weights", "seed", "method", "x", "y", "superclass"]
    return pd.concat(frames, ignore_index=True)[order]

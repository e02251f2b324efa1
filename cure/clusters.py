"""Clusters and dimensions: whether groups found without labels match labels, in how many directions records vary.

Measured as in `cure.structure`: in the native space, standardised by training records, within the test records of each
outer split, with the same draws over patients and the same permuted labels.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import hypergeom
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from cure.bootstrap import Array, interval, patient_draws
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.geometry import Space
from cure.probes import each
from cure.settings.structure import DrawsConfig
from cure.splits import Split
from cure.structure import Measured, Part, Results, averaged, groupings, make_parts, split_mean

#: Starts of k-means; the one with the least inertia counts.
N_INIT = 10
#: Share of the largest ratios of distances that TwoNN leaves out (Facco et al. 2017, section Methods).
DISCARD = 0.1
METRICS = ("calinski_harabasz", "ari", "ami")
DIMENSIONS = ("two_nn", "participation_ratio")
#: Dimensions are of the space and of no task.
_NO_TASK = ""


# --- agreement of two partitions ------------------------------------------------------------------------


def adjusted_rand(clusters: Array, codes: Array, weights: Array) -> Array:
    """Adjusted Rand index (Hubert and Arabie 1985) of a clustering and labels, over weighted records.

    Pairs are counted as products of weights of two *different* records: a record that is drawn twice would otherwise
    agree with itself, and every draw would look better than the sample. With weights of 1 this is the index as it is.

    Parameters
    ----------
    clusters : (n,) int array
    codes : (m, n) int array
        Labels, from 0, in each of m labellings.
    weights : (m, n) array
        How often each record counts. `codes` or `weights` may have one row only, which then serves all.

    Returns
    -------
    (m,) float64 array
        1 for equal partitions, about 0 for unrelated ones; NaN where a draw holds fewer than two records, or both
        partitions have one group.
    """
    inside = _pairs(clusters * (codes.max() + 1) + codes, weights)
    a, b = _pairs(clusters[None], weights), _pairs(codes, weights)
    everything = _pairs(np.zeros((1, len(clusters)), int), weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = a * b / everything
        return (inside - expected) / ((a + b) / 2 - expected)


def _pairs(groups: Array, weights: Array) -> Array:
    """Weighted number of pairs of different records in the same group, (m,)."""
    total = np.zeros(max(len(groups), len(weights)))
    for group in np.unique(groups):
        member = (groups == group).astype(float)
        if len(groups) == 1:
            columns = np.flatnonzero(member[0])
            size, squares = weights[:, columns].sum(axis=1), np.square(weights[:, columns]).sum(axis=1)
        else:
            size, squares = member @ weights[0], member @ np.square(weights[0])
        total += (size**2 - squares) / 2
    return total


def adjusted_information(clusters: Array, codes: Array) -> Array:
    """Adjusted mutual information (Vinh et al. 2010, arithmetic mean of entropies) of a clustering and labels.

    Parameters
    ----------
    clusters : (n,) int array
    codes : (m, n) int array
        Labels from 0 with the same class sizes in every row, as permutations have: what is expected by chance is
        computed once.

    Returns
    -------
    (m,) float64 array
        1 for equal partitions, 0 on average for unrelated ones.
    """
    n = len(clusters)
    groups = (clusters == np.unique(clusters)[:, None]).astype(float)
    classes = (codes == np.arange(codes.max() + 1)[:, None, None]).astype(float)
    table = np.einsum("gn,cmn->mgc", groups, classes, optimize=True)
    a, b = groups.sum(axis=1), classes[:, 0].sum(axis=1)
    b, table = b[b > 0], table[:, :, b > 0]
    ratio = n * table / (a[:, None] * b)
    mutual = (table / n * np.log(np.where(table > 0, ratio, 1))).sum(axis=(1, 2))
    entropy = [-(size / n * np.log(size / n)).sum() for size in (a, b)]
    expected = expected_information(a, b)
    most = np.mean(entropy) - expected
    return (mutual - expected) / most if most > 0 else np.full(len(codes), np.nan)


def expected_information(a: Array, b: Array) -> float:
    """Mean mutual information, in nats, of two random partitions with group sizes `a` and `b` (Vinh et al. 2010)."""
    n = int(a.sum())
    total = 0.0
    for size in a.astype(int):
        for other in b.astype(int):
            both = np.arange(max(1, size + other - n), min(size, other) + 1)
            share = hypergeom.pmf(both, n, size, other)
            total += float((both / n * np.log(n * both / (size * other)) * share).sum())
    return total


def calinski_harabasz(z: Array, codes: Array, weights: Array, whole: Array | None = None) -> Array:
    """Calinski-Harabasz index (1974) of weighted records: variance between classes over that within, as an F ratio.

    Parameters
    ----------
    z : (n, dim) array
    codes : (m, n) int array
        Class of each record, from 0.
    weights : (m, n) array
        How often each record counts. Either argument may have one row only, which then serves all of the other's.
    whole : (m, dim) array, optional
        `weights @ z`, where it is at hand: the largest class then costs no product of its own.

    Returns
    -------
    (m,) float64 array
        Over the classes that have weight; NaN where fewer than two have. About 1 for labels that say nothing.
    """
    whole = weights @ z if whole is None else whole
    classes = range(int(codes.max()) + 1)
    columns = [np.flatnonzero((codes == c).any(axis=0)) for c in classes]
    largest = int(np.argmax([len(column) for column in columns]))
    member = [weights[:, column] * (codes[:, column] == c) for c, column in enumerate(columns)]
    size = [m.sum(axis=1) for m in member]
    each_sum = [
        m @ z[column] if c != largest else None for c, (m, column) in enumerate(zip(member, columns, strict=True))
    ]
    rest_sum = whole - sum(total for total in each_sum if total is not None)
    totals = [rest_sum if total is None else total for total in each_sum]
    between = [
        np.square(total).sum(axis=1) / np.where(count > 0, count, 1) for total, count in zip(totals, size, strict=True)
    ]
    n, k = np.sum(size, axis=0), np.sum(np.array(size) > 0, axis=0)
    centre = np.square(whole).sum(axis=1) / n
    inner = np.sum(between, axis=0) - centre
    rest = weights @ np.square(z).sum(axis=1) - centre - inner
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(k > 1, (inner / (k - 1)) / (rest / (n - k)), np.nan)


def k_means(z: Array, k: int, seed: int) -> Array:
    """Clusters of `z` (n, dim), (n,) int: the best of `N_INIT` starts. On one thread: more would add in any order."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct records than clusters
        return KMeans(k, n_init=N_INIT, random_state=seed, algorithm="lloyd").fit_predict(z)


# --- dimensions -----------------------------------------------------------------------------------------


def two_nn(distance: Array, patient_id: Array, weights: Array, discard: float = DISCARD) -> Array:
    """Intrinsic dimension from the ratio of the distances to the two nearest neighbours (TwoNN, Facco et al. 2017).

    The ratios mu of points on a d-dimensional manifold have `-log (1 - F(mu)) = d log mu`: d is the slope through the
    origin, without the `discard` largest ratios. Nothing but these two distances has to be uniform.

    The neighbours are those of `nearest_patients`: with two records of one patient, mu would be about 1 and the
    dimension without bounds, whatever the manifold.

    Parameters
    ----------
    distance : (n, n) array
    patient_id : (n,) array
    weights : (m, n) array
        How often each record counts; distances stay those of the sample.

    Returns
    -------
    (m,) float64 array
        NaN where fewer than two different ratios count. A record at distance 0 from another patient's counts nowhere.

    Raises
    ------
    CureError
        If there are fewer than three patients.
    """
    near = nearest_patients(distance, patient_id)
    kept = np.flatnonzero(near[:, 0] > 0)
    x = np.log(near[kept, 1] / near[kept, 0])
    order = np.argsort(x, kind="stable")
    x, w = x[order], weights[:, kept[order]]
    share = np.cumsum(w, axis=1) / np.maximum(w.sum(axis=1, keepdims=True), 1e-12)
    w = np.where(share <= 1 - discard, w, 0)
    y = -np.log1p(-np.minimum(share, 1 - discard))
    spread = w @ np.square(x)
    return np.divide((w * y) @ x, spread, out=np.full(len(w), np.nan), where=spread > 0)


def nearest_patients(distance: Array, patient_id: Array) -> Array:
    """Distances of each record to the nearest record of another patient and to the nearest of a third, (n, 2).

    Parameters and errors as in `two_nn`.
    """
    n_patients = len(np.unique(patient_id))
    if n_patients < 3:
        raise CureError(
            f"a dimension needs records of three patients, there are {n_patients} among {len(patient_id)} test "
            "records: prepare a larger cohort, or fewer outer splits, in the profile's section cohort"
        )
    other = np.where(patient_id[:, None] != patient_id, distance, np.inf)
    first = np.argmin(other, axis=1)
    third = np.where(patient_id[first][:, None] != patient_id, other, np.inf)
    return np.stack([other[np.arange(len(other)), first], third.min(axis=1)], axis=1)


def participation_ratio(z: Array) -> float:
    """`(sum l)^2 / sum l^2` of the eigenvalues l of the covariance of `z` (n, dim): 1 on a line, `dim` in a ball."""
    z = z - z.mean(axis=0)
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    return float(np.trace(gram) ** 2 / np.square(gram).sum())


# --- a study --------------------------------------------------------------------------------------------


def measure(
    config: DrawsConfig, cohort: Cohort, splits: list[Split], spaces: dict[Representation, list[Array]]
) -> Results:
    """Calinski-Harabasz, ARI and AMI of every representation and task; spaces as in `cure.structure.standardised`."""
    parts = make_parts(config, cohort, splits, groupings(cohort, splits))

    def work(one: Representation) -> dict[tuple[str, str], Measured]:
        return measure_one(parts, spaces[one], config.seed)

    return dict(zip(spaces, each(work, list(spaces), "clusters"), strict=True))


@dataclass(frozen=True)
class _Piece:
    """One metric of one split: in the sample and every draw, under permuted labels, and the records behind it."""

    draws: Array  # (1 + n_draws,)
    null: Array  # (n_permutations,)
    size: Array  # (1 + n_draws,)


def measure_one(parts: list[list[Part]], spaces: list[Array], seed: int) -> dict[tuple[str, str], Measured]:
    """All cluster metrics of one representation; `spaces` holds the test records of each split, (n_tested, dim).

    Clusters are found once per split and number of classes; draws and permutations leave them as they are.
    """
    pieces: dict[tuple[str, str], list[_Piece]] = {}
    for z, split_parts in zip(spaces, parts, strict=True):
        for part in split_parts:
            x = z[part.members] - z[part.members].mean(axis=0)
            whole = part.weights @ x
            clusters: dict[int, Array] = {}
            for name, codes in part.codes.items():
                k = int(codes.max()) + 1
                found = clusters[k] = clusters[k] if k in clusters else k_means(x, k, seed)
                for metric, piece in _compared(x, found, codes, part.weights, whole).items():
                    pieces.setdefault((name, metric), []).append(piece)
    return {what: _joined(what[1], several) for what, several in pieces.items()}


def _compared(x: Array, clusters: Array, codes: Array, weights: Array, whole: Array) -> dict[str, _Piece]:
    size = weights.sum(axis=1)
    index = (
        calinski_harabasz(x, codes[:1], weights, whole),
        calinski_harabasz(x, codes[1:], weights[:1], whole[:1]),
    )
    rand = adjusted_rand(clusters, codes[:1], weights), adjusted_rand(clusters, codes[1:], weights[:1])
    information = adjusted_information(clusters, codes)
    # What AMI expects by chance depends on class sizes, which differ in every draw: it is given without draws.
    unknown = np.full(len(size) - 1, np.nan)
    both = np.r_[information[0], unknown], information[1:]
    return {name: _Piece(*values, size) for name, values in zip(METRICS, (index, rand, both), strict=True)}


def _joined(metric: str, pieces: list[_Piece]) -> Measured:
    size = np.stack([piece.size for piece in pieces])
    draws = split_mean(np.stack([piece.draws for piece in pieces]), size)
    null = split_mean(np.stack([piece.null for piece in pieces]), size[:, :1])
    if metric == "calinski_harabasz":
        # A resample holds records twice, classes look compact, the ratio is too high. Its spread is what is wanted.
        draws[1:] *= draws[0] / np.nanmean(draws[1:])
    return Measured(draws, null, 0.0 if metric in ("ari", "ami") else None)


def dimension_table(
    config: DrawsConfig, cohort: Cohort, splits: list[Split], spaces: dict[Representation, list[Array]]
) -> pd.DataFrame:
    """Intrinsic dimension and participation ratio, averaged over splits by test records, beside the dimensions held.

    TwoNN has 95 % intervals over patients (records resampled, distances as they are), the participation ratio none.
    Rows with seed `mean` average over initialisations.
    """
    patient_id = cohort.records["patient_id"].to_numpy()
    tested = np.concatenate([split.test for split in splits])
    draws = patient_draws(patient_id[tested], config.n_draws, np.random.default_rng(config.seed))
    ends = np.cumsum([len(split.test) for split in splits])[:-1]
    weights = np.split(np.vstack([np.ones(len(tested)), draws]), ends, axis=1)
    patients = np.split(patient_id[tested], ends)

    def work(one: Representation) -> dict[tuple[str, str], Measured]:
        return _dimensions(patients, weights, spaces[one])

    results = dict(zip(spaces, each(work, list(spaces), "dimensions"), strict=True))
    dims = {(one.encoder, one.weights): z[0].shape[1] for one, z in spaces.items()}
    n = {"n": len(tested), "n_patients": len(np.unique(patient_id[tested]))}
    rows = []
    for key, (_, metric), measured in averaged(config, results):
        lo, hi, _ = interval(measured.draws[1:])
        number = {"metric": metric, "value": measured.draws[0], "lo": lo, "hi": hi}
        rows.append({"cohort": cohort.name, **key, "dim": dims[key["encoder"], key["weights"]], **number, **n})
    return pd.DataFrame(rows)


def _dimensions(patients: list[Array], weights: list[Array], spaces: list[Array]) -> dict[tuple[str, str], Measured]:
    size = np.stack([w.sum(axis=1) for w in weights])
    each_two, each_ratio = [], []
    for patient_id, w, z in zip(patients, weights, spaces, strict=True):
        each_two.append(two_nn(Space.of(z, patient_id, 1).distance, patient_id, w))
        each_ratio.append(np.r_[participation_ratio(z), np.full(len(w) - 1, np.nan)])
    nothing = np.empty(0)
    found = zip(DIMENSIONS, (each_two, each_ratio), strict=True)
    return {(_NO_TASK, name): Measured(split_mean(np.stack(v), size), nothing, None) for name, v in found}


def dimension_view(table: pd.DataFrame) -> pd.DataFrame:
    """Dimensions of main rows with their `label`: TwoNN with its interval, participation ratio, what the space has."""
    two = table[table["metric"] == "two_nn"].set_index("label")
    ratio = table[table["metric"] == "participation_ratio"].set_index("label")["value"]
    texts = [f"{r.value:.1f} [{r.lo:.1f}, {r.hi:.1f}]" for r in two.itertuples()]
    wide = {"TwoNN": texts, "participation ratio": ratio.loc[two.index].round(1), "dimensions": two["dim"]}
    return pd.DataFrame(wide, index=two.index).rename_axis(None)

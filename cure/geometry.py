"""Geometry of records in a representation, on plain arrays; `cure.structure` makes tables of it.

Silhouettes, neighbours and centroids in one space, under many labellings or weightings at once; CKA between spaces;
pictures.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cure.bootstrap import Array
from cure.errors import CureError


@dataclass(frozen=True)
class Space:
    """Some records in one representation: all that is measured needs no more than this.

    Attributes
    ----------
    gram, distance : (n, n) float64 arrays
        Inner products and Euclidean distances.
    neighbours : (n, k) int array
        The nearest records of other patients, in no order.
    """

    gram: Array
    distance: Array
    neighbours: Array

    @classmethod
    def of(cls, z: Array, patient_id: Array, k: int) -> "Space":
        """Measure `z` (n, dim); `patient_id` is (n,).

        Raises
        ------
        CureError
            If a value is not finite, or a record has fewer than `k` records of other patients beside it.
        """
        z = _finite(z)
        gram = z @ z.T
        norm = gram.diagonal()
        distance = np.sqrt(np.maximum(norm[:, None] + norm - 2 * gram, 0))
        np.fill_diagonal(distance, 0)
        stranger = patient_id[:, None] != patient_id
        fewest = int(stranger.sum(axis=1).min())
        if fewest < k:
            raise CureError(
                f"k = {k} neighbours, but a record has only {fewest} records of other patients beside it among "
                f"{len(z)} test records: lower `k` in the profile's section structure"
            )
        neighbours = np.argpartition(np.where(stranger, distance, np.inf), k - 1, axis=1)[:, :k]
        return cls(gram, distance, neighbours)


def silhouette(distance: Array, codes: Array) -> Array:
    """Silhouette of every record (Rousseeuw 1987) under one or many labellings.

    Parameters
    ----------
    distance : (n, n) array
    codes : (m, n) int array
        Class of each record, from 0, in each of m labellings.

    Returns
    -------
    (m, n) float64 array
        `(b - a) / max(a, b)`: a is the mean distance to the others of a record's class, b the least mean distance to
        another class. 0 for a record that is alone in its class, NaN where there is only one class.
    """
    classes = np.arange(codes.max() + 1)[:, None, None]
    member = (codes == classes).astype(float)
    count = member.sum(axis=2, keepdims=True)
    total = member @ distance
    own = codes[None]
    n_own = np.take_along_axis(np.broadcast_to(count, member.shape), own, axis=0)[0]
    a = np.take_along_axis(total, own, axis=0)[0] / np.maximum(n_own - 1, 1)
    other = np.where((member > 0) | (count == 0), np.inf, total / np.maximum(count, 1))
    b = other.min(axis=0)
    b[~np.isfinite(b)] = np.nan
    largest = np.maximum(a, b)
    value = np.divide(b - a, largest, out=np.zeros_like(a), where=largest != 0)
    return np.where((n_own == 1) & ~np.isnan(b), 0, value)


def purity(neighbours: Array, codes: Array) -> Array:
    """Share of each record's neighbours, (n, k) positions, that are of its class; `codes` and result are (m, n)."""
    return (codes[:, neighbours] == codes[:, :, None]).mean(axis=2)


def chance_purity(patient_id: Array, codes: Array) -> Array:
    """Share of a record's class among the records of other patients: the purity of neighbours drawn blindly.

    `patient_id` is (n,); `codes` and the result are (m, n).
    """
    stranger = (patient_id[:, None] != patient_id).astype(float)
    classes = np.arange(codes.max() + 1)[:, None, None]
    count = (codes == classes).astype(float) @ stranger
    return np.take_along_axis(count, codes[None], axis=0)[0] / stranger.sum(axis=1)


def davies_bouldin(gram: Array, codes: Array, weights: Array, whole: Array | None = None) -> Array:
    """Davies-Bouldin index (Davies and Bouldin 1979) of weighted records: lower when classes are compact and apart.

    The mean over classes of `max (s_i + s_j) / d_ij`: s is the mean distance to a class's centroid, d that between
    centroids. Distances to a centroid follow from inner products, so that draws need neither records nor loops.

    Parameters
    ----------
    gram : (n, n) array
        Inner products of the records.
    codes : (m, n) int array
        Class of each record, from 0.
    weights : (m, n) array
        How often each record counts. Either argument may have one row only, which then serves all of the other's.
    whole : (m, n) array, optional
        `weights @ gram`, where it is at hand: the largest class then costs no product of its own.

    Returns
    -------
    (m,) float64 array
        Over the classes that have weight; NaN where fewer than two have.
    """
    whole = weights @ gram if whole is None else whole
    classes = range(int(codes.max()) + 1)
    columns = [np.flatnonzero((codes == c).any(axis=0)) for c in classes]
    largest = int(np.argmax([len(column) for column in columns]))
    member = [weights[:, column] * (codes[:, column] == c) for c, column in enumerate(columns)]
    size = np.stack([m.sum(axis=1) for m in member])  # (classes, m)
    each = [
        m @ gram[column] if c != largest else None for c, (m, column) in enumerate(zip(member, columns, strict=True))
    ]
    rest = whole - sum(p for p in each if p is not None)
    toward = [rest if p is None else p for p in each]
    safe = np.where(size > 0, size, 1)
    inner = np.stack(  # (classes, classes, m): inner products of centroids
        [[np.einsum("dn,dn->d", m, p[:, column]) for p in toward] for m, column in zip(member, columns, strict=True)]
    ) / (safe[:, None] * safe)
    norm = np.diagonal(inner).T
    scatter = np.empty(size.shape)
    for c, (m, column) in enumerate(zip(member, columns, strict=True)):
        squared = toward[c][:, column] * (-2 / safe[c])[:, None] + norm[c][:, None] + gram.diagonal()[column]
        scatter[c] = np.einsum("dn,dn->d", m, np.sqrt(np.maximum(squared, 0, out=squared), out=squared)) / safe[c]
    apart = np.sqrt(np.maximum(norm[:, None] + norm - 2 * inner, 0))
    both = (size > 0)[:, None] & (size > 0) & ~np.eye(len(size), dtype=bool)[:, :, None]
    ratio = np.where(both, (scatter[:, None] + scatter) / np.where(apart > 0, apart, np.inf), -np.inf).max(axis=1)
    present = size > 0
    total = np.where(present, ratio, 0).sum(axis=0)
    return np.where(present.sum(axis=0) > 1, total, np.nan) / np.maximum(present.sum(axis=0), 1)


def debiased_cka(spaces: Sequence[Array]) -> Array:
    """Debiased linear CKA of every pair of representations of the same records.

    CKA (Kornblith et al. 2019) with the unbiased HSIC of Song et al. 2012, equation 5. That estimate is the inner
    product of Gram matrices without diagonal, centred as `K - r_i / (n - 2) - r_j / (n - 2) + s / ((n - 1) (n - 2))`
    with row sums r and sum s, so that each representation is centred once.

    Parameters
    ----------
    spaces : sequence of (n, dim) arrays
        `dim` may differ.

    Returns
    -------
    (len(spaces), len(spaces)) float64 array
        1 on the diagonal; about 0, of either sign, for independent representations.

    Raises
    ------
    CureError
        If there are fewer than four records, the numbers of records differ, or a value is not finite.
    """
    sizes = {len(z) for z in spaces}
    if len(sizes) != 1 or min(sizes) < 4:
        raise CureError(f"CKA needs the same records, at least 4, in every representation; got {sorted(sizes)} records")
    flat = np.stack([_centred(_finite(z)) for z in spaces])
    hsic = flat @ flat.T
    norm = np.sqrt(hsic.diagonal())
    return hsic / (norm[:, None] * norm)


def _centred(z: Array) -> Array:
    """Upper triangle of the unbiasedly centred Gram matrix, (n (n - 1) / 2,)."""
    n = len(z)
    gram = z @ z.T
    np.fill_diagonal(gram, 0)
    rows = gram.sum(axis=1) / (n - 2)
    gram -= rows[:, None] + rows - rows.sum() / (n - 1)
    return gram[np.triu(np.ones((n, n), bool), 1)]


def _finite(z: Array) -> Array:
    z = np.asarray(z, float)
    if not np.isfinite(z).all():
        raise CureError(f"row {int(np.argmin(np.isfinite(z).all(axis=1)))} of a representation is not finite")
    return z


def principal(z: Array, dim: int = 50) -> Array:
    """The first principal components of `z` (n, dim), float32: what a picture starts from."""
    from sklearn.decomposition import PCA

    return PCA(min(dim, *z.shape), svd_solver="full").fit_transform(z).astype(np.float32)


def umap_map(z: Array, seed: int, k: int = 15, min_dist: float = 0.1) -> Array:
    """UMAP (McInnes et al. 2018) of `z` (n, dim), (n, 2), with `k` neighbours, at most as many as there are others.

    The neighbours are given: they are exact, and compiling UMAP's own search for them costs half of a cold run.
    """
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    k = min(k, len(z) - 1)
    distance, index = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(z)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")  # nothing new is placed on the map
        model = UMAP(
            n_neighbors=k,
            min_dist=min_dist,
            metric="euclidean",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(index, distance.astype(np.float32), None),
        )
        return model.fit_transform(z)


def tsne_map(z: Array, seed: int) -> Array:
    """t-SNE (van der Maaten 2014) of `z` (n, dim), (n, 2). One thread: more would wait for each other."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return TSNE(perplexity=30, init="pca", random_state=seed).fit_transform(z)

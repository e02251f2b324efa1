import os
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import davies_bouldin_score, silhouette_samples

from cure import embed, geometry, structure
from cure.bootstrap import patient_draws
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.geometry import Space, chance_purity, davies_bouldin, debiased_cka, purity, silhouette
from cure.settings.structure import StructureConfig
from cure.splits import make_splits
from cure.structure import Grouping, Part


def blobs(seed=0, n=60, dim=5, classes=3, gap=2.0):
    rng = np.random.default_rng(seed)
    codes = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    return rng.normal(size=(n, dim)) + gap * rng.normal(size=(classes, dim))[codes], codes


# --- CKA ---------------------------------------------------------------------------------------------


def unbiased_hsic(k, ell):
    """Song et al. 2012, equation 5, term by term."""
    n = len(k)
    k, ell = k * (1 - np.eye(n)), ell * (1 - np.eye(n))
    one = np.ones(n)
    trace, sums, cross = np.trace(k @ ell), (one @ k @ one) * (one @ ell @ one), one @ k @ ell @ one
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


@given(st.integers(0, 10_000), st.integers(5, 12), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_cka_is_the_papers_formula(seed, n, p, q):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, p)) + 3, rng.normal(size=(n, q))
    k, ell = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, ell) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(ell, ell))
    np.testing.assert_allclose(debiased_cka([x, y])[0, 1], expected, rtol=1e-6, atol=1e-9)


def test_the_formula_estimates_without_the_terms_that_share_a_record():
    # HSIC as a U-statistic: averaged over all ordered quadruples of distinct records (Song et al. 2012, theorem 2).
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2)), rng.normal(size=(7, 3))
    k, ell = x @ x.T, y @ y.T
    terms = [k[i, j] * (ell[i, j] + ell[q, r] - 2 * ell[i, q]) for i, j, q, r in permutations(range(7), 4)]
    np.testing.assert_allclose(unbiased_hsic(k, ell), np.mean(terms), rtol=1e-9)


def test_cka_ignores_rotation_scale_and_shift():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 6)) ** 3
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    value = debiased_cka([x, x @ rotation * 7 + 2, y])
    np.testing.assert_allclose(np.diag(value), 1)
    np.testing.assert_allclose(value[0, 1], 1)
    np.testing.assert_allclose(value[0, 2], value[1, 2])
    assert value[0, 2] < 0.5


def test_independent_representations_are_unlike_where_the_biased_form_calls_them_alike():
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(size=(60, 200)), rng.normal(size=(60, 200))) for _ in range(40)]
    values = np.array([debiased_cka(pair)[0, 1] for pair in pairs])

    def biased(x, y):
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        return np.sum((x.T @ y) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))

    assert min(biased(x, y) for x, y in pairs) > 0.6
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert np.abs(values).max() < 0.15


def test_cka_refuses_what_it_cannot_compare():
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(CureError, match=r"the same records.*got \[8, 9\] records"):
        debiased_cka([x, x[:8]])
    with pytest.raises(CureError, match="at least 4"):
        debiased_cka([x[:3], x[:3]])
    with pytest.raises(CureError, match="row 4 of a representation is not finite"):
        debiased_cka([x, np.where(np.arange(9)[:, None] == 4, np.nan, x)])


# --- silhouette and Davies-Bouldin ---------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_silhouettes_are_scikit_learns_under_every_labelling(seed, classes):
    z, codes = blobs(seed, n=30, classes=classes)
    moved = np.random.default_rng(seed).permutation(codes)
    space = Space.of(z, np.arange(30), 5)
    found = silhouette(space.distance, np.stack([codes, moved]))
    np.testing.assert_allclose(found, [silhouette_samples(z, codes), silhouette_samples(z, moved)], atol=1e-7)


def test_a_silhouette_needs_two_classes_and_is_zero_for_a_record_alone():
    distance = Space.of(blobs()[0], np.arange(60), 3).distance
    assert np.isnan(silhouette(distance, np.zeros((1, 60), int))).all()
    alone = (np.arange(60) == 7).astype(int)[None]
    assert silhouette(distance, alone)[0, 7] == 0


@given(st.integers(0, 10_000), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_davies_bouldin_is_scikit_learns_in_the_sample_and_in_every_draw(seed, classes):
    z, codes = blobs(seed, n=40, classes=classes)
    patient = np.random.default_rng(seed).integers(25, size=40)
    gram = z @ z.T
    assert davies_bouldin(gram, codes[None], np.ones((1, 40)))[0] == pytest.approx(davies_bouldin_score(z, codes))
    weights = patient_draws(patient, 6, np.random.default_rng(seed)).astype(float)
    for value, w in zip(davies_bouldin(gram, codes[None], weights), weights.astype(int), strict=True):
        rows = np.repeat(np.arange(40), w)
        if len(set(codes[rows])) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(davies_bouldin_score(z[rows], codes[rows]), rel=1e-6, abs=1e-6)


def test_davies_bouldin_of_many_labellings_is_that_of_each():
    z, codes = blobs()
    many = np.stack([np.random.default_rng(i).permutation(codes) for i in range(5)])
    found = davies_bouldin(z @ z.T, many, np.ones((1, 60)))
    np.testing.assert_allclose(found, [davies_bouldin_score(z, one) for one in many], rtol=1e-6)


# --- neighbours ----------------------------------------------------------------------------------------


def test_separate_blobs_are_pure():
    z, codes = blobs(gap=100)
    assert (purity(Space.of(z, np.arange(60), 5).neighbours, codes[None]) == 1).all()


def test_records_of_the_same_patient_are_no_neighbours():
    # Each of 30 patients has three records at one place; the places say nothing about the label.
    rng = np.random.default_rng(0)
    patient, label = np.repeat(np.arange(30), 3), np.repeat(rng.permutation(np.arange(30) % 2), 3)
    z = rng.normal(size=(30, 4))[patient] + 1e-6 * rng.normal(size=(90, 4))
    space = Space.of(z, patient, 2)
    assert (patient[space.neighbours] != patient[:, None]).all()
    assert (purity(Space.of(z, np.arange(90), 2).neighbours, label[None]) == 1).all()
    assert purity(space.neighbours, label[None]).mean() < 0.75


def test_neighbours_are_the_nearest_and_chance_is_counted_by_hand():
    z = np.array([[0.0], [1.0], [2.5], [4.5], [10.0]])
    patient, codes = np.array([0, 0, 1, 2, 3]), np.array([[1, 0, 1, 0, 1]])
    space = Space.of(z, patient, 2)
    assert [set(row) for row in space.neighbours] == [{2, 3}, {2, 3}, {1, 3}, {1, 2}, {2, 3}]
    np.testing.assert_allclose(purity(space.neighbours, codes), [[0.5, 0.5, 0, 0.5, 0.5]])
    np.testing.assert_allclose(chance_purity(patient, codes), [[2 / 3, 1 / 3, 0.5, 0.25, 0.5]])


def test_too_few_strangers_and_bad_values_are_named():
    z = blobs()[0]
    with pytest.raises(CureError, match="k = 5 neighbours, but a record has only 4 records of other patients"):
        Space.of(z, np.r_[np.zeros(56), np.arange(1, 5)], 5)
    z[3, 0] = np.inf
    with pytest.raises(CureError, match="row 3 of a representation is not finite"):
        Space.of(z, np.arange(60), 5)


# --- from embeddings to tables ---------------------------------------------------------------------------


def one_part(z, codes, patient, n_draws=200, seed=0):
    """A sample with its draws, and plainly permuted labels."""
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(z)), patient_draws(patient, n_draws, rng)])
    labelled = np.stack([codes, *(rng.permutation(codes) for _ in range(50))])
    return Part(np.arange(len(z)), patient, weights, {"t": labelled}, {"t": chance_purity(patient, labelled)})


def test_permuted_labels_reach_what_chance_gives_and_planted_ones_more():
    z, codes = blobs(n=200, classes=2, gap=2)
    part = one_part(z, codes, np.arange(200))
    found = structure.measure_one([Grouping("t", codes, (1,))], [[part]], [z], 10)
    pure, lift = found["t", "knn_purity"], found["t", "knn_lift"]
    error = pure.null.std() / np.sqrt(50)
    assert abs(pure.null.mean() - pure.chance) < 4 * error
    assert abs(lift.null.mean() - 1) < 4 * error / pure.chance
    assert abs(found["t", "silhouette"].null.mean()) < 0.01
    assert pure.draws[0] > pure.chance + 20 * error
    assert found["t", "davies_bouldin"].draws[0] < found["t", "davies_bouldin"].null.min()


def test_splits_are_pooled_by_record_and_classes_weighted_equally():
    z, codes = blobs(n=120, classes=2, gap=1)
    halves = [slice(0, 70), slice(70, 120)]
    parts = [[one_part(z[half], codes[half], np.arange(120)[half])] for half in halves]
    found = structure.measure_one([Grouping("t", codes, (1,))], parts, [z[half] for half in halves], 5)
    each = np.concatenate([silhouette_samples(z[half], codes[half]) for half in halves])
    assert found["t", "silhouette"].draws[0] == pytest.approx((each[codes == 0].mean() + each[codes == 1].mean()) / 2)
    scores = [davies_bouldin_score(z[half], codes[half]) for half in halves]
    assert found["t", "davies_bouldin"].draws[0] == pytest.approx((70 * scores[0] + 50 * scores[1]) / 120)


@pytest.fixture
def study(cohort, monkeypatch):
    """Features with gaps, two initialisations that say nothing, and weights that know the label in each split."""
    kinds = [("cnn", "ssl-folds", 0), ("cnn", "random", 0), ("cnn", "random", 1), (FEATURES, "none", 0)]
    everyone = [Representation(*kind) for kind in kinds]
    labels = cohort.binary()
    rare = labels.y[:, labels.names.index("HYP")]
    rare[np.flatnonzero(rare)[6:]] = False
    monkeypatch.setattr(type(cohort), "binary", lambda self: labels)
    y = labels.y.astype(np.float32)

    def read_split(config, one, pooling, cohort, split):
        rng = np.random.default_rng([one.seed, len(one.weights)])
        x = rng.normal(size=(len(cohort), 12)).astype(np.float32)
        x[::9, 2] = np.nan if one.encoder == FEATURES else 0
        return np.hstack([x, 4 * y]) if one.weights == "ssl-folds" else x

    monkeypatch.setattr(embed, "representations", lambda config: everyone)
    monkeypatch.setattr(embed, "read_split", read_split)
    config = StructureConfig(profile="demo", k=3, n_draws=200)
    return config, cohort, make_splits(cohort.records, "rotate")


def test_the_tables_hold_every_representation_task_and_metric(study):
    config, cohort, splits = study
    spaces = structure.standardised(*study)
    results = structure.measure(*study, spaces)
    table = structure.structure_table(*study, results)
    keys = ["encoder", "weights", "seed", "pooling", "task", "metric"]
    assert not table.duplicated(keys).any()
    assert set(table["metric"]) == set(structure.METRICS)
    solid = table[table["supported"]]
    assert ((solid["lo"] <= solid["value"]) & (solid["value"] <= solid["hi"])).all()
    rare = table[~table["supported"]]
    assert set(rare["task"]) == {"HYP"} and rare[["lo", "hi"]].isna().all(axis=None) and (rare["n_pos"] == 6).all()
    assert rare["value"].notna().all()

    # Rows named `mean` are the averages of the initialisations.
    wide = table[(table["weights"] == "random")].pivot(index=["task", "metric"], columns="seed", values="value")
    np.testing.assert_allclose(wide["mean"], (wide[0] + wide[1]) / 2)

    # What was planted is found; what knows nothing has chance in reach.
    main = structure.main_rows(table).set_index(["label", "task", "metric"])["value"]
    assert main["cnn, ssl-folds", "NORM", "knn_lift"] > 1.5 > main["cnn, random", "NORM", "knn_lift"]
    assert abs(main["cnn, random", "NORM", "silhouette"]) < 0.02

    null = structure.null_table(config, cohort, results)
    assert set(map(tuple, null[keys].astype(str).to_numpy())) == set(map(tuple, table[keys].astype(str).to_numpy()))
    cka = structure.cka_table(config, cohort, splits, spaces)
    view = structure.cka_view(cka)
    assert view.shape == (4, 4) and (cka["n"] == len(cohort)).all()
    np.testing.assert_allclose(view, view.T)
    np.testing.assert_allclose(np.diag(view), 1)
    assert abs(view.loc["cnn, random, 0", "cnn, random, 1"]) < 0.3


def test_the_scaler_sees_training_records_only(study, monkeypatch):
    config, cohort, splits = study
    before = structure.standardised(config, cohort, splits[:1])
    read = embed.read_split

    def shifted(config, one, pooling, cohort, split):
        x = read(config, one, pooling, cohort, split)
        x[np.r_[split.val, split.test]] += 1000
        return x

    monkeypatch.setattr(embed, "read_split", shifted)
    for one, (z,) in structure.standardised(config, cohort, splits[:1]).items():
        assert np.isfinite(z).all()
        assert (z[:, 0] - before[one][0][:, 0]).min() > 100


def test_single_superclasses_are_those_listed_alone(cohort):
    alone = structure.single_superclass(cohort)
    listed = cohort.group("super")
    for row, y in zip(listed.rows, listed.y, strict=True):
        expected = listed.names[y.argmax()] if y.sum() == 1 else structure.OTHER
        assert alone.iloc[row] == expected
    assert (alone.drop(alone.index[listed.rows]) == structure.OTHER).all()


def test_pictures_show_unseen_records_of_one_encoder_under_every_kind_of_weights(study, monkeypatch):
    config, cohort, splits = study
    # The methods themselves are run in the next test: compiling UMAP takes seconds.
    monkeypatch.setattr(structure, "umap_map", lambda z, seed: z[:, :2])
    monkeypatch.setattr(structure, "tsne_map", lambda z, seed: z[:, 1:3])
    points = structure.maps(config, cohort, splits[0])
    rows = np.r_[splits[0].val, splits[0].test]
    assert set(points["record_id"]) == set(cohort.records["record_id"].iloc[rows])
    kinds = points[["encoder", "weights", "seed"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [[FEATURES, "none", 0], ["cnn", "random", 0], ["cnn", "ssl-folds", 0]]
    assert len(points) == 2 * 3 * len(rows)

    about = structure.single_superclass(cohort)
    assert (points["superclass"].to_numpy() == about.loc[points["record_id"]].to_numpy()).all()


SCRIPT = """
import hashlib
import numpy as np
from cure.geometry import principal, tsne_map, umap_map
z = principal(np.random.default_rng(0).normal(size=(70, 60)))
print(*(hashlib.sha256(place(z, 0).tobytes()).hexdigest() for place in (umap_map, umap_map, tsne_map, tsne_map)))
"""


def test_maps_have_the_same_bytes_twice_and_in_another_process_with_other_threads():
    def start(threads):
        environment = {**os.environ, "NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        return subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=environment)

    runs = [start("1"), start("2")]
    found = [run.communicate(timeout=300)[0].split() for run in runs]
    umap, umap_again, tsne, tsne_again = found[0]
    assert umap == umap_again and tsne == tsne_again
    assert found[1] == found[0]


def test_a_map_starts_from_the_leading_components():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 70)) * np.linspace(5, 0.1, 70)
    z = geometry.principal(x)
    assert z.shape == (80, 50) and z.dtype == np.float32
    assert (np.diff(z.var(axis=0)) <= 1e-3).all()

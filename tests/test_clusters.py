import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, calinski_harabasz_score
from threadpoolctl import threadpool_info, threadpool_limits

from cure import clusters
from cure.bootstrap import label_permutations, patient_draws
from cure.clusters import (
    adjusted_information,
    adjusted_rand,
    calinski_harabasz,
    k_means,
    measure_one,
    nearest_patients,
    participation_ratio,
    two_nn,
)
from cure.errors import CureError
from cure.geometry import Space
from cure.structure import Part


def blobs(seed=0, n=60, dim=5, classes=3, gap=2.0):
    rng = np.random.default_rng(seed)
    codes = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    return rng.normal(size=(n, dim)) + gap * rng.normal(size=(classes, dim))[codes], codes


# --- agreement of two partitions ----------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_agreement_is_scikit_learns_under_every_labelling(seed, groups, classes):
    rng = np.random.default_rng(seed)
    found, codes = rng.integers(groups, size=50), np.r_[np.arange(classes), rng.integers(classes, size=50 - classes)]
    many = np.stack([codes, rng.permutation(codes), rng.permutation(codes)])
    ones = np.ones((1, 50))
    np.testing.assert_allclose(adjusted_rand(found, many, ones), [adjusted_rand_score(y, found) for y in many])
    expected = [adjusted_mutual_info_score(y, found) for y in many]
    np.testing.assert_allclose(adjusted_information(found, many), expected, atol=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_weighted_rand_index_counts_pairs_of_different_records(seed):
    rng = np.random.default_rng(seed)
    found, codes, weights = rng.integers(2, size=14), rng.integers(3, size=14), rng.integers(4, size=(5, 14))
    value = adjusted_rand(found, codes[None], weights.astype(float))
    for one, w in zip(value, weights, strict=True):
        both = same_found = same_code = everything = 0
        for i in range(14):
            for j in range(i):
                pair = w[i] * w[j]
                both += pair * (found[i] == found[j] and codes[i] == codes[j])
                same_found += pair * (found[i] == found[j])
                same_code += pair * (codes[i] == codes[j])
                everything += pair
        chance = same_found * same_code / everything
        most = (same_found + same_code) / 2
        if most == chance:
            assert np.isnan(one)
        else:
            assert one == pytest.approx((both - chance) / (most - chance))


def test_draws_of_an_index_that_is_zero_lie_around_zero():
    # The plain index of resampled records would be pulled up by records that agree with themselves.
    rng = np.random.default_rng(0)
    found, codes = rng.integers(2, size=100), rng.integers(2, size=100)
    weights = patient_draws(np.arange(100), 400, rng)
    value = adjusted_rand(found, codes[None], weights.astype(float))
    sample = adjusted_rand(found, codes[None], np.ones((1, 100)))[0]
    plain = [adjusted_rand_score(np.repeat(codes, w), np.repeat(found, w)) for w in weights]
    assert abs(value.mean() - sample) < 3 * value.std() / 20 + 0.002
    assert np.mean(plain) > value.mean() + 0.005


def test_equal_partitions_agree_fully_and_shuffled_ones_not_at_all():
    _, codes = blobs(n=120)
    assert adjusted_rand((codes + 1) % 3, codes[None], np.ones((1, 120)))[0] == pytest.approx(1)
    assert adjusted_information((codes + 1) % 3, codes[None])[0] == pytest.approx(1)
    moved = label_permutations(codes, np.arange(120), 400, np.random.default_rng(0))
    for value in (adjusted_rand(codes, moved, np.ones((1, 120))), adjusted_information(codes, moved)):
        assert abs(value.mean()) < 4 * value.std() / 20


# --- Calinski-Harabasz ----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_calinski_harabasz_is_scikit_learns_in_the_sample_every_draw_and_every_labelling(seed, classes):
    z, codes = blobs(seed, n=40, classes=classes)
    rng = np.random.default_rng(seed)
    weights = patient_draws(rng.integers(25, size=40), 5, rng)
    for value, w in zip(calinski_harabasz(z, codes[None], weights.astype(float)), weights, strict=True):
        rows = np.repeat(np.arange(40), w)
        if len(set(codes[rows])) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(calinski_harabasz_score(z[rows], codes[rows]))
    many = np.stack([rng.permutation(codes) for _ in range(4)])
    expected = [calinski_harabasz_score(z, one) for one in many]
    np.testing.assert_allclose(calinski_harabasz(z, many, np.ones((1, 40))), expected)


def test_calinski_harabasz_of_labels_that_say_nothing_is_one():
    z, codes = blobs(n=80, gap=0)
    moved = label_permutations(codes, np.arange(80), 500, np.random.default_rng(0))
    assert calinski_harabasz(z, moved, np.ones((1, 80))).mean() == pytest.approx(1, abs=0.05)


# --- dimensions -----------------------------------------------------------------------------------------


def dimension(z, patient=None, **how):
    patient = np.arange(len(z)) if patient is None else patient
    return two_nn(Space.of(z, patient, 1).distance, patient, np.ones((1, len(z))), **how)[0]


@pytest.mark.parametrize("d", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_cube_wherever_it_lies(d):
    rng = np.random.default_rng(d)
    cube = rng.uniform(size=(2000, d))
    turned = cube @ np.linalg.qr(rng.normal(size=(40, 40)))[0][:d] * 7 + 3
    assert dimension(cube) == pytest.approx(d, rel=0.1)
    assert dimension(turned) == pytest.approx(dimension(cube), rel=1e-6)


def test_two_nn_finds_a_gaussian_subspace_and_a_curved_surface():
    rng = np.random.default_rng(0)
    assert dimension(rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 50))) == pytest.approx(3, rel=0.12)
    sphere = rng.normal(size=(2000, 3))
    assert dimension(sphere / np.linalg.norm(sphere, axis=1, keepdims=True)) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("share", [1, 0.25])
def test_two_nn_does_not_see_second_records_of_a_patient(share):
    rng = np.random.default_rng(0)
    once = rng.uniform(size=(800, 2))
    # A share of the patients has a near copy in ten other directions: among strangers the surface is still a plane.
    patient = np.r_[np.arange(800), rng.permutation(800)[: int(800 * share)]]
    z = np.c_[once[patient], np.zeros((len(patient), 10))]
    z[800:, 2:] = 1e-4 * rng.normal(size=(len(patient) - 800, 10))
    assert abs(dimension(z) - 2) > 0.5
    assert dimension(z, patient) == pytest.approx(2, rel=0.1)
    assert dimension(z, patient) == pytest.approx(dimension(once), rel=0.05)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_of_two_other_patients(seed):
    rng = np.random.default_rng(seed)
    patient = np.r_[0, 1, 2, rng.integers(6, size=15)]
    z = rng.normal(size=(18, 3))
    distance = np.linalg.norm(z[:, None] - z, axis=2)
    for i, (first, second) in enumerate(nearest_patients(distance, patient)):
        nearest = {}
        for j in range(18):
            if patient[j] != patient[i]:
                nearest[patient[j]] = min(distance[i, j], nearest.get(patient[j], np.inf))
        assert [first, second] == sorted(nearest.values())[:2]


def test_a_dimension_of_two_patients_is_refused():
    z = np.random.default_rng(0).normal(size=(6, 2))
    with pytest.raises(CureError, match="needs records of three patients, there are 2 among 6 test records"):
        dimension(z, np.repeat([0, 1], 3))


def test_the_weighted_slope_is_that_of_repeated_ratios():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(60, 4))
    patient = np.arange(60)
    distance = Space.of(z, patient, 1).distance
    weights = patient_draws(patient, 5, rng).astype(float)
    near = np.sort(distance, axis=1)[:, 1:3]
    x = np.log(near[:, 1] / near[:, 0])
    for value, w in zip(two_nn(distance, patient, weights), weights, strict=True):
        order = np.argsort(x)
        share = np.cumsum(w[order]) / w.sum()
        kept = share <= 0.9
        y = -np.log(1 - share[kept])
        slope = (w[order][kept] * x[order][kept]) @ y / ((w[order][kept] * x[order][kept]) @ x[order][kept])
        assert value == pytest.approx(slope)


def test_records_at_one_place_count_nowhere():
    z = np.random.default_rng(0).uniform(size=(500, 2))
    doubled = np.vstack([z, z[:50]])
    assert np.isfinite(dimension(doubled))
    assert np.isnan(dimension(np.zeros((5, 2))))


def test_participation_counts_directions():
    rng = np.random.default_rng(0)
    assert participation_ratio(rng.normal(size=(5000, 1)) @ rng.normal(size=(1, 9)) + 4) == pytest.approx(1)
    assert participation_ratio(rng.normal(size=(20_000, 6))) == pytest.approx(6, rel=0.01)
    wide = rng.normal(size=(10, 30))
    value = np.linalg.eigvalsh(np.cov(wide.T))
    assert participation_ratio(wide) == pytest.approx(value.sum() ** 2 / (value**2).sum())


# --- a representation -----------------------------------------------------------------------------------


def part(codes, patient, n_draws=100, n_permutations=50, seed=0):
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(codes)), patient_draws(patient, n_draws, rng)])
    labels = np.vstack([codes, label_permutations(codes, patient, n_permutations, rng)])
    return Part(np.arange(len(codes)), patient, weights, {"a": labels, "b": 1 - labels}, {})


def test_clusters_that_are_the_classes_score_one_and_chance_scores_nothing():
    z, codes = blobs(n=80, classes=2, gap=30)
    patient = np.arange(80)
    found = measure_one([[part(codes, patient)]] * 2, [z, z], seed=0)
    assert set(found) == {(task, metric) for task in "ab" for metric in clusters.METRICS}
    for metric in ("ari", "ami"):
        one = found["a", metric]
        assert one.draws[0] == pytest.approx(1)
        assert abs(one.null.mean()) < 4 * one.null.std() / 50**0.5
        assert found["b", metric].draws[0] == pytest.approx(1)
    assert np.isfinite(found["a", "ari"].draws).all()
    assert np.isnan(found["a", "ami"].draws[1:]).all()
    index = found["a", "calinski_harabasz"]
    assert index.draws[1:].mean() == pytest.approx(index.draws[0])
    assert index.null.max() < index.draws[0]


def test_clusters_are_the_same_every_time():
    z, _ = blobs(n=200, gap=0.5)
    np.testing.assert_array_equal(k_means(z, 4, 0), k_means(z, 4, 0))
    assert len(set(k_means(z, 4, 0))) == 4


def test_k_means_takes_one_thread(monkeypatch):
    seen = []

    class Watched(clusters.KMeans):
        def fit_predict(self, x, y=None, sample_weight=None):
            seen.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit_predict(x, y, sample_weight)

    monkeypatch.setattr(clusters, "KMeans", Watched)
    with threadpool_limits(2):
        k_means(blobs()[0], 3, 0)
    assert set(seen) == {1}

import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from cure import layers, models, probes
from cure.bootstrap import patient_draws
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.models import Encoder
from cure.probes import PENALTIES, Target, make_trials, probe, ridge, score
from cure.settings.probes import ProbesConfig
from cure.splits import Split

CONFIG = ProbesConfig(profile="demo", n_draws=100)


def people(n=200, per=2, **columns):
    """A cohort of `n` patients with `per` records each."""
    records = pd.DataFrame({"patient_id": np.repeat(np.arange(n), per), **columns})
    return Cohort(None, records, pd.DataFrame(), {"name": "people"})


def rotate(cohort, k=4):
    """Splits by patient: one part tests, the next validates."""
    part = cohort.records["patient_id"].to_numpy() % k
    return [
        Split(
            f"part {i}",
            np.flatnonzero(~np.isin(part, [i, (i + 1) % k])),
            np.flatnonzero(part == (i + 1) % k),
            np.flatnonzero(part == i),
        )
        for i in range(k)
    ]


# --- ridge --------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([(40, 7), (15, 30)]))
@settings(max_examples=20, deadline=None)
def test_ridge_is_scikit_learns_at_the_penalty_that_validation_prefers(seed, shape):
    rng = np.random.default_rng(seed)
    n, dim = shape
    x, x_val, x_test = (rng.normal(size=(m, dim)) + 1 for m in (n, 20, 9))
    weight = rng.normal(size=(dim, 2)) * [1, 0.1]
    y, y_val = x @ weight + rng.normal(size=(n, 2)) + 5, x_val @ weight + rng.normal(size=(20, 2)) + 5
    predicted, chosen = ridge(x, y, x_val, y_val, x_test)
    for j in range(2):
        fits = [Ridge(alpha=n * a).fit(x, y[:, j]) for a in PENALTIES]
        losses = [np.mean((fit.predict(x_val) - y_val[:, j]) ** 2) for fit in fits]
        best = int(np.argmin(losses))
        assert chosen[j] == PENALTIES[best]
        np.testing.assert_allclose(predicted[:, j], fits[best].predict(x_test), rtol=1e-6, atol=1e-6)


def test_ridge_takes_the_strongest_penalty_where_none_helps():
    x = np.zeros((10, 3))
    predicted, chosen = ridge(x, np.arange(10.0)[:, None], x, np.ones((10, 1)), x[:2])
    assert chosen[0] == PENALTIES.max()
    np.testing.assert_allclose(predicted, 4.5)


# --- scores -------------------------------------------------------------------------------------------


def test_scores_are_scikit_learns_in_the_sample_and_in_every_draw():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 3)) + 4
    predicted = y + rng.normal(size=(60, 3))
    weights = np.vstack([np.ones(60), patient_draws(np.arange(60), 20, rng)])
    found = score(y, predicted, np.full((60, 3), 4.2), weights, binary=False)
    for i, w in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(60), w)
        error = np.square(y[rows, 0] - predicted[rows, 0]).sum()
        assert found["r2"].draws[i] == pytest.approx(1 - error / np.square(y[rows, 0] - 4.2).sum())
        assert found["mae"].draws[i] == pytest.approx(mean_absolute_error(y[rows, 0], predicted[rows, 0]))
    own_mean = np.broadcast_to(y.mean(axis=0), y.shape)
    usual = score(y, predicted, own_mean, weights, binary=False)["r2"]
    assert usual.draws[0] == pytest.approx(r2_score(y[:, 0], predicted[:, 0]))
    np.testing.assert_allclose(usual.null, [r2_score(y[:, j], predicted[:, j]) for j in (1, 2)])


def test_the_training_mean_scores_what_the_table_calls_chance():
    rng = np.random.default_rng(0)
    y, mean = rng.normal(size=(50, 2)), np.full((50, 2), 0.3)
    found = score(y, mean, mean, np.ones((1, 50)), binary=False)
    assert found["r2"].draws[0] == found["r2"].chance == 0
    assert found["mae"].draws[0] == pytest.approx(found["mae"].chance)


def test_auroc_is_scikit_learns_and_blind_to_the_level_of_a_split():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=(80, 4)).astype(float)
    above = (4 * (rng.normal(size=(80, 4)) + y)).round() / 4  # with ties
    level = np.repeat([[0.25], [0.75]], 40, axis=0) * np.ones(4)
    found = score(y, above + level, level, np.ones((1, 80)), binary=True)["auroc"]
    assert found.draws[0] == pytest.approx(roc_auc_score(y[:, 0], above[:, 0]))
    np.testing.assert_allclose(found.null, [roc_auc_score(y[:, j], above[:, j]) for j in (1, 2, 3)])
    ignorant = score(y, level, level, np.ones((1, 80)), binary=True)["auroc"]
    assert ignorant.draws[0] == 0.5


# --- probes -------------------------------------------------------------------------------------------


def test_a_linear_target_is_read_out_and_shuffled_labels_are_not():
    rng = np.random.default_rng(0)
    cohort = people()
    z = rng.normal(size=(400, 6))
    linear = z @ rng.normal(size=6) * 10 + 60
    sign = (z[:, 0] + 0.3 * rng.normal(size=400) > 0).astype(float)
    splits = rotate(cohort)
    trials = make_trials(cohort, splits, [Target("age", "years", linear, False), Target("sex", "", sign, True)], CONFIG)
    found = probe(trials, splits, [z] * 4)
    assert found["age", "r2"].draws[0] > 0.999
    assert found["sex", "auroc"].draws[0] > 0.95
    for what, chance in ((("age", "r2"), 0), (("sex", "auroc"), 0.5)):
        null = found[what].null
        assert abs(null.mean() - chance) < 0.03
        assert null.max() < found[what].draws[0]


def test_the_null_of_noise_is_centred():
    # Pooled over splits, scores that keep each split's level would rank below one half under permuted labels.
    rng = np.random.default_rng(1)
    cohort = people(120, 1)
    splits = rotate(cohort)
    target = Target("sex", "", rng.integers(2, size=120).astype(float), True)
    null = probe(make_trials(cohort, splits, [target], CONFIG), splits, [rng.normal(size=(120, 4))] * 4)["sex", "auroc"]
    assert abs(null.null.mean() - 0.5) < 0.015


def test_unknown_values_take_no_part():
    rng = np.random.default_rng(0)
    cohort = people()
    z = rng.normal(size=(400, 3))
    value = z[:, 0] * 5
    unknown = rng.random(400) < 0.2
    target = Target("pr", "ms", np.where(unknown, np.nan, value), False)
    splits = rotate(cohort)
    trial = make_trials(cohort, splits, [target], CONFIG)[0]
    assert sum(map(len, trial.tested)) == trial.weights.shape[1] == (~unknown).sum()
    assert np.isfinite(trial.labels).any(axis=1).sum() == (~unknown).sum()
    wild = np.where(unknown[:, None], 1e6, z)  # would ruin the fit
    found = probe([trial], splits, [wild] * 4)
    assert found["pr", "r2"].draws[0] > 0.999


def test_targets_are_fitted_together_as_they_are_alone():
    rng = np.random.default_rng(0)
    cohort = people()
    z, splits = rng.normal(size=(400, 5)), rotate(cohort)
    some = [Target(name, "ms", z[:, i] + rng.normal(size=400), False) for i, name in enumerate("ab")]
    some.append(Target("c", "ms", np.where(np.arange(400) % 7 == 0, np.nan, z[:, 2]), False))
    trials = make_trials(cohort, splits, some, CONFIG)
    together = probe(trials, splits, [z] * 4)
    for trial in trials:
        for what, alone in probe([trial], splits, [z] * 4).items():
            np.testing.assert_allclose(together[what].draws, alone.draws)
            np.testing.assert_allclose(together[what].null, alone.null)


def test_permuted_values_stay_with_patients_and_training_records_only_are_fitted():
    cohort = people(60)
    splits = rotate(cohort)
    value = cohort.records["patient_id"].to_numpy(float)
    trial = make_trials(cohort, splits, [Target("age", "years", value, False)], CONFIG, 7)[0]
    assert trial.labels.shape == (120, 8)
    moved = trial.labels[:, 1:].reshape(60, 2, 7)
    np.testing.assert_array_equal(moved[:, 0], moved[:, 1])
    np.testing.assert_array_equal(np.sort(moved[:, 0], axis=0), np.sort(np.tile(np.arange(60.0), (7, 1)).T, axis=0))
    # What a test record holds changes nothing but its own prediction.
    z = np.random.default_rng(0).normal(size=(120, 3))
    split = splits[0]
    other = trial.labels.copy()
    other[split.test] = 1e9
    args = (split.train, split.val)
    one, two = (ridge(z[args[0]], y[args[0]], z[args[1]], y[args[1]], z[split.test])[0] for y in (trial.labels, other))
    np.testing.assert_array_equal(one, two)


def test_a_target_that_nobody_has_is_refused():
    cohort = people(20)
    with pytest.raises(CureError, match="no train record of part 0 has a value of qt"):
        make_trials(cohort, rotate(cohort), [Target("qt", "ms", np.full(40, np.nan), False)], CONFIG)


# --- a study ------------------------------------------------------------------------------------------


def test_every_worker_has_one_thread(monkeypatch):
    delayed = probes.joblib.delayed

    def wide(function):
        def call(*args):
            with threadpool_limits(2, user_api="openmp"):  # as a worker finds it where OMP_NUM_THREADS is not set
                return function(*args)

        return delayed(call)

    monkeypatch.setattr(probes.joblib, "delayed", wide)
    monkeypatch.setattr(probes.joblib, "cpu_count", lambda: 3)

    def work(i):
        time.sleep(0.02 * i)  # the last still works when the first has left
        return {(pool["user_api"], pool["num_threads"]) for pool in threadpool_info()}

    with threadpool_limits(2):
        found = probes.each(work, range(6), "threads")
        assert all(pool["num_threads"] == 2 for pool in threadpool_info())
    assert ("openmp", 1) in found[0]
    assert {threads for one in found for _, threads in one} == {1}


def study(n_targets, n_draws=1000):
    """Trained weights that know every target; two untrained seeds that know none, nor do features, of all but two."""
    rng = np.random.default_rng(0)
    cohort = people(60)
    splits = rotate(cohort)
    values = rng.normal(size=(120, n_targets))
    values[:, 0] = values[:, 0] > 0
    values[::9, 1] = np.nan
    found = [Target(f"t{i}", "", value, i == 0) for i, value in enumerate(values.T)]
    config = ProbesConfig(profile="demo", n_draws=n_draws)
    trials = make_trials(cohort, splits, found, config, 3)
    features = Representation(probes.FEATURES, "none", 0)
    guesses = {}
    for one in [Representation("a", "ssl", 0), *(Representation("a", "random", seed) for seed in (0, 1)), features]:
        z = np.nan_to_num(values) if one.weights == "ssl" else rng.normal(size=(120, 4))
        several = probes.predict(trials[:-2] if one == features else trials, splits, [z] * 4)
        guesses[one] = {trial.target.name: np.stack([a[:, 0] for a in arrays]) for trial, *arrays in several}
    return probes.comparisons(config, cohort, splits, trials, guesses), cohort, splits, trials, guesses


def test_a_huge_difference_shows_in_a_family_of_32():
    table = study(12)[0]
    trained = table[table["weights"] == "ssl"]
    assert len(table) == 32
    assert len(trained) == 22
    assert (trained["value"] > 0.3).all()
    # With 1,000 draws the least p of a family of 32 would be 0.064.
    assert (trained["p_holm"] < 0.05).all()
    assert not table[table["weights"] == "random"]["p_holm"].lt(0.05).all()


def test_comparisons_are_paired_differences_of_metrics_in_the_same_draws():
    table, cohort, splits, trials, guesses = study(4, n_draws=1200)
    every = np.concatenate([split.test for split in splits])
    draws = patient_draws(cohort.records["patient_id"].to_numpy()[every], 1200, np.random.default_rng(0))
    for trial in trials:
        task, rows = trial.target.name, np.isfinite(trial.target.values[every])
        weights = np.vstack([np.ones(len(every)), draws])[:, rows]
        metric = "auroc" if trial.target.binary else "r2"
        drawn = {
            (one.weights, one.seed): score(*guess[task][:, :, None], weights, trial.target.binary)[metric].draws
            for one, guess in guesses.items()
            if one.encoder != probes.FEATURES
        }
        d = drawn["ssl", 0] - (drawn["random", 0] + drawn["random", 1]) / 2
        row = table[(table["task"] == task) & (table["weights"] == "ssl") & (table["comparator"] == "a, random")].iloc[
            0
        ]
        assert row["value"] == pytest.approx(d[0])
        assert [row["lo"], row["hi"]] == pytest.approx(list(np.nanpercentile(d[1:], [2.5, 97.5])))
        assert row["metric"] == metric
        assert row["n"] == rows.sum()


# --- layers -------------------------------------------------------------------------------------------


def test_activations_are_what_blocks_put_out():
    encoder = models.load("leadcnn", "random", 0)
    x = torch.randn(3, 12, 1000, generator=torch.Generator().manual_seed(0))
    found = layers.activations(encoder, x)
    assert list(found)[-1] == layers.TOKENS
    assert list(found)[:-1] == list(layers.stages(encoder))
    with torch.inference_mode():
        tokens = encoder(x).mean(dim=1).numpy()
        first = encoder.stem(x.reshape(36, 1, 1000)).mean(dim=2).reshape(3, 12, -1).mean(dim=1).numpy()
    np.testing.assert_allclose(found[layers.TOKENS], tokens, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(next(iter(found.values())), first, rtol=1e-5, atol=1e-6)
    assert not any(module._forward_hooks for module in encoder.modules())


def test_stages_of_tokens_are_averaged_over_tokens():
    class Small(Encoder):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
            self.trunk = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])

        def stages(self):
            return [self.stem, *self.trunk]

        def forward(self, x):
            x = self.stem(x)
            for block in self.trunk:
                x = block(x)
            return x

    small = Small()
    assert list(layers.stages(small)) == ["stem", "trunk.0", "trunk.1"]
    x = torch.randn(5, 7, 2)  # tokens before channels: no convolution
    found = layers.activations(small, x)
    np.testing.assert_allclose(found["stem"], small.stem(x).mean(dim=1).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_only_what_was_trained_can_be_compared_with_its_twin():
    with pytest.raises(CureError, match=r"makes ssl-simulated of leadcnn, not ssl-folds of leadcnn"):
        layers.twins(ProbesConfig(profile="demo", weights="ssl-folds"))
    one, twin = layers.twins(ProbesConfig(profile="demo"))
    assert (one.weights, twin.weights) == ("ssl-simulated", "random")
    assert one.seed == twin.seed


def test_macros_keep_what_labels_share(cohort):
    part = cohort.records["fold"].to_numpy()
    splits = [Split("all", np.flatnonzero(part < 7), np.flatnonzero(part == 7), np.flatnonzero(part > 7))]
    found = layers.superclass_targets(cohort, splits)
    assert all(target.binary for target in found)
    rows = cohort.group("super").rows
    for target in found:
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(target.values)), rows)
    if len(found) > 1:
        trials = make_trials(cohort, splits, found, CONFIG, 5)
        together = {tuple(row) for row in np.stack([t.labels[rows, 0] for t in trials], axis=1)}
        for i in range(1, 6):
            assert {tuple(row) for row in np.stack([t.labels[rows, i] for t in trials], axis=1)} <= together


def test_measured_targets_are_the_features(cohort, monkeypatch):
    table = pd.DataFrame({column: np.arange(len(cohort), dtype=float) for column, _ in probes.MEASURED.values()})
    monkeypatch.setattr(probes.embed, "read_features", lambda folder, which: table)
    found = {target.name: target for target in probes.targets(CONFIG, cohort)}
    assert list(found) == ["age", "sex", "heart_rate", "pr", "qrs", "qt"]
    assert found["pr"].unit == "ms"
    assert found["sex"].binary
    np.testing.assert_array_equal(found["sex"].values == 1, cohort.records["sex"] == "male")
    np.testing.assert_array_equal(found["qt"].values, table["qt_ms"])

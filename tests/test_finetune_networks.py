from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import small
from torch import nn

from cure import adapt, models
from cure.adapt import choose, crops, fit, logits
from cure.errors import CureError
from cure.networks import AttentiveProbe, Classifier
from cure.splits import Split
from cure.training import Recipe


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Mean(nn.Module):
    """The mean of each lead as logits: linear in time, so that windows can be checked by hand."""

    def forward(self, x):
        return x.mean(dim=-1)


# --- crops and windows -------------------------------------------------------------------------------------


@given(n=st.integers(1, 20), length=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_crops_are_contiguous_windows_of_their_own_record_alike_in_all_leads(n, length, seed):
    rng = np.random.default_rng(seed)
    x = np.arange(8 * 3 * 30, dtype=np.float32).reshape(8, 3, 30)
    rows = rng.integers(0, 8, n)
    found = crops(x, rows, length, rng)
    assert found.shape == (n, 3, length)
    starts = (found[:, 0, 0] - 90 * rows).astype(int)
    assert ((starts >= 0) & (starts <= 30 - length)).all()
    for window, row, start in zip(found, rows, starts, strict=True):
        np.testing.assert_array_equal(window, x[row, :, start : start + length])


def test_crops_reach_every_start_of_a_record():
    x = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    found = crops(x, np.zeros(400, int), 7, np.random.default_rng(0))
    assert set(found[:, 0, 0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("batch_size", (1, 4, 64))
@pytest.mark.parametrize(
    ("length", "starts"), [(50, [0, 50]), (30, [0, 23, 47, 70]), (25, [0, 25, 50, 75]), (100, [0])]
)
def test_a_score_is_the_mean_over_the_fewest_windows_that_cover_a_record(length, starts, batch_size):
    x = np.random.default_rng(0).normal(size=(9, 4, 100)).astype(np.float32)
    rows = np.array([8, 2, 2, 5, 0])
    by_hand = np.mean([x[rows, :, start : start + length].mean(axis=-1) for start in starts], axis=0)
    np.testing.assert_allclose(logits(Mean(), x, rows, length, batch_size), by_hand, atol=1e-6)
    assert max(np.diff([*starts, 100])) <= length


def test_without_a_window_a_model_takes_all_there_is():
    x = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float16)
    np.testing.assert_array_equal(logits(Mean(), x, np.arange(5), None, 2), torch.from_numpy(x).mean(dim=-1).float())


# --- one training ------------------------------------------------------------------------------------------


def _problem(n=64, n_tasks=3):
    """Noise whose amplitude in one lead tells each label: easy to learn, and easy to contradict."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 12, 1000)).astype(np.float32)
    y = rng.random((n, n_tasks)) < 0.5
    x[:, :n_tasks] *= np.where(y, 3, 0.3)[:, :, None]
    return x, y


def test_a_head_starts_at_zero_and_reads_poolings_side_by_side():
    encoder = small()
    model = Classifier(encoder, "mean+max", 11)
    x = torch.randn(4, 12, 500)
    assert model.head.in_features == 32
    assert not model(x).any()
    with torch.no_grad():
        model.head.weight[0, 0], model.head.weight[1, 16] = 1, 1
        tokens = encoder(x)
        np.testing.assert_allclose(model(x)[:, 0], tokens.mean(dim=1)[:, 0], rtol=1e-5)
        np.testing.assert_allclose(model(x)[:, 1], tokens.amax(dim=1)[:, 0], rtol=1e-5)
    with pytest.raises(CureError, match="unknown pooling 'median'"):
        Classifier(encoder, "median", 11)(x)


def test_logits_are_float32_under_autocast():
    model = Classifier(small(), "mean", 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 12, 500)).dtype == torch.float32


def test_training_learns_what_can_be_learned_and_scores_are_probabilities(tmp_path):
    x, y = _problem()
    rows = np.arange(64)
    split = Split("s", rows[:32], rows[32:48], rows[48:])
    model = Classifier(small(), "mean", 3)
    result = fit(model, x, y, split, Recipe(30, 16, 3e-2), tmp_path / "state")
    assert result["loss"][-1] < 0.5 * result["loss"][0]
    assert result["score"].shape == (16, 3)
    assert ((result["score"] > 0) & (result["score"] < 1)).all()
    planted = y[split.test, 0]
    assert result["score"][planted, 0].min() > result["score"][~planted, 0].max()
    by_hand = torch.from_numpy(logits(model, x, split.test, 500, 16)).sigmoid()
    np.testing.assert_allclose(result["score"], by_hand, rtol=1e-5)


def test_stopping_keeps_the_epoch_with_the_lowest_validation_loss(tmp_path):
    # Validation contradicts training: each epoch makes it worse.
    x, y = _problem()
    split = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))
    y[split.val] = ~y[split.val]
    model = Classifier(small(), "mean", 3)
    result = fit(model, x, y, split, Recipe(30, 16, 3e-2, patience=2), tmp_path / "state")
    best = result["validation"].argmin()
    assert len(result["epoch"]) == best + 1 + 2 < 30
    assert set(result["setting"]) == {f"rate=0.03, epoch={best + 1}"}
    kept = torch.from_numpy(logits(model, x, split.val, 500, 16))
    loss = nn.functional.binary_cross_entropy_with_logits(kept, torch.from_numpy(y[split.val].astype(np.float32)))
    assert float(loss) == pytest.approx(result["validation"].min(), rel=1e-6)


def test_test_records_have_no_influence_on_training_and_thresholds(tmp_path):
    x, y = _problem()
    split = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))
    recipe = Recipe(2, 16, 1e-3)
    before = fit(Classifier(small(), "mean", 3), x, y, split, recipe, tmp_path / "one")
    x[split.test], y[split.test] = 0, ~y[split.test]
    after = fit(Classifier(small(), "mean", 3), x, y, split, recipe, tmp_path / "two")
    for name in ("threshold", "loss", "validation"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.array_equal(before["score"], after["score"])


def test_too_few_records_for_a_batch_are_an_error(tmp_path):
    x, y = _problem(n=20)
    split = Split("s", np.arange(10), np.arange(10, 15), np.arange(15, 20))
    with pytest.raises(CureError, match="10 training records are fewer than a batch of 16"):
        fit(Classifier(small(), "mean", 3), x, y, split, Recipe(1, 16, 1e-3), tmp_path / "state")


# --- learning rates ----------------------------------------------------------------------------------------


def test_the_learning_rate_with_the_lowest_validation_loss_is_kept(tmp_path):
    x, y = _problem()
    split, recipe = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64)), Recipe(3, 16, 1.0)

    def make():
        return Classifier(small(), "mean", 3)

    rates = (1e-6, 3e-2, 1e-4)
    found = choose(make, rates, x, y, split, recipe, tmp_path / "state")
    each = [fit(make(), x, y, split, replace(recipe, rate=rate), tmp_path / f"{rate}") for rate in rates]
    np.testing.assert_array_equal(found["lowest"], [one["validation"].min() for one in each])
    assert found["lowest"].argmin() == found["chosen"] == 1
    assert found["rate"].tolist() == list(rates)
    assert found["epochs"].tolist() == [3, 3, 3]
    assert found["seconds"] > 0
    for name in ("score", "threshold", "setting", "validation", "loss"):
        np.testing.assert_array_equal(found[name], each[1][name])


def test_test_records_are_scored_once_however_many_rates_are_tried(tmp_path, monkeypatch):
    x, y = _problem()
    split, scored = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64)), []
    monkeypatch.setattr(adapt, "logits", lambda *given: scored.append(given[2]) or logits(*given))
    make = lambda: Classifier(small(), "mean", 3)  # noqa: E731
    choose(make, (1e-3, 1e-2), x, y, split, Recipe(2, 16, 1.0), tmp_path / "state")
    assert [rows is split.test for rows in scored] == [False] * 5 + [True]


# --- parts of an encoder -----------------------------------------------------------------------------------


def _states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_last_stages_are_trained_and_the_first_stay_with_their_statistics(tmp_path):
    x, y = _problem()
    split = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))
    for k, moving in ((1, {"mix", "head"}), (2, {"enter", "mix", "head"})):
        model = Classifier(small(), "mean", 3)
        model.train_last(k)
        before = _states(model)
        fit(model, x, y, split, Recipe(2, 16, 1e-2), tmp_path / f"last-{k}")
        after = model.state_dict()
        moved = {name for name, was in before.items() if not torch.equal(was, after[name])}
        assert {name.split(".")[name.startswith("encoder")] for name in moved} == moving
        assert all(name.startswith("encoder.enter") for name in before.keys() - moved)


@pytest.mark.parametrize("name", ("leadcnn", "resnet1d", "vit1d"))
def test_the_last_stage_of_the_encoders_trained_here_can_be_trained_alone(name):
    model = Classifier(models.load(name), "mean", 2)
    model.train_last(1)
    with torch.no_grad():
        model.head.weight.normal_()
    model.train()
    before = _states(model)
    model(torch.randn(4, 12, 1000)).sum().backward()
    first = next(iter(model.encoder.stages()[0].parameters()))
    assert first.grad is None
    assert any(p.grad is not None for p in model.encoder.stages()[-1].parameters())
    moved = [key for key, was in before.items() if not torch.equal(was, model.state_dict()[key])]
    assert all("running" in key or "num_batches" in key for key in moved)
    assert not any(key.startswith("encoder.stem") for key in moved)


def test_more_stages_than_there_are_is_an_error():
    with pytest.raises(CureError, match="'last-3': Small has 2 stages; choose last-1 to last-2"):
        Classifier(small(), "mean", 3).train_last(3)


def test_layer_wise_decay_slows_the_first_stages_most(tmp_path):
    model = Classifier(small(), "mean", 3)
    model.slow_down(0.5)
    assert set(model.scales) == {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    assert {name.split(".")[1]: scale for name, scale in model.scales.items()} == {"enter": 0.25, "mix": 0.5}
    x, y = _problem()
    split = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))
    # One step of Adam moves each weight by its learning rate, whatever the gradient; the second one has rate zero.
    moved = {}
    for factor in (1.0, 0.5):
        model = Classifier(small(), "mean", 3)
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.slow_down(factor)
        before = _states(model)
        fit(model, x, y, split, Recipe(1, 16, 1e-3, weight_decay=0.0), tmp_path / f"{factor}")
        moved[factor] = {
            key: (model.state_dict()[key] - was).abs().max() for key, was in before.items() if "weight" in key
        }
    for key, share in (("encoder.enter.0.weight", 0.25), ("encoder.mix.0.weight", 0.5), ("head.weight", 1.0)):
        assert float(moved[0.5][key] / moved[1.0][key]) == pytest.approx(share, rel=0.05)


# --- attention over tokens ---------------------------------------------------------------------------------


def test_attention_starts_as_the_mean_over_time():
    probe = AttentiveProbe(8, 3).eval()
    tokens = torch.randn(5, 20, 8)
    assert not probe(tokens).any()
    with torch.no_grad():
        probe.weight.normal_()
        torch.testing.assert_close(probe(tokens), tokens.mean(dim=1) @ probe.weight.T / (1 + 1e-5) ** 0.5)


def test_attention_finds_the_token_that_matters(tmp_path):
    # Each record has one marked token whose sign is the label; the same values without a mark are noise.
    rng = np.random.default_rng(0)
    y = rng.random((600, 1)) < 0.5
    x = np.zeros((600, 30, 4), np.float16)
    x[..., 0] = rng.choice([-1, 1], (600, 30))
    at = rng.integers(0, 30, 600)
    x[np.arange(600), at, 0], x[np.arange(600), at, 1] = np.where(y[:, 0], 1, -1), 1
    split = Split("s", np.arange(400), np.arange(400, 500), np.arange(500, 600))
    result = fit(AttentiveProbe(4, 1), x, y, split, Recipe(30, 50, 0.1), tmp_path / "state")
    right = (result["score"][:, 0] > 0.5) == y[split.test, 0]
    mean = np.sign(x[split.test, :, 0].astype(float).mean(axis=1)) == np.where(y[split.test, 0], 1, -1)
    assert right.mean() > 0.95 > 0.75 > mean.mean()


def test_tokens_that_are_not_finite_are_an_error():
    encoder = small()
    with torch.no_grad():
        encoder.enter[0].weight[0, 0, 0] = float("nan")
    with pytest.raises(CureError, match="Small: a token of records 0 to 2 is not finite"):
        adapt.frozen_tokens(encoder, np.ones((3, 12, 1000), np.float32), lambda *_: None)

import multiprocessing
import os
import re
import time

import numpy as np
import pytest
import torch
from torch import nn

from cure import resume, training
from cure.errors import CureError
from cure.models.base import one_thread
from cure.progress import TERMINAL
from cure.training import Recipe, alone, train

X = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32))
Y = X @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))


def fit(net, file, recipe, stop_after=None, **settings):
    """Squared error on noisy input, so that the epoch's generator matters; optionally killed in some step."""
    calls = []

    def step(rows, rng):
        calls.append(rows)
        if stop_after is not None and len(calls) > stop_after:
            raise KeyboardInterrupt
        x = X[rows] + 0.01 * torch.from_numpy(rng.standard_normal((len(rows), 5)).astype(np.float32))
        loss = (net(x)[:, 0] - Y[rows]).square().mean()
        return {"loss": loss, "twice": 2 * loss}

    run = train(net, step, np.arange(64), recipe, file, **settings)
    return run, calls


def test_losses_fall_and_the_curve_says_so(tmp_path):
    run, _ = fit(model(), tmp_path / "c.pt", Recipe(30, 16, 1e-2))
    assert run.history["epoch"].tolist() == list(range(1, 31))
    assert run.history["loss"].iloc[-1] < 0.3 * run.history["loss"].iloc[0]
    np.testing.assert_allclose(run.history["twice"], 2 * run.history["loss"], rtol=1e-5)
    assert run.history["rate"].iloc[-1] == pytest.approx(0, abs=1e-12)
    assert run.history["rate"].max() <= 1e-2
    assert run.seconds > 0


@pytest.mark.parametrize("killed_in_step", [1, 9, 14])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, killed_in_step):
    recipe = Recipe(6, 16, 1e-2, seed=4)
    whole = model()
    expected, _ = fit(whole, tmp_path / "whole.pt", recipe)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), tmp_path / "c.pt", recipe, stop_after=killed_in_step)
    resumed = model(seed=9)  # whatever it starts from, the checkpoint decides once there is one
    if killed_in_step < 4:
        resumed = model()
    run, calls = fit(resumed, tmp_path / "c.pt", recipe)
    assert len(calls) == 24 - 4 * (killed_in_step // 4)
    for one, two in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert run.history.equals(expected.history)


def same(one, two):
    states = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in states)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stopped", [[1], [3], [4], [6, 7, 8], [22, 23]])
def test_a_run_goes_on_from_any_step_and_ends_with_the_same_weights_and_history(
    tmp_path, monkeypatch, stopped, precision
):
    recipe = Recipe(6, 16, 1e-2, seed=4, patience=3, precision=precision)

    def fitted(file, stop_after=None):
        net = model()  # dropout, noise and batch statistics must all go on where they were
        losses = lambda: float((net(X)[:, 0] - Y).square().mean())  # noqa: E731
        return net, fit(net, file, recipe, stop_after, validate=losses)

    whole, (expected, _) = fitted(tmp_path / "whole.pt")
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    taken = 0
    for step in stopped:
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "c.pt", step - taken)
        taken = step
    resumed, (run, calls) = fitted(tmp_path / "c.pt")
    assert len(calls) == 4 * len(expected.history) - taken
    assert same(whole, resumed)
    assert run.history.equals(expected.history)


def _slow(file):
    torch.set_num_threads(1)
    training.EVERY_S = 0.0
    fit(model(), file, Recipe(6, 16, 1e-2, seed=4), after_step=lambda: time.sleep(0.02))


@one_thread()  # as the process that is killed: sums differ between thread counts
def test_a_run_that_was_killed_without_warning_goes_on_within_its_epoch(tmp_path):
    whole = model()
    expected, _ = fit(whole, tmp_path / "whole.pt", Recipe(6, 16, 1e-2, seed=4))
    file = tmp_path / "c.pt"
    process = multiprocessing.get_context("fork").Process(target=_slow, args=[file])
    process.start()
    until = time.monotonic() + 30
    while not (file.exists() and (state := resume.read(file)).history and state.steps):
        assert time.monotonic() < until
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    state = resume.read(file)
    taken = 4 * len(state.history) + state.steps
    assert 4 < taken < 24
    resumed = model(seed=9)
    run, calls = fit(resumed, file, Recipe(6, 16, 1e-2, seed=4))
    assert len(calls) == 24 - taken
    assert same(whole, resumed)
    assert run.history.equals(expected.history)
    assert run.seconds > 0.02 * taken


def test_the_same_run_twice_gives_the_same_weights_and_another_seed_others(tmp_path):
    nets = [model() for _ in range(3)]
    for i, net in enumerate(nets):
        fit(net, tmp_path / f"{i}.pt", Recipe(2, 16, 1e-2, seed=i // 2))
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_validation_may_give_further_metrics_and_the_bar_says_them_with_the_time_left(tmp_path, monkeypatch):
    terminal = tmp_path / "terminal"
    monkeypatch.setenv(TERMINAL, str(terminal))
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    given = iter([{"auroc": np.float32(0.625), "validation": 1.5}, {"auroc": np.float32(0.75), "validation": 2.5}])
    # A bar is drawn at most ten times a second.
    settings = {"validate": lambda: next(given), "after_step": lambda: time.sleep(0.06)}
    run, _ = fit(model(), tmp_path / "c.pt", Recipe(2, 16, 1e-2), **settings, desc="tuning")
    assert run.history["auroc"].tolist() == [0.625, 0.75]
    assert run.history["validation"].tolist() == [1.5, 2.5]
    shown = terminal.read_text()
    assert re.search(r"tuning: .*[5-8]/8 \[\d\d:\d\d<\d\d:\d\d, .*loss=\d.*validation=1\.5", shown), shown
    assert "auroc=0.625" in shown


def test_each_epoch_takes_other_records_in_another_order_and_drops_a_short_batch(tmp_path):
    _, calls = fit(model(), tmp_path / "c.pt", Recipe(2, 24, 1e-3))
    assert [len(rows) for rows in calls] == [24] * 4
    first, second = np.concatenate(calls[:2]), np.concatenate(calls[2:])
    assert len(set(first)) == 48
    assert first.tolist() != second.tolist()


def test_the_best_epoch_is_kept_and_training_stops_when_nothing_gets_better(tmp_path):
    net, losses, states = model(), iter([3.0, 1.0, 2.0, 2.5, 0.1]), []

    def validate():
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        assert not net.training
        return next(losses)

    run, _ = fit(net, tmp_path / "c.pt", Recipe(5, 16, 1e-2, patience=2), validate=validate)
    assert run.history["validation"].tolist() == [3.0, 1.0, 2.0, 2.5]
    for name, value in net.state_dict().items():
        assert torch.equal(value, states[1][name])


def test_what_is_frozen_stays_and_biases_are_not_decayed(tmp_path):
    net = model()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    fit(net, tmp_path / "c.pt", Recipe(2, 16, 1e-2))
    assert torch.equal(net[0].weight, before)


def test_faults_are_named(tmp_path):
    with pytest.raises(CureError, match="64 training records are fewer than a batch of 65"):
        fit(model(), tmp_path / "c.pt", Recipe(1, 65, 1e-3), desc="run")
    net = model()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(CureError, match="the loss of epoch 1 is not finite"):
        fit(net, tmp_path / "d.pt", Recipe(1, 16, 1e-3))


def test_bars_and_threads_are_as_before_after_working_alone(monkeypatch):
    monkeypatch.setenv(TERMINAL, "/dev/tty7")
    torch.set_num_threads(2)
    with alone():
        assert (torch.get_num_threads(), os.environ[TERMINAL]) == (1, "")
    assert (torch.get_num_threads(), os.environ[TERMINAL]) == (2, "/dev/tty7")


def test_skips_and_biases_that_are_shaped_like_matrices_are_not_decayed():
    from cure import models
    from cure.training import _decays

    decayed = {name for name, p in models.load("s4").named_parameters() if _decays(name, p)}
    assert decayed
    assert not any(name.endswith((".D", ".bias")) for name in decayed)

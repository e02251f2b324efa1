import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from cure import devices, models, training
from cure.adapt import fit
from cure.devices import Place, at, share
from cure.errors import CureError
from cure.networks import Classifier
from cure.splits import Split
from cure.training import Recipe, train

X = np.random.default_rng(0).standard_normal((64, 12, 400)).astype(np.float32)
Y = np.random.default_rng(1).random((64, 3)) < 0.4
SPLIT = Split("some", np.arange(32), np.arange(32, 48), np.arange(48, 64))


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.delenv(devices.DEVICES, raising=False)
    with models.base.one_thread():
        yield


def classifier():
    return Classifier(models.load("leadcnn", seed=0), "mean", 3, window_s=2)


def small(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(12 * 400, 3))


def apart(one, two, untrained):
    """Distance of two networks' states, as a share of what training has changed.

    Sums of float32 in another order: Adam turns the rounding of the smallest gradients into steps.
    """
    one, two, start = (
        torch.cat([value.double().flatten() for value in net.state_dict().values() if value.is_floating_point()])
        for net in (one, two, untrained)
    )
    return float((one - two).norm() / (two - start).norm())


def tuned(net, file, recipe, stop_after=None):
    taken = []

    def step(rows, rng):
        taken.append(rows)
        if stop_after is not None and len(taken) > stop_after:
            raise CureError("stopped")
        x, y = share(X[rows], Y[rows].astype(np.float32))
        return {"loss": bce(net(x), y)}

    return train(net, step, SPLIT.train, recipe, file)


def test_two_processes_train_a_convolutional_network_as_one_does(tmp_path, monkeypatch):
    # Crops, batch normalisation, layer-wise rates, early stopping: what fine-tuning is made of.
    recipe, found = Recipe(3, 16, 1e-3, patience=2), []
    for i, where in enumerate(["cpu", "2xcpu"]):
        monkeypatch.setenv(devices.DEVICES, where)
        net = classifier()
        net.slow_down(0.7)
        found.append((net, fit(net, X, Y, SPLIT, recipe, tmp_path / f"{i}.pt")))
    (one, by_one), (two, by_two) = found
    assert apart(two, one, classifier()) < 1e-4
    for name in ("loss", "validation"):
        np.testing.assert_allclose(by_two[name], by_one[name], rtol=1e-4)
    np.testing.assert_allclose(by_two["score"], by_one["score"], atol=1e-4)
    assert "MASTER_PORT" not in os.environ


def test_two_processes_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.DEVICES, "2xcpu")
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    recipe, whole, resumed = Recipe(3, 8, 1e-2), small(0.5), small(0.5)
    expected = tuned(whole, tmp_path / "whole.pt", recipe)
    with pytest.raises(CureError, match=r"^stopped$"):
        tuned(small(0.5), tmp_path / "c.pt", recipe, stop_after=6)
    run = tuned(resumed, tmp_path / "c.pt", recipe)
    assert run.history.equals(expected.history)
    assert torch.equal(whole[2].weight, resumed[2].weight)


def test_what_cannot_be_divided_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.DEVICES, "2xcpu")
    net = small()

    def contrast(rows, rng):
        return {"loss": net(torch.from_numpy(X[rows])).square().mean()}

    with pytest.raises(CureError, match=r"compares the records of a batch .* set CURE_DEVICES to cpu or cuda"):
        train(net, contrast, SPLIT.train, Recipe(1, 16, 1e-3), tmp_path / "a.pt")
    with pytest.raises(CureError, match="a batch of 15 cannot be divided among 2 processes"):
        train(net, contrast, SPLIT.train, Recipe(1, 15, 1e-3), tmp_path / "b.pt")


def test_what_draws_on_the_processor_says_so_where_a_gpu_is_asked_for(monkeypatch):
    devices.require_processor("pre-training")
    monkeypatch.setenv(devices.DEVICES, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CureError, match=r"pre-training runs on the processor .* set CURE_DEVICES to cpu"):
        devices.require_processor("pre-training")


@pytest.mark.parametrize("said", ["gpu", "0xcpu", "cuda:1", "2 cpu"])
def test_devices_that_do_not_exist_are_named(monkeypatch, said):
    monkeypatch.setenv(devices.DEVICES, said)
    with pytest.raises(CureError, match="is not understood"):
        devices.requested()
    monkeypatch.setenv(devices.DEVICES, f"{torch.cuda.device_count() + 1}xcuda")
    with pytest.raises(CureError, match="torch sees"):
        devices.requested()


def test_shares_make_up_the_batch():
    x, y = torch.arange(12.0).reshape(6, 2), np.arange(6)
    parts = []
    for rank in range(3):
        with at(Place(torch.device("cpu"), rank, 3)) as here:
            parts.append(share(x, y))
            assert here.divided
    assert torch.equal(torch.cat([a for a, _ in parts]), x)
    assert torch.cat([b for _, b in parts]).tolist() == y.tolist()
    assert share(x)[0] is x


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, "tests")
import test_devices as t
net = t.small()
t.tuned(net, Path(sys.argv[1]), t.Recipe(2, 16, 1e-2))
torch.save(net.state_dict(), f"{sys.argv[2]}-{torch.distributed.get_rank()}")
"""


@pytest.mark.long
def test_two_nodes_started_by_torchrun_give_the_weights_of_one_process(tmp_path):
    # Two agents on one machine: as far as torch can tell, two nodes of one process each.
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    nodes = []
    for rank in range(2):
        how = [sys.executable, "-m", "torch.distributed.run", *address, "--nnodes", "2", "--node-rank", str(rank)]
        what = [str(tmp_path / "script.py"), str(tmp_path / "c.pt"), str(tmp_path / "weights")]
        nodes.append(subprocess.Popen([*how, *what], env=env, cwd=root, stderr=subprocess.PIPE, text=True))
    for node in nodes:
        _, said = node.communicate(timeout=300)
        assert node.returncode == 0, said
    net = small()
    tuned(net, tmp_path / "one.pt", Recipe(2, 16, 1e-2))
    for rank in range(2):
        other = small()
        other.load_state_dict(torch.load(tmp_path / f"weights-{rank}", weights_only=True))
        assert apart(other, net, small()) < 1e-4

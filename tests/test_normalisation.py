"""Batch statistics taken from records: they are those records' own, and nothing else changes."""

import numpy as np
import pytest
import torch
from torch import nn

from cure.errors import CureError
from cure.normalisation import take_statistics


def test_statistics_become_those_of_the_records():
    x = np.random.default_rng(0).normal(3, 2, (300, 4, 10)).astype(np.float32)
    rows = np.arange(0, 300, 2)
    norm = nn.BatchNorm1d(4)
    take_statistics(norm, x, rows, batch_size=50)
    np.testing.assert_allclose(norm.running_mean, x[rows].mean(axis=(0, 2)), rtol=1e-5)
    by_batch = [x[part].var(axis=(0, 2), ddof=1) for part in np.split(rows, 3)]
    np.testing.assert_allclose(norm.running_var, np.mean(by_batch, axis=0), rtol=1e-5)
    assert not norm.training and norm.momentum == 0.1


def test_nothing_is_learned_and_other_records_do_not_matter():
    x = np.random.default_rng(1).normal(size=(64, 3, 20)).astype(np.float32)
    rows = np.arange(32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.named_parameters()}
    take_statistics(model, x, rows)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    x[32:] = 100
    take_statistics(model, x, rows)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, once[name], msg=name)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    # In evaluation mode the records now leave the first normalisation with mean 0 and variance 1.
    with torch.inference_mode():
        out = model[:2](torch.from_numpy(x[rows]))
    torch.testing.assert_close(out.mean(dim=(0, 2)), torch.zeros(8), atol=1e-4, rtol=0)


def test_a_model_without_batch_normalisation_is_an_error():
    with pytest.raises(CureError, match="Linear has no batch normalisation: take it out of `statistics`"):
        take_statistics(nn.Linear(2, 2), np.zeros((2, 2), np.float32), np.arange(2))

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from cure import models
from cure.errors import CureError
from cure.models import InputSpec, registry
from cure.models.base import PLAIN
from cure.models.steps import Resample
from cure.signals import LEADS


@pytest.mark.parametrize("name", registry.OWN)
def test_encoders_turn_input_into_tokens_and_an_embedding(name):
    encoder = models.load(name)
    x = torch.randn(3, len(encoder.input_spec.leads), int(encoder.input_spec.fs * encoder.input_spec.seconds))
    with torch.inference_mode():
        tokens, embedding = encoder(x), encoder.embed(x)
    assert tokens.shape == (3, tokens.shape[1], encoder.dim)
    assert tokens.shape[1] > 1
    assert torch.equal(embedding, tokens.mean(dim=1))
    assert not encoder.training
    assert encoder.pretraining == ()


@pytest.mark.parametrize("name", registry.OWN)
def test_records_do_not_influence_each_other(name):
    encoder = models.load(name)
    x = torch.randn(4, 12, 1000)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", registry.OWN)
def test_the_seed_decides_the_weights_and_nothing_else_does(name):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, again, other = models.load(name, seed=1), models.load(name, seed=1), models.load(name, seed=2)
    assert one.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unknown_names_and_weights_are_errors_that_list_the_known():
    with pytest.raises(CureError, match="unknown encoder 'resnet': choose from leadcnn, resnet1d, resnet1d_wang"):
        models.load("resnet")
    with pytest.raises(CureError, match="has no weights 'hub'"):
        models.load("resnet1d", weights="hub")


def test_input_spec_orders_leads_scales_filters_and_resamples():
    t = np.arange(5000) / 500
    x = np.zeros((1, 12, 5000), np.float32)
    x[0, LEADS.index("V2")] = np.sin(2 * np.pi * 10 * t) + 3.0  # 10 Hz of 1 mV on an offset
    y = replace(PLAIN, leads=("V2", "I")).apply(x, 500)[:, 0]
    assert y.shape == (1, 2, 1000)
    assert y.dtype == np.float32
    middle = y[0, 0, 200:800]
    np.testing.assert_allclose(middle, np.sin(2 * np.pi * 10 * np.arange(200, 800) / 100) / 0.2, atol=0.05)
    assert np.abs(y[0, 1]).max() == 0


def test_input_spec_reads_the_rate_it_wants(cohort):
    native = InputSpec(fs=100, seconds=10).read(cohort, np.array([0, 3]))
    np.testing.assert_array_equal(native, cohort.signals(np.array([0, 3]), 100))
    with pytest.raises(CureError, match="shorter than the 12 s"):
        InputSpec(fs=100, seconds=12).read(cohort, np.array([0]))


def test_a_record_without_the_wanted_rate_is_read_at_its_highest_and_resampled(cohort):
    spec = InputSpec(fs=500, seconds=10, record=(Resample(500),))
    rows = np.array([0, 100])  # recorded at 500 Hz, and only at 100 Hz
    assert spec.source_rates(cohort, rows).tolist() == [500, 100]
    x = spec.read(cohort, rows)
    assert x.shape == (2, 12, 5000)
    np.testing.assert_array_equal(x[:1], cohort.signals(rows[:1], 500))
    np.testing.assert_allclose(x[1, :, ::5], cohort.signals(rows[1:], 100)[0], atol=0.02)
    assert InputSpec(fs=240, seconds=10, record=(Resample(240),)).source_rates(cohort, rows).tolist() == [500, 100]


def test_layers_of_a_random_transformer_differ():
    layers = [layer for layer in models.load("vit1d").layers if hasattr(layer, "linear1")]
    assert len(layers) == 4
    for one, two in itertools.combinations(layers, 2):
        assert not torch.equal(one.linear1.weight, two.linear1.weight)
        assert not torch.equal(one.self_attn.in_proj_weight, two.self_attn.in_proj_weight)

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cure import models
from cure.errors import CureError
from cure.models import InputSpec, registry
from cure.models.base import PLAIN, seeded
from cure.models.s4_classifier import _Layer, _TwoWayKernel
from cure.models.steps import Resample
from cure.networks import depths
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
    longer = InputSpec(fs=100, seconds=12).read(cohort, np.array([0, 3]))
    np.testing.assert_array_equal(longer[..., :1000], native)
    assert (longer[..., 1000:] == 0).all()


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


# --- supervised floors -------------------------------------------------------------------------------------


def test_xresnet1d101_has_the_published_shape():
    encoder = models.load("xresnet1d101")
    norms = lambda *widths: sum(2 * width for width in widths)  # noqa: E731
    stem = 5 * (12 * 32 + 32 * 32 + 32 * 64) + norms(32, 32, 64)

    def block(n_in):
        return n_in * 64 + 5 * 64 * 64 + 64 * 256 + norms(64, 64, 256)

    first = block(64) + 64 * 256 + norms(256)  # the one shortcut with a convolution: width changes only there
    assert encoder.n_parameters() == stem + first + 32 * block(256) == 1_804_672
    assert [len(stage) for stage in encoder.stages()[1:]] == [3, 4, 23, 3]
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv1d)]
    assert len(convolutions) == 3 + 3 * 33 + 1
    pooled = [block.shortcut for stage in encoder.stages()[2:] for block in stage][:1]
    assert all(isinstance(shortcut[0], nn.AvgPool1d) for shortcut in pooled)
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 12, 250)).shape == (2, 8, 256)
        assert encoder(torch.zeros(2, 12, 1000)).shape == (2, 32, 256)


def test_blocks_of_xresnet1d101_start_as_their_shortcut():
    encoder = models.load("xresnet1d101")
    for stage in encoder.stages()[1:]:
        x = torch.randn(2, stage[-1].residual[0][0].in_channels, 40)
        with torch.inference_mode():
            torch.testing.assert_close(stage[-1](x), x.relu())  # the last norm's scale is zero


def test_an_s4_layer_convolves_with_the_past_and_the_future_as_a_plain_loop_does():
    with seeded(0):
        kernel = _TwoWayKernel(3, 8, 250).eval()
    after, before = kernel(40)
    for c, response in ((kernel.space.C, after), (kernel.backward_C, before)):
        with torch.no_grad():
            kernel.space.C.copy_(c.clone())
            # S4Kernel makes the same kernel from the stored C in another way.
            torch.testing.assert_close(kernel.space(40), response, rtol=1e-4, atol=1e-5)
    with seeded(1):
        layer = _Layer(3, 8, 250, 0.2).eval()
    x = torch.randn(2, 3, 40)
    with torch.no_grad():
        after, before = layer.kernel(40)
        y = torch.zeros_like(x)
        for i in range(40):
            for j in range(40):
                y[..., i] += x[..., j] * (after[:, i - j] if j <= i else before[:, j - i - 1])
        y += layer.D.mT * x
        gate = layer.linear(nn.functional.gelu(y))
        expected = layer.norm((x + gate[:, :3] * gate[:, 3:].sigmoid()).mT).mT
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_s4_sees_both_directions_and_learns_what_the_original_learns():
    encoder = models.load("s4")
    layer = 2 * 512 * 4 * 2 + 512 + 512 * 1024 + 1024 + 2 * 512  # C of both directions, D, linear map, norm
    assert encoder.n_parameters() == 12 * 512 + 512 + 4 * layer
    x = torch.randn(1, 12, 100, requires_grad=True)
    tokens = encoder(x)
    assert tokens.shape == (1, 100, 512)
    (slope,) = torch.autograd.grad(tokens[0, 50, 0], x)  # their sum does not vary: a norm comes last
    assert slope[0, :, 20].abs().max() > 0 < slope[0, :, 80].abs().max()


def test_s4_can_be_trained_after_it_has_scored_and_on_longer_windows_too():
    encoder = models.load("s4")
    with torch.inference_mode():
        long = encoder(torch.ones(1, 12, 300))
    encoder.train()(torch.ones(1, 12, 100)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert long.shape == (1, 300, 512)


@pytest.mark.parametrize("name", registry.OWN)
def test_stages_run_from_input_to_output_and_own_each_parameter_once(name):
    encoder, order = models.load(name), []
    for i, stage in enumerate(encoder.stages()):
        stage.register_forward_hook(lambda *_, i=i: order.append(i))
    with torch.inference_mode():
        encoder(torch.zeros(1, 12, 1000))
    assert order == list(range(len(encoder.stages())))
    found = depths(encoder)
    assert list(found) == [name for name, _ in encoder.named_parameters()]
    assert set(found.values()) == set(order)
    owned = [id(p) for stage in encoder.stages() for p in stage.parameters()]
    assert len(owned) == len(set(owned))


def test_an_encoder_without_stages_says_so():
    with pytest.raises(CureError, match="Ked does not name its stages"):
        models.load("ked").stages()

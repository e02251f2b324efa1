"""ECG-JEPA (Kim), ST-MEM and ECG-CPC: against the published implementations, and what needs no reference."""

import copy

import golden
import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete
from torch.nn import functional as F

from cure.errors import CureError
from cure.models.base import seeded
from cure.models.ecg_cpc import EcgCpc
from cure.models.ecg_jepa import EcgJepa
from cure.models.s4 import S4Kernel
from cure.models.st_mem import StMem

TINY = {
    "ecg_jepa": lambda: EcgJepa(dim=96, depth=3, heads=4),
    "st_mem": lambda: StMem(dim=96, depth=3, heads=4, hidden=192),
    "ecg_cpc": lambda: EcgCpc(dim=64, depth=2),
}
INPUT = {"ecg_jepa": (8, 2500), "st_mem": (12, 2250), "ecg_cpc": (12, 600)}
FULL = {"ecg_jepa.full.fill": EcgJepa, "st_mem.base.fill": StMem, "ecg_cpc.full": EcgCpc}


def tiny(name, seed=0):
    with seeded(seed):
        return TINY[name]().eval()


def example(name, n=2):
    return torch.randn(n, *INPUT[name], generator=torch.Generator().manual_seed(3))


def run(model, layers, x, **how):
    """Tokens and embedding without gradients, and the mean over tokens of what each of some layers returns."""
    means = []
    hooks = [layer.register_forward_hook(lambda *a: means.append(a[-1].mean(dim=1))) for layer in layers]
    with torch.inference_mode():
        tokens = model(torch.from_numpy(x), **how)
        embedding = model.readout(tokens)
    for hook in hooks:
        hook.remove()
    assert len(means) == len(layers)
    return tokens, embedding, means


@golden.here
@pytest.mark.parametrize("case", FULL)
def test_names_shapes_and_parameters_of_the_published_sizes(case):
    with torch.device("meta"):
        golden.assert_same_names(FULL[case](), case)


@golden.here
@pytest.mark.parametrize("case", ["ecg_jepa.tiny.fill", "st_mem.tiny.fill", "ecg_cpc.tiny.fill"])
def test_names_shapes_and_parameters_of_the_reduced_sizes(case):
    golden.assert_same_names(tiny(case.split(".")[0]), case)


@golden.here
@pytest.mark.parametrize(("case", "leads"), [("ecg_jepa.tiny.fill", None), ("ecg_jepa.tiny.fill.leads_1_3", [1, 3])])
def test_ecg_jepa_is_the_original(case, leads):
    model = tiny("ecg_jepa")
    table = model.pos_embed.detach().clone()
    golden.fill(model, "ecg_jepa.tiny.fill")
    assert torch.equal(model.pos_embed, table)  # the file holds the original's table
    expected = golden.arrays(case)
    tokens, embedding, means = run(model, model.encoder_blocks.blocks, expected["x"], leads=leads)
    for i, mean in enumerate(means):
        golden.assert_close(mean, expected[f"out_block{i}_mean"], f"block {i}")
    golden.assert_close(tokens, expected["out_tokens"], "tokens")
    golden.assert_close(embedding, expected["out_embedding"], "embedding")
    golden.assert_close(tokens.std(dim=1).mean(), expected["out_token_std"], "spread of tokens")
    assert expected["out_token_std"] > 0.5


@golden.here
@pytest.mark.parametrize("case", ["st_mem.tiny.fill", "st_mem.tiny.fill.len750"])
def test_st_mem_is_the_original(case):
    model = golden.fill(tiny("st_mem"), "st_mem.tiny.fill")
    expected = golden.arrays(case)
    tokens, embedding, means = run(model, [model.block0, model.block1, model.block2], expected["x"])
    for i, mean in enumerate(means):
        golden.assert_close(mean, expected[f"out_block{i}_mean"], f"block {i}")
    with_separators = expected["out_last_block_tokens"].reshape(2, 12, -1, 96)
    golden.assert_close(tokens, with_separators[:, :, 1:-1].reshape(2, -1, 96), "tokens")
    golden.assert_close(embedding, expected["out_embedding"], "embedding")
    assert tokens.std(dim=1).mean() > 0.5
    assert expected["out_token_std"] > 0.5


@golden.here
@pytest.mark.parametrize(
    ("case", "weights", "every"),
    [
        ("ecg_cpc.tiny.fill", "ecg_cpc.tiny.fill", 1),
        ("ecg_cpc.tiny.fill.len600", "ecg_cpc.tiny.fill", 1),
        ("ecg_cpc.full", "ecg_cpc.full", 8),
    ],
)
def test_ecg_cpc_is_the_original(case, weights, every):
    model = golden.fill(EcgCpc() if weights == "ecg_cpc.full" else tiny("ecg_cpc"), weights)
    expected = golden.arrays(case)
    predictor = model.predictor["predictor"]
    tokens, embedding, means = run(model, predictor.norms, expected["x"])
    for i, mean in enumerate(means):
        golden.assert_close(mean, expected[f"out_layer{i}_mean"], f"layer {i}")
        if f"out_s4kernel{i}" in expected:
            kernel = predictor.s4_layers[i].kernel["kernel"](1200).detach()
            golden.assert_close(kernel[:32, :256], expected[f"out_s4kernel{i}"], f"kernel {i}", atol=1e-6)
    if "out_conv_tokens" in expected:
        with torch.inference_mode():
            convolved = model.encoder["layers"](torch.from_numpy(expected["x"])).mT
        golden.assert_close(convolved, expected["out_conv_tokens"], "convolutions")
    golden.assert_close(tokens[:, ::every], expected["out_tokens"], "tokens")
    golden.assert_close(embedding, expected["out_embedding_mean"], "embedding")
    golden.assert_close(tokens[:, -1], expected["out_embedding_last"], "last token")
    assert expected["out_tokens"].std(axis=1).mean() > 0.2


@golden.here
def test_a_fresh_s4_kernel_is_started_as_the_originals():
    mine = tiny("ecg_cpc").predictor["predictor"].s4_layers[0].kernel["kernel"]
    theirs = golden.fill(tiny("ecg_cpc"), "ecg_cpc.tiny.fill").predictor["predictor"].s4_layers[0].kernel["kernel"]
    mine, theirs = (
        {k: torch.view_as_complex(v.detach()) for k, v in kernel.state_dict().items() if k != "log_dt"}
        for kernel in (mine, theirs)
    )
    # Theirs come in another order, and each eigenvector has a phase of its own, which these products do not have.
    order = theirs["w"][0].imag.argsort()
    for product in (
        lambda s: s["w"],
        lambda s: s["B"] * s["P"].conj(),
        lambda s: s["P"] * s["Q"],
        lambda s: s["B"].abs(),
    ):
        torch.testing.assert_close(product(mine), product(theirs)[..., order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine["omega"], theirs["omega"], rtol=0, atol=2e-6)
    torch.testing.assert_close(mine["z"][:-1], theirs["z"][:-1], rtol=5e-4, atol=1e-5)  # the last is a division by 0


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_the_stated_number_and_the_embedding_their_readout(name):
    model, x = tiny(name), example(name)
    with torch.inference_mode():
        tokens, embedding = model(x), model.embed(x)
    assert tokens.shape == (2, {"ecg_jepa": 400, "st_mem": 360, "ecg_cpc": 300}[name], model.dim)
    assert torch.equal(embedding, model.readout(tokens))
    mean = tokens.mean(dim=1)
    torch.testing.assert_close(embedding, F.layer_norm(mean, mean.shape[1:]) if name == "st_mem" else mean)
    assert tokens.std(dim=1).mean() > 0.01
    with torch.inference_mode():
        torch.testing.assert_close(model(x[1:])[0], tokens[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_seed_decides_all_weights_and_layers_differ(name):
    assert tiny(name, 1).weights_sha256() == tiny(name, 1).weights_sha256() != tiny(name, 2).weights_sha256()
    torch.use_deterministic_algorithms(True)  # then memory that nobody filled is NaN
    try:
        state = tiny(name).state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.isfinite().all() for value in state.values())
    first, second = {
        "ecg_jepa": ("encoder_blocks.blocks.0.attn.qkv.weight", "encoder_blocks.blocks.1.attn.qkv.weight"),
        "st_mem": ("block0.attn.fn.to_qkv.weight", "block1.attn.fn.to_qkv.weight"),
        "ecg_cpc": (
            "predictor.predictor.s4_layers.0.kernel.kernel.C",
            "predictor.predictor.s4_layers.1.kernel.kernel.C",
        ),
    }[name]
    assert not torch.equal(state[first], state[second])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_trainable_parameter(name, training):
    model, x = tiny(name).train(training), example(name).requires_grad_()
    model.embed(x)[:, ::2].pow(3).sum().backward()
    without = [k for k, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == (["head_ssl.proj.0.weight"] if name == "ecg_cpc" else [])
    assert x.grad.any()
    assert all(p.requires_grad for k, p in model.named_parameters() if not k.startswith("pos_embed"))


@pytest.mark.parametrize("name", TINY)
def test_it_runs_under_bfloat16_autocast(name):
    model, x = tiny(name), example(name)
    with torch.inference_mode():
        exact = model.embed(x)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = model.embed(x).float()
    assert (reduced - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", ["ecg_jepa", "st_mem"])
def test_fewer_leads_are_those_that_are_named(name):
    model, x = tiny(name), example(name)
    n_leads = x.shape[1]
    with torch.inference_mode():
        some = model(x[:, [1, 3]], leads=[1, 3])
        swapped = model(x[:, [3, 1]], leads=[3, 1])
        other = model(x[:, [1, 3]], leads=[0, 2])
        everything = model(x, leads=range(n_leads))
        torch.testing.assert_close(everything, model(x))
    per_lead = some.shape[1] // 2
    assert some.shape[1] * n_leads == everything.shape[1] * 2
    # The order of the leads is only the order of their tokens; their names matter.
    torch.testing.assert_close(
        swapped, torch.cat([some[:, per_lead:], some[:, :per_lead]], dim=1), rtol=1e-4, atol=1e-5
    )
    assert (other - some).abs().max() > 1e-3
    for wrong, given in (([1], x), ([1, n_leads], x[:, :2]), ([-1, 1], x[:, :2])):
        with pytest.raises(CureError, match="leads"):
            model(given, leads=wrong)


def test_ecg_jepa_looks_along_leads_and_moments_only():
    with seeded(0):
        model = EcgJepa(dim=32, depth=1, heads=2).eval()
    x = example("ecg_jepa", n=1)
    y = x.clone()
    y[0, 2, 350:400] += 1.0  # token (lead 2, time 7)
    with torch.inference_mode():
        changed = (model(y) != model(x)).any(dim=-1)[0].unflatten(0, (8, 50))
    expected = torch.zeros(8, 50, dtype=torch.bool)
    expected[2], expected[:, 7] = True, True
    assert torch.equal(changed, expected)
    with pytest.raises(CureError, match="2500 samples"):
        model(x[..., :2250])


def test_st_mem_takes_shorter_windows_of_whole_patches():
    model, x = tiny("st_mem"), example("st_mem")
    with torch.inference_mode():
        assert model(x[..., :75]).shape == (2, 12, 96)
    assert not model.pos_embedding[0, [0, -1]].any()
    assert model.pos_embedding[0, 1:-1].any(dim=1).all()
    for n_samples in (0, 700):
        with pytest.raises(CureError, match=f"multiple of 75 up to 2250 samples, not {n_samples}"):
            model(x[..., :n_samples])
    with pytest.raises(CureError, match="2325"):
        model(F.pad(x, (0, 75)))


def test_ecg_cpc_is_causal_and_takes_any_length():
    model, x = tiny("ecg_cpc"), torch.randn(1, 12, 601)
    y = x.clone()
    y[..., 400:] = 0
    with torch.inference_mode():
        one, two, longer = model(x), model(y), model(torch.randn(1, 12, 2700))
    assert one.shape == (1, 301, 64)
    torch.testing.assert_close(one[:, :199], two[:, :199], rtol=1e-4, atol=1e-5)
    assert (one[:, 201:] - two[:, 201:]).abs().max() > 0.1
    assert longer.shape == (1, 1350, 64)
    assert longer.isfinite().all()


def test_the_s4_kernel_is_the_impulse_response_of_hippo_legs():
    with seeded(0):
        kernel = S4Kernel(dim=3, n_states=8, length=40).eval()

    def states(pairs):
        half = torch.view_as_complex(pairs.detach().double()).numpy()
        return np.concatenate([half, half.conj()], axis=-1)

    with torch.no_grad():
        responses = kernel(70).double().numpy()  # longer than the stored C refers to
        assert torch.equal(kernel(9), kernel(70)[:, :9])
    for h in range(3):
        a = np.diag(states(kernel.w)[h]) - np.outer(states(kernel.P)[0, h], states(kernel.Q)[0, h])
        np.testing.assert_allclose(np.sort(np.linalg.eigvals(a).real), np.arange(-8, 0), atol=0.01)  # float32
        dt = float(kernel.log_dt[h].exp())
        assert 1e-3 <= dt <= 0.1
        b = states(kernel.B)[0, h][:, None]
        jump, entry, *_ = cont2discrete((a, b, np.zeros((1, 8)), np.zeros((1, 1))), dt, method="bilinear")
        stored = states(kernel.C)[0, h]
        c = np.linalg.solve((np.eye(8) - np.linalg.matrix_power(jump, 40)).T, stored)
        state, expected = entry[:, 0], []
        for _ in range(70):
            expected.append((c @ state).real)
            state = jump @ state
        np.testing.assert_allclose(responses[h], expected, atol=1e-6)


def test_fresh_s4_outputs_are_standard_normal_and_time_steps_log_uniform():
    with seeded(0):
        kernel = S4Kernel(dim=2000, n_states=8, length=100)
    with torch.no_grad():
        jump, _ = kernel._discrete()
        stored = torch.view_as_complex(kernel.C.double())[0]
        both = torch.cat([stored, stored.conj()], dim=-1)[:, None]
        c = torch.linalg.solve(kernel._rest(jump), both, left=False)[:, 0, :4]
    assert c.abs().square().mean() == pytest.approx(1.0, abs=0.05)
    assert c.mean().abs() < 0.05
    share = (kernel.log_dt - np.log(1e-3)) / np.log(100)
    assert share.min() >= 0
    assert share.max() <= 1
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.std() == pytest.approx(12**-0.5, abs=0.02)


def test_kept_s4_kernels_are_never_stale():
    model, x = tiny("ecg_cpc"), example("ecg_cpc")
    kernel = model.predictor["predictor"].s4_layers[0].kernel["kernel"]
    other = tiny("ecg_cpc", seed=1)

    def expected(source):
        again = TINY["ecg_cpc"]().eval()
        again.load_state_dict(source.state_dict())
        with torch.inference_mode():
            return again(x)

    with torch.inference_mode():
        before = model(x)
        assert kernel(300).data_ptr() == kernel(300).data_ptr()
    model.load_state_dict(other.state_dict())
    with torch.inference_mode():
        loaded = model(x)
    assert not torch.equal(loaded, before)
    assert torch.equal(loaded, expected(other))
    with torch.no_grad():
        kernel.C.mul_(2.0)
        kernel.log_dt.add_(0.5)
        assert torch.equal(model(x), expected(model))
    kernel.C.data *= 0.5  # past autograd's version counter
    with torch.inference_mode():
        assert torch.equal(model(x), expected(model))
        double = copy.deepcopy(model).double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected(model), rtol=1e-4, atol=1e-4)
    model.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    model.embed(inputs).sum().backward()  # with a kernel kept from before
    assert inputs.grad.any()


@pytest.mark.parametrize("name", TINY)
def test_published_layouts_load_strictly_and_unknown_names_stay(name):
    source = tiny(name, seed=1)
    state = dict(source.state_dict())
    layouts = [state]
    if name == "ecg_cpc":
        layouts.append({f"ts_encoder.{key}": value for key, value in state.items()})
    if name == "st_mem":
        rest = {"decoder_blocks.0.norm.weight": torch.ones(3), "to_decoder_embedding.bias": torch.ones(3)}
        full = {f"encoder.{key}": value for key, value in state.items()}
        layouts.append({**full, **rest, "mask_embedding": torch.ones(3)})
    for layout in layouts:
        model = tiny(name, seed=2)
        model.load_state_dict(model.accept(dict(layout)))
        assert model.weights_sha256() == source.weights_sha256()
        for unknown in ("surprise.weight", "encoder.surprise.weight"):
            with pytest.raises(RuntimeError, match=r"surprise\.weight"):
                model.load_state_dict(model.accept({**layout, unknown: torch.ones(1)}))
        missing = {
            key: value for key, value in layout.items() if not key.endswith("norm.bias") and ".0.1.bias" not in key
        }
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(model.accept(missing))


def test_windows_are_what_the_encoders_were_trained_on():
    t = np.arange(5000) / 500
    amplitudes = np.arange(1, 13, dtype=np.float32)
    x = (amplitudes[:, None] * np.sin(2 * np.pi * 10 * t) + 2.0)[None].astype(np.float32)  # mV, with an offset
    sine = np.sin(2 * np.pi * 10 * np.arange(2500) / 250)

    jepa = EcgJepa.input_spec.apply(x, 500)
    assert jepa.shape == (1, 1, 8, 2500)
    np.testing.assert_allclose(jepa[0, 0], amplitudes[[0, 1, 6, 7, 8, 9, 10, 11], None] * sine + 2.0, atol=1e-3)

    st_mem = StMem.input_spec.apply(x, 500)
    assert st_mem.shape == (1, 3, 12, 2250)
    np.testing.assert_allclose(st_mem.mean(axis=(2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(st_mem.std(axis=(2, 3)), 1.0, atol=1e-4)
    spread = st_mem[0, 1].std(axis=1)
    np.testing.assert_allclose(spread / spread[0], amplitudes, rtol=0.05)  # not lead by lead

    cpc = EcgCpc.input_spec.apply(x, 500)
    assert cpc.shape == (1, 4, 12, 600)
    middle = amplitudes[:, None] * np.sin(2 * np.pi * 10 * np.arange(600, 1200) / 240) + 2.0
    np.testing.assert_allclose(cpc[0, 1], middle, atol=0.05)

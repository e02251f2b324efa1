"""HuBERT-ECG, ECG-FM and ECG-JEPA (Weimann): equal to the published implementations, and the rest of their contract."""

import itertools
import json

import golden
import numpy as np
import pytest
import torch

from cure.errors import CureError
from cure.models.ecg_fm import EcgFm
from cure.models.hubert_ecg import HubertEcg, HubertSize
from cure.models.weimann_jepa import WeimannJepa, WeimannSize

HUBERT_TINY = HubertSize(dim=96, depth=3, heads=4, hidden=192, projection=32, vocabulary=50, channels=64)
ECG_FM_TINY = {"dim": 96, "depth": 3, "heads": 4, "hidden": 192, "channels": 64, "codes": 16, "projection": 32}
SMALL = HubertSize(dim=32, depth=2, heads=2, hidden=48, projection=8, vocabulary=10, channels=16)

BUILD = {
    "hubert_ecg.tiny.fill": lambda: HubertEcg(HUBERT_TINY),
    "hubert_ecg.small.fill": lambda: HubertEcg("small"),
    "hubert_ecg.base.fill": lambda: HubertEcg("base"),
    "hubert_ecg.large.fill": lambda: HubertEcg("large"),
    "ecg_fm.tiny.fill": lambda: EcgFm(**ECG_FM_TINY),
    "ecg_fm.full.fill": EcgFm,
    "kweimann_ecgjepa.vitxs.fill": lambda: WeimannJepa("xs"),
}
LITTLE = {
    "hubert": (lambda: HubertEcg(SMALL), (3, 6000)),
    "ecg_fm": (lambda: EcgFm(dim=32, depth=2, heads=2, hidden=48, channels=16, codes=4, projection=8), (3, 12, 2500)),
    "weimann": (lambda: WeimannJepa(WeimannSize(dim=32, depth=2, heads=2)), (3, 12, 5000)),
}


def little(name: str, seed: int = 0):
    build, shape = LITTLE[name]
    torch.manual_seed(seed)
    return build().eval(), torch.randn(shape)


@torch.inference_mode()
def outputs(model, x: np.ndarray, **modules) -> dict[str, torch.Tensor]:
    """What named modules put out (`*_input`: take in) on the way to the tokens, the tokens, and the embedding."""
    seen: dict[str, torch.Tensor] = {}

    def keep(key):
        return lambda _module, args, out: seen.update({key: args[0] if key.endswith("_input") else out})

    hooks = [module.register_forward_hook(keep(key)) for key, module in modules.items()]
    seen["tokens"] = model(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    seen["embedding_mean"] = model.embed(torch.from_numpy(x))
    return seen


def assert_outputs(mine: dict[str, torch.Tensor], stored: dict[str, np.ndarray], tokens: str, every: int = 1) -> None:
    """Every output with its namesake, then the tokens, every `every`-th of them."""
    for key, value in mine.items():
        if key not in ("tokens", "embedding_mean"):
            golden.assert_close(value.mean(dim=1) if key.endswith("_mean") else value, stored[f"out_{key}"], key)
    golden.assert_close(mine["tokens"][:, ::every], stored[f"out_{tokens}"], "tokens")
    golden.assert_close(mine["embedding_mean"], stored["out_embedding_mean"], "embedding")
    spread = mine["tokens"].std(dim=1).mean()
    assert spread > 0.3
    assert float(spread) == pytest.approx(float(stored["out_token_std"]), rel=1e-3)


@golden.here
@pytest.mark.parametrize("name", BUILD)
def test_names_shapes_and_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        golden.assert_same_names(BUILD[name](), name)


@golden.here
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_hubert_ecg_is_the_published_one(size):
    name = f"hubert_ecg.{size}.fill"
    model, stored = golden.fill(BUILD[name](), name), golden.arrays(name)
    np.testing.assert_array_equal(stored["x12"].reshape(2, -1), stored["x"])
    on_the_way = {"hidden0_mean": model.encoder.layer_norm}
    on_the_way |= {f"hidden{i}_mean": layer for i, layer in enumerate(model.encoder.layers, 1)}
    if size == "tiny":
        on_the_way |= {"conv_features": model.feature_extractor, "feature_projection": model.feature_projection}
    assert_outputs(outputs(model, stored["x"], **on_the_way), stored, "last_hidden_state")


@golden.here
def test_ecg_fm_is_the_published_one():
    name = "ecg_fm.tiny.fill"
    model, stored = golden.fill(BUILD[name](), name), golden.arrays(name)
    on_the_way = {
        "conv_features": model.feature_extractor,
        "local_features_layernorm": model.layer_norm,
        "encoder_input": model.encoder,
    }
    on_the_way |= {f"layer{i}_mean": layer for i, layer in enumerate(model.encoder.layers)}
    assert_outputs(outputs(model, stored["x"], **on_the_way), stored, "encoder_out")


@golden.here
def test_weimann_is_the_published_one():
    name = "kweimann_ecgjepa.vitxs.fill"
    model, stored = golden.fill(BUILD[name](), name), golden.arrays(name)
    assert_outputs(outputs(model, stored["x"]), stored, "tokens", every=4)


@golden.here
def test_ecg_fm_loads_the_published_names_of_a_fine_tuned_file():
    shapes = json.loads((golden.FOLDER / "ecg_fm.finetuned17.keys.json").read_text())
    shapes = shapes.get("state_dict", shapes)
    with torch.device("meta"):
        model = EcgFm()
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    model.load_state_dict(model.accept(state), assign=True)
    assert sum(p.numel() for p in model.parameters()) == 90_373_248


@pytest.mark.parametrize(("size", "n"), [("xs", 3_600_000), ("s", 14_277_888), ("b", 85_185_024)])
def test_weimann_sizes_have_the_stated_numbers_of_parameters(size, n):
    with torch.device("meta"):
        assert WeimannJepa(size).n_parameters() == n


@pytest.mark.parametrize(("name", "n_tokens"), [("hubert", 93), ("ecg_fm", 156), ("weimann", 200)])
def test_tokens_and_embedding(name, n_tokens):
    model, x = little(name)
    with torch.inference_mode():
        tokens = model(x)
        assert tokens.shape == (3, n_tokens, model.dim)
        torch.testing.assert_close(model.embed(x), tokens.mean(dim=1))
        torch.testing.assert_close(model(x[1:2]), tokens[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"), [("hubert", (2, 6000)), ("ecg_fm", (2, 12, 2500)), ("weimann", (2, 12, 5000))]
)
def test_input_spec_makes_the_input_of_a_record(name, shape):
    spec = little(name)[0].input_spec
    record = np.random.default_rng(0).standard_normal((2, 12, 5000)).astype(np.float32)
    x = spec.apply(record, 500, first=True)[:, 0]
    assert x.shape == shape
    assert np.isfinite(x).all()


@pytest.mark.parametrize("name", LITTLE)
def test_the_seed_decides_the_weights_and_layers_differ(name):
    one, again, other = little(name)[0], little(name)[0], little(name, seed=1)[0]
    assert one.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    matrices = [(key, value) for key, value in one.state_dict().items() if value.ndim > 1]
    for (key, value), (key2, value2) in itertools.combinations(matrices, 2):
        assert value.shape != value2.shape or not torch.equal(value, value2), f"{key} equals {key2}"


@pytest.mark.parametrize("name", LITTLE)
def test_nothing_is_left_uninitialised(name, monkeypatch):
    def poisoned(*size, **kwargs):
        return torch.full(size[0] if len(size) == 1 and not isinstance(size[0], int) else size, torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned)
    for key, value in little(name)[0].state_dict().items():
        assert value.isfinite().all(), key
        assert value.abs().max() < 10, key


@pytest.mark.parametrize("name", LITTLE)
def test_gradients_reach_all_that_takes_part(name):
    model, x = little(name)
    model.train()
    (model.embed(x) * torch.randn(model.dim)).sum().backward()
    apart = ("masked_spec_embed", "final_proj", "label_embedding", "mask_emb", "quantizer", "project_q")
    for key, parameter in model.named_parameters():
        if key.startswith(apart):
            assert parameter.grad is None, key
        elif not key.endswith("k_proj.bias"):  # softmax takes no notice of it
            assert parameter.grad.abs().max() > 1e-8, key


@pytest.mark.parametrize("name", LITTLE)
def test_other_weights_give_other_tokens_at_once(name):
    model, x = little(name)
    other = little(name, seed=1)[0]
    with torch.inference_mode():
        before = model(x)
        model.load_state_dict(other.state_dict())
        assert not torch.allclose(model(x), before)
        torch.testing.assert_close(model(x), other(x))


@pytest.mark.parametrize(("vocabularies", "heads"), [([10], 1), ([500], 1), ([7, 9], 2), ([], 0)])
def test_hubert_ecg_fits_its_heads_to_the_file(vocabularies, heads):
    model, x = little("hubert")
    body = {key: value for key, value in model.state_dict().items() if not key.startswith(("final_", "label_"))}
    file = dict(body)
    for i, n in enumerate(vocabularies):
        file |= {f"final_proj.{i}.weight": torch.randn(8, 32), f"final_proj.{i}.bias": torch.randn(8)}
        file[f"label_embedding.{i}.weight"] = torch.randn(n, 8)
    other = little("hubert", seed=1)[0].eval()
    other.load_state_dict(other.accept(file))
    assert len(other.final_proj) == len(other.label_embedding) == heads
    assert set(other.state_dict()) == set(file)
    with torch.inference_mode():
        torch.testing.assert_close(other(x), model(x))


def test_ecg_fm_takes_the_encoder_of_a_fine_tuned_file():
    model, x = little("ecg_fm")
    apart = ("mask_emb", "quantizer", "project_q", "final_proj")
    file = {f"encoder.{key}": value for key, value in model.state_dict().items() if not key.startswith(apart)}
    file |= {"proj.weight": torch.randn(17, 32), "proj.bias": torch.randn(17)}
    other = little("ecg_fm", seed=1)[0].eval()
    other.load_state_dict(other.accept(file))
    assert not any(hasattr(other, name) for name in apart)
    with torch.inference_mode():
        torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("name", [*LITTLE, "ecg_fm fine-tuned"])
def test_what_is_unknown_in_a_file_is_named(name):
    model, _ = little(name.split()[0])
    file = dict(model.state_dict())
    if name.endswith("fine-tuned"):
        file = {f"encoder.{key}": value for key, value in file.items()} | {"proj.bias": torch.zeros(2)}
    accepted = model.accept({**file, "proj.extra": torch.zeros(1), "adapter.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*adapter\.weight") as caught:
        model.load_state_dict(accepted)
    assert "proj.extra" in str(caught.value)


@pytest.mark.parametrize("name", LITTLE)
def test_what_is_missing_of_the_encoder_is_named(name):
    model, _ = little(name)
    file = dict(model.state_dict())
    gone = next(key for key in file if key.endswith(("layer_norm.weight", "norm.weight", "norm1.weight")))
    del file[gone]
    with pytest.raises(RuntimeError, match="Missing key") as caught:
        model.load_state_dict(model.accept(file))
    assert gone in str(caught.value)


def test_ecg_fm_takes_leads_that_are_absent():
    model, x = little("ecg_fm")
    only = torch.zeros_like(x)
    only[:, 1] = x[:, 1]
    with torch.inference_mode():
        tokens = model(only)
        assert tokens.isfinite().all()
        assert model(torch.zeros_like(x)).isfinite().all()
        assert not torch.allclose(tokens, model(x), atol=1e-2)


def test_weimann_tokens_of_some_patches_do_not_see_the_others():
    model, x = little("weimann")
    keep = torch.tensor([[3, 0, 150], [7, 8, 9], [199, 1, 2]])
    with torch.inference_mode():
        tokens = model.visible(x, keep)
        assert tokens.shape == (3, 3, model.dim)
        hidden = x.clone()
        for i, kept in enumerate(keep):
            mask = torch.ones(200, dtype=torch.bool)
            mask[kept] = False
            hidden[i].view(12, 200, 25)[:, mask] = 100.0
        torch.testing.assert_close(model.visible(hidden, keep), tokens)
        torch.testing.assert_close(model.visible(x, keep[:, [2, 0, 1]]), tokens[:, [2, 0, 1]], rtol=1e-4, atol=1e-5)
        everything = torch.arange(model.n_tokens).expand(3, -1)
        torch.testing.assert_close(model.visible(x, everything), model(x))
        assert not torch.allclose(model.visible(x.roll(25, dims=-1), keep), tokens, atol=1e-3)


def test_weimann_takes_shorter_windows_and_says_no_to_longer_ones():
    model, x = little("weimann")
    with torch.inference_mode():
        short = model(x[..., :1250])
        assert short.shape == (3, 50, model.dim)
        torch.testing.assert_close(short, model.visible(x, torch.arange(50).expand(3, -1)), rtol=1e-4, atol=1e-5)
        with pytest.raises(CureError, match="5025 samples is longer than the 5000"):
            model(torch.randn(1, 12, 5025))

"""Strategies of adaptation: what each one trains, and what it leaves as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import Residual, Small, small
from torch import nn

from cure import adapt, depth, lora, models, peft
from cure.adapt import choose, fit, macro_auroc
from cure.errors import CureError
from cure.finetune import Job
from cure.models import Encoder, InputSpec, ked, registry
from cure.models.base import seeded
from cure.models.ecg_cpc import EcgCpc
from cure.models.ecg_fm import EcgFm
from cure.models.ecg_jepa import EcgJepa
from cure.models.hubert_ecg import HubertEcg, HubertSize
from cure.models.net1d import Clef, EcgFounder, Shape
from cure.models.s4_classifier import S4Classifier
from cure.models.st_mem import StMem
from cure.models.weimann_jepa import WeimannJepa, WeimannSize
from cure.models.xresnet1d import XResNet1d101
from cure.networks import Classifier, Preview, stages
from cure.settings.adaptation import Adaptation
from cure.splits import Split
from cure.strategies import Strategy, adapted
from cure.training import Recipe

TINY = Shape(8, (8, 16, 16), (1, 2, 1), group=8)


def _shallow_vit() -> Encoder:
    encoder = models.load("merl-vit-tiny")
    for name in encoder._blocks[2:]:
        delattr(encoder, name)
    encoder._blocks = encoder._blocks[:2]
    return encoder


def _shallow_ked() -> Encoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ked, "_STAGES", tuple((1, 32, width, stride) for _, _, width, stride in ked._STAGES))
        return ked.Ked()


#: Every architecture, small where it comes in sizes; the shape of one record's input.
ZOO = {
    "leadcnn": (lambda: models.load("leadcnn"), (12, 300)),
    "resnet1d": (lambda: models.load("resnet1d"), (12, 300)),
    "resnet1d_wang": (lambda: models.load("resnet1d_wang"), (12, 200)),
    "vit1d": (lambda: models.load("vit1d"), (12, 1000)),
    "xresnet1d101": (lambda: XResNet1d101(depths=(1, 1, 2, 1)), (12, 300)),
    "s4": (lambda: S4Classifier(depth=2, length=60), (12, 60)),
    "ecgfounder": (lambda: EcgFounder(shape=TINY), (12, 640)),
    "ecgfounder-1lead": (lambda: EcgFounder(1, TINY), (1, 640)),
    "clef": (lambda: Clef("small"), (1, 640)),
    "hubert-ecg": (lambda: HubertEcg(HubertSize(32, 2, 2, 48, 8, 10, 16)), (6000,)),
    "ecg-fm": (lambda: EcgFm(32, 2, 2, 48, 16, 4, 8), (12, 640)),
    "ecg-jepa": (lambda: EcgJepa(dim=32, depth=2, heads=2), (8, 2500)),
    "st-mem": (lambda: StMem(dim=32, depth=2, heads=2, hidden=48), (12, 300)),
    "ecg-cpc": (lambda: EcgCpc(dim=16, depth=2), (12, 120)),
    "merl-resnet18": (lambda: models.load("merl-resnet18"), (12, 64)),
    "merl-vit-tiny": (lambda: _shallow_vit(), (12, 5000)),
    "ked": (lambda: _shallow_ked(), (12, 96)),
    "weimann-jepa": (lambda: WeimannJepa(WeimannSize(32, 2, 2)), (12, 500)),
}
#: Seconds of the input above.
SECONDS = {name: shape[-1] / build().input_spec.fs for name, (build, shape) in ZOO.items() if name != "hubert-ecg"}
PLAIN = Strategy("full", "e", "w", "mean", (1e-2,))
RECIPE = Recipe(2, 16, 1e-2)
SPLIT = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(name: str) -> Encoder:
    with seeded(0):
        return ZOO[name][0]().eval()


def example(name: str, n: int = 4) -> torch.Tensor:
    return torch.randn(n, *ZOO[name][1], generator=torch.Generator().manual_seed(1))


def problem(n=64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 12, 1000)).astype(np.float32), rng.random((n, 3)) < 0.5
    x[:, :3] *= np.where(y, 3, 0.3)[:, :, None]
    return x, y


def states(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and set(one) == set(other)


def classifier(strategy: Strategy, encoder: Encoder | None = None, seed: int = 0) -> Classifier:
    with seeded(7):
        starts = encoder or Residual().eval()
    return Job(strategy, SPLIT, seed, starts, "no", RECIPE).classifier(3)


# --- head first --------------------------------------------------------------------------------------------


def test_the_head_is_trained_first_and_weights_and_statistics_of_the_encoder_stay(tmp_path, monkeypatch):
    x, y = problem()
    model = classifier(adapted(replace(PLAIN, name="preview"), Adaptation(preview_epochs=3, preview_rate=0.02)))
    assert model.preview == Preview(3, 0.02)
    seen, real = [], adapt.train

    def watched(network, *arguments, **how):
        before = states(network)
        run = real(network, *arguments, **how)
        seen.append((before, states(network), len(run.history), arguments[2].rate))
        return run

    monkeypatch.setattr(adapt, "train", watched)
    result = fit(model, x, y, SPLIT, RECIPE, tmp_path / "state")
    (first, previewed, n_first, rate), (again, last, n_last, peak) = seen
    assert (n_first, rate, n_last, peak) == (3, 0.02, 2, 1e-2)
    moved = {name for name in first if not torch.equal(first[name], previewed[name])}
    assert moved == {"head.weight", "head.bias"}
    assert same(previewed, again)
    everything = {name for name in last if not torch.equal(last[name], again[name])}
    assert everything == set(last)
    assert result["previewed"].tolist() == [3] and result["epochs"].tolist() == [2]
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_a_preview_of_part_of_a_network_leaves_the_other_part_frozen_afterwards():
    model = classifier(replace(PLAIN, name="bitfit", preview=Preview(1, 0.1)))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with model.head_only():
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
        model.train()
        assert not model.encoder.training
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_an_interrupted_preview_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    x, y = problem()
    strategy = replace(PLAIN, name="preview+depth", preview=Preview(2, 0.02), drop_path=0.5)
    whole = fit(classifier(strategy), x, y, SPLIT, RECIPE, tmp_path / "whole")
    real, calls = adapt.logits, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*arguments)

    for stop in (2, 4):  # in the second epoch of the head alone, and of all
        calls.clear()
        monkeypatch.setattr(adapt, "logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(classifier(strategy), x, y, SPLIT, RECIPE, tmp_path / f"{stop}")
        monkeypatch.setattr(adapt, "logits", real)
        resumed = fit(classifier(strategy), x, y, SPLIT, RECIPE, tmp_path / f"{stop}")
        np.testing.assert_array_equal(resumed["score"], whole["score"])


# --- stochastic depth --------------------------------------------------------------------------------------


def test_at_rate_zero_it_is_plain_fine_tuning_bit_for_bit(tmp_path):
    x, y = problem()
    ends = []
    for name, rate in (("full", 0.0), ("depth", 0.0), ("depth", 0.5)):
        model = classifier(replace(PLAIN, name=name, drop_path=rate))
        fit(model, x, y, SPLIT, RECIPE, tmp_path / f"{name}-{rate}")
        ends.append(states(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_a_dropped_branch_has_the_right_expectation_and_is_all_or_nothing():
    branch = torch.randn(20_000, 2, 3)
    with seeded(0):
        found = depth.dropped(branch, 0.3)
    ratio = found / branch
    kept = ratio[:, 0, 0] > 0
    torch.testing.assert_close(ratio, torch.where(kept, 1 / 0.7, 0.0)[:, None, None].expand_as(ratio))
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_of_every_architecture_keep_their_identity_and_names_and_are_whole_in_evaluation(name):
    plain, encoder, x = built(name), built(name), example(name)
    rates = depth.stochastic_depth(encoder, 0.5)
    np.testing.assert_allclose(rates, 0.5 * np.arange(1, len(rates) + 1) / len(rates))
    # A checkpoint of the original loads, and in evaluation mode nothing happens.
    assert encoder.load_state_dict(plain.state_dict()).missing_keys == []
    assert encoder.weights_sha256() == plain.weights_sha256()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), plain(x), rtol=1e-4, atol=1e-5)
    # With every branch left out, the encoder is that of branches that are zero.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "dropped", lambda branch, rate: branch * 0)
        emptied = encoder.train()(x)
    # Parts that are no residual branch see training mode in both.
    assert emptied.isfinite().all()
    assert len(depth.residual_blocks(encoder)) == len(rates)
    encoder.eval()
    with torch.inference_mode():
        assert not torch.allclose(emptied, encoder(x))


class _Zero(nn.Module):
    def forward(self, *_):
        return torch.zeros(())


@pytest.mark.parametrize("name", ["leadcnn", "resnet1d", "hubert-ecg", "ecg-fm", "ecg-jepa", "st-mem", "weimann-jepa"])
def test_a_block_without_its_branches_is_its_identity_path(name, monkeypatch):
    encoder = built(name)
    depth.stochastic_depth(encoder, 0.5)
    monkeypatch.setattr(depth, "dropped", lambda branch, rate: branch * 0)
    without = built(name)
    for block in depth.residual_blocks(without):
        for branch in next(names for kind, names in depth._BRANCHES.items() if isinstance(block, kind)):
            parent, _, child = branch.rpartition(".")
            setattr(block.get_submodule(parent) if parent else block, child, _Zero())
    x = example(name)
    for norm in (m for one in (encoder, without) for m in one.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.momentum = 0.0
    encoder.train(), without.train()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), without(x), rtol=1e-4, atol=1e-5)


def test_net1d_and_s4_take_their_branch_apart_from_the_identity(monkeypatch):
    founder, s4 = built("ecgfounder"), built("s4")
    monkeypatch.setattr(depth, "dropped", lambda branch, rate: branch * 0)
    for encoder in (founder, s4):
        depth.stochastic_depth(encoder, 0.5)
        encoder.train()
    x = torch.randn(3, 8, 40)
    block = founder.stage_list[0].block_list[0]
    torch.testing.assert_close(block(x), block.shortcut(x))
    layer, x = s4.layers[0], torch.randn(3, 512, 40)
    torch.testing.assert_close(layer(x), layer.norm.forward(x.mT).mT)
    # Half of the branch, half of the change: the sum in front of the norm is linear in it.
    monkeypatch.setattr(depth, "dropped", lambda branch, rate: branch)
    layer.eval()
    whole = layer(x)
    layer.train()
    layer.drop.eval()
    torch.testing.assert_close(layer(x), whole, rtol=1e-4, atol=1e-5)


def test_records_are_dropped_one_by_one_and_reproducibly():
    encoder = Residual().eval()
    depth.stochastic_depth(encoder, 0.9)
    encoder.block.train()
    x = torch.randn(40, 16, 20)
    encoder.block.residual.eval()  # its mode decides, and its statistics
    torch.testing.assert_close(encoder.block(x), x + encoder.block.residual(x))
    encoder.block.residual.training = True
    with seeded(3):
        one = encoder.block(x)
    with seeded(3):
        again = encoder.block(x)
    torch.testing.assert_close(one, again)
    untouched = (one == x).flatten(1).all(dim=1)
    assert 0.7 < float(untouched.float().mean()) < 1


def test_an_encoder_without_residual_blocks_says_so():
    with pytest.raises(CureError, match="Small has no residual block that cure/depth"):
        classifier(replace(PLAIN, name="depth", drop_path=0.1), small())


# --- few parameters ----------------------------------------------------------------------------------------


def test_biases_norms_and_updates_are_what_moves_and_statistics_stay(tmp_path):
    x, y = problem()
    moving = {
        "bitfit": lambda name: name.endswith("bias"),
        "layernorm": lambda name: (name.split(".")[-2] in ("0", "3") and "block" in name) or ".1." in name,
        "lora": lambda name: name.endswith((".up", ".down")),
    }
    for name, moves in moving.items():
        model = classifier(replace(PLAIN, name=name, rank=2))
        before = states(model)
        fit(model, x, y, SPLIT, RECIPE, tmp_path / name)
        moved = {key for key, was in before.items() if not torch.equal(was, model.state_dict()[key])}
        assert {"head.weight", "head.bias"} <= moved
        encoder = {key for key in moved if key.startswith("encoder.")}
        assert encoder and all(moves(key) for key in encoder), (name, encoder)
        assert not any("running" in key or "num_batches" in key for key in encoder)


def test_what_takes_no_part_is_not_trained():
    encoder = built("ecg-fm")
    part = peft.taking_part(encoder, SECONDS["ecg-fm"])
    assert not any(name.startswith(("quantizer", "final_proj", "project_q", "mask_emb")) for name in part)
    assert all(name in part for name, _ in encoder.encoder.named_parameters(prefix="encoder"))
    with pytest.raises(CureError, match="'layernorm': EcgFounder has no normalisation"):
        peft.norms(built("ecgfounder"))
    with pytest.raises(CureError, match="'bitfit': WeimannJepa has no bias"):
        peft.biases(built("weimann-jepa"))


@pytest.mark.parametrize("name", ZOO)
def test_updates_start_at_zero_merge_exactly_and_let_checkpoints_load(name):
    plain, encoder, x = built(name), built(name), example(name)
    original = states(plain)
    names = lora.add_updates(encoder, 2, SECONDS.get(name))
    known = dict(encoder.named_parameters())
    assert names and names <= set(known)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), plain(x), rtol=1e-4, atol=1e-5)
        for key in names:
            known[key].normal_(std=0.1)
    with torch.no_grad():
        changed = encoder(x)
        assert not torch.allclose(changed, plain(x))
    # The names of the original still load; its weights come, the updates stay.
    moved = {key: value + 1 if value.is_floating_point() else value for key, value in original.items()}
    assert encoder.load_state_dict(moved).unexpected_keys == []
    assert encoder.load_state_dict(original).missing_keys == []
    saved = states(encoder)
    assert encoder.load_state_dict(saved).unexpected_keys == []
    lora.merge(encoder)
    assert set(encoder.state_dict()) == set(original)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), changed, rtol=0, atol=0)


def test_the_rank_bounds_the_update():
    update = lora.LowRank(torch.zeros(10, 3, 4), 2)
    nn.init.normal_(update.up)
    assert torch.linalg.matrix_rank(update(torch.zeros(10, 3, 4)).flatten(1)) == 2
    assert lora.LowRank(torch.zeros(10, 1, 1), 8).down.shape == (1, 1)


# --- every architecture ------------------------------------------------------------------------------------

#: `full`, `preview` and `depth` are parts of the second and third.
WORDS = ["last-1", "full+decay", "preview+depth", "bitfit", "layernorm", "lora"]
#: What an architecture has not: a bias, a normalisation that takes part.
LACKS = {
    ("weimann-jepa", "bitfit"),
    ("ecgfounder", "layernorm"),
    ("ecgfounder-1lead", "layernorm"),
    ("clef", "layernorm"),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_takes_every_strategy(name, tmp_path):
    x, how = example(name, 10).numpy(), Adaptation(preview_epochs=1, drop_path=0.5, dropout=0.1)
    y = np.arange(30).reshape(10, 3) % 4 < 2
    split = Split("s", np.arange(4), np.arange(4, 7), np.arange(7, 10))
    encoder = built(name)
    for word in WORDS:
        if (name, word) in LACKS:
            continue
        one = adapted(replace(PLAIN, name=word, window_s=SECONDS.get(name)), how)
        one = replace(one, decay=0.7 if word == "full+decay" else 1.0, rates=(1e-3,))
        job = Job(one, split, 0, encoder, "no", Recipe(1, 4, 1e-3))
        if one.window_s is not None:
            assert job.classifier(3).window == x.shape[-1]
        job = replace(job, strategy=replace(one, window_s=None)) if word == "full+decay" else job
        result = job.run(x, y, tmp_path / word)
        assert np.isfinite(result["score"]).all() and result["score"].shape == (3, 3), word


def test_every_encoder_that_there_is_has_its_residual_blocks_in_order():
    for name in registry.names():
        with torch.device("meta"):
            encoder = {**registry.OWN, **registry.PUBLISHED}[name]()
        blocks = depth.residual_blocks(encoder)
        assert len(blocks) >= 2, name
        assert len(stages(encoder)) >= 3


# --- what decides, dropout, the head afterwards --------------------------------------------------------------


def test_validation_auroc_can_decide(tmp_path, monkeypatch):
    x, y = problem()
    values = iter([0.6, 0.9, 0.7])
    monkeypatch.setattr(adapt, "macro_auroc", lambda *_: next(values))
    model = classifier(replace(PLAIN, judged_by="auroc"))
    result = fit(model, x, y, SPLIT, replace(RECIPE, epochs=3), tmp_path / "state")
    assert result["kept"].tolist() == [2]
    assert result["lowest"][0] == pytest.approx(0.1)
    assert str(result["judged_by"]) == "1 - macro AUROC"
    assert (result["validation"] > 0.2).all()  # the loss all the same


def test_the_macro_is_over_tasks_with_both_classes():
    y = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0], [0, 1, 0]], bool)
    score = np.array([[3, 0, 0], [2, 0, 1], [4, 0, 2], [1, 0, 0]], float)
    assert macro_auroc(y, score, "s") == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(CureError, match="s: no task has both classes among the validation records"):
        macro_auroc(y[:, 1:2], score, "s")


def test_dropout_acts_on_what_the_head_reads_in_training_only():
    model = classifier(replace(PLAIN, dropout=0.5))
    nn.init.ones_(model.head.weight)
    x = torch.randn(4, 12, 500)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model.eval()(x))
        model.train()
        model.encoder.eval()
        assert not torch.equal(model(x), model(x))


def test_a_head_that_is_fitted_afterwards_reads_the_network_that_was_kept(tmp_path):
    x, y = problem()
    make = lambda: classifier(PLAIN)  # noqa: E731
    split = replace(SPLIT, train=np.tile(SPLIT.train, 2))
    result = choose(make, (1e-2,), x, y, split, RECIPE, tmp_path / "state", refit=True)
    plain = choose(make, (1e-2,), x, y, split, RECIPE, tmp_path / "other")
    np.testing.assert_array_equal(result["score"], plain["score"])
    assert "refit_score" not in plain
    assert result["refit_score"].shape == result["score"].shape
    right = (result["refit_score"] > 0.5) == y[SPLIT.test]
    assert right.mean() > 0.9


def test_settings_of_adaptation_reach_the_training():
    how = Adaptation(dropout=0.2, drop_path=0.4, preview_epochs=7, preview_rate=0.1, rank=9, judged_by="auroc")
    both = adapted(replace(PLAIN, name="preview+depth"), how)
    assert (both.preview, both.drop_path, both.dropout, both.judged_by) == (Preview(7, 0.1), 0.4, 0.2, "auroc")
    assert adapted(replace(PLAIN, name="lora"), how).rank == 9
    plain = adapted(PLAIN, how)
    assert (plain.preview, plain.drop_path, plain.rank) == (None, 0.0, 0)
    assert Adaptation(rank=3).model_dump() == {"rank": 3}


def test_the_spec_of_an_encoder_makes_the_input_that_finds_its_parts():
    class Short(Small):
        input_spec = InputSpec(fs=100, seconds=2)

    assert peft.taking_part(Short().eval()) == {name for name, _ in Short().named_parameters()}

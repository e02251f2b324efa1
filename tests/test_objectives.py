import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cure import augment, models, objectives
from cure.config import check
from cure.errors import CureError
from cure.models import Encoder, InputSpec
from cure.models.base import seeded
from cure.models.weimann_jepa import WeimannJepa, WeimannSize
from cure.objectives import OBJECTIVES, Batch
from cure.settings.pretrain import PretrainConfig
from cure.training import Recipe, train

N, LEADS, SAMPLES, TOKENS = 12, 3, 400, 20


class Toy(Encoder):
    """20 tokens of 20 samples each, which know nothing of each other, normalised over the batch; any length."""

    input_spec = InputSpec(fs=100, seconds=4, leads=("I", "II", "III"))
    dim = 8

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv1d(LEADS, self.dim, 20, stride=20)
        self.norm = nn.BatchNorm1d(self.dim)

    def forward(self, x):
        return self.norm(self.patches(x).tanh()).transpose(1, 2)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(augment, "VIEW_SECONDS", 2.0)
    monkeypatch.setattr(objectives, "VIEW_SECONDS", 2.0)
    yield
    torch.set_num_threads(threads)


def settings(**changes):
    base = {"profile": "demo", "weights": ["ssl-folds"], "epochs": 1, "n_simulated": 200}
    return check(PretrainConfig, **{**base, **changes})


def build(name, encoder=Toy, **changes):
    with seeded(3):
        return OBJECTIVES[name](encoder().eval(), settings(**changes))


def batch(seed=0, n=N):
    """Records 0 and 1 are one patient's, and each other's mate; the last has no median beat."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, LEADS, SAMPLES)).cumsum(axis=2).astype(np.float32) / 10)
    patient = torch.arange(n)
    patient[1] = 0
    mate = x.clone()
    mate[0], mate[1] = x[1], x[0]
    known = torch.ones(n, dtype=torch.bool)
    known[-1] = False
    return Batch(x, mate, patient, torch.from_numpy(rng.standard_normal((n, 52)).astype(np.float32)), known)


# --- all of them ----------------------------------------------------------------------------------------


def test_settings_and_objectives_know_the_same_names():
    for name in OBJECTIVES:
        assert settings(objective=name, families=[name]).objective == name
    with pytest.raises(CureError, match="objective: Input should be 'contrastive\\+beat', 'contrastive'"):
        settings(objective="simclr")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_few_dozen_steps_lower_the_loss_of_a_batch(name):
    model, given = build(name), batch()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    model.train()
    for i in range(60):
        found = model.losses(given, np.random.default_rng(i % 3))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        model.after_step()
        losses.append(found["loss"].item())
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    assert set(model.uninformed(given)) <= set(found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_encoder_learns_and_chance_comes_from_the_generator_alone(name):
    model, given = build(name).train(), batch()
    one, two = (model.losses(given, np.random.default_rng(5))["loss"] for _ in range(2))
    assert one.item() == two.item()
    one.backward()
    assert model.encoder.patches.weight.grad.abs().max() > 0


# --- contrast -------------------------------------------------------------------------------------------


def slow_nt_xent(one, two, temperature, patient):
    z = functional.normalize(torch.cat([one, two]).detach(), dim=1)
    n, owner, total = len(one), torch.cat([patient, patient]), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if owner[k] != owner[i]]
        scores = {k: math.exp(z[i] @ z[k] / temperature) for k in [j, *others]}
        total -= math.log(scores[j] / sum(scores.values()))
    return total / (2 * n)


@pytest.mark.parametrize("owners", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [7, 7, 8, 8, 9]])
def test_nt_xent_is_its_formula_and_one_patient_is_never_a_negative(owners):
    rng = np.random.default_rng(0)
    one, two = (torch.from_numpy(rng.standard_normal((5, 3))) for _ in range(2))
    patient = torch.tensor(owners)
    expected = slow_nt_xent(one, two, 0.5, patient)
    assert objectives.nt_xent(one, two, 0.5, patient).item() == pytest.approx(expected, rel=1e-5)
    if len(set(owners)) == 5:
        assert objectives.nt_xent(one, two, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_of_views_that_look_alike_is_chance():
    same = torch.ones(8, 3)
    assert objectives.nt_xent(same, same, 0.1).item() == pytest.approx(math.log(15), rel=1e-5)
    assert build("contrastive").uninformed(batch(n=8))["contrast"] == pytest.approx(math.log(15))


def test_the_default_draws_two_views_and_adds_the_weighted_beat_loss():
    """Written out step by step: the streams of random numbers are part of what a profile's seed promises."""
    model = build("contrastive+beat", encoder=lambda: models.load("leadcnn"), beat_weight=7.0)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((6, 12, 1000)).astype(np.float32))
    values, known = torch.from_numpy(rng.standard_normal((6, 52)).astype(np.float32)), torch.ones(6, dtype=torch.bool)
    known[2] = False
    found = model.losses(Batch(x, x, torch.arange(6), values, known), np.random.default_rng(9))
    rng = np.random.default_rng(9)
    views = augment.view(x, 100, 0.2, rng), augment.view(x, 100, 0.2, rng)
    means = [model.encoder(one.x, one.leads).mean(dim=1) for one in views]
    contrast = objectives.nt_xent(*(model.projector(mean) for mean in means), 0.1)
    errors = [functional.smooth_l1_loss(model.beat(mean)[known], values[known]) for mean in means]
    assert found["contrast"].item() == contrast.item()
    assert found["beat"].item() == pytest.approx((sum(errors) / 2).item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx((contrast + 7 * sum(errors) / 2).item(), rel=1e-5)
    zero = functional.smooth_l1_loss(torch.zeros_like(values[known]), values[known]).item()
    expected = {"contrast": pytest.approx(math.log(11)), "beat": pytest.approx(zero)}
    assert model.uninformed(Batch(x, x, torch.arange(6), values, known)) == expected


def test_records_of_a_patient_attract_each_other_and_nothing_else_changes():
    model, given = build("patient"), batch()
    found = model.losses(given, np.random.default_rng(2))["loss"]
    rng = np.random.default_rng(2)
    one, two = (model.projector(model._embedding(x, rng)) for x in (given.x, given.mate))
    assert found.item() == pytest.approx(slow_nt_xent(one, two, 0.1, given.patient), rel=1e-4)
    unrelated = Batch(given.x, given.x, torch.arange(N), given.values, given.known)
    plain = build("contrastive").losses(unrelated, np.random.default_rng(2))["loss"]
    assert model.losses(unrelated, np.random.default_rng(2))["loss"].item() == plain.item()


def test_an_encoder_that_takes_no_fewer_leads_gets_all_and_zeros_behind_a_crop(monkeypatch):
    for name in ("GAIN", "NOISE_MV", "WANDER_MV", "MASK"):
        monkeypatch.setattr(augment, name, 0.0)
    model, x, seen = build("contrastive"), 1 + torch.arange(400.0).repeat(N, LEADS, 1), []
    monkeypatch.setattr(model.encoder, "embed", lambda x: seen.append(x) or torch.zeros(N, 8))
    model.losses(Batch(x, x, torch.arange(N), None, None), np.random.default_rng(0))
    for view in seen:
        assert view.shape == x.shape
        assert (view[..., :200].diff() == 1).all()
        assert (view[..., 200:] == 0).all()
    assert not torch.equal(*seen)


# --- filling in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tokens", "share", "length", "count"), [(32, 0.6, 4, 5), (200, 0.6, 25, 5), (9, 0.9, 2, 4)])
def test_blocks_hide_as_many_in_every_record_and_never_all(n_tokens, share, length, count):
    hidden = objectives.blocks(50, n_tokens, share, length, np.random.default_rng(0))
    assert hidden.shape == (50, n_tokens)
    assert (hidden.sum(dim=1) == count * length).all()
    for row in hidden.int():
        edges = torch.cat([torch.zeros(1), row, torch.zeros(1)]).diff().nonzero()[:, 0].tolist()
        assert all((end - start) % length == 0 for start, end in zip(edges[::2], edges[1::2], strict=True))


def test_all_arrangements_of_blocks_are_equally_likely():
    hidden = objectives.blocks(6000, 7, 0.6, 2, np.random.default_rng(0))
    arrangements, counts = np.unique(hidden.numpy(), axis=0, return_counts=True)
    assert len(arrangements) == math.comb(5, 2)  # two blocks among five things
    assert abs(counts - 600).max() < 5 * math.sqrt(600)


@pytest.mark.parametrize("encoder", [Toy, lambda: WeimannJepa(WeimannSize(16, 1, 2))])
def test_the_encoder_does_not_see_what_is_hidden(encoder):
    model = build("jepa", encoder=encoder)
    spec, t = model.encoder.input_spec, model.n_tokens
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((3, len(spec.leads), round(spec.fs * spec.seconds))).astype(np.float32))
    hidden = objectives.blocks(3, t, 0.6, 3, rng)
    samples = model.samples(hidden, x.shape[2])
    assert torch.equal(samples, hidden.repeat_interleave(x.shape[2] // t, dim=1))
    spoiled = torch.where(samples[:, None], 1e3, x)
    with torch.inference_mode():
        seen = model.seen(x, hidden)
        torch.testing.assert_close(model.seen(spoiled, hidden), seen)
        changed = torch.where(samples[:, None], x, x + 1)
        assert not torch.allclose(model.seen(changed, hidden)[~hidden], seen[~hidden], atol=1e-3)


def test_an_encoder_that_can_leave_tokens_out_is_asked_to():
    model = build("jepa", encoder=lambda: WeimannJepa(WeimannSize(16, 1, 2)))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 12, 5000)).astype(np.float32))
    hidden = objectives.blocks(2, 200, 0.6, 25, np.random.default_rng(1))
    with torch.inference_mode():
        tokens = model.seen(x, hidden)
        for i in range(2):
            keep = (~hidden[i]).nonzero()[:, 0]
            expected = model.encoder.visible(x[i : i + 1], keep[None])[0]
            torch.testing.assert_close(tokens[i, keep], expected)
    assert (tokens[hidden] == 0).all()


def test_the_predictor_does_not_read_hidden_tokens_and_tells_places_apart():
    with seeded(0):
        predictor = objectives.Predictor(8, 5, TOKENS)
    tokens, hidden = torch.randn(2, TOKENS, 8), objectives.blocks(2, TOKENS, 0.5, 2, np.random.default_rng(0))
    told = predictor(tokens, hidden)
    torch.testing.assert_close(predictor(torch.where(hidden[..., None], 9.0, tokens), hidden), told)
    assert not torch.allclose(predictor(torch.where(hidden[..., None], tokens, 9.0), hidden), told, atol=1e-3)
    one, two = told[0][hidden[0]][:2]
    assert not torch.allclose(one, two, atol=1e-3)


class Tells(nn.Module):
    """A predictor that says what it was built to say."""

    def __init__(self, told):
        super().__init__()
        self.told = told

    def forward(self, tokens, hidden):
        return self.told(hidden) if callable(self.told) else self.told


def test_a_reconstruction_is_judged_by_hidden_samples_only():
    model, given = build("masked"), batch()
    patches = given.x.unflatten(2, (TOKENS, 20)).transpose(1, 2).flatten(2)  # (n, tokens, leads * samples)
    for told, expected in (
        (patches, 0.0),
        (lambda hidden: torch.where(hidden[..., None], patches, 99.0), 0.0),
        (lambda hidden: torch.where(hidden[..., None], patches + 2, patches), 4.0),
    ):
        model.decoder = Tells(told)
        found = model.losses(given, np.random.default_rng(0))
        assert found["loss"].item() == found["reconstruction"].item() == pytest.approx(expected, abs=1e-5)
    model.decoder = Tells(torch.zeros_like(patches))
    zero = np.mean([model.losses(given, np.random.default_rng(i))["loss"].item() for i in range(200)])
    assert zero == pytest.approx(model.uninformed(given)["reconstruction"], rel=0.05)


def test_records_that_are_no_multiple_of_a_token_are_reconstructed_to_their_end():
    model = build("masked", encoder=lambda: models.load("leadcnn"))
    assert (model.n_tokens, model.span, model.length) == (32, 32, 4)
    x = torch.randn(2, 12, 1000)
    padded = functional.pad(x, (0, 24)).unflatten(2, (32, 32)).transpose(1, 2).flatten(2)
    model.decoder = Tells(padded)
    given = Batch(x, x, torch.arange(2), None, None)
    assert model.losses(given, np.random.default_rng(0))["loss"].item() == pytest.approx(0, abs=1e-9)


def test_terms_of_spread_are_their_closed_forms():
    variance, covariance = objectives.spread_terms(torch.ones(6, 4))
    assert variance.item() == pytest.approx(1 - math.sqrt(1e-4))
    assert covariance.item() == 0
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert [term.item() for term in objectives.spread_terms(corners)] == [0, 0]
    twins = torch.tensor([[2.0, 2], [-2, -2]])  # variances and covariance 8
    assert [term.item() for term in objectives.spread_terms(twins)] == [0, 64]
    half = 0.5 * corners * math.sqrt(3 / 4)
    assert objectives.spread_terms(half)[0].item() == pytest.approx(1 - math.sqrt(0.25 + 1e-4))


def test_jepa_has_no_prediction_error_when_it_says_what_the_teacher_says():
    model, given = build("jepa"), batch()
    targets = model.targets(given.x)
    torch.testing.assert_close(targets.mean(dim=2), torch.zeros(N, TOKENS), rtol=0, atol=1e-5)
    torch.testing.assert_close(targets.var(dim=2, correction=0), torch.ones(N, TOKENS), rtol=0, atol=1e-2)
    model.predictor = Tells(lambda hidden: torch.where(hidden[..., None], targets, 99.0))
    found = model.losses(given, np.random.default_rng(0))
    assert found["prediction"].item() == 0
    expected = found["variance"] + 0.04 * found["covariance"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    model.predictor = Tells(torch.zeros_like(targets))
    zero = np.mean([model.losses(given, np.random.default_rng(i))["prediction"].item() for i in range(100)])
    assert zero == pytest.approx(model.uninformed(given)["prediction"], rel=0.02)


def test_the_teacher_gets_no_gradient_and_is_the_moving_average():
    model, given = build("jepa", ema=0.9), batch()
    model.train()
    for name, value in model.encoder.named_parameters():
        assert torch.equal(dict(model.teacher.named_parameters())[name], value)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    expected = [p.detach().clone() for p in model.teacher.parameters()]
    for i in range(3):
        optimizer.zero_grad()
        model.losses(given, np.random.default_rng(i))["loss"].backward()
        assert all(p.grad is None for p in model.teacher.parameters())
        optimizer.step()
        assert all(torch.equal(p, e) for p, e in zip(model.teacher.parameters(), expected, strict=True))
        model.after_step()
        students = [p.detach() for p in model.encoder.parameters()]
        expected = [(0.9 * e).add(s, alpha=1 - 0.9) for e, s in zip(expected, students, strict=True)]
    assert all(torch.equal(p, e) for p, e in zip(model.teacher.parameters(), expected, strict=True))
    assert not torch.equal(expected[0], students[0])
    assert model.learned() is model.teacher
    whole = model.teacher.patches(given.x).tanh()
    model.teacher.norm.momentum = 1.0
    model.losses(given, np.random.default_rng(0))
    torch.testing.assert_close(model.teacher.norm.running_mean, whole.mean(dim=(0, 2)))  # nothing is blanked for it


def test_the_teacher_survives_a_kill(tmp_path):
    given, recipe = batch(n=48), Recipe(3, 16, 1e-2, seed=1)

    def fit(model, file, stop_after=None):
        calls = []

        def step(rows, rng):
            calls.append(rows)
            if stop_after is not None and len(calls) > stop_after:
                raise KeyboardInterrupt
            some = Batch(given.x[rows], given.mate[rows], given.patient[rows], None, None)
            return model.losses(some, rng)

        return train(model, step, np.arange(48), recipe, file, after_step=model.after_step)

    whole, killed, resumed = (build("jepa") for _ in range(3))
    run = fit(whole, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, tmp_path / "c.pt", stop_after=4)
    again = fit(resumed, tmp_path / "c.pt")
    assert again.history.equals(run.history)
    assert again.core_seconds > 0
    start = build("jepa").teacher.state_dict()
    for name, value in whole.teacher.state_dict().items():
        assert torch.equal(resumed.teacher.state_dict()[name], value)
        assert not torch.equal(value, start[name])


# --- what comes next ------------------------------------------------------------------------------------


def test_info_nce_is_a_double_loop():
    rng = np.random.default_rng(0)
    told, true = (torch.from_numpy(rng.standard_normal((7, 4))) for _ in range(2))
    a, b = (functional.normalize(z, dim=1) for z in (told, true))
    total = 0.0
    for i in range(7):
        total -= math.log(math.exp(a[i] @ b[i] / 0.3) / sum(math.exp(a[i] @ b[j] / 0.3) for j in range(7)))
    assert objectives.info_nce(told, true, 0.3).item() == pytest.approx(total / 7, rel=1e-5)
    assert objectives.info_nce(true, true, 1e-3).item() == pytest.approx(0, abs=1e-6)


def test_chance_is_the_logarithm_of_the_number_of_candidates():
    alike, other = torch.ones(40, 8), torch.randn(40, 8)
    assert objectives.info_nce(other, alike, 0.1).item() == pytest.approx(math.log(40), rel=1e-5)
    rng = np.random.default_rng(0)
    told, true = (torch.from_numpy(rng.standard_normal((300, 512))) for _ in range(2))
    assert objectives.info_nce(told, true, 1.0).item() == pytest.approx(math.log(300), abs=0.01)
    model, given = build("cpc"), batch()
    with torch.no_grad():
        model.true.weight.zero_()
    assert model.losses(given, np.random.default_rng(0))["next"].item() == pytest.approx(
        model.uninformed(given)["next"], rel=1e-5
    )


def test_cpc_tells_the_next_window_from_those_before_it():
    model, given = build("cpc").eval(), batch()
    assert len(model.steps) == 4  # windows of 80 samples have no more tokens
    with torch.no_grad():
        whole = model.pairs(given.x)
        for window in range(5):
            x = given.x.clone()
            x[:, :, 80 * window : 80 * (window + 1)] += 5
            for k, ((told, true), (told_now, true_now)) in enumerate(zip(whole, model.pairs(x), strict=True)):
                same_told, same_true = (
                    (before == now).all(dim=1).unflatten(0, (N, 4)).all(dim=0).tolist()
                    for before, now in ((told, told_now), (true, true_now))
                )
                assert same_told == [end < window for end in range(4)], k
                assert same_true == [end + 1 != window for end in range(4)], k
        tokens = model.encoder(given.x).unflatten(1, (5, 4))  # this encoder's do not depend on the cuts
        for k, (_, true) in enumerate(whole):
            torch.testing.assert_close(true.unflatten(0, (N, 4)), model.true(tokens[:, 1:, k]))


def test_cpc_needs_an_encoder_that_takes_a_part_of_a_record():
    with pytest.raises(CureError, match="feeds windows of 2 s, but ViT1d needs whole records: choose another"):
        build("cpc", encoder=lambda: models.load("vit1d"))


def test_a_base_class_that_defines_nothing_says_so():
    model = objectives.Objective(Toy(), settings())
    for call in (lambda: model.losses(batch(), np.random.default_rng(0)), lambda: model.uninformed(batch())):
        with pytest.raises(CureError, match="Objective does not"):
            call()

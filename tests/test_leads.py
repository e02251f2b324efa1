"""Any leads: what is pooled, selected, masked and filled in, and that every objective learns with leads missing."""

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cure import lead_training, models
from cure.config import check, parameters
from cure.errors import CureError
from cure.leads import (
    CONFIGURATIONS,
    DERIVED,
    Augmentation,
    Augmented,
    OnLeads,
    complete,
    configuration,
    fewer,
    independent,
    mask,
    select,
    title,
)
from cure.models import leadgrid
from cure.models.leadgrid import COLUMNS, ROWS, LeadGrid, bins
from cure.objectives import OBJECTIVES, Batch
from cure.pretrain import write_weights
from cure.settings.pretrain import PretrainConfig
from cure.signals import LEADS

SUBSETS = st.sets(st.integers(0, 11), min_size=1).map(sorted)


@pytest.fixture(scope="module")
def grid() -> LeadGrid:
    """Not as initialised: statistics and matrices of leads that differ."""
    model = leadgrid.load()
    with torch.no_grad(), models.base.seeded(3):
        model.train()
        model(torch.randn(8, 12, 500))
    return model.eval()


def records(n: int, length: int = 500, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 12, length), dtype=np.float32))


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# --- the encoder ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 40))
def test_bins_cover_all_and_repeat_where_there_are_too_few(n, size):
    found = bins(n, size)
    assert len(found) == size
    assert all(0 <= a < b <= n for a, b in found)
    assert set().union(*(range(a, b) for a, b in found)) == set(range(n))
    x = torch.randn(1, 1, n)
    expected = nn.functional.adaptive_avg_pool1d(x, size)[0, 0]
    torch.testing.assert_close(torch.stack([x[0, 0, a:b].mean() for a, b in found]), expected)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(4, 1100), leads=SUBSETS)
def test_any_leads_and_any_length_give_the_same_grid(grid, length, leads):
    with torch.inference_mode():
        x = records(1, length)[:, leads]
        assert grid(x, leads).shape == (1, COLUMNS, grid.dim)
        assert grid.stem(x[:, :1]).shape[-1] == grid.map_length(length)


@pytest.mark.parametrize(("length", "columns"), [(4, 1), (500, 32), (501, 32), (502, 32), (503, 32), (1000, 63)])
def test_columns_of_the_map_by_length(grid, length, columns):
    assert grid.map_length(length) == columns


def test_parameters_are_the_same_for_both_poolings_and_all_twelve_leads_give_one_function(grid):
    fixed = LeadGrid("fixed").eval()
    fixed.load_state_dict(grid.state_dict())
    assert fixed.n_parameters() == grid.n_parameters()
    with torch.inference_mode():
        close(fixed(records(3)), grid(records(3)))
        assert fixed(records(1, 1000)).shape[1] > COLUMNS, "windows of one size give more columns"


def test_fixed_pooling_refuses_fewer_leads_and_less_than_a_column():
    assert LeadGrid("fixed").eval()(records(1, 20)).shape[1] == 1
    with pytest.raises(CureError, match="19 samples are too few for LeadGrid: give it 20 or more"):
        LeadGrid("fixed")(records(1, 19))
    with pytest.raises(CureError, match="all twelve leads, not 3: zero-fill"):
        LeadGrid("fixed")(records(1)[:, :3], [0, 1, 2])
    with pytest.raises(CureError, match="the same twelve leads of every record"):
        LeadGrid("fixed")(records(1)[:, :1], torch.tensor([[0]]))


@settings(max_examples=20, deadline=None)
@given(leads=SUBSETS, seed=st.integers(0, 99))
def test_the_order_of_the_leads_does_not_matter_but_their_names_do(grid, leads, seed):
    order = np.random.default_rng(seed).permutation(leads).tolist()
    x = records(2)
    with torch.inference_mode():
        found = grid(x[:, leads], leads)
        close(grid(x[:, order], order), found)
        others = [(lead + 1) % 12 for lead in leads]
        if sorted(others) != leads:
            assert not torch.allclose(grid(x[:, leads], others), found, atol=1e-3)


def test_a_lead_in_too_few_rows_stands_in_several(grid):
    """With one lead, all rows of the grid are this lead's."""
    maps = torch.randn(2, 1, 64, 16)
    rows = grid._rows(maps).unflatten(1, (ROWS, 64))
    for i in range(ROWS):
        torch.testing.assert_close(rows[:, i], rows[:, 0])


@pytest.mark.parametrize(
    ("shape", "leads", "said"),
    [
        ((1, 2, 500), [0], "1 lead names for an input of 2 leads"),
        ((1, 2, 500), [3, 3], "name each lead once"),
        ((1, 0, 500), [], "at least one"),
        ((1, 1, 3), [0], "3 samples are too few"),
    ],
)
def test_what_does_not_fit_is_named(grid, shape, leads, said):
    with pytest.raises(CureError, match=said):
        grid(torch.zeros(shape), leads)


def test_every_record_needs_a_lead_of_its_own(grid):
    leads = torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(CureError, match="every record a lead"):
        grid(records(2)[:, :2], leads, torch.tensor([[True, True], [False, False]]))


def test_weights_survive_a_file_and_others_are_refused(grid, tmp_path):
    file = tmp_path / "w.safetensors"
    write_weights(grid, file, source="nobody", recipe={})
    again = leadgrid.load(file, pooling="fixed")
    assert again.weights_sha256() == grid.weights_sha256()
    assert again.pretraining == ("nobody",)
    write_weights(models.load("leadcnn"), file, source="nobody", recipe={})
    with pytest.raises(CureError, match="does not fit LeadGrid: entry"):
        leadgrid.load(file)
    with pytest.raises(CureError, match="make repro"):
        leadgrid.load(tmp_path / "none.safetensors")


# --- configurations and rules ---------------------------------------------------------------------------


def test_six_limb_leads_hold_two_and_twelve_hold_eight():
    found = {name: independent(configuration(name)) for name in CONFIGURATIONS}
    assert found == {"12": 8, "6": 2, "4": 3, "3": 3, "2": 2, "1": 1}
    assert independent(configuration("III+aVR+aVL")) == 2
    assert title("6") == "6 leads\n(2 independent)"
    assert title("I+V5") == "I+V5\n(2 independent)"


def test_leads_are_named():
    assert configuration("V2+I") == [0, 7]
    with pytest.raises(CureError, match="no lead 'V9'; choose from 12, 6, 4, 3, 2, 1, or leads joined"):
        configuration("I+V9")
    with pytest.raises(CureError, match="names a lead twice"):
        configuration("I+II+I")


def einthoven(n: int = 3, length: int = 40) -> np.ndarray:
    """Records that obey Einthoven and Goldberger, written out."""
    x = np.random.default_rng(1).standard_normal((n, 12, length))
    one, two = x[:, 0].copy(), x[:, 1].copy()
    x[:, 2], x[:, 3], x[:, 4], x[:, 5] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return x


def test_dependent_limb_leads_are_reconstructed_exactly():
    x = einthoven()
    np.testing.assert_allclose(complete(x, (0, 1), "reconstruct")[:, :6], x[:, :6], rtol=0, atol=1e-14)
    found = complete(x, (0, 1, 2, 7), "reconstruct")
    np.testing.assert_array_equal(found[:, [0, 1, 2, 7]], x[:, [0, 1, 2, 7]], "what was recorded stays as it is")
    np.testing.assert_allclose(found[:, 3:6], x[:, 3:6], rtol=0, atol=1e-14)
    assert not found[:, [6, 8, 9, 10, 11]].any()
    assert set(DERIVED) == {"III", "aVR", "aVL", "aVF"}


@settings(deadline=None)
@given(leads=SUBSETS)
def test_zero_fill_keeps_what_is_there_and_reads_nothing_else(leads):
    x = einthoven()
    x[:, [lead for lead in range(12) if lead not in leads]] = np.nan
    for rule in ("zero-fill", "reconstruct"):
        found = complete(x, leads, rule)
        np.testing.assert_array_equal(found[:, leads], x[:, leads])
        assert np.isfinite(found).all()
        if rule == "zero-fill" or not {0, 1} <= set(leads):
            assert not np.delete(found, leads, axis=1).any()


def test_a_cohort_of_fewer_leads_is_read_like_any_other(cohort):
    rows = np.arange(6)
    part = fewer(cohort, configuration("2"), "reconstruct")
    whole, some = cohort.signals(rows, 100), part.signals(rows, 100)
    np.testing.assert_array_equal(some[:, :2], whole[:, :2])
    np.testing.assert_allclose(some[:, 2:6], whole[:, 2:6], atol=0.0035)
    assert not some[:, 6:].any()
    assert part.info != cohort.info, "what is cached for one is not taken for the other"
    spec = models.load("clef-small").input_spec
    x = spec.read(fewer(cohort, configuration("1"), "zero-fill"), rows)
    missing = [i for i, name in enumerate(spec.leads) if name != "I"]
    assert not x[:, missing].any()


# --- selection and masking ------------------------------------------------------------------------------


def test_selection_is_the_sub_tensor_and_masking_keeps_the_shape(grid):
    x, stays = records(3), torch.zeros(3, 12, dtype=torch.bool)
    stays[:, [1, 4, 9]] = True
    shown = select(x, stays)
    assert list(shown.leads) == [1, 4, 9]
    torch.testing.assert_close(shown.x, x[:, [1, 4, 9]])
    hidden = mask(x, stays)
    assert hidden.shape == x.shape
    torch.testing.assert_close(hidden[:, [1, 4, 9]], x[:, [1, 4, 9]])
    assert not hidden[:, [0, 2, 3]].any()
    with torch.inference_mode():
        zeros = grid(hidden)
        left_out = grid(shown.x, shown.leads)
        assert not torch.allclose(zeros, left_out, atol=1e-3), "zeros are a signal, what is left out is not"
        x[:, [0, 2, 3, 5]] = 99
        close(grid(select(x, stays).x, [1, 4, 9]), left_out)


def test_leads_of_each_record_are_padded_and_padding_is_not_read(grid):
    x, stays = records(4), torch.zeros(4, 12, dtype=torch.bool)
    for i, leads in enumerate([[0], [0, 1, 7], [11, 2], list(range(12))]):
        stays[i, leads] = True
    shown = select(x, stays)
    assert shown.present is not None
    assert isinstance(shown.leads, torch.Tensor)
    assert shown.x.shape == (4, 12, 500)
    torch.testing.assert_close(shown.present.sum(dim=1), stays.sum(dim=1))
    assert not shown.x[~shown.present].any()
    poisoned = torch.where(shown.present[..., None], shown.x, torch.nan)
    with torch.inference_mode():
        found = grid(poisoned, shown.leads, shown.present)
        for i in range(4):
            leads = stays[i].nonzero()[:, 0].tolist()
            close(found[i : i + 1], grid(x[i : i + 1, leads], leads))


def test_how_many_leads_stay_is_uniform_and_which_too():
    with models.base.seeded(0):
        stays = Augmentation("selection", "record").draw(12_000)
    counts = stays.sum(dim=1)
    assert torch.bincount(counts, minlength=13)[1:].min() > 850
    share = stays.float().mean(dim=0)
    torch.testing.assert_close(share, torch.full((12,), 6.5 / 12), atol=0.02, rtol=0)
    pairs = stays[counts == 2].float()
    together = (pairs.T @ pairs).fill_diagonal_(0).sum() / 2 / len(pairs)
    assert together == 1
    assert len(torch.unique(pairs, dim=0)) == comb(12, 2)
    shared = Augmentation("masking", "batch").draw(5)
    assert (shared == shared[0]).all()
    assert Augmentation().draw(5).all()


def test_leads_are_dropped_in_training_only_and_the_same_from_the_same_seed(grid):
    model = Augmented(LeadGrid(), Augmentation("selection"))
    model.encoder.load_state_dict(grid.state_dict())
    x = records(3)
    with torch.inference_mode():
        close(model.eval()(x), grid(x))
    model.train()
    norms = [m.eval() for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms
    with torch.no_grad():
        close(model(x), grid(x))
    found = []
    for seed in (1, 1, 2):
        with models.base.seeded(seed):
            found.append(model(x).detach())
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_encoders_that_mix_leads_can_be_masked_but_not_selected_from():
    x = records(2, 1000)
    model = Augmented(models.load("resnet1d"), Augmentation("masking", "record")).train()
    assert model(x).shape == (2, 32, 256)
    with pytest.raises(CureError, match="ResNet1d mixes all leads in its first layer"):
        Augmented(models.load("resnet1d"), Augmentation("selection"))
    with pytest.raises(CureError, match="ResNet1d mixes all leads in its first layer"):
        Augmented(models.load("resnet1d"), Augmentation("none", leads=(0, 1)))
    assert Augmented(models.load("leadcnn"), Augmentation("selection")).train()(x).shape == (2, 32, 256)
    with pytest.raises(CureError, match="LeadCNN takes the same leads of every record: select per batch"):
        Augmented(models.load("leadcnn"), Augmentation("selection", "record"))


def test_an_encoder_bound_to_its_leads_is_that_encoder_on_them(grid):
    bound, x = OnLeads(grid, [0, 7]), records(2)[:, [0, 7]]
    with torch.inference_mode():
        close(bound(x), grid(x, [0, 7]))
    assert bound.input_spec.leads == ("I", "V2")
    assert [name for name in LEADS if name in bound.input_spec.leads] == ["I", "V2"]


# --- objectives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "record"])
@pytest.mark.parametrize("kind", ["selection", "masking"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_with_leads_missing(name, kind, per):
    config = check(PretrainConfig, **parameters("pretrain", "demo"))
    rng, n = np.random.default_rng(0), 4
    with models.base.seeded(0):
        model = lead_training.objective(name, leadgrid.load(), Augmentation(kind, per), config).train()
        batch = Batch(records(n, 1000), records(n, 1000, 1), torch.arange(n), torch.randn(n, 52), torch.ones(n) > 0)
        losses = model.losses(batch, rng)
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    encoder = model.encoder.encoder
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert encoder.stem[0].weight.grad.abs().sum() > 0
    model.after_step()
    assert isinstance(lead_training.learned(model), LeadGrid)


def test_the_teacher_of_jepa_sees_all_leads():
    config = check(PretrainConfig, **parameters("pretrain", "demo"))
    model = lead_training.objective("jepa", leadgrid.load(), Augmentation("selection"), config).train()
    seen = []
    model.teacher.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    model.encoder.encoder.register_forward_hook(lambda module, inputs, output: seen.append(-inputs[0].shape[1]))
    batch = Batch(records(2, 1000), records(2, 1000), torch.arange(2), torch.zeros(2, 52), torch.zeros(2) > 0)
    for seed in range(4):
        with models.base.seeded(seed):
            model.losses(batch, np.random.default_rng(seed))
    assert set(seen[1::2]) == {12}
    assert min(-one for one in seen[::2]) < 12


def test_views_have_no_zeros_behind_them():
    config = check(PretrainConfig, **parameters("pretrain", "demo"))
    model = lead_training.objective("contrastive", leadgrid.load(), Augmentation(), config)
    seen = []
    model.encoder.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2]))
    batch = Batch(records(2, 1000), records(2, 1000), torch.arange(2), torch.zeros(2, 52), torch.zeros(2) > 0)
    model.losses(batch, np.random.default_rng(0))
    assert seen == [500, 500]

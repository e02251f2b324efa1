import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cure import attribution, embed, faithfulness, models, removal
from cure import beat_attribution as ba
from cure.errors import CureError
from cure.faithfulness import AMPLITUDE, COMPARED, GAP, OVERLAP, RANDOM, RANKED, SIGNED, SPEARMAN, TWIN_SIGNED
from cure.plots import faithfulness as drawings
from cure.removal import SHARES
from cure.settings.faithfulness import FaithfulnessConfig
from cure.splits import make_splits


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Linear:
    """Log-odds of a weighted sum, as a probe scores them."""

    def __init__(self, weight):
        self.weight = weight

    def score(self, x):
        return (x * self.weight).sum(axis=(1, 2), dtype=float)


def signals(rng, n):
    """(n, 12, 100) records and (12, 100) weights."""
    return rng.normal(size=(n, 12, 100)).astype(np.float32), rng.normal(size=(12, 100)).astype(np.float32)


# --- taking bins away ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_what_is_removed_becomes_lines(seed, share):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, 40)).astype(np.float32)
    kept = rng.random(x.shape) >= share
    found = removal.emptied(x, kept)
    np.testing.assert_array_equal(found[kept], x[kept])
    at = np.arange(-1, 41)
    for i, lead in np.ndindex(2, 3):
        anchors = np.r_[True, kept[i, lead], True]
        values = np.r_[0, x[i, lead], 0]
        np.testing.assert_allclose(found[i, lead], np.interp(at, at[anchors], values[anchors])[1:-1], atol=1e-5)


def test_removal_agrees_with_segment_occlusion_and_everything_removed_is_the_baseline():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 12, 50)).astype(np.float32)
    codes = np.full((2, 50), -1, np.int8)
    codes[0, 10:20], codes[1, 5:9] = 3, 3
    kept = np.repeat((codes != 3)[:, None], 12, axis=1)
    np.testing.assert_allclose(removal.emptied(x, kept), attribution.without_segment(x, codes, 3), atol=1e-6)
    assert not removal.emptied(x, np.zeros_like(x, bool)).any()


def test_orders_start_with_the_highest_and_break_ties_at_random():
    score = np.array([[[3.0, 1.0], [2.0, 2.0]]])
    places = {tuple(removal.order(score, np.random.default_rng(seed)).ravel()) for seed in range(20)}
    assert places == {(0, 3, 1, 2), (0, 3, 2, 1)}
    many = np.random.default_rng(1).normal(size=(4, 12, 25))
    place = removal.order(many, np.random.default_rng(2)).reshape(4, -1)
    np.testing.assert_array_equal(place, np.argsort(np.argsort(-many.reshape(4, -1), axis=1), axis=1))


def test_curves_are_scores_of_what_is_left():
    rng = np.random.default_rng(3)
    x, weight = signals(rng, 3)
    probe, place = Linear(weight), removal.order(rng.random((3, 12, 25)), rng)
    found = removal.curves(probe, x, place, 100)
    for k, share in enumerate(SHARES):
        top = np.repeat(place < round(share * 300), 4, axis=2)
        np.testing.assert_allclose(found[:, 0, k], probe.score(removal.emptied(x, ~top)), rtol=1e-5)
        np.testing.assert_allclose(found[:, 1, k], probe.score(removal.emptied(x, top)), rtol=1e-5)


def test_deletion_is_insertion_backwards():
    rng = np.random.default_rng(4)
    x, weight = signals(rng, 3)
    place = removal.order(rng.random((3, 12, 25)), rng)
    assert pytest.approx(SHARES) == [1 - share for share in reversed(SHARES)]
    there = removal.curves(Linear(weight), x, place, 100)
    back = removal.curves(Linear(weight), x, 299 - place, 100)
    np.testing.assert_allclose(there[:, 0], back[:, 1, ::-1], rtol=1e-5)


def test_areas_have_their_closed_form():
    at = np.array([0, *SHARES, 1])
    assert removal.area(np.full(at.shape, 3.0)) == pytest.approx(3)
    assert removal.area(np.stack([at, 1 - 2 * at])) == pytest.approx([0.5, 0])


def test_the_order_of_true_contributions_beats_noise_and_its_reverse():
    rng = np.random.default_rng(5)
    x, weight = signals(rng, 30)
    probe, bins = Linear(weight), attribution.binned(weight * x, 100)
    gaps = {}
    for name, score in {"true": bins, "reverse": -bins, "size": np.abs(bins), "noise": rng.random(bins.shape)}.items():
        deletion, insertion = np.moveaxis(removal.curves(probe, x, removal.order(score, rng), 100), 1, 0)
        ends = np.stack([probe.score(x), np.zeros(30)])
        gaps[name] = removal.area(np.column_stack([ends[1], insertion, ends[0]])) - removal.area(
            np.column_stack([ends[0], deletion, ends[1]])
        )
    spread = gaps["true"].std()
    assert gaps["true"].min() > 0 > gaps["reverse"].max()
    assert gaps["true"].mean() > gaps["size"].mean() + 3 * spread
    assert abs(gaps["noise"].mean()) < spread


def test_occlusion_finds_the_lead_and_segment_that_count():
    x = np.ones((2, 12, 100), np.float32)
    weight = np.zeros((12, 100), np.float32)
    codes = np.full((2, 100), -1, np.int8)
    codes[0, 20:40], codes[0, 50:60] = 1, 3
    weight[6, 20:40] = 0.5
    x[0, 6, 20:40] = 2
    found = removal.occlusion(Linear(weight), x, codes)
    np.testing.assert_allclose(found[0, 6, 20:40], 0.5)  # from 2 to the line at 1
    assert found[0].sum() == pytest.approx(10) and not found[1].any()


# --- agreement -------------------------------------------------------------------------------------


def test_agreement_is_spearmans_and_an_overlap():
    rng = np.random.default_rng(6)
    sizes = rng.random((3, 4, 200))
    sizes[:, 1] = np.exp(sizes[:, 0])
    sizes[1, 3] = 0
    found = removal.agreement(sizes, np.random.default_rng(0))
    for i, a, b in np.ndindex(3, 3, 3):
        assert found[i, 0, a, b] == pytest.approx(spearmanr(sizes[i, a], sizes[i, b]).statistic)
        top = [set(np.argsort(sizes[i, k])[-20:]) for k in (a, b)]
        assert found[i, 1, a, b] == pytest.approx(len(top[0] & top[1]) / 20)
    assert (found[:, 1, 0, 1] == 1).all() and np.isnan(found[1, 0, 3]).all()


def test_agreement_of_noise_is_chance():
    found = removal.agreement(np.random.default_rng(7).random((60, 2, 3000)), np.random.default_rng(0))
    assert found[:, :, 0, 1].mean(axis=0) == pytest.approx([0, 0.1], abs=0.01)


# --- the stage -------------------------------------------------------------------------------------


def labels(cohort):
    known = cohort.binary()
    return known.y[:, known.names.index("NORM")]


@pytest.fixture(scope="module")
def stage(cohort):
    """Settings, cohort and splits, with embeddings and weights made on the spot; and what the stage found."""
    chosen = {"encoder": "leadcnn", "weights": "ssl-simulated", "tasks": ["NORM"]}
    config = FaithfulnessConfig(profile="none", n_records=2, steps=8, n_draws=100, **chosen)
    splits = make_splits(cohort.records, "official")
    names = (("ssl-simulated", 0), ("random", 0), ("random", 1))
    made = [embed.Representation("leadcnn", weights, seed) for weights, seed in names]

    def load(_config, one, _split=None, _cohort=None):
        return models.load(one.encoder, "random", one.seed + 5 * (one.weights == "random"))

    def read(_config, one, _pooling, _cohort, _split):
        spread = np.random.default_rng(one.seed).normal(size=(len(cohort), 256))
        return (spread + labels(cohort)[:, None]).astype(np.float32)

    hashes = {one: load(None, one).weights_sha256() for one in made}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "representations", lambda _: made)
        patch.setattr(embed, "load_encoder", load)
        patch.setattr(embed, "read_split", read)
        patch.setattr(embed, "read_sha256", lambda _, one, split: hashes[one])
        yield config, cohort, splits, faithfulness.study(config, cohort, splits)


def test_test_positives_are_deleted_and_both_classes_averaged(stage):
    _, cohort, splits, found = stage
    one = found["NORM"]
    y = labels(cohort)
    np.testing.assert_array_equal(y[one.rows], one.positive)
    assert np.isin(one.rows, splits[0].test).all() and one.positive.sum() == (~one.positive).sum() == 2
    curves = one.curves[one.positive]
    assert not np.isnan(curves).any() and np.isnan(one.curves[~one.positive]).all()
    np.testing.assert_array_equal(curves[:, :, 0, 0], curves[:, :, 1, -1])  # nothing deleted, everything inserted
    assert np.ptp(curves[:, :, 0, 0], axis=1).max() == 0
    assert np.ptp(curves[:, :, 0, -1]) == 0  # all leads flat
    here = one.agreement[one.positive]
    np.testing.assert_allclose(here, here.swapaxes(2, 3))
    np.testing.assert_allclose(here[:, 0, np.arange(9), np.arange(9)], 1)


def test_tables_are_tidy_and_the_same_again(stage):
    config, cohort, splits, found = stage
    again = faithfulness.study(config, cohort, splits)
    for make in (
        faithfulness.curves_table,
        faithfulness.areas_table,
        faithfulness.agreement_table,
        faithfulness.beats_table,
    ):
        table = make(config, cohort, found)
        pd.testing.assert_frame_equal(table, make(config, cohort, again))
        assert (table[["cohort", "encoder", "weights", "task"]].nunique() == 1).all()
        assert not table["supported"].any() and table["lo"].isna().all()  # two records
    agreement = faithfulness.agreement_table(config, cohort, found)
    assert len(agreement) == len(COMPARED) * (len(COMPARED) - 1)
    areas = faithfulness.areas_table(config, cohort, found)
    assert areas["p_holm"].isna().all()
    assert faithfulness.answer(areas) == "* **NORM**: not known, only 2 test records that list it were explained."


def made_up(n=30, seed=8):
    """Curves in which the signed order is far better than the random one, and the twin's is not."""
    rng = np.random.default_rng(seed)
    curves = rng.normal(size=(n, len(RANKED), 2, len(SHARES) + 2)) * 0.1
    curves[:, RANKED.index(SIGNED), 1] += 1
    shape = n, 2, len(COMPARED), len(COMPARED)
    maps, wave = rng.normal(size=(n, 4, 12, len(ba.MS))), rng.normal(size=(n, 12, 270)).astype(np.float32)
    return faithfulness.Tested(np.arange(n), np.ones(n, bool), curves, rng.random(shape), maps, wave)


def test_answers_name_what_was_beaten(cohort):
    settings_ = {"encoder": "e", "weights": "w", "tasks": ["CD"], "n_draws": 2000}
    config = FaithfulnessConfig(profile="none", **settings_)
    table = faithfulness.areas_table(config, cohort, {"CD": made_up()})
    row = table[(table["method"] == SIGNED) & (table["metric"] == GAP)].set_index("comparator")
    assert row.loc[RANDOM, "value"] == pytest.approx(1, abs=0.1) and row.loc[RANDOM, "p_holm"] < 0.05
    assert list(row.index.dropna()) == [RANDOM, TWIN_SIGNED, AMPLITUDE]
    lines = faithfulness.answer(table).splitlines()
    assert lines[0].endswith("signed: better than the random order, its untrained twin, the signal amplitude.")
    assert len(lines) == 3 and "better" not in "".join(lines[1:])
    worse = faithfulness.answer(table.assign(value=-table["value"]))
    assert "signed: worse than the random order" in worse
    only = table[table["metric"] != GAP]
    assert only["p_holm"].isna().all()
    view = faithfulness.areas_view(table)
    assert view.shape == (len(RANKED), 2) and view.loc[RANDOM, ("CD", "less random order")] == ""
    assert "p = " in view.loc[SIGNED, ("CD", "less random order")]


def test_records_without_segments_do_not_count_in_agreement(cohort):
    one = made_up(12)
    at = COMPARED.index(faithfulness.OCCLUSION)
    one.agreement[:4, 0, at] = one.agreement[:4, 0, :, at] = np.nan
    config = FaithfulnessConfig(profile="none", encoder="e", weights="w", tasks=["CD"], n_draws=100)
    table = faithfulness.agreement_table(config, cohort, {"CD": one}).set_index(["metric", "method", "compared_with"])
    row = table.loc[(SPEARMAN, COMPARED[0], faithfulness.OCCLUSION)]
    assert row["n"] == 8 and not row["supported"] and np.isnan(row["lo"])
    assert row["value"] == pytest.approx(one.agreement[4:, 0, 0, at].mean())
    assert table.loc[(OVERLAP, COMPARED[0], faithfulness.OCCLUSION), "n"] == 12


def test_a_profile_without_two_twins_or_such_a_task_is_an_error(stage, monkeypatch):
    config, cohort, splits, _ = stage
    with pytest.raises(CureError, match="'XYZ' is no binary task"):
        faithfulness.study(config.model_copy(update={"tasks": ["XYZ"]}), cohort, splits)
    none = [dataclasses.replace(splits[0], test=np.flatnonzero(~labels(cohort)))]
    with pytest.raises(CureError, match="no test record lists NORM: leave it out of section faithfulness of 'none'"):
        faithfulness.study(config, cohort, none)
    random = config.model_copy(update={"weights": "random"})
    with pytest.raises(CureError, match=r"needs two initialisations of leadcnn besides .* extracts 1: add the encoder"):
        faithfulness.untrained_pair(random)


def test_figures_show_every_panel(stage, tmp_path):
    config, cohort, _, found = stage
    curves, areas = (make(config, cohort, found) for make in (faithfulness.curves_table, faithfulness.areas_table))
    figure = drawings.removal(curves, areas)
    assert len(figure.axes) == 3
    for axes, metric in zip(figure.axes, (faithfulness.DELETION, faithfulness.INSERTION), strict=False):
        drawn = curves[(curves["metric"] == metric) & (curves["method"] == SIGNED)]
        low, high = axes.get_ylim()
        assert drawn["value"].between(low, high).all()
    assert len(drawings.agreement(faithfulness.agreement_table(config, cohort, found)).axes) == 2
    beat = faithfulness.beats_table(config, cohort, found)
    waves = faithfulness.beat_waves(cohort, found)
    drawings.save_beats(beat, waves, tmp_path, "an encoder", "a cohort")
    svg = tmp_path / "figures" / "beat_NORM.svg"
    assert svg.is_file() and svg.stat().st_size < 600_000
    drawings.save_beats(beat[beat["group"] != ba.DIFFERENCE], waves, tmp_path / "none", "an encoder", "a cohort")
    assert not (tmp_path / "none").exists()

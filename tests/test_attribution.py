import dataclasses

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from cure import attribution, embed, explain, models, pointing
from cure.attribution import SEGMENTS, Probe
from cure.bootstrap import patient_draws
from cure.errors import CureError
from cure.heads import fit_head
from cure.models.leadcnn import LeadCNN
from cure.plots import attribution as drawings
from cure.pointing import AMPLITUDE, GRADIENT, IG, METRICS, NOISE, ORACLE, SHIFTED, TWIN_GRADIENT
from cure.settings.explain import ExplainConfig
from cure.signals import LEADS
from cure.splits import Split, make_splits


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def split_of(n):
    order = np.random.default_rng(0).permutation(n)
    return Split("one", order[: n // 2], order[n // 2 : 3 * n // 4], order[3 * n // 4 :])


@pytest.fixture(scope="module")
def fitted():
    """40 short records, a small encoder with running statistics that are not trivial, and a head on its embeddings."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12, 400)).astype(np.float32)
    with models.base.seeded(3):
        encoder = LeadCNN()
    encoder.train()
    with torch.no_grad():
        encoder(torch.from_numpy(x))
    encoder.eval()
    with torch.inference_mode():
        embedding = encoder.embed(torch.from_numpy(x)).numpy()
    y = x[:, 0].mean(axis=1) + 0.01 * rng.normal(size=40) > 0
    return x, embedding, encoder, fit_head("logistic", embedding, y, split_of(40)).estimator


def test_the_probe_is_the_head_on_the_embedding(fitted):
    x, embedding, encoder, head = fitted
    probe = Probe(encoder, head)
    np.testing.assert_allclose(probe.score(x), head.decision_function(embedding), atol=1e-5)
    assert not any(p.requires_grad for p in probe.parameters())


def test_integrated_gradients_add_up_and_say_when_they_do_not(fitted):
    x, _, encoder, head = fitted
    probe = Probe(encoder, head)
    found = attribution.integrated_gradients(probe, x[:3], 64)
    value, error = found.value, found.error
    change = probe.score(x[:3]) - probe.score(np.zeros_like(x[:3]))
    size = np.abs(value).sum(axis=(1, 2))
    assert value.shape == x[:3].shape
    np.testing.assert_allclose(value.sum(axis=(1, 2)) - change, error * size, atol=1e-4)
    assert np.abs(error).max() < attribution.TOLERANCE
    with pytest.raises(CureError, match="raise `steps` \\(now 2\\) in section explain"):
        attribution.integrated_gradients(_Bump(), np.full((1, 12, 400), 1.0, np.float32), 2)


class _Bump(nn.Module):
    """A step on the path from zero that two points cannot integrate."""

    def forward(self, x):
        return torch.sigmoid(200 * (x.mean(dim=(1, 2)) - 0.5)) + 1e-9 * x.sum(dim=(1, 2))


class _Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.from_numpy(weight)

    def forward(self, x):
        return (x * self.weight).sum(dim=(1, 2)) + 3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 10))
def test_both_gradients_are_exact_for_a_linear_model(seed, n):
    rng = np.random.default_rng(seed)
    weight, x = rng.normal(size=(12, 40)).astype(np.float32), rng.normal(size=(n, 12, 40)).astype(np.float32)
    found = attribution.integrated_gradients(_Linear(weight), x, 8)
    value, error = found.value, found.error
    np.testing.assert_allclose(found.gradient, np.broadcast_to(weight, x.shape), rtol=1e-5)
    np.testing.assert_allclose(value, weight * x, atol=1e-4)
    np.testing.assert_allclose(attribution.gradient_times_input(_Linear(weight), x), weight * x, atol=1e-5)
    assert np.abs(error).max() < 1e-4


def test_a_lead_that_the_encoder_ignores_changes_nothing(fitted):
    x, _, encoder, head = fitted
    probe = Probe(LeadCNN(), head)
    probe.encoder.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        probe.encoder.lead[4] = 0
    drop = attribution.lead_drop(probe, x[:3])
    assert drop.shape == (3, 12)
    np.testing.assert_allclose(drop[:, 4], 0, atol=1e-6)
    assert (np.abs(np.delete(drop, 4, axis=1)) > 1e-4).all()
    without = x[:3].copy()
    without[:, 2] = 0
    np.testing.assert_allclose(drop[:, 2], probe.score(x[:3]) - probe.score(without))


def test_a_removed_segment_becomes_a_line_and_nothing_else_changes():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 12, 50)).astype(np.float32)
    codes = np.full((2, 50), -1, np.int8)
    codes[0, 10:20], codes[0, 30:35], codes[1, 5:9] = 3, 3, 1
    cut = attribution.without_segment(x, codes, 3)
    np.testing.assert_array_equal(cut[:, :, (codes[0] != 3)][0], x[:, :, (codes[0] != 3)][0])
    np.testing.assert_array_equal(cut[1], x[1])
    line = np.linspace(x[0, 4, 9], x[0, 4, 20], 12)
    np.testing.assert_allclose(cut[0, 4, 9:21], line, atol=1e-6)


def test_segments_follow_the_planted_waves(cohort):
    truth = pointing.read_truth(cohort)
    record_id = cohort.records["record_id"].to_numpy()
    found = {}
    for condition, segment in (("1AVB", "P"), ("CLBBB", "QRS"), ("AFIB", "TQ")):
        rows = np.flatnonzero(np.isin(record_id, truth.loc[truth["condition"] == condition, "ecg_id"]))
        codes, rr = attribution.beat_segments(cohort.signals(rows, 100), 100, 10, 1000)
        time, _ = pointing.planted(truth, record_id[rows], condition, 100, 1000)
        measured = (codes >= 0).any(axis=1)
        assert measured.mean() > 0.5
        assert ((rr > 0.3) & (rr < 2)).all()
        mine = (codes == SEGMENTS.index(segment))[measured]
        found[condition] = (mine & time[measured, 0]).sum() / mine.sum()
    # what chance would give: these windows cover 0.2, 0.2 and 0.5 of the time
    assert found["1AVB"] > 0.9 and found["CLBBB"] > 0.6 and found["AFIB"] > 0.7, found


def test_shares_of_segments_add_up_to_one():
    rng = np.random.default_rng(2)
    codes = rng.integers(-1, 5, (3, 200))
    codes[2] = -1
    share = attribution.segment_shares(rng.normal(size=(3, 12, 200)), codes)
    np.testing.assert_allclose(share[:2].sum(axis=(1, 2)), 1)
    assert np.isnan(share[2]).all()
    only = np.zeros((3, 12, 200))
    only[:, 5] = codes == 2
    share = attribution.segment_shares(only, codes)
    assert share[0, 5, 2] == 1


def test_similarity_is_spearmans():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 2, 12, 100))
    by_hand = [
        spearmanr(*(np.abs(v[i]).reshape(12, 25, 4).sum(axis=2).ravel() for v in (a, b))).statistic for i in range(2)
    ]
    np.testing.assert_allclose(attribution.similarity(a, b, 100), by_hand)
    np.testing.assert_allclose(attribution.similarity(a, -3 * a, 100), 1)
    np.testing.assert_allclose(attribution.similarity(a, -3 * a, 100, signed=True), -1)


def test_randomising_weights_changes_the_attribution(fitted):
    x, _, encoder, head = fitted
    probe, untouched = Probe(encoder, head), encoder.weights_sha256()
    own = attribution.integrated_gradients(probe, x[:2], 16).value
    same = attribution.integrated_gradients(Probe(encoder, head), x[:2], 16).value
    np.testing.assert_allclose(attribution.similarity(own, same, 100), 1)
    stages = attribution.randomised(probe, "leadcnn", seed=0)
    assert list(stages) == ["head", "head to trunk", "head to lead", "head to stem"]
    alike = {}
    for name, other in stages.items():
        new = attribution.integrated_gradients(other, x[:2], 16, tolerance=np.inf).value
        alike[name] = np.median(attribution.similarity(own, new, 100))
    assert alike["head"] < 0.95
    assert alike["head to stem"] < min(0.5, alike["head"])
    assert encoder.weights_sha256() == untouched
    first = stages["head to trunk"].encoder.state_dict()
    for name, value in encoder.state_dict().items():
        if not name.startswith("trunk"):
            assert torch.equal(first[name], value), name


def test_parts_of_every_encoder_are_known():
    for name in [*models.registry.OWN, "ked", "weimann-jepa-xs"]:
        state = models.load(name).state_dict()
        parts = attribution.parts(name)
        assert len(set(parts)) == len(parts)
        assert set(parts) == {key.split(".")[0] for key in state}
    assert attribution.parts("weimann-jepa-xs")[0] == "norm"


# --- scores against the truth ----------------------------------------------------------------------


def test_scores_have_their_closed_forms():
    inside = np.zeros((3, 2, 40), bool)
    inside[:, 0, 8:16] = True  # a tenth of the samples, two of twenty bins
    value = np.ones((3, 2, 40))
    value[1] = inside[1]
    value[2] = -3.0 * ~inside[2]
    found = pointing.score(value, inside, 100)
    np.testing.assert_allclose(found["enrichment"], [1, 10, 0])
    np.testing.assert_allclose(found["auroc"], [0.5, 1, 0])
    np.testing.assert_array_equal(found["pointing_game"][1:], [1, 0])
    empty = pointing.score(value, np.zeros_like(inside), 100)
    assert all(np.isnan(values).all() for values in empty.values())


def test_scores_agree_with_scikit_learn_and_noise_scores_chance():
    rng = np.random.default_rng(4)
    inside = np.repeat(rng.random((30, 12, 50)) < 0.2, 4, axis=2)
    noise = rng.random((30, 12, 200))
    found = pointing.score(noise, inside, 100)
    heights = noise[0].reshape(12, 50, 4).mean(axis=2).ravel()
    assert found["auroc"][0] == pytest.approx(roc_auc_score(inside[0, :, ::4].ravel(), heights))
    assert np.mean(found["auroc"]) == pytest.approx(0.5, abs=0.02)
    assert np.mean(found["enrichment"]) == pytest.approx(1, abs=0.02)


def test_half_a_beat_is_half_a_beat():
    one = np.zeros((2, 12, 100))
    one[:, :, 10] = 1
    late = pointing.half_beat_later(one, np.array([0.8, np.nan]), 100)
    np.testing.assert_array_equal(late.argmax(axis=2)[:, 0], [50, 60])
    np.testing.assert_array_equal(late.sum(axis=2), one.sum(axis=2))


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=25), seed=st.integers(0, 99))
def test_weighted_medians_and_means_are_those_of_repeated_values(values, seed):
    values = np.array(values)
    counts = np.random.default_rng(seed).integers(0, 3, (1, len(values)))
    for statistic, plain in (("median", np.median), ("mean", np.mean)):
        value, *_ = pointing.over_patients(values, counts, statistic)
        assert value == pytest.approx(plain(values))
        repeated = np.repeat(values, counts[0])
        if len(repeated) and len(values) >= pointing.MIN_RECORDS:
            _, lo, hi = pointing.over_patients(values, counts, statistic)
            assert lo == hi == pytest.approx(plain(repeated))


def test_an_oracle_beats_what_is_wrong_on_purpose(cohort):
    truth = pointing.read_truth(cohort)
    record_id = cohort.records["record_id"].to_numpy()
    time, best = pointing.planted(truth, record_id, "CRBBB", 100, 1000)
    rows = np.flatnonzero(time.any(axis=(1, 2)))
    time, best = time[rows], best[rows]
    rng = np.random.default_rng(5)
    good = best + 0.5 * rng.random(best.shape)
    wrong = pointing.half_beat_later(good, np.full(len(rows), np.nan), 100)
    flat = np.ones(best.shape)
    noise = rng.random(best.shape)
    methods = {GRADIENT: good, IG: good, SHIFTED: wrong, TWIN_GRADIENT: flat, NOISE: noise, AMPLITUDE: flat}
    table = pointing.summarise(
        pointing.score_all(methods, time, best, 100, rng), cohort.records["patient_id"].to_numpy()[rows], 200, rng
    ).assign(task="CRBBB")
    plain = table[table["comparator"].isna()].set_index(["region", "metric", "method"])["value"]
    for region in ("time", "time and leads"):
        for metric in METRICS:
            assert plain[region, metric, ORACLE] > plain[region, metric, SHIFTED]
        assert plain[region, "auroc", GRADIENT] > 0.9
        assert plain[region, "auroc", NOISE] == pytest.approx(0.5, abs=0.03)
        assert plain[region, "enrichment", NOISE] == pytest.approx(1, abs=0.05)
    if len(rows) >= pointing.MIN_RECORDS:
        gain = table[(table["comparator"] == SHIFTED) & (table["metric"] == "enrichment")]
        assert (gain["lo"] > 0).all()
        assert "**Does complete right bundle branch block point at the late QRS?** Yes." in pointing.answer(table)
        flipped = table.assign(method=table["method"].replace({GRADIENT: SHIFTED, SHIFTED: GRADIENT}))
        assert "? Yes" not in pointing.answer(flipped)
    assert pointing.view(table).shape == (7, 1)
    assert len(drawings.pointing(table).axes) == len(METRICS)


def test_the_effect_of_a_segment_is_spread_over_its_samples():
    codes = np.array([[-1, 0, 0, 1, 4, 4, 4, 4]])
    drop = np.array([[1.0, -3.0, 9.0, 9.0, 2.0]])
    found = pointing.spread(drop, codes)
    assert found.shape == (1, 12, 8)
    np.testing.assert_allclose(found[0, 5], [0, 0.5, 0.5, -3, 0.5, 0.5, 0.5, 0.5])


# --- the stage -------------------------------------------------------------------------------------


@pytest.fixture
def study(cohort, monkeypatch):
    """Settings, cohort and splits, with embeddings and weights made on the spot."""
    settings_ = {"encoder": "leadcnn", "weights": "ssl-simulated", "tasks": ["1AVB"], "heads": ["logistic"]}
    config = ExplainConfig(profile="none", top_k=[1], n_records=4, steps=8, n_draws=100, **settings_)
    splits = make_splits(cohort.records, "official")

    def load(_config, one, _split=None):
        return models.load(one.encoder, "random", one.seed + (one.weights == "random"))

    def read(_config, one, _pooling, _cohort, _split):
        spread = np.random.default_rng(one.seed).normal(size=(len(cohort), 256))
        return (spread + cohort.listed[["1AVB"]].to_numpy()).astype(np.float32)

    made = [embed.Representation("leadcnn", weights, 0) for weights in ("ssl-simulated", "random")]
    monkeypatch.setattr(embed, "representations", lambda _: made)
    monkeypatch.setattr(embed, "load_encoder", load)
    monkeypatch.setattr(embed, "read_split", read)
    hashes = {one: load(None, one).weights_sha256() for one in made}
    monkeypatch.setattr(embed, "read_sha256", lambda _, one, split: hashes[one])
    return config, cohort, splits


def test_embeddings_of_other_weights_are_refused(study, monkeypatch):
    config, cohort, splits = study
    y = cohort.listed["1AVB"].to_numpy()
    monkeypatch.setattr(embed, "read_sha256", lambda *_: "another")
    with pytest.raises(CureError, match=r"leadcnn-ssl-simulated-0 were made with other weights .* `cure run embed"):
        explain.fit_probe(config, cohort, explain.explained(config), y, splits[0])


def test_threads_do_not_disturb_each_others_random_weights(study):
    config, cohort, splits = study
    y = cohort.listed["1AVB"].to_numpy()
    wanted = models.load("leadcnn", "random", 1).weights_sha256()
    twin = explain.untrained(config)
    work = [joblib.delayed(explain.fit_probe)(config, cohort, twin, y, splits[0]) for _ in range(16)]
    probes = joblib.Parallel(n_jobs=8, backend="threading")(work)
    assert {probe.encoder.weights_sha256() for probe in probes} == {wanted}


def test_a_control_that_is_not_extracted_is_an_error(study, monkeypatch):
    config, *_ = study
    assert explain.untrained(config).weights == "random"
    alone = config.model_copy(update={"weights": "random"})
    with pytest.raises(CureError, match="extracts no other random weights of leadcnn"):
        explain.untrained(alone)


def test_only_test_positives_are_explained(study):
    config, cohort, splits = study
    y = explain.labels(config, cohort)["1AVB"]
    (rows,) = explain.sample(y, splits, 3, np.random.default_rng(0))
    assert len(rows) == min(3, y[splits[0].test].sum())
    assert y[rows].all() and np.isin(rows, splits[0].test).all()
    with pytest.raises(CureError, match="'XYZ' is no binary task; choose from NORM"):
        explain.labels(config.model_copy(update={"tasks": ["XYZ"]}), cohort)


def test_tables_of_the_stage_are_tidy_and_repeatable(study, tmp_path):
    config, cohort, splits = study
    found = explain.attribute(config, cohort, splits)
    leads = explain.leads_table(config, cohort, found)
    share = leads[leads["metric"] == "share of |attribution|"]
    assert list(share["lead"]) == list(LEADS) and share["value"].sum() == pytest.approx(1)
    segments = explain.segments_table(config, cohort, found)
    for _, part in segments[segments["lead"] == "all"].groupby(["method", "metric"]):
        assert list(part["segment"]) == list(SEGMENTS)
    random = explain.randomisation_table(config, cohort, found)
    assert list(random["compared_with"]) == [*found.stages * 3, *["signal amplitude"] * 2]
    table = explain.pointing_table(config, cohort, found)
    assert {*explain._key(config, cohort, "")} <= set(table) and (table["task"] == "1AVB").all()
    again = explain.attribute(config, cohort, splits)
    pd.testing.assert_frame_equal(table, explain.pointing_table(config, cohort, again))
    assert explain.summary_table(config, cohort, found)["value"].notna().all()


def test_without_a_truth_nothing_is_scored(study, tmp_path):
    config, cohort, splits = study
    found = explain.attribute(config.model_copy(update={"n_records": 1}), cohort, splits)
    table = explain.pointing_table(config, dataclasses.replace(cohort, folder=tmp_path), found)
    assert table.empty and pointing.view(table).empty
    assert pointing.answer(table).startswith("Not applicable")
    drawings.save_pointing(table, tmp_path, "caption")
    assert not (tmp_path / "figures").exists()


def test_examples_are_drawn_on_square_paper(study, tmp_path):
    config, cohort, splits = study
    drawings.save_examples(explain.examples(config, cohort, splits), tmp_path, "an encoder", "a cohort")
    svg = (tmp_path / "figures" / "attribution_1AVB.svg").read_bytes()
    assert (tmp_path / "figures" / "attribution_1AVB.png").is_file() and len(svg) < 400_000
    rng = np.random.default_rng(6)
    figure = drawings.draw_attribution(rng.normal(size=(12, 1000)), 100, rng.normal(size=(12, 1000)), "one")
    paper, bar = figure.axes
    assert paper.get_aspect() == pytest.approx(0.2 / 0.5)  # 0.2 s is drawn as long as 0.5 mV
    assert bar.get_ylim()[0] == -bar.get_ylim()[1]
    assert "log-odds per lead and 40 ms" in bar.get_ylabel()


def test_patient_draws_fit_the_summaries():
    draws = patient_draws(np.repeat(np.arange(6), 2), 300, np.random.default_rng(0))
    value, lo, hi = pointing.over_patients(np.repeat(np.arange(6.0), 2), draws)
    assert lo < value == 2.5 < hi

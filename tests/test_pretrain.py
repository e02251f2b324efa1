import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cure import augment, models, pretrain
from cure.beats import median_beats
from cure.config import check
from cure.errors import CureError
from cure.models import registry
from cure.models.weimann_jepa import WeimannJepa, WeimannSize
from cure.settings.pretrain import PretrainConfig
from cure.signals import LEADS
from cure.splits import make_splits

# --- the encoder ----------------------------------------------------------------------------------------


@pytest.fixture
def encoder():
    return models.load("leadcnn")


def test_fewer_leads_are_a_sum_over_fewer_terms(encoder):
    """With one matrix for all leads and equal signals, the scale sqrt(12 / n) is all that the number changes."""
    with torch.no_grad():
        encoder.lead[:] = encoder.lead[0]
    one = torch.randn(2, 1, 1000)
    each = encoder.stem(one)
    for n in (1, 3, 12):
        mixed = []
        encoder.trunk.register_forward_pre_hook(lambda _, inputs, kept=mixed: kept.append(inputs[0]))
        with torch.inference_mode():
            encoder(one.expand(-1, n, -1), range(n))
        torch.testing.assert_close(mixed[0], n * (12 / n) ** 0.5 * (encoder.lead[0] @ each), rtol=1e-4, atol=1e-4)


def test_it_knows_which_lead_is_which_and_does_not_care_for_their_order(encoder):
    x = torch.randn(2, 3, 1000)
    with torch.inference_mode():
        named = encoder(x, [0, 1, 7])
        torch.testing.assert_close(encoder(x[:, [2, 0, 1]], [7, 0, 1]), named, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(encoder(x, [0, 1, 8]), named, atol=1e-2)
    with pytest.raises(CureError, match="2 lead names for an input of 3 leads"):
        encoder(x, [0, 1])


def test_arithmetic_falls_with_the_number_of_leads():
    cost = pretrain.lead_cost(["leadcnn", "resnet1d"]).set_index(["encoder", "n_leads"])["gflops"]
    leads = cost["leadcnn"]
    slopes = -np.diff(leads) / -np.diff(leads.index)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)  # a fixed part and an equal part per lead
    assert leads[1] < 0.4 * leads[12] < 0.4 * 1.5 * cost["resnet1d"][12]


# --- views and targets -------------------------------------------------------------------------------


def test_views_are_crops_of_the_leads_that_they_name(monkeypatch):
    for name in ("GAIN", "NOISE_MV", "WANDER_MV", "MASK"):
        monkeypatch.setattr(augment, name, 0.0)
    x = torch.arange(1000.0).repeat(4, 12, 1) + 1000 * torch.arange(12.0)[:, None]
    sizes = set()
    for seed in range(30):
        one = augment.view(x, 100, 0.2, np.random.default_rng(seed))
        assert one.x.shape == (4, len(one.leads), 500)
        assert len(set(one.leads)) == len(one.leads) >= augment.MIN_LEADS
        start = one.x[:, :1, :1] - 1000 * one.leads[0]
        expected = start + torch.arange(500.0) + 1000 * (torch.tensor(one.leads) - 0.0)[:, None]
        torch.testing.assert_close(one.x, expected)
        assert len(start.unique()) > 1
        sizes.add(len(one.leads))
    assert sizes == set(range(6, 13))


def test_disturbances_have_the_size_they_are_given_in_millivolts():
    rng = np.random.default_rng(0)
    y = augment.disturbed(torch.zeros(200, 12, 500), 100, 0.2, rng) * 0.2
    assert y.abs().max() < 0.1 + 6 * 0.05
    assert 0.02 < y.std() < 0.06
    ones = augment.disturbed(torch.full((200, 1, 500), 1e6), 100, 0.2, rng) / 1e6
    masked = ones == 0
    assert 0.1 < masked.float().mean() < 0.25
    gain = ones[~masked.any(dim=2)] if (~masked.any(dim=2)).any() else ones[ones > 0]
    assert gain.log().std() == pytest.approx(0.1, abs=0.03)
    again = augment.disturbed(torch.zeros(2, 12, 500), 100, 0.2, np.random.default_rng(7))
    torch.testing.assert_close(again, augment.disturbed(torch.zeros(2, 12, 500), 100, 0.2, np.random.default_rng(7)))


def test_targets_are_fitted_on_training_records_only(cohort):
    beats = median_beats(cohort.signals(np.arange(160), 100), 100, n_jobs=1)
    train = np.arange(100)
    made = pretrain.beat_targets(beats, train)
    assert made.values.shape == (160, 52)
    fitted = made.values[train[made.known[train]]]
    np.testing.assert_allclose(fitted.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(fitted.std(axis=0), 1, atol=0.15)  # some are clipped
    spoiled = beats.beats.copy()
    spoiled[100:] *= 7
    other = pretrain.beat_targets(type(beats)(spoiled, beats.r_sample, beats.fs, beats.rhythm), train)
    np.testing.assert_array_equal(other.values[:100], made.values[:100])
    assert not np.array_equal(other.values[100:], made.values[100:])
    assert (made.values[~made.known] == 0).all()
    few = pretrain.beat_targets(beats, np.arange(20))
    assert few.values.shape == (160, 52)  # fewer components than asked for: the rest are zero
    assert (few.values[:, 19:48] == 0).all()
    assert (few.values[few.known][:, :19] != 0).any(axis=0).all()


def test_mates_are_other_training_records_of_the_same_patient():
    patient = np.array([5, 5, 5, 6, 6, 7, 8, 5])
    corpus = pretrain.Corpus(np.zeros((8, 1)), None, patient, np.array([0, 1, 2, 3, 5, 6]), "")
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        drawn.append(corpus.mates(np.array([5, 0, 3, 1]), rng))
    lone, zero, three, one = np.array(drawn).T
    assert set(lone) == {5}
    assert set(three) == {3}  # its patient's other record does not train
    assert set(zero) == {1, 2}
    assert set(one) == {0, 2}
    assert 150 < (zero == 1).sum() < 250


# --- the stage ------------------------------------------------------------------------------------------


def settings(**changes):
    base = {"profile": "demo", "weights": ["ssl-folds", "ssl-simulated"], "epochs": 2, "n_simulated": 200}
    return check(PretrainConfig, **{**base, "batch_size": 32, **changes})


@pytest.fixture
def study(cohort, monkeypatch, tmp_path):
    """The cohort, two of its splits, and a scratch and a weights folder of its own."""
    monkeypatch.setattr(pretrain.paths, "scratch", lambda profile, name: tmp_path / "scratch" / name)
    monkeypatch.setattr(pretrain.paths, "output", lambda path, stage: tmp_path / "weights")
    monkeypatch.setattr(pretrain, "simulated", lambda n: (cohort.signals(np.arange(64), 100), np.arange(64)))
    return cohort, make_splits(cohort.records, "rotate")[:2], tmp_path


def test_every_run_leaves_weights_that_load_and_say_what_they_have_seen(study):
    cohort, splits, folder = study
    curves = pretrain.pretrain_all(settings(), cohort, splits)
    assert len(curves) == 3 * 2 * 2  # runs, epochs, losses
    assert set(curves["part"]) == {"folds 1+2", "folds 3+4", "all"}
    files = sorted(str(file.relative_to(folder / "weights")) for file in (folder / "weights").rglob("*.safetensors"))
    assert files == [
        "leadcnn-ssl-folds-0/folds-1+2.safetensors",
        "leadcnn-ssl-folds-0/folds-3+4.safetensors",
        "leadcnn-ssl-simulated-0/all.safetensors",
    ]
    table = pretrain.weights_table(settings())
    assert table["sha256"].nunique() == 3
    assert table["has_seen"].iloc[0] == "small, training part of folds 1+2"
    trained = models.load("leadcnn", folder / "weights" / files[0])
    assert trained.weights_sha256() != models.load("leadcnn").weights_sha256()
    assert not trained.training


@pytest.mark.parametrize("objective", ["contrastive+beat", "patient", "masked", "jepa", "cpc"])
def test_nothing_but_the_training_records_of_a_split_matters(study, objective):
    """Spoil every other record: the weights do not change by a bit."""
    cohort, splits, folder = study
    config, split = settings(weights=["ssl-folds"], objective=objective, epochs=1), splits[0]
    (job,) = pretrain.jobs(config, cohort, [split])
    pretrain._run(config, job, folder / "clean")
    x, beats = job.corpus.x.copy(), job.corpus.beats
    rest = np.concatenate([split.val, split.test])
    x[rest] = 99.0
    assert (beats is not None) == (objective == "contrastive+beat")
    if beats is not None:
        spoiled = beats.beats.copy()
        spoiled[rest] = -5.0
        beats = replace(beats, beats=spoiled)
    corpus = replace(job.corpus, x=x, beats=beats)
    pretrain._run(config, replace(job, corpus=corpus), folder / "spoiled")
    one, two = (load_file(folder / name / "weights.safetensors") for name in ("clean", "spoiled"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    start = models.load("leadcnn").state_dict()
    assert not any(torch.equal(one[name], start[name]) for name in one if name.endswith("weight"))
    curve, cost = (pd.read_parquet(folder / "clean" / "curve.parquet"), folder / "clean" / "cost.json")
    assert np.isfinite(curve[["value", "uninformed"]]).all(axis=None)
    assert json.loads(cost.read_text())["core_seconds"] > 0


def test_a_stopped_stage_takes_up_finished_runs(study, monkeypatch):
    cohort, splits, folder = study
    config = settings(weights=["ssl-folds"])
    monkeypatch.setattr(pretrain.joblib, "cpu_count", lambda: 1)
    original, ran = pretrain.train, []

    def stops(*arguments, **named):
        ran.append(named["desc"])
        if len(ran) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(pretrain, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain_all(config, cohort, splits)
    assert not (folder / "weights").exists()
    pretrain.pretrain_all(config, cohort, splits)
    assert ran == ["ssl-folds-0 folds 1+2", "ssl-folds-0 folds 3+4", "ssl-folds-0 folds 3+4"]
    assert len(list((folder / "weights").rglob("*.safetensors"))) == 2


def test_a_transformer_that_drops_hidden_patches_is_pretrained_in_this_stage(study, monkeypatch):
    cohort, splits, folder = study
    monkeypatch.setitem(registry.PUBLISHED, "weimann-jepa-xs", partial(WeimannJepa, WeimannSize(16, 1, 2)))
    monkeypatch.setattr(pretrain.joblib, "cpu_count", lambda: 1)
    config = settings(encoder="weimann-jepa-xs", objective="jepa", mask_share=0.75, weights=["ssl-folds"], epochs=1)
    curves = pretrain.pretrain_all(config, cohort, splits[:1])
    assert set(curves["metric"]) == {"prediction", "variance"}
    file = folder / "weights" / "weimann-jepa-xs-ssl-folds-0" / "folds-1+2.safetensors"
    with safe_open(file, framework="pt") as stored:
        recipe = json.loads(stored.metadata()["about"])["recipe"]
    assert (recipe["objective"], recipe["mask_share"], recipe["epochs"]) == ("jepa", 0.75, 1)
    trained = models.load("weimann-jepa-xs", file)
    assert trained.weights_sha256() != models.load("weimann-jepa-xs").weights_sha256()
    halves = pretrain.recognition(config, cohort, splits[:1])
    assert halves["weights"].tolist() == ["random", "ssl-folds"]


def test_the_input_of_a_corpus_is_what_the_encoder_reads_and_is_made_once(study):
    cohort, splits, _ = study
    one, two = pretrain.corpora(settings(), cohort, splits, ["jepa"])
    assert one.x is two.x
    assert one.beats is None
    np.testing.assert_array_equal(one.x, models.load("leadcnn").input_spec.read(cohort, np.arange(160)))
    file = Path(one.x.filename)
    before = file.stat().st_mtime_ns
    assert pretrain.corpora(settings(), cohort, splits, ["jepa", "contrastive+beat"])[0].beats is not None
    assert file.stat().st_mtime_ns == before


def test_halves_of_one_record_are_found_more_often_than_by_chance(study, monkeypatch):
    cohort, splits, _ = study
    monkeypatch.setattr(pretrain.joblib, "cpu_count", lambda: 1)
    config = settings(weights=["ssl-simulated"], epochs=15, batch_size=16)
    pretrain.pretrain_all(config, cohort, splits)
    table = pretrain.recognition(config, cohort, splits)
    assert len(table) == 2 * 2
    np.testing.assert_allclose(table["chance"], 1 / table["n"])
    wide = table.pivot(index="part", columns="weights", values="value")
    assert (wide["ssl-simulated"] > wide["random"]).all()
    encoder, rows = models.load("leadcnn"), splits[0].val
    one, two = (encoder.embed(half) for half in torch.from_numpy(encoder.input_spec.read(cohort, rows)).chunk(2, dim=2))
    centre = torch.cat([one, two]).mean(dim=0)
    near = torch.stack([torch.cosine_similarity(row - centre, two - centre) for row in one])
    found = (near.argmax(dim=1) == torch.arange(len(rows))).float().mean().item()
    assert wide.loc[splits[0].name, "random"] == pytest.approx(found)


def test_simulated_records_are_twelve_leads_in_millivolts_and_the_same_each_time():
    one, patient = pretrain.simulated(20)
    assert one.shape == (20, len(LEADS), 1000)
    assert 0.3 < np.abs(one).max(axis=(1, 2)).mean() < 5
    np.testing.assert_array_equal(one, pretrain.simulated(20)[0])
    assert len(patient) == 20
    assert 10 < len(np.unique(patient)) < 20  # some have several records


def test_equal_weights_are_equal_bytes(tmp_path, encoder):
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for file in files:
        pretrain.write_weights(encoder, file, source="a source", recipe={"rate": 0.1, "epochs": 3})
    assert len({file.read_bytes() for file in files}) == 1
    assert models.load("leadcnn", files[0]).pretraining == ("a source",)


def test_weights_files_that_do_not_fit_are_errors(tmp_path, encoder):
    file = tmp_path / "w" / "all.safetensors"
    file.parent.mkdir()
    with pytest.raises(CureError, match=r"no weights w/all.safetensors: make them with `make repro"):
        models.load("leadcnn", file)
    pretrain.write_weights(encoder, file, source="nothing", recipe={})
    assert models.load("leadcnn", file).weights_sha256() == encoder.weights_sha256()
    with pytest.raises(CureError, match="does not fit encoder 'resnet1d': entry 'blocks"):
        models.load("resnet1d", file)
    state = encoder.state_dict()
    save_file({name: value for name, value in state.items() if name != "lead"}, file)
    with pytest.raises(CureError, match="does not fit encoder 'leadcnn': entry 'lead'"):
        models.load("leadcnn", file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CureError, match=r"w/all.safetensors is damaged"):
        models.load("leadcnn", file)

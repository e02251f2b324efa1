"""Heads that are kept: the same scores after loading, honest calibration, no byte that was not written here."""

import json

import numpy as np
import pytest
from own import WEIGHTS, config, with_heads
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from cure import embed, keeping, kept
from cure.attribution import Probe
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.heads import fit_head
from cure.models import load as load_encoder
from cure.predictions import fittable
from cure.splits import make_splits


@pytest.fixture(scope="module")
def made(cohort, tmp_path_factory):
    """A project with kept heads; tests read it, those that damage something take a copy."""
    from conftest import make_project

    monkeypatch = pytest.MonkeyPatch()
    folder = make_project(tmp_path_factory.mktemp("kept") / "project")
    monkeypatch.chdir(folder)
    with_heads(folder, cohort, monkeypatch)
    yield folder
    monkeypatch.undo()


@pytest.fixture
def heads(made, monkeypatch):
    monkeypatch.chdir(made)
    return kept.folder_of("tiny")


def data(representation):
    """Cohort, its first split, and one representation of it."""
    one = config()
    cohort = Cohort.open(one.cohort_folder)
    name = embed.FEATURES if representation == embed.FEATURES else WEIGHTS
    pooling = "none" if name == embed.FEATURES else "mean"
    return cohort, make_splits(cohort.records, "rotate")[0], embed.read(one.embeddings_folder / name, pooling, cohort)


def test_what_is_kept_is_a_rule(heads):
    cohort, _, _ = data(WEIGHTS)
    tasks = fittable(cohort.binary(), make_splits(cohort.records, "rotate")).names
    expected = [(one, head, task) for one in (WEIGHTS, embed.FEATURES) for head in keeping.HEADS for task in tasks]
    assert kept.available(heads) == expected


@pytest.mark.parametrize("representation", [WEIGHTS, embed.FEATURES])
@pytest.mark.parametrize("head", keeping.HEADS)
def test_a_loaded_head_scores_as_the_fitted_one(heads, representation, head):
    cohort, split, x = data(representation)
    y = cohort.binary()
    target = y.y[:, y.names.index("NORM")]
    fit = fit_head(head, x, target, split)
    one = kept.load(heads, representation, head, "NORM")
    np.testing.assert_allclose(one.own_score(x), fit.score(x), atol=2e-6)
    assert one.card.setting == fit.setting
    assert one.card.threshold == pytest.approx(fit.threshold, abs=2e-6)
    assert one.card.train.n == len(split.train)
    auroc = next(score for score in one.card.scores if score.metric == "auroc")
    assert auroc.value == pytest.approx(roc_auc_score(target[split.val], fit.score(x[split.val])), abs=1e-5)


def test_calibration_keeps_ranks_and_the_interval_holds_the_probability(heads):
    _, split, x = data(WEIGHTS)
    one = kept.load(heads, WEIGHTS, "logistic", "NORM")
    assert one.card.calibrated
    assert one.card.val.n_pos >= 10
    own, p = one.own_score(x), one.probability(x)
    assert (np.argsort(own, kind="stable") == np.argsort(p, kind="stable")).all()
    lo, hi = one.interval(x)
    assert ((lo <= p) & (p <= hi)).mean() > 0.95
    assert (lo < hi).all()
    # Platt's curve makes the mean probability of its own records the smoothed share of positives.
    n, n_pos = one.card.val.n, one.card.val.n_pos
    smooth = (n_pos * (n_pos + 1) / (n_pos + 2) + (n - n_pos) / (n - n_pos + 2)) / n
    assert p[split.val].mean() == pytest.approx(smooth, abs=2e-3)
    called = own >= one.card.threshold
    np.testing.assert_array_equal(p >= one.threshold - 1e-12, called)


def test_without_support_there_is_no_calibration_and_no_interval(heads):
    few = [where for where in kept.available(heads) if not kept.load(heads, *where).card.calibrated]
    assert few, "the small cohort has rare tasks"
    _, _, x = data(few[0][0])
    one = kept.load(heads, *few[0])
    assert min(one.card.val.n_pos, one.card.val.n - one.card.val.n_pos) < 10
    np.testing.assert_allclose(one.probability(x), one.own_score(x), atol=1e-7)
    assert np.isnan(one.interval(x)).all()
    assert any("ten are needed" in note for note in one.card.notes)
    assert all(score.lo is None for score in one.card.scores)


def test_a_card_says_what_the_head_is(heads):
    card = kept.load(heads, WEIGHTS, "xgboost", "NORM").card
    encoder = load_encoder("leadcnn", seed=3)
    assert card.weights_sha256 == encoder.weights_sha256()
    assert card.input_spec == encoder.input_spec.as_dict()
    assert (card.encoder, card.weights, card.pooling) == ("leadcnn", "ssl-simulated", "mean")
    assert (config().weights_folder / str(card.weights_file)).is_file()
    assert "not for clinical use" in card.notes[0]
    assert card.simulated
    assert "simulated" in card.notes[1]
    features = kept.load(heads, embed.FEATURES, "logistic", "NORM").card
    assert features.columns[0] == "heart_rate_bpm"
    assert features.weights_file is None


def test_far_records_are_unusual_and_training_records_are_not(heads):
    _, split, x = data(WEIGHTS)
    one = kept.load(heads, WEIGHTS, "logistic", "NORM")
    assert one.unusual(x[split.train]).mean() < 0.1
    assert one.unusual(x[split.train] + 100 * x.std(axis=0)).all()
    assert one.distance(x[split.train]).mean() == pytest.approx(1, abs=0.1)


def test_a_linear_head_can_be_explained(heads):
    _, _, x = data(WEIGHTS)
    one = kept.load(heads, WEIGHTS, "logistic", "NORM")
    probe = Probe(load_encoder("leadcnn", seed=3), one.pipeline())
    own = expit(x.astype(float) @ probe.weight.numpy() + probe.bias.numpy())
    np.testing.assert_allclose(own, one.own_score(x), atol=1e-9)
    with pytest.raises(CureError, match="xgboost is not linear"):
        kept.load(heads, WEIGHTS, "xgboost", "NORM").pipeline()


def test_two_runs_write_the_same_bytes(heads, monkeypatch, tmp_path):
    cohort, _, _ = data(WEIGHTS)
    keeping.keep(config(), cohort, make_splits(cohort.records, "rotate"))
    again = config().output / "heads"
    assert again != heads, "outside the pipeline a reader's run has its own place"
    files = sorted(file.relative_to(heads) for file in heads.rglob("*") if file.is_file())
    assert len(files) == len([path for path in again.rglob("*") if path.is_file()])
    for file in files:
        assert (again / file).read_bytes() == (heads / file).read_bytes(), file


@pytest.mark.parametrize("name", ["card.json", "arrays.safetensors", "model.json"])
def test_a_tampered_file_is_named_and_not_loaded(made, name, tmp_path):
    import shutil

    folder = tmp_path / "heads"
    shutil.copytree(made / "data/stages/tiny/heads/heads", folder)
    file = folder / WEIGHTS / "xgboost" / "NORM" / name
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(bytes(blob))
    with pytest.raises(CureError, match=f"{name} was changed after it was written"):
        kept.load(folder, WEIGHTS, "xgboost", "NORM")
    file.unlink()
    with pytest.raises(CureError, match=f"{name} is missing"):
        kept.load(folder, WEIGHTS, "xgboost", "NORM")


def test_what_is_not_there_is_said_with_the_remedy(made, heads, tmp_path):
    with pytest.raises(CureError, match=r"no head 'leadcnn-ssl-simulated-0/mlp/NORM' among the kept ones: leadcnn-ssl"):
        kept.load(heads, WEIGHTS, "mlp", "NORM")
    with pytest.raises(CureError, match=r"no kept heads at data/stages/other/heads/heads: `make repro PROFILE=other`"):
        kept.available(kept.folder_of("other"))


def test_nothing_that_is_kept_can_hold_code(heads):
    kinds = {file.suffix for file in heads.rglob("*") if file.is_file()}
    assert kinds == {".json", ".safetensors"}
    for file in heads.rglob("*.json"):
        json.loads(file.read_text())

"""Stage `quickstart`: one record gets what its cohort got, its neighbours are the nearest, what is missing is said."""

import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import wfdb
from conftest import ROOT, TINY, make_project
from own import WEIGHTS, with_heads
from scipy.special import expit, logit

from cure import attribution, config, embed, kept, onerecord, paths, quickstart
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.estimators import scaler
from cure.models.base import one_thread
from cure.plots.quickstart import probabilities, strips
from cure.settings.quickstart import QuickstartConfig
from cure.signals import LEADS

PROFILE = {**TINY, "quickstart": {**TINY["quickstart"], "weights": "ssl-simulated", "task": "NORM", "k": 4}}


@pytest.fixture(scope="module")
def made(cohort, tmp_path_factory):
    """A project with kept heads."""
    monkeypatch = pytest.MonkeyPatch()
    folder = make_project(tmp_path_factory.mktemp("quickstart") / "project", PROFILE)
    monkeypatch.chdir(folder)
    with_heads(folder, cohort, monkeypatch)
    yield folder
    monkeypatch.undo()


def settings(**changes):
    return config.check(QuickstartConfig, **{**config.parameters("quickstart", "tiny"), **changes})


@pytest.fixture
def study(made, monkeypatch):
    monkeypatch.chdir(made)
    return quickstart.open_study(settings())


def other(study, **changes):
    """The same study, asked for something else."""
    return onerecord.Study(settings(**changes), study.cohort, study.split, study.encoder, study.heads, study.z)


def refused(match, work, *arguments, **changes):
    with pytest.raises(CureError, match=match):
        work(*arguments, **changes)


# --- the record


def test_the_default_is_the_first_test_record_that_lists_the_task(study):
    ecg = quickstart.record(study)
    labels = study.cohort.binary()
    test = sorted(study.split.test)
    listing = [row for row in test if labels.y[row, labels.names.index("NORM")]]
    assert ecg.row == listing[0]
    assert onerecord.part_of(study, ecg.row) == "test"
    assert "new to encoder and heads" in ecg.about
    assert f"record {study.cohort.records['record_id'].iloc[ecg.row]}" == ecg.name


def test_a_record_is_named_by_its_id_and_its_part_is_said(study):
    row = int(study.split.train[3])
    record_id = int(study.cohort.records["record_id"].iloc[row])
    for name in (record_id, str(record_id)):
        ecg = quickstart.record(other(study, record_id=name))
        assert ecg.row == row
        assert "its prediction is no test" in ecg.about
    refused("has no record 99999: it has 160, from", quickstart.record, other(study, record_id=99999))
    refused("`path` and `record_id` are both set", quickstart.record, other(study, record_id=1, path="x.hea"))


def test_its_embedding_is_the_one_that_stage_embed_made(study):
    for row in (0, int(study.split.test[2])):
        z = quickstart.embedded(study, onerecord.of_cohort(study, row))
        np.testing.assert_allclose(z, study.z[row], rtol=1e-4, atol=1e-5)


def test_a_file_of_ones_own_gives_what_the_same_record_of_the_cohort_gives(study, tmp_path):
    row = int(study.split.test[0])
    ecg = onerecord.of_cohort(study, row)
    how = {"fs": 100, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    wfdb.wrsamp("one", p_signal=ecg.record.x.T.astype(float), write_dir=str(tmp_path), **how)
    pd.DataFrame(ecg.record.x.T, columns=list(LEADS)).to_csv(tmp_path / "one.csv", index=False)
    asked = {"one.hea": {}, "one.csv": {"rate": 100, "unit": "mV"}}
    for name, given in asked.items():
        mine = quickstart.record(other(study, path=str(tmp_path / name), given=given))
        assert mine.row is None
        assert mine.about.startswith("10.0 s at 100 Hz; recorded: I, II, III")
        z = quickstart.embedded(study, mine)
        np.testing.assert_allclose(z, study.z[row], rtol=0.02, atol=0.02)
        near = quickstart.neighbours(study, z, mine)
        assert near["row"].iloc[0] == row, "nobody is left out: whose record it is, is not known"
        table = quickstart.predictions(study, z, mine)
        assert table["listed"].isna().all()
        assert (quickstart.predictions_view(table)["listed"] == "not known").all()
    refused("one.csv cannot be used: .*--rate", quickstart.record, other(study, path=str(tmp_path / "one.csv")))
    refused("holds 2 records", quickstart.record, other(study, path=str(tmp_path)))
    refused("is not there", quickstart.record, other(study, path=str(tmp_path / "two.hea")))
    for wrong in ({"rates": 100}, {"rate": "fast"}, {"unit": "cm"}):
        refused(f"section quickstart: .*given.{next(iter(wrong))}", settings, given=wrong)


def test_a_short_record_is_drawn_to_its_end_and_a_fault_is_said(study):
    whole = onerecord.of_cohort(study, int(study.split.test[0]))
    x = whole.record.x[:, :600].copy()
    x[7] = np.where(np.arange(600) < 300, x[7], 0)
    short = onerecord._looked_at(study, "short", x, 100, None, "Mine.")
    paper = short.on_paper()
    assert paper.shape == (12, 1000)
    np.testing.assert_array_equal(paper[:, :600], x)
    assert np.ptp(paper[:, 600:], axis=1).max() == 0
    assert "**flat**" in short.about
    assert "6 s filled up to 10 s" in short.about
    assert np.isfinite(quickstart.embedded(study, short)).all()


# --- prediction


def test_predictions_are_those_of_the_kept_heads(study):
    ecg = quickstart.record(study)
    z = study.z[ecg.row]
    table = quickstart.predictions(study, z, ecg).set_index("task")
    folder = kept.folder_of("tiny")
    assert set(table.index) == {task for one, _, task in kept.available(folder) if one == WEIGHTS}
    labels = study.cohort.binary()
    for task, row in table.iterrows():
        head = kept.load(folder, WEIGHTS, "logistic", task)
        y = labels.y[:, labels.names.index(task)]
        assert row["value"] == pytest.approx(head.probability(z[None])[0])
        assert row["positive"] == (row["value"] >= head.threshold)
        assert row["listed"] == y[ecg.row]
        assert row["prevalence"] == pytest.approx(y[study.split.train].mean())
        lo, hi = (bound[0] for bound in head.interval(z[None]))
        np.testing.assert_equal((row["lo"], row["hi"]), (lo, hi))
    assert table["lo"].isna().any(), "a rare task is not calibrated"
    assert table.loc["NORM", "lo"] < table.loc["NORM", "hi"]
    view = quickstart.predictions_view(table.reset_index())
    assert view.loc["normal ECG (NORM)", "listed"] == "yes"
    assert f"{table.loc['NORM', 'value']:.2f} [{table.loc['NORM', 'lo']:.2f}, " in view.loc["normal ECG (NORM)"].iloc[0]
    ratio = (table["value"] / table["prevalence"]).idxmax()
    assert view.index[0].endswith(f"({ratio})")


def test_another_head_predicts_and_the_logistic_one_is_explained(study, made):
    boosted = quickstart.open_study(settings(head="xgboost"))
    ecg = quickstart.record(boosted)
    z = study.z[ecg.row]
    table = quickstart.predictions(boosted, z, ecg).set_index("task")
    head = kept.load(kept.folder_of("tiny"), WEIGHTS, "xgboost", "NORM")
    assert table.loc["NORM", "value"] == pytest.approx(head.probability(z[None])[0])
    assert quickstart.explain(boosted, ecg).log_odds == pytest.approx(quickstart.explain(study, ecg).log_odds)


def test_a_record_unlike_the_others_is_called_that(study):
    z = study.z[study.split.train].mean(axis=0)
    assert "unlike" not in quickstart.caution(study, z)
    said = quickstart.caution(study, z + 50 * study.z.std(axis=0))
    assert "do not rely on its probabilities" in said
    assert "not for clinical use" in said
    assert "simulated" in said


# --- explanation


def test_the_attribution_adds_up_to_the_log_odds_of_the_head(study):
    ecg = quickstart.record(study)
    found = quickstart.explain(study, ecg)
    z = quickstart.embedded(study, ecg)
    head = study.heads["NORM"]
    assert expit(found.log_odds) == pytest.approx(head.own_score(z[None])[0], abs=1e-4)
    flat = quickstart.embedded(study, onerecord.Recording("", _flat(ecg), None, ""))
    rise = found.log_odds - logit(head.own_score(flat[None])[0])
    size = np.abs(found.value).sum()
    assert abs(found.value.sum(dtype=float) - rise) < 0.05 * size
    said = found.table.set_index("quantity")["value"]
    assert abs(said["completeness error"] - (found.value.sum(dtype=float) - rise) / size) < 1e-3
    assert found.mv.shape == found.value.shape == (12, 1000)
    np.testing.assert_allclose(found.mv.std(), ecg.record.x.std(), rtol=0.5)
    assert -1 <= said["Spearman, all weights random"] <= 1
    assert "0." in quickstart.checks(found)


def _flat(ecg):
    return onerecord.Record(0 * ecg.record.x, ecg.fs, ecg.record.present, ecg.record.derived)


def test_where_it_is_known_what_was_planted_the_attribution_is_scored(study):
    truth = pd.read_parquet(study.cohort.folder / "truth.parquet")
    planted = truth.loc[truth["condition"] == "CRBBB", "ecg_id"].unique()
    ids = study.cohort.records["record_id"]
    other_study = other(study, task="CRBBB", record_id=int(ids[ids.isin(planted)].iloc[0]))
    found = quickstart.explain(other_study, quickstart.record(other_study))
    scores = found.table[found.table["quantity"].str.startswith("AUROC")]
    assert len(scores) == 3
    assert scores["value"].between(0, 1).all()
    assert "The simulator planted CRBBB here" in quickstart.checks(found)
    healthy = other(study, task="CRBBB", record_id=int(ids[~ids.isin(planted)].iloc[0]))
    without = quickstart.explain(healthy, quickstart.record(healthy))
    assert not without.table["quantity"].str.startswith("AUROC").any()


def test_an_attribution_that_does_not_add_up_is_refused(study, monkeypatch):
    monkeypatch.setattr(attribution, "TOLERANCE", 1e-9)
    refused(r"raise `steps` \(now 8\) in section quickstart", quickstart.explain, study, quickstart.record(study))


# --- neighbours


def test_neighbours_are_the_nearest_of_other_patients(study):
    records = study.cohort.records
    patient = records["patient_id"].to_numpy()
    several = records["patient_id"].value_counts()
    row = int(np.flatnonzero(patient == several[several > 1].index[0])[0])
    ecg = onerecord.of_cohort(study, row)
    table = quickstart.neighbours(study, study.z[row], ecg)
    scale = scaler().fit(study.z[study.split.train])
    z = scale.transform(study.z)
    distance = {i: float(np.linalg.norm(z[i] - z[row])) for i in range(len(z)) if patient[i] != patient[row]}
    expected = sorted(distance, key=distance.get)[:4]
    assert table["row"].tolist() == expected
    np.testing.assert_allclose(table["distance"], [distance[i] for i in expected], rtol=1e-5)
    np.testing.assert_allclose(table["relative"], table["distance"] / np.median(list(distance.values())), rtol=1e-5)
    assert patient[row] not in patient[table["row"]]
    labels = study.cohort.binary()
    y = labels.y[:, labels.names.index("NORM")]
    said = quickstart.agreement(study, table, ecg)
    share = y[list(distance)].mean()
    assert said.startswith(f"NORM is listed by {y[expected].sum()} of 4 neighbours, and by {share:.0%} of all records")
    view = quickstart.neighbours_view(table)
    assert list(view.columns) == ["record", "distance / median", "part of the split", "age", "sex", "labels"]
    drawn = quickstart.beside(study, table, ecg)
    assert [one.row for one in drawn] == [row, *expected]
    assert drawn[1].name.startswith(f"1. record {records['record_id'].iloc[expected[0]]}: ")


# --- drawings


def test_probabilities_and_strips_show_what_they_are_given(study):
    ecg = quickstart.record(study)
    table = quickstart.predictions(study, study.z[ecg.row], ecg)
    axes = probabilities(table).axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == [f"{r.title} ({r.task})" + " *" * bool(r.listed) for r in table.iloc[::-1].itertuples()]
    assert any(label.endswith("*") for label in labels)
    (bars,) = axes.collections
    spans = [one[:, 0].tolist() for one in bars.get_segments() if len(one) == 2 and np.isfinite(one).all()]
    assert sorted(spans) == sorted(table[["lo", "hi"]].dropna().to_numpy().tolist())
    near = quickstart.neighbours(study, study.z[ecg.row], ecg)
    figure = strips(quickstart.beside(study, near, ecg))
    lines = figure.axes[0].lines
    assert len(lines) == 2 * 5
    assert lines[0].get_color() == "black" != lines[2].get_color()
    lead = ecg.record.x[LEADS.index("V1"), :500]
    np.testing.assert_allclose(lines[1].get_ydata(), lead - np.median(lead), atol=1e-6)
    assert any(ecg.name in text.get_text() for text in figure.axes[0].texts)


# --- what is not there


def test_without_heads_the_command_and_the_profiles_that_have_some_are_named(study, tmp_path, monkeypatch):
    asked = config.check(QuickstartConfig, **config.parameters("quickstart", "demo"))
    refused(
        r"profile 'demo' has no kept heads here: `make repro PROFILE=demo` .*`cure run STAGE --profile demo` for the "
        r"stages download, prepare, pretrain, embed, heads\. Profiles with heads here, for `profile`: tiny",
        quickstart.open_study,
        asked,
    )
    fresh = make_project(tmp_path / "fresh", PROFILE)
    monkeypatch.chdir(fresh)
    with pytest.raises(CureError, match=r"download, prepare, pretrain, embed, heads\.$"):
        quickstart.open_study(asked)


def test_what_does_not_belong_together_is_refused(study, made, monkeypatch, tmp_path):
    refused(
        "has kept no xgboost heads of resnet1d with weights ssl-simulated; it has",
        _open,
        head="xgboost",
        encoder="resnet1d",
    )
    refused("has kept no logistic heads of leadcnn with weights ssl-folds", _open, weights="ssl-folds")
    refused("no head was kept for task 'IMI': choose from NORM", _open, task="IMI")
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    from safetensors.torch import save_file

    from cure import models

    save_file(models.load("leadcnn", seed=8).state_dict(), paths.weights("tiny") / WEIGHTS / "all.safetensors")
    refused("weights, embeddings and heads of leadcnn-ssl-simulated-0 are of different runs: `make repro", _open)


def _open(**changes):
    return quickstart.open_study(settings(**changes))


# --- the notebook


def test_the_notebook_is_short_and_writes_where_a_reader_may(made, monkeypatch, tmp_path):
    cells = nbformat.read(ROOT / "notebooks" / "00_quickstart.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert sum(len(cell.source.splitlines()) for cell in code) <= 60
    monkeypatch.chdir(made)
    names: dict = {}
    with one_thread():
        for cell in code:
            source = cell.source
            if "parameters" in cell.metadata.get("tags", []):
                source = "\n".join(f"{k} = {v!r}" for k, v in config.parameters("quickstart", "tiny").items())
            exec(compile(source, "00_quickstart", "exec"), names)
    out = made / "data/interactive/stages/tiny/quickstart"
    tables = {file.stem for file in (out / "tables").glob("*.csv")}
    assert tables == {f"quickstart_{name}" for name in ("predictions", "checks", "neighbours")}
    figures = {file.stem for file in (out / "figures").glob("*.png")}
    assert figures == {f"quickstart_{name}" for name in ("ecg", "probabilities", "why", "neighbours")}
    assert not (paths.stage("tiny", "quickstart")).exists()
    saved = pd.read_csv(out / "tables" / "quickstart_predictions.csv")
    expected = embed.read(paths.embeddings("tiny", "tiny") / WEIGHTS, "mean", Cohort.open(paths.cohort("tiny", "tiny")))
    study, ecg = names["study"], names["ecg"]
    again = quickstart.predictions(study, expected[ecg.row], ecg)
    np.testing.assert_allclose(saved["value"], again["value"], rtol=1e-3)

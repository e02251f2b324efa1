from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cure import families, heads, models, paths, pretrain
from cure.config import check
from cure.errors import CureError
from cure.models import Encoder, InputSpec, registry
from cure.plots import training as plots
from cure.settings.pretrain import PretrainConfig
from cure.splits import make_splits
from cure.tasks import SUPERCLASSES

FAMILIES = ["contrastive", "masked", "cpc"]


class Small(Encoder):
    """An encoder that trains in no time."""

    input_spec = InputSpec(fs=100, seconds=10)
    dim = 16

    def __init__(self):
        super().__init__()
        self.filters = nn.Conv1d(12, self.dim, 25, stride=25)
        self.norm = nn.BatchNorm1d(self.dim)

    def forward(self, x):
        return self.norm(self.filters(x).abs()).transpose(1, 2)


def settings(**changes):
    base = {"profile": "demo", "encoder": "small", "weights": ["ssl-folds"], "epochs": 1, "n_simulated": 200}
    return check(PretrainConfig, **{**base, "batch_size": 32, "families": FAMILIES, "families_epochs": 2, **changes})


def redirect(patch, folder):
    """A scratch, a resources and an output folder of their own, the small encoder, and everything in this process."""
    patch.setattr(paths, "scratch", lambda profile, name: folder / "scratch" / name)
    patch.setattr(paths, "resources", lambda profile: folder / "resources")
    patch.setattr(paths, "output", lambda path, stage: folder / "stage")
    patch.setitem(registry.OWN, "small", Small)
    patch.setattr(pretrain.joblib, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def study(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    splits = make_splits(cohort.records, "rotate")
    with pytest.MonkeyPatch.context() as patch:
        redirect(patch, folder)
        compared = families.run(settings(), cohort, splits)
    return cohort, splits, folder, compared, families.score_table(cohort, compared)


@pytest.fixture
def here(study, monkeypatch):
    redirect(monkeypatch, study[2])
    return study


def test_every_objective_and_both_controls_are_scored_on_both_parts(study):
    cohort, splits, _, compared, table = study
    methods = ["none", "statistics", *FAMILIES]
    scored = table[table["comparator"].isna()]
    tasks = list(compared.predicted["task"].unique())
    assert set(tasks) <= set(SUPERCLASSES)
    assert len(tasks) >= 4
    for part, rows in (("validation", splits[0].val), ("test", splits[0].test)):
        mine = scored[scored["part"] == part]
        assert mine["objective"].tolist() == [name for name in methods for _ in range(len(tasks) + 1)]
        assert mine["task"].tolist() == [*tasks, "macro-super"] * len(methods)
        assert (mine["n"] == len(rows)).all()
        assert (mine["n_patients"] == cohort.records["patient_id"].iloc[rows].nunique()).all()
    compared_to = table[table["comparator"].notna()]
    assert compared_to["objective"].tolist() == methods[1:]
    assert set(compared_to["part"]) == {"test"}
    assert compared.predicted.groupby(["objective", "part", "task"])["record_id"].nunique().max() <= len(cohort)
    assert compared.curves["weights"].unique().tolist() == FAMILIES
    assert (compared.curves.groupby("weights")["epoch"].max() == 2).all()


def test_the_scores_are_those_of_the_logistic_head_on_the_encoder(here):
    cohort, splits, _, _, table = here
    split, labels = splits[0], cohort.binary()
    x = torch.from_numpy(Small.input_spec.read(cohort, np.arange(len(cohort))))
    with torch.inference_mode():
        z = models.load("small", seed=0).embed(x).numpy()
    y = labels.y[:, labels.names.index("NORM")]
    fit = heads.fit_head("logistic", z, y, split)
    rows = table[(table["objective"] == "none") & (table["task"] == "NORM")].set_index("part")["value"]
    for part, at in (("validation", split.val), ("test", split.test)):
        assert rows[part] == pytest.approx(roc_auc_score(y[at], fit.score(z[at])), abs=1e-6)


def test_differences_are_paired_with_the_untrained_twin(study):
    table = study[-1]
    test = table[(table["part"] == "test") & (table["task"] == "macro-super")]
    scored = test[test["comparator"].isna()].set_index("objective")["value"]
    for row in test[test["comparator"].notna()].itertuples():
        assert row.comparator == "untrained"
        assert row.reference == pytest.approx(scored["none"])
        assert row.value == pytest.approx(scored[row.objective] - scored["none"])
        assert row.lo <= row.value <= row.hi


def test_the_validation_records_choose_and_the_test_records_do_not(study):
    cohort, _, _, compared, table = study
    macro = table[(table["task"] == "macro-super") & table["comparator"].isna()].set_index(["part", "objective"])
    best = macro.loc["validation", "value"][FAMILIES].idxmax()
    assert table.loc[table["chosen"], "objective"].unique().tolist() == [best]
    for name in FAMILIES:  # whoever is right about the validation records is chosen, however wrong about the others
        predicted = compared.predicted.astype({"score": np.float64})
        at = (predicted["objective"] == name) & (predicted["part"] == "validation")
        predicted.loc[at, "score"] = 0.1 + 0.8 * predicted.loc[at, "y"]
        at = (predicted["objective"] == name) & (predicted["part"] == "test")
        predicted.loc[at, "score"] = 0.9 - 0.8 * predicted.loc[at, "y"]
        again = families.score_table(cohort, replace(compared, predicted=predicted))
        assert families.chosen(again) == name


def test_a_second_run_takes_up_what_is_finished(here, monkeypatch):
    cohort, splits, _, compared, _ = here
    monkeypatch.setattr(pretrain, "train", None)
    again = families.run(settings(), cohort, splits)
    pd.testing.assert_frame_equal(again.predicted, compared.predicted)
    pd.testing.assert_frame_equal(again.cost, compared.cost)


def test_statistics_are_those_of_the_training_records(here):
    cohort, splits, *_ = here
    (corpus,) = pretrain.corpora(settings(), cohort, splits[:1], [])
    encoder = models.load("small")
    untouched = encoder.state_dict()["filters.weight"].clone()
    families.take_statistics(encoder, corpus.x, corpus.rows, batch_size=len(corpus.rows))
    before = encoder.filters(torch.from_numpy(np.asarray(corpus.x[corpus.rows]))).abs()
    torch.testing.assert_close(encoder.norm.running_mean, before.mean(dim=(0, 2)))
    torch.testing.assert_close(encoder.norm.running_var, before.var(dim=(0, 2)))
    assert encoder.norm.momentum == 0.1
    assert not encoder.training
    assert torch.equal(encoder.filters.weight, untouched)


def test_times_stay_out_of_what_is_hashed(here, monkeypatch):
    _, _, folder, compared, _ = here
    assert (compared.cost[["seconds", "core_seconds"]] > 0).all(axis=None)
    families.save_cost(settings(), compared)
    assert pd.read_csv(folder / "stage" / "families_cost.csv")["objective"].tolist() == FAMILIES
    with pytest.raises(CureError, match="no measured times of profile demo"):
        families.cost_table("demo")
    monkeypatch.setenv(paths.STAGE, "pretrain")
    families.save_cost(settings(), compared)
    assert families.cost_table("demo")["epochs"].tolist() == [2] * 3


def test_the_view_and_the_figure_say_what_the_table_says(study):
    table = study[-1]
    view = families.view(table)
    assert view.index.tolist() == ["untrained", "untrained, own statistics", *FAMILIES]
    test = families.main_rows(table, "test").set_index("objective")
    assert view.loc["masked", "test AUROC"].startswith(f"{test.loc['masked', 'value']:.3f} [")
    assert view.loc["untrained", "against untrained"] == ""
    assert view.index[view["chosen"] == "yes"].tolist() == [families.chosen(table)]
    figure = plots.families(families.main_rows(table, "validation"), families.main_rows(table, "test"), "AUROC")
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert f"{families.chosen(table)}  (chosen)" in labels
    dots = next(line for line in axes.lines if line.get_label() == "test")
    np.testing.assert_array_equal(dots.get_xdata(), test["value"])
    plt.close(figure)


def test_the_study_saves_what_the_report_reads(here):
    cohort, splits, folder, compared, table = here
    pd.testing.assert_frame_equal(families.study(settings(), cohort, splits), families.view(table))
    files = {str(file.relative_to(folder / "stage")) for file in (folder / "stage").rglob("*.*")}
    assert files >= {
        "tables/pretraining_families.csv",
        "tables/pretraining_families_curves.csv",
        "figures/pretraining_families.png",
        "predictions/families-small.parquet",
        "families_cost.csv",
    }
    stored = pd.read_parquet(folder / "stage" / "predictions" / "families-small.parquet")
    pd.testing.assert_frame_equal(stored, compared.predicted)


def test_a_profile_without_families_saves_nothing(here, monkeypatch):
    cohort, splits, folder, *_ = here
    monkeypatch.setattr(paths, "output", lambda path, stage: folder / "none")
    assert families.study(settings(families=[]), cohort, splits).empty
    assert not (folder / "none").exists()


def test_nothing_to_compare_is_said(here):
    cohort, splits, *_ = here
    with pytest.raises(CureError, match="compares no objectives: list `families` in its pretrain section"):
        families.run(settings(families=[]), cohort, splits)
    single = replace(splits[0], train=splits[0].train[:1])
    with pytest.raises(CureError, match="no superclass has both classes"):
        families.run(settings(), cohort, [single])

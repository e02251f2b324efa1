import numpy as np
import pandas as pd
import pytest
import shap
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score

from cure import selection
from cure.embed import Representation
from cure.errors import CureError
from cure.geometry import umap_map
from cure.selection import (
    Choice,
    Drawn,
    Sample,
    balanced,
    choices,
    choose_dimensions,
    chosen_settings,
    gain_view,
    grid_table,
    label_silhouette,
    linear_importance,
    selection_table,
)
from cure.settings.probes import ProbesConfig
from cure.splits import Split

ONE = Representation("leadcnn", "ssl-simulated", 0)
CONFIG = ProbesConfig(profile="demo", n_neighbors=[5, 15], min_dist=[0.1], n_shuffles=2, n_draws=100, n_balanced=40)


class People:
    """Labels and patients, as `choices` reads them of a cohort."""

    name = "people"

    def __init__(self, y):
        self.y = np.asarray(y, bool)
        self.records = pd.DataFrame({"record_id": np.arange(len(y)), "patient_id": np.arange(len(y)) // 2})

    def binary(self):
        return type("Labels", (), {"names": ["NORM"], "y": self.y[:, None]})


@pytest.fixture
def study(monkeypatch):
    """240 records of 120 patients, one dimension in eighty knows the label; a function that makes the choices."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.permutation(np.arange(120) % 2), 2)
    x = rng.normal(size=(240, 80)).astype(np.float32)
    x[:, 7] += 4 * y
    monkeypatch.setattr(selection.embed, "read_split", lambda *_: x)
    split = Split("one", np.arange(120), np.arange(120, 160), np.arange(160, 240))
    cohort = People(y)
    return cohort, split, choices(CONFIG, cohort, split, ONE)


def test_importance_is_shaps_own_of_a_linear_head():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(80, 6))
    y = z[:, 0] - z[:, 3] > 0
    head = LogisticRegression().fit(z, y)
    explainer = shap.LinearExplainer(head, shap.maskers.Independent(z, max_samples=len(z)))
    expected = np.abs(explainer.shap_values(z)).mean(axis=0)
    np.testing.assert_allclose(linear_importance(head.coef_[0], z), expected, rtol=1e-6)
    assert set(choose_dimensions(z, y, 2)) == {0, 3}


def test_a_balanced_sample_has_as_many_of_each_and_no_record_twice():
    y = np.arange(100) < 20
    rows = balanced(y, 30, np.random.default_rng(0))
    assert len(set(rows)) == len(rows) == 30
    assert y[rows].sum() == 15
    assert len(balanced(y, 2000, np.random.default_rng(0))) == 40


def test_every_labelling_chooses_for_itself(study):
    cohort, split, found = study
    assert [one.labels for one in found] == ["true", "shuffled", "shuffled"]
    true = found[0]
    assert true.dims[0] == 7
    assert len(true.dims) == selection.N_DIMS
    for one in found:
        assert set(one.fitted.rows) <= set(split.train)
        assert set(one.held_out.rows) <= set(split.test)
        assert one.fitted.y.sum() * 2 == len(one.fitted.y)
    np.testing.assert_array_equal(true.fitted.y, cohort.y[true.fitted.rows])
    for one in found[1:]:
        assert (one.fitted.y != cohort.y[one.fitted.rows]).mean() > 0.2
        assert one.dims.tolist() != true.dims.tolist()
        # Both records of a patient keep one label.
        label = pd.Series(one.fitted.y).groupby(one.fitted.rows // 2)
        assert label.nunique().max() == 1


def test_the_same_seed_makes_the_same_choices(study):
    cohort, split, found = study
    for one, two in zip(found, choices(CONFIG, cohort, split, ONE), strict=True):
        np.testing.assert_array_equal(one.dims, two.dims)
        np.testing.assert_array_equal(one.fitted.rows, two.fitted.rows)


def test_silhouettes_are_scikit_learns():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(40, 3)), rng.integers(2, size=40) > 0
    assert label_silhouette(z, y).mean() == pytest.approx(silhouette_score(z, y))


def handmade(study):
    """Maps in which setting 5 separates the true labels and setting 15 the first permutation."""
    maps = []
    for one in study[2]:
        for k in (5, 15):
            apart = (one.number == 0) == (k == 5)
            rng = np.random.default_rng(k + one.number)
            for records, part in (("fitted", one.fitted), ("held out", one.held_out)):
                xy = rng.normal(size=(len(part.y), 2)) + apart * 9 * part.y[:, None]
                maps.append(Drawn(one.number, records, k, 0.1, xy))
    return maps


def test_the_setting_that_separates_the_labels_best_is_chosen_for_each_labelling(study):
    cohort, _, found = study
    maps = handmade(study)
    assert [chosen_settings(CONFIG, one, maps) for one in found] == [(5, 0.1), (15, 0.1), (15, 0.1)]
    table = selection_table(CONFIG, cohort, ONE, found, maps)
    assert set(table["labels"]) == {"true", "shuffled"}
    for (number, records), rows in table.groupby(["permutation", "records"]):
        value = rows.set_index("step")["value"]
        best = next(m for m in maps if (m.number, m.records, m.k) == (number, records, 5 if number == 0 else 15))
        part = found[number].fitted if records == "fitted" else found[number].held_out
        assert value["chosen UMAP"] == pytest.approx(silhouette_score(best.xy, part.y))
        assert value["all dimensions"] == pytest.approx(silhouette_score(part.z, part.y))
        assert value["chosen dimensions"] == pytest.approx(silhouette_score(part.z[:, found[number].dims], part.y))
        assert ("default UMAP" in value) == (records == "fitted")
    # The grid holds what the choice was made from: its maximum per labelling is what the table shows.
    grid = grid_table(CONFIG, cohort, found, maps).groupby("permutation")["value"].max()
    chosen = table[(table["step"] == "chosen UMAP") & (table["records"] == "fitted")].set_index("permutation")["value"]
    np.testing.assert_allclose(grid, chosen)
    true = table[table["labels"] == "true"]
    assert ((true["lo"] < true["value"]) & (true["value"] < true["hi"])).all()
    assert table[table["labels"] == "shuffled"]["lo"].isna().all()
    view = gain_view(table)
    assert view.loc[("fitted", "chosen UMAP"), "shuffled, largest"] >= view.loc[("fitted", "chosen UMAP")].iloc[1]


def test_choosing_dimensions_gains_on_the_records_they_were_chosen_by(study):
    # Many labellings that say nothing: those fitted gain, those held out do not.
    cohort, split, _ = study
    config = ProbesConfig(profile="demo", n_shuffles=30, n_balanced=80)
    gain = {"fitted": [], "held_out": []}
    for one in choices(config, cohort, split, ONE)[1:]:
        few = one.dims[:10]
        for name in gain:
            part = getattr(one, name)
            gain[name].append(label_silhouette(part.z[:, few], part.y).mean() - label_silhouette(part.z, part.y).mean())
    assert np.mean(gain["fitted"]) > 0.01
    assert np.mean(gain["fitted"]) > 3 * abs(np.mean(gain["held_out"]))


def test_a_task_without_enough_records_is_refused(monkeypatch):
    y = np.arange(60) < 3
    split = Split("one", np.arange(0, 60, 3), np.arange(1, 60, 3), np.arange(2, 60, 3))
    with pytest.raises(CureError, match=r"task NORM: only 1 positive or negative train records in one"):
        choices(CONFIG, People(y), split, ONE)
    with pytest.raises(CureError, match="unknown task 'AB'"):
        choices(ProbesConfig(profile="demo", task="AB"), People(y), split, ONE)


def test_maps_are_drawn_for_every_setting_and_the_same_every_time():
    rng = np.random.default_rng(0)
    sample = Sample(rng.normal(size=(30, 60)), np.arange(30) % 2 == 0, np.arange(30))
    one = Choice(0, sample, sample, np.arange(50))
    config = ProbesConfig(profile="demo", n_neighbors=[5, 100], min_dist=[0.5])
    maps = selection.draw_maps(config, [one])
    where = [(m.records, m.k, m.min_dist) for m in maps]
    assert where[:3] == [("fitted", 5, 0.5), ("fitted", 100, 0.5), ("fitted", 15, 0.1)]
    assert where[3] == ("held out", *chosen_settings(config, one, maps))
    again = umap_map(sample.z[:, :50].astype(np.float32), 0, 5, 0.5).round(3)
    np.testing.assert_array_equal(maps[0].xy, again)

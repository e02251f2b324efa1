import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from xgboost import XGBClassifier

from cure import protocols, released
from cure.errors import CureError
from cure.estimators import PAPER_C
from cure.heads import fit_head
from cure.released import Fold, Grid, balanced_sample, cross_validate, f1, reported, sound, stratified_folds
from cure.settings.protocols import ProtocolsConfig
from cure.splits import Split, make_splits


@pytest.fixture(scope="module")
def problem():
    """300 records; the label depends on the first of 6 dimensions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    y = x[:, 0] + 0.8 * rng.normal(size=300) > 0.8
    order = rng.permutation(300)
    return x, y, Split("one", order[:180], order[180:240], order[240:])


def test_the_grid_holds_as_many_settings_as_asked_and_all_differ():
    for n in (4, 12, 120):
        grid = Grid.of(n)
        assert len(grid.names) == len(set(grid.names)) == len(grid.heads) == len(PAPER_C) + n
        assert (grid.heads == "xgboost").sum() == n
    assert set(Grid.of(120).boosters) == set(released.BOOSTERS)
    assert {depth for depth, *_ in Grid.of(12).boosters} == {3, 12}


@pytest.mark.parametrize("n", [12, 16, 24, 60, 120])
def test_no_axis_of_the_xgboost_grid_follows_from_another(n):
    """Trees, depth, rate and child weight: each takes several values, also where another one is held."""
    assert Grid.of(n) == Grid.of(n)
    settings = [(*booster, trees) for booster in Grid.of(n).boosters for trees in released.TREES]
    assert len(settings) == n
    for a in range(4):
        assert len({one[a] for one in settings}) > 1
        for b in set(range(4)) - {a}:
            values = {}
            for one in settings:
                values.setdefault(one[a], set()).add(one[b])
            assert max(len(found) for found in values.values()) > 1, (a, b)
    for axis in range(3):
        _, counts = np.unique([one[axis] for one in settings], return_counts=True)
        assert counts.max() <= 2 * counts.min()


def test_fewer_trees_are_a_prefix_of_more(problem):
    x, y, _ = problem
    found = released.boosted(x[:200], y[:200], x[200:], (3, 0.3, 1), seed=5)
    for n, score in zip(released.TREES, found, strict=True):
        alone = XGBClassifier(
            n_estimators=n, max_depth=3, learning_rate=0.3, min_child_weight=1, subsample=0.8, colsample_bytree=0.8
        )
        alone.set_params(max_bin=16, n_jobs=1, random_state=5).fit(x[:200], y[:200].astype(int))
        np.testing.assert_allclose(score, alone.predict_proba(x[200:])[:, 1], rtol=1e-6)


def test_the_sound_side_is_the_rule_of_the_heads_study(problem):
    x, y, split = problem
    (score, threshold, setting), (trees, *_) = sound(Grid.of(4), x, y, split, 0)
    direct = fit_head("logistic", x, y, split, 0, "paper")
    assert setting == direct.setting
    assert threshold == pytest.approx(direct.threshold)
    np.testing.assert_allclose(score, direct.score(x[split.test]), rtol=1e-6)
    assert roc_auc_score(y[split.test], trees) > 0.7


def test_the_sound_side_never_looks_at_test_labels(problem):
    x, y, split = problem
    flipped = y.copy()
    flipped[split.test] = ~flipped[split.test]
    for one, other in zip(sound(Grid.of(4), x, y, split, 0), sound(Grid.of(4), x, flipped, split, 0), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_one_class_in_training_gives_that_class_as_score(problem):
    x, _, _ = problem
    assert (Grid.of(4).scores(x[:5], np.zeros(5, bool), x[5:9], 0) == 0).all()
    assert (Grid.of(4).scores(x[:5], np.ones(5, bool), x[5:9], 0) == 1).all()


@given(st.integers(2, 60), st.integers(2, 200), st.floats(0.2, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_balanced_sample_holds_equally_many_of_both_classes_once(n_pos, n_neg, share, seed):
    y = np.random.default_rng(seed).permutation(np.arange(n_pos + n_neg) < n_pos)
    rows = balanced_sample(y, share, 40, np.random.default_rng(seed))
    size = min(int(min(n_pos, n_neg) * share), 40)
    assert y[rows].sum() == (~y[rows]).sum() == size
    assert len(np.unique(rows)) == len(rows)


@given(st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_folds_keep_patients_together_and_balance_positive_ones(n_folds, seed):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, 60, 100)
    y = rng.random(100) < 0.3
    fold = stratified_folds(y, patient, n_folds, rng)
    per_patient = pd.Series(fold).groupby(patient).nunique()
    assert (per_patient == 1).all()
    assert set(fold) == set(range(n_folds))
    positive = pd.Series(y).groupby(patient).any()
    count = pd.Series(fold).groupby(patient).first()[positive].value_counts().reindex(range(n_folds), fill_value=0)
    assert count.max() - count.min() <= 1


def test_by_record_the_folds_are_stratified_k_folds():
    y = np.arange(40) < 10
    fold = stratified_folds(y, np.arange(40), 5, np.random.default_rng(0))
    assert (np.bincount(fold[y]) == 2).all()
    assert (np.bincount(fold[~y]) == 6).all()


@given(st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_f1_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    y = rng.random(12) < 0.4
    scores = rng.random((3, 12))
    for row, value in zip(scores, f1(y, scores), strict=True):
        assert value == pytest.approx(f1_score(y, row >= 0.5, zero_division=0))


def test_what_is_reported_of_a_cross_validation():
    y = np.array([True, True, False, False])
    right, half, wrong = [0.9, 0.8, 0.1, 0.2], [0.9, 0.2, 0.1, 0.3], [0.1, 0.2, 0.9, 0.8]
    folds = [
        Fold(y, np.array([half, wrong]), np.array([0.9, 0.1])),
        Fold(y, np.array([wrong, right]), np.array([0.9, 0.1])),
    ]
    both = np.array([True, True])
    # Inner F1 picks the first setting in both folds: F1 2/3 and 0, AUROC 3/4 and 0.
    median = reported(folds, both, "median fold")
    assert (median["auroc"], median["f1_half"]) == (pytest.approx(0.375), pytest.approx(1 / 3))
    assert (median["n"], median["n_pos"]) == (8, 4)
    best = reported(folds, both, "best fold")
    assert (best["auroc"], best["f1_half"], best["n"]) == (pytest.approx(0.75), pytest.approx(2 / 3), 4)
    assert reported(folds, both, "best setting")["f1_half"] == 1
    assert reported(folds, np.array([True, False]), "best setting")["f1_half"] == pytest.approx(2 / 3)


def test_selection_alone_lifts_the_auroc_of_noise():
    """Shuffled labels: the median fold stays at chance, the best fold and setting, picked by F1, do not."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = [rng.permutation(np.arange(20) < 10) for _ in range(5)]
        folds = [Fold(one, rng.random((6, 20)), rng.random(6)) for one in y]
        hows = ("median fold", "best fold", "best setting")
        found.append([reported(folds, np.ones(6, bool), how)["auroc"] for how in hows])
    median, best, selected = np.mean(found, axis=0)
    assert abs(median - 0.5) < 0.02
    assert best > median + 0.08
    assert selected > best + 0.03


def test_records_of_one_patient_on_both_sides_are_recognised():
    """Two records of each patient, alike but for noise; labels are by patient and at random."""
    grid, apart, together = Grid([]), [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        patient, y = np.repeat(np.arange(40), 2), np.repeat(rng.permutation(np.arange(40) < 20), 2)
        x = (np.repeat(rng.normal(size=(40, 30)), 2, axis=0) + 0.1 * rng.normal(size=(80, 30))).astype(np.float32)
        for unit, out in ((patient, apart), (np.arange(80), together)):
            folds = cross_validate(grid, x, y, unit, 2, np.random.default_rng(seed))
            out.append(reported(folds, grid.heads == "logistic", "median fold")["auroc"])
    assert np.mean(together) > 0.65
    assert abs(np.mean(apart) - 0.5) < 0.12


# --- the stage ----------------------------------------------------------------------------------------


def make_config(**changes):
    about = {"profile": "demo", "tasks": ["NORM", "MI", "STACH"], "n_xgboost": 4, "n_seeds": 2, "n_shuffled": 2}
    return ProtocolsConfig(**{**about, "n_draws": 100, **changes})


@pytest.fixture(scope="module")
def study(cohort):
    """A run on made-up embeddings that know NORM somewhat."""
    rng = np.random.default_rng(0)
    y = cohort.binary().y[:, 0]
    x = np.column_stack([y + rng.normal(size=len(y)), rng.normal(size=(len(y), 3))]).astype(np.float32)
    patch = pytest.MonkeyPatch()
    patch.setattr(protocols.embed, "read_split", lambda *_: x)
    config, splits = make_config(), make_splits(cohort.records, "rotate")
    predicted, sampled = protocols.run(config, cohort, splits)
    patch.undo()
    table = protocols.protocols_table(config, cohort, predicted, sampled)
    return config, splits, predicted, sampled, table, x


def test_every_record_is_scored_once_by_the_sound_side(study, cohort):
    _, _, predicted, *_ = study
    for _, rows in predicted.groupby(["task", "head"], observed=True):
        assert sorted(rows["record_id"]) == sorted(cohort.records["record_id"])


def test_a_sample_is_the_same_again_in_another_process_and_order(study, cohort):
    config, splits, _, sampled, _, x = study
    task, patients = protocols.chosen_tasks(config, cohort)[1], cohort.records["patient_id"].to_numpy()
    for labels in ("true", "shuffled"):
        rows = pd.DataFrame(protocols._sampled(config, Grid.of(4), x, task, patients, splits, 1, labels), dtype=object)
        steps = rows["protocol"].unique()
        before = sampled[(sampled["task"] == task.name) & (sampled["labels"] == labels) & (sampled["sample"] == 1)]
        before = before[before["protocol"].isin(steps)]
        assert before["value"].tolist() == rows["value"].tolist()


def test_the_table_holds_every_step_head_and_sample(study):
    config, _, _, _, table, _ = study
    single = table[(table["labels"] == "true") & (table["sample"] != "mean") & (table["metric"] == "f1")]
    counts = single[single["task"] == "NORM"].groupby(["protocol", "head"]).size()
    cross_validated = set(protocols.STEPS) - {"sound", "within parts", "balanced test"}
    assert set(counts.index) == {(step, head) for step in cross_validated for head in released.HEADS}
    assert (counts == config.n_seeds).all()
    names = ["protocol", "head", "labels", "task", "sample", "metric"]
    assert not table.duplicated(names).any()
    assert set(table["protocol"]) == set(protocols.STEPS)


def test_means_are_means_and_macros_count_supported_tasks_only(study, cohort):
    config, *_, table, _ = study
    here = table[(table["protocol"] == "released") & (table["head"] == "logistic") & (table["labels"] == "true")]
    auroc = here[here["metric"] == "auroc"].set_index(["task", "sample"])["value"]
    assert auroc["NORM", "mean"] == pytest.approx(np.mean([auroc["NORM", i] for i in range(config.n_seeds)]))
    support = here.groupby("task")["supported"].first()
    named = [task for task in ("NORM", "MI", "STACH") if support.get(task, False)]
    assert "NORM" in named
    assert auroc["macro", 0] == pytest.approx(np.mean([auroc[task, 0] for task in named]))
    assert (here.loc[here["task"] == "macro", "n_tasks"] == len(named)).all()
    # Every average is over the same tasks.
    assert (table.loc[table["task"] == "macro", "n_tasks"] == len(named)).all()
    sizes = {task.name: task.size for task in protocols.chosen_tasks(config, cohort)}
    assert set(named) == {name for name, size in sizes.items() if size // 2 >= 10} != set(sizes)
    # The pooled row has its own support; all others that of a fold.
    folded = table[(table["task"] != "macro") & ~((table["protocol"] == "sound") & (table["labels"] == "true"))]
    assert (folded["supported"] == folded["task"].isin(named)).all()
    assert table.loc[~table["supported"], ["lo", "hi"]].isna().all(axis=None)


def test_within_parts_is_the_plain_mean_over_test_parts(study, cohort):
    _, splits, predicted, _, table, _ = study
    row = table[(table["sample"] == "mean") & (table["labels"] == "true") & (table["head"] == "xgboost")]
    value = row.set_index(["protocol", "task", "metric"])["value"]
    for task in ("NORM", "STACH"):
        parts = predicted[(predicted["task"] == task) & (predicted["head"] == "xgboost")].groupby("split")
        both = [part for _, part in parts if part["y"].nunique() == 2]
        assert len(parts) == len(splits)
        plain = np.mean([roc_auc_score(part["y"], part["score"]) for part in both])
        assert value["within parts", task, "auroc"] == pytest.approx(plain)
        tuned = np.mean([f1_score(part["y"], part["score"] >= part["threshold"]) for part in both])
        assert value["within parts", task, "f1_tuned"] == pytest.approx(tuned)
        balanced = []
        for part in both:
            weight = np.where(part["y"], 1.0, part["y"].sum() / (1 - part["y"]).sum())
            balanced.append(average_precision_score(part["y"], part["score"], sample_weight=weight))
        assert value["balanced test", task, "auprc"] == pytest.approx(np.mean(balanced))


def test_a_part_with_one_class_does_not_count():
    y, score = np.array([1, 0, 1, 0], bool), np.array([0.9, 0.1, 0.4, 0.6])
    part, empty = (y, score, np.full(4, 0.5)), (np.zeros(4, bool), score, np.full(4, 0.5))
    once = np.ones((1, 4), np.uint8)
    for balanced in (False, True):
        alone = protocols.within([part], [once], balanced)
        np.testing.assert_array_equal(protocols.within([part, empty], [once, once], balanced), alone)
        assert np.isnan(protocols.within([empty], [once], balanced)).all()
    # A draw without negatives in one part leaves the other.
    drawn = np.array([[1, 1, 1, 1], [2, 0, 2, 0]], np.uint8)
    both = protocols.within([part, part], [drawn, np.ones((2, 4), np.uint8)], False)
    np.testing.assert_allclose(both[:, 1], both[:, 0])


def test_with_one_test_part_pooled_is_within(study, cohort):
    config, _, predicted, sampled, *_ = study
    one = predicted[predicted["split"] == predicted["split"].iloc[0]]
    table = protocols.protocols_table(config, cohort, one, sampled)
    table = table[(table["sample"] == "mean") & (table["labels"] == "true") & (table["task"] == "NORM")]
    wide = table.set_index(["protocol", "head", "metric"])[["value", "lo", "hi", "n", "n_pos", "n_patients"]]
    pd.testing.assert_frame_equal(wide.loc["sound"], wide.loc["within parts"])


def test_balancing_the_test_set_moves_precision_and_not_auroc(study):
    *_, table, _ = study
    mean = table[(table["sample"] == "mean") & (table["labels"] == "true") & (table["head"] == "logistic")]
    value = mean[mean["task"] == "MI"].set_index(["protocol", "metric"])[["value", "lo", "hi"]]
    assert value["value"]["balanced test", "auprc"] > value["value"]["within parts", "auprc"] + 0.1
    np.testing.assert_allclose(value.loc[("balanced test", "auroc")], value.loc[("within parts", "auroc")])


def test_few_samples_have_no_interval(study, cohort):
    config, _, predicted, sampled, table, _ = study
    samples = (table["sample"] == "mean") & table["protocol"].isin(["balanced cohort", "released"])
    assert table.loc[samples, ["lo", "hi", "spread"]].isna().all(axis=None)
    more = pd.concat([sampled.assign(sample=sampled["sample"] + 2 * k) for k in range(5)])
    table = protocols.protocols_table(config, cohort, predicted, more)
    rows = table[(table["sample"] == "mean") & table["protocol"].isin(["balanced cohort", "released"])]
    assert (rows.loc[rows["supported"], "spread"] == "samples").all()
    assert rows.loc[rows["supported"], ["lo", "hi"]].notna().all(axis=None)
    view = protocols.steps_view(table)
    assert view["brackets over"].tolist() == ["patients"] * 3 + ["samples"] * 4


def test_views_say_the_table(study):
    *_, table, _ = study
    view = protocols.steps_view(table)
    assert list(view.index) == list(protocols.STEPS)
    assert list(protocols.steps_view(table, "shuffled").index) == list(protocols.STEPS)
    macro = table[(table["task"] == "macro") & (table["sample"] == "mean") & (table["labels"] == "true")]
    value = macro.set_index(["protocol", "head", "metric"])["value"]
    assert view.loc["released", ("xgboost", "f1")] == f"{value['released', 'xgboost', 'f1']:.3f}"
    assert view.loc["sound", ("xgboost", "f1")].startswith(f"{value['sound', 'xgboost', 'f1']:.3f} [")
    assert view.loc["sound", ("logistic", "f1_tuned")].startswith(f"{value['sound', 'logistic', 'f1_tuned']:.3f} [")
    assert view.loc["released", ("logistic", "f1_tuned")] == ""
    assert view["brackets over"].tolist() == ["patients"] * 3 + [""] * 4
    gains = protocols.gains_view(table)
    for row, first in (("in all", "sound"), ("at equal prevalence", "balanced test")):
        total = value["released", "logistic", "f1"] - value[first, "logistic", "f1"]
        assert gains.loc[row, ("logistic", "f1")] == f"{total:+.3f}"
    assert max(map(len, [*protocols.STEPS.values(), *protocols.ALSO.values()])) <= 50
    assert list(protocols.steps_legend()["step"]) == list(protocols.STEPS)


def test_figures_are_drawn_from_the_table(study):
    from cure.plots.protocols import dumbbells, steps

    *_, table, _ = study
    means = table[table["sample"] == "mean"]
    figure = steps(means[means["task"] == "macro"], list(protocols.STEPS))
    assert [axes.get_xlabel() for axes in figure.axes] == ["AUROC", "AUPRC", "F1 at 0.5"]
    lines = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) > 2}
    macro = means[(means["task"] == "macro") & (means["metric"] == "auroc") & (means["head"] == "logistic")]
    expected = macro[macro["labels"] == "true"].set_index("protocol")["value"].loc[list(protocols.STEPS)]
    np.testing.assert_allclose(lines["logistic regression"], expected)
    drawn = dumbbells(means[means["task"] != "macro"], "balanced test", "released", "logistic")
    assert any(text.get_text().startswith("NORM  (n+ = ") for text in drawn.axes[0].get_yticklabels())


def test_permuted_labels_keep_their_number_in_every_part(cohort):
    config, splits = make_config(), make_splits(cohort.records, "rotate")
    task = protocols.chosen_tasks(config, cohort)[0]
    moved = protocols._permuted(config, task, cohort.records["patient_id"].to_numpy(), splits, 0)
    assert (moved != task.y).any()
    for split in splits:
        assert moved[split.test].sum() == task.y[split.test].sum()
    other = protocols._permuted(config, task, cohort.records["patient_id"].to_numpy(), splits, 1)
    assert (moved != other).any()


def test_errors_say_what_to_change(cohort):
    with pytest.raises(CureError, match="no representation 'nobody': choose from "):
        protocols.subject(make_config(representation="nobody"), cohort)
    folds = make_config(profile="ptbxl-subset", representation="leadcnn-ssl-folds-0")
    with pytest.raises(CureError, match="has weights for each outer split"):
        protocols.subject(folds, cohort)
    with pytest.raises(CureError, match="no task 'flu': choose from NORM"):
        protocols.chosen_tasks(make_config(tasks=["flu"]), cohort)
    with pytest.raises(CureError, match="no task has enough positive records"):
        protocols.chosen_tasks(make_config(sample_percentage=0.01), cohort)
    with pytest.raises(ValueError, match="multiple of 4"):
        make_config(n_xgboost=6)

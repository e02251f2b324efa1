from dataclasses import replace
from itertools import product

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from cure import embed, importance, topk
from cure.embed import Representation
from cure.errors import CureError
from cure.heads import fit_head
from cure.importance import Explanation, Subject, check_additivity, concentration, explain_head
from cure.plots.importance import concentration_curve, topk_curve
from cure.settings.explain import ExplainConfig
from cure.splits import Split, make_splits

HEADS = ("logistic", "mlp", "xgboost")
PLANTED = (7, 21, 40)


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    with threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(joblib, "cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def planted():
    """700 records, 50 dimensions of which three carry the label; a few gaps, as features have them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 50)).astype(np.float32)
    y = x[:, PLANTED].sum(axis=1) + 0.3 * rng.normal(size=700) > 0.8
    x[::50, 3] = np.nan
    order = rng.permutation(700)
    return x, y, Split("one", order[:400], order[400:550], order[550:])


@pytest.fixture(scope="module")
def fits(planted):
    return {name: fit_head(name, *planted) for name in HEADS}


@pytest.fixture(scope="module")
def explained(planted, fits):
    x, _, split = planted
    return {name: explain_head(name, fits[name], x[split.train], x[split.test]) for name in HEADS}


def subject_of(x, y, splits):
    ids = np.arange(len(y))
    key = {"cohort": "c", "encoder": "e", "weights": "random", "pooling": "mean", "seed": 0}
    return Subject(key, [x] * len(splits), y[:, None], ["MI"], splits, ids, pd.Series(ids // 2, index=ids))


@pytest.fixture(scope="module")
def subject(planted):
    """The planted problem in three outer splits, two records per patient."""
    x, y, _ = planted
    part = np.arange(len(y)) // 2 % 6
    splits = [
        Split(f"s{k}", *(np.flatnonzero(np.isin((part - k) % 6, p)) for p in ((4, 5, 2), (3,), (0, 1))))
        for k in (0, 2, 4)
    ]
    return subject_of(x, y, splits)


@pytest.fixture(scope="module")
def predicted(subject):
    return topk.topk_predictions(subject, [1, 3, 200], n_random=4)


@pytest.fixture(scope="module")
def table(subject, predicted):
    return topk.topk_table(subject, predicted, n_draws=100)


# --- contributions of one head ---


@pytest.mark.parametrize("name", HEADS)
def test_contributions_add_up_to_the_log_odds_of_the_head(name, planted, fits, explained):
    x, _, split = planted
    one = explained[name]
    assert one.values.shape == (150, 50)
    p = fits[name].score(x[split.test]).astype(float)
    ordinary = (p > 1e-3) & (p < 1 - 1e-3)
    assert ordinary.sum() > 50
    np.testing.assert_allclose((one.values.sum(axis=1) + one.base)[ordinary], logit(p[ordinary]), atol=2e-3)


@pytest.mark.parametrize("name", HEADS)
def test_planted_dimensions_come_first(name, explained):
    assert set(np.argsort(-explained[name].importance)[:3]) == set(PLANTED)


def test_logistic_contributions_are_those_of_shap(planted, fits, explained):
    import shap

    x, _, split = planted
    scale, model = fits["logistic"].estimator[0], fits["logistic"].estimator[-1]
    z, z_test = scale.transform(x[split.train]), scale.transform(x[split.test])
    masker = shap.maskers.Independent(z, max_samples=len(z))
    expected = shap.LinearExplainer(model, masker).shap_values(z_test)
    np.testing.assert_allclose(explained["logistic"].values, expected, atol=1e-5)


def test_tree_contributions_are_those_of_shap_over_the_trees_that_the_head_uses(planted, fits, explained):
    import shap

    x, _, split = planted
    model = fits["xgboost"].estimator
    n_used = model.best_iteration + 1
    assert n_used < len(model.get_booster().get_dump())  # else nothing would be tested
    explainer = shap.TreeExplainer(model.get_booster()[:n_used])
    np.testing.assert_allclose(explained["xgboost"].values, explainer.shap_values(x[split.test]), atol=1e-4)


def test_the_torch_copy_is_the_network(planted, fits):
    x, _, split = planted
    scale, model = fits["mlp"].estimator[0], fits["mlp"].estimator[-1]
    z = scale.transform(x[split.test])
    with torch.inference_mode():
        margin = importance.torch_copy(model)(torch.from_numpy(z.astype(float)))[:, 0].numpy()
    np.testing.assert_allclose(expit(margin), model.predict_proba(z)[:, 1], atol=1e-6)


def test_network_contributions_are_those_of_shap(planted, fits):
    import shap

    x, _, split = planted
    # With a background that is taken whole, there is nothing to draw.
    few = x[split.train[: importance.N_BACKGROUND]]
    scale, model = fits["mlp"].estimator[0], fits["mlp"].estimator[-1]
    z, z_test = (torch.from_numpy(scale.transform(part).astype(float)) for part in (few, x[split.test[:20]]))
    expected = shap.DeepExplainer(importance.torch_copy(model), z).shap_values(z_test)
    one = explain_head("mlp", fits["mlp"], few, x[split.test[:20]])
    np.testing.assert_allclose(one.values, np.reshape(expected, one.values.shape), atol=1e-6)


def test_a_dimension_that_a_network_does_not_read_gets_nothing(planted, fits):
    x, _, split = planted
    constant = x.copy()
    constant[:, 5] = 2.0
    few = constant[split.test[:10]]
    one = explain_head("mlp", fit_head("mlp", constant, planted[1], split), constant[split.train], few)
    np.testing.assert_array_equal(one.values[:, 5], 0)


@given(st.integers(0, 19), st.floats(0.01, 5))
@settings(max_examples=20, deadline=None)
def test_contributions_that_do_not_add_up_are_refused(record, error):
    values = np.random.default_rng(0).normal(size=(20, 4))
    margin = values.sum(axis=1) + 0.5
    check_additivity("mlp", Explanation(values, 0.5, margin), expit(margin))
    spoilt = values.copy()
    spoilt[record, 1] += error
    with pytest.raises(CureError, match="mlp head: contributions miss its log-odds"):
        check_additivity("mlp", Explanation(spoilt, 0.5, margin), expit(margin))
    with pytest.raises(CureError, match="its probabilities by"):
        check_additivity("mlp", Explanation(values, 0.5, margin), expit(margin) + 0.001)


def test_an_unknown_head_is_named(planted, fits):
    with pytest.raises(CureError, match="no explainer for head 'svm': choose from logistic, mlp, xgboost"):
        explain_head("svm", fits["mlp"], planted[0], planted[0])


# --- importance ---


def test_a_record_at_the_training_mean_has_no_linear_contributions(subject):
    # The test records explained, and the training records meant over, are those that they should be.
    s = subject.splits[0]
    x = np.nan_to_num(subject.x[0])
    x[s.test] = x[s.train].mean(axis=0)
    moved = subject_of(x, subject.y[:, 0], [s])
    shap = importance.shap_table(moved, ["logistic"], n_records=30)
    assert len(shap) == 50
    assert (shap["n"] == 30).all()
    assert shap["value"].max() < 1e-5
    plain = importance.shap_table(subject_of(np.nan_to_num(subject.x[0]), subject.y[:, 0], [s]), ["logistic"], 30)
    assert plain["value"].max() > 0.5


def test_every_split_has_dimensions_of_its_own(subject):
    rng = np.random.default_rng(1)
    orders = [rng.permutation(50) for _ in subject.splits]
    shuffled = replace(subject, x=[subject.x[0][:, order] for order in orders])
    one, two = (importance.shap_table(s, ["logistic"], n_records=50) for s in (subject, shuffled))
    for split, order in zip(subject.splits, orders, strict=True):
        a, b = (t.loc[t["split"] == split.name, "value"].to_numpy() for t in (one, two))
        np.testing.assert_allclose(b, a[order], atol=0.02)
        assert set(np.argsort(-b)[:3]) == {int(np.flatnonzero(order == p)[0]) for p in PLANTED}


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0.01, 100))
def test_concentration_has_closed_forms(used, unused, size):
    value = np.zeros(used + unused)
    value[:used] = size
    effective, half = concentration(np.random.default_rng(0).permutation(value))
    assert effective == pytest.approx(used)
    assert half == -(-used // 2)


def test_concentration_of_a_head_that_uses_nothing_is_undefined():
    assert np.isnan(concentration(np.zeros(5))).all()


def test_concentration_view_gives_mean_and_span_over_splits():
    rows = [
        {"encoder": "e", "head": "mlp", "task": "MI", "split": f"s{used}", "dimension": d, "metric": "m", "n": 9}
        | {"value": float(d < used)}
        for used in (2, 6)
        for d in range(8)
    ]
    table = importance.concentration_table(pd.DataFrame(rows))
    assert list(table["dim"].unique()) == [8]
    assert importance.concentration_view(table).loc["mlp", "MI"] == "4 (2 to 6)"
    assert importance.concentration_view(table[table["split"] == "s6"]).loc["mlp", "MI"] == "6"


# --- heads on the best k dimensions ---


def test_test_records_have_no_influence_on_the_ranking(planted):
    x, y, split = planted
    before = topk.rank_dimensions(x, y, split)
    changed, flipped = x.copy(), y.copy()
    changed[split.test] = 1000
    flipped[split.test] = ~flipped[split.test]
    np.testing.assert_array_equal(topk.rank_dimensions(changed, flipped, split), before)
    # Validation records choose one penalty; they are not among the records averaged over.
    doubled = Split("one", split.train, np.repeat(split.val, 2), split.test)
    np.testing.assert_array_equal(topk.rank_dimensions(x, y, doubled), before)
    assert set(before[:3]) == set(PLANTED)


def test_three_planted_dimensions_are_as_good_as_all_and_three_random_ones_are_not(table):
    auroc = topk.curve_points(table).set_index(["selection", "k"])["mean"]
    assert auroc["shap", 3] > auroc["all", 50] - 0.01
    assert auroc["shap", 3] > 0.95
    assert auroc["shap", 1] < auroc["shap", 3] - 0.05
    assert auroc["random", 3] < auroc["shap", 3] - 0.15


def test_the_curve_scores_every_tested_record_once_per_method(predicted, table, subject):
    methods = predicted[["selection", "k", "draw"]].drop_duplicates()
    once = methods[methods["selection"] != "random"]
    assert set(zip(once["selection"], once["k"], strict=True)) == {("all", 50), *product(("shap", "pca"), (1, 3))}
    assert len(methods) == 5 + 4 * 2  # 200 of 50 dimensions is none
    tested = np.concatenate([split.test for split in subject.splits])
    for _, rows in predicted.groupby(["selection", "k", "draw"], observed=True):
        assert sorted(rows["record_id"]) == sorted(tested)
        assert (rows["y"].to_numpy(bool) == subject.y[rows["record_id"], 0]).all()
    assert table["n_patients"].unique() == [len(np.unique(tested // 2))]
    assert table.groupby("selection")["value"].nunique()["random"] > 4  # draws differ


def test_the_full_head_is_the_head_of_the_study(predicted, subject):
    split = subject.splits[1]
    rows = predicted[(predicted["selection"] == "all") & (predicted["split"] == split.name)]
    direct = fit_head("logistic", subject.x[1], subject.y[:, 0], split)
    np.testing.assert_allclose(rows["score"], direct.score(subject.x[1][split.test]), rtol=1e-5)
    assert rows["threshold"].unique() == pytest.approx([direct.threshold])


def test_principal_components_are_of_the_training_records(planted):
    x, _, split = planted
    changed = x.copy()
    changed[split.test] = 1000
    one, two = (topk._components(values, split, 4, 0) for values in (x, changed))
    np.testing.assert_array_equal(one[split.train], two[split.train])
    sd = one[split.train].std(axis=0)
    assert (np.diff(sd) <= 0).all()


def curve(of):
    """A table of scores; HYP lacks support."""
    rows = [
        {"task": task, "selection": selection, "k": k, "draw": draw, "value": value, "lo": 0.6, "hi": 1.0, "n_pos": 30}
        | {"supported": task != "HYP"}
        for task in ("MI", "HYP")
        for (selection, k, draw), value in of.items()
    ]
    return pd.DataFrame(rows)


def test_the_text_says_what_the_table_says():
    of = {("all", 16, 0): 0.9, ("shap", 2, 0): 0.85, ("shap", 4, 0): 0.891, ("shap", 8, 0): 0.93}
    of |= {("random", 4, 0): 0.95, ("random", 4, 1): 0.75, ("random", 8, 0): 0.90, ("random", 8, 1): 0.886}
    text = topk.topk_text(curve(of))
    assert "random: mean of 2 draws" in text
    assert "**MI** (all 16: 0.900): highest mean |SHAP| 4 (0.891); random dimensions 8 (0.893)." in text
    assert "Nothing is said where all dimensions together are not better than chance: HYP." in text
    lucky = topk.topk_text(curve({**of, ("shap", 8, 0): 0.85}))
    assert "highest mean |SHAP| no fewer than all" in lucky, "4 dimensions were enough, but 8 are not"
    worse = topk.topk_text(curve(of | {("random", 8, 1): 0.5}))
    assert "random dimensions no fewer than all" in worse


def test_figures_show_the_tables(table, subject):
    axes = topk_curve(table).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    shap = table[table["selection"] == "shap"]
    np.testing.assert_allclose(lines["highest mean |SHAP|"].get_ydata(), shap.sort_values("k")["value"])
    assert lines["all 50 dimensions"].get_ydata()[0] == table.loc[table["selection"] == "all", "value"].item()
    of = {("all", 16, 0): 0.9, ("shap", 2, 0): 0.85, ("random", 2, 0): 0.6, ("random", 2, 1): 0.7}
    supported, grey = topk_curve(curve(of)).axes
    assert len(supported.collections) == 2
    assert len(grey.collections) == 0
    values = importance.shap_table(subject, ["logistic", "xgboost"], n_records=40)
    (axes,) = concentration_curve(values).axes
    for line in axes.lines:
        assert line.get_ydata()[-1] == pytest.approx(1)
        assert (np.diff(line.get_ydata()) >= -1e-12).all()


# --- what is studied ---


def test_a_subject_holds_the_embeddings_of_each_split(cohort, monkeypatch):
    config = ExplainConfig(
        profile="demo", encoder="leadcnn", weights="ssl-folds", tasks=["AFIB", "MI"], heads=["logistic"], top_k=[1]
    )
    splits = make_splits(cohort.records, "rotate")
    made = [Representation("leadcnn", "ssl-folds", 4), Representation("leadcnn", "random", 0)]
    monkeypatch.setattr(embed, "representations", lambda config: made)
    read = {split.name: np.full((len(cohort), 3), i, np.float32) for i, split in enumerate(splits)}
    monkeypatch.setattr(embed, "read_split", lambda config, one, pooling, cohort, split: read[split.name])
    subject = Subject.read(config, cohort, splits)
    assert [x[0, 0] for x in subject.x] == [0, 1, 2, 3, 4]
    assert subject.key["seed"] == 4
    labels = cohort.binary()
    np.testing.assert_array_equal(subject.y[:, 1], labels.y[:, labels.names.index("MI")])
    monkeypatch.setattr(embed, "representations", lambda config: made[1:])
    with pytest.raises(CureError, match="no leadcnn with weights ssl-folds; section embed extracts leadcnn random"):
        Subject.read(config, cohort, splits)
    with pytest.raises(CureError, match=r"unknown tasks \['flu'\]: choose from NORM"):
        Subject.of(cohort, splits, made[0], subject.x, ["flu"])

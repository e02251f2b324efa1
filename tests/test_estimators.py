import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from cure import estimators
from cure.estimators import HEADS, Data, candidates, log_loss, platt, scaler
from cure.heads import choose


@pytest.fixture(scope="module")
def data():
    """220 training and 80 validation records; the label depends on two of six dimensions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    y = x[:, 0] + x[:, 1] + 0.7 * rng.normal(size=300) > 1
    return Data(x[:220], y[:220], x[220:], y[220:])


#: How many settings the released code's grids hold, as far as they are known (reference: papers.md, 1.4).
PAPER = {"logistic": 5, "lasso": 5, "elastic-net": 5, "mlp": 36, "xgboost": 30, "forest": 45, "svm-linear": 3}
PAPER |= {"svm-rbf": 6}


@pytest.mark.parametrize("name", ["logistic", "lasso", "elastic-net", "xgboost", "svm-linear", "svm-rbf"])
def test_the_papers_grid_is_tried_in_full(name, data):
    tried = [setting for _, setting in candidates(name, data, 0, "paper")]
    assert len(set(tried)) == len(tried) == PAPER[name]


def test_the_papers_mlps_and_forests_are_what_their_settings_say(data, monkeypatch):
    # What is built counts here; training 36 networks and 45 forests would take a minute.
    def briefly(model, z, _z_val, data, *_):
        return model.partial_fit(z[:70], data.y[:70], classes=[False, True]), 1

    monkeypatch.setattr(estimators, "_stopped", briefly)
    nets = list(candidates("mlp", data, 0, "paper"))
    assert len(nets) == PAPER["mlp"]
    for net, setting in nets:
        layers, width, rate = (part.split("=")[1] for part in setting.split(", ")[:3])
        assert net[-1].hidden_layer_sizes == (int(width),) * int(layers)
        assert net[-1].learning_rate_init == float(rate)
        assert net[-1].batch_size == 64
    fitted = []
    monkeypatch.setattr(
        estimators.RandomForestClassifier, "fit", lambda self, *_: fitted.append(self.get_params()) or self
    )
    names = [setting for _, setting in candidates("forest", data, 0, "paper")]
    assert len(set(names)) == len(fitted) == PAPER["forest"]
    assert {one["n_estimators"] for one in fitted} == {100, 200, 300}
    assert {one["max_depth"] for one in fitted} == {10, 20, 30, 40, 50}


@pytest.mark.parametrize("name", HEADS)
def test_candidates_are_judged_by_a_finite_loss(name, data):
    losses = [log_loss(estimator, data.x_val, data.y_val) for estimator, _ in candidates(name, data, 0)]
    assert np.isfinite(losses).all()
    # Below what the training prevalence alone gives, and no single certain error.
    share = np.full(len(data.y_val), data.y.mean())
    assert min(losses) < sklearn_log_loss(data.y_val, share)


def test_log_loss_is_scikit_learns_where_that_is_defined(data):
    (model, _), *_ = candidates("logistic", data, 0)
    direct = sklearn_log_loss(data.y_val, model.predict_proba(data.x_val)[:, 1])
    assert log_loss(model, data.x_val, data.y_val) == pytest.approx(direct)


def test_the_lasso_is_the_l1_optimum_with_a_free_intercept(data):
    scale = scaler().fit(data.x)
    z = scale.transform(data.x).astype(np.float64)
    for (model, setting), c in zip(candidates("lasso", data, 0), estimators.LASSO_C, strict=True):
        assert setting == f"C={c:g}"
        exact = LogisticRegression(C=c, l1_ratio=1, solver="saga", tol=1e-8, max_iter=20_000).fit(z, data.y)
        np.testing.assert_allclose(model[-1].coef_, exact.coef_, atol=0.02)
        np.testing.assert_allclose(model[-1].intercept_, exact.intercept_, atol=0.02)


def test_the_elastic_net_is_near_its_optimum(data):
    z = scaler().fit(data.x).transform(data.x).astype(np.float64)
    for (model, _), c in zip(candidates("elastic-net", data, 0), estimators.ELASTIC_NET_C, strict=True):
        exact = LogisticRegression(C=c, l1_ratio=0.5, solver="saga", tol=1e-8, max_iter=20_000).fit(z, data.y)
        np.testing.assert_allclose(model[-1].coef_, exact.coef_, atol=0.02)


# --- probabilities ------------------------------------------------------------------------------------


def test_platt_finds_the_curve_that_made_the_labels():
    rng = np.random.default_rng(0)
    margin = rng.normal(size=40_000)
    y = rng.random(40_000) < expit(2.5 * margin - 1)
    slope, intercept = platt(margin, y)
    assert slope == pytest.approx(2.5, rel=0.05)
    assert intercept == pytest.approx(-1, abs=0.05)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.integers(1, 19))
@settings(max_examples=50, deadline=None)
def test_platt_is_finite_rising_and_does_not_depend_on_the_unit(seed, unit, n_pos):
    margin = np.random.default_rng(seed).normal(size=20)
    y = np.arange(20) < n_pos
    slope, intercept = platt(margin, y)
    assert slope > 0
    assert np.isfinite([slope, intercept]).all()
    scaled, same = platt(unit * margin, y)
    np.testing.assert_allclose(scaled * unit, slope, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(same, intercept, rtol=1e-3, atol=1e-3)


def test_platt_stays_finite_where_margins_separate_the_classes():
    slope, intercept = platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True]))
    p = expit(slope * np.array([-2, 2]) + intercept)
    # Platt's targets for two records of each class are 1/4 and 3/4.
    assert 0.1 < p[0] < 0.3 < 0.7 < p[1] < 0.9


def test_platt_of_equal_margins_is_the_smoothed_prevalence():
    slope, intercept = platt(np.zeros(10), np.arange(10) < 3)
    target = (3 * 4 / 5 + 7 * 1 / 9) / 10
    assert expit(intercept) == pytest.approx(target, abs=1e-3)
    assert slope > 0


@pytest.mark.parametrize("name", ["svm-linear", "svm-rbf"])
def test_an_svm_ranks_as_its_decision_value_does(name, data):
    for fit, _ in candidates(name, data, 0):
        margin = fit.model.decision_function(data.x_val)
        p = fit.predict_proba(data.x_val)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        assert (np.diff(p[np.argsort(margin), 1]) >= 0).all()
        assert roc_auc_score(data.y_val, p[:, 1]) == pytest.approx(roc_auc_score(data.y_val, margin))


def test_vote_shares_count_one_more_voter_who_says_the_prevalence(data):
    z, z_val = (scaler().fit(data.x).transform(part) for part in (data.x, data.x_val))
    for (fit, setting), k in zip(candidates("knn", data, 0), estimators.NEIGHBOURS, strict=True):
        assert setting == f"k={k}"
        share = KNeighborsClassifier(k).fit(z, data.y).predict_proba(z_val)[:, 1]
        expected = (k * share + data.y.mean()) / (k + 1)
        np.testing.assert_allclose(fit.predict_proba(data.x_val)[:, 1], expected)


def test_neighbours_are_as_many_as_there_are_records(data):
    few = Data(data.x[:12], data.y[:12], data.x_val, data.y_val)
    assert few.y.any()
    assert [setting for _, setting in candidates("knn", few, 0)] == ["k=5", "k=10", "k=12"]


@pytest.mark.parametrize("name", ["tree", "knn", "xgboost"])
def test_validation_chooses_by_log_loss(name, data):
    fitted = list(candidates(name, data, 0))
    best = min(fitted, key=lambda one: sklearn_log_loss(data.y_val, one[0].predict_proba(data.x_val)[:, 1]))
    assert choose(fitted, data.x_val, data.y_val).setting == best[1]


def test_an_mlps_epochs_have_batches_of_their_own(data, monkeypatch):
    """With a number as `random_state`, scikit-learn would shuffle every `partial_fit` alike."""
    from sklearn.neural_network import _multilayer_perceptron as module

    orders, shuffle = [], module.shuffle
    monkeypatch.setattr(module, "shuffle", lambda *a, **k: orders.append(shuffle(*a, **k)) or orders[-1])
    list(estimators.candidates("mlp", data, 0, "compact"))
    assert len(orders) > 3
    assert not np.array_equal(orders[1], orders[2])

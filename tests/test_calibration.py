import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from cure.bootstrap import metrics, patient_draws
from cure.calibration import bin_codes, calibration_table, recalibration, reliability, reliability_table


def sample(seed, n=300, slope=1.0, intercept=0.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, n)
    return (rng.random(n) < expit(intercept + slope * z)).astype(int), expit(z), rng


@given(st.integers(0, 1000), st.floats(0.3, 3), st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_slope_and_intercept_are_scikit_learns(seed, slope, intercept):
    y, score, rng = sample(seed, slope=slope, intercept=intercept)
    weights = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=4).astype(np.uint8)
    found, at_one = recalibration(y, score, weights)
    for w, b, a in zip(weights, found, at_one, strict=True):
        if 0 < w @ y < w.sum():
            fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(score)[:, None], y, sample_weight=w)
            assert b == pytest.approx(fit.coef_[0, 0], abs=2e-4)
            # With the slope held at 1 the estimate makes expected and observed positives equal.
            assert w @ expit(a + logit(score)) == pytest.approx(w @ y, rel=1e-6)


def test_two_distinct_scores_have_a_closed_form():
    score = np.repeat([0.2, 0.6], [50, 50])
    y = np.r_[np.arange(50) < 5, np.arange(50) < 40].astype(int)
    expected = (logit(0.8) - logit(0.1)) / (logit(0.6) - logit(0.2))
    slope, _ = recalibration(y, score, np.ones((1, 100)))
    assert slope[0] == pytest.approx(expected, rel=1e-6)


def test_logits_that_are_doubled_have_half_the_slope():
    y, score, _ = sample(0, n=500)
    once, _ = recalibration(y, score, np.ones((1, 500)))
    twice, _ = recalibration(y, expit(2 * logit(score)), np.ones((1, 500)))
    assert twice[0] == pytest.approx(once[0] / 2, rel=1e-6)


def test_infinite_and_undefined_estimates_are_nan():
    y = np.r_[np.zeros(20), np.ones(20)].astype(int)
    separated = np.linspace(0.1, 0.9, 40)
    slope, intercept = recalibration(y, separated, np.ones((2, 40)))
    assert np.isnan(slope).all()
    assert np.isfinite(intercept).all()
    y, score, _ = sample(1, n=40)
    one_class = np.stack([np.ones(40), (y == 1).astype(float)])
    slope, intercept = recalibration(y, score, one_class)
    assert np.isfinite(slope[0])
    assert np.isnan([slope[1], intercept[1]]).all()


def test_scores_of_zero_and_one_do_not_break_it():
    y, score, _ = sample(2, n=200)
    score[:5], score[-5:] = 0.0, 1.0
    assert np.isfinite(np.concatenate(recalibration(y, score, np.ones((1, 200))))).all()


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_curve_holds_the_calibration_error(seed):
    y, score, rng = sample(seed)
    score = np.round(score, 2)  # ties
    curve = reliability(y, score, np.arange(300), patient_draws(np.arange(300), 20, rng))
    assert curve.n.sum() == 300
    assert curve.n_pos.sum() == y.sum()
    assert (np.diff(curve.predicted) > 0).all()
    expected = metrics(y, score)["ece"]
    assert (curve.n * np.abs(curve.observed - curve.predicted)).sum() / 300 == pytest.approx(expected)


def test_intervals_of_bins_are_those_of_a_loop():
    y, score, rng = sample(3)
    patient = np.arange(300) // 2
    weights = patient_draws(patient, 200, rng)
    curve = reliability(y, score, patient, weights)
    codes = bin_codes(score)
    both = (curve.n_pos > 0) & (curve.n_pos < curve.n)
    assert both.sum() > 5
    for b in np.flatnonzero(both):
        inside = codes == b
        shares = [w[inside] @ y[inside] / w[inside].sum() for w in weights]
        np.testing.assert_allclose([curve.lo[b], curve.hi[b]], np.quantile(shares, [0.025, 0.975]))


def test_a_bin_without_positives_has_wilsons_bound():
    score = np.linspace(0.01, 0.99, 100)
    y = (np.arange(100) >= 50).astype(int)
    curve = reliability(y, score, np.arange(100) // 2, np.ones((50, 100)))
    # Five patients in the bin: 1.96² / (5 + 1.96²).
    assert (curve.lo[0], curve.hi[0]) == (0, pytest.approx(0.4345, abs=1e-4))
    assert (curve.lo[-1], curve.hi[-1]) == (pytest.approx(0.5655, abs=1e-4), 1)


@pytest.fixture(scope="module")
def predicted():
    parts = []
    for task, slope in (("a", 0.5), ("rare", 1.0)):
        y, score, _ = sample(5, n=600, slope=slope)
        if task == "rare":
            y[:] = 0
            y[:4] = 1
        key = {"cohort": "c", "protocol": "sound", "head": "h", "seed": 0, "task": task}
        parts.append(pd.DataFrame({**key, "record_id": np.arange(600), "y": y, "score": score, "threshold": 0.5}))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0)


def test_tables_recover_what_was_planted_and_hold_back_without_support(predicted):
    patients = pd.Series(np.arange(600), index=pd.RangeIndex(600, name="record_id"))
    table = calibration_table(predicted, patients, n_draws=200, seed=0).set_index(["task", "metric"])
    slope = table.loc[("a", "slope")]
    assert slope["lo"] < 0.5 < slope["hi"] < 1
    rows = predicted[predicted["task"] == "a"]
    y, brier = rows["y"].to_numpy(), table.loc[("a", "brier")]
    assert brier["value"] == pytest.approx(np.mean((rows["score"] - y) ** 2))
    assert brier["target"] == pytest.approx(np.mean((y.mean() - y) ** 2))
    assert table.loc["rare", ["lo", "hi"]].isna().all(axis=None)
    assert not table.loc["rare", "supported"].any()
    curves = reliability_table(predicted, patients, n_draws=200, seed=0)
    assert curves.groupby("task")["n_bin"].sum().eq(600).all()
    assert curves.loc[curves["task"] == "rare", ["lo", "hi"]].isna().all(axis=None)
    assert curves.loc[curves["task"] == "a", ["lo", "hi"]].notna().all(axis=None)

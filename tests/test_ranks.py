import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cure.bootstrap import patient_draws
from cure.errors import CureError
from cure.evaluate import evaluate
from cure.ranks import MACRO, OVERALL, metric_draws, rank_table, ranks, score_table, share_best

N = 200
PATIENTS = pd.Series(np.arange(N) // 2, index=pd.RangeIndex(N, name="record_id"))


def frame(methods, tasks=("a", "b"), positives=60, seed=0):
    """Predictions of methods (encoder, seed, noise); `rare` has 5 positives."""
    rng = np.random.default_rng(seed)
    parts = []
    for task in tasks:
        y = np.zeros(N, int)
        y[rng.permutation(N)[: 5 if task == "rare" else positives]] = 1
        for encoder, number, noise in methods:
            score = 1 / (1 + np.exp(-(2.0 * y - 1 + noise * rng.normal(size=N))))
            key = {"cohort": "c", "protocol": "sound", "encoder": encoder, "seed": number, "task": task}
            parts.append(pd.DataFrame({**key, "record_id": np.arange(N), "y": y, "score": score, "threshold": 0.5}))
    return pd.concat(parts, ignore_index=True)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_rank_counts_who_is_better_and_halves_ties(values, lower):
    values = np.array(values, float)
    found = ranks(values, lower=lower)
    for i, j in np.ndindex(*values.shape):
        others = np.delete(values[:, j], i)
        better = (others < values[i, j]) if lower else (others > values[i, j])
        assert found[i, j] == 1 + better.sum() + (others == values[i, j]).sum() / 2


def test_an_undefined_draw_has_no_ranks_and_does_not_count_for_the_best():
    values = np.array([[0.9, np.nan, 0.5], [0.8, 0.7, 0.5]])
    found = ranks(values)
    np.testing.assert_array_equal(found, [[1, np.nan, 1.5], [2, np.nan, 1.5]])
    np.testing.assert_allclose(share_best(found), [0.75, 0.25])


def test_draws_are_those_of_the_score_tables():
    predicted = frame([("e", 0, 1.0), ("f", 0, 3.0)], tasks=("a", "b", "rare"))
    drawn = metric_draws(predicted, PATIENTS, ("auroc", "brier"), n_draws=150, seed=4)
    ours = score_table(drawn).set_index(["encoder", "task", "metric"])[["value", "lo", "hi", "n", "n_patients"]]
    theirs = evaluate(predicted, PATIENTS, n_draws=150, seed=4, metrics=("auroc", "brier"))
    theirs = theirs.set_index(["encoder", "task", "metric"])[list(ours)].loc[ours.index]
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)


def test_seeds_are_averaged_inside_each_draw():
    predicted = frame([("e", 0, 1.0), ("e", 1, 3.0), ("f", 0, 2.0)], tasks=("a",))
    drawn = metric_draws(predicted, PATIENTS, n_draws=20, seed=0)
    assert list(drawn.methods["encoder"]) == ["e", "f"]
    one = [predicted[(predicted["encoder"] == "e") & (predicted["seed"] == seed)] for seed in (0, 1)]
    weights = patient_draws(PATIENTS.to_numpy(), 20, np.random.default_rng(0))
    for k, w in enumerate(weights):
        expected = np.mean([roc_auc_score(rows["y"], rows["score"], sample_weight=w) for rows in one])
        np.testing.assert_allclose(drawn.draws[0, 0, 0, k], expected)
    values = [roc_auc_score(rows["y"], rows["score"]) for rows in one]
    np.testing.assert_allclose(drawn.values[0, 0, 0], np.mean(values))
    np.testing.assert_allclose(drawn.seed_sd[:, 0, 0], [np.std(values, ddof=1), np.nan])


def test_the_mean_rank_is_that_of_a_loop_over_draws():
    predicted = frame([("e", 0, 2.0), ("f", 0, 2.2), ("g", 0, 2.4)], tasks=("a", "b", "rare"))
    drawn = metric_draws(predicted, PATIENTS, n_draws=100, seed=1)
    table = rank_table(drawn)
    overall = table[table["task"] == OVERALL].set_index(["metric", "encoder"])
    loop = []
    for k in range(100):
        each = [pd.Series(drawn.draws[:, t, 0, k]).rank(ascending=False) for t in (0, 1)]
        loop.append(np.mean(each, axis=0))
    loop = np.array(loop)
    np.testing.assert_allclose(overall.loc["rank", "lo"], np.quantile(loop, 0.025, axis=0))
    np.testing.assert_allclose(overall.loc["rank", "hi"], np.quantile(loop, 0.975, axis=0))
    best = loop == loop.min(axis=1, keepdims=True)
    np.testing.assert_allclose(overall.loc["p_best", "value"], (best / best.sum(axis=1, keepdims=True)).mean(axis=0))
    assert set(table["task"]) == {OVERALL, "a", "b"}, "a task without support is not ranked"
    assert (overall["n_tasks"] == 2).all()
    assert overall.loc["p_best", "value"].sum() == pytest.approx(1)


def test_a_method_that_is_always_better_is_first_in_every_draw():
    predicted = frame([("good", 0, 0.3), ("bad", 0, 5.0)])
    for metric in ("auroc", "brier"):
        table = rank_table(metric_draws(predicted, PATIENTS, (metric,), n_draws=100))
        best = table[(table["metric"] == "p_best") & (table["task"] == OVERALL)].set_index("encoder")["value"]
        assert best["good"] == 1, metric
        assert best["bad"] == 0


def test_what_cannot_be_ranked_is_said():
    predicted = frame([("e", 0, 1.0), ("f", 0, 1.0)])
    two = pd.concat([predicted, predicted.assign(cohort="d")])
    with pytest.raises(CureError, match="take 2 values"):
        metric_draws(two, PATIENTS)
    with pytest.raises(CureError, match=r"has no predictions of \['b'\]"):
        metric_draws(predicted[(predicted["encoder"] != "f") | (predicted["task"] == "a")], PATIENTS)
    with pytest.raises(CureError, match="nothing can be ranked"):
        rank_table(metric_draws(frame([("e", 0, 1.0)], tasks=("rare",)), PATIENTS, n_draws=10))


def test_a_macro_row_says_how_many_tasks_it_holds():
    table = score_table(metric_draws(frame([("e", 0, 1.0)], tasks=("a", "rare")), PATIENTS, n_draws=20))
    row = table[table["task"] == MACRO].iloc[0]
    assert row["n_tasks"] == 1
    assert row["value"] == table.loc[table["task"] == "a", "value"].iloc[0]
    assert table.loc[table["task"] == "rare", ["lo", "hi"]].isna().all(axis=None)

import numpy as np
import pandas as pd
import pytest

from cure import heads
from cure.errors import CureError
from cure.heads import Job, fit_head, out_of_fold, permuted_scores
from cure.splits import Split, make_splits

HEADS = ("logistic", "lasso", "elastic-net", "mlp", "xgboost", "forest", "svm-linear", "svm-rbf", "tree", "knn")
SVMS = ("svm-linear", "svm-rbf")


@pytest.fixture(scope="module")
def problem():
    """600 records; the label depends on the first of 8 dimensions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    y = x[:, 0] + 0.3 * rng.normal(size=600) > 0.5
    order = rng.permutation(600)
    return x, y, Split("one", order[:400], order[400:500], order[500:])


def auroc(y, score):
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(y, score)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_finds_what_was_planted(name, problem):
    x, y, split = problem
    fit = fit_head(name, x, y, split)
    score = fit.score(x[split.test])
    assert auroc(y[split.test], score) > 0.85
    assert ((score >= 0) & (score <= 1)).all()
    assert 0 < fit.threshold < 1
    assert "=" in fit.setting


@pytest.mark.parametrize("name", HEADS)
def test_test_records_have_no_influence_on_the_fit(name, problem):
    x, y, split = problem
    before = fit_head(name, x, y, split)
    changed, flipped = x.copy(), y.copy()
    changed[split.test] *= 1000
    flipped[split.test] = ~flipped[split.test]
    after = fit_head(name, changed, flipped, split)
    assert after.setting == before.setting
    assert after.threshold == before.threshold
    np.testing.assert_array_equal(after.score(x), before.score(x))


@pytest.mark.parametrize("name", ("logistic", "lasso", "elastic-net", "mlp"))
def test_the_scaler_is_fitted_on_training_records_only(name, problem):
    x, y, split = problem
    scale = heads.scaler().fit(x[split.train])
    fit = fit_head(name, x, y, split)
    np.testing.assert_array_equal(fit.estimator[0][-1].mean_, scale[-1].mean_)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in SVMS])
def test_validation_records_choose_and_are_not_fitted(name, problem):
    # Fitted on other validation records, a head may stop elsewhere or take another penalty. Doubling every validation
    # record changes no average over them, so nothing at all may change.
    x, y, split = problem
    fit = fit_head(name, x, y, split)
    doubled = fit_head(name, x, y, Split("one", split.train, np.repeat(split.val, 2), split.test))
    assert doubled.setting == fit.setting
    np.testing.assert_allclose(doubled.score(x), fit.score(x), rtol=1e-6)


@pytest.mark.parametrize("name", SVMS)
def test_validation_records_give_an_svm_its_probabilities_and_leave_its_ranks(name, problem):
    x, y, split = problem
    fit = fit_head(name, x, y, split)
    doubled = fit_head(name, x, y, Split("one", split.train, np.repeat(split.val, 2), split.test))
    assert doubled.setting == fit.setting
    order = np.argsort(fit.score(x), kind="stable")
    assert (np.diff(doubled.score(x)[order]) >= 0).all()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("positive", [False, True])
def test_one_class_among_the_validation_records_is_survived(name, positive, problem):
    x, y, split = problem
    one_class = Split("one", split.train, split.val[y[split.val] == positive], split.test)
    fit = fit_head(name, x, y, one_class)
    score = fit.score(x[split.test])
    assert np.isfinite(score).all()
    assert ((score >= 0) & (score <= 1)).all()
    # A network stopped on one class may stop at once; the others keep what training taught them.
    assert name == "mlp" or auroc(y[split.test], score) > 0.75
    assert positive or fit.threshold == 0.5


@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_the_same_scores_again(name, problem):
    x, y, split = problem
    np.testing.assert_array_equal(
        fit_head(name, x, y, split, seed=3).score(x), fit_head(name, x, y, split, seed=3).score(x)
    )


@pytest.mark.parametrize("name", HEADS)
def test_gaps_and_empty_columns_are_survived(name, problem):
    x, y, split = problem
    holes = x.copy()
    holes[::7, 2] = np.nan
    holes[:, 5] = np.nan
    score = fit_head(name, holes, y, split).score(holes[split.test])
    assert np.isfinite(score).all()
    assert auroc(y[split.test], score) > (0.75 if name == "knn" else 0.85)


def test_best_threshold_maximises_f1_and_is_half_without_positives():
    y = np.array([0, 0, 1, 0, 1, 1], bool)
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert heads.best_threshold(y, score) == 0.3  # F1 6/7; at .5 it is 4/5
    assert heads.best_threshold(np.zeros(4, bool), np.arange(4) / 4) == 0.5


def test_errors_name_the_head_and_the_split(problem):
    x, y, split = problem
    with pytest.raises(CureError, match="unknown head 'svm': choose from logistic, lasso, elastic-net, mlp, xgboost, "):
        fit_head("svm", x, y, split)
    with pytest.raises(CureError, match="one: the training records hold one class only"):
        fit_head("logistic", x, np.zeros_like(y), split)


def test_the_grid_reaches_the_fits(problem):
    x, y, split = problem
    job = Job({"encoder": "e"}, {"one": x}, "logistic", ["t"], y[:, None], np.arange(len(y)))
    for grid, allowed in (("compact", {"C=0.001", "C=0.01", "C=0.1", "C=1"}), ("paper", {"C=10", "C=100", "C=1"})):
        table = out_of_fold([job], [split], np.arange(len(y)), grid=grid)
        (setting,) = table["setting"].unique()
        assert setting in allowed
        np.testing.assert_array_equal(
            table["score"], fit_head("logistic", x, y, split, 0, grid).score(x[split.test]).astype("f4")
        )


def test_out_of_fold_scores_every_record_once_with_a_head_that_did_not_see_it(cohort):
    splits = make_splits(cohort.records, "rotate")
    labels = cohort.binary()
    chosen = [labels.names.index("NORM"), labels.names.index("MI")]
    x = np.random.default_rng(0).normal(size=(len(cohort), 6)).astype(np.float32)
    job = Job(
        {"encoder": "e"},
        dict.fromkeys((s.name for s in splits), x),
        "logistic",
        ["NORM", "MI"],
        labels.y[:, chosen],
        labels.rows,
    )
    record_id = cohort.records["record_id"].to_numpy()
    table = out_of_fold([job], splits, record_id)
    assert len(table) == 2 * len(cohort)
    for task, rows in table.groupby("task", observed=True):
        assert sorted(rows["record_id"]) == sorted(record_id)
        truth = dict(zip(record_id, labels.y[:, labels.names.index(task)], strict=True))
        assert (rows["y"] == rows["record_id"].map(truth)).all()
        direct = fit_head("logistic", x, labels.y[:, labels.names.index(task)], splits[2])
        mine = rows[rows["split"] == splits[2].name].set_index("record_id")["score"]
        np.testing.assert_allclose(mine[record_id[splits[2].test]], direct.score(x[splits[2].test]), rtol=1e-5)


def test_each_split_is_fitted_and_tested_on_its_own_embeddings(cohort):
    splits = make_splits(cohort.records, "rotate")
    y = cohort.binary().y[:, :1]
    rng = np.random.default_rng(0)
    informative, noise = (y + 0.1 * rng.normal(size=(len(cohort), 2)), rng.normal(size=(len(cohort), 2)))
    arrays = {split.name: informative if i == 3 else noise for i, split in enumerate(splits)}
    job = Job({"encoder": "e"}, arrays, "logistic", ["NORM"], y, np.arange(len(cohort)))
    table = out_of_fold([job], splits, np.arange(len(cohort)))
    score = {name: auroc(rows["y"], rows["score"]) for name, rows in table.groupby("split", observed=True)}
    assert score.pop(splits[3].name) > 0.99
    assert max(score.values()) < 0.9


@pytest.mark.parametrize("name", ["logistic", "mlp", "xgboost", "svm-rbf", "knn"])
def test_shuffled_labels_score_a_half_through_the_code_that_makes_the_tables(name):
    # The embedding knows the true label; heads see permuted ones. Averaged within test parts over many tasks, 0.50.
    rng = np.random.default_rng(1)
    n, n_tasks = 400, 12
    y = rng.random(n) < 0.4
    x = np.column_stack([y + 0.1 * rng.normal(size=n), rng.normal(size=(n, 3))]).astype(np.float32)
    permuted = np.column_stack([rng.permutation(y) for _ in range(n_tasks)])
    folds = pd.DataFrame({"fold": np.arange(n) % 10 + 1, "patient_id": np.arange(n)})
    splits = make_splits(folds, "rotate")
    per_split = dict.fromkeys((split.name for split in splits), x)
    job = Job({"encoder": "e"}, per_split, name, [str(i) for i in range(n_tasks)], permuted, np.arange(n))
    table = out_of_fold([job], splits, np.arange(n))
    scores = [auroc(part["y"], part["score"]) for _, part in table.groupby(["task", "split"], observed=True)]
    assert len(scores) == 5 * n_tasks
    assert abs(np.mean(scores) - 0.5) < 4 * np.std(scores) / np.sqrt(len(scores))


def test_the_ridge_probe_of_the_null_is_a_classifier(problem):
    x, y, split = problem
    score = permuted_scores(x, np.column_stack([y, ~y]).astype(np.float32), [split])
    assert np.isnan(score[split.train]).all()
    assert auroc(y[split.test], score[split.test, 0]) > 0.9
    np.testing.assert_allclose(score[split.test].sum(axis=1), 1, atol=1e-3)

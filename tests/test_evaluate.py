"""Metrics, bootstrap, comparisons and the permutation null, against scikit-learn, slow loops and hand calculation."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as sk

from cure import bootstrap as bs
from cure.evaluate import MIN_POSITIVES, compare, evaluate, support

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    """Labels with both classes, scores with many ties, a threshold per record."""
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.random(n) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    y[:2] = 0, 1
    levels = draw(st.sampled_from([1, 2, 5, 20, 10**6]))
    score = rng.integers(0, levels + 1, n) / levels
    return rng.permutation(y.astype(int)), score, rng.choice([0.2, 0.5, 0.8], n), rng


def reference(y, score, threshold, weight=None) -> dict[str, float]:
    """The same metrics from scikit-learn (ECE: the definition, bin by bin)."""
    called, half = score >= threshold, score >= 0.5
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    bins = np.searchsorted(np.quantile(score, np.arange(1, 10) / 10), score, side="right")
    gaps = [abs((w * (y - score))[bins == b].sum()) for b in range(10)]
    return {
        "auroc": sk.roc_auc_score(y, score, sample_weight=w),
        "auprc": sk.average_precision_score(y, score, sample_weight=w),
        "f1_half": sk.f1_score(y, half, sample_weight=w, zero_division=0),
        "f1_tuned": sk.f1_score(y, called, sample_weight=w, zero_division=0),
        "sensitivity": sk.recall_score(y, called, sample_weight=w),
        "specificity": sk.recall_score(1 - y, ~called, sample_weight=w),
        "brier": sk.brier_score_loss(y, score, sample_weight=w),
        "ece": sum(gaps) / w.sum(),
    }


# --- metrics -----------------------------------------------------------------------------------------------------


@SETTINGS
@given(problems())
def test_metrics_equal_scikit_learn_with_ties(problem):
    y, score, threshold, _ = problem
    ours = bs.metrics(y, score, threshold)
    assert list(ours) == list(bs.METRICS)
    assert ours == pytest.approx(reference(y, score, threshold), abs=1e-12)


@SETTINGS
@given(problems(), st.booleans())
def test_weighted_metrics_equal_scikit_learn(problem, integer):
    y, score, threshold, rng = problem
    weights = rng.integers(0, 4, (7, len(y))) if integer else rng.random((7, len(y))) * (rng.random(len(y)) < 0.7)
    drawn = bs.metrics_weighted(y, score, threshold, weights)
    for d, w in enumerate(weights):
        if min(w[y == 1].sum(), w[y == 0].sum()) > 0:
            expected = reference(y, score, threshold, w)
            assert {name: value[d] for name, value in drawn.items()} == pytest.approx(expected, abs=1e-9)
        else:
            assert np.isnan(drawn["auroc"][d])


@SETTINGS
@given(problems())
def test_integer_weights_are_repeated_rows(problem):
    y, score, threshold, rng = problem
    weight = rng.integers(1, 4, len(y))
    names = [name for name in bs.METRICS if name != "ece"]  # its bins are cut on the sample, not on the draw
    repeated = bs.metrics(*(np.repeat(x, weight) for x in (y, score, threshold)), names)
    drawn = bs.metrics_weighted(y, score, threshold, weight[None], names)
    assert {k: v[0] for k, v in drawn.items()} == pytest.approx(repeated, abs=1e-12)


@SETTINGS
@given(problems())
def test_auroc_is_mann_whitney_and_mirrors(problem):
    y, score, _, _ = problem
    gap = score[y == 1][:, None] - score[y == 0]
    auroc = bs.metrics(y, score)["auroc"]
    assert auroc == pytest.approx(((gap > 0) + (gap == 0) / 2).mean(), abs=1e-12)
    assert bs.metrics(y, -score, names=["auroc"])["auroc"] == pytest.approx(1 - auroc, abs=1e-12)


def test_closed_forms():
    y = np.array([0, 0, 1, 1])
    ours = bs.metrics(y, np.array([0.1, 0.6, 0.4, 0.9]), np.array([0.0, 0.7, 0.4, 0.9]))
    assert ours["auroc"] == 0.75  # one of four pairs is lost
    assert ours["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert ours["f1_half"] == 0.5  # one hit, one miss, one false call
    assert ours["f1_tuned"] == pytest.approx(4 / 5)  # per-record thresholds: both hits, one false call
    assert (ours["sensitivity"], ours["specificity"]) == (1, 0.5)
    assert ours["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert ours["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.1) / 4)  # four deciles hold one record each
    assert bs.metrics(y, np.full(4, 0.3))["auroc"] == 0.5


def test_chunks_do_not_change_a_number(monkeypatch):
    rng = np.random.default_rng(0)
    y, score, weights = rng.integers(0, 2, 300), rng.random(300), rng.integers(0, 3, (100, 300))
    whole = bs.metrics_weighted(y, score, 0.5, weights)
    monkeypatch.setattr(bs, "_CHUNK_BYTES", 1)  # 32 draws at a time, the last chunk ragged
    for name, values in bs.metrics_weighted(y, score, 0.5, weights).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize(
    ("y", "score", "weights", "message"),
    [
        ([0, 1], [0.1, np.nan], [[1, 1]], "score is NaN for 1 of 2"),
        ([0, 2], [0.1, 0.2], [[1, 1]], "labels must be 0 or 1"),
        ([0, 1, 1], [0.1, 0.2], [[1, 1]], "one score per label"),
        ([0, 1], [0.1, 0.2], [[1, 1, 1]], r"expected \(draws, n\)"),
        ([0, 1], [0.1, 0.2], [[1, -1]], "non-negative"),
    ],
)
def test_bad_arrays_are_named(y, score, weights, message):
    with pytest.raises(ValueError, match=message):
        bs.metrics_weighted(np.array(y), np.array(score), 0.5, np.array(weights))
    with pytest.raises(ValueError, match="unknown metrics"):
        bs.metrics(np.array([0, 1]), np.array([0.0, 1.0]), names=["auc"])


# --- bootstrap ---------------------------------------------------------------------------------------------------


def test_draws_resample_whole_patients():
    rng = np.random.default_rng(0)
    patient = rng.choice(["a", "b", "c", "d", "e"], 40)
    weights = bs.patient_draws(patient, 2000, np.random.default_rng(1))
    assert weights.shape == (2000, 40)
    assert weights.dtype == np.uint8
    _, first, inverse = np.unique(patient, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(weights, weights[:, first][:, inverse])  # one weight per patient
    assert (weights[:, first].sum(axis=1) == 5).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)  # binomial(5, 1/5): sd 0.9 / sqrt(2000)
    shuffled = rng.permutation(40)
    again = bs.patient_draws(patient[shuffled], 2000, np.random.default_rng(1))
    np.testing.assert_array_equal(again, weights[:, shuffled])  # the order of records does not matter
    longer = bs.patient_draws(np.arange(3000), 700, np.random.default_rng(1))  # more than one block of draws
    np.testing.assert_array_equal(bs.patient_draws(np.arange(3000), 10, np.random.default_rng(1)), longer[:10])


def test_bootstrap_equals_a_slow_loop():
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 60, 150)
    y = (rng.random(150) < 0.3).astype(int)
    score = np.round(0.5 * rng.random(150) + 0.3 * y, 2)
    threshold = rng.choice([0.3, 0.4], 150)
    fast = bs.metrics_weighted(y, score, threshold, bs.patient_draws(patient, 200, np.random.default_rng(5)))
    ids, slow_rng = np.unique(patient), np.random.default_rng(5)
    for d in range(200):
        taken = slow_rng.integers(len(ids), size=len(ids))
        records = np.concatenate([np.flatnonzero(patient == ids[p]) for p in taken])
        expected = reference(y[records], score[records], threshold[records])
        for name in set(bs.METRICS) - {"ece"}:
            assert fast[name][d] == pytest.approx(expected[name], abs=1e-12)


def test_interval_is_nanquantile_and_counts_undefined_draws():
    rng = np.random.default_rng(0)
    values = rng.random((3, 4, 101))
    values[0, 0, :30] = values[1, 2, 5] = values[2, 3] = np.nan
    lo, hi, undefined = bs.interval(values, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an all-NaN row
        np.testing.assert_allclose(lo, np.nanquantile(values, 0.05, axis=-1), rtol=1e-12)
        np.testing.assert_allclose(hi, np.nanquantile(values, 0.95, axis=-1), rtol=1e-12)
    assert undefined.sum() == 30 + 1 + 101


def test_draws_without_a_positive_are_undefined_and_counted():
    patient = np.arange(12)
    y = (patient == 0).astype(int)  # a draw misses the one positive with probability (11/12)^12 = 0.35
    weights = bs.patient_draws(patient, 1000, np.random.default_rng(0))
    drawn = bs.metrics_weighted(y, np.linspace(0.9, 0.1, 12), 0.5, weights)
    missed = int((weights[:, 0] == 0).sum())
    assert 250 < missed < 450
    for name in ("auroc", "auprc", "f1_half", "f1_tuned", "sensitivity"):
        assert bs.interval(drawn[name]).n_undefined == missed
    for name in ("specificity", "brier", "ece"):
        assert bs.interval(drawn[name]).n_undefined == 0
    assert tuple(bs.interval(drawn["auroc"])[:2]) == (1, 1)


def test_coverage_needs_the_patient_cluster():
    """Two records of a patient share label and most of the score: the patient bootstrap covers, a record one not."""
    rng = np.random.default_rng(0)
    n, trials, shift, shared = 60, 300, 1.0, 0.95
    truth = norm.cdf(shift / np.sqrt(2))
    patient = np.repeat(np.arange(n), 4)
    covered = {"patient": 0, "record": 0}
    for _ in range(trials):
        y = np.repeat(np.arange(n) % 2, 4)
        own = np.repeat(rng.standard_normal(n), 4) * np.sqrt(shared)
        score = shift * y + own + rng.standard_normal(4 * n) * np.sqrt(1 - shared)
        for unit, ids in (("patient", patient), ("record", np.arange(4 * n))):
            draws = bs.metrics_weighted(y, score, 0.0, bs.patient_draws(ids, 200, rng), ["auroc"])
            lo, hi, _ = bs.interval(draws["auroc"])
            covered[unit] += lo <= truth <= hi
    assert 0.90 <= covered["patient"] / trials <= 0.985
    assert covered["record"] / trials < 0.80


# --- differences, Holm -------------------------------------------------------------------------------------------


def test_a_method_never_differs_from_itself():
    draws = np.random.default_rng(0).random(999)
    assert bs.paired_difference(0.7, 0.7, draws, draws) == (0, 0, 0, 1, 0)


def test_paired_difference_by_hand():
    draws = np.arange(-2, 97) / 100  # 99 draws: two below zero, one at zero
    test = bs.paired_difference(0.9, 0.4, np.r_[draws, np.nan], np.zeros(100))
    assert test.value == pytest.approx(0.5)
    assert test.p == pytest.approx(2 * (1 + 3) / 100)
    assert (test.lo, test.hi) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert test.n_undefined == 1
    assert bs.paired_difference(0, 0.5, np.zeros(99), -draws).p == test.p
    assert bs.paired_difference(1, 0, np.ones(99), np.zeros(99)).p == 2 / 100  # the smallest there is


def test_holm_by_hand():
    # sorted 0.01 0.02 0.04 0.30 -> x4, x3, x2, x1 = 0.04 0.06 0.08 0.30, then running maximum
    adjusted = bs.holm(np.array([0.04, 0.01, np.nan, 0.30, 0.02]))
    np.testing.assert_allclose(adjusted, [0.08, 0.04, np.nan, 0.30, 0.06])
    np.testing.assert_allclose(bs.holm(np.array([0.4, 0.9, 0.5])), 1)
    assert np.isnan(bs.holm(np.array([np.nan]))).all()


# --- permutation null --------------------------------------------------------------------------------------------


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(2, 25))
def test_permutations_move_blocks_between_patients_of_equal_size(seed, n_patients):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 4, n_patients)
    patient = rng.permutation(np.repeat(rng.permutation(n_patients) + 100, size))
    y = rng.integers(0, 2, len(patient))
    permuted = bs.label_permutations(y, patient, 20, rng)
    assert permuted.shape == (20, len(y))
    assert (permuted.sum(axis=1) == y.sum()).all()

    def blocks(labels):
        return sorted(tuple(labels[patient == p]) for p in np.unique(patient))

    for labels in permuted:
        assert blocks(labels) == blocks(y)


def test_permutations_are_uniform_over_patients_and_keep_labels_together():
    y = np.eye(4, dtype=int)  # four single-record patients, four labels: one record carries each
    permuted = bs.label_permutations(y, np.array(list("abcd")), 4000, np.random.default_rng(0))
    assert permuted.shape == (4000, 4, 4)
    assert (permuted.sum(axis=1) == 1).all()
    np.testing.assert_allclose(permuted.mean(axis=0), 0.25, atol=0.03)


def test_block_sizes_that_few_patients_share_are_permuted_record_by_record():
    patient = np.array([0] * 5 + list(range(1, 41)))  # one patient with five records, alone in that
    y = np.r_[np.ones(5, int), np.zeros(40, int)]
    rng = np.random.default_rng(0)
    assert (bs.label_permutations(y, patient, 50, rng) == y).all(), "nowhere to go"
    moved = bs.label_permutations(y, patient, 2000, rng, min_patients=10)
    assert (moved.sum(axis=1) == 5).all()
    np.testing.assert_allclose(moved.mean(axis=0), 5 / 45, atol=0.03)


def test_null_auroc_centres_on_one_half_and_widens_with_clusters():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(100), 5)
    y = np.repeat(rng.permutation(np.arange(100) < 40), 5)
    score = np.repeat(rng.random(100), 5) + 1e-3 * rng.random(500)  # the signal of a patient looks alike
    permuted = bs.label_permutations(y, patient, 1000, rng)
    null = bs.null_auroc(permuted, score)
    assert null["n"] == 1000
    assert null["mean"] == pytest.approx(0.5, abs=0.01)
    assert null["sd"] == pytest.approx(np.sqrt(101 / (12 * 40 * 60)), rel=0.1)  # Mann-Whitney over *patients*
    naive = bs.null_auroc(rng.permuted(np.tile(y, (1000, 1)), axis=1), score)
    assert naive["sd"] < 0.6 * null["sd"]
    assert null["lo"] < naive["lo"] < 0.5 < naive["hi"] < null["hi"]
    rows = bs.null_auroc(permuted[:5], np.tile(score, (5, 1)))
    expected = [sk.roc_auc_score(labels, score) for labels in permuted[:5]]
    assert rows["mean"] == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="NaN"):
        bs.null_auroc(permuted, np.full(500, np.nan))
    with pytest.raises(ValueError, match="both classes"):
        bs.null_auroc(np.ones((3, 500)), score)


# --- tables ------------------------------------------------------------------------------------------------------


def frame(seed=0, n=300, encoders=("features", "random", "strong"), heads=("logistic", "mlp")) -> pd.DataFrame:
    """Out-of-fold predictions: three tasks (one without support, one on fewer records) for encoder x head."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, 200, n)
    parts = []
    for task, prevalence in (("AFIB", 0.3), ("LBBB", 0.2), ("RARE", 0)):
        y = (rng.random(n) < prevalence).astype(int)
        if task == "RARE":
            y[:7] = 1
        keep = np.arange(n) % 5 > 0 if task == "LBBB" else np.ones(n, bool)
        for k, encoder in enumerate(encoders):
            for head in heads:
                noise = rng.random(n)
                score = np.round(0.2 + 0.08 * (k + 1) * y + 0.4 * noise, 2)
                part = {"record_id": np.arange(n), "patient_id": patient, "cohort": "demo", "encoder": encoder}
                part |= {"head": head, "fraction": np.nan, "task": task, "y": y, "score": score}
                part |= {"threshold": np.where(np.arange(n) % 2, 0.4, 0.5), "split": np.arange(n) % 5}
                parts.append(pd.DataFrame(part)[keep])
    return pd.concat(parts, ignore_index=True)


def test_evaluate_makes_the_tidy_table():
    predictions = frame()
    table = evaluate(predictions.sample(frac=1, random_state=0), n_draws=200, seed=1)
    assert len(table) == 6 * 4 * len(bs.METRICS)
    keys = ["cohort", "encoder", "head", "task", "metric"]
    assert not table.duplicated(keys).any()
    assert table["fraction"].isna().all()  # an unused column stays, and does not lose its rows
    by = table.set_index(keys)

    one = predictions.query("encoder == 'strong' and head == 'mlp' and task == 'LBBB'")
    row = by.loc[("demo", "strong", "mlp", "LBBB", "auroc")]
    y, score = one["y"].to_numpy(), one["score"].to_numpy()
    assert row["value"] == pytest.approx(sk.roc_auc_score(y, score))
    counts = support(y, one["patient_id"].to_numpy())
    assert tuple(row[["n", "n_pos", "n_patients", "n_pos_patients", "prevalence"]]) == counts
    everyone = predictions.drop_duplicates("record_id").sort_values("record_id")
    weights = bs.patient_draws(everyone["patient_id"].to_numpy(), 200, np.random.default_rng(1))
    draws = bs.metrics_weighted(y, score, one["threshold"].to_numpy(), weights[:, one["record_id"]])
    assert (row["lo"], row["hi"]) == pytest.approx(tuple(bs.interval(draws["auroc"])[:2]))
    assert row["supported"]
    assert row["n_undefined"] == 0

    rare = by.xs("RARE", level="task")
    assert not rare["supported"].any()
    assert rare[["lo", "hi", "n_undefined"]].isna().all(axis=None)
    assert rare["value"].notna().all()

    both = by.loc[("demo", "strong", "mlp", "macro", "auroc")]
    afib = by.loc[("demo", "strong", "mlp", "AFIB", "auroc")]
    assert both["value"] == pytest.approx((row["value"] + afib["value"]) / 2)
    assert both["n_tasks"] == 2
    assert both["n"] == 300
    one = predictions.query("encoder == 'strong' and head == 'mlp' and task == 'AFIB'")
    other = bs.metrics_weighted(one["y"].to_numpy(), one["score"].to_numpy(), 0.5, weights, ["auroc"])
    mean = (draws["auroc"] + other["auroc"]) / 2  # inside each draw
    assert (both["lo"], both["hi"]) == pytest.approx(tuple(bs.interval(mean)[:2]))


def test_macros_and_metrics_can_be_named():
    macros = {"pair": ["AFIB", "LBBB"], "lone": ["AFIB", "RARE"], "none": ["RARE"]}
    table = evaluate(frame(heads=("mlp",)), n_draws=50, metrics=["auroc"], macros=macros)
    by = table[table.encoder == "random"].set_index("task")
    assert by.loc[list(macros), "n_tasks"].tolist() == [2, 1, 0]
    assert by.loc["lone", "value"] == by.loc["AFIB", "value"]
    assert by.loc["lone", "lo"] == by.loc["AFIB", "lo"]
    assert np.isnan(by.loc["none", "value"])
    assert not by.loc["none", "supported"]
    with pytest.raises(ValueError, match="name of a task"):
        evaluate(frame(), n_draws=10, macros={"AFIB": ["AFIB"]})


def test_one_nameless_method_with_one_rare_task():
    rare = frame().query("encoder == 'strong' and head == 'mlp' and task == 'RARE'")
    table = evaluate(rare[["record_id", "patient_id", "task", "y", "score", "threshold"]], n_draws=10)
    assert table["task"].tolist() == ["RARE"] * len(bs.METRICS) + ["macro"] * len(bs.METRICS)
    assert not table["supported"].any()
    assert table["lo"].isna().all()


def test_methods_share_draws_and_the_table_repeats():
    predictions = frame()
    table = evaluate(predictions, n_draws=100, seed=3)
    pd.testing.assert_frame_equal(table, evaluate(predictions, n_draws=100, seed=3))
    alone = evaluate(predictions[predictions.encoder == "strong"], n_draws=100, seed=3)
    expected = table[table.encoder == "strong"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)  # an interval does not depend on which other methods are there
    categories = predictions.astype({"encoder": "category", "task": "category", "y": "int8"})
    pd.testing.assert_frame_equal(evaluate(categories, n_draws=100, seed=3), table)


def test_patients_can_come_from_elsewhere():
    predictions = frame(heads=("mlp",))
    owners = predictions.drop_duplicates("record_id")[["record_id", "patient_id"]]
    bare = predictions.drop(columns="patient_id")
    expected = evaluate(predictions, n_draws=20)
    pd.testing.assert_frame_equal(evaluate(bare, owners, n_draws=20), expected)
    pd.testing.assert_frame_equal(evaluate(bare, owners.set_index("record_id")["patient_id"], n_draws=20), expected)
    with pytest.raises(ValueError, match="patient_id is missing for"):
        evaluate(bare, owners[5:], n_draws=20)
    with pytest.raises(ValueError, match="no patient_id"):
        evaluate(bare, n_draws=20)


def test_cohorts_with_the_same_record_ids_are_apart():
    two = pd.concat([frame(0).assign(cohort="a"), frame(1).assign(cohort="b")])
    table = evaluate(two, n_draws=50)
    single = evaluate(frame(1).assign(cohort="b"), n_draws=50)
    pd.testing.assert_frame_equal(table[table.cohort == "b"].reset_index(drop=True), single)


def test_support_rule():
    y, patient = np.zeros(50, int), np.arange(50) // 2
    y[:9] = 1
    assert support(y, patient) == (50, 9, 25, 5, 0.18)
    assert not support(y, patient).supported
    y[:MIN_POSITIVES] = 1
    assert support(y, patient).supported
    assert not support(1 - y[:19], patient[:19]).supported  # nine negatives


def spoil(column, value, where="encoder == 'strong' and head == 'mlp' and task == 'AFIB'"):
    def change(predictions):
        predictions.loc[predictions.query(where).index[:3], column] = value
        return predictions

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("score", np.nan), "encoder=strong, head=mlp, task=AFIB: score is NaN for 3 of 300 records"),
        (spoil("threshold", np.nan), "task=AFIB: threshold is NaN"),
        (spoil("score", 1.2), "not a probability for 3 of 300"),
        (spoil("y", 2), "y is not 0 or 1"),
        (spoil("patient_id", 10**6), "belongs to two patients"),
        (lambda p: p.drop(p.query("encoder == 'strong' and task == 'AFIB'").index[:2]), "covers 298 records.* 300"),
        (spoil("record_id", [901, 902, 903]), "covers 300 records.* 300; 6 are in only one"),
        (lambda p: pd.concat([p, p[:1]]), "record_id 0 occurs twice"),
        (lambda p: p.assign(y=np.where(p.encoder == "strong", 1 - p.y, p.y)), "labels differ"),
        (lambda p: p.drop(columns="threshold"), r"lack the columns \['threshold'\]"),
        (lambda p: p[:0], "empty"),
    ],
)
def test_bad_predictions_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(change(frame()), n_draws=10)


def test_compare_pairs_methods_on_shared_draws():
    predictions = frame()
    table = compare(predictions, {"encoder": "random"}, n_draws=500, seed=2)
    assert len(table) == 2 * 2 * 4  # two other encoders x heads x (tasks + macro)
    assert set(table["encoder"]) == {"features", "strong"}
    single = evaluate(predictions, n_draws=500, seed=2, metrics=["auroc"]).set_index(["encoder", "head", "task"])
    for row in table.itertuples():
        ours, theirs = (single.loc[(e, row.head, row.task), "value"] for e in (row.encoder, "random"))
        assert row.value == pytest.approx(ours - theirs)
        assert row.reference == theirs
    tested = table["supported"]
    assert table.loc[~tested, ["lo", "hi", "p", "p_holm"]].isna().all(axis=None)
    assert (~tested).sum() == 4
    np.testing.assert_allclose(table["p_holm"], bs.holm(table["p"]))
    strong = table[(table.encoder == "strong") & tested]
    assert (strong.loc[strong["task"] == "macro", "p"] <= 0.01).all()
    assert (strong.loc[strong["task"] == "macro", "lo"] > 0).all()
    both = predictions.query("head == 'mlp' and task == 'AFIB'").sort_values("record_id")
    a, b = (both[both.encoder == e] for e in ("strong", "random"))
    weights = bs.patient_draws(a["patient_id"].to_numpy(), 500, np.random.default_rng(2))
    da, db = (bs.metrics_weighted(x["y"].to_numpy(), x["score"].to_numpy(), 0, weights)["auroc"] for x in (a, b))
    row = strong[(strong["head"] == "mlp") & (strong["task"] == "AFIB")].iloc[0]
    assert (row["lo"], row["hi"]) == pytest.approx(tuple(bs.interval(da - db)[:2]))


def test_compare_selected_pairs_and_its_errors():
    predictions = frame()
    pairs = [({"encoder": "strong"}, {"encoder": "features"}), ({"head": "mlp"}, {"head": "logistic"})]
    table = compare(predictions, pairs, metric="brier", n_draws=2000, per_task=False)
    assert sorted(table["comparator"]) == ["encoder=features"] * 2 + ["head=logistic"] * 3
    assert set(table["task"]) == {"macro"}
    twin = predictions[predictions.encoder == "strong"].assign(encoder="twin")
    same = compare(pd.concat([predictions, twin]), [({"encoder": "twin"}, {"encoder": "strong"})], n_draws=1000)
    tested = same[same["supported"]]
    assert (tested[["value", "lo", "hi"]] == 0).all(axis=None)
    assert (tested[["p", "p_holm"]] == 1).all(axis=None)
    with pytest.raises(ValueError, match=r"\['depth'\] name no method column"):
        compare(predictions, {"depth": 2})
    with pytest.raises(ValueError, match=r"comparator .*encoder=gone.* has no predictions"):
        compare(predictions, {"encoder": "gone"})
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(predictions[predictions.encoder == "random"], {"encoder": "random"})


def test_too_few_draws_for_holm_are_said():
    with pytest.warns(UserWarning, match="pass n_draws >= 480"):
        compare(frame(), {"encoder": "random"}, n_draws=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(frame(), {"encoder": "random"})["p_holm"].min() < 0.05

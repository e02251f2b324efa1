import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from cure.bootstrap import holm, patient_draws
from cure.subgroups import AGES, GAPS, groups, subgroup_tables

N = 600


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, N).astype(float)
    masked = np.arange(N) % 60 == 0
    age[masked] = np.nan
    sex = np.where(rng.random(N) < 0.5, "female", "male")
    about = {"record_id": np.arange(N) + 7, "patient_id": np.arange(N) // 2, "age": age, "age_over_89": masked}
    return pd.DataFrame({**about, "sex": sex})


@pytest.fixture(scope="module")
def predicted(records):
    """Task `a`: noise for women, informative for men. Task `young`: 3 positives over 65."""
    rng = np.random.default_rng(1)
    female = (records["sex"] == "female").to_numpy()
    old = next(g.member for g in groups(records) if g.name == "over 65")
    parts = []
    for task in ("a", "young"):
        y = (rng.random(N) < 0.3).astype(int)
        if task == "young":
            y[old] = 0
            y[np.flatnonzero(old)[:3]] = 1
        score = 1 / (1 + np.exp(-(np.where(female, 0.0, 3.0) * (y - 0.5) + rng.normal(size=N))))
        key = {"cohort": "c", "protocol": "sound", "encoder": "e", "seed": 0, "task": task}
        threshold = np.where(np.arange(N) % 2, 0.4, 0.6)
        rows = pd.DataFrame({**key, "record_id": records["record_id"], "y": y, "score": score, "threshold": threshold})
        parts.append(rows.sample(frac=1, random_state=2))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def found(predicted, records):
    return subgroup_tables(predicted, records, n_draws=300, seed=0)


def test_every_record_of_known_age_is_in_one_age_group():
    age = np.array([0, 49, 49.9, 50, 65, 65.5, 66, 89, np.nan, np.nan])
    records = pd.DataFrame({"age": age, "age_over_89": [False] * 8 + [True, False], "sex": "male"})
    records.loc[0, "sex"] = None
    member = {g.name: list(np.flatnonzero(g.member)) for g in groups(records)}
    assert member["under 50"] == [0, 1, 2]
    assert member["50 to 65"] == [3, 4, 5]
    assert member["over 65"] == [6, 7, 8]
    assert member["male"] == list(range(1, 10))
    assert member["female"] == []


def test_a_masked_age_counts_as_old_whatever_stands_in_the_column():
    records = pd.DataFrame({"age": [30.0, 300.0], "age_over_89": [True, True], "sex": "male"})
    assert [g.member.all() for g in groups(records) if g.variable == "age"] == [False, False, True]


def test_scores_of_a_group_are_scikit_learns(found, predicted, records):
    scores, _ = found
    joined = predicted.merge(records, on="record_id")
    rows = joined[(joined["task"] == "a") & (joined["sex"] == "male")]
    mine = scores[(scores["task"] == "a") & (scores["group"] == "male")].set_index("metric")
    assert mine.loc["auroc", "value"] == pytest.approx(roc_auc_score(rows["y"], rows["score"]))
    called = rows["score"] >= rows["threshold"]
    assert mine.loc["sensitivity", "value"] == pytest.approx(recall_score(rows["y"], called))
    assert mine.loc["auroc", ["n", "n_pos"]].tolist() == [len(rows), rows["y"].sum()]


def test_gaps_are_paired_over_one_set_of_draws(found, predicted, records):
    _, gaps = found
    gap = gaps[(gaps["task"] == "a") & (gaps["group"] == "female") & (gaps["metric"] == "auroc")].iloc[0]
    rows = predicted[predicted["task"] == "a"].sort_values("record_id")
    female = (records["sex"] == "female").to_numpy()
    n_draws = 100 * int(gaps["supported"].sum())
    weights = patient_draws(records["patient_id"].to_numpy(), n_draws, np.random.default_rng(0))[:400]

    def auroc(member, w):
        return roc_auc_score(rows["y"][member], rows["score"][member], sample_weight=w[member])

    rows = rows.reset_index(drop=True)
    loop = [auroc(female, w) - auroc(~female, w) for w in weights]
    np.testing.assert_allclose([gap["lo"], gap["hi"]], np.quantile(loop, [0.025, 0.975]), atol=0.02)
    assert gap["value"] == pytest.approx(auroc(female, np.ones(N)) - auroc(~female, np.ones(N)))
    assert gap["hi"] < 0, "women were given noise"
    assert gap["p_holm"] < 0.05


def test_a_group_without_support_has_no_interval_and_no_test(found):
    scores, gaps = found
    old = scores[(scores["task"] == "young") & (scores["group"] == "over 65")]
    assert (old["n_pos"] == 3).all()
    assert not old["supported"].any()
    assert old[["lo", "hi"]].isna().all(axis=None)
    lost = gaps[(gaps["task"] == "young") & (gaps["comparator"] == "over 65")]
    assert len(lost) == 4
    assert lost[["lo", "hi", "p", "p_holm"]].isna().all(axis=None)
    kept = gaps.drop(lost.index)
    assert kept[["lo", "hi", "p", "p_holm"]].notna().all(axis=None)
    np.testing.assert_array_equal(gaps["p_holm"], holm(gaps["p"].to_numpy()))


def test_a_cohort_of_one_sex_has_no_gap_between_sexes(predicted, records):
    scores, gaps = subgroup_tables(predicted, records.assign(sex="male"), n_draws=100, seed=0)
    assert scores.loc[scores["group"] == "female", "value"].isna().all()
    assert gaps.loc[gaps["variable"] == "sex", ["value", "p"]].isna().all(axis=None)
    assert set(AGES) == set(scores.loc[scores["variable"] == "age", "group"])
    assert len(gaps) == 2 * 2 * len(GAPS)

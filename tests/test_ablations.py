import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from cure import ablations, embed
from cure.ablations import BALANCED, NATURAL, balanced, choices_table, grid_view, subject_rows
from cure.bootstrap import metrics
from cure.config import check
from cure.embed import FEATURES
from cure.errors import CureError
from cure.heads import Job, out_of_fold
from cure.plots import ablations as draw
from cure.ranks import MACRO, metric_draws, rank_table, score_table
from cure.settings.ablations import AblationsConfig
from cure.splits import make_splits
from cure.subgroups import subgroup_tables

TASKS = ["NORM", "STTC"]
#: Left with fewer than ten positive records.
RARE = "1AVB"


def make(**changes):
    settings = {"subjects": ["e-random-0", FEATURES], "n_balanced": 10, "n_draws": 100, "balanced_tasks": TASKS}
    return check(AblationsConfig, profile="demo", **(settings | changes))


@pytest.fixture(scope="module")
def splits(cohort):
    return make_splits(cohort.records, "rotate")


@pytest.fixture(scope="module")
def arrays(cohort):
    rng = np.random.default_rng(0)
    y = cohort.binary().y.astype(float)
    return {
        name: (y @ rng.normal(size=(y.shape[1], 6)) + noise * rng.normal(size=(len(y), 6))).astype(np.float32)
        for name, noise in (("e", 1.0), (FEATURES, 0.5))
    }


@pytest.fixture(scope="module")
def patched(arrays):
    """Embeddings from memory, and fits in this process: workers take longer to start than these fits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "read_split", lambda _config, one, *_: arrays[one.encoder])
        patch.setattr(joblib, "cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def predicted(cohort, splits, arrays, patched):
    """Heads on two made-up representations; the encoder has two poolings under the logistic head."""
    labels = cohort.binary()
    names = [*TASKS, RARE]
    y = labels.y[:, [labels.names.index(task) for task in names]]
    jobs = []
    choices = [("e", "mean", "logistic"), ("e", "max", "logistic"), ("e", "mean", "xgboost")]
    for encoder, pooling, head in [*choices, (FEATURES, "none", "logistic")]:
        values = np.sign(arrays[encoder]) if pooling == "max" else arrays[encoder]
        x = dict.fromkeys([split.name for split in splits], values)
        key = {"cohort": "small", "protocol": "sound", "encoder": encoder, "pooling": pooling, "head": head}
        key |= {"weights": "none" if encoder == FEATURES else "random", "seed": np.int16(0), "contaminated": "no"}
        jobs.append(Job(key, x, head, names, y, labels.rows))
    found = out_of_fold(jobs, splits, cohort.records["record_id"].to_numpy())
    late = found["record_id"] > found["record_id"].median()
    return found.assign(y=found["y"].where((found["task"] != RARE) | ~late, 0))


@pytest.fixture(scope="module")
def natural(predicted):
    return subject_rows(make(), predicted, ["logistic"])


@pytest.fixture(scope="module")
def scored(cohort, splits, natural):
    return ablations.balanced_predictions(make(), cohort, splits, natural)


# --- which predictions -------------------------------------------------------------------------------


def test_subjects_are_taken_by_name_in_their_order_under_mean_pooling(predicted):
    rows = subject_rows(make(subjects=[FEATURES, "e-random-0"]), predicted)
    assert list(rows["subject"].unique()) == [FEATURES, "e-random-0"]
    assert set(rows["pooling"].astype(str)) == {"mean", "none"}
    assert set(rows.loc[rows["subject"] == "e-random-0", "head"]) == {"logistic", "xgboost"}


def test_what_was_not_predicted_is_named(predicted):
    with pytest.raises(CureError, match=r"no predictions of 'f-hub-0'; stage heads made those of e-random-0, ecg-feat"):
        subject_rows(make(subjects=["f-hub-0"]), predicted)
    with pytest.raises(CureError, match=r"head 'mlp' in profile demo, only of logistic, xgboost: add it to `heads`"):
        subject_rows(make(), predicted, ["mlp"])
    with pytest.raises(CureError, match="n_balanced"):
        make(n_balanced=3)


# --- balanced subsamples -----------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.02, 0.98))
@settings(max_examples=60, deadline=None)
def test_a_balanced_subsample_keeps_the_rare_class_and_whole_patients(seed, share):
    rng = np.random.default_rng(seed)
    y = rng.random(80) < share
    y[:2] = [True, False]
    patient = rng.integers(30, size=80)
    chosen = balanced(y, patient, np.random.default_rng(seed))
    common = y.sum() > 40
    n_rare = (y != common).sum()
    assert len(chosen) == len(set(chosen)) == 2 * n_rare
    assert y[chosen].sum() == n_rare
    assert set(np.flatnonzero(y != common)) <= set(chosen)
    whole = np.bincount(patient[y == common], minlength=30)
    taken = np.bincount(patient[chosen][y[chosen] == common], minlength=30)
    assert ((taken > 0) & (taken < whole)).sum() <= 1, "at most the last patient is taken in part"


def test_subsamples_differ_by_seed_and_only_by_seed():
    y, patient = np.arange(200) < 20, np.arange(200) // 2
    one, again, other = (balanced(y, patient, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert len(np.setdiff1d(other, one)) > 5


def test_balanced_heads_score_the_same_test_records(cohort, splits, natural, scored):
    assert len(scored) == 2 * len(TASKS) * 10 * len(cohort)
    assert list(scored["task"].unique()) == TASKS
    y = cohort.binary().y[:, cohort.binary().names.index("NORM")]
    rows = scored[(scored["task"] == "NORM") & (scored["seed"] == 3) & (scored["subject"] == FEATURES)]
    np.testing.assert_array_equal(rows.sort_values("record_id")["y"], y[np.argsort(cohort.records["record_id"])])
    sizes = [2 * min(y[s.train].sum(), (~y[s.train]).sum()) for s in splits]
    assert rows["n_train"].unique() == pytest.approx([np.mean(sizes)])
    again = ablations.balanced_predictions(make(balanced_tasks=["STTC"]), cohort, splits, natural)
    alone = scored[scored["task"] == "STTC"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.astype({"task": str}), again.astype({"task": str}))
    # Balanced training says positive more often where positives are rare.
    wide = scored[scored["task"] == "STTC"].groupby("subject", observed=True)["score"].mean()
    plain = natural[natural["task"] == "STTC"].groupby("subject", observed=True)["score"].mean()
    assert (wide > plain).all()


def test_tasks_without_support_are_left_out(cohort, splits, natural):
    with pytest.raises(CureError, match=rf"none of \['{RARE}'\] has support; choose from \['NORM', 'STTC'\]"):
        ablations.balanced_predictions(make(balanced_tasks=[RARE]), cohort, splits, natural)


def test_differences_are_between_the_mean_over_subsamples_and_natural_training(cohort, splits, natural, scored):
    table = ablations.balanced_table(make(), cohort, splits, natural, scored)
    row = table.set_index(["subject", "task", "metric"]).loc[(FEATURES, "STTC", "brier")]
    mine = scored[(scored["subject"] == FEATURES) & (scored["task"] == "STTC")]
    each = [metrics(rows["y"], rows["score"])["brier"] for _, rows in mine.groupby("seed")]
    rows = natural[(natural["subject"] == FEATURES) & (natural["task"] == "STTC")]
    assert row["reference"] == pytest.approx(metrics(rows["y"], rows["score"])["brier"])
    assert row["value"] == pytest.approx(np.mean(each) - row["reference"])
    assert row["seed_sd"] == pytest.approx(np.std(each, ddof=1))
    assert row["n_train"] < row["n_train_reference"] == np.mean([len(split.train) for split in splits])
    assert table.loc[table["task"] != MACRO, "p"].isna().all()
    assert table.loc[table["task"] == MACRO, "p_holm"].notna().all()


def test_training_that_is_the_same_makes_no_difference(cohort, splits, natural):
    copies = [natural.assign(sampling=BALANCED, seed=np.int16(k), n_train=np.float32(9)) for k in range(10)]
    scored = pd.concat(copies)
    scored = scored[scored["task"].isin(TASKS)]
    table = ablations.balanced_table(make(), cohort, splits, natural, scored)
    np.testing.assert_allclose(table[["value", "lo", "hi"]].to_numpy(float), 0, atol=1e-12)
    assert set(table["comparator"]) == {NATURAL}


# --- the grid ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(predicted, cohort):
    return metric_draws(predicted, ablations.patients_of(cohort), n_draws=100)


def test_the_grid_shows_whatever_was_fitted(drawn):
    table = score_table(drawn)
    wide = grid_view(table)
    assert list(wide.index) == ["logistic, mean", "logistic, max", "xgboost, mean"]
    assert list(wide) == ["e (random)", FEATURES]
    macro = table[(table["task"] == MACRO) & (table["encoder"] == FEATURES)]["value"].item()
    assert wide.loc["logistic, mean", FEATURES] == macro
    assert wide[FEATURES].isna().tolist() == [False, True, True]


def test_ranks_are_of_heads_that_all_were_fitted_under(predicted):
    assert ablations.shared_heads(predicted) == ["logistic"]


def test_the_worth_of_a_choice_is_the_mean_range_over_the_others(drawn):
    wide = grid_view(score_table(drawn))
    table = choices_table(drawn).set_index("choice")
    e = wide["e (random)"]
    assert table.loc["pooling", "value"] == pytest.approx(abs(e["logistic, mean"] - e["logistic, max"]))
    assert table.loc["head", "value"] == pytest.approx(abs(e["logistic, mean"] - e["xgboost, mean"]))
    between = abs(e["logistic, mean"] - wide.loc["logistic, mean", FEATURES])
    assert table.loc["representation", "value"] == pytest.approx(between)


# --- figures -----------------------------------------------------------------------------------------


def test_figures_hold_every_row(drawn, predicted, cohort):
    table = rank_table(drawn.select((drawn.methods["head"] == "logistic").to_numpy()))
    overall = table[table["task"] == "mean rank"]
    figure = draw.ranks(overall.assign(label=overall["encoder"] + overall["pooling"]), ["logistic"])
    assert isinstance(figure, Figure)
    assert len(figure.axes[0].get_yticks()) == 3
    close = subject_rows(make(), predicted, ["logistic"])
    _, gaps = subgroup_tables(close, cohort.records, n_draws=100, seed=0)
    figure = draw.gaps(gaps.assign(label=gaps["subject"]), {"auroc": "AUROC"})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "female minus male",
        "under 50 minus over 65",
        "50 to 65 minus over 65",
    ]
    tasks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert tasks == list(gaps["task"].unique())

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cure import scores, tables
from cure.embed import FEATURES
from cure.errors import CureError
from cure.settings.heads import HeadsConfig
from cure.tasks import BINARY


@pytest.fixture(scope="module")
def config():
    return HeadsConfig(
        profile="demo",
        encoders=["e"],
        seeds=[0, 1],
        heads=["logistic"],
        poolings=["mean"],
        groups=["super"],
        n_draws=300,
        n_permutations=100,
    )


@pytest.fixture(scope="module")
def predicted(cohort):
    """Made-up scores: features informative, two initialisations of an encoder less so; one task has 4 positives."""
    rng = np.random.default_rng(0)
    frames = []
    for task in BINARY:
        y = rng.random(len(cohort)) < 0.3
        if task == "CLBBB":
            y[:] = False
            y[:4] = True
        methods = (FEATURES, "none", 0, 1.0), ("e", "random", 0, 2.0), ("e", "random", 1, 3.0)
        for encoder, weights, seed, noise in methods:
            score = 1 / (1 + np.exp(-(y + noise * rng.normal(size=len(y)))))
            key = {"cohort": "small", "protocol": "sound", "encoder": encoder, "weights": weights, "head": "logistic"}
            key |= {"pooling": "none" if encoder == FEATURES else "mean", "seed": np.int16(seed), "contaminated": "no"}
            row = {"task": task, "split": "s", "record_id": cohort.records["record_id"], "y": y, "score": score}
            frames.append(pd.DataFrame({**key, **row, "threshold": 0.5, "setting": "C=1"}))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def table(config, cohort, predicted):
    return scores.heads_table(config, cohort, predicted)


def pick(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column].astype(str) == str(value)]
    (row,) = table.to_dict("records")
    return row


def test_a_row_is_what_scikit_learn_says(table, predicted):
    row = pick(table, encoder="e", seed=1, task="AFIB", metric="auroc")
    chosen = predicted[(predicted["encoder"] == "e") & (predicted["seed"] == 1) & (predicted["task"] == "AFIB")]
    assert row["value"] == pytest.approx(roc_auc_score(chosen["y"], chosen["score"]))
    assert row["lo"] < row["value"] < row["hi"]
    assert row["n_pos"] == chosen["y"].sum()


def test_the_mean_over_initialisations_is_their_mean_with_a_narrower_interval(table):
    one, two, mean = (pick(table, encoder="e", seed=s, task="MI", metric="auroc") for s in (0, 1, scores.MEAN))
    assert mean["value"] == pytest.approx((one["value"] + two["value"]) / 2)
    assert mean["hi"] - mean["lo"] < max(one["hi"] - one["lo"], two["hi"] - two["lo"])
    assert (mean["n"], mean["n_pos"], mean["n_patients"]) == (one["n"], one["n_pos"], one["n_patients"])


def test_features_stand_for_themselves(table):
    once, mean = (pick(table, encoder=FEATURES, seed=s, task="macro", metric="auprc") for s in (0, scores.MEAN))
    for column in ("value", "lo", "hi", "n_tasks"):
        assert once[column] == pytest.approx(mean[column])


def test_a_task_without_support_has_no_interval_and_enters_no_macro(table):
    row = pick(table, encoder="e", seed=scores.MEAN, task="CLBBB", metric="auroc")
    assert not row["supported"]
    assert np.isnan(row["lo"])
    macro = pick(table, encoder="e", seed=scores.MEAN, task="macro", metric="auroc")
    wanted = {"encoder": "e", "seed": scores.MEAN, "metric": "auroc"}
    others = [pick(table, task=task, **wanted)["value"] for task in BINARY if task != "CLBBB"]
    assert macro["n_tasks"] == len(BINARY) - 1
    assert macro["value"] == pytest.approx(np.mean(others))
    view = tables.score_view(scores.main_rows(table), ["encoder", "weights", "head"])
    both = [pick(table, encoder="e", seed=s, task="CLBBB", metric="auroc")["value"] for s in (0, 1)]
    assert row["value"] == pytest.approx(np.mean(both))
    assert view.loc[("e", "random", "logistic"), "CLBBB"] == f"({np.mean(both):.3f})"
    assert "[" in view["AFIB"].iloc[0]


def test_differences_to_the_features_are_those_of_the_table(config, cohort, predicted, table):
    compared = scores.against_features(config, cohort, predicted)
    row = pick(compared, encoder="e", task="HYP", metric="auroc")
    mine = pick(table, encoder="e", seed=scores.MEAN, task="HYP", metric="auroc")["value"]
    theirs = pick(table, encoder=FEATURES, seed=scores.MEAN, task="HYP", metric="auroc")["value"]
    assert row["value"] == pytest.approx(mine - theirs)
    assert row["reference"] == pytest.approx(theirs)
    assert row["lo"] < row["value"] < row["hi"]
    assert (compared["p_holm"].dropna() >= compared["p"].dropna()).all()
    assert set(compared["encoder"]) == {"e"}
    view = scores.comparison_view(compared)
    assert view.loc[("e", "random", "logistic"), "HYP"].startswith(
        f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}], p = "
    )


def test_pre_training_is_compared_with_all_its_random_twins(config, cohort, predicted):
    """Weights of one pre-training stand against the mean of both initialisations, on the same patients."""
    rng = np.random.default_rng(1)
    twin = predicted[predicted["encoder"] == "e"].assign(encoder="leadcnn")
    once = twin[twin["seed"] == 0]
    better = 1 / (1 + np.exp(-(once["y"] + 0.5 * rng.normal(size=len(once)))))
    both = pd.concat([twin, once.assign(weights="ssl-folds", score=better)], ignore_index=True)
    chosen = config.model_copy(update={"pretrained": ["ssl-folds"]})
    gained = scores.against_untrained(chosen, cohort, both)
    row = pick(gained, task="HYP")
    trained, *untrained = (
        roc_auc_score(part["y"], part["score"])
        for part in (
            both[(both["weights"] == weights) & (both["seed"] == seed) & (both["task"] == "HYP")]
            for weights, seed in (("ssl-folds", 0), ("random", 0), ("random", 1))
        )
    )
    assert row["value"] == pytest.approx(trained - np.mean(untrained))
    assert 0 < row["lo"] < row["value"] < row["hi"]
    assert set(gained["comparator"]) == {"random"}
    with pytest.raises(CureError, match="no pre-trained weights are part of this profile"):
        scores.against_untrained(config, cohort, predicted)


def test_pre_training_is_compared_with_borrowed_statistics_too(config, cohort, predicted):
    """Where random weights also come with the training records' statistics: both differences, and what that gains."""
    random = predicted[predicted["encoder"] == "e"].assign(encoder="leadcnn")
    rng = np.random.default_rng(1)

    def weights(name: str, signal: float) -> pd.DataFrame:
        once = random[random["seed"] == 0]
        return once.assign(weights=name, score=1 / (1 + np.exp(-(signal * once["y"] + rng.normal(size=len(once))))))

    every = pd.concat([random, weights("ssl-folds", 2.0), weights("statistics", 1.0)], ignore_index=True)
    chosen = config.model_copy(update={"pretrained": ["ssl-folds"], "statistics": ["leadcnn", "other"]})
    gained = scores.against_untrained(chosen, cohort, every)
    macro = gained[gained["task"] == "macro"].set_index(["weights", "comparator"])["value"]
    assert set(macro.index) == {("ssl-folds", "random"), ("ssl-folds", "statistics"), ("statistics", "random")}
    total = macro["ssl-folds", "statistics"] + macro["statistics", "random"]
    assert macro["ssl-folds", "random"] == pytest.approx(total)
    assert len(scores.comparison_view(gained)) == 3 * gained["head"].nunique()


def test_methods_with_fewer_seeds_weigh_each_seed_alike(predicted):
    """Two seeds beside three: both are repeated to six members, so that a mean over members is a mean over seeds."""
    e = predicted[predicted["encoder"] == "e"]
    f = pd.concat([e[e["seed"] == 0].assign(encoder="f", seed=np.int16(s), score=0.1 + 0.2 * s) for s in range(3)])
    folded, macros = scores.fold_seeds(pd.concat([e, f], ignore_index=True).drop(columns="setting"))
    assert len(macros["MI"]) == 6
    members = folded[folded["task"].isin(macros["MI"])].groupby(["encoder", "task"], observed=True)["score"].mean()
    assert members["f"].mean() == pytest.approx(0.3)
    by_seed = e[e["task"] == "MI"].groupby("seed")["score"].mean()
    assert members["e"].mean() == pytest.approx(by_seed.mean())
    assert members["e"].value_counts().tolist() == [3, 3]


def test_the_null_is_a_half_within_test_parts_and_pooling_is_reported_apart(config, cohort, monkeypatch):
    # An embedding that knows every label: a leak of true labels would show at once.
    from cure import predictions
    from cure.splits import make_splits

    rng = np.random.default_rng(0)
    labels = cohort.binary()
    x = np.column_stack([labels.y, rng.normal(size=(len(cohort), 4))]).astype(np.float32)
    monkeypatch.setattr(predictions.embed, "read_split", lambda *_: x)
    config = HeadsConfig(
        profile="demo", encoders=["resnet1d"], seeds=[0], heads=["logistic"], poolings=["mean"], groups=[]
    )
    null = scores.null_table(config, cohort, make_splits(cohort.records, "rotate"))
    assert (null["n_permutations"] == 200).all()
    assert ((null["mean_within"] - 0.5).abs() < 5 * null["se_within"]).all()
    assert (null["se_within"] < 0.02).all()
    assert (null["lo"] < null["mean"]).all() and (null["mean"] < null["hi"]).all()
    assert set(null["head"]) == {"ridge"}


def test_heads_poolings_and_concatenations_are_fitted_as_the_settings_say(cohort, monkeypatch):
    from cure import predictions
    from cure.splits import make_splits

    jobs = []

    def noted(found, *_args, **kwargs):
        jobs.extend(found)
        return kwargs

    def folder_values(_config, one, pooling, _cohort, split):
        name = f"{one.folder} {pooling} {split.name if split else ''}"
        return np.full((len(cohort), 2), sum(map(ord, name)), np.float32)

    monkeypatch.setattr(predictions.embed, "read_split", folder_values)
    monkeypatch.setattr(predictions, "out_of_fold", noted)
    splits = make_splits(cohort.records, "rotate")
    settings = {"profile": "ptbxl-subset", "encoders": ["leadcnn"], "seeds": [0], "pretrained": ["ssl-folds"]}
    settings |= {"heads": ["logistic", "tree"], "poolings": ["mean", "max"], "groups": [], "grid": "paper"}
    pair = ["leadcnn-ssl-folds-0", FEATURES]
    crossed = {"crossed": ["leadcnn-random-0"], "crossed_heads": ["tree", "lasso"]}
    config = HeadsConfig(**settings, **crossed, pooled_heads=["tree", "knn"], concatenate=[pair])
    assert predictions.binary(config, cohort, splits) == {"seed": 0, "grid": "paper"}
    fitted = {(j.key["encoder"], j.key["weights"], j.key["pooling"], j.head) for j in jobs}
    assert all(job.key["head"] == job.head for job in jobs)
    assert len(fitted) == len(jobs)
    names = ("leadcnn", "ssl-folds"), ("leadcnn", "random")
    mean = {(*name, "mean", head) for name in names for head in ("logistic", "tree", "knn")}
    other = {(*name, "max", head) for name in names for head in ("tree", "knn")}
    features = {(FEATURES, "none", "none", head) for head in ("logistic", "tree", "knn")}
    joined = {(f"leadcnn+{FEATURES}", "ssl-folds+none", "mean", head) for head in ("logistic", "tree", "knn")}
    more = {("leadcnn", "random", pooling, "lasso") for pooling in ("mean", "max")}
    assert fitted == mean | other | features | joined | more
    (job, *_) = (job for job in jobs if job.key["encoder"] == f"leadcnn+{FEATURES}")
    for split in splits:
        encoder = next(j for j in jobs if j.key["weights"] == "ssl-folds" and j.key["pooling"] == "mean")
        plain = next(j for j in jobs if j.key["encoder"] == FEATURES)
        side_by_side = np.hstack([encoder.x[split.name], plain.x[split.name]])
        np.testing.assert_array_equal(job.x[split.name], side_by_side)
    assert len({job.x[split.name][0, 0] for split in splits}) == 5, "weights differ from split to split"


def test_concatenations_that_cannot_be_made_are_named(cohort):
    from cure import predictions
    from cure.splits import make_splits

    splits = make_splits(cohort.records, "rotate")
    settings = {"profile": "ptbxl-subset", "encoders": ["leadcnn"], "seeds": [0], "heads": ["logistic"]}
    settings |= {"poolings": ["mean"], "groups": []}
    unknown = HeadsConfig(**settings, concatenate=[["leadcnn-ssl-folds-0", "resnet-9"]])
    with pytest.raises(
        CureError, match=r"no representation 'resnet-9': choose from leadcnn-ssl-folds-0, .*ecg-features"
    ):
        list(predictions._concatenated(unknown, cohort, splits))
    with pytest.raises(ValueError, match="at least 2 items"):
        HeadsConfig(**settings, concatenate=[["ecg-features"]])


def test_two_concatenations_of_the_same_name_are_refused(cohort, monkeypatch):
    from cure import predictions
    from cure.splits import make_splits

    monkeypatch.setattr(predictions.embed, "read_split", lambda *_: np.zeros((len(cohort), 2), np.float32))
    settings = {"profile": "ptbxl-subset", "encoders": ["leadcnn"], "seeds": [0], "heads": ["logistic"]}
    pairs = [["ecg-features", "leadcnn-random-0"], ["ecg-features", "leadcnn-random-1"]]
    config = HeadsConfig(**settings, poolings=["mean"], groups=[], concatenate=pairs)
    with pytest.raises(CureError, match="would carry the same name"):
        list(predictions._concatenated(config, cohort, make_splits(cohort.records, "rotate")))


def test_a_task_without_positives_is_left_out_not_fatal(cohort):
    from cure import predictions, tasks
    from cure.splits import make_splits

    y = np.zeros((len(cohort), 3), bool)
    y[::2, 1] = True
    y[:, 2] = True
    labels = tasks.Labels(["none", "half", "all"], y, np.arange(len(cohort)))
    kept = predictions.fittable(labels, make_splits(cohort.records, "rotate"))
    assert kept.names == ["half"]
    assert kept.y.shape == (len(cohort), 1)

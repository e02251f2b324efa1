"""Label efficiency: samples are fair, averages over samples are averages, and verdicts follow from the intervals."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from small import Small, small

from cure import efficiency, efficiency_tables, embed, finetune, paths
from cure.efficiency import sample
from cure.embed import Representation
from cure.errors import CureError
from cure.models import registry
from cure.settings.efficiency import EfficiencyConfig
from cure.splits import Split, make_splits

N = 400


def make(seed: int = 0) -> tuple[Split, np.ndarray, np.ndarray]:
    """A split of 400 records of 250 patients, with a frequent and a rare label."""
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, 250, N))
    part = rng.choice(["train", "val", "test"], 250, p=[0.6, 0.2, 0.2])[patients]
    y = rng.random((N, 2)) < [0.4, 0.06]
    return Split("s", *(np.flatnonzero(part == name) for name in ("train", "val", "test"))), patients, y


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 20), draw=st.integers(0, 50), small=st.sampled_from([0.1, 0.2, 0.5]))
def test_samples_are_of_whole_patients_nested_and_leave_the_test_records(seed, draw, small):
    split, patients, y = make(seed)
    parts = [sample(split, patients, y, f, draw, smallest=small, seed=seed).split for f in (small, 0.7, 1.0)]
    for one, fraction in zip(parts, (small, 0.7, 1.0), strict=True):
        np.testing.assert_array_equal(one.test, split.test)
        for name in ("train", "val"):
            whole, kept = getattr(split, name), getattr(one, name)
            people = np.unique(patients[whole])
            assert len(np.unique(patients[kept])) == int(np.ceil(fraction * len(people)))
            # All records of a patient, in the split's order, or none.
            np.testing.assert_array_equal(kept, whole[np.isin(patients[whole], patients[kept])])
    first = y[parts[0].train]
    assert (first.any(axis=0) & ~first.all(axis=0)).all()
    for smaller, larger in pairwise(parts):
        assert set(smaller.train) <= set(larger.train)
        assert set(smaller.val) <= set(larger.val)
    np.testing.assert_array_equal(parts[-1].train, split.train)


def test_another_draw_is_another_sample_and_the_same_draw_the_same():
    split, patients, y = make()
    one, again, other = (sample(split, patients, y, 0.2, d, smallest=0.2, seed=0).split.train for d in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert len(np.intersect1d(one, other)) < 0.5 * len(one)


def test_a_label_that_no_sample_can_hold_is_an_error():
    split, patients, y = make()
    y[split.train, 1] = False
    with pytest.raises(CureError, match="s: no sample of 10% of the patients has both classes of all tasks"):
        sample(split, patients, y, 0.1, 0, smallest=0.1, seed=0)


@pytest.fixture
def config():
    values = {"fractions": [0.5, 1.0], "representations": ["e-random-0"], "heads": ["logistic"], "draws": 12}
    return EfficiencyConfig(profile="demo", **values, n_splits=2, trained=[], n_draws=200)


@pytest.fixture
def study(config, cohort, monkeypatch):
    """The small cohort with an embedding that knows its labels, more or less."""
    one = Representation("e", "random", 0)
    rng = np.random.default_rng(0)
    signal = cohort.binary().y.astype(float) @ rng.normal(size=(cohort.binary().y.shape[1], 6))
    x = (signal + rng.normal(size=signal.shape)).astype(np.float32)
    monkeypatch.setattr(embed, "representations", lambda _: [one])
    monkeypatch.setattr(embed, "contaminated", lambda *_: "no")
    monkeypatch.setattr(embed, "read_split", lambda *_: x)
    return config, cohort, make_splits(cohort.records, "rotate")


def test_tasks_are_those_that_the_smallest_sample_can_hold(study):
    config, cohort, splits = study
    kept = efficiency.labels(config, cohort, splits)
    every = cohort.binary()
    for i, name in enumerate(every.names):
        rarer = min(min(every.y[s.train, i].sum(), (~every.y[s.train, i]).sum()) for s in splits[:2])
        assert (name in kept.names) == (0.5 * rarer >= efficiency.MIN_EXPECTED)
    with pytest.raises(CureError, match="raise the smallest of `fractions`"):
        efficiency.labels(config.model_copy(update={"fractions": [0.001]}), cohort, splits)


def test_heads_are_scored_on_the_same_records_at_every_fraction(study):
    config, cohort, splits = study
    predicted = efficiency.frozen(config, cohort, splits)
    draws = predicted.groupby("fraction")["seed"].nunique()
    assert draws.tolist() == [12, 1]  # nothing is drawn where all labels are used
    tested = np.sort(np.concatenate([split.test for split in splits[:2]]))
    records = cohort.records["record_id"].to_numpy()[tested]
    for _, rows in predicted.groupby(["fraction", "seed", "task"], observed=True):
        np.testing.assert_array_equal(np.sort(rows["record_id"]), np.sort(records))
    assert predicted["strategy"].unique().tolist() == ["frozen"]
    sizes = efficiency.sizes(config, cohort, splits)
    assert (sizes["lo"] <= sizes["value"]).all() and (sizes["value"] <= sizes["hi"]).all()
    assert (sizes.loc[sizes["metric"] == "positives", "lo"] >= 1).all()
    unknown = config.model_copy(update={"representations": ["f-random-0"]})
    with pytest.raises(CureError, match="profile demo extracts no f-random-0: choose from e-random-0"):
        efficiency.frozen(unknown, cohort, splits)


def fake(cohort, fractions=(0.5, 1.0)) -> pd.DataFrame:
    """Predictions of a frozen and a fine-tuned method: the more labels, the better; fine-tuning needs more of them."""
    rng, rows = np.random.default_rng(0), []
    labels = cohort.binary()
    column = {"cohort": "c", "protocol": "sound", "encoder": "e", "pooling": "mean", "leads": "12"}
    for strategy, head, strength, draws in (("frozen", "logistic", 1.0, 12), ("full", "linear", 0.2, 3)):
        for fraction in fractions:
            for draw in range(1 if fraction == 1 and strategy == "frozen" else draws):
                for i, task in enumerate(labels.names[:3]):
                    y = labels.y[:, i]
                    noise = rng.normal(size=len(y))
                    key = {**column, "weights": "w", "head": head, "strategy": strategy}
                    key |= {
                        "fraction": np.float32(fraction),
                        "seed": np.int16(draw),
                        "contaminated": "no",
                        "task": task,
                        "split": "s",
                    }
                    score = 1 / (1 + np.exp(-(strength * 4 * fraction * (y - 0.5) + noise)))
                    record = {"record_id": cohort.records["record_id"], "y": y.astype(np.int8), "score": score}
                    rows.append(pd.DataFrame({**key, **record, "threshold": np.float32(0.5), "setting": ""}))
    order = [*column, "weights", "head", "strategy", "fraction", "seed", "contaminated", "task", "split"]
    frame = pd.concat(rows, ignore_index=True)
    return frame[[*order, "record_id", "y", "score", "threshold", "setting"]]


def test_a_curve_is_the_mean_over_samples(config, cohort):
    predicted = fake(cohort)
    table = efficiency_tables.curve_table(config, cohort, predicted)
    one = predicted[(predicted["strategy"] == "frozen") & (predicted["fraction"] == 0.5)]
    by_draw = pd.Series(
        {key: roc_auc_score(rows["y"], rows["score"]) for key, rows in one.groupby(["task", "seed"], observed=True)}
    ).unstack()
    mine = table[(table["strategy"] == "frozen") & (table["fraction"] == 0.5) & (table["metric"] == "auroc")]
    mine = mine.set_index("task")
    for task, values in by_draw.iterrows():
        assert mine.loc[task, "value"] == pytest.approx(values.mean())
        assert mine.loc[task, "sd"] == pytest.approx(values.std(ddof=1))
        assert mine.loc[task, "n_pos"] == cohort.binary().y[:, cohort.binary().names.index(task)].sum()
    assert mine.loc["macro", "value"] == pytest.approx(by_draw.to_numpy().mean())
    assert mine.loc["macro", "sd"] == pytest.approx(by_draw.mean(axis=0).std(ddof=1))
    assert (mine["n_samples"] == 12).all() and mine.loc["macro", "n_tasks"] == 3
    few = table[table["strategy"] == "full"]
    assert few["sd"].isna().all()  # three samples show no spread
    assert (table["lo"] <= table["value"]).all() and (table["value"] <= table["hi"]).all()
    view = efficiency_tables.curve_view(table)
    assert view.columns.tolist() == ["50%", "100%"] and len(view) == 2


def test_everything_is_compared_with_fine_tuning_on_all_labels(config, cohort):
    predicted = fake(cohort)
    table = efficiency_tables.curve_table(config, cohort, predicted)
    differences = efficiency_tables.difference_table(config, cohort, predicted)
    found = differences[differences["task"] == "macro"].set_index(["strategy", "fraction", "comparator"])["value"]
    macro = table[(table["task"] == "macro") & (table["metric"] == "auroc")]
    macro = macro.set_index(["strategy", "fraction"])["value"]
    assert set(found.index) == {
        ("frozen", 0.5, "fine-tuned"),
        ("frozen", 0.5, "fine-tuned, 100% of labels"),
        ("frozen", 1.0, "fine-tuned"),
        ("full", 0.5, "fine-tuned, 100% of labels"),
    }
    for (strategy, fraction, against), value in found.items():
        other = macro["full", 1.0 if "%" in against else fraction]
        assert value == pytest.approx(macro[strategy, fraction] - other)
    assert (differences.loc[differences["task"] == "macro", "n_tasks"] == 3).all()
    assert efficiency_tables.difference_view(differences).shape == (2, 2)
    text = efficiency_tables.answer(differences, "e-w-0")
    assert "50% of the labels: better (+" in text
    alone = predicted[predicted["strategy"] == "frozen"]
    empty = efficiency_tables.difference_table(config, cohort, alone)
    assert "nothing to rival" in efficiency_tables.answer(empty, "e-w-0")


@pytest.fixture
def trainable(study, tmp_path, monkeypatch):
    """The same with an encoder to train, as if pre-trained, and the recipe of a stage `finetune`."""
    config, cohort, splits = study
    recipe = {"encoder": "small", "weights": "ssl-folds", "strategies": ["full", "scratch"], "seeds": [4, 5]}
    recipe |= {"training": {"tuned": {"rates": [1e-3, 1e-2]}, "scratch": {"rates": [1e-3]}}}
    recipe |= {"epochs": 1, "patience": 1, "batch_size": 16, "weight_decay": 0.02}
    monkeypatch.setitem(registry.OWN, "small", Small)
    monkeypatch.setattr(embed, "representations", lambda _: [Representation("small", "ssl-folds", 0)])
    monkeypatch.setattr(embed, "load_encoder", lambda *_: small())
    monkeypatch.setattr(efficiency, "parameters", lambda stage, profile: {"profile": profile, **recipe})
    monkeypatch.setattr(paths, "scratch", lambda profile, stage: tmp_path / "scratch" / stage)
    values = {"trained": ["full", "scratch"], "n_splits": 1, "training_draws": 2, "least_steps": 1.0}
    return config.model_copy(update=values), cohort, splits


def test_networks_are_trained_on_the_same_samples_as_heads(trainable, monkeypatch):
    config, cohort, splits = trainable
    jobs, real = [], finetune.train_all
    monkeypatch.setattr(finetune, "train_all", lambda found, *args: jobs.extend(found) or real(found, *args))
    made = efficiency.trained(config, cohort, splits, n_jobs=1)
    assert len(jobs) == 2 * 2 * 2  # strategies, fractions, draws; one split
    patients, y = cohort.records["patient_id"].to_numpy(), efficiency.labels(config, cohort, splits).y
    for job in jobs:
        both = {f: sample(splits[0], patients, y, f, job.seed, smallest=0.5, seed=0) for f in (0.5, 1.0)}
        (fraction,) = [f for f, one in both.items() if _same(job, one)]
        assert len(job.split.train) >= 0.9 * len(splits[0].train)  # a small sample is repeated: as many steps
        assert fraction == 1.0 or len(np.unique(job.split.train)) < 0.7 * len(splits[0].train)
        searched = job.strategy.name == "full" and fraction == 1.0
        assert job.strategy.rates == ((1e-3, 1e-2) if searched else (1e-3,))
    assert len({job.starts.weights_sha256() for job in jobs if job.strategy.name == "scratch"}) == 2  # a draw, a start
    assert len({job.starts.weights_sha256() for job in jobs if job.strategy.name == "full"}) == 1
    predicted = made.predicted
    assert set(predicted["fraction"]) == {np.float32(0.5), np.float32(1)}
    assert set(predicted["seed"]) == {0, 1}
    per = predicted.groupby(["strategy", "fraction", "seed", "task"], observed=True)["record_id"]
    per = per.agg(["size", "nunique"])
    assert (per == len(splits[0].test)).all(axis=None)
    assert (made.seconds["seconds"] > 0).all() and len(made.seconds) == 8


def _same(job, one) -> bool:
    return set(job.split.train) == set(one.split.train) and set(job.split.val) == set(one.split.val)


def test_without_networks_nothing_is_trained(study):
    config, cohort, splits = study
    made = efficiency.trained(config, cohort, splits)
    assert made.predicted.empty and made.seconds.empty

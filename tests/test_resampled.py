"""Tables made on all cores, each prediction resampled once, are those of `cure.evaluate` to the last bit."""

import numpy as np
import pandas as pd
import pytest

from cure import evaluate, resampled
from cure.evaluate import Method
from cure.resampled import Frame


def predictions(n: int = 120) -> pd.DataFrame:
    """Three encoders under two tasks and a rare one; `b` has one initialisation, whose scores are repeated."""
    rng = np.random.default_rng(0)
    tasks = {"T": rng.random(n) < 0.3, "U": rng.random(n) < 0.5, "rare": np.arange(n) < 4}
    frames = []
    for encoder, seed in [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1)]:
        noise = np.random.default_rng(5 if encoder == "b" else seed)
        for task, y in tasks.items():
            score = np.round(1 / (1 + np.exp(-1.0 * y - noise.normal(size=n))), 2)
            row = {"encoder": encoder, "pooling": None, "seed": seed, "task": task, "split": "s"}
            frames.append(pd.DataFrame({**row, "record_id": range(n), "y": y.astype(int), "score": score}))
    return pd.concat(frames, ignore_index=True).assign(threshold=0.4)


PATIENTS = pd.Series(np.arange(120) // 2, index=range(120))
MACROS = {"macro": ("T", "U", "rare"), "one": ("U",)}


def same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(ours, theirs.reset_index(drop=True), check_exact=True)
    assert ours.to_csv() == theirs.reset_index(drop=True).to_csv()


def test_tables_are_those_of_evaluate_to_the_last_bit():
    every = predictions()
    some = every[(every["task"] != "U") & (every["seed"] == 0)].drop(columns="seed")
    ours = resampled.evaluate(
        [Frame(every, MACROS), Frame(some, {"macro": ("T",)}, per_task=False)], PATIENTS, n_draws=150, seed=3
    )
    whole = evaluate.evaluate(every, PATIENTS, macros=MACROS, n_draws=150, seed=3)
    averages = evaluate.evaluate(some, PATIENTS, macros={"macro": ("T",)}, n_draws=150, seed=3)
    same(ours[0], whole)
    same(ours[1], averages[averages["task"] == "macro"])


def test_frames_of_other_patients_have_draws_of_their_own():
    every = predictions()
    fewer = every[every["record_id"] >= 40]
    ours = resampled.evaluate([Frame(every, MACROS), Frame(fewer, MACROS)], PATIENTS, n_draws=100)
    same(ours[0], evaluate.evaluate(every, PATIENTS, macros=MACROS, n_draws=100))
    same(ours[1], evaluate.evaluate(fewer, PATIENTS, macros=MACROS, n_draws=100))


@pytest.mark.parametrize("comparator", [{"encoder": "b"}, [({"encoder": "a"}, {"encoder": "c"}), ({}, {"seed": 0})]])
def test_comparisons_are_those_of_compare_to_the_last_bit(comparator, monkeypatch):
    monkeypatch.setattr(resampled, "_AT_A_TIME", 2)
    every = predictions()
    theirs = evaluate.compare(every, comparator, PATIENTS, seed=2, macros=MACROS, per_task=False)
    same(resampled.compare(every, comparator, PATIENTS, seed=2, macros=MACROS), theirs)
    with pytest.raises(ValueError, match="nothing to compare"):
        resampled.compare(every[every["encoder"] == "b"], {"encoder": "b"}, PATIENTS, macros=MACROS)


def test_equal_predictions_are_resampled_once(monkeypatch):
    counted = []
    results = Method.results

    def counting(method, cohort, tasks, weights, metrics):
        counted.append((method.name["encoder"], len(tasks)))
        return results(method, cohort, tasks, weights, metrics)

    monkeypatch.setattr(Method, "results", counting)
    monkeypatch.setattr(resampled.joblib, "cpu_count", lambda: 1)  # in this process, so that the counts are seen
    every = predictions()
    resampled.evaluate([Frame(every, MACROS), Frame(every.drop_duplicates(["task", "record_id"]), MACROS)], PATIENTS)
    assert counted == [("a", 3), ("a", 3), ("b", 3), ("c", 3), ("c", 3)]

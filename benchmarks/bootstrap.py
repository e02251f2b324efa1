"""Macro-AUROC under a patient bootstrap: one sparse product per label against a loop over scikit-learn.

    python benchmarks/bootstrap.py

The size is that of PTB-XL's test fold: 1,000 draws x 71 labels x 2,200 records. The loops are timed on their first few
draws and scaled; on those draws all methods must give the same numbers. The floor is the traffic: every label has to
read every weight once (1.25 GB as float64), so it is compared with just adding up the same weights as often.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from cure import bootstrap as bs


def cohort(n: int, n_labels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients with 1.16 records on average, labels from 10 positives to 45 %, scores with a few ties."""
    prevalence = np.geomspace(10 / n, 0.45, n_labels)[:, None]
    y = rng.random((n_labels, n)).argsort(axis=1) < np.maximum(10, prevalence * n)
    score = np.round(1 / (1 + np.exp(-(rng.standard_normal((n_labels, n)) + 1.5 * y - 1))), 5)
    return y.astype(np.int8), score, rng.integers(0, int(n / 0.3), n)


def macro_auroc(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """All draws of all labels through `cure.bootstrap`."""
    plans = [bs.Plan.of(label, s, ranking_only=True) for label, s in zip(y, score, strict=True)]
    return bs.macro(bs.apply(plans, weights, ["auroc"])[:, 0], np.ones(len(y), bool))[0]


def loop_sklearn(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What scripts do: repeat the drawn rows, call scikit-learn, label by label."""
    out = []
    for w in weights:
        rows = np.repeat(np.arange(len(w)), w)
        out.append(np.mean([roc_auc_score(label[rows], s[rows]) for label, s in zip(y, score, strict=True)]))
    return np.array(out)


def loop_ranks(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A leaner loop: all labels of a draw at once, AUROC from scipy's mid-ranks."""
    out = []
    for w in weights:
        rows = np.repeat(np.arange(len(w)), w)
        label, ranks = y[:, rows] > 0, rankdata(score[:, rows], axis=1)
        p = label.sum(axis=1)
        out.append(np.mean(((ranks * label).sum(axis=1) - p * (p + 1) / 2) / (p * (len(rows) - p))))
    return np.array(out)


def add_up(y: np.ndarray, weights: np.ndarray) -> None:
    """Read the weights as often as there are labels, in the same chunks."""
    step = max(32, bs._CHUNK_BYTES // (8 * weights.shape[1]))
    for at in range(0, len(weights), step):
        chunk = np.ascontiguousarray(weights[at : at + step].T, dtype=np.float64)
        for _ in y:
            np.add.reduce(chunk, axis=0)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of some repeats."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Measure, compare the numbers, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--labels", type=int, default=71)
    parser.add_argument("--records", type=int, default=2200)
    parser.add_argument("--loop-draws", type=int, default=10, help="draws that the loops are timed on")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    y, score, patient = cohort(args.records, args.labels, rng)
    print(f"{args.draws} draws x {args.labels} labels x {args.records} records of {len(np.unique(patient))} patients")

    drawing = seconds(lambda: bs.patient_draws(patient, args.draws, np.random.default_rng(1)), 3)
    weights = bs.patient_draws(patient, args.draws, np.random.default_rng(1))
    ours = seconds(lambda: macro_auroc(y, score, weights), 5)
    values = macro_auroc(y, score, weights)
    lo, hi, undefined = bs.interval(values)
    print(f"macro-AUROC interval [{lo:.4f}, {hi:.4f}], {undefined} draws undefined (a label without positives)")
    print(f"{'cure':<34}{ours:8.3f} s (and {drawing:.3f} s to draw the patients)")

    few = weights[: args.loop_draws]
    defined = np.isfinite(values[: len(few)])
    for name, loop in (("loop over sklearn.roc_auc_score", loop_sklearn), ("loop over scipy mid-ranks", loop_ranks)):
        theirs = seconds(lambda loop=loop: loop(y, score, few[defined]), 1) * args.draws / defined.sum()
        gap = np.abs(loop(y, score, few[defined]) - values[: len(few)][defined]).max()
        print(
            f"{name:<34}{theirs:8.1f} s, scaled from {defined.sum()} draws: {theirs / ours:5.0f} x slower; "
            f"largest difference {gap:.1e}"
        )
        if gap > 1e-12:
            raise SystemExit("the methods disagree")
    floor = seconds(lambda: add_up(y, weights), 5)
    moved = 8 * y.shape[0] * weights.size
    print(
        f"{'floor: add up the same weights':<34}{floor:8.3f} s ({moved / 1e9:.2f} GB, {moved / floor / 1e9:.0f} GB/s): "
        f"cure takes {ours / floor:.1f} x the floor"
    )


if __name__ == "__main__":
    main()

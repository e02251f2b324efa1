"""Heads retrained on k dimensions of an embedding: the best by SHAP, against random ones and principal components."""

import joblib
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from cure.errors import CureError
from cure.evaluate import evaluate
from cure.heads import fit_head, scaler
from cure.importance import Subject, explain_head, parallel, unchecked
from cure.splits import Split

#: Head of the curve, and whose SHAP values rank the dimensions.
HEAD = "logistic"
#: A curve is back at the full head when its AUROC is at most this much below.
WITHIN = 0.01
#: How the k dimensions of a curve are selected, and what a text or a legend calls them.
SELECTIONS = {"shap": "highest mean |SHAP|", "pca": "first principal components", "random": "random dimensions"}


def rank_dimensions(x: np.ndarray, y: np.ndarray, split: Split, seed: int = 0) -> np.ndarray:
    """Dimensions by mean |SHAP| over the training records under the logistic head, highest first, (dim,) int.

    Validation records choose the head's penalty, as always; test records have no influence.
    """
    fit = fit_head(HEAD, x, y, split, seed)
    train = x[split.train]
    return np.argsort(-explain_head(HEAD, fit, train, train, seed).importance, kind="stable")


def topk_predictions(subject: Subject, top_k: list[int], n_random: int, seed: int = 0) -> pd.DataFrame:
    """Test-fold scores of the logistic head refitted on k dimensions: best by SHAP, random, and principal components.

    A random draw is one order of the dimensions, of which the first k are taken in every split and task. Components
    are those of the standardised training records. A k that reaches `dim` is left out: that is selection `all`.

    Returns
    -------
    DataFrame
        One row per record x task x method, as `cure.evaluate.evaluate` takes it; methods are told apart by
        `selection`, `k` and `draw` (0 but for random).
    """
    ks = sorted({k for k in top_k if k < subject.dim})
    fewest = min(len(split.train) for split in subject.splits)
    if ks and ks[-1] > fewest:
        raise CureError(
            f"section explain, top_k: {ks[-1]} principal components cannot be had of {fewest} training records; list "
            "smaller numbers"
        )
    draws = [("all", 0), ("shap", 0), ("pca", 0), *(("random", draw) for draw in range(n_random))]
    units = [(t, s, *draw) for draw in draws for t in range(len(subject.tasks)) for s in range(len(subject.splits))]
    work = [
        joblib.delayed(_curve)(subject.x[s], subject.y[:, t], subject.splits[s], selection, draw, ks, seed)
        for t, s, selection, draw in units
    ]
    frames = []
    for (t, s, selection, draw), curve in zip(units, parallel(work, "top k"), strict=True):
        split = subject.splits[s]
        for k, score, threshold in curve:
            method = {"head": HEAD, "selection": selection, "k": k, "draw": draw}
            tested = {"record_id": subject.record_id[split.test], "y": subject.y[split.test, t].astype(np.int8)}
            what = {"task": subject.tasks[t], "split": split.name, **tested, "score": score, "threshold": threshold}
            frames.append(pd.DataFrame({**subject.key, **method, **what}))
    table = pd.concat(frames, ignore_index=True)
    return table.astype({name: "category" for name in table if table[name].dtype == object and name != "record_id"})


def _curve(
    x: np.ndarray, y: np.ndarray, split: Split, selection: str, draw: int, ks: list[int], seed: int
) -> list[tuple[int, np.ndarray, float]]:
    with unchecked():
        if selection == "all":
            ks, columns = [x.shape[1]], np.arange(x.shape[1])
        elif selection == "shap":
            columns = rank_dimensions(x, y, split, seed)
        elif selection == "random":
            columns = np.random.default_rng([seed, draw]).permutation(x.shape[1])
        else:
            x, columns = _components(x, split, max(ks, default=1), seed), np.arange(max(ks, default=1))
        curve = []
        for k in ks:
            narrow = x[:, columns[:k]]
            fit = fit_head(HEAD, narrow, y, split, seed)
            curve.append((k, fit.score(narrow[split.test]).astype(np.float32), fit.threshold))
        return curve


def _components(x: np.ndarray, split: Split, n: int, seed: int) -> np.ndarray:
    scale = scaler().fit(x[split.train])
    model = PCA(min(n, len(split.train)), random_state=seed).fit(scale.transform(x[split.train]))
    return model.transform(scale.transform(x)).astype(np.float32)


def topk_table(subject: Subject, predicted: pd.DataFrame, n_draws: int, seed: int = 0) -> pd.DataFrame:
    """AUROC of every selection and k, pooled out of fold, with its 95 % interval over patients.

    Returns
    -------
    DataFrame
        Method columns, `task, metric, value, lo, hi` and the support, as from `cure.evaluate.evaluate`.
    """
    table = evaluate(predicted, subject.patients, n_draws=n_draws, seed=seed, metrics=["auroc"], macros={})
    return table.drop(columns="n_tasks")


def curve_points(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest AUROC over the draws of each task, selection and k."""
    points = table.groupby(["task", "selection", "k"], sort=False, observed=True)
    return points["value"].agg(["mean", "min", "max", "size"]).reset_index()


def smallest_k(table: pd.DataFrame) -> pd.DataFrame:
    """Fewest dimensions from which on the AUROC, averaged over draws, is at most `WITHIN` below that of all dimensions.

    From which on: all larger k are as good, so that one lucky point of a noisy curve does not decide.

    Returns
    -------
    DataFrame
        One row per supported task whose head on all dimensions is better than chance, and selection (but `all`):
        `task, selection, k, value, full, dim, draws`; where no fewer will do, `k` is `dim`.
    """
    works = (table["selection"] == "all") & table["supported"].astype(bool) & (table["lo"] > 0.5)
    points = curve_points(table[table["task"].isin(table.loc[works, "task"])])
    rows = []
    for (task, selection), part in points[points["selection"] != "all"].groupby(["task", "selection"], sort=False):
        full = points[(points["task"] == task) & (points["selection"] == "all")].iloc[0]
        part = part.sort_values("k")
        enough = (part["mean"] >= full["mean"] - WITHIN)[::-1].cummin()[::-1]
        best = part[enough].iloc[0] if enough.any() else full
        about = {"full": full["mean"], "dim": int(full["k"]), "draws": int(part["size"].iloc[0])}
        rows.append({"task": task, "selection": selection, "k": int(best["k"]), "value": best["mean"], **about})
    return pd.DataFrame(rows, columns=["task", "selection", "k", "value", "full", "dim", "draws"])


def topk_text(table: pd.DataFrame) -> str:
    """The curve in words, one line per task: how many dimensions are as good as all of them, by selection."""
    best = smallest_k(table)
    lines = []
    for task, part in best.groupby("task", sort=False):
        first, by = part.iloc[0], part.set_index("selection")
        said = [f"{text} {_needs(by.loc[name])}" for name, text in SELECTIONS.items() if name in by.index]
        lines.append(f"* **{task}** (all {first['dim']}: {first['full']:.3f}): {'; '.join(said)}.")
    if lines:
        draws = best["draws"].max()
        head = f"Fewest dimensions from which on the AUROC is within {WITHIN:g} of all (random: mean of {draws} draws)"
        lines.insert(0, f"{head}, read off curves whose intervals are wider than that:\n")
    if few := sorted(set(table["task"]) - set(best["task"])):
        lines.append(f"\nNothing is said where all dimensions together are not better than chance: {', '.join(few)}.")
    return "\n".join(lines)


def _needs(row: pd.Series) -> str:
    return f"{row['k']} ({row['value']:.3f})" if row["k"] < row["dim"] else "no fewer than all"

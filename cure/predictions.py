"""Predictions of the heads study: which representation, head and task are tried, and how the scores are stored.

Every table is computed from predictions. They are Parquet, one file per encoder: one row per record x task x setting.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from cure import embed, tasks
from cure.bootstrap import label_permutations
from cure.cohorts.base import Cohort
from cure.config import HeadName, StageConfig
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES
from cure.heads import Job, out_of_fold, permuted_scores
from cure.paths import atomic
from cure.settings.heads import HeadsConfig
from cure.splits import Split

#: Patients that must share a number of records for their labels to be permuted in blocks.
_MIN_BLOCKS = 10
#: What pre-training may have seen of the cohort, from nothing to the worst.
_SEEN = ("no", "unknown", "signals", "signals and labels")


def _read(
    config: HeadsConfig, cohort: Cohort, splits: list[Split], one: Representation, pooling: str
) -> dict[str, np.ndarray]:
    if one.per_split:
        return {split.name: embed.read_split(config, one, pooling, cohort, split) for split in splits}
    return dict.fromkeys((split.name for split in splits), embed.read_split(config, one, pooling, cohort, None))


def key(config: StageConfig, one: Representation, pooling: str, head: str, strategy: str = "frozen") -> dict:
    """Columns that say what a prediction is of, in the order of every table."""
    return {
        "cohort": config.cohort.name,
        "protocol": "sound",
        "encoder": one.encoder,
        "weights": one.weights,
        "pooling": "none" if one.encoder == FEATURES else pooling,
        "head": head,
        "strategy": strategy,
        "leads": "12",
        "fraction": np.float32(1),
        "seed": np.int16(one.seed),
        "contaminated": embed.contaminated(one, config),
    }


def fittable(labels: tasks.Labels, splits: list[Split]) -> tasks.Labels:
    """Keep the labels that have both classes in every training part; `splits` are those of the whole cohort."""
    y = labels.y
    parts = [split.restrict(labels.rows).train for split in splits]
    keep = np.all([y[part].any(axis=0) & ~y[part].all(axis=0) for part in parts], axis=0)
    names = [name for name, kept in zip(labels.names, keep, strict=True) if kept]
    return tasks.Labels(names, y[:, keep], labels.rows)


def binary(config: HeadsConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Scores of the binary tasks: every head on mean pooling and features, the pooled heads on every pooling.

    Some representations are crossed: every pooling under every one of the heads listed for that. Concatenated
    representations come last, under every head. A task that lacks a class in a training part cannot be fitted and is
    left out.
    """
    labels = fittable(cohort.binary(), splits)
    everyone = list(dict.fromkeys([*config.heads, *config.pooled_heads]))
    found: list[tuple[dict, dict[str, np.ndarray], list[HeadName]]] = []
    crossed = [find(config, folder) for folder in config.crossed]
    for one in embed.representations(config):
        more = config.crossed_heads if one in crossed else []
        poolings = ["mean"] if one.encoder == FEATURES else list(dict.fromkeys(["mean", *config.poolings]))
        for pooling in poolings:
            x = _read(config, cohort, splits, one, pooling)
            fitted = [*(everyone if pooling == "mean" else config.pooled_heads), *more]
            found.append((key(config, one, pooling, ""), x, list(dict.fromkeys(fitted))))
    found += [(*each, everyone) for each in _concatenated(config, cohort, splits)]
    jobs = [
        Job({**names, "head": head}, x, head, labels.names, labels.y, labels.rows)
        for names, x, fitted in found
        for head in fitted
    ]
    return out_of_fold(jobs, splits, cohort.records["record_id"].to_numpy(), seed=config.seed, grid=config.grid)


def find(config: StageConfig, folder: str) -> Representation:
    """The representation with this folder name, of all that the profile extracts.

    Raises
    ------
    CureError
        If there is none: lists those that there are.
    """
    known = {one.folder: one for one in embed.representations(embed.study(config))}
    if folder not in known:
        raise CureError(
            f"profile '{config.profile}' extracts no representation '{folder}': choose from {', '.join(known)}"
        )
    return known[folder]


def _concatenated(
    config: HeadsConfig, cohort: Cohort, splits: list[Split]
) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Mean-pooled representations side by side, with the key of their predictions; names are joined by `+`."""
    seen: dict[tuple, list[str]] = {}
    for folders in config.concatenate:
        parts = [find(config, folder) for folder in folders]
        joined = {name: "+".join(getattr(one, name) for one in parts) for name in ("encoder", "weights")}
        names = {**key(config, parts[0], "mean", ""), **joined, "pooling": "mean"}
        clash = seen.setdefault((*joined.values(), parts[0].seed), folders)
        if clash is not folders:
            raise CureError(
                f"section heads, concatenate: {folders} and {clash} would carry the same name ({joined['encoder']}, "
                f"{joined['weights']}, seed {parts[0].seed}); keep one of them"
            )
        names["contaminated"] = max((embed.contaminated(one, config) for one in parts), key=_SEEN.index)
        each = [_read(config, cohort, splits, one, "mean") for one in parts]
        if any(one.per_split for one in parts):
            x = {split.name: np.hstack([arrays[split.name] for arrays in each]) for split in splits}
        else:
            # One array for all splits: joblib then shares it between workers.
            x = dict.fromkeys(each[0], np.hstack([arrays[splits[0].name] for arrays in each]))
        yield names, x


def groups(config: HeadsConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Test-fold scores of the label groups: logistic head, mean pooling, the first seed of each encoder and weights.

    Labels with fewer than `MIN_POSITIVES` positive test records, or with a training part that lacks a class, are left
    out: by the support rule they enter no average. Tasks are named `group/label`.
    """
    jobs = []
    first = {(one.encoder, one.weights): one for one in reversed(embed.representations(config))}
    for one, name in product(reversed(first.values()), config.groups):
        labels = fittable(cohort.group(name), splits)
        tested = np.concatenate([split.restrict(labels.rows).test for split in splits])
        enough = labels.y[tested].sum(axis=0) >= MIN_POSITIVES
        names = [f"{name}/{label}" for label, keep in zip(labels.names, enough, strict=True) if keep]
        x = _read(config, cohort, splits, one, "mean")
        jobs.append(Job(key(config, one, "mean", "logistic"), x, "logistic", names, labels.y[:, enough], labels.rows))
    return out_of_fold(jobs, splits, cohort.records["record_id"].to_numpy(), seed=config.seed, grid=config.grid)


def null_scores(
    config: HeadsConfig, cohort: Cohort, splits: list[Split]
) -> Iterator[tuple[dict, list[tuple[np.ndarray, np.ndarray]]]]:
    """Retrain a linear probe on permuted labels: what scores it reaches when there is nothing to learn.

    The probe is a ridge regression on the first random encoder of the profile, mean pooling. Labels change places
    between patients with equally many records and in the same part of the splits, so that prevalence per part stays as
    it is.

    Yields
    ------
    about : dict
        Columns that say what was retrained on which task.
    parts : list of (labels, scores)
        Per split, permuted labels and scores of the test records, both (n_tested, n_permutations).
    """
    rng = np.random.default_rng(config.seed)
    one = next(one for one in embed.representations(config) if one.weights == "random")
    x = embed.read_split(config, one, "mean", cohort, None)
    labels = fittable(cohort.binary(), splits)
    patients = cohort.records["patient_id"].to_numpy()
    parts = [splits[0].train, splits[0].val, splits[0].test] if len(splits) == 1 else [split.test for split in splits]
    tested = np.concatenate([split.test for split in splits])
    for task, y in zip(labels.names, labels.y.T, strict=True):
        permuted = np.empty((len(y), config.n_permutations), bool)
        for part in parts:
            permuted[part] = label_permutations(
                y[part], patients[part], config.n_permutations, rng, min_patients=_MIN_BLOCKS
            ).T
        scores = permuted_scores(x, permuted.astype(np.float32), splits)
        what = {"encoder": one.encoder, "weights": one.weights, "pooling": "mean", "head": "ridge", "seed": one.seed}
        about = {"cohort": cohort.name, **what, "task": task, "metric": "auroc", "n_pos": int(y[tested].sum())}
        yield about, [(permuted[split.test], scores[split.test]) for split in splits]


def save(predictions: pd.DataFrame, folder: Path, name: str) -> None:
    """Write `<folder>/predictions/<name>-<encoder>.parquet`, one file per encoder."""
    for encoder, frame in predictions.groupby("encoder", observed=True):
        with atomic(folder / "predictions" / f"{name}-{encoder}.parquet") as part:
            others = [name for name in frame if name != "score"]
            frame.to_parquet(
                part,
                index=False,
                compression="zstd",
                compression_level=19,
                use_dictionary=others,
                use_byte_stream_split=["score"],  # floats do not repeat, but their high bytes do: a third smaller
            )


def load(folder: Path, name: str) -> pd.DataFrame:
    """Read back what `save` wrote.

    Raises
    ------
    CureError
        If there is none.
    """
    files = sorted((folder / "predictions").glob(f"{name}-*.parquet"))
    if not files:
        raise CureError(f"no {name} predictions of stage {folder.name}: `make repro PROFILE={folder.parent.name}`")
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)

"""Tables of the fine-tuning study: scores, paired differences, sizes, and what each strategy costs."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from cure import embed, paths, predictions, resources, tables
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.evaluate import compare
from cure.finetune import Job, Trained, fit, jobs, pretrained
from cure.heads import fit_head
from cure.models import Encoder
from cure.paths import atomic
from cure.progress import TERMINAL
from cure.scores import MACROS, MEAN, fold_seeds, seed_averaged
from cure.settings.finetune import FinetuneConfig
from cure.splits import Split

#: Columns that name a strategy in every table of this stage.
STRATEGY = ["strategy", "encoder", "weights"]
_NAMES = {"linear": "linear probe", "full": "fine-tuned", "scratch": "from scratch"}


def with_label(table: pd.DataFrame) -> pd.DataFrame:
    """Add `label`, what readers call a strategy: `linear probe: leadcnn, ssl-folds`."""
    start = ", " + table["weights"].astype(str)
    text = table["strategy"].astype(str).map(_NAMES) + ": " + table["encoder"].astype(str)
    return table.assign(label=text + start.where(table["strategy"] != "scratch", ""))


def score_table(config: FinetuneConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """All metrics of all strategies, per seed and averaged over seeds; see `cure.scores.seed_averaged`."""
    return seed_averaged(predicted, cohort, config.n_draws, config.seed)


def against_full(config: FinetuneConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Paired AUROC differences, fine-tuned minus each alternative, averaged over seeds; Holm over the whole table.

    The alternatives are the linear probe of the same weights, the same architecture trained from scratch, and the
    supervised floor.
    """
    folded, macros = fold_seeds(predicted.drop(columns=["setting", "contaminated"]))
    others = {
        "linear probe": {"strategy": "linear", "head": "logistic"},
        f"{config.encoder} from scratch": {"strategy": "scratch", "weights": "random"},
        f"{config.floor} from scratch": {
            "strategy": "scratch",
            "encoder": config.floor,
            "weights": "random",
            "pooling": "mean+max",
        },
    }
    patients = cohort.records.set_index("record_id")["patient_id"]
    pairs = [({"strategy": "full"}, other) for other in others.values()]
    table = compare(folded, pairs, patients, seed=config.seed, macros=macros, per_task=False)
    said = {", ".join(f"{k}={v}" for k, v in other.items()): name for name, other in others.items()}
    table["comparator"] = table["comparator"].map(said)
    return table.assign(seed=MEAN).drop(columns=["n_pos", "n_pos_patients", "prevalence", "n_tasks"])


def main_rows(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Rows averaged over seeds, of one metric, with their `label`."""
    return with_label(table[(table["seed"].astype(str) == MEAN) & (table["metric"] == metric)])


def difference_view(table: pd.DataFrame) -> pd.DataFrame:
    """Differences as a paper prints them: `difference [lo, hi]` and Holm's p, task by comparator."""
    text = [
        f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}], p = {r.p_holm:.2g}" if pd.notna(r.p) else "too few positives"
        for r in table.itertuples()
    ]
    wide = table.assign(text=text).pivot(index="task", columns="comparator", values="text")
    tasks = [*MACROS, *(task for task in table["task"].unique() if task not in MACROS)]
    return wide.loc[tasks, list(table["comparator"].unique())].rename_axis(index=None, columns=None)


def sizes_view(table: pd.DataFrame) -> pd.DataFrame:
    """Parameters, and the means over splits and seeds of epochs and of records seen in training."""
    wide = _wide_sizes(table)
    return wide.map(lambda value: f"{value:,.0f}" if pd.notna(value) else "").set_axis(
        pd.Index(with_label(wide.reset_index())["label"], name=None)
    )


def _wide_sizes(table: pd.DataFrame) -> pd.DataFrame:
    wide = table.pivot_table(index=STRATEGY, columns="metric", values="value", sort=False).rename_axis(columns=None)
    return wide[["trainable", "parameters", "records_seen", "epochs", "epoch_kept"]]


def cost_file(config: FinetuneConfig) -> Path:
    """Where measured costs go: beside the stage's other timings in a pipeline run, else with its interactive output."""
    in_pipeline = os.environ.get(paths.STAGE) == config.stage
    return (paths.resources(config.profile) if in_pipeline else config.output) / "finetune_cost.csv"


def measure(config: FinetuneConfig, cohort: Cohort, splits: list[Split], trained: Trained) -> None:
    """Write `finetune_cost.csv`: seconds per split and peak memory of each strategy. Nothing of it is ever hashed.

    `seconds` of a training is its wall time on one thread, validation included, with one training per core at a time:
    the mean over splits and seeds. That of the linear probe is one forward pass over the training and validation
    records of the first split plus its logistic heads. `peak_mb` is the resident memory, sampled every 2 ms, that a
    fresh process with data and model loaded needs on top: for a few training steps and scored batches, or the probe.
    """
    labels = predictions.fittable(cohort.binary(), splits)
    start = pretrained(config)
    work = partial(_probe_once, embed.load_encoder(config, start, splits[0]), cohort, labels.y, splits[0])
    peak, seconds = _in_fresh_process(work)
    rows = [{"strategy": "linear", "encoder": start.encoder, "weights": start.weights, "seconds": seconds, "n": 1}]
    rows[0]["peak_mb"] = peak
    first = {(job.strategy.name, job.strategy.encoder): job for job in reversed(jobs(config, splits[:1]))}
    for job in reversed(first.values()):
        one = job.about
        mine = (trained.seconds[STRATEGY] == pd.Series(one)[STRATEGY]).all(axis=1)
        mean = trained.seconds.loc[mine, "seconds"].mean()
        peak, _ = _in_fresh_process(_brief(job, cohort, labels.y))
        names = {name: one[name] for name in STRATEGY}
        rows.append({**names, "seconds": mean, "n": int(mine.sum()), "peak_mb": peak})
    machine = resources.machine()
    table = pd.DataFrame(rows).assign(cpu=machine["cpu"], cores=machine["cores"])
    with atomic(cost_file(config)) as part:
        table.round({"seconds": 1, "peak_mb": 0}).to_csv(part, index=False, lineterminator="\n")


def cost_table(profile: str) -> pd.DataFrame:
    """Cost side by side: sizes of each strategy (means over splits and seeds) and its measured seconds and memory.

    Raises
    ------
    CureError
        If stage `finetune` of the profile has not run.
    """
    sizes = _wide_sizes(tables.read(paths.stage(profile, "finetune"), "finetune_sizes")).reset_index()
    file = paths.resources(profile) / "finetune_cost.csv"
    if not file.is_file():
        raise CureError(f"no measured costs of profile {profile}: `make repro PROFILE={profile}` measures them")
    return with_label(sizes.merge(pd.read_csv(file), on=STRATEGY))


def _brief(job: Job, cohort: Cohort, y: np.ndarray) -> Callable[[], float]:
    """The job with few records and one epoch: its memory does not depend on how many follow."""
    few = 2 * job.recipe.batch_size
    parts = [part[:few] for part in (job.split.train, job.split.val, job.split.test)]
    rows = np.concatenate(parts)
    split = Split(job.split.name, *parts).restrict(rows)
    brief = replace(job, split=split, recipe=replace(job.recipe, epochs=1))
    return partial(_train_once, brief, job.starts.input_spec.read(cohort, rows), y[rows])


def _train_once(job: Job, x: np.ndarray, y: np.ndarray) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return float(fit(job.classifier(y.shape[1]), x, y, job.split, job.recipe, Path(folder) / "state")["seconds"])


@torch.inference_mode()
def _probe_once(encoder: Encoder, cohort: Cohort, y: np.ndarray, split: Split) -> float:
    rows, seconds, parts = np.concatenate([split.train, split.val]), 0.0, []
    for batch in np.array_split(rows, -(-len(rows) // 64)):
        signals = torch.from_numpy(encoder.input_spec.read(cohort, batch))
        start = time.perf_counter()
        parts.append(encoder.embed(signals).numpy())
        seconds += time.perf_counter() - start
    x, start = np.concatenate(parts), time.perf_counter()
    for task in y[rows].T:
        fit_head("logistic", x, task, split.restrict(rows))
    return seconds + time.perf_counter() - start


def _in_fresh_process(work: Callable[[], float]) -> tuple[float, float]:
    """Peak memory above the start, MB, and what `work` returns. A process that has worked before keeps freed memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_sampled, work).result()


def _sampled(work: Callable[[], float]) -> tuple[float, float]:
    torch.set_num_threads(1)
    os.environ[TERMINAL] = ""
    process, done = psutil.Process(), threading.Event()
    start = process.memory_info().rss
    peaks = [start]

    def watch() -> None:
        while not done.wait(0.002):
            peaks.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return (max(peaks) - start) / 1e6, result

"""Tables of the fine-tuning study: scores, paired differences, sizes, and what each strategy costs."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import psutil
import torch

from cure import embed, paths, resources, tables
from cure.adapt import frozen_tokens
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.evaluate import compare
from cure.finetune import Job, Trained, jobs, pretrained, taking_part, targets, whole
from cure.heads import fit_head
from cure.models import Encoder
from cure.paths import atomic
from cure.progress import TERMINAL
from cure.scores import MACROS, MEAN, fold_seeds, seed_averaged
from cure.settings.finetune import FinetuneConfig
from cure.splits import Split
from cure.strategies import strategies

#: Columns that name a strategy in every table of this stage.
STRATEGY = ["strategy", "encoder", "weights"]
Result = TypeVar("Result")
_NAMES = {
    "linear": "linear probe",
    "attentive": "attentive probe",
    "full": "fine-tuned",
    "full+decay": "fine-tuned, decay",
    "preview": "head first, then fine-tuned",
    "preview+depth": "head first, then fine-tuned with depth",
    "depth": "fine-tuned with depth",
    "bitfit": "biases tuned",
    "layernorm": "norms tuned",
    "lora": "low-rank tuned",
    "scratch": "from scratch",
    "released": "as released",
}


def with_label(table: pd.DataFrame) -> pd.DataFrame:
    """Add `label`, what readers call a strategy: `linear probe: leadcnn, ssl-folds`."""
    name, weights = table["strategy"].astype(str), table["weights"].astype(str)
    text = name.map(_said) + ": " + table["encoder"].astype(str)
    return table.assign(label=text + (", " + weights).where(~name.isin(["scratch", "released"]), ""))


def _said(strategy: str) -> str:
    if strategy.startswith("last-"):
        k = strategy.removeprefix("last-")
        return f"last {k} stages tuned" if k != "1" else "last stage tuned"
    return _NAMES[strategy]


def score_table(config: FinetuneConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """All metrics of all strategies, per seed and averaged over seeds; see `cure.scores.seed_averaged`."""
    return seed_averaged(predicted, cohort, config.n_draws, config.seed)


def against_full(config: FinetuneConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Paired AUROC differences, fine-tuned whole minus each alternative, averaged over seeds; Holm over the table.

    The alternatives are all other strategies on the same weights, the same architecture trained from scratch, the
    comparator as it was released, and the supervised floors.

    Raises
    ------
    CureError
        If the profile has no other strategy.
    """
    folded, macros = fold_seeds(predicted.drop(columns=["setting", "contaminated"]))
    others = {} if "linear" not in config.strategies else {"linear probe": _method("linear", config)}
    for one, _ in strategies(config):
        if one.name != "full":
            name = f"{one.encoder} from scratch" if one.name == "scratch" else _said(one.name)
            about = {"encoder": one.encoder, "weights": one.weights, "pooling": one.pooling, "head": one.head}
            others[name] = {"strategy": one.name, **about}
    if not others:
        raise CureError(f"profile {config.profile} has strategy 'full' only: add others to `strategies` or `floors`")
    patients = cohort.records.set_index("record_id")["patient_id"]
    pairs = [({"strategy": "full"}, other) for other in others.values()]
    table = compare(folded, pairs, patients, seed=config.seed, macros=macros, per_task=False)
    said = {", ".join(f"{k}={v}" for k, v in other.items()): name for name, other in others.items()}
    table["comparator"] = table["comparator"].map(said)
    table["comparator"] = table["comparator"].astype(pd.CategoricalDtype(list(others)))
    table = table.sort_values("comparator", kind="stable").astype({"comparator": str}).reset_index(drop=True)
    return table.assign(seed=MEAN).drop(columns=["n_pos", "n_pos_patients", "prevalence", "n_tasks"])


def _method(strategy: str, config: FinetuneConfig) -> dict[str, str]:
    about = {"encoder": config.encoder, "weights": config.weights, "pooling": "mean", "head": "logistic"}
    return {"strategy": strategy, **about}


def published_macro(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC averaged over every statement with a positive test record, supported or not, as the benchmarks do it.

    For profiles with `tasks: all`: published numbers average over all 71 statements of PTB-XL, 13 of which have fewer
    than ten positive test records on fold 10. It is here to be compared with them and has no interval; the row `macro`
    of the scores is the average over what is supported.

    Returns
    -------
    DataFrame
        `label, value, n_tasks, supported` (how many of the tasks are).
    """
    rows = main_rows(table)
    rows = rows[rows["task"].str.startswith("all/") & rows["value"].notna()]
    grouped = rows.groupby("label", sort=False)
    return grouped.agg(value=("value", "mean"), n_tasks=("task", "size"), supported=("supported", "sum")).reset_index()


def published_view(table: pd.DataFrame) -> pd.DataFrame:
    """`published_macro` for reading; one row that says why not where the tasks are not all statements."""
    if not table["task"].str.startswith("all/").any():
        return pd.DataFrame(
            [{"label": "not shown: averages are published over all statements, here `tasks` is binary"}]
        )
    wide = published_macro(table).rename(columns={"value": "AUROC", "n_tasks": "statements"})
    return wide.assign(AUROC=[f"{value:.3f}" for value in wide["AUROC"]])


def rates_view(rates: pd.DataFrame) -> pd.DataFrame:
    """Lowest validation loss (or 1 - AUROC, where that decides) at each learning rate, mean over splits and seeds.

    And how often the rate was chosen.
    """
    named = with_label(rates)
    grouped = named.groupby(["label", "rate"], sort=False)
    decides = "validation loss" if set(rates["metric"]) <= {"validation"} else "validation loss or 1 - AUROC"
    columns = {decides: ("value", "mean"), "chosen": ("chosen", "sum"), "of": ("chosen", "size")}
    shown = grouped.agg(**columns)
    return shown.set_axis(shown.index.set_levels([f"{rate:g}" for rate in shown.index.levels[1]], level=1)).rename_axis(
        index=[None, "rate"]
    )


def main_rows(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Rows averaged over seeds, of one metric, with their `label`."""
    return with_label(table[(table["seed"].astype(str) == MEAN) & (table["metric"] == metric)])


def macro_rows(main: pd.DataFrame) -> pd.DataFrame:
    """Of `main_rows` the averages over tasks, without probes of other weights than those that were fine-tuned."""
    tuned = main.loc[main["strategy"] == "full", "weights"].unique()
    shown = (main["strategy"] != "linear") | main["weights"].isin(tuned)
    return main[shown & main["task"].isin(MACROS) & main["value"].notna()]


def difference_view(table: pd.DataFrame) -> pd.DataFrame:
    """Differences as a paper prints them: `difference [lo, hi]` and Holm's p, task by comparator."""
    text = [
        f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}], p = {r.p_holm:.2g}" if pd.notna(r.p) else "too few positives"
        for r in table.itertuples()
    ]
    wide = table.assign(text=text).pivot(index="task", columns="comparator", values="text")
    tasks = list(table["task"].unique())
    first = [name for name in MACROS if name in tasks]
    wide = wide.loc[first + [task for task in tasks if task not in first], list(table["comparator"].unique())]
    return wide.rename_axis(index=None, columns=None)


def sizes_view(table: pd.DataFrame) -> pd.DataFrame:
    """Parameters, and the means over splits and seeds of epochs and of records seen in training."""
    wide = _wide_sizes(table)
    return wide.map(lambda value: f"{value:,.0f}" if pd.notna(value) else "").set_axis(
        pd.Index(with_label(wide.reset_index())["label"], name=None)
    )


def _wide_sizes(table: pd.DataFrame) -> pd.DataFrame:
    wide = table.pivot_table(index=STRATEGY, columns="metric", values="value", sort=False).rename_axis(columns=None)
    return wide[["trainable", "parameters", "records_seen", "epochs", "epoch_kept"]]


def measure(config: FinetuneConfig, cohort: Cohort, splits: list[Split], trained: Trained) -> None:
    """Write `finetune_cost.csv`: seconds per split and peak memory of each strategy. Nothing of it is ever hashed.

    `seconds` of a training is its wall time on one thread, at all its learning rates, validation included, with one
    training per core at a time: the mean over splits and seeds. That of the linear probe is one forward pass over the
    training and validation records of the first split plus its logistic heads; the attentive probe's training has
    such a pass added. `peak_mb` is the resident memory, sampled every 2 ms, that a fresh process with data and model
    loaded needs on top: for a few training steps and scored batches, or the probe.
    """
    labels = targets(config, cohort, splits)
    start, y = pretrained(config), whole(labels, len(cohort))
    rows, split, forward = [], taking_part(splits[0], labels), 0.0
    if {"linear", "attentive"} & set(config.strategies):
        work = partial(_probe_once, embed.load_encoder(config, start, splits[0]), cohort, y, split)
        peak, (forward, heads) = _in_fresh_process(work)
        names = {"strategy": "linear", "encoder": start.encoder, "weights": start.weights}
        if "linear" in config.strategies:
            rows.append({**names, "seconds": forward + heads, "n": 1, "peak_mb": peak})
    first = {(job.strategy.name, job.strategy.encoder): job for job in reversed(jobs(config, splits[:1]))}
    ones = list(reversed(first.values()))
    # Each in a process of its own: how many run at a time does not change what one of them needs.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        peaks = list(pool.map(lambda job: _in_fresh_process(_brief(replace(job, split=split), cohort, y))[0], ones))
    for job, peak in zip(ones, peaks, strict=True):
        one = job.about
        mine = (trained.seconds[STRATEGY] == pd.Series(one)[STRATEGY]).all(axis=1)
        mean = trained.seconds.loc[mine, "seconds"].mean() + (forward if job.strategy.name == "attentive" else 0.0)
        names = {name: one[name] for name in STRATEGY}
        rows.append({**names, "seconds": mean, "n": int(mine.sum()), "peak_mb": peak})
    machine = resources.machine()
    table = pd.DataFrame(rows).assign(cpu=machine["cpu"], cores=machine["cores"])
    with atomic(config.measured("finetune_cost")) as part:
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
    """The job with few records, one epoch and one learning rate: its memory does not depend on how many follow."""
    few = 2 * job.recipe.batch_size
    parts = [part[:few] for part in (job.split.train, job.split.val, job.split.test)]
    rows = np.concatenate(parts)
    split = Split(job.split.name, *parts).restrict(rows)
    strategy = replace(job.strategy, rates=job.strategy.rates[:1])
    brief = replace(job, strategy=strategy, split=split, recipe=replace(job.recipe, epochs=1))
    return partial(_train_once, brief, job.starts.input_spec.read(cohort, rows), y[rows])


def _train_once(job: Job, x: np.ndarray, y: np.ndarray) -> float:
    if job.strategy.name == "attentive":
        parts: list[np.ndarray] = []
        frozen_tokens(job.starts, x, lambda _, found: parts.append(found))
        x = np.concatenate(parts)
    with tempfile.TemporaryDirectory() as folder:
        return float(job.run(x, y, Path(folder) / "state")["seconds"])


@torch.inference_mode()
def _probe_once(encoder: Encoder, cohort: Cohort, y: np.ndarray, split: Split) -> tuple[float, float]:
    """Seconds of the forward pass, and of the logistic heads."""
    rows, seconds, parts = np.concatenate([split.train, split.val]), 0.0, []
    for batch in np.array_split(rows, -(-len(rows) // 64)):
        signals = torch.from_numpy(encoder.input_spec.read(cohort, batch))
        start = time.perf_counter()
        parts.append(encoder.embed(signals).numpy())
        seconds += time.perf_counter() - start
    x, start = np.concatenate(parts), time.perf_counter()
    for task in y[rows].T:
        fit_head("logistic", x, task, split.restrict(rows))
    return seconds, time.perf_counter() - start


def _in_fresh_process(work: Callable[[], Result]) -> tuple[float, Result]:
    """Peak memory above the start, MB, and what `work` returns. A process that has worked before keeps freed memory.

    The process is forked from a server that has imported this module and done nothing else.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_sampled, work).result()


def _sampled(work: Callable[[], Result]) -> tuple[float, Result]:
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

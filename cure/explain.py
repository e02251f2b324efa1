"""Stage `explain`, second half: what the logistic head of one encoder rests on in the ECG of its test positives.

Records that list a task's statement are attributed by the probe of the split that tests them, which saw neither them
nor their patients. Tables are computed from what `attribute` returns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from threading import Lock

import joblib
import numpy as np
import pandas as pd
import torch

from cure import attribution, embed, pointing
from cure.attribution import SEGMENTS, Probe
from cure.bootstrap import patient_draws
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.heads import fit_head
from cure.importance import explained
from cure.lengths import require_whole
from cure.pointing import GRADIENT, IG, MIN_RECORDS, OCCLUSION, PRODUCT, TWIN, TWIN_GRADIENT, over_patients
from cure.progress import progress
from cure.settings.explain import ExplainConfig
from cure.signals import LEADS
from cure.splits import Split

#: Weights are randomised for every n-th record only: four new attributions of a record cost as much as all else.
EVERY = 4
AMPLITUDE = pointing.AMPLITUDE
#: Layers initialise themselves from torch's global generator, which all threads share: one at a time.
_INITIALISING = Lock()


@dataclass(frozen=True)
class Attributed:
    """The explained records of one task, in the order of `rows`; leads in CURE's order.

    Attributes
    ----------
    rows : (n,) int array
        Positions in the cohort.
    log_odds : (n,) array
        Of the probe.
    x, ig, gradient, twin, twin_gradient, product : (n, 12, n_samples) float32 arrays
        Model-ready input; integrated gradients of the probe and their mean gradient, both of its untrained twin,
        gradient times input, log-odds.
    error : (n,) array
        Completeness error of `ig`, see `cure.attribution.integrated_gradients`.
    lead_drop, segment_drop : (n, 12) and (n, 5) arrays
        Fall of the log-odds under occlusion.
    codes, rr : (n, n_samples) and (n,) arrays
        From `cure.attribution.beat_segments`.
    similarity : (n, 3, n_stages) array
        To those of ever more randomised weights: of absolute integrated gradients, of signed ones, and of absolute mean
        gradients; NaN for records that were not part of this check.
    """

    rows: np.ndarray
    log_odds: np.ndarray
    x: np.ndarray
    ig: np.ndarray
    gradient: np.ndarray
    twin: np.ndarray
    twin_gradient: np.ndarray
    product: np.ndarray
    error: np.ndarray
    lead_drop: np.ndarray
    segment_drop: np.ndarray
    codes: np.ndarray
    rr: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class Explained:
    """Everything attributed: by task, with the sampling rate of the input in Hz and the names of random parts."""

    tasks: dict[str, Attributed]
    fs: int
    stages: list[str]


@dataclass(frozen=True)
class Example:
    """One record to draw: (12, n_samples) input in mV and its attribution in log-odds, at `fs` Hz."""

    task: str
    record_id: int | str
    log_odds: float
    mv: np.ndarray
    attribution: np.ndarray
    fs: int


def untrained(config: ExplainConfig) -> Representation:
    """The control of what is explained: the same encoder with random weights, other ones where those are explained.

    Raises
    ------
    CureError
        If the profile does not extract it.
    """
    made = embed.representations(config)
    for one in made:
        if (one.encoder, one.weights) == (config.encoder, "random") and one != explained(config):
            return one
    raise CureError(
        f"section embed of profile '{config.profile}' extracts no other random weights of {config.encoder}, which "
        "section explain needs as a control: add the encoder, or a seed"
    )


def labels(config: ExplainConfig, cohort: Cohort) -> dict[str, np.ndarray]:
    """(n_records,) bool labels of each task explained.

    Raises
    ------
    CureError
        For a task that is not a binary task.
    """
    known = cohort.binary()
    if missing := [task for task in config.tasks if task not in known.names]:
        raise CureError(
            f"section {config.stage} of profile '{config.profile}': {missing[0]!r} is no binary task; "
            f"choose from {', '.join(known.names)}"
        )
    return {task: known.y[:, known.names.index(task)] for task in config.tasks}


def sample(y: np.ndarray, splits: list[Split], n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """At most `n` test positives over all splits, drawn at random: their rows per split."""
    tested = [split.test[y[split.test]] for split in splits]
    everything = np.concatenate(tested)
    drawn = rng.choice(everything, min(n, len(everything)), replace=False)
    return [rows[np.isin(rows, drawn)] for rows in tested]


def fit_probe(config: ExplainConfig, cohort: Cohort, one: Representation, y: np.ndarray, split: Split) -> Probe:
    """Fit the logistic head on one split and fold it into its encoder.

    Raises
    ------
    CureError
        If the embeddings were made with other weights.
    """
    x = embed.read_split(config, one, "mean", cohort, split)
    with _INITIALISING:
        encoder = embed.load_encoder(config, one, split)
    if embed.read_sha256(config, one, split) != encoder.weights_sha256():
        again = f"`cure run embed --profile {config.profile}`"
        raise CureError(f"embeddings {one.folder} were made with other weights than those there are now: {again}")
    return Probe(encoder, fit_head("logistic", x, y, split, config.seed).estimator)


def attribute(config: ExplainConfig, cohort: Cohort, splits: list[Split]) -> Explained:
    """Attribute the sampled test positives of every task, in parallel over tasks and splits.

    Raises
    ------
    CureError
        For an unknown task or one without test positives.
    """
    jobs: list[tuple[str, np.ndarray, Split, np.ndarray]] = []
    for i, (task, y) in enumerate(labels(config, cohort).items()):
        chosen = sample(y, splits, config.n_records, np.random.default_rng([config.seed, i]))
        jobs += [(task, y, split, rows) for split, rows in zip(splits, chosen, strict=True) if len(rows)]
        if not any(len(rows) for rows in chosen):
            raise CureError(f"no test record lists {task}: leave it out of section explain of '{config.profile}'")
    # Threads: torch releases the interpreter, and processes would each load it anew.
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), backend="threading", return_as="generator")
    work = parallel(joblib.delayed(_attribute)(config, cohort, y, split, rows) for _, y, split, rows in jobs)
    parts = list(progress(work, desc="attribution", total=len(jobs), unit="task and split"))
    tasks = {}
    for task in config.tasks:
        mine = [part for (name, *_), part in zip(jobs, parts, strict=True) if name == task]
        arrays = {f.name: np.concatenate([getattr(part, f.name) for part in mine]) for f in fields(Attributed)}
        tasks[task] = Attributed(**arrays)
    spec = embed.load_encoder(config, untrained(config), splits[0]).input_spec
    return Explained(tasks, spec.fs, ["head", *(f"head to {part}" for part in attribution.parts(config.encoder))])


def _attribute(config: ExplainConfig, cohort: Cohort, y: np.ndarray, split: Split, rows: np.ndarray) -> Attributed:
    torch.set_num_threads(1)
    probe = fit_probe(config, cohort, explained(config), y, split)
    spec = probe.encoder.input_spec
    require_whole(spec, cohort, config.stage)
    x = spec.read(cohort, rows)
    own = attribution.integrated_gradients(probe, x, config.steps)
    twin = attribution.integrated_gradients(
        fit_probe(config, cohort, untrained(config), y, split), x, config.steps, tolerance=np.inf
    )
    codes, rr = attribution.beat_segments(cohort.resampled(rows, 100), 100, spec.seconds, x.shape[2])
    few = np.arange(0, len(rows), EVERY)
    with _INITIALISING:
        others = attribution.randomised(probe, config.encoder, config.seed)
    similarity = np.full((len(rows), 3, len(others)), np.nan)
    for stage, other in enumerate(others.values()):
        new = attribution.integrated_gradients(other, x[few], config.steps, tolerance=np.inf)
        similarity[few, 0, stage] = attribution.similarity(own.value[few], new.value, spec.fs)
        similarity[few, 1, stage] = attribution.similarity(own.value[few], new.value, spec.fs, signed=True)
        similarity[few, 2, stage] = attribution.similarity(own.gradient[few], new.gradient, spec.fs)
    order = [spec.leads.index(lead) for lead in LEADS]
    return Attributed(
        rows=rows,
        log_odds=probe.score(x),
        x=x[:, order],
        ig=own.value[:, order],
        gradient=own.gradient[:, order],
        twin=twin.value[:, order],
        twin_gradient=twin.gradient[:, order],
        product=attribution.gradient_times_input(probe, x)[:, order],
        error=own.error,
        lead_drop=attribution.lead_drop(probe, x)[:, order],
        segment_drop=attribution.segment_drop(probe, x, codes),
        codes=codes,
        rr=rr,
        similarity=similarity,
    )


def summary_table(config: ExplainConfig, cohort: Cohort, found: Explained) -> pd.DataFrame:
    """What was attributed, per task: log-odds, and how exactly integrated gradients add up to them."""
    rows = []
    for task, one in found.tasks.items():
        quantities = {
            "median log-odds": np.median(one.log_odds),
            "median completeness error": np.median(np.abs(one.error)),
            "largest completeness error": np.abs(one.error).max(),
        }
        key = _key(config, cohort, task) | {"method": IG}
        count = {"n": len(one.rows), "n_patients": cohort.records["patient_id"].iloc[one.rows].nunique()}
        rows += [{**key, "metric": name, "value": value, **count} for name, value in quantities.items()]
    return pd.DataFrame(rows)


def leads_table(config: ExplainConfig, cohort: Cohort, found: Explained) -> pd.DataFrame:
    """Per task and lead: mean fall of the log-odds without it, and mean share of |integrated gradients|."""
    rows = []
    for task, one in found.tasks.items():
        size = np.abs(one.ig).sum(axis=2)
        both = {
            ("occlusion", "fall in log-odds"): one.lead_drop,
            (IG, "share of |attribution|"): size / size.sum(axis=1, keepdims=True),
        }
        for (method, metric), values in both.items():
            names = [{"method": method, "lead": lead, "metric": metric} for lead in LEADS]
            rows += _summaries(config, cohort, task, one.rows, values, names)
    return pd.DataFrame(rows)


def segments_table(config: ExplainConfig, cohort: Cohort, found: Explained) -> pd.DataFrame:
    """Per task and beat segment: mean fall of the log-odds without it, mean share of |attribution| and of time.

    Shares are given per lead and for `all` leads; within a record they add up to one.
    """
    rows = []
    for task, one in found.tasks.items():
        share = attribution.segment_shares(one.ig, one.codes)
        flat = attribution.segment_shares(np.ones_like(one.ig[:, :1]), one.codes)[:, 0]
        per_lead = [(lead, segment) for lead in LEADS for segment in SEGMENTS]
        overall = [("all", segment) for segment in SEGMENTS]
        for method, metric, where, values in (
            ("occlusion", "fall in log-odds", overall, one.segment_drop),
            ("duration", "share of time", overall, flat),
            (IG, "share of |attribution|", overall, share.sum(axis=1)),
            (IG, "share of |attribution|", per_lead, share.reshape(len(share), -1)),
        ):
            names = [{"method": method, "lead": lead, "segment": part, "metric": metric} for lead, part in where]
            rows += _summaries(config, cohort, task, one.rows, values, names)
    return pd.DataFrame(rows)


def randomisation_table(config: ExplainConfig, cohort: Cohort, found: Explained) -> pd.DataFrame:
    """How alike an attribution stays while weights are randomised, and how alike it is to the signal's amplitude.

    Median Spearman correlation over records of binned values, absolute (`spearman`) and signed (`spearman_signed`). An
    attribution that reflects the weights loses it; what it keeps to the last, and what it shares with the amplitude,
    says nothing about what was learned.
    """
    rows = []
    for task, one in found.tasks.items():
        kinds = (IG, "spearman"), (IG, "spearman_signed"), (GRADIENT, "spearman")
        names = [{"method": m, "metric": s, "compared_with": stage} for m, s in kinds for stage in found.stages]
        to_x = [attribution.similarity(of, one.x, found.fs) for of in (one.ig, one.gradient)]
        names += [{"method": m, "metric": "spearman", "compared_with": AMPLITUDE} for m in (IG, GRADIENT)]
        values = np.column_stack([one.similarity.reshape(len(one.rows), -1), *to_x])
        rows += _summaries(config, cohort, task, one.rows, values, names, "median")
    return pd.DataFrame(rows)


def randomisation_view(table: pd.DataFrame) -> pd.DataFrame:
    """Similarities as a paper prints them, `median [lo, hi]`: metric and what it is compared with, by task."""
    spans = [f" [{r.lo:.2f}, {r.hi:.2f}]" if r.supported else "" for r in table.itertuples()]
    text = [f"{value:.2f}{span}" for value, span in zip(table["value"], spans, strict=True)]
    index = ["method", "metric", "compared_with"]
    wide = table.assign(text=text).pivot(index=index, columns="task", values="text")
    order = pd.MultiIndex.from_frame(table[index].drop_duplicates())
    return wide.reindex(index=order, columns=table["task"].unique()).rename_axis(columns=None)


def segments_view(table: pd.DataFrame) -> pd.DataFrame:
    """Segments by task over all leads: share of time, share of |attribution|, fall in log-odds without it."""
    rows = table[table["lead"] == "all"]
    wide = rows.pivot(index=["task", "metric"], columns="segment", values="value")
    order = pd.MultiIndex.from_frame(rows[["task", "metric"]].drop_duplicates())
    return wide.reindex(index=order, columns=list(SEGMENTS)).round(3).rename_axis(columns=None)


def leads_view(table: pd.DataFrame) -> pd.DataFrame:
    """Fall of the log-odds without a lead, task by lead."""
    rows = table[table["method"] == "occlusion"]
    wide = rows.pivot(index="task", columns="lead", values="value")
    return wide.reindex(index=rows["task"].unique(), columns=list(LEADS)).rename_axis(index=None, columns=None)


def pointing_table(config: ExplainConfig, cohort: Cohort, found: Explained) -> pd.DataFrame:
    """Scores of attributions against what was planted, see `cure.pointing`; empty for real records."""
    truth = pointing.read_truth(cohort)
    frames = [pd.DataFrame(columns=[*_key(config, cohort, ""), "method", "region", "metric", "comparator"])]
    for i, (task, one) in enumerate(found.tasks.items()):
        record_id = cohort.records["record_id"].to_numpy()[one.rows]
        time, best = pointing.planted(truth, record_id, task, found.fs, one.x.shape[2])
        scored = np.flatnonzero(time.any(axis=(1, 2)))
        if not len(scored):
            continue
        rng = np.random.default_rng([config.seed, i])
        methods = {
            GRADIENT: one.gradient,
            IG: one.ig,
            pointing.IG_SHIFTED: pointing.half_beat_later(one.ig, one.rr, found.fs),
            TWIN: one.twin,
            PRODUCT: one.product,
            OCCLUSION: pointing.spread(one.segment_drop, one.codes),
            TWIN_GRADIENT: one.twin_gradient,
            AMPLITUDE: one.x,
            pointing.NOISE: rng.random(one.x.shape),
            pointing.SHIFTED: pointing.half_beat_later(one.gradient, one.rr, found.fs),
        }
        chosen = {name: values[scored] for name, values in methods.items()}
        scores = pointing.score_all(chosen, time[scored], best[scored], found.fs, rng)
        patient = cohort.records["patient_id"].to_numpy()[one.rows[scored]]
        table = pointing.summarise(scores, patient, config.n_draws, rng)
        frames.append(table.assign(**_key(config, cohort, task)))
    filled = [frame for frame in frames if len(frame)] or frames
    return pd.concat(filled, ignore_index=True)[[*frames[0], *(c for c in filled[-1] if c not in frames[0])]]


def examples(config: ExplainConfig, cohort: Cohort, splits: list[Split]) -> Iterator[Example]:
    """Of each task, the test positive of the first split that its probe is surest of; none where there is none."""
    torch.set_num_threads(1)
    for task, y in labels(config, cohort).items():
        rows = splits[0].test[y[splits[0].test]]
        if not len(rows):
            continue
        probe = fit_probe(config, cohort, explained(config), y, splits[0])
        spec = probe.encoder.input_spec
        log_odds = probe.score(spec.read(cohort, rows))
        best = rows[[log_odds.argmax()]]
        x = spec.read(cohort, best)
        ig = attribution.integrated_gradients(probe, x, config.steps).value
        order = [spec.leads.index(lead) for lead in LEADS]
        record_id = cohort.records["record_id"].iloc[best[0]]
        yield Example(task, record_id, float(log_odds.max()), x[0, order] * spec.unit_mv, ig[0, order], spec.fs)


def _key(config: ExplainConfig, cohort: Cohort, task: str) -> dict[str, object]:
    return {"cohort": cohort.name, "encoder": config.encoder, "weights": config.weights, "task": task}


def _summaries(
    config: ExplainConfig,
    cohort: Cohort,
    task: str,
    rows: np.ndarray,
    values: np.ndarray,
    names: list[dict[str, str]],
    statistic: str = "mean",
) -> list[dict[str, object]]:
    """One table row per column of (n, k) values; records that are NaN there do not count."""
    patient = cohort.records["patient_id"].to_numpy()[rows]
    draws = patient_draws(patient, config.n_draws, np.random.default_rng(config.seed))
    table = []
    for name, column in zip(names, values.T, strict=True):
        used = np.flatnonzero(~np.isnan(column))
        value, lo, hi = over_patients(column[used], draws[:, used], statistic)
        count = {"n": len(used), "n_patients": len(np.unique(patient[used])), "supported": len(used) >= MIN_RECORDS}
        table.append({**_key(config, cohort, task), **name, "value": value, "lo": lo, "hi": hi, **count})
    return table

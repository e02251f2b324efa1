"""Transfer: heads trained on one cohort, tested on its own test folds and on every record of another.

Both directions, for the tasks that mean the same in both cohorts. Hyper-parameters and the decision threshold come from
the validation folds of the cohort that a head was trained on; the other cohort is touched once, to be scored.

Where outer splits rotate, both scores pool their heads alike. A source record is scored by the head of the split that
tests it, a target record by the head of the split that tests its fold: by one head each, not by an ensemble of them. A
target record of the study then also meets only encoders that have not seen it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from cure import embed, predictions, tasks
from cure.bootstrap import Array, Plan, apply, holm, interval, macro, paired_difference, patient_draws
from cure.cohorts.base import Cohort
from cure.cohorts.external import none, open_second, peak_to_peak, shared_tasks
from cure.embed import Representation
from cure.errors import CureError
from cure.evaluate import Support, support
from cure.heads import Job, out_of_fold
from cure.progress import progress
from cure.scores import MEAN, with_label
from cure.settings.transfer import TransferConfig
from cure.splits import Split, make_splits

INTERNAL, EXTERNAL = "internal", "external"
METRICS = ("auroc", "auprc", "f1_tuned", "sensitivity", "specificity", "brier", "ece")
#: Metrics of which a drop is reported: AUPRC, F1 and Brier score change with prevalence alone, ECE with size alone.
DROPS = ("auroc", "sensitivity", "specificity")
MACRO = "macro"
#: Columns that name a head: what it was trained on, and from what.
METHOD = ["trained_on", "encoder", "weights", "pooling", "head", "strategy", "leads", "fraction"]
_NUMBER = ["task", "metric", "value", "lo", "hi"]
_SUPPORT = ["n", "n_pos", "n_patients", "supported", "n_tasks"]
COLUMNS = ["direction", "tested", "cohort", *METHOD, "seed", "contaminated", *_NUMBER, *_SUPPORT]
DROP_COLUMNS = [
    *("direction", "cohort", *METHOD, "seed", "contaminated", *_NUMBER, "comparator", INTERNAL, EXTERNAL),
    *("p", "p_holm", "n", "n_internal", "n_pos", "n_pos_internal", "supported", "n_tasks"),
]
_PREDICTED = ["direction", "tested", "cohort", *METHOD, "seed", "contaminated", "task", "split"]


@dataclass(frozen=True)
class Side:
    """One of the two cohorts, with the configuration that says where its representations are."""

    config: TransferConfig
    cohort: Cohort
    splits: list[Split]

    @property
    def patients(self) -> pd.Series:
        """Patient of each record, by record_id."""
        return self.cohort.records.set_index("record_id")["patient_id"]


def sides(config: TransferConfig) -> list[Side]:
    """The study's cohort and the second one; nothing where the profile has no second one."""
    second, external = open_second(config), config.external
    if second is None or external is None:
        return []
    pairs = [(config, Cohort.open(config.cohort_folder)), (external, second)]
    return [Side(each, cohort, make_splits(cohort.records, each.cohort.split)) for each, cohort in pairs]


# --- scores -------------------------------------------------------------------------------------------


def scores(config: TransferConfig) -> pd.DataFrame:
    """Scores of both directions: of the source's test folds, and of all records of the target.

    Returns
    -------
    DataFrame
        One row per record x task x head: `direction` (source to target), `tested` (internal or external), `cohort` (of
        the record), the columns that name the head, `task, split, record_id, y, score, threshold, setting`. Empty where
        the profile has no second cohort.

    Raises
    ------
    CureError
        If the cohorts share no task that can be fitted, or an embedding is missing.
    """
    both = sides(config)
    if not both:
        return pd.DataFrame(columns=[*_PREDICTED, "record_id", "y", "score", "threshold", "setting"])
    names = shared_tasks(both[0].cohort, both[1].cohort)
    frames = [_direction(both[0], source, target, names) for source, target in (both, both[::-1])]
    table = pd.concat(frames, ignore_index=True)
    return table.astype({name: "category" for name in table if table[name].dtype == object})


def _direction(study: Side, source: Side, target: Side, names: list[str]) -> pd.DataFrame:
    """Fit on one cohort and score both: target records are further test records of the source's splits."""
    n = len(source.cohort)
    labels = predictions.fittable(_labels(source.cohort, names), source.splits)
    if not labels.names:
        raise CureError(
            f"no task that both cohorts label can be fitted on cohort '{source.cohort.name}': it needs both classes "
            f"in its training folds (shared: {', '.join(names) or 'none'}); change section external of the profile"
        )
    y = np.concatenate([labels.y, _labels(target.cohort, labels.names).y])
    mine = turns(target.cohort, len(source.splits))
    splits = [
        Split(split.name, split.train, split.val, np.r_[split.test, n + np.flatnonzero(mine == i)])
        for i, split in enumerate(source.splits)
    ]
    rows, jobs = np.arange(len(y)), []
    config = study.config
    for one in embed.representations(config):
        x = _arrays(study, source, target, one)
        key = predictions.key(config, one, config.pooling, "") | {"seen": _seen(study, source, source, one)}
        key |= {"seen_external": _seen(study, source, target, one)}
        jobs += [Job(key | {"head": head}, x, head, labels.names, y, rows) for head in config.heads]
    table = out_of_fold(jobs, splits, rows, seed=config.seed)
    inside = (table["record_id"] < n).to_numpy()
    ids = np.concatenate([each.cohort.records["record_id"].to_numpy() for each in (source, target)])
    seen = [table.pop(name).astype(str) for name in ("seen", "seen_external")]
    table = table.drop(columns=["cohort", "protocol", "contaminated"]).astype({"task": str, "split": str})
    new = {
        "direction": f"{source.cohort.name} to {target.cohort.name}",
        "tested": np.where(inside, INTERNAL, EXTERNAL),
        "cohort": np.where(inside, source.cohort.name, target.cohort.name),
        "trained_on": source.cohort.name,
        "contaminated": np.where(inside, *seen),
        "record_id": ids[table["record_id"]],
    }
    table = table.assign(**new)
    return table[[*_PREDICTED, *(name for name in table if name not in _PREDICTED)]]


def turns(cohort: Cohort, n_splits: int) -> np.ndarray:
    """Which of the other cohort's splits scores each record, (n_records,) int: that which tests records of its fold."""
    return (cohort.records["fold"].to_numpy().astype(int) - 1) * n_splits // 10


def _labels(cohort: Cohort, names: list[str]) -> tasks.Labels:
    if not names:
        return tasks.Labels([], np.zeros((len(cohort), 0), bool), np.arange(len(cohort)))
    return tasks.binary(cohort.listed, cohort.statements, tuple(names))


def _arrays(study: Side, source: Side, target: Side, one: Representation) -> dict[str, np.ndarray]:
    """Records of source and target, one below the other, as each of the source's splits may use them."""

    def read(split: Split) -> np.ndarray:
        sides = (source, target)
        return np.concatenate([embed.read_split(s.config, one, s.config.pooling, s.cohort, split) for s in sides])

    if one.per_split and _matched(study, source):
        return {own.name: read(split) for own, split in zip(source.splits, study.splits, strict=True)}
    return dict.fromkeys((split.name for split in source.splits), read(study.splits[0]))


def _matched(study: Side, other: Side) -> bool:
    """Whether there is a split of the study, and so an encoder of its own, for each split of the other cohort."""
    return len(study.splits) == len(other.splits)


def _seen(study: Side, source: Side, tested: Side, one: Representation) -> str:
    """Whether the weights have seen the tested records.

    An encoder of one split has seen that split's training records, unlabelled. They are tested when the second cohort's
    heads score all records of the study, unless each of its splits uses the encoder of the study's split that tests the
    same folds.
    """
    trained_elsewhere = source is not study and tested is study
    apart = len(study.splits) > 1 and _matched(study, source)
    if one.per_split and trained_elsewhere and not apart:
        return "signals"
    return embed.contaminated(one, tested.config)


# --- numbers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Metrics of one head on one cohort, averaged over initialisations; `values[task, metric]`, `draws[..., draw]`.

    The last task is the average over those that both cohorts support; `about` describes what stands behind each.
    """

    key: dict[str, Any]
    tasks: list[str]
    values: Array
    draws: Array
    about: list[dict[str, Any]]


def measure(config: TransferConfig, predicted: pd.DataFrame) -> list[Measured]:
    """Metrics of every head on both cohorts in every patient-bootstrap draw; the cohorts' draws are independent."""
    patients = {side.cohort.name: side.patients for side in sides(config)}
    found: list[Measured] = []
    for direction, frame in predicted.groupby("direction", sort=False, observed=True):
        parts = dict(iter(frame.groupby("tested", sort=False, observed=True)))
        supports = {tested: _supports(part, patients) for tested, part in parts.items()}
        shared = [t for t in supports[INTERNAL] if all(supports[tested][t].supported for tested in parts)]
        for tested in (INTERNAL, EXTERNAL):
            at = len({m.key["direction"] for m in found} | {direction}), tested == EXTERNAL
            rng = np.random.default_rng([config.seed, *map(int, at)])
            found += _measure(config, parts[tested], patients, supports[tested], shared, rng)
    return found


def _supports(part: pd.DataFrame, patients: dict[str, pd.Series]) -> dict[str, Support]:
    name = part["cohort"].iloc[0]
    once = part.drop_duplicates(["task", "record_id"])
    each = once.groupby("task", sort=False, observed=True)
    return {str(task): support(f["y"], patients[name].loc[f["record_id"]]) for task, f in each}


def _measure(
    config: TransferConfig,
    part: pd.DataFrame,
    patients: dict[str, pd.Series],
    supports: dict[str, Support],
    shared: list[str],
    rng: np.random.Generator,
) -> Iterator[Measured]:
    record_id = np.sort(part["record_id"].unique())
    owner = patients[part["cohort"].iloc[0]].loc[record_id].to_numpy()
    weights = patient_draws(owner, config.n_draws, rng)
    names = list(supports)
    used = [i for i, name in enumerate(names) if supports[name].supported]
    inside = np.array([name in shared for name in names], bool)
    about = [{**s._asdict(), "supported": s.supported, "n_tasks": pd.NA} for s in supports.values()]
    count = {"n": len(record_id), "n_pos": pd.NA, "n_patients": len(np.unique(owner))}
    about.append({**count, "supported": bool(shared), "n_tasks": len(shared)})
    heads = part.groupby(["direction", "tested", "cohort", *METHOD, "contaminated"], sort=False, observed=True)
    for key, rows in progress(heads, desc=f"bootstrap {part['direction'].iloc[0]}, {part['tested'].iloc[0]}"):
        values, draws = [], []
        for _, seed in rows.groupby("seed", sort=True):
            by_task = dict(iter(seed.groupby("task", observed=True)))
            plans = [_plan(by_task[name].sort_values("record_id"), record_id) for name in names]
            values.append(apply(plans, np.ones((1, len(record_id)), np.uint8), METRICS)[..., 0])
            drawn = np.full((len(names), len(METRICS), config.n_draws), np.nan)
            drawn[used] = apply([plans[i] for i in used], weights, METRICS)
            draws.append(drawn)
        value, drawn = np.mean(values, axis=0), np.mean(draws, axis=0)
        value = np.concatenate([value, macro(value, inside)[0][None]])
        drawn = np.concatenate([drawn, macro(drawn, inside)[0][None]])
        columns = ["direction", "tested", "cohort", *METHOD, "contaminated"]
        yield Measured(dict(zip(columns, key, strict=True)) | {"seed": MEAN}, [*names, MACRO], value, drawn, about)


def _plan(rows: pd.DataFrame, record_id: Array) -> Plan:
    if not np.array_equal(rows["record_id"], record_id):
        raise CureError("heads of one direction were tested on different records: run stage transfer again")
    return Plan.of(*(rows[name].to_numpy(float) for name in ("y", "score", "threshold")))


def transfer_table(measured: list[Measured]) -> pd.DataFrame:
    """Every metric of every head, on its own cohort and on the other, with 95 % intervals over patients.

    Averaged over initialisations inside each draw. Below the support rule a number has no interval. `macro` averages
    the tasks that both cohorts support, so that internal and external one are of the same tasks.
    """
    rows = []
    for m in measured:
        lo, hi, _ = interval(m.draws)
        for t, task in enumerate(m.tasks):
            for k, metric in enumerate(METRICS):
                number = {"value": m.values[t, k], "lo": lo[t, k], "hi": hi[t, k]}
                rows.append({**m.key, "task": task, "metric": metric, **number, **m.about[t]})
    counts = dict.fromkeys(("n", "n_pos", "n_patients", "n_tasks"), "Int64")
    return pd.DataFrame(rows, columns=COLUMNS).astype(counts)


def drop_table(measured: list[Measured]) -> pd.DataFrame:
    """What a head loses or gains on the other cohort: the external minus the internal score, of the metrics `DROPS`.

    The two cohorts are independent samples: interval and p-value are those of the difference of independent draws. Only
    the averaged AUROC is tested, one test per head and direction, Holm-adjusted over the table.
    """
    inside = {_pair(m): m for m in measured if m.key["tested"] == INTERNAL}
    rows = []
    for m in measured:
        if m.key["tested"] == INTERNAL:
            continue
        own = inside[_pair(m)]
        for t, task in enumerate(m.tasks):
            for metric in DROPS:
                k, a, b = METRICS.index(metric), own.about[t], m.about[t]
                test = paired_difference(m.values[t, k], own.values[t, k], m.draws[t, k], own.draws[t, k])
                number = {"value": test.value, "lo": test.lo, "hi": test.hi, "comparator": INTERNAL}
                number |= {INTERNAL: own.values[t, k], EXTERNAL: m.values[t, k]}
                number["p"] = test.p if (task, metric) == (MACRO, "auroc") else np.nan
                counts = {"n_internal": a["n"], "n_pos_internal": a["n_pos"]}
                both = {"supported": a["supported"] and b["supported"]}
                rows.append({**m.key, "task": task, "metric": metric, **number, **b, **counts, **both})
    table = pd.DataFrame(rows, columns=DROP_COLUMNS)
    table["p_holm"] = holm(table["p"].to_numpy(float))
    return table.astype(dict.fromkeys(("n", "n_internal", "n_pos", "n_pos_internal", "n_tasks"), "Int64"))


def _pair(m: Measured) -> tuple:
    return (m.key["direction"], *(m.key[name] for name in METHOD))


def amplitude_table(config: TransferConfig) -> pd.DataFrame:
    """Quartiles of the peak-to-peak amplitude of both cohorts in mV, as stored; see `peak_to_peak`."""
    rows = []
    for side in sides(config):
        ptp = peak_to_peak(side.cohort)
        for q in (25, 50, 75):
            about = {"cohort": side.cohort.name, "metric": f"peak_to_peak_mv_q{q}"}
            rows.append({**about, "value": float(np.percentile(ptp, q)), "n": len(ptp)})
    return pd.DataFrame(rows, columns=["cohort", "metric", "value", "n"])


# --- views --------------------------------------------------------------------------------------------


def say_sides(config: TransferConfig) -> Markdown:
    """Which cohorts are compared, on which tasks; a sentence where there is one cohort only."""
    both = sides(config)
    if not both:
        return none(config)
    texts = [f"**{s.cohort.name}**: {s.config.cohort.title}, {len(s.cohort):,} records" for s in both]
    shared = ", ".join(shared_tasks(both[0].cohort, both[1].cohort))
    return Markdown("; ".join(texts) + f". Shared tasks: {shared}.")


def titles(config: TransferConfig) -> str:
    """What the cohorts are, for a caption."""
    return "; ".join(f"{side.cohort.name}, {side.config.cohort.title}" for side in sides(config))


def amplitude_view(table: pd.DataFrame) -> pd.DataFrame:
    """Quartiles in mV, one row per cohort."""
    wide = table.pivot(index="cohort", columns="metric", values="value").reindex(table["cohort"].unique())
    return wide.round(2).rename_axis(columns=None)


def drop_view(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Averages over tasks as a paper prints them: internal, external, change with interval, Holm's p."""
    chosen = table[(table["task"] == MACRO) & (table["metric"] == metric)]
    chosen = with_label(chosen, ["encoder"])
    view = chosen[["direction", "label", "head", INTERNAL, EXTERNAL, "n_tasks"]].round({INTERNAL: 3, EXTERNAL: 3})
    view["change"] = [f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}]" for r in chosen.itertuples()]
    view["p_holm"] = [f"{p:.2g}" if p == p else "" for p in chosen["p_holm"]]
    return view.set_index(["direction", "label", "head"])


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Add the `label` of each method, the same for both cohorts: with the mark of what weights saw of either."""
    worst = {"no": 0, "unknown": 1, "signals": 2, "signals and labels": 3}
    rank = table["contaminated"].astype(str).map(worst)
    method = ["direction", *METHOD]
    most = table.assign(rank=rank).groupby(method, observed=True)["rank"].transform("max").map(dict(enumerate(worst)))
    return with_label(table.assign(contaminated=most), ["encoder"])


def task_view(table: pd.DataFrame, metric: str, head: str) -> pd.DataFrame:
    """`internal → external` of one metric under one head, one column per task; parentheses: below the support rule."""
    chosen = _labelled(table[(table["metric"] == metric) & (table["head"] == head)])
    text = [f"{r.value:.3f}" if r.supported else f"({r.value:.3f})" for r in chosen.itertuples()]
    chosen = chosen.assign(text=text)
    wide = chosen.pivot(index=["direction", "label", "task"], columns="tested", values="text")
    both = wide.reindex(columns=[INTERNAL, EXTERNAL]).agg(" → ".join, axis=1) if len(wide) else wide
    order = [MACRO, *(name for name in chosen["task"].unique() if name != MACRO)]
    return both.unstack("task")[order].rename_axis(columns=None) if len(wide) else pd.DataFrame()


def decision_view(table: pd.DataFrame, head: str) -> pd.DataFrame:
    """What carries over besides ranking, averaged over tasks: the threshold and the probabilities of the source."""
    names = {"sensitivity": "sensitivity", "specificity": "specificity", "brier": "Brier", "ece": "ECE"}
    chosen = table[(table["task"] == MACRO) & (table["head"] == head) & table["metric"].isin(names)]
    wide = _labelled(chosen).pivot(index=["direction", "label"], columns=["metric", "tested"], values="value")
    columns = [(metric, tested) for metric in names for tested in (INTERNAL, EXTERNAL)]
    wide = wide.reindex(columns=pd.MultiIndex.from_tuples(columns)).round(3)
    return wide.rename(columns=names).rename_axis(columns=[None, None])


def figure_rows(table: pd.DataFrame, metric: str, head: str) -> pd.DataFrame:
    """Rows of the figure: one metric under one head, the average first, a `label` of each method."""
    chosen = _labelled(table[(table["metric"] == metric) & (table["head"] == head)])
    return chosen.iloc[np.argsort(chosen["task"] != MACRO, kind="stable")]

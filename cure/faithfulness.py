"""Stage `faithfulness`: whether attributions name what moves the model, and whether they agree on it.

Lead-and-time bins are deleted, or inserted, in the order in which an attribution ranks them: a faithful one makes the
log-odds fall soon, or rise soon. Test positives are explained by the probe of the split that tests them, which saw
neither them nor their patients. Every method faces the same controls: a random order, the signal's own amplitude, and
the attribution of the encoder's untrained twin.
"""

from dataclasses import dataclass, fields
from typing import cast

import joblib
import numpy as np
import pandas as pd
import torch

from cure import attribution, beat_attribution, beats, embed, explain
from cure.attribution import binned
from cure.beat_attribution import BeatMaps, band
from cure.bootstrap import holm, interval, paired_difference, patient_draws
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.importance import explained
from cure.lengths import require_whole
from cure.pointing import AMPLITUDE, GRADIENT, IG, MIN_RECORDS, PRODUCT, TWIN, TWIN_GRADIENT
from cure.progress import progress
from cure.removal import SHARES, agreement, area, curves, occlusion, order
from cure.settings.explain import ExplainConfig
from cure.settings.faithfulness import FaithfulnessConfig
from cure.signals import LEADS
from cure.splits import Split

OCCLUSION, RANDOM = "occlusion", "random order"
SIGNED, TWIN_SIGNED = "integrated gradients, signed", "integrated gradients, signed, untrained twin"
SECOND, SECOND_GRADIENT = "integrated gradients, second twin", "mean gradient, second twin"
#: Whose orders are tested. The signed ones take what raises the log-odds first and what lowers them last; the others
#: take what is large, whatever its sign.
RANKED = (SIGNED, IG, GRADIENT, PRODUCT, OCCLUSION, AMPLITUDE, RANDOM, TWIN_SIGNED, TWIN, TWIN_GRADIENT)
#: Whose sizes are compared. The two twins beside each other are the reference: encoders that learned nothing, under
#: heads that did.
COMPARED = (IG, GRADIENT, PRODUCT, OCCLUSION, AMPLITUDE, RANDOM, TWIN, SECOND, TWIN_GRADIENT, SECOND_GRADIENT)
MAPPED = (IG, GRADIENT, TWIN, TWIN_GRADIENT)
DELETION, INSERTION, GAP = "deletion", "insertion", "insertion less deletion"
#: Below this, Holm's p calls a difference clear.
LEVEL = 0.05
SPEARMAN, OVERLAP = "spearman", "overlap of the top tenth"
#: Beside the random order, what a method has to beat to have learned what it says.
_RIVALS = {SIGNED: (TWIN_SIGNED, AMPLITUDE), IG: (TWIN, AMPLITUDE), GRADIENT: (TWIN_GRADIENT, AMPLITUDE)}


@dataclass(frozen=True)
class Tested:
    """The explained records of one task, in the order of `rows`, positives before negatives within a split.

    Attributes
    ----------
    rows : (n,) int array
        Positions in the cohort.
    positive : (n,) bool array
    curves : (n, len(RANKED), 2, len(SHARES) + 2) array
        Log-odds after deletion and insertion of growing shares of bins; NaN for negatives, which are only averaged.
    agreement : (n, 2, len(COMPARED), len(COMPARED)) array
        Spearman's correlation and overlap of the top tenth between methods; NaN for negatives.
    maps : (n, len(MAPPED), 12, len(cure.beat_attribution.MS)) array
        Averages over beats: of integrated gradients in log-odds per 40 ms, of mean gradients in log-odds per unit of
        input held over 40 ms.
    wave : (n, 12, n_samples) array
        Median beats, mV.
    """

    rows: np.ndarray
    positive: np.ndarray
    curves: np.ndarray
    agreement: np.ndarray
    maps: np.ndarray
    wave: np.ndarray


# --- the study -------------------------------------------------------------------------------------


def untrained_pair(config: FaithfulnessConfig) -> list[Representation]:
    """Two random initialisations of the encoder: the control, and a second one to compare it with.

    Raises
    ------
    CureError
        If the profile does not extract two.
    """
    subject = explained(_as_explain(config))
    made = [one for one in embed.representations(config) if (one.encoder, one.weights) == (config.encoder, "random")]
    pair = [one for one in made if one != subject][:2]
    if len(pair) < 2:
        raise CureError(
            f"section faithfulness of profile '{config.profile}' needs two initialisations of {config.encoder} besides "
            f"the explained weights, section embed extracts {len(pair)}: add the encoder, or a seed, to section embed"
        )
    return pair


def study(config: FaithfulnessConfig, cohort: Cohort, splits: list[Split]) -> dict[str, Tested]:
    """Attribute, delete, insert and compare, in parallel over tasks and splits.

    Raises
    ------
    CureError
        For an unknown task or one without test positives, or without two untrained twins.
    """
    jobs: list[tuple[str, np.ndarray, Split, np.ndarray, np.ndarray, list[int]]] = []
    untrained_pair(config)
    for i, (task, y) in enumerate(explain.labels(_as_explain(config), cohort).items()):
        rng = np.random.default_rng([config.seed, i])
        chosen = [explain.sample(labels, splits, config.n_records, rng) for labels in (y, ~y)]
        if not any(len(rows) for rows in chosen[0]):
            raise CureError(f"no test record lists {task}: leave it out of section faithfulness of '{config.profile}'")
        for j, (split, *rows) in enumerate(zip(splits, *chosen, strict=True)):
            if sum(map(len, rows)):
                jobs.append((task, y, split, *rows, [config.seed, i, j]))
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), backend="threading", return_as="generator")
    work = parallel(joblib.delayed(_test)(config, cohort, *job) for _, *job in jobs)
    parts = list(progress(work, desc="faithfulness", total=len(jobs), unit="task and split"))
    tasks = {}
    for task in config.tasks:
        mine = [part for (name, *_), part in zip(jobs, parts, strict=True) if name == task]
        tasks[task] = Tested(**{f.name: np.concatenate([getattr(p, f.name) for p in mine]) for f in fields(Tested)})
    return tasks


def _test(
    config: FaithfulnessConfig,
    cohort: Cohort,
    y: np.ndarray,
    split: Split,
    positives: np.ndarray,
    negatives: np.ndarray,
    seed: list[int],
) -> Tested:
    torch.set_num_threads(1)
    rng, rows, n = np.random.default_rng(seed), np.concatenate([positives, negatives]), len(positives)
    subject = explained(_as_explain(config))
    probe, twin, second = (
        explain.fit_probe(_as_explain(config), cohort, one, y, split) for one in (subject, *untrained_pair(config))
    )
    spec = probe.encoder.input_spec
    if set(spec.leads) != set(LEADS):
        raise CureError(f"stage faithfulness compares twelve leads; {config.encoder} takes {', '.join(spec.leads)}")
    require_whole(spec, cohort, config.stage)
    x, mv = spec.read(cohort, rows), cohort.resampled(rows, 100)
    own = attribution.integrated_gradients(probe, x, config.steps)
    other = attribution.integrated_gradients(twin, x, config.steps, tolerance=np.inf)
    record, peak = beat_attribution.usable_beats(mv, 100)
    leads = [spec.leads.index(lead) for lead in LEADS]
    whole = np.stack([own.value, own.gradient, other.value, other.gradient], axis=1)[:, :, leads]
    agreed = np.full((len(rows), 2, len(COMPARED), len(COMPARED)), np.nan)
    found = np.full((len(rows), len(RANKED), 2, len(SHARES) + 2), np.nan)
    if n:
        third = attribution.integrated_gradients(second, x[:n], config.steps, tolerance=np.inf)
        codes, _ = attribution.beat_segments(mv[:n], 100, spec.seconds, x.shape[2])
        values = {
            IG: own.value[:n],
            GRADIENT: own.gradient[:n],
            PRODUCT: attribution.gradient_times_input(probe, x[:n]),
            OCCLUSION: occlusion(probe, x[:n], codes),
            AMPLITUDE: x[:n],
            TWIN: other.value[:n],
            TWIN_GRADIENT: other.gradient[:n],
            SECOND: third.value,
            SECOND_GRADIENT: third.gradient,
        }
        sizes = {name: binned(np.abs(value), spec.fs) for name, value in values.items()}
        sizes[RANDOM] = rng.random(sizes[IG].shape)
        agreed[:n] = agreement(np.stack([sizes[name].reshape(n, -1) for name in COMPARED], axis=1), rng)
        signed = {SIGNED: binned(values[IG], spec.fs), TWIN_SIGNED: binned(values[TWIN], spec.fs)}
        ends = probe.score(x[:n]), probe.score(np.zeros_like(x[:1]))[0]
        for i, name in enumerate(RANKED):
            found[:n, i, :, 1:-1] = curves(probe, x[:n], order((sizes | signed)[name], rng), spec.fs)
        found[:n, :, 0, 0] = found[:n, :, 1, -1] = ends[0][:, None]
        found[:n, :, 0, -1] = found[:n, :, 1, 0] = ends[1]
    return Tested(
        rows=rows,
        positive=np.arange(len(rows)) < n,
        curves=found,
        agreement=agreed,
        maps=beat_attribution.beat_average(whole, record, peak, spec.fs),
        wave=beats.align(mv, 100)[2],
    )


# --- tables ----------------------------------------------------------------------------------------


def curves_table(config: FaithfulnessConfig, cohort: Cohort, found: dict[str, Tested]) -> pd.DataFrame:
    """Mean log-odds of the test positives at each share of bins, per task, method and direction."""
    frames = []
    for task, one in found.items():
        patient, draws = _draws(config, cohort, one)
        values = one.curves[one.positive]
        index = [RANKED, (DELETION, INSERTION), (0, *SHARES, 1)]
        where = pd.MultiIndex.from_product(index, names=["method", "metric", "share"]).to_frame(index=False)
        frames.append(
            where.assign(**_key(config, cohort, task), **_numbers(values.reshape(len(values), -1), draws, patient))
        )
    return pd.concat(frames, ignore_index=True)


def areas_table(config: FaithfulnessConfig, cohort: Cohort, found: dict[str, Tested]) -> pd.DataFrame:
    """Areas under the curves per task and method, and paired differences to controls.

    `deletion` is better low, `insertion` and their difference, `insertion less deletion`, are better high; in log-odds.
    Rows with a comparator hold the difference to it. The last metric alone is tested: `p_holm` is Holm's over all its
    differences in the table.
    """
    frames = []
    for task, one in found.items():
        patient, draws = _draws(config, cohort, one)
        deletion, insertion = np.moveaxis(area(one.curves[one.positive]), 2, 0)
        for metric, values in {DELETION: deletion, INSERTION: insertion, GAP: insertion - deletion}.items():
            plain = pd.DataFrame({"method": RANKED, "metric": metric} | _numbers(values, draws, patient))
            frames.append(plain.assign(**_key(config, cohort, task)))
            mean, drawn = band(values, draws)
            rows = []
            for i, method in enumerate(RANKED):
                for rival in (RANDOM, *_RIVALS.get(method, ())):
                    if method != rival:
                        j = RANKED.index(rival)
                        gain = paired_difference(mean[i], mean[j], drawn[i], drawn[j])
                        numbers = {"value": gain.value, "lo": gain.lo, "hi": gain.hi, "p": gain.p}
                        rows.append({"method": method, "metric": metric, "comparator": rival, **numbers})
            about = plain.loc[0, ["n", "n_patients", "supported"]].to_dict()
            frames.append(pd.DataFrame(rows).assign(**about, **_key(config, cohort, task)))
    table = pd.concat(frames, ignore_index=True)
    tested = (table["metric"] == GAP) & table["comparator"].notna() & table["supported"].astype(bool)
    table.loc[~table["supported"].astype(bool), ["lo", "hi"]] = np.nan
    return table.assign(p_holm=holm(table["p"].where(tested))).drop(columns="p")


def agreement_table(config: FaithfulnessConfig, cohort: Cohort, found: dict[str, Tested]) -> pd.DataFrame:
    """Mean agreement over the test positives of each pair of methods, per task."""
    a, b = np.triu_indices(len(COMPARED), 1)
    frames = []
    for task, one in found.items():
        patient, draws = _draws(config, cohort, one)
        for i, metric in enumerate((SPEARMAN, OVERLAP)):
            pair = pd.DataFrame(
                {"method": np.take(COMPARED, a), "compared_with": np.take(COMPARED, b), "metric": metric}
            )
            numbers = _numbers(one.agreement[one.positive][:, i, a, b], draws, patient)
            frames.append(pair.assign(**_key(config, cohort, task), **numbers))
    return pd.concat(frames, ignore_index=True)


def beats_table(config: FaithfulnessConfig, cohort: Cohort, found: dict[str, Tested]) -> pd.DataFrame:
    """Beat-aligned average attributions per task, class, lead and 40 ms, see `cure.beat_attribution.class_table`."""
    parts = [
        beat_attribution.class_table(maps, {TWIN, TWIN_GRADIENT}, config.n_draws, config.seed).assign(
            **_key(config, cohort, task)
        )
        for task, maps in beat_maps(cohort, found).items()
    ]
    return pd.concat(parts, ignore_index=True)


def beat_maps(cohort: Cohort, found: dict[str, Tested]) -> dict[str, BeatMaps]:
    """What `cure.beat_attribution` averages, by task."""
    patient = cohort.records["patient_id"].to_numpy()
    return {
        task: BeatMaps(list(MAPPED), one.maps, one.wave, one.positive, patient[one.rows]) for task, one in found.items()
    }


def beat_waves(cohort: Cohort, found: dict[str, Tested]) -> dict[str, dict[str, np.ndarray]]:
    """Average median beats of both classes by task, see `cure.beat_attribution.class_waves`."""
    return {task: beat_attribution.class_waves(maps) for task, maps in beat_maps(cohort, found).items()}


def areas_view(table: pd.DataFrame) -> pd.DataFrame:
    """Insertion less deletion as a paper prints it, `area [lo, hi]`, and its difference to the random order."""
    chosen = table[(table["metric"] == GAP) & (table["comparator"].isna() | (table["comparator"] == RANDOM))]
    p = [f", p = {p:.2g}" if p == p else "" for p in chosen["p_holm"]]
    spans = [
        f"{r.value:.2f} [{r.lo:.2f}, {r.hi:.2f}]" if r.supported else f"({r.value:.2f})" for r in chosen.itertuples()
    ]
    what = chosen["comparator"].map({RANDOM: "less random order"}).fillna("area")
    texts = chosen.assign(text=[a + b for a, b in zip(spans, p, strict=True)], what=what)
    wide = texts.pivot(index="method", columns=["task", "what"], values="text").fillna("")
    columns = [(task, name) for task in table["task"].unique() for name in ("area", "less random order")]
    return wide.reindex(index=list(RANKED), columns=pd.MultiIndex.from_tuples(columns)).rename_axis(index=None)


def answer(table: pd.DataFrame) -> str:
    """Say in words, as Markdown, which controls the orders by the trained model beat, task by task."""
    lines = []
    gaps = table[(table["metric"] == GAP) & table["comparator"].notna()]
    for task, rows in gaps.groupby("task", sort=False):
        if not rows["supported"].all():
            lines.append(f"* **{task}**: not known, only {rows['n'].iloc[0]} test records that list it were explained.")
            continue
        for method in _RIVALS:
            mine = rows[rows["method"] == method]
            clear, up = mine["p_holm"] < LEVEL, mine["value"] > 0
            sides = {"better than": clear & up, "worse than": clear & ~up, "not told apart from": ~clear}
            said = [
                f"{how} {', '.join(_short(mine['comparator'][which]))}" for how, which in sides.items() if which.any()
            ]
            lines.append(f"* **{task}**, {method}: {'; '.join(said)}.")
    return "\n".join(lines)


def _short(rivals: pd.Series) -> list[str]:
    return ["its untrained twin" if "twin" in name else f"the {name}" for name in rivals]


def _as_explain(config: FaithfulnessConfig) -> ExplainConfig:
    """For functions of stage `explain`, which read nothing of its settings that this stage does not have."""
    return cast(ExplainConfig, config)


def _key(config: FaithfulnessConfig, cohort: Cohort, task: str) -> dict[str, object]:
    return {"cohort": cohort.name, "encoder": config.encoder, "weights": config.weights, "task": task}


def _draws(config: FaithfulnessConfig, cohort: Cohort, one: Tested) -> tuple[np.ndarray, np.ndarray]:
    patient = cohort.records["patient_id"].to_numpy()[one.rows[one.positive]]
    return patient, patient_draws(patient, config.n_draws, np.random.default_rng(config.seed))


def _numbers(values: np.ndarray, draws: np.ndarray, patient: np.ndarray) -> dict[str, object]:
    """Columns of a table from (n, k) values: means over records, intervals over patients, counts; NaN is left out."""
    mean, drawn = band(values, draws)
    lo, hi, _ = interval(drawn)
    there = ~np.isnan(values)
    n = there.sum(axis=0)
    enough = n >= MIN_RECORDS
    bounds = {"value": mean, "lo": np.where(enough, lo, np.nan), "hi": np.where(enough, hi, np.nan)}
    return {**bounds, "n": n, "n_patients": [len(np.unique(patient[c])) for c in there.T], "supported": enough}

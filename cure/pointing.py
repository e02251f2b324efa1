"""Does an attribution point at what was planted? Scores against the known truth of a simulated cohort.

Every score is read beside controls on the same records: the untrained twin of the encoder, the signal's own amplitude,
noise, an attribution that is wrong on purpose, and an oracle that knows the answer.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cure.attribution import binned
from cure.bootstrap import interval, patient_draws
from cure.cohorts.base import Cohort
from cure.signals import LEADS
from cure.simulate import PLANTED
from cure.tasks import TITLES

IG, TWIN, PRODUCT = "integrated gradients", "integrated gradients, untrained twin", "gradient x input"
GRADIENT, TWIN_GRADIENT, OCCLUSION = "mean gradient", "mean gradient, untrained twin", "segment occlusion"
AMPLITUDE, NOISE = "signal amplitude", "noise"
SHIFTED, ORACLE = "mean gradient, shifted (wrong)", "oracle: truth and noise"
IG_SHIFTED = "integrated gradients, shifted (wrong)"
#: What the mean gradient has to beat before it can be said to point. It is the attribution that is judged because it is
#: free of the factor `signal`: with it, an attribution points at tall waves whatever the weights are. Integrated
#: gradients were judged first, and failed against their own twin and shift; their rows stay in the table.
CONTROLS = (TWIN_GRADIENT, AMPLITUDE, NOISE, SHIFTED)
#: Score, and how its records are summarised.
METRICS = {"enrichment": "median", "auroc": "median", "pointing_game": "mean"}
#: Below this many records a number has no interval.
MIN_RECORDS = 10
_WINDOWS = {
    "pr": "the PR interval",
    "qrs": "the QRS complex",
    "early_qrs": "the early QRS",
    "late_qrs": "the late QRS",
    "st_t": "ST and T",
    "tq": "the TQ interval",
}


def read_truth(cohort: Cohort) -> pd.DataFrame:
    """What was planted where, as `cure.simulate.find_truth` tells it; no rows for a cohort of real records."""
    file = cohort.folder / "truth.parquet"
    columns = ["ecg_id", "condition", "severity", "wave", "lead", "strength", "beat", "start", "end"]
    return pd.read_parquet(file) if file.is_file() else pd.DataFrame(columns=columns)


def planted(
    truth: pd.DataFrame, record_id: np.ndarray, condition: str, fs: float, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where a condition was planted in some records.

    Returns
    -------
    time : (n, 1, samples) bool array
        In the planted windows. No True for a record in which it was not planted.
    best : (n, 12, samples) bool array
        In the planted windows of the leads that show the condition best.
    """
    found = truth[(truth["condition"] == condition) & truth["ecg_id"].isin(record_id)]
    position = {record: i for i, record in enumerate(record_id)}
    best = np.zeros((len(record_id), len(LEADS), samples), bool)
    time = np.zeros((len(record_id), 1, samples), bool)
    edges = found[["start", "end"]].mul(fs).round().astype(int)
    for record, lead, strength, start, end in zip(
        found["ecg_id"], found["lead"], found["strength"], edges["start"], edges["end"], strict=True
    ):
        time[position[record], 0, start:end] = True
        best[position[record], LEADS.index(lead), start:end] |= strength == 1
    return time, best


def score(attribution: np.ndarray, inside: np.ndarray, fs: float) -> dict[str, np.ndarray]:
    """Score attributions against a region, record by record.

    Parameters
    ----------
    attribution : (n, rows, samples) array
        Its sign does not count.
    inside : (n, rows, samples) bool array
        The region.
    fs : float
        Hz.

    Returns
    -------
    dict of (n,) arrays
        `enrichment`: share of |attribution| inside over the share of samples inside, 1 by chance. `auroc`: of the 40 ms
        bins' |attribution| for lying inside (at least half of the bin), 0.5 by chance. `pointing_game`: whether the
        highest bin lies inside (Zhang et al. 2018); by chance, the share of bins inside. NaN where it is undefined.
    """
    size, n = np.abs(attribution).astype(float), len(attribution)
    share = (size * inside).sum(axis=(1, 2)) / np.maximum(size.sum(axis=(1, 2)), 1e-300)
    area = inside.mean(axis=(1, 2))
    width = binned(np.ones(attribution.shape[2]), fs)
    height = (binned(size, fs) / width).reshape(n, -1)
    hit = (binned(inside.astype(float), fs) / width >= 0.5).reshape(n, -1)
    n_in = hit.sum(axis=1)
    rank_sum = (rankdata(height, axis=1) * hit).sum(axis=1)
    n_pairs = n_in * (hit.shape[1] - n_in)
    with np.errstate(divide="ignore", invalid="ignore"):
        defined = n_pairs > 0
        return {
            "enrichment": np.where(area > 0, share / area, np.nan),
            "auroc": np.where(defined, (rank_sum - n_in * (n_in + 1) / 2) / n_pairs, np.nan),
            "pointing_game": np.where(defined, hit[np.arange(n), height.argmax(axis=1)], np.nan),
        }


def half_beat_later(attribution: np.ndarray, rr: np.ndarray, fs: float) -> np.ndarray:
    """Shift each record's attribution in time by half its RR interval, in a circle: wrong on purpose.

    Parameters
    ----------
    attribution : (n, n_leads, samples) array
    rr : (n,) array
        Median RR interval in s; where it is NaN, the shift is half the record.
    fs : float
        Hz.
    """
    by = np.where(np.isnan(rr), attribution.shape[2] / 2, rr * fs / 2).round().astype(int)
    return np.stack([np.roll(one, shift, axis=-1) for one, shift in zip(attribution, by, strict=True)])


def spread(segment_drop: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Spread the effect of losing each beat segment evenly over the samples of that segment.

    Parameters
    ----------
    segment_drop : (n, 5) array
        Fall of the log-odds without a segment.
    codes : (n, n_samples) array
        Which segment a sample belongs to; negative where none is known.

    Returns
    -------
    (n, 12, n_samples) array
        The same in all leads: segments are taken away in all at once.
    """
    found = np.zeros(codes.shape)
    for segment in range(segment_drop.shape[1]):
        inside = codes == segment
        found += inside * (segment_drop[:, [segment]] / np.maximum(inside.sum(axis=1, keepdims=True), 1))
    return np.repeat(found[:, None], len(LEADS), axis=1)


def score_all(
    attributions: dict[str, np.ndarray], time: np.ndarray, best: np.ndarray, fs: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Scores of several attributions and of an oracle, per record and region.

    Parameters
    ----------
    attributions : dict of (n, 12, samples) arrays
        Methods by name.
    time, best : arrays
        From `planted`. Region `time` asks when, with |attribution| summed over leads; `time and leads` asks where too.
    fs : float
        Hz.
    rng : numpy.random.Generator
        Of the oracle's noise: half as high as the truth it knows.

    Returns
    -------
    DataFrame
        `record` (position), `method`, `region`, `metric`, `value`.
    """
    frames = []
    for region, inside in (("time", time), ("time and leads", best)):
        for method in (*attributions, ORACLE):
            known = inside + 0.5 * rng.random(inside.shape) if method == ORACLE else np.abs(attributions[method])
            known = known.sum(axis=1, keepdims=True) if inside.shape[1] == 1 else known
            values = pd.DataFrame(score(known, inside, fs)).rename_axis("record").reset_index()
            frames.append(values.melt("record", var_name="metric").assign(method=method, region=region))
    return pd.concat(frames, ignore_index=True)[["record", "method", "region", "metric", "value"]]


def over_patients(values: np.ndarray, draws: np.ndarray, statistic: str = "mean") -> tuple[float, float, float]:
    """Mean or median over records with its 95 % interval over patients.

    Parameters
    ----------
    values : (n,) array
        Without NaN.
    draws : (n_draws, n) array
        How often each record counts in each draw, from `cure.bootstrap.patient_draws`.
    statistic : {"mean", "median"}

    Returns
    -------
    value, lo, hi : float
        Below `MIN_RECORDS` records without interval.
    """
    if not len(values):
        return np.nan, np.nan, np.nan
    weights = np.concatenate([np.ones((1, len(values))), draws])
    if statistic == "mean":
        drawn = weights @ values / np.maximum(weights.sum(axis=1), 1e-12)
    else:
        order = np.argsort(values, kind="stable")
        passed, ordered = weights[:, order].cumsum(axis=1), values[order]
        half = passed[:, -1:] / 2
        drawn = (ordered[(passed >= half).argmax(axis=1)] + ordered[(passed > half).argmax(axis=1)]) / 2
    lo, hi, _ = interval(np.where(weights[1:].any(axis=1), drawn[1:], np.nan))
    return (float(drawn[0]), float(lo), float(hi)) if len(values) >= MIN_RECORDS else (float(drawn[0]), np.nan, np.nan)


def summarise(scores: pd.DataFrame, patient: np.ndarray, n_draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """Medians over records (means of hits), and paired differences: the mean gradient less each control.

    Parameters
    ----------
    scores : DataFrame
        From `score_all`.
    patient : array
        Patient of each record position.
    n_draws : int
    rng : numpy.random.Generator
        Of the bootstrap; the same patients are drawn for every method.

    Returns
    -------
    DataFrame
        `method, region, metric, value, lo, hi, comparator, n, n_patients, supported`; with a comparator, `value` is
        the median (mean) of the difference to it.
    """
    draws = patient_draws(patient, n_draws, rng)
    compared = [(GRADIENT, control) for control in CONTROLS] + [(IG, TWIN), (IG, IG_SHIFTED), (SHIFTED, ORACLE)]
    rows = []
    for (region, metric), group in scores.groupby(["region", "metric"], sort=False):
        wide = group.pivot(index="record", columns="method", values="value")
        present = [pair for pair in compared if set(pair) <= set(wide)]
        for method, comparator in [*((m, None) for m in group["method"].unique()), *present]:
            values = wide[method] - (wide[comparator] if comparator else 0)
            used = wide.index[values.notna()].to_numpy()
            value, lo, hi = over_patients(values[used].to_numpy(), draws[:, used], METRICS[str(metric)])
            row = {"method": method, "region": region, "metric": metric, "value": value, "lo": lo, "hi": hi}
            about = {"n": len(used), "n_patients": len(np.unique(patient[used])), "supported": len(used) >= MIN_RECORDS}
            rows.append({**row, "comparator": comparator, **about})
    return pd.DataFrame(rows)


def view(table: pd.DataFrame, region: str = "time", metric: str = "auroc") -> pd.DataFrame:
    """One score of every method as a paper prints it, `value [lo, hi]`, method by task; no rows without a truth."""
    rows = table[(table["region"] == region) & (table["metric"] == metric) & table["comparator"].isna()]
    text = [f"{r.value:.2f} [{r.lo:.2f}, {r.hi:.2f}]" if r.supported else f"({r.value:.2f})" for r in rows.itertuples()]
    wide = rows.assign(text=text).pivot(index="method", columns="task", values="text")
    return wide.reindex(index=rows["method"].unique(), columns=rows["task"].unique()).rename_axis(columns=None)


def answer(table: pd.DataFrame) -> str:
    """Say in words, as Markdown, whether the explained encoder points at what was planted, task by task."""
    if table.empty:
        return "Not applicable: nobody planted anything in these records, so no attribution can be scored against it."
    return "\n".join(f"* {_sentence(rows, str(task))}" for task, rows in table.groupby("task", sort=False))


def _sentence(rows: pd.DataFrame, task: str) -> str:
    chosen = rows[(rows["region"] == "time") & (rows["metric"] == "auroc")]
    plain = chosen[chosen["comparator"].isna()].set_index("method")
    own, gains = plain.loc[GRADIENT], chosen[(chosen["method"] == GRADIENT) & chosen["comparator"].notna()]
    where = " and ".join(_WINDOWS[name] for name in PLANTED[task][2])
    question = f"**Does {TITLES.get(task, task)} point at {where}?**"
    if not own["supported"]:
        return f"{question} Not known: only {own['n']} test records have it planted."
    others = "; ".join(f"{name} {plain.loc[name, 'value']:.2f}" for name in (*CONTROLS, IG))
    numbers = (
        f"The size of the mean gradient tells the planted windows from the rest of the record with an AUROC of "
        f"{own['value']:.2f} [{own['lo']:.2f}, {own['hi']:.2f}] (median of {own['n']:.0f} records; {others})"
    )
    beaten = gains["lo"] > 0
    if own["hi"] <= 0.5:
        return f"{question} No. {numbers}; 0.50 is chance."
    if own["lo"] <= 0.5:
        return f"{question} Not told apart from chance. {numbers}."
    if beaten.all():
        return f"{question} Yes. {numbers}: more than every control."
    return f"{question} Not specifically. {numbers}: not told apart from {'; '.join(gains['comparator'][~beaten])}."

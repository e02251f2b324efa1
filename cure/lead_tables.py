"""Tables of the leads study: scores by configuration, paired differences, and what they come to."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cure.cohorts.base import Cohort
from cure.embed import FEATURES
from cure.evaluate import compare, evaluate
from cure.lead_study import ENCODER, TUNED, Unit
from cure.lead_training import ALONE, KINDS, MIXING, TWIN
from cure.leads import configuration, independent
from cure.scores import MACROS, averages
from cure.settings.leads import LeadsConfig

METRICS = ("auroc", "auprc")
#: What is compared with all others: pre-trained with selection, missing leads are not there.
MAIN = ("selection", "adaptive")
#: Pre-trainings as they are meant to be used: who has seen zeros, or nothing but twelve leads, is given zeros.
SHOWN = (("twelve", "fixed"), ("masking", "fixed"), MAIN)
#: Columns that tell methods apart.
METHOD = ["encoder", "weights", "pooling", "strategy"]
_WEIGHTS = {
    "twelve": "twelve leads",
    "masking": "leads masked",
    "selection": "leads selected",
    ALONE: "these leads alone",
    "random": "untrained",
}
_POOLINGS = {"fixed": "zeros", "adaptive": "left out"}
#: Columns of a comparison that say nothing of averages.
_UNSAID = ["n_pos", "n_pos_patients", "prevalence"]


def score_table(config: LeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """AUROC and AUPRC of every method on every configuration, with intervals over patients and averages over tasks.

    `n_leads` and `n_independent` count the leads of a configuration and those that are no combination of others: six
    limb leads hold two.
    """
    plain = predicted.drop(columns="setting")
    patients = cohort.records.set_index("record_id")["patient_id"]
    macros = averages(plain["task"].unique())
    table = evaluate(plain, patients, metrics=METRICS, macros=macros, n_draws=config.n_draws, seed=config.seed)
    return _with_counts(table)


def difference_table(config: LeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Paired AUROC differences of averages over tasks, Holm-adjusted over the table.

    `against` says what is compared with what: every method with the model of the configuration alone (`alone`), the
    main method with zero-filled leads, with masking, the untrained encoder and hand-crafted features, and with itself
    on twelve leads (`twelve leads`); on twelve leads with an encoder that mixes them (`twin`). Pairs that are one
    function by construction are left out.
    """
    plain = predicted.drop(columns=["setting", "contaminated"]).astype(dict.fromkeys([*METHOD, "leads"], str))
    patients = cohort.records.set_index("record_id")["patient_id"]
    macros = averages(plain["task"].unique())
    parts = []
    wanted = list(_pairs(config))
    table = compare(
        plain, [(which, other) for which, other, _ in wanted], patients, macros=macros, per_task=False, seed=config.seed
    )
    names = {(_key(which), _said(other)): against for which, other, against in wanted}
    for row in table.to_dict("records"):
        mine = (tuple(str(row[name]) for name in (*METHOD[1:], "leads")), row["comparator"])
        parts.append(names[mine])
    table = table.assign(against=parts).drop(columns=_UNSAID)
    return _with_counts(table[table["task"].isin(MACROS)])


def _key(which: dict) -> tuple[str, ...]:
    return tuple(which[name] for name in (*METHOD[1:], "leads"))


def _said(other: dict) -> str:
    """As `cure.evaluate.compare` names a comparator."""
    return ", ".join(f"{name}={value}" for name, value in other.items())


def _pairs(config: LeadsConfig) -> Iterator[tuple[dict, dict, str]]:
    """Which method, what differs in its comparator, and what the comparison is called."""
    methods = [(weights, pooling) for weights in KINDS for pooling in ("fixed", "adaptive")]
    for strategy, tried, configurations in (("frozen", methods, config.configurations), ("full", TUNED, config.tuned)):
        for leads in configurations:
            others = {"alone": (ALONE, "adaptive"), "zero-filled": ("twelve", "fixed")}
            if strategy == "frozen":
                others |= {"masking": ("masking", "fixed"), "untrained": ("random", "adaptive")}
            for method in tried:
                for against, other in others.items():
                    if method != MAIN and against != "alone":
                        continue
                    if Unit(*method, leads).same == Unit(*other, leads).same:
                        continue
                    which = _method(*method, strategy, leads)
                    yield which, {"weights": other[0], "pooling": other[1]}, against
            if strategy == "frozen":
                which = _method(*MAIN, strategy, leads)
                yield which, {"encoder": FEATURES, "weights": "none", "pooling": "none"}, "features"
                for method in (MAIN, ("twelve", "fixed")):
                    if leads == "12":
                        twin = {"encoder": MIXING, "weights": TWIN, "pooling": "none"}
                        yield _method(*method, strategy, leads), twin, TWIN
                    else:
                        yield _method(*method, strategy, leads), {"leads": "12"}, "twelve leads"


def _method(weights: str, pooling: str, strategy: str, leads: str) -> dict:
    return {"encoder": ENCODER, "weights": weights, "pooling": pooling, "strategy": strategy, "leads": leads}


def _with_counts(table: pd.DataFrame) -> pd.DataFrame:
    found = {str(name): configuration(str(name)) for name in table["leads"].unique()}
    n_leads = [len(found[str(name)]) for name in table["leads"]]
    n_independent = [independent(found[str(name)]) for name in table["leads"]]
    return table.assign(n_leads=n_leads, n_independent=n_independent).reset_index(drop=True)


def with_label(table: pd.DataFrame) -> pd.DataFrame:
    """Add `label`: what the encoder was pre-trained on, and what is done with missing leads."""
    labels = []
    for row in table.itertuples():
        if row.encoder == FEATURES:
            labels.append("hand-crafted features")
            continue
        if row.encoder == MIXING:
            labels.append(f"{MIXING}, mixes leads")
            continue
        how = f"{_WEIGHTS[str(row.weights)]}; {_POOLINGS[str(row.pooling)]}"
        labels.append(how + (", fine-tuned" if row.strategy == "full" else ""))
    return table.assign(label=labels)


def macro_rows(table: pd.DataFrame, task: str = "macro", metric: str = "auroc") -> pd.DataFrame:
    """One average over tasks of every method and configuration, with its `label`."""
    return with_label(table[(table["task"] == task) & (table["metric"] == metric)])


def shown(table: pd.DataFrame, task: str = "macro", metric: str = "auroc") -> pd.DataFrame:
    """What the figure shows, frozen: every pre-training as it is meant to be used, and the controls."""
    rows = macro_rows(table, task, metric)
    meant = {*SHOWN, (ALONE, "adaptive"), (TWIN, "none"), ("random", "adaptive"), ("none", "none")}
    pairs = zip(rows["weights"].astype(str), rows["pooling"].astype(str), strict=True)
    return rows[np.array([pair in meant for pair in pairs]) & (rows["strategy"] == "frozen")]


def score_view(table: pd.DataFrame, task: str = "macro", metric: str = "auroc") -> pd.DataFrame:
    """One average over tasks, method by configuration: value [interval]."""
    rows = macro_rows(table, task, metric)
    text = [f"{row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]" for row in rows.itertuples()]
    return _wide(rows.assign(text=text))


def difference_view(table: pd.DataFrame, against: str, task: str = "macro") -> pd.DataFrame:
    """One family of differences, method by configuration: difference [interval], `*` where p < 0.05 after Holm."""
    rows = with_label(table[(table["task"] == task) & (table["against"] == against)])
    text = [
        f"{row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}]{' *' if row.p_holm < 0.05 else ''}"
        for row in rows.itertuples()
    ]
    return _wide(rows.assign(text=text))


def main_differences(table: pd.DataFrame, task: str = "macro") -> pd.DataFrame:
    """All comparisons of the main method, frozen: comparator by configuration."""
    rows = table[(table["task"] == task) & (table["strategy"] == "frozen")]
    rows = rows[(rows["weights"] == MAIN[0]) & (rows["pooling"] == MAIN[1])]
    text = [
        f"{row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}]{' *' if row.p_holm < 0.05 else ''}"
        for row in rows.itertuples()
    ]
    return _wide(rows.assign(text=text, label=rows["against"]))


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows.pivot(index="label", columns="leads", values="text")
    wide = wide.reindex(index=rows["label"].unique(), columns=rows["leads"].astype(str).unique()).fillna("")
    counts = rows.astype({"leads": str}).drop_duplicates("leads").set_index("leads")["n_independent"]
    wide.columns = [f"{name} ({counts[name]} independent)" for name in wide.columns]
    return wide.rename_axis(index=None, columns=None)


def answer(differences: pd.DataFrame, task: str = "macro") -> str:
    """What the claim comes to, in sentences read from the table."""
    rows = differences[(differences["task"] == task) & (differences["strategy"] == "frozen")]
    main = rows[(rows["weights"] == MAIN[0]) & (rows["pooling"] == MAIN[1])]
    said = []
    for against, words in (
        ("alone", "the model of these leads alone"),
        ("zero-filled", "zero-filled leads, pre-trained on twelve"),
        ("masking", "zero-filled leads, pre-trained with masking"),
    ):
        each = main[(main["against"] == against) & (main["leads"] != "12")]
        verdicts = [
            f"{row.leads}: {row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}], {_verdict(row)}"
            for row in each.itertuples()
        ]
        said.append(f"* Against {words}: " + "; ".join(verdicts) + ".")
    for row in rows[(rows["against"] == TWIN) & (rows["weights"] == "twelve")].itertuples():
        said.append(
            f"* On twelve leads without selection, against {MIXING}, which mixes them, pre-trained alike: "
            f"{row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}], {_verdict(row)}."
        )
    return (
        "Pre-trained with leads selected, missing leads left out; macro AUROC of frozen logistic heads, p < 0.05 after "
        "Holm's correction over patients, given these trainings of one seed:\n\n"
        + "\n".join(said)
        + "\n\n*Not told apart* is no proof of equality: the "
        "interval says how large a difference may be."
    )


def _verdict(row: tuple) -> str:
    if pd.isna(row.p_holm):  # type: ignore[attr-defined]
        return "not known, too few positives"
    if row.p_holm >= 0.05:  # type: ignore[attr-defined]
        return "not told apart"
    return "better" if row.value > 0 else "worse"  # type: ignore[attr-defined]

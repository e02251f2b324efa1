"""Tables: tidy CSV files, one row per number, and the wide views that people read."""

from pathlib import Path

import numpy as np
import pandas as pd

from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.paths import atomic
from cure.splits import Split
from cure.tasks import groups

#: What pre-training saw of the evaluation cohort, and the mark that a score then carries.
SEEN = {"signals": " †", "signals and labels": " ‡", "unknown": " ?"}


def save(table: pd.DataFrame, folder: Path, name: str) -> pd.DataFrame:
    """Write `<folder>/tables/<name>.csv` with six significant digits, whole or not at all; returns the table."""
    with atomic(folder / "tables" / f"{name}.csv") as part:
        table.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
    return table


def read(folder: Path, name: str) -> pd.DataFrame:
    """Read a table that a stage saved.

    Raises
    ------
    CureError
        If it is not there: says which stage makes it.
    """
    file = folder / "tables" / f"{name}.csv"
    if not file.is_file():
        raise CureError(f"no table '{name}' of stage {folder.name}: `make repro PROFILE={folder.parent.name}` makes it")
    return pd.read_csv(file)


def parts(splits: list[Split], n_records: int) -> dict[str, np.ndarray]:
    """The parts of a cohort that its table describes: all, then train/val/test, or the test folds of each rotation."""
    everything = {"all": np.arange(n_records)}
    if len(splits) == 1:
        return everything | {name: getattr(splits[0], name) for name in ("train", "val", "test")}
    return everything | {split.name: split.test for split in splits}


def cohort_table(cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Who is in the cohort, per part: counts, age, sex, prevalence and support of every binary task, exclusions.

    Returns
    -------
    DataFrame
        Tidy: `cohort, part, variable, task, value, n, n_pos, n_patients`. Ages over 89 are masked in the source: they
        count in `n` but not in the age quantiles.
    """
    labels = cohort.binary()
    rows = []
    for part, members in parts(splits, len(cohort)).items():
        records = cohort.records.iloc[members]
        base = {"cohort": cohort.name, "part": part, "n": len(records), "n_patients": records["patient_id"].nunique()}
        age = records["age"].dropna()
        summary = {
            "records": len(records),
            "patients": base["n_patients"],
            "age_q25": age.quantile(0.25),
            "age_median": age.median(),
            "age_q75": age.quantile(0.75),
            "age_over_89": records["age_over_89"].mean(),
            "female": (records["sex"] == "female").mean(),
            "flat_lead": (records["n_flat_leads"] > 0).mean(),
        }
        rows += [{**base, "variable": variable, "value": value} for variable, value in summary.items()]
        for task, y in zip(labels.names, labels.y[members].T, strict=True):
            rows.append({**base, "variable": "prevalence", "task": task, "value": y.mean(), "n_pos": int(y.sum())})
    for reason, count in cohort.excluded["reason"].value_counts().sort_index().items():
        rows.append({"cohort": cohort.name, "part": "all", "variable": f"excluded: {reason}", "value": count})
    columns = ["cohort", "part", "variable", "task", "value", "n", "n_pos", "n_patients"]
    return pd.DataFrame(rows, columns=columns).astype({"n_pos": "Int64", "n": "Int64", "n_patients": "Int64"})


def cohort_view(table: pd.DataFrame) -> pd.DataFrame:
    """The cohort table as a paper prints it: one row per variable, one column per part."""
    columns = list(table["part"].unique())
    wide = table.assign(variable=table["variable"].where(table["task"].isna(), table["task"])).pivot_table(
        index="variable", columns="part", values="value", sort=False
    )[columns]
    counts = table[table["task"].notna()].pivot_table(index="task", columns="part", values="n_pos", sort=False)[columns]
    view = pd.DataFrame(index=pd.Index([], name=""), columns=columns)
    view.loc["Records"] = [f"{v:,.0f}" for v in wide.loc["records"]]
    view.loc["Patients"] = [f"{v:,.0f}" for v in wide.loc["patients"]]
    quantiles = wide.loc[["age_median", "age_q25", "age_q75"]]
    view.loc["Age, median (quartiles), years"] = [f"{m:.0f} ({a:.0f}–{b:.0f})" for m, a, b in quantiles.T.to_numpy()]
    view.loc["Age over 89, masked"] = [f"{100 * v:.1f} %" for v in wide.loc["age_over_89"]]
    view.loc["Female"] = [f"{100 * v:.1f} %" for v in wide.loc["female"]]
    view.loc["With a flat lead"] = [f"{100 * v:.1f} %" for v in wide.loc["flat_lead"]]
    for task in counts.index:
        pairs = zip(counts.loc[task], wide.loc[task], strict=True)
        view.loc[task] = [f"{n:,.0f} ({100 * share:.1f} %)" for n, share in pairs]
    return view


def exclusions(cohort: Cohort) -> pd.DataFrame:
    """How many records could not be used, per reason; one row saying none where all could."""
    counts = cohort.excluded["reason"].value_counts().sort_index().rename_axis("reason").reset_index(name="records")
    return counts if len(counts) else pd.DataFrame([{"reason": "none excluded", "records": 0}])


def score_view(table: pd.DataFrame, rows: list[str], metric: str = "auroc") -> pd.DataFrame:
    """Scores as a paper prints them: `value [lo, hi]`, one column per task.

    Parameters
    ----------
    table : DataFrame
        Tidy scores with `task, metric, value, lo, hi, supported`.
    rows : list of str
        Columns that make up the row index.
    metric : str
        Which metric to show.

    Returns
    -------
    DataFrame
        Text. A score below the support rule stands in parentheses, without interval.
    """
    chosen = table[table["metric"] == metric]
    wide = chosen.assign(text=_texts(chosen)).pivot(index=rows, columns="task", values="text")
    tasks = list(chosen["task"].unique())
    averages = [name for name in tasks if name.startswith("macro")]
    return wide[averages + [name for name in tasks if name not in averages]].fillna("")


def metrics_view(table: pd.DataFrame, encoder: str, head: str) -> pd.DataFrame:
    """All metrics of one encoder under one head, `value [lo, hi]`, one row per task; `table` holds main rows."""
    chosen = table[(table["encoder"] == encoder) & (table["head"] == head) & table["prevalence"].notna()]
    prevalence = [f"{100 * share:.1f} %" for share in chosen["prevalence"]]
    chosen = chosen.assign(text=_texts(chosen), prevalence=prevalence)
    wide = chosen.pivot(index=["task", "n_pos", "prevalence"], columns="metric", values="text")
    return wide.reindex(chosen["task"].unique(), level=0)[list(chosen["metric"].unique())].rename_axis(columns=None)


def _texts(table: pd.DataFrame) -> list[str]:
    rows = table[["value", "lo", "hi", "supported"]].itertuples()
    texts = [f"{r.value:.3f} [{r.lo:.3f}, {r.hi:.3f}]" if r.supported else f"({r.value:.3f})" for r in rows]
    return [text + mark for text, mark in zip(texts, marks(table), strict=True)]


def marks(table: pd.DataFrame) -> list[str]:
    """For each row the mark of `SEEN` that belongs to its column `contaminated`; none where there is no such column."""
    if "contaminated" not in table:
        return [""] * len(table)
    return table["contaminated"].map(lambda seen: SEEN.get(seen, "")).tolist()


def manifest_view(manifest: pd.DataFrame) -> pd.DataFrame:
    """Files and megabytes per top-level folder of a manifest."""
    folder = manifest["path"].str.split("/").str[0].where(manifest["path"].str.contains("/"), "metadata")
    view = manifest.groupby(folder)["size"].agg(files="count", megabytes=lambda size: round(size.sum() / 1e6, 1))
    return view.rename_axis("folder").reset_index()


def group_table(cohort: Cohort, min_positives: int = 10) -> pd.DataFrame:
    """Label groups that the cohort has: how many labels, how many with enough positives, how many records take part."""
    rows = []
    for name in groups(cohort.statements):
        labels = cohort.group(name)
        enough = int((labels.y.sum(axis=0) >= min_positives).sum())
        counts = {"labels": len(labels.names), "labels_supported": enough, "n": len(labels.rows)}
        rows.append({"cohort": cohort.name, "group": name, **counts, "n_without_label": len(cohort) - len(labels.rows)})
    return pd.DataFrame(rows)

"""How objectives compare: each trains the same encoder on one split for equal epochs, and a linear probe judges.

The probe is the project's logistic head on the encoder's own embedding, one per diagnostic superclass. Its
regularisation, and the objective, are chosen on the split's validation records; test records are scored once.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch

from cure import models, paths, plots, resources, tables
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.evaluate import compare, evaluate
from cure.heads import fit_head
from cure.models import Encoder
from cure.normalisation import take_statistics
from cure.paths import atomic
from cure.plots.training import families as drawn
from cure.pretrain import Corpus, Job, corpora, run_jobs
from cure.progress import progress
from cure.settings.pretrain import PretrainConfig
from cure.splits import Split
from cure.tasks import SUPERCLASSES, Labels
from cure.training import alone

#: What stands beside the objectives: the encoder as initialised, and with the statistics of its normalisations alone
#: taken from the training records. What this changes, no objective has taught.
UNTRAINED, STATISTICS = "none", "statistics"
MACRO = "macro-super"
_VIEW = ["validation AUROC", "test AUROC", "against untrained", "chosen"]
_LABELS = {UNTRAINED: "untrained", STATISTICS: "untrained, own statistics"}
#: Columns of a comparison that say nothing here.
_UNSAID = ("n_pos_patients", "prevalence")


@dataclass(frozen=True)
class Compared:
    """What the comparison left behind.

    Attributes
    ----------
    predicted : DataFrame
        Scores in the columns of `cure.predictions`, and `objective` and `part`: validation or test.
    curves : DataFrame
        As of `cure.pretrain.pretrain_all`; `weights` is the objective.
    cost : DataFrame
        `objective, seconds, core_seconds` of each training. They differ from run to run: nothing hashed may hold them.
    """

    predicted: pd.DataFrame
    curves: pd.DataFrame
    cost: pd.DataFrame


def study(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Compare, and save tables, figure, predictions and measured times; a profile that lists no families saves nothing.

    Returns
    -------
    DataFrame
        See `view`; empty without families.
    """
    if not config.families:
        return pd.DataFrame(columns=_VIEW)
    compared, stage = run(config, cohort, splits), config.output
    with atomic(stage / "predictions" / f"families-{config.encoder}.parquet") as part:
        compared.predicted.to_parquet(part, index=False, compression="zstd")
    save_cost(config, compared)
    tables.save(compared.curves, stage, "pretraining_families_curves")
    table = tables.save(score_table(cohort, compared), stage, "pretraining_families")
    text = (
        f"Linear probe on `{config.encoder}` after {config.families_epochs} epochs with each objective on the training "
        f"records of {splits[0].name} ({config.cohort.title}): mean AUROC over the diagnostic superclasses, 95 % "
        "interval over patients on the test records. The objective is chosen on the validation records. Own "
        "statistics: means and variances of its normalisations are the training records'; nothing was learned."
    )
    figure = drawn(main_rows(table, "validation"), main_rows(table, "test"), "macro AUROC over superclasses")
    plots.save(figure, stage, "pretraining_families", text, table="pretraining_families")
    return view(table)


def jobs(config: PretrainConfig, cohort: Cohort, split: Split) -> list[Job]:
    """One run per objective, on the training records of one split, from the profile's first seed."""
    (corpus,) = corpora(config, cohort, [split], config.families)
    seed, epochs = config.seeds[0], config.families_epochs
    return [Job(name, split.name, seed, corpus, name, epochs) for name in config.families]


def run(config: PretrainConfig, cohort: Cohort, splits: list[Split]) -> Compared:
    """Train with every objective on the first split, as resumable jobs, and score a probe on each encoder.

    Raises
    ------
    CureError
        If the profile lists no families, or no superclass has both classes among the training records.
    """
    if not config.families:
        raise CureError(f"profile {config.profile} compares no objectives: list `families` in its pretrain section")
    split = splits[0]
    labels = _labels(cohort, split)
    todo = jobs(config, cohort, split)
    folders = run_jobs(config, cohort, todo)
    trained = {job.objective: folder / "weights.safetensors" for job, folder in zip(todo, folders, strict=True)}
    files: dict[str, Path | None] = {UNTRAINED: None, STATISTICS: None, **trained}
    corpus = todo[0].corpus
    work = (joblib.delayed(_probe)(config, corpus, name, file, labels.y, split) for name, file in files.items())
    done = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator", max_nbytes="1M")(work)
    probes = progress(done, desc="probes", total=len(files), unit="encoder")
    frames = [_frame(config, cohort, name, probe, labels, split) for name, probe in zip(files, probes, strict=True)]
    curves = [pd.read_parquet(folder / "curve.parquet") for folder in folders]
    cost = [json.loads((folder / "cost.json").read_text()) for folder in folders]
    return Compared(
        pd.concat(frames, ignore_index=True),
        pd.concat(curves, ignore_index=True),
        pd.DataFrame(cost).assign(objective=[job.objective for job in todo]),
    )


def _labels(cohort: Cohort, split: Split) -> Labels:
    """The superclasses that have both classes among the training records."""
    every = cohort.binary()
    both = every.y[split.train].any(axis=0) & ~every.y[split.train].all(axis=0)
    keep = [i for i, name in enumerate(every.names) if name in SUPERCLASSES and both[i]]
    if not keep:
        raise CureError(f"{split.name}: no superclass has both classes in the training records: take more records")
    return Labels([every.names[i] for i in keep], every.y[:, keep], every.rows)


def _frame(
    config: PretrainConfig, cohort: Cohort, objective: str, probe: list["_Fit"], labels: Labels, split: Split
) -> pd.DataFrame:
    key, record_id, frames = _key(config, objective), cohort.records["record_id"].to_numpy(), []
    for i, fit in enumerate(probe):
        for part, rows, score in (("validation", split.val, fit.validation), ("test", split.test, fit.test)):
            about = {"task": labels.names[i], "split": split.name, "record_id": record_id[rows], "y": labels.y[rows, i]}
            columns = {**key, "part": part, **about, "score": score, "threshold": np.float32(fit.threshold)}
            frames.append(pd.DataFrame(columns).astype({"y": np.int8}))
    return pd.concat(frames, ignore_index=True)


def _key(config: PretrainConfig, objective: str) -> dict:
    trained = objective not in (UNTRAINED, STATISTICS)
    return {
        "cohort": config.cohort.name,
        "protocol": "sound",
        "encoder": config.encoder,
        "weights": "ssl-folds" if trained else "random",
        "objective": objective,
        "pooling": "own",
        "head": "logistic",
        "strategy": "frozen",
        "leads": "12",
        "fraction": np.float32(1),
        "seed": np.int16(config.seeds[0]),
        "contaminated": "no",
    }


@dataclass(frozen=True)
class _Fit:
    """A head's threshold, and its scores of the validation and test records."""

    threshold: float
    validation: np.ndarray
    test: np.ndarray


def _probe(
    config: PretrainConfig, corpus: Corpus, objective: str, file: Path | None, y: np.ndarray, split: Split
) -> list[_Fit]:
    """One head per task."""
    with alone():
        encoder = models.load(config.encoder, file or "random", config.seeds[0])
        if objective == STATISTICS:
            take_statistics(encoder, corpus.x, corpus.rows)
        x, fits = embeddings(encoder, corpus.x), []
        for task in y.T:
            head = fit_head("logistic", x, task, split)
            validation, test = (head.score(x[rows]).astype(np.float32) for rows in (split.val, split.test))
            fits.append(_Fit(head.threshold, validation, test))
    return fits


@torch.inference_mode()
def embeddings(encoder: Encoder, x: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """(n, n_leads, n_samples) model-ready input to the encoder's own embeddings, (n, dim) float32."""
    parts = [encoder.embed(torch.from_numpy(np.array(x[i : i + batch_size]))) for i in range(0, len(x), batch_size)]
    return torch.cat(parts).float().numpy()


def score_table(cohort: Cohort, compared: Compared) -> pd.DataFrame:
    """AUROC of every objective on the validation and test records, and test differences to the untrained twin.

    Returns
    -------
    DataFrame
        Tidy, with 95 % intervals over patients. Rows with `comparator` hold paired differences of the average over
        superclasses, Holm-adjusted over the objectives. `chosen` marks the objective with the highest average on the
        validation records.
    """
    patients = cohort.records.set_index("record_id")["patient_id"]
    macros = {MACRO: SUPERCLASSES}
    parts = []
    for part, frame in compared.predicted.groupby("part", sort=False):
        scores = evaluate(frame.drop(columns="part"), patients, metrics=["auroc"], macros=macros)
        parts.append(scores.assign(part=part))
    test = compared.predicted[compared.predicted["part"] == "test"].drop(columns="part")
    twin = {"weights": "random", "objective": UNTRAINED}
    differences = compare(test, twin, patients, macros=macros, per_task=False)
    table = pd.concat([*parts, differences.assign(part="test", comparator="untrained")], ignore_index=True)
    table = table.assign(chosen=table["objective"] == chosen(table))
    columns = [name for name in differences if name not in _UNSAID]
    return table[[*columns[: columns.index("task")], "part", *columns[columns.index("task") :], "chosen"]]


def chosen(table: pd.DataFrame) -> str:
    """The objective with the highest average over superclasses on the validation records; the first of equals."""
    found = _macro(table, "validation").drop(index=[UNTRAINED, STATISTICS])["value"]
    return str(found.idxmax()) if found.notna().any() else str(found.index[0])


def _macro(table: pd.DataFrame, part: str) -> pd.DataFrame:
    rows = (table["task"] == MACRO) & (table["part"] == part) & table["comparator"].isna()
    return table[rows].set_index("objective")


def main_rows(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Averages over superclasses on the `validation` or `test` records, one row per objective, with its `label`."""
    return _macro(table, part).reset_index().assign(label=lambda rows: rows["objective"].replace(_LABELS))


def view(table: pd.DataFrame) -> pd.DataFrame:
    """The averages as a paper prints them, a row per objective."""
    validation, test = main_rows(table, "validation"), main_rows(table, "test")
    differences = table[table["comparator"].notna()].set_index("objective").reindex(test["objective"])
    scores = [f"{row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]" for row in test.itertuples()]
    against = [
        "" if pd.isna(row.value) else f"{row.value:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}], p = {row.p_holm:.2g}"
        for row in differences.itertuples()
    ]
    columns = [validation["value"].map("{:.3f}".format), scores, against, np.where(validation["chosen"], "yes", "")]
    return pd.DataFrame(dict(zip(_VIEW, columns, strict=True))).set_index(pd.Index(test["label"], name=None))


def cost_file(config: PretrainConfig) -> Path:
    """Where measured times go: beside the stage's other timings in a pipeline run, else with its interactive output."""
    in_pipeline = os.environ.get(paths.STAGE) == config.stage
    return (paths.resources(config.profile) if in_pipeline else config.output) / "families_cost.csv"


def save_cost(config: PretrainConfig, compared: Compared) -> None:
    """Write `families_cost.csv`: wall and processor seconds of each training, one thread each. It is never hashed."""
    machine = resources.machine()
    table = compared.cost.assign(epochs=config.families_epochs, cpu=machine["cpu"], cores=machine["cores"])
    with atomic(cost_file(config)) as part:
        table.round(1).to_csv(part, index=False, lineterminator="\n")


def cost_table(profile: str) -> pd.DataFrame:
    """What `save_cost` of the profile's pipeline run wrote.

    Raises
    ------
    CureError
        If stage `pretrain` of the profile has compared no objectives.
    """
    file = paths.resources(profile) / "families_cost.csv"
    if not file.is_file():
        raise CureError(f"no measured times of profile {profile}: `make repro PROFILE={profile}` measures them")
    return pd.read_csv(file)

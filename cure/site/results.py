"""The findings in full: the report's prose and main tables, section by section."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from cure import analyses, config, findings, finetune_tables, lead_cost, paths, tables
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES
from cure.settings.report import ReportConfig
from cure.site import markup


@dataclass(frozen=True)
class Section:
    """One section of the page; `html` is empty where a stage that it needs has not run."""

    key: str
    title: str
    html: str
    why_not: str = ""


class Writer:
    """Turns the report's prose into HTML, and what cannot be said yet into a note.

    Parameters
    ----------
    report : ReportConfig
        Settings of stage `report`.
    pages : set of str
        Pages that the site has.
    missing : list of str
        Stages that have not run. Where there are none, a table that is not there is an error.
    """

    def __init__(self, report: ReportConfig, pages: set[str], missing: list[str]) -> None:
        self.report, self.pages, self.missing = report, pages, missing

    def section(self, key: str, title: str, make: Callable[[], str]) -> Section:
        """One section, or the reason why it cannot be written."""
        try:
            return Section(key, title, make())
        except CureError as error:
            if not self.missing:
                raise
            return Section(key, title, "", str(error))

    def prose(self, say: Callable[[ReportConfig], str], label: str) -> str:
        """Markdown that a function of the report says."""
        return markup.markdown(say(self.report), self.report.profile, self.pages, label)


def studied(writer: Writer) -> Section:
    """Who was studied."""
    return writer.section("studied", "Who was studied", lambda: writer.prose(findings.studied, "Cohort"))


def scores(writer: Writer) -> Section:
    """The main scores in one paragraph."""
    return writer.section("scores", "The scores behind it", lambda: writer.prose(findings.main_scores, "Scores"))


def limits(writer: Writer) -> Section:
    """What the results do not show."""
    return writer.section("limits", "Limits", lambda: writer.prose(findings.limits, "Limits"))


def sections(writer: Writer) -> list[Section]:
    """All sections of the page, in the order of the study."""
    name = findings.METRIC_NAMES[writer.report.metric]
    prose: list[tuple[str, str, Callable[[ReportConfig], str]]] = [
        ("pretraining", "What pre-training adds to a random network", findings.pretraining),
        ("comparison", "Frozen encoders against hand-crafted features", findings.comparison),
        ("finetuning", "Is it worth training the encoder too?", findings.finetuning),
        ("efficiency", "With how few labels?", analyses.efficiency),
        ("posttraining", "Is there a better way to train it?", analyses.posttraining),
        ("leads", "One encoder for any leads, cheaper with fewer", analyses.fewer_leads),
        ("protocols", "What the way of scoring alone is worth", analyses.protocols),
        ("ablations", "Which choices matter, and for whom", analyses.ablations),
        ("transfer", "On another cohort", analyses.transfer),
        ("structure", "How records lie in each representation", findings.structure),
        ("probes", "What a representation holds", analyses.probes),
        ("explanation", "What a head on the pre-trained encoder rests on", findings.explanation),
        ("faithful", "Do attributions name what moves the model?", analyses.faithful),
        ("null", "What chance can do", findings.null),
    ]
    return [
        writer.section("cohort", "Who is in the cohort", lambda: _cohort(writer.report.profile)),
        writer.section("scoring", "How it is scored", lambda: _scoring(writer.report.profile)),
        writer.section("main-table", f"Main table: encoder x head x task, {name}", lambda: _main(writer)),
        *(writer.section(key, title, partial(writer.prose, say, title)) for key, title, say in prose),
        writer.section("groups", f"Label groups, macro {name}", lambda: _groups(writer.report)),
    ]


def _cohort(profile: str) -> str:
    view = tables.cohort_view(tables.read(paths.stage(profile, "prepare"), "cohort"))
    return markup.table(view.rename_axis("").reset_index(), "Cohort")


def _scoring(profile: str) -> str:
    study = config.load(profile)
    folds = {
        "official": "Folds 1 to 8 train, fold 9 chooses, fold 10 is scored once.",
        "rotate": "Five outer splits of two folds rotate; every record has one prediction, by a head that saw neither "
        "it nor its patient.",
    }[study.cohort.split]
    draws = config.parameters("heads", profile)["n_draws"]
    return (
        f"<p>Splits are by patient. {folds} Regularisation and stopping are chosen on validation folds by log loss, "
        f"thresholds by F1. Intervals: 95 %, {draws:,} bootstrap draws over patients, paired between methods; Holm's "
        f"correction runs over a whole table. Below {MIN_POSITIVES} positive test records a number has no interval and "
        "enters no average. AUROC is the main metric because it depends on neither prevalence nor a threshold.</p>"
    )


def _main(writer: Writer) -> str:
    table = findings.main_table(writer.report).rename_axis(columns=None).reset_index()
    names = findings.titles(writer.report)
    meaning = "; ".join(f"<b>{code}</b> {title}" for code, title in names.items())
    return (
        writer.prose(findings.main_result, "Main result")
        + markup.table(table, "Main table", row_headers=3)
        + f'<p class="note">Value [95 % interval]. Random encoders are averaged over initialisations inside each draw. '
        f"In parentheses, without interval: fewer than {MIN_POSITIVES} positive test records; such a score enters no "
        f"average. <b>macro</b>: mean of all tasks with support; <b>macro-super</b>: of the five superclasses. "
        f"{meaning}.</p>" + writer.prose(findings.marks, "Marks")
    )


def _groups(report: ReportConfig) -> str:
    table = findings.groups(report).reset_index()
    return '<p class="note">Logistic head, mean pooling, one seed.</p>' + markup.table(table, "Label groups")


def measured(profile: str) -> list[tuple[str, str]]:
    """Name and table of every other file of measured costs that stages left beside their timings.

    They differ from run to run, so they are in no published table.
    """
    known = {"leads_cost": lead_cost.cost_table}
    found = []
    for file in sorted(paths.resources(profile).glob("*.csv")):
        if file.stem != "finetune_cost":  # see `strategies`
            table = known[file.stem](profile).round(1) if file.stem in known else pd.read_csv(file)
            found.append((file.stem, markup.table(table, file.stem.replace("_", " "))))
    return found


def strategies(profile: str, folder: Path) -> str:
    """What fine-tuning and its alternatives cost; empty where that was not measured."""
    if not (folder / "finetune_sizes.csv").is_file() or not (paths.resources(profile) / "finetune_cost.csv").is_file():
        return ""
    table = finetune_tables.cost_table(profile)
    shown = {
        "label": "strategy",
        "trainable": "trainable parameters",
        "records_seen": "records seen",
        "seconds": "seconds per split, one thread",
        "peak_mb": "peak memory above start (MB)",
        "cpu": "processor",
    }
    whole = dict.fromkeys(("trainable parameters", "records seen"), int)
    view: pd.DataFrame = table[list(shown)].rename(columns=shown).round(0).astype(whole)
    return markup.table(view, "Cost of strategies")

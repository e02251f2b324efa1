"""Data cards and model cards: what the records and the models are, their licences, and what pre-training has seen."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import pandas as pd
import yaml

from cure import catalogue, config

_FIELDS = {
    "people": "source",
    "collected": "collected",
    "labels": "labels",
    "licence": "licence",
    "cite": "cite",
    "consent": "consent and privacy",
    "here": "in this study",
}


@dataclass(frozen=True)
class Card:
    """A card: facts as pairs of name and text, and an address for more."""

    key: str
    title: str
    facts: list[tuple[str, str]]
    home: str = ""


@cache
def _sources() -> dict[str, dict[str, str]]:
    return yaml.safe_load(resources.files("cure").joinpath("templates/data_cards.yaml").read_text(encoding="utf-8"))


def data(profile: str, tables: Path) -> list[Card]:
    """A card for every cohort of a profile, with the counts of its tables where these are there."""
    study = config.load(profile)
    found = []
    for cohort in (study.cohort, study.external):
        if cohort is None:
            continue
        about = _sources()[cohort.source]
        facts = [("studied", cohort.title), *_counts(tables, cohort.name)]
        facts += [
            ("split", "official folds" if cohort.split == "official" else "five outer splits of two folds, by patient")
        ]
        facts += [(said, about[key]) for key, said in _FIELDS.items() if about[key]]
        found.append(Card(cohort.name, about["name"], facts, about["home"]))
    return found


def _counts(tables: Path, cohort: str) -> list[tuple[str, str]]:
    file = tables / "cohort.csv"
    if not file.is_file():
        return []
    table = pd.read_csv(file)
    table = table[(table["cohort"] == cohort) & (table["part"] == "all")]
    value = table[table["task"].isna()].set_index("variable")["value"]
    if "records" not in value:
        return []
    positives = table[table["variable"] == "prevalence"]
    said = [("records", f"{value['records']:,.0f} records of {value['patients']:,.0f} patients")]
    said += [("age", f"median {value['age_median']:.0f} years; {100 * value['female']:.0f} % female")]
    said += [("positives", ", ".join(f"{row.task} {row.n_pos:,.0f}" for row in positives.itertuples()))]
    excluded = {str(name): count for name, count in value.items() if str(name).startswith("excluded")}
    said += [(name, f"{count:,.0f}") for name, count in excluded.items()]
    return said


def models() -> list[Card]:
    """A card for every model of the catalogue."""
    found = []
    for name, one in catalogue.catalogue().items():
        sizes = f"{one.parameters / 1e6:.1f} M parameters" if one.parameters else "size not known"
        window = (
            f"{one.leads} {'lead' if one.leads == 1 else 'leads'}, {one.seconds:g} s at {one.fs} Hz"
            if one.leads and one.seconds and one.fs
            else ""
        )
        seen = [
            f"{cohort}: {answer.seen}" + (f" [{answer.grade}]" if answer.grade else "")
            for cohort, answer in one.contamination.items()
        ]
        facts = {
            "runs here": f"yes, as `{name}`" if one.runnable else "no",
            "architecture": ", ".join(filter(None, [one.family, sizes])),
            "input": window,
            "pre-training": ", ".join(filter(None, [one.objective, f"on {', '.join(one.data)}" if one.data else ""])),
            "licence of the weights": one.licence_weights or "not known",
            "licence of the code": one.licence_code or "not known",
            "what pre-training saw": "; ".join(seen),
            "evidence": f"{one.evidence}: {catalogue.GRADES[one.evidence]}",
            "notes": one.notes,
        }
        if one.non_commercial and "non-commercial" not in facts["licence of the weights"]:
            facts["licence of the weights"] += " (non-commercial use only)"
        home = str(one.home.page) if one.home else str(one.repository or "")
        found.append(Card(name, one.title, [(key, text) for key, text in facts.items() if text], home))
    return found


def _labels_used(weights: str) -> str:
    if weights.startswith("ssl-simulated"):
        return (
            "none of a record; but the simulator's average waves were fitted to class averages of PTB-XL's oldest "
            "records, so their labels reach these weights indirectly"
        )
    return "none: pre-trained without labels"


def own(profile: str, tables: Path) -> list[Card]:
    """A card for every set of weights that the study made itself; none where stage pretrain has not run."""
    file = tables / "weights.csv"
    if not file.is_file():
        return []
    table = pd.read_csv(file, dtype=str)
    table = table.assign(name=table["weights"].str.split("/").str[0])
    settings = config.parameters("pretrain", profile)
    found = []
    for name, rows in table.groupby("name", sort=False):
        facts = [
            ("architecture", f"{settings['encoder']}, {int(rows['parameters'].iloc[0]) / 1e6:.1f} M parameters"),
            ("has seen", "; ".join(rows["has_seen"].unique())),
            ("files", ", ".join(f"{row.weights.split('/')[-1]} (SHA-256 {row.sha256}…)" for row in rows.itertuples())),
            ("labels used", _labels_used(str(name))),
            ("licence", "MIT, like the code; made from the records named above"),
            ("intended use", "research on representations; not for use in care"),
            ("made by", f"`cure run pretrain --profile {profile}`"),
        ]
        found.append(Card(str(name), str(name), facts))
    return found

"""One ECG, and what the study made that can be used on it: for stage `quickstart`.

Nothing is fitted here. Encoder, embeddings and heads are those that earlier stages kept, of one outer split: the
official one, or the first where folds rotate. A test record of that split is new to all of them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cure import config, embed, kept
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.kept import Kept
from cure.models import Encoder
from cure.own import quality
from cure.own.encode import Runner, notes
from cure.own.find import find
from cure.own.readers import load
from cure.own.record import Given, Record
from cure.settings.quickstart import QuickstartConfig
from cure.signals import LEADS
from cure.splits import Split, make_splits

#: Seconds that a drawing on paper shows.
SECONDS = 10.0
#: Stages that make what this one reads.
_NEEDED = ("download", "prepare", "pretrain", "embed", "heads")


@dataclass(frozen=True)
class Study:
    """What earlier stages made of a cohort, opened for use on one more record.

    Attributes
    ----------
    config : QuickstartConfig
    cohort : Cohort
    split : Split
        The one that the heads were fitted on.
    encoder : Encoder
    heads : dict of str to Kept
        By task.
    z : (n_records, dim) float32 array
        Mean-pooled embeddings of the cohort by this encoder.
    """

    config: QuickstartConfig
    cohort: Cohort
    split: Split
    encoder: Encoder
    heads: dict[str, Kept]
    z: np.ndarray

    @property
    def model(self) -> str:
        """What captions call encoder and weights."""
        return f"{self.config.encoder} ({self.config.weights})"


@dataclass(frozen=True)
class Recording:
    """One ECG.

    Attributes
    ----------
    name : str
        What captions call it.
    record : Record
        Twelve leads in mV, in CURE's order, one that was not recorded is 0; rate, notes and quality flags.
    row : int or None
        Position in the cohort; None for a record from elsewhere.
    about : str
        Where it comes from and what is known of it, as Markdown.
    """

    name: str
    record: Record
    row: int | None
    about: str

    @property
    def fs(self) -> float:
        """Sampling rate in Hz."""
        return self.record.fs

    def on_paper(self) -> np.ndarray:
        """The first 10 s in mV, (12, n); a shorter record goes on as a flat line."""
        mv, n = self.record.x, round(SECONDS * self.fs)
        flat = np.repeat(np.median(mv, axis=1, keepdims=True), max(n - mv.shape[1], 0), axis=1)
        return np.concatenate([mv[:, :n], flat], axis=1)


def open_study(settings: QuickstartConfig) -> Study:
    """Open cohort, encoder, embeddings and kept heads of a profile.

    Raises
    ------
    CureError
        If the profile has not run as far as stage `heads`, has kept no such heads, or holds weights, embeddings and
        heads that do not belong together: says what to run.
    """
    profile, folder = settings.profile, kept.folder_of(settings.profile)
    if not (folder / kept.INDEX).is_file():
        raise CureError(_not_yet(profile))
    cohort = Cohort.open(settings.cohort_folder)
    every = kept.available(folder)
    mine = [one for one in every if one[0].startswith(f"{settings.encoder}-{settings.weights}-")]
    chosen = [one for one in mine if one[1] == settings.head]
    if not chosen:
        there = ", ".join(dict.fromkeys(f"{one} under {head}" for one, head, _ in every))
        raise CureError(
            f"profile '{profile}' has kept no {settings.head} heads of {settings.encoder} with weights "
            f"{settings.weights}; it has {there}: choose `encoder`, `weights` and `head` among them"
        )
    heads = {one[2]: kept.load(folder, *one) for one in chosen}
    if settings.task not in heads:
        raise CureError(f"no head was kept for task {settings.task!r}: choose from {', '.join(heads)}")
    card = heads[settings.task].card
    (split,) = (one for one in make_splits(cohort.records, settings.cohort.split) if one.name == card.split)
    one = Representation(card.encoder, card.weights, card.seed)
    encoder = embed.load_encoder(settings, one, split, cohort)
    hashes = {card.weights_sha256, encoder.weights_sha256(), embed.read_sha256(settings, one, split)}
    if len(hashes) > 1:
        raise CureError(
            f"weights, embeddings and heads of {one.folder} are of different runs: `make repro PROFILE={profile}` "
            "brings them in line"
        )
    return Study(settings, cohort, split, encoder, heads, embed.read_split(settings, one, "mean", cohort, split))


def _not_yet(profile: str) -> str:
    """What to do where a profile's heads are not there."""
    ready = [name for name in config.profiles() if (kept.folder_of(name) / kept.INDEX).is_file()]
    instead = f" Profiles with heads here, for `profile`: {', '.join(ready)}." if ready else ""
    return (
        f"profile '{profile}' has no kept heads here: `make repro PROFILE={profile}` makes everything; what this "
        f"notebook needs, `cure clean` and then `cure run STAGE --profile {profile}` for the stages "
        f"{', '.join(_NEEDED)}.{instead}"
    )


def record(study: Study) -> Recording:
    """The ECG that the settings name: a file of the reader's own, a record of the cohort, or the default one.

    Raises
    ------
    CureError
        For a file that cannot be read, a record that the cohort does not hold, or both at once.
    """
    settings = study.config
    if settings.path is not None:
        if settings.record_id is not None:
            raise CureError("`path` and `record_id` are both set: leave one of them at None")
        return own(study, Path(settings.path).expanduser())
    ids = study.cohort.records["record_id"]
    if settings.record_id is None:
        return of_cohort(study, first_listing(study))
    found = np.flatnonzero(ids.astype(str) == str(settings.record_id))
    if not len(found):
        raise CureError(
            f"cohort '{study.cohort.name}' has no record {settings.record_id}: it has {len(ids)}, from {ids.iloc[0]} "
            f"to {ids.iloc[-1]}; some numbers are missing"
        )
    return of_cohort(study, int(found[0]))


def first_listing(study: Study) -> int:
    """Row of the first test record that lists the task; of the first test record where none does."""
    labels, test = study.cohort.binary(), np.sort(study.split.test)
    listed = labels.y[test, labels.names.index(study.config.task)]
    return int(test[listed.argmax()])


def of_cohort(study: Study, row: int) -> Recording:
    """One record of the cohort, at the rate that the encoder reads it at; its valid samples only."""
    cohort, spec = study.cohort, study.encoder.input_spec
    fs = int(spec.source_rates(cohort, np.array([row]))[0])
    one, ratio = cohort.records.iloc[row], fs / cohort.rates[0]
    start, n_valid = round(one["start"] * ratio), round(one["n_valid"] * ratio)
    mv = cohort.signals(np.array([row]), fs)[0][:, start : start + n_valid]
    seen = {
        "test": "a test record: new to encoder and heads",
        "validation": "a validation record: the heads were chosen and calibrated on it",
        "training": "a training record: encoder or heads have seen it, so its prediction is no test",
    }
    age = "age masked" if pd.isna(one["age"]) else f"{one['age']:.0f} years"
    known = f"{age}, {one['sex']}; lists {', '.join(one['labels']) or 'nothing'}; {seen[part_of(study, row)]}"
    title = study.config.cohort.title
    return _looked_at(study, f"record {one['record_id']}", mv, fs, row, f"{title[:1].upper()}{title[1:]}: {known}.")


def own(study: Study, path: Path) -> Recording:
    """One file of the reader's own, in any format that `cure.own.find` knows.

    Raises
    ------
    CureError
        If it is not there, holds several records, or cannot be used: says why.
    """
    items = find([path])
    if len(items) > 1:
        raise CureError(f"{path} holds {len(items)} records, the first is {items[0].name}: name one file")
    given = Given(**study.config.given.model_dump())
    (found,) = load(items, given, _needed(study.encoder))
    if isinstance(found, str):
        raise CureError(f"{path} cannot be used: {found}. Options (--rate, ...) go into `given`: {{'rate': 500}}")
    recorded = ", ".join(lead for lead, there in zip(LEADS, found.present, strict=True) if there)
    about = f"{found.seconds:.1f} s at {found.fs:g} Hz; recorded: {recorded}."
    return _described(study, Recording(path.name, found, None, about))


def _looked_at(study: Study, name: str, mv: np.ndarray, fs: int, row: int, about: str) -> Recording:
    present = np.ptp(mv, axis=1) > 0
    record = Record(mv, float(fs), present, np.zeros(len(LEADS), bool))
    quality.flag([record], _needed(study.encoder))
    return _described(study, Recording(name, record, row, about))


def _described(study: Study, ecg: Recording) -> Recording:
    """Add to what is known of a record what was done to it and what is wrong with it as a signal."""
    done = [*ecg.record.notes, *notes(study.encoder.input_spec, ecg.record)]
    said = [f"Input: {'; '.join(done)}."] if done else []
    said += [f"**{flag}**: {quality.FLAGS[flag]}." for flag in ecg.record.quality]
    return replace(ecg, about=" ".join([ecg.about, *said]))


def _needed(encoder: Encoder) -> tuple[int, ...]:
    return tuple(LEADS.index(lead) for lead in encoder.input_spec.leads)


def part_of(study: Study, row: int) -> str:
    """Which part of the heads' split a record of the cohort is in."""
    parts = {"test": study.split.test, "validation": study.split.val, "training": study.split.train}
    return next(name for name, rows in parts.items() if row in rows)


def embedded(study: Study, ecg: Recording) -> np.ndarray:
    """Mean-pooled embedding of one record, (dim,) float32, as stage `embed` makes those of the cohort.

    Raises
    ------
    CureError
        If the encoder cannot take the record.
    """
    (z,) = Runner(study.encoder, "mean")([ecg.record])
    if isinstance(z, str):
        raise CureError(f"{ecg.name} cannot be embedded: {z}")
    return z

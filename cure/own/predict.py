"""`cure predict`: a kept head on a user's own ECGs, with how far to trust it. Never for clinical use."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cure import config, embed, kept, models, paths
from cure.errors import CureError
from cure.features import ecg_features
from cure.kept import Kept
from cure.models import Encoder
from cure.own.embed import How, lead_positions
from cure.own.encode import Runner, notes, resample
from cure.own.find import Item
from cure.own.names import shown
from cure.own.record import Given, Record
from cure.own.stream import Job, Summary, run
from cure.signals import LEADS

#: What every row says.
NOTE = "Research only: not for clinical use."
#: Columns behind those of `cure.own.stream.COLUMNS`.
COLUMNS = {
    "task": pa.string(),
    "title": pa.string(),
    "probability": pa.float64(),
    "lo": pa.float64(),
    "hi": pa.float64(),
    "threshold": pa.float64(),
    "positive": pa.bool_(),
    "val_auroc": pa.float64(),
    "val_auroc_lo": pa.float64(),
    "val_auroc_hi": pa.float64(),
    "val_n": pa.int64(),
    "val_n_pos": pa.int64(),
    "profile": pa.string(),
    "representation": pa.string(),
    "head": pa.string(),
    "weights_sha256": pa.string(),
    "warning": pa.string(),
    "note": pa.string(),
}
#: One representation per record, or the reason why there is none.
Represent = Callable[[Sequence[Record]], list[np.ndarray | str]]


def find_head(task: str, profile: str, head: str | None = None, representation: str | None = None) -> tuple[str, Kept]:
    """A kept head of a task and the name of its representation: the first that fits, in the order they were kept.

    That order is a rule and no choice by scores: the profile's own encoder before published ones before hand-crafted
    features, logistic before XGBoost.

    Raises
    ------
    CureError
        If there is none: says which tasks, representations and heads there are, or how to make them.
    """
    config.load(profile)
    folder = kept.folder_of(profile)
    there = kept.available(folder)
    tasks = list(dict.fromkeys(one for _, _, one in there))
    if task not in tasks:
        raise CureError(f"no kept head of task {task!r} in profile {profile}: --task takes {', '.join(tasks)}")
    fits = [one for one in there if one[2] == task and head in (None, one[1]) and representation in (None, one[0])]
    if not fits:
        names = ", ".join(f"--representation {one} --head {name}" for one, name, last in there if last == task)
        raise CureError(f"no such head of task {task} in profile {profile}: there are {names}")
    return fits[0][0], kept.load(folder, *fits[0])


def predict(
    items: list[Item], given: Given, out: Path, *, representation: str, one: Kept, how: How | None = None
) -> Summary:
    """Predict one task for records, into a CSV or Parquet file.

    Parameters
    ----------
    items : list of Item
        See `cure.own.find.find`.
    given : Given
        What their files do not say.
    out : Path
        Columns: those of `cure.own.stream.COLUMNS` and of `COLUMNS`: the calibrated `probability` with the interval
        `lo, hi` of its calibration, the validation `threshold` and whether it is reached (`positive`), the head's AUROC
        on its validation records with its interval, `warning` (what makes this record or this head doubtful), and a
        `note` that this is not for clinical use. `error` says why a record has no probability.
    representation, one : str, Kept
        See `find_head`.
    how : How, optional

    Raises
    ------
    CureError
        If the head's encoder is not here or another than it was fitted on, or for what `cure.own.stream.run` says.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise CureError(f"--out {out}: predictions go to a .csv or .parquet file")
    how = how or How()
    card = one.card
    if card.encoder == embed.FEATURES:
        represent, needed = _features(card.columns or [], card.input_spec["fs"]), tuple(range(len(LEADS)))
        doubts: Callable[[Record], list[str]] = lambda _: []  # noqa: E731
    else:
        encoder = _encoder(one)
        spec = encoder.input_spec
        represent = Runner(encoder.to(how.device), card.pooling, how.batch_size, how.threads, how.device)
        needed, doubts = lead_positions(spec), lambda record: notes(spec, record)

    general = [text.rstrip(".") for text in card.notes[1:]]

    def work(records: list[Record]) -> list[Mapping[str, Any] | str]:
        vectors = represent(records)
        good = [i for i, vector in enumerate(vectors) if not isinstance(vector, str)]
        rows: list[Mapping[str, Any] | str] = [vector if isinstance(vector, str) else {} for vector in vectors]
        if not good:
            return rows
        x = np.stack([np.asarray(vectors[i], np.float32) for i in good])
        (lo, hi), p, far = one.interval(x), one.probability(x), one.unusual(x)
        for k, i in enumerate(good):
            said = [*_doubts(records[i], needed, bool(far[k])), *doubts(records[i]), *general]
            row = {"probability": p[k], "lo": lo[k], "hi": hi[k], "positive": bool(p[k] >= one.threshold)}
            rows[i] = {**row, "warning": "; ".join(said)}
        return rows

    about: dict[str, Any] = {
        "task": card.task,
        "profile": card.profile,
        "representation": representation,
        "head": card.head,
    }
    about |= {"weights_sha256": card.weights_sha256, "head_files": card.files, "batch": how.batch_size, "note": NOTE}
    job = Job(
        items,
        given,
        needed,
        work,
        COLUMNS,
        _about(representation, one),
        about,
        out,
        f"predict {card.task}",
        how.workers,
    )
    return run(job, restart=how.restart)


def _doubts(record: Record, needed: tuple[int, ...], far: bool) -> list[str]:
    """What makes one record's probability doubtful."""
    missing = [lead for lead in needed if not (record.present | record.derived)[lead]]
    said = [f"{shown(missing)} missing: the head was fitted on records that have them"] if missing else []
    said += [flag for flag in record.quality if flag != "missing-leads"]
    return said + (["unlike the training records: farther off than 99 % of validation records"] if far else [])


def _about(representation: str, one: Kept) -> dict[str, Any]:
    """What is the same in every row."""
    card = one.card
    auroc = next(score for score in card.scores if score.metric == "auroc")
    return {
        "task": card.task,
        "title": card.title,
        "threshold": one.threshold,
        "val_auroc": auroc.value,
        "val_auroc_lo": auroc.lo,
        "val_auroc_hi": auroc.hi,
        "val_n": card.val.n,
        "val_n_pos": card.val.n_pos,
        "profile": card.profile,
        "representation": representation,
        "head": card.head,
        "weights_sha256": card.weights_sha256,
        "note": NOTE,
    }


def _encoder(one: Kept) -> Encoder:
    """The encoder that a head was fitted on, checked to be that."""
    card = one.card
    source = embed.HUB if card.weights_file is None else paths.weights(card.profile) / card.weights_file
    encoder = models.load(card.encoder, source, card.seed)
    again = f"`make repro PROFILE={card.profile}` makes both anew"
    if encoder.weights_sha256() != card.weights_sha256:
        raise CureError(f"the weights of {card.encoder} ({card.weights}) are not those its head was fitted on: {again}")
    if encoder.input_spec.as_dict() != card.input_spec:
        raise CureError(f"{card.encoder} reads its input otherwise than when its head was fitted: {again}")
    return encoder


def _features(columns: list[str], fs: int) -> Represent:
    """Hand-crafted features, measured at the rate that the head's were; a record that cannot be measured is refused."""

    def measure(records: Sequence[Record]) -> list[np.ndarray | str]:
        found: list[np.ndarray | str] = []
        for record in records:
            x, rate = record.x[None], record.fs
            if rate > fs:
                x, rate = resample(x, rate, fs), float(fs)
            try:
                row = ecg_features(x, rate, n_jobs=1)[columns].to_numpy()[0]
            except ValueError as error:
                found.append(f"cannot be measured: {error}")
                continue
            found.append("no median beat can be measured" if np.isnan(row).all() else row)
        return found

    return measure

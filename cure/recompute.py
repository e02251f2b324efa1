"""Tables made again from published predictions, by the notebooks' own lines, and compared with the published tables.

What a stage's notebook does between its predictions and a table is run as it stands (`cure.replay`). Values and counts
need no bootstrap: without one they take seconds, and patients need not be known. Whole tables, intervals included, take
minutes and the cohort's store, which says whose record is whose.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from cure import config, paths, replay
from cure.cohorts.base import RECORD_COLUMNS, Cohort
from cure.errors import CureError
from cure.progress import progress
from cure.tasks import Labels

#: Fewest draws that a configuration allows, and how many are taken where only values are compared: all of them in stage
#: transfer, which makes room for the number that it asked for.
_LEAST, _TAKEN = 100, {"transfer": 100}
#: Largest relative difference that passes: tables hold six significant digits, and sums differ in the last bits between
#: processors.
TOLERANCE = 1e-5
#: Columns that only draws, or only the patients of records, decide.
_DRAWN = frozenset({"lo", "hi", "p", "p_holm", "n_undefined"})
_OF_PATIENTS = frozenset({"n_patients", "n_pos_patients", "n_patients_comparator", "n_train_reference"})
#: Numbers that name a row rather than being its result.
_NAMING = frozenset({"fraction", "k", "bin"})
_FAMILIES = "_families.score_table(cohort, _families.Compared(_predicted('families'), None, None))"
#: Metrics that are shares of draws.
_DRAWN_METRICS = ("p_best",)


class Result(NamedTuple):
    """What became of one table: `problem` is empty where it follows; `skipped` says why it was not made again."""

    stage: str
    table: str
    rows: int
    problem: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class _Records(Cohort):
    """A stand-in for a cohort whose store is not here: the records that were predicted, each a patient of their own."""

    labels: Labels | None = None

    def binary(self) -> Labels:
        if self.labels is None:
            raise CureError("the cohort's store is not here, and no predictions of its binary tasks")
        return self.labels


class Published:
    """Predictions and tables of one profile, read once.

    Parameters
    ----------
    profile : str
    tables, predictions : Path, optional
        Folders; by default `tables/<profile>` and `results/predictions/<profile>`.
    """

    def __init__(self, profile: str, tables: Path | None = None, predictions: Path | None = None) -> None:
        self.profile = profile
        self.tables = tables or paths.root() / "tables" / profile
        self.predictions = predictions or paths.root() / "results" / "predictions" / profile
        self._last: tuple[str, pd.DataFrame] | None = None

    def table(self, name: str) -> pd.DataFrame:
        """A published table.

        Raises
        ------
        ValueError
            If it is not there or empty.
        """
        file = self.tables / f"{name}.csv"
        if not file.is_file():
            raise ValueError(f"{name}.csv is not among the published tables")
        return pd.read_csv(file, low_memory=False)

    def predicted(self, name: str) -> pd.DataFrame:
        """Predictions of one kind, of all encoders.

        Raises
        ------
        ValueError
            If there are none, or a file cannot be read.
        """
        if self._last is None or self._last[0] != name:
            files = sorted(self.predictions.glob(f"{name}-*.parquet"))
            if not files:
                raise ValueError(f"no predictions {name}-*.parquet are published")
            frames = []
            for file in files:
                try:
                    frames.append(pd.read_parquet(file))
                except Exception as error:
                    raise ValueError(f"{file.name} cannot be read: {str(error).splitlines()[0]}") from error
            self._last = name, _together(frames)
        return self._last[1]

    def kinds(self) -> list[str]:
        """Kinds of predictions that are published."""
        return sorted({file.name.split("-")[0] for file in self.predictions.glob("*-*.parquet")})


def check(published: Published, stages: list[str] | None = None, *, whole: bool = False) -> Iterator[Result]:
    """Make every table again that follows from predictions, and compare it with the published one.

    Parameters
    ----------
    published : Published
    stages : list of str, optional
        By default all that have a notebook.
    whole : bool
        True: with intervals and tests, on all bootstrap draws. That takes minutes, and the cohort's store. False:
        values and counts only.

    Yields
    ------
    Result
    """
    cohort, known = _cohort(published)
    if whole and not known:
        raise CureError(
            f"intervals are over patients, and the cohort that knows them is not here: `cure run prepare --profile "
            f"{published.profile}` after `cure run download --profile {published.profile}`"
        )
    for stage in stages or list(config.STAGES):
        try:
            program = replay.program(stage, "predictions")
        except CureError:
            continue  # its notebook is not part of this version
        yield from _stage(published, program, cohort, known, whole)


def _stage(published: Published, program: replay.Program, cohort: Cohort, known: bool, whole: bool) -> Iterator[Result]:
    from cure.splits import Split, make_splits

    stage, profile = program.stage, published.profile
    names: dict[str, Any] = config.parameters(stage, profile)
    if not whole and "n_draws" in names:
        names["n_draws"] = _LEAST
    split = config.load(profile).cohort.split
    given: dict[str, Any] = {"_predicted": published.predicted, "cohort": cohort, **_special(published, stage)}
    nobody = np.array([], int)
    given["splits"] = make_splits(cohort.records, split) if known else [Split("unknown", nobody, nobody, nobody)]
    outputs = []
    if stage == "pretrain" and "families" in published.kinds():  # its notebook leaves the comparison to one function
        from cure import families

        given["_families"] = families
        outputs.append(replay.output("pretraining_families", _FAMILIES))
    outputs += [output for output in program.tables if follows(program, output, given)]
    ignored = set() if whole else set(_DRAWN)
    ignored |= set() if known else set(_OF_PATIENTS)
    with few_draws(None if whole else _TAKEN.get(stage, 2)):
        todo = program.run(outputs, names, given)
        for output, made, error in progress(todo, desc=f"tables of {stage}", total=len(outputs), unit="table"):
            yield _compared(published, stage, output.name, made, error, ignored, known)


def follows(program: replay.Program, output: replay.Output, given: dict[str, Any]) -> bool:
    """Whether a table is made from published predictions alone: without what lies before them, or running the study."""
    lines = program.needed(output, given)
    text = program.text(output, lines)
    used = replay.loads(output.made).union(*(replay.loads(program.lines[at]) for at in lines))
    from_files = "_predicted(" in text or bool(used & set(special_names(program.stage)))
    return from_files and not lines & program.origins and not any(call in text for call in replay.BEFORE)


def _compared(
    published: Published, stage: str, name: str, made: Any, error: Exception | None, ignored: set[str], known: bool
) -> Result:
    if not known and _about_records(error):
        return Result(stage, name, 0, skipped="needs what only the cohort's store holds")
    if error is not None:
        return Result(stage, name, 0, problem=f"cannot be made from the predictions: {error}")
    try:
        return Result(stage, name, len(made), problem=difference(published.table(name), made, ignored))
    except ValueError as fault:
        return Result(stage, name, 0, problem=str(fault))


def _about_records(error: Exception | None) -> bool:
    """Whether something failed because the stand-in for the cohort does not have it."""
    if isinstance(error, KeyError):
        return bool(set(map(str, error.args)) & set(RECORD_COLUMNS))
    return isinstance(error, CureError) and "cohort" in str(error)


def difference(published: pd.DataFrame, made: pd.DataFrame, ignored: set[str] | frozenset[str] = frozenset()) -> str:
    """How a table differs from the one made again; empty where it does not. The order of rows does not count.

    Parameters
    ----------
    published : DataFrame
        As read from its CSV file.
    made : DataFrame
        Before it was written.
    ignored : set of str
        Columns that are not compared.
    """
    made = pd.read_csv(io.StringIO(made.to_csv(index=False, float_format="%.6g")), low_memory=False)
    if list(published) != list(made):
        odd = sorted(set(published) ^ set(made)) or "their order"
        return f"other columns than the predictions give: {odd}"
    bounds = ("_lo", "_hi") if "lo" in ignored else ()
    keep = [name for name in made if name not in ignored and not name.endswith(bounds)]
    old, new = published[keep], made[keep]
    if "metric" in keep and ignored:
        old, new = (t[~t["metric"].isin(_DRAWN_METRICS)] for t in (old, new))
    naming = [name for name in keep if _names(name, old[name], new[name])]
    about = _codes(old, new, naming)
    order = [np.argsort(each, kind="stable") for each in about]
    (old, first), (new, second) = ((t.iloc[o], a[o]) for t, o, a in zip((old, new), order, about, strict=True))
    if not np.array_equal(first, second):
        extra, missing = np.setdiff1d(first, second), np.setdiff1d(second, first)
        if len(extra) + len(missing):
            table, key, one = (old, first, extra[0]) if len(extra) else (new, second, missing[0])
            said = _said(table.iloc[int(np.argmax(key == one))], naming)
            return f"{len(extra)} rows that the predictions do not give, {len(missing)} missing; first: {said}"
        return f"{len(old)} rows, the predictions give {len(new)}"
    for name in (name for name in keep if name not in naming):
        a, b = (pd.to_numeric(t[name], errors="coerce").to_numpy(float) for t in (old, new))
        wrong = ~np.isclose(a, b, rtol=TOLERANCE, atol=1e-9, equal_nan=True)
        if wrong.any():
            i = int(np.argmax(wrong))
            said = f"{name} is {a[i]:.6g}, the predictions give {b[i]:.6g}"
            return f"{int(wrong.sum())} of {len(a)} rows differ; first: {said} ({_said(old.iloc[i], naming)})"
    return ""


def _names(name: str, *columns: pd.Series) -> bool:
    """Whether a column says what a row is about, rather than what was found."""
    if name in _NAMING:
        return True
    return name != "n" and not name.startswith("n_") and not all(c.dtype.kind == "f" for c in columns)


def _codes(old: pd.DataFrame, new: pd.DataFrame, naming: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """What the rows of two tables are about, as numbers: equal where all naming columns read the same."""
    key = np.zeros(len(old) + len(new), np.int64)
    for name in naming:
        codes, values = pd.factorize(pd.concat([old[name], new[name]], ignore_index=True), use_na_sentinel=False)
        same, _ = pd.factorize(np.array([str(value).removesuffix(".0") for value in values], object))
        key, _ = pd.factorize(key * (len(values) + 1) + same[codes])
    return key[: len(old)], key[len(old) :]


def _said(row: pd.Series, naming: list[str]) -> str:
    return ", ".join(str(row[name]) for name in naming)


def _together(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other; categories that differ between files stay categories, which sort ten times faster."""
    columns = {}
    for name in frames[0]:
        parts = [frame[name] for frame in frames]
        coded = all(part.dtype.name == "category" for part in parts)
        columns[name] = (
            pd.Series(union_categoricals(parts, sort_categories=True)) if coded else pd.concat(parts, ignore_index=True)
        )
    return pd.DataFrame(columns)


# --- what stands in for what is not published -------------------------------------------------------------


def _cohort(published: Published) -> tuple[Cohort, bool]:
    """The cohort, and whether it is the real one."""
    study = config.load(published.profile).cohort
    store = paths.cohort(published.profile, study.name)
    if (store / "cohort.json").is_file():
        return Cohort.open(store), True
    ids: set[int] = set()
    for file in published.predictions.glob("*.parquet"):
        try:
            ids.update(pd.read_parquet(file, columns=["record_id"])["record_id"].unique())
        except Exception:  # noqa: S112 - what is wrong with the file is said where its content is needed
            continue
    record_id = np.sort(np.array(list(ids)))
    records = pd.DataFrame({"record_id": record_id, "patient_id": record_id})
    labels = None
    if "binary" in published.kinds():
        try:
            y = published.predicted("binary").drop_duplicates(["task", "record_id"])
            wide = y.pivot(index="record_id", columns="task", values="y").reindex(record_id)
            labels = Labels([str(name) for name in wide], wide.to_numpy(float) > 0, np.arange(len(record_id)))
        except ValueError:
            labels = None
    return _Records(store, records, pd.DataFrame(), {"name": study.name, "rates": {}}, labels), False


def special_names(stage: str) -> tuple[str, ...]:
    """Names that `_special` gives a stage's notebook."""
    return {"protocols": ("sampled", "predicted"), "efficiency": ("predicted",)}.get(stage, ())


def _special(published: Published, stage: str) -> dict[str, Any]:
    """Values of names that a notebook gets together with its predictions, or puts together from several files."""
    if stage == "protocols":
        # Single balanced samples are no predictions: their rows are the table's, their averages are made again.
        table = published.table("protocols")
        rows = table[(table["sample"] != "mean") & (table["task"] != "macro")]
        sampled = rows.drop(columns=["lo", "hi", "spread", "n_patients", "n_tasks", "supported"])
        return {"sampled": sampled.astype({"sample": int}), "predicted": published.predicted("protocols")}
    if stage == "efficiency":
        kinds = [name for name in ("frozen", "trained") if name in published.kinds()]
        parts = [published.predicted(name) for name in kinds]
        whole = pd.concat(parts, ignore_index=True)
        return {"predicted": whole.astype({name: "category" for name in whole if whole[name].dtype == object})}
    return {}


@contextmanager
def few_draws(limit: int | None) -> Iterator[None]:
    """Take at most `limit` bootstrap draws: a value needs none, and tables of differences take up to 20,000."""
    from cure import bootstrap

    if limit is None:
        yield
        return
    real = bootstrap.patient_draws

    def few(patient_id: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        return real(patient_id, min(n_draws, limit), rng)

    _replace(real, few)
    try:
        yield
    finally:
        _replace(few, real)  # also in modules that were imported meanwhile


def _replace(old: object, new: object) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("cure.") and getattr(module, "patient_draws", None) is old:
            module.patient_draws = new  # type: ignore[attr-defined]

"""Claims and what became of them: `claims.yaml` says what is claimed, the tables say whether it holds.

A status is derived from a table's value and its 95 % interval, never typed. A claim is about a region: above a number,
below one, or between two. It HOLDS where the whole interval lies in the region, it DOES NOT HOLD where no part of the
interval does, and it is INCONCLUSIVE where the interval reaches both sides. What has no table here is NOT RUN.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cure import config, paths
from cure.course import duration
from cure.errors import CureError

HOLDS, FAILS, OPEN, NOT_RUN = "HOLDS", "DOES NOT HOLD", "INCONCLUSIVE", "NOT RUN"
#: From the best to the worst that can be said of a claim.
STATUSES = (HOLDS, FAILS, OPEN, NOT_RUN)
#: Level of Holm's correction, as everywhere in the study.
ALPHA = 0.05
#: What `judged` returns, in this order.
COLUMNS = [
    "id", "system", "statement", "source", "table", "rows", "n_rows", "expected", "decided_by", "value", "lo", "hi",
    "p_holm", "status", "reason", "needs", "profiles", "command", "minutes",
]  # fmt: skip

#: What is known of a claim that was not run.
_NOTHING = {"n_rows": 0, "value": np.nan, "lo": np.nan, "hi": np.nan, "p_holm": np.nan, "status": NOT_RUN}

Scalar = str | int | float | bool | None
Select = dict[str, Scalar | list[Scalar]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Expected(_Strict):
    """The region that the claim says the number lies in; one of the three."""

    above: float | None = Field(None, description="the number is larger than this")
    below: float | None = Field(None, description="the number is smaller than this")
    within: list[float] | None = Field(None, min_length=2, max_length=2, description="bounds, themselves included")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(bound is not None for bound in (self.above, self.below, self.within)) != 1:
            raise ValueError("give exactly one of above, below and within")
        if self.within and not self.within[0] < self.within[1]:
            raise ValueError(f"within needs two bounds in rising order, got {self.within}")
        return self

    @property
    def words(self) -> str:
        """The region as a reader says it."""
        if self.within:
            return f"between {self.within[0]:g} and {self.within[1]:g}"
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"

    def margin(self, lo: float, hi: float) -> float:
        """How far inside the region an interval lies; negative by how far it sticks out."""
        if self.within:
            return min(lo - self.within[0], self.within[1] - hi)
        return lo - self.above if self.above is not None else self.below - hi  # type: ignore[operator]

    def inside(self, lo: float, hi: float) -> bool:
        """Whether every number from lo to hi is in the region."""
        margin = self.margin(lo, hi)
        return margin >= 0 if self.within else margin > 0

    def outside(self, lo: float, hi: float) -> bool:
        """Whether no number from lo to hi is in the region."""
        if self.within:
            return hi < self.within[0] or lo > self.within[1]
        return hi <= self.above if self.above is not None else lo >= self.below  # type: ignore[operator]


class Needs(_Strict):
    """What has to be there before the claim can be tested."""

    data: str
    weights: str
    hardware: str

    @property
    def words(self) -> str:
        """All three in one line."""
        return f"data: {self.data}; weights: {self.weights}; hardware: {self.hardware}"


class Claim(_Strict):
    """One claim: where its number is, what it is expected to be, and what decides."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    system: Literal["CURE-FM", "landscape", "post-training", "Self-DANA", "this study"]
    statement: str = Field(min_length=10, description="what is claimed, as a sentence that can be wrong")
    source: str = Field(min_length=3, description="who claims it and where; for this study, why it is asked")
    table: str = Field(pattern=r"^[a-z0-9_]+$", description="a file in tables/<profile>/, without its ending")
    measured: bool = Field(
        False, description="the table is one of times and memory: results/resources/<profile>/<table>.csv, never hashed"
    )
    select: Select = Field(
        min_length=1,
        description="column -> value, list of values or null (empty cell) that picks the rows; * is a wildcard",
    )
    rows: Literal["one", "every", "mean"] = Field(
        "one", description="one row exactly; every row must comply; or the mean of the rows, which has no interval"
    )
    column: str = Field("value", description="column of the number; bounds stand in lo and hi, or <column>_lo and _hi")
    relative_to: Select | None = Field(
        None, description="changes to `select` that pick one other row: the number is then value / that - 1"
    )
    expected: Expected
    decided_by: Literal["interval", "interval and holm", "value"] = Field(
        description="the 95 % interval; that and p < 0.05 after Holm over the table; or the value, where none applies"
    )
    needs: Needs
    profiles: list[str] = Field(min_length=1, description="profiles whose tables can show it")
    command: str = Field(pattern=r"^(cure|make|python) ")
    minutes: float | None = Field(description="of the command on two cores; null: not measured")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.decided_by != "value" and (self.relative_to is not None or self.rows == "mean"):
            raise ValueError("a ratio of two rows and a mean of rows have no interval: decided_by must be value")
        if self.decided_by == "interval and holm" and 0 not in (self.expected.above, self.expected.below):
            raise ValueError("Holm's p tests a difference from 0: expect above or below 0, or leave holm out")
        if not any(f"--profile {name}" in self.command for name in self.profiles):
            raise ValueError(f"the command names none of the claim's profiles ({', '.join(self.profiles)})")
        return self

    @property
    def bounds(self) -> tuple[str, str]:
        """Columns of the 95 % interval of the number."""
        return ("lo", "hi") if self.column == "value" else (f"{self.column}_lo", f"{self.column}_hi")


class _Claims(_Strict):
    claims: list[Claim] = Field(min_length=1)


class _Found(NamedTuple):
    """Number, interval and Holm's p of one row."""

    value: float
    lo: float
    hi: float
    p_holm: float
    supported: bool


def load(file: Path | None = None) -> list[Claim]:
    """Read and check `claims.yaml` (or `file`), all of it.

    Raises
    ------
    CureError
        Names the claim, the field and what does not fit; also for a repeated id or an unknown profile.
    """
    file = file or paths.root() / "claims.yaml"
    if not file.is_file():
        raise CureError(f"{file.name} is missing: `git checkout {file.name}` brings it back")
    try:
        raw = yaml.safe_load(file.read_text())
        found = _Claims.model_validate(raw).claims
    except yaml.YAMLError as error:
        raise CureError(f"{file.name} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise CureError(f"{file.name}: {_plain(error, raw)}") from error
    ids = [claim.id for claim in found]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise CureError(f"{file.name}: two claims have the id {twice[0]}")
    known = config.profiles()
    for claim in found:
        if unknown := set(claim.profiles) - set(known):
            raise CureError(f"{file.name}, {claim.id}: no profile {min(unknown)}; there are {', '.join(known)}")
    return found


def _plain(error: ValidationError, raw: object) -> str:
    faults = []
    for fault in error.errors():
        where = list(fault["loc"])
        if len(where) > 1 and where[0] == "claims" and isinstance(where[1], int):
            claim = raw["claims"][where[1]]  # type: ignore[index]
            name = claim.get("id") if isinstance(claim, dict) else None
            where = [str(name or f"claim {where[1] + 1}"), *where[2:]]
        message = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
        faults.append(f"{', '.join(map(str, where))}: {message}")
    return "; ".join(faults)


def judged(
    profile: str, tables: Path | None = None, file: Path | None = None, measured: Path | None = None
) -> pd.DataFrame:
    """Every claim with its status, from the tables of one profile and nothing else; a fraction of a second.

    Parameters
    ----------
    profile : str
        A profile's name.
    tables : Path, optional
        Folder of its CSV tables; by default `tables/<profile>/`.
    file : Path, optional
        By default `claims.yaml`.
    measured : Path, optional
        Folder of the tables of measured times and memory, `cure.paths.resources(profile)`. Without it claims about them
        are NOT RUN: they differ from run to run, so nothing that is hashed (the site's first page) may hold them.

    Returns
    -------
    DataFrame
        One row per claim, in the file's order, with the columns `COLUMNS`:

        * `id`, `system` (CURE-FM, landscape, post-training, Self-DANA, this study), `statement`, `source`: text;
        * `table` (name without ending), `rows` (the selection in words), `n_rows` (int, 0 where not run);
        * `expected` (the region in words), `decided_by` (interval, interval and holm, value);
        * `value`, `lo`, `hi`, `p_holm`: float64, NaN where there is none. Of several rows, those of the one that
          decides: the worst status, and among equals the one closest to the edge of the region;
        * `status`: HOLDS, DOES NOT HOLD, INCONCLUSIVE or NOT RUN, and `reason`, a sentence;
        * `needs` (data, weights, hardware in words), `profiles` (joined by commas), `command`, `minutes` (NaN: not
          measured).

        A table or row that is not there makes a claim NOT RUN; a claim that does not hold is a finding, not an error.

    Raises
    ------
    CureError
        For an unknown profile, a file that is not valid, a column that a table does not have, or a selection that
        picks several rows where the claim is about one.
    """
    config.load(profile)
    plain = tables or paths.root() / "tables" / profile
    known: dict[Path, pd.DataFrame | None] = {}
    rows = []
    for claim in load(file):
        folder = measured if claim.measured else plain
        if folder is None and profile in claim.profiles:
            why = f"it is about what was measured; run: cure verify --profile {profile}"
            rows.append({**_about(claim), **_NOTHING, "reason": why})
            continue
        path = (folder or plain) / f"{claim.table}.csv"
        if path not in known:
            known[path] = pd.read_csv(path, low_memory=False) if path.is_file() else None
        rows.append({**_about(claim), **_judge(claim, profile, known[path])})
    return pd.DataFrame(rows)[COLUMNS].astype(dict.fromkeys(("value", "lo", "hi", "p_holm", "minutes"), float))


def time(minutes: float) -> str:
    """How long a claim's command is expected to take, in words; `minutes` is NaN where that was not measured."""
    return "time not measured" if np.isnan(minutes) else f"about {duration(60 * minutes)} on two cores"


def _about(claim: Claim) -> dict:
    plain = claim.model_dump(include={"id", "system", "statement", "source", "table", "decided_by", "command"})
    rows = ", ".join(f"{name} = {_said(value)}" for name, value in claim.select.items())
    if claim.relative_to is not None:
        rows += " relative to " + ", ".join(f"{name} = {_said(value)}" for name, value in claim.relative_to.items())
    number = "" if claim.column == "value" else f"{claim.column} "
    return {
        **plain,
        "rows": rows + {"one": "", "every": " (every row)", "mean": " (mean of the rows)"}[claim.rows],
        "expected": number + claim.expected.words,
        "needs": claim.needs.words,
        "profiles": ", ".join(claim.profiles),
        "minutes": claim.minutes,
    }


def _said(value: Scalar | list[Scalar]) -> str:
    if isinstance(value, list):
        return " or ".join(map(_said, value))
    return "none" if value is None else f"{value}"


def _judge(claim: Claim, profile: str, table: pd.DataFrame | None) -> dict:
    if profile not in claim.profiles:
        return {**_NOTHING, "reason": f"profile {profile} cannot show it ({claim.needs.words}); run: {claim.command}"}
    command = claim.command if f"--profile {profile}" in claim.command else f"cure repro --profile {profile}"
    if table is None:
        return {**_NOTHING, "reason": f"table {claim.table} is not there; run: {command}"}
    chosen = _chosen(claim, table, claim.select)
    if chosen.empty:
        rows = _about(claim)["rows"]
        return {**_NOTHING, "reason": f"table {claim.table} has no row with {rows}; it needs {claim.needs.words}"}
    if claim.rows == "one" and len(chosen) > 1:
        raise CureError(
            f"claims.yaml, {claim.id}: {len(chosen)} rows of table {claim.table} match; it is about one: select more"
        )
    found = _numbers(claim, table, chosen)
    if found is None:
        return {**_NOTHING, "reason": f"table {claim.table} has no row to relate it to"}
    if claim.measured and all(np.isnan(one.value) for one in found):
        return {
            **_NOTHING,
            "reason": f"it was not measured where {claim.table} was made; it needs {claim.needs.hardware}",
        }
    verdicts = [(_status(claim, one), one) for one in found]
    order = [HOLDS, OPEN, FAILS]
    (status, reason), one = max(
        verdicts, key=lambda each: (order.index(each[0][0]), -np.nan_to_num(_margin(claim, each[1]), nan=-np.inf))
    )
    number = {"value": one.value, "lo": one.lo, "hi": one.hi, "p_holm": one.p_holm}
    few = f" ({sum(s == status for (s, _), _ in verdicts)} of {len(verdicts)} rows)" if claim.rows == "every" else ""
    return {"n_rows": len(chosen), **number, "status": status, "reason": reason + few}


def _chosen(claim: Claim, table: pd.DataFrame, select: Select) -> pd.DataFrame:
    wanted = [*select, claim.column]
    wanted += claim.bounds if claim.decided_by != "value" else []
    wanted += ["p_holm"] if claim.decided_by == "interval and holm" else []
    if missing := [name for name in wanted if name not in table]:
        raise CureError(
            f"claims.yaml, {claim.id}: table {claim.table} has no column {missing[0]}; it has {', '.join(table)}"
        )
    keep = np.ones(len(table), bool)
    for name, value in select.items():
        options = value if isinstance(value, list) else [value]
        keep &= np.any([_equal(table[name], option) for option in options], axis=0)
    return table[keep]


def _equal(column: pd.Series, value: Scalar) -> np.ndarray:
    if value is None:
        return column.isna().to_numpy()
    if isinstance(value, bool):
        return (column.astype(str) == str(value)).to_numpy()
    if isinstance(value, str):
        text = column.astype(str)
        return (text.map(lambda each: fnmatchcase(each, value)) if "*" in value else text == value).to_numpy(bool)
    return np.isclose(pd.to_numeric(column, errors="coerce").to_numpy(float), value, rtol=1e-6, atol=0)


def _numbers(claim: Claim, table: pd.DataFrame, chosen: pd.DataFrame) -> list[_Found] | None:
    """Numbers of the chosen rows; None where the row that they are related to is not there."""
    lo, hi = claim.bounds
    columns = {claim.column: "value", lo: "lo", hi: "hi", "p_holm": "p_holm"}
    has = chosen[[name for name in columns if name in chosen]]
    number = has.apply(pd.to_numeric, errors="coerce").astype(float).rename(columns=columns)
    number = number.reindex(columns=["value", "lo", "hi", "p_holm"])
    if claim.rows == "mean":
        return [_Found(float(number["value"].mean()), np.nan, np.nan, np.nan, True)]
    supported = chosen["supported"].astype(str).ne("False") if "supported" in chosen else [True] * len(chosen)
    if claim.relative_to is not None:
        other = _chosen(claim, table, {**claim.select, **claim.relative_to})
        if len(other) != 1:
            return None
        base = float(pd.to_numeric(other[claim.column]).iloc[0])
        number = number.assign(value=number["value"] / base - 1, lo=np.nan, hi=np.nan)
    return [
        _Found(row.value, row.lo, row.hi, row.p_holm, bool(enough))
        for row, enough in zip(number.itertuples(), supported, strict=True)
    ]


def _margin(claim: Claim, one: _Found) -> float:
    by_value = claim.decided_by == "value"
    return claim.expected.margin(one.value if by_value else one.lo, one.value if by_value else one.hi)


def _status(claim: Claim, one: _Found) -> tuple[str, str]:
    """Status of one row, with the reason."""
    region = claim.expected
    if not one.supported:
        return OPEN, "too few positive or negative records for a number to decide"
    if np.isnan(one.value):
        return OPEN, "the number is not defined in this table"
    if claim.decided_by == "value":
        word, verdict = (HOLDS, "is") if region.inside(one.value, one.value) else (FAILS, "is not")
        return word, f"{one.value:.3g} {verdict} {region.words}; there is no interval to go by"
    if np.isnan(one.lo) or np.isnan(one.hi):
        return OPEN, "the table has no interval for this number"
    where = f"the 95 % interval [{one.lo:.3g}, {one.hi:.3g}]"
    inside, outside = region.inside(one.lo, one.hi), region.outside(one.lo, one.hi)
    if not (inside or outside):
        return OPEN, f"{where} reaches both sides: not wholly {region.words}, not wholly outside"
    if claim.decided_by == "interval and holm":
        if not one.p_holm < ALPHA:
            side = "for" if inside else "against"
            return (
                OPEN,
                f"{where} lies wholly {side} it, but p = {one.p_holm:.2g} after Holm's correction over the table",
            )
        where += f" (p = {one.p_holm:.2g} after Holm's correction)"
    return (HOLDS, f"{where} lies {region.words}") if inside else (FAILS, f"no part of {where} is {region.words}")

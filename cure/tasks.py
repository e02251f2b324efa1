"""Tasks: what a record is labelled with.

Label rule, everywhere: a record is positive for a statement when the statement is *listed*, whatever its likelihood.
PTB-XL gives rhythm statements likelihood 0, so that a `> 0` filter would erase atrial fibrillation.

Two kinds of task. A **binary task** is one statement or one diagnostic superclass against the rest: a record that does
not list it is negative, and all records take part. A **label group** is multi-label: only records that list at least
one statement of the group take part (the convention of the PTB-XL benchmark, Strodthoff et al. 2021).

Which tasks a cohort has, its statement table says: see `offered` and `groups`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cure.errors import CureError

#: CURE-FM's seven one-vs-rest tasks (there on CODE-15 %), in PTB-XL's codes.
CURE_FM = ("NORM", "1AVB", "CRBBB", "CLBBB", "SBRAD", "STACH", "AFIB")
#: The diagnostic superclasses of PTB-XL; NORM is also the first of CURE-FM's tasks.
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
#: The binary tasks of PTB-XL; other cohorts have those of them that they are labelled for, or tasks of their own.
BINARY = (*CURE_FM, *SUPERCLASSES[1:])

#: What each binary task means, for captions and tables.
TITLES = {
    "NORM": "normal ECG",
    "1AVB": "first-degree AV block",
    "CRBBB": "complete right bundle branch block",
    "CLBBB": "complete left bundle branch block",
    "SBRAD": "sinus bradycardia",
    "STACH": "sinus tachycardia",
    "AFIB": "atrial fibrillation",
    "MI": "myocardial infarction",
    "STTC": "ST/T change",
    "CD": "conduction disturbance",
    "HYP": "hypertrophy",
}

Group = Literal["all", "diag", "sub", "super", "form", "rhythm"]
GROUPS: tuple[Group, ...] = ("all", "diag", "sub", "super", "form", "rhythm")
#: Groups whose labels are classes of statements -> the column of the statement table that names the class.
_LEVELS = {"sub": "diagnostic_subclass", "super": "diagnostic_class"}


@dataclass(frozen=True)
class Labels:
    """Labels of the records that take part in a task.

    Attributes
    ----------
    names : list of str
        One name per label.
    y : (n_records, n_labels) bool array
        True where the record lists the label.
    rows : (n_records,) int array
        Positions of those records in the cohort.
    """

    names: list[str]
    y: np.ndarray
    rows: np.ndarray


def statement_matrix(codes: pd.Series, statements: pd.DataFrame) -> pd.DataFrame:
    """One boolean column per SCP statement.

    Parameters
    ----------
    codes : Series of lists of str
        Statements listed for each record.
    statements : DataFrame indexed by statement code
        The cohort's statement table (PTB-XL's `scp_statements.csv`).

    Raises
    ------
    CureError
        If a record lists a statement that the table does not know.
    """
    flat = codes.explode().dropna()
    unknown = sorted(set(flat) - set(statements.index))
    if unknown:
        where = flat.index[flat.isin(unknown)][0]
        raise CureError(
            f"record {where} lists the unknown statement {unknown[0]!r} ({len(unknown)} unknown in all): "
            "scp_statements.csv and ptbxl_database.csv are not of the same version; get both again"
        )
    listed = pd.DataFrame(False, index=codes.index, columns=statements.index)
    listed.to_numpy()[codes.index.get_indexer(flat.index), statements.index.get_indexer(flat)] = True
    return listed


def offered(statements: pd.DataFrame) -> tuple[str, ...]:
    """The binary tasks of a cohort, from its statement table.

    A table with a column `task` names them: the codes where it is true, in the table's order. Otherwise they are those
    of `BINARY` that the table holds. A superclass beside NORM needs statements of all five: where only some diagnoses
    were labelled, "any conduction disturbance" would mean something else than in PTB-XL.

    Raises
    ------
    CureError
        If there is none.
    """
    if "task" in statements:
        names = tuple(statements.index[statements["task"].eq(True)])
    else:
        whole = set(SUPERCLASSES) <= set(statements.loc[statements["diagnostic"] == 1, "diagnostic_class"])
        names = tuple(task for task in BINARY if task in statements.index or (whole and task in SUPERCLASSES))
    if not names:
        raise CureError(
            f"this cohort has no binary task: statements.csv marks none in a column `task` and holds none of "
            f"{', '.join(BINARY)}; run stage prepare again"
        )
    return names


def titles(statements: pd.DataFrame) -> dict[str, str]:
    """What each binary task of a cohort means: `TITLES`, else the description in its statement table."""
    described = statements["description"]
    return {task: TITLES.get(task) or str(described[task]) for task in offered(statements)}


def groups(statements: pd.DataFrame) -> tuple[Group, ...]:
    """The label groups that a cohort has statements of, in the order of `GROUPS`."""
    return tuple(name for name in GROUPS if _labels(statements, name))


def binary(listed: pd.DataFrame, statements: pd.DataFrame, tasks: tuple[str, ...] | None = None) -> Labels:
    """Labels of the binary tasks; every record takes part.

    Parameters
    ----------
    listed : (n_records, n_statements) boolean DataFrame
        From `statement_matrix`.
    statements : DataFrame
        The statement table; `diagnostic_class` says which superclass a statement belongs to.
    tasks : tuple of str, optional
        Statement codes or superclasses; by default what the cohort offers. NORM is both and means the same either way.
        A statement that has a superclass's name stands for itself.

    Raises
    ------
    CureError
        For a task that is neither.
    """
    known = offered(statements)
    names = known if tasks is None else tasks
    unknown = [task for task in names if task not in statements.index and task not in known]
    if unknown:
        raise CureError(f"unknown task {unknown[0]!r}: choose from {', '.join(known)} or any code of statements.csv")
    columns = [_any(listed, [t] if t in statements.index else _members(statements, "super", t)) for t in names]
    return Labels(list(names), np.column_stack(columns), np.arange(len(listed)))


def group(listed: pd.DataFrame, statements: pd.DataFrame, name: Group) -> Labels:
    """Labels of one label group (71 all, 44 diag, 23 sub, 5 super, 19 form, 12 rhythm in PTB-XL).

    Records that list no statement of the group are left out: their absence of labels is not a finding.

    Raises
    ------
    CureError
        If the cohort has no statement of the group, see `groups`.
    """
    names = _labels(statements, name)
    if not names:
        raise CureError(
            f"this cohort has no label group '{name}': no statement in its statements.csv belongs to it; "
            f"it has {', '.join(groups(statements))}: correct `groups` in the profile"
        )
    if name in ("sub", "super"):
        y = np.column_stack([_any(listed, _members(statements, name, label)) for label in names])
    else:
        y = listed[names].to_numpy()
    rows = np.flatnonzero(y.any(axis=1))
    return Labels(names, y[rows], rows)


def _labels(statements: pd.DataFrame, name: Group) -> list[str]:
    """The labels of a group: statements, or the classes or subclasses of diagnostic ones."""
    if name in _LEVELS:
        return sorted(statements.loc[statements["diagnostic"] == 1, _LEVELS[name]].dropna().unique())
    flag = {"diag": "diagnostic", "form": "form", "rhythm": "rhythm"}.get(name)
    return list(statements.index if flag is None else statements.index[statements[flag] == 1])


def _members(statements: pd.DataFrame, level: str, label: str) -> list[str]:
    return list(statements.index[(statements["diagnostic"] == 1) & (statements[_LEVELS[level]] == label)])


def _any(listed: pd.DataFrame, codes: list[str]) -> np.ndarray:
    return listed[codes].to_numpy().any(axis=1)

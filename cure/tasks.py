"""Tasks: what a record is labelled with.

Label rule, everywhere: a record is positive for a statement when the statement is *listed*, whatever its likelihood.
PTB-XL gives rhythm statements likelihood 0, so that a `> 0` filter would erase atrial fibrillation.

Two kinds of task. A **binary task** is one statement or one diagnostic superclass against the rest: a record that does
not list it is negative, and all records take part. A **label group** is multi-label: only records that list at least
one statement of the group take part (the convention of the PTB-XL benchmark, Strodthoff et al. 2021).
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


def binary(listed: pd.DataFrame, statements: pd.DataFrame, tasks: tuple[str, ...] = BINARY) -> Labels:
    """Labels of the binary tasks; every record takes part.

    Parameters
    ----------
    listed : (n_records, n_statements) boolean DataFrame
        From `statement_matrix`.
    statements : DataFrame
        The statement table; `diagnostic_class` says which superclass a statement belongs to.
    tasks : tuple of str
        Statement codes or superclasses. NORM is both and means the same either way.

    Raises
    ------
    CureError
        For a task that is neither.
    """
    unknown = [task for task in tasks if task not in statements.index and task not in SUPERCLASSES]
    if unknown:
        raise CureError(f"unknown task {unknown[0]!r}: choose from {', '.join(BINARY)} or any SCP statement code")
    columns = [_any(listed, _members(statements, "super", t) if t in SUPERCLASSES else [t]) for t in tasks]
    return Labels(list(tasks), np.column_stack(columns), np.arange(len(listed)))


def group(listed: pd.DataFrame, statements: pd.DataFrame, name: Group) -> Labels:
    """Labels of one label group (71 all, 44 diag, 23 sub, 5 super, 19 form, 12 rhythm in PTB-XL).

    Records that list no statement of the group are left out: their absence of labels is not a finding.
    """
    if name in ("sub", "super"):
        column = {"sub": "diagnostic_subclass", "super": "diagnostic_class"}[name]
        names = sorted(statements.loc[statements["diagnostic"] == 1, column].dropna().unique())
        y = np.column_stack([_any(listed, _members(statements, name, label)) for label in names])
    else:
        flag = {"diag": "diagnostic", "form": "form", "rhythm": "rhythm"}.get(name)
        names = list(statements.index if flag is None else statements.index[statements[flag] == 1])
        y = listed[names].to_numpy()
    rows = np.flatnonzero(y.any(axis=1))
    return Labels(names, y[rows], rows)


def _members(statements: pd.DataFrame, level: str, label: str) -> list[str]:
    column = {"sub": "diagnostic_subclass", "super": "diagnostic_class"}[level]
    return list(statements.index[(statements["diagnostic"] == 1) & (statements[column] == label)])


def _any(listed: pd.DataFrame, codes: list[str]) -> np.ndarray:
    return listed[codes].to_numpy().any(axis=1)

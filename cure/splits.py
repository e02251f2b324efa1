"""Splits by patient: which records train, choose and test."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cure.errors import CureError


@dataclass(frozen=True)
class Split:
    """One outer split; arrays hold row positions in the cohort.

    Fit on `train`, choose (regularisation, stopping, thresholds) on `val`, touch `test` once.
    """

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def restrict(self, rows: np.ndarray) -> "Split":
        """Keep `rows` only, renumbered to their position in `rows`: for tasks that not all records take part in."""
        position = {row: i for i, row in enumerate(rows)}

        def keep(part: np.ndarray) -> np.ndarray:
            return np.array([position[row] for row in part if row in position], dtype=int)

        return Split(self.name, keep(self.train), keep(self.val), keep(self.test))


#: Test folds and validation folds of each outer split.
_SCHEMES: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    # PTB-XL's own: 9 and 10 hold records that a human validated.
    "official": [((10,), (9,))],
    # Small cohorts: fold 10 alone would hold a handful of positives. Every record is tested exactly once, by heads that
    # saw neither it nor its patient.
    "rotate": [((k, k + 1), ((k + 1) % 10 + 1, (k + 2) % 10 + 1)) for k in (1, 3, 5, 7, 9)],
}


def make_splits(records: pd.DataFrame, scheme: str) -> list[Split]:
    """Outer splits of a cohort by its stratified, patient-disjoint folds.

    Parameters
    ----------
    records : DataFrame
        With columns `fold` (1 to 10) and `patient_id`, one row per record.
    scheme : {"official", "rotate"}
        `official` is one split (folds 1-8, 9, 10). `rotate` is five: two folds test, the next two validate, six train.

    Raises
    ------
    CureError
        If a patient's records lie in two parts of a split, or a part is empty.
    """
    if scheme not in _SCHEMES:
        raise CureError(f"unknown split scheme {scheme!r}: choose from {', '.join(_SCHEMES)}")
    fold = records["fold"].to_numpy()
    patient = records["patient_id"].to_numpy()
    splits = []
    for test_folds, val_folds in _SCHEMES[scheme]:
        is_test, is_val = np.isin(fold, test_folds), np.isin(fold, val_folds)
        name = "folds " + "+".join(map(str, test_folds))
        split = Split(name, *(np.flatnonzero(part) for part in (~is_test & ~is_val, is_val, is_test)))
        _check(split, patient)
        splits.append(split)
    return splits


def _check(split: Split, patient: np.ndarray) -> None:
    parts = {"train": split.train, "val": split.val, "test": split.test}
    for name, rows in parts.items():
        if not len(rows):
            raise CureError(f"split '{split.name}' has no {name} records: the cohort lacks those folds")
    for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = np.intersect1d(patient[parts[one]], patient[parts[two]])
        if len(shared):
            raise CureError(
                f"split '{split.name}': {len(shared)} patients are in both {one} and {two}, the first is {shared[0]}; "
                "the folds of this cohort are not patient-disjoint, so no score on them can be trusted"
            )

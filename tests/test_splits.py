import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cure.errors import CureError
from cure.splits import make_splits


def records(fold_of_patient: list[int]) -> pd.DataFrame:
    patient = np.repeat(np.arange(len(fold_of_patient)), 2)
    return pd.DataFrame({"patient_id": patient, "fold": np.array(fold_of_patient)[patient]})


@given(st.lists(st.integers(1, 10), max_size=40))
def test_rotation_tests_every_record_once_and_parts_share_no_patient(extra):
    table = records([*range(1, 11), *extra])
    splits = make_splits(table, "rotate")
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(len(table)))
    for split in splits:
        parts = [set(table["patient_id"].to_numpy()[rows]) for rows in (split.train, split.val, split.test)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert len(split.train) + len(split.val) + len(split.test) == len(table)


def test_official_split_is_ptbxls():
    (split,) = make_splits(records(list(range(1, 11))), "official")
    assert split.test.tolist() == [18, 19]
    assert split.val.tolist() == [16, 17]
    assert split.train.tolist() == list(range(16))


def test_rotation_validates_on_other_folds_than_it_tests():
    table = records(list(range(1, 11)))
    for split in make_splits(table, "rotate"):
        fold = table["fold"].to_numpy()
        assert [len(set(fold[rows])) for rows in (split.train, split.val, split.test)] == [6, 2, 2]


def test_a_patient_in_two_folds_is_an_error_that_names_the_patient():
    table = records(list(range(1, 11)))
    table.loc[0, "fold"] = 10
    with pytest.raises(CureError, match=r"patients are in both .*the first is 0"):
        make_splits(table, "official")


def test_missing_folds_and_unknown_schemes_are_errors():
    with pytest.raises(CureError, match="has no val records"):
        make_splits(records([1, 2, 10]), "official")
    with pytest.raises(CureError, match="unknown split scheme 'random'"):
        make_splits(records([1]), "random")


def test_restrict_renumbers():
    (split,) = make_splits(records(list(range(1, 11))), "official")
    few = split.restrict(np.array([1, 5, 16, 19]))
    assert (few.train.tolist(), few.val.tolist(), few.test.tolist()) == ([0, 1], [2], [3])

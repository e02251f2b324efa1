import numpy as np
import pandas as pd
import pytest

from cure import tasks
from cure.errors import CureError


@pytest.fixture
def statements(cohort):
    return cohort.statements


def codes(*lists):
    return pd.Series([list(x) for x in lists], index=pd.Index(range(1, len(lists) + 1), name="record_id"))


def test_label_groups_have_the_published_sizes(cohort):
    sizes = {name: len(cohort.group(name).names) for name in tasks.GROUPS}
    assert sizes == {"all": 71, "diag": 44, "sub": 23, "super": 5, "form": 19, "rhythm": 12}


def test_a_listed_statement_counts_whatever_its_likelihood(raw_folder, cohort):
    # In the raw file rhythm statements carry likelihood 0; a `> 0` rule would leave no atrial fibrillation at all.
    from cure.cohorts import ptbxl

    raw = ptbxl.read_metadata(raw_folder)["scp_codes"]
    afib = raw.map(lambda listed: "AFIB" in listed)
    assert all(listed["AFIB"] == 0 for listed in raw[afib])
    labels = cohort.binary()
    assert labels.y[:, labels.names.index("AFIB")].sum() == afib.sum() > 0


def test_binary_tasks_take_all_records_and_superclasses_take_any_member(statements):
    listed = tasks.statement_matrix(codes(["IMI", "SR"], ["NORM"], ["SR"], []), statements)
    labels = tasks.binary(listed, statements)
    assert labels.names == list(tasks.BINARY)
    assert labels.rows.tolist() == [0, 1, 2, 3]
    positive = {name: np.flatnonzero(y).tolist() for name, y in zip(labels.names, labels.y.T, strict=True)}
    assert positive["MI"] == [0]
    assert positive["NORM"] == [1]
    assert sum(map(len, positive.values())) == 2


def test_groups_leave_out_records_without_a_label_of_the_group(statements):
    listed = tasks.statement_matrix(codes(["IMI", "SR"], ["NORM"], ["SR"], []), statements)
    sup, rhythm = tasks.group(listed, statements, "super"), tasks.group(listed, statements, "rhythm")
    assert sup.rows.tolist() == [0, 1]
    assert rhythm.rows.tolist() == [0, 2]
    assert sup.y.shape == (2, 5)
    assert sup.y.sum() == 2


def test_sub_and_super_use_diagnostic_statements_only(statements):
    # NDT is a form statement too; as a diagnostic one it belongs to STTC.
    listed = tasks.statement_matrix(codes(["NDT"]), statements)
    sup = tasks.group(listed, statements, "super")
    assert [name for name, y in zip(sup.names, sup.y[0], strict=True) if y] == ["STTC"]


def test_unknown_statements_and_tasks_are_named(statements):
    with pytest.raises(CureError, match="record 2 lists the unknown statement 'XYZ'"):
        tasks.statement_matrix(codes(["NORM"], ["XYZ"]), statements)
    listed = tasks.statement_matrix(codes(["NORM"]), statements)
    with pytest.raises(CureError, match="unknown task 'AFIBB': choose from NORM"):
        tasks.binary(listed, statements, ("AFIBB",))

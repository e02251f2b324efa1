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


def test_ptbxl_offers_all_its_tasks_and_groups(cohort):
    assert tasks.offered(cohort.statements) == tasks.BINARY
    assert tasks.groups(cohort.statements) == tasks.GROUPS
    assert tasks.titles(cohort.statements) == tasks.TITLES


def test_binary_labels_are_those_of_the_raw_file(raw_folder, cohort):
    from cure.cohorts import ptbxl

    raw = ptbxl.read_metadata(raw_folder)["scp_codes"]
    table = ptbxl.read_statements(raw_folder)
    labels = cohort.binary()
    for name, y in zip(labels.names, labels.y.T, strict=True):
        meant = set(table.index[table["diagnostic_class"] == name]) or {name}
        assert y.tolist() == [bool(meant & set(listed)) for listed in raw], name


def test_a_table_with_some_statements_offers_the_tasks_it_knows(statements):
    # The seven of CODE-15 %: NORM and conduction disturbances do not make PTB-XL's superclasses.
    seven = statements.loc[list(tasks.CURE_FM)]
    assert tasks.offered(seven) == tasks.CURE_FM
    assert tasks.groups(seven) == ("all", "diag", "sub", "super", "rhythm")
    listed = tasks.statement_matrix(codes(["CRBBB", "AFIB"], ["NORM"], []), seven)
    labels = tasks.binary(listed, seven)
    assert labels.names == list(tasks.CURE_FM)
    assert labels.y.sum(axis=0).tolist() == [1, 0, 1, 0, 0, 0, 1]
    with pytest.raises(CureError, match=r"no label group 'form'.*it has all, diag, sub, super, rhythm"):
        tasks.group(listed, seven, "form")
    with pytest.raises(CureError, match="unknown task 'MI'"):
        tasks.binary(listed, seven, ("NORM", "MI"))


def test_a_column_task_names_the_tasks(statements):
    own = statements.loc[["NORM", "AFIB", "SR"]].assign(task=[False, True, True])
    own.loc["MI"] = {"description": "infarction on MRI", "task": True}
    own.loc["later"] = {"description": "event within a year"}
    assert tasks.offered(own) == ("AFIB", "SR", "MI")
    # A label that is called like a superclass or a known task is the label.
    listed = tasks.statement_matrix(codes(["MI"], ["NORM", "SR"]), own)
    assert tasks.binary(listed, own).y.tolist() == [[False, False, True], [False, True, False]]
    assert tasks.titles(own) == {
        "AFIB": "atrial fibrillation",
        "SR": statements.loc["SR", "description"],
        "MI": "myocardial infarction",
    }
    with pytest.raises(CureError, match="no binary task"):
        tasks.binary(listed, own.assign(task=False))

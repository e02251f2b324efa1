import numpy as np
import pandas as pd
import pytest

from cure import tables
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.splits import make_splits


def value(table, part, variable, task=None):
    rows = table[(table["part"] == part) & (table["variable"] == variable)]
    rows = rows[rows["task"].isna()] if task is None else rows[rows["task"] == task]
    return rows["value"].item()


def test_the_cohort_table_counts_what_is_there(cohort):
    table = tables.cohort_table(cohort, make_splits(cohort.records, "rotate"))
    parts = ["all", *(f"folds {k}+{k + 1}" for k in (1, 3, 5, 7, 9))]
    assert list(table["part"].unique()) == parts
    assert value(table, "all", "records") == len(cohort)
    assert sum(value(table, part, "records") for part in parts[1:]) == len(cohort)
    # Patients are whole in their fold, so they add up too.
    assert sum(value(table, part, "patients") for part in parts[1:]) == cohort.records["patient_id"].nunique()
    afib = cohort.records["labels"].map(lambda listed: "AFIB" in listed)
    assert value(table, "all", "prevalence", "AFIB") == pytest.approx(afib.mean())
    assert value(table, "all", "female") == pytest.approx((cohort.records["sex"] == "female").mean())
    view = tables.cohort_view(table)
    assert view.loc["AFIB", "all"].startswith(f"{afib.sum()} (")


def test_masked_ages_count_as_records_and_not_as_300_years(cohort):
    records = cohort.records.assign(age=np.float32(50), age_over_89=False)
    records.loc[:9, "age"], records.loc[:9, "age_over_89"] = np.nan, True
    old = Cohort(cohort.folder, records, cohort.statements, cohort.info)
    table = tables.cohort_table(old, make_splits(records, "official"))
    assert value(table, "all", "age_median") == 50
    assert value(table, "all", "age_over_89") == pytest.approx(10 / len(cohort))
    assert list(table["part"].unique()) == ["all", "train", "val", "test"]


def test_tables_are_written_with_six_digits_and_read_back(tmp_path):
    folder = tmp_path / "demo" / "heads"
    table = pd.DataFrame({"task": ["A"], "value": [0.123456789], "n": [1234567]})
    tables.save(table, folder, "scores")
    assert (folder / "tables" / "scores.csv").read_text() == "task,value,n\nA,0.123457,1234567\n"
    assert tables.read(folder, "scores")["value"].item() == 0.123457
    with pytest.raises(CureError, match="no table 'other' of stage heads: `make repro PROFILE=demo`"):
        tables.read(folder, "other")


def test_label_groups_are_counted_with_what_is_left_out(cohort):
    table = tables.group_table(cohort).set_index("group")
    assert (table["n"] + table["n_without_label"] == len(cohort)).all()
    assert table.loc["rhythm", "labels"] == 12
    assert (table["labels_supported"] <= table["labels"]).all()


def test_views_put_averages_first_and_mark_what_has_no_support():
    rows = [("AFIB", 0.9, True, 0.1), ("CLBBB", 0.8, False, 0.01), ("macro", 0.85, True, np.nan)]
    table = pd.DataFrame(rows, columns=["task", "value", "supported", "prevalence"])
    table = table.assign(
        lo=table["value"] - 0.1, hi=table["value"] + 0.05, metric="auroc", encoder="e", head="h", n_pos=3
    )
    wide = tables.score_view(table, ["encoder", "head"])
    assert list(wide) == ["macro", "AFIB", "CLBBB"]
    assert wide.iloc[0].tolist() == ["0.850 [0.750, 0.900]", "0.900 [0.800, 0.950]", "(0.800)"]
    one = tables.metrics_view(table, "e", "h")
    assert one.index.tolist() == [("AFIB", 3, "10.0 %"), ("CLBBB", 3, "1.0 %")]
    assert one["auroc"].tolist() == ["0.900 [0.800, 0.950]", "(0.800)"]


def test_the_example_lists_one_statement_and_not_the_other(cohort):
    row = cohort.example("AFIB", without="SR")
    assert "AFIB" in cohort.records["labels"][row]
    assert "SR" not in cohort.records["labels"][row]

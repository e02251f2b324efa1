"""Statuses follow from values and intervals; the file is read strictly; the committed claims find their rows."""

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from cure import claims
from cure.errors import CureError

NEEDS = {"data": "none", "weights": "none", "hardware": "none"}
BASE = {
    "id": "one",
    "system": "this study",
    "statement": "A is better than B on these records.",
    "source": "a test",
    "table": "scores",
    "select": {"method": "A"},
    "expected": {"above": 0},
    "decided_by": "interval",
    "needs": NEEDS,
    "profiles": ["demo"],
    "command": "cure repro --profile demo",
    "minutes": 1,
}


@pytest.fixture
def judge(tmp_path):
    """Judge one claim, `BASE` with changes, on a table of the given rows."""

    def judged(content, /, profile="demo", shown=True, **changes):
        pd.DataFrame(content).to_csv(tmp_path / "scores.csv", index=False)
        file = tmp_path / "claims.yaml"
        file.write_text(yaml.safe_dump({"claims": [{**BASE, **changes}]}))
        return claims.judged(profile, tables=tmp_path, file=file, measured=tmp_path if shown else None).iloc[0]

    return judged


def row(lo, hi, value=None, **more):
    return {"method": "A", "value": (lo + hi) / 2 if value is None else value, "lo": lo, "hi": hi, **more}


@pytest.mark.parametrize(
    ("expected", "lo", "hi", "status"),
    [
        ({"above": 0}, 0.01, 0.02, "HOLDS"),
        ({"above": 0}, 0.0, 0.02, "INCONCLUSIVE"),  # 0 itself is not above 0
        ({"above": 0}, -0.01, 0.02, "INCONCLUSIVE"),
        ({"above": 0}, -0.02, 0.0, "DOES NOT HOLD"),
        ({"above": 0}, -0.02, -0.01, "DOES NOT HOLD"),
        ({"below": 0.01}, -0.02, 0.009, "HOLDS"),
        ({"below": 0.01}, -0.02, 0.01, "INCONCLUSIVE"),
        ({"below": 0.01}, 0.01, 0.03, "DOES NOT HOLD"),
        ({"within": [0.85, 0.89]}, 0.85, 0.89, "HOLDS"),  # bounds belong to the region
        ({"within": [0.85, 0.89]}, 0.84, 0.86, "INCONCLUSIVE"),
        ({"within": [0.85, 0.89]}, 0.80, 0.95, "INCONCLUSIVE"),
        ({"within": [0.85, 0.89]}, 0.80, 0.85, "INCONCLUSIVE"),
        ({"within": [0.85, 0.89]}, 0.80, 0.84, "DOES NOT HOLD"),
        ({"within": [0.85, 0.89]}, 0.90, 0.95, "DOES NOT HOLD"),
    ],
)
def test_the_whole_interval_decides(judge, expected, lo, hi, status):
    found = judge([row(lo, hi), {**row(9, 9), "method": "B"}], expected=expected)
    assert (found["status"], found["n_rows"]) == (status, 1)
    assert (found["lo"], found["hi"]) == (lo, hi)


def test_a_difference_that_correction_takes_back_is_inconclusive(judge):
    holm = {"decided_by": "interval and holm"}
    assert judge([row(0.01, 0.02, p_holm=0.04)], **holm)["status"] == "HOLDS"
    assert judge([row(-0.02, -0.01, p_holm=0.04)], **holm)["status"] == "DOES NOT HOLD"
    open_ = judge([row(0.01, 0.02, p_holm=0.05)], **holm)
    assert open_["status"] == "INCONCLUSIVE" and "0.05 after Holm" in open_["reason"]
    assert judge([row(0.01, 0.02, p_holm=np.nan)], **holm)["status"] == "INCONCLUSIVE"


def test_numbers_without_support_or_interval_decide_nothing(judge):
    assert judge([row(0.1, 0.2, supported=False)])["status"] == "INCONCLUSIVE"
    assert judge([row(0.1, 0.2, supported=True)])["status"] == "HOLDS"
    assert "no interval" in judge([row(np.nan, np.nan, value=0.3)])["reason"]
    assert judge([row(0.1, 0.2, value=np.nan)])["status"] == "INCONCLUSIVE"


def test_of_several_rows_the_worst_decides(judge):
    rows = [row(0.3, 0.4), row(0.01, 0.2), row(0.2, 0.5)]
    held = judge(rows, rows="every")
    assert (held["status"], held["lo"], held["n_rows"]) == ("HOLDS", 0.01, 3)
    rows.append(row(-0.1, 0.2))
    assert judge(rows, rows="every")["status"] == "INCONCLUSIVE"
    rows.append(row(-0.3, -0.2))
    failed = judge(rows, rows="every")
    assert (failed["status"], failed["hi"]) == ("DOES NOT HOLD", -0.2)
    assert "1 of 5 rows" in failed["reason"]


def test_means_ratios_and_shares(judge):
    rows = [{"method": "A", "task": f"all/{i}", "value": v} for i, v in enumerate((0.9, 0.95, np.nan))]
    rows.append({"method": "A", "task": "super/0", "value": 0.1})
    mean = {"rows": "mean", "decided_by": "value", "select": {"method": "A", "task": "all/*"}}
    found = judge(rows, expected={"within": [0.92, 0.93]}, **mean)
    assert found["status"] == "HOLDS" and found["value"] == pytest.approx(0.925)
    rows = [{"leads": 1, "mb": 30.0}, {"leads": 12, "mb": 100.0}]
    ratio = {"select": {"leads": 1}, "relative_to": {"leads": 12}, "column": "mb", "decided_by": "value"}
    found = judge(rows, expected={"below": -0.693}, **ratio)
    assert found["status"] == "HOLDS" and found["value"] == pytest.approx(-0.7)
    assert judge(rows, expected={"below": -0.71}, **ratio)["status"] == "DOES NOT HOLD"
    assert judge(rows[:1], expected={"below": -0.71}, **ratio)["status"] == "NOT RUN"
    relative = {"relative": 0.02, "relative_lo": 0.013, "relative_hi": 0.03}
    share = judge([row(0.001, 0.002, **relative)], column="relative", expected={"above": 0.012})
    assert (share["status"], share["value"], share["lo"]) == ("HOLDS", 0.02, 0.013)


def test_selections_by_number_list_wildcard_and_empty_cell(judge):
    rows = [
        {"method": "A", "fraction": 0.1, "comparator": None, "value": 1.0},
        {"method": "A", "fraction": 0.3, "comparator": "B", "value": 2.0},
        {"method": "C", "fraction": 1.0, "comparator": "B, all", "value": 3.0},
    ]
    value = {"decided_by": "value", "expected": {"above": 0}}
    for select, wanted in (
        ({"fraction": 0.1}, 1.0),
        ({"comparator": None}, 1.0),
        ({"comparator": "B"}, 2.0),
        ({"comparator": "B*", "method": "C"}, 3.0),
        ({"fraction": 1}, 3.0),
    ):
        assert judge(rows, select=select, **value)["value"] == wanted
    assert judge(rows, select={"method": ["A", "C"]}, rows="every", **value)["n_rows"] == 3


def test_what_is_not_there_is_not_run_and_says_the_command(judge):
    other = judge([row(1, 2)], profile="ptbxl")
    assert other["status"] == "NOT RUN" and "cure repro --profile demo" in other["reason"]
    assert judge([row(1, 2)], select={"method": "Z"})["status"] == "NOT RUN"
    missing = judge([row(1, 2)], table="absent")
    assert missing["status"] == "NOT RUN" and "table absent is not there; run: cure repro" in missing["reason"]
    unmeasured = judge([{"method": "A", "gpu_s": np.nan}], column="gpu_s", decided_by="value", measured=True)
    assert unmeasured["status"] == "NOT RUN" and "not measured" in unmeasured["reason"]


def test_measured_numbers_are_judged_only_where_nothing_is_hashed(judge):
    fast = {"column": "seconds", "decided_by": "value", "measured": True, "expected": {"below": 2}}
    assert judge([{"method": "A", "seconds": 1.0}], **fast)["status"] == "HOLDS"
    hidden = judge([{"method": "A", "seconds": 1.0}], shown=False, **fast)
    assert hidden["status"] == "NOT RUN" and np.isnan(hidden["value"]) and "cure verify" in hidden["reason"]


def test_a_selection_that_cannot_be_meant_is_an_error(judge):
    with pytest.raises(CureError, match="one: 2 rows of table scores match"):
        judge([row(1, 2), row(1, 2)])
    with pytest.raises(CureError, match="table scores has no column way"):
        judge([row(1, 2)], select={"way": "x"})
    with pytest.raises(CureError, match="no column seconds"):
        judge([row(1, 2)], column="seconds")
    with pytest.raises(CureError, match="no column other_lo"):
        judge([row(1, 2, other=3)], column="other")
    with pytest.raises(CureError, match="no column p_holm"):
        judge([row(1, 2)], decided_by="interval and holm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "HOLDS"}, "one, status: Extra"),
        ({"expected": {}}, "one, expected: give exactly one"),
        ({"expected": {"above": 0, "below": 1}}, "exactly one"),
        ({"expected": {"within": [2, 1]}}, "rising order"),
        ({"expected": {"above": "0"}}, "above"),
        ({"system": "CURE"}, "system"),
        ({"rows": "mean"}, "no interval"),
        ({"decided_by": "interval and holm", "expected": {"above": 0.5}}, "difference from 0"),
        ({"profiles": ["nowhere"], "command": "cure repro --profile nowhere"}, "one: no profile nowhere"),
        ({"command": "cure repro --profile ptbxl"}, "names none of the claim's profiles"),
        ({"minutes": "ten"}, "minutes"),
    ],
)
def test_the_file_is_read_strictly(judge, change, message):
    with pytest.raises(CureError, match=message):
        judge([row(1, 2)], **change)


def test_ids_are_unique_and_broken_yaml_is_said(tmp_path):
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump({"claims": [BASE, BASE]}))
    with pytest.raises(CureError, match="two claims have the id one"):
        claims.load(file)
    file.write_text("claims: [")
    with pytest.raises(CureError, match="not valid YAML"):
        claims.load(file)
    with pytest.raises(CureError, match="is missing: `git checkout"):
        claims.load(tmp_path / "absent.yaml")


def test_claims_about_fewer_leads_select_the_leads_that_they_name():
    numbers = {"six": "6", "four": "4", "three": "3", "two": "2", "one": "1"}
    found = {claim.id: claim for claim in claims.load(ROOT / "claims.yaml") if claim.table == "leads_differences"}
    assert found["selection-graceful-degradation"].select["leads"] == list(numbers.values())
    assert all(name in found["selection-graceful-degradation"].statement for name in numbers)
    assert all("leads" in claim.select for claim in found.values()), "twelve leads are a row of that table too"


@pytest.mark.parametrize(
    ("minutes", "said"),
    [(1, "about 60 s on two cores"), (148, "about 2 h 28 min on two cores"), (np.nan, "time not measured")],
)
def test_the_time_of_a_command_in_words(minutes, said):
    assert claims.time(minutes) == said


def test_committed_claims_cover_all_systems_and_find_their_rows(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = claims.judged("ptbxl-subset")
    assert set(table["system"]) == {"CURE-FM", "landscape", "post-training", "Self-DANA", "this study"}
    assert list(table) == claims.COLUMNS and set(table["status"]) <= set(claims.STATUSES)
    here = [(ROOT / "tables" / "ptbxl-subset" / f"{name}.csv").is_file() for name in table["table"]]
    mine = table["profiles"].str.contains("ptbxl-subset")
    lost = table[np.array(here) & mine & (table["n_rows"] == 0)]
    assert lost.empty, list(lost["id"])
    assert (table.loc[mine & np.array(here), "status"] != "NOT RUN").all()

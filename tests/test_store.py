"""The store writer: rows point at their own signals, memory is bounded by a chunk, a failure leaves the old store."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cure.cohorts.base import Cohort
from cure.cohorts.store import write_store
from cure.errors import CureError

INFO = {"name": "made", "title": "made up", "source": "synthetic", "license": "MIT", "manifest": ""}
STATEMENTS = pd.DataFrame({"description": ["normal"], "diagnostic": [1]}, index=["NORM"])
NONE = pd.DataFrame({"record_id": pd.Series(dtype="int64"), "reason": pd.Series(dtype=object)})


def made_records(n: int) -> pd.DataFrame:
    table = {
        "patient_id": np.arange(n) // 2,
        "fold": np.int8(1),
        "age": np.float32(50),
        "age_over_89": False,
        "sex": "male",
        "labels": [["NORM"]] * n,
        "start": np.int32(0),
        "n_valid": np.int32(8),
        "n_flat_leads": np.int8(0),
        "clipped_share": np.float32(0),
    }
    return pd.DataFrame(table, index=pd.Index(np.arange(n) + 100))


def chunks(x: np.ndarray, sizes: list[int]):
    yield from np.split(x, np.cumsum(sizes)[:-1])


@given(n=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_record_finds_its_own_signal_at_every_rate(tmp_path, n, seed):
    rng = np.random.default_rng(seed)
    low, present = rng.integers(-9, 9, (n, 12, 8), np.int16), rng.random(n) < 0.5
    high = rng.integers(-9, 9, (int(present.sum()), 12, 40), np.int16)
    out = tmp_path / f"{n}-{seed}"
    sizes = rng.multinomial(n, [0.3, 0.3, 0.4]).tolist()
    signals = {100: (np.ones(n, bool), chunks(low, sizes)), 500: (present, iter([high]))}
    write_store(out, made_records(n), NONE, STATEMENTS, INFO, signals)
    store = Cohort.open(out)
    np.testing.assert_array_equal(store.packed(100)[store.records["row_100"]], low)
    assert store.rates == ([100, 500] if present.any() else [100])
    if present.any():
        rows = np.flatnonzero(present)
        np.testing.assert_array_equal(store.packed(500)[store.records["row_500"].to_numpy()[rows]], high)
        assert (store.records["row_500"].to_numpy()[~present] == -1).all()


def test_other_columns_are_kept_behind_the_required_ones(tmp_path):
    x = np.ones((2, 12, 8), np.int16)
    excluded = pd.DataFrame({"record_id": [7], "reason": ["none"], "detail": ["of note"]})
    signals = {400: (np.ones(2, bool), [x])}
    records = made_records(2).assign(site="here")[["site", *made_records(2)]]
    write_store(tmp_path / "s", records, excluded, STATEMENTS, {**INFO, "scale": "as it is"}, signals)
    store = Cohort.open(tmp_path / "s")
    assert next(iter(store.records)) == "record_id"
    assert list(store.records)[-2:] == ["site", "row_400"]
    assert store.excluded.loc[0, "detail"] == "of note"
    about = json.loads((tmp_path / "s" / "cohort.json").read_text())
    assert about["scale"] == "as it is"
    assert about["rates"] == {"400": {"n": 2, "n_samples": 8}}


@pytest.mark.parametrize(
    ("change", "given_chunks", "message"),
    [
        (lambda r: r.drop(columns="fold"), [(3, 8)], "lack the columns fold"),
        (lambda r: r.iloc[:0], [(3, 8)], "no record of made can be used"),
        (lambda r: r.set_axis([1, 2, 1]), [(3, 8)], "record_id 1 of made occurs twice"),
        (lambda r: r, [(2, 8)], "2 signals came for 3 records"),
        (lambda r: r, [(2, 8), (2, 8)], "does not fit behind row 2"),
        (lambda r: r, [(2, 8), (1, 9)], "does not fit behind row 2"),
    ],
)
def test_what_does_not_fit_is_an_error_and_the_old_store_stays(tmp_path, change, given_chunks, message):
    whole = {100: (np.ones(3, bool), [np.ones((3, 12, 8), np.int16)])}
    write_store(tmp_path / "s", made_records(3), NONE, STATEMENTS, INFO, whole)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    bad = [np.zeros((k, 12, n), np.int16) for k, n in given_chunks]
    records = change(made_records(3))
    with pytest.raises(CureError, match=message):
        write_store(tmp_path / "s", records, NONE, STATEMENTS, INFO, {100: (np.ones(len(records), bool), bad)})
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_floats_are_refused(tmp_path):
    with pytest.raises(CureError, match="expected int16"):
        write_store(
            tmp_path / "s", made_records(1), NONE, STATEMENTS, INFO, {100: (np.ones(1, bool), [np.zeros((1, 12, 8))])}
        )


def test_memory_is_that_of_a_chunk(tmp_path):
    n, one = 40, 12 * 4096 * 2
    stream = (np.full((4, 12, 4096), i, np.int16) for i in range(n // 4))
    tracemalloc.start()
    write_store(tmp_path / "s", made_records(n), NONE, STATEMENTS, INFO, {400: (np.ones(n, bool), stream)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * one < n * one

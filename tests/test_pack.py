"""Bad records are listed with their reason, bad folders stop the stage, a failed run leaves the old store alone."""

import json

import numpy as np
import pandas as pd
import pytest
import wfdb
from conftest import INFO, pack_folder
from scipy.signal import resample_poly

from cure.cohorts import pack, ptbxl
from cure.cohorts.base import RECORD_COLUMNS, Cohort
from cure.errors import CureError
from cure.signals import LEADS


def rewrite(raw, record_id, samples=None, fs=100, names=None, gain=1000.0):
    """Write a record anew, through wfdb, with something wrong about it."""
    path = raw / "records100" / "00000"
    name = f"{record_id:05d}_lr"
    old = wfdb.rdrecord(str(path / name), physical=False)
    wfdb.wrsamp(
        name,
        fs=fs,
        units=["mV"] * 12,
        sig_name=names or old.sig_name,
        d_signal=old.d_signal if samples is None else samples,
        fmt=["16"] * 12,
        adc_gain=[gain] * 12,
        baseline=[0] * 12,
        write_dir=str(path),
    )
    return old.d_signal


def reasons(raw, tmp_path):
    store = pack_folder(raw, tmp_path / "p" / "small", tmp_path / "scratch", max_excluded=0.5, chunk_size=50)
    return store, store.excluded.set_index("record_id")["reason"]


def test_the_store_holds_what_wfdb_reads(raw_folder, cohort):
    assert len(cohort) == 160
    assert cohort.rates == [100, 500]
    assert not len(cohort.excluded)
    assert set(RECORD_COLUMNS) <= set(cohort.records)
    for row, fs, suffix in ((0, 100, "lr"), (159, 100, "lr"), (19, 500, "hr")):
        record = f"records{fs}/00000/{row + 1:05d}_{suffix}"
        expected = wfdb.rdrecord(str(raw_folder / record)).p_signal.T
        np.testing.assert_allclose(cohort.signals(np.array([row]), fs)[0], expected, atol=1e-6)
    assert cohort.packed(100).dtype == np.int16
    assert tuple(json.loads((cohort.folder / "cohort.json").read_text())["leads"]) == LEADS


def test_row_order_does_not_depend_on_workers_or_chunks(raw_folder, cohort, tmp_path):
    other = pack_folder(raw_folder, tmp_path / "p" / "small", tmp_path / "scratch", chunk_size=7, n_jobs=2)
    for name in ("records.parquet", "signals_100.npy", "signals_500.npy", "cohort.json"):
        assert (other.folder / name).read_bytes() == (cohort.folder / name).read_bytes(), name
    assert not (tmp_path / "scratch").exists()


def test_each_fault_is_listed_with_its_reason(raw_copy, tmp_path):
    folder = raw_copy / "records100" / "00000"
    (folder / "00002_lr.dat").write_bytes((folder / "00002_lr.dat").read_bytes()[:5000])
    rewrite(raw_copy, 4, fs=250)
    samples = rewrite(raw_copy, 5, names=["II", "I", *LEADS[2:]])
    rewrite(raw_copy, 6, gain=200.0)
    rewrite(raw_copy, 7, samples=samples[:500])
    nan = samples.copy()
    nan[10:20, 3] = -32768
    rewrite(raw_copy, 8, samples=nan)
    data = bytearray((folder / "00009_lr.dat").read_bytes())
    data[100] ^= 1
    (folder / "00009_lr.dat").write_bytes(data)
    (folder / "00010_lr.hea").write_text("not a header\n")
    rewrite(raw_copy, 11, samples=np.zeros_like(samples))
    store, why = reasons(raw_copy, tmp_path)
    expected = {
        2: "truncated",
        4: "sampling rate 250 Hz, expected 100 Hz",
        5: "leads II I III",
        6: "gain 200",
        7: "500 samples, expected 1000",
        8: "NaN",
        9: "checksum",
        10: "unreadable",
        11: "all leads flat",
    }
    assert sorted(why.index) == sorted(expected)
    for record, text in expected.items():
        assert text in why[record], (record, why[record])
    assert not set(store.records["record_id"]) & set(expected)
    assert len(store) == 160 - len(expected)
    # Rows still point at their own signals.
    row = store.records.index[store.records["record_id"] == 12][0]
    direct = wfdb.rdrecord(str(folder / "00012_lr"), physical=False).d_signal.T
    np.testing.assert_array_equal(store.packed(100)[store.records["row_100"][row]], direct)


def test_a_record_with_500_hz_only_is_listed_too(raw_copy, tmp_path):
    for suffix in ("hea", "dat"):
        (raw_copy / "records100" / "00000" / f"00003_lr.{suffix}").unlink()
    store, why = reasons(raw_copy, tmp_path)
    assert why.to_dict() == {3: "no 100 Hz signal"}
    assert len(store) == 159
    assert store.records["row_500"].max() == 18


def test_a_flat_lead_is_flagged_and_kept(raw_copy, tmp_path):
    samples = rewrite(raw_copy, 3)
    samples[:, 7] = 12
    rewrite(raw_copy, 3, samples=samples)
    store, why = reasons(raw_copy, tmp_path)
    assert not len(why)
    assert store.records.set_index("record_id")["n_flat_leads"][3] >= 1


def test_a_file_that_vanished_after_the_manifest_is_named(raw_copy, tmp_path):
    metadata, statements = ptbxl.read_metadata(raw_copy), ptbxl.read_statements(raw_copy)
    files = {str(f.relative_to(raw_copy)) for f in raw_copy.glob("records*/*/*")}
    (raw_copy / "records100" / "00000" / "00001_lr.dat").unlink()
    out = tmp_path / "p" / "small"
    pack.pack(raw_copy, metadata, statements, files, INFO, out, tmp_path / "scratch", max_excluded=0.5)
    excluded = Cohort.open(out).excluded
    assert "missing file 00001_lr.dat" in excluded["reason"][0]


def test_too_many_bad_records_stop_the_stage_and_leave_the_old_store(raw_copy, tmp_path):
    out = tmp_path / "p" / "small"
    before = pack_folder(raw_copy, out, tmp_path / "scratch").records
    for record in range(1, 20):
        (raw_copy / "records100" / "00000" / f"{record:05d}_lr.dat").write_bytes(b"")
    with pytest.raises(CureError, match=r"19 of 160 records .* more than max_excluded = 0.02 .*1: "):
        pack_folder(raw_copy, out, tmp_path / "scratch", chunk_size=64)
    pd.testing.assert_frame_equal(Cohort.open(out).records, before)


def test_other_files_never_take_up_old_chunks(raw_copy, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    out, scratch = tmp_path / "p" / "small", tmp_path / "scratch"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack, "write_store", stop)
        pack_folder(raw_copy, out, scratch)
    assert list(scratch.rglob("*.npz"))
    monkeypatch.setitem(INFO, "manifest", "another hash")
    samples = rewrite(raw_copy, 1)
    rewrite(raw_copy, 1, samples=samples // 2)
    store = pack_folder(raw_copy, out, scratch)
    np.testing.assert_array_equal(store.packed(100)[0], (samples // 2).T)


def test_opening_what_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(CureError, match="make repro PROFILE=demo"):
        Cohort.open(tmp_path / "demo" / "synthetic")


def test_asking_for_a_rate_that_is_not_stored_is_an_error(cohort):
    with pytest.raises(CureError, match=r"stored at \[100, 500\] Hz, not at 250"):
        cohort.signals(np.array([0]), 250)
    with pytest.raises(CureError, match="1 records have no 500 Hz signal, the first is 160"):
        cohort.signals(np.array([0, 159]), 500)


def test_records_can_be_read_at_any_rate_at_or_below_a_stored_one(cohort):
    """As stored where there is such a rate; else polyphase from the next higher, for the records that have it."""
    fast = np.flatnonzero(cohort.records["row_500"] >= 0)[:3]
    np.testing.assert_array_equal(cohort.resampled(fast, 100), cohort.signals(fast, 100))
    expected = resample_poly(cohort.signals(fast, 500), 1, 2, axis=-1)
    np.testing.assert_allclose(cohort.resampled(fast, 250), expected, rtol=1e-6)
    half = cohort.resampled(np.arange(4), 50)
    assert half.shape == (4, 12, 500)
    assert half.dtype == np.float32
    slow = np.flatnonzero(cohort.records["row_500"] < 0)[:1]
    with pytest.raises(CureError, match="1 records have no signal at 250 Hz or more, the first is"):
        cohort.resampled(np.r_[fast, slow], 250)

"""Any folder of WFDB records: leads by name, units, rates and lengths, labels, folds, faults, and the page about it."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import wfdb
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from cure import cli, embed, explain, notebooks, posttrain, protocols
from cure.cohorts import acquire, wfdb_folder, wfdb_record
from cure.cohorts import pack as pack_stage
from cure.cohorts.base import RECORD_COLUMNS, Cohort
from cure.config import STAGES, check, parameters, settings
from cure.errors import CureError
from cure.finetune import taking_part
from cure.settings.download import DownloadConfig
from cure.settings.prepare import PrepareConfig
from cure.signals import LEADS
from cure.splits import make_splits
from cure.tasks import groups

INFO = {"name": "own", "title": "own records", "source": "wfdb", "license": "", "manifest": "0"}


def record(folder, name, mv, fs=100, names=LEADS, unit="mV", gain=1000.0, fmt="16"):
    """Write (n_leads, n_samples) mV through wfdb, in any unit and gain."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    per_unit = {"mV": 1.0, "uV": 1e-3, "V": 1e3}.get(unit, 1.0)
    digital = np.rint(mv / per_unit * gain).astype(np.int64).T
    n = len(names)
    how = {"units": [unit] * n, "sig_name": list(names), "fmt": [fmt] * n, "adc_gain": [gain] * n, "baseline": [0] * n}
    wfdb.wrsamp(path.name, fs=fs, d_signal=digital, write_dir=str(path.parent), **how)


def einthoven(n_samples, seed=0):
    """(12, n_samples) mV in whole microvolts, limb leads that obey the identities exactly (even I and II)."""
    x = np.random.default_rng(seed).integers(-700, 700, (12, n_samples)) * 2.0
    i, ii = x[0], x[1]
    x[2:6] = ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2
    return x / 1000


def table(names, **columns):
    return pd.DataFrame({"record": names, "patient_id": [f"p{i}" for i in range(len(names))], **columns})


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Starting workers costs more than reading a dozen records."""
    monkeypatch.setattr(wfdb_folder.joblib, "cpu_count", lambda: 1)


@pytest.fixture
def folder(tmp_path):
    """Twelve records of twelve patients at 100 Hz in two subfolders, with one label; a test may change it."""
    root = tmp_path / "own"
    names = [f"{'a' if i % 2 else 'b'}/rec{i}" for i in range(12)]
    for i, name in enumerate(names):
        record(root, name, einthoven(1000, i))
    labels = table(names, age=range(30, 42), sex=["m", "Female", "", *["f"] * 9], AF=[1, 0, 0] * 4)
    labels.to_csv(root / "labels.csv", index=False)
    return root


def edit(folder, **columns):
    labels = pd.read_csv(folder / "labels.csv", dtype=str).assign(**columns)
    labels.to_csv(folder / "labels.csv", index=False)


def pack(folder, tmp_path, **settings):
    manifest = wfdb_folder.acquire(folder, DownloadConfig(profile="own"))
    config = PrepareConfig(profile="own", **{"chunk_size": 5, "max_excluded": 0.9, **settings})
    out = tmp_path / "own-store" / "own"
    wfdb_folder.pack_raw(folder, set(manifest["path"]), INFO, out, tmp_path / "scratch", config)
    return Cohort.open(out)


def refused(said, call, *arguments):
    with pytest.raises(CureError, match=said):
        call(*arguments)


# --- one record


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        *((lead, lead) for lead in LEADS),
        ("AVR", "aVR"),
        ("avf", "aVF"),
        ("MDC_ECG_LEAD_I", "I"),
        ("MDC_ECG_LEAD_AVL", "aVL"),
        ("Lead III", "III"),
        ("ECG V3", "V3"),
        ("ekg-ii", "II"),
        ("C4", "V4"),
        ("DII", "II"),
        ("D1", "I"),
        ("-aVR", None),
        ("aVR-", None),
        (" II- ", None),
        ("V1 -", None),
        ("Lead -I", None),
        ("I-II", None),
        ("V-1", "V1"),
        ("MLII", None),
        ("V3R", None),
        ("V7", None),
        ("PLETH", None),
        ("ECG", None),
        ("", None),
    ],
)
def test_leads_are_known_by_their_names(name, lead):
    assert wfdb_record.lead_index(name) == (None if lead is None else LEADS.index(lead))


@given(pair=st.sets(st.integers(0, 5), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_any_two_limb_leads_give_the_others(pair, seed):
    whole = einthoven(30, seed)
    present = np.ones(12, bool)
    present[:6] = [i in pair for i in range(6)]
    got = wfdb_record.complete(np.where(present[:, None], whole, 0), present)
    np.testing.assert_allclose(got, whole, atol=1e-12)


def test_nothing_is_made_up_from_one_lead_or_from_a_constant_one():
    whole = einthoven(30)
    for present in (np.arange(12) == 1, np.isin(np.arange(12), [0, 1, 6])):
        x = np.where(present[:, None], whole, 0)
        if present[0]:
            x[0] = 0.3
        np.testing.assert_array_equal(wfdb_record.complete(x, present), x)
    x = whole.copy()
    x[3] += 1  # a recorded lead stays as recorded, identity or not
    np.testing.assert_array_equal(wfdb_record.complete(x, np.ones(12, bool)), x)


@pytest.mark.parametrize(
    ("unit", "gain", "fmt"), [("mV", 1000.0, "16"), ("uV", 1.0, "24"), ("V", 1e6, "32"), ("mV", 500.0, "212")]
)
def test_any_unit_gain_and_format_gives_the_same_microvolts(tmp_path, unit, gain, fmt):
    mv = einthoven(1000) * 0.9
    mv = np.rint(mv * 500) / 500
    record(tmp_path, "one", mv, unit=unit, gain=gain, fmt=fmt)
    got = wfdb_record.read_record(tmp_path / "one")
    np.testing.assert_array_equal(got.signal, np.rint(mv * 1000).astype(int))
    assert (got.fs, got.n_derived, got.cut, got.clipped) == (100, 0, False, 0)


def test_a_unit_in_greek_letters_is_not_taken_for_volts(tmp_path):
    mv = einthoven(1000)
    record(tmp_path, "one", mv, unit="uV", gain=1.0)
    header = (tmp_path / "one.hea").read_text()
    for micro in ("µ".encode(), "μ".encode(), "µ".encode("latin-1")):
        (tmp_path / "one.hea").write_bytes(header.encode().replace(b"/uV", b"/" + micro + b"V"))
        np.testing.assert_array_equal(wfdb_record.read_record(tmp_path / "one").signal, np.rint(mv * 1000))


@pytest.mark.parametrize("gain", ["1000./mV", "1e3/mV", ".1e+4(0)/mV", "+1000/mV", "1000"])
def test_a_gain_may_be_any_decimal_number(tmp_path, gain):
    mv = einthoven(1000)
    record(tmp_path, "one", mv)
    rewritten("1000.0(0)/mV", gain)(tmp_path, "one")
    np.testing.assert_array_equal(wfdb_record.read_record(tmp_path / "one").signal, np.rint(mv * 1000))


def test_an_inverted_channel_is_not_taken_for_its_lead(tmp_path):
    mv = einthoven(1000)
    record(tmp_path, "one", np.vstack([mv[:3], -mv[3:4], mv[4:]]), names=[*LEADS[:3], "aVR-", *LEADS[4:]])
    got = wfdb_record.read_record(tmp_path / "one")
    np.testing.assert_array_equal(got.signal, np.rint(mv * 1000))  # aVR is computed from I and II
    assert got.n_derived == 1


def test_channels_in_another_order_with_others_between_them(tmp_path):
    mv = einthoven(1000)
    order = ["V6", "PLETH", "AVR", "II", "v1", "I"]
    kept = np.array([LEADS.index(lead) for lead in ("V6", "aVR", "II", "V1", "I")])
    record(tmp_path, "one", np.insert(mv[kept], 1, 0.5, axis=0), names=order)
    got = wfdb_record.read_record(tmp_path / "one")
    expected = mv.copy()
    expected[7:11] = 0  # V2 to V5 follow from nothing
    np.testing.assert_array_equal(got.signal, np.rint(expected * 1000))
    assert got.n_derived == 3


def test_matlab_files_of_the_physionet_challenges(tmp_path):
    mv = einthoven(5000)
    digital = np.rint(mv * 1000).astype(np.int16)
    scipy.io.savemat(tmp_path / "A1.mat", {"val": digital}, format="4")
    lines = [
        f"A1.mat 16+24 1000/mV 16 0 {d[0]} {int(d.sum()) % 65536} 0 {n}" for d, n in zip(digital, LEADS, strict=True)
    ]
    (tmp_path / "A1.hea").write_text("\n".join(["A1 12 500 5000", *lines, "#Age: 74", "#Dx: 426783006", ""]))
    got = wfdb_record.read_record(tmp_path / "A1")
    np.testing.assert_array_equal(got.signal, digital)
    assert got.fs == 500


def test_amplitudes_beyond_int16_are_clipped_and_counted(tmp_path):
    mv = einthoven(1000)
    mv[6, :30] = 40
    record(tmp_path, "one", mv, gain=500)
    got = wfdb_record.read_record(tmp_path / "one")
    assert got.signal[6, :30].tolist() == [32767] * 30
    assert got.clipped == pytest.approx(30 / 12000)


def rewritten(pattern, text):
    def change(folder, name):
        path = folder / f"{name}.hea"
        changed = path.read_text().replace(pattern, text)
        assert changed != path.read_text()
        path.write_text(changed)

    return change


def written(mv, **how):
    return lambda folder, name: record(folder, name, mv, **how)


def nan_sample(folder, name):
    mv = einthoven(1000)
    mv[3, 500] = -32.768
    record(folder, name, mv)


def flipped(folder, name):
    data = bytearray((folder / f"{name}.dat").read_bytes())
    data[100] ^= 1
    (folder / f"{name}.dat").write_bytes(data)


FAULTS = {
    "unit 'mmHg' is not a voltage": rewritten("/mV", "/mmHg"),
    "no gain in the header": rewritten("1000.0(0)/mV", "0(0)/mV"),
    "invalid (NaN) samples": nan_sample,
    "shorter than 5 s": written(einthoven(499)),
    "all leads flat": written(np.ones((12, 1000))),
    "no standard lead among its channels (ABP, PLETH)": written(einthoven(1000)[:2], names=["ABP", "PLETH"]),
    "two channels are the same lead": written(einthoven(1000)[:2], names=["II", "Lead II"]),
    "sampling rate 128.5 Hz is not a whole number": rewritten("12 100 1000", "12 128.5 1000"),
    "do not match the header's checksum": flipped,
    "unreadable": lambda folder, name: (folder / f"{name}.dat").write_bytes(b"\x01" * 5000),
    "not a WFDB header": lambda folder, name: (folder / f"{name}.hea").write_text("hello\n"),
    "several segments": lambda folder, name: (folder / f"{name}.hea").write_text("rec/2 12 100 1000\nx 500\ny 500\n"),
    "missing file .dat": lambda folder, name: (folder / f"{name}.dat").unlink(),
    "no such record in the folder": lambda folder, name: (folder / f"{name}.hea").unlink(),
}


def test_each_fault_is_listed_with_its_reason(tmp_path):
    folder, bad = tmp_path / "own", [f"bad/rec{i}" for i in range(len(FAULTS))]
    for i, name in enumerate([*bad, "last"]):
        record(folder, name, einthoven(1000, i))
    table([*bad, "last"], AF=0).to_csv(folder / "labels.csv", index=False)
    for name, damage in zip(bad, FAULTS.values(), strict=True):
        damage(folder, name)
    store = pack(folder, tmp_path, max_excluded=0.99)
    why = store.excluded.set_index("record_id")["reason"]
    assert list(why.index) == bad
    for name, expected in zip(bad, FAULTS, strict=True):
        assert expected in why[name], (expected, why[name])
    # A row behind them still points at its own signal.
    assert store.records["record_id"].tolist() == ["last"]
    np.testing.assert_array_equal(store.packed(100)[0], np.rint(einthoven(1000, len(bad)) * 1000))


def test_a_header_that_points_out_of_the_folder_is_not_followed(folder, tmp_path):
    record(tmp_path, "secret", einthoven(1000))
    rewritten("rec4.dat", "../../secret.dat")(folder, "b/rec4")
    manifest = wfdb_folder.acquire(folder, DownloadConfig(profile="own"))
    assert not manifest["path"].str.contains("secret").any()
    store = pack(folder, tmp_path)
    assert store.excluded["record_id"].tolist() == ["b/rec4"]


# --- a folder


def test_the_store_holds_what_the_folder_does(folder, tmp_path):
    store = pack(folder, tmp_path)
    assert list(store.records["record_id"]) == [f"{'a' if i % 2 else 'b'}/rec{i}" for i in range(12)]
    assert set(RECORD_COLUMNS) <= set(store.records)
    np.testing.assert_allclose(store.signals(np.array([7]), 100)[0], einthoven(1000, 7), atol=1e-6)
    assert store.records["sex"].tolist()[:3] == ["male", "female", None]
    assert store.records["age"].tolist() == list(range(30, 42))
    assert (store.records["start"] == 0).all()
    assert (store.records["n_valid"] == 1000).all()
    assert not len(store.excluded)
    labels = store.binary()
    assert labels.names == ["AF"]
    assert labels.y[:, 0].tolist() == [True, False, False] * 4
    assert store.group("all").names == ["AF"]
    refused("no label group 'super'.*it has all", store.group, "super")
    assert not (tmp_path / "scratch").exists()


def test_several_rates_and_lengths_share_one_length_in_seconds(folder, tmp_path):
    long = einthoven(257 * 12 + 5)
    record(folder, "a/rec1", long, fs=257)
    record(folder, "b/rec2", einthoven(700, 3))
    record(folder, "a/rec3", einthoven(1000 * 6 + 300, 4))
    store = pack(folder, tmp_path)
    records = store.records.set_index("record_id")
    assert store.rates == [100, 257]
    assert {fs: store.packed(fs).shape for fs in store.rates} == {100: (11, 12, 6000), 257: (1, 12, 60 * 257)}
    assert records["n_valid"].loc[["a/rec1", "b/rec2", "a/rec3", "b/rec0"]].tolist() == [1201, 700, 6000, 1000]
    assert records["row_257"].loc["a/rec1"] == 0
    assert records["row_100"].loc["a/rec1"] == -1
    packed = store.packed(257)[0]
    np.testing.assert_array_equal(packed[:, : long.shape[1]], np.rint(long * 1000))
    assert not packed[:, long.shape[1] :].any()
    assert not store.packed(100)[records["row_100"]["b/rec2"], :, 700:].any()
    assert json.loads((store.folder / "cohort.json").read_text())["n_cut_to_60_s"] == 1


def test_the_first_usable_record_is_shown_as_it_is_stored(folder):
    (folder / "b/rec0.dat").unlink()
    flipped(folder, "a/rec1")
    record(folder, "b/rec2", einthoven(1000, 2)[[6, 1, 0]], names=["V1", "II", "I"])
    files = wfdb_folder.acquire(folder, DownloadConfig(profile="own"))["path"]
    first = wfdb_folder.first_record(folder, files)
    assert (first.record_name, first.fs) == ("b/rec2", 100)
    np.testing.assert_allclose(first.p_signal.T[:7], einthoven(1000, 2)[:7], atol=1e-9)
    refused("no record of .* can be used .b/rec0: no such record", wfdb_folder.first_record, folder, [])


def test_reconstructed_and_flat_leads_are_counted(folder, tmp_path):
    record(folder, "b/rec0", einthoven(1000)[[0, 1, 6]], names=["I", "II", "V1"])
    store = pack(folder, tmp_path)
    assert store.records["n_flat_leads"].tolist() == [5, *[0] * 11]
    assert store.info["n_with_derived_limb_leads"] == 1
    np.testing.assert_allclose(store.signals(np.array([0]), 100)[0][:7], einthoven(1000)[:7], atol=1e-6)


def test_records_without_labels_are_listed_and_do_not_count_as_faults(folder, tmp_path):
    record(folder, "c/other", einthoven(1000))
    manifest = wfdb_folder.acquire(folder, DownloadConfig(profile="own"))
    assert manifest["path"].str.startswith("c/").sum() == 1  # the header: the study reads no sample of it
    store = pack(folder, tmp_path, max_excluded=0)
    assert store.excluded.to_numpy().tolist() == [["c/other", "not in labels.csv"]]


def test_too_many_faults_stop_the_stage_and_leave_the_old_store(folder, tmp_path):
    before = pack(folder, tmp_path).records
    for name in ("b/rec0", "a/rec1"):
        flipped(folder, name)
    with pytest.raises(CureError, match=r"2 of 12 records of own .*max_excluded = 0.1 .*b/rec0: samples do not"):
        pack(folder, tmp_path, max_excluded=0.1)
    pd.testing.assert_frame_equal(Cohort.open(tmp_path / "own-store" / "own").records, before)


def test_bytes_depend_neither_on_chunks_nor_on_an_interruption(folder, tmp_path, monkeypatch):
    record(folder, "a/rec3", einthoven(2600, 4), fs=250)
    files = (
        "records.parquet",
        "excluded.parquet",
        "signals_100.npy",
        "signals_250.npy",
        "cohort.json",
        "statements.csv",
    )
    store = pack(folder, tmp_path)
    first = {name: (store.folder / name).read_bytes() for name in files}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(wfdb_folder, "write_store", stop)
        pack(folder, tmp_path, chunk_size=2)
    assert len(list((tmp_path / "scratch").rglob("*.npz"))) == 6
    monkeypatch.setattr(wfdb_folder, "read_record", stop)  # nothing is read again
    store = pack(folder, tmp_path, chunk_size=2)
    assert {name: (store.folder / name).read_bytes() for name in files} == first


# --- labels


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"AF": ["2", *["0"] * 11]}, r"column 'AF' is not 0 or 1 .* in 1 row.*b/rec0"),
        ({"AF": ["", *["0"] * 11]}, "column 'AF' is not 0 or 1"),
        ({"report": "sinus"}, "column 'report' is not 0 or 1"),
        ({"a#b": "0"}, "'a#b' cannot name a label"),
        ({"macro": "0"}, "'macro' cannot name a label"),
        ({"age": "old"}, "age is not a number of years"),
        ({"age": "300"}, "age is not a number of years between 0 and 120 in 12 row"),
        ({"sex": "1"}, "sex is not male, female"),
        ({"fold": "11"}, r"fold is not one of 1\.\.10"),
        ({"fold": ["1", "2", *["3"] * 10], "patient_id": ["p", "p", *"abcdefghij"]}, "records are in several folds"),
        ({"patient_id": ["", *"abcdefghijk"]}, "patient_id is empty in 1 row.*b/rec0"),
        ({"patient_id": "p"}, "lists 1 patients: ten folds by patient need ten"),
        ({"record": "b/rec0"}, "the record is listed twice in 11 row"),
        ({"record": "../rec0"}, "listed twice|Refused the file name"),
        (
            {"record": [f"x{i}" for i in range(12)]},
            r"holds none of the 12 records .*the first record there is 'a/rec1'",
        ),
    ],
)
def test_labels_that_cannot_be_used(folder, columns, said):
    edit(folder, **columns)
    refused(said, wfdb_folder.acquire, folder, DownloadConfig(profile="own"))


def test_a_folder_without_what_it_needs(folder, tmp_path):
    config = DownloadConfig(profile="own")
    labels = pd.read_csv(folder / "labels.csv")
    refused("set CURE_WFDB_DIR to the one", wfdb_folder.acquire, tmp_path / "nowhere", config)
    labels.drop(columns="patient_id").to_csv(folder / "labels.csv", index=False)
    refused("no column patient_id: without it no split by patient", wfdb_folder.acquire, folder, config)
    labels.drop(columns="record").to_csv(folder / "labels.csv", index=False)
    refused("no column record", wfdb_folder.acquire, folder, config)
    labels.drop(columns="AF").to_csv(folder / "labels.csv", index=False)
    refused("has no label", wfdb_folder.acquire, folder, config)
    labels.iloc[:0].to_csv(folder / "labels.csv", index=False)
    refused("lists no record", wfdb_folder.acquire, folder, config)
    (folder / "labels.csv").unlink()
    refused(r"has no labels\.csv", wfdb_folder.acquire, folder, config)


@pytest.mark.parametrize("names", [["1", "2"], ["NA"], ["nan", "AF"]])
def test_label_names_that_csv_would_change_are_refused(names):
    refused("reads as a number or a missing value", wfdb_folder.statements, names)


def test_known_names_keep_their_meaning():
    table = wfdb_folder.statements(["AFIB", "echo LVEF<40, 1AVB"])
    assert table["description"].tolist() == ["atrial fibrillation", "echo LVEF<40, 1AVB"]


def test_folds_are_by_patient_stratified_and_the_same_again(tmp_path):
    rng = np.random.default_rng(0)
    n = 600
    labels = table([f"r{i}" for i in range(n)], rare=(rng.random(n) < 0.05).astype(int), often=rng.integers(0, 2, n))
    labels["patient_id"] = rng.integers(0, 250, n)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    one = wfdb_folder.read_labels(tmp_path)
    pd.testing.assert_frame_equal(one, wfdb_folder.read_labels(tmp_path))
    assert one.groupby("patient_id")["fold"].nunique().max() == 1
    counts = one.groupby("fold")[["rare", "often"]].sum()
    assert len(counts) == 10
    assert counts["rare"].max() - counts["rare"].min() <= 2
    assert one["fold"].value_counts().max() <= 66
    make_splits(one.reset_index(), "rotate")
    edit(tmp_path, fold=(labels["patient_id"] % 10 + 1).astype(str))
    np.testing.assert_array_equal(wfdb_folder.read_labels(tmp_path)["fold"], labels["patient_id"] % 10 + 1)


# --- the page


def blocks():
    """The page's code blocks, (language, text) in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "own-cohort.md").read_text(), re.MULTILINE | re.DOTALL)


def shell(text, monkeypatch):
    """Do what the page's commands do, without starting a kernel for their notebooks: a cell of each calls this."""
    stages = {"download": (acquire.acquire, DownloadConfig), "prepare": (pack_stage.prepare, PrepareConfig)}
    for line in text.replace(" && ", "\n").splitlines():
        if line.startswith("export "):
            monkeypatch.setenv(*line.removeprefix("export ").split("="))
            continue
        options = cli._parser().parse_args(line.split()[1:])
        assert line.split()[0] == "cure"
        if line == "cure clean":
            notebooks.clean()
            continue
        assert (Path("data/notebooks") / notebooks.file_name(options.stage)).exists(), "which `cure clean` writes"
        monkeypatch.setenv("CURE_STAGE", options.stage)
        work, model = stages[options.stage]
        work(check(model, **parameters(options.stage, options.profile)))
    monkeypatch.delenv("CURE_STAGE")


def test_the_page_about_own_cohorts_works_as_it_stands(project, monkeypatch, capsys):
    names = {}
    for language, text in blocks():
        if language == "python":
            exec(compile(text, "docs/own-cohort.md", "exec"), names)
        elif language == "sh":
            shell(text, monkeypatch)
        elif language == "yaml":
            profile = yaml.safe_load((ROOT / "profiles" / "demo.yaml").read_text()) | yaml.safe_load(text)
            (project / "profiles" / "own.yaml").write_text(yaml.safe_dump(profile))
            configs = {stage: check(settings(stage), **parameters(stage, "own")) for stage in STAGES}
    example = next(text for language, text in blocks() if language == "csv")
    assert (project / "ecgs" / "labels.csv").read_text().startswith(example)
    cohort = names["cohort"]
    assert len(cohort) == 240
    assert cohort.rates == [250]
    tasks = ["AFIB", "wide_qrs"]
    assert cohort.binary().names == tasks
    # Every section that names tasks names those of this cohort, and enough records list them.
    assert [task.name for task in protocols.chosen_tasks(configs["protocols"], cohort)] == tasks
    assert all(list(explain.labels(configs[stage], cohort)) == tasks for stage in ("explain", "faithfulness"))
    assert configs["ablations"].balanced_tasks == tasks
    assert configs["probes"].task in tasks
    assert set(configs["heads"].groups) == set(groups(cohort.statements))
    n_train = min(len(split.train) for split in make_splits(cohort.records, "rotate"))
    assert max(configs["explain"].top_k) <= n_train
    wide = cohort.binary().y[:, tasks.index("wide_qrs")]
    counts = [wide[split.test].sum() for split in make_splits(cohort.records, "rotate")]
    assert min(counts) >= 10, "what stage probes needs"
    assert n_train >= parameters("finetune", "own")["batch_size"], "too few to train a network on"
    assert not configs["efficiency"].trained, "a share of them is less than a batch"
    adapted, parts = configs["posttrain"], make_splits(cohort.records, "rotate")
    found = posttrain.labels(adapted, cohort, parts, "all")
    assert len(taking_part(parts[0], found).train) >= adapted.batch_size, "too few to train a network on"
    made = {one.folder for one in embed.representations(configs["embed"])}
    named = {
        *configs["ablations"].subjects,
        *configs["efficiency"].representations,
        configs["protocols"].representation,
    }
    assert named <= made
    for stage in ("explain", "faithfulness"):
        demo = configs[stage].model_copy(update={"tasks": ["1AVB"]})
        refused(
            f"section {stage} of profile 'own': '1AVB' is no binary task; choose from AFIB",
            explain.labels,
            demo,
            cohort,
        )
    np.testing.assert_allclose(cohort.signals(np.arange(240), 250), names["signals"], atol=0.0011)
    said = capsys.readouterr().out
    assert "none excluded" in said
    assert all(f"{task}: AUROC {names['auroc'][task]:.2f}" in said for task in ("AFIB", "wide_qrs"))
    assert names["auroc"]["wide_qrs"] > 0.7  # a random network sees as much

"""Own records: every format gives the same millivolts, whatever its rate, unit, order and names; gaps are errors."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_files import MDC, ecgs, write_csv, write_dicom, write_edf, write_npy, write_npz, write_wfdb

from cure.errors import CureError
from cure.own import readers
from cure.own.find import find
from cure.own.names import lead_of, split_unit, unit_of
from cure.own.record import Given, Record
from cure.signals import LEADS

pytest.importorskip("edfio", reason="pip install -e '.[records]'")
pydicom = pytest.importorskip("pydicom", reason="pip install -e '.[records]'")
ALL = tuple(range(12))


@pytest.fixture(scope="module")
def mv():
    """One ECG, (12, 2500) mV at 250 Hz."""
    return ecgs()[0]


def read(path, **given):
    """The one record at a path, or why it cannot be used."""
    (found,) = readers.load(find([Path(path)]), Given(**given), ALL)
    return found


def refused(said, path, **given):
    reason = read(path, **given)
    assert isinstance(reason, str)
    assert said in reason, reason


def same(record, mv, fs=250):
    assert isinstance(record, Record), record
    assert record.fs == fs
    np.testing.assert_allclose(record.x, mv, atol=1e-5)


# --- round trips


def test_every_format_gives_the_same_millivolts(mv, tmp_path):
    stack = np.stack([mv, -mv])
    written = [
        write_wfdb(tmp_path / "a", mv, 250),
        write_edf(tmp_path / "b.edf", mv, 250),
        write_dicom(tmp_path / "c.dcm", mv, 250),
        write_csv(tmp_path / "d.csv", mv, 250, names=[f"{lead} (mV)" for lead in LEADS]),
        write_npz(tmp_path / "e.npz", mv, 250),
        write_npy(tmp_path / "f.npy", mv, fs=250, unit="mV", leads=list(LEADS)),
        write_npy(tmp_path / "g.npy", stack, fs=250, unit="mV", leads=list(LEADS)),
    ]
    items = find([tmp_path])
    names = [path.as_posix() for path in written]
    assert [one.name for one in items] == [*names[:-1], f"{names[-1]}#0", f"{names[-1]}#1"]
    found = readers.load(items, Given(), ALL)
    for one in found[:-1]:
        same(one, mv)
        assert one.present.all()
        assert not one.derived.any()
        assert not one.notes
    same(found[-1], -mv)


@pytest.mark.parametrize("unit", ["mV", "uV", "V"])
@pytest.mark.parametrize("kind", ["wfdb", "edf", "dicom", "npz"])
def test_units_are_those_of_the_file(mv, tmp_path, unit, kind):
    if kind == "dicom":
        sensitivity = {"mV": 0.001, "uV": 1.0, "V": 1e-6}[unit]
        path = write_dicom(tmp_path / "x.dcm", mv, 250, unit=unit, sensitivity=sensitivity)
    else:
        write = {"wfdb": write_wfdb, "edf": write_edf, "npz": write_npz}[kind]
        path = write(tmp_path / {"wfdb": "x", "edf": "x.edf", "npz": "x.npz"}[kind], mv, 250, unit=unit)
    same(read(path), mv)


def test_counts_of_a_converter_need_their_gain(mv, tmp_path):
    counts = np.rint(mv * 1000).astype(np.int16)
    path = write_npy(tmp_path / "x.npy", counts.T)
    said = {"rate": 250, "leads": LEADS, "unit": "adc"}
    refused("--gain", path, **said)
    same(read(path, **said, gain=1000), mv)
    same(read(write_npy(tmp_path / "y.npy", counts, fs=250, unit="adc", gain=1000, leads=list(LEADS))), mv)
    refused("how many are 1 mV with --gain", write_dicom(tmp_path / "z.dcm", mv / 1000, 250, sensitivity=None))


@pytest.mark.parametrize("fs", [100, 128, 500, 1000, 257.5, 97.3])
def test_any_rate(tmp_path, fs):
    x = ecgs(fs=100, seconds=25)[0]
    same(read(write_npz(tmp_path / "x.npz", x, fs)), x, fs)
    same(read(write_csv(tmp_path / "x.csv", x, fs), unit="mV"), x, pytest.approx(fs, rel=1e-6))


def test_rounded_times_give_the_rate_and_gaps_are_refused(mv, tmp_path):
    path = write_csv(tmp_path / "x.csv", mv, names=[f"{lead}_mV" for lead in LEADS])
    table = pd.read_csv(path)
    table.insert(0, "t (ms)", np.round(np.arange(len(table)) * 1000 / 360).astype(int))
    table.to_csv(path, index=False)
    same(read(path), mv, 360)
    table.drop(index=range(300, 400)).to_csv(path, index=False)
    refused("not evenly spaced", path)


# --- leads


def test_leads_in_any_order_and_number(mv, tmp_path):
    order = [11, 0, 7, 1]
    names = [LEADS[i] for i in order]
    for path in (
        write_wfdb(tmp_path / "a", mv[order], 250, names),
        write_edf(tmp_path / "b.edf", mv[order], 250, names),
        write_dicom(tmp_path / "c.dcm", mv[order], 250, names),
        write_npz(tmp_path / "e.npz", mv[order], 250, names),
    ):
        found = read(path)
        np.testing.assert_allclose(found.x[order], mv[order], atol=1e-5)
        # III, aVR, aVL and aVF follow from I and II: halves of whole microvolts are not rounded.
        np.testing.assert_allclose(found.x[2:6], mv[2:6], atol=6e-4)
        assert [LEADS[i] for i in np.flatnonzero(found.derived)] == ["III", "aVR", "aVL", "aVF"]
        assert [LEADS[i] for i in np.flatnonzero(found.present)] == ["I", "II", "V2", "V6"]
        assert not found.x[[6, 8, 9, 10]].any()
        assert found.quality[-1] == "missing-leads"


@pytest.mark.parametrize("pair", [(0, 2), (3, 4), (1, 5), (2, 3)])
def test_any_two_limb_leads_determine_the_others(mv, tmp_path, pair):
    found = read(write_npz(tmp_path / "x.npz", mv[list(pair)], 250, [LEADS[i] for i in pair]))
    np.testing.assert_allclose(found.x[:6], mv[:6], atol=2.1e-3)
    assert found.derived.sum() == 4


def test_one_lead(mv, tmp_path):
    found = read(write_npy(tmp_path / "x.npy", mv[1]), rate=250, unit="mV", leads=("II",))
    np.testing.assert_allclose(found.x[1], mv[1], atol=1e-6)
    assert found.present.sum() == 1
    assert not found.derived.any()


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        *zip(MDC.values(), LEADS, strict=True),
        *((f"MDC_ECG_LEAD_{lead.upper()}", lead) for lead in LEADS),
        ("131073", "I"),
        ("131134", "aVR"),
        ("5.6.3-9-1", "I"),
        ("5.6.3-9-64", "aVF"),
        ("5.6.3-9-8", "V6"),
        ("LEAD I", "I"),
        ("Lead I (Einthoven)", "I"),
        ("AVR", "aVR"),
        ("ecg_I", "I"),
        ("ECG V3", "V3"),
        ("EKG aVF", "aVF"),
        ("I_mV", "I"),
        ("II [uV]", "II"),
        ("v1 (mV)", "V1"),
        ("C4", "V4"),
        ("DII", "II"),
        ("-aVR", None),
        ("V7", None),
        ("2:16", None),
        ("131088", None),
        ("MLII", None),
        ("Resp", None),
        ("time_s", None),
        ("", None),
    ],
)
def test_names_of_leads(name, lead):
    found = lead_of(name)
    assert (None if found is None else LEADS[found]) == lead


def test_codes_are_those_of_dicoms_own_dictionary():
    from pydicom.sr.codedict import codes

    meanings = {"aVR": "AvrAugmentedVoltageRight", "aVL": "AvlAugmentedVoltageLeft", "aVF": "AvfAugmentedVoltageFoot"}
    for i, lead in enumerate(LEADS):
        code = getattr(codes.MDC, meanings.get(lead, f"Lead{lead}"))
        assert lead_of(code.value) == i


def test_spellings_of_units():
    assert [unit_of(text) for text in ("mv", "Millivolts", "µV", "μV", "uv", "V", "nV", "counts", "mmHg", "")] == [
        *("mV", "mV", "uV", "uV", "uV", "V", "nV", "adc", None, None)
    ]
    assert split_unit("aVR (µV)") == ("aVR", "uV")
    assert split_unit("aVL") == ("aVL", None)


def test_names_from_the_option_and_what_contradicts_it(mv, tmp_path):
    bare = write_npy(tmp_path / "x.npy", mv[:3])
    refused("name all 3 in order with --leads", bare, rate=250, unit="mV")
    refused("3 channels, but --leads names 2", write_csv(tmp_path / "y.csv", mv[:3], 250, "abc"), leads=("I", "II"))
    found = read(tmp_path / "y.csv", unit="mV", leads=("-", "V2", "I"))
    np.testing.assert_allclose(found.x[[7, 0]], mv[1:3], atol=1e-6)
    # The file comes first, and the output says that an option was of no use.
    told = read(write_npz(tmp_path / "z.npz", mv, 250), rate=500, unit="uV", leads=LEADS[::-1])
    same(told, mv)
    assert [note.split(" not used")[0] for note in told.notes] == ["--rate", "--leads", "--unit"]
    refused("two channels are the same lead (V1)", write_npz(tmp_path / "w.npz", mv[:2], 250, ["V1", "C1"]))


# --- what files do not say


def test_nothing_is_guessed(mv, tmp_path):
    csv = write_csv(tmp_path / "x.csv", mv)
    refused("--rate", csv, unit="mV")
    refused("--unit", csv, rate=250)
    same(read(csv, rate=250, unit="mV"), mv)
    (tmp_path / "x.json").write_text(json.dumps({"sampling_rate": 250, "unit": "uV"}))
    same(read(csv), mv / 1000)
    (tmp_path / "x.json").write_text(json.dumps({"fs": -1}))
    refused("rate -1 is not a positive number", csv)
    (tmp_path / "x.json").write_text("{")
    refused("x.json beside it is not JSON", csv)


def test_a_wrong_unit_is_found_out(mv, tmp_path):
    refused("the unit is wrong", write_npy(tmp_path / "x.npy", mv * 1000), rate=250, unit="mV", leads=LEADS)
    refused("unit 'mmHg' is not a voltage", _with_unit(tmp_path / "y.npz", mv, "mmHg"))


def _with_unit(path, mv, unit):
    np.savez(path, signal=mv, fs=250, unit=unit, leads=np.array(LEADS))
    return path


def test_tables_as_other_countries_write_them(mv, tmp_path):
    path = write_csv(tmp_path / "x.csv", mv, 250, [f"{lead}_mV" for lead in LEADS], sep=";", decimal=",")
    same(read(path), mv)
    path.write_text("# a remark\n" + path.read_text())
    same(read(path), mv)
    tab = write_csv(tmp_path / "x.tsv", mv, 250, sep="\t")
    tab.write_bytes(b"\xef\xbb\xbf" + tab.read_bytes())
    same(read(tab, unit="mV"), mv)
    np.savetxt(tmp_path / "bare.csv", mv.T, delimiter=",")
    same(read(tmp_path / "bare.csv", rate=250, unit="mV", leads=LEADS), mv)


def test_columns_may_say_rate_and_unit(mv, tmp_path):
    path = write_csv(tmp_path / "x.csv", mv)
    table = pd.read_csv(path).assign(fs=250, unit="mV")
    table.to_csv(path, index=False)
    same(read(path), mv)
    table.assign(fs=np.arange(len(table))).to_csv(path, index=False)
    refused("'fs' does not have one value", path)


def test_an_archive_of_one_array_per_lead(mv, tmp_path):
    np.savez(tmp_path / "x.npz", V5=mv[10], lead_I=mv[0], fs=250, unit="mV")
    found = read(tmp_path / "x.npz")
    np.testing.assert_allclose(found.x[[10, 0]], mv[[10, 0]], atol=1e-6)
    np.savez(tmp_path / "x.npz", a=mv, b=mv)
    refused("which of its arrays is the signal?", tmp_path / "x.npz")


# --- long, short and damaged


def test_long_records_are_cut_and_say_so(mv, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LARGE_BYTES", 10_000)
    for path in (
        write_wfdb(tmp_path / "a", mv, 250),
        write_edf(tmp_path / "b.edf", mv, 250),
        write_dicom(tmp_path / "c.dcm", mv, 250),
        write_csv(tmp_path / "d.csv", mv, 250, [f"{lead}_mV" for lead in LEADS]),
        write_npz(tmp_path / "e.npz", mv, 250),
        write_npy(tmp_path / "f.npy", mv, fs=250, unit="mV", leads=list(LEADS)),
    ):
        found = read(path, max_seconds=5.0)
        same(found, mv[:, :1250])
        assert found.notes == ["cut to 5 s"]


def damaged(folder, mv):
    """Files that cannot be used, and what is said of each."""
    cut = write_wfdb(folder / "cut", mv, 250).with_suffix(".dat")
    cut.write_bytes(cut.read_bytes()[:1000])
    write_wfdb(folder / "gone", mv, 250).with_suffix(".dat").unlink()
    write_wfdb(folder / "none", mv, 250)
    header = folder / "none.hea"
    header.write_text(header.read_text().replace("1000.0(0)/mV", "0(0)/mV"))
    write_wfdb(folder / "sum", mv, 250)
    blob = bytearray((folder / "sum.dat").read_bytes())
    blob[500] ^= 1
    (folder / "sum.dat").write_bytes(bytes(blob))
    (folder / "text.edf").write_text("not an EDF")
    cut = write_edf(folder / "half.edf", mv, 250)
    cut.write_bytes(cut.read_bytes()[:-5000])
    (folder / "text.dcm").write_text("not DICOM")
    (folder / "empty.csv").write_text("")
    (folder / "words.csv").write_text("I,II\n" + "a,b\n" * 600)
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "empty.npy").write_bytes(b"")
    holes = mv.copy()
    holes[3, 100] = np.nan
    write_npz(folder / "nan.npz", holes, 250)
    write_npz(folder / "flat.npz", mv * 0, 250)
    write_npz(folder / "short.npz", mv[:, :300], 250)
    write_csv(folder / "other.csv", mv[:2], 250, ["systolic", "weight"])
    return {
        "cut.hea": "unreadable or damaged",
        "gone.hea": "missing file gone.dat",
        "none.hea": "no gain in the header",
        "sum.hea": "do not match the header's checksum",
        "text.edf": "unreadable or damaged",
        "half.edf": "truncated",
        "text.dcm": "unreadable or damaged",
        "empty.csv": "an empty file",
        "words.csv": "column 'I' is not numbers",
        "pickled.npy": "Python objects",
        "empty.npy": "unreadable or damaged",
        "nan.npz": "invalid (NaN) samples in aVR",
        "flat.npz": "all leads flat",
        "short.npz": "shorter than 2 s (300 samples at 250 Hz)",
        "other.csv": "no standard lead among its channels (systolic, weight)",
    }


def test_a_damaged_file_says_why_and_stops_no_other(mv, tmp_path):
    reasons = damaged(tmp_path, mv)
    write_npz(tmp_path / "zz.npz", mv, 250)
    items = find([tmp_path])
    found = dict(zip([one.path.name for one in items], readers.load(items, Given(), ALL), strict=True))
    same(found.pop("zz.npz"), mv)
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in str(found[name]), f"{name}: {found[name]}"


def test_without_the_library_the_record_says_what_to_install(mv, tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(readers, "import_module", absent)
    refused("pip install -e '.[records]'", write_edf(tmp_path / "x.edf", mv, 250))


def test_pydicoms_own_ecg():
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "waveform_ecg.dcm"
    if not path.is_file():
        pytest.skip("this pydicom comes without its test files")
    found = read(path)
    dataset = pydicom.dcmread(path)
    expected = pydicom.waveforms.multiplex_array(dataset, 0, as_raw=False).T / 1000  # its unit is uV
    same(found, expected, 1000)
    assert found.seconds == 10
    assert found.present.all()


# --- finding


def test_what_is_found(mv, tmp_path):
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    write_wfdb(tmp_path / "deep" / "r", mv, 250)
    write_npz(tmp_path / "deep" / ".hidden" / "x.npz", mv, 250)
    write_dicom(tmp_path / "IM0001", mv, 250)
    (tmp_path / "README.txt").write_text("words")
    (tmp_path / "noext").write_text("words")
    assert [one.path.name for one in find([tmp_path])] == ["IM0001", "r.hea"]
    record = tmp_path / "deep" / "r"
    several = [record, record.with_suffix(".dat"), record.with_suffix(".hea"), tmp_path]
    assert [one.path.name for one in find(several)] == ["r.hea", "IM0001"]
    assert [one.format for one in find([tmp_path], ["dicom"])] == ["dicom"]
    with pytest.raises(CureError, match="nowhere is not there"):
        find([tmp_path / "nowhere"])
    with pytest.raises(CureError, match=r"README.txt is of no known format: .csv, "):
        find([tmp_path / "README.txt"])
    with pytest.raises(CureError, match="no record of edf at"):
        find([tmp_path], ["edf"])

"""CODE-15 %: each of its traps is handled and counted, packing is bounded and resumes, downloads are verified."""

import hashlib
import json
import os
import tracemalloc
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from test_download import Server

from cure import download, tasks
from cure.cohorts import acquire, code15, code15_tracings, pack, synthetic_code15
from cure.cohorts.base import Cohort
from cure.config import check
from cure.errors import CureError
from cure.settings.download import DownloadConfig
from cure.settings.prepare import PrepareConfig
from cure.splits import make_splits

INFO = {"name": "c15", "title": "exams", "source": "code15", "license": code15.LICENSE, "manifest": ""}
LENGTHS = (4000, 2920)


def tracing(seed: int, n: int = 4000, first: int | None = None) -> np.ndarray:
    """One row of `tracings`: `n` samples of noise in mV between zeros."""
    x = np.zeros((4096, 12), np.float32)
    first = (4096 - n) // 2 if first is None else first
    x[first : first + n] = np.random.default_rng(seed).normal(0, 0.3, (n, 12)) + 0.001
    return x


def write_folder(folder, parts: list[dict[int, np.ndarray]], exams: pd.DataFrame | None = None):
    """Write parts of CODE-15 % and an `exams.csv` that lists all their exams, each of another patient."""
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        with h5py.File(folder / f"exams_part{i}.hdf5", "w") as file:
            file["exam_id"] = np.array([*part, 0])
            file["tracings"] = np.stack([*part.values(), tracing(0, 0)])
    table = exams_table({exam: i for i, part in enumerate(parts) for exam in part}) if exams is None else exams
    table.to_csv(folder / "exams.csv", index=False)
    return folder


def exams_table(part_of: dict[int, int]) -> pd.DataFrame:
    ids = np.array(list(part_of))
    labels = {name: (ids % (2 + k)) == 0 for k, name in enumerate(code15.CODES)}
    files = [f"exams_part{part}.hdf5" for part in part_of.values()]
    return pd.DataFrame(
        {"exam_id": ids, "age": 50, "is_male": ids % 2 == 0, "patient_id": ids * 10, "trace_file": files, **labels}
    )


def pack_folder(raw, tmp_path, chunk_size=7, max_excluded=0.9, name="c15") -> Cohort:
    files = {path.name for path in raw.iterdir()}
    config = SimpleNamespace(chunk_size=chunk_size, max_excluded=max_excluded, profile="p")
    code15.pack_raw(raw, files, INFO, tmp_path / "p" / name, tmp_path / "scratch", config)
    return Cohort.open(tmp_path / "p" / name)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Chunks are read in this process, where memory is measured and calls are counted."""
    monkeypatch.setattr(code15.joblib, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code15") / "raw"
    synthetic_code15.write(folder, n_records=80, seed=0)
    return folder


# --- what is read


def test_the_simulated_cohort_is_packed_as_it_was_written(raw, tmp_path):
    store = pack_folder(raw, tmp_path, max_excluded=0.02)
    assert len(store) == 78
    assert store.rates == [400]
    counts = store.excluded["reason"].value_counts().to_dict()
    assert counts == {code15_tracings.PADDING: 2, "all samples are zero": 1, "same tracing as another exam": 1}
    assert set(store.records["n_valid"]) == set(LENGTHS)
    by_id = store.records.set_index("record_id")
    exams = pd.read_csv(raw / "exams.csv", index_col="exam_id")
    for part in (0, 1):
        with h5py.File(raw / f"exams_part{part}.hdf5") as file:
            for i, exam in enumerate(file["exam_id"][:]):
                if exam in by_id.index:
                    mine = store.packed(400)[by_id.loc[exam, "row_400"]]
                    np.testing.assert_array_equal(mine.T, np.rint(file["tracings"][i] * 1000))
                    start, n = by_id.loc[exam, ["start", "n_valid"]]
                    assert (mine[:, :start] == 0).all() and (mine[:, start + n :] == 0).all()
                    assert mine[:, start].any() and mine[:, start + n - 1].any()
    row = exams.loc[by_id.index]
    assert (by_id["patient_id"] == row["patient_id"]).all()
    assert (by_id["sex"].eq("male") == row["is_male"]).all()
    for label, code in code15.CODES.items():
        assert (store.listed[code] == row[label]).all()
        assert store.listed[code].any(), "every task has positives"
    assert store.binary().y.shape == (78, len(store.binary().names))


def test_a_seed_decides_every_byte_of_the_simulated_cohort(raw, tmp_path):
    synthetic_code15.write(tmp_path / "same", n_records=80, seed=0)
    synthetic_code15.write(tmp_path / "same", n_records=80, seed=0)  # our own is replaced
    for path in raw.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes(), path.name
    synthetic_code15.write(tmp_path / "other", n_records=80, seed=1)
    assert (tmp_path / "other" / "exams.csv").read_bytes() != (raw / "exams.csv").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(CureError, match="not a simulated CODE-15 % cohort"):
        synthetic_code15.write(tmp_path / "mine", n_records=80, seed=0)


def test_each_trap_is_listed_with_its_reason(tmp_path):
    nan, flat, lead, clipped, gap = (tracing(seed) for seed in (3, 4, 5, 6, 7))
    nan[2000, 3] = np.nan
    flat[48:4048] = 0.25
    lead[:, 7] = 0
    clipped[1000:1040, 2] = -40.0
    gap[1000:1400] = 0  # zeros inside a tracing are no padding
    first = {
        11: tracing(1),
        12: tracing(2, 2920, first=0),
        13: nan,
        14: flat,
        15: lead,
        16: clipped,
        17: gap,
        18: tracing(0, 0),
        19: tracing(9, 1999),
        20: tracing(9, 2000),
        21: tracing(21),
    }
    second = {31: tracing(1, first=10), 5: tracing(2, 2920), 32: tracing(32), 21: tracing(33)}
    exams = exams_table(dict.fromkeys([*first, 40], 0) | dict.fromkeys([5, 31], 1))  # no 32, and 40 has no tracing
    raw = write_folder(tmp_path / "raw", [first, second], exams)
    store = pack_folder(raw, tmp_path)
    told = store.excluded.set_index("record_id")["reason"]
    assert told.drop(0).to_dict() == {
        12: "same tracing as another exam",
        13: "invalid (NaN or infinite) samples",
        14: "all leads flat",
        18: "all samples are zero",
        19: "shorter than 5 s",
        21: "exam_id occurs again",
        31: "same tracing as another exam",
        32: "not in exams.csv: no labels, no patient",
        40: "in exams.csv, not in its part",
    }
    assert (told[0] == code15_tracings.PADDING).sum() == 2
    # The lowest exam_id of equal tracings stays, wherever it lies in its row or among the parts.
    detail = store.excluded.set_index("record_id")["detail"]
    assert detail[12] == "exam 5 of patient 50"
    assert detail[31] == "exam 11 of patient 110"
    kept = store.records.set_index("record_id")
    assert kept.index.tolist() == [11, 15, 16, 17, 20, 21, 5]
    assert kept.loc[15, "n_flat_leads"] == 1
    assert kept["n_flat_leads"].sum() == 1
    assert kept.loc[16, "clipped_share"] == pytest.approx(40 / (4000 * 12))
    assert store.packed(400)[kept.loc[16, "row_400"]].min() == -32767
    assert kept.loc[[17, 20, 5], ["start", "n_valid"]].to_numpy().tolist() == [[48, 4000], [1048, 2000], [588, 2920]]
    assert store.info["n_clipped"] == 1
    assert store.info["excluded"]["shorter than 5 s"] == 1
    assert sum(store.info["excluded"].values()) == len(store.excluded)


def test_the_scale_is_stated_and_nothing_is_rescaled(tmp_path):
    raw = write_folder(tmp_path / "raw", [{1: tracing(1), 2: 2 * tracing(2)}])
    store = pack_folder(raw, tmp_path)
    np.testing.assert_array_equal(store.packed(400)[1].T, np.rint(2 * tracing(2) * 1000))
    ranges = np.median([np.ptp(np.rint(k * tracing(k)[48:4048] * 1000), axis=0) for k in (1, 2)], axis=0)
    assert list(store.info["median_range_mv"].values()) == pytest.approx(ranges / 1000, abs=1e-3)
    assert "nothing is rescaled" in store.info["scale"]
    assert store.info["license"] == "CC BY 4.0"
    assert store.info["doi"].startswith("10.5281/zenodo")


def test_folds_are_by_patient_stratified_and_serve_both_schemes(tmp_path):
    raw = tmp_path / "raw"
    synthetic_code15.write(raw, n_records=300, seed=2)
    store = pack_folder(raw, tmp_path, chunk_size=64)
    assert store.records.groupby("patient_id")["fold"].nunique().max() == 1
    assert store.records["patient_id"].nunique() < len(store)
    assert sorted(store.records["fold"].unique()) == list(range(1, 11))
    assert make_splits(store.records, "official")[0].test.size in range(25, 36)
    assert len(make_splits(store.records, "rotate")) == 5
    shares = store.listed.groupby(store.records["fold"].to_numpy()).sum() / store.listed.sum()
    assert shares.to_numpy().max() < 0.25


def test_the_seven_labels_are_tasks_and_in_no_group_but_all(raw, tmp_path):
    store = pack_folder(raw, tmp_path)
    assert tuple(store.binary().names) == tasks.CURE_FM
    assert len(store.binary().rows) == len(store), "an exam with none of the labels is a negative of each"
    assert tasks.groups(store.statements) == ("all",)
    assert store.statements.loc["CRBBB", "description"] == "complete right bundle branch block"
    for name in ("diag", "rhythm", "super"):
        with pytest.raises(CureError, match=f"no label group '{name}'.*it has all"):
            store.group(name)


# --- the exam that is shown


@pytest.mark.parametrize("n_bad", [3, 70])
def test_the_first_usable_exam_is_shown_however_late_it_comes(tmp_path, n_bad):
    bad = {i: tracing(0, 0) for i in range(1, n_bad + 1)}
    exams = exams_table(dict.fromkeys(bad, 0) | {501: 0})
    raw = write_folder(tmp_path / "raw", [{**bad, 500: tracing(500), 501: tracing(501)}], exams)  # no 500 in exams.csv
    shown = code15.first_record(raw, ["exams.csv", "exams_part0.hdf5"], tmp_path)
    assert shown.record_name == "exams_part0, exam 501"
    np.testing.assert_allclose(shown.p_signal, tracing(501)[48:4048], atol=0.0006)


def test_the_next_part_is_looked_at_and_none_is_said(tmp_path):
    raw = write_folder(tmp_path / "raw", [{1: tracing(0, 0)}, {2: tracing(2, 2920)}])
    names = [f"exams_part{i}.hdf5" for i in (1, 0)]
    shown = code15.first_record(raw, names, tmp_path)
    assert (shown.record_name, shown.p_signal.shape) == ("exams_part1, exam 2", (2920, 12))
    with pytest.raises(CureError, match=r"no exam of exams_part0.hdf5 is usable and in exams.csv"):
        code15.first_record(raw, names[1:], tmp_path)


# --- bounds and interruptions


def test_memory_is_that_of_a_chunk_not_of_the_cohort(tmp_path):
    raw = write_folder(tmp_path / "raw", [{i: tracing(i) for i in range(1, 121)}])
    tracemalloc.start()
    store = pack_folder(raw, tmp_path, chunk_size=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(store) == 120
    assert peak < 10 * 0.8e6 + 2e6 < 120 * 4096 * 12 * 2


def test_an_interrupted_run_reads_only_what_it_had_not_read(raw, tmp_path, monkeypatch):
    wanted = pack_folder(raw, tmp_path, name="whole")
    read, seen = code15.read_chunk, []

    def counting(path, rows):
        seen.append((path.name, rows[0]))
        if len(seen) == 9:
            raise KeyboardInterrupt
        return read(path, rows)

    monkeypatch.setattr(code15, "read_chunk", counting)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(raw, tmp_path)
    assert not (tmp_path / "p" / "c15").exists()
    chosen = code15._chosen

    def stops(shards, usable):
        chunks = chosen(shards, usable)
        yield next(chunks)
        yield next(chunks)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(code15, "_chosen", stops)
        pack_folder(raw, tmp_path)
    n_chunks = 2 * 6  # 41 rows each, 7 at a time
    assert len(seen) == 9 + (n_chunks - 8), "chunk 9 again, the first eight not"
    pack_folder(raw, tmp_path)
    assert len(seen) == 9 + (n_chunks - 8) + 1, "only the chunk that the store had taken"
    for path in wanted.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "p" / "c15" / path.name).read_bytes(), path.name
    assert not (tmp_path / "scratch").exists()


def test_too_many_unusable_exams_stop_the_stage(tmp_path):
    bad = {i: tracing(0, 0) for i in range(50, 55)}
    raw = write_folder(tmp_path / "raw", [{i: tracing(i) for i in range(1, 6)} | bad])
    with pytest.raises(CureError, match=r"5 of 11 exams of c15 .* max_excluded = 0.1 .*all samples are zero: 5"):
        pack_folder(raw, tmp_path, max_excluded=0.1)
    again = write_folder(tmp_path / "again", [{i: tracing(1) for i in range(1, 6)} | {9: tracing(9)}])
    assert len(pack_folder(again, tmp_path / "again", max_excluded=0)) == 2, (
        "repeated tracings are no sign of a bad copy"
    )


# --- files that are not what they should be


def zipped(raw, folder, names=None):
    folder.mkdir()
    for path in raw.iterdir():
        if path.suffix == ".hdf5":
            with zipfile.ZipFile(folder / f"{path.stem}.zip", "w") as archive:
                for name in names or [path.name]:
                    archive.write(path, name)
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_zips_are_unpacked_one_at_a_time_and_give_the_same_store(raw, tmp_path, monkeypatch):
    wanted = pack_folder(raw, tmp_path, name="plain")
    seen, read = [], code15.read_ids

    def look(path):
        seen.append(sorted(file.name for file in (tmp_path / "scratch").glob("*.hdf5")))
        return read(path)

    monkeypatch.setattr(code15, "read_ids", look)
    store = pack_folder(zipped(raw, tmp_path / "zips"), tmp_path)
    assert seen == [["exams_part0.hdf5"], ["exams_part1.hdf5"]]
    for path in wanted.folder.iterdir():
        assert path.read_bytes() == (store.folder / path.name).read_bytes(), path.name


def test_damaged_parts_are_named(tmp_path):
    raw = write_folder(tmp_path / "raw", [{1: tracing(1)}, {2: tracing(2)}])
    two = zipped(raw, tmp_path / "two", ["a.hdf5", "b.hdf5"])
    with pytest.raises(CureError, match=r"exams_part0.zip holds a.hdf5, b.hdf5, expected one .hdf5 file"):
        pack_folder(two, tmp_path)
    cut = zipped(raw, tmp_path / "cut")
    data = bytearray((cut / "exams_part1.zip").read_bytes())
    data[len(data) // 2] ^= 255
    (cut / "exams_part1.zip").write_bytes(data)
    with pytest.raises(CureError, match=r"exams_part1.zip is damaged"):
        pack_folder(cut, tmp_path)
    assert not list((tmp_path / "scratch").glob("*.hdf5"))
    plain = write_folder(tmp_path / "plain", [{1: tracing(1)}])
    (plain / "exams_part0.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(CureError, match=r"exams_part0.hdf5 is damaged or no HDF5 file"):
        pack_folder(plain, tmp_path)
    with h5py.File(plain / "exams_part0.hdf5", "w") as file:
        file["exam_id"], file["tracings"] = np.array([1]), np.zeros((1, 12, 4096), np.float32)
    with pytest.raises(CureError, match=r"float32 \(1, 12, 4096\) for \(1,\) ids, expected float32 \(n, 4096, 12\)"):
        pack_folder(plain, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="AF"), "has no column AF"),
        (lambda t: t.assign(exam_id=1), "exam_id occurs twice"),
        (lambda t: t.assign(patient_id=[1.5, 2]), "patient_id is not a whole number"),
        (lambda t: t.assign(SB=["True", "maybe"]), "SB is neither true nor false .*exam_id 2"),
    ],
)
def test_an_exam_table_of_another_form_is_refused(tmp_path, change, message):
    raw = write_folder(tmp_path / "raw", [{1: tracing(1), 2: tracing(2)}], change(exams_table({1: 0, 2: 0})))
    with pytest.raises(CureError, match=message):
        code15.read_exams(raw)


def test_an_age_that_cannot_be_is_unknown_and_counted(tmp_path):
    exams = exams_table({1: 0, 2: 0}).assign(age=[-3, 61])
    store = pack_folder(write_folder(tmp_path / "raw", [{1: tracing(1), 2: tracing(2)}], exams), tmp_path)
    assert np.isnan(store.records["age"][0])
    assert store.records["age"][1] == 61
    assert store.info["n_age_unknown"] == 1


# --- getting the files


@pytest.fixture
def zenodo(raw, tmp_path, monkeypatch):
    """A local server with two zips, exams.csv and a record that lists their MD5 sums."""
    files = {path.name: path.read_bytes() for path in zipped(raw, tmp_path / "public").iterdir()}
    listing = [{"key": name, "checksum": f"md5:{hashlib.md5(data).hexdigest()}"} for name, data in files.items()]
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    with Server({**files, "record": json.dumps({"files": listing}).encode()}) as running:
        monkeypatch.setattr(code15, "FILES_URL", running.url)
        monkeypatch.setattr(code15, "RECORD_URL", running.url + "record")
        yield running


def settings(parts, fetch=True):
    return SimpleNamespace(parts=parts, fetch=fetch)


def test_the_chosen_parts_are_downloaded_and_continued(zenodo, tmp_path):
    folder, name = tmp_path / "new", "exams_part1.zip"
    whole = len(zenodo.files[name])
    zenodo.faults[name] = [("cut", whole // 2)]
    df = code15.acquire(folder, settings([1]))
    assert df["path"].tolist() == ["exams.csv", name]
    assert df["sha256"].tolist() == [hashlib.sha256(zenodo.files[path]).hexdigest() for path in df["path"]]
    assert zenodo.sent(name)[-1] < whole, "the second connection brought only the rest"
    n = len(zenodo.requests)
    pd.testing.assert_frame_equal(code15.acquire(folder, settings([1])), df)
    assert len(zenodo.requests) == n, "complete files are not asked for again"
    assert code15.acquire(folder, settings([0, 1]))["path"].tolist() == ["exams.csv", "exams_part0.zip", name]


def test_a_file_of_another_md5_is_refused_and_an_absent_record_is_not_needed(zenodo, tmp_path):
    zenodo.faults["exams_part0.zip"] = [("wrong", b"a login page")] * 2
    with pytest.raises(CureError, match=r"exams_part0.zip .* not the published file.*expected md5 [0-9a-f]{32}"):
        code15.acquire(tmp_path / "a", settings([0]))
    zenodo.faults["record"] = [("status", 503, {})]
    assert code15.acquire(tmp_path / "b", settings([0]))["path"].tolist() == ["exams.csv", "exams_part0.zip"]


def test_a_partial_local_copy_is_a_smaller_cohort(raw, tmp_path):
    copy = zipped(raw, tmp_path / "copy")
    (copy / "exams_part0.hdf5").write_bytes((raw / "exams_part0.hdf5").read_bytes())
    names = code15.acquire(copy, settings(None, fetch=False))["path"].tolist()
    assert names == ["exams.csv", "exams_part0.hdf5", "exams_part1.zip"], "unpacked is preferred, the rest is absent"
    with pytest.raises(CureError, match=r"holds no exams_part7.zip: .*CURE_CODE15_DIR"):
        code15.acquire(copy, settings([7], fetch=False))
    with pytest.raises(CureError, match=r"holds no exams_part9.zip: .*correct `parts`"):
        code15.acquire(copy, settings([0, 9], fetch=False))  # what was asked for is never dropped in silence
    with pytest.raises(CureError, match=r"holds no exams.csv"):
        code15.acquire(tmp_path / "nowhere", settings(None, fetch=False))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(CureError, match="neither empty nor a folder of CODE-15 %"):
        code15.acquire(other, settings([0]))


# --- the stages


def test_the_stages_find_the_source_and_its_second_cohort_folder(project, monkeypatch):
    profile = {
        "summary": "Exams for tests.",
        "cohort": {"name": "exams", "title": "80 simulated exams", "source": "synthetic-code15", "split": "rotate"},
    }
    (project / "profiles" / "exams.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setenv("CURE_STAGE", "download")
    config = check(DownloadConfig, profile="exams", n_records=80, parts=[0, 1])
    manifest = acquire.acquire(config)
    assert manifest["path"].tolist() == ["exams.csv", "exams_part0.hdf5", "exams_part1.hdf5"]
    record = acquire.first_record(config, manifest)
    assert record.fs == 400
    assert record.p_signal.shape in [(n, 12) for n in LENGTHS]
    monkeypatch.setenv("CURE_STAGE", "prepare")
    store = pack.prepare(check(PrepareConfig, profile="exams", max_excluded=0.05))
    assert len(store) == 78
    assert store.info["license"] == "MIT"
    assert "doi" not in store.info
    np.testing.assert_allclose(
        store.signals(np.array([0]), 400)[0, :, store.records["start"][0] :][:, :100],
        record.p_signal[:100].T,
        atol=1e-6,
    )
    unmade = check(DownloadConfig, profile="exams", n_records=80, parts=[0, 9])
    with pytest.raises(CureError, match="lists 9, but source synthetic-code15 has only 0 to 1"):
        acquire.acquire(unmade)
    with pytest.raises(CureError, match="n_records is missing"):
        acquire.acquire(check(DownloadConfig, profile="exams"))
    assert os.environ["CURE_STAGE"] == "prepare"

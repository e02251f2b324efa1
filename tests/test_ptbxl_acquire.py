"""PTB-XL's metadata and record files: whole, partial, broken, foreign, downloaded."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_download import Server, sha

from cure import download
from cure.cohorts import acquire as stage
from cure.cohorts import external, ptbxl
from cure.config import check, parameters, profiles
from cure.errors import CureError
from cure.settings.download import DownloadConfig

REAL = os.environ.get("CURE_PTBXL_DIR")
N = 12


@pytest.fixture
def folder(tmp_path):
    """PTB-XL in small: 12 records at both rates, ids 1, 2, 4, 5, ... (PTB-XL has gaps too)."""
    root = tmp_path / "ptb-xl"
    ids = np.array([i for i in range(1, 40) if i % 3][:N])
    df = pd.DataFrame(
        {
            "ecg_id": ids,
            "patient_id": 100.0 + ids,
            "age": [300.0, 89.0, 0.0, *range(20, 20 + N - 3)],
            "sex": ids % 2,
            "recording_date": "1984-11-09 09:17:34",
            "report": 'sinus, "normal"\nekg',
            "scp_codes": "{'NORM': 100.0, 'SR': 0.0}",
            "strat_fold": ids % 10 + 1,
            "filename_lr": [f"records100/{i // 20:05}/{i:05}_lr" for i in ids],
            "filename_hr": [f"records500/{i // 20:05}/{i:05}_hr" for i in ids],
        }
    )
    root.mkdir()
    df.to_csv(root / "ptbxl_database.csv", index=False)
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "NDT,non-diagnostic T,1.0,1.0,,STTC,STTC\nSR,sinus rhythm,,,1.0,,\n"
    )
    for stem in [*df["filename_lr"], *df["filename_hr"]]:
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{stem}.hea").write_text(f"{Path(stem).name} 12 100 1000\n")
        (root / f"{stem}.dat").write_bytes(stem.encode() * 50)
    return root


@pytest.fixture
def edit(folder):
    """Change the metadata: `edit(column, row, value)`."""

    def change(column, row, value):
        df = pd.read_csv(folder / "ptbxl_database.csv", dtype=object)
        df.loc[row, column] = value
        df.to_csv(folder / "ptbxl_database.csv", index=False)

    return change


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def physionet(folder, monkeypatch):
    """A server that publishes `folder` and its sums, and is all that `acquire` knows of PhysioNet."""
    files = contents(folder)
    sums = "".join(f"{sha(data)} {name}\n" for name, data in files.items())
    pinned = {name: sha(files[name]) for name in ptbxl.PINNED}
    with Server(files | {"SHA256SUMS.txt": sums.encode()}) as server:
        monkeypatch.setattr(ptbxl, "URL", server.url)
        monkeypatch.setattr(ptbxl, "PINNED", pinned)
        monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
        yield server


def acquire(folder, max_id_100=None, max_id_500=None, fetch=False, pinned=False):
    return ptbxl.acquire(folder, max_id_100=max_id_100, max_id_500=max_id_500, download=fetch, pinned=pinned)


def refused(said, folder, **options):
    with pytest.raises(CureError, match=said) as error:
        acquire(folder, **options)
    return str(error.value)


# --- metadata


def test_metadata_types_and_masked_ages(folder):
    df = ptbxl.read_metadata(folder)
    assert df.index.name == "ecg_id"
    assert df["patient_id"].dtype == df["strat_fold"].dtype == np.int64
    assert df["patient_id"].iloc[0] == 101
    assert df["scp_codes"].iloc[0] == {"NORM": 100.0, "SR": 0.0}
    assert df["recording_date"].iloc[0] == pd.Timestamp("1984-11-09 09:17:34")
    assert df["age"].isna().tolist() == df["age_over_89"].tolist() == [True] + [False] * (N - 1)
    assert df["age"].iloc[1:3].tolist() == [89, 0]
    statements = ptbxl.read_statements(folder)
    assert statements[["diagnostic", "form", "rhythm"]].to_numpy().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert statements.index.tolist() == ["NDT", "SR"]


@pytest.mark.parametrize("column", ptbxl.REQUIRED)
def test_a_missing_column_is_named(folder, column):
    pd.read_csv(folder / "ptbxl_database.csv").drop(columns=column).to_csv(folder / "ptbxl_database.csv")
    with pytest.raises(CureError, match=rf"ptbxl_database\.csv has no column {column}.*CURE_PTBXL_DIR"):
        ptbxl.read_metadata(folder)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("ecg_id", "4", "ecg_id occurs twice in 1 row"),
        ("patient_id", "", "patient_id is not a whole number in 1 row.* ecg_id 2"),
        ("patient_id", "7.5", "patient_id is not a whole number"),
        ("strat_fold", "0", r"strat_fold is outside 1\.\.10 in 1 row.* ecg_id 2"),
        ("strat_fold", "11", r"strat_fold is outside 1\.\.10"),
        ("age", "old", "age is not a number"),
        ("age", "-1", r"age is outside 0\.\.120"),
        ("age", "299", r"age is outside 0\.\.120"),
        ("recording_date", "9 Nov 1984", "recording_date is not"),
        ("scp_codes", "{'NORM': ", "scp_codes is not a dict .* ecg_id 2"),
        ("scp_codes", "", "scp_codes is not"),
        ("scp_codes", "['NORM']", "scp_codes is not"),
        ("scp_codes", "__import__('os').getcwd()", "scp_codes is not"),
        ("scp_codes", "{'NORM': 'yes'}", "scp_codes is not"),
    ],
)
def test_unusable_values_name_the_record(folder, edit, column, value, said):
    edit(column, 2 if column == "ecg_id" else 1, value)
    if column == "ecg_id":
        edit(column, 1, value)
    with pytest.raises(CureError, match=said):
        ptbxl.read_metadata(folder)


def test_an_empty_or_binary_database(folder):
    for content in (b"", b"\xff\xfe\x00\x80" * 9):
        (folder / "ptbxl_database.csv").write_bytes(content)
        with pytest.raises(CureError, match=r"cannot be read as CSV"):
            ptbxl.read_metadata(folder)


# --- a local copy


def test_a_whole_copy(folder):
    before = contents(folder)
    df = acquire(folder)
    assert df["path"].tolist() == sorted(before)
    assert len(df) == 2 + N * 2 * 2
    assert df["sha256"].tolist() == [sha(before[name]) for name in df["path"]]
    assert contents(folder) == before


def test_the_highest_ids_per_rate(folder):
    df = acquire(folder, max_id_100=5, max_id_500=0)
    assert [p for p in df["path"] if p.endswith(".dat")] == [f"records100/00000/{i:05}_lr.dat" for i in (1, 2, 4, 5)]
    assert acquire(folder, max_id_100=4, max_id_500=2)["path"].str.endswith("_hr.hea").sum() == 2
    refused("both 0", folder, max_id_100=0, max_id_500=0)


def test_a_partial_copy_leaves_out_what_is_absent(folder):
    shutil.rmtree(folder / "records500")
    for path in folder.glob("records100/00000/0000[12]*"):
        path.unlink()
    df = acquire(folder)
    assert df["path"].str.endswith(".dat").sum() == N - 2
    assert df["path"].str.startswith("records500").sum() == 0


def test_a_copy_without_any_record(folder):
    shutil.rmtree(folder / "records100")
    message = refused("holds none of the 12 records", folder, max_id_500=0)
    assert str(folder) in message
    assert "CURE_PTBXL_DIR" in message
    assert "run the same command again" in message


@pytest.mark.parametrize("end", ["hea", "dat"])
def test_half_a_record_is_a_broken_copy(folder, end):
    (folder / f"records100/00000/00004_lr.{end}").unlink()
    refused(r"broken copy: 1 record file.* records100/00000/00004_lr\.", folder)
    acquire(folder, max_id_100=2)  # not among the records that are taken


def test_a_folder_that_is_not_ptbxl(folder, tmp_path):
    assert f"Did you mean {folder}?" in refused("has no ptbxl_database.csv", tmp_path)
    refused("does not exist", tmp_path / "nowhere")
    (folder / "scp_statements.csv").unlink()
    refused(r"it has no scp_statements\.csv.*CURE_PTBXL_DIR", folder)


def test_another_version(folder, edit, physionet):
    acquire(folder, pinned=True)
    edit("age", 3, "44")
    message = refused(r"is not PTB-XL 1\.0\.3, or its metadata were edited: ptbxl_database\.csv", folder, pinned=True)
    assert ptbxl.PINNED["ptbxl_database.csv"] in message
    assert "scp_statements.csv has" not in message
    refused(r"is not PTB-XL 1\.0\.3", folder, fetch=True)  # nor is it completed with files of 1.0.3
    acquire(folder)


def test_published_sums_find_a_corrupted_file(folder, physionet):
    (folder / "SHA256SUMS.txt").write_bytes(physionet.files["SHA256SUMS.txt"])
    acquire(folder)
    (folder / "records500/00000/00005_hr.dat").write_bytes(b"rot")
    for fetch in (False, True):  # what a user has is reported, never overwritten
        refused(r"1 file\(s\) in .* are not those .*: records500/00000/00005_hr\.dat", folder, fetch=fetch)
    assert (folder / "records500/00000/00005_hr.dat").read_bytes() == b"rot"
    acquire(folder, max_id_500=4)
    (folder / "SHA256SUMS.txt").write_text("<html>")
    refused(r"SHA256SUMS\.txt is damaged", folder)
    assert not physionet.requests


def test_a_path_that_leaves_the_folder(folder, edit):
    edit("filename_lr", 3, "../../secret")
    refused("Refused the file name", folder)


# --- download


def test_download_everything(folder, physionet, tmp_path):
    new = tmp_path / "data" / "raw"
    df = acquire(new, fetch=True, pinned=True)
    assert contents(new) == physionet.files
    pd.testing.assert_frame_equal(df, acquire(folder))
    asked = len(physionet.requests)
    pd.testing.assert_frame_equal(acquire(new, fetch=True, pinned=True), df)
    assert len(physionet.requests) == asked == len(physionet.files)


def test_download_only_what_is_taken_and_missing(folder, physionet):
    shutil.rmtree(folder / "records500")
    (folder / "records100/00000/00004_lr.dat").unlink()
    df = acquire(folder, max_id_500=2, fetch=True)
    assert sorted(r["name"] for r in physionet.requests) == [
        "SHA256SUMS.txt",
        "records100/00000/00004_lr.dat",
        *(f"records500/00000/{i:05}_hr.{end}" for i in (1, 2) for end in ("dat", "hea")),
    ]
    assert df["path"].str.endswith("_hr.dat").sum() == 2


def test_an_interrupted_download_goes_on(physionet, tmp_path):
    victim = "records100/00000/00005_lr.dat"
    physionet.files[victim] *= 40
    sums = {name: sha(data) for name, data in physionet.files.items() if name != "SHA256SUMS.txt"}
    physionet.files["SHA256SUMS.txt"] = "".join(f"{h}  {name}\n" for name, h in sums.items()).encode()
    physionet.faults[victim] = [("cut", 20_000), ("status", 404, {})]
    refused("answered HTTP 404", tmp_path / "new", fetch=True)
    assert (tmp_path / "new" / f"{victim}.part").stat().st_size == 16_384
    acquire(tmp_path / "new", fetch=True)
    assert contents(tmp_path / "new") == physionet.files
    assert physionet.sent(victim)[-1] == len(physionet.files[victim]) - 16_384


def test_nothing_is_downloaded_into_a_foreign_folder(physionet, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("")
    (home / "records").mkdir()
    refused(r"neither empty nor a PTB-XL folder \(it holds records, thesis\.tex\)", home, fetch=True)
    assert not physionet.requests


def test_a_read_only_copy_works_until_something_is_missing(folder, physionet, monkeypatch):
    def read_only(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(ptbxl.tempfile, "TemporaryFile", read_only)
    before = contents(folder)
    acquire(folder, fetch=True, pinned=True)
    assert contents(folder) == before
    (folder / "records100/00000/00004_lr.dat").unlink()
    refused("cannot be downloaded into .*Read-only.*CURE_PTBXL_DIR", folder, fetch=True)
    assert not physionet.requests


def test_sums_of_something_else(folder, physionet):
    (folder / "records100/00000/00004_lr.dat").unlink()
    (folder / "SHA256SUMS.txt").write_text(f"{'0' * 64}  other.csv\n")
    refused(r"SHA256SUMS\.txt does not list records100/00000/00004_lr\.dat.*delete it", folder, fetch=True)


# --- real records


@pytest.mark.skipif(not REAL, reason="CURE_PTBXL_DIR does not name a folder with PTB-XL")
def test_real_records(tmp_path):
    start = time.perf_counter()
    metadata = ptbxl.read_metadata(Path(REAL))
    read = time.perf_counter()
    df = acquire(Path(REAL), max_id_100=1999, max_id_500=500, pinned=True)
    print(f"\nmetadata {read - start:.2f} s; {len(df):,} files acquired {time.perf_counter() - read:.2f} s")
    assert len(metadata) == 21_799
    assert metadata["patient_id"].nunique() == 18_869
    assert metadata["age_over_89"].sum() == 293
    assert metadata["age"].max() == 89
    assert metadata.groupby("patient_id")["strat_fold"].nunique().max() == 1
    assert len(ptbxl.read_statements(Path(REAL))) == 71
    assert set().union(*metadata["scp_codes"]) == set(ptbxl.read_statements(Path(REAL)).index)
    assert df["path"].str.endswith("_lr.dat").sum() == 1987
    assert df["path"].str.endswith("_hr.hea").sum() == 488
    download.write_manifest(df, tmp_path / "manifest.csv")
    download.verify_manifest(Path(REAL), download.read_manifest(tmp_path / "manifest.csv"))


def test_a_mistyped_variable_is_not_taken_for_a_wish_to_download(project, monkeypatch, tmp_path):
    monkeypatch.setenv("CURE_PTBXL_DIR", str(tmp_path / "ptb-xk"))
    with pytest.raises(CureError, match=r"CURE_PTBXL_DIR names the folder .*ptb-xk, which does not exist"):
        stage.acquire(check(DownloadConfig, profile="ptbxl-subset", max_id_100=10, max_id_500=0))
    assert not (tmp_path / "ptb-xk").exists()


# --- settings that a source does not use


GIVEN = {"n_records": 60, "max_id_100": 5, "max_id_500": 5, "parts": [0], "fetch": False, "seed": 1}
UNUSED = {
    "ptbxl": {"n_records", "parts", "seed"},
    "synthetic": {"parts", "fetch"},
    "code15": {"n_records", "max_id_100", "max_id_500", "seed"},
    "synthetic-code15": {"max_id_100", "max_id_500", "fetch"},
    "wfdb": set(GIVEN),
}


@pytest.mark.parametrize("source", UNUSED)
def test_a_setting_that_the_source_does_not_use_is_refused(project, monkeypatch, source):
    cohort = {"name": "mine", "title": "mine", "source": source, "split": "rotate"}
    (project / "profiles" / "mine.yaml").write_text(yaml.safe_dump({"summary": "For tests.", "cohort": cohort}))
    taken = []
    monkeypatch.setitem(stage._SOURCES, source, lambda folder, config: taken.append(config) or pd.DataFrame())
    monkeypatch.setattr(stage, "write_manifest", lambda *_: None)
    for name, value in GIVEN.items():
        config = check(DownloadConfig, profile="mine", **{name: value})
        if name not in UNUSED[source]:
            stage.acquire(config)
            assert taken.pop() is config
            continue
        said = rf"download\.{name} is set, but source {source} does not use it: remove it from profiles/mine\.yaml"
        with pytest.raises(CureError, match=said):
            stage.acquire(config)
    assert not taken


def test_every_profile_names_only_settings_that_its_sources_use(project, monkeypatch):
    taken = []
    for source in stage._SOURCES:
        monkeypatch.setitem(stage._SOURCES, source, lambda folder, config: taken.append(config) or pd.DataFrame())
    monkeypatch.setattr(stage, "write_manifest", lambda *_: None)
    for name in profiles():
        config = check(DownloadConfig, **parameters("download", name))
        stage.acquire(config)
        external.also(stage.acquire, config)
    assert {config.profile for config in taken} == set(profiles())
    second = yaml.safe_load((project / "profiles" / "tiny.yaml").read_text())
    second["external"]["download"]["max_id_500"] = 3
    (project / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(second))
    config = check(DownloadConfig, **parameters("download", "tiny"))
    with pytest.raises(CureError, match=r"^external\.download\.max_id_500 is set, but source synthetic-code15"):
        external.also(stage.acquire, config)

"""What the doctor says of machines and projects that are not this one."""

import json
import time
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT

from cure import config, doctor

ABOUT = {"cpu": "Testcore 1", "cores": 2, "memory_gib": 16, "system": "Linux", "python": "3.12.1"}
MACHINE = doctor.Machine(ABOUT, 2, 100.0, 8.0, "", doctor.REFERENCE_GFLOPS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with the committed profiles and nothing else."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "profiles").mkdir()
    for file in (ROOT / "profiles").glob("*.yaml"):
        (tmp_path / "profiles" / file.name).write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verdict(root, profile="ptbxl-subset", machine=MACHINE, environment=None, weights=()):
    return doctor.verdict(profile, machine, environment or {}, root, list(weights))


def record(root, profile, seconds, memory=1000):
    folder = root / "results" / "resources" / profile
    folder.mkdir(parents=True, exist_ok=True)
    row = {"wall_s": seconds, "peak_rss_mb": memory, "machine": {"cores": 2}}
    for stage in ("heads", "finetune"):
        (folder / f"{stage}.json").write_text(json.dumps({"stage": stage, **row}))


def test_a_simulated_profile_runs_anywhere(root):
    found = verdict(root, "demo")
    assert found.status == "can run" and not found.missing
    assert found.minutes is None and found.basis == "no time recorded"


def test_data_are_here_fetched_or_lacking(root, tmp_path):
    assert verdict(root).status == "can run, once it has fetched"
    assert "CURE_PTBXL_DIR" in verdict(root).missing[0]
    copy = tmp_path / "copy"
    copy.mkdir()
    named = {"CURE_PTBXL_DIR": str(copy)}
    empty = verdict(root, environment=named)
    assert empty.status == "cannot run" and "without ptbxl_database.csv" in empty.missing[0]
    (copy / "ptbxl_database.csv").write_text("ecg_id\n")
    assert verdict(root, environment=named).status == "can run"
    profile = root / "profiles" / "ptbxl-subset.yaml"
    settings = yaml.safe_load(profile.read_text())
    settings["download"]["fetch"] = False
    profile.write_text(yaml.safe_dump(settings))
    assert verdict(root).status == "cannot run"
    fetched = root / "data" / "raw" / "ptbxl"
    fetched.mkdir(parents=True)
    (fetched / "ptbxl_database.csv").write_text("ecg_id\n")
    assert verdict(root).status == "can run"


def test_accelerator_weights_memory_and_disk(root):
    bare = verdict(root, "paper")
    assert bare.status == "cannot run" and any("device cuda" in item for item in bare.missing)
    assert any("weights of ecg-fm" in item and "cure weights fetch" in item for item in bare.missing)
    names = yaml.safe_load((root / "profiles" / "paper.yaml").read_text())["embed"]["published"]
    able = verdict(root, "paper", replace(MACHINE, accelerator="1 x GPU, 80 GiB"), weights=names)
    assert able.status == "can run, once it has fetched" and not any("weights" in item for item in able.missing)
    small = verdict(root, "demo", replace(MACHINE, about={**ABOUT, "memory_gib": 2}))
    assert small.status == "cannot run" and "4 GiB of memory (here 2)" in small.missing
    record(root, "demo", 60, memory=8000)
    assert (
        "11 GiB of memory (here 8)" in verdict(root, "demo", replace(MACHINE, about={**ABOUT, "memory_gib": 8})).missing
    )
    full = verdict(root, "demo", replace(MACHINE, free_gib=1.5))
    assert full.status == "cannot run" and "4 GiB of disk (free 1.5)" in full.missing


def test_times_are_recorded_ones_scaled_by_speed_or_the_readmes(root):
    readme = "| `demo` | simulated | none | about 10 minutes |\n| `ptbxl` | all | 3 GB | not measured here |\n"
    (root / "README.md").write_text(readme)
    assert verdict(root, "demo").minutes == 10 and verdict(root, "demo").basis == "README: about 10 minutes"
    assert verdict(root, "ptbxl").minutes is None and "not measured" in verdict(root, "ptbxl").basis
    record(root, "demo", 360)
    slow = replace(MACHINE, gflops=doctor.REFERENCE_GFLOPS / 3)
    found = verdict(root, "demo", slow)
    assert found.minutes == pytest.approx(36) and not found.whole
    assert found.basis == f"12 min recorded on 2 cores, measured for 2 of {len(config.STAGES)} stages"
    assert "can run, at least 36 min here (12 min" in doctor.text(slow, [found], "", [])
    for stage in config.STAGES:
        file = root / "results" / "resources" / "demo" / f"{stage}.json"
        file.write_text(json.dumps({"stage": stage, "wall_s": 60, "peak_rss_mb": 1, "machine": {"cores": 2}}))
    found = verdict(root, "demo")
    assert found.whole and found.basis == f"{len(config.STAGES)} min recorded on 2 cores"


def test_disk_is_compared_with_what_the_profiles_sources_take(root):
    """Of profile `paper`: 3 + 3 GiB of PTB-XL, 46 + 38 of CODE-15 %, and 4 to work with."""
    able = replace(MACHINE, accelerator="1 x GPU, 80 GiB")
    (said,) = [item for item in verdict(root, "paper", replace(able, free_gib=93.0)).missing if "of disk" in item]
    assert said == (
        "94 GiB of disk (free 93.0): 4 to work with, 3.0 for PTB-XL 1.0.3 as downloaded, 3.0 for PTB-XL 1.0.3 as "
        "packed, 46.0 for CODE-15 % as downloaded, 38.0 for CODE-15 % as packed"
    )
    assert verdict(root, "paper", replace(able, free_gib=94.5)).status == "can run, once it has fetched"
    # What is here already takes no more: neither a local copy nor a store.
    for source, marker in (("ptbxl", "ptbxl_database.csv"), ("code15", "exams.csv")):
        (root / "data" / "raw" / source).mkdir(parents=True)
        (root / "data" / "raw" / source / marker).write_text("")
    assert any("45 GiB of disk" in item for item in verdict(root, "paper", replace(able, free_gib=44.0)).missing)
    store = root / "data" / "cohorts" / "paper" / "code15"
    store.mkdir(parents=True)
    (store / "cohort.json").write_text("{}")
    assert not any("of disk" in item for item in verdict(root, "paper", replace(able, free_gib=8.0)).missing)
    # The oldest tenth of PTB-XL, and some parts of CODE-15 %, take their share.
    assert not any("of disk" in item for item in verdict(root, machine=replace(MACHINE, free_gib=5.0)).missing)
    assert doctor._disk("code15", {"parts": [0, 1]}, fetches=True, packs=False)[0][0] == pytest.approx(46 / 9)


def test_the_report_says_it_all():
    verdicts = [
        doctor.Verdict("demo", "can run", 12.3, "README: about 10 minutes", []),
        doctor.Verdict("paper", "cannot run", None, "no time recorded", ["device cuda (section embed)"]),
    ]
    text = doctor.text(replace(MACHINE, load=3.0), verdicts, "FAIL: numpy 1 instead of 2", [])
    assert "Testcore 1, 2 cores" in text and "other work will slow a run" in text and "numpy 1 instead of 2" in text
    assert "demo          can run, about 12 min here (README: about 10 minutes)" in text
    assert "paper         cannot run (no time recorded)\n" in text and "- device cuda" in text
    assert "no data, no weights yet" in text and "none that torch can use" in text
    assert "other work" not in doctor.text(MACHINE, verdicts, "", ["data/cohorts: demo"])


def test_the_probe_is_short_and_measures_something():
    start = time.process_time()
    assert 0.05 < doctor._probe() < 5000
    assert time.process_time() - start < 10


def test_this_machine_can_be_looked_at(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(doctor, "_probe", lambda: 40.0)
    text = doctor.report()
    for name in ("demo", "ptbxl-subset", "ptbxl", "paper", "weimann"):
        assert f"\n{name} " in text
    assert "min recorded on" in text and "README: " in text

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, make_project

from cure import embed, tasks
from cure.cohorts import acquire, external, pack
from cure.cohorts.base import Cohort
from cure.config import check
from cure.features import ecg_features
from cure.settings.download import DownloadConfig
from cure.settings.prepare import PrepareConfig

SECOND = {
    "name": "second",
    "title": "60 simulated exams",
    "source": "synthetic-code15",
    "split": "rotate",
    "download": {"n_records": 60, "seed": 5},
    "prepare": {"max_excluded": 0.2},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Profile `two` with a second cohort simulated in CODE-15's layout, prepared. Do not write to it."""
    folder = make_project(tmp_path_factory.mktemp("two"))
    (folder / "profiles" / "two.yaml").write_text(yaml.safe_dump({**TINY, "external": SECOND}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CURE_STAGE", "download")
        manifest = external.also(acquire.acquire, check(DownloadConfig, profile="two", n_records=320))
        assert "exams.csv" in set(manifest["path"])
        assert not (folder / "data/manifests/two/manifest.csv").exists(), "the study's own is another call's"
        patch.setenv("CURE_STAGE", "prepare")
        external.also(pack.prepare, check(PrepareConfig, profile="two"))
    return folder


@pytest.fixture
def second(prepared) -> Cohort:
    return Cohort.open(prepared / "data/cohorts/two/second")


def test_a_profile_with_one_cohort_says_so_and_compares_nothing(project, cohort):
    (project / "profiles" / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "external": None}))
    config = check(PrepareConfig, profile="tiny")
    said = external.also(lambda _: pytest.fail("there is nothing to do"), config)
    assert said.data == "Profile `tiny` has no second cohort (no section `external`)."
    assert external.open_second(config) is None
    table = external.side_by_side(cohort, None)
    assert list(table) == ["cohort", "variable", "task", "value", "n", "n_pos", "n_patients"]
    assert table.empty
    assert "no second cohort" in external.side_by_side_view(table).data


def test_the_second_cohort_stands_beside_the_study_with_the_seven_shared_tasks(second, cohort, prepared):
    assert second.folder == prepared / "data/cohorts/two/second"
    assert external.shared_tasks(cohort, second) == external.shared_tasks(second, cohort) == list(tasks.CURE_FM)
    table = external.side_by_side(cohort, second)
    value = table[table["task"].isna()].set_index(["cohort", "variable"])["value"]
    assert value["second", "records"] == len(second) < 60
    assert value["small", "fs"] == 100
    assert value["second", "fs"] == 400
    seconds = second.records["n_valid"] / 400
    assert value["second", "shorter_than_10_s"] == (seconds < 10).mean() > 0.2
    assert value["second", "excluded: all samples are zero"] == 1
    positives = table[table["task"] == "NORM"].set_index("cohort")["n_pos"]
    assert positives["second"] == second.listed["NORM"].sum()
    view = external.side_by_side_view(table)
    assert list(view) == ["small", "second"]
    assert view.loc["Records", "small"] == "160"
    assert view.loc["NORM", "second"] == f"{positives['second']} ({100 * second.listed['NORM'].mean():.1f} %)"
    assert view.loc["excluded: all samples are zero", "small"] == "0"


def test_a_superclass_of_other_statements_is_another_task(cohort):
    fewer = replace(cohort, statements=cohort.statements.drop(index="LAFB"))
    shared = external.shared_tasks(cohort, fewer)
    assert set(external.shared_tasks(cohort, cohort)) - set(shared) == {"CD"}
    labels = cohort.statements.assign(task=cohort.statements.index.isin(["NORM", "AFLT"]))
    assert external.shared_tasks(cohort, replace(cohort, statements=labels)) == ["NORM"]


def valid(cohort: Cohort, row: int) -> np.ndarray:
    """The plain way: one record, its valid samples at the only rate."""
    about = cohort.records.iloc[row]
    x = cohort.signals(np.array([row]), cohort.rates[0])[0]
    return x[:, about["start"] : about["start"] + about["n_valid"]]


def test_padding_is_neither_amplitude_nor_rhythm(second):
    amplitude = external.peak_to_peak(second)
    plain = [np.median(np.ptp(valid(second, row), axis=1)) for row in range(len(second))]
    np.testing.assert_array_equal(amplitude, np.array(plain, np.float32))
    rows = np.array([17, 3, 8, 30])
    seen = np.concatenate([some for some, _, _ in external.stretches(second, rows)])
    assert sorted(seen) == sorted(rows)
    for some, signals, fs in external.stretches(second, rows):
        assert fs == 400
        for row, x in zip(some, signals, strict=True):
            np.testing.assert_array_equal(x, valid(second, row))


def test_features_of_a_short_record_are_those_of_its_valid_samples(second, tmp_path):
    made = embed.extract_features(second, tmp_path / embed.FEATURES, tmp_path / "s", shard_size=25)
    short = np.flatnonzero(second.records["n_valid"] < 4000)
    assert len(short) > 5
    for row in (short[0], short[-1], 0):
        alone = ecg_features(valid(second, row)[None], 400, n_jobs=1).iloc[0]
        pd.testing.assert_series_equal(made.iloc[row], alone, check_names=False, rtol=1e-5)
    manifest = pd.read_parquet(tmp_path / embed.FEATURES / "manifest.parquet")
    assert set(manifest["source_fs"]) == {400}
    slow, fast = (made["heart_rate_bpm"][second.listed[task].to_numpy()].median() for task in ("SBRAD", "STACH"))
    assert slow < 65 < 95 < fast


def test_the_lowest_rate_of_a_record_is_one_that_it_has(cohort):
    records = cohort.records.assign(row_100=np.where(np.arange(160) < 5, -1, cohort.records["row_100"]))
    lowest = external.lowest_rates(replace(cohort, records=records))
    assert (lowest[:5] == 500).all()
    assert (lowest[5:] == 100).all()
    (some, signals, fs), *_ = external.stretches(replace(cohort, records=records), np.arange(5))
    assert (fs, signals.shape) == (500, (5, 12, 5000))
    np.testing.assert_array_equal(signals, cohort.signals(some, 500))

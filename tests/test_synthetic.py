"""The synthetic cohort on disk: PTB-XL's files, columns, codes and folds."""

import ast
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb

from cure import simulate
from cure.cohorts import synthetic
from cure.errors import CureError

CODES = pd.read_csv(synthetic.STATEMENTS, index_col="code")
BINARY = ("NORM", "1AVB", "CRBBB", "CLBBB", "SBRAD", "STACH", "AFIB")


def hashes(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def described(n: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, simulate.Plan]:
    rng = np.random.default_rng(seed)
    records = synthetic.draw_records(n, rng)
    planned = simulate.plan(records.drop(columns=synthetic.DEMOGRAPHY), seconds=synthetic.SECONDS, rng=rng)
    return records, synthetic.describe(records, planned, rng), planned


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "cohort"
    synthetic.write(folder, n_records=24, seed=3, max_id_500=4, n_jobs=1)
    return folder


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return described(800)[1]


def test_statement_table_holds_the_groups_of_ptbxl():
    diagnostic = CODES[CODES["diagnostic"] == 1]
    sizes = (
        len(CODES),
        len(diagnostic),
        diagnostic["diagnostic_subclass"].nunique(),
        diagnostic["diagnostic_class"].nunique(),
    )
    assert sizes == (71, 44, 23, 5)
    assert CODES["form"].sum() == 19 and CODES["rhythm"].sum() == 12


def test_the_folder_looks_like_ptbxl(cohort):
    table = pd.read_csv(cohort / "ptbxl_database.csv", index_col="ecg_id")
    assert [table.index.name, *table.columns] == synthetic.COLUMNS
    assert table.index.tolist() == list(range(1, 25)) and table["patient_id"].dtype == float
    for path in table["filename_lr"]:
        assert (cohort / f"{path}.dat").stat().st_size == 1000 * 12 * 2 and (cohort / f"{path}.hea").is_file()
    assert [(cohort / f"{path}.hea").is_file() for path in table["filename_hr"]] == [True] * 4 + [False] * 20
    assert "MIT" in (cohort / "LICENSE.txt").read_text() and (cohort / "truth.parquet").is_file()
    statements = pd.read_csv(cohort / "scp_statements.csv", index_col=0)
    assert len(statements) == 71 and statements.columns[0] == "description"


def test_header_is_written_as_ptbxl_writes_it(cohort):
    lines = (cohort / "records100/00000/00001_lr.hea").read_text().splitlines()
    assert lines[0] == "00001_lr 12 100 1000" and len(lines) == 13
    assert lines[1].startswith("00001_lr.dat 16 1000.0(0)/mV 16 0 ") and lines[1].endswith(" 0 I")
    assert [line.split()[-1] for line in lines[1:]] == synthetic.LEAD_NAMES
    data = wfdb.rdrecord(str(cohort / "records100/00000/00001_lr"), physical=False)
    for k, line in enumerate(lines[1:]):
        initial, checksum = (int(v) for v in line.split()[5:7])
        assert initial == data.d_signal[0, k] and checksum == data.d_signal[:, k].sum() % 65536


def test_records_are_those_of_wrsamp(tmp_path):
    signal = np.random.default_rng(0).integers(-32767, 32768, (12, 70), dtype=np.int16)
    for name in "ab":
        (tmp_path / name).mkdir()
    synthetic.write_record(tmp_path / "a/00001_lr", signal, 100)
    wfdb.wrsamp(
        "00001_lr", fs=100, units=["mV"] * 12, sig_name=synthetic.LEAD_NAMES, fmt=["16"] * 12, adc_gain=[1000.0] * 12,
        baseline=[0] * 12, d_signal=signal.T, write_dir=str(tmp_path / "b"),
    )  # fmt: skip
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_wfdb_round_trip(cohort):
    rng = np.random.default_rng(3)
    records = synthetic.draw_records(24, rng)
    planned = simulate.plan(records.drop(columns=synthetic.DEMOGRAPHY), seconds=synthetic.SECONDS, rng=rng)
    synthetic.describe(records, planned, rng)
    rows, child = next(simulate.chunks(24, rng))
    signals = simulate.render(planned, rows, fs=500, rng=child)
    for i in range(4):
        record = wfdb.rdrecord(str(cohort / f"records500/00000/0000{i + 1}_hr"))
        assert record.fs == 500 and record.units == ["mV"] * 12
        np.testing.assert_allclose(record.p_signal.T, signals[i], atol=0.000501)
        slow = wfdb.rdrecord(str(cohort / f"records100/00000/0000{i + 1}_lr")).p_signal.T
        assert np.corrcoef(slow[1], signals[i, 1, ::5])[0, 1] > 0.97
        limb = record.p_signal
        assert np.abs(limb[:, 0] + limb[:, 2] - limb[:, 1]).max() <= 0.0021, "Einthoven, to the last bit"


def test_never_the_missing_code():
    extreme = np.array([-1e3, -32.768, -0.0004, 0.0006, 1e3])
    assert synthetic.to_microvolts(extreme).tolist() == [-32767, -32767, 0, 1, 32767]


def test_no_sample_is_missing(cohort):
    for path in cohort.rglob("*.dat"):
        assert np.fromfile(path, "<i2").min() > -32768


def test_same_seed_same_bytes_whatever_the_processes(cohort, tmp_path):
    synthetic.write(tmp_path / "again", n_records=24, seed=3, max_id_500=4, n_jobs=2)
    assert hashes(tmp_path / "again") == hashes(cohort)
    synthetic.write(tmp_path / "again", n_records=5, seed=4, max_id_500=0, n_jobs=1)  # a synthetic cohort is replaced
    assert len(pd.read_csv(tmp_path / "again/ptbxl_database.csv")) == 5
    assert not (tmp_path / "again/records500").exists() and [p.name for p in tmp_path.iterdir()] == ["again"]


def test_refuses_to_overwrite_anything_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CureError, match="is not a synthetic cohort"):
        synthetic.write(tmp_path, n_records=2, seed=0, max_id_500=0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="n_records=0"):
        synthetic.write(tmp_path / "new", n_records=0, seed=0, max_id_500=0)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(synthetic, "write_record", fail)
    with pytest.raises(OSError, match="no space"):
        synthetic.write(tmp_path / "cohort", n_records=2, seed=0, max_id_500=0, n_jobs=1)
    assert list(tmp_path.iterdir()) == []


def test_folds_keep_patients_together_and_labels_spread(table):
    assert table.groupby("patient_id")["strat_fold"].nunique().max() == 1
    assert sorted(table["strat_fold"].unique()) == list(range(1, 11))
    assert table["strat_fold"].value_counts().between(60, 100).all()
    codes = table["scp_codes"].map(ast.literal_eval)
    for code in ("NORM", "CRBBB", "AFIB"):
        per_fold = codes.map(lambda c, code=code: code in c).groupby(table["strat_fold"]).sum()
        assert per_fold.max() - per_fold.min() <= max(4, 0.35 * per_fold.mean())


def test_patients_sexes_and_ages(table):
    sizes = table["patient_id"].value_counts()
    assert 0.10 < (sizes > 1).mean() < 0.20 and sizes.max() <= 4
    assert table.groupby("patient_id")["sex"].nunique().max() == 1
    assert table["age"].where(table["age"] != 300).max() <= 89
    assert table["recording_date"].is_monotonic_increasing


@pytest.mark.parametrize("seed", range(4))
def test_each_task_has_thirty_positives(seed):
    codes = described(800, seed)[1]["scp_codes"].map(ast.literal_eval)
    counts = Counter(code for record in codes for code in record)
    for code in BINARY:
        assert counts[code] >= 30, code
    for name in ("MI", "STTC", "CD", "HYP"):
        assert sum(any(CODES["diagnostic_class"].get(c) == name for c in r) for r in codes) >= 60, name


def test_statements_are_known_and_likelihoods_are_ptbxls(table):
    for record in table["scp_codes"].map(ast.literal_eval):
        for code, likelihood in record.items():
            assert code in CODES.index
            assert likelihood >= 15 if CODES.loc[code, "diagnostic"] == 1 else likelihood == 0
        assert sum(CODES.loc[c, "rhythm"] == 1 for c in record) == 1, "one rhythm per record"


def test_labels_overlap_with_what_is_planted():
    """Annotators follow the planted severity, yet not perfectly: no threshold on the truth reproduces a label."""
    records, table, _ = described(3000)
    codes = table["scp_codes"].map(ast.literal_eval).to_list()
    for code, value in {
        "1AVB": records["pr_ms"],
        "CRBBB": records["rbbb"],
        "CLBBB": records["lbbb"],
        "LVH": records["lvh"],
    }.items():
        said = np.array([code in c for c in codes])
        rank = pd.Series(np.asarray(value)).rank().to_numpy()
        auc = (rank[said].mean() - (said.sum() + 1) / 2) / (~said).sum()
        assert 0.85 < auc < 0.995, (code, auc)
        best = max(((value.to_numpy() > t) == said).mean() for t in np.unique(value))
        assert best < 0.995, code


@pytest.mark.skipif("CURE_PTBXL_DIR" not in os.environ, reason="CURE_PTBXL_DIR names no folder with PTB-XL")
def test_columns_equal_those_of_ptbxl(cohort):
    real = Path(os.environ["CURE_PTBXL_DIR"])
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        a, b = (pd.read_csv(folder / name, nrows=80) for folder in (real, cohort))
        assert list(a.columns) == list(b.columns)
    ours, theirs = CODES, pd.read_csv(real / "scp_statements.csv", index_col=0)
    pd.testing.assert_frame_equal(ours, theirs[ours.columns], check_names=False)

"""Two cohorts whose embeddings are planted, so that what transfer must find is known."""

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY, make_project
from sklearn.metrics import roc_auc_score

from cure import transfer
from cure.cohorts.base import RECORD_COLUMNS, Cohort
from cure.config import check
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.settings.transfer import TransferConfig
from cure.splits import make_splits

CODES = ("NORM", "1AVB", "AFIB")
N, DIM = 200, 6
SETTINGS = {"heads": ["logistic"], "n_draws": 200, "pretrained": ["ssl-folds"]}
SECOND = {"name": "second", "title": "the other one", "source": "synthetic-code15", "split": "rotate"}


def write_cohort(folder: Path, name: str, positive: np.ndarray) -> None:
    """A store of N records of 2 s, two per patient, labelled with `positive` (N, 3)."""
    folder.mkdir(parents=True)
    columns = dict.fromkeys(RECORD_COLUMNS, 0)
    records = pd.DataFrame({**columns, "record_id": np.arange(N) + 10, "patient_id": np.arange(N) // 2})
    records["fold"] = records["patient_id"] % 10 + 1
    records["labels"] = [[code for code, y in zip(CODES, row, strict=True) if y] for row in positive]
    records["n_valid"], records["row_100"] = 200, np.arange(N)
    records.to_parquet(folder / "records.parquet")
    pd.DataFrame(columns=["record_id", "reason"]).to_parquet(folder / "excluded.parquet")
    statements = pd.read_csv(ROOT / "cure/cohorts/scp_statements.csv", index_col=0).rename_axis("code")
    statements.loc[list(CODES)].to_csv(folder / "statements.csv")
    scale = 1000 if name == "second" else 500  # uV: the second cohort is twice as high
    signals = np.random.default_rng(0).integers(-1, 2, (N, 12, 200)).astype(np.int16) * scale
    np.save(folder / "signals_100.npy", signals)
    (folder / "cohort.json").write_text(json.dumps({"name": name, "rates": {"100": {"n": N, "n_samples": 200}}}))


def write_embeddings(folder: Path, records: pd.DataFrame, one: Representation, seed: int, z: np.ndarray) -> None:
    """Noisy copies of the labels; where each split has an encoder, another rotation of them for each."""
    rng = np.random.default_rng(seed)
    for split in ("folds-1+2", "folds-3+4", "folds-5+6", "folds-7+8", "folds-9+10") if one.per_split else ("",):
        turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
        target = folder / one.folder / split
        target.mkdir(parents=True)
        np.save(target / ("none.npy" if one.encoder == FEATURES else "mean.npy"), (z @ turn).astype(np.float32))
        records[["record_id"]].to_parquet(target / "manifest.parquet")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Profile `two` whose second cohort is a copy of the study under another name, in a project of its own."""
    folder = make_project(tmp_path_factory.mktemp("transfer"))
    (folder / "profiles" / "two.yaml").write_text(yaml.safe_dump({**TINY, "external": SECOND}))
    rng = np.random.default_rng(3)
    positive = rng.random((N, 3)) < [0.4, 0.3, 0.2]
    z = np.column_stack([positive + rng.normal(0, 0.8, (N, 3)), rng.normal(size=(N, DIM - 3))])
    kinds = [Representation("leadcnn", "ssl-folds", 0), Representation("leadcnn", "random", 0)]
    kinds.append(Representation(FEATURES, "none", 0))
    for name in ("tiny", "second"):
        write_cohort(folder / "data/cohorts/two" / name, name, positive)
        records = Cohort.open(folder / "data/cohorts/two" / name).records
        for k, one in enumerate(kinds):
            write_embeddings(folder / "data/embeddings/two" / name, records, one, k, z)
    return folder


@pytest.fixture
def two(planted, monkeypatch) -> Path:
    monkeypatch.chdir(planted)
    return planted


@pytest.fixture
def changed(planted, tmp_path, monkeypatch):
    """A copy of the project, to change; returns its folder."""
    folder = Path(shutil.copytree(planted, tmp_path / "changed"))
    monkeypatch.chdir(folder)
    return folder


def relabel(folder: Path, name: str, change) -> None:
    file = folder / "data/cohorts/two" / name / "records.parquet"
    records = pd.read_parquet(file)
    records["labels"] = [change(set(labels)) for labels in records["labels"]]
    records.to_parquet(file)


def settle(folder: Path, **change) -> None:
    """Change the section `external` of the profile."""
    profile = {**TINY, "external": {**SECOND, **change.pop("external", {})}}
    profile["cohort"] = {**TINY["cohort"], **change}
    (folder / "profiles" / "two.yaml").write_text(yaml.safe_dump(profile))


def run(**change):
    config = check(TransferConfig, profile="two", **{**SETTINGS, **change})
    predicted = transfer.scores(config)
    return config, predicted, transfer.measure(config, predicted)


@pytest.mark.parametrize("scheme", ["official", "rotate"])
def test_a_record_is_scored_by_the_split_that_tests_its_fold(planted, scheme):
    cohort = Cohort.open(planted / "data/cohorts/two/tiny")
    splits = make_splits(cohort.records, scheme)
    turn = transfer.turns(cohort, len(splits))
    for i, split in enumerate(splits):
        if scheme == "rotate":
            np.testing.assert_array_equal(np.flatnonzero(turn == i), split.test)
        else:
            assert (turn == 0).all(), "one split scores all records"


def test_a_copy_of_the_study_scores_as_the_study_does(two):
    _, predicted, measured = run()
    assert set(predicted["task"]) == set(CODES)
    key = ["direction", "encoder", "weights", "task", "record_id"]
    wide = predicted.pivot(index=key, columns="tested", values="score")
    assert len(wide) == 2 * 3 * 3 * N
    np.testing.assert_allclose(wide["internal"], wide["external"], atol=1e-6)
    drop = transfer.drop_table(measured)
    np.testing.assert_allclose(drop["value"], 0, atol=1e-9)
    assert (drop["lo"] < 0).all()
    assert (drop["hi"] > 0).all(), "drawn independently, the cohorts differ in every draw"
    assert (drop["p_holm"].dropna() == 1).all()
    assert set(predicted["contaminated"]) == {"no"}


def test_values_are_scikit_learns_and_macros_their_means(two):
    _, predicted, measured = run(pretrained=[])
    table = transfer.transfer_table(measured)
    assert list(table) == transfer.COLUMNS
    chosen = table[(table["metric"] == "auroc") & (table["weights"] == "random")]
    random = predicted[predicted["weights"] == "random"]
    for (direction, tested), rows in chosen.groupby(["direction", "tested"]):
        mine = random[(random["direction"] == direction) & (random["tested"] == tested)]
        values = {t: roc_auc_score(f["y"], f["score"]) for t, f in mine.groupby("task", observed=True)}
        found = rows.set_index("task")["value"]
        assert found.drop("macro").to_dict() == pytest.approx(values)
        assert found["macro"] == pytest.approx(np.mean(list(values.values())))
        assert (rows["lo"] < rows["value"]).all()
        assert (rows["value"] < rows["hi"]).all()
        assert set(rows["n_patients"]) == {N // 2}


def test_labels_turned_round_in_the_other_cohort_turn_its_scores_round(changed):
    relabel(changed, "second", lambda labels: sorted(set(CODES) - labels))
    _, _, measured = run(pretrained=[])
    drop = transfer.drop_table(measured)
    rows = drop[(drop["direction"] == "tiny to second") & (drop["metric"] == "auroc")]
    np.testing.assert_allclose(rows["external"], 1 - rows["internal"], atol=1e-9)
    macro = rows[rows["task"] == "macro"]
    assert (macro["value"] < -0.4).all()
    assert (macro["p_holm"] < 0.1).all()
    assert rows.loc[rows["task"] != "macro", "p"].isna().all(), "tests are of the averages only"


def test_a_task_below_the_support_rule_has_no_interval_and_enters_no_average(changed):
    left = iter(range(1000))
    relabel(changed, "second", lambda labels: sorted(c for c in labels if c != "1AVB" or next(left) < 8))
    _, _, measured = run(pretrained=[])
    table, drop = transfer.transfer_table(measured), transfer.drop_table(measured)
    rows = table[(table["direction"] == "tiny to second") & (table["metric"] == "auroc")]
    weak = rows[(rows["task"] == "1AVB") & (rows["tested"] == "external")]
    assert set(weak["n_pos"]) == {8}
    assert weak["lo"].isna().all()
    assert weak["value"].notna().all()
    assert rows.loc[(rows["task"] == "1AVB") & (rows["tested"] == "internal"), "lo"].notna().all()
    assert set(rows.loc[rows["task"] == "macro", "n_tasks"]) == {2}, "of both cohorts, or the averages would differ"
    assert drop.loc[(drop["task"] == "1AVB") & (drop["direction"] == "tiny to second"), "lo"].isna().all()
    assert "(0." in transfer.task_view(table, "auroc", "logistic")["1AVB"].iloc[0]


@pytest.mark.parametrize(("study", "second"), list(product(["rotate", "official"], repeat=2)))
def test_encoders_that_saw_the_study_are_marked_where_it_is_tested_by_others_heads(changed, study, second):
    settle(changed, split=study, external={"split": second})
    for cohort in ("tiny", "second"):  # with one split there is one encoder
        folder = changed / "data/embeddings/two" / cohort / "leadcnn-ssl-folds-0"
        shutil.copytree(folder / "folds-9+10", folder / "folds-10")
    _, predicted, _ = run()
    seen = predicted.groupby(["direction", "tested", "weights"], observed=True)["contaminated"].unique()
    marked = {key for key, value in seen.items() if list(value) != ["no"]}
    both_rotate = study == second == "rotate"
    assert marked == (set() if both_rotate else {("second to tiny", "external", "ssl-folds")})
    counts = predicted.query("weights == 'random' and task == 'NORM'").groupby(["direction", "tested"], observed=True)
    tested = counts["record_id"].nunique()
    assert tested["tiny to second", "external"] == tested["second to tiny", "external"] == N
    assert tested["tiny to second", "internal"] == (N if study == "rotate" else N // 10)


def test_cohorts_without_a_common_task_are_an_error_that_says_where_to_look(changed):
    file = changed / "data/cohorts/two/second/statements.csv"
    statements = pd.read_csv(file, index_col="code")
    statements.assign(task=False).rename(index={"NORM": "X"}).assign(task=lambda s: s.index == "X").to_csv(file)
    relabel(changed, "second", lambda labels: ["X" if code == "NORM" else code for code in sorted(labels)])
    with pytest.raises(CureError, match=r"no task that both cohorts label .*shared: none.*section external"):
        run(pretrained=[])


def test_amplitudes_are_in_millivolts_as_stored(two):
    config = check(TransferConfig, profile="two", **SETTINGS)
    table = transfer.amplitude_table(config)
    assert table.groupby("cohort")["value"].unique().map(list).to_dict() == {"tiny": [1.0], "second": [2.0]}
    assert transfer.amplitude_view(table).loc["second", "peak_to_peak_mv_q50"] == 2


def test_initialisations_are_averaged(two):
    for cohort in ("tiny", "second"):
        folder = two / "data/embeddings/two" / cohort
        if not (folder / "leadcnn-random-1").exists():
            rows = Cohort.open(two / "data/cohorts/two" / cohort).records
            one = Representation("leadcnn", "random", 1)
            write_embeddings(folder, rows, one, 9, np.random.default_rng(9).normal(size=(N, DIM)))
    only = {}
    for seeds in ([0], [1], [0, 1]):
        table = transfer.transfer_table(run(pretrained=[], seeds=seeds)[2])
        rows = table[(table["weights"] == "random") & (table["metric"] == "brier")]
        only[tuple(seeds)] = rows.set_index(["direction", "tested", "task"])["value"]
    np.testing.assert_allclose(only[0, 1], (only[(0,)] + only[(1,)]) / 2)


def test_two_runs_give_the_same_tables(two):
    one, again = (run(pretrained=[], heads=["xgboost"]) for _ in range(2))
    pd.testing.assert_frame_equal(one[1], again[1])
    pd.testing.assert_frame_equal(transfer.transfer_table(one[2]), transfer.transfer_table(again[2]))


def test_a_profile_with_one_cohort_gets_empty_tables_with_the_right_columns(project):
    (project / "profiles" / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "external": None}))
    config = check(TransferConfig, profile="tiny")
    predicted = transfer.scores(config)
    measured = transfer.measure(config, predicted)
    table, drop = transfer.transfer_table(measured), transfer.drop_table(measured)
    assert (list(table), len(table)) == (transfer.COLUMNS, 0)
    assert (list(drop), len(drop)) == (transfer.DROP_COLUMNS, 0)
    assert transfer.amplitude_table(config).empty
    assert "has no second cohort" in transfer.say_sides(config).data
    assert transfer.titles(config) == ""
    for view in (
        transfer.drop_view(drop),
        transfer.task_view(table, "auroc", "logistic"),
        transfer.decision_view(table, "logistic"),
        transfer.amplitude_view(transfer.amplitude_table(config)),
        transfer.figure_rows(table, "auroc", "logistic"),
    ):
        assert len(view) == 0


def test_the_figure_shows_every_number_and_greys_what_lacks_support(two, tmp_path):
    from cure.plots import transfer as plots

    table = transfer.transfer_table(run(pretrained=[])[2])
    rows = transfer.figure_rows(table, "auroc", "logistic")
    weak = (rows["task"] == "AFIB") & (rows["tested"] == "external")
    rows = rows.assign(supported=~weak)
    figure = plots.draw(rows)
    left, right = figure.axes
    assert len(left.lines) - 1 == len(right.lines) - 1 == 2 * 2 * 4  # methods x tested x tasks, and the line at 0.5
    assert sum(line.get_color() == "#999999" for line in left.lines) == 2
    assert left.get_yticklabels()[0].get_text() == "macro"
    assert "/" in left.get_yticklabels()[1].get_text()
    plots.save(rows[:0], tmp_path, "transfer", "no second cohort", "transfer")
    assert not list(tmp_path.iterdir())

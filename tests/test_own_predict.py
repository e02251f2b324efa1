"""`cure predict`: a kept head gives what it gave when it was kept, with all that makes a prediction doubtful; docs."""

import contextlib
import io
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, make_project
from own import WEIGHTS, config, with_heads
from own_files import ecgs, write_npz
from sklearn.metrics import roc_auc_score

from cure import cli, embed, kept, paths
from cure.cohorts.base import Cohort
from cure.own import quality
from cure.own.predict import COLUMNS, NOTE
from cure.own.stream import COLUMNS as FIRST
from cure.signals import LEADS


@pytest.fixture(scope="module")
def made(cohort, tmp_path_factory):
    """A project with kept heads of profile `tiny`, found under `demo` too; tests do not write below its data."""
    monkeypatch = pytest.MonkeyPatch()
    folder = make_project(tmp_path_factory.mktemp("own") / "project")
    monkeypatch.chdir(folder)
    with_heads(folder, cohort, monkeypatch)
    shutil.copytree(folder / "data/stages/tiny", folder / "data/stages/demo")
    shutil.copytree(folder / "data/weights/tiny", folder / "data/weights/demo")
    yield folder
    monkeypatch.undo()


@pytest.fixture(autouse=True)
def _here(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    for file in [*made.glob("predictions*"), *made.glob("emb*")]:
        file.unlink() if file.is_file() else shutil.rmtree(file)


def run(*arguments, task="NORM", out="predictions.csv", status=0, profile="tiny"):
    """`cure predict`; what it wrote."""
    command = ["predict", *map(str, arguments), "--task", task, "--profile", profile, "--out", out, "--workers", "0"]
    assert cli.main(command) == status
    return (
        pd.read_csv(out, keep_default_na=False, na_values={"probability": [""]})
        if out.endswith("csv")
        else (pd.read_parquet(out))
    )


def records(raw_folder, cohort, n):
    names = cohort.records["record_id"].astype(int).tolist()[:n]
    return [next(raw_folder.glob(f"records100/*/{name:05d}_lr.hea")) for name in names]


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_it_is_what_the_kept_head_gives(raw_folder, cohort, head):
    one = kept.load(kept.folder_of("tiny"), WEIGHTS, head, "NORM")
    x = embed.read(config().embeddings_folder / WEIGHTS, "mean", Cohort.open(config().cohort_folder))[:16]
    table = run(*records(raw_folder, cohort, 16), "--head", head, out="predictions.parquet")
    assert list(table) == [*FIRST, *COLUMNS]
    # The last digits of an embedding may differ, and at a split of a tree such a digit may decide.
    near = np.abs(table["probability"] - one.probability(x)) < 2e-3
    assert near.all() if head == "logistic" else near.sum() >= 14
    table, x = table[near], x[near]
    lo, hi = one.interval(x)
    np.testing.assert_allclose(table["lo"], lo, atol=2e-3)
    np.testing.assert_allclose(table["hi"], hi, atol=2e-3)
    assert (table["positive"] == (table["probability"] >= one.threshold)).all()
    assert set(table["threshold"]) == {one.threshold}
    auroc = next(score for score in one.card.scores if score.metric == "auroc")
    assert set(table["val_auroc"]) == {auroc.value}
    assert set(table["val_auroc_lo"]) == {auroc.lo}
    assert set(table["val_n_pos"]) == {one.card.val.n_pos}
    assert set(table["head"]) == {head}
    assert set(table["representation"]) == {WEIGHTS}
    assert all("simulated" in text for text in table["warning"])


def test_features_are_measured_as_the_heads_were(raw_folder, cohort):
    one = kept.load(kept.folder_of("tiny"), embed.FEATURES, "logistic", "NORM")
    x = embed.read(config().embeddings_folder / embed.FEATURES, "none", Cohort.open(config().cohort_folder))[:8]
    table = run(*records(raw_folder, cohort, 8), "--representation", embed.FEATURES)
    found = table["error"] == ""
    np.testing.assert_allclose(table["probability"][found], one.probability(x)[found], atol=2e-3)
    assert found.sum() >= 6
    assert set(table["error"][~found]) <= {"no median beat can be measured"}


def test_never_without_the_note(made, tmp_path, raw_folder, cohort, capsys):
    good = records(raw_folder, cohort, 1)[0]
    (tmp_path / "bad.edf").write_text("not an EDF")
    table = run(good, tmp_path / "bad.edf")
    assert NOTE == "Research only: not for clinical use."
    assert set(table["note"]) == {NOTE}
    assert table["probability"].isna().tolist() == [False, True]
    assert NOTE in capsys.readouterr().out
    assert set(run(tmp_path / "bad.edf", "--restart", status=1)["note"]) == {NOTE}


def test_a_rerun_does_not_take_its_own_output_for_a_record(tmp_path):
    write_npz(tmp_path / "a.npz", ecgs()[0], 250)
    out = str(tmp_path / "predictions.csv")
    for again in ([], ["--restart"]):
        assert run(tmp_path, *again, out=out)["error"].tolist() == [""]


def test_what_makes_a_record_doubtful_is_said(tmp_path):
    x = ecgs(2, 250)
    write_npz(tmp_path / "a.npz", x[0], 250)
    write_npz(tmp_path / "b.npz", x[0][:1, : 250 * 4], 250, ["I"])
    loud = x[1] * 20
    write_npz(tmp_path / "c.npz", loud, 250)
    table = run(tmp_path)
    assert table["error"].tolist() == [""] * 3
    whole, one, strange = table["warning"]
    missing = ",".join(lead for lead in LEADS if lead != "I")
    assert f"{missing} missing: the head was fitted on records that have them" in one
    assert "short" in one
    assert "4 s filled up to 10 s" in one
    assert "unlike the training records" in strange
    assert "missing" not in whole
    assert "unlike" not in whole


def test_the_threshold_separates_as_the_validation_score_says(raw_folder, cohort):
    """On the records the tiny head was fitted with it must do better than chance; nothing is claimed of others."""
    y = cohort.binary()
    table = run(*records(raw_folder, cohort, 40), out="predictions.parquet")
    truth = y.y[:40, y.names.index("NORM")]
    assert roc_auc_score(truth, table["probability"]) > 0.7


def test_errors_name_what_there_is(made, capsys, raw_folder, cohort):
    file = str(records(raw_folder, cohort, 1)[0])

    def refused(said, *arguments):
        assert cli.main(["predict", file, *arguments]) == 1
        assert re.search(said, capsys.readouterr().err)

    refused(r"no kept head of task 'FLU' in profile tiny: --task takes NORM, ", "--task", "FLU", "--profile", "tiny")
    refused(
        "there are --representation leadcnn-ssl-simulated-0 --head logistic, ",
        "--task",
        "NORM",
        "--representation",
        "x",
    )
    refused(
        "no kept heads at data/stages/ptbxl/heads/heads: `make repro PROFILE=ptbxl`",
        *["--task", "NORM", "--profile", "ptbxl"],
    )
    refused("predictions go to a .csv or .parquet file", "--task", "NORM", "--profile", "tiny", "--out", "p.txt")
    weights = paths.weights("tiny") / WEIGHTS / "all.safetensors"
    blob = weights.read_bytes()
    try:
        changed = bytearray(blob)
        changed[-1] ^= 1
        weights.write_bytes(bytes(changed))
        refused(
            r"are not those its head was fitted on: `make repro PROFILE=tiny`", "--task", "NORM", "--profile", "tiny"
        )
    finally:
        weights.write_bytes(blob)


def test_an_auroc_that_is_not_defined_stops_nothing(made, capsys, monkeypatch, raw_folder, cohort):
    """Validation records of one class have no AUROC; with few positives it has no interval."""
    file, load = records(raw_folder, cohort, 1)[0], kept.load
    for value, lo, hi, said in (
        (None, None, None, "AUROC not defined on its "),
        (0.8125, None, None, "AUROC 0.812 on its "),
        (0.8125, 0.7, 0.9, "AUROC 0.812 [0.700, 0.900] on its "),
    ):
        score = kept.Score(metric="auroc", value=value, lo=lo, hi=hi)

        def changed(*arguments, score=score):
            one = load(*arguments)
            scores = [score if old.metric == "auroc" else old for old in one.card.scores]
            return replace(one, card=one.card.model_copy(update={"scores": scores}))

        monkeypatch.setattr(kept, "load", changed)
        table = run(file, "--restart")
        assert said in capsys.readouterr().out
        assert table["val_auroc"].tolist() == [value if value is not None else ""]


# --- the page


def page():
    text = (ROOT / "docs" / "own-ecgs.md").read_text()
    return text, re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_page_from_top_to_bottom(made, tmp_path, monkeypatch, capsys):
    """Every command of docs/own-ecgs.md, in a folder of one's own below the project."""
    folder = made / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names, n = {}, 0
    for language, text in page()[1]:
        if language == "python":
            exec(compile(text, "docs/own-ecgs.md", "exec"), names)
            continue
        assert language == "sh"
        for line in text.strip().splitlines():
            program, *arguments = shlex.split(line)
            assert program == "cure"
            assert cli.main([*arguments, "--workers", "0"]) == 0, line
            n += 1
    assert n == 4
    table = pd.read_parquet(folder / "emb.parquet")
    assert table["error"].isna().tolist() == [True, False, True, True]
    assert table["derived"].tolist()[3] == "III,aVR,aVL,aVF"
    assert set(table["pooling"]) == {"max"}
    assert names["x"].shape == (3, 256)
    assert pd.read_parquet(folder / "watch.parquet")["leads"].tolist() == ["I"]
    predictions = pd.read_csv(folder / "predictions.csv")
    assert predictions["probability"].notna().tolist() == [True, False, True, True]
    assert set(predictions["note"]) == {NOTE}


def test_the_page_gives_the_criteria_that_are_used():
    text = page()[0]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text.split("## Quality flags")[1], re.MULTILINE))
    assert rows == quality.FLAGS
    known = _help("embed") + _help("predict")
    for option in set(re.findall(r"--[a-z][a-z-]+", text)):
        assert option in known, f"the page names {option}, which neither command has"


def _help(command):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return out.getvalue()

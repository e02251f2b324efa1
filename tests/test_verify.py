"""Tables follow from predictions, figures from tables, by the notebooks' own lines; what was tampered with is found."""

import json
import shutil
from importlib import metadata

import artifact
import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from cure import claims, cli, config, integrity, recompute, redraw, replay
from cure.errors import CureError
from cure.verify import alike, judged_report

P = artifact.PROFILE


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)  # no processes for a toy
    monkeypatch.chdir(artifact.write(tmp_path))
    return tmp_path


def verify(root, *more):
    return cli.main(["verify", "--profile", P, "--json", str(root / "out.json"), *more])


def checks(root):
    return {
        one["name"]: (one["status"], one["detail"]) for one in json.loads((root / "out.json").read_text())["checks"]
    }


def failed(root):
    return sorted(name for name, (status, _) in checks(root).items() if status == "FAIL")


def test_a_whole_artifact_passes_and_its_claims_are_shown(root, capsys):
    assert verify(root) == 0
    found = checks(root)
    assert found["tables of finetune"][0] == found["figures of finetune"][0] == "PASS"
    assert found["hash of tables/demo"] == ("PASS", "as in dvc.lock")
    assert found["other figures"][0] == "SKIPPED" and "toy_signal" in found["other figures"][1]
    assert found["heads from embeddings"][0] == found["pipeline from raw records"][0] == "SKIPPED"
    text = capsys.readouterr().out
    assert "HOLDS          toy-mean\n    The mean score of task A is above a half.\n    why: " in text
    assert "\n    cure repro --profile demo  (about 60 s on two cores)\n" in text
    (claim,) = json.loads((root / "out.json").read_text())["claims"]
    assert claim["status"] == "HOLDS" and claim["value"] > 0.5


@pytest.mark.parametrize(("columns", "widest"), [("20", 60), ("80", 80), ("300", 110)])
def test_claims_are_wrapped_and_their_commands_are_not(root, monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    file = root / "claims.yaml"
    text = file.read_text().replace("is above a half.", "is above a half, " + "whatever else may be said of it, " * 9)
    file.write_text(
        text.replace("--profile demo", f"--profile demo {'x' * 150}").replace("minutes: 1", "minutes: null")
    )
    lines = judged_report(claims.judged(P)).splitlines()
    command = lines.pop()
    assert command == f"    cure repro --profile demo {'x' * 150}  (time not measured)"
    said = [line for line in lines[2:] if line.startswith("    ")]
    assert len(said) > 3 and widest - 20 < max(map(len, said)) <= widest


def test_tables_that_do_not_follow_from_predictions_are_named(root):
    verify(root)
    assert "other tables" not in checks(root)
    for name in ("toy_other", "toy_seconds"):
        (root / f"tables/{P}/{name}.csv").write_text("a\n1\n")
    artifact.lock(root)
    assert verify(root) == 0
    assert checks(root)["other tables"] == (
        "SKIPPED",
        "2 of 3 tables not made again, since they do not follow from predictions alone: toy_other, toy_seconds",
    )


def test_a_claim_that_does_not_hold_is_no_failure(root):
    file = root / "claims.yaml"
    file.write_text(file.read_text().replace("above: 0.5", "above: 5"))
    assert verify(root) == 0
    assert json.loads((root / "out.json").read_text())["claims"][0]["status"] == "DOES NOT HOLD"
    file.write_text(file.read_text().replace("table: toy_means", "table: toy_means\n    status: HOLDS"))
    assert verify(root) == 1 and failed(root) == ["claims.yaml"]


def change_table(root):
    file = root / f"tables/{P}/toy_means.csv"
    table = pd.read_csv(file)
    table.loc[1, "value"] *= 1.0001  # far too little to see
    table.to_csv(file, index=False, float_format="%.6g")


def change_predictions(root):
    file = root / f"results/predictions/{P}/toy-b.parquet"
    frame = pd.read_parquet(file)
    frame.loc[3, "score"] += 0.01
    frame.to_parquet(file)


def drop_row(root):
    file = root / f"tables/{P}/toy_means.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize("change", [change_table, change_predictions, drop_row])
def test_a_changed_table_or_prediction_is_found_even_with_a_new_hash(root, change, capsys):
    change(root)
    artifact.lock(root)
    assert verify(root) == 1
    assert "tables of finetune" in failed(root) and not [name for name in failed(root) if name.startswith("hash")]
    assert "toy_means" in checks(root)["tables of finetune"][1]
    assert "checks failed" in capsys.readouterr().err


def test_a_changed_figure_is_found_even_with_a_new_hash(root):
    table = pd.read_csv(root / f"tables/{P}/toy_means.csv")
    picture = root / f"figures/{P}/toy_means.png"
    artifact.bars(table.assign(value=table["value"] * 1.1)).savefig(picture)
    artifact.lock(root)
    assert verify(root) == 1 and failed(root) == ["figures of finetune"]
    picture.write_bytes(b"no picture")
    artifact.lock(root)
    assert verify(root) == 1 and "no picture" in checks(root)["figures of finetune"][1]


def test_changed_missing_and_added_files_break_the_hash(root):
    (root / f"tables/{P}/resources.csv").write_text("stage\n")  # measured, never hashed
    assert verify(root) == 0
    extra = root / f"tables/{P}/extra.csv"
    extra.write_text("a\n")
    assert verify(root) == 1 and failed(root) == ["hash of tables/demo"]
    extra.unlink()
    signal = root / f"figures/{P}/toy_signal.png"
    signal.write_bytes(signal.read_bytes() + b"x")
    assert verify(root) == 1 and failed(root) == ["hash of figures/demo"]
    shutil.rmtree(root / f"figures/{P}")
    assert verify(root) == 1 and "hash of figures/demo" in failed(root)


def test_missing_and_broken_predictions_are_found(root):
    file = root / f"results/predictions/{P}/toy-a.parquet"
    file.write_bytes(file.read_bytes()[:100])
    artifact.lock(root)
    assert verify(root) == 1 and "toy-a.parquet cannot be read" in checks(root)["tables of finetune"][1]
    for each in file.parent.glob("*"):
        each.unlink()
    artifact.lock(root)
    verify(root)
    assert checks(root)["tables and figures"][0] == "SKIPPED"


def test_a_stage_that_was_never_published_is_skipped(root):
    for file in (f"tables/{P}/toy_means.csv", f"figures/{P}/toy_means.png"):
        (root / file).unlink()
    for file in (root / f"results/predictions/{P}").glob("toy-*"):
        file.rename(file.with_name(file.name.replace("toy", "old")))
    artifact.lock(root)
    (root / "claims.yaml").write_text(artifact.CLAIM)
    assert verify(root) == 0
    assert checks(root)["tables of finetune"] == (
        "SKIPPED",
        "toy_means: profile demo was published without stage finetune",
    )
    assert checks(root)["figures of finetune"][0] == "SKIPPED"


def test_unknown_depth_and_profile_are_said(root, capsys):
    assert verify(root, "--depth", "sea") == 1
    assert "unknown depth 'sea': choose one of tables, embeddings, raw" in capsys.readouterr().err
    assert cli.main(["verify", "--profile", "none"]) == 1


# --- replaying --------------------------------------------------------------------------------------------------------


def test_only_lines_between_files_are_run(root):
    program = replay.program("finetune", "predictions")
    means, other = program.tables
    text = program.text(means, program.needed(means))
    assert "_predicted('toy')" in text and "train(" not in text and "scale = " in text
    assert "_predicted" not in program.text(other, program.needed(other))
    assert program.origins == {4}, "the line that would train"
    drawn, signal = replay.program("finetune", "tables").figures
    assert drawn.name == "toy_means" and "count" not in replay.loads(drawn.made), "captions are no part of a picture"
    assert signal.name == "toy_signal"


def test_parameters_are_the_profiles_and_an_error_belongs_to_what_needs_it(root):
    program = replay.program("finetune", "predictions")
    given = {"_predicted": lambda name: pd.DataFrame({"task": ["A"], "score": [0.25]})}
    results = list(program.run(program.tables, config.parameters("finetune", P), given))
    made, error = results[0][1:]
    assert error is None and made["value"].tolist() == [0.5], "encoder: leadcnn in profile demo, so scale is 2"
    assert isinstance(results[1][2], NameError)


def test_every_committed_notebook_can_be_replayed(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables, figures = set(), set()
    for stage, number in config.STAGES.items():
        if (ROOT / f"notebooks/{number}_{stage}.ipynb").is_file():
            program = replay.program(stage, "predictions")
            given = dict.fromkeys(["_predicted", "cohort", "splits", *recompute.special_names(stage)])
            tables |= {one.name for one in program.tables if recompute.follows(program, one, given)}
            figures |= {one.name for one in replay.program(stage, "tables").figures}
    assert tables >= {"heads", "pretraining", "heads_vs_features", "groups", "grid", "choices", "ranks", "reliability"}
    assert tables >= {"calibration", "subgroups", "subgroup_gaps", "balanced", "protocols", "transfer", "transfer_drop"}
    assert tables >= {"finetune", "finetune_vs_linear", "label_efficiency", "label_efficiency_differences"}
    assert not tables & {"null", "probes", "shap", "cohort", "finetune_rates", "finetune_sizes"}
    assert figures >= {"heads_auroc", "grid", "label_efficiency", "structure", "topk", "landscape"}


@pytest.mark.long
def test_committed_tables_and_figures_follow(monkeypatch):
    monkeypatch.chdir(ROOT)
    results = list(recompute.check(recompute.Published("ptbxl-subset")))
    assert len(results) >= 20 and not [one for one in results if one.problem]
    drawn = list(redraw.check("ptbxl-subset"))
    assert sum(not one.skipped for one in drawn) >= 30 and not [one for one in drawn if one.problem]


def test_committed_comparison_of_objectives_follows_with_the_packages_own_functions(monkeypatch):
    monkeypatch.chdir(ROOT)
    (one,) = recompute.check(recompute.Published("ptbxl-subset"), ["pretrain"])
    assert (one.table, one.problem, one.skipped) == ("pretraining_families", "", "") and one.rows > 50


def test_values_do_not_wait_for_draws_and_leave_no_trace():
    from cure import bootstrap, evaluate

    real = bootstrap.patient_draws
    with recompute.few_draws(2):
        assert evaluate.patient_draws(np.arange(5), 1000, np.random.default_rng(0)).shape == (2, 5)
    assert evaluate.patient_draws is bootstrap.patient_draws is real


# --- comparing --------------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"task": ["A", "B"], "fraction": [0.1, 0.1], "n": [5, 6], "value": [0.5, 0.25], "lo": [0.4, 0.2]})


def test_tables_are_compared_row_by_row_whatever_their_order():
    assert recompute.difference(TABLE, TABLE[::-1]) == ""
    assert recompute.difference(TABLE, TABLE.assign(value=TABLE["value"] * (1 + 1e-7))) == ""
    assert "1 of 2 rows differ; first: value is 0.25, the predictions give 0.26 (B, 0.1)" in recompute.difference(
        TABLE, TABLE.assign(value=[0.5, 0.26])
    )
    assert "n is 5, the predictions give 7" in recompute.difference(TABLE, TABLE.assign(n=[7, 6]))
    assert "missing" in recompute.difference(TABLE, TABLE.assign(task=["A", "C"]))
    assert "1 rows that the predictions do not give" in recompute.difference(TABLE, TABLE[:1])
    assert "other columns" in recompute.difference(TABLE, TABLE.drop(columns="lo"))
    assert recompute.difference(TABLE, TABLE.assign(lo=[0.1, 0.1]), {"lo"}) == ""
    assert recompute.difference(TABLE, TABLE.assign(lo=[np.nan, 0.2])) != ""


def test_pictures_are_compared_by_what_can_be_seen():
    white = np.full((100, 100, 4), 255, np.uint8)
    assert redraw.difference(white, white - np.array([3, 3, 3, 0], np.uint8)) == ""
    dot = white.copy()
    dot[40, 30:33, :3] = 0
    assert "the first at x 30, y 40" in redraw.difference(white, dot)
    assert "the first at x 30, y 40" in redraw.difference(dot, white)
    assert redraw.difference(dot, np.roll(dot, 1, axis=0)) == "", "a line that snapped to the next pixel"
    assert redraw.difference(dot, np.roll(dot, 2, axis=0)) != ""
    assert "measures 100 x 100, drawn again 100 x 50" in redraw.difference(white, white[:50])


# --- hashes and pins --------------------------------------------------------------------------------------------------


def test_a_folders_hash_is_dvcs():
    path = "figures/ptbxl-subset"
    assert integrity.folder_md5(ROOT / path, ROOT) == integrity.locked("ptbxl-subset", ROOT)[path]


def test_pins_compare_versions_and_know_what_may_be_absent(tmp_path):
    lock = tmp_path / "runtime.lock"
    here = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "odd": "1"}

    def installed(name):
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return here[name]

    lock.write_text("numpy==2.4.6\ntorch==2.13.0\ncuda-thing==1\nodd==3 ; sys_platform == 'nowhere'\n")
    assert integrity.pins(lock, installed)[0] == "PASS"
    here["numpy"] = "2.4.5"
    status, detail = integrity.pins(lock, installed)
    assert status == "FAIL" and "numpy 2.4.5 instead of 2.4.6" in detail and "make env" in detail
    del here["torch"]
    assert "torch 2.13.0 is not installed" in integrity.pins(lock, installed)[1]
    assert integrity.pins(tmp_path / "none.lock", installed)[0] == "FAIL"


def test_intervals_need_patients(root):
    with pytest.raises(CureError, match="cure run prepare --profile demo"):
        list(recompute.check(recompute.Published(P), ["finetune"], whole=True))


def test_heads_fitted_anew_may_differ_by_rounding_and_no_more():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"encoder": "a", "weights": "b", "seed": 0, "task": np.repeat(["AFIB", "MI"], 500)})
    rows["y"] = rng.random(len(rows)) < 0.2
    rows["score"] = np.clip(0.3 * rows["y"] + rng.random(len(rows)), 0, 1)
    same = alike(rows.assign(score_published=rows["score"]))
    assert same[0] == "PASS" and "100.0% within 0.001" in same[1] and "largest difference 0;" in same[1]
    few = rows["score"].where(np.arange(len(rows)) != 3, rows["score"] - 0.1)
    assert alike(rows.assign(score_published=few))[0] == "PASS", "one score, which moves no AUROC"
    shifted = alike(rows.assign(score_published=rows["score"] + 0.002))
    assert shifted[0] == "FAIL" and "0.0% within 0.001" in shifted[1], "ranks alike, but other scores"
    lost = rows["score"].where(~rows.index.isin(rows.index[rows["y"]][:12]), -1)
    moved = alike(rows.assign(score_published=lost))
    assert moved[0] == "FAIL" and "98.8% within" in moved[1], "few scores, but an AUROC moves"
    highest = rows.groupby("task")["score"].transform("max")
    slightly = rows["score"].where(~rows.index.isin(rows.index[~rows["y"]][::120]), highest)
    macro = alike(rows.assign(score_published=slightly))
    assert macro[0] == "FAIL" and "no AUROC moves by more than 0.006, no macro AUROC by more than 0.005" in macro[1]

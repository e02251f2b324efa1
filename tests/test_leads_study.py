"""The leads study: what is scored and compared, what is counted and measured, and one record seen with some leads."""

import json

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cure import (
    embed,
    lead_cost,
    lead_reader,
    lead_rules,
    lead_study,
    lead_tables,
    lead_training,
    models,
    paths,
)
from cure.config import check
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.lead_study import Unit
from cure.leads import configuration
from cure.models import leadgrid
from cure.plots import leads as drawings
from cure.settings.leads import LeadsConfig
from cure.splits import make_splits

SETTINGS = {"configurations": ["12", "1"], "epochs": 1, "batch_size": 32, "tuned": ["1"], "tuned_epochs": 1}
LEADCNN = Representation("leadcnn", "ssl-simulated", 0)


def settings(**more) -> LeadsConfig:
    return check(LeadsConfig, profile="demo", **{**SETTINGS, "n_draws": 200, **more})


@pytest.fixture(scope="module")
def done(cohort, tmp_path_factory):
    """Everything up to the predictions, on 160 records, in one process."""
    folder, threads = tmp_path_factory.mktemp("leads"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "scratch", lambda profile, stage: folder / "scratch")
        patch.setattr(paths, "stage", lambda profile, stage: folder / "stage")
        patch.setattr(LeadsConfig, "output", property(lambda config: folder / "out"))
        patch.setattr(joblib, "cpu_count", lambda: 1)
        torch.set_num_threads(1)
        config, split = settings(objective="contrastive"), make_splits(cohort.records, "rotate")[0]
        curves = lead_training.pretrain_all(config, cohort, split)
        kept = lead_study.keep_weights(config, cohort, split)
        predicted = lead_study.run(config, cohort, split)
        yield config, cohort, split, curves, kept, predicted
        torch.set_num_threads(threads)


# --- what is trained and scored -------------------------------------------------------------------------


def test_every_pretraining_leaves_weights_that_say_what_they_have_seen(done):
    config, _, split, curves, kept, _ = done
    assert list(kept["weights"] + kept["leads"]) == ["twelve12", "masking12", "selection12", "twin12", "alone1"]
    assert kept["sha256"].is_unique
    assert kept.groupby("encoder")["parameters"].nunique().to_dict() == {"leadgrid": 1, "resnet1d": 1}
    assert kept["has_seen"].str.contains("training part of folds 1\\+2").all()
    assert {"loss", "contrast"} <= set(curves["metric"])
    assert (curves["n"] == len(split.train)).all()
    file = config.output / "weights" / "selection.safetensors"
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert json.loads(header["__metadata__"]["about"])["recipe"]["augmentation"]["kind"] == "selection"


def test_a_finished_pretraining_is_not_run_again(done, monkeypatch):
    config, cohort, split, curves, _, predicted = done
    monkeypatch.setattr(lead_training, "train", None)
    pd.testing.assert_frame_equal(lead_training.pretrain_all(config, cohort, split), curves)
    monkeypatch.setattr(lead_study, "embedded", None)
    pd.testing.assert_frame_equal(lead_study.run(config, cohort, split), predicted)


def test_scores_are_of_the_test_records_of_one_split(done):
    config, cohort, split, _, _, predicted = done
    keys = ["encoder", "weights", "pooling", "strategy", "leads"]
    methods = predicted[keys].drop_duplicates().astype(str).agg("/".join, axis=1).tolist()
    frozen = [one for one in methods if "/frozen/" in one]
    assert len(frozen) == len(config.configurations) * 9 + 1
    assert "resnet1d/twin/none/frozen/12" in frozen
    assert sorted(one for one in methods if "/full/" in one) == [
        f"leadgrid/{weights}/{pooling}/full/1" for weights, pooling in sorted(lead_study.TUNED)
    ]
    assert set(predicted["record_id"]) == set(cohort.records["record_id"].to_numpy()[split.test])
    assert not predicted.duplicated([*keys, "task", "record_id"]).any()
    for task, rows in predicted.groupby("task", observed=True):
        assert rows.drop_duplicates("record_id")["y"].sum() >= 10, task


def score_of(predicted, **which):
    rows = predicted[(predicted[list(which)].astype(str) == pd.Series(which)).all(axis=1)]
    return rows.sort_values(["task", "record_id"])["score"].to_numpy()


def test_poolings_agree_on_twelve_leads_and_differ_on_fewer(done):
    predicted = done[-1]
    for weights in ("twelve", "masking", "selection"):
        one, two = (
            score_of(predicted, weights=weights, pooling=pooling, strategy="frozen", leads="12")
            for pooling in ("fixed", "adaptive")
        )
        np.testing.assert_array_equal(one, two)
        one, two = (
            score_of(predicted, weights=weights, pooling=pooling, strategy="frozen", leads="1")
            for pooling in ("fixed", "adaptive")
        )
        assert not np.allclose(one, two)


def test_a_score_is_that_of_a_head_on_the_leads_alone(done):
    """By hand, with everything but the ticked leads poisoned."""
    config, cohort, split, *_, predicted = done
    model = leadgrid.load(config.output / "weights" / "selection.safetensors")
    x = model.input_spec.read(cohort, np.arange(len(cohort)))
    x[:, 1:] = np.nan
    tasks = lead_study.labels(config, cohort, split)
    with torch.inference_mode():
        halves = [model(torch.from_numpy(x[:, :1, i : i + 500]), [0]).mean(dim=1) for i in (0, 500)]
    z = torch.stack(halves).mean(dim=0).numpy()
    expected = lead_study.probed(z, tasks.y, split)["score"]
    rows = predicted[
        predicted["leads"].eq("1") & predicted["pooling"].eq("adaptive") & predicted["strategy"].eq("frozen")
    ]
    rows = rows[rows["weights"] == "selection"]
    wide = rows.pivot(index="record_id", columns="task", values="score")
    wide = wide.loc[cohort.records["record_id"].to_numpy()[split.test], tasks.names]
    np.testing.assert_allclose(wide.to_numpy(), expected, atol=1e-3)


def test_hand_crafted_features_use_only_the_leads_there_are(cohort):
    some = cohort.folder and lead_study.hand_crafted(cohort, configuration("2"))
    names = list(embed_columns(cohort))
    missing = np.isnan(some).all(axis=0)
    assert all(missing[i] for i, name in enumerate(names) if name.endswith(("_V1", "_V5")))
    assert not missing[names.index("heart_rate_bpm")]


def embed_columns(cohort):
    from cure.features import ecg_features

    return ecg_features(cohort.signals(np.arange(4), 100), 100, n_jobs=1).columns


def test_a_unit_knows_what_it_is_the_same_as():
    assert Unit("twelve", "fixed", "12").same == Unit("alone", "adaptive", "12").same
    assert Unit("twelve", "fixed", "6").same != Unit("twelve", "adaptive", "6").same
    assert Unit("alone", "adaptive", "6").trained == "alone-6"
    assert Unit("none", "none", "12").same == Unit("none", "none", "12")


def test_recorded_limb_leads_are_what_follows_from_two_of_them_up_to_rounding(cohort):
    table = lead_study.reconstruction(cohort)
    assert list(table["lead"].unique()) == ["III", "aVR", "aVL", "aVF"]
    assert table["value"].max() < 3


# --- tables ---------------------------------------------------------------------------------------------


def test_differences_are_between_the_scores_of_the_table(done):
    config, cohort, _, _, _, predicted = done
    scores = lead_tables.score_table(config, cohort, predicted)
    table = lead_tables.difference_table(config, cohort, predicted)
    assert set(table["against"]) == {
        "alone",
        "zero-filled",
        "masking",
        "untrained",
        "features",
        "twelve leads",
        "twin",
    }
    macro = scores[(scores["task"] == "macro") & (scores["metric"] == "auroc")]
    value = macro.set_index(["weights", "pooling", "strategy", "leads"])["value"]
    others = {
        "alone": ("alone", "adaptive"),
        "zero-filled": ("twelve", "fixed"),
        "masking": ("masking", "fixed"),
        "untrained": ("random", "adaptive"),
        "features": ("none", "none"),
        "twin": ("twin", "none"),
    }
    for row in table[table["task"] == "macro"].itertuples():
        mine = value[row.weights, row.pooling, row.strategy, row.leads]
        other = others.get(row.against, (row.weights, row.pooling))
        leads = "12" if row.against == "twelve leads" else row.leads
        assert row.value == pytest.approx(mine - value[(*other, row.strategy, leads)])
    assert dict(zip(scores["leads"].astype(str), scores["n_independent"], strict=True)) == {"12": 8, "1": 1}
    on_twelve = table[(table["leads"] == "12") & (table["against"] == "alone")]
    assert not (on_twelve["weights"] == "twelve").any(), "a function is not compared with itself"
    assert "Against the model of these leads alone: 1: " in lead_tables.answer(table)
    assert "against resnet1d, which mixes them, pre-trained alike: " in lead_tables.answer(table)
    assert lead_tables.difference_view(table, "alone").shape[1] == 2
    assert lead_tables.score_view(scores).loc["hand-crafted features"].str.match(r"0\.\d{3} \[").all()
    panel = lead_tables.shown(scores)
    assert panel["label"].nunique() == 7
    figure = drawings.degradation(panel, {"macro": "all"}, "AUROC")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "12 leads\n(8 independent)",
        "1 lead\n(1 independent)",
    ]


def test_verdicts_follow_from_the_corrected_p():
    base = {"task": "macro", "strategy": "frozen", "weights": "selection", "pooling": "adaptive", "leads": "3"}
    rows = [
        {**base, "against": "alone", "value": -0.04, "lo": -0.06, "hi": -0.02, "p_holm": 0.01},
        {**base, "against": "zero-filled", "value": 0.05, "lo": 0.01, "hi": 0.09, "p_holm": 0.04},
        {**base, "against": "masking", "value": 0.01, "lo": -0.01, "hi": 0.03, "p_holm": 0.6},
    ]
    said = lead_tables.answer(pd.DataFrame(rows))
    assert "alone: 3: -0.040 [-0.060, -0.020], worse." in said
    assert "pre-trained on twelve: 3: +0.050 [+0.010, +0.090], better." in said
    assert "with masking: 3: +0.010 [-0.010, +0.030], not told apart." in said


def test_ticks_of_many_leads_are_broken():
    assert drawings._tick("I+II+V1+V2") == "I+II+V1\nV2\n(4 independent)"


# --- costs ----------------------------------------------------------------------------------------------


def test_activations_are_counted_once_and_without_parameters():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    # The first layer keeps its input, the second what the rectifier gives, which the rectifier keeps too.
    assert lead_cost.activation_bytes(network, torch.randn(5, 4)) == 4 * (5 * 4 + 5 * 3)


def test_counted_costs_fall_with_leads_and_zeros_cost_what_signals_cost():
    names = ["12", "6", "4", "3", "2", "1"]
    table = lead_cost.counted(settings(configurations=names, tuned=[]))
    wide = table.pivot_table(index=["way", "leads"], columns="metric", values="value", sort=False)
    mine = wide.loc[lead_cost.SELECTED].loc[names]
    for metric in ("mflop", "activation_kb"):
        assert (np.diff(mine[metric]) < 0).all()
        assert wide.loc[lead_cost.ZEROS][metric].nunique() == 1
    assert wide.loc[(lead_cost.SELECTED, "12")].equals(wide.loc[(lead_cost.ZEROS, "12")])
    assert mine["parameters"].nunique() == 1
    one, twelve = mine.loc["1"], mine.loc["12"]
    assert one["activation_kb"] <= 0.3 * twelve["activation_kb"], "the target at one lead: 70 % less"
    mixing = table[(table["way"] == lead_cost.MIXED) & (table["metric"] == "mflop")].set_index("encoder")["value"]
    assert twelve["mflop"] <= 1.5 * mixing.min(), "no bloated baseline"
    # Per lead a fixed amount, and what follows the pooling: a straight line.
    slope = np.diff(mine["mflop"]) / np.diff([12, 6, 4, 3, 2, 1])
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)
    assert lead_cost.counted_view(table).loc["leadgrid, selected, 12"].str.contains(r"\(\+0 %\)").sum() == 2
    assert drawings.cost(table).axes
    less = {metric: 100 * (one[metric] / twelve[metric] - 1) for metric in ("activation_kb", "mflop")}
    said = lead_cost.savings(table)
    assert "with 1 lead instead of twelve" in said
    assert f"activations {less['activation_kb']:.0f} %, arithmetic {less['mflop']:.0f} %" in said


def test_what_is_measured_stands_beside_the_paper(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "resources", lambda profile: tmp_path)
    monkeypatch.setattr(LeadsConfig, "measured", lambda config, name: tmp_path / f"{name}.csv")
    monkeypatch.setattr(lead_cost, "in_fresh_process", lambda work: work())
    monkeypatch.setattr(lead_cost, "_large_arrays_apart", lambda: None)
    config, split = (
        settings(configurations=["12", "1"], tuned=[], cost_epochs=1, cost_records=64),
        make_splits(cohort.records, "rotate")[0],
    )
    with pytest.raises(CureError, match="no measured costs of profile demo"):
        lead_cost.cost_table("demo")
    lead_cost.measure(config, cohort, split, lead_study.labels(config, cohort, split))
    table = lead_cost.cost_table("demo")
    assert list(table["leads"]) == ["12", "12", "1", "12", "not given"]
    assert list(table["encoder"]) == [*["leadgrid"] * 3, "resnet1d", "Self-DANA (paper)"]
    assert (table["cpu_s"][:4] > 0).all()
    assert table["cpu_s"][2] < table["cpu_s"][0]
    assert table["cpu_s_change"][0] == 0
    assert table["cpu_s_change"][2] == pytest.approx(100 * (table["cpu_s"][2] / table["cpu_s"][0] - 1))
    assert table["peak_mb_change"].iloc[-1] == -69.3
    if not torch.cuda.is_available():
        assert table["gpu_s_change"][:3].isna().all(), "not run is not imitated"


# --- any model, and one record --------------------------------------------------------------------------


def test_rules_for_models_that_need_twelve_leads(cohort, tmp_path, monkeypatch):
    study = Representation("clef-small", "random", 0)
    monkeypatch.setattr(embed, "representations", lambda config: [LEADCNN, study, Representation(FEATURES, "none", 0)])
    monkeypatch.setattr(embed, "load_encoder", lambda config, one, split, cohort=None: models.load(one.encoder))
    monkeypatch.setattr(paths, "scratch", lambda profile, stage: tmp_path / "scratch")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)

    def twelve(config, one, pooling, cohort, split):
        out = tmp_path / one.folder
        if not out.exists():
            embed.extract(cohort, models.load(one.encoder), ["mean"], out, tmp_path / "part")
        return embed.read(out, "mean", cohort)

    monkeypatch.setattr(embed, "read_split", twelve)
    config = settings(published=["clef-small"], published_configurations=["6", "2", "1"])
    found = [(cell.model.encoder, cell.leads, cell.rule) for cell in lead_rules.cells(config)]
    assert ("clef-small", "2", "reconstruct") in found
    assert ("clef-small", "6", "reconstruct") not in found, "nothing is missing that could be computed"
    assert ("clef-small", "1", "reconstruct") not in found, "nothing can be computed from I alone"
    assert [cell for cell in found if cell[2] == "left out"] == [("leadcnn", name, "left out") for name in "621"]
    config = settings(published=[], published_configurations=["2"])
    split = make_splits(cohort.records, "rotate")[0]
    predicted = lead_rules.run(config, cohort, split, lead_study.labels(config, cohort, split))
    table = lead_rules.score_table(config, cohort, predicted)
    gaps = table[table["comparator"].notna() & (table["task"] == "macro")].set_index(["rule", "fitted"])["value"]
    assert set(gaps.index) == {
        (rule, fitted)
        for rule in ("zero-fill", "reconstruct", "left out")
        for fitted in ("the same leads", "twelve leads")
    }
    assert list(lead_rules.view(table).columns) == ["head of the same leads", "head of twelve leads"]
    empty = lead_rules.score_table(config, cohort, pd.DataFrame())
    assert "none" in lead_rules.view(empty).to_string()


def test_one_record_is_seen_with_the_ticked_leads_only(done):
    config, cohort, split, *_ = done
    seen = lead_reader.see(config, cohort, split, ["V2", "I"])
    assert seen.leads == ["I", "V2"]
    assert seen.mv.shape == (2, 1000)
    assert seen.attribution.shape == (2, 250)
    x = leadgrid.LeadGrid.input_spec.read(cohort, np.flatnonzero(cohort.records["record_id"] == seen.record_id))
    np.testing.assert_allclose(seen.mv, x[0, [0, 7]] * leadgrid.LeadGrid.input_spec.unit_mv, rtol=1e-5)
    assert list(seen.table.index) == ["I, V2", "all twelve"]
    assert "(-" in seen.table["MFLOP"].iloc[0]
    assert seen.table["MFLOP"].iloc[1].endswith("(+0 %)")
    assert seen.record_id in cohort.records["record_id"].to_numpy()[split.test]
    figure = drawings.one_record(seen.mv, seen.attribution, seen.leads, 100, "x")
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["I", "V2"]
    assert "seen with I, V2 only" in lead_reader.caption(config, seen, "a cohort")
    with pytest.raises(CureError, match="is no test record"):
        lead_reader.see(config, cohort, split, ["I"], int(cohort.records["record_id"].iloc[split.train[0]]))
    with pytest.raises(CureError, match="unknown task 'X'"):
        lead_reader.see(config.model_copy(update={"task": "X"}), cohort, split, ["I"])


def test_without_weights_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(LeadsConfig, "output", property(lambda config: tmp_path))
    monkeypatch.setattr(paths, "stage", lambda profile, stage: tmp_path)
    with pytest.raises(CureError, match="make repro PROFILE=demo"):
        lead_reader.pretrained(settings())


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(CureError, match="'12' comes first"):
        settings(configurations=["6", "12"])
    with pytest.raises(CureError, match="tuned: '3' is not among the configurations"):
        settings(tuned=["3"])
    with pytest.raises(CureError, match=r"configurations.1: String should match pattern .* \(got 'I\+X'\)"):
        settings(configurations=["12", "I+X"])
    with pytest.raises(CureError, match=r"ticked\.0"):
        settings(ticked=["X"])
    assert settings(configurations=["12", "aVR+V1"], tuned=[], ticked=["aVF"]).ticked == ["aVF"]

"""The study of post-training: who is trained on what, at which learning rate, and what its tables say."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from small import Residual

from cure import adapt, embed, finetune, paths, posttrain, posttrain_tables
from cure.config import check
from cure.embed import Representation
from cure.errors import CureError
from cure.finetune import taking_part
from cure.models import registry
from cure.models.base import seeded
from cure.plots.posttrain import ablation, gains
from cure.settings.posttrain import PosttrainConfig
from cure.splits import make_splits

SETTINGS = {
    "subjects": [{"encoder": "small", "weights": "ssl-folds", "rates": [1e-3, 1e-2], "light_rates": [0.02]}],
    "strategies": ["linear", "full", "preview+depth"],
    "groups": ["super", "rhythm"],
    "fractions": [0.5, 1.0],
    "seeds": [0, 1],
    "drop_paths": [0.0, 0.2, 0.4],
    "light": ["bitfit", "lora"],
    "epochs": 1,
    "patience": 1,
    "batch_size": 16,
    "adaptation": {"preview_epochs": 1, "drop_path": 0.2},
    "n_draws": 100,
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def residual() -> Residual:
    with seeded(0):
        return Residual().eval()


@pytest.fixture
def study(cohort, tmp_path, monkeypatch):
    """Settings, and an encoder to adapt with embeddings that know a little about the labels."""
    rng = np.random.default_rng(0)
    y = cohort.binary().y.astype(np.float32)
    x = (y @ rng.normal(size=(y.shape[1], 8)) + rng.normal(size=(len(y), 8))).astype(np.float32)
    monkeypatch.setitem(registry.OWN, "small", Residual)
    monkeypatch.setattr(embed, "representations", lambda _: [Representation("small", "ssl-folds", 0)])
    monkeypatch.setattr(embed, "load_encoder", lambda *_: residual())
    monkeypatch.setattr(embed, "read_split", lambda *_: x)
    monkeypatch.setattr(paths, "scratch", lambda profile, stage: tmp_path / "scratch" / stage)
    return check(PosttrainConfig, profile="demo", **SETTINGS), cohort, make_splits(cohort.records, "rotate")


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """Everything on the first split, and how many trainings that took."""
    with pytest.MonkeyPatch.context() as patch:
        config, cohort, splits = study.__wrapped__(cohort, tmp_path_factory.mktemp("posttrain"), patch)
        calls, real = [], finetune.choose
        patch.setattr(finetune, "choose", lambda *given, **how: calls.append(given[1]) or real(*given, **how))
        return posttrain.run(config, cohort, splits, n_jobs=1), calls


# --- labels and trainings ------------------------------------------------------------------------------------


def test_labels_are_those_that_can_be_learned_and_scored(study):
    config, cohort, splits = study
    found = posttrain.labels(config, cohort, splits, "super")
    group = cohort.group("super")
    part = taking_part(splits[0], group)
    y = finetune.whole(group, len(cohort))
    for i, name in enumerate(group.names):
        rarer = min(y[part.train, i].sum(), (~y[part.train, i]).sum())
        scored = min(y[part.test, i].sum(), (~y[part.test, i]).sum())
        assert (f"super/{name}" in found.names) == (scored >= 10 and 0.5 * rarer >= 2)
    with pytest.raises(CureError, match="label group 'super': no label has 10 test records"):
        posttrain.labels(config.model_copy(update={"fractions": [0.001]}), cohort, splits, "super")


def test_all_strategies_share_samples_steps_and_the_rate_that_fine_tuning_chose(study):
    config, cohort, splits = study
    one = posttrain.Study.of(config, cohort, splits, config.subjects[0], "super")
    chosen = {(splits[0].name, 0.5): 1e-3, (splits[0].name, 1.0): 1e-2}
    todo = {(t.job.strategy.name, t.fraction, t.job.seed): t.job for t in one.trainings(chosen)}
    networks = ["full", "preview+depth"]
    grid = {(name, fraction, seed) for name in networks for fraction in (0.5, 1.0) for seed in (0, 1)}
    once = {(name, 1.0, 0) for name in ("preview", "depth", "depth-0.4", "preview+depth-0.4", "bitfit", "lora")}
    assert set(todo) == grid | once
    for (name, fraction, seed), job in todo.items():
        same = todo["full", fraction, seed]
        np.testing.assert_array_equal(job.split.train, same.split.train)
        np.testing.assert_array_equal(job.split.val, same.split.val)
        assert job.strategy.rates == ((0.02,) if name in ("bitfit", "lora") else (chosen[splits[0].name, fraction],))
        previewed = job.strategy.preview.epochs if job.strategy.preview else 0
        assert (job.recipe.epochs + previewed, job.recipe.seed) == (2, seed), "as many epochs for all"
        assert (job.strategy.preview is not None) == name.startswith("preview")
        assert job.strategy.refit == ((name, fraction) in {(name, 1.0) for name in networks})
    rates = {name: job.strategy.drop_path for (name, *_), job in todo.items()}
    assert rates == {
        "full": 0,
        "preview": 0,
        "preview+depth": 0.2,
        "depth": 0.2,
        "depth-0.4": 0.4,
        "preview+depth-0.4": 0.4,
        "bitfit": 0,
        "lora": 0,
    }
    few, many = todo["full", 0.5, 0].split, todo["full", 1.0, 0].split
    assert set(few.train) < set(many.train) and set(few.val) < set(many.val)
    other = posttrain.Study.of(config, cohort, splits, config.subjects[0], "rhythm")
    assert {t.job.strategy.name for t in other.trainings(chosen)} == set(networks)


def test_the_search_is_part_of_the_grid_and_nothing_is_trained_twice(trained):
    done, calls = trained
    # Per group two rates at two shares and eight trainings, two of them found by the search; six more on the first.
    assert len(calls) == 2 * (2 * 2 + 8 - 2) + 6
    for _, rows in done.rates.groupby(["group", "fraction"]):
        assert rows["chosen"].sum() == 1
        assert rows.loc[rows["chosen"], "value"].item() == rows["value"].min()
    chosen = done.rates.loc[done.rates["chosen"]].set_index(["group", "fraction"])["rate"]
    tuned = done.predicted[done.predicted["strategy"].isin(["full", "preview", "preview+depth"])]
    setting = tuned["setting"].astype(str).str.extract(r"rate=([^,]+),")[0].astype(float)
    group = tuned["task"].astype(str).str.split("/").str[0]
    own = pd.MultiIndex.from_arrays([group, tuned["fraction"].astype(float)])
    np.testing.assert_allclose(setting, chosen.loc[own])


def test_every_strategy_scores_every_test_record_that_takes_part_once(trained, cohort):
    done, _ = trained
    split = make_splits(cohort.records, "rotate")[0]
    record_id = cohort.records["record_id"].to_numpy()
    expected = {}
    for group in ("super", "rhythm"):
        labels = cohort.group(group)
        truth = pd.DataFrame(labels.y, record_id[labels.rows], [f"{group}/{name}" for name in labels.names])
        expected[group] = truth.loc[record_id[taking_part(split, labels).test]]
    method = ["strategy", "fraction", "seed", "task"]
    for (*_, task), rows in done.predicted.groupby(method, observed=True):
        truth = expected[task.split("/")[0]][task]
        assert sorted(rows["record_id"]) == sorted(truth.index)
        assert (rows["y"].to_numpy() == truth[rows["record_id"]]).all()
        assert rows["score"].between(0, 1).all()
    seeds = done.predicted.groupby(["strategy", "fraction"], observed=True)["seed"].nunique()
    assert seeds["full", 1.0] == seeds["linear", 0.5] == seeds["full, new head", 1.0] == 2
    assert seeds["linear", 1.0] == seeds["depth-0.4", 1.0] == seeds["lora", 1.0] == 1
    labels = posttrain_tables.labelled(done.history).drop_duplicates("strategy").set_index("strategy")["label"]
    assert labels["preview+depth-0.4"] == "head first, then fine-tuned with depth 0.4"
    assert (labels["full"], labels["lora"]) == ("fine-tuned", "low-rank tuned")
    sizes = done.sizes.set_index("strategy")
    assert sizes.loc["lora", "trainable"] < sizes.loc["full", "trainable"] == sizes.loc["full", "parameters"]


def test_an_interrupted_study_goes_on_and_ends_the_same(study, trained, monkeypatch):
    config, cohort, splits = study
    few = {"groups": ["super"], "seeds": [0], "light": [], "drop_paths": [], "strategies": ["full", "preview+depth"]}
    config = config.model_copy(update=few)
    calls, logits = [], adapt.logits

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return logits(*given)

    monkeypatch.setattr(adapt, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        posttrain.run(config, cohort, splits, n_jobs=1)
    monkeypatch.setattr(adapt, "logits", logits)
    again = posttrain.run(config, cohort, splits, n_jobs=1)
    columns = ["strategy", "fraction", "task", "record_id", "score", "threshold"]
    whole = trained[0].predicted[trained[0].predicted["seed"] == 0]
    both = [frame[columns].astype({"strategy": str, "task": str}) for frame in (again.predicted, whole)]
    merged = both[0].merge(both[1], on=columns[:4], how="left", suffixes=("", "_whole"))
    assert len(merged) == len(both[0])
    np.testing.assert_array_equal(merged["score"], merged["score_whole"])
    np.testing.assert_array_equal(merged["threshold"], merged["threshold_whole"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strategies": ["linear", "preview"]}, "'full' is missing"),
        ({"strategies": ["full", "lora"]}, "strategies.1"),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\] holds a value twice"),
        ({"subjects": SETTINGS["subjects"] * 2}, "holds an encoder twice"),
        ({"drop_paths": [1.0]}, "drop_paths.0"),
        ({"adaptation": {"droppath": 0.1}}, "unknown setting 'adaptation.droppath'"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changed, said):
    with pytest.raises(CureError, match=said):
        check(PosttrainConfig, profile="demo", **SETTINGS | changed)


def test_weights_that_the_profile_does_not_extract_are_an_error(study):
    config, cohort, splits = study
    other = config.subjects[0].model_copy(update={"weights": "hub"})
    with pytest.raises(CureError, match="extracts no small with weights 'hub': list it in section embed"):
        posttrain.Study.of(config, cohort, splits, other, "super")


# --- tables ------------------------------------------------------------------------------------------------

SCORES = {
    "auroc": lambda rows: roc_auc_score(rows["y"], rows["score"]),
    "auprc": lambda rows: average_precision_score(rows["y"], rows["score"]),
    "f1_tuned": lambda rows: f1_score(rows["y"], rows["score"] >= rows["threshold"]),
}


def by_hand(predicted, strategy, fraction, group, metric, seeds=(0, 1)):
    """Mean over labels and seeds, each scored by scikit-learn."""
    rows = predicted[predicted["strategy"].eq(strategy) & predicted["fraction"].eq(fraction)]
    rows = rows[rows["task"].astype(str).str.startswith(f"{group}/") & rows["seed"].isin(seeds)]
    return np.mean([SCORES[metric](part) for _, part in rows.groupby(["task", "seed"], observed=True)])


def test_scores_and_gains_are_means_over_labels_and_seeds(study, trained):
    config, cohort, _ = study
    predicted = trained[0].predicted
    scores = posttrain_tables.score_table(config, cohort, predicted)
    assert len(scores) == 3 * 2 * 2 * 3  # strategies, fractions, groups, metrics
    for row in scores.itertuples():
        assert row.value == pytest.approx(by_hand(predicted, row.strategy, row.fraction, row.task, row.metric))
        assert row.lo <= row.hi
    table = posttrain_tables.gain_table(config, cohort, predicted)
    assert len(table) == 2 * 2 * 2 * 3
    for row in table.itertuples():
        plain = by_hand(predicted, "full", row.fraction, row.task, row.metric)
        mine = by_hand(predicted, row.strategy, row.fraction, row.task, row.metric)
        assert (row.value, row.relative) == (pytest.approx(mine - plain), pytest.approx(mine / plain - 1))
        assert row.reference == pytest.approx(plain)
        assert row.relative_lo <= row.relative_hi
        assert row.p <= row.p_holm <= 1
    labels = predicted["task"].astype(str).str.startswith("super/")
    assert (table.loc[table["task"] == "super", "n_tasks"] == predicted["task"][labels].nunique()).all()
    assert posttrain_tables.score_view(scores, "auroc").shape == (3, 4)
    view = posttrain_tables.gain_view(table)
    assert view.shape == (6, 4) and (view != "").all(axis=None)
    assert isinstance(gains(posttrain_tables.labelled(table), {"auroc": "AUROC", "auprc": "AUPRC"}), Figure)


def test_the_ablation_has_a_row_for_every_rate_with_and_without_preview(study, trained):
    config, cohort, _ = study
    predicted = trained[0].predicted
    table = posttrain_tables.ablation_table(config, cohort, predicted)
    names = {(preview, rate): posttrain.ablated(config, preview, rate) for preview in (0, 1) for rate in (0, 0.2, 0.4)}
    assert set(names.values()) == {
        *("full", "depth", "depth-0.4", "preview", "preview+depth", "preview+depth-0.4"),
    }
    assert len(table) == 6 * 3
    plain = {metric: by_hand(predicted, "full", 1.0, "super", metric, [0]) for metric in SCORES}
    for row in table.itertuples():
        assert row.score == pytest.approx(
            by_hand(predicted, names[row.preview, row.drop_path], 1.0, "super", row.metric, [0])
        )
        assert row.value == pytest.approx(row.score - plain[row.metric])
    first = table[~table["preview"] & table["drop_path"].eq(0)]
    assert (first[["value", "lo", "hi"]] == 0).all(axis=None) and first["p"].isna().all()
    assert isinstance(ablation(table, {"auroc": "AUROC"}), Figure)


def test_light_strategies_and_new_heads_are_compared_with_their_own_network(study, trained):
    config, cohort, _ = study
    predicted = trained[0].predicted
    light = posttrain_tables.light_table(config, cohort, predicted, trained[0].sizes)
    assert set(light["strategy"]) == {"bitfit", "lora"} and light["trainable"].notna().all()
    row = light[(light["strategy"] == "lora") & (light["metric"] == "auroc")].iloc[0]
    plain = by_hand(predicted, "full", 1.0, "super", "auroc", [0])
    assert row["value"] == pytest.approx(by_hand(predicted, "lora", 1.0, "super", "auroc", [0]) - plain)
    lag = posttrain_tables.refit_table(config, cohort, predicted)
    assert set(lag["strategy"]) == {f"{name}, new head" for name in ("full", "preview+depth")}
    for row in lag.itertuples():
        own = row.strategy.removesuffix(", new head")
        assert row.comparator == own
        mine, theirs = (by_hand(predicted, name, 1.0, row.task, row.metric) for name in (row.strategy, own))
        assert row.value == pytest.approx(mine - theirs)
    assert len(posttrain_tables.difference_view(light)) == 2
    assert len(posttrain_tables.difference_view(lag)) == 2 * 2


def test_what_was_not_run_has_empty_tables(study, trained):
    config, cohort, _ = study
    names = ["linear", "full", "preview+depth"]
    predicted = trained[0].predicted
    predicted = predicted[predicted["strategy"].isin(names)]
    config = config.model_copy(update={"drop_paths": [], "light": [], "refit": False})
    assert isinstance(ablation(posttrain_tables.ablation_table(config, cohort, predicted), {"auroc": "A"}), Figure)
    for table in (
        posttrain_tables.ablation_table(config, cohort, predicted),
        posttrain_tables.light_table(config, cohort, predicted, trained[0].sizes),
        posttrain_tables.refit_table(config, cohort, predicted),
    ):
        assert table.empty
        assert posttrain_tables.difference_view(table).empty


def test_the_answer_counts_what_holds_after_correction():
    row = {"encoder": "e", "strategy": "preview+depth", "fraction": 1.0, "metric": "auroc"}
    numbers = [("super", 0.012, 0.01), ("diag", 0.033, 0.2), ("sub", -0.02, 0.001)]
    table = pd.DataFrame([{**row, "task": t, "relative": r, "value": r, "p_holm": p} for t, r, p in numbers])
    text = posttrain_tables.answer(table)
    assert "over 3 label groups" in text
    assert "* e, 100% of the labels, AUROC: -2.0% to +3.3% (better in 1, worse in 1, not told apart in 1)" in text
    assert "not part of this profile" in posttrain_tables.answer(table, "preview")


def test_the_size_of_a_sample_bounds_what_is_repeated(study):
    config, cohort, splits = study
    one = posttrain.Study.of(
        config.model_copy(update={"least_steps": 1.0}), cohort, splits, config.subjects[0], "super"
    )
    few = one.training("full", 0.5, 0, splits[0], 1e-3).job.split.train
    assert len(few) >= len(taking_part(splits[0], one.found).train)
    assert len(np.unique(few)) < len(few)
    whole = one.training("full", 1.0, 0, splits[0], 1e-3).job.split.train
    np.testing.assert_array_equal(whole, taking_part(splits[0], one.found).train)

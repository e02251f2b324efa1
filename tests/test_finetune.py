import shutil
from dataclasses import replace
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import Small, small

from cure import adapt, embed, finetune, finetune_tables, heads, models, paths, tables
from cure.adapt import fit
from cure.config import check
from cure.embed import Representation
from cure.errors import CureError
from cure.models import registry
from cure.plots.training import loss_curves
from cure.settings.finetune import FinetuneConfig
from cure.splits import Split, make_splits

SETTINGS = {
    "encoder": "small",
    "weights": "ssl-folds",
    "strategies": ["linear", "attentive", "last-1", "full", "full+decay", "scratch", "released"],
    "floors": ["floor"],
    "training": {
        "attentive": {"rates": [1e-2]},
        "tuned": {"rates": [1e-3, 1e-5]},
        "scratch": {"rates": [2e-3]},
        "floor": {"rates": [3e-3], "window_s": 2.5, "epochs": 1},
    },
    "seeds": [0],
    "epochs": 2,
    "patience": 2,
    "batch_size": 32,
    "weight_decay": 0.02,
    "n_draws": 100,
}
LOAD_ENCODER = embed.load_encoder
PRETRAINED = Representation("small", "ssl-folds", 0)
RANDOM = [Representation("small", "random", seed) for seed in (0, 1)]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def study(cohort, tmp_path, monkeypatch):
    """Settings, and weights and embeddings that differ per split, as if stages `pretrain` and `embed` had run."""
    others = [Representation("resnet1d", "random", 0), Representation(embed.FEATURES, "none", 0)]
    monkeypatch.setitem(registry.OWN, "small", Small)
    monkeypatch.setitem(registry.OWN, "floor", Small)
    monkeypatch.setattr(embed, "representations", lambda config: [PRETRAINED, *RANDOM, *others])
    monkeypatch.setattr(embed, "load_encoder", lambda config, one, split: models.load(one.encoder, seed=_number(split)))
    monkeypatch.setattr(embed, "read_split", lambda config, one, pooling, cohort, split: _frozen(cohort, one, split))
    monkeypatch.setattr(paths, "scratch", lambda profile, stage: tmp_path / "scratch" / stage)
    monkeypatch.setattr(paths, "resources", lambda profile: tmp_path / "resources")
    # Probes in this process: starting workers takes longer than the fits.
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    splits = make_splits(cohort.records, "rotate")
    return check(FinetuneConfig, profile="demo", **SETTINGS), cohort, splits


def _number(split: Split) -> int:
    return 100 + int(split.name.split("+")[-1])


def _frozen(cohort, one, split):
    """8 dimensions that know a little about the labels; pre-trained ones differ per split."""
    rng = np.random.default_rng([one.seed, _number(split) if one.per_split else 0])
    y = cohort.binary().y.astype(np.float32)
    return (y @ rng.normal(size=(y.shape[1], 8)) + rng.normal(size=(len(y), 8))).astype(np.float32)


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """All strategies on two of the splits."""
    with pytest.MonkeyPatch.context() as patch:
        config, cohort, splits = study.__wrapped__(cohort, tmp_path_factory.mktemp("trained"), patch)
        return finetune.run(config, cohort, splits[:2], n_jobs=1)


# --- all trainings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", (*SETTINGS["strategies"][1:], "last-2"))
def test_weights_are_those_of_the_file_before_the_first_step_and_frozen_ones_after(
    strategy, study, monkeypatch, tmp_path
):
    config, cohort, splits = study
    config = config.model_copy(update={"strategies": [strategy], "floors": []})
    monkeypatch.setattr(FinetuneConfig, "weights_folder", tmp_path)
    file = tmp_path / "small-ssl-folds-0" / "folds-1+2.safetensors"
    file.parent.mkdir()
    save_file({name: v + 0.01 if v.is_floating_point() else v for name, v in small().state_dict().items()}, file)
    saved = load_file(file)
    monkeypatch.setattr(embed, "load_encoder", LOAD_ENCODER)
    (job,) = finetune.jobs(config, splits[:1])
    x, y = cohort.signals(np.arange(len(cohort)), 100), cohort.binary().y
    model = job.classifier(y.shape[1])
    before = job.starts.state_dict() if strategy == "attentive" else model.encoder.state_dict()
    same = {name: torch.equal(value, saved[name]) for name, value in before.items()}
    if strategy in ("scratch", "released"):
        assert not any(same[name] for name in same if "running" in name or "weight" in name)
        return
    assert all(same.values())
    if strategy == "attentive":
        tokens = []
        adapt.frozen_tokens(job.starts, x, lambda _, found: tokens.append(found))
        x = np.concatenate(tokens)
    fit(model, x, y, job.split, replace(job.recipe, epochs=1), tmp_path / "state")
    assert all(torch.equal(value, saved[name]) for name, value in job.starts.state_dict().items())
    if strategy != "attentive":
        moved = {
            name.split(".")[0] for name, v in model.encoder.state_dict().items() if not torch.equal(v, saved[name])
        }
        assert moved == ({"mix"} if strategy == "last-1" else {"enter", "mix"})


def test_jobs_follow_the_settings(study):
    config, _, splits = study
    found = {(job.strategy.name, job.strategy.encoder): job for job in finetune.jobs(config, splits[:1])}
    assert [name for name, _ in found] == [*SETTINGS["strategies"][1:], "scratch"]
    rates = {name: job.strategy.rates for (name, _), job in found.items()}
    assert rates["last-1"] == rates["full"] == rates["full+decay"] == (1e-3, 1e-5)
    assert found["full", "small"].strategy.decay == 1 > found["full+decay", "small"].strategy.decay == config.decay
    floor = found["scratch", "floor"]
    assert (floor.strategy.pooling, floor.strategy.window_s, floor.recipe.epochs) == ("mean+max", 2.5, 1)
    released = found["released", "small"]
    assert (released.strategy.rates, released.recipe.patience, released.strategy.weights) == ((1e-7,), 4, "random")
    assert released.recipe.epochs == config.epochs
    assert released.starts.weights_sha256() == models.load("small", seed=0).weights_sha256()


def test_another_seed_is_another_start_only_where_weights_are_random(study):
    config, _, splits = study
    for job in finetune.jobs(config, splits[:1]):
        other = finetune.reseeded(job, 7)
        assert (other.seed, other.recipe.seed) == (7, 7)
        assert (other.starts.weights_sha256() == job.starts.weights_sha256()) == job.strategy.adapts


def test_the_released_row_has_a_random_head_and_scores_of_its_own(study, trained):
    """A head that starts at zero would end, at 1e-7, as the sum of its features: not the defect it stands for."""
    (job,) = (job for job in finetune.jobs(study[0], study[2][:1]) if job.strategy.name == "released")
    weight = job.classifier(3).head.weight
    assert weight.abs().min() > 0
    assert torch.equal(weight, job.classifier(3).head.weight)
    assert not torch.equal(weight, finetune.reseeded(job, 7).classifier(3).head.weight)
    scores = trained.predicted[trained.predicted["strategy"] == "released"]
    per = scores.groupby(["task", "split"], observed=True)["score"].agg(["nunique", "size"])
    assert (per["nunique"] > 0.95 * per["size"]).all()


def test_the_table_of_learning_rates_says_which_was_chosen(trained):
    names = ["strategy", "encoder", "split", "seed"]
    for key, rows in trained.rates.groupby(names):
        assert rows["chosen"].sum() == 1
        assert rows.loc[rows["chosen"], "value"].iloc[0] == rows["value"].min()
        assert len(rows) == (2 if key[0] in ("last-1", "full", "full+decay") else 1)
    view = finetune_tables.rates_view(trained.rates)
    assert view.loc[("fine-tuned: small, ssl-folds", "0.001"), ["chosen", "of"]].tolist() == [2, 2]


def test_statements_are_one_problem_of_the_records_that_list_any(study):
    config, cohort, splits = study
    config = config.model_copy(update={"tasks": "all", "strategies": ["linear", "full"], "floors": [], "epochs": 1})
    done = finetune.run(config, cohort, splits[:1], n_jobs=1)
    group = cohort.group("all")
    truth = pd.DataFrame(group.y, cohort.records["record_id"].to_numpy()[group.rows], group.names)
    tested = cohort.records["record_id"].to_numpy()[np.intersect1d(splits[0].test, group.rows)]
    for _, rows in done.predicted.groupby(["strategy", "weights", "seed", "task"], observed=True):
        task = rows["task"].iloc[0].removeprefix("all/")
        assert sorted(rows["record_id"]) == sorted(tested)
        assert (rows["y"].to_numpy() == truth.loc[rows["record_id"], task]).all()
    table = finetune_tables.score_table(config, cohort, done.predicted)
    assert table["task"].str.startswith("all/").any()
    published = finetune_tables.published_macro(table)
    assert (published["n_tasks"] >= published["supported"]).all()
    view = finetune_tables.published_view(table)
    assert view["AUROC"].tolist() == [f"{value:.3f}" for value in published["value"]]


def test_there_is_no_published_average_over_binary_tasks(study, people):
    table = finetune_tables.score_table(study[0], people, _predicted(FOUR))
    assert "`tasks` is binary" in finetune_tables.published_view(table)["label"].item()


def test_every_strategy_scores_every_test_record_of_its_splits_once(trained, cohort):
    splits = make_splits(cohort.records, "rotate")[:2]
    tested = cohort.records["record_id"].to_numpy()[np.concatenate([split.test for split in splits])]
    truth = pd.DataFrame(cohort.binary().y, cohort.records["record_id"], cohort.binary().names)
    method = ["strategy", "encoder", "weights", "pooling", "head", "seed"]
    found = trained.predicted.groupby(method, observed=True)
    assert sorted(key[:5] for key in found.groups) == sorted(
        [
            ("attentive", "small", "ssl-folds", "attention", "attentive"),
            ("last-1", "small", "ssl-folds", "mean", "linear"),
            ("full", "small", "ssl-folds", "mean", "linear"),
            ("full+decay", "small", "ssl-folds", "mean", "linear"),
            ("released", "small", "random", "mean", "linear"),
            ("linear", "small", "random", "mean", "logistic"),
            ("linear", "small", "random", "mean", "logistic"),
            ("linear", "small", "ssl-folds", "mean", "logistic"),
            ("scratch", "small", "random", "mean", "linear"),
            ("scratch", "floor", "random", "mean+max", "linear"),
        ]
    )
    for _, frame in found:
        for task, rows in frame.groupby("task", observed=True):
            assert sorted(rows["record_id"]) == sorted(tested)
            assert (rows["y"].to_numpy() == truth.loc[rows["record_id"], task]).all()


def test_the_probe_reads_the_embeddings_of_its_split(trained, cohort):
    splits = make_splits(cohort.records, "rotate")[:2]
    chosen = (trained.predicted["strategy"] == "linear") & (trained.predicted["weights"] == "ssl-folds")
    y = cohort.binary().y[:, cohort.binary().names.index("NORM")]
    for split in splits:
        mine = trained.predicted[chosen & (trained.predicted["split"] == split.name)]
        score = mine[mine["task"] == "NORM"].set_index("record_id")["score"]
        x = _frozen(cohort, PRETRAINED, split)
        direct = heads.fit_head("logistic", x, y, split).score(x[split.test])
        np.testing.assert_allclose(score[cohort.records["record_id"].to_numpy()[split.test]], direct, rtol=1e-5)


def test_sizes_count_what_is_trained(trained, cohort):
    n_tasks = trained.predicted["task"].nunique()
    sizes = trained.sizes.set_index(["strategy", "encoder", "weights", "split", "seed", "metric"])["value"].sort_index()
    head, split = n_tasks * 17, make_splits(cohort.records, "rotate")[0]
    encoder = small().n_parameters()
    linear = sizes["linear", "small", "ssl-folds", split.name, 0]
    assert linear.to_dict() == {"parameters": encoder + head, "trainable": head, "records_seen": len(split.train)}
    full = sizes["full", "small", "ssl-folds", split.name, 0]
    assert full["trainable"] == full["parameters"] == encoder + head
    assert full["records_seen"] == 2 * full["epochs"] * (len(split.train) // 32 * 32)  # two learning rates
    assert sizes["scratch", "floor", "random", split.name, 0, "trainable"] == encoder + n_tasks * 33
    mix = sum(p.numel() for p in small().mix.parameters())
    assert sizes["last-1", "small", "ssl-folds", split.name, 0, "trainable"] == mix + head
    assert sizes["last-1", "small", "ssl-folds", split.name, 0, "parameters"] == encoder + head
    attentive = sizes["attentive", "small", "ssl-folds", split.name, 0]
    assert attentive["trainable"] == n_tasks * 33
    assert attentive["parameters"] == encoder + n_tasks * 33
    assert 1 <= full["epoch_kept"] <= full["epochs"] <= 2


def test_history_holds_both_losses_of_every_epoch(trained):
    runs = trained.history.groupby(["strategy", "encoder", "split", "metric"])
    assert len(runs) == 7 * 2 * 2
    assert all(list(run["epoch"]) == list(range(1, len(run) + 1)) for _, run in runs)
    kept = trained.sizes[trained.sizes["metric"] == "epoch_kept"].set_index(["strategy", "encoder", "split"])["value"]
    for (*names, metric), run in runs:
        if metric == "validation":
            assert run.loc[run["value"].idxmin(), "epoch"] == kept[tuple(names)]


def test_an_interrupted_run_goes_on_and_ends_the_same_whatever_the_number_of_workers(
    study, trained, monkeypatch, tmp_path
):
    config, cohort, splits = study
    calls, logits, choose = [], adapt.logits, adapt.choose

    def interrupted(*arguments):
        # Each of the 2 epochs validates once, then validation and test records are scored: call 6 is the second
        # training's second epoch. The first two trainings are those of the attentive probe.
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return logits(*arguments)

    scratch = tmp_path / "scratch" / "finetune"
    monkeypatch.setattr(adapt, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config, cohort, splits[:2], n_jobs=1)
    assert len(list(scratch.glob("*.npz"))) == 1
    assert len(list(scratch.glob("*.checkpoint"))) == 1
    calls.clear()
    monkeypatch.setattr(adapt, "logits", logits)
    made = []
    monkeypatch.setattr(finetune, "choose", lambda *a, **named: made.append(a) or choose(*a, **named))
    again = finetune.run(config, cohort, splits[:2], n_jobs=1)
    assert len(made) == 13  # fourteen trainings, one of them finished before
    assert len(list(scratch.glob("*.npz"))) == 14  # until the stage has succeeded
    shutil.rmtree(scratch)
    pd.testing.assert_frame_equal(again.predicted, trained.predicted)
    pd.testing.assert_frame_equal(again.history, trained.history)
    monkeypatch.setattr(finetune, "choose", choose)
    workers = finetune.run(config, cohort, splits[:2], n_jobs=2)
    pd.testing.assert_frame_equal(workers.predicted, trained.predicted)


def test_weights_or_encoders_that_do_not_exist_are_errors(study):
    config, _, splits = study
    with pytest.raises(CureError, match="extracts no small with weights 'ssl-simulated': list them in profiles/demo"):
        finetune.jobs(config.model_copy(update={"weights": "ssl-simulated"}), splits)
    with pytest.raises(CureError, match="unknown encoder 'resnet'"):
        finetune.jobs(config.model_copy(update={"floors": ["resnet"]}), splits)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strategies": ["linear"]}, "'full' is missing"),
        ({"strategies": ["full", "last-0"]}, "strategies.1: String should match pattern"),
        (
            {"training": {"tuned": {"rates": [1e-3]}}},
            "'attentive' is missing, which strategy 'attentive' needs",
        ),
        (
            {"training": SETTINGS["training"] | {"vit": {"rates": [1]}}},
            "unknown kind 'vit'; choose from",
        ),
        ({"training": {"tuned": {"rates": []}}}, "training.tuned.rates"),
        ({"strategies": ["full"], "training": {"tuned": {"rates": [1e-3]}}}, "'floor' and 'scratch' are missing"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changed, said):
    with pytest.raises(CureError, match=said):
        check(FinetuneConfig, profile="demo", **SETTINGS | changed)


# --- tables ------------------------------------------------------------------------------------------------


def _predicted(seeds, n=300):
    """Scores of two strategies with different numbers of seeds; a task each with and without support."""
    rng = np.random.default_rng(0)
    y = {"NORM": rng.random(n) < 0.4, "MI": rng.random(n) < 0.3, "CLBBB": np.arange(n) < 4}
    frames = []
    for (strategy, weights, pooling, head), chosen in seeds.items():
        for seed in chosen:
            for task, truth in y.items():
                score = 1 / (1 + np.exp(-(truth * rng.uniform(0.5, 2) + rng.normal(size=n))))
                key = {"cohort": "c", "protocol": "sound", "encoder": "small", "weights": weights}
                key |= {"pooling": pooling, "head": head, "strategy": strategy, "leads": "12", "fraction": 1.0}
                columns = {"task": task, "split": "s", "record_id": np.arange(n), "y": truth.astype(np.int8)}
                columns |= {"score": score, "threshold": 0.5, "setting": "x"}
                frames.append(pd.DataFrame({**key, "seed": seed, "contaminated": "no", **columns}))
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[frame["pooling"] == "mean+max", "encoder"] = "floor"
    return frame.astype({"task": "category", "strategy": "category"})


FOUR = {
    ("linear", "ssl-folds", "mean", "logistic"): [0],
    ("linear", "random", "mean", "logistic"): [0, 1, 2],
    ("full", "ssl-folds", "mean", "linear"): [0, 1],
    ("scratch", "random", "mean", "linear"): [0, 1],
    ("scratch", "random", "mean+max", "linear"): [0, 1],
}


@pytest.fixture
def people():
    class People:
        records = pd.DataFrame({"record_id": np.arange(300), "patient_id": np.arange(300) // 2})

    return People


def test_scores_are_averaged_over_the_seeds_that_a_strategy_has(study, people):
    table = finetune_tables.score_table(study[0], people, _predicted(FOUR))
    auroc = table[table["metric"] == "auroc"].astype({"seed": str})
    for (strategy, weights, pooling, _), seeds in FOUR.items():
        mine = auroc[auroc[["strategy", "weights", "pooling"]].eq([strategy, weights, pooling]).all(axis=1)]
        wide = mine.pivot(index="task", columns="seed", values="value")
        assert list(wide) == [*map(str, seeds), "mean"]
        np.testing.assert_allclose(wide["mean"], wide[list(map(str, seeds))].mean(axis=1), rtol=1e-9)
    averaged = auroc[auroc["seed"] == "mean"].set_index("task")
    assert (averaged.loc["NORM", "n"] == 300).all()
    assert (averaged.loc["macro", "n_tasks"] == 2).all()
    assert not averaged.loc["CLBBB", "supported"].any()
    assert averaged.loc["CLBBB", ["lo", "hi"]].isna().all(axis=None)


def test_fine_tuning_is_compared_with_every_alternative_in_pairs(study, people):
    predicted = _predicted(FOUR)
    config = study[0].model_copy(update={"strategies": ["linear", "full", "scratch"]})
    table = finetune_tables.against_full(config, people, predicted)
    with pytest.raises(CureError, match="has strategy 'full' only"):
        finetune_tables.against_full(
            config.model_copy(update={"strategies": ["full"], "floors": []}), people, predicted
        )
    scores = finetune_tables.main_rows(finetune_tables.score_table(study[0], people, predicted))
    values = scores.set_index(["strategy", "encoder", "weights", "task"])["value"]
    others = {
        "linear probe": ("linear", "small", "ssl-folds"),
        "small from scratch": ("scratch", "small", "random"),
        "floor from scratch": ("scratch", "floor", "random"),
    }
    assert set(table["comparator"]) == set(others)
    for row in table[table["task"].isin(["NORM", "MI", "macro"])].itertuples():
        expected = values["full", "small", "ssl-folds", row.task] - values[(*others[row.comparator], row.task)]
        assert row.value == pytest.approx(expected, abs=1e-9)
        assert row.p_holm >= row.p
    assert table.loc[table["task"] == "CLBBB", "p"].isna().all()
    view = finetune_tables.difference_view(table)
    assert list(view) == list(others)
    assert (view.loc["CLBBB"] == "too few positives").all()


def test_labels_say_where_training_started():
    table = finetune_tables.with_label(_predicted(FOUR))
    assert list(table["label"].unique()) == [
        "linear probe: small, ssl-folds",
        "linear probe: small, random",
        "fine-tuned: small, ssl-folds",
        "from scratch: small",
        "from scratch: floor",
    ]


# --- cost --------------------------------------------------------------------------------------------------


def _hold(megabytes: int) -> float:
    kept = np.ones(megabytes * 125_000)
    for _ in range(20):
        kept += 1  # long enough to be seen
    return float(kept[0])


def test_peak_memory_is_that_of_the_work_in_a_process_of_its_own():
    peak, result = finetune_tables._in_fresh_process(partial(_hold, 200))
    assert 195 < peak < 260
    assert result == 21


def test_costs_are_measured_for_every_strategy_and_joined_with_sizes(study, trained, monkeypatch, tmp_path):
    config, cohort, splits = study
    monkeypatch.setattr(finetune_tables, "_in_fresh_process", lambda work: (7.0, work()))
    monkeypatch.setattr(finetune_tables, "_probe_once", lambda *_: (3.0, 4.0))
    monkeypatch.setattr(paths, "stage", lambda profile, stage: tmp_path / "stages" / stage)
    with pytest.raises(CureError, match="no table 'finetune_sizes' of stage finetune"):
        finetune_tables.cost_table("demo")
    tables.save(trained.sizes, tmp_path / "stages" / "finetune", "finetune_sizes")
    with pytest.raises(CureError, match="no measured costs of profile demo"):
        finetune_tables.cost_table("demo")
    monkeypatch.setenv(paths.STAGE, "finetune")
    timed = replace(trained, seconds=trained.seconds.assign(seconds=np.arange(1.0, 15.0)))
    finetune_tables.measure(config, cohort, splits[:2], timed)
    table = finetune_tables.cost_table("demo").set_index("label")
    assert set(table.index) == set(finetune_tables.with_label(trained.sizes)["label"]) - {"linear probe: small, random"}
    assert (table["seconds"] > 0).all()
    assert (table["peak_mb"] == 7).all()
    assert table.loc["linear probe: small, ssl-folds", "seconds"] == 7
    assert table.loc["attentive probe: small, ssl-folds", "seconds"] == 1.5 + 3  # and a pass over the records
    assert table.loc["fine-tuned: small, ssl-folds", "seconds"] == 5.5
    assert table.loc["from scratch: floor", "seconds"] == 13.5
    assert table.loc["fine-tuned: small, ssl-folds", "n"] == 2


def test_outside_the_pipeline_no_committed_cost_is_overwritten(study, monkeypatch):
    config = study[0]
    monkeypatch.delenv(paths.STAGE, raising=False)
    assert config.measured("finetune_cost").parent == config.output
    assert config.output != paths.resources("demo")
    monkeypatch.setenv(paths.STAGE, "finetune")
    assert config.measured("finetune_cost") == paths.resources("demo") / "finetune_cost.csv"


def test_learning_curves_have_a_line_for_every_training_and_metric(trained):
    figure = loss_curves(finetune_tables.with_label(trained.history), "label", ["split", "seed"], "loss")
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes if axes.get_visible()] == [
        "attentive probe: small, ssl-folds",
        "last stage tuned: small, ssl-folds",
        "fine-tuned: small, ssl-folds",
        "fine-tuned, decay: small, ssl-folds",
        "from scratch: small",
        "as released: small",
        "from scratch: floor",
    ]
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert all(len([line for line in axes.lines if line.get_marker() == "None"]) == 2 * 2 for axes in shown)

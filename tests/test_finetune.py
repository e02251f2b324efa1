import shutil
from dataclasses import replace
from functools import partial
from itertools import combinations

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cure import embed, finetune, finetune_tables, heads, models, paths, tables
from cure.embed import Representation
from cure.errors import CureError
from cure.finetune import Classifier, crops, fit, logits
from cure.models import Encoder, InputSpec, registry
from cure.models.base import seeded
from cure.plots.training import loss_curves
from cure.settings.finetune import FinetuneConfig
from cure.splits import Split, make_splits
from cure.training import Recipe

SETTINGS = {
    "encoder": "small",
    "weights": "ssl-folds",
    "floor": "floor",
    "seeds": [0],
    "epochs": 2,
    "patience": 2,
    "batch_size": 32,
    "rate": 1e-3,
    "scratch_rate": 2e-3,
    "weight_decay": 0.02,
    "n_draws": 100,
}
PRETRAINED = Representation("small", "ssl-folds", 0)
RANDOM = [Representation("small", "random", seed) for seed in (0, 1)]


class Small(Encoder):
    """An encoder that trains in no time."""

    input_spec = InputSpec(fs=100, seconds=10)
    dim = 16

    def __init__(self):
        super().__init__()
        self.filters = nn.Conv1d(12, self.dim, 9, stride=5)
        self.norm = nn.BatchNorm1d(self.dim)

    def forward(self, x):
        return self.norm(self.filters(x).abs()).transpose(1, 2)


def small() -> Small:
    with seeded(0):
        return Small().eval()


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
    return FinetuneConfig(profile="demo", **SETTINGS), cohort, splits


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


class Mean(nn.Module):
    """The mean of each lead as logits: linear in time, so that windows can be checked by hand."""

    def forward(self, x):
        return x.mean(dim=-1)


# --- the supervised floor ----------------------------------------------------------------------------------


def test_the_floor_has_the_published_shape():
    encoder = models.load("resnet1d_wang")
    width, stem = 128, 12 * 128 * 7 + 2 * 128
    block = width * width * (5 + 3) + 4 * width
    shortcut = width * width + 2 * width
    assert encoder.n_parameters() == stem + 3 * block + 2 * shortcut
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 12, 1000)).shape == (2, 250, 128)
        assert encoder(torch.zeros(2, 12, 500)).shape == (2, 125, 128)
        assert encoder.stem(torch.zeros(1, 12, 500)).shape[-1] == 500
    kernels = [layer.kernel_size[0] for layer in encoder.modules() if isinstance(layer, nn.Conv1d)]
    assert kernels == [7, 5, 3, 5, 3, 1, 5, 3, 1]
    assert not any(isinstance(layer, nn.MaxPool1d) for layer in encoder.modules())
    for one, two in combinations([block.residual[0].weight for block in encoder.blocks], 2):
        assert not torch.equal(one, two)


# --- crops and windows -------------------------------------------------------------------------------------


@given(n=st.integers(1, 20), length=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_crops_are_contiguous_windows_of_their_own_record_alike_in_all_leads(n, length, seed):
    rng = np.random.default_rng(seed)
    x = np.arange(8 * 3 * 30, dtype=np.float32).reshape(8, 3, 30)
    rows = rng.integers(0, 8, n)
    found = crops(x, rows, length, rng)
    assert found.shape == (n, 3, length)
    starts = (found[:, 0, 0] - 90 * rows).astype(int)
    assert ((starts >= 0) & (starts <= 30 - length)).all()
    for window, row, start in zip(found, rows, starts, strict=True):
        np.testing.assert_array_equal(window, x[row, :, start : start + length])


def test_crops_reach_every_start_of_a_record():
    x = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    found = crops(x, np.zeros(400, int), 7, np.random.default_rng(0))
    assert set(found[:, 0, 0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("batch_size", (1, 4, 64))
def test_a_score_is_the_mean_over_the_first_and_the_last_window(batch_size):
    x = np.random.default_rng(0).normal(size=(9, 4, 100)).astype(np.float32)
    rows = np.array([8, 2, 2, 5, 0])
    halves = logits(Mean(), x, rows, 50, batch_size)
    np.testing.assert_allclose(halves, x[rows].mean(axis=-1), atol=1e-6)
    ends = logits(Mean(), x, rows, 30, batch_size)
    by_hand = (x[rows, :, :30].mean(axis=-1) + x[rows, :, 70:].mean(axis=-1)) / 2
    np.testing.assert_allclose(ends, by_hand, atol=1e-6)


# --- one training ------------------------------------------------------------------------------------------


def _problem(n=64, n_tasks=3):
    """Noise whose amplitude in one lead tells each label: easy to learn, and easy to contradict."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 12, 1000)).astype(np.float32)
    y = rng.random((n, n_tasks)) < 0.5
    x[:, :n_tasks] *= np.where(y, 3, 0.3)[:, :, None]
    return x, y


def test_a_head_starts_at_zero_and_reads_poolings_side_by_side():
    encoder = small()
    model = Classifier(encoder, "mean+max", 11)
    x = torch.randn(4, 12, 500)
    assert model.head.in_features == 32
    assert not model(x).any()
    with torch.no_grad():
        model.head.weight[0, 0], model.head.weight[1, 16] = 1, 1
        tokens = encoder(x)
        np.testing.assert_allclose(model(x)[:, 0], tokens.mean(dim=1)[:, 0], rtol=1e-5)
        np.testing.assert_allclose(model(x)[:, 1], tokens.amax(dim=1)[:, 0], rtol=1e-5)
    with pytest.raises(CureError, match="unknown pooling 'median'"):
        Classifier(encoder, "median", 11)(x)


def test_logits_are_float32_under_autocast():
    model = Classifier(small(), "mean", 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 12, 500)).dtype == torch.float32


def test_training_learns_what_can_be_learned_and_scores_are_probabilities(tmp_path):
    x, y = _problem()
    rows = np.arange(64)
    split = Split("s", rows[:32], rows[32:48], rows[48:])
    model = Classifier(small(), "mean", 3)
    result = fit(model, x, y, split, Recipe(30, 16, 3e-2), tmp_path / "state")
    assert result["loss"][-1] < 0.5 * result["loss"][0]
    assert result["score"].shape == (16, 3)
    assert ((result["score"] > 0) & (result["score"] < 1)).all()
    planted = y[split.test, 0]
    assert result["score"][planted, 0].min() > result["score"][~planted, 0].max()
    by_hand = torch.from_numpy(logits(model, x, split.test, 500, 16)).sigmoid()
    np.testing.assert_allclose(result["score"], by_hand, rtol=1e-5)


def test_stopping_keeps_the_epoch_with_the_lowest_validation_loss(tmp_path):
    # Validation contradicts training: each epoch makes it worse.
    x, y = _problem()
    split = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))
    y[split.val] = ~y[split.val]
    model = Classifier(small(), "mean", 3)
    result = fit(model, x, y, split, Recipe(30, 16, 3e-2, patience=2), tmp_path / "state")
    best = result["validation"].argmin()
    assert len(result["epoch"]) == best + 1 + 2 < 30
    assert set(result["setting"]) == {f"epoch={best + 1}"}
    kept = torch.from_numpy(logits(model, x, split.val, 500, 16))
    loss = nn.functional.binary_cross_entropy_with_logits(kept, torch.from_numpy(y[split.val].astype(np.float32)))
    assert float(loss) == pytest.approx(result["validation"].min(), rel=1e-6)


def test_test_records_have_no_influence_on_training_and_thresholds(tmp_path):
    x, y = _problem()
    split = Split("s", np.arange(32), np.arange(32, 48), np.arange(48, 64))
    recipe = Recipe(2, 16, 1e-3)
    before = fit(Classifier(small(), "mean", 3), x, y, split, recipe, tmp_path / "one")
    x[split.test], y[split.test] = 0, ~y[split.test]
    after = fit(Classifier(small(), "mean", 3), x, y, split, recipe, tmp_path / "two")
    for name in ("threshold", "loss", "validation"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.array_equal(before["score"], after["score"])


def test_too_few_records_for_a_batch_are_an_error(tmp_path):
    x, y = _problem(n=20)
    split = Split("s", np.arange(10), np.arange(10, 15), np.arange(15, 20))
    with pytest.raises(CureError, match="10 training records are fewer than a batch of 16"):
        fit(Classifier(small(), "mean", 3), x, y, split, Recipe(1, 16, 1e-3), tmp_path / "state")


# --- all trainings -----------------------------------------------------------------------------------------


def test_fine_tuning_starts_from_the_weights_of_its_split_and_leaves_the_encoder_it_was_given(study, tmp_path):
    config, cohort, splits = study
    jobs = finetune.jobs(config, splits)
    assert len(jobs) == 3 * 5
    x, y = cohort.signals(np.arange(len(cohort)), 100), cohort.binary().y
    some = torch.from_numpy(x[:4])
    for job in jobs[:5]:
        assert (job.strategy.name, job.recipe.rate) == ("full", config.rate)
        own = models.load("small", seed=_number(job.split))
        start = job.classifier(y.shape[1]).eval()
        assert torch.equal(start.encoder.embed(some), own.embed(some))
    job, model = jobs[0], jobs[0].classifier(y.shape[1])
    before = job.starts.weights_sha256()
    fit(model, x, y, job.split, replace(job.recipe, epochs=1), tmp_path / "state")
    assert job.starts.weights_sha256() == before != model.encoder.weights_sha256()
    for job in jobs[5:]:
        assert (job.strategy.name, job.recipe.rate) == ("scratch", config.scratch_rate)
        assert job.starts.weights_sha256() == models.load(job.strategy.encoder, seed=0).weights_sha256()


def test_every_strategy_scores_every_test_record_of_its_splits_once(trained, cohort):
    splits = make_splits(cohort.records, "rotate")[:2]
    tested = cohort.records["record_id"].to_numpy()[np.concatenate([split.test for split in splits])]
    truth = pd.DataFrame(cohort.binary().y, cohort.records["record_id"], cohort.binary().names)
    method = ["strategy", "encoder", "weights", "pooling", "head", "seed"]
    found = trained.predicted.groupby(method, observed=True)
    assert sorted(key[:5] for key in found.groups) == sorted(
        [
            ("full", "small", "ssl-folds", "mean", "linear"),
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
    assert full["records_seen"] == full["epochs"] * (len(split.train) // 32 * 32)
    assert sizes["scratch", "floor", "random", split.name, 0, "trainable"] == encoder + n_tasks * 33
    assert 1 <= full["epoch_kept"] <= full["epochs"] <= 2


def test_history_holds_both_losses_of_every_epoch(trained):
    runs = trained.history.groupby(["strategy", "encoder", "split", "metric"])
    assert len(runs) == 3 * 2 * 2
    assert all(list(run["epoch"]) == list(range(1, len(run) + 1)) for _, run in runs)
    kept = trained.sizes[trained.sizes["metric"] == "epoch_kept"].set_index(["strategy", "encoder", "split"])["value"]
    for (*names, metric), run in runs:
        if metric == "validation":
            assert run.loc[run["value"].idxmin(), "epoch"] == kept[tuple(names)]


def test_an_interrupted_run_goes_on_and_ends_the_same_whatever_the_number_of_workers(
    study, trained, monkeypatch, tmp_path
):
    config, cohort, splits = study
    calls = []

    def interrupted(*arguments):
        # Each of the 2 epochs validates once, then validation and test records are scored: call 6 is the second
        # training's second epoch.
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return logits(*arguments)

    scratch = tmp_path / "scratch" / "finetune"
    monkeypatch.setattr(finetune, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config, cohort, splits[:2], n_jobs=1)
    assert len(list(scratch.glob("*.npz"))) == 1
    assert len(list(scratch.glob("*.checkpoint"))) == 1
    calls.clear()
    monkeypatch.setattr(finetune, "logits", logits)
    made = []
    monkeypatch.setattr(finetune, "fit", lambda *arguments: made.append(arguments) or fit(*arguments))
    again = finetune.run(config, cohort, splits[:2], n_jobs=1)
    assert len(made) == 5  # six trainings, one of them finished before
    assert len(list(scratch.glob("*.npz"))) == 6  # until the stage has succeeded
    shutil.rmtree(scratch)
    pd.testing.assert_frame_equal(again.predicted, trained.predicted)
    pd.testing.assert_frame_equal(again.history, trained.history)
    monkeypatch.setattr(finetune, "fit", fit)
    workers = finetune.run(config, cohort, splits[:2], n_jobs=2)
    pd.testing.assert_frame_equal(workers.predicted, trained.predicted)


def test_weights_or_encoders_that_do_not_exist_are_errors(study):
    config, _, splits = study
    with pytest.raises(CureError, match="extracts no small with weights 'ssl-simulated': list them in profiles/demo"):
        finetune.jobs(config.model_copy(update={"weights": "ssl-simulated"}), splits)
    with pytest.raises(CureError, match="unknown encoder 'resnet'"):
        finetune.jobs(config.model_copy(update={"floor": "resnet"}), splits)


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
    table = finetune_tables.against_full(study[0], people, predicted)
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
    monkeypatch.setattr(paths, "stage", lambda profile, stage: tmp_path / "stages" / stage)
    with pytest.raises(CureError, match="no table 'finetune_sizes' of stage finetune"):
        finetune_tables.cost_table("demo")
    tables.save(trained.sizes, tmp_path / "stages" / "finetune", "finetune_sizes")
    with pytest.raises(CureError, match="no measured costs of profile demo"):
        finetune_tables.cost_table("demo")
    monkeypatch.setenv(paths.STAGE, "finetune")
    timed = replace(trained, seconds=trained.seconds.assign(seconds=np.arange(1.0, 7.0)))
    finetune_tables.measure(config, cohort, splits[:2], timed)
    table = finetune_tables.cost_table("demo").set_index("label")
    assert set(table.index) == set(finetune_tables.with_label(trained.sizes)["label"]) - {"linear probe: small, random"}
    assert (table["seconds"] > 0).all()
    assert (table["peak_mb"] == 7).all()
    assert table.loc["fine-tuned: small, ssl-folds", "seconds"] == 1.5
    assert table.loc["from scratch: floor", "seconds"] == 5.5
    assert table.loc["fine-tuned: small, ssl-folds", "n"] == 2


def test_outside_the_pipeline_no_committed_cost_is_overwritten(study, monkeypatch):
    config = study[0]
    monkeypatch.delenv(paths.STAGE, raising=False)
    assert finetune_tables.cost_file(config).parent == config.output
    assert config.output != paths.resources("demo")
    monkeypatch.setenv(paths.STAGE, "finetune")
    assert finetune_tables.cost_file(config) == paths.resources("demo") / "finetune_cost.csv"


def test_learning_curves_have_a_line_for_every_training_and_metric(trained):
    figure = loss_curves(finetune_tables.with_label(trained.history), "label", ["split", "seed"], "loss")
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == [
        "fine-tuned: small, ssl-folds",
        "from scratch: small",
        "from scratch: floor",
    ]
    assert all(len([line for line in axes.lines if line.get_marker() == "None"]) == 2 * 2 for axes in figure.axes)

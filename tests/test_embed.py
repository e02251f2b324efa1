import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY

from cure import embed, models
from cure.cohorts import acquire, external, pack
from cure.cohorts.base import Cohort
from cure.config import check
from cure.embed import Representation
from cure.errors import CureError
from cure.models import InputSpec, registry
from cure.models.base import one_thread
from cure.models.steps import Resample
from cure.settings.download import DownloadConfig
from cure.settings.embed import EmbedConfig
from cure.settings.prepare import PrepareConfig
from cure.splits import make_splits


def test_poolings_are_what_they_are_called():
    tokens = torch.tensor([[[1.0, -2.0], [3.0, 5.0], [2.0, 0.0]]])
    pooled = {name: embed.pool(tokens, name).tolist()[0] for name in ("mean", "max", "min", "last")}
    assert pooled == {"mean": [2.0, 1.0], "max": [3.0, 5.0], "min": [1.0, -2.0], "last": [2.0, 0.0]}
    with pytest.raises(CureError, match="unknown pooling 'median'"):
        embed.pool(tokens, "median")


def test_rows_are_the_cohorts_records_and_do_not_depend_on_batches_or_shards(cohort, tmp_path):
    encoder = models.load("vit1d")
    for i, (batch, shard) in enumerate(((64, 512), (7, 50))):
        out = tmp_path / str(i)
        embed.extract(cohort, encoder, ["mean", "last"], out, tmp_path / "s", batch_size=batch, shard_size=shard)
    first, second = (embed.read(tmp_path / name, "last", cohort) for name in "01")
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    x = torch.from_numpy(encoder.input_spec.read(cohort, np.array([17])))
    with torch.inference_mode():
        np.testing.assert_allclose(first[17], encoder(x)[0, -1], rtol=1e-4, atol=1e-4)
    manifest = pd.read_parquet(tmp_path / "0" / "manifest.parquet")
    assert manifest["weights_sha256"].unique() == [encoder.weights_sha256()]
    assert manifest["record_id"].equals(cohort.records["record_id"])
    assert not (tmp_path / "s").exists()


def test_an_interrupted_extraction_resumes_and_gives_the_same_bytes(cohort, tmp_path):
    encoder = models.load("resnet1d")
    settings = {"batch_size": 32, "shard_size": 40}
    embed.extract(cohort, encoder, ["mean"], tmp_path / "whole", tmp_path / "s1", **settings)

    calls = []

    class Stops(models.Encoder):
        input_spec, dim = encoder.input_spec, encoder.dim

        def __init__(self, limit):
            super().__init__()
            self.inner, self.limit = encoder, limit

        def forward(self, x):
            calls.append(len(x))
            if sum(calls) > self.limit:
                raise KeyboardInterrupt
            return self.inner(x)

    with pytest.raises(KeyboardInterrupt):
        embed.extract(cohort, Stops(90), ["mean"], tmp_path / "out", tmp_path / "s2", **settings)
    assert not (tmp_path / "out").exists()
    calls.clear()
    embed.extract(cohort, Stops(10**6), ["mean"], tmp_path / "out", tmp_path / "s2", **settings)
    assert sum(calls) == 160 - 80  # two shards of 40 were done
    assert (tmp_path / "out/mean.npy").read_bytes() == (tmp_path / "whole/mean.npy").read_bytes()


def test_an_embedding_that_is_not_finite_names_the_record(cohort, tmp_path):
    encoder = models.load("vit1d")
    with torch.no_grad():
        encoder.patches.bias[0] = float("nan")
    with pytest.raises(CureError, match="mean embedding of record 1 is not finite"):
        embed.extract(cohort, encoder, ["mean"], tmp_path / "out", tmp_path / "s")


def test_reading_what_is_missing_or_belongs_to_others_is_an_error(cohort, tmp_path):
    embed.extract(cohort, models.load("vit1d"), ["mean"], tmp_path / "vit", tmp_path / "s")
    with pytest.raises(CureError, match=r"no max embedding in vit: list the pooling in the profile"):
        embed.read(tmp_path / "vit", "max", cohort)
    manifest = pd.read_parquet(tmp_path / "vit" / "manifest.parquet")
    manifest.iloc[::-1].reset_index(drop=True).to_parquet(tmp_path / "vit" / "manifest.parquet")
    with pytest.raises(CureError, match="holds other records"):
        embed.read(tmp_path / "vit", "mean", cohort)


def test_features_are_a_representation_with_names(cohort, tmp_path):
    made = embed.extract_features(cohort, tmp_path / embed.FEATURES, tmp_path / "s", shard_size=64)
    again = embed.read_features(tmp_path, cohort)
    pd.testing.assert_frame_equal(made.astype(np.float32), again)
    slow, fast = (again["heart_rate_bpm"][cohort.listed[task]].median() for task in ("SBRAD", "STACH"))
    assert slow < 60 < 100 < fast


class _Stub(models.Encoder):
    """Tokens are the samples of three windows of 4 s; the read-out doubles their mean; reduced precision is counted."""

    input_spec = InputSpec(fs=100, seconds=4, record=(Resample(100),))
    dim = 12

    def __init__(self):
        super().__init__()
        self.reduced = []

    def forward(self, x):
        self.reduced.append(torch.is_autocast_enabled("cpu"))
        return x.transpose(1, 2)

    def readout(self, tokens):
        return 2 * tokens.mean(dim=1)


def test_a_record_is_the_mean_over_its_windows_each_pooled_by_itself(cohort, tmp_path):
    embed.extract(cohort, _Stub(), ["max", "own"], tmp_path / "out", tmp_path / "s", batch_size=7)
    x = cohort.signals(np.arange(len(cohort)), 100)
    cuts = np.stack([x[..., start : start + 400] for start in (0, 300, 600)], axis=1)
    np.testing.assert_allclose(embed.read(tmp_path / "out", "max", cohort), cuts.max(axis=3).mean(axis=1), atol=1e-6)
    own = 2 * cuts.mean(axis=3).mean(axis=1)
    np.testing.assert_allclose(embed.read(tmp_path / "out", "own", cohort), own, atol=1e-6)


def shorter(cohort, n_valid):
    """The cohort with some of its records cut, and the lengths at 100 Hz that all have then."""
    lengths = cohort.records["n_valid"].to_numpy().copy()
    lengths[list(n_valid)] = list(n_valid.values())
    return Cohort(cohort.folder, cohort.records.assign(n_valid=lengths), cohort.statements, cohort.info), lengths


def extracted(cohort, encoder, poolings, out, **settings):
    embed.extract(cohort, encoder, poolings, out, out.with_name("s"), **settings)
    return {name: embed.read(out, name, cohort) for name in poolings}


POOLINGS = ["mean", "max", "min", "last"]


def test_zeros_behind_a_record_are_not_pooled(cohort, tmp_path):
    """Tokens of the stub are samples: those of a padded window are those of its record."""
    cut, lengths = shorter(cohort, {3: 150, 4: 333, 70: 333, 71: 400})
    found = extracted(cut, _Stub(), [*POOLINGS, "own"], tmp_path / "cut", batch_size=7)
    for row in (3, 4, 70, 71):
        x = torch.from_numpy(cohort.signals(np.array([row]), 100)[..., : lengths[row]]).transpose(1, 2)
        for name in POOLINGS:
            np.testing.assert_allclose(found[name][row], embed.pool(x, name)[0], atol=1e-6)
        np.testing.assert_allclose(found["own"][row], 2 * x.sum(dim=1)[0] / 400, atol=1e-6)
    whole = extracted(cohort, _Stub(), POOLINGS, tmp_path / "whole", batch_size=7)
    others = lengths == 1000
    for name in POOLINGS:
        np.testing.assert_array_equal(found[name][others], whole[name][others])


@pytest.mark.parametrize("n", [500, 730])
def test_leadcnn_pools_a_padded_record_as_its_unpadded_input(cohort, tmp_path, n):
    encoder, rows = models.load("leadcnn"), np.arange(20)
    cut, _ = shorter(cohort, dict.fromkeys(rows, n))
    found = extracted(cut, encoder, POOLINGS, tmp_path / "cut")
    x = torch.from_numpy(encoder.input_spec.read(cut, rows))
    with torch.inference_mode():
        alone, padded = encoder(x[..., :n]), encoder(x)
    for name, most in (("mean", 0.15), ("max", 0.3), ("min", 0.4), ("last", 0.7)):
        wanted, all_tokens = embed.pool(alone, name), embed.pool(padded, name)
        made = torch.from_numpy(found[name][:20])
        error, before = ((some - wanted).norm() / wanted.norm() for some in (made, all_tokens))
        assert error < most, "only the tokens at the end see zeros beside the record"
        assert error < 0.9 * before


def test_records_that_fill_their_windows_are_pooled_as_if_none_were_padded(cohort, tmp_path):
    """To the byte: a batch with padded records changes nothing for the others."""
    encoder, rows = models.load("leadcnn"), np.arange(64)
    cut, _ = shorter(cohort, {3: 730, 4: 500})
    found = extracted(cut, encoder, POOLINGS, tmp_path / "cut")
    with torch.inference_mode(), one_thread():
        tokens = encoder(torch.from_numpy(encoder.input_spec.read(cut, rows)))
    for name in POOLINGS:
        plain = embed.pool(tokens, name).numpy()
        differ = (found[name][:64] != plain).any(axis=1)
        assert set(np.flatnonzero(differ)) <= {3, 4}
        assert differ[3] or name == "max"


def test_tokens_that_do_not_lie_in_time_are_all_pooled(cohort, tmp_path):
    class Untimed(_Stub):
        timed = False

    cut, _ = shorter(cohort, {3: 150})
    found = extracted(cut, Untimed(), POOLINGS, tmp_path / "cut")
    x = torch.from_numpy(_Stub.input_spec.windows(cut, np.array([3])))[:, 0].transpose(1, 2)
    for name in POOLINGS:
        np.testing.assert_allclose(found[name][3], embed.pool(x, name)[0], atol=1e-6)
    with torch.device("meta"):
        untimed = {name for name, build in (registry.OWN | registry.PUBLISHED).items() if not build().timed}
    assert untimed == {"ecg-jepa", "st-mem", "hubert-ecg-small", "hubert-ecg-base", "hubert-ecg-large"}


def test_a_window_that_is_repeated_is_encoded_once(cohort, tmp_path):
    """One record of 10 s gives the others, of one window or less, three."""
    cut, _ = shorter(cohort, dict.fromkeys(range(1, 160), 400) | {5: 200})
    seen = []

    class Counts(_Stub):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    found = extracted(cut, Counts(), ["mean"], tmp_path / "out", batch_size=64, threads=1)["mean"]
    assert sum(seen) == 3 + 159
    x = cohort.signals(np.arange(160), 100)
    np.testing.assert_allclose(found[1], x[1, :, :400].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found[5], x[5, :, :200].mean(axis=1), atol=1e-6)
    cuts = np.stack([x[0, :, start : start + 400] for start in (0, 300, 600)])
    np.testing.assert_allclose(found[0], cuts.mean(axis=(0, 2)), atol=1e-6)


def test_threads_change_no_byte_and_torch_has_its_own_back(cohort, tmp_path):
    torch.set_num_threads(2)
    for threads in (1, 3):
        out = tmp_path / str(threads)
        embed.extract(cohort, models.load("vit1d"), ["mean"], out, tmp_path / "s", batch_size=16, threads=threads)
    assert (tmp_path / "1/mean.npy").read_bytes() == (tmp_path / "3/mean.npy").read_bytes()
    assert torch.get_num_threads() == 2


def test_bfloat16_is_used_where_asked_for_and_pooling_stays_in_float32(cohort, tmp_path):
    for dtype in ("float32", "bfloat16"):
        encoder = _Stub()
        embed.extract(cohort, encoder, ["mean"], tmp_path / dtype, tmp_path / "s", dtype=dtype)
        assert set(encoder.reduced) == {dtype == "bfloat16"}
        embed.extract(cohort, models.load("resnet1d"), ["mean"], tmp_path / f"r-{dtype}", tmp_path / "s", dtype=dtype)
    exact, reduced = (np.load(tmp_path / f"r-{dtype}" / "mean.npy") for dtype in ("float32", "bfloat16"))
    error = np.linalg.norm(reduced - exact) / np.linalg.norm(exact)
    assert 1e-6 < error < 0.02
    assert (torch.from_numpy(reduced).bfloat16().float().numpy() != reduced).any(), "means are not rounded to bfloat16"


def test_upsampled_records_are_counted(cohort):
    every = np.arange(len(cohort))
    assert not models.load("ked").input_spec.upsampled(cohort, every).any()
    assert models.load("clef-small").input_spec.upsampled(cohort, every).sum() == 160 - 20


def test_what_published_weights_have_seen_comes_from_the_catalogue(project):
    profile = {**TINY, "cohort": {**TINY["cohort"], "source": "ptbxl"}}
    (project / "profiles" / "real.yaml").write_text(yaml.safe_dump(profile))
    chosen = {"encoders": ["leadcnn"], "published": ["ecg-fm"], "weights": "hub", "seeds": [0], "poolings": ["mean"]}
    config = check(EmbedConfig, profile="real", **chosen)
    seen = {(one.encoder, one.weights): embed.contaminated(one, config) for one in embed.representations(config)}
    assert seen[("ecg-fm", "hub")] == "signals"
    assert seen[("ecg-fm", "random")] == seen[("leadcnn", "random")] == "no"
    simulated = check(EmbedConfig, profile="tiny", **chosen)
    assert embed.contaminated(Representation("ecg-fm", "hub", 0), simulated) == "no"


@pytest.fixture
def study_and_second(project, cohort, monkeypatch):
    """Profile `two`: the study's store is that of `cohort`, the second one is simulated in CODE-15's layout."""
    second = {"name": "second", "title": "60 exams", "source": "synthetic-code15", "split": "rotate"}
    second |= {"download": {"n_records": 60, "seed": 5}, "prepare": {"max_excluded": 0.2}}
    transfer = {"encoders": ["leadcnn"], "statistics": ["leadcnn"], "seeds": [0]}
    profile = {**TINY, "external": second, "transfer": transfer}
    (project / "profiles" / "two.yaml").write_text(yaml.safe_dump(profile))
    shutil.copytree(cohort.folder, project / "data/cohorts/two/tiny")
    monkeypatch.setenv("CURE_STAGE", "download")
    external.also(acquire.acquire, check(DownloadConfig, profile="two", n_records=320))
    monkeypatch.setenv("CURE_STAGE", "prepare")
    external.also(pack.prepare, check(PrepareConfig, profile="two"))
    monkeypatch.setenv("CURE_STAGE", "embed")
    chosen = {"encoders": ["leadcnn"], "statistics": ["leadcnn"], "seeds": [0], "poolings": ["mean"]}
    config = check(EmbedConfig, profile="two", **chosen)
    return config, Cohort.open(config.cohort_folder), Cohort.open(config.external.cohort_folder)


def test_the_second_cohort_is_embedded_with_the_studys_weights(study_and_second, monkeypatch):
    config, cohort, second = study_and_second
    splits = make_splits(cohort.records, "rotate")
    loaded, hashed = [], []
    load, sha = models.load, models.Encoder.weights_sha256
    monkeypatch.setattr(models, "load", lambda *a, **k: loaded.append(a) or load(*a, **k))
    monkeypatch.setattr(models.Encoder, "weights_sha256", lambda self: hashed.append(self) or sha(self))
    made = embed.embed_external(config, cohort, splits)
    assert len(loaded) == len(hashed) == 1 + len(splits), "each encoder once: random, and one per split"
    assert list(made["weights"]) == ["statistics", "random", "none"]
    assert set(made["n"]) == {len(second)}
    short = int((second.records["n_valid"] < 4000).sum())
    assert list(made["n_padded"]) == [short, short, 0]
    assert short > 5
    one = Representation("leadcnn", "statistics", 0)
    for split in splits[:2]:
        encoder = embed.load_encoder(config, one, split, cohort)
        assert embed.read_sha256(config.external, one, split) == sha(encoder), "statistics are of the study's records"
        x = torch.from_numpy(encoder.input_spec.windows(second, np.array([4])))
        with torch.inference_mode():
            plain = encoder(x[0]).mean(dim=(0, 1))
        found = embed.read_split(config.external, one, "mean", second, split)[4]
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert made["sha256"].iloc[0] == embed.read_sha256(config.external, one, splits[0])[:12]
    assert not (config.embeddings_folder / one.folder).exists(), "the study's own is another call's"


def test_a_profile_with_one_cohort_embeds_nothing_else(project, cohort):
    (project / "profiles" / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "external": None}))
    config = check(EmbedConfig, profile="tiny", encoders=["leadcnn"], seeds=[0], poolings=["mean"])
    assert "has no second cohort" in embed.embed_external(config, cohort, []).data


def test_of_an_unknown_cohort_nothing_is_known(project):
    (project / "profiles" / "own.yaml").write_text(
        yaml.safe_dump({**TINY, "cohort": {**TINY["cohort"], "source": "wfdb"}})
    )
    config = check(EmbedConfig, profile="own", encoders=["leadcnn"], seeds=[0], poolings=["mean"])
    assert embed.contaminated(Representation("ecg-fm", "hub", 0), config) == "unknown"
    assert embed.contaminated(Representation("ecg-fm", "random", 0), config) == "no"

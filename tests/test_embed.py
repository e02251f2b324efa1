import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY

from cure import embed, models
from cure.config import check
from cure.embed import Representation
from cure.errors import CureError
from cure.models import InputSpec
from cure.models.steps import Resample
from cure.settings.embed import EmbedConfig


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
    assert embed.n_upsampled(models.load("ked").input_spec, cohort) == 0
    assert embed.n_upsampled(models.load("clef-small").input_spec, cohort) == 160 - 20


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

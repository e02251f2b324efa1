import numpy as np
import pandas as pd
import pytest
import torch

from cure import embed, models
from cure.errors import CureError


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

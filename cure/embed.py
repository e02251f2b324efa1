"""Frozen representations: embeddings of an encoder under each pooling, and hand-crafted features, one row per record.

A representation is a folder::

    manifest.parquet     record_id, and what the rows were made with (weights hash, input spec, the rate that was read)
    mean.npy, max.npy    float32 (n_records, dim), one file per pooling, rows aligned with the manifest
"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch import Tensor

from cure import models, paths
from cure.catalogue import contamination
from cure.cohorts.base import Cohort
from cure.cohorts.external import lowest_rates, none, stretches
from cure.config import RepresentationConfig, StageConfig, check, parameters
from cure.errors import CureError
from cure.features import ecg_features
from cure.models import Encoder, weights
from cure.models.base import one_thread, pool
from cure.normalisation import take_statistics
from cure.paths import atomic
from cure.settings.embed import EmbedConfig
from cure.settings.transfer import TransferConfig
from cure.shards import Arrays, compute_shards, fingerprint
from cure.splits import Split

FEATURES = "ecg-features"
#: Published weights.
HUB = "hub"
#: Random weights whose batch normalisations hold the means and variances of the training records: nothing was learned.
STATISTICS = "statistics"
#: What the catalogue's contamination matrix calls the cohort of each source; any other may be in any corpus.
_CORPORA = {"ptbxl": "ptb-xl", "code15": "code-15"}
#: The pooling that is the encoder's own read-out; it differs from the mean where a norm follows.
OWN = "own"


@dataclass(frozen=True)
class Representation:
    """What a row of a table was computed from. `seed` is that of initialisation or training; features have none."""

    encoder: str
    weights: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder below the cohort's embeddings, and below the weights if it was trained."""
        return self.encoder if self.encoder == FEATURES else f"{self.encoder}-{self.weights}-{self.seed}"

    @property
    def per_split(self) -> bool:
        """Whether each outer split has weights, and so embeddings, of its own."""
        return self.weights in ("ssl-folds", STATISTICS)


def contaminated(one: Representation, config: StageConfig) -> str:
    """Whether the weights have seen the cohort of a configuration: what the catalogue says of published ones.

    Of a cohort that the catalogue does not know: `unknown`. Weights made here have seen no record that they are tested
    on, random ones and simulated cohorts none at all.
    """
    source = config.cohort.source
    if one.weights != HUB or source in paths.GENERATED:
        return "no"
    corpus = _CORPORA.get(source)
    return "unknown" if corpus is None else contamination(one.encoder, corpus)[0]


def representations(config: StageConfig) -> list[Representation]:
    """What a profile extracts: pre-trained weights, all random initialisations, hand-crafted features.

    Random weights come a second time, with the statistics of each split's training records, where the profile says so.
    Published models appear with random weights, their floor, and if the profile says `weights: hub` with their own too.
    A stage that has its own choice (`RepresentationConfig`) uses that.
    """
    chosen = config if isinstance(config, RepresentationConfig) else study(config)
    made = parameters("pretrain", config.profile)
    trained = [Representation(made["encoder"], name, seed) for name in chosen.pretrained for seed in made["seeds"]]
    published = [Representation(name, HUB, 0) for name in chosen.published if chosen.weights == HUB]
    names = [*chosen.encoders, *chosen.published]
    random = [Representation(name, "random", seed) for name in names for seed in chosen.seeds]
    control = [Representation(name, STATISTICS, seed) for name in chosen.statistics for seed in chosen.seeds]
    return [*trained, *published, *control, *random, Representation(FEATURES, "none", 0)]


def study(config: StageConfig) -> EmbedConfig:
    """The profile's settings of stage `embed`."""
    return check(EmbedConfig, **parameters("embed", config.profile))


def load_encoder(
    config: StageConfig, one: Representation, split: Split | None = None, cohort: Cohort | None = None
) -> Encoder:
    """Build an encoder with the weights that may be used in an outer split.

    Parameters
    ----------
    cohort : Cohort, optional
        Only for weights `statistics`, which are taken from the split's training records; opened if it is not given.

    Raises
    ------
    CureError
        If the weights are not there, or differ per split and no split is given.
    """
    if one.weights in ("random", HUB):
        return models.load(one.encoder, one.weights, one.seed)
    if one.weights == STATISTICS and split is not None:
        encoder = models.load(one.encoder, seed=one.seed)
        cohort = cohort or Cohort.open(config.cohort_folder)
        records = encoder.input_spec.read(cohort, split.train)
        with one_thread():
            take_statistics(encoder, records, np.arange(len(records)))
        return encoder
    return models.load(one.encoder, config.weights_folder / one.folder / f"{_part(one, split)}.safetensors")


def _part(one: Representation, split: Split | None) -> str:
    if not one.per_split:
        return "all"
    if split is None:
        raise CureError(f"{one.folder} has weights for each outer split: say which split")
    return split.name.replace(" ", "-")


def embed_all(config: EmbedConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """Extract every representation of a profile.

    Returns
    -------
    DataFrame
        What was extracted: encoder, weights, seed, parameters, dim, poolings, the weights' hash (of the first outer
        split where each has its own), and how many records were upsampled, or padded, being shorter than a window.
    """
    return _embed(config, cohort, splits, config, cohort, representations(config))


def embed_external(config: EmbedConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame | Markdown:
    """Embed the profile's second cohort with what stage `transfer` reads: the weights that the study's own was given.

    No weights made here have seen a record of it: where each outer split has its own, each embeds all records.

    Returns
    -------
    DataFrame or Markdown
        As `embed_all`; a sentence where the profile has no second cohort.
    """
    external = config.external
    if external is None:
        return none(config)
    chosen = check(TransferConfig, **parameters("transfer", config.profile))
    once = config.model_copy(update={"poolings": [chosen.pooling]})
    return _embed(once, cohort, splits, external, Cohort.open(external.cohort_folder), representations(chosen))


def _embed(
    config: EmbedConfig,
    cohort: Cohort,
    splits: list[Split],
    target: EmbedConfig,
    records: Cohort,
    wanted: list[Representation],
) -> pd.DataFrame:
    """Embed `records` into the folder of `target` with the encoders that `cohort` and its splits lead to."""
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 on a GPU too
    models.check([one.encoder for one in wanted if one.encoder != FEATURES])
    for one in wanted:
        if one.weights == HUB and one.encoder not in weights.present():
            weights.fetch(one.encoder)
    how = config.model_dump(include={"batch_size", "shard_size", "threads", "device", "dtype"})
    columns = ["encoder", "weights", "seed", "parameters", "dim", "poolings", "license", "sha256", "n_upsampled"]
    rows = []
    for one in wanted:
        out, scratch = target.embeddings_folder / one.folder, paths.scratch(config.profile, "embed") / one.folder
        row = {"encoder": one.encoder, "weights": one.weights, "seed": one.seed}
        if one.encoder == FEATURES:
            features = extract_features(records, out, scratch, shard_size=config.shard_size)
            row |= {"parameters": 0, "dim": features.shape[1], "poolings": "none", "license": "MIT", "sha256": ""}
            row |= {"n_upsampled": 0, "n_padded": 0}
        else:
            for i, split in enumerate(splits if one.per_split else splits[:1]):
                encoder = load_encoder(config, one, split, cohort)
                folder, label = _folder(out, one, split), f"{one.folder} {split.name if one.per_split else ''}".strip()
                sha = extract(records, encoder, list(config.poolings), folder, scratch, label=label, **how)
                if i == 0:
                    row |= _about(encoder, records) | {"poolings": ", ".join(config.poolings), "sha256": sha[:12]}
                    row["license"] = encoder.license if one.weights == HUB else "MIT"
        rows.append({**row, "n": len(records), "contaminated": contaminated(one, target)})
    return pd.DataFrame(rows, columns=[*columns, "n_padded", "n", "contaminated"])


def _about(encoder: Encoder, cohort: Cohort) -> dict[str, int]:
    spec, rows = encoder.input_spec, np.arange(len(cohort))
    changed = {"n_upsampled": int(spec.upsampled(cohort, rows).sum()), "n_padded": int(spec.padded(cohort, rows).sum())}
    return {"parameters": encoder.n_parameters(), "dim": encoder.dim, **changed}


def read_sha256(config: StageConfig, one: Representation, split: Split | None) -> str:
    """Hash of the weights that the embeddings of an outer split were made with, from their manifest."""
    manifest = _folder(config.embeddings_folder / one.folder, one, split) / "manifest.parquet"
    return str(pd.read_parquet(manifest, columns=["weights_sha256"])["weights_sha256"].iloc[0])


def _folder(out: Path, one: Representation, split: Split | None) -> Path:
    return out / _part(one, split) if one.per_split else out


def read_split(
    config: StageConfig, one: Representation, pooling: str, cohort: Cohort, split: Split | None
) -> np.ndarray:
    """Embeddings of all records as they may be used in one outer split, (n_records, dim) float32.

    Where weights differ per split these are by the encoder that has not seen the split's validation and test records.
    Features have no pooling: for them it is ignored.
    """
    pooling = "none" if one.encoder == FEATURES else pooling
    return read(_folder(config.embeddings_folder / one.folder, one, split), pooling, cohort)


def extract(
    cohort: Cohort,
    encoder: Encoder,
    poolings: list[str],
    out: Path,
    scratch: Path,
    *,
    batch_size: int = 64,
    shard_size: int = 512,
    threads: int = 2,
    device: str = "cpu",
    dtype: str = "float32",
    label: str = "",
) -> str:
    """Embed every record of a cohort under every pooling, in shards that survive an interruption.

    Each window of a record is pooled by itself; the record's embedding is the mean over its windows. Of a window that
    ends in zeros the tokens of its valid samples are pooled (`InputSpec.filled`); all of them by `own`, and where the
    encoder's tokens are not `timed`. A window that only repeats the one before is not encoded again.

    Parameters
    ----------
    cohort : Cohort
    encoder : Encoder
        In evaluation mode; its own input spec says what it is fed.
    poolings : list of str
        See `pool`; `own` is the encoder's own read-out.
    out : Path
        The representation's folder, written all or nothing.
    scratch : Path
        Where finished shards wait; removed on success.
    batch_size, shard_size : int
        Windows per forward pass, and records per shard.
    threads : int
        Batches at work at the same time, each on one thread: the result does not depend on it.
    device : {"cpu", "cuda"}
    dtype : {"float32", "bfloat16"}
        Of the encoder's matrix products and convolutions; pooling is in float32, and so is what is written.
    label : str
        What the progress bar says.

    Returns
    -------
    str
        SHA-256 of the weights.

    Raises
    ------
    CureError
        If an embedding is not finite: names the first record.
    """
    sha = encoder.weights_sha256()
    spec = json.dumps(encoder.input_spec.as_dict())
    record_id = cohort.records["record_id"].to_numpy()
    encoder = encoder.to(device)

    def one_batch(rows: np.ndarray) -> Arrays:
        x = torch.from_numpy(encoder.input_spec.windows(cohort, rows))
        new = torch.ones(x.shape[:2], dtype=torch.bool)
        new[:, 1:] = (x[:, 1:] != x[:, :-1]).flatten(2).any(dim=2)
        share = encoder.input_spec.filled(cohort, rows)[new.numpy()] if encoder.timed else np.ones(int(new.sum()))
        pooled: dict[str, list[Tensor]] = {name: [] for name in poolings}
        with torch.inference_mode():
            for i, windows in enumerate(x[new].split(batch_size)):
                with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                    tokens = encoder(windows.to(device)).float()
                some = share[i * batch_size :][:batch_size]
                for name in poolings:
                    pooled[name].append(encoder.readout(tokens) if name == OWN else pool(tokens, name, some))
        at = (new.flatten().cumsum(0) - 1).unflatten(0, x.shape[:2]).to(device)
        return {name: torch.cat(parts)[at].mean(dim=1).cpu().numpy() for name, parts in pooled.items()}

    def compute(rows: np.ndarray) -> Arrays:
        # A batch is one thread's, from reading to pooling: no core waits for another, and sums are in the same order
        # however many there are.
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(one_batch, np.split(rows, range(batch_size, len(rows), batch_size))))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in poolings}
        for name, array in arrays.items():
            bad = ~np.isfinite(array).all(axis=1)
            if bad.any():
                raise CureError(f"{label}: the {name} embedding of record {record_id[rows[bad][0]]} is not finite")
        return arrays

    decides = (poolings, shard_size, batch_size, device, dtype, encoder.timed)
    job = scratch / fingerprint(sha, spec, cohort.info, decides)
    with one_thread():
        shards = compute_shards(job, len(cohort), shard_size, compute, desc=label)
    arrays = {name: np.concatenate([np.load(shard)[name] for shard in shards]) for name in poolings}
    about = {"record_id": record_id, "weights_sha256": sha, "input_spec": spec, "dtype": dtype}
    about["source_fs"] = encoder.input_spec.source_rates(cohort, np.arange(len(cohort)))
    _write(out, arrays, pd.DataFrame(about))
    shutil.rmtree(scratch)
    return sha


def extract_features(cohort: Cohort, out: Path, scratch: Path, *, shard_size: int = 512) -> pd.DataFrame:
    """Hand-crafted ECG features of every record at its lowest stored rate, as a representation (pooling `none`).

    Only a record's valid samples are measured. NaN marks what could not be measured; heads impute it within the
    training folds. Returns the features by record_id.
    """

    def compute(rows: np.ndarray) -> Arrays:
        return {name: column.to_numpy(np.float32) for name, column in _features(cohort, rows).items()}

    job = scratch / fingerprint("features", cohort.info, shard_size)
    shards = compute_shards(job, len(cohort), shard_size, compute, desc="hand-crafted features")
    features = pd.concat([pd.DataFrame(dict(np.load(shard))) for shard in shards], ignore_index=True)
    record_id, spec = cohort.records["record_id"], json.dumps({"fs": cohort.rates[0]})
    about = {"record_id": record_id, "weights_sha256": "", "input_spec": spec, "source_fs": lowest_rates(cohort)}
    _write(out, {"none": features.to_numpy(np.float32)}, pd.DataFrame(about), list(features))
    shutil.rmtree(scratch)
    return features.set_index(record_id)


def _features(cohort: Cohort, rows: np.ndarray) -> pd.DataFrame:
    n_jobs = joblib.cpu_count()
    parts = [
        ecg_features(signals, fs, n_jobs=n_jobs).set_axis(some, axis=0) for some, signals, fs in stretches(cohort, rows)
    ]
    return pd.concat(parts).loc[rows].reset_index(drop=True)


def _write(out: Path, arrays: Arrays, manifest: pd.DataFrame, columns: list[str] | None = None) -> None:
    with atomic(out) as folder:
        folder.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.astype(np.float32, copy=False))
        manifest.to_parquet(folder / "manifest.parquet")
        if columns is not None:
            (folder / "columns.json").write_text(json.dumps(columns, indent=1) + "\n")


def read(folder: Path, pooling: str, cohort: Cohort) -> np.ndarray:
    """Read one representation, (n_records, dim) float32, checked to have the cohort's records in their order.

    Raises
    ------
    CureError
        If it is not there, or belongs to other records.
    """
    file = folder / f"{pooling}.npy"
    if not file.is_file():
        raise CureError(
            f"no {pooling} embedding in {folder.name}: list the pooling in the profile, then {_again(folder)}"
        )
    manifest = pd.read_parquet(folder / "manifest.parquet")
    if not manifest["record_id"].equals(cohort.records["record_id"]):
        raise CureError(f"{folder.name} holds other records than cohort '{cohort.name}': run {_again(folder)}")
    return np.load(file)


def _again(folder: Path) -> str:
    return f"`cure run embed --profile {folder.parents[1].name}`"


def read_features(folder: Path, cohort: Cohort) -> pd.DataFrame:
    """Hand-crafted features by record_id, with their names; `folder` is that of the cohort's embeddings."""
    values = read(folder / FEATURES, "none", cohort)
    columns = json.loads((folder / FEATURES / "columns.json").read_text())
    return pd.DataFrame(values, columns=columns, index=cohort.records["record_id"])

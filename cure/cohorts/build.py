"""Stages `download` and `prepare`: find or make the raw records, then pack them."""

import joblib
import pandas as pd
import wfdb

from cure import paths
from cure.cohorts import ptbxl, synthetic
from cure.cohorts.base import Cohort
from cure.cohorts.pack import pack
from cure.config import DownloadConfig, PrepareConfig
from cure.download import read_manifest, sha256_file, verify_manifest, write_manifest
from cure.errors import CureError

_LICENSES = {"ptbxl": ptbxl.LICENSE, "synthetic": "MIT"}


def acquire(config: DownloadConfig) -> pd.DataFrame:
    """Make sure that the raw records are there and write their content manifest.

    Returns
    -------
    DataFrame
        `path, size, sha256`, one row per file of the study; paths are relative to the raw folder.

    Raises
    ------
    CureError
        If the source cannot be had, or is not what it should be.
    """
    source = config.cohort.source
    folder = paths.raw(source, config.profile)
    if source == "synthetic":
        if config.n_records is None:
            raise CureError(f"profiles/{config.profile}.yaml: download.n_records is missing; a synthetic cohort needs a size")
        synthetic.write(folder, n_records=config.n_records, seed=config.seed, max_id_500=config.max_id_500)
    manifest = ptbxl.acquire(
        folder,
        max_id_100=config.max_id_100,
        max_id_500=config.max_id_500,
        download=config.fetch and source == "ptbxl",
        pinned=source == "ptbxl",
    )
    write_manifest(manifest, paths.manifest(config.profile))
    return manifest


def prepare(config: PrepareConfig) -> Cohort:
    """Pack the records that the manifest lists into the cohort store, and open it.

    Raises
    ------
    CureError
        If files of the manifest are gone or changed, or too many records are unusable.
    """
    source, profile = config.cohort.source, config.profile
    raw, manifest = paths.raw(source, profile), read_manifest(paths.manifest(profile))
    verify_manifest(raw, manifest)
    info = {
        "name": config.cohort.name,
        "title": config.cohort.title,
        "source": source,
        "license": _LICENSES[source],
        "manifest": sha256_file(paths.manifest(profile)),
    }
    pack(
        raw,
        ptbxl.read_metadata(raw),
        ptbxl.read_statements(raw),
        set(manifest["path"]),
        info,
        config.cohort_folder,
        paths.scratch(profile, "prepare"),
        chunk_size=config.chunk_size,
        max_excluded=config.max_excluded,
        n_jobs=joblib.cpu_count(),
    )
    return Cohort.open(config.cohort_folder)


def first_record(config: DownloadConfig, manifest: pd.DataFrame) -> wfdb.Record:
    """Read the study's first record at its highest rate, straight from its file: `p_signal` (n_samples, 12) in mV."""
    names = manifest.loc[manifest["path"].str.endswith(".hea"), "path"]
    highest = names[names.str.startswith("records500")] if names.str.startswith("records500").any() else names
    return wfdb.rdrecord(str(paths.raw(config.cohort.source, config.profile) / highest.iloc[0].removesuffix(".hea")))

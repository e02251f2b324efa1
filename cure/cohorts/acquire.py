"""Stage `download`: find, fetch or simulate the raw records of a profile."""

import os
from pathlib import Path

import pandas as pd
import wfdb

from cure import paths
from cure.cohorts import ptbxl, synthetic
from cure.download import write_manifest
from cure.errors import CureError
from cure.settings.download import DownloadConfig


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
    folder = _folder(config)
    if source == "synthetic":
        if config.n_records is None:
            raise CureError(
                f"profiles/{config.profile}.yaml: download.n_records is missing; a synthetic cohort needs a size"
            )
        synthetic.write(folder, n_records=config.n_records, seed=config.seed, max_id_500=config.max_id_500)
    elif not folder.exists() and os.environ.get(paths.RAW_VARIABLES[source]):
        raise CureError(
            f"{paths.RAW_VARIABLES[source]} names the folder {folder}, which does not exist: correct it, unset it, or "
            "create the folder to download into it"
        )
    manifest = ptbxl.acquire(
        folder,
        max_id_100=config.max_id_100,
        max_id_500=config.max_id_500,
        download=config.fetch and source == "ptbxl",
        pinned=source == "ptbxl",
    )
    write_manifest(manifest, paths.output(paths.manifest(config.profile), config.stage))
    return manifest


def first_record(config: DownloadConfig, manifest: pd.DataFrame) -> wfdb.Record:
    """Read the study's first record at its highest rate, straight from its file: `p_signal` (n_samples, 12) in mV."""
    names = manifest.loc[manifest["path"].str.endswith(".hea"), "path"]
    highest = names[names.str.startswith("records500")] if names.str.startswith("records500").any() else names
    return wfdb.rdrecord(str(_folder(config) / highest.iloc[0].removesuffix(".hea")))


def _folder(config: DownloadConfig) -> Path:
    """Where the raw records are; a simulated cohort is made by this stage, so it is one of its outputs."""
    folder = paths.raw(config.cohort.source, config.profile)
    return paths.output(folder, config.stage) if config.cohort.source == "synthetic" else folder

"""Stage `download`: find, fetch or simulate the raw records of a profile."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import wfdb

from cure import paths
from cure.cohorts import code15, ptbxl, synthetic, synthetic_code15, wfdb_folder
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
        If the source cannot be had, or is not what it should be, or a setting is given that it does not use.
    """
    _refuse_unused(config)
    folder = _folder(config)
    variable = paths.RAW_VARIABLES.get(config.cohort.source)
    if variable and os.environ.get(variable) and not folder.exists():
        raise CureError(
            f"{variable} names the folder {folder}, which does not exist: correct it, unset it, or "
            "create the folder to download into it"
        )
    manifest = _SOURCES[config.cohort.source](folder, config)
    write_manifest(manifest, paths.output(config.manifest, config.stage))
    return manifest


def first_record(config: DownloadConfig, manifest: pd.DataFrame) -> wfdb.Record:
    """Read the study's first record at its highest rate, straight from its file: `p_signal` (n_samples, 12) in mV."""
    if config.cohort.source in ("code15", "synthetic-code15"):
        scratch = paths.scratch(config.profile, f"{config.stage}-{config.cohort.name}")
        return code15.first_record(_folder(config), manifest["path"], scratch)
    if config.cohort.source == "wfdb":
        return wfdb_folder.first_record(_folder(config), manifest["path"])
    names = manifest.loc[manifest["path"].str.endswith(".hea"), "path"]
    highest = names[names.str.startswith("records500")] if names.str.startswith("records500").any() else names
    return wfdb.rdrecord(str(_folder(config) / highest.iloc[0].removesuffix(".hea")))


def _folder(config: DownloadConfig) -> Path:
    """Where the raw records are; a simulated cohort is made by this stage, so it is one of its outputs."""
    generated = config.cohort.source in paths.GENERATED
    return paths.output(config.raw_folder, config.stage) if generated else config.raw_folder


def _refuse_unused(config: DownloadConfig) -> None:
    """Raise for a setting that would be ignored: whoever gave it would take the cohort for another one."""
    source = config.cohort.source
    for name, field in type(config).model_fields.items():
        if name != "profile" and name not in _SETTINGS[source] and getattr(config, name) != field.default:
            raise CureError(
                f"{_section(config)}.{name} is set, but source {source} does not use it: remove it from "
                f"profiles/{config.profile}.yaml; in a notebook, leave it at {field.default}"
            )


def _section(config: DownloadConfig) -> str:
    """Section of the profile that these settings are in."""
    return "external.download" if config._is_external else "download"


def _ptbxl(folder: Path, config: DownloadConfig) -> pd.DataFrame:
    limits = {"max_id_100": config.max_id_100, "max_id_500": config.max_id_500}
    return ptbxl.acquire(folder, **limits, download=config.fetch, pinned=True)


def _synthetic(folder: Path, config: DownloadConfig) -> pd.DataFrame:
    if config.n_records is None:
        raise CureError(
            f"profiles/{config.profile}.yaml: {_section(config)}.n_records is missing; a synthetic cohort needs a size"
        )
    limits = {"max_id_100": config.max_id_100, "max_id_500": config.max_id_500}
    synthetic.write(folder, n_records=config.n_records, seed=config.seed, max_id_500=config.max_id_500)
    return ptbxl.acquire(folder, **limits, download=False, pinned=False)


#: What makes the raw records of each source available in a folder and returns their manifest.
_SOURCES: dict[str, Callable[[Path, DownloadConfig], pd.DataFrame]] = {
    "ptbxl": _ptbxl,
    "synthetic": _synthetic,
    "code15": code15.acquire,
    "synthetic-code15": synthetic_code15.acquire,
    "wfdb": wfdb_folder.acquire,
}
#: The settings that each source uses.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "ptbxl": ("max_id_100", "max_id_500", "fetch"),
    "synthetic": ("n_records", "max_id_100", "max_id_500", "seed"),
    "code15": ("parts", "fetch"),
    "synthetic-code15": ("n_records", "parts", "seed"),
    "wfdb": (),
}

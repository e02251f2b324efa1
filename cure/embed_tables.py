"""Tables of stage `embed`: what the hand-crafted features measure, and how spread out embeddings are."""

import numpy as np
import pandas as pd

from cure import embed
from cure.cohorts.base import Cohort
from cure.embed import FEATURES
from cure.settings.embed import EmbedConfig
from cure.splits import Split

MAIN_FEATURES = ("heart_rate_bpm", "rr_cv", "pr_ms", "qrs_ms", "qt_ms", "qrs_axis_deg")


def main_features(features: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """Features that have a name in every clinic, beside the labels that are about them; one row per record."""
    known = [code for code in ("SBRAD", "STACH", "1AVB", "CRBBB", "AFIB") if code in cohort.listed]
    labels = cohort.listed[known]
    return features[list(MAIN_FEATURES)].join(labels).reset_index()


def measured_share(features: pd.DataFrame) -> pd.DataFrame:
    """In what share of the records each of the main features could be measured."""
    count = features[list(MAIN_FEATURES)].notna().sum()
    share = (count / len(features)).to_numpy()
    return pd.DataFrame({"feature": count.index, "measured": count.to_numpy(), "share": share, "n": len(features)})


def spread(config: EmbedConfig, cohort: Cohort, splits: list[Split]) -> pd.DataFrame:
    """In how many directions the records of a cohort differ, averaged over initialisations and over weights per split.

    The participation ratio of the eigenvalues l of the covariance of standardised embeddings, (sum l)^2 / sum l^2: 1
    when all records lie on a line, `dim` when they fill the space evenly.
    """
    rows = []
    for one in embed.representations(config):
        for pooling in ["none"] if one.encoder == FEATURES else config.poolings:
            for split in splits if one.per_split else splits[:1]:
                x = embed.read_split(config, one, pooling, cohort, split).astype(np.float64)
                row = {"encoder": one.encoder, "weights": one.weights, "pooling": pooling, "dim": x.shape[1]}
                rows.append({**row, "value": _participation(x)})
    names = ["encoder", "weights", "pooling", "dim"]
    table = pd.DataFrame(rows).groupby(names, sort=False, as_index=False)["value"].mean()
    return table.assign(cohort=cohort.name, metric="participation_ratio", n=len(cohort))


def _participation(x: np.ndarray) -> float:
    x = np.where(np.isnan(x), np.nanmedian(x, axis=0), x)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    gram = x.T @ x
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def spread_view(table: pd.DataFrame) -> pd.DataFrame:
    """Participation ratios with one decimal, encoder by pooling."""
    wide = table.pivot(index=["encoder", "weights", "dim"], columns="pooling", values="value")[
        list(table["pooling"].unique())
    ]
    return wide.map(lambda value: f"{value:.1f}" if value == value else "").rename_axis(columns=None)

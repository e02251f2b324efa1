"""Any model on any leads: two rules that fill in what was not recorded, and what they cost in score.

Zeros, or the dependent limb leads from I and II exactly; see `cure.leads.complete`. `leadcnn` takes any leads itself,
so for it missing ones may also be left out. A head is either the one of twelve leads, applied as it is, or fitted anew
on what is there.
"""

from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
import torch

from cure import embed, lead_study, models, paths
from cure.cohorts.base import Cohort
from cure.config import check, parameters
from cure.embed import Representation
from cure.evaluate import compare, evaluate
from cure.heads import fit_head
from cure.leads import Rule, configuration, fewer
from cure.models.leadcnn import LeadCNN
from cure.progress import progress
from cure.scores import MACROS, averages
from cure.settings.embed import EmbedConfig
from cure.settings.leads import LeadsConfig
from cure.shards import fingerprint
from cure.splits import Split
from cure.tables import marks
from cure.tasks import Labels
from cure.training import alone

RULES: tuple[Rule, ...] = ("zero-fill", "reconstruct")
LEFT_OUT, NONE = "left out", "none"
#: Which leads a head was fitted on.
ANEW, TWELVE = "the same leads", "twelve leads"


@dataclass(frozen=True)
class Cell:
    """One model on one configuration under one rule."""

    model: Representation
    leads: str
    rule: str


def cells(config: LeadsConfig) -> list[Cell]:
    """Every model of the study on twelve leads, then on fewer. A rule that would change nothing has no cell."""
    found = []
    for one in chosen(config):
        found.append(Cell(one, "12", NONE))
        for name in config.published_configurations:
            leads = set(configuration(name))
            both = {0, 1} <= leads and not {2, 3, 4, 5} <= leads
            found += [Cell(one, name, rule) for rule in RULES if rule == "zero-fill" or both]
            if one.encoder == "leadcnn":
                found.append(Cell(one, name, LEFT_OUT))
    return found


def chosen(config: LeadsConfig) -> list[Representation]:
    """`leadcnn` with the weights that stage `pretrain` made, and the published models, of all that is embedded."""
    every = embed.representations(config)
    mine = [one for one in every if one.encoder == "leadcnn" and one.weights.startswith("ssl")][:1]
    best = {one.encoder: one for one in reversed(every) if one.encoder in config.published}
    return mine + [best[name] for name in config.published if name in best]


def run(config: LeadsConfig, cohort: Cohort, split: Split, tasks: Labels) -> pd.DataFrame:
    """Embed every cell and score logistic heads; what is finished is not computed again.

    Returns
    -------
    DataFrame
        Test scores in the columns of `cure.predictions`, and `rule` and `fitted`; without rows where a profile lists
        no models.
    """
    study = check(EmbedConfig, **parameters("embed", config.profile))
    todo = cells(config)
    arrays = [_embedded(study, config, cohort, split, cell) for cell in todo]
    whole = {cell.model: x for cell, x in zip(todo, arrays, strict=True) if cell.leads == "12"}
    work = (joblib.delayed(_scored)(x, whole[cell.model], tasks.y, split) for cell, x in zip(todo, arrays, strict=True))
    done = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator", max_nbytes="1M")(work)
    frames = []
    for cell, results in zip(todo, progress(done, desc="heads", total=len(todo), unit="cell"), strict=True):
        for fitted, result in results.items():
            if cell.leads == "12" and fitted == TWELVE:
                continue
            key = {**_key(config, cell), "fitted": fitted}
            frames.append(lead_study.rows(key, result, cohort, split, tasks))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _key(config: LeadsConfig, cell: Cell) -> dict:
    one = cell.model
    names = {"cohort": config.cohort.name, "protocol": "sound", "encoder": one.encoder, "weights": one.weights}
    how = {"pooling": "mean", "head": "logistic", "strategy": "frozen", "leads": cell.leads, "rule": cell.rule}
    rest = {"fraction": np.float32(1), "seed": np.int16(one.seed), "contaminated": embed.contaminated(one, config)}
    return {**names, **how, **rest}


def _embedded(study: EmbedConfig, config: LeadsConfig, cohort: Cohort, split: Split, cell: Cell) -> np.ndarray:
    """Mean-pooled embeddings of a cell, (n_records, dim) float32."""
    if cell.leads == "12":
        return embed.read_split(config, cell.model, "mean", cohort, split)
    encoder = embed.load_encoder(config, cell.model, split, cohort)
    leads = configuration(cell.leads)
    name = fingerprint(cell.model.folder, cell.leads, cell.rule, split.name, cohort.info, encoder.weights_sha256())
    out = paths.scratch(config.profile, config.stage) / f"rules-{name}"
    if not out.is_dir():
        part = fewer(cohort, leads, "zero-fill" if cell.rule == LEFT_OUT else cell.rule)  # type: ignore[arg-type]
        if cell.rule == LEFT_OUT:
            assert isinstance(encoder, LeadCNN)
            encoder = _LeftOut(encoder, leads).eval()
        label = f"{cell.model.encoder}, {cell.leads}, {cell.rule}"
        how = study.model_dump(include={"batch_size", "shard_size", "threads", "device", "dtype"})
        embed.extract(part, encoder, ["mean"], out, out.with_suffix(".part"), label=label, **how)
    return embed.read(out, "mean", cohort)


class _LeftOut(models.Encoder):
    """`leadcnn` on the leads that there are, of twelve-lead input."""

    def __init__(self, encoder: LeadCNN, leads: list[int]):
        super().__init__()
        self.encoder, self.leads = encoder, leads
        self.input_spec, self.dim = encoder.input_spec, encoder.dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x[:, self.leads], self.leads)


def _scored(x: np.ndarray, whole: np.ndarray, y: np.ndarray, split: Split) -> dict[str, dict[str, np.ndarray]]:
    """Heads fitted anew, and heads of twelve leads, on the test records."""
    with alone():
        heads = [fit_head("logistic", whole, task, split) for task in y.T]
        twelve = {
            "score": np.stack([fit.score(x[split.test]) for fit in heads], axis=1).astype(np.float32),
            "threshold": np.array([fit.threshold for fit in heads], np.float32),
            "setting": np.array([fit.setting for fit in heads]),
        }
        return {ANEW: lead_study.probed(x, y, split), TWELVE: twelve}


def score_table(config: LeadsConfig, cohort: Cohort, predicted: pd.DataFrame) -> pd.DataFrame:
    """Averages over tasks of every cell, and paired differences to twelve leads, Holm-adjusted over the table.

    Rows with `comparator` hold differences.
    """
    if predicted.empty:
        return pd.DataFrame(columns=["encoder", "leads", "rule", "fitted", "task", "metric", "comparator", "value"])
    plain = predicted.drop(columns="setting")
    patients = cohort.records.set_index("record_id")["patient_id"]
    macros = averages(plain["task"].unique())
    scored = evaluate(plain, patients, metrics=["auroc"], macros=macros, n_draws=config.n_draws, seed=config.seed)
    whole = {"leads": "12", "rule": NONE, "fitted": ANEW}
    gaps = compare(plain, whole, patients, macros=macros, per_task=False, seed=config.seed)
    both = pd.concat([scored, gaps.assign(comparator="twelve leads")], ignore_index=True)
    return both[both["task"].isin(MACROS)].drop(columns=["n_pos", "n_pos_patients", "prevalence"])


def view(table: pd.DataFrame, task: str = "macro") -> pd.DataFrame:
    """Score on twelve leads and what fewer cost, a row per model, configuration and rule, a column per head."""
    rows = table[table["task"] == task]
    if rows.empty:
        return pd.DataFrame({"models": ["this profile lists none under `published`"]})
    whole = rows[(rows["leads"] == "12") & rows["comparator"].isna()].set_index("encoder")
    gaps = rows[rows["comparator"].notna()]
    text = [f"{r.value:+.3f} [{r.lo:+.3f}, {r.hi:+.3f}]{' *' if r.p_holm < 0.05 else ''}" for r in gaps.itertuples()]
    named = gaps.assign(
        text=text,
        model=[
            f"{row.encoder} ({row.weights}){mark}" for row, mark in zip(gaps.itertuples(), marks(gaps), strict=True)
        ],
        twelve=[f"{whole.loc[row.encoder, 'value']:.3f}" for row in gaps.itertuples()],
        fitted="head of " + gaps["fitted"].astype(str),
    )
    index = ["model", "twelve", "leads", "rule"]
    wide = named.pivot(index=index, columns="fitted", values="text")
    wide = wide.reindex(pd.MultiIndex.from_frame(named[index].drop_duplicates()))[list(named["fitted"].unique())]
    return wide.rename_axis(index=["model", "12 leads", "leads", "rule"], columns=None)

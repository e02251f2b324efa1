"""Layers of an encoder: how alike they are, in trained weights and their untrained twin, and what each holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cure import embed
from cure.bootstrap import Array, interval
from cure.cohorts.base import Cohort
from cure.config import parameters
from cure.embed import FEATURES, Representation
from cure.errors import CureError
from cure.evaluate import MIN_POSITIVES
from cure.geometry import debiased_cka
from cure.heads import scaler
from cure.models import Encoder
from cure.models.base import one_thread
from cure.probes import Target, Trial, each, make_trials, probe, scaled, targets
from cure.progress import progress
from cure.settings.probes import ProbesConfig
from cure.splits import Split
from cure.structure import Measured
from cure.tasks import groups

#: The encoder's output, after its last block.
TOKENS = "tokens"
MACRO = "macro super"
#: Label permutations of the control.
N_PERMUTATIONS = 50
_BATCH = 32

#: A layer: weights, name.
Layer = tuple[str, str]


def twins(config: ProbesConfig) -> list[Representation]:
    """The weights that are looked at, and the same encoder with the random weights that their training began from.

    Raises
    ------
    CureError
        If the profile does not pre-train these weights of this encoder.
    """
    made = parameters("pretrain", config.profile)
    trained = made["weights"] if config.encoder == made["encoder"] else []
    if config.weights not in trained:
        raise CureError(
            f"stage pretrain of profile {config.profile} makes {', '.join(made['weights'])} of {made['encoder']}, not "
            f"{config.weights} of {config.encoder}: change `encoder` or `weights` in section probes of the profile"
        )
    seed = made["seeds"][0]
    return [Representation(config.encoder, name, seed) for name in (config.weights, "random")]


def stages(encoder: Encoder) -> dict[str, nn.Module]:
    """`Encoder.stages()`, from input to output, by their names in the encoder."""
    names = {id(module): name for name, module in encoder.named_modules()}
    return {names[id(stage)]: stage for stage in encoder.stages()}


@contextmanager
def _kept(encoder: Encoder) -> Iterator[dict[str, Tensor]]:
    """Collect what each block puts out while this is open, averaged over tokens, (rows, channels)."""
    found: dict[str, Tensor] = {}

    def keep(name: str, time: int) -> object:
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple) -> None:
            out = output[0] if isinstance(output, tuple) else output
            found[name] = out.mean(dim=time) if out.ndim == 3 else out

        return hook

    handles = []
    for name, block in stages(encoder).items():
        # Convolutions have (n, channels, time), everything else (n, tokens, channels).
        time = 2 if any(isinstance(part, nn.Conv1d) for part in block.modules()) else 1
        handles.append(block.register_forward_hook(keep(name, time)))  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def activations(encoder: Encoder, x: Tensor) -> dict[str, Array]:
    """Mean activation over tokens after every block, and of the tokens themselves; (n, channels) float32 each.

    Parameters
    ----------
    encoder : Encoder
    x : (n, n_leads, n_samples) float32 Tensor
        Model-ready input.

    Notes
    -----
    A block that works on single leads puts out several rows per record, which are averaged too.
    """
    with torch.inference_mode(), _kept(encoder) as found:
        tokens = encoder(x)
        out = {name: value.reshape(len(x), -1, value.shape[-1]).mean(dim=1).numpy() for name, value in found.items()}
    return out | {TOKENS: tokens.mean(dim=1).numpy()}


def _every_record(config: ProbesConfig, cohort: Cohort, one: Representation, split: Split) -> dict[str, Array]:
    """Activations of all records, (n_records, channels); batches on several threads, each batch on one."""
    encoder = [embed.load_encoder(config, one, split).eval() for _ in range(joblib.cpu_count())]
    batches = np.split(np.arange(len(cohort)), range(_BATCH, len(cohort), _BATCH))

    def work(i: int) -> list[dict[str, Array]]:
        # Hooks belong to an encoder: each thread has its own.
        mine = encoder[i]
        read = mine.input_spec.read
        return [activations(mine, torch.from_numpy(read(cohort, rows))) for rows in batches[i :: len(encoder)]]

    with one_thread(), ThreadPoolExecutor(len(encoder)) as pool:
        parts = list(pool.map(work, range(len(encoder))))
    ordered = [parts[i % len(encoder)][i // len(encoder)] for i in range(len(batches))]
    return {name: np.concatenate([part[name] for part in ordered]) for name in ordered[0]}


def layer_spaces(config: ProbesConfig, cohort: Cohort, splits: list[Split]) -> dict[Layer, list[Array]]:
    """All records after every block of the trained encoder and of its twin, standardised by training records.

    Only the first window of a record is looked at.

    Returns
    -------
    dict of (weights, layer) to list of (n_records, channels) float64 arrays
        One per split. Where weights differ per split they are those that have not seen the test records.
    """
    todo = [(one, split) for one in twins(config) for split in (splits if one.per_split else splits[:1])]
    found: dict[Layer, list[Array]] = {}
    for one, split in progress(todo, desc="layers", total=len(todo), unit="encoder"):
        for name, x in _every_record(config, cohort, one, split).items():
            for where in [split] if one.per_split else splits:
                z = scaler().fit(x[where.train]).transform(x).astype(np.float64)
                found.setdefault((one.weights, name), []).append(z)
    return found


def cka_table(
    config: ProbesConfig, cohort: Cohort, splits: list[Split], spaces: dict[Layer, list[Array]]
) -> pd.DataFrame:
    """Debiased linear CKA of every pair of layers, averaged over splits by test records."""
    size = np.array([len(split.test) for split in splits])
    values = [debiased_cka([z[i][split.test] for z in spaces.values()]) for i, split in enumerate(splits)]
    value = np.average(values, axis=0, weights=size)
    rows = []
    for i, a in enumerate(spaces):
        for j, b in enumerate(spaces):
            key = {"weights_a": a[0], "layer_a": a[1], "weights_b": b[0], "layer_b": b[1]}
            row = {"cohort": cohort.name, "encoder": config.encoder, **key, "metric": "cka_debiased"}
            rows.append({**row, "value": value[i, j], "n": size.sum()})
    return pd.DataFrame(rows)


def layer_trials(config: ProbesConfig, cohort: Cohort, splits: list[Split]) -> list[Trial]:
    """What layers are probed for: the superclasses, and everything of `cure.probes.targets` that has a unit."""
    found = [*superclass_targets(cohort, splits), *(one for one in targets(config, cohort) if not one.binary)]
    return make_trials(cohort, splits, found, config, N_PERMUTATIONS)


def superclass_targets(cohort: Cohort, splits: list[Split]) -> list[Target]:
    """The diagnostic superclasses with enough tested positives, over the records that list at least one.

    None where the cohort has no superclasses.
    """
    if "super" not in groups(cohort.statements):
        return []
    labels = cohort.group("super")
    y = np.full((len(cohort), len(labels.names)), np.nan)
    y[labels.rows] = labels.y
    tested = y[np.concatenate([split.test for split in splits])]
    return [
        Target(name, "", y[:, i], True)
        for i, name in enumerate(labels.names)
        if min(np.nansum(tested[:, i]), np.nansum(1 - tested[:, i])) >= MIN_POSITIVES
    ]


def depth_table(
    config: ProbesConfig, cohort: Cohort, splits: list[Split], spaces: dict[Layer, list[Array]], trials: list[Trial]
) -> pd.DataFrame:
    """What a ridge probe reads off each layer, with 95 % intervals over patients; hand-crafted features as reference.

    AUROC of the superclasses is given as their macro average, inside each draw, with `n_labels`; R2 of every other
    target by itself. `chance` is what the training mean reaches, `null_lo` and `null_hi` are the mean ± 1.96 standard
    deviations under permuted labels.
    """
    features = Representation(FEATURES, "none", 0)
    everything = {**spaces, ("none", FEATURES): scaled(config, cohort, splits, features)}

    def work(layer: Layer) -> dict[str, list[Measured]]:
        # Features hold the measurements themselves: there they say something about superclasses only.
        mine = [trial for trial in trials if trial.target.binary or layer[1] != FEATURES]
        found: dict[str, list[Measured]] = {}
        for (name, metric), measured in probe(mine, splits, everything[layer]).items():
            if metric != "mae":
                found.setdefault(MACRO if metric == "auroc" else name, []).append(measured)
        return found

    results = each(work, list(everything), "depth")
    names = list(dict.fromkeys(name for _, name in everything))
    rows = []
    for (weights, layer), found in zip(everything, results, strict=True):
        for task, several in found.items():
            draws = np.mean([m.draws for m in several], axis=0)
            null = np.mean([m.null for m in several], axis=0)
            lo, hi, _ = interval(draws[1:])
            metric = "auroc" if task == MACRO else "r2"
            row: dict = {"cohort": cohort.name, "encoder": config.encoder, "weights": weights, "layer": layer}
            row |= {"depth": names.index(layer), "task": task, "metric": metric, "value": draws[0], "lo": lo, "hi": hi}
            row |= {"chance": several[0].chance, "null_lo": null.mean() - 1.96 * null.std(ddof=1)}
            n = [sum(map(len, t.tested)) for t in trials if (MACRO if t.target.binary else t.target.name) == task]
            rows.append(row | {"null_hi": null.mean() + 1.96 * null.std(ddof=1), "n_labels": len(several), "n": n[0]})
    return pd.DataFrame(rows)

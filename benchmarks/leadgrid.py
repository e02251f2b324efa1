"""What taking any leads costs `leadgrid`: against encoders that mix all twelve in their first layer.

    python benchmarks/leadgrid.py                          # cost only
    python benchmarks/leadgrid.py --profile ptbxl-subset   # and score, after `make repro PROFILE=ptbxl-subset`

A training step (forward, backward, AdamW) of 64 crops of 5 s in float32, one thread, encoders in turns, best of several
rounds; beside it the arithmetic that torch counts and the bytes kept for the backward pass. Missing leads are left out
of the array (selected), or zeros in it (zero-filled).

With a profile, all are also pre-trained alike (twelve leads in every view, the objective, epochs and rate of the
profile's section `leads`) on the training records of the first outer split, and logistic heads on the frozen embeddings
are scored on its validation records; no test record is read.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cure import lead_cost, lead_study, lead_training, models, tasks
from cure.adapt import Classifier
from cure.beats import median_beats
from cure.cohorts.base import Cohort
from cure.config import check, parameters
from cure.heads import fit_head
from cure.lead_training import WINDOW_S
from cure.leads import Augmentation, configuration
from cure.models import Encoder, leadgrid
from cure.objectives import Batch
from cure.pretrain import beat_targets
from cure.settings.leads import LeadsConfig
from cure.splits import Split, make_splits
from cure.training import Recipe, train

N, N_TASKS = 64, 10
TWINS = ("resnet1d_wang", "resnet1d")


def main() -> None:
    """Print costs and ratios, and scores if a profile is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", help="a profile whose cohort is prepared")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cost(args.rounds)
    if args.profile:
        score(args.profile)


def networks() -> dict[str, tuple[nn.Module, int]]:
    """What is timed, and how many leads go in."""
    found: dict[str, tuple[nn.Module, int]] = {}
    for name in ("12", "6", "4", "3", "2", "1"):
        leads = configuration(name)
        found[f"leadgrid, {name} selected"] = (lead_study.classifier(leadgrid.load(), leads, N_TASKS), len(leads))
    fixed = lead_study.classifier(leadgrid.load(pooling="fixed"), configuration("1"), N_TASKS)
    found["leadgrid, zero-filled"] = (fixed, 12)
    for name in TWINS:
        found[f"{name}, 12"] = (Classifier(models.load(name), "mean", N_TASKS, WINDOW_S), 12)
    return found


def cost(rounds: int) -> None:
    """Time one step of every network, and print it beside what was counted."""
    ways, best = networks(), {}
    steps = {name: step(network.train(), n_leads) for name, (network, n_leads) in ways.items()}
    for name in [*ways] * rounds:
        start = process_time()
        steps[name]()
        best[name] = min(best.get(name, np.inf), process_time() - start)
    zeros = best["leadgrid, zero-filled"]
    for name, (network, n_leads) in ways.items():
        kept = lead_cost.activation_bytes(network, torch.randn(N, n_leads, 500)) / N / 1e3
        ratios = "  ".join(f"{best[name] / best[f'{twin}, 12']:.2f}x {twin}" for twin in TWINS)
        print(
            f"{name:24s} {1e3 * best[name] / N:6.2f} ms a crop  {ratios}  "
            f"{100 * (best[name] / zeros - 1):+4.0f} % of zero-filled  {kept:7.0f} kB kept a crop"
        )


def step(network: nn.Module, n_leads: int) -> Callable[[], None]:
    """A training step on random signals."""
    x, y = torch.randn(N, n_leads, 500), (torch.rand(N, N_TASKS) < 0.3).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.binary_cross_entropy_with_logits(network(x), y).backward()
        optimizer.step()

    return work


def score(profile: str) -> None:
    """Pre-train all alike on one split's training records, and score logistic heads on its validation records."""
    config = check(LeadsConfig, **parameters("leads", profile))
    cohort = Cohort.open(config.cohort_folder)
    split, every = make_splits(cohort.records, config.cohort.split)[0], np.arange(len(cohort))
    told = beat_targets(median_beats(cohort.resampled(every, 100), 100), split.train)
    labels = cohort.binary()
    for name in ("leadgrid", *TWINS):
        encoder: Encoder = leadgrid.load() if name == "leadgrid" else models.load(name)
        x = encoder.input_spec.read(cohort, every)
        before = probe(encoder, x, labels, split)
        model = lead_training.objective("contrastive+beat", encoder, Augmentation(), config.pretraining)

        def one_step(rows: np.ndarray, rng: np.random.Generator, model=model, x=x) -> dict[str, torch.Tensor]:
            signals, patient = torch.from_numpy(x[rows]), torch.from_numpy(rows)
            values, known = torch.from_numpy(told.values[rows]), torch.from_numpy(told.known[rows])
            return model.losses(Batch(signals, signals, patient, values, known), rng)

        with tempfile.TemporaryDirectory() as folder:
            how = Recipe(config.epochs, config.batch_size, config.rate)
            train(model, one_step, split.train, how, Path(folder) / "state", desc=name)
        after = probe(encoder, x, labels, split)
        print(f"{name}: macro AUROC over superclasses {before:.3f} untrained, {after:.3f} pre-trained")


@torch.inference_mode()
def probe(encoder: Encoder, x: np.ndarray, labels: tasks.Labels, split: Split) -> float:
    """Mean validation AUROC over the superclasses of a logistic head; records are read in two windows of 5 s."""
    encoder.eval()
    parts = []
    for i in range(0, len(x), 64):
        batch = torch.from_numpy(x[i : i + 64])
        parts.append(torch.stack([encoder.embed(batch[..., :500]), encoder.embed(batch[..., 500:])]).mean(dim=0))
    z, found = torch.cat(parts).numpy(), []
    for task in tasks.SUPERCLASSES:
        y = labels.y[:, labels.names.index(task)]
        fit = fit_head("logistic", z, y, split)
        found.append(roc_auc_score(y[split.val], fit.score(z[split.val])))
    return float(np.mean(found))


if __name__ == "__main__":
    main()

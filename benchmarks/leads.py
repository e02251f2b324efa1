"""What taking any leads costs: `leadcnn` against `resnet1d`, which mixes all twelve in its first layer.

    python benchmarks/leads.py                          # speed only
    python benchmarks/leads.py --profile ptbxl-subset   # and score, after `make repro PROFILE=ptbxl-subset`

One training step (forward and backward under bfloat16) and one forward pass as embeddings are made (float32), 128 crops
of 5 s, one thread, encoders in turns, best of several rounds. The floor is the step's arithmetic, as torch counts it
(a backward pass is two forward passes), at the rate that this core reaches in a large bfloat16 matrix product.

With a profile, both are also pre-trained alike (all twelve leads in every view) on the training records of the first
outer split, and a logistic head on the frozen embeddings is scored on its validation records; no test record is read.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import smooth_l1_loss
from torch.utils.flop_counter import FlopCounterMode

from cure import augment, models, tasks
from cure.beats import median_beats
from cure.cohorts.base import Cohort
from cure.config import check, parameters
from cure.heads import fit_head
from cure.models import Encoder
from cure.objectives import OBJECTIVES
from cure.pretrain import Targets, beat_targets
from cure.settings.pretrain import PretrainConfig
from cure.splits import Split, make_splits
from cure.training import Recipe, train

LEADS = (12, 8, 6, 3, 2, 1)


def main() -> None:
    """Print speeds and ratios, and scores if a profile is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", help="a profile whose cohort is prepared")
    args = parser.parse_args()
    torch.set_num_threads(1)
    speed(args.rounds)
    if args.profile:
        score(args.profile)


def speed(rounds: int) -> None:
    """Time one step and one forward pass of both encoders, the lead-wise one with fewer and fewer leads."""
    x = torch.randn(128, 12, 500)
    lead, mixing = models.load("leadcnn"), models.load("resnet1d")
    ways = {f"leadcnn, {n} leads": (lambda n=n: lead(x[:, :n], range(n))) for n in LEADS}
    ways["resnet1d, 12 leads"] = lambda: mixing(x)
    steps: dict[str, list[float]] = {name: [] for name in ways}
    passes: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, forward in ways.items():
            lead.train(), mixing.train()
            steps[name].append(seconds(lambda f=forward: step(f)))
            lead.eval(), mixing.eval()
            with torch.inference_mode():
                passes[name].append(seconds(forward))
    peak = matmul_rate()
    whole, twin = min(steps["leadcnn, 12 leads"]), min(steps["resnet1d, 12 leads"])
    print(f"matrix product, bfloat16, one thread: {peak / 1e9:.0f} GFLOP/s")
    for name, forward in ways.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        best, floor = min(steps[name]), 3 * counter.get_total_flops() / peak
        print(
            f"{name:20s} step {1e3 * best:6.0f} ms ({128 / best:5.0f} crops/s)  {best / twin:.2f}x resnet1d  "
            f"{best / whole:.2f}x its own 12 leads  {best / floor:.1f}x floor   forward "
            f"{min(passes[name]) / min(passes['resnet1d, 12 leads']):.2f}x resnet1d"
        )


def cast(forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """One forward pass under bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return forward()


def step(forward: Callable[[], torch.Tensor]) -> None:
    """Forward and backward."""
    cast(forward).float().square().mean().backward()


def matmul_rate() -> float:
    """Operations per second of a large bfloat16 matrix product, best of five."""
    a = torch.randn(2048, 2048).bfloat16()
    return 2 * 2048**3 / min(seconds(lambda: a @ a) for _ in range(5))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = perf_counter()
    work()
    return perf_counter() - start


def score(profile: str) -> None:
    """Pre-train both on one split's training records and score a logistic head on its validation records."""
    config = check(PretrainConfig, **parameters("pretrain", profile))
    cohort = Cohort.open(config.cohort_folder)
    split = make_splits(cohort.records, config.cohort.split)[0]
    every = np.arange(len(cohort))
    targets = beat_targets(median_beats(cohort.signals(every, 100), 100), split.train)
    labels = cohort.binary()
    for name in ("leadcnn", "resnet1d"):
        encoder = models.load(name)
        x = encoder.input_spec.read(cohort, every)
        untrained = probe(encoder, x, labels, split)
        pretrain(encoder, x, targets, split.train, config)
        print(
            f"{name}: macro AUROC over superclasses {untrained:.3f} untrained, {probe(encoder, x, labels, split):.3f}"
        )


def pretrain(encoder: Encoder, x: np.ndarray, targets: Targets, rows: np.ndarray, config: PretrainConfig) -> None:
    """Pre-train as stage `pretrain` does, but with all leads in every view: `resnet1d` takes no fewer."""
    spec, model = encoder.input_spec, OBJECTIVES["contrastive+beat"](encoder, config)

    def one_step(batch: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        whole = torch.from_numpy(x[batch])
        crops = [augment.crop(whole, 500, rng) for _ in range(2)]
        z = [encoder.embed(augment.disturbed(crop, spec.fs, spec.unit_mv, rng)) for crop in crops]
        values, known = torch.from_numpy(targets.values[batch]), torch.from_numpy(targets.known[batch])
        told = torch.stack([model.beat(one).float() for one in z])
        error = smooth_l1_loss(told, values.expand_as(told), reduction="none").mean(dim=(0, 2))
        beat = (error * known).sum() / known.sum().clamp(min=1)
        return {"loss": model.contrast(z) + config.beat_weight * beat}

    with tempfile.TemporaryDirectory() as folder:
        train(model, one_step, rows, Recipe(config.epochs, config.batch_size, config.rate), Path(folder) / "c.pt")


@torch.inference_mode()
def probe(encoder: Encoder, x: np.ndarray, labels: tasks.Labels, split: Split) -> float:
    """Mean validation AUROC over the superclasses of a logistic head."""
    encoder.eval()
    z = np.concatenate([encoder.embed(torch.from_numpy(x[i : i + 64])).numpy() for i in range(0, len(x), 64)])
    found = []
    for task in tasks.SUPERCLASSES:
        y = labels.y[:, labels.names.index(task)]
        fit = fit_head("logistic", z, y, split)
        found.append(roc_auc_score(y[split.val], fit.score(z[split.val])))
    return float(np.mean(found))


if __name__ == "__main__":
    main()

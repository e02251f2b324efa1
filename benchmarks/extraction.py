"""Embedding extraction from the cohort store to disk, for every model, against three peers in the same run.

    python benchmarks/extraction.py --profile ptbxl-subset [--models ked ecg-fm ...] [--device cuda]

* `reference`: as the CURE-FM code does it: one record at a time is conditioned and passed through the encoder, its
  tokens are saved to one file; then the files are read one by one, pooled, and the vectors written as a CSV.
* `batched`: the same batches in float32 without a shard, a manifest or reading ahead: conditioning, forward pass, pool.
* `peak`: arithmetic of the forward pass, as torch counts it (FFTs are not counted), over the rate that this machine
  reaches in a large matrix product of the same dtype.

Weights are random: speed does not depend on them. The ways take turns; what is printed is the median over rounds, and
the ratio the median of the rounds' ratios. `cure` is measured in float32 and in bfloat16, with the relative error that
bfloat16 makes in the mean embedding. `--scores` shows what that error does to scores: a logistic head on either dtype's
embeddings of the profile's pre-trained encoder and three published architectures, macro AUROC over superclasses on the
validation records of the first split.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.flop_counter import FlopCounterMode

from cure import embed, models
from cure.catalogue import catalogue
from cure.cohorts.base import Cohort
from cure.config import check, parameters
from cure.heads import fit_head
from cure.models import Encoder
from cure.settings.embed import EmbedConfig
from cure.splits import make_splits
from cure.tasks import SUPERCLASSES

#: Seconds that one round of one way may take, which decides the number of records.
SECONDS = 3.0


def main() -> None:
    """Measure each model and print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="ptbxl-subset", help="a profile whose cohort is prepared")
    parser.add_argument("--models", nargs="*", help="all runnable ones by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scores", action="store_true", help="what bfloat16 does to scores, instead")
    args = parser.parse_args()
    torch.set_num_threads(2 if args.device == "cpu" else torch.get_num_threads())
    config = check(EmbedConfig, **parameters("embed", args.profile))
    cohort = Cohort.open(config.cohort_folder)
    if args.scores:
        scores(config, cohort, args)
        return
    cohort = dataclasses.replace(cohort, records=cohort.records[cohort.records["row_500"] >= 0].reset_index(drop=True))
    peak = {dtype: matmul_rate(dtype, args.device) for dtype in (torch.float32, torch.bfloat16)}
    print(f"matrix product: {peak[torch.float32] / 1e9:.0f} GFLOP/s float32, {peak[torch.bfloat16] / 1e9:.0f} bfloat16")
    names = args.models or [name for name, entry in catalogue().items() if entry.runnable]
    rows = []
    for name in names:
        rows.append({"model": name, **measure(models.load(name), cohort, args, peak)})
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.3g"), flush=True)


def measure(encoder: Encoder, cohort: Cohort, args: argparse.Namespace, peak: dict) -> dict:
    """Records per second of each way, ratios, share of the peak, and what bfloat16 changes."""
    encoder = encoder.to(args.device)
    first = np.arange(min(8, len(cohort)))
    plain(encoder, cohort, first, args)
    rate = len(first) / seconds(lambda: plain(encoder, cohort, first, args))
    n = int(np.clip(SECONDS * rate, 16, len(cohort)))
    args = argparse.Namespace(**{**vars(args), "batch": min(args.batch, n // 4)})  # four batches at least: two threads
    small = dataclasses.replace(cohort, records=cohort.records.iloc[:n])
    one = dataclasses.replace(cohort, records=cohort.records.iloc[: max(4, n // 4)])
    took: dict[str, list[float]] = {name: [] for name in ("reference", "batched", "float32", "bfloat16")}
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for _ in range(args.rounds):
            took["reference"].append(seconds(lambda: reference(encoder, one, at, args)) / len(one))
            took["batched"].append(seconds(lambda: plain(encoder, small, np.arange(n), args)) / n)
            for dtype in ("float32", "bfloat16"):
                took[dtype].append(seconds(lambda d=dtype: cure(encoder, small, at / d, d, args)) / n)
        exact, reduced = (np.load(at / dtype / "mean.npy").astype(float) for dtype in ("float32", "bfloat16"))
    x = torch.from_numpy(encoder.input_spec.windows(cohort, first[:1])).to(args.device).flatten(0, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(x)
    flops = counter.get_total_flops()
    median = {name: float(np.median(each)) for name, each in took.items()}
    return {
        "parameters": encoder.n_parameters(),
        "n": n,
        "records/s": 1 / median["float32"],
        "x reference": ratio(took["reference"], took["float32"]),
        "x batched": ratio(took["batched"], took["float32"]),
        "GFLOP": flops / 1e9,
        "of peak": flops / median["float32"] / peak[torch.float32],
        "bf16 records/s": 1 / median["bfloat16"],
        "bf16 x reference": ratio(took["reference"], took["bfloat16"]),
        "bf16 of peak": flops / median["bfloat16"] / peak[torch.bfloat16],
        "bf16 error": np.linalg.norm(reduced - exact) / np.linalg.norm(exact - exact.mean(axis=0)),
    }


def cure(encoder: Encoder, cohort: Cohort, out: Path, dtype: str, args: argparse.Namespace) -> None:
    """As stage `embed` does, to disk."""
    how = {"batch_size": args.batch, "threads": 2, "device": args.device, "dtype": dtype}
    embed.extract(cohort, encoder, ["mean", "max"], out, out.parent / "scratch", **how)


@torch.inference_mode()
def plain(encoder: Encoder, cohort: Cohort, rows: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """Batches in float32, kept in memory."""
    parts = []
    for start in range(0, len(rows), args.batch):
        x = torch.from_numpy(encoder.input_spec.windows(cohort, rows[start : start + args.batch])).to(args.device)
        tokens = encoder(x.flatten(0, 1))
        parts.append(tokens.mean(dim=1).unflatten(0, x.shape[:2]).mean(dim=1).cpu().numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def reference(encoder: Encoder, cohort: Cohort, folder: Path, args: argparse.Namespace) -> None:
    """One record at a time, one file per record, then a CSV of pooled vectors."""
    tokens = folder / "tokens"
    tokens.mkdir(exist_ok=True)
    for row in range(len(cohort)):
        x = torch.from_numpy(encoder.input_spec.windows(cohort, np.array([row]))).to(args.device)
        torch.save(encoder(x[0]).cpu(), tokens / f"{row}.pt")
    pooled = {row: torch.load(tokens / f"{row}.pt").amax(dim=1).mean(dim=0).tolist() for row in range(len(cohort))}
    pd.DataFrame.from_dict(pooled, orient="index").to_csv(folder / "max.csv")


def scores(config: EmbedConfig, cohort: Cohort, args: argparse.Namespace) -> None:
    """Print validation scores of a logistic head on float32 and on bfloat16 embeddings."""
    split = make_splits(cohort.records, config.cohort.split)[0]
    labels = cohort.binary()
    for one in embed.representations(config):
        if one.seed or one.encoder == embed.FEATURES:
            continue
        encoder, found = embed.load_encoder(config, one, split), {}
        for dtype in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory() as folder:
                cure(encoder, cohort, Path(folder) / "out", dtype, args)
                z = np.load(Path(folder) / "out" / "mean.npy")
            y = [labels.y[:, labels.names.index(task)] for task in SUPERCLASSES]
            found[dtype] = [
                roc_auc_score(t[split.val], fit_head("logistic", z, t, split).score(z[split.val])) for t in y
            ]
        exact, reduced = (np.array(found[dtype]) for dtype in ("float32", "bfloat16"))
        print(
            f"{one.folder}: {exact.mean():.4f} float32, {reduced.mean() - exact.mean():+.4f} with bfloat16; single "
            f"superclasses differ by up to {np.abs(reduced - exact).max():.4f}"
        )


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of how many times faster."""
    return float(np.median(np.array(slow) / np.array(fast)))


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Operations per second of a large matrix product, best of five."""
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    return 2 * size**3 / min(seconds(lambda: (a @ a)[0, 0].item()) for _ in range(5))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = perf_counter()
    work()
    return perf_counter() - start


if __name__ == "__main__":
    main()

"""Own ECGs from WFDB files to embeddings in a file, against one record at a time, in the same run.

    python benchmarks/own.py --folder $CURE_PTBXL_DIR/records100 [--model leadcnn] [--n 1000] [--rounds 3]

* `alone`: wfdb reads a record, it is conditioned and passed through the encoder by itself, which has all threads; the
  vectors are written to a Parquet file at the end. No quality flag, no check of a checksum, no part that survives.
* `cure`: `cure embed` as it runs by default, a thread reading while another part is encoded (beyond 2,048 records, one
  process per thread, started within the time that is measured).

Weights are random: speed does not depend on them. The ways take turns; what is printed is the median over rounds, and
the ratio the median of the rounds' ratios. `CPU ms` is processor time per record, children included, which other load
on the machine changes little. All give the same embeddings; the largest difference is printed.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import joblib
import numpy as np
import pandas as pd
import torch
import wfdb

from cure import models
from cure.models import Encoder
from cure.models.base import pool
from cure.own.embed import How, embed
from cure.own.find import Item, find
from cure.own.record import Given
from cure.signals import LEADS


def main() -> None:
    """Measure and print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="WFDB records of twelve leads in mV")
    parser.add_argument("--model", default="leadcnn")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=joblib.cpu_count(), help="of torch, and processes that read")
    args = parser.parse_args()
    items, cores = find([args.folder], ["wfdb"])[: args.n], args.threads
    torch.set_num_threads(cores)
    encoder = models.load(args.model)
    took: dict[str, list[float]] = {"alone": [], "cure": []}
    used: dict[str, list[float]] = {name: [] for name in took}
    with tempfile.TemporaryDirectory() as folder:
        out = {name: Path(folder) / f"{name}.parquet" for name in took}
        alone(encoder, items[:8], out["alone"])  # imports and first calls are nobody's time
        for _ in range(args.rounds):
            for name, work in (
                ("alone", lambda: alone(encoder, items, out["alone"])),
                ("cure", lambda: cure(args.model, items, out["cure"], cores)),
            ):
                wall, cpu = seconds(work)
                took[name].append(wall)
                used[name].append(cpu)
        vectors = {name: np.stack(pd.read_parquet(file)["embedding"]) for name, file in out.items()}
    apart = np.abs(vectors["cure"] - vectors["alone"]).max()
    row: dict[str, object] = {"model": args.model, "n": len(items), "threads": cores}
    row |= {f"{name} records/s": len(items) / np.median(each) for name, each in took.items()}
    row["ratio"] = np.median(np.divide(took["alone"], took["cure"]))
    row |= {f"{name} CPU ms": 1000 * np.median(each) / len(items) for name, each in used.items()}
    row["apart"] = apart / np.abs(vectors["alone"]).max()
    print(pd.DataFrame([row]).to_string(index=False, float_format="%.3g"))


@torch.inference_mode()
def alone(encoder: Encoder, items: list[Item], out: Path) -> None:
    """One record after the other."""
    rows = []
    for item in items:
        record = wfdb.rdrecord(str(item.path.with_suffix("")))
        order = [[name.upper() for name in record.sig_name].index(lead.upper()) for lead in LEADS]
        x = record.p_signal.T[None, order].astype(np.float32)
        windows = torch.from_numpy(encoder.input_spec.apply(x, int(record.fs))[0])
        rows.append({"record": item.name, "embedding": pool(encoder(windows), "mean").mean(dim=0).numpy()})
    pd.DataFrame(rows).to_parquet(out)


def cure(model: str, items: list[Item], out: Path, cores: int) -> None:
    """As `cure embed` does."""
    how = How(threads=cores, workers=cores, restart=True)
    embed(items, Given(), out, model=model, weights="random", how=how)


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall time and processor time, that of finished children included."""
    wall, before = perf_counter(), sum(os.times()[:4])
    work()
    return perf_counter() - wall, sum(os.times()[:4]) - before


if __name__ == "__main__":
    main()

"""Reading records: the packed cohort store against `wfdb.rdrecord`, on the same simulated records.

    python benchmarks/store.py

Random access and one bulk read of all records at 100 Hz as float32 mV, in turns, best of several rounds each. The floor
is a plain copy of the bytes that the bulk read returns.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import wfdb

from cure.cohorts import ptbxl, synthetic
from cure.cohorts.base import Cohort
from cure.cohorts.pack import pack


def main() -> None:
    """Write a simulated folder, pack it, and time both ways of reading it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        synthetic.write(raw, n_records=args.records, seed=0, max_id_500=0)
        metadata = ptbxl.read_metadata(raw)
        files = {str(file.relative_to(raw)) for file in raw.glob("records*/*/*")}
        about = {"name": "bench", "manifest": ""}
        store = Path(folder) / "p" / "bench"
        pack(raw, metadata, ptbxl.read_statements(raw), files, about, store, Path(folder) / "scratch")
        compare(Cohort.open(store), [str(raw / name) for name in metadata["filename_lr"]], args.rounds)


def compare(cohort: Cohort, names: list[str], rounds: int) -> None:
    """Print records per second of each way and the ratios."""
    order = np.random.default_rng(0).permutation(len(names))
    expected = cohort.signals(np.arange(len(names)), 100)
    ways = {
        "wfdb.rdrecord": lambda: [wfdb.rdrecord(names[i]).p_signal for i in order],
        "store, one by one": lambda: [cohort.signals(np.array([i]), 100) for i in order],
        "store, in bulk": lambda: cohort.signals(np.arange(len(names)), 100),
        "copying the bytes": expected.copy,
    }
    np.testing.assert_allclose(wfdb.rdrecord(names[7]).p_signal.T, expected[7], atol=1e-6)
    speed = {way: len(names) / min(seconds(read) for _ in range(rounds)) for way, read in ways.items()}
    for way, rate in speed.items():
        print(f"{way:20s} {rate:12,.0f} records/s {rate / speed['wfdb.rdrecord']:10.1f}x wfdb.rdrecord")


def seconds(read: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = perf_counter()
    read()
    return perf_counter() - start


if __name__ == "__main__":
    main()

"""Records per second of the simulator beside neurokit2's, on one core: run `python benchmarks/simulate.py`.

Both make 12 leads of 10 s at 500 Hz with noise, in one process, taking turns; the median round counts. neurokit2 makes
one record per call (method "multileads": McSharry's model for each lead). CPU time is fair on a busy machine.
"""

import argparse
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy starts its threads

from collections.abc import Callable  # noqa: E402
from time import perf_counter, process_time  # noqa: E402

import neurokit2 as nk  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from cure import simulate  # noqa: E402
from cure.cohorts import synthetic  # noqa: E402


def main() -> None:
    """Time both simulators and print records per second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=512, help="records per round of ours")
    parser.add_argument("--peer", type=int, default=4, help="records per round of neurokit2")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    patients = synthetic.draw_records(args.records, np.random.default_rng(0)).drop(columns=synthetic.DEMOGRAPHY)
    simulate.simulate(patients.head(32), fs=500, seconds=10, rng=np.random.default_rng(0))  # warm
    nk.ecg_simulate(duration=10, sampling_rate=500, method="multileads", random_state=0)
    rounds = []
    for seed in range(args.rounds):
        ours = clock(lambda s=seed: simulate.simulate(patients, fs=500, seconds=10, rng=np.random.default_rng(s)))
        peer = clock(
            lambda s=seed: [
                nk.ecg_simulate(duration=10, sampling_rate=500, method="multileads", random_state=100 * s + k)
                for k in range(args.peer)
            ]
        )
        rounds.append([args.records / ours, args.peer / peer])
    (wall, cpu), (peer_wall, peer_cpu) = np.median(rounds, axis=0)
    print(f"12 leads x 10 s at 500 Hz, one core, median of {args.rounds} rounds; records per second")
    print(f"{'':28}{'wall':>9}{'CPU':>9}")
    print(f"{'cure.simulate (with truth)':28}{wall:9.1f}{cpu:9.1f}")
    print(f"{'neurokit2 ' + nk.__version__ + ' multileads':28}{peer_wall:9.2f}{peer_cpu:9.2f}")
    print(f"{'ratio':28}{wall / peer_wall:9.0f}{cpu / peer_cpu:9.0f}")


def clock(job: Callable[[], object]) -> NDArray[np.floating]:
    """Wall and CPU seconds of a job."""
    start = np.array([perf_counter(), process_time()])
    job()
    return np.array([perf_counter(), process_time()]) - start


if __name__ == "__main__":
    main()

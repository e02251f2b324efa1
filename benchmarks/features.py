"""Hand-crafted features: `cure.features` against neurokit2's per-beat delineation, on the same records in one run.

    python benchmarks/features.py [--records records.npy --fs 100]

The peer is what a script around neurokit2 does: clean one lead, find R peaks, delineate every beat (discrete wavelets).
It measures lead II alone; `ecg_features` measures twelve leads. `records.npy` is (n, 12, samples) in mV; without it the
records are made from neurokit2's own simulation. Single process, one thread; each side is timed on CPU seconds,
`--repeats` times in turn, and the median counts. A last line says how far the two agree on what both measure.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import warnings
from collections.abc import Callable

import neurokit2 as nk
import numpy as np
import pandas as pd

from cure.features import ecg_features


def simulated(n: int, fs: int, rng: np.random.Generator) -> np.ndarray:
    """Records of 10 s, (n, 12, 10 * fs) in mV: 16 simulated leads of 50 to 110 bpm, scaled, each with its own noise."""
    leads = [
        nk.ecg_simulate(duration=10, sampling_rate=fs, heart_rate=rate, noise=0, random_state=i, method="ecgsyn")
        for i, rate in enumerate(np.linspace(50, 110, 16))
    ]
    scale = np.array([0.8, 1.0, 0.4, -0.9, 0.3, 0.7, -0.5, 0.6, 0.9, 1.2, 1.1, 0.9])[:, None]
    picked = np.stack(leads)[rng.integers(len(leads), size=n), None]
    return (scale * picked + 0.02 * rng.standard_normal((n, 12, 10 * fs))).astype(np.float32)


def peer(signals: np.ndarray, fs: int) -> pd.DataFrame:
    """Rate, PR, QRS and QT of lead II by neurokit2, beat by beat, the median over beats; NaN where it fails."""
    rows = []
    for lead_ii in signals[:, 1].astype(float):
        try:
            clean = nk.ecg_clean(lead_ii, sampling_rate=fs)
            _, info = nk.ecg_peaks(clean, sampling_rate=fs)
            _, waves = nk.ecg_delineate(clean, info["ECG_R_Peaks"], sampling_rate=fs, method="dwt")
            p_on, qrs_on, qrs_off, t_off = (
                np.asarray(waves[f"ECG_{name}"], float) / fs * 1000
                for name in ("P_Onsets", "R_Onsets", "R_Offsets", "T_Offsets")
            )
            rate = 60 * fs / np.median(np.diff(info["ECG_R_Peaks"]))
            rows.append([rate, *(np.nanmedian(d) for d in (qrs_on - p_on, qrs_off - qrs_on, t_off - qrs_on))])
        except (ValueError, IndexError, ZeroDivisionError):  # what it raises on records without enough beats
            rows.append([np.nan] * 4)
    return pd.DataFrame(rows, columns=["heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms"])


def timed(work: Callable[[np.ndarray, int], pd.DataFrame], signals: np.ndarray, fs: int) -> tuple[float, pd.DataFrame]:
    """CPU seconds per record, and the result."""
    start = time.process_time()
    result = work(signals, fs)
    return (time.process_time() - start) / len(signals), result


def main() -> None:
    """Time both, print records per second, the ratio and the agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", help="(n, 12, samples) mV array in .npy; simulated when not given")
    parser.add_argument("--fs", type=int, default=100, help="sampling rate in Hz")
    parser.add_argument("--n", type=int, default=512, help="records for cure.features")
    parser.add_argument("--peer-n", type=int, default=64, help="of these, records for neurokit2, which is slower")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    if args.records:
        signals = np.load(args.records, mmap_mode="r")[: args.n]
    else:
        signals = simulated(args.n, args.fs, np.random.default_rng(0))
    ecg_features(signals[:64], args.fs)  # imports and caches are nobody's time
    ours, theirs = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(args.repeats):
            seconds, features = timed(ecg_features, signals, args.fs)
            ours.append(seconds)
            seconds, reference = timed(peer, signals[: args.peer_n], args.fs)
            theirs.append(seconds)
    for who, times, n in (
        ("cure.features, 12 leads", ours, len(signals)),
        ("neurokit2, lead II", theirs, len(reference)),
    ):
        print(f"{who:24s} {1 / np.median(times):8.1f} records/s (one core, {args.fs} Hz, {n} records)")
    print(f"{'ratio':24s} {np.median(theirs) / np.median(ours):8.1f}")
    for column in reference.columns:
        gap = (features[column][: len(reference)] - reference[column]).dropna()
        print(
            f"{column:24s} difference: median {gap.median():+.1f}, absolute {gap.abs().median():.1f} (n = {len(gap)})"
        )


if __name__ == "__main__":
    main()

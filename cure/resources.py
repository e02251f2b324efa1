"""What a stage cost: wall and CPU seconds and peak memory, beside the machine they were measured on.

Timings differ from run to run. They are written outside everything that DVC hashes, and joined into a table only by the
last stage.
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

from cure.paths import atomic


@dataclass
class Workers:
    """Processes that a child had started when `look` was last called: who kills the child does not get their times.

    Attributes
    ----------
    cpu_s, peak_bytes : float
        Processor time of all of them, and peak memory of the largest.
    """

    cpu_s: float = 0.0
    peak_bytes: float = 0.0

    def look(self, **_: object) -> None:
        """Measure those that run now, in place of what the last look found; takes what a notebook's client passes."""
        self.cpu_s = 0.0
        me = psutil.Process()
        children = {child.pid for child in me.children()}
        for worker in me.children(recursive=True):
            if worker.pid in children:
                continue
            with suppress(psutil.Error, OSError):  # it has just ended: the child has its times
                times = worker.cpu_times()
                self.cpu_s += times.user + times.system + times.children_user + times.children_system
                self.peak_bytes = max(self.peak_bytes, _peak(worker))


def _peak(process: psutil.Process) -> float:
    """Peak resident memory in bytes where the system tells it (Linux), else what it holds now."""
    status = Path(f"/proc/{process.pid}/status")
    if status.is_file():
        lines = (line.split() for line in status.read_text().splitlines())
        found = [float(words[1]) * 1024 for words in lines if words[0] == "VmHWM:"]
        if found:
            return found[0]
    return float(process.memory_info().rss)


@contextmanager
def measured(name: str, folder: Path) -> Iterator[Workers]:
    """Measure the child processes that run inside the block (the stage's kernel and its workers).

    Writes `<folder>/<name>.json`, only if the block succeeds. Peak memory is that of the largest single process.
    Workers that outlive their parent are counted as they were when the block last called `look` of what it is given.
    """
    workers = Workers()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    yield workers
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime + workers.cpu_s
    # Linux counts kibibytes, macOS bytes.
    peak = max(after.ru_maxrss * (1 if sys.platform == "darwin" else 1024), workers.peak_bytes)
    row = {
        "stage": name,
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(cpu, 1),
        "peak_rss_mb": round(peak / 1e6),
        "machine": machine(),
    }
    with atomic(folder / f"{name}.json") as part:
        part.write_text(json.dumps(row, indent=2) + "\n")


def machine() -> dict[str, str | int]:
    """Processor, cores, memory and interpreter: enough to judge a timing, nothing that names the machine."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def table(folder: Path, order: list[str]) -> pd.DataFrame:
    """One row per stage measured so far, in the pipeline's order."""
    rows = [json.loads((folder / f"{name}.json").read_text()) for name in order if (folder / f"{name}.json").is_file()]
    columns = ["stage", "wall_s", "cpu_s", "peak_rss_mb", "cpu", "cores"]
    return pd.DataFrame([{**row, **row["machine"]} for row in rows], columns=columns)

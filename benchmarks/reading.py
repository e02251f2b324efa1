"""How long a reader waits: each notebook run again in a warm kernel after one parameter was changed.

    python benchmarks/reading.py                       # all notebooks, profile demo, after `make repro`
    python benchmarks/reading.py explain quickstart    # some

For each notebook: seconds of its first run (imports, the profile's values), and seconds of all its cells again with the
change that `CHANGES` names, in the same kernel, on the embeddings that the pipeline cached; beside it the processor
time that this took, in all processes, which other load on the machine hardly changes. With `--imports-only` the first
run is of the imports alone. Nothing that the pipeline tracks is written. The project's limit is 10 s; above it a row is
marked.
"""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from time import perf_counter

import nbclient
import nbformat
import psutil

from cure import config, notebooks, paths

#: What a reader of each notebook is likely to change first.
CHANGES: dict[str, dict] = {
    "download": {"max_id_500": 50},
    "prepare": {"chunk_size": 128},
    "pretrain": {"epochs": 1},
    "embed": {"published": [], "poolings": ["last"]},
    "heads": {"heads": ["logistic"], "published": []},
    "ablations": {"head": "xgboost"},
    "protocols": {"tasks": ["CRBBB"]},
    "transfer": {"heads": ["xgboost"]},
    "finetune": {"strategies": ["linear"]},
    "efficiency": {"trained": [], "heads": ["lasso"]},
    "posttrain": {},
    "leads": {},
    "structure": {"k": 5},
    "probes": {"task": "CD"},
    "explain": {"tasks": ["CRBBB"]},
    "faithfulness": {"tasks": ["AFIB"]},
    "quickstart": {"task": "CRBBB"},
    "report": {"metric": "auprc"},
}
LIMIT_S = 10.0


def main() -> None:
    """Print a line per notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help="default: all that have a change here")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--imports-only", action="store_true", help="spare the first run")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| notebook | change | first run (s) | again (s) | processor (s) | slowest cell |\n|---|---|---|---|---|---|")
    for stage in args.stages or [name for name, change in CHANGES.items() if change]:
        first, again, cpu, slowest = waits(stage, args.profile, CHANGES[stage], args.imports_only)
        change = ", ".join(f"{name} = {value!r}" for name, value in CHANGES[stage].items())
        mark = " (!)" if again > LIMIT_S else ""
        name = notebooks.file_name(stage).removesuffix(".ipynb")
        print(f"| {name} | `{change}` | {first:.1f} | {again:.1f}{mark} | {cpu:.1f} | {slowest} |", flush=True)


def waits(stage: str, profile: str, change: dict, imports_only: bool) -> tuple[float, float, float, str]:
    """Seconds of the first run, of the second with a change, processor seconds of that, and its slowest cell."""
    given = config.parameters(stage, profile)
    notebook = nbformat.read(paths.root() / "notebooks" / notebooks.file_name(stage), as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = {"metadata": {"path": str(Path(elsewhere))}}
        client = nbclient.NotebookClient(notebook, timeout=3600, resources=folder)
        with client.setup_kernel():
            kernel = psutil.Process(client.km.provisioner.pid)
            cell.source = _values(given)
            first = sum(_seconds(client, notebook, 1 if imports_only else None).values())
            cell.source = _values({**given, **change})
            before = _processor(kernel)
            again = _seconds(client, notebook)
            cpu = _processor(kernel) - before
    slowest = max(again, key=again.__getitem__)
    line = next(line for line in notebook.cells[slowest].source.splitlines() if not line.startswith("#"))
    return first, sum(again.values()), cpu, f"{again[slowest]:.1f} s: `{line.replace('|', '/')}`"


def _processor(kernel: psutil.Process) -> float:
    """Processor seconds of a kernel and all that it started."""
    total = 0.0
    for one in (kernel, *kernel.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            about = one.cpu_times()
            total += about.user + about.system + about.children_user + about.children_system
    return total


def _values(settings: dict) -> str:
    return "\n".join(f"{name} = {value!r}" for name, value in settings.items())


def _seconds(
    client: nbclient.NotebookClient, notebook: nbformat.NotebookNode, only: int | None = None
) -> dict[int, float]:
    """Seconds of each code cell, or of the first ones, by its position."""
    found = {}
    for i in [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"][:only]:
        start = perf_counter()
        client.execute_cell(notebook.cells[i], i)
        found[i] = perf_counter() - start
    return found


if __name__ == "__main__":
    main()

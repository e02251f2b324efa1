"""Notebooks as pipeline stages: clean copies in, executed and normalised copies out.

`clean` strips outputs, so that running a notebook in JupyterLab changes nothing that a stage depends on. `run` executes
the clean copy through papermill with the profile's settings and drops from the result all that differs between two
equal runs.
"""

import ast
import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbformat import NotebookNode
from traitlets.config import Config

from cure import config, paths, progress, resources
from cure.errors import CureError

#: Environment of a stage: what would otherwise differ between two runs of the same code on the same machine.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1767225600",
    "MPLBACKEND": "Agg",
    # Sums differ between thread counts; parallel work is done by processes of one thread each.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

#: The kernel talks over sockets in the file system where there are such: TCP would be open to every user of the
#: machine.
_TRANSPORT = Config({"KernelManager": {"transport": "ipc" if os.name == "posix" else "tcp"}})
#: Seconds that a kernel has to end after the signal to.
_PATIENCE_S = 10.0


class _Kernel(AsyncKernelManager):
    """Ends a kernel and its workers by one signal: what a stage made is written by then.

    Spares two seconds of taking interpreters apart. What tidies up after workers (loky's resource tracker) ignores this
    signal, and does so when they are gone.
    """

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """Called once, when all cells have run, one has failed, or the stage was interrupted."""
        if self.provisioner is not None:
            await self.provisioner.terminate(restart=restart)
            try:
                await asyncio.wait_for(self.provisioner.wait(), timeout=_PATIENCE_S)
            except TimeoutError:  # a cell has its own idea of what the signal means
                await self.provisioner.kill(restart=restart)
                await self.provisioner.wait()
        await self.cleanup_resources(restart=restart)


def file_name(stage: str) -> str:
    """File name of a stage's notebook."""
    return f"{config.STAGES[stage]}_{stage}.ipynb"


def clean() -> list[Path]:
    """Write a copy of every notebook without outputs, run metadata and default parameters to `data/notebooks/`.

    The defaults are profile `demo`'s, for readers; a stage gets its profile's. Without them in the copy, tuning one
    profile does not rerun the others.

    Raises
    ------
    CureError
        If a notebook is not valid, or its parameters cell is more than a list of settings.
    """
    target = paths.root() / "data" / "notebooks"
    written = []
    for source in sorted((paths.root() / "notebooks").glob("*.ipynb")):
        try:
            notebook = nbformat.read(source, as_version=4)
            nbformat.validate(notebook)
        except (nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
            raise CureError(f"notebooks/{source.name} is not a valid notebook: {str(error).splitlines()[0]}") from error
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []) and (line := _not_a_setting(cell.source)) is not None:
                raise CureError(
                    f"notebooks/{source.name}, parameters cell, line {line}: the cell holds one setting a line and "
                    "nothing else, such as `seeds = [0, 1]  # initialisations`"
                )
        with paths.atomic(target / source.name) as part:
            nbformat.write(_without_defaults(stripped(notebook)), part)
        written.append(target / source.name)
    return written


def stripped(notebook: NotebookNode) -> NotebookNode:
    """Remove outputs, counts and run metadata; keep sources, tags and order. Cell ids become sequential."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = NotebookNode({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def _without_defaults(notebook: NotebookNode) -> NotebookNode:
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            names = [re.sub(r"^(\w+) = [^#]*?(\s*#.*)?$", r"\1 = None\2", line) for line in cell.source.splitlines()]
            cell.source = "\n".join(["# The next cell sets these to the values of the profile.", *names])
    return notebook


def _not_a_setting(source: str) -> int | None:
    """Number of the first line of a parameters cell that is not one whole assignment to a name, a comment or empty."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return error.lineno
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name()]) if node.lineno == node.end_lineno:
                continue
        return node.lineno
    return None


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Drop from an executed notebook what two equal runs do not share.

    That is: timings, random cell ids, the interpreter's version, stderr, and how stdout happened to be cut into chunks.
    """
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    counts = [cell.get("execution_count") for cell in notebook.cells]
    stripped(notebook)
    for cell, made, count in zip(notebook.cells, outputs, counts, strict=True):
        if cell.cell_type != "code":
            continue
        cell.execution_count = count
        for output in made:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            previous = cell.outputs[-1] if cell.outputs else None
            if output.output_type == "stream" and previous is not None and previous.output_type == "stream":
                previous.text += output.text
            else:
                cell.outputs.append(output)
    return notebook


def run(stage: str, profile: str) -> Path:
    """Execute one stage of one profile; the executed notebook lies beside the tables and figures that it made.

    Returns
    -------
    Path
        `data/stages/<profile>/<stage>/notebook.ipynb`.

    Raises
    ------
    CureError
        For an unknown stage or profile, a setting that does not fit, or a cell that fails: then the message says which
        and what, and the executed part is kept for reading where DVC does not delete it.
    """
    # papermill pulls in a second of imports that `cure --help` and `clean` should not pay for.
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    if stage not in config.STAGES:
        raise CureError(f"unknown stage '{stage}': choose one of {', '.join(config.STAGES)}")
    settings = config.parameters(stage, profile)
    source = paths.root() / "data" / "notebooks" / file_name(stage)
    if not source.is_file():
        raise CureError(f"no clean copy data/notebooks/{source.name}: make it with `cure clean`")
    if _is_stale(source):
        print(f"cure: notebooks/{source.name} was edited after `cure clean`; running the older copy", file=sys.stderr)
    os.environ.update(ENVIRONMENT, **{progress.TERMINAL: _terminal(), paths.STAGE: stage})
    out = paths.stage(profile, stage)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    attempt = paths.scratch(profile, "notebooks") / source.name
    attempt.parent.mkdir(parents=True, exist_ok=True)
    try:
        with resources.measured(stage, paths.resources(profile)) as workers:
            execute_notebook(
                str(source),
                str(attempt),
                settings,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(paths.root()),
                config=_TRANSPORT,
                kernel_manager_class=_Kernel,
                on_cell_executed=workers.look,
            )
    except PapermillExecutionError as error:
        where = attempt.relative_to(paths.root())
        raise CureError(
            f"stage {stage} of profile {profile} failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
            f"the notebook up to there, with its traceback: {where}"
        ) from None
    result = out / "notebook.ipynb"
    with paths.atomic(result) as part:
        nbformat.write(normalised(nbformat.read(attempt, as_version=4)), part)
    attempt.unlink()
    # Only now: finished trainings and shards would be lost if a later cell had failed.
    shutil.rmtree(paths.scratch(profile, stage), ignore_errors=True)
    return result


def _is_stale(copy: Path) -> bool:
    edited = _without_defaults(stripped(nbformat.read(paths.root() / "notebooks" / copy.name, as_version=4)))
    return edited != nbformat.read(copy, as_version=4)


def _terminal() -> str:
    """Device of the terminal that watches this run, for progress bars inside the kernel; empty when there is none."""
    return os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else ""

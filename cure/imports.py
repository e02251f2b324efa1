"""What code a stage runs: the modules of `cure` that its notebook imports, directly or not, each with its hash.

`cure clean` writes one small file per stage to `data/code/`, and a stage depends on that file in `dvc.yaml`: an edited
module reruns the stages that use it and no others, and no list of modules has to be kept by hand.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

import nbformat

from cure import config, notebooks, paths

#: The folder that holds the package.
_HOME = Path(__file__).resolve().parents[1]
#: Stage `render` has no notebook.
_RENDER = "cure/report.py"


def write() -> None:
    """Write `data/code/<stage>.txt` for every stage: a line per module, its SHA-256 and its path."""
    target = paths.root() / "data" / "code"
    for stage in [*config.STAGES, "render"]:
        lines = [f"{hashlib.sha256((_HOME / file).read_bytes()).hexdigest()}  {file}\n" for file in modules(stage)]
        with paths.atomic(target / f"{stage}.txt") as part:
            part.write_text("".join(lines))


def modules(stage: str) -> list[str]:
    """Files of the package that a stage runs, sorted: what its notebook imports, and what executes that."""
    if stage == "render":
        todo = {_RENDER}
    else:
        notebook = nbformat.read(paths.root() / "notebooks" / notebooks.file_name(stage), as_version=4)
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        todo = {*imported("\n".join(cells)), *imported("import cure.notebooks")}
    done: set[str] = set()
    while todo:
        file = todo.pop()
        done.add(file)
        todo |= _imported_by(file) - done
    return sorted(done)


@cache
def _imported_by(file: str) -> frozenset[str]:
    return imported((_HOME / file).read_text())


def imported(source: str) -> frozenset[str]:
    """Files of the package that some code imports itself, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found.update(*(_files(name) for name in names))
    return frozenset(found)


def _files(name: str) -> set[str]:
    """Files that importing a module runs, packages above it included; none for what is not in `cure`."""
    parts = name.split(".")
    found = set()
    for depth in range(1, len(parts) + 1 if parts[0] == "cure" else 1):
        path = _HOME.joinpath(*parts[:depth])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            found.add(file.relative_to(_HOME).as_posix())
    return found

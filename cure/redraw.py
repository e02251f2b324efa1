"""Figures drawn again from published tables, by the notebooks' own lines, and compared with the published pictures."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import image, pyplot

from cure import config, paths, recompute, replay
from cure.errors import CureError
from cure.progress import progress

Array = np.ndarray
#: The comparison of objectives, which its notebook leaves to one function.
_FAMILIES = (
    "_families.drawn(*(_families.main_rows(_table('pretraining_families'), part) for part in ('validation', 'test')), "
    "'macro AUROC over superclasses')"
)
#: A pixel differs when a colour is off by more than this, of 255: tables hold six digits, which moves lines by
#: less than anyone can see.
_STEP = 64
#: Largest share of pixels that may differ.
TOLERANCE = 4e-5


class Drawn(NamedTuple):
    """What became of one figure: `problem` is empty where it follows; `skipped` says why it was not drawn again."""

    stage: str
    figure: str
    problem: str = ""
    skipped: str = ""


def check(profile: str, stages: list[str] | None = None, *, root: Path | None = None) -> Iterator[Drawn]:
    """Draw every figure again that follows from tables, and compare it with the published picture, pixel by pixel.

    Parameters
    ----------
    profile : str
    stages : list of str, optional
        By default all that have a notebook.
    root : Path, optional
        Holds `tables/<profile>` and `figures/<profile>`; by default the project.

    Yields
    ------
    Drawn
        Figures that show signals, models or records are skipped: no table holds what they show.
    """
    root = root or paths.root()
    folder = root / "figures" / profile
    left = {file.stem for file in folder.glob("*.png")}
    for stage in stages or list(config.STAGES):
        try:
            program = replay.program(stage, "tables")
        except CureError:
            continue  # its notebook is not part of this version
        for one in _stage(profile, program, root, folder):
            if one.figure in left or one.problem or one.skipped:
                left.discard(one.figure)
                yield one
    if stages is None:
        for name in sorted(left):
            yield Drawn("", name, skipped="drawn from records or models, not from tables alone")


def _stage(profile: str, program: replay.Program, root: Path, folder: Path) -> Iterator[Drawn]:
    tables = root / "tables" / profile
    published = recompute.Published(profile, tables, root / "results" / "predictions" / profile)
    mpl.use("agg")
    with tempfile.TemporaryDirectory() as temporary:
        given = {"_predicted": published.predicted, "_table": _counted(published), "_folder": Path(temporary)}
        outputs = [output for output in program.figures if _follows(program, output, given)]
        if program.stage == "pretrain" and (tables / "pretraining_families.csv").is_file():
            from cure import families

            given["_families"] = families
            outputs.append(replay.output("pretraining_families", _FAMILIES))
        todo = program.run(outputs, config.parameters(program.stage, profile), given)
        shown = progress(todo, desc=f"figures of {program.stage}", total=len(outputs), unit="figure")
        while True:
            with contextlib.redirect_stdout(io.StringIO()):  # what saves a figure also shows it
                found = next(iter(shown), None)
            if found is None:
                break
            output, made, error = found
            for name, picture in _pictures(output, made, Path(temporary)):
                yield _compared(program.stage, name, folder, picture)
            if isinstance(error, recompute.Missing) and not (folder / f"{output.name}.png").is_file():
                yield Drawn(program.stage, output.name, skipped=f"profile {profile} was published without it")
            elif error is not None:
                yield Drawn(program.stage, output.name, f"cannot be drawn from the tables: {error}")
            pyplot.close("all")


def _counted(published: recompute.Published) -> Callable[[str], pd.DataFrame]:
    """Reads tables with counts as whole numbers, as they were before they were written: labels of axes show them."""

    def read(name: str) -> pd.DataFrame:
        table = published.table(name)
        lost = [
            column for column in table
            if (column == "n" or column.startswith("n_")) and table[column].dtype.kind == "f"
            and table[column].isna().any() and (table[column].dropna() % 1 == 0).all()
        ]  # fmt: skip
        return table.astype(dict.fromkeys(lost, "Int64"))

    return read


def _follows(program: replay.Program, output: replay.Output, given: dict[str, Any]) -> bool:
    lines = program.needed(output, given)
    text = program.text(output, lines)
    return "_table(" in text and not any(call in text for call in replay.BEFORE)


def _pictures(output: replay.Output, made: Any, temporary: Path) -> Iterator[tuple[str, Array]]:
    """What was drawn, (height, width, 4) uint8: a figure, or those that a function has saved by itself."""
    if made is not None:
        out, dpi = io.BytesIO(), mpl.rcParams["savefig.dpi"]
        made.savefig(out, format="raw")  # the pixels of a PNG, without packing them
        width, height = (int(side * dpi + 1e-6) for side in made.get_size_inches())
        yield output.name, np.frombuffer(out.getvalue(), np.uint8).reshape(height, width, 4)
    for file in sorted((temporary / "figures").glob("*.png")):
        yield file.stem, _pixels(file)
        file.unlink()


def _pixels(file: Path) -> Array:
    picture = image.imread(file, format="png")
    if picture.shape[-1] == 3:
        picture = np.dstack([picture, np.ones(picture.shape[:2], picture.dtype)])
    return np.round(picture * 255).astype(np.uint8)


def _compared(stage: str, name: str, folder: Path, picture: Array) -> Drawn:
    file = folder / f"{name}.png"
    if not file.is_file():
        return Drawn(stage, name, f"{file.name} is not among the published figures")
    try:
        published = _pixels(file)
    except (ValueError, OSError, SyntaxError) as error:
        return Drawn(stage, name, f"{file.name} is no picture: {error}")
    return Drawn(stage, name, difference(published, picture))


def difference(published: Array, drawn: Array) -> str:
    """How two pictures, (height, width, 4) uint8, differ; empty where nobody could tell them apart."""
    if published.shape != drawn.shape:
        (a, b), (c, d) = published.shape[:2], drawn.shape[:2]
        return f"it measures {b} x {a}, drawn again {d} x {c}"
    y, x = np.nonzero((np.abs(published.astype(np.int16) - drawn) > _STEP).any(axis=-1))
    # Lines and markers are drawn on whole pixels: the seventh digit of a number can move them by one.
    wrong = ~(_near(published, drawn, y, x) & _near(drawn, published, y, x))
    share = wrong.sum() / published[..., 0].size
    if share <= TOLERANCE:
        return ""
    where = f"x {x[wrong][0]}, y {y[wrong][0]}"
    return f"{share:.3%} of its pixels differ from the picture that the tables give, the first at {where}"


def _near(one: Array, other: Array, y: Array, x: Array) -> Array:
    """Whether the other picture has the colour of each of these pixels within a pixel of its place."""
    around = np.pad(other, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.int16)
    shifts = product(range(3), repeat=2)
    same = [(np.abs(one[y, x] - around[y + down, x + right]) <= _STEP).all(axis=-1) for down, right in shifts]
    return np.any(same, axis=0)

"""Progress bars that reach a person and never a stored notebook."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")

#: Set by `cure run` to the terminal it was started from (or to nothing when there is none).
TERMINAL = "CURE_TERMINAL"


def progress(items: Iterable[T], desc: str = "", total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate over `items` behind a progress bar.

    In a pipeline stage the bar goes to the terminal that `cure run` was started from, so that the executed notebook
    stays the same from run to run; without a terminal there is no bar. In JupyterLab or a shell it is an ordinary bar.
    """
    terminal = os.environ.get(TERMINAL)
    if terminal is None:
        yield from tqdm(items, desc=desc, total=total, unit=unit, leave=False, disable=not _someone_watches())
    elif terminal == "":
        yield from items
    else:
        with open(terminal, "w") as tty:  # noqa: PTH123 - a device, not a file
            yield from tqdm(items, desc=desc, total=total, unit=unit, leave=False, file=tty, disable=False)


def _someone_watches() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()

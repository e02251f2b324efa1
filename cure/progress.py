"""Progress bars that reach a person and never a stored notebook.

In a pipeline stage a bar goes to the terminal that `cure run` was started from, so that the executed notebook stays the
same from run to run; without a terminal there is no bar. In JupyterLab or a shell it is an ordinary bar.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import tqdm.auto
import tqdm.std

T = TypeVar("T")

#: Set by `cure run` to the terminal it was started from (or to nothing when there is none).
TERMINAL = "CURE_TERMINAL"


def progress(items: Iterable[T], desc: str = "", total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate over `items` behind a progress bar."""
    if os.environ.get(TERMINAL) == "":
        yield from items
    else:
        with _shown(tqdm.auto.tqdm, iterable=items, desc=desc, total=total, unit=unit) as shown:
            yield from shown


def counted(items: Iterable[T], sizes: Sequence[int], desc: str, total: int, unit: str) -> Iterator[T]:
    """Iterate over `items`, each of which is a number of units, behind a bar over units.

    Parameters
    ----------
    sizes : sequence of int
        Units in each item.
    total : int
        Units in all; those beyond the sum of `sizes` are done already. Their pace does not count.
    """
    with _shown(tqdm.auto.tqdm, desc=desc, initial=total - sum(sizes), total=total, unit=unit) as shown:
        for item, size in zip(items, sizes, strict=True):
            yield item
            shown.update(size)


@contextmanager
def bar(desc: str, done: int, total: int, *, first: bool = True, forked: bool = False) -> Iterator[tqdm.std.tqdm]:
    """A bar over the steps of a training, of which `done` are behind it.

    Parameters
    ----------
    desc : str
    done, total : int
        Steps. What is left is told from the pace of this run, not of the one that was interrupted.
    first : bool
        Whether this is the process that shows it.
    forked : bool
        Whether the process cannot speak to a notebook's front end, so that a widget would stay empty.
    """
    kind = tqdm.std.tqdm if forked else tqdm.auto.tqdm
    with _shown(kind, first, desc=desc, initial=done, total=total, unit="step") as shown:
        yield shown


def told(shown: tqdm.std.tqdm, numbers: Mapping[str, float]) -> None:
    """Say the loss, the metric and the like behind the time left."""
    shown.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)


@contextmanager
def _shown(kind: type[tqdm.std.tqdm], first: bool = True, **settings: Any) -> Iterator[tqdm.std.tqdm]:
    terminal = os.environ.get(TERMINAL)
    if terminal and first:
        with open(terminal, "w") as tty, tqdm.std.tqdm(**settings, leave=False, file=tty) as shown:  # noqa: PTH123 - a device
            yield shown
    else:
        watched = terminal is None and ("ipykernel" in sys.modules or sys.stderr.isatty())
        with kind(**settings, leave=False, disable=not (first and watched)) as shown:
            yield shown

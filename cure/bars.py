"""The bar of a training: steps, time left, and what was found so far; where it goes is as in `cure.progress`."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tqdm.auto
import tqdm.std

from cure.progress import TERMINAL


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
    settings: dict[str, Any] = {"desc": desc, "initial": done, "total": total, "unit": "step", "leave": False}
    terminal = os.environ.get(TERMINAL)
    if terminal and first:
        with open(terminal, "w") as tty, tqdm.std.tqdm(**settings, file=tty) as shown:  # noqa: PTH123 - a device
            yield shown
    else:
        watched = terminal is None and ("ipykernel" in sys.modules or sys.stderr.isatty())
        with kind(**settings, disable=not (first and watched)) as shown:
            yield shown


def told(shown: tqdm.std.tqdm, numbers: Mapping[str, float]) -> None:
    """Say the loss, the metric and the like behind the time left."""
    shown.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)

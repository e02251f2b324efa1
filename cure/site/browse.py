"""Tables as pages: the first rows for everyone, all rows, sorting, filtering and the CSV file with the site's script.

A small table lies beside its page as a CSV file. A large one is packed into its page, once, and unpacked by the
browser: the largest tables of a study would otherwise be most of the site.
"""

import base64
import csv
import gzip
import hashlib
import io
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

#: Rows that a page holds as HTML.
SHOWN = 40
#: Larger CSV files are packed into their page (bytes).
LARGEST_FILE = 100_000


@dataclass(frozen=True)
class Sheet:
    """A table's file, read as text: nothing is rounded or reformatted."""

    name: str
    content: bytes
    header: list[str]
    rows: list[list[str]]

    @property
    def is_packed(self) -> bool:
        """Whether the CSV file is inside the page and not beside it."""
        return len(self.content) > LARGEST_FILE

    @property
    def packed(self) -> str:
        """All of the file as Base64 of gzip, where the page's HTML does not hold every row; else empty.

        The gzip header has no time: equal tables give equal pages.
        """
        if len(self.rows) <= SHOWN and not self.is_packed:
            return ""
        return base64.b64encode(gzip.compress(self.content, mtime=0)).decode()

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def numeric(self) -> list[bool]:
        """For each column, whether all its values that are not empty are numbers."""
        return [all(_is_number(row[i]) for row in self.rows if row[i]) for i in range(len(self.header))]

    def glossary(self) -> list[tuple[str, str]]:
        """The columns that have an explanation, with it, in the table's order."""
        known = columns()
        return [(name, known[name]) for name in self.header if name in known]


def read(file: Path) -> Sheet:
    """Read a CSV file."""
    content = file.read_bytes()
    lines = list(csv.reader(io.StringIO(content.decode())))
    return Sheet(file.stem, content, lines[0], lines[1:])


@cache
def columns() -> dict[str, str]:
    """What the columns of the study's tables hold."""
    return yaml.safe_load(resources.files("cure").joinpath("templates/columns.yaml").read_text(encoding="utf-8"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

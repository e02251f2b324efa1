"""Thousands of records through one piece of work, in parts: bounded memory, and a killed run goes on.

A run writes `<out>.parts/` beside its output: `plan.json` says which records and options it is about, and each part is
the rows of `PART` records, written aside and renamed, so that a part that exists is whole. At the end the parts become
the output, which appears whole or not at all, and the folder goes away. A run with other records or options does not
touch the parts of another.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cure.errors import CureError
from cure.own.find import Item, stamp
from cure.own.names import shown
from cure.own.readers import load
from cure.own.record import Given, Record
from cure.paths import atomic
from cure.progress import progress
from cure.shards import fingerprint

#: Records per part.
PART = 64
#: With no more parts to do, starting other processes (two seconds each) costs more than it saves.
_FEW_PARTS = 32
#: Columns that every output begins with.
COLUMNS = {
    "record": pa.string(),
    "error": pa.string(),
    "quality": pa.string(),
    "format": pa.string(),
    "fs": pa.float64(),
    "seconds": pa.float64(),
    "leads": pa.string(),
    "derived": pa.string(),
    "zero_filled": pa.string(),
    "notes": pa.string(),
}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Lost(Item):
    """A path that leads to no record: its row says why.

    Attributes
    ----------
    reason : str
        Why there is no record.
    """

    reason: str = ""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes
    ----------
    items : list of Item
    given : Given
        What the user says of the files.
    needed : tuple of int
        Positions in `LEADS` of the leads that are read.
    work : callable
        Takes some records; returns for each its own columns, or the reason why there are none.
    columns : dict of str to pyarrow type
        Those columns, and the ones that are the same in every row.
    constant : dict of str to value
        Those that are the same in every row, also of a record that could not be read.
    about : dict
        All that decides the result, beside records and `given`: names and plain values, as the user knows them.
    out : Path
        A `.parquet` or a `.csv`.
    what : str
        What the progress bar says.
    workers : int
        Processes that read; 0 reads in a thread of this one.
    """

    items: list[Item]
    given: Given
    needed: tuple[int, ...]
    work: Callable[[list[Record]], list[Mapping[str, Any] | str]]
    columns: dict[str, pa.DataType]
    constant: dict[str, Any]
    about: dict[str, Any]
    out: Path
    what: str
    workers: int = 0

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        about = {"about": json.dumps(self.about)}
        return pa.schema([*COLUMNS.items(), *self.columns.items()], metadata=about)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes
    ----------
    n : int
        Records.
    failed : dict of str to str
        Reason by name, of the records without a result.
    flags : dict of str to int
        Records by quality flag.
    """

    n: int
    failed: dict[str, str]
    flags: dict[str, int]


def run(job: Job, *, restart: bool = False) -> Summary:
    """Do what is left of a job and write its output.

    Parameters
    ----------
    job : Job
    restart : bool
        Throw away the output or the parts of an earlier run.

    Raises
    ------
    CureError
        If the output is there already, or parts of another run are: says what differs, and the option that starts anew.
    """
    plan = _plan(job)
    _begin(job, plan, restart)
    starts = range(0, len(job.items), PART)
    files = [job.parts / f"{i:06d}-of-{len(starts):06d}.parquet" for i in range(len(starts))]
    todo = [(file, job.items[start : start + PART]) for file, start in zip(files, starts, strict=True)]
    todo = [(file, items) for file, items in todo if not file.exists()]
    done = _ticks(job, todo)
    for _ in progress(done, job.what, sum(len(items) for _, items in todo), "record"):
        continue
    summary = _finish(job, files)
    shutil.rmtree(job.parts)
    return summary


def _ticks(job: Job, todo: list[tuple[Path, list[Item]]]) -> Iterator[None]:
    """Make the parts, and yield once for each record that is done."""
    workers = job.workers if len(todo) > _FEW_PARTS else 0
    with _reader(job, workers) as read:
        for (file, items), found in zip(
            todo, _ahead(read, [items for _, items in todo], max(2 * workers, 1)), strict=True
        ):
            records = [one for one in found if isinstance(one, Record)]
            results = iter(job.work(records) if records else [])
            rows = [
                _row(job, item, one, one if isinstance(one, str) else next(results))
                for item, one in zip(items, found, strict=True)
            ]
            with atomic(file) as part:
                pq.write_table(pa.Table.from_pylist(rows, job.schema), part)
            yield from [None] * len(items)


def _row(job: Job, item: Item, record: Record | str, result: Mapping[str, Any] | str) -> dict[str, Any]:
    row: dict[str, Any] = {"record": item.name, "format": item.format, **job.constant}
    if isinstance(record, Record):
        known = record.present | record.derived
        missing = [lead for lead in job.needed if not known[lead]]
        row |= {"quality": ";".join(record.quality), "fs": record.fs, "seconds": record.seconds}
        row |= {"leads": shown(list(record.present.nonzero()[0])), "derived": shown(list(record.derived.nonzero()[0]))}
        row |= {"zero_filled": shown(missing), "notes": "; ".join(record.notes)}
    return {**row, "error": result} if isinstance(result, str) else {**row, **result}


def _plan(job: Job) -> dict[str, Any]:
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(job.given).items()}
    options = json.loads(json.dumps({**given, **job.about}))
    records = stamp([item for item in job.items if not isinstance(item, Lost)])
    records += "".join(f"; {item.reason}" for item in job.items if isinstance(item, Lost))
    return {"options": options, "records": records, "n": len(job.items), "code": fingerprint("own", PART)}


def _begin(job: Job, plan: dict[str, Any], restart: bool) -> None:
    if restart:
        job.out.unlink(missing_ok=True)
        shutil.rmtree(job.parts, ignore_errors=True)
    if job.out.exists():
        raise CureError(f"{job.out} is there already: write to another --out, or make it anew with --restart")
    file = job.parts / "plan.json"
    if not file.exists():
        shutil.rmtree(job.parts, ignore_errors=True)
        with atomic(job.parts) as folder:
            folder.mkdir(parents=True)
            (folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
        return
    before = json.loads(file.read_text())
    if before == plan:
        return
    other = "the code of this package"
    if before["n"] != plan["n"] or before["records"] != plan["records"]:
        other = f"the records ({before['n']} then, {plan['n']} now, or their files changed)"
    for name in sorted(before["options"].keys() | plan["options"].keys()):
        then, now = (one["options"].get(name) for one in (before, plan))
        if then != now:
            other = f"{name} ({then} then, {now} now)"
            break
    raise CureError(
        f"{job.parts} holds parts of an unfinished run that differs in {other}: run that one again to finish it, write "
        "to another --out, or throw its parts away with --restart"
    )


def _finish(job: Job, files: list[Path]) -> Summary:
    failed: dict[str, str] = {}
    flags: Counter[str] = Counter()
    with atomic(job.out) as part:
        if job.out.suffix == ".csv":
            for i, file in enumerate(files):
                table = pq.read_table(file).to_pandas()
                table.to_csv(part, mode="a" if i else "w", header=not i, index=False)
                _count(table, failed, flags)
        else:
            with pq.ParquetWriter(part, job.schema) as writer:
                for file in files:
                    table = pq.read_table(file, schema=job.schema)
                    writer.write_table(table)
                    _count(table.select(["record", "error", "quality"]).to_pandas(), failed, flags)
    return Summary(len(job.items), failed, dict(flags))


def _count(table: pd.DataFrame, failed: dict[str, str], flags: Counter[str]) -> None:
    bad = table[table["error"].notna()]
    failed.update(zip(bad["record"], bad["error"], strict=True))
    flags.update(flag for text in table["quality"].dropna() for flag in text.split(";") if flag)


# --- reading ahead in other processes


@contextmanager
def _reader(job: Job, workers: int) -> Iterator[Callable[[list[Item]], Future]]:
    """Something that reads records: `workers` processes, which have none of torch's threads or memory, or a thread."""
    if workers:
        # Not forked: this process may have threads, whose locks a fork would copy.
        context = multiprocessing.get_context("spawn")
        pool: Executor = ProcessPoolExecutor(workers, context, initializer=_child)
    else:
        pool = ThreadPoolExecutor(1)
    try:
        yield lambda items: pool.submit(_load, items, job.given, job.needed)
    finally:
        pool.shutdown(cancel_futures=True)


def _load(items: list[Item], given: Given, needed: tuple[int, ...]) -> list[Record | str]:
    """`load`, and the reason of each path that leads to no record."""
    found = iter(load([item for item in items if not isinstance(item, Lost)], given, needed))
    return [item.reason if isinstance(item, Lost) else next(found) for item in items]


def _child() -> None:
    """Ctrl-C is the parent's to handle; a child whose parent was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _ahead(read: Callable[[list[Item]], Future], batches: list[list[Item]], ahead: int) -> Iterator[list[Record | str]]:
    """What `read` finds, in order, never more than `ahead` batches before it is asked for: memory stays bounded."""
    waiting: deque[Future] = deque()
    try:
        for batch in batches:
            waiting.append(read(batch))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise CureError(
            "a process that reads records died (of memory, or of a file): run the command again, parts that are "
            "done are kept; --workers 0 reads without other processes"
        ) from error

"""Files from an HTTP server, whole and verified, and manifests of their contents. Knows no cohort."""

import errno
import hashlib
import os
import random
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from urllib.parse import quote

import pandas as pd
import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from cure import paths
from cure.errors import CureError
from cure.progress import progress

COLUMNS = ["path", "size", "sha256"]
BACKOFF_SECONDS = 1.0  # first pause before a retry; doubles each time
LONGEST_PAUSE_SECONDS = 60.0  # of our own choice
LONGEST_RETRY_AFTER_SECONDS = 600.0  # at a server's request
CHUNK_BYTES = 1 << 13  # written at a time, so what a lost connection can cost
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *]?(.+)")
_SHOWN = 5
_LOST = (  # what requests raises when the network, not the request, is at fault
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)


class _Transient(Exception):
    """A failure that trying again may cure; `pause` is the server's Retry-After, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Stopped(Exception):
    """Another file failed, or the user pressed Ctrl-C."""


def check_relative(name: str) -> str:
    """Return `name` if it is a relative POSIX path that stays inside its folder, else raise CureError."""
    unsafe = any(part in ("", ".", "..") for part in name.split("/")) or re.match("[A-Za-z]:", name)
    if unsafe or "\\" in name or not name.isprintable():
        raise CureError(f"Refused the file name {name!r}: it is not a plain path inside its folder.")
    return name


def few(names: Iterable[str]) -> str:
    """Name the first few of `names`, and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


# --- checksums


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in lower-case hexadecimal."""
    return _digest(path, "sha256")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def parse_sums(text: str) -> dict[str, str]:
    """Parse a published SHA256SUMS.txt: a hash, one or two spaces (or space and `*`), a path per line.

    Returns
    -------
    dict
        Relative path -> SHA-256 in lower-case hexadecimal.

    Raises
    ------
    CureError
        A line of another form, an unsafe path, or a path listed with two different hashes.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match = _SUM_LINE.fullmatch(line.removesuffix("\r"))
        if match is None:
            raise CureError(f"Line {number} of the checksum list is not `sha256  path`: {line[:100]!r}.")
        name = check_relative(match[2].removeprefix("./"))
        if sums.setdefault(name, match[1].lower()) != match[1].lower():
            raise CureError(f"Line {number} of the checksum list gives {name} a second, different hash.")
    return sums


# --- transfer


def fetch(
    base_url: str,
    files: Mapping[str, str | None],
    folder: Path,
    *,
    workers: int = 4,
    retries: int = 5,
    timeout: float = 60.0,
) -> None:
    """Download `files` below `base_url` into `folder`.

    A file is written to `<name>.part`, checked, and renamed, so a name without `.part` is always whole.
    Whatever ends a download early (an error, Ctrl-C, a power cut) leaves `.part` files that the next call
    continues. A file already there with the expected hash (where none is expected: just there) is left alone.

    Parameters
    ----------
    base_url : str
        Address that the relative paths are appended to.
    files : mapping
        Relative path -> expected SHA-256, or `md5:` and an MD5 (what Zenodo publishes), or None where there is neither.
    folder : Path
        Destination; created when missing.
    workers : int
        Connections at a time, each reused for many files.
    retries : int
        Further attempts per file after a lost connection, a timeout, HTTP 408, 429 or 5xx, with exponential
        backoff and jitter, or after the time that the server asks for (Retry-After).
    timeout : float
        Seconds without a byte (or to connect) after which an attempt has failed.

    Raises
    ------
    CureError
        Another HTTP status, retries used up, a wrong hash twice, an unsafe name, or a folder that cannot be
        written. The other files are stopped too; what they have is kept.
    """
    todo: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    for name, sha256 in files.items():
        todo.put((check_relative(name), sha256))
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        with requests.Session() as session:
            session.headers["User-Agent"] = "cure-ecg (reproducible research; python-requests)"
            # A compressed body could not be continued in the middle.
            session.headers["Accept-Encoding"] = "identity"
            while not stop.is_set():
                try:
                    name, sha256 = todo.get_nowait()
                except Empty:
                    return
                url = f"{base_url.rstrip('/')}/{quote(name)}"
                try:
                    _fetch_one(session, url, folder / name, sha256, retries, timeout, stop)
                    done.put(None)
                except BaseException as error:  # handed to the caller's thread
                    done.put(error)
                    return

    threads = [Thread(target=work, daemon=True) for _ in range(min(workers, len(files)))]
    for thread in threads:
        thread.start()
    try:
        for _ in progress(range(len(files)), desc="download", unit="file"):
            if (error := done.get()) is not None:
                raise error
    finally:
        stop.set()
        for thread in threads:
            # One that hangs on the network is not waited for: it writes nothing more once `stop` is set.
            thread.join(2.0)


def _fetch_one(
    session: requests.Session,
    url: str,
    target: Path,
    sha256: str | None,
    retries: int,
    timeout: float,
    stop: Event,
) -> None:
    kind, _, expected = (sha256 or "").lower().rpartition(":")
    kind = kind or "sha256"
    if target.is_file() and (sha256 is None or _digest(target, kind) == expected):
        return
    part = target.with_name(target.name + ".part")
    found = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if sha256 is None:
            part.unlink(missing_ok=True)  # nothing would tell a stale beginning from a good one
        for _ in range(2):  # a stale or damaged beginning shows only in the hash: once more, from the start
            _transfer(session, url, part, retries, timeout, stop)
            found = _digest(part, kind)
            if sha256 is None or found == expected:
                part.replace(target)
                return
            part.unlink()
    except OSError as error:
        raise CureError(_cannot_write(part, error)) from error
    raise CureError(
        f"{target.name} from {url} is not the published file, twice in a row: "
        f"expected {kind} {expected}, received {found}. "
        "A proxy or a login page may stand between; open the address in a browser, then run this again."
    )


def _transfer(session: requests.Session, url: str, part: Path, retries: int, timeout: float, stop: Event) -> None:
    """Bring `part` to its full length, in as many attempts as allowed."""
    for attempt in range(retries + 1):
        try:
            return _attempt(session, url, part, timeout, stop)
        except (_Transient, *_LOST) as error:
            if attempt == retries:
                raise CureError(
                    f"Gave up on {url} after {retries + 1} attempts; the last one said: {error}. "
                    "Check the connection and run the same command again: it continues where it stopped."
                ) from error
            pause = error.pause if isinstance(error, _Transient) else None
            if pause is None:
                pause = min(BACKOFF_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
            elif pause > LONGEST_RETRY_AFTER_SECONDS:
                raise CureError(f"{url} asks to wait {pause:,.0f} s. Run the same command again later.") from error
            # Jitter only lengthens the wait, so that a server's Retry-After is honoured.
            if stop.wait(pause * random.SystemRandom().uniform(1, 1.5)):
                raise _Stopped from error
        except requests.RequestException as error:
            raise CureError(f"Cannot ask for {url}: {error}") from error
    return None


def _attempt(session: requests.Session, url: str, part: Path, timeout: float, stop: Event) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
        if stop.is_set():
            raise _Stopped
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status == 416:  # nothing after `start`: the part is complete, or too long and of no use
            if content_range.endswith(f"*/{start}"):
                return
            part.unlink()
            raise _Transient("the file on the server is shorter than the part downloaded before")
        if status in (408, 429) or status >= 500:
            raise _Transient(f"HTTP {status} {response.reason}", _retry_after(response))
        if status not in (200, 206):
            raise CureError(
                f"{url} answered HTTP {status} {response.reason}: no such file there, or no access. "
                "Check the address and the version in it."
            )
        if status == 206 and not content_range.startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Transient(f"asked for bytes from {start}, was sent {content_range!r}")
        # 200 is the whole file, also when a part of it was asked for.
        with part.open("ab" if status == 206 else "wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                if stop.is_set():
                    raise _Stopped
                file.write(chunk)


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait (given as a number or a date), if it does."""
    value = response.headers.get("Retry-After")
    try:
        return None if value is None else Retry().parse_retry_after(value)
    except InvalidHeader:
        return None


def _cannot_write(part: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(part.parent).free / 1e6
        return (
            f"No space left in {part.parent} ({free:,.0f} MB free, or a quota is used up) while writing "
            f"{part.name}. Free some space and run the same command again: it continues where it stopped."
        )
    return f"Cannot write {part}: {error.strerror or error}. Choose a folder that you may write to."


# --- manifests


def manifest(folder: Path, names: Iterable[str], *, workers: int | None = None) -> pd.DataFrame:
    """Size and content hash of each of the files `names` in `folder`.

    Returns
    -------
    DataFrame
        `path` (str, relative, POSIX, sorted), `size` (int64, bytes), `sha256` (str); no path of the machine.

    Raises
    ------
    CureError
        A file is missing or cannot be read.
    """
    names = sorted({check_relative(name) for name in names})

    def row(name: str) -> tuple[str, int, str]:
        path = folder / name
        return name, path.stat().st_size, sha256_file(path)

    # Hashing leaves the interpreter lock, so threads do use the cores.
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            rows = list(progress(pool.map(row, names), desc="hash", total=len(names), unit="file"))
        except OSError as error:
            pool.shutdown(cancel_futures=True)
            raise CureError(f"Cannot read {error.filename}: {error.strerror}. Restore the file.") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return pd.DataFrame(rows, columns=COLUMNS).astype({"path": object, "size": "int64", "sha256": object})


def write_manifest(df: pd.DataFrame, path: Path) -> None:
    """Write a manifest as CSV, at once or not at all; the same content gives the same bytes anywhere."""
    with paths.atomic(path) as temporary:
        df[COLUMNS].to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def read_manifest(path: Path) -> pd.DataFrame:
    """Read what `write_manifest` wrote; raise CureError when it is missing or something else."""
    again = f"Run `cure run download --profile {path.parent.name}` to make it."
    if not path.is_file():
        raise CureError(f"There is no manifest {path}. {again}")
    try:
        df = pd.read_csv(path, dtype={"path": str, "size": "int64", "sha256": str}, keep_default_na=False)
    except ValueError as error:  # also the parser's errors
        raise CureError(f"{path} is not a manifest: {error}. {again}") from error
    if list(df.columns) != COLUMNS or not df["sha256"].str.fullmatch("[0-9a-f]{64}").all():
        raise CureError(f"{path} is not a manifest of {', '.join(COLUMNS)}. {again}")
    df["path"].map(check_relative)
    return df.astype({"path": object, "sha256": object})


def verify_manifest(folder: Path, df: pd.DataFrame, *, deep: bool = False) -> None:
    """Compare the files in `folder` with their manifest: sizes, and with `deep` also the contents.

    Raises
    ------
    CureError
        Names the first few files that are missing or differ, and the command that makes a new manifest.
    """
    sizes = df["path"].map(lambda name: _size(folder / check_relative(name)))
    faults = {
        "missing": df["path"][sizes.isna()],
        "of another size": df["path"][sizes.notna() & (sizes != df["size"])],
    }
    if deep:
        same_size = df[sizes == df["size"]]
        now = manifest(folder, same_size["path"]).set_index("path")["sha256"]
        faults["of other content"] = same_size["path"][same_size["path"].map(now) != same_size["sha256"]]
    found = [f"{len(names):,} {fault} ({few(names)})" for fault, names in faults.items() if len(names)]
    if found:
        raise CureError(
            f"Files in {folder} are not those of the manifest: {'; '.join(found)}. Restore them, "
            "or accept what is there: `cure run download --profile PROFILE`, then `make repro PROFILE=PROFILE`."
        )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None

"""The store of published weights: each file fetched once, licence in view, pinned by its hash and checked ever after.

How files are read is in `cure.models.checkpoints`.
"""

import re
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urljoin

import pandas as pd
import requests
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from cure import download, paths
from cure.catalogue import Home, catalogue, entry
from cure.errors import CureError
from cure.models.checkpoints import about, convert, read_state, shown

__all__ = ["convert", "fetch", "find", "how", "locked", "place", "read_state", "verify"]

#: At the project's top level, to be committed.
LOCK = "weights.lock.yaml"
ADDRESSES = {
    "huggingface": "https://huggingface.co",
    "zenodo": "https://zenodo.org",
    "figshare": "https://ndownloader.figshare.com",
}
_TIMEOUT_SECONDS = 30.0
#: Address in the lock file of a file that CURE did not fetch.
_BY_HAND = "by hand"


class Pin(BaseModel):
    """What the lock file holds of one model's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="where it came from; `by hand` for a file that was there before")
    revision: str | None = Field(description="commit on Hugging Face, where the file came from there")
    size: int = Field(gt=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    converted_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="of the safetensors file made of it"
    )


# --- the store and its lock


def place(name: str) -> Path:
    """Where the published file of a model belongs: `data/weights/published/<name>/<file>`.

    Raises
    ------
    CureError
        For a model that is not in the catalogue or has no published weights.
    """
    return paths.weights("published") / name / _home(name).file


def locked() -> dict[str, Pin]:
    """Pins of the lock file by model; empty without a lock file.

    Raises
    ------
    CureError
        If it is not such a file.
    """
    file = paths.root() / LOCK
    if not file.is_file():
        return {}
    try:
        pins = {name: Pin.model_validate(pin) for name, pin in (yaml.safe_load(file.read_text()) or {}).items()}
    except (yaml.YAMLError, ValidationError, AttributeError) as error:
        raise CureError(
            f"{LOCK} is not a lock file: {error}. Restore it, or delete it and run `cure weights fetch MODEL`."
        ) from error
    return pins


def present() -> list[str]:
    """Runnable models whose published weights are here."""
    names = [name for name, one in catalogue().items() if one.runnable and one.home]
    return [name for name in names if any(file.is_file() for file in _candidates(name))]


def table() -> pd.DataFrame:
    """One row per runnable model: `model, licence, home, here, pinned`, as text for people."""
    pins, here = locked(), present()
    rows = []
    for name, one in catalogue().items():
        if not one.runnable:
            continue
        row = {"model": name, "licence": one.licence_weights, "home": "none published", "here": "-", "pinned": "-"}
        if home := one.home:
            row["home"] = (
                f"by hand: {home.page.host}" if home.kind == "page" else f"{home.kind} {home.repo or home.record}"
            )
            row |= {"here": "yes" if name in here else "no", "pinned": "yes" if name in pins else "no"}
        rows.append(row)
    return pd.DataFrame(rows)


def find(name: str) -> Path:
    """File to read a model's published weights from: the converted one where there is one.

    Raises
    ------
    CureError
        If it is not there: names the file, its home and the command that gets it.
    """
    for file in _candidates(name):
        if file.is_file():
            return file
    raise CureError(f"no weights {shown(place(name))}. {how(name)}")


def verify(name: str) -> Path:
    """`find`, and check that the file is the one that the lock file pins.

    A converted file has a pin of its own: it is pinned when it is first seen beside its source, if the source is the
    pinned one and a conversion of it gives the same file.

    Raises
    ------
    CureError
        If it is missing, not pinned, or another file: says what to run.
    """
    file = find(name)
    _check_pin(name, file)
    return file


def fetch(name: str) -> Path:
    """Get a model's published file, after printing its licence; the first time, record it in the lock file.

    A file that is pinned is fetched in the same revision and checked. One that was in its place before is recorded as
    it is, with the address `by hand`.

    Raises
    ------
    CureError
        If it cannot be fetched, is another file than pinned, or is to be got by hand: says where from.
    """
    home, file, pin = _home(name), place(name), locked().get(name)
    _print_licence(name)
    revision, sha256 = (pin.revision, pin.sha256) if pin else (home.revision, home.sha256)
    url = _BY_HAND
    if not file.is_file() or (sha256 and download.sha256_file(file) != sha256):
        if home.kind == "page":
            state = "is another file than pinned" if file.is_file() else "is not there"
            raise CureError(f"{shown(file)} {state}. {how(name)}")
        try:
            url, revision = _download(home, file, revision, sha256)
        except CureError as error:
            raise CureError(
                f"{error} If {name} cannot be fetched from here, get {home.file} from {home.page} by hand, put it at "
                f"{shown(file)} and run `cure weights fetch {name}` again."
            ) from error
    if pin is None:
        _check_content(file)
        if url == _BY_HAND:
            revision = None
        size = file.stat().st_size
        _record(name, Pin(url=url, revision=revision, size=size, sha256=download.sha256_file(file)))
    _check_pin(name, file)
    return file


def _check_pin(name: str, file: Path) -> None:
    pin, original = locked().get(name), file == place(name)
    if not original:
        _check_converted(name, file, pin)
        return
    sha256 = pin.sha256 if pin else _home(name).sha256
    if sha256 is None:
        raise CureError(f"{shown(file)} is not in {LOCK}: `cure weights fetch {name}` records its size and hash")
    if pin and file.stat().st_size != pin.size:
        raise CureError(
            f"{shown(file)} is truncated or another file: {file.stat().st_size:,} bytes, {pin.size:,} in {LOCK}. "
            f"Delete it. {how(name)}"
        )
    found = download.sha256_file(file)
    if found != sha256:
        raise CureError(
            f"{shown(file)} is another file than the one pinned: sha256 {found}, not {sha256}. Delete it. {how(name)}"
        )


def _check_converted(name: str, file: Path, pin: Pin | None) -> None:
    source = place(name)
    again = f"`cure weights fetch {name}`, then `cure weights convert {shown(source)}` again"
    if pin is None:
        raise CureError(f"{shown(file)} was converted from a file that is not in {LOCK}: run {again}")
    found = download.sha256_file(file)
    if found == pin.converted_sha256:
        return
    if about(file).get("source_sha256") != pin.sha256:
        raise CureError(f"{shown(file)} was converted from another file than the one pinned: delete it and run {again}")
    # What the header says anyone can write: only a second conversion shows what the file was made of.
    if source.is_file() and download.sha256_file(source) == pin.sha256:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            second = Path(folder) / file.name
            convert(source, second)
            same = download.sha256_file(second) == found
        if same:
            _record(name, pin.model_copy(update={"converted_sha256": found}))
            return
    state = "is not pinned" if pin.converted_sha256 is None else "is another file than the one pinned"
    raise CureError(f"{shown(file)} {state} in {LOCK} as the conversion of {source.name}: delete it and run {again}")


def _candidates(name: str) -> tuple[Path, Path]:
    return place(name).with_suffix(".safetensors"), place(name)


def _home(name: str) -> Home:
    home = entry(name).home
    if home is None:
        raise CureError(f"{name} has no published weights: train it, or give the path of a file (`cure weights list`)")
    return home


def how(name: str) -> str:
    """How to get a model's published file, as a sentence for messages.

    Raises
    ------
    CureError
        For a model that is not in the catalogue or has no published weights.
    """
    home = _home(name)
    if home.kind == "page":
        by_hand = f"Get the published file by hand from {home.page} and put it at {shown(place(name))}"
        return f"{by_hand}; `cure weights fetch {name}` then records it."
    return f"`cure weights fetch {name}` gets the published file from {home.page}."


def _print_licence(name: str) -> None:
    one = entry(name)
    warning = "NON-COMMERCIAL USE ONLY. " if one.non_commercial else ""
    print(
        f"{one.title}: {warning}Licence of the weights: {one.licence_weights}. Source: {_home(name).page}", flush=True
    )


def _record(name: str, pin: Pin) -> None:
    pins = {**locked(), name: pin}
    text = yaml.safe_dump({key: pins[key].model_dump() for key in sorted(pins)}, sort_keys=False)
    with paths.atomic(paths.root() / LOCK) as part:
        part.write_text(
            f"# Published weights as they were first fetched; checked ever after. Commit this file.\n{text}"
        )


# --- transfer


def _download(home: Home, file: Path, revision: str | None, sha256: str | None) -> tuple[str, str | None]:
    """Fetch to `file`; returns address and revision."""
    at, remote = ADDRESSES[home.kind], home.file
    if home.kind == "huggingface":
        base = f"{at}/{home.repo}/resolve"
        if revision is None or sha256 is None:
            commit, published = _ask_hub(f"{base}/{revision or 'main'}/{remote}")
            revision, sha256 = revision or commit, sha256 or published
        base = f"{base}/{revision or 'main'}"
    elif home.kind == "zenodo":
        base = f"{at}/records/{home.record}/files"
    else:
        base, remote = f"{at}/files", str(home.record)
    if remote == file.name:
        download.fetch(base, {remote: sha256}, file.parent, workers=1)
    else:
        download.fetch(base, {remote: None}, file.parent, workers=1)
        _unpack(file.with_name(remote), file)
    try:
        _check_content(file)
    except CureError:
        file.unlink()
        raise
    return f"{base}/{remote}", revision


def _ask_hub(url: str) -> tuple[str | None, str | None]:
    """Commit and SHA-256 of a file, as Hugging Face's headers state them (None where they do not)."""
    for _ in range(5):
        try:
            answer = requests.head(url, timeout=_TIMEOUT_SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            raise CureError(f"Cannot reach {url}: {error}.") from error
        if answer.status_code >= 400:
            raise CureError(f"{url} answered HTTP {answer.status_code}: not there, or only for those who asked.")
        if "X-Repo-Commit" in answer.headers or not answer.is_redirect:
            break
        url = urljoin(url, answer.headers["Location"])
    sha256 = answer.headers.get("X-Linked-Etag", "").strip('"')
    return answer.headers.get("X-Repo-Commit"), sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else None


def _unpack(archive: Path, file: Path) -> None:
    """Take `file` out of an archive that holds one of its name; what is itself a checkpoint becomes `file`.

    Raises
    ------
    CureError
        For an archive that is damaged or does not hold exactly one such file; it is deleted.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            held = [one for one in _names(packed) if "__MACOSX" not in one.split("/")]
            members = [one for one in held if one.rsplit("/", 1)[-1] == file.name]
            itself = not members and _is_checkpoint(held)
            if not itself and len(members) != 1:
                raise CureError(
                    f"the archive {shown(archive)} holds {len(members)} files named {file.name}, not one; "
                    f"it holds: {download.few(held)}."
                )
            if not itself:
                with paths.atomic(file) as part, packed.open(members[0]) as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except CureError:
        archive.unlink()
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink()
        raise CureError(f"{shown(archive)} is damaged or no archive (a login page, perhaps): {error}.") from error
    if itself:
        archive.replace(file)
    else:
        archive.unlink()


def _names(packed: zipfile.ZipFile) -> list[str]:
    """Names of an archive's members; a BadZipFile if it is the rest of a cut archive around another one."""
    if packed.infolist() and min(one.header_offset for one in packed.infolist()) > 0:
        raise zipfile.BadZipFile("its table of contents is that of an archive within")
    return packed.namelist()


def _is_checkpoint(names: list[str]) -> bool:
    """Whether an archive's names are those of torch's own format."""
    return any(one.rsplit("/", 1)[-1] == "data.pkl" for one in names)


def _check_content(file: Path) -> None:
    """Raise a CureError for a file that is neither safetensors nor a checkpoint, such as a login page, or is cut.

    A checkpoint of torch before 1.6 has no table of contents: that it is whole shows only when it is read.
    """
    with file.open("rb") as opened:
        head = opened.read(9)
    try:
        if head.startswith(b"PK"):
            with zipfile.ZipFile(file) as packed:
                known = _is_checkpoint(_names(packed))
        elif head[8:] == b"{":
            with safe_open(file, framework="pt"):
                known = True
        else:
            known = head.startswith(b"\x80")
    except (zipfile.BadZipFile, SafetensorError) as error:
        raise CureError(f"{shown(file)} is damaged or cut short ({error}): delete it and get it again.") from error
    if not known:
        raise CureError(f"{shown(file)} is no file of weights (a login page, perhaps).")

"""Downloads against a local server that cuts, stalls, refuses and lies; manifests against tampering."""

import errno
import hashlib
import io
import re
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread, main_thread

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cure import download
from cure.errors import CureError

DATA = np.random.default_rng(0).bytes(300_000)


class Server:
    """HTTP server on 127.0.0.1; `faults[name]` is what it does wrong in that file's next requests.

    A fault is ("cut", n): close the connection after n body bytes; ("stall", n): go silent after n bytes
    until `release`; ("status", code, headers); ("ignore range",); ("wrong", bytes): send these instead.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.faults, self.requests = files, {}, []
        self.stalled, self.release = Event(), Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                outer.answer(self, self.path.lstrip("/"))

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # a client that hangs up is what some tests are about
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def __enter__(self):
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler, name):
        queue = self.faults.get(name, [])
        kind, *how = queue.pop(0) if queue else ("none",)
        body = self.files.get(name)
        asked = handler.headers.get("Range")
        request = {"name": name, "range": asked, "sent": 0, "time": time.monotonic()}
        self.requests.append(request)
        if kind == "status" or body is None:
            code, headers = how if kind == "status" else (404, {})
            return self.head(handler, code, 0, headers)
        if kind == "wrong":
            body = how[0]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and kind != "ignore range" else 0
        if start and start >= len(body):
            return self.head(handler, 416, 0, {"Content-Range": f"bytes */{len(body)}"})
        headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.head(handler, 206 if start else 200, len(body) - start, headers)
        part = body[start:][: how[0]] if kind in ("cut", "stall") else body[start:]
        request["sent"] = len(part)  # before the client can have it all and look
        handler.wfile.write(part)
        if kind == "stall":
            self.stalled.set()
            self.release.wait(20)
        handler.close_connection = kind in ("cut", "stall")
        return None

    def head(self, handler, code, length, headers):
        handler.send_response(code)
        for key, value in {"Content-Length": length, **headers}.items():
            handler.send_header(key, str(value))
        handler.end_headers()

    def sent(self, name):
        return [r["sent"] for r in self.requests if r["name"] == name]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    with Server({"a.dat": DATA}) as running:
        yield running


def kept(n):
    """Bytes on disk after a connection was lost n bytes into a response."""
    return n // download.CHUNK_BYTES * download.CHUNK_BYTES


def sha(data):
    return hashlib.sha256(data).hexdigest()


def get(server, folder, **options):
    download.fetch(server.url, {"a.dat": sha(DATA)}, folder, **options)


# --- transfer


def test_many_files_in_parallel_over_few_connections(server, tmp_path):
    server.files = {f"records/{i % 3}/{i:02}.dat": bytes([i]) * i for i in range(40)}  # the first is empty
    wanted = {name: sha(data) for name, data in server.files.items()}
    download.fetch(server.url, wanted, tmp_path / "new" / "folder")
    got = {p.relative_to(tmp_path / "new/folder").as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in got.items()} == server.files
    download.fetch(server.url, wanted, tmp_path / "new" / "folder")  # complete files are not asked for again
    assert len(server.requests) == 40


def test_a_cut_connection_is_continued_not_restarted(server, tmp_path):
    server.faults["a.dat"] = [("cut", 100_000), ("cut", 50_000)]
    get(server, tmp_path)
    assert (tmp_path / "a.dat").read_bytes() == DATA
    first = kept(100_000)
    second = first + kept(50_000)
    assert [r["range"] for r in server.requests] == [None, f"bytes={first}-", f"bytes={second}-"]
    assert server.sent("a.dat") == [100_000, 50_000, len(DATA) - second]
    assert sum(server.sent("a.dat")) < len(DATA) + 2 * download.CHUNK_BYTES
    assert not list(tmp_path.glob("*.part"))


def test_a_later_call_transfers_only_the_rest(server, tmp_path):
    server.faults["a.dat"] = [("cut", 120_000)]
    with pytest.raises(CureError, match=r"Gave up on .*a\.dat after 1 attempts.*continues where it stopped"):
        get(server, tmp_path, retries=0)
    assert not (tmp_path / "a.dat").exists()
    assert (tmp_path / "a.dat.part").read_bytes() == DATA[: kept(120_000)]
    get(server, tmp_path)
    assert server.sent("a.dat") == [120_000, len(DATA) - kept(120_000)]
    assert (tmp_path / "a.dat").read_bytes() == DATA


@pytest.fixture
def _ctrl_c():
    """A process that was started in the background ignores Ctrl-C; not here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_leaves_a_part_that_continues(server, tmp_path):
    server.faults["a.dat"] = [("stall", 131_072)]

    def press():
        server.stalled.wait(10)
        while not (tmp_path / "a.dat.part").exists() or not (tmp_path / "a.dat.part").stat().st_size:
            time.sleep(0.01)
        signal.pthread_kill(main_thread().ident, signal.SIGINT)

    Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, timeout=1)
    there = (tmp_path / "a.dat.part").stat().st_size
    assert 0 < there <= 131_072
    assert not (tmp_path / "a.dat").exists()
    server.release.set()
    get(server, tmp_path)
    assert (tmp_path / "a.dat").read_bytes() == DATA
    assert server.sent("a.dat")[-1] == len(DATA) - there


def test_a_silent_server_is_a_timeout_and_tried_again(server, tmp_path):
    server.faults["a.dat"] = [("stall", 65_536)]
    get(server, tmp_path, timeout=1)
    assert server.sent("a.dat") == [65_536, len(DATA) - 65_536]


@pytest.mark.parametrize(
    ("there", "faults", "sent"),
    [
        pytest.param(DATA[:1000], [("ignore range",)], [len(DATA)], id="the server ignores Range"),
        pytest.param(DATA, [], [0], id="416: complete"),
        pytest.param(DATA + b"tail", [], [0, len(DATA)], id="416: too long"),
        pytest.param(b"x" * 1000, [], [len(DATA) - 1000, len(DATA)], id="damaged: one fresh start"),
    ],
)
def test_a_part_from_before(server, tmp_path, there, faults, sent):
    (tmp_path / "a.dat.part").write_bytes(there)
    server.faults["a.dat"] = faults
    get(server, tmp_path)
    assert server.sent("a.dat") == sent
    assert (tmp_path / "a.dat").read_bytes() == DATA


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(server, tmp_path, code):
    server.faults["a.dat"] = [("status", code, {}), ("status", code, {"Retry-After": "soon"})]
    get(server, tmp_path)
    assert len(server.requests) == 3
    assert (tmp_path / "a.dat").read_bytes() == DATA


def test_retry_after_is_honoured_unless_it_is_hours(server, tmp_path):
    server.faults["a.dat"] = [("status", 503, {"Retry-After": "1"}), ("status", 503, {"Retry-After": "7200"})]
    with pytest.raises(CureError, match="asks to wait 7,200 s"):
        get(server, tmp_path)
    first, second = (request["time"] for request in server.requests)
    assert second - first >= 1.0


def test_retries_are_bounded_and_back_off(server, tmp_path):
    server.faults["a.dat"] = [("status", 503, {})] * 10
    with pytest.raises(CureError, match=r"after 4 attempts; the last one said: HTTP 503"):
        get(server, tmp_path, retries=3)
    pauses = np.diff([r["time"] for r in server.requests])
    assert len(pauses) == 3
    assert (pauses >= [0.01, 0.02, 0.04]).all()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_other_4xx_fail_at_once(server, tmp_path, code):
    server.faults["a.dat"] = [("status", code, {"Retry-After": "1"})] * 9
    with pytest.raises(CureError, match=rf"a\.dat answered HTTP {code}"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_one_failed_file_stops_the_others(server, tmp_path):
    names = {"missing.dat": None} | {f"{i}.dat": None for i in range(500)}
    server.files = {name: b"x" for name in names if name != "missing.dat"}
    with pytest.raises(CureError, match="missing"):
        download.fetch(server.url, names, tmp_path, workers=2)
    assert len(server.requests) < 500


def test_a_wrong_file_is_tried_twice_and_never_kept(server, tmp_path):
    server.faults["a.dat"] = [("wrong", b"please log in")] * 5
    with pytest.raises(CureError) as error:
        get(server, tmp_path)
    for said in ("a.dat", server.url, sha(DATA), sha(b"please log in")):
        assert said in str(error.value)
    assert len(server.requests) == 2
    assert not list(tmp_path.iterdir())


def test_without_a_hash_a_file_is_kept_but_a_part_is_not_trusted(server, tmp_path):
    (tmp_path / "a.dat").write_bytes(b"old")
    download.fetch(server.url, {"a.dat": None}, tmp_path)
    assert not server.requests
    get(server, tmp_path)  # with a hash it is replaced
    assert (tmp_path / "a.dat").read_bytes() == DATA
    (tmp_path / "a.dat").unlink()
    (tmp_path / "a.dat.part").write_bytes(b"old")
    download.fetch(server.url, {"a.dat": None}, tmp_path)
    assert (tmp_path / "a.dat").read_bytes() == DATA


UNSAFE = ["../a", "a/../../b", "/etc/x", "a//b", "a/", "", ".", "..", "a\\b", "C:/x", "C:x", "a\nb", "a\0b"]


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_leave_the_folder_are_refused(server, tmp_path, name):
    with pytest.raises(CureError, match="Refused the file name"):
        download.fetch(server.url, {"a.dat": None, name: None}, tmp_path)
    assert not server.requests


@given(st.text(alphabet=st.sampled_from("a.b/\\: é\n~*"), max_size=12))
def test_accepted_names_stay_inside(name):
    try:
        download.check_relative(name)
    except CureError:
        return
    inside = Path("/base", name).resolve()
    assert inside.is_relative_to("/base")
    assert inside != Path("/base")


def test_a_full_disk_is_named_and_what_was_written_is_kept(server, tmp_path, monkeypatch):
    real = Path.open

    class FullDisk(io.FileIO):
        def write(self, chunk):
            if self.tell() + len(chunk) > 150_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda p, mode: FullDisk(p, mode) if mode in ("wb", "ab") else real(p, mode))
        with pytest.raises(CureError, match=r"No space left in .*MB free.*a\.dat\.part.*continues"):
            get(server, tmp_path)
    there = (tmp_path / "a.dat.part").stat().st_size
    assert 0 < there <= 150_000
    assert len(server.requests) == 1  # trying again would not make room
    get(server, tmp_path)
    assert server.sent("a.dat")[1:] == [len(DATA) - there]
    assert (tmp_path / "a.dat").read_bytes() == DATA


def test_a_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CureError, match=r"Cannot write .*taken"):
        get(server, tmp_path / "taken")


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    with pytest.raises(CureError, match="after 3 attempts"):
        download.fetch("http://127.0.0.1:9/", {"a.dat": None}, tmp_path, retries=2, timeout=1)
    with pytest.raises(CureError, match="Cannot ask for"):
        download.fetch("nonsense", {"a.dat": None}, tmp_path)


# --- checksum lists

part = st.text(alphabet=st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\*:"), min_size=1)
safe_name = st.lists(part.filter(lambda p: p not in (".", "..")), min_size=1, max_size=3).map("/".join)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(
    st.dictionaries(safe_name, hashes, max_size=8),
    st.sampled_from([" ", "  ", " *"]),
    st.sampled_from(["", "./"]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
)
def test_parse_sums_reads_every_published_form(sums, space, dot, end, upper):
    text = "".join(f"{h.upper() if upper else h}{space}{dot}{name}{end}" for name, h in sums.items())
    assert download.parse_sums(text) == sums


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html>", "Line 1 .*html"),
        (f"{'0' * 64}  a\n{'0' * 63}  b", "Line 2"),
        (f"{'0' * 64}  ../a", "Refused the file name"),
        (f"{'0' * 64}  a\n{'1' * 64}  a", "Line 2 .* a a second, different hash"),
    ],
)
def test_parse_sums_refuses(text, said):
    with pytest.raises(CureError, match=said):
        download.parse_sums(text)


# --- manifests

file_name = st.text(alphabet=st.sampled_from("abN,\"'; é1."), min_size=1, max_size=12).filter(lambda n: n.strip("."))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(files=st.dictionaries(file_name, st.binary(max_size=50), min_size=1, max_size=6), data=st.data())
def test_manifest_round_trip_and_tampering(tmp_path_factory, files, data):
    folder = tmp_path_factory.mktemp("raw")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    df = download.manifest(folder, sorted(files, reverse=True), workers=2)
    assert list(df["path"]) == sorted(files)
    assert list(df["size"]) == [len(files[n]) for n in sorted(files)]
    assert list(df["sha256"]) == [sha(files[n]) for n in sorted(files)]

    stored = folder / "out" / "manifest.csv"
    download.write_manifest(df, stored)
    pd.testing.assert_frame_equal(download.read_manifest(stored), df)
    download.verify_manifest(folder, df, deep=True)

    victim = folder / data.draw(st.sampled_from(sorted(files)))
    content = victim.read_bytes()
    if content:
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        download.verify_manifest(folder, df)  # same size: only a deep look shows it
        with pytest.raises(CureError, match=r"1 of other content .*cure run download"):
            download.verify_manifest(folder, df, deep=True)
    victim.write_bytes(content + b"x")
    with pytest.raises(CureError, match="1 of another size"):
        download.verify_manifest(folder, df)
    victim.unlink()
    with pytest.raises(CureError, match="1 missing") as error:
        download.verify_manifest(folder, df, deep=True)
    assert victim.name in str(error.value)
    with pytest.raises(CureError, match="Cannot read"):
        download.manifest(folder, files)


def test_verify_names_the_first_few(tmp_path):
    df = pd.DataFrame({"path": [f"{i}.dat" for i in range(9)], "size": 1, "sha256": "0" * 64})
    with pytest.raises(CureError, match=r"9 missing \(0\.dat, 1\.dat, 2\.dat, 3\.dat, 4\.dat and 4 more\)"):
        download.verify_manifest(tmp_path, df)


NO_SIZE, ESCAPE = f"path,size,sha256\na,much,{'0' * 64}\n", f"path,size,sha256\n../a,1,{'0' * 64}\n"


@pytest.mark.parametrize("text", ["", "path,size\na,1\n", "path,size,sha256\na,1,xyz\n", NO_SIZE, ESCAPE])
def test_read_manifest_refuses_other_files(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(CureError):
        download.read_manifest(tmp_path / "m.csv")
    with pytest.raises(CureError, match=r"no manifest .*cure run download --profile"):
        download.read_manifest(tmp_path / "absent.csv")

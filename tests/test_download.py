"""Downloads against a real HTTP server on loopback that misbehaves in every way seen in the wild."""

import gzip
import hashlib
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from enn_np.data import fetch as download
from enn_np.data import text
from enn_np.data.fetch import DownloadError, Found, Source, fetch

RAW = np.random.default_rng(0).bytes(200_000)  # several blocks
BODY = gzip.compress(RAW)
NAME = "body-ubyte.gz"


class Handler(BaseHTTPRequestHandler):
    """Serves server.body; the first part of the URL says how: /good/, /404/, /truncate/ ..."""

    def do_GET(self):
        how, body = self.path.split("/")[1], self.server.body
        self.server.requests.append((how, self.headers["User-Agent"]))
        self.server.asked.set()
        if how.isdecimal():
            return self.send_error(int(how))
        if how in ("redirect", "loop"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("redirect", "good"))
            return self.end_headers()
        self.send_response(200)
        data = {"wrong": bytes(len(body)), "short": body[:-1], "endless": body * 3}.get(how, body)
        if how != "endless" and "unmeasured" not in how:
            self.send_header("Content-Length", len(data))
        if how == "labelled":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if how.startswith(("truncate", "stall", "gate")):
            half = (len(data) + 1) // 2
            self.wfile.write(data[:half])
            self.wfile.flush()
            if "truncate" not in how:
                self.server.release.wait()
            if how != "gate":
                return None
            data = data[half:]
        self.wfile.write(data)
        return None

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.requests = BODY, []
        self.asked, self.release = threading.Event(), threading.Event()

    def handle_error(self, request, client_address):
        pass  # the client hung up, as some tests want

    def url(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{how}/"


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def sums(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def files(contents: dict[str, bytes]) -> dict[str, tuple]:
    """The middle one of three checksums is right, one of them a SHA-1."""
    return {name: ("0" * 40, known, hashlib.sha1(b"other").hexdigest()) for name, known in sums(contents).items()}


@pytest.fixture
def tiny(monkeypatch, server):
    """Declare a data set of one packed file, served by mirrors that behave as named."""

    def declare(*hows):
        mirrors = tuple(how if "://" in how else server.url(how) for how in hows)
        source = Source(["tiny"], mirrors, sums({NAME: BODY}), files({"body-ubyte": RAW}))
        monkeypatch.setattr(download, "SOURCES", {"tiny": source})

    return declare


# Transfers


@pytest.mark.parametrize("how", ["good", "redirect", "labelled", "unmeasured"])
def test_fetch(tiny, server, tmp_path, how):
    tiny(how)
    assert fetch("tiny", tmp_path) == tmp_path / "tiny"
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == [".lock", NAME]
    assert (tmp_path / "tiny" / NAME).stat().st_mode == (tmp_path / "tiny").stat().st_mode & 0o666 | stat.S_IFREG
    assert {agent for _, agent in server.requests} == {download.AGENT}
    count = len(server.requests)
    fetch("tiny", tmp_path)  # nothing to do any more
    assert len(server.requests) == count


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("403", "403 Client Error"),
        ("404", "404 Client Error: Not Found"),
        ("500", "500 Server Error"),
        ("loop", "Exceeded 30 redirects"),
        ("wrong", "does not match the known hash"),
        ("short", "does not match the known hash"),
        ("endless", "does not match the known hash"),
        ("stall", "timed out"),
        ("truncate", "more expected"),
        ("truncate-unmeasured", "does not match the known hash"),
        ("http://127.0.0.1:1/", "refused"),
        ("ftp://127.0.0.1/", "No connection adapters"),
    ],
)
def test_a_bad_mirror_is_reported_and_the_next_one_tried(tiny, server, tmp_path, monkeypatch, how, reason):
    tiny(how)
    with monkeypatch.context() as patch, pytest.raises(DownloadError) as caught:
        if how == "stall":  # the others may be as slow as a busy machine is
            patch.setattr(download, "TIMEOUT", (5, 0.3))
        fetch("tiny", tmp_path)
    url = how if "://" in how else server.url(how)
    for words in (NAME, str(tmp_path / "tiny"), url + NAME, reason, "ENN_DATA", "remedy: place"):
        assert words in str(caught.value)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".lock"]  # nothing of the broken one is left
    tiny("404" if how == "stall" else how, "good")
    fetch("tiny", tmp_path)
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY


def test_every_mirror_is_named_in_order(tiny, server, tmp_path):
    tiny("404", "wrong", "500")
    with pytest.raises(DownloadError) as caught:
        fetch("tiny", tmp_path)
    places = [str(caught.value).index(server.url(how)) for how in ("404", "wrong", "500")]
    assert places == sorted(places) and [how for how, _ in server.requests] == ["404", "wrong", "500"]


def test_a_damaged_file_is_replaced(tiny, tmp_path):
    tiny("good")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / NAME).write_bytes(BODY[:-1])
    fetch("tiny", tmp_path)
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY


def test_a_folder_that_cannot_be_written(tiny, tmp_path):
    tiny("good")
    (tmp_path / "tiny").write_text("a file in the way")
    with pytest.raises(DownloadError, match="File exists"):
        fetch("tiny", tmp_path)


def test_the_bar_shows_the_file_on_a_terminal_only(tiny, tmp_path, capsys, monkeypatch):
    tiny("good")
    fetch("tiny", tmp_path / "a")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch("tiny", tmp_path / "b")
    assert NAME in capsys.readouterr().err


def test_a_program_without_a_standard_error_fetches(tiny, tmp_path, monkeypatch):
    """As under pythonw, or a service."""
    tiny("good")
    monkeypatch.setattr(sys, "stderr", None)
    fetch("tiny", tmp_path)
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY


# Two processes

CHILD = """
import sys
from enn_np.data import fetch as download
url, folder, name, packed, plain, unpacked = sys.argv[1:]
download.SOURCES = {"tiny": download.Source(["tiny"], (url,), {name: packed}, {plain: (unpacked,)})}
print("ready", flush=True)
download.fetch("tiny", folder)
"""


def child(url: str, folder: Path) -> subprocess.Popen:
    items = [word for pair in sums({NAME: BODY, "body-ubyte": RAW}).items() for word in pair]
    command = [sys.executable, "-c", CHILD, url, str(folder), *items]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_fetch_a_file_once(server, tmp_path):
    processes = [child(server.url("gate"), tmp_path) for _ in range(2)]
    assert server.asked.wait(60)
    server.release.set()
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY
    assert len(server.requests) == 1


def test_what_a_killed_process_leaves_does_not_stay(tiny, server, tmp_path):
    process = child(server.url("stall"), tmp_path)
    assert server.asked.wait(60)
    process.kill()
    process.communicate()
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {".lock", ".part"}
    tiny("good")
    fetch("tiny", tmp_path)
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY and not (tmp_path / "tiny" / ".part").exists()


# Archives

CONTENTS = {"a.bin": b"first" * 1000, "b.bin": b"second" * 1000}
FILES = {**files(CONTENTS), "b.bin": ()}


def tar(contents: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"tiny/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(contents: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(f"tiny/{name}", data)
    return out.getvalue()


PACKED = {**CONTENTS, "readme.html": b"more than is asked for"}
GOOD = {"tiny.tar.gz": tar(PACKED), "tiny.zip": zipped(PACKED)}


@pytest.fixture
def archive(monkeypatch, server):
    """Declare a data set of one archive with two files in it."""

    def declare(name, data, how="good"):
        server.body = data
        source = Source(["tiny"], (server.url(how),), sums({name: data}), FILES)
        monkeypatch.setattr(download, "SOURCES", {"tiny": source})

    return declare


@pytest.mark.parametrize("name", GOOD)
def test_an_archive_is_unpacked_and_removed(archive, server, tmp_path, name):
    archive(name, GOOD[name])
    folder = fetch("tiny", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == CONTENTS
    fetch("tiny", tmp_path)
    assert len(server.requests) == 1
    (folder / "a.bin").write_bytes(b"damaged")
    fetch("tiny", tmp_path)
    assert (folder / "a.bin").read_bytes() == CONTENTS["a.bin"]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("place", [".", "tiny"])
def test_an_archive_placed_by_hand_is_unpacked_without_a_download(archive, server, tmp_path, name, place):
    archive(name, GOOD[name], "404")
    (tmp_path / "tiny").mkdir()
    (tmp_path / place / name).write_bytes(GOOD[name])
    with pytest.raises(FileNotFoundError, match="download=False"):
        download.locate("tiny", tmp_path, download=False)
    found = download.locate("tiny", tmp_path)
    assert not server.requests and {file.file: download.read(file) for file in found} == CONTENTS
    assert (tmp_path / place / name).read_bytes() == GOOD[name]


@pytest.mark.parametrize("name", GOOD)
def test_an_archive_of_another_checksum_is_never_opened(archive, server, tmp_path, name):
    """So that no name in it that leads elsewhere, no link and no bomb can do harm."""
    archive(name, GOOD[name], "404")
    (tmp_path / "tiny").mkdir()
    for other in ({}, {**CONTENTS, "../../outside": b"evil"}, {"a.bin": bytes(10**7)}):
        (tmp_path / name).write_bytes(zipped(other) if name.endswith("zip") else tar(other))
        with pytest.raises(DownloadError, match=r"no good copy of a\.bin, b\.bin[^$]*404"):
            fetch("tiny", tmp_path)
        assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".lock"]


def test_an_archive_that_is_the_file_stays_packed(monkeypatch, server, tmp_path):
    """Omniglot's, whose thousands of images would be as many files."""
    server.body = data = GOOD["tiny.zip"]
    known = hashlib.sha256(data).hexdigest()
    name, source = download._source(f"tiny tiny\n{server.url('good')}\ntiny.zip {known}")
    monkeypatch.setattr(download, "SOURCES", {name: source})
    for _ in range(2):
        folder = fetch("tiny", tmp_path)
        assert [path.name for path in folder.iterdir() if path.name != ".lock"] == ["tiny.zip"]
        assert (folder / "tiny.zip").read_bytes() == data and download.verify("tiny", tmp_path)[0].verified
    assert len(server.requests) == 1
    (folder / "tiny.zip").write_bytes(data[:-1])
    assert download.verify("tiny", tmp_path)[0].verified is False
    fetch("tiny", tmp_path)
    assert len(server.requests) == 2 and (folder / "tiny.zip").read_bytes() == data


def test_errors_that_are_no_damage_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        download.read(Found("tiny", "a.bin", tmp_path / "nothing"))


def test_a_readers_own_text_is_never_to_be_deleted(tmp_path):
    for name, data in (("my words.txt", b"caf\xe9\n"), ("my words.txt.xz", lzma.compress(b"caf\xe9\n")), ("poem", b"")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(download.DamagedFile) as caught:
            text._numbers(Found("", name, path), True, {}.get)
        assert str(path) in str(caught.value) and "; put a good copy there, or fetch it again" in str(caught.value)


def test_a_damaged_packed_copy_is_not_preferred_to_the_good_file(tmp_path):
    """Else it is fetched again and again, and still damaged."""
    (tmp_path / "b.bin").write_bytes(b"abc")
    (tmp_path / "b.bin.gz").write_bytes(gzip.compress(b"wrong"))
    assert download.first([tmp_path], "b.bin") == tmp_path / "b.bin"


# What is there


def test_status_and_verify(monkeypatch, tmp_path):
    known = {**files(dict.fromkeys(("a.bin", "b.bin", "c.bin", "d.bin"), b"abc")), "c.bin": ()}
    known["d.bin"] = (hashlib.sha1(b"abc").hexdigest(),)
    monkeypatch.setattr(download, "SOURCES", {"tiny": Source(["tiny"], (), {}, known)})
    (tmp_path / "tiny").mkdir()
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "tiny" / "b.bin.xz").write_bytes(lzma.compress(b"abd"))
    (tmp_path / "tiny" / "c.bin.gz").write_bytes(gzip.compress(b"abc"))
    rows = [row for name in download.SOURCES for row in download.find(name, tmp_path)]
    assert [(row.dataset, row.file, row.path is not None, row.verified) for row in rows] == [
        ("tiny", "a.bin", True, None),
        ("tiny", "b.bin", True, None),
        ("tiny", "c.bin", True, None),
        ("tiny", "d.bin", False, None),
    ]
    assert [row.verified for row in download.verify("tiny", tmp_path)] == [True, False, None, None]
    (tmp_path / "d.bin").write_bytes(b"abc")
    assert download.verify("tiny", tmp_path)[3].verified
    (tmp_path / "d.bin").unlink()
    (tmp_path / "tiny" / "c.bin.gz").write_bytes(gzip.compress(b"abc")[:-3])
    (tmp_path / "a.bin").write_bytes(b"abcd")
    (tmp_path / "tiny" / "b.bin.xz").write_bytes(lzma.compress(b"abc")[:-3])
    assert [row.verified for row in download.verify("tiny", tmp_path)] == [False, False, False, None]


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    for function in (fetch, download.verify, download.find, download.locate):
        with pytest.raises(ValueError, match=r"name: expected one of 'mnist', 'cifar10', 'wikitext-2', .*got 'mnsit'"):
            function("mnsit", tmp_path)


def test_the_table_agrees_with_the_notes_on_the_data():
    notes = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    for name, source in download.SOURCES.items():
        assert (
            f"`{name}`" in notes and f"`{source.folders[0]}/`" in notes and all(url in notes for url in source.mirrors)
        )
        assert all(name in notes and sha256 in notes for name, sha256 in source.downloads.items())


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ENN_DATA", str(tmp_path))
    assert download.data_folder() == tmp_path
    monkeypatch.setenv("ENN_DATA", "")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(download, "__file__", str(tmp_path / "enn_np" / "data" / "fetch.py"))
    monkeypatch.setenv("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert download.data_folder() == tmp_path / "cache" / "enn_np"  # a data/ beside the package may be anything
    (tmp_path / "data" / "mnist_5k.npz").touch()
    assert download.data_folder() == tmp_path / "data"


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user whom the system gives no home, as in a container, outside a checkout."""
    for name in ("HOME", "USERPROFILE", "HOMEPATH", "LOCALAPPDATA", "XDG_CACHE_HOME", "ENN_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python answers then
    monkeypatch.setattr(download, "__file__", str(tmp_path / "enn_np" / "data" / "fetch.py"))


def test_a_user_without_a_home_is_told_what_to_set(homeless, monkeypatch, tmp_path):
    asked = (lambda: download.find("mnist"), lambda: fetch("mnist"), lambda: fetch("mnist", "~/x"))
    for function in (download.data_folder, *asked):
        with pytest.raises(OSError, match=r"~.*: no home folder is known; set HOME, or ENN_DATA"):
            function()
    monkeypatch.setenv("ENN_DATA", str(tmp_path))
    assert download.data_folder() == tmp_path and not any(file.path for file in download.find("mnist"))
    monkeypatch.setenv("ENN_DATA", "~nobody-of-that-name/x")
    with pytest.raises(OSError, match="~nobody-of-that-name/x: no home folder"):
        download.data_folder()


def test_a_tilde_is_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "t10k-labels-idx1-ubyte").touch()
    monkeypatch.setenv("ENN_DATA", "~/x")
    assert download.data_folder() == tmp_path / "x"
    for folder in (None, "~/x", Path("~/x")):
        assert download.find("mnist", folder)[3].path == tmp_path / "x" / "t10k-labels-idx1-ubyte"
    monkeypatch.delenv("ENN_DATA")
    monkeypatch.delenv("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(download, "__file__", str(tmp_path / "enn_np" / "data" / "fetch.py"))
    assert download.data_folder() == tmp_path / ".cache" / "enn_np"


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw", "raw"])
@pytest.mark.parametrize("spelling", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_mnist_is_found_where_others_put_it(tmp_path, place, spelling, packing):
    """As inside the official archives, as torchvision keeps it; a folder of that name (Kaggle's) is no file."""
    path = tmp_path / place / (spelling + packing)
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "train-images-idx3-ubyte.gz").mkdir(exist_ok=True) if place != "." else None
    path.touch()
    assert download.find("mnist", tmp_path)[0].path == path

"""Where data sets lie and how they get there: files found and verified, and downloads, by pooch."""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .checkpoint import lock, spelled_out
from .sources import SOURCES, Item, Source

AGENT = "enn_np/0.1"  # wikitext.smerity.com refuses the default name of Python's clients
TIMEOUT = (10, 30)  # seconds to connect, seconds between two pieces of data
BLOCK = 1 << 16  # bytes
PACKINGS = (".gz", "", ".xz")  # a file counts as present in any of these forms, looked for in this order
PACKING_ERRORS = (lzma.LZMAError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class DownloadError(OSError):
    """A download failed: the message names file, folder, each URL with what went wrong, and the remedy."""


class DamagedFile(ValueError):
    """A data file's content is not what it should be: the message names file, fault and remedy. What is not ours to
    fetch, such as a reader's own text, is never called replaceable."""

    def __init__(self, where: Path | str, what: str):
        name = str(where).replace(".idx", "-idx")
        published = any(item.name in name for source in SOURCES.values() for item in source.downloads + source.files)
        remedy = "fetch it again: python -m enn_np data fetch NAME" if published else "put a good copy in its place"
        super().__init__(f"{where} is damaged: {what}; {remedy}")


class FileStatus(NamedTuple):
    """One file of a data set: where it is (None: missing), bytes on disk, and whether its checksum is right
    (None: not looked at, or none is published)."""

    dataset: str
    file: str
    path: Path | None
    size: int
    verified: bool | None


def data_folder() -> Path:
    """Folder of the data sets: `$ENN_DATA`, else `data/` of the checkout, else a cache of the user's."""
    if os.environ.get("ENN_DATA"):
        return spelled_out(os.environ["ENN_DATA"])
    checkout = Path(__file__).resolve().parents[1] / "data"
    if (checkout / "mnist_5k.npz").is_file():
        return checkout
    return user_cache()


def user_cache() -> Path:
    """Folder of the user's for what can be fetched or made again. Raises OSError where no home folder is known."""
    cache = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return spelled_out(cache or "~/.cache") / "enn_np"


def find(name: str, folder: Path | str | None = None) -> dict[str, Path | None]:
    """Path of each file of a data set, plain, .gz or .xz, in `folder` or its subfolders; None if missing.

    MNIST's files may also be named as inside their own archives, train-images.idx3-ubyte.
    """
    places = _places(name, folder)
    return {
        file.name: _first(
            place / (spelling + packing)
            for place in places
            for spelling in (file.name, file.name.replace("-idx", ".idx"))
            for packing in PACKINGS
        )
        for file in SOURCES[name].files
    }


def find_archive(name: str, folder: Path | str | None = None) -> Path | None:
    """Path of a data set's archive as published, in `folder` or its subfolders; None if there is none."""
    places = _places(name, folder)
    archives = filter(_is_archive, SOURCES[name].downloads)
    return _first(place / item.name for item in archives for place in places)


def missing(name: str, folder: Path | str | None, reasons: list[str]) -> str:
    """Message for a data set that is not there: files, folders looked in, `reasons`, and the remedy."""
    places, source = _places(name, folder), SOURCES[name]
    files = [file for file, path in find(name, folder).items() if path is None]
    downloads = ", ".join(item.name for item in source.downloads)
    remedy = f"remedy: place {downloads} from {source.mirrors[0]} there, or set ENN_DATA to the folder with "
    found = f"{name}: no good copy of {', '.join(files) or 'its files'} in {' or '.join(map(str, places))}"
    return "\n  ".join([found, *reasons, f"{remedy}{source.folder}/"])


def status(folder: Path | str | None = None) -> list[FileStatus]:
    """Every file of every known data set, present or not. Reads none of them."""
    found = ((name, *pair) for name in SOURCES for pair in find(name, folder).items())
    return [FileStatus(name, file, path, _size(path), None) for name, file, path in found]


def verify(name: str, folder: Path | str | None = None) -> list[FileStatus]:
    """As `status`, for one data set, with the checksums of the files' unpacked bytes compared."""
    found = zip(find(name, folder).values(), SOURCES[name].files, strict=True)
    return [FileStatus(name, item.name, path, _size(path), path and _intact(path, item)) for path, item in found]


def fetch(name: str, folder: Path | str | None = None, progress: bool | None = None) -> Path:
    """Download what a data set lacks into a subfolder of `folder` (default `data_folder()`); return its path.

    Files with the right checksum are kept, damaged ones replaced, archives unpacked; a file is there whole and right
    or not at all. `progress`: show a bar; None: only when stderr is a terminal.
    Raises DownloadError; ValueError for an unknown name.
    """
    target = _places(name, folder)[0]
    if _lacking(name, folder):
        try:
            target.mkdir(parents=True, exist_ok=True)
            with lock(target / ".lock"):
                _fetch(name, folder, target / ".part", progress)
        except (DownloadError, ValueError) as error:
            raise DownloadError(missing(name, folder, str(error).splitlines())) from error
        except OSError as error:
            raise DownloadError(missing(name, folder, [f"cannot write to {target}: {error}"])) from error
    return next(path for path in find(name, folder).values() if path).parent


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a broken .gz, .xz, .tar or .zip makes the standard library raise into DamagedFile."""
    try:
        yield
    except DamagedFile:
        raise
    except (*PACKING_ERRORS, EOFError, OSError, RuntimeError, ValueError) as error:
        # Of the system's errors only EINVAL is meant: a broken zip sends it to a place before the file's start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedFile(path, f"{type(error).__name__}: {error}") from error


def open_packed(path: Path) -> BinaryIO:
    """Open a plain, .gz or .xz file for reading its unpacked bytes."""
    return {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "rb")


def members(archive: Path, source: Source) -> Iterator[tuple[Item, BinaryIO]]:
    """Expected files inside a .zip or .tar.gz as (item, stream); ValueError for one that is missing or odd.

    Only exact names are read and none becomes a path, so `../`, absolute names and links lead nowhere.
    """
    wanted = {f"{source.folder}/{file.name}": file for file in source.files}
    kind = _zip_members if archive.suffix == ".zip" else _tar_members
    for name, regular, size, stream in kind(archive, wanted):
        item = wanted.pop(name)
        if not regular or size > item.size:
            what = f"of {size} bytes" if regular else "a link or folder"
            raise DamagedFile(archive, f"{name} in it is {what}, expected a file of at most {item.size} bytes")
        yield item, stream
    if wanted:
        raise DamagedFile(archive, f"{', '.join(wanted)} not found in it")


def _zip_members(archive: Path, wanted: dict[str, Item]) -> Iterator[tuple[str, bool, int, BinaryIO]]:
    with zipfile.ZipFile(archive) as file:
        for name in sorted(wanted.keys() & set(file.namelist())):
            info = file.getinfo(name)
            regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            with file.open(info) as stream:  # gives at most file_size bytes, whatever the packed data hold
                yield name, regular, info.file_size, stream


def _tar_members(archive: Path, wanted: dict[str, Item]) -> Iterator[tuple[str, bool, int, BinaryIO]]:
    skipped, limit = 0, 1 << 20
    # As a stream, which never seeks, so that every byte is unpacked once.
    with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as file:
        for info in file:
            if info.name in wanted:
                yield info.name, info.isreg(), info.size, file.extractfile(info) if info.isreg() else None
            elif (skipped := skipped + info.size) > limit:
                raise DamagedFile(archive, f"over {limit} bytes of unexpected members, such as {info.name}")
            if not wanted:
                return


def matches(stream: BinaryIO, item: Item) -> bool | None:
    """Whether a stream holds exactly `item`; None if that cannot be told. Reads at most a byte too many."""
    digest, left = hashlib.sha256(), item.size + 1
    while left and (block := stream.read(min(left, BLOCK))):
        digest.update(block)
        left -= len(block)
    if item.sha256 is None:
        return None if left else False
    return digest.hexdigest() == item.sha256


def published(path: Path, item: Item) -> bool:
    """Whether a file, as it lies there, is `item` byte for byte."""
    with open(path, "rb") as file:
        return bool(matches(file, item))


def _intact(path: Path, item: Item) -> bool | None:
    try:
        with readable(path), open_packed(path) as stream:
            return matches(stream, item)
    except DamagedFile:
        return False


def _places(name: str, folder: Path | str | None) -> tuple[Path, ...]:
    """Folders to look in; the first is where downloads go."""
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(SOURCES)}")
    base, source = data_folder() if folder is None else spelled_out(folder), SOURCES[name]
    return base / source.folder, base, *(base / other for other in source.others)


def _first(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _size(path: Path | None) -> int:
    return path.stat().st_size if path and path.exists() else 0


def _is_archive(item: Item) -> bool:
    return item.name.endswith((".zip", ".tar.gz"))


def _lacking(name: str, folder: Path | str | None) -> list[Item]:
    """Downloads needed because a file is missing or damaged: the file's own, else the archive of all."""
    rows = zip(SOURCES[name].files, verify(name, folder), strict=True)
    bad = {file.name for file, row in rows if row.path is None or row.verified is False}
    return [item for item in SOURCES[name].downloads if bad and (_is_archive(item) or item.name[:-3] in bad)]


def _fetch(name: str, folder: Path | str | None, part: Path, progress: bool | None) -> None:
    """Bring what is lacking into the folder above `part`, a folder for what is not whole yet."""
    source = SOURCES[name]
    shutil.rmtree(part, ignore_errors=True)  # what a killed process left
    part.mkdir()
    try:
        # Asked again: another process may have fetched the files while this one waited for the lock.
        for item in _lacking(name, folder):
            placed = find_archive(name, folder) if _is_archive(item) else None  # by hand
            got = placed if placed and published(placed, item) else _download(item, source.mirrors, part, progress)
            if _is_archive(item):
                _unpack(got, source, part)
            else:
                os.replace(got, part.parent / item.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(archive: Path, source: Source, part: Path) -> None:
    """Put the files of a data set's archive into its folder, each once it is whole and right; `part` is for halves."""
    with readable(archive):
        for file, stream in members(archive, source):
            with open(part / file.name, "wb") as out:
                shutil.copyfileobj(stream, out, BLOCK)
            if _intact(part / file.name, file) is False:
                raise DamagedFile(archive, f"{file.name} in it has the wrong checksum")
            os.replace(part / file.name, part.parent / file.name)


def _download(item: Item, mirrors: tuple[str, ...], part: Path, progress: bool | None) -> Path:
    """`item` in the folder `part`, from the first mirror that gives it; DownloadError has what was wrong with each."""
    import pooch
    from requests import RequestException
    from tqdm import tqdm

    pooch.get_logger().setLevel("WARNING")  # it tells of every download
    headers, reasons = {"User-Agent": AGENT, "Accept-Encoding": "identity"}, []
    for mirror in mirrors:
        url = mirror + item.name
        hidden = sys.stderr is None or (None if progress is None else not progress)
        with tqdm(total=item.size, unit="B", unit_scale=True, desc=item.name, disable=hidden) as bar:
            asking = {"timeout": TIMEOUT, "headers": headers, "hooks": {"response": _as_sent}}
            try:
                got = pooch.retrieve(
                    url, item.sha256, item.name, part, downloader=pooch.HTTPDownloader(bar, BLOCK, **asking)
                )
            except (RequestException, ValueError) as error:
                reasons.append(f"{url}: {_reason(error)}")
                continue
        os.chmod(got, part.parent.stat().st_mode & 0o666)  # pooch's are for one user alone
        return Path(got)
    raise DownloadError("\n".join(reasons))


def _as_sent(reply, **_) -> None:
    """Keep requests from unpacking a .gz that a server labels as an encoding."""
    reply.raw.headers.pop("Content-Encoding", None)


def _reason(error: Exception) -> str:
    """The innermost cause, without the class names that requests and urllib3 wrap around it."""
    inner = error.args[0] if error.args else None
    while isinstance(inner, Exception):
        error = inner
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    return inner if isinstance(inner, str) else str(error)

"""Where data sets are published, where they lie and how they get there: found, verified, read, downloaded by pooch."""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..checkpoint import lock, spelled_out, whole
from ..checks import choice

AGENT = "enn_np/0.1"  # wikitext.smerity.com refuses the default name of Python's clients
TIMEOUT = (10, 30)  # seconds to connect, seconds between two pieces of data
BLOCK = 1 << 16  # bytes
OPENERS = {".gz": gzip.open, "": open, ".xz": lzma.open}  # a file counts as present in any form, the first one found
BROKEN = (EOFError, KeyError, OSError, RuntimeError, ValueError, lzma.LZMAError, struct.error, zlib.error)
BROKEN += (tarfile.TarError, zipfile.BadZipFile)
PICKLED = {"cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz")}  # never read: it runs whatever a file says
AS_IT_IS = "verify=False reads it as it is"
UNPUBLISHED = f"not the published file (wrong sha256); {AS_IT_IS}"


class Item(NamedTuple):
    """A published file: its size in bytes (a mere upper limit where `sha256` is None) and its checksum."""

    name: str
    size: int
    sha256: str | None


class Source(NamedTuple):
    """A data set: its folder (inside archives too), mirrors, what to download, the files it unpacks to, and other
    folders to look for them in."""

    folder: str
    mirrors: tuple[str, ...]
    downloads: tuple[Item, ...]
    files: tuple[Item, ...]
    others: tuple[str, ...] = ()


class Found(NamedTuple):
    """A file of a data set and where it lies: plain, .gz, .xz, as the member `inside` of an archive, or nowhere.

    verified    whether its checksum is right; None: not looked at, or none is published
    """

    dataset: str
    item: Item
    path: Path | None
    inside: str = ""
    verified: bool | None = None

    @property
    def file(self) -> str:
        """Its published name."""
        return self.item.name

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path else 0

    def __str__(self):
        return f"{self.path}, member {self.inside}" if self.inside else str(self.path)


class DownloadError(OSError):
    """A download failed: the message names file, folder, each URL with what went wrong, and the remedy."""


class DamagedFile(ValueError):
    """A data file's content is not what it should be: the message names file, fault and remedy. What is not ours to
    fetch, such as a reader's own text, is never called replaceable."""

    def __init__(self, where: Found | Path | str, what: str):
        name = str(where).replace(".idx", "-idx")
        published = any(item.name in name for source in SOURCES.values() for item in source.downloads + source.files)
        remedy = "fetch it again: python -m enn_np data fetch NAME" if published else "put a good copy in its place"
        super().__init__(f"{where} is damaged: {what}; {remedy}")


# One block a data set: name, folder, and where others put it (torchvision); mirrors; each file's name, bytes and
# sha256, first those to download (.gz, .zip), then what they unpack to. All are the published values; where no checksum
# is (a "-"), the bytes are a limit, and the archive's checksum vouches for the file.
TABLE = """
mnist mnist/ MNIST/raw/ raw/
https://ossci-datasets.s3.amazonaws.com/mnist/
https://storage.googleapis.com/cvdf-datasets/mnist/
train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
train-images-idx3-ubyte 47040016 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
train-labels-idx1-ubyte 60008 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
t10k-images-idx3-ubyte 7840016 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
t10k-labels-idx1-ubyte 10008 ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2

cifar10 cifar-10-batches-bin/
https://www.cs.toronto.edu/~kriz/
cifar-10-binary.tar.gz 170052171 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
data_batch_1.bin 30730000 cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
data_batch_2.bin 30730000 a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
data_batch_3.bin 30730000 bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
data_batch_4.bin 30730000 014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
data_batch_5.bin 30730000 755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
test_batch.bin 30730000 8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b

wikitext-2 wikitext-2/
https://wikitext.smerity.com/
wikitext-2-v1.zip 4475746 92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c
wiki.train.tokens 10797148 -
wiki.valid.tokens 1121681 f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8
wiki.test.tokens 1256449 d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0

wikitext-103 wikitext-103/
https://wikitext.smerity.com/
wikitext-103-v1.zip 190229076 242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590
wiki.train.tokens 560000000 -
wiki.valid.tokens 1142309 -
wiki.test.tokens 1281077 -
"""


def _source(block: str) -> tuple[str, Source]:
    (name, folder, *others), *rows = [line.split() for line in block.splitlines()]
    mirrors = tuple(row[0] for row in rows if len(row) == 1)
    items = [Item(row[0], int(row[1]), row[2].strip("-") or None) for row in rows if len(row) == 3]
    downloads = tuple(item for item in items if item.name.endswith((".gz", ".zip")))
    return name, Source(folder.rstrip("/"), mirrors, downloads, tuple(items[len(downloads) :]), tuple(others))


SOURCES = dict(_source(block) for block in TABLE.strip().split("\n\n"))


# Where they lie


def data_folder() -> Path:
    """Folder of the data sets: `$ENN_DATA`, else `data/` of the checkout, else a cache of the user's.

    Raises OSError where that asks for a home folder and none is known.
    """
    checkout = Path(__file__).resolve().parents[2] / "data"
    if not os.environ.get("ENN_DATA") and (checkout / "mnist_5k.npz").is_file():
        return checkout
    cache = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or "~/.cache"
    return spelled_out(os.environ.get("ENN_DATA") or f"{cache}/enn_np")


def places(name: str, folder: Path | str | None) -> tuple[Path, ...]:
    """Folders to look in; the first is where downloads go."""
    source = SOURCES[choice("name", name, tuple(SOURCES))]
    base = data_folder() if folder is None else spelled_out(folder)
    return base / source.folder, base, *(base / other for other in source.others)


def find(name: str, folder: Path | str | None = None) -> list[Found]:
    """Where each file of a data set lies, in `folder` or its subfolders: plain, .gz or .xz, else in the archive.

    MNIST's files may also be named as inside their own archives, train-images.idx3-ubyte.
    """
    folders, source, found = places(name, folder), SOURCES[name], []
    archive = first(folders, [item.name for item in source.downloads if _is_archive(item)])
    for item in source.files:
        path = first(folders, (item.name, item.name.replace("-idx", ".idx")))
        inside = f"{source.folder}/{item.name}" if archive and not path else ""
        found.append(Found(name, item, path or archive, inside))
    return found


def first(places: Sequence[Path], spellings: Sequence[str]) -> Path | None:
    """The first file of one of these names, plain or packed, in these folders."""
    paths = (place / (each + packing) for place in places for each in spellings for packing in OPENERS)
    return next((path for path in paths if path.is_file()), None)


def locate(name: str, folder: Path | str | None = None, download: bool = True, start: int = 0) -> list[Found]:
    """As `find`, from file number `start` on, after downloading what is missing.

    Raises FileNotFoundError where a file is missing and `download` is False; DownloadError.
    """
    if not all(file.path for file in find(name, folder)[start:]):
        if not download:
            raise FileNotFoundError(missing(name, folder, ["not fetched, because of download=False"]))
        fetch(name, folder)
    return find(name, folder)[start:]


def missing(name: str, folder: Path | str | None, reasons: list[str]) -> str:
    """Message for a data set that is not there: files, folders looked in, `reasons`, and the remedy."""
    folders, source = places(name, folder), SOURCES[name]
    files = ", ".join(found.file for found in find(name, folder) if not found.path)
    downloads = ", ".join(item.name for item in source.downloads)
    remedy = f"remedy: place {downloads} from {source.mirrors[0]} there, or set ENN_DATA to the folder with "
    found = f"{name}: no good copy of {files or 'its files'} in {' or '.join(map(str, folders))}"
    pickled = [folders[1] / form for form in PICKLED.get(name, ()) if (folders[1] / form).exists()]
    hints = [f"{path} is pickled, which is never read" for path in pickled]
    return "\n  ".join([found, *reasons, *hints, f"{remedy}{source.folder}/"])


def status(folder: Path | str | None = None) -> list[Found]:
    """Every file of every known data set, present or not. Reads none of them."""
    return [file for name in SOURCES for file in find(name, folder)]


def verify(name: str, folder: Path | str | None = None) -> list[Found]:
    """As `status`, for one data set, with the checksums of the files' unpacked bytes compared."""
    return [file._replace(verified=intact(file) if file.path else None) for file in find(name, folder)]


def _is_archive(item: Item) -> bool:
    return item.name.endswith((".zip", ".tar.gz"))


# What is in them


@contextmanager
def opened(file: Found) -> Iterator[BinaryIO]:
    """A stream of a file's unpacked bytes. DamagedFile where it is broken, or missing in its archive.

    Of an archive only exact names are read and none becomes a path, so `../`, absolute names and links lead nowhere.
    """
    try:
        if not file.inside:
            with OPENERS.get(file.path.suffix, open)(file.path, "rb") as stream:
                yield stream
        elif file.path.suffix == ".zip":
            with zipfile.ZipFile(file.path) as archive, archive.open(file.inside) as stream:
                yield stream
        else:
            with tarfile.open(file.path, "r:gz") as archive:
                member = next((each for each in archive if each.name == file.inside and each.isreg()), None)
                if member is None:
                    raise KeyError("no file of that name")
                yield archive.extractfile(member)
    except BROKEN as error:
        # Of the system's errors only EINVAL is meant: a broken zip sends it to a place before the file's start.
        if isinstance(error, DamagedFile) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        raise DamagedFile(file, f"{type(error).__name__}: {error}") from error


def read(file: Found, verify: bool = True) -> bytes:
    """The unpacked bytes, at most one more than there should be. DamagedFile where `verify` finds other bytes."""
    with opened(file) as stream:
        data = stream.read(file.item.size + 1)
    if verify and file.item.sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise DamagedFile(file, UNPUBLISHED)
    if verify and len(data) > file.item.size:
        raise DamagedFile(file, f"it has over {file.item.size} bytes")
    return data


def intact(file: Found) -> bool | None:
    """Whether a file's unpacked bytes are the published ones; None if that cannot be told."""
    try:
        read(file)
    except DamagedFile:
        return False
    return True if file.item.sha256 else None


# How they get there


def fetch(name: str, folder: Path | str | None = None) -> Path:
    """Download what a data set lacks into a subfolder of `folder` (default `data_folder()`); return its path.

    Files with the right checksum are kept, damaged ones replaced, archives unpacked; a file is there whole and right
    or not at all. A terminal shows a bar.
    Raises DownloadError; ValueError for an unknown name.
    """
    target = places(name, folder)[0]
    part = target / ".part"  # for what is not whole yet
    if _lacking(name, folder):
        try:
            target.mkdir(parents=True, exist_ok=True)
            with lock(target / ".lock"):
                try:
                    # Asked again: another process may have fetched the files while this one waited for the lock.
                    for item in _lacking(name, folder):
                        _bring(name, item, part)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
        except (OSError, ValueError) as error:
            raise DownloadError(missing(name, folder, str(error).splitlines())) from error
    return find(name, folder)[0].path.parent


def _lacking(name: str, folder: Path | str | None) -> list[Item]:
    """Downloads needed because a file is missing or damaged: the file's own, else the archive of all."""
    bad = {row.file for row in verify(name, folder) if not row.path or row.verified is False}
    return [item for item in SOURCES[name].downloads if bad and (_is_archive(item) or item.name[:-3] in bad)]


def _bring(name: str, item: Item, part: Path) -> None:
    """Put a download, or the files in it, into the folder above `part`, each once it is whole and right."""
    got = _download(item, SOURCES[name].mirrors, part)
    if not _is_archive(item):
        os.replace(got, part.parent / item.name)
        return
    for file in SOURCES[name].files:
        data = read(Found(name, file, got, f"{SOURCES[name].folder}/{file.name}"))
        with whole(part.parent / file.name) as out:
            out.write(data)


def _download(item: Item, mirrors: Sequence[str], part: Path) -> Path:
    """`item` in the folder `part`, from the first mirror that gives it; DownloadError has what was wrong with each."""
    import pooch
    from requests import RequestException
    from tqdm import tqdm

    pooch.get_logger().setLevel("WARNING")  # it tells of every download
    headers, reasons = {"User-Agent": AGENT, "Accept-Encoding": "identity"}, []
    asking = {"timeout": TIMEOUT, "headers": headers, "hooks": {"response": _as_sent}, "chunk_size": BLOCK}
    hidden = sys.stderr is None or None  # None: unless it is a terminal
    for url in (mirror + item.name for mirror in mirrors):
        with tqdm(total=item.size, unit="B", unit_scale=True, desc=item.name, disable=hidden) as bar:
            try:
                got = pooch.retrieve(url, item.sha256, item.name, part, downloader=pooch.HTTPDownloader(bar, **asking))
            except (RequestException, ValueError) as error:
                reasons.append(f"{url}: {str(error).rpartition('(Caused by ')[2]}")
                continue
        os.chmod(got, part.parent.stat().st_mode & 0o666)  # pooch's are for one user alone
        return Path(got)
    raise DownloadError("\n".join(reasons))


def _as_sent(reply, **_) -> None:
    """Keep requests from unpacking a .gz that a server labels as an encoding."""
    reply.raw.headers.pop("Content-Encoding", None)

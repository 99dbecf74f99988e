"""Where data sets are published, where they lie and how they get there: found, verified, read, downloaded by pooch."""

import gzip
import hashlib
import lzma
import os
import shutil
import sys
import zlib
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path

from ..checkpoint import lock, spelled_out
from ..checks import choice

AGENT = "enn_np/0.1"  # wikitext.smerity.com refuses the default name of Python's clients
TIMEOUT = (10, 30)  # seconds to connect, seconds between two pieces of data
OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}  # a file counts as present in any form, the first one found


# A data set: where it goes and other folders to look in; mirrors; what to download, {name: sha256}; and the files that
# unpacks to, {name: checksums, of which one has to be right}.
Source = namedtuple("Source", "folders mirrors downloads files")
# A file of a data set, by its published name, and where it lies: plain, .gz, .xz, or nowhere (None). verified: whether
# a checksum is right; None: not looked at, or there is none.
Found = namedtuple("Found", "dataset file path sums verified", defaults=((), None))


class DownloadError(OSError):
    """A download failed: the message names file, folder, each URL with what went wrong, and the remedy."""


class DamagedFile(ValueError):
    """A data file's content is not what it should be: the message names file, fault and remedy."""

    def __init__(self, where: Found, what: str):
        remedy = "put a good copy there, or fetch it again: python -m enn_np data fetch NAME"
        super().__init__(f"{where.path} is damaged: {what}; {remedy}")


# One block a data set: name, folder, and where others put it (torchvision); mirrors; each file's name and published
# checksum, first those to download (.gz, .zip), then what they unpack to, none where they stay packed. SHA-1 sums are
# GluonNLP's. A text in `OTHER_ORDER` may be read, as stored results were measured on it, but is not called verified.
OTHER_ORDER = "14d54590d4e63eda7b9a100e2f577e3dd8b53d79971fa95cfea1211d08555a7a"  # of WikiText-2's train text
TABLE = f"""
mnist mnist MNIST/raw raw
https://ossci-datasets.s3.amazonaws.com/mnist/
https://storage.googleapis.com/cvdf-datasets/mnist/
train-images-idx3-ubyte.gz 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
train-labels-idx1-ubyte.gz 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
t10k-images-idx3-ubyte.gz 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
t10k-labels-idx1-ubyte.gz f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
train-images-idx3-ubyte ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
train-labels-idx1-ubyte 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
t10k-images-idx3-ubyte 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
t10k-labels-idx1-ubyte ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2

cifar10 cifar-10-batches-bin
https://www.cs.toronto.edu/~kriz/
cifar-10-binary.tar.gz c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
data_batch_1.bin cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
data_batch_2.bin a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
data_batch_3.bin bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
data_batch_4.bin 014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
data_batch_5.bin 755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
test_batch.bin 8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b

wikitext-2 wikitext-2
https://wikitext.smerity.com/
wikitext-2-v1.zip 92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c
wiki.train.tokens 863f29c46ef9d167fff4940ec821195882fe29d1
wiki.train.tokens {OTHER_ORDER}
wiki.valid.tokens f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8
wiki.test.tokens d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0

wikitext-103 wikitext-103
https://wikitext.smerity.com/
wikitext-103-v1.zip 242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590
wiki.train.tokens b7497e2dfe77e72cfef5e3dbc61b7b53712ac211
wiki.valid.tokens 9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b
wiki.test.tokens 56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9

omniglot omniglot
https://raw.githubusercontent.com/brendenlake/omniglot/master/python/
images_background_small1.zip f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4
images_background_small2.zip 3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f
"""


def _source(block):
    (name, *folders), *rows = [line.split() for line in block.splitlines()]
    mirrors, items = [row[0] for row in rows if len(row) == 1], [row for row in rows if len(row) == 2]
    downloads, files = {file: known for file, known in items if file.endswith((".gz", ".zip"))}, {}
    for file, known in items[len(downloads) :]:
        files[file] = (*files.get(file, ()), known)
    files = files or {file: (known,) for file, known in downloads.items()}  # archives that stay packed
    return name, Source(folders, mirrors, downloads, files)


SOURCES = dict(_source(block) for block in TABLE.strip().split("\n\n"))


def data_folder() -> Path:
    """Folder of the data sets: `$ENN_DATA`, else `data/` of the checkout, else a cache of the user's. Raises OSError
    where that asks for a home folder and none is known."""
    checkout = Path(__file__).resolve().parents[2] / "data"
    if not os.environ.get("ENN_DATA") and (checkout / "mnist_5k.npz").is_file():
        return checkout
    cache = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or "~/.cache"
    return spelled_out(os.environ.get("ENN_DATA") or f"{cache}/enn_np")


def places(name: str, folder: Path | str | None = None) -> tuple[Path, ...]:
    """Folders to look in; the first is where downloads go. ValueError for an unknown name."""
    target, *others = SOURCES[choice("name", name, tuple(SOURCES))].folders
    base = data_folder() if folder is None else spelled_out(folder)
    return base / target, base, *(base / other for other in others)


def first(places: Iterable[Path], *spellings: str) -> Path | None:
    """The first file of one of these names, plain or packed, in these folders."""
    paths = (place / (each + packing) for place in places for each in spellings for packing in OPENERS)
    return next((path for path in paths if path.is_file()), None)


def find(name: str, folder: Path | str | None = None) -> list[Found]:
    """A `Found` for each file of a data set, in `folder` or its subfolders, plain, .gz or .xz. MNIST's may also be
    named as inside their own archives, train-images.idx3-ubyte."""
    folders = places(name, folder)
    files = SOURCES[name].files.items()
    return [Found(name, each, first(folders, each, each.replace("-idx", ".idx")), sums) for each, sums in files]


def locate(name: str, folder: Path | str | None = None, download: bool = True, start: int = 0) -> list[Found]:
    """As `find`, from file number `start` on, after downloading what is missing. Raises FileNotFoundError where a file
    is missing and `download` is False; DownloadError."""
    if not all(file.path for file in find(name, folder)[start:]):
        if not download:
            raise FileNotFoundError(missing(name, folder, ["not fetched, because of download=False"]))
        fetch(name, folder)
    return find(name, folder)[start:]


def missing(name: str, folder: Path | str | None, reasons: list[str]) -> str:
    """Message for a data set that is not there: files, folders looked in, `reasons`, and the remedy."""
    folders, source = " or ".join(map(str, places(name, folder))), SOURCES[name]
    files = ", ".join(found.file for found in find(name, folder) if not found.path) or "its files"
    remedy = f"remedy: place {', '.join(source.downloads)} from {source.mirrors[0]} there, or set ENN_DATA"
    lines = f"{name}: no good copy of {files} in {folders}", *reasons, f"{remedy} to the folder of {source.folders[0]}/"
    return "\n  ".join(lines)


def verify(name: str, folder: Path | str | None = None) -> list[Found]:
    """As `find`, with the checksums of the files' unpacked bytes compared."""
    return [file._replace(verified=_intact(file) if file.path else None) for file in find(name, folder)]


def read(file: Found, verify: bool = True, most: int = -2) -> bytes:
    """The unpacked bytes, at most `most` + 1. DamagedFile if there are none or, for `verify`, others than published."""
    try:
        with OPENERS.get(file.path.suffix, open)(file.path, "rb") as stream:
            data = stream.read(most + 1)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DamagedFile(file, f"{type(error).__name__}: {error}") from error
    found = {hashlib.new(kind, data).hexdigest() for kind in ("sha1", "sha256")} if verify and file.sums else ()
    if found and found.isdisjoint(file.sums):
        raise DamagedFile(file, "not the published file (wrong checksum); verify=False reads it as it is")
    return data


def _intact(file):
    """Whether a file's unpacked bytes are the published ones; None if that cannot be told, or in `OTHER_ORDER`."""
    try:
        found = hashlib.sha256(read(file)).hexdigest()
    except DamagedFile:
        return False
    return True if file.sums and found != OTHER_ORDER else None


def fetch(name: str, folder: Path | str | None = None) -> Path:
    """Download what a data set lacks into a subfolder of `folder` (default `data_folder()`); return its path.

    Files with the right checksum are kept, damaged ones replaced, archives unpacked, those placed by hand too; a file
    is there whole and right or not at all. A terminal shows a bar.
    Raises DownloadError; ValueError for an unknown name.
    """
    folders = places(name, folder)
    target, part = folders[0], folders[0] / ".part"  # for what is not whole yet
    if _lacking(name, folder):
        try:
            target.mkdir(parents=True, exist_ok=True)
            with lock(target / ".lock"):
                try:
                    # Asked again: another process may have fetched the files while this one waited for the lock.
                    for file in _lacking(name, folder):
                        for path in _bring(name, file, folders, part):
                            path.chmod(target.stat().st_mode & 0o666)  # pooch's are for one user alone
                            path.replace(target / path.name)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
        except (OSError, ValueError) as error:
            raise DownloadError(missing(name, folder, str(error).splitlines())) from error
    return find(name, folder)[0].path.parent


def _lacking(name, folder):
    """Downloads needed because a file is missing or damaged: the file's own, else the archive of all."""
    good = {row.file: row.path and row.verified is not False for row in verify(name, folder)}
    return [each for each in SOURCES[name].downloads if not good.get(each.removesuffix(".gz"), all(good.values()))]


def _bring(name, file, folders, part):
    """Paths in the folder `part`: a download, from the first mirror that gives it, or the files in it if an archive."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")  # it tells of every download
    source, placed, reasons = SOURCES[name], first(folders, file), []
    part.mkdir(exist_ok=True)
    if placed:  # by hand: pooch downloads nothing where that has the right checksum, and opens no other archive
        shutil.copyfile(placed, part / file)
    unpack = pooch.Unzip() if file.endswith(".zip") else pooch.Untar() if file.endswith(".tar.gz") else None
    unpack = None if file in source.files else unpack
    shown = sys.stderr is not None and sys.stderr.isatty()
    asking = {"headers": {"User-Agent": AGENT, "Accept-Encoding": "identity"}, "hooks": {"response": _as_sent}}
    downloader = pooch.HTTPDownloader(shown, chunk_size=1 << 16, timeout=TIMEOUT, **asking)
    for url in (mirror + file for mirror in source.mirrors):
        if shown:
            print(url, file=sys.stderr)
        try:
            got = pooch.retrieve(url, source.downloads[file], file, part, unpack, downloader)
        except (RequestException, ValueError) as error:
            reasons.append(f"{url}: {str(error).rpartition('(Caused by ')[2]}")
        else:
            return [path for path in map(Path, got if unpack else [got]) if path.name in (file, *source.files)]
    raise DownloadError("\n".join(reasons))


def _as_sent(reply, **_):
    """Keep requests from unpacking a .gz that a server labels as an encoding."""
    reply.raw.headers.pop("Content-Encoding", None)

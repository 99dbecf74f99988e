"""Image data sets as uint8 arrays, and what turns them into float32 sequences: rows, scaling, splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from numbers import Integral, Real
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from enn_np import download as files
from enn_np.checks import unmasked
from enn_np.download import data_folder

Array = np.ndarray
DIGITS = files.Item("mnist_5k.npz", 830153, "ec56671eedea578fe38198d455616f721540adb79079f21462763a80602814a0")
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue planes, each row by row
UNPUBLISHED = "not the published file (wrong sha256); verify=False reads it as it is"


class Dataset(NamedTuple):
    """Images with labels, those to learn from and those to test on.

    Images: (n, H, W), or (n, H, W, C) with colours, uint8 from 0 to 255. Labels: (n,) int64 from 0 to 9.
    """

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def load_digits() -> Dataset:
    """The 5,000 bundled MNIST digits, 28 x 28: 4,000 to learn from, 1,000 to test on. Needs no network.

    They are stored in the order 0, 1, ..., 9, 0, 1, ... and the last 1,000 are the test set, so each set (and
    each run of ten) holds every digit equally often. All come from MNIST's training set, see data/README.md.
    Raises FileNotFoundError, or ValueError for a damaged file.
    """
    package = Path(__file__).resolve().parent
    places = [package.parent / "data" / DIGITS.name, package / "data" / DIGITS.name]  # checkout, wheel
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        where = " or ".join(map(str, places))
        raise FileNotFoundError(f"{DIGITS.name} is not in {where}; install or clone enn_np again")
    if not files.published(path, DIGITS):
        raise ValueError(f"{path} is damaged (wrong size or sha256); install or clone enn_np again")
    with np.load(path, allow_pickle=False) as stored:
        x, y = stored["images"], stored["labels"].astype(np.int64)
    return Dataset(x[:4000], y[:4000], x[4000:], y[4000:])


def load_mnist(folder: Path | str | None = None, download: bool = True, verify: bool = True) -> Dataset:
    """MNIST from the official IDX files, plain or .gz: 60,000 and 10,000 images, 28 x 28.

    `folder` (default: `data_folder()`) or its subfolder mnist/ holds the files; if not, they are downloaded.
    `verify`: compare with the published checksums; False takes any images of that size, such as Fashion-MNIST.
    Raises ValueError for a damaged or other file; for a missing one FileNotFoundError or, after trying, DownloadError.
    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
    """
    paths = _locate("mnist", folder, download)
    x_train, y_train, x_test, y_test = (
        _read_idx(paths[item.name], item, verify) for item in files.SOURCES["mnist"].files
    )
    for part, x, y in (("train", x_train, y_train), ("t10k", x_test, y_test)):
        path = paths[f"{part}-labels-idx1-ubyte"]
        if len(x) != len(y):
            raise files.DamagedFile(path, f"{len(y)} labels, expected {len(x)}, one for each image")
        _check_labels(y, path)
    return Dataset(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))


def load_cifar10(folder: Path | str | None = None, download: bool = True, verify: bool = True) -> Dataset:
    """CIFAR-10 from the official binary version: 50,000 and 10,000 images, 32 x 32 x 3 (red, green, blue).

    `folder` (default: `data_folder()`) or its subfolder cifar-10-batches-bin/ holds the .bin files, plain or
    .xz, or cifar-10-binary.tar.gz; if not, they are downloaded. The pickled version is never read, because
    unpickling runs whatever a file says. `verify` and errors: as for `load_mnist`.
    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    source = files.SOURCES["cifar10"]
    items = {item.name: (10_000 * i, item) for i, item in enumerate(source.files)}
    x, y = np.empty((60_000, 32, 32, 3), np.uint8), np.empty(60_000, np.int64)

    def read(stream: BinaryIO, name: str, where: str) -> None:
        start, item = items[name]
        part = slice(start, start + 10_000)
        _read_cifar(stream, where, x[part], y[part], item.sha256 if verify else None)

    unread = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
    archive = files.find_archive("cifar10", folder)
    if archive and None in files.find("cifar10", folder).values():
        if verify and not files.published(archive, source.downloads[0]):
            raise files.DamagedFile(archive, UNPUBLISHED)
        with files.readable(archive):
            for item, stream in files.members(archive, source):
                read(stream, item.name, f"{archive}: {item.name}")
    else:
        for name, path in _locate("cifar10", folder, download, unread).items():
            with files.readable(path), files.open_packed(path) as stream:
                read(stream, name, f"{path}")
    return Dataset(x[:50_000], y[:50_000], x[50_000:], y[50_000:])


def _locate(name: str, folder: Path | str | None, download: bool, unread: Sequence[str] = ()) -> dict:
    """Paths of a data set's files, downloaded if any is missing; an error names `unread` forms it meets."""
    paths = files.find(name, folder)
    if None not in paths.values():
        return paths
    base = data_folder() if folder is None else Path(folder)
    hints = [f"{base / form} is pickled, which is never read" for form in unread if (base / form).exists()]
    if not download:
        hints += ["not fetched, because of download=False"]
        raise FileNotFoundError(files.missing(name, folder, hints))
    try:
        files.fetch(name, folder)
    except files.DownloadError as error:
        raise files.DownloadError("\n  ".join([str(error), *hints])) from error
    return files.find(name, folder)


def _read_idx(path: Path, item: files.Item, verify: bool = False) -> Array:
    """An IDX file's array: (n,) labels, or (n, 28, 28) images; at most as large as the official one, or that one."""
    magic, sides = (2049, ()) if "labels" in item.name else (2051, (28, 28))
    with files.readable(path), files.open_packed(path) as stream:
        header = stream.read(8 + 4 * len(sides))
        if len(header) < 8 + 4 * len(sides):
            raise files.DamagedFile(path, f"it ends within its header, after {len(header)} bytes")
        first, count, *rest = np.frombuffer(header, ">u4").tolist()
        if (first, *rest) != (magic, *sides):
            raise files.DamagedFile(path, f"magic number and sides are {first, *rest}, expected {magic, *sides}")
        # Checked before the array is made: a wrong count would ask for terabytes.
        if not 0 < count * prod(sides) <= item.size:
            limit = item.size // prod(sides)
            raise files.DamagedFile(path, f"its header announces {count} items, expected 1 to {limit}")
        array = np.empty((count, *sides), np.uint8)
        got = stream.readinto(array.reshape(-1))
        if got < array.size or stream.read(1):
            much = "more" if got == array.size else f"only {got}"
            raise files.DamagedFile(path, f"its header announces {array.size} bytes of data, found {much}")
    _check_published(path, item.sha256 if verify else None, header, array)
    return array


def _read_cifar(stream: BinaryIO, where: str, images: Array, labels: Array, sha256: str | None = None) -> None:
    """Fill images (n, 32, 32, 3) and labels (n,) from a stream of n records, whose bytes have the checksum, if any."""
    size = len(labels) * CIFAR_RECORD
    data = stream.read(size + 1)
    if len(data) != size:
        much = "more" if len(data) > size else f"only {len(data)}"
        raise files.DamagedFile(where, f"expected {size} bytes ({len(labels)} records), found {much}")
    _check_published(where, sha256, data)
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    _check_labels(records[:, 0], where)
    labels[:] = records[:, 0]
    images[:] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _check_published(where: Path | str, sha256: str | None, *parts: bytes | Array) -> None:
    digest = hashlib.sha256()
    for part in parts if sha256 else ():
        digest.update(part)
    if sha256 not in (None, digest.hexdigest()):
        raise files.DamagedFile(where, UNPUBLISHED)


def _check_labels(labels: Array, where: Path | str) -> None:
    if labels.max() > 9:
        at = int(labels.argmax())
        raise files.DamagedFile(where, f"label {at} is {labels[at]}, expected 0 to 9")


def image_rows(images: Array) -> Array:
    """Images as sequences with one row of pixels a time step: (n, H, W[, C]) -> (n, H, W * C), same dtype.

    A view where the memory order allows. Raises TypeError for what is no array, ValueError for another rank.
    """
    if not isinstance(images, np.ndarray):
        kind = type(images).__name__
        raise TypeError(
            f"images: expected an array (n, H, W) or (n, H, W, C), got {kind}; np.stack makes one of a list"
        )
    if images.ndim not in (3, 4):
        raise ValueError(f"images has shape {images.shape}, expected (n, H, W) or (n, H, W, C)")
    return images.reshape(*images.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class Scaling:
    """x -> (x - shift) / scale as float32, with uint8 divided by 255 first.

    Floats are subtracted in float64: time stamps around 1.7e9 differ by less than a float32 can tell. `shift` and
    `scale` have the trailing shape of the arrays they were fitted on.
    """

    shift: Array
    scale: Array

    def transform(self, x: Array) -> Array:
        """Scaled float32 copy of x (..., features as fitted). Raises TypeError, ValueError for others."""
        unit = _unit(x)
        if x.shape[x.ndim - self.shift.ndim :] != self.shift.shape:
            raise ValueError(f"x has shape {x.shape}, expected (..., {str(self.shift.shape)[1:]} as fitted")
        kind = np.float32 if unit == 255 else np.float64
        out = np.true_divide(x, unit, dtype=kind)
        out -= np.asarray(self.shift, kind)
        out /= np.asarray(self.scale, kind)
        return out.astype(np.float32, copy=False)


class MinMax(Scaling):
    """Each feature's range over the training set becomes 0 to 1, as scikit-learn's MinMaxScaler does it."""

    @classmethod
    @np.errstate(invalid="ignore", over="ignore")  # NaN and infinity get an error of their own
    def fit(cls, x: Array) -> MinMax:
        """Fit to x (n, ...), uint8 or float; a constant is only shifted. Raises TypeError, ValueError."""
        unit = _unit(x, fitting=True)
        low, high = (np.float64(side / np.float32(unit)) for side in (x.min(0), x.max(0)))
        return cls(*_finite(low, high - low, high == low))


class Standardize(Scaling):
    """Mean 0 and standard deviation 1 over the training set."""

    @classmethod
    @np.errstate(invalid="ignore", over="ignore")  # NaN and infinity get an error of their own
    def fit(cls, x: Array, per: Literal["channel", "feature"] = "channel") -> Standardize:
        """Fit to x (n, ...), uint8 or float; a constant is only shifted. Raises TypeError, ValueError.

        `per`: "feature" for each position alone; "channel" for C means and deviations of (n, H, W, C), one
        of (n, H, W).
        """
        unit = _unit(x, fitting=True)
        if per not in ("channel", "feature"):
            raise ValueError(f"per is {per!r}, expected 'channel' or 'feature'")
        pixels = tuple(range(min(3, x.ndim) - 1)) if per == "channel" else ()  # axes to average after that of n
        count = prod(x.shape[: len(pixels) + 1])
        # In blocks, because x in float64 would take eight times the memory of uint8 pixels.
        blocks = [x[start : start + 1024] for start in range(0, len(x), 1024)]
        mean = sum(block.sum(0, dtype=np.float64) for block in blocks).sum(pixels) / count
        variance = sum(np.square(block - mean).sum(0) for block in blocks).sum(pixels) / count
        axes = (0, *(axis + 1 for axis in pixels))
        return cls(*_finite(mean / unit, np.sqrt(variance) / unit, x.min(axes) == x.max(axes)))


def _unit(x: Array, fitting: bool = False) -> int:
    """What to divide `x` by for pixels from 0 to 1; also refuses arrays that are no images or features."""
    if not isinstance(x, np.ndarray) or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        kind = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x is {kind}, expected an array of uint8 pixels or of floats; np.asarray(x, float) makes one")
    unmasked("x", x)
    if fitting and (x.ndim < 2 or x.size == 0):
        raise ValueError(f"x has shape {x.shape}, expected (n, ...) with at least one sample and one feature")
    return 255 if x.dtype == np.uint8 else 1


def _finite(shift: Array, scale: Array, constant: Array) -> tuple[Array, Array]:
    """Both in float64, scale 1 for a constant; NaN or infinity anywhere in the data shows in one of them."""
    if not (np.isfinite(shift).all() and np.isfinite(scale).all()):
        raise ValueError("x holds NaN or infinity; remove or replace them before fitting")
    # Not `scale == 0`: the deviation of 0.1, 0.1, 0.1 comes out as about 1e-17.
    constant |= scale <= 8 * np.finfo(np.float64).eps * np.abs(shift)
    return np.asarray(shift, np.float64), np.where(constant, 1, scale).astype(np.float64)


def split(n: int, parts: Sequence[float] | Sequence[int], seed: int | np.random.Generator = 0) -> tuple[Array, ...]:
    """Disjoint random index arrays (int64) into n samples, one for each of `parts`.

    `parts`: counts such as (54_000, 6_000), or fractions such as (0.9, 0.1); samples beyond their sum
    are left out. Raises ValueError when a part would be empty or too large.
    """
    parts = tuple(parts)
    counted = all(isinstance(part, Integral) for part in parts)
    if not parts or not all(isinstance(part, Real) and part > 0 for part in parts):
        raise ValueError(f"parts is {parts!r}, expected positive counts or positive fractions")
    ends = np.cumsum(parts) if counted else np.rint(np.cumsum(parts) * n).astype(np.int64)
    if ends[-1] > n or np.diff(ends, prepend=0).min() < 1:
        raise ValueError(f"parts {parts!r} of n = {n} samples end at {ends.tolist()}, expected rising ends up to n")
    return tuple(np.split(np.random.default_rng(seed).permutation(n), ends)[: len(parts)])

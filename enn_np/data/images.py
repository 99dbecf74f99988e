"""Image data sets as uint8 arrays, and what turns them into float32 sequences: rows, scaling, splits."""

import hashlib
import io
import zipfile
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..checks import choice, count, float_array, unmasked
from . import fetch

Array = np.ndarray
DIGITS = "ec56671eedea578fe38198d455616f721540adb79079f21462763a80602814a0"  # sha256 of mnist_5k.npz
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue planes, each row by row


# To learn from, and to test on: images (n, H, W), or (n, H, W, C) in colour, uint8; labels (n,) int64 from 0 to 9.
Dataset = namedtuple("Dataset", "x_train y_train x_test y_test")
Characters = namedtuple("Characters", "images labels alphabets")  # see `load_omniglot`


def load_digits() -> Dataset:
    """The 5,000 bundled MNIST digits, 28 x 28: 4,000 to learn from, 1,000 to test on. Needs no network.

    They are stored in the order 0, 1, ..., 9, 0, 1, ..., so each set (and each run of ten) holds every digit equally
    often. All come from MNIST's training set. ValueError where the file is missing or damaged.
    """
    here = Path(__file__).resolve().parent
    path = fetch.first((here.parents[1] / "data", here), "mnist_5k.npz")  # of a checkout, of a wheel
    if path is None or hashlib.sha256(path.read_bytes()).hexdigest() != DIGITS:
        raise ValueError(f"{path or here / 'mnist_5k.npz'} is missing or damaged; install or clone enn_np again")
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
    files = fetch.locate("mnist", folder, download)
    x_train, y_train, x_test, y_test = (_read_idx(file, verify) for file in files)
    y_train, y_test = _labels(files[1], y_train, len(x_train)), _labels(files[3], y_test, len(x_test))
    return Dataset(x_train, y_train, x_test, y_test)


def load_cifar10(folder: Path | str | None = None, download: bool = True, verify: bool = True) -> Dataset:
    """CIFAR-10 from the official binary version: 50,000 and 10,000 images, 32 x 32 x 3 (red, green, blue).

    `folder` (default: `data_folder()`) or its subfolder cifar-10-batches-bin/ holds the .bin files, plain or .xz; what
    is missing is downloaded, or unpacked from cifar-10-binary.tar.gz. The pickled version is never read, because
    unpickling runs whatever a file says. `verify` and errors: as for `load_mnist`.
    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    x, y = np.empty((60_000, 32, 32, 3), np.uint8), np.empty(60_000, np.int64)
    for i, file in enumerate(fetch.locate("cifar10", folder, download)):
        part = slice(10_000 * i, 10_000 * (i + 1))
        x[part], y[part] = _read_cifar(file, verify)
    return Dataset(x[:50_000], y[:50_000], x[50_000:], y[50_000:])


def load_omniglot(folder: Path | str | None = None, download: bool = True) -> Characters:
    """The two small background sets of Omniglot: 242 characters of 8 alphabets, each drawn by 20 people.

    images     (4840, 20, 20) float32: the means over equal areas of 105 x 105 pixels that are 0, paper, or 1, ink
    labels     (4840,) int64, the character, from 0 to 241
    alphabets  (242,) the name of each character's alphabet

    Sorted by alphabet and character. Greek and Latin, which stand in both sets, come once. `folder` (default:
    `data_folder()`) or its subfolder omniglot/ holds the .zip files, downloaded if missing. Errors: as `load_mnist`.
    Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction",
    Science 2015; at 20 x 20, as here, Santoro and others, arXiv 1605.06065.
    """
    from matplotlib.image import imread

    drawings = {}  # {"Greek/character01/0394_01.png": its bytes}
    for file in fetch.locate("omniglot", folder, download):
        with zipfile.ZipFile(io.BytesIO(fetch.read(file))) as archive:
            names = [name for name in archive.namelist() if name.endswith(".png")]
            drawings |= {name.partition("/")[2]: archive.read(name) for name in names}
    names = sorted(drawings)
    # (105, 20): each of 105 pixels is 4 quarters, each of 20 columns the mean of 21 of them.
    share = np.repeat(np.eye(20, dtype=np.float32), 21, axis=0).reshape(105, 4, 20).sum(1) / 21
    images = np.stack([share.T @ (1 - imread(io.BytesIO(drawings[name]))) @ share for name in names])
    characters, labels = np.unique([name.rpartition("/")[0] for name in names], return_inverse=True)
    return Characters(images, labels, np.array([each.partition("/")[0] for each in characters]))


def _read_idx(file, verify):
    """An IDX file's array: (n,) labels, or (n, 28, 28) images, n at most as official."""
    magic, sides = (2049, ()) if "labels" in file.file else (2051, (28, 28))
    start, size = 4 * (2 + len(sides)), prod(sides)
    data = fetch.read(file, verify, most=start + 60_000 * size)
    n, rest = divmod(len(data) - start, size)
    header = np.frombuffer(data[:start].ljust(start, b"\0"), ">u4").tolist()
    if header != [magic, n, *sides] or not 0 < n <= 60_000 or rest:
        expected = f"[{', '.join(map(str, (magic, 'n', *sides)))}] before n x {size} bytes, n from 1 to 60000"
        raise fetch.DamagedFile(file, f"its header is {header} before {len(data[start:])} bytes, expected {expected}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(n, *sides).copy()


def _read_cifar(file, verify, n=10_000):
    """Images (n, 32, 32, 3) and labels (n,) from a file of records."""
    data = fetch.read(file, verify, most=n * CIFAR_RECORD)
    if len(data) != n * CIFAR_RECORD:
        raise fetch.DamagedFile(file, f"expected {n * CIFAR_RECORD} bytes, found {len(data)}, or more")
    records = np.frombuffer(data, np.uint8).reshape(n, CIFAR_RECORD)
    return records[:, 1:].reshape(n, 3, 32, 32).transpose(0, 2, 3, 1), _labels(file, records[:, 0], n)


def _labels(file, y, n):
    if len(y) != n or y.max() > 9:
        raise fetch.DamagedFile(file, f"expected {n} labels from 0 to 9, got {len(y)} up to {y.max()}")
    return y.astype(np.int64)


def image_rows(images: Array) -> Array:
    """Images as sequences with one row of pixels a time step: (n, H, W[, C]) -> (n, H, W * C), same dtype.

    A view where the memory order allows. Raises ValueError for what is no array of that rank.
    """
    if getattr(images, "ndim", 0) not in (3, 4):
        got = getattr(images, "shape", type(images).__name__)
        wanted = "expected an array (n, H, W) or (n, H, W, C)"
        raise ValueError(f"images: {wanted}, got {got}; np.stack makes one of a list")
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
    def fit(cls, x: Array) -> "MinMax":
        """Fit to x (n, ...), uint8 or float; a constant is only shifted. Raises TypeError, ValueError."""
        unit = _unit(x, fitting=True)
        low, high = (np.float64(side / np.float32(unit)) for side in (x.min(0), x.max(0)))
        return cls(low, _divisor(low, high - low, high == low))


class Standardize(Scaling):
    """Mean 0 and standard deviation 1 over the training set."""

    @classmethod
    def fit(cls, x: Array, per: str = "channel") -> "Standardize":
        """Fit to x (n, ...), uint8 or float; a constant is only shifted. Raises TypeError, ValueError.

        `per`: "feature" for each position alone; "channel" for each of C in (n, H, W, C), and for all of (n, H, W).
        """
        unit = _unit(x, fitting=True)
        axes = (0, 1, 2)[: x.ndim if choice("per", per, ("channel", "feature")) == "channel" and x.ndim > 2 else 1]
        size = prod(x.shape[: len(axes)])
        # In blocks, because x in float64 would take eight times the memory of uint8 pixels.
        blocks = [x[start : start + 1024] for start in range(0, len(x), 1024)]
        mean = sum(block.sum(0, dtype=np.float64) for block in blocks).sum(axes[:-1]) / size  # n, then the pixels
        variance = sum(np.square(block - mean).sum(0) for block in blocks).sum(axes[:-1]) / size
        shift = np.asarray(mean / unit)
        return cls(shift, _divisor(shift, np.sqrt(variance) / unit, x.min(axes) == x.max(axes)))


def _unit(x, fitting=False):
    """What to divide `x` by for pixels from 0 to 1; also refuses arrays that are no images or features."""
    if isinstance(x, np.ndarray) and x.dtype == np.uint8:
        unmasked("x", x)
    else:
        float_array("x", x, np.shape(x), finite=fitting)
    if fitting and (x.ndim < 2 or x.size == 0):
        raise ValueError(f"x has shape {x.shape}, expected (n, ...) with at least one sample and one feature")
    return 255 if x.dtype == np.uint8 else 1


def _divisor(shift, scale, constant):
    """`scale`, 1 for a constant. Not where it is 0: the deviation of 0.1, 0.1, 0.1 comes out as about 1e-17."""
    return np.where(constant | (scale <= 8 * np.finfo(np.float64).eps * np.abs(shift)), 1, scale).astype(np.float64)


def split(n: int, parts: Sequence[int], seed: int | np.random.Generator = 0) -> tuple[Array, ...]:
    """Disjoint random index arrays (int64) into n samples, as long as `parts` says, such as (54_000, 6_000); samples
    beyond their sum are left out. Raises TypeError or ValueError for a part that is no count, or too large."""
    ends = np.cumsum([count("parts", part) for part in parts])
    if not len(ends) or ends[-1] > count("n", n, low=0):
        raise ValueError(f"parts: expected counts of {n} samples at most, got {parts!r}")
    return tuple(np.split(np.random.default_rng(seed).permutation(n), ends)[: len(ends)])

"""The image data sets: bundled, real (where $ENN_DATA has them), synthetic, and damaged in every way."""

import gzip
import hashlib
import io
import lzma
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enn_np.data import fetch as download
from enn_np.data import images as datasets

# ENN_FUZZ=2500 pytest tests/test_datasets.py -k fuzz runs each fuzz test on that many damaged files.
FUZZ = settings(
    max_examples=int(os.environ.get("ENN_FUZZ", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MNIST = download.SOURCES["mnist"].files


def real(name: str) -> str:
    """The folder $ENN_DATA, if it holds the data set; else the test is skipped."""
    folder = os.environ.get("ENN_DATA")
    if not folder or not all(file.path for file in download.find(name, folder)):
        pytest.skip(f"set ENN_DATA to a folder that holds {name}")
    return folder


def big_endian(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}i", *numbers)


def idx(array: np.ndarray) -> bytes:
    return big_endian(2048 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 5, test: int = 3, pack=lambda data: data, suffix: str = "") -> None:
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


def cifar(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, bytes]:
    """n images (n, 32, 32, 3), their labels, and the same as the records of a .bin file."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n, np.uint8)
    records = [bytes([y]) + x.transpose(2, 0, 1).tobytes() for x, y in zip(images, labels, strict=True)]
    return images, labels, b"".join(records)


# The bundled digits


def test_digits_are_real_balanced_and_split_as_documented():
    digits = datasets.load_digits()
    assert [a.shape for a in digits] == [(4000, 28, 28), (4000,), (1000, 28, 28), (1000,)]
    assert [a.dtype for a in digits] == [np.uint8, np.int64, np.uint8, np.int64]
    assert (np.bincount(digits.y_train) == 400).all() and (np.bincount(digits.y_test) == 100).all()
    assert digits.x_train.mean() == pytest.approx(33.36927, abs=1e-4)
    assert digits.x_test.mean() == pytest.approx(33.95544, abs=1e-4)
    flat = {image.tobytes() for image in np.concatenate([digits.x_train, digits.x_test])}
    assert len(flat) == 5000  # no image twice, so none is in both sets


def test_digits_come_from_the_real_training_set():
    digits, mnist = datasets.load_digits(), datasets.load_mnist(real("mnist"), download=False)
    labels = {image.tobytes(): y for image, y in zip(mnist.x_train, mnist.y_train, strict=True)}
    assert all(labels[x.tobytes()] == y for x, y in zip(digits.x_test, digits.y_test, strict=True))


def test_digits_do_not_depend_on_enn_data(monkeypatch, tmp_path):
    monkeypatch.setenv("ENN_DATA", str(tmp_path))
    assert len(datasets.load_digits().x_train) == 4000


def test_digits_of_a_wheel_and_missing_or_damaged_ones(monkeypatch, tmp_path):
    stored = Path(__file__).parents[1] / "data" / "mnist_5k.npz"
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "enn_np" / "data" / "images.py"))
    with pytest.raises(ValueError, match=r"mnist_5k\.npz is missing or damaged; .*clone enn_np again"):
        datasets.load_digits()
    inside = tmp_path / "enn_np" / "data" / "mnist_5k.npz"
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_bytes(stored.read_bytes())
    assert len(datasets.load_digits().x_test) == 1000
    inside.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"mnist_5k\.npz is missing or damaged"):
        datasets.load_digits()


def test_import_needs_numpy_alone():
    code = "import sys, enn_np.data.images; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pooch", "requests", "tqdm", "scipy", "matplotlib"} & set(modules)


# Real files


def test_real_mnist():
    mnist = datasets.load_mnist(real("mnist"), download=False)
    assert [a.shape for a in mnist] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.y_train).tolist() == counts
    assert mnist.x_train.mean() / 255 == pytest.approx(0.13066, abs=1e-5)
    assert mnist.x_train.std() / 255 == pytest.approx(0.30811, abs=1e-5)


def test_real_cifar10():
    cifar10 = datasets.load_cifar10(real("cifar10"), download=False)
    assert [a.shape for a in cifar10] == [(50000, 32, 32, 3), (50000,), (10000, 32, 32, 3), (10000,)]
    assert (np.bincount(cifar10.y_train) == 5000).all() and (np.bincount(cifar10.y_test) == 1000).all()
    scaling = datasets.Standardize.fit(cifar10.x_train)
    np.testing.assert_allclose(scaling.shift * 255, [125.306918, 122.950394, 113.865383], rtol=1e-6)
    np.testing.assert_allclose(scaling.scale * 255, [62.99322, 62.08871, 66.70490], rtol=1e-6)


def test_real_omniglot():
    images, labels, alphabets = datasets.load_omniglot(real("omniglot"), download=False)
    assert images.shape == (4840, 20, 20) and images.dtype == np.float32 and labels.dtype == np.int64
    assert (np.bincount(labels) == 20).all() and (np.diff(labels) >= 0).all()
    names, counts = np.unique(alphabets, return_counts=True)
    known = ["Balinese", "Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog"]
    assert names.tolist() == known and counts.tolist() == [24, 22, 24, 47, 40, 26, 42, 17]
    assert (alphabets == np.sort(alphabets)).all()
    assert images.min() == 0 and images.max() == 1 and images.mean() == pytest.approx(0.0805518, abs=1e-6)
    assert len({image.tobytes() for image in images}) == 4840


# Synthetic files


def test_omniglot_by_hand(tmp_path, monkeypatch):
    """Paper for ink, a side turned, pixels lost at an edge, a character that stands in both files."""
    from PIL import Image

    ink, contents = np.random.default_rng(0).random((4, 105, 105)) < 0.2, {}
    places = {
        "small1": {"Ba/character02": 0, "Aa/character01": 1},
        "small2": {"Aa/character01": 1, "Aa/character02": 2},
    }
    for part, drawn in places.items():
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(f"images_background_{part}/Aa/", b"")
            for place, i in drawn.items():
                png = io.BytesIO()
                Image.fromarray(~ink[i]).save(png, "PNG")
                archive.writestr(f"images_background_{part}/{place}/0001_01.png", png.getvalue())
        contents[f"images_background_{part}.zip"] = packed.getvalue()
    publish(monkeypatch, "omniglot", contents)
    with pytest.raises(FileNotFoundError, match=r"no good copy of images_background_small1\.zip.*in "):
        datasets.load_omniglot(tmp_path, download=False)
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    images, labels, alphabets = datasets.load_omniglot(tmp_path, download=False)
    assert labels.tolist() == [0, 1, 2] and alphabets.tolist() == ["Aa", "Aa", "Ba"]
    for image, i in zip(images, (1, 2, 0), strict=True):
        fine = ink[i].repeat(4, 0).repeat(4, 1)  # 420 x 420, whose blocks of 21 x 21 are whole
        np.testing.assert_allclose(image, fine.reshape(20, 21, 20, 21).mean((1, 3)), atol=1e-6)
    (tmp_path / "images_background_small2.zip").write_bytes(data[:-1])
    with pytest.raises(download.DamagedFile, match=r"small2\.zip is damaged: not the published file"):
        datasets.load_omniglot(tmp_path, download=False)


@pytest.mark.parametrize(
    ("pack", "suffix", "place"),
    [(bytes, "", "."), (gzip.compress, ".gz", "mnist"), (lzma.compress, ".xz", ".")],
)
def test_mnist_in_every_form_and_place(tmp_path, pack, suffix, place):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / place, pack=pack, suffix=suffix)
    mnist = datasets.load_mnist(tmp_path, download=False, verify=False)
    assert [a.shape for a in mnist] == [(5, 28, 28), (5,), (3, 28, 28), (3,)]
    assert [a.dtype for a in mnist] == [np.uint8, np.int64, np.uint8, np.int64]
    assert mnist.x_train[0, 0, 0] == np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)[0, 0, 0]


def test_missing_mnist_names_files_folders_source_and_remedy(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load_mnist(tmp_path, download=False, verify=False)
    for part in ("t10k-labels-idx1-ubyte", str(tmp_path / "mnist"), "https://", "ENN_DATA", "download=False"):
        assert part in str(caught.value)
    assert "train-images-idx3-ubyte in" not in str(caught.value)


def test_missing_mnist_is_fetched_into_the_folder(monkeypatch, tmp_path):
    def fetch(name, folder):
        (folder / name).mkdir()
        write_mnist(folder / name)

    monkeypatch.setattr(download, "fetch", fetch)
    assert len(datasets.load_mnist(tmp_path, verify=False).x_train) == 5


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (IMAGES, b"", "its header is [0, 0, 0, 0] before 0 bytes, expected [2051, n, 28, 28] before n x 784 bytes"),
        (IMAGES, big_endian(2049, 5, 28, 28), "its header is [2049, 5, 28, 28]"),
        (IMAGES, big_endian(2051, 5, 32, 32), "its header is [2051, 5, 32, 32]"),
        (IMAGES, big_endian(2051, -1, 28, 28), "its header is [2051, 4294967295, 28, 28]"),
        (IMAGES, big_endian(2051, 0, 28, 28), "its header is [2051, 0, 28, 28] before 0 bytes, expected"),
        (IMAGES, big_endian(2051, 5, 28, 28) + b"12", "its header is [2051, 5, 28, 28] before 2 bytes"),
        (LABELS, big_endian(2049, 5) + bytes(6), "its header is [2049, 5] before 6 bytes, expected [2049, n]"),
        (LABELS, big_endian(2049, 60_001) + bytes(60_001), "its header is [2049, 60001] before 60001 bytes"),
        (LABELS, big_endian(2049, 5) + b"\0\1\2\3\12", "expected 5 labels from 0 to 9, got 5 up to 10"),
        (LABELS, big_endian(2049, 4) + bytes(4), "expected 5 labels from 0 to 9, got 4 up to 0"),
    ],
)
def test_damaged_mnist_names_the_file_and_what_is_wrong(tmp_path, name, data, message):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as caught:
        datasets.load_mnist(tmp_path, download=False, verify=False)
    assert str(tmp_path / name) in str(caught.value) and message in str(caught.value)


def read_idx(path: Path, name: str) -> np.ndarray:
    return datasets._read_idx(download.Found("mnist", name, path), verify=False)


def read_cifar(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    return datasets._read_cifar(download.Found("cifar10", "data_batch_1.bin", path), False, n)


def test_a_packed_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(big_endian(2049, 5) + bytes(50_000_000)))
    with pytest.raises(ValueError, match="before 60001 bytes"):
        read_idx(path, "t10k-labels-idx1-ubyte")


def test_cifar_records_become_rows_of_pixels(tmp_path):
    images, labels, data = cifar(4)
    (tmp_path / "batch").write_bytes(data)
    x, y = read_cifar(tmp_path / "batch", 4)
    assert (x == images).all() and (y == labels).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "expected 12292 bytes, found 12291"),
        (lambda data: data + b"0", "expected 12292 bytes, found 12293, or more"),
        (lambda data: b"\x0a" + data[1:], "expected 4 labels from 0 to 9, got 4 up to 10"),
    ],
)
def test_damaged_cifar(tmp_path, change, message):
    path = tmp_path / "batch"
    path.write_bytes(change(cifar(4)[2]))
    with pytest.raises(ValueError) as caught:
        read_cifar(path, 4)
    assert str(caught.value).startswith(f"{path} is damaged") and message in str(caught.value)


@pytest.fixture(scope="module")
def cifar_files():
    """Six batches of 10,000 records, all from one small block, as {name: bytes}, with the first images."""
    images, labels, data = cifar(4)
    names = enumerate(download.SOURCES["cifar10"].files)
    return images, labels, {name: bytes([i]) + data[1:] + data * 2499 for i, name in names}


def check_cifar(cifar10, images, labels):
    assert (cifar10.x_train[:4] == images).all() and (cifar10.x_test[-4:] == images).all()
    assert cifar10.y_train[::10_000].tolist() == [0, 1, 2, 3, 4] and cifar10.y_test[0] == 5
    assert (cifar10.y_train[1:4] == labels[1:]).all() and cifar10.y_train.dtype == np.int64


def test_cifar_from_a_folder(tmp_path, cifar_files):
    images, labels, contents = cifar_files
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name, data in contents.items():
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(data)
    check_cifar(datasets.load_cifar10(tmp_path, download=False, verify=False), images, labels)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"\0" * 3073)
    with pytest.raises(ValueError, match=r"test_batch\.bin is damaged: expected 30730000 bytes, found 3073"):
        datasets.load_cifar10(tmp_path, download=False, verify=False)


# Data sets under each other's names


def publish(monkeypatch, name, contents):
    """Declare the bytes of `contents` (file -> bytes) to be the published data set."""
    files = {each: (hashlib.sha256(contents[each]).hexdigest(),) for each in download.SOURCES[name].files}
    monkeypatch.setitem(download.SOURCES, name, download.SOURCES[name]._replace(files=files))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("swapped", [("train", "t10k"), ("t10k", "train"), ("other", "other")])
def test_mnist_under_another_name_is_refused_unless_asked_for(monkeypatch, tmp_path, suffix, swapped):
    """Train and test swapped, or Fashion-MNIST, whose files have the same names and sizes: loaded without a word."""
    write_mnist(tmp_path)
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    publish(monkeypatch, "mnist", contents)
    assert len(datasets.load_mnist(tmp_path, download=False).x_train) == 5
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    for name, data in contents.items():
        part, _, rest = name.partition("-")
        mixed = {swapped[0]: swapped[1], swapped[1]: swapped[0]}.get(part)
        data = contents[f"{mixed}-{rest}"] if mixed else data[:-1] + bytes([(data[-1] + 1) % 10])
        (tmp_path / name).unlink()
        (tmp_path / (name + suffix)).write_bytes(pack(data))
    message = r"train-images-idx3-ubyte\S* is damaged: not the published file \(wrong checksum\).*verify=False"
    with pytest.raises(download.DamagedFile, match=message):
        datasets.load_mnist(tmp_path, download=False)
    assert len(datasets.load_mnist(tmp_path, verify=False).x_test) == (3 if "other" in swapped else 5)


def test_one_wrong_file_of_four_is_refused(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    publish(monkeypatch, "mnist", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    for name in MNIST:
        path, right = tmp_path / name, (tmp_path / name).read_bytes()
        path.write_bytes(right[:-1] + bytes([(right[-1] + 1) % 10]))
        with pytest.raises(download.DamagedFile, match=f"{name} is damaged: not the published file"):
            datasets.load_mnist(tmp_path, download=False)
        path.write_bytes(right)
    assert len(datasets.load_mnist(tmp_path).x_train) == 5


def test_cifar_batches_under_each_others_names_are_refused(monkeypatch, tmp_path, cifar_files):
    contents = cifar_files[2]
    publish(monkeypatch, "cifar10", contents)
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    assert datasets.load_cifar10(tmp_path, download=False).y_test[0] == 5
    (tmp_path / "test_batch.bin").rename(tmp_path / "x")
    (tmp_path / "data_batch_2.bin").rename(tmp_path / "test_batch.bin")
    (tmp_path / "x").rename(tmp_path / "data_batch_2.bin")
    with pytest.raises(download.DamagedFile, match=r"data_batch_2\.bin is damaged: not the published file .*verify=F"):
        datasets.load_cifar10(tmp_path, download=False)
    assert datasets.load_cifar10(tmp_path, verify=False).y_test[0] == 1


def test_image_rows_of_a_list_names_the_argument():
    for wrong, got in (([np.zeros((2, 2))], "list"), ("digits", "str"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"images: expected an array \(n, H, W\).*got {got}"):
            datasets.image_rows(wrong)


# Fuzz: any damage to a file ends in one ValueError that names it, or in a whole, valid result


def damage(data: bytes, cut: int, flips: list[tuple[int, int]]) -> bytes:
    out = bytearray(data[: len(data) - cut % len(data)])
    for at, bit in flips:
        out[at % len(out)] ^= 1 << bit
    return bytes(out)


DAMAGE = {
    "cut": st.just(0) | st.integers(0, 10**6),
    "flips": st.lists(
        st.tuples(st.just(0) | st.integers(0, 40) | st.integers(0, 10**6), st.integers(0, 7)), max_size=4
    ),
}


@FUZZ
@given(suffix=st.sampled_from(["", ".gz", ".xz"]), name=st.sampled_from(sorted(MNIST)), **DAMAGE)
def test_fuzz_idx(tmp_path, suffix, name, cut, flips):
    shape = (3,) if "labels" in name else (3, 28, 28)
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](idx(np.ones(shape, np.uint8)))
    path = tmp_path / (name + suffix)
    path.write_bytes(damage(packed, cut, flips))
    try:
        array = read_idx(path, name)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert array.shape == shape and array.dtype == np.uint8
        assert suffix == "" or (array == 1).all()  # a packed file carries a checksum


# From images to sequences


def test_image_rows_are_views():
    grey, colour = (
        np.zeros((2, 28, 28), np.uint8),
        np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3),
    )
    assert datasets.image_rows(grey).shape == (2, 28, 28)
    rows = datasets.image_rows(colour)
    assert rows.shape == (2, 32, 96) and np.shares_memory(rows, colour)
    assert (rows[1, 5, 3:6] == colour[1, 5, 1]).all()  # red, green and blue of one pixel side by side
    with pytest.raises(ValueError, match=r"expected an array \(n, H, W\) or .*got \(28, 28\)"):
        datasets.image_rows(grey[0])


def test_min_max_does_as_scikit_learn():
    x = np.array([[0, 50, 7], [100, 250, 7], [50, 100, 7]], np.uint8)
    scaling = datasets.MinMax.fit(x)
    out = scaling.transform(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[0, 0, 0], [1, 1, 0], [0.5, 0.25, 0]], atol=1e-6)
    # scikit-learn on x / 255: a constant feature has scale 1, so a new value there keeps its distance.
    np.testing.assert_allclose(scaling.transform(np.array([[200, 0, 58]], np.uint8)), [[2, -0.25, 0.2]], atol=1e-6)
    np.testing.assert_allclose(datasets.MinMax.fit(x / 255).transform(x / 255), out, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("per", "axes"), [("channel", (0, 1, 2)), ("feature", 0)])
def test_standardize(dtype, per, axes):
    x = np.random.default_rng(0).integers(0, 256, (1500, 4, 5, 3)).astype(dtype)
    before = x.copy()
    out = datasets.Standardize.fit(x, per).transform(x)
    assert out.dtype == np.float32 and (x == before).all()
    np.testing.assert_allclose(out.mean(axes, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axes, dtype=np.float64), 1, atol=1e-5)


def test_standardize_grey_images_and_constants():
    x = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    assert datasets.Standardize.fit(x).shift.shape == ()
    assert datasets.Standardize.fit(x).transform(x[0]).std() == pytest.approx(1, abs=0.1)
    features = np.stack([np.arange(5.0), 1000 + np.arange(5.0)], 1)  # each has a unit of its own
    assert datasets.Standardize.fit(features).transform(features).std(0) == pytest.approx(1)
    constant = np.full((30, 2), 0.1)  # its deviation in float64 is not quite zero
    assert (np.abs(datasets.Standardize.fit(constant, "feature").transform(constant)) < 1e-6).all()


@pytest.mark.parametrize("spread", [100.0, 1.0, 1e-3])
@pytest.mark.parametrize("offset", [1.7e9, -1.7e9, 0.0])
@pytest.mark.parametrize("shape", [(200, 3), (200, 4, 3)])
def test_scaling_subtracts_before_it_rounds(spread, offset, shape):
    """Time stamps: a float32 around 1.7e9 knows steps of 128."""
    draw = np.random.default_rng(0).uniform(0, spread, shape)
    x = offset + draw
    standard = datasets.Standardize.fit(x, "feature").transform(x)
    want = (x - x.mean(0)) / x.std(0)
    assert standard.dtype == np.float32
    np.testing.assert_allclose(standard, want, atol=1e-5)
    ranged = datasets.MinMax.fit(x).transform(x)
    assert ranged.dtype == np.float32
    np.testing.assert_allclose(ranged, (x - x.min(0)) / np.ptp(x, 0), atol=1e-6)


def test_pixels_are_scaled_to_the_bit_as_ever():
    """Stored results were made so: uint8 in float32, unit, shift and scale one after the other."""
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)
    for scaling in (datasets.MinMax.fit(x), datasets.Standardize.fit(x), datasets.Standardize.fit(x, "feature")):
        want = (x / np.float32(255) - scaling.shift.astype(np.float32)) / scaling.scale.astype(np.float32)
        assert scaling.transform(x).tobytes() == want.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", [datasets.MinMax, datasets.Standardize])
def test_scaling_refuses_what_is_no_data(kind):
    good = np.ones((4, 3, 2), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        x = good.copy()
        x[2, 1, 0] = bad
        with pytest.raises(ValueError, match="x: every entry must be finite"):
            kind.fit(x)
    with pytest.raises(TypeError, match=r"x: expected float32 or float64, got int64; .*x\.astype"):
        kind.fit(good.astype(np.int64))
    with pytest.raises(TypeError, match=r"x: .*got list"):
        kind.fit([[1.0]])
    for shape in ((0, 3), (3, 0), (3,)):
        with pytest.raises(ValueError, match="at least one sample"):
            kind.fit(np.ones(shape))
    with pytest.raises(ValueError, match=r"x has shape \(4, 2, 3\), expected \(\.\.\., 3, 2\) as fitted"):
        datasets.MinMax.fit(good).transform(good.reshape(4, 2, 3))
    with pytest.raises(ValueError, match="per: expected one of 'channel', 'feature', got 'row'"):
        datasets.Standardize.fit(good, "row")


@given(n=st.integers(2, 300), seed=st.integers(0, 9), first=st.integers(1, 299))
@settings(deadline=None)
def test_split_is_disjoint_complete_and_seeded(n, seed, first):
    for parts in ((min(first, n - 1), n - min(first, n - 1)), (n,)):
        pieces = datasets.split(n, parts, seed)
        assert sorted(np.concatenate(pieces)) == list(range(n)) and len(pieces) == len(parts)
        again = datasets.split(n, parts, np.random.default_rng(seed))
        assert all((a == b).all() for a, b in zip(pieces, again, strict=True))


def test_split_sizes_and_errors():
    assert [len(part) for part in datasets.split(10, [3, 2])] == [3, 2]
    for n, parts in ((10, (8, 3)), (10, (5, 0)), (10, (-1, 2)), (10, ()), (0, (1,))):
        with pytest.raises(ValueError, match="parts: expected"):
            datasets.split(n, parts)
    with pytest.raises(TypeError, match="parts: expected a whole number"):
        datasets.split(10, (0.9, 0.1))
    with pytest.raises(TypeError, match=r"^n: "):
        datasets.split("ten", (1,))

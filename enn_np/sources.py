"""Where the data sets are published: mirrors, sizes in bytes and checksums of MNIST, CIFAR-10 and WikiText."""

from __future__ import annotations

from typing import NamedTuple


class Item(NamedTuple):
    """A file: its size in bytes (a mere upper limit where `sha256` is None) and its checksum."""

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

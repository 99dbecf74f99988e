"""From a file of lines to integers: blocks of whole lines, words between white space, ids in order of appearance.

WikiText-103 has 103 million words; a loop over them in Python takes minutes. `Encoder` asks Python about one word in
ten and NumPy about the others, 8 million words a second on one core. N words of a block.
"""

from __future__ import annotations

import codecs
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from enn_np import download as web

Array = np.ndarray
END = "<eos>"
CHUNK = 1 << 20  # bytes read at a time
LONGEST_LINE = 1 << 24  # bytes; the longest line of WikiText is far shorter


class TextFile(NamedTuple):
    """A text: a plain or packed file, or the member `inside` of a data set's zip."""

    path: Path
    inside: str = ""  # data set/file, where path is the zip
    known: tuple[int | None, int | None, str | None] = (None, None, None)  # tokens, distinct words, sha256

    def __str__(self):
        return f"{self.path}, member {self.inside}" if self.inside else str(self.path)


@contextmanager
def _open(file: TextFile) -> Iterator[BinaryIO]:
    if not file.inside:
        with web.open_packed(file.path) as stream:
            yield stream
        return
    name, _, wanted = file.inside.partition("/")
    for item, stream in web.members(file.path, web.SOURCES[name]):  # checks the zip's names and sizes
        if item.name == wanted:
            yield stream
            return


def _chunks(file: TextFile, digest) -> Iterator[bytes]:
    """All bytes of a file, fed to digest too, and a last newline if it has none."""
    last = b"\n"
    with web.readable(file.path), _open(file) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
            last = data
            yield data
    if not last.endswith(b"\n"):
        yield b"\n"


def blocks(file: TextFile, digest=None) -> Iterator[bytes]:
    """Blocks of whole lines, each ending in a newline, about CHUNK bytes; a hashlib digest is fed the bytes.

    Raises DamagedFile, naming the line, where the bytes cannot be unpacked or are not lines of UTF-8.
    """
    line, rest = 1, b""
    for data in _chunks(file, digest or hashlib.sha256()):
        head, newline, tail = data.rpartition(b"\n")
        block, rest = (rest + head + newline, tail) if newline else (b"", rest + tail)
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            line += block.count(b"\n", 0, error.start)
            raise web.DamagedFile(file, f"line {line} is not UTF-8 ({error.reason})") from error
        if block:
            yield block.removeprefix(codecs.BOM_UTF8) if line == 1 else block  # a mark that is no part of a word
        line += block.count(b"\n")
        if len(rest) > LONGEST_LINE:
            raise web.DamagedFile(file, f"line {line} has over {LONGEST_LINE:,} bytes")


class Encoder:
    """Turns blocks of lines into ids, given `ids`: a dict from word (UTF-8 bytes) to id that knows any word.

    The dict alone takes 150 ns a token. Nine words in ten have at most 8 bytes, which make one 64-bit key, so
    a direct-mapped table (slot = hash of the key) answers for those in a few array operations. What it cannot
    answer (words that are long, new, or whose slot is taken) goes to the dict, which alone decides.
    """

    BITS = 20
    MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # keep the first n bytes of a key
    GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: each byte of a key moves the top bits

    def __init__(self, ids: defaultdict):
        self.ids = ids
        self.keys = np.zeros(1 << self.BITS, np.uint64)  # 0 means free: no word is empty
        self.values = np.zeros(1 << self.BITS, np.int32)

    def __call__(self, block: bytes) -> Array:
        """Ids (N,) int32 of the words of whole lines, with `<eos>` for each newline."""
        text = b" " + block.replace(b"\n", f" {END} ".encode()) + b" " * 8
        inside = np.frombuffer(text, np.uint8) > 32  # white space and control characters part words
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        start, end = edges[::2], edges[1::2]  # (N,)
        size = end - start
        eight_bytes = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))  # from every place on, no copy
        key = eight_bytes[start] & self.MASKS[np.minimum(size, 8)]
        slot = (key * self.GOLDEN) >> np.uint64(64 - self.BITS)
        ids = self.values[slot]
        miss = np.flatnonzero((self.keys[slot] != key) | (size > 8))
        places = zip(start[miss].tolist(), end[miss].tolist(), strict=True)
        ids[miss] = [self.ids[text[i:j]] for i, j in places]
        learn = miss[(size[miss] <= 8) & (self.keys[slot[miss]] == 0)]
        self.keys[slot[learn]] = key[learn]
        learn = learn[self.keys[slot[learn]] == key[learn]]  # of words that want one slot, the last has it
        self.values[slot[learn]] = ids[learn]
        return ids


def numbering() -> defaultdict:
    """A dict that numbers each new key in order of appearance."""
    ids = defaultdict()
    ids.default_factory = ids.__len__
    return ids


def encode(file: TextFile, ids: defaultdict) -> list[Array]:
    """Ids of a whole file in pieces. Raises DamagedFile where it is empty or not what is known of it."""
    digest, encoder = hashlib.sha256(), Encoder(ids)
    pieces = [encoder(block) for block in blocks(file, digest)]
    found = (sum(map(len, pieces)), len(ids), digest.hexdigest())
    if not found[0]:
        raise web.DamagedFile(file, "it is empty")
    for what, known, got in zip(("tokens", "distinct words", "as sha256"), file.known, found, strict=True):
        if known not in (None, got):
            problem = f"expected {known} {what}, got {got} (pass verify=False to use it as it is)"
            raise web.DamagedFile(file, problem)
    return pieces

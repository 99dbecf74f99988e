"""Words in, integers out: WikiText as ids, its vocabulary, and batches for truncated BPTT.

A token is a word between white space, or `<eos>`, which ends every line (empty lines too).
N tokens, V words in the vocabulary, B batch, T time steps.
"""

from __future__ import annotations

import codecs
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checks import choice, count, number, unmasked
from . import fetch

Array = np.ndarray
UNKNOWN = "<unk>"
CHUNK = 1 << 20  # bytes worked on at a time
# Published counts, `<eos>` included: tokens of train, valid and test, and distinct words of train.
COUNTS = {
    "wikitext-2": (2_088_628, 217_646, 245_569, 33_278),
    "wikitext-103": (103_227_021, 217_646, 245_569, 267_735),
}
LINES = {"wikitext-2": 36_718, "wikitext-103": 1_801_350}  # of train, empty ones too


class Vocabulary:
    """The words of a training text, most frequent first, ties in order of first appearance.

    words   V distinct words; a word's place is its id. Must hold `<unk>`.
    counts  (V,) int64, how often each occurs in the training text, never rising: what the unigram model
            and an adaptive softmax want
    Raises ValueError where these do not hold.
    """

    def __init__(self, words: Iterable[str], counts: Array):
        self.words = _each(words, "words")
        self.counts = np.asarray(unmasked("counts", counts), np.int64)
        self.ids = {word: i for i, word in enumerate(self.words)}
        each = self.counts.shape == (len(self.words),) and len(self.ids) == len(self.words)
        if not each or UNKNOWN not in self.ids or np.any(np.diff(self.counts) > 0):
            wanted = f"distinct words, {UNKNOWN} among them, and a count for each, never rising"
            raise ValueError(f"words, counts: expected {wanted}; add {UNKNOWN} with count 0, sort by count")
        # Two bytes a token do for WikiText-2. Beware of uint16 arithmetic; `stream_batches` gives int32.
        self.dtype = np.dtype(np.uint16 if len(self.words) <= 1 << 16 else np.int32)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> Array:
        """Ids (N,) of N words, in the vocabulary's compact dtype; a word it lacks becomes `<unk>`."""
        return np.fromiter(map(self.ids.get, _each(words, "words"), repeat(self.ids[UNKNOWN])), self.dtype)

    def decode(self, ids: Array) -> list[str]:
        """Words of integer ids of any shape, flattened. Raises ValueError for an id out of range."""
        ids = integers("ids", ids).ravel()
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self):
            raise ValueError(f"ids: expected 0 to {len(self) - 1}, got {ids.min()} to {ids.max()}")
        return [self.words[i] for i in ids.tolist()]


class Text(NamedTuple):
    """Ids of the three parts, (N,) each, uint16 or int32, and the train part's vocabulary."""

    train: Array
    valid: Array
    test: Array
    vocabulary: Vocabulary


class PaperWindows(NamedTuple):
    """The paper's windows, (windows, 32) int32 each, and its words by alphabet; a word's place is its id."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    words: list[str]


def load_wikitext(name, folder=None, download=True, train="wiki.train.tokens", verify=True):
    """A `Text`: WikiText by words, the usual way to count. WikiText-103 takes half a minute and 1 GB of memory.

    name      "wikitext-2" or "wikitext-103"
    folder    holds the files (plain or .xz) or the official zip, itself or in its subfolder `name`;
              default `data_folder()`. What is missing is downloaded there, unless `download` is False.
    train     train on another file of that folder, such as "wiki.train.head.tokens"
    verify    compare with the published token counts, vocabulary size and checksums (False: any text will do)

    The vocabulary is built on train alone; words that only valid and test have become `<unk>`.
    Raises FileNotFoundError or DownloadError for a missing file, DamagedFile (a ValueError) for a bad one.
    Source: Merity, Xiong, Bradbury and Socher, "Pointer Sentinel Mixture Models", 2016.
    """
    files = _files(name, folder, download, train)
    *known, types = COUNTS[name] if verify else (None,) * 4
    if files[0].item not in fetch.SOURCES[name].files:
        known[0] = types = None
    tallies = Counter()
    for words in _words(files[0]):
        tallies.update(words)
    _check(files[0], "distinct words", types, len(tallies))
    tallies.setdefault(UNKNOWN.encode(), 0)
    words, counts = zip(*tallies.most_common(), strict=True)
    vocabulary = Vocabulary([word.decode() for word in words], counts)
    ids = {word: i for i, word in enumerate(words)}
    parts = [_encode(file, ids, vocabulary.dtype, tokens) for file, tokens in zip(files, known, strict=True)]
    return Text(*parts, vocabulary)


def paper_windows(name="wikitext-103", folder=None, download=True, train="wiki.train.tokens", seed=42, verify=True):
    """`PaperWindows`: WikiText as the Engram paper cut it, 32 tokens each, from a quarter of the lines.

    Its flaws, kept so that numbers can be compared: the vocabulary is built before the split, so it holds
    words of the test lines; both are lines of the same articles; text is lower-cased, without `<eos>`; ids
    are alphabetical, and the model gets each as one float; a line's last words, and lines of up to 32 words,
    are dropped; and the last target of every window, not the next word but always 0 (the alphabet's first
    word), is scored: one target in 32 costs a model nothing. The paper validates on the last 20% of x_train.

    Lines are drawn by the generators behind the notebook's calls, so the whole train text should give its
    very windows: V 188,590, 536,711 to train on, 133,990 to test on. Arguments and errors as `load_wikitext`; `verify`
    compares the number of lines of the published train text.
    Source: `examples/sequence.ipynb` of `tensorflow-engram`, commit ec87f778.
    """
    file = _files(name, folder, download, train)[0]
    lines = sum(block.count(b"\n") for block in _blocks(file))
    _check(file, "lines", LINES[name] if verify and file.item in fetch.SOURCES[name].files else None, lines)
    chosen = np.random.default_rng(seed).permutation(lines)[: lines // 4]  # as datasets' shuffle(seed)
    wanted, ids, windows = set(chosen.tolist()), {}, {}
    for i, line in enumerate(line for block in _blocks(file) for line in block.decode().split("\n")[:-1]):
        if i in wanted:
            row = np.array([ids.setdefault(word, len(ids)) for word in line.lower().split()], np.int32)
            full = max(len(row) - 1, 0) // 32  # a window needs a word after it
            windows[i] = row[: full * 32].reshape(full, 32)
    words = sorted(ids)
    rank = np.empty(len(words), np.int32)
    rank[[ids[word] for word in words]] = np.arange(len(words))
    order = np.random.RandomState(seed).permutation(len(chosen))  # as scikit-learn's train_test_split
    tests = math.ceil(0.2 * len(chosen))
    parts = []
    for part in (order[tests:], order[:tests]):
        x = rank[np.concatenate([np.empty((0, 32), np.int32), *(windows[i] for i in chosen[part].tolist())])]
        parts += [x, np.pad(x[:, 1:], ((0, 0), (0, 1)))]
    return PaperWindows(*parts, words)


def _each(words, name):
    """A list of words; a str, which would be its letters, is none."""
    found = list(words) if isinstance(words, Iterable) and not isinstance(words, str | bytes) else [words]
    for word in found:
        if word is words or not isinstance(word, str):
            raise TypeError(f"{name}: expected a list of words, each a str, got {word!r:.40}; use text.split()")
    return found


def integers(name, ids, shape=None):
    """`ids` as an integer array of that shape, where a letter stands for any size above 0. ValueError for others."""
    ids = np.asarray(unmasked(name, ids))
    fits = shape is None or (
        len(shape) == ids.ndim
        and all(n == (want if isinstance(want, int) else n or 1) for n, want in zip(ids.shape, shape, strict=True))
    )
    if not fits or (ids.size and ids.dtype.kind not in "iu"):
        wanted = "" if shape is None else f" ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        what = f"expected integer ids{wanted}, got {ids.dtype} of shape {ids.shape}"
        raise ValueError(f"{name}: {what}; `Vocabulary.encode` makes them of words")
    return ids


def unigram_perplexity(train_counts: Array, tokens: Array, smoothing: float = 1.0) -> float:
    """Perplexity of tokens (N,) under word frequencies alone, without context: the floor of ignorance.

    p(word) = (count + smoothing) / (sum of counts + smoothing V), with train_counts (V,), such as
    `vocabulary.counts`; smoothing 1 is Laplace's rule, which leaves no word impossible.
    Raises ValueError for bad counts or ids, and where a word with probability 0 occurs.
    """
    tokens, smoothing, counts = integers("tokens", tokens, ("N",)), number("smoothing", smoothing, low=0), train_counts
    p = np.asarray(unmasked("train_counts", counts))
    if p.ndim != 1 or p.dtype.kind not in "iuf" or not len(p) or not ((p >= 0) & np.isfinite(p)).all():
        raise ValueError(f"train_counts: expected (V,) numbers, none negative, got {p.dtype} {p.shape}: {counts!s:.60}")
    p = p + smoothing
    if tokens.min() < 0 or tokens.max() >= len(p):
        raise ValueError(f"tokens: expected ids 0 to {len(p) - 1}, got {tokens.min()} to {tokens.max()}")
    tallies = np.bincount(tokens, minlength=len(p))
    seen = tallies > 0
    if np.any(p[seen] == 0):
        raise ValueError("tokens: some have count 0, so perplexity is infinite; use a smoothing above 0")
    return float(np.exp(-(tallies[seen] @ np.log(p[seen] / p.sum())) / len(tokens)))


def stream_batches(tokens: Array, batch: int, steps: int) -> Iterator[tuple[Array, Array]]:
    """Pieces of text for truncated BPTT: (inputs, targets), (B, T) int32 each, targets one token ahead.

    tokens (N,) are cut into `batch` rows of equal length; each piece takes the next `steps` columns (fewer at
    the end), so that row b goes on where row b of the piece before stopped, and the state can be carried.
    Of the N - 1 pairs (token, next token) each comes once; under `batch` are left over (none for batch 1).
    tokens are not copied: a memory-mapped array stays on disk. Raises ValueError for under batch + 1 tokens.
    """
    tokens, batch, steps = integers("tokens", tokens, ("N",)), count("batch", batch), count("steps", steps)
    columns = (len(tokens) - 1) // batch
    if columns < 1:
        raise ValueError(f"tokens: expected over {batch}, got {len(tokens)}; use a smaller batch")
    inputs = tokens[: batch * columns].reshape(batch, columns)
    targets = tokens[1 : batch * columns + 1].reshape(batch, columns)
    pieces = (slice(t, t + steps) for t in range(0, columns, steps))
    return ((inputs[:, piece].astype(np.int32), targets[:, piece].astype(np.int32)) for piece in pieces)


# Files to ids


def _files(name: str, folder: Path | str | None, download: bool, train: str) -> list[fetch.Found]:
    """Train, valid and test, after downloading what is missing; never one train text for another."""
    choice("name", name, tuple(COUNTS))
    folder = fetch.data_folder() if folder is None else folder
    if not isinstance(train, str) or Path(train).name != train:
        raise TypeError(f"train: expected a file's name in {folder}, such as 'wiki.train.tokens', got {train!r}")
    if train == fetch.SOURCES[name].files[0].name:
        return fetch.locate(name, folder, download)
    path = fetch.first(fetch.places(name, folder), [train])
    if path is None:
        raise FileNotFoundError(f"{train} is missing in {folder}; put it there, or leave out train={train!r}")
    return [fetch.Found(name, fetch.Item(train, sys.maxsize, None), path), *fetch.locate(name, folder, download, 1)]


def _blocks(file: fetch.Found) -> Iterator[bytes]:
    """Blocks of whole lines, each ending in a newline, about CHUNK bytes.

    Raises DamagedFile, naming the line, where the bytes cannot be unpacked or are not lines of UTF-8.
    """
    line = 1
    with fetch.opened(file) as stream:
        while block := b"".join(stream.readlines(CHUNK)):
            try:
                block.decode("utf-8")
            except UnicodeDecodeError as error:
                line += block.count(b"\n", 0, error.start)
                raise fetch.DamagedFile(file, f"line {line} is not UTF-8 ({error.reason})") from error
            whole = block if block.endswith(b"\n") else block + b"\n"
            yield whole.removeprefix(codecs.BOM_UTF8) if line == 1 else whole  # a mark that is no part of a word
            line += block.count(b"\n")


def _words(file: fetch.Found) -> Iterator[list[bytes]]:
    """Words of one block after the other, with `<eos>` for each newline."""
    return (block.replace(b"\n", b" <eos> ").split() for block in _blocks(file))


def _encode(file: fetch.Found, ids: dict[bytes, int], dtype: np.dtype, tokens: int | None) -> Array:
    """Ids (N,) of a whole file. Raises DamagedFile where it is empty or not the one with so many `tokens`."""
    if tokens and fetch.intact(file) is False:
        raise fetch.DamagedFile(file, fetch.UNPUBLISHED)
    unknown = repeat(ids[UNKNOWN.encode()])
    pieces = [np.fromiter(map(ids.get, words, unknown), dtype, len(words)) for words in _words(file)]
    if not pieces:
        raise fetch.DamagedFile(file, "it is empty")
    _check(file, "tokens", tokens, sum(map(len, pieces)))
    return np.concatenate(pieces)


def _check(file: fetch.Found, what: str, known: int | None, got: int) -> None:
    if known not in (None, got):
        raise fetch.DamagedFile(file, f"expected {known} {what}, got {got}; {fetch.AS_IT_IS}")

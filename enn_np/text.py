"""Words in, integers out: WikiText as memory-mapped ids, its vocabulary, and batches for truncated BPTT.

A token is a word between white space, or `<eos>`, which ends every line (empty lines too).
N tokens, V words in the vocabulary, B batch, T time steps.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from enn_np import download as web
from enn_np import storage
from enn_np.checks import choice, count, number, unmasked
from enn_np.words import CHUNK, TextFile, blocks, encode, numbering

Array = np.ndarray
UNKNOWN = "<unk>"
# Published counts, `<eos>` included: tokens of train, valid and test, and distinct words of train.
COUNTS = {
    "wikitext-2": (2_088_628, 217_646, 245_569, 33_278),
    "wikitext-103": (103_227_021, 217_646, 245_569, 267_735),
}
LINES = {"wikitext-2": 36_718, "wikitext-103": 1_801_350}  # of train, empty ones too
CACHE_FORMAT = 2


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
    """Ids of the three parts, (N,) each, memory-mapped uint16 or int32, and the train part's vocabulary."""

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


def load_wikitext(name, folder=None, download=True, train="wiki.train.tokens", verify=True, cache=None):
    """A `Text`: WikiText by words, the usual way to count; parsed once, afterwards read from a cache.

    name      "wikitext-2" or "wikitext-103"
    folder    holds the files (plain or .xz) or the official zip, itself or in its subfolder `name`;
              default `data_folder()`. What is missing is downloaded there, unless `download` is False.
    train     train on another file of that folder, such as "wiki.train.head.tokens"
    verify    compare with the published token counts, vocabulary size and checksums (False: any text will do)
    cache     folder of the parsed text; default `cache/` in `folder`, or the user's where that is read-only.
              It is made anew when a file's size or time, or its own checksum, differs.

    The vocabulary is built on train alone; words that only valid and test have become `<unk>`.
    Raises FileNotFoundError or DownloadError for a missing file, DamagedFile (a ValueError) for a bad one.
    Source: Merity, Xiong, Bradbury and Socher, "Pointer Sentinel Mixture Models", 2016.
    """
    files = _locate(name, folder, download, train, verify)
    place = storage.spelled_out(cache or _cache_folder(storage.spelled_out(folder or web.data_folder())))
    stem = place / (name if train == "wiki.train.tokens" else f"{name}.{train}")
    stats = [(file, file.path.stat()) for file in files]
    sources = [[f.path.name, f.inside, s.st_size, s.st_mtime_ns, *f.known, CACHE_FORMAT] for f, s in stats]
    text = _read_cache(stem, sources)
    if text is None:
        place.mkdir(parents=True, exist_ok=True)
        with storage.lock(place / ".lock"):  # asked again: another process may have parsed it meanwhile
            text = _read_cache(stem, sources)
            if text is None:
                _write_cache(stem, sources, *_parse(files))
                text = _read_cache(stem, sources)
    if text is None:
        raise OSError(f"{stem}.npy changed while it was written; stop what else writes there and run again")
    return text


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
    file = _locate(name, folder, download, train, verify=False)[0]
    lines, known = sum(block.count(b"\n") for block in blocks(file)), LINES[name]
    if verify and train == web.SOURCES[name].files[0].name and lines != known:
        raise web.DamagedFile(file, f"expected {known} lines, got {lines} (pass verify=False to use it as it is)")
    chosen = np.random.default_rng(seed).permutation(lines)[: lines // 4]  # as datasets' shuffle(seed)
    wanted, ids, windows = set(chosen.tolist()), numbering(), {}
    for i, line in enumerate(line for block in blocks(file) for line in block.decode().split("\n")[:-1]):
        if i in wanted:
            row = np.array([ids[word] for word in line.lower().split()], np.int32)
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
    tallies = _tally((tokens[i : i + CHUNK] for i in range(0, len(tokens), CHUNK)), len(p))
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


def _locate(name, folder, download, train, verify) -> list[TextFile]:
    """Paths of train, valid, test, after downloading what is missing; never one train text for another."""
    choice("name", name, tuple(COUNTS))
    folder = web.data_folder() if folder is None else storage.spelled_out(folder)
    if not isinstance(train, str) or Path(train).name != train:
        raise TypeError(f"train: expected a file's name in {folder}, such as 'wiki.train.tokens', got {train!r}")
    items = web.SOURCES[name].files
    other = train != items[0].name
    paths, archive = web.find(name, folder), web.find_archive(name, folder)
    if archive is None and not all(paths[item.name] for item in items[other:]):
        if not download:
            raise FileNotFoundError(web.missing(name, folder, ["downloads are turned off"]))
        web.fetch(name, folder)
        paths = web.find(name, folder)
    *tokens, types = COUNTS[name]
    files = []
    for item, *known in zip(items, tokens, (types, None, None), strict=True):
        place = (paths[item.name], "") if paths[item.name] else (archive, f"{name}/{item.name}")
        files.append(TextFile(*place, (*known, item.sha256)) if verify else TextFile(*place))
    if other:
        places = [place / (train + end) for place in (folder / name, folder) for end in ("", ".xz")]
        files[0] = TextFile(next((place for place in places if place.is_file()), places[0]))
        if not files[0].path.is_file():
            raise FileNotFoundError(f"{places[0]} is missing; put it there, or leave out train={train!r}")
    return files


def _parse(files: list[TextFile]) -> tuple[Vocabulary, list[list[Array]]]:
    """The vocabulary of files[0], and the ids of every file in pieces."""
    ids = numbering()
    train = encode(files[0], ids)
    unknown = ids[UNKNOWN.encode()]  # a text without <unk> gets it here, with count 0
    counts = _tally(train, len(ids))
    order = np.argsort(-counts, kind="stable")  # ids are in order of first appearance, which ties keep
    words = [word.decode() for word in ids]
    vocabulary = Vocabulary([words[i] for i in order.tolist()], counts[order])
    rank = np.empty(len(order), vocabulary.dtype)
    rank[order] = np.arange(len(order))
    ids.default_factory = lambda: unknown
    splits = [train, *(encode(file, ids) for file in files[1:])]
    for pieces in splits:
        for i, piece in enumerate(pieces):  # in place, as WikiText-103 takes 400 MB
            pieces[i] = rank[piece]
    return vocabulary, splits


def _tally(pieces: Iterable[Array], size: int) -> Array:
    """How often each id occurs, (size,) int64. Raises ValueError for an id outside 0 to size - 1."""
    tallies = np.zeros(size, np.int64)
    for piece in pieces:
        if piece.min() < 0 or piece.max() >= size:
            raise ValueError(f"tokens: expected ids 0 to {size - 1}, got {piece.min()} to {piece.max()}")
        tallies += np.bincount(piece, minlength=size)
    return tallies


# Ids to the cache: STEM.npy has those of train, valid and test; STEM.txt a checksum, a header, the words


def _cache_folder(folder: Path) -> Path:
    """`cache/` in folder, or the user's where nobody may write there (root could, but is not meant to)."""
    for where in (lambda: folder / "cache", web.user_cache):  # one after the other, as there may be no HOME
        place = where()
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        if there.stat().st_mode & 0o222 and os.access(there, os.W_OK):
            return place
    raise OSError(f"{place} cannot be written for the parsed text; pass `cache`, a folder that can")


def _read_cache(stem: Path, sources: list) -> Text | None:
    """The cached text; None where it is missing, stale or damaged in any way."""
    try:
        crc, _, rest = Path(f"{stem}.txt").read_bytes().partition(b"\n")
        if crc != b"%08x" % zlib.crc32(rest):
            return None
        header, *lines = rest.decode().split("\n")[:-1]
        header = json.loads(header)
        if header["sources"] != sources or header["crc32"] != _crc(f"{stem}.npy"):
            return None
        ids = np.load(f"{stem}.npy", mmap_mode="r", allow_pickle=False)
        words, counts = zip(*(line.split(" ") for line in lines), strict=True)
        text = Text(*np.split(ids, np.cumsum(header["tokens"])[:2]), Vocabulary(words, np.array(counts, np.int64)))
        if [len(part) for part in text[:3]] != header["tokens"] or len(words) <= ids.max():
            return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return text


def _write_cache(stem: Path, sources: list, vocabulary: Vocabulary, splits: list[list[Array]]) -> None:
    tokens = [sum(map(len, pieces)) for pieces in splits]
    head = BytesIO()
    kind = {"descr": vocabulary.dtype.str, "fortran_order": False, "shape": (sum(tokens),)}
    np.lib.format.write_array_header_1_0(head, kind)
    crc = 0
    with storage.whole(f"{stem}.npy") as file:
        for part in chain([head.getvalue()], (piece.tobytes() for pieces in splits for piece in pieces)):
            file.write(part)
            crc = zlib.crc32(part, crc)
    header = json.dumps({"sources": sources, "tokens": tokens, "crc32": crc})
    lines = [f"{word} {n}" for word, n in zip(vocabulary.words, vocabulary.counts.tolist(), strict=True)]
    rest = "\n".join([header, *lines, ""]).encode()
    with storage.whole(f"{stem}.txt") as file:
        file.write(b"%08x\n%s" % (zlib.crc32(rest), rest))


def _crc(path: Path | str) -> int:
    crc = 0
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return crc

"""Words in, integers out: WikiText as ids, its vocabulary, and batches for truncated BPTT.

A token is a word between white space, or `<eos>`, which ends every line (empty lines too).
N tokens, V words in the vocabulary, B batch, T time steps.
"""

import codecs
import math
from collections import defaultdict, namedtuple
from collections.abc import Iterable, Iterator
from itertools import chain
from itertools import count as counter
from pathlib import Path

import numpy as np

from ..checks import choice, count, unmasked
from . import fetch

UNKNOWN = "<unk>"
TRAIN = "wiki.train.tokens"


# Ids of the three parts, (N,) each, uint16 or int32, and the train part's `Vocabulary`.
Text = namedtuple("Text", "train valid test vocabulary")
# The paper's windows, (windows, 32) int32 each, and its words by alphabet; a word's place is its id.
PaperWindows = namedtuple("PaperWindows", "x_train y_train x_test y_test words")


class Vocabulary:
    """The words of a training text, most frequent first, ties in order of first appearance.

    words   V distinct words; a word's place is its id. Must hold `<unk>`.
    counts  (V,) int64, how often each occurs in the training text, never rising. ValueError where these do not hold.
    """

    def __init__(self, words: Iterable[str], counts: np.ndarray):
        self.words = _each(words, "words")
        self.counts = np.array(unmasked("counts", counts))
        self.ids = {word: i for i, word in enumerate(self.words)}
        each = self.counts.shape == (len(self.words),) == (len(self.ids),) and self.counts.dtype.kind in "iu"
        if not each or UNKNOWN not in self.ids or np.any(np.diff(self.counts, append=0) > 0):  # the last is 0 or more
            wanted = f"distinct words, {UNKNOWN} among them, and a whole number for each, never rising"
            raise ValueError(f"words, counts: expected {wanted}; add {UNKNOWN} with count 0, sort by count")
        self.counts = self.counts.astype(np.int64)
        # Two bytes a token do for WikiText-2. Beware of uint16 arithmetic; `stream_batches` gives int32.
        self.dtype = np.dtype(np.uint16 if len(self.words) <= 1 << 16 else np.int32)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """Ids (N,) of N words, in the vocabulary's compact dtype; a word it lacks becomes `<unk>`."""
        return np.array([self.ids.get(word, self.ids[UNKNOWN]) for word in _each(words, "words")], self.dtype)

    def decode(self, ids: np.ndarray) -> list[str]:
        """Words of integer ids of any shape, flattened. Raises ValueError for an id out of range."""
        return [self.words[i] for i in ids_below("ids", ids, len(self)).ravel().tolist()]


def load_wikitext(name, folder=None, download=True, train=TRAIN, verify=True) -> Text:
    """WikiText by words, the usual way to count. WikiText-103 takes half a minute and 1.2 GB of memory.

    name      "wikitext-2" or "wikitext-103"
    folder    holds the files, plain or .xz, itself or in its subfolder `name`; default `data_folder()`. What is missing
              is downloaded there, or unpacked from the official zip, unless `download` is False.
    train     train on another file of that folder, such as "wiki.train.head.tokens"
    verify    compare with the published checksums (False: any text will do)

    The vocabulary is built on train alone; words that only valid and test have become `<unk>`.
    Raises FileNotFoundError or DownloadError for a missing file, DamagedFile (a ValueError) for a bad one.
    Source: Merity, Xiong, Bradbury and Socher, "Pointer Sentinel Mixture Models", 2016.
    """
    files = _files(name, folder, download, train)
    numbers = defaultdict(counter().__next__)  # a word that is new gets the next number
    parts = [_numbers(files[0], verify, numbers.__getitem__)]
    unknown = numbers[UNKNOWN.encode()]
    parts += [_numbers(file, verify, lambda word: numbers.get(word, unknown)) for file in files[1:]]
    # In pieces, because bincount takes eight bytes a token.
    counts = sum(np.bincount(piece, minlength=len(numbers)) for piece in np.array_split(parts[0], 64))
    order, words = np.argsort(-counts, kind="stable"), [word.decode() for word in numbers]
    vocabulary = Vocabulary([words[i] for i in order], counts[order])
    rank = np.argsort(order).astype(vocabulary.dtype)  # of a number, its id
    return Text(*(rank[part] for part in parts), vocabulary)


def paper_windows(name="wikitext-103", folder=None, download=True, train=TRAIN, seed=42, verify=True) -> PaperWindows:
    """WikiText as the Engram paper cut it, 32 tokens each, from a quarter of the lines.

    Its flaws, kept so that numbers can be compared: the vocabulary is built before the split, so it holds
    words of the test lines; both are lines of the same articles; text is lower-cased, without `<eos>`; ids
    are alphabetical, and the model gets each as one float; a line's last words, and lines of up to 32 words,
    are dropped; and the last target of every window, not the next word but always 0 (the alphabet's first
    word), is scored: one target in 32 costs a model nothing. The paper validates on the last 20% of x_train.

    Lines are drawn by the generators behind the notebook's calls, so the whole train text should give its
    very windows: V 188,590, 536,711 to train on, 133,990 to test on. Arguments and errors as `load_wikitext`.
    Source: `examples/sequence.ipynb` of `tensorflow-engram`, commit ec87f778.
    """
    lines = _lines(_files(name, folder, download, train)[0], verify)
    numbers, windows = defaultdict(counter().__next__), []
    chosen = np.random.default_rng(seed).permutation(len(lines))[: len(lines) // 4]  # as datasets' shuffle(seed)
    chosen = chosen[np.random.RandomState(seed).permutation(len(chosen))]  # as scikit-learn's train_test_split
    for i in chosen:
        row = np.array([numbers[word] for word in lines[i].decode().lower().split()], np.int32)
        full = max(len(row) - 1, 0) // 32  # a window needs a word after it
        windows.append(row[: full * 32].reshape(full, 32))
    words, tests, parts = sorted(numbers), math.ceil(0.2 * len(chosen)), []
    rank = np.argsort([numbers[word] for word in words]).astype(np.int32)  # of a number, its id
    for part in (windows[tests:], windows[:tests]):
        x = rank[np.concatenate([np.empty((0, 32), np.int32), *part])]
        parts += [x, np.pad(x[:, 1:], ((0, 0), (0, 1)))]
    return PaperWindows(*parts, words)


def _each(words, name):
    """A list of words; a str, which would be its letters, is none."""
    found = list(words) if isinstance(words, Iterable) and not isinstance(words, str | bytes) else [words]
    for word in found:
        if word is words or not isinstance(word, str):
            raise TypeError(f"{name}: expected a list of words, each a str, got {word!r:.40}; use text.split()")
    return found


def ids_below(name, ids, V=None, shape=None) -> np.ndarray:
    """`ids` as an array of integers 0 to V - 1 (None: any), of a shape in which a letter stands for any size above 0;
    else ValueError."""
    ids = np.asarray(unmasked(name, ids))
    shape = ids.shape if shape is None else shape
    sizes = zip(ids.shape, shape, strict=False)
    fits = ids.ndim == len(shape) and all(n == want if isinstance(want, int) else n > 0 for n, want in sizes)
    if not fits or (ids.size and ids.dtype.kind not in "iu"):
        wanted = f"expected integer ids {tuple(shape)}".replace("'", "")
        got = f"{ids.dtype} of shape {ids.shape}" if ids.size else "an empty array"
        raise ValueError(f"{name}: {wanted}, got {got}; `Vocabulary.encode` makes them of words")
    if V is not None and ids.size and (ids.min() < 0 or ids.max() >= V):
        remedy = "encode the text with the vocabulary that the model was built for"
        raise ValueError(f"{name}: expected ids 0 to {V - 1}, got {ids.min()} to {ids.max()}; {remedy}")
    return ids


def unigram_perplexity(train_counts: np.ndarray, tokens: np.ndarray) -> float:
    """Perplexity of tokens (N,) under word frequencies alone, without context: the floor of ignorance.

    p(word) = (count + 1) / (sum of counts + V), with train_counts (V,), such as `vocabulary.counts`: Laplace's rule,
    which leaves no word impossible. Raises ValueError for bad counts or ids.
    """
    p = np.asarray(unmasked("train_counts", train_counts))
    if p.ndim != 1 or p.dtype.kind not in "iuf" or not ((p >= 0) & np.isfinite(p)).all():
        raise ValueError(f"train_counts: expected (V,) numbers, none negative, got {p.dtype} {p.shape}: {p!s:.60}")
    tokens, p = ids_below("tokens", tokens, len(p), ("N",)), p + 1.0
    return float(np.exp(-np.log(p / p.sum())[tokens].mean()))


def stream_batches(tokens: np.ndarray, batch: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of text for truncated BPTT: (inputs, targets), (B, T) int32 each, targets one token ahead.

    tokens (N,) are cut into `batch` rows of equal length; each piece takes the next `steps` columns (fewer at
    the end), so that row b goes on where row b of the piece before stopped, and the state can be carried.
    Of the N - 1 pairs (token, next token) each comes once; under `batch` are left over (none for batch 1).
    tokens are not copied: a memory-mapped array stays on disk. Raises ValueError for under batch + 1 tokens.
    """
    tokens, batch, steps = ids_below("tokens", tokens, shape=("N",)), count("batch", batch), count("steps", steps)
    columns = (len(tokens) - 1) // batch
    if columns < 1:
        raise ValueError(f"tokens: expected over {batch}, got {len(tokens)}; use a smaller batch")
    sides = [tokens[ahead : batch * columns + ahead].reshape(batch, columns) for ahead in (0, 1)]
    return (tuple(side[:, t : t + steps].astype(np.int32) for side in sides) for t in range(0, columns, steps))


def _files(name, folder, download, train):
    """Train, valid and test; never one train text for another."""
    choice("name", name, ("wikitext-2", "wikitext-103"))
    folder = fetch.data_folder() if folder is None else folder
    if not isinstance(train, str) or Path(train).name != train:
        raise TypeError(f"train: expected a file's name in {folder}, such as {TRAIN!r}, got {train!r}")
    if train == TRAIN:
        return fetch.locate(name, folder, download)
    path = fetch.first(fetch.places(name, folder), train)
    if path is None:
        raise FileNotFoundError(f"{train} is missing in {folder}; put it there, or leave out train={train!r}")
    return [fetch.Found(name, train, path), *fetch.locate(name, folder, download, 1)]


def _lines(file, verify):
    """Lines of a file, as bytes. Raises DamagedFile where there are none, and, naming it, where one is not UTF-8."""
    lines = fetch.read(file, verify).removeprefix(codecs.BOM_UTF8).split(b"\n")  # the mark is no part of a word
    lines = lines if lines[-1] else lines[:-1]
    if not lines:
        raise fetch.DamagedFile(file, "it is empty")
    for i, line in enumerate(lines, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise fetch.DamagedFile(file, f"line {i} is not UTF-8 ({error.reason})") from error
    return lines


def _numbers(file, verify, number):
    """The `number` of each word of a file, (N,) int32."""
    words = chain.from_iterable([*line.split(), b"<eos>"] for line in _lines(file, verify))
    return np.fromiter(map(number, words), np.int32)

"""WikiText: every way in gives the same ids, every damaged file one clear error, every cache the truth."""

import hashlib
import lzma
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enn_np.data import text as module
from enn_np.data.text import Vocabulary, load_wikitext, paper_windows, stream_batches, unigram_perplexity

TRAIN = " = Valkyria = \n \n the cat sat on the encyclopaedia , the naïve – <unk> cat \n"
VALID = " the dog sat \n \n"
TEST = " the cat \n"
FILES = dict(zip(("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"), (TRAIN, VALID, TEST), strict=True))
DATA = os.environ.get("ENN_DATA")
real = pytest.mark.skipif(not DATA, reason="ENN_DATA does not name a folder with the real files")


def write(folder, texts=FILES, packing=""):
    """The files of wikitext-2 in a data folder, plain or .xz."""
    home = Path(folder) / "wikitext-2"
    home.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode()
        (home / (name + packing)).write_bytes(lzma.compress(data) if packing else data)
    return Path(folder)


def load(folder, **given):
    return load_wikitext("wikitext-2", folder, download=False, verify=False, **given)


def words_of(text):
    """The oracle: Python's own split, and `<eos>` for each line."""
    lines = text.split("\n")[:-1] if text.endswith("\n") else text.split("\n")
    return [word for line in lines for word in [*line.split(), "<eos>"]]


def readings(part, texts=FILES):
    """What decoding a part must give."""
    known = set(words_of(texts["wiki.train.tokens"]))
    return [word if word in known else "<unk>" for word in words_of(texts[f"wiki.{part}.tokens"])]


def is_right(text, texts=FILES):
    return all(
        text.vocabulary.decode(getattr(text, part)) == readings(part, texts) for part in ("train", "valid", "test")
    )


# Ways in


@pytest.mark.parametrize("packing", ["", ".xz"])
def test_every_packing_gives_the_same_words(tmp_path, packing):
    text = load(write(tmp_path, packing=packing))
    assert is_right(text)
    assert text.train.dtype == np.uint16
    assert text.vocabulary.words[:4] == ["<eos>", "the", "=", "cat"]
    assert text.vocabulary.counts.tolist()[:4] == [3, 3, 2, 2]


def test_own_train_file_is_used_only_when_named(tmp_path):
    write(tmp_path, {**FILES, "wiki.train.head.tokens": "a b \n"})
    assert len(load(tmp_path).train) == len(words_of(TRAIN))
    head = load(tmp_path, train="wiki.train.head.tokens")
    assert head.vocabulary.words == ["a", "b", "<eos>", "<unk>"]  # ties in order of appearance; <unk> never seen
    assert head.vocabulary.decode(head.valid)[:2] == ["<unk>", "<unk>"]
    (tmp_path / "wikitext-2" / "wiki.train.tokens").unlink()
    with pytest.raises(FileNotFoundError, match=r"wiki\.train\.tokens.*wikitext-2"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="other"):
        load(tmp_path, train="other.tokens")


@pytest.mark.parametrize("train", [Path("mine.txt"), "sub/mine.txt", b"mine.txt", None])
@pytest.mark.parametrize("function", [load_wikitext, paper_windows])
def test_train_is_the_name_of_a_file(tmp_path, function, train):
    """A path failed on `+`, which names no argument."""
    with pytest.raises(TypeError, match=r"^train: expected a file's name in .*, such as 'wiki.train.tokens', got"):
        function("wikitext-2", write(tmp_path), download=False, train=train)


def test_downloads_only_what_is_missing(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module.fetch, "fetch", lambda name, folder: calls.append((name, write(folder))))
    given = {"folder": tmp_path, "verify": False}
    assert is_right(load_wikitext("wikitext-2", **given)) and is_right(load_wikitext("wikitext-2", **given))
    assert calls == [("wikitext-2", tmp_path)]
    with pytest.raises(ValueError, match="name"):
        load_wikitext("wikitext-3")


def publish(monkeypatch, texts):
    """Declare these to be what was published as WikiText-2."""
    files = {name: (hashlib.sha1(text.encode()).hexdigest(),) for name, text in texts.items()}
    monkeypatch.setitem(module.fetch.SOURCES, "wikitext-2", module.fetch.SOURCES["wikitext-2"]._replace(files=files))


@pytest.mark.parametrize("part", FILES)
def test_other_text_is_not_taken_for_the_published_one(tmp_path, monkeypatch, part):
    write(tmp_path)
    publish(monkeypatch, FILES)
    assert is_right(load_wikitext("wikitext-2", tmp_path, download=False))
    publish(monkeypatch, {**FILES, part: "other"})
    with pytest.raises(ValueError, match=rf"{part} is damaged: not the published file .*; verify=False reads it"):
        load_wikitext("wikitext-2", tmp_path, download=False)


def test_the_lines_of_train_in_another_order_are_another_text(tmp_path, monkeypatch):
    """Counts of its tokens, words and lines are the same."""
    publish(monkeypatch, FILES)
    write(tmp_path, {**FILES, "wiki.train.tokens": " \n = Valkyria = \n" + TRAIN.partition("\n \n")[2]})
    for function in (load_wikitext, paper_windows):
        with pytest.raises(ValueError, match=r"wiki\.train\.tokens is damaged: not the published file"):
            function("wikitext-2", tmp_path, download=False)


# Words to ids

LETTERS = st.text(
    st.characters(codec="utf-8", min_codepoint=33, exclude_categories=("Zs", "Zl", "Zp", "Cc")), max_size=7
)
WORDS = st.one_of(LETTERS, st.sampled_from(["a", "abcdefg", "abcdefgh", "abcdefghi", "abcdefgh" * 2, "<unk>", "–"]))
TEXTS = st.lists(st.lists(WORDS, max_size=8).map(" ".join), max_size=12).map(lambda lines: "\n".join([*lines, "\n"]))


@given(TEXTS)
def test_ids_follow_frequency_then_first_appearance(tmp_path_factory, text):
    texts = {**FILES, "wiki.train.tokens": text}
    folder = write(tmp_path_factory.mktemp("text"), texts)
    got = load(folder)
    assert is_right(got, texts)
    counts = Counter(words_of(text))
    counts.setdefault("<unk>", 0)
    order = sorted(counts, key=lambda word: -counts[word])  # stable, and a dict keeps first appearances
    assert got.vocabulary.words == order and got.vocabulary.counts.tolist() == [counts[word] for word in order]


def test_last_line_without_newline_counts(tmp_path):
    texts = {**FILES, "wiki.test.tokens": "the cat"}
    assert load(write(tmp_path, texts)).test.shape == (3,)


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    text = load(write(tmp_path, {**FILES, "wiki.train.tokens": " ".join(map(str, range(70_000)))}))
    assert text.train.dtype == np.int32 and text.vocabulary.decode(text.train[[65_535, 69_999]]) == ["65535", "69999"]


def test_vocabulary_speaks_both_ways():
    vocabulary = Vocabulary(["the", "<unk>", "cat"], [5, 2, 2])
    ids = vocabulary.encode(["cat", "dog", "the"])
    assert ids.tolist() == [2, 1, 0] and ids.dtype == np.uint16 and len(vocabulary) == 3
    assert vocabulary.decode(ids.reshape(3, 1)) == ["cat", "<unk>", "the"]
    for wrong in ([3], [-1]):
        with pytest.raises(ValueError, match="ids: expected ids 0 to 2"):
            vocabulary.decode(wrong)
    for names, counts in (
        (["a"], [1]),
        (["<unk>"], [1, 2]),
        (["a", "<unk>"], [1, 2]),
        (["<unk>", "<unk>"], [1, 1]),
        (["a", "<unk>"], [2, -5]),
    ):
        with pytest.raises(ValueError, match="words, counts"):
            Vocabulary(names, counts)
    for counts in ([2.9, 1.1], ["3", "2"], [np.nan, 1]):  # were cut to whole numbers, or read as such
        with pytest.raises(ValueError, match=r"words, counts: .*a whole number for each"):
            Vocabulary(["a", "<unk>"], counts)
    counts = np.array([5, 2])
    vocabulary = Vocabulary(["a", "<unk>"], counts)
    counts[0] = 99
    assert vocabulary.counts.tolist() == [5, 2]


@pytest.mark.parametrize("packing", ["", ".xz"])
def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path, packing):
    """Editors on Windows begin a text with it, and the first word was another one."""
    mark = "\ufeff"
    marked = {name: mark + text.lstrip() for name, text in FILES.items()}  # the mark stands at a word
    assert is_right(load(write(tmp_path / "one", marked, packing)))
    within = {**FILES, "wiki.train.tokens": f"a b\nc {mark}d\n"}  # elsewhere it is a character like others
    assert f"{mark}d" in load(write(tmp_path / "three", within)).vocabulary.ids


def test_lists_of_ids_are_read_as_arrays():
    """`stream_batches([1, 2, 3])` ended in words about an attribute of a list."""
    tokens = [0, 1, 2, 1, 0]
    for found, wanted in zip(stream_batches(tokens, 2, 1), stream_batches(np.array(tokens), 2, 1), strict=True):
        assert all((one == other).all() for one, other in zip(found, wanted, strict=True))
    assert unigram_perplexity([2, 2, 1], tokens) == unigram_perplexity(np.array([2, 2, 1]), np.array(tokens))
    vocabulary = Vocabulary(iter(["the", "<unk>"]), [5, 2])
    assert vocabulary.encode(iter(["the"])).tolist() == vocabulary.encode(np.array(["the"])).tolist() == [0]
    assert vocabulary.decode([]) == [] and vocabulary.encode([]).shape == (0,)


# Damaged files


@pytest.mark.parametrize("packing", ["", ".xz"])
def test_invalid_utf8_names_file_and_line(tmp_path, packing):
    write(tmp_path, {**FILES, "wiki.valid.tokens": b" one \n two \n th\xffree \n"}, packing)
    with pytest.raises(ValueError, match=r"wiki\.valid\.tokens.*line 3 is not UTF-8.*fetch"):
        load(tmp_path)


def test_text_without_words(tmp_path):
    write(tmp_path, {**FILES, "wiki.test.tokens": ""})
    with pytest.raises(ValueError, match=r"wiki\.test\.tokens.*empty"):
        load(tmp_path)


@given(st.data())
def test_damaged_files_end_in_one_clear_error(tmp_path_factory, data):
    folder = write(tmp_path_factory.mktemp("damaged"), packing=".xz")
    path = folder / "wikitext-2" / "wiki.train.tokens.xz"
    path.write_bytes(damaged(data, path.read_bytes()))
    try:
        text = load(folder)
    except ValueError as error:
        assert path.name in str(error) and "fetch it again" in str(error)
    else:
        assert is_right(text)


def damaged(data, whole):
    """Bytes cut short, or with up to four bits flipped."""
    if data.draw(st.booleans()):
        return whole[: data.draw(st.integers(0, len(whole) - 1))]
    raw = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, 8 * len(raw) - 1), min_size=1, max_size=4, unique=True)):
        raw[place // 8] ^= 1 << place % 8
    return bytes(raw)


# Batches and perplexity


@given(st.integers(2, 200), st.integers(1, 9), st.integers(1, 12))
def test_stream_batches_cover_the_stream(length, batch, steps):
    tokens = np.random.default_rng(length).integers(0, 60_000, length).astype(np.uint16)
    columns = (length - 1) // batch
    if columns < 1:
        with pytest.raises(ValueError, match=f"tokens: expected over {batch}, got {length}"):
            stream_batches(tokens, batch, steps)
        return
    pieces = list(stream_batches(tokens, batch, steps))
    assert [x.shape for x, _ in pieces[:-1]] == [(batch, steps)] * (len(pieces) - 1)
    assert all(x.shape == y.shape and x.dtype == y.dtype == np.int32 for x, y in pieces)
    inputs, targets = (np.concatenate(side, axis=1) for side in zip(*pieces, strict=True))  # rows go on
    assert inputs.ravel().tolist() == tokens[: batch * columns].tolist()
    assert targets.ravel().tolist() == tokens[1 : batch * columns + 1].tolist()
    assert 0 <= length - 1 - inputs.size < batch


@pytest.mark.parametrize("wrong", [{"batch": 0, "steps": 1}, {"batch": 1, "steps": 0}])
def test_stream_batches_refuse_at_once(wrong):
    with pytest.raises(ValueError, match=min(wrong, key=wrong.get)):
        stream_batches(np.arange(9), **wrong)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_unigram_perplexity_is_the_definition(counts, data):
    tokens = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=20))
    total = sum(counts) + len(counts)
    loss = sum(-math.log((counts[i] + 1) / total) for i in tokens) / len(tokens)
    assert unigram_perplexity(counts, np.array(tokens)) == pytest.approx(math.exp(loss))


def test_unigram_perplexity_of_equal_words_is_their_number():
    assert unigram_perplexity(np.full(50, 7), np.arange(50, dtype=np.uint16)) == pytest.approx(50)


@pytest.mark.parametrize(
    ("counts", "tokens", "named"),
    [
        ([1, 2], [2], "tokens: expected ids 0 to 1"),
        ([1, 2], [], "tokens"),
        ([-1, 2], [0], "train_counts"),
        ([np.nan, 2], [0], "train_counts: .*nan"),
        ("counts", [0], "train_counts: .*counts"),
    ],
)
def test_unigram_perplexity_refuses(counts, tokens, named):
    with pytest.raises(ValueError, match=named):
        unigram_perplexity(np.array(counts), np.array(tokens, int))


# The paper's protocol


def notebook(text, seed=42):
    """The published notebook in plain words: shuffle, quarter, lower, sorted set, windows by line, split by line."""
    lines = text.split("\n")[:-1]
    lines = [lines[i] for i in np.random.default_rng(seed).permutation(len(lines))[: len(lines) // 4]]
    rows = [[word.lower() for word in line.split()] for line in lines]
    words = sorted({word for row in rows for word in row})
    ids = {word: i for i, word in enumerate(words)}
    order = np.random.RandomState(seed).permutation(len(rows))
    tests = math.ceil(0.2 * len(rows))
    sides = []
    for side in (order[tests:], order[:tests]):
        cut = [rows[i][t : t + 32] for i in side for t in range(0, len(rows[i]) - 32, 32)]
        x = np.array([[ids[word] for word in window] for window in cut], int).reshape(-1, 32)
        y = np.roll(x, -1, axis=1)
        y[:, -1] = 0
        sides += [x, y]
    return sides, words


@given(st.lists(st.sampled_from([0, 1, 31, 32, 33, 64, 65, 66, 97]), min_size=1, max_size=40), st.integers(0, 99))
def test_paper_windows_are_the_notebooks(tmp_path_factory, lengths, seed):
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(["The", "the", "Σας", "b", "!", "<unk>"], size=n)) for n in lengths]
    text = "".join(f" {line} \n" for line in lines)
    folder = write(tmp_path_factory.mktemp("paper"), {**FILES, "wiki.train.tokens": text})
    got = paper_windows("wikitext-2", folder, download=False, seed=seed, verify=False)
    sides, words = notebook(text, seed)
    assert got.words == words
    for have, want in zip(got[:4], sides, strict=True):
        assert have.dtype == np.int32
        np.testing.assert_array_equal(have, want)


def test_paper_windows_of_another_text_are_refused(tmp_path):
    """WikiText-2 in the folder of WikiText-103 was cut without a word; a text of one's own is used when named."""
    folder = write(tmp_path)
    for name in ("wikitext-2", "wikitext-103"):
        (folder / name).mkdir(exist_ok=True)
        for path in list((folder / "wikitext-2").iterdir()):
            (folder / name / path.name).write_bytes(path.read_bytes())
        with pytest.raises(ValueError, match=r"wiki\.train\.tokens is damaged: not the published file .*verify=False"):
            paper_windows(name, folder, download=False)
        (folder / name / "wiki.train.mine").write_bytes((folder / name / "wiki.train.tokens").read_bytes())
        assert paper_windows(name, folder, download=False, train="wiki.train.mine").x_train.shape == (0, 32)


# The real files


@real
def test_wikitext_2_has_the_published_counts():
    text = load_wikitext("wikitext-2", DATA, download=False)
    assert [len(part) for part in text[:3]] == [2_088_628, 217_646, 245_569]
    assert len(text.vocabulary) == 33_278 and text.vocabulary.counts.sum() == 2_088_628
    assert text.vocabulary.words[:5] == ["the", ",", ".", "of", "<unk>"]
    np.testing.assert_array_equal(np.bincount(text.train), text.vocabulary.counts)
    unknown = text.vocabulary.ids["<unk>"]
    assert [int(np.sum(part == unknown)) for part in text[1:3]] == [11_718, 15_218]
    with lzma.open(Path(DATA) / "wikitext-2" / "wiki.valid.tokens.xz", "rt", encoding="utf-8", newline="\n") as file:
        assert text.vocabulary.decode(text.valid) == words_of(file.read())
    assert 900 < unigram_perplexity(text.vocabulary.counts, text.test) < 950


@real
def test_wikitext_103_never_trains_on_its_head_unasked():
    given = {"folder": DATA, "download": False}
    text = load_wikitext("wikitext-103", train="wiki.train.head.tokens", **given)
    assert [len(part) for part in text[:3]] == [548_410, 217_646, 245_569] and len(text.vocabulary) == 34_065
    with pytest.raises(FileNotFoundError, match=r"wiki\.train\.tokens"):
        load_wikitext("wikitext-103", **given)


@real
def test_paper_windows_of_wikitext_2():
    got = paper_windows("wikitext-2", DATA, download=False)
    assert [x.shape for x in got[:4]] == [(10_765, 32)] * 2 + [(2_708, 32)] * 2
    assert len(got.words) == 23_434 and got.words[0] == "!" and not got.y_train[:, -1].any()

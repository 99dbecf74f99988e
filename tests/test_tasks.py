"""Generated tasks: each answer can be worked out from its input, by a slow reading of the definition."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enn_np.data.tasks import (
    adding_task,
    associative_recall,
    copy_task,
    multi_query_recall,
    pixel_mnist,
    pixel_permutation,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 12)


def generator(seed=0):
    return np.random.default_rng(seed)


@given(SEEDS, SIZES, SIZES, SIZES, SIZES)
def test_copy_task_repeats_after_the_signal(seed, n, delay, length, symbols):
    x, y = copy_task(generator(seed), n, delay, length, symbols)
    assert x.shape == y.shape == (n, delay + 2 * length) and x.dtype == y.dtype == np.int64
    for row, answer in zip(x.tolist(), y.tolist(), strict=True):
        told = row[:length]
        assert all(0 <= symbol < symbols for symbol in told)
        assert row == told + [symbols] * (delay - 1) + [symbols + 1] + [symbols] * length
        assert answer == [symbols] * (delay + length) + told


def test_copy_task_without_memory_has_the_published_loss():
    x, _ = copy_task(generator(), 1, delay=1000)
    assert x.shape == (1, 1020)
    assert 10 * math.log(8) / x.shape[1] == pytest.approx(0.0204, abs=1e-4)


@given(SEEDS, SIZES, st.integers(2, 40))
def test_adding_task_adds_the_marked_two(seed, n, steps):
    x, y = adding_task(generator(seed), n, steps)
    assert x.shape == (n, steps, 2) and y.shape == (n, 1) and x.dtype == y.dtype == np.float32
    assert x[:, :, 0].min() >= 0 and x[:, :, 0].max() < 1
    for row, total in zip(x, y[:, 0], strict=True):
        first, second = np.flatnonzero(row[:, 1])
        assert first < steps // 2 <= second and set(row[:, 1].tolist()) <= {0.0, 1.0}
        assert total == row[first, 0] + row[second, 0]


def test_adding_task_without_memory_has_the_published_loss():
    _, y = adding_task(generator(), 20_000, 10)
    assert np.mean((y - 1) ** 2) == pytest.approx(1 / 6, rel=0.03)


def test_adding_task_marks_every_step():
    x, _ = adding_task(generator(), 2000, 7)
    assert x[:, :, 1].any(axis=0).all()


@given(SEEDS, SIZES, st.data())
def test_associative_recall_answers_what_was_told(seed, n, data):
    keys, values = data.draw(st.integers(1, 26)), data.draw(st.integers(1, 10))
    pairs = data.draw(st.integers(1, keys))
    x, y = associative_recall(generator(seed), n, pairs, keys, values)
    assert x.shape == (n, 2 * pairs + 3, keys + values + 1) and x.dtype == np.float32
    assert y.shape == (n,) and y.dtype == np.int64
    assert np.array_equal(x.sum(axis=2), np.ones(x.shape[:2])) and set(np.unique(x)) <= {0.0, 1.0}
    for row, answer in zip(x.argmax(axis=2).tolist(), y.tolist(), strict=True):
        told = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(told) == pairs and max(told) < keys  # distinct keys
        assert row[2 * pairs : -1] == [keys + values] * 2
        assert told[row[-1]] == keys + answer and 0 <= answer < values


def commonest_share(pairs, values=10):
    """Expected share of the commonest of `pairs` values, from P(none is told more than m times): value after value,
    ways[n] counts how n places can be filled."""
    share = Fraction(0)
    for m in range(pairs):
        ways = [1] + [0] * pairs
        for _ in range(values):
            ways = [sum(math.comb(n, k) * ways[n - k] for k in range(min(m, n) + 1)) for n in range(pairs + 1)]
        share += 1 - Fraction(ways[pairs], values**pairs)
    return float(share / pairs)


def test_what_is_known_without_knowing_whose():
    """The docstring's percentages; those of 4 also by every way to draw 4 values."""
    told = np.stack(np.meshgrid(*[np.arange(10)] * 4), -1).reshape(-1, 4)
    commonest = (told[:, :, None] == np.arange(10)).sum(1).max(-1)
    assert round(commonest.mean() / 4, 6) == commonest_share(4) == 0.3835
    for pairs in (4, 8, 16, 32):
        assert f"{commonest_share(pairs):.2%} with {pairs}" in associative_recall.__doc__


def test_associative_recall_has_the_papers_sizes():
    x, y = associative_recall(generator(), 500)
    assert x.shape == (500, 11, 37) and set(y.tolist()) == set(range(10))


@given(SEEDS, SIZES, st.integers(1, 6), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_multi_query_recall_answers_what_was_told(seed, n, pairs, more, words, random_filler):
    """Each key returns once, at an even step behind the pairs, and its value is asked there and nowhere else."""
    steps, vocabulary = 4 * pairs + 2 * more, 2 * pairs + 2 + words
    x, y = multi_query_recall(generator(seed), n, steps, pairs, vocabulary, random_filler)
    assert x.shape == y.shape == (n, steps) and x.dtype == y.dtype == np.int64
    for row, answer in zip(x.tolist(), y.tolist(), strict=True):
        told = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(told) == len(set(told.values())) == pairs
        assert all(1 <= key < vocabulary // 2 <= value < vocabulary for key, value in told.items())
        asked = [t for t, value in enumerate(answer) if value != -1]
        assert all(t % 2 == 0 and t >= 2 * pairs and answer[t] == told[row[t]] for t in asked)
        assert {row[t] for t in asked} == told.keys() and len(asked) == pairs
        rest = {row[t] for t in range(2 * pairs, steps) if t not in asked}
        assert rest <= set(range(vocabulary)) if random_filler else rest <= {0}


def test_multi_query_recall_draws_as_defined():
    """Gaps by p(g) ~ g^-0.99; two of them one after the other, without the first; keys and values evenly."""
    n, pairs = 40_000, 2
    x, _ = multi_query_recall(generator(), n, 16, pairs, 20)
    p = np.arange(1, 7) ** (0.01 - 1)
    p /= p.sum()
    first, second = ((x[:, 4:] == x[:, [2 * i]]).argmax(1) // 2 for i in range(2))
    seen = np.bincount(first * 6 + second, minlength=36).reshape(6, 6) / n
    want = p[:, None] * p / (1 - p[:, None]) * (1 - np.eye(6))
    assert abs(seen - want).max() < 5 * np.sqrt(want.max() / n)
    for words, low, many in ((x[:, 0:4:2], 1, 9), (x[:, 1:4:2], 10, 10)):
        share = np.bincount(words.reshape(-1), minlength=20)[low : low + many] / words.size
        assert abs(share - 1 / many).max() < 5 * np.sqrt(1 / many / words.size)
    filler = multi_query_recall(generator(), 4_000, 16, 2, 20, random_filler=True)[0][:, 5::2]
    assert abs(np.bincount(filler.reshape(-1), minlength=20) / filler.size - 1 / 20).max() < 0.01


def test_a_seed_decides_all():
    for task in (copy_task, adding_task, associative_recall, multi_query_recall):
        first, again, other = (task(generator(seed), 5) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], other[0])
    assert np.array_equal(pixel_permutation(generator(3)), pixel_permutation(generator(3)))


def test_pixel_mnist_reads_row_by_row_or_permuted():
    images = generator().integers(0, 256, (3, 28, 28)).astype(np.uint8)
    x = pixel_mnist(images)
    assert x.shape == (3, 784, 1) and x.dtype == np.float32
    assert x[1, 28 * 5 + 7, 0] == np.float32(images[1, 5, 7]) / np.float32(255)
    order = pixel_permutation(generator(1))
    assert sorted(order.tolist()) == list(range(784)) and order.tolist() != sorted(order.tolist())
    np.testing.assert_array_equal(pixel_mnist(images, order), x[:, order])
    np.testing.assert_array_equal(pixel_mnist(x[:, :, 0].astype(np.float64)), x)  # float is not scaled again
    assert images.dtype == np.uint8 and images.max() > 1  # the input is left alone


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: copy_task(generator(), 0), "n: .*0"),
        (lambda: copy_task(generator(), 1, delay=0), "delay"),
        (lambda: copy_task(generator(), 1, length=-1), "length"),
        (lambda: copy_task(generator(), 1, symbols=0), "symbols"),
        (lambda: adding_task(generator(), 1, 1), "steps: expected at least 2, got 1"),
        (lambda: associative_recall(generator(), 1, pairs=27), "pairs: expected at most keys = 26.*27"),
        (lambda: associative_recall(generator(), 1, values=0), "values"),
        (lambda: multi_query_recall(generator(), 1, 15, 4), "steps: expected at least 16, got 15"),
        (lambda: multi_query_recall(generator(), 1, 17, 4), "steps: expected an even number, got 17"),
        (lambda: multi_query_recall(generator(), 1, 64, 4, 9), "vocabulary: expected at least 10, got 9"),
        (lambda: pixel_permutation(generator(), 0), "pixels"),
        (lambda: pixel_mnist(np.zeros((2, 3, 4, 5), np.uint8)), r"images.*\(2, 3, 4, 5\)"),
        (lambda: pixel_mnist(np.zeros((2, 4), np.int64)), "images.*int64"),
        (lambda: pixel_mnist(np.zeros((2, 4), np.uint8), [0, 1, 2]), "permutation"),
        (lambda: pixel_mnist(np.zeros((2, 4), np.uint8), [0, 1, 2, 2]), "permutation"),
        (lambda: pixel_mnist(np.zeros((2, 4), np.uint8), [[0, 1], [2, 3]]), "permutation"),
        (lambda: pixel_mnist(np.zeros((5, 2)), [True, False]), "permutation"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()

"""Small models and data sets, shared by the tests of models, training, trace, protocols and commands."""

import numpy as np
import pytest

from enn_np import GRU, LSTM, RNN, Binding, Classifier, Engram
from enn_np.data.images import Dataset

T, D, C = 5, 3, 3  # time steps, features and classes

# One of each kind, two layers of each, and mixed.
STACKS = {
    "rnn": (RNN(4), RNN(3)),
    "gru": (GRU(4), GRU(3)),
    "lstm": (LSTM(4), LSTM(3)),
    "engram": (Engram(4, 5), Engram(3, 4, trace="sample")),
    "binding": (Binding(4, 5), Binding(3, 4, trace="batch", temperature=1.0)),
    "mixed": (LSTM(4), Engram(4, 3), GRU(3)),
}
KINDS = {"rnn": RNN(6), "gru": GRU(6), "lstm": LSTM(6), "engram": Engram(16, 4), "binding": Binding(8, 4)}
EACH_ALONE = {**KINDS, "engram": Engram(6, 4, trace="sample")}  # no sample sees another
POOLINGS = ("last", "mean", "attention")
every_stack = pytest.mark.parametrize("stack", STACKS)
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)
every_kind = pytest.mark.parametrize("kind", KINDS)
masked_or_not = pytest.mark.parametrize("masked", (False, True), ids=("whole", "padded"))


def sequences(n=48, steps=T, seed=0, dtype=np.float32):
    """x (n, T, D) and labels y (n,): noise, and in every step a bit more of the feature that is the label."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    x = rng.standard_normal((n, steps, D), dtype) + np.eye(C, D, dtype=dtype)[y][:, None]
    return x, y


def padding(n, steps=T, seed=1):
    """A mask (n, T) of sequences with 1 to T real steps, padded at the end."""
    return np.arange(steps) < np.random.default_rng(seed).integers(1, steps + 1, n)[:, None]


def classifier(cells=None, **settings):
    """A classifier for `sequences`, with a GRU unless told otherwise."""
    return Classifier(GRU(6) if cells is None else cells, D, C, **settings)


def randomise(model, seed=0):
    """Every parameter random, biases and gains too, so that no gradient is zero by accident. Returns the model."""
    rng = np.random.default_rng(seed)
    for value in model.params.values():
        value[...] = 0.7 * rng.standard_normal(value.shape)
    return model


def same_to_the_bit(one, other):
    """Whether two dicts of arrays have the same keys, dtypes and bytes."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


def copied(params):
    return {name: value.copy() for name, value in params.items()}


def digits(train, test, seed=0):
    """Random pictures and labels in the form of MNIST."""
    rng = np.random.default_rng(seed)
    draw = [(rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n)) for n in (train, test)]
    return Dataset(*draw[0], *draw[1])

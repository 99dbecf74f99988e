"""Losses: values against the definition, gradients against differences, and what rounding could spoil."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import seeds

from enn_np import GRU, Regressor
from enn_np.gradcheck import TOLERANCE, compare
from enn_np.ops import cross_entropy

rows, columns = st.integers(1, 6), st.integers(1, 5)
both_types = pytest.mark.parametrize("dtype", (np.float32, np.float64))


def draw(rows, columns, seed, scale=3.0):
    """Logits or numbers (B, C), integer labels (B,), targets (B, C), and the Generator."""
    rng = np.random.default_rng(seed)
    logits, target = scale * rng.standard_normal((2, rows, columns))
    return logits, rng.integers(0, columns, rows), target, rng


def mean_squared_error(y, target):
    """A regressor's loss and its gradient."""
    return Regressor(GRU(1), 1, y.shape[1]).loss(y, target)[:2]


@given(rows, columns, seeds)
def test_cross_entropy_is_the_mean_negative_log_probability_of_the_labels(rows, columns, seed):
    """A sum in place of the mean, another logarithm, or a wrong label picked."""
    logits, labels, _, _ = draw(rows, columns, seed)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    want = -sum(np.log(probability[b, label]) for b, label in enumerate(labels)) / rows
    loss, _, right = cross_entropy(logits, labels)
    np.testing.assert_allclose(loss, want, rtol=1e-12, atol=1e-14)
    assert right == sum(int(np.argmax(logits[b])) == label for b, label in enumerate(labels))


@given(rows, columns, seeds)
def test_cross_entropy_gradient_is_its_difference_quotient(rows, columns, seed):
    """A gradient that lacks the 1 / B, or the 1 of the label."""
    logits, labels, _, rng = draw(rows, columns, seed)
    grads = {"logits": cross_entropy(logits, labels)[1]}
    errors = compare(
        lambda v: (cross_entropy(v["logits"], labels)[0], None), {"logits": logits}, grads, rng, every=True
    )
    assert errors["logits"] < TOLERANCE


@given(rows, columns, seeds)
def test_cross_entropy_gradient_sums_to_zero_over_classes(rows, columns, seed):
    """Softmax does not see a constant added to all logits, so no gradient may point that way."""
    logits, labels, _, _ = draw(rows, columns, seed)
    np.testing.assert_allclose(cross_entropy(logits, labels)[1].sum(1), 0, atol=1e-14)


@given(rows, columns, seeds)
def test_mean_squared_error_is_the_mean_over_batch_and_outputs(rows, columns, seed):
    """A mean over the batch alone, which Keras users would notice only with several outputs."""
    y, _, target, _ = draw(rows, columns, seed)
    want = sum((a - b) ** 2 for a, b in zip(y.flat, target.flat, strict=True)) / (rows * columns)
    np.testing.assert_allclose(mean_squared_error(y, target)[0], want, rtol=1e-12)


@given(rows, columns, seeds)
def test_mean_squared_error_gradient_is_its_difference_quotient(rows, columns, seed):
    """A lost factor of 2, or a 1 / B without the number of outputs."""
    y, _, target, rng = draw(rows, columns, seed)
    grads = {"y": mean_squared_error(y, target)[1]}
    errors = compare(lambda v: (mean_squared_error(v["y"], target)[0], None), {"y": y}, grads, rng, every=True)
    assert errors["y"] < TOLERANCE


@both_types
def test_extreme_logits_give_the_exact_loss(dtype):
    """log(0) = -inf where the label's probability underflows, or exp that overflows."""
    logits = np.array([[1e4, 0, -1e4], [-1e4, 1e4, 0]], dtype)
    loss, gradient, right = cross_entropy(logits, np.array([2, 1]))
    assert loss == 1e4 and right == 1  # (2e4 + 0) / 2
    np.testing.assert_array_equal(gradient, [[0.5, 0, -0.5], [0, 0, 0]])


@both_types
def test_precision_is_kept(dtype):
    """A float64 constant that silently upcasts the gradients of a float32 model."""
    logits, labels, target, _ = draw(4, 3, seed=0)
    logits, target = logits.astype(dtype), target.astype(dtype)
    for loss, gradient, *_ in (cross_entropy(logits, labels), mean_squared_error(logits, target)):
        assert loss.dtype == gradient.dtype == dtype


def test_losses_leave_their_arguments_alone():
    """The gradient is made in place from the probabilities: never from the logits themselves."""
    logits, labels, target, _ = draw(4, 3, seed=0)
    before = logits.copy(), labels.copy(), target.copy()
    cross_entropy(logits, labels)
    mean_squared_error(logits, target)
    for array, copy in zip((logits, labels, target), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_certain_and_right_answer_costs_nothing():
    loss, gradient, right = cross_entropy(np.array([[0.0, 800.0]]), np.array([1]))
    assert loss == 0 and right == 1 and not gradient.any()


def test_labels_of_any_integer_type_give_the_same():
    """uint8 labels, as the IDX files have them, must not wrap or be taken for a mask."""
    logits, labels, _, _ = draw(5, 4, seed=1)
    want = cross_entropy(logits, labels)
    for kind in (np.uint8, np.int32):
        got = cross_entropy(logits, labels.astype(kind))
        assert got[0] == want[0] and got[2] == want[2]
        np.testing.assert_array_equal(got[1], want[1])

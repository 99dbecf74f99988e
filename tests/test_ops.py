"""Every function of ops beside its derivative: finite differences, definitions, and the edges."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from problems import assert_close, assert_derivatives, assert_same, seeds, sizes, zeros

from enn_np import gradcheck, ops

LEADS = st.sampled_from(((), (1,), (3,), (2, 3), (1, 1), (4, 2)))


def normal(seed, *shapes):
    """Random arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


# --------------------------------------------------------------------------------------- finite differences


class Op(NamedTuple):
    """Input shapes from sizes (lead, B, D, H, N); y = forward(*inputs); back(dy, *inputs) -> gradients."""

    shapes: Callable
    forward: Callable
    back: Callable


def rowwise(forward, back):
    """An op on the rows of (..., H) whose backward wants the value only."""
    return Op(lambda lead, B, D, H, N: [(*lead, H)], forward, lambda dy, x: [back(dy, forward(x))])


def top_k(k):
    return rowwise(lambda x: ops.top_k_softmax(x, min(k, x.shape[-1])), ops.softmax_back)


def layer_norm_back(dy, x, gamma, beta):
    _, x_hat, inv = ops.layer_norm(x, gamma, beta)
    return ops.layer_norm_back(dy, gamma, x_hat, inv), ops.sum_rows(dy * x_hat), ops.sum_rows(dy)


def match_back(dy, z, M):
    return ops.read(dy, M), ops.write(dy, z, M.ndim == 2)


def cosine_back(ds, u, M):
    s, inv = ops.cosine(u, M)
    dp, along = ops.cosine_back(ds, s, inv)
    return ops.read(dp, M), ops.write(dp, u, M.ndim == 2) - along * M


def read_back(dy, a, M):
    return ops.match(dy, M), ops.write(a, dy, M.ndim == 2)


def write_back(dM, a, z):
    return ops.match(z, dM), ops.read(a, dM)


OPS = {
    "linear": Op(
        lambda lead, B, D, H, N: [(*lead, D), (D, H), (H,)],
        ops.linear,
        lambda dy, x, W, b: (dy @ W.T, *ops.linear_back(dy, x)),
    ),
    "relu": rowwise(ops.relu, ops.relu_back),
    "softmax": rowwise(ops.softmax, ops.softmax_back),
    "top 1": top_k(1),
    "top 2": top_k(2),
    "sparsemax": rowwise(ops.sparsemax, ops.sparsemax_back),
    "unit": Op(
        lambda lead, B, D, H, N: [(*lead, H)],
        lambda x: ops.unit(x)[0],
        lambda dy, x: [ops.unit_back(dy, *ops.unit(x))],
    ),
    "layer_norm": Op(
        lambda lead, B, D, H, N: [(*lead, H), (H,), (H,)],
        lambda *inputs: ops.layer_norm(*inputs)[0],
        layer_norm_back,
    ),
    "cosine, shared": Op(lambda lead, B, D, H, N: [(B, H), (N, H)], lambda u, M: ops.cosine(u, M)[0], cosine_back),
    "cosine, per sample": Op(
        lambda lead, B, D, H, N: [(B, H), (B, N, H)], lambda u, M: ops.cosine(u, M)[0], cosine_back
    ),
    "match, shared": Op(lambda lead, B, D, H, N: [(B, H), (N, H)], ops.match, match_back),
    "match, per sample": Op(lambda lead, B, D, H, N: [(B, H), (B, N, H)], ops.match, match_back),
    "read, shared": Op(lambda lead, B, D, H, N: [(B, N), (N, H)], ops.read, read_back),
    "read, per sample": Op(lambda lead, B, D, H, N: [(B, N), (B, N, H)], ops.read, read_back),
    "write, shared": Op(
        lambda lead, B, D, H, N: [(B, N), (B, H)], lambda a, z: ops.write(a, z, shared=True), write_back
    ),
    "write, per sample": Op(
        lambda lead, B, D, H, N: [(B, N), (B, H)], lambda a, z: ops.write(a, z, shared=False), write_back
    ),
}


@pytest.mark.parametrize("name", OPS)
@given(lead=LEADS, B=sizes, D=sizes, H=sizes, N=sizes, seed=seeds)
def test_backward_equals_differences(name, lead, B, D, H, N, seed):
    """Catches a wrong sign, factor, operand or axis in any derivative, at every coordinate of every input."""
    op = OPS[name]
    inputs = dict(enumerate(normal(seed, *op.shapes(lead, B, D, H, N))))
    dy = normal([seed, 1], op.forward(*inputs.values()).shape)[0]

    def loss(values):
        y = op.forward(*values.values())
        return (y * dy).sum(), zeros(y)

    grads = dict(enumerate(op.back(dy, *inputs.values())))
    assert grads.keys() == inputs.keys()
    try:
        assert_derivatives(loss, inputs, grads, every=True)
    except gradcheck.Kink:
        reject()


@pytest.mark.parametrize("shared", [True, False])
@given(B=sizes, H=sizes, N=sizes, seed=seeds)
def test_memory_contractions_are_dual(shared, B, H, N, seed):
    """Catches a transposed operand: <match(z, M), a> = <read(a, M), z> = <write(a, z), M>."""
    M, z, a = normal(seed, (N, H) if shared else (B, N, H), (B, H), (B, N))
    want = np.einsum("bn,bh,nh->" if shared else "bn,bh,bnh->", a, z, M)
    got = (ops.match(z, M) * a).sum(), (ops.read(a, M) * z).sum(), (ops.write(a, z, shared) * M).sum()
    assert_close(got, [want] * 3, 1e-11)


@pytest.mark.parametrize("shared", [True, False])
@given(B=sizes, H=sizes, N=sizes, uses=st.integers(1, 3), seed=seeds)
def test_writing_several_uses_is_their_sum(shared, B, H, N, uses, seed):
    """Catches a use that lands on another sample, or is lost."""
    a, z = normal(seed, (uses, B, N), (uses, B, H))
    assert_close([ops.write(a, z, shared)], [sum(map(lambda a, z: ops.write(a, z, shared), a, z))], 1e-11)


# ---------------------------------------------------------------------------------------------- definitions


@given(lead=LEADS, H=sizes, D=sizes, seed=seeds)
def test_linear_and_sums_over_leading_axes(lead, H, D, seed):
    """Catches a bias that is added along the wrong axis, and an axis that is not summed."""
    x, W, b, y = normal(seed, (*lead, D), (D, H), (H,), (*lead, D))
    leading = tuple(range(len(lead)))
    assert_close([ops.linear(x, W, b)], [np.einsum("...d,dh->...h", x, W) + b])
    assert_close([ops.sum_rows(x), ops.dot_rows(x, y)], [x.sum(leading), (x * y).sum(-1, keepdims=True)])


def test_relu_at_its_kink():
    """Catches a derivative of 1, or 1/2, at zero: the kink counts as off."""
    y = ops.relu(np.array([-2.0, -0.0, 0.0, 3.0]))
    assert y.tolist() == [0, 0, 0, 3]
    assert ops.relu_back(np.full(4, 5.0), y).tolist() == [0, 0, 0, 5]


@given(x=st.floats(-30, 30))
def test_sigmoid_definition(x):
    """Catches a wrong half in the detour by tanh."""
    assert ops.sigmoid(np.array([x]))[0] == pytest.approx(1 / (1 + np.exp(-x)), abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_far_out(dtype):
    """Catches an overflow (warnings are errors) and a silent upcast."""
    y = ops.sigmoid(np.array([-1000, 0, 1000], dtype))
    assert y.dtype == dtype and y.tolist() == [0, 0.5, 1]


@given(lead=LEADS, H=sizes, seed=seeds, shift=st.floats(-500, 500))
def test_softmax_invariances(lead, H, seed, shift):
    """Catches a sum over the wrong axis and a shift that changes the result."""
    (x,) = normal(seed, (*lead, H))
    y = ops.softmax(x)
    assert_close([y.sum(-1), ops.softmax(x + shift)], [np.ones(lead), y])
    assert_close([ops.softmax(x[..., ::-1])], [y[..., ::-1]])
    assert_close([np.log(y) - np.log(y[..., :1])], [x - x[..., :1]], 1e-10)


def test_softmax_far_out():
    """Catches an overflow of exp."""
    assert ops.softmax(np.array([1000.0, 1000.0, -1000.0])).tolist() == [0.5, 0.5, 0]


@given(lead=LEADS, H=st.integers(1, 6), k=st.integers(1, 6), seed=seeds)
def test_top_k_keeps_the_k_largest(lead, H, k, seed):
    """Catches k - 1 or k + 1 kept, the smallest kept, and a softmax over dropped entries."""
    (x,) = normal(seed, (*lead, H))
    k = min(k, H)
    y = ops.top_k_softmax(x, k)
    assert ((y > 0).sum(-1) == k).all()
    for row, kept in zip(ops.flat(x), ops.flat(y), strict=True):
        best = np.sort(row)[-k:]
        assert_close([np.sort(kept)[-k:]], [np.exp(best) / np.exp(best).sum()])


def test_top_k_keeps_ties():
    """Catches an arbitrary choice among equals, which would make results depend on the order of slots."""
    assert ops.top_k_softmax(np.array([[2.0, 2.0, 2.0, 1.0]]), 2).tolist() == [[1 / 3, 1 / 3, 1 / 3, 0]]


@given(lead=LEADS, H=st.integers(1, 6), seed=seeds, scale=st.sampled_from((0.1, 1, 100)))
def test_sparsemax_is_the_projection_on_the_simplex(lead, H, seed, scale):
    """Catches a wrong support: the KKT conditions of min |y - x|^2 on the simplex hold at no other point."""
    x = scale * normal(seed, (*lead, H))[0]
    y = ops.sparsemax(x)
    assert (y >= 0).all()
    assert_close([y.sum(-1)], [np.ones(lead)], 1e-11)
    for row, point in zip(ops.flat(x), ops.flat(y), strict=True):
        gap = row - point  # the multiplier t on the support, at most t off it
        t = gap[point > 0]
        assert np.ptp(t) <= 1e-12 * scale
        assert (gap[point == 0] <= t.min() + 1e-12 * scale).all()


@given(H=st.integers(1, 6), seed=seeds)
def test_sparsemax_jacobian(H, seed):
    """Catches the softmax Jacobian in its place: diag(s) - s s' / |s|, s the support."""
    (x,) = normal(seed, H)
    y = ops.sparsemax(x)
    s = (y > 0).astype(float)
    J = np.stack([ops.sparsemax_back(row, y) for row in np.eye(H)])
    assert_close([J], [np.diag(s) - np.outer(s, s) / s.sum()])


def test_sparsemax_edges():
    """Catches a winner that does not take all, ties broken apart, and cancellation far out."""
    got = [ops.sparsemax(np.array(x)) for x in ([3.0, 1.0, 0.0], [1.0, 1.0], [1e6, 1e6, 0.0])]
    assert_same(got, [[1, 0, 0], [0.5, 0.5], [0.5, 0.5, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0, 1e4, -1e8, 1e8, 1e15, -1e30])
def test_sparsemax_of_large_inputs(shift, dtype):
    """Catches a sum that drowns the 1: weights sum to 1 wherever the inputs lie, whole rows or one entry far below."""
    x = np.array([[0, 0, 0], [1, 0, -2], [0, -1, -1e30], [-4, 0, 0]], dtype) + dtype(shift)
    y = ops.sparsemax(x)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    if abs(shift) <= 1e4:
        assert_close([y], [ops.sparsemax(x - dtype(shift))], 1e-6)
    np.testing.assert_allclose(y[0], np.full(3, 1 / 3), rtol=1e-6)


@given(lead=LEADS, H=st.integers(2, 6), seed=seeds, shift=st.floats(-10, 10))
def test_layer_norm_statistics(lead, H, seed, shift):
    """Catches a mean that stays, n - 1 in place of n, a wrong epsilon, gamma and beta mixed up."""
    x, gamma, beta = normal(seed, (*lead, H), (H,), (H,))
    y, x_hat, inv = ops.layer_norm(x + shift, gamma, beta)
    variance = x.var(-1, keepdims=True)
    assert_close(
        [x_hat.mean(-1), x_hat.var(-1, keepdims=True), inv, y],
        [np.zeros(lead), variance / (variance + 1e-6), 1 / np.sqrt(variance + 1e-6), gamma * x_hat + beta],
        1e-10,
    )


@given(lead=LEADS, H=sizes, seed=seeds, scale=st.sampled_from((1e-3, 1, 1e6)))
def test_unit_length(lead, H, seed, scale):
    """Catches a norm over the wrong axis and a squared length."""
    x = scale * normal(seed, (*lead, H))[0]
    length = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    assert_close(ops.unit(x), [x / length, 1 / length])


@given(B=sizes, H=sizes, N=sizes, seed=seeds)
def test_cosine_is_the_product_of_unit_vectors(B, H, N, seed):
    """Catches a length that is left in, of either memory; a row of zeros gives 0 and keeps its length."""
    z, M = normal(seed, (B, H), (B, N, H))
    u, M[:, 0] = ops.unit(z)[0], 0
    s, inv = ops.cosine(u, M)
    assert_close([s, inv], [ops.match(u, ops.unit(M)[0]), ops.unit(M)[1][..., 0]])
    assert_close([ops.cosine(u, M[0])[0]], [ops.match(u, ops.unit(M[0])[0])])
    assert not ops.cosine_back(np.ones_like(s), s, inv)[1][:, 0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_of_nothing(dtype):
    """Catches 0 / 0 for a zero vector, whose length is held at 1e-6, a constant for the derivative."""
    u, inv = ops.unit(np.zeros((2, 3), dtype))
    assert not u.any() and inv == pytest.approx(1e6)
    du = np.ones((2, 3), dtype)
    assert_close([ops.unit_back(du, u, inv)], [1e6 * du], 1e-6)


def test_unit_shorter_than_its_hold():
    """Catches a derivative that turns vectors below the hold, where x / 1e-6 is linear."""
    x, du = 1e-7 * np.array([[3.0, 4.0]]), np.array([[1.0, 2.0]])
    u, inv = ops.unit(x)
    assert_close([u, ops.unit_back(du, u, inv)], [[[0.3, 0.4]], 1e6 * du])


@pytest.mark.parametrize("name", OPS)
def test_precision_is_kept(name):
    """Catches a float64 constant that upcasts float32."""
    op = OPS[name]
    inputs = [x.astype(np.float32) for x in normal(0, *op.shapes((2, 3), 3, 4, 5, 2))]
    y = op.forward(*inputs)
    assert y.dtype == np.float32
    assert [dx.dtype for dx in op.back(y, *inputs)] == [np.float32] * len(inputs)


@pytest.mark.parametrize("name", OPS)
def test_inputs_are_only_read(name):
    """Catches an in-place shortcut on what belongs to the caller."""
    op = OPS[name]
    inputs = normal(0, *op.shapes((2, 3), 3, 4, 5, 2))
    copies = [x.copy() for x in inputs]
    dy = np.ones_like(op.forward(*inputs))
    op.back(dy, *inputs)
    assert (dy == 1).all()
    assert_same(inputs, copies)


@pytest.mark.parametrize("memory", [(4, 3), (2, 4, 3)], ids=["shared", "per sample"])
def test_a_row_shorter_than_its_floor_has_no_direction(memory):
    """Catches the part along a row that is taken away where its length counts as 1e-6, so that the cosine is linear."""
    u, M, ds = normal(0, (2, 3), memory, (2, 4))
    M[..., 1, :] *= 1e-7
    dM = cosine_back(ds, u, M)[1][..., 1, :]
    per_sample = 1e6 * ds[:, 1:2] * u
    assert_close([dM], [per_sample if M.ndim == 3 else per_sample.sum(0)])

"""The output layers: against a plain definition, against finite differences, in little memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enn_np import heads
from enn_np.gradcheck import compare
from enn_np.heads import SoftmaxHead, add_rows
from enn_np.ops import cross_entropy

HEADS = {
    "softmax": SoftmaxHead(),
    "one cluster": SoftmaxHead((4,)),
    "two clusters": SoftmaxHead((3, 7), factor=2),
    "three, of one word": SoftmaxHead((1, 2, 3)),
}
V, H = 11, 5
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
seeds = st.integers(0, 2**32 - 1)


def problem(head, seed=0, n=7, hidden=H, vocabulary=V, dtype=np.float64, scale=1.0):
    """Random parameters, biases too, random h (n, H) and targets (n,)."""
    rng = np.random.default_rng(seed)
    params = head.init(rng, hidden, vocabulary, dtype)
    params = {name: (scale * rng.standard_normal(value.shape)).astype(dtype) for name, value in params.items()}
    return params, rng.standard_normal((n, hidden)).astype(dtype), rng.integers(0, vocabulary, n)


def plain_probability(head, params, h, word):
    """p(word | h (H,)), from the definition, one number at a time."""

    def softmax(x):
        e = [np.exp(value) for value in x]
        return [value / sum(e) for value in e]

    p = softmax([sum(params["W"][v, k] * h[k] for k in range(len(h))) + b for v, b in enumerate(params["b"])])
    if not head.cutoffs or word < head.cutoffs[0]:
        return p[word]
    i = max(j for j, cutoff in enumerate(head.cutoffs, 1) if word >= cutoff)
    z = h @ params[f"P{i}"]
    inner = softmax([params[f"W{i}"][v] @ z + b for v, b in enumerate(params[f"b{i}"])])
    return p[head.cutoffs[0] + i - 1] * inner[word - head.cutoffs[i - 1]]


def near(one, other, tolerance):
    """Whether the difference is small beside `other`, as vectors."""
    return np.linalg.norm(np.asarray(one, np.float64) - other) <= tolerance * np.linalg.norm(other)


# ------------------------------------------------------------------------------------------------- the right numbers


@each_head
@given(seed=seeds)
def test_log_probabilities_are_those_of_the_definition_and_sum_to_one(head, seed):
    params, h, _ = problem(head, seed, n=2)
    log_p = head.log_probabilities(params, h)
    assert log_p.shape == (2, V)
    assert np.allclose(np.exp(log_p).sum(-1), 1, rtol=0, atol=1e-12)
    wanted = [[plain_probability(head, params, row, word) for word in range(V)] for row in h]
    assert np.allclose(np.exp(log_p), wanted, rtol=1e-10, atol=0)


@each_head
@given(seed=seeds, n=st.integers(1, 9))
def test_loss_and_right_answers_are_those_of_the_log_probabilities(head, seed, n):
    params, h, targets = problem(head, seed, n)
    log_p = head.log_probabilities(params, h)
    targets = np.where(np.arange(n) % 2, targets, log_p.argmax(-1))  # random targets alone would rarely be right
    loss, dh, grads, right = head.loss_and_grads(params, h, targets)
    assert np.isclose(loss, -log_p[np.arange(n), targets].mean(), rtol=1e-12, atol=0)
    assert right == (log_p.argmax(-1) == targets).sum()
    assert head.loss(params, h, targets) == (loss, right)
    assert dh.shape == h.shape
    assert {name: g.shape for name, g in grads.items()} == {name: value.shape for name, value in params.items()}


@each_head
@given(seed=seeds, weighted=st.booleans())
def test_gradients_agree_with_finite_differences(head, seed, weighted):
    params, h, targets = problem(head, seed)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, len(h)) + (np.arange(len(h)) == 0) if weighted else None
    _, dh, grads, _ = head.loss_and_grads(params, h, targets, weights)

    def loss(values):
        inner = {name: value for name, value in values.items() if name != "h"}
        return head.loss(inner, values["h"], targets, weights)[0], None

    errors = compare(loss, {**params, "h": h}, {**grads, "h": dh}, rng)
    assert max(errors.values()) <= 1e-6, errors


@each_head
def test_every_coordinate_of_a_tiny_case_agrees_with_finite_differences(head):
    params, h, targets = problem(head, seed=3, n=3, hidden=4)
    _, dh, grads, _ = head.loss_and_grads(params, h, targets)

    def loss(values):
        inner = {name: value for name, value in values.items() if name != "h"}
        return head.loss(inner, values["h"], targets)[0], None

    errors = compare(loss, {**params, "h": h}, {**grads, "h": dh}, np.random.default_rng(0), every=True)
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-10)])
def test_chunks_equal_the_plain_form(dtype, tolerance):
    """Several chunks of tokens, the last one short, and several blocks of words, against `losses.cross_entropy`."""
    n, vocabulary = 2 * heads.CHUNK + 3, 2 * heads.BLOCK + 5
    head = SoftmaxHead()
    params, h, targets = problem(head, n=n, hidden=16, vocabulary=vocabulary, dtype=dtype, scale=0.5)
    loss, dh, grads, right = head.loss_and_grads(params, h, targets)
    W, b = params["W"].astype(np.float64), params["b"].astype(np.float64)
    wanted, d, wanted_right = cross_entropy(h.astype(np.float64) @ W.T + b, targets)
    assert abs(loss - wanted) <= tolerance * wanted
    assert right == wanted_right
    assert near(dh, d @ W, tolerance)
    assert near(grads["W"], d.T @ h.astype(np.float64), tolerance)
    assert near(grads["b"], d.sum(0), tolerance)


@each_head
def test_weights_are_a_weighted_mean_and_zero_leaves_a_token_out(head):
    params, h, targets = problem(head, seed=1)
    keep = np.array([True, False, True, True, False, True, True])
    loss, dh, grads, right = head.loss_and_grads(params, h, np.where(keep, targets, -7), keep)  # never looked at
    wanted_loss, wanted_dh, wanted_grads, wanted_right = head.loss_and_grads(params, h[keep], targets[keep])
    assert np.isclose(loss, wanted_loss, rtol=1e-12)
    assert right == wanted_right
    assert np.allclose(dh[keep], wanted_dh, rtol=1e-10, atol=1e-15)
    assert not dh[~keep].any()
    for name, g in grads.items():
        assert np.allclose(g, wanted_grads[name], rtol=1e-10, atol=1e-15)
    twice = np.array([2, 1, 1, 1, 1, 1, 1])
    repeated = head.loss(params, np.concatenate([h, h[:1]]), np.append(targets, targets[0]))
    assert np.isclose(head.loss(params, h, targets, twice)[0], repeated[0], rtol=1e-12)


def test_a_word_of_a_cluster_can_be_right_though_each_cluster_beats_every_word_of_the_head():
    """Clusters weigh 0.45 each, the head's word 0.1; one spreads its weight thin, the other puts it on word 1."""
    head = SoftmaxHead((1, 3), factor=1)
    params = {name: np.zeros_like(value) for name, value in head.init(np.random.default_rng(0), 1, 13, "f8").items()}
    params["b"] = np.log([0.1, 0.45, 0.45])
    params["b1"] = np.array([9.0, 0.0])
    h = np.zeros((3, 1))
    assert head.log_probabilities(params, h)[0].argmax() == 1
    assert head.loss(params, h, np.array([1, 0, 4]))[1] == 1
    params["b1"] = np.zeros(2) - np.array([0.0, 0.1])  # still word 1: half of 0.45
    assert head.loss(params, h, np.array([0, 0, 0]))[1] == 0  # 0.1 beats no word that holds 0.2


# ---------------------------------------------------------------------------------------------------- their handling


@each_head
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_is_kept_and_inputs_are_not_changed(head, dtype):
    params, h, targets = problem(head, dtype=dtype)
    before = {name: value.copy() for name, value in params.items()}, h.copy(), targets.copy()
    loss, dh, grads, _ = head.loss_and_grads(params, h, targets, np.ones(len(h)))
    log_p = head.log_probabilities(params, h)
    assert {value.dtype for value in (loss, dh, log_p, *grads.values())} == {np.dtype(dtype)}
    assert all((params[name] == before[0][name]).all() for name in params)
    assert (h == before[1]).all() and (targets == before[2]).all()


@each_head
def test_leading_axes_may_be_time_and_batch(head):
    params, h, targets = problem(head, n=6)
    loss, dh, grads, right = head.loss_and_grads(params, h, targets)
    shaped = head.loss_and_grads(params, h.reshape(2, 3, H), targets.reshape(2, 3).astype(np.uint16))
    assert (shaped[0], shaped[3]) == (loss, right)
    assert (shaped[1] == dh.reshape(2, 3, H)).all()
    assert all((shaped[2][name] == g).all() for name, g in grads.items())
    assert head.log_probabilities(params, h.reshape(2, 3, H)).shape == (2, 3, V)


@each_head
def test_huge_logits_neither_overflow_nor_underflow(head):
    params, h, targets = problem(head, dtype=np.float32, scale=1e4)
    loss, dh, grads, _ = head.loss_and_grads(params, h, targets)
    assert np.isfinite(loss) and loss > 100
    assert all(np.isfinite(value).all() for value in (dh, *grads.values()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_stays_under_64_MB_where_the_logits_alone_take_545(dtype):
    head, n, hidden, vocabulary = SoftmaxHead(), 4096, 128, 33_278
    rng = np.random.default_rng(0)
    params = head.init(rng, hidden, vocabulary, dtype)
    h, targets = rng.standard_normal((n, hidden), dtype), rng.integers(0, vocabulary, n)
    tracemalloc.start()
    _, dh, grads, _ = head.loss_and_grads(params, h, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - dh.nbytes - sum(grad.nbytes for grad in grads.values()) < 64e6  # beside what it hands back


def test_initial_values_are_drawn_from_the_generator():
    for head in HEADS.values():
        one, same = (head.init(np.random.default_rng(4), H, V) for _ in range(2))
        other = head.init(np.random.default_rng(5), H, V)
        assert all((one[name] == same[name]).all() for name in one)
        assert (one["W"] != other["W"]).any() and not one["b"].any()
        assert {value.dtype for value in one.values()} == {np.dtype(np.float32)}
        assert sum(map(len, head.words(one))) == V


def test_clusters_have_projections_that_shrink_by_the_factor():
    params = SoftmaxHead((20, 50)).init(np.random.default_rng(0), 32, 100)
    shapes = {name: value.shape for name, value in params.items()}
    clusters = {"P1": (32, 8), "W1": (30, 8), "b1": (30,), "P2": (32, 2), "W2": (50, 2), "b2": (50,)}
    assert shapes == {"W": (22, 32), "b": (22,), **clusters}


@given(seed=seeds, tokens=st.integers(1, 30), dtype=st.sampled_from((np.float32, np.float64)))
def test_add_rows_adds_each_row_at_its_id(seed, tokens, dtype):
    rng = np.random.default_rng(seed)
    ids, rows = rng.integers(0, 6, (tokens, 2)), rng.standard_normal((tokens, 2, 3)).astype(dtype)
    table = rng.standard_normal((6, 3)).astype(dtype)
    wanted = table.astype(np.float64)
    np.add.at(wanted, ids, rows)
    found = add_rows(table, ids, rows)
    assert found is table and found.dtype == dtype
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"h": np.zeros((7, 4))}, ValueError, r"h: expected shape \(n, 5\)"),
        ({"h": np.zeros((7, H), np.float32)}, TypeError, "h: expected float64"),
        ({"h": np.zeros((7, H), int)}, TypeError, "h: expected float64, got int64"),
        ({"h": [[0.0]]}, TypeError, "^h: expected a NumPy"),
        ({"targets": [0] * 7}, TypeError, "^targets: expected an array"),
        ({"targets": [0] * 7, "weights": np.ones(7)}, TypeError, "^targets: expected an array"),
        ({"h": np.zeros((0, H)), "targets": np.zeros(0, int)}, ValueError, "h: .*empty"),
        ({"targets": np.zeros(6, int)}, ValueError, r"targets: expected shape \(7,\)"),
        ({"targets": np.zeros(7)}, TypeError, "targets: expected integer"),
        ({"targets": np.full(7, V)}, ValueError, f"targets: .*got {V}"),
        ({"targets": np.full(7, -1)}, ValueError, "targets: .*got -1"),
        ({"weights": np.ones(6)}, ValueError, r"weights: expected \(7,\)"),
        ({"weights": np.ones(6), "targets": np.zeros(6, int)}, ValueError, r"weights: expected \(7,\) as targets"),
        ({"weights": np.ones((7, 1))}, ValueError, r"weights: expected \(7,\) as targets"),
        ({"weights": np.ones(7), "targets": np.zeros((1, 7), int)}, ValueError, r"weights: expected \(7,\) as targets"),
        ({"weights": [1.0] * 6}, ValueError, r"weights: expected \(7,\)"),
        ({"weights": np.zeros(7)}, ValueError, "weights: .*not all 0"),
        ({"weights": np.array([1, 1, 1, 1, 1, 1, -1])}, ValueError, "weights: .*none negative"),
        ({"weights": np.array([1, 1, 1, 1, 1, 1, np.nan])}, ValueError, "weights: .*none negative"),
        ({"weights": np.array([1, 1, 1, 1, 1, 1, np.inf])}, ValueError, "weights: .*none negative"),
    ],
)
@each_head
def test_bad_input_is_named(head, changes, error, message):
    params, h, targets = problem(head)
    arguments = {"h": h, "targets": targets, **changes}
    with pytest.raises(error, match=message):
        head.loss_and_grads(params, **arguments)


@pytest.mark.parametrize(
    ("cutoffs", "factor", "error", "message"),
    [
        ((5, 5), 4, ValueError, "cutoffs: expected rising ids"),
        ((7, 5), 4, ValueError, "cutoffs: expected rising ids"),
        ((0, 5), 4, ValueError, "cutoffs: expected at least 1"),
        ((2.5,), 4, TypeError, "cutoffs: expected a whole number"),
        ((5,), 0, ValueError, "factor: expected at least 1"),
        ((3, V), 4, ValueError, "cutoffs: expected below the vocabulary's 11 words"),
    ],
)
def test_bad_cutoffs_are_named(cutoffs, factor, error, message):
    with pytest.raises(error, match=message):
        SoftmaxHead(cutoffs, factor).init(np.random.default_rng(0), H, V)


@each_head
def test_bad_sizes_are_named(head):
    with pytest.raises(ValueError, match="hidden: expected at least 1"):
        head.init(np.random.default_rng(0), 0, V)
    with pytest.raises(ValueError, match="vocabulary: expected at least 2"):
        head.init(np.random.default_rng(0), H, 1)

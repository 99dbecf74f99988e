"""Recomputation by segments: the same numbers as one run, and less memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn_np import GRU, LEM, LSTM, RNN, Binding, Convolution, Engram, Window, run, run_back, run_in_segments

CELLS = [
    RNN(3),
    GRU(3),
    LSTM(3),
    Engram(3, 4),
    Engram(3, 4, trace="sample", trace_clip=None),
    Binding(3, 4, recurrent_cue=True),
    Window(3, 4, 2),
    LEM(3, dt=0.5),
    Convolution(3),
]


def problem(cell, steps, seed, masked):
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(value.shape) for name, value in cell.init(rng, 3, np.float64).items()}
    x, upstream = rng.standard_normal((steps, 2, 3)), rng.standard_normal((steps, 2, 3))
    extra = {"mask": rng.random((steps, 2)) < 0.7 if masked else None}
    if isinstance(cell, Engram):
        extra["noise"] = cell.noise(rng, steps, np.float64)
    return params, x, upstream, extra


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{type(cell).__name__}-{getattr(cell, 'trace', '')}")
@settings(max_examples=25)
@given(steps=st.integers(1, 9), segments=st.integers(1, 12), seed=st.integers(0, 99), masked=st.booleans())
def test_segments_change_nothing(cell, lists, steps, segments, seed, masked):
    """Catches a gradient that is lost at a cut, or noise and masks that are sliced wrongly."""
    params, x, upstream, extra = problem(cell, steps, seed, masked)
    if isinstance(cell, Binding):
        cell = replace(cell, store="list" if lists else "dense")
    whole = run(cell, params, x, **extra)
    cut = run_in_segments(cell, params, x, segments, **extra)
    end = [np.ones_like(part) for part in whole[1]]
    dx, dstate, grads = run_back(cell, params, whole[2], upstream, end)
    dx_cut, dstate_cut, grads_cut = run_back(cell, params, cut[2], upstream, end)
    rounding = 1e-12 if lists and isinstance(cell, Binding) else 0  # step by step the same to the bit
    np.testing.assert_allclose(cut[0], whole[0], rtol=rounding, atol=rounding)
    np.testing.assert_allclose(dx_cut, dx, rtol=1e-12, atol=1e-12)
    for part, want in zip(dstate_cut, dstate, strict=True):
        np.testing.assert_allclose(part, want, rtol=1e-12, atol=1e-12)
    for name, want in grads.items():
        np.testing.assert_allclose(grads_cut[name], want, rtol=1e-11, atol=1e-11)


def test_segments_need_less_than_a_third_of_the_memory():
    """The point of it, at T = 784: memory grows with the square root of T."""
    cell, rng = Engram(16, 8), np.random.default_rng(0)
    params, x = cell.init(rng, 4), rng.standard_normal((784, 8, 4)).astype("float32")

    def peak(segments):
        tracemalloc.start()
        h, _, tape = run_in_segments(cell, params, x, segments)
        run_back(cell, params, tape, np.ones_like(h))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(28) < peak(1) / 3


def test_segments_must_be_a_count():
    cell = RNN(2)
    with pytest.raises(ValueError, match="segments"):
        run_in_segments(cell, cell.init(np.random.default_rng(0), 1), np.zeros((2, 1, 1), "float32"), 0)


@pytest.mark.parametrize("longer", [-3, -1, 1, 5])
def test_arrays_of_another_length_are_refused(longer):
    """Catches a slice that silently leaves out the end, or finds nothing there: gradients and noise alike."""
    cell = Engram(3, 4, entropy=0.1)
    params, x, upstream, extra = problem(cell, 6, 0, False)
    tape = run_in_segments(cell, params, x, 2, **extra)[2]
    other = np.zeros((6 + longer, 2, 3))
    for wrong in ({"dh": other}, {"dh": upstream, "da": np.zeros((6 + longer, 2, 4))}):
        with pytest.raises(ValueError, match=f"^d[ha]: expected 6 steps.*{6 + longer}"):
            run_back(cell, params, tape, **wrong)
    with pytest.raises(ValueError, match=r"^dh: expected 6 steps.*\(\)"):
        run_back(cell, params, tape, np.array(1.0))
    with pytest.raises(ValueError, match=f"^noise: expected 6 steps.*{6 + longer}"):
        run_in_segments(cell, params, x, 2, noise=np.zeros((6 + longer, 4, 3)))
    with pytest.raises(ValueError, match=r"^noise: "):
        run(cell, params, x, noise=np.zeros((6 + longer, 4, 3)))


def test_what_a_tape_in_segments_lacks_is_said():
    cell = GRU(3)
    params, x, _, extra = problem(cell, 6, 0, False)
    tape = run_in_segments(cell, params, x, 2, **extra)[2]
    with pytest.raises(
        AttributeError, match=r"^tape: a run in segments has no 'kept', its steps are not kept; see `run`"
    ):
        cell.record(params, tape)


def test_the_tape_of_another_cell_is_refused():
    cell = Engram(3, 4)
    params, x, _, extra = problem(cell, 6, 0, False)
    tape = run_in_segments(cell, params, x, 2, **extra)[2]
    with pytest.raises(TypeError, match=r"^tape: expected one of Engram\(.*temperature=9.0.*got that of Engram"):
        run_back(replace(cell, temperature=9.0), params, tape)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
def test_what_is_overwritten_between_the_ways(cell):
    """Catches a run, whole or in pieces, whose way back reads the caller's arrays as they stand by then."""
    for pieces in ((run,), (run_in_segments, 2)):
        params, x, upstream, extra = problem(cell, 6, 0, True)
        state = cell.initial_state(2, np.float64)
        tape = pieces[0](cell, params, x, *pieces[1:], state=state, **extra)[2]
        want = run_back(cell, params, tape, upstream)[2]
        for array in (x, *state, *extra.values()):
            array[...] = 1
        for name, grad in run_back(cell, params, tape, upstream)[2].items():
            np.testing.assert_array_equal(grad, want[name])

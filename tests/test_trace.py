"""The trace as a list of what was written against the trace as an array: outputs, gradients, records, refusals."""

import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_close, assert_gradients, assert_same_gradients, draw, problems

from enn_np import Binding, Stream, gradcheck, run, trace
from enn_np.look.attribution import written_by

pieces = st.integers(1, 8)


def both(problem, piece=trace.PIECE, **options):
    """What `forward` and `backward` give by the list, then by the array."""
    for store in ("list", "dense"):
        kept = problem.but(cell=replace(problem.cell, store=store))
        with patch.object(trace, "PIECE", piece):
            h, end, tape = kept.forward(**options)
            assert (tape.states.A is None) == (store == "list")
            _, late, _ = kept.forward(keep=False)
            values = [h, *end, *late, tape.kept.a, tape.kept.zmh, kept.cell.traces(tape)]
            found = values, kept.backward(tape), tape
        yield found


def assert_equal(problem, piece=2, tolerance=1e-10):
    (got, grads, _), (want, want_grads, _) = both(problem, piece)
    assert_close(got, want, tolerance, floor=1e-3)
    assert_same_gradients(grads, want_grads, tolerance)


@given(data=st.data(), piece=pieces)
def test_the_list_is_the_trace_of_binding(data, piece):
    assert_equal(data.draw(problems(Binding, steps=st.integers(1, 7), trace="sample")), piece)


@given(data=st.data(), piece=pieces)
def test_from_an_empty_trace(data, piece):
    """Catches rows that are forgotten: a trace that is not read must still pass a gradient on, and be kept apart."""
    rule = data.draw(st.sampled_from(("hebb", "delta")))
    problem = data.draw(problems(Binding, masked=False, steps=st.integers(1, 5), trace="sample", rule=rule))
    problem = problem.but(state=problem.state._replace(A=np.zeros_like(problem.state.A)))
    assert_equal(problem, piece)
    assert_equal(problem.but(dstate=problem.dstate._replace(A=np.zeros_like(problem.state.A))), piece)


@pytest.mark.parametrize("rule", ("replace", "delta"))
@pytest.mark.parametrize("masked", (False, True))
def test_finite_differences(masked, rule):
    """The gradients by themselves: not the same mistake as the array's."""
    with patch.object(trace, "PIECE", 3):
        assert_gradients(lambda eps: gradcheck.check(Binding(5, 4, rule=rule), steps=7, masked=masked, eps=eps))


def test_in_segments_and_twice():
    """Catches a trace or its gradient that is lost where a run hands over, and what a way back leaves behind."""
    problem = draw(Binding(5, 4), steps=7)
    want = problem.gradients()
    with patch.object(trace, "PIECE", 2):
        _, _, tape = problem.forward(segments=3)
        assert_same_gradients(problem.backward(tape), want)
        _, _, tape = problem.forward()
        assert_close(problem.backward(tape), problem.backward(tape), 0)


def test_single_precision():
    (got, grads, _), (want, want_grads, _) = both(draw(Binding(40, 8), steps=70, batch=4, dtype=np.float32))
    assert all(array.dtype == np.float32 for array in (*got, *grads.values()))
    assert_close(got, want, 1e-4)
    assert_close(grads, want_grads, 2e-3)


def test_a_subclass_and_a_trace_of_the_batch_are_arrays():
    """What the batch shares, or another class writes, is no list."""
    with pytest.raises(ValueError, match="store"):
        Binding(4, 3, store="array")
    for cell in (Binding(4, 3, trace="batch"), type("Other", (Binding,), {})(4, 3)):
        assert draw(cell).forward()[2].states.A is not None


@pytest.mark.parametrize("rule", ("replace", "delta"))
@pytest.mark.parametrize("masked", (False, True))
def test_a_record_and_who_wrote_the_trace(masked, rule):
    """What looks into the trace gets it, made anew."""
    problem, seen = draw(Binding(5, 4, rule=rule), steps=6, masked=masked), []
    for store in ("list", "dense"):
        kept = problem.but(cell=replace(problem.cell, store=store))
        with patch.object(trace, "PIECE", 4):
            tape = kept.forward()[2]
            seen.append({**kept.cell.record(kept.params, tape), **written_by(kept.cell, tape, 5)})
    assert_close(*seen, floor=1e-3)


def test_a_step_at_a_time():
    """Outside a run nobody collects what was written: the trace is an array."""
    cell = Binding(5, 4)
    problem = draw(cell, steps=6)
    problem = problem.but(state=cell.initial_state(3, np.float64), given={})
    stream = Stream(cell, problem.params, batch=3)
    assert_close([np.stack([stream(x_t).copy() for x_t in problem.x])], [problem.forward()[0]])
    assert_close([stream.state.A], [problem.forward()[1].A])


def test_a_state_that_its_owner_goes_on_to_use():
    """Catches a tape that looks into an array of the caller's."""
    problem = draw(Binding(5, 4), steps=3)
    want = problem.gradients()
    state = problem.state._replace(A=problem.state.A.copy())
    _, _, tape = problem.but(state=state).forward()
    state.A[...] = np.nan
    assert_close(problem.backward(tape), want, 0)


def test_memory():
    """The point of it: a tape without the trace of every step."""
    cell, rng = Binding(128, 64), np.random.default_rng(0)
    params, x = cell.init(rng, 4), rng.standard_normal((96, 8, 4)).astype("float32")

    def peak(store):
        tracemalloc.start()
        run(replace(cell, store=store), params, x)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak("list") < peak("dense") / 2

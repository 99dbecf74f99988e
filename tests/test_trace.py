"""The trace as a list of what was written against the trace as an array: outputs, gradients, records, refusals."""

import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_close, assert_gradients, assert_same_gradients, draw, problems
from test_attribution import model_of

from enn_np import Binding, Engram, LearnedEngram, Stream, gradcheck, run, trace
from enn_np.backend import Workspace
from enn_np.look.attribution import logit_changes, written_by

LINEAR = {"trace": "sample", "trace_clip": None, "trace_noise": 0, "trace_gradient": True}
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


@given(data=st.data(), piece=pieces, steps=st.integers(1, 7))
def test_the_list_is_the_trace_of_engram(data, piece, steps):
    """Catches any departure: switches, cuts, padding, a state that comes in, a gradient at the end."""
    assert_equal(data.draw(problems(Engram, steps=st.just(steps), **LINEAR)), piece)


@given(data=st.data(), piece=pieces)
def test_the_list_is_the_trace_of_binding(data, piece):
    rule = data.draw(st.sampled_from(("replace", "hebb")))
    assert_equal(data.draw(problems(Binding, steps=st.integers(1, 7), trace="sample", rule=rule)), piece)


def test_what_the_delta_rule_writes_is_no_list():
    """It depends on the trace as it is: kept as an array, whatever the store."""
    tape = draw(Binding(5, 4, rule="delta", store="list")).forward()[2]
    assert tape.e.trace is None and tape.states.A.shape[-2:] == (4, 5)


@given(kind=st.sampled_from((Engram, Binding)), data=st.data(), piece=pieces)
def test_from_an_empty_trace(kind, data, piece):
    """Catches rows that are forgotten: a trace that is not read must still pass a gradient on, and be kept apart."""
    rule = {"rule": "hebb"} if kind is Binding else {}
    problem = data.draw(problems(kind, masked=False, steps=st.integers(1, 5), **LINEAR, **rule))
    problem = problem.but(state=problem.state._replace(A=np.zeros_like(problem.state.A)))
    assert_equal(problem, piece)
    assert_equal(problem.but(dstate=problem.dstate._replace(A=np.zeros_like(problem.state.A))), piece)


def test_where_something_vanishes():
    """A row of zeros in the bank, a trace of zeros, a code of zeros: lengths that are held have no gradient."""
    cell = Engram(4, 3, hebbian_rate=0.5, layer_norm=False, **LINEAR)
    problem = draw(cell, steps=5, batch=2)
    problem.params["M"][1] = 0
    problem.params["b_z"][:] = np.abs(problem.params["b_z"])
    problem.x[2] = 0
    problem.x[0, 0] = -1e3 * np.linalg.pinv(problem.params["W_z"]).sum(0)  # ReLU is off in all units
    problem = problem.but(state=problem.state._replace(A=0 * problem.state.A))
    assert_equal(problem)
    problem.params["b_z"][:] = -1e3
    assert_equal(problem)


def test_codes_that_are_nearly_zero():
    """Below 1e-6 a length is held: it is a constant, and has no gradient."""
    problem = draw(Engram(4, 3, hebbian_rate=0.5, layer_norm=False, **LINEAR), steps=5, batch=2)
    for name in ("W_z", "b_z"):
        problem.params[name] *= 1e-7
    assert_equal(problem)


SWITCHES = ({}, {"retrieval": "sparsemax"}, {"layer_norm": False}, {"entropy": 0.3})


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("masked", (False, True))
def test_finite_differences(switches, masked):
    """The gradients by themselves: not the same mistake as the array's."""
    cell = Engram(5, 4, hebbian_rate=0.4, trace_scale=1.5, store="list", **LINEAR | switches)
    with patch.object(trace, "PIECE", 3):
        assert_gradients(lambda eps: gradcheck.check(cell, steps=7, masked=masked, eps=eps))
        assert_gradients(lambda eps: gradcheck.check(Binding(5, 4), steps=7, masked=masked, eps=eps))


@pytest.mark.parametrize("cell", (Engram(5, 4, hebbian_rate=0.4, store="list", **LINEAR), Binding(5, 4)), ids=repr)
def test_in_segments_and_twice(cell):
    """Catches a trace or its gradient that is lost where a run hands over, and what a way back leaves behind."""
    problem = draw(cell, steps=7)
    want = problem.gradients()
    with patch.object(trace, "PIECE", 2):
        _, _, tape = problem.forward(segments=3)
        assert_same_gradients(problem.backward(tape), want)
        _, _, tape = problem.forward()
        assert_close(problem.backward(tape), problem.backward(tape), 0)


def test_a_workspace_between_sizes_and_stores():
    """Catches arrays of one store served to the other."""
    workspace = Workspace()
    for steps, store in ((3, "list"), (3, "dense"), (5, "list"), (3, "list")):
        problem = draw(Engram(5, 4, store=store, **LINEAR), steps=steps)
        _, _, tape = problem.forward(workspace=workspace)
        assert_same_gradients(problem.backward(tape), problem.gradients())


@pytest.mark.parametrize("cell", (Engram(40, 8, **LINEAR), Binding(40, 8)), ids=repr)
def test_single_precision(cell):
    """Lengths come from sums that are brought up to date: their rounding stays that of the precision."""
    (got, grads, _), (want, want_grads, _) = both(draw(cell, steps=70, batch=4, dtype=np.float32))
    assert all(array.dtype == np.float32 for array in (*got, *grads.values()))
    assert_close(got, want, 1e-4)
    assert_close(grads, want_grads, 2e-3)


def test_what_the_list_cannot_be_is_refused_by_name():
    with pytest.raises(ValueError, match="store"):
        Engram(4, 3, store="array")
    for switch in ({"trace_noise": 0.1}, {"trace_clip": 1e3}, {"trace_gradient": False}):
        with pytest.raises(ValueError, match=f"store.*{next(iter(switch))}"):
            draw(Engram(4, 3, store="list", **LINEAR | switch)).forward()
    # What the batch shares, or another class writes, is an array.
    Other = type("Other", (Engram,), {})
    for cell in (
        Engram(4, 3, store="list"),
        LearnedEngram(4, 3, store="list", **LINEAR),
        Other(4, 3, store="list", **LINEAR),
    ):
        assert draw(cell).forward()[2].states.A is not None


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("kind", (Engram, Binding))
def test_a_record_and_who_wrote_the_trace(kind, masked):
    """What looks into the trace gets it, made anew."""
    own = LINEAR | {"hebbian_rate": 0.3} if kind is Engram else {}
    problem, seen = draw(kind(5, 4, **own), steps=6, masked=masked), []
    for store in ("list", "dense"):
        kept = problem.but(cell=replace(problem.cell, store=store))
        with patch.object(trace, "PIECE", 4):
            _, _, tape, record = kept.forward(record=True)
            seen.append({**record, **written_by(kept.cell, tape, 5)})
    assert_close(*seen, floor=1e-3)


def test_changes_of_the_output():
    found = []
    for store in ("list", "dense"):
        cell = Engram(6, 4, hebbian_rate=0.4, trace_scale=1.5, store=store, **LINEAR)
        model, x, _ = model_of(cell)
        found.append(logit_changes(model, x))
    assert_close(found[:1], found[1:])


@pytest.mark.parametrize("cell", (Engram(5, 4, store="list", **LINEAR), Binding(5, 4)), ids=repr)
def test_a_step_at_a_time(cell):
    """Outside a run nobody collects what was written: the trace is an array."""
    problem = draw(cell, steps=6)
    problem = problem.but(state=cell.initial_state(3, np.float64), given={})
    stream = Stream(cell, problem.params, batch=3)
    assert_close([np.stack([stream(x_t).copy() for x_t in problem.x])], [problem.forward()[0]])
    assert_close([stream.state.A], [problem.forward()[1].A])


def test_a_state_that_its_owner_goes_on_to_use():
    """Catches a tape that looks into an array of the caller's."""
    for cell in (Engram(5, 4, store="list", **LINEAR), Binding(5, 4)):
        problem = draw(cell, steps=3)
        want = problem.gradients()
        state = problem.state._replace(A=problem.state.A.copy())
        _, _, tape = problem.but(state=state).forward()
        state.A[...] = np.nan
        assert_close(problem.backward(tape), want, 0)


def test_memory():
    """The point of it: a tape without the trace of every step."""
    cell, rng = Engram(128, 64, **LINEAR), np.random.default_rng(0)
    params, x = cell.init(rng, 4), rng.standard_normal((96, 8, 4)).astype("float32")
    Workspace()  # the first one asks for 32 MB, once

    def peak(store):
        tracemalloc.start()
        run(replace(cell, store=store), params, x)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak("list") < peak("dense") / 3

"""The binding trace as a list against the trace itself: outputs, gradients, records, and where it is left alone."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_close, assert_same_gradients, draw, problems

from enn_np import Binding, listed, run, run_back
from enn_np.attribution import written_by
from enn_np.backend import Workspace


def by_list(yes=True, piece=listed.PIECE):
    """Every run that can, whatever its size, or none, takes the list."""
    return patch.multiple(listed, pays=lambda steps, hidden: yes, PIECE=piece)


def both(problem, piece=listed.PIECE, **options):
    """What `forward` and `backward` give by the list, then step by step."""
    for yes in (True, False):
        with by_list(yes, piece):
            h, end, tape = problem.forward(**options)
            assert (tape.ahead is not None) == yes
            values = [h, *end, tape.kept.a, tape.kept.g, tape.kept.zmh]
            yield values, problem.backward(tape), problem.cell.traces(tape)


def assert_equal(problem, piece, tolerance=1e-10):
    (got, grads, A), (want, want_grads, want_A) = both(problem, piece)
    assert_close([*got, A], [*want, want_A], tolerance, floor=1e-3)
    assert_same_gradients(grads, want_grads, tolerance)
    with by_list(piece=piece):
        h, end, _ = problem.forward(keep=False)
    assert_close([h, *end], want[:4], tolerance, floor=1e-3)


pieces = st.integers(1, 8)


@given(problem=problems(Binding, steps=st.integers(1, 7), trace="sample"), piece=pieces)
def test_the_list_is_the_trace(problem, piece):
    """Catches any departure from the step: cuts, switches, padding, a state that comes in, a gradient at the end."""
    assert_equal(problem, piece)


@given(problem=problems(Binding, steps=st.integers(1, 5), trace="sample"), given_h=st.booleans(), piece=pieces)
def test_from_an_empty_trace(problem, given_h, piece):
    """Catches rows that are forgotten: a trace that is not read must still pass a gradient on, and be kept apart."""
    start = problem.state._replace(A=np.zeros_like(problem.state.A))
    assert_equal(problem.but(state=start), piece)
    if given_h:
        dstate = problem.dstate._replace(A=None, a=None)
        ask = problem.cell, problem.params, problem.x
        with by_list(piece=piece):
            got = run_back(*ask[:2], run(*ask, start)[2], problem.dh, dstate)
        with by_list(False):
            want = run_back(*ask[:2], run(*ask, start)[2], problem.dh, dstate)
        assert_close([got[0], *got[1]], [want[0], *want[1]], 1e-10, floor=1e-3)
        assert_same_gradients(got[2], want[2])


def test_back_twice_is_back_once():
    """Catches what one way back leaves behind for the next."""
    problem = draw(Binding(17, 4), steps=40, masked=True)
    _, _, tape = problem.forward()
    assert tape.ahead is not None
    assert_close(problem.backward(tape), problem.backward(tape), 0)


def test_pieces_that_follow_one_another():
    """The trace that leaves a piece is the start of the next, forward and back."""
    problem = draw(Binding(17, 4), steps=6)
    whole = problem.gradients()
    tapes, state = [], problem.state
    for part in (slice(0, 2), slice(2, 6)):
        _, state, tape = run(problem.cell, problem.params, problem.x[part], state)
        tapes.append((part, tape))
    d, total = problem.dstate, {}
    for part, tape in reversed(tapes):
        _, d, grads = run_back(problem.cell, problem.params, tape, problem.dh[part], d)
        total = {name: grads[name] + total.get(name, 0) for name in grads}
    assert_close(total | {"state.A": d.A}, {name: whole[name] for name in (*total, "state.A")}, 1e-12)


def test_a_workspace_between_sizes_and_forms():
    """Catches arrays of one form served to the other."""
    cell, workspace = Binding(5, 4), Workspace()
    for steps, yes in ((3, True), (3, False), (5, True), (3, True)):
        problem = draw(cell, steps=steps)
        with by_list(yes):
            _, _, tape = problem.forward(workspace=workspace)
            assert_same_gradients(problem.backward(tape), problem.gradients())


def test_single_precision():
    problem = draw(Binding(40, 8), steps=40, batch=4, dtype=np.float32)
    (got, grads, A), (want, want_grads, want_A) = both(problem)
    assert all(array.dtype == np.float32 for array in (*got, A, *grads.values()))
    assert_close([*got, A], [*want, want_A], 1e-4)
    assert_close(grads, want_grads, 2e-3)


class _Other(Binding):
    """A cell of somebody's own, with a step of its own."""


@pytest.mark.parametrize(
    ("cell", "steps", "taken"),
    [
        (Binding(17, 4), 2, True),
        (Binding(17, 4, recurrent_cue=True), 50, True),
        (Binding(17, 4), 1, False),  # nothing to gain
        (Binding(16, 4), 5, False),  # nor from a list as long as the trace is wide
        (Binding(17, 4, trace="batch"), 5, False),
        (_Other(17, 4), 5, False),
    ],
)
def test_only_where_it_serves(cell, steps, taken):
    assert (draw(cell, steps=steps).forward()[2].ahead is not None) == taken


def test_a_record_and_who_wrote_the_trace():
    """What looks into the trace gets it, made anew."""
    problem = draw(Binding(5, 4), steps=6, masked=True)
    seen = []
    for yes in (True, False):
        with by_list(yes, piece=4):
            _, _, tape, record = problem.forward(record=True)
            live = problem.mask[..., None]
            record["written"] = record["written"] * live  # at padding nobody asks
            seen.append({**record, **written_by(problem.cell, tape, 5)})
    assert_close(*seen, floor=1e-3)


def test_a_state_that_its_owner_goes_on_to_use():
    """Catches a tape that looks into an array of the caller's."""
    problem = draw(Binding(17, 4), steps=3)
    want = problem.gradients()
    state = problem.state._replace(A=problem.state.A.copy())
    _, _, tape = problem.but(state=state).forward()
    state.A[...] = np.nan
    assert_close(problem.backward(tape), want, 0)

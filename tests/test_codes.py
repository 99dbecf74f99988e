"""The trace kept as codes against the trace itself: outputs, states, gradients, records, and where it is left alone."""

import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_close, assert_gradients, assert_same_gradients, draw, problems
from test_attribution import model_of

from enn_np import Engram, codes, gradcheck, run, run_back
from enn_np.attribution import logit_changes, written_by
from enn_np.backend import Workspace

LINEAR = {"trace": "sample", "trace_clip": None}


def by_codes(yes=True, piece=16):
    """Every run that can, whatever its size, or none, takes the codes; in pieces of so many steps."""
    return patch.multiple(codes, pays=lambda steps, hidden: yes, PIECE=piece)


def both(problem, piece, **options):
    """What `forward` and `backward` give by codes, then step by step."""
    for yes in (True, False):
        with by_codes(yes, piece):
            h, end, tape = problem.forward(**options)
            assert (tape.ahead is not None) == yes
            yield [h, *end, tape.kept.s, tape.kept.a, tape.kept.M_inv, tape.kept.zmh], problem.backward(tape), tape


def assert_equal(problem, piece=2, tolerance=1e-10):
    (got, grads, tape), (want, want_grads, plain) = both(problem, piece)
    assert_close(got, want, tolerance, floor=1e-3)
    assert_same_gradients(grads, want_grads, tolerance)
    assert_close([problem.cell.traces(tape)], [plain.states.A], tolerance, floor=1e-3)
    with by_codes(True, piece):
        h, end, _ = problem.forward(keep=False)
    assert_close([h, *end], want[:3], tolerance, floor=1e-3)


@given(data=st.data(), piece=st.sampled_from((1, 2, 3, 16)), steps=st.integers(1, 7))
def test_codes_are_the_trace(data, piece, steps):
    """Catches any departure from the step: switches, noise, padding, a state that comes in, a gradient at the end."""
    fixed = LINEAR | {"trace_gradient": data.draw(st.booleans())}
    masked = data.draw(st.booleans())
    fixed |= {"trace_noise": 0} if masked else {}
    fixed["trace_clip"] = data.draw(st.sampled_from((None, 1e3)))  # the second does nothing, which has to be shown
    assert_equal(data.draw(problems(Engram, masked=masked, steps=st.just(steps), **fixed)), piece)


@pytest.mark.parametrize("gradient", (True, False))
def test_codes_where_something_vanishes(gradient):
    """A row of zeros in the bank, a trace of zeros, a code of zeros: lengths that are held have no gradient."""
    cell = Engram(4, 3, hebbian_rate=0.5, layer_norm=False, trace_noise=0, trace_gradient=gradient, **LINEAR)
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


SWITCHES = ({}, {"trace_gradient": True, "retrieval": "sparsemax"}, {"layer_norm": False}, {"entropy": 0.3})


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("masked", (False, True))
def test_finite_differences(switches, masked):
    """The gradients by themselves: not the same mistake as the step's."""
    noise = {} if masked else {"trace_noise": 0.3}
    cell = Engram(5, 4, hebbian_rate=0.4, trace_scale=1.5, **LINEAR | noise | switches)
    if masked:
        cell = replace(cell, trace_noise=0)
    with by_codes(piece=3):
        assert_gradients(lambda eps: gradcheck.check(cell, steps=7, masked=masked, eps=eps))


def test_truncated_and_in_segments():
    """Catches a trace or its gradient that is lost where one run hands over to the next."""
    cell = Engram(5, 4, hebbian_rate=0.4, **LINEAR)
    problem = draw(cell, steps=7)
    want = problem.gradients()
    with by_codes(piece=2):
        assert_same_gradients(problem.backward(problem.forward(segments=3)[2]), want)


def test_a_workspace_between_sizes_and_forms():
    """Catches arrays of one form served to the other."""
    cell, workspace = Engram(5, 4, **LINEAR), Workspace()
    for steps, yes in ((3, True), (3, False), (5, True), (3, True)):
        problem = draw(cell, steps=steps)
        with by_codes(yes):
            _, _, tape = problem.forward(workspace=workspace)
            assert_same_gradients(problem.backward(tape), problem.gradients())


def test_single_precision():
    """Lengths come from a recursion: its rounding stays that of the precision."""
    problem = draw(Engram(40, 8, **LINEAR), steps=60, batch=4, dtype=np.float32)
    (got, grads, _), (want, want_grads, _) = both(problem, 16)
    assert all(array.dtype == np.float32 for array in (*got, *grads.values()))
    assert_close(got, want, 1e-4)
    assert_close(grads, want_grads, 2e-3)


def test_only_where_the_trace_is_linear():
    """Catches codes where a clip, a shared trace, noise under padding or another step would make them wrong."""
    with by_codes():
        for cell in (Engram(4, 3, trace_clip=None), _Other(4, 3, **LINEAR), _Bounded(4, 3, **LINEAR)):
            assert draw(cell).forward()[2].ahead is None
        assert draw(Engram(4, 3, **LINEAR), masked=True).forward()[2].ahead is None
        assert draw(Engram(4, 3, **LINEAR)).forward()[2].ahead is not None
        assert draw(Engram(4, 3, trace_noise=0, **LINEAR), masked=True).forward()[2].ahead is not None


class _Other(Engram):
    def step(self, params, e, state, k=None):
        return super().step(params, e, state, k)


class _Bounded(Engram):
    def _unclip(self, dA, A):
        return super()._unclip(dA, A).clip(-1, 1)


@given(data=st.data(), piece=st.sampled_from((1, 2, 16)))
def test_no_clip_that_does_something_is_overlooked(data, piece):
    """Catches a bound below the trace, in any sample, hidden unit or step: it must hold wherever codes are taken."""
    masked = data.draw(st.booleans())
    problem = data.draw(
        problems(Engram, masked=masked, steps=st.integers(1, 6), **LINEAR | {"trace_noise": 0} if masked else LINEAR)
    )
    with by_codes(False):
        A = abs(problem.cell.traces(problem.forward()[2]))
    with by_codes(True, piece), patch.object(codes, "_hopeful", return_value=True):
        loop = problem.forward()[2].ahead
        for i, (part, live) in enumerate(zip(loop.pieces, loop.live, strict=True)):
            f = codes.fading(live, 1 - problem.cell.hebbian_rate, problem.cell.hebbian_rate, A.dtype)
            e = problem.cell.encode(problem.params, problem.x, problem.mask, **problem.given)
            found = codes.bound(loop.recalled.a[part], *loop._inputs(e, part), loop.A[i], f)
            assert (found >= A[part.start : part.stop + 1].max(2) * (1 - 1e-12)).all()
        tight = A[1:].max()
        for clip, taken in ((0.9 * tight, False), (1e3 * A.max() + 1, True)):
            cell = replace(problem.cell, trace_clip=clip) if clip > 0 else problem.cell
            assert (problem.but(cell=cell).forward()[2].ahead is not None) == (taken or clip == 0)


def test_a_trace_near_the_clip_is_not_tried():
    """What the bound would soon end costs nothing."""
    problem = draw(Engram(4, 3, trace="sample", trace_clip=0.1, hebbian_rate=0.0))
    for largest, taken in ((0.06, True), (0.07, False)):
        A = problem.state.A * largest / abs(problem.state.A).max()
        with by_codes():
            assert (problem.but(state=problem.state._replace(A=A)).forward()[2].ahead is not None) == taken


def test_a_record_and_who_wrote_the_trace():
    """What looks into the trace gets it, made anew."""
    problem = draw(Engram(5, 4, hebbian_rate=0.3, **LINEAR), steps=6)
    seen = []
    for yes in (True, False):
        with by_codes(yes, 4):
            _, _, tape, record = problem.forward(record=True)
            seen.append({**record, **written_by(problem.cell, tape, 5)})
    assert_close(*seen, floor=1e-3)


def test_changes_of_the_output():
    model, x, _ = model_of(Engram(6, 4, hebbian_rate=0.4, trace_scale=1.5, **LINEAR))
    found = []
    for yes in (True, False):
        with by_codes(yes, 4):
            found.append(logit_changes(model, x))
    assert_close(found[:1], found[1:])


def test_memory():
    """The point of it: a tape without the trace of every step."""
    cell, rng = Engram(64, 32, **LINEAR), np.random.default_rng(0)
    params, x = cell.init(rng, 4), rng.standard_normal((96, 8, 4)).astype("float32")
    Workspace()  # the first one asks for 32 MB, once

    def peak(yes):
        with by_codes(yes):
            tracemalloc.start()
            h, _, tape = run(cell, params, x)
            run_back(cell, params, tape, np.ones_like(h))
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return size

    assert peak(True) < peak(False) / 3

"""`run` against the triple loops of oracle.py, on drawn shapes and switches."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import BASELINES, LEM, Binding, Convolution, Engram, Window, assert_close, problems

LOOPS = {
    "RNN": oracle.rnn,
    "GRU": oracle.gru,
    "LSTM": oracle.lstm,
    "LEM": oracle.lem,
    "Convolution": oracle.convolution,
}


def listed(problem):
    """Parameters, x, state and mask as nested lists."""
    params = {name: value.tolist() for name, value in problem.params.items()}
    mask = None if problem.mask is None else problem.mask.tolist()
    return params, problem.x.tolist(), tuple(part.tolist() for part in problem.state), mask


@pytest.mark.parametrize("kind", (*BASELINES, Convolution))
@given(data=st.data())
def test_baselines(kind, data):
    """Catches a gate, bias or state that is mixed up, and padding that moves a state."""
    problem = data.draw(problems(kind))
    h, end, _ = problem.forward()
    dt = [problem.cell.dt] if kind is LEM else []
    want_h, want_end = LOOPS[kind.__name__](*listed(problem), *dt)
    assert_close([h, *end], [want_h, *want_end])


@given(problem=problems(Engram))
def test_engram(problem):
    """Catches any departure from (1) to (9): switches, mean over the living, noise, clip, retrieval."""
    h, end, tape = problem.forward()
    noise = problem.given["noise"].tolist() if problem.given else None
    want_h, want_A, want_a = oracle.engram(problem.cell, *listed(problem), noise)
    assert_close([h, problem.cell.traces(tape)[1:], end.A], [want_h, want_A, want_A[-1]])
    got_a = [tape.kept.a[t, b] for t, row in enumerate(want_a) for b, a in enumerate(row) if a is not None]
    assert_close(got_a, [a for row in want_a for a in row if a is not None])


@given(problem=problems(Binding))
def test_binding(problem):
    """Catches any departure from (1) to (9): switches, the delayed address, the mean over the living."""
    _, _, tape = problem.forward()
    states = tape.states.stacked()._replace(A=problem.cell.traces(tape))
    assert_close([part[1:] for part in states], oracle.binding(problem.cell, *listed(problem)))


@given(problem=problems(Window))
def test_window(problem):
    """Catches any departure from (1) to (9): keys one step behind, the order of places, padding that fills one."""
    h, end, tape = problem.forward()
    want = oracle.window(problem.cell, *listed(problem))
    assert_close([part[1:] for part in tape.states.stacked()], want)
    assert_close([h, *end], [want[0], *(part[-1] for part in want)])
    attended, H = np.einsum("tbk,tbkh->tbh", tape.kept.p, tape.states.values[:-1]), problem.cell.hidden
    assert_close([tape.kept.zmh[..., H : 2 * H]], [tape.e.bank + attended])

"""The Engram cell that learns eta and sigma: right gradients at both, and the cell of that moment in all else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_close, assert_gradients, assert_same_gradients, cells, draw, problems, seeds, sizes

from enn_np import Adam, Classifier, Engram, LearnedEngram, gradcheck, load, run
from enn_np.look import attribution

NUMBERS = {"hebbian_rate", "sparsity"}


@settings(max_examples=40)
@given(data=st.data(), steps=sizes, batch=sizes, inputs=sizes, seed=seeds, masked=st.booleans())
def test_gradients(data, steps, batch, inputs, seed, masked):
    """Catches a clip, a mask, a shared trace or a way of retrieval that the two new derivatives forget."""
    cell = data.draw(cells(LearnedEngram, trace_gradient=True))
    assert_gradients(lambda eps: gradcheck.check(cell, inputs, batch, steps, seed, masked, eps=eps))


@settings(max_examples=30)
@given(problem=problems(LearnedEngram), segments=st.integers(1, 3))
def test_it_is_the_engram_of_the_moment(problem, segments):
    """All that is proved of `Engram` holds of it: steps, streams, masks, pieces, samples. Catches an equation that
    still reads the number learning started from, and gradients that the segments lose."""
    plain = problem.but(cell=problem.cell.settled(problem.params))
    assert type(plain.cell) is Engram
    (h, end, _), (want, want_end, _) = problem.forward(segments=segments), plain.forward()
    assert_close([h, *end], [want, *want_end])
    grads = problem.backward(problem.forward(segments=segments)[2])
    assert_same_gradients({name: g for name, g in grads.items() if name not in NUMBERS}, without(plain.gradients()))
    assert_same_gradients({name: grads[name] for name in NUMBERS}, {n: problem.gradients()[n] for n in NUMBERS})


def without(grads):
    return {name: g for name, g in grads.items() if name not in NUMBERS}


def test_it_starts_where_it_is_told():
    cell = LearnedEngram(3, 4, hebbian_rate=0.2, sparsity=0.7)
    settled = cell.settled(cell.init(np.random.default_rng(0), 2, np.float64))
    assert (settled.hebbian_rate, settled.sparsity) == pytest.approx((0.2, 0.7)) and settled.slots == 4


@pytest.mark.parametrize(("name", "start"), [("hebbian_rate", 0), ("hebbian_rate", 1), ("sparsity", 0)])
def test_numbers_that_cannot_be_learned_are_refused(name, start):
    """Catches a logit or a logarithm that is infinite."""
    with pytest.raises(ValueError, match=f"{name}: to be learned it must start between"):
        LearnedEngram(**{name: start})


def test_both_numbers_learn_and_are_saved(tmp_path):
    """Catches numbers that no optimizer moves, or that a file loses."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 5, 3), np.float32), rng.integers(2, size=64)
    model = Classifier(LearnedEngram(6, 4, trace="sample"), 3, 2, seed=1)
    before = {name: model.params[f"0.{name}"].copy() for name in NUMBERS}
    model.fit(x, y, epochs=2, batch_size=16, optimizer=Adam(1e-2), verbose=0)
    assert all(abs(model.params[f"0.{name}"] - before[name]) > 1e-3 for name in NUMBERS)
    found = load(model.save(tmp_path / "model.npz"))
    assert found.cells == model.cells
    np.testing.assert_array_equal(found.predict_outputs(x), model.predict_outputs(x))
    exact = attribution.integrated_gradients(model, x[:2])  # by the numbers learned, not those at the start
    assert abs(exact.residual).max() <= 2e-3 * abs(exact.difference).max()


def test_attribution_asks_for_the_numbers():
    """Catches a trace that is taken apart by the rate that learning started from."""
    problem = draw(LearnedEngram(3, 4, trace_clip=None, trace="sample"))
    tape = run(problem.cell, problem.params, problem.x)[2]
    with pytest.raises(TypeError, match="settled"):
        attribution.written_by(problem.cell, tape, 2)
    parts = attribution.written_by(problem.cell.settled(problem.params), tape, 3)
    recalled = problem.cell.settled(problem.params).record(problem.params, tape)["trace_part"][3]
    np.testing.assert_allclose(parts["start"] + parts["steps"].sum(0) + parts["rest"], recalled, rtol=1e-9)


def test_no_override_is_bypassed():
    """Catches a step that is the library's `Engram`'s, where a class of the reader's has its own equations."""

    class Seven(LearnedEngram):
        def _write(self, k, e, A):
            k.A[...] = 7.0

    class Deaf(LearnedEngram):
        def integrate(self, params, z, m, h, k):
            super().integrate(params, z, 0 * m, h, k)

    problem = draw(Seven(3, 4))
    assert (problem.forward()[1].A == 7).all()
    record = problem.but(cell=Deaf(3, 4)).forward(record=True)[3]
    assert (record["engram"] == 0).all() and (record["trace_part"] != 0).any()

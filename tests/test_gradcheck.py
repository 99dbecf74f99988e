"""The gradient checker, checked: it finds every broken gradient by name, and knows a kink from an error."""

import numpy as np
import pytest
from hypothesis import given
from problems import GRU, KINDS, LSTM, RNN, Binding, Engram, distance, seeds

from enn_np import gradcheck
from enn_np.trace import Piece

SMALL = {
    "RNN": RNN(3),
    "GRU": GRU(3),
    "LSTM": LSTM(3),
    "Engram": Engram(6, 4, hebbian_rate=0.5, trace_scale=2.0, trace_clip=None),
    "Binding": Binding(4, 3, recurrent_cue=True, temperature=1.0, decay=0.1, learned_decay=True),
}
PARTS = [(name, part) for name, cell in SMALL.items() for part in cell.initial_state(1)._fields]
RNG = np.random.default_rng(0)
# 0.1% too much of every gradient; a sign and what is never filled are further off, and asked of one cell.
WRONG = [(name, param, 1.001) for name, cell in SMALL.items() for param in (*cell.init(RNG, 3), "x")]
WRONG += [(name, param, factor) for name, param, _ in WRONG if name == "LSTM" for factor in (-1, 0)]


def wrong(errors):
    """Names whose gradient is refused."""
    return {name for name, error in errors.items() if not error < gradcheck.TOLERANCE}


def broken(cell, **methods):
    """The same cell with some methods replaced, each a function of (cell, the right result)."""

    def wrapped(name):
        def method(self, *args, **options):
            return methods[name](self, getattr(super(kind, self), name)(*args, **options))

        return method

    kind = type(f"Broken{type(cell).__name__}", (type(cell),), {name: wrapped(name) for name in methods})
    return kind(**{name: getattr(cell, name) for name in cell.__dataclass_fields__})


@pytest.mark.parametrize("name", SMALL)
def test_right_gradients_pass(name):
    """Catches a checker that cries wolf, and a name that is missing from its answer."""
    cell = SMALL[name]
    errors = gradcheck.check(cell)
    assert not wrong(errors)
    state = {f"state.{part}" for part in cell.initial_state(1)._fields}
    assert errors.keys() == cell.init(RNG, 3).keys() | state | {"x"}


@pytest.mark.parametrize(("name", "param", "factor"), WRONG)
def test_a_wrong_weight_gradient_is_named(name, param, factor):
    """Catches a checker that averages an error away, or blames another array."""

    def spoil(cell, result):
        dx, grads = result
        return (lambda: factor * dx(), grads) if param == "x" else (dx, {**grads, param: factor * grads[param]})

    assert wrong(gradcheck.check(broken(SMALL[name], collect=spoil))) == {param}


@pytest.mark.parametrize("factor", [-1, 1.001, 0])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_wrong_gradient_through_time_is_found(name, part, factor):
    """Catches a checker blind to what passes between steps, as in qixianbiao/RNN#2: dh not passed back."""

    def spoil(cell, result):
        d, de = result
        return d._replace(**{part: factor * getattr(d, part)}), de

    found = wrong(gradcheck.check(broken(SMALL[name], step_back=spoil), seed=3))
    assert {f"state.{part}", "x"} <= found


def test_a_bias_of_another_gate_is_found():
    """Catches ddbourgin/numpy-ml#42 if it came here: one gate's bias gradient copied to the others."""

    def spoil(cell, result):
        dx, grads = result
        return dx, {**grads, "b": np.repeat(grads["b"][:1], 4, axis=0)}

    assert wrong(gradcheck.check(broken(LSTM(3), collect=spoil))) == {"b"}


def test_every_asks_each_coordinate():
    """Catches one wrong entry that a random direction might hide: here 1e-5 of one entry."""
    values, grads = {"w": np.arange(1.0, 7.0).reshape(2, 3)}, {"w": np.arange(1.0, 7.0).reshape(2, 3)}
    grads["w"][1, 2] *= 1 + 1e-5

    def loss(values):
        return 0.5 * (values["w"] ** 2).sum(), None

    assert wrong(gradcheck.compare(loss, values, grads, np.random.default_rng(0), every=True)) == {"w"}


@given(seed=seeds)
def test_compare_a_users_loss(seed):
    """Catches a factor of two in the difference, a direction of other length, a mix-up of names."""
    rng = np.random.default_rng(seed)
    values = {"w": rng.standard_normal((2, 3)), "b": rng.standard_normal(3)}

    def loss(values):
        return np.sin(values["w"] @ values["b"]).sum(), None

    slope = np.cos(values["w"] @ values["b"])
    grads = {"w": np.outer(slope, values["b"]), "b": slope @ values["w"]}
    assert not wrong(gradcheck.compare(loss, values, grads, rng))
    assert wrong(gradcheck.compare(loss, values, {**grads, "b": 2 * grads["b"]}, rng)) == {"b"}
    assert gradcheck.compare(loss, values, {"b": -grads["b"]}, rng, every=True)["b"] <= 2.001


def test_compare_leaves_the_values_alone():
    """Catches a nudge that is not taken back."""
    values = {"w": np.ones(3)}
    values["w"].flags.writeable = False
    gradcheck.compare(lambda v: (v["w"].sum(), None), values, {"w": np.ones(3)}, np.random.default_rng(0))
    assert (values["w"] == 1).all()


def test_a_kink_is_no_error():
    """Catches a checker that reports a difference taken across a kink."""

    def loss(values):
        return abs(values["w"]).sum(), [values["w"] > 0]

    def ask(w):
        rng = np.random.default_rng(0)
        return gradcheck.compare(loss, {"w": np.array(w)}, {"w": np.sign(w)}, rng, every=True)

    assert not wrong(ask([1e-3, -1e-3]))
    with pytest.raises(gradcheck.Kink, match="w"):
        ask([1e-3, -1e-9])


def test_shapes_have_to_agree():
    """Catches a gradient of another shape that broadcasting would hide."""
    values, grads, rng = {"w": np.ones((2, 3))}, {"w": np.ones(3)}, np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"w.*\(2, 3\).*\(3,\)"):
        gradcheck.compare(lambda values: (0.0, None), values, grads, rng)


def test_the_checker_draws_again_at_kinks():
    """Catches an endless search, and a false alarm: steps of 10 cross a ReLU at every draw."""
    with pytest.raises(RuntimeError, match="kink"):
        gradcheck.check(Engram(3, 4), eps=10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_checks_repeat_with_the_seed(kind):
    """Catches hidden randomness, and a seed that does nothing."""
    one, same, other = (gradcheck.check(kind(2), inputs=2, steps=2, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("inputs", 0, ValueError),
        ("batch", 2.5, TypeError),
        ("steps", -1, ValueError),
        ("eps", 0, ValueError),
        ("eps", "small", TypeError),
    ],
)
def test_bad_questions(name, value, error):
    """Catches a check of nothing that would pass."""
    with pytest.raises(error, match=f"{name}.*{value}"):
        gradcheck.check(RNN(2), **{name: value})


def test_distance_sees_what_it_should():
    """Catches tests of ours that let NaN, a wrong shape or a wrong zero pass."""
    assert distance([1.0, 2.0], [1.0, 2.0]) == 0 and distance([0.0, 3.0], [0.0, 4.0]) == 0.25
    assert distance([np.nan], [1.0]) == np.inf and distance([0.5], [0.0]) == 0.5
    with pytest.raises(AssertionError):
        distance([[1.0]], [1.0])


# ------------------------------------------------------------------------- what is not finite, small or missing

BAD = [np.nan, np.inf, -np.inf, 1e200]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_is_wrong(bad, every):
    """Catches max(0.0, nan) == 0.0: in one or all entries of the gradient, in the values, in the loss, on one side."""
    rng, w = np.random.default_rng(0), np.ones(3)

    def ask(loss, w, g):
        return gradcheck.compare(loss, {"w": w}, {"w": g}, rng, every=every)["w"]

    def total(values):
        return values["w"].sum(), None

    assert ask(total, w, w) < 1e-6
    for spoiled in (np.full(3, bad), np.array([1.0, bad, 1.0])):
        assert not ask(total, w, spoiled) < 1e-3
        if abs(bad) > 1e300 or np.isnan(bad):
            assert ask(lambda values: (np.nansum(values["w"][[0, 2]]), None), spoiled, np.array([1.0, 0, 1])) == np.inf
    if bad != 1e200:
        assert ask(lambda values: (bad, None), w, 0 * w) == np.inf
        assert ask(lambda values: (bad if values["w"].sum() > 3 else values["w"].sum(), None), w, w) == np.inf


def test_a_gradient_that_is_not_finite_is_named():
    """Catches a cell whose NaN the check calls right, as its own maximum or over seeds."""

    def spoil(cell, result):
        return result[0], {**result[1], "b": np.full_like(result[1]["b"], np.nan)}

    cell = broken(LSTM(3), collect=spoil)
    runs = [gradcheck.check(cell, seed=seed) for seed in range(2)]
    assert wrong(runs[0]) == {"b"} and not max(run["b"] for run in runs) < np.inf


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1.0, 1e6, 1e-100])
def test_small_gradients_count_as_much_as_large_ones(scale):
    """Catches a floor: relative to the gradient's own scale, zero is 100% wrong, however small the loss."""
    rng, w = np.random.default_rng(0), np.arange(1.0, 4.0)

    def loss(values):
        return scale * (values["w"] ** 2).sum(), None

    def ask(g):
        return gradcheck.compare(loss, {"w": w}, {"w": g}, rng)["w"]

    assert ask(2 * scale * w) < 1e-6
    assert ask(0 * w) > 0.9 and ask(2.001 * scale * w) > 1e-5


@pytest.mark.parametrize("loss", [0.0, 1.0, -3e7])
def test_rounding_of_a_loss_is_no_gradient(loss):
    """Catches a false alarm where the true gradient is zero, and the difference is noise."""
    rng, w = np.random.default_rng(0), np.linspace(0.1, 0.3, 50)

    def noisy(values):
        return loss * (values["w"] / values["w"]).mean() * (1 + 1e-16 * np.sin(1e9 * values["w"].sum())), None

    assert gradcheck.compare(noisy, {"w": w}, {"w": 0 * w}, rng, every=True)["w"] < 1e-6


@pytest.mark.parametrize("cell", [SMALL["GRU"], SMALL["Engram"]], ids=["GRU", "Engram"])
@pytest.mark.parametrize("name", ["W_h", "b_q"])
def test_gradients_and_parameters_have_the_same_names(cell, name):
    """Catches a gradient that is left out, so that `fit` never moves the parameter, or that no parameter is for."""

    def spoil(cell, result):
        grads = dict(result[1])
        if grads.pop(name, None) is None:
            grads[name] = np.zeros(3)
        return result[0], grads

    def summed(cell, result):  # NumPy would add one row to all of the parameter's
        return result[0], {key: g.sum(0) if key == "W_h" else g for key, g in result[1].items()}

    with pytest.raises(ValueError, match=f"collect: .*{name}"):
        gradcheck.check(broken(cell, collect=spoil))
    with pytest.raises(ValueError, match=r"collect: .*shape.*see \['W_h'\]$"):
        gradcheck.check(broken(cell, collect=summed))
    with pytest.raises(ValueError, match=r"grads\['v'\].*no|grads\['v'\].*value"):
        gradcheck.compare(lambda v: (0.0, None), {"w": np.ones(3)}, {"v": np.ones(3)}, np.random.default_rng(0))


@pytest.mark.parametrize("method", ["initial_state", "encode", "step", "step_back"])
@pytest.mark.parametrize("change", [tuple, lambda parts: parts[0], lambda parts: None], ids=["tuple", "array", "None"])
def test_a_method_that_returns_no_named_tuple_is_named(method, change):
    """Catches an author of a cell who is told of an attribute that a tuple has not."""

    def spoil(cell, result):
        return (result[0], change(result[1])) if method.startswith("step") else change(result)

    with pytest.raises(TypeError, match=f"^{method}: expected a NamedTuple of arrays, got (tuple|ndarray|NoneType)$"):
        gradcheck.check(broken(SMALL["GRU"], **{method: spoil}))


def test_the_de_that_is_handed_back_counts():
    """Catches a `de` that is ignored since it was not written in place."""

    def fresh(cell, result):
        return result[0], type(result[1])(*(part.copy() for part in result[1]))

    def doubled(cell, result):
        return result[0], result[1]._replace(r=2 * result[1].r)

    assert not wrong(gradcheck.check(broken(SMALL["GRU"], step_back=fresh)))
    assert {"W_x", "b_x", "x"} <= wrong(gradcheck.check(broken(SMALL["GRU"], step_back=doubled)))


@pytest.mark.parametrize("name", ["add", "write_back", "back", "enter"])
def test_the_list_of_what_was_written_is_checked_at_any_size(name, monkeypatch):
    """Catches a store of the trace that the check does not run: its way back alone is spoiled."""
    right, cell = getattr(Piece, name), Binding(4, 3, temperature=1.0)

    def spoiled(self, *arguments):
        found = right(self, *arguments)
        self.dL = None if self.dL is None else 1.001 * self.dL
        if isinstance(found, tuple):
            return tuple(1.001 * part for part in found)
        return None if found is None else 1.001 * found

    assert not wrong(gradcheck.check(cell))
    monkeypatch.setattr(Piece, name, spoiled)
    assert wrong(gradcheck.check(cell))

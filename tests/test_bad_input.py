"""Wrong settings and arguments: an error that names the argument and what came, before any work."""

import re

import numpy as np
import pytest
from problems import GRU, KINDS, LEM, LSTM, RNN, Binding, Convolution, Engram, draw, make

from enn_np import Classifier, run, run_back
from enn_np.cells import Hidden
from enn_np.engram import EngramState

T, B, D, H, N = 4, 3, 2, 5, 6
nan, inf = float("nan"), float("inf")


def says(name, value):
    """A pattern for a message that starts with the argument's name and shows what came."""
    return rf"(?s)^{re.escape(name)}\b.*{re.escape(str(value))}"


# --------------------------------------------------------------------------------------------- settings

NOT_COUNTS = ("8", None, True, 2.5, [4])
NUMBERS = {  # values out of range
    "hebbian_rate": (-0.1, 1.1, nan, inf),
    "trace_scale": (-1, nan, inf),
    "temperature": (0, -1.5, nan, inf),
    "sparsity": (-0.1, nan, -inf),
    "trace_noise": (-0.001, nan, inf),
    "trace_clip": (0, -0.1, nan, inf),
    "l1": (-1, nan),
    "entropy": (-1, nan),
    "initial_scale": (-0.01, nan, inf),
}
OPTIONS = {"trace": ("batches", "", None, 1), "retrieval": ("max", None, 0)}
SETTINGS = [
    *[(name, value, ValueError) for name, values in NUMBERS.items() for value in values],
    *[(name, value, TypeError) for name in NUMBERS for value in ("0.5", True, [1.0], 1j)],
    *[(name, None, TypeError) for name in NUMBERS if name != "trace_clip"],  # None there means no clip
    *[(name, value, ValueError) for name in ("hidden", "slots", "top_k") for value in (0, -3)],
    *[(name, value, TypeError) for name in ("hidden", "slots", "top_k") for value in NOT_COUNTS],
    *[(name, value, TypeError) for name in ("layer_norm", "trace_gradient") for value in (1, 0, "no", None)],
    *[(name, value, ValueError) for name, values in OPTIONS.items() for value in values],
]


@pytest.mark.parametrize(("name", "value", "error"), SETTINGS)
def test_engram_settings(name, value, error):
    """Catches a setting that is taken as it comes and fails, or worse does not, somewhere in a run."""
    with pytest.raises(error, match=says(name, value)):
        Engram(**{name: value})


BINDING_SETTINGS = [
    *[(name, value, ValueError) for name in ("rate", "decay") for value in (-0.1, 1.1, nan, inf)],
    *[(name, value, TypeError) for name in ("rate", "decay", "temperature") for value in ("0.5", None, True)],
    *[("temperature", value, ValueError) for value in (0, -1.5, nan, inf)],
    *[(name, value, ValueError) for name in ("hidden", "slots") for value in (0, -3)],
    *[(name, value, TypeError) for name in ("hidden", "slots") for value in NOT_COUNTS],
    *[(name, value, ValueError) for name in ("write_at", "plasticity", "trace") for value in ("next", None, 1)],
    *[
        (name, value, TypeError)
        for name in ("recurrent_cue", "learned_decay", "bank_read", "gated")
        for value in (1, "no", None)
    ],
    *[("rate", value, ValueError) for value in (0, 1)],  # where it is learned, as by default
]


@pytest.mark.parametrize(("name", "value", "error"), BINDING_SETTINGS)
def test_binding_settings(name, value, error):
    """Catches a setting that is taken as it comes and fails, or worse does not, somewhere in a run."""
    with pytest.raises(error, match=says(name, value)):
        Binding(**{name: value})


def test_a_learned_decay_starts_somewhere():
    """Catches a decay of 0 that is to be learned, whose logit is infinite; and refuses no fixed 0 or 1."""
    with pytest.raises(ValueError, match=says("decay", 0.0)):
        Binding(learned_decay=True)
    assert Binding(decay=1).decay == 1 and Binding(plasticity="fixed", rate=0).rate == 0


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM, LEM, Convolution])
@pytest.mark.parametrize(
    ("value", "error"), [*[(value, TypeError) for value in NOT_COUNTS], (0, ValueError), (-3, ValueError)]
)
def test_baseline_settings(kind, value, error):
    """Catches a size that is no size."""
    with pytest.raises(error, match=says("hidden", value)):
        kind(value)


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [
        (LEM, "dt", 0, ValueError),
        (LEM, "dt", nan, ValueError),
        (LEM, "dt", "1", TypeError),
        (Convolution, "width", 1, ValueError),
        (Convolution, "width", 2.0, TypeError),
    ],
)
def test_other_settings(kind, name, value, error):
    """Catches a step that stands still, and a convolution over the present alone."""
    with pytest.raises(error, match=says(name, value)):
        kind(3, **{name: value})


def test_a_convolution_has_as_many_inputs_as_outputs():
    """Catches features that are broadcast over units, also where a model or a run brings them."""
    cell = Convolution(3)
    params = cell.init(np.random.default_rng(0), 3, np.float64)
    for ask in (
        lambda: cell.init(np.random.default_rng(0), 1),
        lambda: Classifier([cell, GRU(4)], 1, 2),
        lambda: run(cell, params, np.ones((T, B, 1))),
    ):
        with pytest.raises(ValueError, match=r"^inputs: expected 3, as many as hidden, got 1; .*`hidden`"):
            ask()


def test_no_more_slots_are_kept_than_there_are():
    """Catches a top_k that silently means all slots."""
    with pytest.raises(ValueError, match=says("top_k", 9)):
        Engram(slots=8, retrieval="top_k", top_k=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "error"), [(0, ValueError), (2.5, TypeError), ("3", TypeError)])
def test_inputs_of_init(kind, inputs, error):
    """Catches an input width that is no size."""
    with pytest.raises(error, match=says("inputs", inputs)):
        kind(3).init(np.random.default_rng(0), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_plain_and_frozen(kind):
    """Catches NumPy scalars, which upcast float32, and a cell whose settings change under its parameters."""
    cell = kind(np.int64(3))
    assert type(cell.hidden) is int
    with pytest.raises(AttributeError):
        cell.hidden = 4
    assert type(Engram(hebbian_rate=np.float64(0.5)).hebbian_rate) is float


# ------------------------------------------------------------------------------------------------- runs


class Work(Exception):
    """Something was computed although an argument was wrong."""


def idle(kind):
    """A cell of this kind that refuses to work, in either direction."""

    def work(*_, **__):
        raise Work

    methods = {"step": work, "step_back": work, "collect": work}
    return make(type(kind.__name__, (kind,), methods), H, N)


def problem(kind, dtype=np.float64):
    return draw(make(kind, H, N), T, B, D, dtype=dtype)


def spoiled(array, value):
    """A copy with one bad entry."""
    array = array.copy()
    array.flat[array.size // 2] = value
    return array


def bad_arrays(shape):
    """All that can be wrong with a float64 array of this shape: {what: (array, error, what to show)}."""
    good = np.ones(shape)
    longer = np.ones((*shape[:-1], shape[-1] + 1))
    return {
        "list": (good.tolist(), TypeError, "list"),
        "string": ("ones", TypeError, "str"),
        "integers": (good.astype(int), TypeError, "int64"),
        "booleans": (good.astype(bool), TypeError, "bool"),
        "complex": (good.astype(complex), TypeError, "complex128"),
        "half precision": (good.astype(np.float16), TypeError, "float16"),
        "other precision": (good.astype(np.float32), TypeError, "float32"),
        "wider": (longer, ValueError, longer.shape),
        "broadcastable": (np.ones(1), ValueError, (1,)),
        "more axes": (good[None], ValueError, good[None].shape),
        "empty": (np.ones((0, *shape[1:])), ValueError, (0, *shape[1:])),
        "nan": (spoiled(good, nan), ValueError, "nan"),
        "inf": (spoiled(good, inf), ValueError, "inf"),
    }


# Weights and gradients are computed and may diverge: only what comes from outside has to be finite.
ANY = bad_arrays((2, 2))
FORM = [what for what in ANY if what not in ("nan", "inf")]


def refuses(error, name, shown, function, *args, **options):
    with pytest.raises(error, match=says(name, shown)):
        function(*args, **options)


def refuses_run(kind, name, error, shown, **wrong):
    """`run` with some right arguments replaced has to refuse by name, with and without a tape."""
    p = problem(kind)
    arguments = {"params": p.params, "x": p.x, "state": p.state, "mask": None, **p.given, **wrong}
    refuses(error, name, shown, run, idle(kind), **arguments)
    refuses(error, name, shown, run, idle(kind), **arguments, keep=False)


def refuses_back(kind, name, error, shown, **wrong):
    """`run_back` with some right arguments replaced has to refuse by name."""
    p = problem(kind)
    arguments = {"params": p.params, "tape": p.forward()[2], "dh": p.dh, "dstate": p.dstate, **p.upstream, **wrong}
    refuses(error, name, shown, run_back, idle(kind), **arguments)


@pytest.mark.parametrize("kind", [RNN, Engram])
@pytest.mark.parametrize("what", ANY)
def test_x(kind, what):
    """Catches inputs of the wrong kind, precision or shape, and NaN that would spread to all weights."""
    x, error, shown = bad_arrays((T, B, D))[what]
    refuses_run(kind, "x", error, shown, x=x)


@pytest.mark.parametrize("shape", [(0, B, D), (T, 0, D), (T, B, 0)])
def test_empty_x(shape):
    """Catches a run over nothing."""
    refuses_run(LSTM, "x", ValueError, shape, x=np.ones(shape))


PARTS = [(kind, name) for kind in KINDS for name in problem(kind).state._fields]


@pytest.mark.parametrize("what", ANY)
@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_state(kind, part, what):
    """Catches a state of another batch, precision or cell, that broadcasting would accept."""
    state = problem(kind).state
    value, error, shown = bad_arrays(getattr(state, part).shape)[what]
    refuses_run(kind, f"state.{part}", error, shown, state=state._replace(**{part: value}))


@pytest.mark.parametrize(
    ("kind", "state"),
    [(RNN, np.ones((B, H))), (LSTM, Hidden(np.ones((B, H)))), (Engram, (np.ones((B, H)), np.ones((N, H))))],
)
def test_state_of_another_type(kind, state):
    """Catches a bare array or a tuple, whose parts could be mixed up."""
    refuses_run(kind, "state", TypeError, type(state).__name__, state=state)


def test_state_of_the_other_trace():
    """Catches a shared trace where every sample has its own, which broadcasting would accept."""
    p = draw(Engram(H, N, trace="sample"), T, B, D)
    state = EngramState(np.zeros((B, H)), np.zeros((N, H)))
    refuses(ValueError, "state.A", (N, H), run, p.cell, p.params, p.x, state)


@pytest.mark.parametrize("kind", [GRU, Engram])
@pytest.mark.parametrize(
    ("mask", "error", "shown"),
    [
        (np.ones((B, T), bool), ValueError, (B, T)),
        (np.ones(T, bool), ValueError, (T,)),
        (np.ones((T, B, 1), bool), ValueError, (T, B, 1)),
        (np.ones((T, B)), (TypeError, ValueError), "float64"),
        (np.ones((T, B), int), (TypeError, ValueError), "int64"),
        ([[True] * B] * T, ValueError, "list"),
    ],
    ids=["batch first", "one axis", "three axes", "floats", "integers", "list"],
)
def test_mask(kind, mask, error, shown):
    """Catches masks of numbers, where ~ is no negation, and a batch-first mask."""
    refuses_run(kind, "mask", error, shown, mask=mask)


@pytest.mark.parametrize("what", ANY)
def test_noise(what):
    """Catches noise of one step for all, of another precision, or NaN."""
    noise, error, shown = bad_arrays((T, N, H))[what]
    refuses_run(Engram, "noise", error, shown, noise=noise)


WEIGHTS = [(RNN, "b"), (GRU, "b_h"), (LSTM, "W_h"), (Engram, "W_c"), (Engram, "M"), (Engram, "gamma_h")]
WEIGHTS += [(Binding, "W_u"), (Binding, "u_g")]


@pytest.mark.parametrize("what", FORM)
@pytest.mark.parametrize(("kind", "param"), WEIGHTS)
def test_params(kind, param, what):
    """Catches weights of another cell, size or precision."""
    params = problem(kind).params
    value, error, shown = bad_arrays(params[param].shape)[what]
    with pytest.raises(error, match=rf"(?s)\b{param}\b.*{re.escape(str(shown))}"):
        run(idle(kind), {**params, param: value}, problem(kind).x)


@pytest.mark.parametrize(("kind", "param"), [*WEIGHTS, (RNN, "W_x"), (Engram, "W_z")])
def test_missing_params(kind, param):
    """Catches a checkpoint of another cell, told by a bare KeyError."""
    params = problem(kind).params
    del params[param]
    refuses_run(kind, "params", (TypeError, ValueError), param, params=params)


def test_params_of_another_type():
    """Catches a list of arrays."""
    refuses_run(RNN, "params", TypeError, "list", params=[*problem(RNN).params.values()])
    refuses_back(RNN, "params", TypeError, "NoneType", params=None)


@pytest.mark.parametrize("kind", KINDS)
def test_more_params_than_the_cell_has(kind):
    """Catches an ablation without layer norm that is given a norm's weights, uses them, and has no gradient there."""
    p = problem(kind)
    refuses_run(kind, "params", ValueError, "gamma_none", params={**p.params, "gamma_none": np.ones(H)})
    without = Engram(H, N, layer_norm=False)
    with pytest.raises(
        ValueError, match=r"^params: .*too many \['gamma_z', 'beta_z', 'gamma_h', 'beta_h'\], missing \[\]"
    ):
        run(without, problem(Engram).params, problem(Engram).x)


@pytest.mark.parametrize("kind", KINDS)
def test_params_of_the_way_back(kind):
    """Catches weights that the run did not have: without a norm's the gradients were silently wrong."""
    params = problem(kind).params
    name = sorted(params)[0]
    less = {key: value for key, value in params.items() if key != name}
    refuses_back(kind, "params", ValueError, f"missing ['{name}']", params=less)
    single = {key: value.astype(np.float32) for key, value in params.items()}
    for wrong in ({**params, name: params[name][..., :-1]}, {**params, name: single[name]}, single):
        with pytest.raises((TypeError, ValueError), match=r"^(params|tape\.x|inputs)"):
            run_back(idle(kind), wrong, problem(kind).forward()[2], problem(kind).dh)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_arguments(kind):
    """Catches a misspelt argument that is swallowed."""
    p = problem(kind)
    with pytest.raises(TypeError, match="noize"):
        run(p.cell, p.params, p.x, noize=np.ones((T, N, H)))
    with pytest.raises(TypeError, match="dA"):
        run_back(p.cell, p.params, p.forward()[2], p.dh, dA=np.ones((T, N, H)))
    if kind is not Engram:
        with pytest.raises(TypeError, match="noise"):
            run(p.cell, p.params, p.x, noise=np.ones((T, N, H)))


# ------------------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize("kind", [RNN, Engram])
@pytest.mark.parametrize("what", FORM)
def test_dh(kind, what):
    """Catches a gradient that broadcasts or upcasts, as a (B, H) one for the last step would."""
    dh, error, shown = bad_arrays((T, B, H))[what]
    refuses_back(kind, "dh", error, shown, dh=dh)


@pytest.mark.parametrize("what", FORM)
@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_dstate(kind, part, what):
    """Catches a gradient of another state that broadcasts or upcasts."""
    dstate = problem(kind).dstate
    value, error, shown = bad_arrays(getattr(dstate, part).shape)[what]
    refuses_back(kind, f"dstate.{part}", error, shown, dstate=dstate._replace(**{part: value}))


@pytest.mark.parametrize(
    ("kind", "dstate"),
    [(RNN, np.ones((B, H))), (LSTM, Hidden(np.ones((B, H)))), (Engram, ())],
)
def test_dstate_of_too_few_parts(kind, dstate):
    """Catches a bare array, whose rows are no parts, and missing parts that would count as zero."""
    with pytest.raises((TypeError, ValueError), match=r"^dstate\b"):
        run_back(idle(kind), problem(kind).params, problem(kind).forward()[2], dstate=dstate)


@pytest.mark.parametrize("what", FORM)
def test_da(what):
    """Catches a gradient at the retrieval weights that broadcasts or upcasts."""
    da, error, shown = bad_arrays((T, B, N))[what]
    refuses_back(Engram, "da", error, shown, da=da)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tape(kind):
    """Catches keep=False followed by a way back."""
    refuses_back(kind, "tape", (TypeError, ValueError), "None", tape=None)


def test_tape_of_another_cell():
    """Catches parameters and a tape that do not belong together."""
    p = problem(GRU)
    with pytest.raises((TypeError, ValueError), match=r"^tape"):
        run_back(idle(LSTM), problem(LSTM).params, p.forward()[2], p.dh)


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_be_left_out(kind):
    """Catches a check that refuses what is allowed: no dh, no dstate, or parts of it that are None."""
    p = problem(kind)
    _, _, tape = p.forward()
    for dh, dstate in ((None, p.dstate), (p.dh, None), (p.dh, p.dstate._replace(h=None)), (None, None)):
        dx, _, grads = run_back(p.cell, p.params, tape, dh, dstate)
        assert dx.shape == p.x.shape and grads.keys() == p.params.keys()
        assert dx.any() == (dh is not None or dstate is not None)

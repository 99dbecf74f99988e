"""Every cell through the public protocol: gradients, time, batch, padding, purity, edges."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from problems import (
    KINDS,
    MEMORIES,
    arrays,
    assert_close,
    assert_derivatives,
    assert_gradients,
    assert_same,
    assert_same_gradients,
    cells,
    distance,
    draw,
    fed,
    problems,
    seeds,
    sizes,
    zeros,
)
from tiny import sequences

from enn_np import (
    GRU,
    LEM,
    LSTM,
    RNN,
    Binding,
    Classifier,
    Convolution,
    Engram,
    Stream,
    Window,
    gradcheck,
)

every_cell = pytest.mark.parametrize("kind", KINDS)
TINY = {
    "RNN": RNN(2),
    "GRU": GRU(2),
    "LSTM": LSTM(2),
    "LEM": LEM(2),
    "LEM, small steps": LEM(3, dt=0.3),
    "Engram": Engram(2, 3),
    "Engram, one trace a sample": Engram(2, 3, trace="sample"),
    "Engram, no layer norm, no clip": Engram(3, 2, layer_norm=False, trace_clip=None, hebbian_rate=0.5),
    "Engram, clipped hard": Engram(2, 3, trace_clip=0.03, hebbian_rate=0.5, trace_noise=0.1),
    "Engram, top 2 of 4": Engram(2, 4, retrieval="top_k", top_k=2, temperature=0.5),
    "Engram, sparsemax": Engram(3, 4, retrieval="sparsemax", temperature=0.5, trace="sample"),
    "Engram, penalties": Engram(2, 3, entropy=0.2, l1=0.3, temperature=0.3),
    "Engram, trace frozen": Engram(2, 3, hebbian_rate=0),
    "Engram, trace hidden": Engram(2, 3, trace_scale=0),
    "Engram, forgets all": Engram(2, 3, hebbian_rate=1, trace="sample"),
    "Binding": Binding(2, 3),
    "Binding, recurrent cue": Binding(2, 3, recurrent_cue=True),
    "Binding, own address, learned decay": Binding(2, 3, write_at="own", decay=0.3, learned_decay=True),
    "Binding, shared trace": Binding(2, 3, trace="batch", recurrent_cue=True, decay=0.3, learned_decay=True),
    "Window": Window(2, 3, 2),
    "Window, all remembered": Window(3, 2, 4, temperature=0.5),
    "Convolution": Convolution(2, 3),
    "Convolution, wider than the sequence": Convolution(2, 5),
    "Binding, all off": Binding(3, 2, plasticity="fixed", decay=0.2, bank_read=False, gated=False),
}
ONES = [
    RNN(1),
    GRU(1),
    LSTM(1),
    LEM(1),
    Convolution(1, 2),
    *(kind(*pair) for kind in MEMORIES for pair in ((1, 1), (1, 3), (3, 1))),
]


# --------------------------------------------------------------------------------- gradients by differences


@every_cell
@given(data=st.data(), steps=sizes, batch=sizes, inputs=sizes, seed=seeds, masked=st.booleans())
def test_gradients(kind, data, steps, batch, inputs, seed, masked):
    """Catches any error in any derivative, in the order of time steps, and in what padding lets through."""
    cell = data.draw(cells(kind))
    assert_gradients(lambda eps: gradcheck.check(cell, fed(cell, inputs), batch, steps, seed, masked, eps=eps))


@pytest.mark.parametrize(("name", "masked"), [(name, i % 2 == 1) for i, name in enumerate(TINY)])
def test_every_coordinate(name, masked):
    """Catches an error in a single entry that a random direction could hide; every other cell is padded."""
    options = {"inputs": 2, "batch": 2, "steps": 3, "masked": masked, "every": True}
    assert_gradients(lambda eps: gradcheck.check(TINY[name], eps=eps, **options))


@given(problem=problems(Engram, masked=False, trace_gradient=False))
def test_stopped_trace_gradient(problem):
    """Catches a gradient that leaks through the writing of the trace, or one cut in reading it.

    The reference is the difference of a loss in which every trace but the first is the recorded number.
    """
    _, _, tape = problem.forward()
    traces = problem.cell.traces(tape)

    def loss(values):
        moved, value, pattern = problem.at(values), 0.0, []
        h = moved.state.h
        for t in range(len(problem.x)):
            A = moved.state.A if t == 0 else traces[t]
            (h, _), e, k = moved.step(t, type(moved.state)(h, A))
            value += (h * problem.dh[t]).sum() + (k.a * problem.upstream["da"][t]).sum()
            pattern += zeros(e, k)
        return value + (h * problem.dstate.h).sum(), pattern

    try:
        assert_derivatives(loss, problem.values(), problem.backward(tape), size=1.0)
    except gradcheck.Kink:
        reject()


def test_stopping_the_trace_gradient_matters():
    """Catches a switch that does nothing: same values, other gradients, most of all for the first trace."""
    whole = draw(Engram(4, 3, hebbian_rate=0.5, trace_clip=None))
    cut = whole.but(cell=replace(whole.cell, trace_gradient=False))
    assert_same([cut.forward()[0]], [whole.forward()[0]])
    one, other = whole.gradients(), cut.gradients()
    assert all(distance(other[name], one[name]) > 1e-3 for name in ("M", "W_z", "x", "state.A"))


# --------------------------------------------------------------------------------------- one step at a time


@every_cell
@given(data=st.data())
def test_step_by_step_equals_the_sequence(kind, data):
    """Catches a fast path over the whole sequence that computes something else than its steps."""
    problem = data.draw(problems(kind, masked=False, trace_gradient=data.draw(st.booleans())))
    cell, params = problem.cell, problem.params
    states, encoded, kept = [problem.state], [], []
    for t in range(len(problem.x)):
        after, e, k = problem.step(t, states[-1])
        states.append(after), encoded.append(e), kept.append(k)
    h, end, tape = problem.forward()
    assert_close([np.stack([state.h for state in states[1:]]), *states[-1]], [h, *end], 1e-12, floor=1)

    d, dx, grads = problem.dstate, [], []
    for t in reversed(range(len(problem.x))):
        d = d._replace(h=d.h + problem.dh[t])
        extra = {name: value[t] for name, value in problem.upstream.items()}
        d, de = cell.step_back(params, d, encoded[t], states[t], kept[t], **extra)
        dx_t, grads_t = cell.collect(params, problem.x[t], encoded[t], states[t], kept[t], de)
        dx.insert(0, dx_t() if callable(dx_t) else dx_t), grads.append(grads_t)
    total = {name: sum(grads_t[name] for grads_t in grads) for name in params}
    want = problem.backward(tape)
    parts = {f"state.{name}": part for name, part in zip(d._fields, d, strict=True)}
    assert_same_gradients({**total, "x": np.stack(dx), **parts}, want)


@every_cell
@given(data=st.data())
def test_stream_equals_the_sequence(kind, data):
    """Catches a step that reads what it has just overwritten, and a noise or a first state that is left out."""
    problem = data.draw(problems(kind, masked=False))
    stream = Stream(problem.cell, problem.params, problem.x.shape[1], problem.state)
    given = [{name: value[t] for name, value in problem.given.items()} for t in range(len(problem.x))]
    rows = [stream(x_t, **more).copy() for x_t, more in zip(problem.x, given, strict=True)]
    h, end, _ = problem.forward()
    assert_close([np.stack(rows), *stream.state], [h, *end], 1e-12, floor=1)


@every_cell
def test_a_stream_keeps_what_it_hands_out(kind):
    """Catches an output or a state that a later step, or its reader, overwrites: a list of them has to be right."""
    problem = draw(kind(3), steps=5, masked=False)
    state = type(problem.state)(*(part.copy() for part in problem.state))
    stream = Stream(problem.cell, problem.params, len(problem.x[0]), state)
    for part in state:  # its owner goes on to use it
        part[...] = 9
    given = [{name: value[t] for name, value in problem.given.items()} for t in range(5)]
    rows, states = [], []
    for x_t, more in zip(problem.x, given, strict=True):
        rows.append(stream(x_t, **more))
        states.append(stream.state)
        stream(x_t, **more)
        stream.state = states[-1]
        rows[-1] *= 2
    assert_close([np.stack(rows) / 2], [problem.forward()[0]], 1e-12, floor=1)
    for t, state in enumerate(states):
        assert_close(state, problem.steps(0, t + 1).forward()[1], 1e-12, floor=1)


def test_stream_refuses_what_would_stay_in_the_trace():
    """Catches a NaN of a sensor that poisons every later step, and inputs of the wrong width or precision."""
    stream = Stream(Engram(3, 4), Engram(3, 4).init(np.random.default_rng(0), 2))
    for x_t, words in (
        (np.full((1, 2), np.nan, "f"), "x_t: every entry must be finite"),
        (np.zeros((1, 3), "f"), r"x_t: expected shape \(1, 2\)"),
        (np.zeros((1, 2)), "x_t: expected float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            stream(x_t)
    with pytest.raises(TypeError, match=r"^mask: a stream has no padding"):
        stream(np.zeros((1, 2), "f"), mask=np.ones(1, bool))
    with pytest.raises(TypeError, match="batch: expected a whole number"):
        Stream(stream.cell, stream.params, 1.5)
    assert not stream.state.h.any()


@every_cell
@given(data=st.data())
def test_pieces_equal_the_sequence(kind, data):
    """Catches a state or its gradient that is lost or reset where a long sequence is fed in pieces."""
    problem = data.draw(problems(kind, steps=st.integers(2, 4), trace_gradient=data.draw(st.booleans())))
    cut, T = data.draw(st.integers(1, len(problem.x) - 1)), len(problem.x)
    h, end, tape = problem.forward()

    head = problem.steps(0, cut)
    h_head, between, tape_head = head.forward()
    tail = problem.steps(cut, T, state=between)
    h_tail, end_tail, tape_tail = tail.forward()
    assert_close([np.concatenate([h_head, h_tail]), *end_tail], [h, *end])

    after = tail.backward(tape_tail)
    head = head.but(dstate=type(between)(*(after[f"state.{name}"] for name in between._fields)))
    before = head.backward(tape_head)
    total = {name: before[name] + after[name] for name in problem.params}
    total["x"] = np.concatenate([before["x"], after["x"]])
    total |= {name: value for name, value in before.items() if name.startswith("state.")}
    assert_same_gradients(total, problem.backward(tape))


@every_cell
@given(data=st.data(), segments=st.integers(2, 6))
def test_segments_equal_the_sequence(kind, data, segments):
    """Catches a gradient that is lost where a piece is run again, also that at the retrieval weights."""
    problem = data.draw(problems(kind, trace_gradient=data.draw(st.booleans())))
    h, end, tape = problem.forward(segments=segments)
    assert_close([h, *end], arrays(problem.forward()[:2]))
    assert_same_gradients(problem.backward(tape), problem.gradients())


# ---------------------------------------------------------------------------------------------- the batch


@pytest.mark.parametrize("kind", MEMORIES)
@given(data=st.data())
def test_batch_order_does_not_matter(kind, data):
    """Catches rows mixed up where batch mates matter: a shared trace is a mean, so their order does not."""
    problem = data.draw(problems(kind, trace="batch"))
    order = np.array(data.draw(st.permutations(range(problem.x.shape[1]))))
    shuffled = problem.samples(order)
    assert_close([shuffled.forward()[0]], [problem.forward()[0][:, order]])
    one, other = problem.gradients(), shuffled.gradients()
    assert_same_gradients(of_params(problem, other), of_params(problem, one))
    assert_same_gradients([other["x"]], [one["x"][:, order]])


@every_cell
@given(data=st.data())
def test_batch_mates_do_not_matter(kind, data):
    """Catches a leak from one sample to another, forward or backward, with one trace per sample."""
    problem = data.draw(problems(kind, batch=st.integers(2, 4), trace="sample"))
    (h, _, tape), alone = problem.forward(), [problem.samples([b]) for b in range(problem.x.shape[1])]
    assert_close([np.concatenate([one.forward()[0] for one in alone], axis=1)], [h])
    together, apart = problem.backward(tape), [one.gradients() for one in alone]
    total = {name: sum(grads[name] for grads in apart) for name in problem.params}
    assert_same_gradients(total, of_params(problem, together))
    assert_same_gradients([np.concatenate([g["x"] for g in apart], axis=1)], [together["x"]])


def test_batch_mates_matter_to_a_shared_trace():
    """Catches a batch trace that is no mean: the published model's leak is real, forward and backward."""
    problem = draw(Engram(8, 4, hebbian_rate=0.5, trace_clip=None), steps=5)
    with_mates, alone = problem.forward()[0][:, :1], problem.samples([0]).forward()[0]
    assert_close([with_mates[0]], [alone[0]])  # the first step reads a trace that nobody has written yet
    assert distance(alone[1:], with_mates[1:]) > 1e-3
    dh = problem.dh * (np.arange(3) == 0)[:, None]
    only_first = problem.but(dh=dh, dstate=cleared(problem.dstate), upstream={})
    dx = only_first.gradients()["x"]
    assert (abs(dx[:-1, 1:]).max(-1) > 0).all()  # the loss of sample 0 has a gradient at its mates' inputs


def of_params(problem, grads):
    """The gradients of the parameters only."""
    return {name: grads[name] for name in problem.params}


def cleared(state):
    return type(state)(*(np.zeros_like(part) for part in state))


# -------------------------------------------------------------------------------------------------- padding


def array_kept(problem):
    """The problem of a cell whose trace, if it has one, is kept as an array."""
    return problem.but(cell=replace(problem.cell, store="dense")) if hasattr(problem.cell, "store") else problem


@every_cell
@given(data=st.data())
def test_padding_freezes_the_state(kind, data):
    """Catches a padded step that moves h, c or the trace. A shared trace stops only where nobody is alive."""
    problem = array_kept(data.draw(problems(kind, masked=True)))
    for name, part in problem.forward()[2].states.stacked()._asdict().items():
        for t, row in enumerate(problem.mask):
            if name in problem.cell.shared:
                assert row.any() or (part[t + 1] == part[t]).all()
            else:
                assert (part[t + 1][~row] == part[t][~row]).all()


@given(problem=problems(Engram, masked=True, trace="batch", hebbian_rate=0.5, trace_clip=None))
def test_shared_trace_moves_while_anyone_lives(problem):
    """Catches a trace that stops as soon as one sample is padded."""
    A = problem.cell.traces(problem.forward()[2])
    moved = (A[1:] != A[:-1]).any((1, 2))
    assert (moved == problem.mask.any(1)).all()


@pytest.mark.parametrize("kind", MEMORIES)
@given(data=st.data())
def test_the_mean_is_over_the_living(kind, data):
    """Catches padding that counts in the batch mean: whoever is never alive might as well not be there."""
    problem = data.draw(problems(kind, masked=False, batch=st.integers(2, 4)))
    living = np.array(data.draw(st.lists(st.booleans(), min_size=(B := problem.x.shape[1]), max_size=B)))
    assume(living.any())
    mask = np.tile(living, (len(problem.x), 1))
    upstream = {name: value * mask[..., None] for name, value in problem.upstream.items()}
    padded = problem.but(mask=mask, upstream=upstream)
    apart = problem.samples(living)
    assert_close([padded.forward()[0][:, living]], [apart.forward()[0]])
    one, other = padded.gradients(), apart.gradients()
    assert_same_gradients(of_params(problem, one), of_params(problem, other))


@every_cell
@given(data=st.data())
def test_padding_values_do_not_matter(kind, data):
    """Catches padding that is multiplied by something small in place of nothing, forward or backward."""
    problem = data.draw(problems(kind, masked=True))
    other = problem.but(x=np.where(problem.mask[..., None], problem.x, 1e3))
    (h, end, tape), (other_h, other_end, other_tape) = problem.forward(), other.forward()
    assert_close([other_h, *other_end], [h, *end])
    grads = problem.backward(tape)
    assert_same_gradients(other.backward(other_tape), grads)
    assert not grads["x"][~problem.mask].any()


@every_cell
@given(data=st.data(), where=st.sampled_from(("head", "tail", "middle")))
def test_fully_padded_steps_hand_on(kind, data, where):
    """Catches padding that decays, writes, or blocks the gradient: without those steps all is the same, where a loss
    at padding is one at what it hands on, the h of the last living step or of the state before all."""
    problem = data.draw(problems(kind, masked=False, trace_gradient=data.draw(st.booleans())))
    T = len(problem.x)
    place = {"head": 0, "tail": T, "middle": T // 2}[where]

    def padded(array):
        """Two steps more, of numbers that must not matter."""
        return np.insert(array, [place, place], 7.0, axis=0)

    mask = np.insert(np.ones(problem.x.shape[:2], bool), [place, place], False, axis=0)
    dh = padded(problem.dh)
    dh[place : place + 2] = problem.dh[0]
    longer = problem.but(
        x=padded(problem.x),
        mask=mask,
        given={name: padded(value) for name, value in problem.given.items()},
        dh=dh,
        upstream={name: padded(value) * mask[..., None] for name, value in problem.upstream.items()},
    )
    handed_on = problem.but(dh=problem.dh.copy())
    if place:
        handed_on.dh[place - 1] += 2 * problem.dh[0]
    (h, end, _), (longer_h, longer_end, _) = problem.forward(), longer.forward()
    assert_close([longer_h[mask.any(1)], *longer_end], [h, *end])
    grads, want = longer.gradients(), handed_on.gradients()
    grads["x"] = grads["x"][mask.any(1)]
    want["state.h"] = want["state.h"] + (0 if place else 2 * problem.dh[0])
    assert_same_gradients(grads, want)


@every_cell
@given(data=st.data())
def test_nobody_is_padded(kind, data):
    """Catches a mask of all True that changes anything."""
    problem = data.draw(problems(kind, masked=False))
    masked = problem.but(mask=np.ones(problem.x.shape[:2], bool))
    assert_close([masked.forward()[0]], [problem.forward()[0]])
    assert_same_gradients(masked.gradients(), problem.gradients())


# ----------------------------------------------------------------------------- nothing hides, nothing moves


def outcome(problem):
    """Every array that comes out of a run and its way back."""
    h, end, tape = problem.forward()
    return [*arrays((h, end)), *problem.backward(tape).values()]


@every_cell
@given(data=st.data())
def test_runs_are_independent(kind, data):
    """Catches a cache on the cell, a buffer used twice, an in-place shortcut on the caller's arrays, which here are
    read-only and compared after, and a second implementation behind keep=False."""
    problem = data.draw(problems(kind, trace_gradient=data.draw(st.booleans())))
    names = ("params", "x", "state", "mask", "given", "dh", "dstate", "upstream")
    owned = [array for name in names for array in arrays(getattr(problem, name))]
    copies = [array.astype(float) for array in owned]
    for array in owned:
        array.flags.writeable = False
    other = problem.but(x=problem.x + 1, state=type(problem.state)(*(part + 1 for part in problem.state)))
    h, end, tape = problem.forward()
    forward = [part.copy() for part in (h, *end)]
    first = problem.backward(tape)
    first_copy = {name: grad.copy() for name, grad in first.items()}
    other.gradients()
    lean_h, lean_end, none = problem.forward(keep=False)
    assert none is None and type(lean_end) is type(end)
    assert_close([lean_h, *lean_end], forward)
    assert_same(problem.backward(tape), first_copy)
    assert_same(first, first_copy)
    assert_same([h, *end], forward)
    assert_same([array.astype(float) for array in owned], copies)


@every_cell
@given(data=st.data())
def test_a_tape_is_its_own(kind, data):
    """Catches a tape that looks into arrays of its caller's, or of a later run."""
    problem = data.draw(problems(kind))
    want = outcome(problem)
    x = problem.x.copy()
    h, end, tape = problem.but(x=x).forward()
    x[...] = np.nan
    problem.but(x=problem.x + 1).gradients()
    copies = [part.copy() for part in end]
    for part in end:
        part[...] = np.nan
    assert_same_gradients([*arrays((h, copies)), *problem.backward(tape).values()], want, 1e-12)


@every_cell
@given(data=st.data())
def test_no_unwritten_memory_is_read(kind, data):
    """Catches a buffer that is read before it is written: numpy.empty is full of NaN here."""
    problem = data.draw(problems(kind))
    want = outcome(problem)

    def blank(shape, dtype=float, **_):
        return np.full(shape, np.nan, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", blank)
        patch.setattr(np, "empty_like", lambda like, dtype=None, **_: blank(like.shape, dtype or like.dtype))
        got = outcome(problem)
        lean = arrays(problem.forward(keep=False)[:2])
    assert_same_gradients(got, want, 1e-12)
    assert_close(lean, want[: len(lean)])


@every_cell
@given(data=st.data())
def test_precision_is_kept(kind, data):
    """Catches a float64 constant that upcasts float32: every array of tape, state, penalty and gradients."""
    problem = data.draw(problems(kind, dtype=np.float32))
    h, end, tape = problem.forward()
    found = arrays((h, end, tape, problem.backward(tape), problem.forward(keep=False)))
    if kind is Engram:
        found += arrays(problem.cell.penalty(tape.kept.a, problem.mask))
    assert {array.dtype for array in found if array.dtype != bool} == {np.dtype(np.float32)}


@every_cell
@given(data=st.data(), seed=seeds)
def test_single_precision_follows_double(kind, data, seed):
    """Catches a value or gradient that is right in float64 only."""
    cell = data.draw(cells(kind, hidden=16, layer_norm=False, retrieval="softmax"))  # norms of few units magnify
    single, double = (draw(cell, seed=seed, dtype=dtype) for dtype in (np.float32, np.float64))
    assert_close([single.forward()[0]], [double.forward()[0]], 1e-4)
    assert_same_gradients(single.gradients(), double.gradients(), 1e-3)


# --------------------------------------------------------------------------------------------------- chance


def test_random_states_repeat_with_the_seed():
    """Catches hidden randomness, a wrong spread, and h and A drawn alike."""
    cell = Engram(50, 40, initial_scale=0.02)
    one, same, other = (cell.initial_state(30, np.float64, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert_same(one, same)
    assert (one.h != other.h).all() and (one.A != other.A).all()
    assert one.h.shape == (30, 50) and one.A.shape == (40, 50)
    for part in one:
        assert part.std() == pytest.approx(0.02, rel=0.1) and abs(part.mean()) < 0.002
    assert replace(cell, trace="sample").initial_state(30, np.float64, np.random.default_rng(1)).A.shape == (
        30,
        40,
        50,
    )


@every_cell
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_states_start_at_zero(kind, dtype):
    """Catches random states that nobody asked for, and a wrong shape or precision."""
    cell = kind(5)
    zero = cell.initial_state(3, dtype)
    assert all(part.dtype == dtype and not part.any() for part in zero)
    assert zero.h.shape == (3, 5)
    problem = draw(cell, seed=1)
    given_zeros = problem.but(state=cell.initial_state(3, np.float64))
    assert_same([problem.but(state=None).forward()[0]], [given_zeros.forward()[0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_repeats_with_the_seed(dtype):
    """Catches noise that is not the Generator's, is the same at every step, or has another spread."""
    cell = Engram(30, 20, trace_noise=0.25)
    one, same, other = (cell.noise(np.random.default_rng(seed), 7, dtype) for seed in (1, 1, 2))
    assert one.shape == (7, 20, 30) and one.dtype == dtype
    assert_same([one], [same])
    assert (one != other).any() and (one[0] != one[1]).any()
    assert one.std() == pytest.approx(0.25, rel=0.05)


def test_no_noise_where_none_is_wanted():
    """Catches noise at zero strength, or drawn for a trace that never moves."""
    rng = np.random.default_rng(0)
    assert Engram(trace_noise=0).noise(rng, 2) is None
    assert Engram(hebbian_rate=0).noise(rng, 2) is None


# ----------------------------------------------------------------------------------- switches of the Engram


@given(problem=problems(Engram, hebbian_rate=0))
def test_rate_zero_freezes_the_trace(problem):
    """Catches a frozen trace that is decayed, clipped or rounded."""
    A = problem.cell.traces(problem.forward()[2])
    assert (A == problem.state.A).all()


@given(problem=problems(Engram, trace_scale=0))
def test_scale_zero_hides_the_trace(problem):
    """Catches a trace that is read elsewhere than in (2)."""
    other = problem.but(state=problem.state._replace(A=problem.state.A + 1))
    assert_same([other.forward()[0]], [problem.forward()[0]])
    blind = problem.but(dstate=cleared(problem.dstate))
    assert not blind.gradients()["state.A"].any()


@given(problem=problems(Engram, masked=False, trace_clip=0.03, hebbian_rate=0.5))
def test_clip_bounds_the_trace(problem):
    """Catches a clip on one side only."""
    A = problem.forward()[2].states.A[1:]
    assert (abs(A) <= 0.03).all()


def test_a_clipped_trace_has_no_past():
    """Catches a gradient through the clip: where every entry sits on it, nothing before can matter."""
    problem = draw(Engram(3, 2, trace_clip=1e-6, hebbian_rate=0.5), steps=1)
    problem = problem.but(dh=0 * problem.dh, dstate=problem.dstate._replace(h=0 * problem.dh[0]), upstream={})
    assert not any(grad.any() for grad in problem.gradients().values())


# ------------------------------------------------------------------------------------------------ penalties


def weights(retrieval, seed=0):
    """Retrieval weights (T, B, N) of a run."""
    cell = Engram(4, 5, retrieval=retrieval, temperature=0.4, top_k=2)
    return draw(cell, steps=3, seed=seed).forward()[2].kept.a


def literal_penalty(cell, a, mask):
    """The two penalties as they are defined: a mean over living steps of a sum over slots."""
    live = np.argwhere(np.ones(a.shape[:2], bool) if mask is None else mask)
    rows = [a[t, b] for t, b in live]
    l1 = sum(abs(row).sum() for row in rows)
    entropy = -sum(value * np.log(value) for row in rows for value in row if value > 0)
    return (cell.l1 * l1 + cell.entropy * entropy) / max(len(rows), 1)


@pytest.mark.parametrize("retrieval", ["softmax", "top_k", "sparsemax"])
@given(seed=seeds, l1=st.floats(0, 2), entropy=st.floats(0, 2), masked=st.booleans())
def test_penalty_definition(retrieval, seed, l1, entropy, masked):
    """Catches padding in the mean, a wrong sign, log 0 for slots that are not read, and a wrong gradient."""
    cell, a = Engram(l1=l1, entropy=entropy), weights(retrieval, seed)
    mask = np.random.default_rng(seed).random(a.shape[:2]) < 0.6 if masked else None
    value, da = cell.penalty(a, mask)
    assert value == pytest.approx(literal_penalty(cell, a, mask), abs=1e-12)
    if da is None:
        assert value == 0
        return
    assert np.isfinite(da).all()
    assert mask is None or not da[~mask].any()
    read = np.maximum(a, 0.05)  # away from log's pole a difference can be trusted
    grads = {"a": cell.penalty(read, mask)[1]}
    assert_derivatives(lambda values: (cell.penalty(values["a"], mask)[0], None), {"a": read}, grads)


def test_penalty_of_nobody_is_zero():
    """Catches 0 / 0 in a batch of padding only, and work for strengths of zero."""
    a = weights("softmax")
    value, da = Engram(l1=1, entropy=1).penalty(a, np.zeros(a.shape[:2], bool))
    assert value == 0 and not da.any()
    assert Engram().penalty(a) == (0.0, None)


@given(problem=problems(Engram, l1=0.7, entropy=0, retrieval="softmax"))
def test_l1_cannot_sparsify_a_softmax(problem):
    """Catches a penalty that seems to train: its value is constant, its gradient dies in the softmax."""
    _, end, tape = problem.forward()
    value, da = problem.cell.penalty(tape.kept.a, problem.mask)
    assert value == pytest.approx(0.7 if problem.mask is None or problem.mask.any() else 0)
    alone = problem.but(dh=0 * problem.dh, dstate=cleared(end), upstream={"da": da})
    assert all(abs(grad).max() < 1e-12 for grad in alone.gradients().values())


def test_entropy_pushes_towards_few_slots():
    """Catches a sign: a step down the gradient must lower the entropy."""
    problem = draw(Engram(4, 5, entropy=1.0, temperature=0.4))
    _, end, tape = problem.forward()
    before, da = problem.cell.penalty(tape.kept.a)
    grads = problem.but(dh=0 * problem.dh, dstate=cleared(end), upstream={"da": da}).gradients()
    moved = problem.but(params={name: value - 1e-4 * grads[name] for name, value in problem.params.items()})
    assert moved.cell.penalty(moved.forward()[2].kept.a)[0] < before


# ---------------------------------------------------------------------------------------- degenerate inputs


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 4), (3, 1, 1), (1, 3, 1)], ids=str)
@pytest.mark.parametrize("cell", ONES, ids=str)
def test_sizes_of_one(cell, sizes, masked):
    """Catches an axis of length one that is squeezed, broadcast or divided by zero."""
    D, B, T = sizes
    assert_gradients(lambda eps: gradcheck.check(cell, fed(cell, D), B, T, masked=masked, eps=eps))


@pytest.mark.parametrize("trace", ["batch", "sample"])
def test_zero_memory_row(trace):
    """Catches 0 / 0 in the cosine with an empty slot, whose length counts as 1e-6."""
    problem = draw(Engram(3, 4, trace=trace, trace_scale=0.5), steps=1, batch=2)
    problem.params["M"][1] = 0
    problem.state.A[..., 1, :] = 0
    h, end, _ = problem.forward()
    grads = problem.gradients()
    assert all(np.isfinite(part).all() for part in (h, *end, *grads.values()))

    def smooth_loss(values):
        return problem.at(values).loss()[0], None  # a slot that leaves zero is no kink

    steep = ("M", "state.A")  # the slot turns within 1e-6: the difference has to be taken well inside
    rng, chosen = np.random.default_rng(0), {name: grads[name] for name in steep}
    errors = gradcheck.compare(smooth_loss, problem.values(), chosen, rng, eps=1e-10, every=True)
    assert max(errors.values()) < gradcheck.TOLERANCE, errors
    assert_derivatives(smooth_loss, problem.values(), {k: v for k, v in grads.items() if k not in steep})


@pytest.mark.parametrize("trace", ["batch", "sample"])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_zero_code(layer_norm, trace):
    """Catches 0 / 0 where every unit of the cue is off: no direction, so all slots match alike."""
    problem = draw(Engram(3, 4, layer_norm=layer_norm, trace=trace))
    problem.params["b_z"][:] = -100
    if layer_norm:
        problem.params["beta_z"][:] = 0
    h, end, tape = problem.forward()
    assert_close([tape.kept.a], [np.full((4, 3, 4), 0.25)])
    grads = problem.gradients()
    assert all(np.isfinite(part).all() for part in (h, *end, *grads.values()))
    assert not grads["x"].any() and not grads["W_z"].any()
    chosen = {name: grad for name, grad in grads.items() if name != "beta_z"}  # the cue turns within 1e-6
    assert_derivatives(lambda values: problem.at(values).loss(), problem.values(), chosen)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e4])
@every_cell
def test_far_out_inputs(kind, scale, dtype):
    """Catches an overflow or 0 / 0 with saturated gates or vanishing inputs (warnings are errors)."""
    problem = draw(kind(4), dtype=dtype)
    problem = problem.but(x=problem.x * dtype(scale))
    h, end, _ = problem.forward()
    assert all(np.isfinite(part).all() for part in (h, *end, *problem.gradients().values()))


def test_retrieval_is_bounded_at_the_defaults():
    """Catches a temperature that is not the paper's: with 64 slots no weight can exceed 0.186."""
    a = draw(Engram(16), steps=3).forward()[2].kept.a
    tau = 1.5 / (1 + 10 * 0.1)
    bound = np.exp(1 / tau) / (np.exp(1 / tau) + 63 * np.exp(-1 / tau))
    assert bound == pytest.approx(0.186, abs=5e-4)
    assert a.max() < bound


def test_a_model_may_see_other_batches_before_it_goes_back():
    """Catches hidden states that a later batch overwrites, in a stack too."""
    model = Classifier([GRU(4), Engram(3, 4)], 3, 3, pooling="mean", dropout=0.0)
    x = model.time_major(sequences(8)[0])
    (out, memo), (_, again) = (model.forward(x, learning=True) for _ in range(2))
    model.forward(x + 1, learning=True)
    assert_same(model.backward(np.ones_like(out), memo)[1], model.backward(np.ones_like(out), again)[1])


# ----------------------------------------------------------------------------------------- what padding holds


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e300])
@every_cell
def test_padding_may_hold_anything(kind, junk):
    """Catches 0 * inf: what stands at padding reaches batch mates, forward or back, with or without a tape."""
    for trace in ("batch", "sample"):
        cell = kind(4, 3, trace=trace) if kind in MEMORIES else kind(4)
        problem = draw(cell, steps=5, masked=True, seed=1)
        assert not problem.mask.all() and problem.mask.any()
        clean = problem.but(x=np.where(problem.mask[..., None], problem.x, 0))
        dirty = problem.but(x=np.where(problem.mask[..., None], problem.x, junk))
        for options in ({}, {"keep": False}, {"segments": 2}):
            assert_same(arrays(dirty.forward(**options)[:2]), arrays(clean.forward(**options)[:2]))
        for options in ({}, {"segments": 2}):
            got, want = (p.backward(p.forward(**options)[2]) for p in (dirty, clean))
            assert_same(got, want)
        spoiled = problem.x.copy()
        spoiled[problem.mask.nonzero()[0][0], problem.mask.nonzero()[1][0]] = np.nan
        with pytest.raises(ValueError, match="x: every entry must be finite"):
            problem.but(x=spoiled).forward()


@pytest.mark.parametrize("junk", [1.0, 1e6, np.nan])
@pytest.mark.parametrize("cell", [Engram(4, 3), Engram(40, 3, trace="sample", trace_clip=None, trace_noise=0)], ids=str)
def test_a_loss_at_the_weights_of_padding_does_not_count(cell, junk):
    """Catches a gradient at the retrieval weights of padding that reaches the bank."""
    problem = draw(cell, steps=5, masked=True)
    for options in ({}, {"segments": 2}):
        da = np.where(problem.mask[..., None], problem.upstream["da"], junk)
        tape = problem.forward(**options)[2]
        assert_same(problem.but(upstream={"da": da}).backward(tape), problem.backward(tape))
        assert_same(problem.but(upstream={"da": None}).backward(tape), problem.but(upstream={}).backward(tape))

"""A cell of your own: the documented protocol is all that anything asks for, and no override is bypassed."""

from collections import namedtuple
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from problems import MEMORIES, arrays, assert_close, assert_gradients, assert_same, assert_same_gradients, draw
from tiny import padding, sequences

from enn_np import GRU, SGD, Cell, Classifier, Engram, Stream, gradcheck, register, run, run_back
from enn_np.cells import Hidden, Traced
from enn_np.look import attribution
from enn_np.ops import flat, write

Seen = namedtuple("Seen", "h seen")
Sums = namedtuple("Sums", "s")
Kept = namedtuple("Kept", "tanh was")  # none need be called h


class Six(Cell):
    """Six methods, fresh arrays: h_t = tanh(x W + h_{t-1} U + 0.1 seen_{t-1}), seen_t = mean over the batch of h_t or
    0.9 seen_{t-1} + h_{t-1}."""

    def __init__(self, hidden):
        self.hidden = hidden

    def init(self, rng, inputs, dtype=np.float32):
        W, U = rng.standard_normal((inputs, self.hidden)), rng.standard_normal((self.hidden, self.hidden))
        return {"W": W.astype(dtype), "U": U.astype(dtype)}

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        return Seen(xp.zeros((batch, self.hidden), dtype), xp.zeros((batch, self.hidden), dtype))

    def encode(self, params, x):
        return Sums(x @ params["W"])

    def step(self, params, e, state):
        h = np.tanh(e.s + state.h @ params["U"] + 0.1 * state.seen)
        return Seen(h, 0.9 * state.seen + state.h), Kept(h, state.seen)

    def step_back(self, params, d, e, state, k):
        ds = d.h * (1 - k.tanh**2)
        return Seen(ds @ params["U"].T + d.seen, 0.1 * ds + 0.9 * d.seen), Sums(ds)

    def collect(self, params, x, e, before, k, de):
        assert (k.was == before.seen).all()
        grads = {"W": flat(x).T @ flat(de.s), "U": flat(before.h).T @ flat(de.s)}
        return de.s @ params["W"].T, grads


Count = namedtuple("Count", "count index")


class Lazy(Six):
    """Makes the gradient at x only if it is asked for."""

    def collect(self, *given):
        dx, grads = super().collect(*given)
        return lambda: dx, grads


@dataclass
class Unhashable(Six):
    hidden: int


@dataclass(frozen=True)
class Listing(Six):
    """Frozen, with a field that has no hash."""

    hidden: int
    names: list = field(default_factory=list)


@dataclass
class Counting(Six):
    """Keeps what is named as a method of lists."""

    hidden: int

    def step(self, params, e, state):
        after, k = super().step(params, e, state)
        return after, Count(*k)

    def step_back(self, params, d, e, state, k):
        return super().step_back(params, d, e, state, Kept(*k))

    def collect(self, params, x, e, before, k, de):
        return super().collect(params, x, e, before, Kept(k.count, k.index), de)


OWN = [Six, Lazy, Unhashable, Listing, Counting]


@pytest.mark.parametrize(
    ("after", "error", "match"),
    [
        (lambda h, seen: Seen(h[:, None], seen), ValueError, r"^step\.h: expected shape \(3, 4\), got \(3, 1, 4\)"),
        (lambda h, seen: Seen(h, seen.astype(np.float32)), TypeError, r"^step\.seen: expected float64"),
        (lambda h, seen: Sums(h), TypeError, r"^step: expected Seen"),
        (lambda h, seen: (h, seen), TypeError, r"^step: expected a NamedTuple"),
    ],
)
def test_a_step_that_returns_no_such_state_is_named(after, error, match):
    """Catches a state that goes wrong where it is made, and is blamed on someone else steps later."""

    class Wrong(Six):
        def step(self, params, e, state):
            new, k = super().step(params, e, state)
            return after(*new), k

    with pytest.raises(error, match=match):
        draw(Wrong(4)).forward()


def test_a_part_that_no_step_kept_is_named():
    _, _, tape = draw(Six(4)).forward()
    with pytest.raises(AttributeError, match=r"expected one of \('tanh', 'was'\), got 'tanhh'"):
        _ = tape.kept.tanhh


@pytest.mark.parametrize("kind", OWN)
def test_a_cell_of_your_own(kind):
    """Catches anything beyond the documented protocol: runs, masks, pieces, streams, checks and models ask for it."""
    for masked in (False, True):
        assert max(gradcheck.check(kind(3), masked=masked, every=True).values()) < gradcheck.TOLERANCE
        problem = draw(kind(3), steps=6, masked=masked)
        plain = problem.but(cell=Six(3))
        h, end, tape = problem.forward()
        assert_close([h, *end], arrays(plain.forward()[:2]), 1e-12)
        assert_same_gradients(problem.backward(tape), plain.gradients())
        assert_same([h, *end], arrays(problem.forward(keep=False)[:2]))
        assert_same_gradients(problem.backward(problem.forward(segments=3)[2]), problem.gradients())
        assert (
            problem.cell.hidden == 3
            and run_back(problem.cell, problem.params, tape, h, input_gradient=False)[0] is None
        )
    whole = draw(kind(3))
    stream = Stream(whole.cell, whole.params, 3, whole.state)
    assert_close([np.stack([stream(x_t) for x_t in whole.x])], [whole.forward()[0]], 1e-12)
    x, y = sequences(40)
    model = Classifier([kind(6), GRU(4)], 3, 3, dropout=0.0)
    before = {name: value.copy() for name, value in model.params.items()}
    model.fit(x, y, epochs=2, batch_size=16, verbose=0, mask=padding(40))
    assert all((model.params[name] != value).any() for name, value in before.items())
    assert np.isfinite(model.evaluate(x, y, mask=padding(40))["loss"])


def test_a_cell_that_was_given_another_size():
    """Catches shapes remembered of the cell as it was."""
    cell = Six(3)
    draw(cell).forward()
    cell.hidden = 5
    assert draw(cell).forward()[0].shape[-1] == 5


def test_a_record_of_your_own_cell():
    """Catches a default that asks for more than what the steps kept."""
    problem = draw(Six(3))
    record = problem.cell.record(problem.params, problem.forward()[2])
    assert record["hidden"].shape == (5, 3, 3) and record["was"].shape == (4, 3, 3)


# ----------------------------------------------------------------------------------------- overrides


def seven(self, a, e, A):
    return np.full_like(A, 7.0)


def with_write():
    return type("Seven", (Engram,), {"_written": seven})(40, 5, trace="sample", trace_clip=None)


def with_share():
    return type("Half", (Engram,), {"_share": lambda self, mask, x: 0.5})(40, 5, trace="sample", trace_clip=None)


def in_the_object():
    cell = Engram(40, 5, trace="sample", trace_clip=None)
    object.__setattr__(cell, "_written", seven.__get__(cell))
    return cell


def renamed():
    own = {"_written": seven, "__module__": Engram.__module__}
    return type("Engram", (Engram,), own)(40, 5, trace="sample", trace_clip=None)


@pytest.mark.parametrize("make_cell", [with_write, with_share, in_the_object, renamed])
def test_no_override_is_bypassed(make_cell):
    """Catches a faster form that takes the library's equations for those of a subclass or of an object."""
    cell = make_cell()
    problem = draw(cell, steps=6)
    _, end, tape = problem.forward()
    state, A = problem.state, []
    for t in range(6):
        state, _, _ = problem.step(t, state)
        A.append(state.A)
    assert_close([end.A, problem.cell.traces(tape)[1:]], [state.A, np.stack(A)], 1e-12)
    if make_cell is not with_share:
        assert (end.A == 7).all()
        assert max(gradcheck.check(cell, steps=3).values()) > gradcheck.TOLERANCE  # its way back is another's


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_method_put_into_the_class_counts(kind, monkeypatch):
    """Catches a faster form that stands for methods which are not there any more."""
    problem = draw(kind(40, 5, trace="sample"), steps=5)
    name = "_written" if kind is Engram else "_written_at"
    calls, right = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *args: [calls.append(1), right(self, *args)][1])
    stores = ({"store": "dense"}, {"store": "list"}) if kind is not Engram else ({},)
    for store in stores:
        problem.but(cell=replace(problem.cell, **store)).forward()
    assert len(calls) == 5 * len(stores)


def test_the_state_that_is_handed_back_counts():
    """Catches a tape that holds what a step wrote, and not the state that it handed back."""

    class Louder(GRU):
        def step(self, params, e, state):
            after, k = super().step(params, e, state)
            return after._replace(h=2 * after.h), k

    problem = draw(Louder(3))
    assert_close(arrays(problem.forward()[:2]), arrays(problem.forward(keep=False)[:2]), 1e-12)
    assert_close([problem.forward()[0]], [np.stack(louder_steps(problem))], 1e-12)


def louder_steps(problem):
    state, h = problem.state, []
    for t in range(len(problem.x)):
        after, _, _ = problem.but(cell=GRU(3)).step(t, state)
        state = type(state)(2 * after.h)
        h.append(state.h)
    return h


@dataclass(frozen=True)
class TwoSpeeds(Engram):
    """A cell of two speeds, with noise, any penalty and no clip."""

    hebbian_rate: float = 1.0
    fast: float = 0.3
    slow: float = 0.02

    @property
    def rates(self):
        return np.where(np.arange(self.slots)[:, None] < self.slots // 2, self.fast, self.slow)

    def _written(self, a, e, A):
        eta, c = self.rates, self.trace_clip
        written = write(a * e.share, e.z, self.trace == "batch") + (0 if e.noise is None else e.noise)
        faded = (1 - eta) * A + eta * written
        return faded if c is None else np.clip(faded, -c, c)

    def step_back(self, params, d, e, state, k, **upstream):
        before, de = super().step_back(params, d._replace(A=self.rates * d.A), e, state, k, **upstream)
        unclipped = 1 if self.trace_clip is None else abs(k.A) < self.trace_clip
        return before._replace(A=before.A + (1 - self.rates) * unclipped * d.A), de


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("trace", ["batch", "sample"])
def test_a_subclass_with_rates_of_its_own(trace, masked):
    """Catches noise, penalties or a missing clip that a subclass cannot have."""
    for clip in (None, 0.1):
        cell = TwoSpeeds(5, 4, trace=trace, trace_clip=clip, trace_noise=0.3, entropy=0.2, l1=0.1)
        assert_gradients(lambda eps, cell=cell: gradcheck.check(cell, masked=masked, eps=eps))


class Noiseless(Engram):
    """A cell whose `encode` takes no noise, as it has none."""

    def encode(self, params, x, mask=None, mean=None):
        return super().encode(params, x, mask, mean=mean)


def test_a_cell_without_noise_is_given_none():
    assert max(gradcheck.check(Noiseless(3, 2, trace_noise=0.0)).values()) < gradcheck.TOLERANCE


Leak = namedtuple("Leak", "c h")  # h comes last


class Leaky(Six):
    """c_t = decay c_{t-1} + x W + b + b', h_t = tanh(c_t); the decay is a single number, and collect gives one array
    for both biases."""

    def init(self, rng, inputs, dtype=np.float32):
        biases = {"b": np.zeros(self.hidden), "b_too": np.zeros(self.hidden), "decay": np.array(0.5)}
        params = {"W": 0.5 * rng.standard_normal((inputs, self.hidden)), **biases}
        return {name: value.astype(dtype) for name, value in params.items()}

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        return Leak(xp.zeros((batch, self.hidden), dtype), xp.zeros((batch, self.hidden), dtype))

    def encode(self, params, x):
        return Sums(x @ params["W"] + params["b"] + params["b_too"])

    def step(self, params, e, state):
        c = params["decay"] * state.c + e.s
        return Leak(c, np.tanh(c)), Sums(np.tanh(c))

    def step_back(self, params, d, e, state, k):
        dc = d.c + d.h * (1 - k.s**2)
        return Leak(params["decay"] * dc, np.zeros_like(dc)), Sums(dc)

    def collect(self, params, x, e, before, k, de):
        db = flat(de.s).sum(0)
        grads = {"W": flat(x).T @ flat(de.s), "b": db, "b_too": db, "decay": (de.s * before.c).sum()}
        return de.s @ params["W"].T, grads


@pytest.mark.parametrize("pooling", ("last", "mean"))
def test_a_single_number_and_a_state_in_any_order_learn(pooling):
    """Where h was not the first part of the state, the loss' gradient went to another part."""
    assert max(gradcheck.check(Leaky(4)).values()) < 1e-6
    model = Classifier(Leaky(4), 3, 3, pooling, dropout=0, dtype="float64")
    x, y = sequences(6, 5, 3)
    x = model.time_major(x.astype(float))
    grads = model.loss_and_grads(x, y, None)[1]

    def loss(params):
        model.params = params
        return model.loss_and_grads(x, y, None)[0]["loss"], None

    assert max(gradcheck.compare(loss, dict(model.params), grads, np.random.default_rng(0)).values()) < 1e-6


@pytest.mark.parametrize("settings", ({"global_clip_norm": 1e-3}, {"clip_norm": 1e-3}, {"frozen": ("b",)}))
def test_gradients_that_are_one_array_are_clipped_and_frozen_by_themselves(settings):
    """They were clipped twice, and frozen together; a gradient of a single number was not clipped."""
    problem = draw(Leaky(4))
    _, _, tape = problem.forward()
    grads = run_back(problem.cell, problem.params, tape, problem.dh)[2]
    alone = {name: np.array(g) for name, g in grads.items()}
    optimizer, twin = SGD(0.1, **settings), SGD(0.1, **settings)
    params = {name: value.copy() for name, value in problem.params.items()}
    twins = {name: value.copy() for name, value in problem.params.items()}
    optimizer.update(params, grads)
    twin.update(twins, alone)
    assert all((params[name] == twins[name]).all() for name in params)
    assert (params["b"] == problem.params["b"]).all() == ("frozen" in settings)
    assert (params["b_too"] != problem.params["b_too"]).any() and params["decay"] != problem.params["decay"]


class Reservoir(Six):
    """Fixed weights: nothing to train."""

    def init(self, rng, inputs, dtype=np.float32):
        return {}

    def encode(self, params, x):
        return Sums(np.repeat(x[..., :1], self.hidden, -1))

    def step(self, params, e, state):
        h = np.tanh(e.s + 0.5 * state.h)
        return Seen(h, state.seen), Kept(h, state.seen)

    def step_back(self, params, d, e, state, k):
        ds = d.h * (1 - k.tanh**2)
        return Seen(0.5 * ds, d.seen), Sums(ds)

    def collect(self, params, x, e, before, k, de):
        dx = np.zeros_like(x)
        dx[..., 0] = de.s.sum(-1)
        return dx, {}


def test_a_cell_without_parameters():
    assert max(gradcheck.check(Reservoir(4)).values()) < 1e-6
    stream = Stream(Reservoir(4), {}, inputs=3)
    x = np.random.default_rng(0).standard_normal((5, 1, 3)).astype("float32")
    assert_close([np.stack([stream(x_t) for x_t in x])], [run(Reservoir(4), {}, x)[0]], 1e-6)


Swapped = namedtuple("Swapped", "seen h")


@pytest.mark.parametrize(
    ("returned", "error", "match"),
    [
        (lambda d: Swapped(d.seen, d.h), TypeError, r"^step_back: expected Seen\('h', 'seen'\), got Swapped"),
        (lambda d: Hidden(d.h), TypeError, r"^step_back: expected Seen\('h', 'seen'\), got Hidden"),
        (lambda d: Seen(d.h[:1], d.seen), ValueError, r"^step_back.h: expected shape \(3, 4\), got \(1, 4\)"),
        (lambda d: Seen(d.h.astype("f"), d.seen), TypeError, "^step_back.h: expected float64, got float32"),
    ],
)
def test_a_step_back_that_returns_no_such_gradient_is_named(returned, error, match):
    """Other names went by position, and one row was spread over the batch: both trained, without a word."""

    class Wrong(Six):
        def step_back(self, *given):
            d, de = super().step_back(*given)
            return returned(d), de

    for masked in (False, True):
        problem = draw(Wrong(4), batch=3, masked=masked)
        with pytest.raises(error, match=match):
            problem.gradients()


@pytest.mark.parametrize("shared", (("Seen",), ("seen", "A"), "seen"))
def test_shared_parts_that_are_none_are_named(shared):
    """With padding h was wrong at real steps, and finite differences agreed."""
    kind, in_the_object = type("Wrong", (Six,), {"shared": shared}), Six(4)
    in_the_object.shared = shared
    for cell in (kind(4), in_the_object):
        with pytest.raises(ValueError, match=r"^shared: expected one of 'h', 'seen', got '(Seen|A|s)'"):
            draw(Six(4)).but(cell=cell).forward()


def test_an_error_in_shared_shows():
    """A cell with a trace but without the setting `trace` was taken for one that shares nothing."""

    class Untold(Six, Traced):
        pass

    with pytest.raises(AttributeError, match="trace"):
        draw(Six(4)).but(cell=Untold(4)).forward()


@pytest.mark.parametrize("dx", (lambda dx: None, lambda dx: dx.swapaxes(0, 1), lambda dx: dx.astype("d"), lambda dx: 0))
def test_a_gradient_at_x_that_is_none_is_named(dx):
    """Layers below did not train, or words got one another's gradients."""

    class Wrong(Six):
        def collect(self, *given):
            found, grads = super().collect(*given)
            return dx(found), grads

    x, y = sequences(4)
    with pytest.raises((TypeError, ValueError), match=r"^dx: expected"):
        Classifier([GRU(4), Wrong(5)], 3, 3).fit(x, y, epochs=1, verbose=0)


@dataclass(frozen=True)
class Clipped(Six):
    """A setting of its own under a name that Engram has."""

    hidden: int
    trace_clip: float = 0.5


def test_a_setting_named_as_one_of_engram_is_the_cells_own():
    assert max(gradcheck.check(Clipped(4)).values()) < 1e-6
    x, y = sequences(8)
    Classifier(Clipped(4), 3, 3).fit(x, y, epochs=1, verbose=0)


Single = namedtuple("Single", "h total")


class Total(Six):
    """A part of the state that is one number: the sum of all h so far, which nothing reads but the loss."""

    shared = ("total",)

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        return Single(xp.zeros((batch, self.hidden), dtype), xp.zeros((), dtype))

    def encode(self, params, x, mask=None):
        return super().encode(params, x)

    def step(self, params, e, state):
        h = np.tanh(e.s + state.h @ params["U"])
        return Single(h, np.asarray(state.total + h.sum())), Kept(h, h)

    def step_back(self, params, d, e, state, k):
        ds = (d.h + d.total) * (1 - k.tanh**2)
        return Single(ds @ params["U"].T, np.asarray(d.total + 0)), Sums(ds)

    def collect(self, params, x, e, before, k, de):
        return de.s @ params["W"].T, {"W": flat(x).T @ flat(de.s), "U": flat(before.h).T @ flat(de.s)}


def test_a_part_of_the_state_that_is_one_number():
    """With a mask: expected a NumPy array, got float64."""
    assert max(gradcheck.check(Total(4)).values()) < 1e-6
    assert max(gradcheck.check(Total(4), masked=True, batch=1).values()) < 1e-6


@register
@dataclass(frozen=True)
class Misnamed(GRU):
    """A field that overwrites the name of the class in a file."""

    kind: str = "gru"


def test_a_cell_that_would_come_back_as_another_is_refused(tmp_path):
    """`load` gave a plain GRU, without a word."""
    with pytest.raises(TypeError, match=r"^model: .*Misnamed would come back as GRU, by kind or"):
        Classifier(Misnamed(4), 3, 3).save(tmp_path / "model.npz")


@dataclass(frozen=True)
class Penalised(GRU):
    """With a loss of its own at what goes into its gate."""

    def penalty(self, z, mask=None):
        return 20 * (z * z).mean(), 40 * z / z.size

    def step_back(self, params, d, e, state, k, da=0):
        back, de = super().step_back(params, d, e, state, k)
        dz = da * k.z * (1 - k.z)
        return Hidden(back.h + dz @ params["W_h"][0].T), de._replace(z=de.z + dz)

    def step(self, params, e, state):
        h, k = super().step(params, e, state)
        return h, PenalisedKept(*k, k.z)


PenalisedKept = namedtuple("PenalisedKept", "z r n u a")


def test_attribution_explains_the_output_and_no_penalty():
    """The gradients of a cell's penalty were added to those of the output: attributions did not add up."""
    assert max(gradcheck.check(Penalised(4)).values()) < 1e-6
    x = np.random.default_rng(0).standard_normal((3, 5, 3))
    one, other = (Classifier([kind(4), Engram(4, 3)], 3, 2, dtype="float64") for kind in (Penalised, GRU))
    assert_close(*(attribution.integrated_gradients(model, x, tolerance=9) for model in (one, other)), 1e-12)

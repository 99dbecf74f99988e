"""Random problems for every cell: what it is fed, and a random projection of all it puts out as the loss.

Hypothesis draws shapes, switches and a seed; NumPy draws the numbers. Letters as in the package:
T time, B batch, D inputs, H hidden, N memory slots.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from enn_np import (
    GRU,
    LEM,
    LSTM,
    RNN,
    Binding,
    Convolution,
    Engram,
    Window,
    gradcheck,
    run,
    run_back,
    run_in_segments,
)

BASELINES = (RNN, GRU, LSTM, LEM)
MEMORIES = (Engram, Binding)  # cells with slots
KINDS = (*BASELINES, *MEMORIES, Window, Convolution)
sizes = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)

ENGRAM_SWITCHES = {
    "hidden": st.integers(1, 6),
    "slots": st.integers(1, 5),
    "hebbian_rate": st.sampled_from((0.05, 0.5, 0, 1)),
    "trace_scale": st.sampled_from((0.5, 2, 0)),
    "temperature": st.sampled_from((1.5, 0.2)),
    "sparsity": st.sampled_from((0.1, 0, 0.5)),
    "trace_noise": st.sampled_from((0.001, 0.1, 0)),
    "trace_clip": st.sampled_from((0.1, None, 0.03)),
    "layer_norm": st.booleans(),
    "trace": st.sampled_from(("batch", "sample")),
    "retrieval": st.sampled_from(("softmax", "top_k", "sparsemax")),
    "top_k": st.integers(1, 3),
    "l1": st.sampled_from((0, 0.3)),
    "entropy": st.sampled_from((0, 0.2)),
}

BINDING_SWITCHES = {
    "hidden": st.integers(1, 5),
    "slots": st.integers(1, 5),
    "rule": st.sampled_from(("replace", "hebb", "delta")),
    "address": st.sampled_from(("slots", "key")),
    "recurrent_cue": st.booleans(),
    "write_at": st.sampled_from(("previous", "own")),
    "plasticity": st.sampled_from(("gate", "fixed")),
    "rate": st.sampled_from((0.5, 0.05)),
    "decay": st.sampled_from((0.3, 0.01)),
    "learned_decay": st.booleans(),
    "temperature": st.sampled_from((1.0, 0.3)),
    "bank_read": st.booleans(),
    "gated": st.booleans(),
    "trace": st.sampled_from(("sample", "batch")),
}


WINDOW_SWITCHES = {
    "hidden": st.integers(1, 5),
    "slots": st.integers(1, 4),
    "window": st.integers(1, 5),
    "temperature": st.sampled_from((1.0, 0.3)),
}


def fed(cell, inputs):
    """`inputs`, or how many features a cell takes that takes no other number."""
    return cell.hidden if isinstance(cell, Convolution) else inputs


def make(kind, hidden, slots):
    """A cell of these sizes, with its other settings as they come."""
    return kind(hidden, slots) if issubclass(kind, MEMORIES) else kind(hidden)


def cells(kind, **fixed):
    """Cells of one kind, those with a memory with all their switches but those that are `fixed`."""
    if issubclass(kind, Engram):
        switches = ENGRAM_SWITCHES | {name: st.just(value) for name, value in fixed.items()}
        return st.fixed_dictionaries(switches).map(lambda drawn: engram(drawn, kind))
    if kind is Binding:
        own = {name: st.just(value) for name, value in fixed.items() if name in BINDING_SWITCHES}
        return st.fixed_dictionaries(BINDING_SWITCHES | own).map(binding)
    if kind is Window:
        own = {name: st.just(value) for name, value in fixed.items() if name in WINDOW_SWITCHES}
        return st.fixed_dictionaries(WINDOW_SWITCHES | own).map(lambda switches: Window(**switches))
    own = {LEM: {"dt": st.sampled_from((1.0, 0.3))}, Convolution: {"width": st.integers(2, 4)}}
    return st.builds(kind, sizes, **own.get(kind, {}))


def binding(switches):
    """A Binding cell. An address that is the key itself has no slots to replace."""
    key = {"rule": "hebb" if switches["rule"] == "replace" else switches["rule"]}
    return Binding(**switches | (key if switches["address"] == "key" else {}))


def engram(switches, kind=Engram):
    """An Engram cell. With one hidden unit all cosines are 1 or -1, and rounding decides which are the top."""
    hidden = max(switches["hidden"], 2 if switches["retrieval"] == "top_k" else 1)
    return kind(**switches | {"hidden": hidden, "top_k": min(switches["top_k"], switches["slots"])})


@dataclass(frozen=True)
class Problem:
    """A cell, its inputs, and the gradient of the loss at everything that comes out of it.

    loss = sum(h * dh) + sum(part * its dstate) over the final state + sum(a * da) over Engram's weights a.
    given: further arguments of `run` (noise); upstream: further arguments of `run_back` (da).
    """

    cell: Any
    params: dict
    x: np.ndarray
    state: Any
    mask: Any
    given: dict
    dh: np.ndarray
    dstate: Any
    upstream: dict

    def __repr__(self):
        mask = None if self.mask is None else self.mask.tolist()
        return f"Problem({self.cell}, x {self.x.shape}, mask {mask})"

    def but(self, **changes):
        """The same problem with some fields replaced."""
        return replace(self, **changes)

    def forward(self, segments=1, **options):
        """h, final state, tape."""
        options |= {"segments": segments} if segments > 1 else {}
        forward = run_in_segments if segments > 1 else run
        return forward(self.cell, self.params, self.x, state=self.state, mask=self.mask, **self.given, **options)

    def backward(self, tape):
        """Gradients of the loss in one dict: parameters, "x", "state.h" and so on."""
        dx, dstate, grads = run_back(self.cell, self.params, tape, self.dh, self.dstate, **self.upstream)
        return {**grads, "x": dx, **_named(dstate)}

    def gradients(self):
        return self.backward(self.forward()[2])

    def values(self):
        """Everything that has a gradient, keyed as `gradients`."""
        return {**self.params, "x": self.x, **_named(self.state)}

    def at(self, values):
        """The same problem elsewhere: at other values, keyed as `values`."""
        state = type(self.state)(*(values[f"state.{name}"] for name in self.state._fields))
        return self.but(params={name: values[name] for name in self.params}, x=values["x"], state=state)

    def loss(self):
        """Its value, and a pattern of zeros and clipped entries that changes only across a kink."""
        h, end, tape = self.forward()
        value = (h * self.dh).sum() + sum((part * d).sum() for part, d in zip(end, self.dstate, strict=True))
        value += (tape.kept.a * self.upstream["da"]).sum() if self.upstream else 0
        clip = getattr(self.cell, "trace_clip", None)
        clipped = [] if clip is None else [abs(tape.states.A) == clip]
        return value, zeros(tape.e, tape.kept) + clipped

    def step(self, t, state):
        """State after step t by `encode` and `step` alone, what `encode` made of x[t], what the step kept."""
        e = self.cell.encode(self.params, self.x[t], **{name: value[t] for name, value in self.given.items()})
        after, k = self.cell.step(self.params, e, state)
        return after, e, k

    def steps(self, start, stop, **changes):
        """The piece of the problem from step `start` to `stop`."""
        piece = slice(start, stop)
        cut = {
            "x": self.x[piece],
            "dh": self.dh[piece],
            "mask": None if self.mask is None else self.mask[piece],
            "given": {name: value[piece] for name, value in self.given.items()},
            "upstream": {name: value[piece] for name, value in self.upstream.items()},
        }
        return self.but(**cut | changes)

    def samples(self, chosen):
        """The problem of some samples of the batch only."""
        per_sample = [name not in self.cell.shared for name in self.state._fields]

        def choose(state):
            parts = zip(state, per_sample, strict=True)
            return type(state)(*(part[chosen] if own else part for part, own in parts))

        return self.but(
            x=self.x[:, chosen],
            state=choose(self.state),
            mask=None if self.mask is None else self.mask[:, chosen],
            dh=self.dh[:, chosen],
            dstate=choose(self.dstate),
            upstream={name: value[:, chosen] for name, value in self.upstream.items()},
        )


def draw(cell, steps=4, batch=3, inputs=2, seed=0, masked=False, dtype=np.float64):
    """A problem whose every number is random, biases too."""
    rng, inputs = np.random.default_rng(seed), fed(cell, inputs)

    def normal(shape, scale=1.0):
        return np.array(scale * rng.standard_normal(shape), dtype)

    def weights(shape):
        """Keeps sums near 1: neither tanh nor a layer norm over few live units swallows all gradients."""
        return normal(shape, 1 / np.sqrt(shape[-2]) if len(shape) > 1 else 1)

    def projection(shape):
        """Keeps the loss near 1 whatever the sizes, so that its differences lose few digits."""
        return normal(shape, 1 / np.sqrt(np.prod(shape)))

    start = cell.initial_state(batch, dtype, None, np)
    mask = rng.random((steps, batch)) < 0.6 if masked else None
    noise = cell.noise(rng, steps, np.float64) if isinstance(cell, Engram) else None
    upstream = {}
    if isinstance(cell, Engram):
        da = projection((steps, batch, cell.slots))
        upstream["da"] = da if mask is None else da * mask[..., None]  # padding is no part of any loss
    return Problem(
        cell,
        params={name: weights(value.shape) for name, value in cell.init(rng, inputs, dtype).items()},
        x=normal((steps, batch, inputs)),
        state=type(start)(*(normal(part.shape, 0.1) for part in start)),
        mask=mask,
        given={} if noise is None else {"noise": noise.astype(dtype)},
        dh=projection((steps, batch, cell.hidden)),
        dstate=type(start)(*(projection(part.shape) for part in start)),
        upstream=upstream,
    )


def problems(kind, masked=None, dtype=np.float64, steps=sizes, batch=sizes, **fixed):
    """Strategy for problems of one kind of cell, with and without padding unless `masked` says which."""
    masks = st.booleans() if masked is None else st.just(masked)
    return st.builds(draw, cells(kind, **fixed), steps, batch, sizes, seeds, masks, st.just(dtype))


def arrays(tree):
    """Every array in nested dicts and tuples."""
    if isinstance(tree, np.ndarray):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    return [array for part in parts for array in arrays(part)]


def zeros(*trees):
    """Where the arrays of `trees` are exactly zero: units that are off, slots that are not read."""
    return [array == 0 for array in arrays(trees)]


def distance(got, want, floor=0.0):
    """Largest difference, relative to the largest entry wanted if that is no zero; NaN is infinitely far.

    floor: below it, entries wanted count as this large.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error, largest = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    return np.inf if np.isnan(error) else float(error / (max(largest, floor) or 1.0))


def assert_close(got, want, tolerance=1e-11, floor=0.0):
    """Every array of `got` equals its partner in `want`, both dicts with equal keys or both sequences."""
    if not isinstance(want, dict):
        got, want = dict(enumerate(got)), dict(enumerate(want))
    assert got.keys() == want.keys()
    far = {name: distance(got[name], want[name], floor) for name in want}
    assert all(error <= tolerance for error in far.values()), far


def assert_same_gradients(got, want, tolerance=1e-10):
    """Close, where gradients far below the loss (about 1) may carry its rounding (narrow layer norms)."""
    assert_close(got, want, tolerance, floor=1e-3)


def assert_same(got, want):
    """Equal to the bit."""
    assert_close(got, want, tolerance=0)


def assert_gradients(ask):
    """`ask(eps)`: errors of differences: from rounding at a small eps, from curvature at a large one.

    A right gradient agrees at one of them, a wrong one at none.
    """
    best = {}
    for eps in (1e-6, 1e-5, 1e-7):
        best = {name: min(error, best.get(name, np.inf)) for name, error in ask(eps).items()}
        if all(error < gradcheck.TOLERANCE for error in best.values()):
            return
    raise AssertionError(best)


def assert_derivatives(loss, values, grads, every=False, size=0.0):
    """`grads` are the derivatives of `loss` at `values`, both keyed alike. size: of what the loss adds up, if more."""
    assert_gradients(lambda eps: gradcheck.compare(loss, values, grads, np.random.default_rng(0), eps, every, size))


def _named(state):
    return {f"state.{name}": part for name, part in zip(state._fields, state, strict=True)}

"""Backpropagation through time: the only two loops over time in the library.

    run       forward in time    e = encode(x);  for t:  state, kept[t] = step(e[t], state)
    run_back  backward in time   for t reversed:  dstate, de[t] = step_back(dstate, ...);  collect

A cell says what one step does and how to undo it. These loops repeat it, keep the states at padding, and pass the
stacked arrays to `collect`. So every weight gradient is one matrix product over all steps.

Index convention: states[t] enters step t, states[t + 1] leaves it. Time comes first: x is (T, B, D).
"""

from collections import namedtuple

from .backend import array_module
from .checks import check_run, check_run_back, check_state, choice, float_array, param_shapes


class Steps:
    """A NamedTuple for each step: steps[t] is that of step t; steps.h is part h of all, (T, ...), made if asked for."""

    def __init__(self, steps=()):
        self._steps = list(steps)

    def __len__(self):
        return len(self._steps)

    def __getitem__(self, t):
        return self._steps[t]

    def __getattr__(self, name):
        if name.startswith("_") or name not in (known := self[0]._fields):
            raise AttributeError(name if name.startswith("_") else f"expected one of {known}, got {name!r}")
        parts = [getattr(step, name) for step in self]
        value = None if parts[0] is None else array_module(parts[0]).stack(parts)
        setattr(self, name, value)  # the next time it is there
        return value

    def stacked(self):
        """All parts, as one NamedTuple."""
        return type(self[0])(*(getattr(self, name) for name in self[0]._fields))


# What a run leaves: its cell; inputs x (T, B, D); e, what `encode` made of x; `Steps`, T + 1 states and T kept; mask.
Tape = namedtuple("Tape", "cell x e states kept mask")


def run(cell, params, x, state=None, mask=None, keep=True, **given):
    """Run `cell` over a sequence.

    x (T, B, D) float array of the parameters' dtype. state: the cell's state, as returned by an earlier piece of the
    same sequence, or None for zeros. mask (T, B) bool: False marks padding, which changes neither state nor gradients,
    whatever x holds there. keep=False drops the tape (prediction). given: further arrays (T, ...) for `encode`, such as
    the trace noise of Engram. Returns h (T, B, H), a part of the tape; the final state; and the tape, None if not kept.
    `cell.record(params, tape)` tells what it did. TypeError or ValueError name the argument, before any work.
    """
    x = check_run(cell, params, x, state, mask)
    xp, (steps, batch, _) = array_module(x), x.shape
    (state,) = named("initial_state", cell.initial_state(batch, x.dtype, None, xp) if state is None else state)
    x, mask = (part if part is None or not keep else part.copy() for part in (x, mask))
    state = each(lambda part: part.copy(), state)  # whose owner may go on to use it, as that of x and mask
    shared = cell.shared if "shared" in dir(cell) else ()  # `getattr` would hide an AttributeError of a property
    given |= {"mask": mask} if [choice("shared", name, state._fields) for name in shared] else {}
    (e,) = named("encode", cell.encode(params, x, **given))
    if hooks := getattr(cell, "hooks", None):
        e, state = hooks.enter(cell, params, e, state, mask, keep)
    states, kept, h = [state], [], []
    for t in range(steps):
        after, k = named("step", *cell.step(params, at(e, t), state))
        if t == 0:
            check_state("step", after, state, x.dtype, computed=True)
        state = hold(cell, mask, t, after, state)
        h.append(state.h)
        if keep:
            states.append(state)
            kept.append(k)
    states, final = Steps(states), each(lambda part: part.copy(), state)
    final = hooks.final(cell, e, final) if hooks else final
    return (states.h[1:], final, Tape(cell, x, e, states, Steps(kept), mask)) if keep else (xp.stack(h), final, None)


def run_back(cell, params, tape, dh=None, dstate=None, input_gradient=True, **upstream):
    """The gradient of a loss through the whole run.

    dh (T, B, H): the loss' gradient at every h, or None. dstate: at the final state (parts may be None), or None.
    input_gradient: False saves the work for dx, where x is data, and returns None for it.
    upstream: at other things a step kept, (T, B, ...), such as da at the retrieval weights of Engram; not at padding.
    Returns dx (T, B, D), the gradient at the initial state, and a dict of gradients keyed as `params`.
    """
    upstream = {name: value for name, value in upstream.items() if value is not None}
    if hasattr(tape, "segments"):  # see stream.py
        return tape.run_back(cell, params, dh, dstate, input_gradient, upstream)
    check_run_back(cell, params, tape, dh, dstate, upstream)
    _, x, e, states, kept, mask = tape
    xp, steps = array_module(x), len(x)
    if mask is not None:
        upstream = {name: xp.where(mask.T, value.T, 0).T for name, value in upstream.items()}
    d = type(states[0])(*(dstate or [None] * len(states[0])))
    d = hooks.turn(e, d) if (hooks := getattr(cell, "hooks", None)) else d
    d = each(lambda start, end: xp.zeros_like(start) if end is None else end.copy(), states[0], d)
    gradients = [None] * steps
    for t in reversed(range(steps)):
        if dh is not None:
            d = d._replace(h=d.h + dh[t])  # h_t is read twice, by the loss and by the next step
        past, now = d, hold(cell, mask, t, d, [0] * len(d))
        back = cell.step_back(params, now, at(e, t), states[t], kept[t], **{k: v[t] for k, v in upstream.items()})
        d, gradients[t] = named("step_back", *back)
        if t == steps - 1:
            check_state("step_back", d, states[0], x.dtype, computed=True)
        if mask is not None:  # the rest passes padding by
            d = each(lambda new, whole, part: xp.asarray(new + (whole - part)), d, past, now)
    d = hooks.leave(e, d) if hooks else d
    before = Steps(states[:-1])
    vars(before).update({name: part[:-1] for name, part in vars(states).items() if part is not None})  # stacked already
    de = Steps(gradients).stacked()
    del gradients, back  # their memory is free for what `collect` stacks
    dx, grads = cell.collect(params, x, e, before, Steps(kept), de)
    grads = {name: xp.asarray(g).astype(x.dtype) for name, g in grads.items()}  # its own each: clipping works in place
    shapes = {name: g.shape for name, g in grads.items()}
    if wrong := dict(shapes.items() ^ param_shapes(cell, x.shape[2]).items()):
        raise ValueError(f"collect: expected one gradient of each parameter's shape, got {shapes}: see {sorted(wrong)}")
    dx = float_array("dx", dx() if callable(dx) else dx, x.shape, x.dtype, finite=False) if input_gradient else None
    return dx, d, grads


def named(method, *parts):
    """`parts`, what a cell's method returned, if each is a NamedTuple."""
    for part in parts:
        if not hasattr(part, "_fields"):
            raise TypeError(f"{method}: expected a NamedTuple of arrays, got {type(part).__name__}")
    return parts


def each(function, tree, *others):
    """`function` of every part of a NamedTuple, and of what stands at its place in others; None stays None."""
    parts = zip(tree, *others, strict=True)
    return type(tree)(*(None if part is None else function(part, *more) for part, *more in parts))


def at(tree, t):
    """Entry t of every array in a NamedTuple; parts that are no arrays stay as they are."""
    return type(tree)(*(part[t] if hasattr(part, "dtype") else part for part in tree))


def hold(cell, mask, t, new, old):
    """`new` at step t, but `old` at padding. What the batch shares is `new` as long as one sample is alive."""
    if mask is None:
        return new

    def held(one, other, name):
        live = mask[t].any() if name in getattr(cell, "shared", ()) else mask[t].reshape(-1, *[1] * (one.ndim - 1))
        return array_module(one).where(live, one, other)

    return each(held, new, old, new._fields)

"""Backpropagation through time: the only two loops over time in the library.

    run       forward in time    e = encode(x);  for t:  state, kept[t] = step(e[t], state)
    run_back  backward in time   for t reversed:  dstate, de[t] = step_back(dstate, ...);  collect

A cell says what one step does and how to undo it; these loops repeat it, hold the states of padded steps, and hand
the stacked arrays to `collect`, so that every weight gradient is one matrix product over all steps.

Index convention: states[t] enters step t, states[t + 1] leaves it. Time comes first: x is (T, B, D).
"""

from itertools import pairwise
from typing import Any, NamedTuple

from .backend import Workspace, array_module
from .checks import check_run, check_run_back, count


class Tape(NamedTuple):
    """What a run leaves behind: all that `run_back` needs, and all there is to see of the memory.

    x (T, B, D) inputs; e what `encode` made of them; states, the cell's state with T + 1 entries per part;
    kept, what every step kept, T entries per part; mask (T, B) or None; workspace, and which of its runs this was.
    """

    x: Any
    e: Any
    states: Any
    kept: Any
    mask: Any
    workspace: Any
    number: int


class Pieces(NamedTuple):
    """The tape of a run in segments: for each piece, what `run` has to be called with again."""

    pieces: list
    workspace: Any


def run(cell, params, x, state=None, mask=None, keep=True, workspace=None, segments=1, record=False, **given):
    """Run `cell` over a sequence.

    x (T, B, D) float array of the parameters' dtype. state: the cell's state, as returned by an earlier piece of the
    same sequence, or None for zeros. mask (T, B) bool: False marks padding, which changes neither state nor gradients.
    keep=False drops the tape (prediction). workspace: a `Workspace` to reuse. segments: cut time into so many pieces
    and keep only the state at each cut; `run_back` then runs each piece again. About sqrt(T) pieces need the least
    memory. given: further arrays (T, ...) for `encode`, such as the trace noise of Engram.
    Returns h (T, B, H), the final state, the tape (None if not kept) and, if asked to record, a dict: `cell.record`.
    Raises TypeError or ValueError, naming the argument, before any work.
    """
    check_run(cell, params, x, state, mask)
    if record and not (keep and segments == 1):
        raise ValueError(f"record: it needs the whole tape, got keep={keep}, segments={segments}; leave these out")
    xp, (steps, batch, _) = array_module(x), x.shape
    state = cell.initial_state(batch, x.dtype, xp=xp) if state is None else state
    if keep and count("segments", segments) > 1:
        return _run_pieces(cell, params, x, state, mask, workspace, segments, given)
    workspace = workspace or Workspace()
    cue = workspace.empty("cue", cell.shapes(batch)[0], x, (steps,)) if keep else None
    e = cell.encode(params, x, mask=mask, out=cue, **given)
    e, state = cell.enter(params, e, state, mask, keep)
    if not keep:
        h = xp.empty((steps, *state.h.shape), x.dtype)
        for t in range(steps):
            before = state
            state, _ = cell.step(params, at(e, t), before)
            hold(cell, mask, t, state, before)
            h[t] = state.h
        return h, cell.final(e, state), None
    workspace.runs += 1
    states = workspace.empty("states", each(lambda part: part.shape, state), x, (steps + 1,))
    for parts, part in zip(states, state, strict=True):
        if part is not None:
            parts[0] = part
    kept = workspace.empty("kept", cell.shapes(batch)[1]._replace(**dict.fromkeys(states._fields)), x, (steps,))
    kept = kept._replace(**each(lambda parts: parts[1:], states)._asdict())
    for t in range(steps):
        after, _ = cell.step(params, at(e, t), at(states, t), at(kept, t))
        hold(cell, mask, t, after, at(states, t))
    final = cell.final(e, each(lambda parts: parts[steps].copy(), states))
    tape = Tape(x, e, states, kept, mask, workspace, workspace.runs)
    return (states.h[1:], final, tape, *([cell.record(params, tape)] if record else ()))


def run_back(cell, params, tape, dh=None, dstate=None, input_gradient=True, **upstream):
    """The gradient of a loss through the whole run.

    dh (T, B, H): the loss' gradient at every h, or None. dstate: at the final state (parts may be None), or None.
    input_gradient: False spares dx where x is data, which nobody differentiates, and hands back None for it.
    upstream: at other things a step kept, (T, ...) each, such as da at the retrieval weights of Engram.
    Returns dx (T, B, D), the gradient at the initial state, and a dict of gradients keyed as `params`.
    Raises RuntimeError if the tape's workspace has served another run since.
    """
    if isinstance(tape, Pieces):
        return _run_back_pieces(cell, params, tape, dh, dstate, input_gradient, upstream)
    check_run_back(cell, tape, dh, dstate, upstream)
    x, e, states, kept, mask, workspace, number = tape
    if workspace.runs != number:
        raise RuntimeError("tape: its workspace has been used by a later run; go back before running again")
    xp, (steps, batch, _) = array_module(x), x.shape
    d = cell.turn(e, type(states)(*(dstate or [None] * len(states))))
    zeros = each(lambda part: xp.zeros_like(part[0]), states)
    d = type(d)(*(zero if part is None else part + zero for part, zero in zip(d, zeros, strict=True)))
    turned = {f"{name}'": xp.ascontiguousarray(params[name].swapaxes(-1, -2)) for name in cell.loop_weights}
    params = {**params, **turned}
    de = workspace.empty("gradient", cell.shapes(batch)[2], x, (steps,))
    for t in reversed(range(steps)):
        if dh is not None:
            # h_t is read twice, by the loss and by the next step: its two gradients add up.
            d = d._replace(h=d.h + dh[t])
        d, skipped = release(cell, mask, t, d)
        extra = {name: value[t] for name, value in upstream.items()}
        d, _ = cell.step_back(params, d, at(e, t), at(states, t), at(kept, t), at(de, t), **extra)
        if skipped is not None:
            d = type(d)(*(part if past is None else part + past for part, past in zip(d, skipped, strict=True)))
    d, de = cell.leave(e, d, de)
    before = each(lambda part: part[:steps], states)
    dx, grads = cell.collect(params, x, e, before, kept, de, input_gradient)
    return dx, d, grads


def _run_pieces(cell, params, x, state, mask, workspace, segments, given):
    """`run` without a tape, piece by piece, noting the state that enters each."""
    cuts = [len(x) * i // segments for i in range(segments + 1)]
    h, pieces = array_module(x).empty((len(x), *state.h.shape), x.dtype), []
    for start, stop in pairwise(cuts):
        if start < stop:
            part = slice(start, stop)
            cut = {name: None if value is None else value[part] for name, value in given.items()}
            pieces.append((part, x[part], state, None if mask is None else mask[part], cut))
            h[part], state, _ = run(cell, params, *pieces[-1][1:4], keep=False, **cut)
    return h, state, Pieces(pieces, workspace or Workspace())


def _run_back_pieces(cell, params, tape, dh, dstate, input_gradient, upstream):
    """`run_back` from the last piece to the first: each is run again, then undone, in the same workspace."""
    dxs, total = [], {}
    for part, x, state, mask, given in reversed(tape.pieces):
        _, _, piece = run(cell, params, x, state, mask, workspace=tape.workspace, **given)
        cut = {name: value[part] for name, value in upstream.items()}
        above = None if dh is None else dh[part]
        dx, dstate, grads = run_back(cell, params, piece, above, dstate, input_gradient, **cut)
        dxs.insert(0, dx)
        total = {name: grads[name] + total[name] if total else grads[name] for name in grads}
    return array_module(x).concatenate(dxs) if input_gradient else None, dstate, total


def each(function, tree):
    """`function` of every part of a NamedTuple; None stays None."""
    return type(tree)(*(None if part is None else function(part) for part in tree))


def at(tree, t):
    """Entry t of every array in a NamedTuple; what is one for all steps stays."""
    return type(tree)(*(part[t] if hasattr(part, "dtype") else part for part in tree))


def hold(cell, mask, t, after, before):
    """Where step t is padding, overwrite the state after it by the state before it."""
    if mask is not None:
        for live, new, old in zip(_alive(cell, mask, t, after), after, before, strict=True):
            if new is not None:
                array_module(new).copyto(new, old, where=~live)


def release(cell, mask, t, d):
    """The mirror of `hold`: the gradient that enters step t, and the one that passes padding by (None if none)."""
    if mask is None:
        return d, None
    xp, alive = array_module(d.h), list(_alive(cell, mask, t, d))
    entering = [None if part is None else xp.where(live, part, 0) for live, part in zip(alive, d, strict=True)]
    passing = [None if part is None else xp.where(live, 0, part) for live, part in zip(alive, d, strict=True)]
    return type(d)(*entering), type(d)(*passing)


def _alive(cell, mask, t, state):
    """For every part of the state a mask that broadcasts: per sample, or "anyone" for what the batch shares."""
    for name, part in zip(state._fields, state, strict=True):
        ones = [1] * (getattr(part, "ndim", 1) - 1)
        yield mask[t].any() if name in cell.shared else mask[t].reshape(-1, *ones)

"""Backpropagation through time: the only two loops over time in the library.

    run       forward in time    e = encode(x);  for t:  state, kept[t] = step(e[t], state)
    run_back  backward in time   for t reversed:  dstate, de[t] = step_back(dstate, ...);  collect

A cell says what one step does and how to undo it; these loops repeat it, hold the states of padded steps, and hand
the stacked arrays to `collect`, so that every weight gradient is one matrix product over all steps.

Index convention: states[t] enters step t, states[t + 1] leaves it. Time comes first: x is (T, B, D).
"""

from typing import Any, NamedTuple

from .backend import Workspace, array_module
from .checks import check_run, check_run_back, count, param_shapes


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

    def fresh(self, use="look at it"):
        """The tape. Raises RuntimeError if its workspace has served another run since."""
        if self.workspace.runs != self.number:
            raise RuntimeError(f"tape: its workspace has been used by a later run; {use} before running again")
        return self


class Pieces(NamedTuple):
    """The tape of a run in segments: for each piece, what `run` has to be called with again."""

    pieces: list
    workspace: Any


def run(cell, params, x, state=None, mask=None, keep=True, workspace=None, segments=1, record=False, **given):
    """Run `cell` over a sequence.

    x (T, B, D) float array of the parameters' dtype. state: the cell's state, as returned by an earlier piece of the
    same sequence, or None for zeros. mask (T, B) bool: False marks padding, which changes neither state nor gradients,
    whatever x holds there. keep=False drops the tape (prediction). workspace: a `Workspace` for tape and h, which the
    next run with it overwrites. segments: cut time into so many pieces and keep only the state at each cut; `run_back`
    then runs each piece again. About sqrt(T) pieces need the least memory. given: further arrays (T, ...) for `encode`,
    such as the trace noise of Engram.
    Returns h (T, B, H), the final state, the tape (None if not kept) and, if asked to record, a dict: `cell.record`.
    Raises TypeError or ValueError, naming the argument, before any work.
    """
    x = check_run(cell, params, x, state, mask)
    if record and not hasattr(cell, "record"):
        raise TypeError(f"record: {type(cell).__name__} has no method `record`; derive it from enn_np.Cell")
    if record and not (keep and segments == 1):
        raise ValueError(f"record: it needs the whole tape, got keep={keep}, segments={segments}; leave these out")
    xp, (steps, batch, _) = array_module(x), x.shape
    state = cell.initial_state(batch, x.dtype, None, xp) if state is None else state
    x = x.copy() if keep else x  # it may show a workspace, which another run overwrites
    if keep and count("segments", segments) > 1:
        return _run_pieces(cell, params, x, state, mask, workspace, segments, given)
    rows = steps if keep else 1  # without a tape one row of arrays serves all steps
    workspace = workspace if keep and workspace else Workspace()
    workspace.runs += 1  # before anything is overwritten
    if hasattr(cell, "shapes"):
        given |= {"mask": mask, "out": workspace.empty("cue", cell.shapes(batch)[0], x, (steps,))}
    e = cell.encode(params, x, **given)
    if hasattr(cell, "enter"):
        e, state = cell.enter(params, e, state, mask, keep)
    h, kept = None if keep else xp.empty((steps, *state.h.shape), x.dtype), [None] * rows
    states = workspace.empty("states", each(lambda part: part.shape, state), x, (rows + 1,))
    put(at(states, 0), state)
    if hasattr(cell, "shapes"):
        shapes = cell.shapes(batch)[1]
        after = each(lambda parts: parts[1:], states)._asdict()  # kept where they are
        same = {name: parts for name, parts in after.items() if name in shapes._fields}
        kept = workspace.empty("kept", shapes._replace(**dict.fromkeys(same)), x, (rows,))._replace(**same)
    for t in range(steps):
        row = t if keep else 0
        before = at(states, row)
        after, k = note(kept, row, cell.step, params, at(e, t), before)
        after = hold(cell, mask, t, after, before)
        for name, part, parts in zip(after._fields, after, states, strict=True):
            if part is not getattr(k, name, None):  # not there already
                parts[row + 1] = part
        if not keep:
            h[t] = states.h[1]
            put(before, at(states, 1))
    final = each(lambda parts: parts[rows].copy(), states)
    final = cell.final(e, final) if hasattr(cell, "final") else final
    tape = Tape(x, e, states, stack(kept), mask, workspace, workspace.runs) if keep else None
    return (states.h[1:] if keep else h, final, tape, *([cell.record(params, tape)] if record else ()))


def run_back(cell, params, tape, dh=None, dstate=None, input_gradient=True, **upstream):
    """The gradient of a loss through the whole run.

    dh (T, B, H): the loss' gradient at every h, or None. dstate: at the final state (parts may be None), or None.
    input_gradient: False spares dx where x is data, which nobody differentiates, and hands back None for it.
    upstream: at other things a step kept, (T, B, ...), such as da at the retrieval weights of Engram; not at padding.
    Returns dx (T, B, D), the gradient at the initial state, and a dict of gradients keyed as `params`.
    Raises RuntimeError if the tape's workspace has served another run since.
    """
    upstream = {name: value for name, value in upstream.items() if value is not None}
    if isinstance(tape, Pieces):
        return _run_back_pieces(cell, params, tape, dh, dstate, input_gradient, upstream)
    check_run_back(cell, tape, dh, dstate, upstream)
    x, e, states, kept, mask, workspace, _ = tape.fresh("go back")
    xp, (steps, batch, inputs) = array_module(x), x.shape
    if mask is not None:
        upstream = {name: xp.where(mask.T, value.T, 0).T for name, value in upstream.items()}
    ends = [None if end is None else end.copy() for end in dstate or [None] * len(states)]
    d = cell.turn(e, type(states)(*ends)) if hasattr(cell, "turn") else type(states)(*ends)
    zeros = each(lambda part: xp.zeros_like(part[0]), states)
    d = type(d)(*(zero if end is None else end for end, zero in zip(d, zeros, strict=True)))
    for name in getattr(cell, "loop_weights", ()):
        params = {**params, f"{name}'": xp.ascontiguousarray(params[name].swapaxes(-1, -2))}
    de = workspace.empty("gradient", cell.shapes(batch)[2], x, (steps,)) if hasattr(cell, "shapes") else [None] * steps
    for t in reversed(range(steps)):
        if dh is not None:
            # h_t is read twice, by the loss and by the next step: its two gradients add up.
            d = d._replace(h=d.h + dh[t])
        past, now = d, hold(cell, mask, t, d, each(lambda part: 0, d))
        extra = {name: value[t] for name, value in upstream.items()}
        d, _ = note(de, t, cell.step_back, params, now, at(e, t), at(states, t), at(kept, t), **extra)
        if mask is not None:  # the rest passes padding by
            rest = zip(d, past, now, strict=True)
            d = type(d)(*(None if new is None else new + (whole - part) for new, whole, part in rest))
    if hasattr(cell, "leave"):
        d, de = cell.leave(e, d, de)
    before = each(lambda part: part[:steps], states)
    dx, grads = cell.collect(params, x, e, before, kept, stack(de), *[input_gradient] * hasattr(cell, "shapes"))
    shapes = {name: getattr(g, "shape", None) for name, g in grads.items()}
    if wrong := shapes.items() ^ param_shapes(cell, inputs).items():
        wrong = ", ".join(sorted({name for name, _ in wrong}))
        raise ValueError(f"collect: expected one gradient of the shape of each parameter, got {shapes}: see {wrong}")
    return dx if input_gradient else None, d, grads


def _run_pieces(cell, params, x, state, mask, workspace, segments, given):
    """`run` without a tape, piece by piece, noting the state that enters each."""
    h, pieces = array_module(x).empty((len(x), *state.h.shape), x.dtype), []
    segments = min(segments, len(x))
    for i in range(segments):
        part = slice(len(x) * i // segments, len(x) * (i + 1) // segments)
        cut, state = sliced(given, part, len(x)), type(state)(*(value.copy() for value in state))
        pieces.append((part, x[part], state, None if mask is None else mask[part], cut))
        h[part], state, _ = run(cell, params, *pieces[-1][1:4], keep=False, **cut)
    return h, state, Pieces(pieces, workspace or Workspace())


def _run_back_pieces(cell, params, tape, dh, dstate, input_gradient, upstream):
    """`run_back` from the last piece to the first: each is run again, then undone, in the same workspace."""
    dxs, total = [], {}
    steps = tape.pieces[-1][0].stop
    for part, x, state, mask, given in reversed(tape.pieces):
        cut = sliced({"dh": dh, **upstream}, part, steps)
        _, _, piece = run(cell, params, x, state, mask, workspace=tape.workspace, **given)
        dx, dstate, grads = run_back(cell, params, piece, dstate=dstate, input_gradient=input_gradient, **cut)
        dxs.insert(0, dx)
        total = {name: grads[name] + total[name] if total else grads[name] for name in grads}
    return array_module(x).concatenate(dxs) if input_gradient else None, dstate, total


def each(function, tree):
    """`function` of every part of a NamedTuple; None stays None."""
    return type(tree)(*(None if part is None else function(part) for part in tree))


def at(tree, t):
    """Entry t of every array in a NamedTuple; what is there for all steps stays."""
    return type(tree)(*(part[t] if hasattr(part, "dtype") else part for part in tree))


def sliced(arrays, part, steps):
    """Piece `part` of all arrays, which must be `steps` long."""
    for name, value in arrays.items():
        if value is not None and (shape := getattr(value, "shape", ()))[:1] != (steps,):
            raise ValueError(f"{name}: expected {steps} steps, as many as x has, got shape {shape}")
    return {name: None if value is None else value[part] for name, value in arrays.items()}


def note(rows, t, step, *arguments, **more):
    """Take a step, and note in row t what it hands back to be kept: where a cell asked for arrays by `shapes`, it is
    given that row to write into; else `rows` is a list. Returns the state, or its gradient, and the row or None."""
    if isinstance(rows, list):
        state, rows[t] = step(*arguments, **more)
        return state, None
    row = at(rows, t)
    state, values = step(*arguments, row, **more)
    put(row, values)
    return state, row


def put(places, values):
    """Copy `values` to their places, unless they are there."""
    for place, value in zip(places, values, strict=True):
        if place is not value:
            place[...] = value


def stack(rows):
    """Rows as arrays, where they were listed."""
    if not isinstance(rows, list):
        return rows
    return type(rows[0])(*(None if p[0] is None else array_module(p[0]).stack(p) for p in zip(*rows, strict=True)))


def hold(cell, mask, t, new, old):
    """`new` at step t, or where that is padding `old`; what the batch shares is new while anyone is alive."""
    if mask is None:
        return new
    parts = []
    for name, one, other in zip(new._fields, new, old, strict=True):
        if one is None:
            parts.append(None)
            continue
        live = mask[t].any() if name in getattr(cell, "shared", ()) else mask[t].reshape(-1, *[1] * (one.ndim - 1))
        parts.append(array_module(one).where(live, one, other))
    return type(new)(*parts)

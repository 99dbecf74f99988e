"""A sequence in parts: step by step as it comes, or in segments of which only the first states are kept.

`Stream` is a cell at work. `run_in_segments` trades time for memory: backpropagation runs every segment again, so that
the tape is that of one segment. Both are the loops of bptt.py, cut.
"""

from dataclasses import replace

import numpy as np

from .backend import array_module
from .bptt import each, run, run_back
from .checks import check_run, count, float_array, param_shapes


def run_in_segments(cell, params, x, segments, state=None, mask=None, **given):
    """As `run`, with a tape of the state at each of so many cuts, `segments` (T at most): `run_back` runs each segment
    again. About sqrt(T) of them need the least memory."""
    x, h, tape = check_run(cell, params, x, state, mask).copy(), [], Segments(cell)
    xp, T, given = array_module(x), len(x), {"mask": mask, **given}
    given = {name: value.copy() if hasattr(value, "copy") else value for name, value in given.items()}
    state = cell.initial_state(x.shape[1], x.dtype, None, xp) if state is None else state
    state = each(lambda part: part.copy(), state)  # its owner may go on to use it
    for i in range(n := min(count("segments", segments), T)):
        part = slice(T * i // n, T * (i + 1) // n)
        tape.segments.append((part, {"x": x[part], "state": state, **_cut(given, part, T)}))
        rows, state, _ = run(cell, params, keep=False, **tape.segments[-1][1])
        h.append(rows)
    return xp.concatenate(h), state, tape


class Segments:
    """The tape of a run in segments: of each its steps, and what `run` has to be called with again."""

    def __init__(self, cell):
        self.cell, self.segments = cell, []

    def __getattr__(self, name):
        raise AttributeError(f"tape: a run in segments has no {name!r}, its steps are not kept; see `run`")

    def run_back(self, cell, params, dh, dstate, input_gradient, upstream):
        """From the last segment to the first: each is run again, then undone."""
        dxs, total, T = [], {}, self.segments[-1][0].stop
        for part, again in reversed(self.segments):
            cut = _cut({"dh": dh, **upstream}, part, T)
            tape = run(self.cell, params, **again)[2]  # which `run_back` compares with `cell`
            dx, dstate, grads = run_back(cell, params, tape, dstate=dstate, input_gradient=input_gradient, **cut)
            dxs.insert(0, dx)
            total = {name: grads[name] + total[name] if total else grads[name] for name in grads}
        return array_module(again["x"]).concatenate(dxs) if input_gradient else None, dstate, total


def _cut(arrays, part, T):
    """Steps `part` of all arrays, which must be T long."""
    for name, value in arrays.items():
        if value is not None and (shape := getattr(value, "shape", ()))[:1] != (T,):
            raise ValueError(f"{name}: expected {T} steps, as many as x has, got shape {shape}")
    return {name: None if value is None else value[part] for name, value in arrays.items()}


class Stream:
    """A cell at work on a signal as it comes.

        stream = Stream(cell, params)
        for x_t in signal:  h = stream(x_t)     # x_t (B, D), h (B, H)

    batch: B, how many signals side by side. state: where to go on, as `run` returns it, or None for zeros;
    `stream.state` is the state now. inputs: D, if no parameter has an axis of this size, or several could be it.
    What it hands out is never overwritten. TypeError or ValueError name the argument.
    """

    def __init__(self, cell, params, batch=1, state=None, inputs=None):
        if not isinstance(params, dict):
            raise TypeError(f"params: expected a dict of arrays as `init` returns, got {params!r}")
        W = next(iter(params.values()), np.zeros(1, np.float32))
        found = {name: getattr(value, "shape", ()) for name, value in params.items()}
        sizes = getattr(cell, "hidden", 1), *{n for shape in found.values() for n in shape if n}  # H: Convolution
        D = next((n for n in sizes if param_shapes(cell, n).items() <= found.items()), 1) if inputs is None else inputs
        listed = getattr(cell, "store", None) == "list" and cell.hooks
        cell = replace(cell, store="dense") if listed else cell  # nobody collects a list here
        self.cell, self.params, self.shape = cell, params, (count("batch", batch), count("inputs", D))
        check_run(cell, params, array_module(W).zeros((1, *self.shape), W.dtype), state)
        state = cell.initial_state(batch, W.dtype, None, array_module(W)) if state is None else state
        self.state = each(lambda part: part.copy(), state)

    def __call__(self, x_t, **given):
        """One step: x_t (B, D), and further arrays for `encode`, such as the noise (N, H) of Engram's trace."""
        float_array("x_t", x_t, self.shape, self.state.h.dtype)
        if given.pop("mask", None) is not None:
            raise TypeError("mask: a stream has no padding; feed real steps alone, or use run(..., mask=mask)")
        e = self.cell.encode(self.params, x_t, **given)
        self.state, _ = self.cell.step(self.params, e, self.state)
        return self.state.h.copy()

"""Is a hand-written gradient right? Ask the loss itself, by central differences in float64.

    (L(p + eps v) - L(p - eps v)) / (2 eps)   against   <dL/dp, v>

`check(cell)` asks this of every parameter, the input and the initial state of any cell that follows the protocol,
yours too. `compare` asks it of any loss over a dict of arrays.

A function with kinks (ReLU, clip, top-k) has no derivative at a kink. Where a difference steps across one, the check
draws its numbers again. It sees this in the pattern of exact zeros and clipped entries, never in the answer.
"""

from contextlib import suppress

import numpy as np

from .backend import to_device, to_numpy
from .bptt import named, run, run_back
from .checks import count, number, param_shapes

TOLERANCE = 1e-6


class Kink(Exception):
    """The difference stepped over a kink of the loss."""


def compare(loss, values, grads, rng, eps=1e-6, every=False, size=0.0):
    """Relative errors of `grads` against central differences of `loss`, a dict with the keys of `grads`.

    loss: function of a dict of float64 arrays that returns (value, pattern), the pattern a list of arrays that change
    only across a kink (or None). values: where to look. grads: the gradients there. rng: draws the direction v.
    every: ask each coordinate by itself, in place of one random direction. The error of one array is the largest
    |difference - <g, v>| over |g| |v|, and infinite where anything is not finite. A difference is no finer than the
    rounding of |loss| over eps; size: of what the loss adds up, if that is more. Raises Kink where it meets one.
    """
    (value, here), errors = loss(values), {}
    rounding = 4 * np.finfo(float).eps * max(abs(value), size) / eps
    for name, g in grads.items():
        g, shape = np.asarray(g), values[name].shape if name in values else "of a value with this name"
        if g.shape != shape:
            raise ValueError(f"grads[{name!r}]: expected shape {shape}, got {g.shape}")
        errors[name] = 0.0 if all(np.isfinite(part).all() for part in (value, g, values[name])) else np.inf
        if errors[name]:
            continue
        scale = float(max(np.hypot.reduce(g, axis=None), rounding / TOLERANCE, np.finfo(float).tiny))
        for v in np.eye(g.size).reshape(-1, *g.shape) if every else [rng.standard_normal(g.shape)]:
            v = v / np.linalg.norm(v)
            ends = [loss({**values, name: np.array(values[name] + step * v)}) for step in (eps, -eps)]
            if here is not None and any((a != b).any() for _, there in ends for a, b in zip(here, there, strict=True)):
                raise Kink(name)
            difference = (float(ends[0][0]) - float(ends[1][0])) / (2 * eps)
            error = abs(difference - float((g * v).sum())) / max(scale, abs(difference))
            errors[name] = max(errors[name], error if error >= 0 else np.inf)  # NaN >= 0 is False
    return errors


def check(cell, inputs=3, batch=2, steps=4, seed=0, masked=False, every=False, eps=1e-6, device="cpu"):
    """Check all gradients of `cell` through `run` and `run_back`: {name: relative error}, to hold below 1e-6.

    Names: the parameters, "x", and "state.<part>" for the initial state. The loss is a random projection of every
    hidden state and of every part of the final state, plus the cell's penalty. All is random, biases too, and drawn
    again at kinks, up to 50 times. A cell that cuts a gradient on purpose fails. A ReLU that is off hides what lies
    behind it: ask several seeds. inputs D, batch B, steps T; masked: random padding; device: where, "cpu" or "cuda".
    """
    sizes, _ = (count("steps", steps), count("batch", batch), count("inputs", inputs)), number("eps", eps, above=0)
    param_shapes(cell, inputs)  # which names a class in place of a cell
    for rng in (np.random.default_rng([seed, attempt]) for attempt in range(50)):
        loss, values, grads, size = _problem(cell, *sizes, masked, rng, device)
        with suppress(Kink):  # else draw again
            return compare(loss, values, grads, rng, eps, every, size)
    raise RuntimeError("50 draws in a row lay on a kink; try another seed or smaller sizes")


def _problem(cell, steps, batch, inputs, masked, rng, device):
    """A random loss over the cell's run, the values it is asked at, and the hand-written gradients there."""
    values = {k: np.array(rng.standard_normal(v.shape)) for k, v in cell.init(rng, inputs, np.float64).items()}
    names, state = list(values), *named("initial_state", cell.initial_state(batch, np.float64, None, np))
    values["x"] = rng.standard_normal((steps, batch, inputs))
    values |= {f"state.{k}": np.array(0.1 * rng.standard_normal(part.shape)) for k, part in state._asdict().items()}
    mask = rng.random((steps, batch)) < 0.6 if masked else None
    noise = cell.noise(rng, steps, np.float64) if hasattr(cell, "noise") else None
    given = {} if noise is None else {"noise": noise}
    projection = rng.standard_normal((steps, *state.h.shape)) / np.sqrt(steps * state.h.size)
    final = [np.array(rng.standard_normal(part.shape) / np.sqrt(part.size)) for part in state]  # of shape (), too
    mask, given, projection, final = to_device((mask, given, projection, final), device)

    def forward(values):
        values = to_device(values, device)
        params, start = {name: values[name] for name in names}, [values[f"state.{name}"] for name in state._fields]
        h, end, tape = run(cell, params, values["x"], type(state)(*start), mask, **given)
        penalty, da = cell.penalty(tape.kept.a, mask) if hasattr(cell, "penalty") else (0.0, None)
        terms = [h * projection, *(part * V for part, V in zip(end, final, strict=True))]
        return params, tape, sum(term.sum() for term in terms) + penalty, da, sum(abs(term).sum() for term in terms)

    def loss(values):
        _, tape, value, *_ = forward(values)
        return float(value), to_numpy(_pattern(cell, tape))

    params, tape, _, da, size = forward(values)
    dx, dstate, grads = run_back(cell, params, tape, projection, final, da=da)
    grads = {**grads, "x": dx, **{f"state.{name}": part for name, part in dstate._asdict().items()}}
    return loss, values, to_numpy(grads), float(size)


def _pattern(cell, tape):
    """Where ReLUs are off, slots unread and the trace clipped: changes only when a kink is crossed."""
    clip = getattr(cell, "trace_clip", None) if "A" in tape.kept[0]._fields else None
    parts = [part for group in (tape.e, *tape.kept) for part in group if hasattr(part, "dtype")]
    return [(part == 0)[None] for part in parts] + ([] if clip is None else [abs(tape.kept.A) == clip])

"""Watchdogs: what goes wrong in training without any error, seen at the batch where it happens.

A loss or gradient that is not finite (it would spoil every weight at the next update), a Hebbian trace that lies on
its clip and so remembers little but signs, and memory slots that nobody reads.
"""

import math
import warnings

import numpy as np

from .backend import array_module

SATURATED = 0.5  # share of the trace on the clip
DEAD = 0.01  # of an even share 1 / N, which no retrieval weight of the slot reaches


def not_finite(loss, grads):
    """None, or in words which of `loss` and the gradients by name is not finite.

    Asked at every batch, so by one product per gradient: NaN or infinity anywhere shows in g . g. On a GPU the question
    would stall the stream; there the numbers of an epoch are looked at, at its end.
    """
    if array_module(next(iter(grads.values()), np.ones(1))) is not np:
        return None
    if not math.isfinite(loss):
        return f"loss became {float(loss)}"
    with np.errstate(over="ignore", invalid="ignore"):
        for name, g in grads.items():
            if not math.isfinite(np.vdot(g, g)):
                bad = g[~np.isfinite(g)]
                what = f"{float(bad.flat[0])} in {bad.size} of {g.size} entries" if bad.size else "too large to square"
                return f"the gradient of {name} became {what}"
    return None


def note_reads(model, read):
    """Keep in `read`, by layer, the largest weight (N,) that each slot has had: a batch reads only a part of them."""
    for i, (cell, tape) in enumerate(zip(model.cells, model.tapes, strict=False)):
        if hasattr(cell, "trace_clip"):  # a sharp address, as Binding has, leaves slots alone by design
            most = tape.kept.a.max((0, 1))  # of a (T, B, N)
            read[i] = array_module(most).maximum(read.get(i, most), most)


def watch_memory(model, warned, read):
    """Warn, once for every name in the set `warned`, of faults in the memory: of the trace as the last learned batch
    left it, and of slots that no batch of an epoch read. read: see `note_reads`, or {} where not all was seen."""
    for i, (cell, tape) in enumerate(zip(model.cells, model.tapes, strict=False)):
        if not hasattr(cell, "trace_clip"):
            continue
        clip = None if tape.states.A is None else cell.trace_clip  # what is kept as a list has met no clip
        share = 0.0 if clip is None else float((abs(tape.states.A[-1]) >= clip).mean())
        dead = int((read[i] < DEAD / cell.slots).sum()) if i in read else 0
        if share > SATURATED and ("saturated", i) not in warned:
            warned.add(("saturated", i))
            what = f"{share:.0%} of its Hebbian trace lies on the clip {clip:g} and keeps little but signs"
            remedy = f"lower hebbian_rate = {cell.hebbian_rate:g} or raise trace_clip"
            warnings.warn(f"cell {i}: {what}; {remedy}", RuntimeWarning, stacklevel=2)
        if dead and ("dead", i) not in warned:
            warned.add(("dead", i))
            never = f"never read: no weight in an epoch reached {DEAD} / slots"
            what = f"{dead} of its {cell.slots} memory slots are {never}"
            remedy = "use fewer slots, or a retrieval that spreads more"
            warnings.warn(f"cell {i}: {what}; {remedy}", RuntimeWarning, stacklevel=2)

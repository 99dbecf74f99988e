"""A cell at work: one step at a time, where the next input is not known yet."""

from dataclasses import replace

from .backend import array_module, empty
from .checks import check_run, count, float_array, param_shapes


class Stream:
    """A cell at work on a signal as it comes.

        stream = Stream(cell, params)
        for x_t in signal:  h = stream(x_t)     # x_t (B, D), h (B, H)

    batch: B, how many signals side by side. state: where to go on, as `run` returns it, or None for zeros;
    `stream.state` is the state now. What it hands out is never overwritten. Raises TypeError or ValueError, naming the
    argument, before any work.
    """

    def __init__(self, cell, params, batch=1, state=None):
        if not isinstance(params, dict) or not params:
            raise TypeError(f"params: expected a dict of arrays as `init` returns, got {params!r}")
        W, found = next(iter(params.values())), {name: getattr(value, "shape", ()) for name, value in params.items()}
        sizes = {n for shape in found.values() for n in shape if n}
        D = next((n for n in sizes if param_shapes(cell, n).items() <= found.items()), 1)
        listed = hasattr(cell, "is_listed") and cell.is_listed()
        cell = replace(cell, store="dense") if listed else cell  # nobody collects a list here
        self.cell, self.params, self.shape = cell, params, (count("batch", batch), D)
        check_run(cell, params, array_module(W).zeros((1, *self.shape), W.dtype), state)
        self.arrays = cell.shapes(batch)[:2] if hasattr(cell, "shapes") else None
        self.state = cell.initial_state(batch, W.dtype, None, array_module(W)) if state is None else state

    def __call__(self, x_t, **given):
        """One step: x_t (B, D), and further arrays for `encode`, such as the noise (N, H) of Engram's trace."""
        float_array("x_t", x_t, self.shape, self.state.h.dtype)
        kept = []
        if self.arrays:  # fresh ones at every step, so that what was handed out stays
            out, k = (empty(shapes, x_t) for shapes in self.arrays)
            given, kept = {"mask": None, "out": out, **given}, [k]
        e = self.cell.encode(self.params, x_t, **given)
        self.state, _ = self.cell.step(self.params, e, self.state, *kept)
        return self.state.h.copy()

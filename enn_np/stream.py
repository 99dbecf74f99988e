"""A cell at work: one step at a time, where the next input is not known yet."""

from dataclasses import replace

from .backend import array_module, empty
from .checks import check_params, check_run, count, float_array


class Stream:
    """A cell at work on a signal as it comes, in arrays of its own that are used again at every step.

        stream = Stream(cell, params)
        for x_t in signal:  h = stream(x_t)     # x_t (B, D), h (B, H); the step after the next overwrites h

    batch: B, how many signals side by side. state: where to go on, as `run` returns it, or None for zeros;
    `stream.state` is the state now. Raises TypeError or ValueError, naming the argument, before any work.
    """

    def __init__(self, cell, params, batch=1, state=None):
        check_params(cell, params)
        W = params[cell.input_weight]
        xp, self.shape = array_module(W), (count("batch", batch), W.shape[-2])
        check_run(cell, params, xp.zeros((1, *self.shape), W.dtype), state)
        self.cell, self.params = replace(cell, store="dense") if getattr(cell, "store", "dense") == "list" else cell, params
        self.state = state or cell.initial_state(batch, W.dtype, xp=xp)
        cue, kept, _ = self.cell.shapes(batch)
        # Two sets by turns: the state that a step reads lies in the one, what it writes in the other.
        self.cue, self.kept, self.next = empty(cue, W), empty(kept, W), empty(kept, W)

    def __call__(self, x_t, **given):
        """One step: x_t (B, D), and further arrays for `encode`, such as the noise (N, H) of Engram's trace."""
        float_array("x_t", x_t, self.shape, self.cue[0].dtype)
        e = self.cell.encode(self.params, x_t, out=self.cue, **given)
        self.state, _ = self.cell.step(self.params, e, self.state, self.kept)
        self.kept, self.next = self.next, self.kept
        return self.state.h

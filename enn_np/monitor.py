"""Watching the Hebbian trace: what a fixed probe batch leaves in it, after every epoch of training."""

import numpy as np

from . import checkpoint as storage
from . import checks
from .backend import array_module
from .device import to_numpy
from .engram import Engram
from .train import Callback


def trace_statistics(A, clip=None):
    """Numbers about a trace A (..., N, H): min, max, mean_abs, sd, share_small (|A| < 0.01), share_clipped."""
    size = abs(A)
    return {
        "min": float(A.min()),
        "max": float(A.max()),
        "mean_abs": float(size.mean()),
        "sd": float(A.std()),
        "share_small": float((size < 0.01).mean()),
        "share_clipped": 0.0 if clip is None else float((size >= clip).mean()),
    }


def effective_slots(a):
    """exp(entropy) of retrieval weights a (..., N), averaged: N if all slots are read alike, 1 if only one is."""
    xp = array_module(a)
    entropy = -(a * xp.log(xp.maximum(a, np.finfo(a.dtype).tiny))).sum(-1)
    return float(xp.exp(entropy).mean())


class HebbianTraceMonitor(Callback):
    """After every epoch, run a fixed probe batch x without noise and note what the trace looks like.

    statistics: epochs + 1 dicts, untrained first, see `trace_statistics`, with "effective_slots", "usage_min" and
    "usage_max", the mean weight of the slots used least and most, and "drift", the norm of the change since the epoch
    before; after every epoch they join the history as "trace_min" and so on. traces (epochs + 1, N, H): after the last
    step, untrained first; where every sample has its own trace, their mean. usage (epochs + 1, N): mean weight of every
    slot. trace (N, H) and retrieval (n, T, N): of the model as it is at the end, which may have its best weights back.
    """

    def __init__(self, model, x):
        layers = [i for i, cell in enumerate(model.cells) if isinstance(cell, Engram)]
        if not layers:
            raise ValueError("model: expected one with an Engram cell, got none; only Engram has a trace to watch")
        self.layer, self.cell = layers[0], model.cells[layers[0]]
        self.x, _, _ = model.check_data(x, None)
        self.statistics, self._traces, self._usage = [], [], []
        self._note(model)

    @property
    def traces(self):
        return np.stack(self._traces)

    @property
    def usage(self):
        return np.stack(self._usage)

    def save(self, path, labels=None):
        """Write traces, usage, retrieval, the probe and, if given, its labels (n,) to the .npz file `path`."""
        known = {} if labels is None else {"labels": labels}
        with storage.whole(path) as file:
            np.savez(file, traces=self.traces, usage=self.usage, retrieval=self.retrieval, probe=self.x, **known)

    def on_epoch_end(self, training, logs):
        self._note(training.model)
        training.history.add({f"trace_{name}": value for name, value in self.statistics[-1].items()})

    def state(self):
        return {"statistics": self.statistics, "traces": self.traces, "usage": self.usage}

    def load_state(self, state):
        epochs = len(state["statistics"])
        for name, one in (("traces", self._traces[0]), ("usage", self._usage[0])):
            checks.float_array(name, state[name], (epochs, *one.shape), one.dtype)
        self.statistics, self._traces, self._usage = (list(state[name]) for name in ("statistics", "traces", "usage"))

    def on_end(self, training):
        """The best weights may have come back: look at the model as it is now."""
        self.retrieval, self.trace = self._probe(training.model)

    def _note(self, model):
        self.retrieval, self.trace = self._probe(model)
        A, usage = self.trace, self.retrieval.mean((0, 1))
        numbers = trace_statistics(A, self.cell.trace_clip) | {"effective_slots": effective_slots(self.retrieval)}
        numbers |= {"usage_min": float(usage.min()), "usage_max": float(usage.max())}
        drift = np.linalg.norm(A - self._traces[-1]) if self._traces else 0.0
        self.statistics.append({**numbers, "drift": float(drift)})
        self._traces.append(A)
        self._usage.append(usage)

    def _probe(self, model):
        _, finals, tapes = model.run_cells(model.cell_inputs(model.time_major(self.x)))
        A = to_numpy(finals[self.layer].A)
        return to_numpy(tapes[self.layer].kept.a).swapaxes(0, 1).copy(), A if A.ndim == 2 else A.mean(0)

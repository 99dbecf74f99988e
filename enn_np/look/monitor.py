"""Watching the Hebbian trace: what a fixed probe batch leaves in it, after every epoch of training."""

import numpy as np

from .. import checkpoint as storage
from .. import checks
from ..backend import array_module, to_numpy
from ..engram import Engram
from ..train import Callback, fingerprint


def trace_statistics(A, clip=None):
    """Numbers about a trace A (..., N, H): min, max, mean_abs, sd, share_small (|A| < 0.01), share_clipped."""
    size = abs(A)
    found = {"min": A.min(), "max": A.max(), "mean_abs": size.mean(), "sd": A.std()}
    found |= {"share_small": (size < 0.01).mean(), "share_clipped": 0 if clip is None else (size >= clip).mean()}
    return {name: float(value) for name, value in found.items()}


def slots_per_recall(a):
    """exp(entropy) of retrieval weights a (..., N): N where all slots are read alike, 1 where only one is."""
    xp = array_module(a)
    return xp.exp(-(a * xp.log(xp.maximum(a, np.finfo(a.dtype).tiny))).sum(-1))


def effective_slots(a):
    """The mean of `slots_per_recall`."""
    return float(slots_per_recall(a).mean())


def engram_layer(model):
    """The index of the first Engram layer. ValueError where there is none."""
    layers = [i for i, cell in enumerate(model.cells) if isinstance(cell, Engram)]
    if not layers:
        raise ValueError("model: expected one with an Engram cell, got none; only Engram has a memory to look into")
    return layers[0]


class HebbianTraceMonitor(Callback):
    """After every epoch, run a fixed probe batch x without noise and note what the trace looks like.

    statistics: epochs + 1 dicts, untrained first, see `trace_statistics`, with "effective_slots", "usage_min" and
    "usage_max", the mean weight of the slots used least and most, and "drift", the norm of the change since the epoch
    before; after every epoch they join the history as "trace_min" and so on. traces (epochs + 1, N, H): after the last
    step, untrained first; where every sample has its own trace, their mean. usage (epochs + 1, N): mean weight of every
    slot. trace (N, H) and retrieval (n, T, N): of the model as it is at the end, which may have its best weights back.
    """

    def __init__(self, model, x):
        self.layer = engram_layer(model)
        self.cell = model.cells[self.layer]
        self.x = model.check_data(x, None)[0].copy()  # its owner may go on to use it
        self.statistics, self.traces, self.usage = [], (), ()
        self._note(model)

    def save(self, path, labels=None):
        """Write traces, usage, retrieval, the probe and, if given, its labels (n,) to the .npz file `path`."""
        known = {"traces": self.traces, "usage": self.usage, "retrieval": self.retrieval, "probe": self.x}
        with storage.whole(path) as file:
            np.savez(file, **known if labels is None else {**known, "labels": labels})

    def on_start(self, training):
        if sum(isinstance(each, HebbianTraceMonitor) for each in training.callbacks) > 1:
            raise ValueError("callbacks: expected one HebbianTraceMonitor, its numbers join the history; leave one out")

    def settings(self):
        return super().settings() | {"probe": fingerprint(self.x)}

    def on_epoch_end(self, training, logs):
        self._note(training.model)
        training.history.add({f"trace_{name}": value for name, value in self.statistics[-1].items()})

    def state(self):
        return {"statistics": self.statistics, "traces": self.traces, "usage": self.usage}

    def load_state(self, state):
        for name, one in (("traces", self.traces[0]), ("usage", self.usage[0])):
            checks.float_array(name, state[name], (len(state["statistics"]), *one.shape), one.dtype)
        self.statistics, self.traces, self.usage = list(state["statistics"]), state["traces"], state["usage"]

    def on_end(self, training):
        """The best weights may have come back: look at the model as it is now."""
        self.retrieval, self.trace = self._probe(training.model)

    def _note(self, model):
        self.retrieval, self.trace = self._probe(model)
        A, usage = self.trace, self.retrieval.mean((0, 1))
        numbers = trace_statistics(A, self.cell.trace_clip) | {"effective_slots": effective_slots(self.retrieval)}
        numbers |= {"usage_min": float(usage.min()), "usage_max": float(usage.max())}
        numbers["drift"] = float(np.linalg.norm(A - self.traces[-1])) if self.statistics else 0.0
        self.statistics.append(numbers)
        self.traces, self.usage = np.stack([*self.traces, A]), np.stack([*self.usage, usage])

    def _probe(self, model):
        _, finals, tapes = model.run_cells(model.cell_inputs(model.time_major(self.x)))
        A = to_numpy(finals[self.layer].A)
        return to_numpy(tapes[self.layer].kept.a).swapaxes(0, 1).copy(), A if A.ndim == 2 else A.mean(0)

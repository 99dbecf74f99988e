"""Associative recall: can a network bind what it has seen once? `experiments` with key-value pairs.

    c9 k8 j3 ... ??c -> 9       `tasks.associative_recall`: distinct keys, 10 values; chance is 10%

The rate stays as it is: what keeps the binding cell from 100% is keys that share a slot, not noise that a falling rate
would quiet. A memory has two slots or more for every key.
"""

import numpy as np

from . import checks
from .binding import Binding
from .data.tasks import associative_recall
from .experiments import Task, compare
from .look.attribution import VALUES, written_lengths


class Recall(Task):
    """Associative recall of `size` pairs. Keys: 26 as letters (Ba et al. 2016), and twice the pairs if too few."""

    kind, outputs = "recall", VALUES

    @property
    def keys(self):
        return 26 if self.size <= 26 else 2 * self.size

    @property
    def slots(self):
        return Task.slots if self.size <= 26 else 2 * self.keys

    @property
    def inputs(self):
        return self.keys + VALUES + 1

    def source(self, seed):
        return lambda rng, n, part, phase: associative_recall(rng, n, self.size, self.keys, VALUES)

    def extra(self, model, draw, rng, tests):
        """Of a network that binds, for the picture: the first test sequence asked for each of its keys in turn, its
        symbols (T,), and how long the part of every recall is that each step wrote, (pairs, T - 1). Else nothing."""
        if not isinstance(model.cells[0], Binding):
            return {}
        x = tests[0][0][0]  # (T, D)
        asked = np.repeat(x[None], self.size, axis=0)  # (pairs, T, D)
        asked[:, -1] = x[0 : 2 * self.size : 2]
        tape = model.run_cells(model.time_major(asked))[2][0]
        lengths = written_lengths(model.cells[0], tape, len(x) - 1)
        return {"recalled": {"symbols": x.argmax(-1).tolist(), "lengths": np.round(lengths, 4).tolist()}}


def recall(pairs=(8,), models=None, **settings):
    """`experiments.compare` on associative recall with each number of pairs."""
    return compare([Recall(checks.count("pairs", P)) for P in pairs], models, **settings)

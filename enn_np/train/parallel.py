"""Data parallelism: every worker takes its rows of a batch, and what the workers find is added up before the update.

    mean over n rows = sum over workers of n_r / n (mean over their n_r rows); so with the gradients, which are linear

Everything random is drawn by every worker for the whole batch, and its rows are kept: many do what one does alone, to
rounding. What a batch shares, as Engram's trace, is such a mean at every step, and so is the gradient there, backward.
`Workers` is one process alone, and what any other kind must have; `MPI` is the processes of mpiexec.
"""

import functools
import os
import sys
import time
import traceback
from collections import namedtuple
from inspect import signature

import numpy as np

from ..backend import array_module, to_numpy
from .watch import Diverged

# A generator, the same for every worker, or None; which of a batch's `size` rows are here; `mean` over workers.
Rows = namedtuple("Rows", "whole rows size mean")


def random(rng, shape, dtype):
    """Numbers in [0, 1) of a shape (..., B, H), or (..., B K, H) with K to a row."""
    if not isinstance(rng, Rows):
        return rng.random(shape, dtype)
    *lead, many, width = shape
    start, stop, _ = rng.rows.indices(rng.size)
    each = many // (stop - start)
    return rng.whole.random((*lead, rng.size * each, width), dtype)[..., start * each : stop * each, :]


def start(cell, batch, dtype, rng, xp):
    """A cell's initial state for `batch` rows."""
    whole, rows, size = rng[:3] if isinstance(rng, Rows) else (rng, None, batch)
    state = cell.initial_state(size, dtype, whole, xp)
    return state if rows is None else next(rowwise([cell], [state], lambda part: part[rows]))


def rowwise(cells, states, function):
    """`function` of all parts of the cells' states, but of those that the batch shares."""
    for cell, state in zip(cells, states, strict=True):
        parts, shared = zip(state._fields, state, strict=True), getattr(cell, "shared", ())
        yield type(state)(*(part if name in shared else function(part) for name, part in parts))


def given(cell, x, rng):
    """What else a run over x is given: trace noise, which is the whole batch's, and the `mean` of what it shares."""
    whole, *_, mean = rng if isinstance(rng, Rows) else (rng, None)
    noise = cell.noise(whole, len(x), x.dtype, array_module(x)) if whole and hasattr(cell, "noise") else None
    shared = {"mean": mean} if mean and getattr(cell, "shared", ()) else {}
    return shared if noise is None else {"noise": noise, **shared}


class Workers:
    """One process alone. Of several, each knows its `rank`, from 0, and their `size`, and can do three things:

    worker(array): the sum of all workers' arrays, in place. first(function): what it returns, or raises, on rank 0.
    with worker: what is raised within by one worker ends them all.
    """

    rank, size = 0, 1

    def __call__(self, array):
        return array

    def first(self, function):
        return function()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def check(self, model):
        """ValueError where a batch shares a state, unless the very class (others may write otherwise) takes `mean`."""
        for cell in model.cells if self.size > 1 else ():
            if getattr(cell, "shared", ()) and "mean" not in signature(vars(type(cell)).get("encode", len)).parameters:
                why = f"a batch shares {cell.shared[0]} of {type(cell).__name__}, which has no own `encode` with `mean`"
                raise ValueError(f'reduce: {why}; use trace="sample", or train in one process')

    def rows(self, size, rng):
        """Which rows of `size` are this worker's, 1 or 0 for whether they count, and `Rows` or, alone, `rng`."""
        if self.size == 1:
            return slice(None), 1, rng
        start, stop = size * self.rank // self.size, size * (self.rank + 1) // self.size
        rows = slice(start, max(stop, start + 1))  # who has none takes one that counts nothing, to draw as others do

        def mean(part):
            return array_module(part).asarray(self((stop - start) / size * to_numpy(part)))

        return rows, int(stop > start), Rows(rng, rows, size, mean)

    def join(self, part, rows, size, counts):
        """All workers' rows (size, ...), from those of each, which `counts` is 1 or 0 for, as in `rows`."""
        if self.size == 1:
            return part
        whole = np.zeros((size, *part.shape[1:]), part.dtype)
        whole[rows] = counts * to_numpy(part)
        return array_module(part).asarray(self(whole))

    def total(self, count, sums, grads):
        """A batch's count, its sums and its mean gradients, from those of the workers' rows, by one message."""
        if self.size == 1:
            return count, sums, grads
        like, numbers = next(iter(grads.values())), [count, *(float(value) * (count > 0) for value in sums.values())]
        flat = np.concatenate([numbers, *(to_numpy(g).ravel() for g in grads.values())], dtype=like.dtype)
        flat[len(numbers) :] *= count
        self(flat)
        flat[len(numbers) :] /= flat[0]
        numbers, *parts = np.split(flat, np.cumsum([len(numbers), *(g.size for g in grads.values())])[:-1])
        sums = dict(zip(sums, numbers[1:].astype(np.float64), strict=True))
        parts = {name: part.reshape(grads[name].shape) for name, part in zip(grads, parts, strict=True)}
        return int(numbers[0]), sums, {name: array_module(like).asarray(part) for name, part in parts.items()}


Workers.here = Workers()  # who makes the runs of this process: one alone, unless the command says otherwise


class MPI(Workers):
    """The processes that `mpiexec -n 2 python ...` started, on one machine or many, by mpi4py.

    An error that nobody catches ends all of them, for the others would wait for ever.
    """

    def __init__(self):
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError(f"reduce: MPI needs mpi4py: pip install mpi4py mpich ({error})") from error
        self.comm, self.in_place = MPI.COMM_WORLD, MPI.IN_PLACE
        self.rank, self.size = self.comm.rank, self.comm.size
        sys.excepthook = self._end if self.size > 1 else sys.excepthook

    def __call__(self, array):
        self.comm.Allreduce(self.in_place, array)
        return array

    def first(self, function):
        found = error = None
        try:
            found = None if self.rank else function()
        except Exception as caught:
            error = caught
        found, why = self.comm.bcast((found, error and f"rank 0: {error!r}"))
        if why:
            raise error or RuntimeError(why)
        return found

    def __exit__(self, kind, error, trace):
        if kind and self.size > 1 and not issubclass(kind, Diverged):  # they diverge together
            self._end(kind, error, trace)

    def _end(self, kind, error, trace):
        said = "".join(traceback.format_exception(kind, error, trace))  # written at once: ranks share a screen
        remedy = "so all end; where there is a checkpoint it is whole, resume from it\n"
        print(f"{said}enn_np: rank {self.rank} of {self.size} failed, {remedy}", end="", file=sys.stderr, flush=True)
        time.sleep(1)  # mpiexec drops what it has not yet passed on when it is told to end
        self.comm.Abort(1)
        os._exit(1)  # MPICH's Abort comes back, and all would be told a second time


@functools.cache
def started():
    """The workers that mpiexec started, or this process alone, which never imports mpi4py."""
    told = max(int(os.environ.get(name, 1)) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if told == 1:
        return Workers()
    if (workers := MPI()).size != told:
        what = f"mpiexec started {told} processes, mpi4py finds {workers.size}"
        raise RuntimeError(f"{what}: they are of two MPIs; use the mpiexec beside this python, of pip install mpich")
    return workers

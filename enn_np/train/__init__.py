"""Training: ONE loop (loop.py), for arrays (`fit`), a long text (`LanguageModel.fit_stream`) and fresh samples.

A small class (`Samples`, language.Pieces) says what an epoch's batches are; the loop and all around it is `Training`.
"""

import os
import zlib

import numpy as np

from .. import checks
from ..backend import array_module
from ..checkpoint import Checkpoint
from ..optim import Optimizer
from .loop import BLAS_THREADS, Training
from .parallel import MPI, Workers
from .watch import Callback, Diverged, EarlyStopping, History, ReduceOnPlateau, mute, say

__all__ = [
    "BLAS_THREADS", "MPI", "Callback", "Diverged", "EarlyStopping", "History", "ReduceOnPlateau", "Training", "Workers",
    "add", "draws", "fingerprint", "fit", "fit_fresh", "mute", "say",
]  # fmt: skip

# What draws from a seed beside the initial values (`default_rng(seed)`): else states and noise repeat the weights.
INFERENCE, FIT, FIT_STREAM, SAMPLE, FRESH, FRESH_NOISE = range(1, 7)


def draws(seed, use):
    """The generator of one `use` of a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use,)))


def present(name, value):
    """`value`, unless it is None."""
    if value is None:
        raise TypeError(f"{name}: expected an array, got None; pass it, or use predict, which needs none")
    return value


class Samples:
    """An epoch of `size` numbers a batch: order(rng, epoch) has all of them, draw(numbers) the x, y and mask they mean.

    What the loop asks of such a class: begin(rng, epoch) -> carry, arrays in nested dicts that go from batch to batch;
    batches(carry), all of them; learn(batch, carry, rng) -> how many it saw, sums over them, gradients, carry. The loop
    sets `workers`: of a batch, learn sees the rows of this one.
    """

    def __init__(self, model, order, size, draw):
        self.model, self.order, self.size, self.draw = model, order, size, draw

    def begin(self, rng, epoch):
        return {"order": self.order(rng, epoch)}

    def batches(self, carry):
        return [carry["order"][i : i + self.size] for i in range(0, len(carry["order"]), self.size)]

    def learn(self, numbers, carry, rng):
        model, (x, y, mask) = self.model, self.draw(numbers)
        rows, live, rng = self.workers.rows(len(x), rng)
        counts = model.counts(x, y, mask)
        count = live * int(counts[rows].sum())
        if self.workers.size > 1 and not counts[rows].any():  # a head must be asked something: it counts nothing
            y, mask = abs(y), None
        mask = None if mask is None else model.time_major(mask[rows])
        y = array_module(model.params["head.W"]).asarray(y[rows])
        uneven = self.workers.size > 1 and (mask is not None or counts.min() < counts.max())
        remedy = "to which a mask gives other weights than to the loss; leave it out, or train in one process"
        if uneven and any(getattr(cell, "shared", ()) for cell in model.cells):
            raise ValueError(f"reduce: the trace of a batch is a mean, {remedy}")
        found, grads = model.loss_and_grads(model.time_major(x[rows]), y, rng, mask)
        if uneven and "penalty" in found:
            raise ValueError(f"reduce: l1 and entropy are means, {remedy}")
        return count, add({}, found, count), grads, carry


def add(totals, numbers, count):
    """Add a batch's numbers to sums, `totals`: loss and penalty are means over `count`, metrics are sums already."""
    for name, value in numbers.items():
        totals[name] = totals.get(name, 0) + value * np.float64(count if name in ("loss", "penalty") else 1)
    return totals


def fit(
    model,
    x,
    y,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    validation_data: tuple | None = None,
    validation_split: float = 0.0,
    optimizer: Optimizer | None = None,
    callbacks: list | tuple = (),
    seed: int = 0,
    mask=None,
    verbose: int | str = "auto",
    checkpoint: Checkpoint | str | os.PathLike | None = None,
    resume: bool = False,
    reduce: Workers | None = None,
) -> History:
    """Train `model` in place and return its `History`.

    x (n, T, D) array, made the model's dtype; y (n,) labels, or (n,) or (n, O) targets. validation_data: (x, y) or
    (x, y, mask); without it, validation_split: a share of the data, from 0 to 1, taken from the end, as in Keras.
    optimizer: Adam() by default. Engram and Binding code a row of zeros without direction, with a gradient 1e6 times as
    long: clip it, Adam(clip_norm=1.0). callbacks: a list of `Callback`. mask (n, T) bool. seed: of shuffling, dropout,
    initial states and trace noise; the same seed on the same machine gives the same weights to the bit. verbose: 0
    nothing, 1 a bar, 2 a line per epoch, "auto" the bar on a terminal or in a notebook and the line elsewhere. Ctrl-C
    ends training with the best weights so far. checkpoint: a file to save the run to, every minute (`Checkpoint(path,
    seconds=60)`) and after every epoch; its weights in the end are those of the model. resume: go on from there, if it
    exists, to the same end to the bit; model, data, batch_size, seed, optimizer and callbacks must be the same,
    `epochs` may be more. BLAS works on one thread, see `one_thread`. reduce: workers that share every batch, such as
    `enn_np.train.MPI()`, see parallel.py; all call `fit` alike and get one model, rank 0 prints and saves.

    History: "loss" is that of the data, as in `evaluate`; "penalty" what cells with penalties add to it in training.
    Raises TypeError or ValueError naming the argument, before any work, and `Diverged`, a ValueError, for a run that
    stops for what is not finite, with the best weights so far given back.
    """
    targets, (x, y, mask) = y, model.check_data(x, present("y", y), mask)
    batch_size, seed = checks.count("batch_size", batch_size), checks.count("seed", seed, low=0)
    x, y, mask, held = _hold_out(x, y, mask, validation_data, validation_split)
    if mask is not None and not mask.any():
        raise ValueError("mask: expected True at real steps of the part to train on, got only False; shuffle the data")
    settings = {"batch_size": batch_size, "seed": seed}
    real = np.flatnonzero(model.counts(x, y, mask))  # a window of text in which nothing is asked teaches nothing
    if held is not None:
        held = model.check_data(*held, names=("validation x", "validation y", "validation mask"))
        model.counts(*held)
    validate = None if held is None else lambda: model.evaluate(*held[:2], batch_size, held[2])
    if checkpoint is not None:
        settings["data"] = fingerprint(x, y, mask, *(held or ()))

    def rows(chosen):  # by index: the data set is never copied
        return x[chosen], y[chosen], None if mask is None else mask[chosen]

    work = Samples(model, lambda rng, epoch: rng.permutation(real), batch_size, rows)
    rngs, how = {"rng": draws(seed, FIT)}, (optimizer, callbacks, verbose, checkpoint, resume, reduce)
    training = Training(model, work, epochs, rngs, settings, validate, *how)
    model.target_shape = np.shape(targets)[1:]
    return training.run()


def fit_fresh(model, draw, steps: list, *, validate=None, rngs: tuple | None = None, **settings) -> History:
    """Train `model` on samples that are drawn anew at every step and return its `History`.

    draw(rng, step) -> x (B, T, D), y, and a mask if there is padding; step counts from 0 through the whole run. steps:
    how many batches each epoch has, such as [250] * 4. validate(done) -> {"loss": ..., "accuracy": ...} after each
    epoch, by the first worker alone, done: steps so far. rngs: two generators, the one that draw is handed, and that of
    dropout, initial states and trace noise; made from the model's seed if None. settings: optimizer, callbacks,
    verbose, checkpoint, resume, reduce; these and errors as in `fit`. A resumed run needs its steps, or more.
    """
    if not isinstance(steps, list | tuple) or not steps:
        raise TypeError(f"steps: expected the number of batches of each epoch, such as [250] * 4, got {steps!r}")
    if not callable(draw) or not (validate is None or callable(validate)):
        raise TypeError(f"draw, validate: expected functions, got {draw!r:.40} and {validate!r:.40}")
    steps = [checks.count("steps", each) for each in steps]
    data, noise = (draws(model.seed, use) for use in (FRESH, FRESH_NOISE)) if rngs is None else rngs
    rngs = {"rng": noise, "data": data}
    begun = {"steps": steps[0], "drawn by": {name: rng.bit_generator.state for name, rng in rngs.items()}}
    validated = None if validate is None else lambda: validate(sum(steps[: training.epoch + 1]))

    def fresh(step):
        if not isinstance(found := draw(data, int(step[0])), tuple | list) or len(found) not in (2, 3):
            raise TypeError(f"draw: expected it to return x, y or x, y, mask, got {found!r:.60}")
        x, y, *mask = found
        checked, model.target_shape = model.check_data(x, present("y", y), *mask), np.shape(y)[1:]
        return checked

    work = Samples(model, lambda rng, epoch: sum(steps[:epoch]) + np.arange(steps[epoch]), 1, fresh)
    training = Training(model, work, len(steps), rngs, begun, validated, **settings)
    return training.run()


def _hold_out(x, y, mask, data, share):
    """Training data, and (x, y) or (x, y, mask) to validate on or None."""
    if data is not None:
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            got = f"{len(data)} parts" if isinstance(data, tuple | list) else repr(data)
            raise ValueError(f"validation_data: expected (x, y) or (x, y, mask), got {got}; see validation_split")
        present("validation y", data[1])
        return x, y, mask, data
    if not (share := checks.number("validation_split", share, low=0, high=1)):
        return x, y, mask, None
    cut = int(len(x) * (1 - share))
    if not 0 < cut < len(x):
        leaves = f"a share of {share} leaves {cut} of {len(x)} sequences to train on and {len(x) - cut} to validate on"
        raise ValueError(f"validation_split: {leaves}, expected at least one each")
    masks = (None, None) if mask is None else (mask[:cut], mask[cut:])
    return x[:cut], y[:cut], masks[0], (x[cut:], y[cut:], masks[1])


def fingerprint(*arrays):
    """[dtype, shape, CRC-32] of every array, None for None: tells whether a resumed run has the data it began with."""
    return [a if a is None else [str(a.dtype), list(a.shape), zlib.crc32(np.ascontiguousarray(a))] for a in arrays]

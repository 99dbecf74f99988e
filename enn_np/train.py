"""Training: ONE loop, for arrays (`fit`), a long text (`LanguageModel.fit_stream`) and fresh samples (`fit_fresh`).

    for every epoch:  for every batch: loss, gradients, update;  validate;  ask the callbacks

A small class (`Shuffled`, `Fresh`, language.Pieces) says what an epoch's batches are; the loop, with its callbacks, its
bar, watchdogs and checkpoints, is `Training`. All of a run can be saved between two batches: a killed one goes on from
its checkpoint to the same end, to the bit.
"""

import functools
import inspect
import math
import os
import signal
import sys
import threading
import time
import warnings
import zlib
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import checks
from .backend import array_module, to_numpy
from .checkpoint import Checkpoint, DamagedArchive, check_arrays, differ, flatten
from .optim import Adam, Optimizer

# What draws from a seed beside the initial values (`default_rng(seed)`): else states and noise repeat the weights.
INFERENCE, FIT, FIT_STREAM, SAMPLE, FRESH, FRESH_NOISE = range(1, 7)
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
WIDTH = 60  # columns of a bar or a line
BAR = "{desc} {bar} {n_fmt}/{total_fmt} {remaining}{postfix}"
LOST = suppress(OSError, ValueError, AttributeError)  # a stream that is closed, or piped into `head`, or none at all
SATURATED = 0.5  # share of the trace on the clip
DEAD = 0.01  # of an even share 1 / N, which no retrieval weight of the slot reaches

# What Keras, PyTorch or scikit-learn > this library call an argument.
OTHER_NAMES = """units>hidden hidden_size>hidden hidden_dim>hidden memory_size>slots input_size>inputs lr>learning_rate
num_classes>classes n_classes>classes vocab_size>vocabulary_size embedding_dim>embedding random_state>seed
validation>validation_data progress>verbose restore_best_weights>restore_best min_lr>min_learning_rate
clipnorm>clip_norm global_clipnorm>global_clip_norm eps>epsilon"""
OTHER_NAMES = dict(pair.split(">") for pair in OTHER_NAMES.split())


def draws(seed, use):
    """The generator of one `use` of a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use,)))


def translated(function):
    """Decorator: where an argument has another library's name, the TypeError says what it is called here."""
    ours = inspect.signature(function).parameters

    @functools.wraps(function)
    def called(*arguments, **settings):
        for name in settings.keys() - ours.keys():
            if (own := OTHER_NAMES.get(name)) in ours:
                raise TypeError(f"{name}: it is called {own} here, got {name}=; write {own}=")
        return function(*arguments, **settings)

    return called


def one_thread():
    """A `with` block in which BLAS keeps to one thread, unless one of `BLAS_THREADS` is set or threadpoolctl missing.

    A second one mostly waits, and spins as it does: beside another busy process a step takes many times as long.
    """
    with suppress(ImportError):
        from threadpoolctl import threadpool_limits

        if not any(name in os.environ for name in BLAS_THREADS):
            return threadpool_limits(1, user_api="blas")
    return nullcontext()


class Diverged(ValueError):
    """A run has left the finite numbers: its learning rate is too high. Its model has the best weights back."""


class History(dict):
    """Lists with one number per epoch: "loss", "accuracy", "val_loss", ..., "learning_rate", "seconds".

    "gradient_norm" and "gradient_norm_99": median and 99th percentile, over an epoch's steps, of the length of all
    gradients together, before clipping; "clipped": the share of steps that were shortened to `global_clip_norm`.
    best_epoch: index of the epoch with the best monitored value. stopped: "finished", "early" or "interrupted".
    skipped: batches left out by non_finite="skip". duration: seconds of training, those before a resume included.
    """

    best_epoch = None
    stopped = "finished"
    skipped = 0
    duration = 0.0

    def add(self, logs):
        """Append the numbers of an epoch."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)


# ------------------------------------------------------------------------------------------------------- callbacks

FALLING, RISING = ("loss", "perplexity", "bits", "mae", "mse"), ("accuracy",)  # with val_ before it or not


def cost(name, logs, mode="auto"):
    """The monitored number, turned so that less is better. Raises ValueError where "auto" does not know which way."""
    known = name.removeprefix("val_")
    if mode == "auto" and known not in FALLING + RISING:
        raise ValueError(f'mode: expected "min" or "max" for {name!r}, got "auto", which knows {FALLING + RISING}')
    return -logs[name] if mode == "max" or (mode == "auto" and known in RISING) else logs[name]


class Callback:
    """Watches a run, a `Training`: override `on_start`, `on_epoch_end` (logs: this epoch's numbers) and `on_end`."""

    def on_start(self, training):
        pass

    def on_epoch_end(self, training, logs):
        pass

    def on_end(self, training):
        pass

    def settings(self):
        """What a resumed run must have in common with this one, as plain values."""
        return {"kind": type(self).__name__}

    def state(self):
        """What it counts or keeps, as nested dicts of plain values and arrays, for a checkpoint."""
        return {}

    def load_state(self, state):
        """Take over what `state` returned before."""


class Patience(Callback):
    """Counts epochs in which `monitor` did not improve by more than min_delta; after `patience` of them, `act`.

    mode: "min" if it improves by falling, "max" by rising; "auto" knows the library's own numbers. A new run starts
    counting anew.
    """

    best, wait = math.inf, 0

    def __init__(self, monitor, patience, min_delta, mode):
        self.monitor, self.patience = monitor, checks.count("patience", patience, low=0)
        self.mode = checks.choice("mode", mode, ("auto", "min", "max"))
        self.min_delta = checks.number("min_delta", min_delta, low=0)

    def on_start(self, training):
        if self.monitor not in training.names:
            known = ", ".join(map(repr, training.names))
            what = f"monitor: expected one of {known}, got {self.monitor!r}"
            raise ValueError(f"{what}; what begins with val_ needs validation data")
        cost(self.monitor, {self.monitor: 0.0}, self.mode)  # a direction that is unknown is told before any work
        self.best, self.wait = math.inf, 0

    def settings(self):
        return super().settings() | {name: value for name, value in vars(self).items() if name not in self.state()}

    def state(self):
        return {"best": self.best, "wait": self.wait}

    def load_state(self, state):
        self.best, self.wait = float(state["best"]), checks.count("wait", state["wait"], low=0)

    def on_epoch_end(self, training, logs):
        score = cost(self.monitor, logs, self.mode)
        self.wait += 1
        if score < self.best - self.min_delta:
            self.best, self.wait = score, 0
        elif self.wait >= self.patience:
            self.act(training)


class EarlyStopping(Patience):
    """Stop when `monitor` has not improved by more than min_delta for `patience` epochs.

    restore_best: end with the weights of the epoch where `monitor` was best, early or not. mode: see `Patience`.
    """

    def __init__(self, monitor="val_loss", patience=3, min_delta=0.0, restore_best=True, mode="auto"):
        super().__init__(monitor, patience, min_delta, mode)
        self.restore_best = checks.switch("restore_best", restore_best)

    def on_start(self, training):
        super().on_start(training)
        if self.restore_best:
            training.monitor, training.mode, training.restore = self.monitor, self.mode, True

    def act(self, training):
        training.stop = True


class ReduceOnPlateau(Patience):
    """Multiply the learning rate by `factor`, but not to below min_learning_rate, after `patience` epochs in which
    `monitor` improved by min_delta or less. mode: see `Patience`."""

    def __init__(self, monitor="val_loss", factor=0.5, patience=2, min_delta=1e-4, min_learning_rate=1e-5, mode="auto"):
        super().__init__(monitor, patience, min_delta, mode)
        self.factor = checks.number("factor", factor, above=0, high=1)
        self.min_learning_rate = checks.number("min_learning_rate", min_learning_rate, low=0)

    def act(self, training):
        rate = training.optimizer.learning_rate
        if rate > self.min_learning_rate:  # one that began below it is never raised
            training.optimizer.learning_rate = max(rate * self.factor, self.min_learning_rate)
            self.wait = 0


# ---------------------------------------------------------------------------------------- what an epoch is made of
#
# begin(rng, epoch) -> carry, arrays in nested dicts that go from batch to batch;  batches(carry), all of them;
# learn(batch, carry, rng) -> how many it saw, sums over them, gradients, carry.


class Shuffled:
    """All sequences once, in a new order, in batches: the rows are picked by index, the data set is never copied."""

    def __init__(self, model, x, y, mask, batch_size):
        self.model, self.x, self.y, self.mask, self.batch_size = model, x, y, mask, batch_size
        self.counts = model.counts(x, mask)
        self.rows = np.flatnonzero(self.counts)  # those that count

    def begin(self, rng, epoch):
        return {"order": rng.permutation(self.rows)}

    def batches(self, carry):
        return [carry["order"][i : i + self.batch_size] for i in range(0, len(self.rows), self.batch_size)]

    def learn(self, rows, carry, rng):
        mask = None if self.mask is None else self.mask[rows]
        return *_learned(self.model, self.x[rows], self.y[rows], mask, self.counts[rows].sum(), rng), carry


class Fresh:
    """Samples drawn anew at every step by draw(rng, step), steps[epoch] batches an epoch."""

    def __init__(self, model, draw, steps, rng):
        self.model, self.draw, self.steps, self.rng = model, draw, steps, rng

    def begin(self, rng, epoch):
        return {"order": sum(self.steps[:epoch]) + np.arange(self.steps[epoch])}

    def batches(self, carry):
        return carry["order"].tolist()

    def learn(self, step, carry, rng):
        x, y, mask = self.model.check_data(*self.draw(self.rng, step))
        return *_learned(self.model, x, y, mask, self.model.counts(x, mask).sum(), rng), carry


def _learned(model, x, y, mask, count, rng):
    """One batch (B, T, ...): how many it counts, the sums over them, and the gradients."""
    y = array_module(model.params["head.W"]).asarray(y)
    mask = None if mask is None else model.time_major(mask)
    numbers, grads = model.loss_and_grads(model.time_major(x), y, rng, mask)
    return int(count), add({}, numbers, int(count)), grads


def add(totals, numbers, count):
    """Add a batch's numbers to sums, `totals`: loss and penalty are means over `count`, metrics are sums already."""
    for name, value in numbers.items():
        totals[name] = totals.get(name, 0) + (value * count if name in ("loss", "penalty") else value)
    return totals


@translated
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
    non_finite: str = "stop",
) -> History:
    """Train `model` in place and return its `History`.

    x (n, T, D) array, made the model's dtype; y (n,) labels, or (n,) or (n, O) targets. validation_data: (x, y) or
    (x, y, mask); without it, validation_split: a share of the data, from 0 to 1, taken from the end, as in Keras.
    optimizer: Adam() by default. callbacks: a list of `Callback`. mask (n, T) bool. seed: of shuffling, dropout,
    initial states and trace noise; the same seed on the same machine gives the same weights to the bit. verbose: 0
    nothing, 1 a bar per epoch, 2 a line per epoch, "auto" the bar on a terminal or in a notebook and the line
    elsewhere. Ctrl-C ends training with the best weights so far. checkpoint: a file to save the run to, when it starts,
    every minute (`Checkpoint(path, seconds=60)`) and after every epoch; its weights in the end are those of the model.
    resume: go on from there, if it exists, to the same end to the bit; the settings must be the same, `epochs` may be
    more. non_finite: "stop" at a loss or gradient that is infinite or NaN, or "skip" such batches. BLAS works on one
    thread, see `one_thread`.

    History: "loss" is that of the data, as in `evaluate`; "penalty" what cells with penalties add to it in training.
    Raises TypeError or ValueError naming the argument, before any work, and `Diverged`, a ValueError, for a run that
    stops for what is not finite, with the best weights so far given back.
    """
    targets, (x, y, mask) = y, model.check_data(x, checks.given("y", y), mask)
    batch_size, seed = checks.count("batch_size", batch_size), checks.count("seed", seed, low=0)
    x, y, mask, held = _hold_out(model, x, y, mask, validation_data, validation_split)
    work, settings, validate = Shuffled(model, x, y, mask, batch_size), {"batch_size": batch_size, "seed": seed}, None
    if held is not None:
        model.counts(held[0], held[2], "validation mask")

        def validate():
            return model.evaluate(*held[:2], batch_size, held[2])

    if checkpoint is not None:
        settings["data"] = fingerprint(x, y, mask, *(held or ()))
    model.target_shape = np.shape(targets)[1:]
    rngs, how = {"rng": draws(seed, FIT)}, (optimizer, callbacks, verbose, checkpoint, resume, non_finite)
    return Training(model, work, epochs, rngs, settings, validate, *how).run()


def fit_fresh(
    model,
    draw,
    steps: list,
    *,
    validate=None,
    rngs: tuple | None = None,
    optimizer: Optimizer | None = None,
    callbacks: list | tuple = (),
    verbose: int | str = "auto",
    checkpoint: Checkpoint | str | os.PathLike | None = None,
    resume: bool = False,
    non_finite: str = "stop",
) -> History:
    """Train `model` on samples that are drawn anew at every step and return its `History`.

    draw(rng, step) -> x (B, T, D), y, and a mask if there is padding; step counts from 0 through the whole run. steps:
    how many batches each epoch has, such as [250] * 4. validate(done) -> {"loss": ..., "accuracy": ...} after each
    epoch, done: steps so far. rngs: two generators, the one that draw is handed, and that of dropout, initial states
    and trace noise; made from the model's seed if None. All else, also errors, as in `fit`.
    """
    if not isinstance(steps, list | tuple) or not steps:
        raise TypeError(f"steps: expected the number of batches of each epoch, such as [250] * 4, got {steps!r}")
    steps = [checks.count("steps", each) for each in steps]
    data, noise = (draws(model.seed, use) for use in (FRESH, FRESH_NOISE)) if rngs is None else rngs
    rngs = {"rng": noise, "data": data}
    settings = {"drawn by": {name: rng.bit_generator.state for name, rng in rngs.items()}}
    validated = None if validate is None else lambda: validate(sum(steps[: training.epoch + 1]))
    work, how = Fresh(model, draw, steps, data), (optimizer, callbacks, verbose, checkpoint, resume, non_finite)
    training = Training(model, work, len(steps), rngs, settings, validated, *how)
    return training.run()


def _hold_out(model, x, y, mask, data, share):
    """Training data, and (x, y, mask) to validate on or None."""
    if data is not None:
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            got = f"{len(data)} parts" if isinstance(data, tuple | list) else repr(data)
            raise ValueError(f"validation_data: expected (x, y) or (x, y, mask), got {got}; see validation_split")
        checks.given("validation y", data[1])
        return x, y, mask, model.check_data(*data, names=("validation x", "validation y", "validation mask"))
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


# --------------------------------------------------------------------------------------------------------- the loop


@dataclass
class Pass:
    """How far an epoch has come: what a checkpoint needs to go on in the middle of it.

    carry: see above. started: on the run's clock. norms: of the gradient, at every batch that was learned, else NaN.
    seen: sequences or tokens; totals: sums over them.
    """

    carry: dict
    started: float
    norms: Any
    batches: int = 0
    seen: int = 0
    totals: dict = field(default_factory=dict)


@dataclass
class Training:
    """A training run, as callbacks see it.

    rngs: generators by name, "rng" that of order, dropout, states and noise. settings: what a resumed run must share.
    monitor, mode: what is best; names: what can be monitored. `stop`: end after this epoch; `restore`: end with the
    best weights. The other arguments are those of `fit`.
    """

    model: Any
    work: Any
    epochs: int
    rngs: dict
    settings: dict
    validate: Any
    optimizer: Optimizer
    callbacks: list
    verbose: Any
    checkpoint: Checkpoint | None
    resume: bool
    non_finite: str
    mode: str = "auto"
    history: History = field(default_factory=History)
    stop: bool = False
    restore: bool = False
    interrupted: bool = False
    best_score: float = math.inf
    last_params: dict | None = None  # where it ended, if it gave others back: what a resumed one goes on with
    part: Pass | None = None
    drawn: dict | None = None  # states of the generators before the batch that is under way
    earlier: float = 0.0  # seconds of training before a resume
    warned: set = field(default_factory=set)

    def __post_init__(self):
        self.epochs, self.resume = checks.count("epochs", self.epochs), checks.switch("resume", self.resume)
        checks.choice("non_finite", self.non_finite, ("stop", "skip"))
        checks.choice("verbose", self.verbose, ("auto", 0, 1, 2))
        self.optimizer = Adam() if self.optimizer is None else self.optimizer
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one such as Adam(1e-3), got {self.optimizer!r}")
        given = self.callbacks
        if not isinstance(given, list | tuple) or not all(isinstance(each, Callback) for each in given):
            raise TypeError(f"callbacks: expected a list of Callback objects such as [EarlyStopping()], got {given!r}")
        if self.checkpoint is not None:
            given = self.checkpoint
            self.checkpoint = given if isinstance(given, Checkpoint) else Checkpoint(given)
            self.model.check_saving()  # before any work
        elif self.resume:
            raise ValueError("resume: there is nothing to resume from, got checkpoint=None; name the checkpoint's path")
        self.names = ("loss", *self.model.metrics)
        self.names += tuple(f"val_{name}" for name in self.names) if self.validate else ()
        self.monitor = "val_loss" if self.validate else "loss"
        self.best_params = _copied(self.model.params)  # at first, those before training

    @property
    def epoch(self):
        """How many epochs are done."""
        return len(self.history.get("loss", ()))

    def clock(self):
        """Seconds of training so far; it stands still between a kill and the resume."""
        return self.earlier + time.perf_counter() - self._began

    def run(self):
        """All epochs, or those left of a resumed run, and the history."""
        self._ready()
        with self.checkpoint.held() if self.checkpoint else nullcontext(), one_thread():
            resumed = self._resumed()
            try:
                self._train()
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                # A mistake found late: a checkpoint with no epoch in it only stands in the way of the corrected call.
                if self.checkpoint and not (resumed or self.epoch or isinstance(error, Diverged)):
                    self.checkpoint.path.unlink(missing_ok=True)
                raise
        return self.history

    def _ready(self):
        """Ask the optimizer and tell the callbacks, before a file is touched."""
        self.optimizer.serve(self.model.params)
        self._began = time.perf_counter()
        for callback in self.callbacks:
            callback.on_start(self)
        callbacks = [each.settings() for each in self.callbacks]
        self.settings |= {"optimizer": self.optimizer.settings(), "callbacks": callbacks, "non_finite": self.non_finite}

    def _resumed(self):
        """Go on from the checkpoint, if asked to and there is one: whether it did."""
        if self.checkpoint is None or not self.checkpoint.path.exists():
            return False
        if not self.resume:
            what = f"{self.checkpoint.path} holds a run already; resume=True (--resume) goes on with it"
            raise ValueError(f"checkpoint: {what}, to start anew name another")
        self._restore()
        if self.verbose:
            say(f"{self.checkpoint.path}: resumed after {self.place()}")
        return True

    def _train(self):
        try:
            while self.epoch < self.epochs and not self.stop:
                self.save()
                self._epoch()
                if self.interrupted:
                    raise KeyboardInterrupt
            self.history.stopped = "early" if self.stop else "finished"
        except KeyboardInterrupt:
            self.history.stopped, self.restore = "interrupted", True
        self.history.duration = self.clock()
        with self.undivided():
            best = self.restore and self.history.best_epoch is not None
            self._hand_back(self.best_params if best else {}, self.callbacks)

    def _epoch(self):
        """One epoch with its validation, or the rest of one that a checkpoint brought back."""
        title = f"{getattr(self.model, 'title', 'epoch')} {self.epoch + 1}/{self.epochs}"
        carry = self.part.carry if self.part else self.work.begin(self.rngs["rng"], self.epoch)
        batches = list(self.work.batches(carry))
        xp = array_module(self.model.params["head.W"])
        self.part = part = self.part or Pass(carry, self.clock(), xp.full(len(batches), np.nan))
        with closing(Bar(len(batches), title, self.verbose, part.batches)) as bar:
            self._learn(batches[part.batches :], part, bar)
            logs = self.model.scores(part.totals, part.seen)
            if self.validate:
                logs |= {f"val_{name}": value for name, value in self.validate().items()}
            for name, value in logs.items():
                if not math.isfinite(value):
                    raise self._diverged(f"{name} became {value} in")
            logs["seconds"] = self.clock() - part.started
            bar.finish(logs)
        logs |= self._norms(to_numpy(part.norms)) | {"learning_rate": self.optimizer.learning_rate}
        with self.undivided():
            self.history.add(logs)
            if (score := cost(self.monitor, logs, self.mode)) < self.best_score:
                self.best_score, self.history.best_epoch = score, self.epoch - 1
                self.best_params = _copied(self.model.params)
            self.part = None
        for callback in self.callbacks:
            try:
                callback.on_epoch_end(self, logs)
            except KeyboardInterrupt:  # the others see this epoch too, so that a resumed run has all of it
                self.interrupted = True

    def _learn(self, batches, part, bar):
        """What is left of an epoch's batches. Ctrl-C leaves off between two of them."""
        read, whole = {}, not part.batches  # of an epoch's beginning before a resume, nothing is known
        for batch in batches:
            self.drawn = self._generators()
            count, sums, grads, carry = self.work.learn(batch, part.carry, self.rngs["rng"])
            fault, norm = not_finite(sums["loss"], grads)
            with self.undivided():
                if fault is None:
                    part.norms[part.batches] = norm
                    self.optimizer.update(self.model.params, grads)
                    part.totals = {name: part.totals.get(name, 0.0) + value for name, value in sums.items()}
                    part.seen, part.carry = part.seen + count, carry
                else:
                    self._skip(fault)
                part.batches, self.drawn = part.batches + 1, None
            if fault is None:
                bar.advance(part.totals, part.seen)
                note_reads(self.model, read)
            if self.checkpoint and self.checkpoint.due():
                self.save()
            if self.interrupted:
                raise KeyboardInterrupt
        if not part.seen:
            raise self._diverged("no batch had a finite loss and gradient in")
        watch_memory(self.model, self.warned, read if whole else {})

    def _norms(self, norms):
        """What a history says of the gradient norms (steps,) of an epoch."""
        median, high = np.nanpercentile(norms, (50, 99))
        logs, limit = {"gradient_norm": float(median), "gradient_norm_99": float(high)}, self.optimizer.global_clip_norm
        return logs if limit is None else logs | {"clipped": float((norms > limit).mean())}

    @contextmanager
    def undivided(self):
        """Ctrl-C does not cut this block in two: it is noted in `interrupted`."""
        before = signal.getsignal(signal.SIGINT)
        mine = callable(before) and threading.current_thread() is threading.main_thread()
        if mine:
            signal.signal(signal.SIGINT, lambda *pressed: setattr(self, "interrupted", True))
        try:
            yield
        finally:
            if mine:
                signal.signal(signal.SIGINT, before)

    def _diverged(self, what):
        """The error for a run that has left the finite numbers for good; the best weights are back, or the first."""
        self._hand_back(self.best_params)
        best = self.history.best_epoch
        best = "before training" if best is None else f"after epoch {best + 1}"
        where = "" if self.checkpoint is None else f", as in enn_np.load('{self.checkpoint.path}')"
        return Diverged(
            f"learning_rate: at {self.optimizer.learning_rate:g} {what} epoch {self.epoch + 1}; lower it, or shorten "
            f"gradients by Adam(clip_norm=1.0); the model has the weights {best} again{where}"
        )

    def _skip(self, fault):
        """Leave a batch out because of a `fault`, or stop."""
        what = f"{fault} at step {self.optimizer.steps + 1}, batch {self.part.batches + 1} of"
        if self.non_finite == "stop":
            raise self._diverged(what)
        if not self.history.skipped:
            left = "the batch is left out; history.skipped counts such batches"
            warnings.warn(f"{what} epoch {self.epoch + 1}: {left}", RuntimeWarning, stacklevel=2)
        self.history.skipped += 1

    def _hand_back(self, params, callbacks=()):
        """End with `params`, none for those that are there, tell the callbacks, and save what was handed back."""
        last = _copied(self.model.params)
        for name, value in params.items():
            self.model.params[name][...] = value
        for callback in callbacks:
            callback.on_end(self)
        if any((value != last[name]).any() for name, value in self.model.params.items()):
            self.last_params = last
        self.save()

    # ----------------------------------------------------------------------------------------------- checkpoints

    def save(self):
        """Write the run as it is between two batches, if it has a checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.save(self.model.config(), self.model.params, self.state(), self.place())

    def place(self):
        """How far it is, in words."""
        return f"epoch {self.epoch + 1}, batch {self.part.batches}" if self.part else f"epoch {self.epoch}"

    def _generators(self):
        return {name: rng.bit_generator.state for name, rng in self.rngs.items()}

    def state(self):
        """All that this run is made of beside the model, as nested dicts of plain values and arrays."""
        history, part = self.history, self.part
        return {
            "settings": self.settings,
            **(self.drawn or self._generators()),
            "optimizer": {"steps": self.optimizer.steps, "learning_rate": self.optimizer.learning_rate},
            "moments": self.optimizer.state,
            "history": dict(history),
            "best_epoch": history.best_epoch,
            "skipped": history.skipped,
            "seconds": self.clock(),
            "stop": self.stop,
            "best_score": self.best_score,
            "best": self.best_params,
            "last": self.last_params or {},
            "callbacks": {str(i): callback.state() for i, callback in enumerate(self.callbacks)},
            "pass": {} if part is None else vars(part),
        }

    def _restore(self):
        """Go on from the checkpoint. Raises ValueError, naming it, where it does not fit this run."""
        path, params = self.checkpoint.path, to_numpy(self.model.params)
        state, mine = self.checkpoint.load(self.model.config(), params)
        differ(path, self.settings, state.get("settings"))
        try:
            moments, part, last = state["moments"], state["pass"], state["last"]
            for name, arrays in {**{m: moments[m] for m in self.optimizer.state}, "last": last}.items():
                check_arrays(path, params if arrays else {}, arrays, f"{name}/")
            check_arrays(path, params, state["best"], "best/")
            if part:
                self._check_carry(path, part["carry"], len(state["history"].get("loss", ())))
            self._take(state, last or mine)
        except ValueError as error:
            raise error if str(error).startswith(f"{path}: ") else DamagedArchive(path, error) from None
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise DamagedArchive(path, error) from None
        if self.epoch > self.epochs:
            raise ValueError(f"epochs: {path} has {self.epoch} done, got {self.epochs}; ask for as many or more")

    def _check_carry(self, path, carry, epoch):
        """Raise ValueError unless `carry`, from the file `path`, can be that of this work's epoch."""
        wanted, found = (flatten(tree)[1] for tree in (self.work.begin(np.random.default_rng(), epoch), carry))
        check_arrays(path, wanted, found, "pass/carry/")
        if "order" in wanted and (np.sort(found["order"]) != np.sort(wanted["order"])).any():
            raise ValueError(f"{path}: pass/carry/order does not name every sequence once; use another copy")

    def _take(self, state, params):
        """A stored `state` in place of the fresh one, and stored parameters, into the arrays that layers may hold."""
        for callback, i in zip(self.callbacks, map(str, range(len(self.callbacks))), strict=True):
            callback.load_state(state["callbacks"][i])
        state = _on(array_module(self.model.params["head.W"]), state | {"params": params})
        optimizer, history, part = self.optimizer, self.history, state["pass"]
        for name, rng in self.rngs.items():
            rng.bit_generator.state = state[name]
        optimizer.steps = checks.count("steps", state["optimizer"]["steps"], low=0)
        optimizer.learning_rate = checks.number("learning_rate", state["optimizer"]["learning_rate"], above=0)
        optimizer.state = {name: state["moments"][name] for name in optimizer.state}
        history.update({name: [float(value) for value in values] for name, values in state["history"].items()})
        if len({len(values) for values in history.values()}) > 1:
            raise ValueError("its history has lists of different lengths")
        history.best_epoch, history.skipped = state["best_epoch"], checks.count("skipped", state["skipped"], low=0)
        self.stop, self.best_score = checks.switch("stop", state["stop"]), float(state["best_score"])
        self.best_params, self.earlier = state["best"], checks.number("seconds", state["seconds"], low=0)
        if part:
            totals = {name: value[()] for name, value in part["totals"].items()}
            if any(value.ndim or value.dtype.kind not in "iuf" for value in totals.values()):
                raise ValueError("its totals are no numbers")
            done, seen = checks.count("batches", part["batches"], 0), checks.count("seen", part["seen"], 0)
            self.part = Pass(part["carry"], float(part["started"]), part["norms"], done, seen, totals)
        for name, value in state["params"].items():
            self.model.params[name][...] = value


def _copied(params):
    return {name: value.copy() for name, value in params.items()}


def _on(xp, tree):
    """Nested dicts with their arrays on the device of `xp`."""
    if isinstance(tree, dict):
        return {key: _on(xp, value) for key, value in tree.items()}
    return xp.asarray(tree) if isinstance(tree, np.ndarray) else tree


# ------------------------------------------------------------------------- watchdogs: what goes wrong without any error


def not_finite(loss, grads):
    """None, or in words which of `loss` and the gradients by name is not finite; and the length of all together.

    Asked at every batch, so by one product per gradient: NaN or infinity anywhere shows in g . g. On a GPU the question
    would stall the stream; there the numbers of an epoch are looked at, at its end.
    """
    xp = array_module(next(iter(grads.values()), np.ones(1)))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = {name: xp.vdot(g, g) for name, g in grads.items()}
        norm = xp.sqrt(sum(squares.values()))
        if xp is not np or math.isfinite(norm + loss):
            return None, norm
        if not math.isfinite(loss):
            return f"loss became {float(loss)}", norm
        name = next(
            (name for name, square in squares.items() if not math.isfinite(square)), max(squares, key=squares.get)
        )
        bad = grads[name][~np.isfinite(grads[name])]
        what = (
            f"{float(bad.flat[0])} in {bad.size} of {grads[name].size} entries" if bad.size else "too large to square"
        )
        return f"the gradient of {name} became {what}", norm


def note_reads(model, read):
    """Keep in `read`, by layer, the largest weight (N,) that each slot has had: a batch reads only a part of them."""
    for i, (cell, tape) in enumerate(zip(model.cells, model.tapes, strict=False)):
        if hasattr(cell, "trace_clip"):  # a sharp address, as Binding has, leaves slots alone by design
            most = tape.kept.a.max((0, 1))  # of a (T, B, N)
            read[i] = array_module(most).maximum(read.get(i, most), most)


def watch_memory(model, warned, read):
    """Warn, once for every name in the set `warned`, of faults in the memory: of a trace that lies on its clip and so
    remembers little but signs, as the last batch left it, and of slots that no batch of an epoch read. read: see
    `note_reads`, or {} where not all was seen."""
    for i, (cell, tape) in enumerate(zip(model.cells, model.tapes, strict=False)):
        if not hasattr(cell, "trace_clip"):
            continue
        faults, clip = {}, None if tape.states.A is None else cell.trace_clip  # a list has met no clip
        if clip is not None and (share := float((abs(tape.states.A[-1]) >= clip).mean())) > SATURATED:
            what = f"{share:.0%} of its Hebbian trace lies on the clip {clip:g} and keeps little but signs"
            faults["saturated"] = f"{what}; lower hebbian_rate = {cell.hebbian_rate:g} or raise trace_clip"
        if i in read and (dead := int((read[i] < DEAD / cell.slots).sum())):
            what = f"{dead} of its {cell.slots} memory slots are never read: no weight in an epoch reached {DEAD} / N"
            faults["dead"] = f"{what}; use fewer slots, or a retrieval that spreads more"
        for fault in [fault for fault in faults if (fault, i) not in warned]:
            warned.add((fault, i))
            warnings.warn(f"cell {i}: {faults[fault]}", RuntimeWarning, stacklevel=2)


# ------------------------------------------------------------------------------------------------------ what is shown


def say(line):
    """Print a line now, also into a pipe, if anyone reads it."""
    with LOST:
        print(line, flush=True)


def _screen():
    """Where a bar can be drawn anew: on a "terminal" or in a "notebook"; None elsewhere."""
    with LOST:
        if "IPKernelApp" in sys.modules.get("IPython").get_ipython().config:
            return "notebook"
    with LOST:
        return "terminal" if sys.stderr.isatty() else None


class Bar:
    """An epoch's bar of batches, if any, of which `done` are, and its numbers in the end, which stay."""

    def __init__(self, length, title, verbose="auto", done=0):
        screen, self.title, self.tqdm = _screen(), title, None
        self.verbose = (1 if screen else 2) if verbose == "auto" else verbose
        if self.verbose == 1:
            from tqdm.auto import tqdm

            size = {} if screen == "notebook" else {"ncols": WIDTH, "nrows": 20}  # some terminals say that they have 0
            with LOST:
                self.tqdm = tqdm(total=length, initial=done, desc=title, bar_format=BAR, **size)

    def advance(self, totals, seen):
        """One more batch is done; totals: sums over the `seen`."""
        with LOST:
            # Only where the bar was drawn anew: to fetch a card's numbers is to wait for it.
            if self.tqdm is not None and self.tqdm.update(1):
                means = {name: f"{float(value) / seen:.3g}" for name, value in totals.items()}
                self.tqdm.set_postfix(means, refresh=False)

    def finish(self, logs):
        """The epoch's numbers, as many as fit: its loss, those of validation, the others."""
        line = self.title
        for name in sorted(logs, key=lambda name: (name != "loss", not name.startswith("val_"))):
            number = f" {name} {logs[name]:.4g}"
            line += number if len(line + number) <= WIDTH else ""
        if self.verbose == 2:
            say(line)
        elif self.tqdm is not None:
            self.tqdm.bar_format, self.tqdm.desc = "{desc}", line

    def close(self):
        with LOST:
            self.tqdm.close()

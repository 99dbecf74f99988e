"""ONE loop of training: for every epoch: for every batch: loss, gradients, update; validate; ask the callbacks.

All of a run can be saved between two batches: a killed one goes on from its checkpoint to the same end, to the bit.
"""

import copy
import math
import os
import signal
import threading
import time
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import checks
from ..backend import array_module, to_numpy
from ..checkpoint import Checkpoint, check_saving, differ, trusted
from ..optim import Adam, Optimizer
from .parallel import Workers
from .watch import Bar, Callback, Diverged, History, cost, not_finite, note_reads, say, watch_memory

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def one_thread():
    """A `with` block in which BLAS keeps to one thread, unless one of `BLAS_THREADS` is set or threadpoolctl missing.

    A second one mostly waits, and spins as it does: beside another busy process a step takes many times as long.
    """
    with suppress(ImportError):
        from threadpoolctl import threadpool_limits

        if not any(name in os.environ for name in BLAS_THREADS):
            return threadpool_limits(1, user_api="blas")
    return nullcontext()


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
    optimizer: Optimizer | None = None
    callbacks: list | tuple = ()
    verbose: int | str = "auto"
    checkpoint: Checkpoint | str | os.PathLike | None = None
    resume: bool = False
    reduce: Workers | None = None

    mode, stop, restore, interrupted, seconds = "auto", False, False, False, 0.0  # of training, before a resume
    part = None  # the epoch that is under way, see `_begin`
    drawn = None  # states of the generators before the batch that is under way
    last_params = None  # where it ended, if it gave others back: what a resumed one goes on with

    def __post_init__(self):
        self.epochs, self.resume = checks.count("epochs", self.epochs), checks.switch("resume", self.resume)
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
            check_saving(self.model)  # before any work
        elif self.resume:
            raise ValueError("resume: there is nothing to resume from, got checkpoint=None; name the checkpoint's path")
        self.reduce = Workers() if self.reduce is None else self.reduce
        if not isinstance(self.reduce, Workers):
            raise TypeError(f"reduce: expected Workers such as enn_np.train.MPI(), got {self.reduce!r}")
        self.reduce.check(self.model)
        self.work.workers = self.reduce
        self.verbose = 0 if self.reduce.rank else self.verbose
        self.names = ("loss", *self.model.metrics)
        self.names += tuple(f"val_{name}" for name in self.names) if self.validate else ()
        self.monitor = "val_loss" if self.validate else "loss"
        self.history, self.warned = History(), set()
        self.best_params = copy.deepcopy(self.model.params)  # at first, those before training

    @property
    def epoch(self):
        """How many epochs are done."""
        return len(self.history.get("loss", ()))

    def clock(self):
        """Seconds of training so far; it stands still between a kill and the resume."""
        return self.seconds + time.perf_counter() - self._began

    def run(self):
        """All epochs, or those left of a resumed run, and the history."""
        self.optimizer.serve(self.model.params)
        self._began = time.perf_counter()
        for callback in self.callbacks:
            callback.on_start(self)
        self.optimizer.learning_rate = checks.number("learning_rate", self.optimizer.learning_rate, low=0)
        self.settings["callbacks"] = [copy.deepcopy(each.settings()) for each in self.callbacks]
        known = {name: value for name, value in vars(self.optimizer).items() if name not in ("steps", "state")}
        self.settings["optimizer"] = {"kind": type(self.optimizer).__name__, **known}
        held = self.checkpoint.held() if self.checkpoint and not self.reduce.rank else nullcontext()
        with self.reduce, held, one_thread():
            if self.checkpoint and self.reduce.first(self.checkpoint.path.exists):
                self._restore()
            if self.reduce.rank:
                self.checkpoint = None  # it is that of rank 0
            self._train()
        return self.history

    def _train(self):
        try:
            while self.epoch < self.epochs and not self.stop:
                if self.epoch:
                    self.save()
                self._epoch()
                if self.interrupted:
                    raise KeyboardInterrupt
            self.history.stopped = "early" if self.stop else "finished"
        except KeyboardInterrupt:
            if self.reduce.size > 1:  # the others are at another place
                raise
            self.history.stopped, self.restore = "interrupted", True
        self.history.duration = self.clock()
        with self.undivided():
            best = self.restore and self.history.best_epoch is not None
            self._hand_back(self.best_params if best else {}, self.callbacks)

    def _begin(self, rng):
        """A new epoch, all that a checkpoint needs to go on in the middle of it: carry, see `Samples`; started, on the
        run's clock; the gradient's norms, one a batch; batches done; seen, sequences or tokens; totals, sums over them.
        """
        carry = self.work.begin(rng, self.epoch)
        norms = array_module(self.model.params["head.W"]).full(len(list(self.work.batches(carry))), np.nan)
        return SimpleNamespace(carry=carry, started=self.clock(), norms=norms, batches=0, seen=0, totals={})

    def _epoch(self):
        """One epoch with its validation, or the rest of one that a checkpoint brought back."""
        with self.undivided():  # what is drawn is kept
            self.part = part = self.part or self._begin(self.rngs["rng"])
        batches = list(self.work.batches(part.carry))
        title = f"{getattr(self.model, 'title', 'epoch')} {self.epoch + 1}/{self.epochs}"
        with closing(Bar(len(batches), title, self.verbose, part.batches)) as bar:
            self._learn(batches[part.batches :], part, bar)
            logs = self.reduce.first(lambda: self._scores(part))  # one for all: what callbacks decide must be the same
            for name, value in logs.items():
                if not math.isfinite(value):
                    raise self._diverged(f"{name} became {value} in")
            for name, value in self.model.params.items():  # of the last update no loss is known
                if not array_module(value).isfinite(value).all():
                    raise self._diverged(f"{name} is not finite after")
            logs["seconds"] = self.clock() - part.started
            bar.finish(logs)
        logs |= self._norms(to_numpy(part.norms)) | {"learning_rate": self.optimizer.learning_rate}
        with self.undivided():
            self.history.add(logs)
            self.history.best_epoch = self._best()
            if self.history.best_epoch == self.epoch - 1:
                self.best_params = copy.deepcopy(self.model.params)
            self.part = None
        for callback in self.callbacks:
            try:
                with self.undivided():  # what it notes of this epoch is whole
                    callback.on_epoch_end(self, logs)
            except KeyboardInterrupt:  # the others see this epoch too, so that a resumed run has all of it
                self.interrupted = True
        rate, self.stop = self.reduce.first(lambda: (self.optimizer.learning_rate, bool(self.stop)))  # as the scores
        self.optimizer.learning_rate = checks.number("learning_rate", rate, low=0)  # a NumPy scalar would upcast

    def _scores(self, part):
        """The numbers of an epoch, training and validation."""
        held = self.validate() if self.validate else {}
        if not isinstance(held, dict):
            raise TypeError(
                f"validate: expected a function that returns a dict such as {{'loss': 1.5}}, got {held!r:.40}"
            )
        return self.model.scores(part.totals, part.seen) | {f"val_{name}": value for name, value in held.items()}

    def _learn(self, batches, part, bar):
        """What is left of an epoch's batches. Ctrl-C leaves off between two of them."""
        # Of an epoch's beginning before a resume, and of other workers' rows, nothing is known.
        read, whole = {}, not part.batches and self.reduce.size == 1
        for batch in batches:
            self.drawn = self._generators()
            count, sums, grads, carry = self.work.learn(batch, part.carry, self.rngs["rng"])
            count, sums, grads = self.reduce.total(count, sums, grads)
            learned = {name: g for name, g in grads.items() if name not in self.optimizer.frozen}
            fault, norm = not_finite(sums["loss"], learned, self.optimizer.clip_norm or self.optimizer.global_clip_norm)
            if fault:
                raise self._diverged(f"{fault} at step {self.optimizer.steps + 1}, batch {part.batches + 1} of")
            with self.undivided():
                self.optimizer.update(self.model.params, grads)
                part.norms[part.batches] = norm
                part.totals = {name: part.totals.get(name, 0.0) + value for name, value in sums.items()}
                part.seen, part.carry, part.batches, self.drawn = part.seen + count, carry, part.batches + 1, None
            bar.advance(part.totals, part.seen)
            note_reads(self.model, read)
            if self.checkpoint and self.checkpoint.due():
                self.save()
            if self.interrupted:
                raise KeyboardInterrupt
        if not self.reduce.rank:
            watch_memory(self.model, self.warned, read if whole else {})

    def _norms(self, norms):
        """What a history says of the gradient norms (steps,) of an epoch."""
        median, high = np.nanpercentile(norms, (50, 99))
        logs, limit = {"gradient_norm": float(median), "gradient_norm_99": float(high)}, self.optimizer.global_clip_norm
        return logs if limit is None else logs | {"clipped": float((norms > limit).mean())}

    def _best(self):
        """The first epoch with the best monitored value, None before any."""
        costs = [cost(self.monitor, value, self.mode) for value in self.history.get(self.monitor, ())]
        return costs.index(min(costs)) if costs else None

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
        where = f", as in enn_np.load('{self.checkpoint.path}')" if self.checkpoint else ""
        return Diverged(
            f"learning_rate: at {self.optimizer.learning_rate:g} {what} epoch {self.epoch + 1}; lower it, or shorten "
            f"gradients by Adam(clip_norm=1.0); the model has the weights {best} again{where}"
        )

    def _hand_back(self, params, callbacks=()):
        """End with `params`, none for those that are there, tell the callbacks, and save what was handed back."""
        last = copy.deepcopy(self.model.params)
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
        if self.checkpoint:
            self.checkpoint.save(self.model.config(), self.model.params, self.state(), self.place())

    def place(self):
        """How far it is, in words."""
        return f"epoch {self.epoch + 1}, batch {self.part.batches}" if self.part else f"epoch {self.epoch}"

    def _generators(self):
        return {name: rng.bit_generator.state for name, rng in self.rngs.items()}

    def state(self):
        """All that this run is made of beside the model, as nested dicts of plain values and arrays."""
        optimizer = self.optimizer
        return {
            "settings": self.settings,
            **(self.drawn or self._generators()),
            "optimizer": {"steps": optimizer.steps, "learning_rate": optimizer.learning_rate, "state": optimizer.state},
            "run": {"stop": self.stop, "seconds": self.clock()},
            "history": dict(self.history),
            "best": self.best_params,
            "last": self.last_params or {},
            "callbacks": {str(i): callback.state() for i, callback in enumerate(self.callbacks)},
            "pass": vars(self.part) if self.part else {},
        }

    def _restore(self):
        """Go on from the checkpoint that is there. Raises ValueError, naming it, where it does not fit this run."""
        path, params, history = self.checkpoint.path, self.model.params, self.history
        if not self.resume:
            what = f"{path} holds a run already; resume=True (--resume) goes on with it"
            raise ValueError(f"checkpoint: {what}, to start anew name another")
        state, mine = self.reduce.first(lambda: self.checkpoint.load(self.model.config(), params))
        differ(path, self.settings, state.get("settings"))
        with trusted(path):
            history.update({name: [float(value) for value in values] for name, values in state["history"].items()})
            if len({len(values) for values in history.values()}) > 1:
                raise ValueError("its history has lists of different lengths")
        if (begun := self.epoch + bool(state.get("pass"))) > self.epochs:
            raise ValueError(f"epochs: {path} has {begun} begun, got {self.epochs}; ask for as many or more")
        with trusted(path):
            like, state["last"] = self.state() | {"last": params}, state["last"] or mine
            if state["pass"]:
                part, asarray = self._begin(np.random.default_rng()), array_module(params["head.W"]).asarray
                part.totals = {name: asarray(value) for name, value in state["pass"]["totals"].items()}
                like["pass"] = vars(part)
            for name in ("settings", "history", "callbacks"):
                del like[name]
            found = {name: state[name] for name in like}
            differ(path, like, found, kinds=True)
            found = _beside(like, found)
            for i, callback in enumerate(self.callbacks):
                callback.load_state(state["callbacks"][str(i)])
            for name, rng in self.rngs.items():
                rng.bit_generator.state = found[name]
            vars(self.optimizer).update(found["optimizer"])
            checks.count("steps", self.optimizer.steps, low=0)
            vars(self).update(found["run"])
            self.best_params, history.best_epoch = found["best"], self._best()
            if found["pass"]:
                self.part = SimpleNamespace(**found["pass"])
                if "order" in part.carry and set(part.carry["order"]) != set(self.part.carry["order"]):
                    raise ValueError("its order does not name every sequence once")
                if self.part.seen:
                    self.model.scores(part.totals, self.part.seen)  # which fails unless they are numbers
            for name, value in found["last"].items():
                params[name][...] = value
        if self.verbose:
            say(f"{path}: resumed after {self.place()}")


def _beside(like, tree):
    """Nested dicts with their arrays where those of `like` are, on the card or not."""
    if isinstance(like, dict):
        return {name: _beside(like[name], tree[name]) for name in like}
    return array_module(like).asarray(tree) if hasattr(like, "dtype") else tree

"""A training run from its first batch to its end, and how it is written down and taken up again.

All that a run is made of can be saved between two batches, `Training.state`: parameters, optimizer moments, best
weights, the generator, what callbacks count, the order of a part-done epoch or a stream's states. So a run that was
killed goes on from its checkpoint as if nothing had happened, to the bit.
"""

import math
import os
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import checks
from .backend import array_module
from .callbacks import Callback, cost
from .checkpoint import Checkpoint, DamagedArchive, check_arrays, differ, flatten
from .device import to_numpy
from .optim import Optimizer

# What draws from a seed beside the initial values (`default_rng(seed)`): else states and noise repeat the weights.
INFERENCE, FIT, FIT_STREAM, SAMPLE = 1, 2, 3, 4


def draws(seed, use):
    """The generator of one `use` of a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use,)))


class Diverged(ValueError):
    """A run has left the finite numbers: its learning rate is too high. Its model has the best weights back."""


class History(dict):
    """Lists with one number per epoch: "loss", "accuracy", "val_loss", ..., "learning_rate", "seconds".

    best_epoch: index of the epoch with the best monitored value. stopped: "finished", "early" or "interrupted".
    skipped: batches left out by non_finite="skip". duration: seconds of training, those before a resume included.
    """

    best_epoch = None
    stopped = "finished"
    skipped = 0
    duration = 0.0

    def add(self, logs):
        for name, value in logs.items():
            self.setdefault(name, []).append(value)


@dataclass
class Pass:
    """How far a pass over the data has come: what a checkpoint needs to go on in the middle of an epoch.

    carry: arrays that go from batch to batch, in nested dicts: the order of a shuffled epoch, or a stream's states.
    started: on the run's clock. seen: sequences or tokens; totals: sums over them.
    """

    carry: dict
    started: float
    batches: int = 0
    seen: int = 0
    totals: dict = field(default_factory=dict)


@dataclass
class Training:
    """A training run as callbacks see it. names: what can be monitored; monitor, mode: what is best.

    `stop`: end after this epoch; `restore`: end with the best weights. checkpoint: where it is saved, or None; resume:
    go on from there; settings: what a resumed run must share. non_finite: "stop" at such a loss or gradient, or "skip".
    """

    model: Any
    optimizer: Optimizer
    epochs: int
    monitor: str
    rng: Any
    checkpoint: Checkpoint | None = None
    resume: bool = False
    settings: dict = field(default_factory=dict)
    non_finite: str = "stop"
    names: tuple = field(init=False)
    mode: str = "auto"
    history: History = field(default_factory=History)
    stop: bool = False
    restore: bool = False
    interrupted: bool = False
    best_score: float = math.inf
    best_params: dict | None = None
    first_params: dict | None = None  # where this run began
    last_params: dict | None = None  # where it ended, if it gave others back: what a resumed one goes on with
    part: Pass | None = None
    drawn: dict | None = None  # of the generator, before the batch that is under way
    callbacks: list = ()
    earlier: float = 0.0  # seconds of training before a resume
    warned: set = field(default_factory=set)

    def __post_init__(self):
        checks.choice("non_finite", self.non_finite, ("stop", "skip"))
        self.resume = checks.switch("resume", self.resume)
        if isinstance(self.checkpoint, str | os.PathLike):
            self.checkpoint = Checkpoint(self.checkpoint)
        if not isinstance(self.checkpoint, Checkpoint | None):
            raise TypeError(f"checkpoint: expected a path or Checkpoint(path), got {self.checkpoint!r}")
        if self.checkpoint is not None:
            self.model.check_saving()  # before any work
        if self.resume and self.checkpoint is None:
            raise ValueError("resume: there is nothing to resume from, got checkpoint=None; name the checkpoint's path")
        self.names = ("loss", *self.model.metrics)
        self.names += tuple(f"val_{name}" for name in self.names) if self.monitor.startswith("val_") else ()

    def ready(self, callbacks):
        """Tell the callbacks. Raises TypeError or ValueError for them and the optimizer, before a file is touched."""
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one such as Adam(1e-3), got {self.optimizer!r}")
        if not isinstance(callbacks, list | tuple) or not all(isinstance(each, Callback) for each in callbacks):
            raise TypeError(
                f"callbacks: expected a list of Callback objects such as [EarlyStopping()], got {callbacks!r}"
            )
        self.optimizer.serve(self.model.params)
        self.callbacks, self._began = callbacks, time.perf_counter()
        for callback in callbacks:
            callback.on_start(self)
        self.first_params = _copied(self.model.params)

    def start(self, work):
        """Go on from the checkpoint, if asked to and there is one: whether it did."""
        if self.checkpoint is None:
            return False
        settings = {"optimizer": self.optimizer.settings()}
        settings["callbacks"] = [each.settings() for each in self.callbacks]
        self.settings |= settings | {"non_finite": self.non_finite}
        if not self.checkpoint.path.exists():
            return False
        if not self.resume:
            raise ValueError(
                f"checkpoint: {self.checkpoint.path} holds a run already; resume=True (--resume) goes on with it, "
                "to start anew name another"
            )
        self._restore(work)
        return True

    def clock(self):
        """Seconds of training so far; it stands still between a kill and the resume."""
        return self.earlier + time.perf_counter() - self._began

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

    def end_epoch(self, logs):
        """Record an epoch, remember its weights if they are the best so far, and ask the callbacks."""
        with self.undivided():
            self.history.add(logs)
            score = cost(self.monitor, logs, self.mode)
            if score < self.best_score:
                self.best_score = score
                self.history.best_epoch = self.epoch - 1
                self.best_params = _copied(self.model.params)
            self.part = None
        for callback in self.callbacks:
            try:
                callback.on_epoch_end(self, logs)
            except KeyboardInterrupt:  # the others see this epoch too, so that a resumed run has all of it
                self.interrupted = True

    @property
    def epoch(self):
        """How many epochs are done."""
        return len(self.history.get("loss", ()))

    def check_finite(self, logs):
        """Stop if a number of an epoch is not finite."""
        for name, value in logs.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} became {value} in")

    def diverged(self, what):
        """The error for a run that has left the finite numbers for good; the best weights are back, or the first."""
        self._hand_back(self.best_params or self.first_params)
        best = "before training" if self.best_params is None else f"after epoch {self.history.best_epoch + 1}"
        where = "" if self.checkpoint is None else f", as in enn_np.load('{self.checkpoint.path}')"
        return Diverged(
            f"learning_rate: at {self.optimizer.learning_rate:g} {what} epoch {self.epoch + 1}; lower it, or shorten "
            f"gradients by Adam(clip_norm=1.0); the model has the weights {best} again{where}"
        )

    def skip(self, fault):
        """Leave a batch out because of a `fault`, or stop."""
        what = f"{fault} at step {self.optimizer.steps + 1}, batch {self.part.batches + 1} of"
        if self.non_finite == "stop":
            raise self.diverged(what)
        if not self.history.skipped:
            warnings.warn(
                f"{what} epoch {self.epoch + 1}: the batch is left out; history.skipped counts such batches",
                RuntimeWarning,
                stacklevel=2,
            )
        self.history.skipped += 1

    def end(self):
        """Give the best weights back if asked for, tell the callbacks, and save."""
        self.history.duration = self.clock()
        with self.undivided():
            self._hand_back(self.best_params if self.restore else None, self.callbacks)

    def _hand_back(self, params, callbacks=()):
        """End with `params`, None for those that are there, and save what was handed back."""
        last = _copied(self.model.params)
        for name, value in (params or {}).items():
            self.model.params[name][...] = value
        for callback in callbacks:
            callback.on_end(self)
        if any((value != last[name]).any() for name, value in self.model.params.items()):
            self.last_params = last
        self.save()

    # ----------------------------------------------------------------------------------------------- checkpoints

    def save(self, only_if_due=False):
        """Write the run as it is between two batches, if it has a checkpoint."""
        if self.checkpoint is not None and (self.checkpoint.due() or not only_if_due):
            self.checkpoint.save(self.model.config(), self.model.params, self.state(), self.place())

    def place(self):
        """How far it is, in words."""
        return f"epoch {self.epoch + 1}, batch {self.part.batches}" if self.part else f"epoch {self.epoch}"

    def state(self):
        """All that this run is made of beside the model, as nested dicts of plain values and arrays."""
        history, part = self.history, self.part
        return {
            "settings": self.settings,
            "rng": self.drawn or self.rng.bit_generator.state,
            "optimizer": {"steps": self.optimizer.steps, "learning_rate": self.optimizer.learning_rate},
            "moments": self.optimizer.state,
            "history": dict(history),
            "best_epoch": history.best_epoch,
            "skipped": history.skipped,
            "seconds": self.clock(),
            "stop": self.stop,
            "best_score": self.best_score,
            "best": self.best_params or {},
            "last": self.last_params or {},
            "callbacks": {str(i): callback.state() for i, callback in enumerate(self.callbacks)},
            "pass": {} if part is None else vars(part),
        }

    def _restore(self, work):
        """Go on from the checkpoint. Raises ValueError, naming it, where it does not fit this run."""
        path, params = self.checkpoint.path, to_numpy(self.model.params)
        state, mine = self.checkpoint.load(self.model.config(), params)
        differ(path, self.settings, state.get("settings"))
        try:
            best, moments, part, last = state["best"], state["moments"], state["pass"], state.get("last", {})
            for name, arrays in {**{m: moments[m] for m in self.optimizer.state}, "best": best, "last": last}.items():
                check_arrays(path, params if arrays else {}, arrays, f"{name}/")
            if part:
                work.check(path, part["carry"])
            stored = flatten({"best": best, "moments": moments, "pass": part, "last": last})[1] | mine
            for name in [name for name, array in stored.items() if not np.isfinite(array).all()]:
                raise ValueError(f"{path}: {name} holds what is not finite; use another copy, or start anew")
            self._take(state, last or mine)
        except ValueError as error:
            raise error if str(error).startswith(f"{path}: ") else DamagedArchive(path, error) from None
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise DamagedArchive(path, error) from None
        if self.epoch > self.epochs:
            raise ValueError(f"epochs: {path} has {self.epoch} done, got {self.epochs}; ask for as many or more")

    def _take(self, state, params):
        """A stored `state` in place of the fresh one, and stored parameters, into the arrays that layers may hold."""
        xp, part = array_module(self.model.params["head.W"]), state["pass"]
        self.rng.bit_generator.state = state["rng"]
        self.optimizer.steps = checks.count("steps", state["optimizer"]["steps"], low=0)
        self.optimizer.learning_rate = checks.number("learning_rate", state["optimizer"]["learning_rate"], above=0)
        for name in self.optimizer.state:
            self.optimizer.state[name] = {key: xp.asarray(value) for key, value in state["moments"][name].items()}
        self.history.update({name: [float(value) for value in values] for name, values in state["history"].items()})
        if len({len(values) for values in self.history.values()}) > 1:
            raise ValueError("its history has lists of different lengths")
        self.history.best_epoch = state["best_epoch"]
        self.history.skipped = checks.count("skipped", state["skipped"], low=0)
        self.stop, self.best_score = checks.switch("stop", state["stop"]), float(state["best_score"])
        self.best_params = {name: xp.asarray(value) for name, value in state["best"].items()} or None
        self.earlier = checks.number("seconds", state["seconds"], low=0)
        for i, callback in enumerate(self.callbacks):
            callback.load_state(state["callbacks"][str(i)])
        if part:
            totals = {name: xp.asarray(value)[()] for name, value in part["totals"].items()}
            if any(value.ndim or value.dtype.kind not in "iuf" for value in totals.values()):
                raise ValueError("its totals are no numbers")
            done, seen = checks.count("batches", part["batches"], 0), checks.count("seen", part["seen"], 0)
            self.part = Pass(_on(xp, part["carry"]), float(part["started"]), done, seen, totals)
        for name, value in params.items():
            self.model.params[name][...] = xp.asarray(value)


def _copied(params):
    return {name: value.copy() for name, value in params.items()}


def _on(xp, tree):
    """Nested dicts of arrays on the device of `xp`."""
    return {key: _on(xp, value) if isinstance(value, dict) else xp.asarray(value) for key, value in tree.items()}

"""A training run from its first batch to its end, and how it is written down and taken up again.

All that a run is made of can be saved between two batches, `Training.state`: parameters, optimizer moments, best
weights, the generator, what callbacks count, the order of a part-done epoch or a stream's states. So a run that was
killed goes on from its checkpoint as if nothing had happened, to the bit.
"""

import math
import os
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import checks
from .backend import array_module
from .callbacks import Callback, cost
from .checkpoint import Checkpoint, DamagedArchive, check_arrays, differ, flatten
from .device import to_numpy
from .optim import Optimizer


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
    """A training run as callbacks see it. names: what can be monitored; monitor: what decides which weights are best.

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
    history: History = field(default_factory=History)
    stop: bool = False
    restore: bool = False
    best_score: float = math.inf
    best_params: dict | None = None
    part: Pass | None = None
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

    def start(self, callbacks, work):
        """Raise TypeError unless optimizer and callbacks can serve, tell the callbacks, and resume if asked to."""
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one such as Adam(1e-3), got {self.optimizer!r}")
        if not isinstance(callbacks, list | tuple) or not all(isinstance(each, Callback) for each in callbacks):
            raise TypeError(
                f"callbacks: expected a list of Callback objects such as [EarlyStopping()], got {callbacks!r}"
            )
        self.callbacks, self._began = callbacks, time.perf_counter()
        for callback in callbacks:
            callback.on_start(self)
        if self.checkpoint is None:
            return
        settings = {"optimizer": self.optimizer.settings(), "callbacks": [each.settings() for each in callbacks]}
        self.settings |= settings | {"non_finite": self.non_finite}
        if self.checkpoint.path.exists():
            if not self.resume:
                raise ValueError(
                    f"checkpoint: {self.checkpoint.path} holds a run already; resume=True (--resume) goes on with it, "
                    "to start anew delete it or name another"
                )
            self._restore(work)
        self.save()

    def clock(self):
        """Seconds of training so far; it stands still between a kill and the resume."""
        return self.earlier + time.perf_counter() - self._began

    def end_epoch(self, logs):
        """Record an epoch, remember its weights if they are the best so far, and ask the callbacks."""
        self.history.add(logs)
        score = cost(self.monitor, logs)
        if score < self.best_score:
            self.best_score = score
            self.history.best_epoch = self.epoch - 1
            self.best_params = {name: value.copy() for name, value in self.model.params.items()}
        for callback in self.callbacks:
            callback.on_epoch_end(self, logs)
        self.part = None

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
        """The ValueError for a run that has left the finite numbers for good; gives the best weights back."""
        self.restore_best()
        last = "" if self.checkpoint is None else f"; enn_np.load('{self.checkpoint.path}') is {self.checkpoint.last}"
        return ValueError(
            f"learning_rate: at {self.optimizer.learning_rate:g} {what} epoch {self.epoch + 1}; lower it, or shorten "
            f"gradients by Adam(clip_norm=1.0){last}"
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
        """Give the best weights back if asked for, then tell the callbacks."""
        self.history.duration = self.clock()
        if self.restore:
            self.restore_best()
        for callback in self.callbacks:
            callback.on_end(self)

    # ----------------------------------------------------------------------------------------------- checkpoints

    def save(self, only_if_due=False):
        """Write the run as it is between two batches, if it has a checkpoint."""
        if self.checkpoint is not None and (self.checkpoint.due() or not only_if_due):
            what = f"epoch {self.epoch + 1}, batch {self.part.batches if self.part else 0}"
            self.checkpoint.save(self.model.config(), self.model.params, self.state(), what)

    def state(self):
        """All that this run is made of beside the model, as nested dicts of plain values and arrays."""
        history, part = self.history, self.part
        return {
            "settings": self.settings,
            "rng": self.rng.bit_generator.state,
            "optimizer": {"steps": self.optimizer.steps, "learning_rate": self.optimizer.learning_rate},
            "moments": self.optimizer.state,
            "history": dict(history),
            "best_epoch": history.best_epoch,
            "skipped": history.skipped,
            "seconds": self.clock(),
            "stop": self.stop,
            "best_score": self.best_score,
            "best": self.best_params or {},
            "callbacks": {str(i): callback.state() for i, callback in enumerate(self.callbacks)},
            "pass": {} if part is None else vars(part),
        }

    def _restore(self, work):
        """Go on from the checkpoint. Raises ValueError, naming it, where it does not fit this run."""
        path, params = self.checkpoint.path, to_numpy(self.model.params)
        state, mine = self.checkpoint.load(self.model.config(), params)
        differ(path, self.settings, state.get("settings"))
        try:
            best, moments, part = state["best"], state["moments"], state["pass"]
            for name in self.optimizer.state:
                check_arrays(path, params if moments[name] else {}, moments[name], f"{name}/")
            check_arrays(path, params if best else {}, best, "best/")
            if part:
                work.check(path, part["carry"])
            stored = flatten({"best": best, "moments": moments, "pass": part})[1] | mine
            for name in [name for name, array in stored.items() if not np.isfinite(array).all()]:
                raise ValueError(f"{path}: {name} holds what is not finite; use another copy")
            self._take(state, mine)
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
        self.history.best_epoch, self.history.skipped = (
            state["best_epoch"],
            checks.count("skipped", state["skipped"], 0),
        )
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

    def restore_best(self):
        for name, value in (self.best_params or {}).items():
            self.model.params[name][...] = value


def _on(xp, tree):
    """Nested dicts of arrays on the device of `xp`."""
    return {key: _on(xp, value) if isinstance(value, dict) else xp.asarray(value) for key, value in tree.items()}

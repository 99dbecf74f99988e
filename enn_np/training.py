"""The training loop, and what watches it: early stopping, a plateau schedule, your own callbacks, a progress bar.

    for every epoch:  shuffle;  for every batch: loss, gradients, update;  validate;  ask the callbacks

Keras' rules throughout, so that its users find what they expect and the paper's protocol can be replayed.
"""

import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import checks
from .backend import array_module
from .optim import Adam, Optimizer


class History(dict):
    """Lists with one number per epoch: "loss", "accuracy", "val_loss", ..., "learning_rate", "seconds".

    best_epoch: index of the epoch with the best monitored value. stopped: "finished", "early" or "interrupted".
    """

    best_epoch = None
    stopped = "finished"

    def add(self, logs):
        for name, value in logs.items():
            self.setdefault(name, []).append(value)


@dataclass
class Training:
    """A training run as callbacks see it. names: what can be monitored; monitor: what decides which weights are best.

    `stop`: end after this epoch; `restore`: end with the best weights.
    """

    model: Any
    optimizer: Optimizer
    epochs: int
    monitor: str
    rng: Any
    names: tuple = field(init=False)
    history: History = field(default_factory=History)
    stop: bool = False
    restore: bool = False
    best_score: float = math.inf
    best_params: dict | None = None

    def __post_init__(self):
        self.names = ("loss", *self.model.metrics)
        self.names += tuple(f"val_{name}" for name in self.names) if self.monitor.startswith("val_") else ()

    def start(self, callbacks):
        """Raise TypeError unless optimizer and callbacks can serve, then tell the callbacks."""
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one such as Adam(1e-3), got {self.optimizer!r}")
        if not isinstance(callbacks, list | tuple) or not all(isinstance(each, Callback) for each in callbacks):
            raise TypeError(
                f"callbacks: expected a list of Callback objects such as [EarlyStopping()], got {callbacks!r}"
            )
        for callback in callbacks:
            callback.on_start(self)

    def end_epoch(self, logs, callbacks):
        """Record an epoch, remember its weights if they are the best so far, and ask the callbacks."""
        self.history.add(logs)
        score = _cost(self.monitor, logs)
        if score < self.best_score:
            self.best_score = score
            self.history.best_epoch = len(self.history["loss"]) - 1
            self.best_params = {name: value.copy() for name, value in self.model.params.items()}
        for callback in callbacks:
            callback.on_epoch_end(self, logs)

    def check_finite(self, logs):
        """Raise ValueError, with the best weights given back, if training has left the finite numbers for good."""
        for name, value in logs.items():
            if not math.isfinite(value):
                self.restore_best()
                raise ValueError(
                    f"learning_rate: at {self.optimizer.learning_rate:g} {name} became {value} in epoch "
                    f"{len(self.history.get('loss', ())) + 1}; lower it, or shorten gradients by Adam(clip_norm=1.0)"
                )

    def end(self, callbacks):
        """Give the best weights back if asked for, then tell the callbacks."""
        if self.restore:
            self.restore_best()
        for callback in callbacks:
            callback.on_end(self)

    def restore_best(self):
        for name, value in (self.best_params or {}).items():
            self.model.params[name][...] = value


class Callback:
    """Watches a training run: override `on_start`, `on_epoch_end` (logs: this epoch's numbers) and `on_end`."""

    def on_start(self, training):
        pass

    def on_epoch_end(self, training, logs):
        pass

    def on_end(self, training):
        pass


class Patience(Callback):
    """Counts epochs in which `monitor` did not improve by more than min_delta; after `patience` of them, `act`.

    Losses improve by falling and accuracies by rising. A new run starts counting anew.
    """

    best, wait = math.inf, 0

    def __init__(self, monitor, patience, min_delta):
        self.monitor, self.patience = monitor, checks.count("patience", patience, low=0)
        self.min_delta = checks.number("min_delta", min_delta, low=0)

    def on_start(self, training):
        if self.monitor not in training.names:
            known = ", ".join(map(repr, training.names))
            raise ValueError(
                f"monitor: expected one of {known}, got {self.monitor!r}; what begins with val_ needs validation data"
            )
        self.best, self.wait = math.inf, 0

    def on_epoch_end(self, training, logs):
        cost = _cost(self.monitor, logs)
        self.wait += 1
        if cost < self.best - self.min_delta:
            self.best, self.wait = cost, 0
        elif self.wait >= self.patience:
            self.act(training)


class EarlyStopping(Patience):
    """Stop when `monitor` has not improved by more than min_delta for `patience` epochs.

    restore_best: end with the weights of the epoch where `monitor` was best, stopped early or not.
    """

    def __init__(self, monitor="val_loss", patience=3, min_delta=0.0, restore_best=True):
        super().__init__(monitor, patience, min_delta)
        self.restore_best = checks.switch("restore_best", restore_best)

    def on_start(self, training):
        super().on_start(training)
        if self.restore_best:
            training.monitor, training.restore = self.monitor, True

    def act(self, training):
        training.stop = True


class ReduceOnPlateau(Patience):
    """Multiply the learning rate by `factor`, but not to below min_learning_rate, after `patience` epochs in which
    `monitor` improved by min_delta or less."""

    def __init__(self, monitor="val_loss", factor=0.5, patience=2, min_delta=1e-4, min_learning_rate=1e-5):
        super().__init__(monitor, patience, min_delta)
        self.factor = checks.number("factor", factor, above=0, high=1)
        self.min_learning_rate = checks.number("min_learning_rate", min_learning_rate, low=0)

    def act(self, training):
        rate = training.optimizer.learning_rate
        if rate > self.min_learning_rate:  # one that began below it is never raised
            training.optimizer.learning_rate = max(rate * self.factor, self.min_learning_rate)
            self.wait = 0


def _cost(name, logs):
    """The monitored number, turned so that less is better."""
    return -logs[name] if name.endswith("accuracy") else logs[name]


def fit(
    model,
    x,
    y,
    *,
    epochs=10,
    batch_size=128,
    validation=None,
    optimizer=None,
    callbacks=(),
    seed=0,
    mask=None,
    progress=True,
):
    """Train `model` in place and return its `History`.

    x (n, T, D) float array of the model's dtype; y (n,) labels or (n, O) targets. validation: (x, y) or (x, y, mask),
    or a share of the data between 0 and 1, taken from the end as Keras does. optimizer: Adam() by default. callbacks:
    a list of `Callback`. mask (n, T) bool. seed: of shuffling, dropout, initial states and trace noise; the same seed
    on the same machine gives the same weights to the bit. progress: a bar per epoch, shown only on a terminal. Ctrl-C
    ends training with the best weights so far. Raises TypeError or ValueError naming the argument, before any work;
    ValueError also where the loss became infinite or NaN, with the best weights so far given back.
    """
    x, y, mask = model.check_data(x, y, mask)
    epochs, batch_size = checks.count("epochs", epochs), checks.count("batch_size", batch_size)
    x, y, mask, validation = _split_validation(model, x, y, mask, validation)
    optimizer = Adam() if optimizer is None else optimizer
    monitor = "loss" if validation is None else "val_loss"
    training = Training(model, optimizer, epochs, monitor, np.random.default_rng(checks.count("seed", seed, low=0)))

    def train_epoch(title):
        return _train_epoch(training, x, y, mask, batch_size, title, progress)

    def validate():
        return model.evaluate(*validation[:2], batch_size, validation[2])

    return run_epochs(training, callbacks, train_epoch, None if validation is None else validate)


def run_epochs(training, callbacks, train_epoch, validate=None):
    """All epochs of a run, and its history. train_epoch(title) trains one; it and validate() return numbers by name."""
    training.start(callbacks)
    try:
        for epoch in range(training.epochs):
            started = time.perf_counter()
            logs = train_epoch(f"epoch {epoch + 1}/{training.epochs}")
            if validate is not None:
                logs |= {f"val_{name}": value for name, value in validate().items()}
            training.check_finite(logs)
            logs |= {"learning_rate": training.optimizer.learning_rate, "seconds": time.perf_counter() - started}
            training.end_epoch(logs, callbacks)
            if training.stop:
                training.history.stopped = "early"
                break
    except KeyboardInterrupt:
        training.history.stopped = "interrupted"
        training.restore = True
    training.end(callbacks)
    return training.history


def _train_epoch(training, x, y, mask, batch_size, title, progress):
    """One pass over the data in a new order. Batches are rows picked by index: the data set is never copied."""
    model, order, totals = training.model, training.rng.permutation(len(x)), {}
    xp = array_module(model.params["head.W"])
    with _bar(len(x), title, progress) as bar:
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            part_mask = None if mask is None else model.time_major(mask[rows])
            part = model.time_major(x[rows])
            metrics, grads = model.loss_and_grads(part, xp.asarray(y[rows]), training.rng, part_mask)
            training.optimizer.update(model.params, grads)
            for name, value in {**metrics, "loss": metrics["loss"] * len(rows)}.items():
                totals[name] = totals.get(name, 0.0) + value
            bar.advance(len(rows), totals)
    return {name: float(value) / len(x) for name, value in totals.items()}


def _split_validation(model, x, y, mask, validation):
    """Training data, and (x, y, mask) to validate on or None."""
    if validation is None:
        return x, y, mask, None
    if isinstance(validation, tuple | list):
        if len(validation) not in (2, 3):
            raise ValueError(f"validation: expected (x, y) or (x, y, mask), got {len(validation)} parts")
        names = ("validation x", "validation y", "validation mask")
        return x, y, mask, model.check_data(*validation, names=names)
    share = checks.number("validation", validation, above=0, high=1)
    cut = int(len(x) * (1 - share))
    if not 0 < cut < len(x):
        raise ValueError(
            f"validation: a share of {share} leaves {cut} of {len(x)} sequences to train on and {len(x) - cut} to "
            "validate on, expected at least one each"
        )
    held = (x[cut:], y[cut:], None if mask is None else mask[cut:])
    return x[:cut], y[:cut], None if mask is None else mask[:cut], held


class _bar:
    """tqdm's bar on a terminal with loss, metrics and time left; nothing elsewhere."""

    def __init__(self, total, title, progress):
        self.total, self.title, self.done = total, title, 0
        self.tqdm = None
        if progress and sys.stderr.isatty():
            from tqdm import tqdm

            self.tqdm = tqdm(total=total, desc=title, unit=" seq", leave=False, dynamic_ncols=True)

    def __enter__(self):
        return self

    def advance(self, rows, totals):
        self.done += rows
        if self.tqdm is not None:
            self.tqdm.update(rows)
            means = {name: f"{float(value) / self.done:.4f}" for name, value in totals.items()}
            self.tqdm.set_postfix(means, refresh=False)

    def __exit__(self, *exception):
        if self.tqdm is not None:
            self.tqdm.close()

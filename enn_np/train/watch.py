"""Who watches a training run: its history, callbacks, warnings of what goes wrong without any error, and the bar."""

import math
import os
import sys
import warnings
from contextlib import suppress

import numpy as np

from .. import checks
from ..backend import array_module
from ..engram import Engram
from ..optim import length

WIDTH = 60  # columns of a bar or a line
BAR = "{desc} {bar} {n_fmt}/{total_fmt} {remaining}{postfix}"
LOST = suppress(OSError, ValueError, AttributeError)  # a stream that is closed, or piped into `head`, or none at all
SATURATED = 0.5  # share of the trace on the clip
DEAD = 0.01  # of an even share 1 / N, which no retrieval weight of the slot reaches
FALLING, RISING = ("loss", "perplexity", "bits", "mae", "mse"), ("accuracy",)  # with val_ before it or not


class Diverged(ValueError):
    """A run has left the finite numbers: its learning rate is too high. Its model has the best weights back."""


class History(dict):
    """Lists with one number per epoch: "loss", "accuracy", "val_loss", ..., "learning_rate", "seconds".

    "gradient_norm" and "gradient_norm_99": median and 99th percentile, over an epoch's steps, of the length of all
    gradients together, before clipping; "clipped": the share of steps where that was over `global_clip_norm`.
    best_epoch: index of the epoch with the best monitored value. stopped: "finished", "early" or "interrupted".
    duration: seconds of training, those before a resume included.
    """

    best_epoch, stopped, duration = None, "finished", 0.0

    def add(self, logs):
        """Append the numbers of an epoch."""
        for name, value in logs.items():
            self.setdefault(name, []).append(float(value))


# ------------------------------------------------------------------------------------------------------- callbacks


def cost(name, value, mode="auto"):
    """A monitored number, turned so that less is better. Raises ValueError where "auto" does not know which way."""
    known = name.removeprefix("val_")
    if mode == "auto" and known not in FALLING + RISING:
        raise ValueError(f'mode: expected "min" or "max" for {name!r}, got "auto", which knows {FALLING + RISING}')
    return -value if mode == "max" or (mode == "auto" and known in RISING) else value


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

    mode: "min" if it improves by falling, "max" by rising; "auto" knows the library's own numbers. A run counts anew.
    """

    best, wait = math.inf, 0

    def __init__(self, monitor, patience, min_delta, mode):
        self.monitor, self.patience = monitor, checks.count("patience", patience, low=0)
        self.mode = checks.choice("mode", mode, ("auto", "min", "max"))
        self.min_delta = checks.number("min_delta", min_delta, low=0)

    def on_start(self, training):
        if self.monitor not in training.names:
            what = f"monitor: expected one of {', '.join(map(repr, training.names))}, got {self.monitor!r}"
            raise ValueError(f"{what}; what begins with val_ needs validation data")
        cost(self.monitor, 0.0, self.mode)  # a direction that is unknown is told before any work
        self.best, self.wait = math.inf, 0

    def settings(self):
        return super().settings() | {name: value for name, value in vars(self).items() if name not in self.state()}

    def state(self):
        return {"best": self.best, "wait": self.wait}

    def load_state(self, state):
        self.best, self.wait = float(state["best"]), checks.count("wait", state["wait"], low=0)

    def on_epoch_end(self, training, logs):
        score = cost(self.monitor, logs[checks.choice("monitor", self.monitor, tuple(logs))], self.mode)
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


# ------------------------------------------------------------------------- watchdogs: what goes wrong without any error


def not_finite(loss, grads, clipped):
    """None, or in words which of `loss` and the gradients by name is not finite; and the length of all together.

    Asked at every batch, so by one product per gradient: NaN or infinity anywhere shows in g . g. What is not `clipped`
    Adam must be able to square. On a GPU to ask would stall the stream; there an epoch's numbers are looked at.
    """
    arrays = list(grads.values()) or [np.zeros(1)]
    norm, limit = length(arrays), math.inf if clipped else float(np.finfo(arrays[0].dtype).max) ** 0.5
    if array_module(arrays[0]) is not np or (math.isfinite(loss) and norm < limit):
        return None, norm
    if not math.isfinite(loss):
        return f"loss became {float(loss)}", norm
    longest = max(grads, key=lambda name: length([grads[name]]))
    name = next((name for name, g in grads.items() if not np.isfinite(g).all()), longest)
    g = grads[name]
    bad = g[~np.isfinite(g)]
    what = f"{float(bad.flat[0])} in {bad.size} of {g.size} entries" if bad.size else "too large to square"
    return f"the gradient of {name} became {what}", norm


def note_reads(model, read):
    """Keep in `read`, by layer, the largest weight (N,) that each slot has had: a batch reads only a part of them."""
    for i, (cell, tape) in enumerate(zip(model.cells, model.tapes, strict=False)):
        if isinstance(cell, Engram):  # a sharp address, as Binding has, leaves slots alone by design
            most = tape.kept.a.max((0, 1))  # of a (T, B, N)
            read[i] = array_module(most).maximum(read.get(i, most), most)


def watch_memory(model, warned, read):
    """Warn, once for every name in the set `warned`, of a trace that lies on its clip, as the last batch left it, and
    of slots that no batch of an epoch read. read: see `note_reads`, or {} where not all was seen."""
    for i, (cell, tape) in enumerate(zip(model.cells, model.tapes, strict=False)):
        if not isinstance(cell, Engram):
            continue
        faults, clip = {}, cell.trace_clip
        if clip is not None and (share := float((abs(tape.states[-1].A) >= clip).mean())) > SATURATED:
            what = f"{share:.0%} of its Hebbian trace lies on the clip {clip:g} and keeps little but signs"
            faults["saturated"] = f"{what}; lower hebbian_rate = {cell.hebbian_rate:g} or raise trace_clip"
        if i in read and (dead := int((read[i] < DEAD / cell.slots).sum())):
            what = f"{dead} of its {cell.slots} memory slots are never read: no weight in an epoch reached {DEAD} / N"
            faults["dead"] = f"{what}; use fewer slots, or a retrieval that spreads more"
        for fault in [fault for fault in faults if (fault, i) not in warned]:
            warned.add((fault, i))
            warnings.warn(f"cell {i}: {faults[fault]}", RuntimeWarning, stacklevel=2)


# ------------------------------------------------------------------------------------------------------ what is shown


def say(line=""):
    """Print a line at once. Where its reader is gone, as with `| head`, the work goes on, and no one is told."""
    with LOST:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            mute()


def mute():
    """Standard output goes nowhere from now on: what is still to be written there would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _screen():
    """Where a bar can be drawn anew: on a "terminal" or in a "notebook"; None elsewhere."""
    with LOST:
        if "IPKernelApp" in sys.modules.get("IPython").get_ipython().config:
            return "notebook"
    with LOST:
        return "terminal" if sys.stderr.isatty() else None


class Bar:
    """An epoch's bar of batches, if any, of which `done` are, and its numbers in the end, which stay.

    Where there is no bar, or its stream has gone, `LOST` makes all that is done to it nothing.
    """

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
            if self.tqdm.update(1):  # only where the bar was drawn anew: to fetch a card's numbers is to wait for it
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
        with LOST:
            self.tqdm.bar_format, self.tqdm.desc = "{desc}", line

    def close(self):
        with LOST:
            self.tqdm.close()

"""What watches a training run, between its epochs: early stopping, a plateau schedule, and your own `Callback`."""

import math

from . import checks

FALLING, RISING = ("loss", "perplexity", "bits", "mae", "mse"), ("accuracy",)  # with val_ before it or not


class Callback:
    """Watches a training run: override `on_start`, `on_epoch_end` (logs: this epoch's numbers) and `on_end`."""

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
            raise ValueError(
                f"monitor: expected one of {known}, got {self.monitor!r}; what begins with val_ needs validation data"
            )
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


def cost(name, logs, mode="auto"):
    """The monitored number, turned so that less is better. Raises ValueError where "auto" does not know which way."""
    known = name.removeprefix("val_")
    if mode == "auto" and known not in FALLING + RISING:
        raise ValueError(f'mode: expected "min" or "max" for {name!r}, got "auto", which knows {FALLING + RISING}')
    return -logs[name] if mode == "max" or (mode == "auto" and known in RISING) else logs[name]

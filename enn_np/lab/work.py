"""One run of each kind made ready: its network, how it learns, and how it is tested."""

import math
import time
from collections import namedtuple
from functools import partial
from itertools import accumulate

import numpy as np

from ..binding import Binding
from ..data.text import load_wikitext, paper_windows, stream_batches, unigram_perplexity
from ..engram import Engram
from ..language import cached_perplexity, wikitext2_recipe
from ..look.attribution import written_lengths
from ..look.monitor import HebbianTraceMonitor
from ..models import Regressor
from ..optim import Adam
from ..train import Callback, Diverged, EarlyStopping, ReduceOnPlateau, fit, fit_fresh
from . import inputs, table

PROBE = 128  # of the validation sequences, to watch the trace with
VALIDATION, TEST = 2_048, 8_192  # fresh sequences
EVERY = 250  # steps between two validations
ENOUGH = 0.999  # validation accuracy at which a run on fresh sequences is over
CORPORA = {"wikitext2": "wikitext-2", "wikitext103": "wikitext-103"}


# A run made ready. learn(**saving of `enn_np.fit`) -> history, test() -> numbers to write down; what watches the trace,
# and the labels of its probe, or None.
Work = namedtuple("Work", "model learn test monitor labels", defaults=(None, None))


def watched(model, x):
    """[what watches the trace that x leaves], empty if there is none."""
    return [HebbianTraceMonitor(model, x)] if isinstance(model.cells[0], Engram) else []


def on_split(model, data, seed, training, frozen=()):
    """Training on a `Split` by the paper's settings, made ready: clip_norm 1, early stopping, halving on a plateau.
    training: epochs, batch_size, learning_rate. frozen: see `Optimizer`."""
    watch, settings = watched(model, data.x_val[:PROBE]), {name: training[name] for name in ("epochs", "batch_size")}
    settings |= {"seed": seed, "validation_data": (data.x_val, data.y_val)}
    settings["optimizer"] = Adam(training["learning_rate"], clip_norm=1.0, frozen=frozen)
    settings["callbacks"] = [EarlyStopping(), ReduceOnPlateau(), *watch]

    def test():
        scores = model.evaluate(data.x_test, data.y_test, training["batch_size"])
        if isinstance(model, Regressor):
            scores["linear_loss"] = linear_loss(data)
        size = model.size - sum(model.params[name].size for name in frozen)
        sizes = {"train": len(data.x), "validation": len(data.x_val), "test": len(data.x_test)}
        return {"parameters": size, **rounded(scores), "sequences": sizes}

    return Work(model, partial(fit, model, data.x, data.y, **settings), test, *watch, labels=data.y_val[:PROBE])


def rounded(scores):
    return {f"test_{name}": round(value, 6) for name, value in scores.items()}


def outcome(history, monitor=None):
    """What to write down of a training run: how long, to what end, and the numbers of every epoch."""
    curves = {name: values for name, values in history.items() if not name.startswith("trace_")}
    numbers = {
        "seconds": round(history.duration, 2),
        "stopped": history.stopped,
        "best_epoch": None if history.best_epoch is None else history.best_epoch + 1,
        "history": {name: [float(f"{value:.6g}") for value in values] for name, values in curves.items()},
    }
    # The trace of the untrained network comes first, which the history lacks.
    return numbers | ({"trace": monitor.statistics} if monitor else {})


def arrays(experiment, name, seed, training, device):
    """Sequences that are there, or generated once."""
    data = inputs.load_split(experiment, seed, training["limit"])
    model = table.network(experiment, name, seed).to_device(device)
    return on_split(model, data, seed, training, table.frozen(experiment, name))


def linear_loss(data):
    """Mean squared error on the test part of the straight line that fits the training part best."""
    x, x_test = (np.column_stack([part[:, 0], np.ones(len(part))]) for part in (data.x, data.x_test))
    return float(((x_test @ np.linalg.lstsq(x, data.y, rcond=None)[0] - data.y_test) ** 2).mean())


def stream(experiment, name, seed, training, device):
    """Words of the training vocabulary, embedded; the state goes along the text; no noise in valid and test."""
    fitting = wikitext2_recipe(name)[1]
    text = load_wikitext(CORPORA[experiment.name], train=training["train_file"])
    tokens = text.train[: training["limit"]]
    model = table.network(experiment, name, seed, vocabulary=len(text.vocabulary)).to_device(device)
    fitting["epochs"], fitting["optimizer"].learning_rate = training["epochs"], training["learning_rate"]
    watch = watched(model, next(stream_batches(text.valid, fitting["batch_size"], fitting["steps"]))[0])
    fitting["callbacks"] += watch
    learn = partial(model.fit_stream, tokens, validation_data=text.valid, seed=seed, **fitting)
    return Work(model, learn, lambda: text_numbers(model, scored(model, text), len(tokens), training), *watch)


def scored(model, text):
    """What valid and test say of a model, beside word frequencies, and with a cache by what valid prefers."""
    scores, thetas, shares = {}, 0.0125 * 2 ** np.arange(9), (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    for part, ids in (("valid", text.valid), ("test", text.test)):
        tried = cached_perplexity(model, ids, thetas, shares)
        theta, share = np.unravel_index(tried.argmin(), tried.shape)
        thetas, shares = [thetas[theta]], [shares[share]]
        found = {"cache_perplexity": tried.min(), "cache_theta": thetas[0], "cache_share": shares[0]}
        found["unigram_perplexity"] = unigram_perplexity(text.vocabulary.counts, ids)
        scores[part] = model.evaluate_stream(ids) | found
    return scores


def windows(experiment, name, seed, training, device):
    """32-word windows cut as published, the id as one float."""
    text = paper_windows(CORPORA[experiment.name], train=training["train_file"])
    model = table.network(experiment, name, seed, vocabulary=len(text.words)).to_device(device)
    x, y = (part[: training["limit"]] for part in text[:2])
    watch = watched(model, x[:32])
    settings = {"epochs": training["epochs"], "validation_split": 0.2, "seed": seed}
    settings["optimizer"] = Adam(training["learning_rate"], clip_norm=1.0)
    settings["callbacks"] = [EarlyStopping("val_perplexity"), ReduceOnPlateau("val_perplexity"), *watch]

    def test():
        return text_numbers(model, {"test": model.evaluate(text.x_test, text.y_test)}, len(x), training)

    return Work(model, partial(fit, model, x, y, **settings), test, *watch)


def text_numbers(model, scores, size, training):
    found = {f"{part}_{name}": float(f"{value:.6g}") for part in scores for name, value in scores[part].items()}
    return {"parameters": model.size, **found, "train_size": size, "train_file": training["train_file"]}


class Turns(Callback):
    """New sequences at every step, and a rate that stays as it is: a run made ready as a `Work` is.

    Validation and test sequences are drawn apart. A network is tested at the end of each phase on all phases so far. A
    run ends early where validation shows that nothing is left to learn. ends: of epochs, in steps.
    """

    monitor = labels = None

    def __init__(self, experiment, name, seed, training, device):
        self.experiment, self.training, self.steps = experiment, training, training["steps"]
        self.model, self.draw = table.network(experiment, name, seed).to_device(device), inputs.source(experiment, seed)
        # Training, validation, test, initial states. Not 0: [seed, 0] is where the model's first weights came from.
        train, held, self.rng, noise = (np.random.default_rng([seed, part]) for part in (5, 1, 2, 3))
        self.held = [self.draw(held, VALIDATION, "validation", phase) for phase in range(experiment.phases)]
        self.tests = [self.draw(self.rng, TEST, "test", phase) for phase in range(experiment.phases)]
        turns = range(1, self.steps + 1)
        self.ends = [step for step in turns if step % EVERY == 0 or self.phase(step) > self.phase(step - 1)]
        self.rngs, self.scores, self.done = (train, noise), [], 0

    def phase(self, step):
        return step * self.experiment.phases // self.steps

    def settings(self):
        return super().settings() | ({"steps": self.steps} if self.experiment.phases > 1 else {})  # they decide a phase

    def learn(self, **saving):
        self.began, batch = time.process_time(), self.training["batch_size"]
        history = fit_fresh(
            self.model,
            lambda rng, step: self.draw(rng, batch, "train", self.phase(step)),
            np.diff([0, *self.ends]).tolist(),
            validate=lambda done: mean(self.evaluate(self.held, self.phase(done - 1))),
            rngs=self.rngs,
            optimizer=Adam(self.training["learning_rate"], global_clip_norm=self.training["clip"]),
            callbacks=[self],
            **saving,
        )
        if history:  # else it was interrupted before the first look
            history["step"] = self.ends[: len(history["loss"])]
            history["seconds"] = list(accumulate(history["seconds"]))
            history.best_epoch = len(history["loss"]) - 1  # the last: what is tested is what training ended with
        self.cpu_seconds = round(time.process_time() - self.began, 2)
        return history

    def evaluate(self, parts, phase):
        """Scores on all phases so far."""
        return [self.model.evaluate(*each) for each in parts[: phase + 1]]

    def on_epoch_end(self, training, logs):
        self.done = self.ends[training.epoch - 1]
        phase = self.phase(self.done - 1)
        enough = self.experiment.phases == 1 and logs.get("val_accuracy", 0) > ENOUGH
        training.stop = enough and self.done < self.steps
        if enough or self.phase(self.done) > phase:
            self.scores.append(found := self.evaluate(self.tests, phase))
            if not all(math.isfinite(value) for scores in found for value in scores.values()):
                raise Diverged(f"learning_rate: the weights give {found}; lower it")

    def state(self):
        return {"scores": self.scores, "done": self.done, "cpu_seconds": time.process_time() - self.began}

    def load_state(self, state):
        self.scores, self.done = state["scores"], state["done"]
        self.began -= state["cpu_seconds"]

    def test(self):
        scores = self.scores or [self.evaluate(self.tests, 0)]  # none of a run that was interrupted
        found = {"parameters": self.model.size, "cpu_seconds": self.cpu_seconds, "steps": self.done}
        states = [cell.initial_state(1, self.model.dtype) for cell in self.model.cells]
        found["state_bytes"] = sum(part.nbytes for state in states for part in state)  # from step to step, a sequence
        found |= rounded(mean(scores[-1]))
        if len(scores) > 1:
            found["accuracies"] = [[round(each["accuracy"], 6) for each in row] for row in scores]
            found["test_forgetting"] = round(forgetting(found["accuracies"]), 6)
        x, y = self.tests[0]
        if self.experiment.task == "fewshot":
            seen = self.model.evaluate(*self.draw(self.rng, len(x), "seen", 0))["accuracy"]
            nearest = float((inputs.nearest(self.experiment, x) == y).mean())
            found |= rounded({"seen_accuracy": seen, "nearest_accuracy": nearest})
        if self.experiment.task == "omniglot":
            found |= rounded(inputs.instances("instance", self.model.predict(x), y))
            found |= rounded(inputs.instances("nearest", inputs.nearest_before(self.experiment, x), y))
        if self.experiment.task == "recall" and isinstance(self.model.cells[0], Binding):
            found["recalled"] = recalled(self.model, x[0])
        return found


def mean(scores):
    """{name: mean} of dicts of scores."""
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}


def forgetting(accuracies):
    """Mean over the earlier tasks of the best accuracy so far minus the accuracy now; below 0 where they got better.

    accuracies: after each task, a list of the accuracies on it and on those before, K >= 2 rows of 1 to K numbers.
    Source: Chaudhry, Dokania, Ajanthan and Torr, "Riemannian Walk for Incremental Learning", arXiv 1801.10112, (3).
    """
    if len(accuracies) < 2 or [len(row) for row in accuracies] != list(range(1, len(accuracies) + 1)):
        raise ValueError(f"accuracies: expected rows of 1, 2, ... numbers, 2 or more, got {accuracies}")
    *before, now = accuracies
    best = [max(row[task] for row in before[task:]) for task in range(len(before))]
    return float(np.mean(np.subtract(best, now[:-1])))


def recalled(model, x):
    """For the picture: the symbols (T,) of a recall sequence x (T, D), which is then asked for each of its keys in
    turn, and how long the part of every recall is that each step wrote, (pairs, T - 1)."""
    pairs = (len(x) - 3) // 2
    asked = np.repeat(x[None], pairs, axis=0)  # (pairs, T, D)
    asked[:, -1] = x[0 : 2 * pairs : 2]
    model.to_device("cpu")  # where attribution works
    lengths = written_lengths(model.cells[0], model.run_cells(model.time_major(asked))[2][0], len(x) - 1)
    return {"symbols": x.argmax(-1).tolist(), "lengths": np.round(lengths, 4).tolist()}


SOURCES = {"arrays": arrays, "stream": stream, "windows": windows, "fresh": Turns}

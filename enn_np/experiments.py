"""Any cell, by name, on tasks that draw fresh sequences at every step, all networks of one size.

    for each of `steps`:  x, y = draw(rng, batch_size, "train");  Adam;  every EVERY steps: validate

Every network has about PARAMETERS numbers, so that widths differ. One run is one file, DIR/TASK-sound-NAME-SEED.json; a
run whose file is there is not run again. Of several learning rates each is tried with seed 0,
DIR/rates/TASK-sound-NAME-RATE.json, and the one with the lowest last validation loss is used for all seeds. Validation
and test sequences are drawn apart. The rate stays as it is from the first step to the last. A run ends early where
validation shows that nothing is left to learn.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import checks, storage
from .answers import StepClassifier
from .binding import Binding
from .cells import GRU, LSTM, RNN
from .engram import Engram
from .learned import LearnedEngram
from .models import Classifier
from .optim import Adam
from .processes import in_processes, mine, one_thread
from .protocols import diverged, folder, machine, read_result, tell, write_json
from .session import Diverged
from .watch import not_finite
from .window import Window

PARAMETERS = 70_000
TOLERANCE = 0.05  # of their number
SLOTS = 64
VALIDATION, TEST = 2_048, 8_192  # sequences
EVERY = 250  # steps between two validations
ENOUGH = 0.999  # validation accuracy at which a run is over

# Cells by name, of one width: the paper's as published, with a trace per sample, and with that trace's numbers learned;
# attention in the trace's place; the binding cell as it comes, then with one switch turned.
NETWORKS = {
    "rnn": lambda H, N: RNN(H),
    "gru": lambda H, N: GRU(H),
    "lstm": lambda H, N: LSTM(H),
    "engram": lambda H, N: Engram(H, N),
    "engram-sample": lambda H, N: Engram(H, N, trace="sample"),
    "engram-learned": lambda H, N: LearnedEngram(H, N, trace="sample"),
    "window": lambda H, N: Window(H, N, window=64),
    "binding": lambda H, N: Binding(H, N),
    "binding-temperature": lambda H, N: Binding(H, N, learned_temperature=True),
    "binding-own": lambda H, N: Binding(H, N, write_at="own"),
    "binding-recurrent": lambda H, N: Binding(H, N, recurrent_cue=True),
    "binding-fixed": lambda H, N: Binding(H, N, plasticity="fixed"),
    "binding-learned": lambda H, N: Binding(H, N, plasticity="learned"),
    "binding-scales": lambda H, N: Binding(H, N, decay=0.2, slowest=0.002, learned_decay=True),
    "binding-decay": lambda H, N: Binding(H, N, decay=0.05, learned_decay=True),
    "binding-ungated": lambda H, N: Binding(H, N, gated=False),
    "binding-batch": lambda H, N: Binding(H, N, trace="batch"),
    "binding-no-bank": lambda H, N: Binding(H, N, bank_read=False),
    "binding-no-trace": lambda H, N: Binding(H, N, plasticity="fixed", rate=0.0),  # writes nothing
}


@dataclass(frozen=True)
class Task:
    """What networks are compared on; its name ends in its size, such as the pairs of recall8.

    inputs, outputs: of a network. slots: of a memory. answers: how many steps at the end have a label each, None for
    one label a sequence. phases: parts of the training that follow one another. columns: of its table, (title, field of
    a result, format) each; the first is what networks are compared by. family: whose curves share a figure.
    source(seed): draw(rng, n, part, phase) -> x (n, T, D), y, with part "train", "validation" or "test".
    """

    size: int
    kind, slots, answers, phases = None, SLOTS, None, 1
    columns = (("test accuracy", "test_accuracy", ".1%"),)

    def __post_init__(self):
        checks.count(self.kind, self.size)

    @property
    def name(self):
        return f"{self.kind}{self.size}"

    @property
    def family(self):
        return self.kind

    def model(self, cell, seed):
        """The untrained model around a cell."""
        if self.answers:
            return StepClassifier(cell, self.inputs, self.outputs, self.answers, dropout=0.0, seed=seed)
        return Classifier(cell, self.inputs, self.outputs, dropout=0.0, seed=seed)

    def extra(self, model, draw, rng, tests):
        """What a result has beside the scores. tests: (x, y) of each phase."""
        return {}


def network(task, name, seed):
    """The untrained model `name`, as wide as brings it nearest to PARAMETERS. ValueError if it cannot be."""
    kind = NETWORKS[checks.choice("models", name, tuple(NETWORKS))]
    too_far = ValueError(f"{task.name}: {name} cannot be within {TOLERANCE:.0%} of {PARAMETERS:,} parameters")
    if task.inputs > 2 * PARAMETERS:  # before an array of that size is made
        raise too_far

    def size(H):
        params = kind(H, task.slots).init(np.random.default_rng(0), task.inputs)
        return sum(value.size for value in params.values()) + (H + 1) * task.outputs

    low, high = 1, 512
    while high - low > 1:  # size grows with H
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= PARAMETERS else (low, middle)
    width = min((low, high), key=lambda H: abs(size(H) - PARAMETERS))
    if abs(size(width) - PARAMETERS) > TOLERANCE * PARAMETERS:
        raise too_far
    return task.model(kind(width, task.slots), seed)


def train(task, name, seed, rate, steps, batch_size=128, say=tell):
    """One run, as the dict that is written down. history: one entry for every validation, after `step` steps."""
    model, optimizer, draw = network(task, name, seed), Adam(rate), task.source(seed)
    # Train, validation, test, initial states. Not 0: [seed, 0] is the stream that the model's first weights came from.
    draws = [np.random.default_rng([seed, part]) for part in (5, 1, 2, 3)]
    held, tests = (
        [draw(draws[i], n, part, phase) for phase in range(task.phases)]
        for i, n, part in ((1, VALIDATION, "validation"), (2, TEST, "test"))
    )
    metric, tested = model.metrics[0], []
    history = {key: [] for key in ("step", "loss", metric, "val_loss", f"val_{metric}", "seconds")}
    totals, since, began, cpu = np.zeros(2), 0, time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        phase = (step - 1) * task.phases // steps
        x, y = draw(draws[0], batch_size, "train", phase)
        logs, grads = model.loss_and_grads(model.time_major(x), y, draws[3])
        if fault := not_finite(logs["loss"], grads):
            raise Diverged(f"learning_rate: at {rate:g}, step {step} of {name}, {fault}; lower it")
        optimizer.update(model.params, grads)
        totals += float(logs["loss"]), float(logs[metric]) / batch_size
        since += 1
        last = step * task.phases // steps > phase  # of its phase
        if not last and step % EVERY:
            continue
        scores = _mean(_tested(model, each, rate) for each in held[: phase + 1])
        row = step, *(totals / since), scores["loss"], scores[metric], time.perf_counter() - began
        for key, value in zip(history, row, strict=True):
            history[key].append(float(f"{value:.6g}"))
        totals, since = np.zeros(2), 0
        say(f"{task.name} {name} seed {seed} rate {rate:g} step {step}: validation {metric} {scores[metric]:.4f}")
        enough = task.phases == 1 and scores.get("accuracy", 0) > ENOUGH
        if last or enough:
            tested.append([_tested(model, each, rate) for each in tests[: phase + 1]])
        if enough:
            break
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return task.extra(model, draw, draws[2], tests) | {
        "benchmark": task.name,
        "protocol": "sound",
        "model": name,
        "seed": seed,
        "parameters": model.size,
        "seconds": round(seconds, 2),  # tests among them
        "cpu_seconds": round(cpu, 2),
        **{f"test_{key}": round(value, 6) for key, value in _mean(tested[-1]).items()},
        **_phases(tested),
        "stopped": "early" if step < steps else "finished",
        "steps": step,
        "best_epoch": len(history["step"]),  # the last: what is tested is what training ended with
        "history": history,
        "training": {"learning_rate": rate, "steps": steps, "batch_size": batch_size},
        "config": model.config(),
        "machine": machine(),
    }


def _tested(model, sequences, rate):
    """The scores of a model. Raises Diverged unless they are finite."""
    scores = model.evaluate(*sequences)
    if not all(map(math.isfinite, scores.values())):
        raise Diverged(f"learning_rate: at {rate:g} the weights give {scores}; lower it")
    return scores


def _mean(scores):
    """{name: mean} of dicts of scores."""
    scores = list(scores)
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}


def _phases(tested):
    """Of training in several phases: the accuracies on all phases so far after each, and how much was forgotten."""
    if len(tested) == 1:
        return {}
    accuracies = [[round(each["accuracy"], 6) for each in row] for row in tested]
    return {"test_forgetting": round(forgetting(accuracies), 6), "accuracies": accuracies}


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


def compare(
    tasks, models=None, seeds=1, rates=(2e-3,), steps=2_500, results="data/results", batch_size=128, jobs=1, say=tell
):
    """Train every network on every task with `seeds` seeds, 0 first, and write what is missing.

    tasks: of `Task`. models: names in NETWORKS, all if None. rates: one, or a grid to choose from per network and task.
    jobs: processes at a time, each with one BLAS thread; with 1, all is done here. Another such command may share the
    work. Returns the results, those found included; one that left the finite numbers has `stopped` "diverged" and no
    scores, and is not tried again. Raises ValueError or TypeError, naming the argument, before any
    work, or where a result found was trained otherwise; and ValueError at the end, if runs failed or are another's.
    """
    models = [checks.choice("models", name, tuple(NETWORKS)) for name in (NETWORKS if models is None else models)]
    rates = [checks.number("rates", rate, above=0) for rate in rates]
    if not rates or not tasks or not models:
        raise ValueError("tasks, models, rates: expected at least one of each; name some")
    seeds, batch_size = checks.count("seeds", seeds), checks.count("batch_size", batch_size)
    steps, jobs = checks.count("steps", steps, low=max(task.phases for task in tasks)), checks.count("jobs", jobs)
    for task in tasks:
        for name in models:
            network(task, name, 0)  # before any work, too
    results, what = folder(results), [(task, name) for task in tasks for name in models]
    locks, trials = folder(results / "runs"), {}
    if len(rates) > 1:
        folder(results / "rates")
        for each in what:
            trials[each] = [Run(_trial(results, *each, rate), *each, 0, rate, steps, batch_size) for rate in rates]
        _do([run for tried in trials.values() for run in tried], locks, jobs, say)
    runs = []
    for task, name in what:
        rate = _choose(results, trials[task, name]) if trials else rates[0]
        paths = [results / f"{task.name}-sound-{name}-{seed}.json" for seed in range(seeds)]
        runs += [Run(path, task, name, seed, rate, steps, batch_size) for seed, path in enumerate(paths)]
    return _do(runs, locks, jobs, say)


class Run(NamedTuple):
    """What one file holds, and how it is made."""

    path: Path
    task: Task
    name: str
    seed: int
    rate: float
    steps: int
    batch_size: int

    def training(self):
        return {"learning_rate": self.rate, "steps": self.steps, "batch_size": self.batch_size}

    def stored(self):
        """The result found, None if there is none. ValueError where it was trained otherwise."""
        if not self.path.exists():
            return None
        found, wanted = read_result(self.path), self.training()
        got = {key: found.get("training", {}).get(key) for key in wanted}
        if got != wanted:
            raise ValueError(
                f"{self.path}: holds a run with {got}, asked for {wanted}; delete it or name another folder"
            )
        return found


def _trial(results, task, name, rate):
    return results / "rates" / f"{task.name}-sound-{name}-{rate:g}.json"


def _choose(results, trials):
    """The rate of the lowest validation loss after training with seed 0, whose result seed 0 then need not repeat.

    Where all diverged it is the lowest of them.
    """

    def loss(run):
        found = run.stored()
        return math.inf if found["stopped"] == "diverged" else found["history"]["val_loss"][-1]

    best = min(trials, key=lambda run: (loss(run), run.rate))
    first = results / f"{best.task.name}-sound-{best.name}-0.json"
    if not first.exists():
        storage.write_text(first, best.path.read_text(encoding="utf-8"))
    return best.rate


def _do(runs, locks, jobs, say):
    """The results of `runs`, those that are missing made."""
    missing = []
    for run in runs:
        if run.stored() is None:
            missing.append(run)
        else:
            say(f"{run.path}: there already")
    if missing:
        minutes = _seconds(missing) / 60
        say(f"{len(missing)} of {len(runs)} runs to do, about {minutes:,.0f} minutes of one core, or less")
    if jobs == 1:
        for run in missing:
            one(run, locks, say)
    else:
        in_processes(one, {run.path.stem: (run, locks) for run in missing}, jobs, say)
    found = [run.stored() for run in runs]
    if None in found:
        undone = ", ".join(run.path.name for run, result in zip(runs, found, strict=True) if result is None)
        raise ValueError(f"results: without {undone}, which failed, see above, or which another process has; run again")
    return found


def _seconds(runs):
    """About how long runs train at most, by a step of each network timed here."""
    steps = {}
    for task, name, size in {(run.task, run.name, run.batch_size) for run in runs}:
        model, rng = network(task, name, 0), np.random.default_rng(0)
        x, y = task.source(0)(rng, size, "validation", 0)
        for _ in range(2):  # the first makes its arrays
            began = time.perf_counter()
            with one_thread():
                model.loss_and_grads(model.time_major(x), y, rng)
            steps[task, name] = time.perf_counter() - began
    return sum(run.steps * steps[run.task, run.name] for run in runs)


def one(run, locks, say=tell):
    """Make the result of one run, unless another process does. Returns what became of it."""
    with one_thread(), ExitStack() as stack:
        if not mine(stack, locks / f".{run.path.stem}.lock"):
            return "another process has it"
        if run.path.exists():
            return "another process did it"
        try:
            result = train(run.task, run.name, run.seed, run.rate, run.steps, run.batch_size, say)
        except Diverged as error:
            what = {"benchmark": run.task.name, "protocol": "sound", "model": run.name, "seed": run.seed}
            result = diverged({**what, "training": run.training()}, error)
            say(f"{run.path}: diverged, and is not tried again: {result['why']}")
        write_json(run.path, result)
    return "done"

"""Associative recall: can a network bind what it has seen once? Any cell, by name, on key-value pairs.

    c9 k8 j3 ... ??c -> 9       `tasks.associative_recall`: distinct keys, 10 values; chance is 10%

Every network has about PARAMETERS numbers, so that widths differ, and sees fresh sequences at every step. One run is
one file, DIR/recallP-sound-NAME-SEED.json with P pairs; a run whose file is there is not run again. Of several learning
rates each is tried with seed 0, DIR/rates/recallP-sound-NAME-RATE.json, and the one with the lowest validation loss is
used for all seeds. Validation and test sequences are drawn apart. The rate stays as it is: what keeps the binding cell
from 100% is keys that share a slot, not noise that a falling rate would quiet. A run ends early where validation shows
that nothing is left to learn, and a memory has two slots or more for every key.
"""

import math
import time
from pathlib import Path

import numpy as np

from . import checks, storage
from .arcs import written_lengths
from .binding import Binding
from .cells import GRU, LSTM, RNN
from .engram import Engram
from .learned import LearnedEngram
from .models import Classifier
from .optim import Adam
from .protocols import folder, machine, read_result, write_json
from .tasks import associative_recall
from .window import Window

PARAMETERS = 70_000
TOLERANCE = 0.05  # of their number
SLOTS = 64
VALUES = 10
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
}


def recalls(benchmark):
    """Whether a result's benchmark is one of these, `recall` and the number of pairs."""
    return benchmark[:6] == "recall" and benchmark[6:].isdigit()


def keys_for(pairs):
    """How many keys there are: 26 as letters (Ba et al. 2016), and twice the pairs where that is too few."""
    return 26 if pairs <= 26 else 2 * pairs


def slots_for(pairs):
    """How many slots a memory has: SLOTS for 26 keys, and two a key where there are more."""
    return SLOTS if pairs <= 26 else 2 * keys_for(pairs)


def network(name, pairs, seed):
    """The untrained classifier `name`, as wide as brings it nearest to PARAMETERS. ValueError if it cannot be."""
    kind, inputs = NETWORKS[checks.choice("model", name, tuple(NETWORKS))], keys_for(pairs) + VALUES + 1

    def make(H):
        return kind(H, slots_for(pairs))

    def size(H):
        params = make(H).init(np.random.default_rng(0), inputs)
        return sum(value.size for value in params.values()) + (H + 1) * VALUES

    low, high = 1, 512
    while high - low > 1:  # size grows with H
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= PARAMETERS else (low, middle)
    width = min((low, high), key=lambda H: abs(size(H) - PARAMETERS))
    if abs(size(width) - PARAMETERS) > TOLERANCE * PARAMETERS:
        raise ValueError(
            f"pairs: {name} cannot be within {TOLERANCE:.0%} of {PARAMETERS:,} parameters at {pairs} pairs"
        )
    return Classifier(make(width), inputs, VALUES, dropout=0.0, seed=seed)


def train(name, pairs, seed, rate, steps, batch_size=128, say=print):
    """One run, as the dict that is written down. history: one entry for every validation, after `step` steps."""
    model, optimizer = network(name, pairs, seed), Adam(rate)
    keys = keys_for(pairs)
    draws = [np.random.default_rng([seed, part]) for part in range(4)]  # train, validation, test, initial states
    validation, test = (associative_recall(draws[i], n, pairs, keys, VALUES) for i, n in ((1, VALIDATION), (2, TEST)))
    history = {name: [] for name in ("step", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")}
    total, right, since, began, cpu = 0.0, 0, 0, time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        x, y = associative_recall(draws[0], batch_size, pairs, keys, VALUES)
        logs, grads = model.loss_and_grads(model.time_major(x), y, draws[3])
        if not math.isfinite(logs["loss"]):
            raise ValueError(f"learning_rate: at {rate:g} the loss of {name} became {logs['loss']}; lower it")
        optimizer.update(model.params, grads)
        total, right, since = total + float(logs["loss"]), right + int(logs["accuracy"]), since + 1
        if step % EVERY == 0 or step == steps:
            scores = model.evaluate(*validation)
            row = step, total / since, right / since / batch_size, scores["loss"], scores["accuracy"]
            for key, value in zip(history, (*row, time.perf_counter() - began), strict=True):
                history[key].append(float(f"{value:.6g}"))
            total, right, since = 0.0, 0, 0
            say(f"recall{pairs} {name} seed {seed} rate {rate:g} step {step}: validation {scores['accuracy']:.1%}")
            if scores["accuracy"] > ENOUGH:
                break
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return _recalled(model, test[0][0], pairs) | {
        "benchmark": f"recall{pairs}",
        "protocol": "sound",
        "model": name,
        "seed": seed,
        "parameters": model.size,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        **{f"test_{key}": round(value, 6) for key, value in model.evaluate(*test).items()},
        "stopped": "early" if step < steps else "finished",
        "steps": step,
        "best_epoch": len(history["step"]),  # the last: what is tested is what training ended with
        "history": history,
        "training": {"learning_rate": rate, "steps": steps, "batch_size": batch_size, "keys": keys},
        "config": model.config(),
        "machine": machine(),
    }


def _recalled(model, x, pairs):
    """Of a network that binds, for the picture: the sequence x (T, D) asked for each of its keys in turn, its symbols
    (T,), and how long the part of every recall is that each step wrote, (pairs, T - 1). Else nothing."""
    if not isinstance(model.cells[0], Binding):
        return {}
    asked = np.repeat(x[None], pairs, axis=0)  # (pairs, T, D)
    asked[:, -1] = x[0 : 2 * pairs : 2]
    lengths = written_lengths(model.cells[0], model.run_cells(model.time_major(asked))[2][0], len(x) - 1)
    return {"recalled": {"symbols": x.argmax(-1).tolist(), "lengths": np.round(lengths, 4).tolist()}}


def recall(pairs=(8,), models=None, seeds=1, rates=(2e-3,), steps=2_500, results="data/results", say=print):
    """Train every network on every number of pairs with `seeds` seeds, 0 first, and write what is missing.

    models: names in NETWORKS, all if None. rates: one, or a grid to choose from per network and number of pairs.
    Returns the results, those found included. Raises ValueError or TypeError, naming the argument, before any work, or
    where a result found was trained otherwise.
    """
    models = [checks.choice("models", name, tuple(NETWORKS)) for name in (NETWORKS if models is None else models)]
    rates, pairs = [checks.number("rates", rate, above=0) for rate in rates], [checks.count("pairs", P) for P in pairs]
    if not rates or not pairs:
        raise ValueError("rates, pairs: expected at least one of each; name some")
    seeds, steps, results = checks.count("seeds", seeds), checks.count("steps", steps), folder(results)
    for P in pairs:
        for name in models:
            network(name, P, 0)  # before any work, too
    found = []
    for P in pairs:
        for name in models:
            rate = rates[0] if len(rates) == 1 else _choose(name, P, rates, steps, results, say)
            paths = [(seed, results / f"recall{P}-sound-{name}-{seed}.json") for seed in range(seeds)]
            found += [_run(path, name, P, seed, rate, steps, say) for seed, path in paths]
    return found


def _choose(name, pairs, rates, steps, results, say):
    """The rate of the lowest validation loss after training with seed 0, whose result seed 0 then need not repeat."""
    tried = {}
    for rate in rates:
        path = folder(results / "rates") / f"recall{pairs}-sound-{name}-{rate:g}.json"
        tried[rate] = path, _run(path, name, pairs, 0, rate, steps, say)["history"]["val_loss"][-1]
    best = min(tried, key=lambda rate: tried[rate][1])
    first = results / f"recall{pairs}-sound-{name}-0.json"
    if not first.exists():
        storage.write_text(first, tried[best][0].read_text(encoding="utf-8"))
    return best


def _run(path, name, pairs, seed, rate, steps, say):
    """The stored result, or a new one."""
    if not Path(path).exists():
        write_json(path, train(name, pairs, seed, rate, steps, say=say))
        return read_result(path)
    stored, wanted = read_result(path), {"learning_rate": rate, "steps": steps}
    got = {key: stored.get("training", {}).get(key) for key in wanted}
    if got != wanted:
        raise ValueError(f"{path}: holds a run with {got}, asked for {wanted}; delete it or name another folder")
    say(f"{path}: there already")
    return stored

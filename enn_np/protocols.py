"""The published experiments as commands: which data, which model, how it is trained, and what is written down.

"paper": as published, flaws included, so that the numbers can be compared: random h_0, A_0 and trace noise at test time
too, and a trace that test samples share with their batch. "sound": one trace per sample and deterministic prediction,
so that a sample's prediction is its own. "ablation": as sound, shorter, one change of the Engram cell in each network.
"""

import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import checks, datasets, storage, tasks, variants
from .callbacks import EarlyStopping, ReduceOnPlateau
from .checkpoint import differ
from .device import card_name, device_module
from .engram import Engram
from .monitor import HebbianTraceMonitor
from .optim import Adam
from .training import LOST, fit
from .variants import MATCHED, network

EPOCHS = {"mnist": 15, "cifar10": 30, "regression": 20, "recall": 20}
# Ablations are many, so that each is short: the first 12,000 digits to train on, smaller batches, fewer epochs.
ABLATION = {"mnist": {"epochs": 6, "batch_size": 64, "limit": 12_000}, "recall": {"batch_size": 64}}
GENERATED = {"regression": (14_000, 2_000, 4_000), "recall": (20_000, 2_000, 4_000)}  # train, validation, test
MNIST_HELD_OUT = 6_000  # of the 60,000, to validate on
CIFAR10_HELD_OUT = 5_000  # of the 50,000, in the sound protocol
PROBE = 128  # of the validation sequences, to watch the trace with
TITLES = {"binding": "Binding", "engram": "Engram", "rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
TITLES |= {
    "binding-no-trace": "Binding without trace",
    "gru-dropout": "GRU with dropout",
    "lstm-dropout": "LSTM with dropout",
    "engram-sample": "Engram, own trace",
    "engram-learned": "Engram, eta and sigma learned",
    "window": "Window",
}
for name in MATCHED:
    kind, what = name.split("-")
    TITLES[name] = f"{TITLES[kind]} of Engram's {'size' if what == 'parameters' else what}"

# Reported in arXiv 2507.21474 and its notebooks: one run per model.
PAPER = {
    "mnist": {
        "engram": {"parameters": 210_826, "test_loss": 0.1287, "test_accuracy": 0.9682, "seconds": 557},
        "rnn": {"parameters": 33_098, "test_loss": 0.0679, "test_accuracy": 0.9806, "seconds": 95},
        "gru": {"parameters": 98_570, "test_loss": 0.0368, "test_accuracy": 0.9898, "seconds": 282},
        "lstm": {"parameters": 130_442, "test_loss": 0.0385, "test_accuracy": 0.9890, "seconds": 288},
    },
    # Validated, stopped and restored on the test set; no baselines were published.
    "cifar10": {"engram": {"parameters": 227_722, "test_loss": None, "test_accuracy": 0.468, "seconds": 1_737}},
    "wikitext103": {  # its own cut of the text
        "engram": {"test_loss": 7.0656, "test_accuracy": 0.0942, "test_perplexity": 1180.8, "seconds": 3_887},
        "rnn": {"test_loss": 6.9440, "test_accuracy": 0.1053, "test_perplexity": 1047.0, "seconds": 3_675},
        "gru": {"test_loss": 6.9520, "test_accuracy": 0.1033, "test_perplexity": 1055.2, "seconds": 10_886},
        "lstm": {"test_loss": 6.8233, "test_accuracy": 0.1155, "test_perplexity": 929.5, "seconds": 10_892},
    },
}


@dataclass(frozen=True)
class Split:
    """Sequences (n, T, D) float32 with labels (n,), to train on, to validate on, and to test on."""

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def mnist_split(images, validation, seed):
    """Digits as 28 steps of 28 pixels, scaled per pixel to 0..1 on the training part; `validation` images held out."""
    train, held = datasets.split(len(images.x_train), (len(images.x_train) - validation, validation), seed)
    x, x_test = datasets.image_rows(images.x_train), datasets.image_rows(images.x_test)
    scaling = datasets.MinMax.fit(x[train])
    return Split(
        scaling.transform(x[train]),
        images.y_train[train],
        scaling.transform(x[held]),
        images.y_train[held],
        scaling.transform(x_test),
        images.y_test,
    )


def cifar10_split(images, protocol, seed):
    """Photographs as 32 steps of 32 x 3 numbers.

    paper: values / 255, and the test set serves as validation set, as published. sound: 5,000 training images held
    out for validation, and each channel standardised on the rest.
    """
    if protocol == "paper":
        scale = datasets.Scaling(np.float32(0), np.float32(1))  # to float32 in 0..1, no more
        x, x_test = (datasets.image_rows(scale.transform(part)) for part in (images.x_train, images.x_test))
        return Split(x, images.y_train, x_test, images.y_test, x_test, images.y_test)
    train, held = datasets.split(len(images.x_train), (len(images.x_train) - CIFAR10_HELD_OUT, CIFAR10_HELD_OUT), seed)
    scale = datasets.Standardize.fit(images.x_train[train], per="channel")
    parts = images.x_train[train], images.x_train[held], images.x_test
    x, x_val, x_test = (datasets.image_rows(scale.transform(part)) for part in parts)
    return Split(x, images.y_train[train], x_val, images.y_train[held], x_test, images.y_test)


def generated_split(benchmark, seed):
    """A generated data set: `tasks.one_feature` as sequences of one step, or `tasks.associative_recall`."""
    draw = {"regression": tasks.one_feature, "recall": tasks.associative_recall}[benchmark]
    rng, parts = np.random.default_rng([seed, 5]), []  # `seed` alone is where a model's first weights come from
    for n in GENERATED[benchmark]:
        parts += draw(rng, n)
    return Split(*parts)


def load_split(benchmark, protocol, seed):
    """The sequences of a benchmark; downloads the data set if it is not there."""
    if benchmark in GENERATED:
        return generated_split(benchmark, seed)
    if benchmark == "cifar10":
        return cifar10_split(datasets.load_cifar10(), protocol, seed)
    return mnist_split(datasets.load_mnist(), MNIST_HELD_OUT, seed)


def learn(model, data, seed, training, verbose="auto", checkpoint=None, resume=False, frozen=()):
    """Train by the paper's settings. Returns the history, and the trace monitor or None.

    Adam with clip_norm 1, early stopping (patience 3, best weights), halving of the learning rate on a plateau.
    training: epochs, batch_size, learning_rate. checkpoint, resume: see `enn_np.fit`. frozen: see `Optimizer`.
    """
    monitor = HebbianTraceMonitor(model, data.x_val[:PROBE]) if isinstance(model.cells[0], Engram) else None
    history = fit(
        model,
        data.x,
        data.y,
        epochs=training["epochs"],
        batch_size=training["batch_size"],
        validation=(data.x_val, data.y_val),
        optimizer=Adam(training["learning_rate"], clip_norm=1.0, frozen=frozen),
        callbacks=[EarlyStopping(), ReduceOnPlateau(), *([monitor] if monitor else [])],
        seed=seed,
        verbose=verbose,
        checkpoint=checkpoint,
        resume=resume,
    )
    return history, monitor


def train(model, data, seed, training, frozen=(), **saving):
    """`learn`, then test. Returns the numbers to write down, and the trace monitor or None."""
    history, monitor = learn(model, data, seed, training, frozen=frozen, **saving)
    scores = model.evaluate(data.x_test, data.y_test, training["batch_size"])
    numbers = {
        "parameters": model.size - sum(model.params[name].size for name in frozen),
        **{f"test_{name}": round(value, 6) for name, value in scores.items()},
        **outcome(history, monitor),
    }
    return numbers, monitor


def outcome(history, monitor):
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


def training_settings(benchmark, protocol, epochs=None, limit=None, learning_rate=None, train=None):
    """{"epochs", "batch_size", "learning_rate", "limit"} of a benchmark, with what is not None in their place.

    limit: train on so many sequences only, or None for all.
    """
    if train is not None:
        raise ValueError(f"train: {benchmark} is no text with a file to train on, got {train!r}; leave it out")
    own = {"epochs": EPOCHS[benchmark], "batch_size": 128, "learning_rate": 1e-3, "limit": None}
    own |= ABLATION[benchmark] if protocol == "ablation" else {}
    given = {"epochs": epochs, "limit": limit}
    own |= {name: checks.count(name, value) for name, value in given.items() if value is not None}
    if learning_rate is not None:
        own["learning_rate"] = checks.number("learning_rate", learning_rate, above=0)
    return own


def run_benchmark(benchmark, name, protocol, seed, out, verbose="auto", resume=False, device="cpu", **shorter):
    """One full run of a benchmark: writes `out`/summary.json, model.npz and (Engram) trace.npz. Returns the summary.

    benchmark: "mnist", "cifar10", "regression" or "recall". shorter: see `training_settings`; the protocol's own if
    left out. While it lasts, `out`/checkpoint.npz holds it; resume: go on from there. device: "cpu" or "cuda", where
    the network is trained.
    """
    checks.choice("benchmark", benchmark, tuple(EPOCHS))
    device_module(device)
    variants.check("model", benchmark, protocol, name)
    what = {"benchmark": benchmark, "protocol": protocol, "model": name, "seed": checks.count("seed", seed, low=0)}
    what["training"] = training_settings(benchmark, protocol, **shorter)
    with run_folder(out, what, resume) as (out, checkpoint, done):
        return done or _run(what, out, device, {"verbose": verbose, "checkpoint": checkpoint, "resume": resume})


def prepared(benchmark, protocol, name, seed, limit, device="cpu"):
    """Data, the untrained model, and the names of parameters not to train."""
    data = load_split(benchmark, protocol, seed)
    model, frozen = network(benchmark, protocol, name, seed)
    data = Split(data.x[:limit], data.y[:limit], data.x_val, data.y_val, data.x_test, data.y_test)
    return data, model.to_device(device), frozen


def _run(what, out, device, saving):
    benchmark, protocol, name, seed, training = what.values()
    data, model, frozen = prepared(benchmark, protocol, name, seed, training["limit"], device)
    numbers, monitor = train(model, data, seed, training, frozen, **saving)
    if benchmark == "regression":
        numbers["test_linear_loss"] = round(linear_loss(data), 6)
    summary = {
        **what,
        **numbers,
        "sequences": {"train": len(data.x), "validation": len(data.x_val), "test": len(data.x_test)},
        "config": model.config(),
        "machine": machine(device),
    }
    model.save(out / "model.npz")
    if monitor:
        monitor.save(out / "trace.npz", data.y_val[:PROBE])
    write_json(out / "summary.json", summary)  # before the figures: a missing matplotlib must not cost the result
    draw(out, {TITLES.get(name, name): numbers}, monitor)
    return summary


def linear_loss(data):
    """Mean squared error on the test part of the straight line that fits the training part best."""
    x, x_test = (np.column_stack([part[:, 0], np.ones(len(part))]) for part in (data.x, data.x_test))
    line = np.linalg.lstsq(x, data.y, rcond=None)[0]
    return float(((x_test @ line - data.y_test) ** 2).mean())


def curves(history):
    """Settings of `plots.learning_curves`: validation loss, its unit, and what the kind of task has beside it."""
    beside = next(name for name in ("perplexity", "accuracy", "mae") if name in history)
    return {"metrics": ("val_loss", f"val_{beside}"), "loss_unit": "squared error" if beside == "mae" else "nats"}


def draw(out, results, monitor):
    """Learning curves of `results` (title -> numbers of a run) and, with a monitor, the trace after training, its way
    there, and one sequence's retrieval weights, as PNG files in `out`. Returns their paths."""
    from . import plots

    histories = {title: numbers["history"] for title, numbers in results.items() if numbers["history"]}
    drawn = {}
    if histories:  # none after an early Ctrl-C
        drawn["learning_curves.png"] = plots.learning_curves(histories, **curves(next(iter(histories.values()))))
    if monitor:
        x = monitor.x[0]
        colours = x.reshape(len(x), -1, 3) if x.shape[-1] % 3 == 0 else x
        drawn |= {
            "trace.png": plots.trace_heatmap(monitor.trace, "Hebbian trace after training"),
            "trace_evolution.png": plots.trace_evolution(monitor.traces, labels=range(len(monitor.traces))),
            "retrieval.png": plots.retrieval_over_time(monitor.retrieval[0], image=np.clip(colours, 0, 1)),
        }
    for name, figure in drawn.items():
        plots.save(figure, out / name)
    return [out / name for name in drawn]


def folder(out):
    """`out` as a Path to a folder that exists from now on: better found out before training than after it."""
    out = storage.spelled_out(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot make the folder {out}: {error.strerror}; choose another") from None
    return out


RUN = ("checkpoint.npz", "summary.json", "model.npz", "trace.npz")  # what a run is known by in its folder


@contextmanager
def own_folder(out, resume=None):
    """`out` as a folder for one run, kept from other processes; a start that fails leaves no empty one behind.

    Raises ValueError where another run has it, or had: only by `resume` (None where there is none) may it be taken up.
    """
    made, out = not storage.spelled_out(out).exists(), folder(out)
    with storage.lock(out / ".lock", f"out: {out}"):
        try:
            held = [name for name in RUN if (out / name).exists()]
            if held and not (resume and held[0] in RUN[:2]):
                kind = "an unfinished" if held[0] == RUN[0] else "a finished"
                again = "" if resume is None else "continue it by --resume, or "
                raise ValueError(f"out: {out} holds {kind} run; {again}delete the folder, or choose another by --out")
            yield out
        finally:
            if made and [each.name for each in out.iterdir()] == [".lock"]:
                with suppress(OSError):  # Windows keeps what is open
                    (out / ".lock").unlink()
                    out.rmdir()


@contextmanager
def run_folder(out, what, resume=False):
    """The folder of one run, kept from other processes: (folder, path of its checkpoint, None), or, where the run that
    is to be resumed is over, its summary in the place of None. The checkpoint goes when a run has ended by itself.

    what: benchmark, protocol, model, seed and training settings. Raises ValueError if another process has the folder,
    if it holds a run and `resume` is False, or if it is True and the finished run there is another one.
    """
    with own_folder(out, resume) as out:
        checkpoint, done = (out / name for name in RUN[:2])
        summary = read_json(done) if resume and done.exists() and not checkpoint.exists() else None
        if summary:
            differ(done, what, {name: summary.get(name) for name in what})
        yield out, checkpoint, summary
        if read_json(done).get("stopped") != "interrupted":
            checkpoint.unlink(missing_ok=True)


def read_json(path):
    """The object in a JSON file. Raises ValueError naming the file if there is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); run again, or use another copy") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}; run again, or use another copy")
    return found


WORDS = {"benchmark", "protocol", "model", "stopped"}  # of a result
NUMBERS = {"parameters", "seconds", "test_loss"}  # and test_accuracy, or test_mae of a regression
MACHINE = {"processor", "cores", "python", "numpy", "blas_threads"}


def read_result(path):
    """What a run wrote into a summary.json, its fields of the kinds that tables and figures rely on; or what `diverged`
    says, which has none of the numbers.

    Raises ValueError naming the file, the field and what is there.
    """
    found, whole = read_json(path), {"seed": (int,), "best_epoch": (int, type(None))}
    wrong = {name: "a word" for name in WORDS if not isinstance(found.get(name), str)}
    if not wrong and found["stopped"] == "diverged":
        return found
    numbers = NUMBERS | {"test_mae" if "test_mae" in found else "test_accuracy"}
    wrong |= {name: "a finite number" for name in numbers if not _finite(found.get(name))}
    wrong |= {name: "a finite number" for name in found if name[:5] in ("test_", "valid") and not _finite(found[name])}
    wrong |= {name: "a whole number" for name in ("seed", "best_epoch") if type(found.get(name, "")) not in whole[name]}
    history, where = found.get("history"), found.get("machine")
    lists = history.values() if isinstance(history, dict) and "loss" in history else [None]
    if not all(isinstance(each, list) and all(map(_finite, each)) for each in lists):
        wrong["history"] = 'lists of numbers, "loss" among them'
    if not isinstance(where, dict) or not where.keys() >= MACHINE:
        wrong["machine"] = "what the run was measured on"
    for name, wanted in sorted(wrong.items()):
        raise ValueError(
            f"{path}: {name}: expected {wanted}, got {found.get(name)!r:.60}; run again, or remove the file"
        )
    return found


def diverged(what, error, device="cpu"):
    """The result of a run that left the finite numbers: it stands in its place, so that the run is not tried again.

    what: benchmark, protocol, model, seed and training settings. error: the `Diverged`.
    """
    return {**what, "stopped": "diverged", "why": str(error).partition(";")[0], "machine": machine(device)}


def _finite(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def machine(device="cpu"):
    """What the numbers were measured on."""
    from . import __version__

    card = {"card": card_name()} if device == "cuda" else {}
    return card | {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "enn_np": __version__,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        "revision": _revision(),
    }


def _revision():
    """The git commit of this checkout, with "-dirty" where files differ from it; None where there is none."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", checkout, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor():
    """The processor's name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def tell(line=""):
    """Print a line at once. Where its reader is gone, as with `| head`, the work goes on, and no one is told."""
    with LOST:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            mute()


def mute():
    """Standard output goes nowhere from now on: what is still to be written there would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(path, value):
    """Write `value` as JSON to `path`, whole or not at all."""
    return storage.write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")

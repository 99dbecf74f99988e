"""Files that nobody vouches for: every reader must end in one clear error or a valid result, whatever a file holds.

    python tests/fuzz.py --cases 100000 --seed 0 --json fuzz.json

A case is a target and a whole number, from which everything follows: a good file of the target's kind is made once, and
the case changes it: bytes flipped, cut, repeated, numbers replaced by extremes, JSON values by odd ones, the headers of
arrays rewritten. The reader may return, or raise what its documentation names, in one line that tells the file. It may
not raise anything else, run for over ten seconds, or ask for more than 1 GB of memory (a limit of the operating
system). KEPT are the cases that once failed; `tests/test_fuzz.py` runs them and the first few of every target.
"""

import argparse
import contextlib
import functools
import io
import json
import lzma
import math
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from tiny import classifier, sequences

from enn_np import (
    GRU,
    Adam,
    Checkpoint,
    EarlyStopping,
    Engram,
    LanguageModel,
    fit,
    load,
)
from enn_np.data import fetch, images, text
from enn_np.lab import pages
from enn_np.look.monitor import HebbianTraceMonitor
from enn_np.look.report import write_report

ROOM = 1 << 30  # bytes that a reader may ask for beyond what the process has
SECONDS = 10
KEPT = {
    "checkpoint": [699, 1177, 6010],
    "results": [5, 16, 28, 45, 6113],
    "run directory": [17, 44, 5137, 5139],
    "run directory with a model": [8, 33, 5108],
}

# ------------------------------------------------------------------------------------------------------- mutations

ODD = [0, 1, -1, 2, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, math.inf]
ODD += [
    math.nan,
    True,
    False,
    None,
    "",
    "a",
    "0",
    "../../x",
    "<script>alert(1)</script>",
    "\u202e\x00",
    "x" * 5000,
    [],
    {},
    [[]],
    [1, "a"],
]
ODD += [{"a": {"b": 1}}, "softmax", "engram", 10**9, 100_000]


def bytes_changed(rng, data):
    """A few small changes of bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at, kind = rng.randrange(len(data)), rng.randrange(7)
        size = min(rng.choice((1, 2, 4, 8, 64)), len(data) - at)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 100))
        elif kind == 5:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
        else:
            data[at : at + size] = rng.choice((b"\x00", b"\xff", b"9", b"(", b"[", b'"', b"\n")) * size
    return bytes(data)


def tree_changed(rng, tree):
    """Nested lists and dicts with one or a few places replaced, removed, renamed or repeated; `tree` is changed too."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = tree
        for _ in range(rng.randrange(6)):  # down a random way
            inner = [each for each in (at.values() if isinstance(at, dict) else at) if isinstance(each, dict | list)]
            inner = [each for each in inner if each]
            if not inner:
                break
            at = rng.choice(inner)
        if not at:
            return tree
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        kind = rng.randrange(8)
        if kind < 5:
            at[key] = json.loads(json.dumps(rng.choice(ODD)))
        elif kind == 5:
            del at[key]
        elif isinstance(at, dict):
            at[rng.choice(("", "a", "format", "x/y", key + "x"))] = at[key]
        else:
            at.extend([at[key]] * rng.choice((1, 100)))
    return tree


def archive_changed(rng, data):
    """An .npz with its JSON, one header or one array changed, and valid checksums all the same."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    kind = rng.randrange(8)
    if kind < 3 and "config.npy" in members:
        config = json.loads(str(np.load(io.BytesIO(members["config.npy"]))))
        stream = io.BytesIO()
        np.save(stream, np.array(json.dumps(tree_changed(rng, config))))
        members["config.npy"] = stream.getvalue()
    elif kind < 5:
        members[name] = bytes_changed(rng, members[name][:128]) + members[name][128:]  # NumPy's header
    elif kind == 5:
        shape = rng.choice([(), (0,), (1,), (3, 4), (2, 3, 4), (1, 1, 1), (0, 3, 3), (5000,), (1, 100_000, 1)])
        dtype = rng.choice(["f4", "f8", ">f4", "f2", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]", "i4,f4"])
        stream = io.BytesIO()
        array = np.zeros(shape, dtype)
        if array.dtype.kind == "f" and array.size and rng.random() < 0.5:
            array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 6e4, 1))
        np.save(stream, array)
        members[name] = stream.getvalue()
    elif kind == 6:
        other = rng.choice(
            ["x.npy", "0.M.npy", "best/0.M.npy", "a/b/c.npy", "training/rng.npy", "/.npy", "../up.npy", ""]
        )
        members[other] = members[name]
        if rng.random() < 0.5:
            del members[name]
    else:
        header = b"{'descr': '<f4', 'fortran_order': %s, 'shape': %s, }" % (
            rng.choice((b"False", b"True", b"1")),
            rng.choice((b"(10**9,)", b"(1000000000000,)", b"(2, -3)", b"(1e3,)", b"('a',)", b"((((((", b"(True, 2)")),
        )
        header += b" " * (-(len(header) + 11) % 64) + b"\n"
        members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"1234" * 3
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, content in members.items():
            archive.writestr(name or "empty", content)
    return stream.getvalue()


def changed(rng, data):
    """`data` changed in the way of its kind, or in its bytes."""
    if data[:2] == b"PK" and rng.random() < 0.7:
        return archive_changed(rng, data)
    if data[:1] == b"{" and rng.random() < 0.8:
        return json.dumps(tree_changed(rng, json.loads(data))).encode()
    return bytes_changed(rng, data)


# --------------------------------------------------------------------------------------------------------- targets


class Target:
    """A reader. files: names and contents of a good folder; read: what is done with the folder; errors it may raise."""

    def __init__(self, files, read, errors=(ValueError,), change=changed):
        self.files, self.read, self.errors, self.change = files, read, errors, change


def saved(write):
    """The bytes that `write(path)` leaves in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.npz"
        write(path)
        return path.read_bytes()


CELLS = {"plain": GRU(3), "memory": [Engram(4, 3), GRU(2)]}


def language():
    return LanguageModel(Engram(4, 3), 12, 3, head="adaptive", cutoffs=(3, 6))


def train(path, epochs=2):
    x, y = sequences(16)
    model = classifier(CELLS["memory"], pooling="attention")
    callbacks = [EarlyStopping(), HebbianTraceMonitor(model, x[:3])]
    return fit(
        model,
        x,
        y,
        epochs=epochs,
        batch_size=4,
        validation_split=0.25,
        optimizer=Adam(),
        callbacks=callbacks,
        checkpoint=Checkpoint(path, 0),
        resume=path.exists(),
        verbose=0,
    )


def stream(path):
    words = np.arange(40) % 12
    return language().fit_stream(words, epochs=1, batch_size=2, steps=7, checkpoint=path, resume=path.exists())


def killed(run):
    """What `run(path)` leaves if it is killed in the middle of an epoch."""

    def write(path):
        original, saves = Checkpoint.save, []

        def dying(checkpoint, *given):
            original(checkpoint, *given)
            saves.append(1)
            if len(saves) == 3:
                raise InterruptedError

        Checkpoint.save = dying
        try:
            run(path)
        except InterruptedError:
            pass
        finally:
            Checkpoint.save = original

    return write


SUMMARY = {
    "benchmark": "mnist",
    "protocol": "paper",
    "model": "engram",
    "seed": 0,
    "parameters": 10,
    "seconds": 1.5,
    "test_loss": 0.5,
    "test_accuracy": 0.9,
    "stopped": "finished",
    "best_epoch": 2,
    "history": {"loss": [1.0, 0.5], "accuracy": [0.5, 0.75], "val_loss": [1.0, 0.6], "learning_rate": [0.1, 0.1]},
    "trace": [{"min": -0.1, "max": 0.1, "mean_abs": 0.05, "sd": 0.01, "effective_slots": 2.5, "drift": 0.0}] * 3,
    "sequences": {"train": 10, "validation": 5, "test": 5},
    "config": {"model": "classifier", "cells": [{"kind": "engram", "hidden": 4}]},
    "machine": {"processor": "x", "cores": 2, "python": "3.11", "numpy": "2.4", "blas_threads": "1"},
}


def traces(path):
    rng = np.random.default_rng(0)
    arrays = {
        "traces": rng.standard_normal((3, 3, 4)),
        "retrieval": rng.random((2, 5, 3)),
        "probe": rng.random((2, 5, 3)),
    }
    np.savez(path, labels=np.array([0, 1]), **{name: array.astype("f4") for name, array in arrays.items()})


IDX = {
    "train-labels-idx1-ubyte": struct.pack(">II", 2049, 5) + bytes(range(5)),
    "train-images-idx3-ubyte": struct.pack(">IIII", 2051, 2, 28, 28) + bytes(784 * 2),
}
WORDS = {
    f"wiki.{part}.tokens": b" the cat <unk> sat \n \n on a mat \n" * n
    for part, n in (("train", 9), ("valid", 2), ("test", 2))
}


def read_idx(folder):
    for file in fetch.find("mnist", folder)[:2]:
        if file.path:
            images._read_idx(file, verify=False)


def read_cifar(folder):
    images._read_cifar(fetch.Found("cifar10", "data_batch_1.bin", folder / "data_batch_1.bin"), False, n=3)


def read_text(folder):
    found = text.load_wikitext("wikitext-2", folder, download=False, verify=False)
    assert all(part.size == 0 or part.max() < len(found.vocabulary) for part in found[:3])


def read_run(folder):
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in page


@functools.cache
def targets():
    """All readers by name."""
    model = {name: saved(classifier(cells, pooling="attention").save) for name, cells in CELLS.items()}
    summary = json.dumps(SUMMARY).encode()
    trace = saved(traces)
    engram = saved(classifier(CELLS["memory"]).save)
    records = b"".join(bytes([i]) + bytes(3072) for i in range(3))
    return {
        "model": Target({"a.npz": model["plain"]}, lambda folder: load(folder / "a.npz")),
        "model with a memory": Target({"a.npz": model["memory"]}, lambda folder: load(folder / "a.npz")),
        "language model": Target({"a.npz": saved(language().save)}, lambda folder: load(folder / "a.npz")),
        "checkpoint": Target({"a.npz": saved(killed(train))}, lambda folder: train(folder / "a.npz")),
        "checkpoint of a text": Target({"a.npz": saved(killed(stream))}, lambda folder: stream(folder / "a.npz")),
        "checkpoint as a model": Target({"a.npz": saved(train)}, lambda folder: load(folder / "a.npz")),
        "results": Target({"a.json": summary}, lambda folder: pages.results_table(folder, "mnist", "paper")),
        "run directory": Target({"summary.json": summary, "trace.npz": trace}, read_run),
        "run directory with a model": Target(
            {"summary.json": summary, "trace.npz": trace, "model.npz": engram}, read_run
        ),
        "IDX": Target(IDX, read_idx),
        "packed IDX": Target({f"{name}.xz": lzma.compress(data) for name, data in IDX.items()}, read_idx),
        "CIFAR": Target({"data_batch_1.bin": records}, read_cifar),
        "text": Target(WORDS, read_text),
        "packed text": Target({f"{name}.xz": lzma.compress(data) for name, data in WORDS.items()}, read_text),
    }


# ------------------------------------------------------------------------------------------------------------ cases


class TooSlow(Exception):
    """A reader took longer than SECONDS."""


def run_case(name, number, folder):
    """How the case ended, "read" or "refused"; raises AssertionError if not as it should."""
    target, rng = targets()[name], random.Random(f"{name} {number}")
    files = dict(target.files)
    for which in rng.sample(sorted(files), min(len(files), rng.choice((1, 1, 1, 2)))):
        files[which] = target.change(rng, files[which])
        if rng.random() < 0.01:
            del files[which]
    shutil.rmtree(folder, ignore_errors=True)
    for which, content in files.items():
        (folder / which).parent.mkdir(parents=True, exist_ok=True)
        (folder / which).write_bytes(content)
    folder.mkdir(exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # weights and data may be any numbers
            target.read(folder)
        return "read"
    except (*target.errors, FileNotFoundError) as error:
        message = str(error)
        lines, missing = "\n" in message, isinstance(error, FileNotFoundError)  # data that are missing: files, remedy
        diverged = message.startswith("learning_rate: ")  # weights of a valid checkpoint may be any numbers
        unnamed = not (str(folder) in message or diverged)
        if isinstance(error, UnicodeDecodeError) or (lines and not missing) or unnamed:
            raise AssertionError(f"{name} {number}: unclear {type(error).__name__}: {message}") from error
        return "refused"
    except Exception as error:
        raise AssertionError(f"{name} {number}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def limited():
    """A limit on memory, and, by `timed()` before a case, on its time at work: one that is stopped does not count."""

    def too_slow(*_):
        raise TooSlow

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, handler)


def timed():
    """The next case begins."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def campaign(cases, seed, folder, say=print):
    """`cases` cases spread over all targets: counts by target, and what failed."""
    names = list(targets())
    counts, failed, began = {name: {"read": 0, "refused": 0} for name in names}, [], time.time()
    for i in range(cases):
        name = names[i % len(names)]
        number = seed * cases + i // len(names)
        timed()
        try:
            counts[name][run_case(name, number, folder)] += 1
        except AssertionError as error:
            failed.append({"target": name, "case": number, "what": str(error)[:300]})
            if len(failed) <= 40:
                say("".join(traceback.format_exception(error.__cause__)[-3:]), str(error)[:300], sep="\n")
    return {
        "cases": cases,
        "failed": len(failed),
        "minutes": round((time.time() - began) / 60, 1),
        "counts": counts,
        "failures": failed[:100],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    targets()
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder, limited():
        found = campaign(settings.cases, settings.seed, Path(folder) / "case")
    if settings.json:
        settings.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "failures"}, indent=1))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill training runs by SIGKILL at random times, resume them, and compare with a run that nobody touched.

    python tests/kill_campaign.py --kills 60 --seed 0

Two kinds of runs, digits by `fit` and a text by `fit_stream`, both with everything that has a state: dropout, random
trace noise, Adam, early stopping, a plateau schedule, and a trace monitor. They save as often as they can, so that many
kills fall into a save. After every kill the checkpoint must load and be no older than after the kill before; every run
must end with parameters, history and traces equal to the bit. Then a disk that is full in the middle of a run: a small
tmpfs where this may be mounted (root), else a limit on the size of files.
Prints one JSON object; exit status 1 if anything was lost. Needs a POSIX system.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from enn_np import Adam, Checkpoint, Classifier, EarlyStopping, Engram, LanguageModel, ReduceOnPlateau, fit, load
from enn_np import checkpoint as files
from enn_np.datasets import image_rows, load_digits
from enn_np.monitor import HebbianTraceMonitor

KINDS = ("digits", "text")


def train(kind, path, end):
    """One run, resumed where there is something to resume; what came out goes to the file `end`."""
    warnings.simplefilter("ignore")
    print("begins", flush=True)
    callbacks = [EarlyStopping(patience=2), ReduceOnPlateau(patience=1, min_delta=0.02)]
    saving = {"checkpoint": Checkpoint(path, seconds=0.02), "resume": True, "verbose": 0, "callbacks": callbacks}
    if kind == "digits":
        images = load_digits()
        x = image_rows(images.x_train[:1600]).astype("float32") / 255
        model = Classifier(Engram(64, 32), 28, 10, pooling="attention", seed=1, random_inference=True)
        callbacks.append(HebbianTraceMonitor(model, x[:20]))
        optimizer = Adam(4e-3, clip_norm=1.0)
        y = images.y_train[:1600].copy()
        y[1440:] = np.random.default_rng(0).permutation(y[1440:])  # so that the best epoch is an early one
        history = fit(model, x, y, epochs=4, batch_size=16, validation_split=0.1, optimizer=optimizer, **saving)
    else:
        text = (np.random.default_rng(1).zipf(1.3, 24_000) % 3_000).astype(np.uint16)
        model = LanguageModel(Engram(48, 16, trace="sample"), 3_000, 48, head="adaptive", dropout=0.2, seed=1)
        history = model.fit_stream(
            text, epochs=4, batch_size=8, steps=20, validation_data=text[:2_000], optimizer=Adam(1e-2), **saving
        )
    traces = {"traces": callbacks[2].traces} if kind == "digits" else {}
    numbers = {name: values for name, values in history.items() if name != "seconds"}
    told = {"history": numbers, "best_epoch": history.best_epoch, "stopped": history.stopped}
    files.write(end, told, {**model.params, **traces})


def start(kind, path, end, limit=None):
    """The process of a run. limit: the largest file that it may write, in bytes."""
    size = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen(
        [sys.executable, __file__, "--child", kind, str(path), str(end)],
        preexec_fn=size,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def same(one, other):
    """Whether two files of `train` tell the same, to the bit."""
    (config, arrays), (config_2, arrays_2) = files.read(one), files.read(other)
    return (
        config == config_2
        and arrays.keys() == arrays_2.keys()
        and all(arrays[name].tobytes() == arrays_2[name].tobytes() for name in arrays)
    )


def position(path):
    """(epochs, batches) that a checkpoint holds."""
    training = files.read(path)[0]["training"]
    return len(training["history"].get("loss", ())), training["pass"].get("batches", 0)


def kill_until_it_ends(kind, folder, rng, seconds, count):
    """Kill and resume one run, which alone takes `seconds`, until it ends; notes in `count`."""
    path, end, before = folder / f"{kind}.npz", folder / f"{kind}.end.npz", (0, 0)
    for each in (path, end):
        each.unlink(missing_ok=True)
    while True:
        process = start(kind, path, end)
        process.stdout.readline()  # its imports are done
        try:
            _, error = process.communicate(timeout=rng.uniform(0.0, 0.3) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            count["kills"] += 1
        else:
            if process.returncode:
                raise SystemExit(f"a run failed of itself:\n{error}")
            return path, end
        count["during a save"] += bool(list(folder.glob("*.part")))
        if not path.exists():
            count["before the first checkpoint"] += 1
            continue
        load(path)
        now = position(path)
        count["lost checkpoints"] += now < before
        before = now


def full_disk(kind, whole, folder, count):
    """Fill the disk while a run is on; it must end with one clear error, keep its checkpoint, and go on later."""
    small = folder / "small"
    small.mkdir(exist_ok=True)
    size = 12 * whole.stat().st_size  # two checkpoints, of up to five times the parameters each
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], capture_output=True
    ).returncode
    path, end = small / f"{kind}.npz", folder / f"{kind}.full.npz"
    try:
        count["full disks"] += 1
        process = start(kind, path, end, None if mounted else 1 << 12)
        if mounted:
            while not path.exists():
                time.sleep(0.01)
            filler = small / "filler"
            try:
                with open(filler, "wb") as file:
                    while True:
                        file.write(b"x" * 4096)
                        file.flush()
            except OSError:
                pass
        _, error = process.communicate()
        last = error.strip().splitlines()[-1]
        count["clear errors"] += process.returncode == 1 and "checkpoint: " in last and "OSError" in last
        if mounted:
            load(path)
            filler.unlink()
        process = start(kind, path, end)
        process.communicate()
        count["equal after a full disk"] += process.returncode == 0 and same(end, whole)
        return last
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3)
    settings = parser.parse_args()
    if settings.child:
        return train(settings.child[0], *map(Path, settings.child[1:]))
    rng, began = random.Random(settings.seed), time.time()
    names = "kills", "during a save", "before the first checkpoint", "lost checkpoints", "runs", "equal to the bit"
    count = dict.fromkeys((*names, "full disks", "clear errors", "equal after a full disk"), 0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        wholes, seconds, messages = {}, {}, []
        for kind in KINDS:
            wholes[kind] = folder / "whole" / f"{kind}.end.npz"
            process = start(kind, folder / "whole" / f"{kind}.npz", wholes[kind])
            process.stdout.readline()
            alone = time.monotonic()
            _, error = process.communicate()
            seconds[kind] = time.monotonic() - alone
            if process.returncode:
                raise SystemExit(error)
        while count["kills"] < settings.kills:
            for kind in KINDS:
                _, end = kill_until_it_ends(kind, folder, rng, seconds[kind], count)
                count["runs"] += 1
                count["equal to the bit"] += same(end, wholes[kind])
        for kind in KINDS:
            messages.append(full_disk(kind, wholes[kind], folder, count))
    print(json.dumps({**count, "minutes": round((time.time() - began) / 60, 1), "messages": messages}, indent=1))
    good = count["runs"] == count["equal to the bit"] and not count["lost checkpoints"]
    return 0 if good and count["full disks"] == count["clear errors"] == count["equal after a full disk"] else 1


if __name__ == "__main__":
    sys.exit(main())

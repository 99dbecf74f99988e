"""Many runs: every model and seed of a benchmark that has no stored result yet, each in a process of its own.

    results/mnist-sound-gru-3.json       one finished run, small enough to commit
    results/rates/mnist-sound-gru.json   sound protocol: the learning rates tried, and the one chosen on validation
    results/runs/mnist-sound-gru-3/      while it lasts: checkpoint and lock; then the model (not committed)

A run that leaves the finite numbers has a result, too, which says so; the others go on.
Whatever is cut off, the same command goes on: finished runs are skipped, others taken up from their checkpoints. Two
such commands share the work, because a run that another process has is left to it.
"""

import math
from contextlib import ExitStack
from pathlib import Path

from . import checks, protocols, storage, wikitext
from .checkpoint import differ
from .device import device_module
from .processes import in_processes, mine
from .protocols import folder, read_json, tell, write_json
from .session import Diverged
from .variants import check, names

RESULTS = "data/results"
SEEDS = {"paper": 5, "sound": 5, "ablation": 3}
# Learning rates tried with seed 0, each for so long; the lowest validation loss wins. 672,001 words are 600 steps.
GRID = {name: (3e-4, 1e-3, 2e-3, 4e-3) for name in wikitext.NAMES}
SEARCH = {"mnist": {"epochs": 2}, "cifar10": {"epochs": 3}, "regression": {"epochs": 5}}
SEARCH |= {name: {"epochs": 1, "limit": 672_001} for name in wikitext.NAMES}


def benchmark(name, protocol, seeds=None, models=None, results=RESULTS, jobs=1, device="cpu", say=tell, **shorter):
    """Run what is missing. Returns how many runs failed.

    name, protocol: see `variants.names`. seeds: so many, 0 first (`SEEDS` if None), 0 to choose learning rates only;
    models: names, all if None. jobs: processes at a time, each with one BLAS thread. device: "cpu" or "cuda". shorter:
    epochs, limit, train (a text's file); runs made shorter are no results, so that they are refused in the default
    folder. Raises ValueError or TypeError before any work.
    """
    known = names(name, protocol)
    models = [check("models", name, protocol, model) for model in (known if models is None else models)]
    seeds = checks.count("seeds", SEEDS[protocol] if seeds is None else seeds, low=0)
    jobs = checks.count("jobs", jobs)
    shorter = {key: value for key, value in shorter.items() if value is not None}
    for model in models[:1]:
        settings_of(name, protocol, model, shorter)
    if shorter and Path(results).resolve() == Path(RESULTS).resolve():
        raise ValueError(f"{', '.join(shorter)}: {RESULTS} is for whole runs, got {shorter}; name another --results")
    results = folder(results)
    what = [(name, protocol, model) for model in models]
    device_module(device)
    searches = [
        (*each, results, device, shorter) for each in what if protocol == "sound" and _rate(*each, results) is None
    ]
    runs = [(*each, seed, results, device, shorter) for seed in range(seeds) for each in what]
    missing = [run for run in runs if not result_path(results, *run[:4]).exists()]
    for each in (run[:4] for run in runs if run not in missing):  # a trial's result is not the whole run's
        path = result_path(results, *each)
        if found := read_json(path).get("training"):
            differ(path, settings_of(*each[:3], shorter) | {"learning_rate": found.get("learning_rate")}, found)
    say(f"{len(missing)} of {len(runs)} runs to do, {len(searches)} learning rates to choose first")
    failed = 0
    for work, tasks in ((search, searches), (run_one, missing)):
        named = {"-".join(str(part) for part in task[:4] if isinstance(part, str | int)): task for task in tasks}
        failed += in_processes(
            work, {name: (*task, "auto" if jobs == 1 else 0) for name, task in named.items()}, jobs, say
        )
    return failed


def result_path(results, name, protocol, model, seed):
    return Path(results) / f"{name}-{protocol}-{model}-{seed}.json"


def settings_of(name, protocol, model, shorter):
    """The training settings of a run, checked."""
    if name in wikitext.NAMES:
        return wikitext.training_settings(name, protocol, model, **shorter)
    return protocols.training_settings(name, protocol, **shorter)


def run(name, model, protocol, seed, out, **settings):
    """`run_benchmark` or `run_wikitext`, whichever has the benchmark."""
    one = wikitext.run_wikitext if name in wikitext.NAMES else protocols.run_benchmark
    return one(name, model, protocol, seed, out, **settings)


# Each of the following works in a process of its own, and returns what to tell.


def run_one(name, protocol, model, seed, results, device, shorter, verbose=0):
    """One run, from its checkpoint if it has one; its summary becomes the result file."""
    path = result_path(results, name, protocol, model, seed)
    work = folder(Path(results) / "runs" / path.stem)
    rate = {}
    if protocol == "sound":
        rate["learning_rate"] = _rate(name, protocol, model, results)
        if rate["learning_rate"] is None:
            raise ValueError(f"learning_rate: the search for {model} has not ended; run the command again")
    with ExitStack() as stack:
        if not mine(stack, work / ".result.lock"):
            return "another process has it"
        if path.exists():
            return "another process did it"
        saving = {"verbose": verbose, "resume": True, "device": device}
        try:
            summary = run(name, model, protocol, seed, work, **saving, **shorter, **rate)
        except Diverged as error:
            what = {"benchmark": name, "protocol": protocol, "model": model, "seed": seed}
            what["training"] = settings_of(name, protocol, model, {**shorter, **rate})
            found = protocols.diverged(what, error, device)
            write_json(path, found)
            (work / "checkpoint.npz").unlink(missing_ok=True)  # it would diverge again
            return f"diverged, and is not tried again: {found['why']}"
        if summary["stopped"] == "interrupted":
            return "interrupted"
        if seed == 0 and model == "engram" and (name in protocols.PAPER) and (work / "trace.npz").exists():
            with storage.whole(path.with_suffix(".npz")) as file:
                file.write((work / "trace.npz").read_bytes())
        write_json(path, summary)
    kind = next(kind for kind in ("perplexity", "accuracy", "loss") if f"test_{kind}" in summary)
    return f"test {kind} {summary[f'test_{kind}']:.4g}, {summary['seconds'] / 60:.1f} minutes"


def search(name, protocol, model, results, device, shorter, verbose=0):
    """Choose a learning rate by validation loss, with seed 0; the test part is never looked at."""
    path = _rate_path(results, name, protocol, model)
    with storage.lock(folder(Path(results) / "runs") / f".rate-{path.stem}.lock"):  # waits for another process' search
        if _rate(name, protocol, model, results) is not None:
            return "another process chose it"
        sizes = {**SEARCH[name], **{key: value for key, value in shorter.items() if key != "limit"}}
        if "limit" in shorter:
            sizes["limit"] = min(shorter["limit"], sizes.get("limit", shorter["limit"]))
        what = {"benchmark": name, "protocol": protocol, "model": model, "seed": 0}
        what["training"] = settings_of(name, protocol, model, sizes) | {"learning_rate": None}
        found = {**what, "validation_loss": {}, "learning_rate": None, "machine": protocols.machine(device)}
        found = _searched(path) or found
        differ(path, what, {key: found.get(key) for key in what})
        tried = found["validation_loss"]
        for rate in _grid(name):
            if f"{rate:g}" not in tried:
                one = {**what, "training": what["training"] | {"learning_rate": rate}}
                tried[f"{rate:g}"] = _validation_loss(one, device, verbose)
                write_json(path, found)
        # Where none stays finite: the lowest, at which the runs then are recorded as diverged.
        best = min(tried, key=lambda rate: (math.inf if tried[rate] is None else tried[rate], float(rate)))
        write_json(path, found | {"learning_rate": float(best)})
    return f"learning rate {best}, of validation losses {tried}"


def _validation_loss(what, device, verbose):
    """The lowest validation loss of a short run, None if it left the finite numbers."""
    saving = {"verbose": verbose, "checkpoint": None, "resume": False}
    try:
        if what["benchmark"] in wikitext.NAMES:
            history = wikitext.learn(what, device, **saving)[1]
        else:
            name, protocol, model, seed, training = what.values()
            data, network, frozen = protocols.prepared(name, protocol, model, seed, training["limit"], device)
            history, _ = protocols.learn(network, data, seed, training, frozen=frozen, **saving)
    except Diverged:
        return None
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return float(f"{min(history['val_loss']):.6g}")


def _rate_path(results, name, protocol, model):
    return Path(results) / "rates" / f"{name}-{protocol}-{model}.json"


def _rate(name, protocol, model, results):
    """The learning rate that `search` chose, None if it has not yet, or not among all of the grid."""
    found = _searched(_rate_path(results, name, protocol, model)) or {"validation_loss": {}}
    return found["learning_rate"] if found["validation_loss"].keys() >= {f"{rate:g}" for rate in _grid(name)} else None


def _searched(path):
    """What `search` wrote, None if it has not yet. ValueError, naming the file, where it holds something else."""
    found = read_json(path) if path.exists() else None
    if found is not None and not (isinstance(found.get("validation_loss"), dict) and "learning_rate" in found):
        raise ValueError(f"{path}: holds no search for a learning rate; remove it, or name another --results")
    return found


def _grid(name):
    return GRID.get(name, (3e-4, 1e-3, 3e-3))

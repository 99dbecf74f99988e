"""All runs of experiments that have no stored result yet, each once, several at a time.

    results/mnist-sound-gru-3.json             one finished run, small enough to commit
    results/rates/mnist-sound-gru-0.001.json   several learning rates: what each came to with seed 0
    results/runs/mnist-sound-gru-3/            while it lasts: checkpoint and lock; then the model (not committed)

A run that leaves the finite numbers has a result, too, which says so. Whatever is cut off, the same command goes on.
Two such commands share the work: a run that another process has is left to it. So do machines that share the folder.
"""

import asyncio
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import checks
from ..backend import device_module
from ..checkpoint import Taken, lock, read_arrays, whole, write_text
from ..language import wikitext2_recipe
from ..train import BLAS_THREADS, Diverged, say
from ..train.parallel import Workers
from . import pages, table, work
from .results import RUN, folder, machine, read_result, revision, run_folder, write_json
from .table import Experiment

RESULTS = "data/results"
SHOWN = 16  # sequences whose retrieval is stored with a result


class Run(NamedTuple):
    """All that decides a result, and its folder. training: its settings. trial: it tries a learning rate, by seed 0."""

    experiment: Experiment
    model: str
    seed: int
    training: dict
    results: Path
    trial: bool = False

    @property
    def short(self):
        """Whether it is shorter than a result would be: then its test part is never looked at."""
        return self.trial and self.experiment.trial is not None

    @property
    def name(self):
        last = f"{self.training['learning_rate']:g}" if self.trial else self.seed
        return f"{self.experiment.name}-{self.experiment.protocol}-{self.model}-{last}"

    @property
    def path(self):
        return self.results / ("rates" if self.trial else "") / f"{self.name}.json"

    @property
    def what(self):
        """What a result says that it is of."""
        named = {"benchmark": self.experiment.name, "protocol": self.experiment.protocol, "model": self.model}
        return named | {"seed": self.seed, "training": self.training}

    def stored(self):
        """The result found, None if there is none. ValueError where it was trained otherwise."""
        if not self.path.exists():
            return None
        found = read_result(self.path, tested=not self.short)
        got = found.get("training") or self.training  # the oldest results do not say
        if got != self.training:
            wanted = f"holds a run with {got}, asked for {self.training}"
            raise ValueError(f"{self.path}: {wanted}; delete it and its folder in runs/, or name another")
        return found


def settings_of(experiment, model, asked, rate=None):
    """The training settings of a run: the experiment's own, with what is `asked` for in their place. Raises ValueError
    or TypeError for a setting that it has not, or a bad value."""
    own = dict(experiment.training)
    if experiment.source == "stream":
        own["learning_rate"] = wikitext2_recipe(model)[1]["optimizer"].learning_rate
    for name, value in asked.items():
        if name not in own:
            raise ValueError(f"{name}: {experiment.key} has none, it has {', '.join(own)}; leave it out")
        low = experiment.phases if name == "steps" else 1
        own[name] = value if name == "train_file" else checks.count(name, value, low)
    return own | ({} if rate is None else {"learning_rate": checks.number("rates", rate, above=0)})


def run_in(out, run, resume=False, device="cpu", verbose="auto"):
    """One run in the folder `out`: writes summary.json, model.npz, figures and (Engram on images) trace.npz.

    Returns the summary. While it lasts, `out`/checkpoint.npz holds it; resume: go on from there.
    """
    with run_folder(out, run.what, resume) as (out, checkpoint, done):
        if done:
            return done
        workers, saving = Workers.here, {"checkpoint": checkpoint, "resume": resume}
        measured = machine(device)  # of the code that is loaded, not of what is committed by the end
        ready = work.SOURCES[run.experiment.source](run.experiment, run.model, run.seed, run.training, device)
        workers.check(ready.model)
        workers.first(lambda: (run, device, saving))  # see `follow`
        history = ready.learn(verbose=verbose, reduce=workers, **saving)
        summary = {**run.what, **({} if run.short else ready.test()), **work.outcome(history, ready.monitor)}
        summary |= {"config": ready.model.config(), "machine": measured}
        ready.model.save(out / "model.npz")
        images = ready.monitor if ready.labels is not None else None
        if images:
            images.save(out / "trace.npz", ready.labels)
        write_json(out / "summary.json", summary)  # before the figures: a missing matplotlib must not cost the result
        if not run.short:
            pages.draw(out, {table.TITLES.get(run.model, run.model): summary}, images)
        return summary


def follow(workers):
    """What a process of mpiexec does that is not rank 0: it learns with that, run by run, until that says None."""
    with workers:
        while task := workers.first(None):
            run, device, saving = task
            ready = work.SOURCES[run.experiment.source](run.experiment, run.model, run.seed, run.training, device)
            with suppress(Diverged):
                ready.learn(verbose=0, reduce=workers, **saving)


def run_one(key, model, seed, out, rate=None, resume=False, device="cpu", verbose="auto", **asked):
    """`run_in` of an experiment and a network by name. rate, asked: what is other than the experiment's own."""
    experiment = table.find(key)
    table.known("model", experiment, model)
    device_module(device)
    run = Run(experiment, model, checks.count("seed", seed, low=0), settings_of(experiment, model, asked, rate), out)
    return run_in(out, run, resume, device, verbose)


def run_all(experiments, models=None, seeds=None, rates=None, results=RESULTS, jobs=1, device="cpu", say=say, **asked):
    """Run what is missing of some experiments. Returns all results, None for what failed or another process has.

    experiments: keys, see `table.find`. models: names, all of the experiment if None. seeds: so many, 0 first, the
    experiment's own number if None, 0 to choose learning rates only. rates: one, or several to choose from per network
    as `search` says, by seed 0; the experiment's own if None. jobs: processes at a time, each with one BLAS thread;
    with 1, all is done here; or an Executor, whose workers share the folder `results`. asked: other settings than the
    experiment's own; such runs are no results, so that they are refused in the default folder. Raises ValueError or
    TypeError, naming the argument, before any work, or where a result found was trained otherwise.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    seeds = None if seeds is None else checks.count("seeds", seeds, low=0)
    jobs = jobs if isinstance(jobs, Executor) else checks.count("jobs", jobs)
    device_module(device)
    default, place = Path(RESULTS).resolve(), Path(results).resolve()
    plan = [
        (experiment, table.known("models", experiment, model), experiment.rates if rates is None else rates)
        for experiment in {each.key: each for each in map(table.find, experiments)}.values()
        for model in (experiment.models if models is None else dict.fromkeys(models))
    ]
    if not plan or not all(grid for *_, grid in plan):
        raise ValueError("experiments, models, rates: expected at least one of each; name some")
    for experiment, model, grid in plan:
        if experiment.source == "fresh":
            table.network(experiment, model)  # whether it can be
        for rate in grid:
            settings_of(experiment, model, asked, rate)
        if place == default and any(value != experiment.training[name] for name, value in asked.items()):
            raise ValueError(f"{', '.join(asked)}: {RESULTS} is for whole runs, got {asked}; name another --results")
    if default in (place, *place.parents) and (revision() or "").endswith("-dirty"):
        why = f"{RESULTS} is for results of a commit, this is {revision()}"
        raise ValueError(f"results: {why}; commit your changes, or name another --results")
    results, tried = folder(results).absolute(), set()
    if isinstance(jobs, Executor) and not jobs.submit(os.path.isdir, results).result():
        raise ValueError(f"results: a worker of the cluster sees no {results}; name a folder that all machines share")
    while trials := [run for each in plan for run in search(*each, asked, results)[1] if run.path not in tried]:
        say(f"{len(trials)} trials of learning rates to do first")
        do(trials, jobs, device, say)
        tried |= {run.path for run in trials}
    runs, unknown = [], []
    for experiment, model, grid in plan:
        rate, _ = search(experiment, model, grid, asked, results)
        if rate is None:
            say(f"{experiment.key}: the search for {model} has not ended; run the command again")
            unknown.append(None)
            continue
        training = settings_of(experiment, model, asked, rate)
        many = range(experiment.seeds if seeds is None else seeds)
        runs += [Run(experiment, model, seed, training, results) for seed in many]
    missing = [run for run in runs if run.stored() is None]
    say(f"{len(missing)} of {len(runs)} runs to do")
    do(missing, jobs, device, say)
    return [run.stored() for run in runs] + unknown


def search(experiment, model, grid, asked, results):
    """The rate of the lowest validation loss (of one task after another: of the highest accuracy on all of them), the
    lowest rate where all diverged, and the trials that are missing; None while some are.

    A trial is the whole run of seed 0, whose result then stands for it and whose last validation counts; or as short
    as the experiment says, and the best counts. A run that ended early, for nothing was left to learn, comes before
    those that did not, the sooner the better. The grid of fresh samples gets further rates, 1e-6 to 0.5: half or twice
    the best, while that is at its edge; twice the highest, while its loss, or accuracy, is within 1% of the best.
    """
    widens = experiment.source == "fresh" and grid == experiment.rates
    while len(grid) > 1:
        trials = {rate: trial(experiment, model, rate, asked, results) for rate in grid}
        found = {rate: run.stored() for rate, run in trials.items()}
        if missing := [run for rate, run in trials.items() if found[rate] is None]:
            return None, missing
        ranks = {rate: _rank(each, experiment) for rate, each in found.items()}
        best = min(grid, key=lambda rate: (ranks[rate], rate))
        tied = ranks[best][0] == math.inf and ranks[max(grid)][1] - ranks[best][1] < 0.01 * abs(ranks[best][1])
        beyond = {min(grid): min(grid) / 2, max(grid): max(grid) * 2}.get(max(grid) if tied else best, 1)
        if widens and 1e-6 < beyond < 0.5 and found[best]["stopped"] != "diverged":
            grid = (*grid, beyond)
            continue
        result = trials[best]._replace(trial=False)
        if not trials[best].short and not result.path.exists():
            write_text(result.path, trials[best].path.read_text(encoding="utf-8"))
        return best, []
    return grid[0], []


def trial(experiment, model, rate, asked, results):
    """The run that tries a learning rate."""
    training = settings_of(experiment, model, asked, rate)
    if short := experiment.trial:
        limits = [each["limit"] for each in (training, short) if each.get("limit")]
        training |= {**short, **asked, "limit": min(limits, default=None)}
    return Run(experiment, model, 0, training, results, trial=True)


def _rank(found, experiment):
    """(steps to the end of a run that solved its task, else infinity; validation loss, or minus the accuracy of one
    task after another, where who names the last one surely, as all do, is surely wrong on the others)."""
    if found["stopped"] == "diverged":
        return math.inf, math.inf
    solved, history = found["stopped"] == "early" and "steps" in found, found["history"]
    losses = history["val_loss"] if experiment.phases == 1 else [-right for right in history["val_accuracy"]]
    return found["steps"] if solved else math.inf, min(losses) if experiment.trial else losses[-1]


# ------------------------------------------------------------------------------------------------- at a time, in turn


def one(run, device="cpu", verbose="auto", wait=False):
    """Make the result of one run, from its checkpoint if it has one, unless another process does. Returns what became
    of it, in words. wait: for the end of that other process, which a cluster may have given up."""
    while True:
        try:
            return _one(run, device, verbose)
        except Taken:
            if not wait:
                return "another process has it"
            time.sleep(1)
        except Exception as error:
            return f"FAILED: {type(error).__name__}: {error}"


def _one(run, device, verbose):
    place = folder(run.results / "runs" / ("trial-" * run.trial + run.name))
    with lock(place / ".result.lock", run.name):
        if run.path.exists():
            return "another process did it"
        try:
            summary = run_in(place, run, resume=True, device=device, verbose=verbose)
        except Diverged as error:
            why = str(error).partition(";")[0]
            write_json(run.path, {**run.what, "stopped": "diverged", "why": why, "machine": machine(device)})
            for path in (run.path.with_suffix(".npz"), *(place / name for name in RUN)):
                path.unlink(missing_ok=True)  # it would diverge again
            return f"diverged, and is not tried again: {why}"
        if summary["stopped"] == "interrupted":
            raise KeyboardInterrupt
        kept = run.model == "engram" and not run.short and (run.seed == 0 or run.experiment.protocol == "paper")
        if kept and (place / "trace.npz").exists():
            stored = read_arrays(place / "trace.npz", ["traces", "retrieval", "probe"])
            stored |= {name: stored[name][:SHOWN] for name in ("retrieval", "probe")}
            with whole(run.path.with_suffix(".npz")) as file:
                np.savez_compressed(file, **stored)
        write_json(run.path, summary)
    score = run.experiment.score
    value = f"validation loss {min(summary['history']['val_loss']):.4g}"
    value = value if run.short else f"{score.replace('_', ' ')} {summary[score]:.4g}"
    return f"{value}, {summary['seconds'] / 60:.1f} minutes"


def do(runs, jobs, device="cpu", say=say):
    """Make the results of runs, `jobs` at a time or by an Executor; say how each ended. A failed run costs no other.

    Processes are spawned, so that NumPy is imported after the number of BLAS threads is set. A Ctrl-C ends them at
    once. If the system kills one of `jobs` processes, all runs that are not done yet end with it.
    """
    if jobs == 1 or not runs:
        for run in runs:
            say(f"{run.name}: {one(run, device)}")
        return
    before, others = {name: os.environ.get(name) for name in BLAS_THREADS}, set(multiprocessing.active_children())
    os.environ.update({} if isinstance(jobs, Executor) else dict.fromkeys(BLAS_THREADS, "1"))  # else see `one_thread`
    spawn = multiprocessing.get_context("spawn")
    pool, running = jobs if isinstance(jobs, Executor) else ProcessPoolExecutor(jobs, spawn, _with_parent), {}
    try:
        for run in runs:
            running[pool.submit(one, run, device, 0, pool is jobs)] = run.name
        for future in as_completed(running):
            try:
                what = future.result()
            except Exception as error:  # not of `one`, which raises none
                what = f"FAILED: {type(error).__name__}: {error}; the same command goes on from here"
            say(f"{running[future]}: {what}")
    except KeyboardInterrupt:
        for future in running:
            future.cancel()
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        if pool is not jobs:
            pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def cluster(address):
    """An Executor of the workers of the Dask scheduler at `address`. Raises ValueError where none answers."""
    try:
        from distributed import Client
        from distributed.comm import connect

        asyncio.run(asyncio.wait_for(connect(address), 5)).abort()  # Client may wait for ever
        client = Client(address, timeout=5)
    except Exception as error:
        remedy = "pip install distributed, start `dask scheduler` and give the address that it prints, tcp://HOST:PORT"
        raise ValueError(f"on: no Dask scheduler answers at {address!r} ({error!r}); {remedy}") from error
    with client:
        yield client.get_executor(pure=False)


def _with_parent():
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()

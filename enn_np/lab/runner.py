"""All runs of experiments that have no stored result yet, each once, several at a time.

    results/mnist-sound-gru-3.json             one finished run, small enough to commit
    results/rates/mnist-sound-gru-0.001.json   several learning rates: what each came to with seed 0
    results/runs/mnist-sound-gru-3/            while it lasts: checkpoint and lock; then the model (not committed)

A run that leaves the finite numbers has a result, too, which says so; the others go on. Whatever is cut off, the same
command goes on: finished runs are skipped, others taken up from their checkpoints. Two such commands share the work,
because a run that another process has is left to it.
"""

import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from .. import checks
from ..backend import device_module
from ..checkpoint import lock, whole, write_text
from ..language import wikitext2_recipe
from ..train import BLAS_THREADS, Diverged
from . import pages, table, work
from .results import folder, machine, read_json, read_result, run_folder, tell, write_json
from .table import Experiment

RESULTS = "data/results"


class Run(NamedTuple):
    """A run, and the file that its result has. training: its settings. short: it only tries a learning rate, and its
    test part is never looked at."""

    experiment: Experiment
    model: str
    seed: int
    training: dict
    path: Path
    short: bool = False

    @property
    def what(self):
        """What a result says that it is of."""
        each = self.experiment
        named = {"benchmark": each.name, "protocol": each.protocol, "model": self.model, "seed": self.seed}
        return named | {"training": self.training}

    def stored(self):
        """The result found, None if there is none. ValueError where it was trained otherwise."""
        if not self.path.exists():
            return None
        found = read_json(self.path) if self.short else read_result(self.path)
        unsaid = self.training | {"clip": None}  # of fresh samples was not clipped, at first
        got = {name: (found.get("training") or {}).get(name, unsaid[name]) for name in self.training}
        if got != self.training:
            wanted = f"holds a run with {got}, asked for {self.training}"
            raise ValueError(f"{self.path}: {wanted}; delete it or name another folder")
        return found


def settings_of(experiment, model, asked, rate=None):
    """The training settings of a run: the experiment's own, with what is `asked` for in their place, checked.

    Raises ValueError or TypeError for a setting that it has not, or a bad value.
    """
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
        what = run.experiment, run.model, run.seed, run.training
        ready = work.SOURCES[run.experiment.source](*what, device)
        history = ready.learn(verbose=verbose, checkpoint=checkpoint, resume=resume)
        numbers = {} if run.short else ready.test()
        summary = {**run.what, **numbers, **work.outcome(history, ready.monitor)}
        summary |= {"config": ready.model.config(), "machine": machine(device)}
        ready.model.save(out / "model.npz")
        images = ready.monitor if ready.labels is not None else None
        if images:
            images.save(out / "trace.npz", ready.labels)
        write_json(out / "summary.json", summary)  # before the figures: a missing matplotlib must not cost the result
        if not run.short:
            pages.draw(out, {table.TITLES.get(run.model, run.model): summary}, images)
        return summary


def run_one(key, model, seed, out, rate=None, resume=False, device="cpu", verbose="auto", **asked):
    """`run_in` of an experiment and a network by name. rate, asked: what is other than the experiment's own."""
    experiment = table.find(key)
    table.check("model", experiment, model)
    device_module(device)
    training = settings_of(experiment, model, asked, rate)
    run = result_run(experiment, model, checks.count("seed", seed, low=0), training, out)
    return run_in(out, run, resume, device, verbose)


def result_run(experiment, model, seed, training, results):
    """The run whose result is RESULTS/NAME-PROTOCOL-MODEL-SEED.json."""
    name = f"{experiment.name}-{experiment.protocol}-{model}-{seed}.json"
    return Run(experiment, model, seed, training, Path(results) / name)


def run_all(experiments, models=None, seeds=None, rates=None, results=RESULTS, jobs=1, device="cpu", say=tell, **asked):
    """Run what is missing of some experiments. Returns the results, those found included; None in the place of what
    failed or what another process has.

    experiments: keys, see `table.find`. models: names, all of the experiment if None. seeds: so many, 0 first, the
    experiment's own number if None, 0 to choose learning rates only. rates: one, or several to choose from per network
    by validation loss with seed 0; the experiment's own if None. jobs: processes at a time, each with one BLAS thread;
    with 1, all is done here. asked: other settings than the experiment's own; such runs are no results, so that they
    are refused in the default folder. Raises ValueError or TypeError, naming the argument, before any work, or where a
    result found was trained otherwise.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    seeds, jobs = None if seeds is None else checks.count("seeds", seeds, low=0), checks.count("jobs", jobs)
    device_module(device)
    plan = [
        (experiment, table.check("models", experiment, model), experiment.rates if rates is None else rates)
        for experiment in map(table.find, experiments)
        for model in (experiment.models if models is None else models)
    ]
    if not plan or not all(grid for *_, grid in plan):
        raise ValueError("experiments, models, rates: expected at least one of each; name some")
    for experiment, model, grid in plan:
        if experiment.source == "fresh":
            table.network(experiment, model)  # whether it can be
        changed = {
            name
            for rate in grid
            for name, value in settings_of(experiment, model, asked, rate).items()
            if name in asked and value != experiment.training[name]
        }
        if changed and Path(results).resolve() == Path(RESULTS).resolve():
            raise ValueError(f"{', '.join(asked)}: {RESULTS} is for whole runs, got {asked}; name another --results")
    results = folder(results)
    done = set()
    while trials := [run for each in plan for run in widened(*each, asked, results)[1] if run.path not in done]:
        say(f"{len(trials)} trials of learning rates to do first")
        do(trials, jobs, device, say)
        done |= {run.path for run in trials}
    runs, unknown = [], []
    for experiment, model, grid in plan:
        rate = grid[0] if len(grid) == 1 else choose(experiment, model, grid, asked, results)
        if rate is None:
            say(f"{experiment.key}: the search for {model} has not ended; run the command again")
            unknown.append(None)
            continue
        training = settings_of(experiment, model, asked, rate)
        many = range(experiment.seeds if seeds is None else seeds)
        runs += [result_run(experiment, model, seed, training, results) for seed in many]
    missing = [run for run in runs if run.stored() is None]
    say(f"{len(missing)} of {len(runs)} runs to do")
    do(missing, jobs, device, say)
    return [run.stored() for run in runs] + unknown


# ------------------------------------------------------------------------------------------- choice of a learning rate


def trial_run(experiment, model, rate, asked, results):
    """The run that tries a learning rate: the whole one of seed 0, or as short as the experiment says."""
    training = settings_of(experiment, model, asked, rate)
    if short := experiment.trial:
        limits = [each["limit"] for each in (training, short) if each.get("limit")]
        training |= {**short, **asked, "limit": min(limits, default=None)}
    return Run(experiment, model, 0, training, _rates(experiment, model, f"-{rate:g}", results), bool(short))


def tried(experiment, model, grid, asked, results):
    """{rate: validation loss, infinite where it diverged}, and the trials that are missing.

    Of a whole run the last validation counts, of a short one the best.
    """
    losses, missing, earlier = {}, [], _searched(experiment, model, asked, results)
    for rate in grid:
        run = trial_run(experiment, model, rate, asked, results)
        found = run.stored()
        if f"{rate:g}" in earlier:
            losses[rate] = math.inf if earlier[f"{rate:g}"] is None else earlier[f"{rate:g}"]
        elif found is None:
            missing.append(run)
        elif found["stopped"] == "diverged":
            losses[rate] = math.inf
        else:
            values = found["history"]["val_loss"]
            losses[rate] = min(values) if run.short else values[-1]
    return losses, missing


def widened(experiment, model, grid, asked, results):
    """As `tried`, with further rates where the grid is that of fresh samples: half or twice the best, while that is the
    lowest or highest."""
    own = experiment.source == "fresh" and grid == experiment.rates
    while True:
        losses, missing = tried(experiment, model, grid, asked, results) if len(grid) > 1 else ({}, [])
        best = min(losses, key=lambda rate: (losses[rate], rate), default=None)
        beyond = {min(grid): min(grid) / 2, max(grid): max(grid) * 2}.get(best)
        if missing or not own or beyond is None or losses[best] == math.inf:
            return losses, missing
        grid = (*grid, beyond)


def choose(experiment, model, grid, asked, results):
    """The rate of the lowest validation loss, the lowest rate where all diverged; None if a trial is missing.

    The result of a whole trial stands for seed 0.
    """
    losses, missing = widened(experiment, model, grid, asked, results)
    if missing:
        return None
    best = min(losses, key=lambda rate: (losses[rate], rate))
    run = trial_run(experiment, model, best, asked, results)
    first = result_run(experiment, model, 0, run.training, results).path
    if not run.short and not first.exists():
        write_text(first, run.path.read_text(encoding="utf-8"))
    return best


def _searched(experiment, model, asked, results):
    """{rate: validation loss or None} of a search that was stored as one file, rates/NAME.json, as the first were."""
    path = _rates(experiment, model, "", results)
    found = read_json(path) if path.exists() else {"validation_loss": {}, "training": {}}
    if not isinstance(found.get("validation_loss"), dict) or not isinstance(found.get("training"), dict):
        raise ValueError(f"{path}: holds no search for a learning rate; remove it, or name another --results")
    wanted = trial_run(experiment, model, 1.0, asked, results).training
    return found["validation_loss"] if found["training"] | {"learning_rate": 1.0} == wanted else {}


def _rates(experiment, model, rate, results):
    return Path(results) / "rates" / f"{experiment.name}-{experiment.protocol}-{model}{rate}.json"


# ------------------------------------------------------------------------------------------------- at a time, in turn


def do(runs, jobs, device="cpu", say=tell):
    """Make the results of runs, `jobs` at a time, and say how each ended; one that fails costs no other."""
    named = {run.path.stem: run for run in runs}
    if jobs == 1:
        for name, run in named.items():
            say(f"{name}: {one(run, device)}")
    elif named:
        in_processes(one, {name: (run, device, 0) for name, run in named.items()}, jobs, say)


def one(run, device="cpu", verbose="auto"):
    """Make the result of one run, from its checkpoint if it has one, unless another process does. Returns what became
    of it, in words."""
    try:
        return _one(run, device, verbose)
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {error}"


def _one(run, device, verbose):
    trial = run.path.parent.name == "rates"
    results = run.path.parents[1 if trial else 0]
    place = folder(results / "runs" / ("trial-" * trial + run.path.stem))
    with ExitStack() as held:
        try:
            held.enter_context(lock(place / ".result.lock", run.path.stem))
        except ValueError:
            return "another process has it"
        if run.path.exists():
            return "another process did it"
        try:
            summary = run_in(place, run, resume=True, device=device, verbose=verbose)
        except Diverged as error:
            why = str(error).partition(";")[0]
            write_json(run.path, {**run.what, "stopped": "diverged", "why": why, "machine": machine(device)})
            (place / "checkpoint.npz").unlink(missing_ok=True)  # it would diverge again
            return f"diverged, and is not tried again: {why}"
        if summary["stopped"] == "interrupted":
            raise KeyboardInterrupt
        kept = run.seed == 0 and run.model == "engram" and run.experiment.name in table.PAPER and not run.short
        if kept and (place / "trace.npz").exists():
            with whole(run.path.with_suffix(".npz")) as file:
                file.write((place / "trace.npz").read_bytes())
        write_json(run.path, summary)
    score = run.experiment.score
    value = f"validation loss {min(summary['history']['val_loss']):.4g}"
    value = value if run.short else f"{score.replace('_', ' ')} {summary[score]:.4g}"
    return f"{value}, {summary['seconds'] / 60:.1f} minutes"


def in_processes(what, tasks, jobs, say=tell):
    """Do `what(*arguments)` for {name: arguments}, `jobs` at a time; say what each returns.

    Processes are spawned, not forked, so that NumPy is imported in them after the number of BLAS threads is set. A
    Ctrl-C ends them at once. Raises OSError, naming the run, where the system killed one.
    """
    before, others = {name: os.environ.get(name) for name in BLAS_THREADS}, set(multiprocessing.active_children())
    os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _with_parent)
    try:
        running = {pool.submit(what, *arguments): name for name, arguments in tasks.items()}
        for future in as_completed(running):
            name = running[future]
            say(f"{name}: {future.result()}")
    except BrokenProcessPool:
        raise OSError(f"{name}: its process was killed (out of memory?); the same command goes on from here") from None
    except KeyboardInterrupt:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _with_parent():
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

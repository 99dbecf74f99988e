"""The commands: `python -m enn_np demo | run | list | tables | verify | report | gradcheck | data`."""

import argparse
import sys
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

import numpy as np

from .. import __version__, checks, gradcheck
from ..backend import device_module
from ..binding import Binding
from ..checkpoint import spelled_out
from ..data.fetch import SOURCES, data_folder, fetch, find, verify
from ..engram import Engram
from ..train import mute, say
from ..train.parallel import Workers, started
from ..window import Convolution
from . import demo, pages, table
from .lem import LEM
from .results import RUN
from .runner import RESULTS, cluster, follow, run_all, run_one

PAGES = [Path("README.md"), Path("data/results/README.md")]


def main(arguments=None):
    """Run one command; returns the exit status: 0, 1 for a failed check, 2 for bad input, 130 after Ctrl-C."""
    try:
        try:
            settings = _parser().parse_args(arguments)
            device_module(getattr(settings, "device", "cpu"))  # before any work
            return settings.command(settings) or 0
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough: `| head`
        mute()
        return 141  # as a shell reports it
    except RecursionError:  # a fault of ours: with its traceback
        raise
    except MemoryError as error:
        print(f"enn_np: not enough memory; ask for less, such as a smaller --limit. {error}", file=sys.stderr)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"enn_np: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nenn_np: interrupted", file=sys.stderr)
        return 130
    return 2


def _data_set(text):
    """The name of a data set that others spell another way: wikitext2, WikiText-2, CIFAR-10."""
    return {name.replace("-", ""): name for name in SOURCES}.get(text.lower().replace("-", ""), text)


def _path(text):
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty one; is a variable of the shell not set?")
    return spelled_out(text)  # a shell leaves the ~ of --out=~/x as it is


def _parser():
    about = "The Engram Neural Network in plain NumPy: a recurrent network with a Hebbian memory, its baselines, and "
    start = "Start with `python -m enn_np demo`: four networks on real digits, in a minute or two, without a download."
    parser = argparse.ArgumentParser("python -m enn_np", description=f"{about}gradients written by hand.", epilog=start)
    parser.add_argument("-V", "--version", action="version", version=f"enn_np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name, purpose, function):
        """add(option, help, **settings) of a command, which tells its purpose here and in its own help."""
        made = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        made.set_defaults(command=function)
        return made.add_argument

    device = {"default": "cpu", "choices": ("cpu", "cuda"), "help": "where to compute; cuda needs CuPy (%(default)s)"}
    folder = {"type": _path, "metavar": "DIR"}
    page = {"type": _path, "nargs": "+", "default": PAGES, "help": "Markdown files with marks (those of a clone)"}
    results = {"default": RESULTS, "help": "folder of result files (%(default)s)", **folder}

    add = command("demo", "train all four networks on the bundled digits, and draw what they learned", _demo)
    add("--out", default="runs/demo", help="folder for summary.json and figures (%(default)s)", **folder)
    add("--epochs", type=int, default=demo.EPOCHS, help="epochs at most (%(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--device", **device)

    add = command("run", "train all that has no stored result yet, or one run in a folder", _run)
    add("experiment", nargs="+", help="such as mnist/sound, wikitext2/sound or recall8, see `python -m enn_np list`")
    add("--models", nargs="+", metavar="NAME", help="networks (all that the experiment has)")
    add("--seeds", type=int, help="how many, 0 first, or 0 to choose learning rates only (the experiment's own)")
    add("--rates", type=float, nargs="+", help="learning rate, or several to choose from (the experiment's own)")
    add("--jobs", type=int, default=1, help="processes at a time, one BLAS thread each (%(default)s)")
    add("--on", metavar="ADDRESS", help="a Dask scheduler, tcp://HOST:PORT, whose workers do the runs")
    add("--results", **results)
    add("--seed", type=int, help="with --out: seed of everything random (0)")
    add("--out", help="one run, its model, traces and figures in this folder, and no stored result", **folder)
    add("--resume", action="store_true", help="with --out: continue the run in that folder, killed or interrupted")
    add("--epochs", type=int, help="epochs at most, for a trial (the experiment's own)")
    add("--limit", type=int, help="train on the first so many sequences or words only, for a trial")
    add("--steps", type=int, help="batches at most of a task with fresh sequences (2500)")
    add("--batch-size", type=int, help="sequences of a batch (the experiment's own)")
    add("--train-file", metavar="NAME", help="text to train on (wiki.train.tokens)")
    add("--device", **device)

    add = command("list", "show every experiment: networks, seeds, learning rates, how many results are stored", _list)
    add("--results", **results)

    add = command("tables", "write the pages' result tables, and the figures, from the stored results", _tables)
    add("--page", **page)
    add("--results", **results)

    add = command("verify", "compare every table and number of the pages with what the stored results say", _verify)
    add("--page", **page)
    add("--results", **results)

    add = command("report", "write one HTML page about a run, to open from disk", _report)
    add("run", help="folder that `run --out` or `demo` wrote, or a result's JSON file", **folder)
    add("--out", type=_path, metavar="FILE", help="the page (report.html in DIR, or beside the JSON file)")

    add = command("gradcheck", "compare every hand-written gradient with finite differences", _gradcheck)
    add("--all", action="store_true", help="a line for every gradient, not for every cell")
    add("--seeds", type=int, default=3, help="random problems per row (%(default)s)")
    add("--device", **device)

    add = command("data", "list, download and verify data sets", _data)
    what = "show which files are there, download those of one data set, or compare checksums"
    add("action", choices=("list", "fetch", "verify"), help=what)
    one = f"one data set: {', '.join(SOURCES)} (list, verify: all that are there)"
    add("name", type=_data_set, choices=SOURCES, metavar="name", nargs="?", help=one)
    add("--folder", help="where they are (the ENN_DATA variable, else data/, else a user cache)", **folder)
    return parser


def _demo(settings):
    summary = demo.demo(settings.out, settings.epochs, settings.seed, say=say, device=settings.device)
    return 130 if any(run["stopped"] == "interrupted" for run in summary["models"].values()) else 0


def _run(settings):
    """Under mpiexec rank 0 does all that is done once, and the others learn with it."""
    workers = Workers.here = started()
    if workers.rank:
        return follow(workers)
    try:
        if sum((settings.jobs != 1, bool(settings.on), bool(settings.out) or workers.size > 1)) > 1:
            raise ValueError(f"on: got {settings.on}, jobs {settings.jobs}, out {settings.out}; give one, or mpiexec")
        return _run_here(settings)
    finally:
        workers.first(lambda: None)


def _run_here(settings):
    asked = {name: getattr(settings, name) for name in ("epochs", "limit", "steps", "batch_size", "train_file")}
    asked = {name: value for name, value in asked.items() if value is not None}
    out, models, rates = settings.out, settings.models, settings.rates
    if out is None:
        if settings.resume or settings.seed is not None:
            raise ValueError("resume, seed: they are of one run in a folder; name it by --out, or use --seeds")
        with cluster(settings.on) if settings.on else nullcontext(settings.jobs) as jobs:
            what = settings.experiment, models, settings.seeds, rates, settings.results, jobs, settings.device
            found = run_all(*what, **asked)
        for run in filter(None, found):
            say(_line(run))
        return 1 if None in found else 0
    many = settings.seeds is not None or settings.results != spelled_out(RESULTS)
    if many or not len(settings.experiment) == len(models or ()) == len(rates or (0,)) == 1:
        raise ValueError("out: a folder holds one run; name one experiment, network, rate; no results, no seeds")
    if settings.resume and not any((out / name).exists() for name in RUN):
        print(f"{out}: nothing to resume there yet; starting from the beginning")
    rate, what = rates[0] if rates else None, (settings.experiment[0], models[0], settings.seed or 0, out)
    run = run_one(*what, rate, settings.resume, settings.device, **asked)
    interrupted = run["stopped"] == "interrupted"
    print(f"{_line(run)}\nwrote {out}" + "; continue it by --resume" * interrupted)
    return 130 if interrupted else 0


def _line(run):
    """The scores of a run, beside the paper's."""
    start = f"{run['benchmark']:<11} {run['model']:<20} seed {run['seed']}"
    if run["stopped"] == "diverged":
        return f"{start}  diverged at learning rate {run['training']['learning_rate']:g}"
    more = ("parameters", "parameters", ","), ("seconds", "seconds", ",.0f")
    paper = table.PAPER.get(run["benchmark"], {}).get(run["model"], {})
    columns = *table.find(f"{run['benchmark']}/{run['protocol']}").columns, *more
    for title, key, form in filter(lambda each: each[1] in run, columns):  # an interrupted one lacks some
        start += f"  {title} {run[key]:{form}}" + (f" (paper: {paper[key]:{form}})" if paper.get(key) else "")
    return start


def _list(settings):
    """A row per experiment; of the tasks with fresh sequences, each with a size that is published."""
    sizes = "recall8 mqar4 widemqar4 fewshot5 omniglot10 split5 permuted5 copy100 adding100 pixels14"
    print(f"{'experiment':<19}{'stored':>6}{'seeds':>7}  {'learning rates':<32}networks")
    for each in (*table.FIXED.values(), *map(table.task, sizes.split())):
        stored = len(list(settings.results.glob(f"{each.name}-{each.protocol}-*.json")))
        rates, models = " ".join(f"{rate:g}" for rate in each.rates), " ".join(each.models)
        print(f"{each.key:<19}{stored:>6}{each.seeds:>7}  {rates:<32}{models}")


def _report(settings):
    from ..look.report import write_report

    print(f"wrote {write_report(settings.run, settings.out)}")


def _tables(settings):
    for page in settings.page:
        for name in pages.fill(page, settings.results):
            print(f"{page}: wrote table {name}")
    for path in pages.figures(settings.results):
        print(f"wrote {path}")


def _verify(settings):
    wrong = pages.verify(settings.page, settings.results)
    print("\n".join(wrong) or f"{', '.join(map(str, settings.page))}: every table and number is what the files say")
    return 1 if wrong else 0


def _data(settings):
    name, folder, action = settings.name, settings.folder, settings.action
    if action == "fetch":
        print(fetch(name, folder))
        return 0
    look = find if action == "list" else verify
    rows = [row for each in ([name] if name else SOURCES) for row in look(each, folder)]
    if action == "verify" and not name:
        rows = [row for row in rows if row.path]  # what nobody fetched is left out
    where, row = folder or data_folder(), "{:<14}{:<30}{:>14}  {}".format
    if not rows:
        print(f"nothing to verify in {where}; python -m enn_np data fetch NAME downloads a data set")
        return 0
    print(f"in {where}\n\n{row('data set', 'file', 'bytes on disk', 'state')}")
    for each in rows:
        unknown = "here, not as published" if each.sums else "here, no published checksum"
        states = {True: "verified", False: "DAMAGED", None: unknown}
        here = f"here, {each.path.name}" if each.path and action == "list" else states[each.verified]
        size = f"{each.path.stat().st_size:,}" if each.path else "-"
        print(row(each.dataset, each.file, size, here if each.path else "missing"))
    return 1 if action == "verify" and any(not each.path or each.verified is False for each in rows) else 0


# ----------------------------------------------------------------------------------------------------------- gradcheck


def gradient_table(seeds, device="cpu"):
    """Yield (cell, switches, parameter, largest relative error over `seeds` problems), cell by cell.

    Of all cells of the table, and of Engram, with a trace that weighs as much as the bank, by every kind of ablation.
    """
    window = {"window": {"window": 3}}  # shorter than the sequence
    cells = {table.cell(name, 4, 8, **window.get(name, {})): each[1] for name, each in table.CELLS.items()}
    cells |= {Binding(4, 8, rule="hebb"): {"rule": "hebb"}, LEM(4, dt=0.5): {"dt": 0.5}, Convolution(3): {}}
    few = {"retrieval": "top_k", "top_k": 3}, {"trace_clip": None}, {"trace_clip": 0.05, "hebbian_rate": 0.5}
    for change in (*{tuple(change): change for change in table.ABLATIONS.values()}.values(), *few):
        if not change.keys() & {"bank", "pooling", "cell", "trace_gradient"}:  # of the model, or not to agree
            for trace in ("batch", "sample"):
                switches = {"trace": trace, "trace_scale": 2.0, **change}
                cells[Engram(4, 8, **switches)] = switches
    for cell, switches in sorted(cells.items(), key=lambda each: type(each[0]).__name__):
        for masked in (False, True):
            runs = [gradcheck.check(cell, batch=3, seed=seed, masked=masked, device=device) for seed in range(seeds)]
            words = [f"{name}={value}" for name, value in switches.items() if name != "trace_scale"]
            words += ["masked"] * masked
            for name in runs[0]:
                error = np.max([run[name] for run in runs])  # NaN if one is
                yield type(cell).__name__, ", ".join(words) or "-", name, error


def _gradcheck(settings):
    tolerance, errors = gradcheck.TOLERANCE, []
    row = "{:<14}{:<64}{:<13}".format
    checks.count("seeds", settings.seeds)
    head = row("cell", "switches", "parameter") if settings.all else f"{'cell':<15}{'gradients':>10}  "
    print(f"{head}largest relative error")
    for cell, rows in groupby(gradient_table(settings.seeds, settings.device), key=lambda row: row[0]):
        before = len(errors)
        for *what, error in rows:
            errors.append(error)
            good = error <= tolerance  # not of NaN
            if settings.all or not good:
                print(f"{row(*what)}{error:>22.1e}{'' if good else '  FAILED'}")
        if not settings.all:
            print(f"{cell:<15}{len(errors) - before:>10}  {np.max(errors[before:]):>22.1e}", flush=True)
    failed = sum(not error <= tolerance for error in errors)
    verdict = f"{failed} of {len(errors)} gradients FAILED" if failed else f"all {len(errors)} gradients agree"
    print(f"\n{verdict}: hand-written against central differences in float64, tolerance {tolerance:.0e}")
    return 1 if failed else 0

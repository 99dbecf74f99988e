"""The commands: `python -m enn_np demo | train | benchmark | recall | memory | tables | report | gradcheck | ...`."""

import argparse
import sys
from itertools import groupby
from pathlib import Path

import numpy as np

from . import __version__, checks
from .demo import EPOCHS as DEMO_EPOCHS
from .demo import demo
from .device import device_module
from .download import SOURCES, data_folder, fetch, status, verify
from .protocols import PAPER, mute, tell
from .storage import spelled_out
from .variants import MODELS, PROTOCOLS, SHAPES

BENCHMARKS = (*SHAPES, "wikitext2", "wikitext103")
PAGES = ("README.md", "data/results/README.md")
PROTOCOL_HELP = (
    "as published, flaws included; without leaks between samples and sets; or one change a run (%(default)s)"
)
TRAIN_FILE = "wiki.train.tokens"


def _spelled(names):
    """What reads a data set's name as others spell it, too: wikitext-2, WikiText2, CIFAR-10."""
    plain = {name.replace("-", ""): name for name in names}
    return lambda text: plain.get(text.lower().replace("-", ""), text)


NAME = {"type": _spelled(BENCHMARKS), "choices": BENCHMARKS, "help": "data set, downloaded if it is not there"}


def main(arguments=None):
    """Run one command; returns the exit status: 0, 1 for a failed check, 2 for bad input, 130 after Ctrl-C."""
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough: `| head`
        mute()
        return 141  # as a shell reports it


def _run(arguments):
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["bench"]:
        print("enn_np: bench left the package; in a clone it is `python -m tests.bench`", file=sys.stderr)
        return 2
    try:
        settings = _settings(arguments)
        device_module(getattr(settings, "device", "cpu"))  # before any work
        return settings.command(settings) or 0
    except (BrokenPipeError, RecursionError):
        raise
    except MemoryError as error:
        print(f"enn_np: not enough memory; ask for less, such as a smaller --limit. {error}", file=sys.stderr)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"enn_np: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nenn_np: interrupted", file=sys.stderr)
        return 130
    return 2


def _settings(arguments):
    """What was asked for; in folders, ~ is the user's home, which a shell leaves as it is in --out=~/x."""
    settings = _parser().parse_args(arguments)
    for name, value in vars(settings).items():
        if name in ("out", "results", "folder", "run") and value is not None:
            setattr(settings, name, spelled_out(value))
    return settings


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m enn_np",
        description="The Engram Neural Network in plain NumPy: a recurrent network with a Hebbian memory, its "
        "baselines, and gradients written by hand.",
        epilog="Start with `python -m enn_np demo`: four networks on real digits, in a minute or two, without a "
        "download.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"enn_np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", "train all four networks on the bundled digits, and draw what they learned")
    demo.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder for summary.json and figures (%(default)s)"
    )
    demo.add_argument("--epochs", type=int, default=DEMO_EPOCHS, help="epochs at most (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    _device(demo)
    demo.set_defaults(command=_demo)

    train = _command(commands, "train", "one full run of a benchmark")
    train.add_argument("benchmark", **NAME)
    train.add_argument(
        "--model", default="engram", help=f"network: {', '.join(MODELS)}; sound only: binding (%(default)s)"
    )
    train.add_argument("--protocol", default="paper", choices=PROTOCOLS, help=PROTOCOL_HELP)
    train.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    train.add_argument("--epochs", type=int, help="epochs at most (the protocol's own)")
    train.add_argument("--limit", type=int, help="train on the first so many sequences (or words of a text) only")
    train.add_argument("--train-file", default=TRAIN_FILE, metavar="NAME", help="text to train on (%(default)s)")
    train.add_argument("--out", metavar="DIR", help="folder for the results (runs/BENCHMARK-MODEL-PROTOCOL-SEED)")
    train.add_argument("--resume", action="store_true", help="continue the run in that folder, killed or interrupted")
    _device(train)
    train.set_defaults(command=_train)

    many = _command(commands, "benchmark", "all runs of a benchmark that have no stored result yet")
    many.add_argument("name", **NAME)
    many.add_argument("--protocol", default="paper", choices=PROTOCOLS, help=PROTOCOL_HELP)
    many.add_argument("--seeds", type=int, help="so many, 0 first (5; 3 for an ablation)")
    many.add_argument("--models", nargs="+", help="networks (all that the protocol has)")
    many.add_argument("--jobs", type=int, default=1, help="processes at a time, one BLAS thread each (%(default)s)")
    many.add_argument("--results", default="data/results", metavar="DIR", help="folder of result files (%(default)s)")
    many.add_argument("--epochs", type=int, help="epochs at most, for a trial (the protocol's own)")
    many.add_argument("--limit", type=int, help="train on the first so many sequences or words only, for a trial")
    many.add_argument("--train-file", metavar="NAME", help=f"text to train on, for a trial ({TRAIN_FILE})")
    _device(many)
    many.set_defaults(command=_benchmark)

    bind = _command(commands, "recall", "train networks on associative recall, all that have no stored result yet")
    bind.add_argument("--pairs", type=int, nargs="+", default=[8], help="key-value pairs of a sequence (8)")
    _compared(bind, "all")
    bind.set_defaults(command=_recall)

    mind = _command(
        commands, "memory", "train networks on tasks that ask for memory, all that have no stored result yet"
    )
    mind.add_argument("tasks", nargs="+", metavar="TASK", help="such as fewshot5, see enn_np/memory.py")
    _compared(mind, "lstm gru engram-sample binding")
    mind.add_argument("--batch-size", type=int, default=128, help="sequences of a batch (%(default)s)")
    mind.set_defaults(command=_memory)

    tables = _command(commands, "tables", "write the pages' result tables, and the figures, from the stored results")
    tables.add_argument("--page", nargs="+", default=PAGES, help=f"Markdown files with marks ({' '.join(PAGES)})")
    tables.add_argument("--results", default="data/results", metavar="DIR", help="folder of result files (%(default)s)")
    tables.set_defaults(command=_tables)

    report = _command(commands, "report", "write one HTML page about a run, to open from disk")
    report.add_argument("run", metavar="DIR", help="folder that `train` or `demo` wrote, or a result's JSON file")
    report.add_argument("--out", metavar="FILE", help="the page (report.html in DIR, or beside the JSON file)")
    report.set_defaults(command=_report)

    check = _command(commands, "gradcheck", "compare every hand-written gradient with finite differences")
    check.add_argument("--all", action="store_true", help="a line for every gradient, not for every cell")
    check.add_argument("--seeds", type=int, default=3, help="random problems per row (%(default)s)")
    _device(check)
    check.set_defaults(command=_gradcheck)

    data = _command(commands, "data", "list, download and verify data sets")
    data.add_argument(
        "action",
        choices=("list", "fetch", "verify"),
        help="show which files are there, download those of one data set, or compare checksums",
    )
    one = f"one data set: {', '.join(SOURCES)} (list, verify: all that are there)"
    data.add_argument("name", type=_spelled(SOURCES), nargs="?", help=one)
    data.add_argument(
        "--folder",
        metavar="DIR",
        help="where they are (the ENN_DATA variable, else data/, else a user cache)",
    )
    data.set_defaults(command=_data)
    return parser


def _command(commands, name, purpose):
    """The parser of one command, which tells its purpose in the list of commands and in its own help."""
    return commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")


def _device(parser):
    """The option of every command that computes: `main` asks if the device is there, the command hands it on."""
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where to compute; cuda needs CuPy (%(default)s)"
    )


def _compared(parser, models):
    """The options of commands that compare networks on tasks with fresh sequences."""
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"networks, see enn_np/experiments.py ({models})")
    parser.add_argument("--seeds", type=int, default=1, help="how many, 0 first (%(default)s)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[2e-3], help="learning rate, or several to try (0.002)"
    )
    parser.add_argument("--steps", type=int, default=2_500, help="batches (of 128) at most (%(default)s)")
    parser.add_argument("--results", metavar="DIR", help="folder of result files (runs/recall or runs/memory)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (%(default)s)")


def _demo(settings):
    summary = demo(settings.out, settings.epochs, settings.seed, say=tell, device=settings.device)
    return 130 if any(run["stopped"] == "interrupted" for run in summary["models"].values()) else 0


def _benchmark(settings):
    from .benchmark import benchmark

    what = settings.name, settings.protocol, settings.seeds, settings.models, settings.results, settings.jobs
    shorter = {"epochs": settings.epochs, "limit": settings.limit, "train": settings.train_file}
    return 1 if benchmark(*what, settings.device, **shorter) else 0


def _train(settings):
    from .benchmark import run

    name = f"{settings.benchmark}-{settings.model}-{settings.protocol}-{settings.seed}"
    out = settings.out or f"runs/{name}"
    what = settings.benchmark, settings.model, settings.protocol, settings.seed, out
    size = {"epochs": settings.epochs, "limit": settings.limit, "resume": settings.resume}
    size["device"] = settings.device
    if settings.resume and not any(Path(out, name).exists() for name in ("checkpoint.npz", "summary.json")):
        print(f"{out}: nothing to resume there yet; starting from the beginning")
    if settings.benchmark.startswith("wikitext") or settings.train_file != TRAIN_FILE:
        size["train"] = settings.train_file
    summary = run(*what, **size)
    paper = PAPER.get(settings.benchmark, {}).get(settings.model, {})
    print(f"{'':<16}{'this run':>12}{'paper':>12}")
    for key in ("test_accuracy", "test_loss", "test_perplexity", "parameters", "seconds"):
        if key not in summary:
            continue
        published = "-" if paper.get(key) is None else f"{paper[key]:,.6g}"
        print(f"{key:<16}{summary[key]:>12,.6g}{published:>12}")
    print(f"wrote {out}" + ("; continue it by --resume" if summary["stopped"] == "interrupted" else ""))
    return 130 if summary["stopped"] == "interrupted" else 0


def _recall(settings):
    from .recall import recall

    _say(recall(settings.pairs, **_comparison(settings, "runs/recall")))


def _memory(settings):
    from .memory import memory

    _say(memory(settings.tasks, batch_size=settings.batch_size, **_comparison(settings, "runs/memory")))


def _comparison(settings, results):
    asked = {name: getattr(settings, name) for name in ("models", "seeds", "rates", "steps", "jobs")}
    return asked | {"results": settings.results or results}


def _say(runs):
    """A line per run of a comparison, its scores as in its table."""
    from .memory import known

    for run in runs:
        start = f"{run['benchmark']:<11}{run['model']:<20}seed {run['seed']}"
        if run["stopped"] == "diverged":
            print(f"{start}  diverged at learning rate {run['training']['learning_rate']:g}")
            continue
        scores = "".join(f"  {title} {run[key]:{form}}" for title, key, form in known(run["benchmark"]).columns)
        sizes = f"  {run['parameters']:,} parameters  {run['steps']:,} steps  {run['cpu_seconds']:,.0f} s of one core"
        print(f"{start}{scores}{sizes}")


def _report(settings):
    from .webreport import write_report

    print(f"wrote {write_report(settings.run, settings.out)}")


def _tables(settings):
    from .report import figures, fill

    pages = [spelled_out(page) for page in settings.page]
    for page in pages:
        try:
            Path(page).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"page: {page}: not readable as text ({error}); name a Markdown file") from None
    for page in pages:
        for name in fill(page, settings.results):
            print(f"{page}: wrote table {name}")
    for path in figures(settings.results):
        print(f"wrote {path}")


def _gradcheck(settings):
    from .gradcheck import TOLERANCE

    checks.count("seeds", settings.seeds)
    print(_gradient("cell", "switches", "parameter") if settings.all else f"{'cell':<15}{'gradients':>10}  ", end="")
    print("largest relative error")
    errors = []
    for cell, rows in groupby(gradient_table(settings.seeds, settings.device), key=lambda row: row[0]):
        before = len(errors)
        for *what, error in rows:
            errors.append(error)
            good = error <= TOLERANCE  # not of NaN
            if settings.all or not good:
                print(f"{_gradient(*what)}{error:>22.1e}{'' if good else '  FAILED'}")
        if not settings.all:
            print(f"{cell:<15}{len(errors) - before:>10}  {np.max(errors[before:]):>22.1e}", flush=True)
    failed = sum(not error <= TOLERANCE for error in errors)
    verdict = f"{failed} of {len(errors)} gradients FAILED" if failed else f"all {len(errors)} gradients agree"
    print(f"\n{verdict}: hand-written against central differences in float64, tolerance {TOLERANCE:.0e}")
    return 1 if failed else 0


def _gradient(cell, switches, name):
    return f"{cell:<15}{switches:<60}{name:<13}"


ENGRAM_SWITCHES = (
    {},
    {"trace_clip": None},
    {"trace_clip": 0.05, "hebbian_rate": 0.5},
    {"layer_norm": False},
    {"hebbian_rate": 0.0},
    {"retrieval": "top_k", "top_k": 3},
    {"retrieval": "sparsemax", "temperature": 0.5},
    {"l1": 0.1, "entropy": 0.2},
)
BINDING_SWITCHES = (
    {"recurrent_cue": True},
    {"write_at": "own", "decay": 0.1},
    {"plasticity": "learned", "decay": 0.1, "learned_decay": True},
    {"plasticity": "fixed", "bank_read": False},
    {"decay": 0.5, "slowest": 0.01, "learned_temperature": True},
    {"recurrent_cue": True, "gated": False},
    {"trace": "batch"},
)


def gradient_table(seeds, device="cpu"):
    """Yield (cell, switches, parameter, largest relative error over `seeds` problems) for all cells."""
    from .binding import Binding
    from .cells import GRU, LSTM, RNN
    from .engram import Engram
    from .gradcheck import check
    from .learned import LearnedEngram
    from .window import Window

    small = {"hidden": 4, "slots": 5, "trace_scale": 2.0}  # a trace that weighs as much as the bank
    rows = [(kind(4), {}, masked) for kind in (RNN, GRU, LSTM) for masked in (False, True)]
    for trace in ("batch", "sample"):
        for switches in ENGRAM_SWITCHES:
            switches = {"trace": trace, **switches}
            rows += [(Engram(**small, **switches), switches, masked) for masked in (False, True)]
    for switches in BINDING_SWITCHES:
        rows += [(Binding(4, 5, temperature=0.3, **switches), switches, masked) for masked in (False, True)]
    rows += [(kind, {}, masked) for kind in (LearnedEngram(4, 5), Window(4, 5, 3)) for masked in (False, True)]
    for cell, switches, masked in rows:
        runs = [check(cell, batch=3, seed=seed, masked=masked, device=device) for seed in range(seeds)]
        words = [f"{name}={value}" for name, value in switches.items()] + ["masked"] * masked
        label = ", ".join(words) or "-"
        for name in runs[0]:
            yield type(cell).__name__, label, name, np.max([run[name] for run in runs])  # NaN if one is


def _data(settings):
    if settings.name is not None:
        checks.choice("name", settings.name, tuple(SOURCES))
    if settings.action == "fetch":
        if settings.name is None:
            raise ValueError(f"name: data fetch expects one of {', '.join(SOURCES)}")
        print(fetch(settings.name, settings.folder))
        return 0
    rows, where = _files(settings.action, settings.name, settings.folder), settings.folder or data_folder()
    if not rows:
        print(f"nothing to verify in {where}; python -m enn_np data fetch NAME downloads a data set")
        return 0
    print(f"in {where}\n\n" + _files_line("data set", "file", "bytes on disk", "state"))
    for row in rows:
        print(_files_line(row.dataset, row.file, f"{row.size:,}" if row.path else "-", _state(row, settings.action)))
    return 1 if settings.action == "verify" and any(not row.path or row.verified is False for row in rows) else 0


def _files(action, name, folder):
    """Files of one data set, or of all; unless it was named, `verify` leaves out what nobody fetched."""
    names = SOURCES if name is None else (name,)
    if action == "list":
        return [row for row in status(folder) if row.dataset in names]
    rows = [row for each in names for row in verify(each, folder)]
    return rows if name else [row for row in rows if row.path]


def _files_line(dataset, file, size, state):
    return f"{dataset:<14}{file:<26}{size:>14}  {state}"


def _state(row, action):
    """What is known of a file, in words."""
    if row.path is None:
        return "missing"
    if action == "list":
        return f"here, {row.path.name}"
    return {True: "verified", False: "DAMAGED", None: "here, no published checksum"}[row.verified]

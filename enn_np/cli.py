"""The commands: `python -m enn_np demo | train | gradcheck | data`."""

import argparse
import sys

from . import __version__, checks
from .download import SOURCES, data_folder, fetch, status, verify


def main(arguments=None):
    """Run one command; returns the exit status: 0, 1 for a failed check, 2 for bad input, 130 after Ctrl-C."""
    settings = _parser().parse_args(arguments)
    try:
        return settings.command(settings) or 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"enn_np: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nenn_np: interrupted", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m enn_np",
        description="The Engram Neural Network in plain NumPy: a recurrent network with a Hebbian memory, its "
        "baselines, and gradients written by hand.",
        epilog="Start with `python -m enn_np demo`: four networks on real digits, in a minute or two, without a "
        "download.",
    )
    parser.add_argument("--version", action="version", version=f"enn_np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train all four networks on the bundled digits, and draw what they learned")
    demo.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder for summary.json and figures (%(default)s)"
    )
    demo.add_argument("--epochs", type=int, help="epochs at most")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    demo.set_defaults(command=_demo)

    train = commands.add_parser("train", help="one full run of a benchmark")
    train.add_argument("benchmark", choices=("mnist", "cifar10"), help="data set, downloaded if it is not there")
    train.add_argument("--model", default="engram", choices=("engram", "rnn", "gru", "lstm"), help="(%(default)s)")
    train.add_argument("--protocol", default="paper", choices=("paper", "sound"), help="(%(default)s)")
    train.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    train.add_argument("--epochs", type=int, help="epochs at most (the protocol's own)")
    train.add_argument("--limit", type=int, help="train on the first so many sequences only")
    train.add_argument("--out", metavar="DIR", help="folder for the results (runs/BENCHMARK-MODEL-PROTOCOL-SEED)")
    train.set_defaults(command=_train)

    tables = commands.add_parser("tables", help="write the result tables of a page from the stored results")
    tables.add_argument("--page", default="README.md", help="Markdown file with result marks (%(default)s)")
    tables.add_argument("--results", default="data/results", metavar="DIR", help="folder of result files (%(default)s)")
    tables.set_defaults(command=_tables)

    check = commands.add_parser("gradcheck", help="compare every hand-written gradient with finite differences")
    check.add_argument("--seeds", type=int, default=3, help="random problems per row (%(default)s)")
    check.set_defaults(command=_gradcheck)

    data = commands.add_parser("data", help="list, download and verify data sets")
    data.add_argument(
        "action",
        choices=("list", "fetch", "verify"),
        help="show which files are there, download those of one data set, or compare checksums",
    )
    data.add_argument("name", nargs="?", help=f"one data set: {', '.join(SOURCES)} (list, verify: all that are there)")
    data.add_argument(
        "--folder",
        metavar="DIR",
        help="where they are (the ENN_DATA variable, else data/, else a user cache)",
    )
    data.set_defaults(command=_data)
    return parser


def _demo(settings):
    from .demo import EPOCHS, demo

    epochs = EPOCHS if settings.epochs is None else settings.epochs
    summary = demo(settings.out, epochs, settings.seed)
    return 130 if any(run["stopped"] == "interrupted" for run in summary["models"].values()) else 0


def _train(settings):
    from .protocols import PAPER, run_benchmark

    name = f"{settings.benchmark}-{settings.model}-{settings.protocol}-{settings.seed}"
    out = settings.out or f"runs/{name}"
    summary = run_benchmark(
        settings.benchmark,
        settings.model,
        settings.protocol,
        settings.seed,
        out,
        epochs=settings.epochs,
        limit=settings.limit,
    )
    paper = PAPER[settings.benchmark].get(settings.model, {})
    print(f"{'':<16}{'this run':>12}{'paper':>12}")
    for key in ("test_accuracy", "test_loss", "parameters", "seconds"):
        published = "-" if paper.get(key) is None else f"{paper[key]:,.6g}"
        print(f"{key:<16}{summary[key]:>12,.6g}{published:>12}")
    print(f"wrote {out}")
    return 130 if summary["stopped"] == "interrupted" else 0


def _tables(settings):
    from .report import fill

    for name in fill(settings.page, settings.results):
        print(f"{settings.page}: wrote table {name}")


def _gradcheck(settings):
    from .gradcheck import TOLERANCE

    checks.count("seeds", settings.seeds)
    print(f"{'cell':<8}{'switches':<52}{'parameter':<11}{'largest relative error':>22}")
    rows, failed = 0, 0
    for cell, switches, name, error in gradient_table(settings.seeds):
        rows, failed = rows + 1, failed + (error > TOLERANCE)
        print(f"{cell:<8}{switches:<52}{name:<11}{error:>22.1e}{'' if error <= TOLERANCE else '  FAILED'}")
    verdict = f"{failed} of {rows} gradients FAILED" if failed else f"all {rows} gradients agree"
    print(f"\n{verdict}: hand-written against central differences in float64, tolerance {TOLERANCE:.0e}")
    return 1 if failed else 0


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


def gradient_table(seeds):
    """Yield (cell, switches, parameter, largest relative error over `seeds` problems) for all four cells."""
    from .cells import GRU, LSTM, RNN
    from .engram import Engram
    from .gradcheck import check

    small = {"hidden": 4, "slots": 5, "trace_scale": 2.0}  # a trace that weighs as much as the bank
    rows = [(kind(4), "", masked) for kind in (RNN, GRU, LSTM) for masked in (False, True)]
    for trace in ("batch", "sample"):
        for switches in ENGRAM_SWITCHES:
            words = ", ".join(f"{name}={value}" for name, value in switches.items())
            cell = Engram(**small, trace=trace, **switches)
            rows += [(cell, f"trace={trace}" + (f", {words}" if words else ""), masked) for masked in (False, True)]
    for cell, switches, masked in rows:
        runs = [check(cell, batch=3, seed=seed, masked=masked) for seed in range(seeds)]
        label = ", ".join(filter(None, [switches, "masked" if masked else ""])) or "-"
        for name in runs[0]:
            yield type(cell).__name__, label, name, max(run[name] for run in runs)


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

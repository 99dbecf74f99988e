"""The demo: Engram and its three rivals on 5,000 real digits, side by side with the paper's full-set numbers.

The Engram network learns slowly at first, and 3,600 digits are few, so the demo departs from the paper's protocol in
ways that its output names: smaller batches, fewer epochs, a higher learning rate, and attention pooling for all four.
"""

from .. import checks
from ..data import images as datasets
from ..look.report import write_report
from . import inputs, pages, table, work
from .results import machine, run_folder, write_json

EPOCHS, BATCH, RATE = 8, 32, 2e-3
BEFORE = """Engram, RNN, GRU and LSTM on {train:,} bundled MNIST digits,
each read as 28 rows of 28 pixels. The paper's protocol, cut
short: epochs {epochs} at most, batch {batch_size}, Adam {learning_rate}, attention
pooling, seed {seed}; {validation} digits to validate on, {test:,} to test.
"""
AFTER = """
Paper: all 60,000 digits, last-state pooling, 15 epochs, one
run: shown for orientation, not for comparison."""


def demo(out="runs/demo", epochs=EPOCHS, seed=0, verbose="auto", say=print, device="cpu"):
    """Train the four networks, print a table, and write what a run leaves, figures and a report under `out`.

    That is summary.json, model.npz and trace.npz of the Engram network, PNG files and report.html. Returns the summary.
    """
    training = {"epochs": checks.count("epochs", epochs), "batch_size": BATCH, "learning_rate": RATE}
    settings = training | {"pooling": "attention", "seed": checks.count("seed", seed, low=0)}
    with run_folder(out) as (out, *_):
        data = inputs.mnist_split(datasets.load_digits(), 400, seed)
        sequences = {"train": len(data.x), "validation": len(data.x_val), "test": len(data.x_test)}
        say(BEFORE.format(**settings, **sequences))
        results, watched = {}, None
        row = "{:<7}{:>9}{:>7}{:>9}{:>9}{:>8}{:>11}".format
        say(row("model", "accuracy", "loss", "params", "seconds", "paper:", "params"))
        for name in table.MODELS:
            model = table.network("mnist/paper", name, seed, "attention").to_device(device)
            model.title, paper = table.TITLES[name], table.PAPER["mnist"][name]  # what its bar begins with
            ready = work.on_split(model, data, seed, training)
            history, monitor = ready.learn(verbose=verbose), ready.monitor
            run = ready.test() | work.outcome(history, monitor)
            results[model.title], watched = run, watched or monitor
            if monitor:
                model.save(out / "model.npz")
                monitor.save(out / "trace.npz", data.y_val[: work.PROBE])
            interrupted = run["stopped"] == "interrupted"
            scores = f"{run['test_accuracy']:.1%}", f"{run['test_loss']:.3f}"
            sizes = f"{run['parameters']:,}", f"{run['seconds']:.1f}"
            published = f"{paper['test_accuracy']:.2%}", f"{paper['parameters']:,}"
            say(row(model.title, *scores, *sizes, *(("", "interrupted") if interrupted else published)))
            if interrupted:
                break
        summary = {"models": results, "settings": settings, "sequences": sequences, "machine": machine(device)}
        write_json(out / "summary.json", summary)
        say(AFTER)
        for path in (*pages.draw(out, results, watched), out / "summary.json"):
            say(f"  wrote {path}")
        say(f"  wrote {write_report(out)}: curves, trace and single digits explained, to open in a browser")
        return summary

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


def demo(out="runs/demo", epochs=EPOCHS, seed=0, verbose="auto", say=print, device="cpu"):
    """Train the four networks, print a table, and write what a run leaves, figures and a report under `out`.

    That is summary.json, model.npz and trace.npz of the Engram network, PNG files and report.html. Returns the summary.
    """
    epochs, seed = checks.count("epochs", epochs), checks.count("seed", seed, low=0)
    with run_folder(out) as (out, *_):
        data = inputs.mnist_split(datasets.load_digits(), 400, seed)
        say(f"Engram, RNN, GRU and LSTM on {len(data.x):,} bundled MNIST digits,")
        say("each read as 28 rows of 28 pixels. The paper's protocol, cut")
        say(f"short: {epochs} epoch{'s' * (epochs > 1)} at most, batch {BATCH}, Adam {RATE}, attention")
        say(f"pooling, seed {seed}; {len(data.x_val)} digits to validate on, {len(data.x_test):,} to test.\n")
        results, watched = {}, None
        row = "{:<7}{:>9}{:>7}{:>9}{:>9}{:>8}{:>11}".format
        say(row("model", "accuracy", "loss", "params", "seconds", "paper:", "params"))
        training = {"epochs": epochs, "batch_size": BATCH, "learning_rate": RATE}
        for name in table.MODELS:
            model = table.network("mnist/paper", name, seed, "attention").to_device(device)
            title, paper = table.TITLES[name], table.PAPER["mnist"][name]
            model.title = title  # what its bar begins with
            numbers, monitor = work.train(model, data, seed, training, verbose=verbose)
            results[title], watched = numbers, watched or monitor
            if monitor:
                model.save(out / "model.npz")
                monitor.save(out / "trace.npz", data.y_val[: work.PROBE])
            interrupted = numbers["stopped"] == "interrupted"
            scores = f"{numbers['test_accuracy']:.1%}", f"{numbers['test_loss']:.3f}"
            sizes = f"{numbers['parameters']:,}", f"{numbers['seconds']:.1f}"
            published = f"{paper['test_accuracy']:.2%}", f"{paper['parameters']:,}"
            say(row(title, *scores, *sizes, *(("", "interrupted") if interrupted else published)))
            if interrupted:
                break
        summary = {
            "models": results,
            "settings": {**training, "pooling": "attention", "seed": seed},
            "sequences": {"train": len(data.x), "validation": len(data.x_val), "test": len(data.x_test)},
            "machine": machine(device),
        }
        write_json(out / "summary.json", summary)
        say("\nThe paper's numbers (arXiv 2507.21474) are for all 60,000")
        say("digits, last-state pooling, 15 epochs and one run: shown for")
        say("orientation, not for comparison.")
        for path in pages.draw(out, results, watched):
            say(f"  wrote {path}")
        say(f"  wrote {out / 'summary.json'}")
        say(f"  wrote {write_report(out)}: curves, trace and single digits explained, to open in a browser")
        return summary

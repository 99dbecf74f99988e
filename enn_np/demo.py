"""The demo: Engram and its three rivals on 5,000 real digits, side by side with the paper's full-set numbers.

The Engram network learns slowly at first, and 3,600 digits are few, so the demo departs from the paper's protocol in
ways that its output names: smaller batches, fewer epochs, a higher learning rate, and attention pooling for all four.
"""

from . import checks, protocols
from .data import images as datasets
from .look.report import write_report
from .variants import MODELS, network

EPOCHS, BATCH, RATE = 8, 32, 2e-3


def demo(out="runs/demo", epochs=EPOCHS, seed=0, verbose="auto", say=print, device="cpu"):
    """Train the four networks, print a table, and write what a run leaves, figures and a report under `out`.

    That is summary.json, model.npz and trace.npz of the Engram network, PNG files and report.html. Returns the summary.
    """
    epochs, seed = checks.count("epochs", epochs), checks.count("seed", seed, low=0)
    with protocols.own_folder(out) as out:
        return _demo(out, epochs, seed, verbose, say, device)


def _demo(out, epochs, seed, verbose, say, device):
    data = protocols.mnist_split(datasets.load_digits(), 400, seed)
    say(f"Engram, RNN, GRU and LSTM on {len(data.x):,} bundled MNIST digits,")
    say("each read as 28 rows of 28 pixels. The paper's protocol, cut")
    say(f"short: {epochs} epoch{'s' * (epochs > 1)} at most, batch {BATCH}, Adam {RATE}, attention")
    say(f"pooling, seed {seed}; {len(data.x_val)} digits to validate on, {len(data.x_test):,} to test.\n")
    results, watched = {}, None
    say(_row("model", "accuracy", "loss", "params", "seconds", "paper:", "params"))
    training = {"epochs": epochs, "batch_size": BATCH, "learning_rate": RATE}
    for name in MODELS:
        model, _ = network("mnist", "paper", name, seed, "attention")
        model.title = protocols.TITLES[name]  # what its bar begins with
        numbers, monitor = protocols.train(model.to_device(device), data, seed, training, verbose=verbose)
        title, paper = protocols.TITLES[name], protocols.PAPER["mnist"][name]
        results[title], watched = numbers, watched or monitor
        if monitor:
            model.save(out / "model.npz")
            monitor.save(out / "trace.npz", data.y_val[: protocols.PROBE])
        ended = f"{paper['test_accuracy']:.2%}", f"{paper['parameters']:,}"
        if interrupted := numbers["stopped"] == "interrupted":
            ended = "", "interrupted"
        trained = f"{numbers['parameters']:,}", f"{numbers['seconds']:.1f}"
        say(_row(title, f"{numbers['test_accuracy']:.1%}", f"{numbers['test_loss']:.3f}", *trained, *ended))
        if interrupted:
            break
    summary = {
        "models": results,
        "settings": {**training, "pooling": "attention", "seed": seed},
        "sequences": {"train": len(data.x), "validation": len(data.x_val), "test": len(data.x_test)},
        "machine": protocols.machine(device),
    }
    protocols.write_json(out / "summary.json", summary)
    say("\nThe paper's numbers (arXiv 2507.21474) are for all 60,000")
    say("digits, last-state pooling, 15 epochs and one run: shown for")
    say("orientation, not for comparison.")
    for path in protocols.draw(out, results, watched):
        say(f"  wrote {path}")
    say(f"  wrote {out / 'summary.json'}")
    say(f"  wrote {write_report(out)}: curves, trace and single digits explained, to open in a browser")
    return summary


def _row(name, *cells):
    return f"{name:<7}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (9, 7, 9, 9, 8, 11), strict=True))

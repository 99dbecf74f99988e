"""Does the memory point to what decides? Test digits without the rows that it names, beside rows named by other scores.

    python -m enn_np run mnist/paper --models engram --seed 0 --out runs/0      # and so on, one folder a seed
    python tests/deletion.py runs/0 runs/1 runs/2 runs/3 runs/4 --out data/results/deletion

Each digit loses a quarter of its rows, those with the highest score, and the network answers again; the lower its
accuracy then, the better the score knew what decides. The scores:

    random       drawn
    ink          sum of the row's pixels: no network is asked
    recalled     how much of what the last step recalls was written at the row (`attribution.written_lengths`)
    effect       by how much the answer's logit falls without what the trace gives at the row (`logit_changes`)
    gradients    integrated gradients, added up over the row; of the first digits alone, for they take seconds each

`first` repeats "ink" for these. Every digit is a batch of its own, as in `enn_np.look.attribution`: its trace holds
nothing of others. One result file a network.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np

from enn_np import load
from enn_np.lab import inputs, table
from enn_np.lab.results import machine, read_json, write_json
from enn_np.look import attribution

DIGITS, FIRST, ROWS = 1_000, 100, 7


def without(x, scores):
    """x (n, T, D) with the `ROWS` rows of the highest scores (n, T) blank."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :ROWS]
    x = x.copy()
    np.put_along_axis(x, rows[..., None], 0, axis=1)
    return x


def measure(folder):
    """What the result file of the network in a run's folder holds."""
    run = read_json(folder / "summary.json")
    data, network = inputs.load_split(table.find("mnist/paper"), run["seed"]), load(folder / "model.npz")
    x, y = data.x_test[:DIGITS], data.y_test[:DIGITS]
    model, layer, *_ = attribution.alone(network, x)
    tape = model.run_cells(model.time_major(x))[2][layer]
    last = len(tape.x) - 1
    recalled = attribution.written_lengths(model.cells[layer], tape, last)  # the last step writes after it has read
    scores = {
        "random": np.random.default_rng(run["seed"]).random(x.shape[:2]),
        "ink": x.sum(-1),
        "recalled": np.column_stack((recalled, np.full(len(x), -np.inf))),
        "effect": attribution.logit_changes(network, x),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of paths on which the output jumps
        gradients = attribution.integrated_gradients(network, x[:FIRST], tolerance=1e-2).x.sum(-1)

    def accuracy(x):
        return round(float((model.predict_outputs(x).argmax(-1) == y[: len(x)]).mean()), 6)

    found = {"intact": accuracy(x), **{name: accuracy(without(x, each)) for name, each in scores.items()}}
    first = {"ink": accuracy(without(x[:FIRST], scores["ink"][:FIRST]))}
    first |= {"gradients": accuracy(without(x[:FIRST], gradients))}
    off = attribution.ablations(network, x, y)["trace off"]["accuracy"]
    network_of = {name: run[name] for name in ("seed", "test_accuracy", "training", "machine")}
    return {"network": network_of, "digits": DIGITS, "rows": ROWS, "accuracy": found, "trace_off": round(off, 6)} | {
        "first": {"digits": FIRST, **first},
        "machine": machine(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `run mnist/paper --models engram --out`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for folder in asked.runs:
        found = measure(folder)
        write_json(asked.out / f"engram-{found['network']['seed']}.json", found)
        print(folder, found["accuracy"], found["first"], flush=True)


if __name__ == "__main__":
    main()

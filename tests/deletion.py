"""Does the memory tell what decides? Test digits without the rows that it names, beside rows named by other scores.

    python -m enn_np run mnist/paper --models engram --seed 0 --out runs/0      # and so on, one folder a seed
    python tests/deletion.py runs/0 runs/1 runs/2 runs/3 runs/4 --out data/results/deletion

Each digit loses a quarter of its rows, those with the highest score among its rows with ink, and the network answers
again; the lower its accuracy then, the better the score knew what decides. Three scores ask no network:

    random       drawn
    ink          sum of the row's pixels
    last         the later, the higher: the network answers from its last state

and three do:

    recalled     how much of what the last step recalls was written at the row (`attribution.written_lengths`)
    effect       by how much the answer's logit falls without what the trace gives at the row (`logit_changes`)
    occlusion    by how much it falls if the row alone is blank: asks the whole network, and knows what comes

Late rows score high in all of these three, whatever the digit. So each is held against "other's recalled" and so on:
the scores of another digit, on the rows of this one. Every digit is a batch of its own, as in
`enn_np.look.attribution`: its trace holds nothing of others. One result file a network.
"""

import argparse
from pathlib import Path

import numpy as np

from enn_np import load
from enn_np.lab import inputs, table
from enn_np.lab.results import machine, read_json, write_json
from enn_np.look import attribution

DIGITS, ROWS = 500, 7


def without(x, scores):
    """x (n, T, D) with the `ROWS` rows of the highest scores (n, T) blank, of those that are not."""
    rows = np.argsort(-np.where(x.any(-1), scores, -np.inf), axis=1, kind="stable")[:, :ROWS]
    x = x.copy()
    np.put_along_axis(x, rows[..., None], 0, axis=1)
    return x


def occlusion(model, x):
    """By how much the logit of the answer falls without row t, (n, T)."""
    whole = model.predict_outputs(x)
    picked, falls = (np.arange(len(x)), whole.argmax(-1)), np.empty(x.shape[:2])
    for t in range(x.shape[1]):
        blank = x.copy()
        blank[:, t] = 0
        falls[:, t] = (whole - model.predict_outputs(blank))[picked]
    return falls


def measure(folder):
    """What the result file of the network in a run's folder holds."""
    run = read_json(folder / "summary.json")
    data, network = inputs.load_split(table.find("mnist/paper"), run["seed"]), load(folder / "model.npz")
    x, y, rng = data.x_test[:DIGITS], data.y_test[:DIGITS], np.random.default_rng(run["seed"])
    model, layer, *_ = attribution.alone(network, x)
    tape = model.run_cells(model.time_major(x))[2][layer]
    recalled = attribution.written_lengths(model.cells[layer], tape, len(tape.x) - 1)
    asked = {
        "recalled": np.column_stack((recalled, np.full(len(x), -np.inf))),  # the last step writes after it has read
        "effect": attribution.logit_changes(network, x),
        "occlusion": occlusion(model, x),
    }
    scores = {"random": rng.random(x.shape[:2]), "ink": x.sum(-1), "last": np.tile(np.arange(x.shape[1]), (len(x), 1))}
    other = np.roll(np.arange(len(x)), 1)  # the digits come in no order
    scores |= asked | {f"other's {name}": each[other] for name, each in asked.items()}

    def accuracy(x):
        return round(float((model.predict_outputs(x).argmax(-1) == y).mean()), 6)

    found = {"intact": accuracy(x), **{name: accuracy(without(x, each)) for name, each in scores.items()}}
    found["trace off"] = round(attribution.ablations(network, x, y)["trace off"]["accuracy"], 6)
    of = {name: run[name] for name in ("seed", "test_accuracy", "training", "machine")}
    largest = float(np.median(abs(asked["effect"]).max(1)))  # of a logit
    found = {"network": of, "digits": DIGITS, "rows": ROWS, "accuracy": found, "largest_effect": round(largest, 6)}
    return found | {"machine": machine()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `run mnist/paper --models engram --out`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for folder in asked.runs:
        found = measure(folder)
        write_json(asked.out / f"engram-{found['network']['seed']}.json", found)
        print(folder, found["accuracy"], flush=True)


if __name__ == "__main__":
    main()

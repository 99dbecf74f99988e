"""The first epoch of one run of each benchmark, at reduced size, is still what it was when it was stored.

In float64: there OpenBLAS for Haswell and for SkylakeX differ by less than 1e-13. In float32, as results are stored,
Adam turns what rounding leaves of a zero gradient into a whole step, and after 14 steps they differ by 1e-2.

`python tests/test_first_epochs.py` stores them again, of a commit: when a change of the training itself is meant.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from enn_np.data.fetch import find
from enn_np.lab import table, work
from enn_np.lab.results import machine, read_json, revision, write_json
from enn_np.lab.runner import settings_of

STORED = Path(__file__).resolve().parents[1] / "data" / "results" / "first" / "epochs.json"
TOLERANCE = 1e-5
RUNS = {  # what is other than in the whole run, with seed 0
    "mnist/paper/engram": {"epochs": 1, "limit": 1_000},
    "cifar10/paper/engram": {"epochs": 1, "limit": 1_000},
    "regression/paper/engram": {"epochs": 1, "limit": 5_000},
    "wikitext2/sound/engram": {"epochs": 1, "limit": 10_000},
    "recall8/sound/binding": {"steps": 20},
}
DATA = {"mnist": "mnist", "cifar10": "cifar10", "wikitext2": "wikitext-2"}


def exact(*arguments, network=table.network, **settings):
    """The network of an experiment, in float64."""
    model = network(*arguments, **settings)
    model.dtype = np.dtype("float64")
    model.params = {name: value.astype(model.dtype) for name, value in model.params.items()}
    return model


def first_epoch(name):
    """Losses of a run's first epoch, of what it trains on and of validation, and the length of all weights after it."""
    key, _, model = name.rpartition("/")
    experiment, part = table.find(key), {}
    training = settings_of(experiment, model, RUNS[name])
    with mock.patch.object(table, "network", exact):
        ready = work.SOURCES[experiment.source](experiment, model, 0, training, "cpu")
    if experiment.source == "stream":  # all of valid would take a minute
        part["validation_data"] = ready.learn.keywords["validation_data"][: training["limit"]]
    history = ready.learn(verbose=0, **part)
    weights = np.concatenate([value.ravel() for value in ready.model.params.values()])
    assert weights.dtype == "float64"
    return {"loss": history["loss"][0], "val_loss": history["val_loss"][0], "weights": float(np.linalg.norm(weights))}


@pytest.mark.parametrize("name", RUNS)
def test_the_first_epoch_is_what_was_stored(name):
    data = DATA.get(name.partition("/")[0])
    if data and not all(file.path for file in find(data)):
        pytest.skip(f"set ENN_DATA to a folder that holds {data}")
    assert first_epoch(name) == pytest.approx(read_json(STORED)["runs"][name], rel=TOLERANCE)


if __name__ == "__main__":
    if (revision() or "-dirty").endswith("-dirty"):
        sys.exit("first epochs are of a commit: commit your changes, and run this in a clone")
    STORED.parent.mkdir(exist_ok=True)
    write_json(STORED, {"machine": machine(), "settings": RUNS, "runs": {name: first_epoch(name) for name in RUNS}})

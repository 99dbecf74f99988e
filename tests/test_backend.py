"""NumPy or CuPy by the arrays that come in: what can be shown without a GPU."""

import sys

import numpy as np
import pytest
import strict

from enn_np import RNN, Classifier
from enn_np.backend import array_module, to_device, to_numpy
from enn_np.cells import Hidden


def test_the_arrays_decide(card):
    assert array_module(np.zeros(1)) is np
    assert array_module(strict.asarray(np.zeros(1))) is strict


def test_other_things_are_refused():
    with pytest.raises(TypeError, match=r"got list; convert it with numpy\.asarray"):
        array_module([1.0])


def test_trees_move_there_and_back(card):
    """Catches a NamedTuple that comes back as a plain tuple, and a None that does not survive."""
    tree = {"W": np.ones(2), "state": Hidden(np.zeros(3)), "pair": (np.ones(1), None)}
    there = to_device(tree, "cuda")
    assert isinstance(there["state"], Hidden) and isinstance(there["state"].h, strict.ndarray)
    back = to_numpy(there)
    assert np.array_equal(back["W"], tree["W"]) and np.array_equal(back["state"].h, tree["state"].h)
    assert back["pair"][1] is None and to_numpy(tree)["W"] is tree["W"]


def test_a_model_moves(card):
    model = Classifier(RNN(2), 1, 2).to_device("cuda")
    assert all(isinstance(value, strict.ndarray) for value in model.params.values())
    assert all(isinstance(value, np.ndarray) for value in model.to_device("cpu").params.values())


def test_without_cupy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import fails
    with pytest.raises(ImportError, match=r'needs CuPy: pip install "cupy-cuda12x\[ctk\]", or use device="cpu"'):
        to_device(np.zeros(1), "cuda")


def test_without_a_card_the_error_says_so(card, monkeypatch):
    monkeypatch.setattr(strict.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs an NVIDIA card, and CuPy stand-in finds none: install or update"):
        to_device(np.zeros(1), "cuda")


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda", got \'tpu\''):
        to_device(np.zeros(1), "tpu")

"""The published TensorFlow package and Keras, recorded in files: same values, same gradients.

What the keys mean stands in parity/README.md, beside the recordings.
"""

from pathlib import Path

import numpy as np
import pytest
from problems import Problem, arrays, assert_close

from enn_np import GRU, LSTM, RNN, Engram
from enn_np.engram import EngramState

HERE = Path(__file__).parent / "parity"
BESIDE = Path(__file__).parents[2] / "shared" / "parity"  # the one file too large to keep in the repository
ENGRAM = ["engram_small", "engram_clipped", "engram_no_layer_norm", "engram_paper_sizes"]
KERAS = {"keras_rnn": RNN, "keras_gru": GRU, "keras_lstm": LSTM}
PRECISIONS = [(np.float64, 1e-10), (np.float32, 1e-4)]


def recording(name, dtype):
    """The arrays of one file in the precision asked for, scalars as Python numbers."""
    path = next((file for folder in (HERE, BESIDE) if (file := folder / f"{name}.npz").exists()), None)
    if path is None:
        pytest.skip(f"{name}.npz is 4.5 MB and not in the repository; put it into {BESIDE}")
    with np.load(path) as file:
        return {key: file[key].astype(dtype) if file[key].ndim else file[key].item() for key in file.files}


def time_first(array):
    return np.ascontiguousarray(array.swapaxes(0, 1))


def stripped(prefix, file):
    """{name: array} of the keys "prefix.name"; the reference's `memory` is our M."""
    found = {key.removeprefix(prefix): array for key, array in file.items() if key.startswith(prefix)}
    return {"M" if name == "memory" else name: array for name, array in found.items()}


def engram_problem(file):
    """The recorded run as a problem, its values and its gradients under our names."""
    cell = Engram(
        hidden=file["param.memory"].shape[1],
        slots=file["param.memory"].shape[0],
        hebbian_rate=file["hebbian_rate"],
        trace_scale=file["trace_scale"],
        temperature=file["temperature"],
        sparsity=file["sparsity"],
        trace_clip=file["trace_clip"],
        layer_norm=bool(file["layer_norm"]),
    )
    state = EngramState(file["h0"], file["trace0"])
    upstream = EngramState(np.zeros_like(file["h0"]), file["upstream_trace"])
    given = {"noise": file["noise"]}
    problem = Problem(
        cell,
        stripped("param.", file),
        time_first(file["x"]),
        state,
        None,
        given,
        file["upstream_h"],
        upstream,
        {},
    )
    grads = stripped("grad.", file)
    grads |= {"x": time_first(grads["x"]), "state.h": grads.pop("h0"), "state.A": grads.pop("trace0")}
    return problem, {"h": file["h"], "A": file["trace"]}, grads


def keras_problem(kind, file):
    """As `engram_problem`; Keras packs gates side by side, (D, G H), where ours are stacked, (G, D, H)."""
    cell = kind(file["h"].shape[-1])

    def stacked(array):
        return np.ascontiguousarray(array.reshape(-1, cell.gates, cell.hidden).swapaxes(0, 1))

    def ours(packed):
        b = packed["bias"].reshape(-1, cell.gates, cell.hidden)
        biases = dict(zip(cell.biases, b, strict=True))
        return {"W_x": stacked(packed["kernel"]), "W_h": stacked(packed["recurrent_kernel"]), **biases}

    params, grads, x = ours(stripped("param.", file)), stripped("grad.", file), time_first(file["x"])
    zero = cell.initial_state(x.shape[1], x.dtype)  # starts there, and no loss at the end
    problem = Problem(cell, params, x, zero, None, {}, time_first(file["upstream_h"]), zero, {})
    return problem, {"h": time_first(file["h"])}, {**ours(grads), "x": time_first(grads["x"])}


def check(problem, values, grads, loss, tolerance):
    """Values and gradients equal the recorded ones, and all stay in the precision of the inputs."""
    h, _, tape = problem.forward()
    assert_close([h], [values["h"]], tolerance)
    assert_close({name: getattr(tape.states, name)[1:] for name in values}, values, tolerance)
    assert problem.loss()[0] == pytest.approx(loss, abs=tolerance * float(abs(h * problem.dh).sum()))
    found = problem.backward(tape)
    assert_close({name: found[name] for name in grads}, grads, tolerance)
    assert all(array.dtype == problem.x.dtype for array in arrays((tape, found)))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ENGRAM)
def test_engram_equals_the_published_package(name, dtype, tolerance):
    """Catches any departure from the reference, and an upcast of float32."""
    file = recording(name, dtype)
    problem, values, grads = engram_problem(file)
    assert grads.keys() == problem.values().keys()  # nothing recorded is left out
    check(problem, values, grads, file["loss"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", KERAS)
def test_baselines_equal_keras(name, dtype, tolerance):
    """Catches a wrong gate order, GRU's other reset and a bias that is counted once instead of twice."""
    file = recording(name, dtype)
    problem, values, grads = keras_problem(KERAS[name], file)
    assert grads.keys() == problem.params.keys() | {"x"}
    check(problem, values, grads, file["loss"], tolerance)


def test_the_clipped_recording_is_clipped():
    """Catches a fixture that no longer stresses what it is there for."""
    problem, values, _ = engram_problem(recording("engram_clipped", np.float64))
    assert (abs(values["A"]) == problem.cell.trace_clip).mean() > 0.1

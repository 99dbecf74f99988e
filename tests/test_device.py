"""One code path on two devices: on a card everything gives what it gives on NumPy.

Without a card the stand-in of strict.py takes its place, and results agree to the bit; `pytest -m gpu` runs the same
tests on CuPy, where float64 agrees to 1e-10 and float32 to 1e-4.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
import strict
import test_parity
from bench import numpy_cells
from bench.problem import TOLERANCES, Problem, difference
from problems import assert_close, draw
from tiny import KINDS, STACKS, classifier, digits, padding, sequences

from enn_np import (
    GRU,
    LEM,
    LSTM,
    RNN,
    SGD,
    Adam,
    Binding,
    Classifier,
    Convolution,
    EarlyStopping,
    Engram,
    ReduceOnPlateau,
    Regressor,
    Stream,
    Window,
    bptt,
    cells,
    engram,
    gradcheck,
    heads,
    language,
    load,
    models,
    ops,
    optim,
    trace,
)
from enn_np.backend import fused, to_device, to_numpy
from enn_np.data import images as datasets
from enn_np.lab import cli, inputs, pages
from enn_np.lab.results import card_name
from enn_np.language import LanguageModel, cached_perplexity
from enn_np.look import attribution, monitor
from enn_np.ops import RETRIEVALS

ENGRAM_SWITCHES = (
    {},
    {"trace_clip": None},
    {"trace_clip": 0.05, "hebbian_rate": 0.5},
    {"layer_norm": False},
    {"hebbian_rate": 0.0},
    {"retrieval": "top_k", "top_k": 3},
    {"retrieval": "sparsemax", "temperature": 0.5},
    {"l1": 0.1, "entropy": 0.2},
    {"trace_gradient": False},
)
BINDING_SWITCHES = (
    {"recurrent_cue": True},
    {"write_at": "own", "decay": 0.1},
    {"decay": 0.1, "learned_decay": True},
    {"plasticity": "fixed", "bank_read": False},
    {"recurrent_cue": True, "gated": False},
    {"trace": "batch"},
    {"trace": "batch", "decay": 0.3, "learned_decay": True},
)
CELLS = [RNN(4), GRU(4), LSTM(4), LEM(4, dt=0.5), Convolution(4)]
CELLS += [
    Engram(4, 5, trace_scale=2.0, trace=trace, **switches)
    for trace in ("batch", "sample")
    for switches in ENGRAM_SWITCHES
]
CELLS += [Binding(4, 5, **switches) for switches in BINDING_SWITCHES]


CELLS += [Window(4, 5, 3)]
NAMES = [f"{type(cell).__name__}-{i}" for i, cell in enumerate(CELLS)]


def no_card():
    """Why `pytest -m gpu` cannot run here, or None."""
    try:
        card_name()
    except (ImportError, ValueError) as error:
        return str(error)


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def tolerance(request, monkeypatch):
    """How far "cuda" may be from NumPy, by dtype. The device itself is the stand-in or a card."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "cupy", strict)
        return {"float64": 0, "float32": 0}
    if reason := no_card():
        pytest.skip(reason)
    return {"float64": 1e-10, "float32": 1e-4}


def moved(problem):
    """The same problem on the device."""
    fields = ("params", "x", "state", "mask", "given", "dh", "dstate", "upstream")
    return replace(problem, **{name: to_device(getattr(problem, name), "cuda") for name in fields})


def outcome(problem, **options):
    """All that a run leaves and all its gradients, on the host."""
    h, final, tape = problem.forward(**options)
    found = {"h": h, **dict(zip(final._fields, final, strict=True))}
    if options.get("segments", 1) == 1:
        found |= {f"kept.{name}": part for name, part in tape.kept.stacked()._asdict().items() if part is not None}
    return {name: value.copy() for name, value in to_numpy({**found, **problem.backward(tape)}).items()}


def streamed(problem):
    """The output of every step, one at a time."""
    stream = Stream(problem.cell, problem.params, 3, problem.state)
    given = [{name: value[t] for name, value in problem.given.items()} for t in range(len(problem.x))]
    return [to_numpy(stream(x, **more)).copy() for x, more in zip(problem.x, given, strict=True)]


every_path = pytest.mark.parametrize(("masked", "dtype"), [(False, "float32"), (True, "float64")], ids=["32", "64"])


@every_path
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_every_cell_runs_and_goes_back(tolerance, cell, masked, dtype):
    """Catches a function that is NumPy's only, an upcast, and arithmetic that differs between the devices."""
    same_on_both(cell, masked, dtype, tolerance)


@every_path
@pytest.mark.parametrize("kind", RETRIEVALS)
def test_every_retrieval(tolerance, kind, masked, dtype):
    same_on_both(Engram(4, 5, trace="sample", retrieval=kind, top_k=2), masked, dtype, tolerance)


@every_path
@pytest.mark.parametrize("recurrent_cue", [False, True])
def test_lists_in_place_of_a_trace(tolerance, monkeypatch, recurrent_cue, masked, dtype):
    """And for a binding one."""
    monkeypatch.setattr(trace, "PIECE", 2)
    same_on_both(Binding(4, 5, decay=0.1, recurrent_cue=recurrent_cue), masked, dtype, tolerance)


def same_on_both(cell, masked, dtype, tolerance):
    here = draw(cell, steps=5, masked=masked, dtype=np.dtype(dtype).type)
    there = moved(here)
    want = outcome(here)
    assert_close(outcome(there), want, tolerance[dtype], floor=1e-3)
    assert_close(outcome(there, segments=3), outcome(here, segments=3), tolerance[dtype], floor=1e-3)
    assert_close(streamed(there), streamed(here), tolerance[dtype])
    h, final, _ = there.forward(keep=False)
    assert_close(to_numpy([h, *final]), here.forward(keep=False)[:1] + here.forward(keep=False)[1], tolerance[dtype])


@pytest.mark.parametrize("cell", [*CELLS[:5], Engram(4, 5), Binding(4, 5), Window(4, 5, 3)], ids=repr)
def test_gradients_against_differences(tolerance, cell):
    """One of a kind: that all gradients are those of NumPy is asserted above."""
    errors = gradcheck.check(cell, inputs=4, batch=3, masked=True, device="cuda")
    assert max(errors.values()) <= gradcheck.TOLERANCE, errors


@pytest.mark.parametrize("name", test_parity.ENGRAM + list(test_parity.KERAS))
def test_parity_with_the_published_recordings(tolerance, name):
    for dtype, allowed in test_parity.PRECISIONS:
        file = test_parity.recording(name, dtype)
        kind = test_parity.KERAS.get(name)
        make = (
            test_parity.engram_problem
            if kind is None
            else lambda file, kind=kind: test_parity.keras_problem(kind, file)
        )
        problem, values, grads = make(file)
        h, _, tape = moved(problem).forward()
        assert_close([to_numpy(h)], [values["h"]], allowed)
        found = to_numpy(moved(problem).backward(tape))
        assert_close({name: found[name] for name in grads}, grads, allowed)


def trained(device, cells, task=Classifier, mask=None, optimizer=None, **settings):
    """A model after two epochs, with all that it says."""
    model = task(cells, 3, 3 if task is Classifier else 1, **settings).to_device(device)
    x, y = sequences(24, dtype=model.dtype.type)
    y = y if task is Classifier else y.astype(model.dtype)
    callbacks = [EarlyStopping(), ReduceOnPlateau(patience=0)]
    if isinstance(model.cells[0], Engram):
        callbacks.append(monitor.HebbianTraceMonitor(model, x[:4]))
    history = model.fit(
        x[:16],
        y[:16],
        epochs=2,
        batch_size=6,
        mask=None if mask is None else mask[:16],
        callbacks=callbacks,
        validation_data=(x[16:], y[16:], None if mask is None else mask[16:]),
        optimizer=optimizer or Adam(1e-2, clip_norm=1.0),
    )
    numbers = {name: np.array(values) for name, values in history.items() if name != "seconds"}
    numbers |= {f"test {name}": np.array(value) for name, value in model.evaluate(x, y, 7, mask).items()}
    numbers |= {"outputs": model.predict_outputs(x, 7, mask), "answers": np.asarray(model.predict(x, mask=mask))}
    for callback in callbacks[2:]:
        numbers |= {"traces": callback.traces, "retrieval": callback.retrieval}
        numbers |= {f"{i} {k}": np.array(v) for i, each in enumerate(callback.statistics) for k, v in each.items()}
    return model, {**numbers, **to_numpy(model.params)}


POOLINGS = ("last", "mean", "attention")


@pytest.mark.parametrize(("kind", "pooling"), [(kind, POOLINGS[i % 3]) for i, kind in enumerate(STACKS)])
@pytest.mark.parametrize("mask", [None, padding(24)], ids=["whole", "padded"])
def test_models_train_and_predict(tolerance, kind, pooling, mask):
    """Training with dropout and noise, masks, callbacks, evaluation and prediction: the whole way of a user."""
    settings = {"pooling": pooling, "mask": mask, "dtype": "float64", "random_inference": True}
    want, found = (trained(device, STACKS[kind], **settings)[1] for device in ("cpu", "cuda"))
    assert_close(found, want, 1e3 * tolerance["float64"], floor=1e-3)


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9, global_clip_norm=0.5), lambda: Adam(1e-2)])
def test_regression_and_the_other_optimizers(tolerance, optimizer):
    cell = Engram(4, 3, l1=0.1, entropy=0.1)
    want = trained("cpu", cell, Regressor, optimizer=optimizer(), dtype="float32")[1]
    found = trained("cuda", cell, Regressor, optimizer=optimizer(), dtype="float32")[1]
    assert_close(found, want, 10 * tolerance["float32"], floor=1e-2)


def test_a_model_on_a_card_is_saved_as_any_other(tolerance, tmp_path):
    model, _ = trained("cuda", Engram(4, 3))
    model.save(tmp_path / "model.npz")
    assert_close(load(tmp_path / "model.npz").params, to_numpy(model.params), 0)


WORDS = {
    "adaptive": {"embedding": 6, "head": "adaptive", "cutoffs": (3, 8)},
    "tied": {"embedding": 4, "tied": True},
    "tied, adaptive": {"embedding": 4, "tied": True, "head": "adaptive", "cutoffs": (3, 8)},
    "number": {"embedding": None},
}


@pytest.mark.parametrize("words", WORDS)
def test_language_models(tolerance, words):
    """Windows and streams, training, scores and samples."""
    rng = np.random.default_rng(0)
    tokens = (rng.zipf(1.5, 120) % 12).astype(np.int64)
    x, y = tokens[:60].reshape(12, 5), tokens[1:61].reshape(12, 5)
    found = []
    for device in ("cpu", "cuda"):
        layers = [LSTM(4), Engram(4, 3, trace="sample", trace_clip=None)]
        model = LanguageModel(layers, 12, dropout=0.2, dtype="float64", **WORDS[words]).to_device(device)
        windows = model.fit(x, y, epochs=2, batch_size=5, mask=padding(12), validation_data=(x, y))
        stream = model.fit_stream(tokens, epochs=2, batch_size=2, steps=7, validation_data=tokens)
        scores = model.evaluate(x, y, 5, padding(12)) | {"s" + k: v for k, v in model.evaluate_stream(tokens).items()}
        numbers = {f"{i} {k}": np.array(v) for i, h in enumerate((windows, stream)) for k, v in h.items()}
        numbers |= {name: np.array(value) for name, value in scores.items()}
        numbers |= {"sample": model.sample(tokens[:3], 6), **to_numpy(model.params)}
        numbers["cached"] = cached_perplexity(model, tokens, [0.5, 3], [0.1, 0.5], size=30)
        found.append({name: value for name, value in numbers.items() if "seconds" not in name})
    assert_close(found[1], found[0], 1e3 * tolerance["float64"] or 1e-12, floor=1e-3)  # rows are added in another order


def test_attribution(tolerance):
    """What explains a model works where the model is, and answers on the host."""
    (x, y), mask = sequences(6, dtype=np.float64), padding(6)
    found = []
    for device in ("cpu", "cuda"):
        model = classifier([Engram(4, 3), GRU(3)], dtype="float64", pooling="attention").to_device(device)
        cell, params = model.cells[0], model.layer_params(0)
        noise = to_device(cell.noise(np.random.default_rng(0), 5, np.float64), device)
        for live in (None, mask):
            given = {"mask": None if live is None else model.time_major(live), "noise": noise}
            tape = bptt.run(cell, params, model.time_major(x), **given)[2]
            seen = cell.record(params, tape)
        parts = attribution.integration_parts(params, seen)
        numbers = seen | attribution.integration_shares(parts)
        numbers |= {f"part {name}": part for name, part in parts.items()}
        numbers |= {f"written {name}": part for name, part in attribution.written_by(cell, tape, 3).items()}
        numbers |= {
            f"changes {part}": attribution.logit_changes(model, x, part=part, mask=mask) for part in ("trace", "bank")
        }
        numbers |= attribution.integrated_gradients(model, x[:2], tolerance=0.5, mask=mask[:2])._asdict()
        for variant, scores in attribution.ablations(model, x, y, 3, mask=mask).items():
            numbers |= {f"{variant} {name}": np.array(value) for name, value in scores.items()}
        numbers |= {f"slot {name}": value for name, value in attribution.slot_ablation(model, x, y).items()}
        found.append(to_numpy(numbers))
    assert_close(found[1], found[0], 1e3 * tolerance["float64"], floor=1e-3)


@pytest.mark.parametrize("cell", ["engram", "lstm"])
def test_the_bench_times_what_numpy_computes(tolerance, cell):
    """Catches a side of the bench that leaves its data on the host, or differs on the card."""
    problem = Problem(cell=cell, steps=3, batch=4, inputs=3, hidden=(5,), slots=4, classes=3, device="cuda")
    side = numpy_cells.build(problem, "", 1)
    side.run()
    assert not isinstance(side.x, np.ndarray) and not isinstance(side.model.params["head.W"], np.ndarray)
    for dtype, allowed in TOLERANCES.items():
        assert difference(side.answers(dtype), numpy_cells.answers(problem, dtype))[0] <= allowed
    numpy_cells.build(Problem(kind="gemm", steps=8, device="cuda"), "", 1).run()
    assert numpy_cells.versions(problem)["card"]


# ------------------------------------------------------------------------------------- nobody waits for the card


def steps():
    """One training step each, by name: a model on the device, its batch, and a function that trains on it."""
    x, y = sequences(6)
    for name, cell in {
        **KINDS,
        "switches": Engram(6, 4, l1=0.1, retrieval="sparsemax"),
        "k": Engram(6, 4, retrieval="top_k", top_k=2),
        "list": Binding(33, 4),
    }.items():
        model = Classifier(cell, 3, 3, pooling="attention").to_device("cuda")
        yield name, model, (model.time_major(x), to_device(y, "cuda"))
    model = Regressor(GRU(4), 3, 1).to_device("cuda")
    yield "regressor", model, (model.time_major(x), to_device(y.astype(np.float32)[:, None], "cuda"))
    model = LanguageModel(LSTM(4), 12, embedding=3, dropout=0.1).to_device("cuda")
    ids = np.arange(30).reshape(6, 5) % 12
    yield "words", model, (model.time_major(ids), to_device(ids, "cuda"))


def test_no_step_waits_for_the_card(card):
    """Catches a float(), a check or an `if` of a number that lies on the card: each costs a stall per step."""
    mask = padding(6)
    for name, model, batch in steps():
        rng, live = np.random.default_rng(0), model.time_major(mask)
        for optimizer in (Adam(clip_norm=1.0), SGD(0.1, global_clip_norm=1.0)):
            for given in (None, live):
                with strict.no_sync():
                    _, grads = model.loss_and_grads(*batch, rng, given)
                    optimizer.update(model.params, grads)
        assert np.isfinite(to_numpy(model.params)["head.W"]).all(), name


@pytest.mark.parametrize(
    "cell, forward, back",
    [(RNN(8), 3, 4), (GRU(8), 3, 7), (LSTM(8), 2, 9), (Engram(8, 4), 40, 53)],
    ids=lambda value: str(value)[:5],
)
def test_gates_are_one_kernel_beside_the_products(card, cell, forward, back):
    """Catches an operation more in a step: a card starts each by itself. Without `fused` GRU 40, LSTM 53."""
    params = to_device(cell.init(np.random.default_rng(0), 3), "cuda")
    x = to_device(np.ones((2, 4, 3), np.float32), "cuda")
    noise = {"noise": to_device(cell.noise(np.random.default_rng(0), 2), "cuda")} if isinstance(cell, Engram) else {}
    e, state = bptt.at(cell.encode(params, x, **noise), 0), cell.initial_state(4, np.float32, None, strict)
    before = strict.launched
    after, k = cell.step(params, e, state)
    between = strict.launched
    cell.step_back(params, after, e, state, k)
    assert (between - before, strict.launched - between) == (forward, back)


def test_fused_equations_are_one_kernel_on_a_card_and_plain_python_on_the_host(card, monkeypatch):
    seen, made, make = [], [], strict.fuse

    @fused
    def squares(x, y):
        """The equations' own words."""
        seen.append(type(x))
        return x * x + y, y - x

    class Holder:
        method = squares

    x, y = np.arange(6.0).reshape(2, 3), np.ones((2, 1))
    assert squares.__doc__ == Holder.method.__doc__ == "The equations' own words."
    want = Holder().method(x, y)  # `self` is no part
    assert seen == [np.ndarray]
    monkeypatch.setattr(strict, "fuse", lambda equations: made.append(equations) or make(equations))
    before = strict.launched
    got = [squares(to_device(x, "cuda"), to_device(y, "cuda")) for _ in range(2)]
    assert len(made) == 1 and strict.launched - before == 2  # made once, started twice
    for pair in got:
        for one, other in zip(pair, want, strict=True):
            assert np.array_equal(to_numpy(one), other)


@pytest.mark.parametrize(
    "equations",
    [
        lambda x: x * x.shape[0],
        lambda x: x[0] + x,
        lambda x: x.sum(),
        lambda x: x @ x,
        lambda x: len(x) * x,
        lambda x: strict.exp(x).max(),
    ],
)
def test_the_stand_in_fuses_only_what_is_done_entry_by_entry(card, equations):
    with pytest.raises(TypeError, match="entries alone"):
        fused(equations)(strict.asarray(np.ones((2, 2))))
    assert strict.asarray(np.ones((2, 2))).shape == (2, 2)  # and is not left in that state
    assert not isinstance(strict.exp(strict.asarray(np.ones(2))), strict._Entries)


def test_the_stand_in_fuses_arrays_alone(card):
    """CuPy computes 1 - eta of a number eta in half precision: 0.9502 of 0.95."""
    x = strict.asarray(np.ones((2, 2)))
    with pytest.raises(TypeError, match="fuse: expected arrays of the device"):
        fused(lambda x, eta: (1 - eta) * x)(x, 0.05)
    with pytest.raises(TypeError, match="fuse: expected results of one shape"):
        fused(lambda x, row: (x + row, row + row))(x, strict.asarray(np.ones((1, 2))))


def fetches(act):
    before = strict.fetched
    act()
    return strict.fetched - before


def test_metrics_are_fetched_once_an_epoch(card):
    """Catches a loss that is fetched at every step: the number of fetches must not grow with that of batches."""
    x, y = sequences(24)

    def fit(size):
        model = classifier(Engram(4, 3)).to_device("cuda")
        return fetches(lambda: model.fit(x, y, epochs=1, batch_size=size, validation_data=(x, y)))

    assert fit(24) == fit(2) > 0
    tokens = np.arange(60) % 7

    def stream(steps):
        model = LanguageModel(GRU(3), 7, embedding=3).to_device("cuda")
        return fetches(lambda: model.fit_stream(tokens, epochs=1, batch_size=2, steps=steps, validation_data=tokens))

    assert stream(30) == stream(3) > 0


# ----------------------------------------------------------------------------- the stand-in sees what would break


HOLDERS = [bptt, cells, engram, heads, language, models, ops, optim, trace]


@pytest.mark.parametrize("module", HOLDERS, ids=lambda module: module.__name__)
def test_a_hidden_call_of_numpy_is_seen(card, monkeypatch, module):
    """Every module in turn takes NumPy for the array's module: training must fail, and not for another reason."""
    monkeypatch.setattr(module, "array_module", lambda array: np)
    x, y = np.arange(20).reshape(4, 5) % 7, np.arange(20).reshape(4, 5) % 7
    with pytest.raises(TypeError, match=r"device|unsupported|__array_ufunc__|Implicit conversion"):
        if module in (heads, language):
            LanguageModel([GRU(3), Engram(3, 3)], 7, embedding=3).to_device("cuda").fit(x, y, epochs=1)
        else:
            stack = [LSTM(3), GRU(3), Engram(3, 3, trace="sample", retrieval="sparsemax"), Binding(3, 3)]
            classifier(stack, pooling="attention", dropout=0.5).to_device("cuda").fit(*sequences(6), epochs=1)


def hidden_calls(x):
    """Ways in which NumPy meets an array of the device."""
    host = x.get()
    yield from (lambda: np.exp(x), lambda: np.maximum(x, 0), lambda: np.sum(x), lambda: np.concatenate([x, x]))
    yield from (
        lambda: np.asarray(x),
        lambda: np.linalg.norm(x),
        lambda: np.add.at(host, 0, x),
        lambda: np.zeros_like(x),
    )
    yield from (lambda: x + host, lambda: host + x, lambda: host @ x, lambda: x @ host, lambda: x == host)
    yield from (lambda: x.__iadd__(host), lambda: host.__iadd__(x), lambda: x[np.arange(2)], lambda: x[[0, 1]])
    yield from (lambda: x.__setitem__(0, host[0]), lambda: host.__setitem__(0, x[0]), lambda: list(x[0]))
    yield from (lambda: strict.exp(host), lambda: strict.exp(x, out=host), lambda: strict.where(x > 0, x, host))
    yield from (lambda: strict.einsum("ij->i", x, out=x), lambda: strict.stack([x, host]), lambda: strict.zeros(x))
    yield from (lambda: strict.matmul(x, host), lambda: strict.full(3, x), lambda: range(3)[x[0, 0] > 9])


def test_the_stand_in_refuses_to_mix(card):
    x = strict.asarray(np.ones((2, 2)))
    for number, call in enumerate(hidden_calls(x)):
        with pytest.raises(TypeError):
            pytest.fail(f"call {number} of `hidden_calls` passed: {call()!r}", pytrace=False)


WAITS = [
    float,
    bool,
    int,
    lambda x: x.get(),
    lambda x: x.item(),
    lambda x: 1 if x > 0 else 0,
    lambda x: strict.arange(3)[strict.arange(3) > 1],
    lambda x: strict.unique(strict.arange(3)),
    lambda x: strict.flatnonzero(strict.arange(3)),
    lambda x: numpy_cells.wait(x),
]


@pytest.mark.parametrize("number", range(len(WAITS)))
def test_the_stand_in_sees_who_waits(card, number):
    x = strict.asarray(np.ones((2, 2))).sum()
    WAITS[number](x)
    with strict.no_sync(), pytest.raises(strict.Synchronised):
        WAITS[number](x)


def test_the_stand_in_offers_nothing_that_cupy_lacks():
    cupy = pytest.importorskip("cupy")
    own = ("np", "functools", "threading", "contextmanager", "SimpleNamespace", "Synchronised", "no_sync", "fetched")
    own += ("sys", "launched")
    offered = [name for name in vars(strict) if not name.startswith("_") and name not in own]
    assert [name for name in offered if not hasattr(cupy, name)] == []
    methods = [name for name in dir(strict.ndarray) if name not in ("_host", "_place", "__weakref__")]
    assert [name for name in methods if not hasattr(cupy.ndarray, name)] == []


# ----------------------------------------------------------------------------------------------------- commands


def test_commands_compute_where_they_are_told(card, monkeypatch, tmp_path, capsys):
    """Catches an option that a command takes and does not hand on."""
    moves = []
    real = models.Model.to_device
    monkeypatch.setattr(models.Model, "to_device", lambda self, device: moves.append(device) or real(self, device))
    monkeypatch.setattr(cli.table, "ABLATIONS", {})
    monkeypatch.setattr(pages, "draw", lambda *_: [])  # figures and pages are not what computes
    monkeypatch.setattr("enn_np.lab.demo.write_report", lambda *_: "no report")
    monkeypatch.setattr(datasets, "load_digits", lambda: digits(432, 8))
    monkeypatch.setattr(datasets, "load_mnist", lambda: digits(40, 8))
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 8)
    assert cli.main(["demo", "--device", "cuda", "--epochs", "1", "--out", str(tmp_path / "demo")]) == 0
    train = ["run", "mnist", "--models", "gru", "--epochs", "1", "--limit", "16", "--out", str(tmp_path / "run")]
    assert cli.main([*train, "--device", "cuda"]) == 0
    assert moves == ["cuda"] * 5
    for run in ("demo", "run"):
        assert '"card": "none: a stand-in for tests"' in (tmp_path / run / "summary.json").read_text()
    before = strict.fetched
    assert cli.main(["gradcheck", "--device", "cuda", "--seeds", "1"]) == 0 and strict.fetched > before
    capsys.readouterr()


@pytest.mark.parametrize("command", ["demo", "run mnist --models gru", "run wikitext2 --models gru", "gradcheck"])
def test_commands_say_what_is_missing(monkeypatch, tmp_path, capsys, command):
    monkeypatch.setitem(sys.modules, "cupy", None)
    out = [] if command == "gradcheck" else ["--out", str(tmp_path / "out")]
    assert cli.main([*command.split(), "--device", "cuda", *out]) == 2
    assert 'pip install "cupy-cuda12x[ctk]"' in capsys.readouterr().err and not (tmp_path / "out").exists()

"""Models in files: back to the bit, refused by name where a file does not fit, classes of the reader; and copies."""

import copy
import dataclasses
import io
import json
import multiprocessing
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KINDS, STACKS, C, D, T, classifier, copied, randomise, same_to_the_bit, sequences

import enn_np
from enn_np import (
    GRU,
    LEM,
    LSTM,
    RNN,
    Binding,
    Classifier,
    Convolution,
    Engram,
    LanguageModel,
    Model,
    Regressor,
    Window,
    checkpoint,
    load,
    register,
    run,
    run_back,
)
from enn_np.checkpoint import build

# Configuration and files


def models():
    """One of each kind of model, with settings other than the defaults."""
    yield classifier(STACKS["mixed"], pooling="attention", dropout=0.1, seed=3, random_inference=True)
    yield classifier(Engram(4, 4, retrieval="top_k", top_k=2, trace_clip=None, layer_norm=False, trace="sample"))
    yield Regressor([RNN(3), LSTM(2)], D, 2, "mean", dtype="float64")


@pytest.mark.parametrize("model", list(models()), ids=("mixed", "engram", "regressor"))
def test_configuration_builds_the_model_again(model):
    """A switch that is not written down comes back as its default."""
    config = json.loads(json.dumps(model.config()))
    again = build(config)
    assert type(again) is type(model) and again.config() == config
    for name in ("cells", "inputs", "outputs", "pooling", "dropout", "seed", "dtype", "random_inference"):
        assert getattr(again, name) == getattr(model, name), name
    assert same_to_the_bit(again.params, model.params)  # same seed


@pytest.mark.parametrize("model", list(models()), ids=("mixed", "engram", "regressor"))
def test_a_file_brings_the_model_back_to_the_bit(model, tmp_path):
    path = model.save(tmp_path / "new" / "folder" / "model.npz")
    randomise(model, seed=9).save(path)  # over an older file
    again = load(path)
    assert again.config() == model.config()
    assert same_to_the_bit(again.params, model.params)
    x, _ = sequences(5, dtype=model.dtype)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert [file.name for file in path.parent.iterdir()] == ["model.npz"], "a half-written file was left behind"


# Classes of the reader


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    before = dict(checkpoint.CLASSES)
    yield
    checkpoint.CLASSES.clear()
    checkpoint.CLASSES.update(before)


class Loud(GRU):
    """A reader's cell: the GRU with a state twice as large, not registered."""

    def step(self, params, e, state):
        state, k = super().step(params, e, state)
        return state._replace(h=2 * state.h), k


@dataclasses.dataclass(frozen=True)
class Leaky(RNN):
    """Another, with fields of its own."""

    rates: tuple = (0.5, 0.25)
    name: str = "leaky"
    limit: float | None = None


def refused(model, tmp_path, match):
    """`save` and training with a checkpoint refuse the model at once, and leave nothing behind."""
    x, y = sequences(8)
    before = copied(model.params)
    for act in (
        lambda: model.save(tmp_path / "model.npz"),
        lambda: model.fit(x, y, epochs=1, checkpoint=tmp_path / "new" / "run.npz"),
    ):
        with pytest.raises(TypeError, match=match):
            act()
    assert same_to_the_bit(model.params, before) and not list(tmp_path.iterdir())
    model.fit(x, y, epochs=1)  # without a file all is well


def test_a_class_that_load_would_not_find_is_not_saved(tmp_path, registry):
    """A reader's own GRU came back as the library's; MyGRU was saved, and could not be read."""

    class GRU(Loud):
        pass

    class Plain:
        """No dataclass at all."""

        def __init__(self, hidden):
            self.hidden, self.cell = hidden, Loud(hidden)

        def __getattr__(self, name):
            return getattr(object.__getattribute__(self, "cell"), name)

    class Own(Classifier):
        pass

    for cell in (GRU(6), Loud(6), [RNN(3), Loud(6)]):
        refused(classifier(cell), tmp_path, r"^cells: load could not find .*@enn_np\.register")
    with pytest.raises(TypeError, match=r"^cells: load could not find .*Plain"):
        classifier(Plain(6)).save(tmp_path / "model.npz")
    refused(Own(RNN(6), D, C), tmp_path, r"^model: load could not find .*Own.*@enn_np\.register")
    for taken in (
        GRU,
        type("Engram", (Leaky,), {}),
        type("Lstm", (LSTM,), {}),
        type("X", (Model,), {"kind": "regressor"}),
    ):
        with pytest.raises(ValueError, match=r"^register: .* is <class 'enn_np"):
            register(taken)
    with pytest.raises(TypeError, match=r"^register: expected a dataclass, got .*Plain"):
        register(Plain)
    assert type(load(classifier().save(tmp_path / "gru.npz")).cells[0]) is enn_np.GRU


def test_registered_classes_come_back_as_they_were(tmp_path, registry):
    """Cells with tuples, words and None among their fields, and a model of one's own; not before it is registered."""

    @register
    class Own(Classifier):
        def __init__(self, *arguments, sharpness=1.0, **settings):
            self.sharpness = sharpness
            super().__init__(*arguments, **settings)

        def config(self):
            return super().config() | {"sharpness": self.sharpness}

        def predict_proba(self, x, batch_size=128, mask=None):
            return super().predict_proba(self.sharpness * x, batch_size, mask)

    register(Loud)
    register(Leaky)
    x, y = sequences(9)
    model = Own([Loud(5), Leaky(4, rates=(0.1, 0.2), name="slow")], D, C, sharpness=2.5, seed=3)
    model.fit(x, y, epochs=1, checkpoint=tmp_path / "run.npz")
    for path in (model.save(tmp_path / "model.npz"), tmp_path / "run.npz"):
        again = load(path)
        assert type(again) is Own and again.cells == model.cells and [*map(type, again.cells)] == [Loud, Leaky]
        np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    del checkpoint.CLASSES["leaky"]
    with pytest.raises(ValueError, match=r"model\.npz: .*import .*@enn_np\.register.*cell: expected one of .*'leaky'"):
        load(path.with_name("model.npz"))


def test_a_class_defined_again_takes_its_place(registry):
    """As a notebook's cell does that runs twice; a model of the old class is then not what `load` would bring."""

    def define():
        @register
        @dataclasses.dataclass(frozen=True)
        class Mine(RNN):
            pass

        return Mine

    old, new = define(), define()
    assert checkpoint.CLASSES["mine"] is new
    with pytest.raises(TypeError, match="build the model again"):
        checkpoint.check_saving(classifier(old(3)))
    checkpoint.check_saving(classifier(new(3)))


def test_what_a_file_would_lose_is_not_saved(tmp_path, registry):
    """Fields that are no JSON, and settings that are no fields."""

    @register
    class Scaled(enn_np.GRU):
        def __init__(self, hidden, gain=1.0):
            super().__init__(hidden)
            object.__setattr__(self, "gain", gain)

    @register
    class Tempered(Classifier):
        def __init__(self, *arguments, temperature=1.0, **settings):
            self.temperature = temperature
            super().__init__(*arguments, **settings)

    register(Leaky)
    classifier(Scaled(3)).save(tmp_path / "default.npz").unlink()
    refused(
        classifier(Scaled(3, gain=2.0)),
        tmp_path,
        "Scaled: what load would bring differs in gain was 2.0, is 1.0; it needs another field",
    )
    refused(
        Tempered(RNN(3), D, C, temperature=3.0),
        tmp_path,
        "Tempered: what load would bring differs in temperature was 3.0",
    )
    slashed = classifier()
    slashed.params["0.b/x"] = np.zeros(2, np.float32)  # dropped on the way back, as what belongs to a run
    with pytest.raises(TypeError, match=r"^model: expected no slash in a parameter's name, .* got '0\.b/x'"):
        checkpoint.check_saving(slashed)
    for odd in (lambda h: h, np.float32(1), 1j):
        refused(classifier(Leaky(3, limit=odd)), tmp_path, "^model: it could not be read back")
    nested = classifier(Leaky(3, rates=((1, 2), (3, 4))))
    assert load(nested.save(tmp_path / "nested.npz")).cells == nested.cells
    (tmp_path / "nested.npz").unlink()
    checkpoint.check_saving(classifier(Leaky(3, limit=np.nan)))
    hidden = Scaled(3, gain=None)
    object.__setattr__(hidden, "gain", 2.0)
    refused(classifier(hidden), tmp_path, "Scaled: .* gain was 2.0, is 1.0")
    for name, value in (("extra", np.zeros(2)), ("head.b", np.zeros(C)), ("head.W", np.zeros((3, 3), np.float32))):
        model = classifier(GRU(4))
        model.params[name] = value
        with pytest.raises(TypeError, match=f"^model: .*what load would bring differs in params.{name}"):
            model.save(tmp_path / "odd.npz")


# Copies


EVERY_CELL = (RNN(4), GRU(4), LSTM(4), LEM(4, dt=0.5), Convolution(D))
EVERY_CELL += (Engram(6, 4, entropy=0.1), Binding(4, 4), Window(4, 4, 3))


@pytest.mark.parametrize("cell", EVERY_CELL, ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize(
    "clone", (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))), ids=("copy", "pickle")
)
def test_a_trained_model_is_copied_whole(cell, clone):
    """Without the last batch's tapes, which are many times the model."""
    model, (x, y) = classifier([cell, GRU(3)]), sequences(40)
    model.fit(x, y, epochs=1, batch_size=8)
    model.predict(x)
    again = clone(model)
    assert same_to_the_bit(again.params, model.params) and again.cells == model.cells
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    again.fit(x, y, epochs=1)
    assert not same_to_the_bit(again.params, model.params), "the copy shares its parameters"
    assert len(pickle.dumps(model)) < 3 * model.size * 4 + 10_000


@pytest.mark.parametrize("cell", EVERY_CELL, ids=lambda cell: type(cell).__name__)
def test_a_tape_is_copied_whole(cell):
    """And goes back by itself."""
    rng = np.random.default_rng(0)
    params, x = cell.init(rng, D), rng.standard_normal((T, 2, D), np.float32)
    h, _, tape = run(cell, params, x)
    copies = copy.deepcopy(tape), pickle.loads(pickle.dumps(tape))
    wanted = run_back(cell, params, tape, np.ones_like(h))[2]
    for each in copies:
        found = run_back(cell, params, each, np.ones_like(h))[2]
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_other_processes_predict():
    """As one does with a large test set."""
    model, (x, y) = classifier(Engram(6, 4, trace="sample")), sequences(12)
    model.fit(x, y, epochs=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        parts = pool.map(model.predict, [x[:6], x[6:]])
    np.testing.assert_array_equal(np.concatenate(parts), model.predict(x))


@pytest.mark.parametrize("words", (LanguageModel(GRU(4), 9, 3), LanguageModel(Engram(4, 3), 9, head="adaptive")))
def test_a_trained_language_model_is_copied_whole(words):
    tokens = np.arange(60) % 9
    words.fit_stream(tokens, epochs=1, batch_size=2, verbose=0)
    for again in (copy.deepcopy(words), pickle.loads(pickle.dumps(words))):
        assert again.evaluate_stream(tokens) == words.evaluate_stream(tokens)


# Files that do not fit


def test_a_loaded_model_can_be_trained():
    """Arrays that come from a file must be writable."""
    stream = classifier()
    x, y = sequences()
    again = build(stream.config())
    again.fit(x, y, epochs=1)
    assert not same_to_the_bit(again.params, stream.params)


@pytest.fixture
def saved(tmp_path):
    """A saved model's path, its header, and its arrays, to be spoilt."""
    path = classifier(KINDS["engram"]).save(tmp_path / "model.npz")
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return path, json.loads(str(arrays.pop("config"))), arrays


def rewrite(path, header, arrays):
    np.savez(path, config=np.array(json.dumps(header)), **arrays)


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


SPOILT = {
    "missing array": (lambda h, a: (h, without(a, "0.M")), r"0\.M was None, is 'float32 \(4, 16\)'"),
    "unknown array": (lambda h, a: (h, {**a, "0.X": a["0.M"]}), r"0\.X was 'float32 \(4, 16\)', is None"),
    "wrong shape": (
        lambda h, a: (h, {**a, "0.M": a["0.M"][:2]}),
        r"0\.M was 'float32 \(2, 16\)', is 'float32 \(4, 16\)'",
    ),
    "wrong dtype": (lambda h, a: (h, {**a, "head.b": a["head.b"].astype(float)}), "head.b was 'float64 .*, is 'f"),
    "newer format": (lambda h, a: ({**h, "format": 2}, a), "expected an enn_np file of format 1"),
    "no format": (lambda h, a: (without(h, "format"), a), "expected an enn_np file of format 1"),
    "header of another kind": (lambda h, a: ([h], a), "expected an enn_np file of format 1"),
    "unknown model": (lambda h, a: ({**h, "model": "oracle"}, a), "model: expected one of .*'oracle'"),
    "unknown cell": (lambda h, a: ({**h, "cells": [{"kind": "brain"}]}, a), "cell: expected one of .*'brain'"),
    "unknown switch": (lambda h, a: ({**h, "cells": [{"kind": "gru", "hidden": 2, "x": 1}]}, a), "GRU.*'x'"),
    "no cells": (lambda h, a: ({**h, "cells": []}, a), "cells: expected a cell"),
    "cells of another kind": (lambda h, a: ({**h, "cells": 7}, a), "configuration does not fit"),
    "bad hyper-parameter": (lambda h, a: ({**h, "dropout": 7}, a), "dropout: .*7"),
    "no sizes": (lambda h, a: (without(h, "inputs"), a), "Classifier.*inputs"),
    "object array": (lambda h, a: (h, {**a, "0.M": np.array([{}])}), "not a whole enn_np file"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_does_not_fit_says_why(saved, how):
    """One clear ValueError that names the file, never a traceback from deep inside, never a half-loaded model."""
    path, header, arrays = saved
    spoil, message = SPOILT[how]
    rewrite(path, *spoil(header, arrays))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def archive_without_config():
    stream = io.BytesIO()
    np.savez(stream, weights=np.ones(3))
    return stream.getvalue()


def array_alone():
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


FOREIGN = {
    "text": b"loss,accuracy\n0.3,0.9\n",
    "empty": b"",
    "pickle": pickle.dumps({"weights": [1, 2]}),
    "npy": array_alone(),
    "other npz": archive_without_config(),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_another_kind_is_refused(tmp_path, what):
    """And never unpickled, nor is the reader advised to."""
    path = tmp_path / "model.npz"
    path.write_bytes(FOREIGN[what])
    with pytest.raises(ValueError, match="not a whole enn_np file") as caught:
        load(path)
    assert str(path) in str(caught.value) and "allow_pickle" not in str(caught.value)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="not a whole enn_np file"):
        load(tmp_path)  # a folder


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_file_is_refused_or_reads_the_same(tmp_path_factory, data):
    """Cut anywhere, or one byte changed: zipfile, zlib and NumPy's header parser each fail in their own way."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    model = classifier(RNN(2))
    whole = model.save(path).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(st.none() | st.integers(0, 255))
    path.write_bytes(whole[:at] if new is None else whole[:at] + bytes([new]) + whole[at + 1 :])
    try:
        again = load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert same_to_the_bit(again.params, model.params)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    """Disk full, Ctrl-C: what was there before must still be readable."""
    model = classifier()
    path = model.save(tmp_path / "model.npz")
    monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        randomise(model).save(path)
    monkeypatch.undo()
    assert same_to_the_bit(load(path).params, classifier().params)


def test_saved_numbers_are_plain_arrays(saved):
    """The file is a zip of .npy without pickles: any tool can read it."""
    path, _, arrays = saved
    assert zipfile.ZipFile(path).testzip() is None
    assert {value.dtype.kind for value in arrays.values()} == {"f"}

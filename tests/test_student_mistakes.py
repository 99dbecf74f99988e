"""What goes wrong in a first hour with the library, and the words that must come back.

Each row: a mistake, the error it must be, and patterns for the three parts of its message: the argument, the value
that came, and the remedy. A message may have one line only.
"""

import re

import numpy as np
import pytest
from tiny import C, D, T, classifier, copied, same_to_the_bit, sequences

from enn_np import (
    GRU,
    SGD,
    Adam,
    Checkpoint,
    Classifier,
    EarlyStopping,
    Engram,
    LanguageModel,
    ReduceOnPlateau,
    Regressor,
    StepClassifier,
    Stream,
    load,
    register,
    run,
)
from enn_np.checkpoint import build
from enn_np.data.images import MinMax, Standardize
from enn_np.data.text import Vocabulary, stream_batches, unigram_perplexity
from enn_np.gradcheck import check
from enn_np.heads import SoftmaxHead
from enn_np.train import Diverged

N = 24
x, y = sequences(N)
one_hot = np.eye(C, dtype=np.float32)[y]


def spoilt(array, value, *place):
    """A copy with one entry replaced."""
    array = array.copy()
    array[place] = value
    return array


def fit(x=x, y=y, **settings):
    """`fit` of a fresh classifier."""
    return lambda: classifier().fit(x, y, **settings)


def make(*arguments, **settings):
    """A classifier for the data above."""
    return lambda: classifier(*arguments, **settings)


def masked(array, *place):
    """A masked array with one entry masked."""
    array = np.ma.array(array)
    array[place] = np.ma.masked
    return array


words_, some = LanguageModel(GRU(4), 9, 4), np.arange(40) % 9
pairs = some[:20].reshape(4, 5)
vocabulary = Vocabulary(["the", "<unk>", "cat"], [5, 2, 2])
head, hidden = SoftmaxHead(), np.ones((3, 4))
head_params = head.init(np.random.default_rng(0), 4, 5, np.float64)
MASKED = {
    "x": fit(masked(x, 1, 2, 0)),
    "y": fit(y=masked(y, 3)),
    "mask": fit(mask=masked(np.ones((N, T), bool), 2, 2)),
    "validation x": fit(validation_data=(masked(x, 0, 0, 0), y)),
    "validation y": fit(validation_data=(x, masked(y, 0))),
    "x, in a list": fit([*map(masked, x[:3], (0, 1, 2))], y[:3]),
    "x, to predict": lambda: classifier().predict(masked(x, 1, 2, 0)),
    "x, to evaluate": lambda: classifier().evaluate(masked(x, 1, 2, 0), y),
    "y, of a regressor": lambda: Regressor(GRU(2), D).fit(x, masked(x[:, 0, 0], 2)),
    "y, of a step classifier": lambda: StepClassifier(GRU(2), D, C, 2).fit(x, masked(np.stack([y, y], 1), 2, 0)),
    "x, of ids": lambda: words_.fit(masked(pairs, 1, 1), pairs),
    "y, of ids": lambda: words_.evaluate(pairs, masked(pairs, 1, 1)),
    "tokens": lambda: words_.fit_stream(masked(some, 3)),
    "tokens, to evaluate": lambda: words_.evaluate_stream(masked(some, 3)),
    "validation_data": lambda: words_.fit_stream(some, batch_size=2, validation_data=masked(some, 3)),
    "prompt_ids": lambda: words_.sample(masked(some, 0), 3),
    "tokens, in batches": lambda: stream_batches(masked(some, 3), 2, 2),
    "tokens, of unigrams": lambda: unigram_perplexity(np.ones(9), masked(some, 3)),
    "train_counts": lambda: unigram_perplexity(masked(np.ones(9), 1), some),
    "counts": lambda: Vocabulary(["a", "<unk>"], masked(np.array([3, 1]), 0)),
    "ids": lambda: vocabulary.decode(masked(np.array([0, 1]), 1)),
    "h": lambda: head.loss(head_params, masked(hidden, 1, 1), np.array([0, 1, 2])),
    "targets": lambda: head.loss(head_params, hidden, masked(np.array([0, 1, 2]), 1)),
    "weights": lambda: head.loss(head_params, hidden, np.array([0, 1, 2]), masked(np.ones(3), 1)),
    "x, to scale by range": lambda: MinMax.fit(masked(x, 0, 0, 0)),
    "x, to standardise": lambda: Standardize.fit(masked(x, 0, 0, 0)),
    "x, to transform": lambda: MinMax.fit(x).transform(masked(x, 0, 0, 0)),
    "x, to run": lambda: run(GRU(2), GRU(2).init(np.random.default_rng(0), D), masked(x, 0, 0, 0)),
    "mask, to run": lambda: run(
        GRU(2), GRU(2).init(np.random.default_rng(0), D), x, mask=masked(np.ones((N, T), bool), 2, 2)
    ),
}


@pytest.mark.parametrize("where", MASKED)
def test_a_masked_array_never_loses_its_mask(where):
    """`np.asarray` hands out what lies below the mask, as if it had been measured."""
    with pytest.raises(ValueError, match=rf"^{where.split(',')[0]}: expected every entry to count, .*masked.*filled"):
        MASKED[where]()


def test_a_masked_array_with_nothing_masked_is_an_array():
    model, plain = classifier(), classifier()
    history = model.fit(np.ma.array(x), np.ma.array(y), epochs=1, mask=np.ma.array(np.ones((N, T), bool)), verbose=0)
    assert history["loss"] == plain.fit(x, y, epochs=1, mask=np.ones((N, T), bool), verbose=0)["loss"]
    assert words_.evaluate_stream(np.ma.array(some)) == words_.evaluate_stream(some.tolist())


ragged = [np.zeros((length, D), np.float32) for length in (3, 5)]

DATA = {
    "no targets": (fit(y=None), TypeError, "y", "None", "predict"),
    "no targets to evaluate": (lambda: classifier().evaluate(x, None), TypeError, "y", "None", "predict"),
    "one sequence, without the batch axis": (fit(x[0]), ValueError, "x", r"\(5, 3\)", r"expected shape \(n, T, 3\)"),
    "a table, without the time axis": (fit(x[:, 0]), ValueError, "x", r"\(24, 3\)", r"expected shape \(n, T, 3\)"),
    "another number of features": (fit(x[..., :2]), ValueError, "x", r"\(24, 5, 2\)", r"expected shape \(n, T, 3\)"),
    "uint8 images": (fit(np.zeros(x.shape, np.uint8)), TypeError, "x", "uint8", r"x\.astype\('float32'\) / 255$"),
    "numbers too large for float32": (
        fit(x.astype(float) * 1e40),
        ValueError,
        "x",
        r"\(0, 0, 0\) is -?inf",
        "remove or replace",
    ),
    "complex data": (fit(x * 1j), TypeError, "x", "complex", r"x\.astype\('float32'\)"),
    "sequences of different lengths": (fit(ragged), ValueError, "x", "different lengths", "pad them .* mask"),
    "NaN pixels": (fit(spoilt(x, np.nan, 2, 1, 0)), ValueError, "x", r"\(2, 1, 0\) is nan", "remove or replace"),
    "infinite pixels": (fit(spoilt(x, np.inf, 0, 0, 1)), ValueError, "x", r"\(0, 0, 1\) is inf", "remove or replace"),
    "no sequences": (fit(x[:0], y[:0]), ValueError, "x", r"\(0, 5, 3\)", "empty array"),
    "no time steps": (fit(x[:, :0]), ValueError, "x", r"\(24, 0, 3\)", "empty array"),
    "one-hot labels": (fit(y=one_hot), ValueError, "y", r"\(24, 3\)", r"y\.argmax\(-1\)"),
    "labels as floats": (fit(y=y.astype(float)), TypeError, "y", "float64", r"\.astype\('int64'\)"),
    "labels as words": (fit(y=np.array(list("abc"))[y]), TypeError, "y", "<U1", "expected integer class labels"),
    "labels from 1": (fit(y=y + 1), ValueError, "y", "got 3", "0 to 2 .* renumber them or .* more classes"),
    "negative labels": (fit(y=y - 1), ValueError, "y", "got -1", "0 to 2"),
    "labels as a column": (fit(y=y[:, None]), ValueError, "y", r"\(24, 1\)", r"expected shape \(24,\)"),
    "fewer labels than sequences": (fit(y=y[:-1]), ValueError, "y", r"\(23,\)", r"expected shape \(24,\)"),
    "a mask of ints": (fit(mask=np.ones((N, T), int)), ValueError, "mask", "int64", r"mask\.astype\(bool\)"),
    "a mask of another shape": (fit(mask=np.ones(N, bool)), ValueError, "mask", r"\(24,\)", r"shape \(24, 5\)"),
    "targets of a regressor as words": (
        lambda: Regressor(GRU(2), D).fit(x, y.astype(str)),
        TypeError,
        "y",
        "<U",
        r"y\.astype\('float32'\)",
    ),
    "targets of the wrong width": (
        lambda: Regressor(GRU(2), D, 2).fit(x, one_hot),
        ValueError,
        "y",
        r"\(24, 3\)",
        r"expected shape \(24, 2\)",
    ),
}

SETTINGS = {
    "no targets to validate on": (fit(validation_data=(x, None)), TypeError, "validation y", "None", "predict"),
    "validation share above 1": (fit(validation_split=1.5), ValueError, "validation_split", "1.5", "at most 1"),
    "all data to validate on": (
        fit(validation_split=1.0),
        ValueError,
        "validation_split",
        "0 of 24 sequences",
        "one each",
    ),
    "validation x without y": (fit(validation_data=(x,)), ValueError, "validation_data", "1 parts", r"\(x, y\)"),
    "validation x of another width": (
        fit(validation_data=(x[..., :2], y)),
        ValueError,
        "validation x",
        r"\(24, 5, 2\)",
        r"expected shape \(n, T, 3\)",
    ),
    "validation labels one-hot": (
        fit(validation_data=(x, one_hot)),
        ValueError,
        "validation y",
        r"\(24, 3\)",
        r"argmax\(-1\)",
    ),
    "no epochs": (fit(epochs=0), ValueError, "epochs", "got 0", "at least 1"),
    "half an epoch": (fit(epochs=2.5), TypeError, "epochs", "2.5", "whole number"),
    "batches of nothing": (fit(batch_size=0), ValueError, "batch_size", "got 0", "at least 1"),
    "batches of a fraction": (fit(batch_size=32.0), TypeError, "batch_size", "32.0", "whole number"),
    "a seed as a word": (fit(seed="lucky"), TypeError, "seed", "'lucky'", "whole number"),
    "an optimizer by name": (fit(optimizer="adam"), TypeError, "optimizer", "'adam'", r"Adam\(1e-3\)"),
    "an optimizer's class": (fit(optimizer=Adam), TypeError, "optimizer", "class .*Adam", r"Adam\(1e-3\)"),
    "a callback alone": (
        fit(callbacks=EarlyStopping()),
        TypeError,
        "callbacks",
        "EarlyStopping object",
        r"list of .*\[EarlyStopping\(\)\]",
    ),
    "a callback's class": (fit(callbacks=[EarlyStopping]), TypeError, "callbacks", "class", r"\[EarlyStopping\(\)\]"),
    "val_loss without validation": (
        fit(callbacks=[EarlyStopping()]),
        ValueError,
        "monitor",
        "'val_loss'",
        "needs validation data",
    ),
    "a plateau of val_loss without validation": (
        fit(callbacks=[ReduceOnPlateau()]),
        ValueError,
        "monitor",
        "'val_loss'",
        "needs validation data",
    ),
    "a monitor nobody knows": (
        fit(validation_split=0.5, callbacks=[EarlyStopping("val_acc")]),
        ValueError,
        "monitor",
        "'val_acc'",
        "'val_accuracy'",
    ),
    "negative patience": (lambda: EarlyStopping(patience=-1), ValueError, "patience", "-1", "at least 0"),
    "a plateau that raises the rate": (lambda: ReduceOnPlateau(factor=2), ValueError, "factor", "2.0", "at most 1"),
    "a negative learning rate": (lambda: Adam(-1e-3), ValueError, "learning_rate", "-0.001", "greater than 0"),
    "a checkpoint that is a switch": (fit(checkpoint=True), TypeError, "checkpoint", "True", r"Checkpoint\(path\)"),
    "resuming from nothing named": (
        fit(resume=True),
        ValueError,
        "resume",
        "checkpoint=None",
        "name the checkpoint's path",
    ),
    "resume as a word": (fit(resume="yes"), TypeError, "resume", "'yes'", "True or False"),
    "saving less often than never": (lambda: Checkpoint("run.npz", -1), ValueError, "seconds", "-1", "at least 0"),
    "a learning rate as a word": (lambda: SGD("fast"), TypeError, "learning_rate", "'fast'", "a number"),
    "predicting in batches of nothing": (
        lambda: classifier().predict(x, batch_size=0),
        ValueError,
        "batch_size",
        "got 0",
        "at least 1",
    ),
}

MODELS = {
    "frozen, one of nothing": (lambda: Adam(frozen=None), TypeError, "frozen", "None", r"such as \('0\.M',\)"),
    "a cell to register": (lambda: register(GRU(4)), TypeError, "register", r"GRU\(hidden=4\)", "above the class"),
    "a cell by name": (make("engram"), TypeError, "cells", "'engram'", r"Engram\(128, 64\)"),
    "a cell's class": (make(Engram), TypeError, "cells", "class .*Engram", r"such as Engram\(128, 64\)"),
    "a class to run": (
        lambda: run(GRU, GRU(2).init(np.random.default_rng(0), D), x),
        TypeError,
        "cell",
        "GRU",
        r"GRU\(64\)",
    ),
    "nothing to run": (lambda: run(None, {}, x), TypeError, "cell", "None", r"GRU\(64\)"),
    "a class to check": (lambda: check(GRU), TypeError, "cell", "GRU", r"GRU\(64\)"),
    "a class to stream": (lambda: Stream(GRU, {"W": x[0]}), TypeError, "cell", "GRU", r"GRU\(64\)"),
    "a class among cells": (make([GRU(4), GRU]), TypeError, "cells", "class .*GRU", r"such as Engram\(128, 64\)"),
    "no cells": (make([]), TypeError, "cells", r"\[\]", "list of cells"),
    "sizes in place of cells": (make([128, 64]), TypeError, "cells", r"\[128, 64\]", r"Engram\(128, 64\)"),
    "unknown pooling": (make(pooling="max"), ValueError, "pooling", "'max'", "'last', 'mean', 'attention'"),
    "unknown dtype": (make(dtype="float33"), ValueError, "dtype", "'float33'", "'float32', 'float64'"),
    "half precision": (make(dtype=np.float16), ValueError, "dtype", "'float16'", "'float32', 'float64'"),
    "dropout in per cent": (make(dropout=30), ValueError, "dropout", "30", "at most 0.99"),
    "dropout of everything": (make(dropout=1.0), ValueError, "dropout", "1.0", "at most 0.99"),
    "one class": (lambda: Classifier(GRU(4), D, 1), ValueError, "classes", "got 1", "at least 2"),
    "the data in place of their width": (
        lambda: Classifier(GRU(4), x, C),
        TypeError,
        "inputs",
        "array",
        "whole number",
    ),
    "a negative seed": (make(seed=-1), ValueError, "seed", "-1", "at least 0"),
    "unknown retrieval": (
        lambda: Engram(4, 4, retrieval="topk"),
        ValueError,
        "retrieval",
        "'topk'",
        "'softmax', 'top_k', 'sparsemax'",
    ),
    "unknown trace": (lambda: Engram(4, 4, trace="batches"), ValueError, "trace", "'batches'", "'batch', 'sample'"),
    "a negative Hebbian rate": (
        lambda: Engram(4, 4, hebbian_rate=-0.1),
        ValueError,
        "hebbian_rate",
        "-0.1",
        "at least 0",
    ),
    "more slots read than there are": (
        lambda: Engram(4, 4, retrieval="top_k"),
        ValueError,
        "top_k",
        "got 8",
        "at most slots = 4",
    ),
    "hidden size of 0": (lambda: GRU(0), ValueError, "hidden", "got 0", "at least 1"),
    "a configuration of another kind": (
        lambda: build({"model": "transformer"}),
        ValueError,
        "model",
        "'transformer'",
        "'classifier', 'regressor'",
    ),
}

ids = np.arange(40) % 9


def words(tokens=ids, **settings):
    """`fit_stream` of a fresh language model of nine words."""
    return lambda: LanguageModel(GRU(4), 9, 4).fit_stream(tokens, epochs=1, batch_size=2, verbose=0, **settings)


TEXT = {
    "a text as a string": (words("the cat sat"), ValueError, "tokens", "<U11", r"Vocabulary\.encode"),
    "a text as a list of words": (words(["the", "cat"]), ValueError, "tokens", "<U3", r"Vocabulary\.encode"),
    "ids of a larger vocabulary": (
        words(ids + 3),
        ValueError,
        "tokens",
        "3 to 11",
        "vocabulary that the model was built",
    ),
    "one-hot words": (words(np.eye(9)[ids]), ValueError, "tokens", r"\(40, 9\)", r"integer ids \(N,\)"),
    "a text shorter than its rows": (words(ids[:2]), ValueError, "tokens", "got 2", "smaller batch_size"),
    "words to validate on": (words(validation_data=["a"]), ValueError, "validation_data", "<U1", r"Vocabulary\.encode"),
    "one word only": (lambda: LanguageModel(GRU(4), 1), ValueError, "vocabulary_size", "got 1", "at least 2"),
    "tied weights of different widths": (
        lambda: LanguageModel(GRU(4), 9, 5, tied=True),
        ValueError,
        "tied",
        "embedding = 5",
        "change these or use tied=False",
    ),
    "a prompt of no words": (
        lambda: LanguageModel(GRU(4), 9).sample(ids[:0], 5),
        ValueError,
        "prompt_ids",
        "an empty array",
        r"integer ids \(P,\)",
    ),
    "a text where words are wanted": (
        lambda: vocabulary.encode("the cat"),
        TypeError,
        "words",
        "'the cat'",
        r"text\.split\(\)",
    ),
    "bytes where words are wanted": (lambda: vocabulary.encode(b"the"), TypeError, "words", "b'the'", "list of words"),
    "ids where words are wanted": (lambda: vocabulary.encode([1, 2]), TypeError, "words", "got 1", "each a str"),
    "an array of ids": (lambda: vocabulary.encode(some), TypeError, "words", "0", "each a str"),
    "one id": (lambda: vocabulary.encode(3), TypeError, "words", "3", "list of words"),
    "words as bytes": (lambda: vocabulary.encode(["a", b"b"]), TypeError, "words", "b'b'", "each a str"),
    "lines of words": (lambda: vocabulary.encode([["the", "cat"]]), TypeError, "words", r"\['the', 'cat'\]", "a str"),
    "a vocabulary of a text": (lambda: Vocabulary("the cat", [1] * 7), TypeError, "words", "'the cat'", "split"),
    "a vocabulary of ids": (lambda: Vocabulary([1, 2], [1, 1]), TypeError, "words", "got 1", "each a str"),
    "words to decode": (lambda: vocabulary.decode(["the"]), ValueError, "ids", "<U3", "integer ids"),
    "probabilities to decode": (lambda: vocabulary.decode([0.0]), ValueError, "ids", "float64", "integer ids"),
    "a text in batches": (lambda: stream_batches("the cat", 1, 1), ValueError, "tokens", "<U7", r"Vocabulary\.encode"),
    "a list of words in batches": (lambda: stream_batches(["a"] * 9, 1, 1), ValueError, "tokens", "<U1", "integer ids"),
    "a table in batches": (lambda: stream_batches(pairs, 1, 1), ValueError, "tokens", r"\(4, 5\)", "integer ids"),
    "words in place of tokens": (
        lambda: unigram_perplexity(np.ones(9), ["the", "cat"]),
        ValueError,
        "tokens",
        "<U3",
        r"Vocabulary\.encode",
    ),
    "a word as a seed": (lambda: words_.sample([1], 3, rng="x"), TypeError, "rng", "'x'", "whole number"),
    "a fraction as a seed": (lambda: words_.sample([1], 3, rng=0.5), TypeError, "rng", "0.5", "whole number"),
    "NumPy's old generator": (
        lambda: words_.sample([1], 3, rng=np.random.RandomState(0)),
        TypeError,
        "rng",
        "RandomState",
        "whole number",
    ),
    "one cutoff": (lambda: SoftmaxHead(5), TypeError, "cutoffs", "5", r"\(2000, 10000\)"),
    "cutoffs as a word": (lambda: SoftmaxHead("57"), TypeError, "cutoffs", "'57'", r"\(2000, 10000\)"),
    "one cutoff of a model": (
        lambda: LanguageModel(GRU(4), 9, head="adaptive", cutoffs=5),
        TypeError,
        "cutoffs",
        "5",
        r"\(2000, 10000\)",
    ),
    "a learning rate in the clouds": (
        lambda: classifier(Engram(6, 4)).fit(x, y, optimizer=SGD(1e30), batch_size=4),
        Diverged,
        "learning_rate",
        r"at 1e\+30 .* step \d",
        r"lower it, or .*clip_norm=1\.0",
    ),
}


MISTAKES = DATA | SETTINGS | MODELS | TEXT


def test_an_argument_of_no_library_is_python_s_own_error():
    for act in (fit(nonsense=1), make(nonsense=1), lambda: GRU(4, nonsense=1), make(pooling="mean", units=3)):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '(nonsense|units)'"):
            act()
    with pytest.raises(TypeError, match="unexpected keyword argument 'pooling'"):
        LanguageModel(GRU(4), 9, pooling="mean")  # it was ignored: words are not pooled


def test_a_seed_serves_in_the_place_of_a_generator():
    drawn = words_.sample([1, 2], 20, rng=0)
    assert (drawn == words_.sample([1, 2], 20, rng=np.random.default_rng(0))).all()
    assert (drawn != words_.sample([1, 2], 20, rng=np.int64(1))).any()


@pytest.mark.filterwarnings("ignore:overflow|invalid:RuntimeWarning")  # of the learning rate in the clouds
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_names_argument_value_and_remedy(mistake):
    """A mistake that passes, fails deep inside NumPy, or comes back in words that do not help."""
    act, error, argument, value, remedy = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        act()
    message = str(caught.value)
    assert caught.type is error
    assert message.startswith(f"{argument}: "), message
    assert re.search(value, message), message
    assert re.search(remedy, message), message
    assert "\n" not in message or mistake == "the data in place of their width"


@pytest.mark.parametrize("mistake", (*DATA, *SETTINGS))
def test_nothing_is_trained_before_the_mistake_is_found(mistake, monkeypatch):
    """An hour of training, and then the message."""

    def worked(model, *batch):
        raise AssertionError("a batch was trained before the mistake was found")

    monkeypatch.setattr(Classifier, "loss_and_grads", worked)
    monkeypatch.setattr(Regressor, "loss_and_grads", worked)
    with pytest.raises(MISTAKES[mistake][1]):
        MISTAKES[mistake][0]()


@pytest.mark.parametrize("mistake", [name for name in DATA if "regressor" not in name and "width" not in name])
def test_evaluation_refuses_the_same_data(mistake, monkeypatch):
    """And prediction too: what cannot be trained on cannot be tested on."""
    act, error, argument, *_ = DATA[mistake]
    monkeypatch.setattr(Classifier, "fit", lambda model, x, y, **mask: model.evaluate(x, y, **mask))
    with pytest.raises(error, match=f"^{argument}: "):
        act()


def test_a_mistake_leaves_the_model_as_it_was():
    model = classifier()
    before = copied(model.params)
    for settings in ({"epochs": 0}, {"validation_split": 2}, {"callbacks": [EarlyStopping()]}):
        with pytest.raises(ValueError):
            model.fit(x, y, **settings)
    assert same_to_the_bit(model.params, before)
    model.fit(x, y, epochs=1)


def test_loading_something_else_names_the_file(tmp_path):
    """A text file, a folder, nothing at all: which file, what is wrong, and what to do."""
    text = tmp_path / "notes.txt"
    text.write_text("my weights\n")
    for path, error in ((text, ValueError), (tmp_path, ValueError), (tmp_path / "none.npz", FileNotFoundError)):
        with pytest.raises(error, match=re.escape(str(path))) as caught:
            load(path)
        assert error is FileNotFoundError or "save it again or use another copy" in str(caught.value)

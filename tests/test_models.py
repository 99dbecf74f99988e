"""Whole models: gradients from loss to every parameter, prediction, padding, dropout, and files."""

import copy
import dataclasses
import inspect
import io
import json
import multiprocessing
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import seeds, zeros
from tiny import KINDS, STACKS, C, D, T, classifier, copied, digits, padding, randomise, same_to_the_bit, sequences

import enn_np
from enn_np import (
    GRU,
    LSTM,
    RNN,
    SGD,
    Binding,
    Classifier,
    Engram,
    LanguageModel,
    LearnedEngram,
    Model,
    Regressor,
    StepClassifier,
    Window,
    checkpoint,
    load,
    register,
    run,
    run_back,
)
from enn_np.gradcheck import TOLERANCE, Kink, compare
from enn_np.lab import table
from enn_np.models import build

POOLINGS = ("last", "mean", "attention")
every_stack = pytest.mark.parametrize("stack", STACKS)
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)
every_kind = pytest.mark.parametrize("kind", KINDS)
masked_or_not = pytest.mark.parametrize("masked", (False, True), ids=("whole", "padded"))
EACH_ALONE = {**KINDS, "engram": Engram(6, 4, trace="sample")}  # no sample sees another


# Gradients


def gradient_errors(model, batch=3, steps=4, masked=False, seed=0, every=False):
    """Relative error of every gradient of the training loss, penalties, dropout and drawn states included.

    The same Generator is made anew for every loss, so that dropout, initial states and noise repeat.
    """
    rng = np.random.default_rng(seed)
    randomise(model, seed)
    x = rng.standard_normal((steps, batch, model.inputs))
    y = rng.integers(0, model.outputs, batch)
    y = y if isinstance(model, Classifier) else rng.standard_normal((batch, model.outputs))
    mask = rng.random((steps, batch)) < 0.6 if masked else None

    def loss(values):
        model.params = values
        out, memo = model.forward(x, np.random.default_rng(seed), mask, learning=True)
        tapes = memo[-2]
        value = model.loss(out, y)[0]
        pattern = []
        for cell, tape in zip(model.cells, tapes, strict=True):
            pattern += zeros(tape.e, tape.kept)
            if isinstance(cell, Engram):
                value += cell.penalty(tape.kept.a, mask)[0]
                pattern += [abs(cell.traces(tape)) == cell.trace_clip]
        return value, pattern

    params = model.params
    metrics, grads = model.loss_and_grads(x, y, np.random.default_rng(seed), mask)
    assert grads.keys() == params.keys()
    assert metrics["loss"] + metrics.get("penalty", 0) == pytest.approx(loss(params)[0], rel=1e-12)
    errors = compare(loss, params, grads, rng, every=every)
    model.params = params
    return errors


def assert_gradients_agree(make, **problem):
    """Draw again at a kink, as `gradcheck.check` does; the kink is known without looking at the answer."""
    for seed in range(problem.pop("seed", 0), 10**9):
        try:
            errors = gradient_errors(make(), seed=seed, **problem)
        except Kink:
            continue
        assert max(errors.values()) < TOLERANCE, errors
        return


@every_stack
@every_pooling
@masked_or_not
def test_every_gradient_of_a_stack(stack, pooling, masked):
    """A gradient lost between layers, between pooling and the last state, or at padding; dropout's scale left out on
    the way back, or drawn anew there."""
    make = lambda: Classifier(STACKS[stack], D, C, pooling, dropout=0.4, dtype="float64")  # noqa: E731
    assert_gradients_agree(make, masked=masked)


@every_pooling
@masked_or_not
def test_every_gradient_of_a_regressor(pooling, masked):
    """The same of the other head."""
    make = lambda: Regressor(STACKS["mixed"], D, 2, pooling, dropout=0.0, dtype="float64")  # noqa: E731
    assert_gradients_agree(make, masked=masked)


@pytest.mark.parametrize("trace", ("batch", "sample"))
@pytest.mark.parametrize("retrieval", ("softmax", "top_k", "sparsemax"))
@masked_or_not
def test_every_gradient_with_penalties_in_every_layer(trace, retrieval, masked):
    """A penalty whose gradient reaches the wrong layer, or counts padded steps."""
    cell = Engram(4, 4, trace=trace, retrieval=retrieval, top_k=2, temperature=0.5, l1=0.3, entropy=0.5)
    assert_gradients_agree(lambda: Classifier([cell, RNN(3), cell], D, C, dtype="float64"), masked=masked)


@every_pooling
def test_every_coordinate_of_a_tiny_model(pooling):
    """One random direction cannot miss a wrong entry, but each entry alone says where it is."""
    cells = [Engram(2, 2, entropy=0.1), GRU(2)]
    make = lambda: Classifier(cells, 2, 2, pooling, dropout=0.2, dtype="float64")  # noqa: E731
    assert_gradients_agree(make, batch=2, steps=3, masked=True, every=True)


cells = st.one_of(
    st.builds(RNN, st.integers(1, 3)),
    st.builds(GRU, st.integers(1, 3)),
    st.builds(LSTM, st.integers(1, 3)),
    st.builds(
        Engram,
        st.integers(2, 4),
        st.integers(1, 4),
        trace=st.sampled_from(("batch", "sample")),
        entropy=st.sampled_from((0, 0.2)),
    ),
)


@settings(max_examples=30)
@given(
    st.lists(cells, min_size=1, max_size=3),
    st.sampled_from((Classifier, Regressor)),
    st.sampled_from(POOLINGS),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from((0, 0.3)),
    st.booleans(),
    seeds,
)
def test_gradients_of_any_model(cells, head, pooling, inputs, batch, steps, dropout, masked, seed):
    """Sizes of 1, where a wrong broadcast goes unnoticed, and stacks nobody thought of."""
    model = head(cells, inputs, 2, pooling, dropout, dtype="float64")
    try:
        errors = gradient_errors(model, batch, steps, masked, seed)
    except Kink:
        assume(False)
    # Behind a layer norm of two units everything is +-1: gradients there vanish and differences carry only rounding.
    assert max(errors.values()) < 10 * TOLERANCE, errors


def test_gradients_do_not_depend_on_what_ran_before():
    """Workspaces are reused: a model that ran on other shapes must give the same gradients as a fresh one."""
    x, y = sequences(8, dtype=np.float64)
    fresh, used = (randomise(classifier(STACKS["mixed"], dtype="float64")) for _ in range(2))
    used.predict(x)
    used.loss_and_grads(used.time_major(x[:3, :2]), y[:3], np.random.default_rng(1))
    pairs = [m.loss_and_grads(m.time_major(x), y, np.random.default_rng(2)) for m in (fresh, used)]
    assert pairs[0][0] == pairs[1][0]
    assert same_to_the_bit(pairs[0][1], pairs[1][1])


# Sizes


@pytest.mark.parametrize("name", table.MODELS)
def test_parameter_counts_of_the_paper_on_mnist(name):
    """A missing bias or gate shows in the published number of trained parameters."""
    model = table.network("mnist/paper", name)
    assert model.size == table.PAPER["mnist"][name]["parameters"]


def test_parameter_counts_of_the_paper_on_cifar():
    """There the published count includes the 64 x 128 numbers of an initial trace that is never used."""
    assert table.network("cifar10/paper", "engram").size + 64 * 128 == 227_722


def test_attention_pooling_adds_one_weight_per_unit_and_a_bias():
    """The published layer: tanh(h w + b), softmax over time."""
    assert classifier(pooling="attention").size - classifier().size == 6 + 1


@pytest.mark.parametrize("dtype", ("float32", "float64", np.float32, np.dtype("float64")))
@every_pooling
def test_precision_is_kept_from_parameters_to_predictions(dtype, pooling):
    """One float64 constant on the way makes everything after it float64, silently and at half the speed."""
    model = classifier(STACKS["mixed"], pooling=pooling, dtype=dtype)
    x, y = sequences(6, dtype=np.dtype(dtype))
    mask = padding(6)
    assert {value.dtype for value in model.params.values()} == {np.dtype(dtype)}
    _, grads = model.loss_and_grads(model.time_major(x), y, np.random.default_rng(0), mask.T.copy())
    assert {value.dtype for value in grads.values()} == {np.dtype(dtype)}
    assert model.predict_proba(x, mask=mask).dtype == np.dtype(dtype)


def test_seed_decides_the_initial_values():
    one, same, other = (classifier(STACKS["mixed"], seed=seed).params for seed in (1, 1, 2))
    assert same_to_the_bit(one, same)
    assert not any((one[name] == other[name]).all() for name in one if name.split(".")[1].startswith(("W", "M")))


# Prediction


@every_kind
def test_prediction_evaluation_and_probabilities_agree(kind):
    """Three ways to ask the same model."""
    model = randomise(classifier(KINDS[kind], dropout=0.5))
    x, y = sequences(20)
    probabilities, labels, scores = model.predict_proba(x), model.predict(x), model.evaluate(x, y)
    assert probabilities.shape == (20, C) and labels.shape == (20,)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(labels, probabilities.argmax(1))
    assert scores["accuracy"] == (labels == y).mean()
    assert scores["loss"] == pytest.approx(-np.log(probabilities[range(20), y]).mean(), rel=1e-5)
    assert all(type(value) is float for value in scores.values())


def test_regressor_evaluates_squared_and_absolute_error():
    model = randomise(Regressor(GRU(4), D, 2))
    x, _ = sequences(11)
    y = np.random.default_rng(1).standard_normal((11, 2), np.float32)
    error = model.predict(x) - y
    scores = model.evaluate(x, y, batch_size=4)
    assert scores == pytest.approx({"loss": (error**2).mean(), "mae": abs(error).mean()}, rel=1e-5)


def test_regressor_takes_targets_of_rank_one():
    """(n,) against (n, 1) would broadcast to (n, n)."""
    model = Regressor(GRU(4), D)
    x, _ = sequences(9)
    y = np.linspace(0, 1, 9, dtype=np.float32)
    assert model.evaluate(x, y) == model.evaluate(x, y[:, None])


@pytest.mark.parametrize("kind", EACH_ALONE)
@pytest.mark.parametrize("batch_size", (1, 7, 20, 1000))
def test_batch_size_does_not_matter(kind, batch_size):
    """Batch mates leak into each other's state, or the odd last batch is left out or counted twice."""
    model = randomise(classifier(EACH_ALONE[kind], dtype="float64", dropout=0.5))
    x, y = sequences(20, dtype=np.float64)
    np.testing.assert_allclose(model.predict_proba(x, batch_size), model.predict_proba(x), rtol=1e-9, atol=1e-12)
    assert model.evaluate(x, y, batch_size) == pytest.approx(model.evaluate(x, y), rel=1e-9)


def test_batch_size_matters_where_the_batch_shares_a_trace():
    """The published model: a prediction depends on the batch mates. Hiding it would not be a reproduction."""
    model = randomise(classifier(Engram(6, 4, hebbian_rate=0.5, trace_scale=2.0), dtype="float64"))
    x, _ = sequences(20, dtype=np.float64)
    assert abs(model.predict_proba(x, 1) - model.predict_proba(x, 20)).max() > 1e-4


@every_kind
def test_prediction_is_deterministic_by_default(kind):
    """Noise or dropout left on in prediction."""
    model = classifier(KINDS[kind], dropout=0.9)
    x, _ = sequences(10)
    np.testing.assert_array_equal(model.predict_proba(x), model.predict_proba(x))


@pytest.mark.parametrize("drawn", ({"initial_scale": 1.0, "trace_noise": 0}, {"initial_scale": 0, "trace_noise": 0.5}))
def test_random_inference_draws_states_and_noise_and_repeats_with_the_seed(drawn):
    """As published: every batch has its own h_0, A_0 and noise; but asked again, the answer is the same."""
    cell = Engram(6, 4, hebbian_rate=0.5, trace_clip=None, **drawn)
    model, other = (classifier(cell, random_inference=True, seed=seed) for seed in (1, 2))
    quiet = classifier(cell, seed=1)
    other.params = quiet.params = model.params
    x = np.repeat(sequences(1)[0], 8, axis=0)  # the same sequence in every batch
    p = model.predict_proba(x, batch_size=4)
    np.testing.assert_array_equal(p, model.predict_proba(x, batch_size=4))
    assert abs(p[:4] - p[4:]).max() > 1e-4, "the second batch drew the same numbers as the first"
    assert abs(p - other.predict_proba(x, batch_size=4)).max() > 1e-4, "the seed does not matter"
    assert abs(p - quiet.predict_proba(x, batch_size=4)).max() > 1e-4, "nothing was drawn"


def test_states_go_in_and_come_out():
    """A sequence in two pieces is the sequence, through all layers."""
    model = randomise(classifier(STACKS["mixed"], dtype="float64"))
    x = model.time_major(sequences(4, steps=6, dtype=np.float64)[0])
    whole, finals, _ = model.run_cells(x)
    whole = whole.copy()
    first, states, _ = model.run_cells(x[:2])
    first = first.copy()
    second, last, _ = model.run_cells(x[2:], states=states)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-10, atol=1e-12)
    for got, want in zip(last, finals, strict=True):
        for part, wanted in zip(got, want, strict=True):
            np.testing.assert_allclose(part, wanted, rtol=1e-10, atol=1e-12)


# Pooling by its definition, from the hidden states alone


@every_pooling
@masked_or_not
def test_pooling_is_what_it_says(pooling, masked):
    """A mean over padding too, or attention that looks there."""
    model = randomise(classifier(pooling=pooling, dtype="float64"))
    x, _ = sequences(7, dtype=np.float64)
    mask = padding(7) if masked else np.ones((7, T), bool)
    h, _, _ = model.run_cells(model.time_major(x), mask=mask.T.copy() if masked else None)
    pooled = []
    for b in range(7):
        live = h[mask[b], b]  # (real steps, H)
        scores = np.tanh(live @ model.params["pool.w"] + model.params["pool.b"]) if pooling == "attention" else 0
        weights = np.exp(scores) / np.exp(scores).sum() if pooling == "attention" else 1 / len(live)
        pooled.append(live[-1] if pooling == "last" else (weights * live).sum(0))
    want = np.stack(pooled) @ model.params["head.W"] + model.params["head.b"]
    np.testing.assert_allclose(model.predict_outputs(x, mask=mask if masked else None), want, rtol=1e-10, atol=1e-12)


# Padding


@every_stack
@every_pooling
def test_content_of_padding_does_not_matter(stack, pooling):
    """Neither for predictions nor for gradients."""
    model = randomise(classifier(STACKS[stack], pooling=pooling, dtype="float64", dropout=0.0))
    x, y = sequences(9, dtype=np.float64)
    mask = padding(9)
    other = np.where(mask[..., None], x, 1e3)
    np.testing.assert_array_equal(model.predict_outputs(x, mask=mask), model.predict_outputs(other, mask=mask))
    grads = [
        model.loss_and_grads(model.time_major(each), y, np.random.default_rng(0), model.time_major(mask))[1]
        for each in (x, other)
    ]
    for name, value in grads[0].items():
        np.testing.assert_allclose(value, grads[1][name], rtol=1e-9, atol=1e-12, err_msg=name)


@every_pooling
@pytest.mark.parametrize("junk", (np.nan, np.inf, 1e38, -1e30))
def test_padding_may_hold_anything(pooling, junk):
    """0 times NaN is NaN: one bad number at a padded step, and every batch mate is lost with it."""
    model, (x, y) = classifier([Engram(6, 4), GRU(3)], pooling=pooling), sequences(9)
    mask = padding(9)
    mask[0] = False  # a whole sequence of it
    other = np.where(mask[..., None], x, np.float32(junk))
    before = other.copy()
    np.testing.assert_array_equal(model.predict_proba(other, mask=mask), model.predict_proba(x, mask=mask))
    assert model.evaluate(other, y, mask=mask) == model.evaluate(x, y, mask=mask)
    histories, seconds = [], "seconds"
    for each in (x, other):
        fresh = classifier([Engram(6, 4), GRU(3)], pooling=pooling)
        settings = {"validation_data": (each, y, mask), "epochs": 2, "batch_size": 2, "verbose": 0}
        histories.append({k: v for k, v in fresh.fit(each, y, mask=mask, **settings).items() if k != seconds})
    assert histories[0] == histories[1]
    np.testing.assert_array_equal(other, before, err_msg="the caller's data were changed")
    with pytest.raises(ValueError, match="^x: every entry must be finite" if not np.isfinite(junk) else "^mask: "):
        model.predict(other, mask=mask[:, :-1] if np.isfinite(junk) else np.ones_like(mask))


@every_kind
@every_pooling
def test_batches_of_padding_alone_train_and_are_scored(kind, pooling):
    """Batches in which no step is real, for every shuffle, penalties included."""
    cells = Engram(16, 4, trace="sample", entropy=0.5, l1=0.1) if kind == "engram" else KINDS[kind]
    model, (x, y) = classifier(cells, pooling=pooling), sequences(8)
    mask = np.arange(8)[:, None] >= np.full((8, T), 6)
    for seed in range(3):
        history = model.fit(x, y, mask=mask, validation_data=(x, y, mask), batch_size=2, epochs=2, seed=seed)
        assert np.isfinite([value for values in history.values() for value in values]).all()
    assert model.evaluate(x, y, 1, mask) == pytest.approx(model.evaluate(x, y, 8, mask), rel=1e-5)


@pytest.mark.parametrize("penalties", ({"entropy": 2.0}, {"l1": 1.5}, {"entropy": 1.0, "l1": 1.0}, {}))
def test_the_penalty_is_a_number_of_its_own(penalties):
    """It is trained, yet the loss is that of the data, as in validation."""
    cell = Engram(8, 4, trace_noise=0.0, initial_scale=0.0, trace="sample", **penalties)
    model, (x, y) = classifier([cell, cell], dropout=0.0, dtype="float64"), sequences(10, dtype=np.float64)
    history = model.fit(x, y, epochs=1, batch_size=3, validation_data=(x, y), optimizer=SGD(1e-300), verbose=0)
    assert history["loss"] == pytest.approx(history["val_loss"], rel=1e-9)
    assert ("penalty" in history) == bool(penalties)
    if penalties:
        tapes = model.run_cells(model.time_major(x))[2]
        want = sum(cell.penalty(tape.kept.a)[0] for tape in tapes)
        assert history["penalty"] == pytest.approx([want], rel=1e-9)


@every_stack
@every_pooling
def test_a_padded_tail_is_the_shorter_sequence(stack, pooling):
    """Padding that counts in a mean, in attention, in a state or in the trace."""
    model = randomise(classifier(STACKS[stack], pooling=pooling, dtype="float64"))
    x, y = sequences(9, dtype=np.float64)
    mask = np.ones((9, T), bool)
    mask[:, 3:] = False
    np.testing.assert_allclose(model.predict_outputs(x, mask=mask), model.predict_outputs(x[:, :3]), rtol=1e-10)
    assert model.evaluate(x, y, mask=mask) == pytest.approx(model.evaluate(x[:, :3], y), rel=1e-10)


@pytest.mark.parametrize("kind", EACH_ALONE)
@every_pooling
def test_a_mask_belongs_to_its_own_sequence(kind, pooling):
    """Each sequence of a padded batch gives what it gives alone and unpadded."""
    model = randomise(classifier(EACH_ALONE[kind], pooling=pooling, dtype="float64"))
    x, _ = sequences(9, dtype=np.float64)
    mask = padding(9)
    together = model.predict_outputs(x, batch_size=4, mask=mask)
    alone = [model.predict_outputs(x[i : i + 1, : mask[i].sum()]) for i in range(9)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-9, atol=1e-12)


@every_kind
@every_pooling
def test_a_sequence_of_padding_alone_stays_finite(kind, pooling):
    """0 / 0 in the mean, or a softmax over nothing."""
    model = randomise(classifier(KINDS[kind], pooling=pooling))
    x, y = sequences(4)
    mask = np.ones((4, T), bool)
    mask[1] = False
    assert np.isfinite(model.predict_proba(x, mask=mask)).all()
    _, grads = model.loss_and_grads(model.time_major(x), y, np.random.default_rng(0), model.time_major(mask))
    assert all(np.isfinite(value).all() for value in grads.values())


# Dropout


def test_dropout_keeps_the_expectation_and_drops_the_share():
    """Outputs of many draws average to those without dropout; features are dropped, not scaled alike."""
    model = randomise(classifier(dropout=0.3, dtype="float64"))
    x = model.time_major(np.repeat(sequences(1, dtype=np.float64)[0], 20_000, axis=0))
    out, (_, pooled, _, drop, _, _) = model.forward(x, np.random.default_rng(0), learning=True)
    want, _ = model.forward(x[:, :1], learning=False)
    np.testing.assert_allclose(out.mean(0), want[0], atol=0.05)
    assert set(np.unique(drop.round(9))) == {0, round(1 / 0.7, 9)}
    assert (drop == 0).mean() == pytest.approx(0.3, abs=0.005)
    assert ((pooled == 0) == (drop == 0)).all()


def test_dropout_acts_in_training_only():
    plain, dropping = (randomise(classifier(dropout=dropout)) for dropout in (0.0, 0.8))
    x, y = sequences(10)
    np.testing.assert_array_equal(plain.predict_proba(x), dropping.predict_proba(x))
    losses = [m.loss_and_grads(m.time_major(x), y, np.random.default_rng(0))[0]["loss"] for m in (plain, dropping)]
    assert losses[0] != losses[1]
    dropping.random_inference = True  # which draws initial states, of which a GRU has none to draw
    np.testing.assert_array_equal(plain.predict_proba(x), dropping.predict_proba(x))


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
    before = [(names, dict(names)) for names in (checkpoint.CELLS, checkpoint.KINDS)]
    yield
    for names, entries in before:
        names.clear()
        names.update(entries)


class Loud(GRU):
    """A reader's cell: the GRU with a state twice as large, not registered."""

    def step(self, params, e, state, k=None):
        state, k = super().step(params, e, state, k)
        k.h[...] *= 2
        return state, k


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
    del checkpoint.CELLS["leaky"]
    with pytest.raises(ValueError, match=r"model\.npz: .*cell: expected one of .*'leaky'; .*@enn_np\.register"):
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
    assert checkpoint.CELLS["mine"] is new
    with pytest.raises(TypeError, match="build the model again"):
        classifier(old(3)).check_saving()
    classifier(new(3)).check_saving()


def test_a_small_cell_of_ones_own_is_no_forged_file(tmp_path, registry):
    """A cell with fewer parameters than the library's of its size."""

    @register
    @dataclasses.dataclass(frozen=True)
    class Diagonal(RNN):
        def init(self, rng, inputs, dtype=np.float32):
            return {"W_x": np.ones((1, inputs, 1), dtype)}

    model = classifier(Diagonal(40))
    assert same_to_the_bit(load(model.save(tmp_path / "model.npz")).params, model.params)


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
    refused(classifier(Scaled(3, gain=2.0)), tmp_path, "Scaled.gain would come back as 1.0, not 2.0; make it a field")
    refused(Tempered(RNN(3), D, C, temperature=3.0), tmp_path, "Tempered.temperature would come back as 1.0, not 3.0")
    for odd in (lambda h: h, np.float32(1), 1j):
        refused(classifier(Leaky(3, limit=odd)), tmp_path, "^model: its configuration could not be read back")
    refused(classifier(Leaky(3, rates=((1, 2), (3, 4)))), tmp_path, r"Leaky\.rates would come back as \(\[1, 2\]")
    refused(classifier(Leaky(3, rates={1: 2})), tmp_path, r"Leaky\.rates would come back as \{'1': 2\}, not \{1: 2\}")
    classifier(Leaky(3, limit=np.nan)).check_saving()
    hidden = Scaled(3, gain=None)
    object.__setattr__(hidden, "gain", 2.0)
    refused(classifier(hidden), tmp_path, r"Scaled\.gain would come back as 1\.0, not 2\.0")
    for name, value in (("extra", np.zeros(2)), ("head.b", np.zeros(C)), ("head.W", np.zeros((3, 3), np.float32))):
        model = classifier(GRU(4))
        model.params[name] = value
        with pytest.raises(TypeError, match=f"^model: its parameters are not those that a new one has, see {name}"):
            model.save(tmp_path / "odd.npz")


# Copies


EVERY_CELL = (RNN(4), GRU(4), LSTM(4), Engram(6, 4, entropy=0.1), LearnedEngram(6, 4), Binding(4, 4), Window(4, 4, 3))


@pytest.mark.parametrize("cell", EVERY_CELL, ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize(
    "clone", (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))), ids=("copy", "pickle")
)
def test_a_trained_model_is_copied_whole(cell, clone):
    """Workspaces hold a module, and 30 MB of arrays that nobody needs."""
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
    """And goes back by itself, whatever its workspace does since."""
    rng = np.random.default_rng(0)
    params, x = cell.init(rng, D), rng.standard_normal((T, 2, D), np.float32)
    workspace = enn_np.backend.Workspace()
    h, _, tape = run(cell, params, x, workspace=workspace)
    copies = copy.deepcopy(tape), pickle.loads(pickle.dumps(tape))
    wanted = run_back(cell, params, tape, np.ones_like(h))[2]
    run(cell, params, 2 * x, workspace=workspace)
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


# What a notebook shows


def test_signatures_name_every_argument():
    """`**settings` tells Tab and help nothing."""
    methods = (Classifier.fit, Classifier.evaluate, enn_np.Adam, enn_np.SGD)
    for function in (Classifier, Regressor, LanguageModel, StepClassifier, *methods):
        kinds = {each.kind for each in inspect.signature(function).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, function
    model = classifier()
    assert list(inspect.signature(model.fit).parameters)[:2] == ["x", "y"]
    wanted = {
        "epochs",
        "batch_size",
        "validation_data",
        "validation_split",
        "optimizer",
        "callbacks",
        "seed",
        "mask",
        "checkpoint",
        "resume",
    }
    assert wanted <= inspect.signature(model.fit).parameters.keys() and "validation_split" in model.fit.__doc__
    for kind in (Classifier, Regressor, LanguageModel, StepClassifier):
        assert {"cells", "dropout", "seed", "dtype", "random_inference"} <= inspect.signature(kind).parameters.keys()
    for method in ("evaluate", "predict", "predict_proba"):
        assert {"x", "batch_size", "mask"} <= inspect.signature(getattr(model, method)).parameters.keys()


WORDS = {"embedding": 5, "tied": True}


@pytest.mark.parametrize(
    ("model", "shown", "rows"),
    (
        (
            classifier([Engram(12, 4), GRU(6)], pooling="attention"),
            "Engram(hidden=12, slots=4), GRU(hidden=6), inputs=3, classes=3",
            4,
        ),
        (
            Regressor(Engram(8, trace="sample"), D, 2),
            "Engram(hidden=8, slots=64, trace='sample'), inputs=3, outputs=2",
            3,
        ),
        (StepClassifier(LSTM(4), D, C, 2), "LSTM(hidden=4), inputs=3, classes=3", 3),
        (LanguageModel([RNN(4), GRU(5)], 9, **WORDS), "RNN(hidden=4), GRU(hidden=5), inputs=5, vocabulary_size=9", 4),
        (LanguageModel(RNN(4), 9, embedding=None), "RNN(hidden=4), inputs=1, vocabulary_size=9", 3),
    ),
)
def test_a_model_says_what_it_is(model, shown, rows):
    """Instead of <enn_np.models.Classifier object at 0x7f...>."""
    assert repr(model) == f"{type(model).__name__}({shown}): {model.size:,} parameters, float32"
    first, *lines, last = model.summary().splitlines()
    assert first.split() == ["layer", "output", "parameters"] and len(lines) == rows
    assert all(len(line) <= 60 for line in (first, *lines, last))
    counts = [int(line.split()[-1].replace(",", "")) for line in (*lines, last)]
    assert sum(counts[:-1]) == counts[-1] == model.size
    assert repr(model.summary()) == model.summary() and isinstance(model.summary(), str)
    for cell in model.cells:
        assert f"(n, T, {cell.hidden})" in model.summary()


def test_a_summary_fits_whatever_the_names():
    model = classifier(type("AnExceedinglyLongNameOfACellThatFitsNowhere", (GRU,), {})(1000))
    assert max(map(len, model.summary().splitlines())) <= 60
    assert "(n, T, 1000)" in model.summary() and "AnExceedinglyLong" in model.summary()


def test_modules_are_there_when_they_are_asked_for():
    """`import enn_np; enn_np.gradcheck.check(...)`, as the README writes it, in a fresh process."""
    code = "import enn_np; enn_np.gradcheck.check; enn_np.datasets.MinMax; print('look' in dir(enn_np), enn_np.data)"
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(exec, (code,))
    for name in ("oracle", "__main__", "_hidden", "datasetz"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(enn_np, name)
    assert {"data", "gradcheck", "look", "Engram", "register"} <= set(dir(enn_np))


def test_the_published_cell_is_named_and_its_inference_is_drawn():
    """The default is the paper's; what `published` says must stay so, whatever becomes of the default."""
    cell = Engram.published(8, 4, retrieval="sparsemax")
    assert cell == Engram(8, 4, retrieval="sparsemax", trace="batch", trace_noise=0.001, initial_scale=0.01)
    x = sequences(6)[0]
    plain, noisy = (classifier(Engram.published(8, 4), random_inference=noise) for noise in (False, True))
    assert (plain.predict_outputs(x) != noisy.predict_outputs(x)).any()
    assert (Path(enn_np.__file__).parent / "py.typed").is_file()


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
    "missing array": (lambda h, a: (h, without(a, "0.M")), "0.M is missing"),
    "unknown array": (lambda h, a: (h, {**a, "0.X": a["0.M"]}), "0.X is not part of this model"),
    "wrong shape": (
        lambda h, a: (h, {**a, "0.M": a["0.M"][:2]}),
        r"0.M should be float32 \(4, 16\), is float32 \(2, 16\)",
    ),
    "wrong dtype": (lambda h, a: (h, {**a, "head.b": a["head.b"].astype(float)}), "head.b should be float32"),
    "newer format": (lambda h, a: ({**h, "format": 2}, a), "expected an enn_np file of format 1"),
    "no format": (lambda h, a: (without(h, "format"), a), "expected an enn_np file of format 1"),
    "header of another kind": (lambda h, a: ([h], a), "expected an enn_np file of format 1"),
    "unknown model": (lambda h, a: ({**h, "model": "oracle"}, a), "model: expected one of .*'oracle'"),
    "unknown cell": (lambda h, a: ({**h, "cells": [{"kind": "brain"}]}, a), "cell: expected one of .*'brain'"),
    "unknown switch": (lambda h, a: ({**h, "cells": [{"kind": "gru", "hidden": 2, "x": 1}]}, a), "GRU: .*'x'"),
    "no cells": (lambda h, a: ({**h, "cells": []}, a), "cells: expected a cell"),
    "cells of another kind": (lambda h, a: ({**h, "cells": 7}, a), "configuration does not fit"),
    "bad hyper-parameter": (lambda h, a: ({**h, "dropout": 7}, a), "dropout: .*7"),
    "no sizes": (lambda h, a: (without(h, "inputs"), a), "Classifier: .*inputs"),
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


def test_to_device_cpu_is_the_same_model():
    model = classifier()
    assert model.to_device("cpu") is model
    with pytest.raises(ValueError, match="device"):
        model.to_device("gpu")


def test_layer_parameters_carry_the_cells_own_names():
    """Layer 1 of eleven layers must not get those of layer 10."""
    model = classifier([RNN(2)] * 11)
    assert model.layer_params(1).keys() == model.layer_params(10).keys() == {"W_x", "W_h", "b"}
    assert model.layer_params(1)["W_x"] is model.params["1.W_x"]


def test_one_cell_is_a_list_of_one():
    assert same_to_the_bit(classifier(GRU(6)).params, classifier([GRU(6)]).params)
    assert isinstance(classifier(), Model)


def test_data_that_were_checked_are_used_as_they_are():
    """Checking must not copy a large data set."""
    model = classifier()
    x, y = sequences()
    checked_x, checked_y, mask = model.check_data(x, y)
    assert checked_x is x and checked_y is y and mask is None


def test_predictions_of_digits_have_the_published_shapes():
    images = digits(7, 1).x_train
    model = table.network("mnist/sound", "engram")
    assert model.predict_proba((images / 255).astype(np.float32)).shape == (7, 10)


def test_training_forward_does_not_touch_parameters():
    """Layers get views: an in-place operation on one would train behind the optimizer's back."""
    model = randomise(classifier(STACKS["mixed"], pooling="attention"))
    before = copied(model.params)
    x, y = sequences(8)
    model.loss_and_grads(model.time_major(x), y, np.random.default_rng(0), model.time_major(padding(8)))
    model.predict(x)
    assert same_to_the_bit(model.params, before)

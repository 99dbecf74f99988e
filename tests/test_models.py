"""Whole models: gradients from loss to every parameter, sizes, prediction, dropout, and what they say of themselves."""

import inspect
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import seeds, zeros
from tiny import (
    EACH_ALONE,
    KINDS,
    POOLINGS,
    STACKS,
    C,
    D,
    classifier,
    copied,
    digits,
    every_kind,
    every_pooling,
    every_stack,
    masked_or_not,
    padding,
    randomise,
    same_to_the_bit,
    sequences,
)

import enn_np
from enn_np import GRU, LSTM, RNN, Classifier, Engram, LanguageModel, Model, Regressor, StepClassifier, fit_fresh
from enn_np.gradcheck import TOLERANCE, Kink, compare
from enn_np.lab import table

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
    """Catches what one batch leaves in a model for the next."""
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


def test_predictions_are_shaped_as_targets_that_were_drawn():
    """(n, 1) against y (n,) would broadcast to (n, n)."""
    model, (x, _) = Regressor(GRU(4), D), sequences(9)
    fit_fresh(model, lambda rng, step: (x, np.ones(9, np.float32)), [1], verbose=0)
    assert model.predict(x).shape == (9,)


def test_targets_are_no_pixels():
    """An age as uint8 is refused like a pixel, or divided by 255."""
    x, _ = sequences(4)
    ages = np.array([20, 70, 33, 255], np.uint8)
    models = [Regressor(GRU(4), D) for _ in range(2)]
    losses = [each.fit(x, y, epochs=1, verbose=0)["loss"] for each, y in zip(models, (ages, ages * 1.0), strict=True)]
    assert losses[0] == losses[1] and losses[0][0] > 1_000


def test_no_dtype_is_not_float64():
    with pytest.raises(ValueError, match=r"^dtype: .*None"):
        classifier((RNN(4),), dtype=None)


def test_a_mask_that_is_turned_round_is_refused():
    """A classifier would learn its head's bias alone, and say nothing."""
    x, y = sequences(6)
    with pytest.raises(ValueError, match=r"^mask: expected True at real steps, got only False; ~mask turns it round"):
        classifier((RNN(4),)).fit(x, y, mask=np.zeros(x.shape[:2], bool), verbose=0)
    with pytest.raises(ValueError, match=r"^validation mask: .*only False"):
        classifier((RNN(4),)).fit(x, y, validation_data=(x, y, np.zeros(x.shape[:2], bool)), verbose=0)


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
    ("model", "shown"),
    (
        (
            classifier([Engram(12, 4), GRU(6)], pooling="attention"),
            "Engram(hidden=12, slots=4), GRU(hidden=6), inputs=3, classes=3",
        ),
        (Regressor(Engram(8, trace="sample"), D, 2), "Engram(hidden=8, slots=64, trace='sample'), inputs=3, outputs=2"),
        (StepClassifier(LSTM(4), D, C, 2), "LSTM(hidden=4), inputs=3, classes=3"),
        (LanguageModel([RNN(4), GRU(5)], 9, **WORDS), "RNN(hidden=4), GRU(hidden=5), inputs=5, vocabulary_size=9"),
        (LanguageModel(RNN(4), 9, embedding=None), "RNN(hidden=4), inputs=1, vocabulary_size=9"),
    ),
)
def test_a_model_says_what_it_is(model, shown):
    """Instead of <enn_np.models.Classifier object at 0x7f...>."""
    assert repr(model) == f"{type(model).__name__}({shown}): {model.size:,} parameters, float32"


def test_modules_are_there_when_they_are_asked_for():
    """`import enn_np; enn_np.gradcheck.check(...)`, as the README writes it, in a fresh process."""
    code = "import enn_np; enn_np.gradcheck.check; enn_np.images.MinMax, enn_np.plots.trace_heatmap; print(enn_np.data)"
    code += "; enn_np.data.tasks.copy_task, enn_np.lab.stats.holm, enn_np.look.plots"
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(exec, (code,))
    for name in ("oracle", "__main__", "_hidden", "datasetz"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(enn_np, name)
    assert {"data", "gradcheck", "look", "Engram", "register"} <= set(dir(enn_np))


def test_the_default_is_the_papers_cell_and_inference_is_drawn_if_asked():
    """A default that moves away from the paper's numbers."""
    cell = Engram(8, 4, retrieval="sparsemax")
    assert cell == Engram(8, 4, retrieval="sparsemax", trace="batch", trace_noise=0.001, initial_scale=0.01)
    x = sequences(6)[0]
    plain, noisy = (classifier(Engram(8, 4), random_inference=noise) for noise in (False, True))
    assert (plain.predict_outputs(x) != noisy.predict_outputs(x)).any()
    assert (Path(enn_np.__file__).parent / "py.typed").is_file()


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

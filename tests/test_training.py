"""The training loop: repeatable, learning, its history, seeds, validation, data and fresh samples."""

import sys
import tracemalloc

import numpy as np
import pytest
from tiny import KINDS, C, D, T, classifier, padding, same_to_the_bit, sequences

from enn_np import GRU, LSTM, SGD, Adam, Callback, Engram, LanguageModel, Regressor, fit_fresh, load
from enn_np.train import BLAS_THREADS, add, draws

every_kind = pytest.mark.parametrize("kind", KINDS)
WIDE_STACKS = {"gru": (GRU(8), GRU(6)), "engram": (Engram(16, 4), Engram(12, 4)), "mixed": (LSTM(8), Engram(12, 4))}


# Repeatable


@every_kind
@pytest.mark.parametrize("seed", (0, 1))
def test_the_same_seed_gives_the_same_weights_to_the_bit(kind, seed):
    """A draw that does not come from the given seeds, or memory that is read before it is written."""
    x, y = sequences()
    runs = [classifier(KINDS[kind], seed=seed) for _ in range(2)]
    histories = [model.fit(x, y, epochs=3, batch_size=10, validation_split=0.25, seed=seed) for model in runs]
    assert same_to_the_bit(runs[0].params, runs[1].params)
    for history in histories:
        del history["seconds"]
    assert histories[0] == histories[1]


@every_kind
def test_another_seed_of_fit_gives_other_weights(kind):
    """The seed of `fit` decides the order of the batches, even where nothing else is drawn."""
    x, y = sequences()
    one, other = (classifier(KINDS[kind], dropout=0.0) for _ in range(2))
    one.fit(x, y, epochs=1, batch_size=10, seed=0)
    other.fit(x, y, epochs=1, batch_size=10, seed=1)
    assert not any((one.params[name] == other.params[name]).all() for name in one.params)


NORMS = ("gradient_norm", "gradient_norm_99")


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    """Shuffled once is not shuffled: the same batches every epoch."""
    seen, model = [], classifier()
    original = model.loss_and_grads
    monkeypatch.setattr(model, "loss_and_grads", lambda x, y, *rest: seen.append(y) or original(x, y, *rest))
    x, _ = sequences(12)
    y = np.arange(12) % C
    model.fit(x, y, epochs=3, batch_size=12)
    assert len({tuple(order) for order in seen}) == 3
    assert all((np.bincount(order) == 4).all() for order in seen)


# Learning


@every_kind
def test_loss_falls_on_a_learnable_task(kind):
    """A gradient with the wrong sign, an optimizer that does nothing."""
    x, y = sequences(96)
    model = classifier(KINDS[kind], dropout=0.1)
    before = model.evaluate(x, y)
    history = model.fit(x, y, epochs=20, batch_size=16, optimizer=Adam(0.02))
    after = model.evaluate(x, y)
    assert after["loss"] < 0.5 * before["loss"] and after["accuracy"] > 0.85
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > history["accuracy"][0]


@pytest.mark.parametrize("stack", WIDE_STACKS)
@pytest.mark.parametrize("pooling", ("last", "mean", "attention"))
def test_stacks_learn_with_padding(stack, pooling):
    """Any cells, any pooling, padded: the loss falls."""
    x, y = sequences(48)
    model = classifier(WIDE_STACKS[stack], pooling=pooling, dropout=0.0)
    mask = padding(48)
    before = model.evaluate(x, y, mask=mask)["loss"]
    model.fit(x, y, epochs=12, batch_size=16, optimizer=Adam(0.03), mask=mask)
    assert model.evaluate(x, y, mask=mask)["loss"] < 0.9 * before


@pytest.mark.parametrize("outputs", (1, 2))
def test_a_regressor_learns(outputs):
    x, _ = sequences(96)
    y = x.mean(1)[:, :outputs]
    model = Regressor(KINDS["gru"], 3, outputs)
    before = model.evaluate(x, y)
    history = model.fit(x, y[:, 0] if outputs == 1 else y, epochs=30, batch_size=16, optimizer=Adam(0.02))
    after = model.evaluate(x, y)
    assert after["loss"] < 0.3 * before["loss"] and after["mae"] < 0.6 * before["mae"]
    assert history.keys() == {"loss", "mae", "learning_rate", "seconds", *NORMS}


@pytest.mark.parametrize("settings", ({"entropy": 5.0}, {"l1": 2.0}, {"entropy": 1.0, "l1": 0.5, "trace": "sample"}))
def test_the_penalty_is_a_number_of_its_own_beside_the_loss(settings):
    """One definition of the loss, the data's, for training and validation: 7.55 stood against 0.96."""
    x, y = sequences()
    cell = Engram(4, 4, trace_noise=0, **settings)
    still = {"epochs": 1, "batch_size": 16, "optimizer": SGD(1e-9), "validation_data": (x, y), "verbose": 0}
    history = classifier((cell, GRU(4)), dropout=0.0).fit(x, y, **still)
    assert history["loss"][0] == pytest.approx(history["val_loss"][0], rel=0.05)  # but for the initial states drawn
    scores = {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert {*history} == {*scores, "penalty", "learning_rate", "seconds", *NORMS}
    high = settings.get("l1", 0) + settings.get("entropy", 0) * np.log(4)  # |a| sums to 1, the entropy is at most log N
    assert 0.5 * high < history["penalty"][0] < 1.01 * high


def test_the_penalty_still_trains():
    """Reported elsewhere is not left out of the gradient: retrieval gets sharper."""
    x, y = sequences()
    penalties = {}
    for entropy in (1e-9, 5.0):
        model = classifier(Engram(4, 4, entropy=entropy, trace_noise=0, temperature=1.0), dropout=0.0)
        history = model.fit(x, y, epochs=60, batch_size=16, optimizer=Adam(0.02), verbose=0)
        penalties[entropy] = history["penalty"][-1] / entropy
    assert penalties[5.0] < 0.5 * penalties[1e-9]


# History


def test_history_has_one_number_per_epoch():
    x, y = sequences()
    history = classifier().fit(x, y, epochs=4, validation_split=0.25, batch_size=10)
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds", *NORMS}
    assert history.keys() == names and {len(values) for values in history.values()} == {4}
    assert all(isinstance(value, float) for values in history.values() for value in values)
    assert history.stopped == "finished" and history.best_epoch == int(np.argmin(history["val_loss"]))


def test_history_without_validation_goes_by_the_training_loss():
    x, y = sequences()
    history = classifier().fit(x, y, epochs=3)
    assert history.keys() == {"loss", "accuracy", "learning_rate", "seconds", *NORMS}
    assert history.best_epoch == int(np.argmin(history["loss"]))


@pytest.mark.parametrize("limit", [None, 1e-6, 1e6])
def test_history_tells_how_long_the_gradients_were(limit):
    """Memory tasks that were trained without clipping, and nobody saw it."""
    x, y = sequences(40)
    model, norms = classifier(dropout=0.0), []
    optimizer = SGD(1e-3, global_clip_norm=limit)
    clip = optimizer.clip

    def noted(grads):
        norms.append(np.sqrt(sum(float((g * g).sum()) for g in grads.values())))
        clip(grads)

    optimizer.clip = noted
    history = model.fit(x, y, epochs=1, batch_size=4, optimizer=optimizer)
    assert history["gradient_norm"][0] == pytest.approx(np.median(norms), rel=1e-5)
    assert history["gradient_norm_99"][0] == pytest.approx(np.percentile(norms, 99), rel=1e-5)
    assert history.get("clipped") == (None if limit is None else [1.0 if limit < 1 else 0.0])


def test_frozen_parameters_have_no_part_in_the_norms():
    """A norm of gradients that nobody uses, and "clipped" steps that nothing clipped."""
    x, y = sequences(40)
    model = classifier(dropout=0.0)
    frozen = [name for name in model.params if name != "head.b"]
    history = model.fit(x, y, epochs=1, optimizer=SGD(1e-9, frozen=frozen, global_clip_norm=1.0), verbose=0)
    *_, grads = model.loss_and_grads(model.time_major(x), y, None)
    assert history["gradient_norm"][0] == pytest.approx(np.linalg.norm(grads["head.b"]), rel=1e-3)
    assert history["clipped"] == [0.0]


def test_training_numbers_are_means_over_all_sequences():
    """The odd last batch must not weigh as much as a full one. The rate is too small to move anything."""
    x, y = sequences(50)
    model = classifier(dropout=0.0)
    history = model.fit(x, y, epochs=1, batch_size=16, optimizer=SGD(1e-12))
    scores = model.evaluate(x, y)
    assert history["loss"][0] == pytest.approx(scores["loss"], rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(scores["accuracy"])


@pytest.mark.parametrize("batch_size", (1, 7, 48, 1000))
def test_every_sequence_is_seen_once_an_epoch(monkeypatch, batch_size):
    """An odd last batch that is dropped, or a batch larger than the data that fails."""
    sizes, model = [], classifier(KINDS["rnn"])
    original = model.loss_and_grads
    monkeypatch.setattr(model, "loss_and_grads", lambda x, *rest: sizes.append(x.shape[1]) or original(x, *rest))
    x, y = sequences(48)
    model.fit(x, y, epochs=1, batch_size=batch_size)
    assert sum(sizes) == 48 and max(sizes) == min(batch_size, 48)
    assert all(size == batch_size for size in sizes[:-1])


# Seeds


def test_no_two_draws_of_a_seed_share_their_numbers(monkeypatch):
    """Initial values, states and noise of training, those of random inference and sampled words all began with the same
    generator: h_0 was correlated with W_z by 0.68. Also over the seeds of a loop."""
    first, ids = {}, np.arange(60) % 9

    def seen(*given, **named):
        raise Drawn(given[2])

    for seed in (0, 1, 2):
        first["initial values", seed] = np.random.default_rng(seed).random(4)
        model = LanguageModel(GRU(4), 9, 4, seed=seed, random_inference=True)
        monkeypatch.setattr(model, "loss_and_grads", seen)
        monkeypatch.setattr(model, "learn", seen)
        settings = {"epochs": 1, "batch_size": 2, "seed": seed, "verbose": 0}
        with pytest.raises(Drawn) as caught:
            model.fit(ids.reshape(6, 10), ids.reshape(6, 10), **settings)
        first["fit", seed] = caught.value.args[0].random(4)
        with pytest.raises(Drawn) as caught:
            model.fit_stream(ids, **settings)
        first["fit_stream", seed] = caught.value.args[0].random(4)
        first["inference", seed] = model._inference_rng().random(4)
        with monkeypatch.context() as patch, pytest.raises(Drawn) as caught:
            patch.setattr("enn_np.train.draws", lambda *given: Asked(draws(*given).bit_generator))
            model.sample(ids[:2], 1)
        first["sample", seed] = caught.value.args[0].random(4)
    numbers = np.concatenate([*first.values()])
    assert len(np.unique(numbers)) == len(numbers) == 15 * 4


class Drawn(Exception):
    """The generator that a batch was handed."""


class Asked(np.random.Generator):
    """A generator that is seen when a word is drawn."""

    def choice(self, *given, **named):
        raise Drawn(self)


@pytest.mark.parametrize("kind", ("engram", "binding"))
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_initial_states_are_no_copies_of_the_weights(kind, seed):
    x, y = sequences(16)
    model, states = classifier(KINDS[kind], seed=seed, random_inference=True), []
    weights = np.concatenate([value.ravel() for value in model.params.values() if value.std()])
    original = model.run_cells

    def watched(*given, **named):
        found = original(*given, **named)
        states.append(np.asarray(found[2][0].states.h[0]).ravel())
        return found

    model.run_cells = watched
    model.fit(x, y, epochs=1, batch_size=16, seed=seed, verbose=0)
    drawn = states[0]
    if drawn.std():
        for start in range(len(weights) - len(drawn)):
            assert abs(np.corrcoef(drawn, weights[start : start + len(drawn)])[0, 1]) < 0.6


# Validation


def test_validation_share_is_the_end_of_the_data_as_in_keras(monkeypatch):
    """floor(n (1 - share)) to train on, the rest, unshuffled, to validate on."""
    seen, model = [], classifier()
    original = model.evaluate
    monkeypatch.setattr(model, "evaluate", lambda x, *rest: seen.append(x) or original(x, *rest))
    x, y = sequences(10)
    model.fit(x, y, epochs=1, validation_split=0.25)
    np.testing.assert_array_equal(seen[0], x[7:])


@pytest.mark.parametrize("masked", (False, True))
def test_validation_pair_is_what_evaluate_says(masked):
    """Validation after the epoch's last update, without dropout, with its own mask."""
    x, y = sequences()
    held, mask = sequences(20, seed=5), (padding(20),) if masked else ()
    model = classifier(dropout=0.5)
    history = model.fit(x, y, epochs=2, validation_data=(*held, *mask))
    scores = model.evaluate(*held, mask=mask[0] if masked else None)
    assert (history["val_loss"][-1], history["val_accuracy"][-1]) == (scores["loss"], scores["accuracy"])


def test_validation_share_takes_its_mask_along(monkeypatch):
    seen, model = [], classifier()
    original = model.evaluate
    monkeypatch.setattr(model, "evaluate", lambda x, y, size, mask: seen.append(mask) or original(x, y, size, mask))
    x, y = sequences(20)
    mask = padding(20)
    model.fit(x, y, epochs=1, validation_split=0.5, mask=mask)
    np.testing.assert_array_equal(seen[0], mask[10:])


def test_validation_does_not_change_training():
    """Validation must draw nothing from the generator of the training, not even with random inference."""
    x, y = sequences()
    runs = [classifier(KINDS["engram"], random_inference=True) for _ in range(2)]
    for model, validation in zip(runs, (None, sequences(9, seed=3)), strict=True):
        model.fit(x, y, epochs=2, validation_data=validation)
    assert same_to_the_bit(runs[0].params, runs[1].params)


# The data set


@pytest.mark.parametrize("validation", (0, 0.25))
def test_the_data_set_is_neither_changed_nor_copied(validation):
    """Shuffling or scaling in place would spoil the caller's arrays; a copy would double the memory."""
    x, y = sequences(20_000)
    mask = np.ones(x.shape[:2], bool)
    before = x.copy(), y.copy()
    for array in (x, y, mask):
        array.flags.writeable = False
    model = classifier(KINDS["rnn"])
    tracemalloc.start()
    model.fit(x, y, epochs=1, batch_size=500, validation_split=validation, mask=mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes, f"{peak} bytes for a data set of {x.nbytes}"
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_lists_and_other_integers_serve_as_labels():
    x, y = sequences()
    runs = [classifier() for _ in range(3)]
    for model, labels in zip(runs, (y, y.tolist(), y.astype(np.uint8)), strict=True):
        model.fit(x, labels, epochs=1)
    assert same_to_the_bit(runs[0].params, runs[1].params) and same_to_the_bit(runs[0].params, runs[2].params)


@pytest.mark.parametrize("dtype", (np.float64, np.float16, np.int64, list))
def test_numbers_of_any_kind_are_made_the_models_dtype(dtype):
    """NumPy makes float64 and int64; only the cells are strict."""
    x, y = sequences()
    x = np.round(4 * x)
    given = x.tolist() if dtype is list else x.astype(dtype)
    one, other = classifier(), classifier()
    assert one.fit(x, y, epochs=1)["loss"] == other.fit(given, y, epochs=1)["loss"]
    assert one.evaluate(x, y) == other.evaluate(given, y) and (one.predict(x) == other.predict(given)).all()


def test_a_refused_fit_changes_nothing():
    """A regressor that was refused other targets answered in their shape."""
    model, (x, _) = Regressor(GRU(3), D), sequences()
    with pytest.raises(ValueError, match=r"^epochs: "):
        model.fit(x, x.mean((1, 2)), epochs=0)
    assert model.predict(x).shape == (48, 1)


def test_a_part_to_train_on_that_is_all_padding_is_refused():
    """Only the head's bias would learn."""
    (x, y), mask = sequences(), padding(48)
    mask[:24] = False
    with pytest.raises(ValueError, match=r"^mask: .*part to train on"):
        classifier().fit(x, y, mask=mask, validation_split=0.5, epochs=1)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_predictions_of_a_regressor_have_the_shape_of_its_targets(shape, tmp_path):
    x, _ = sequences()
    y = x.mean((1, 2)) if shape == () else x.mean(1)[:, : shape[0]]
    model = Regressor(GRU(3), D, *shape)
    assert model.predict(x).shape == (48, *(shape or (1,)))
    model.fit(x, y.astype(np.float64), epochs=1, checkpoint=tmp_path / "run.npz")
    assert model.predict(x).shape == y.shape
    assert load(model.save(tmp_path / "model.npz")).predict(x).shape == y.shape
    assert load(tmp_path / "run.npz").predict(x).shape == y.shape
    assert Regressor(GRU(3), D, None).predict(x).shape == (48,)


def test_validation_data_is_stronger_than_the_split_as_in_keras():
    x, y = sequences()
    one, other = classifier(), classifier()
    given = {"epochs": 1, "validation_data": (x[:9], y[:9])}
    assert one.fit(x, y, **given)["val_loss"] == other.fit(x, y, validation_split=0.5, **given)["val_loss"]


# Fresh samples


def drawn(rng, step):
    """Eight sequences, and a few more at every other step."""
    y = rng.integers(0, C, 8 + step % 2)
    return rng.standard_normal((len(y), T, D), np.float32) + np.eye(C, D, dtype=np.float32)[y][:, None], y


def test_fresh_samples_are_trained_on_as_by_hand():
    """The order of draws: samples, then states, noise and dropout, from generators of their own."""
    model, hand = (classifier(Engram(6, 4, trace="sample"), dropout=0.2) for _ in range(2))
    done, optimizer, rngs = [], Adam(0.01), [np.random.default_rng(seed) for seed in (5, 6)]

    def validate(steps):
        done.append(steps)
        return {"loss": 1 / steps, "accuracy": 0.5}

    means = []
    for steps in (range(3), range(3, 5)):
        losses, sizes = [], []
        for step in steps:
            x, y = drawn(rngs[0], step)
            numbers, grads = hand.loss_and_grads(hand.time_major(x), y, rngs[1])
            optimizer.update(hand.params, grads)
            losses.append(numbers["loss"])
            sizes.append(len(x))
        means.append(np.average(losses, weights=sizes))
    rngs = tuple(np.random.default_rng(seed) for seed in (5, 6))
    history = fit_fresh(model, drawn, [3, 2], validate=validate, rngs=rngs, optimizer=Adam(0.01), verbose=0)
    assert same_to_the_bit(model.params, hand.params) and history["loss"] == pytest.approx(means, rel=1e-6)
    assert done == [3, 5] and history["val_loss"] == [1 / 3, 1 / 5] and history.best_epoch == 1
    with pytest.raises(TypeError, match=r"^steps: expected the number of batches of each epoch, .* got 250"):
        fit_fresh(model, drawn, 250)
    fit_fresh(hand, lambda rng, step: [*drawn(rng, step)], [1], verbose=0)  # a list does, too
    with pytest.raises(TypeError, match=r"^draw: expected it to return x, y or x, y, mask, got array"):
        fit_fresh(model, lambda rng, step: drawn(rng, step)[0], [1])
    with pytest.raises(TypeError, match=r"^y: expected an array, got None"):
        fit_fresh(model, lambda rng, step: (drawn(rng, step)[0], None), [1])
    with pytest.raises(TypeError, match=r"^draw, validate: expected functions, got .* and \(1, 2\)"):
        fit_fresh(model, drawn, [1], validate=(1, 2))
    with pytest.raises(TypeError, match=r"^validate: expected a function that returns a dict such as .* got 0.5"):
        fit_fresh(model, drawn, [1], validate=lambda done: 0.5, verbose=0)
    with pytest.raises(TypeError, match=r"^x: expected float32, got uint8"):
        fit_fresh(model, lambda rng, step: (np.zeros((2, T, D), np.uint8), np.zeros(2, int)), [1])


# BLAS threads


@pytest.mark.parametrize("variable", (None, *BLAS_THREADS))
def test_one_blas_thread_unless_the_user_has_set_a_number(variable, monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    for name in BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "2")

    def threads():
        return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}

    class Count(Callback):
        def on_epoch_end(self, training, logs):
            seen.append(threads())

    x, y = sequences()
    seen = []
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        classifier().fit(x, y, epochs=1, callbacks=[Count()], verbose=0)
        assert threads() == before, "not given back"
    assert seen == [before if variable else {1}]


def test_without_threadpoolctl_training_goes_on(monkeypatch):
    for name in BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    x, y = sequences()
    assert classifier().fit(x, y, epochs=1, verbose=0).stopped == "finished"


def test_sums_over_many_batches_keep_their_digits():
    """Catches a float32 sum: of 150,000 batches it was off by 0.14%."""
    totals, batch = {}, {"loss": np.float32(0.1), "mae": np.float32(0.3), "accuracy": np.int64(1)}
    for _ in range(100_000):
        add(totals, batch, 1)
    assert totals["loss"] == pytest.approx(1e5 * float(np.float32(0.1)), rel=1e-9)
    assert totals["mae"] == pytest.approx(1e5 * float(np.float32(0.3)), rel=1e-9) and totals["accuracy"] == 100_000

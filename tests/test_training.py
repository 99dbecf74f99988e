"""The training loop and its callbacks: repeatable, Keras' rules to the epoch, and nothing lost on Ctrl-C."""

import contextlib
import errno
import io
import os
import subprocess
import sys
import tracemalloc
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tqdm.auto
from tiny import KINDS, C, D, T, classifier, copied, padding, same_to_the_bit, sequences

from enn_np import (
    GRU,
    LSTM,
    SGD,
    Adam,
    Callback,
    EarlyStopping,
    Engram,
    LanguageModel,
    Model,
    ReduceOnPlateau,
    Regressor,
    fit,
    fit_fresh,
    load,
)
from enn_np.train import BLAS_THREADS, draws
from enn_np.train.watch import Bar, cost

every_kind = pytest.mark.parametrize("kind", KINDS)
WIDE_STACKS = {"gru": (GRU(8), GRU(6)), "engram": (Engram(16, 4), Engram(12, 4)), "mixed": (LSTM(8), Engram(12, 4))}


class Scripted:
    """A model whose validation losses are given and whose only weight counts the epochs."""

    metrics, cells, tapes = ("accuracy",), (), ()
    counts, scores = Model.counts, Model.scores

    def __init__(self, val_losses, val_accuracies=None):
        self.params = {"epoch": np.zeros(1), "head.W": np.zeros(1)}
        self.val_losses, self.val_accuracies = val_losses, val_accuracies or [0.0] * len(val_losses)
        self.epoch = 0

    def check_data(self, x, y, mask=None, names=None):
        return x, y, mask

    def time_major(self, batch):
        return batch

    def loss_and_grads(self, x, y, rng, mask=None):
        self.epoch += 1
        self.params["epoch"][...] = self.epoch
        return {"loss": np.float64(1 / self.epoch), "accuracy": len(x)}, {}

    def evaluate(self, x, y, batch_size, mask):
        scores = self.val_losses[self.epoch - 1], self.val_accuracies[self.epoch - 1]
        return dict(zip(("loss", "accuracy"), scores, strict=True))

    def run(self, *callbacks, epochs=None, rate=1.0, validation=True):
        """Train on one batch an epoch; returns the history and the learning rate at the end."""
        x, y = np.zeros((2, 1, 1)), np.zeros(2)
        optimizer = SGD(rate)
        history = fit(
            self,
            x,
            y,
            epochs=epochs or len(self.val_losses),
            validation_data=(x, y) if validation else None,
            optimizer=optimizer,
            callbacks=callbacks,
            verbose=0,
        )
        return history, optimizer.learning_rate


class Record(Callback):
    """Writes down when it was called."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def on_start(self, training):
        self.calls.append((self.name, "start"))

    def on_epoch_end(self, training, logs):
        self.calls.append((self.name, len(training.history["loss"])))

    def on_end(self, training):
        self.calls.append((self.name, "end"))


class Interrupt(Callback):
    """Ctrl-C while the callbacks of an epoch run."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, training, logs):
        if len(training.history["loss"]) == self.epoch:
            raise KeyboardInterrupt


# Repeatable


@every_kind
@pytest.mark.parametrize("seed", (0, 1))
def test_the_same_seed_gives_the_same_weights_to_the_bit(kind, seed):
    """A draw that does not come from the given seeds, or a workspace that is read before it is written."""
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


# Early stopping, as keras.callbacks.EarlyStopping


def test_early_stopping_counts_patience_as_keras_and_restores_the_best():
    """Best at epoch 3; epochs 4, 5 and 6 do not improve, so training ends after epoch 6 with the weights of 3."""
    model = Scripted([5, 4, 3, 3, 3.5, 3.1, 1, 1])
    history, _ = model.run(EarlyStopping(patience=3))
    assert history["val_loss"] == [5, 4, 3, 3, 3.5, 3.1]
    assert history.stopped == "early" and history.best_epoch == 2 and model.params["epoch"] == 3


def test_an_improvement_starts_the_count_anew():
    history, _ = Scripted([5, 6, 4, 6, 3, 6, 6, 0]).run(EarlyStopping(patience=2))
    assert len(history["loss"]) == 7


@pytest.mark.parametrize("patience", (0, 1))
def test_no_patience_stops_at_the_first_epoch_without_improvement(patience):
    history, _ = Scripted([5, 4, 4, 0]).run(EarlyStopping(patience=patience))
    assert len(history["loss"]) == 3


def test_min_delta_is_the_least_improvement_that_counts():
    history, _ = Scripted([5, 4.95, 4.92, 4.8, 4.5, 4.45, 4.42, 0]).run(EarlyStopping(patience=2, min_delta=0.1))
    assert history["val_loss"] == [5, 4.95, 4.92]


def test_best_weights_come_back_after_the_last_epoch_too():
    """As Keras does: the patience need not run out."""
    model = Scripted([3, 1, 2])
    history, _ = model.run(EarlyStopping(patience=3))
    assert history.stopped == "finished" and model.params["epoch"] == 2


def test_weights_stay_without_restore_best():
    model = Scripted([3, 1, 2, 2])
    model.run(EarlyStopping(patience=2, restore_best=False))
    assert model.params["epoch"] == 4


def test_without_early_stopping_the_last_weights_stay():
    """`fit` alone must not surprise with the weights of another epoch."""
    model = Scripted([3, 1, 2])
    history, _ = model.run()
    assert model.params["epoch"] == 3 and history.best_epoch == 1


def test_accuracy_improves_by_rising():
    """Taken for a loss, a rising accuracy would stop training and restore the worst weights."""
    model = Scripted([5, 4, 3, 2, 1], val_accuracies=[0.1, 0.5, 0.9, 0.8, 0.7])
    history, _ = model.run(EarlyStopping("val_accuracy", patience=2))
    assert len(history["loss"]) == 5 and model.params["epoch"] == 3 and history.best_epoch == 2


def test_best_weights_are_those_of_the_monitored_number():
    """Monitoring the training loss, which falls to the end, while the validation loss is best at epoch 1."""
    model = Scripted([1, 2, 3])
    history, _ = model.run(EarlyStopping("loss"))
    assert model.params["epoch"] == 3 and history.best_epoch == 2


def test_a_callback_can_serve_again():
    """One EarlyStopping for four models: the second must not be measured by the first one's best."""
    stop, plateau = EarlyStopping(patience=2), ReduceOnPlateau(patience=2)
    Scripted([1, 2, 3, 4]).run(stop, plateau)
    model = Scripted([9, 8, 7, 6])
    history, rate = model.run(stop, plateau)
    assert history.stopped == "finished" and model.params["epoch"] == 4 and rate == 1.0


def test_early_stopping_restores_a_real_model():
    """To the bit, and into the arrays that the layers hold."""
    x, y = sequences(60)
    model = classifier(dropout=0.0)
    arrays, snapshots = dict(model.params), []

    class Snapshot(Callback):
        def on_epoch_end(self, training, logs):
            snapshots.append(copied(training.model.params))

    history = model.fit(
        x, y, epochs=30, validation_split=0.5, optimizer=Adam(0.1), callbacks=[EarlyStopping(patience=2), Snapshot()]
    )
    assert history.stopped == "early" and history.best_epoch == len(history["loss"]) - 3
    assert same_to_the_bit(model.params, snapshots[history.best_epoch])
    assert all(model.params[name] is array for name, array in arrays.items())
    assert model.evaluate(x[30:], y[30:])["loss"] == history["val_loss"][history.best_epoch]


class Scored(Scripted):
    """Its metric is of unknown direction."""

    metrics = ("f1",)

    def loss_and_grads(self, x, y, rng, mask=None):
        metrics, grads = super().loss_and_grads(x, y, rng, mask)
        return {"loss": metrics["loss"], "f1": 0.0}, grads

    def evaluate(self, x, y, batch_size, mask):
        found = super().evaluate(x, y, batch_size, mask)
        return {"loss": found["loss"], "f1": found["accuracy"]}


def test_a_metric_of_unknown_direction_asks_for_the_mode():
    """What did not end in "accuracy" counted as a loss: the worst f1 was the best."""
    for callback in (EarlyStopping("val_f1"), ReduceOnPlateau("val_f1"), EarlyStopping("f1")):
        model = Scored([1, 2])
        with pytest.raises(ValueError, match=r'^mode: expected "min" or "max" for \'(val_)?f1\', got "auto"'):
            model.run(callback)
        assert model.epoch == 0
    scores = [0.1, 0.5, 0.9, 0.8, 0.7, 0.6]
    model = Scored([1, 2, 3, 4, 5, 6], scores)
    history, rate = model.run(
        EarlyStopping("val_f1", mode="max"), ReduceOnPlateau("val_f1", patience=1, factor=0.5, mode="max")
    )
    assert history.best_epoch == 2 and model.params["epoch"] == 3 and rate == 0.125
    model = Scored([1, 2, 3, 4, 5, 6], scores)
    history, _ = model.run(EarlyStopping("val_f1", mode="min", patience=9))
    assert history.best_epoch == 0 and model.params["epoch"] == 1


@pytest.mark.parametrize("mode", ("min", "max", "auto"))
def test_a_mode_is_stronger_than_the_name(mode):
    model = Scripted([2, 3, 1])
    history, _ = model.run(EarlyStopping("val_loss", mode=mode))
    assert history.best_epoch == {"min": 2, "max": 1, "auto": 2}[mode]
    with pytest.raises(ValueError, match=r"^mode: expected one of 'auto', 'min', 'max', got 'down'"):
        EarlyStopping(mode="down")


@pytest.mark.parametrize(
    ("name", "sign"),
    [*((name, 1) for name in ("loss", "perplexity", "bits", "mae", "mse")), ("accuracy", -1)],
)
def test_the_librarys_own_numbers_have_a_direction(name, sign):
    assert cost(name, 2.0) == cost(f"val_{name}", 2.0) == sign * 2.0
    for unknown in (f"in{name}", f"my_{name}", name.upper()):
        with pytest.raises(ValueError, match=r"^mode: "):
            cost(unknown, 2.0)


# Plateau, as keras.callbacks.ReduceLROnPlateau


def test_plateau_halves_the_rate_as_keras():
    """By hand: two epochs without improvement halve it, the count starts anew, 1e-4 or less is no improvement."""
    losses = [5, 4, 4, 3.99995, 4, 4, 3, 3, 3, 3]
    wanted = [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]  # the rate that each epoch was trained with
    history, rate = Scripted(losses).run(ReduceOnPlateau(factor=0.5, patience=2, min_delta=1e-4))
    assert history["learning_rate"] == wanted and rate == 0.125


def test_plateau_stops_at_the_smallest_rate():
    history, _ = Scripted([1] * 6).run(ReduceOnPlateau(factor=0.1, patience=1, min_learning_rate=0.05))
    assert history["learning_rate"] == [1, 1, 0.1, 0.05, 0.05, 0.05]


def test_plateau_never_raises_the_rate():
    """A rate that began below min_learning_rate stays, as in Keras."""
    _, rate = Scripted([1] * 6).run(ReduceOnPlateau(patience=1, min_learning_rate=1e-5), rate=1e-6)
    assert rate == 1e-6


def test_plateau_and_early_stopping_count_side_by_side():
    """The paper's pair, patience 2 and 3: the rate is halved once before training stops."""
    history, rate = Scripted([5, 4, 4, 4, 4, 4]).run(EarlyStopping(), ReduceOnPlateau())
    assert len(history["loss"]) == 5 and rate == 0.5


# Callbacks


def test_callbacks_are_called_in_order():
    calls = []
    Scripted([3, 2]).run(Record(calls, "a"), Record(calls, "b"))
    assert calls == [(name, when) for when in ("start", 1, 2, "end") for name in "ab"]


def test_callbacks_see_the_restored_weights_at_the_end():
    seen = []

    class Look(Callback):
        def on_end(self, training):
            seen.append(training.model.params["epoch"].item())

    Scripted([3, 1, 2]).run(Look(), EarlyStopping())
    assert seen == [2]


def test_a_callback_may_stop_training():
    class Enough(Callback):
        def on_epoch_end(self, training, logs):
            training.stop = logs["val_loss"] < 4

    history, _ = Scripted([5, 4, 3, 2, 1]).run(Enough())
    assert history.stopped == "early" and len(history["loss"]) == 3


@pytest.mark.parametrize("callback", (EarlyStopping, ReduceOnPlateau))
@pytest.mark.parametrize("monitor", ("val_loss", "val_acuracy"))
def test_an_unknown_monitor_is_found_before_any_work(callback, monitor):
    """Not after the first epoch, which may have taken an hour."""
    model = Scripted([1, 2])
    with pytest.raises(
        ValueError, match=rf"^monitor: expected one of 'loss', 'accuracy', got '{monitor}'; .*validation"
    ):
        model.run(callback(monitor), validation=False)
    assert model.epoch == 0


# Ctrl-C


def test_ctrl_c_in_a_callback_keeps_the_best_weights_and_the_history():
    """Without EarlyStopping too: who interrupts wants the best that there is."""
    model, calls = Scripted([3, 1, 2, 5]), []
    history, _ = model.run(Record(calls, "a"), Interrupt(epoch=3))
    assert history.stopped == "interrupted" and history["val_loss"] == [3, 1, 2]
    assert model.params["epoch"] == 2 and calls[-1] == ("a", "end")


def test_ctrl_c_in_the_middle_of_an_epoch_keeps_the_epochs_before(monkeypatch):
    x, y = sequences(48)
    model, batches = classifier(dropout=0.0), []
    original = model.loss_and_grads

    def interrupted(*batch):
        batches.append(copied(model.params))
        if len(batches) == 8:  # the second batch of the third epoch
            raise KeyboardInterrupt
        return original(*batch)

    monkeypatch.setattr(model, "loss_and_grads", interrupted)
    history = model.fit(x, y, epochs=9, batch_size=16, validation_data=(x, y), optimizer=Adam(0.01))
    assert history.stopped == "interrupted" and {len(values) for values in history.values()} == {2}
    assert history.best_epoch == 1
    assert same_to_the_bit(model.params, batches[6]), "not the weights at the end of the second epoch"


def test_ctrl_c_in_the_first_epoch_leaves_a_usable_model(monkeypatch):
    x, y = sequences()
    model = classifier()
    monkeypatch.setattr(model, "loss_and_grads", lambda *batch: (_ for _ in ()).throw(KeyboardInterrupt))
    history = model.fit(x, y, epochs=2)
    assert history == {} and history.stopped == "interrupted" and history.best_epoch is None
    monkeypatch.undo()
    assert model.fit(x, y, epochs=1).stopped == "finished"


# Divergence


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_ends_with_a_clear_word_and_the_best_weights():
    """NaN for twenty more epochs teaches nobody anything, and NaN weights are no result."""
    model = Scripted([3, 2, float("nan"), 1])
    with pytest.raises(ValueError, match=r"^learning_rate: at 1 val_loss became nan in epoch 3; lower it"):
        model.run()
    assert model.params["epoch"] == 2
    x, y = sequences()
    with pytest.raises(ValueError, match=r"^learning_rate: at 1e\+30 .*epoch 1; lower it"):
        classifier(KINDS["engram"]).fit(x, y, batch_size=8, optimizer=SGD(1e30))


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
    with pytest.raises(TypeError, match=r"^x: expected float32, got uint8"):
        fit_fresh(model, lambda rng, step: (np.zeros((2, T, D), np.uint8), np.zeros(2, int)), [1])


# What it shows


class Stream(io.StringIO):
    """A stream that is a terminal or not."""

    def __init__(self, terminal=False):
        super().__init__()
        self.isatty = lambda: terminal


def run_shown(monkeypatch, stream, **settings):
    """Two epochs of six batches with `stream` as the error stream: the lines of what they wrote."""
    monkeypatch.setattr(sys, "stderr", stream)
    x, y = sequences(64)
    settings = {"epochs": 2, "batch_size": 8, "validation_split": 0.25, **settings}
    history = classifier(KINDS["rnn"]).fit(x, y, **settings)
    return history, stream.getvalue().replace("\r", "\n").split("\n") if isinstance(stream, Stream) else None


@pytest.mark.parametrize(("terminal", "verbose"), [(False, "auto"), (False, 2), (True, 2)])
def test_a_plain_line_per_finished_epoch_in_a_log(terminal, verbose, monkeypatch, capsys):
    """Training was invisible there; control characters do not belong there."""
    stream = Stream(terminal)
    history, _ = run_shown(monkeypatch, stream, verbose=verbose)
    wanted = [
        f"epoch {i + 1}/2 loss {history['loss'][i]:.4g} val_loss {history['val_loss'][i]:.4g} "
        f"val_accuracy {history['val_accuracy'][i]:.4g}"
        for i in range(2)
    ]
    assert capsys.readouterr().out == "\n".join([*wanted, ""]) and stream.getvalue() == ""


def test_a_bar_with_loss_and_accuracy_on_a_terminal(monkeypatch):
    monkeypatch.setattr("tqdm.auto.tqdm", partial(tqdm.auto.tqdm, mininterval=0))  # draw every change
    history, lines = run_shown(monkeypatch, Stream(terminal=True))
    text = "\n".join(lines)
    assert "epoch 1/2" in text and "epoch 2/2" in text and "loss=" in text and "accuracy=" in text and "6/6" in text
    assert all(len(line) <= 60 for line in lines), "wider than a small window"
    stays = [line.strip() for line in text.split("\n") if "val_loss" in line]
    assert stays[-1].startswith(f"epoch 2/2 loss {history['loss'][1]:.4g} val_loss {history['val_loss'][1]:.4g}")


def test_finished_epochs_stay_on_the_screen(monkeypatch):
    """What stands at the end of every line of a terminal, a carriage return being the start of a new one."""
    stream = Stream(terminal=True)
    run_shown(monkeypatch, stream)
    shown = [line.split("\r")[-1].rstrip() for line in stream.getvalue().split("\n")]
    assert [line[: len("epoch 1/2 loss")] for line in shown] == ["epoch 1/2 loss", "epoch 2/2 loss", ""]


@pytest.mark.parametrize("title", ("epoch", "Engram"))
@pytest.mark.parametrize("metric", ("accuracy", "perplexity_of_a_long_name_that_fills_the_line"))
def test_lines_fit_60_columns(title, metric):
    stream = Stream()
    with contextlib.redirect_stdout(stream):
        for value in (0.5, 123456789.0, 1.234567e-05):
            logs = {"loss": value, metric: value, "penalty": value, "val_loss": value, f"val_{metric}": value}
            Bar(10, f"{title} 100/200", verbose=2).finish(logs)
    for line in stream.getvalue().splitlines():
        assert len(line) <= 60 and line.startswith(f"{title} 100/200 loss ") and " val_loss " in line


def test_the_bar_shows_means_over_what_was_seen(monkeypatch):
    """Divided by the whole data set, the loss would seem to rise through every epoch."""
    shown = []
    monkeypatch.setattr("tqdm.tqdm.set_postfix", lambda bar, means, refresh: shown.append(means))
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, rows: True)  # drawn anew at every batch
    run_shown(monkeypatch, Stream(terminal=True))
    losses = [float(means["loss"]) for means in shown]
    assert len(losses) == 2 * 6 and min(losses) > 0.5 * max(losses)


def test_a_notebook_has_the_bar_though_its_stream_is_no_terminal(monkeypatch):
    """sys.stderr.isatty() is False in Jupyter, where most users are."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    made = []

    class Drawn(tqdm.tqdm):
        def __init__(self, *given, **named):
            made.append(named)
            super().__init__(*given, **named)

    monkeypatch.setattr("tqdm.auto.tqdm", Drawn)
    _, lines = run_shown(monkeypatch, Stream())
    assert [named["desc"] for named in made] == ["epoch 1/2", "epoch 2/2"]
    assert not any(named.get("ncols") for named in made), "there it would be a width in pixels"
    assert sum(line.startswith("epoch 1/2 loss ") for line in lines) == 1


@pytest.mark.parametrize("terminal", (False, True))
@pytest.mark.parametrize("verbose", (0, False))
def test_nothing_is_shown_where_nothing_is_wanted(terminal, verbose, monkeypatch, capsys):
    stream = Stream(terminal)
    run_shown(monkeypatch, stream, verbose=verbose)
    assert stream.getvalue() == "" and capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals there")
@pytest.mark.parametrize("rows", (0, 24))
def test_a_real_terminal_shows_the_bar_and_keeps_the_line(rows):
    """One of unknown size, as in a container, too."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 4 * rows, 0, 0))
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from tiny import *; x, y = sequences(); "
    code += "classifier().fit(x, y, epochs=2, batch_size=8, validation_split=0.25)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # so its end is told on Linux
            while part := os.read(ours, 65536):
                text += part
    os.close(ours)
    *lines, rest = text.decode().split("\r\n")
    assert child.returncode == 0 and rest == "" and len(lines) == 2, text
    for i, line in enumerate(lines):
        *drawn, stays = line.split("\r")
        assert any("/5 " in each for each in drawn) and stays.startswith(f"epoch {i + 1}/2 loss ")
        assert max(map(len, (*drawn, stays.rstrip()))) <= 60


class Broken:
    """A stream whose reader is gone, as behind `| head`."""

    def __init__(self, terminal, error):
        self.isatty, self.error, self.encoding = (lambda: terminal), error, "utf-8"

    def write(self, text=""):
        raise self.error

    flush = write


class Bare:
    """A stream that can be written to, and no more."""

    def write(self, text):
        pass


def closed():
    stream = Stream()
    stream.close()
    stream.isatty = io.StringIO.isatty.__get__(stream)
    return stream


STREAMS = {
    "none": lambda: None,
    "no isatty": Bare,
    "closed": closed,
    "broken pipe": lambda: Broken(False, BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "broken terminal": lambda: Broken(True, OSError(errno.EIO, "Input/output error")),
    "closed terminal": lambda: Broken(True, ValueError("I/O operation on closed file")),
}


@pytest.mark.parametrize("verbose", ("auto", 0, 1, 2))
@pytest.mark.parametrize("stream", STREAMS)
def test_training_goes_on_whatever_becomes_of_the_stream(stream, verbose, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[stream]())
    x, y = sequences()
    history = classifier(KINDS["rnn"]).fit(x, y, epochs=2, batch_size=8, verbose=verbose)
    assert history.stopped == "finished"


@pytest.mark.parametrize("verbose", (3, -1, "yes", None))
def test_an_unknown_verbose_is_named(verbose):
    x, y = sequences()
    with pytest.raises(ValueError, match=rf"^verbose: expected one of 'auto', 0, 1, 2, got {verbose!r}"):
        classifier().fit(x, y, verbose=verbose)


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

"""Callbacks: Keras' rules to the epoch, the best weights back, and nothing lost on Ctrl-C or divergence."""

import numpy as np
import pytest
from tiny import KINDS, classifier, copied, same_to_the_bit, sequences

from enn_np import GRU, SGD, Adam, Callback, EarlyStopping, Model, ReduceOnPlateau, Regressor, fit, fit_fresh
from enn_np.train.watch import cost


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


def test_a_monitor_that_ones_own_validation_lacks_is_named():
    model, (x, y) = classifier(), sequences(4)
    settings = {"validate": lambda done: {"loss": 1.0}, "callbacks": [EarlyStopping("val_accuracy")], "verbose": 0}
    with pytest.raises(ValueError, match=r"^monitor: expected one of 'loss', .*'val_loss'.*, got 'val_accuracy'$"):
        fit_fresh(model, lambda rng, step: (x, y), [1], **settings)


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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_the_last_update_spoiled_are_no_result():
    """One batch, and no validation: its loss was finite, and the run "finished" with weights of infinity."""
    (x, _), model = sequences(), Regressor(GRU(4), 3)
    before = copied(model.params)
    with pytest.raises(
        ValueError, match=r"^learning_rate: at 1e\+38 .* is not finite after epoch 1; .* before training"
    ):
        model.fit(x, 100 * x.mean((1, 2)), epochs=1, batch_size=48, optimizer=SGD(1e38))
    assert same_to_the_bit(model.params, before)

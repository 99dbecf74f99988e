"""Nothing lost: a run that was interrupted anywhere and resumed ends as if nothing had happened, to the bit."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny import C, D, classifier, copied, padding, same_to_the_bit, sequences

from enn_np import (
    GRU,
    LSTM,
    SGD,
    Adam,
    Callback,
    Checkpoint,
    Classifier,
    EarlyStopping,
    Engram,
    LanguageModel,
    ReduceOnPlateau,
    Regressor,
    fit,
    fit_fresh,
    load,
)
from enn_np import checkpoint as files
from enn_np.look.monitor import HebbianTraceMonitor
from enn_np.train import Diverged, Samples


class Killed(Exception):
    """The process ends here."""


class Case:
    """A training run that can be started any number of times. kill_at: die as the batch with this number begins."""

    def __init__(self, kind):
        self.kind = kind

    def model(self):
        if self.kind in ("stream", "windows"):
            cells = [Engram(6, 5, trace="sample"), LSTM(4)]
            return LanguageModel(cells, 17, 5, head="adaptive", cutoffs=(4, 9), dropout=0.2)
        if self.kind == "fresh":
            return classifier([Engram(6, 5, trace="sample"), GRU(4)], dropout=0.3)
        if self.kind == "regressor":
            return Regressor(GRU(4), D, 2, pooling="mean", dropout=0.1)
        return classifier([Engram(6, 5), GRU(4)], pooling="attention", dropout=0.3)

    def optimizer(self):
        return SGD(0.05, momentum=0.9) if self.kind == "regressor" else Adam(0.01, clip_norm=1.0)

    def run(self, path=None, kill_at=None, resume=False, seconds=0, epochs=4, **settings):
        """Train, and return the model, its history and the trace monitor (None where there is none)."""
        model, monitor, seen = self.model(), None, 0
        learn = "learn" if self.kind in ("stream", "windows") else "loss_and_grads"
        original = getattr(model, learn)

        def watched(*given, **named):
            nonlocal seen
            seen += 1
            if seen == kill_at:
                raise Killed
            return original(*given, **named)

        setattr(model, learn, watched)
        settings = {
            "epochs": epochs,
            "optimizer": self.optimizer(),
            "callbacks": [EarlyStopping(patience=2), ReduceOnPlateau(patience=1, min_delta=0.05)],
            "checkpoint": None if path is None else Checkpoint(path, seconds),
            "resume": resume,
            "verbose": 0,
            **settings,
        }
        if self.kind in ("stream", "windows"):
            text = np.random.default_rng(3).integers(0, 17, 200).astype(np.uint16)
            if self.kind == "stream":
                return (
                    model,
                    model.fit_stream(text, batch_size=3, steps=20, validation_data=text[:40], **settings),
                    monitor,
                )
            rows = text[:192].reshape(24, 8)
            return model, model.fit(rows, (rows + 1) % 17, batch_size=6, validation_split=0.25, **settings), monitor
        x, y = sequences(40)
        mask = padding(40)
        if self.kind == "fresh":

            def draw(rng, step):
                rows = rng.integers(0, 40, 6)
                return x[rows], y[rows], mask[rows]

            rngs = np.random.default_rng(7), np.random.default_rng(8)
            steps, validate = [5, 4, 4, 5, 5][: settings.pop("epochs")], lambda done: model.evaluate(x, y)
            return model, fit_fresh(model, draw, steps, validate=validate, rngs=rngs, **settings), monitor
        if self.kind == "regressor":
            y = x.mean(1)[:, :2]
        else:
            y[30:] = (y[30:] + 1) % C  # wrong in validation, so that the best epoch is an early one
            monitor = HebbianTraceMonitor(model, x[:5])
            settings["callbacks"].append(monitor)
        return model, fit(model, x, y, mask=mask, batch_size=7, validation_split=0.25, **settings), monitor


class Schedule(Callback):
    """As a reader writes one: by NumPy, with a list of what it did among its settings, and a number of its own."""

    def __init__(self):
        self.log = []

    def settings(self):
        return vars(self)

    def on_start(self, training):
        training.optimizer.learning_rate = np.float64(1e-2)

    def on_epoch_end(self, training, logs):
        training.optimizer.learning_rate = 1e-2 * np.cos(training.epoch / 10)
        training.stop = np.float64(logs["loss"]) < 0
        self.log.append(training.epoch)
        training.history.add({"norm": np.linalg.norm(training.model.params["head.W"])})


def test_a_schedule_in_numpy_can_be_resumed(tmp_path, monkeypatch):
    """Its rate, its stop and its numbers were NumPy's: no checkpoint held them, or none could be read again."""
    x, y = sequences()
    runs = []
    for parts in ((4,), (2, 4)):
        for epochs in parts:
            model, place = classifier(), tmp_path / f"{len(parts)}.npz"
            callback, settings = Schedule(), {"optimizer": SGD(0.1), "checkpoint": place, "resume": True}
            history = model.fit(x, y, epochs=epochs, callbacks=[callback], verbose=0, **settings)
        assert type(settings["optimizer"].learning_rate) is float and len(history["norm"]) == 4
        runs.append(model.params)
    assert same_to_the_bit(*runs)
    monkeypatch.setattr(np, "cos", lambda angle: np.nan)
    with pytest.raises(ValueError, match=r"^learning_rate: expected a finite number"):
        classifier().fit(x, y, epochs=1, callbacks=[Schedule()], verbose=0)


KINDS = ("classifier", "regressor", "windows", "stream", "fresh")
BATCHES = {"classifier": 20, "regressor": 20, "windows": 12, "stream": 16, "fresh": 18}  # in four epochs
pytestmark = pytest.mark.filterwarnings("ignore:cell 0. .*Hebbian trace:RuntimeWarning")  # five slots are few


@pytest.fixture(scope="module")
def whole():
    """The runs that nobody interrupted."""
    return {kind: Case(kind).run() for kind in KINDS}


def assert_same_run(one, other):
    """Parameters, history and trace to the bit; only the time taken may differ."""
    (model, history, monitor), (model_2, history_2, monitor_2) = one, other
    assert same_to_the_bit(model.params, model_2.params)
    assert history.keys() == history_2.keys()
    assert {**history, "seconds": 0} == {**history_2, "seconds": 0}
    assert (history.best_epoch, history.stopped) == (history_2.best_epoch, history_2.stopped)
    if monitor:
        assert monitor.statistics == monitor_2.statistics
        for name in ("traces", "trace", "retrieval"):
            assert getattr(monitor, name).tobytes() == getattr(monitor_2, name).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_saving_changes_nothing(kind, whole, tmp_path):
    """A save that draws from the generator, or leaves an array of the run in another memory order."""
    assert_same_run(Case(kind).run(tmp_path / "run.npz"), whole[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", (0, 0.2, 0.5, 0.99))
def test_a_killed_run_ends_as_the_whole_one(kind, share, whole, tmp_path):
    """Any part of the state that is not saved: moments, generator, order, carried h and A, patience, best weights."""
    path, case = tmp_path / "run.npz", Case(kind)
    ran = len(whole[kind][1]["loss"]) * BATCHES[kind] // 4
    with pytest.raises(Killed):
        case.run(path, kill_at=1 + int(share * ran))
    assert_same_run(case.run(path, resume=True), whole[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again(kind, whole, tmp_path):
    """What a resumed run saves must be as good as what the first one saved, also where saves are rare."""
    path, case, deaths = tmp_path / "run.npz", Case(kind), 0
    while deaths < 9:  # 20 batches at most, three and a part of one in every life
        try:
            ended = case.run(path, kill_at=4, resume=True)
            break
        except Killed:
            deaths += 1
    assert 3 <= deaths < 9
    assert_same_run(ended, whole[kind])


def test_a_run_that_was_over_comes_back(whole, tmp_path):
    """A notebook cell run again: no training, the same model."""
    path = tmp_path / "run.npz"
    Case("classifier").run(path)
    assert_same_run(Case("classifier").run(path, kill_at=1, resume=True), whole["classifier"])


def test_resuming_nothing_begins_at_the_beginning(whole, tmp_path):
    assert_same_run(Case("classifier").run(tmp_path / "new" / "run.npz", resume=True), whole["classifier"])


def test_more_epochs_go_on_where_fewer_ended(tmp_path):
    plain = {"callbacks": []}
    Case("regressor").run(tmp_path / "run.npz", epochs=2, **plain)
    more = Case("regressor").run(tmp_path / "run.npz", epochs=4, resume=True, **plain)
    assert_same_run(more, Case("regressor").run(epochs=4, **plain))
    with pytest.raises(ValueError, match=r"^epochs: .*run\.npz has 4 begun, got 3; ask for as many or more"):
        Case("regressor").run(tmp_path / "run.npz", epochs=3, resume=True, **plain)


@pytest.mark.parametrize("kind, kill_at", [("classifier", 8), ("fresh", 8), ("stream", 6)])
def test_an_epoch_that_is_begun_counts_as_one(kind, kill_at, tmp_path):
    """Its weights, of the middle of epoch 2, were handed back as those of a run of one epoch."""
    with pytest.raises(Killed):
        Case(kind).run(tmp_path / "run.npz", kill_at=kill_at)
    with pytest.raises(ValueError, match=r"^epochs: .*run\.npz has 2 begun, got 1; ask for as many or more"):
        Case(kind).run(tmp_path / "run.npz", epochs=1, resume=True)


def test_ctrl_c_while_an_epoch_is_set_up(whole, tmp_path, monkeypatch):
    """Catches an order that is drawn, and lost: the resumed run drew the next one."""
    original, calls = Samples.batches, []

    def batches(self, carry):
        calls.append(carry)
        if len(calls) == 3:  # the second epoch's; each asks twice
            signal.raise_signal(signal.SIGINT)
        return original(self, carry)

    monkeypatch.setattr(Samples, "batches", batches)
    assert Case("classifier").run(tmp_path / "run.npz")[1].stopped == "interrupted"
    monkeypatch.undo()
    assert_same_run(Case("classifier").run(tmp_path / "run.npz", resume=True), whole["classifier"])


def test_time_stands_still_between_kill_and_resume(tmp_path):
    path, case = tmp_path / "run.npz", Case("classifier")
    with pytest.raises(Killed):
        case.run(path, kill_at=8)
    config, arrays = files.read(path)
    config["training"]["run"]["seconds"] += 1000
    files.write(path, config, arrays)
    _, history, _ = case.run(path, resume=True)
    assert 1000 < history.duration < 1100 and 1000 < sum(history["seconds"]) < 1100


def test_a_checkpoint_is_a_model_too(tmp_path):
    """What a killed run had learned can be used at once."""
    path = tmp_path / "run.npz"
    model, _, _ = Case("stream").run(path, callbacks=[])
    again = load(path)
    assert again.config() == model.config() and same_to_the_bit(again.params, model.params)


@pytest.mark.parametrize("text", (False, True))
def test_a_run_on_a_card_goes_on_too(text, card, tmp_path):
    """What a file holds comes back to where it was: rows are picked on the host, states and moments lie on the card."""
    ended = []
    for kill_at in (None, 5):
        model = LanguageModel(GRU(4), 9, 4) if text else classifier([Engram(6, 5), GRU(4)])
        model.to_device("cuda")
        name, path = "learn" if text else "loss_and_grads", tmp_path / f"{kill_at}.npz"
        original, seen = getattr(model, name), []

        def watched(*given, original=original, seen=seen, kill_at=kill_at, **named):
            seen.append(1)
            if len(seen) == kill_at:
                raise Killed
            return original(*given, **named)

        for resume in (False, True):
            setattr(model, name, original if resume else watched)
            settings = {"epochs": 2, "batch_size": 8, "checkpoint": Checkpoint(path, 0), "resume": resume, "verbose": 0}
            try:
                if text:
                    history = model.fit_stream(np.arange(200) % 9, steps=5, optimizer=Adam(), **settings)
                else:
                    history = model.fit(*sequences(30), optimizer=Adam(), **settings)
            except Killed:
                model = LanguageModel(GRU(4), 9, 4) if text else classifier([Engram(6, 5), GRU(4)])
                model.to_device("cuda")
                original = getattr(model, name)
            else:
                break
        ended.append((model.to_device("cpu").params, history["loss"]))
    assert same_to_the_bit(ended[0][0], ended[1][0]) and ended[0][1] == ended[1][1]


# What a run leaves behind is the model that it handed back


class Interrupt(Callback):
    """Ctrl-C while the callbacks of an epoch run, before those that come after it."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, training, logs):
        if training.epoch == self.epoch:
            raise KeyboardInterrupt


class Averages(Callback):
    """Changes the weights at the very end, as weight averaging does."""

    def on_end(self, training):
        for value in training.model.params.values():
            value *= 0.5


def pressed(case, path, batch, how, **settings):
    """Case.run with a Ctrl-C in the middle of a batch, after it has drawn its numbers."""
    class_, name = type(case.model()), "learn" if case.kind in ("stream", "windows") else "loss_and_grads"
    original, seen = getattr(class_, name), 0

    def interrupted(model, *given, **named):
        nonlocal seen
        seen += 1
        found = original(model, *given, **named)
        if seen == batch:
            how()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_, name, interrupted)
        return case.run(path, **settings)


def press():
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_in_the_end_is_the_model_handed_back(kind, tmp_path):
    """Saved before the best weights came back, it was another model than the fitted one; more epochs go on all the
    same from where the last one ended."""
    plain = {"callbacks": [EarlyStopping(patience=9)]}
    model, history, _ = Case(kind).run(tmp_path / "run.npz", epochs=3, **plain)
    assert same_to_the_bit(load(tmp_path / "run.npz").params, model.params)
    stored = files.read(tmp_path / "run.npz")[0]["training"]
    assert stored["history"] == history
    plain = {"callbacks": [EarlyStopping(patience=9)]}
    more = Case(kind).run(tmp_path / "run.npz", epochs=5, resume=True, **plain)
    assert_same_run(more, Case(kind).run(epochs=5, callbacks=[EarlyStopping(patience=9)]))


def test_a_callback_that_changes_the_weights_at_the_end_is_saved_too(tmp_path):
    model, _, _ = Case("regressor").run(tmp_path / "run.npz", epochs=2, callbacks=[Averages()])
    assert same_to_the_bit(load(tmp_path / "run.npz").params, model.params)
    more = Case("regressor").run(tmp_path / "run.npz", epochs=4, resume=True, callbacks=[Averages()])
    assert_same_run(more, Case("regressor").run(epochs=4, callbacks=[Averages()]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", (press, lambda: signal.raise_signal(signal.SIGINT)), ids=("raised", "signal"))
@pytest.mark.parametrize("share", (0, 0.4, 0.7))
def test_ctrl_c_saves_what_it_hands_back_and_the_run_goes_on_to_the_bit(kind, how, share, whole, tmp_path):
    """However rare saves are: a batch that was cut off leaves no half of itself, neither drawn numbers nor weights."""
    path, case = tmp_path / "run.npz", Case(kind)
    batch = 1 + int(share * len(whole[kind][1]["loss"]) * BATCHES[kind] / 4)
    model, history, _ = pressed(case, path, batch, how, seconds=1e9)
    assert history.stopped == "interrupted"
    assert same_to_the_bit(load(path).params, model.params)
    assert files.read(path)[0]["training"]["optimizer"]["steps"] >= batch - 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_run(case.run(path, resume=True), whole[kind])


@pytest.mark.parametrize("epoch", (1, 2))
def test_ctrl_c_in_a_callback_is_resumed_to_the_bit(epoch, whole, tmp_path):
    """The callbacks after it must have seen the epoch, and those before it must not see it twice."""
    path = tmp_path / "run.npz"
    rest = [EarlyStopping(patience=2), ReduceOnPlateau(patience=1, min_delta=0.05)]
    model, history, _ = Case("regressor").run(path, callbacks=[Interrupt(epoch), *rest])
    assert history.stopped == "interrupted" and len(history["loss"]) == epoch
    assert same_to_the_bit(load(path).params, model.params)
    again = [Interrupt(9), EarlyStopping(patience=2), ReduceOnPlateau(patience=1, min_delta=0.05)]
    with pytest.raises(ValueError, match=r"callbacks\.0\.kind|differs"):
        Case("regressor").run(path, resume=True, callbacks=again[1:])
    assert_same_run(Case("regressor").run(path, resume=True, callbacks=again), whole["regressor"])


@pytest.mark.parametrize("epoch", (1, 2))
def test_ctrl_c_while_a_callback_notes_is_resumed_to_the_bit(epoch, whole, tmp_path, monkeypatch):
    """Half a note would leave a history of lists of different lengths, which nobody can resume."""
    original, seen = HebbianTraceMonitor._probe, []

    def probed(monitor, model):
        seen.append(1)
        if len(seen) == epoch + 1:  # the first was before training
            signal.raise_signal(signal.SIGINT)
        return original(monitor, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HebbianTraceMonitor, "_probe", probed)
        _, history, _ = Case("classifier").run(tmp_path / "run.npz")
    assert history.stopped == "interrupted" and len(history["loss"]) == len(history["trace_min"]) == epoch
    assert_same_run(Case("classifier").run(tmp_path / "run.npz", resume=True), whole["classifier"])


def test_fresh_targets_of_one_axis_are_resumed(tmp_path):
    """A new regressor expects (n, 1) until it sees the first batch; a bad batch teaches it nothing."""

    def draw(rng, step):
        x = rng.standard_normal((8, 5, D)).astype(np.float32)
        return x, x.sum((1, 2))

    ended = []
    for steps in ([3, 3, 3],), ([3], [3, 3, 3]):
        for part in steps:
            model, place = Regressor(GRU(4), D), tmp_path / f"{len(steps)}.npz"
            fit_fresh(model, draw, part, checkpoint=place, resume=True, verbose=0)
        ended.append(model.params)
    assert same_to_the_bit(*ended) and model.predict(sequences(2)[0]).shape == (2,)
    model = Regressor(GRU(4), D, outputs=3)
    with pytest.raises(ValueError, match=r"^y: expected shape \(8, 3\)"):
        fit_fresh(model, draw, [1], verbose=0)
    assert model.predict(sequences(2)[0]).shape == (2, 3)


def test_every_epoch_is_saved(tmp_path):
    """A run killed more often than every 60 seconds would never get on."""
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        Case("classifier").run(path, kill_at=13, seconds=1e9)  # the third batch of the third epoch
    stored = files.read(path)[0]["training"]
    assert len(stored["history"]["loss"]) == 2 and not stored["pass"]


def test_a_resume_says_where_it_starts(tmp_path, capsys):
    path = tmp_path / "run.npz"
    pressed(Case("classifier"), path, 13, press)
    capsys.readouterr()
    Case("classifier").run(path, resume=True, verbose=2)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{path}: resumed after epoch 3, batch 2"
    Case("classifier").run(path, resume=True, verbose=2)
    assert capsys.readouterr().out == f"{path}: resumed after epoch 4\n"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("epochs", (1, 3))
def test_divergence_leaves_the_model_that_it_handed_back(epochs, tmp_path):
    """In the first epoch the weights before training: those of the last batch are infinite."""
    x, y = sequences(40)
    path, model = tmp_path / "run.npz", classifier(Engram(6, 5))
    before = copied(model.params)

    class Faster(Callback):
        def on_epoch_end(self, training, logs):
            training.optimizer.learning_rate = 1e30 if training.epoch == epochs - 1 else 1e-3

    optimizer = SGD(1e30 if epochs == 1 else 1e-3)
    with pytest.raises(Diverged, match=r"^learning_rate: at 1e\+30 "):
        fit(model, x, y, epochs=9, batch_size=10, optimizer=optimizer, checkpoint=path, callbacks=[Faster()])
    assert same_to_the_bit(load(path).params, model.params)
    assert all(np.isfinite(value).all() for value in model.params.values())
    assert same_to_the_bit(model.params, before) == (epochs == 1)


def test_a_mistake_leaves_no_checkpoint_in_the_way(tmp_path):
    """The corrected call was refused: the file there held a run with other data. Epochs that are over are kept."""
    x, y = sequences(40)
    path = tmp_path / "run.npz"

    def lost(*given):
        raise KeyError("mine")

    model = Classifier(GRU(6), D, C)
    model.evaluate = lost
    with pytest.raises(KeyError, match="mine"):
        fit(model, x, y, epochs=3, validation_split=0.5, checkpoint=path)
    assert not path.exists()

    class Mistaken(Callback):
        def on_epoch_end(self, training, logs):
            if training.epoch == 2:
                raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine"):
        fit(classifier(), x, y, epochs=3, checkpoint=path, callbacks=[Mistaken()])
    assert len(files.read(path)[0]["training"]["history"]["loss"]) == 1
    used = Adam()
    fit(classifier(), x, y, epochs=1, optimizer=used)
    for wrong in ({"optimizer": used}, {"callbacks": [EarlyStopping("val_loss")]}, {"callbacks": 3}):
        with pytest.raises((TypeError, ValueError)):
            fit(classifier(), x, y, checkpoint=tmp_path / "new" / "run.npz", **wrong)
        assert not (tmp_path / "new").exists()


def test_a_resumed_run_loses_nothing_by_a_mistake(tmp_path):
    """Catches a checkpoint that is removed with what it held of an epoch that is not over."""
    x, y = sequences(40)
    path, model = tmp_path / "run.npz", classifier()
    calls, learn = [], model.loss_and_grads

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(*given)

    model.loss_and_grads = interrupted
    fit(model, x, y, epochs=2, batch_size=10, checkpoint=path)
    assert files.read(path)[0]["training"]["pass"]["batches"] == 2
    again = classifier()
    again.loss_and_grads = lambda *given: {}["mine"]
    with pytest.raises(KeyError, match="mine"):
        fit(again, x, y, epochs=2, batch_size=10, checkpoint=path, resume=True)
    assert files.read(path)[0]["training"]["pass"]["batches"] == 2


# What does not fit


def drop(name):
    return lambda tree: tree.pop(name)


def put(value, *names):
    def change(tree):
        for name in names[:-1]:
            tree = tree[name]
        tree[names[-1]] = value

    return change


WRONG = {
    "a missing moment": (
        {"arrays": drop("optimizer/state/m/0.M")},
        r"optimizer\.state\.m\.0\.M was None, is 'float32 \(5, 6\)'",
    ),
    "a moment too many": (
        {"arrays": lambda a: a.update({"optimizer/state/v/new": np.ones(1)})},
        r"optimizer\.state\.v\.new was 'float64 \(1,\)', is None",
    ),
    "a best weight of another shape": (
        {"arrays": put(np.ones(2, "f4"), "best/0.M")},
        r"best\.0\.M was 'float32 \(2,\)', is 'float32 \(5, 6\)'",
    ),
    "a weight of another dtype": ({"arrays": put(np.ones((5, 6)), "0.M")}, r"0\.M was 'float64 \(5, 6\)', is 'float32"),
    "an order of other sequences": (
        {"arrays": lambda a: a["pass/carry/order"].fill(0)},
        "order does not name every sequence once",
    ),
    "no order": ({"arrays": drop("pass/carry/order")}, r"pass\.carry\.order was None|KeyError: 'carry'"),
    "another model": ({"config": put(7, "seed")}, "seed was 7, is 0"),
    "no run": ({"config": drop("training")}, "holds a model, but no training run"),
    "a run that is no object": ({"config": put([], "training")}, "holds a model, but no training run"),
    "no generator": ({"config": lambda config: config["training"].pop("rng")}, "KeyError: 'rng'"),
    "another generator": ({"config": put("MT19937", "training", "rng", "bit_generator")}, "not a whole enn_np file"),
    "a history of words": ({"config": put(["a"], "training", "history", "loss")}, "not a whole enn_np file"),
    "a history of uneven lists": ({"config": put([1.0] * 9, "training", "history", "loss")}, "different lengths"),
    "steps of a fraction": (
        {"config": put(1.5, "training", "optimizer", "steps")},
        "optimizer.steps was 'float', is 'int'",
    ),
    "a newer format": ({"config": put(2, "format")}, "format 1, got 2; .*newer enn_np: upgrade"),
    "other settings": ({"config": put(8, "training", "settings", "batch_size")}, "batch_size was 8, is 7"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_that_does_not_fit_says_why(what, tmp_path):
    """One ValueError that names the file and the fault, before a single batch."""
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        Case("classifier").run(path, kill_at=8)
    spoil_it, message = WRONG[what]
    spoil_path(path, **spoil_it)
    with pytest.raises(ValueError, match=message) as caught:
        Case("classifier").run(path, kill_at=1, resume=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def spoil_path(path, config=lambda config: None, arrays=lambda arrays: None):
    found = files.read(path)
    format_ = {"format": files.FORMAT}
    config_ = {**format_, **found[0]}
    config(config_)
    arrays(found[1])
    np.savez(path, config=np.array(json.dumps(config_)), **found[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8}, "batch_size was 7, is 8"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"optimizer": Adam(0.02, clip_norm=1.0)}, r"optimizer\.learning_rate was 0\.01, is 0\.02"),
        ({"callbacks": [EarlyStopping(patience=5)]}, r"callbacks\.0\.patience was 2, is 5"),
        ({"validation_split": 0, "callbacks": []}, r"data\.0\.2 was \d+, is \d+"),
    ],
)
def test_other_settings_are_named(settings, message, tmp_path):
    """A run that goes on with another batch size is no longer the run that began."""
    path, case = tmp_path / "run.npz", Case("classifier")
    model = case.model()
    x, y = sequences(40)
    same = {"batch_size": 7, "validation_split": 0.25, "epochs": 1, "checkpoint": path, "verbose": 0}
    callbacks = [EarlyStopping(patience=2)]
    fit(model, x, y, **same, optimizer=Adam(0.01, clip_norm=1.0), callbacks=callbacks)
    before = copied(model.params)
    with pytest.raises(ValueError, match=message):
        fit(
            model,
            x,
            y,
            **{**same, "optimizer": Adam(0.01, clip_norm=1.0), "callbacks": callbacks, "resume": True, **settings},
        )
    assert same_to_the_bit(model.params, before), "changed before it was refused"


def test_other_steps_of_fresh_samples_are_named(tmp_path):
    """The first epoch with 5 steps, resumed as if it had 2: the next would draw three of them again."""
    draw = lambda rng, step: sequences(6)  # noqa: E731
    settings = {"checkpoint": tmp_path / "run.npz", "verbose": 0}
    fit_fresh(classifier(), draw, [5], **settings)
    with pytest.raises(ValueError, match=r"steps was 5, is 2"):
        fit_fresh(classifier(), draw, [2, 2, 2], resume=True, **settings)


def test_other_data_are_noticed(tmp_path):
    x, y = sequences(40)
    fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz")
    x = x.copy()
    x[3, 1, 0] += 1
    with pytest.raises(ValueError, match=r"data\.0\.2 was"):
        fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz", resume=True)


def test_a_run_is_not_overwritten_by_another(tmp_path):
    x, y = sequences(40)
    fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz")
    with pytest.raises(ValueError, match=r"^checkpoint: .*run\.npz holds a run already; resume=True((?!delete).)*$"):
        fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz")


def test_two_runs_cannot_share_a_checkpoint(tmp_path):
    x, y = sequences(40)

    class Second(Callback):
        def on_epoch_end(self, training, logs):
            fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz", resume=True)

    with pytest.raises(ValueError, match=r"^checkpoint: .*run\.npz is in use by another run; wait"):
        fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz", callbacks=[Second()])


# Saves that fail


def disk_full(monkeypatch, after):
    """From the save with number `after` on, half a file is written and then the disk is full."""
    saves, savez = 0, np.savez

    def failing(file, **arrays):
        nonlocal saves
        saves += 1
        if saves < after:
            return savez(file, **arrays)
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", failing)


@pytest.mark.parametrize("after", (1, 2, 9))
def test_a_full_disk_costs_nothing_that_was_saved(after, whole, tmp_path, monkeypatch):
    path, case = tmp_path / "run.npz", Case("classifier")
    disk_full(monkeypatch, after)
    with pytest.raises(OSError, match="checkpoint: No space left on device at epoch") as caught:
        case.run(path)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert ("resume" in str(caught.value)) == (after > 1)
    assert not list(tmp_path.glob("*.part")), "half a file was left behind"
    monkeypatch.undo()
    assert_same_run(case.run(path, resume=True), whole["classifier"])


def test_leftovers_of_killed_writers_go(tmp_path):
    path = tmp_path / "run.npz"
    (tmp_path / "run.npz.12345678.part").write_bytes(b"half")
    Case("regressor").run(path)
    assert not list(tmp_path.glob("*.part"))


CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import warnings; warnings.simplefilter("ignore")
from test_resume import Case
import numpy as np
case, saves = Case({kind!r}), 0
os_replace, savez = os.replace, np.savez
def last():
    global saves
    saves += 1
    return saves == {save}
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def replace(a, b):
    if {during!r} == "rename" and last():
        die()
    os_replace(a, b)
def half(file, **arrays):
    savez(file, **arrays)
    if {during!r} == "write" and last():
        file.truncate(file.tell() // 2)
        die()
os.replace, np.savez = replace, half
case.run({path!r}, resume=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not of this system")
@pytest.mark.parametrize(("kind", "during", "save"), [("classifier", "write", 4), ("stream", "rename", 9)])
def test_sigkill_in_the_middle_of_a_save(kind, during, save, whole, tmp_path):
    """Nothing runs after SIGKILL: no handler, no finally. What lies there must be a checkpoint all the same."""
    path = tmp_path / "run.npz"
    code = CHILD.format(tests=str(Path(__file__).parent), kind=kind, during=during, save=save, path=str(path))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(tmp_path.glob("*.part")), "it was not killed in the middle of a save"
    load(path)
    assert_same_run(Case(kind).run(path, resume=True), whole[kind])
    assert not list(tmp_path.glob("*.part"))


# Watchdogs


def poisoned(model, batch, name="0.W_c", value=np.nan):
    """The model, with one bad entry in the gradient of `name` at batch number `batch`."""
    original, seen = model.loss_and_grads, 0

    def spoilt(*given):
        nonlocal seen
        seen += 1
        metrics, grads = original(*given)
        if seen == batch and name in grads:
            grads[name].flat[0] = value
        elif seen == batch:
            metrics[name] = value
        return metrics, grads

    model.loss_and_grads = spoilt
    return model


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("0.W_c", np.nan, r"the gradient of 0\.W_c became nan in 1 of 324 entries"),
        ("head.b", -np.inf, r"the gradient of head\.b became -inf in 1 of 3 entries"),
        ("0.M", 1e30, r"the gradient of 0\.M became too large to square"),
        ("loss", np.nan, "loss became nan"),
    ],
)
def test_a_bad_batch_stops_training_by_name(name, value, says, tmp_path):
    """Caught at the batch, before the update spoils every weight; step, parameter and checkpoint are named."""
    x, y = sequences(40)
    path = tmp_path / "run.npz"
    where = r"at step 7, batch 3 of epoch 2; lower it.* weights after epoch 1 again, as in enn_np\.load\('.*run\.npz'\)"
    model = poisoned(classifier(Engram(6, 5)), 7, name, value)
    with pytest.raises(Diverged, match=rf"^learning_rate: at 0\.001 {says} {where}"):
        fit(model, x, y, epochs=3, batch_size=10, checkpoint=Checkpoint(path, 0))
    assert same_to_the_bit(load(path).params, model.params)
    assert all(np.isfinite(value).all() for value in model.params.values())


@pytest.mark.parametrize("clip", [{"clip_norm": 1.0}, {"global_clip_norm": 1.0}])
def test_a_gradient_too_long_to_square_is_clipped_as_any_other(clip):
    """float32 ends at 3.4e38, so at a length of 1.8e19. What Adam is given then is one."""
    x, y = sequences(40)
    model = poisoned(classifier(Engram(6, 5)), 7, "0.M", 1e30)
    history = fit(model, x, y, epochs=3, batch_size=10, optimizer=Adam(**clip))
    assert history.stopped == "finished" and history["gradient_norm_99"][1] > 1e28 > 1e3 > history["gradient_norm"][1]
    assert all(np.isfinite(value).all() for value in model.params.values())


def warned(cell, epochs=3):
    x, y = sequences(40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier(cell, D, C), x, y, epochs=epochs, optimizer=SGD(1e-6))
    return [str(each.message) for each in caught]


def test_a_saturated_trace_warns_once():
    (message,) = warned(Engram(6, 5, hebbian_rate=0.9, trace_clip=1e-3))
    assert message.startswith("cell 0: ") and "% of its Hebbian trace lies on the clip 0.001" in message
    assert "lower hebbian_rate = 0.9 or raise trace_clip" in message


def test_dead_slots_warn_once():
    (message,) = warned(Engram(6, 40, retrieval="top_k", top_k=1, trace_clip=None))
    assert "of its 40 memory slots are never read" in message and "use fewer slots" in message


def test_a_healthy_memory_says_nothing():
    """Nor one whose trace is kept as codes, so that there is none to look at."""
    assert warned(Engram(6, 5, trace_clip=None)) == []
    for clip in (None, 1e3):
        assert warned(Engram(40, 5, trace="sample", trace_clip=clip), epochs=1) == []


# Files and locks


def test_a_file_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.whole(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_for_one(tmp_path):
    def take():
        with files.lock(tmp_path / "lock", "out: here"):
            return True

    with (
        files.lock(tmp_path / "lock", "out: here"),
        pytest.raises(ValueError, match=r"^out: here is in use by another run; wait"),
    ):
        take()
    assert take()


def test_a_folder_in_the_place_of_a_checkpoint_is_named_and_never_called_deletable(tmp_path):
    for path in (tmp_path, str(tmp_path)):
        for checkpoint in (path, Path(path)):
            with pytest.raises(
                ValueError, match=r"checkpoint: .* is a folder; name a file, such as .*run\.npz"
            ) as caught:
                classifier().fit(*sequences(), checkpoint=checkpoint)
            assert "delete" not in str(caught.value)
    with pytest.raises(OSError, match="is a folder; name a file"):
        classifier().save(tmp_path)


def test_a_tilde_is_the_users_home(tmp_path, monkeypatch):
    """A folder named ~ was made, where nobody looks for a model."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    model = classifier()
    assert model.save("~/model.npz") == tmp_path / "home" / "model.npz"
    assert same_to_the_bit(load("~/model.npz").params, model.params)
    fit(model, *sequences(20), epochs=1, checkpoint="~/run.npz")
    assert (tmp_path / "home" / "run.npz").exists() and [each.name for each in tmp_path.iterdir()] == ["home"]


@pytest.mark.skipif(os.name == "nt", reason="flock is not of this system")
@pytest.mark.parametrize("fault", (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL))
@pytest.mark.parametrize("refuse", (None, "out: here"))
def test_a_file_system_without_locks_does_not_end_training(fault, refuse, tmp_path, monkeypatch):
    """Network file systems: what guards nothing must not cost the run."""
    import fcntl

    def answer(*given):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(fcntl, "flock", answer)
    with files.lock(tmp_path / "lock", refuse):
        pass
    x, y = sequences(20)
    assert fit(classifier(), x, y, epochs=1, checkpoint=tmp_path / "run.npz").stopped == "finished"


def test_a_text_that_was_validated_in_many_rows_is_not_resumed(tmp_path):
    """Its history would go on with numbers of another kind."""
    path, words = tmp_path / "run.npz", np.arange(60) % 9
    settings = {"batch_size": 2, "validation_data": words, "checkpoint": path, "verbose": 0}
    LanguageModel(GRU(4), 9, 4).fit_stream(words, epochs=1, **settings)
    config, arrays = files.read(path)
    del config["training"]["settings"]["validation_rows"]
    files.write(path, {name: value for name, value in config.items() if name != "format"}, arrays)
    with pytest.raises(ValueError, match=r"validation_rows was None, is 1"):
        LanguageModel(GRU(4), 9, 4).fit_stream(words, epochs=2, resume=True, **settings)

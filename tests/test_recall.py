"""Associative recall as a benchmark: equal sizes, files that are not made twice, and a cell that binds."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn_np import Adam, Binding, Classifier, load, run, train
from enn_np import checkpoint as storage
from enn_np.checkpoint import build
from enn_np.data.tasks import associative_recall
from enn_np.lab import cli, inputs, pages, runner, table, work
from enn_np.lab.results import MACHINE, folder
from enn_np.look.attribution import written_by, written_lengths


@pytest.mark.parametrize("name", table.find("recall8").known)
@pytest.mark.parametrize("pairs", [8, 32])
def test_all_networks_are_of_one_size(name, pairs):
    """A comparison of widths that is one of sizes, and inputs that do not fit the task."""
    task = table.find(f"recall{pairs}")
    model = table.network(task, name, seed=3)
    assert abs(model.size / table.PARAMETERS - 1) < 0.05 and model.seed == 3
    width, slots, far = model.cells[0].hidden, task.slots, abs(model.size - table.PARAMETERS)
    for other in (width - 1, width + 1):  # no neighbour comes nearer
        rival = Classifier(table.cell(name, other, slots), model.inputs, task.outputs)
        assert far <= abs(rival.size - table.PARAMETERS)
    x, _ = inputs.source(task, 0)(np.random.default_rng(0), 2, "train", 0)
    assert model.inputs == x.shape[-1]


def test_every_network_differs_in_what_its_name_says():
    """A switch that a name promises and nobody turns."""
    full = table.network("recall8", "binding", 0).config()["cells"][0]
    turned = {"own": "write_at", "recurrent": "recurrent_cue", "fixed": "plasticity"}
    turned |= {"ungated": "gated", "batch": "trace", "no-bank": "bank_read"}
    for name, switch in turned.items():
        cell = table.network("recall8", f"binding-{name}", 0).config()["cells"][0]
        assert {key for key in full if cell[key] != full[key]} - {"hidden"} == {switch}


@pytest.mark.parametrize("key", ["recall8", "copy9", "mqar4"])
def test_no_name_stands_for_the_network_of_another(key):
    """Catches a result of a plain network under the name of one with a convolution, chrono biases or without a bank."""
    models = [table.network(key, name) for name in table.find(key).known]
    for i, model in enumerate(models):
        for other in models[:i]:
            same = model.cells == other.cells and model.params.keys() == other.params.keys()
            assert not same or any((model.params[each] != other.params[each]).any() for each in model.params)
    for name in {"recall8": ("key-delta-conv",), "mqar4": ("gru-chrono",)}.get(key, ()):
        with pytest.raises(ValueError, match=rf"^model: expected one of .*got '{name}'"):
            table.network(key, name)


@pytest.mark.parametrize(
    ("name", "gate"), [("gru", ("0.b_x", 0, 1)), ("lstm", ("0.b", 1, 1)), ("lstm", ("0.b", 0, -1))]
)
def test_chrono_biases_keep_for_one_to_two_hundred_steps(name, gate):
    """Only they differ, and spread as published: e^b is even between 1 and 199."""
    plain, model = (table.network("copy9", each, 3) for each in (name, f"{name}-chrono"))
    where, row, sign = gate
    kept = np.exp(sign * model.params[where][row])
    assert 1 <= kept.min() < 10 and 190 < kept.max() <= 199.01 and abs(kept.mean() - 100) < 20
    model.params[where][...] = plain.params[where]
    assert all((model.params[each] == value).all() for each, value in plain.params.items())


def recall(models, *keys, results, **settings):
    """`run_all` of networks on recall2, or what `keys` say, with one seed and rate, and without a word."""
    settings = {"seeds": 1, "rates": (2e-3,), "say": lambda line: None, **settings}
    return runner.run_all(keys or ["recall2"], models, results=results, **settings)


CLOCKS = {"seconds", "cpu_seconds", "history", "machine"}


def alike(found, wanted):
    """Whether two lists of results agree but for what the clock and the processor say."""
    return [{key: each[key] for key in each.keys() - CLOCKS} for each in found] == [
        {key: each[key] for key in each.keys() - CLOCKS} for each in wanted
    ]


def test_a_run_is_written_down_once(small, tmp_path):
    """A finished run that is run again, a result that differs from what was trained, numbers that chance decides."""
    said = []
    ask = {"seeds": 2, "steps": 3, "say": said.append}
    found = recall(["gru", "binding"], "recall2", "recall3", results=tmp_path / "a", **ask)
    assert said[0] == "8 of 8 runs to do" and len(said) == 9
    files = sorted(path.name for path in (tmp_path / "a").glob("*.json"))
    names = [f"recall{P}-sound-{name}-{seed}.json" for P in (2, 3) for name in ("binding", "gru") for seed in (0, 1)]
    assert files == names
    for result in found:
        path = tmp_path / "a" / "{benchmark}-{protocol}-{model}-{seed}.json".format(**result)
        assert json.loads(path.read_text()) == result
        assert result["stopped"] == "finished" and result["history"]["step"] == [2, 3]
        assert build(result["config"]).size == result["parameters"] and 0 <= result["test_accuracy"] <= 1
        assert {len(values) for values in result["history"].values()} == {2}
    assert len({result["test_loss"] for result in found}) == len(found)
    said.clear()
    assert recall(["gru", "binding"], "recall2", "recall3", results=tmp_path / "a", **ask) == found
    assert said == ["0 of 8 runs to do"]
    assert alike(found, recall(["gru", "binding"], "recall2", "recall3", results=tmp_path / "b", **ask))
    with pytest.raises(ValueError, match=r"recall2-sound-gru-0.json: holds a run with .*'steps': 3.*asked"):
        recall(["gru"], results=tmp_path / "a", steps=4)


def test_training_keeps_to_one_blas_thread(small, tmp_path, monkeypatch):
    """Catches a loop of its own beside `fit`, where a second thread spins and waits."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    for name in train.BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    seen, right = set(), Adam.update

    def update(self, params, grads):
        seen.update(each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas")
        right(self, params, grads)

    monkeypatch.setattr(Adam, "update", update)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        recall(["gru"], steps=2, results=tmp_path)
    assert seen == {1}


def test_cpu_seconds_go_on_after_a_resume(monkeypatch):
    """A result that tells the time of its last part alone."""
    monkeypatch.setattr(work.time, "process_time", lambda: 100.0)
    task = table.find("recall2")
    one, other = (work.Turns(task, "gru", 0, task.training, "cpu") for _ in range(2))
    one.began, other.began = 95.0, 99.0
    other.load_state(one.state())
    assert other.began == 94.0


def test_the_best_of_several_rates_is_used_for_all_seeds(small, tmp_path):
    """A rate that is chosen by the last one tried, or another for every seed; a trial is seed 0's run."""
    found = recall(["gru"], rates=(1e-6, 1e-2, 1e-5), seeds=2, steps=4, results=tmp_path)
    tried = {path: json.loads(path.read_text()) for path in (tmp_path / "rates").glob("*.json")}
    assert len(tried) == 3
    best = min(tried.values(), key=lambda result: result["history"]["val_loss"][-1])
    assert [result["training"]["learning_rate"] for result in found] == [best["training"]["learning_rate"]] * 2
    assert found[0] == best and found[1]["seed"] == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_processes_find_what_one_finds(tmp_path, capfd):
    """Runs that depend on who makes them, or are lost on the way back; two at a time, as large as they come."""
    ask = {"models": ["rnn", "gru"], "steps": 2, "rates": (1e38, 1e-2)}
    found = recall(**ask, jobs=2, results=tmp_path / "two", say=print)
    assert alike(found, recall(**ask, results=tmp_path / "one"))
    said = capfd.readouterr().out
    assert "recall2-sound-gru-0.01: test accuracy" in said and "diverged, and is not tried again" in said


def test_a_run_that_another_process_has_is_left_to_it(small, tmp_path):
    place = folder(tmp_path / "runs" / "recall2-sound-rnn-0")
    with storage.lock(place / ".result.lock"):
        found = recall(["rnn", "gru"], steps=2, results=tmp_path)
    assert found[0] is None and found[1]["model"] == "gru"
    assert [path.name for path in tmp_path.glob("*.json")] == ["recall2-sound-gru-0.json"]
    assert None not in recall(["rnn", "gru"], steps=2, results=tmp_path)


def test_a_run_goes_on_from_its_checkpoint(small, tmp_path, monkeypatch):
    """Killed between two epochs, in the second phase: the same end, tests and all."""
    (whole,) = recall(["gru"], steps=6, results=tmp_path / "whole")
    tested, calls = work.Turns.on_epoch_end, []

    def killed(turns, training, logs):
        tested(turns, training, logs)
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit

    monkeypatch.setattr(work.Turns, "on_epoch_end", killed)
    with pytest.raises(SystemExit):
        recall(["gru"], steps=6, results=tmp_path / "run")
    (resumed,) = recall(["gru"], steps=6, results=tmp_path / "run")
    assert alike([resumed], [whole]) and resumed["history"]["val_loss"] == whole["history"]["val_loss"]


def test_fresh_sequences_train_on_a_card(small, tmp_path, card):
    """Catches a task whose model, validation or picture stays on the host."""
    before = card.fetched
    (found,) = recall(["binding"], steps=3, results=tmp_path, device="cuda", say=print)
    assert card.fetched > before and found["recalled"]["lengths"] and found["machine"]["card"]


def test_gradients_are_clipped_and_their_norms_written_down(small, tmp_path):
    (found,) = recall(["gru"], steps=4, results=tmp_path)
    lists = [found["history"][name] for name in ("gradient_norm", "gradient_norm_99", "clipped")]
    assert len({len(values) for values in [found["history"]["loss"], *lists]}) == 1
    for median, high, clipped in zip(*lists, strict=True):
        assert 0 < median <= high and (clipped > 0) == (high > 1)


def test_a_run_that_has_learned_enough_ends(small, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "ENOUGH", -1)
    (found,) = recall(["rnn"], steps=9, results=tmp_path)
    assert found["stopped"] == "early" and found["steps"] == 2


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        ({"models": ["transformer"]}, ValueError, "models: expected one of .*got 'transformer'"),
        ({"experiments": ["recall0"]}, ValueError, "experiment: expected one of .*got 'recall0'"),
        ({"steps": 1.5}, TypeError, "steps: expected a whole number"),
        ({"jobs": 0}, ValueError, "jobs: expected at least 1"),
        ({"rates": [0]}, ValueError, "rates: expected a finite number greater than 0"),
        (
            {"experiments": ["recall4000"], "models": ["lstm"]},
            ValueError,
            "recall4000: lstm cannot be within 5%",
        ),
    ],
)
def test_bad_settings_are_told_before_any_work(ask, error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_in", None)
    with pytest.raises(error, match=words):
        runner.run_all(**{"experiments": ["recall2"], "results": tmp_path, **ask})


@pytest.mark.parametrize(
    ("best", "rates"), [(2e-2, (2e-2, 4e-2)), (2e-4, (2.5e-4, 1.25e-4)), (1e-3, ()), (math.inf, ())]
)
def test_a_best_rate_at_an_edge_widens_the_grid(monkeypatch, tmp_path, best, rates):
    """The highest rate of a grid, taken for the best there is. Where all diverge there is no best."""
    task = table.find("recall2")

    class Tried(runner.Run):
        path = tmp_path / "there.json"

        def stored(self):
            seen.append(self.training["learning_rate"])
            loss = abs(math.log(seen[-1] / min(best, 1)))
            return {"stopped": "finished" if best < 1 else "diverged", "history": {"val_loss": [loss]}}

    Tried.path.touch()
    monkeypatch.setattr(runner, "Run", Tried)
    for grid in (task.rates, (1e-4, 2e-4)):  # the experiment's own; as asked for
        seen = []
        rate, missing = runner.search(task, "gru", grid, {}, tmp_path)
        assert {*seen} == {*grid, *(rates if grid == task.rates else ())} and not missing and rate in seen


@pytest.mark.parametrize(
    ("losses", "chosen", "rates"),
    [
        ({5e-3: 2.0794, 8e-2: 1.887}, 8e-2, (2e-2, 4e-2, 8e-2, 0.16)),
        ({5e-3: 2.0794}, 5e-3, (2e-2, 4e-2, 8e-2, 0.16, 0.32)),
        ({5e-3: 0.321, 1e-2: 0.25910, 2e-2: 0.25911, 4e-2: 0.181}, 4e-2, (2e-2, 4e-2, 8e-2)),
    ],
)
def test_where_the_highest_rate_ties_higher_ones_are_tried(monkeypatch, tmp_path, losses, chosen, rates):
    """GRU and LSTM copy nothing at 5e-4 to 2e-2. Noise chose 5e-3 of these, and the page said that they cannot. The
    delta rule on slots (MQAR) took 1e-2, no better than 2e-2; at 4e-2 it learns as much as the rule ahead of it."""
    task, seen = table.find("recall2"), []

    class Tried(runner.Run):
        path = tmp_path / "there.json"

        def stored(self):
            seen.append(self.training["learning_rate"])
            return {"stopped": "finished", "history": {"val_loss": [losses.get(seen[-1], 2.0797)]}}

    Tried.path.touch()
    monkeypatch.setattr(runner, "Run", Tried)
    assert runner.search(task, "gru", task.rates, {}, tmp_path) == (chosen, [])
    assert {*seen} == {*task.rates, *rates}


def test_accuracies_tie_as_losses_do(monkeypatch, tmp_path):
    """One task after another is judged by accuracy: 89.99% at the highest rate, 90% at the one before."""
    task, seen = table.find("split2"), []

    class Tried(runner.Run):
        path = tmp_path / "there.json"

        def stored(self):
            seen.append(self.training["learning_rate"])
            right = {5e-3: 0.9, 1e-2: 0.8999}.get(seen[-1], 0.5)
            return {"stopped": "finished", "history": {"val_accuracy": [right]}}

    Tried.path.touch()
    monkeypatch.setattr(runner, "Run", Tried)
    assert runner.search(task, "gru", task.rates, {}, tmp_path) == (5e-3, []) and max(seen) == 2e-2


def test_ctrl_c_before_the_first_look_ends_the_command(monkeypatch, tmp_path):
    """Its history is empty; the next seed must not begin."""
    begun = []

    def pressed(*given):
        begun.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "loss_and_grads", pressed)
    with pytest.raises(KeyboardInterrupt):
        recall(["gru"], results=tmp_path, seeds=2)
    assert len(begun) == 1 and not list(tmp_path.glob("*.json"))


def test_a_run_that_solved_its_task_comes_before_one_that_went_on(tmp_path):
    """A rate that never got over 99.7% was taken before one that was done, because its loss had more steps to fall."""
    rates, made = folder(tmp_path / "rates"), {5e-4: 500, 1e-3: 250, 2e-3: 250, 5e-3: None, 1e-2: None}

    numbers = {"benchmark": "recall2", "protocol": "sound", "model": "gru", "seed": 0, "parameters": 1, "seconds": 1.0}
    numbers |= {"test_loss": 1.0, "test_accuracy": 1.0, "machine": dict.fromkeys(MACHINE, "")}
    for rate, steps in made.items():
        ended = {"stopped": "early" if steps else "finished", "steps": steps or 2_500}
        asked = {"training": runner.settings_of(table.find("recall2"), "gru", {}, rate)}
        history = {"history": {"val_loss": [1.0, 0.1 if steps else 0.01, rate]}}
        text = json.dumps({**numbers, **ended, **asked, **history})
        (rates / f"recall2-sound-gru-{rate:g}.json").write_text(text)
    assert runner.search(table.find("recall2"), "gru", (*made,), {}, tmp_path) == (1e-3, [])


def test_one_task_after_another_chooses_a_rate_by_accuracy(tmp_path, monkeypatch):
    """Split MNIST's loss is lowest where nothing is learned, so that a search went down to 4e-6."""
    history = {1e-3: {"val_loss": [2.3], "val_accuracy": [0.1]}, 2e-3: {"val_loss": [7.7], "val_accuracy": [0.9, 0.2]}}
    history[5e-3] = {"val_loss": [5.0], "val_accuracy": [0.15]}
    found = {rate: {"stopped": "finished", "history": each} for rate, each in history.items()}
    monkeypatch.setattr(runner.Run, "stored", lambda run: found[run.training["learning_rate"]])
    (tmp_path / "split2-sound-gru-0.json").touch()
    assert runner.search(table.find("split2"), "gru", (*history,), {}, tmp_path) == (2e-3, [])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_rate_that_diverges_is_recorded_and_the_others_go_on(small, tmp_path, capfd):
    """One such rate ended the whole comparison, at every rerun."""
    ask = {"models": ["rnn", "gru"], "seeds": 2, "steps": 3, "rates": (1e38, 1e-3), "results": tmp_path}
    found = recall(**ask, say=print)
    for name in ("rnn", "gru"):
        tried = json.loads((tmp_path / "rates" / f"recall2-sound-{name}-1e+38.json").read_text())
        assert tried["stopped"] == "diverged" and tried["why"].startswith("learning_rate: at 1e+38")
    assert "diverged, and is not tried again" in capfd.readouterr().out
    assert [result["training"]["learning_rate"] for result in found] == [1e-3] * 4
    assert all(0 <= result["test_accuracy"] <= 1 for result in found)
    said = []
    assert recall(**ask, say=said.append) == found and said == ["0 of 4 runs to do"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rates", [(1e38,), (1e38, 1e37)])
def test_where_every_rate_diverges_that_is_the_result(small, tmp_path, capsys, rates):
    """Rerun for ever, a table that fails on it, scores that are not there."""
    command = ["run", "recall2", "--models", "gru", "rnn", "--seeds", "2", "--steps", "3"]
    command += ["--results", str(tmp_path), "--rates", *map(str, rates)]
    for _ in range(2):
        assert cli.main(command) == 0
        assert capsys.readouterr().out.count(f"diverged at learning rate {min(rates):g}\n") == 4
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert "| GRU | 0 to 1 diverged |" in pages.table("results", "recall2", "sound", tmp_path)
    recall(["lstm"], steps=2, results=tmp_path)
    shown = pages.table("results", "recall2", "sound", tmp_path)
    assert "| LSTM | 0 | **" in shown and "| GRU | 0 to 1 diverged | - |" in shown
    lost = json.loads((tmp_path / "recall2-sound-gru-1.json").read_text()) | {"model": "lstm", "seed": 7}
    (tmp_path / "recall2-sound-lstm-7.json").write_text(json.dumps(lost))
    assert "; 7 diverged |" in pages.table("results", "recall2", "sound", tmp_path), (
        "a mean over who is left looks better"
    )
    with pytest.raises(ValueError, match=r"holds a run with .*'steps': 3.*asked"):
        recall(["gru"], steps=4, rates=rates, seeds=2, results=tmp_path)


def test_a_run_that_diverged_is_made_anew_once_its_result_is_removed(small, tmp_path, monkeypatch):
    """Interrupted before it diverged, it left a summary that says so, which was taken for its end for ever."""

    def ends(error):
        def learn(*given, **settings):
            raise error

        return learn

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Classifier, "loss_and_grads", ends(KeyboardInterrupt))
        recall(["gru"], results=tmp_path, steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(work, "fit_fresh", ends(train.Diverged("learning_rate: too high")))
        recall(["gru"], results=tmp_path, steps=3)
    stored = tmp_path / "recall2-sound-gru-0.json"
    assert json.loads(stored.read_text())["stopped"] == "diverged"
    stored.unlink()
    assert recall(["gru"], results=tmp_path, steps=3)[0]["stopped"] == "finished"


@pytest.mark.parametrize("what", ["loss", "gradient", "validation", "test"])
def test_whatever_is_not_finite_is_a_run_that_diverged(small, tmp_path, monkeypatch, what):
    """NaN that trains on, and is written down, or that ends in an error of JSON's."""
    honest, tested = Classifier.loss_and_grads, Classifier.evaluate

    def spoiled(model, *given):
        logs, grads = honest(model, *given)
        if what == "gradient":
            grads["0.W_h"][0, 0] = np.inf
        return logs | ({"loss": np.float32("nan")} if what == "loss" else {}), grads

    def evaluated(model, x, y):
        spoils = what == {20: "validation", 30: "test"}[len(x)]
        return tested(model, x, y) | ({"loss": np.inf} if spoils else {})

    monkeypatch.setattr(Classifier, "loss_and_grads", spoiled)
    monkeypatch.setattr(Classifier, "evaluate", evaluated)
    (found,) = recall(["rnn"], steps=2, results=tmp_path)
    assert found["stopped"] == "diverged" and "learning_rate: " in found["why"]
    assert json.loads((tmp_path / "recall2-sound-rnn-0.json").read_text()) == found
    assert not any(key.startswith("test_") for key in found)
    monkeypatch.setattr(runner, "run_in", None)
    assert recall(["rnn"], steps=2, results=tmp_path) == [found]


def test_the_command(small, tmp_path, capsys):
    command = ["run", "recall2", "--models", "lstm", "--steps", "2", "--results", str(tmp_path)]
    command += ["--seeds", "1", "--rates", "0.002"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "recall2" in out and "lstm" in out and (tmp_path / "recall2-sound-lstm-0.json").exists()
    assert cli.main([*command, "--steps", "0"]) == 2 and "steps: expected at least 1" in capsys.readouterr().err


def test_the_binding_cell_binds():
    """The one idea: what stood after a key is recalled by the key, and told to be written there, at steps 1 and 3."""
    rng, model = np.random.default_rng(0), Classifier(Binding(16, 8), 9, 4, dropout=0.0, seed=0)
    optimizer = Adam(1e-2)
    for _ in range(150):
        x, y = associative_recall(rng, 32, 2, 4, 4)
        optimizer.update(model.params, model.loss_and_grads(model.time_major(x), y, rng)[1])
    x, y = associative_recall(rng, 256, 2, 4, 4)
    assert model.evaluate(x, y)["accuracy"] > 0.9
    _, _, tape = run(model.cells[0], model.layer_params(0), model.time_major(x))
    gave = np.linalg.norm(written_by(model.cells[0], tape, 6)["steps"], axis=-1)  # (6, 256), at the question
    asked_first = (x[:, 0] == x[:, 6]).all(-1)
    assert ((gave[1] > gave[3]) == asked_first).mean() > 0.9
    lengths = written_lengths(model.cells[0], tape, 6)
    recalled = model.cells[0].record(model.layer_params(0), tape)["trace_part"][6]
    np.testing.assert_allclose(lengths.sum(1), np.linalg.norm(recalled, axis=-1), rtol=1e-4)
    told = work.recalled(model, x[0])
    assert told["symbols"] == x[0].argmax(-1).tolist() and np.argmax(told["lengths"], 1).tolist() == [1, 3]


@settings(max_examples=10)
@given(st.booleans(), st.sampled_from(("previous", "own")), st.sampled_from(("gate", "fixed")))
def test_a_binding_model_is_saved_and_built_by_name(tmp_path_factory, gated, write_at, plasticity):
    """A switch that a file loses."""
    path = tmp_path_factory.mktemp("models") / "model.npz"
    cells = [Binding(3, 4, gated=gated, write_at=write_at, plasticity=plasticity), Binding(2, 3, trace="batch")]
    model = Classifier(cells, 3, 2, seed=5)
    assert model.config()["cells"][0]["kind"] == "binding"
    found, x = load(model.save(path)), np.random.default_rng(0).standard_normal((4, 5, 3), np.float32)
    assert found.cells == model.cells
    np.testing.assert_array_equal(found.predict_outputs(x), model.predict_outputs(x))

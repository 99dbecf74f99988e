"""Associative recall as a benchmark: equal sizes, files that are not made twice, and a cell that binds."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn_np import Adam, Binding, Classifier, cli, experiments, load, processes, protocols, recall, run, storage
from enn_np.arcs import written_lengths
from enn_np.attribution import written_by
from enn_np.models import build
from enn_np.recall import Recall
from enn_np.report import table
from enn_np.tasks import associative_recall


@pytest.mark.parametrize("name", experiments.NETWORKS)
@pytest.mark.parametrize("pairs", [8, 32])
def test_all_networks_are_of_one_size(name, pairs):
    """A comparison of widths that is one of sizes, and inputs that do not fit the task."""
    task = Recall(pairs)
    model = experiments.network(task, name, seed=3)
    assert abs(model.size / experiments.PARAMETERS - 1) < 0.05 and model.seed == 3
    width, slots, far = model.cells[0].hidden, task.slots, abs(model.size - experiments.PARAMETERS)
    for other in (width - 1, width + 1):  # no neighbour comes nearer
        rival = Classifier(experiments.NETWORKS[name](other, slots), model.inputs, recall.VALUES, dropout=0.0)
        assert far <= abs(rival.size - experiments.PARAMETERS)
    x, _ = associative_recall(np.random.default_rng(0), 2, pairs, task.keys)
    assert model.inputs == x.shape[-1]


def test_every_network_differs_in_what_its_name_says():
    """A switch that a name promises and nobody turns."""
    full = experiments.network(Recall(8), "binding", 0).config()["cells"][0]
    turned = {"own": "write_at", "recurrent": "recurrent_cue", "fixed": "plasticity", "learned": "plasticity"}
    turned |= {"ungated": "gated", "batch": "trace", "no-bank": "bank_read"}
    for name, switch in turned.items():
        cell = experiments.network(Recall(8), f"binding-{name}", 0).config()["cells"][0]
        assert {key for key in full if cell[key] != full[key]} - {"hidden"} == {switch}


def test_a_run_is_written_down_once(small, tmp_path):
    """A finished run that is run again, a result that differs from what was trained, numbers that chance decides."""
    said = []
    ask = {"models": ["gru", "binding"], "pairs": [2, 3], "seeds": 2, "steps": 3, "results": tmp_path / "a"}
    found = recall.recall(**ask, say=said.append)
    assert re.fullmatch(r"8 of 8 runs to do, about \d+ minutes of one core, or less", said[0])
    files = sorted(path.name for path in (tmp_path / "a").glob("*.json"))
    names = [f"recall{P}-sound-{name}-{seed}.json" for P in (2, 3) for name in ("binding", "gru") for seed in (0, 1)]
    assert files == names
    for result in found:
        stored = json.loads(
            (tmp_path / "a" / "{benchmark}-{protocol}-{model}-{seed}.json".format(**result)).read_text()
        )
        assert stored == result and result["stopped"] == "finished" and result["history"]["step"] == [2, 3]
        assert build(result["config"]).size == result["parameters"] and 0 <= result["test_accuracy"] <= 1
        assert {len(values) for values in result["history"].values()} == {2}
    assert len({result["test_loss"] for result in found}) == len(found)
    said.clear()
    assert recall.recall(**ask, say=said.append) == found and all("there already" in line for line in said)
    again = recall.recall(**{**ask, "results": tmp_path / "b"}, say=said.append)
    clocks = {"seconds", "cpu_seconds", "history"}
    for one, other in zip(found, again, strict=True):
        assert {key: one[key] for key in one.keys() - clocks} == {key: other[key] for key in one.keys() - clocks}
    with pytest.raises(ValueError, match=r"recall2-sound-gru-0.json: holds a run with .*'steps': 3.*asked"):
        recall.recall(**{**ask, "steps": 4})


def test_training_keeps_to_one_blas_thread(small, tmp_path, monkeypatch):
    """Catches a loop of its own beside `fit`, where a second thread spins and waits."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    for name in processes.BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    seen, right = set(), Adam.update

    def update(self, params, grads):
        seen.update(each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas")
        right(self, params, grads)

    monkeypatch.setattr(Adam, "update", update)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        recall.recall([2], ["gru"], steps=2, results=tmp_path, say=lambda line: None)
    assert seen == {1}


def test_the_best_of_several_rates_is_used_for_all_seeds(small, tmp_path):
    """A rate that is chosen by the last one tried, or another for every seed."""
    ask = {"models": ["gru"], "pairs": [2], "seeds": 2, "steps": 4, "results": tmp_path, "say": lambda line: None}
    found = recall.recall(rates=(1e-6, 1e-2, 1e-5), **ask)
    tried = {path: json.loads(path.read_text()) for path in (tmp_path / "rates").glob("*.json")}
    assert len(tried) == 3
    best = min(tried.values(), key=lambda result: result["history"]["val_loss"][-1])
    assert [result["training"]["learning_rate"] for result in found] == [best["training"]["learning_rate"]] * 2
    assert found[0] == best and found[1]["seed"] == 1


def test_processes_find_what_one_finds(tmp_path, capfd):
    """Runs that depend on who makes them, or are lost on the way back; two at a time, as large as they come."""
    ask = {"models": ["rnn", "gru"], "pairs": [2], "steps": 2, "rates": (1e-3, 1e-2)}
    found = recall.recall(**ask, jobs=2, results=tmp_path / "two")
    wanted = recall.recall(**ask, results=tmp_path / "one", say=lambda line: None)
    clocks = {"seconds", "cpu_seconds", "history", "machine"}  # one BLAS thread there
    for one, other in zip(found, wanted, strict=True):
        assert {key: one[key] for key in one.keys() - clocks} == {key: other[key] for key in one.keys() - clocks}
    assert "recall2-sound-gru-0.01: done" in capfd.readouterr().out


def test_a_run_that_another_process_has_is_left_to_it(small, tmp_path):
    ask = {"models": ["rnn", "gru"], "pairs": [2], "steps": 2, "results": tmp_path, "say": lambda line: None}
    protocols.folder(tmp_path / "runs")
    with (
        storage.lock(tmp_path / "runs" / ".recall2-sound-rnn-0.lock"),
        pytest.raises(ValueError, match=r"results: without recall2-sound-rnn-0.json, which failed, .*"),
    ):
        recall.recall(**ask)
    assert [path.name for path in tmp_path.glob("*.json")] == ["recall2-sound-gru-0.json"]
    assert len(recall.recall(**ask)) == 2


def test_a_run_that_ends_elsewhere_while_one_waits_is_not_repeated(small, tmp_path):
    (found,) = recall.recall([2], ["rnn"], steps=2, results=tmp_path, say=lambda line: None)
    run = experiments.Run(tmp_path / "recall2-sound-rnn-0.json", Recall(2), "rnn", 0, 2e-3, 2, 128)
    assert experiments.one(run, tmp_path / "runs") == "another process did it" and run.stored() == found


def test_a_run_that_has_learned_enough_ends(small, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "ENOUGH", -1)
    (found,) = recall.recall([2], ["rnn"], steps=9, results=tmp_path, say=lambda line: None)
    assert found["stopped"] == "early" and found["steps"] == 2


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        ({"models": ["transformer"]}, ValueError, "models: expected one of .*got 'transformer'"),
        ({"pairs": [0]}, ValueError, "pairs: expected at least 1, got 0"),
        ({"pairs": []}, ValueError, "tasks, models, rates: expected at least one"),
        ({"seeds": 0}, ValueError, "seeds: expected at least 1"),
        ({"steps": 1.5}, TypeError, "steps: expected a whole number"),
        ({"jobs": 0}, ValueError, "jobs: expected at least 1"),
        ({"rates": [0]}, ValueError, "rates: expected a finite number greater than 0"),
        ({"pairs": [4_000], "models": ["lstm"]}, ValueError, "recall4000: lstm cannot be within 5% of 70,000"),
    ],
)
def test_bad_settings_are_told_before_any_work(ask, error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "train", None)
    with pytest.raises(error, match=words):
        recall.recall(**{"results": tmp_path, **ask})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_rate_that_diverges_is_recorded_and_the_others_go_on(tmp_path, capfd, jobs):
    """One such rate ended the whole comparison, at every rerun."""
    ask = {"models": ["rnn", "gru"], "pairs": [2], "seeds": 2, "steps": 3, "rates": (1e38, 1e-3), "jobs": jobs}
    found = recall.recall(**ask, results=tmp_path)
    for name in ("rnn", "gru"):
        tried = json.loads((tmp_path / "rates" / f"recall2-sound-{name}-1e+38.json").read_text())
        assert tried["stopped"] == "diverged" and tried["why"].startswith("learning_rate: at 1e+38, step")
    assert "diverged, and is not tried again" in capfd.readouterr().out
    assert [result["training"]["learning_rate"] for result in found] == [1e-3] * 4
    assert all(0 <= result["test_accuracy"] <= 1 for result in found)
    said = []
    assert recall.recall(**ask, results=tmp_path, say=said.append) == found
    assert len(said) == 8 and all("there already" in line for line in said)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rates", [(1e38,), (1e38, 1e37)])
def test_where_every_rate_diverges_that_is_the_result(small, tmp_path, capsys, rates):
    """Rerun for ever, a table that fails on it, scores that are not there."""
    command = ["recall", "--pairs", "2", "--models", "gru", "rnn", "--seeds", "2", "--steps", "3"]
    command += ["--results", str(tmp_path), "--rates", *map(str, rates)]
    for _ in range(2):
        assert cli.main(command) == 0
        assert capsys.readouterr().out.count(f"diverged at learning rate {min(rates):g}\n") == 4
    assert len(list(tmp_path.glob("*.json"))) == 4
    recall.recall([2], ["lstm"], steps=2, results=tmp_path, say=lambda line: None)
    shown = table("results", "recall2", "sound", tmp_path)
    assert "LSTM" in shown and "GRU" not in shown
    with pytest.raises(ValueError, match=r"holds a run with .*'steps': 3.*asked"):
        recall.recall([2], ["gru"], steps=4, rates=rates, seeds=2, results=tmp_path, say=lambda line: None)


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
    ask = {"models": ["rnn"], "steps": 2, "results": tmp_path, "say": lambda line: None}
    (found,) = recall.recall([2], **ask)
    assert found["stopped"] == "diverged" and "learning_rate: at 0.002" in found["why"]
    assert json.loads((tmp_path / "recall2-sound-rnn-0.json").read_text()) == found
    assert not any(key.startswith("test_") for key in found)
    monkeypatch.setattr(experiments, "train", None)
    assert recall.recall([2], **ask) == [found]


def test_the_command(small, tmp_path, capsys):
    command = ["recall", "--pairs", "2", "--models", "lstm", "--steps", "2", "--results", str(tmp_path)]
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
    told = Recall(2).extra(model, None, rng, [(x, y)])["recalled"]
    assert told["symbols"] == x[0].argmax(-1).tolist() and np.argmax(told["lengths"], 1).tolist() == [1, 3]


@settings(max_examples=10)
@given(st.booleans(), st.sampled_from(("previous", "own")), st.sampled_from(("gate", "learned", "fixed")))
def test_a_binding_model_is_saved_and_built_by_name(tmp_path_factory, gated, write_at, plasticity):
    """A switch that a file loses."""
    path = tmp_path_factory.mktemp("models") / "model.npz"
    cells = [Binding(3, 4, gated=gated, write_at=write_at, plasticity=plasticity), Binding(2, 3, trace="batch")]
    model = Classifier(cells, 3, 2, seed=5)
    assert model.config()["cells"][0]["kind"] == "binding"
    found, x = load(model.save(path)), np.random.default_rng(0).standard_normal((4, 5, 3), np.float32)
    assert found.cells == model.cells
    np.testing.assert_array_equal(found.predict_outputs(x), model.predict_outputs(x))

"""Many runs: what is missing is run once, whatever is cut off goes on, and nothing is overwritten."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from enn_np import benchmark, cli, language, protocols, run, storage, variants, wikitext
from enn_np.models import Classifier
from enn_np.protocols import read_json
from enn_np.report import load_results

ROOT = Path(__file__).resolve().parents[1]
TINY = {"epochs": 1, "limit": 64}
KEYS = {"benchmark", "protocol", "model", "seed", "training", "parameters", "seconds", "test_loss", "history"}


def run_one(results, model="rnn", seed=0, name="regression", protocol="paper", **shorter):
    return benchmark.run_one(name, protocol, model, seed, results, "cpu", {**TINY, **shorter})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few examples, and no figures."""
    monkeypatch.setattr(protocols, "GENERATED", {"regression": (200, 50, 50), "recall": (200, 50, 50)})
    monkeypatch.setattr(protocols, "draw", lambda out, results, monitor: [])


# One run, in this process


def test_a_run_becomes_a_result_file(tmp_path):
    said = run_one(tmp_path)
    result = read_json(tmp_path / "regression-paper-rnn-0.json")
    assert said.startswith("test loss") and result.keys() >= KEYS | {"test_linear_loss", "machine", "config"}
    assert result["training"] == {"epochs": 1, "batch_size": 128, "learning_rate": 1e-3, "limit": 64}
    assert "revision" in result["machine"] and [path.name for path in tmp_path.glob("*")].count("runs") == 1


def test_a_result_is_never_made_twice_or_overwritten(tmp_path):
    run_one(tmp_path)
    path = tmp_path / "regression-paper-rnn-0.json"
    path.write_text("{}")
    assert run_one(tmp_path) == "another process did it" and path.read_text() == "{}"


@pytest.mark.parametrize(
    ("asked", "differs"), [({}, "epochs was 1, is 20"), (TINY | {"limit": 9}, "limit was 64, is 9")]
)
def test_a_trial_does_not_stand_for_the_whole_run(tmp_path, asked, differs):
    run_one(tmp_path)
    ask = {"name": "regression", "protocol": "paper", "models": ["rnn"], "seeds": 1, "results": tmp_path}
    with pytest.raises(ValueError, match=rf"regression-paper-rnn-0\.json: .*{differs}"):
        benchmark.benchmark(**ask, **asked)
    said = []
    assert benchmark.benchmark(**ask, **TINY, say=said.append) == 0 and said[0].startswith("0 of 1 runs to do")


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    work = protocols.folder(tmp_path / "runs" / "regression-paper-rnn-0")
    with storage.lock(work / ".result.lock"):
        assert run_one(tmp_path) == "another process has it"
    assert not (tmp_path / "regression-paper-rnn-0.json").exists()


def test_a_finished_run_whose_result_is_lost_is_not_trained_again(tmp_path, monkeypatch):
    """The result file is written from the run's folder, unless that has other settings."""
    run_one(tmp_path)
    path = tmp_path / "regression-paper-rnn-0.json"
    first = path.read_text()
    path.unlink()
    monkeypatch.setattr(protocols, "fit", None)
    run_one(tmp_path)
    assert path.read_text() == first
    path.unlink()
    with pytest.raises(ValueError, match=r"training\.limit was 64, is 100"):
        run_one(tmp_path, limit=100)


# The learning rate


def test_the_rate_is_chosen_on_validation_and_used(tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("the test part was looked at")

    with monkeypatch.context() as patch:
        patch.setattr(protocols, "train", never)  # which tests; `learn` does not
        said = benchmark.search("regression", "sound", "gru", tmp_path, "cpu", TINY)
    found = read_json(tmp_path / "rates" / "regression-sound-gru.json")
    losses = found["validation_loss"]
    assert set(losses) == {"0.0003", "0.001", "0.003"} and found["training"]["limit"] == 64
    assert found["learning_rate"] == float(min(losses, key=losses.get)) and str(found["learning_rate"]) in said
    run_one(tmp_path, "gru", protocol="sound")
    used = read_json(tmp_path / "regression-sound-gru-0.json")["training"]["learning_rate"]
    assert used == found["learning_rate"]


def test_a_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tried, real = [], benchmark._validation_loss

    def killed(what, device, verbose):
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(what["training"]["learning_rate"])
        return real(what, device, verbose)

    monkeypatch.setattr(benchmark, "_validation_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark.search("regression", "sound", "rnn", tmp_path, "cpu", TINY)
    with pytest.raises(ValueError, match="search for rnn has not ended"):
        run_one(tmp_path, protocol="sound")
    monkeypatch.setattr(benchmark, "_validation_loss", lambda what, device, verbose: tried.append("last") or 9.0)
    benchmark.search("regression", "sound", "rnn", tmp_path, "cpu", TINY)
    assert tried == [3e-4, 1e-3, "last"]
    assert benchmark.search("regression", "sound", "rnn", tmp_path, "cpu", TINY) == "another process chose it"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rates_that_diverge_are_not_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "GRID", {"regression": (1e-3, 1e38)})
    benchmark.search("regression", "sound", "rnn", tmp_path, "cpu", {**TINY, "limit": 200, "epochs": 2})
    found = read_json(tmp_path / "rates" / "regression-sound-rnn.json")
    assert found["learning_rate"] == 1e-3 and found["validation_loss"]["1e+38"] is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_runs_that_diverge_are_recorded_and_not_tried_again(tmp_path, monkeypatch, protocol):
    """Where every rate diverges, the lowest is run, and its end is the result; the others go on; no rerun for ever."""
    monkeypatch.setattr(benchmark, "GRID", {"regression": (1e38, 1e37)})
    if protocol == "paper":
        wild = {"epochs": 20, "batch_size": 128, "learning_rate": 1e38, "limit": None}
        monkeypatch.setattr(protocols, "training_settings", lambda *_, **given: {**wild, **given})
    here = lambda work, tasks, jobs, say: sum(say(work(*of)) is not None for of in tasks.values())  # noqa: E731
    monkeypatch.setattr(benchmark, "in_processes", here)
    ask = {"name": "regression", "protocol": protocol, "models": ["lstm", "rnn"], "seeds": 2, "results": tmp_path}
    said = []
    assert benchmark.benchmark(**ask, epochs=2, say=said.append) == 0
    assert sum("diverged, and is not tried again: learning_rate: at 1e+3" in line for line in said) == 4
    for path in tmp_path.glob("*.json"):
        found = protocols.read_result(path)
        assert found["stopped"] == "diverged" and found["training"]["learning_rate"] >= 1e37 and found["why"]
    assert len(list(tmp_path.glob("*.json"))) == 4 and not list(tmp_path.rglob("checkpoint.npz"))
    assert benchmark.benchmark(**ask, epochs=2, say=said.append) == 0 and said[-1].startswith("0 of 4 runs to do, 0")
    assert load_results(tmp_path, "regression", protocol) == {}


@pytest.mark.parametrize(
    "held", ["{}", '{"validation_loss": 3, "learning_rate": 1}', '{"validation_loss": {}}', "[]", "{"]
)
def test_a_file_that_is_no_search_is_named(tmp_path, held):
    path = protocols.folder(tmp_path / "rates") / "regression-sound-rnn.json"
    path.write_text(held)
    for function in (benchmark.search, benchmark._rate):
        with pytest.raises(ValueError, match=r"regression-sound-rnn\.json: (holds no search|not readable|expected)"):
            given = ("cpu", TINY) if function is benchmark.search else ()
            where = (tmp_path, *given)
            function("regression", "sound", "rnn", *where)


def test_committed_rates_are_those_of_the_recipes():
    """WikiText-2's learning rates stand in the code, so that `train` needs no results; they are the searches'."""
    for path in (ROOT / "data" / "results" / "rates").glob("wikitext2-*.json"):
        model = read_json(path)["model"]
        chosen = benchmark._rate("wikitext2", "sound", model, path.parents[1])
        assert chosen in (None, language.WIKITEXT2[model][1]), path.name


# All of them, in processes


def test_the_command_runs_what_is_missing_in_processes(tmp_path, capsys):
    """Two at a time, each with one BLAS thread; one that fails does not cost the other, and is made up for later."""
    work = tmp_path / "runs" / "regression-paper-rnn-0"
    work.parent.mkdir()
    work.write_text("a file where a folder should be")
    command = ["benchmark", "regression", "--seeds", "2", "--models", "rnn", "--jobs", "2", "--epochs", "1"]
    command += ["--limit", "64", "--results", str(tmp_path)]
    assert cli.main(command) == 1
    out = capsys.readouterr().out
    assert "2 of 2 runs to do" in out and "regression-paper-rnn-0: FAILED: ValueError: out: " in out
    assert "regression-paper-rnn-1: test loss" in out
    work.unlink()
    assert cli.main(command) == 0 and "1 of 2 runs to do" in capsys.readouterr().out
    results = [read_json(tmp_path / f"regression-paper-rnn-{seed}.json") for seed in (0, 1)]
    assert {each["machine"]["blas_threads"] for each in results} == {"1"}
    assert results[0]["test_loss"] != results[1]["test_loss"]
    assert cli.main(command) == 0 and "0 of 2 runs to do" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_command_leaves_nothing_running_and_goes_on(tmp_path):
    """SIGKILL of the parent ends its child; the same run then goes on from the checkpoint and becomes a result."""
    command = [sys.executable, "-m", "enn_np", "benchmark", "regression", "--seeds", "1", "--models", "gru"]
    command += ["--results", str(tmp_path), "--limit", "1000", "--epochs", "9"]
    process = subprocess.Popen(command, cwd=ROOT)
    work = tmp_path / "runs" / "regression-paper-gru-0"
    deadline = time.monotonic() + 60
    while not (work / "checkpoint.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with storage.lock(work / ".result.lock"):  # waits for the child's end
        assert (work / "checkpoint.npz").exists() and not (work / "summary.json").exists()
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert read_json(tmp_path / "regression-paper-gru-0.json")["stopped"] in ("finished", "early")
    assert not (work / "checkpoint.npz").exists()


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"name": "imagenet"}, "benchmark: .*imagenet"),
        ({"protocol": "ablation"}, "protocol: .*ablation"),
        ({"models": ["rnn-parameters"]}, "models: .*rnn-parameters"),
        ({"seeds": -1}, "seeds: .*-1"),
        ({"jobs": 0}, "jobs: .*0"),
        ({"limit": 0}, "limit: .*0"),
        ({"train": "own.txt"}, "train: regression is no text .*own.txt"),
        ({"results": benchmark.RESULTS, "epochs": 1}, "epochs: data/results is for whole runs"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tmp_path, monkeypatch, wrong, names):
    monkeypatch.chdir(tmp_path)
    right = {"name": "regression", "protocol": "sound", "results": tmp_path / "results"}
    with pytest.raises(ValueError, match=names):
        benchmark.benchmark(**{**right, **wrong})
    assert not list(tmp_path.iterdir())


# Networks by name


def size(name, benchmark="mnist", protocol="sound"):
    return variants.network(benchmark, protocol, name, 0)[0].size


@pytest.mark.parametrize("benchmark", variants.WIDTHS)
@pytest.mark.parametrize("kind", (*variants.KINDS, "binding"))
def test_rivals_as_large_as_engram(benchmark, kind):
    assert size(f"{kind}-parameters", benchmark) == pytest.approx(size("engram", benchmark), rel=0.02)


@pytest.mark.parametrize("name", variants.CONTROLS)
def test_a_control_is_one_change(name):
    """Catches a control that keeps what it should be without, or that is of another size than what it controls."""
    control, model = (variants.network("cifar10", "sound", each, 0)[0] for each in (name, variants.CONTROLS[name]))
    assert control.size == pytest.approx(model.size, rel=0.02)
    ours, theirs = ({str(cell) for cell in each.cells} for each in (control, model))
    if name == "binding-no-trace":
        assert control.dropout == model.dropout and ours != theirs
        x = np.random.default_rng(0).random((4, 2, 96), np.float32)
        _, state, _ = run(control.cells[0], control.layer_params(0), x)
        assert not state.A.any() and state.a.any()
    else:
        assert (control.dropout, model.dropout) == (0.3, 0) and ours == theirs


def test_language_models_are_of_one_size():
    """Without building a vocabulary of 33,278: all but the cell and what hangs on its width is the same."""
    sizes = []
    for name in variants.MODELS:
        settings, _ = language.wikitext2_recipe(name)
        sizes.append(language.LanguageModel(vocabulary_size=33_278, **settings).size)
    assert max(sizes) / min(sizes) < 1.05


@pytest.mark.parametrize("name", variants.ABLATIONS)
@pytest.mark.parametrize("task", variants.ABLATED)
def test_every_ablation_is_one_change_and_runs(task, name):
    model, frozen = variants.network(task, "ablation", name, seed=0)
    x = np.random.default_rng(0).random((3, 2, variants.SHAPES[task][0]), np.float32)
    assert np.isfinite(model.loss_and_grads(x, np.array([1, 2]), np.random.default_rng(0))[0]["loss"])
    assert isinstance(model, Classifier) and not model.random_inference and set(frozen) <= set(model.params)


def test_no_bank_stays_without_one(tmp_path):
    """M is zero after training too, is not counted, and what is left is the trace."""
    run_one(tmp_path, "no-bank", name="recall", protocol="ablation")
    run_one(tmp_path, "full", name="recall", protocol="ablation")
    with np.load(tmp_path / "runs" / "recall-ablation-no-bank-0" / "model.npz") as model:
        assert not model["0.M"].any() and model["0.W_z"].any()
    found = [read_json(tmp_path / f"recall-ablation-{name}-0.json")["parameters"] for name in ("full", "no-bank")]
    assert found[0] - found[1] == 64 * 16


def test_text_runs_note_the_trace(tmp_path, monkeypatch):
    """Trace statistics per epoch of a language model, untrained first."""
    rng = np.random.default_rng(0)
    model = language.LanguageModel(language.Engram(8, 4), 20, embedding=8)
    monitor = wikitext._monitor(model, rng.integers(20, size=(3, 5)))
    model.fit_stream(rng.integers(20, size=200), epochs=2, batch_size=4, steps=5, callbacks=[monitor], verbose=0)
    assert len(monitor.statistics) == 3 and monitor.statistics[1]["drift"] > 0
    assert json.dumps(monitor.statistics)

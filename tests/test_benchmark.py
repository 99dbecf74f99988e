"""Many runs: what is missing is run once, whatever is cut off goes on, and nothing is overwritten."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from enn_np import checkpoint as storage
from enn_np import language, run
from enn_np.lab import cli, inputs, pages, runner, table, work
from enn_np.lab.pages import load_results
from enn_np.lab.results import folder, read_json, read_result
from enn_np.models import Classifier

ROOT = Path(__file__).resolve().parents[1]
TINY = {"epochs": 1, "limit": 64}
KEYS = {"benchmark", "protocol", "model", "seed", "training", "parameters", "seconds", "test_loss", "history"}


def one(results, model="rnn", key="regression/paper", **shorter):
    experiment = table.find(key)
    training = runner.settings_of(experiment, model, {**TINY, **shorter})
    return runner.one(runner.Run(experiment, model, 0, training, results))


def all_of(results, model="rnn", **settings):
    """What is missing of the sound protocol, and what was said."""
    said = []
    return runner.run_all(
        ["regression/sound"],
        [model],
        results=results,
        say=said.append,
        **{**TINY, "rates": (3e-4, 1e-3, 3e-3), **settings},
    ), said


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few examples, and no figures."""
    monkeypatch.setattr(inputs, "GENERATED", {"regression": (200, 50, 50), "recall": (200, 50, 50)})
    monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])


# One run, in this process


def test_a_run_becomes_a_result_file(tmp_path):
    said = one(tmp_path)
    result = read_json(tmp_path / "regression-paper-rnn-0.json")
    assert said.startswith("test loss") and result.keys() >= KEYS | {"test_linear_loss", "machine", "config"}
    assert result["training"] == {"epochs": 1, "batch_size": 128, "learning_rate": 1e-3, "limit": 64}
    assert "revision" in result["machine"] and [path.name for path in tmp_path.glob("*")].count("runs") == 1


def test_a_result_is_never_made_twice_or_overwritten(tmp_path):
    one(tmp_path)
    path = tmp_path / "regression-paper-rnn-0.json"
    path.write_text("{}")
    assert one(tmp_path) == "another process did it" and path.read_text() == "{}"


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    place = folder(tmp_path / "runs" / "regression-paper-rnn-0")
    with storage.lock(place / ".result.lock"):
        assert one(tmp_path) == "another process has it"
    assert not (tmp_path / "regression-paper-rnn-0.json").exists()


def test_a_finished_run_whose_result_is_lost_is_not_trained_again(tmp_path, monkeypatch):
    """The result file is written from the run's folder, unless that has other settings."""
    one(tmp_path)
    path = tmp_path / "regression-paper-rnn-0.json"
    first = path.read_text()
    path.unlink()
    monkeypatch.setattr(work, "fit", None)
    one(tmp_path)
    assert path.read_text() == first
    path.unlink()
    assert "training.limit was 64, is 100" in one(tmp_path, limit=100)


# The learning rate


def test_the_rate_is_chosen_on_validation_and_used(tmp_path, monkeypatch):
    """Each is tried for so long as the experiment says; the test part is looked at by none of them."""
    ready = work.arrays

    def unseen(*run):
        return ready(*run)._replace(test=lambda: pytest.fail("the test part was looked at"))

    with monkeypatch.context() as patch:
        patch.setitem(work.SOURCES, "arrays", unseen)
        found, said = all_of(tmp_path, "gru", seeds=0, epochs=None)
    assert found == [] and said[0] == "3 trials of learning rates to do first" and said[-1] == "0 of 0 runs to do"
    tried = {path.stem: read_json(path) for path in (tmp_path / "rates").glob("*.json")}
    assert set(tried) == {f"regression-sound-gru-{rate}" for rate in ("0.0003", "0.001", "0.003")}
    assert all(each["training"]["epochs"] == 5 and each["training"]["limit"] == 64 for each in tried.values())
    best = min(tried.values(), key=lambda each: min(each["history"]["val_loss"]))
    (result, *_), _ = all_of(tmp_path, "gru", epochs=None, seeds=1)
    assert result["training"] == best["training"] | {"epochs": 20} and "test_loss" in result


def test_a_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Ctrl-C in the third trial: two are there, the third goes on; a trial that another process has is waited for."""
    fit, tried = work.fit, []

    def killed(model, *data, **settings):
        tried.append(settings["optimizer"].learning_rate)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return fit(model, *data, **settings)

    monkeypatch.setattr(work, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        all_of(tmp_path, seeds=1)
    place = folder(tmp_path / "runs" / "trial-regression-sound-rnn-0.003")
    with storage.lock(place / ".result.lock"):
        found, said = all_of(tmp_path, seeds=1)
    assert found == [None] and "the search for rnn has not ended" in " ".join(said)
    found, _ = all_of(tmp_path, seeds=1)
    assert tried[:4] == [3e-4, 1e-3, 3e-3, 3e-3] and len(tried) == 5 and found[0]["test_loss"] > 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rates_that_diverge_are_not_chosen(tmp_path):
    (found,), _ = all_of(tmp_path, rates=(1e-3, 1e38), limit=200, epochs=2, seeds=1)
    assert found["training"]["learning_rate"] == 1e-3
    assert read_json(tmp_path / "rates" / "regression-sound-rnn-1e+38.json")["stopped"] == "diverged"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rates", [(1e38, 1e37), (1e38,)])
def test_runs_that_diverge_are_recorded_and_not_tried_again(tmp_path, rates):
    """Where every rate diverges, the lowest is run, and its end is the result; the others go on; no rerun for ever."""
    said = []
    ask = {"models": ["lstm", "rnn"], "seeds": 2, "rates": rates, "results": tmp_path, "epochs": 2, "say": said.append}
    found = runner.run_all(["regression/sound"], **ask)
    again = [line for line in said if "diverged, and is not tried again: learning_rate: at 1e+3" in line]
    assert len(again) == {1: 4, 2: 8}[len(rates)]
    for path in tmp_path.glob("*.json"):
        result = read_result(path)
        assert result["stopped"] == "diverged" and result["training"]["learning_rate"] == min(rates) and result["why"]
    assert len(list(tmp_path.glob("*.json"))) == len(found) == 4 and not list(tmp_path.rglob("checkpoint.npz"))
    assert runner.run_all(["regression/sound"], **ask) == found and said[-1] == "0 of 4 runs to do"
    assert load_results(tmp_path, "regression", "sound") == {}


@pytest.mark.parametrize("loss", [lambda rate: 1 + rate, lambda rate: 2.3, lambda rate: None if rate > 2e-3 else rate])
def test_a_search_ends_whatever_is_found(loss, monkeypatch, tmp_path):
    """Where training only makes a network worse, half the best rate was better for ever."""
    tried = []

    def stored(run):
        tried.append(run.training["learning_rate"])
        assert len(tried) < 1000
        value = loss(tried[-1])
        history = {"val_loss": [value], "val_accuracy": [0.1]}
        return {"stopped": "diverged" if value is None else "finished", "steps": 9, "history": history}

    monkeypatch.setattr(runner.Run, "stored", stored)
    monkeypatch.setattr(runner, "write_text", lambda *_: None)
    monkeypatch.setattr(type(tmp_path), "read_text", lambda *_, **__: "")
    each = table.find("recall8")
    rate, missing = runner.search(each, "lstm", each.rates, {}, tmp_path)
    assert rate in tried and not missing and min(tried) > 5e-7 and max(tried) < 0.5


@pytest.mark.parametrize("held", ["[]", "{", '{"stopped": "finished", "history": {}}'])
def test_a_file_that_is_no_trial_is_named(tmp_path, held):
    (folder(tmp_path / "rates") / "regression-sound-rnn-0.001.json").write_text(held)
    with pytest.raises(ValueError, match=r"regression-sound-rnn-0\.001\.json: (benchmark|not readable|expected)"):
        all_of(tmp_path)


def test_stored_results_are_those_of_the_table():
    """Every stored run has the training settings and the learning rate that the same command would give it today."""
    results, seen = ROOT / "data" / "results", 0
    for each in table.FIXED.values():
        for model in each.models:
            rate, _ = runner.search(each, model, each.rates, {}, results)
            for path in results.glob(f"{each.name}-{each.protocol}-{model}-?.json"):
                training = runner.settings_of(each, model, {}, rate)
                assert runner.Run(each, model, int(path.stem[-1]), training, results).stored()
                seen += 1
    assert seen > 290


# All of them, in processes


def test_the_command_runs_what_is_missing_in_processes(tmp_path, capsys):
    """Two at a time, each with one BLAS thread; one that fails does not cost the other, and is made up for later."""
    work = tmp_path / "runs" / "regression-paper-rnn-0"
    work.parent.mkdir()
    work.write_text("a file where a folder should be")
    command = ["run", "regression", "--seeds", "2", "--models", "rnn", "--jobs", "2", "--epochs", "1"]
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
def test_a_killed_command_keeps_no_lock_and_goes_on(tmp_path):
    """SIGKILL right after the first checkpoint; the same run then goes on from there and becomes a result."""
    command = ["run", "regression/paper", "--seeds", "1", "--models", "gru", "--results", str(tmp_path)]
    command += ["--limit", "1000", "--epochs", "9"]
    code = f"""
import os, signal
from enn_np.checkpoint import Checkpoint
from enn_np.lab import cli
save = Checkpoint.save
Checkpoint.save = lambda *given: (save(*given), os.kill(os.getpid(), signal.SIGKILL))
cli.main({command})
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    work = tmp_path / "runs" / "regression-paper-gru-0"
    with storage.lock(work / ".result.lock"):
        assert (work / "checkpoint.npz").exists() and not (work / "summary.json").exists()
    assert subprocess.run([sys.executable, "-m", "enn_np", *command], cwd=ROOT).returncode == 0
    assert read_json(tmp_path / "regression-paper-gru-0.json")["stopped"] in ("finished", "early")
    assert not (work / "checkpoint.npz").exists()


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"experiments": ["imagenet"]}, "experiment: .*imagenet"),
        ({"experiments": []}, "experiments, models, rates: expected at least one"),
        ({"experiments": ["regression/ablation"]}, "protocol: .*ablation"),
        ({"models": ["rnn-parameters"]}, "models: .*rnn-parameters"),
        ({"seeds": -1}, "seeds: .*-1"),
        ({"jobs": 0}, "jobs: .*0"),
        ({"rates": [0]}, "rates: .*0"),
        ({"limit": 0}, "limit: .*0"),
        ({"steps": 5}, "steps: regression/sound has none"),
        ({"results": runner.RESULTS, "epochs": 1}, "epochs: data/results is for whole runs"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tmp_path, monkeypatch, wrong, names):
    monkeypatch.chdir(tmp_path)
    right = {"experiments": ["regression/sound"], "results": tmp_path / "results"}
    with pytest.raises(ValueError, match=names):
        runner.run_all(**{**right, **wrong})
    assert not list(tmp_path.iterdir())


def test_results_of_a_changed_tree_are_refused_where_results_are_kept(tmp_path, monkeypatch):
    """ "-dirty" in data/results said that nobody could run it again. Another folder takes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "revision", lambda: "0123456789ab-dirty")
    what = {"experiments": ["regression/paper"], "models": ["rnn"], "seeds": 0}
    for kept in (runner.RESULTS, f"{runner.RESULTS}/fair"):
        with pytest.raises(ValueError, match=r"^results: data/results is for .* 0123456789ab-dirty; commit"):
            runner.run_all(**what, results=kept)
    assert not list(tmp_path.iterdir()) and runner.run_all(**what, results="elsewhere") == []
    monkeypatch.setattr(runner, "revision", lambda: "0123456789ab")
    assert runner.run_all(**what) == []


# Networks by name


def size(name, benchmark="mnist"):
    return table.network(f"{benchmark}/sound", name).size


@pytest.mark.parametrize("benchmark", table.WIDTHS)
@pytest.mark.parametrize("kind", ("rnn", "gru", "lstm", "binding"))
def test_rivals_as_large_as_engram(benchmark, kind):
    assert size(f"{kind}-parameters", benchmark) == pytest.approx(size("engram", benchmark), rel=0.02)


@pytest.mark.parametrize("name", table.CONTROLS)
def test_a_control_is_one_change(name):
    """Catches a control that keeps what it should be without, or that is of another size than what it controls."""
    control, model = (table.network("cifar10/sound", each) for each in (name, table.CONTROLS[name]))
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
    for name in table.MODELS:
        settings, _ = language.wikitext2_recipe(name)
        sizes.append(language.LanguageModel(vocabulary_size=33_278, **settings).size)
    assert max(sizes) / min(sizes) < 1.05


@pytest.mark.parametrize("name", table.ABLATIONS)
@pytest.mark.parametrize("task", ["mnist", "recall"])
def test_every_ablation_is_one_change_and_runs(task, name):
    experiment = table.find(f"{task}/ablation")
    model, frozen = table.network(experiment, name), table.frozen(experiment, name)
    x = np.random.default_rng(0).random((3, 2, experiment.inputs), np.float32)
    assert np.isfinite(model.loss_and_grads(x, np.array([1, 2]), np.random.default_rng(0))[0]["loss"])
    assert isinstance(model, Classifier) and not model.random_inference and set(frozen) <= set(model.params)


def test_no_bank_stays_without_one(tmp_path):
    """M is zero after training too, is not counted, and what is left is the trace."""
    one(tmp_path, "no-bank", "recall/ablation")
    one(tmp_path, "full", "recall/ablation")
    with np.load(tmp_path / "runs" / "recall-ablation-no-bank-0" / "model.npz") as model:
        assert not model["0.M"].any() and model["0.W_z"].any()
    found = [read_json(tmp_path / f"recall-ablation-{name}-0.json")["parameters"] for name in ("full", "no-bank")]
    assert found[0] - found[1] == 64 * 16


def test_text_runs_note_the_trace(tmp_path, monkeypatch):
    """Trace statistics per epoch of a language model, untrained first."""
    rng = np.random.default_rng(0)
    model = language.LanguageModel(language.Engram(8, 4), 20, embedding=8)
    (monitor,) = work.watched(model, rng.integers(20, size=(3, 5)))
    model.fit_stream(rng.integers(20, size=200), epochs=2, batch_size=4, steps=5, callbacks=[monitor], verbose=0)
    assert len(monitor.statistics) == 3 and monitor.statistics[1]["drift"] > 0
    assert json.dumps(monitor.statistics)

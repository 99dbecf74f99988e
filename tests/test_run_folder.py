"""Folders that runs write to: what a killed run leaves, --resume, and two processes that want the same place."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_wikitext import text  # noqa: F401  the fixture
from tiny import digits, same_to_the_bit

from enn_np import Checkpoint, Classifier, LanguageModel, load
from enn_np import checkpoint as storage
from enn_np.data import images as datasets
from enn_np.lab import cli, inputs, pages, runner, table, work

TESTS = str(Path(__file__).parent)


class Killed(Exception):
    """The process ends here."""


@pytest.fixture
def small_mnist(monkeypatch):
    monkeypatch.setattr(datasets, "load_mnist", lambda: digits(150, 30))
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 20)
    monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])


@pytest.fixture
def killed_at(monkeypatch):
    """killed_at(owner, method, n): call number n of a model's method is the process's death; saves are frequent."""

    def arm(owner, method, n):
        original, calls = getattr(owner, method), []

        def dying(*given, **named):
            calls.append(1)
            if len(calls) == n:
                raise Killed
            return original(*given, **named)

        monkeypatch.setattr(owner, method, dying)
        monkeypatch.setattr(Checkpoint, "due", lambda self: True)

    return arm


def without_time(summary):
    """A summary but for what the clock says."""
    history = {name: values for name, values in summary["history"].items() if name != "seconds"}
    return {**summary, "history": history, "seconds": None}


MNIST = ("mnist/paper", "engram", 0)
SMALL = {"epochs": 2, "verbose": 0}
SETTINGS = (
    (MNIST, SMALL, (Classifier, "loss_and_grads", 3)),
    (
        ("wikitext2/sound", "lstm", 0),
        {**SMALL, "limit": 600},
        (LanguageModel, "learn", 20),
    ),
    (("wikitext2/paper", "gru", 0), SMALL, (LanguageModel, "learn", 2)),
)


@pytest.mark.parametrize(("what", "settings", "death"), SETTINGS, ids=("mnist", "sound text", "paper text"))
def test_a_killed_command_goes_on_in_its_folder(what, settings, death, small_mnist, text, tmp_path, killed_at):  # noqa: F811
    """The same summary, model and traces as without the kill, and nothing left over."""
    run = runner.run_one
    whole = run(*what, tmp_path / "whole", **settings)
    out = tmp_path / "killed"
    killed_at(*death)
    with pytest.raises(Killed):
        run(*what, out, **settings)
    assert load(out / "checkpoint.npz").size == whole["parameters"] and not (out / "summary.json").exists()
    with pytest.raises(ValueError, match=r"^out: .*killed holds an unfinished run; continue it by --resume, or delete"):
        run(*what, out, **settings)
    resumed = run(*what, out, **settings, resume=True)
    assert without_time(resumed) == without_time(whole)
    assert same_to_the_bit(load(out / "model.npz").params, load(tmp_path / "whole" / "model.npz").params)
    files = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert files == {"summary.json", "model.npz"} | ({"trace.npz"} if "engram" in what else set())
    for name in files & {"trace.npz"}:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(*what, out, **settings, resume=True) == resumed, "a finished run was not simply read"
    with pytest.raises(ValueError, match=r"summary\.json: the run there differs in seed was 0, is 7"):
        run(*what[:2], 7, out, **settings, resume=True)


def entries(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("other", ({"models": "rnn"}, {"seed": "1"}, {"limit": "5"}, {"experiment": "mnist/sound"}, {}))
@pytest.mark.parametrize("resume", (False, True))
def test_a_folder_belongs_to_one_run(other, resume, small_mnist, tmp_path, capsys, monkeypatch):
    """The old network's trace under the new one's name; a trial of five digits over the full run."""
    settings = {"models": "engram", "seed": "0", "epochs": "1", "limit": "60", "out": str(tmp_path / "run")}
    assert cli.main(["run", "mnist/paper", *(f"--{name}={value}" for name, value in settings.items())]) == 0
    before = entries(tmp_path / "run")
    monkeypatch.setattr(datasets, "load_mnist", lambda: pytest.fail("work before the folder was asked about"))
    settings = {"experiment": "mnist/paper", **settings, **other}
    again = [settings.pop("experiment"), *(f"--{name}={value}" for name, value in settings.items())]
    again += ["--resume"] * resume
    capsys.readouterr()
    assert cli.main(["run", *again]) == (0 if resume and not other else 2)
    err = capsys.readouterr().err
    if not resume:
        assert f"out: {tmp_path / 'run'} holds a finished run; continue it by --resume, or delete the folder, or" in err
    elif other:
        assert "summary.json: the run there differs in" in err
    assert entries(tmp_path / "run") == before


@pytest.mark.parametrize("name", ("summary.json", "model.npz", "trace.npz", "checkpoint.npz"))
@pytest.mark.parametrize("start", ("mnist", "wikitext2", "demo"))
def test_what_another_run_left_is_not_mixed_in(name, start, small_mnist, text, tmp_path, capsys):  # noqa: F811
    (tmp_path / name).write_bytes(b"left")
    command = ["demo"] if start == "demo" else ["run", start, "--models", "rnn"]
    for resume in ([], ["--resume"]) if start != "demo" and name in ("model.npz", "trace.npz") else ([],):
        assert cli.main([*command, *resume, "--out", str(tmp_path)]) == 2
        kind = "an unfinished" if name == "checkpoint.npz" else "a finished"
        err = capsys.readouterr().err
        assert f"out: {tmp_path} holds {kind} run; " in err and "choose another by --out" in err
        assert ("--resume" in err) == (start != "demo" and name in ("summary.json", "checkpoint.npz"))
    assert (tmp_path / name).read_bytes() == b"left"


def test_a_second_demo_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "MODELS", ("rnn",))
    monkeypatch.setattr(datasets, "load_digits", lambda: digits(450, 30))
    assert cli.main(["demo", "--epochs=1", f"--out={tmp_path / 'demo'}"]) == 0
    before = entries(tmp_path / "demo")
    assert cli.main(["demo", "--epochs=1", f"--out={tmp_path / 'demo'}"]) == 2
    assert "demo holds a finished run; delete the folder, or choose another by --out" in capsys.readouterr().err
    assert entries(tmp_path / "demo") == before


@pytest.mark.parametrize("error", (ValueError("no such file"), OSError("no network"), KeyboardInterrupt()))
@pytest.mark.parametrize("start", ("mnist", "wikitext2", "demo"))
def test_a_start_that_fails_leaves_no_folder(start, error, tmp_path, monkeypatch):
    def fail(*given, **named):
        raise error

    for name in ("load_mnist", "load_digits"):
        monkeypatch.setattr(datasets, name, fail)
    monkeypatch.setattr(work, "paper_windows", fail)
    command = ["demo"] if start == "demo" else ["run", start, "--models", "rnn"]
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new", tmp_path / "there"):
        assert cli.main([*command, "--out", str(out)]) != 0
    assert not (tmp_path / "new").exists() and (tmp_path / "there").exists()


def test_a_kill_between_training_and_summary_costs_no_training(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "write_json", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        runner.run_one(*MNIST, tmp_path, **SMALL)
    monkeypatch.undo()
    monkeypatch.setattr(datasets, "load_mnist", lambda: digits(150, 30))
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 20)
    monkeypatch.setattr(pages, "draw", lambda *_: [])
    monkeypatch.setattr(Classifier, "loss_and_grads", lambda *_: 1 / 0)
    assert runner.run_one(*MNIST, tmp_path, **SMALL, resume=True)["stopped"] == "finished"


def test_an_interrupted_run_can_be_resumed(small_mnist, tmp_path, monkeypatch, capsys):
    """Ctrl-C writes down what there is, says how to go on, and keeps the checkpoint."""
    command = ["run", "mnist", "--models", "rnn", "--epochs", "2", "--limit", "100", "--out"]
    assert cli.main([*command, str(tmp_path / "whole")]) == 0
    learn, calls = Classifier.loss_and_grads, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:  # the second epoch's only batch
            raise KeyboardInterrupt
        return learn(*given)

    monkeypatch.setattr(Classifier, "loss_and_grads", interrupted)
    assert cli.main([*command, str(tmp_path / "run")]) == 130
    assert "continue it by --resume" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped"] == "interrupted"
    assert cli.main([*command, str(tmp_path / "run"), "--resume"]) == 0
    whole, resumed = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "run"))
    assert without_time(whole) == without_time(resumed)


def test_tasks_in_turn_go_on_with_as_many_steps_alone(small_mnist, tmp_path, monkeypatch, capsys):
    """Catches a run of more steps, whose first task would have been learned for longer."""
    monkeypatch.setattr(work, "VALIDATION", 8)
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 60)  # some of each digit
    monkeypatch.setattr(datasets, "load_mnist", lambda: digits(150, 60))
    command = ["run", "split2", "--models", "lstm", "--rates", "1e-3", "--batch-size", "4", "--out", str(tmp_path)]
    learn, calls = Classifier.loss_and_grads, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 5:  # the first of the second task
            raise KeyboardInterrupt
        return learn(*given)

    monkeypatch.setattr(Classifier, "loss_and_grads", interrupted)
    assert cli.main([*command, "--steps", "8"]) == 130
    (tmp_path / "summary.json").unlink()  # as after a kill
    (tmp_path / "model.npz").unlink()
    assert cli.main([*command, "--steps", "16", "--resume"]) == 2
    assert re.search(r"differs in .*steps was 8, is 16", capsys.readouterr().err)
    assert cli.main([*command, "--steps", "8", "--resume"]) == 0


def test_the_command_says_when_there_is_nothing_to_resume(small_mnist, tmp_path, capsys):
    command = ["run", "mnist", "--models", "rnn", "--epochs", "1", "--resume", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    assert "nothing to resume there yet" in first
    assert cli.main(command) == 0
    assert capsys.readouterr().out in first.replace("nothing to resume there yet; starting from the beginning", "")


def test_a_damaged_checkpoint_or_summary_is_named(small_mnist, tmp_path, capsys):
    command = ["run", "mnist", "--models", "rnn", "--epochs", "1", "--resume", "--out", str(tmp_path)]
    for name, says in (("checkpoint.npz", "not a whole enn_np file"), ("summary.json", "not readable as JSON")):
        (tmp_path / name).write_bytes(b"half")
        assert cli.main(command) == 2
        assert f"{tmp_path / name}: {says}" in capsys.readouterr().err
        (tmp_path / name).unlink()


# Two processes

RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny import digits
from enn_np.data import images as datasets
from enn_np.lab import inputs, pages, runner
def data():  # asked for by who has the folder, and keeps it until the other one is refused
    for _ in range(6000):
        if Path({refused!r}).exists():
            break
        time.sleep(0.01)
    return digits(150, 30)
datasets.load_mnist = data
inputs.MNIST_HELD_OUT = 20
pages.draw = lambda *_: []
Path({ready!r}).touch()
while not Path({go!r}).exists():
    time.sleep(0.001)
try:
    runner.run_one("mnist/paper", "rnn", {seed}, {out!r}, epochs=2, verbose=0)
except ValueError as error:
    print(error)
    Path({refused!r}).touch()
    sys.exit(2)
"""


def at_once(codes, folder):
    """Run programs that wait for the file "go" in `folder`, all at the same moment: [(exit status, output), ...]."""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for code in codes
    ]
    while not all((folder / f"ready{i}").exists() or each.poll() is not None for i, each in enumerate(started)):
        time.sleep(0.01)
    (folder / "go").touch()
    outputs = [each.communicate()[0] for each in started]
    return [(each.returncode, output) for each, output in zip(started, outputs, strict=True)]


def test_two_runs_in_one_folder(tmp_path):
    """One works, the other is refused before any work: neither files of both, nor one over the other."""
    places = {"tests": TESTS, "refused": str(tmp_path / "refused")}
    places |= {"go": str(tmp_path / "go"), "out": str(tmp_path / "run")}
    codes = [RUN.format(**places, ready=str(tmp_path / f"ready{seed}"), seed=seed) for seed in (0, 1)]
    ended = at_once(codes, tmp_path)
    assert sorted(status for status, _ in ended) == [0, 2], ended
    assert any("in use by another run; wait" in output for _, output in ended)
    winner = [status for status, _ in ended].index(0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seed"] == winner and load(tmp_path / "run" / "model.npz").seed == winner


WRITE = """
import time
from pathlib import Path
from enn_np.lab import results
Path({ready!r}).touch()
while not Path({go!r}).exists():
    time.sleep(0.001)
for i in range(40):
    results.write_json(Path({out!r}) / "shared.json", {{"who": {who}, "numbers": [i] * 5000}})
    results.write_json(Path({out!r}) / f"own-{who}-{{i % 4}}.json", {{"numbers": [i] * 500}})
"""


def test_two_writers_of_one_results_folder(tmp_path):
    """Whoever looks sees a whole file of one of them; files of different names are all there."""
    places = {"go": str(tmp_path / "go"), "out": str(tmp_path / "results")}
    codes = [WRITE.format(**places, ready=str(tmp_path / f"ready{who}"), who=who) for who in (0, 1)]
    codes.append(WATCH.format(**places, ready=str(tmp_path / "ready2")))
    ended = at_once(codes, tmp_path)
    assert [status for status, _ in ended] == [0, 0, 0], ended
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"shared.json", *(f"own-{who}-{i}.json" for who in (0, 1) for i in range(4))}


WATCH = """
import json, time
from pathlib import Path
Path({ready!r}).touch()
while not Path({go!r}).exists():
    time.sleep(0.001)
path = Path({out!r}) / "shared.json"
while not path.exists():
    time.sleep(0.001)
for _ in range(200):
    seen = json.loads(path.read_text())
    assert len(set(seen["numbers"])) == 1 and len(seen["numbers"]) == 5000
"""


def test_the_demo_keeps_its_folder(tmp_path, capsys):
    with storage.lock(tmp_path / ".lock"):
        assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert f"out: {tmp_path} is in use by another run" in capsys.readouterr().err


# Other systems' paths


@pytest.mark.parametrize("name", ("C:\\Users\\Zoë\\my runs", "with space", "ünï", "a.b", "[x]*", "-out", "%TEMP%"))
def test_folders_of_any_name(name, small_mnist, tmp_path, monkeypatch):
    """A Windows path, which here is one odd name; brackets that a glob would read; what looks like an option."""
    monkeypatch.chdir(tmp_path)
    run = {"epochs": 1, "verbose": 0, "limit": 40}
    runner.run_one("mnist/paper", "rnn", 0, name, **run)
    assert load(Path(name) / "model.npz").size > 0
    assert runner.run_one("mnist/paper", "rnn", 0, name, **run, resume=True)["stopped"] == "finished"
    (Path(name) / "checkpoint.npz.12345678.part").touch()
    with storage.Checkpoint(Path(name) / "checkpoint.npz").held():
        pass
    assert not list(Path(name).glob("*.part"))


def test_every_file_of_a_run_has_a_name_that_windows_takes(small_mnist, tmp_path, killed_at):
    """No colon, quote, star, trailing dot or device name, not even for the files that live a moment only."""
    seen, replace = set(), storage.os.replace

    def watched(source, target):
        seen.update((Path(source).name, Path(target).name))
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.os, "replace", watched)
        runner.run_one(*MNIST, tmp_path / "run", epochs=1, verbose=0, limit=40)
    seen.update(path.name for path in (tmp_path / "run").iterdir())
    assert len(seen) > 6
    for name in seen:
        assert not set(name) & set('<>:"/\\|?*') and not name.endswith((".", " ")), name
        assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL"}, name

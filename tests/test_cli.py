"""The commands as a user meets them: what they print, what they write, how they end."""

import argparse
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_datasets import write_mnist
from tiny import digits, same_to_the_bit

from enn_np import RNN, Classifier, __version__, load
from enn_np.data import fetch as download
from enn_np.data import images as datasets
from enn_np.lab import cli, inputs, pages
from enn_np.lab import table as experiments
from enn_np.lab.cli import main
from enn_np.look import report as page

ROOT = Path(cli.__file__).resolve().parents[2]
COMMANDS = ("demo", "run", "list", "report", "tables", "gradcheck", "data")
ONE_RUN = ["--models", "rnn", "--steps", "2", "--seeds", "1", "--rates", "0.002", "--results", "results"]


@pytest.fixture
def run(capsys):
    """Run a command in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse: help, and arguments that it refuses
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def mnist_folder(tmp_path, monkeypatch):
    """$ENN_DATA with IDX files of 60 random digits, 12 of them held out, and 20 to test on."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_mnist(folder, train=60, test=20)
    monkeypatch.setenv("ENN_DATA", str(folder))
    monkeypatch.setattr(datasets, "load_mnist", partial(datasets.load_mnist, verify=False))
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 12)
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data set "toy" of two small files with published checksums and one without, in a folder of their own."""
    content = {"a.bin": b"first", "b.bin": b"second"}
    files = {name: (hashlib.sha256(data).hexdigest(),) for name, data in content.items()} | {"c.txt": ()}
    monkeypatch.setitem(download.SOURCES, "toy", download.Source(["toy"], (), {}, files))
    (tmp_path / "toy").mkdir()
    for name, data in {**content, "c.txt": b"third"}.items():
        (tmp_path / "toy" / name).write_bytes(data)
    return tmp_path


def python(code):
    """Run a program in a fresh interpreter; returns its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_report(patch):
    """Two sequences explained, eight counted: as many as the page holds take ten seconds."""
    patch.setattr(page, "EXAMPLES", 2)
    patch.setattr(page, "PROBE", 8)


def table(text):
    """Rows of a table as lists of words."""
    return [line.split() for line in text.splitlines()]


# Help


def test_help_names_every_command_with_a_word_about_it(run):
    status, out, err = run("--help")
    assert status == 0 and err == ""
    for command in COMMANDS:
        assert any(row[0] == command and len(row) > 3 for row in table(out) if row), command
    assert "python -m enn_np demo" in out, "nobody is told where to start"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_explains_every_option(run, command):
    """An argument without a word of help, or a command that does not say what it is for."""
    status, out, err = run(command, "--help")
    assert status == 0 and err == "" and f"usage: python -m enn_np {command}" in out
    (commands,) = (action for action in cli._parser()._actions if action.dest == argparse.SUPPRESS and action.choices)
    parser = commands.choices[command]
    assert parser.description in " ".join(out.split())
    assert all(action.help and len(action.help) > 6 for action in parser._actions)


def test_python_m_enn_np_is_the_same_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["enn_np", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("enn_np", run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out == f"enn_np {__version__}\n"


# Bad arguments

BAD_COMMANDS = (
    ([], "COMMAND"),
    (["dream"], "dream"),
    (["demo", "--epochs", "many"], "--epochs"),
    (["demo", "--epochs", "0"], "epochs: .*0"),
    (["demo", "--seed", "-1"], "seed: .*-1"),
    (["demo", "--out", __file__], "out: .*test_cli.py"),
    (["demo", "--out", ""], "--out: expected a path, got an empty one"),
    (["run", "recall8", "--results", ""], "--results: expected a path, got an empty one"),
    (["run"], "experiment"),
    (["run", "imagenet"], "experiment: .*imagenet"),
    (["run", "mnist", "--models", "transformer"], "models: .*transformer"),
    (["run", "mnist/fair"], "protocol: .*fair"),
    (
        ["run", "mnist", "--models", "rnn", "binding"],
        "models: mnist/paper has no 'binding', it is a network of mnist/sound$",
    ),
    (["run", "MNIST", "--models", "top-8"], "models: .* a network of mnist/ablation$"),
    (["run", "cifar-10", "--models", "lstm-time"], "models: .* a network of cifar10/sound$"),
    (["run", "wikitext-2", "--models", "binding"], "models: .* a network of wikitext2/sound$"),
    (
        ["run", "mnist", "--models", "binding", "--out", "x"],
        "model: mnist/paper has no 'binding', it is a network of mnist/sound$",
    ),
    (["run", "cifar10/ablation"], "protocol: expected .*got 'ablation'$"),
    (["run", "recall/paper"], "protocol: expected one of 'ablation', got 'paper'$"),
    (["run", "mnist", "--out", "x"], "out: a folder holds one run; name one experiment, network"),
    (["run", "mnist", "recall8", "--models", "rnn", "--out", "x"], "out: a folder holds one run"),
    (["run", "mnist", "--models", "rnn", "--seeds", "2", "--out", "x"], "out: a folder holds one run"),
    (["run", "recall8", "--models", "rnn", "--jobs", "0", "--out", "x"], "on: got None, jobs 0, out x; give one"),
    (["run", "recall8", "--models", "rnn", "--results", "y", "--out", "x"], "out: a folder holds one run"),
    (["run", "mnist", "--models", "rnn", "--seed", "2"], "resume, seed: they are of one run in a folder"),
    (["run", "mnist", "--steps", "9", "--results", "x"], "steps: mnist/paper has none"),
    (["run", "recall8", "--steps", "9"], "steps: data/results is for whole runs"),
    (["tables", "--page", "/"], "page: /: not readable as text .*name a Markdown file"),
    (["tables", "--page", "none.md"], "page: none.md: not readable as text .*name a Markdown file"),
    (["tables", "--page", str(ROOT / "data" / "mnist_5k.npz")], "page: .*mnist_5k.npz: not readable as text"),
    (["run", "copy" + "1" * 5000], "experiment: expected one of"),
    (["run", "recall100000000", "--results", "x"], "recall100000000: lstm cannot be within 5% of 70,000 parameters"),
    (["data", "list", "--folder", "~no-such-user/x"], "~no-such-user/x: no home folder is known"),
    (["demo", "--out", "~no-such-user/x"], "~no-such-user/x: no home folder is known"),
    (["run", "mnist", "--epochs", "2.5"], "--epochs"),
    (["run", "mnist", "--epochs", "0"], "epochs: .*0"),
    (["run", "mnist", "--limit", "0"], "limit: .*0"),
    (["run", "mnist", "--models", "gru", "--seed", "-3", "--out", "x"], "seed: .*-3"),
    (["run", "mnist", "--models", "gru", "--out", __file__], "out: .*test_cli.py"),
    (["gradcheck", "--seeds", "0"], "seeds: .*0"),
    (["gradcheck", "--seeds", "few"], "--seeds"),
    (["data"], "action"),
    (["data", "burn"], "burn"),
    (["data", "fetch"], "name: expected one of 'mnist', 'cifar10', 'wikitext-2', 'wikitext-103'"),
    (["data", "fetch", "mnst"], "name: invalid choice: 'mnst'"),
    (["data", "list", "mnst"], "name: invalid choice: 'mnst'"),
    (["data", "verify", "mnst"], "name: invalid choice: 'mnst'"),
)


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS, ids=lambda v: " ".join(v) if type(v) is list else "")
def test_bad_arguments_end_with_2_and_one_clear_line(run, monkeypatch, tmp_path, arguments, message):
    """Never a traceback, and nothing left behind in the folder where one stood."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_mnist", lambda: pytest.fail("data were loaded first"))
    monkeypatch.setattr(datasets, "load_digits", lambda: pytest.fail("data were loaded first"))
    status, out, err = run(*arguments)
    assert status == 2 and out == "" and "Traceback" not in err
    *usage, last = err.splitlines()
    assert not usage or usage[0].startswith("usage: python -m enn_np")
    assert re.search(message, last)


def test_missing_data_are_told_with_a_remedy(run, monkeypatch, tmp_path):
    """No network and no files: which files, where they were looked for, and what to do."""

    def refuse(name, folder=None):
        raise download.DownloadError(download.missing(name, folder, ["no network"]))

    monkeypatch.setenv("ENN_DATA", str(tmp_path))
    monkeypatch.setattr(download, "fetch", refuse)
    status, out, err = run("run", "mnist", "--models", "rnn", "--out", tmp_path / "out")
    assert status == 2 and out == "" and "Traceback" not in err
    assert err.startswith("enn_np: mnist: no good copy of train-images-idx3-ubyte") and "remedy:" in err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (MemoryError("cannot allocate 9 TiB"), 2, "enn_np: not enough memory; ask for less.*9 TiB"),
        (RuntimeError("a check that cannot be made"), 2, "enn_np: a check that cannot be made"),
        (json.JSONDecodeError("odd", "x", 0), 2, "enn_np: odd"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), 2, "enn_np: .*odd"),
        (BrokenPipeError(), 141, None),
    ],
)
def test_what_users_cause_ends_without_a_traceback(run, monkeypatch, error, status, says):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "fetch", fail)
    monkeypatch.setattr(cli, "mute", lambda: None)
    ended, out, err = run("data", "fetch", "mnist")
    assert ended == status and out == "" and (re.match(says, err) if says else err == "")


def test_a_fault_of_ours_keeps_its_traceback(run, monkeypatch):
    """Catches a RecursionError, which is a RuntimeError, told as if the user had caused it."""
    monkeypatch.setattr(cli, "fetch", lambda *given: cli.fetch(*given))
    with pytest.raises(RecursionError):
        run("data", "fetch", "mnist")


@pytest.mark.skipif(os.name == "nt", reason="pipes")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["gradcheck", "--seeds", "1", "--all"], (141,)),
        (["--help"], (0, 141)),
        (["data", "list"], (0, 141)),
        (["run", "recall2", *ONE_RUN], (0, 141)),
        (["run", "recall2", *ONE_RUN, "--jobs", "2"], (0, 141)),
    ],
)
def test_output_into_head_is_quiet_and_work_goes_on(tmp_path, command, status):
    """A traceback, "Exception ignored", a run that ends with its reader, a result that is lost."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ENN_DATA": str(tmp_path)}
    command = [sys.executable, "-m", "enn_np", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert err == b"" and process.returncode in status
    if "recall2" in command:
        assert (tmp_path / "results" / "recall2-sound-rnn-0.json").exists()


class Deaf:
    """A stream that takes nothing and is no file."""

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("error", (BrokenPipeError(), OSError(28, "full"), ValueError("closed")))
def test_work_goes_on_where_nobody_can_be_told(monkeypatch, error):
    """A full disk behind `>`, a closed stream, a reader that is gone where standard output is no file."""
    monkeypatch.setattr(sys, "stdout", Deaf(error))
    cli.say("a line")


def test_names_of_data_sets_are_read_in_every_spelling():
    parse = cli._parser().parse_args
    for text in ("wikitext2", "wikitext-2", "WikiText-2"):
        assert experiments.find(f"{text}/sound").key == "wikitext2/sound"
        assert parse(["data", "fetch", text]).name == "wikitext-2"
    assert experiments.find("CIFAR-10").name == parse(["data", "fetch", "cifar-10"]).name == "cifar10"


def test_a_tilde_in_an_option_is_the_users_home(run, monkeypatch, tmp_path):
    """A shell leaves the ~ of --folder=~/x as it is; a folder named ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "x").mkdir()
    status, out, _ = run("data", "list", "--folder=~/x")
    assert status == 0 and out.startswith(f"in {tmp_path / 'x'}\n")
    for options in (["demo", "--out=~/x"], ["run", "mnist", "--out=~/x"], ["report", "~/x", "--out=~/x"]):
        assert cli._parser().parse_args(options).out == tmp_path / "x"
    for options in (["tables"], ["list"], ["run", "mnist"]):
        assert cli._parser().parse_args([*options, "--results=~/x"]).results == tmp_path / "x"
    (tmp_path / "page.md").write_text("no marks")
    assert run("tables", "--page=~/page.md", "--results=~/x") == (0, "", "")


# train


def test_train_writes_its_result_and_prints_it_beside_the_papers(run, mnist_folder, tmp_path):
    """From official files to a result."""
    out_folder = tmp_path / "run"
    status, out, err = run(
        "run", "mnist", "--models", "rnn", "--seed", 5, "--limit", 40, "--epochs", 1, "--out", out_folder
    )
    summary = json.loads((out_folder / "summary.json").read_text())
    assert status == 0 and err == ""
    keys = ("benchmark", "protocol", "model", "seed", "parameters", "seconds", "test_loss", "test_accuracy")
    assert [summary[key] for key in keys[:5]] == ["mnist", "paper", "rnn", 5, 33_098]
    assert all(isinstance(summary[key], float) for key in keys[5:])
    assert summary["sequences"] == {"train": 40, "validation": 12, "test": 20}
    assert "parameters 33,098 (paper: 33,098)" in out and f"wrote {out_folder}" in out


def test_train_repeats_to_the_bit(run, mnist_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert one(run, tmp_path / name, "--seed", seed)[0] == 0
    params = [load(tmp_path / name / "model.npz").params for name in "abc"]
    assert same_to_the_bit(params[0], params[1])
    assert not any((params[0][name] == params[2][name]).all() for name in params[0])


def one(run, out, *options, model="engram"):
    """One short run in a folder."""
    return run("run", "mnist", "--models", model, "--limit", 32, "--epochs", 1, "--out", out, *options)


def test_a_run_without_a_published_number_stands_alone(run, monkeypatch, tmp_path):
    """The paper has no baselines on CIFAR-10."""
    numbers = {"test_accuracy": 0.5, "test_loss": 1.5, "parameters": 10, "seconds": 1.0, "stopped": "finished"}
    what = {"benchmark": "cifar10", "protocol": "sound", "model": "gru", "seed": 2}
    monkeypatch.setattr(cli, "run_one", lambda *_, **__: numbers | what)
    status, out, _ = run("run", "cifar10/sound", "--models", "gru", "--seed", 2, "--out", tmp_path / "run")
    assert status == 0 and "test accuracy 50.00%  test loss" in out and f"wrote {tmp_path / 'run'}" in out


def test_list_shows_every_experiment_and_what_is_stored(run):
    status, out, err = run("list", "--results", ROOT / "data" / "results")
    rows = {row[0]: row[1:] for row in table(out)[1:]}
    assert status == 0 and err == "" and rows.keys() > set(experiments.FIXED)
    assert rows["mnist/paper"][:4] == ["40", "5", "0.001", "engram"] and {"fewshot5/sound", "mqar4/sound"} < rows.keys()


# demo


def test_demo_runs_from_the_command_line(run, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_digits", lambda: digits(432, 20))
    monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])
    small_report(monkeypatch)
    status, out, err = run("demo", "--out", tmp_path / "demo", "--epochs", 1, "--seed", 4)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert str(tmp_path / "demo" / "report.html") in out and (tmp_path / "demo" / "report.html").exists()
    assert status == 0 and err == "" and summary["settings"]["seed"] == 4 and summary["settings"]["epochs"] == 1
    for name in ("Engram", "RNN", "GRU", "LSTM"):
        assert {"test_accuracy", "test_loss", "parameters", "seconds"} <= summary["models"][name].keys()
        assert any(row[:1] == [name] for row in table(out))


# Ctrl-C


@pytest.mark.parametrize("command", ("demo", "run"))
def test_ctrl_c_in_training_keeps_the_result_and_ends_with_130(run, monkeypatch, mnist_folder, tmp_path, command):
    monkeypatch.setattr(datasets, "load_digits", lambda: digits(432, 20))
    monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])
    small_report(monkeypatch)
    monkeypatch.setattr(Classifier, "loss_and_grads", interrupt)
    benchmark = ["mnist", "--models", "engram", "--limit", 32] if command == "run" else []
    status, _, err = run(command, *benchmark, "--out", tmp_path / "out")
    assert status == 130 and "Traceback" not in err
    assert (tmp_path / "out" / "summary.json").exists()


def test_report_writes_a_page_about_a_run(run, mnist_folder, tmp_path, monkeypatch):
    """What `train` wrote is enough; a folder without a run ends with 2 and its name."""
    small_report(monkeypatch)
    folder = tmp_path / "run"
    one(run, folder)
    for path, out in ((folder / "report.html", []), (tmp_path / "page.html", ["--out", tmp_path / "page.html"])):
        assert run("report", folder, *out) == (0, f"wrote {path}\n", "")
        assert "No trace" not in path.read_text(encoding="utf-8") and path.stat().st_size > 50_000
    status, _, err = run("report", tmp_path)
    assert status == 2 and err.startswith(f"enn_np: {tmp_path / 'summary.json'}: no run is there")


def test_ctrl_c_elsewhere_ends_with_130_and_one_line(run, monkeypatch):
    monkeypatch.setattr(cli, "fetch", interrupt)
    status, out, err = run("data", "fetch", "mnist")
    assert status == 130 and out == "" and err == "\nenn_np: interrupted\n"


def interrupt(*_):
    raise KeyboardInterrupt


# gradcheck


def test_gradcheck_shows_every_gradient_and_that_all_agree(run):
    status, out, err = run("gradcheck", "--seeds", 1, "--all")
    *rows, blank, verdict = table(out)
    assert status == 0 and err == "" and blank == []
    assert verdict[:1] == ["all"] and int(verdict[1]) == len(rows) - 1 > 100 and "gradients agree" in out
    names = {"RNN", "GRU", "LSTM", "LEM", "Engram", "Binding", "Window", "Convolution"}
    assert {row[0] for row in rows[1:]} == names
    for switch in (
        "write_at=own",
        "trace=sample",
        "layer_norm=False",
        "sparsemax",
        "entropy=",
        "trace_clip=0.01",
        "masked",
    ):
        assert switch in out, switch


def test_gradcheck_shows_a_line_for_every_cell(run, monkeypatch):
    monkeypatch.setattr(experiments, "ABLATIONS", {})
    status, out, err = run("gradcheck", "--seeds", 1)
    head, *rows, _, verdict = table(out)
    assert status == 0 and err == "" and head[:2] == ["cell", "gradients"]
    names = ["Binding", "Convolution", "Engram", "GRU", "LEM", "LSTM", "RNN", "Window"]
    assert [row[0] for row in rows] == names
    assert sum(int(row[1]) for row in rows) == int(verdict[1]) and all(0 < float(row[2]) < 1e-6 for row in rows)


@pytest.mark.parametrize("errors", [(1e-9, float("nan")), (float("nan"), 1e-9), (1e-9, float("inf"))])
@pytest.mark.parametrize("flags", [[], ["--all"]])
def test_gradcheck_fails_on_what_is_not_finite(run, monkeypatch, errors, flags):
    """NaN is not above the tolerance, and the maximum of 0 and NaN is 0."""
    monkeypatch.setattr(cli.gradcheck, "check", lambda cell, seed, **_: {"W": errors[seed]})
    status, out, _ = run("gradcheck", "--seeds", 2, *flags)
    failed = [row for row in table(out) if row[-1:] == ["FAILED"]]
    assert status == 1 and len(failed) > 40 and {row[-2] for row in failed} <= {"nan", "inf"}
    assert re.search(r"^(\d+) of \1 gradients FAILED", out, re.M)


def test_gradcheck_ends_with_1_where_a_gradient_is_broken(run, monkeypatch):
    """A check that cannot fail proves nothing."""
    monkeypatch.setattr(experiments, "ABLATIONS", {})
    monkeypatch.setattr(RNN, "sums_back", lambda cell, de: (de, [-part for part in de]))
    status, out, _ = run("gradcheck", "--seeds", 1)
    failed = [row for row in table(out) if row[-1:] == ["FAILED"]]
    assert status == 1 and {row[0] for row in failed} == {"RNN"} and {row[-3] for row in failed} == {"W_h"}
    assert f"{len(failed)} of " in out and "gradients FAILED" in out


# data


def test_data_list_shows_what_is_here_and_what_is_missing(run, mnist_folder):
    (mnist_folder / "t10k-labels-idx1-ubyte").unlink()
    status, out, err = run("data", "list")
    rows = {(row[0], row[1]): row[2:] for row in table(out)[3:]}
    assert status == 0 and err == "" and str(mnist_folder) in out.splitlines()[0]
    assert rows["mnist", "train-labels-idx1-ubyte"] == ["68", "here,", "train-labels-idx1-ubyte"]
    assert rows["mnist", "t10k-labels-idx1-ubyte"] == ["-", "missing"]
    assert {name for name, _ in rows} == set(download.SOURCES)


def test_data_list_of_one_set(run, toy):
    _, out, _ = run("data", "list", "toy", "--folder", toy)
    assert [row[0] for row in table(out)[3:]] == ["toy"] * 3


def test_data_verify_tells_good_from_damaged(run, toy):
    status, out, _ = run("data", "verify", "toy", "--folder", toy)
    states = {row[1]: " ".join(row[3:]) for row in table(out)[3:]}
    assert status == 0
    assert states == {"a.bin": "verified", "b.bin": "verified", "c.txt": "here, no published checksum"}
    (toy / "toy" / "b.bin").write_bytes(b"secret")
    status, out, _ = run("data", "verify", "toy", "--folder", toy)
    assert status == 1 and table(out)[4] == ["toy", "b.bin", "6", "DAMAGED"]


def test_data_verify_misses_files_of_a_named_set_only(run, toy):
    """Nobody has all data sets, but who asks for one wants it whole."""
    (toy / "toy" / "a.bin").unlink()
    status, out, _ = run("data", "verify", "toy", "--folder", toy)
    assert status == 1 and table(out)[3] == ["toy", "a.bin", "-", "missing"]
    status, out, _ = run("data", "verify", "--folder", toy)
    assert status == 0 and [row[:2] for row in table(out)[3:]] == [["toy", "b.bin"], ["toy", "c.txt"]]


def test_data_verify_of_an_empty_folder_says_so(run, tmp_path):
    status, out, _ = run("data", "verify", "--folder", tmp_path)
    assert status == 0 and out.startswith(f"nothing to verify in {tmp_path}")


def test_data_fetch_prints_where_the_data_are(run, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "fetch", lambda name, folder: Path(folder) / name)
    assert run("data", "fetch", "mnist", "--folder", tmp_path) == (0, f"{tmp_path / 'mnist'}\n", "")


# tables


def test_tables_fills_a_page_from_stored_results(run, mnist_folder, tmp_path):
    """A result of `train`, as it was written, becomes a row."""
    results, page = tmp_path / "results", tmp_path / "page.md"
    one(run, tmp_path / "run", model="rnn")
    results.mkdir()
    (tmp_path / "run" / "summary.json").rename(results / "mnist-rnn.json")
    page.write_text("# T\n\n<!-- results:mnist:paper -->\n<!-- /results:mnist:paper -->\n")
    status, out, err = run("tables", "--page", page, "--results", results)
    assert status == 0 and err == "" and "mnist:paper" in out
    assert "33,098" in page.read_text()


# import


def test_import_loads_numpy_alone():
    """Each of these costs up to a second, and may not be there."""
    foreign = [
        "matplotlib",
        "pooch",
        "requests",
        "tqdm",
        "scipy",
        "cupy",
        "pandas",
        "sklearn",
        "torch",
        "tensorflow",
        "jax",
    ]
    out = python(f"import sys, enn_np, enn_np.lab.cli; print(*[name for name in {foreign} if name in sys.modules])")
    assert out.split() == []


def test_the_library_works_where_nothing_but_numpy_is_installed():
    """Import, train, predict, save and check gradients with everything else blocked."""
    code = """
import sys, tempfile
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "matplotlib pooch requests tqdm scipy threadpoolctl cupy pandas sklearn".split():
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import numpy as np, enn_np
from enn_np.lab import cli
from enn_np import gradcheck
from enn_np.look import monitor
from enn_np.data import images as datasets
model = enn_np.Classifier(enn_np.Engram(4, 3), 2, 2)
x, y = np.ones((6, 3, 2), np.float32), np.arange(6) % 2
model.fit(x, y, epochs=1, callbacks=[monitor.HebbianTraceMonitor(model, x)])
with tempfile.TemporaryDirectory() as folder:
    again = enn_np.load(model.save(folder + "/model.npz"))
assert (again.predict(x) == model.predict(x)).all()
assert max(gradcheck.check(enn_np.GRU(3)).values()) < gradcheck.TOLERANCE
sys.exit(cli.main(["data", "list"]))
"""
    assert "mnist" in python(code)


def test_a_missing_package_is_named(run, monkeypatch, tmp_path):
    """A command that needs more than NumPy says what, without a traceback."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(datasets, "load_digits", lambda: digits(432, 20))
    status, _, err = run("demo", "--epochs", 1, "--out", tmp_path)
    assert status == 2 and "matplotlib" in err and "Traceback" not in err


def test_console_script_and_module_call_the_same_function():
    """pyproject's entry point must exist."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'enn_np = "enn_np.lab.cli:main"' in text and callable(main)


def test_a_wheel_states_the_licence_of_the_digits():
    """They lay under an MIT label, without the note that names their authors."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'license = "MIT AND CC-BY-SA-3.0"' in text and "CC BY-SA 3.0" in (ROOT / "data" / "README.md").read_text()
    for name in ("mnist_5k.npz", "README.md"):
        assert f'"data/{name}" = "enn_np/data/{name}"' in text
    assert "authors = [" in text and "Python :: 3.10" in text


def test_results_are_plain_json_numbers(run, mnist_folder, tmp_path):
    """NumPy scalars would have failed to be written; history must be lists of floats."""
    one(run, tmp_path / "run", model="gru")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all(np.isfinite(values).all() for values in summary["history"].values())

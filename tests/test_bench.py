"""The bench: what it counts, what it refuses, and that a broken competitor is named and never waited for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench import numpy_cells, worker
from bench import timing as module
from bench.__main__ import main
from bench.problem import Problem, difference
from bench.process import Worker, WorkerError, environment
from bench.timing import all_works, bench, chart, table

from enn_np.lab import cli

ROOT = Path(__file__).parents[1]
NOWHERE = {"torch": "/no/such/python", "jax": "/no/such/python", "tensorflow": "/no/such/python"}
SCHEMA = {"work", "peer", "threads", "ours_ms", "peer_ms", "ratio", "floor_share", "ours_quartiles", "peer_quartiles"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)


# ------------------------------------------------------------------------------------------------------ the floor


def test_the_floor_of_an_engram_step_by_hand():
    """Catches a product that is counted twice or not at all: every one of the paper's sizes written out."""
    cue, compare, recall, write = 28 * 128, 64 * 128, 64 * 128, 64 * 128
    integrate, output = (3 * 128) * (3 * 128), (3 * 128) * 128
    macs = 28 * 128 * (cue + compare + recall + integrate + output + write) + 128 * 128 * 10
    assert Problem().flops == 2 * 3 * macs  # two operations a multiply-add, three products for one of the forward
    assert Problem(trace="sample").flops == Problem().flops


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_the_floor_of_two_layers_by_hand(cell, gates):
    macs = 28 * 128 * gates * (28 * 128 + 128 * 128 + 128 * 64 + 64 * 64) + 128 * 64 * 10
    assert Problem(cell=cell, hidden=(128, 64)).flops == 6 * macs


def test_floors_of_the_other_kinds():
    step = 28 * 128 + 12 * 128**2 + 3 * 64 * 128
    assert Problem(kind="stream", steps=5, batch=1).flops == 2 * 5 * step  # forward alone
    assert Problem(kind="recompute", steps=5, batch=2).flops == 6 * 5 * 2 * step  # no head
    assert Problem(kind="gemm", steps=2048).flops == 2 * 2048**3


# ------------------------------------------------------------------------------------------------ equal gradients


class Fake:
    """A competitor that answers with our own gradients, times `factor`."""

    def __init__(self, problem, factor=1.0, dtypes=("float32", "float64")):
        self.problem, self.factor, self.dtypes = problem, factor, dtypes

    def answers(self, dtype):
        found = numpy_cells.answers(self.problem, dtype)
        found["0.M"] = self.factor * found["0.M"]
        return found if dtype in self.dtypes else None

    def run(self):
        pass


def prepare_fake(monkeypatch, **settings):
    fake = SimpleNamespace(
        build=lambda problem, variant, threads: Fake(problem, **settings), versions=lambda problem: {}
    )
    monkeypatch.setattr(worker.importlib, "import_module", lambda *name: fake)
    return worker.prepare("fake", "", 1, {"steps": 2, "batch": 2, "inputs": 3, "hidden": [4], "slots": 3})


def test_equal_gradients_are_timed(monkeypatch):
    competitor, reply = prepare_fake(monkeypatch)
    assert reply["status"] == "ok" and reply["agreement"] == {"float32": 0, "float64": 0}
    assert {"seconds", "cpu_seconds"} < worker.turn(competitor).keys()


@pytest.mark.parametrize("factor", [1.01, 1 + 1e-6])
def test_other_gradients_are_never_timed(monkeypatch, factor):
    """Catches a peer that does other work: 1% off, or off in float64 where float32 cannot tell."""
    competitor, reply = prepare_fake(monkeypatch, factor=factor)
    assert competitor is None
    assert reply["status"] == "mismatch" and "0.M" in reply["note"] and "float64" in reply["note"]


def test_a_peer_without_float64_is_compared_in_float32(monkeypatch):
    assert prepare_fake(monkeypatch, dtypes=("float32",))[1]["agreement"].keys() == {"float32"}


def test_difference_names_what_is_missing_or_not_finite():
    one = {"W": np.ones(2)}
    assert difference({"W": np.array([1.0, 1.5])}, one) == (pytest.approx(0.5 / np.sqrt(2)), "W")
    for wrong, words in [({}, "got"), ({"W": np.ones(3)}, "W: expected shape"), ({"W": np.full(2, np.nan)}, "finite")]:
        with pytest.raises(ValueError, match=words):
            difference(wrong, one)


# ------------------------------------------------------------------------------------------------ broken workers

BROKEN = {
    "dies": ("raise SystemExit('out of memory')", "died with status 1: out of memory"),
    "dies in silence": ("input(); import os; os._exit(9)", "died with status 9: it said nothing"),
    "hangs": ("import time; time.sleep(60)", "no answer to 'run' in 0.5 s"),
    "nonsense": ("input(); print('hello')", "expected a JSON answer, got 'hello"),
    "no status": ("input(); print('[1, 2]')", "expected a JSON answer"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_worker_is_named(kind):
    """Catches a bench that hangs for ever, or says only that something went wrong."""
    code, words = BROKEN[kind]
    with Worker("the rival", [sys.executable, "-c", code]) as rival:
        with pytest.raises(WorkerError, match="the rival") as error:
            rival.ask(0.5 if kind == "hangs" else 20, do="run")
        assert words in str(error.value)
    assert rival.process.poll() is not None


def test_an_interpreter_that_is_not_there():
    with pytest.raises(WorkerError, match="the rival: cannot start /no/such/python"):
        Worker("the rival", ["/no/such/python"])


def test_shares_and_ratios_by_hand():
    """Catches a floor in other units than the time: growth is per 1000 sample-steps, the product beside it is not."""
    work = all_works()["growth-B"].small()
    turns = [[{"seconds": s, "cpu_seconds": s}] * 3 for s in (0.25, 0.5, 1.0, 0.001)]  # the product comes last
    said = {"status": "ok", "agreement": {}}
    outcomes = [module._outcome(side, work.unit, said, t) for side, t in zip(work.sides, turns, strict=True)]
    row = module._rows("growth-B", work, outcomes, threads=1)[0]
    small, large, product = (work.sides[i].problem for i in (0, 1, 3))
    assert row["ours_ms"] == pytest.approx(500 / (large.steps * large.batch / 1000))
    assert row["ratio"] == pytest.approx(0.25 / 0.5 * large.batch / small.batch)
    assert row["floor_share"] == pytest.approx((large.flops / 0.5) / (product.flops / 0.001))
    assert row["gemm_gflops"] == pytest.approx(product.flops / 0.001 / 1e9)
    assert row["ratio_quartiles"] == pytest.approx((row["ratio"], row["ratio"]))


def test_one_that_fails_on_the_way_does_not_stop_the_others():
    """Catches half a list of times, and a round that ends at the first failure."""
    answer = json.dumps({"status": "ok", "seconds": 0.5, "cpu_seconds": 0.5})
    good = f"import sys\nfor line in sys.stdin:\n    print('{answer}', flush=True)\n"
    bad = good + "    sys.exit('tired')\n"
    workers = [Worker("one of them", [sys.executable, "-c", code]) for code in (bad, good)]
    said = [{"status": "ok"}, {"status": "ok"}]
    turns = module._rounds(workers, said, warmup=1, repeats=3)
    for each in workers:
        each.stop()
    assert [len(part) for part in turns] == [0, 3]
    assert said[0]["status"] == "failed" and "tired" in said[0]["note"] and said[1]["status"] == "ok"


def test_the_real_worker_says_what_is_wrong():
    """Catches a worker that dies of an exception, and a library's ImportError that counts as a failure."""
    with Worker("ours", [sys.executable, "-m", "bench.worker", "numpy_cells", "", "1"]) as ours:
        failed = ours.ask(60, do="prepare", problem={"kind": "train", "cell": "engram", "hidden": [4, 4], "steps": 0})
        assert failed["status"] == "failed" and "Error" in failed["note"]
    with Worker("none", [sys.executable, "-m", "bench.worker", "no_such_cells", "", "1"]) as none:
        absent = none.ask(60, do="prepare", problem={"hidden": [4]})
        assert absent["status"] == "absent" and "no_such_cells" in absent["note"]


def test_all_workers_get_the_same_threads():
    settings = environment(2)
    assert {settings[name] for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")} == {"2"}
    assert environment(2, passive=True)["OMP_WAIT_POLICY"] == "PASSIVE"


# ------------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run of our own side, its peers absent; result, files and lines."""
    folder, lines = tmp_path_factory.mktemp("bench"), []
    files = {"json_path": folder / "new" / "bench.json", "chart_path": folder / "bench.png"}
    works = ["gru", "recompute"]
    result = bench(works, threads=1, interpreters=NOWHERE, quick=True, log=lines.append, **files)
    return result, files, "\n".join(lines)


def test_absent_peers_are_named(quick):
    """Catches a peer that is left out in silence, in the rows or in the text."""
    result, _, text = quick
    rows = {(row["work"], row["peer"]): row for row in result["rows"]}
    for key in [("gru", "torch nn.GRU"), ("gru", "Keras")]:
        assert rows[key]["status"] == "absent" and "/no/such/python" in rows[key]["note"]
        assert rows[key]["peer_ms"] is None and rows[key]["ratio"] is None and rows[key]["ours_ms"] > 0
        assert key[1] in text
    assert text.count("ABSENT: ") == 4  # as they start, and in the table


def test_the_rows_of_a_run(quick):
    result, files, _ = quick
    assert json.loads(files["json_path"].read_text())["rows"][0].keys() >= SCHEMA
    row = next(row for row in result["rows"] if row["group"] == "recompute")
    assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
    low, high = row["ours_quartiles"]
    assert low <= row["ours_ms"] <= high and row["floor_share"] > 0 and len(row["ratio_quartiles"]) == 2
    header = result["header"]
    assert header["versions"]["enn_np"]["numpy"] == np.__version__
    assert header["cpus"] >= 1 and header["repeats"] == 2 and header["quick"]


def test_the_table_and_the_chart(quick):
    result, files, text = quick
    assert files["chart_path"].stat().st_size > 1000
    assert table(result) in text and "these times say nothing" in text
    (ax,) = chart(result).axes
    assert len(ax.patches) == len(result["rows"])
    words = [text.get_text() for text in ax.texts]
    assert words.count("absent") == 2 and any(text.endswith(" ms") for text in words)
    assert chart({"header": {"threads": [1, 2], "quick": False}, "rows": []}).axes  # nothing measured


def test_a_busy_machine_is_told(quick):
    """Catches a ratio that another program on the machine has made: spinning threads lose a thousandfold."""
    result, _, _ = quick
    rows = [{**row, "ours_cpus": 0.05} for row in result["rows"]]
    assert "NOT A QUIET MACHINE: one side had 5% of a CPU" in table({**result, "rows": rows})
    rows = [{**row, "ours_cpus": 1.9, "peer_cpus": None} for row in result["rows"]]
    assert "QUIET" not in table({**result, "rows": rows})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"repeats": 14}, "repeats: expected at least 15"),
        ({"works": ["transformer"]}, "works: expected one of 'engram'"),
        ({"threads": 0}, "threads: expected at least 1"),
        ({"interpreters": {"theano": "python"}}, "interpreters: expected one of 'torch'"),
        ({"warmup": -1}, "warmup"),
    ],
)
def test_bad_settings_are_refused_before_any_work(settings, words):
    with pytest.raises(ValueError, match=words):
        bench(**settings)


@pytest.mark.parametrize("name", ["json_path", "chart_path"])
def test_a_file_that_cannot_be_written_is_found_out_before_any_work(tmp_path, monkeypatch, name):
    """Catches an hour of timing whose numbers have no place to go."""
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("work began"))
    taken = tmp_path / "taken.png"
    taken.write_text("kept")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for path in (folder, str(folder), taken / "inside.png"):
        with pytest.raises(ValueError, match=rf"{name}: cannot write .*; choose another file"):
            bench(**{name: path}, quick=True)
    assert taken.read_text() == "kept" and not any(folder.iterdir())


@pytest.mark.parametrize("path", ["chart.pdf", "chart", "chart.PNG.txt"])
def test_a_chart_of_another_kind_is_refused_before_any_work(path, tmp_path):
    with pytest.raises(ValueError, match=r"chart_path: expected a file that ends in \.png or \.svg"):
        bench(chart_path=tmp_path / "new" / path, quick=True)
    assert not any(tmp_path.iterdir())


def test_paths_are_left_as_they_were_when_the_work_fails(tmp_path, monkeypatch):
    """Catches a check that leaves an empty file, or empties one."""
    monkeypatch.setattr(module, "_measure", lambda *_: 1 / 0)
    old, new = tmp_path / "old.json", tmp_path / "new.svg"
    old.write_text("{}")
    with pytest.raises(ZeroDivisionError):
        bench(json_path=old, chart_path=new, quick=True)
    assert old.read_text() == "{}" and not new.exists()


def test_the_command_in_a_fresh_clone(tmp_path):
    """Catches a command that needs the package installed, or an environment of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = tmp_path / "new" / "rows.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--works", "growth-B", "--threads", "1", "--json", path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "times say nothing" in done.stdout
    assert {row["status"] for row in json.loads(path.read_text())["rows"]} == {"ok"}


def test_the_command_hands_on_what_was_asked(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr("bench.__main__.bench", lambda **settings: asked.update(settings))
    assert main(["--torch", "py", "--threads", "1", "2", "--device", "cuda", "--chart", "a.svg"]) == 0
    assert asked["interpreters"] == {"torch": "py"} and asked["threads"] == [1, 2] and asked["device"] == "cuda"
    assert asked["chart_path"] == "a.svg" and asked["json_path"] is None and asked["repeats"] == 15
    monkeypatch.undo()
    assert main(["--works", "transformer"]) == 2
    assert capsys.readouterr().err.startswith("bench: works: expected one of 'engram'")


def test_every_side_has_a_small_problem_of_the_same_kind():
    for work in all_works().values():
        for side in work.sides:
            small = side.problem.small()
            assert small.kind == side.problem.kind and small.flops < side.problem.flops
        assert all(0 <= i < len(work.sides) for _, *pair in work.pairs for i in pair)


@pytest.mark.parametrize("kind", ["train", "stream", "recompute", "gemm"])
def test_our_side_of_every_kind(kind):
    """In this process, where coverage and a debugger see it."""
    problem = Problem(kind=kind, steps=3, batch=2, inputs=3, hidden=(4,), slots=3)
    competitor, reply = worker.prepare("numpy_cells", "", 1, vars(problem))
    assert reply["status"] == "ok" and worker.turn(competitor)["seconds"] > 0
    assert (reply["memory"] is not None) == (kind in ("train", "recompute"))


def test_a_stream_ends_where_the_sequence_ends():
    """One step at a time is the same run."""
    problem = Problem(kind="stream", steps=5, batch=1, inputs=3, hidden=(4,), slots=3)
    found = numpy_cells.answers(problem, "float64")
    model = problem.model("float64")
    _, (final,), _ = model.run_cells(problem.data("float64")[0], keep=False)
    assert difference(found, {"h": final.h, "A": final.A})[0] < 1e-12


# ------------------------------------------------------------------------------------------------------ real peers


@pytest.mark.parametrize("cell", ["engram", "rnn", "gru", "lstm"])
@pytest.mark.parametrize("library", ["torch", "jax", "tensorflow"])
def test_peers_that_are_installed_here_agree(library, cell):
    """The bench checks every peer itself; this is for those in the tests' own environment."""
    pytest.importorskip(library, reason=f"{library} is a peer of the bench and not installed here")
    if library == "jax" and cell != "engram":
        pytest.skip("JAX has no recurrent layers of its own to compare with")
    hidden = [4] if cell == "engram" else [4, 3]
    problem = {"cell": cell, "steps": 3, "batch": 2, "inputs": 3, "hidden": hidden, "slots": 3}
    _, reply = worker.prepare(f"{library}_cells", "eager", 1, problem)
    assert reply["status"] == "ok", reply["note"]


# ------------------------------------------------------------------------------------------------------ on a card

FAKE = """#!/usr/bin/env bash
case "$1" in
-c) {card} ;;
*) echo "$*" >>calls; {work} ;;
esac
"""


def card(folder, card="echo 'An NVIDIA card'", work="echo done", total=1200):
    """tests/card.sh by a stand-in for Python. Returns the ended process, and what the stand-in was called with."""
    python = folder / "python"
    python.write_text(FAKE.format(card=card, work=work).replace(">>calls", f">>{folder}/calls"))
    python.chmod(0o755)
    settings = {**os.environ, "PYTHON": str(python), "TORCH": "its/python", "TOTAL": str(total)}
    command = ["bash", str(ROOT / "tests" / "card.sh"), str(folder / "out")]
    ended = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)
    calls = folder / "calls"
    return ended, calls.read_text().splitlines() if calls.exists() else []


bash = pytest.mark.skipif(shutil.which("timeout") is None, reason="no timeout, which coreutils has")


@bash
def test_all_for_a_card_in_this_order(tmp_path):
    ended, calls = card(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert calls[0] == "-m pytest -m gpu" and calls[-1].startswith("-m enn_np run recall32 --models binding lstm ")
    benches = [
        re.search(r"^-m tests.bench --device cuda --works (\S+) --torch its/python ", call) for call in calls[1:9]
    ]
    assert [each[1] for each in benches] == list(all_works("cuda"))
    models = [re.search(r"^-m enn_np run mnist/paper --models (\w+) .*--device cuda", call)[1] for call in calls[9:13]]
    assert models == ["engram", "lstm", "gru", "rnn"] and len(calls) == 14
    seconds = [int(found) for found in re.findall(r"at most (\d+) s", ended.stdout)]
    assert len(seconds) == 14 and 1190 <= sum(seconds) <= 1200
    assert (tmp_path / "out" / "card.txt").read_text().startswith("An NVIDIA card\n")
    assert (tmp_path / "out" / "recall32.txt").read_text().endswith("done\n")


@bash
def test_every_call_is_one_that_its_command_takes(tmp_path, monkeypatch):
    """Catches a script that names what is no longer there, and fails on the one day that a card can be had."""
    asked = {}
    monkeypatch.setattr("bench.__main__.bench", lambda **settings: asked.update(settings))
    monkeypatch.setattr("enn_np.lab.cli.device_module", lambda device: None)
    monkeypatch.setattr("enn_np.lab.runner.device_module", lambda device: None)
    monkeypatch.setattr("enn_np.lab.runner.do", lambda runs, *_: asked.update(runs=[run.name for run in runs]))
    runs = []
    for call in card(tmp_path)[1][1:]:
        _, module, *given = call.split()
        assert (main if module == "tests.bench" else cli.main)(given) == (0 if module == "tests.bench" else 1)
        runs += asked.pop("runs", [])
        assert asked.pop("works", ["lstm"])[0] in all_works("cuda")
    assert len(runs) == 6 and runs[-2:] == ["recall32-sound-binding-0", "recall32-sound-lstm-0"]


@bash
def test_without_a_card_it_says_so_and_stops(tmp_path):
    ended, calls = card(tmp_path, card=f'shift; exec {sys.executable} -c "$@"')
    assert ended.returncode == 2 and not calls and not (tmp_path / "out").exists()
    assert ended.stderr.startswith("card.sh: no card to run on: device=")


@bash
def test_a_part_that_takes_too_long_is_cut_off_and_the_others_go_on(tmp_path):
    ended, calls = card(tmp_path, work="[[ $* != *gpu* ]] || exec sleep 60", total=100)
    assert ended.returncode == 1 and len(calls) == 14 and calls[-1].startswith("-m enn_np run recall32")
    assert "== tests ended with status 124 (124: cut off)" in (tmp_path / "out" / "tests.txt").read_text()

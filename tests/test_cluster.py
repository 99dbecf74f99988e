"""Runs by the workers of a cluster: one is killed in the middle, and nothing is lost, and nothing done twice."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from uuid import uuid4

import pytest

from enn_np import checkpoint as storage
from enn_np.checkpoint import Checkpoint
from enn_np.lab import cli, pages, runner, table
from enn_np.lab.results import read_json
from enn_np.train.parallel import started

RUNS = ["regression-paper-rnn-0", "regression-paper-rnn-1", "regression-paper-gru-0", "regression-paper-gru-1"]
SHORT = {"epochs": 3, "limit": 256}  # of 128 a batch


def all_of(results, jobs=1):
    """The results without what differs from time to time, and what was said."""
    said = []
    found = runner.run_all(["regression/paper"], ["rnn", "gru"], 2, None, results, jobs, say=said.append, **SHORT)
    return list(map(timeless, found)), said


def timeless(result):
    return result and {
        **{name: value for name, value in result.items() if name not in ("seconds", "machine")},
        "history": {name: values for name, values in result["history"].items() if name != "seconds"},
    }


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "draw", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results of one process."""
    return all_of(tmp_path_factory.mktemp("alone"))[0]


def test_any_executor_makes_the_same_results(tmp_path, monkeypatch, alone):
    """Also from another folder than the workers': threads share the one that there is when they start."""
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        found, said = all_of("here", threads)
    assert found == alone
    assert sorted(line.partition(":")[0] for line in said[1:]) == sorted(RUNS)


class Here(ThreadPoolExecutor):
    """A cluster that answers at once, but with `error` where a run's name is the one given."""

    def __init__(self, name, error):
        super().__init__(1)
        self.name, self.error = name, error

    def submit(self, function, *given):
        future = Future()
        if getattr(given[0], "name", None) == self.name:
            future.set_exception(self.error)
        else:
            future.set_result(function(*given))
        return future


def test_a_run_that_ended_its_workers_costs_no_other(tmp_path, alone):
    """Dask gives up a run on which four workers died."""
    found, said = all_of(tmp_path, Here(RUNS[2], RuntimeError("four workers died")))
    assert found == [*alone[:2], None, alone[3]]
    assert f"{RUNS[2]}: FAILED: RuntimeError: four workers died; the same command goes on from here" in said
    assert all_of(tmp_path)[0] == alone


def test_a_worker_that_mpi_started_for_something_else_is_alone(tmp_path, monkeypatch, alone):
    """Dask's workers may be processes of mpiexec or srun: each has a run of its own, whose gradients are not shared."""
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # who asks for the others fails
    started.cache_clear()
    found, _ = all_of(tmp_path, Here(None, None))
    assert found == alone
    assert read_json(tmp_path / f"{RUNS[0]}.json")["machine"]["workers"] == 1


def test_ctrl_c_ends_the_runs_that_wait_in_an_executor_of_ones_own(tmp_path, monkeypatch):
    asked, begun, held = [], threading.Event(), threading.Event()

    def pressed(futures):
        asked.extend(futures)
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "as_completed", pressed)
    monkeypatch.setattr(runner, "one", lambda *_: (begun.set(), held.wait(60)))
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(KeyboardInterrupt):
            all_of(tmp_path, threads)
        held.set()
    assert [future.cancelled() for future in asked] == [False, True, True, True]


def test_ctrl_c_while_the_runs_are_handed_out(tmp_path, monkeypatch):
    """Catches an UnboundLocalError in its place, which leaves processes at work."""
    handed = []

    class Pressed(ThreadPoolExecutor):
        def submit(self, function, *given):
            future = super().submit(function, *given)
            if function is runner.one:
                handed.append(future)
                if len(handed) == 2:
                    raise KeyboardInterrupt
            return future

    held = threading.Event()
    monkeypatch.setattr(runner, "one", lambda *_: held.wait(60))
    with Pressed(1) as threads:
        with pytest.raises(KeyboardInterrupt):
            all_of(tmp_path, threads)
        held.set()
    assert len(handed) == 2


def test_a_folder_that_the_workers_do_not_see_is_found_out_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.os.path, "isdir", lambda path: False)
    monkeypatch.setattr(runner, "do", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=rf"^results: a worker of the cluster sees no {tmp_path}; name a folder that"):
        all_of(tmp_path, Here(None, None))


@pytest.mark.parametrize("held", (".result.lock", ".lock", ".checkpoint.npz.lock"))
def test_the_run_of_a_lost_worker_is_waited_for(tmp_path, monkeypatch, held):
    """A cluster takes a worker for dead whose process still ends: its three locks are freed one after the other."""
    place = tmp_path / "runs" / RUNS[0]
    place.mkdir(parents=True)
    training = runner.settings_of(table.find("regression/paper"), "rnn", SHORT)
    run = runner.Run(table.find("regression/paper"), "rnn", 0, training, tmp_path)
    lock = storage.lock(place / held)
    lock.__enter__()
    monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=lambda seconds: lock.__exit__(None, None, None)))
    assert runner.one(run, verbose=0) == "another process has it" and not run.path.exists()
    assert runner.one(run, verbose=0, wait=True).startswith("test loss") and run.path.exists()


# Dask


@pytest.fixture
def distributed():
    return pytest.importorskip("distributed", reason="no distributed: pip install distributed")


def dying(distributed, folder):
    """A plugin of Dask's workers: every batch is saved, and noted in `folder` with its process. The first worker that
    comes to the middle of a run is killed there."""

    class Dying(distributed.WorkerPlugin):
        def setup(self, worker):
            save = Checkpoint.save

            def due(checkpoint):  # asked after every batch
                (folder / f"{checkpoint.path.parent.name}, {os.getpid()}, {uuid4().hex}").touch()
                return True

            def saved(checkpoint, config, params, state, what):
                save(checkpoint, config, params, state, what)
                if what == "epoch 2, batch 1":
                    with suppress(FileExistsError):
                        (folder / "killed").touch(exist_ok=False)
                        os.kill(os.getpid(), signal.SIGKILL)

            Checkpoint.save, Checkpoint.due = saved, due

    return Dying()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not of this system")
@pytest.mark.filterwarnings("default")  # of Dask, which are not ours
def test_a_worker_is_killed_in_the_middle_of_a_run(distributed, tmp_path, capsys, alone):
    """Every batch of every run is trained once, by whichever worker: what the killed one did stays, and another goes on
    from there."""
    folder, results = tmp_path / "noted", tmp_path / "results"
    folder.mkdir()
    command = ["run", "regression/paper", "--models", "rnn", "gru", "--seeds", "2", "--results", str(results)]
    command += [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        with distributed.Client(cluster) as client:
            client.register_plugin(dying(distributed, folder))
        assert cli.main([*command, "--on", cluster.scheduler_address]) == 0
    said = capsys.readouterr().out
    assert (folder / "killed").exists()
    assert [said.count(f"{name}: ") for name in RUNS] == [1] * 4 and "FAILED" not in said
    assert [timeless(read_json(results / f"{name}.json")) for name in RUNS] == alone
    batches = [tuple(path.name.split(", ")[:2]) for path in folder.glob("*, *")]
    assert Counter(run for run, _ in batches) == dict.fromkeys(RUNS, 6)
    workers = Counter(run for run, process in set(batches))
    assert sorted(workers.values()) == [1, 1, 1, 2]
    assert cli.main(command) == 0 and "0 of 4 runs to do" in capsys.readouterr().out


@pytest.fixture
def impatient(monkeypatch):
    """Half a second in place of five."""
    wait_for = asyncio.wait_for
    monkeypatch.setattr(runner.asyncio, "wait_for", lambda what, seconds: wait_for(what, seconds / 10))


@pytest.mark.parametrize("kind", ("dead", "silent", "no address", "no such host"))
def test_a_scheduler_that_does_not_answer_is_named(distributed, tmp_path, capsys, impatient, monkeypatch, kind):
    """One that has ended; a port of another program, for which Dask alone waits for ever; a mistake in writing."""
    ask = socket.getaddrinfo

    def unknown(host, *given, **more):  # at once: name servers that are not there take minutes
        if str(host).endswith(".invalid"):
            raise socket.gaierror("no such host")
        return ask(host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if kind == "dead":
            server.close()
        address = {"no address": "cluster", "no such host": "tcp://no.such.host.invalid:8786"}
        address = address.get(kind, f"tcp://127.0.0.1:{port}")
        began = time.monotonic()
        assert cli.main(["run", "regression/paper", "--on", address, "--results", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"enn_np: on: no Dask scheduler answers at '{address}' (")
    assert "; pip install distributed, start `dask scheduler` and give the address that it prints, tcp://HOST:" in said
    assert not (tmp_path / "new").exists() and time.monotonic() - began < 30


def test_without_dask_the_message_says_how_to_have_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["run", "regression/paper", "--on", "tcp://127.0.0.1:8786"]) == 2
    assert "on: no Dask scheduler answers at 'tcp://127.0.0.1:8786' (ModuleNotFound" in capsys.readouterr().err


@pytest.mark.parametrize("more", (["--jobs", "2"], ["--out", "here"]))
def test_one_way_to_do_runs(monkeypatch, tmp_path, capsys, more):
    """Catches an address that is left aside in silence."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "regression/paper", "--models", "rnn", "--on", "tcp://127.0.0.1:8786", *more]) == 2
    assert "enn_np: on: got " in capsys.readouterr().err and not list(tmp_path.iterdir())

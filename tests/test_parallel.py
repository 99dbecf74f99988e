"""Several workers do what one does, to rounding, through kill and resume, and no worker waits for ever."""

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny import EACH_ALONE, C, D, classifier, padding, same_to_the_bit, sequences

from enn_np import (
    GRU,
    LSTM,
    Adam,
    Binding,
    Callback,
    Checkpoint,
    Diverged,
    EarlyStopping,
    Engram,
    LanguageModel,
    Regressor,
    StepClassifier,
    fit,
    fit_fresh,
    load,
)
from enn_np import checkpoint as files
from enn_np.train.parallel import Workers, started

pytestmark = pytest.mark.filterwarnings("ignore:cell [01]. .*(Hebbian trace|never read):RuntimeWarning")
NETWORKS = tuple(EACH_ALONE)
KINDS = (*NETWORKS, "batch", "stack", "steps", "regressor", "penalty", "fresh", "windows", "stream", "shared stream")
CLOSE = 1e-10


def train(kind, workers=None, **settings):
    """Twenty steps in float64, a model and its history: batches of 9, 9, 9, 9 and 1 sequences, so that of two workers
    one has more rows and one none at all; dropout, and gradients that are clipped."""
    given = {"optimizer": Adam(0.01, global_clip_norm=0.1), "epochs": 4, "verbose": 0, "reduce": workers, **settings}
    (x, y), mask, head = sequences(37, dtype=np.float64), padding(37), {"dropout": 0.3, "dtype": "float64"}
    if kind == "windows":
        model = LanguageModel([Engram(6, 5, trace="sample"), LSTM(4)], 17, 5, head="adaptive", cutoffs=(4, 9), **head)
        ids = np.random.default_rng(3).integers(0, 17, (37, 6))
        targets = np.where(np.random.default_rng(4).random((37, 6)) < 0.5, (ids + 1) % 17, -1)
        targets[:, 0] = 1  # how much is asked differs from row to row
        return model, model.fit(ids, targets, batch_size=9, mask=padding(37, 6), **given)
    if kind in ("stream", "shared stream"):
        first = Binding(6, 5) if kind == "stream" else Engram(6, 5)  # whose trace is the batch's
        model = LanguageModel([first, LSTM(4)], 17, 5, **head)
        text = np.random.default_rng(3).integers(0, 17, 125)
        return model, model.fit_stream(text, batch_size=2, steps=13, validation_data=text[:40], **given)
    if kind == "fresh":
        model = classifier([Engram(6, 5, trace="sample"), GRU(4)], **head)

        def draw(rng, step):
            rows = rng.integers(0, 37, 1 + step % 5)
            return x[rows], y[rows], mask[rows]

        steps, held = [5] * given.pop("epochs"), lambda done: model.evaluate(x, y)
        return model, fit_fresh(model, draw, steps, validate=held, **given)
    given |= {"batch_size": 9, "mask": mask}
    if kind == "steps":
        model, y, given["mask"] = StepClassifier(GRU(4), D, C, answers=2, **head), np.stack([y, y[::-1]], 1), None
    elif kind == "regressor":
        model, y = Regressor(GRU(4), D, 2, pooling="mean", **head), x.mean(1)[:, :2]
    elif kind in ("penalty", "batch"):
        cells = [Engram(6, 5, trace="sample", entropy=0.1)]
        if kind == "batch":  # the second is as much on its clip as below it
            cells = [Engram(6, 5, entropy=0.1), Engram(4, 3, hebbian_rate=0.5, trace_clip=0.05)]
        model, given["mask"] = classifier(cells, **head), None
    else:
        cells = [Engram(6, 5, trace="sample"), Binding(5, 4)] if kind == "stack" else EACH_ALONE[kind]
        model = classifier(cells, pooling="attention", **head)
    return model, fit(model, x, y, validation_data=(x[:7], y[:7]), **given)


def difference(one, other):
    """The largest difference of two runs' weights and numbers, time aside; relative, of numbers over 1."""
    (model, history), (model_2, history_2) = one, other
    assert model.params.keys() == model_2.params.keys() and history.keys() == history_2.keys()
    pairs = [(history[name], history_2[name]) for name in history if name != "seconds"]
    pairs += [(model.params[name], model_2.params[name]) for name in model.params]
    return max(float((np.abs(np.subtract(a, b)) / np.maximum(np.abs(a), 1)).max()) for a, b in pairs)


class Threads(Workers):
    """Workers that are threads of this process."""

    def __init__(self, rank, size, parts, barrier):
        self.rank, self.size, self.parts, self.barrier = rank, size, parts, barrier

    def _all(self, value):
        self.parts[self.rank] = copy.deepcopy(value)
        self.barrier.wait()
        found = copy.deepcopy(self.parts)
        self.barrier.wait()
        return found

    def __call__(self, array):
        array[...] = sum(self._all(array))
        return array

    def first(self, function):
        return self._all(None if self.rank else function())[0]

    def __exit__(self, kind, error, trace):
        if kind and not issubclass(kind, Diverged):
            self.barrier.abort()


def threads(size, function):
    """What function(workers) returns in each of `size` threads."""
    parts, barrier = [None] * size, threading.Barrier(size, timeout=60)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: function(Threads(rank, size, parts, barrier)), range(size)))


@pytest.fixture(scope="module")
def alone():
    """The runs of one process."""
    return {kind: train(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (2, 3))
def test_workers_equal_one(kind, size, alone):
    """A mean of means where rows are uneven, clipping before the sum, masks that every worker draws for itself."""
    found = threads(size, lambda workers: train(kind, workers))
    assert max(alone[kind][1]["clipped"]) > 0
    assert difference(found[0], alone[kind]) < CLOSE
    for one in found[1:]:
        assert same_to_the_bit(one[0].params, found[0][0].params) and difference(one, found[0]) == 0


class Copied(Checkpoint):
    """A checkpoint whose file is kept, beside it, as it is in the middle of the third epoch."""

    def save(self, config, params, state, what):
        super().save(config, params, state, what)
        if what == "epoch 3, batch 2":
            shutil.copy(self.path, self.path.with_name("middle.npz"))


@pytest.mark.parametrize("kind", ("lstm", "batch", "fresh", "windows", "stream", "shared stream"))
@pytest.mark.parametrize("size", (1, 3))
def test_another_number_of_workers_goes_on(kind, size, alone, tmp_path):
    """What one worker alone knows, such as the state that its rows of a text have come to, must be in the file."""
    threads(2, lambda workers: train(kind, workers, checkpoint=Copied(tmp_path / "run.npz", 0)))
    found = threads(size, lambda workers: train(kind, workers, checkpoint=tmp_path / "middle.npz", resume=True))
    assert difference(found[0], alone[kind]) < CLOSE


def test_what_is_decided_is_decided_by_rank_0():
    """Two machines may round a validation differently; one that stops alone leaves the other waiting."""

    def run(workers):
        def draw(rng, step):
            return sequences(6)

        held = iter([{"loss": 1.0, "accuracy": 0.5}] * 9) if workers.rank == 0 else None
        settings = {"callbacks": [EarlyStopping(patience=2)], "verbose": 0, "reduce": workers}
        return fit_fresh(classifier(), draw, [1] * 9, validate=lambda done: next(held), **settings)

    for history in threads(2, run):
        assert history["val_loss"] == [1.0] * 3 and history.stopped == "early"


def test_a_callback_that_asks_the_clock_ends_all():
    """Each worker has a clock of its own."""

    class Enough(Callback):
        def on_epoch_end(self, training, logs):
            training.stop = training.reduce.rank == 0 and training.epoch == 2
            training.optimizer.learning_rate = np.float32(0.01 + 0.01 * training.reduce.rank)

    found = threads(2, lambda workers: train("lstm", workers, callbacks=[Enough()]))
    assert [history.stopped for _, history in found] == ["early"] * 2
    assert same_to_the_bit(found[0][0].params, found[1][0].params)


@pytest.mark.parametrize("masked", (False, True))
def test_a_worker_whose_rows_ask_nothing_counts_nothing(masked):
    """Of `fit` such rows are left out, of what is drawn they are not."""

    def run(workers):
        def draw(rng, step):
            ids = rng.integers(0, 17, (4, 6))
            asked = (rng.random((4, 6)) < 0.5) & (np.arange(4) < 2)[:, None]
            asked[0, 0] = True
            return ids, np.where(asked, (ids + 1) % 17, -1), *([np.ones((4, 6), bool)] * masked)

        model = LanguageModel(GRU(4), 17, 5, dtype="float64")
        return model, fit_fresh(model, draw, [3], verbose=0, reduce=workers)

    for size in (2, 3):
        assert difference(threads(size, run)[-1], run(None)) < CLOSE


def test_the_sum_by_hand():
    """Two workers with 3 rows and 1: counts and sums add up, gradients are the mean over all four rows."""

    def found(workers):
        count, g = (3, 1.0) if workers.rank == 0 else (1, 5.0)
        return workers.total(count, {"loss": 6.0 * count}, {"W": np.full((2, 1), g), "b": np.full(3, -g)})

    for count, sums, grads in threads(2, found):
        assert (count, sums) == (4, {"loss": 24.0})
        assert grads["W"].tolist() == [[2.0]] * 2 and grads["b"].tolist() == [-2.0] * 3


def test_one_worker_is_no_worker(alone):
    assert same_to_the_bit(train("lstm", Workers())[0].params, alone["lstm"][0].params)


class Slower(Engram):
    """A cell that writes in its own way, of which `encode` does not know."""

    def _written(self, a, e, A):
        return A + 0.01 * (super()._written(a, e, A) - A)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cells": Binding(6, 5, trace="batch")}, r'^reduce: a batch shares A of Binding, .*; use trace="sample", or'),
        ({"cells": Slower(6, 5)}, r"^reduce: a batch shares A of Slower, which has no own `encode` with `mean`"),
        ({"cells": Engram(6, 5)}, r"^reduce: the trace of a batch is a mean, .*; leave it out, or train"),
        (
            {"cells": Engram(6, 5, trace="sample", l1=0.1)},
            r"^reduce: l1 and entropy are means, .*; leave it out, or train",
        ),
    ],
)
def test_what_does_not_add_up_is_refused(settings, words):
    def refused(workers):
        with pytest.raises(ValueError, match=words):
            fit(classifier(**settings), *sequences(20), mask=padding(20), verbose=0, reduce=workers)

    threads(2, refused)


def test_anything_else_than_workers_is_refused():
    with pytest.raises(TypeError, match=r"^reduce: expected Workers such as enn_np\.train\.MPI\(\), got 2"):
        fit(classifier(), *sequences(20), reduce=2)


def test_all_diverge_together(tmp_path):
    def diverged(workers):
        model = classifier()
        model.params["head.W"][...] = np.inf if workers.rank else 1
        with pytest.raises(Diverged, match=r"^learning_rate: .*loss became nan"):
            fit(model, *sequences(20), verbose=0, reduce=workers, checkpoint=tmp_path / "run.npz")

    with np.errstate(invalid="ignore"):
        threads(2, diverged)


# With MPI: processes


BESIDE = Path(sys.executable).with_name("mpiexec")
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
MISSING = [name for name, there in (("mpi4py", importlib.util.find_spec("mpi4py")), ("mpiexec", MPIEXEC)) if not there]
mpi = pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)}: pip install mpi4py mpich")

CHILD = """
import os, signal, sys, warnings
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
from enn_np import Checkpoint, Classifier
from enn_np.train import MPI
from test_parallel import *

workers = started()
{do}
"""


def ranks(size, do, seconds=240):
    """Run Python lines in `size` processes of MPI, where `workers` are they. Returns the ended mpiexec."""
    command = [MPIEXEC, "-n", str(size), sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent), do=do)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


@mpi
def test_ranks_equal_one(alone, tmp_path):
    do = f"""
for kind in {(*NETWORKS, "batch", "stream")}:
    model, history = train(kind, workers)
    model.save(f"{tmp_path}/{{kind}}-{{workers.rank}}.npz")
    assert workers.size == 2 and workers.first(lambda: history["loss"]) == history["loss"]
"""
    ended = ranks(2, do)
    assert ended.returncode == 0, ended.stderr
    for kind in (*NETWORKS, "batch", "stream"):
        first, second = (load(tmp_path / f"{kind}-{rank}.npz") for rank in (0, 1))
        assert same_to_the_bit(first.params, second.params)
        assert difference((first, {}), (alone[kind][0], {})) < CLOSE


DIES = """
whole, seen = Classifier.loss_and_grads, []
def dies(*given):
    seen.append(1)
    if len(seen) == 13 and workers.rank == {rank}:
        {how}
    return whole(*given)
Classifier.loss_and_grads = dies
train("lstm", workers, checkpoint=Checkpoint({path!r}, 0))
"""
HOW = {"killed": "os.kill(os.getpid(), signal.SIGKILL)", "error": "raise MemoryError('no room for more')"}


@mpi
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not of this system")
@pytest.mark.parametrize(("how", "rank"), [("killed", 1), ("error", 1), ("error", 0)])
def test_a_dead_rank_ends_all_and_others_go_on_from_the_checkpoint(how, rank, alone, tmp_path):
    """In the third batch of the third epoch, where the others would wait for its gradients for ever. The run goes on
    with three ranks, then with one process."""
    path = str(tmp_path / "run.npz")
    ended = ranks(2, DIES.format(rank=rank, how=HOW[how], path=path))
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    if how == "error":
        assert f"enn_np: rank {rank} of 2 failed, so all end; where there is a checkpoint it is whole" in said
        assert "MemoryError: no room for more" in said
    else:
        assert "signal 9" in said  # mpiexec says it
    assert len(files.read(path)[0]["training"]["history"]["loss"]) == 2
    ended = ranks(3, f"train('lstm', workers, epochs=3, resume=True, checkpoint=Checkpoint({path!r}, 0))")
    assert ended.returncode == 0, ended.stderr
    assert len(files.read(path)[0]["training"]["history"]["loss"]) == 3
    more = train("lstm", checkpoint=path, resume=True)
    assert len(more[1]["loss"]) == 4 and difference(more, alone["lstm"]) < CLOSE


@mpi
def test_an_error_of_rank_0_is_told_by_all_and_a_caught_one_of_a_single_process_ends_nothing():
    do = """
import time
wait = time.sleep  # so that nobody ends another one who has not told yet
time.sleep = lambda seconds: (workers.comm.Barrier(), wait(seconds))

class Odd(Exception):
    def __init__(self, one, two):  # which no other process can make again from its words
        super().__init__(one + two)

def failing(done):
    raise Odd("the true ", "reason")

def run():
    fit_fresh(classifier(), lambda rng, step: sequences(8), [1], validate=failing, verbose=0, reduce=MPI())

if workers.size == 1:
    try:
        run()
    except Odd as error:
        print(f"caught: {error}")
else:
    run()
"""
    ended = ranks(2, do)
    assert ended.returncode == 1 and "in failing" in ended.stderr
    for rank, said in enumerate(("Odd: the true reason", "RuntimeError: rank 0: Odd('the true reason')")):
        assert ended.stderr.count(f"\n{said}\nenn_np: rank {rank} of 2 failed") == 1  # in one piece, and once
    ended = ranks(1, do)
    assert ended.returncode == 0 and ended.stdout == "caught: the true reason\n", ended.stderr


@mpi
def test_the_command(tmp_path):
    """Rank 0 alone writes and prints; a run that workers cannot share costs the others nothing."""
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "enn_np", "run", "recall2", "--seeds", "1"]
    command += ["--rates", "1e-3", "--steps", "1", "--batch-size", "2", "--results", str(tmp_path), "--models"]
    ended = subprocess.run([*command, "binding-batch", "gru"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.count("2 of 2 runs to do") == 1
    assert (
        ended.stdout.count("recall2-sound-binding-batch-0: FAILED: ValueError: reduce: a batch shares A of Bind") == 1
    )
    assert [each.name for each in tmp_path.glob("*.json")] == ["recall2-sound-gru-0.json"]
    assert not (tmp_path / "runs" / "recall2-sound-gru-0" / "checkpoint.npz").exists()
    ended = subprocess.run([*command, "gru"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0 and ended.stdout.count("0 of 1 runs to do") == 1, ended.stderr
    ended = subprocess.run([*command, "nobody"], capture_output=True, text=True, timeout=240)
    assert ended.returncode != 0 and ended.stderr.count("enn_np: models: expected one of") == 1


def test_without_mpiexec_mpi4py_is_not_imported(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    started.cache_clear()
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert (started().rank, started().size) == (0, 1)
    started.cache_clear()
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(ImportError, match=r"^reduce: MPI needs mpi4py: pip install mpi4py mpich"):
        started()

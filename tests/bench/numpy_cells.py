"""Our own side, through the public API, as a user would train or stream; by one process, or by the ranks of mpiexec."""

import platform
import tracemalloc

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from enn_np import Adam, Stream, __version__, run, run_back, run_in_segments
from enn_np.backend import array_module, to_device, to_numpy
from enn_np.lab.results import card_name
from enn_np.train.parallel import started


def versions(problem):
    blas = next((each for each in threadpool_info() if each["user_api"] == "blas"), {})
    library = " ".join(str(blas.get(name)) for name in ("internal_api", "version", "architecture"))  # of its kernels
    known = {"python": platform.python_version(), "enn_np": __version__, "numpy": np.__version__, "blas": library}
    if problem.device == "cuda":
        known |= {"cupy": array_module(to_device(np.zeros(1), "cuda")).__version__, "card": card_name()}
    return known


def wait(array):
    """Return when all that was asked of the device of `array` is done."""
    if (xp := array_module(array)) is not np:
        xp.cuda.get_current_stream().synchronize()


def build(problem, variant, threads):
    return {"train": Training, "stream": Streaming, "recompute": LongRun, "gemm": Product}[problem.kind](problem)


def answers(problem, dtype):
    """What every peer must find: the loss and all gradients without noise, or the state after a stream's last step."""
    model = problem.model(dtype)
    x, y = problem.data(dtype)
    if problem.kind == "stream":
        h, A = stream(model.cells[0], model.layer_params(0), x)
        return {"h": h, "A": A}
    return gradients(model, x, y)


def gradients(model, x, y):
    metrics, grads = model.loss_and_grads(x, y, None)
    return to_numpy({**grads, "loss": array_module(x).asarray(metrics["loss"])})


def peak(run):
    """The most that NumPy took for a first run, in bytes, without parameters and data."""
    tracemalloc.start()
    run()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return memory


class Training:
    """One step of training: forward, backward, sum over ranks, clip, Adam. Random initial states and trace noise are
    drawn, too. Every rank has its rows, and one BLAS thread."""

    def __init__(self, problem):
        self.problem, self.optimizer, self.workers = problem, Adam(clip_norm=1.0), started()
        if self.workers.size > 1:
            threadpool_limits(1, user_api="blas")
        rows, _, self.rng = self.workers.rows(problem.batch, np.random.default_rng(0))
        self.rows, (self.model, self.x, self.y) = rows, self._network("float32", rows)
        self.memory = peak(self.run) if problem.device == "cpu" else None

    def _network(self, dtype, rows):
        x, y = self.problem.data(dtype)
        batch, device = (np.ascontiguousarray(x[:, rows]), y[rows]), self.problem.device
        return self.problem.model(dtype).to_device(device), *to_device(batch, device)

    def answers(self, dtype):
        """Ours on a card, or of several ranks, is a competitor like the others: it must find what NumPy finds."""
        model, x, y = self._network(dtype, self.rows)
        found, grads = model.loss_and_grads(x, y, self.workers.rows(self.problem.batch, None)[2])
        count, sums, grads = self.workers.total(len(y), {"loss": found["loss"] * len(y)}, grads)
        return to_numpy({**grads, "loss": array_module(x).asarray(sums["loss"] / count)})

    def run(self):
        found, grads = self.model.loss_and_grads(self.x, self.y, self.rng)
        _, _, grads = self.workers.total(len(self.y), found, grads)
        self.optimizer.update(self.model.params, grads)
        wait(self.x)


class Streaming:
    """Forward, one time step at a time: the cell is asked before the next input is known."""

    def __init__(self, problem):
        model = problem.model("float32")
        self.cell, self.params = model.cells[0], model.layer_params(0)
        self.x, _ = problem.data("float32")

    def run(self):
        stream(self.cell, self.params, self.x)


def stream(cell, params, x):
    """The state after the last of the steps x (T, B, D)."""
    steps = Stream(cell, params, x.shape[1])
    for x_t in x:
        steps(x_t)
    return steps.state


class LongRun:
    """Forward and backward over a long sequence."""

    def __init__(self, problem):
        model = problem.model("float32")
        self.cell, self.params = model.cells[0], model.layer_params(0)
        self.x, _ = problem.data("float32")
        self.dh = np.ones((*self.x.shape[:2], problem.hidden[0]), np.float32)
        self.segments = problem.segments
        self.memory = peak(self.run)

    def run(self):
        forward, given = (run_in_segments, {"segments": self.segments}) if self.segments else (run, {})
        _, _, tape = forward(self.cell, self.params, self.x, **given)
        run_back(self.cell, self.params, tape, self.dh)


class Product:
    """A square matrix product in float32: what this machine's BLAS reaches at best."""

    def __init__(self, problem):
        rng = np.random.default_rng(0)
        self.a, self.b = to_device(tuple(rng.random((2, problem.steps, problem.steps), np.float32)), problem.device)
        self.out = array_module(self.a).empty_like(self.a)

    def run(self):
        array_module(self.a).matmul(self.a, self.b, out=self.out)
        wait(self.out)

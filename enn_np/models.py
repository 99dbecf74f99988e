"""Models: a stack of cells, a summary of the last layer's hidden states over time, and a linear head.

    x (n, T, D)  ->  cells  ->  last state | mean | attention over time  ->  dropout  ->  W, b  ->  classes or numbers

The same class trains, evaluates and predicts; `fit`, `evaluate` and `predict` work as in Keras and scikit-learn.
"""

import dataclasses
from pathlib import Path

import numpy as np

from . import cells as baselines
from . import checkpoint, checks
from .backend import array_module, to_device
from .binding import Binding
from .bptt import run, run_back
from .checkpoint import register
from .engram import Engram
from .ops import cross_entropy, dot_rows, flat, glorot_uniform, softmax, softmax_back, sum_rows
from .train import INFERENCE, add, draws, fit, parallel, present
from .window import Convolution, Window


class Model:
    """What classifier and regressor share. Use `Classifier` or `Regressor`.

    cells: one cell or a list, first layer first. inputs D: features of one step. outputs O: width of the head.
    pooling: "last" (the last state), "mean", or "attention" (the published package's EngramAttentionLayer: weights
    softmax over time of tanh(h w + b)). dropout: share of pooled features zeroed in training. seed: of the initial
    values. dtype: "float32" or "float64". random_inference: draw h_0, A_0 and trace noise in prediction too, as the
    published code does; by default prediction is deterministic.
    """

    metrics = ()  # names of what the loss brings along, such as "accuracy"
    kind = None  # its name in files
    width = "outputs"  # what its constructor calls the head's width
    arguments = ("inputs", "outputs", "pooling", "dropout", "seed", "random_inference")  # in files, beside cells, dtype
    target_shape = None  # of one target, as `fit` was given it
    tapes = ()  # of the last batch learned from, one for each cell, to look at

    def __init__(
        self, cells, inputs, outputs, pooling="last", dropout=0.0, seed=0, dtype="float32", random_inference=False
    ):
        self.cells = tuple(cells) if isinstance(cells, list | tuple) else (cells,)
        # A class has the methods too: Engram in place of Engram(128, 64) would fail much later.
        if not self.cells or any(isinstance(cell, type) or not hasattr(cell, "step_back") for cell in self.cells):
            raise TypeError(f"cells: expected a cell or a list of cells such as Engram(128, 64), got {cells!r}")
        self.inputs, self.outputs = checks.count("inputs", inputs), checks.count("outputs", outputs)
        self.pooling = checks.choice("pooling", pooling, ("last", "mean", "attention"))
        self.dropout = checks.number("dropout", dropout, low=0, high=0.99)
        self.seed = checks.count("seed", seed, low=0)
        dtype = dtype if isinstance(dtype, str | None) else np.dtype(dtype).name  # NumPy takes None for float64
        self.dtype = np.dtype(checks.choice("dtype", dtype, ("float32", "float64")))
        self.random_inference = checks.switch("random_inference", random_inference)
        self.params = self._initial_params()

    def _cell_params(self):
        """The generator, what comes out of the last cell, and the cells' initial parameters."""
        rng, width, params = np.random.default_rng(self.seed), self.inputs, {}
        for i, cell in enumerate(self.cells):
            params |= {f"{i}.{name}": value for name, value in cell.init(rng, width, self.dtype).items()}
            width = cell.hidden
        return rng, width, params

    def _initial_params(self):
        rng, width, params = self._cell_params()
        if self.pooling == "attention":
            params |= {"pool.w": glorot_uniform(rng, (width, 1)), "pool.b": np.zeros(1)}
        params |= {"head.W": glorot_uniform(rng, (width, self.outputs)), "head.b": np.zeros(self.outputs)}
        return {name: value.astype(self.dtype) for name, value in params.items()}

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return sum(value.size for value in self.params.values())

    def to_device(self, device: str):
        """Move the parameters to "cpu" or "cuda"; returns the model."""
        self.params = to_device(self.params, device)
        return self

    def save(self, path) -> Path:
        """Write an .npz file, without pickle, for `enn_np.load`; TypeError where that would find another model."""
        checkpoint.check_saving(self)
        return checkpoint.write(path, self.config(), to_device(self.params, "cpu"))

    def config(self) -> dict:
        """Everything needed to build this model again, as plain JSON types."""
        settings = {name: getattr(self, name) for name in self.arguments}
        cells = [{"kind": type(cell).__name__.lower()} for cell in self.cells]
        for fields, cell in zip(cells, self.cells, strict=True):
            fields |= {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell) if field.init}
        return {"model": self.kind, "cells": cells, **settings, "dtype": str(self.dtype)}

    def __getstate__(self):
        """For `pickle` and `copy`: without the last batch's tapes, which are many times the model."""
        return {**vars(self), "tapes": ()}

    def __repr__(self):
        """Cells, sizes and parameters: Classifier(GRU(hidden=64), inputs=28, classes=10): 18,634 parameters, float32"""
        cells = ", ".join(map(_brief, self.cells))
        sizes = f"inputs={self.inputs}, {self.width}={self.outputs}"
        return f"{type(self).__name__}({cells}, {sizes}): {self.size:,} parameters, {self.dtype}"

    # ------------------------------------------------------------------------------------------------- one batch

    def layer_params(self, i):
        """The parameters of cell i under the cell's own names."""
        prefix = f"{i}."
        return {name[len(prefix) :]: value for name, value in self.params.items() if name.startswith(prefix)}

    def cell_inputs(self, x):
        """What the first cell sees of a batch x."""
        return x

    def run_cells(self, x, rng=None, mask=None, keep=True, states=None):
        """All cells over x (T, B, D). rng: draws initial states and trace noise; None means zeros and no noise.

        Returns h (T, B, H) of the last layer, every layer's final state, and every layer's tape.
        """
        xp, finals, tapes = array_module(x), [], []
        for i, cell in enumerate(self.cells):
            state = states[i] if states else parallel.start(cell, x.shape[1], x.dtype, rng, xp)
            x, final, tape = run(cell, self.layer_params(i), x, state, mask, keep, **parallel.given(cell, x, rng))
            finals.append(final)
            tapes.append(tape)
        return x, finals, tapes

    def forward(self, x, rng=None, mask=None, learning=False):
        """Head's outputs (B, O) for x (T, B, D), and what `backward` needs (of use where learning is True)."""
        h, finals, tapes = self.run_cells(x, rng, mask, keep=learning)
        pooled, weights = self._pool(h, finals[-1].h, mask)
        pooled, drop = self._drop(pooled, rng, learning)
        return pooled @ self.params["head.W"] + self.params["head.b"], (h, pooled, weights, drop, tapes, mask)

    def backward(self, dout, memo):
        """{"penalty"} of the cells or {}, and the gradients of loss + penalty, from dout (B, O) at the outputs."""
        h, pooled, weights, drop, tapes, mask = memo
        grads = {"head.W": pooled.T @ dout, "head.b": sum_rows(dout)}
        dpooled = dout @ self.params["head.W"].T
        if drop is not None:
            dpooled *= drop
        dh, dlast, pool_grads = self._pool_back(dpooled, h, weights)
        penalty, cell_grads, _ = self._cells_back(tapes, dh, dlast, mask)
        return penalty, {**cell_grads, **pool_grads, **grads}

    def _drop(self, x, rng, learning):
        """x with a share of its numbers zeroed and the others scaled up, and the factors (None: nothing dropped)."""
        if not (learning and self.dropout):
            return x, None
        factors = array_module(x).asarray(parallel.random(rng, x.shape, x.dtype) >= self.dropout).astype(x.dtype)
        factors /= 1 - self.dropout
        return x * factors, factors

    def loss_and_grads(self, x, y, rng, mask=None):
        """One training batch: x (T, B, D), y its targets. Returns its numbers and the gradients keyed as `params`.

        "loss" is the mean loss of the data, "penalty" what the cells add to it, if they do; the metrics are sums. What
        is trained is loss + penalty. rng draws dropout, initial states and trace noise.
        """
        self.tapes = ()  # their memory is free for the new ones
        out, memo = self.forward(x, rng, mask, learning=True)
        loss, dout, metrics = self.loss(out, y)
        penalty, grads = self.backward(dout, memo)
        return {"loss": loss, **penalty, **metrics}, grads

    def _cells_back(self, tapes, dh, dlast, mask, input_gradient=False, penalised=True):
        """Through the stack from the top, where each layer's dx is the dh of the layer below: {"penalty"} or {}, the
        gradients of the cells' parameters, and the lowest layer's dx (T, B, D), None unless asked for."""
        grads, penalties, self.tapes = {}, {}, tapes
        for i in reversed(range(len(self.cells))):
            cell, upstream = self.cells[i], {}
            if penalised and hasattr(cell, "penalty"):
                penalty, da = cell.penalty(tapes[i].kept.a, mask)
                if da is not None:
                    penalties["penalty"], upstream = penalties.get("penalty", 0) + penalty, {"da": da}
            # The head reads h; the other parts of the state are not read.
            dstate = None if dlast is None else [dlast if name == "h" else None for name in tapes[i].states[0]._fields]
            upstream["input_gradient"] = input_gradient or i > 0
            dh, _, layer = run_back(cell, self.layer_params(i), tapes[i], dh, dstate, **upstream)
            dlast = None
            grads |= {f"{i}.{name}": value for name, value in layer.items()}
        return penalties, grads, dh

    def _pool(self, h, last, mask):
        """Summary over time (B, H) of h (T, B, H), and the weights (T, B, 1) that made it (None for the last state)."""
        if self.pooling == "last":  # a padded step holds the state, so the last state is that of the last real step
            return last, None
        xp = array_module(h)
        if self.pooling == "mean":
            live = xp.ones(h.shape[:2], h.dtype) if mask is None else mask.astype(h.dtype)
            weights = live / xp.maximum(live.sum(0), 1)
        else:
            scores = xp.tanh(h @ self.params["pool.w"] + self.params["pool.b"])[..., 0]  # (T, B)
            scores = scores if mask is None else xp.where(mask, scores, -1e9).astype(h.dtype)
            weights = softmax(scores.T).T
        return (weights[..., None] * h).sum(0), weights[..., None]

    def _pool_back(self, d, h, weights):
        """dh (T, B, H) or None, gradient at the last state or None, and gradients of the attention."""
        if self.pooling == "last":
            return None, d, {}
        dh, grads = weights * d, {}
        if self.pooling == "attention":
            dscores = softmax_back(dot_rows(h, d[None])[..., 0].T, weights[..., 0].T).T[..., None]  # (T, B, 1)
            scores = array_module(h).tanh(h @ self.params["pool.w"] + self.params["pool.b"])
            ds = dscores * (1 - scores * scores)
            dh += ds @ self.params["pool.w"].T
            grads = {"pool.w": flat(h).T @ flat(ds), "pool.b": flat(ds).sum(0)}
        return dh, None, grads

    # --------------------------------------------------------------------------------------------------- data sets

    fit = fit  # as a method: model.fit(x, y, ...)

    def evaluate(self, x, y, batch_size: int = 128, mask=None) -> dict:
        """`scores` of a data set, in batches of `batch_size`, in the order given; with trace="batch" mates matter."""
        x, y, mask = self.check_data(x, present("y", y), mask)
        counts, totals, rng = self.counts(x, y, mask), {}, self._inference_rng()
        for rows, part, part_mask in self._batches(x, batch_size, mask):
            if count := int(counts[rows].sum()):
                add(totals, self.measure(part, array_module(part).asarray(y[rows]), rng, part_mask), count)
        return self.scores(totals, counts.sum())

    def counts(self, x, y, mask=None):
        """How much each sequence of x counts in every mean, (n,): one, whatever of it is padding."""
        return np.ones(len(x), int)

    def measure(self, x, y, rng=None, mask=None):
        """The numbers of one batch as `loss_and_grads` has them, without noise, dropout and gradients."""
        out, _ = self.forward(x, rng, mask)
        loss, _, metrics = self.loss(out, y)
        return {"loss": loss, **metrics}

    def scores(self, totals, count):
        """The numbers of an epoch or a data set, from sums over `count` sequences: training and validation alike."""
        return {name: float(value) / int(count) for name, value in totals.items()}

    def predict_outputs(self, x, batch_size: int = 128, mask=None) -> np.ndarray:
        """The head's outputs (n, O), on the host."""
        x, _, mask = self.check_data(x, None, mask)
        rng = self._inference_rng()
        parts = [self.forward(part, rng, part_mask)[0] for _, part, part_mask in self._batches(x, batch_size, mask)]
        return np.concatenate([to_device(part, "cpu") for part in parts])

    def _inference_rng(self):
        return draws(self.seed, INFERENCE) if self.random_inference else None

    def _batches(self, x, batch_size, mask):
        """Which rows of a data set, and these of x and mask as `forward` takes them, one batch after the other."""
        checks.count("batch_size", batch_size)
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            yield rows, self.time_major(x[rows]), None if mask is None else self.time_major(mask[rows])

    def time_major(self, batch):
        """(B, T, ...) on the host to (T, B, ...), contiguous, where the parameters live."""
        return array_module(self.params["head.W"]).asarray(np.ascontiguousarray(batch.swapaxes(0, 1)))

    def check_data(self, x, y, mask=None, names=("x", "y", "mask")):
        """Raise TypeError or ValueError naming what is wrong with a data set, before any work on it."""
        mask = None if mask is None else plain(names[2], mask)
        x = self.check_inputs(names[0], cleared(plain(names[0], x), mask))
        if mask is not None and not checks.real_steps(names[2], mask, x.shape[:2]).any():
            raise ValueError(f"{names[2]}: expected True at real steps, got only False; ~{names[2]} turns it round")
        if y is not None:
            y = self.check_targets(names[1], plain(names[1], y), len(x))
        return x, y, mask

    def check_inputs(self, name, x):
        """`x`, made the model's dtype, if it is (n, T, D) and finite."""
        return checks.float_array(name, as_floats(x, self.dtype), ("n", "T", self.inputs), self.dtype)


@register
class Classifier(Model):
    """Sequence classifier: x (n, T, D) to one of `classes` labels. Arguments as `Model`; the paper's dropout is 0.3."""

    metrics, kind, width = ("accuracy",), "classifier", "classes"

    def __init__(
        self, cells, inputs, classes, pooling="last", dropout=0.0, seed=0, dtype="float32", random_inference=False
    ):
        classes = checks.count("classes", classes, low=2)
        super().__init__(cells, inputs, classes, pooling, dropout, seed, dtype, random_inference)

    def loss(self, out, y):
        """Mean cross-entropy, its gradient, and the number of right answers."""
        loss, dout, right = cross_entropy(out, y)
        return loss, dout, {"accuracy": right}

    def check_targets(self, name, y, rows):
        if y.ndim == 2 and y.shape[1] == self.outputs:
            remedy = f"one-hot rows become labels by {name}.argmax(-1)"
            raise ValueError(f"{name}: expected labels of shape ({rows},), got shape {y.shape}; {remedy}")
        return class_labels(name, y, (rows,), self.outputs)

    def predict_proba(self, x, batch_size: int = 128, mask=None) -> np.ndarray:
        """Class probabilities (n, classes)."""
        return softmax(self.predict_outputs(x, batch_size, mask))

    def predict(self, x, batch_size: int = 128, mask=None) -> np.ndarray:
        """The most probable label of every sequence (n,)."""
        return self.predict_outputs(x, batch_size, mask).argmax(-1)


@register
class Regressor(Model):
    """Sequence regressor: x (n, T, D) to `outputs` numbers, by mean squared error. Arguments as `Model`.

    Predictions are shaped as the targets that it was fitted to: (n,) after `fit` with y (n,), else (n, outputs).
    outputs=None: one number, and predictions (n,) before any `fit` too.
    """

    metrics, kind = ("mae",), "regressor"

    def __init__(
        self, cells, inputs, outputs=1, pooling="last", dropout=0.0, seed=0, dtype="float32", random_inference=False
    ):
        self.target_shape = () if outputs is None else (outputs,)
        outputs = 1 if outputs is None else outputs
        super().__init__(cells, inputs, outputs, pooling, dropout, seed, dtype, random_inference)

    def config(self) -> dict:
        return super().config() | {"outputs": self.outputs if self.target_shape else None}

    def loss(self, out, y):
        """Mean squared error, its gradient, and the sum over the batch of the mean absolute error."""
        error = out - y  # (B, O)
        return (error * error).mean(), error * (2 / error.size), {"mae": abs(error).mean(-1).sum()}

    def check_targets(self, name, y, rows):
        y = y.astype(int) if y.dtype == np.uint8 else y  # no pixels here
        y = as_floats(y[:, None] if y.ndim == 1 else y, self.dtype)
        return checks.float_array(name, y, (rows, self.outputs), self.dtype)

    def predict(self, x, batch_size: int = 128, mask=None) -> np.ndarray:
        """Predictions (n, outputs), or (n,), see above."""
        return self.predict_outputs(x, batch_size, mask).reshape(-1, *self.target_shape)


@register
class StepClassifier(Classifier):
    """A classifier of time steps: labels y (n, K) of the last K = `answers` steps; its accuracy is their mean.

    The other arguments as `Classifier`; nothing is pooled. Padding is refused: padded sequences do not end together.
    """

    kind = "step_classifier"
    arguments = ("inputs", "outputs", "answers", "dropout", "seed", "random_inference")

    def __init__(self, cells, inputs, classes, answers=1, dropout=0.0, seed=0, dtype="float32", random_inference=False):
        self.answers = checks.count("answers", answers)
        super().__init__(cells, inputs, classes, "last", dropout, seed, dtype, random_inference)

    def check_data(self, x, y, mask=None, names=("x", "y", "mask")):
        x, y, mask = super().check_data(x, y, mask, names)
        if mask is not None or x.shape[1] < self.answers:
            name, got = (names[0], x.shape[1]) if mask is None else (names[2], f"{x.shape[1]} and a mask")
            wanted = f"expected {self.answers} steps or more and no mask"
            raise ValueError(f"{name}: {wanted}, got {got}; cut sequences to one length")
        return x, y, mask

    def _pool(self, h, last, mask):
        return flat(h[-self.answers :].swapaxes(0, 1)), None  # (B K, H)

    def _pool_back(self, d, h, weights):
        dh = array_module(h).zeros_like(h)
        dh[-self.answers :] = d.reshape(h.shape[1], self.answers, -1).swapaxes(0, 1)
        return dh, None, {}

    def loss(self, out, y):
        """Mean cross-entropy over labels, its gradient, and the sum over sequences of the share of right answers."""
        loss, dout, metrics = super().loss(out, y.reshape(-1))
        return loss, dout, {"accuracy": metrics["accuracy"] / self.answers}

    def check_targets(self, name, y, rows):
        return class_labels(name, y, (rows, self.answers), self.outputs)

    def predict_outputs(self, x, batch_size: int = 128, mask=None) -> np.ndarray:
        """The head's outputs (n, K, C), on the host."""
        return super().predict_outputs(x, batch_size, mask).reshape(len(x), self.answers, -1)


for each in (baselines.RNN, baselines.GRU, baselines.LSTM, Engram, Binding, Window, Convolution):
    register(each)


def _brief(cell):
    """A cell's class, its sizes and what is not its default: Engram(hidden=128, slots=64)."""
    fields, kind = getattr(cell, "__dict__", None) or {"hidden": cell.hidden}, type(cell)
    always = "hidden", "slots"
    shown = [f"{k}={v!r}" for k, v in fields.items() if k in always or repr(v) != repr(getattr(kind, k, None))]
    return f"{kind.__name__}({', '.join(shown)})"


def class_labels(name, value, shape, classes):
    """`value` if it is an integer array of `shape` with entries 0 to classes - 1."""
    value = np.asarray(checks.unmasked(name, value))
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer class labels, got {value.dtype}; convert them with .astype('int64')")
    if value.shape != tuple(shape):
        one = ", one label a sequence" * (len(shape) == 1)
        raise ValueError(f"{name}: expected shape {tuple(shape)}{one}, got {value.shape}")
    if (wrong := value[(value < 0) | (value >= classes)]).size:
        remedy = f"got {wrong[0]}; renumber them or build the model with more classes"
        raise ValueError(f"{name}: labels must lie in 0 to {classes - 1} for {classes} classes, {remedy}")
    return value


def plain(name, value):
    """`value` as an array. Raises ValueError for rows of different lengths and for masked entries."""
    for part in (value, *(value if isinstance(value, list | tuple) else ())):
        checks.unmasked(name, part)
    try:
        return np.asarray(value)
    except ValueError:  # NumPy's own message names nothing
        remedy = "pad them to one length and pass a mask"
        raise ValueError(f"{name}: expected an array, got rows of different lengths; {remedy}") from None


def as_floats(x, dtype):
    """Numbers in the model's dtype: int and float64 are what NumPy makes. Not uint8, which asks to be scaled first."""
    if x.dtype.kind not in "iuf" or x.dtype == np.uint8:
        return x
    with np.errstate(over="ignore"):  # the checks that come next tell what is infinite
        return x.astype(dtype, copy=False)


def cleared(x, mask):
    """`x` (n, T, ...) with zeros at padded steps: 0 times a NaN is NaN. What does not fit is left to the checks."""
    if mask is None or mask.shape != x.shape[:2] or x.dtype.kind not in "iuf":
        return x
    padded = ~mask.astype(bool)
    if x[padded].any():
        x = x.copy()
        x[padded] = 0
    return x

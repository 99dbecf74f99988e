"""One work of the bench, the same for every competitor: sizes, parameters, data, and what it must cost at least."""

from dataclasses import dataclass

import numpy as np

from enn_np.checkpoint import CLASSES
from enn_np.models import Classifier

# Relative, on loss and every gradient. Of H 128 to 1024 we have seen ReLUs at their kinks make 7e-3 of it in float32,
# and nothing in float64.
TOLERANCES = {"float32": 1e-2, "float64": 1e-9}


@dataclass(frozen=True)
class Problem:
    """Sizes of one work; the defaults are MNIST by rows in the paper.

    kind: "train" (forward, backward, clip, Adam), "stream" (forward, one step of one sample at a time), "recompute"
    (forward and backward of a long run, its tape kept whole or in `segments`), or "gemm" (a `steps`^3 product).
    device: "cpu" or "cuda", where all of it lies before the clock starts and is done before the clock stops.
    cell, one layer per entry of `hidden`. noise: draw initial states and trace noise, as in training.
    """

    kind: str = "train"
    cell: str = "engram"
    steps: int = 28
    batch: int = 128
    inputs: int = 28
    hidden: tuple = (128,)
    slots: int = 64
    classes: int = 10
    trace: str = "batch"
    trace_clip: float | None = 0.1
    segments: int | None = None
    device: str = "cpu"

    def model(self, dtype):
        """Our classifier without dropout. Every parameter is moved off its initial value, so that none is 0 or 1."""
        memory = {"slots": self.slots, "trace": self.trace, "trace_clip": self.trace_clip}
        settings = {"engram": memory, "binding": {"slots": self.slots}}.get(self.cell, {})
        cells = [CLASSES[self.cell](hidden=hidden, **settings) for hidden in self.hidden]
        model = Classifier(cells, self.inputs, self.classes, dropout=0.0, dtype=dtype)
        rng = np.random.default_rng(1)
        for value in model.params.values():
            value += (0.1 * rng.standard_normal(value.shape)).astype(dtype)
        return model

    def data(self, dtype):
        """x (T, B, D) in [0, 1) as pixels are, and labels y (B,)."""
        rng = np.random.default_rng(2)
        x = rng.random((self.steps, self.batch, self.inputs)).astype(dtype)
        return x, rng.integers(0, self.classes, self.batch)

    @property
    def flops(self):
        """Floating-point operations of the products alone: two per multiply-add; the way back takes two products
        for each of the forward (to the input and to the weight). Nothing else is counted, so this is a floor."""
        if self.kind == "gemm":
            return 2 * self.steps**3
        macs = self.steps * self.batch * self._macs_per_sample_step()
        if self.kind == "train":
            macs += self.batch * self.hidden[-1] * self.classes  # the head reads the last state
        return 2 * macs * (1 if self.kind == "stream" else 3)

    def _macs_per_sample_step(self):
        """Multiply-adds forward of one time step of one sample, D inputs, H hidden, N slots:

        Engram   D H (1) + N H (3) + N H (5) + 3H 3H (6) + 3H H (7) + N H (8); a trace per sample has the same
        Binding  2 D H (1), (4) + 4 N H (2), (3), (7) + 15 H H (8), (9)
        others   G (D H + H H), with G = 1, 3, 4 gates for RNN, GRU, LSTM; a second layer's D is the first one's H
        """
        D, macs = self.inputs, 0
        for H in self.hidden:
            if self.cell == "engram":
                macs += D * H + 3 * self.slots * H + 12 * H * H
            elif self.cell == "binding":
                macs += 2 * D * H + 4 * self.slots * H + 15 * H * H
            else:
                macs += CLASSES[self.cell].gates * (D * H + H * H)
            D = H
        return macs

    def small(self):
        """The same work at a size that takes no time, to see that all is in order."""
        sizes = {"steps": max(2, self.steps // 14), "batch": max(1, self.batch // 16), "inputs": 4, "slots": 4}
        if self.kind == "gemm":
            sizes["steps"] = 64
        hidden = tuple(H // 16 for H in self.hidden)
        return type(self)(**{**vars(self), **sizes, "hidden": hidden, "segments": self.segments and 4})


def difference(found, wanted):
    """The largest relative difference of two dicts of arrays, and where: (|found - wanted| / |wanted|, name).

    Lengths of whole arrays, because in float32 a ReLU may fall on the other side of its kink for one unit of one step.
    Raises ValueError if one dict has what the other lacks, a shape differs, or a number is not finite.
    """
    if found.keys() != wanted.keys():
        raise ValueError(f"expected gradients of {sorted(wanted)}, got {sorted(found)}")
    worst = 0.0, "nothing"
    for name, value in wanted.items():
        value, other = np.asarray(value, float), np.asarray(found[name], float)
        if value.shape != other.shape:
            raise ValueError(f"{name}: expected shape {value.shape}, got {other.shape}")
        error = np.linalg.norm(other - value) / max(np.linalg.norm(value), np.finfo(float).tiny)
        if not np.isfinite(error):
            raise ValueError(f"{name}: not finite")
        worst = max(worst, (float(error), name))
    return worst

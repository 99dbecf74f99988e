"""The Engram cell with its two hand-tuned numbers learned: how fast the trace is written, and how sharp recall is.

    eta   = sigmoid( r )     starts at `hebbian_rate`        (9) A_t = clip( (1 - eta) A_{t-1} + eta (D_t + eps_t) )
    sigma = exp( q )         starts at `sparsity`            (4) a_t = softmax( s_t (1 + 10 sigma) / tau )

The paper (arXiv 2507.21474) tunes both by hand and names their choice as a next step; loss and trace are differentiable
in both. Where the trace is not clipped, (9) says dA_t / d eta = D_t + eps_t - A_{t-1} = (A_t - A_{t-1}) / eta. Every
other equation, its code too, is that of `Engram` with the two numbers of the moment, which `settled` hands out.
"""

import copy
import math
from collections import namedtuple
from dataclasses import dataclass, fields

import numpy as np

from ..backend import empty, to_numpy
from ..checkpoint import register
from ..engram import Engram, EngramGradient
from ..ops import sum_rows

# As Engram's, and of every step the gradients at r and q, (1,) each.
LearnedGradient = namedtuple("LearnedGradient", (*EngramGradient._fields, "rate", "sharpness"))


@register
@dataclass(frozen=True)
class LearnedEngram(Engram):
    """Hyper-parameters as of `Engram`; hebbian_rate, between 0 and 1, and sparsity, above 0, are where learning starts.

    Its parameters are Engram's and hebbian_rate r (1,), sparsity q (1,). Everything that looks into a memory takes
    `settled(params)`, with Engram's parameters, in its place: attribution asks for that by itself where it has a model.
    """

    def __post_init__(self):
        super().__post_init__()
        for name, high in (("hebbian_rate", 1), ("sparsity", math.inf)):
            if not 0 < (start := getattr(self, name)) < high:
                raise ValueError(
                    f"{name}: to be learned it must start between 0 and {high}, got {start}; choose another"
                )

    def init(self, rng, inputs, dtype=np.float32):
        eta = self.hebbian_rate
        starts = {"hebbian_rate": math.log(eta / (1 - eta)), "sparsity": math.log(self.sparsity)}
        return super().init(rng, inputs, dtype) | {name: np.full(1, at, dtype) for name, at in starts.items()}

    def settled(self, params):
        """The Engram cell with the numbers learned so far."""
        now = self._now(params)
        return Engram(**{field.name: getattr(now, field.name) for field in fields(Engram)})

    def _now(self, params):
        """This very cell, whatever a class of yours overrides, with the numbers learned so far."""
        r, q = (float(to_numpy(params[name])[0]) for name in ("hebbian_rate", "sparsity"))
        cell = copy.copy(self)
        vars(cell).update(hebbian_rate=1 / (1 + math.exp(-r)), sparsity=math.exp(q))
        return cell

    def step(self, params, e, state, k=None):
        return super(LearnedEngram, self._now(params)).step(params, e, state, k)

    def step_back(self, params, d, e, state, k, de=None, da=None):
        """Engram's, with the gradients at r, through (9), and at q, through (4)."""
        cell = self._now(params)
        de = de or empty(self.shapes(len(d.h))[2], d.h)
        back, _ = super(LearnedEngram, cell).step_back(params, d, e, state, k, de, da)
        dA, eta = cell._unclip(d.A, k.A), cell.hebbian_rate
        de.rate[...] = (1 - eta) * (dA * (k.A - state.A)).sum()  # eta (1 - eta) dA_t / d eta
        # d / dq of s_t (1 + 10 sigma) / tau, by way of the gradient at s_t
        de.sharpness[...] = 10 * cell.sparsity / (1 + 10 * cell.sparsity) * (de.s * k.s).sum()
        return back, de

    def collect(self, params, x, e, before, k, de, input_gradient=True):
        dx, grads = super().collect(params, x, e, before, k, de, input_gradient)
        return dx, grads | {"hebbian_rate": sum_rows(de.rate), "sparsity": sum_rows(de.sharpness)}

    def shapes(self, batch):
        cue, kept, back = super().shapes(batch)
        return cue, kept, LearnedGradient(*back, (1,), (1,))

"""A rival on long sequences: LEM, as the baselines of cells.py."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from ..backend import array_module, empty
from ..cells import Baseline, LSTMState
from ..checkpoint import register
from ..checks import count, number, settings
from ..ops import flat, sigmoid, turned

LEMSums = namedtuple("LEMSums", "i o g n")  # what goes into gates i, o and candidates g, n; and gradients there
LEMKept = namedtuple("LEMKept", "h c i o g n")  # new state, gates, candidates


@register
@dataclass(frozen=True)
class LEM(Baseline):
    """Long expressive memory (Rusch et al. 2022, arXiv 2110.04744): two states, each with a step size of its own.

    i_t, o_t = dt sigmoid( x_t W_x + h_{t-1} W_h + b )      step sizes of c and of h, at most dt
    c_t = (1 - i_t) * c_{t-1} + i_t * g_t                   g_t = tanh( x_t W_xg + h_{t-1} W_hg + b_g )
    h_t = (1 - o_t) * h_{t-1} + o_t * n_t                   n_t = tanh( x_t W_xn + c_t W_hn + b_n )

    In the paper h is y and c is z. W_h holds four matrices, of which the last one reads c_t.
    """

    hidden: int
    dt: float = 1.0
    gates, biases = 4, ("b",)
    parts = LSTMState, LEMSums, LEMKept, LEMSums

    def __post_init__(self):
        super().__post_init__()
        settings(self, number, "dt", above=0)

    def init(self, rng, inputs, dtype=np.float32):
        """All uniform in +-1 / sqrt(H), as the authors' code, which adds a second b. The paper has one."""
        H, limit = self.hidden, 1 / np.sqrt(self.hidden)
        shapes = {"W_x": (4, count("inputs", inputs), H), "W_h": (4, H, H), "b": (4, H)}
        return {name: rng.uniform(-limit, limit, shape).astype(dtype) for name, shape in shapes.items()}

    def step(self, params, e, state, k=None):
        k = k or empty(self.shapes(len(state.h))[0], state.h)
        xp, W = array_module(state.h), params["W_h"]
        from_h = state.h @ W[:3]  # (3, B, H)
        for gate, sums, more in ((k.i, e.i, from_h[0]), (k.o, e.o, from_h[1])):
            sigmoid(sums + more, gate)
            gate *= self.dt
        xp.tanh(e.g + from_h[2], out=k.g)
        xp.add(state.c, k.i * (k.g - state.c), out=k.c)
        xp.tanh(e.n + k.c @ W[3], out=k.n)
        xp.add(state.h, k.o * (k.n - state.h), out=k.h)
        return LSTMState(k.h, k.c), k

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.shapes(len(d.h))[1], d.h)
        xp, W = array_module(d.h), turned(params, "W_h")
        xp.multiply(d.h * k.o, 1 - k.n * k.n, out=de.n)
        xp.multiply(d.h * (k.n - state.h), k.o * (1 - k.o / self.dt), out=de.o)  # dt sigmoid, so o' = o (1 - o / dt)
        dc = d.c + de.n @ W[3]  # c_t is read twice: by n_t, and by the next step
        xp.multiply(dc * k.i, 1 - k.g * k.g, out=de.g)
        xp.multiply(dc * (k.g - state.c), k.i * (1 - k.i / self.dt), out=de.i)
        dh = d.h * (1 - k.o) + de.i @ W[0] + de.o @ W[1] + de.g @ W[2]
        return LSTMState(dh, dc * (1 - k.i)), de

    def collect(self, params, x, e, before, k, de, input_gradient=True):
        dx, grads = super().collect(params, x, e, before, k, de, input_gradient)
        grads["W_h"][3] = flat(k.c).T @ flat(de.n)  # in place of a product with h
        return dx, grads

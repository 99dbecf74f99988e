"""A rival on long sequences: LEM, as the baselines of cells.py."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from ..backend import array_module
from ..cells import Baseline, LSTMState
from ..checkpoint import register
from ..checks import count, number, settings
from ..ops import flat, sigmoid

LEMSums = namedtuple("LEMSums", "i o g n")  # what goes into gates i, o and candidates g, n; and gradients there
LEMKept = namedtuple("LEMKept", "c i o g n")  # new c, gates, candidates


@register
@dataclass(frozen=True)
class LEM(Baseline):
    """Long expressive memory (Rusch et al. 2022, arXiv 2110.04744): two states, each with a step size of its own.

    i_t, o_t = dt sigmoid( x_t W_x + h_{t-1} W_h + b )      step sizes of c and of h, at most dt
    c_t = (1 - i_t) * c_{t-1} + i_t * g_t                   g_t = tanh( x_t W_xg + h_{t-1} W_hg + b_g )
    h_t = (1 - o_t) * h_{t-1} + o_t * n_t                   n_t = tanh( x_t W_xn + c_t W_hn + b_n )

    In the paper h is y and c is z. W_h holds four matrices, of which the last one reads c_t.
    """

    dt: float = 1.0
    gates, biases = 4, ("b",)
    parts = LSTMState, LEMSums

    def __post_init__(self):
        super().__post_init__()
        settings(self, number, "dt", above=0)

    def init(self, rng, inputs, dtype=np.float32):
        """All uniform in +-1 / sqrt(H), as the authors' code, which adds a second b. The paper has one."""
        H, limit = self.hidden, 1 / np.sqrt(self.hidden)
        shapes = {"W_x": (4, count("inputs", inputs), H), "W_h": (4, H, H), "b": (4, H)}
        return {name: rng.uniform(-limit, limit, shape).astype(dtype) for name, shape in shapes.items()}

    def step(self, params, e, state):
        xp, W = array_module(state.h), params["W_h"]
        from_h = state.h @ W[:3]  # (3, B, H)
        i, o = self.dt * sigmoid(e.i + from_h[0]), self.dt * sigmoid(e.o + from_h[1])
        g = xp.tanh(e.g + from_h[2])
        c = state.c + i * (g - state.c)
        n = xp.tanh(e.n + c @ W[3])
        return LSTMState(state.h + o * (n - state.h), c), LEMKept(c, i, o, g, n)

    def step_back(self, params, d, e, state, k):
        W = params["W_h"]
        dn = d.h * k.o * (1 - k.n * k.n)
        do = d.h * (k.n - state.h) * (k.o * (1 - k.o / self.dt))  # dt sigmoid, so o' = o (1 - o / dt)
        dc = d.c + dn @ W[3].T  # c_t is read twice: by n_t, and by the next step
        dg = dc * k.i * (1 - k.g * k.g)
        di = dc * (k.g - state.c) * (k.i * (1 - k.i / self.dt))
        dh = d.h * (1 - k.o) + di @ W[0].T + do @ W[1].T + dg @ W[2].T
        return LSTMState(dh, dc * (1 - k.i)), LEMSums(di, do, dg, dn)

    def collect(self, params, x, e, before, k, de):
        dx, grads = super().collect(params, x, e, before, k, de)
        grads["W_h"][3] = flat(k.c).T @ flat(de.n)  # in place of a product with h
        return dx, grads

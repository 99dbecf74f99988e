"""The baselines, each with its equations, its backward pass and Keras' conventions: RNN, GRU, LSTM.

A cell holds hyper-parameters only, such as `hidden`, H. Parameters are a dict of arrays; states, with h (B, H) as their
first part, and all that is kept are NamedTuples. A cell of yours is these six methods, and may derive from `Cell`:

    init(rng, inputs, dtype)                    -> params
    initial_state(batch, dtype, rng, xp)        -> state     xp: numpy or cupy; rng: None, or draws a random start
    encode(params, x)                           -> e         what needs no past, for all steps at once
    step(params, e, state)                      -> state, k  the equations; k keeps what the way back needs
    step_back(params, d, e, state, k)           -> d, de     the mirror image, from bottom to top
    collect(params, x, e, before, k, de)        -> dx, grads undoes `encode`; weight gradients over all leading axes

To be fast, a cell writes into arrays that it is given. One with shapes(batch) -> e, k, de, the shapes of one step, gets
encode(..., mask, out), step(..., k), step_back(..., k, de) and collect(..., de, input_gradient).

Letters: T time, B batch, D inputs, H hidden. Matrices of several gates are stacked along a first axis, (gates, D, H):
every gate then is a contiguous (B, H) array. `d` is the gradient at the state after the step, then before it.
"""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from .backend import array_module, empty
from .checks import count
from .device import fused
from .initial import glorot_uniform, orthogonal
from .ops import flat, linear, sigmoid, sum_rows, turned


class Cell:
    """What a cell has beside its six methods. Derive yours from it to have these defaults."""

    loop_weights = ()  # names of weights multiplied at every step, turned once for the way back: see `ops.turned`
    shared = ()  # names of the parts of the state that all samples of a batch share

    def record(self, params, tape):
        """For run(..., record=True): states (T + 1, ...), entry t enters step t, and all kept (T, ...), as copies."""
        parts = tape.fresh().kept._asdict() | tape.states._asdict()
        return {"hidden" if name == "h" else name: part.copy() for name, part in parts.items() if part is not None}


class Baseline(Cell):
    """What the three baselines share. Every part of every NamedTuple is (B, H), with T in front when stacked.

    parts: the types of state, encoded input, kept arrays and gradients. gates: how many. biases: names, the one at
    x W_x first.
    """

    loop_weights = ("W_h",)

    def __post_init__(self):
        object.__setattr__(self, "hidden", count("hidden", self.hidden))

    def init(self, rng, inputs, dtype=np.float32):
        """Glorot uniform W_x, orthogonal W_h, zero biases, as Keras. rng: a NumPy Generator; inputs: D."""
        G, D, H = self.gates, count("inputs", inputs), self.hidden
        W_x = glorot_uniform(rng, (G, D, H), fans=(D, G * H))  # Keras draws one (D, G H) matrix
        W_h = orthogonal(rng, H, G * H).reshape(H, G, H).swapaxes(0, 1)
        params = {"W_x": W_x, "W_h": W_h, **{name: np.zeros((G, H)) for name in self.biases}}
        return {name: np.ascontiguousarray(value, dtype) for name, value in params.items()}

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros, with or without `rng`."""
        return self.parts[0](*(xp.zeros((batch, self.hidden), dtype) for _ in self.parts[0]._fields))

    def shapes(self, batch):
        return [part(*[(batch, self.hidden)] * len(part._fields)) for part in self.parts[1:]]

    def encode(self, params, x, mask=None, out=None):
        """x W_x + b of every gate, for x (..., B, D). Padding needs no care here: `run` holds the state."""
        e = out or empty(self.shapes(x.shape[-2])[0], x, x.shape[:-2])
        for W, b, sums in zip(params["W_x"], params[self.biases[0]], e, strict=True):
            linear(x, W, b, out=sums)
        return e

    def sums_back(self, de):
        """Gradients at x W_x + b and at h W_h (+ b) of every gate: the same, where the two are just added."""
        return de, de

    def collect(self, params, x, e, before, k, de, input_gradient=True):
        W_x, X, h_prev = params["W_x"], flat(x), flat(before.h)
        xp = array_module(x)
        d_in, d_rec = self.sums_back(de)
        dx, dW_x, dW_h = None, xp.empty_like(W_x), xp.empty_like(params["W_h"])
        for g, (d_i, d_r) in enumerate(zip(d_in, d_rec, strict=True)):
            xp.matmul(X.T, flat(d_i), out=dW_x[g])
            xp.matmul(h_prev.T, flat(d_r), out=dW_h[g])
        grads = {"W_x": dW_x, "W_h": dW_h}
        for name, d in zip(self.biases, (d_in, d_rec), strict=False):
            grads[name] = xp.stack([sum_rows(gate) for gate in d])
        if input_gradient:
            dx = sum(flat(d_i) @ W.T for d_i, W in zip(d_in, W_x, strict=True)).reshape(x.shape)
        return dx, grads


Hidden = namedtuple("Hidden", "h")  # the state of RNN and GRU


RNNSums = namedtuple("RNNSums", "s")  # what goes into tanh; and the gradient there


@dataclass(frozen=True)
class RNN(Baseline):
    """Elman's network (1990), Keras' SimpleRNN.   h_t = tanh( x_t W_x + h_{t-1} W_h + b )"""

    hidden: int
    gates, biases = 1, ("b",)
    parts = Hidden, RNNSums, Hidden, RNNSums

    def step(self, params, e, state, k=None):
        k = k or empty(self.shapes(len(state.h))[1], state.h)
        s = state.h @ params["W_h"][0]  # (B, H)
        s += e.s
        array_module(s).tanh(s, out=k.h)
        return k, k  # the new state is all that has to be kept

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.shapes(len(d.h))[2], d.h)
        array_module(d.h).multiply(d.h, 1 - k.h**2, out=de.s)  # tanh' = 1 - tanh^2
        return Hidden(de.s @ turned(params, "W_h")[0]), de


GRUSums = namedtuple("GRUSums", "z r n")  # the input's part of what goes into the gates z, r and the candidate n
GRUKept = namedtuple("GRUKept", "h z r n u")  # new h, gates, candidate, and u = h_{t-1} W_hn + b_hn before the reset
GRUGradient = namedtuple("GRUGradient", "z r n u")  # gradients at what goes into z, r, n, and at u


@dataclass(frozen=True)
class GRU(Baseline):
    """Gated recurrent unit (Cho et al. 2014), Keras' reset_after=True with two biases.

    z_t = sigmoid( x_t W_xz + b_xz + h_{t-1} W_hz + b_hz )            update: how much of h to keep
    r_t = sigmoid( x_t W_xr + b_xr + h_{t-1} W_hr + b_hr )            reset
    n_t = tanh( x_t W_xn + b_xn + r_t * (h_{t-1} W_hn + b_hn) )       candidate
    h_t = z_t * h_{t-1} + (1 - z_t) * n_t
    """

    hidden: int
    gates, biases = 3, ("b_x", "b_h")
    parts = Hidden, GRUSums, GRUKept, GRUGradient

    def step(self, params, e, state, k=None):
        k = k or empty(self.shapes(len(state.h))[1], state.h)
        from_h = state.h @ params["W_h"]  # (3, B, H)
        from_h += params["b_h"][:, None]
        self._gates(array_module(state.h), e, GRUSums(*from_h), state.h, k)
        return Hidden(k.h), k

    @staticmethod
    @fused
    def _gates(xp, e, from_h, h, k):
        sigmoid(xp, e.z + from_h.z, k.z)
        sigmoid(xp, e.r + from_h.r, k.r)
        k.u[...] = from_h.n
        xp.tanh(e.n + k.r * k.u, out=k.n)
        xp.add(k.n, k.z * (h - k.n), out=k.h)  # z h + (1 - z) n

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.shapes(len(d.h))[2], d.h)
        xp = array_module(d.h)
        dh = xp.empty_like(d.h)  # h_{t-1} is used four times: here and in three products
        self._gates_back(xp, d.h, state.h, k, de, dh)
        for dg, W in zip((de.z, de.r, de.u), turned(params, "W_h"), strict=True):
            dh += dg @ W
        return Hidden(dh), de

    @staticmethod
    @fused
    def _gates_back(xp, d, h, k, de, dh):
        xp.multiply(d * (1 - k.z), 1 - k.n * k.n, out=de.n)  # h to n, through its tanh
        xp.multiply(d * (h - k.n), k.z * (1 - k.z), out=de.z)  # h to z, through its sigmoid
        xp.multiply(de.n * k.u, k.r * (1 - k.r), out=de.r)  # n to r, through its sigmoid
        xp.multiply(de.n, k.r, out=de.u)  # n to u
        xp.multiply(d, k.z, out=dh)

    def sums_back(self, de):
        return (de.z, de.r, de.n), (de.z, de.r, de.u)  # the reset stands between the candidate's two sums


LSTMState = namedtuple("LSTMState", "h c")  # output, and the cell's memory
LSTMSums = namedtuple("LSTMSums", "i f g o")  # what goes into gates i, f, o and candidate g; and gradients there
LSTMKept = namedtuple("LSTMKept", "h c i f g o tanh_c")  # new state, gates, candidate, tanh(c)


@dataclass(frozen=True)
class LSTM(Baseline):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), Keras' gate order i, f, c, o.

    i, f, o = sigmoid( x_t W_x + h_{t-1} W_h + b )      g = tanh( x_t W_x + h_{t-1} W_h + b )
    c_t = f * c_{t-1} + i * g                           h_t = o * tanh(c_t)
    """

    hidden: int
    gates, biases = 4, ("b",)
    parts = LSTMState, LSTMSums, LSTMKept, LSTMSums

    def init(self, rng, inputs, dtype=np.float32):
        """As the others; the forget gate's bias starts at 1, so that c is kept until the cell learns to forget."""
        params = super().init(rng, inputs, dtype)
        params["b"][1] = 1
        return params

    def step(self, params, e, state, k=None):
        k = k or empty(self.shapes(len(state.h))[1], state.h)
        from_h = LSTMSums(*(state.h @ params["W_h"]))  # each (B, H)
        self._gates(array_module(state.h), e, from_h, state.c, k)
        return LSTMState(k.h, k.c), k

    @staticmethod
    @fused
    def _gates(xp, e, from_h, c, k):
        sigmoid(xp, e.i + from_h.i, k.i)
        sigmoid(xp, e.f + from_h.f, k.f)
        xp.tanh(e.g + from_h.g, out=k.g)
        sigmoid(xp, e.o + from_h.o, k.o)
        xp.add(k.f * c, k.i * k.g, out=k.c)
        xp.tanh(k.c, out=k.tanh_c)
        xp.multiply(k.o, k.tanh_c, out=k.h)

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.shapes(len(d.h))[2], d.h)
        xp = array_module(d.h)
        dc = xp.empty_like(d.c)
        self._gates_back(xp, d, state.c, k, de, dc)
        dh = sum(dg @ W for dg, W in zip(de, turned(params, "W_h"), strict=True))
        return LSTMState(dh, dc), de

    @staticmethod
    @fused
    def _gates_back(xp, d, c, k, de, dc):
        now = d.c + d.h * k.o * (1 - k.tanh_c * k.tanh_c)  # c is read twice: by h now, by the next step
        xp.multiply(d.h * k.tanh_c, k.o * (1 - k.o), out=de.o)
        xp.multiply(now * k.i, 1 - k.g * k.g, out=de.g)
        xp.multiply(now * c, k.f * (1 - k.f), out=de.f)
        xp.multiply(now * k.g, k.i * (1 - k.i), out=de.i)
        xp.multiply(now, k.f, out=dc)

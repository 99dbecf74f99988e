"""The baselines, each with its equations and its backward pass: RNN, GRU, LSTM, with Keras' conventions.

A cell holds hyper-parameters only, such as `hidden`, H. Parameters are a dict of arrays; states, with h (B, H) as their
first part, and all that is kept are NamedTuples. A cell of yours is these six methods, and may derive from `Cell`:

    init(rng, inputs, dtype)                    -> params
    initial_state(batch, dtype, rng, xp)        -> state     xp: numpy or cupy; rng: None, or draws a random start
    encode(params, x)                           -> e         what needs no past, for all steps at once
    step(params, e, state)                      -> state, k  the equations; k keeps what the way back needs
    step_back(params, d, e, state, k)           -> d, de     the mirror image, from bottom to top
    collect(params, x, e, before, k, de)        -> dx, grads undoes `encode`; weight gradients over all leading axes

All return new arrays and change none that they are given. `collect` finds every part by its name, as before.h or k.i,
stacked, (T, B, ...); in place of dx it may return a function that makes it. If the batch shares parts of the state, the
tuple `shared` names them; `encode` gets the mask and, if it takes it, `mean`. `noise`, `penalty`, `mean`: see `Engram`.

Letters: T time, B batch, D inputs, H hidden. Matrices of several gates are stacked along a first axis, (gates, D, H):
every gate then is a contiguous (B, H) array. `d` is the gradient at the state after the step, then before it.
"""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from .backend import array_module, fused
from .checks import count, settings
from .ops import flat, glorot_uniform, linear, orthogonal, sigmoid, sum_rows


class Cell:
    """What a cell has beside its six methods. Derive yours from it to have these defaults."""

    shared = ()  # names of the parts of the state that all samples of a batch share
    hooks = None  # what a run does before and after its two loops: see `trace.ListStore`

    def record(self, params, tape):
        """What a run did: states (T + 1, ...), entry t enters step t, and all kept (T, ...), as copies."""
        parts = tape.kept.stacked()._asdict() | tape.states.stacked()._asdict()
        return {"hidden" if name == "h" else name: part.copy() for name, part in parts.items() if part is not None}


class Traced(Cell):
    """A cell with a Hebbian trace A, shared by the batch or one per sample."""

    @property
    def shared(self):
        """The parts of the state that all samples of a batch share."""
        return ("A",) if self.trace == "batch" else ()

    def traces(self, tape):
        """A of every step, (T + 1, N, H) or (T + 1, B, N, H): entry t enters step t."""
        return tape.states.A

    def _share(self, mask, x):
        """Each sample's part in the mean of what is written: of those alive, (..., B, 1) or a number; 1 by sample."""
        if self.trace == "sample":
            return 1.0
        if mask is None:
            return 1 / x.shape[-2]
        return (mask / array_module(x).maximum(mask.sum(-1, keepdims=True), 1)).astype(x.dtype)[..., None]


@dataclass(frozen=True)
class Baseline(Cell):
    """What the baselines share. Every part of every NamedTuple is (B, H), with T in front when stacked.

    parts: the types of state and encoded input. gates: how many. biases: names, the one at x W_x first. GRU and
    LSTM have neuron, neuron_back: the equations between the products, unit by unit.
    """

    hidden: int

    def __post_init__(self):
        settings(self, count, "hidden")

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

    def encode(self, params, x):
        """x W_x + b of every gate, for x (..., B, D). Padding needs no care here: `run` holds the state."""
        return self.parts[1](*(linear(x, W, b) for W, b in zip(params["W_x"], params[self.biases[0]], strict=True)))

    def sums_back(self, de):
        """Gradients at x W_x + b and at h W_h (+ b) of every gate: the same, where the two are just added."""
        return de, de

    def collect(self, params, x, e, before, k, de):
        """Weight gradients, each one product over time and batch, of every gate; and the gradient at x."""
        (d_in, d_rec), xp = self.sums_back(de), array_module(x)
        grads = {"W_x": xp.stack([flat(x).T @ flat(gate) for gate in d_in])}
        grads |= {"W_h": xp.stack([flat(before.h).T @ flat(gate) for gate in d_rec])}
        for name, d in zip(self.biases, (d_in, d_rec), strict=False):
            grads[name] = xp.stack([sum_rows(gate) for gate in d])
        return lambda: sum(flat(d) @ W.T for d, W in zip(d_in, params["W_x"], strict=True)).reshape(x.shape), grads


Hidden = namedtuple("Hidden", "h")  # the state of RNN and GRU
RNNSums = namedtuple("RNNSums", "s")  # what goes into tanh; and the gradient there


@dataclass(frozen=True)
class RNN(Baseline):
    """Elman's network (1990), Keras' SimpleRNN.   h_t = tanh( x_t W_x + h_{t-1} W_h + b )"""

    gates, biases = 1, ("b",)
    parts = Hidden, RNNSums

    def step(self, params, e, state):
        h = Hidden(array_module(e.s).tanh(e.s + state.h @ params["W_h"][0]))  # (B, H)
        return h, h  # the new state is all that has to be kept

    def step_back(self, params, d, e, state, k):
        ds = d.h * (1 - k.h**2)  # tanh' = 1 - tanh^2
        return Hidden(ds @ params["W_h"][0].T), RNNSums(ds)


GRUSums = namedtuple("GRUSums", "z r n")  # the input's part of what goes into the gates z, r and the candidate n
GRUKept = namedtuple("GRUKept", "z r n u")  # gates, candidate, and u = h_{t-1} W_hn + b_hn before the reset
GRUGradient = namedtuple("GRUGradient", "z r n u")  # gradients at what goes into z, r, n, and at u


@dataclass(frozen=True)
class GRU(Baseline):
    """Gated recurrent unit (Cho et al. 2014), Keras' reset_after=True with two biases.

    z_t = sigmoid( x_t W_xz + b_xz + h_{t-1} W_hz + b_hz )            update: how much of h to keep
    r_t = sigmoid( x_t W_xr + b_xr + h_{t-1} W_hr + b_hr )            reset
    n_t = tanh( x_t W_xn + b_xn + r_t * (h_{t-1} W_hn + b_hn) )       candidate
    h_t = z_t * h_{t-1} + (1 - z_t) * n_t
    """

    gates, biases = 3, ("b_x", "b_h")
    parts = Hidden, GRUSums

    @fused
    def neuron(x_z, x_r, x_n, h_z, h_r, u, h):
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        n = array_module(u).tanh(x_n + r * u)
        return n + z * (h - n), z, r, n  # z h + (1 - z) n

    @fused
    def neuron_back(dh, z, r, n, u, h):
        dn = dh * (1 - z) * (1 - n * n)  # h to n, through its tanh
        dz = dh * (h - n) * (z * (1 - z))  # h to z, through its sigmoid
        dr = dn * u * (r * (1 - r))  # n to r, through its sigmoid
        return dh * z, dz, dr, dn, dn * r  # at h_{t-1}, z, r, n, u

    def step(self, params, e, state):
        from_h = state.h @ params["W_h"] + params["b_h"][:, None]  # (3, B, H)
        h, *gates = self.neuron(e.z, e.r, e.n, *from_h, state.h)  # (B, H) each
        return Hidden(h), GRUKept(*gates, from_h[2])

    def step_back(self, params, d, e, state, k):
        dh, dz, dr, dn, du = self.neuron_back(d.h, k.z, k.r, k.n, k.u, state.h)
        for dg, W in zip((dz, dr, du), params["W_h"], strict=True):
            dh += dg @ W.T  # h_{t-1} is used four times: above and in three products
        return Hidden(dh), GRUGradient(dz, dr, dn, du)

    def sums_back(self, de):
        return (de.z, de.r, de.n), (de.z, de.r, de.u)  # the reset stands between the candidate's two sums


LSTMState = namedtuple("LSTMState", "h c")  # output, and the cell's memory
LSTMSums = namedtuple("LSTMSums", "i f g o")  # what goes into gates i, f, o and candidate g; and gradients there
LSTMKept = namedtuple("LSTMKept", "i f g o tanh_c")  # gates, candidate, tanh(c)


@dataclass(frozen=True)
class LSTM(Baseline):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), Keras' gate order i, f, c, o.

    i, f, o = sigmoid( x_t W_x + h_{t-1} W_h + b )      g = tanh( x_t W_x + h_{t-1} W_h + b )
    c_t = f * c_{t-1} + i * g                           h_t = o * tanh(c_t)
    """

    gates, biases = 4, ("b",)
    parts = LSTMState, LSTMSums

    def init(self, rng, inputs, dtype=np.float32):
        """As the others; the forget gate's bias starts at 1, so that c is kept until the cell learns to forget."""
        params = super().init(rng, inputs, dtype)
        params["b"][1] = 1
        return params

    @fused
    def neuron(x_i, x_f, x_g, x_o, h_i, h_f, h_g, h_o, c):
        i, f, o = sigmoid(x_i + h_i), sigmoid(x_f + h_f), sigmoid(x_o + h_o)
        g = array_module(c).tanh(x_g + h_g)
        c = f * c + i * g
        tanh_c = array_module(c).tanh(c)
        return o * tanh_c, c, i, f, g, o, tanh_c

    @fused
    def neuron_back(dh, dc, i, f, g, o, tanh_c, c):
        dc = dc + dh * o * (1 - tanh_c * tanh_c)  # c_t is read twice: by h_t, and by the next step
        do = dh * tanh_c * (o * (1 - o))
        dg = dc * i * (1 - g * g)
        df = dc * c * (f * (1 - f))
        di = dc * g * (i * (1 - i))
        return dc * f, di, df, dg, do

    def step(self, params, e, state):
        h, c, *gates = self.neuron(e.i, e.f, e.g, e.o, *(state.h @ params["W_h"]), state.c)  # (B, H) each
        return LSTMState(h, c), LSTMKept(*gates)

    def step_back(self, params, d, e, state, k):
        dc, *de = self.neuron_back(d.h, d.c, k.i, k.f, k.g, k.o, k.tanh_c, state.c)
        dh = sum(dgate @ W.T for dgate, W in zip(de, params["W_h"], strict=True))
        return LSTMState(dh, dc), LSTMSums(*de)

"""The baselines, each with its equations, its backward pass and Keras' conventions: RNN, GRU, LSTM.

A cell holds hyper-parameters only. Parameters are a dict of arrays; states and kept arrays are NamedTuples.

    init(rng, inputs)                          -> params
    initial_state(batch)                       -> state     zeros
    encode(params, x)                          -> e         what needs no past, for all steps at once
    step(params, e, state, k)                  -> state, k  the equations; k keeps what the way back needs
    step_back(params, d, e, state, k, de)      -> d, de     the mirror image, from bottom to top
    collect(params, x, e, before, k, de)       -> dx, grads weight gradients over all leading axes

Letters: T time, B batch, D inputs, H hidden. Matrices of several gates are stacked along a first axis, (gates, D, H):
every gate then is a contiguous (B, H) array. `d` is the gradient at the state after the step, then before it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .backend import array_module, empty
from .checks import count
from .initial import glorot_uniform, orthogonal
from .ops import flat, linear, sigmoid, sum_rows


class Hidden(NamedTuple):
    """State of RNN and GRU: h (B, H)."""

    h: Any


class Baseline:
    """What the three baselines share: gate-stacked parameters, and their gradients."""

    input_weight = "W_x"
    shared = ()  # no part of the state is shared by the batch

    def __post_init__(self):
        object.__setattr__(self, "hidden", count("hidden", self.hidden))

    def init(self, rng, inputs, dtype=np.float32):
        """Glorot uniform W_x, orthogonal W_h, zero biases, as Keras. rng: a NumPy Generator; inputs: D."""
        G, D, H = self.gates, count("inputs", inputs), self.hidden
        W_x = glorot_uniform(rng, (G, D, H), fans=(D, G * H))  # Keras draws one (D, G H) matrix
        W_h = orthogonal(rng, H, G * H).reshape(H, G, H).swapaxes(0, 1)
        params = {"W_x": W_x, "W_h": W_h, **{name: np.zeros((G, H)) for name in self.biases}}
        return {name: np.ascontiguousarray(value, dtype) for name, value in params.items()}

    def collect_gates(self, params, x, before, d_in, d_rec):
        """dx and weight gradients, from the gradients at the gates' sums: d_in at x W_x + b, d_rec at h W_h + b."""
        W_x, X, h_prev = params["W_x"], flat(x), flat(before.h)
        xp = array_module(x)
        dW_x, dW_h = xp.empty_like(W_x), xp.empty_like(params["W_h"])
        dX = xp.zeros_like(X)
        for g, (d_i, d_r) in enumerate(zip(d_in, d_rec, strict=True)):
            xp.matmul(X.T, flat(d_i), out=dW_x[g])
            xp.matmul(h_prev.T, flat(d_r), out=dW_h[g])
            dX += flat(d_i) @ W_x[g].T
        return dX.reshape(x.shape), {"W_x": dW_x, "W_h": dW_h}


def stack_sums(gates):
    """Bias gradient (gates, H): the sum of every gate's gradient over time and batch."""
    return array_module(gates[0]).stack([sum_rows(gate) for gate in gates])


# ---------------------------------------------------------------------------------------------------------------- RNN


class RNNSums(NamedTuple):
    """s (B, H): what goes into tanh, or the gradient there."""

    s: Any


@dataclass(frozen=True)
class RNN(Baseline):
    """Elman's network (1990), Keras' SimpleRNN.   h_t = tanh( x_t W_x + h_{t-1} W_h + b )"""

    hidden: int
    gates = 1
    biases = ("b",)

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros (B, H)."""
        return Hidden(xp.zeros((batch, self.hidden), dtype))

    def kept_shapes(self, state):
        return Hidden(state.h.shape)

    def gradient_shapes(self, batch):
        return RNNSums((batch, self.hidden))

    def encode(self, params, x, mask=None):
        return RNNSums(linear(x, params["W_x"][0], params["b"][0]))

    def step(self, params, e, state, k=None):
        k = k or empty(self.kept_shapes(state), state.h)
        s = state.h @ params["W_h"][0]  # (B, H)
        s += e.s
        array_module(s).tanh(s, out=k.h)
        return k, k  # the new state is all that has to be kept

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.gradient_shapes(len(d.h)), d.h)
        array_module(d.h).multiply(d.h, 1 - k.h**2, out=de.s)  # tanh' = 1 - tanh^2
        return Hidden(de.s @ params["W_h"][0].T), de

    def collect(self, params, x, e, before, k, de):
        dx, grads = self.collect_gates(params, x, before, de, de)
        return dx, {**grads, "b": stack_sums(de)}


# ---------------------------------------------------------------------------------------------------------------- GRU


class GRUSums(NamedTuple):
    """The sums from the input that go into the gates z, r and the candidate n, each (B, H)."""

    z: Any
    r: Any
    n: Any


class GRUKept(NamedTuple):
    """h, the gates z and r, the candidate n, and u = h_{t-1} W_n + b_n before the reset, each (B, H)."""

    h: Any
    z: Any
    r: Any
    n: Any
    u: Any


class GRUGradient(NamedTuple):
    """Gradients at the sums of z, r, n, and at u, each (B, H)."""

    z: Any
    r: Any
    n: Any
    u: Any


@dataclass(frozen=True)
class GRU(Baseline):
    """Gated recurrent unit (Cho et al. 2014), Keras' reset_after=True with two biases.

    z_t = sigmoid( x_t W_xz + b_xz + h_{t-1} W_hz + b_hz )            update: how much of h to keep
    r_t = sigmoid( x_t W_xr + b_xr + h_{t-1} W_hr + b_hr )            reset
    n_t = tanh( x_t W_xn + b_xn + r_t * (h_{t-1} W_hn + b_hn) )       candidate
    h_t = z_t * h_{t-1} + (1 - z_t) * n_t
    """

    hidden: int
    gates = 3
    biases = ("b_x", "b_h")

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros (B, H)."""
        return Hidden(xp.zeros((batch, self.hidden), dtype))

    def kept_shapes(self, state):
        return GRUKept(*[state.h.shape] * 5)

    def gradient_shapes(self, batch):
        return GRUGradient(*[(batch, self.hidden)] * 4)

    def encode(self, params, x, mask=None):
        return GRUSums(*(linear(x, W, b) for W, b in zip(params["W_x"], params["b_x"], strict=True)))

    def step(self, params, e, state, k=None):
        k = k or empty(self.kept_shapes(state), state.h)
        xp = array_module(state.h)
        from_h = state.h @ params["W_h"]  # (3, B, H)
        from_h += params["b_h"][:, None]
        k.z[...] = sigmoid(e.z + from_h[0])
        k.r[...] = sigmoid(e.r + from_h[1])
        k.u[...] = from_h[2]
        xp.tanh(e.n + k.r * k.u, out=k.n)
        xp.add(k.n, k.z * (state.h - k.n), out=k.h)  # z h + (1 - z) n
        return Hidden(k.h), k

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.gradient_shapes(len(d.h)), d.h)
        xp, W_h = array_module(d.h), params["W_h"]
        xp.multiply(d.h * (1 - k.z), 1 - k.n**2, out=de.n)  # h to n, through its tanh
        xp.multiply(d.h * (state.h - k.n), k.z * (1 - k.z), out=de.z)  # h to z, through its sigmoid
        xp.multiply(de.n * k.u, k.r * (1 - k.r), out=de.r)  # n to r, through its sigmoid
        xp.multiply(de.n, k.r, out=de.u)  # n to u
        dh = d.h * k.z  # h_{t-1} is used four times: here and in three products
        for dg, W in zip((de.z, de.r, de.u), W_h, strict=True):
            dh += dg @ W.T
        return Hidden(dh), de

    def collect(self, params, x, e, before, k, de):
        d_in, d_rec = (de.z, de.r, de.n), (de.z, de.r, de.u)  # the candidate's two sums differ by the reset
        dx, grads = self.collect_gates(params, x, before, d_in, d_rec)
        return dx, {**grads, "b_x": stack_sums(d_in), "b_h": stack_sums(d_rec)}


# --------------------------------------------------------------------------------------------------------------- LSTM


class LSTMState(NamedTuple):
    """h and the cell's memory c, each (B, H)."""

    h: Any
    c: Any


class LSTMSums(NamedTuple):
    """What goes into input gate i, forget gate f, candidate g and output gate o, each (B, H); or gradients there."""

    i: Any
    f: Any
    g: Any
    o: Any


class LSTMKept(NamedTuple):
    """New state h, c; the four gates; tanh(c). Each (B, H)."""

    h: Any
    c: Any
    i: Any
    f: Any
    g: Any
    o: Any
    tanh_c: Any


@dataclass(frozen=True)
class LSTM(Baseline):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), Keras' gate order i, f, c, o.

    i, f, o = sigmoid( x_t W_x + h_{t-1} W_h + b )      g = tanh( x_t W_x + h_{t-1} W_h + b )
    c_t = f * c_{t-1} + i * g                           h_t = o * tanh(c_t)
    """

    hidden: int
    gates = 4
    biases = ("b",)

    def init(self, rng, inputs, dtype=np.float32):
        """As the others; the forget gate's bias starts at 1, so that c is kept until the cell learns to forget."""
        params = super().init(rng, inputs, dtype)
        params["b"][1] = 1
        return params

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros (B, H) for h and c."""
        return LSTMState(*(xp.zeros((batch, self.hidden), dtype) for _ in range(2)))

    def kept_shapes(self, state):
        return LSTMKept(*[state.h.shape] * 7)

    def gradient_shapes(self, batch):
        return LSTMSums(*[(batch, self.hidden)] * 4)

    def encode(self, params, x, mask=None):
        return LSTMSums(*(linear(x, W, b) for W, b in zip(params["W_x"], params["b"], strict=True)))

    def step(self, params, e, state, k=None):
        k = k or empty(self.kept_shapes(state), state.h)
        xp = array_module(state.h)
        from_h = state.h @ params["W_h"]  # (4, B, H)
        k.i[...] = sigmoid(e.i + from_h[0])
        k.f[...] = sigmoid(e.f + from_h[1])
        xp.tanh(e.g + from_h[2], out=k.g)
        k.o[...] = sigmoid(e.o + from_h[3])
        xp.add(k.f * state.c, k.i * k.g, out=k.c)
        xp.tanh(k.c, out=k.tanh_c)
        xp.multiply(k.o, k.tanh_c, out=k.h)
        return LSTMState(k.h, k.c), k

    def step_back(self, params, d, e, state, k, de=None):
        de = de or empty(self.gradient_shapes(len(d.h)), d.h)
        xp = array_module(d.h)
        dc = d.c + d.h * k.o * (1 - k.tanh_c**2)  # c is read twice: by h now, by the next step
        xp.multiply(d.h * k.tanh_c, k.o * (1 - k.o), out=de.o)
        xp.multiply(dc * k.i, 1 - k.g**2, out=de.g)
        xp.multiply(dc * state.c, k.f * (1 - k.f), out=de.f)
        xp.multiply(dc * k.g, k.i * (1 - k.i), out=de.i)
        dh = sum(dg @ W.T for dg, W in zip(de, params["W_h"], strict=True))
        return LSTMState(dh, dc * k.f), de

    def collect(self, params, x, e, before, k, de):
        dx, grads = self.collect_gates(params, x, before, de, de)
        return dx, {**grads, "b": stack_sums(de)}

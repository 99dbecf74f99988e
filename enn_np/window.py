"""A memory that attends: causal attention over the last K steps in the place of the trace, beside the learned bank.

    (1) z_t = LN( ReLU( x_t W_z + b_z ) )                          cue
    (2) a_t = softmax( cos(z_t, rows of M) / tau )                 which slots of the bank the cue means
    (3) p_t = softmax( cos(z_t, z_{s-1}) / tau ), t - K <= s < t   which past step: the one that came after such a cue
    (4) m_t = a_t M + sum over s of p_ts v_s                       recall
    (5) v_t = x_t W_v + b_v                                        value
    (8), (9) as in binding.py: integration, candidate, gate

What `Binding` writes into a trace of fixed size is kept here as it came, key by key and value by value: exact, and
forgotten after K steps. A key is the cue of the step before its value, so that a key recalls what followed it. Places
that are still empty have key and value zero: they bring nothing. `Convolution` sees the last K inputs by fixed weights.

Source: attention as in Vaswani et al. 2017 (arXiv 1706.03762) over the recent past alone, keys one step behind values;
its outer-product twin is binding.py. Letters: B batch, D inputs, H hidden, N slots, K window.
"""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from .backend import array_module
from .binding import INTEGRATION, Addressing
from .cells import Cell
from .checks import count, number, settings
from .ops import flat, match, read, softmax, softmax_back, sum_rows, write

# State: h (B, H); keys and values of the last K steps, oldest first (B, K, H); the last cue's direction z (B, H).
WindowState = namedtuple("WindowState", "h keys values z")
# As in binding.py, whose `BindingInput` is used up to v: what a step keeps, with attention p (B, K); the gradients for
# `collect`, among them that of attention and of the next step at the cue's direction, z_unit.
WindowKept = namedtuple("WindowKept", f"p {INTEGRATION}")
WindowGradient = namedtuple("WindowGradient", "z z_unit m v k c q u")


@dataclass(frozen=True)
class Window(Addressing):
    """Hyper-parameters: hidden H, slots N of the bank, window K, how many steps are remembered; temperature tau."""

    hidden: int = 128
    slots: int = 64
    window: int = 32
    temperature: float = 0.15

    def __post_init__(self):
        settings(self, count, "hidden slots window")
        settings(self, number, "temperature", above=0)

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros, with or without `rng`: nothing is remembered yet."""
        row, past = (batch, self.hidden), (batch, self.window, self.hidden)
        return WindowState(*(xp.zeros(shape, dtype) for shape in (row, past, past, row)))

    def step(self, params, e, state):
        xp = array_module(e.v)
        p = softmax(match(e.z_unit, state.keys) / self.temperature)  # (B, K) (3) attention
        m = e.bank + read(p, state.values)  # (B, H) (4) recall
        h, integration = self._integrate(params, e.z, m, state.h)  # (8), (9)
        keys = xp.concatenate((state.keys[:, 1:], state.z[:, None]), axis=1)  # (B, K, H) the oldest is gone
        values = xp.concatenate((state.values[:, 1:], e.v[:, None]), axis=1)
        return WindowState(h, keys, values, e.z_unit), WindowKept(p, *integration)

    def step_back(self, params, d, e, state, k):
        """Undo (9) to (3). d: gradient at (h_t, keys, values, z)."""
        dz, dm, dh, integration = self._integrate_back(params, d.h, state.h, k)  # (9), (8)
        ds = softmax_back(match(dm, state.values), k.p) / self.temperature  # (4), (3)
        du = read(ds, state.keys) + d.z  # (3) to z_t, beside the next step's key
        dkeys, dvalues = write(ds, e.z_unit, False), write(k.p, dm, False)  # (3) and (4) to what was read,
        dkeys[:, 1:] += d.keys[:, :-1]  # beside what later steps read of it
        dvalues[:, 1:] += d.values[:, :-1]
        gradient = WindowGradient(dz, du, dm, d.values[:, -1].copy(), *integration)
        return WindowState(dh, dkeys, dvalues, d.keys[:, -1].copy()), gradient


ConvolutionState = namedtuple("ConvolutionState", "h past")  # output (B, H); inputs before, latest first (B, K - 1, H)
ConvolutionInput = namedtuple("ConvolutionInput", "x")  # the input as it is
ConvolutionGradient = namedtuple("ConvolutionGradient", "x h")  # gradients at the input and the output, (B, H)


@dataclass(frozen=True)
class Convolution(Cell):
    """A short convolution over the past, of every feature by itself: a layer to stack below another cell, which then
    sees K steps at once, as in H3 (arXiv 2212.14052) and Mamba (arXiv 2312.00752).

        h_t = w_0 * x_t + w_1 * x_{t-1} + ... + w_{K-1} * x_{t-K+1} + b

    Hyper-parameters: hidden H, also the number of inputs; width K.
    """

    hidden: int
    width: int = 4

    def __post_init__(self):
        settings(self, count, "hidden")
        settings(self, count, "width", low=2)

    def init(self, rng, inputs, dtype=np.float32):
        """Near the identity: w_0 is 1, b is 0, the other weights are normal, 0.1 wide. ValueError unless D is H."""
        if count("inputs", inputs) != (H := self.hidden):
            raise ValueError(f"inputs: expected {H}, as many as hidden, got {inputs}; make `hidden` {inputs}")
        w = 0.1 * rng.standard_normal((self.width, H))
        w[0] = 1
        return {"w": w.astype(dtype), "b": np.zeros(H, dtype)}

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros, with or without `rng`."""
        shapes = (batch, self.hidden), (batch, self.width - 1, self.hidden)
        return ConvolutionState(*(xp.zeros(shape, dtype) for shape in shapes))

    def encode(self, params, x):
        """Nothing: with padding only a step knows which inputs came before."""
        return ConvolutionInput(x)

    def step(self, params, e, state):
        w = params["w"]
        h = e.x * w[0] + (state.past * w[1:]).sum(1) + params["b"]  # (B, H)
        past = array_module(h).concatenate((e.x[:, None], state.past[:, :-1]), axis=1)
        return ConvolutionState(h, past), ConvolutionState(h, past)

    def step_back(self, params, d, e, state, k):
        dx = d.h[:, None] * params["w"]  # (B, K, H), at x_t and the K - 1 inputs before
        dx[:, :-1] += d.past  # all but the oldest are handed on
        no_h = array_module(d.h).zeros_like(d.h)  # no step reads h_{t-1}
        return ConvolutionState(no_h, dx[:, 1:]), ConvolutionGradient(dx[:, 0].copy(), d.h)

    def collect(self, params, x, e, before, k, de):
        past = before.past.reshape(-1, self.width - 1, self.hidden).swapaxes(0, 1)
        w = array_module(x).stack([sum_rows(each * flat(de.h)) for each in (flat(x), *past)])  # (K, H)
        return de.x, {"w": w, "b": sum_rows(de.h)}

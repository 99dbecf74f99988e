"""A memory that attends: causal attention over the last K steps in the place of the trace, beside the learned bank.

    (1) z_t = LN( ReLU( x_t W_z + b_z ) )                          cue
    (2) a_t = softmax( cos(z_t, rows of M) / tau )                 which slots of the bank the cue means
    (3) p_t = softmax( cos(z_t, z_{s-1}) / tau ), t - K <= s < t   which past step: the one that came after such a cue
    (4) m_t = a_t M + sum over s of p_ts v_s                       recall
    (5) v_t = x_t W_v + b_v                                        value
    (8), (9) as in binding.py: integration, candidate, gate

What `Binding` writes into a trace of fixed size is kept here as it came, key by key and value by value: exact, and
forgotten after K steps. Without padding a run keeps it once, and a step sees a slice of it. A key is the cue of the
step before its value, so that a key recalls what followed it. Places that are still empty have key and value zero:
attention may rest on them, and they bring nothing.

Source: attention as in Vaswani et al. 2017 (arXiv 1706.03762) over the recent past alone, keys one step behind values;
its outer-product twin is binding.py. Letters: B batch, D inputs, H hidden, N slots, K window.
"""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from .backend import array_module, empty
from .cells import Cell
from .checks import Settings, count
from .initial import glorot_uniform, he_normal
from .integration import integrate, integrate_back, integration, integrators
from .ops import flat, layer_norm, layer_norm_back, linear, linear_back, match, read, relu, relu_back
from .ops import softmax, softmax_back, sum_rows, unit, unit_back, write

# State: h (B, H); keys and values of the last K steps, oldest first (B, K, H); the last cue's direction z (B, H).
WindowState = namedtuple("WindowState", "h keys values z")
# What needs no past: cue z (B, H) with its ReLU r and layer norm r_hat, r_inv; its direction and 1 / length; address a
# (B, N); the bank's part of the recall, bank (B, H); value v (B, H); past, see `Past`, or None.
WindowInput = namedtuple("WindowInput", "z r r_hat r_inv z_unit z_inv a bank v past")
# What a step keeps: the new state; attention p (B, K); and what integration keeps, see binding.py.
WindowKept = namedtuple("WindowKept", "h keys values z p zmh c q k q_hat q_inv u")
# Gradients for `collect`: at the cue z and, of attention and of the next step, at its direction z_unit; at v and m; and
# those of integration.
WindowGradient = namedtuple("WindowGradient", "z z_unit v m u c q k")


@dataclass(frozen=True)
class Window(Cell):
    """Hyper-parameters: hidden H, slots N of the bank, window K, how many steps are remembered; temperature tau."""

    hidden: int = 128
    slots: int = 64
    window: int = 32
    temperature: float = 0.15

    loop_weights = ("W_c", "W_h", "W_u")

    def __post_init__(self):
        check = Settings(self)
        check.counts("hidden", "slots", "window")
        check.numbers("temperature", above=0)

    def init(self, rng, inputs, dtype=np.float32):
        """He normal W_z, W_c, W_h; Glorot uniform M, W_v, W_u; zero biases. rng: a NumPy Generator."""
        D, H = count("inputs", inputs), self.hidden
        params = {"W_z": he_normal(rng, (D, H)), "b_z": np.zeros(H), "gamma_z": np.ones(H), "beta_z": np.zeros(H)}
        params |= {"M": glorot_uniform(rng, (self.slots, H)), "W_v": glorot_uniform(rng, (D, H)), "b_v": np.zeros(H)}
        return {name: value.astype(dtype) for name, value in (params | integrators(rng, H)).items()}

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros, with or without `rng`: nothing is remembered yet."""
        row, past = (batch, self.hidden), (batch, self.window, self.hidden)
        return WindowState(*(xp.zeros(shape, dtype) for shape in (row, past, past, row)))

    def encode(self, params, x, mask=None, out=None):
        """(1), (2), (5) and the bank's part of (4), for x (..., B, D)."""
        e, xp = out or empty(self.shapes(x.shape[-2])[0], x, x.shape[:-2]), array_module(x)
        relu(linear(x, params["W_z"], params["b_z"], out=e.r), out=e.r)
        layer_norm(e.r, params["gamma_z"], params["beta_z"], out=(e.z, e.r_hat, e.r_inv))  # (1) cue
        unit(e.z, out=(e.z_unit, e.z_inv))
        e.a[...] = softmax(e.z_unit @ unit(params["M"])[0].T / self.temperature)  # (2) address
        xp.matmul(e.a, params["M"], out=e.bank)
        linear(x, params["W_v"], params["b_v"], out=e.v)  # (5) value
        return e

    def step(self, params, e, state, k=None):
        k, H = k or empty(self.shapes(len(state.h))[1], state.h), self.hidden
        keys, values = self._past(e, state)  # (B, K, H)
        k.p[...] = softmax(match(e.z_unit, keys) / self.temperature)  # (B, K) (3) attention
        k.zmh[:, :H] = e.z
        k.zmh[:, H : 2 * H] = e.bank + read(k.p, values)  # (B, H) (4) recall
        integrate(params, state.h, k)  # (8), (9)
        self._remember(e, state, k)
        k.z[...] = e.z_unit
        return WindowState(k.h, k.keys, k.values, k.z), k

    def _past(self, e, state):
        """The keys and values of the last K steps."""
        return e.past.seen() if e.past else (state.keys, state.values)

    def _remember(self, e, state, k):
        """What came now, where the oldest was."""
        if e.past:
            e.past.t += 1
            return
        for past, old, new in ((k.keys, state.keys, state.z), (k.values, state.values, e.v)):
            past[:, :-1], past[:, -1] = old[:, 1:], new

    def step_back(self, params, d, e, state, k, de=None):
        """Undo (9) to (3). d: gradient at (h_t, keys, values, z)."""
        de = de or empty(self.shapes(len(d.h))[2], d.h)
        if e.past:
            e.past.t -= 1
        xp = array_module(d.h)
        de.z[...], dh = integrate_back(params, d.h, state.h, k, de)  # (9), (8)
        keys, values = self._past(e, state)
        ds = softmax_back(match(de.m, values), k.p) / self.temperature  # (4), (3)
        xp.add(read(ds, keys), d.z, out=de.z_unit)  # (3) to z_t, beside the next step's key
        read_here = write(ds, e.z_unit, False), write(k.p, de.m, False)  # (3) and (4) to what was read
        return WindowState(dh, *self._past_back(d, e, de, *read_here)), de

    def _past_back(self, d, e, de, dkeys, dvalues):
        """Beside what was read here, what later steps read: into de the gradient at v_t, the others handed back."""
        if e.past:
            dkey, de.v[...] = e.past.seen_back(dkeys, dvalues)
            return None, None, dkey
        de.v[...] = d.values[:, -1]
        dkeys[:, 1:] += d.keys[:, :-1]
        dvalues[:, 1:] += d.values[:, :-1]
        return dkeys, dvalues, d.keys[:, -1].copy()

    def enter(self, params, e, state, mask, keep):
        """In front of the first step: without padding the past of every step is a slice of one array."""
        if mask is not None or type(self) is not Window:  # a subclass may remember otherwise
            return e, state
        join = array_module(e.v).concatenate
        keys = join((state.keys.swapaxes(0, 1), state.z[None], e.z_unit[:-1]))
        past = Past(keys, join((state.values.swapaxes(0, 1), e.v)), self.window)
        return e._replace(past=past), state._replace(keys=None, values=None)

    def final(self, e, state):
        """Behind the last step: the state with its keys and values."""
        if not e.past:
            return state
        keys, values = (part.copy() for part in e.past.seen())
        return state._replace(keys=keys, values=values)

    def turn(self, e, d):
        """In front of the way back."""
        if not e.past:
            return d
        e.past.turn(d.keys, d.values)
        return d._replace(keys=None, values=None)

    def leave(self, e, d, de):
        """Behind it: the gradients at the keys and values that the run began with."""
        if not e.past:
            return d, de
        keys, values = (part[: self.window].swapaxes(0, 1).copy() for part in e.past.d)
        return d._replace(keys=keys, values=values), de

    def collect(self, params, x, e, before, k, de, input_gradient=True):
        """Undo (5), (2) and (1); weight gradients, each one product over time and batch."""
        M_unit, M_inv = unit(params["M"])
        ds = softmax_back(de.m @ params["M"].T, e.a) / self.temperature  # (4), (2)
        dM = flat(e.a).T @ flat(de.m) + unit_back(flat(ds).T @ flat(e.z_unit), M_unit, M_inv)
        dz = de.z + unit_back(de.z_unit + ds @ M_unit, e.z_unit, e.z_inv)
        dr = relu_back(layer_norm_back(dz, params["gamma_z"], e.r_hat, e.r_inv), e.r)  # (1)
        grads = {"M": dM, "gamma_z": sum_rows(dz * e.r_hat), "beta_z": sum_rows(dz), **integration(k, de)}
        for name, dy in (("z", dr), ("v", de.v)):
            grads[f"W_{name}"], grads[f"b_{name}"] = linear_back(dy, x)
        return dr @ params["W_z"].T + de.v @ params["W_v"].T if input_gradient else None, grads

    def record(self, params, tape):
        """What a run did, as copies: codes z, values v, engram m and its parts bank_part, window_part (T, B, H);
        retrieval a (T, B, N), attention p (T, B, K), of step t to steps t - K to t - 1; hidden h (T + 1, B, H)."""
        H, (e, states, k) = self.hidden, tape.fresh()[1:4]
        engram = k.zmh[..., H : 2 * H]
        seen = {"codes": e.z, "values": e.v, "engram": engram, "bank_part": e.bank, "window_part": engram - e.bank}
        seen |= {"retrieval": e.a, "attention": k.p, "hidden": states.h}
        return {name: part.copy() for name, part in seen.items()}

    def shapes(self, batch):
        """Shapes of the encoded input, of what a step keeps, and of what a step back leaves for `collect`."""
        H, N = self.hidden, self.slots
        row, wide, one, past = (batch, H), (batch, 3 * H), (batch, 1), (batch, self.window, H)
        kept = WindowKept(row, past, past, row, past[:2], wide, wide, row, row, row, one, row)
        cue = WindowInput(row, row, row, one, row, one, (batch, N), row, row, None)
        return cue, kept, WindowGradient(row, row, row, row, row, wide, row, row)


class Past:
    """Keys and values (K + T, B, H) of a run, first those that it began with: step t sees K from t on.
    d: the gradients at both."""

    def __init__(self, keys, values, window):
        self.both, self.window, self.t = (keys, values), window, 0

    def seen(self):
        """The keys and values of the last K steps, (B, K, H)."""
        return [part[self.t : self.t + self.window].swapaxes(0, 1) for part in self.both]

    def turn(self, *ends):
        """Before the way back: gradients at the last keys and values, or None."""
        self.t = len(self.both[0]) - self.window
        self.d = [array_module(part).zeros_like(part) for part in self.both]
        for d, end in zip(self.d, ends, strict=True):
            if end is not None:
                d[self.t :] += end.swapaxes(0, 1)

    def seen_back(self, *read_here):
        """Add the gradients at what step t read; those at the key and the value that it left."""
        for d, here in zip(self.d, read_here, strict=True):
            d[self.t : self.t + self.window] += here.swapaxes(0, 1)
        return [d[self.t + self.window].copy() for d in self.d]  # nobody before read these

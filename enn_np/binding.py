"""A memory that binds: a Hebbian trace per sample that pairs what was just addressed with what comes now.

    (1) z_t = LN( ReLU( x_t W_z + h_{t-1} U_z + b_z ) )             cue: a code of the input, and of the state if asked
    (2) a_t = softmax( cos(z_t, rows of M) / tau )                  address: which slots the cue means
    (3) m_t = a_t M + a_t A_{t-1}                                   recall: the bank, and what was written before
    (4) v_t = x_t W_v + b_v                                         value
    (5) g_t = sigmoid( x_t w_g + h_{t-1} u_g + b_g )                plasticity: how much to write now
    (6) w_t = g_t a_{t-1}                                           pre: where to write, the address of the step before
    (7) A_t = (1 - delta) (1 - w_t) A_{t-1} + w_t' v_t              post: the value; only what is addressed is replaced
    (8) k_t = LN( ReLU( ReLU( [z_t ; m_t ; h_{t-1}] W_c + b_c ) W_h + b_h ) )    integration and candidate
    (9) h_t = u_t h_{t-1} + (1 - u_t) k_t,  u_t = sigmoid( [z_t ; m_t ; h_{t-1}] W_u + b_u )

The paper's cell (engram.py) writes each code at its own address, so that it can only recall what it is shown. Here a
key that is followed by a value leaves the value at the key's address: (6), Hebb's rule with a delay of one step.

Other rules in the place of (7), and another address in that of (2), where the trace is a matrix from cues to values:

    hebb   A_t = (1 - delta) A_{t-1} + w_t' v_t                         fast weights (Ba et al. 2016, arXiv 1610.06258)
    delta  A_t = (1 - delta) A_{t-1} + w_t' (v_t - a_{t-1} A_{t-1})     only what the address does not recall already
                                                                        (Schlag et al. 2021, arXiv 2102.11174)
    key    a_t = z_t / |z_t|                                            the cue itself, no bank: N = H

Neighbours: Hebbian sequence memory (Sompolinsky & Kanter 1986), learned plasticity (Miconi et al. 2018, arXiv
1804.02464), erase and add (the DNC, Graves et al. 2016).

Letters: T time, B batch, D inputs, H hidden, N memory slots.
"""

import math
from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from .backend import array_module
from .cells import Cell, Traced
from .checks import choice, count, number, settings, switch
from .ops import dot_rows, flat, glorot_uniform, he_normal, linear, linear_back, read, relu, relu_back
from .ops import relu_norm, relu_norm_back, sigmoid, softmax, softmax_back, sum_rows, unit, unit_back
from .trace import Dense, ListStore

# State: h (B, H); the trace A, (B, N, H) one per sample or (N, H) shared by the batch; the last address a (B, N).
BindingState = namedtuple("BindingState", "h A a")
# What (1) and (2) leave behind: the ReLU r; layer norm z, r_hat (B, H), r_inv (B, 1); the direction and 1 / length of
# the cue; cosines s and address a (B, N), and what that reads in the bank, (B, H).
ADDRESS = "r z r_hat r_inv z_unit z_inv s a bank"
Address = namedtuple("Address", ADDRESS, defaults=[None] * 8)
# What needs no past: all of that, or with a recurrent cue x_t W_z + b_z, as r; value v (B, H); x_t w_g + b_g, (B, 1)
# or None; share (B, 1) or one number, each sample's part in a shared trace; trace, where that is a list.
BindingInput = namedtuple("BindingInput", f"{ADDRESS} v g share trace", defaults=[None] * 3)
# What a step keeps: the address; plasticity g (B, 1); write weights w (B, N); what is written, v; what the trace keeps,
# keep (B, N) or (N,); all of (8) and (9): [z ; m ; h_{t-1}], c (B, 3H), candidate k, its ReLU q, q_hat, q_inv, gate u.
INTEGRATION = "zmh c k q q_hat q_inv u"
BindingKept = namedtuple("BindingKept", f"{ADDRESS} g w v keep {INTEGRATION}")
# Gradients for `collect`: before the ReLU of (1), r, and after its layer norm, z; at s, m, v; before the sigmoid of
# (5), g; at `keep`; after the layer norm of (8), k, before its ReLUs, c and q, and before the sigmoid of (9), u. If the
# address needs no past, z and s have what comes from elsewhere, and from a: `collect` does the rest for all steps.
BindingGradient = namedtuple("BindingGradient", "r z s m v g keep k c q u")


class Addressing(Cell):
    """What cells share that recall values by the address of a cue: (1), (2), (4), (8), (9) and their way back."""

    address, recurrent_cue, bank_read, gated = "slots", False, True, True
    plasticity, learned_decay = "fixed", False

    def init(self, rng, inputs, dtype=np.float32):
        """He normal W_z, W_c, W_h; Glorot uniform M, W_v, W_u and the others; zero biases. rng: a NumPy Generator.

        U_z is a tenth of He normal: else the state, of unit variance, drowns a one-hot input: no key finds its slot.
        b_g and d start where `rate` and `decay` say.
        """
        D, H = count("inputs", inputs), self.hidden
        params = {"W_z": he_normal(rng, (D, H)), "b_z": np.zeros(H), "gamma_z": np.ones(H), "beta_z": np.zeros(H)}
        params |= {"U_z": 0.1 * he_normal(rng, (H, H))} if self.recurrent_cue else {}
        params |= {"M": glorot_uniform(rng, (self.slots, H))} if self.address == "slots" else {}
        params |= {"W_v": glorot_uniform(rng, (D, H)), "b_v": np.zeros(H)}
        if self.plasticity == "gate":
            params |= {"w_g": glorot_uniform(rng, (D, 1)), "u_g": glorot_uniform(rng, (H, 1))}
            params |= {"b_g": np.full(1, _logit(self.rate))}
        params |= {"d": np.full(self.slots, _logit(self.decay))} if self.learned_decay else {}
        params |= {"W_c": he_normal(rng, (3 * H, 3 * H)), "b_c": np.zeros(3 * H)}  # rows: z, m, h
        params |= {"W_h": he_normal(rng, (3 * H, H)), "b_h": np.zeros(H), "gamma_h": np.ones(H), "beta_h": np.zeros(H)}
        params |= {"W_u": glorot_uniform(rng, (3 * H, H)), "b_u": np.zeros(H)} if self.gated else {}
        return {name: value.astype(dtype) for name, value in params.items()}

    def encode(self, params, x):
        """What the input alone says, for x (..., B, D): (1) and (2), or its part of (1); value (4)."""
        sums = linear(x, params["W_z"], params["b_z"])
        address = Address(sums) if self.recurrent_cue else self._address(params, sums)
        return BindingInput(*address, linear(x, params["W_v"], params["b_v"]))  # (4) value

    def _address(self, params, sums):
        """(1) from what its ReLU sees, (..., B, H), (2), and the bank's part of (3)."""
        z, r, r_hat, r_inv = relu_norm(params, "z", sums)  # (..., B, H) (1) cue
        u, inv = unit(z)
        s, a, bank = None, u, None  # (2) address
        if self.address == "slots":
            s = u @ unit(params["M"])[0].T  # (..., B, N)
            a = softmax(s / self.temperature)
        if self.bank_read:
            bank = a @ params["M"]  # (..., B, H)
        return Address(r, z, r_hat, r_inv, u, inv, s, a, bank)

    def _address_back(self, params, c, dz, da, dm, du=0):
        """Undo the bank's part of (3), (2) and (1), from what all else sends to z_t, a_t, m_t and the cue's direction:
        gradients before the ReLU of (1), at z_t and at s_t."""
        if self.bank_read:
            da = da + dm @ params["M"].T  # (3)
        if self.address == "slots":
            da = softmax_back(da, c.a) / self.temperature  # (2)
        du = du + (da @ unit(params["M"])[0] if self.address == "slots" else da)
        dz = dz + unit_back(du, c.z_unit, c.z_inv)  # (2) to z_t
        return relu_norm_back(params, "z", dz, c.r, c.r_hat, c.r_inv), dz, da  # (1)

    def _integrate(self, params, z, m, h):
        """(8) and (9): h_t, and INTEGRATION."""
        zmh = array_module(h).concatenate((z, m, h), axis=1)
        c = relu(linear(zmh, params["W_c"], params["b_c"]))  # (B, 3H)
        k, *norm = relu_norm(params, "h", linear(c, params["W_h"], params["b_h"]))  # (B, H) (8) candidate
        if not self.gated:
            return k, (zmh, c, k, *norm, None)
        u = sigmoid(linear(zmh, params["W_u"], params["b_u"]))
        return k + u * (h - k), (zmh, c, k, *norm, u)  # (B, H) (9) hidden state

    def _integrate_back(self, params, dh, h, k):
        """Undo (9) and (8): gradients at z_t, m_t and h_{t-1}; and at k, c, q, u for `collect`."""
        H, du = self.hidden, None
        dk = dh * (1 - k.u) if self.gated else dh  # (9) to k_t
        dq = relu_norm_back(params, "h", dk, k.q, k.q_hat, k.q_inv)  # (8)
        dc = relu_back(dq @ params["W_h"].T, k.c)
        dzmh = dc @ params["W_c"].T
        if self.gated:
            du = dk * (h - k.k) * k.u  # (9) to u_t, through its sigmoid
            dzmh += du @ params["W_u"].T
            dzmh[:, 2 * H :] += dh * k.u  # (9) to h_{t-1}
        return dzmh[:, :H], dzmh[:, H : 2 * H], dzmh[:, 2 * H :], (dk, dc, dq, du)

    def collect(self, params, x, e, before, k, de):
        """Undo (2) and (1) if they need no past, then to x; weight gradients, each one product over time and batch."""
        if self.recurrent_cue:
            c, dr, dz, ds = k, de.r, de.z, de.s
        else:  # a window is not read by slots, but looks at the cue's direction
            given = de.z, getattr(de, "s", 0), de.m, getattr(de, "z_unit", 0)
            c, (dr, dz, ds) = e, self._address_back(params, e, *given)
        grads = {"gamma_z": sum_rows(dz * c.r_hat), "beta_z": sum_rows(dz)}
        if self.address == "slots":
            grads["M"] = unit_back(flat(ds).T @ flat(c.z_unit), *unit(params["M"]))  # (2)
            grads["M"] += flat(c.a).T @ flat(de.m) if self.bank_read else 0  # (3)
        grads |= {"gamma_h": sum_rows(de.k * k.q_hat), "beta_h": sum_rows(de.k)}
        weights = [("c", de.c, k.zmh), ("h", de.q, k.c), *[("u", de.u, k.zmh)] * self.gated]
        for name, dy, into in [*weights, ("z", dr, x), ("v", de.v, x)]:
            grads[f"W_{name}"], grads[f"b_{name}"] = linear_back(dy, into)
        return lambda: dr @ params["W_z"].T + de.v @ params["W_v"].T, grads


@dataclass(frozen=True)
class Binding(Addressing, Traced):
    """Hyper-parameters of the binding cell: sizes, and a switch for each idea in it.

    hidden H, slots N. rule: "replace", (7), "hebb" or "delta", see above. address: "slots", or the "key" itself, where
    `slots` becomes H and there is no bank; it goes with the other two rules. recurrent_cue: U_z in (1); off, for then a
    key has one address, whatever came before it. write_at: the "previous" address, or its "own", a_t in (6) and in
    delta. plasticity of (5): the "gate", or "fixed", g = rate. rate: where the gate starts, or stays. decay delta of
    (7), 0 for none; learned_decay: every slot learns its own from there. temperature tau of (2). bank_read: a_t M in
    (3). gated: (9), or h_t = k_t. trace: "sample", or "batch", where w_t' v_t and w_t in (7) are means over the batch,
    as in the paper. store: where a trace per sample is kept, "list" or "dense", as in a subclass; see trace.py.
    """

    hidden: int = 128
    slots: int = 64
    rule: str = "replace"
    address: str = "slots"
    recurrent_cue: bool = False
    write_at: str = "previous"
    plasticity: str = "gate"
    rate: float = 0.5
    decay: float = 0.0
    learned_decay: bool = False
    temperature: float = 0.15
    bank_read: bool = True
    gated: bool = True
    trace: str = "sample"
    store: str = "list"

    def __post_init__(self):
        settings(self, count, "hidden slots")
        settings(self, number, "rate decay", low=0, high=1)
        settings(self, number, "temperature", above=0)
        settings(self, switch, "recurrent_cue learned_decay bank_read gated")
        settings(self, choice, "rule", ("replace", "hebb", "delta"))
        settings(self, choice, "address", ("slots", "key"))
        settings(self, choice, "write_at", ("previous", "own"))
        settings(self, choice, "plasticity", ("gate", "fixed"))
        settings(self, choice, "trace", ("sample", "batch"))
        settings(self, choice, "store", ("dense", "list"))
        for name in ["rate"] * (self.plasticity == "gate") + ["decay"] * self.learned_decay:
            if (start := getattr(self, name)) in (0, 1):
                raise ValueError(f"{name}: to be learned it must lie between 0 and 1, got {start}")
        if self.address == "key":
            if self.rule == "replace":
                raise ValueError(f'address: a "key" needs rule="hebb" or "delta", got rule={self.rule!r}')
            vars(self).update(slots=self.hidden, bank_read=False)

    @property
    def hooks(self):
        """Those of a list, see trace.py."""
        return ListStore if self.store == "list" and self.trace == "sample" and type(self) is Binding else None

    def traces(self, tape):
        """As of every trace, made anew where it is a list."""
        return super().traces(tape) if tape.e.trace is None else tape.e.trace.traces()

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """Zeros, with or without `rng`: nothing is written yet, and nowhere was addressed."""
        H, N = self.hidden, self.slots
        memory = (N, H) if self.trace == "batch" else (batch, N, H)
        return BindingState(*(xp.zeros(shape, dtype) for shape in ((batch, H), memory, (batch, N))))

    def encode(self, params, x, mask=None):
        """As above, and the input's part of (5)."""
        g = linear(x, params["w_g"], params["b_g"]) if self.plasticity == "gate" else None
        return super().encode(params, x)._replace(g=g, share=self._share(mask, x))

    def step(self, params, e, state):
        xp, c = array_module(state.h), Address(*e[: len(Address._fields)])
        if self.recurrent_cue:
            c = self._address(params, e.r + state.h @ params["U_z"])  # (1), (2)
        A, at = e.trace or Dense(state.A), self._written_at(state, c)
        m, old = A.read(xp.stack((c.a, at))) if self.rule == "delta" else (A.read(c.a), 0)
        m = m + c.bank if self.bank_read else m  # (B, H) (3) recall
        v = e.v - old if self.rule == "delta" else e.v  # (B, H) (7) what to write
        # (B, 1) (5) how much
        g = xp.full(c.r_inv.shape, self.rate, c.r_inv.dtype) if e.g is None else sigmoid(e.g + state.h @ params["u_g"])
        w = at * (g * e.share)  # (B, N) (6) where to write
        here = w.sum(0) if self.shared else w
        keep = (1 - self._delta(params)) * (1 - here if self.rule == "replace" else xp.ones(here.shape, here.dtype))
        A = A.write(w, v, keep)  # (7)
        h, integration = self._integrate(params, c.z, m, state.h)  # (8), (9)
        return BindingState(h, A, c.a), BindingKept(*c, g, w, v, keep, *integration)

    def _written_at(self, state, c):
        """The address of (6), (B, N)."""
        return state.a if self.write_at == "previous" else c.a

    def _delta(self, params):
        """The decay of (7): of every slot (N,), or one number."""
        return sigmoid(params["d"]) if self.learned_decay else self.decay

    def step_back(self, params, d, e, state, k):
        """Undo (9) to (1). d: gradient at (h_t, A_t, a_t)."""
        xp, dr = array_module(d.h), None
        dz, dm, dh, integration = self._integrate_back(params, d.h, state.h, k)  # (9), (8)
        A = e.trace or Dense(state.A, dA=d.A.copy())
        at = self._written_at(state, k)
        dw, dv, dkeep = A.write_back(k.w, k.v, k.keep)  # (7)
        a, drecall = k.a, dm
        if self.rule == "delta":  # A is read twice, by (3) and, with the other sign, by (7)
            a, drecall = xp.stack((a, at)), xp.stack((dm, -dv))
        da, dat = A.match(drecall) if self.rule == "delta" else (A.match(dm), 0)  # (3) to a_t, (7) to its own address
        A.recall_back(a, drecall)  # (3), (7) to A_{t-1}
        if self.rule == "replace":
            dw -= (1 - self._delta(params)) * dkeep
        dw *= e.share
        dg = dot_rows(dw, at) * (k.g * (1 - k.g))  # (B, 1) (6) to g_t, through the sigmoid of (5)
        if self.plasticity == "gate":
            dh += dg * params["u_g"].T  # (5) to h_{t-1}
        dw = dw * k.g + dat  # (6) to the address
        da += d.a  # beside the next step's use
        if self.write_at == "own":
            da += dw
            dw = xp.zeros_like(dw)  # and the last address is of no use
        if self.recurrent_cue:
            dr, dz, da = self._address_back(params, k, dz, da, dm)  # (2), (1)
            dh += dr @ params["U_z"].T
        return BindingState(dh, A.dA, dw), BindingGradient(dr, dz, da, dm, dv, dg, dkeep, *integration)

    def collect(self, params, x, e, before, k, de):
        """As above, with what Binding has beside it."""
        dx, grads = super().collect(params, x, e, before, k, de)
        if self.recurrent_cue:
            grads["U_z"] = flat(before.h).T @ flat(de.r)
        if self.plasticity == "gate":
            grads["w_g"], grads["b_g"] = linear_back(de.g, x)
            grads["u_g"] = flat(before.h).T @ flat(de.g)
        if self.learned_decay:
            grads["d"] = -self._delta(params) * sum_rows(de.keep * k.keep)  # (7): (1 - delta)' = -delta (1 - delta)
        return lambda: dx() + (de.g @ params["w_g"].T if self.plasticity == "gate" else 0), grads  # (5)

    def record(self, params, tape):
        """What a run did, as copies: codes z, values v, engram m and its parts bank_part, trace_part (T, B, H);
        similarities s, retrieval a, written w (T, B, N), plasticity g (T, B, 1); trace A and hidden h (T + 1, ...). At
        padding they are those of an input of zeros, but trace and hidden stand still."""
        xp, H, A, (e, states, k) = array_module(tape.x), self.hidden, self.traces(tape), tape[2:5]
        bank = k.a @ params["M"] if self.bank_read else xp.zeros_like(e.v)
        recalled = xp.stack([read(a_t, A_t) for a_t, A_t in zip(k.a, A[:-1], strict=True)])
        seen = {"codes": k.zmh[..., :H], "values": e.v, "engram": k.zmh[..., H : 2 * H], "bank_part": bank}
        seen |= {"similarities": (k if self.recurrent_cue else e).s, "retrieval": k.a, "trace_part": recalled}
        seen |= {"written": k.w, "plasticity": k.g, "trace": A, "hidden": states.h}
        return {name: part.copy() for name, part in seen.items() if part is not None}


def _logit(p):
    return math.log(p) - math.log1p(-p)

"""The Engram cell: a recurrent cell with a learned memory bank and a Hebbian trace (arXiv 2507.21474).

    (1) z_t  = LN( ReLU( x_t W_z + b_z ) )                    cue: a code of the input
    (2) M~_t = M + alpha A_{t-1}                              effective memory: learned bank + trace written so far
    (3) s_t  = cos( z_t, rows of M~_t )                       how well every slot matches the cue
    (4) a_t  = softmax( s_t / tau_s )                         retrieval weights, tau_s = tau / (1 + 10 sigma)
    (5) m_t  = a_t M~_t                                       retrieved engram
    (6) c_t  = ReLU( [z_t ; m_t ; h_{t-1}] W_c + b_c )        integration, three times as wide
    (7) h_t  = LN( ReLU( c_t W_h + b_h ) )                    hidden state and output
    (8) D_t  = mean over the batch of a_t' z_t                what fires together (per sample: no mean)
    (9) A_t  = clip( (1 - eta) A_{t-1} + eta (D_t + eps_t) )  ... wires together, and fades

Letters: T time, B batch, D inputs, H hidden, N memory slots. `encode` is (1), of all steps at once; `step` is the rest.
"""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from .backend import array_module
from .cells import Traced
from .checks import choice, count, float_array, number, settings, switch
from .ops import RETRIEVALS, cosine, cosine_back, glorot_uniform, he_normal, linear, linear_back, match, read
from .ops import relu, relu_back, relu_norm, relu_norm_back, sum_rows, unit, unit_back, write

# State: h (B, H), and the Hebbian trace A, (N, H) shared by the batch or (B, N, H) one per sample.
EngramState = namedtuple("EngramState", "h A")
# What needs no past: cue z (B, H), its direction and 1 / length; the ReLU r and layer norm r_hat, r_inv of (1);
# noise (N, H) or None; share (B, 1) or one number, each sample's part in the mean of (8); mean, over workers, or None.
EngramCue = namedtuple("EngramCue", "z z_unit z_inv r r_hat r_inv noise share mean")
# Kept of a step: A; M~, 1 / its rows' lengths; s, a (B, N); zmh = [z ; m ; h_{t-1}], c (B, 3H); r, r_hat, r_inv of (7).
EngramKept = namedtuple("EngramKept", "A M_eff M_inv s a zmh c r r_hat r_inv")
# Gradients for `collect`: at h and z; before the ReLUs of (6), c, and of (7), r; at the bank M (N, H).
EngramGradient = namedtuple("EngramGradient", "h z c r M")


@dataclass(frozen=True)
class Engram(Traced):
    """Hyper-parameters of the Engram cell. Defaults are the paper's.

    hidden H and slots N; hebbian_rate eta, 0 freezes the trace; trace_scale alpha, 0 hides it; temperature tau and
    sparsity sigma, which only divides it; trace_noise, sd of eps_t; trace_clip c, or None; layer_norm on or off.
    trace: "batch", one for the batch, as published, so that a sample's output depends on the others, or "sample", one
    for each. Most uses but the paper's numbers want "sample": then a prediction depends on its sample alone.
    trace_gradient: False cuts the gradient where A_t is written, so that the bank learns but writing is not taught.
    retrieval: "softmax", "top_k" (softmax over the top_k best slots) or "sparsemax".
    l1, entropy: strengths of penalties on the retrieval weights, see `penalty`.
    initial_scale: sd of h_0 and A_0 where they are drawn at random, as the published code does at inference too.
    """

    hidden: int = 128
    slots: int = 64
    hebbian_rate: float = 0.05
    trace_scale: float = 0.5
    temperature: float = 1.5
    sparsity: float = 0.1
    trace_noise: float = 0.001
    trace_clip: float | None = 0.1
    layer_norm: bool = True
    trace: str = "batch"
    trace_gradient: bool = True
    retrieval: str = "softmax"
    top_k: int = 8
    l1: float = 0.0
    entropy: float = 0.0
    initial_scale: float = 0.01

    def __post_init__(self):
        settings(self, count, "hidden slots top_k")
        settings(self, number, "hebbian_rate", low=0, high=1)
        settings(self, number, "trace_scale sparsity trace_noise l1 entropy initial_scale", low=0)
        settings(self, number, "temperature" + " trace_clip" * (self.trace_clip is not None), above=0)
        settings(self, switch, "layer_norm trace_gradient")
        settings(self, choice, "trace", ("batch", "sample"))
        settings(self, choice, "retrieval", RETRIEVALS)
        if self.retrieval == "top_k" and self.top_k > self.slots:
            raise ValueError(f"top_k: expected at most slots = {self.slots}, got {self.top_k}")

    @property
    def tau(self):
        """The temperature of (4), tau / (1 + 10 sigma)."""
        return self.temperature / (1 + 10 * self.sparsity)

    def init(self, rng, inputs, dtype=np.float32):
        """Keras' initial values: He normal W_z, W_c, W_h; Glorot uniform M; zero biases. rng: a NumPy Generator."""
        D, H, N = count("inputs", inputs), self.hidden, self.slots
        params = {"W_z": he_normal(rng, (D, H)), "b_z": np.zeros(H), "M": glorot_uniform(rng, (N, H))}
        params |= {"W_c": he_normal(rng, (3 * H, 3 * H)), "b_c": np.zeros(3 * H)}  # rows: z, m, h
        params |= {"W_h": he_normal(rng, (3 * H, H)), "b_h": np.zeros(H)}
        for name in "zh" if self.layer_norm else "":
            params |= {f"gamma_{name}": np.ones(H), f"beta_{name}": np.zeros(H)}
        return {name: value.astype(dtype) for name, value in params.items()}

    def initial_state(self, batch, dtype=np.float32, rng=None, xp=np):
        """h_0 and A_0: zeros, or drawn from N(0, initial_scale^2) by the NumPy Generator `rng`."""
        H, N = self.hidden, self.slots
        shapes = (batch, H), (N, H) if self.trace == "batch" else (batch, N, H)
        if rng is None:
            return EngramState(*(xp.zeros(shape, dtype) for shape in shapes))
        return EngramState(*(xp.asarray(self.initial_scale * rng.standard_normal(shape, dtype)) for shape in shapes))

    def noise(self, rng, steps, dtype=np.float32, xp=np):
        """eps of (9) for every step, (T, N, H); per-sample traces share it. None where trace_noise is 0."""
        if self.trace_noise == 0 or self.hebbian_rate == 0:
            return None
        return xp.asarray(self.trace_noise * rng.standard_normal((steps, self.slots, self.hidden), dtype))

    def encode(self, params, x, mask=None, noise=None, mean=None):
        """Equation (1): the cue needs no past. x (..., B, D); noise (..., N, H); mean: see `train.parallel`."""
        if noise is not None:
            float_array("noise", noise, (*x.shape[:-2], self.slots, self.hidden), x.dtype)
        z, *norm = relu_norm(params, "z", linear(x, params["W_z"], params["b_z"]))  # (..., B, H) (1) cue
        return EngramCue(z, *unit(z), *norm, noise, self._share(mask, x), mean)

    def step(self, params, e, state):
        M_eff = self.trace_scale * state.A  # (N, H), or (B, N, H) per sample: in place from here, as it may be large
        M_eff += params["M"]  # (2) bank + trace
        s, M_inv = cosine(e.z_unit, M_eff)  # (B, N) (3) how well every slot matches the cue
        a = RETRIEVALS[self.retrieval][0](s / self.tau, self.top_k)  # (B, N) (4) retrieval weights
        m = read(a, M_eff)  # (B, H) (5) retrieved engram
        zmh = array_module(m).concatenate((e.z, m, state.h), axis=1)
        c = relu(linear(zmh, params["W_c"], params["b_c"]))  # (B, 3H) (6) integration
        h, *norm = relu_norm(params, "h", linear(c, params["W_h"], params["b_h"]))  # (B, H) (7) hidden state
        A = self._written(a, e, state.A)  # (8), (9)
        return EngramState(h, A), EngramKept(A, M_eff, M_inv, s, a, zmh, c, *norm)

    def _written(self, a, e, A):
        """(8) and (9). The trace was read first: step t recalls what the steps before t wrote."""
        eta = self.hebbian_rate
        A, D = (1 - eta) * A, write(a * (eta * e.share), e.z, self.trace == "batch")
        A += e.mean(D) if e.mean else D
        if e.noise is not None:
            A += eta * e.noise
        if self.trace_clip is not None and eta:  # a trace at rest is not clipped
            array_module(A).clip(A, -self.trace_clip, self.trace_clip, out=A)
        return A

    def step_back(self, params, d, e, state, k, da=0):
        """Undo (9) to (2). d: gradient at (h_t, A_t); da (B, N): a loss' own gradient at the retrieval weights."""
        xp, H, shared, share = array_module(d.h), self.hidden, self.trace == "batch", self.hebbian_rate * e.share

        dr = relu_norm_back(params, "h", d.h, k.r, k.r_hat, k.r_inv)  # (7)
        dc = relu_back(dr @ params["W_h"].T, k.c)  # (7) to c_t, through the ReLU of (6)
        dzmh = dc @ params["W_c"].T  # (6)
        dz, dm, dh = dzmh[:, :H], dzmh[:, H : 2 * H], dzmh[:, 2 * H :]
        dA = d.A if self.trace_gradient else xp.zeros_like(d.A)  # (9), which may be cut on purpose
        if self.trace_clip is not None and self.hebbian_rate:  # on the clip a small change has no effect
            dA = dA * (abs(k.A) < self.trace_clip)
        dz += read(k.a, dA) * share  # (8) to z_t
        da = match(dm, k.M_eff) + da + match(e.z, dA) * share  # (5), the loss' own, (8)
        ds = RETRIEVALS[self.retrieval][1](da, k.a) / self.tau  # (4)
        dp, along = cosine_back(ds, k.s, k.M_inv)  # (3)
        dz = dz + unit_back(read(dp, k.M_eff), e.z_unit, e.z_inv)  # (3) to z_t
        dM_eff = write(xp.stack((dp, k.a)), xp.stack((e.z_unit, dm)), shared)  # (3) and (5) to M~_t
        dM_eff -= along * k.M_eff  # (3) only across a row: its length does not matter
        dM = dM_eff.copy() if shared else dM_eff.sum(0)  # (2) to the bank
        dA = (1 - self.hebbian_rate) * dA  # (9) to A_{t-1}
        dM_eff *= self.trace_scale
        dA += e.mean(dM_eff) if e.mean else dM_eff  # (2) to A_{t-1}
        return EngramState(dh, dA), EngramGradient(d.h, dz, dc, dr, dM)

    def collect(self, params, x, e, before, k, de):
        """Undo (1), which needs no past; weight gradients, each one product over time and batch."""
        ds = relu_norm_back(params, "z", de.z, e.r, e.r_hat, e.r_inv)  # before the ReLU of (1)
        grads = {"M": de.M.reshape(-1, *params["M"].shape).sum(0)}
        for name, dy, into in (("z", ds, x), ("c", de.c, k.zmh), ("h", de.r, k.c)):
            grads[f"W_{name}"], grads[f"b_{name}"] = linear_back(dy, into)
        if self.layer_norm:
            grads |= {"gamma_z": sum_rows(de.z * e.r_hat), "beta_z": sum_rows(de.z)}
            grads |= {"gamma_h": sum_rows(de.h * k.r_hat), "beta_h": sum_rows(de.h)}
        return lambda: ds @ params["W_z"].T, grads

    def record(self, params, tape):
        """What a run did, as copies: codes z, engram m and its parts bank_part a M, trace_part alpha a A (T, B, H);
        similarities s, retrieval a (T, B, N); trace A (T + 1, ...), hidden h (T + 1, B, H): entry t enters step t."""
        xp, H, A, (e, states, k) = array_module(tape.x), self.hidden, self.traces(tape), tape[2:5]
        recalled = [read(a_t, A_t) for a_t, A_t in zip(k.a, A[:-1], strict=True)]  # the last trace is read by nobody
        seen = {"codes": e.z, "similarities": k.s, "retrieval": k.a, "engram": k.zmh[..., H : 2 * H]}
        seen |= {"bank_part": k.a @ params["M"], "trace_part": self.trace_scale * xp.stack(recalled)}
        return {name: part.copy() for name, part in {**seen, "trace": A, "hidden": states.h}.items()}

    def penalty(self, a, mask=None):
        """Sparsity penalties of the retrieval weights a (T, B, N): mean over live steps and samples of

            l1 * sum_n |a_n|  +  entropy * -sum_n a_n log a_n

        The first is constant for weights that sum to 1: the softmax takes its gradient away, so it cannot sparsify.
        Returns the value and its gradient da (T, B, N); (0.0, None) where both strengths are 0.
        """
        if self.l1 == 0 and self.entropy == 0:
            return 0.0, None
        xp = array_module(a)
        live = xp.ones(a.shape[:2], bool) if mask is None else mask
        weight = (live / xp.maximum(live.sum(), 1)).astype(a.dtype)[..., None]
        log_a = xp.log(xp.maximum(a, xp.finfo(a.dtype).tiny))  # 0 log 0 = 0
        value = (weight * (self.l1 * abs(a) - self.entropy * a * log_a)).sum()
        return value, weight * (self.l1 * xp.sign(a) - self.entropy * (log_a + 1))

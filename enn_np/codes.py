"""A per-sample trace without the trace: what it recalls, from inner products of past codes (causal linear attention).

Where the clip does nothing, (9) of `engram` is linear in what is written, and the memory path (1)-(5), (8), (9) never
sees h. For one sample and one slot, with the row of the trace split into what this sample wrote, R, and what all share,
in S:

    M~_t = S_t + alpha R_t        S_t = M + alpha sum_{s<t} F_ts eps_s        R_t = P_t A_0 + sum_{s<t} F_ts a_s z_s
    P_t = (1 - eta)^t             F_ts = eta (1 - eta)^(t-s-1)                how much of A_0, of step s is left at t

    (3)  s_t = (<z_t, S_t> + alpha y_t) / (|z_t| |M~_t|),   |M~_t|^2 = |S_t|^2 + 2 alpha x_t + alpha^2 r_t
         y_t = <z_t, R_t> = P_t <z_t, A_0> + sum_s F_ts <z_t, z_s> a_s
         x_t = <S_t, R_t> = P_t <S_t, A_0> + sum_s F_ts <S_t, z_s> a_s
         r_t = <R_t, R_t>,   r_{t+1} = (1 - eta)^2 r_t + 2 eta (1 - eta) a_t y_t + eta^2 a_t^2 |z_t|^2
    (5)  m_t = a_t S_t + alpha ( P_t a_t A_0 + sum_s F_ts <a_t, a_s> z_s ),   now a_t over all slots

Only a_t waits for a_s: one loop over (B, N) arrays, all else is products over time. Their cost grows with T^2, so time
is cut into pieces; the trace (B, N, H) is made at the cuts alone, to be A_0 of the next piece. A padded step neither
fades nor writes: P and F then count live steps, each sample its own, and S would be no longer shared if there were
noise. `ahead` therefore leaves noise with padding to the step. And the clip, unless it can be shown to do nothing: A is
an average of what was written, so that no entry of it exceeds the same average of max_n a_n |z|, see `bound`.

Letters: T time (of a piece), B batch, N slots, H hidden. B' is B with a mask, else 1; T' is T with noise, else 1.
"""

from collections import namedtuple

import numpy as np

from .backend import array_module
from .cells import Hidden
from .ops import UNIT_EPS, cosine_back, dot_rows, flat
from .retrieval import retrieve, retrieve_back

PIECE = 16  # steps between two cuts


def ahead(cell, params, e, state, mask=None, keep=True):
    """Who takes the steps of a run, from which cue and state: `Ahead` where codes do and pay, else the cell itself."""
    linear = cell.trace == "sample" and (mask is None or e.noise is None)
    if not linear or not untouched(cell) or not pays(len(e.z), cell.hidden) or not _hopeful(cell, state.A):
        return cell, e, state
    loop = Ahead(cell, params, e, state, mask, keep)
    if loop.clipped:
        return cell, e, state
    return loop, e._replace(m=loop.recalled.m), Hidden(state.h)


LIBRARY = {}  # {class: its methods}, as the library wrote them: what a second form stands for


def untouched(cell):
    """Whether all methods of `cell` are the library's: it is no subclass, and nothing was put into class or object."""
    kind = type(cell)
    return vars(kind) == LIBRARY.get(kind) and vars(cell).keys() == kind.__dataclass_fields__.keys()


def _hopeful(cell, A):
    """Whether the bound is worth a try: not from a trace two thirds of the way to the clip, where work done ahead is
    often done for nothing, nor on a card, which would have to be asked, and waited for. (A million random numbers of
    the published scale, a tenth of the published clip, reach half way.)"""
    return cell.trace_clip is None or (array_module(A) is np and abs(A).max() <= cell.trace_clip * 2 / 3)


def pays(steps, hidden):
    """Whether codes are faster than the step, as measured with B = 1 to 128 and N = 16 to 128: from 33 hidden units on,
    for a step reads the H entries of a slot where codes read the steps of a piece."""
    return steps > 1 and hidden > 32


def traces(cell, tape):
    """A of every step, (T + 1, N, H) or (T + 1, B, N, H): entry t enters step t. Made here if the run spared it."""
    return tape.states.A if tape.ahead is None else tape.ahead.traces(tape.e)


class Ahead:
    """What `run` steps in place of the cell: (2) to (5), (8), (9) done ahead for all steps, (6) and (7) left to do.

    A: the traces (B, N, H) that enter the first piece, leave it, leave the next and so on; without `keep` the last.
    clipped: whether the trace may have met the clip; then the work ended there, and the object is of no use.
    """

    shared = ()

    def __init__(self, cell, params, e, state, mask=None, keep=True):
        A, self.state = state.A, type(state)
        self.cell, self.A, parts, steps = cell, [A.copy()], [], len(e.z)
        live = array_module(A).ones((steps, 1), bool) if mask is None else mask
        self.pieces = [slice(start, min(start + PIECE, steps)) for start in range(0, steps, PIECE)]
        self.live = [live[piece] for piece in self.pieces]
        for piece, live in zip(self.pieces, self.live, strict=True):
            f = fading(live, 1 - cell.hebbian_rate, cell.hebbian_rate, A.dtype)
            inputs, before = self._inputs(e, piece), A
            part, A = recall(cell, params, *inputs, A, f)
            self.clipped = cell.trace_clip is not None and bound(part.a, *inputs, before, f).max() >= cell.trace_clip
            if self.clipped:
                return
            self.A = [*self.A, A] if keep else [A]
            parts.append(part)
        self.recalled = Recalled(*(array_module(A).concatenate(part) for part in zip(*parts, strict=True)))

    def _inputs(self, e, piece):
        noise = e.noise[piece] if e.noise is not None and self.cell.hebbian_rate else None
        return e.z[piece], e.z_inv[piece], noise

    def shapes(self, batch):
        cue, kept, de = self.cell.shapes(batch)
        return cue, kept._replace(**dict.fromkeys(("A", "M_eff", "M_inv", "s", "a"))), de._replace(s=None, M=de.h)

    def step(self, params, e, state, k):
        self.cell.integrate(params, e.z, e.m, state.h, k)  # (6), (7)
        return Hidden(k.h), k

    def final(self, state):
        """The cell's own state after the last step."""
        return self.state(state.h, self.A[-1])

    def add(self, kept):
        """`kept` of the loop, and what was recalled."""
        return kept._replace(s=self.recalled.s, a=self.recalled.a, M_inv=self.recalled.M_inv)

    def enter(self, dstate):
        """The gradient at the loop's own final state."""
        return dstate and dstate[:1]

    def step_back(self, params, d, e, state, k, de):
        de.z[...], de.M[...], dh = self.cell.integrate_back(params, d.h, k, de)
        return Hidden(dh), de

    def traces(self, e):
        """The trace (B, N, H) before the first step, and after every one: (T + 1, B, N, H)."""
        xp, live, k = array_module(e.z), array_module(e.z).concatenate(self.live), self.recalled
        A = xp.stack([self.A[0]] * (len(e.z) + 1))
        for t in range(len(e.z)):
            noise = None if e.noise is None else e.noise[t]
            self.cell._write(Trace(k.a[t], A[t + 1]), e._replace(z=e.z[t], noise=noise), A[t])
            xp.copyto(A[t + 1], A[t], where=~live[t][:, None, None])
        return A

    def back(self, params, e, d, dstate, de, da=None):
        """Undo what was done ahead: the gradient at the initial state, and `de` as `collect` wants it."""
        cell, dm, dM = self.cell, de.M, 0
        da = array_module(dm).zeros_like(self.recalled.a) if da is None else da
        dA = None if dstate is None else dstate[1]
        dA = array_module(dm).zeros_like(self.A[-1]) if dA is None else dA
        for i, (piece, live) in reversed(list(enumerate(zip(self.pieces, self.live, strict=True)))):
            f = g = fading(live, 1 - cell.hebbian_rate, cell.hebbian_rate, dA.dtype)
            if not cell.trace_gradient:
                g = fading(live, 0.0, 0.0, dA.dtype)
            k = Recalled(*(part[piece] for part in self.recalled))
            inputs = *self._inputs(e, piece), self.A[i], f, g, k
            dz, dA, dM_piece = recall_back(cell, params, *inputs, dm[piece], da[piece], dA)
            de.z[piece] += dz
            dM = dM + dM_piece
        return self.state(d.h, dA), de._replace(M=dM)


Fading = namedtuple("Fading", "P F left wrote")  # (T+1, B', 1), (B', T+1, T), and at each step (T, B', 1)
Trace = namedtuple("Trace", "a A")
Recalled = namedtuple("Recalled", "s M_inv a y m")  # (T, B, N), m (T, B, H)


def fading(live, left, wrote, dtype):
    """P and F where a live step leaves `left` of the trace and writes `wrote` of D. live (T, B') bool."""
    xp, steps = array_module(live), len(live)
    age = xp.concatenate((xp.zeros_like(live[:1], int), live.cumsum(0)))  # (T+1, B') live steps before t
    between = (age[:, None] - age[None, 1:]).transpose(2, 0, 1)  # (B', T+1, T)
    past = xp.tri(steps + 1, steps, -1, dtype=bool) & live.T[:, None]
    F = xp.where(past, wrote * left ** xp.maximum(between, 0.0), 0)
    parts = (left ** age.astype(float))[..., None], F, xp.where(live, left, 1.0)[..., None], live[..., None] * wrote
    return Fading(*(part.astype(dtype) for part in parts))


def recall(cell, params, z, z_inv, noise, A, f):
    """(2) to (5), (8) and (9) for one piece: what is recalled, and the trace that leaves it. A (B, N, H) enters it."""
    xp, alpha = array_module(z), cell.trace_scale
    S, S_end = _shared(cell, params, noise, f)
    zS, P, zb = z @ _t(S), f.P[:-1], _turn(z)
    gram = f.F[:, :-1] * (zb @ _t(zb))  # (B, T, T)
    y = P * _turn(zb @ _t(A))
    x = P * (A.swapaxes(0, 1) @ S.transpose(1, 2, 0)).transpose(2, 1, 0)
    r, S_2, z_2 = dot_rows(A, A)[..., 0], dot_rows(S, S)[..., 0], dot_rows(z, z)
    s, M_inv, a = (xp.empty_like(y) for _ in range(3))
    for t in range(len(z)):
        y[t] += (gram[:, t, None, :t] @ _turn(a[:t]))[:, 0]
        x[t] += xp.einsum("sbn,sbn->bn", _row(f.F, t) * a[:t], _past(z, S, zS, t))
        M_inv[t] = 1 / xp.sqrt(xp.maximum(S_2[t % len(S)] + 2 * alpha * x[t] + alpha**2 * r, UNIT_EPS))
        s[t] = (zS[t] + alpha * y[t]) * M_inv[t] * z_inv[t]  # (3)
        a[t] = retrieve(cell.retrieval, s[t] / cell.tau, cell.top_k)  # (4)
        wrote = f.wrote[t] * a[t]
        r = f.left[t] ** 2 * r + wrote * (2 * f.left[t] * y[t] + wrote * z_2[t])
    ab = _turn(a)
    m = a @ S + alpha * (P * _turn(ab @ A) + _turn((f.F[:, :-1] * (ab @ _t(ab))) @ zb))  # (5)
    A = f.P[-1][..., None] * A + _t(f.F[:, -1, :, None] * ab) @ zb + S_end  # (9)
    return Recalled(s, M_inv, a, y, m), A


def bound(a, z, z_inv, noise, A, f):
    """For a piece that A (B, N, H) enters, no less than |A| in any slot: before its first step, after each (T+1, B, H).

    b_t = (1 - eta) b_{t-1} + eta (max_n a_n |z_t| + max |eps_t|), as (9) does it, from b_0 = max_n |A|.
    """
    wrote = a.max(-1, keepdims=True) * abs(z)
    if noise is not None:
        wrote += abs(noise).max((1, 2), keepdims=True)
    return f.P * abs(A).max(1) + _turn(f.F @ _turn(wrote))


def recall_back(cell, params, z, z_inv, noise, A, f, g, k, dm, da, dA):
    """From the gradients at m, a (the loss' own) and the trace that leaves the piece: at z, the entering A and M.

    g: `f` where writing is taught. Where it is not, what a step reads is still taught, but a live step passes nothing
    on to what was there before: (1 - eta), eta = 0, 0.
    """
    xp, alpha, steps = array_module(z), cell.trace_scale, len(z)
    S, _ = _shared(cell, params, noise, f)
    F, P, G, Q = f.F[:, :-1], f.P[:-1], g.F[:, :-1], g.P[:-1]
    a, zb, ab, dmb, zS, last = k.a, _turn(z), _turn(k.a), _turn(dm), z @ _t(S), _row(g.F, steps)
    gram = zb @ _t(zb)  # (B, T, T)
    reach = G * gram

    da = da + last * _turn(zb @ _t(dA))  # (9) to a_s
    dz = last * _turn(ab @ dA)  # (9) to z_s
    dm_z = alpha * (dmb @ _t(zb))  # (B, T, T)
    da += dm @ _t(S) + alpha * P * _turn(dmb @ _t(A)) + _turn((F * dm_z) @ ab + _t(G * dm_z) @ ab)  # (5) to a_t, a_s
    dz += alpha * _turn(_t(G * (ab @ _t(ab))) @ dmb)  # (5) to z_s

    # (4) and (3), where a_t waits: dn at <z_t, M~_t>, dl at |M~_t|^2, dy at y_t, dr at r_t, dz_2 at |z_t|^2
    dn, dl, dy = (xp.empty_like(a) for _ in range(3))
    dr, dz_2 = xp.zeros_like(a[0]), xp.empty_like(z_inv)
    for t in reversed(range(steps)):
        wrote, left, z_2 = g.wrote[t] * a[t], g.left[t], dot_rows(z[t], z[t])
        da[t] += 2 * g.wrote[t] * dr * (left * k.y[t] + wrote * z_2)
        ds = retrieve_back(cell.retrieval, da[t], a[t]) / cell.tau  # (4)
        dn[t], along = cosine_back(ds, k.s[t], k.M_inv[t])  # (3)
        dn[t] *= z_inv[t]
        dl[t] = -0.5 * along[..., 0]
        dy[t] = alpha * dn[t] + 2 * left * wrote * dr
        held = z_inv[t] >= 1 / xp.sqrt(xp.full(1, UNIT_EPS, z.dtype))
        dz_2[t] = dot_rows(wrote * wrote, dr) - xp.where(held, 0, 0.5 * z_inv[t] ** 2 * dot_rows(ds, k.s[t]))
        dr = left**2 * dr + alpha**2 * dl[t]
        dx = 2 * alpha * dl[t] * _row(g.F, t)  # (t, B, N)
        da[:t] += _row(reach, t) * dy[t] + dx * _past(z, S, zS, t)
        if noise is not None:
            dz[:t] += (dx * a[:t]) @ S[t]

    dyb, dx = _turn(dy), 2 * alpha * dl
    dgram = dyb @ _t(ab)  # (B, T, T)
    dz += _turn((F * dgram) @ zb + _t(G * dgram) @ zb) + P * _turn(dyb @ A) + 2 * dz_2 * z + dn @ S
    if noise is None:
        dz += (a * _turn(_t(G) @ _turn(dx))) @ S
    dA = g.P[-1][..., None] * dA + 2 * dr[..., None] * A  # (9), r to A_0
    dA += _t(_turn(Q * a)) @ (alpha * dmb) + _t(_turn(Q * dy)) @ zb  # (5), y to A_0
    Qdx = Q * dx if len(S) > 1 else (Q * dx).sum(0, keepdims=True)
    dA += (Qdx.transpose(2, 1, 0) @ S.swapaxes(0, 1)).swapaxes(0, 1)  # x to A_0
    dM = flat(a).T @ flat(dm) + flat(dn + a * _turn(_t(F) @ _turn(dx))).T @ flat(z)
    dM += xp.einsum("bn,bnh->nh", (P * dx).sum(0), A) + 2 * (dl.sum(1)[..., None] * S).sum(0)
    return dz, dA, dM


def _shared(cell, params, noise, f):
    """S (T', N, H), and the part of the noise in the trace that leaves the piece."""
    if noise is None:
        return params["M"][None], 0
    E = (f.F[0] @ noise.reshape(len(noise), -1)).reshape(-1, *noise.shape[1:])  # (T+1, N, H)
    return params["M"] + cell.trace_scale * E[:-1], E[-1]


def _past(z, S, zS, t):
    """<S_t, z_s> for all s < t, (t, B, N)."""
    return zS[:t] if len(S) == 1 else (flat(z[:t]) @ S[t].T).reshape(zS[:t].shape)


def _row(F, t):
    """Row t of F (B', T+1, T) up to s < t, to weight (t, B, N)."""
    return F[:, t, :t].T[..., None]


def _turn(x):
    """Samples first, (T, B, .) to (B, T, .), for products per sample; and back."""
    return x.swapaxes(0, 1)


def _t(x):
    return x.swapaxes(-1, -2)

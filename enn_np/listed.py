"""A binding trace without the trace: in a run of few steps the list of what was written where is smaller, and exact.

(7) of binding.py, unrolled over a run, is a sum of what each step wrote, faded by the steps since:

    A_t = P_t A_0 + sum_{s<=t} W_ts v_s'          P_t, W_ts (N,): of every slot its own share
    W_tt = w_t,   W_ts = keep_t W_{t-1,s},   P_t = keep_t P_{t-1},   P_0 = 1
    (3)  a_t A_{t-1} = (a_t P_{t-1}) A_0 + sum_{s<t} <a_t, W_{t-1,s}> v_s

So a step reads and fades t rows (N,), where the trace has N rows (H,), and the values wait for one product after the
loop. The list is the smaller one while t < H, so that it is faster in runs somewhat longer than H, too, as measured. At
padding nothing is written and nothing fades: w = 0, keep = 1.

Letters: T time, B batch, N memory slots, H hidden. L_t = [P_t ; W_t1 ; ... ; W_tt], (B, t + 1, N).
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .backend import array_module
from .codes import _t, _turn
from .ops import dot_rows, match, read, write


def ahead(kind, cell, e, state, mask, keep):
    """Who takes the steps of a run, from which input and state: a `kind` of `cell` and `Listed` where that pays, else
    the cell itself."""
    if cell.trace != "sample" or not pays(len(e.v), cell.hidden):
        return cell, e, state
    xp, empty = array_module(e.v), state.A[:, :0, 0]
    given = {} if xp is np and not state.A.any() else {"start": state.A.copy()}  # a card would have to be waited for
    live = None if mask is None else mask[..., None]
    loop = kind(**asdict(cell), **given, values=xp.ascontiguousarray(_turn(e.v)), live=live, keep=keep)
    loop.lists.append(xp.ones((len(state.h), 1, cell.slots), e.v.dtype))
    return loop, e, state._replace(A=empty)


def pays(steps, hidden):
    """Whether the list is faster than the trace. Measured with H = 60 and 62: in runs of 1.5 H steps it takes 0.74 and
    0.96 of the trace's time, in runs of 2 H steps more. In one step there is nothing to win."""
    return 1 < steps < 1.5 * hidden


@dataclass(frozen=True)
class Listed:
    """Beside a binding cell with a trace per sample, what `run` steps; in its state an empty array stands for A.

    start: A_0 (B, N, H), None for zeros. values (B, T, H). live (T, B, 1), or None. keep: for the way back. What a run
    notes: lists, L_0 to L_T, or just the last; reads, of every step <a_t, W_{t-1,s}> (B, t) and a_t P_{t-1} (B, N);
    undone, the gradient at the list that leaves the step which is undone next.
    """

    start: Any = field(default=None, compare=False)  # an array has no hash
    values: Any = field(default=None, compare=False)
    live: Any = field(default=None, compare=False)
    keep: bool = True
    lists: list = field(default_factory=list, compare=False)
    reads: list = field(default_factory=list, compare=False)
    undone: list = field(default_factory=list, compare=False)

    def shapes(self, batch):
        cue, kept, de = super().shapes(batch)
        return cue, kept._replace(A=(batch, 0)), de

    def _read(self, k, state):
        L, V = self.lists[-1], self.values
        o, q = match(k.a, L[:, 1:]), k.a * L[:, 0]
        if self.keep:
            self.reads.append((o, q))
        m = read(o, V[:, : o.shape[1]])
        return m if self.start is None else m + read(q, self.start)

    def _write(self, e, state, k):
        L, xp = self.lists[-1], array_module(k.w)
        B, t = len(L), L.shape[1] - 1
        if self.live is not None:
            xp.copyto(k.w, 0, where=~self.live[t])
            xp.copyto(k.keep, 1, where=~self.live[t])
        new = xp.empty((B, t + 2, self.slots), L.dtype)
        xp.multiply(L, k.keep[:, None], out=new[:, :-1])
        new[:, -1] = k.w
        if not self.keep:
            self.lists.clear()
        self.lists.append(new)

    def final(self, state):
        """The cell's own state after the last step."""
        return state._replace(A=self._trace(self.lists[-1]))

    def _trace(self, L):
        """A (B, N, H) of the list L."""
        A = _t(L[:, 1:]) @ self.values[:, : L.shape[1] - 1]
        return A if self.start is None else A + L[:, 0, :, None] * self.start

    def add(self, kept):
        """What the loop kept is all there is."""
        return kept

    def traces(self, e):
        """The trace (B, N, H) before the first step, and after every one: (T + 1, B, N, H)."""
        return array_module(self.values).stack([self._trace(L) for L in self.lists])

    def enter(self, dstate):
        """Note the gradient at A_T before the way back; return the one at the loop's own final state."""
        L, (dh, dA, da) = self.lists[-1], dstate or (None, None, None)
        dL = array_module(L).zeros_like(L)
        if dA is not None:
            dL[:, 1:] = self.values @ _t(dA)
            dL[:, 0] = 0 if self.start is None else dot_rows(dA, self.start)[..., 0]
        self.undone[:] = [dL]
        return dh, None, da

    def _trace_back(self, d, e, state, k, de):
        xp, dL = array_module(k.w), self.undone.pop()
        t = dL.shape[1] - 2
        L, dw, dL = self.lists[t], dL[:, -1], dL[:, :-1]
        de.keep[...] = xp.einsum("bsn,bsn->bn", dL, L)  # (7)
        dL *= k.keep[:, None]
        if self.live is not None:
            dw *= self.live[t]
            xp.copyto(de.keep, 0, where=~self.live[t])
        do = match(de.m, self.values[:, :t])  # (3)
        dL[:, 1:] += write(do, k.a, False)
        da = read(do, L[:, 1:])
        if self.start is not None:
            dq = match(de.m, self.start)
            dL[:, 0] += dq * k.a
            da += dq * L[:, 0]
        self.undone.append(dL)
        return dw, da, d.A

    def back(self, params, e, d, dstate, de):
        """After the way back: the gradients at the values, in de, and at the initial state."""
        xp, T, dA, L = array_module(d.h), len(e.v), dstate and dstate[1], self.lists[-1]
        dm, overlap = _turn(de.m), xp.zeros((len(L), T, T), L.dtype)
        for t, (o, _) in enumerate(self.reads):
            overlap[:, t, :t] = o
        dV = _t(overlap) @ dm
        dstart = xp.stack([q for _, q in self.reads], axis=-1) @ dm
        if dA is not None:
            dV += L[:, 1:] @ dA
            dstart += L[:, 0, :, None] * dA
        de.v[...] = _turn(dV)
        return d._replace(A=dstart), de

"""A binding trace without the trace: what a few steps wrote is a short list, and exact.

(7) of binding.py, unrolled from A_0 over j steps, is a sum of what each step wrote, faded by the steps since:

    A_j = P_j A_0 + sum_{s<=j} W_js v_s'          P_j, W_js (N,): of every slot its own share
    W_jj = w_j,   W_js = keep_j W_{j-1,s},   P_j = keep_j P_{j-1},   P_0 = 1
    (3)  a_j A_{j-1} = sum_{s<j} <a_j, W_{j-1,s}> v_s + (a_j P_{j-1}) A_0

So a step reads N rows of A_0, none where it is zero, and up to j of the list, and writes one, where the trace would be
read, faded and written whole. Time is cut into pieces of PIECE steps; the trace (B, N, H) is made at the cuts alone, to
be A_0 of the next piece. At padding nothing is written and nothing fades: w = 0, keep = 1.

Letters: B batch, N memory slots, H hidden. L_j = [W_jj ; ... ; W_j1 ; P_j], (B, j + 1, N), the newest step first.
"""

from dataclasses import asdict, dataclass, field

import numpy as np

from .backend import array_module
from .codes import _t
from .ops import dot_rows, match, read, write

PIECE = 32  # steps between two cuts


def ahead(kind, cell, e, state, mask, keep):
    """Who takes the steps of a run, from which input and state: a `kind` of `cell` and `Listed` where that pays, else
    the cell itself."""
    if cell.trace != "sample" or not pays(len(e.v), cell.hidden):
        return cell, e, state
    zero = array_module(e.v) is np and not state.A.any()  # a card would have to be waited for
    loop = kind(**asdict(cell), keep=keep, pieces=[Piece(state.A.copy(), rows=not zero)])
    live = None if mask is None else mask[..., None]
    return loop, e._replace(share=live), state._replace(A=state.A[:, :0, 0])


def pays(steps, hidden):
    """Whether the list is faster than the trace: where a slot has as many entries as a piece has steps, as measured."""
    return steps > 1 and hidden >= PIECE


@dataclass(frozen=True)
class Listed:
    """Beside a binding cell with a trace per sample, what `run` steps; in its state an empty array stands for A, and in
    its input `share` says who is alive, (B, 1), or None for all. keep: for the way back. pieces: done so far, without
    `keep` the last; left: on the way back, those that are not undone yet."""

    keep: bool = True
    pieces: list = field(default_factory=list, compare=False)
    left: list = field(default_factory=list, compare=False)

    def shapes(self, batch):
        cue, kept, de = super().shapes(batch)
        return cue, kept._replace(A=(batch, 0)), de

    def _read(self, k, state):
        piece = self.pieces[-1]
        if piece.steps == PIECE:
            if not self.keep:
                self.pieces.clear()
            self.pieces.append(piece := Piece(piece.trace()))
        return piece.read(k.a)

    def _write(self, e, state, k):
        if e.share is not None:
            xp = array_module(k.w)
            xp.copyto(k.w, 0, where=~e.share)
            xp.copyto(k.keep, 1, where=~e.share)
        self.pieces[-1].write(k.w, k.keep, e.v, self.keep)

    def final(self, state):
        """The cell's own state after the last step."""
        return state._replace(A=self.pieces[-1].trace())

    def add(self, kept):
        """What the loop kept is all there is."""
        return kept

    def traces(self, e):
        """The trace (B, N, H) before the first step, and after every one: (T + 1, B, N, H)."""
        lists = [(self.pieces[0], 0)] + [(piece, j) for piece in self.pieces for j in range(1, piece.steps + 1)]
        return array_module(e.v).stack([piece.trace(j) for piece, j in lists])

    def enter(self, dstate):
        """Note the gradient at A_T before the way back; return the one at the loop's own final state."""
        dh, dA, da = dstate or (None, None, None)
        self.left[:] = self.pieces
        self.left[-1].enter(dA)
        return dh, None, da

    def _trace_back(self, d, e, state, k, de):
        piece = self.left[-1]
        dw, da = piece.step_back(e, k, de)
        if piece.undone == piece.steps and len(self.left) > 1:
            self.left.pop()
            self.left[-1].enter(piece.back())
        return dw, da, d.A

    def back(self, params, e, d, dstate, de):
        """After the way back: the gradient at the initial state."""
        return d._replace(A=self.left[-1].back()), de


class Piece:
    """Up to PIECE steps that the trace A_0 (B, N, H) enters.

    rows (B, PIECE + N, H): the values, the newest first and the last row of all the first, then A_0; without it where
    it is known to be zero, (B, PIECE, H). lists: L_0, L_1 and so on. weights: with which every step read the rows.
    """

    def __init__(self, A, rows=True):
        xp, (B, N, H) = array_module(A), A.shape
        self.rows = xp.empty((B, PIECE + N * rows, H), A.dtype)
        self.rows[:, PIECE:] = A[:, : N * rows]
        self.lists, self.weights = [xp.ones((B, 1, N), A.dtype)], []

    @property
    def steps(self):
        """How many steps are done."""
        return self.lists[-1].shape[1] - 1

    def read(self, a):
        """(3): a_j A_{j-1}."""
        j, L = self.steps, self.lists[-1]
        rows = self.rows[:, PIECE - j :]
        q = array_module(a).concatenate((match(a, L[:, :j]), a * L[:, j]), axis=1)
        self.weights.append(q)
        return read(q[:, : rows.shape[1]], rows)

    def write(self, w, keep, v, all_kept):
        """(7): w_j v_j' beside what is kept of L_{j-1}."""
        j, L = self.steps, self.lists[-1]
        new = array_module(w).empty((len(w), j + 2, w.shape[1]), w.dtype)
        array_module(w).multiply(L, keep[:, None], out=new[:, 1:])
        new[:, 0], self.rows[:, PIECE - 1 - j] = w, v
        if not all_kept:
            self.lists.clear()
            self.weights.clear()
        self.lists.append(new)

    def trace(self, j=-1):
        """A_j, of all steps if j is left out."""
        L = self.lists[j]
        j, A = L.shape[1] - 1, self.rows[:, PIECE:]
        written = _t(L[:, :j]) @ self.rows[:, PIECE - j : PIECE]
        return written + L[:, j, :, None] * A if A.shape[1] else written

    def enter(self, dA):
        """Begin the way back with the gradient at the trace that leaves, or None."""
        L, n = self.lists[-1], self.steps
        self.dA, self.dL, self.later = dA, array_module(L).zeros_like(L), []
        if dA is not None:
            A = self.rows[:, PIECE:]
            self.dL[:, :n] = self.rows[:, PIECE - n : PIECE] @ _t(dA)
            self.dL[:, n] = dot_rows(dA, A)[..., 0] if A.shape[1] else 0

    @property
    def undone(self):
        """How many steps are undone."""
        return len(self.later)

    def step_back(self, e, k, de):
        """Undo (7) and (3) of the last step that is not undone: the gradients at w_j and a_j."""
        xp, j = array_module(k.w), self.steps - 1 - self.undone
        L, dw, dL = self.lists[j], self.dL[:, 0], self.dL[:, 1:]
        de.keep[...] = xp.einsum("bsn,bsn->bn", dL, L)  # (7)
        dL *= k.keep[:, None]
        if e.share is not None:
            dw *= e.share
            xp.copyto(de.keep, 0, where=~e.share)
        dq = match(de.m, self.rows[:, PIECE - j :])  # (3)
        dL[:, :j] += write(dq[:, :j], k.a, False)
        da = read(dq[:, :j], L[:, :j])
        if dq.shape[1] > j:
            dL[:, j] += dq[:, j:] * k.a
            da += dq[:, j:] * L[:, j]
        self.dL = dL
        self.later.append(de)
        return dw, da

    def back(self):
        """After the way back: the gradient at A_0; those at the values are left where the steps wait for them."""
        n, q = self.steps, self.weights[0]
        xp, L, de = array_module(q), self.lists[-1], self.later[::-1]
        Q = xp.zeros((len(q), n, PIECE + q.shape[1]), q.dtype)
        for j, q in enumerate(self.weights):
            Q[:, j, PIECE - j :] = q
        drows = _t(Q) @ xp.stack([one.m for one in de], axis=1)  # (3)
        if self.dA is not None:
            drows[:, PIECE - n : PIECE] += L[:, :n] @ self.dA
            drows[:, PIECE:] += L[:, n, :, None] * self.dA
        for j, one in enumerate(de):
            one.v[...] = drows[:, PIECE - 1 - j]
        return drows[:, PIECE:]

"""Where a Hebbian trace A is kept: as the array that it is, or as the list of what was written. Both know four words.

    match(u)      <u, rows of M~>      how well every slot matches, where M~ = M + alpha A
    norms()       |rows of M~|^2
    read(a)       a M~                 what the weights a recall
    write(w, v)   A <- keep A + w v'   keep: one number, or every slot its own

The way back undoes steps in reverse order, `write_back` and then `recall_back`. Of a M~ u' = sum_n a_n <u, M~_n>, match
is the derivative by a and read the derivative by u, so these two words serve the way back as well.

`Dense`, in ops.py, does what the words say. `Listed` never makes A, (B, N, H). What j steps wrote is short; unrolled
from A_0,

    A_j = P_j A_0 + sum_{s<=j} W_js v_s'       W_jj = w_j,  W_js = keep_j W_{j-1,s},  P_j = keep_j P_{j-1},  P_0 = 1

so a step reads j rows where the trace has N, and writes one. The norms follow from two sums that each write brings up
to date, |M~|^2 = |M|^2 + 2 alpha x + alpha^2 r:

    x = <M, A>:   x <- keep x + w <M, v>       r = |A|^2:   r <- keep^2 r + 2 keep w <A, v> + w^2 |v|^2

This is exact where A is the sum of what was written, and so not with a clip or noise. Time is cut into pieces of PIECE
steps; A is made at the cuts alone, to be A_0 of the next piece.

Letters: T time, B batch, N slots, H hidden. L_j = [W_jj ; ... ; W_j1 ; P_j], (B, j + 1, N), the newest step first.
"""

import numpy as np

from .backend import array_module
from .ops import STORES, dot_rows, match, read, write

PIECE = 32  # steps between two cuts


class Listed:
    """The traces of a whole run as a list of what was written: one object, whose words are called step by step.

    A (B, N, H) enters the first step. M (N, H), alpha: of M~; without M it is A, and nobody asks for norms. live
    (T, B, 1) bool: at padding nothing is written and nothing fades. keep_all: False where there is no way back.
    """

    dA = None  # the gradient at the trace goes from step to step in here

    def __init__(self, A, M=None, alpha=1.0, live=None, keep_all=True):
        xp = array_module(A)
        self.M, self.alpha, self.live, self.keep_all, self.t = M, alpha, live, keep_all, 0
        # Without A_0 a step has less to read, but a card would have to be asked, and waited for.
        self.pieces, self.notes = [Piece(A, not (xp is np and not A.any()))], []
        self.piece = self.pieces[0]
        if M is not None:
            self.A_0, self.M_2 = A.copy(), dot_rows(M, M)[:, 0]
            self.x, self.r = xp.einsum("bnh,nh->bn", A, M), dot_rows(A, A)[..., 0]

    def match(self, u):
        self.g = match(u, self.piece.seen)
        self.y = self.piece.gather(self.g)
        if self.M is None:
            return self.y
        self.uM = u @ self.M.T
        return self.uM + self.alpha * self.y

    def norms(self):
        return self.M_2 + 2 * self.alpha * self.x + self.alpha**2 * self.r

    def read(self, a):
        self.q = self.piece.spread(a)
        m = self.piece.read(self.q)
        return m if self.M is None else a @ self.M + self.alpha * m

    def write(self, w, v, keep, times=1.0):
        """times (B, 1): where norms are kept, v is so many times the vector that was matched."""
        w, keep = self._alive(w, keep)
        note = (self.q,)
        if self.M is not None:
            y, vM = self.y * times, self.uM * times
            self.x = keep * self.x + w * vM
            self.r = keep**2 * self.r + w * (2 * keep * y + w * dot_rows(v, v))
            note = self.q, self.g, y, vM, times
        if self.keep_all:
            self.notes.append(note)
        self.piece.write(w, keep, v, self.keep_all)
        self.t += 1
        if self.piece.steps == self.piece.size:
            self.piece = Piece(self.trace())
            self.pieces = [*self.pieces, self.piece] if self.keep_all else [self.piece]

    def trace(self):
        """A as it is now, (B, N, H)."""
        return self.piece.trace(self.piece.L)

    def traces(self):
        """A before the first step and after every one, (T + 1, B, N, H)."""
        A = [piece.trace(L) for i, piece in enumerate(self.pieces) for L in piece.lists[i > 0 :]]
        return array_module(A[0]).stack(A)

    def _alive(self, w, keep):
        """w and `keep`, where padding writes nothing and keeps all."""
        if self.live is None:
            return w, keep
        live = self.live[self.t]
        return w * live, array_module(w).where(live, keep, 1).astype(w.dtype)

    # ---------------------------------------------------------------------------------------------- the way back

    def turn(self, dA):
        """Before it: the gradient at the trace that the last step left, or None."""
        self.left, self.t, self.dV = list(self.pieces), len(self.notes), []
        L = self.pieces[0].lists[0]
        self.dx = self.dr = self.dy = array_module(L).zeros_like(L[:, 0])
        self._enter(dA)

    def _enter(self, dA):
        self.piece = self.left.pop()
        self.piece.enter(dA)

    def _leave(self):
        dA, dV = self.piece.back()
        self.dV.insert(0, dV)
        return dA

    def write_back(self, a, v, keep, share=1.0):
        """As of `Dense`; what later steps, which read v, send to it comes from `back`."""
        if self.piece.steps == 0 and self.left:
            self._enter(self._leave())
        self.t -= 1
        w, keep = self._alive(a * share, keep)
        dw, dkeep = self.piece.write_back(keep)
        dv = 0.0
        if self.M is not None:
            (_, _, y, vM, _), dx, dr = self.notes[self.t], self.dx, self.dr
            drw = 2 * dr * w
            dw = dw + dx * vM + 2 * keep * dr * y + drw * dot_rows(v, v)
            self.dvM, self.dy = dx * w, keep * drw
            self.q_y = self.piece.spread(self.dy)
            dv = self.dvM @ self.M + (drw * w).sum(-1, keepdims=True) * v + self.piece.read(self.q_y)
            self.dx, self.dr = keep * dx, keep**2 * dr
        if self.live is not None:
            dw, dkeep = dw * self.live[self.t], dkeep * self.live[self.t]
        return dw * share, dv, dkeep

    def recall_back(self, a, dm, u=None, dp=None, along=None):
        """As of `Dense`, called after `match(dm)`."""
        note = self.notes[self.t]
        self.piece.add(self.g, self.alpha * a, self.alpha * note[0], dm)
        if u is None:
            return None, None
        xp, times, dl = array_module(a), note[4], -0.5 * along[..., 0]
        self.dx, self.dr = self.dx + 2 * self.alpha * dl, self.dr + self.alpha**2 * dl
        q_p = self.piece.spread(self.alpha * dp)
        self.piece.add(note[1], self.alpha * dp + times * self.dy, q_p + times * self.q_y, u)
        dM = write(xp.stack((dp + times * self.dvM, a)), xp.stack((u, dm)), True)
        return dp @ self.M + self.piece.read(q_p), dM + 2 * dl.sum(0)[:, None] * self.M

    def back(self):
        """After it: gradients at A_0, at v of every step, (T, B, H), and what A_0 adds to that at M."""
        dA = self._leave()
        while self.left:  # a cut after the last step
            self._enter(dA)
            dA = self._leave()
        xp, dM = array_module(dA), 0
        if self.M is not None:
            dA += 2 * self.dr[..., None] * self.A_0 + self.dx[..., None] * self.M
            dM = xp.einsum("bn,bnh->nh", self.dx, self.A_0)
        return dA, xp.concatenate(self.dV), dM


class Piece:
    """Up to `size` = PIECE steps that the trace A_0 (B, N, H) enters.

    rows (B, size + N, H): the values v, the newest first and the last row of all the first, then A_0, which is left
    out where it is known to be zero. L: the list as it is now; lists: all of them, L_0, L_1 and so on.
    """

    def __init__(self, A, A_0=True):
        self.size, xp, (B, N, H) = PIECE, array_module(A), A.shape
        self.rows = xp.empty((B, self.size + N * A_0, H), A.dtype)
        self.rows[:, self.size :] = A[:, : N * A_0]
        self.L = xp.ones((B, 1, N), A.dtype)
        self.lists = [self.L]

    @property
    def steps(self):
        """How many steps there are in L."""
        return self.L.shape[1] - 1

    @property
    def seen(self):
        """All rows so far, (B, j + N, H), or (B, j, H) without A_0."""
        return self.rows[:, self.size - self.steps :]

    def gather(self, g):
        """From what is so of every row to what is so of every slot, (B, N)."""
        j, L = self.steps, self.L
        y = read(g[:, :j], L[:, :j])
        if g.shape[1] > j:
            y += g[:, j:] * L[:, j]
        return y

    def spread(self, a):
        """From weights of slots to weights of rows, (B, j + N): the other way round."""
        j, L = self.steps, self.L
        return array_module(a).concatenate((match(a, L[:, :j]), a * L[:, j]), axis=1)

    def read(self, q):
        return read(q[:, : self.seen.shape[1]], self.seen)

    def write(self, w, keep, v, keep_all):
        """w v' beside what is kept of the list."""
        xp, j = array_module(w), self.steps
        L = xp.empty((len(w), j + 2, w.shape[1]), w.dtype)
        xp.multiply(self.L, keep if isinstance(keep, float) else keep[:, None], out=L[:, 1:])
        L[:, 0], self.rows[:, self.size - 1 - j] = w, v
        self.lists, self.L = [*self.lists, L] if keep_all else [L], L

    def trace(self, L):
        """The trace of a list L."""
        j, A = L.shape[1] - 1, self.rows[:, self.size :]
        A_j = L[:, :j].swapaxes(1, 2) @ self.rows[:, self.size - j : self.size]
        return A_j + L[:, j, :, None] * A if A.shape[1] else A_j

    def enter(self, dA):
        """Begin the way back with the gradient at the trace that leaves, or None."""
        self.L = L = self.lists[-1]
        xp, n, (B, _, N), H = array_module(L), self.steps, L.shape, self.rows.shape[2]
        self.dL, self.drows, self.uses = xp.zeros_like(L), xp.zeros((B, self.size + N, H), L.dtype), []
        if dA is not None:
            A = self.rows[:, self.size :]
            self.dL[:, :n] = self.rows[:, self.size - n : self.size] @ dA.swapaxes(1, 2)
            self.dL[:, n] = dot_rows(dA, A)[..., 0] if A.shape[1] else 0
            self.drows[:, self.size - n : self.size] = L[:, :n] @ dA
            self.drows[:, self.size :] = L[:, n, :, None] * dA

    def write_back(self, keep):
        """Undo the last write: gradients at w and, where every slot has its own, at `keep`."""
        self.L, dw, self.dL = self.lists[self.steps - 1], self.dL[:, 0], self.dL[:, 1:]
        if isinstance(keep, float):
            self.dL *= keep
            return dw, 0
        dkeep = array_module(dw).einsum("bsn,bsn->bn", self.dL, self.L)
        self.dL *= keep[:, None]
        return dw, dkeep

    def add(self, g, a, q, u):
        """To the gradient at the trace a u', where g is u against rows and q is a spread."""
        j = self.steps
        self.dL[:, :j] += write(g[:, :j], a, False)
        if g.shape[1] > j:
            self.dL[:, j] += g[:, j:] * a
        self.uses.append((q, u))

    def back(self):
        """After the way back: the gradients at A_0 and at the values, (n, B, H), the first step's first."""
        xp, n, drows = array_module(self.rows), len(self.lists) - 1, self.drows
        if uses := self.uses[::-1]:
            Q = xp.zeros((len(self.rows), len(uses), drows.shape[1]), self.rows.dtype)
            for i, (q, _) in enumerate(uses):
                Q[:, i, Q.shape[2] - q.shape[1] :] = q
            drows += Q.swapaxes(1, 2) @ xp.stack([u for _, u in uses], axis=1)
        self.dL = self.drows = self.uses = None  # what only the way back needed is free
        return drows[:, self.size :], drows[:, self.size - n : self.size][:, ::-1].swapaxes(0, 1)


class ListStore:
    """What a run of Engram or Binding does before and after its loops where its trace is a list."""

    @staticmethod
    def enter(cell, params, e, state, mask, keep):
        """In front of the first step: the list in the encoded input, and nothing in the place of A in the state."""
        live, M = None if mask is None else mask[..., None], {}
        if hasattr(cell, "trace_scale"):  # of Engram; Binding matches nothing with its trace
            M = {"M": params["M"], "alpha": cell.trace_scale}
            if e.noise is not None or cell.trace_clip is not None or not cell.trace_gradient:
                wanted = "trace_noise=0, trace_clip=None and trace_gradient=True"
                raise ValueError(f'store: "list" holds what was written and nothing else; use {wanted}, or "dense"')
        return e._replace(trace=Listed(state.A, live=live, keep_all=keep, **M)), state._replace(A=None)

    @staticmethod
    def final(cell, e, state):
        """Behind the last step: the state with A in its place."""
        return state._replace(A=e.trace.trace())

    @staticmethod
    def turn(e, d):
        """In front of the way back."""
        e.trace.turn(d.A)
        return d._replace(A=None)

    @staticmethod
    def leave(e, d, de):
        """Behind it: what the list sends to A_0, and to what was written."""
        dA, dV, dM = e.trace.back()
        if e.trace.M is None:
            de.v[...] = dV
        else:
            de.z[...] += dV
            de.M[0] += dM
        return d._replace(A=dA), de


STORES["list"] = ListStore

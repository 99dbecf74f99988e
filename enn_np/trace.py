"""Where the trace A of Binding is kept: as the array that it is, or as the list of what was written.

    match(u)   <u, rows of A>      read(a)   a A      write(w, v, keep)   A <- keep A + w v',  keep for every slot

The way back undoes steps in reverse order, `write_back` and then `recall_back`. Of a A u' = sum_n a_n <u, A_n>, match
is the derivative by a and read the derivative by u, so these two words serve the way back as well.

`Dense` does what the words say. `Listed` never makes A, (B, N, H). What j steps wrote is short; from A_0,

    A_j = P_j A_0 + sum_{s<=j} W_js v_s'       W_jj = w_j,  W_js = keep_j W_{j-1,s},  P_j = keep_j P_{j-1},  P_0 = 1

so a step reads j rows where the trace has N, and writes one. This is exact. Time is cut into pieces of PIECE steps; A
is made at the cuts alone, to be A_0 of the next piece.

Letters: B batch, N slots, H hidden. L_j = [W_jj ; ... ; W_j1 ; P_j], (B, j + 1, N), the newest step first. By the delta
rule a step reads twice: u and a are then a stack of two uses, (2, B, ...), and so is what comes of them.
"""

import numpy as np

from .backend import array_module
from .ops import dot_rows, match, read, write

PIECE = 32  # steps between two cuts


class Dense:
    """The trace as an array A, (B, N, H) or, shared by the batch, (N, H), at one step.

    dA: on the way back, the gradient at the trace, first after the step, then before it.
    """

    def __init__(self, A, dA=None):
        self.A, self.dA = A, dA

    def match(self, u):
        return match(u, self.A)

    def read(self, a):
        return read(a, self.A)

    def write(self, w, v, keep):
        """The next trace."""
        A = self.A * keep[..., None]
        A += write(w, v, A.ndim == 2)
        return A

    def write_back(self, a, v, keep):
        """Undo the writing of a v': gradients at a, at v and at `keep`."""
        da, dv, dkeep = match(v, self.dA), read(a, self.dA), dot_rows(self.dA, self.A)[..., 0]
        self.dA *= keep[..., None]
        return da, dv, dkeep

    def recall_back(self, a, dm):
        """Undo read(a), whose gradient is dm."""
        self.dA += write(a, dm, self.dA.ndim == 2)


class Listed:
    """The traces of a whole run as a list of what was written: one object, whose words are called step by step.

    A (B, N, H) enters the first step. live (T, B, 1) bool: padding changes nothing. keep_all: False for no way back.
    """

    dA = None  # the gradient at the trace goes from step to step in here

    def __init__(self, A, live=None, keep_all=True):
        xp = array_module(A)
        self.live, self.keep_all, self.t = live, keep_all, 0
        # Without A_0 a step has less to read, but a card would have to be asked, and waited for.
        self.pieces, self.notes = [Piece(A, not (xp is np and not A.any()))], []
        self.piece = self.pieces[0]

    def match(self, u):
        self.g = match(u, self.piece.seen)
        return self.piece.gather(self.g)

    def read(self, a):
        self.q, seen = self.piece.spread(a), self.piece.seen
        return read(self.q[..., : seen.shape[1]], seen)

    def write(self, w, v, keep):
        """Into the list: there is no other trace to return."""
        if self.keep_all:
            self.notes.append(self.q)
        self.piece.write(*self._alive(w, keep), v, self.keep_all)
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
        self.left, self.t = list(self.pieces), len(self.notes)
        self._enter(dA)

    def _enter(self, dA):
        self.piece = self.left.pop()
        self.piece.enter(dA)

    def write_back(self, a, v, keep):
        """As of `Dense`."""
        if self.piece.steps == 0 and self.left:
            self._enter(self.piece.back())
        self.t -= 1
        dw, dv, dkeep = self.piece.write_back(self._alive(a, keep)[1])
        if self.live is not None:
            dw, dkeep = dw * self.live[self.t], dkeep * self.live[self.t]
        return dw, dv, dkeep

    def recall_back(self, a, dm):
        """As of `Dense`, called after `match(dm)`."""
        self.piece.add(self.g, a, self.notes[self.t], dm)


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
        y = read(g[..., :j], L[:, :j])
        if g.shape[-1] > j:
            y += g[..., j:] * L[:, j]
        return y

    def spread(self, a):
        """From weights of slots to weights of rows, (B, j + N): the other way round."""
        j, L = self.steps, self.L
        return array_module(a).concatenate((match(a, L[:, :j]), a * L[:, j]), axis=-1)

    def write(self, w, keep, v, keep_all):
        """w v' beside what is kept of the list."""
        xp, j = array_module(w), self.steps
        L = xp.empty((len(w), j + 2, w.shape[1]), w.dtype)
        xp.multiply(self.L, keep[:, None], out=L[:, 1:])
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
        self.dL, self.drows, self.uses = xp.zeros_like(L), xp.zeros((B, self.size + N, H), L.dtype), 0
        most = 2 * (n + 1)  # a step reads twice, by the delta rule
        self.q, self.u = xp.zeros((B, self.size + N, most), L.dtype), xp.empty((B, most, H), L.dtype)
        if dA is not None:
            A = self.rows[:, self.size :]
            self.dL[:, :n] = self.rows[:, self.size - n : self.size] @ dA.swapaxes(1, 2)
            self.dL[:, n] = dot_rows(dA, A)[..., 0] if A.shape[1] else 0
            self.drows[:, self.size - n : self.size] = L[:, :n] @ dA
            self.drows[:, self.size :] = L[:, n, :, None] * dA

    def write_back(self, keep):
        """Undo the last write: gradients at w, at v, which later steps have used by now, and at `keep`."""
        row, k = self.size - self.steps, self.uses
        dv = self.drows[:, row] + read(self.q[:, row, :k], self.u[:, :k])
        self.L, dw, self.dL = self.lists[self.steps - 1], self.dL[:, 0], self.dL[:, 1:]
        dkeep = array_module(dw).einsum("bsn,bsn->bn", self.dL, self.L)
        self.dL *= keep[:, None]
        return dw, dv, dkeep

    def add(self, g, a, q, u):
        """To the gradient at the trace a u', where g is u against rows and q is a spread; or their sum over uses."""
        j, k = self.steps, self.uses
        self.dL[:, :j] += write(g[..., :j], a, False)
        g, a, q, u = (part if part.ndim == 3 else part[None] for part in (g, a, q, u))
        if g.shape[2] > j:
            self.dL[:, j] += (g[..., j:] * a).sum(0)
        self.uses += len(u)
        self.q[:, -q.shape[2] :, k : self.uses], self.u[:, k : self.uses] = q.transpose(1, 2, 0), u.swapaxes(0, 1)

    def back(self):
        """After the way back: the gradient at A_0."""
        dA = self.drows[:, self.size :] + self.q[:, self.size :, : self.uses] @ self.u[:, : self.uses]
        self.dL = self.drows = self.q = self.u = None  # what only the way back needed is free
        return dA


class ListStore:
    """What a run of Binding does before and after its loops where its trace is a list."""

    @staticmethod
    def enter(cell, params, e, state, mask, keep):
        """In front of the first step: the list in the encoded input, and nothing in the place of A in the state."""
        live = None if mask is None else mask[..., None]
        return e._replace(trace=Listed(state.A, live, keep)), state._replace(A=None)

    @staticmethod
    def final(cell, e, state):
        """Behind the last step: the state with A in its place."""
        return state._replace(A=e.trace.trace())

    @staticmethod
    def turn(e, d):
        """In front of the way back. `d` is still the caller's: nothing in place."""
        e.trace.turn(d.A)
        return d._replace(A=None)

    @staticmethod
    def leave(e, d):
        """Behind it: what the list sends to A_0."""
        return d._replace(A=e.trace.piece.back())

"""Where a Hebbian trace A is kept: as the array that it is, or as the list of what was written. Both know four words.

    match(u)      <u, rows of M~>              how well every slot matches, where M~ = M + alpha A
    norms()       |rows of M~|^2
    read(a)       a M~                         what the weights a recall
    write(w, v)   A <- keep A + w v' + noise   keep: one number, or every slot its own

The way back undoes steps in reverse order, `write_back` and then `recall_back`. Of a M~ u' = sum_n a_n <u, M~_n>, match
is the derivative by a and read the derivative by u, so these two words serve the way back as well.

`Dense`, in ops.py, does what the words say. `Listed` never makes A, (B, N, H). What j steps wrote is short; unrolled
from A_0,

    A_j = P_j A_0 + sum_{s<=j} W_js v_s'       W_jj = w_j,  W_js = keep_j W_{j-1,s},  P_j = keep_j P_{j-1},  P_0 = 1

so a step reads j rows where the trace has N, and writes one. The norms follow from two sums that each write brings up
to date, |M~|^2 = |M|^2 + 2 alpha x + alpha^2 r:

    x = <M, A>:   x <- keep x + w <M, v>       r = |A|^2:   r <- keep^2 r + 2 keep w <A, v> + w^2 |v|^2

This is exact, but not where a clip acts, for then A is no sum of what was written. Noise, the same for the whole batch,
is kept beside the list, as one array E (N, H). Time is cut into pieces of PIECE steps; A is made at the cuts alone, to
be A_0 of the next piece.

Letters: T time, B batch, N slots, H hidden. L_j = [W_jj ; ... ; W_j1 ; P_j], (B, j + 1, N), the newest step first.
"""

import numpy as np

from .backend import array_module
from .ops import STORES, dot_rows, flat, match, read, unit_back, write

PIECE = 32  # steps between two cuts; half of it where there is noise, which makes norms of long lists dear


class Listed:
    """The traces of a whole run as a list of what was written: one object, whose words are called step by step.

    A (B, N, H) enters the first step. M (N, H), alpha: of M~; without M it is A, and nobody asks for norms. live
    (T, B, 1) bool: at padding nothing is written and nothing fades. keep_all: False where there is no way back.
    us (T, B, H): the vectors to be matched, for what can be asked of A_0 at once. size: steps of a piece.
    """

    dA = None  # the gradient at the trace goes from step to step in here

    def __init__(self, A, size, M=None, alpha=1.0, us=None, live=None, keep_all=True):
        xp, self.size = array_module(A), size
        self.M, self.alpha, self.us, self.live, self.keep_all, self.t = M, alpha, us, live, keep_all, 0
        # Without A_0 a step has less to read, but a card would have to be asked, and waited for.
        self.pieces, self.notes, self.E = [Piece(size, A, not (xp is np and not A.any()), us)], [], [None]
        self.piece = self.pieces[0]
        if M is not None:
            self.most = self.bound = abs(A).max(1)  # (B, H): no entry of the trace is larger, at any step and now
            self.A_0, self.M_2 = A.copy(), dot_rows(M, M)[:, 0]
            self.x, self.r = xp.einsum("bnh,nh->bn", A, M), dot_rows(A, A)[..., 0]

    def match(self, u, ahead=True):
        self.g = self.piece.against_rows(u, ahead)
        self.y = self.piece.gather(self.g)
        if (E := self._noise()) is not None:
            self.y += u @ E.T
        if self.M is None:
            return self.y
        self.uM = u @ self.M.T
        return self.uM + self.alpha * self.y

    def norms(self):
        return self.M_2 + 2 * self.alpha * self.x + self.alpha**2 * self.r

    def read(self, a):
        self.q = self.piece.spread(a)
        m = self.piece.read(self.q)
        if (E := self._noise()) is not None:
            m += a @ E
        return m if self.M is None else a @ self.M + self.alpha * m

    def write(self, w, v, keep, noise=None, times=1.0):
        """times (B, 1): where norms are kept, v is so many times the vector that was matched."""
        w, keep = self._alive(w, keep)
        E, note = self._noise(), (self.q,)
        if self.M is not None:
            G, y, vM = None, self.y * times, self.uM * times
            x, r = w * vM, w * (2 * keep * y + w * dot_rows(v, v))
            bound = w.max(-1, keepdims=True) * abs(v)
            if noise is not None:
                nA, G = self.piece.match_noise(noise, keep)
                nA += 0 if E is None else dot_rows(E, noise)[:, 0]
                x += dot_rows(self.M, noise)[:, 0]
                r += dot_rows(noise, noise)[:, 0] + 2 * (keep * nA + w * (v @ noise.T))
                bound += abs(noise).max()
            self.x, self.r, self.bound = keep * self.x + x, keep**2 * self.r + r, keep * self.bound + bound
            self.most = array_module(w).maximum(self.most, self.bound)
            note = self.q, self.g, y, vM, times, G, noise
        E = noise if E is None else keep * E + (0 if noise is None else noise)
        if self.keep_all:
            self.notes.append(note)
        else:
            self.E.clear()
        self.E.append(E)
        self.piece.write(w, keep, v, self.keep_all)
        self.t += 1
        if self.piece.steps == self.size:
            us = None if self.us is None else self.us[self.t :]
            self.piece = Piece(self.size, self.piece.trace(self.piece.L), True, us)
            self.pieces = [*self.pieces, self.piece] if self.keep_all else [self.piece]

    def trace(self):
        """A as it is now, (B, N, H)."""
        A, E = self.piece.trace(self.piece.L), self._noise()
        return A if E is None else A + E

    def traces(self):
        """A before the first step and after every one, (T + 1, B, N, H)."""
        A = [piece.trace(L) for i, piece in enumerate(self.pieces) for L in piece.lists[i > 0 :]]
        return array_module(A[0]).stack([one if E is None else one + E for one, E in zip(A, self.E, strict=True)])

    def _noise(self):
        """What noise has left in the trace that is looked at, (N, H) or None."""
        return self.E[self.t if self.keep_all else -1]

    def _alive(self, w, keep):
        """w and `keep`, where padding writes nothing and keeps all."""
        if self.live is None:
            return w, keep
        live = self.live[self.t]
        return w * live, array_module(w).where(live, keep, 1).astype(w.dtype)

    # ---------------------------------------------------------------------------------------------- the way back

    def turn(self, dA):
        """Before it: the gradient at the trace that the last step left, or None."""
        self.left, self.t, self.dV, self.dU = list(self.pieces), len(self.notes), [], []
        L = self.pieces[0].lists[0]
        self.dx = self.dr = self.dy = array_module(L).zeros_like(L[:, 0])
        self._enter(dA)

    def _enter(self, dA):
        self.piece = self.left.pop()
        self.piece.enter(dA)

    def _leave(self):
        dA, dV, dU = self.piece.back()
        self.piece.close()
        self.dV.insert(0, dV)
        self.dU.insert(0, dU)
        return dA

    def write_back(self, a, v, keep, share=1.0, taught=True):
        """As of `Dense`; what later steps, which read v, send to it comes from `back`."""
        if self.piece.steps == 0 and self.left:
            self._enter(self._leave())
        xp, dM, w = array_module(a), 0, a * share
        if not taught:  # what was written stands there like a constant
            stays = xp.zeros_like(w[:, :1]) if self.live is None else (~self.live[self.t - 1]).astype(w.dtype)
            if self.M is not None:
                dM = xp.einsum("bn,bnh->nh", (1 - stays) * self.dx, self.trace())
            self.piece.forget(stays)
            self.dx, self.dr = stays * self.dx, stays * self.dr
        self.t -= 1
        w, keep = self._alive(w, keep)
        dw, dkeep = self.piece.write_back(keep)
        dv = 0.0
        if self.M is not None:
            (_, _, y, vM, _, G, noise), dx, dr = self.notes[self.t], self.dx, self.dr
            drw = 2 * dr * w
            dw = dw + dx * vM + 2 * keep * dr * y + drw * dot_rows(v, v)
            self.dvM, self.dM, self.dy, E = dx * w, dM, keep * drw, self._noise()
            dv = self.dvM @ self.M + (drw * w).sum(-1, keepdims=True) * v
            if E is not None:
                dv += self.dy @ E
            if noise is not None:
                dw += 2 * dr * (v @ noise.T)
                dv += drw @ noise
                self.dM += dx.sum(0)[:, None] * noise
                self.piece.match_noise_back(2 * keep * dr, G, noise, keep)
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
        q_p, q_y, E = self.piece.spread(self.alpha * dp), self.piece.spread(self.dy), self._noise()
        self.piece.add(note[1], self.alpha * dp + times * self.dy, q_p + times * q_y, u)
        self.piece.reads.append((q_p, q_y))  # to u and v: all steps' at once, in `back`
        du = dp @ (self.M if E is None else self.M + self.alpha * E)
        dM = write(xp.stack((dp + times * self.dvM, a)), xp.stack((u, dm)), True)
        return du, dM + 2 * dl.sum(0)[:, None] * self.M + self.dM

    def back(self):
        """After it: gradients at A_0, at v and u of every step, (T, B, H), and what A_0 adds to that at M."""
        dA = self._leave()
        while self.left:  # a cut after the last step
            self._enter(dA)
            dA = self._leave()
        xp, dM = array_module(dA), 0
        if self.M is not None:
            dA += 2 * self.dr[..., None] * self.A_0 + self.dx[..., None] * self.M
            dM = xp.einsum("bn,bnh->nh", self.dx, self.A_0)
        return dA, xp.concatenate(self.dV), xp.concatenate(self.dU), dM


class Piece:
    """Up to `size` steps that the trace A_0 (B, N, H) enters.

    rows (B, size + N, H): the values v, the newest first and the last row of all the first, then A_0, which is left
    out where it is known to be zero. L: the list as it is now; lists: all of them, L_0, L_1 and so on.
    """

    def __init__(self, size, A, A_0=True, us=None):
        self.size, xp, (B, N, H) = size, array_module(A), A.shape
        self.uA = us[: self.size].swapaxes(0, 1) @ A.swapaxes(1, 2) if A_0 and us is not None else None  # (B, n, N)
        self.rows = xp.empty((B, self.size + N * A_0, H), A.dtype)
        self.rows[:, self.size :] = A[:, : N * A_0]
        self.V, self.W = xp.empty((self.size, B, H), A.dtype), xp.empty((self.size, B, N), A.dtype)
        self.L = xp.ones((B, 1, N), A.dtype)
        self.lists = [self.L]

    @property
    def steps(self):
        """How many steps there are in L."""
        return self.L.shape[1] - 1

    def against_rows(self, u, ahead=False):
        """<u, row> of all rows so far, (B, j + N). ahead: for this u it is known of A_0."""
        if not ahead or self.uA is None:
            return match(u, self.rows[:, self.size - self.steps :])
        new = match(u, self.rows[:, self.size - self.steps : self.size])
        return array_module(u).concatenate((new, self.uA[:, self.steps]), axis=1)

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
        rows = self.rows[:, self.size - self.steps :]
        return read(q[:, : rows.shape[1]], rows)

    def match_noise(self, noise, keep):
        """<A_n, noise_n> of every slot (B, N), and <v_s, noise_n> (j, B, N). Where there is noise `keep` is one number,
        so that W_js = keep^(j-s) w_s."""
        xp, j, A = array_module(noise), self.steps, self.rows[:, self.size :]
        G = (flat(self.V[:j]) @ noise.T).reshape(j, len(self.rows), len(noise))
        y = xp.einsum("sbn,sbn->bn", G, self._faded(keep))
        if A.shape[1]:
            y += keep**j * xp.einsum("bnh,nh->bn", A, noise)
        return y, G

    def _faded(self, keep):
        """w of every step so far, faded by the steps since, (j, B, N)."""
        xp, j = array_module(self.W), self.steps
        return self.W[:j] * (keep ** xp.arange(j - 1, -1, -1)).astype(self.W.dtype)[:, None, None]

    def write(self, w, keep, v, keep_all):
        """w v' beside what is kept of the list."""
        xp, j = array_module(w), self.steps
        L = xp.empty((len(w), j + 2, w.shape[1]), w.dtype)
        xp.multiply(self.L, keep if isinstance(keep, float) else keep[:, None], out=L[:, 1:])
        L[:, 0], self.rows[:, self.size - 1 - j], self.V[j], self.W[j] = w, v, v, w
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
        self.dL, self.uses, self.reads, self.noises = xp.zeros_like(L), [], [], []
        self.drows, self.dV, self.dW = (
            xp.zeros((B, self.size + N, H), L.dtype),
            xp.zeros_like(self.V),
            xp.zeros_like(self.W),
        )
        if dA is not None:
            A = self.rows[:, self.size :]
            self.dL[:, :n] = self.rows[:, self.size - n : self.size] @ dA.swapaxes(1, 2)
            self.dL[:, n] = dot_rows(dA, A)[..., 0] if A.shape[1] else 0
            self.drows[:, self.size - n : self.size] = L[:, :n] @ dA
            self.drows[:, self.size :] = L[:, n, :, None] * dA

    def close(self):
        """The way back is done, and what it needed is free."""
        self.dL = self.drows = self.dV = self.dW = self.uses = self.reads = self.noises = None

    def forget(self, stays):
        """No gradient goes further back, but that at what a step reads itself; stays (B, 1): 1 where it does."""
        self.dL *= stays[:, None]
        self.drows *= stays[:, None]
        self.dV *= stays
        self.dW *= stays
        self.uses, self.noises = ([(stays * q, u) for q, u in pairs] for pairs in (self.uses, self.noises))

    def write_back(self, keep):
        """Undo the last write: gradients at w and, where every slot has its own, at `keep`."""
        self.L, dw, self.dL = self.lists[self.steps - 1], self.dL[:, 0] + self.dW[self.steps - 1], self.dL[:, 1:]
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

    def match_noise_back(self, d, G, noise, keep):
        """The way back of `match_noise`, from the gradient d (B, N)."""
        j, faded = self.steps, self._faded(keep)
        self.dW[:j] += G * d * (keep ** array_module(d).arange(j - 1, -1, -1)).astype(d.dtype)[:, None, None]
        faded *= d
        self.dV[:j] += (flat(faded) @ noise).reshape(j, *self.V.shape[1:])
        self.noises.append((keep**j * d, noise))  # to A_0: all steps' at once, in `back`

    def back(self):
        """After the way back: the gradients at A_0 and at the values, (n, B, H), the first step's first."""
        xp, n = array_module(self.rows), len(self.lists) - 1
        if uses := self.uses[::-1]:
            Q = xp.zeros((len(self.rows), len(uses), self.drows.shape[1]), self.rows.dtype)
            for i, (q, _) in enumerate(uses):
                Q[:, i, Q.shape[2] - q.shape[1] :] = q
            self.drows += Q.swapaxes(1, 2) @ xp.stack([u for _, u in uses], axis=1)
        if self.noises:
            d, noise = map(xp.stack, zip(*self.noises, strict=True))  # (n, B, N), (n, N, H)
            self.drows[:, self.size :] += (d.transpose(2, 1, 0) @ noise.swapaxes(0, 1)).swapaxes(0, 1)
        dV = self.dV[:n] + self.drows[:, self.size - n : self.size][:, ::-1].swapaxes(0, 1)
        if self.reads:
            Q = xp.zeros((len(self.rows), 2 * n, self.size + self.L.shape[2]), self.rows.dtype)
            for i, pair in enumerate(reversed(self.reads)):
                for q, at in zip(pair, (i, n + i), strict=True):
                    Q[:, at, self.size - i :] = q
            rows = self.rows[:, self.size - n :]
            read_back = (Q[..., self.size - n : self.rows.shape[1]] @ rows).swapaxes(0, 1)
            return self.drows[:, self.size :], dV + read_back[n:], read_back[:n]
        return self.drows[:, self.size :], dV, dV[:0]


class ListStore:
    """What a run of Engram or Binding does before and after its loops where its trace is a list."""

    @staticmethod
    def enter(cell, params, e, state, mask, keep):
        """In front of the first step: the list in the encoded input, and nothing in the place of A in the state."""
        live, M = None if mask is None else mask[..., None], {}
        if matched := hasattr(cell, "trace_scale"):  # of Engram; Binding matches nothing with its trace
            M = {"M": params["M"], "alpha": cell.trace_scale, "us": e.z_unit}
        if matched and live is not None and e.noise is not None:
            raise ValueError('store: "list" has one noise for all; with padding use trace_noise=0 or store="dense"')
        size = max(1, PIECE // 2) if getattr(e, "noise", None) is not None else PIECE
        return e._replace(trace=Listed(state.A, size, live=live, keep_all=keep, **M)), state._replace(A=None)

    @staticmethod
    def final(cell, e, state):
        """Behind the last step: the state with A in its place."""
        clip = getattr(cell, "trace_clip", None) if getattr(cell, "hebbian_rate", None) else None
        if clip is not None and (most := float(e.trace.most.max())) >= clip:
            raise ValueError(
                f'store: "list" is exact while no entry of the trace meets trace_clip = {clip:g}, and here one may '
                f'have come to {most:.3g}; use store="dense" or trace_clip=None'
            )
        return state._replace(A=e.trace.trace())

    @staticmethod
    def turn(e, d):
        """In front of the way back."""
        e.trace.turn(d.A)
        return d._replace(A=None)

    @staticmethod
    def leave(e, d, de):
        """Behind it: what the list sends to A_0, and to what was written and matched."""
        dA, dV, dU, dM = e.trace.back()
        if e.trace.M is None:
            de.v[...] = dV
        else:
            de.z[...] += dV + unit_back(dU, e.z_unit, e.z_inv)
            de.M[0] += dM
        return d._replace(A=dA), de


STORES["list"] = ListStore

"""The output layer over a large vocabulary: the loss and its gradient without ever holding all logits.

    p(v | h) = softmax( h W' + b )_v                                 for every word v, or for the frequent ones,
             = softmax( h W' + b )_c  softmax( h P_c W_c' + b_c )_v  where rare words v stand in clusters c

(And `add_rows`, the gradient at the other end of the model, of looking words up in an embedding.)

For 4,096 tokens and 33,278 words the logits alone take 545 MB. `_score` takes CHUNK tokens at a time, and goes back
through them while their exponentials are still at hand.

Letters: n tokens, H hidden, V words, C tokens of a chunk, K clusters. W is (V, H), a row for every word as in an
embedding, so that one array can serve as both (tied weights); its product runs as fast as that of an (H, V) array.
"""

from collections import namedtuple
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from . import checks
from .backend import array_module
from .models import class_labels
from .ops import flat, glorot_uniform

# Of 64 to 256 tokens the fastest, measured at V 33,278, H 128, float32; chunks of the vocabulary would be slower.
CHUNK = 256  # in float32; half as many in float64, so that a chunk of logits takes the same memory
BLOCK = 4096  # words of dW that are added up at a time: the product stays in cache, and no second dW is held


# What a softmax says of every token, (n,) each: log-probability of its target, the most probable of the first `words`
# entries, log-probability of that entry, log of the sum of exp of all logits.
Scores = namedtuple("Scores", "log_p best log_best log_sum")


def _score(W, b, h, targets, scale=None, words=None):
    """softmax(h W' + b), h (n, H), W (V, H), b (V,), seen at targets (n,); `words` as in `Scores` (None: all V).

    With scale (n,) also the gradients (dh, dW, db) of  sum_i scale_i * -log p(target_i), else None in their place.
    """
    xp, n = array_module(h), len(h)
    scores = Scores(xp.empty(n, h.dtype), xp.empty(n, np.int64), xp.empty(n, h.dtype), xp.empty(n, h.dtype))
    grads = None if scale is None else (xp.zeros_like(h), xp.zeros_like(W), xp.zeros_like(b))
    chunk = CHUNK * 4 // h.dtype.itemsize
    room = xp.empty((min(chunk, n), len(W)), h.dtype)
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        picked = xp.arange(rows.stop - start), targets[rows]
        e = xp.matmul(h[rows], W.T, out=room[: rows.stop - start])  # (C, V) logits
        e += b
        scores.best[rows] = best = e[:, :words].argmax(-1)
        shift = e.max(-1, keepdims=True)  # (C, 1) so that exp cannot overflow
        e -= shift
        log_p, log_best = e[picked], e[picked[0], best]
        xp.exp(e, out=e)
        total = e.sum(-1)  # (C,)
        log_total = xp.log(total)
        scores.log_p[rows] = log_p - log_total
        scores.log_best[rows] = log_best - log_total
        scores.log_sum[rows] = shift[:, 0] + log_total
        if grads is not None:
            _score_back(W, h[rows], e, picked, total, scale[rows] / total, (grads[0][rows], *grads[1:]))
    return scores, grads


def _score_back(W, h, e, picked, total, scale, grads):
    """Add a chunk to the gradients. e (C, V) = total * p is divided by its total in h and dh, H wide, not V wide."""
    dh, dW, db = grads
    e[picked] -= total  # total * (p - 1 at the target)
    scaled = h * scale[:, None]  # (C, H)
    for start in range(0, len(W), BLOCK):
        dW[start : start + BLOCK] += e[:, start : start + BLOCK].T @ scaled
    db += scale @ e
    array_module(h).matmul(e, W, out=dh)
    dh *= scale[:, None]


@dataclass(frozen=True)
class SoftmaxHead:
    """Softmax over the whole vocabulary; parameters W (V, H), b (V,). It holds settings only.

    cutoffs c_1 < ... < c_K make it adaptive (Grave et al. 2016, arXiv 1609.04309): rare words cost less, in time and in
    parameters. Ids must be sorted by frequency, as in `text.Vocabulary`. Words below c_1 stand in the head, beside one
    entry for each of K clusters; cluster i holds words c_i to c_{i+1} - 1 and sees h projected to H / factor^i numbers.
    Then W is (c_1 + K, H), b (c_1 + K,), and there are P1 (H, H / factor), W1 (c_2 - c_1, H / factor), b1, and so on.
    """

    cutoffs: tuple = ()
    factor: int = 4

    def __post_init__(self):
        if not isinstance(self.cutoffs, list | tuple | np.ndarray):
            raise TypeError(f"cutoffs: expected ids such as (2000, 10000), got {self.cutoffs!r}")
        cutoffs = tuple(checks.count("cutoffs", cutoff) for cutoff in self.cutoffs)
        if sorted(set(cutoffs)) != list(cutoffs):
            raise ValueError(f"cutoffs: expected rising ids such as (2000, 10000), got {cutoffs}")
        object.__setattr__(self, "cutoffs", cutoffs)
        checks.settings(self, checks.count, "factor")

    def init(self, rng, hidden: int, vocabulary: int, dtype=np.float32) -> dict:
        """Glorot uniform matrices, zero biases. rng: a NumPy Generator; hidden H; vocabulary V."""
        H, V = checks.count("hidden", hidden), checks.count("vocabulary", vocabulary, low=2)
        ends = (*self.cutoffs, V)
        if self.cutoffs and self.cutoffs[-1] >= V:
            raise ValueError(f"cutoffs: expected below the vocabulary's {V} words, got {self.cutoffs}")
        entries = ends[0] + len(self.cutoffs)
        params = {"W": glorot_uniform(rng, (entries, H)), "b": np.zeros(entries)}
        for i, (low, high) in enumerate(pairwise(ends), 1):
            width = max(1, H // self.factor**i)
            params |= {f"P{i}": glorot_uniform(rng, (H, width))}
            params |= {f"W{i}": glorot_uniform(rng, (high - low, width)), f"b{i}": np.zeros(high - low)}
        return {name: value.astype(dtype) for name, value in params.items()}

    def words(self, params: dict) -> list:
        """The rows of all words, by id, as views: (c_1, H), (c_2 - c_1, H / factor), and so on."""
        K = len(self.cutoffs)
        return [params["W"][: len(params["W"]) - K], *(params[f"W{i}"] for i in range(1, K + 1))]

    def log_probabilities(self, params: dict, h):
        """log p of every word: (..., V) for h (..., H). For a few rows: this does hold all logits."""
        K = len(self.cutoffs)
        head = _log_softmax(h @ params["W"].T + params["b"])  # (..., c_1 + K)
        first = head.shape[-1] - K
        parts = [head[..., :first]]
        for i in range(1, K + 1):
            inner = _log_softmax(h @ params[f"P{i}"] @ params[f"W{i}"].T + params[f"b{i}"])
            parts.append(head[..., first + i - 1, None] + inner)  # log p(cluster) + log p(word | cluster)
        return array_module(h).concatenate(parts, axis=-1)

    def loss(self, params: dict, h, targets, weights=None) -> tuple:
        """The loss and the number of right answers of `loss_and_grads`, without gradients: a third of the work."""
        _, rows, targets, scale = self._check(params, h, targets, weights)
        log_p, right, _ = self._score_all(params, rows, targets, None)
        return -(scale * log_p).sum(), (right & (scale > 0)).sum()

    def loss_and_grads(self, params: dict, h, targets, weights=None) -> tuple:
        """Cross-entropy of h (..., H) with targets (...), integers below V.

        weights (...): how much each token counts, such as a mask, not all 0; None counts all alike. Where it is 0 the
        target may be anything, and no logit is made, but on a card. Returns the loss, the (weighted) mean of
        -log p(target) in nats; its gradient dh (..., H); a dict of gradients keyed as `params`; and for how many tokens
        of weight above 0 the target was the most probable word. Raises TypeError or ValueError, naming the argument.
        """
        seen, rows, targets, scale = self._check(params, h, targets, weights)
        log_p, right, (back, grads) = self._score_all(params, rows, targets, scale)
        dh = array_module(h).zeros_like(flat(h))
        dh[seen] = back
        return -(scale * log_p).sum(), dh.reshape(h.shape), grads, (right & (scale > 0)).sum()

    def _check(self, params, h, targets, weights):
        """Which tokens are looked at, on a card all; their h (n, H), targets (n,) and shares (n,) in the mean."""
        shape, W, seen, scale = getattr(h, "shape", ())[:-1], params["W"], slice(None), None
        xp = array_module(checks.float_array("h", h, (*"n" * len(shape), W.shape[1]), W.dtype, finite=False))
        if not hasattr(targets, "dtype"):
            raise TypeError(f"targets: expected an array, got {type(targets).__name__}; convert it with numpy.asarray")
        if weights is not None:
            checks.unmasked("weights", weights)
            same = all(getattr(each, "shape", None) == shape for each in (weights, targets))
            weights = weights.reshape(-1).astype(h.dtype) if same else None
            if not same or (xp is np and (not 0 < weights.sum() < np.inf or weights.min() < 0)):
                raise ValueError(f"weights: expected {shape} as targets, none negative, not all 0; leave out by 0")
            seen = xp.flatnonzero(weights) if xp is np else seen  # how many there are a card would have to tell
            targets, scale = targets.reshape(-1)[seen], weights[seen] / weights.sum()
            shape = targets.shape
        if xp is np:  # asking on a GPU would stall the stream; there data were asked about on the host
            class_labels("targets", targets, shape, sum(map(len, self.words(params))))
        targets = targets.reshape(-1).astype(np.int64, copy=False)  # unsigned ids would wrap around
        scale = xp.full(len(targets), 1 / len(targets), h.dtype) if scale is None else scale
        return seen, flat(h)[seen], targets, scale

    def _score_all(self, params, h, targets, scale):
        """log p of every target (n,), whether that is the best word (n,); with `scale` dh and gradients by name."""
        xp, first = array_module(h), len(params["b"]) - len(self.cutoffs)
        cluster = sum((targets >= low for low in self.cutoffs), xp.zeros_like(targets))  # (n,) 0: a word of the head
        entry = xp.where(cluster == 0, targets, first + cluster - 1)  # (n,) what the head should say
        head, grads = _score(params["W"], params["b"], h, entry, scale, words=first)
        log_p, best = head.log_p.copy(), head.best == targets
        if grads is not None:
            grads = grads[0], {"W": grads[1], "b": grads[2]}
        for i, low in enumerate(self.cutoffs, 1):
            rows = xp.flatnonzero(cluster == i)
            P, W, b, x = params[f"P{i}"], params[f"W{i}"], params[f"b{i}"], h[rows]
            tail, back = _score(W, b, x @ P, targets[rows] - low, None if scale is None else scale[rows])
            log_p[rows] += tail.log_p  # log p(cluster) + log p(word | cluster)
            best[rows] = (tail.best == targets[rows] - low) & (log_p[rows] > head.log_best[rows])
            if back is not None:
                dz, dW, db = back
                grads[0][rows] += dz @ P.T  # h is read by the head and by the cluster: gradients add up
                grads[1].update({f"P{i}": x.T @ dz, f"W{i}": dW, f"b{i}": db})
        # No word of another cluster may beat the target. A cluster is opened only where it is more probable as a whole.
        log_clusters = h @ params["W"][first:].T + params["b"][first:] - head.log_sum[:, None]  # (n, K)
        for i in range(1, len(self.cutoffs) + 1):
            log_c = log_clusters[:, i - 1]
            rows = xp.flatnonzero(best & (cluster != i) & (log_c > log_p))
            inner = h[rows] @ params[f"P{i}"]
            tail, _ = _score(params[f"W{i}"], params[f"b{i}"], inner, xp.zeros(len(rows), np.int64))
            best[rows] = log_p[rows] >= log_c[rows] + tail.log_best
        return log_p, best, grads


def _log_softmax(x):
    """log softmax over the last axis."""
    xp = array_module(x)
    shifted = x - x.max(-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))


def add_rows(table, ids, rows):
    """table[ids] += rows, for ids (...) that repeat, table (V, E), rows (..., E); returns the table.

    One count per place of a small table, over the distinct ids alone: twice as fast as np.add.at.
    """
    xp, width = array_module(table), table.shape[1]
    if xp is not np:  # to count what is distinct would stall the stream; a card adds atomically, in any order
        xp.add.at(table, ids.reshape(-1), rows.reshape(-1, width))
        return table
    distinct, place = xp.unique(ids.reshape(-1), return_inverse=True)
    places = place.reshape(-1, 1) * width + xp.arange(width)  # (tokens, E)
    sums = xp.bincount(places.reshape(-1), weights=rows.reshape(-1), minlength=len(distinct) * width)
    table[distinct] += sums.reshape(-1, width).astype(table.dtype)
    return table

"""From similarities to retrieval weights, (4) of `engram`: softmax, or one of two that leave most slots out.

A softmax gives every slot something; entries that are exactly 0 need another function. Shapes: (..., N).
"""

from .backend import array_module
from .ops import dot_rows, relu, softmax, softmax_back

RETRIEVALS = ("softmax", "top_k", "sparsemax")


def retrieve(kind, s, k):
    """Weights of similarities s by one of RETRIEVALS; k counts for top_k."""
    if kind == "top_k":
        return top_k_softmax(s, k)
    return sparsemax(s) if kind == "sparsemax" else softmax(s)


def retrieve_back(kind, da, a):
    """The gradient at the similarities of weights a."""
    return sparsemax_back(da, a) if kind == "sparsemax" else softmax_back(da, a)


def top_k_softmax(x, k):
    """Softmax over the k largest entries of the last axis, zero elsewhere (ties are all kept)."""
    xp = array_module(x)
    kth = xp.partition(x, x.shape[-1] - k, axis=-1)[..., -k, None]
    return softmax(xp.where(x >= kth, x, -xp.inf).astype(x.dtype, copy=False))


def sparsemax(x):
    """The point of the probability simplex nearest to x (Martins & Astudillo 2016): many exact zeros.

    y = max(x - t, 0), with t such that y sums to 1: over the support {largest j entries}, t = (sum - 1) / j.
    """
    xp = array_module(x)
    x = x - x.max(-1, keepdims=True)  # so that large entries do not drown the 1 of the sum
    ordered = xp.flip(xp.sort(x, axis=-1), axis=-1)
    j = xp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    t = (xp.cumsum(ordered, axis=-1) - 1) / j
    support = xp.sum(ordered > t, axis=-1, keepdims=True)  # true for a prefix of the ordered entries
    return relu(x - xp.take_along_axis(t, support - 1, axis=-1))


def sparsemax_back(dy, y):
    """On the support dy minus its mean there; zero off the support (the Jacobian is diag(s) - s s' / |s|)."""
    on = (y > 0).astype(dy.dtype)
    return on * (dy - dot_rows(dy, on) / on.sum(-1, keepdims=True))

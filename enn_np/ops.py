"""The mathematics under every cell: each function beside its derivative `*_back`.

A forward returns its value and, where that is not enough, what its backward needs. A backward takes the gradient of the
loss with respect to the value, and returns the gradient with respect to the input.

Shapes: `...` any leading axes (time, batch), D inputs, H features, N memory slots, B batch.
"""

import numpy as np

from .backend import array_module

UNIT_EPS = 1e-12  # below this squared length a vector counts as zero, as in tf.nn.l2_normalize
NORM_EPS = 1e-6  # layer norm, as in the published Engram cell


def flat(x):
    """(..., H) seen as (rows, H): one large matrix product instead of many small ones."""
    return x.reshape(-1, x.shape[-1])


def linear(x, W, b):
    """x W + b for x (..., D), W (D, H), b (H,)."""
    return (flat(x) @ W + b).reshape(*x.shape[:-1], W.shape[-1])


def linear_back(dy, x):
    """(dW, db) of `linear`, summed over all leading axes. Its dx is dy W'."""
    return flat(x).T @ flat(dy), sum_rows(dy)


def sum_rows(x):
    """Sum of (..., H) over its leading axes. A product with ones is BLAS, and several times x.sum(0)."""
    rows = flat(x)
    return array_module(x).ones(len(rows), x.dtype) @ rows


def dot_rows(x, y):
    """Inner product of each row of x with the same row of y, (..., 1), without a temporary of their size."""
    return array_module(x).einsum("...h,...h->...", x, y)[..., None]


def relu(x):
    """max(x, 0)."""
    return array_module(x).maximum(x, 0)


def relu_back(dy, y):
    """dy where the unit was on, else 0. At the kink the unit counts as off."""
    return dy * (y > 0)


def sigmoid(x):
    """1 / (1 + exp(-x)), by tanh, which cannot overflow."""
    return 0.5 * array_module(x).tanh(0.5 * x) + 0.5


def softmax(x):
    """exp(x) / sum exp(x) over the last axis, shifted by the maximum so that exp cannot overflow."""
    y = array_module(x).exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


def softmax_back(dy, y):
    """y * (dy - <dy, y>). Entries with y = 0 get nothing, so it is right for a softmax over some entries, too."""
    return y * (dy - dot_rows(dy, y))


# Two others than softmax give most slots a retrieval weight, (4) of engram.py, of exactly 0.


def top_k_softmax(x, k):
    """Softmax over the k largest entries of the last axis, zero elsewhere (ties, equal to the bit, are all kept)."""
    xp = array_module(x)
    kth = xp.partition(x, x.shape[-1] - k, axis=-1)[..., -k, None]
    return softmax(xp.where(x >= kth, x, -xp.inf).astype(x.dtype, copy=False))


def sparsemax(x):
    """The point of the probability simplex nearest to x (Martins & Astudillo 2016): many exact zeros.

    y = max(x - t, 0), with t such that y sums to 1: of all (sum of the j largest entries - 1) / j the largest.
    """
    xp = array_module(x)
    x = x - x.max(-1, keepdims=True)  # so that large entries do not drown the 1 of the sum
    ordered = xp.flip(xp.sort(x, axis=-1), axis=-1)
    j = xp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    t = (xp.cumsum(ordered, axis=-1) - 1) / j  # grows with j while the next entry is above it, so on the support
    return relu(x - t.max(-1, keepdims=True))


def sparsemax_back(dy, y):
    """On the support dy minus its mean there; zero off the support (the Jacobian is diag(s) - s s' / |s|)."""
    on = (y > 0).astype(dy.dtype)
    return on * (dy - dot_rows(dy, on) / on.sum(-1, keepdims=True))


RETRIEVALS = {  # forward, of similarities and k, and back
    "softmax": (lambda s, k: softmax(s), softmax_back),
    "top_k": (top_k_softmax, softmax_back),
    "sparsemax": (lambda s, k: sparsemax(s), sparsemax_back),
}


def layer_norm(x, gamma, beta):
    """gamma * x_hat + beta with x_hat = (x - mean) / sqrt(variance + 1e-6) over the last axis.

    Returns y (..., H), x_hat (..., H) and inv (..., 1), what x - mean was multiplied by.
    """
    xp, width = array_module(x), x.shape[-1]
    centred = x - x @ xp.full((width, 1), 1 / width, x.dtype)
    inv = 1 / xp.sqrt(dot_rows(centred, centred) / width + NORM_EPS)
    x_hat = centred * inv
    return gamma * x_hat + beta, x_hat, inv


def layer_norm_back(dy, gamma, x_hat, inv):
    """dx. Two means are taken away, because mean and variance depend on every entry."""
    width, dx_hat = dy.shape[-1], dy * gamma
    mean = dx_hat @ array_module(dy).full((width, 1), 1 / width, dy.dtype)
    return (dx_hat - mean - x_hat * (dot_rows(dx_hat, x_hat) / width)) * inv


def relu_norm(params, name, x):
    """LN( ReLU( x ) ), and for the way back the ReLU r and r_hat, r_inv of the norm. Without layer norm, just r."""
    r = relu(x)
    if f"gamma_{name}" not in params:
        return r, r, None, None
    y, r_hat, r_inv = layer_norm(r, params[f"gamma_{name}"], params[f"beta_{name}"])
    return y, r, r_hat, r_inv


def relu_norm_back(params, name, dy, r, r_hat, r_inv):
    """dx of `relu_norm`."""
    gamma = params.get(f"gamma_{name}")
    return relu_back(dy if gamma is None else layer_norm_back(dy, gamma, r_hat, r_inv), r)


def unit(x):
    """x / |x| over the last axis, with |x|^2 held at or above 1e-12. Returns the unit vectors and 1 / |x|.

    Divided before a product, not after it: so lengths may be large, to 1e19 in float32, and zero vectors give zero.
    """
    xp = array_module(x)
    inv = 1 / xp.sqrt(xp.maximum(dot_rows(x, x), UNIT_EPS))
    return x * inv, inv


def unit_back(du, u, inv):
    """Only the part of du across x turns the unit vector. Where |x|^2 was held, 1 / |x| is a constant: 1e6."""
    held = inv >= 1 / np.sqrt(u.dtype.type(UNIT_EPS))
    return (du - u * array_module(u).where(held, 0, dot_rows(du, u))) * inv


def cosine(u, M):
    """Cosines (B, N) of unit vectors u (B, H) with rows of M, (N, H) or (B, N, H), 0 for rows of 0; and 1 / |row|."""
    xp = array_module(u)
    inv = 1 / xp.sqrt(xp.maximum(dot_rows(M, M)[..., 0], UNIT_EPS))
    return match(u, M) * inv, inv


def cosine_back(ds, s, inv):
    """dp (B, N), the gradient at the products <u, M_n>, and along, (N, 1) or (B, N, 1). From them du = read(dp, M) and
    dM = write(dp, u) - along * M: as in `unit_back`, only the part across a row turns it."""
    along = array_module(inv).where(inv >= 1 / np.sqrt(inv.dtype.type(UNIT_EPS)), 0, ds * s)
    along = (along.sum(0) if inv.ndim == 1 else along) * inv * inv
    return ds * inv, along[..., None]


# Three contractions make an associative memory M, (N, H) shared by the batch or (B, N, H) one per sample.
# Each is the derivative of the other two. Backpropagation through a memory needs nothing else:
#
#     match(z, M):  dz = read(dy, M)     dM = write(dy, z)
#     read(a, M):   da = match(dy, M)    dM = write(a, dy)
#     write(a, z):  da = match(z, dM)    dz = read(a, dM)


def match(z, M):
    """Inner product of z (B, H) with every row of M: (B, N); of z (U, B, H), of U uses, in one pass: (U, B, N)."""
    return z @ M.T if M.ndim == 2 else read(z, M.swapaxes(1, 2))


def read(a, M):
    """Sum of the rows of M weighted by a (B, N): (B, H); of a (U, B, N), of U uses, in one pass: (U, B, H)."""
    if M.ndim == 2:
        return a @ M
    return (a[:, None] @ M)[:, 0] if a.ndim == 2 else (a.swapaxes(0, 1) @ M).swapaxes(0, 1)


def write(a, z, shared):
    """Outer products a' z, summed over the batch (N, H) if shared, else one per sample (B, N, H).

    a (U, B, N) and z (U, B, H) are also summed over their U uses: one product in place of U products and a sum.
    """
    if shared:
        a, z = flat(a), flat(z)
        return a.T @ z if len(a) > 1 else a.T * z  # of one row BLAS takes three times as long
    if a.ndim == 2:
        return array_module(a).einsum("bn,bh->bnh", a, z)
    return array_module(a).matmul(a.transpose(1, 2, 0), z.transpose(1, 0, 2))


# A loss: the value and its gradient together, because they share the work.


def cross_entropy(logits, labels):
    """Mean over the batch of -log softmax(logits)[label], in nats.

    logits (B, C), labels (B,) integers. Returns the loss, its gradient (B, C), and how many labels had the top logit.
    """
    xp, rows = array_module(logits), len(logits)
    p = softmax(logits)
    picked = xp.arange(rows), labels
    # log of the sum, not log of p: p may underflow to 0, where the loss is large but finite.
    shifted = logits - logits.max(-1, keepdims=True)
    loss = (xp.log(xp.exp(shifted).sum(-1)) - shifted[picked]).mean()
    p[picked] -= 1
    p /= rows
    return loss, p, (logits.argmax(-1) == labels).sum()


# Initial values, as Keras draws them. All take a NumPy Generator, so both devices start alike.


def glorot_uniform(rng, shape, fans=None):
    """Uniform in +-sqrt(6 / (fan_in + fan_out)); fans default to the last two sizes (Glorot & Bengio 2010)."""
    limit = np.sqrt(6 / sum(fans or shape[-2:]))
    return rng.uniform(-limit, limit, shape)


def he_normal(rng, shape):
    """Normal with variance 2 / fan_in, cut at two standard deviations and rescaled (He et al. 2015; Keras)."""
    draw = rng.standard_normal(shape)
    while (far := np.abs(draw) > 2).any():
        draw[far] = rng.standard_normal(int(far.sum()))
    return draw * (np.sqrt(2 / shape[-2]) / 0.87962566103423978)  # sd of a normal cut at 2


def orthogonal(rng, rows, columns):
    """A matrix with orthonormal rows (or columns, if fewer), uniform over all such (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T

"""The mathematics under every cell: each function beside its derivative `*_back`.

A forward returns its value, and what its backward needs where the value is not enough. A backward takes the
gradient of the loss with respect to the value, and returns the gradient with respect to the input.

Shapes: `...` any leading axes (time, batch), D inputs, H features, N memory slots, B batch.
"""

from .backend import array_module
from .device import fused

UNIT_EPS = 1e-12  # below this squared length a vector counts as zero, as in tf.nn.l2_normalize
NORM_EPS = 1e-6  # layer norm, as in the published Engram cell


def flat(x):
    """(..., H) seen as (rows, H): one large matrix product instead of many small ones."""
    return x.reshape(-1, x.shape[-1])


def linear(x, W, b, out=None):
    """x W + b for x (..., D), W (D, H), b (H,), into `out` (..., H) if given."""
    y = array_module(x).matmul(flat(x), W, out=None if out is None else flat(out))
    y += b
    return y.reshape(*x.shape[:-1], W.shape[-1])


def linear_back(dy, x):
    """(dW, db) of `linear`, summed over all leading axes. Its dx is dy W'."""
    return flat(x).T @ flat(dy), sum_rows(dy)


def turned(params, name):
    """The transpose of a weight: laid out anew by `run_back`, once for all steps, for BLAS reads that an eighth faster
    than a transposed view; else the view."""
    return params.get(name + "'", params[name].swapaxes(-1, -2))


def sum_rows(x):
    """Sum of (..., H) over its leading axes. A product with ones is BLAS, and several times x.sum(0)."""
    rows = flat(x)
    return array_module(x).ones(len(rows), x.dtype) @ rows


def dot_rows(x, y):
    """Inner product of each row of x with the same row of y, (..., 1), without a temporary of their size."""
    return array_module(x).einsum("...h,...h->...", x, y)[..., None]


def relu(x, out=None):
    """max(x, 0)."""
    return array_module(x).maximum(x, 0, out=out)


def relu_back(dy, y, out=None):
    """dy where the unit was on. The kink itself counts as off."""
    return array_module(y).multiply(dy, y > 0, out=out)


@fused
def sigmoid(xp, x, out):
    """1 / (1 + exp(-x)), by tanh, which cannot overflow, into `out`."""
    xp.multiply(x, 0.5, out=out)
    xp.tanh(out, out=out)
    out *= 0.5
    out += 0.5


def softmax(x):
    """exp(x) / sum exp(x) over the last axis, shifted by the maximum so that exp cannot overflow."""
    y = array_module(x).exp(x - x.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    return y


def softmax_back(dy, y):
    """y * (dy - <dy, y>). Entries with y = 0 get nothing, so it serves a softmax over some entries too."""
    dx = dy - dot_rows(dy, y)
    dx *= y
    return dx


def layer_norm(x, gamma, beta, out=None):
    """gamma * x_hat + beta with x_hat = (x - mean) / sqrt(variance + 1e-6) over the last axis.

    `out` = (y, x_hat, inv) are arrays to write into. Returns y (..., H), x_hat (..., H), inv (..., 1).
    """
    xp = array_module(x)
    y, x_hat, inv = out or (None, None, None)
    width = x.shape[-1]
    mean = x @ xp.full((width, 1), 1 / width, x.dtype)
    x_hat = xp.subtract(x, mean, out=x_hat)
    inv = xp.divide(1, xp.sqrt(dot_rows(x_hat, x_hat) / width + NORM_EPS), out=inv)
    x_hat *= inv
    y = xp.multiply(x_hat, gamma, out=y)
    y += beta
    return y, x_hat, inv


def layer_norm_back(dy, gamma, x_hat, inv):
    """dx: mean and variance depend on every entry, hence the two means that are taken away."""
    width = dy.shape[-1]
    dx = dy * gamma  # gradient of x_hat, then of x in place
    along = dot_rows(dx, x_hat) / width
    dx -= dx @ array_module(dy).full((width, 1), 1 / width, dy.dtype)
    dx -= x_hat * along
    dx *= inv
    return dx


def unit(x, out=None):
    """x / |x| over the last axis, with |x|^2 held at or above 1e-12. Returns the unit vectors and 1 / |x|.

    Each operand is divided by its own length before the product, not the product by both lengths: cosines then
    stay in [-1, 1] whatever the lengths, and zero vectors give zero.
    """
    xp = array_module(x)
    u, inv = out or (None, None)
    inv = xp.divide(1, xp.sqrt(xp.maximum(dot_rows(x, x), UNIT_EPS)), out=inv)
    return xp.multiply(x, inv, out=u), inv


def unit_back(du, u, inv):
    """Only the part of du across x turns the unit vector; where |x|^2 was held, its length is a constant."""
    xp = array_module(u)
    held = inv >= 1 / xp.sqrt(xp.full(1, UNIT_EPS, u.dtype))
    dx = du - u * xp.where(held, 0, dot_rows(du, u))
    dx *= inv
    return dx


def cosine(u, memory):
    """Cosines (B, N) of unit vectors u (B, H) with every row of a memory, see trace.py; and 1 / |row|, (N,) or (B, N).

    u is divided by its length before the product, the product by the rows' lengths after it: no vector's length can
    overflow, and a row of zeros gives 0.
    """
    xp = array_module(u)
    inv = 1 / xp.sqrt(xp.maximum(memory.norms(), UNIT_EPS))
    s = memory.match(u)
    s *= inv
    return s, inv


def cosine_back(ds, s, inv):
    """At the products <u, M_n>, dp (B, N), from which du = read(dp, M), and dM = write(dp, u) - along * M: as in
    `unit_back`, only the part across a row turns it. along (N, 1) or (B, N, 1)."""
    xp = array_module(inv)
    dp = ds * inv
    along = xp.where(inv >= 1 / xp.sqrt(xp.full(1, UNIT_EPS, inv.dtype)), 0, ds * s)
    along = (along.sum(0) if inv.ndim == 1 else along) * inv * inv
    return dp, along[..., None]


# Three contractions make an associative memory M, (N, H) shared by the batch or (B, N, H) one per sample.
# They are each other's derivatives, which is all that backpropagation through a memory needs:
#
#     match(z, M):  dz = read(dy, M)     dM = write(dy, z)
#     read(a, M):   da = match(dy, M)    dM = write(a, dy)
#     write(a, z):  da = match(z, dM)    dz = read(a, dM)


def match(z, M, out=None):
    """Inner product of z (B, H) with every row of M: (B, N)."""
    xp = array_module(z)
    if M.ndim == 2:
        return xp.matmul(z, M.T, out=out)
    return xp.matmul(M, z[:, :, None], out=None if out is None else out[:, :, None])[:, :, 0]


def read(a, M, out=None):
    """Sum of the rows of M weighted by a (B, N): (B, H)."""
    xp = array_module(a)
    if M.ndim == 2:
        return xp.matmul(a, M, out=out)
    return xp.matmul(a[:, None, :], M, out=None if out is None else out[:, None, :])[:, 0, :]


def write(a, z, shared):
    """Outer products a z', summed over the batch (N, H) if shared, else one per sample (B, N, H).

    a (U, B, N) and z (U, B, H) are summed over their U uses, too: one product where there would be U and a sum.
    """
    if shared:
        a, z = flat(a), flat(z)
        return a.T @ z if len(a) > 1 else a.T * z  # of one row BLAS takes three times as long
    if a.ndim == 2:
        return array_module(a).einsum("bn,bh->bnh", a, z)
    return array_module(a).matmul(a.transpose(1, 2, 0), z.transpose(1, 0, 2))

"""Initial values, as Keras draws them. All take a NumPy Generator, so both devices start alike."""

import numpy as np


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

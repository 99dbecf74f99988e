"""From the recall to the next state, (8) and (9) of binding.py: candidate and gate, with or without the gate.

    k_t = LN( ReLU( ReLU( [z_t ; m_t ; h_{t-1}] W_c + b_c ) W_h + b_h ) )
    h_t = u_t h_{t-1} + (1 - u_t) k_t,  u_t = sigmoid( [z_t ; m_t ; h_{t-1}] W_u + b_u )

For cells whose kept arrays have zmh = [z ; m ; h_{t-1}] and c (B, 3H), ReLU q, layer norm k, q_hat (B, H), q_inv (B, 1)
and gate u (B, H) or None. Letters: B batch, H hidden.
"""

import numpy as np

from .backend import array_module
from .initial import glorot_uniform, he_normal
from .ops import layer_norm, layer_norm_back, linear, linear_back, relu, relu_back, sigmoid, sum_rows, turned


def integrators(rng, H, gated=True):
    """The parameters of (8) and (9), drawn."""
    params = {"W_c": he_normal(rng, (3 * H, 3 * H)), "b_c": np.zeros(3 * H)}  # rows: z, m, h
    params |= {"W_h": he_normal(rng, (3 * H, H)), "b_h": np.zeros(H), "gamma_h": np.ones(H), "beta_h": np.zeros(H)}
    return params | ({"W_u": glorot_uniform(rng, (3 * H, H)), "b_u": np.zeros(H)} if gated else {})


def integrate(params, h, k):
    """(8) and (9) into k, whose zmh holds z_t and m_t; without W_u there is no gate."""
    xp, H = array_module(h), h.shape[1]
    k.zmh[:, 2 * H :] = h
    relu(linear(k.zmh, params["W_c"], params["b_c"], out=k.c), out=k.c)  # (B, 3H)
    relu(linear(k.c, params["W_h"], params["b_h"], out=k.q), out=k.q)
    layer_norm(k.q, params["gamma_h"], params["beta_h"], out=(k.k, k.q_hat, k.q_inv))  # (B, H) (8) candidate
    if k.u is None:
        k.h[...] = k.k
        return
    sigmoid(xp, linear(k.zmh, params["W_u"], params["b_u"], out=k.u), k.u)
    xp.add(k.k, k.u * (h - k.k), out=k.h)  # (B, H) (9) hidden state


def integrate_back(params, dh, h, k, de):
    """Undo (9) and (8), noting in de what `integration` needs, m among it: gradients at z_t and h_{t-1}."""
    xp, H = array_module(dh), dh.shape[1]
    de.k[...] = dh if k.u is None else dh * (1 - k.u)  # (9) to k_t
    relu_back(layer_norm_back(de.k, params["gamma_h"], k.q_hat, k.q_inv), k.q, out=de.q)  # (8)
    relu_back(de.q @ turned(params, "W_h"), k.c, out=de.c)
    dzmh = de.c @ turned(params, "W_c")
    if k.u is not None:
        xp.multiply(de.k * (h - k.k), k.u, out=de.u)  # (9) to u_t, through its sigmoid
        dzmh += de.u @ turned(params, "W_u")
        dzmh[:, 2 * H :] += dh * k.u  # (9) to h_{t-1}
    de.m[...] = dzmh[:, H : 2 * H]
    return dzmh[:, :H], dzmh[:, 2 * H :]


def integration(k, de):
    """The weight gradients of (8) and (9)."""
    grads = {"gamma_h": sum_rows(de.k * k.q_hat), "beta_h": sum_rows(de.k)}
    for name, dy, into in (("c", de.c, k.zmh), ("h", de.q, k.c), ("u", de.u, k.zmh)):
        if dy is not None:
            grads[f"W_{name}"], grads[f"b_{name}"] = linear_back(dy, into)
    return grads

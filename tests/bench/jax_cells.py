"""JAX: the Engram cell line by line from its equations, `lax.scan` over time, the whole training step under `jit`.

Adam and clipping are a few lines here, inside the same jit, so that XLA may fuse them.
"""

import platform

import jax
import numpy as np
from jax import numpy as jnp


def versions(problem):
    return {"python": platform.python_version(), "jax": jax.__version__}


def build(problem, variant, threads):
    # XLA sizes its thread pool by the CPUs that this process may use; the bench has restricted those.
    return Training(problem)


def layer_norm(x, gamma, beta):
    centred = x - x.mean(-1, keepdims=True)
    return gamma * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + beta


def unit(x):
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))


def loss(p, cell, x, y, h, A, noise):
    """Mean cross-entropy of the last h: SPEC's (1) to (9). x (T, B, D), noise (T, N, H)."""
    eta = cell.hebbian_rate
    z = layer_norm(jax.nn.relu(x @ p["0.W_z"] + p["0.b_z"]), p["0.gamma_z"], p["0.beta_z"])  # (1) of all steps
    z_unit = unit(z)

    def step(state, inputs):
        (h, A), (z, z_unit, noise) = state, inputs
        M_eff = p["0.M"] + cell.trace_scale * A  # (2)
        s = z_unit @ unit(M_eff).T  # (3)
        a = jax.nn.softmax(s / cell.tau)  # (4)
        m = a @ M_eff  # (5)
        c = jax.nn.relu(jnp.concatenate((z, m, h), -1) @ p["0.W_c"] + p["0.b_c"])  # (6)
        h = layer_norm(jax.nn.relu(c @ p["0.W_h"] + p["0.b_h"]), p["0.gamma_h"], p["0.beta_h"])  # (7)
        D = a.T @ z / len(z)  # (8)
        A = jnp.clip((1 - eta) * A + eta * (D + noise), -cell.trace_clip, cell.trace_clip)  # (9)
        return (h, A), None

    (h, _), _ = jax.lax.scan(step, (h, A), (z, z_unit, noise))
    logp = jax.nn.log_softmax(h @ p["head.W"] + p["head.b"])
    return -jnp.take_along_axis(logp, y[:, None], -1).mean()


def adam(p, g, m, v, t):
    """One parameter: its gradient clipped by its own norm, then Adam as Keras has it."""
    g = g / jnp.maximum(jnp.sqrt((g * g).sum()), 1.0)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (jnp.sqrt(v) + 1e-7), m, v


class Training:
    """One step of training; initial states and trace noise are drawn inside the jit."""

    def __init__(self, problem):
        self.problem = problem
        model = problem.model("float32")
        self.cell = model.cells[0]
        self.x, self.y = map(jnp.asarray, problem.data("float32"))
        params = {name: jnp.asarray(value) for name, value in model.params.items()}
        zeros = {name: jnp.zeros_like(value) for name, value in params.items()}
        self.state = params, zeros, {name: jnp.zeros_like(value) for name, value in params.items()}, 1.0
        self.key = jax.random.key(0)
        self.step = jax.jit(self._step, donate_argnums=0)

    def _shapes(self):
        H, N = self.cell.hidden, self.cell.slots
        return (self.problem.batch, H), (N, H), (self.problem.steps, N, H)

    def _step(self, state, key, x, y):
        (p, m, v, t), keys, cell = state, jax.random.split(key, 4), self.cell
        scales = cell.initial_scale, cell.initial_scale, cell.trace_noise
        draws = zip(scales, keys[1:], self._shapes(), strict=True)
        random = [scale * jax.random.normal(key, shape) for scale, key, shape in draws]
        g = jax.grad(loss)(p, cell, x, y, *random)
        new = {name: adam(p[name], g[name], m[name], v[name], t) for name in p}
        p, m, v = ({name: parts[i] for name, parts in new.items()} for i in range(3))
        return (p, m, v, t + 1), keys[0]

    def answers(self, dtype):
        with jax.enable_x64(dtype == "float64"):
            params = {name: jnp.asarray(value) for name, value in self.problem.model(dtype).params.items()}
            x, y = map(jnp.asarray, self.problem.data(dtype))
            zeros = [jnp.zeros(shape, x.dtype) for shape in self._shapes()]
            function = jax.jit(jax.value_and_grad(loss), static_argnums=1)
            value, grads = function(params, self.cell, x, y, *zeros)
            return {"loss": float(value), **{name: np.asarray(g) for name, g in grads.items()}}

    def run(self):
        self.state, self.key = jax.block_until_ready(self.step(self.state, self.key, self.x, self.y))

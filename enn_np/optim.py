"""Optimizers, as Keras defines them. Parameters, gradients and moments are dicts with the same keys.

Clipping comes first: `clip_norm` shortens each gradient by its own length (Keras' clipnorm, as in the paper; there the
two biases of a GRU are one); `global_clip_norm` shortens all by their common length, which keeps the step's direction.
"""

import math
import weakref
from dataclasses import KW_ONLY, dataclass, fields

import numpy as np

from .backend import array_module
from .checks import number

CACHED = 1 << 15  # numbers of a large array that are updated at a time: what `rule` makes on the way stays in cache
SERVED = weakref.WeakKeyDictionary()  # optimizer -> weak reference to the first array of the model that it serves
LIMITS = {name: {"above": 0} for name in ("learning_rate", "clip_norm", "global_clip_norm", "epsilon")}
LIMITS["momentum"] = {"low": 0, "high": 1}
LIMITS["beta_1"] = LIMITS["beta_2"] = {"low": 0, "high": math.nextafter(1, 0)}  # 1 - beta is a divisor


@dataclass(eq=False)  # each is itself, whatever its settings
class Optimizer:
    """Clipping and the loop over parameters; `rule` is the update of one array, in place, with its `moments`. If it is
    `elementwise`, it gets a large array some rows at a time.

    frozen: names of parameters to leave as they are, such as ("0.M",), an Engram's memory bank.
    """

    learning_rate: float
    _: KW_ONLY
    clip_norm: float | None = None
    global_clip_norm: float | None = None
    frozen: tuple | list = ()
    moments, elementwise = (), False

    def __post_init__(self):
        for each in fields(self):
            if each.name in LIMITS and (value := getattr(self, each.name)) is not each.default:
                setattr(self, each.name, number(each.name, value, **LIMITS[each.name]))
        if not isinstance(self.frozen, list | tuple):
            raise TypeError(f"frozen: expected names of parameters such as ('0.M',), got {self.frozen!r}")
        self.steps, self.state = 0, {name: {} for name in self.moments}

    def serve(self, params):
        """Raise ValueError unless `params` are the arrays that it has served so far, and the frozen ones among them."""
        if wrong := [name for name in self.frozen if name not in params]:
            raise ValueError(f"frozen: expected names among {', '.join(params)}, got {wrong[0]!r}")
        mine = weakref.ref(next(iter(params.values())))
        if not self.steps:  # until then it may serve anyone
            self.state = {m: {name: array_module(p).zeros_like(p) for name, p in params.items()} for m in self.state}
            SERVED[self] = mine
        like = [{(k, v.shape, v.dtype) for k, v in each.items()} for each in (params, *self.state.values())]
        if SERVED.get(self, mine)() is not mine() or any(each != like[0] for each in like):  # a copy knows shapes alone
            raise ValueError(f"optimizer: make a new one for each model, this made {self.steps} steps with another")

    def update(self, params, grads):
        """One step: change every array of `params` in place by the array of `grads` (which is overwritten)."""
        self.serve(params)
        if wrong := {(k, g.shape) for k, g in grads.items()} - {(k, p.shape) for k, p in params.items()}:
            raise ValueError(f"grads: expected arrays with names and shapes of parameters, got {sorted(wrong)}")
        self.steps += 1
        for name in {*self.frozen} & grads.keys():
            grads[name][...] = 0  # and so are its moments, and then its steps
        self.clip(grads)
        for key, g in grads.items():
            arrays = params[key], g, *(moment[key] for moment in self.state.values())
            rows = CACHED * len(g) // g.size if self.elementwise and g.size > CACHED and array_module(g) is np else 0
            for piece in (slice(i, i + rows) for i in range(0, len(g), rows)) if rows else [...]:
                self.rule(*(a[piece] for a in arrays))

    def clip(self, grads):
        """Shorten gradients in place: each to `clip_norm`, then all together to `global_clip_norm`."""
        for limit, *group in [*((self.clip_norm, g) for g in grads.values()), (self.global_clip_norm, *grads.values())]:
            if limit is not None and group:
                norm = length(group)
                for g in group:
                    g *= limit / array_module(g).maximum(norm, limit)


@np.errstate(over="ignore", invalid="ignore")
def length(arrays):
    """The norm of all arrays as one. If squares are too large for a float, arrays are shrunk first."""
    xp, shrink = array_module(arrays[0]), 1
    squared = sum(xp.vdot(g, g) for g in arrays)
    if xp is not np or np.isinf(squared):  # to ask a card would stall it
        shrink = xp.where(squared < np.inf, 1, 2.0**-80).astype(arrays[0].dtype)
        squared = sum(xp.vdot(g * shrink, g * shrink) for g in arrays)
    return xp.sqrt(squared) / shrink


@dataclass(eq=False)
class SGD(Optimizer):
    """u = momentum * u - learning_rate * g,  p += u, as Keras. Momentum 0 is plain descent."""

    learning_rate: float = 0.01
    momentum: float = 0.0
    moments, elementwise = ("velocity",), True

    def rule(self, p, g, u):
        u[...] = self.momentum * u - self.learning_rate * g
        p += u


@dataclass(eq=False)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015) in Keras' form: eps stands beside the uncorrected root of v.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
    """

    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    moments, elementwise = ("m", "v"), True

    def rule(self, p, g, m, v):
        b1, b2, t = self.beta_1, self.beta_2, self.steps
        m[...] = b1 * m + (1 - b1) * g
        v[...] = b2 * v + (1 - b2) * g * g
        rate = self.learning_rate * math.sqrt(1 - b2**t) / (1 - b1**t)
        p -= rate * m / (array_module(v).sqrt(v) + self.epsilon)

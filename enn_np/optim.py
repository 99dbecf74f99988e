"""Optimizers, as Keras defines them. Parameters, gradients and moments are dicts with the same keys.

Clipping comes first and is one of two things: `clip_norm` shortens each gradient by its own length (Keras' clipnorm,
and so the paper), `global_clip_norm` all by their common length, which keeps the direction of the whole step.
"""

import math
import weakref

from .backend import array_module
from .checks import number

SERVED = weakref.WeakKeyDictionary()  # optimizer -> weak references to the arrays that its moments and steps belong to


class Optimizer:
    """Clipping and the loop over parameters; `rule` is the update of one array, in place.

    frozen: names of parameters to leave as they are, such as ("0.M",), an Engram's memory bank.
    """

    moments = ()

    def __init__(self, learning_rate, clip_norm=None, global_clip_norm=None, frozen=()):
        self.learning_rate = number("learning_rate", learning_rate, above=0)
        for name, limit in (("clip_norm", clip_norm), ("global_clip_norm", global_clip_norm)):
            setattr(self, name, limit if limit is None else number(name, limit, above=0))
        several = not isinstance(frozen, str) and hasattr(frozen, "__iter__")
        if not several or not all(isinstance(name, str) for name in frozen):
            raise TypeError(f"frozen: expected names of parameters such as ('0.M',), got {frozen!r}")
        self.frozen = list(frozen)
        self.steps = 0
        self.state = {name: {} for name in self.moments}

    def settings(self):
        """What defines it, as plain values: its kind, learning rate and the rest, without what changes in training."""
        return {"kind": type(self).__name__} | {k: v for k, v in vars(self).items() if k not in ("steps", "state")}

    def serve(self, params):
        """Raise ValueError unless `params` are the arrays that it has served so far, and the frozen ones among them."""
        if wrong := [name for name in self.frozen if name not in params]:
            raise ValueError(f"frozen: expected names among {', '.join(params)}, got {wrong[0]!r}")
        known = {name: array() for name, array in SERVED.get(self, {}).items()}
        if self.steps and known and (known.keys() != params.keys() or any(known[k] is not params[k] for k in known)):
            raise ValueError(f"optimizer: make a new one for each model, this made {self.steps} steps with another")
        for moment in self.state.values():  # of one that was copied or unpickled, whose arrays nobody knows
            for name, value in moment.items():
                like = params.get(name)
                if like is None or (like.shape, like.dtype) != (value.shape, value.dtype):
                    what = (
                        f"make a new one for each model, this has served another's {name} {value.dtype} {value.shape}"
                    )
                    raise ValueError(f"optimizer: {what}")
        SERVED[self] = {name: weakref.ref(array) for name, array in params.items()}

    def update(self, params, grads):
        """One step: change every array of `params` in place by the array of `grads` (which is overwritten)."""
        self.serve(params)
        self.steps += 1
        for name in self.frozen:
            grads[name][...] = 0  # and so are its moments, and then its steps
        self.clip(grads)
        for key, g in grads.items():
            for moment in self.state.values():
                if key not in moment:
                    moment[key] = array_module(g).zeros_like(g)
            self.rule(params[key], g, *(moment[key] for moment in self.state.values()))

    def clip(self, grads):
        """Shorten gradients in place: each to `clip_norm`, then all together to `global_clip_norm`."""
        for g in grads.values() if self.clip_norm is not None else ():
            _shorten([g], self.clip_norm)
        if self.global_clip_norm is not None:
            _shorten(list(grads.values()), self.global_clip_norm)


def _shorten(arrays, limit):
    """Scale all arrays by limit / max(norm, limit), where the host never learns the norm."""
    xp = array_module(arrays[0])
    squared = sum(xp.vdot(g, g) for g in arrays)
    for g in arrays:
        g *= limit / xp.maximum(xp.sqrt(squared), limit)


class SGD(Optimizer):
    """u = momentum * u - learning_rate * g,  p += u, as Keras. Momentum 0 is plain descent."""

    moments = ("velocity",)

    def __init__(self, learning_rate=0.01, momentum=0.0, clip_norm=None, global_clip_norm=None, frozen=()):
        super().__init__(learning_rate, clip_norm, global_clip_norm, frozen)
        self.momentum = number("momentum", momentum, low=0, high=1)

    def rule(self, p, g, u):
        u *= self.momentum
        g *= self.learning_rate
        u -= g
        p += u


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015) in Keras' form: eps stands beside the uncorrected root of v.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
    """

    moments = ("m", "v")

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        clip_norm=None,
        global_clip_norm=None,
        frozen=(),
    ):
        super().__init__(learning_rate, clip_norm, global_clip_norm, frozen)
        below_1 = math.nextafter(1, 0)  # at 1 the moments stay zero, and their correction divides by zero
        self.beta_1 = number("beta_1", beta_1, low=0, high=below_1)
        self.beta_2 = number("beta_2", beta_2, low=0, high=below_1)
        self.epsilon = number("epsilon", epsilon, above=0)

    def rule(self, p, g, m, v):
        """g has served when v has it, and its memory then holds the step."""
        xp, b1, b2 = array_module(g), self.beta_1, self.beta_2
        m *= b1
        m += (1 - b1) * g
        v *= b2
        g *= g
        g *= 1 - b2
        v += g
        xp.sqrt(v, out=g)
        g += self.epsilon
        xp.divide(m, g, out=g)
        g *= self.learning_rate * math.sqrt(1 - b2**self.steps) / (1 - b1**self.steps)
        p -= g

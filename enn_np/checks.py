"""Questions asked of every input before any work: the message names the argument, what came and the remedy."""

import math
import operator
from functools import lru_cache
from numbers import Integral, Real

import numpy as np

from .backend import array_module


def unmasked(name, value):
    """`value`, if none of its entries is masked: `np.asarray` and products forget that without a word."""
    if np.ma.is_masked(value):
        remedy = f"leave them out or use {name}.filled(0), and mark padded steps by False in `mask`"
        raise ValueError(f"{name}: expected every entry to count, got a masked array with masked ones; {remedy}")
    return value


def given(name, value):
    """`value`, unless it is None."""
    if value is None:
        raise TypeError(f"{name}: expected an array, got None; pass it, or use predict, which needs none")
    return value


def float_array(name, value, shape, dtype=None, finite=True):
    """`value` if it is a finite float array of `shape`, where a letter stands for a size that may be anything >= 1.

    float_array("x", x, ("T", "B", 28)) asks for three axes, the last one 28 wide. `dtype` asks for one precision.
    Raises TypeError for the kind of array and ValueError for its shape or its contents.
    """
    try:
        xp = array_module(unmasked(name, value))
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    wanted = ["float32", "float64"]
    if dtype is not None and str(value.dtype) in wanted:
        wanted = [str(np.dtype(dtype))]  # precision is never mixed
    if str(value.dtype) not in wanted:
        remedy = f"convert it with {name}.astype('{wanted[0]}')" + " / 255" * (value.dtype == np.uint8)  # to 0 to 1
        raise TypeError(f"{name}: expected {' or '.join(wanted)}, got {value.dtype}; {remedy}")
    sizes = zip(value.shape, shape, strict=False)
    if value.ndim != len(shape) or not all(n == want if isinstance(want, int) else n > 0 for n, want in sizes):
        hint = "; an empty array holds nothing to learn from" if 0 in value.shape else ""
        letters = str(tuple(shape)).replace("'", "")
        raise ValueError(f"{name}: expected shape {letters}, got {value.shape}{hint}")
    # On a GPU the question would stall the stream; device data were asked about on the host.
    if finite and xp is np and not np.isfinite(value).all():
        place = tuple(np.argwhere(~np.isfinite(value))[0].tolist())
        raise ValueError(
            f"{name}: every entry must be finite, but entry {place} is {value[place]}; remove or replace it"
        )
    return value


def class_labels(name, value, shape, classes):
    """`value` if it is an integer array of `shape` with entries 0 to classes - 1."""
    value = np.asarray(unmasked(name, value))
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer class labels, got {value.dtype}; convert them with .astype('int64')")
    if value.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, one label a sequence, got {value.shape}")
    if (wrong := value[(value < 0) | (value >= classes)]).size:
        remedy = f"got {wrong[0]}; renumber them or build the model with more classes"
        raise ValueError(f"{name}: labels must lie in 0 to {classes - 1} for {classes} classes, {remedy}")
    return value


def number(name, value, low=None, high=None, above=None):
    """`value` as a Python float, finite, at least `low` (or greater than `above`) and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    value = float(value)  # NumPy scalars would upcast float32 arrays
    limits = (("at least", low, operator.ge), ("greater than", above, operator.gt), ("at most", high, operator.le))
    limits = [limit for limit in limits if limit[1] is not None]
    if not (math.isfinite(value) and all(holds(value, limit) for _, limit, holds in limits)):
        wanted = " and ".join(f"{words} {limit}" for words, limit, _ in limits)
        raise ValueError(f"{name}: expected a finite number {wanted}, got {value}")
    return value


def count(name, value, low=1):
    """`value` as a Python int, at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")
    return int(value)


def choice(name, value, options):
    """`value` if it is one of `options`."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def switch(name, value):
    """`value` if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def settings(owner, check, names, *options, **limits):
    """Check fields of a frozen dataclass, in its `__post_init__`, and store them as plain Python values."""
    for name in names.split():
        object.__setattr__(owner, name, check(name, getattr(owner, name), *options, **limits))


@lru_cache(maxsize=64)
def _drawn(cell, inputs):
    return {name: value.shape for name, value in cell.init(np.random.default_rng(0), inputs, np.float32).items()}


def param_shapes(cell, inputs):
    """{name: shape} of all parameters, remembered if the cell has a hash, as a frozen dataclass has."""
    try:
        return _drawn(cell, inputs)
    except TypeError:
        return _drawn.__wrapped__(cell, inputs)


def check_state(name, state, wanted, dtype, computed=False):
    """Raise unless `state` has the parts of `wanted`; computed: a gradient, whose parts may be None or not finite."""
    if not isinstance(state, tuple | list if computed else type(wanted)) or len(state) != len(wanted):
        raise TypeError(f"{name}: expected {type(wanted).__name__}{wanted._fields}, got {type(state).__name__}")
    for part, value, like in zip(wanted._fields, state, wanted, strict=True):
        if value is not None or not computed:
            float_array(f"{name}.{part}", value, like.shape, dtype, finite=not computed)


def check_run(cell, params, x, state=None, mask=None):
    """`x`, cleared at padding, if `run` can work with these; else TypeError or ValueError, naming the argument."""
    if not isinstance(params, dict) or not params:
        raise TypeError(f"params: expected a dict of arrays as `init` returns, got {type(params).__name__}")
    float_array("x", x, ("T", "B", "D"), finite=mask is None)
    dtype = None
    for name, shape in param_shapes(cell, x.shape[2]).items():
        if name not in params:
            raise ValueError(f"params: {name} {shape} is missing, got {', '.join(params)}; is this another cell's?")
        if (got := getattr(params[name], "shape", shape)) != shape:  # these may be for an x of another width
            for D in (n for n in got if n and param_shapes(cell, n)[name] == got):
                float_array("x", x, ("T", "B", D))
        dtype = float_array(f"params[{name!r}]", params[name], shape, dtype, finite=False).dtype
    float_array("x", x, x.shape, dtype, finite=False)
    if state is not None:
        check_state("state", state, cell.initial_state(x.shape[1], x.dtype, None, np), x.dtype)
    if unmasked("mask", mask) is None:
        return x
    if not hasattr(mask, "shape"):
        raise TypeError(f"mask: expected a bool array of shape {x.shape[:2]}, got {type(mask).__name__}")
    if mask.dtype != bool or mask.shape != x.shape[:2]:
        raise ValueError(f"mask: expected bools of shape {x.shape[:2]}, got {mask.dtype} of shape {mask.shape}")
    # Infinity at padding, times its weight of zero, would be NaN for all who share a trace.
    return float_array("x", array_module(x).where(mask[..., None], x, 0), x.shape)


def check_run_back(cell, tape, dh, dstate, upstream):
    """Raise TypeError or ValueError, naming the argument, unless `run_back` can work with these."""
    kept = getattr(tape, "kept", None)
    if kept is None or (hasattr(cell, "shapes") and type(kept) is not type(cell.shapes(1)[1])):
        got = type(getattr(tape, "kept", tape)).__name__
        raise TypeError(f"tape: expected the one that run gave for this cell, got {got}; keep=False gives none")
    for name, value, like in (("dh", dh, kept.h), ("da", upstream.get("da"), getattr(kept, "a", None))):
        if value is not None and like is not None:
            float_array(name, value, like.shape, tape.x.dtype, finite=False)
    if dstate is not None:
        wanted = cell.initial_state(tape.x.shape[1], tape.x.dtype, None, np)
        check_state("dstate", dstate, wanted, tape.x.dtype, computed=True)

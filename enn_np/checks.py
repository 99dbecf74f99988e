"""Questions asked of every input before any work: the message names the argument, what came and the remedy."""

import math
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


def float_array(name, value, shape, dtype=None, finite=True):
    """`value` if it is a finite float array of `shape`, where a letter stands for a size that may be anything >= 1.

    float_array("x", x, ("T", "B", 28)) asks for three axes, the last one 28 wide. `dtype` asks for one precision.
    Raises TypeError for the kind of array and ValueError for its shape or its contents.
    """
    try:
        xp = array_module(unmasked(name, value))
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    wanted = ["float32", "float64"] if dtype is None else [str(np.dtype(dtype))]  # precision is never mixed
    if str(value.dtype) not in wanted:
        remedy = f"convert it with {name}.astype('{wanted[0]}')" + " / 255" * (value.dtype == np.uint8)  # to 0 to 1
        raise TypeError(f"{name}: expected {' or '.join(wanted)}, got {value.dtype}; {remedy}")
    sizes = zip(value.shape, shape, strict=False)
    if value.ndim != len(shape) or not all(n == want if isinstance(want, int) else n > 0 for n, want in sizes):
        hint = "; an empty array holds nothing to learn from" if 0 in value.shape else ""
        raise ValueError(f"{name}: expected shape {str(tuple(shape)).replace(chr(39), '')}, got {value.shape}{hint}")
    # On a GPU the question would stall the stream; device data were asked about on the host.
    if finite and xp is np and not np.isfinite(value).all():
        at = tuple(np.argwhere(~np.isfinite(value))[0].tolist())
        raise ValueError(f"{name}: every entry must be finite, but entry {at} is {value[at]}; remove or replace it")
    return value


def real_steps(name, mask, shape):
    """`mask` if it is a bool array of `shape`."""
    if str(getattr(unmasked(name, mask), "dtype", None)) != "bool" or mask.shape != shape:
        got = f"{getattr(mask, 'dtype', type(mask).__name__)} of shape {np.shape(mask)}; see {name}.astype(bool)"
        raise ValueError(f"{name}: expected bool of shape {shape}, True for real steps, got {got}")
    return mask


def number(name, value, low=-math.inf, high=math.inf, above=-math.inf):
    """`value` as a Python float, finite, at least `low` (or greater than `above`) and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    value = float(value)  # NumPy scalars would upcast float32 arrays
    if not (math.isfinite(value) and low <= value <= high and value > above):
        limits = (("at least", low), ("greater than", above), ("at most", high))
        wanted = " and ".join(f"{words} {limit}" for words, limit in limits if math.isfinite(limit))
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
def _drawn(cell, inputs, *_):
    return {name: value.shape for name, value in cell.init(np.random.default_rng(0), inputs, np.float32).items()}


def param_shapes(cell, inputs):
    """{name: shape} of all parameters, remembered for a cell with these settings if all have a hash."""
    if isinstance(cell, type) or not hasattr(cell, "init"):
        raise TypeError(f"cell: expected one with its sizes such as GRU(64), got {cell!r:.60}")
    try:
        return _drawn(cell, inputs, *vars(cell).values())
    except TypeError:
        return _drawn.__wrapped__(cell, inputs)


def check_state(name, state, wanted, dtype, computed=False):
    """Raise unless `state` has the parts of `wanted`; computed: a gradient, whose parts may be None or not finite."""
    kind, fields = tuple | list if computed else type(wanted), wanted._fields
    if not isinstance(state, kind) or len(state) != len(wanted) or getattr(state, "_fields", fields) != fields:
        raise TypeError(f"{name}: expected {type(wanted).__name__}{fields}, got {type(state).__name__}")
    for part, value, like in zip(wanted._fields, state, wanted, strict=True):
        if value is not None or not computed:
            float_array(f"{name}.{part}", value, like.shape, dtype, finite=not computed)


def check_params(cell, params, x, of="x"):
    """Raise TypeError or ValueError naming the argument unless `params` are the cell's for x (T, B, D), named `of`."""
    if not isinstance(params, dict):
        raise TypeError(f"params: expected a dict of arrays as `init` returns, got {type(params).__name__}")
    shapes, dtype = param_shapes(cell, x.shape[2]), None
    missing, more = [name for name in shapes if name not in params], [name for name in params if name not in shapes]
    if missing or more:  # one more, such as a norm's, could be used and never learn
        raise ValueError(f"params: expected those of init, got too many {more}, missing {missing}; another cell's?")
    for name, shape in shapes.items():
        if (got := getattr(params[name], "shape", shape)) != shape:  # these may be for an x of another width
            for D in (n for n in got if n and param_shapes(cell, n)[name] == got):
                float_array(of, x, ("T", "B", D))
        dtype = float_array(f"params[{name!r}]", params[name], shape, dtype, finite=False).dtype
    float_array(of, x, x.shape, dtype, finite=False)


def check_run(cell, params, x, state=None, mask=None):
    """`x`, cleared at padding, if `run` can work with these; else TypeError or ValueError, naming the argument."""
    check_params(cell, params, float_array("x", x, ("T", "B", "D"), finite=mask is None))
    if state is not None:
        check_state("state", state, cell.initial_state(x.shape[1], x.dtype, None, np), x.dtype)
    if mask is None:
        return x
    live = real_steps("mask", mask, x.shape[:2])[..., None]  # infinity times a weight of 0 is NaN for a shared trace
    return float_array("x", array_module(x).where(live, x, 0), x.shape)


def check_run_back(cell, params, tape, dh, dstate, upstream):
    """Raise TypeError or ValueError, naming the argument, unless `run_back` can work with these."""
    if (kept := getattr(tape, "kept", None)) is None:
        raise TypeError(f"tape: expected the one that run gave, got {tape!r:.40}; keep=False gives none")
    if cell is not tape.cell and (not isinstance(cell, type(tape.cell)) or vars(cell) != vars(tape.cell)):
        raise TypeError(f"tape: expected one of {cell!r}, got that of {tape.cell!r}")
    check_params(cell, params, x := tape.x, "tape.x")
    for name, value, like in (("dh", dh, tape.states[0]), ("da", upstream.get("da"), kept[0])):
        if value is not None and hasattr(like, name[1:]):
            float_array(name, value, (len(kept), *getattr(like, name[1:]).shape), x.dtype, finite=False)
    if dstate is not None:
        check_state("dstate", dstate, cell.initial_state(x.shape[1], x.dtype, None, np), x.dtype, computed=True)

"""NumPy or CuPy, decided by the arrays that come in: the only file that knows there are two.

    xp = array_module(x)       # numpy, or cupy if x lives on the GPU
    h = xp.tanh(x @ W)         # one code path for both

CuPy is never imported unless somebody asks for "cuda".
"""

import sys

import numpy as np


def array_module(array):
    """The module, numpy or cupy, that `array` belongs to. TypeError for anything that is not their array."""
    if isinstance(array, np.ndarray):
        return np
    # An array of CuPy's can exist only after somebody imported CuPy: look it up, never import it.
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}; convert it with numpy.asarray")


def empty(shapes, like, steps=None):
    """Uninitialised arrays for a NamedTuple of shapes, of the module and dtype of `like`; with `steps`, stacked."""
    xp, lead = array_module(like), () if steps is None else (steps,)
    return type(shapes)(*(None if shape is None else xp.empty(lead + shape, like.dtype) for shape in shapes))


def to_device(tree, device):
    """A copy-free move of an array, or of a dict, tuple or NamedTuple of arrays, to "cpu" or "cuda".

    None stays None. Raises ValueError for another device and ImportError where CuPy is missing.
    """
    if device == "cpu":
        return _map(lambda a: a if isinstance(a, np.ndarray) else a.get(), tree)
    if device != "cuda":
        raise ValueError(f'device must be "cpu" or "cuda", got {device!r}')
    try:
        import cupy
    except ImportError as error:
        raise ImportError('device="cuda" needs CuPy: pip install cupy-cuda12x, or use device="cpu"') from error
    return _map(cupy.asarray, tree)


def to_numpy(tree):
    """The arrays of `tree` as NumPy arrays on the host."""
    return to_device(tree, "cpu")


def _map(function, tree):
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [_map(function, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree)

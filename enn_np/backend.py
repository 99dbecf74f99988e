"""NumPy or CuPy: the arrays that come in decide. Only this file knows that there are two, and where arrays live.

    xp = array_module(x)       # numpy, or cupy if x lives on the GPU
    h = xp.tanh(x @ W)         # one code path for both

CuPy is imported only if somebody asks for "cuda". A card works while the host prepares the next operation. float(),
bool() and `if` of a device array wait for the card, so no step uses them.
"""

import ctypes
import sys
from contextlib import suppress
from functools import cache, wraps

import numpy as np

# Fresh memory comes page by page, which takes time. So the C library of Linux is told to keep what is freed: of arrays
# up to 32 MB, and up to 1 GB at the end of its heap. No effect elsewhere.
with suppress(AttributeError, TypeError):
    for option, value in ((-3, 2**25), (-1, 2**30)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        ctypes.CDLL(None).mallopt(option, value)


def array_module(array):
    """The module, numpy or cupy, that `array` belongs to. TypeError for anything that is not their array."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")  # never imported here: an array of its own is there only after somebody did
    if cupy is not None and (isinstance(array, cupy.ndarray) or cupy.get_array_module(array) is cupy):  # or in `fuse`
        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}; convert it with numpy.asarray")


def fused(equations):
    """A static method: equations that take every entry of some arrays by itself. The host runs them line by line; of
    the same lines `cupy.fuse` makes one kernel for a card. Of arrays alone: two numbers it adds up in half precision.
    """
    on = cache(lambda xp: equations if xp is np else xp.fuse(equations))
    return staticmethod(wraps(equations)(lambda *parts: on(array_module(parts[0]))(*parts)))


def device_module(device):
    """numpy for "cpu", cupy for "cuda". ValueError for another device or without a card, ImportError without CuPy."""
    if device == "cpu":
        return np
    if device != "cuda":
        raise ValueError(f'device must be "cpu" or "cuda", got {device!r}')
    try:
        import cupy
    except ImportError as error:
        remedy = 'pip install "cupy-cuda12x[ctk]", or use device="cpu"'
        raise ImportError(f'device="cuda" needs CuPy: {remedy} ({error})') from error
    if not cupy.cuda.is_available():
        remedy = 'install or update its driver (nvidia-smi shows both), or use device="cpu"'
        raise ValueError(f'device="cuda" needs an NVIDIA card, and CuPy {cupy.__version__} finds none: {remedy}')
    return cupy


def to_device(tree, device):
    """An array, or a dict, list, tuple or NamedTuple of arrays, on "cpu" or "cuda".

    Arrays that are there already are not copied, and None stays None. Errors: those of `device_module`.
    """
    xp = device_module(device)
    if isinstance(tree, dict):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [to_device(value, device) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if tree is None or (xp is np and isinstance(tree, np.ndarray)):
        return tree
    return tree.get() if xp is np else xp.asarray(tree)


def to_numpy(tree):
    """The arrays of `tree` as NumPy arrays on the host."""
    return to_device(tree, "cpu")

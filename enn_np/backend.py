"""NumPy or CuPy, decided by the arrays that come in: the only file that knows there are two.

    xp = array_module(x)       # numpy, or cupy if x lives on the GPU
    h = xp.tanh(x @ W)         # one code path for both

CuPy is never imported unless somebody asks for "cuda". A card works while the host prepares the next operation, as long
as nobody asks for a number: float(), bool() and `if` of a device array wait for it, so no step does that.
"""

import functools
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


def empty(shapes, like, lead=()):
    """Uninitialised arrays for a NamedTuple of shapes, each with `lead` in front, of the module and dtype of `like`."""
    xp = array_module(like)
    return type(shapes)(*(None if shape is None else xp.empty((*lead, *shape), like.dtype) for shape in shapes))


@functools.cache
def keep_freed_memory():
    """Make temporaries cheap: the C library of Linux takes every array over 128 KB fresh from the system, page by page,
    until one of up to 32 MB was freed; from then on it keeps what is freed for the next. No effect elsewhere."""
    np.empty(2**23 - 2**11, np.float32)


class Workspace:
    """Arrays that are kept from call to call. Fresh large arrays cost page faults, a fifth of a training step.

    Whoever passes one to `run` agrees that the tape and h are overwritten by the next run with the same workspace;
    `run_back` notices a tape that was. Without one, every run has its own arrays.
    """

    def __init__(self):
        self._arrays = {}
        self.runs = 0
        keep_freed_memory()

    def __getstate__(self):
        """A copy, by `pickle` or `copy`, has its own arrays to come; tapes bring theirs along."""
        return {**vars(self), "_arrays": {}}

    def empty(self, name, shapes, like, lead=()):
        """As the function `empty`, but the arrays of an earlier call with this name, if they fit."""
        key = (type(shapes), tuple(shapes), tuple(lead), like.dtype, array_module(like))
        if name not in self._arrays or self._arrays[name][0] != key:
            self._arrays[name] = key, empty(shapes, like, lead)
        return self._arrays[name][1]

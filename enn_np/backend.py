"""NumPy or CuPy: the arrays that come in decide. Only this file knows that there are two, and where arrays live.

    xp = array_module(x)       # numpy, or cupy if x lives on the GPU
    h = xp.tanh(x @ W)         # one code path for both

CuPy is imported only if somebody asks for "cuda". A card works while the host prepares the next operation. float(),
bool() and `if` of a device array wait for the card, so no step uses them.
"""

import sys

import numpy as np

# The C library of Linux takes every array over 128 KB fresh from the system, page by page, until one of up to 32 MB was
# freed. From then on it keeps freed memory for the next array, and temporaries are cheap. No effect elsewhere.
np.empty(2**23 - 2**11, np.float32)


def array_module(array):
    """The module, numpy or cupy, that `array` belongs to. TypeError for anything that is not their array."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")  # never imported here: an array of its own is there only after somebody did
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}; convert it with numpy.asarray")


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
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [to_device(value, device) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if xp is np:
        return tree if isinstance(tree, np.ndarray) else tree.get()
    return xp.asarray(tree)


def to_numpy(tree):
    """The arrays of `tree` as NumPy arrays on the host."""
    return to_device(tree, "cpu")


def empty(shapes, like, lead=()):
    """Uninitialised arrays for a NamedTuple of shapes, each with `lead` in front, of the module and dtype of `like`."""
    xp = array_module(like)
    return type(shapes)(*(None if shape is None else xp.empty((*lead, *shape), like.dtype) for shape in shapes))


class Workspace:
    """Arrays that are kept from call to call. Fresh large arrays may cost page faults, up to a fifth of a step.

    The next run with the same workspace overwrites the tape and h of this one; `run_back` notices such a tape. Without
    a workspace, every run has its own arrays.
    """

    def __init__(self):
        self._arrays, self.runs = {}, 0

    def __getstate__(self):
        """A copy, by `pickle` or `copy`, makes its own arrays later; a tape is copied with its arrays."""
        return {**vars(self), "_arrays": {}}

    def empty(self, name, shapes, like, lead=()):
        """As the function `empty`, but the arrays of an earlier call with this name, if they fit."""
        key = (type(shapes), tuple(shapes), tuple(lead), like.dtype, array_module(like))
        if name not in self._arrays or self._arrays[name][0] != key:
            self._arrays[name] = key, empty(shapes, like, lead)
        return self._arrays[name][1]

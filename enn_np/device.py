"""Where arrays live, the host ("cpu") or a card ("cuda"), how they get there, and one kernel in place of many."""

import functools
from itertools import islice

import numpy as np

from .backend import array_module


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


def card_name():
    """The card that "cuda" means, as NVIDIA calls it."""
    return device_module("cuda").cuda.runtime.getDeviceProperties(0)["name"].decode()


def wait(array):
    """Return when all that was asked of the device of `array` is done: for timings, and for nothing else."""
    xp = array_module(array)
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


def to_device(tree, device):
    """An array, or a dict, list, tuple or NamedTuple of arrays, on "cpu" or "cuda".

    What is there already is not copied, and None stays None. Raises as `device_module`.
    """
    xp = device_module(device)
    return _map((lambda a: a if isinstance(a, np.ndarray) else a.get()) if xp is np else xp.asarray, tree)


def to_numpy(tree):
    """The arrays of `tree` as NumPy arrays on the host."""
    return to_device(tree, "cpu")


def _map(function, tree):
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [_map(function, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree)


def fused(function):
    """`function(xp, *arguments)`, run on a card as one kernel (`cupy.fuse`) in place of a launch per operation.

    For element-wise work alone that is written into arguments, each as large as everything read; it returns nothing.
    Arguments: arrays, NamedTuples of arrays, Python numbers, None. On NumPy it is `function` itself.
    """
    kernels = {}

    @functools.wraps(function)
    def call(xp, *arguments):
        if xp is np:
            return function(np, *arguments)
        if xp not in kernels:
            name = function.__qualname__.replace(".", "_")
            kernels[xp] = xp.fuse(kernel_name=name)(_spread(functools.partial(function, xp), arguments))
        return kernels[xp](*(part for a in arguments for part in (a if isinstance(a, tuple) else (a,))))

    return call


def _spread(function, arguments):
    """`function` of arguments with their NamedTuples taken apart, as kernels want them."""
    kinds = [(type(a), len(a)) if isinstance(a, tuple) else None for a in arguments]

    def flat(*parts):
        parts = iter(parts)
        return function(*(kind[0](*islice(parts, kind[1])) if kind else next(parts) for kind in kinds))

    return flat

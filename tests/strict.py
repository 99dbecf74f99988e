"""A stand-in for CuPy on a machine without a card: NumPy arrays behind a door that opens only where CuPy's does.

    sys.modules["cupy"] = strict        # from now on device="cuda" means these arrays

It refuses what CuPy refuses or has not got (CuPy's user guide, "Differences between CuPy and NumPy", and its source,
14.2): a NumPy array beside a device array, NumPy's functions on device arrays, implicit conversion to NumPy, `out` of
einsum, most of `ufunc.at`. It refuses more: iteration over single numbers, lists where arrays are meant, reading what
`empty` left (NaN), and, inside `no_sync()`, every operation for which the host would have to wait for the card.
`fetched` counts such waits, `launched` the kernels that a card would have started. Results are NumPy's to the bit. A
test asks CuPy, where there is one, for all these names.
"""

import functools
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

__version__ = "stand-in"
fetched = 0  # how often the host waited for the device
launched = 0  # how many kernels were started: one for each operation that is no view, and one for all within `fuse`
_state = threading.local()


class Synchronised(RuntimeError):
    """The host waited for the card where it must not."""


@contextmanager
def no_sync():
    """Within it nothing may wait for the card: no float(), bool() or int() of an array, no get(), no nonzero."""
    _state.no_sync = True
    try:
        yield
    finally:
        _state.no_sync = False


def _wait(what):
    global fetched
    if getattr(_state, "no_sync", False):
        raise Synchronised(f"{what} makes the host wait for the card")
    fetched += 1


def _write(array):
    """A device array's memory, to be written."""
    if not isinstance(array, ndarray):
        raise TypeError(f"out: expected an array of the device, got {type(array)}")
    return array._host


def _host(value, name="an operation"):
    """What stands behind a device array; Python and NumPy scalars as they are; anything else is refused."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray | list) or not isinstance(value, int | float | np.generic | type(None)):
        raise TypeError(f"{name}: unsupported type {type(value)} beside device arrays")
    return value


def _launch():
    global launched
    launched += not getattr(_state, "fusing", False)


def _device(value):
    _launch()
    kind = _Entries if getattr(_state, "fusing", False) else ndarray
    return kind(value) if isinstance(value, np.ndarray | np.generic) else value


def _operator(name, swap=False):
    function = getattr(np, name)

    def method(self, *other):
        pair = [self._host, *(_host(value, name) for value in other)]
        return _device(function(*(reversed(pair) if swap else pair)))

    return method


def _in_place(name):
    def method(self, other):
        _launch()
        getattr(np, name)(self._host, _host(other, name), out=_write(self))
        return self

    return method


def _reduction(name):
    def method(self, axis=None, keepdims=False):
        settings = {"keepdims": True} if keepdims else {}
        return _device(getattr(self._host, name)(axis=axis, **settings))

    return method


class ndarray:
    """An array on the device."""

    __array_ufunc__ = None  # NumPy's operators and ufuncs refuse it
    __hash__ = None

    def __init__(self, host):
        self._host = np.asarray(host)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} called on an array of the device")

    @property
    def shape(self):
        return self._host.shape

    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    dtype = property(lambda self: self._host.dtype)
    T = property(lambda self: ndarray(self._host.T))

    def __len__(self):
        return len(self._host)

    def __repr__(self):
        return f"device array {self.dtype} {self.shape}"  # the numbers would have to be fetched

    def __iter__(self):
        if self.ndim < 2:
            raise TypeError("iteration over the numbers of a device array: one launch each")
        return (self[i] for i in range(len(self)))

    # What waits for the card.

    def get(self):
        _wait("get()")
        return self._host.copy()

    def item(self):
        _wait("item()")
        return self._host.item()

    def __bool__(self):
        _wait("bool()")
        return bool(self._host)

    def __float__(self):
        _wait("float()")
        return float(self._host.item())

    def __int__(self):
        _wait("int()")
        return int(self._host.item())

    # What does not.

    def _place(self, index):
        """An index for the host, which leaves single entries views as CuPy does."""
        parts = index if isinstance(index, tuple) else (index,)
        for part in parts:
            if isinstance(part, ndarray) and part.dtype == bool:
                _wait("indexing with a mask")
        parts = tuple(part if isinstance(part, slice | type(...)) else _host(part, "an index") for part in parts)
        return parts if ... in [part for part in parts if not isinstance(part, np.ndarray)] else (*parts, ...)

    def __getitem__(self, index):
        return ndarray(self._host[self._place(index)])

    def __setitem__(self, index, value):
        _write(self)[self._place(index)] = _host(value, "assignment")

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape))

    def transpose(self, *axes):
        return ndarray(self._host.transpose(*axes))

    def swapaxes(self, one, other):
        return ndarray(self._host.swapaxes(one, other))

    def ravel(self):
        return ndarray(self._host.ravel())

    def copy(self):
        return ndarray(self._host.copy())

    def astype(self, dtype, copy=True):
        return ndarray(self._host.astype(dtype, copy=copy))


for _name in ("sum", "max", "min", "mean", "std", "any", "all", "argmax", "cumsum", "cumprod"):
    setattr(ndarray, _name, _reduction(_name))
_names = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul"}
_names |= {"and": "bitwise_and", "or": "bitwise_or"}
for _sign, _name in _names.items():
    setattr(ndarray, f"__{_sign}__", _operator(_name))
    setattr(ndarray, f"__r{_sign}__", _operator(_name, swap=True))
    if _name != "matmul":
        setattr(ndarray, f"__i{_sign}__", _in_place(_name))
_names = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
_names |= {"neg": "negative", "abs": "absolute", "invert": "invert"}
for _sign, _name in _names.items():
    setattr(ndarray, f"__{_sign}__", _operator(_name))


class _Entries(ndarray):
    """An array as a kernel sees it that `fuse` makes: entry by entry."""

    def _refuse(self, *_, **__):
        raise TypeError("within `fuse` there are entries alone: no shape, no parts, no products of matrices, no sums")

    shape = ndim = size = T = property(_refuse)
    __len__ = __iter__ = __getitem__ = __setitem__ = __matmul__ = __rmatmul__ = _refuse
    reshape = transpose = swapaxes = ravel = sum = max = min = mean = std = any = all = argmax = cumsum = _refuse


def fuse(equations):
    """One kernel for all operations of `equations`. Of arrays alone: CuPy adds two numbers up in half precision."""

    def kernel(*parts):
        if getattr(_state, "fusing", False):  # a part of another kernel
            return equations(*parts)
        if wrong := [type(part) for part in parts if not isinstance(part, ndarray)]:
            raise TypeError(f"fuse: expected arrays of the device, got {wrong[0]}")
        _launch()
        _state.fusing = True
        try:
            found = equations(*(_Entries(part._host) for part in parts))
        finally:
            _state.fusing = False
        if len({part._host.shape for part in (found if isinstance(found, tuple) else (found,))}) > 1:
            raise TypeError("fuse: expected results of one shape, that of all parts broadcast")
        return tuple(ndarray(part._host) for part in found) if isinstance(found, tuple) else ndarray(found._host)

    return kernel


def get_array_module(array):
    return sys.modules["cupy"] if isinstance(array, ndarray) else np


class _Ufunc:
    """An element-wise function of device arrays and scalars, at least one of them an array."""

    def __init__(self, name):
        self.name, self.__name__ = name, name

    def __call__(self, *values, out=None):
        if not any(isinstance(value, ndarray) for value in values):
            raise TypeError(f"{self.name}: no array of the device among {[type(value) for value in values]}")
        found = getattr(np, self.name)(*(_host(v, self.name) for v in values), out=None if out is None else _write(out))
        if out is None:
            return _device(found)
        _launch()
        return out


class _Add(_Ufunc):
    def at(self, array, index, values):
        """Atomic adds: CuPy has them for add, subtract, maximum and minimum alone."""
        np.add.at(array._host, _host(index, "add.at"), _host(values, "add.at"))


_ELEMENTWISE = (
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "tanh",
    "sqrt",
    "exp",
    "log",
    "sign",
    "isfinite",
)
for _name in _ELEMENTWISE:
    globals()[_name] = _Ufunc(_name)
add, clip = _Add("add"), _Ufunc("clip")


def matmul(x, y, out=None):
    return _Ufunc("matmul")(x, y, out=out)


def _function(name, waits=False):
    """NumPy's function of device arrays and scalars."""
    numpys = getattr(np, name)

    @functools.wraps(numpys, assigned=("__name__",))
    def function(*values, **settings):
        if waits:
            _wait(name)
        if "out" in settings:
            raise TypeError(f"{name}: CuPy's has no `out`")
        if not any(isinstance(value, ndarray) for value in values):
            raise TypeError(f"{name}: no array of the device among {[type(value) for value in values]}")
        values = [value if isinstance(value, str | type) else _host(value, name) for value in values]
        settings = {key: value if isinstance(value, str) else _host(value, name) for key, value in settings.items()}
        found = numpys(*values, **settings)
        return tuple(map(_device, found)) if isinstance(found, tuple) else _device(found)

    return function


_names = "where einsum vdot sum sort partition flip cumsum take_along_axis searchsorted ascontiguousarray zeros_like"
_names += " repeat"
for _name in _names.split():
    globals()[_name] = _function(_name)
for _name in ("flatnonzero", "unique", "bincount"):  # sizes of results that depend on numbers: the host must know them
    globals()[_name] = _function(_name, waits=True)


def empty(shape, dtype=float):
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return ndarray(np.full(size, 0xFF, np.uint8).view(dtype).reshape(shape))  # NaN, or -1


def empty_like(array):
    return empty(array.shape, array.dtype)


def _creator(name):
    def create(*values, **settings):
        if any(isinstance(value, ndarray | np.ndarray) for value in values):
            raise TypeError(f"{name}: expected numbers, got an array")
        _launch()
        return ndarray(getattr(np, name)(*values, **settings))

    return create


zeros, ones, full, arange, eye, tri = map(_creator, ("zeros", "ones", "full", "arange", "eye", "tri"))


def asarray(value):
    """From the host to the device: the one door in. A NumPy array is copied, a device array is not."""
    return value if isinstance(value, ndarray) else ndarray(np.array(value))


def _joiner(name):
    def join(arrays, axis=0, out=None):
        _launch()
        arrays = [_host(array, name) for array in arrays]
        found = getattr(np, name)(arrays, axis=axis, out=None if out is None else _write(out))
        return ndarray(found) if out is None else out

    return join


concatenate, stack = _joiner("concatenate"), _joiner("stack")


def copyto(new, old, where=True):
    np.copyto(new._host, _host(old, "copyto"), where=where if where is True else where._host)


inf, finfo, float32, float64, int64 = np.inf, np.finfo, np.float32, np.float64, np.int64
cuda = SimpleNamespace(
    is_available=lambda: True,
    get_current_stream=lambda: SimpleNamespace(synchronize=lambda: _wait("synchronize()")),
    runtime=SimpleNamespace(getDeviceProperties=lambda number: {"name": b"none: a stand-in for tests"}),
)

"""Files that survive their writer, models and training runs in them, and the classes that they name.

A file is written beside its place, brought to the disk, and then given its name, which replaces the one before in one
step: a killed process, a full disk or a power cut leaves the old file or the new one, never half of either.

A model is one .npz without pickle: its configuration, as JSON in the array "config", and its parameters by name. A
training run adds, in the same file, its own state: plain values as config["training"], arrays under names with a slash,
such as "m/head.W". `enn_np.load` reads both, so that a run that was killed is a usable model too.
"""

import dataclasses
import errno
import glob
import json
import math
import os
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np

from . import checks
from .backend import to_numpy

FORMAT = 1


def spelled_out(path):
    """`path` with a leading ~ as the user's home folder. Raises OSError where no home folder is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OSError(f"{path}: no home folder is known; set HOME, or ENN_DATA or the path to a full path") from None


@contextmanager
def whole(path):
    """A binary file to write, which becomes `path` at the end of the `with` block unless that raises."""
    path = spelled_out(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is {'a folder' if path.is_dir() else 'no file but a device or the like'}; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")  # of its own: two writers may meet
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` as UTF-8 to `path`, whole or not at all. Returns the path."""
    with whole(path) as file:
        file.write(text.encode())
    return spelled_out(path)


class Taken(ValueError):
    """What another process has, this one cannot have."""


@contextmanager
def lock(path, refuse=None):
    """Hold the file `path` as a lock of the operating system, which ends with its process: a killed one leaves none.

    Waits where another process (or thread) holds it; with `refuse`, what it guards, raises Taken in its name.
    """
    with open(path, "ab") as file:
        try:
            _take(file, wait=not refuse)
        except BlockingIOError:
            raise Taken(f"{refuse} is in use by another run; wait for its end, or choose another place") from None
        except OSError:  # a network file system may have no locks: then nothing is guarded
            pass
        yield


def _take(file, wait):
    """Lock an open file. Raises BlockingIOError where another has it and we are not to wait."""
    if os.name == "nt":  # pragma: no cover
        import msvcrt

        while True:
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if not wait and error.errno == errno.EACCES:  # how Windows says: taken
                    raise BlockingIOError(*error.args) from None
                if not wait or error.errno != errno.EDEADLK:  # that one only says: still taken after ten seconds
                    raise
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def write(path, config, arrays):
    """Write `config` (JSON types) and `arrays` (name -> NumPy array) to the .npz file `path`. Returns the path."""
    with whole(path) as file:
        np.savez(file, config=np.array(json.dumps({"format": FORMAT, **config})), **arrays)
    return spelled_out(path)


def read(path):
    """(config, arrays) of a file that `write` wrote. FileNotFoundError, or ValueError naming file and fault."""
    arrays = read_arrays(path)
    with trusted(path):
        config = json.loads(str(arrays.pop("config")))
    found = config.pop("format", None) if isinstance(config, dict) else None
    if found != FORMAT:
        newer = "is it of a newer enn_np: upgrade this one"
        raise ValueError(f"{path}: expected an enn_np file of format {FORMAT}, got {found!r:.40}; {newer}")
    return config, arrays


@contextmanager
def trusted(path):
    """What fails within, for what the file `path` holds, is one ValueError: the file, what is wrong, the remedy."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and NumPy's header parser raise nearly anything on a damaged file
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        message = f"{path}: not a whole enn_np file ({what}); save it again or use another copy"
        raise ValueError(str(error) if str(error).startswith(f"{path}: ") else message) from None


def read_arrays(path, names=None, most=math.inf):
    """{name: array} of an .npz of plain arrays, in which no pickle is read; names: of these alone, if they are there.

    Raises FileNotFoundError, or ValueError as `trusted`, also where one is larger than `most`, in bytes.
    """
    with trusted(path), zipfile.ZipFile(spelled_out(path)) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        found = {}
        for name in members if names is None else members.keys() & set(names):
            member = members[name]
            if member.file_size > most:
                raise ValueError(f"{member.file_size / 1e9:,.1f} GB are too many")
            with archive.open(member) as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
        return found


def flatten(tree, path=""):
    """Nested dicts as (plain, arrays): what is no array, nested as before, and the arrays by their path, a/b/c."""
    plain, arrays = {}, {}
    for key, value in tree.items():
        if isinstance(value, dict):
            plain[key], inner = flatten(value, f"{path}{key}/")
            arrays |= inner
        elif hasattr(value, "dtype"):  # NumPy scalars too; CuPy's arrays come home by `get`
            arrays[path + key] = np.asarray(value.get() if hasattr(value, "get") else value)
        else:
            plain[key] = value
    return plain, arrays


def unflatten(plain, arrays):
    """The inverse of `flatten`, in place of `plain`, which it returns."""
    for name, array in arrays.items():
        *folders, key = name.split("/")
        tree = plain
        for folder in folders:
            tree = tree.setdefault(folder, {})
        tree[key] = array
    return plain


class Checkpoint:
    """Where and how often a training run is saved: to the file `path`, every `seconds` and at its end.

    Saving changes nothing in the run, so that the clock may decide. `last` says what the newest save holds.
    """

    def __init__(self, path, seconds=60.0):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint: expected a path or Checkpoint(path), got {path!r}")
        self.path, self.seconds = spelled_out(path), checks.number("seconds", seconds, low=0)
        if self.path.is_dir():
            raise ValueError(f"checkpoint: {path} is a folder; name a file, such as {self.path / 'run.npz'}")
        self.last = None

    @contextmanager
    def held(self):
        """Keep other processes from the file. Raises ValueError where one has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.path.with_name(f".{self.path.name}.lock"), f"checkpoint: {self.path}"):
            for part in self.path.parent.glob(f"{glob.escape(self.path.name)}.????????.part"):
                part.unlink(missing_ok=True)  # what killed writers left
            self._saved = time.monotonic()
            yield

    def due(self):
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, config, params, state, what):
        """Write a run: the model's config and params, and the run's `state`, nested dicts with arrays."""
        plain, arrays = flatten(state)
        try:
            write(self.path, {**config, "training": plain}, {**to_numpy(params), **arrays})
        except OSError as error:
            before = f"; {self.path} still holds {self.last}: make room and resume from it" if self.last else ""
            raise OSError(error.errno, f"checkpoint: {error.strerror} at {what}{before}", str(self.path)) from error
        self.last, self._saved = what, time.monotonic()

    def load(self, config, params):
        """The state that `save` wrote, and its parameters. Raises ValueError where they are not of this model."""
        found, arrays = read(self.path)
        plain = found.pop("training", None)
        if not isinstance(plain, dict):
            raise ValueError(f"{self.path}: it holds a model, but no training run; read it by enn_np.load")
        mine = {name: array for name, array in arrays.items() if "/" not in name}
        alike = {"outputs": "of head.W"}  # None for targets (n,), of which a new model learns from the first batch
        differ(self.path, {**config, **alike, **params}, {**found, **alike, **mine})
        with trusted(self.path):
            return unflatten(plain, {name: array for name, array in arrays.items() if "/" in name}), mine


def differ(path, now, then, what="the run there", kinds=False, remedy="use its settings, or another checkpoint"):
    """Raise ValueError naming all values, or their `kinds` alone, that a stored tree does not share with this one."""
    now, then = _leaves(now, kinds), _leaves(then, kinds)
    pairs = {name: (then.get(name), now.get(name)) for name in sorted({*now, *then})}
    if wrong := [name for name, (a, b) in pairs.items() if a != b and repr(a) != repr(b)]:
        wrong = "; ".join("{} was {!r:.60}, is {!r:.60}".format(name, *pairs[name]) for name in wrong)
        raise ValueError(f"{path}: {what} differs in {wrong}; {remedy}")


def _leaves(tree, kinds, path=""):
    """{"a.b.0": value} of nested dicts and lists."""
    items = enumerate(tree) if isinstance(tree, list | tuple) else tree.items() if isinstance(tree, dict) else None
    if items is not None:
        below = [_leaves(value, kinds, f"{path}.{key}".strip(".")) for key, value in items]
        return {name: leaf for leaves in below for name, leaf in leaves.items()}
    if hasattr(tree, "dtype") and not isinstance(tree, np.generic):
        return {path: f"{tree.dtype} {tree.shape}"}
    return {path: type(tree).__name__ if kinds else tree}


CLASSES = {}  # of cells and of models, by the names that files give them
PLAIN = int | float | str | tuple | dict | type(None)  # settings that can be compared


def register(kind):
    """Class decorator, above @dataclass, for a cell or a `Model` of your own: `load` then finds it by its name.

    Files name classes, they neither hold nor import them. A class defined again, as a notebook does, takes its own
    place. Raises TypeError for a cell that is no dataclass, ValueError for a name that is taken.
    """
    if not isinstance(kind, type):
        raise TypeError(f"register: expected a class, got {kind!r}; write it as a decorator above the class")
    model = hasattr(kind, "check_data")
    if not (model or dataclasses.is_dataclass(kind)):
        raise TypeError(f"register: expected a dataclass, got {kind!r}; put @dataclass(frozen=True) below it")
    name = (model and vars(kind).get("kind")) or kind.__name__.lower()
    known = CLASSES.setdefault(name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"register: {name!r} is {known!r}; give {kind!r} another name")
    CLASSES[name] = kind
    if model:
        kind.kind = name
    return kind


def build(config):
    """The model that `Model.config` described. TypeError or ValueError for an unknown model, cell or argument."""
    config = dict(config)
    kind = CLASSES[checks.choice("model", config.pop("model", None), tuple(CLASSES))]
    cells = []
    for settings in config.pop("cells", ()):
        settings = {name: _tuples(value) for name, value in settings.items()}
        cells.append(CLASSES[checks.choice("cell", settings.pop("kind", None), tuple(CLASSES))](**settings))
    if "outputs" in config:
        config[kind.width] = config.pop("outputs")
    return kind(cells=cells, **config)


def _tuples(value):
    """A list of JSON as the tuple that it was, also within."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_saving(model):
    """Raise TypeError, naming the class, unless `load` could bring this very model back from its configuration."""
    for part in (*model.cells, model):
        if type(part) not in CLASSES.values():
            remedy = "decorate the class with @enn_np.register, above @dataclass, and build the model again"
            what = "model" if part is model else "cells"
            raise TypeError(f"{what}: load could not find {type(part)!r}, which is not registered; {remedy}")
    if wrong := [name for name in model.params if "/" in name]:
        raise TypeError(f"model: expected no slash in a parameter's name, which files use, got {wrong[0]!r}; rename it")
    try:
        again = build(json.loads(json.dumps(model.config())))
        for one, other in zip((*model.cells, model), (*again.cells, again), strict=True):
            if type(one) is not type(other):
                raise TypeError(f"{type(one).__name__} would come back as {type(other).__name__}, by kind or config()")
            names = [k for k, v in getattr(other, "__dict__", {}).items() if isinstance(v, PLAIN) and k != "cells"]
            this, that = ({name: getattr(part, name, None) for name in names} for part in (one, other))
            differ(type(one).__name__, that, this, "what load would bring", remedy="it needs another field or config()")
    except (TypeError, ValueError) as error:
        raise TypeError(f"model: it could not be read back: {error}; use plain numbers, no field `kind`") from None


def load(path):
    """The model that `Model.save` wrote to `path`, or that a training run's checkpoint there holds.

    Raises FileNotFoundError, or ValueError naming what does not fit.
    """
    config, arrays = read(path)
    config.pop("training", None)
    arrays = {name: array for name, array in arrays.items() if "/" not in name}  # those are the run's
    try:
        model = build(config)
    except (TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        hint = "its configuration does not fit; first import the module of a class of your own (@enn_np.register)"
        raise ValueError(f"{path}: {hint}; what another version saved, train anew ({error})") from None
    differ(path, model.params, arrays, "the model there", remedy="use another copy")
    model.params = {name: arrays[name] for name in model.params}
    return model

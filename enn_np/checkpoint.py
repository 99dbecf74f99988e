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
from contextlib import contextmanager, suppress
from itertools import pairwise
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
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file, in it or elsewhere")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file but a device or the like; name a file")
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
    if os.name != "nt":  # the new name too must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path, text):
    """Write `text` as UTF-8 to `path`, whole or not at all. Returns the path."""
    with whole(path) as file:
        file.write(text.encode())
    return spelled_out(path)


def sweep(path):
    """Remove what killed writers of the file `path` left beside it. Only for who holds its lock."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.????????.part"):
        part.unlink(missing_ok=True)


@contextmanager
def lock(path, refuse=None):
    """Hold the file `path` as a lock of the operating system, which ends with its process: a killed one leaves none.

    Waits where another process (or thread) holds it; with `refuse`, what it guards, raises ValueError in its name.
    """
    with open(path, "ab") as file:
        try:
            _take(file, wait=not refuse)
        except BlockingIOError:
            raise ValueError(f"{refuse} is in use by another run; wait for its end, or choose another place") from None
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
    try:
        config = json.loads(str(arrays.pop("config")))
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedArchive(path, error) from None
    found = config.pop("format", None) if isinstance(config, dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        newer = "; it was written by a newer enn_np: upgrade this one" if newer else ""
        raise ValueError(f"{path}: expected an enn_np file of format {FORMAT}, got {found!r:.40}{newer}")
    return config, arrays


class DamagedArchive(ValueError):
    """A file is no .npz that can be trusted: the message names it, what is wrong, and the remedy."""

    def __init__(self, path, error):
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        super().__init__(f"{path}: not a whole enn_np file ({what}); save it again or use another copy")


def read_arrays(path, names=None, most=math.inf):
    """{name: array} of an .npz of plain arrays that nobody vouches for; names: of these alone, if they are there.

    Before memory is asked for, what its parts announce is compared with the bytes that are there, and with `most`, the
    bytes of the largest array that is wanted. No pickle is read.
    Raises FileNotFoundError, or DamagedArchive (a ValueError).
    """
    try:
        with open(spelled_out(path), "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its parts are compressed, which enn_np never does")
            if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
                raise ValueError("its parts announce more bytes than the file has")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two of its parts have the same name")
            found = {member.filename.removesuffix(".npy"): member for member in members}
            wanted = {name: member for name, member in found.items() if names is None or name in names}
            if (size := max((member.file_size for member in wanted.values()), default=0)) > most:
                raise ValueError(f"{size / 1e9:,.1f} GB are too many")
            return {name: _array(archive, member) for name, member in wanted.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and NumPy's header parser raise nearly anything on a damaged file
        raise DamagedArchive(path, error) from None


def _array(archive, member):
    """One array of an archive, after its header has been compared with the member's size."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = header(stream)
        if dtype.kind not in "biufU" or dtype.itemsize * math.prod(shape) != member.file_size - stream.tell():
            raise ValueError(f"{member.filename} announces {dtype} of shape {shape}, which its bytes are not")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)


def check_arrays(path, wanted, arrays, prefix=""):
    """Raise ValueError naming every array that is missing, not wanted, or of the wrong shape or dtype."""
    wrong = [f"{prefix}{name} is missing" for name in wanted.keys() - arrays.keys()]
    wrong += [f"{prefix}{name} is not part of this model" for name in arrays.keys() - wanted.keys()]
    for name in wanted.keys() & arrays.keys():
        want, got = (f"{getattr(a, 'dtype', type(a))} {getattr(a, 'shape', '')}" for a in (wanted[name], arrays[name]))
        wrong += [f"{prefix}{name} should be {want}, is {got}"] if want != got else []
    if wrong:
        raise ValueError(f"{path}: {'; '.join(sorted(wrong))}")


# Training runs


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
    """Where and how often a training run is saved: to the file `path`, when it starts, every `seconds`, at its end.

    Saving changes nothing in the run, so that the clock may decide. `last` says what the newest save holds.
    """

    def __init__(self, path, seconds=60.0):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint: expected a path or Checkpoint(path), got {path!r}")
        self.path, self.seconds = spelled_out(path), checks.number("seconds", seconds, low=0)
        if self.path.is_dir():
            raise ValueError(f"checkpoint: {path} is a folder; name a file, such as {self.path / 'run.npz'}")
        self.last, self._saved = None, -math.inf

    @contextmanager
    def held(self):
        """Keep other processes from the file. Raises ValueError where one has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.path.with_name(f".{self.path.name}.lock"), f"checkpoint: {self.path}"):
            sweep(self.path)
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
        differ(self.path, config, found)
        mine = {name: array for name, array in arrays.items() if "/" not in name}
        check_arrays(self.path, params, mine)
        try:
            return unflatten(plain, {name: array for name, array in arrays.items() if "/" in name}), mine
        except (TypeError, AttributeError) as error:
            raise DamagedArchive(self.path, error) from None


def differ(path, now, then):
    """Raise ValueError naming every setting that a stored run does not share with this one."""
    now, then = _leaves(now), _leaves(then)
    names = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    if names:
        wrong = "; ".join(f"{name} was {then.get(name)!r:.60}, is {now.get(name)!r:.60}" for name in names)
        raise ValueError(f"{path}: the run there differs in {wrong}; use its settings, or another checkpoint")


def _leaves(tree, path=""):
    """{"a.b.0": value} of nested dicts and lists."""
    items = enumerate(tree) if isinstance(tree, list | tuple) else tree.items() if isinstance(tree, dict) else None
    if items is None:
        return {path: tree}
    return {name: leaf for key, value in items for name, leaf in _leaves(value, f"{path}.{key}".strip(".")).items()}


# Models and cells by their names

CELLS, KINDS = {}, {}  # classes of cells and of models by the names that files give them


def register(kind):
    """Class decorator, above @dataclass, for a cell or a `Model` of your own: `load` then finds it by its name.

    Files name classes, they neither hold nor import them. A class defined again, as a notebook does, takes its own
    place. Raises TypeError for a cell that is no dataclass, ValueError for a name that is taken.
    """
    if not isinstance(kind, type):
        raise TypeError(f"register: expected a class, got {kind!r}; write it as a decorator above the class")
    table, name = (KINDS, vars(kind).get("kind")) if hasattr(kind, "check_data") else (CELLS, None)
    name = name or kind.__name__.lower()
    if table is CELLS and not dataclasses.is_dataclass(kind):
        raise TypeError(f"register: expected a dataclass, got {kind!r}; put @dataclass(frozen=True) below it")
    known = table.setdefault(name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"register: {name!r} is {known!r}; give {kind!r} another name")
    table[name] = kind
    if table is KINDS:
        kind.kind = name
    return kind


def build(config, room=math.inf):
    """The model that `Model.config` described. Raises ValueError for an unknown kind of model, cell or argument, and
    for one of more than `room` parameters."""
    config = dict(config)
    kind = KINDS[checks.choice("model", config.pop("model", None), tuple(KINDS))]
    cells = []
    for settings in config.pop("cells", ()):
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        cell = CELLS[checks.choice("cell", settings.pop("kind", None), tuple(CELLS))]
        cells.append(_construct(cell, settings))
    if "outputs" in config:
        config[kind.width] = config.pop("outputs")
    ours = all(each.__module__.startswith(f"{__package__}.") for each in (kind, *map(type, cells)))
    if ours and (least := _least_size(cells, config)) > room:
        raise ValueError(f"its configuration asks for {least:,} parameters or more, the file holds {room:,} numbers")
    return _construct(kind, {"cells": cells, **config})


def _least_size(cells, config):
    """A lower bound of a model's parameters, from what is yet unchecked: no file may ask for memory that it is not."""
    size = {name: value for name, value in config.items() if isinstance(value, int)}
    embedding = size.get("embedding", 1)
    widths = [size.get("inputs", embedding), *(cell.hidden for cell in cells)]
    inner = sum(cell.hidden * (cell.hidden + getattr(cell, "slots", 0)) for cell in cells)
    outer = size.get("vocabulary_size", 0) * embedding + size.get("classes", size.get("outputs", 0)) * widths[-1]
    return inner + outer + sum(low * high for low, high in pairwise(widths))


def _construct(kind, settings):
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None

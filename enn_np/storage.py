"""Files that survive their writer: whole or not at all, and one writer at a time.

A file is written beside its place, brought to the disk, and then given its name, which replaces the one before in one
step: a killed process, a full disk or a power cut leaves the old file or the new one, never half of either.
"""

import errno
import glob
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


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
        if os.name == "nt":  # pragma: no cover
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK if refuse else msvcrt.LK_LOCK, 1)
                    break
                except OSError as error:
                    if refuse:
                        raise ValueError(_taken(refuse)) from None
                    if error.errno != errno.EDEADLK:  # that one only says: still taken after ten seconds
                        raise
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refuse else 0))
            except BlockingIOError:
                raise ValueError(_taken(refuse)) from None
            except OSError:  # a network file system may have no locks: then nothing is guarded
                pass
        yield


def _taken(what):
    return f"{what} is in use by another run; wait for its end, or choose another place"

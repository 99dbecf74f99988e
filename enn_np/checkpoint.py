"""Configuration and arrays as one file: an .npz without pickle, written beside its place and then renamed, so that
nobody ever meets half a file."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np

FORMAT = 1


def write(path, config, arrays):
    """Write `config` (JSON types) and `arrays` (name -> NumPy array) to the .npz file `path`. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    header = json.dumps({"format": FORMAT, **config})
    with open(part, "wb") as file:
        np.savez(file, config=np.array(header), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def read(path):
    """(config, arrays) of a file that `write` wrote. FileNotFoundError, or ValueError naming file and fault."""
    try:
        with open(path, "rb") as file:
            # np.load takes what is no archive for a pickle, and then advises the reader to load it as one.
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz archive, or its end is missing")
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        config = json.loads(str(arrays.pop("config")))
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise nearly anything on a damaged file
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a whole enn_np file ({what}); save it again or use another copy") from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: expected an enn_np file of format {FORMAT}; was it written by a newer enn_np?")
    return config, arrays


def check_arrays(path, wanted, arrays):
    """Raise ValueError naming every array that is missing, not wanted, or of the wrong shape or dtype."""
    wrong = [f"{name} is missing" for name in wanted.keys() - arrays.keys()]
    wrong += [f"{name} is not part of this model" for name in arrays.keys() - wanted.keys()]
    for name in wanted.keys() & arrays.keys():
        want, got = wanted[name], arrays[name]
        if (want.shape, want.dtype) != (got.shape, got.dtype):
            wrong.append(f"{name} should be {want.dtype} {want.shape}, is {got.dtype} {got.shape}")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(sorted(wrong))}")

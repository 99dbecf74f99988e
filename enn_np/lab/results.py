"""What a run leaves on disk: its folder while it lasts, the result that stays, and what it was measured on."""

import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..backend import card_name
from ..checkpoint import differ, lock, spelled_out, write_text
from ..train import LOST


def folder(out):
    """`out` as a Path to a folder that exists from now on: better found out before training than after it."""
    out = spelled_out(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot make the folder {out}: {error.strerror}; choose another") from None
    return out


RUN = ("checkpoint.npz", "summary.json", "model.npz", "trace.npz")  # what a run is known by in its folder


@contextmanager
def own_folder(out, resume=None):
    """`out` as a folder for one run, kept from other processes; a start that fails leaves no empty one behind.

    Raises ValueError where another run has it, or had: only by `resume` (None where there is none) may it be taken up.
    """
    made, out = not spelled_out(out).exists(), folder(out)
    with lock(out / ".lock", f"out: {out}"):
        try:
            held = [name for name in RUN if (out / name).exists()]
            if held and not (resume and held[0] in RUN[:2]):
                kind = "an unfinished" if held[0] == RUN[0] else "a finished"
                again = "" if resume is None else "continue it by --resume, or "
                raise ValueError(f"out: {out} holds {kind} run; {again}delete the folder, or choose another by --out")
            yield out
        finally:
            if made and [each.name for each in out.iterdir()] == [".lock"]:
                with suppress(OSError):  # Windows keeps what is open
                    (out / ".lock").unlink()
                    out.rmdir()


@contextmanager
def run_folder(out, what, resume=False):
    """The folder of one run, kept from other processes: (folder, path of its checkpoint, None), or, where the run that
    is to be resumed is over, its summary in the place of None. The checkpoint goes when a run has ended by itself.

    what: benchmark, protocol, model, seed and training settings. Raises ValueError if another process has the folder,
    if it holds a run and `resume` is False, or if it is True and the finished run there is another one.
    """
    with own_folder(out, resume) as out:
        checkpoint, done = (out / name for name in RUN[:2])
        summary = read_json(done) if resume and done.exists() and not checkpoint.exists() else None
        if summary:
            differ(done, what, {name: summary.get(name) for name in what})
        yield out, checkpoint, summary
        if read_json(done).get("stopped") != "interrupted":
            checkpoint.unlink(missing_ok=True)


def read_json(path):
    """The object in a JSON file. Raises ValueError naming the file if there is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); run again, or use another copy") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}; run again, or use another copy")
    return found


def write_json(path, value):
    """Write `value` as JSON to `path`, whole or not at all."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_result(path):
    """What a run wrote into a summary.json, its fields of the kinds that tables and figures rely on; or what is written
    of a run that diverged, which has none of the numbers.

    Raises ValueError naming the file, the field and what is there.
    """
    found = read_json(path)
    words = ("benchmark", "protocol", "model", "stopped")
    wrong = {name: "a word" for name in words if not isinstance(found.get(name), str)}
    if not wrong and found["stopped"] == "diverged":
        return found
    numbers = {"parameters", "seconds", "test_loss", "test_mae" if "test_mae" in found else "test_accuracy"}
    numbers |= {name for name in found if name.startswith(("test_", "valid"))}
    wrong |= {name: "a finite number" for name in numbers if not _finite(found.get(name))}
    if type(found.get("seed")) is not int:
        wrong["seed"] = "a whole number"
    if type(found.get("best_epoch", "")) not in (int, type(None)):
        wrong["best_epoch"] = "a whole number"
    history, where = found.get("history"), found.get("machine")
    lists = history.values() if isinstance(history, dict) and "loss" in history else [None]
    if not all(isinstance(each, list) and all(map(_finite, each)) for each in lists):
        wrong["history"] = 'lists of numbers, "loss" among them'
    if not isinstance(where, dict) or not where.keys() >= {"processor", "cores", "python", "numpy", "blas_threads"}:
        wrong["machine"] = "what the run was measured on"
    for name, wanted in sorted(wrong.items()):
        got = f"expected {wanted}, got {found.get(name)!r:.60}"
        raise ValueError(f"{path}: {name}: {got}; run again, or remove the file")
    return found


def _finite(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def machine(device="cpu"):
    """What the numbers were measured on."""
    from .. import __version__

    card = {"card": card_name()} if device == "cuda" else {}
    return card | {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "enn_np": __version__,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        "revision": _revision(),
    }


def _revision():
    """The git commit of this checkout, with "-dirty" where files differ from it; None where there is none."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", checkout, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor():
    """The processor's name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def tell(line=""):
    """Print a line at once. Where its reader is gone, as with `| head`, the work goes on, and no one is told."""
    with LOST:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            mute()


def mute():
    """Standard output goes nowhere from now on: what is still to be written there would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""What a run leaves on disk: its folder while it lasts, the result that stays, and what it was measured on."""

import functools
import json
import os
import platform
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..backend import device_module
from ..checkpoint import differ, lock, spelled_out, write_text
from ..train.parallel import Workers
from .table import find


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
def run_folder(out, what=None, resume=False):
    """The folder of one run, kept from other processes: (folder, path of its checkpoint, None), or, where the run that
    is to be resumed is over, its summary in the place of None. The checkpoint goes when a run has ended by itself.

    what: benchmark, protocol, model, seed and training settings; None of a run that cannot be resumed. ValueError if
    another process has the folder, if it holds a run and `resume` is False, or if it is True and that is another one.
    """
    made, out = not spelled_out(out).exists(), folder(out)
    checkpoint, done = (out / name for name in RUN[:2])
    with lock(out / ".lock", f"out: {out}"):
        try:
            held = next((name for name in RUN if (out / name).exists()), None)
            if held and not (resume and held in RUN[:2]):
                kind = "an unfinished" if held == RUN[0] else "a finished"
                again = "continue it by --resume, or " if what and held in RUN[:2] else ""
                raise ValueError(f"out: {out} holds {kind} run; {again}delete the folder, or choose another by --out")
            summary = read_json(done) if held == RUN[1] else None
            if summary:
                differ(done, what, {name: summary.get(name) for name in what})
            yield out, checkpoint, summary
            if read_json(done).get("stopped") != "interrupted":
                checkpoint.unlink(missing_ok=True)
        finally:
            if made and [each.name for each in out.iterdir()] == [".lock"]:
                with suppress(OSError):  # Windows keeps what is open
                    (out / ".lock").unlink()
                    out.rmdir()


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


def read_result(path, tested=True):
    """What a run wrote into a summary.json, its fields of the kinds that tables and figures rely on; or what is written
    of a run that diverged, which has none of the numbers. tested: False for a trial, which has none of its test.

    Raises ValueError naming the file, the field and what is there.
    """
    found = read_json(path)
    wanted = {**dict.fromkeys(("benchmark", "protocol", "model", "stopped"), "a word"), "seed": "a whole number"}
    if found.get("stopped") != "diverged":
        wanted["history"] = "lists of numbers"
        numbers = {"parameters", "seconds", "test_loss", *(name for name in found if name[:5] in ("test_", "valid"))}
        wanted |= {**dict.fromkeys(numbers, "a finite number"), "machine": "what it was measured on"} if tested else {}
    for name, kind in sorted(wanted.items()):
        if not KINDS[kind](found.get(name)):
            got = f"expected {kind}, got {found.get(name)!r:.60}"
            raise ValueError(f"{path}: {name}: {got}; run again, or remove the file")
    return found


def load_results(folder, benchmark, protocol, diverged=False):
    """{model: [result, ...]} by seed of runs that ended, or of those that `diverged`; ValueError names a bad file."""
    found, experiment = {}, find(f"{benchmark}/{protocol}")
    shown = {key for _, key, _ in experiment.columns} | ({"steps"} if experiment.source == "fresh" else set())
    for path in sorted(Path(folder).glob("*.json")):
        result = _unchanged(path, path.stat().st_mtime_ns, path.stat().st_size)
        lost = result["stopped"] == "diverged"
        if (result["benchmark"], result["protocol"], lost) != (benchmark, protocol, diverged):
            continue
        if not lost and (without := sorted(shown - result.keys())):
            raise ValueError(f"{path}: {without[0]}: expected it, as its table shows it; run again, or remove the file")
        if found.setdefault(result["model"], {}).setdefault(result["seed"], result) is not result:
            raise ValueError(f"{path}: a second result of {result['model']} with seed {result['seed']}; remove one")
    for model, runs in found.items():
        if len({str(run["training"]) for run in runs.values() if run.get("training")}) > 1:
            raise ValueError(f"{folder}: {benchmark}-{protocol}-{model}: runs differ in training; take them apart")
    known = [*experiment.known, *found]  # whoever is not known comes last
    return {model: [found[model][seed] for seed in sorted(found[model])] for model in sorted(found, key=known.index)}


_unchanged = functools.cache(lambda path, *_: read_result(path))  # with its time and size


def lacks(result):
    """What a result does not say of where its numbers are from."""
    machine, clip = result.get("machine") or {}, (result.get("training") or {}).get("clip")
    revision = machine.get("revision") or ""
    said = {
        "a revision": revision,
        "a committed tree": not revision.endswith("-dirty"),
        "a machine": machine.keys() >= MACHINE,
        "settings": result.get("training"),
        "gradient norms": not clip or result["stopped"] == "diverged" or "gradient_norm" in result["history"],
    }
    return [name for name, value in said.items() if not value]


def files(folder):
    """{experiment, or subfolder: [path, ...]} of all that is stored, but for figures and what is not committed."""
    folder, found = Path(folder), {}
    for path in sorted(path for kind in ("json", "npz") for path in folder.rglob(f"*.{kind}")):
        where, name = path.relative_to(folder).parent.as_posix(), "/".join(path.stem.split("-")[:2])
        if where.partition("/")[0] not in ("figures", "runs"):
            found.setdefault(name if where == "." else where, []).append(path)
    return found


def _finite(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _history(value):
    lists = value.values() if isinstance(value, dict) and value.keys() & {"loss", "val_loss"} else [None]
    return all(isinstance(each, list) and all(map(_finite, each)) for each in lists)


MACHINE = {"processor", "cores", "python", "numpy", "blas_threads"}  # shown under every table
KINDS = {
    "a word": lambda value: isinstance(value, str),
    "a whole number": lambda value: type(value) is int,
    "a finite number": _finite,
    "lists of numbers": _history,
    "what it was measured on": lambda value: isinstance(value, dict) and value.keys() >= MACHINE,
}


def machine(device="cpu"):
    """What the numbers were measured on. workers: processes that share every batch."""
    from .. import __version__

    return ({"card": card_name()} if device == "cuda" else {}) | {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "enn_np": __version__,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        "workers": Workers.here.size,
        "revision": revision(),
    }


@functools.cache
def revision():
    """The commit of the checkout, with "-dirty" where files differ from it; None where there is none."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        command = ["git", "-C", checkout, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def card_name():
    """The card that "cuda" means, as NVIDIA calls it."""
    return device_module("cuda").cuda.runtime.getDeviceProperties(0)["name"].decode()


def processor():
    """The processor's name where Linux tells it, else what Python knows."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

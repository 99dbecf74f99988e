"""The bench's end of a worker's pipe. No question waits for ever, and every failure says who, what and why."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

TESTS = Path(__file__).parents[1]  # this package is found here, `enn_np` beside it: no environment needs to have it


class WorkerError(RuntimeError):
    """A competitor that could not be asked: it does not start, died, hangs or answers nonsense."""


def environment(threads, passive=False, device="cpu"):
    """The environment of every worker: `threads` threads, no GPU unless asked for, nothing compiled by helpers.

    passive: let OpenMP's threads sleep at once when they have nothing to do. Only PyTorch's obey, and pay for it.
    """
    counts = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "TORCHINDUCTOR_COMPILE_THREADS")
    settings = dict.fromkeys((*counts, "VECLIB_MAXIMUM_THREADS"), str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    settings |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    settings |= {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {}
    if passive:
        settings |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}
    paths = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths)}


class Worker:
    """A process that answers one line of JSON with one line of JSON. Use as a context manager, or call `stop`.

    name: for messages. command: list of strings. threads: it gets so many CPUs, where the system can say which.
    Raises WorkerError if the command cannot be started.
    """

    def __init__(self, name, command, threads=1, passive=False, device="cpu"):
        self.name, self.answers = name, queue.Queue()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 closed in `stop`
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        mine = pin(threads)
        try:
            # In a session of its own, so that what it starts itself can be ended with it.
            settings = {"env": environment(threads, passive, device), "start_new_session": True}
            self.process = subprocess.Popen(command, text=True, errors="replace", **pipes, **settings)
        except OSError as error:
            self.log.close()
            raise WorkerError(f"{name}: cannot start {command[0]}: {error.strerror}") from None
        finally:
            restore(mine)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        """Lines to the queue, then None: a thread, because no system's pipe can be read with a time-out by itself."""
        with self.process.stdout as lines:
            for line in lines:
                self.answers.put(line)
        self.answers.put(None)

    def ask(self, timeout, **question):
        """The answer, a dict with "status". Raises WorkerError after `timeout` seconds, and ends the process."""
        with contextlib.suppress(OSError):  # if it is dead, the queue says so
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        try:
            line = self.answers.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            raise WorkerError(f"{self.name}: no answer to {question['do']!r} in {timeout:g} s, stopped") from None
        if line is None:
            raise WorkerError(f"{self.name}: died with status {self.process.wait()}: {self._last_words()}")
        try:
            answer = json.loads(line)
            answer["status"]
        except (ValueError, TypeError, KeyError):
            self.stop()
            raise WorkerError(f"{self.name}: expected a JSON answer, got {line[:80]!r}, stopped") from None
        return answer

    def _last_words(self):
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 2000))
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def stop(self):
        """Close the pipe, on which a healthy worker ends; end by force what does not, with all it started."""
        if self.log.closed:
            return
        with contextlib.suppress(OSError):  # a dead process leaves its last question unread
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            kill_group(self.process)
            self.process.wait()
        self.reader.join(timeout=2)
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


def kill_group(process):
    """End a process and its children; on a system without process groups, the process."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def pin(threads):
    """Restrict this process, and so what it starts, to its last `threads` CPUs; returns what it had, or None.

    Not every library has a setting for its threads, and only the CPUs bind all alike.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[-threads:])
    return mine


def restore(mine):
    if mine is not None:
        os.sched_setaffinity(0, mine)

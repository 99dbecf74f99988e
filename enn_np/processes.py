"""Many runs, several at a time: processes with one BLAS thread each, and locks so that commands share the work.

failed = in_processes(run, {"gru-0": (arguments), ...}, jobs=2)
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from . import checkpoint as storage
from .train import BLAS_THREADS


def in_processes(work, tasks, jobs, say=print):
    """Do `work(*arguments)` for {name: arguments}, `jobs` at a time; say how each ended. Returns how many failed.

    Processes are spawned, not forked, so that NumPy is imported in them after the number of BLAS threads is set. A
    Ctrl-C ends them at once. Raises OSError, naming the run, where the system killed one.
    """
    if not tasks:
        return 0
    before, others = {name: os.environ.get(name) for name in BLAS_THREADS}, set(multiprocessing.active_children())
    os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _with_parent)
    waiting, running, failed = list(tasks), {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[pool.submit(work, *tasks[name])] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                try:
                    say(f"{name}: {future.result()}")
                except BrokenProcessPool:
                    raise
                except Exception as error:  # one run must not cost the others
                    failed += 1
                    say(f"{name}: FAILED: {type(error).__name__}: {error}")
    except BrokenProcessPool:
        raise OSError(f"{name}: its process was killed (out of memory?); the same command goes on from here") from None
    except KeyboardInterrupt:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return failed


def _with_parent():
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def mine(stack, path):
    """Whether this process has the lock `path` now, to the end of the ExitStack `stack`."""
    try:
        stack.enter_context(storage.lock(path, str(path)))
    except ValueError:
        return False
    return True

"""A competitor's process:  python -m bench.worker MODULE VARIANT THREADS

Reads one JSON object a line, writes one a line. {"do": "prepare", "problem": {...}} builds the work, compares it with
our gradients and runs it once, which compiles what compiles; {"do": "run"} runs it and answers the seconds it took.
"""

import importlib
import json
import os
import sys
import time

from enn_np.train.parallel import started

from . import numpy_cells
from .problem import TOLERANCES, Problem, difference


def main(module, variant, threads):
    """Answer until the pipe is closed. While others run, this process sleeps in the read."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr, and never between the answers
    competitor = None
    workers = started()
    for line in requests(workers):
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                competitor, reply = prepare(module, variant, int(threads), request["problem"])
            else:
                reply = turn(competitor)
        except ImportError as error:
            reply = {"status": "absent", "note": str(error)}
        except Exception as error:  # whatever a library raises belongs in the table, not in a broken pipe
            reply = {"status": "failed", "note": f"{type(error).__name__}: {error}"[:500]}
        if not workers.rank:
            print(json.dumps(reply), file=answers)


def requests(workers):
    """The lines that come; rank 0 of several reads them and tells the others, which sleep: MPI waits by spinning."""
    if not workers.rank:
        for line in sys.stdin:
            for other in range(1, workers.size):
                workers.comm.send(line, other)
            yield line
        for other in range(1, workers.size):
            workers.comm.send("", other)
    while workers.rank:
        while not workers.comm.iprobe():
            time.sleep(0.002)
        if not (line := workers.comm.recv()):
            return
        yield line


def prepare(module, variant, threads, problem):
    """The competitor, or None if its gradients are not ours; and the reply: status, note, agreement, versions."""
    cells = importlib.import_module(f".{module}", __package__)
    problem = Problem(**{**problem, "hidden": tuple(problem["hidden"])})
    competitor = cells.build(problem, variant, threads)
    agreement, note = {}, ""
    if cells is not numpy_cells or variant or (problem.device == "cuda" and problem.kind == "train"):
        agreement, note = compare(competitor, problem)
    reply = {"status": "mismatch" if note else "ok", "note": note, "agreement": agreement}
    reply |= {"versions": cells.versions(problem), "memory": getattr(competitor, "memory", None)}
    if note:
        return None, reply
    competitor.run()
    return competitor, reply


def compare(competitor, problem):
    """{dtype: largest relative difference from our loss and gradients}, and what is wrong ("" if nothing is)."""
    agreement, wrong = {}, []
    for dtype, tolerance in TOLERANCES.items():
        found = competitor.answers(dtype)
        if found is None:
            continue
        agreement[dtype], name = difference(found, numpy_cells.answers(problem, dtype))
        if agreement[dtype] > tolerance:
            wrong.append(f"{name} differs by {agreement[dtype]:.1e} in {dtype}, tolerance {tolerance:.0e}")
    return agreement, "; ".join(wrong)


WARM = 5  # steps


def turn(competitor):
    """A few times to wake threads, caches and cores, as in a training loop. Then once by the clock, wall and CPU."""
    for _ in range(WARM):
        competitor.run()
    wall, cpu = time.perf_counter(), time.process_time()
    competitor.run()
    return {"status": "ok", "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


if __name__ == "__main__":
    main(*sys.argv[1:])

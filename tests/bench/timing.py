"""How fast is NumPy with gradients by hand? Every work against its peers, A B A B, on the CPU or on a card.

    for every number of threads, every work:
        start a process per competitor, check its gradients against ours, warm up
        for every repeat:  competitor 1 once, 2 once, ..., a plain matrix product once
        medians and quartiles; ratio = peer / ours; floor = the work's multiply-adds at the product's speed

One competitor runs at a time. The others sleep in a read, and a pause before every turn lets the threads of the one
before finish spinning (OpenBLAS' spin for 2^26 cycles). Interleaving makes a slow minute of the machine slow for all.
"""

import datetime
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from enn_np import checks
from enn_np.backend import device_module
from enn_np.lab.results import processor
from enn_np.look import plots

from .process import Worker, WorkerError
from .works import Side, all_works

PEERS = ("torch", "jax", "tensorflow")
PREPARE_TIMEOUT, RUN_TIMEOUT = 1800, 300  # seconds; torch.compile takes minutes on two cores
PAUSE = 0.3  # before every turn: a second thread of OpenBLAS spins for about 0.1 s after its work, and takes a core
QUIET = 0.8  # CPU seconds per second: who computes alone on a machine gets one CPU at least


class Outcome(NamedTuple):
    """What became of a side: status "ok", "absent", "mismatch" or "failed", and a note that says why; milliseconds
    per unit and CPU seconds per second of every repeat; what the worker said when it was prepared."""

    side: Side
    unit: str
    status: str
    note: str
    times: list
    cpus: list
    said: dict

    @property
    def median(self):
        return statistics.median(self.times) if self.times else None

    @property
    def speed(self):
        """Operations per millisecond, of the work's multiply-adds alone."""
        return self.side.problem.flops / self.side.units(self.unit) / self.median if self.times else None


def quartiles(values):
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if values else (None,) * 3
    return low, high


def bench(
    works=None,
    repeats=15,
    warmup=3,
    threads=None,
    device="cpu",
    interpreters=None,
    json_path=None,
    chart_path=None,
    quick=False,
    passive=False,
    log=print,
):
    """Time the `works` (names in `all_works(device)`, all by default) against its peers, print a table, return the
    result.

    repeats: timed rounds, at least 15, after `warmup` untimed ones. threads: numbers of threads, one after the other
    (1 and 2; with device="cuda" 1). device: "cpu" or "cuda", where the data lie before the clock starts, and which has
    done all its work when the clock stops.
    interpreters: {"torch": path of a Python, "jax": ..., "tensorflow": ...}, this one where not given. json_path,
    chart_path (.png, .svg): files to write. quick: tiny sizes, two repeats; shows that all is in order, and times
    nothing. passive: OpenMP threads sleep at once, for a machine with other work. log: gets every line of text.
    Returns {"header", "rows"}. Raises ValueError or TypeError, naming the argument, before any work.
    """
    device_module(device)
    threads = ((1, 2) if device == "cpu" else (1,)) if threads is None else threads
    names, threads = _checked(all_works(device), works, repeats, warmup, threads, interpreters, quick)
    _writable("json_path", json_path)
    _writable("chart_path", chart_path, (".png", ".svg"))
    settings = {"repeats": 2 if quick else repeats, "warmup": 1 if quick else warmup}
    settings |= {"threads": threads, "passive": passive, "quick": quick, "device": device}
    header, rows = {"began": _now(), "load_before": _load(), **machine(), **settings, "versions": {}}, []
    result = {"header": header, "rows": rows}
    for count in threads:
        for name in [each for each in names if count > 1 or not each.endswith("-ranks")]:  # one rank is one process
            work = all_works(device)[name].small() if quick else all_works(device)[name]
            outcomes = _measure(name, work, count, interpreters or {}, settings, log)
            rows += _rows(name, work, outcomes, count)
            header["versions"] |= {o.side.library: o.said["versions"] for o in outcomes if o.said.get("versions")}
            header |= {"ended": _now(), "load_after": _load()}
            if json_path is not None:  # what is timed is kept, whatever ends the rest
                Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    log(table(result))
    if chart_path is not None:
        plots.save(chart(result), chart_path)
    return result


def _checked(known, works, repeats, warmup, threads, interpreters, quick):
    known = tuple(known)
    names = list(known if works is None else works)
    threads = [threads] if isinstance(threads, int) else list(threads)
    for name in names:
        checks.choice("works", name, known)
    for count in threads:
        checks.count("threads", count)
    for library in interpreters or {}:
        checks.choice("interpreters", library, PEERS)
    checks.count("repeats", repeats, low=1 if quick else 15)
    checks.count("warmup", warmup, low=0)
    return names, threads


def _writable(name, path, suffixes=None):
    """Raise ValueError unless a file can be written at `path`, whose folder is made: not found out after the work."""
    if path is None:
        return
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{name}: expected a file that ends in {' or '.join(suffixes)}, got {str(path)!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("ab").close()  # changes nothing where a file is
        if not there:
            path.unlink()
    except OSError as error:
        raise ValueError(f"{name}: cannot write {str(path)!r}: {error.strerror}; choose another file") from None


# ---------------------------------------------------------------------------------------------------- measuring


def _measure(name, work, threads, interpreters, settings, log):
    """Start all sides of a work, let them take turns, stop them; their outcomes."""
    workers, said = [], []
    try:
        for side in work.sides:
            python = interpreters.get(side.library, sys.executable)
            worker, answer = _prepare(side, python, threads, settings)
            workers.append(worker)
            said.append(answer)
            log(f"{name}, threads {threads}, {side.name}: {_summary(answer)}")
        turns = _rounds(workers, said, settings["warmup"], settings["repeats"])
    finally:
        for worker in workers:
            if worker is not None:
                worker.stop()
    return [_outcome(side, work.unit, *rest) for side, *rest in zip(work.sides, said, turns, strict=True)]


def _prepare(side, python, threads, settings):
    """The side's worker, or None, and its answer."""
    command = [str(python), "-m", "bench.worker", side.module, side.variant, str(threads)]
    if side.variant == "ranks":  # as many processes as the others have threads
        mpiexec = Path(python).with_name("mpiexec")
        command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", str(threads), *command]
    try:
        worker = Worker(side.name, command, threads, settings["passive"], settings["device"])
    except WorkerError as error:
        return None, {"status": "absent", "note": str(error)}
    try:
        answer = worker.ask(PREPARE_TIMEOUT, do="prepare", problem=vars(side.problem))
    except WorkerError as error:
        answer = {"status": "failed", "note": str(error)}
    if answer["status"] != "ok":
        worker.stop()
        answer["note"] += f" ({python})"
    return worker, answer


def _rounds(workers, said, warmup, repeats):
    """Every healthy worker in turn, again and again; its answers after the warm-up, as a list per worker.

    `said` is brought up to date: a worker that fails on the way has no times, and the others go on.
    """
    turns = [[] for _ in workers]
    for number in range(warmup + repeats):
        for i, worker in enumerate(workers):
            if said[i]["status"] != "ok":
                continue
            time.sleep(PAUSE)
            try:
                answer = worker.ask(RUN_TIMEOUT, do="run")
            except WorkerError as error:
                answer = {"status": "failed", "note": str(error)}
            if answer["status"] != "ok":
                said[i], turns[i] = {**said[i], **answer}, []
            elif number >= warmup:
                turns[i].append(answer)
    return turns


def _outcome(side, unit, said, turns):
    times = [1000 * turn["seconds"] / side.units(unit) for turn in turns]
    cpus = [turn["cpu_seconds"] / turn["seconds"] for turn in turns]
    return Outcome(side, unit, said["status"], said.get("note", ""), times, cpus, said)


def _summary(answer):
    if answer["status"] != "ok":
        return f"{answer['status'].upper()}: {answer['note']}"
    agreement = ", ".join(f"{dtype} {error:.1e}" for dtype, error in answer["agreement"].items())
    return f"ready; differs from our gradients by {agreement}" if agreement else "ready"


# ---------------------------------------------------------------------------------------------------- reporting


def _rows(name, work, outcomes, threads):
    """One dict per pair. A side without times leaves None, and its status and note say why."""
    rows, gemm = [], outcomes[-1]
    for label, i, j in work.pairs:
        us, peer = outcomes[i], outcomes[j]
        failed = next((o for o in (us, peer) if o.status != "ok"), None)
        row = {"work": label, "group": name, "peer": peer.side.name, "threads": threads, "unit": work.unit}
        row |= {"ours_ms": us.median, "peer_ms": peer.median, "ratio": None if failed else peer.median / us.median}
        # The floor is the time of the multiply-adds at the product's speed: a share of it is a ratio of speeds.
        row |= {"floor_share": _ratio(us.speed, gemm.speed), "peer_floor_share": _ratio(peer.speed, gemm.speed)}
        row |= {"ours": us.side.name, "gemm_gflops": _ratio(gemm.speed, 1e6)}
        row |= {"agreement": peer.said.get("agreement") or None, "status": failed.status if failed else "ok"}
        # Round by round: what slowed the machine for a moment slowed both.
        ratios = [] if failed else [theirs / own for theirs, own in zip(peer.times, us.times, strict=True)]
        row |= {"note": failed.note if failed else "", "ratio_quartiles": quartiles(ratios)}
        for side, outcome in {"ours": us, "peer": peer}.items():
            row[f"{side}_quartiles"], row[f"{side}_memory"] = quartiles(outcome.times), outcome.said.get("memory")
            row[f"{side}_cpus"] = statistics.median(outcome.cpus) if outcome.cpus else None
        rows.append(row)
    return rows


def _ratio(a, b):
    return None if a is None or b is None else a / b


def table(result):
    """The machine, and the rows as text: median and quartiles, ratio = peer / ours, ours as a share of the floor."""
    header, rows = result["header"], result["rows"]
    lines = [f"{header['cpu']}, {header['cpus']} CPUs, {header['system']}"]
    lines += [", ".join(f"{name} {v}" for name, v in named.items()) for named in header["versions"].values()]
    for count in header["threads"]:
        speeds = [row["gemm_gflops"] for row in rows if row["threads"] == count and row["gemm_gflops"]]
        if speeds:
            lines.append(f"threads {count}: a matrix product runs at {statistics.median(speeds):.0f} GFLOP/s")
    head = f"{'work':<26}{'threads':>7}  {'peer':<26}{'ours, ms [quartiles]':>26}{'peer, ms [quartiles]':>26}"
    lines += ["", head + f"{'ratio':>8}{'floor':>8}  per"]
    for row in rows:
        line = f"{row['work']:<26}{row['threads']:>7}  {row['peer']:<26}"
        line += f"{_spread(row, 'ours'):>26}{_spread(row, 'peer'):>26}"
        line += f"{row['ratio']:>8.2f}" if row["ratio"] else f"{'-':>8}"
        line += f"{row['floor_share']:>8.0%}" if row["floor_share"] else f"{'-':>8}"
        line += f"  {row['unit']}"
        memory = [f"{row[side] / 1e6:.0f}" for side in ("ours_memory", "peer_memory") if row[side]]
        line += f", memory {' against '.join(memory)} MB" if memory else ""
        lines.append(line + (f"\n    {row['status'].upper()}: {row['note']}" if row["status"] != "ok" else ""))
    starved = min((row[key] for row in rows for key in ("ours_cpus", "peer_cpus") if row[key]), default=1)
    if starved < QUIET:
        lines.append(f"NOT A QUIET MACHINE: one side had {starved:.0%} of a CPU while it ran; do not use these times")
    if header["quick"]:
        lines.append("quick: tiny sizes, to see that all is in order; these times say nothing")
    return "\n".join(lines)


def _spread(row, side):
    if row[f"{side}_ms"] is None:
        return "-"
    low, high = row[f"{side}_quartiles"]
    return f"{row[f'{side}_ms']:.4g} [{low:.4g} {high:.4g}]"


def chart(result):
    """Bars of ratio = peer / ours with quartiles, a panel per number of threads; right of the line the peer is slower.

    Beside every bar both times in milliseconds, or why there is none.
    """
    from matplotlib.figure import Figure

    rows, header = result["rows"], result["header"]
    counts = header["threads"]
    figure = Figure(figsize=(8, 1.2 * len(counts) + 0.3 * max(len(rows), 4)), layout="constrained")
    for ax, count in zip(figure.subplots(len(counts), squeeze=False)[:, 0], counts, strict=True):
        shown = [row for row in rows if row["threads"] == count]
        ratios = [row["ratio"] or 0 for row in shown]
        spread = list(zip(*map(_whiskers, shown), strict=True)) or None
        colors = [plots.COLORS[0 if ratio >= 1 else 1] for ratio in ratios]
        bars = ax.barh(range(len(shown)), ratios, xerr=spread, color=colors, ecolor="grey")
        ax.axvline(1, color="black", lw=1, zorder=0)
        texts = [_times(row) if row["ratio"] else row["status"] for row in shown]
        ax.bar_label(bars, texts, padding=4, fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 0.5})
        ax.set(yticks=range(len(shown)), yticklabels=[f"{row['work']}: {row['peer']}" for row in shown])
        ax.set(xlim=(0, 1.8 * max([1, *ratios])), xlabel="time of the peer / time of enn_np")
        ax.set_title(f"{count} thread{'s' * (count > 1)}" + ", tiny sizes: not a measurement" * header["quick"])
        ax.invert_yaxis()
    return figure


def _whiskers(row):
    """How far the quartiles of the rounds' ratios lie below and above the ratio of the medians."""
    if not row["ratio"]:
        return 0, 0
    low, high = row["ratio_quartiles"]
    return max(row["ratio"] - low, 0), max(high - row["ratio"], 0)


def _times(row):
    style = ".3g" if row["ours_ms"] < 100 else ",.0f"
    return f"{row['ratio']:.2f} = {row['peer_ms']:{style}} / {row['ours_ms']:{style}} ms"


def machine():
    """What the times depend on beside the code."""
    return {"cpu": processor(), "cpus": os.cpu_count(), "system": platform.platform()}


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _load():
    """How busy the machine was in the last minute, if it can tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None

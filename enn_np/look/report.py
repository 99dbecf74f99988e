"""A training run as one HTML file that opens from disk: tables, curves, the trace, and single sequences explained.

    write_report("runs/demo")                   runs/demo/report.html, of summary.json and what else is there
    write_report("recall8-sound-binding-0.json")    recall8-sound-binding-0.html, of a stored result

It reads the summary and, where they are, trace.npz (traces (K, N, H), retrieval (n, T, N), probe (n, T, D) and, for
what needs the truth, labels (n,)) and model.npz; of a result alone the .npz beside it. From associative recall it draws
which past step wrote what is recalled. What is missing or does not fit leaves its part of the page out, and the page
says so. report.html is the page as a Jinja template: tables, style and a script that draws from JSON in the page.

Nothing in a file is trusted: Jinja escapes text, JSON in the page holds no "<", and what is not a finite number is
shown as a dash. A map is bytes in base64: 1 to 255 for values from -limit to limit, or 0 to 255 for those from low to
high. Large arrays are averaged in blocks, so that a page stays below 5 MB.

Letters: K stored traces, n sequences, T time, D inputs, N memory slots, H hidden.
"""

import base64
import json
import math
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..checkpoint import load, read_arrays, spelled_out, write_text
from ..lab.results import read_json
from ..lab.table import PAPER, TITLES
from ..models import Classifier
from . import attribution
from .claims import common_row
from .monitor import slots_per_recall

WANTED = "a folder that `python -m enn_np run --out` or `demo` wrote, or the JSON file of a stored result"
LARGEST = 2**30  # bytes of an array that are read
MOST_MODELS, MOST_EPOCHS = 20, 500
DRAWN = ("models", "history", "trace", "recalled")  # the rest of a summary is shown as it is
CURVES = ("loss", "accuracy", "perplexity", "val_loss", "val_accuracy", "val_perplexity")
STATISTICS = ("min", "max", "mean_abs", "sd", "share_small", "share_clipped", "effective_slots", "drift")
ROWS, COLUMNS, TRACES = 96, 192, 32  # of a map, and of maps in a row: more are averaged, or left out evenly
EXAMPLES, PROBE = 12, 128  # sequences to look at one by one, and to count over
STEPS = 128  # longer sequences are not taken apart step by step: that takes T runs of each
TOLERANCE = 0.05  # of the integrated gradients


def write_report(run_dir, out=None):
    """Write the report of a run directory to `out`, or to report.html in it, and return the path.

    run_dir: what `python -m enn_np run --out` or `demo` wrote, or the JSON file of one stored result, whose page lies
    beside it. Explaining sequences of a stored Engram model takes some seconds. Raises ValueError, naming the file, if
    there is no summary.json or it does not describe a run.
    """
    from jinja2 import Environment

    source, notes = spelled_out(run_dir), []
    if source.suffix != ".json":
        if source.is_file():
            raise ValueError(f"run: {source} is no run; expected {WANTED}")
        source /= "summary.json"
    if alone := source.name != "summary.json":
        trace, network = source.with_suffix(".npz"), source.parent / "runs" / source.stem / "model.npz"
    else:
        trace, network = source.with_name("trace.npz"), source.with_name("model.npz")
    if not source.exists():
        sought = source.parent if source.parent.suffix and not source.parent.exists() else source
        raise ValueError(f"{sought}: no such file; expected {WANTED}")
    summary = read_json(source)
    runs = _runs(source, summary)
    stored = {} if alone and not trace.exists() else _read_trace(trace, notes)
    if stored and all(run["trace"] is None for run in runs.values()):
        notes.append(f"{trace.name} is of another run, as {source.name} tells of no trace, and is left out.")
        stored = {}
    model = _read_model(network, stored, notes)
    history = summary.get("history")
    data = {
        "histories": {title: run["history"] for title, run in runs.items()},
        "statistics": next((run["trace"] for run in runs.values() if run["trace"]), []),
        "examples": _explained(model, stored) if model else _only_stored(stored),
        "slots": _slot_use(model, stored),
        "recalled": _recalled(summary, notes),
        "entry": "validation" if isinstance(history, dict) and "step" in history else "epoch",
    }
    data["trace"] = _trace_maps(stored.get("traces"), data["statistics"])
    scores = data["slots"] and data["slots"].get("ablations")
    title = "{model} on {benchmark}, {protocol} protocol, seed {seed}".format_map(
        {name: _text(summary.get(name), 40) for name in ("model", "benchmark", "protocol", "seed")}
    )
    learned = any(value is not None for run in runs.values() for part in run["history"].values() for value in part)
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    jinja.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    page = jinja.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        title="Engram and its rivals on 5,000 digits" if "models" in summary else title,
        notes=notes,
        results=_results(summary, runs, f"{data['entry']}s"),
        learned=learned,
        configuration=_text(json.dumps({k: v for k, v in summary.items() if k not in DRAWN}, indent=2), 20_000),
        data=data,
        ablations=scores and [_ablation(name, score, scores["intact"]) for name, score in scores.items()],
    )
    return write_text(out or source.with_name(f"{source.stem if alone else 'report'}.html"), page)


# ----------------------------------------------------------------------------------------------- what is in the files


def _runs(path, summary):
    """{title: run} with history {name: numbers} and trace [statistics], whatever the file holds in their place."""
    name = str(summary.get("model", "model"))
    models = summary.get("models", {TITLES.get(name, name): summary})
    if not isinstance(models, dict) or not models or not all(isinstance(run, dict) for run in models.values()):
        raise ValueError(f"{path}: models: expected an object with the numbers of at least one model")
    known = {"test_accuracy", "test_loss", "test_perplexity", "parameters", "history"}
    if not any(known & run.keys() for run in models.values()):
        raise ValueError(f"{path}: it describes no run: none of {', '.join(sorted(known))} is in it")
    runs = {}
    for title, run in list(models.items())[:MOST_MODELS]:
        history, trace = run.get("history"), run.get("trace")
        history = history if isinstance(history, dict) else {}
        trace = trace if isinstance(trace, list) and all(isinstance(each, dict) for each in trace) else []
        numbers = {
            name: [_finite(value) for value in values[:MOST_EPOCHS]]
            for name, values in history.items()
            if name in CURVES and isinstance(values, list)
        }
        kept = [{name: _finite(each.get(name)) for name in STATISTICS} for each in trace[:MOST_EPOCHS]]
        runs[_text(title, 40)] = {**run, "history": numbers, "trace": kept if "trace" in run else None}
    return runs


def _read_trace(path, notes):
    """The arrays of trace.npz that fit their names; of what does not fit, a note."""
    stored = {}
    for name in ("traces", "retrieval", "probe", "labels"):
        try:
            array = read_arrays(path, [name], LARGEST).get(name)
        except FileNotFoundError:
            notes.append("No trace of an Engram network is stored here (trace.npz): all that needs one is left out.")
            return {}
        except ValueError as error:
            notes.append(f"trace.npz: {name} cannot be read ({error}) and is left out.")
            continue
        if array is None:
            continue
        wanted, probe = "three axes of finite numbers", stored.get("probe")
        if name == "labels":
            wanted = "one whole number for each sequence of the probe"
            fits = probe is not None and array.dtype.kind in "iu" and array.shape == probe.shape[:1]
        else:
            fits = array.ndim == 3 and array.size and array.dtype.kind == "f" and np.isfinite(array).all()
        if fits:
            stored[name] = array
        else:
            what = f"{array.dtype} of shape {array.shape}"
            notes.append(f"trace.npz: {name} should be {wanted}, is {what}, and is left out.")
    if len({stored[name].shape[1] for name in ("retrieval", "probe") if name in stored}) > 1:
        notes.append("trace.npz: retrieval and probe differ in length; retrieval is left out.")
        del stored["retrieval"]
    return stored


def _read_model(path, stored, notes):
    """The Engram model of the run, if it is stored and fits the stored sequences; else None."""
    if "probe" not in stored:
        return None
    if not path.exists():
        notes.append("The network is not stored here (model.npz): its sequences are shown without explanation.")
        return None
    try:
        model = load(path)
        if not isinstance(model, Classifier):
            raise ValueError(f"only a classifier's decisions are explained here, got a {type(model).__name__}")
        attribution.alone(model, stored["probe"][:1].astype(model.dtype))
        if "labels" in stored:
            model.check_targets("labels", stored["labels"], len(stored["labels"]))
    except (TypeError, ValueError, OSError) as error:
        notes.append(f"model.npz does not serve ({error}): its sequences are shown without explanation.")
        return None
    return model


# -------------------------------------------------------------------------------------------------------- its tables


RESULTS = {  # heading: name and form of a number
    "test accuracy": ("test_accuracy", ".2%"),
    "test loss (nats)": ("test_loss", ".4f"),
    "test perplexity": ("test_perplexity", ",.1f"),
    "parameters": ("parameters", ",.0f"),
    "training (s)": ("seconds", ",.0f"),
}


def _results(summary, runs, entries):
    """Head and rows, one per model, with the paper's numbers where it has the benchmark. entries: of the histories."""
    benchmark, names = summary.get("benchmark"), {title: name for name, title in TITLES.items()}
    paper = PAPER.get(benchmark) if isinstance(benchmark, str) else None
    shown = {
        heading: (name, form)
        for heading, (name, form) in RESULTS.items()
        if any(_finite(run.get(name)) is not None for run in runs.values())
    }
    rows = []
    for title, run in runs.items():
        sources = (run, paper.get(names.get(title), {})) if paper else (run,)
        cells = [_number(source.get(name), form) for name, form in shown.values() for source in sources]
        epochs = max((len(values) for values in run["history"].values()), default=0)
        best = _number(run.get("best_epoch"), ".0f")
        rows.append([title, *cells, f"{epochs} (best {best})", _text(run.get("stopped"), 20)])
    head = [word for heading in shown for word in ((heading, "paper") if paper else (heading,))]
    return ["model", *head, entries, "ended"], rows


ABLATIONS = {
    "intact": "as trained",
    "trace off": "alpha = 0, the bank alone is read",
    "trace frozen": "nothing is written, the mean trace is read",
    "slots shuffled": "each slot reads another one's trace",
    "entries shuffled": "the trace's numbers in a random order",
}


def _ablation(name, score, intact):
    change = score["loss"] - intact["loss"]
    return (
        f"{name} ({ABLATIONS[name]})",
        f"{score['accuracy']:.1%}",
        f"{score['loss']:.4f}",
        f"{change:+.2g}".replace("-", "−"),
    )


def _finite(value):
    """A number as float, or None for anything else."""
    with suppress(OverflowError):  # of a whole number that no float can hold
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    return None


def _number(value, form):
    value = _finite(value)
    return "–" if value is None else format(value, form)


def _text(value, most):
    text = "–" if value is None else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


# ---------------------------------------------------------------------------------------------- what the script draws


def _trace_maps(traces, statistics):
    """The maps behind the epoch slider, on one scale, or None."""
    if traces is None:
        return None
    K, N, H = traces.shape
    picked = np.unique(np.linspace(0, K - 1, TRACES).round().astype(int))
    limit = float(abs(traces).max()) or 1.0
    numbers = [statistics[k] if len(statistics) == K else {} for k in picked]
    common = [{"common": _digits(common_row(A))} for A in traces[picked].astype(np.float64)]
    return {
        "maps": [_map(traces[k], limit=limit) for k in picked],
        "names": ["untrained" if k == 0 else f"after epoch {k}" for k in picked],
        "statistics": [one | other for one, other in zip(numbers, common, strict=True)],
        "slots": N,
        "hidden": H,
        "averaged": N > ROWS or H > COLUMNS,
    }


def _only_stored(stored):
    """Sequences without a network to explain them."""
    retrieval, shown = stored.get("retrieval", ()), []
    for i, x in enumerate(stored.get("probe", ())[:EXAMPLES]):
        seen = _retrieved(retrieval[i]) if i < len(retrieval) else {}
        shown.append({"name": f"sequence {i + 1}", "steps": len(x), "input": _picture(x), **seen})
    return shown


def _explained(model, stored):
    """One sequence of each class and then mistakes, each run alone, with what attribution tells about each step."""
    probe, labels = stored["probe"][:PROBE].astype(model.dtype), stored.get("labels")
    given = attribution.alone(model, probe)[3]
    classes = given if labels is None else labels[: len(probe)]
    firsts, mistakes = np.unique(classes, return_index=True)[1][:EXAMPLES], np.flatnonzero(classes != given)
    chosen = list(dict.fromkeys([*firsts.tolist(), *mistakes.tolist(), *range(len(probe))]))[:EXAMPLES]
    alone, layer, x, target, _ = attribution.alone(model, probe[chosen])
    cell, params, every, steps = alone.cells[layer], alone.layer_params(layer), range(len(x)), x.shape[1]
    tape = alone.run_cells(alone.time_major(x))[2][layer]
    seen = cell.record(params, tape)
    shares = attribution.integration_shares(attribution.integration_parts(params, seen))
    shown = {
        "name": [f"sequence {index + 1}" for index in chosen],
        "steps": [steps for _ in every],
        "truth": [None if labels is None else str(labels[index]) for index in chosen],
        "target": [str(each) for each in target],
        "input": [_picture(each) for each in x],
        "shares": [{name: _few(part[:, i]) for name, part in shares.items()} for i in every],
        "probabilities": [_few(each) for each in alone.predict_proba(x)],
    }
    if steps <= STEPS:
        shown |= _taken_apart(model, probe, x, target, cell, tape, seen)
    told = [dict(zip(shown, values, strict=True)) for values in zip(*shown.values(), strict=True)]
    return [each | _retrieved(seen["retrieval"][:, i]) for i, each in enumerate(told)]


def _taken_apart(model, probe, x, target, cell, tape, seen):
    """Of each sequence: integrated gradients, changes of the logit, and who wrote what the trace gave to each step."""
    mean = np.repeat(probe.mean(0, keepdims=True), len(x), axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is missing: the page says it of each sequence
        found = attribution.integrated_gradients(model, x, target, baseline=mean, tolerance=TOLERANCE)
    changes = {part: attribution.logit_changes(model, x, target, part) for part in ("trace", "bank")}
    steps = x.shape[1]
    written = np.zeros((len(x), steps, steps))  # read at, written at
    for t, m in enumerate(seen["trace_part"]):
        size = np.maximum((m * m).sum(-1), np.finfo(m.dtype).tiny)
        written[:, t, :t] = ((attribution.written_by(cell, tape, t)["steps"] * m).sum(-1) / size).T
    darkest = float(written[:, steps // 4 :].max()) or 1.0  # the first rows have but few to read from
    return {
        "attribution": [_map(each, limit=float(abs(each).max()) or 1.0) for each in found.x],
        "difference": _few(found.difference),
        "residual": _few(found.residual),
        "written": [_map(each, high=darkest) for each in written],
        "changes": [{part: _few(each[i]) for part, each in changes.items()} for i in range(len(x))],
    }


def _slot_use(model, stored):
    """How much every slot is used, and what is lost without it and without the trace; None if nothing is stored."""
    if model is None:
        a = stored.get("retrieval")
        return None if a is None else {"usage": _few(a.mean((0, 1))), "n": len(a)}
    x = stored["probe"].astype(model.dtype)[: PROBE if model.cells[0].shared else PROBE // 4]  # a trace each is slow
    labels = stored["labels"][: len(x)] if "labels" in stored else model.predict(x)
    tape = model.run_cells(model.time_major(x))[2][attribution.alone(model, x[:1])[1]]
    usage = _few(tape.kept.a.mean((0, 1)))
    found = attribution.ablations(model, x, labels)
    without = attribution.slot_ablation(model, x, labels)["loss"] - found["intact"]["loss"] if len(usage) > 1 else []
    return {"usage": usage, "n": len(x), "truth": "labels" in stored, "without": _few(without), "ablations": found}


def _recalled(summary, notes):
    """Which step wrote what each key of a sequence recalls, for the arcs, or None."""
    if "recalled" not in summary:
        return None
    try:
        words, keys, lengths, asked = attribution.told(summary["recalled"])
        if len(words) > STEPS:
            raise ValueError(f"{len(words)} steps, and at most {STEPS} have room")
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        notes.append(f"What is recalled cannot be drawn ({error!s:.200}) and is left out.")
        return None
    return {"words": words, "keys": keys, "lengths": [_few(row) for row in lengths], "asked": asked}


def _retrieved(a):
    """Retrieval weights (T, N) as a map, the three strongest slots of every step, and effective slots."""
    a = np.asarray(a, np.float64)
    best = np.argsort(-a, axis=1)[:, :3]
    return {
        "retrieval": _map(a, low=float(a.min()), high=float(a.max())),
        "strongest": [[[int(n), _digits(row[n])] for n in slots] for row, slots in zip(a, best, strict=True)],
        "effective": _few(slots_per_recall(a)),
        "slots": a.shape[1],
    }


def _picture(x):
    """The input (T, D) as a map from its least to its largest number; in colours where it can be the rows of a square
    photograph, D = 3 T."""
    colours = x.shape[1] == 3 * x.shape[0]
    shown = _map(x, low=float(x.min()), high=float(x.max()), columns=3 * (COLUMNS // 3) if colours else COLUMNS)
    return {**shown, "kind": "colours" if colours else "grey"}


def _map(values, limit=None, low=0.0, high=1.0, columns=COLUMNS):
    """A matrix as bytes, see above."""
    small = _blocks(_blocks(np.asarray(values, np.float64), ROWS, 0), columns, 1)
    scaled = small / limit * 127 + 128 if limit else (small - low) / ((high - low) or 1.0) * 255
    data = base64.b64encode(scaled.round().clip(0, 255).astype(np.uint8).tobytes()).decode()
    ends = {"limit": _digits(limit)} if limit else {"low": _digits(low), "high": _digits(high)}
    return {"bytes": data, "rows": small.shape[0], "columns": small.shape[1], **ends}


def _blocks(values, most, axis):
    """`values` with at most so many entries along an axis, each the mean of neighbours."""
    size = values.shape[axis]
    if size <= most:
        return values
    edges = np.linspace(0, size, most + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis) / np.expand_dims(np.diff(edges), 1 - axis)


def _few(values):
    return [_digits(value) for value in np.asarray(values).ravel()]


def _digits(value):
    return float(f"{float(value):.4g}")

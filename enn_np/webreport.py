"""A training run as one HTML file that opens from disk: tables, curves, the trace, and single sequences explained.

    write_report("runs/demo")                   runs/demo/report.html, of summary.json and what else is there
    write_report("recall8-sound-binding-0.json")    recall8-sound-binding-0.html, of a stored result

It reads the summary and, where they are, trace.npz (traces (K, N, H), retrieval (n, T, N), probe (n, T, D) and, for
what needs the truth, labels (n,)) and model.npz; of a result alone the .npz beside it. From associative recall it draws
which past step wrote what is recalled. What is missing or does not fit leaves its part of the page out, and the page
says so. webreport.html is the page as a Jinja template: tables, style and a script that draws curves, and the maps of
explained.py, from JSON in the page.

Nothing in a file is trusted: Jinja escapes text, JSON in the page holds no "<", and what is not a finite number is
shown as a dash.
"""

import json
import math
from pathlib import Path

import numpy as np

from . import attribution, explained
from .checkpoint import read_arrays
from .models import Classifier, load
from .protocols import PAPER, TITLES, read_json
from .storage import spelled_out, write_text

WANTED = "a folder that `python -m enn_np train` or `demo` wrote, or the JSON file of a stored result"
LARGEST = 2**30  # bytes of an array that are read
MOST_MODELS, MOST_EPOCHS, MOST_SETTINGS = 20, 500, 300
CURVES = ("loss", "accuracy", "perplexity", "val_loss", "val_accuracy", "val_perplexity")
STATISTICS = ("min", "max", "mean_abs", "sd", "share_small", "share_clipped", "effective_slots", "drift")


def write_report(run_dir, out=None):
    """Write the report of a run directory to `out`, or to report.html in it, and return the path.

    run_dir: what `python -m enn_np train` or `demo` wrote, or the JSON file of one stored result, whose page lies
    beside it. Explaining sequences of a stored Engram model takes some seconds. Raises ValueError, naming the file, if
    there is no summary.json or it does not describe a run.
    """
    from jinja2 import Environment

    run_dir, notes = spelled_out(run_dir), []
    run_dir = run_dir.parent if run_dir.name == "summary.json" else run_dir
    if run_dir.suffix != ".json" and run_dir.is_file():
        raise ValueError(f"run: {run_dir} is no run; expected {WANTED}")
    if alone := run_dir.suffix == ".json":
        source, page_path = run_dir, run_dir.with_suffix(".html")
        trace, network = run_dir.with_suffix(".npz"), run_dir.parent / "runs" / run_dir.stem / "model.npz"
    else:
        source, page_path = run_dir / "summary.json", run_dir / "report.html"
        trace, network = run_dir / "trace.npz", run_dir / "model.npz"
    if not source.exists():
        sought = run_dir if run_dir.suffix and not run_dir.exists() else source
        raise ValueError(f"{sought}: no such file; expected {WANTED}")
    summary = read_json(source)
    runs = _runs(source, summary)
    stored = {} if alone and not trace.exists() else _read_trace(trace, notes)
    if stored and all(run["trace"] is None for run in runs.values()):
        notes.append(f"{trace.name} is of another run, as {source.name} tells of no trace, and is left out.")
        stored = {}
    model = _read_model(network, stored, notes)
    history = summary.get("history")
    statistics = next((run["trace"] for run in runs.values() if run["trace"]), [])
    data = {
        "histories": {title: run["history"] for title, run in runs.items()},
        "statistics": statistics,
        "trace": explained.trace_maps(stored.get("traces"), statistics),
        "examples": explained.examples(model, stored),
        "slots": explained.slot_use(model, stored),
        "recalled": explained.recalled(summary, notes),
        "entry": "validation" if isinstance(history, dict) and "step" in history else "epoch",
    }
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    jinja.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    page = jinja.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        title=_title(summary),
        notes=notes,
        results=_results(summary, runs, f"{data['entry']}s"),
        settings=_settings(summary),
        whole=_text(json.dumps(summary, indent=1), 20_000),
        data=data,
    )
    return write_text(page_path if out is None else out, page)


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
        history = history.items() if isinstance(history, dict) else ()
        trace = trace if isinstance(trace, list) and all(isinstance(each, dict) for each in trace) else []
        history = [(name, values) for name, values in history if name in CURVES and isinstance(values, list)]
        numbers = {name: [_finite(value) for value in values[:MOST_EPOCHS]] for name, values in history}
        kept = [{name: _finite(each.get(name)) for name in STATISTICS} for each in trace[:MOST_EPOCHS]]
        runs[_text(title, 40)] = {**run, "history": numbers, "trace": kept if "trace" in run else None}
    return runs


def _read_trace(path, notes):
    """The arrays of trace.npz that fit their names; of what does not fit, a note."""
    stored = {}
    for name in ("traces", "retrieval", "probe", "labels"):
        try:
            stored |= read_arrays(path, [name], LARGEST)
        except FileNotFoundError:
            notes.append("No trace of an Engram network is stored here (trace.npz): all that needs one is left out.")
            return {}
        except ValueError as error:
            notes.append(f"trace.npz: {name} cannot be read ({error}) and is left out.")
    for name in ("traces", "retrieval", "probe"):
        array = stored.get(name, np.ones((1, 1, 1)))
        if array.ndim != 3 or not array.size or array.dtype.kind != "f" or not np.isfinite(array).all():
            what = f"{array.dtype} of shape {array.shape}"
            notes.append(f"trace.npz: {name} should be three axes of finite numbers, is {what}, and is left out.")
            del stored[name]
    retrieval, probe, labels = (stored.get(name) for name in ("retrieval", "probe", "labels"))
    if probe is not None and retrieval is not None and retrieval.shape[1] != probe.shape[1]:
        notes.append("trace.npz: retrieval and probe differ in length; retrieval is left out.")
        del stored["retrieval"]
    if labels is not None and (probe is None or labels.dtype.kind not in "iu" or labels.shape != probe.shape[:1]):
        notes.append("trace.npz: labels should be one whole number for each sequence of the probe, and are left out.")
        del stored["labels"]
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


def _title(summary):
    if "models" in summary:
        return "Engram and its rivals on 5,000 digits"
    words = [summary.get(name) for name in ("model", "benchmark", "protocol", "seed")]
    model, benchmark, protocol, seed = (_text(word, 40) for word in words)
    return f"{model} on {benchmark}, {protocol} protocol, seed {seed}"


COLUMNS_OF_RESULTS = (
    ("test accuracy", "test_accuracy", ".2%"),
    ("test loss (nats)", "test_loss", ".4f"),
    ("test perplexity", "test_perplexity", ",.1f"),
    ("parameters", "parameters", ",.0f"),
    ("training (s)", "seconds", ",.0f"),
)


def _results(summary, runs, entries):
    """Head and rows, one per model, with the paper's numbers where it has the benchmark. entries: of the histories."""
    benchmark, names = summary.get("benchmark"), {title: name for name, title in TITLES.items()}
    paper = PAPER.get(benchmark) if isinstance(benchmark, str) else None
    columns = [
        each for each in COLUMNS_OF_RESULTS if any(_finite(run.get(each[1])) is not None for run in runs.values())
    ]
    head = [word for name, _, _ in columns for word in ((name, "paper") if paper else (name,))]
    rows = []
    for title, run in runs.items():
        sources = (run, paper.get(names.get(title), {})) if paper else (run,)
        cells = [_number(source.get(key), form) for _, key, form in columns for source in sources]
        epochs = max((len(values) for values in run["history"].values()), default=0)
        best = _number(run.get("best_epoch"), ".0f")
        rows.append([title, *cells, f"{epochs} (best {best})", _text(run.get("stopped"), 20)])
    return ["model", *head, entries, "ended"], rows


def _settings(summary):
    """What was asked for and on what machine, flattened: {group: rows}."""
    groups = {"run": []}
    for name, value in summary.items():
        if name in ("settings", "sequences", "config", "machine"):
            groups[name] = _flat("", value)
        elif name not in ("models", "history", "trace", "recalled"):
            groups["run"] += _flat(name, value)
    return {
        group: [(_text(name, 80), _text(value, 120)) for name, value in rows[:MOST_SETTINGS]]
        for group, rows in groups.items()
    }


def _flat(name, value, depth=0):
    """(dotted name, value) of everything in nested objects and lists."""
    if depth < 5 and isinstance(value, dict):
        return [row for key, each in value.items() for row in _flat(f"{name}.{key}".lstrip("."), each, depth + 1)]
    if depth < 5 and isinstance(value, list):
        return [row for i, each in enumerate(value[:50]) for row in _flat(f"{name}[{i}]", each, depth + 1)]
    return [(name, value)]


def _finite(value):
    """A number as float, or None for anything else."""
    try:
        value = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        value = math.inf
    return value if math.isfinite(value) else None


def _number(value, form):
    value = _finite(value)
    return "–" if value is None else format(value, form)


def _text(value, most):
    text = "–" if value is None else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"

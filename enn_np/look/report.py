"""A training run as one HTML file that opens from disk: tables, curves, the trace, and single sequences explained.

    write_report("runs/demo")                   runs/demo/report.html, of summary.json and what else is there
    write_report("recall8-sound-binding-0.json")    recall8-sound-binding-0.html, of a stored result

It reads the summary and, where they are, trace.npz (traces (K, N, H), retrieval (n, T, N), probe (n, T, D) and, for
what needs the truth, labels (n,)) and model.npz; of a result alone the .npz beside it. A summary that does not fit is
refused; another file that is missing or does not fit is left out, and the page says so. report.html is its template.

Letters: K stored traces, n sequences, T time, D inputs, N memory slots, H hidden.
"""

import base64
import io
import json
import warnings

import numpy as np
from jinja2 import Environment, PackageLoader

from .. import checks
from ..checkpoint import load, read_arrays, spelled_out, write_text
from ..lab.results import read_json
from ..lab.table import PAPER, TITLES
from ..models import Classifier, class_labels
from . import attribution, plots
from .claims import common_row
from .monitor import HebbianTraceMonitor, slots_per_recall

JINJA = Environment(loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
NO_TRACE = "No trace of an Engram network is stored here (trace.npz): all that needs one is left out."
NO_MODEL = "The network is not stored here (model.npz): its sequences are shown without explanation."
WANTED = "a folder that `python -m enn_np run --out` or `demo` wrote, or the JSON file of a stored result"
LARGEST = 2**30  # bytes of an array that are read
DRAWN = ("models", "history", "trace", "recalled")  # the rest of a summary is shown as it is
ROWS, COLUMNS, TRACES = 96, 192, 32  # of a map, and of maps in a row: more are averaged, or left out evenly
EXAMPLES, WORST, PROBE = 16, 6, 128  # sequences to look at one by one, errors among them, and sequences to count over
STEPS = 128  # longer sequences are not taken apart step by step: that takes T runs of each
RESULTS = {  # name of a number: heading and form
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "test_loss": ("test loss (nats)", "{:.4f}"),
    "test_perplexity": ("test perplexity", "{:,.1f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "seconds": ("training (s)", "{:,.0f}"),
}
PARTS = dict(zip(("cue", "bank", "trace", "past", "bias"), plots.COLORS, strict=False))  # of c, and their colours


def write_report(run_dir, out=None):
    """Write the report of a run directory to `out`, or to report.html in it, and return the path.

    run_dir: what `python -m enn_np run --out` or `demo` wrote, or the JSON file of one stored result, whose page lies
    beside it. Raises ValueError, naming the file, if there is no summary.json or it does not describe a run.
    """
    source = spelled_out(run_dir)
    source = source / "summary.json" if source.is_dir() else source
    if source.suffix != ".json" or not source.is_file():
        raise ValueError(f"{source}: no run is there; expected {WANTED}")
    name = "report" if source.name == "summary.json" else source.stem
    page = JINJA.get_template("report.html").render(contents(source), PARTS=PARTS, drawn=_drawn, plots=plots)
    return write_text(out or source.with_name(f"{name}.html"), page)


def contents(source):
    """What the template shows of the run or stored result whose summary is the file `source`."""
    summary, notes, alone = read_json(source), [], source.name != "summary.json"
    runs = _runs(source, summary)
    trace = source.with_suffix(".npz") if alone else source.with_name("trace.npz")
    stored = _optional(_read_trace, notes, [] if alone else [NO_TRACE], trace, runs) or {}
    network = source.parent / (f"runs/{source.stem}" if alone else "") / "model.npz"
    model = _optional(_read_model, notes, [NO_MODEL], network, stored) if "probe" in stored else None
    title = "Engram and its rivals on 5,000 digits" if "models" in summary else "{} on {}, {} protocol, seed {}"
    history = {title: run["history"] for title, run in runs.items() if run.get("history")}
    entry = "validation" if any("step" in each for each in history.values()) else "epoch"
    statistics = next((run["trace"] for run in runs.values() if run.get("trace")), [])
    return {
        "title": title.format(*(summary.get(name, "–") for name in ("model", "benchmark", "protocol", "seed"))),
        "slots": _slot_use(model, stored),
        "notes": notes,
        "entry": entry,
        "results": _results(summary, runs, f"{entry}s"),
        "recalled": _recalled(summary["recalled"]) if "recalled" in summary else None,
        "curves": _curves(history),
        "trace": _trace_maps(stored.get("traces"), statistics),
        "statistics": statistics,
        "errors": (errors := _errors(model, stored) if model and "labels" in stored else None),
        "examples": _examples(model, stored, errors),
        "steps": stored["probe"].shape[1] if "probe" in stored else 0,
        "configuration": json.dumps({k: v for k, v in summary.items() if k not in DRAWN}, indent=2)[:20_000],
    }


def _runs(path, summary):
    """{title: run} of a summary. Raises ValueError where it tells of no run, or a number that is drawn is none."""
    name = str(summary.get("model", "model"))
    runs = summary.get("models", {TITLES.get(name, name): summary})
    try:
        for run in runs.values():
            rows = [run[name] for name in RESULTS if name in run], *(run.get("history") or {}).values()
            rows = *rows, *(each.values() for each in run.get("trace") or [])
            fits = all(isinstance(each, int | float) and abs(each) < 1e300 for row in rows for each in row)
            if not fits or not run.keys() & {"history", *RESULTS}:
                raise TypeError
        if runs:
            return runs
    except (AttributeError, TypeError):
        pass
    wanted = f"expected one of history, {', '.join(RESULTS)}, and finite numbers there and in trace"
    raise ValueError(f"{path}: it describes no run: {wanted}; run again, or use another copy")


def _optional(read, notes, missing, path, *more):
    """What `read` makes of a file; where there is none, or it does not fit, None and a note. missing: notes of none."""
    try:
        return read(path, *more)
    except FileNotFoundError:
        notes += missing
    except (TypeError, ValueError, OSError) as error:
        notes.append(f"{path.name} does not fit, and all that needs it is left out ({error}).")


def _read_trace(path, runs):
    """The arrays of trace.npz, each of them fit for its name."""
    stored = read_arrays(path, ["traces", "probe", "retrieval", "labels"], LARGEST)
    if not any("trace" in run for run in runs.values()):
        raise ValueError("it is of another run, as the summary tells of no trace")
    n, T = stored["probe"].shape[:2] if "probe" in stored else (0, "T")
    for name, axes in (("traces", "KNH"), ("probe", "nTD"), ("retrieval", ("n", T, "N"))):
        if name in stored:
            checks.float_array(name, stored[name], axes)
    if n and "labels" in stored:
        class_labels("labels", stored["labels"], (n,), 2**31)
    return stored


def _read_model(path, stored):
    """The Engram model of the run, fit for the stored sequences."""
    model = load(path)
    if not isinstance(model, Classifier):
        raise ValueError(f"only a classifier's decisions are explained here, got a {type(model).__name__}")
    attribution.alone(model, stored["probe"][:1])
    if "labels" in stored:
        model.check_targets("labels", stored["labels"], len(stored["labels"]))
    return model


def _results(summary, runs, entries):
    """Head and rows, one per model, with the paper's numbers where it has the benchmark. entries: of the histories."""
    paper = {TITLES[name]: numbers for name, numbers in PAPER.get(str(summary.get("benchmark")), {}).items()}
    known, rows = [name for name in RESULTS if any(name in run for run in runs.values())], []
    for title, run in runs.items():
        cells, theirs = [title], paper.get(title, {})
        for name in known:
            form = RESULTS[name][1]
            ours = form.format(run[name]) if name in run else "–"
            cells.append(f"{ours} (paper: {form.format(theirs[name])})" if theirs.get(name) else ours)
        epochs = max(map(len, (run.get("history") or {}).values()), default=0)
        rows.append([*cells, f"{epochs} (best {run.get('best_epoch') or '–'})", run.get("stopped", "–")])
    return ["model", *(RESULTS[name][0] for name in known), entries, "ended"], rows


def _curves(histories):
    """A chart of every metric in {title: history}: training and validation of one model, or validation of several."""
    charts, one = {}, len(histories) == 1
    for metric, unit in (("loss", " (nats)"), ("accuracy", ""), ("perplexity", "")):
        found = {"validation" if one else name: each.get(f"val_{metric}") for name, each in histories.items()}
        if one:
            found["training"] = next(iter(histories.values())).get(metric)
        if lines := {name: numbers for name, numbers in found.items() if numbers}:
            charts[f"{'' if one else 'validation '}{metric}{unit}".capitalize()] = lines
    return charts


def _trace_maps(traces, statistics):
    """The maps behind the epoch slider, on one scale, and the numbers of each; or None."""
    if traces is None:
        return None
    (K, N, H), limit = traces.shape, abs(traces).max()
    picked = np.unique(np.linspace(0, K - 1, TRACES).round().astype(int)).tolist()
    known = statistics if len(statistics) == K else [{}] * K
    return {
        "names": ["untrained" if k == 0 else f"after epoch {k}" for k in picked],
        "maps": [_map(traces[k], "RdBu_r", limit) for k in picked],
        "numbers": [known[k] | {"common": common_row(traces[k].astype(float))} for k in picked],
        "size": f"Down: {N} memory slots. Across: {H} hidden units."
        + " Neighbours are averaged to fit." * (N > ROWS or H > COLUMNS),
    }


def _errors(model, stored):
    """How often what is read as what, each sequence alone, and the worst errors first."""
    x, truth = stored["probe"][:PROBE], stored["labels"][:PROBE]
    p = attribution.alone(model, x, target=0)[0].predict_proba(x)  # (n, classes); no target is asked for
    given, classes = p.argmax(1), range(p.shape[1])
    rows = [[k, *np.bincount(given[truth == k], minlength=len(classes)).tolist()] for k in classes]
    wrong = sorted(np.flatnonzero(given != truth).tolist(), key=lambda i: p[i, truth[i]])  # by what the truth was given
    return {"n": len(x), "wrong": len(wrong), "confusion": (["", *classes], rows), "worst": wrong[:WORST]}


def _examples(model, stored, errors):
    """Sequences to look at one by one: with a network explained, else what is stored of them."""
    if "probe" not in stored:
        return []
    probe, labels, a = stored["probe"][:PROBE], stored.get("labels"), stored.get("retrieval", ())
    chosen, told = range(min(EXAMPLES, len(probe))), {}
    if model:  # the worst errors, and then one sequence of each class
        classes = attribution.alone(model, probe)[3] if labels is None else labels[: len(probe)]
        firsts = np.unique(classes, return_index=True)[1].tolist()
        chosen = list(dict.fromkeys([*(errors["worst"] if errors else ()), *firsts, *range(len(probe))]))[:EXAMPLES]
        a, told = _explained(model, probe, probe[chosen])
        told |= {} if labels is None else {"truth": labels[chosen]}
    examples = []
    for i, index in enumerate(chosen):
        x, each = probe[index], _of(told, i)
        colours = "" if x.shape[1] == 3 * x.shape[0] else "gray"  # the rows of a square photograph
        each |= {"number": index + 1, "input": _map(x, colours, x.max(), x.min())}
        if i < len(a):
            strongest = [[(slot, row[slot]) for slot in np.argsort(-row)[:3]] for row in a[i]]
            each |= {"slots": a[i].shape[1], "strongest": strongest, "effective": slots_per_recall(a[i])}
            each["retrieval"] = _map(a[i], "cividis", a[i].max(), a[i].min())
        examples.append(each)
    return examples


def _of(told, i):
    """Number i of all arrays in nested dicts."""
    return {name: _of(each, i) if isinstance(each, dict) else each[i] for name, each in told.items()}


def _explained(model, probe, x):
    """What attribution tells of sequences x (n, T, D), each run alone: retrieval weights, and {name: n values}."""
    alone, layer, x, target, _ = attribution.alone(model, x)
    cell, params, T = alone.cells[layer], alone.layer_params(layer), x.shape[1]
    tape = alone.run_cells(alone.time_major(x))[2][layer]
    seen = cell.record(params, tape)
    shares = attribution.integration_shares(attribution.integration_parts(params, seen))
    likely = [[(k, p[k]) for k in np.argsort(-p)[:5]] for p in alone.predict_proba(x)]
    told = {"target": target, "likely": likely, "shares": {part: share.T for part, share in shares.items()}}
    if T <= STEPS:
        mean = np.repeat(probe.mean(0, keepdims=True, dtype=x.dtype), len(x), axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what is missing: the page says it of each sequence
            found = attribution.integrated_gradients(model, x, target, baseline=mean, tolerance=0.05)
        written = np.zeros((len(x), T, T))  # read at, written at
        for t, recalled in enumerate(np.linalg.norm(seen["trace_part"], axis=-1)):
            written[:, t, :t] = attribution.written_lengths(cell, tape, t) / (recalled + (recalled == 0))[:, None]
        strongest = written[:, T // 4 :].max()  # the first rows have but few to read from
        told |= {
            "attribution": [_map(part, "RdBu_r", abs(part).max()) for part in found.x],
            "difference": found.difference,
            "residual": found.residual,
            "changes": {part: attribution.logit_changes(model, x, target, part) for part in ("bank", "trace")},
            "written": [_map(each, "cividis", strongest, 0) for each in written],
        }
    return seen["retrieval"].swapaxes(0, 1), told


def _slot_use(model, stored):
    """How much every slot is used, and what is lost without it and without the trace; None if nothing is stored."""
    a, without, rows = stored.get("retrieval"), [], []
    if model:
        most = PROBE if model.cells[0].shared else PROBE // 4  # a trace each is slow
        x = stored["probe"][:most]
        labels = stored["labels"][:most] if "labels" in stored else model.predict(x)
        a, found = HebbianTraceMonitor(model, x).retrieval, attribution.ablations(model, x, labels)
        intact = found["intact"]["loss"]
        without = attribution.slot_ablation(model, x, labels)["loss"] - intact if a.shape[2] > 1 else []
        scores = [(name, score["accuracy"], score["loss"]) for name, score in found.items()]
        rows = [(name, f"{right:.1%}", f"{loss:.4f}", f"{loss - intact:+.2g}") for name, right, loss in scores]
    if a is None:
        return None
    return {"n": len(a), "truth": "labels" in stored, "use": a.mean((0, 1)), "without": without, "ablations": rows}


def _recalled(found):
    """Of each key of a sequence: its name, the arcs to the steps that wrote what it recalls, and the best of these."""
    words, keys, lengths, asked = attribution.told(found)
    told = []
    for key, parts in zip(keys, lengths, strict=True):
        s, whole = parts.argmax(), parts.sum() or 1
        after = f" after {words[s - 1]}" if s else ""
        what = f"{parts[s] / whole:.1%} of what is recalled was written at step {s + 1}, which read {words[s]}{after}"
        told.append(f"Asked for {key}: {what}.")
    arcs = [_png(plots.arcs(words, keys, lengths, q).savefig, dpi=100) for q in range(len(keys))]
    return {"keys": keys, "asked": asked, "told": told, "arcs": arcs}


def _map(values, colours, high, low=None):
    """A matrix as a picture: numbers from low, or -high, to high in matplotlib's `colours`, or three as one pixel."""
    from matplotlib import colormaps
    from PIL import Image  # which matplotlib needs

    high = high or 1.0
    low = -high if low is None else low
    scaled = np.uint8(((values - low) / ((high - low) or 1) * 255).round().clip(0, 255))
    image = Image.fromarray(scaled if colours else scaled.reshape(len(scaled), -1, 3))
    image = image.resize((min(image.width, COLUMNS), min(image.height, ROWS)), Image.Resampling.BOX)
    if colours:
        image.putpalette(colormaps[colours](range(256), bytes=True)[:, :3].tobytes())
    square = image.width == image.height
    return {"src": _png(image.save), "colours": colours, "low": float(low), "high": float(high), "square": square}


def _drawn(lines, across, first, level):
    """A chart of {name: numbers} over what is counted from `first` on, as a picture."""
    (ax,) = plots.panels(1, (4.2, 2.4))
    for name, i in plots.numbers(lines).items():
        plots.line(ax, i, range(first, first + len(lines[name])), lines[name], name)
    if level is not None:
        ax.axhline(level, color="grey", ls="--")
    plots.finish(ax, "", across)
    return _png(ax.figure.savefig, dpi=150)


def _png(save, **settings):
    """What is saved as the address of a picture that is part of the page."""
    file = io.BytesIO()
    save(file, format="png", **settings)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

"""What the report shows of a network, as plain numbers: its trace after each epoch, and single sequences explained.

Each part is made for JSON and for the script of webreport.html, which draws it. A map is bytes in base64: 1 to 255 for
values from -limit to limit, or 0 to 255 for those from low to high. Large arrays are averaged in blocks, so that a page
stays below 5 MB.

Letters: K stored traces, n sequences, T time, D inputs, N memory slots, H hidden.
"""

import base64
import warnings

import numpy as np

from . import attribution
from .arcs import told
from .claims import common_row

ROWS, COLUMNS, TRACES = 96, 192, 32  # of a map, and of maps in a row: more are averaged, or left out evenly
EXAMPLES, PROBE = 12, 128  # sequences to look at one by one, and to count over
STEPS = 128  # longer sequences are not taken apart step by step: that takes T runs of each
TOLERANCE = 0.05  # of the integrated gradients


def trace_maps(traces, statistics):
    """The maps behind the epoch slider, on one scale, or None."""
    if traces is None:
        return None
    picked = np.unique(np.linspace(0, len(traces) - 1, TRACES).round().astype(int))
    limit = float(abs(traces).max()) or 1.0
    names = ["untrained" if k == 0 else f"after epoch {k}" for k in picked]
    common = [common_row(A) for A in traces[picked].astype(np.float64)]
    numbers = [statistics[k] if len(statistics) == len(traces) else {} for k in picked]
    numbers = [{**each, "common": _digits(share)} for each, share in zip(numbers, common, strict=True)]
    maps = [_map(traces[k], limit=limit) for k in picked]
    return {"maps": maps, "names": names, "statistics": numbers, "slots": traces.shape[1], "hidden": traces.shape[2]}


def examples(model, stored):
    """What the page shows of single sequences: with a model explained, else only what is stored."""
    if model is not None:
        return _explained(model, stored["probe"][:PROBE].astype(model.dtype), stored.get("labels"))
    probe, shown = stored.get("probe", np.zeros((0, 1, 1))), []
    for i, x in enumerate(probe[:EXAMPLES]):
        example = {"name": f"sequence {i + 1}", "steps": len(x), "input": _picture(x)}
        if "retrieval" in stored and i < len(stored["retrieval"]):
            example |= _retrieved(stored["retrieval"][i])
        shown.append(example)
    return shown


def _explained(model, probe, labels):
    """Sequences of every class, and mistakes, each run alone, with what attribution tells about each step."""
    _, _, _, given, _ = attribution.alone(model, probe)
    chosen = _choose(given, labels)
    x = probe[chosen]
    alone, layer, _, target, _ = attribution.alone(model, x)
    cell, params = alone.cells[layer], alone.layer_params(layer)
    tape = alone.run_cells(alone.time_major(x))[2][layer]
    seen = cell.record(params, tape)
    shares = attribution.integration_shares(attribution.integration_parts(params, seen))
    likely = alone.predict_proba(x)
    taken_apart = _taken_apart(model, probe, x, target, cell, tape, seen) if x.shape[1] <= STEPS else None
    shown = []
    for i, index in enumerate(chosen):
        example = {
            "name": f"sequence {index + 1}",
            "steps": x.shape[1],
            "truth": None if labels is None else str(labels[index]),
            "target": str(target[i]),
            "input": _picture(x[i]),
            "shares": {name: _few(share[:, i] if share.ndim == 2 else share) for name, share in shares.items()},
            "probabilities": _few(likely[i]),
            **_retrieved(seen["retrieval"][:, i]),
        }
        if taken_apart:
            example |= {name: value[i] for name, value in taken_apart.items()}
        shown.append(example)
    return shown


def _choose(given, labels):
    """Indices of one sequence of each class, in their order, then of mistakes."""
    classes = given if labels is None else labels[: len(given)]
    firsts = [int(np.argmax(classes == each)) for each in np.unique(classes)][:EXAMPLES]
    mistakes = [] if labels is None else [int(i) for i in np.flatnonzero(classes != given)]
    others = [i for i in (*mistakes, *range(len(given))) if i not in firsts]
    return [*firsts, *dict.fromkeys(others)][:EXAMPLES]


def _taken_apart(model, probe, x, target, cell, tape, seen):
    """Per sequence: integrated gradients, changes of the logit, and who wrote what the trace gave to each step."""
    mean = np.repeat(probe.mean(0, keepdims=True), len(x), axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is missing: the page says it of each sequence
        found = attribution.integrated_gradients(model, x, target, baseline=mean, tolerance=TOLERANCE)
    changes = {part: attribution.logit_changes(model, x, target, part) for part in ("trace", "bank")}
    steps = x.shape[1]
    written = np.zeros((steps, steps, len(x)))  # read at, written at
    for t, m in enumerate(seen["trace_part"]):
        size = np.maximum((m * m).sum(-1), np.finfo(m.dtype).tiny)
        written[t, :t] = (attribution.written_by(cell, tape, t)["steps"] * m).sum(-1) / size
    darkest = float(written[steps // 4 :].max()) or 1.0  # the first rows have but few to read from, and read them alone
    return {
        "attribution": [_map(each, limit=float(abs(each).max()) or 1.0) for each in found.x],
        "difference": [_digits(value) for value in found.difference],
        "residual": [_digits(value) for value in found.residual],
        "written": [_map(written[..., i], low=0.0, high=darkest) for i in range(len(x))],
        "changes": [{part: _few(each[i]) for part, each in changes.items()} for i in range(len(x))],
    }


def slot_use(model, stored):
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


def recalled(summary, notes):
    """Which step wrote what each key of a sequence recalls, for the arcs, or None."""
    if "recalled" not in summary:
        return None
    try:
        words, keys, lengths, asked = told(summary["recalled"])
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        notes.append(f"What is recalled cannot be drawn ({error!s:.200}) and is left out.")
        return None
    if len(words) > STEPS:
        notes.append(f"What is recalled is left out: {len(words)} steps, and at most {STEPS} can be drawn.")
        return None
    return {"words": words, "keys": keys, "lengths": [_few(row) for row in lengths], "asked": asked}


def _retrieved(a):
    """Retrieval weights (T, N) as a map, the three strongest slots of every step, and effective slots."""
    a = np.asarray(a, np.float64)
    best = np.argsort(-a, axis=1)[:, :3]
    effective = np.exp(-(a * np.log(np.maximum(a, np.finfo(float).tiny))).sum(-1))
    return {
        "retrieval": _map(a, low=float(a.min()), high=float(a.max())),
        "strongest": [[[int(n), _digits(row[n])] for n in slots] for row, slots in zip(a, best, strict=True)],
        "effective": _few(effective),
        "slots": a.shape[1],
    }


def _picture(x):
    """The input (T, D) as a map from its least to its largest number; in colours where it can be the rows of a square
    photograph, D = 3 T."""
    low, high = float(x.min()), float(x.max())
    if x.shape[1] == 3 * x.shape[0]:
        return {**_map(x, low=low, high=high, columns=3 * (COLUMNS // 3)), "kind": "colours"}
    return {**_map(x, low=low, high=high), "kind": "grey"}


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

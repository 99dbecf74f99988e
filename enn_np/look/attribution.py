"""What the memory has to do with a decision: splits, ablations and attributions, exact wherever they can be.

    m_t = a_t M + alpha a_t A_{t-1}                                                     (2) in (5): bank + trace
    c_t = ReLU( z_t W_cz + (a_t M + alpha a_t A_{t-1}) W_cm + h_{t-1} W_ch + b_c )      (6) by blocks of rows of W_c
    A_t = (1 - eta)^t A_0 + sum_{s <= t} (1 - eta)^(t-s) ( A_s - (1 - eta) A_{s-1} )    in the bracket: what s wrote

While the clip is inactive, (9) says that the bracket is eta (D_s + eps_s). With the third line in the first, and a
trace per sample, D_s = a_s' z_s, what the trace gives to step t is then a linear attention over the cues of the past:

    alpha a_t A_{t-1} = alpha (1 - eta)^(t-1) a_t A_0 + alpha eta sum_{s < t} (1 - eta)^(t-1-s) <a_t, a_s> z_s + noise

What a run did is told by `cell.record(params, tape)`. Functions of a model take x (n, T, D) and mask (n, T) as `fit`
does, draw nothing at random, and look at the first Engram layer; a class of yours may work otherwise, and is refused.
Padding is as if it were not there: it gets nothing.
Letters: n sequences, T time, B batch, D inputs, H hidden, N memory slots.
"""

import copy
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from string import ascii_letters
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..backend import array_module, to_numpy
from ..binding import Binding
from ..bptt import Tape, at, hold, run
from ..cells import Traced
from ..engram import Engram
from ..models import Classifier, Regressor, StepClassifier, class_labels
from ..ops import read, relu
from .monitor import engram_layer

VALUES = 10  # of associative recall


def integration_parts(params, seen):
    """What goes into c_t of (6) before its ReLU, by where it comes from: cue, bank, trace, past, (T, B, 3H) each, and
    bias (3H,). Their sum is the whole. seen: what `record` of an Engram cell hands back."""
    H, W_c = seen["codes"].shape[-1], params["W_c"]
    return {
        "cue": seen["codes"] @ W_c[:H],
        "bank": seen["bank_part"] @ W_c[H : 2 * H],
        "trace": seen["trace_part"] @ W_c[H : 2 * H],
        "past": seen["hidden"][:-1] @ W_c[2 * H :],
        "bias": params["b_c"],
    }


def integration_shares(parts):
    """Each part's share of |c_t|^2, (T, B): <part, c> / <c, c>, below 0 where it works against the rest. c = ReLU(u) is
    zero where the sum u of the parts is negative, so <u, c> = <c, c> and the shares add up to 1 (0 if all of c is)."""
    xp, c = array_module(parts["cue"]), relu(sum(parts.values()))
    size = (c * c).sum(-1)
    return {name: (part * c).sum(-1) / xp.where(size > 0, size, 1) for name, part in parts.items()}


def written_by(cell, tape, t):
    """What the trace gives to m_t, by the step that wrote it: (9), or (7) of Binding, unrolled. t counts from 0.

    Returns start (B, H), what is left of the initial trace; steps (t, B, H), written at s = 0 to t - 1; and rest
    (B, H), what noise and the clip changed, or a class of yours. They add up to the trace part. They are vectors: any
    linear functional of m_t, such as a gradient, splits with them. At padding nothing is written and nothing fades.
    Raises TypeError for what is not the tape of such a cell in one segment, ValueError for a t beyond its steps.
    """
    if not isinstance(cell, Engram | Binding) or not isinstance(tape, Tape):
        wanted = "an Engram or Binding cell and the tape of one segment"
        raise TypeError(f"cell, tape: expected {wanted}, got {type(cell).__name__} and {type(tape).__name__}")
    if checks.count("t", t, low=0) >= len(tape.x):
        raise ValueError(f"t: expected a step from 0 to {len(tape.x) - 1}, got {t}")
    xp, A, a_t, binding = array_module(tape.x), cell.traces(tape)[: t + 1], tape.kept.a[t], isinstance(cell, Binding)
    e, kept = at(tape.e, slice(t)), tape.kept  # of the steps before t
    live = xp.ones((t, len(a_t), 1), bool) if tape.mask is None else tape.mask[:t, :, None]  # who, at which steps
    if binding:
        alpha, keep, w, v = 1, kept.keep[:t], kept.w[:t], kept.v[:t]
    else:
        alpha, keep, v = cell.trace_scale, xp.full((t, 1, 1), 1 - cell.hebbian_rate), e.z
        w = cell.hebbian_rate * e.share * kept.a[:t]
    w = xp.where(live, w, 0)  # (t, B, N)
    if cell.trace == "batch":
        A, live, keep = A[:, None], live.any(1, keepdims=True), keep.reshape(t, 1, keep.shape[-1])
        written = (w.swapaxes(1, 2) @ v)[:, None]  # (t, 1, N, H)
    else:
        written = w[..., None] * v[:, :, None]  # (t, B, N, H)
    keep = xp.where(live, keep, 1).astype(A.dtype)  # (t, 1 or B, 1 or N)
    since = xp.concatenate((keep, xp.ones((1, *keep.shape[1:]), A.dtype)))[::-1].cumprod(0)[::-1]
    a = alpha * a_t * since  # (t + 1, B, N): how t reads what step s - 1 left
    start, steps = read(a[0], A[0]), (a[1:, :, None] @ written)[:, :, 0]
    return {"start": start, "steps": steps, "rest": alpha * read(a_t, A[t]) - start - steps.sum(0)}


def written_lengths(cell, tape, t):
    """How much of what step t recalls was written by each step before it, (B, t), as lengths.

    Entry (b, s) is <p, r> / |r|, the length along the trace part r of m_t of the part p that step s wrote: they add
    up to |r| if the trace began empty, and are below zero where p works against the rest. The others: see `written_by`.
    """
    parts = to_numpy(written_by(cell, tape, t))
    recalled = parts["start"] + parts["rest"] + parts["steps"].sum(0)  # (B, H)
    size = np.sqrt((recalled**2).sum(-1))
    return ((parts["steps"] * recalled).sum(-1) / np.where(size > 0, size, 1)).T


def told(recalled):
    """Words read (T,), keys asked (P,), lengths (P, T) and the index of the key that the sequence itself asks for: what
    `plots.arcs` draws, from what a stored result of associative recall has under "recalled".

    recalled: of P pairs, symbols (T + 1,) with T = 2 P + 2, lengths (P, T). Keys come in
    reverse order, so that arcs do not cross. Raises ValueError for anything else.
    """
    try:
        symbols, lengths = np.array(recalled["symbols"]), np.array(recalled["lengths"], float)
        pairs = len(lengths)
        class_labels("symbols", symbols, (2 * pairs + 3,), 2**31)
        checks.float_array("lengths", lengths, (pairs, 2 * pairs + 2))
        if symbols[-1] not in symbols[: 2 * pairs : 2]:
            raise ValueError("the last symbol is none of the keys")
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        wanted = "expected symbols of P pairs, two marks and one of the keys, and lengths (P, 2 P + 2)"
        raise ValueError(f"recalled: {wanted}; make the result again ({error})") from None
    mark, letters = symbols.max(), ascii_letters + "αβγδεζηθικλμνξοπρστυφχψω"
    keys = mark - VALUES  # first keys, then values, then the mark
    names = {mark: "?"} | {keys + value: str(value) for value in range(VALUES)}
    words = [names.get(s) or letters[s : s + 1] or f"k{s}" for s in symbols.tolist()]
    asked = words[0 : 2 * pairs : 2][::-1]
    return words[:-1], asked, lengths[::-1], asked.index(words[-1])


def ablations(model, x, y, batch_size=128, seed=0, mask=None):
    """Loss and metrics of a trained model whose memory is disturbed at test time: {name: {"loss": ..., ...}}.

    x (n, T, D), y (n,). "intact"; "trace off": alpha = 0; "trace frozen": nothing is written, every sequence reads the
    mean of the traces that the batches of x leave; "slots shuffled": each slot reads the trace of another; "entries
    shuffled": the same numbers, anywhere. Shuffled traces are written as ever, `seed` draws the order. Where the intact
    trace is no better than these, what it recalls does not matter to the decision.
    """
    model, layer = _quiet(model)
    x, y, mask = model.check_data(x, y, mask)
    cell, M, rng, left, n = model.cells[layer], model.params[f"{layer}.M"], np.random.default_rng(seed), 0, 0
    for _, part, live in model._batches(x, batch_size, mask):
        A = model.run_cells(model.cell_inputs(part), mask=live, keep=False)[1][layer].A
        alive = part.shape[1] if live is None else int(live.any(0).sum())  # the others leave zeros
        left, n = left + (alive * A if A.ndim == 2 else A.sum(0)), n + alive
    entries, off = np.arange(M.size).reshape(M.shape), replace(cell, trace_scale=0)
    variants = {
        "intact": _with(model, layer, cell),
        "trace off": _with(model, layer, off),
        "trace frozen": _with(model, layer, off, M=M + cell.trace_scale * left / n),  # (2), once for all
        "slots shuffled": _with(model, layer, Shuffled(**vars(cell), order=rng.permutation(entries).ravel())),
        "entries shuffled": _with(model, layer, Shuffled(**vars(cell), order=rng.permutation(entries.ravel()))),
    }
    return {name: each.evaluate(x, y, batch_size, mask) for name, each in variants.items()}


def slot_ablation(model, x, y, batch_size=128, mask=None):
    """Loss and metrics of the network without slot n, {"loss": (N,), ...}. ValueError where there is but one slot."""
    model, layer = _quiet(model)
    cell, M = model.cells[layer], model.params[f"{layer}.M"]
    if cell.slots == 1:
        raise ValueError("model: its only memory slot cannot be left out; expected at least 2 slots")
    fewer = replace(cell, slots=cell.slots - 1, top_k=min(cell.top_k, cell.slots - 1))
    rest = [array_module(M).asarray(np.delete(np.arange(cell.slots), slot)) for slot in range(cell.slots)]
    models = [_with(model, layer, fewer, M=M[slots]) for slots in rest]
    scores = [each.evaluate(x, y, batch_size, mask) for each in models]
    return {name: np.array([score[name] for score in scores]) for name in scores[0]}


def logit_changes(model, x, target=None, part="trace", mask=None):
    """By how much output `target` falls when the `part`, "trace" or "bank", of m_t is taken away at one step t: (n, T).

    Exact: the rest of the sequence runs again without it. Retrieval and writing stay as they were, for neither sees h.
    target: an output or one per sequence (n,), by default the largest. Each sequence is run as a batch of its own.
    """
    checks.choice("part", part, ("trace", "bank"))
    model, layer, x, target, mask = alone(model, x, target, mask)
    cell, params, xp = model.cells[layer], model.layer_params(layer), array_module(model.params["head.W"])
    picked = xp.arange(len(x)), xp.asarray(target)
    mask = None if mask is None else model.time_major(mask)
    tape = model.run_cells(model.time_major(x), mask=mask)[2][layer]
    parts = integration_parts(params, cell.record(params, tape))
    states, whole = tape.states, _outputs(model, tape.states.h[1:], layer, mask)[picked]
    changes = xp.empty(x.shape[:2], x.dtype)
    for t in range(x.shape[1]):
        without = {**params, "b_c": params["b_c"] - parts[part][t]}  # (6) undone by its bias: the step needs no twin
        state, _ = cell.step(without, at(tape.e, t), states[t])
        state = hold(cell, mask, t, state, states[t])
        h = states.h[1:].copy()
        h[t] = state.h
        if t + 1 < x.shape[1]:
            rest = None if mask is None else mask[t + 1 :]
            h[t + 1 :] = run(cell, params, tape.x[t + 1 :], state, rest, keep=False)[0]
        changes[:, t] = whole - _outputs(model, h, layer, mask)[picked]
    return to_numpy(changes)


@dataclass(frozen=True)
class Shuffled(Engram):
    """An Engram cell that reads the N * H entries of its trace in another order, and writes them as ever."""

    order: Any = field(default=None, kw_only=True)

    def step(self, params, e, state):
        flat = state.A.reshape(*state.A.shape[:-2], -1)
        A = flat[..., array_module(flat).asarray(self.order)].reshape(state.A.shape)
        after, k = super().step(params, e, state._replace(A=A))
        A = self._written(k.a, e, state.A)  # anew, into the trace as it was
        return after._replace(A=A), k._replace(A=A)


class IntegratedGradients(NamedTuple):
    x: Any  # (n, T, D) what each entry of the input adds to the output
    difference: Any  # (n,) of the output from that of the baseline
    residual: Any  # (n,) of that, what the attributions do not add up to


SMALLEST, MOST = 2.0**-20, 1000  # pieces of a path: no shorter one is cut, and there are not many more


def integrated_gradients(model, x, target=None, baseline=None, tolerance=1e-3, mask=None):
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of output `target`, by hand-written BPTT:

        attribution = (x - baseline) * integral over p from 0 to 1 of d output / d x at baseline + p (x - baseline)

    x (n, T, D); target: an output or one per sequence, by default the largest; baseline, like x: zeros by default. Each
    sequence is run as a batch of its own. The path is cut where the gradients at the Gauss-Legendre nodes of a piece
    fail most to add up to the difference of outputs between its ends, until the whole is complete to the relative
    `tolerance`: a thousand ReLUs have their kinks on the way, and layer norm turns within a hundredth of it where
    lengths are small. Where the output jumps on the way, as slots change by "top_k" or a code vanishes, no path is
    complete: a RuntimeWarning says what is missing, as `residual` does of each sequence.
    """
    tolerance = checks.number("tolerance", tolerance, above=0)
    model, _, x, target, mask = alone(model, x, target, mask)
    baseline = np.zeros_like(x) if baseline is None else checks.float_array("baseline", baseline, x.shape, x.dtype)
    found = []
    for i, (start, way, out) in enumerate(zip(baseline, x - baseline, target, strict=True)):
        along = partial(_along, model, out, start, way, None if mask is None else mask[i])
        found.append(_integrate(along, way, tolerance))
    *parts, missed = (np.stack(part) for part in zip(*found, strict=True))
    found = IntegratedGradients(*parts)
    if missed.any():
        worst = (abs(found.residual) * missed).argmax()
        of = f"residual {found.residual[worst]:.2g} of a difference of {found.difference[worst]:.2g}"
        what = f"{missed.sum()} of {len(x)} attributions do not add up: {of}, tolerance = {tolerance:g}"
        why = "where the output jumps or is steep, by top_k or codes that vanish, take softmax, a trained network or"
        warnings.warn(f"{what}; {why} another baseline", RuntimeWarning, stacklevel=2)
    return found


def _integrate(along, way, tolerance):
    """The three parts of IntegratedGradients for one sequence, and whether they miss the tolerance."""
    points, weights = np.polynomial.legendre.leggauss(4)
    first, last = along(np.array([0.0, 1.0]))
    size, noise = abs(first) + abs(last), 100 * np.finfo(first.dtype).eps
    allowed = max(tolerance * abs(last - first), tolerance * 1e-6 * size, noise * size)
    low, high = np.zeros(1), np.ones(1)  # of k pieces of the path; beside them errors (k,) and attributions (k, T, D)
    error, parts = np.zeros(0, way.dtype), np.zeros((0, *way.shape), way.dtype)
    while True:
        new = slice(len(error), None)  # the pieces that are not measured yet
        half = (high - low)[new, None] / 2
        slopes = along((low[new, None] + half * (points + 1)).ravel(), back=True)
        weighted = (half * weights).astype(way.dtype)  # (k, nodes)
        parts_new = way * np.einsum("kp,kptd->ktd", weighted, slopes.reshape(*weighted.shape, *way.shape))
        rise = np.subtract(*np.split(along(np.append(high[new], low[new])), 2))
        error = np.append(error, rise - parts_new.sum((1, 2)))
        parts = np.concatenate((parts, parts_new))
        doubt = abs(error) * (high - low > SMALLEST)
        # The errors of many pieces nearly cancel. So that a few do not by chance, their squares must be small as well.
        if max(abs(error[doubt > 0].sum()), (doubt**2).sum() ** 0.5) <= allowed or len(doubt) >= MOST:
            break
        cut = (doubt >= np.sort(doubt)[-16:][0]) & (doubt >= doubt.max() / 4)  # the worst, at most 16
        middle = (low + high)[cut] / 2
        low, high = np.concatenate((low[~cut], low[cut], middle)), np.concatenate((high[~cut], middle, high[cut]))
        error, parts = error[~cut], parts[~cut]
    residual = last - first - parts.sum(0).sum()
    return parts.sum(0), last - first, residual, abs(residual) > allowed


def _along(model, target, start, way, mask, p, back=False):
    """Output `target` at the shares p of one sequence's way, (k,), or gradients at the input (k, T, D), on the host."""
    x = model.time_major(start + p.astype(start.dtype)[:, None, None] * way)
    mask = None if mask is None else array_module(x).asarray(np.repeat(mask[:, None], len(p), axis=1))  # (T, k)
    out, (h, _, weights, _, tapes, _) = model.forward(x, None, mask, learning=back)
    if not back:
        return to_numpy(out[:, target])
    dout = array_module(x).zeros_like(out)
    dout[:, target] = 1
    dh, dlast, _ = model._pool_back(dout @ model.params["head.W"].T, h, weights)
    return to_numpy(model._cells_back(tapes, dh, dlast, mask, input_gradient=True, penalised=False)[2].swapaxes(0, 1))


def _quiet(model):
    """A copy of `model` that draws nothing at random, and the index of its first Engram layer."""
    layer = engram_layer(model)
    cell = model.cells[layer]
    if type(cell) is not Engram:
        raise ValueError(f"model: expected an Engram cell, got {type(cell).__name__}, which may work otherwise")
    return _with(model, layer, cell), layer


def _with(model, layer, cell, **params):
    """A copy of `model` with another cell in `layer` and other params of it."""
    model = copy.copy(model)
    model.cells = (*model.cells[:layer], cell, *model.cells[layer + 1 :])
    model.params = {**model.params, **{f"{layer}.{name}": value for name, value in params.items()}}
    model.random_inference, model.dropout = False, 0.0
    return model


def alone(model, x, target=None, mask=None):
    """The model with a trace per sequence, so that each is a batch of its own; its Engram layer; x (n, T, D); target
    (n,), the outputs to explain: those given, one or one per sequence, or the largest; and mask (n, T) or None."""
    if not isinstance(model, Classifier | Regressor) or isinstance(model, StepClassifier):
        raise TypeError(f"model: expected a Classifier or a Regressor, got {type(model).__name__}")
    model, layer = _quiet(model)
    # What explains is the whole derivative of the output, whatever training left out of it.
    cells = [replace(c, trace_gradient=True) if isinstance(c, Engram) else c for c in model.cells]
    model.cells = tuple(replace(cell, trace="sample") if isinstance(cell, Traced) else cell for cell in cells)
    x, _, mask = model.check_data(x, None, mask)
    target = model.predict_outputs(x, mask=mask).argmax(-1) if target is None else target
    target = class_labels("target", target if np.ndim(target) else [target] * len(x), (len(x),), model.outputs)
    return model, layer, x, target, mask


def _outputs(model, h, layer, mask):
    """The head's outputs (n, O) from the hidden states h (T, n, H) of `layer`."""
    for i in range(layer + 1, len(model.cells)):
        h, _, _ = run(model.cells[i], model.layer_params(i), h, mask=mask, keep=False)
    return model._pool(h, h[-1], mask)[0] @ model.params["head.W"] + model.params["head.b"]

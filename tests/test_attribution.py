"""Splits that add up, ablations that remove what they say, attributions that are complete."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import arrays, cells, draw, make, problems, seeds
from tiny import C, D, T, classifier, copied, padding, randomise, same_to_the_bit, sequences

from enn_np import (
    GRU,
    LSTM,
    RNN,
    Binding,
    Classifier,
    Engram,
    LanguageModel,
    Regressor,
    StepClassifier,
    run,
    run_in_segments,
)
from enn_np.look.attribution import (
    ablations,
    integrated_gradients,
    integration_parts,
    integration_shares,
    logit_changes,
    slot_ablation,
    written_by,
    written_lengths,
)
from enn_np.ops import softmax

PARTS = ("cue", "bank", "trace", "past", "bias")
sizes = st.integers(1, 4)


def engram_run(cell, seed, batch=3, steps=6, dtype=np.float64, trace=0.3, masked=False):
    """A run from a random state with noise: params with random biases too, the tape, and what was recorded."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(value.shape, dtype) for name, value in cell.init(rng, D, dtype).items()}
    state = cell.initial_state(batch, dtype, rng)
    state = state._replace(A=trace * rng.standard_normal(state.A.shape, dtype))
    x = rng.standard_normal((steps, batch, D), dtype)
    mask = rng.random((steps, batch)) < 0.6 if masked else None  # padding anywhere, whole steps of it too
    tape = run(cell, params, x, state, mask, noise=cell.noise(rng, steps, dtype))[2]
    return params, tape, cell.record(params, tape)


def model_of(cell=None, seed=0, dtype="float64", **settings):
    """A classifier with random parameters around one cell, and six sequences."""
    cell = Engram(6, 4, hebbian_rate=0.4, trace_scale=1.5) if cell is None else cell
    model = randomise(classifier(cell, dtype=dtype, **settings), seed)
    for name in {"0.b_z", "0.b_h"} & model.params.keys():
        model.params[name] += 2  # a code that vanishes has no direction: (3) jumps, and layer norm nearly does
    return model, *sequences(6, seed=seed, dtype=np.dtype(dtype))


# Cells as a reader derives them.


class Loud(Engram):
    """In (8), D is three times as large."""

    def _write(self, k, e, A):
        super()._write(k, e._replace(z=3 * e.z), A)


def close(one, other, tolerance=1e-10):
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------ what a run did


@settings(max_examples=30)
@given(cells(Engram), seeds, sizes, sizes, st.booleans())
def test_a_record_is_what_the_equations_say(cell, seed, batch, steps, masked):
    """(3) to (6) written once more, sample by sample: similarities of the wrong step, or parts of the wrong trace."""
    params, tape, seen = engram_run(cell, seed, batch, steps, masked=masked)
    assert all(np.isfinite(value).all() for value in seen.values())
    for t in range(steps):
        for b in range(batch):
            A = seen["trace"][t] if cell.trace == "batch" else seen["trace"][t, b]
            M_eff = params["M"] + cell.trace_scale * A
            z, a = seen["codes"][t, b], seen["retrieval"][t, b]
            lengths = np.linalg.norm(M_eff, axis=1) * np.linalg.norm(z)
            close(seen["similarities"][t, b], np.divide(M_eff @ z, lengths, where=lengths > 1e-6, out=0 * lengths))
            close(seen["bank_part"][t, b], a @ params["M"])
            close(seen["trace_part"][t, b], cell.trace_scale * a @ A)
    close(seen["engram"], seen["bank_part"] + seen["trace_part"])
    close(seen["hidden"], tape.states.h)
    close(seen["trace"][1:], cell.traces(tape)[1:])


@pytest.mark.parametrize("kind", (RNN, GRU, LSTM, Engram, Binding))
def test_a_record_is_of_any_cell_and_outlives_the_tape(kind):
    """Catches views into the tape."""
    cell = make(kind, 4, 3)
    params, x = cell.init(np.random.default_rng(0), D), sequences(3)[0].swapaxes(0, 1)
    h, _, tape = run(cell, params, x)
    seen = cell.record(params, tape)
    np.testing.assert_array_equal(seen["hidden"], np.concatenate((np.zeros((1, 3, 4), np.float32), h)))
    assert all(value.dtype == np.float32 and len(value) in (T, T + 1) for value in seen.values())
    before = copied(seen)
    for tree in (tape.states, tape.e, tape.kept):
        for part in tree:
            if isinstance(part, np.ndarray):
                part[...] = np.nan
    assert same_to_the_bit(seen, before)


def test_gates_are_recorded_by_name():
    """One gate under another's name."""
    cell, x = LSTM(4), sequences(3)[0].swapaxes(0, 1)
    params = cell.init(np.random.default_rng(0), D)
    seen = cell.record(params, run(cell, params, x)[2])
    close(seen["c"][1:], seen["f"] * seen["c"][:-1] + seen["i"] * seen["g"], 1e-6)
    close(seen["hidden"][1:], seen["o"] * seen["tanh_c"], 1e-6)


@settings(max_examples=30)
@given(cells(Engram), seeds, sizes, sizes, st.booleans())
def test_parts_of_the_integration_add_up(cell, seed, batch, steps, masked):
    """A block of W_c given to the wrong part, or a share that is not of the whole."""
    params, tape, seen = engram_run(cell, seed, batch, steps, masked=masked)
    parts = integration_parts(params, seen)
    assert tuple(parts) == PARTS
    close(np.maximum(sum(parts.values()), 0), tape.kept.c)
    shares = integration_shares(parts)
    assert all(share.shape == (steps, batch) for share in shares.values())
    close(sum(shares.values()), (tape.kept.c.max(-1) > 0).astype(float))


# -------------------------------------------------------------------------------------------- who wrote the trace


@settings(max_examples=60)
@given(cells(Engram), seeds, sizes, st.integers(1, 6), st.booleans(), st.sampled_from((np.float32, np.float64)))
def test_the_trace_is_the_sum_of_what_every_step_wrote(cell, seed, batch, steps, masked, dtype):
    """(9) unrolled with a power too many, without the start, the noise, the clip or the batch mates, or with padding
    that fades or writes."""
    _, tape, seen = engram_run(cell, seed, batch, steps, dtype, masked=masked)
    for t in range(steps):
        parts = written_by(cell, tape, t)
        assert parts["steps"].shape == (t, batch, cell.hidden)
        assert parts["steps"].dtype == parts["rest"].dtype == dtype
        close(
            parts["start"] + parts["steps"].sum(0) + parts["rest"],
            seen["trace_part"][t],
            1e-10 if dtype == np.float64 else 1e-4,
        )
        if not cell.trace_noise and cell.trace_clip is None:
            close(parts["rest"], 0, 1e-10 if dtype == np.float64 else 1e-3)
        if masked:
            padding = ~tape.mask[:t] if cell.trace == "sample" else np.repeat(~tape.mask[:t].any(1)[:, None], batch, 1)
            assert not parts["steps"][padding].any()


@settings(max_examples=60)
@given(problems(Binding, steps=st.integers(1, 6)))
def test_the_binding_trace_is_the_sum_of_what_every_step_wrote(problem):
    """(7) unrolled with a factor too many, or with padding that fades or writes."""
    cell, _, tape = problem.cell, *problem.forward()[1:]
    for t in range(len(problem.x)):
        parts = written_by(cell, tape, t)
        assert parts["steps"].shape == (t, *problem.x.shape[1:2], cell.hidden)
        close(parts["start"] + parts["steps"].sum(0), cell.record(problem.params, tape)["trace_part"][t])
        close(parts["rest"], 0)
        if problem.mask is not None:
            padding = ~problem.mask[:t]
            padding = padding if cell.trace == "sample" else np.repeat(padding.all(1)[:, None], len(problem.x[0]), 1)
            assert not parts["steps"][padding].any()


@pytest.mark.parametrize("cell", [Engram(4, 3, trace="sample", trace_noise=0.5), Binding(4, 3, temperature=1.0)])
def test_lengths_are_along_the_whole_recall(cell):
    """What was there at the start, noise, and what the clip took away: all are part of the recall."""
    problem = draw(cell, steps=6)
    tape = problem.forward()[2]
    seen = cell.record(problem.params, tape)
    recalled = seen["trace_part"][5]
    along = (written_by(cell, tape, 5)["steps"] * recalled).sum(-1) / np.linalg.norm(recalled, axis=-1)
    close(written_lengths(cell, tape, 5), along.T)


@settings(max_examples=30)
@given(problems(Binding, masked=False, rule="replace", address="slots"))
def test_a_binding_record_is_what_the_equations_say(problem):
    """A name given to another array, parts of the engram that are not its parts, and views into the tape."""
    _, state, tape = problem.forward()
    seen = problem.cell.record(problem.params, tape)
    bank = seen["retrieval"] @ problem.params["M"] if problem.cell.bank_read else 0 * seen["engram"]
    close(seen["bank_part"], bank)
    close(seen["engram"], seen["bank_part"] + seen["trace_part"])
    close(seen["retrieval"], softmax(seen["similarities"] / problem.cell.temperature))
    close(seen["values"], problem.x @ problem.params["W_v"] + problem.params["b_v"])
    if problem.cell.trace == "sample":
        at = problem.state.a[None], seen["retrieval"]
        close(
            seen["written"],
            (np.concatenate(at)[:-1] if problem.cell.write_at == "previous" else at[1]) * seen["plasticity"],
        )
        for old, new, w, v in zip(seen["trace"], seen["trace"][1:], seen["written"], seen["values"], strict=False):
            free = new - np.einsum("bn,bh->bnh", w, v)  # what is left of the old
            assert (abs(free) <= abs((1 - w)[..., None] * old) + 1e-12).all()  # what is addressed goes, all fades
    norms = np.linalg.norm(seen["codes"], axis=-1, keepdims=True) * np.linalg.norm(problem.params["M"], axis=-1)
    close(seen["similarities"] * norms, seen["codes"] @ problem.params["M"].T)
    close(seen["hidden"], tape.states.h)
    close(seen["trace"][-1], state.A)
    dense = problem.but(cell=replace(problem.cell, store="dense"))  # a list is in its place else
    close(seen["trace"], dense.forward()[2].states.A)
    assert not any(np.shares_memory(value, part) for value in seen.values() for part in arrays(tape[:4]))


@pytest.mark.parametrize("trace", ("batch", "sample"))
def test_a_step_that_is_kept_from_writing_is_what_the_parts_say(trace):
    """Each part against the run itself: at step s nothing but fading, all else as before."""
    cell = Engram(5, 4, hebbian_rate=0.3, trace_scale=0.8, trace_clip=None, trace=trace, trace_noise=0)
    _, tape, _ = engram_run(cell, 3)
    eta, t = cell.hebbian_rate, 5
    parts = written_by(cell, tape, t)
    for s in range(t):
        traces = cell.traces(tape)
        A = traces[0]
        for past in range(t):
            D = (1 - (past == s)) * (traces[past + 1] - (1 - eta) * traces[past])
            A = (1 - eta) * A + D
        a, lost = tape.kept.a[t], traces[t] - A
        close(parts["steps"][s], cell.trace_scale * (a @ lost if trace == "batch" else (a[:, None] @ lost)[:, 0]))


def test_what_the_clip_took_is_the_rest():
    """A clip that was active and goes unnoticed: the steps alone would claim more than the trace holds."""
    cell = Engram(5, 4, hebbian_rate=0.5, trace_clip=0.02, trace_noise=0, trace="sample")
    _, tape, _ = engram_run(cell, 1, trace=0)
    parts, a, z = written_by(cell, tape, 5), tape.kept.a, tape.e.z
    assert abs(parts["rest"]).max() > 1e-3
    for s in range(5):  # by (8)
        close(parts["steps"][s], cell.trace_scale * 0.5 ** (5 - s) * (a[5] * a[s]).sum(-1, keepdims=True) * z[s])


def test_bad_tapes():
    """A step that is none, a cell without memory and a tape in pieces, each by its name."""
    cell = Engram(4, 3)
    params, tape, _ = engram_run(cell, 0)
    for t, error in ((6, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^t: "):
            written_by(cell, tape, t)
    with pytest.raises(TypeError, match=r"^cell, tape: .*GRU"):
        written_by(GRU(4), tape, 2)
    _, _, pieces = run_in_segments(cell, params, tape.x, 2)
    with pytest.raises(TypeError, match=r"^cell, tape: .*Segments"):
        written_by(cell, pieces, 2)


# ----------------------------------------------------------------------------------------------------- ablations


def outputs_by_hand(model, x, cell, read_A=lambda A: A, write=True, A=0.0, without=None):
    """The outputs for each sequence alone, by the equations, with a hand on what is read and written; `without` =
    (t, part) takes a part of m_t away."""
    p, results = model.layer_params(0), []
    for sequence in x:
        A_t, h, hs = np.zeros((cell.slots, cell.hidden)) + A, np.zeros(cell.hidden), []
        for t, x_t in enumerate(sequence):
            z = norm(np.maximum(x_t @ p["W_z"] + p["b_z"], 0), p["gamma_z"], p["beta_z"])
            A_read = read_A(A_t)
            M_eff = p["M"] + cell.trace_scale * A_read
            s = (M_eff / np.linalg.norm(M_eff, axis=1, keepdims=True)) @ (z / np.linalg.norm(z))
            a = np.exp(s / cell.tau) / np.exp(s / cell.tau).sum()
            m = {"bank": a @ p["M"], "trace": cell.trace_scale * a @ A_read}
            m_t = sum(value for part, value in m.items() if without != (t, part))
            c = np.maximum(np.concatenate((z, m_t, h)) @ p["W_c"] + p["b_c"], 0)
            h = norm(np.maximum(c @ p["W_h"] + p["b_h"], 0), p["gamma_h"], p["beta_h"])
            eta = cell.hebbian_rate if write else 0
            A_t = ((1 - eta) * A_t + eta * np.outer(a, z)).clip(-cell.trace_clip, cell.trace_clip)
            hs.append(h)
        results.append(hs[-1] if model.pooling == "last" else np.mean(hs, 0))
    return np.stack(results) @ model.params["head.W"] + model.params["head.b"]


def norm(r, gamma, beta):
    return gamma * (r - r.mean()) / np.sqrt(r.var() + 1e-6) + beta


def scores(out, y):
    log_p = out - np.log(np.exp(out).sum(-1, keepdims=True))
    return {"loss": -log_p[range(len(y)), y].mean(), "accuracy": (out.argmax(-1) == y).mean()}


@pytest.mark.parametrize("seed", (0, 2, 3))  # seed 1 shuffles four slots into the order they had
def test_every_ablation_is_what_its_name_says(seed):
    """Against the equations by hand: a trace that is shuffled when written, or thawed, or off in half the places."""
    cell = Engram(6, 4, hebbian_rate=0.4, trace_scale=3.0, trace="sample")
    model, x, y = model_of(cell, seed)
    before = copied(model.params)
    found = ablations(model, x, y, seed=seed)
    rng = np.random.default_rng(seed)
    entries = np.arange(24).reshape(4, 6)
    rows, places = rng.permutation(entries).ravel(), rng.permutation(entries.ravel())
    mean = model.run_cells(model.time_major(x))[1][0].A.mean(0)
    want = {
        "intact": outputs_by_hand(model, x, cell),
        "trace off": outputs_by_hand(model, x, replace(cell, trace_scale=0)),
        "trace frozen": outputs_by_hand(model, x, cell, write=False, A=mean),
        "slots shuffled": outputs_by_hand(model, x, cell, lambda A: A.ravel()[rows].reshape(4, 6)),
        "entries shuffled": outputs_by_hand(model, x, cell, lambda A: A.ravel()[places].reshape(4, 6)),
    }
    assert tuple(found) == tuple(want)
    assert len({score["loss"] for score in found.values()}) == 5  # each does something of its own
    for name, out in want.items():
        assert found[name] == pytest.approx(scores(out, y), rel=1e-9), name
    assert same_to_the_bit(model.params, before)


def test_a_language_model_is_ablated():
    """Its cells see an embedding, not ids."""
    model = LanguageModel(Engram(5, 4, trace="sample"), 10, embedding=3)
    ids = np.random.default_rng(0).integers(10, size=(3, 4))
    assert ablations(model, ids, ids)["intact"] == model.evaluate(ids, ids)


def test_a_shared_trace_is_ablated_as_the_model_shares_it():
    """An intact score that is not the model's own, and dropout or noise in it."""
    model, x, y = model_of(Engram(6, 4), dtype="float32", random_inference=True, dropout=0.5)
    found = ablations(model, x, y)
    quiet, _, _ = model_of(Engram(6, 4), dtype="float32")
    assert found["intact"] == quiet.evaluate(x, y) == ablations(model, x, y, seed=1)["intact"]
    assert np.isfinite([list(score.values()) for score in found.values()]).all()


def test_a_class_of_the_reader_is_refused_by_name():
    """It may integrate or write otherwise than (6), (8) and (9) say."""
    model, x, y = model_of(Loud(6, 4))
    for function, more in ((ablations, [y]), (slot_ablation, [y]), (logit_changes, []), (integrated_gradients, [])):
        with pytest.raises(ValueError, match=r"^model: .* got Loud, which may work otherwise"):
            function(model, x, *more)


@pytest.mark.parametrize("retrieval", ("softmax", "top_k"))
def test_leaving_a_slot_out_is_a_network_without_it(retrieval):
    """A slot that is only muted still takes its share of the softmax."""
    cell = Engram(6, 4, trace="sample", retrieval=retrieval, top_k=4)
    model, x, y = model_of(cell)
    found = slot_ablation(model, x, y)
    assert found.keys() == {"loss", "accuracy"} and found["loss"].shape == (4,)
    assert len(set(found["loss"])) == 4
    for slot in range(4):
        fewer, _, _ = model_of(replace(cell, slots=3, top_k=3))
        fewer.params = {**model.params, "0.M": model.params["0.M"][[n for n in range(4) if n != slot]]}
        assert {name: values[slot] for name, values in found.items()} == pytest.approx(fewer.evaluate(x, y))
    with pytest.raises(ValueError, match="only memory slot"):
        slot_ablation(*model_of(Engram(6, 1)))


@pytest.mark.parametrize("pooling", ("last", "mean"))
@pytest.mark.parametrize("part", ("trace", "bank"))
def test_logit_changes_are_those_of_a_run_without_the_part(part, pooling):
    """A removal that also changes retrieval, or that misses the steps after it."""
    cell = Engram(6, 4, hebbian_rate=0.4, trace_scale=1.5, trace="sample")
    model, x, _ = model_of(cell, pooling=pooling)
    whole = outputs_by_hand(model, x, cell)
    target = whole.argmax(-1)
    found = logit_changes(model, x, part=part)
    for t in range(T):
        less = outputs_by_hand(model, x, cell, without=(t, part))
        close(found[:, t], (whole - less)[range(6), target], 1e-9)
    close(
        logit_changes(model, x, 1, part)[:, 0], (whole - outputs_by_hand(model, x, cell, without=(0, part)))[:, 1], 1e-9
    )
    if part == "trace":
        close(found[:, 0], 0)  # the first step reads a trace of zeros


def test_logit_changes_reach_the_layers_above():
    """Layers over the memory that keep the hidden states of the whole network."""
    model = randomise(
        Classifier((GRU(4), Engram(5, 3, trace_scale=2, hebbian_rate=0.5), GRU(3)), D, C, dtype="float64")
    )
    x, _ = sequences(4, dtype=np.float64)
    found = logit_changes(model, x, 0)
    assert found.shape == (4, T) and np.isfinite(found).all() and (abs(found[:, 1:]).max(0) > 0).all()
    last = copied(model.params)
    last["1.W_c"][5:10] = 0  # what is recalled goes nowhere
    model.params = last
    close(logit_changes(model, x, 0), 0)


def cut(x, mask, i):
    """Sequence i without its padding."""
    return x[i : i + 1, mask[i]]


@pytest.mark.parametrize("pooling", ("last", "attention"))
def test_padding_is_as_if_it_were_not_there(pooling):
    """Sequences with a mask are explained as the shorter ones that they are, whatever stands in the padding: pooled
    over padding, a trace that fades in it, a start at the wrong end."""
    layers = Engram(6, 4, hebbian_rate=0.4, trace_scale=1.5), GRU(3)
    model, x, _ = model_of(layers, pooling=pooling)
    mask = padding(6)
    mask[1] = [False, True, False, True, True]  # gaps, and a start after padding
    x[~mask] = 1e3
    target = model.predict(np.where(mask[..., None], x, 0), mask=mask)
    changes = {part: logit_changes(model, x, target, part, mask) for part in ("trace", "bank")}
    found = integrated_gradients(model, x, target, mask=mask, tolerance=1e-4)
    assert not found.x[~mask].any()
    assert (abs(found.residual) <= 1e-3 * np.maximum(abs(found.difference), 0.01)).all()
    for i in range(6):
        short, out = cut(x, mask, i), target[i]
        for part, values in changes.items():
            close(values[i, mask[i]], logit_changes(model, short, out, part)[0], 1e-9)
            close(values[i, ~mask[i]], 0)
        whole = integrated_gradients(model, short, out, tolerance=1e-4)
        close(found.difference[i], whole.difference[0], 1e-9)
        np.testing.assert_allclose(found.x[i, mask[i]], whole.x[0], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("trace", ("sample", "batch"))
def test_a_frozen_trace_is_the_mean_over_sequences(trace):
    """It was one over batches, in which a short last batch, and a sequence of padding alone, counted like others."""
    model, x, y = model_of(Engram(6, 4, hebbian_rate=0.4, trace_scale=3.0, trace=trace))
    five = ablations(model, x[:5], y[:5])
    for size in (1, 2, 3) if trace == "sample" else ():  # of a trace that they share mates matter
        assert ablations(model, x[:5], y[:5], size)["trace frozen"] == pytest.approx(five["trace frozen"], rel=1e-9)
    mask = np.ones(x.shape[:2], bool)
    mask[5] = False
    five, six = ablations(model, x[:5], y[:5], 1), ablations(model, x, y, 1, mask=mask)
    rest = {name: 6 * six[name]["loss"] - 5 * five[name]["loss"] for name in ("intact", "trace frozen")}
    assert rest["trace frozen"] == pytest.approx(rest["intact"], rel=1e-9)  # of padding alone no trace is read


def test_ablations_of_padded_sequences():
    """Scores in which padding was read, against the sequences one by one without it."""
    model, x, y = model_of(Engram(6, 4, hebbian_rate=0.4, trace_scale=3.0, trace="sample"))
    mask = padding(6)
    found = ablations(model, x, y, mask=mask)
    fewer = slot_ablation(model, x, y, mask=mask)
    assert found["intact"] == pytest.approx(model.evaluate(x, y, mask=mask))
    for name in ("intact", "trace off", "slots shuffled", "entries shuffled"):  # what is frozen is the mean of all six
        losses = [ablations(model, cut(x, mask, i), y[i : i + 1])[name]["loss"] for i in range(6)]
        assert found[name]["loss"] == pytest.approx(np.mean(losses)), name
    losses = [slot_ablation(model, cut(x, mask, i), y[i : i + 1])["loss"] for i in range(6)]
    close(fewer["loss"], np.mean(losses, 0))
    cell, left = model.cells[0], []
    for i in range(6):
        left.append(model.run_cells(model.time_major(cut(x, mask, i)))[1][0].A[0])
    frozen = [outputs_by_hand(model, cut(x, mask, i), cell, write=False, A=np.mean(left, 0)) for i in range(6)]
    assert found["trace frozen"] == pytest.approx(scores(np.concatenate(frozen), y), rel=1e-9)


def test_each_sequence_is_explained_alone():
    """Batch mates that leak into an explanation through a shared trace."""
    model, x, _ = model_of(Engram(6, 4, trace="batch"), dtype="float64")
    close(integrated_gradients(model, x[:2]).x[1:], integrated_gradients(model, x[1:2]).x)
    for stack in (Engram(6, 4, trace="batch"), [Engram(6, 4), Binding(4, 5, trace="batch")]):
        model, x, _ = model_of(stack)
        close(logit_changes(model, x)[2:3], logit_changes(model, x[2:3]))


# ------------------------------------------------------------------------------------------- integrated gradients


@settings(max_examples=12)
@given(st.sampled_from(("last", "mean", "attention")), st.sampled_from(("batch", "sample")), st.booleans(), seeds)
def test_attributions_are_complete(pooling, trace, norm, seed):
    """The axiom: they add up to the difference of outputs, which the two ends of the path tell by themselves."""
    cell = Engram(6, 4, hebbian_rate=0.4, trace_scale=1.5, trace=trace, layer_norm=norm, trace_gradient=False)
    model, x, _ = model_of(cell, seed, pooling=pooling)
    x = x[:2]
    baseline = np.random.default_rng(seed).standard_normal(x.shape)
    found = integrated_gradients(model, x, [0, 2], baseline)
    sums = found.x.sum((1, 2))
    assert found.x.shape == x.shape
    close(found.residual, found.difference - sums)
    assert (abs(sums - found.difference) <= 1e-3 * np.maximum(abs(found.difference), 0.01)).all()
    for b, output in enumerate((0, 2)):
        ends = []
        for part in (x[b], baseline[b]):
            h, finals, _ = model.run_cells(part[:, None])
            ends.append((model._pool(h, finals[-1].h, None)[0] @ model.params["head.W"] + model.params["head.b"])[0])
        close(found.difference[b], (ends[0] - ends[1])[output])


def test_attributions_are_integrals_of_gradients():
    """Completeness alone would let attributions be dealt out to the wrong entries: a plain midpoint rule over finite
    differences of the outputs knows each one."""
    model, x, _ = model_of(Engram(5, 3, trace="sample"), seed=4)
    x = x[:1]
    found = integrated_gradients(model, x, 1, tolerance=1e-5, baseline=0.5 * x)
    points = 0.5 + 0.5 * (np.arange(200) + 0.5) / 200
    for place in ((0, 0, 0), (0, 2, 1), (0, T - 1, D - 1)):
        nudge = np.zeros_like(x)
        nudge[place] = 1e-6
        path = points[:, None, None] * x
        slopes = (model.predict_outputs(path + nudge) - model.predict_outputs(path - nudge))[:, 1] / 2e-6
        assert found.x[place] == pytest.approx(0.5 * x[place] * slopes.mean(), rel=2e-2, abs=2e-3)


def test_attributions_in_single_precision():
    """float64 nodes and weights that upcast, or an error estimate below the rounding that never ends."""
    model, x, _ = model_of(dtype="float32")
    x = x[:2]
    found = integrated_gradients(model, x)
    assert found.x.dtype == np.float32
    exact = integrated_gradients(*model_of(dtype="float64")[:1], x.astype(float), tolerance=1e-4)
    assert abs(exact.x.sum((1, 2)) - exact.difference).max() <= 1e-3 * abs(exact.difference).max()
    assert found.x.sum((1, 2)) == pytest.approx(found.difference, rel=5e-3, abs=5e-3)
    assert logit_changes(model, x).dtype == np.float32


def test_a_path_with_a_jump_ends():
    """A discontinuity, at which no number of pieces is enough: sparse retrieval that changes its slots."""
    model, x, _ = model_of(Engram(6, 4, retrieval="top_k", top_k=1, trace_scale=3))
    with pytest.warns(
        RuntimeWarning,
        match=r"^1 of 1 .* do not add up: residual .* of .*, tolerance = 0.01; .*top_k.* softmax",
    ):
        found = integrated_gradients(model, x[:1], tolerance=1e-2)
    assert np.isfinite(found.residual).all() and abs(found.residual) > 0.01 * abs(found.difference)
    assert integrated_gradients(model, x[:1], tolerance=1).x.any()  # no warning where that is enough


def test_other_models():
    """A regressor, and layers below and above the memory."""
    model = randomise(Regressor((GRU(4), Engram(5, 3), GRU(3)), D, 2, dtype="float64"))
    x, _ = sequences(3, dtype=np.float64)
    found = integrated_gradients(model, x, 1)
    assert found.x.shape == x.shape
    assert abs(found.residual).max() <= 1e-3 * abs(found.difference).max()
    y = np.zeros((3, 2))
    assert ablations(model, x, y)["intact"] == pytest.approx(model.evaluate(x, y))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": 3}, ValueError, "^target: .*0 to 2"),
        ({"target": 0.5}, TypeError, "^target: "),
        ({"target": [0, 1]}, ValueError, r"^target: expected shape \(6,\)"),
        ({"baseline": np.zeros((6, T, D + 1))}, ValueError, "^baseline: .*shape"),
        ({"baseline": np.zeros((6, T, D), np.float32)}, TypeError, "^baseline: .*float64"),
        ({"tolerance": 0}, ValueError, "^tolerance: "),
        ({"x": np.zeros((6, T, D), np.uint8)}, TypeError, "^x: .*uint8"),
    ],
)
def test_bad_input(arguments, error, message):
    model, x, _ = model_of()
    with pytest.raises(error, match=message):
        integrated_gradients(model, **{"x": x} | arguments)


def test_a_model_without_memory():
    model, x, y = model_of(GRU(4))
    for function, arguments in ((ablations, (x, y)), (slot_ablation, (x, y)), (logit_changes, (x,))):
        with pytest.raises(ValueError, match=r"^model: .*Engram"):
            function(model, *arguments)
    for explain in (logit_changes, integrated_gradients):  # which would read the rows of other sequences
        with pytest.raises(TypeError, match=r"^model: expected a Classifier or a Regressor, got StepClassifier"):
            explain(StepClassifier(Engram(4, 3), D, C, answers=2), np.zeros((6, T, D), np.float32))
    with pytest.raises(TypeError, match=r"^model: .*str"):
        integrated_gradients("model.npz", x)
    with pytest.raises(ValueError, match=r"^part: "):
        logit_changes(*model_of()[:2], part="cue")

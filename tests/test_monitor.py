"""Watching the trace: the statistics by their definition, and a probe that changes nothing."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import seeds
from tiny import D, T, classifier, copied, randomise, same_to_the_bit, sequences

from enn_np import GRU, SGD, Adam, Checkpoint, Classifier, EarlyStopping, Engram, fit, run
from enn_np.look.monitor import HebbianTraceMonitor, effective_slots, trace_statistics

H, N = 6, 4


def watched(cells=None, n=10, **settings):
    """A model with an Engram cell and its monitor over n sequences."""
    model = classifier(Engram(H, N, hebbian_rate=0.3) if cells is None else cells, **settings)
    return model, HebbianTraceMonitor(model, sequences(n, seed=7)[0])


@given(seeds, st.sampled_from((0.005, 0.05, 1.0)), st.sampled_from((None, 0.1, 0.01)))
def test_statistics_are_what_their_names_say(seed, size, clip):
    """A share over slots in place of entries, or of signed values in place of sizes."""
    A = size * np.random.default_rng(seed).standard_normal((N, H))
    A = A if clip is None else A.clip(-clip, clip)
    values = A.ravel().tolist()
    sizes = [abs(value) for value in values]
    mean = sum(values) / len(values)
    want = {
        "min": min(values),
        "max": max(values),
        "mean_abs": sum(sizes) / len(sizes),
        "sd": (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5,
        "share_small": sum(value < 0.01 for value in sizes) / len(sizes),
        "share_clipped": 0 if clip is None else sum(value >= clip for value in sizes) / len(sizes),
    }
    assert trace_statistics(A, clip) == pytest.approx(want)


def test_a_model_keeps_the_tapes_of_its_last_batch():
    """Which the monitor's own run, at the end of an epoch, must not take away."""
    model, monitor = watched(n=5)
    model.fit(*sequences(8), epochs=1, callbacks=[monitor])
    assert [len(tape.x) for tape in model.tapes] == [T]


def test_clipped_entries_count_in_float32():
    """0.1 in float32 is more than 0.1 in float64: a trace on its clip must count as clipped all the same."""
    for clip in (0.1, 0.3, 0.7):
        assert trace_statistics(np.full((2, 2), clip, np.float32), clip)["share_clipped"] == 1


@given(seeds, st.integers(1, 8), st.sampled_from((0.1, 1, 30)))
def test_effective_slots_lie_between_one_and_all(seed, slots, sharpness):
    logits = sharpness * np.random.default_rng(seed).standard_normal((5, slots))
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    assert 1 - 1e-9 <= effective_slots(a) <= slots + 1e-9


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_effective_slots_of_clear_cases(dtype):
    """Exact zeros, as sparsemax makes them, must not give 0 log 0 = NaN."""
    for slots in (1, 2, 5):
        a = np.zeros((3, N + 1), dtype)
        a[:, :slots] = 1 / slots
        assert effective_slots(a) == pytest.approx(slots, rel=1e-6)


@pytest.mark.parametrize("trace", ("batch", "sample"))
@pytest.mark.parametrize("epochs", (1, 3))
def test_shapes(trace, epochs):
    """One entry per epoch, and the untrained model first."""
    model, monitor = watched(Engram(H, N, trace=trace))
    x, y = sequences()
    model.fit(x, y, epochs=epochs, callbacks=[monitor])
    assert monitor.traces.shape == (epochs + 1, N, H) and len(monitor.statistics) == epochs + 1
    assert monitor.trace.shape == (N, H) and monitor.retrieval.shape == (10, T, N)
    np.testing.assert_allclose(monitor.retrieval.sum(-1), 1, rtol=1e-5)
    names = {"min", "max", "mean_abs", "sd", "share_small", "share_clipped"}
    names |= {"effective_slots", "usage_min", "usage_max", "drift"}
    assert all(statistics.keys() == names for statistics in monitor.statistics)
    assert all(type(value) is float for statistics in monitor.statistics for value in statistics.values())


def test_what_is_noted_is_what_a_run_leaves():
    """Without noise and from zeros: computed again by `run` alone."""
    model, monitor = watched()
    _, state, tape = run(model.cells[0], model.layer_params(0), model.time_major(monitor.x))
    np.testing.assert_array_equal(monitor.trace, state.A)
    np.testing.assert_array_equal(monitor.retrieval, tape.kept.a.swapaxes(0, 1))
    wanted = trace_statistics(state.A, 0.1) | {"effective_slots": effective_slots(tape.kept.a), "drift": 0.0}
    usage = tape.kept.a.mean((0, 1))
    wanted |= {"usage_min": usage.min(), "usage_max": usage.max()}
    np.testing.assert_allclose(monitor.usage, usage[None], rtol=1e-5)
    assert monitor.statistics[0] == pytest.approx(wanted)


def test_a_trace_of_every_sample_is_shown_as_their_mean():
    model, monitor = watched(Engram(H, N, trace="sample"))
    _, state, _ = run(model.cells[0], model.layer_params(0), model.time_major(monitor.x))
    assert state.A.shape == (10, N, H)
    np.testing.assert_allclose(monitor.trace, state.A.mean(0), rtol=1e-6)


def test_drift_is_the_distance_to_the_epoch_before():
    model, monitor = watched()
    x, y = sequences()
    model.fit(x, y, epochs=3, callbacks=[monitor])
    drifts = [statistics["drift"] for statistics in monitor.statistics]
    steps = [np.linalg.norm(after - before) for before, after in zip(monitor.traces, monitor.traces[1:], strict=False)]
    np.testing.assert_allclose(drifts, [0, *steps], rtol=1e-6)
    assert min(drifts[1:]) > 0


def test_statistics_join_the_history():
    """One number an epoch as in all of the history, to be drawn beside the loss; the untrained is no epoch."""
    model, monitor = watched()
    x, y = sequences()
    history = model.fit(x, y, epochs=2, callbacks=[monitor])
    for name in monitor.statistics[0]:
        assert history[f"trace_{name}"] == [statistics[name] for statistics in monitor.statistics[1:]]
    assert len(history["loss"]) == 2


@pytest.mark.parametrize("labels", (None, np.arange(10) % 3))
def test_all_that_was_watched_is_saved(labels, tmp_path):
    model, monitor = watched()
    x, y = sequences()
    model.fit(x, y, epochs=2, callbacks=[monitor])
    monitor.save(tmp_path / "trace.npz", labels)
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as stored:
        saved = dict(stored)
    wanted = {"traces": monitor.traces, "usage": monitor.usage, "retrieval": monitor.retrieval, "probe": monitor.x}
    wanted |= {} if labels is None else {"labels": labels}
    assert same_to_the_bit(saved, wanted) and saved["usage"].shape == (3, N)


def test_earlier_traces_are_not_overwritten():
    """The model reuses its arrays: a note that is only a view would show the last epoch everywhere."""
    model, monitor = watched()
    first, retrieval = monitor.traces[0].copy(), monitor.retrieval
    before = retrieval.copy()
    randomise(model)
    model.predict(sequences(10)[0])
    monitor._note(model)
    np.testing.assert_array_equal(monitor.traces[0], first)
    np.testing.assert_array_equal(retrieval, before)


def test_the_end_shows_the_model_with_its_best_weights():
    """After early stopping the last epoch's trace is not that of the model one has in hand."""
    model, monitor = watched(dropout=0.0)
    x, y = sequences(60)
    history = model.fit(
        x, y, epochs=40, validation_split=0.5, optimizer=Adam(0.1), callbacks=[EarlyStopping(patience=2), monitor]
    )
    assert history.stopped == "early"
    np.testing.assert_array_equal(monitor.trace, monitor.traces[history.best_epoch + 1])
    assert (monitor.trace != monitor.traces[-1]).any()


@pytest.mark.parametrize("random_inference", (False, True))
def test_watching_changes_neither_model_nor_training(random_inference):
    """A probe that draws from the training's generator, or writes into arrays that are still needed."""
    x, y = sequences()
    plain = classifier(Engram(H, N), random_inference=random_inference)
    model, monitor = watched(Engram(H, N), random_inference=random_inference)
    assert same_to_the_bit(plain.params, model.params)
    plain.fit(x, y, epochs=3, validation_split=0.25, batch_size=10)
    model.fit(x, y, epochs=3, validation_split=0.25, batch_size=10, callbacks=[monitor])
    assert same_to_the_bit(plain.params, model.params)


def test_a_probe_leaves_parameters_alone():
    model, monitor = watched()
    before = copied(model.params)
    monitor._note(model)
    assert same_to_the_bit(model.params, before)


def test_a_note_costs_one_run_of_the_probe(monkeypatch):
    """A probe run twice, or gradients computed for it: at the paper's sizes one run is a thousandth of an epoch."""
    model, monitor = watched()
    run_cells, seen = type(model).run_cells, []
    monkeypatch.setattr(type(model), "run_cells", lambda *given: seen.append(given[1].shape) or run_cells(*given))
    monitor._note(model)
    assert seen == [(T, 10, D)]


def test_the_first_engram_layer_is_watched_wherever_it_is():
    model, monitor = watched([GRU(3), Engram(H, N), Engram(2, 3)])
    assert monitor.layer == 1 and monitor.trace.shape == (N, H)
    assert model.cells[1] is monitor.cell


def test_a_model_without_engram_has_nothing_to_watch():
    with pytest.raises(ValueError, match=r"^model: expected one with an Engram cell"):
        watched([GRU(3), GRU(2)])


def test_two_monitors_would_mix_their_numbers():
    model, monitor = watched()
    _, other = watched()
    with pytest.raises(ValueError, match=r"^callbacks: expected one HebbianTraceMonitor"):
        model.fit(*sequences(10), epochs=1, callbacks=[monitor, other], verbose=0)


def test_another_probe_is_noticed_in_a_resumed_run(tmp_path):
    saving = {"checkpoint": tmp_path / "run.npz", "resume": True, "verbose": 0}
    model, monitor = watched()
    model.fit(*sequences(10), epochs=1, callbacks=[monitor], **saving)
    model, monitor = watched(n=9)
    with pytest.raises(ValueError, match=r"callbacks\.0\.probe"):
        model.fit(*sequences(10), epochs=2, callbacks=[monitor], **saving)


def test_a_probe_stays_as_it_was_given():
    """Its owner may go on to use the array: the trace "drifted" without any training."""
    model, x = watched()[0], sequences(5)[0]
    monitor = HebbianTraceMonitor(model, x)
    x[:] = 7
    monitor._note(model)
    assert monitor.statistics[-1]["drift"] == 0


def test_a_probe_is_checked_like_any_data():
    model = classifier(Engram(H, N))
    with pytest.raises(ValueError, match=rf"^x: expected shape \(n, T, {D}\)"):
        HebbianTraceMonitor(model, sequences(4)[0][0])


# Slots that nobody reads


def one_slot_a_step():
    """A model that reads one of 3 slots at a step, sequences of one step, and which slot each of them reads."""
    still = {"trace_noise": 0, "initial_scale": 0, "trace_clip": None}
    model = classifier(Engram(H, 3, retrieval="top_k", top_k=1, trace="sample", **still))
    x, y = sequences(80, steps=1)
    a = model.run_cells(model.time_major(x))[2][0].kept.a[0]
    x, y, slots = (part[a.max(-1) == 1][:60] for part in (x, y, a.argmax(-1)))  # a code of zeros reads all alike
    assert set(slots) == {0, 1, 2}
    return model, x, y, slots


def warned(model, x, y, batch_size, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, x, y, batch_size=batch_size, optimizer=SGD(1e-9), **{"epochs": 2} | settings)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("batch_size", (1, 59, 60))
@pytest.mark.parametrize("read", ({0, 1, 2}, {0, 2}, {1}))
def test_slots_are_dead_that_no_batch_of_an_epoch_reads(read, batch_size):
    """Judged on the last batch alone, of one sequence, two of three slots were "never read"."""
    model, x, y, slots = one_slot_a_step()
    x, y = (part[np.isin(slots, list(read))] for part in (x, y))
    found = [message.partition(" are never read")[0] for message in warned(model, x, y, batch_size)]
    assert found == [f"cell 0: {3 - len(read)} of its 3 memory slots"] * (len(read) < 3)


def test_what_was_read_before_a_resume_counts(tmp_path, monkeypatch):
    """Resumed at the last batch of the epoch, which reads one slot: nothing can be said of that epoch."""
    model, x, y, _ = one_slot_a_step()
    learn, calls = Classifier.loss_and_grads, []

    def dying(*given):
        calls.append(1)
        if len(calls) == 60:
            raise MemoryError
        return learn(*given)

    monkeypatch.setattr(Classifier, "loss_and_grads", dying)
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    saving = {"checkpoint": tmp_path / "run.npz", "resume": True, "epochs": 1}
    with pytest.raises(MemoryError):
        warned(model, x, y, 1, **saving)
    assert warned(one_slot_a_step()[0], x, y, 1, **saving) == [] and len(calls) == 61

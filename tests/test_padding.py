"""Pooling over time and padding: what is not there changes nothing."""

import numpy as np
import pytest
from tiny import (
    EACH_ALONE,
    KINDS,
    STACKS,
    T,
    classifier,
    every_kind,
    every_pooling,
    every_stack,
    masked_or_not,
    padding,
    randomise,
    sequences,
)

from enn_np import GRU, SGD, Engram

# Pooling by its definition, from the hidden states alone


@every_pooling
@masked_or_not
def test_pooling_is_what_it_says(pooling, masked):
    """A mean over padding too, or attention that looks there."""
    model = randomise(classifier(pooling=pooling, dtype="float64"))
    x, _ = sequences(7, dtype=np.float64)
    mask = padding(7) if masked else np.ones((7, T), bool)
    h, _, _ = model.run_cells(model.time_major(x), mask=mask.T.copy() if masked else None)
    pooled = []
    for b in range(7):
        live = h[mask[b], b]  # (real steps, H)
        scores = np.tanh(live @ model.params["pool.w"] + model.params["pool.b"]) if pooling == "attention" else 0
        weights = np.exp(scores) / np.exp(scores).sum() if pooling == "attention" else 1 / len(live)
        pooled.append(live[-1] if pooling == "last" else (weights * live).sum(0))
    want = np.stack(pooled) @ model.params["head.W"] + model.params["head.b"]
    np.testing.assert_allclose(model.predict_outputs(x, mask=mask if masked else None), want, rtol=1e-10, atol=1e-12)


# Padding


@every_stack
@every_pooling
def test_content_of_padding_does_not_matter(stack, pooling):
    """Neither for predictions nor for gradients."""
    model = randomise(classifier(STACKS[stack], pooling=pooling, dtype="float64", dropout=0.0))
    x, y = sequences(9, dtype=np.float64)
    mask = padding(9)
    other = np.where(mask[..., None], x, 1e3)
    np.testing.assert_array_equal(model.predict_outputs(x, mask=mask), model.predict_outputs(other, mask=mask))
    grads = [
        model.loss_and_grads(model.time_major(each), y, np.random.default_rng(0), model.time_major(mask))[1]
        for each in (x, other)
    ]
    for name, value in grads[0].items():
        np.testing.assert_allclose(value, grads[1][name], rtol=1e-9, atol=1e-12, err_msg=name)


@every_pooling
@pytest.mark.parametrize("junk", (np.nan, np.inf, 1e38, -1e30))
def test_padding_may_hold_anything(pooling, junk):
    """0 times NaN is NaN: one bad number at a padded step, and every batch mate is lost with it."""
    model, (x, y) = classifier([Engram(6, 4), GRU(3)], pooling=pooling), sequences(9)
    mask = padding(9)
    mask[0] = False  # a whole sequence of it
    other = np.where(mask[..., None], x, np.float32(junk))
    before = other.copy()
    np.testing.assert_array_equal(model.predict_proba(other, mask=mask), model.predict_proba(x, mask=mask))
    assert model.evaluate(other, y, mask=mask) == model.evaluate(x, y, mask=mask)
    histories, seconds = [], "seconds"
    for each in (x, other):
        fresh = classifier([Engram(6, 4), GRU(3)], pooling=pooling)
        settings = {"validation_data": (each, y, mask), "epochs": 2, "batch_size": 2, "verbose": 0}
        histories.append({k: v for k, v in fresh.fit(each, y, mask=mask, **settings).items() if k != seconds})
    assert histories[0] == histories[1]
    np.testing.assert_array_equal(other, before, err_msg="the caller's data were changed")
    with pytest.raises(ValueError, match="^x: every entry must be finite" if not np.isfinite(junk) else "^mask: "):
        model.predict(other, mask=mask[:, :-1] if np.isfinite(junk) else np.ones_like(mask))


@every_kind
@every_pooling
def test_batches_of_padding_alone_train_and_are_scored(kind, pooling):
    """Batches in which no step is real, for every shuffle, penalties included."""
    cells = Engram(16, 4, trace="sample", entropy=0.5, l1=0.1) if kind == "engram" else KINDS[kind]
    model, (x, y) = classifier(cells, pooling=pooling), sequences(8)
    mask = np.arange(8)[:, None] >= np.full((8, T), 6)
    for seed in range(3):
        history = model.fit(x, y, mask=mask, validation_data=(x, y, mask), batch_size=2, epochs=2, seed=seed)
        assert np.isfinite([value for values in history.values() for value in values]).all()
    assert model.evaluate(x, y, 1, mask) == pytest.approx(model.evaluate(x, y, 8, mask), rel=1e-5)


@pytest.mark.parametrize("penalties", ({"entropy": 2.0}, {"l1": 1.5}, {"entropy": 1.0, "l1": 1.0}, {}))
def test_the_penalty_is_a_number_of_its_own(penalties):
    """It is trained, yet the loss is that of the data, as in validation."""
    cell = Engram(8, 4, trace_noise=0.0, initial_scale=0.0, trace="sample", **penalties)
    model, (x, y) = classifier([cell, cell], dropout=0.0, dtype="float64"), sequences(10, dtype=np.float64)
    history = model.fit(x, y, epochs=1, batch_size=3, validation_data=(x, y), optimizer=SGD(1e-300), verbose=0)
    assert history["loss"] == pytest.approx(history["val_loss"], rel=1e-9)
    assert ("penalty" in history) == bool(penalties)
    if penalties:
        tapes = model.run_cells(model.time_major(x))[2]
        want = sum(cell.penalty(tape.kept.a)[0] for tape in tapes)
        assert history["penalty"] == pytest.approx([want], rel=1e-9)


@every_stack
@every_pooling
def test_a_padded_tail_is_the_shorter_sequence(stack, pooling):
    """Padding that counts in a mean, in attention, in a state or in the trace."""
    model = randomise(classifier(STACKS[stack], pooling=pooling, dtype="float64"))
    x, y = sequences(9, dtype=np.float64)
    mask = np.ones((9, T), bool)
    mask[:, 3:] = False
    np.testing.assert_allclose(model.predict_outputs(x, mask=mask), model.predict_outputs(x[:, :3]), rtol=1e-10)
    assert model.evaluate(x, y, mask=mask) == pytest.approx(model.evaluate(x[:, :3], y), rel=1e-10)


@pytest.mark.parametrize("kind", EACH_ALONE)
@every_pooling
def test_a_mask_belongs_to_its_own_sequence(kind, pooling):
    """Each sequence of a padded batch gives what it gives alone and unpadded."""
    model = randomise(classifier(EACH_ALONE[kind], pooling=pooling, dtype="float64"))
    x, _ = sequences(9, dtype=np.float64)
    mask = padding(9)
    together = model.predict_outputs(x, batch_size=4, mask=mask)
    alone = [model.predict_outputs(x[i : i + 1, : mask[i].sum()]) for i in range(9)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-9, atol=1e-12)


@every_kind
@every_pooling
def test_a_sequence_of_padding_alone_stays_finite(kind, pooling):
    """0 / 0 in the mean, or a softmax over nothing."""
    model = randomise(classifier(KINDS[kind], pooling=pooling))
    x, y = sequences(4)
    mask = np.ones((4, T), bool)
    mask[1] = False
    assert np.isfinite(model.predict_proba(x, mask=mask)).all()
    _, grads = model.loss_and_grads(model.time_major(x), y, np.random.default_rng(0), model.time_major(mask))
    assert all(np.isfinite(value).all() for value in grads.values())

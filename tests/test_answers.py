"""A label for each of the last steps: what is read, what is counted, and in which order."""

import numpy as np
import pytest
from problems import distance
from tiny import randomise, same_to_the_bit

from enn_np import GRU, Adam, Binding, Classifier, StepClassifier, load

K, N, T, D, C = 3, 5, 6, 4, 3


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, T, D)), rng.integers(C, size=(N, K))


def made(cells=None, answers=K, **settings):
    return randomise(StepClassifier(cells or GRU(4), D, C, answers, dropout=0.0, dtype="float64", **settings))


@pytest.mark.parametrize("cells", [GRU(4), (Binding(3, 4, temperature=0.5), GRU(4))])
def test_gradients_are_those_of_the_loss(cells, data):
    """Gradient at the wrong step or the wrong sequence, or of a sum in the place of the mean."""
    x, y = data
    model, rng = made(cells), np.random.default_rng(1)
    _, grads = model.loss_and_grads(model.time_major(x), y, rng)
    for name, value in model.params.items():
        way, start, found = rng.standard_normal(value.shape), value.copy(), []
        for side in (1, -1):
            value[...] = start + side * 1e-6 * way
            found.append(model.loss_and_grads(model.time_major(x), y, rng)[0]["loss"])
        value[...] = start
        assert distance(np.array((found[0] - found[1]) / 2e-6), np.array((grads[name] * way).sum())) < 1e-5, name


def test_answers_are_those_of_the_last_steps_in_order(data):
    """Steps or sequences that change places, and scores that count a batch more than once."""
    x, y = data
    model = made()
    for k in range(K):  # a sequence that ends at step k of the last ones has the same state there
        shorter = Classifier(GRU(4), D, C, dropout=0.0, dtype="float64")
        shorter.params = model.params
        np.testing.assert_allclose(
            model.predict_outputs(x, 2)[:, k], shorter.predict_outputs(x[:, : T - K + 1 + k]), rtol=1e-12
        )
    p = model.predict_proba(x)
    assert p.shape == (N, K, C) and (model.predict(x) == p.argmax(-1)).all()
    picked = np.take_along_axis(p, y[..., None], -1)
    for size in (2, 128):
        scores = model.evaluate(x, y, size)
        np.testing.assert_allclose(scores["loss"], -np.log(picked).mean(), rtol=1e-12)
        np.testing.assert_allclose(scores["accuracy"], (p.argmax(-1) == y).mean(), rtol=1e-12)


def test_it_trains_is_saved_and_refuses_what_it_cannot_read(data, tmp_path, monkeypatch):
    x, y = data
    model = made()
    assert model.fit(x, y, epochs=60, batch_size=2, optimizer=Adam(0.03), verbose=0)["accuracy"][-1] > 0.8
    found = load(model.save(tmp_path / "model.npz"))
    assert found.answers == K and same_to_the_bit(found.params, model.params)
    with pytest.raises(ValueError, match=r"y: expected shape \(5, 3\)"):
        model.evaluate(x, y[:, 0])
    with pytest.raises(ValueError, match="3 steps or more and no mask, got 6"):
        model.evaluate(x, y, mask=np.ones((N, T), bool))
    with pytest.raises(ValueError, match="3 steps or more and no mask, got 2"):
        model.evaluate(x[:, :2], y)
    monkeypatch.setattr(StepClassifier, "loss_and_grads", None)  # nothing is trained before a mistake is found
    mask, short = np.ones((N, T), bool), (x[:, :2], y)
    for name, data in {
        "mask": {"x": x, "y": y, "mask": mask},
        "x": {"x": x[:, :2], "y": y},
        "validation mask": {"x": x, "y": y, "validation_data": (x, y, mask)},
        "validation x": {"x": x, "y": y, "validation_data": short},
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected 3 steps or more and no mask, got [26].*one length"):
            model.fit(**data)
    for call in (model.predict, model.predict_proba):
        with pytest.raises(ValueError, match=r"^x: expected 3 steps or more"):
            call(x[:, :2])
    with pytest.raises(ValueError, match="answers: expected at least 1"):
        made(answers=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'pooling'"):
        made(pooling="mean")

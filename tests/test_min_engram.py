"""The network on one page is the package's network: same gradients, same training, and it learns."""

from pathlib import Path

import min_engram as page
import numpy as np
import pytest

from enn_np import Adam, Classifier, Engram, run

FOLDER = Path(__file__).parents[1] / "notebooks"


def twins(seed, T=14, B=6, D=5, H=8, N=4, C=3):
    """The page's parameters, the package's classifier with the same numbers under its own names, and a batch."""
    rng = np.random.default_rng(seed)
    p = {k: w + 0.3 * rng.normal(size=w.shape) for k, w in page.init(rng, D, H, N, C).items()}
    cell = Engram(H, N, page.eta, page.alpha, page.tau, sparsity=0, trace_clip=page.clip)
    model = Classifier(cell, D, C, dropout=0, dtype="float64")
    names = {k: {"W_y": "head.W", "b_y": "head.b"}.get(k, f"0.{k}") for k in p}
    assert set(names.values()) == set(model.params)
    for k, name in names.items():
        model.params[name][...] = p[k]
    x = rng.normal(size=(T, B, D))
    x[:2, 0] = 0  # an empty row: without a bias its cue has no length
    return p, model, names, x, rng.integers(0, C, B)


def assert_equal(found, names, wanted):
    assert found.keys() == names.keys()
    for k, name in names.items():
        assert np.abs(found[k] - wanted[name]).max() <= 1e-10 * max(1, np.abs(wanted[name]).max()), k


SIZES = [{}, {"B": 1}, {"T": 1, "N": 1}, {"D": 1, "H": 2, "C": 2}, {"T": 28, "B": 3, "H": 5}]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_packages(seed, sizes):
    p, model, names, x, y = twins(seed, **sizes)
    loss, g = page.loss_and_grads(p, x, y)
    metrics, grads = model.loss_and_grads(x, y, None)
    assert loss == pytest.approx(metrics["loss"], rel=1e-12)
    assert_equal(g, names, grads)


def test_gradients_are_the_packages_at_cues_without_length():
    """Initial biases are 0: an empty row's cue is the zero vector, where (3) holds the length."""
    p, model, names, x, y = twins(0)
    for k in ("b_z", "beta_z"):
        p[k][...] = model.params[names[k]][...] = 0
    assert_equal(page.loss_and_grads(p, x, y)[1], names, model.loss_and_grads(x, y, None)[1])


def test_every_step_is_the_packages_and_the_clip_acts():
    p, model, _, x, _ = twins(1, T=28, B=2, N=3)
    _, _, tape = run(model.cells[0], model.layer_params(0), x)
    _, h, kept = page.forward(p, x)
    A = np.array([step[-1] for step in kept])
    assert np.allclose(A, tape.states.A[1:], rtol=0, atol=1e-12) and np.allclose(
        h, tape.states.h[-1], rtol=0, atol=1e-12
    )
    assert 0 < (abs(A[-1]) == page.clip).mean() < 1


def test_ten_training_steps_are_the_packages():
    p, model, names, x, y = twins(2)
    m, v = ({k: np.zeros_like(w) for k, w in p.items()} for _ in range(2))
    optimizer = Adam(0.01, clip_norm=1.0)
    for t in range(1, 11):
        page.adam(p, page.loss_and_grads(p, x, y)[1], m, v, t, 0.01)
        optimizer.update(model.params, model.loss_and_grads(x, y, None)[1])
        assert_equal(p, names, model.params)


def test_it_checks_its_gradient_first_and_then_learns(capsys):
    accuracy = page.main(images=1600, epochs=2)
    first, *epochs = capsys.readouterr().out.splitlines()
    assert float(first.removeprefix("largest relative error of a gradient: ")) < 1e-6
    assert len(epochs) == 2 and f"test accuracy {accuracy:.1%}" in epochs[-1]
    assert accuracy > 0.5  # guessing gives 0.1


@pytest.mark.parametrize("wrong", [2.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["W_z", "M", "b_y"])
def test_its_check_finds_a_wrong_gradient(monkeypatch, name, wrong):
    right = page.backward

    def broken(*given):
        g = right(*given)
        return {**g, name: g[name] * wrong}

    monkeypatch.setattr(page, "backward", broken)
    with np.errstate(all="ignore"):
        assert not page.check(np.random.default_rng(0)) < 1e-6


def test_it_is_one_page():
    lines = (FOLDER / "min_engram.py").read_text(encoding="utf-8").splitlines()
    assert sum(1 for line in lines if line.strip()) <= 110
    assert {line for line in lines if "import" in line} == {"from pathlib import Path", "import numpy as np"}

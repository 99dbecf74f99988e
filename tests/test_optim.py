"""Optimizers against a few independent lines of Keras' rules, in float64 and float32."""

import copy
import gc
import pickle
import re
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import seeds
from tiny import classifier, copied, same_to_the_bit, sequences

from enn_np import GRU, SGD, Adam, LanguageModel, ReduceOnPlateau, optim

rates = st.sampled_from((1e-3, 0.05, 1.0))
limits = st.sampled_from((None, 0.1, 1.0, 100.0))


def keras_adam(p, gradients, rate, b1=0.9, b2=0.999, eps=1e-7):
    """keras/src/optimizers/adam.py: the bias correction is in the rate, eps beside the uncorrected root."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m = m + (1 - b1) * (g - m)
        v = v + (1 - b2) * (g * g - v)
        p = p - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
    return p


def keras_sgd(p, gradients, rate, momentum=0.0):
    """keras/src/optimizers/sgd.py: the rate is inside the velocity, so that a new rate leaves old speed alone."""
    velocity = 0.0
    for g, step_rate in zip(gradients, np.broadcast_to(rate, len(gradients)), strict=True):
        velocity = momentum * velocity - step_rate * g
        p = p + velocity
    return p


def by_norm(g, limit):
    """keras clip_by_norm: one tensor, its own length."""
    norm = np.sqrt((g * g).sum())
    return g if limit is None or norm <= limit else g * limit / norm


def draw(seed, steps=4):
    """Two parameters, and for every step a gradient of each; the second is much the longer."""
    rng = np.random.default_rng(seed)
    params = {"W": rng.standard_normal((3, 2)), "b": rng.standard_normal(4)}
    grads = [
        {name: (0.3, 9.0)[name == "b"] * rng.standard_normal(p.shape) for name, p in params.items()}
        for _ in range(steps)
    ]
    return params, grads


def train(optimizer, params, grads):
    """Parameters after all steps, given copies, because an update may overwrite both."""
    params = {name: value.copy() for name, value in params.items()}
    for step in grads:
        optimizer.update(params, {name: g.copy() for name, g in step.items()})
    return params


def assert_close(got, want):
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-14, err_msg=name)


@given(seeds, rates, limits, st.sampled_from((0.0, 0.5, 0.9)), st.sampled_from((0.9, 0.999)))
def test_adam_is_keras_adam(seed, rate, limit, beta_1, beta_2):
    """A forgotten bias correction, eps in the wrong place, or a clip over all tensors at once."""
    params, grads = draw(seed)
    got = train(Adam(rate, beta_1, beta_2, clip_norm=limit), params, grads)
    clipped = {name: [by_norm(step[name], limit) for step in grads] for name in params}
    assert_close(got, {name: keras_adam(params[name], clipped[name], rate, beta_1, beta_2) for name in params})


@given(seeds, rates, limits, st.sampled_from((0.0, 0.9)))
def test_sgd_is_keras_sgd(seed, rate, limit, momentum):
    """Momentum with the other sign, or a clip after the momentum."""
    params, grads = draw(seed)
    got = train(SGD(rate, momentum, clip_norm=limit), params, grads)
    clipped = {name: [by_norm(step[name], limit) for step in grads] for name in params}
    assert_close(got, {name: keras_sgd(params[name], clipped[name], rate, momentum) for name in params})


def test_epsilon_stands_beside_the_uncorrected_root():
    """With a tiny gradient the other form, eps beside the corrected root, moves 30 times as far."""
    p, g = np.zeros(1), np.full(1, 1e-7)
    got = train(Adam(1.0, epsilon=1e-7), {"p": p}, [{"p": g}])["p"]
    other_form = -1.0 * g / (g + 1e-7)
    np.testing.assert_allclose(got, keras_adam(p, [g], 1.0), rtol=1e-12)
    assert abs(other_form / got) > 10


def test_a_new_rate_leaves_old_momentum_alone():
    """The form u = momentum u + g, p -= rate u differs from Keras once a schedule changes the rate."""
    params, grads = draw(0)
    optimizer, got, schedule = SGD(0.1, momentum=0.9), {k: v.copy() for k, v in params.items()}, (0.1, 0.1, 0.01, 0.01)
    for rate, step in zip(schedule, grads, strict=True):
        optimizer.learning_rate = rate
        optimizer.update(got, {name: g.copy() for name, g in step.items()})
    assert_close(got, {name: keras_sgd(params[name], [g[name] for g in grads], schedule, 0.9) for name in params})


@given(seeds, st.sampled_from((0.1, 1.0, 1e6)))
def test_global_clip_keeps_the_direction_of_the_whole_step(seed, limit):
    """One factor for all tensors, and none where the common length is below the limit."""
    params, (grads, *_) = draw(seed)
    got = train(SGD(1.0, global_clip_norm=limit), params, [grads])
    norm = np.sqrt(sum((g * g).sum() for g in grads.values()))
    assert_close(got, {name: params[name] - grads[name] * min(1, limit / norm) for name in params})


def test_the_two_clips_differ():
    """Keras' clipnorm, which the paper uses, is per tensor: a short gradient keeps its length beside a long one."""
    params = {"short": np.zeros(2), "long": np.zeros(2)}
    grads = {"short": np.array([0.3, 0.4]), "long": np.array([30.0, 40.0])}
    own = train(SGD(1.0, clip_norm=1.0), params, [grads])
    common = train(SGD(1.0, global_clip_norm=1.0), params, [grads])
    np.testing.assert_allclose(own["short"], [-0.3, -0.4])
    np.testing.assert_allclose(own["long"], [-0.6, -0.8])
    assert np.linalg.norm(common["short"]) == pytest.approx(0.5 / np.hypot(50, 0.5))


def test_both_clips_together_cut_each_tensor_first():
    grads = {"a": np.array([5.0, 0.0]), "b": np.array([0.0, 0.5])}
    got = train(SGD(1.0, clip_norm=1.0, global_clip_norm=1.0), {name: np.zeros(2) for name in grads}, [grads])
    length = np.hypot(1, 0.5)
    np.testing.assert_allclose(got["a"], [-1 / length, 0])
    np.testing.assert_allclose(got["b"], [0, -0.5 / length])


every_optimizer = pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, settings) for kind in (SGD, Adam) for settings in ({}, {"clip_norm": 1}, {"global_clip_norm": 1})),
        (SGD, {"momentum": 0.9}),
    ],
)


@every_optimizer
def test_a_zero_gradient_changes_nothing(kind, settings):
    """0 / 0, where a clip divides by the length of a gradient or Adam by the root of zero."""
    optimizer = kind(0.1, **settings)
    params = {"W": np.ones((2, 2), np.float32)}
    for _ in range(3):
        optimizer.update(params, {"W": np.zeros((2, 2), np.float32)})
    np.testing.assert_array_equal(params["W"], 1)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@every_optimizer
def test_precision_and_identity_are_kept(kind, settings, dtype):
    """Updates happen inside the given arrays (a model's layers hold on to them), in their own precision."""
    optimizer = kind(0.1, **settings)
    params = {"W": np.ones((2, 3), dtype), "b": np.ones(3, dtype)}
    arrays = dict(params)
    for _ in range(2):
        optimizer.update(params, {name: np.full_like(value, 0.5) for name, value in params.items()})
    for name, array in arrays.items():
        assert params[name] is array and array.dtype == dtype
        assert (array < 1).all()
    for moment in optimizer.state.values():
        assert moment.keys() == params.keys()
        assert all(moment[name].dtype == dtype and moment[name].shape == params[name].shape for name in params)


@given(seeds, st.sampled_from(((7, 13), (1, 200), (50, 1), (300,), (2, 3, 40), (), (9,))), st.integers(1, 64))
@every_optimizer
def test_a_large_array_is_updated_piece_by_piece_and_alike(kind, settings, seed, shape, cached):
    """To the bit, whatever the shape, how many numbers a piece has, and the order of the numbers in memory."""
    rng = np.random.default_rng(seed)
    params = {"W": np.asfortranarray(rng.standard_normal(shape))}
    grads = [{"W": np.array(rng.standard_normal(params["W"].shape))} for _ in range(3)]
    whole = train(kind(0.1, **settings), params, grads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "CACHED", cached)
        pieces = train(kind(0.1, **settings), params, grads)
    assert same_to_the_bit(whole, pieces)


def test_a_rule_that_needs_the_whole_array_gets_it():
    """Of an optimizer of your own, which does not say that it is `elementwise`."""

    class Lars(optim.Optimizer):
        def rule(self, p, g):
            p -= self.learning_rate * g / np.linalg.norm(g)

    params, g = {"W": np.zeros((300, 400))}, np.random.default_rng(0).standard_normal((300, 400))
    assert g.size > optim.CACHED
    Lars(0.1).update(params, {"W": g})
    assert np.linalg.norm(params["W"]) == pytest.approx(0.1)


def test_a_numpy_rate_does_not_upcast():
    """np.float64 scalars, as a schedule computes them, would make float32 moments float64."""
    params = {"W": np.ones(2, np.float32)}
    optimizer = Adam(np.float64(0.1), np.float64(0.9), np.float64(0.999), np.float64(1e-7), clip_norm=np.float64(1))
    optimizer.update(params, {"W": np.ones(2, np.float32)})
    assert params["W"].dtype == np.float32 and type(optimizer.learning_rate) is float


def test_gradient_may_come_without_some_parameters():
    """What is left out of the gradients stays."""
    params, optimizer = {"W": np.ones(2), "frozen": np.ones(2)}, Adam()
    optimizer.update(params, {"W": np.ones(2)})
    assert (params["frozen"] == 1).all() and (params["W"] < 1).all()


@pytest.mark.parametrize("settings", ({}, {"frozen": ("b",)}, {"global_clip_norm": 1.0}, {"clip_norm": 1.0}))
def test_an_optimizer_in_a_loop_of_ones_own(settings):
    """Catches a frozen parameter that has no gradient (KeyError, after a step), and a step without any (IndexError)."""
    params, optimizer = {"a": np.ones(2), "b": np.ones(2)}, Adam(0.2, **settings)
    optimizer.update(params, {"a": np.ones(2)})
    optimizer.update(params, {})
    assert optimizer.steps == 2 and (params["a"] < 0.9).all() and (params["b"] == 1).all()


@pytest.mark.parametrize(("name", "shape"), (("W", (1, 2)), ("W", ()), ("b", (1,)), ("c", (4,))))
def test_a_gradient_that_fits_no_parameter_is_named_before_any_step(name, shape):
    """One that broadcasts trained without a word, and an unknown name was a KeyError after a step."""
    params, grads = draw(0)
    optimizer, before = Adam(0.1), {key: value.copy() for key, value in params.items()}
    with pytest.raises(ValueError, match=rf"^grads: .*'{name}', {re.escape(str(shape))}"):
        optimizer.update(params, grads[0] | {name: np.ones(shape)})
    assert optimizer.steps == 0 and same_to_the_bit(params, before)


def test_steps_count_from_one():
    """The first step of Adam is the whole rate, whatever the gradient's size."""
    for size in (1e-3, 1e3):
        got = train(Adam(0.1, epsilon=1e-12), {"p": np.zeros(1)}, [{"p": np.full(1, size)}])["p"]
        np.testing.assert_allclose(got, -0.1, rtol=1e-6)


# One optimizer, one model


def other_models(model):
    """What a used optimizer could be handed next, by name."""
    yield "another seed", classifier(seed=1)
    yield "the same seed again", classifier()
    yield "a layer more", classifier((GRU(6), GRU(6)))
    yield "another dtype", classifier(dtype="float64")
    yield "other shapes", classifier(GRU(5))
    shared = classifier()
    shared.params["0.W_h"] = model.params["0.W_h"]
    yield "some arrays shared", shared


@pytest.mark.parametrize("kind", (SGD, Adam))
def test_another_model_is_refused_before_any_change(kind):
    """Its moments, steps and decayed rate would be carried over, or fail at a shape and name nothing."""
    (x, y), model, optimizer = sequences(), classifier(), kind(1e-2)
    model.fit(x, y, epochs=1, optimizer=optimizer, verbose=0)
    before = copy.deepcopy(vars(optimizer))
    for name, other in other_models(model):
        weights, data = copied(other.params), x.astype(other.dtype)
        with pytest.raises(ValueError, match=r"^optimizer: make a new one .*1 steps with another"):
            other.fit(data, y, epochs=1, optimizer=optimizer, verbose=0)
        assert same_to_the_bit(other.params, weights), name
        with pytest.raises(ValueError, match=r"^optimizer: "):
            optimizer.update(other.params, {key: np.ones_like(value) for key, value in other.params.items()})
        assert same_to_the_bit(other.params, weights), name
    unpickled = pickle.loads(pickle.dumps(optimizer))
    for other in (classifier(GRU(5)), classifier(dtype="float64")):
        with pytest.raises(ValueError, match=r"^optimizer: make a new one for .*1 steps with another"):
            other.fit(x.astype(other.dtype), y, epochs=1, optimizer=unpickled, verbose=0)
    assert unpickled.steps == 1
    assert optimizer.steps == before["steps"] and optimizer.learning_rate == before["learning_rate"]
    assert all(same_to_the_bit(optimizer.state[name], before["state"][name]) for name in optimizer.state)
    text = LanguageModel(GRU(4), 9, 4)
    with pytest.raises(ValueError, match=r"^optimizer: "):
        text.fit_stream(np.arange(60) % 9, epochs=1, batch_size=2, optimizer=optimizer, verbose=0)
    model.fit(x, y, epochs=1, optimizer=optimizer, verbose=0)  # the same one goes on
    assert optimizer.steps == 2


def test_layers_added_to_the_same_model_are_refused():
    (x, y), model, optimizer = sequences(), classifier(), Adam()
    model.fit(x, y, epochs=1, optimizer=optimizer, verbose=0)
    bigger = classifier((GRU(6), GRU(6)))
    model.cells, model.params = bigger.cells, bigger.params
    with pytest.raises(ValueError, match=r"^optimizer: "):
        model.fit(x, y, epochs=1, optimizer=optimizer, verbose=0)


def test_seeds_in_a_loop_are_refused_though_the_model_before_is_gone():
    """The next model may lie at the very addresses of the one before; nor may the optimizer keep that one alive."""
    (x, y), optimizer = sequences(), Adam()
    model = classifier()
    model.fit(x, y, epochs=1, optimizer=optimizer, callbacks=[ReduceOnPlateau("loss")], verbose=0)
    gone = weakref.ref(model.params["0.W_h"])
    del model
    gc.collect()
    assert gone() is None
    for seed in range(3):
        with pytest.raises(ValueError, match=r"^optimizer: "):
            classifier(seed=seed).fit(x, y, epochs=1, optimizer=optimizer, verbose=0)


def test_an_optimizer_that_has_done_nothing_serves_anyone():
    """A call refused for another mistake must not tie it."""
    (x, y), optimizer = sequences(), Adam(frozen=("0.W_h",))
    with pytest.raises(ValueError, match=r"^monitor: "):
        classifier().fit(x, y, optimizer=optimizer, callbacks=[ReduceOnPlateau("val_loss")], verbose=0)
    with pytest.raises(ValueError, match=r"^frozen: expected names among "):
        classifier().fit(x, y, optimizer=Adam(frozen=("0.Z",)), verbose=0)
    classifier().fit(x, y, epochs=1, optimizer=optimizer, verbose=0)


@pytest.mark.parametrize("again", (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))))
def test_a_copy_of_model_and_optimizer_trains_on_alike(again):
    params, (*_, grads) = draw(0)
    optimizer = Adam(0.1)
    optimizer.update(params, {name: g.copy() for name, g in grads.items()})
    params_2, optimizer_2 = again((params, optimizer))
    for p, o in ((params, optimizer), (params_2, optimizer_2)):
        o.update(p, {name: g.copy() for name, g in grads.items()})
    assert same_to_the_bit(params, params_2)


BAD = (
    (Adam, {"learning_rate": 0}, ValueError),
    (Adam, {"learning_rate": -1e-3}, ValueError),
    (Adam, {"learning_rate": "fast"}, TypeError),
    (Adam, {"learning_rate": float("nan")}, ValueError),
    (Adam, {"beta_1": 1.0}, ValueError),
    (Adam, {"beta_2": 1}, ValueError),
    (Adam, {"beta_1": -0.1}, ValueError),
    (Adam, {"epsilon": 0}, ValueError),
    (Adam, {"clip_norm": 0}, ValueError),
    (Adam, {"global_clip_norm": -1}, ValueError),
    (SGD, {"momentum": 1.5}, ValueError),
    (SGD, {"momentum": True}, TypeError),
    (SGD, {"clip_norm": "1"}, TypeError),
)


@pytest.mark.parametrize(("kind", "settings", "error"), BAD)
def test_bad_hyper_parameters_are_named(kind, settings, error):
    ((name, value),) = settings.items()
    with pytest.raises(error, match=rf"^{name}: .*got {value!r}"):
        kind(**settings)

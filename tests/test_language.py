"""Language models: gradients of the whole, the state that is carried, what they learn, and what they write."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn_np import GRU, LSTM, RNN, SGD, Adam, Callback, EarlyStopping, Engram, ReduceOnPlateau, load, run
from enn_np.data.text import stream_batches, unigram_perplexity
from enn_np.gradcheck import Kink, _pattern, compare
from enn_np.language import WIKITEXT2, LanguageModel, cached_perplexity, wikitext2_recipe

V, T, B = 7, 4, 3
SAMPLE, BATCH = Engram(6, 3, trace="sample"), Engram(6, 3, trace_noise=0.1)
MODELS = {
    "one cell": (LSTM(4), {"embedding": 3}),
    "two layers": ((GRU(3), LSTM(4)), {"embedding": 3}),
    "tied": (RNN(4), {"embedding": 4, "tied": True}),
    "adaptive": (LSTM(4), {"embedding": 3, "head": "adaptive", "cutoffs": (2, 4)}),
    "tied, adaptive": (LSTM(4), {"embedding": 4, "tied": True, "head": "adaptive", "cutoffs": (2, 4)}),
    "id as a number": (LSTM(4), {"embedding": None}),
    "engram, own traces": (SAMPLE, {"embedding": 3}),
    "engram, one trace, tied": (BATCH, {"embedding": 6, "tied": True}),
    "engram with penalty": (Engram(6, 3, l1=0.1, entropy=0.2), {"embedding": None}),
}
each_model = pytest.mark.parametrize("name", MODELS)


def build(name, **changes):
    """A float64 model with every parameter random, biases too."""
    cells, settings = MODELS[name]
    model = LanguageModel(cells, V, **{**settings, "dtype": "float64", **changes})
    rng = np.random.default_rng(8)
    for value in model.params.values():
        value[...] = 0.5 * rng.standard_normal(value.shape)
    return model


def words(shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape)


def cyclic(n=600, seed=0):
    """A language of five words where 1 follows 0, 2 follows 1 and so on, but for one word in ten drawn at random."""
    rng, text = np.random.default_rng(seed), [0]
    for _ in range(n - 1):
        text.append((text[-1] + 1) % 5 if rng.random() < 0.9 else int(rng.integers(5)))
    return np.array(text)


# ----------------------------------------------------------------------------------------------------------- gradients


@each_model
@given(seed=st.integers(0, 10_000), dropout=st.sampled_from((0.0, 0.4)), carried=st.booleans(), masked=st.booleans())
@settings(max_examples=8)
def test_gradients_of_the_whole_model_agree_with_finite_differences(name, seed, dropout, carried, masked):
    model = build(name, dropout=dropout)
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        ids, targets = rng.integers(0, V, (2, T, B))
        mask = (rng.random((T, B)) < 0.7) | (np.arange(T) == 0)[:, None] if masked else None
        targets[1:][rng.random((T - 1, B)) < 0.3] = -1  # nothing asked
        states = model.hidden(words((5, B), seed), np.random.default_rng(0))[1] if carried else None

        def loss(params, ids=ids, targets=targets, mask=mask, states=states):
            """The same draws of dropout, states and noise at every call."""
            model.params = params
            h, _, memo = model.hidden(ids, np.random.default_rng(seed), mask, states, learning=True)
            asked = targets >= 0 if mask is None else mask & (targets >= 0)
            value, _ = model.head.loss(model.layer_params("head"), h, targets, asked)
            tapes = memo[0]
            for cell, tape in zip(model.cells, tapes, strict=True):
                if isinstance(cell, Engram):
                    value += cell.penalty(tape.kept.a, mask)[0]
                    # Units almost all off: layer norm divides by almost nothing, too curved for steps of 1e-6.
                    # All off (1000 = 1 / sqrt(1e-6)) is a constant, and fine.
                    if any(((inv > 30) & (inv < 999)).any() for inv in (tape.e.r_inv, tape.kept.r_inv)):
                        raise Kink
            return value, [p.copy() for c, t in zip(model.cells, tapes, strict=True) for p in _pattern(c, t)]

        params = model.params
        metrics, grads, _ = model.learn(ids, targets, np.random.default_rng(seed), mask, states)
        assert grads.keys() == params.keys()
        try:
            assert np.isclose(metrics["loss"] + metrics.get("penalty", 0), loss(params)[0], rtol=1e-12)
            errors = compare(loss, params, grads, rng)
        except Kink:
            continue
        finally:
            model.params = params
        assert max(errors.values()) <= 1e-6, errors
        return
    raise AssertionError("20 draws in a row lay on a kink")


@pytest.mark.parametrize("name", ["tied", "tied, adaptive"])
def test_a_tied_table_is_one_parameter_with_the_gradients_of_both_uses(name):
    tied, apart = build(name), build(name, tied=False)
    assert tied.params.keys() == apart.params.keys() - {"embedding.W"}
    apart.head = tied.head  # whose rare words are as wide as the others
    K = len(tied.head.cutoffs)

    def table(params):
        rare = [params[f"head.W{i}"] for i in range(1, K + 1)]
        return np.concatenate([params["head.W"][: len(params["head.W"]) - K], *rare])

    assert table(tied.params).shape == (V, 4)
    apart.params = {**tied.params, "embedding.W": table(tied.params)}
    assert apart.size - tied.size == 4 * V
    ids, targets = words((2, T, B))
    rng = np.random.default_rng
    one, two = (model.learn(ids, targets, rng(0))[1] for model in (tied, apart))
    assert np.allclose(table(one), table(two) + two["embedding.W"], rtol=1e-12)
    same = one.keys() - {"head.W", "head.W1", "head.W2"}
    assert all(np.allclose(one[name], two[name], rtol=1e-12) for name in same)
    assert K == 0 or np.allclose(one["head.W"][-K:], two["head.W"][-K:], rtol=1e-12)  # clusters are no words
    cell, given = MODELS[name]
    assert 0.05 < abs(table(LanguageModel(cell, V, **given).params)).max() < 0.1  # as an embedding starts


def test_dropout_is_drawn_anew_at_every_step_keeps_the_mean_and_is_off_in_evaluation():
    model = LanguageModel(LSTM(50), V, embedding=40, dropout=0.25)
    model.params["embedding.W"][...] = 1
    _, _, (_, drop_in, drop_out) = model.hidden(np.zeros((20, 10), int), np.random.default_rng(0), learning=True)
    assert drop_in.shape == (20, 10, 40) and drop_out.shape == (20, 10, 50)
    assert (drop_in[0] != drop_in[1]).any()
    assert set(np.unique(drop_in)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(drop_in.mean() - 1) < 0.05
    for rng in (None, np.random.default_rng(0)):  # random states at inference are no dropout
        assert model.hidden(np.zeros((2, 1), int), rng)[2][1:3] == (None, None)
    assert model.evaluate_stream(words(50)) == model.evaluate_stream(words(50))


# ------------------------------------------------------------------------------------------------ the carried state


@each_model
@given(cut=st.integers(1, 8))
@settings(max_examples=8)
def test_pieces_with_the_state_carried_equal_one_long_run(name, cut):
    model, ids = build(name), words((9, B))
    whole, finals, _ = model.hidden(ids)
    first, states, _ = model.hidden(ids[:cut])
    second, ends, _ = model.hidden(ids[cut:], states=states)
    assert np.allclose(np.concatenate([first, second]), whole, rtol=1e-12, atol=1e-14)
    for end, final in zip(ends, finals, strict=True):
        assert all(np.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(end, final, strict=True))


@each_model
def test_evaluation_of_a_stream_scores_every_next_word_given_all_before(name):
    model, tokens = build(name), words(41)
    h, _, _ = model.hidden(tokens[:-1, None])
    log_p = model.head.log_probabilities(model.layer_params("head"), h)[:, 0]
    wanted = -log_p[np.arange(40), tokens[1:]].mean()
    for steps in (1, 7, 40, 1000):
        found = model.evaluate_stream(tokens, steps=steps)
        assert np.isclose(found["loss"], wanted, rtol=1e-12)
        assert np.isclose(found["perplexity"], math.exp(wanted), rtol=1e-12)
        assert np.isclose(found["bits"], wanted / math.log(2), rtol=1e-12)
        assert found["accuracy"] == (log_p.argmax(-1) == tokens[1:]).mean()


@pytest.mark.filterwarnings("ignore:cell 0. .*Hebbian trace:RuntimeWarning")  # four slots are few
def test_every_epoch_starts_from_zero_and_every_piece_from_the_end_of_the_one_before():
    model = LanguageModel([Engram(4, 3), LSTM(5)], V, embedding=3)
    starts, ends, learn = [], [], model.learn

    def watched(ids, targets, rng, mask=None, states=None):
        starts.append(states)
        found = learn(ids, targets, rng, mask, states)
        ends.append(found[-1])
        return found

    model.learn = watched
    model.fit_stream(words(61), epochs=2, batch_size=3, steps=5, verbose=0)
    assert len(starts) == 8  # 20 columns, 4 pieces an epoch
    for first in (starts[0], starts[4]):
        assert not any(part.any() for state in first for part in state)
    for i in (1, 2, 3, 5, 6, 7):
        for one, other in zip(starts[i], ends[i - 1], strict=True):
            assert all((part == before).all() for part, before in zip(one, other, strict=True))
        assert any(part.any() for state in starts[i] for part in state)


def test_windows_start_fresh_and_do_not_see_each_other_where_every_sample_has_its_own_trace():
    model = build("engram, own traces")
    x, y = words((6, T)), words((6, T), seed=1)
    alone = [model.evaluate(x[i : i + 1], y[i : i + 1])["loss"] for i in range(6)]
    assert np.isclose(model.evaluate(x, y, batch_size=4)["loss"], np.mean(alone), rtol=1e-12)
    shared = build("engram, one trace, tied")
    alone = [shared.evaluate(x[i : i + 1], y[i : i + 1])["loss"] for i in range(6)]
    assert not np.isclose(shared.evaluate(x, y)["loss"], np.mean(alone), rtol=1e-6)  # what the docstring warns of


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_is_of_the_word_after_the_last_real_one(name):
    """As an error in circles: integers are no floats, floats are no ids."""
    model, x = build(name), words((5, T))
    mask = np.arange(T) < np.array([T, 1, 2, T, 3])[:, None]
    p = model.predict_outputs(x, batch_size=5, mask=mask)
    assert p.shape == (5, V) and np.allclose(np.exp(p).sum(1), 1, rtol=1e-12)
    h = model.hidden(x.T, mask=mask.T)[0][mask.sum(1) - 1, range(5)]
    assert np.allclose(p, model.head.log_probabilities(model.layer_params("head"), h), rtol=1e-12)


def test_an_empty_prompt_is_called_empty():
    with pytest.raises(ValueError, match=r"^prompt_ids: expected integer ids .*got an empty array"):
        build("one cell").sample([], 3)


def test_padding_is_neither_scored_nor_learned():
    model = build("one cell")
    x, y = words((5, T)), words((5, T), seed=1)
    mask = np.arange(T) < np.array([4, 1, 2, 3, 4])[:, None]
    found = model.evaluate(x, y, mask=mask)
    assert found == model.evaluate(np.where(mask, x, 0), np.where(mask, y, 0), mask=mask)
    each = [model.evaluate(x[i : i + 1, :n], y[i : i + 1, :n])["loss"] * n for i, n in enumerate(mask.sum(1))]
    assert np.isclose(found["loss"], sum(each) / mask.sum(), rtol=1e-12)
    metrics, _ = model.loss_and_grads(x.T.copy(), y, np.random.default_rng(0), mask.T)
    assert np.isclose(metrics["loss"], found["loss"], rtol=1e-12)
    assert metrics["accuracy"] == found["accuracy"] * mask.sum()


@pytest.mark.parametrize("masked", [False, True])
@each_model
def test_a_step_where_nothing_is_asked_has_no_loss(name, masked):
    """-1 as target: loss, gradients and numbers are those of a head that is shown the other steps alone."""
    model, ids, targets = build(name), *words((2, T, B))
    mask = np.arange(T)[:, None] < np.array([T, *[2] * (B - 1)]) if masked else None
    asked = np.random.default_rng(3).random((T, B)) < 0.5
    asked[0] = True
    h, _, _ = model.hidden(ids, np.random.default_rng(1), mask, learning=True)
    counted = asked if mask is None else asked & mask
    loss, right = model.head.loss(model.layer_params("head"), h[counted], targets[counted])
    with_gaps = np.where(asked, targets, -1)
    numbers, grads, _ = model.learn(ids, with_gaps, np.random.default_rng(1), mask)
    assert np.isclose(numbers["loss"], loss, rtol=1e-12) and numbers["accuracy"] == right
    other = np.where(asked, targets, (targets + 1) % V)  # what stands there is never looked at
    weights = model.head.loss_and_grads(model.layer_params("head"), h, other, counted)[2]
    for key, g in weights.items():
        if not (model.tied and key.startswith("W")):  # which has the embedding's gradient, too
            np.testing.assert_allclose(grads[f"head.{key}"], g, rtol=1e-10, atol=1e-15)
    x, y = ids.T.copy(), with_gaps.T.copy()
    assert (model.counts(x, y) == asked.sum(0)).all()
    with pytest.raises(ValueError, match=r"^y: expected words, got -1 only"):
        model.fit(x, np.full_like(y, -1), verbose=0)
    with pytest.raises(ValueError, match=r"^y: expected ids 0 to"):
        model.fit(x, y - 1, verbose=0)


def ragged(n=9, seed=2):
    """Windows x, y (n, T) and a mask with 0 to T real steps a row, some rows with none."""
    lengths = np.array([0, 0, 0, *np.random.default_rng(seed).integers(1, T + 1, n - 3)])
    return words((n, T)), words((n, T), seed=1), np.arange(T) < lengths[:, None]


STILL = {"trace": "sample", "trace_noise": 0.0, "initial_scale": 0.0}  # training draws nothing


@pytest.mark.parametrize("cell", [LSTM(4), Engram(6, 3, entropy=3.0, **STILL), Engram(6, 3, l1=2.0, **STILL)])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_training_reports_what_validation_reports(cell, batch_size):
    """Rows of one word that weigh as much as rows of four, penalties in the loss, the mean of batches' perplexities."""
    model, (x, y, mask) = LanguageModel(cell, V, embedding=3, dtype="float64"), ragged()
    still = {"optimizer": SGD(1e-300), "epochs": 1, "verbose": 0, "batch_size": batch_size}
    history = model.fit(x, y, mask=mask, validation_data=(x, y, mask), **still)
    text = model.fit_stream(words(101), steps=3, validation_data=words(101), **still)
    wanted = model.evaluate(x, y, mask=mask)
    rows, one = model.evaluate_stream(words(101), batch_size, 3), model.evaluate_stream(words(101))
    for name in ("loss", "perplexity", "bits", "accuracy"):
        alike = (history[name], history[f"val_{name}"]), (history[name], wanted[name])
        for found, like in (*alike, (text[name], rows[name]), (text[f"val_{name}"], one[name])):  # one row, as a test
            np.testing.assert_allclose(found, like, rtol=1e-9, err_msg=name)
    penalised = isinstance(cell, Engram)
    for found in (history, text):
        assert ("penalty" in found) == penalised and "val_penalty" not in found
    assert not penalised or (history["penalty"][0] > 0.5 and text["penalty"][0] > 0.5)


def test_windows_without_a_real_step_change_nothing_and_stop_nothing():
    """A batch of padding alone ended training for some seeds; and it must not move Adam's moments."""
    x, y, mask = ragged(12)
    live = mask.any(1)
    for seed in range(4):
        one, two = (LanguageModel(LSTM(4), V, embedding=3) for _ in range(2))
        settings = {"batch_size": 2, "epochs": 2, "seed": seed, "verbose": 0}
        history = one.fit(x, y, mask=mask, validation_data=(x, y, mask), **settings)
        without = two.fit(x[live], y[live], mask=mask[live], validation_data=(x, y, mask), **settings)
        assert all((one.params[name] == two.params[name]).all() for name in one.params)
        assert history["loss"] == without["loss"]
    assert one.evaluate(x, y, 1, mask) == pytest.approx(one.evaluate(x[live], y[live], mask=mask[live]), rel=1e-6)
    for call in (one.evaluate, one.fit):
        with pytest.raises(ValueError, match=r"^mask: expected True at real steps, got only False; ~mask"):
            call(x, y, mask=np.zeros_like(mask))
    with pytest.raises(ValueError, match=r"^validation mask: "):
        one.fit(x, y, mask=mask, validation_data=(x, y, np.zeros_like(mask)))
    with pytest.raises(ValueError, match=r"^validation mask: "):
        one.fit(x[::-1], y[::-1], mask=mask[::-1], validation_split=0.25)


def test_ids_at_padded_steps_are_never_read():
    """-100 stands for padding elsewhere, and 7 is no word here."""
    model, (x, y, mask) = build("one cell"), ragged()
    spoilt = [np.where(mask, part, np.where(x % 2, -100, V)) for part in (x, y)]
    assert model.evaluate(*spoilt, mask=mask) == model.evaluate(x, y, mask=mask)
    model.fit(*spoilt, mask=mask, epochs=1, verbose=0)
    with pytest.raises(ValueError, match=r"^x: expected ids 0 to 6"):
        model.evaluate(*spoilt)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("cell", [LSTM(12), Engram(12, 4, trace="sample")], ids=["lstm", "engram"])
@pytest.mark.parametrize(
    "settings",
    [{"tied": True}, {"head": "adaptive", "cutoffs": (2,)}, {"head": "adaptive", "cutoffs": (2,), "tied": True}],
    ids=["tied softmax", "adaptive", "tied adaptive"],
)
def test_training_on_a_stream_learns_a_small_language(cell, settings):
    train, valid = cyclic(1200), cyclic(300, seed=1)
    model = LanguageModel(cell, 5, embedding=12, dropout=0.1, **settings)
    optimizer = Adam(0.01, global_clip_norm=1.0)
    history = model.fit_stream(
        train, epochs=4, batch_size=8, steps=10, validation_data=valid, optimizer=optimizer, verbose=0
    )
    floor = unigram_perplexity(np.bincount(train), valid)
    assert history["val_perplexity"][-1] < 2.6 < 4.5 < floor  # chance alone leaves about 1.7
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert model.evaluate_stream(valid)["accuracy"] > 0.8
    assert np.allclose(history["val_bits"], np.array(history["val_loss"]) / math.log(2))


def test_windows_of_ids_as_numbers_train_as_any_model_does():
    """The paper's protocol: id as one float, random states at inference too, each window fresh, validation a share."""
    x = cyclic(640).reshape(20, 32)
    y = np.pad(x[:, 1:], ((0, 0), (0, 1)))
    model = LanguageModel([RNN(8), RNN(8)], 5, embedding=None, random_inference=True)
    callbacks = [EarlyStopping("val_perplexity"), ReduceOnPlateau("val_perplexity")]
    settings = {"batch_size": 4, "validation_split": 0.2, "optimizer": Adam(0.01), "callbacks": callbacks}
    history = model.fit(x, y, epochs=3, verbose=0, **settings)
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert history["val_perplexity"][-1] < 5
    assert history["perplexity"][-1] < 5
    assert 0 <= history["accuracy"][-1] <= 1


@pytest.mark.filterwarnings("ignore:cell 0. .*Hebbian trace:RuntimeWarning")  # four slots are few
def test_training_repeats_to_the_bit_and_callbacks_watch_it():
    epochs = []

    class Watch(Callback):
        def on_epoch_end(self, training, logs):
            epochs.append(logs["val_perplexity"])

    def train():
        model = LanguageModel(Engram(6, 3), V, embedding=4, dropout=0.3)
        plateau = ReduceOnPlateau(patience=1, min_delta=10.0)  # nothing falls by so much: halve at every epoch
        history = model.fit_stream(
            words(200),
            epochs=4,
            batch_size=5,
            steps=6,
            validation_data=words(60),
            optimizer=Adam(0.01),
            callbacks=[plateau, EarlyStopping(patience=2, min_delta=10.0), Watch()],
            seed=3,
            verbose=0,
        )
        return model, history

    one, history = train()
    two, _ = train()
    assert all((one.params[name] == two.params[name]).all() for name in one.params)
    assert history.stopped == "early" and len(history["loss"]) == 3
    assert history["learning_rate"] == [0.01, 0.01, 0.005]
    assert epochs[:3] == history["val_perplexity"]
    assert np.allclose(history["perplexity"], np.exp(history["loss"]))


# ------------------------------------------------------------------------------------------------------------- writing


def test_sampling_is_seeded_and_greedy_sampling_goes_round_the_cycle():
    model = LanguageModel(LSTM(12), 5, embedding=12, tied=True)
    model.fit_stream(cyclic(1200), epochs=4, batch_size=8, steps=10, optimizer=Adam(0.02), verbose=0)
    assert model.sample([0, 1, 2], 6, temperature=0).tolist() == [3, 4, 0, 1, 2, 3]

    def drawn(seed, **how):
        return model.sample([3], 40, rng=np.random.default_rng(seed), **how).tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) <= set(range(5))
    steps = [np.diff(drawn(1, temperature=degree)) % 5 for degree in (0.3, 1, 3)]
    orderly = [(step == 1).mean() for step in steps]
    assert orderly[0] >= orderly[1] > orderly[2]
    assert (model.sample([3], 5) == model.sample([3], 5)).all()


def test_sampling_carries_the_state():
    """Reading a prompt and what was drawn since at once gives the word that sampling step by step gave."""
    for name in MODELS:
        model = build(name)
        drawn = model.sample([1, 2], 5, temperature=0)
        h, _, _ = model.hidden(np.array([1, 2, *drawn[:-1]])[:, None])
        log_p = model.head.log_probabilities(model.layer_params("head"), h[-1])
        assert log_p.argmax() == drawn[-1]


# ------------------------------------------------------------------------------------------------------ files, reports


@each_model
def test_a_saved_model_comes_back(name, tmp_path):
    model = build(name, dropout=0.2, seed=4)
    path = model.save(tmp_path / "model.npz")
    back = load(path)
    assert back.config() == model.config()
    assert back.evaluate_stream(words(40)) == model.evaluate_stream(words(40))


def test_files_of_other_models_are_refused(tmp_path):
    from enn_np import checkpoint

    model = build("one cell")
    with pytest.raises(ValueError, match=r"bad\.npz.*surprise"):
        load(checkpoint.write(tmp_path / "bad.npz", {**model.config(), "surprise": 1}, model.params))
    with pytest.raises(ValueError, match=r"head\.b was None"):
        params = {name: value for name, value in model.params.items() if name != "head.b"}
        load(checkpoint.write(tmp_path / "part.npz", model.config(), params))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.npz")


def test_scores_are_in_nats_bits_and_words():
    model = build("one cell")
    found = model.scores({"loss": 2 * math.log(8), "accuracy": 1}, 2)
    wanted = {"loss": math.log(8), "perplexity": 8, "bits": 3, "accuracy": 0.5}
    assert found == pytest.approx(wanted)
    assert model.scores({"loss": 1e6, "accuracy": 0}, 1)["perplexity"] > 1e300  # and no OverflowError


@pytest.mark.parametrize("name", ["two layers", "adaptive", "tied, adaptive"])
def test_a_continuous_cache_is_what_its_equation_says(name):
    cells, settings = MODELS[name]
    model, tokens, size = LanguageModel(cells, V, dtype="float64", **settings), words(300), 40  # two pieces of 256
    thetas, shares = (0.5, 3e4), (0.0, 0.2, 0.9)
    h = model.hidden(tokens[:-1, None])[0][:, 0]
    p_model = np.exp(model.head.log_probabilities(model.layer_params("head"), h))
    states = np.concatenate([np.zeros((1, h.shape[1])), h])  # the one before the text, then those after each word
    wanted = np.zeros((2, 3))
    for i, theta in enumerate(thetas):
        for j, share in enumerate(shares):
            for t in range(1, len(tokens)):
                p_cache = np.zeros(V)
                alike = theta * states[max(0, t - size) : t] @ states[t]
                for s, score in enumerate(alike, max(0, t - size)):  # after state s came word s
                    p_cache[tokens[s]] += math.exp(score - max(alike))
                p = (1 - share) * p_model[t - 1] + share * p_cache / p_cache.sum()
                assert p.sum() == pytest.approx(1)
                wanted[i, j] -= math.log(p[tokens[t]]) / (len(tokens) - 1)
    found = cached_perplexity(model, tokens, thetas, shares, size)
    np.testing.assert_allclose(found, np.exp(wanted), rtol=1e-10)
    assert found[:, 0] == pytest.approx(model.evaluate_stream(tokens)["perplexity"])
    assert cached_perplexity(model, tokens, thetas[1], shares[2], size) == pytest.approx(found[1, 2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"thetas": [0.3, 0]}, "thetas: expected a finite number at least 1e-09 and at most 1000000000.0, got 0"),
        ({"shares": [1.5]}, "shares: expected a finite number at least 0 and at most 1, got 1.5"),
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"tokens": words(1)}, "tokens: expected over 1, got 1"),
    ],
)
def test_a_cache_says_what_is_wrong(wrong, said):
    right = {"model": LanguageModel(LSTM(4), V), "tokens": words(9), "thetas": [1], "shares": [0.1], "size": 5}
    with pytest.raises(ValueError, match=said):
        cached_perplexity(**right | wrong)


def test_the_recipe_for_wikitext_2_compares_equal_sizes_and_trains():
    built = {name: wikitext2_recipe(name) for name in WIKITEXT2}
    models = {name: LanguageModel(vocabulary_size=33_278, **model) for name, (model, _) in built.items()}
    layers = {name: sum(p.size for key, p in each.params.items() if key[0].isdigit()) for name, each in models.items()}
    matched = [size for name, size in layers.items() if name.endswith("-parameters")]
    assert len(matched) == 3 and all(abs(size / layers["engram"] - 1) < 0.005 for size in matched)
    whole = [model.size / models["engram"].size - 1 for name, model in models.items()]
    assert sum(abs(size) < 0.03 for size in whole) == len(models) - 4 == sum(size > -0.03 for size in whole) - 3
    assert min(whole) == models["lstm-tied"].size / models["engram"].size - 1  # one table where the others have two
    assert models["engram"].cells[0].trace == "sample"  # the sound protocol: a row depends on no other
    with pytest.raises(ValueError, match="model_name: expected one of"):
        wikitext2_recipe("transformer")
    for model, fit in (built[name] for name in ("lstm", "engram", "binding", "binding-no-trace")):
        small = LanguageModel(vocabulary_size=5, **{**model, "cutoffs": (2,), "embedding": 8})
        train, valid = cyclic(2000), cyclic(300, 1)
        history = small.fit_stream(train, validation_data=valid, verbose=0, **{**fit, "batch_size": 4, "epochs": 2})
        assert history["val_perplexity"][-1] < 3 < unigram_perplexity(np.bincount(train), valid)


def test_without_trace_the_binding_cell_writes_nothing():
    for name in ("binding", "binding-no-trace"):
        cell = wikitext2_recipe(name)[0]["cells"]
        rng = np.random.default_rng(0)
        state = run(cell, cell.init(rng, 3), rng.normal(size=(5, 2, 3)).astype(np.float32))[1]
        assert state.A.any() == (name == "binding")


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cells": "lstm"}, TypeError, "cells: expected a cell"),
        ({"vocabulary_size": 1}, ValueError, "vocabulary_size: expected at least 2"),
        ({"embedding": 0}, ValueError, "embedding: expected at least 1"),
        ({"head": "hierarchical"}, ValueError, "head: expected one of"),
        ({"cutoffs": (2,)}, ValueError, 'cutoffs: only head="adaptive"'),
        ({"head": "adaptive", "cutoffs": (2, 9)}, ValueError, "cutoffs: expected below the vocabulary's 7"),
        ({"tied": 1}, TypeError, "tied: expected True or False"),
        ({"tied": True}, ValueError, "tied: .*embedding = 4.*embedding = 3"),
        ({"tied": True, "embedding": None}, ValueError, "tied: "),
        ({"tied": True, "head": "adaptive"}, ValueError, "tied: .*embedding = 4.*embedding = 3"),
        ({"dropout": 1.0}, ValueError, "dropout: "),
        ({"dtype": "float16"}, ValueError, "dtype: "),
    ],
)
def test_bad_settings_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        LanguageModel(**{"cells": LSTM(4), "vocabulary_size": V, "embedding": 3, **changes})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit_stream(words(50).astype(float)), r"tokens: expected integer ids \(N,\), got float64"),
        (lambda m: m.fit_stream(words((5, 5))), r"tokens: expected integer ids \(N,\)"),
        (lambda m: m.fit_stream(words(50) + 5), "tokens: expected ids 0 to 6, got 5 to 11; encode the text"),
        (lambda m: m.fit_stream(words(5), batch_size=8), "tokens: expected over 8, got 5; use a smaller batch"),
        (
            lambda m: m.fit_stream(words(50), validation_data=words(1)),
            "validation_data: expected over 1, got 1; use more text$",
        ),
        (lambda m: m.fit_stream(words(50), validation_data=words(50) - 1), "validation_data: expected ids 0 to 6"),
        (lambda m: m.fit_stream(words(50), epochs=0), "epochs: expected at least 1"),
        (lambda m: m.fit_stream(words(50), steps=0), "steps: expected at least 1"),
        (lambda m: m.fit_stream(words(50), batch_size=0), "batch(_size)?: expected at least 1"),
        (lambda m: m.evaluate_stream(np.zeros(0, int)), "tokens: expected integer ids"),
        (lambda m: m.evaluate_stream(words(1)), "tokens: expected over 1, got 1"),
        (
            lambda m: m.fit(words((4, 3)), words((4, 2))),
            r"y: expected integer ids \(4, 3\), got int64 of shape \(4, 2\)",
        ),
        (lambda m: m.fit(words((4, 3)), words((4, 3)) + 3), "y: expected ids 0 to 6"),
        (lambda m: m.evaluate(words(4), words(4)), r"x: expected integer ids \(n, T\)"),
        (lambda m: m.evaluate(words((4, 3)), words((4, 3)), mask=np.ones((4, 3))), "mask: expected bool"),
        (lambda m: m.sample([], 3), "prompt_ids: expected integer ids"),
        (lambda m: m.sample([9], 3), "prompt_ids: expected ids 0 to 6"),
        (lambda m: m.sample([1], 0), "length: expected at least 1"),
        (lambda m: m.sample([1], 3, temperature=-1), "temperature: expected a finite number at least 0"),
    ],
)
def test_bad_data_are_named_before_any_work(call, message):
    model = build("one cell")
    model.learn = None  # any work would fail differently
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize("vocabulary", range(2, 9))
def test_an_adaptive_head_fits_a_small_vocabulary(vocabulary):
    """Default cutoffs that fall together."""
    model = LanguageModel(GRU(4), vocabulary, head="adaptive")
    assert all(0 < cutoff < vocabulary for cutoff in model.head.cutoffs)


def test_compact_ids_are_read_as_they_are():
    """A memory-mapped text of uint16 needs no copy of its own."""
    model, tokens = build("adaptive"), words(80)
    assert model.evaluate_stream(tokens.astype(np.uint16), 2, 5) == model.evaluate_stream(tokens, 2, 5)
    x, y = next(stream_batches(tokens, 4, 6))
    assert model.evaluate(x.astype(np.uint8), y.astype(np.uint16)) == model.evaluate(x, y)

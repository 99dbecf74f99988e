"""Tasks that ask for memory: episodes that are what they say, files that are not made twice."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn_np.checkpoint import build
from enn_np.data import fetch
from enn_np.data.images import Characters, Dataset, load_omniglot
from enn_np.data.tasks import few_shot, late_labels
from enn_np.lab import cli, inputs, runner, work
from enn_np.lab import table as experiments
from enn_np.lab.pages import table

SIZE = 600, 200  # images to train on and to test on, 240 of the first held out
QUIET = {"say": lambda line: None}


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def digits(small, monkeypatch):
    """Even grey pictures that tell their digit, 25 grey values each, and in it whether they are of the test set."""
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 240)
    monkeypatch.setattr(experiments, "SIDE", 2)
    parts = []
    for part, n in enumerate(SIZE):
        y = np.arange(n) % 10
        grey = 25 * y + 12 * part + np.arange(n) // 10 % 12
        parts += [np.ascontiguousarray(np.broadcast_to(grey[:, None, None], (n, 28, 28))).astype(np.uint8), y]
    monkeypatch.setattr(inputs.datasets, "load_mnist", lambda: Dataset(*parts))
    return Dataset(*parts)


def told(x):
    """Digits (n, T), and whether of the test set, of images (..., D) as `digits` draws them."""
    grey = np.rint(255 * x[..., 0]).astype(int)
    return grey // 25, grey % 25 > 11


# Few-shot


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_an_episode_is_what_it_says(seed, ways, shots, asked, spare):
    """A label beside its own image or beside a question, a class with two labels, an image that comes twice."""
    S, classes = 2 * ways * shots, ways + spare
    labels = generator(seed).permutation(
        np.repeat(np.arange(classes), generator(seed).integers(S // 2 + asked, S // 2 + asked + 4, classes))
    )
    images = np.stack([labels, 1 + np.arange(len(labels))], 1).astype(np.float32)
    x, y = few_shot(generator(seed), 6, images, 7 * labels, ways, shots, asked)
    assert x.shape == (6, S + asked, 2 + ways) and y.shape == (6, asked)
    assert not x[:, 0:S:2, 2:].any() and not x[:, S:, 2:].any()  # no label beside its image, none of what is asked
    assert (x[:, 1:S:2, 2:].sum(-1) == 1).all() and not x[:, 1:S:2, :2].any()
    x, given_labels = np.hstack([x[:, 0:S:2], x[:, S:]]), np.hstack([x[:, 1:S:2, 2:].argmax(-1), y])
    for episode, named in zip(x, given_labels, strict=True):
        assert len(set(episode[:, 1])) == S // 2 + asked and episode[:, 1].all()
        pairs = set(zip(named, episode[:, 0], strict=True))
        assert len(pairs) == ways == len({label for label, _ in pairs}) == len({kind for _, kind in pairs})
        assert (np.bincount(named[: S // 2], minlength=ways) == shots).all()


def test_labels_and_images_are_drawn_anew_for_every_episode():
    """A label that says which class it is, an order that tells the label, an image that never comes."""
    labels = np.repeat(np.arange(5), 20)
    images = np.stack([labels, np.arange(100)], 1).astype(np.float32)
    x, y = few_shot(generator(), 20_000, images, labels, 5, 1, 2)
    named, x = np.hstack([x[:, 1:10:2, 2:].argmax(-1), y]), np.hstack([x[:, 0:10:2], x[:, 10:]])
    kinds = x[..., 0].astype(int)
    for step in range(7):
        for chance in (
            kinds[:, step],
            kinds[:, step] * 5 + named[:, step],
            named[:, 0] * 5 + named[:, step] if step > 4 else y[:, 0],
        ):
            shares = np.bincount(chance) / len(chance)
            np.testing.assert_allclose(shares, 1 / len(shares), atol=0.012)
        shares = np.bincount(x[:, step, 1].astype(int), minlength=100) / len(x)
        np.testing.assert_allclose(shares, 0.01, atol=0.005)


def test_what_no_episode_can_be_made_of_is_told():
    images, labels = np.zeros((20, 3), np.float32), np.arange(20) % 2
    with pytest.raises(ValueError, match=r"images: expected 3 classes or more of 8 images or more, got \[10, 10\]"):
        few_shot(generator(), 1, images, labels, 3, 1, 5)
    with pytest.raises(ValueError, match="images: expected 2 classes or more of 11"):
        few_shot(generator(), 1, images, labels, 2, 3, 5)
    for wrong in ({"n": 0}, {"ways": 0}, {"shots": 0}, {"asked": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected at least 1"):
            few_shot(**{"rng": generator(), "n": 1, "images": images, "labels": labels, "ways": 2} | wrong)


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_that_are_tested_were_never_trained_on(digits, seed):
    """Five digits for the test, images of the test set only there, and another five for another seed."""
    task = experiments.find("fewshot1")
    pools, draw, seen = inputs.pools(task, seed), inputs.source(task, seed), {}
    mean, sd = pools["train"][0].mean(), pools["train"][0].std()
    for part in ("train", "validation", "seen", "test"):
        which, tested = told(pools[part][0])
        assert (which == pools[part][1]).all() and (tested == (part in ("seen", "test"))).all()
        seen[part] = set(which)
        x, _ = draw(generator(), 100, part, 0)
        x = x[:, [0, 2, 4, 6, 8, 10, 11, 12, 13, 14], :4]
        assert set(told(mean + 2 * sd * x)[0].ravel()) == seen[part]  # length 1: each of four pixels sd / 2
    assert abs((draw(generator(), 500, "train", 0)[0][:, 0] ** 2).sum(1).mean() - 1) < 0.1
    assert seen["train"] == seen["validation"] == seen["seen"] == set(range(10)) - seen["test"]
    assert len(seen["test"]) == 5 and set(inputs.pools(task, seed + 1)["test"][1]) != seen["test"]


def test_training_and_validation_share_no_image(digits, monkeypatch):
    numbered = np.zeros((600, 28, 28), np.uint8)
    numbered[:, 0, 0], numbered[:, 0, 1] = np.divmod(np.arange(600), 256)
    monkeypatch.setattr(inputs.datasets, "load_mnist", lambda: digits._replace(x_train=numbered))
    parts, rows = inputs.digits(0, 28), []
    for name, n in (("train", 360), ("validation", 240)):
        images, labels = parts[name]
        rows += list(np.rint(255 * images[:, 0, :2] @ [256, 1]).astype(int))
        assert len(images) == n and (digits.y_train[rows[-n:]] == labels).all()
    assert sorted(rows) == list(range(600))
    noise = generator().integers(0, 256, (200, 28, 28), np.uint8)
    monkeypatch.setattr(inputs.datasets, "load_mnist", lambda: digits._replace(x_test=noise))
    small, labels = inputs.digits(0, 14)["test"]
    np.testing.assert_allclose(small[3, 1, 2], noise[3, 2:4, 4:6].mean() / 255, rtol=1e-6)
    assert (labels == digits.y_test).all()


def test_the_nearest_example_gives_the_label(digits):
    task, x = experiments.find("fewshot1"), np.zeros((1, 15, 9), np.float32)
    x[0, :10:2, 0], x[0, range(1, 10, 2), 4 + np.array([3, 0, 4, 1, 2])] = (0.1, 0.3, 0.5, 0.7, 0.9), 1
    x[0, 10:, 0] = 0.88, 0.12, 0.31, 0.45, 0.75
    assert inputs.nearest(task, x).tolist() == [[2, 3, 0, 4, 1]]


# Labels one step late


def numbered(classes, each, side=7):
    """Images (classes x each, side, side): the number of each, from 1, in the middle, and -1 askew of it."""
    images, middle = np.zeros((classes * each, side, side), np.float32), side // 2
    images[:, middle, middle], images[:, middle - 1, middle - 1] = 1 + np.arange(len(images)), -1
    return images, np.repeat(np.arange(classes), each)


def turns_and_moves(pixels):
    """Where -1 and number stand (..., 7, 7): by how many right angles images are turned, and how they are moved."""
    number, mark = (np.divmod(kind(pixels.reshape(*pixels.shape[:-2], 49), -1), 7) for kind in (np.argmax, np.argmin))
    down, across = np.subtract(mark, number)
    assert (abs(down) == 1).all() and (abs(across) == 1).all()
    return (down + 1) + (across + 1) // 2, np.subtract(number, 3)


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2))
def test_labels_come_one_step_late(seed, ways, shots, spare, shift):
    """A label beside its own image, a class too often, an image twice, two turns of one class, a row cut off."""
    images, labels = numbered(ways + spare, shots + spare, 7)
    mixed = generator(seed).permutation(len(images))
    x, y = late_labels(generator(seed), 6, images[mixed], 3 * labels[mixed], ways, shots, shift)
    assert x.shape == (6, ways * shots, 49 + ways) and y.shape == (6, ways * shots) and x.dtype == np.float32
    assert not x[:, 0, 49:].any() and (x[:, 1:, 49:] == np.eye(ways)[y[:, :-1]]).all()
    for pixels, named in zip(x[:, :, :49].reshape(6, -1, 7, 7), y, strict=True):
        assert (np.bincount(named, minlength=ways) == shots).all()
        number = pixels.max((1, 2)).astype(int) - 1
        assert len(set(number)) == ways * shots  # no image twice
        pairs = set(zip(named, labels[number], strict=True))
        assert len(pairs) == ways == len({label for label, _ in pairs}) == len({kind for _, kind in pairs})
        turns, moves = turns_and_moves(pixels)
        assert len(set(zip(named, turns, strict=True))) == ways and abs(moves).max() <= shift
        assert ((pixels != 0).sum((1, 2)) == 2).all()


def test_classes_turns_places_and_labels_are_drawn_anew():
    """A label that says which class it is, turns that are not alike, moves one way only, an order that tells."""
    images, labels = numbered(5, 3, 7)
    x, y = late_labels(generator(), 10_000, images, labels, 5, 2, 1)
    pixels = x[:, :, :49].reshape(-1, 10, 7, 7)
    turns, (down, across) = turns_and_moves(pixels[:, 0])
    kind, moved = (pixels[:, 0].max((1, 2)).astype(int) - 1) // 3, (down + 1) * 3 + across + 1
    for chance in (y[:, 0], y[:, 9], kind * 5 + y[:, 0], moved, kind * 4 + turns):
        shares = np.bincount(chance) / len(chance)
        np.testing.assert_allclose(shares, 1 / len(shares), atol=0.02)
    np.testing.assert_allclose((y[:, 0] == y[:, 1]).mean(), 1 / 9, atol=0.015)


def test_what_no_late_labels_can_be_made_of_is_told():
    images, labels = numbered(2, 4)
    for rows, ask in ((8, {"ways": 3}), (8, {"ways": 2, "shots": 5}), (7, {"ways": 2, "shots": 3})):
        with pytest.raises(
            ValueError, match=r"images: expected . classes or more, all of one size, . square images or more"
        ):
            late_labels(generator(), 1, images[:rows], labels[:rows], **{"shots": 2} | ask)
    with pytest.raises(
        ValueError, match=r"square images or more, got \[4, 4\] of \(3, 6\)"
    ):  # the right half was cut off
        late_labels(generator(), 1, np.zeros((8, 3, 6)), labels, 2, 2)
    for wrong in ({"n": 0}, {"ways": 0}, {"shots": 0}, {"shift": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected at least"):
            late_labels(
                **{"rng": generator(), "n": 1, "images": images, "labels": labels, "ways": 2, "shots": 2} | wrong
            )


@pytest.fixture
def omniglot(small, monkeypatch):
    """Eight alphabets of six characters, ten drawings each: a noise of each character's, and a little more."""
    rng = generator()
    images = np.repeat(rng.random((48, 20, 20), np.float32), 10, axis=0) + 0.1 * rng.random((480, 20, 20), np.float32)
    images[:, 10, 10] = np.arange(480)  # which drawing
    made = Characters(images, np.repeat(np.arange(48), 10), np.repeat([*"ABCDEFGH"], 6))
    monkeypatch.setattr(inputs.datasets, "load_omniglot", lambda: made)
    monkeypatch.setattr(experiments, "PARAMETERS", 4_000)
    return made


def test_no_alphabet_is_in_two_parts(omniglot, monkeypatch):
    """Nor does the seed change which; and what is tested stands still."""
    seen, shifts, real = {}, {}, inputs.tasks.late_labels

    def record(rng, n, images, labels, ways, shots, shift):
        seen.setdefault(part, set()).update(omniglot.alphabets[images[:, 10, 10].astype(int) // 10])
        assert (images[:, 10, 10].astype(int) // 10 == labels).all() and (ways, shots) == (5, 3)
        shifts[part] = shift
        return real(rng, n, images, labels, ways, shots, shift)

    monkeypatch.setattr(inputs.tasks, "late_labels", record)
    for seed in (0, 1):
        draw = inputs.source(experiments.find("omniglot3"), seed)
        for part in ("train", "validation", "test"):
            assert draw(generator(), 2, part, 0)[0].shape == (2, 15, 405)
    assert seen == {"train": set("ABCDE"), "validation": {"F"}, "test": {"G", "H"}}
    assert shifts == {"train": 2, "validation": 0, "test": 0}


def test_real_characters_are_as_long_as_a_label_and_told_apart_by_pixels():
    if not all(file.path for file in fetch.find("omniglot")):
        pytest.skip("set ENN_DATA to a folder that holds omniglot")
    _, labels, alphabets = load_omniglot(download=False)
    assert np.isin(alphabets[labels], ["Sanskrit", "Tagalog"]).sum() == 59 * 20
    task = experiments.find("omniglot10")
    draw = inputs.source(task, 0)
    x, y = draw(generator(), 200, "train", 0)
    assert x.shape == (200, 50, 405) and abs((x[:, :, :400] ** 2).sum(-1).mean() - 1) < 0.1
    assert abs(x[:, :, :400].mean((0, 1))).max() < 0.02
    x, y = draw(generator(), 500, "test", 0)
    nearest = inputs.instances("nearest", inputs.nearest_before(task, x), y)
    assert nearest["nearest_2"] == pytest.approx(0.47, abs=0.04)
    assert nearest["nearest_10"] == pytest.approx(0.77, abs=0.04)


def test_the_nearest_earlier_image_gives_the_label():
    """The image itself, or a later one; and the first step, at which nothing has been told."""
    task, x = experiments.find("omniglot2"), np.zeros((1, 5, 405), np.float32)
    x[0, :, 0] = 0.5, 0.1, 0.45, 0.12, 0.44
    x[0, 1:, 400:] = np.eye(5)[[3, 1, 4, 2]]
    assert inputs.nearest_before(task, x).tolist() == [[0, 3, 3, 1, 4]]


def test_accuracy_at_each_instance():
    y, said = np.array([[0, 0, 1, 0], [1, 1, 0, 0]]), np.array([[0, 1, 1, 0], [1, 1, 1, 0]])
    found = inputs.instances("x", said, y)  # times: 1 2 1 3 and 1 2 1 2
    assert found == pytest.approx({"x_1": 3 / 4, "x_2": 2 / 3, "x_3": 1})


def test_a_run_tells_the_accuracy_at_each_instance(omniglot, tmp_path):
    ask = {"models": ["lstm", "binding"], "steps": 3, "results": tmp_path, "seeds": 1, "rates": (2e-3,), **QUIET}
    for found in runner.run_all(["omniglot5"], **ask):
        times = [found[f"test_instance_{k}"] for k in range(1, 6)]
        assert np.mean(times) == pytest.approx(found["test_accuracy"], abs=1e-5) and "test_instance_6" not in found
        assert found["test_nearest_1"] < 0.3 and found["test_nearest_2"] > 0.9  # noise tells characters
    shown = table("results", "omniglot5", "sound", tmp_path)
    assert "| test accuracy | 1st | 2nd | 5th | nearest, 2nd | nearest, 5th | steps |" in shown
    for size in (1, 21):
        with pytest.raises(ValueError, match=f"omniglot: expected a finite number .*got {size}"):
            experiments.find(f"omniglot{size}")


# All tasks


def test_runs_are_written_down_once_and_shown(digits, tmp_path, capsys):
    """A finished run that is run again, and a table without what the task is about."""
    ask = {"models": ["gru", "binding"], "steps": 3, "results": tmp_path, "seeds": 1, "rates": (2e-3,), **QUIET}
    found = runner.run_all(["fewshot1"], **ask)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        f"fewshot1-sound-{name}-0.json" for name in ("binding", "gru")
    ]
    for result in found:
        path = tmp_path / "{benchmark}-{protocol}-{model}-{seed}.json".format(**result)
        assert json.loads(path.read_text()) == result and build(result["config"]).size == result["parameters"]
        assert result["test_nearest_accuracy"] > 0.9 and 0 <= result["test_seen_accuracy"] <= 1
    assert runner.run_all(["fewshot1"], **ask) == found
    with pytest.raises(ValueError, match=r"fewshot1-sound-gru-0.json: holds a run with .*'batch_size': 128.*asked"):
        runner.run_all(["fewshot1"], **ask, batch_size=64)
    shown = table("results", "fewshot1", "sound", tmp_path)
    assert "| model | seeds | new digits | seen digits | nearest in pixels | steps |" in shown
    assert f"| GRU | 0 | **{found[0]['test_accuracy']:.1%}** | **{found[0]['test_seen_accuracy']:.1%}** |" in shown
    command = ["run", "fewshot1", "--models", "gru", "--steps", "3", "--results", str(tmp_path)]
    command += ["--seeds", "1", "--rates", "0.002"]
    assert cli.main(command) == 0 and "nearest in pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"experiments": ["fewshot"]}, "experiment: expected one of mnist.*fewshotN.*pixelsN.*got 'fewshot'"),
        ({"experiments": ["fewshot0"]}, "got 'fewshot0'"),
        ({"experiments": ["poem3"]}, "got 'poem3'"),
        ({"experiments": ["split6"]}, "split: expected a finite number .*at most 5, got 6"),
        ({"experiments": ["pixels9"]}, "pixels: expected one of 2, 4, 7, 14, 28, got 9"),
        ({"experiments": ["permuted1"]}, "permuted: expected a finite number at least 2, got 1"),
        ({"experiments": ["split5"], "steps": 4}, "steps: expected at least 5, got 4"),
        ({"experiments": []}, "experiments, models, rates: expected at least one"),
        ({"models": ["transformer"]}, "models: expected one of .*got 'transformer'"),
        ({"models": []}, "experiments, models, rates: expected at least one"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"epochs": 1}, "epochs: fewshot1/sound has none"),
    ],
)
def test_bad_settings_are_told_before_any_work(ask, words, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_in", None)
    with pytest.raises(ValueError, match=words):
        runner.run_all(**{"experiments": ["fewshot1"], "results": tmp_path / "new", **ask})
    assert not (tmp_path / "new").exists()


# Continual learning


def test_forgetting_by_hand():
    """The first accuracy in the place of the best, the last task counted as forgotten, a sum in place of a mean."""
    assert work.forgetting([[0.9], [0.95, 0.8], [0.5, 0.7, 0.99]]) == pytest.approx((0.45 + 0.1) / 2)
    assert work.forgetting([[0.5], [0.7, 0.9]]) == pytest.approx(-0.2)
    for wrong in ([[0.9]], [], [[0.9], [0.9]], [[0.9, 0.8], [0.9, 0.8]]):
        with pytest.raises(ValueError, match="accuracies: expected rows of 1, 2"):
            work.forgetting(wrong)


def test_split_tasks_have_two_digits_each(digits):
    task = experiments.find("split3")
    draw = inputs.source(task, 0)
    for phase in range(3):
        for part, n in (("train", 90), ("validation", 90), ("test", 40)):
            x, y = draw(generator(), 90, part, phase)
            assert len(x) == n and set(y) == {2 * phase, 2 * phase + 1}
            which, tested = told(x[:, 5])
            assert (which == y).all() and (tested == (part == "test")).all()


def test_permuted_tasks_are_all_digits_in_an_order_each(digits, monkeypatch):
    noise = generator().integers(0, 256, (200, 28, 28), np.uint8)
    monkeypatch.setattr(inputs.datasets, "load_mnist", lambda: digits._replace(x_test=noise))
    task, seen = experiments.find("permuted2"), []
    for seed in (0, 0, 1):
        draw = inputs.source(task, seed)
        seen += [draw(generator(), 20, "test", phase)[0] for phase in (0, 1)]
        assert set(draw(generator(), 200, "train", 0)[1]) == set(range(10))
    plain = noise.reshape(200, -1) / np.float32(255)
    orders = [tuple(x.reshape(200, -1)[0].argsort()) for x in seen]
    for x in seen:
        np.testing.assert_array_equal(np.sort(x.reshape(200, -1), 1), np.sort(plain, 1))
        order = np.array([np.flatnonzero((plain == pixel[:, None]).all(0))[0] for pixel in x.reshape(200, -1).T])
        assert sorted(order) == list(range(784)) and x.shape == (200, 28, 28)  # the same one for all images
    assert orders[:2] == orders[2:4] and len(set(orders)) == 4


def test_what_is_learned_in_turn_is_tested_in_turn(digits, tmp_path, monkeypatch):
    """A network that is trained on another task than it is tested on, or tested on what it has not seen."""
    asked = []
    source = inputs.pictures

    def spied(experiment, seed):
        draw = source(experiment, seed)

        def watched(rng, n, part, phase):
            asked.append((part, phase))
            return draw(rng, n, part, phase)

        return watched

    monkeypatch.setitem(inputs.DRAWS, "split", spied)
    (found,) = runner.run_all(["split3"], ["rnn"], seeds=1, rates=(2e-3,), steps=8, results=tmp_path, **QUIET)
    assert [phase for part, phase in asked if part == "train"] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert found["history"]["step"] == [2, 3, 4, 6, 8] and [len(row) for row in found["accuracies"]] == [1, 2, 3]
    assert found["test_accuracy"] == pytest.approx(np.mean(found["accuracies"][-1]), abs=1e-6)
    assert found["test_forgetting"] == pytest.approx(work.forgetting(found["accuracies"]), abs=1e-6)
    assert "| average accuracy | forgetting | steps |" in table("results", "split3", "sound", tmp_path)
    (again,) = runner.run_all(["permuted2"], ["rnn"], seeds=1, rates=(2e-3,), steps=4, results=tmp_path, **QUIET)
    assert [len(row) for row in again["accuracies"]] == [1, 2]


# Long memory


def test_long_tasks_ask_what_their_generators_do(digits):
    x, y = inputs.source(experiments.find("copy7"), 0)(generator(), 5, "train", 0)
    assert x.shape == (5, 27, 10) and (x[:, :10].argmax(-1) == y).all() and (x.sum(-1) == 1).all()
    x, y = inputs.source(experiments.find("adding9"), 0)(generator(), 5, "train", 0)
    np.testing.assert_allclose((x[..., 0] * x[..., 1]).sum(1), y[:, 0], rtol=1e-6)
    assert x.shape == (5, 9, 2)


def test_pixels_come_in_one_order(digits, monkeypatch):
    noise = generator().integers(0, 256, (200, 28, 28), np.uint8)
    monkeypatch.setattr(inputs.datasets, "load_mnist", lambda: digits._replace(x_test=noise, x_train=noise))
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 50)
    x, y = inputs.source(experiments.find("pixels7"), 3)(generator(), 5, "test", 0)
    plain = inputs.digits(3, 7)["test"][0].reshape(200, 49)
    assert x.shape == (200, 49, 1) and (y == digits.y_test).all() and (x[..., 0] != plain).any()
    order = [int(np.flatnonzero((plain == pixel[:, None]).all(0))[0]) for pixel in x[..., 0].T]
    assert sorted(order) == list(range(49))


def test_long_tasks_are_run_and_shown(digits, tmp_path):
    for name, title, score in (
        ("copy3", "symbols right", "test_accuracy"),
        ("adding4", "squared error", "test_loss"),
        ("pixels2", "test accuracy", "test_accuracy"),
    ):
        (found,) = runner.run_all([name], ["binding"], seeds=1, rates=(1e-3, 1e-2), steps=2, results=tmp_path, **QUIET)
        assert np.isfinite(found[score]) and build(found["config"]).size == found["parameters"]
        assert title in table("results", name, "sound", tmp_path)
    for seed in (1, 2):
        for model in ("gru", "binding"):
            path, values = tmp_path / f"adding4-sound-{model}-{seed}.json", {"seed": seed, "model": model}
            path.write_text(
                json.dumps({**json.loads((tmp_path / "adding4-sound-binding-0.json").read_text()), **values})
            )
    assert "more is better" in table("tests", "adding4", "sound", tmp_path)


def test_queries_are_asked_by_the_published_sizes_and_the_bytes_of_state_are_shown(tmp_path, monkeypatch):
    ask = {"steps": 2, "batch_size": 4, "results": tmp_path, "seeds": 1, "rates": (2e-3,), **QUIET}
    monkeypatch.setattr(work, "VALIDATION", 8)
    monkeypatch.setattr(work, "TEST", 8)
    models = ["key-delta", "engram-sample", "gru"]
    found = dict(zip(models, runner.run_all(["mqar4"], models, **ask), strict=True))
    assert {name: result["state_bytes"] for name, result in found.items()} == {
        "key-delta": 4 * (64 + 64 * 64 + 64),  # h, A, a
        "engram-sample": 4 * (64 + 64 * 64),
        "gru": 4 * 64,
    }
    for pairs, steps in ((4, 64), (8, 128), (16, 256), (64, 512)):
        x, y = inputs.source(experiments.find(f"mqar{pairs}"), 0)(generator(), 3, "train", 0)
        assert x.shape == (3, steps) and (y >= 4_096).sum() == 3 * pairs
    assert experiments.network("widemqar4", "key-delta").cells[0].slots == 128
    assert "| Delta, key | 0 |" in (shown := table("results", "mqar4", "sound", tmp_path)) and "16,896" in shown
    with pytest.raises(ValueError, match=r"^mqar: expected one of 4, 8, 16, 64, got 5"):
        experiments.find("mqar5")

"""The published experiments at tiny size: their data, their models, and the files that a run leaves."""

import json
from itertools import product

import numpy as np
import pytest
from tiny import digits, same_to_the_bit

from enn_np import GRU, Adam, Binding, Classifier, Engram, fit, load
from enn_np.data import images as datasets
from enn_np.lab import inputs, pages, results, runner, table, work
from enn_np.lab.demo import demo
from enn_np.look import report as page

PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = ("learning_curves.png", "trace.png", "trace_evolution.png", "retrieval.png")
RESULT = {"benchmark", "protocol", "model", "seed", "parameters", "seconds", "test_loss", "test_accuracy"}
RESULT |= {"training", "stopped", "best_epoch", "history", "sequences", "config", "machine"}


@pytest.fixture
def small_mnist(monkeypatch):
    """MNIST with 100 and 30 random pictures, 20 of them held out."""
    monkeypatch.setattr(datasets, "load_mnist", lambda: digits(100, 30))
    monkeypatch.setattr(inputs, "MNIST_HELD_OUT", 20)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than everything else at this size."""
    monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])


@pytest.fixture
def no_data(monkeypatch):
    """Loading any data is an error: whatever is wrong must be found before."""

    def load():
        raise AssertionError("data were loaded before the arguments were checked")

    for name in ("load_mnist", "load_cifar10", "load_digits"):
        monkeypatch.setattr(datasets, name, load)


def photographs(train, test):
    """Random pictures in the form of CIFAR-10."""
    rng = np.random.default_rng(0)
    draw = [(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n)) for n in (train, test)]
    return datasets.Dataset(*draw[0], *draw[1])


def assert_figures(folder, names=FIGURES):
    """Every figure is there, is a PNG file, and shows more than a blank page."""
    for name in names:
        content = (folder / name).read_bytes()
        assert content.startswith(PNG) and len(content) > 5_000, name


# Data


def rows_of(x):
    return {row.tobytes() for row in x}


def test_mnist_is_split_without_overlap_and_scaled_on_the_training_part():
    """Validation images among the training images, or a scale fitted on what is tested."""
    images = digits(100, 30)
    split = inputs.mnist_split(images, 20, seed=0)
    assert split.x.shape == (80, 28, 28) and split.x_val.shape == (20, 28, 28) and split.x_test.shape == (30, 28, 28)
    assert {part.dtype for part in (split.x, split.x_val, split.x_test)} == {np.dtype("float32")}
    assert not rows_of(split.x) & rows_of(split.x_val)
    np.testing.assert_allclose([split.x.min(0), split.x.max(0)], [np.zeros((28, 28)), np.ones((28, 28))], atol=1e-6)
    assert split.x_val.min() < 0 or split.x_val.max() > 1, "the scale was fitted on the validation part too"
    assert len(split.y) == 80 and len(split.y_val) == 20
    np.testing.assert_array_equal(split.y_test, images.y_test)


def test_labels_stay_with_their_images():
    """One permutation for both."""
    images = digits(100, 30)
    grey = images._replace(x_train=(20 * images.y_train).astype(np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8))
    split = inputs.mnist_split(grey, 20, seed=3)
    for x, y in ((split.x, split.y), (split.x_val, split.y_val)):
        np.testing.assert_allclose(9 * x[:, 5, 5], y, atol=1e-5)  # the greys of the labels 0 to 9 become 0 to 1


def test_the_seed_decides_what_is_held_out():
    one, same, other = (inputs.mnist_split(digits(100, 30), 20, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.x_val, same.x_val)
    assert rows_of(one.y_val) and not (one.y_val == other.y_val).all()


def test_cifar_as_published_validates_on_the_test_set():
    """The flaw is part of the paper's protocol; rows are H W C, divided by 255 and nothing else."""
    images = photographs(40, 12)
    split = inputs.cifar10_split(images, "paper", seed=0)
    assert split.x.shape == (40, 32, 96) and split.x.dtype == np.float32
    assert split.x_val is split.x_test and split.y_val is split.y_test
    np.testing.assert_allclose(split.x, images.x_train.reshape(40, 32, 96) / 255, rtol=1e-6)
    np.testing.assert_allclose(split.x_test, images.x_test.reshape(12, 32, 96) / 255, rtol=1e-6)


def test_cifar_soundly_never_sees_the_test_set(monkeypatch):
    """Held out from the training images, each channel standardised on the rest."""
    monkeypatch.setattr(inputs, "CIFAR10_HELD_OUT", 10)
    split = inputs.cifar10_split(photographs(40, 12), "sound", seed=0)
    assert (
        (len(split.x), len(split.x_val), len(split.x_test))
        == (30, 10, 12)
        == tuple(len(y) for y in (split.y, split.y_val, split.y_test))
    )
    assert not rows_of(split.x) & rows_of(split.x_val)
    channels = split.x.reshape(-1, 3)
    np.testing.assert_allclose(channels.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(channels.std(0), 1, atol=1e-4)


# Models


def test_the_published_networks():
    """SPEC section 3: Engram(128, 64) with dropout 0.3; baselines 128 -> 64 without."""
    model = table.network("mnist/paper", "engram", seed=5)
    assert model.cells == (Engram(128, 64, trace="batch"),) and model.dropout == 0.3
    assert model.random_inference and model.seed == 5 and model.pooling == "last"
    model = table.network("mnist/paper", "gru", seed=0)
    assert model.cells == (GRU(128), GRU(64)) and model.dropout == 0


def test_the_sound_protocol_keeps_samples_apart():
    model = table.network("mnist/sound", "engram", seed=0)
    assert model.cells[0].trace == "sample" and not model.random_inference


def test_the_binding_cell_is_beyond_the_paper():
    model = table.network("mnist/sound", "binding", seed=0)
    assert model.cells == (Binding(128, 64),) and model.dropout == 0.3
    with pytest.raises(ValueError, match=r"^model: mnist/paper has no 'binding', it is a network of mnist/sound"):
        table.network("mnist/paper", "binding", seed=0)


@pytest.mark.parametrize(("name", "protocol"), (("ngram", "paper"), ("engram", "published")))
def test_unknown_names_are_told(name, protocol):
    with pytest.raises(ValueError, match=r"^(model|protocol): expected one of .*got '(ngram|published)'"):
        table.network(f"mnist/{protocol}", name, seed=0)


# A benchmark run


def test_training_is_as_published(monkeypatch):
    """SPEC section 3, setting by setting; and the seed of the run is that of the shuffling too."""
    seen = {}
    monkeypatch.setattr(work, "fit", lambda *data, **settings: seen.update(settings) or fit(*data, **settings))
    data = inputs.mnist_split(digits(60, 20), 20, seed=0)
    model = table.network("mnist/paper", "engram", seed=0)
    ready = work.on_split(model, data, 7, table.find("mnist/paper").training | {"epochs": 1})
    ready.learn(verbose=0)
    optimizer, (stop, plateau, watch) = seen["optimizer"], seen["callbacks"]
    assert (seen["seed"], seen["epochs"], seen["batch_size"]) == (7, 1, 128)
    assert seen["validation_data"][0] is data.x_val and seen["validation_data"][1] is data.y_val
    assert vars(optimizer) | {"state": 0, "steps": 0} == vars(Adam(1e-3, clip_norm=1.0)) | {"state": 0}
    assert optimizer.epsilon == 1e-7 and optimizer.global_clip_norm is None
    assert (stop.monitor, stop.patience, stop.restore_best) == ("val_loss", 3, True)
    assert (plateau.monitor, plateau.factor, plateau.patience) == ("val_loss", 0.5, 2)
    assert (plateau.min_learning_rate, plateau.min_delta) == (1e-5, 1e-4)
    assert watch is ready.monitor and len(watch.x) == 20


@pytest.mark.parametrize(("name", "protocol"), [*product(table.MODELS, ("paper", "sound")), ("binding", "sound")])
def test_a_run_writes_its_result(small_mnist, no_figures, tmp_path, name, protocol):
    """All that a table needs, and numbers that the saved model reproduces."""
    summary = runner.run_one(f"mnist/{protocol}", name, 3, tmp_path, epochs=1, limit=48, verbose=0)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary.keys() == RESULT | ({"trace"} if name == "engram" else set())
    told = [summary[key] for key in ("benchmark", "protocol", "model", "seed", "stopped", "best_epoch")]
    assert told == ["mnist", protocol, name, 3, "finished", 1]
    assert summary["sequences"] == {"train": 48, "validation": 20, "test": 30}
    assert summary["parameters"] == table.PAPER["mnist"].get(name, {"parameters": 263_975})["parameters"]
    assert {len(values) for values in summary["history"].values()} == {1}
    model = load(tmp_path / "model.npz")
    assert model.config() == summary["config"]
    split = inputs.mnist_split(digits(100, 30), 20, 3)
    scores = model.evaluate(split.x_test, split.y_test)
    got = {name: summary[f"test_{name}"] for name in scores}
    assert got == pytest.approx(scores, abs=1e-6)


def test_a_run_of_a_baseline_draws_its_curves(small_mnist, tmp_path):
    """It has no trace to draw."""
    runner.run_one("mnist/paper", "rnn", 0, tmp_path, epochs=2, limit=32, verbose=0)
    assert {path.name for path in tmp_path.glob("*.png")} == {"learning_curves.png"}
    assert_figures(tmp_path, FIGURES[:1])


def test_a_run_is_not_lost_with_its_figures(small_mnist, monkeypatch, tmp_path):
    """matplotlib is missing or breaks: the result of the training is on disk all the same."""
    monkeypatch.setattr(pages, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run_one("mnist/paper", "rnn", 0, tmp_path, epochs=1, limit=32, verbose=0)
    assert json.loads((tmp_path / "summary.json").read_text())["model"] == "rnn"


def test_a_run_of_engram_keeps_its_traces(small_mnist, no_figures, tmp_path):
    """The probe is the first of the validation sequences, all of it, with their labels."""
    summary = runner.run_one("mnist/paper", "engram", 0, tmp_path, epochs=2, limit=32, verbose=0)
    split = inputs.mnist_split(digits(100, 30), 20, 0)
    with np.load(tmp_path / "trace.npz") as stored:
        assert stored["traces"].shape == (3, 64, 128) and stored["usage"].shape == (3, 64)
        assert stored["retrieval"].shape == (20, 28, 64)
        np.testing.assert_array_equal(stored["probe"], split.x_val)
        np.testing.assert_array_equal(stored["labels"], split.y_val)
        assert abs(stored["traces"][-1]).max() == pytest.approx(
            max(summary["trace"][-1]["max"], -summary["trace"][-1]["min"])
        )
    assert len(summary["trace"]) == 3
    assert not any(name.startswith("trace_") for name in summary["history"])  # they would stand there twice


def test_seeds_repeat_to_the_bit_and_differ(small_mnist, no_figures, tmp_path):
    """The README's numbers are labelled with a seed: it must mean something."""
    runs = [
        runner.run_one("mnist/paper", "engram", seed, tmp_path / name, epochs=1, limit=32, verbose=0)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    params = [load(tmp_path / name / "model.npz").params for name in "abc"]
    assert same_to_the_bit(params[0], params[1])
    assert not (params[0]["0.M"] == params[2]["0.M"]).any()
    for run in runs:
        del run["seconds"], run["history"]["seconds"]
    assert runs[0] == runs[1]


def test_cifar_runs_too(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_cifar10", lambda: photographs(40, 12))
    summary = runner.run_one("cifar10/paper", "engram", 0, tmp_path, epochs=1, verbose=0)
    assert summary["sequences"] == {"train": 40, "validation": 12, "test": 12}
    assert_figures(tmp_path)  # the digit's place is taken by colours


BAD_RUNS = (
    ({"key": "imagenet"}, "experiment: .*'imagenet'"),
    ({"model": "transformer"}, "model: .*'transformer'"),
    ({"key": "mnist/fair"}, "protocol: .*'fair'"),
    ({"seed": -1}, "seed: .*-1"),
    ({"epochs": 0}, "epochs: .*0"),
    ({"steps": 9}, "steps: mnist/paper has none, it has epochs"),
    ({"epochs": 2.5}, "epochs: .*2.5"),
    ({"limit": 0}, "limit: .*0"),
    ({"limit": "all"}, "limit: .*'all'"),
)


@pytest.mark.parametrize(("settings", "message"), BAD_RUNS)
def test_bad_arguments_are_found_before_data_are_loaded(no_data, tmp_path, settings, message):
    """Not after a download, still less after an hour of training."""
    good = {"key": "mnist/paper", "model": "gru", "seed": 0, "out": tmp_path}
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        runner.run_one(**good | settings)


@pytest.mark.parametrize("settings", ({"epochs": 0}, {"seed": -1}, {"seed": 1.5}, {"out": __file__}))
def test_bad_arguments_of_the_demo_are_found_first(no_data, tmp_path, settings):
    ((name, _),) = settings.items()
    with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
        demo(**{"out": tmp_path, "say": str} | settings)


def test_a_folder_that_cannot_be_made_is_found_before_training(no_data):
    """An hour of training for nothing, because --out names a file."""
    with pytest.raises(ValueError, match=r"^out: cannot make the folder .*test_protocols\.py"):
        runner.run_one("mnist/paper", "gru", 0, __file__)


# The demo


def small_report(patch):
    """Two sequences explained, eight counted: as many as the page holds take ten seconds."""
    patch.setattr(page, "EXAMPLES", 2)
    patch.setattr(page, "PROBE", 8)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """The demo on 64 digits and for one epoch: its folder, its summary, and what it said."""
    said, out = [], tmp_path_factory.mktemp("demo") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda: digits(464, 40))
        small_report(patch)
        summary = demo(out, epochs=1, verbose=0, say=said.append)
    return out, summary, "\n".join(said)


def test_the_demo_writes_a_summary_of_all_four(demonstrated):
    out, summary, _ = demonstrated
    assert json.loads((out / "summary.json").read_text()) == summary
    assert list(summary["models"]) == ["Engram", "RNN", "GRU", "LSTM"]
    for name, run in summary["models"].items():
        assert 0 <= run["test_accuracy"] <= 1 and run["test_loss"] > 0 and run["seconds"] > 0, name
        assert isinstance(run["parameters"], int)
    assert summary["sequences"] == {"train": 64, "validation": 400, "test": 40}


def test_the_demo_draws_its_figures(demonstrated):
    assert_figures(demonstrated[0])


def test_the_demo_ends_with_a_report_of_single_digits(demonstrated):
    """Its path is the last thing said; nothing was missing for it; what it explains is the Engram network trained."""
    out, summary, said = demonstrated
    assert str(out / "report.html") in said.splitlines()[-1]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What is left out, and why" not in page
    assert "after epoch 1" in page and "Counted over 8 stored sequences" in page and "the true labels" in page
    assert all(f"{title} from" in page and f'<th scope="row">{title}</th>' in page for title in summary["models"])
    assert page.count("Which row wrote what is read</b>") == page.count("<article>") > 0
    with np.load(out / "trace.npz") as stored:
        x, y = stored["probe"], stored["labels"]
    assert len(x) == len(y) == work.PROBE
    model = load(out / "model.npz")
    model.random_inference = False
    scores = model.evaluate(x[:8], y[:8])
    assert f"<td>{scores['accuracy']:.1%}</td><td>{scores['loss']:.4f}</td><td>+0</td>" in page


def test_the_demo_shows_a_table_with_the_papers_numbers(demonstrated):
    """Four rows of figures, and the word that they are not for comparison."""
    out, summary, said = demonstrated
    rows = {
        line.split()[0]: line.split()
        for line in said.splitlines()
        if line.startswith(("Engram ", "RNN", "GRU", "LSTM"))
    }
    assert rows.keys() == summary["models"].keys()
    for name, row in rows.items():
        run, paper = summary["models"][name], table.PAPER["mnist"][name.lower()]
        assert f"{run['test_accuracy']:.1%}" in row and f"{run['parameters']:,}" in row
        assert f"{paper['test_accuracy']:.2%}" in row and f"{paper['parameters']:,}" in row
    assert "not for comparison" in said and str(out / "summary.json") in said
    assert all(len(line) <= 60 for line in said.splitlines() if not line.startswith("  wrote"))


@pytest.mark.parametrize("epochs_before", (0, 1))
def test_ctrl_c_in_the_demo_keeps_what_there_is(monkeypatch, tmp_path, epochs_before):
    """Even in the first epoch of the first model, when there is no curve to draw yet."""
    if epochs_before:
        monkeypatch.setattr(pages, "draw", lambda out, results, monitor: [])
    monkeypatch.setattr(datasets, "load_digits", lambda: digits(432, 20))
    small_report(monkeypatch)
    original, batches = Classifier.loss_and_grads, []

    def interrupted(model, *batch):
        batches.append(1)
        if len(batches) > epochs_before:  # one batch an epoch
            raise KeyboardInterrupt
        return original(model, *batch)

    monkeypatch.setattr(Classifier, "loss_and_grads", interrupted)
    said = []
    summary = demo(tmp_path, epochs=3, verbose=0, say=said.append)
    assert [line.split()[-1] for line in said if line.startswith("Engram ")] == ["interrupted"]
    assert list(summary["models"]) == ["Engram"] and summary["models"]["Engram"]["stopped"] == "interrupted"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len(summary["models"]["Engram"]["history"].get("loss", ())) == epochs_before
    if not epochs_before:
        assert_figures(tmp_path, FIGURES[1:])


# What is written down


def test_json_is_written_whole_or_not_at_all(tmp_path):
    """NaN is no JSON, and half a file is no result: the older one must stay."""
    path = tmp_path / "new" / "summary.json"
    results.write_json(path, {"loss": 1})
    with pytest.raises(ValueError):
        results.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1}
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_the_machine_is_named_even_where_linux_does_not_tell(monkeypatch):
    """macOS and Windows have no /proc."""
    machine = results.machine()

    def missing(path, encoding):
        raise FileNotFoundError(path)

    monkeypatch.setattr(results.Path, "read_text", missing)
    other = results.machine()
    assert machine.keys() == other.keys() >= {"processor", "cores", "python", "numpy", "enn_np", "blas_threads"}
    assert all(isinstance(value, str | int) and value for value in other.values())

"""Every figure shows the numbers it was given, says what they are, and refuses what it cannot show."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from enn_np.look import attribution, plots

rng = np.random.default_rng(0)
T, B, N, H, K = 7, 3, 5, 6, 4
A = rng.normal(size=(N, H))
traces = rng.normal(size=(K, N, H))
a = rng.dirichlet(np.ones(N), size=(T, B))  # (T, B, N) retrieval weights
image = rng.random((T, 4))


def history(epochs=3):
    loss, accuracy = rng.uniform(0.1, 2, epochs), rng.random(epochs)
    return {"loss": loss, "accuracy": accuracy, "val_loss": loss * 2, "val_accuracy": accuracy / 2}


histories = {"Engram": history(), "GRU": history(5)}
early, late = {"step": [5, 10], "val_accuracy": [0.5, 1.0]}, {"step": [5, 10, 15], "val_accuracy": [0.3, 0.4, 0.6]}
tasks = {
    "8 pairs": {"GRU": [late], "Binding": [early, late]},
    "adding": {"Binding": [{"step": [5], "val_loss": [0.2]}]},
}

FIGURES = {
    "learning_curves": lambda: plots.learning_curves(histories),
    "task_curves": lambda: plots.task_curves(tasks),
    "trace_heatmap": lambda: plots.trace_heatmap(A),
    "trace_evolution": lambda: plots.trace_evolution(traces),
    "retrieval with image": lambda: plots.retrieval_over_time(a[:, 0], image),
    "retrieval alone": lambda: plots.retrieval_over_time(a[:, 0]),
}


def images(figure):
    return [image.get_array() for ax in figure.axes for image in ax.images]


def lines(ax):
    return [np.array(line.get_ydata()) for line in ax.lines]


@pytest.mark.parametrize("name", FIGURES)
def test_draws_into_a_new_figure_with_labels_and_without_pyplot(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    for ax in figure.axes:
        if ax.get_label() == "<colorbar>":
            assert ax.get_ylabel()
        else:
            if "index" in ax.get_xlabel():
                assert not (ax.get_xticks() % 1).any()
            assert ax.get_title() or ax.get_title(loc="left")
            assert ax.get_xlabel() or not ax.get_subplotspec().is_last_row()
    assert figure.axes[0].get_ylabel()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(("name", "suffix"), [("learning_curves", ".svg"), ("retrieval with image", ".png")])
def test_saved_bytes_are_reproducible(name, suffix, tmp_path):
    draw = FIGURES[name]
    figure, paths = draw(), [tmp_path / "new" / f"{i}{suffix}" for i in range(3)]
    for path, each in zip(paths, (figure, figure, draw()), strict=True):
        plots.save(each, path)
    first, again, redrawn = (path.read_bytes() for path in paths)
    assert first == again == redrawn
    assert len(first) > 5000


def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    figure, path = plots.trace_heatmap(A), tmp_path / "x.png"
    before = plots.save(figure, path).read_bytes()

    def full(file, **settings):
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        plots.save(figure, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_save_says_where_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plots.save(plots.trace_heatmap(A), "~/x.png") == tmp_path / "x.png"


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected one that ends in .png or .svg, got .*x\.gif"):
        plots.save(plots.trace_heatmap(A), tmp_path / "x.gif")


def test_learning_curves_show_the_histories():
    loss, accuracy = plots.learning_curves(histories).axes
    for ax, key in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        for drawn, run in zip(lines(ax), histories.values(), strict=True):
            np.testing.assert_array_equal(drawn, run[key])
    assert loss.get_yscale() == "log" and "nats" in loss.get_ylabel()
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == list(histories)
    (only,) = plots.learning_curves(histories, metrics=["accuracy"]).axes
    assert only.get_title() == "Training accuracy"
    (zero,) = plots.learning_curves({"RNN": {"loss": [1.0, 0.0]}}, metrics=["loss"]).axes
    assert zero.get_yscale() == "linear"


def test_learning_curves_of_several_runs_show_mean_and_range():
    runs = [{"loss": [4.0, 2.0, 1.0]}, {"loss": [2.0, 1.0]}]
    (ax,) = plots.learning_curves({"RNN": runs}, metrics=["loss"]).axes
    np.testing.assert_allclose(lines(ax)[0], [3.0, 1.5, 1.0])
    band = ax.collections[0].get_paths()[0].vertices
    for epoch, low, high in ((1, 2, 4), (2, 1, 2), (3, 1, 1)):
        at = band[band[:, 0] == epoch, 1]
        assert (at.min(), at.max()) == (low, high)


def test_task_curves_count_an_early_end_on():
    """Catches a mean that drops where the best run is over, and a network that changes its colour between tasks."""
    pairs, adding = plots.task_curves(tasks).axes
    np.testing.assert_allclose(lines(pairs)[1], [0.4, 0.7, 0.8])
    np.testing.assert_array_equal(pairs.lines[1].get_xdata(), [5, 10, 15])
    assert pairs.lines[1].get_color() == adding.lines[0].get_color() != pairs.lines[0].get_color()
    assert "loss" in adding.get_ylabel() and "accuracy" in pairs.get_ylabel()


def test_a_network_has_one_colour_in_every_figure():
    """Whichever stand beside it, in whatever order; a variant has its network's, unless that stands beside it."""
    for names in (["GRU", "Engram"], ["Engram, own trace", "Delta, key", "GRU"], ["Engram of old", "Engram", "GRU"]):
        (ax,) = plots.learning_curves({name: {"loss": [2, 1]} for name in names}, metrics=["loss"]).axes
        colors = {drawn.get_label(): drawn.get_color() for drawn in ax.lines}
        assert [*colors] == names and len(set(colors.values())) == len(names)
        assert colors["GRU"] == plots.COLORS[2]
        assert colors.get("Engram", colors[names[0]]) == plots.COLORS[0]


def test_more_models_than_colours():
    """Where colour and dash come again the markers are hollow."""
    (ax,) = plots.learning_curves({f"model {i}": {"loss": [2, 1]} for i in range(9)}, metrics=["loss"]).axes
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in ax.lines}
    assert len(ax.lines) == len(looks) == 9


def test_a_loss_over_many_decades_keeps_its_ticks():
    """matplotlib leaves them all out if asked for 1, 2 and 5 of more decades than there is room for."""
    for lowest in (0.2, 1e-2, 1e-6):
        (ax,) = plots.learning_curves({"m": {"val_loss": [1.0, lowest]}}, metrics=("val_loss",)).axes
        ax.figure.set_size_inches(3, 1.6)
        ax.figure.canvas.draw()
        low, high = ax.get_ylim()
        assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 2, lowest


def test_a_heatmap_centres_its_scale_at_zero():
    draw = plots.trace_heatmap
    figure = draw(A)
    np.testing.assert_array_equal(images(figure)[0], A)
    assert figure.axes[0].images[0].get_clim() == (-abs(A).max(), abs(A).max())
    assert draw(A * 0).axes[0].images[0].get_clim() == (-1, 1)
    assert "no unit" in figure.axes[1].get_ylabel()


@pytest.mark.parametrize("k", [1, 3, 4, 11])
def test_trace_evolution_shows_traces_and_their_size(k):
    shown = {1: [0], 3: [0, 1, 2], 4: [0, 1, 2, 3], 11: [0, 2, 4, 6, 8, 10]}[k]
    many = rng.normal(size=(k, N, H))
    figure = plots.trace_evolution(many, labels=[f"e{i}" for i in range(k)], unit="step")
    np.testing.assert_array_equal(images(figure), many[shown])
    *maps, size, _bar = figure.axes
    assert len({ax.images[0].get_clim() for ax in maps}) == 1
    assert [ax.get_title() for ax in maps] == [f"step e{i}" for i in shown]
    np.testing.assert_allclose(lines(size), [abs(many).max((1, 2)), abs(many).mean((1, 2))])
    assert size.get_yscale() == "log"


def test_trace_evolution_from_a_zero_trace_has_a_linear_axis():
    ax = plots.trace_evolution(np.concatenate([traces[:1] * 0, traces])).axes[-2]
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0


@pytest.mark.parametrize("colours", [False, True])
def test_retrieval_beside_the_input(colours):
    rows = (rng.random((T, 4, 3) if colours else (T, 4)) * 255).astype(np.uint8)
    figure = plots.retrieval_over_time(a[:, 0], rows)
    drawn, weights = images(figure)[:2]
    np.testing.assert_array_equal(drawn, rows)
    np.testing.assert_array_equal(weights, a[:, 0])
    picture, heat, side, bar = figure.axes
    assert picture.get_ylim() == heat.get_ylim() == side.get_ylim() == (T - 0.5, -0.5)
    assert any(np.allclose(line, 1 / N) for line in lines(bar)) and bar.texts[0].get_text() == "1/N"
    figure.draw_without_rendering()
    assert picture.get_position().intervaly == pytest.approx(heat.get_position().intervaly)


def test_effective_slots_of_one_hot_and_even_weights():
    weights = np.stack([np.eye(N)[2], np.full(N, 1 / N)])
    _, side, _ = plots.retrieval_over_time(weights).axes
    np.testing.assert_allclose(side.lines[0].get_xdata(), [1, N])
    assert side.get_title() == f"mean {(1 + N) / 2:.1f}"


def test_even_weights_and_a_single_slot_can_be_drawn():
    for n in (1, N):
        plots.retrieval_over_time(np.full((T, n), 1 / n)).draw_without_rendering()


nan = np.full((N, H), np.nan)
one = a[:, 0]
BAD = {
    "rank": (lambda: plots.trace_heatmap(A[0]), r"A: expected shape \(N, H\), got \(6,\)"),
    "scalar": (lambda: plots.trace_heatmap(1.0), r"A: expected shape \(N, H\), got \(\)"),
    "empty": (lambda: plots.trace_heatmap(A[:0]), r"A: expected shape \(N, H\), got \(0, 6\)"),
    "words for numbers": (lambda: plots.trace_heatmap([["a"]]), r"A: expected numbers, got \[\['a'\]\]"),
    "ragged": (lambda: plots.trace_heatmap([[1, 2], [3]]), "A: expected numbers"),
    "NaN": (lambda: plots.trace_heatmap(nan), "A: every entry must be finite"),
    "masked": (lambda: plots.trace_heatmap(np.ma.masked_less(np.eye(N, H), 0.5)), "A: every entry must be finite"),
    "one trace": (lambda: plots.trace_evolution(A), r"traces: expected shape \(K, N, H\), got \(5, 6\)"),
    "labels": (lambda: plots.trace_evolution(traces, labels=[1]), "labels: expected 4, one per trace, got 1"),
    "negative weights": (lambda: plots.retrieval_over_time([[1.5, -0.5]]), "a: expected weights.*smallest one of -0.5"),
    "weights' sum": (lambda: plots.retrieval_over_time(one * 2), "a: expected.*sum to 1.*sums from 2 to 2"),
    "weights' rank": (lambda: plots.retrieval_over_time(a), r"a: expected shape \(T, N\), got \(7, 3, 5\)"),
    "image rows": (lambda: plots.retrieval_over_time(one, image[1:]), r"image: .* \(7, W\), got \(6, 4\)"),
    "image row": (lambda: plots.retrieval_over_time(one, image[0]), r"image: .* \(7, W\), got \(4,\)"),
    "image channels": (lambda: plots.retrieval_over_time(one, np.ones((T, 4, 2))), r"image: .*\(7, 4, 2\)"),
    "no models": (lambda: plots.learning_curves({}), "histories, metrics: expected at least one"),
    "no metrics": (lambda: plots.learning_curves(histories, metrics=()), "expected at least one each"),
    "no runs": (
        lambda: plots.learning_curves({"RNN": []}),
        r"histories\['RNN'\]: .* hold 'val_loss', got \[\]",
    ),
    "no epochs": (
        lambda: plots.learning_curves({"RNN": {"loss": []}}, ["loss"]),
        r"\['loss'\]: .*got \(0,\)",
    ),
    "metric": (
        lambda: plots.learning_curves({"RNN": {"loss": [1]}}),
        "'RNN'.* hold 'val_loss', got .*'loss'",
    ),
    "NaN loss": (lambda: plots.learning_curves({"RNN": {"loss": [np.nan]}}, ["loss"]), "must be finite"),
    "no tasks": (lambda: plots.task_curves({}), "tasks: expected at least one"),
    "question": (lambda: plots.arcs("abc", "k", np.ones((1, 3)), asked=-1), "asked: expected one of None, 0, got -1"),
    "no networks": (lambda: plots.task_curves({"recall": {}}), "tasks: .* each with a network, got .*recall"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    draw, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        draw()


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, enn_np.look.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_figure_needs_neither_pyplot_nor_a_backend_and_leaves_settings_alone(tmp_path):
    code = (
        "import sys, numpy, matplotlib; from enn_np.look import plots; before = dict(matplotlib.rcParams)\n"
        f"plots.save(plots.trace_heatmap(numpy.eye(3)), {str(tmp_path / 'x.png')!r})\n"
        "assert before == dict(matplotlib.rcParams)\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = {
        "MPLBACKEND": "module://no_such_backend",
        "PATH": "",
        "MPLCONFIGDIR": matplotlib.get_configdir(),
    }
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_arcs_lead_from_each_question_to_the_steps_that_wrote():
    """An arc that ends elsewhere, one for a part that works against the recall, or a mark on the wrong key."""
    recalled = {"symbols": [3, 26, 0, 31, 36, 36, 3], "lengths": [[0, 2, 0, 0, 0, 0], [0, -1, 0, 1, 0, 0]]}
    figure = plots.arcs(*attribution.told(recalled))
    (ax,) = figure.axes
    told = {(text.get_text(), text.get_position()[0]): text.get_color() for text in ax.texts}
    assert [word for word, _ in told][:8] == ["d", "0", "a", "5", "?", "?", "a", "d"]
    marked = {key for key, color in told.items() if color == plots.COLORS[1]}
    assert marked == {("0", 1), ("d", 8)}
    ends = {tuple(np.round([line.get_xdata().min(), line.get_xdata().max()]).astype(int)) for line in ax.lines[:-2]}
    assert ends == {(1, 8), (3, 7)}
    with pytest.raises(ValueError, match="lengths"):
        plots.arcs("ab", "c", np.zeros((1, 3)))

"""What is said of traces is what they are, and what is drawn and written down is what was said."""

import json

import numpy as np
import pytest

from enn_np import claims
from enn_np.lab.pages import figures, fill, load_results
from enn_np.lab.results import machine

K, N, H = 4, 6, 9


def some(kind="random", seed=3):
    """Traces (K, N, H) and their statistics."""
    traces = 0.01 * np.random.default_rng(seed).standard_normal((K, N, H)).astype(np.float32)
    if kind == "one row":
        traces[:] = 0.01 * np.arange(1, H + 1)
    elif kind == "zero":
        traces[:] = 0
    elif kind == "untrained alone":
        traces = traces[:1]
    return traces, [{"effective_slots": 2.0 + k} for k in range(len(traces))]


def test_structure_of_clear_cases():
    """One outer product, two equal ones, rows that are alike, rows that cancel."""
    one = np.outer(np.arange(1, N + 1), np.arange(H))
    np.testing.assert_allclose(claims.outer_products(one), np.eye(N)[0], atol=1e-12)
    np.testing.assert_allclose(claims.outer_products(np.eye(2)), [0.5, 0.5])
    assert claims.common_row(np.tile(np.arange(H), (N, 1))) == pytest.approx(1)
    assert claims.common_row(np.array([[1.0, 2], [-1, -2]])) == 0
    assert claims.common_row(np.array([[1.0, 0], [0, 1]])) == pytest.approx(0.5)  # the mean row (1/2, 1/2), twice


def test_sparsity_of_clear_cases():
    """0 for entries of one size, 1 for one entry, and for normal noise the 1 - sqrt(2 / pi) of a large array."""
    assert claims.hoyer(np.array([[2.0, -2], [2, 2]])) == pytest.approx(0)
    assert claims.hoyer(np.eye(5)[:1]) == pytest.approx(1)
    noise = np.random.default_rng(0).standard_normal((300, 300))
    assert claims.hoyer(noise) == pytest.approx(1 - (2 / np.pi) ** 0.5, abs=0.01) == claims.hoyer(1e-6 * noise)
    assert claims.hoyer(np.zeros((2, 2))) == claims.hoyer(np.ones((1, 1))) == 0


def test_baselines():
    """The untrained trace is the first, the trained the last; the noise has its scale and is not a model's weights."""
    traces, _ = some()
    three = claims.compared(traces)
    assert tuple(three) == ("trained", "untrained", "random")
    np.testing.assert_array_equal(three["trained"], traces[-1])
    np.testing.assert_array_equal(three["untrained"], traces[0])
    large = claims.compared(np.ones((1, 64, 128)))["random"]
    assert (large**2).mean() == pytest.approx(1, rel=0.05) and abs(large.mean()) < 0.03
    weights = np.random.default_rng(0).standard_normal((64, 128))  # the first numbers of a model with seed 0
    assert abs(claims.cosine(large, weights)) < 0.05


def test_numbers_are_those_of_the_traces():
    """The first and the last exchanged, a cosine with itself, a share of slots for one of entries."""
    traces, statistics = some()
    rows = [row.strip("| ").split(" | ")[-4:] for row in claims.table(traces, statistics).split("\n")]
    told = {name: (trained, untrained) for name, trained, untrained, _ in rows}
    first, last = traces[0].astype(float).ravel(), traces[-1].astype(float).ravel()
    assert told["measured"] == ("after 3 epochs", "untrained")
    assert told["share of entries below 0.01"] == tuple(f"{(abs(A) < 0.01).mean():.1%}" for A in (last, first))
    assert told[f"slots that take part in a recall, of {N}"] == ("5.0", "2.0")
    cosine = first @ last / np.sqrt(first @ first * (last @ last))
    assert told["cosine with the trained trace"] == ("1.00", f"{cosine:.2f}")
    assert claims.cosine(traces[0].astype(float), traces[-1].astype(float)) == pytest.approx(cosine, rel=1e-4)
    assert claims.cosine(traces[0], traces[0]) == pytest.approx(1)
    before = [
        A.ravel() @ B.ravel() / np.linalg.norm(A) / np.linalg.norm(B) for A, B in ((traces[1], traces[2]), traces[2:])
    ]
    assert told["... with the epoch before, from epoch 2 on"][0] == f"{min(before):.2f} to {max(before):.2f}"


@pytest.mark.parametrize("kind", ("random", "one row", "zero", "untrained alone"))
def test_every_figure_says_what_it_shows(kind, tmp_path):
    """Titles and labels on every axis, for traces without size, and for one alone."""
    traces, statistics = some(kind)
    table = claims.table(traces, statistics)
    assert "| structured |" in table and "nan" not in table and "inf" not in table
    for figure in (claims.structure(traces), claims.sparsity(traces, statistics), claims.stability(traces)):
        figure.canvas.draw()
        for ax in figure.axes:
            if not hasattr(ax, "_colorbar"):
                assert ax.get_title()
                labelled = ax.get_subplotspec().is_last_row() or len(figure.axes) < 5
                assert ax.get_xlabel() or not labelled


@pytest.mark.parametrize(("traces", "statistics"), ((np.zeros((2, 3)), []), (np.zeros((2, 3, 4)), [{}])))
def test_bad_input(traces, statistics):
    with pytest.raises(ValueError, match=r"^(traces|statistics): expected"):
        claims.table(traces, statistics)


def test_a_stored_run_becomes_figures_and_a_table(tmp_path):
    """From files alone."""
    traces, statistics = some()
    fixed = {"benchmark": "mnist", "protocol": "paper", "model": "engram", "seed": 0, "trace": statistics}
    fixed |= {"parameters": 9, "seconds": 1.5, "test_loss": 0.4, "test_accuracy": 0.9, "stopped": "finished"}
    fixed |= {"best_epoch": 2, "machine": machine()}
    history = {"loss": [0.5, 0.4], "val_loss": [0.5, 0.4], "accuracy": [0.7, 0.8], "val_accuracy": [0.8, 0.9]}
    (tmp_path / "mnist-engram-0.json").write_text(json.dumps({**fixed, "history": history}))
    a, x = np.full((1, 5, N), 1 / N, np.float32), np.zeros((1, 5, 4), np.float32)
    np.savez(tmp_path / "mnist-engram-0.npz", traces=traces, retrieval=a, probe=x)
    paths = figures(tmp_path)
    names = {f"mnist-engram-0-{claim}{end}" for claim in ("structured", "sparse", "stable") for end in (".png", ".svg")}
    assert names < {path.name for path in paths} and all(path.stat().st_size > 1000 for path in paths)
    assert list(load_results(tmp_path, "mnist", "paper")) == ["engram"]

    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- claims:mnist-engram-0 -->\nold\n<!-- /claims:mnist-engram-0 -->\nAfter.\n")
    assert fill(page, tmp_path) == fill(page, tmp_path) == ["claims:mnist-engram-0"]
    before, *rows, after = page.read_text().split("\n")[:-1]
    assert (before, after) == ("Before.", "After.") and "old" not in rows
    assert "\n".join(rows[1:-1]) == claims.table(traces, statistics)

"""Tables and figures from made-up stored results, whose numbers are known."""

import json
import re

import numpy as np
import pytest

from enn_np.lab import pages, verdicts
from enn_np.lab.pages import figures, fill, load_results, table, verify
from enn_np.lab.table import CONTROLS, MATCHED, MODELS, TITLES

MACHINE = {"processor": "abacus", "cores": 1, "numpy": "2", "python": "3", "blas_threads": "1"}
ACCURACY = {"engram": (0.96, 0.97, 0.965), "rnn": (0.98, 0.981, 0.982), "gru": (0.989,)}


def store(folder, benchmark, protocol, model, seed, accuracy, **more):
    history = {"loss": [2.0, 1.0], "val_loss": [2.0, 1.5], "val_accuracy": [0.5, accuracy], "accuracy": [0.5, 0.6]}
    result = {"benchmark": benchmark, "protocol": protocol, "model": model, "seed": seed, "parameters": 1234}
    result |= {
        "best_epoch": 2,
        "stopped": "finished",
        "config": {},
        "seconds": 90.0,
        "test_loss": 1 - accuracy,
        "test_accuracy": accuracy,
        "machine": MACHINE,
    }
    result |= {"history": {**history, "learning_rate": [1e-3, 1e-3]}, **more}
    if "test_mae" in result:
        del result["test_accuracy"]
    (folder / f"{benchmark}-{protocol}-{model}-{seed}.json").write_text(json.dumps(result))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for model, values in ACCURACY.items():
        for seed, value in enumerate(values):
            store(folder, "mnist", "paper", model, seed, value)
    for name, shift in (("full", 0), ("no-trace", 0.001), ("no-bank", -0.1)):
        for seed in range(3):
            store(folder, "mnist", "ablation", name, seed, 0.9 + shift + seed / 1000, trace=[{"effective_slots": 63.5}])
    return folder


def cells(text, row):
    """The cells of the row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_spreads_and_intervals_stand_beside_the_paper(folder):
    text = table("results", "mnist", "paper", folder)
    row = cells(text, "Engram")
    assert row[1:3] == ["0 to 2", "**96.50 ± 0.50%**"] and row[4:7] == ["96.82%", "0.0350 ± 0.0050", "0.1287"]
    low, high = (float(end.strip("%")) for end in row[3].split(" to "))
    assert [low, high] == pytest.approx([96.5 - 1.242, 96.5 + 1.242], abs=0.006)  # 4.303 * 0.5 / sqrt(3)
    assert cells(text, "GRU")[1:5] == ["0", "**98.90%**", "-", "98.98%"] and row[-2:] == ["2", "1.5"]
    assert "Protocol: paper. Measured on: abacus" in text and list(ACCURACY) == sorted(ACCURACY, key=text.lower().find)


def test_pairs_are_compared(folder):
    text = table("tests", "mnist", "paper", folder)
    row = cells(text, "Engram - RNN")
    assert row[1:3] == ["3", "**-1.60%**"] and row[5] == "-" and row[-1] == "0%" and "GRU" not in text
    assert "two seeds of two models" in table("tests", "mnist", "sound", folder)


def test_worse_is_more_for_losses(tmp_path):
    for seed in (0, 1, 2):
        for model, loss in (("engram", 0.3), ("rnn", 0.5)):
            store(
                tmp_path, "regression", "sound", model, seed, 1 - loss + seed / 100, test_linear_loss=0.75, test_mae=0.4
            )
    assert cells(table("tests", "regression", "sound", tmp_path), "Engram - RNN")[2] == "**+0.2**"
    text = table("results", "regression", "sound", tmp_path)
    assert cells(text, "RNN")[2] == "**0.4900 ± 0.0100**" and cells(text, "RNN")[4] == "0.7500 ± 0.0000"


def test_ablations_share_one_table(folder):
    text = table("ablation", "mnist", "recall", folder)
    assert cells(text, "no-trace")[1:4] == ["trace_scale = 0.0", "90.20 ± 0.10%", "+0.10%"]
    assert cells(text, "no-bank")[4] != "-" and cells(text, "full")[3:] == ["-", "-", "63.5"]
    assert text.index("| full") < text.index("| no-trace") < text.index("| no-bank")
    assert "recall:" not in text and "sparsemax" not in text
    store(folder, "recall", "ablation", "full", 0, 0.5)
    text = table("ablation", "mnist", "recall", folder)
    assert cells(text, "full")[6:] == ["50.00%", "-", "-", "-"] and cells(text, "no-bank")[6:] == [*"----"]


def test_shortened_runs_are_named(tmp_path):
    store(tmp_path, "mnist", "paper", "rnn", 0, 0.5, training={"limit": 1000})
    assert "Trained on the first 1,000 only." in table("results", "mnist", "paper", tmp_path)


def test_a_page_is_filled_between_its_marks(folder, tmp_path):
    page = tmp_path / "page.md"
    marks = ("results:mnist:paper", "tests:mnist:paper", "ablation:mnist:recall")
    page.write_text("".join(f"# {mark}\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nkept\n" for mark in marks))
    assert fill(page, folder) == list(marks)
    text = page.read_text()
    assert "old" not in text and text.count("kept") == 3 and text.count("Engram - RNN") == 1
    fill(page, folder)
    assert page.read_text() == text


def test_a_result_that_changes_shows(folder):
    """What the README's own test relies on."""
    before = table("results", "mnist", "paper", folder)
    store(folder, "mnist", "paper", "rnn", 1, 0.9812)
    assert table("results", "mnist", "paper", folder) != before


def test_no_run_counts_twice(folder):
    store(folder, "mnist", "paper", "rnn", 1, 0.9)
    (folder / "mnist-paper-rnn-1.json").rename(folder / "copy.json")
    store(folder, "mnist", "paper", "rnn", 1, 0.9)
    with pytest.raises(ValueError, match=r"mnist-paper-rnn-1\.json: a second result of rnn with seed 1"):
        load_results(folder, "mnist", "paper")


@pytest.mark.parametrize("network, column", [("mnist-paper-rnn-1", "test_accuracy"), ("recall8-sound-lstm-0", "steps")])
def test_a_result_without_a_number_of_its_table_is_named(folder, network, column):
    """A KeyError, deep in the making of a page."""
    store(folder, *network.split("-")[:3], int(network[-1]), 0.9, steps=7)
    path = folder / f"{network}.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != column}))
    with pytest.raises(ValueError, match=rf"{network}\.json: {column}: expected"):
        table("results", *network.split("-")[:2], folder)


def test_a_verdict_without_runs_says_so(tmp_path):
    """It said nan."""
    *_, told, n, _ = verdicts._judged(verdicts.Row("par", "link", verdicts.against("mnist/paper")), tmp_path)
    assert told == "RNN not run, GRU not run, LSTM not run points" and n == "0 of 5"


def test_a_mark_of_no_kind_is_refused(folder, tmp_path):
    """Its page was left as it was, and `verify` called it right."""
    page = tmp_path / "page.md"
    page.write_text("<!-- result:mnist:paper -->\n<!-- /result:mnist:paper -->\n")
    with pytest.raises(ValueError, match=r"^mark: expected one of 'results', .* got 'result'"):
        fill(page, folder)


def test_a_folder_without_results_is_named(tmp_path):
    """Warnings of empty means, and the name of a file that no run writes."""
    with pytest.raises(ValueError, match=r"^results: .*found none in .*nothing"):
        verify(["README.md"], tmp_path / "nothing")


def test_figures_are_drawn_as_png_and_svg(folder):
    store(folder, "mnist", "paper", "engram", 0, 0.96, trace=[{"effective_slots": 3.0}] * 2)
    (folder / "mnist-ablation-full-0.json").unlink()
    np.savez(
        folder / "mnist-paper-engram-0.npz",
        traces=np.zeros((2, 4, 6), np.float32),
        retrieval=np.full((1, 5, 4), 0.25, np.float32),
        probe=np.zeros((1, 5, 28), np.float32),
    )
    names = {path.name for path in figures(folder)}
    kinds = ("retrieval", "trace", "structured", "sparse", "stable")
    stems = ("mnist-learning-curves", *(f"mnist-paper-engram-0-{kind}" for kind in kinds))
    drawn = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}
    assert names == drawn
    assert all((folder / "figures" / name).stat().st_size > 1000 for name in drawn)


def test_tasks_of_memory_are_drawn_with_several_seeds(tmp_path, monkeypatch):
    """All sizes of a task in one figure, and all long tasks; a network with one seed has no band, and is left out, and
    so is a size with one network, which nothing stands beside."""
    drawn = []
    monkeypatch.setattr(pages.plots, "task_curves", drawn.append)
    monkeypatch.setattr(pages.plots, "save", lambda figure, path: path)
    for task, model, seeds in (
        *(
            (task, model, 2)
            for task in ("recall16", "recall8", "fewshot5", "adding9", "copy9")
            for model in ("gru", "lstm")
        ),
        ("recall8", "window", 1),
        ("fewshot1", "lstm", 2),
        ("copy9", "binding", 1),
        ("split5", "gru", 1),
    ):
        for seed in range(seeds):
            history = {"loss": [1.0], "step": [250], "val_loss": [1.0], "val_accuracy": [0.3]}
            more = dict.fromkeys(("test_seen_accuracy", "test_nearest_accuracy", "test_forgetting"), 0.3)
            store(tmp_path, task, "sound", model, seed, 0.3, history=history, steps=250, **more)
    stems = [path.stem for path in figures(tmp_path)[::2]]
    assert stems == [f"{family}-sound-learning-curves" for family in ("recall", "fewshot", "long")]
    assert [[(title, list(networks)) for title, networks in tasks.items()] for tasks in drawn] == [
        [("8 pairs", ["GRU", "LSTM"]), ("16 pairs", ["GRU", "LSTM"])],
        [("fewshot5", ["GRU", "LSTM"])],
        [("copy9", ["GRU", "LSTM"]), ("adding9", ["GRU", "LSTM"])],
    ]


def test_pairs_are_those_that_are_asked_about(tmp_path):
    """Catches rivals compared with each other, or sizes that were made to match with sizes that were not."""
    scores = {"engram": 0.9, "gru": 0.95, "gru-parameters": 0.96, "binding-parameters": 0.99}
    for name, score in (scores | {"gru-dropout": 0.97, "binding-no-trace": 0.98}).items():
        for seed in (0, 1, 2):
            store(tmp_path, "mnist", "sound", name, seed, score + seed / 1000)
    rows = [line.split(" | ")[0].strip("| ") for line in pages.table("tests", "mnist", "sound", tmp_path).splitlines()]
    assert rows[2:8] == [
        "Engram - GRU",
        "Engram - GRU of Engram's size",
        "Engram - Binding of Engram's size",
        "GRU of Engram's size - Binding of Engram's size",
        "Binding of Engram's size - GRU with dropout",
        "Binding of Engram's size - Binding without trace",
    ]
    assert not rows[8]


def test_every_network_has_a_title():
    for name in (*MODELS, *MATCHED, *CONTROLS):
        assert re.match("[A-Z]", TITLES[name])


def test_bench_table_shows_foreign_peers_and_says_what_is_missing(tmp_path):
    """Catches the other number of threads, our own rows, and a side that failed and hides it."""
    row = {"work": "engram", "threads": 1, "ours_ms": 80.0, "peer_ms": 100.0, "ratio": 1.25, "floor_share": 0.6}
    row |= {"unit": "step", "gemm_gflops": 99.0}
    rows = [row | {"peer": "torch"}, row | {"peer": "torch", "threads": 2}, row | {"peer": "enn_np, recomputing"}]
    rows += [row | {"peer": "JAX", "peer_ms": None, "ratio": None}]
    rows += [row | {"peer": "Keras", "ours_ms": None, "peer_ms": 1_079.4, "ratio": None, "floor_share": None}]
    header = {"cpu": "abacus", "cpus": 1, "repeats": 15, "versions": {"a": {"python": "3", "numpy": "2"}}}
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cpu.json").write_text(json.dumps({"header": header, "rows": rows}))
    text = table("bench", "cpu", "1", tmp_path)
    assert text.splitlines()[2:5] == [
        "| engram | torch | 80 | 100 | **1.25** | 60% | step |",
        "| engram | JAX | 80 | - | - | 60% | step |",
        "| engram | Keras | - | 1,079 | - | - | step |",
    ]
    assert text.endswith("Medians of 15 rounds; abacus, 1 CPUs, 1 thread, a matrix product at 99 GFLOP/s; numpy 2.")


def test_runs_that_were_trained_otherwise_are_not_one_row(folder):
    """They were one mean, with the learning rate of the first."""
    for seed, epochs in ((0, 15), (1, 1)):
        store(folder, "mnist", "paper", "lstm", seed, 0.9, training={"epochs": epochs})
    with pytest.raises(ValueError, match=r"mnist-paper-lstm: runs differ in training"):
        table("results", "mnist", "paper", folder)


@pytest.mark.parametrize("mark", (("results", "mnist"), ("verdicts", "x"), ("claims", "a", "b")))
def test_a_mark_that_names_no_table_is_named(folder, mark):
    with pytest.raises(ValueError, match=f"^mark: {':'.join(mark)}: no table of it in .*results"):
        table(*mark, folder)

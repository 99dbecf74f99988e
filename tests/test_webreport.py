"""The report: what it says is what the run holds, nothing in a file can break it, and it works in a real browser."""

import base64
import io
import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from browser import HOME, LEFT, RIGHT, needs_browser
from PIL import Image

from enn_np import GRU, Classifier, Engram, Regressor
from enn_np.look import attribution, plots
from enn_np.look import report as webreport
from enn_np.look.report import EXAMPLES, WORST, contents, write_report

T, D, N, H, K = 6, 8, 5, 7, 4  # steps, inputs, slots, hidden units, stored traces
STATISTICS = ("min", "max", "mean_abs", "sd", "share_small", "share_clipped", "effective_slots", "drift")
RECALLED = {
    "symbols": [3, 26, 0, 31, 36, 36, 3],
    "lengths": [[0, 2.5, 0, 0, 0, 0], [0, -1, 0, 1.5, 0, 0]],
}
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror=hacked=1>\"'&\u2028"


def run_numbers(epochs=3, **more):
    history = {
        name: [1 / (k + 1) for k in range(epochs)]
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "seconds")
    }
    statistics = [{name: 0.01 * (k + 1) for name in STATISTICS} for k in range(epochs + 1)]
    numbers = {"test_loss": 0.25, "test_accuracy": 0.9375, "parameters": 1234, "seconds": 5.5, "stopped": "finished"}
    return {**numbers, "best_epoch": 3, "history": history, "trace": statistics, **more}


def summary_of(**more):
    fixed = {"benchmark": "mnist", "protocol": "paper", "model": "engram", "seed": 0}
    return {**fixed, **run_numbers(), "config": {"cells": [{"kind": "engram", "slots": N}]}, **more}


def arrays(n=20, steps=T, inputs=D, slots=N, hidden=H, traces=K, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "traces": rng.standard_normal((traces, slots, hidden), np.float32) / 10,
        "retrieval": rng.dirichlet(np.ones(slots), (n, steps)).astype(np.float32),
        "probe": rng.random((n, steps, inputs), np.float32),
        "labels": np.arange(n) % 3,
    }


def network(inputs=D, **settings):
    return Classifier(Engram(H, N, trace_scale=3, **settings), inputs, 3, pooling="mean")


def run_folder(path, summary=None, stored=None, model=None):
    """A run directory of these parts; None leaves one out."""
    path.mkdir(parents=True, exist_ok=True)
    if summary is not None:
        path.joinpath("summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    if stored is not None:
        np.savez(path / "trace.npz", **stored)
    if model is not None:
        model.save(path / "model.npz")
    return path


def both(path):
    """A report's page, and what the template was given to show there."""
    given = []
    with mock.patch.object(webreport, "contents", lambda source: given.append(contents(source)) or given[0]):
        return write_report(path).read_text(encoding="utf-8"), *given


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Where it is no matter how many are shown."""
    monkeypatch.setattr(webreport, "EXAMPLES", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run directory with all there can be, its page, and what that shows."""
    folder = run_folder(tmp_path_factory.mktemp("whole"), summary_of(recalled=RECALLED), arrays(), network())
    return folder, *both(folder)


class Page(HTMLParser):
    """Elements with their attributes, and whether all that open also close."""

    VOID = ("meta", "link", "input", "img", "br", "hr")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not {"script", "style"} & set(self.open):
            self.texts.append(text)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def report_of(tmp_path, *parts):
    return write_report(run_folder(tmp_path, *parts)).read_text(encoding="utf-8")


def data_of(tmp_path, *parts):
    """What the template is given to show."""
    return contents(run_folder(tmp_path, *parts) / "summary.json")


def notes_of(text):
    return "".join(re.findall(r'<ul class="says".*?</ul>', text, re.DOTALL))


def picture(src):
    kind, data = src.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def values_of(shown):
    """The numbers of a map, back from its picture."""
    return shown["low"] + np.asarray(picture(shown["src"])) / 255 * (shown["high"] - shown["low"])


# --------------------------------------------------------------------------------------------------- structure


def test_the_page_stands_alone(whole):
    """A page that reaches out to the network, leaves a placeholder, an element open, an id twice, a label lost."""
    folder, text, _ = whole
    assert folder.joinpath("report.html").stat().st_size < 5e6
    assert not list(folder.glob("*.part"))
    page = Page(text)
    assert "[[" not in "".join(page.texts)
    assert not re.findall(r"(?:src|href|url|@import|fetch|XMLHttpRequest)\W{0,3}(?:https?:)?//", text)
    assert all(attrs["href"][0] == "#" for attrs in page.all("a"))
    assert all(attrs["src"].startswith("data:image/") and "alt" in attrs for attrs in page.all("img"))
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    sliders = {attrs["id"] for attrs in page.all("input") if attrs["type"] == "range"}  # others are in their labels
    assert sliders == {attrs["for"] for attrs in page.all("label") if "for" in attrs} == {"asked", "epoch", "row"}
    assert page.all("html")[0]["lang"] == "en" and "prefers-color-scheme: dark" in text


def test_the_summary_is_that_of_the_run(whole):
    """Numbers of another model, or the paper's where ours belong."""
    words = " ".join(Page(whole[1]).texts)
    for said in ("93.75%", "96.82%", "0.2500", "1,234", "210,826", "3 (best 3)", "finished", '"slots": 5'):
        assert said in words, said


def test_a_network_has_its_colour_in_a_chart():
    """The same as in all figures; a level is drawn, too."""
    found, other = (webreport._drawn({"Engram": [1.0, 0.5], "GRU": [0.25]}, "epoch", 1, level) for level in (None, 0.4))
    image = Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))).convert("RGB")
    seen = {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in image.getcolors(2**20)}
    assert {plots.COLORS[plots.NETWORKS[name]] for name in ("Engram", "GRU")} <= seen
    assert plots.COLORS[plots.NETWORKS["RNN"]] not in seen and found != other


def test_a_demo_has_a_row_per_model(tmp_path):
    models = {"Engram": run_numbers(), "GRU": run_numbers(2, test_accuracy=0.5, trace=None)}
    summary = {"models": models, "settings": {"batch_size": 32}}
    text, data = both(run_folder(tmp_path, summary))
    words = " ".join("".join(Page(text).texts).split())
    assert "93.75%" in words and "50.00%" in words and "batch_size" in words
    assert data["curves"]["Validation loss (nats)"] == {"Engram": [1, 1 / 2, 1 / 3], "GRU": [1, 1 / 2]}
    assert "Engram from 1 to 0.333; GRU from 1 to 0.5" in words
    assert re.search(r"<b>effective slots, by epoch</b>.*\n? *from 0.01 to 0.04", text)


def test_one_model_is_drawn_by_training_and_validation(whole):
    numbers = [1, 1 / 2, 1 / 3]
    lines = {"validation": numbers, "training": numbers}
    assert whole[2]["curves"] == {"Loss (nats)": lines, "Accuracy": lines}


def test_maps_are_the_arrays(whole):
    """A map that is turned, or scaled by another's limit."""
    data, stored = whole[2], arrays()
    limit = abs(stored["traces"]).max()
    for shown, A in zip(data["trace"]["maps"], stored["traces"], strict=True):
        assert abs(values_of(shown) - A).max() <= limit / 127
    names = data["trace"]["names"]
    assert names == ["untrained", "after epoch 1", "after epoch 2", "after epoch 3"]
    assert data["trace"]["numbers"][2]["max"] == 0.03
    A = stored["traces"][1].astype(float)
    common = np.linalg.norm(np.tile(A.mean(0), (N, 1))) ** 2 / np.linalg.norm(A) ** 2
    assert data["trace"]["numbers"][1]["common"] == pytest.approx(common, rel=1e-3)


def test_sequences_are_explained_as_attribution_does(whole):
    """The worst errors first, then one of each class; what is said of one is what its own functions return."""
    examples, stored, model = whole[2]["examples"], arrays(), network()
    assert len(examples) == EXAMPLES
    alone = Classifier(Engram(H, N, trace_scale=3, trace="sample"), D, 3, pooling="mean")
    given, likely = alone.predict(stored["probe"]), alone.predict_proba(stored["probe"])
    wrong, right = np.flatnonzero(given != stored["labels"]), np.flatnonzero(given == stored["labels"])
    expected = alone.predict_proba(stored["probe"])[np.arange(20), stored["labels"]]
    worst = wrong[np.argsort(expected[wrong])][:WORST].tolist()
    order = list(dict.fromkeys([*worst, 0, 1, 2, *range(20)]))[:EXAMPLES]
    assert len(wrong) > WORST and [each["truth"] != each["target"] for each in examples[:WORST]] == [True] * WORST
    head, rows = whole[2]["errors"]["confusion"]
    assert head == ["", 0, 1, 2]
    for k, *row in rows:
        assert row == [((stored["labels"] == k) & (given == j)).sum() for j in range(3)]
    assert sum(rows[k][k + 1] for k in range(3)) == len(right) == 20 - whole[2]["errors"]["wrong"]
    assert [each["number"] for each in examples] == [i + 1 for i in order]
    x = stored["probe"][order]
    for part in ("trace", "bank"):
        changes = attribution.logit_changes(model, x, given[order], part)
        np.testing.assert_allclose([each["changes"][part] for each in examples], changes, rtol=1e-3, atol=1e-6)
    for i, (index, each) in enumerate(zip(order, examples, strict=True)):
        assert each["target"] == given[index]
        found = sorted(enumerate(likely[index]), key=lambda one: -one[1])
        assert [k for k, _ in each["likely"]] == [k for k, _ in found]
        np.testing.assert_allclose([p for _, p in each["likely"]], [p for _, p in found], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(values_of(each["input"]), x[i], atol=0.01)
        assert sum(sum(values) / len(values) for values in each["shares"].values()) == pytest.approx(1, abs=0.01)
        assert all(1 <= slots <= N for slots in each["effective"])
        total = values_of(each["attribution"]).sum()
        assert total == pytest.approx(
            each["difference"] - each["residual"], abs=T * D * each["attribution"]["high"] / 200
        )
        written = values_of(each["written"])
        assert not np.triu(written).any()  # no step reads what is written later
        assert written[1:].sum(1) == pytest.approx(1, abs=0.05)  # and the trace begins empty


def test_who_wrote_what_is_recalled(whole):
    """A row under another's key, or a sequence that is cut elsewhere."""
    found = whole[2]["recalled"]
    assert (found["keys"], found["asked"], len(found["arcs"])) == (["a", "d"], 1, 2)
    assert found["told"] == [
        "Asked for a: 300.0% of what is recalled was written at step 4, which read 5 after a.",
        "Asked for d: 100.0% of what is recalled was written at step 2, which read 0 after d.",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("symbols", [3, 26, 0]),
        ("symbols", [3, 26, 0, 31, 36, 36, 1]),
        ("symbols", [3.5] * 7),
        ("symbols", [10**30] * 7),
        ("lengths", [[0, 1], [2]]),
        ("lengths", [[0.0] * 6, [None] * 6]),
        ("lengths", []),
        (None, EVIL),
        (None, [EVIL]),
    ],
)
def test_what_cannot_be_drawn_as_recalled_is_refused_by_name(tmp_path, name, value):
    recalled = value if name is None else RECALLED | {name: value}
    with pytest.raises(ValueError, match=r"^recalled: .*expected|^recalled: .*is none of those"):
        report_of(tmp_path, summary_of(recalled=recalled))


def test_a_result_alone(tmp_path):
    """Catches a page that wants a folder, one that is written over the result, and epochs that are none."""
    run = run_numbers()
    run["history"]["step"] = [250, 500, 750]
    path = tmp_path / "recall2-sound-binding-0.json"
    path.write_text(json.dumps({**summary_of(model="binding"), **run, "recalled": RECALLED}))
    page = write_report(path)
    assert page == tmp_path / "recall2-sound-binding-0.html"
    text = page.read_text(encoding="utf-8")
    assert contents(path)["recalled"]["asked"] == 1 and "trace.npz" not in text
    assert '<th scope="col">validations</th>' in text
    np.savez(path.with_suffix(".npz"), **arrays())
    assert f"{N} memory slots" in write_report(path, tmp_path / "other.html").read_text(encoding="utf-8")


def test_slots_are_ablated(whole):
    slots, stored = whole[2]["slots"], arrays()
    found = attribution.ablations(network(), stored["probe"], stored["labels"])
    assert slots["n"] == 20 and slots["truth"] is True
    rows = {row[0].partition(" (")[0]: row[1:] for row in slots["ablations"]}
    assert list(rows) == list(found)
    intact = found["intact"]["loss"]
    for name, score in found.items():
        accuracy, loss = score["accuracy"], score["loss"]
        assert rows[name] == (f"{accuracy:.1%}", f"{loss:.4f}", f"{loss - intact:+.2g}")
    without = attribution.slot_ablation(network(), stored["probe"], stored["labels"])["loss"] - intact
    assert slots["without"] == pytest.approx(without)
    assert slots["use"].shape == (N,) and slots["use"].sum() == pytest.approx(1)


def test_without_labels_the_network_is_its_own_judge(tmp_path):
    stored = arrays()
    del stored["labels"]
    data = data_of(tmp_path, summary_of(), stored, network())
    assert data["slots"]["truth"] is False and data["slots"]["ablations"][0][1] == "100.0%"
    assert not any("truth" in each for each in data["examples"])


def test_colours_and_other_places(tmp_path):
    """Photographs as rows of (T, 3); a page written where it is asked for."""
    folder = run_folder(tmp_path / "run", summary_of(benchmark="cifar10"), arrays(inputs=3 * T), network(3 * T))
    out = write_report(folder, tmp_path / "elsewhere.html")
    assert out == tmp_path / "elsewhere.html" and not folder.joinpath("report.html").exists()
    first = contents(folder / "summary.json")["examples"][0]
    shown = picture(first["input"]["src"])
    assert (shown.mode, shown.size) == ("RGB", (T, T))
    x = arrays(inputs=3 * T)["probe"][first["number"] - 1]
    x = (x - x.min()) / (x.max() - x.min())
    np.testing.assert_allclose(np.asarray(shown) / 255, x.reshape(T, T, 3), atol=0.01)


# ------------------------------------------------------------------------------------------------- reduced views


def without(name):
    stored = arrays()
    del stored[name]
    return stored


REDUCED = {
    "no trace": (None, None, "No trace of an Engram network"),
    "no network": (arrays(), None, "model.npz"),
    "no probe": (without("probe"), network(), None),
    "no retrieval": (without("retrieval"), None, "model.npz"),
    "no traces": (without("traces"), network(), None),
    "empty traces": (
        {**arrays(), "traces": np.zeros((0, N, H))},
        network(),
        "trace.npz does not fit, and all that needs it is left out (traces: ",
    ),
    "flat traces": (
        {**arrays(), "traces": np.zeros((K, N * H))},
        None,
        "trace.npz does not fit, and all that needs it is left out (traces: ",
    ),
    "traces of NaN": (
        {**arrays(), "traces": np.full((K, N, H), np.nan)},
        None,
        "trace.npz does not fit, and all that needs it is left out (traces: ",
    ),
    "whole numbers": (
        {**arrays(), "probe": np.ones((3, T, D), int)},
        network(),
        "trace.npz does not fit, and all that needs it is left out (probe: ",
    ),
    "words": (
        {**arrays(), "retrieval": np.full((3, T, N), EVIL)},
        None,
        "trace.npz does not fit, and all that needs it is left out (retrieval: ",
    ),
    "lengths differ": (
        {**arrays(), "retrieval": np.ones((3, T + 1, N))},
        None,
        "trace.npz does not fit, and all that needs it is left out (retrieval: expected shape (n, 6, N)",
    ),
    "labels too many": (
        {**arrays(), "labels": np.zeros(21, int)},
        network(),
        "trace.npz does not fit, and all that needs it is left out (labels: ",
    ),
    "labels too large": ({**arrays(), "labels": np.full(20, 7)}, network(), "model.npz does not fit"),
    "pickled": (
        {**arrays(), "labels": np.array([{}] * 20)},
        None,
        "trace.npz does not fit, and all that needs it is left out (",
    ),
    "another width": (arrays(inputs=D + 1), network(), "model.npz does not fit"),
    "no memory": (arrays(), Classifier(GRU(4), D, 3), "model.npz does not fit"),
    "a regressor": (arrays(), Regressor(Engram(H, N), D), "model.npz does not fit"),
    "one slot": (arrays(slots=1), Classifier(Engram(H, 1), D, 3), None),
    "one step": (arrays(steps=1), network(), None),
    "one sequence": (arrays(n=1), network(), None),
    "zero trace": ({**arrays(), "traces": np.zeros((1, N, H))}, None, "model.npz"),
    "a trace each": (arrays(), network(trace="sample"), None),
}


@pytest.mark.parametrize("name", REDUCED)
def test_what_is_missing_is_left_out_and_said(tmp_path, name):
    """A blank page, a NaN in the JSON, or a part that silently is not there."""
    stored, model, note = REDUCED[name]
    text, data = both(run_folder(tmp_path, summary_of(history={}, trace=[]), stored, model))
    page = Page(text)
    assert "93.75%" in " ".join(page.texts)
    assert (note in notes_of(text)) if note else not notes_of(text)
    left_out = not stored or (note or "").startswith("trace.npz")
    assert (data["trace"] is None) == (left_out or "traces" not in stored)
    assert bool(data["examples"]) == (not left_out and "probe" in stored)
    if note and note.startswith("model.npz does"):
        assert "changes" not in data["examples"][0]


@pytest.mark.parametrize("demo", (False, True))
def test_the_trace_of_another_run_is_not_shown(tmp_path, demo):
    """An Engram network's trace.npz and model.npz under the numbers of an RNN that was trained into the same folder."""
    rnn = {**run_numbers(), "model": "rnn"}
    del rnn["trace"]
    summary = {"models": {"RNN": rnn, "GRU": rnn}} if demo else {**summary_of(model="rnn"), **rnn}
    summary.pop("trace", None)
    text, data = both(run_folder(tmp_path, summary, arrays(), network()))
    assert data["trace"] is data["slots"] is None and data["examples"] == [] == data["statistics"]
    assert re.search(r"<li>trace\.npz does not fit, .* \(it is of another run", text) and "93.75%" in text
    path = tmp_path / "mnist-paper-rnn-0.json"
    path.write_text(json.dumps(summary))
    np.savez(path.with_suffix(".npz"), **arrays())
    text, data = both(path)
    assert data["trace"] is None and re.search(r"<li>mnist-paper-rnn-0\.npz does not fit, .* of another run", text)


@pytest.mark.parametrize("name", ("README.md", "trace.npz", "report"))
def test_a_file_that_is_no_run_is_named(tmp_path, name):
    """README.md/summary.json is where it was looked for."""
    (tmp_path / name).write_text("{}")
    for path in (name, "absent.md", "absent"):
        with pytest.raises(
            ValueError, match=rf"{path}: no run is there; expected a folder that .* or the JSON file of"
        ):
            write_report(tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_runs_summary_is_that_run(tmp_path):
    folder = run_folder(tmp_path, summary_of(), arrays())
    assert write_report(folder / "summary.json") == folder / "report.html"
    assert f"{N} memory slots" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_stored_result_is_ignored_by_git():
    """`report data/results/X.json` left a file beside it that git asked to be added."""
    root = Path(__file__).parent.parent
    path = "data/results/recall8-sound-binding-0"
    if (root / ".git").exists():
        plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        asked = [
            subprocess.run(["git", "-C", root, "check-ignore", "-q", path + end], env=plain).returncode
            for end in (".html", ".json")
        ]
        assert asked == [0, 1]


@pytest.mark.parametrize("content", (b"", b"PK\x03\x04 half a file", b"\x93NUMPY", b"\x80\x04]"))
@pytest.mark.parametrize("name", ("trace.npz", "model.npz"))
def test_damaged_arrays(tmp_path, name, content):
    folder = run_folder(tmp_path, summary_of(), arrays(), network())
    folder.joinpath(name).write_bytes(content)
    text = write_report(folder).read_text(encoding="utf-8")
    assert re.search(rf"<li>{name} does not fit, .* \(", text)


def test_arrays_too_large_to_read_are_left_out_and_said(tmp_path, monkeypatch):
    """Found out before they are unpacked: a small file can hold an array that no memory can."""
    monkeypatch.setattr(webreport, "LARGEST", 4 * T * D * 20 + 200)  # the probe, and no more
    text = report_of(tmp_path, summary_of(), {**arrays(), "traces": np.zeros((9, 50, 50), np.float32)}, network())
    assert re.search(r"trace\.npz does not fit, .* \(.*0\.0 GB are too many", text) and "93.75%" in text


@pytest.mark.parametrize("history", ({}, {"loss": []}, {"loss": [], "val_loss": []}, None))
def test_an_empty_history_leaves_the_rest(tmp_path, history):
    """A run that was interrupted in its first epoch."""
    summary = summary_of(history=history, trace=[], best_epoch=None)
    stored = {name: values[:6] for name, values in arrays().items()}
    text, data = both(run_folder(tmp_path, summary, stored, network() if history else None))
    assert data["curves"] == {} and data["statistics"] == [] and 'id="learning"' not in text
    assert len(data["trace"]["maps"]) == K and data["examples"] and "0 (best –)" in " ".join(Page(text).texts)


def test_huge_arrays_make_no_huge_page(tmp_path, monkeypatch):
    """Many epochs, slots and units, and long sequences: averaged, and within 5 MB."""
    stored = arrays(n=20, steps=400, inputs=300, slots=200, hidden=500, traces=40)
    summary = summary_of(**run_numbers(5000), noise={str(k): "x" * 500 for k in range(2000)})
    folder = run_folder(tmp_path, summary, stored)
    with monkeypatch.context() as patch:
        patch.setattr(webreport, "EXAMPLES", EXAMPLES)
        trace = both(folder)[1]["trace"]
    assert folder.joinpath("report.html").stat().st_size < 5e6
    first = values_of(trace["maps"][0])
    assert len(trace["maps"]) == 32 and first.shape == (96, 192) and "averaged" in trace["size"]
    assert trace["names"][-1] == "after epoch 39"
    A, rows, columns = stored["traces"][0], 200 / 96, 500 / 192
    across = A[:, -2:].sum(1) + (columns - 2) * A[:, -3]
    corner = (across[:2].sum() + (rows - 2) * across[2]) / (rows * columns)
    assert first[0, -1] == pytest.approx(corner, abs=trace["maps"][0]["high"] / 127)


def test_long_sequences_are_not_taken_apart(tmp_path):
    """T runs of T steps each would take minutes."""
    data = data_of(tmp_path, summary_of(), arrays(n=3, steps=200), network())
    assert "changes" not in data["examples"][0] and len(data["examples"][0]["effective"]) == data["steps"] == 200


# --------------------------------------------------------------------------------------------------- hostile files

BAD = {
    "nothing": None,
    "empty": "",
    "no JSON": "{",
    "a list": "[1, 2]",
    "a number": "3",
    "no run": "{}",
    "other things": '{"answer": 42}',
    "models as list": '{"models": [1]}',
    "no models": '{"models": {}}',
    "model as number": '{"models": {"Engram": 3}}',
    "too deep": "[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "huge number": '{"test_loss": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_run_is_refused_by_the_files_name(tmp_path, name):
    if BAD[name] is not None:
        content = BAD[name] if isinstance(BAD[name], bytes) else BAD[name].encode()
        tmp_path.joinpath("summary.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"summary\.json: "):
        write_report(tmp_path)
    assert not tmp_path.joinpath("report.html").exists()


ODD = (None, True, "many", EVIL, -1, 0, 1e308, float("nan"), float("inf"), 10**400, [], {}, [[]], {"a": {"b": [EVIL]}})
TEXTS = ("stopped", "best_epoch", "benchmark", "protocol", "model", "seed", "config", "machine", "sequences")
NUMBERS = ("test_accuracy", "test_loss", "parameters", "seconds", "history", "trace")


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_become_text_or_are_refused_by_the_files_name(tmp_path, value):
    """A type error, a NaN that is drawn, or text that becomes an element."""
    page = Page(report_of(tmp_path, summary_of(history={}, trace=[], **dict.fromkeys(TEXTS, value))))
    assert len(page.all("script")) == 1 and not page.all("img")
    for key in NUMBERS:
        number = value is True or (type(value) in (int, float) and abs(value) < 1e300)
        fits = not value if key in ("history", "trace") else number
        summary = {**summary_of(history={}, trace=[]), key: value}
        if fits:
            assert not Page(report_of(tmp_path, summary)).all("img")
        else:
            with pytest.raises(ValueError, match=r"summary\.json: it describes no run: expected .* finite numbers"):
                report_of(tmp_path, summary)


@pytest.mark.parametrize("inner", ("history", "trace"))
@pytest.mark.parametrize("value", ("all", [1, None], [1, float("nan")], [1, "2"], [10**400], {"a": [1]}, 3), ids=repr)
def test_odd_values_inside_lists_are_refused(tmp_path, inner, value):
    odd = {"loss": [1.0, 2.0], "val_loss": value} if inner == "history" else [{"max": value, "min": -1}]
    with pytest.raises(ValueError, match=r"summary\.json: it describes no run: "):
        report_of(tmp_path, summary_of(**{inner: odd} if inner == "history" or value != 3 else {inner: [3]}))


def hostile():
    """Markup wherever a file can hold text."""
    run = {**run_numbers(), "stopped": EVIL, EVIL: EVIL}
    return {"models": {f"$\\frac {EVIL}": run, "GRU": run}, "settings": {EVIL: [EVIL]}, "machine": EVIL}


@pytest.mark.filterwarnings("ignore:Glyph")  # which the font lacks
def test_markup_in_files_stays_text(tmp_path):
    """Only what the template holds may be an element."""
    stored = {**arrays(), "retrieval": np.full((2, T, N), EVIL)}
    text = report_of(tmp_path, hostile(), stored)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert all(
        attrs.keys() == {"class", "alt", "src"} and attrs["src"][:11] == "data:image/" for attrs in page.all("img")
    )
    assert "window.hacked" in "".join(page.texts)  # shown, as text
    assert "<script>window" not in text and "<img src=x" not in text


# ------------------------------------------------------------------------------------------------ a real browser


def colours(picture):
    """How many different ones there are: one on a blank page."""
    return len(np.unique((255 * picture[::3, ::3]).astype(int) @ (1 << 16, 1 << 8, 1)))


def seen(browser):
    """All that the reader sees of a map, a text and the list of panels."""
    script = """(() => {
        const text = (part) => [...document.querySelectorAll(part)].map((each) => each.innerText).join("").trim();
        return {
            trace: document.querySelector(".trace img:not(.off)").src,
            epoch: text("output[for=epoch] :not(.off)"),
            numbers: text("#trace div[data-by=epoch] p:not(.off)"),
            verdict: text("article:not(.off) h3"),
            row: text("article:not(.off) .says p:not(.off)"),
            marker: document.querySelector("article:not(.off) .marker").offsetTop,
            panels: [...document.querySelectorAll("article:not(.off) .panels img")].map((each) => each.src).join(),
        };
    })()"""
    return browser.ask(script)


@needs_browser
def test_slider_and_chooser_change_what_is_shown(browser, whole):
    """By keyboard alone, without a word on the console."""
    browser.open(whole[0] / "report.html")
    first = seen(browser)
    assert first["epoch"] == "after epoch 3" and "max 0.04" in first["numbers"]
    browser.press("#epoch", LEFT + LEFT)
    second = seen(browser)
    assert second["epoch"] == "after epoch 1" and "max 0.02" in second["numbers"]
    assert second["trace"] != first["trace"] and second["panels"] == first["panels"]
    browser.press("#epoch", HOME)
    assert seen(browser)["epoch"] == "untrained"

    browser.press("input[type=radio]", RIGHT)
    third = seen(browser)
    assert (
        third["verdict"].startswith(f"Sequence {whole[2]['examples'][1]['number']}: read as")
        and third["panels"] != second["panels"]
    )
    assert third["row"] != second["row"] and third["marker"] == second["marker"]
    assert browser.ask('document.querySelectorAll("input[type=radio]").length') == EXAMPLES

    before = browser.ask('document.querySelector(".wide[data-by=asked] img:not(.off)").src')
    browser.press("#asked", LEFT)
    asked = browser.ask('document.querySelector("div[data-by=asked] p:not(.off)").innerText')
    assert asked == "Asked for a: 300.0% of what is recalled was written at step 4, which read 5 after a."
    assert browser.ask('document.querySelector(".wide[data-by=asked] img:not(.off)").src') != before

    browser.press("#row", RIGHT)
    fourth = seen(browser)
    assert fourth["row"] != third["row"] and fourth["marker"] > third["marker"]
    assert fourth["panels"] == third["panels"] and browser.complaints() == []


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), ((1200, "light"), (1200, "dark"), (390, "light"), (320, "dark")))
def test_the_page_fits_and_is_not_empty(browser, whole, width, scheme):
    """A sideways scroll on a phone, a white page in the dark, text that cannot be told from its ground."""
    browser.open(whole[0] / "report.html", width, scheme)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask('document.querySelectorAll("section").length') == 8
    # what is wider than the screen says so, and nothing else does
    cue = '[...document.querySelectorAll(".wide")].map((each) => [each.scrollWidth > each.clientWidth,'
    cue += ' getComputedStyle(each, "::before").content.includes("scroll")])'
    assert all(wider == told for wider, told in browser.ask(cue))
    assert any(wider for wider, _ in browser.ask(cue)) == (width < 600)
    box = "((each) => each.offsetWidth / each.offsetHeight)(document.querySelector('article .held.square'))"
    assert browser.ask(box) == pytest.approx(1)  # T x T, as a digit's rows are
    top = browser.picture()
    assert (top[0, 0].mean() > 0.9) == (scheme == "light")
    assert colours(top) > 50
    browser.ask('document.querySelector("article .panels").scrollIntoView()')
    lower = browser.picture()
    assert top.shape == lower.shape and abs(top - lower).mean() > 0.01
    assert colours(lower) > 100
    assert browser.complaints() == []


@needs_browser
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_text_stands_out_from_its_ground(browser, whole, scheme):
    """WCAG 2 asks for a contrast of 4.5 for text and 3 for what is drawn."""
    browser.open(whole[0] / "report.html", scheme=scheme)
    colors = {}
    for name in ("paper", "panel", "ink", "soft", "accent", "mark"):
        value = browser.ask(f'getComputedStyle(document.documentElement).getPropertyValue("--{name}").trim()')[1:]
        value = value if len(value) == 6 else "".join(2 * digit for digit in value)
        line = np.array([int(value[k : k + 2], 16) / 255 for k in (0, 2, 4)])
        colors[name] = np.where(line <= 0.03928, line / 12.92, ((line + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )
    for name, wanted in {"ink": 7, "soft": 4.5, "accent": 4.5, "mark": 3}.items():
        for ground in ("paper", "panel"):
            dark, light = sorted((colors[name], colors[ground]))
            assert (light + 0.05) / (dark + 0.05) >= wanted, (name, ground)


@needs_browser
@pytest.mark.parametrize(
    "name", ("no trace", "no network", "no probe", "no retrieval", "one slot", "one step", "zero trace")
)
def test_reduced_views_in_the_browser(browser, tmp_path, name):
    """A script that stumbles over what is not there leaves half a page."""
    stored, model, _ = REDUCED[name]
    folder = run_folder(tmp_path, summary_of(), stored, model)
    browser.open(write_report(folder))
    assert browser.complaints() == []
    shown = browser.ask('[...document.querySelectorAll("section")].map((each) => each.id)')
    data = contents(folder / "summary.json")
    wanted = {"recalled": "recalled", "sequences": "examples", "slots": "slots"}
    assert {part for part in wanted if part in shown} == {part for part, key in wanted.items() if data[key]}
    assert browser.ask("document.body.innerText.length") > 500


@needs_browser
@pytest.mark.filterwarnings("ignore:Glyph")
def test_an_empty_history_and_hostile_text_in_the_browser(browser, tmp_path):
    """Text of a file that runs, or that stops the page's own script."""
    browser.open(write_report(run_folder(tmp_path / "empty", summary_of(history={}, trace=[]))))
    assert browser.ask('document.getElementById("learning")') is None
    assert "93.75%" in browser.ask("document.body.innerText")
    browser.open(write_report(run_folder(tmp_path / "hostile", hostile())))
    assert browser.ask("window.hacked === undefined && [...document.images].every((each) => each.naturalWidth)") is True
    assert browser.ask('document.querySelectorAll("#learning figure").length') == 2
    assert browser.complaints() == []

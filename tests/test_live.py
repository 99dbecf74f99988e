"""The live page: its JavaScript says what the package says, its cell recalls, and a teacher can work it by keyboard."""

import json

import live
import numpy as np
import pytest
from browser import HOME, LEFT, needs_browser, needs_chromium
from test_webreport import colours

from enn_np import Binding, run
from enn_np.checkpoint import write_text
from enn_np.data.tasks import associative_recall
from enn_np.look.attribution import written_lengths

SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789?"


def held(page=live.PAGE):
    """What a page holds: sizes, how often it is right, and the weights."""
    return json.loads(live.WEIGHTS.search(page.read_text(encoding="utf-8"))[0])


def cell_of(page, **changes):
    """The page's cell, its float64 parameters, and W and b of the head."""
    found = held(page)
    settings = {name: found[name] for name in ("hidden", "slots", "temperature")} | changes
    params = {name: np.array(value) for name, value in found["params"].items()}
    head = [params.pop(name) for name in "Wb"]
    return Binding(**settings, store="dense"), params, *head


def test_the_page_is_small_and_its_numbers_are_plausible():
    found = held()
    assert live.PAGE.stat().st_size < 300_000
    assert len(found["right"]) == live.PAIRS and min(found["right"]) > 0.95
    assert {name: value.shape for name, value in cell_of(live.PAGE)[1].items()} == {
        name: value.shape for name, value in Binding(24, 32).init(np.random.default_rng(0), 37).items()
    }


@pytest.mark.parametrize("pairs", (1, 4, 8))
def test_the_page_says_how_often_its_cell_is_right(pairs):
    """On sequences that are drawn here: the claim is not of one lucky draw."""
    cell, params, W, b = cell_of(live.PAGE)
    x, y = associative_recall(np.random.default_rng(99), 2_000, pairs)
    h = run(cell, params, x.swapaxes(0, 1).astype(float))[0][-1]
    right = ((h @ W + b).argmax(1) == y).mean()
    assert abs(right - held()["right"][pairs - 1]) < 0.01


def test_training_writes_the_page(tmp_path, monkeypatch):
    """But for its weights it is the page that is there; the weights have 4 digits."""
    monkeypatch.setattr(live, "TEST", 20)
    live.write_live(tmp_path / "a.html", 5, seed=3)
    made, shown = (page.read_text(encoding="utf-8") for page in (tmp_path / "a.html", live.PAGE))
    assert live.WEIGHTS.sub("", made) == live.WEIGHTS.sub("", shown) and made != shown
    found = held(tmp_path / "a.html")
    assert found["steps"] == 5 and found["params"]["W_z"] != held()["params"]["W_z"]
    assert all(float(f"{each:.4g}") == each for each in np.ravel(found["params"]["W_c"]))


def test_a_folder_is_refused_before_training(tmp_path, monkeypatch):
    """Three minutes of training, then an error, and nothing is left of it."""
    monkeypatch.setattr(live, "fit_fresh", lambda *_, **__: pytest.fail("trained first"))
    with pytest.raises(OSError, match="is a folder; name a file"):
        live.write_live(tmp_path)


# ------------------------------------------------------------------------------------------------------ in a browser


def random_page(path):
    """A page whose weights are all random, biases and layer norms too: a wrong line cannot hide behind a zero."""
    rng, found = np.random.default_rng(7), held()
    params = {name: rng.normal(size=np.shape(value)).tolist() for name, value in found["params"].items()}
    page = live.PAGE.read_text(encoding="utf-8")
    write_text(path, live.WEIGHTS.sub(json.dumps(found | {"params": params}), page))
    return path


@needs_chromium
@pytest.mark.parametrize("weights", ("trained", "random"))
@pytest.mark.parametrize(
    ("text", "asked", "tau", "shift"),
    (("c9 k8 j3 f1", "k", 0.15, 0.0), ("a0 z9 a1", "a", 0.6, -2.5), ("b1 c2 d3 e4 f5 g6 h7 i8", "e", 0.03, 4.0)),
)
def test_javascript_repeats_the_package(browser, tmp_path, weights, text, asked, tau, shift):
    """Address, plasticity, trace, hidden state, arcs and answers, at every step, to 1e-5."""
    page = live.PAGE if weights == "trained" else random_page(tmp_path / "random.html")
    browser.open(page)
    words = [*text.replace(" ", ""), "?", "?", asked]
    there = browser.ask(f"run({json.dumps(words)}, {tau}, {shift})")

    cell, params, W, b = cell_of(page, temperature=tau)
    params["b_g"] = params["b_g"] + shift
    x = np.eye(len(SYMBOLS))[[SYMBOLS.index(word) for word in words]][:, None]  # (T, 1, D)
    h, _, tape = run(cell, params, x)
    seen = cell.record(params, tape)
    logits = h[:, 0] @ W + b
    answers = np.exp(logits - logits.max(-1, keepdims=True))
    here = {
        "a": seen["retrieval"][:, 0],
        "g": seen["plasticity"][:, 0, 0],
        "w": seen["written"][:, 0],
        "A": seen["trace"][1:, 0],
        "h": h[:, 0],
        "recall": seen["trace_part"][:, 0],
        "answers": answers / answers.sum(-1, keepdims=True),
    }
    for name, values in here.items():
        assert np.allclose([step[name] for step in there], values, rtol=0, atol=1e-5), name
    for t, step in enumerate(there):
        assert np.allclose(step["lengths"], written_lengths(cell, tape, t)[0], rtol=0, atol=1e-5), t


def said(browser, part):
    return browser.ask(f'document.getElementById("{part}").textContent')


@needs_chromium
def test_the_page_works_by_keyboard(browser):
    """Steps back and forth, sliders, the right answer, the later of two values, and what is said of bad input."""
    browser.open(live.PAGE)
    assert said(browser, "answer") == "Asked for c, the network says 9 (100.0%): right."
    assert "was written at step 2, which read 9" in said(browser, "told")
    assert browser.ask('document.querySelectorAll("#story path").length') >= 1
    browser.press("#step", LEFT)
    assert said(browser, "told").startswith("Step 10 of 11 reads ?.")
    browser.press("#step", HOME)
    assert said(browser, "told") == "Step 1 of 11 reads c. It recalls next to nothing."
    assert browser.ask('document.getElementById("back").disabled') is True
    browser.press("#next", "\n")
    assert "Step 2 of 11 reads 9. It writes at the address of c" in said(browser, "told")

    browser.press("#shift", HOME)  # nothing is written
    assert "wrong" in said(browser, "answer")
    browser.press("#trained", "\n")
    assert "right" in said(browser, "answer")
    browser.press("#tau", "\ue010")  # End: all slots alike
    assert float(said(browser, "tau-is")) == pytest.approx(1.5)
    browser.press("#trained", "\n")

    browser.press("#pairs", "\ue010 m")
    assert said(browser, "answer") == "Pairs: expected a letter and a digit each, such as c9 k8, got “m”."
    browser.press("#pairs", "4")
    assert said(browser, "answer").startswith("Asked for c, the network says 9 (")
    browser.press("#asked", "\ue003z")
    assert said(browser, "answer") == "Ask for: expected one of the keys c, k, j, f, m, got “z”."
    browser.press("#pairs", " c1")
    assert said(browser, "answer") == "Pairs: expected every key once, as in training; leave one out."
    browser.press("#pairs", " a1 b2 d3")
    assert said(browser, "answer") == "Pairs: expected at most 8, got 9; leave some out."
    assert browser.complaints() == []


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), ((1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")))
def test_the_page_fits_and_is_not_empty(browser, width, scheme):
    browser.open(live.PAGE, width, scheme)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    top = browser.picture()
    assert (top[0, 0].mean() > 0.9) == (scheme == "light") and colours(top) > 50
    unnamed = "input:not([aria-label]), svg:not([aria-label]), canvas:not([aria-label])"
    found = browser.ask(f"[...document.querySelectorAll('{unnamed}')].filter((each) => !each.labels?.length).length")
    assert found == 0
    assert browser.complaints() == []

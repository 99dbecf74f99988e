"""WikiText runs, on a text of a few hundred words: what they write, and that nothing is substituted silently."""

import json
import lzma

import numpy as np
import pytest

from enn_np import load
from enn_np.data.text import load_wikitext, paper_windows, unigram_perplexity
from enn_np.lab import cli, runner, table, work
from enn_np.language import cached_perplexity

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "far", "away", "."]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A folder with a small text in the place of WikiText, and models of its size."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    for part, lines in (("train", 120), ("valid", 12), ("test", 12)):
        rows = [" " + " ".join(rng.choice(WORDS, 40)) + " \n" for _ in range(lines)]
        (folder / f"wiki.{part}.tokens.xz").write_bytes(lzma.compress("".join(rows).encode()))
    monkeypatch.setenv("ENN_DATA", str(tmp_path))
    monkeypatch.setattr(work, "load_wikitext", lambda name, train: load_wikitext(name, train=train, verify=False))
    monkeypatch.setattr(work, "paper_windows", lambda name, train: paper_windows(name, train=train, verify=False))
    recipe = work.wikitext2_recipe

    def small(name):
        model, fit = recipe(name)
        return {**model, "embedding": 8, "cutoffs": (5, 9)}, {**fit, "batch_size": 4, "steps": 10}

    for module in (table, work):
        monkeypatch.setattr(module, "wikitext2_recipe", small)
    return tmp_path


def test_a_sound_run_is_scored_beside_the_unigram_model(text, tmp_path):
    out = tmp_path / "run"
    summary = runner.run_one("wikitext2/sound", "lstm", 0, out, epochs=1, limit=500, verbose=0)
    assert summary == json.loads((out / "summary.json").read_text())
    assert {"benchmark", "protocol", "model", "seed", "parameters", "seconds", "test_loss"} <= summary.keys()
    assert summary["test_perplexity"] == pytest.approx(np.exp(summary["test_loss"]), rel=1e-4)
    assert 1 < summary["test_unigram_perplexity"] < 14 and summary["train_size"] == 500
    model, read = load(out / "model.npz"), work.load_wikitext("wikitext-2", "wiki.train.tokens")
    assert model.size == summary["parameters"]
    scores = work.scored(model, read)
    for part, ids in (("valid", read.valid), ("test", read.test)):
        theta, share = (scores[part][f"cache_{name}"] for name in ("theta", "share"))
        wanted = model.evaluate_stream(ids) | {
            "unigram_perplexity": unigram_perplexity(read.vocabulary.counts, ids),
            "cache_perplexity": cached_perplexity(model, ids, [theta], [share])[0, 0],
        }
        assert {name: scores[part][name] for name in wanted} == wanted
        stored = {name: summary[f"{part}_{name}"] for name in scores[part]}
        assert stored == pytest.approx(scores[part], rel=1e-5)
    assert theta == scores["valid"]["cache_theta"] and share == scores["valid"]["cache_share"]
    # Of pairs, one of which was chosen: no other one of these is better.
    assert scores["valid"]["cache_perplexity"] <= cached_perplexity(model, read.valid, [0.1, 1.6], [0.05, 0.4]).min()


@pytest.mark.parametrize("model", ["engram", "gru"])
def test_a_paper_run_takes_the_id_as_a_number(text, tmp_path, model):
    summary = runner.run_one("wikitext2/paper", model, 0, tmp_path / "run", epochs=1, limit=20, verbose=0)
    assert summary["config"]["embedding"] is None and summary["train_size"] == 20
    assert summary["history"]["val_perplexity"][0] > 1 and summary["test_accuracy"] <= 1


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_it_trains_on_a_card(text, tmp_path, card, protocol):
    """Catches a protocol that leaves its model on the host."""
    before = card.fetched
    runner.run_one(f"wikitext2/{protocol}", "lstm", 0, tmp_path / "run", epochs=1, limit=200, verbose=0, device="cuda")
    assert card.fetched > before


def test_the_command_line_trains_it(text, tmp_path, capsys):
    command = ["run", "wikitext-2/sound", "--models", "lstm", "--epochs", "1", "--limit", "300"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "test perplexity" in capsys.readouterr().out


def test_a_missing_text_is_named(text, tmp_path, capsys):
    command = ["run", "wikitext-2/sound", "--models", "lstm", "--train-file", "wiki.train.part"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "wiki.train.part" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("key", "wikitext"),
        ("model", "transformer"),
        ("key", "wikitext2/mine"),
        ("seed", -1),
        ("epochs", 0),
        ("limit", 0),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tmp_path, argument, value):
    right = {"key": "wikitext2/sound", "model": "lstm", "seed": 0, "out": tmp_path / "run"}
    with pytest.raises((TypeError, ValueError), match=str(value).rpartition("/")[2]):
        runner.run_one(**{**right, argument: value})
    assert not (tmp_path / "run").exists()

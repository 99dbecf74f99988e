"""The README's table of verdicts: what the paper claims, as rows of plain data, and what the stored results say of it.

A row's verdict comes from an interval: a new result may change it, and nobody has to.
"""

from functools import partial, reduce
from math import erf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checkpoint import read_arrays
from ..look.claims import SMALL, markdown, outer_products
from .results import load_results, read_json
from .table import PAPER, find

# What it is if the interval lies below the goal, holds it, lies above it. "reported" is of a single published run: the
# interval is then where one more run is expected, else that of the mean.
RULES = {
    "reported": ("refuted", "reproduced", "exceeded"),
    "par": ("refuted", "undecided", "exceeded"),
    "more": ("refuted", "undecided", "reproduced"),
    "less": ("reproduced", "undecided", "refuted"),
}


def numbers(folder, network, *less, field=None):
    """A number for every seed of a network such as "mnist/paper/engram"; "fair/" in front is a folder in `folder`.

    less: taken off seed by seed. field: "history.loss.-1" or a function of a result, else its score. Accuracies in %.
    """
    runs = []
    for *place, benchmark, protocol, model in (each.split("/") for each in (network, *less)):
        stored = load_results(Path(folder, *place), benchmark, protocol)
        runs.append({run["seed"]: run for run in stored.get(model, [])})
    field = field or find(f"{benchmark}/{protocol}").score

    def number(run):
        if callable(field):
            return field(run)
        found = reduce(lambda part, name: part[int(name) if isinstance(part, list) else name], field.split("."), run)
        return 100 * found if any(map(field.count, ("accuracy", "forgetting", "instance", "nearest"))) else found

    same = [[each[seed] for each in runs] for seed in sorted(set(runs[0]).intersection(*runs))]
    return [number(run) - sum(map(number, others)) for run, *others in same]


class Row(NamedTuple):
    """claim: of the paper. link: a heading of the results page. effects: {name: networks, for `numbers` with `field`;
    or a function of the folder, to (mean, interval, n)}, each judged by `rule` and `goal`, said in `words` and `form`.
    seeds: how many it takes. missing: what that would take, in words, if it is not the time of as many stored runs."""

    claim: str
    link: str
    effects: dict
    words: str = "{} points"
    form: str = "{:+.2f}"
    rule: str = "par"
    goal: float = 0
    seeds: int = 5
    missing: str | None = None
    field: object = None


def _summary(values):
    from .stats import interval

    return (np.mean(values), interval(values), len(values)) if len(values) else (np.nan, None, 0)


def against(key, end="", order=1):
    """Engram against each of the paper's rivals; order -1: turned round, where less is better."""
    return {name.upper(): (f"{key}/engram", f"{key}/{name}{end}")[::order] for name in ("rnn", "gru", "lstm")}


def above_line(run):  # the straight line that fits best
    return run["test_loss"] - run["test_linear_loss"]


def small(run):
    """How many points more entries of the trace are small than of normal noise that spreads as much."""
    return 100 * (run["trace"][-1]["share_small"] - erf(SMALL / run["trace"][-1]["sd"] / 2**0.5))


def _traces(folder):
    """Of every stored run by the paper's protocol the trace after each epoch, (K, N, H)."""
    return [read_arrays(path)["traces"] for path in sorted(Path(folder).glob("mnist-paper-engram-*.npz"))]


def structure(folder):
    """How many points more of a trained trace than of the untrained one is one outer product."""
    return _summary([100 * (outer_products(A[-1])[0] - outer_products(A[0])[0]) for A in _traces(folder)])


def moved(folder):
    """How far the last epoch moves the trace, in percent of its length."""
    return _summary([100 * np.linalg.norm(A[-1] - A[-2]) / np.linalg.norm(A[-1]) for A in _traces(folder)])


def alarms(folder):
    """How often ANOVA over two values of one run calls four equal models different, in percent."""
    from .stats import false_alarms

    return _summary(100 * false_alarms(0.7))


def slower(rival, folder):
    """How many times as long as a rival's one training step takes, and that of the quartiles furthest apart."""
    found = read_json(Path(folder) / "bench" / "cpu.json")
    works = {row["work"]: row for row in found["rows"] if row["threads"] == 1}
    (a, b), (c, d) = (works[name]["ours_quartiles"] for name in ("engram", rival))
    return works["engram"]["ours_ms"] / works[rival]["ours_ms"], (a / d, b / c), found["header"]["repeats"]


def pointed(score, folder, beside=None):
    """How many points less is right without rows that `score` names than that `beside` names, or another digit's."""
    found = [read_json(path)["accuracy"] for path in sorted(Path(folder, "deletion").glob("*.json"))]
    return _summary([100 * (each[beside or f"other's {score}"] - each[score]) for each in found])


MNIST, CIFAR10 = (100 * PAPER[name]["engram"]["test_accuracy"] for name in ("mnist", "cifar10"))
DIGITS, PHOTOS, TRACE, KEYS = "mnist-row-by-row", "cifar-10-row-by-row", "what-the-trace-holds", "associative-recall"
TWO, NUMBER, TEXT = "what-two-values-of-one-run-can-tell", "regression-by-one-number", "wikitext-2-word-by-word"
DIGIT, PHOTO = {"": ("mnist/paper/engram",)}, {"": ("cifar10/paper/engram",)}
LINE, RECALL = {"": ("regression/paper/engram",)}, {"": ("recall8/sound/engram-sample",)}
PARTS = {"trace": "engram-no-trace", "trace and bank": "engram-no-memory"}
PARTS = {name: (f"mnist/paper/{part}", "mnist/paper/engram") for name, part in PARTS.items()}
PERPLEXITY = against("wikitext2/sound", order=-1)
LAYERS = {
    name: (f"wikitext2/sound/{name.lower()}-parameters", "wikitext2/sound/engram") for name in ("RNN", "GRU", "LSTM")
}
SPEED = {name: partial(slower, name.lower()) for name in ("GRU", "LSTM")}
FEWER, EQUALS = "perplexity, less is plus: {}", 'equal models "differ" in {} of draws, if the two correlate by 0.7'
CHOSEN, PATTERN = "{}; chosen on the test set, as published", "one pattern: {} points more of it than untrained"
PAIRS = "of eight pairs {} in 2,500 steps at the best of five rates; naming the value told most often: 29.99%"
LOWER, SLOTS = "{} from the line's loss, generated data", "{} of 64 slots take part; sparse were under half"
MOVES = "the last epoch moves it by {} of its length; under 10% we call stable"
BLANK = "without 7 rows that a score names it errs more than without another digit's (others) or the last: {} points"
POINTS = {"recall against others": partial(pointed, "recalled"), "effect against others": partial(pointed, "effect")}
POINTS["recall against the last 7"] = partial(pointed, "recalled", beside="last")
ROWS = (
    Row(f"Engram reaches {MNIST:.2f}% on MNIST", DIGITS, DIGIT, "{}", "{:.2f}%", "reported", MNIST),
    Row("it is on a par with rivals there", DIGITS, against("mnist/paper")),
    Row("... with rivals of its size", "by-the-sound-protocol", against("mnist/sound", "-parameters")),
    Row("it reaches 46.8% on CIFAR-10", PHOTOS, PHOTO, CHOSEN, "{:.2f}%", "reported", CIFAR10),
    Row("it is on a par with rivals there", PHOTOS, against("cifar10/paper"), "{} points; the RNN is a fifth as large"),
    Row("... with rivals of its size", "cifar-10-by-the-sound-protocol", against("cifar10/sound", "-parameters")),
    Row("regression beats a straight line", NUMBER, LINE, LOWER, "{:+.3f}", "less", field=above_line),
    Row("ANOVA over two values of a run tells models apart", TWO, {"": alarms}, EQUALS, "{:.1f}%", "less", 5),
    Row("recall is sparse", TRACE, DIGIT, SLOTS, "{:.2f}", "less", 32, field="trace.-1.effective_slots"),
    Row("training gives the trace structure", TRACE, {"": structure}, PATTERN, rule="more", missing="78 minutes"),
    Row("the trace is sparse", TRACE, DIGIT, "entries below 0.01: {} points more than noise", rule="more", field=small),
    Row("the trace is stable", TRACE, {"": moved}, MOVES, "{:.1f}%", "less", 10, missing="78 minutes"),
    Row("the memory helps", DIGITS, PARTS, "MNIST without {} points", rule="less"),
    Row("it stores what it is shown", KEYS, RECALL, PAIRS, "{:.2f}%", "more", 29.99),
    Row("on WikiText-2 it is on a par", TEXT, PERPLEXITY, FEWER + "; the LSTM's hangs on one run", "{:+.1f}", seeds=3),
    Row("... with recurrent layers as large", TEXT, LAYERS, FEWER + "; the RNN was mostly clipped", "{:+.1f}", seeds=3),
    Row("WikiText-103: perplexity 1,181", "commands", {}, missing="430 hours of one core"),
    Row("it trains faster than GRU, LSTM", "speed", SPEED, "MNIST, a step's time over theirs: {}", "{:.2f}", "less", 1),
    Row("it can be interpreted", "what-the-memory-points-to", POINTS, BLANK, "{:+.1f}", "more", missing="98 minutes"),
)


def one_more(mean, interval, n):
    """Where one more run is expected: it spreads, too, and about a mean that is not known exactly."""
    return [mean + (end - mean) * (n + 1) ** 0.5 for end in interval]


def verdicts_table(folder):
    """The rows judged, in Markdown."""
    head = ("the paper says", "verdict", "measured, with 95% interval", "n", "more")
    return markdown(head, [_judged(row, folder) for row in ROWS])


def _judged(row, folder):
    """The cells of a row."""
    more = f"[runs](data/results/README.md#{row.link})"
    if not row.effects:
        return row.claim, "not judged", row.missing, "0", more
    words, said, seeds = {}, [], []
    for name, one in row.effects.items():
        mean, interval, n = one(folder) if callable(one) else _summary(numbers(folder, *one, field=row.field))
        seeds.append(n)
        told = f"{name} {row.form.format(mean) if n else 'not run'}".strip()
        said.append(told + (f" ({' to '.join(map(row.form.format, interval))})" if interval else ""))
        if interval and row.rule == "reported":
            interval = one_more(mean, interval, n)
            said[-1] += f", one more run {' to '.join(map(row.form.format, interval))}"
        if interval:
            place = int(interval[1] >= row.goal) + int(interval[0] > row.goal)
            words.setdefault(RULES[row.rule][place], []).append(name)
    word = ", ".join(f"{word} ({', '.join(names)})" if len(words) > 1 else word for word, names in words.items())
    n, effect = min(seeds), row.words.format(", ".join(said))
    if n >= row.seeds:
        return row.claim, word, effect, " to ".join(f"{each:,}" for each in sorted({n, max(seeds)})), more
    effect += f"; the rest takes {row.missing}" * bool(row.missing)
    return row.claim, "not judged" + f", so far {word}" * bool(word), effect, f"{n} of {row.seeds}", more

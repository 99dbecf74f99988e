"""The README's table of verdicts: what the paper claims, as rows of plain data, and what the stored results say of it.

A row's verdict comes from an interval: a new result may change it, and nobody has to.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checkpoint import read_arrays
from ..look.claims import SMALL, outer_products
from .results import load_results, read_json
from .table import PAPER

# What it is if the interval lies below the goal, holds it, lies above it. "reported" is of a single published run: the
# interval is then where one more run is expected, else that of the mean.
RULES = {
    "reported": ("refuted", "reproduced", "exceeded"),
    "par": ("refuted", "undecided", "exceeded"),
    "more": ("refuted", "undecided", "reproduced"),
    "less": ("reproduced", "undecided", "refuted"),
}


def by_seed(folder, number, *networks):
    """[number(run, ...)] of the runs that networks, such as "mnist/paper/engram", have of one seed, for each seed; one
    more name in front is a folder in `folder`."""
    runs = []
    for *place, benchmark, protocol, model in (each.split("/") for each in networks):
        stored = load_results(Path(folder, *place), benchmark, protocol)
        runs.append({run["seed"]: run for run in stored.get(model, [])})
    return [number(*(each[seed] for each in runs)) for seed in sorted(set(runs[0]).intersection(*runs))]


class Effect(NamedTuple):
    """`number` of the runs that networks have of one seed, see `by_seed`; of the folder if there are none, and then
    mean, interval and how many values it is of."""

    number: object
    networks: tuple = ()

    def measure(self, folder):
        return _summary(by_seed(folder, self.number, *self.networks)) if self.networks else self.number(folder)


class Row(NamedTuple):
    """claim: of the paper. link: a heading of the page of results. effects: {name: Effect}, each judged by `rule` and
    `goal`, said in `words` and `form`. seeds: how many it takes. missing: what that would take, in words, if it is
    not the time of as many stored runs."""

    claim: str
    link: str
    effects: dict
    words: str = "{} points"
    form: str = "{:+.2f}"
    rule: str = "par"
    goal: float = 0
    seeds: int = 5
    missing: str | None = None


def _summary(values):
    from .stats import interval

    return (np.mean(values), interval(values), len(values)) if len(values) else (np.nan, None, 0)


def against(key, end="", field="accuracy"):
    """Engram against each of the paper's rivals, more is better, accuracies in percent."""

    def better(ours, theirs):
        return (ours[f"test_{field}"] - theirs[f"test_{field}"]) * (100 if field == "accuracy" else -1)

    return {name.upper(): Effect(better, (f"{key}/engram", f"{key}/{name}{end}")) for name in ("rnn", "gru", "lstm")}


def of_run(number, network="mnist/paper/engram"):
    return {"": Effect(number, (network,))}


def accuracy(run):
    return 100 * run["test_accuracy"]


def without(part):
    """What a change of the cell does to its accuracy on MNIST."""
    return Effect(lambda less, full: accuracy(less) - accuracy(full), (f"mnist/ablation/{part}", "mnist/ablation/full"))


def small(run):
    """How many points more entries of the trace are small than of normal noise that spreads as much."""
    from scipy.special import erf

    return 100 * (run["trace"][-1]["share_small"] - erf(SMALL / run["trace"][-1]["sd"] / 2**0.5))


def turned(run):
    """How far the last epoch moves the trace, in percent of the first."""
    return 100 * run["trace"][-1]["drift"] / run["trace"][1]["drift"]


def structure(folder):
    """How many points more of a trained trace than of the untrained one is one outer product."""
    traces = [read_arrays(path)["traces"] for path in sorted(Path(folder).glob("mnist-paper-engram-*.npz"))]
    return _summary([100 * (outer_products(each[-1])[0] - outer_products(each[0])[0]) for each in traces])


def alarms(folder):
    """How often ANOVA over two values of one run calls four equal models different, in percent."""
    from .stats import false_alarms

    return _summary(100 * false_alarms(0.9))


def slower(rival):
    """How many times as long as a rival's one training step takes, and what the quartiles of both leave open."""

    def measure(folder):
        found = read_json(Path(folder) / "bench" / "cpu.json")
        works = {row["work"]: row for row in found["rows"] if row["threads"] == 1}
        (a, b), (c, d) = (works[name]["ours_quartiles"] for name in ("engram", rival))
        return works["engram"]["ours_ms"] / works[rival]["ours_ms"], (a / d, b / c), found["header"]["repeats"]

    return Effect(measure)


MNIST, CIFAR10 = (100 * PAPER[name]["engram"]["test_accuracy"] for name in ("mnist", "cifar10"))
DIGITS, PHOTOS, TRACE, PART = "mnist-row-by-row", "cifar-10-row-by-row", "what-the-trace-holds", "one-thing-changed"
TWO, NUMBER, TEXT = "what-two-values-of-one-run-can-tell", "regression-by-one-number", "wikitext-2-word-by-word"
PHOTO, RECALL = of_run(accuracy, "cifar10/paper/engram"), of_run(accuracy, "recall/ablation/full")
LINE = of_run(lambda run: run["test_loss"] - run["test_linear_loss"], "regression/paper/engram")
SLOTS = of_run(lambda run: run["trace"][-1]["effective_slots"])
TURN = of_run(turned)
PARTS = {"trace": without("no-trace"), "bank and trace": without("no-bank-no-trace")}
PERPLEXITY = against("wikitext2/sound", "", "perplexity")
SPEED = {"GRU": slower("gru"), "LSTM": slower("lstm")}
CHOSEN = "{}; chosen on the test set, as published"
EQUALS = 'equal models "differ" in {} of draws, if the two correlate by 0.9'
PATTERN = "one pattern: {} points more of it than untrained"
PAIRS = "of four pairs {}; a guess from their values 38.35%"
UNASKED = "recall from all slots alike points to none; a test by deletion needs five trained networks, 98 minutes"
ROWS = (
    Row(f"Engram reaches {MNIST:.2f}% on MNIST", DIGITS, of_run(accuracy), "{}", "{:.2f}%", "reported", MNIST),
    Row("it is on a par with its rivals there", DIGITS, against("mnist/paper")),
    Row("... with rivals of its size", "by-the-sound-protocol", against("mnist/sound", "-parameters")),
    Row("it reaches 46.8% on CIFAR-10", PHOTOS, PHOTO, CHOSEN, "{:.2f}%", "reported", CIFAR10),
    Row("it is on a par with its rivals there", PHOTOS, against("cifar10/paper")),
    Row("regression beats a straight line", NUMBER, LINE, "{} from the line's loss, generated data", "{:+.3f}", "less"),
    Row("ANOVA over two values of a run tells models apart", TWO, {"": Effect(alarms)}, EQUALS, "{:.1f}%", "less", 5),
    Row("recall is sparse", TRACE, SLOTS, "{} of 64 slots take part; sparse were under half", "{:.2f}", "less", 32),
    Row("the trace is structured", TRACE, {"": Effect(structure)}, PATTERN, rule="more", missing="78 minutes"),
    Row("... sparse", TRACE, of_run(small), "entries below 0.01: {} points more than in noise", rule="more"),
    Row("... stable", TRACE, TURN, "the last epoch moves it {} as far as the first", "{:.0f}%", "less", 100),
    Row("the memory helps", PART, PARTS, "MNIST without {}", rule="less", missing="87 minutes"),
    Row("it stores what it is shown", PART, RECALL, PAIRS, "{:.2f}%", "more", 38.35),
    Row("on WikiText-2 it is on a par", TEXT, PERPLEXITY, "perplexity, less is plus: {}", "{:+.1f}", seeds=3),
    Row("WikiText-103: perplexity 1,181", "commands", {}, missing="430 hours of one core"),
    Row("it trains faster than GRU and LSTM", "speed", SPEED, "a step's time over theirs: {}", "{:.2f}", "less", 1),
    Row("it can be interpreted", TRACE, {}, missing=UNASKED),
)


def one_more(mean, interval, n):
    """Where one more run is expected: it spreads, too, and about a mean that is not known exactly."""
    return [mean + (end - mean) * (n + 1) ** 0.5 for end in interval]


def verdicts_table(folder):
    """The rows judged, in Markdown."""
    head = ("the paper says", "verdict", "measured, with 95% interval", "n", "more")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * 5, *(_judged(row, folder) for row in ROWS)))


def _judged(row, folder):
    """The cells of a row."""
    more = f"[runs](data/results/README.md#{row.link})"
    if not row.effects:
        return row.claim, "not judged", row.missing, "0", more
    found, words, said = {name: effect.measure(folder) for name, effect in row.effects.items()}, {}, []
    for name, (mean, interval, n) in found.items():
        said.append(f"{name} {row.form.format(mean)}".strip() + (f" ({_ends(row, interval)})" if interval else ""))
        if interval and row.rule == "reported":
            interval = one_more(mean, interval, n)
            said[-1] += f", one more run {_ends(row, interval)}"
        if interval:
            place = int(interval[1] >= row.goal) + int(interval[0] > row.goal)
            words.setdefault(RULES[row.rule][place], []).append(name)
    word = ", ".join(f"{word} ({', '.join(names)})" if len(words) > 1 else word for word, names in words.items())
    n, effect = min(n for *_, n in found.values()), row.words.format(", ".join(said))
    if n >= row.seeds:
        return row.claim, word, effect, f"{n:,}", more
    effect += f"; the rest takes {row.missing or _rest(row, n, folder)}"
    return row.claim, "not judged" + f", so far {word}" * bool(word), effect, f"{n} of {row.seeds}", more


def _ends(row, interval):
    return " to ".join(map(row.form.format, interval))


def _rest(row, n, folder):
    """How long the missing seeds take, by the clock of the stored ones."""
    networks = dict.fromkeys(network for effect in row.effects.values() for network in effect.networks)
    times = [np.mean(by_seed(folder, lambda run: run["seconds"], network)) for network in networks]
    return f"{(row.seeds - n) * sum(times) / 60:.0f} minutes"

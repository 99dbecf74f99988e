"""Every experiment as plain data: what it learns from, which networks, of what size, how long, which learning rates.

"paper": as published, flaws included, so that the numbers can be compared: random h_0, A_0 and trace noise at test time
too, and a trace that test samples share with their batch. "sound": one trace per sample and deterministic prediction,
so that a sample's prediction is its own, and a learning rate chosen on validation. "ablation": so, shorter, one change.

A name says what a stored result is of, so this is the only place where sizes and settings stand.
"""

import math
import re
from bisect import bisect
from dataclasses import dataclass

import numpy as np

from .. import checks
from ..binding import Binding
from ..cells import GRU, LSTM, RNN, Baseline
from ..engram import Engram
from ..language import WIKITEXT2, LanguageModel, wikitext2_recipe
from ..models import Classifier, Regressor, StepClassifier
from ..window import Convolution, Window
from .lem import LEM


def _reported(fields, **models):
    return {name: dict(zip(fields.split(), numbers, strict=True)) for name, numbers in models.items()}


# Reported in arXiv 2507.21474 and its notebooks: one run per model. val: after the last epoch.
PAPER = {
    "mnist": _reported(
        "parameters test_loss test_accuracy val_loss val_accuracy seconds",
        engram=(210_826, 0.1287, 0.9682, 0.1405, 0.9642, 557),
        rnn=(33_098, 0.0679, 0.9806, 0.0665, 0.9832, 95),
        gru=(98_570, 0.0368, 0.9898, 0.0399, 0.9898, 282),
        lstm=(130_442, 0.0385, 0.9890, 0.0478, 0.9887, 288),
    ),
    # Validated, stopped and restored on the test set; no baselines were published.
    "cifar10": _reported("parameters test_loss test_accuracy seconds", engram=(227_722, None, 0.468, 1_737)),
    "wikitext103": _reported(  # its own cut of the text
        "test_loss test_accuracy test_perplexity seconds",
        engram=(7.0656, 0.0942, 1180.8, 3_887),
        rnn=(6.9440, 0.1053, 1047.0, 3_675),
        gru=(6.9520, 0.1033, 1055.2, 10_886),
        lstm=(6.8233, 0.1155, 929.5, 10_892),
    ),
}

# ------------------------------------------------------------------------------------------------------------ networks

MODELS = ("engram", "rnn", "gru", "lstm")  # the paper's
UNWRITTEN = {"plasticity": "fixed", "rate": 0.0}  # a trace that stays empty
# Cells of one width: name, class, settings, and a title where the name is none. The paper's as published, with a trace
# per sample, without a part of its memory; attention in the trace's place; the binding cell, then one switch turned.
CELLS = {
    "rnn": (RNN, {}, "RNN"),
    "gru": (GRU, {}, "GRU"),
    "lstm": (LSTM, {}, "LSTM"),
    "lem": (LEM, {}, "LEM"),
    "gru-chrono": (GRU, {}, "GRU, chrono biases"),  # see `chrono`
    "lstm-chrono": (LSTM, {}, "LSTM, chrono biases"),
    "engram": (Engram, {}, "Engram"),
    "engram-sample": (Engram, {"trace": "sample"}, "Engram, own trace"),
    "engram-no-trace": (Engram, {"trace_scale": 0.0}, "Engram without trace"),  # writes, and reads nothing of it
    "engram-no-memory": (Engram, {"trace_scale": 0.0}, "Engram without trace and bank"),  # see `frozen`
    "window": (Window, {"window": 64}, "Window"),
    "binding": (Binding, {}, "Binding"),
    "binding-own": (Binding, {"write_at": "own"}),
    "binding-recurrent": (Binding, {"recurrent_cue": True}),
    "binding-fixed": (Binding, {"plasticity": "fixed"}),
    "binding-ungated": (Binding, {"gated": False}),
    "binding-batch": (Binding, {"trace": "batch"}),
    "binding-no-bank": (Binding, {"bank_read": False}),
    "binding-no-trace": (Binding, UNWRITTEN, "Binding without trace"),
    "binding-hebb": (Binding, {"rule": "hebb", "decay": 0.01, "learned_decay": True}, "Hebb, slots"),
    "binding-delta": (Binding, {"rule": "delta"}, "Delta, slots"),
    "key-hebb": (Binding, {"rule": "hebb", "address": "key", "decay": 0.01, "learned_decay": True}, "Hebb, key"),
    "key-hebb-no-decay": (Binding, {"rule": "hebb", "address": "key"}, "Hebb, key, no decay"),
    "key-delta": (Binding, {"rule": "delta", "address": "key"}, "Delta, key"),
    "key-own": (Binding, {"rule": "delta", "address": "key", "write_at": "own"}, "Delta, key, own address"),
    "key-no-trace": (Binding, {"rule": "delta", "address": "key", **UNWRITTEN}, "Key without trace"),
}
for name in ("key-delta", "binding"):
    CELLS[f"{name}-conv"] = *CELLS[name][:2], f"{CELLS[name][2]}, convolution below"  # see `network`
# The paper's baselines have two layers, 128 and 64 wide. Beside them, in the sound protocol, two layers H and H / 2, or
# two Binding(H, 64) whose cue sees the state, chosen among nine settings by MNIST's validation loss of seed 0.
# "parameters" has as many as Engram(128, 64), "time" takes as long for a training step as it does with a trace per
# sample (137 and 173 ms of one core for a batch of 128, AMD EPYC, NumPy 2.4.6; elsewhere it may balance otherwise).
MATCHED = (*(f"{kind}-parameters" for kind in ("rnn", "gru", "lstm", "binding")), "rnn-time", "gru-time", "lstm-time")
WIDTHS = {"mnist": (338, 192, 164, 75, 560, 286, 248), "cifar10": (326, 178, 152, 75, 570, 288, 246)}
WIDTHS = {name: dict(zip(MATCHED, widths, strict=True)) for name, widths in WIDTHS.items()}
# Of equal size with one change: what Binding's lead is due to, its dropout or what it writes.
CONTROLS = {name: f"{name.split('-')[0]}-parameters" for name in ("gru-dropout", "lstm-dropout", "binding-no-trace")}
TURNED = tuple(name for name in CELLS if name.startswith("binding-"))  # one switch, or a layer below
WITHOUT = ("engram-no-trace", "engram-no-memory")  # the paper's network that cannot read a part of its memory
# One change each from "full": the published sizes and switches, but a trace of each sample's own.
# tau_s = temperature / (1 + 10 sparsity) is 0.75 in "full".
ABLATIONS = {
    "full": {},
    "no-trace": {"trace_scale": 0.0},
    "trace-frozen": {"hebbian_rate": 0.0},
    "stop-gradient": {"trace_gradient": False},
    "batch-trace": {"trace": "batch"},
    "no-bank": {"bank": False},
    "no-bank-no-trace": {"bank": False, "trace_scale": 0.0},
    "temperature-5": {"temperature": 5.0},
    "temperature-0.5": {"temperature": 0.5},
    "temperature-0.15": {"temperature": 0.15},
    "temperature-0.05": {"temperature": 0.05},
    "sparsity-0": {"sparsity": 0.0},
    "sparsity-0.3": {"sparsity": 0.3},
    "sparsity-1": {"sparsity": 1.0},
    "l1-0.1": {"l1": 0.1},
    "entropy-0.1": {"entropy": 0.1},
    "top-1": {"retrieval": "top_k", "top_k": 1},
    "top-8": {"retrieval": "top_k", "top_k": 8},
    "sparsemax": {"retrieval": "sparsemax"},
    "sparsemax-0.15": {"retrieval": "sparsemax", "temperature": 0.15},
    "no-noise": {"trace_noise": 0.0},
    "noise-0.1": {"trace_noise": 0.1},
    "no-clip": {"trace_clip": None},
    "clip-0.01": {"trace_clip": 0.01},
    "attention": {"pooling": "attention"},
    "no-layer-norm": {"layer_norm": False},
    "lstm": {"cell": "LSTM"},  # how hard the task is
    "binding": {"cell": "Binding"},  # what another memory of the same sizes does
}
TITLES = {name: title[0] for name, (_, _, *title) in CELLS.items() if title} | {"lstm-tied": "LSTM, tied"}
TITLES |= {each: f"{TITLES[each.split('-')[0]]} of Engram's {'time' if 'time' in each else 'size'}" for each in MATCHED}
TITLES |= {name: f"{TITLES[name.split('-')[0]]} with dropout" for name in CONTROLS if name.endswith("-dropout")}

# --------------------------------------------------------------------------------------------------------- experiments

PARAMETERS, TOLERANCE = 70_000, 0.05  # of every network of an experiment with fresh samples, within 5%
SLOTS, SIDE, WAYS = 64, 14, 5  # of a memory; of an image of few-shot tasks, and its classes

# Columns of a table: (title, field of a result, format) each. The first one of the test is what networks are judged by.
ACCURACY = (("test accuracy", "test_accuracy", ".2%"), ("test loss", "test_loss", ".4f"))
SQUARES = (("test loss", "test_loss", ".4f"), ("straight line", "test_linear_loss", ".4f"))
WORDS = (("test perplexity", "test_perplexity", ".1f"), ("accuracy", "test_accuracy", ".1%"))
UNIGRAM = ("unigram, test", "test_unigram_perplexity", ".1f")
RIGHT = (("test accuracy", "test_accuracy", ".1%"),)
COPIED = (("symbols right", "test_accuracy", ".1%"), ("test loss", "test_loss", ".4f"))
SEEN = (("seen digits", "test_seen_accuracy", ".1%"), ("nearest in pixels", "test_nearest_accuracy", ".1%"))
FEWSHOT = (("new digits", "test_accuracy", ".1%"), *SEEN)
QUERIES = (("test accuracy", "test_accuracy", ".1%"), ("bytes of state", "state_bytes", ",.0f"))
INSTANCES = {1: "1st", 2: "2nd", 5: "5th", 10: "10th"}  # how often a class has been shown
CONTINUAL = (("average accuracy", "test_accuracy", ".1%"), ("forgetting", "test_forgetting", ".1%"))


@dataclass(frozen=True)
class Experiment:
    """One experiment, stored as NAME-PROTOCOL-MODEL-SEED.json.

    training: how a network is trained, as a result has it. source: "arrays", "stream" or "windows" (of a text), or
    "fresh": new sequences at every step. rates: learning rates, one or several to choose from with seed 0. trial: how
    much shorter such a choice trains, None for full runs. seeds: how many, 0 first. sizes: hidden and slots of Engram.
    Of fresh samples: task and its size (the pairs of recall8), slots of a memory, answers: how many steps at the end
    have a label each (None: one a sequence), phases: parts of the training in turn, family: its curves share a figure.
    """

    name: str
    protocol: str
    training: dict
    source: str = "arrays"
    models: tuple = MODELS
    inputs: int = 1
    outputs: int = 1
    rates: tuple = (1e-3,)
    trial: dict | None = None
    seeds: int = 5
    sizes: tuple = (128, 64)
    columns: tuple = ACCURACY
    task: str | None = None
    size: int = 0
    slots: int = 0
    answers: int | None = None
    phases: int = 1
    family: str | None = None

    @property
    def key(self):
        return f"{self.name}/{self.protocol}"

    @property
    def score(self):
        """What networks are judged by."""
        return next(key for _, key, _ in self.columns if key.startswith("test_"))

    @property
    def known(self):
        """Every network that can be asked for; `models` are trained if none is."""
        absent = "-no-memory", "-chrono" if self.family == "mqar" else "-conv"  # `network` does not build them
        return tuple(name for name in CELLS if not name.endswith(absent)) if self.source == "fresh" else self.models


def _epochs(epochs, batch_size=128, limit=None):
    return {"epochs": epochs, "batch_size": batch_size, "learning_rate": 1e-3, "limit": limit}


def _words(epochs):
    return {"epochs": epochs, "learning_rate": 1e-3, "limit": None, "train_file": "wiki.train.tokens"}


MNIST, CIFAR10, REGRESSION = {"inputs": 28, "outputs": 10}, {"inputs": 96, "outputs": 10}, {"columns": SQUARES}
SOUND = {"models": (*MODELS, "binding"), "rates": (3e-4, 1e-3, 3e-3)}
HIGHER = {"rates": (*SOUND["rates"], 6e-3, 1.2e-2, 2.4e-2, 4.8e-2, 9.6e-2)}  # until no network took the highest
MATCHING = SOUND | {"models": (*SOUND["models"], *MATCHED, *CONTROLS)}
ABLATION = {"models": tuple(ABLATIONS), "seeds": 3}  # many, so that each is short
WINDOWS = {"source": "windows", "columns": WORDS, "training": _words(10)}
STREAM = {"source": "stream", "columns": (("valid perplexity", "valid_perplexity", ".1f"), WORDS[0], UNIGRAM, WORDS[1])}
STREAM |= {"models": (*MODELS, *(name for name in WIKITEXT2 if name not in MODELS)), "training": _words(7)}
STREAM |= {"rates": (3e-4, 1e-3, 2e-3, 4e-3), "trial": {"epochs": 1, "limit": 672_001}}  # 600 steps
ROWS = {
    "mnist/paper": {**MNIST, "models": (*MODELS, *WITHOUT), "training": _epochs(15)},
    "mnist/sound": {**MNIST, **MATCHING, "training": _epochs(15), "trial": {"epochs": 2}},
    "mnist/ablation": {**MNIST, **ABLATION, "training": _epochs(6, 64, limit=12_000)},
    "cifar10/paper": {**CIFAR10, "training": _epochs(30)},
    "cifar10/sound": {**CIFAR10, **MATCHING, "training": _epochs(30), "trial": {"epochs": 3}},
    "regression/paper": {**REGRESSION, "training": _epochs(20)},
    "regression/sound": {**REGRESSION, **SOUND, **HIGHER, "training": _epochs(20), "trial": {"epochs": 5}},
    "recall/ablation": {**ABLATION, "inputs": 37, "outputs": 10, "sizes": (64, 16), "training": _epochs(20, 64)},
    "wikitext2/paper": WINDOWS,
    "wikitext2/sound": STREAM,
    "wikitext103/paper": WINDOWS,
    "wikitext103/sound": STREAM,
}
FIXED = {key: Experiment(*key.split("/"), **row) for key, row in ROWS.items()}

# Tasks with fresh sequences; a number in the name is their size: recall8 has 8 pairs, adding100 has 100 steps. What is
# asked is in `inputs`. The loss of "copy" is of the last ten steps alone, the published one a mean over all steps: it
# is 10 / (size + 20) of it where blanks cost nothing. Who learns nothing has ln 8 = 2.08 in "copy", 0.167 in "adding".
FRESH_RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)  # a best one at an edge widens them
KEEPERS = ("lstm", "lstm-chrono", "gru", "gru-chrono", "lem", "binding", "binding-no-trace")
RULES = ("binding-delta", "binding-hebb", "binding", "engram-sample", "key-delta", "key-hebb", "key-no-trace")
ASKING = {"inputs": 8_192, "outputs": 8_192, "columns": QUERIES, "family": "mqar", "seeds": 3}
ASKING |= {"models": (*RULES, "key-delta-conv", "binding-conv", "window", "gru", "lstm")}
LONG = {"models": KEEPERS, "family": "long"}
TASKS = {
    "recall": {"outputs": 10, "columns": RIGHT},
    "fewshot": {"outputs": WAYS, "answers": 5, "columns": FEWSHOT},
    "omniglot": {"inputs": 20**2 + WAYS, "outputs": WAYS, "models": ("lstm", "gru", "binding", *RULES[-4:])},
    "split": {"inputs": 28, "outputs": 10, "columns": CONTINUAL},
    "permuted": {"inputs": 28, "outputs": 10, "columns": CONTINUAL},
    "copy": {"inputs": 10, "outputs": 8, "answers": 10, "columns": COPIED, **LONG},
    "adding": {"inputs": 2, "columns": (("squared error", "test_loss", ".6f"),), **LONG},
    "pixels": {"outputs": 10, "columns": RIGHT, **LONG},
    "mqar": {**ASKING, "sizes": (64, 64)},  # hidden d, slots
    "widemqar": {**ASKING, "sizes": (128, 64)},
}
MQAR_STEPS = {4: 64, 8: 128, 16: 256, 64: 512}  # published lengths, by pairs


def task(name):
    """The experiment of a name such as "fewshot5", None for a name that is none. ValueError for a size that is none."""
    found = re.fullmatch(r"([a-z]+)([1-9]\d{0,8})", name)
    if not found or found[1] not in TASKS:
        return None
    kind, size = found[1], int(found[2])
    own = {"models": ("lstm", "gru", "engram-sample", "binding"), "slots": SLOTS, "family": kind, **TASKS[kind]}
    if kind == "recall":  # 26 letters as keys (Ba et al. 2016), or twice the pairs; two slots or more for every key
        keys = 26 if size <= 26 else 2 * size
        own |= {"inputs": keys + 11, "slots": SLOTS if size <= 26 else 2 * keys}
    elif kind == "fewshot":
        own["inputs"] = SIDE**2 + WAYS
    elif kind == "omniglot":
        checks.number(kind, size, low=2, high=20)  # drawings of a character
        own["answers"] = WAYS * size
        told = [(word, f"test_instance_{k}", ".1%") for k, word in INSTANCES.items() if k <= size]
        pixels = [(f"nearest, {word}", f"test_nearest_{k}", ".1%") for k, word in INSTANCES.items() if 1 < k <= size]
        own["columns"] = (*RIGHT, *told, *pixels)
    elif kind in ("split", "permuted"):
        checks.number(kind, size, low=2, high=5 if kind == "split" else math.inf)
        own["phases"] = size
    elif kind == "pixels":
        checks.choice(kind, size, (2, 4, 7, 14, 28))
    elif own["family"] == "mqar":
        checks.choice(kind, size, tuple(MQAR_STEPS))
    training = {"learning_rate": 2e-3, "steps": 2_500, "batch_size": 128, "clip": 1.0}
    return Experiment(name, "sound", training, "fresh", rates=FRESH_RATES, task=kind, size=size, **own)


def find(key):
    """The experiment "mnist/sound", "recall8" or "recall8/sound"; of a bare "mnist", the first protocol.

    Names of data sets are read as others spell them, too: WikiText-2, CIFAR-10. Raises ValueError for an unknown one.
    """
    name, _, protocol = key.partition("/")
    plain = name.lower().replace("-", "")
    own = {each.protocol: each for each in (*FIXED.values(), task(plain)) if each and each.name == plain}
    if not own:
        kinds = ", ".join((*dict.fromkeys(each.name for each in FIXED.values()), *(f"{kind}N" for kind in TASKS)))
        raise ValueError(f"experiment: expected one of {kinds}, with a number N, such as fewshot5, got {name!r:.40}")
    return own[checks.choice("protocol", protocol or next(iter(own)), tuple(own))]


def cell(name, hidden, slots=0, **more):
    """The cell of a name in `CELLS`."""
    kind, settings = CELLS[name][:2]
    return kind(hidden, *([] if issubclass(kind, Baseline) else [slots]), **{**settings, **more})


def known(argument, experiment, name):
    """`name`, if it is a network of the experiment; the ValueError names a protocol that has it."""
    others = [each.key for each in FIXED.values() if each.name == experiment.name and name in each.models]
    if name not in experiment.known and others:
        raise ValueError(f"{argument}: {experiment.key} has no {name!r}, it is a network of {others[0]}")
    return checks.choice(argument, name, experiment.known)


def network(experiment, name, seed=0, pooling="last", vocabulary=None):
    """The untrained network `name` of an experiment, which may be given by its key.

    vocabulary: how many words a language model knows. Raises ValueError for a name that the experiment has not.
    """
    experiment = find(experiment) if isinstance(experiment, str) else experiment
    known("model", experiment, name)
    if experiment.family == "mqar":  # as published: of equal width, and one table of words for both ends
        (width, slots), words = experiment.sizes, experiment.outputs
        below = [Convolution(width)] if name.endswith("-conv") else []
        return LanguageModel([*below, cell(name, width, slots)], words, embedding=width, tied=True, seed=seed)
    if experiment.source == "fresh":
        model = _of_equal_size(experiment, name, seed)
        return chrono(model) if name.endswith("-chrono") else model
    if experiment.source == "stream":
        return LanguageModel(vocabulary_size=vocabulary, seed=seed, **wikitext2_recipe(name)[0])
    if experiment.source == "windows":
        cells = Engram(128, 64, sparsity=0.3) if name == "engram" else [cell(name, 128)] * 2
        return LanguageModel(cells, vocabulary, embedding=None, seed=seed, random_inference=True)
    cells, settings = (_ablated if experiment.protocol == "ablation" else _published)(experiment, name)
    settings = {"pooling": pooling, "random_inference": experiment.protocol == "paper", **settings}
    kind = Regressor if experiment.name == "regression" else Classifier
    model = kind(cells, experiment.inputs, experiment.outputs, seed=seed, **settings)
    for zero in frozen(experiment, name):
        model.params[zero][...] = 0
    return model


def chrono(model, steps=200):
    """`model` with biases of its GRU or LSTM drawn anew, so that what a unit keeps fades over 1 to `steps` - 1 steps:
    log u, u even in that range (Tallec & Ollivier 2018, arXiv 1804.11188)."""
    bias = np.log(np.random.default_rng([model.seed, 6]).uniform(1, steps - 1, model.cells[0].hidden))
    if isinstance(model.cells[0], GRU):
        model.params["0.b_x"][0] = bias  # the gate that keeps h
    else:
        model.params["0.b"][:2] = -bias, bias  # input and forget gate
    return model


def frozen(experiment, name):
    """Names of the parameters that are zero and stay so."""
    ablated = experiment.protocol == "ablation" and ABLATIONS[name].get("bank") is False
    return ("0.M",) if ablated or name == "engram-no-memory" else ()


def _published(experiment, name):
    """Cells, and settings of the model: the paper's networks, and those of the same size or time."""
    matched = WIDTHS.get(experiment.name, {}).get(CONTROLS.get(name, name))
    kind, width = name.partition("-")[0], matched or 128
    settings = {"dropout": 0.3 if kind in ("engram", "binding") or name in CONTROLS else 0.0}
    if kind == "engram":
        return cell(name if experiment.protocol == "paper" else "engram-sample", width, 64), settings
    if kind == "binding" and matched:
        return [cell(name if name in CONTROLS else kind, width, 64, recurrent_cue=True)] * 2, settings
    return cell(kind, width, 64) if kind == "binding" else [cell(kind, width), cell(kind, width // 2)], settings


def _ablated(experiment, name):
    """The cell with one change, and what is no setting of the cell but of the model."""
    change = {key: value for key, value in ABLATIONS[name].items() if key != "bank"}
    settings = {"dropout": 0.3, "pooling": change.pop("pooling", "last")}
    if other := change.pop("cell", None):
        return cell(other.lower(), *experiment.sizes), settings
    return Engram(*experiment.sizes, **{"trace": "sample", **change}), settings


def _of_equal_size(experiment, name, seed):
    """A network as wide as brings it nearest to PARAMETERS. ValueError if it cannot be."""
    inputs, outputs, slots = experiment.inputs, experiment.outputs, experiment.slots

    def size(H):
        if inputs > 2 * PARAMETERS:
            return math.inf  # without an array of that size
        params = cell(name, H, slots).init(np.random.default_rng(0), inputs)
        return sum(value.size for value in params.values()) + (H + 1) * outputs

    first = bisect(range(2, 512), PARAMETERS, key=size) + 1  # the last one that is not larger: size grows with H
    width = min((first, first + 1), key=lambda H: abs(size(H) - PARAMETERS))
    if abs(size(width) - PARAMETERS) > TOLERANCE * PARAMETERS:
        raise ValueError(f"{experiment.name}: {name} cannot be within {TOLERANCE:.0%} of {PARAMETERS:,} parameters")
    cells = cell(name, width, slots)
    if experiment.task == "adding":
        return Regressor(cells, inputs, seed=seed)
    if experiment.answers:
        return StepClassifier(cells, inputs, outputs, experiment.answers, dropout=0.0, seed=seed)
    return Classifier(cells, inputs, outputs, dropout=0.0, seed=seed)

"""Every network of the benchmarks by name: the paper's four, Binding, rivals of Engram's size or time, and ablations.

A name says what a stored result is of, so the tables here are the only place where sizes and settings stand.
"""

from . import checks
from .binding import Binding
from .cells import GRU, LSTM, RNN
from .engram import Engram
from .language import WIKITEXT2
from .models import Classifier, Regressor

MODELS = ("engram", "rnn", "gru", "lstm")
PROTOCOLS = ("paper", "sound", "ablation")
KINDS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
SHAPES = {"mnist": (28, 10), "cifar10": (96, 10), "recall": (37, 10), "regression": (1, 1)}  # inputs, outputs

# The paper's baselines have two layers, 128 and 64 wide. Beside them, in the sound protocol, two layers H and H / 2, or
# two Binding(H, 64) whose cue sees the state, chosen among nine settings by MNIST's validation loss of seed 0.
# "parameters" has as many as Engram(128, 64), "time" takes as long for a training step as it does with a trace per
# sample (137 and 173 ms of one core for a batch of 128, AMD EPYC, NumPy 2.4.6; elsewhere it may balance otherwise).
WIDTHS = {
    "mnist": {
        "rnn": {"parameters": 338, "time": 560},
        "gru": {"parameters": 192, "time": 286},
        "lstm": {"parameters": 164, "time": 248},
        "binding": {"parameters": 75},
    },
    "cifar10": {
        "rnn": {"parameters": 326, "time": 570},
        "gru": {"parameters": 178, "time": 288},
        "lstm": {"parameters": 152, "time": 246},
        "binding": {"parameters": 75},
    },
}
MATCHED = tuple(f"{kind}-{what}" for what in ("parameters", "time") for kind, H in WIDTHS["mnist"].items() if what in H)
# Networks of equal size with one thing changed, to tell what Binding's lead is due to: the rivals with its dropout,
# and Binding that writes nothing.
CONTROLS = {
    name: f"{name.partition('-')[0]}-parameters" for name in ("gru-dropout", "lstm-dropout", "binding-no-trace")
}

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
ABLATED = {"mnist": (128, 64), "recall": (64, 16)}  # hidden, slots of "full"


def protocols(benchmark):
    """The protocols of a benchmark."""
    checks.choice("benchmark", benchmark, (*SHAPES, "wikitext2", "wikitext103"))
    return {"recall": ("ablation",), "mnist": PROTOCOLS}.get(benchmark, PROTOCOLS[:2])


def check(argument, benchmark, protocol, name):
    """`name` if it is a model of the benchmark under the protocol. The ValueError names the protocol that has it."""
    known = names(benchmark, protocol)
    try:
        return checks.choice(argument, name, known)
    except ValueError as error:
        others = [other for other in protocols(benchmark) if name in names(benchmark, other)]
        raise ValueError(f"{error}, a network of --protocol {others[0]}" if others else str(error)) from None


def names(benchmark, protocol):
    """The models of a benchmark under a protocol. Raises ValueError where the two do not go together."""
    checks.choice("protocol", protocol, protocols(benchmark))
    if protocol == "ablation":
        return tuple(ABLATIONS)
    if protocol == "paper":
        return MODELS
    if benchmark not in SHAPES:  # a text
        return MODELS + tuple(name for name in WIKITEXT2 if name not in MODELS)
    return (*MODELS, "binding", *((*MATCHED, *CONTROLS) if benchmark in WIDTHS else ()))


def network(benchmark, protocol, name, seed, pooling="last"):
    """The model `name` of a benchmark, untrained, and the names of its parameters that must not be trained."""
    check("model", benchmark, protocol, name)
    if protocol == "ablation":
        return _ablation(benchmark, name, seed)
    inputs, outputs = SHAPES[benchmark]
    kind, _, matched = CONTROLS.get(name, name).partition("-")
    width = WIDTHS[benchmark][kind][matched] if matched else 128
    if kind == "engram":
        cells = Engram(width, 64, trace="batch" if protocol == "paper" else "sample")
    elif kind == "binding":
        writing = {"plasticity": "fixed", "rate": 0.0} if name in CONTROLS else {}
        cells = [Binding(width, 64, recurrent_cue=True, **writing)] * 2 if matched else Binding(width, 64)
    else:
        cells = [KINDS[kind](width), KINDS[kind](width // 2)]
    dropout = 0.3 if kind in ("engram", "binding") or name in CONTROLS else 0.0
    model = Regressor if benchmark == "regression" else Classifier
    settings = {"pooling": pooling, "seed": seed, "random_inference": protocol == "paper"}
    return model(cells, inputs, outputs, dropout=dropout, **settings), ()


def _ablation(benchmark, name, seed):
    (inputs, outputs), (hidden, slots) = SHAPES[benchmark], ABLATED[benchmark]
    settings = {"trace": "sample", **ABLATIONS[name]}
    pooling, bank = settings.pop("pooling", "last"), settings.pop("bank", True)
    others = {"LSTM": LSTM(hidden), "Binding": Binding(hidden, slots)}
    cell = others[settings["cell"]] if "cell" in settings else Engram(hidden, slots, **settings)
    model = Classifier(cell, inputs, outputs, pooling, dropout=0.3, seed=seed)
    if bank:
        return model, ()
    model.params["0.M"][...] = 0
    return model, ("0.M",)

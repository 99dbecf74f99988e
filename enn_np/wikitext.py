"""WikiText as commands: the language models of the two protocols, trained, scored and written down.

sound: words are embedded, the vocabulary is that of the training part, the state is carried along the text, and valid
and test are scored word by word with no noise. paper: 32-word windows cut as published, the id as one float, 10 epochs.
"""

from . import checks
from .backend import device_module
from .cells import GRU, LSTM, RNN
from .data.text import load_wikitext, paper_windows, stream_batches
from .engram import Engram
from .language import LanguageModel, score_text, wikitext2_recipe
from .look.monitor import HebbianTraceMonitor
from .optim import Adam
from .protocols import machine, outcome, run_folder, write_json
from .train import EarlyStopping, ReduceOnPlateau, fit
from .variants import check

TRAIN_FILE = "wiki.train.tokens"
NAMES = {"wikitext2": "wikitext-2", "wikitext103": "wikitext-103"}


def training_settings(benchmark, protocol, name, epochs=None, limit=None, learning_rate=None, train=TRAIN_FILE):
    """{"epochs", "learning_rate", "limit", "train_file"} of a run, with what is not None in the place of its own.

    limit: train on so many words (sound) or windows (paper) only, or None for all. train: the file to train on.
    """
    own = {"epochs": 10, "learning_rate": 1e-3}
    if protocol == "sound":
        fitting = wikitext2_recipe(name)[1]
        own = {"epochs": fitting["epochs"], "learning_rate": fitting["optimizer"].learning_rate}
    own["limit"] = None
    given = {"epochs": epochs, "limit": limit}
    own |= {key: checks.count(key, value) for key, value in given.items() if value is not None}
    if learning_rate is not None:
        own["learning_rate"] = checks.number("learning_rate", learning_rate, above=0)
    return own | {"train_file": train}


def run_wikitext(benchmark, name, protocol, seed, out, verbose="auto", resume=False, device="cpu", **shorter):
    """One full run: writes `out`/summary.json and model.npz. Returns the summary.

    benchmark: "wikitext2" or "wikitext103". name, protocol, seed, resume, device: see `protocols`. shorter: see
    `training_settings`; the protocol's own if left out.
    """
    device_module(device)
    checks.choice("benchmark", benchmark, tuple(NAMES))
    check("model", benchmark, protocol, name)
    what = {"benchmark": benchmark, "protocol": protocol, "model": name, "seed": checks.count("seed", seed, low=0)}
    what["training"] = training_settings(benchmark, protocol, name, **shorter)
    with run_folder(out, what, resume) as (out, checkpoint, done):
        return done or _run(what, out, device, {"verbose": verbose, "checkpoint": checkpoint, "resume": resume})


def _run(what, out, device, saving):
    model, history, monitor, score, size = learn(what, device, **saving)
    summary = {
        **what,
        "parameters": model.size,
        **{name: float(f"{value:.6g}") for name, value in score().items()},
        **outcome(history, monitor),
        "train_size": size,
        "train_file": what["training"]["train_file"],
        "config": model.config(),
        "machine": machine(device),
    }
    model.save(out / "model.npz")
    write_json(out / "summary.json", summary)
    return summary


def learn(what, device="cpu", **saving):
    """Train one model: (model, history, trace monitor or None, a function that scores it, how much it trained on).

    what: benchmark, protocol, model, seed and training settings. saving: verbose, checkpoint, resume of `enn_np.fit`.
    """
    settings = NAMES[what["benchmark"]], what["model"], what["seed"], what["training"]
    return (_paper if what["protocol"] == "paper" else _sound)(*settings, device, saving)


def _sound(data_set, name, seed, training, device, saving):
    text = load_wikitext(data_set, train=training["train_file"])
    settings, fitting = wikitext2_recipe(name)
    model = LanguageModel(vocabulary_size=len(text.vocabulary), seed=seed, **settings).to_device(device)
    fitting["epochs"], fitting["optimizer"].learning_rate = training["epochs"], training["learning_rate"]
    tokens = text.train[: training["limit"]]
    monitor = _monitor(model, next(stream_batches(text.valid, fitting["batch_size"], fitting["steps"]))[0])
    fitting["callbacks"] += [monitor] if monitor else []
    history = model.fit_stream(tokens, validation_data=text.valid, seed=seed, **saving, **fitting)

    def score():
        found = score_text(model, text)
        return {f"{part}_{key}": value for part in ("valid", "test") for key, value in found[part].items()}

    return model, history, monitor, score, len(tokens)


def _paper(data_set, name, seed, training, device, saving):
    windows = paper_windows(data_set, train=training["train_file"])
    cells = {
        "engram": Engram(128, 64, sparsity=0.3),
        "rnn": [RNN(128), RNN(128)],
        "gru": [GRU(128), GRU(128)],
        "lstm": [LSTM(128), LSTM(128)],
    }[name]
    model = LanguageModel(cells, len(windows.words), embedding=None, seed=seed, random_inference=True)
    model.to_device(device)
    x, y = (part[: training["limit"]] for part in windows[:2])
    monitor = _monitor(model, x[:32])
    history = fit(
        model,
        x,
        y,
        epochs=training["epochs"],
        validation_split=0.2,
        optimizer=Adam(training["learning_rate"], clip_norm=1.0),
        callbacks=[EarlyStopping("val_perplexity"), ReduceOnPlateau("val_perplexity"), *([monitor] if monitor else [])],
        seed=seed,
        **saving,
    )

    def score():
        found = model.evaluate(windows.x_test, windows.y_test)
        return {f"test_{key}": value for key, value in found.items()}

    return model, history, monitor, score, len(x)


def _monitor(model, ids):
    """What watches the trace that `ids` (n, T) leave, if there is one."""
    return HebbianTraceMonitor(model, ids) if isinstance(model.cells[0], Engram) else None

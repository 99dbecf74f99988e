"""WikiText as commands: the language models of the two protocols, trained, scored and written down.

sound: words are embedded, the vocabulary is that of the training part, the state is carried along the text, and valid
and test are scored word by word with no noise. paper: 32-word windows cut as published, the id as one float, 10 epochs.
"""

from . import checks
from .callbacks import EarlyStopping, ReduceOnPlateau
from .cells import GRU, LSTM, RNN
from .device import device_module
from .engram import Engram
from .language import LanguageModel, score_text, wikitext2_recipe
from .optim import Adam
from .protocols import MODELS, PROTOCOLS, machine, run_folder, write_json
from .text import load_wikitext, paper_windows
from .training import fit

NAMES = {"wikitext2": "wikitext-2", "wikitext103": "wikitext-103"}

# Reported in arXiv 2507.21474: one run per model, WikiText-103, its own cut of the text.
PAPER = {
    "engram": {"test_loss": 7.0656, "test_accuracy": 0.0942, "test_perplexity": 1180.8, "seconds": 3_887},
    "rnn": {"test_loss": 6.9440, "test_accuracy": 0.1053, "test_perplexity": 1047.0, "seconds": 3_675},
    "gru": {"test_loss": 6.9520, "test_accuracy": 0.1033, "test_perplexity": 1055.2, "seconds": 10_886},
    "lstm": {"test_loss": 6.8233, "test_accuracy": 0.1155, "test_perplexity": 929.5, "seconds": 10_892},
}


def run_wikitext(
    benchmark,
    name,
    protocol,
    seed,
    out,
    epochs=None,
    limit=None,
    train="wiki.train.tokens",
    progress=True,
    resume=False,
    device="cpu",
):
    """One full run: writes `out`/summary.json and model.npz. Returns the summary.

    benchmark: "wikitext2" or "wikitext103". name, protocol, seed, resume: see `protocols`. epochs: the protocol's own
    if None. limit: train on so many words (sound) or windows (paper) only. train: another file to train on. device:
    "cpu" or "cuda", where the network is trained.
    """
    device_module(device)
    checks.choice("benchmark", benchmark, tuple(NAMES))
    checks.choice("model", name, MODELS)
    checks.choice("protocol", protocol, PROTOCOLS)
    what = {"benchmark": benchmark, "protocol": protocol, "model": name, "seed": checks.count("seed", seed, low=0)}
    limit = limit if limit is None else checks.count("limit", limit)
    epochs = epochs if epochs is None else checks.count("epochs", epochs)
    with run_folder(out, what, resume) as (out, checkpoint, done):
        saving = {"progress": progress, "checkpoint": checkpoint, "resume": resume}
        return done or _run(what, out, epochs, limit, train, saving, device)


def _run(what, out, epochs, limit, train, saving, device):
    benchmark, protocol, name, seed = what.values()
    run = _paper if protocol == "paper" else _sound
    model, history, scores, size = run(NAMES[benchmark], name, seed, epochs, limit, train, saving, device)
    summary = {
        **what,
        "parameters": model.size,
        "seconds": round(history.duration, 2),
        **{name: float(f"{value:.6g}") for name, value in scores.items()},
        "stopped": history.stopped,
        "best_epoch": None if history.best_epoch is None else history.best_epoch + 1,
        "history": {name: [float(f"{value:.6g}") for value in values] for name, values in history.items()},
        "train_size": size,
        "train_file": train,
        "config": model.config(),
        "machine": machine(device),
    }
    model.save(out / "model.npz")
    write_json(out / "summary.json", summary)
    return summary


def _sound(data_set, name, seed, epochs, limit, train, saving, device):
    text = load_wikitext(data_set, train=train)
    settings, training = wikitext2_recipe(name)
    model = LanguageModel(vocabulary_size=len(text.vocabulary), seed=seed, **settings).to_device(device)
    if epochs is not None:
        training["epochs"] = epochs
    tokens = text.train if limit is None else text.train[:limit]
    history = model.fit_stream(tokens, validation=text.valid, seed=seed, **saving, **training)
    found = score_text(model, text)
    scores = {f"{part}_{key}": value for part in ("valid", "test") for key, value in found[part].items()}
    return model, history, scores, len(tokens)


def _paper(data_set, name, seed, epochs, limit, train, saving, device):
    windows = paper_windows(data_set, train=train)
    cells = {
        "engram": Engram(128, 64, sparsity=0.3),
        "rnn": [RNN(128), RNN(128)],
        "gru": [GRU(128), GRU(128)],
        "lstm": [LSTM(128), LSTM(128)],
    }[name]
    model = LanguageModel(cells, len(windows.words), embedding=None, seed=seed, random_inference=True)
    model.to_device(device)
    x, y = (part if limit is None else part[:limit] for part in windows[:2])
    history = fit(
        model,
        x,
        y,
        epochs=10 if epochs is None else epochs,
        validation=0.2,
        optimizer=Adam(1e-3, clip_norm=1.0),
        callbacks=[EarlyStopping("val_perplexity"), ReduceOnPlateau("val_perplexity")],
        seed=seed,
        **saving,
    )
    found = model.evaluate(windows.x_test, windows.y_test)
    return model, history, {f"test_{key}": value for key, value in found.items()}, len(x)

"""The Engram Neural Network in plain NumPy, with backpropagation through time written by hand (arXiv 2507.21474).

Read in this order: ops (the mathematics), cells (RNN, GRU, LSTM), engram (the subject), bptt (the two time loops),
gradcheck (why to believe them); then binding (a memory that binds), window (one that attends, and a convolution),
models and train. Shapes: time T, batch B, inputs D, hidden H, slots N.
"""

from importlib import import_module, util

from . import data, gradcheck, lab, look, trace
from .binding import Binding
from .bptt import Tape, run, run_back
from .cells import GRU, LSTM, RNN, Cell
from .checkpoint import Checkpoint, load, register
from .engram import Engram, EngramState
from .lab.lem import LEM
from .language import LanguageModel
from .models import Classifier, Model, Regressor, StepClassifier
from .optim import SGD, Adam
from .stream import Stream, run_in_segments
from .train import Callback, Diverged, EarlyStopping, History, ReduceOnPlateau, fit, fit_fresh
from .window import Convolution, Window

__version__ = "0.2.0"
__all__ = [
    "GRU", "LEM", "LSTM", "RNN", "SGD", "Adam", "Binding", "Callback", "Cell", "Checkpoint", "Classifier",
    "Convolution", "Diverged", "EarlyStopping", "Engram", "EngramState", "History", "LanguageModel",
    "Model", "ReduceOnPlateau", "Regressor", "StepClassifier", "Stream", "Tape", "Window", "data", "fit", "fit_fresh",
    "gradcheck", "lab", "load", "look", "register", "run", "run_back", "run_in_segments", "trace",
]  # fmt: skip


def _lazy(*places):
    """A module's `__getattr__`: other modules of these packages, when they are first asked for."""

    def found(name):
        for place in () if name.startswith("_") else places:
            if util.find_spec(f"{place}.{name}"):
                return import_module(f"{place}.{name}")
        raise AttributeError(f"module {places[0]!r} has no attribute {name!r}")

    return found


for _wing in (data, look, lab):  # enn_np.look.plots
    _wing.__getattr__ = _lazy(_wing.__name__)

__getattr__ = _lazy(__name__, data.__name__, look.__name__, lab.__name__)  # enn_np.heads, and enn_np.plots

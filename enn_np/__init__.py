"""The Engram Neural Network in plain NumPy, with backpropagation through time written by hand (arXiv 2507.21474).

Read in this order: ops (the mathematics), cells (RNN, GRU, LSTM), engram (the subject), bptt (the two time loops),
gradcheck (why to believe them); then binding (a memory that binds), window (one that attends), models and training.
Shapes: time T, batch B, inputs D, hidden H, slots N.
"""

import importlib
import pkgutil

from .answers import StepClassifier
from .binding import Binding
from .bptt import Tape, run, run_back
from .callbacks import Callback, EarlyStopping, ReduceOnPlateau
from .cells import GRU, LSTM, RNN, Cell
from .checkpoint import Checkpoint, register
from .engram import Engram, EngramState
from .language import LanguageModel
from .learned import LearnedEngram
from .models import Classifier, Model, Regressor, load
from .optim import SGD, Adam
from .session import History
from .stream import Stream
from .training import fit, translated
from .window import Window

__version__ = "0.2.0"
for _kind in [each for each in globals().values() if isinstance(each, type) and "__init__" in vars(each)]:
    _kind.__init__ = translated(_kind.__init__)
_modules = {each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_")}


def __getattr__(name):
    """Modules, such as `enn_np.datasets`, when they are first asked for."""
    if name in _modules:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *_modules]


__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "Binding",
    "Callback",
    "Cell",
    "Checkpoint",
    "Classifier",
    "EarlyStopping",
    "Engram",
    "EngramState",
    "History",
    "LanguageModel",
    "LearnedEngram",
    "Model",
    "ReduceOnPlateau",
    "Regressor",
    "StepClassifier",
    "Stream",
    "Tape",
    "Window",
    "fit",
    "load",
    "register",
    "run",
    "run_back",
]

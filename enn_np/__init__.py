"""The Engram Neural Network in plain NumPy, with backpropagation through time written by hand (arXiv 2507.21474).

Read in this order: ops (the mathematics), cells (RNN, GRU, LSTM), engram (the subject), bptt (the two time loops),
gradcheck (why to believe them); then binding (a memory that binds), window (one that attends), models and train.
Shapes: time T, batch B, inputs D, hidden H, slots N.
"""

import importlib.machinery
import pkgutil
import sys

# Where modules went that had a name of their own: `import enn_np.device` and the like go on to work.
MOVED = {
    "backend": ("device",),
    "ops": ("losses", "initial", "retrieval"),
    "bptt": ("stream",),
    "binding": ("integration",),
    "train": ("training", "session", "callbacks", "watch"),
    "models": ("answers",),
    "checkpoint": ("storage",),
    "data.images": ("datasets",),
    "data.text": ("text", "words"),
    "data.tasks": ("tasks",),
    "data.fetch": ("download", "sources"),
    "look.plots": ("plots",),
    "look.monitor": ("monitor",),
    "look.attribution": ("attribution", "arcs"),
    "look.report": ("webreport", "explained"),
    "look.claims": ("claims",),
    "lab.pages": ("report",),
    "lab.learned": ("learned",),
    "lab.stats": ("statistics",),
    "lab.cli": ("cli",),
    "lab.demo": ("demo",),
}
MOVED = {old: new for new, names in MOVED.items() for old in names}


class _Moved:
    """Finds and loads a module under its old name: it is the new one."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        old = name.removeprefix(f"{__name__}.")
        return importlib.machinery.ModuleSpec(name, _Moved) if old != name and old in MOVED else None

    create_module = staticmethod(lambda spec: None)

    @staticmethod
    def exec_module(module):
        old = module.__name__.removeprefix(f"{__name__}.")
        sys.modules[module.__name__] = importlib.import_module(f"{__name__}.{MOVED[old]}")


sys.meta_path.append(_Moved)

from . import trace  # noqa: F401  it adds a store
from .binding import Binding
from .bptt import Stream, Tape, run, run_back
from .cells import GRU, LSTM, RNN, Cell
from .checkpoint import Checkpoint, register
from .engram import Engram, EngramState
from .lab.learned import LearnedEngram
from .language import LanguageModel
from .models import Classifier, Model, Regressor, StepClassifier, load
from .optim import SGD, Adam
from .train import Callback, Diverged, EarlyStopping, History, ReduceOnPlateau, fit, fit_fresh, translated
from .window import Window

__version__ = "0.2.0"
for _kind in [each for each in globals().values() if isinstance(each, type) and "__init__" in vars(each)]:
    _kind.__init__ = translated(_kind.__init__)
_modules = {each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_")} | MOVED.keys()


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
    "Diverged",
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
    "fit_fresh",
    "load",
    "register",
    "run",
    "run_back",
]

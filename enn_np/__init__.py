"""The Engram Neural Network in plain NumPy, with backpropagation through time written by hand (arXiv 2507.21474).

Read in this order: ops (the mathematics), cells (RNN, GRU, LSTM), engram (the subject), bptt (the two time loops),
gradcheck (why to believe them); then binding (a memory that binds), window (one that attends), models and training.
Shapes: time T, batch B, inputs D, hidden H, slots N.
"""

from .answers import StepClassifier
from .binding import Binding
from .bptt import Tape, run, run_back
from .callbacks import Callback, EarlyStopping, ReduceOnPlateau
from .cells import GRU, LSTM, RNN, Cell
from .checkpoint import Checkpoint
from .engram import Engram, EngramState
from .language import LanguageModel
from .learned import LearnedEngram
from .models import Classifier, Model, Regressor, load
from .optim import SGD, Adam
from .session import History
from .stream import Stream
from .training import fit
from .window import Window

__version__ = "0.1.0"

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
    "run",
    "run_back",
]

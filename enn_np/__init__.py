from .bptt import run, run_back
from .cells import GRU, LSTM, RNN
from .engram import Engram

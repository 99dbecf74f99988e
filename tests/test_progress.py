"""What training shows: a bar, a line, or nothing, whatever becomes of the stream."""

import contextlib
import errno
import io
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import tqdm.auto
from tiny import KINDS, classifier, sequences

from enn_np.train.watch import Bar

# What it shows


class Stream(io.StringIO):
    """A stream that is a terminal or not."""

    def __init__(self, terminal=False):
        super().__init__()
        self.isatty = lambda: terminal


def run_shown(monkeypatch, stream, **settings):
    """Two epochs of six batches with `stream` as the error stream: the lines of what they wrote."""
    monkeypatch.setattr(sys, "stderr", stream)
    x, y = sequences(64)
    settings = {"epochs": 2, "batch_size": 8, "validation_split": 0.25, **settings}
    history = classifier(KINDS["rnn"]).fit(x, y, **settings)
    return history, stream.getvalue().replace("\r", "\n").split("\n") if isinstance(stream, Stream) else None


@pytest.mark.parametrize(("terminal", "verbose"), [(False, "auto"), (False, 2), (True, 2)])
def test_a_plain_line_per_finished_epoch_in_a_log(terminal, verbose, monkeypatch, capsys):
    """Training was invisible there; control characters do not belong there."""
    stream = Stream(terminal)
    history, _ = run_shown(monkeypatch, stream, verbose=verbose)
    wanted = [
        f"epoch {i + 1}/2 loss {history['loss'][i]:.4g} val_loss {history['val_loss'][i]:.4g} "
        f"val_accuracy {history['val_accuracy'][i]:.4g}"
        for i in range(2)
    ]
    assert capsys.readouterr().out == "\n".join([*wanted, ""]) and stream.getvalue() == ""


def test_a_bar_with_loss_and_accuracy_on_a_terminal(monkeypatch):
    monkeypatch.setattr("tqdm.auto.tqdm", partial(tqdm.auto.tqdm, mininterval=0))  # draw every change
    history, lines = run_shown(monkeypatch, Stream(terminal=True))
    text = "\n".join(lines)
    assert "epoch 1/2" in text and "epoch 2/2" in text and "loss=" in text and "accuracy=" in text and "6/6" in text
    assert all(len(line) <= 60 for line in lines), "wider than a small window"
    stays = [line.strip() for line in text.split("\n") if "val_loss" in line]
    assert stays[-1].startswith(f"epoch 2/2 loss {history['loss'][1]:.4g} val_loss {history['val_loss'][1]:.4g}")


def test_finished_epochs_stay_on_the_screen(monkeypatch):
    """What stands at the end of every line of a terminal, a carriage return being the start of a new one."""
    stream = Stream(terminal=True)
    run_shown(monkeypatch, stream)
    shown = [line.split("\r")[-1].rstrip() for line in stream.getvalue().split("\n")]
    assert [line[: len("epoch 1/2 loss")] for line in shown] == ["epoch 1/2 loss", "epoch 2/2 loss", ""]


@pytest.mark.parametrize("title", ("epoch", "Engram"))
@pytest.mark.parametrize("metric", ("accuracy", "perplexity_of_a_long_name_that_fills_the_line"))
def test_lines_fit_60_columns(title, metric):
    stream = Stream()
    with contextlib.redirect_stdout(stream):
        for value in (0.5, 123456789.0, 1.234567e-05):
            logs = {"loss": value, metric: value, "penalty": value, "val_loss": value, f"val_{metric}": value}
            Bar(10, f"{title} 100/200", verbose=2).finish(logs)
    for line in stream.getvalue().splitlines():
        assert len(line) <= 60 and line.startswith(f"{title} 100/200 loss ") and " val_loss " in line


def test_the_bar_shows_means_over_what_was_seen(monkeypatch):
    """Divided by the whole data set, the loss would seem to rise through every epoch."""
    shown = []
    monkeypatch.setattr("tqdm.tqdm.set_postfix", lambda bar, means, refresh: shown.append(means))
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, rows: True)  # drawn anew at every batch
    run_shown(monkeypatch, Stream(terminal=True))
    losses = [float(means["loss"]) for means in shown]
    assert len(losses) == 2 * 6 and min(losses) > 0.5 * max(losses)


def test_a_notebook_has_the_bar_though_its_stream_is_no_terminal(monkeypatch):
    """sys.stderr.isatty() is False in Jupyter, where most users are."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    made = []

    class Drawn(tqdm.tqdm):
        def __init__(self, *given, **named):
            made.append(named)
            super().__init__(*given, **named)

    monkeypatch.setattr("tqdm.auto.tqdm", Drawn)
    _, lines = run_shown(monkeypatch, Stream())
    assert [named["desc"] for named in made] == ["epoch 1/2", "epoch 2/2"]
    assert not any(named.get("ncols") for named in made), "there it would be a width in pixels"
    assert sum(line.startswith("epoch 1/2 loss ") for line in lines) == 1


@pytest.mark.parametrize("terminal", (False, True))
@pytest.mark.parametrize("verbose", (0, False))
def test_nothing_is_shown_where_nothing_is_wanted(terminal, verbose, monkeypatch, capsys):
    stream = Stream(terminal)
    run_shown(monkeypatch, stream, verbose=verbose)
    assert stream.getvalue() == "" and capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals there")
@pytest.mark.parametrize("rows", (0, 24))
def test_a_real_terminal_shows_the_bar_and_keeps_the_line(rows):
    """One of unknown size, as in a container, too."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 4 * rows, 0, 0))
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from tiny import *; x, y = sequences(); "
    code += "classifier().fit(x, y, epochs=2, batch_size=8, validation_split=0.25)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # so its end is told on Linux
            while part := os.read(ours, 65536):
                text += part
    os.close(ours)
    *lines, rest = text.decode().split("\r\n")
    assert child.returncode == 0 and rest == "" and len(lines) == 2, text
    for i, line in enumerate(lines):
        *drawn, stays = line.split("\r")
        assert any("/5 " in each for each in drawn) and stays.startswith(f"epoch {i + 1}/2 loss ")
        assert max(map(len, (*drawn, stays.rstrip()))) <= 60


class Broken:
    """A stream whose reader is gone, as behind `| head`."""

    def __init__(self, terminal, error):
        self.isatty, self.error, self.encoding = (lambda: terminal), error, "utf-8"

    def write(self, text=""):
        raise self.error

    flush = write


class Bare:
    """A stream that can be written to, and no more."""

    def write(self, text):
        pass


def closed():
    stream = Stream()
    stream.close()
    stream.isatty = io.StringIO.isatty.__get__(stream)
    return stream


STREAMS = {
    "none": lambda: None,
    "no isatty": Bare,
    "closed": closed,
    "broken pipe": lambda: Broken(False, BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "broken terminal": lambda: Broken(True, OSError(errno.EIO, "Input/output error")),
    "closed terminal": lambda: Broken(True, ValueError("I/O operation on closed file")),
}


@pytest.mark.parametrize("verbose", ("auto", 0, 1, 2))
@pytest.mark.parametrize("stream", STREAMS)
def test_training_goes_on_whatever_becomes_of_the_stream(stream, verbose, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[stream]())
    x, y = sequences()
    history = classifier(KINDS["rnn"]).fit(x, y, epochs=2, batch_size=8, verbose=verbose)
    assert history.stopped == "finished"


@pytest.mark.parametrize("verbose", (3, -1, "yes", None))
def test_an_unknown_verbose_is_named(verbose):
    x, y = sequences()
    with pytest.raises(ValueError, match=rf"^verbose: expected one of 'auto', 0, 1, 2, got {verbose!r}"):
        classifier().fit(x, y, verbose=verbose)

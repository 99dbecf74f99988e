"""The training loop: `fit`, the loop over epochs and batches, and what it shows of itself.

    for every epoch:  shuffle;  for every batch: loss, gradients, update;  validate;  ask the callbacks

Keras' rules throughout, so that its users find what they expect and the paper's protocol can be replayed.
"""

import functools
import inspect
import sys
import zlib
from contextlib import nullcontext, suppress

import numpy as np

from . import checks
from .backend import array_module
from .checkpoint import check_arrays
from .optim import Adam
from .session import FIT, Diverged, Pass, Training, draws
from .watch import not_finite, note_reads, watch_memory

WIDTH = 60  # columns of a bar or a line
BAR = "{desc} {bar} {n_fmt}/{total_fmt} {remaining}{postfix}"
LOST = suppress(OSError, ValueError, AttributeError)  # a stream that is closed, or piped into `head`, or none at all

# What Keras, PyTorch or scikit-learn > this library call an argument.
OTHER_NAMES = """units>hidden hidden_size>hidden hidden_dim>hidden memory_size>slots input_size>inputs input_dim>inputs
num_classes>classes n_classes>classes vocab_size>vocabulary_size embedding_dim>embedding lr>learning_rate
verbose>progress progress>verbose validation_split>validation validation_data>validation random_state>seed
restore_best_weights>restore_best min_lr>min_learning_rate clipnorm>clip_norm global_clipnorm>global_clip_norm
eps>epsilon"""
OTHER_NAMES = dict(pair.split(">") for pair in OTHER_NAMES.split())


def translated(function):
    """Decorator: where an argument has another library's name, the TypeError says what it is called here."""
    ours = inspect.signature(function).parameters

    @functools.wraps(function)
    def called(*arguments, **settings):
        for name in settings:
            if name not in ours and (own := OTHER_NAMES.get(name)) in ours:
                got = " ".join(repr(settings[name])[:40].split())
                raise TypeError(f"{name}: it is called {own} here, got {name}={got}; write {own}=")
        return function(*arguments, **settings)

    return called


@translated
def fit(
    model,
    x,
    y,
    *,
    epochs=10,
    batch_size=128,
    validation=None,
    optimizer=None,
    callbacks=(),
    seed=0,
    mask=None,
    verbose="auto",
    checkpoint=None,
    resume=False,
    non_finite="stop",
):
    """Train `model` in place and return its `History`.

    x (n, T, D) float array of the model's dtype; y (n,) labels or (n, O) targets. validation: (x, y) or (x, y, mask),
    or a share of the data between 0 and 1, taken from the end as Keras does. optimizer: Adam() by default. callbacks:
    a list of `Callback`. mask (n, T) bool. seed: of shuffling, dropout, initial states and trace noise; the same seed
    on the same machine gives the same weights to the bit. verbose: 0 nothing, 1 a bar per epoch, 2 a line per epoch,
    "auto" the bar on a terminal or in a notebook and the line elsewhere. Ctrl-C ends training with the best weights so
    far. checkpoint: a file to save the run to, when it starts, every minute (`Checkpoint(path, seconds=60)`) and after
    every epoch; its weights in the end are those of the model. resume: go on from there, if it exists, to the same end
    to the bit; the settings must be the same, `epochs` may be more. non_finite: "stop" at a loss or gradient that is
    infinite or NaN, or "skip" such batches. BLAS works on one thread, see `processes.one_thread`.

    History: "loss" is that of the data, as in `evaluate`; "penalty" what cells with penalties add to it in training.
    Raises TypeError or ValueError naming the argument, before any work, and `Diverged`, a ValueError, for a run that
    stops for what is not finite, with the best weights so far given back.
    """
    x, y, mask = model.check_data(x, checks.given("y", y), mask)
    epochs, batch_size = checks.count("epochs", epochs), checks.count("batch_size", batch_size)
    x, y, mask, validation = _split_validation(model, x, y, mask, validation)
    optimizer = Adam() if optimizer is None else optimizer
    if validation is not None:
        model.counts(validation[0], validation[2], "validation mask")
    monitor, seed = "loss" if validation is None else "val_loss", checks.count("seed", seed, low=0)
    settings = {"batch_size": batch_size, "seed": seed}
    if checkpoint is not None:
        settings["data"] = fingerprint(x, y, mask, *(validation or ()))
    rng = draws(seed, FIT)
    training = Training(model, optimizer, epochs, monitor, rng, checkpoint, resume, settings, non_finite)

    def validate():
        return model.evaluate(*validation[:2], batch_size, validation[2])

    work = Shuffled(model, x, y, mask, batch_size)
    return run_epochs(training, callbacks, work, None if validation is None else validate, verbose)


class Shuffled:
    """What `fit` does in an epoch: all sequences once, in a new order, in batches.

    Methods, size and unit are all that `run_epochs` asks of an epoch's work; `LanguageModel.fit_stream` has another.
    """

    def __init__(self, model, x, y, mask, batch_size):
        self.model, self.x, self.y, self.mask, self.batch_size = model, x, y, mask, batch_size
        self.counts, self.unit = model.counts(x, mask), model.unit
        self.size, self.rows = int(self.counts.sum()), np.flatnonzero(self.counts)  # rows that count

    def begin(self, rng):
        """The arrays that go from batch to batch."""
        return {"order": rng.permutation(self.rows)}

    def check(self, path, carry):
        """Raise ValueError unless the arrays `carry`, from the file `path`, can be those of this work."""
        check_arrays(path, self.begin(np.random.default_rng()), carry, "pass/carry/")
        if not (np.sort(carry["order"]) == self.rows).all():
            raise ValueError(f"{path}: pass/carry/order does not name every sequence once; use another copy")

    def batches(self, carry, start):
        """Batches from number `start` on: rows picked by index, so that the data set is never copied."""
        for i in range(start * self.batch_size, len(self.rows), self.batch_size):
            yield carry["order"][i : i + self.batch_size]

    def learn(self, rows, carry, rng):
        """(how many it saw, sums over them, gradients, carry) of one batch."""
        model = self.model
        mask = None if self.mask is None else model.time_major(self.mask[rows])
        y = array_module(model.params["head.W"]).asarray(self.y[rows])
        metrics, grads = model.loss_and_grads(model.time_major(self.x[rows]), y, rng, mask)
        count = int(self.counts[rows].sum())
        return count, add({}, metrics, count), grads, carry


def add(totals, metrics, count):
    """Add a batch's numbers to sums, `totals`: loss and penalty are means over `count`, metrics are sums already."""
    for name, value in metrics.items():
        totals[name] = totals.get(name, 0) + (value * count if name in ("loss", "penalty") else value)
    return totals


def run_epochs(training, callbacks, work, validate=None, verbose="auto"):
    """All epochs of a run, or those left of a resumed one, and its history. validate() returns numbers by name."""
    from .processes import one_thread  # it brings multiprocessing along

    checkpoint, _ = training.checkpoint, checks.choice("verbose", verbose, ("auto", 0, 1, 2))
    training.ready(callbacks)
    with checkpoint.held() if checkpoint else nullcontext(), one_thread():
        resumed = training.start(work)
        if resumed and verbose:
            say(f"{checkpoint.path}: resumed after {training.place()}")
        try:
            return _run_epochs(training, work, validate, verbose)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # A mistake found late: a checkpoint with no epoch in it would only stand in the way of the corrected call.
            if checkpoint and not (resumed or training.epoch or isinstance(error, Diverged)):
                checkpoint.path.unlink(missing_ok=True)
            raise


def _run_epochs(training, work, validate, verbose):
    try:
        while training.epoch < training.epochs and not training.stop:
            training.save()
            _epoch(training, work, validate, verbose)
            if training.interrupted:
                raise KeyboardInterrupt
        training.history.stopped = "early" if training.stop else "finished"
    except KeyboardInterrupt:
        training.history.stopped = "interrupted"
        training.restore = True
    training.end()
    return training.history


def _epoch(training, work, validate, verbose):
    """One epoch with its validation, or the rest of one that a checkpoint brought back."""
    training.part = part = training.part or Pass(work.begin(training.rng), training.clock())
    title = f"{getattr(training.model, 'title', 'epoch')} {training.epoch + 1}/{training.epochs}"
    with Bar(work.size, title, work.unit, verbose, part.seen) as bar:
        _learn(training, work, part, bar)
        logs = training.model.scores(part.totals, part.seen)
        if validate is not None:
            logs |= {f"val_{name}": value for name, value in validate().items()}
        training.check_finite(logs)
        seconds = training.clock() - part.started
        bar.finish(logs | {"seconds": seconds})
    training.end_epoch(logs | {"learning_rate": training.optimizer.learning_rate, "seconds": seconds})


def _learn(training, work, part, bar):
    """All batches that are left of a pass. Ctrl-C leaves off between two of them."""
    read, whole = {}, not part.batches  # of an epoch's beginning before a resume, nothing is known
    for batch in work.batches(part.carry, part.batches):
        training.drawn = training.rng.bit_generator.state
        count, sums, grads, carry = work.learn(batch, part.carry, training.rng)
        fault = not_finite(sums["loss"], grads)
        with training.undivided():
            if fault is None:
                training.optimizer.update(training.model.params, grads)
                part.totals = {name: part.totals.get(name, 0.0) + value for name, value in sums.items()}
                part.seen, part.carry = part.seen + count, carry
            else:
                training.skip(fault)
            part.batches, training.drawn = part.batches + 1, None
        if fault is None:
            bar.advance(count, part.totals)
            note_reads(training.model, read)
        training.save(only_if_due=True)
        if training.interrupted:
            raise KeyboardInterrupt
    if not part.seen:
        raise training.diverged("no batch had a finite loss and gradient in")
    watch_memory(training.model, training.warned, read if whole else {})


def fingerprint(*arrays):
    """[dtype, shape, CRC-32] of every array, None for None: tells whether a resumed run has the data it began with."""
    found = []
    for array in arrays:
        crc, rows = 0, 0 if array is None else max(1, (1 << 20) * len(array) // max(1, array.nbytes))
        for start in range(0, 0 if array is None else len(array), rows or 1):
            crc = zlib.crc32(np.ascontiguousarray(array[start : start + rows]), crc)
        found.append(array if array is None else [str(array.dtype), list(array.shape), crc])
    return found


def _split_validation(model, x, y, mask, validation):
    """Training data, and (x, y, mask) to validate on or None."""
    if validation is None:
        return x, y, mask, None
    if isinstance(validation, tuple | list):
        if len(validation) not in (2, 3):
            raise ValueError(f"validation: expected (x, y) or (x, y, mask), got {len(validation)} parts")
        names = ("validation x", "validation y", "validation mask")
        checks.given(names[1], validation[1])
        return x, y, mask, model.check_data(*validation, names=names)
    share = checks.number("validation", validation, above=0, high=1)
    cut = int(len(x) * (1 - share))
    if not 0 < cut < len(x):
        raise ValueError(
            f"validation: a share of {share} leaves {cut} of {len(x)} sequences to train on and {len(x) - cut} to "
            "validate on, expected at least one each"
        )
    held = (x[cut:], y[cut:], None if mask is None else mask[cut:])
    return x[:cut], y[:cut], None if mask is None else mask[:cut], held


def say(line):
    """Print a line now, also into a pipe, if anyone reads it."""
    with LOST:
        print(line, flush=True)


def _screen():
    """Where a bar can be drawn anew: on a "terminal" or in a "notebook"; None elsewhere."""
    with LOST:
        if "IPKernelApp" in sys.modules.get("IPython").get_ipython().config:
            return "notebook"
    with LOST:
        return "terminal" if sys.stderr.isatty() else None


class Bar:
    """An epoch's bar, if any, which starts at `done`, and its numbers in the end, which stay. verbose: see `fit`."""

    def __init__(self, total, title, unit=" seq", verbose="auto", done=0):
        screen, self.title, self.done, self.tqdm = _screen(), title, done, None
        self.verbose = (1 if screen else 2) if verbose == "auto" else verbose
        if self.verbose == 1:
            from tqdm.auto import tqdm

            look = {"bar_format": BAR, "unit_scale": total >= 100_000}
            look |= {} if screen == "notebook" else {"ncols": WIDTH, "nrows": 20}  # some terminals say that they have 0
            with LOST:
                self.tqdm = tqdm(total=total, initial=done, desc=title, unit=unit, **look)

    def __enter__(self):
        return self

    def advance(self, count, totals):
        """`count` more are done; totals: sums over all that are."""
        self.done += count
        with LOST:
            # Only where the bar was drawn anew: to fetch a card's numbers is to wait for it.
            if self.tqdm is not None and self.tqdm.update(count):
                means = {name: f"{float(value) / self.done:.3g}" for name, value in totals.items()}
                self.tqdm.set_postfix(means, refresh=False)

    def finish(self, logs):
        """The epoch's numbers, as many as fit: its loss, those of validation, the others."""
        line = self.title
        for name in sorted(logs, key=lambda name: (name != "loss", not name.startswith("val_"))):
            number = f" {name} {logs[name]:.4g}"
            line += number if len(line + number) <= WIDTH else ""
        if self.verbose == 2:
            say(line)
        elif self.tqdm is not None:
            self.tqdm.bar_format, self.tqdm.desc = "{desc}", line

    def __exit__(self, *exception):
        if self.tqdm is not None:
            with LOST:
                self.tqdm.close()

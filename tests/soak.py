"""Train and stream for an hour and watch the memory of the process: it must stay flat.

    python tests/soak.py --minutes 60 --json soak.json

Rounds of all that a long run does: an epoch of digits by an Engram network with batch and with sample trace, an epoch
of a text with carried state, checkpoints, evaluation of a text as a stream, prediction, and a model saved and loaded.
Every ten seconds the resident memory (MiB, from /proc: Linux) is noted in the JSON file. Exit status 1 if it grew by
over 1% between the first minute and the last, as means of six samples each.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))


from enn_np import Adam, Checkpoint, Classifier, Engram, LanguageModel, fit, load
from enn_np.data.images import image_rows, load_digits
from enn_np.lab.results import machine, write_json

EVERY = 10  # seconds between two samples
AFTER = 60  # seconds: what is asked for once is there by then


def resident():
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Curve:
    """Samples of memory over time, in a JSON file that is whole at any moment."""

    def __init__(self, path):
        self.path, self.began, self.samples = path, time.monotonic(), []

    def sample(self, rounds):
        """Note the memory if it is time; returns the minutes so far."""
        seconds = time.monotonic() - self.began
        if not self.samples or seconds - self.samples[-1][0] >= EVERY:
            self.samples.append((round(seconds, 1), round(resident(), 3)))
            curve = {"seconds": [s for s, _ in self.samples], "MiB": [m for _, m in self.samples]}
            spent = {"rounds": rounds, "minutes at work": round(time.process_time() / 60, 2)}
            write_json(self.path, {**spent, **self.verdict(), **curve, "machine": machine()})
        return seconds / 60

    def verdict(self):
        """Mean memory around the end of the first minute and at the end, and the growth between them."""
        late = [m for seconds, m in self.samples if seconds >= AFTER]
        if not late:
            return {}
        first, last = (float(np.mean(part)) for part in (late[:6], late[-6:]))
        return {"first MiB": first, "last MiB": last, "growth": last / first - 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", default="soak.json")
    settings = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # small memories saturate
    digits = load_digits()
    x, y = image_rows(digits.x_train[:320]).astype("float32") / 255, digits.y_train[:320]
    text = (np.random.default_rng(0).zipf(1.3, 4_000) % 3_000).astype(np.uint16)
    models = [Classifier(Engram(64, 32, trace=trace), 28, 10) for trace in ("batch", "sample")]
    words = LanguageModel(Engram(48, 16, trace="sample"), 3_000, 48, head="adaptive", dropout=0.2)
    curve, rounds = Curve(settings.json), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.npz"
        while curve.sample(rounds) < settings.minutes:
            for model in models:
                path.unlink(missing_ok=True)
                saving = {"checkpoint": Checkpoint(path, 0.2), "verbose": 0, "seed": rounds}
                fit(model, x, y, epochs=1, batch_size=32, validation_split=0.1, optimizer=Adam(1e-4), **saving)
                model.predict(x[:100])
            path.unlink()
            words.fit_stream(text, epochs=1, batch_size=8, steps=35, validation_data=text[:1_000], checkpoint=path)
            words.evaluate_stream(text[:1_000])
            load(words.save(Path(folder) / "model.npz")).sample(text[:5], 20)
            rounds += 1
    verdict = curve.verdict()
    print({"rounds": rounds, **verdict})
    return 1 if verdict.get("growth", 0) > 0.01 else 0


if __name__ == "__main__":
    sys.exit(main())

"""What trains the `Binding` cell of live.html, and writes its weights into the page.

    python notebooks/live.py           trains for three minutes, and writes live.html anew

The page opens from disk. It holds the weights as JSON, and the forward pass of binding.py
in a few lines of JavaScript.
"""

import json
import re
from pathlib import Path

import numpy as np
from enn_np import Adam, Binding, Classifier
from enn_np.checkpoint import whole
from enn_np.data.tasks import associative_recall
from enn_np.train import fit_fresh

PAGE = Path(__file__).with_name("live.html")
WEIGHTS = re.compile(r'(?<=<script type="application/json" id="cell">).*?(?=</script>)')
PAIRS = 8  # most pairs of a sequence
TEST = 5_000  # sequences to test on, of every number of pairs
short = np.vectorize(lambda x: float(f"{x:.4g}"))  # as the page has a weight


def stories(rng, step):
    """64 stories of as many pairs."""
    return associative_recall(rng, 64, int(rng.integers(1, PAIRS + 1)))


def write_live(out=PAGE, steps=3_000, seed=0):
    """Train in so many steps, test the rounded weights, and write the page `out`."""
    page, cell = PAGE.read_text(encoding="utf-8"), Binding(24, 32)
    model, optimizer = Classifier(cell, 37, 10, seed=seed), Adam(4e-3, global_clip_norm=1.0)
    train, noise, test = (np.random.default_rng([seed, use]) for use in (5, 3, 2))
    with whole(out) as file:  # what cannot be written is refused before training
        for part in (steps - steps // 5, steps // 5):
            fit_fresh(model, stories, [part], rngs=(train, noise), optimizer=optimizer)
            optimizer.learning_rate /= 5
        model.params = {k: short(v).astype(v.dtype) for k, v in model.params.items()}
        told = [associative_recall(test, TEST, pairs) for pairs in range(1, PAIRS + 1)]
        params = model.layer_params(0) | model.layer_params("head")
        held = {name: getattr(cell, name) for name in ("hidden", "slots", "temperature")}
        held |= {"steps": steps, "tested": TEST}
        held |= {"right": [model.evaluate(*each)["accuracy"] for each in told]}
        held |= {"params": {name: short(value).tolist() for name, value in params.items()}}
        file.write(WEIGHTS.sub(json.dumps(held, separators=",:"), page).encode())


if __name__ == "__main__":
    write_live()

"""live.html, a `Binding` cell to type pairs into: what trains it, and writes its weights into the page.

It opens from disk. It holds the weights as JSON, and the forward pass of binding.py in a few lines of JavaScript.
"""

import json
import re
from pathlib import Path

import numpy as np

from ..binding import Binding
from ..checkpoint import whole
from ..data.tasks import associative_recall
from ..models import Classifier
from ..optim import Adam
from ..train import fit_fresh

PAGE = Path(__file__).with_name("live.html")
WEIGHTS = re.compile(r'(?<=<script type="application/json" id="cell">).*?(?=</script>)')
PAIRS, TEST = 8, 5_000  # most pairs of a sequence; sequences to test on, of every number of pairs
short = np.vectorize(lambda x: float(f"{x:.4g}"))  # as the page has a weight


def stories(rng, step):
    """64 stories of as many pairs."""
    return associative_recall(rng, 64, int(rng.integers(1, PAIRS + 1)))


def write_live(out=PAGE, steps=3_000, seed=0):
    """Train in so many steps, test the rounded weights on fresh sequences, and write the page. Returns its path."""
    page, model = PAGE.read_text(encoding="utf-8"), Classifier(Binding(24, 32), 37, 10, seed=seed)
    train, noise, test = (np.random.default_rng([seed, use]) for use in (5, 3, 2))
    with whole(out) as file:  # what cannot be written is refused before training
        optimizer = Adam(4e-3, global_clip_norm=1.0)
        for part in (steps - steps // 5, steps // 5):
            fit_fresh(model, stories, [part], rngs=(train, noise), optimizer=optimizer)
            optimizer.learning_rate /= 5
        model.params = {name: short(value).astype(value.dtype) for name, value in model.params.items()}
        right = [model.evaluate(*associative_recall(test, TEST, pairs))["accuracy"] for pairs in range(1, PAIRS + 1)]
        params = model.layer_params(0) | {"W": model.params["head.W"], "b": model.params["head.b"]}
        held = {name: getattr(model.cells[0], name) for name in ("hidden", "slots", "temperature")}
        held |= {"steps": steps, "tested": TEST, "right": right}
        held |= {"params": {name: short(value).tolist() for name, value in params.items()}}
        file.write(WEIGHTS.sub(json.dumps(held, separators=",:"), page).encode())
    return Path(out)

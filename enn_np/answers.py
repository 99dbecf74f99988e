"""A classifier of time steps: one label for each of the last K steps of a sequence.

x (n, T, D)  ->  cells  ->  h_{T-K+1} ... h_T  ->  dropout  ->  W, b  ->  classes (n, K, C)
"""

from . import checks
from .backend import array_module
from .checkpoint import register
from .models import Classifier
from .ops import flat


@register
class StepClassifier(Classifier):
    """A `Classifier` whose labels y are (n, K), those of the last K = `answers` steps; its accuracy is their mean.

    The other arguments as `Classifier`. Padding is refused: padded sequences do not end together.
    """

    kind = "step_classifier"

    def __init__(
        self,
        cells,
        inputs,
        classes,
        answers=1,
        pooling="last",
        dropout=0.3,
        seed=0,
        dtype="float32",
        random_inference=False,
    ):
        self.answers = checks.count("answers", answers)
        self.rows = f"n, {answers}"
        super().__init__(cells, inputs, classes, pooling, dropout, seed, dtype, random_inference)
        checks.choice("pooling", self.pooling, ("last",))

    def config(self):
        return super().config() | {"answers": self.answers}

    def check_data(self, x, y, mask=None, names=("x", "y", "mask")):
        x, y, mask = super().check_data(x, y, mask, names)
        self._check_steps(x.shape[1], mask, names)
        return x, y, mask

    def _check_steps(self, steps, mask, names=("x", "y", "mask")):
        if mask is not None or steps < self.answers:
            name, got = (names[0], steps) if mask is None else (names[2], f"{steps} and a mask")
            raise ValueError(
                f"{name}: expected {self.answers} steps or more and no mask, got {got}; cut sequences to one length"
            )

    def _pool(self, h, last, mask):
        self._check_steps(len(h), mask)
        return flat(h[-self.answers :].swapaxes(0, 1)), None  # (B K, H)

    def _pool_back(self, d, h, weights):
        dh = array_module(h).zeros_like(h)
        dh[-self.answers :] = d.reshape(h.shape[1], self.answers, -1).swapaxes(0, 1)
        return dh, None, {}

    def loss(self, out, y):
        """Mean cross-entropy over labels, its gradient, and the sum over sequences of the share of right answers."""
        loss, dout, metrics = super().loss(out, y.reshape(-1))
        return loss, dout, {"accuracy": metrics["accuracy"] / self.answers}

    def check_targets(self, name, y, rows):
        return checks.class_labels(name, y, (rows, self.answers), self.outputs)

    def predict_outputs(self, x, batch_size=128, mask=None):
        """The head's outputs (n, K, C), on the host."""
        return super().predict_outputs(x, batch_size, mask).reshape(len(x), self.answers, -1)

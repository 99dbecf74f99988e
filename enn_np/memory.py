"""Tasks that ask for memory, by name: `experiments` beyond associative recall.

    fewshot1, fewshot5      name images after 1 or 5 examples of each class (`tasks.few_shot`)
    split5, permuted5       learn 5 tasks one after the other: digits 0 and 1, then 2 and 3 ...; or all, pixels shuffled
    copy100, adding100      remember 10 symbols over 100 steps; add two numbers of 100 (`tasks`)
    pixels14                digits pixel by pixel in a shuffled order, 14 x 14; 28 x 28 in the papers

The digits are MNIST's; the seed decides which of its training images are held out to validate on.
"""

import re

import numpy as np

from . import checks, protocols
from .data import images as datasets
from .data.tasks import adding_task, copy_task, few_shot, pixel_mnist, pixel_permutation
from .experiments import Task, compare
from .models import Regressor
from .recall import Recall

MODELS = ("lstm", "gru", "engram-sample", "binding")


def mnist(seed, side=28):
    """{part: (images, labels)}, for "train", "validation" and "test".

    Images are (n, side, side) float32, means of blocks of pixels from 0 to 1; side divides 28.
    """
    data, held = datasets.load_mnist(), protocols.MNIST_HELD_OUT
    train, validation = datasets.split(len(data.x_train), (len(data.x_train) - held, held), seed)

    def small(images):
        blocks = images.reshape(len(images), side, 28 // side, side, 28 // side)
        return blocks.mean((2, 4), dtype=np.float32) / 255

    parts = {
        name: (small(data.x_train[i]), data.y_train[i]) for name, i in (("train", train), ("validation", validation))
    }
    return parts | {"test": (small(data.x_test), data.y_test)}


class FewShot(Task):
    """Few-shot classification, `size` examples of each of 5 digits, 5 questions, images of 14 x 14.

    A label is a step of its own, after its image: `Binding` writes what it sees at the address of the step before.
    Images are less the mean of those trained on, which else makes them all alike, and as long, on average, as a label.
    The seed decides which five digits are trained and validated on; the other five, of MNIST's test images, are the
    test. With five digits to learn from, every episode of training has all of them under new labels: what a network
    cannot know before an episode is which label means which digit. Test images of the five digits trained on ("seen")
    show whether it binds labels to digits that it knows; the five others, whether what it learned to look at serves
    digits that it does not know, which five digits can hardly teach. Beside them the accuracy of the label of the
    nearest example in pixels, which needs no learning at all.
    """

    kind, answers, side = "fewshot", 5, 14
    ways = outputs = 5
    columns = (
        ("new digits", "test_accuracy", ".1%"),
        ("seen digits", "test_seen_accuracy", ".1%"),
        ("nearest in pixels", "test_nearest_accuracy", ".1%"),
    )

    @property
    def inputs(self):
        return self.side**2 + self.ways

    def source(self, seed):
        pools = self.pools(seed)
        mean = pools["train"][0].mean(0)
        length = np.sqrt(((pools["train"][0] - mean) ** 2).sum(1).mean())
        pools = {part: ((images - mean) / length, labels) for part, (images, labels) in pools.items()}
        return lambda rng, n, part, phase: few_shot(rng, n, *pools[part], self.ways, self.size, self.answers)

    def pools(self, seed):
        """{part: (images (m, D), labels (m,))}, sorted by label, "seen" among the parts."""
        digits, data, pools = np.random.default_rng([seed, 4]).permutation(10), mnist(seed, self.side), {}
        for name, (images, labels) in (data | {"seen": data["test"]}).items():
            which = digits[self.ways :] if name == "test" else digits[: self.ways]
            rows = np.flatnonzero(np.isin(labels, which))
            rows = rows[np.argsort(labels[rows], kind="stable")]
            pools[name] = images[rows].reshape(len(rows), -1), labels[rows]
        return pools

    def extra(self, model, draw, rng, tests):
        (x, y), seen = tests[0], draw(rng, len(tests[0][0]), "seen", 0)
        scores = {"seen": model.evaluate(*seen)["accuracy"], "nearest": float((self.nearest(x) == y).mean())}
        return {f"test_{name}_accuracy": round(value, 6) for name, value in scores.items()}

    def nearest(self, x):
        """The label of the nearest example in pixels, (n, answers)."""
        S, D = self.ways * self.size, self.side**2
        told, asked, labels = x[:, 0 : 2 * S : 2, :D], x[:, 2 * S :, :D], x[:, 1 : 2 * S : 2, D:].argmax(-1)
        far = (told**2).sum(-1)[:, None] - 2 * asked @ told.swapaxes(1, 2)  # (n, answers, S), but for |asked|^2
        return np.take_along_axis(labels, far.argmin(-1), axis=1)


class Continual(Task):
    """`size` tasks of digits, row by row, one after the other with equal numbers of steps, and one head of 10 classes.

    Nothing tells which task an image is from, and nothing of an earlier task is seen again. The optimizer goes on as
    it is. After each task all test images of every task so far are tested (`experiments.forgetting`). Of several
    learning rates the one is used that ends with the lowest mean validation loss over all tasks.
    """

    inputs, outputs = 28, 10
    columns = (("average accuracy", "test_accuracy", ".1%"), ("forgetting", "test_forgetting", ".1%"))

    def __post_init__(self):
        checks.count(self.kind, self.size, low=2)

    @property
    def phases(self):
        return self.size


class Split(Continual):
    """Split MNIST: two digits a task, 0 and 1 first (Zenke, Poole and Ganguli, arXiv 1703.04200), one head for all."""

    kind = "split"

    def __post_init__(self):
        super().__post_init__()
        checks.number(self.kind, self.size, high=5)

    def source(self, seed):
        data = mnist(seed)

        def draw(rng, n, part, phase):
            images, labels = data[part]
            return drawn(rng, n, part, images, labels, np.flatnonzero(labels // 2 == phase))

        return draw


class Permuted(Continual):
    """Permuted MNIST: in every task another order of the pixels (Goodfellow et al., arXiv 1312.6211)."""

    kind = "permuted"

    def source(self, seed):
        data, rng = mnist(seed), np.random.default_rng([seed, 4])
        orders = [pixel_permutation(rng) for _ in range(self.size)]

        def draw(rng, n, part, phase):
            images, labels = drawn(rng, n, part, *data[part])
            return pixel_mnist(images, orders[phase]).reshape(images.shape), labels

        return draw


def drawn(rng, n, part, images, labels, rows=None):
    """n images drawn at random with their labels, or all to be tested on, of those at `rows`."""
    rows = np.arange(len(images)) if rows is None else rows
    rows = rows if part == "test" else rng.choice(rows, n)
    return images[rows], labels[rows]


class Copy(Task):
    """`tasks.copy_task` with a delay of `size` steps: ten symbols of eight, asked for at the last ten steps alone.

    So the loss is theirs alone: what is published is the mean over all steps, 10 / (size + 20) of it where blanks cost
    nothing. Chance is 12.5%, a loss of ln 8 = 2.08.
    """

    kind, family, inputs, outputs, answers = "copy", "long", 10, 8, 10
    columns = (("symbols right", "test_accuracy", ".1%"), ("test loss", "test_loss", ".4f"))

    def source(self, seed):
        def draw(rng, n, part, phase):
            x, y = copy_task(rng, n, self.size, self.answers, self.outputs)
            return np.eye(self.inputs, dtype=np.float32)[x], y[:, -self.answers :]

        return draw


class Adding(Task):
    """`tasks.adding_task` of `size` steps: a mean squared error of 0.167 says that nothing was learned."""

    kind, family, inputs, outputs = "adding", "long", 2, 1
    columns = (("squared error", "test_loss", ".6f"),)

    def model(self, cell, seed):
        return Regressor(cell, self.inputs, seed=seed)

    def source(self, seed):
        return lambda rng, n, part, phase: adding_task(rng, n, self.size)


class Pixels(Task):
    """`tasks.pixel_mnist`, images of `size` x `size` in one random order of their pixels, which the seed decides."""

    kind, family, inputs, outputs = "pixels", "long", 1, 10

    def __post_init__(self):
        checks.choice(self.kind, self.size, (2, 4, 7, 14, 28))

    def source(self, seed):
        data = mnist(seed, self.size)
        order = pixel_permutation(np.random.default_rng([seed, 4]), self.size**2)

        def draw(rng, n, part, phase):
            images, labels = drawn(rng, n, part, *data[part])
            return pixel_mnist(images, order), labels

        return draw


TASKS = {task.kind: task for task in (Recall, FewShot, Split, Permuted, Copy, Adding, Pixels)}


def known(name):
    """The task of a name such as "fewshot5", None for a name that is none."""
    found = re.fullmatch(r"([a-z]+)([1-9]\d{0,8})", name)
    return TASKS[found[1]](int(found[2])) if found and found[1] in TASKS else None


def memory(tasks, models=None, **settings):
    """`experiments.compare` on tasks by name; models: MODELS if None."""
    for name in tasks:
        if not known(name):
            kinds = ", ".join(f"{kind}N" for kind in TASKS)
            raise ValueError(f"tasks: expected names of {kinds}, with a number N, such as fewshot5, got {name!r}")
    return compare([known(name) for name in tasks], MODELS if models is None else models, **settings)

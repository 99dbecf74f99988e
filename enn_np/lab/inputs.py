"""What experiments learn from: data sets split and scaled, and tasks that draw fresh sequences at every step.

The digits are MNIST's; the seed decides which of its training images are held out to validate on.
"""

from collections import namedtuple

import numpy as np

from ..data import images as datasets
from ..data import tasks
from .table import MQAR_STEPS, WAYS

GENERATED = {"regression": (14_000, 2_000, 4_000), "recall": (20_000, 2_000, 4_000)}  # train, validation, test
MNIST_HELD_OUT, CIFAR10_HELD_OUT = 6_000, 5_000  # training images to validate on; of CIFAR-10 by the sound protocol


# Sequences (n, T, D) float32 with labels (n,), to train on, to validate on, and to test on.
Split = namedtuple("Split", "x y x_val y_val x_test y_test")


def parts(images, n, seed):
    """(x, y) of the training images but for `n`, of these, held out to validate on, and of the test images."""
    rows = datasets.split(len(images.x_train), (len(images.x_train) - n, n), seed)
    return [*((images.x_train[part], images.y_train[part]) for part in rows), (images.x_test, images.y_test)]


def mnist_split(images, validation, seed):
    """Digits as 28 steps of 28 pixels, scaled per pixel to 0..1 on the training part; `validation` images held out."""
    return _scaled(parts(images, validation, seed), datasets.MinMax.fit)


def cifar10_split(images, protocol, seed):
    """Photographs as 32 steps of 32 x 3 numbers.

    paper: values / 255, and the test set serves as validation set, as published. sound: 5,000 training images held
    out for validation, and each channel standardised on the rest.
    """
    if protocol == "sound":
        return _scaled(parts(images, CIFAR10_HELD_OUT, seed), datasets.Standardize.fit)
    unit = datasets.Scaling(np.float32(0), np.float32(1))  # to float32 in 0..1, no more
    x, x_test = (datasets.image_rows(unit.transform(part)) for part in (images.x_train, images.x_test))
    return Split(x, images.y_train, x_test, images.y_test, x_test, images.y_test)


def _scaled(parts, fit):
    scale = fit(parts[0][0])
    return Split(*(each for x, y in parts for each in (datasets.image_rows(scale.transform(x)), y)))


def load_split(experiment, seed, limit=None):
    """The sequences of an experiment, `limit` of them to train on; downloads the data set if it is not there."""
    name = experiment.name
    if name == "cifar10":
        data = cifar10_split(datasets.load_cifar10(), experiment.protocol, seed)
    elif name == "mnist":
        data = mnist_split(datasets.load_mnist(), MNIST_HELD_OUT, seed)
    else:
        draw = {"regression": tasks.one_feature, "recall": tasks.associative_recall}[name]
        rng = np.random.default_rng([seed, 5])  # `seed` alone is where a model's first weights come from
        data = Split(*(part for n in GENERATED[name] for part in draw(rng, n)))
    return data._replace(x=data.x[:limit], y=data.y[:limit])


# ------------------------------------------------------------------------- fresh sequences, one function for every task


def source(experiment, seed):
    """draw(rng, n, part, phase) -> x (n, T, D), y of a task, with part "train", "validation" or "test"."""
    return DRAWS[experiment.task](experiment, seed)


def recall(experiment, seed):
    """`tasks.associative_recall` of `size` pairs."""
    keys, values = experiment.inputs - experiment.outputs - 1, experiment.outputs
    return lambda rng, n, part, phase: tasks.associative_recall(rng, n, experiment.size, keys, values)


def copy(experiment, seed):
    """`tasks.copy_task` with a delay of `size` steps."""

    def draw(rng, n, part, phase):
        x, y = tasks.copy_task(rng, n, experiment.size, experiment.answers, experiment.outputs)
        return np.eye(experiment.inputs, dtype=np.float32)[x], y[:, -experiment.answers :]

    return draw


def adding(experiment, seed):
    """`tasks.adding_task` of `size` steps."""
    return lambda rng, n, part, phase: tasks.adding_task(rng, n, experiment.size)


def queries(experiment, seed):
    """`tasks.multi_query_recall` of `size` pairs, of the published length."""
    pairs = experiment.size
    return lambda rng, n, part, phase: tasks.multi_query_recall(rng, n, MQAR_STEPS[pairs], pairs, experiment.outputs)


def digits(seed, side=28):
    """{part: (images, labels)}, for "train", "validation" and "test". Images are (n, side, side) float32, means of
    blocks of pixels from 0 to 1; side divides 28."""
    found, block = parts(datasets.load_mnist(), MNIST_HELD_OUT, seed), 28 // side
    blocks = [(x.reshape(len(x), side, block, side, block), y) for x, y in found]
    small = [(x.mean((2, 4), dtype=np.float32) / 255, y) for x, y in blocks]
    return dict(zip(("train", "validation", "test"), small, strict=True))


def pictures(experiment, seed):
    """MNIST's digits, drawn at random, or all to be tested on.

    split: `size` tasks of two digits, 0 and 1 first, one after the other with equal numbers of steps, and one head of
    10 classes (Zenke, Poole and Ganguli, arXiv 1703.04200). Nothing tells which task an image is from, and nothing of
    an earlier task is seen again. The optimizer goes on as it is. After each task all test images of every task so far
    are tested (`forgetting`). permuted: so, all digits in every task, each with another order of pixels (Goodfellow et
    al., arXiv 1312.6211). pixels: images of `size` x `size`, one pixel a step, in one order that the seed decides.
    """
    task, side = experiment.task, experiment.size if experiment.task == "pixels" else 28
    data, rng = digits(seed, side), np.random.default_rng([seed, 4])
    orders = [tasks.pixel_permutation(rng, side**2) for _ in range(experiment.phases)]

    def draw(rng, n, part, phase):
        images, labels = data[part]
        rows = np.flatnonzero(labels // 2 == phase) if task == "split" else np.arange(len(labels))
        rows = rows if part == "test" else rng.choice(rows, n)
        x = images[rows] if task == "split" else tasks.pixel_mnist(images[rows], orders[phase])
        return x.reshape(len(x), -1, 1 if task == "pixels" else 28), labels[rows]

    return draw


def few_shot(experiment, seed):
    """Few-shot classification, `size` examples of each of 5 digits, 5 questions, images of 14 x 14.

    A label is a step of its own, after its image: `Binding` writes what it sees at the address of the step before.
    Images are less the mean of those trained on, which else makes them all alike, and as long, on average, as a label.
    The seed decides which five digits are trained and validated on; the other five, of MNIST's test images, are the
    test. With five digits to learn from, every episode of training has all of them under new labels: what a network
    cannot know before an episode is which label means which digit. Test images of the five digits trained on ("seen")
    show whether it binds labels to digits that it knows; the five others, whether what it learned to look at serves
    digits that it does not know, which five digits can hardly teach.
    """
    images = pools(experiment, seed)
    mean = images["train"][0].mean(0)
    length = np.sqrt(((images["train"][0] - mean) ** 2).sum(1).mean())
    images = {part: ((x - mean) / length, labels) for part, (x, labels) in images.items()}
    return lambda rng, n, part, phase: tasks.few_shot(rng, n, *images[part], WAYS, experiment.size, experiment.answers)


def pools(experiment, seed):
    """{part: (images (m, D), labels (m,))} of a few-shot task, sorted by label, "seen" among the parts."""
    side, which = round((experiment.inputs - WAYS) ** 0.5), np.random.default_rng([seed, 4]).permutation(10)
    data, found = digits(seed, side), {}
    for name, (images, labels) in (data | {"seen": data["test"]}).items():
        rows = np.flatnonzero(np.isin(labels, which[WAYS:] if name == "test" else which[:WAYS]))
        rows = rows[np.argsort(labels[rows], kind="stable")]
        found[name] = images[rows].reshape(len(rows), -1), labels[rows]
    return found


def nearest(experiment, x):
    """The label of the nearest example in pixels, (n, answers), of few-shot episodes x: it needs no learning at all."""
    S, D = WAYS * experiment.size, experiment.inputs - WAYS
    told, asked, labels = x[:, 0 : 2 * S : 2, :D], x[:, 2 * S :, :D], x[:, 1 : 2 * S : 2, D:].argmax(-1)
    return _nearest(asked, told, labels)


def _nearest(asked, told, labels, unseen=0):
    far = (told**2).sum(-1)[:, None] - 2 * asked @ told.swapaxes(1, 2)  # (n, asked, told), but for |asked|^2
    return np.take_along_axis(labels, (far + unseen).argmin(-1), axis=1)


def characters(experiment, seed):
    """`tasks.late_labels` of Omniglot, `size` drawings of each of 5 characters.

    The same alphabets for every seed, in the order of their names: five to train on (157 characters), Latin to
    validate on, Sanskrit and Tagalog (59) as the test. Only training moves its drawings, by up to 2 pixels. Images are
    less the mean of those trained on, and as long, on average, as a label, as for `few_shot`.
    """
    images, labels, alphabets = datasets.load_omniglot()
    names, D = np.unique(alphabets), experiment.inputs - WAYS
    parts = {"train": names[:5], "validation": names[5:6], "test": names[6:]}
    rows = {part: np.isin(alphabets[labels], held) for part, held in parts.items()}
    mean = images[rows["train"]].mean(0)
    mean = sum(np.rot90(mean, k) for k in range(4)) / 4  # of characters turned by all right angles
    length = np.sqrt(((images[rows["train"]] - mean) ** 2).sum((1, 2)).mean())

    def draw(rng, n, part, phase):
        pool, shift = (images[rows[part]], labels[rows[part]]), 2 if part == "train" else 0
        x, y = tasks.late_labels(rng, n, *pool, WAYS, experiment.size, shift)
        x[:, :, :D] -= mean.reshape(-1)
        x[:, :, :D] /= length
        return x, y

    return draw


def nearest_before(experiment, x):
    """The label of the nearest earlier image in pixels, (n, T), of `characters` x; 0 at the first step."""
    D, steps = experiment.inputs - WAYS, x.shape[1] - 1
    unseen = np.triu(np.full((steps, steps), np.inf, np.float32), 1)  # step t sees the images and labels before t
    return np.pad(_nearest(x[:, 1:, :D], x[:, :-1, :D], x[:, 1:, D:].argmax(-1), unseen), [(0, 0), (1, 0)])


def instances(name, said, y):
    """{"name_k": share of right answers at the k-th image of a class} of answers and labels (n, T)."""
    times = np.take_along_axis(np.eye(WAYS, dtype=int)[y].cumsum(1), y[:, :, None], 2)[:, :, 0]
    return {f"{name}_{k}": float((said == y)[times == k].mean()) for k in range(1, times.max() + 1)}


DRAWS = {"recall": recall, "fewshot": few_shot, "copy": copy, "adding": adding, "omniglot": characters}
DRAWS |= {"mqar": queries, "widemqar": queries, "split": pictures, "permuted": pictures, "pixels": pictures}

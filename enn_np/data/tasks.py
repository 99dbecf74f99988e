"""Generated tasks that ask for memory: nothing to download, a seed decides all.

Every generator takes a NumPy Generator and returns (x, y): n examples, T steps, D features. ValueError for sizes of 0.
The published results named here, where no other source stands beside them, are those of Bai, Kolter and Koltun,
"An Empirical Evaluation of Generic Convolutional and Recurrent Networks", arXiv 1803.01271, table 1.
"""

import numpy as np

from ..checks import count

Array, Generator = np.ndarray, np.random.Generator


def copy_task(rng: Generator, n: int, delay: int = 100, length: int = 10, symbols: int = 8):
    """Remember `length` symbols over `delay` steps, then write them down in order.

    x  (n, T) int64, T = delay + 2 length: the symbols (0 to symbols - 1), delay - 1 blanks (`symbols`), a signal to
       begin (`symbols` + 1), and `length` more blanks. For one-hot inputs, D = symbols + 2: `np.eye(D)[x]`.
    y  (n, T) int64: blanks, but for the last `length` steps, which repeat the symbols

    Sizes of Arjovsky et al.: 8 symbols, length 10, delay 100 to 500. Without memory the best mean loss is
    length ln(symbols) / T. Published, delay 1,000 (so 0.0204): RNN 0.0202, LSTM 0.0204, GRU 0.0197, TCN 0.000035.
    Source: Hochreiter and Schmidhuber 1997; Arjovsky, Shah and Bengio, arXiv 1511.06464, section 4.1.
    """
    n, delay, length = count("n", n), count("delay", delay), count("length", length)
    blank, begin = count("symbols", symbols), symbols + 1
    x, y = np.full((2, n, delay + 2 * length), blank, np.int64)
    x[:, :length] = y[:, -length:] = rng.integers(symbols, size=(n, length))
    x[:, length + delay - 1] = begin
    return x, y


def adding_task(rng: Generator, n: int, steps: int = 100):
    """Add the two numbers that are marked in a long row of numbers.

    x  (n, T, 2) float32, T = steps: numbers drawn evenly from [0, 1), and marks: 1 at one step of each half, else 0
    y  (n, 1) float32, the sum of the two. A column, because (n, 1) - (n,) would silently be (n, n).

    Always saying 1, the mean, has a mean squared error of 1/6 = 0.167: a model that stays there has learned nothing.
    Published, 600 steps: RNN 0.177, LSTM 0.164, GRU 0.000053, TCN 0.000058. ValueError for steps below 2.
    Source: Hochreiter and Schmidhuber 1997, experiment 4; in this form Le, Jaitly and Hinton, arXiv 1504.00941.
    """
    n, steps = count("n", n), count("steps", steps, low=2)
    x = np.zeros((n, steps, 2), np.float32)
    x[:, :, 0] = rng.random((n, steps), np.float32)
    rows, half = np.arange(n), steps // 2
    x[rows, rng.integers(half, size=n), 1] = 1
    x[rows, rng.integers(half, steps, size=n), 1] = 1
    return x, np.einsum("nt,nt->n", x[:, :, 0], x[:, :, 1])[:, None]


def one_feature(rng: Generator, n: int):
    """Regression from one number, as a sequence of one step: y = sin(3 x) + noise.

    x  (n, 1, 1) float32, normally distributed
    y  (n, 1) float32; the noise has sd 0.5, so that no model gets below a mean squared error of 0.25

    In the place of the paper's regression on one feature of a downloaded data set. With one step the Engram network's
    trace is written but never read: this compares how the networks fit a curve, not memory.
    """
    x, noise = rng.standard_normal((2, count("n", n), 1), np.float32)
    return x[:, None], np.sin(3 * x) + noise / 2


def associative_recall(rng: Generator, n: int, pairs: int = 4, keys: int = 26, values: int = 10):
    """Read key-value pairs such as c9 k8 j3 f1, then ??c, and say what belonged to c: 9.

    x  (n, T, D) float32 one-hot, T = 2 pairs + 3, D = keys + values + 1: the keys of an example all differ, values
       may repeat, then come two question marks (the last feature) and one of the keys, each equally likely
    y  (n,) int64, the value of that key, 0 to values - 1

    Without memory the accuracy is 1 / values; who keeps the values, but not whose they are, and answers by the one told
    most often, is right, with 10 values, in 38.35% with 4 pairs, 29.99% with 8, 23.60% with 16 and 19.36% with 32.
    Published error rates with 20 and 50 hidden units, 4 pairs: LSTM 60.8% and 1.9%, fast weights 1.8% and 0%.
    Raises ValueError for more pairs than keys.
    Source: Ba and others, "Using Fast Weights to Attend to the Recent Past", arXiv 1610.06258, section 4.1, table 1.
    """
    n, pairs, keys, values = count("n", n), count("pairs", pairs), count("keys", keys), count("values", values)
    if pairs > keys:
        raise ValueError(f"pairs: expected at most keys = {keys}, as keys are distinct, got {pairs}")
    told = _shuffled(rng, n, np.arange(keys))[:, :pairs]  # (n, pairs)
    answers = rng.integers(values, size=(n, pairs))
    rows, asked = np.arange(n), rng.integers(pairs, size=n)
    symbols = np.full((n, 2 * pairs + 3), keys + values)  # (n, T) question marks
    symbols[:, 0 : 2 * pairs : 2] = told
    symbols[:, 1 : 2 * pairs : 2] = keys + answers
    symbols[:, -1] = told[rows, asked]
    return np.eye(keys + values + 1, dtype=np.float32)[symbols], answers[rows, asked]


def few_shot(rng: Generator, n: int, images: Array, labels: Array, ways: int = 5, shots: int = 1, asked: int = 5):
    """Learn new names: `shots` examples of each of `ways` classes with their labels, then images to be named.

    images  (m, D) float, labels (m,) int64: what episodes are drawn from, faster if sorted by label
    x       (n, T, D + ways) float32, T = 2 ways shots + asked: the examples in random order, each two steps, its image,
            then its label alone, one-hot; then a step for each image that is asked about, whose labels are nowhere
    y       (n, asked) int64, their labels, each of the `ways` equally likely at every step

    Which classes take part, and which of the labels 0 to ways - 1 each has, is drawn for every episode, so that no
    network can know a label before the episode tells it. Chance is 1 / ways; no image comes twice in an episode.
    Raises ValueError for fewer classes than ways, and for a class of too few images.
    Source: Santoro and others, "One-shot Learning with Memory-Augmented Neural Networks", arXiv 1605.06065, section 2.
    """
    n, ways, shots, asked = count("n", n), count("ways", ways), count("shots", shots), count("asked", asked)
    order, S, D = np.argsort(labels, kind="stable"), ways * shots, images.shape[1]
    _, first, size = np.unique(labels[order], return_index=True, return_counts=True)
    if len(size) < ways or size.min() < S + asked:
        raise ValueError(f"images: expected {ways} classes or more of {S + asked} images or more, got {size.tolist()}")
    named = _shuffled(rng, n, np.arange(len(size)))[:, :ways]  # (n, ways) label -> class
    told = _shuffled(rng, n, np.repeat(np.arange(ways), shots))  # (n, S) labels of the examples
    y = rng.integers(ways, size=(n, asked))
    kinds = np.take_along_axis(named, np.hstack([told, y]), axis=1)  # (n, S + asked) classes
    # Every image has a part of its class to itself, counted from a random start: none comes twice.
    start = np.take_along_axis(rng.integers(size, size=(n, len(size))), kinds, axis=1)
    part = size[kinds] // (S + asked)
    place = (start + part * np.arange(S + asked) + rng.integers(part)) % size[kinds]
    x, shown = np.zeros((n, 2 * S + asked, D + ways), np.float32), [*range(0, 2 * S, 2), *range(2 * S, 2 * S + asked)]
    x[:, shown, :D] = images[order[first[kinds] + place]]
    x[:, 1 : 2 * S : 2, D:] = np.eye(ways)[told]
    return x, y


def late_labels(rng: Generator, n: int, images: Array, labels: Array, ways: int = 5, shots: int = 10, shift: int = 0):
    """Name every image when it is shown; its label is told one step late: `shots` images of each of `ways` classes.

    images  (m, S, S) float, labels (m,) int64, each equally often: what episodes are drawn from
    x       (n, T, S S + ways) float32, T = ways shots: images, each beside the one-hot label of the step before, or 0
    y       (n, T) int64, the labels of the images, 0 to ways - 1

    Which classes take part, by how many right angles all images of a class are turned (turned, it is another class, as
    published), and which label it has, is drawn for every episode. No image comes twice in one. Each is moved by up to
    `shift` pixels down and across, with 0 behind it.
    Chance is 1 / ways. Who sees that a class is new, and guesses among the labels not yet told, is right in 45.7% of
    the first times with 5 ways. Published, Omniglot, at the 1st, 2nd, 5th and 10th image of a class: LSTM 24.4%, 49.5%,
    63.6% and 62.5%, MANN 36.4%, 82.8%, 94.9% and 98.1%, with 1,200 characters to train on and small turns besides.
    Raises ValueError for fewer classes than ways, classes of several sizes, or of fewer images than shots.
    Source: Santoro and others, "One-shot Learning with Memory-Augmented Neural Networks", arXiv 1605.06065, table 1.
    """
    n, ways, shots, shift = count("n", n), count("ways", ways), count("shots", shots), count("shift", shift, low=0)
    size, (S, T) = np.unique(labels, return_counts=True)[1], (images.shape[1], ways * shots)
    if len(size) < ways or size.min() < max(shots, size.max()) or images.shape[1:] != (S, S):
        wanted = f"expected {ways} classes or more, all of one size, {shots} square images or more"
        raise ValueError(f"images: {wanted}, got {size.tolist()} of {images.shape[1:]}; leave some out")
    order, pick = np.argsort(labels, kind="stable").reshape(len(size), -1), np.take_along_axis
    shown = _shuffled(rng, n, np.arange(T))  # (n, T)
    y = shown // shots
    kinds = pick(_some(rng, n, ways, np.ones(len(size))), y, 1)
    which = pick(_some(rng, n * ways, shots, np.ones(size[0])).reshape(n, T), shown, 1)
    windows = np.pad(images, [(0, 0), (shift, shift), (shift, shift)])
    windows = np.lib.stride_tricks.sliding_window_view(windows, (S, S), (1, 2))  # (m, moved down, across, S, S)
    down, across = rng.integers(2 * shift + 1, size=(2, n, T))
    pixels = windows[order[kinds, which], down, across]  # (n, T, S, S)
    turns = pick(rng.integers(4, size=(n, ways)), y, 1)
    for k in (1, 2, 3):
        pixels[turns == k] = np.rot90(pixels[turns == k], k, (1, 2))
    x = np.zeros((n, T, S * S + ways), np.float32)
    x[:, :, : S * S] = pixels.reshape(n, T, -1)
    x[:, 1:, S * S :] = np.eye(ways)[y[:, :-1]]
    return x, y


def _shuffled(rng, n, row):
    """n rows, each `row` in an order of its own."""
    return rng.permuted(np.tile(row, (n, 1)), axis=1)


def pixel_permutation(rng: Generator, pixels: int = 28 * 28) -> Array:
    """One random order of pixels, (pixels,) int64, the same for train and test images."""
    return rng.permutation(count("pixels", pixels))


def pixel_mnist(images: Array, permutation: Array | None = None) -> Array:
    """Images as rows of single pixels, (n, T, 1) float32: T = 784 steps instead of 28 make MNIST hard.

    images       (n, height, width) or (n, T). uint8 is scaled from 0-255 to 0-1, float is kept.
    permutation  (T,) order in which to read the pixels, from `pixel_permutation`. None: row by row.

    Published accuracies, row by row and permuted: RNN 21.5% and 25.3%, LSTM 87.2% and 85.7%, GRU 96.2% and 87.3%,
    TCN 99.0% and 97.2%; well-tuned LSTMs get to 92.6% permuted (arXiv 1902.09689).
    Raises ValueError for other shapes or types and where permutation does not hold each of 0 to T - 1 once.
    Source: Le, Jaitly and Hinton, arXiv 1504.00941.
    """
    images = np.asarray(images)
    if images.ndim not in (2, 3) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise ValueError(f"images: expected (n, 28, 28), uint8 or float, got {images.shape} {images.dtype}")
    pixels = images.reshape(len(images), -1)
    order = np.arange(pixels.shape[1])
    permutation = order if permutation is None else np.asarray(permutation)
    if permutation.shape != order.shape or permutation.dtype.kind not in "iu" or (np.sort(permutation) != order).any():
        raise ValueError(f"permutation: expected each of 0 to {len(order) - 1} once; use pixel_permutation")
    return (pixels[:, permutation] / np.float32(255 if images.dtype == np.uint8 else 1)).astype(np.float32)[:, :, None]


def multi_query_recall(
    rng: Generator, n: int, steps: int = 64, pairs: int = 4, vocabulary: int = 8_192, random_filler: bool = False
):
    """Read pairs of words, then meet each key again somewhere, and say there what belonged to it (MQAR).

    x  (n, T) int64, T = steps: `pairs` keys, each with its value behind it; then every key once more, at an even
       distance of 2 g behind the pairs, g drawn by a power law, so that most return soon; 0 everywhere else, or with
       random_filler any word. Keys are 1 to vocabulary / 2 - 1, values those from there on; none comes twice
    y  (n, T) int64: at the returning keys their values, at all other steps -1: nothing is asked there

    Published (steps, pairs): (64, 4), (128, 8), (256, 16), (512, 64). ValueError for odd steps, or under 4 a pair.
    Source: Arora and others, "Zoology", arXiv 2312.04927, and its generator: gaps by p(g) ~ g^(0.01 - 1), g from 1.
    """
    n, pairs, steps = count("n", n), count("pairs", pairs), count("steps", steps, low=4 * pairs)
    half = count("vocabulary", vocabulary, low=2 * pairs + 2) // 2
    if steps % 2:
        raise ValueError(f"steps: expected an even number, got {steps}; leave one out")
    keys = 1 + _some(rng, n, pairs, np.ones(half - 1))
    values = half + _some(rng, n, pairs, np.ones(vocabulary - half))
    x, y = np.zeros((n, steps), np.int64), np.full((n, steps), -1, np.int64)
    x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2] = keys, values
    room = (steps - 2 * pairs) // 2
    asked = 2 * (pairs + _some(rng, n, pairs, np.arange(1, room + 1) ** (0.01 - 1)))  # steps, (n, pairs)
    np.put_along_axis(x, asked, keys, 1)
    np.put_along_axis(y, asked, values, 1)
    if random_filler:
        x = np.where(x == 0, rng.integers(vocabulary, size=x.shape), x)
    return x, y


def _some(rng, n, k, weights):
    """k of the places of `weights` in the order drawn, none twice, each draw by the weights that are left: (n, k).

    The first k of exponential waiting times with these rates come in just that order.
    """
    waits = rng.exponential(size=(n, len(weights))) / weights
    first = waits.argpartition(k - 1, axis=1)[:, :k]
    return np.take_along_axis(first, np.take_along_axis(waits, first, 1).argsort(1), 1)

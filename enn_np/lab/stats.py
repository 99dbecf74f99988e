"""What the paper's tests say of its numbers, why they cannot say it, and tests that can, on several seeds.

The paper has one run per model and takes its last validation score and its test score for a sample of two (n = 2). Both
are of the same weights, so they agree closely, whatever another seed would have given: the spread within a group is the
spread between two data sets, not between runs. A sample is what several seeds give.

Needs SciPy. All functions are deterministic: what is drawn, is drawn from a fixed seed.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from .. import checks

# Of each model's one run: last validation and test accuracy, last validation and test loss (MNIST, arXiv 2507.21474).
PUBLISHED = {
    "Engram": {"accuracy": (0.9642, 0.9682), "loss": (0.1405, 0.1287)},
    "RNN": {"accuracy": (0.9832, 0.9806), "loss": (0.0665, 0.0679)},
    "GRU": {"accuracy": (0.9898, 0.9898), "loss": (0.0399, 0.0368)},
    "LSTM": {"accuracy": (0.9887, 0.9890), "loss": (0.0478, 0.0385)},
}

LEVEL = {"above": 0, "high": 0.9999}  # 0.95, not 95


class Replay(NamedTuple):
    """The paper's analysis. tukey: {(model, model): (difference of means, p)}, adjusted for the six pairs."""

    F: float
    F_p: float
    H: float
    H_p: float
    tukey: dict


def replay(published=PUBLISHED):
    """One-way ANOVA and Tukey's HSD on accuracies, Kruskal-Wallis on losses, as the paper has them."""
    accuracy, loss = ([each[kind] for each in published.values()] for kind in ("accuracy", "loss"))
    anova, kruskal, hsd = stats.f_oneway(*accuracy), stats.kruskal(*loss), stats.tukey_hsd(*accuracy)
    pairs = combinations(enumerate(published), 2)
    tukey = {(a, b): (float(hsd.statistic[i, j]), float(hsd.pvalue[i, j])) for (i, a), (j, b) in pairs}
    return Replay(*map(float, (*anova, *kruskal)), tukey)


def kruskal_limit(groups=4, size=2):
    """(H, p) of Kruskal-Wallis where `groups` of `size` do not overlap at all: no sample gets a lower p."""
    return tuple(map(float, stats.kruskal(*np.arange(groups * size).reshape(groups, size))))


def false_alarms(correlation, groups=4, repeats=10_000, seed=0, level=0.05):
    """How often ANOVA finds "significant" differences between `groups` equally good models, each represented by two
    values of one run that correlate by `correlation`. With 0, a true sample of two, `level` of the time.

    value = sqrt(correlation) * (how this run went) + sqrt(1 - correlation) * (how this data set went), all normal.
    """
    rho, level = checks.number("correlation", correlation, low=0, high=1), checks.number("level", level, **LEVEL)
    groups, repeats = checks.count("groups", groups, low=2), checks.count("repeats", repeats)
    rng = np.random.default_rng(seed)
    run, part = rng.standard_normal((repeats, groups, 1)), rng.standard_normal((repeats, groups, 2))
    values = np.sqrt(rho) * run + np.sqrt(1 - rho) * part
    between = 2 * values.mean(2).var(1, ddof=1)
    within = values.var(2, ddof=1).mean(1)
    # F > limit as a product, so that values that agree to the bit need no division
    return float((between > stats.f.isf(level, groups - 1, groups) * within).mean())


# ------------------------------------------------------------------------------------------------------- our seeds


def interval(values, level=0.95):
    """Student's t interval (low, high) of the mean; None for fewer than three values: they tell too little.

    It holds the true mean of normal values as often as `level` says, however few they are. A bootstrap of three to five
    would hold it 75 to 83% of the time for 95%.
    """
    values, level = sample("values", values, low=1), checks.number("level", level, **LEVEL)
    if len(values) < 3:
        return None
    half = stats.t.isf((1 - level) / 2, len(values) - 1) * _sd(values, _rounding(values)) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def interquartile_mean(values):
    """Mean of the middle half: of five values, the middle three (Agarwal et al. 2021, arXiv 2108.13264)."""
    return float(stats.trim_mean(sample("values", values, low=1), 0.25))


def improvement(a, b):
    """Probability that a run of `a` beats one of `b`, ties as half (Agarwal et al. 2021): Mann-Whitney's U / (n m)."""
    a, b = sample("a", a)[:, None], sample("b", b)
    return float(((a > b) + (a == b) / 2).mean())


def hedges_g(a, b):
    """Difference of means in pooled standard deviations, corrected for small samples (Hedges 1981).

    Groups of constants have no spread to measure by: inf or -inf where they differ, 0 where they do not.
    """
    a, b = sample("a", a), sample("b", b)
    rounding, difference, freedom = _rounding(a, b), a.mean() - b.mean(), len(a) + len(b) - 2
    if abs(difference) <= rounding:
        return 0.0
    sd = np.sqrt(sum((len(each) - 1) * _sd(each, rounding) ** 2 for each in (a, b)) / freedom)
    return float(difference / sd * (1 - 3 / (4 * freedom - 1))) if sd else float(np.copysign(np.inf, difference))


def holm(p):
    """p values adjusted for their number m (Holm 1979): the smallest times m, the next times m - 1, never falling."""
    p = sample("p", p, low=1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p: expected probabilities from 0 to 1, got {p!s:.80}; divide percentages by 100")
    order = p.argsort()
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


class Comparison(NamedTuple):
    """One pair of models on the seeds that both have: how many. difference: mean of a - b; interval: of that, paired;
    welch, permutation: p, Holm-adjusted."""

    a: str
    b: str
    seeds: int
    difference: float
    interval: tuple | None
    welch: float
    permutation: float
    hedges_g: float
    improvement: float


def compare(scores, pairs=None):
    """Every pair of models, or `pairs`, on {model: {seed: score}}, more is better. A list of `Comparison`.

    All that is said of a pair is of the seeds that both have. Differences and their interval are paired by seed, which
    decides the split too; the tests are not, because five pairs have 32 signs and so no p below 0.06. Permutations: all
    of them up to 10,000, else so many at random. Raises ValueError for a pair without two seeds in common.
    """
    rows, tests = [], []
    for a, b in combinations(scores, 2) if pairs is None else pairs:
        both = sorted(scores[a].keys() & scores[b].keys())
        if len(both) < 2:
            raise ValueError(f"scores: {a} and {b} need two seeds in common, got {both}; run more of them")
        x, y = (sample(f"scores: {name}", [scores[name][seed] for seed in both]) for name in (a, b))
        tests.append((_welch(x, y), _permutation(x, y)))
        rows.append((a, b, len(both), float((x - y).mean()), interval(x - y), hedges_g(x, y), improvement(x, y)))
    if not rows:
        return []
    adjusted = zip(*map(holm, zip(*tests, strict=True)), strict=True)
    return [Comparison(*row[:5], *map(float, ps), *row[5:]) for row, ps in zip(rows, adjusted, strict=True)]


def _welch(x, y):
    """p of Welch's t test; values that do not spread at all make it 1 or 0."""
    rounding = _rounding(x, y)
    moments = [(values.mean(), _sd(values, rounding), len(values)) for values in (x, y)]
    if not any(sd for _, sd, _ in moments):
        return float(abs(x.mean() - y.mean()) <= rounding)
    # From moments: of the values themselves SciPy warns where one group hardly spreads, as recall at 100% does.
    return float(stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


def _permutation(x, y):
    """p of the difference of means over all ways to deal the runs to the two models, twice the smaller tail."""
    seen, rounding = x.mean() - y.mean(), _rounding(x, y)

    def difference(x, y, axis):
        dealt = x.mean(axis) - y.mean(axis)
        # A tie counts as one. SciPy's tolerance is relative to the difference, but rounding is to the values.
        return np.where(abs(dealt - seen) <= rounding, seen, dealt)

    settings = {"n_resamples": 10_000, "vectorized": True, "random_state": np.random.default_rng(0)}
    return float(stats.permutation_test((x, y), difference, **settings).pvalue)


def _rounding(*samples):
    """By how much equal values may differ after some sums: 100 units in their last place."""
    return 100 * np.finfo(float).eps * max(abs(values).max() for values in samples)


def _sd(values, rounding):
    """Standard deviation of a sample, 0 where it is all rounding."""
    return values.std(ddof=1) if np.ptp(values) > rounding else 0.0


def sample(name, values, low=2):
    """`values` as a float array (n,), n at least `low`, or ValueError."""
    try:
        found = np.zeros(0) if any(map(np.ma.is_masked, values)) else np.asarray(values, float)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 1 or len(found) < low or not np.isfinite(found).all():
        wanted = f"at least {low} finite numbers in a row, none of them masked"
        raise ValueError(f"{name}: expected {wanted}, got {values!s:.80}; leave out what is missing")
    return found

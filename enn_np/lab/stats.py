"""Tests that can tell networks apart, on several seeds, by SciPy. Whatever is drawn is drawn from a fixed seed."""

from collections import namedtuple
from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from ..checks import choice, number


def interval(values):
    """Student's t interval (low, high) of the mean, 95%; None for fewer than three values: they tell too little.

    It holds the true mean of normal values 95% of the time, however few; a bootstrap of three to five 75 to 83%.
    """
    values = sample("values", values, low=1)
    if len(values) < 3:
        return None
    half = stats.t.isf(0.025, len(values) - 1) * _sd(values, _rounding(values)) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def improvement(a, b):
    """Probability that a run of `a` beats one of `b`, ties as half: Mann-Whitney's U / (n m) (arXiv 2108.13264)."""
    a, b = sample("a", a)[:, None], sample("b", b)
    return float(((a > b) + (a == b) / 2).mean())


def false_alarms(correlation, repeats=10_000):
    """1 where ANOVA over four equal models, by two values of one run each that correlate so, finds p < 0.05, else 0."""
    number("correlation", correlation, low=0, high=1)
    draw = np.random.default_rng(0).standard_normal
    run, part = draw((repeats, 4, 1)), draw((repeats, 4, 2))
    values = np.sqrt(correlation) * run + np.sqrt(1 - correlation) * part
    return (stats.f_oneway(*values.transpose(1, 2, 0)).pvalue < 0.05).astype(float)


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


# One pair of models, by name, on the seeds that both have: how many. difference: mean of a - b; interval: of that,
# paired, or None; welch, permutation: p, Holm-adjusted, None where so few runs cannot bring it below 0.05.
Comparison = namedtuple("Comparison", "a b seeds difference interval welch permutation hedges_g improvement")


def compare(scores, pairs=None):
    """Every pair of models, or `pairs`, on {model: {seed: score}}, more is better. A list of `Comparison`.

    All that is said of a pair is of the seeds that both have. Differences and their interval are paired by seed, which
    decides the split too; the tests are not, because five pairs have 32 signs and so no p below 0.06. Permutations: all
    of them up to 10,000, else so many at random. Raises ValueError for a pair without two seeds in common.
    """
    found = []
    for a, b in combinations(scores, 2) if pairs is None else pairs:
        both = sorted(scores[choice("pairs", a, scores)].keys() & scores[choice("pairs", b, scores)].keys())
        if len(both) < 2:
            raise ValueError(f"scores: {a} and {b} need two seeds in common, got {both}; run more of them")
        x, y = (sample(f"scores: {name}", [scores[name][seed] for seed in both]) for name in (a, b))
        paired, tests = (float((x - y).mean()), interval(x - y)), (_welch(x, y), _permutation(x, y))
        found.append(Comparison(a, b, len(both), *paired, *tests, hedges_g(x, y), improvement(x, y)))
    if not found:
        return []
    welch, permutation = (holm([getattr(each, test) for each in found]) for test in ("welch", "permutation"))
    least = holm([2 / comb(2 * each.seeds, each.seeds) for each in found])  # two of all ways to deal
    return [
        each._replace(welch=float(p), permutation=float(q) if low < 0.05 else None)
        for each, p, q, low in zip(found, welch, permutation, least, strict=True)
    ]


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

"""Statistics: the paper's numbers come out again, each function against SciPy, hand-computed values and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from enn_np import statistics
from enn_np.protocols import PAPER
from enn_np.statistics import compare, false_alarms, hedges_g, holm, improvement, interquartile_mean, interval

A, B = [0.96, 0.965, 0.97, 0.966, 0.961], [0.98, 0.981, 0.979, 0.982, 0.98]
few = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def seeds(values):
    return dict(enumerate(values))


# The paper


def test_the_paper_comes_out_again():
    """F = 83.33, p = 0.00046; H = 6.17, p = 0.1038; Tukey: all pairs differ but GRU and LSTM."""
    found = statistics.replay()
    assert pytest.approx(83.33, abs=0.005) == found.F and found.F_p == pytest.approx(0.00046, abs=5e-6)
    assert pytest.approx(6.17, abs=0.005) == found.H and found.H_p == pytest.approx(0.1038, abs=5e-5)
    assert {pair for pair, (_, p) in found.tukey.items() if p >= 0.05} == {("GRU", "LSTM")}
    assert found.tukey["Engram", "RNN"][0] == pytest.approx((0.9642 + 0.9682 - 0.9832 - 0.9806) / 2)


def test_the_eight_numbers_are_those_of_the_tables():
    for title, each in statistics.PUBLISHED.items():
        for kind in ("accuracy", "loss"):
            assert each[kind][1] == PAPER["mnist"][title.lower()][f"test_{kind}"]


def test_kruskal_wallis_cannot_reach_significance():
    """H = 12 / (8 * 9) * sum R^2 / 2 - 3 * 9 with rank sums 3, 7, 11, 15: 20/3; no arrangement of ranks has more."""
    H, p = statistics.kruskal_limit()
    assert pytest.approx(20 / 3) == H and p == pytest.approx(0.0833, abs=1e-4)
    rng = np.random.default_rng(0)
    assert all(stats.kruskal(*rng.permutation(8).reshape(4, 2)).pvalue >= p - 1e-12 for _ in range(200))


def test_two_values_of_one_run_are_no_sample():
    """Independent values keep the promised 5%, and the more the two agree, the more often equals seem to differ."""
    alarms = [false_alarms(rho, repeats=4_000) for rho in (0, 0.5, 0.9, 0.99, 1)]
    assert alarms[0] == pytest.approx(0.05, abs=0.012)
    assert alarms == sorted(alarms) and alarms[2] > 0.7 and alarms[4] == 1


def test_false_alarms_against_scipy():
    """The same count by SciPy's f_oneway on the same draws."""
    rng = np.random.default_rng(0)
    run, part = rng.standard_normal((300, 4, 1)), rng.standard_normal((300, 4, 2))
    values = np.sqrt(0.6) * run + np.sqrt(0.4) * part
    found = [stats.f_oneway(*groups).pvalue < 0.05 for groups in values]
    assert false_alarms(0.6, repeats=300) == np.mean(found)


# Several seeds


def test_holm_by_hand():
    """0.01 x 3; 0.03 x 2; 0.04 x 1 would be less than the one before, so 0.06. Never above 1."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1, 1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p):
    adjusted, p = holm(p), np.array(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, len(p) * p) + 1e-15).all()
    assert (np.diff(adjusted[p.argsort()]) >= 0).all()


def test_effect_sizes_by_hand():
    """Means 2 and 4, both variances 1, 4 degrees of freedom: -2 * (1 - 3 / 15)."""
    assert hedges_g([1, 2, 3], [3, 4, 5]) == pytest.approx(-1.6)
    assert hedges_g([1, 1], [1, 1]) == 0 and hedges_g([2, 2], [1, 1]) == np.inf
    assert improvement([1, 2, 3], [2, 2, 0]) == pytest.approx((1 + (1 + 2 * 0.5) + 3) / 9)


@given(few, few)
def test_improvement_is_mann_whitney(a, b):
    assert improvement(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    assert improvement(a, b) + improvement(b, a) == pytest.approx(1)
    assert hedges_g(a, b) == -hedges_g(b, a)


def test_interquartile_mean_drops_the_extremes():
    assert interquartile_mean([1, 2, 3, 4, 500]) == 3 and interquartile_mean([7]) == 7


def test_intervals_hold_the_mean_and_repeat():
    low, high = interval(A)
    assert min(A) <= low < np.mean(A) < high <= max(A) and interval(A) == (low, high)
    assert interval([1, 1, 1]) == (1, 1) and interval(A[:2]) is None
    values = np.random.default_rng(1).normal(size=200)  # for many values the normal theory's
    wanted = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    np.testing.assert_allclose(interval(values), wanted, atol=0.02)


def test_comparisons_against_scipy():
    """Welch and the exact permutation test of one pair: 2 of the 252 ways to deal ten runs are as extreme."""
    (found,) = compare({"a": seeds(A), "b": seeds(B)})
    assert found.welch == pytest.approx(stats.ttest_ind(A, B, equal_var=False).pvalue)
    assert found.permutation == pytest.approx(2 / 252)
    assert found.difference == pytest.approx(np.mean(A) - np.mean(B)) and found.improvement == 0
    assert found.interval[0] < found.difference < found.interval[1]


def test_comparisons_are_adjusted_and_paired_by_seed():
    scores = {"a": seeds(A), "b": seeds(B), "c": {3: 0.9, 4: 0.95, 7: 0.99}}
    ab, ac, bc = compare(scores)
    assert (ab.a, ab.b, ab.seeds) == ("a", "b", 5) and ac.seeds == bc.seeds == 2
    assert ac.difference == pytest.approx((A[3] - 0.9 + A[4] - 0.95) / 2) and ac.interval is None
    alone = [stats.ttest_ind(x, y, equal_var=False).pvalue for x, y in ((A, B), (A, [0.9, 0.95, 0.99]))]
    assert ab.welch == pytest.approx(3 * alone[0]) and ac.welch >= alone[1]
    assert [each.a for each in compare(scores, [("b", "a")])] == ["b"] and compare(scores, []) == []


def test_runs_without_any_spread_are_no_error():
    same, other = compare({"a": seeds([1, 1, 1]), "b": seeds([1, 1, 1]), "c": seeds([2, 2, 2])})[:2]
    assert same.welch == same.permutation == 1 and other.welch == 0 and other.hedges_g == -np.inf


@pytest.mark.filterwarnings("error")
def test_one_group_that_hardly_spreads_is_no_warning():
    """Associative recall at 100% beside networks that fail: Welch's test is then one group against a constant."""
    for still in ([0.1 + 0.2] * 5, [1, 1, 1, 1, 1 - 1e-16]):
        (found,) = compare({"a": seeds(still), "b": seeds(B)})
        assert found.welch == pytest.approx(stats.ttest_1samp(B, still[0]).pvalue)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (lambda: compare({"a": seeds(A), "b": {9: 1.0}}), "scores: a and b need two seeds in common, got \\[\\]"),
        (lambda: holm([]), "p: expected at least 1"),
        (lambda: interval([1, np.nan, 2]), "values: .*nan"),
        (lambda: improvement([1], [1, 2]), "a: expected at least 2"),
        (lambda: false_alarms(1.5), "correlation: .*1.5"),
    ],
)
def test_wrong_samples_are_named(wrong, names):
    with pytest.raises(ValueError, match=names):
        wrong()

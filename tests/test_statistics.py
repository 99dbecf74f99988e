"""Statistics: the paper's numbers come out again, each function against SciPy, hand-computed values and properties."""

from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from enn_np.lab import stats as statistics
from enn_np.lab.stats import compare, hedges_g, holm, improvement, interval
from enn_np.lab.table import PAPER, TITLES

ROOT = Path(__file__).resolve().parents[1]
A, B = [0.96, 0.965, 0.97, 0.966, 0.961], [0.98, 0.981, 0.979, 0.982, 0.98]
few = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def seeds(values):
    return dict(enumerate(values))


# The paper


def test_the_papers_tests_on_the_page_of_results_are_scipys():
    """ANOVA, Kruskal-Wallis and Tukey on its eight numbers, what ranks can say at best, and false alarms."""
    page, runs = (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8"), PAPER["mnist"].values()
    accuracy, loss = ([(run[f"val_{kind}"], run[f"test_{kind}"]) for run in runs] for kind in ("accuracy", "loss"))
    rows = [
        "ANOVA, accuracy | F = {:.2f}, p = {:.5f}".format(*stats.f_oneway(*accuracy)),
        "Kruskal-Wallis, loss | H = {:.2f}, p = {:.4f}".format(*stats.kruskal(*loss)),
        "overlap | H = {:.3f}, p = {:.3f}".format(*stats.kruskal(*np.arange(8).reshape(4, 2))),
    ]
    names, tukey = [TITLES[name] for name in PAPER["mnist"]], stats.tukey_hsd(*accuracy)
    for i, j in combinations(range(4), 2):
        result = f"{tukey.statistic[i, j]:+.4f}, p = {tukey.pvalue[i, j]:.4f}"
        rows.append(f"Tukey HSD: {names[i]} - {names[j]} | {result}")
    for rho in (0, 0.5, 0.9, 0.99):
        rows.append(f"two values correlated {rho:g} | {statistics.false_alarms(rho).mean():.1%} of the time")
    assert [row for row in rows if f"{row} |\n" not in page] == []


# Several seeds


def test_holm_by_hand():
    """0.01 x 3; 0.03 x 2; 0.04 x 1 would be less than the one before, so 0.06. Never above 1."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1, 1])
    with pytest.raises(ValueError, match=r"^p: expected probabilities from 0 to 1, got \[5"):
        holm([5.0, 0.1])


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


@pytest.mark.parametrize("n", (3, 5, 12, 200))
def test_intervals_are_students_t(n):
    """A bootstrap: of three to five values it is too narrow by a third."""
    values = np.random.default_rng(n).normal(7, 2, size=n)
    wanted = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(interval(values), wanted, rtol=1e-12)
    assert interval([1, 1, 1]) == (1, 1) and interval(A[:2]) is None


@pytest.mark.parametrize("n", (3, 4, 5))
def test_intervals_hold_the_true_mean_as_often_as_they_say(n):
    """74 to 83% of bootstrapped intervals did."""
    values = np.random.default_rng(0).standard_normal((2000, n))
    ends = np.array([interval(row) for row in values])
    assert ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean() == pytest.approx(0.95, abs=0.015)


def dealt(x, y):
    """p of the permutation test in fractions, where a tie is a tie."""
    pool, n = [Fraction(str(value)) for value in (*x, *y)], len(x)
    whole, seen = sum(pool), sum(pool[:n]) / n - sum(pool[n:]) / len(y)
    sums = [sum(each) for each in combinations(pool, n)]
    deals = [each / n - (whole - each) / len(y) for each in sums]
    tails = sum(each <= seen for each in deals), sum(each >= seen for each in deals)
    return float(min(1, Fraction(2 * min(tails), len(deals))))


@settings(max_examples=60)
@given(st.data(), st.sampled_from((0.1, 0.0001, 1, 1e-7, 123456.7)))
def test_a_tie_of_the_permutation_test_is_one_whatever_the_rounding(data, unit):
    """0.8 for 0.9: [0.96, 0.965, 0.97] against [0.961, 0.964, 0.972], whose differences tie but for the last bit."""
    scores = st.lists(st.integers(-9, 9).map(lambda k: float(str(round(k * unit, 12)))), min_size=2, max_size=4)
    x, y = data.draw(scores), data.draw(scores)
    assert statistics._permutation(np.array(x), np.array(y)) == pytest.approx(dealt(x, y))


def test_a_tie_by_hand():
    tie = np.array([0.96, 0.965, 0.97]), np.array([0.961, 0.964, 0.972])
    assert statistics._permutation(*tie) == pytest.approx(0.9)


@pytest.mark.parametrize(("runs", "models", "tells"), [(3, 2, False), (4, 2, True), (5, 4, True), (5, 5, False)])
def test_no_p_where_so_few_runs_cannot_bring_it_below_5_percent(runs, models, tells):
    """Of three 2/20 is the least, of five 2/252, which Holm's correction for 10 pairs makes 0.08."""
    found = compare({str(i): seeds(np.arange(runs) + 10.0 * i) for i in range(models)})
    assert [each.permutation is not None for each in found] == [tells] * len(found)
    assert not tells or max(each.permutation for each in found) < 0.05


def test_comparisons_against_scipy():
    """Welch and the exact permutation test of one pair: 2 of the 252 ways to deal ten runs are as extreme."""
    (found,) = compare({"a": seeds(A), "b": seeds(B)})
    assert found.welch == pytest.approx(stats.ttest_ind(A, B, equal_var=False).pvalue)
    assert found.permutation == pytest.approx(2 / 252)
    assert found.difference == pytest.approx(np.mean(A) - np.mean(B)) and found.improvement == 0
    assert found.interval[0] < found.difference < found.interval[1]


def test_comparisons_are_adjusted_and_of_the_seeds_in_common():
    """Tests and effect sizes of other runs than the difference beside them."""
    scores = {"a": seeds(A), "b": seeds(B), "c": {7: 0.99, 4: 0.95, 3: 0.9}}
    ab, ac, bc = compare(scores)
    assert (ab.a, ab.b, ab.seeds) == ("a", "b", 5) and ac.seeds == bc.seeds == 2
    assert ac.difference == pytest.approx((A[3] - 0.9 + A[4] - 0.95) / 2) and ac.interval is None
    raw = [stats.ttest_ind(x, y, equal_var=False).pvalue for x, y in ((A, B), (A[3:], (0.9, 0.95)))]
    assert ab.welch == pytest.approx(3 * raw[0])
    (alone,) = compare(scores, [("a", "c")])
    assert alone.welch == pytest.approx(raw[1]) and alone.hedges_g == ac.hedges_g == hedges_g(A[3:], (0.9, 0.95))
    assert alone.improvement == improvement(A[3:], (0.9, 0.95)) and alone.permutation is None
    assert [each.a for each in compare(scores, [("b", "a")])] == ["b"] and compare(scores, []) == []


@pytest.mark.parametrize("still", (0.1, 0.3, 1 / 3, 0.1 + 0.2, 1e9 / 7))
def test_constants_that_rounding_parts(still):
    """A standard deviation of 1e-17 made g -3e15."""
    one, other = [still] * 5, [still * (1 + 2e-16)] * 3
    assert hedges_g(one, other) == 0 and hedges_g(one, [2 * still] * 3) == -np.inf == -hedges_g([2 * still] * 3, one)
    (found,) = compare({"a": seeds(one), "b": seeds([still, still * (1 + 2e-16), still])})
    assert found.welch == 1 and found.hedges_g == 0
    low, high = interval(one)
    assert low == high == pytest.approx(still)


def test_runs_without_any_spread_are_no_error():
    same, other = compare({"a": seeds([1, 1, 1]), "b": seeds([1, 1, 1]), "c": seeds([2, 2, 2])})[:2]
    assert same.welch == 1 and other.welch == 0 and other.hedges_g == -np.inf


@pytest.mark.filterwarnings("error")
def test_one_group_that_hardly_spreads_is_no_warning():
    """Associative recall at 100% beside networks that fail: Welch's test is then one group against a constant."""
    for still in ([0.1 + 0.2] * 5, [1, 1, 1, 1, 1 - 1e-16]):
        (found,) = compare({"a": seeds(still), "b": seeds(B)})
        assert found.welch == pytest.approx(stats.ttest_1samp(B, still[0]).pvalue)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (lambda: compare({"a": seeds(A), "b": seeds(B)}, [("a", "c")]), "^pairs: expected one of 'a', 'b', got 'c'"),
        (lambda: compare({"a": seeds(A), "b": {9: 1.0}}), "scores: a and b need two seeds in common, got \\[\\]"),
        (lambda: holm([]), "p: expected at least 1"),
        (lambda: interval([1, np.nan, 2]), "values: .*nan"),
        (lambda: improvement([1], [1, 2]), "a: expected at least 2"),
        (lambda: interval(np.ma.masked_greater([1.0, 2, 3, 99], 9)), "^values: .*masked, got .*--"),
        (lambda: hedges_g(A, np.ma.masked_greater([1.0, 2, 99], 9)), "^b: .*masked"),
        (lambda: interval(list(np.ma.masked_greater([1.0, 2, 99], 9))), "^values: .*masked"),
        (lambda: compare({"a": seeds(A), "b": seeds(np.ma.masked_less(B, 0.98))}), "^scores: b: .*masked"),
        (lambda: compare({"a": seeds(A), "b": seeds([1.0, np.nan])}), "^scores: b: .*nan"),
        (lambda: improvement("12", A), "^a: .*got 12"),
    ],
)
def test_wrong_samples_are_named(wrong, names):
    with pytest.raises(ValueError, match=names):
        wrong()


@pytest.mark.parametrize("correlation", (-0.5, 1.5, np.nan))
def test_a_correlation_that_is_none_is_refused(correlation):
    """Its alarms were none: NaN is not below 0.05."""
    with pytest.raises(ValueError, match=r"^correlation: "):
        statistics.false_alarms(correlation)

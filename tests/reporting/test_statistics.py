"""Intervals, paired tests and pass@k against scipy, exact fractions and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sdft_jax.errors import SdftError
from sdft_jax.reporting.statistics import (
    difference_interval,
    mcnemar,
    mean_interval,
    mean_pass_at_k,
    pass_at_k,
    t_quantile,
    wilson,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("degrees", [1, 1.3, 2, 2.7, 3, 4, 5, 9, 30, 100, 1000])
def test_t_quantile_is_scipys(level, degrees):
    assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-8)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_is_scipys(n, level):
    values = RNG.normal(0.7, 0.1, n)
    low, high = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    mean, half = mean_interval(values.tolist(), level)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_mean_interval_by_hand():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean_interval([0.4]) == (0.4, None)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


def test_paired_difference_is_the_interval_of_differences():
    a, b = RNG.normal(0.8, 0.1, 4), RNG.normal(0.5, 0.3, 4)
    reference = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, half = difference_interval(a, b)
    assert (mean - half, mean + half) == pytest.approx((reference.low, reference.high))
    assert mean == pytest.approx(a.mean() - b.mean())


def test_unpaired_difference_is_welchs():
    a, b = RNG.normal(0.8, 0.1, 4), RNG.normal(0.5, 0.3, 7)
    reference = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    mean, half = difference_interval(a, b, paired=False, level=0.9)
    assert (mean - half, mean + half) == pytest.approx((reference.low, reference.high))
    assert difference_interval([1.0], [0.25, 0.75], paired=False) == (0.5, None)
    assert difference_interval([1.0, 1.0], [0.5, 0.5], paired=False) == (0.5, None)


@pytest.mark.parametrize(
    ("forgotten", "gained"), [(0, 1), (1, 0), (5, 5), (0, 6), (9, 2), (3, 40), (700, 610)]
)
def test_mcnemar_is_the_binomial_test_of_the_changed_items(forgotten, gained):
    before = [True] * (forgotten + 8) + [False] * (gained + 3)
    after = [False] * forgotten + [True] * 8 + [True] * gained + [False] * 3
    found = mcnemar(before, after)
    assert (found.forgotten, found.gained) == (forgotten, gained)
    assert found.p == pytest.approx(stats.binomtest(forgotten, forgotten + gained, 0.5).pvalue, rel=1e-9)


def test_mcnemar_without_changes():
    assert mcnemar([True, False], [True, False]).p == 1.0
    assert mcnemar([], []).p == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (20, 20), (1, 1), (97, 200), (3, 507)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(correct, n, level):
    reference = stats.binomtest(correct, n).proportion_ci(level, "wilson")
    assert wilson(correct, n, level) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (6, 0), (6, 2), (6, 6), (7, 3)])
def test_pass_at_k_counts_the_subsets_with_a_right_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        expected = sum(min(subset) < c for subset in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples():
    exact = 1 - math.comb(9900, 128) / math.comb(10000, 128)
    assert pass_at_k(10000, 100, 128) == pytest.approx(exact, rel=1e-10)
    assert pass_at_k(200, 7, 1) == pytest.approx(7 / 200)


def test_mean_pass_at_k_over_prompts():
    verdicts = [[True, False], [False, False], [True, True, False]]
    assert mean_pass_at_k(verdicts, 1) == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert mean_pass_at_k(verdicts, 2) == pytest.approx((1 + 0 + 1) / 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean_interval([]), "values is empty"),
        (lambda: mean_interval([1.0, 2.0], 95), "level=95"),
        (lambda: difference_interval([1.0, 2.0], [1.0]), "2 and 1 seeds"),
        (lambda: mcnemar([True], []), "1 and 0 items"),
        (lambda: wilson(3, 2), "3 right out of 2"),
        (lambda: wilson(0, 0), "0 right out of 0"),
        (lambda: pass_at_k(4, 1, 8), "draw at least 8 samples"),
        (lambda: pass_at_k(4, 1, 0), "pass@0"),
        (lambda: pass_at_k(4, 5, 1), "5 right out of 4"),
        (lambda: mean_pass_at_k([], 1), "verdicts is empty"),
        (lambda: t_quantile(0.95, 0), "degrees=0"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(SdftError, match=says):
        call()

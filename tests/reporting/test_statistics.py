"""Intervals, paired tests and pass@k against published tables, exact fractions and counting."""

import itertools
import math
import statistics

import numpy as np
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.reporting.statistics import (
    bootstrap_interval,
    difference_interval,
    mcnemar,
    mean_interval,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
    t_quantile,
    wilson,
)

T_TABLE = {
    # (two-sided level, degrees of freedom) -> t
    (0.5, 1): 1.000000,
    (0.5, 5): 0.726687,
    (0.9, 1): 6.313752,
    (0.9, 2): 2.919986,
    (0.9, 4): 2.131847,
    (0.9, 19): 1.729133,
    (0.95, 1): 12.706205,
    (0.95, 2): 4.302653,
    (0.95, 4): 2.776445,
    (0.95, 19): 2.093024,
    (0.95, 30): 2.042272,
    (0.95, 100): 1.983972,
    (0.999, 1): 636.619249,
    (0.999, 5): 6.868827,
    (0.999, 30): 3.645959,
}
SLEEP = (
    # Student (1908), the data set `sleep` of R: extra hours of sleep of ten patients under two drugs
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


@pytest.mark.parametrize(("level", "degrees"), T_TABLE)
def test_t_quantile_is_the_tabulated_value(level, degrees):
    assert t_quantile(level, degrees) == pytest.approx(T_TABLE[level, degrees], abs=6e-7)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("degrees", [1, 1.3, 2, 2.7, 3, 4, 5, 9, 30, 100, 1000])
def test_density_between_the_t_quantiles_integrates_to_the_level(level, degrees):
    # With t = sqrt(degrees) tan(angle), the density is proportional to cos(angle) ** (degrees - 1).
    end = math.atan(t_quantile(level, degrees) / math.sqrt(degrees))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    integral = end / 2 * weights @ np.cos(end / 2 * (1 + nodes)) ** (degrees - 1)
    norm = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    assert 2 * norm * integral == pytest.approx(level, rel=1e-11)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_uses_the_tabulated_t(n, level):
    values = np.random.default_rng(n).normal(0.7, 0.1, n).tolist()
    mean, half = mean_interval(values, level)
    assert mean == pytest.approx(statistics.fmean(values), rel=1e-12)
    expected = T_TABLE[level, n - 1] * statistics.stdev(values) / math.sqrt(n)
    assert half == pytest.approx(expected, rel=1e-6)


def test_mean_interval_by_hand():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean_interval([0.4]) == (0.4, None)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


def test_paired_difference_is_the_published_interval():
    mean, half = difference_interval(*SLEEP)
    assert mean == pytest.approx(-1.58)
    assert (mean - half, mean + half) == pytest.approx((-2.4598858, -0.7001142), abs=6e-8)


def test_unpaired_difference_is_the_published_welch_interval():
    mean, half = difference_interval(*SLEEP, paired=False)
    assert mean == pytest.approx(-1.58)
    assert (mean - half, mean + half) == pytest.approx((-3.3654832, 0.2054832), abs=6e-8)


@pytest.mark.filterwarnings("error")
def test_unpaired_difference_by_hand():
    # equal sizes and variances: 2 (n - 1) degrees of freedom
    mean, half = difference_interval([5.0, 6.0, 7.0], [1.0, 2.0, 3.0], paired=False, level=0.9)
    assert (mean, half) == pytest.approx((4.0, T_TABLE[0.9, 4] * math.sqrt(2 / 3)), rel=1e-6)
    # both squared standard errors are 1: (1 + 1)^2 / (1 / 1 + 1 / 2) degrees of freedom
    mean, half = difference_interval([0.0, 2.0], [0.0, 0.0, 3.0], paired=False)
    assert (mean, half) == pytest.approx((0.0, t_quantile(0.95, 8 / 3) * math.sqrt(2)), rel=1e-12)
    # a constant list: the degrees of freedom of the other
    mean, half = difference_interval([1.0, 1.0, 1.0], [0.25, 0.75], paired=False)
    assert (mean, half) == pytest.approx((0.5, 0.25 * T_TABLE[0.95, 1]), rel=1e-6)
    assert difference_interval([1.0], [0.25, 0.75], paired=False) == (0.5, None)
    assert difference_interval([1.0, 1.0], [0.5, 0.5], paired=False) == (0.5, None)


@pytest.mark.parametrize(
    ("forgotten", "gained"), [(0, 1), (1, 0), (5, 5), (0, 6), (9, 2), (3, 40), (700, 610)]
)
def test_mcnemar_is_the_exact_binomial_probability_of_the_changed_items(forgotten, gained):
    before = [True] * (forgotten + 8) + [False] * (gained + 3)
    after = [False] * forgotten + [True] * 8 + [True] * gained + [False] * 3
    result = mcnemar(before, after)
    assert (result.forgotten, result.gained) == (forgotten, gained)
    changed = forgotten + gained
    tail = sum(math.comb(changed, i) for i in range(min(forgotten, gained) + 1))
    assert result.p == pytest.approx(min(1.0, 2 * tail / 2**changed), rel=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar([True] * 6, [False] * 6).p == pytest.approx(2 / 64)
    assert mcnemar([True] * 9 + [False] * 2, [False] * 9 + [True] * 2).p == pytest.approx(134 / 2048)
    assert mcnemar([True, False], [True, False]).p == 1.0
    assert mcnemar([], []).p == 1.0


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_interval(correct, n, low, high):
    """Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(correct, n) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (20, 20), (1, 1), (97, 200), (3, 507)])
@pytest.mark.parametrize(("level", "z"), [(0.9, 1.6448536269514722), (0.95, 1.959963984540054)])
def test_wilson_bounds_are_the_roots_of_the_score_equation(correct, n, level, z):
    low, high = wilson(correct, n, level)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    for p in (low, high):
        assert (correct / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-12)


@pytest.mark.parametrize(
    ("both", "lost", "gained", "neither", "low", "high"),
    [(36, 2, 12, 0, 0.0569, 0.3404), (1, 1, 97, 1, 0.8737, 0.9850), (0, 0, 12, 0, 0.6571, 1.0)],
)
def test_paired_accuracies_have_the_published_interval(both, lost, gained, neither, low, high):
    """Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10."""
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    n = both + lost + gained + neither
    assert paired_difference(before, after) == pytest.approx(((gained - lost) / n, low, high), abs=5.1e-5)
    difference, lower, upper = paired_difference(after, before)
    assert (-difference, -upper, -lower) == pytest.approx(paired_difference(before, after)), "antisymmetric"


def test_paired_difference_without_changes_has_a_width():
    difference, low, high = paired_difference([True] * 9 + [False], [True] * 9 + [False])
    assert difference == 0
    assert low < 0 < high


def test_bootstrap_covers_the_mean_of_independent_values_as_often_as_it_says():
    """100 samples of 40 values: 95 intervals are expected to cover the mean, with standard deviation 2.2."""
    samples = np.random.default_rng(0).exponential(size=(100, 40))
    intervals = [bootstrap_interval(sample.tolist()) for sample in samples]
    assert 86 <= sum(low < 1 < high for low, high in intervals) <= 100
    assert intervals == [bootstrap_interval(sample.tolist()) for sample in samples], "reproducible"
    assert bootstrap_interval([0.5]) is None
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (6, 0), (6, 2), (6, 6), (7, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        expected = sum(min(subset) < c for subset in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples():
    exact = 1 - math.comb(9900, 128) / math.comb(10000, 128)
    assert pass_at_k(10000, 100, 128) == pytest.approx(exact, rel=1e-10)
    assert pass_at_k(200, 7, 1) == pytest.approx(7 / 200)


def test_mean_pass_at_k():
    verdicts = [[True, False], [False, False], [True, True, False]]
    assert mean_pass_at_k(verdicts, 1) == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert mean_pass_at_k(verdicts, 2) == pytest.approx((1 + 0 + 1) / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "values is empty"),
        (lambda: mean_interval([1.0, 2.0], 95), "level=95"),
        (lambda: difference_interval([1.0, 2.0], [1.0]), "2 and 1 seeds"),
        (lambda: difference_interval([1.0, 2.0], [1.0, 3.0], paired=False, level=95), "level=95"),
        (lambda: mcnemar([True], []), "1 and 0 items"),
        (lambda: paired_difference([True], []), "1 and 0 items"),
        (lambda: paired_difference([], []), "0 correct out of 0"),
        (lambda: bootstrap_interval([]), "values is empty"),
        (lambda: bootstrap_interval([1.0, 2.0], 95), "level=95"),
        (lambda: wilson(3, 2), "3 correct out of 2"),
        (lambda: wilson(0, 0), "0 correct out of 0"),
        (lambda: pass_at_k(4, 1, 8), "pass@8 cannot be estimated from 4 samples"),
        (lambda: pass_at_k(4, 1, 0), "pass@0"),
        (lambda: pass_at_k(4, 5, 1), "5 correct out of 4"),
        (lambda: mean_pass_at_k([], 1), "verdicts is empty"),
        (lambda: t_quantile(0.95, 0), "degrees=0"),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(SdftError, match=message):
        call()

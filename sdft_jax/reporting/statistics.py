"""Confidence intervals over seeds, paired tests over items, and pass@k."""

from __future__ import annotations

import collections
import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from sdft_jax.errors import SdftError

with epy.lazy_imports():  # takes a second, and most processes of a run compute no statistics
    from scipy import stats


class Estimate(NamedTuple):
    """A mean and its confidence interval, mean ± half."""

    mean: float
    half: float | None
    """Half-width of the interval; None if there are too few values to estimate it."""


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Changes in the verdicts on the same items, and McNemar's exact test."""

    forgotten: int
    """The number of items that were correct before and are wrong after."""
    gained: int
    """The number of items that were wrong before and are correct after."""
    p: float
    """Two-sided p-value under the hypothesis that both changes are equally likely; 1 if no item changed."""


def mean_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean of independent runs and the half-width of its Student's t interval.

    Args:
        values: one number per seed, in any unit; the estimate has the same unit.
        level: confidence level of the interval, if the values are normally distributed.

    Returns:
        (mean, half-width); the half-width is None if there is only one value.

    Raises:
        SdftError: `values` is empty, or `level` is not between 0 and 1.
    """
    array = _floats(values, "values")
    half = t_quantile(level, array.size - 1) * float(stats.sem(array)) if array.size > 1 else None
    return Estimate(float(array.mean()), half)


def difference_interval(
    a: Sequence[float], b: Sequence[float], paired: bool = True, level: float = 0.95
) -> Estimate:
    """Return the mean of a - b and the half-width of its t interval.

    Args:
        a, b: one number per seed. If `paired`, numbers at the same position have the same seed.
        paired: if False, the lists are independent samples with unequal variances (Welch's t interval).
        level: confidence level of the interval, as in `mean_interval`.

    Returns:
        (mean difference, half-width); the half-width is None if a list has only one value, or if the lists
        are not paired and both are constant.

    Raises:
        SdftError: a list is empty, paired lists differ in length, or `level` is not between 0 and 1.
    """
    first, second = _floats(a, "a"), _floats(b, "b")
    if paired:
        _check_pairs(first.size, second.size, "seeds", "Pass both values for each seed, or set paired=False")
        return mean_interval((first - second).tolist(), level)
    mean = float(first.mean() - second.mean())
    if min(first.size, second.size) < 2 or not (first.var() or second.var()):
        return Estimate(mean, None)
    _check_level(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns if one of the lists is constant
        low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(level)
    return Estimate(mean, float(high - low) / 2)


def t_quantile(level: float, degrees: float) -> float:
    """Return the t for which Student's t distribution has probability `level` in [-t, t].

    Args:
        level: probability, between 0 and 1 (both excluded).
        degrees: degrees of freedom, at least 1; need not be an integer.

    Raises:
        SdftError: `level` or `degrees` is out of range.
    """
    _check_level(level)
    if degrees < 1:
        raise SdftError(f"degrees={degrees}: a t distribution needs at least 1. Pass two or more values.")
    return float(stats.t.ppf((1 + level) / 2, degrees))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Count the items that were forgotten and gained, and apply McNemar's exact test.

    Args:
        before, after: verdicts (True if correct) on the same items, in the same order.

    Raises:
        SdftError: the lists differ in length.
    """
    _check_pairs(len(before), len(after), "items", "Pass the verdicts on the same items")
    forgotten = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    gained = sum(bool(a) and not b for b, a in zip(before, after, strict=True))
    changed = forgotten + gained
    return McNemar(forgotten, gained, float(stats.binomtest(forgotten, changed).pvalue) if changed else 1.0)


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high) of Wilson's score interval for an accuracy of `correct` out of `n` items.

    Raises:
        SdftError: `n` is not positive, `correct` is not in 0..n, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if n < 1 or not 0 <= correct <= n:
        raise SdftError(f"{correct} correct out of {n} items: 0 <= correct <= n and n >= 1 are required.")
    low, high = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def paired_difference(
    before: Sequence[bool], after: Sequence[bool], level: float = 0.95
) -> tuple[float, float, float]:
    """Return (difference, low, high) of the accuracies after minus before on the same items.

    The interval is method 10 of Newcombe (1998, Statistics in Medicine 17, 2635-2650): it combines Wilson's
    intervals of both accuracies with the correlation of the verdicts, and has a width also if no item
    changed.

    Raises:
        SdftError: the lists differ in length or are empty, or `level` is not between 0 and 1.
    """
    _check_pairs(len(before), len(after), "items", "Pass the verdicts on the same items")
    counts = collections.Counter(zip(map(bool, before), map(bool, after), strict=True))
    both, lost, gained, neither = (counts[b, a] for b in (True, False) for a in (True, False))
    n = len(before)
    (low_b, high_b), (low_a, high_a) = (wilson(both + x, n, level) for x in (lost, gained))
    p_b, p_a = (both + lost) / n, (both + gained) / n
    association = float(both * neither - lost * gained)
    if association > 0:
        association = max(association - n / 2, 0.0)  # a continuity correction
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    phi = association / math.sqrt(margins) if margins else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = p_a - p_b
    return (
        difference,
        difference - distance(p_a - low_a, high_b - p_b),
        difference + distance(high_a - p_a, p_b - low_b),
    )


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a mean, the same at every call; None for a single value.

    Args:
        values: one number per independent unit, such as pass@k of each row.
        level: confidence level.

    Raises:
        SdftError: `values` is empty, or `level` is not between 0 and 1.
    """
    array = _floats(values, "values")
    _check_level(level)
    if array.size < 2:
        return None
    low, high = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=level,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(low), float(high)


_RESAMPLES = 2000
"""Number of resamples of the bootstrap."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n samples, c of them correct.

    The estimate is 1 - C(n - c, k) / C(n, k), computed as a product that does not overflow or cancel
    (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        SdftError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise SdftError(f"{c} correct out of {n} samples: 0 <= c <= n is required.")
    if not 1 <= k <= n:
        raise SdftError(f"pass@{k} cannot be estimated from {n} samples per prompt: 1 <= k <= n is required.")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(verdicts: Sequence[Sequence[bool]], k: int) -> float:
    """Return the mean of `pass_at_k` over prompts.

    Args:
        verdicts: for each prompt, the verdict on each sample (True if correct). The number of samples may
            differ between prompts.
        k: at most the number of samples of each prompt.

    Raises:
        SdftError: there are no prompts, or a prompt has fewer than k samples.
    """
    return float(_floats([pass_at_k(len(v), sum(map(bool, v)), k) for v in verdicts], "verdicts").mean())


def _floats(values: Sequence[float], name: str) -> np.ndarray:
    if not len(values):
        raise SdftError(f"{name} is empty: the mean needs at least one value.")
    return np.asarray(values, np.float64)


def _check_pairs(a: int, b: int, kind: str, remedy: str) -> None:
    if a != b:
        raise SdftError(f"{a} and {b} {kind} cannot be paired. {remedy}.")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise SdftError(f"level={level}: the level must be between 0 and 1, for example 0.95.")

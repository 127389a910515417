"""Uncertainty of what is measured: intervals over seeds, paired tests over items, pass@k."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sdft_jax.errors import SdftError

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


class Estimate(NamedTuple):
    """A mean and how far off it may be."""

    mean: float
    half: float | None
    """Half the width of the interval around it; None where the values cannot tell, as one value cannot."""


@dataclasses.dataclass(frozen=True)
class McNemar:
    """The same items answered before and after."""

    forgotten: int
    """Right before, wrong after."""
    gained: int
    """Wrong before, right after."""
    p: float
    """Exact two-sided probability of a split at least this uneven, were both as likely; 1 if none changed."""


def mean_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and Student's t interval of independent runs, one value per seed.

    Args:
        values: one number per seed, any unit; the estimate is in the same.
        level: probability that such an interval covers the true mean, were the seeds' values normal.

    Returns:
        (mean, half-width); the half-width is None for one value.

    Raises:
        SdftError: no value.
    """
    array = _floats(values, "values")
    mean, half = float(array.mean()), None
    if array.size > 1:
        half = t_quantile(level, array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Estimate(mean, half)


def difference_interval(
    a: Sequence[float], b: Sequence[float], paired: bool = True, level: float = 0.95
) -> Estimate:
    """Mean of a - b and its t interval.

    Args:
        a, b: one number per seed; where `paired`, those of one position share a seed.
        paired: False takes the two lists for independent ones, of unequal variances (Welch).
        level: as in `mean_interval`.

    Returns:
        (mean difference, half-width); the half-width is None where a list has one value, and without
        pairs also where neither list varies.

    Raises:
        SdftError: a list is empty, or paired lists differ in length.
    """
    first, second = _floats(a, "a"), _floats(b, "b")
    if paired:
        _check_pairs(first.size, second.size, "seeds", "give both for every seed, or use paired=False")
        return mean_interval((first - second).tolist(), level)
    mean = float(first.mean() - second.mean())
    if min(first.size, second.size) < 2:
        return Estimate(mean, None)
    squares = [float(array.var(ddof=1)) / array.size for array in (first, second)]
    if not sum(squares):
        return Estimate(mean, None)
    degrees = sum(squares) ** 2 / sum(
        square**2 / (array.size - 1) for square, array in zip(squares, (first, second), strict=True)
    )
    return Estimate(mean, t_quantile(level, degrees) * math.sqrt(sum(squares)))


def t_quantile(level: float, degrees: float) -> float:
    """The t for which Student's distribution has probability `level` in [-t, t].

    With t = sqrt(degrees) tan(angle) the density is proportional to cos(angle)^(degrees - 1): a smooth
    integrand on a finite range, so Gauss-Legendre quadrature and bisection give ten digits, down to six at
    level 0.9999 with 10^6 degrees.

    Args:
        level: between 0 and 1, both excluded.
        degrees: of freedom, at least 1; need not be whole.

    Raises:
        SdftError: `level` or `degrees` out of range.
    """
    _check_level(level)
    if degrees < 1:
        raise SdftError(f"degrees={degrees}: a t distribution needs at least 1: give two values or more.")
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(math.pi)
    norm = 2 * math.exp(log_norm)
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        nodes = np.cos(middle / 2 * (1 + _NODES)) ** (degrees - 1)
        if norm * middle / 2 * float(_WEIGHTS @ nodes) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Items forgotten and gained, and McNemar's exact test of whether one outweighs the other.

    Args:
        before, after: verdicts on the same items, in the same order.

    Raises:
        SdftError: the lists differ in length.
    """
    _check_pairs(len(before), len(after), "items", "give the verdicts on the same items")
    forgotten = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    gained = sum(bool(a) and not b for b, a in zip(before, after, strict=True))
    changed = forgotten + gained
    tail = sum(math.comb(changed, i) for i in range(min(forgotten, gained) + 1))
    # Whole numbers until the one division: exact for any number of items.
    return McNemar(forgotten, gained, min(1.0, 2 * tail / 2**changed))


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of Wilson's score interval for one accuracy, `correct` right out of `n` items.

    Raises:
        SdftError: `correct` is not in 0..n, `n` is not positive, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if n < 1 or not 0 <= correct <= n:
        raise SdftError(f"{correct} right out of {n}: give 0 <= correct <= n and at least one item.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return (centre - half if correct else 0.0), (centre + half if correct < n else 1.0)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that one of k samples is right, without bias from n samples of which c are.

    1 - C(n - c, k) / C(n, k), as a product that neither overflows nor cancels (Chen et al. 2021, arXiv
    2107.03374).

    Raises:
        SdftError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise SdftError(f"{c} right out of {n} samples: give 0 <= c <= n.")
    if not 1 <= k <= n:
        raise SdftError(f"pass@{k} of {n} samples a prompt: draw at least {k} samples, and k is at least 1.")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(verdicts: Sequence[Sequence[bool]], k: int) -> float:
    """Mean of `pass_at_k` over prompts.

    Args:
        verdicts: for each prompt, which of its samples are right; prompts may differ in samples.
        k: samples that may be tried, at most those of each prompt.

    Raises:
        SdftError: no prompt, or one with fewer than k samples.
    """
    return float(_floats([pass_at_k(len(v), sum(map(bool, v)), k) for v in verdicts], "verdicts").mean())


def _floats(values: Sequence[float], name: str) -> np.ndarray:
    if not len(values):
        raise SdftError(f"{name} is empty: there is nothing to take the mean of; give at least one value.")
    return np.asarray(values, np.float64)


def _check_pairs(a: int, b: int, what: str, remedy: str) -> None:
    if a != b:
        raise SdftError(f"{a} and {b} {what} cannot be paired: {remedy}.")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise SdftError(f"level={level}: an interval's level lies between 0 and 1, for example 0.95.")

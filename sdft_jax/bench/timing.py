"""Paired timing: the two sides take turns, so that a machine that drifts drifts for both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def paired(first: Callable[[], Any], second: Callable[[], Any], repeats: int = 5) -> tuple[list[float], ...]:
    """Seconds of each call, in turns, after one uncounted call of both."""
    first(), second()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, call in zip(seconds, (first, second), strict=True):
            begun = time.perf_counter()
            call()
            side.append(time.perf_counter() - begun)
    return seconds


def ratio(first: Sequence[float], second: Sequence[float]) -> str:
    """Median of second / first pair by pair, with its range."""
    each = [b / a for a, b in zip(first, second, strict=True)]
    return f"{statistics.median(each):.2f}x ({min(each):.2f}-{max(each):.2f})"

"""Timing in turns: every side runs once a round, so that a machine that drifts drifts for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, show: Callable[[str], None] = lambda side: None
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one uncounted call of each.

    Args:
        calls: by side; a call returns when its work is done.
        rounds: counted ones.
        show: told of the side that runs next.
    """
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for counted in (False, *[True] * rounds):
        for side, call in calls.items():
            show(side)
            begun = time.perf_counter()
            call()
            if counted:
                seconds[side].append(time.perf_counter() - begun)
    return seconds


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str]:
    """Median of theirs / ours round by round, and that with its range as it is to be read."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(each)
    return middle, f"{middle:.2f} ({min(each):.2f}-{max(each):.2f})"

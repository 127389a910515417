"""Interleaved timing: each side runs once per round, so drift in the machine's speed affects all sides."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TURN = 0.5
"""The minimum duration of a measurement, in seconds. Shorter calls are repeated, because a single call runs
with cold caches and idle threads."""


def turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, report: Callable[[str], None] = lambda side: None
) -> dict[str, list[float]]:
    """Measure the seconds per call of each side in each round, after uncounted warm-up calls.

    Args:
        calls: side -> function to measure, which returns when its work is done.
        rounds: the number of measured rounds.
        report: called with the name of the side that runs next.
    """
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    repeats = {}
    for side, call in calls.items():
        report(side)
        call()  # compiles
        repeats[side] = math.ceil(TURN / max(_timed(call, 1), 1e-6))
    for _ in range(rounds):
        for side, call in calls.items():
            report(side)
            seconds[side].append(_timed(call, repeats[side]))
    return seconds


def _timed(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def ratios(seconds: Sequence[float], peer_seconds: Sequence[float]) -> tuple[float, str]:
    """Return the median of `peer_seconds` / `seconds` over the rounds, and a text with median and range."""
    quotients = [peer / own for own, peer in zip(seconds, peer_seconds, strict=True)]
    median = statistics.median(quotients)
    return median, f"{median:.2f} ({min(quotients):.2f}-{max(quotients):.2f})"

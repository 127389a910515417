"""Timing in turns: every side runs once a round, so that a machine that drifts drifts for all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TURN = 0.5
"""Least seconds of a turn: a shorter call is repeated, as one alone finds caches cold and threads asleep."""


def turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, show: Callable[[str], None] = lambda side: None
) -> dict[str, list[float]]:
    """Seconds of a call of each side in each round, after calls of each that are not counted.

    Args:
        calls: by side; a call returns when its work is done.
        rounds: counted ones.
        show: told of the side that runs next.
    """
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    repeats = {}
    for side, call in calls.items():
        show(side)
        call()  # compiles
        repeats[side] = math.ceil(TURN / max(_timed(call, 1), 1e-6))
    for _ in range(rounds):
        for side, call in calls.items():
            show(side)
            seconds[side].append(_timed(call, repeats[side]))
    return seconds


def _timed(call: Callable[[], Any], repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begun) / repeats


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str]:
    """Median of theirs / ours round by round, and that with its range as it is to be read."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(each)
    return middle, f"{middle:.2f} ({min(each):.2f}-{max(each):.2f})"

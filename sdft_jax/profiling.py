"""A trace of a few steps for XProf or Perfetto; phases appear by their named scopes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from sdft_jax.settings import ProfileConfig

DIRECTORY = "profile"
"""Below the run's; TensorBoard's profile plugin reads it."""


@contextlib.contextmanager
def open_profile(options: ProfileConfig, output: Path) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called before each step; it traces from the first to the last one asked for.

    Every process traces itself. A run that ends or stops in between keeps what it has.
    """
    first, last = options.bounds or (0, 0)
    running = False

    def before(step: int) -> None:
        nonlocal running
        if options.bounds and step == first:
            jax.profiler.start_trace(output / DIRECTORY)
            running = True
        elif running and step > last:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()

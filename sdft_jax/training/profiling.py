"""A trace of a few steps for XProf or Perfetto; phases appear by their named scopes, host work by name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from sdft_jax.config.settings import ProfileConfig

Function = TypeVar("Function", bound=Callable[..., Any])

DIRECTORY = "profile"
"""Below the run's; TensorBoard's profile plugin reads it."""


def traced(name: str) -> Callable[[Function], Function]:
    """A decorator: calls of the function stand in traces under this name."""
    return functools.partial(jax.profiler.annotate_function, name=name)


@contextlib.contextmanager
def open_profile(options: ProfileConfig, output: Path) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called before each step; it traces from the first to the last one asked for.

    Every process traces itself. A run that ends or stops in between keeps what it has.
    """
    first, last = options.bounds or (0, 0)
    running = False
    quiet = jax.profiler.ProfileOptions()
    quiet.python_tracer_level = 0  # each Python call would slow down the host that the trace is to show

    def before(step: int) -> None:
        nonlocal running
        if options.bounds and step == first:
            jax.profiler.start_trace(output / DIRECTORY, profiler_options=quiet)
            running = True
        elif running and step > last:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()

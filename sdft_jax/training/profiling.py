"""A trace of a few steps for XProf or Perfetto, with named scopes for phases and named host work."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from sdft_jax.config.settings import ProfileConfig

Function = TypeVar("Function", bound=Callable[..., Any])
Tolerating = Callable[[object], contextlib.AbstractContextManager[None]]
"""(name of a file) -> a context in which a failure to write it does not end the run."""


def traced(name: str) -> Callable[[Function], Function]:
    """Return a decorator that names the calls of a function in traces."""
    return functools.partial(jax.profiler.annotate_function, name=name)


@contextlib.contextmanager
def open_profile(
    options: ProfileConfig, directory: Path, tolerating: Tolerating = lambda name: contextlib.nullcontext()
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call before each step; it traces the configured steps into `directory`.

    Each process writes its own trace. A run that ends between these steps keeps the trace so far.

    Args:
        options: the steps.
        directory: the directory of the trace.
        tolerating: such as `Reporter.tolerating`, for a trace that cannot be written.
    """
    first, last = options.bounds or (0, 0)
    running = False
    quiet = jax.profiler.ProfileOptions()
    quiet.python_tracer_level = 0  # tracing every Python call would slow the host down

    def before(step: int) -> None:
        nonlocal running
        if options.bounds and step == first:
            with tolerating(directory):
                # before JAX, which starts no trace after a failure at the end of one
                directory.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(directory, profiler_options=quiet)
                running = True
        elif running and step > last:
            running = False
            with tolerating(directory):
                jax.profiler.stop_trace()

    try:
        yield before
    finally:
        if running:
            with tolerating(directory):
                jax.profiler.stop_trace()

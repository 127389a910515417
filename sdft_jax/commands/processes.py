"""Starting and ending a command that runs in one or several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sdft_jax.config import Config, to_dict
from sdft_jax.training.compile_cache import enable_compile_cache
from sdft_jax.training.preemption import Interrupted, watch_maintenance
from sdft_jax.training.processes import initialize, require_agreement

SIGNALLED = 128
"""The exit code after a signal, less the number of the signal, as shells have it."""


def join_processes(config: Config) -> None:
    """Join the other processes of this run, if there are any.

    Raises:
        SdftError: the processes differ in configuration, code or jax version.
    """
    initialize()
    require_agreement(to_dict(config))


def run_until_terminated(run: Callable[[Config], object], config: Config) -> int:
    """Run a command that saves its state on a signal, and return the exit code."""
    join_processes(config)
    watch_maintenance()
    enable_compile_cache()
    try:
        run(config)
    except Interrupted as interruption:
        print(f"sdft: {interruption}", file=sys.stderr)
        return SIGNALLED + interruption.by
    return 0

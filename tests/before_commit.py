"""A function that Orbax calls just before it commits a checkpoint."""

import functools
from collections.abc import Callable

import orbax.checkpoint as ocp


def before_commit(callback: Callable[[], None]) -> None:
    """Let the managers that are opened from now on call `callback` before each commit."""
    ocp.CheckpointManagerOptions = functools.partial(
        ocp.CheckpointManagerOptions, async_options=ocp.AsyncOptions(post_finalization_callback=callback)
    )

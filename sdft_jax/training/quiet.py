"""Messages of libraries that repeat an error which this library reports itself."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

_REPEATED = (
    "_SignalingThread.run() raised an exception",  # Orbax, of a save that fails
    "in background save thread",
    "Save Finalize thread",
    "was never retrieved",  # asyncio, of the other writes of that save
    "profiling requires jaxlib",  # grain, of a profiler that it cannot use with an older jaxlib
    "mkdir -p failed for path",  # matplotlib, of a home directory that cannot be written
    "created a temporary cache directory",
)


def quiet_libraries() -> None:
    """Do not print tracebacks of background threads whose error the main thread raises.

    A failed save has one message of this library, instead of up to 60 tracebacks of Orbax and asyncio.
    """
    if _is_new in logging.getLogger("absl").filters:
        return
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).addFilter(_is_new)
    unraisable, in_thread = sys.unraisablehook, threading.excepthook

    def hook(arguments: Any) -> None:
        if "Event loop is closed" not in str(arguments.exc_value):
            unraisable(arguments)

    def thread_hook(arguments: Any) -> None:
        if type(arguments.thread).__name__ != "_SignalingThread":
            in_thread(arguments)

    sys.unraisablehook, threading.excepthook = hook, thread_hook


def _is_new(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _REPEATED)

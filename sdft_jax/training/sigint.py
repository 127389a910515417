"""SIGINT (Ctrl-C) ends a command at once, also while modules are imported and C++ code compiles."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

SAVES = threading.Event()
"""Set while a run saves its state on SIGINT."""


def end_at_once_on_sigint() -> None:
    """Make Ctrl-C end this process within moments, also while C++ code compiles, without a traceback.

    Python's own handler waits until the main thread executes bytecode again. A thread reads the number of
    each signal from a pipe instead. A first SIGINT is ignored while `termination_requests` handles it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _wait_for_the_end)
    threading.Thread(target=_end_on_sigint, args=(reader,), daemon=True, name="sigint").start()


def _wait_for_the_end(number: int, frame: Any) -> None:
    """Do nothing: the thread ends the process."""


def _end_on_sigint(reader: int) -> None:
    saving = False
    while number := os.read(reader, 1):
        if number[0] != signal.SIGINT:
            continue
        saving, again = SAVES.is_set(), saving
        if again or not saving:
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h")  # a live progress bar hides the cursor
                sys.stdout.flush()
            print("sdft: stopped by SIGINT.", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGINT)

"""Output streams that never end a run: a reader that goes away, a full disk, or a narrow encoding."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

from rich.console import Console


class LastingStream:
    """A text stream that is dropped, without an exception, when its destination can no longer be written to.

    The destination fails if the process at the other end of a pipe ends, a connection closes, or a disk is
    full. Characters that its encoding does not have are written as escapes, such as `\\u2013`.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._lost = False
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write the text, unless the destination is lost; return its length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, unless the destination is lost."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the underlying stream, such as its encoding."""
        return getattr(self._stream, name)

    def _attempt(self, work: Any) -> None:
        if self._lost:
            return
        try:
            work()
        except BlockingIOError:  # a terminal that does not wait, and is full for a moment
            return
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._lost = True
            with contextlib.suppress(OSError, ValueError):
                # not closed: another file would get its number, and the logs of C++ libraries
                _redirect_to_null(self._stream.fileno())
                self._stream.flush()


def make_console(**options: Any) -> Console:
    """Return a rich Console on standard output, whose loss does not end the process.

    Without a terminal, tables are as wide as their content, unless COLUMNS is set.
    """
    if sys.stdout is None:
        return Console(quiet=True, **options)
    console = Console(file=_lasting(sys.stdout), **options)
    if not (console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ):
        console.width = 240
    return console


def keep_standard_streams() -> None:
    """Make standard output and standard error of this process lasting; open them if they are closed."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _redirect_to_null(number)
            stream = os.fdopen(number, "w", encoding="utf-8")
        setattr(sys, name, _lasting(stream))


def _lasting(stream: Any) -> Any:
    return stream if isinstance(stream, LastingStream) else LastingStream(stream)


def _redirect_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    if null != descriptor:
        os.close(null)

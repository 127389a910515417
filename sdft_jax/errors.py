"""The exception for mistakes that a user can fix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

LONGEST = 2000
"""Maximum length of a sentence, in characters; the middle of a longer one is left out."""


class SdftError(Exception):
    """A user's mistake, in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2; as an exception it reaches
    Python callers unchanged. A sentence may quote what a file contains: it is one line of bounded length
    without control characters, whatever that is.

    Args:
        sentence: the sentence.
        details: further lines.
    """

    def __init__(self, sentence: str, *details: str):
        super().__init__(_one_line(sentence), *details)

    def __str__(self) -> str:
        return "\n".join(self.args)


def _one_line(text: str) -> str:
    """Return a text with escapes for control characters, and without its middle if it is too long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message without its final period, or the exception's type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def explained(name: str) -> Callable[[Any], Any]:
    """Return a decorator for a pydantic dataclass: wrong values raise SdftError in Python, too.

    Args:
        name: the key of the section that the class describes; empty for the whole configuration.
    """

    def decorate(cls: Any) -> Any:
        initialize = cls.__init__

        @functools.wraps(initialize)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                initialize(self, *args, **values)
            except ValidationError as error:
                raise SdftError(explanation(error, name)) from None

        cls.__init__ = __init__
        return cls

    return decorate


def explanation(error: ValidationError, section: str = "") -> str:
    """Return the first fault that pydantic found, in one sentence: the key, its value and the rule."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in (section, *first["loc"]) if part != "")
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"]
    if first["type"] == "tuple_type":
        message = f"give a list, such as [{first['input']}]"
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}{more}."

"""Scorer of rules: each row names the checks that its answer must pass, and none of them needs a model.

The answer of a row is a check or a list of checks, each written as `name` or `name: argument`:

| check | an answer passes if it |
| --- | --- |
| `starts_with: TEXT`, `ends_with: TEXT` | starts or ends with the text |
| `contains: TEXT`, `excludes: TEXT` | contains the text, or does not, in any case of letters |
| `matches: PATTERN` | contains a match of the regular expression |
| `max_words: N`, `min_words: N` | has at most, or at least, N words between whitespace |
| `max_lines: N` | has at most N lines that are not empty |
| `json` | is a JSON value and nothing else |
| `json_keys: A, B` | is a JSON object with exactly these keys and nothing else |
| `lowercase`, `uppercase` | has no capital, or no small letters |

Thoughts and surrounding whitespace are not part of an answer. An empty answer is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import without_thoughts


def score(completion: str, example: Example) -> bool:
    """Return True if the completion passes all checks of the row."""
    return detail(completion, example) == "passed"


def detail(completion: str, example: Example) -> str:
    """Return the first check that the completion does not pass; `passed` if it passes all of them.

    An empty answer is `empty`.
    """
    if not _reply(completion):
        return "empty"
    return next(iter(broken(completion, example)), "passed")


def broken(completion: str, example: Example) -> list[str]:
    """Return the checks of the row that the completion does not pass."""
    reply = _reply(completion)
    return [check for check in _checks(example.answer) if not _passes(reply, check)]


def problem(answer: object) -> str | None:
    """Return the problem with a reference answer, or None if it is a check or a list of checks."""
    if not _is_checks(answer):
        return f"it is {answer!r}; give a check such as 'max_words: 40', or a list of checks."
    for check in _checks(answer):
        name, argument = _parts(check)
        if name not in CHECKS:
            return f"there is no check {name!r}; use one of {', '.join(CHECKS)}."
        takes, valid = ARGUMENTS.get(name, ("no argument", lambda text: not text))
        if not valid(argument):
            return f"the check {check!r} needs {takes}; write it as in sdft_jax/evaluation/scorers/rule.py."
    return None


def _reply(completion: str) -> str:
    return without_thoughts(completion).strip()


def _is_checks(answer: Any) -> bool:
    if isinstance(answer, list):
        return bool(answer) and all(isinstance(check, str) and check.strip() for check in answer)
    return isinstance(answer, str) and bool(answer.strip())


def _checks(answer: Any) -> Sequence[str]:
    return [answer] if isinstance(answer, str) else answer


def _parts(check: str) -> tuple[str, str]:
    name, _, argument = check.partition(":")
    return name.strip(), argument.strip()


def _passes(reply: str, check: str) -> bool:
    name, argument = _parts(check)
    return CHECKS[name](reply, argument)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return bool(text)


def _json(reply: str) -> Any:
    """Return the JSON value, or None if the reply is not one."""
    try:
        return json.loads(reply)
    except (ValueError, RecursionError):
        return None


def _keys(argument: str) -> set[str]:
    return {key.strip() for key in argument.split(",")}


def _has_keys(reply: str, argument: str) -> bool:
    value = _json(reply)
    return isinstance(value, dict) and set(value) == _keys(argument)


def _lines(reply: str) -> int:
    return sum(bool(line.strip()) for line in reply.splitlines())


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "starts_with": lambda reply, text: reply.startswith(text),
    "ends_with": lambda reply, text: reply.endswith(text),
    "contains": lambda reply, text: text.casefold() in reply.casefold(),
    "excludes": lambda reply, text: text.casefold() not in reply.casefold(),
    "matches": lambda reply, pattern: re.search(pattern, reply) is not None,
    "max_words": lambda reply, number: len(reply.split()) <= int(number),
    "min_words": lambda reply, number: len(reply.split()) >= int(number),
    "max_lines": lambda reply, number: _lines(reply) <= int(number),
    "json": lambda reply, _: reply == "null" or _json(reply) is not None,
    "json_keys": _has_keys,
    "lowercase": lambda reply, _: reply == reply.lower(),
    "uppercase": lambda reply, _: reply == reply.upper(),
}
"""Name -> a function (reply, argument) that returns True if the reply passes."""

_TEXT = ("a text", bool)
_NUMBER = ("a whole number", _is_number)
ARGUMENTS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "starts_with": _TEXT,
    "ends_with": _TEXT,
    "contains": _TEXT,
    "excludes": _TEXT,
    "matches": ("a regular expression", _is_pattern),
    "max_words": _NUMBER,
    "min_words": _NUMBER,
    "max_lines": _NUMBER,
    "json_keys": ("keys, with commas between them", lambda text: all(_keys(text))),
}
"""Check -> the description and the validation of its argument; all other checks have none."""

"""Fields of raw rows: each is read with an error that names the file, the line and the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdft_jax.errors import SdftError

Raw = Mapping[str, Any]
"""One row of a data set as it is released."""
Row = dict[str, Any]
"""One converted row: `prompt` (chat messages), and `demonstration`, `context` and `answer` if it has them."""


def text_of(raw: Raw, name: str, place: str) -> str:
    """Return a text, or a list of texts joined by newlines, that is not empty."""
    value = _present(raw, name, place)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if not isinstance(value, str) or not value.strip():
        raise invalid(place, name, f"is {_short(value)}", "give a text that is not empty")
    return value


def messages_of(raw: Raw, name: str, place: str) -> list[dict[str, str]]:
    """Return chat messages with a role and a text each, of which the last is the user's; a text is one."""
    value = _present(raw, name, place)
    if isinstance(value, str):
        return user_prompt(text_of(raw, name, place))
    if not isinstance(value, list) or not value or not all(_is_message(turn) for turn in value):
        raise invalid(
            place, name, f"is {_short(value)}", 'give a text, or chat messages {"role": ..., "content": ...}'
        )
    if value[-1]["role"] != "user" or not value[-1]["content"].strip():
        raise invalid(place, name, "does not end with a user message", "end the prompt with one")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def letter_of(answer: str, letters: Any, place: str, name: str) -> str:
    """Return an answer that is one of these letters."""
    letter = answer.strip()
    if letter not in list(letters):
        raise invalid(
            place, name, f"has the answer {letter!r}", f"give one of the options, {', '.join(letters)}"
        )
    return letter


def tag_of(text: str) -> str | None:
    """Return the content of the last <answer> tag, stripped; None without a closed tag."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None


def user_prompt(text: str, system: str | None = None) -> list[dict[str, str]]:
    """Return the chat messages of one question, with the system prompt before it if there is one."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def invalid(place: str, name: str, problem: str, remedy: str) -> SdftError:
    """Return the exception for a field of a raw row."""
    return SdftError(f"{place}: field {name!r} {problem}: {remedy}, or leave such rows out with --skip.")


def unknown(raw: Raw, place: str, expected: str) -> SdftError:
    """Return the exception for a raw row in none of the formats that a task reads."""
    return SdftError(
        f"{place} has the fields {', '.join(map(str, raw))}: give {expected}, or leave such rows out with "
        "--skip."
    )


def _present(raw: Raw, name: str, place: str) -> Any:
    if raw.get(name) is None:
        fields = ", ".join(map(str, raw))
        raise SdftError(
            f"{place}: field {name!r} is missing (found: {fields}): add it, or leave such rows out with "
            "--skip."
        )
    return raw[name]


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""Texts and chat messages of rows, in the form that chat templates read.

Logs of OpenAI-compatible services differ from that form: the arguments of a tool call are a string, the
content beside a call is null, and a text may be a list of parts. All of them are converted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdft_jax.data.examples import Message
from sdft_jax.data.media import refuse_media
from sdft_jax.errors import SdftError


def read_text(value: Any, name: str, place: str) -> str:
    """Return a string, or a list of strings joined by newlines. Raises SdftError if it is neither, or
    empty.
    """
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise SdftError(
            f"{place}: field {name!r} has type {kind_of(value)}: "
            "give a string, or a list of strings, which are joined by newlines."
        )
    if not value.strip():
        raise SdftError(f"{place}: field {name!r} is empty: fill it, or remove the row.")
    return value


def read_messages(value: Any, name: str, place: str) -> list[Message]:
    """Return chat messages without null values; each has a role and a text as its content.

    The arguments of tool calls are objects. Beside tool calls, a missing content becomes an empty one.

    Args:
        value: the value of the field: a list of messages, or a record of lists.
        name: the name of the field.
        place: the source and the row, for error messages.
    """
    if isinstance(value, Mapping) and isinstance(value.get("role"), list):
        # TFDS and older datasets store a sequence of records as a record of sequences.
        columns = list(value.values())
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise SdftError(
                f"{place}: the parts of field {name!r} are lists of unequal length: give each message all "
                "parts."
            )
        value = as_records(value)
    if not isinstance(value, list):
        raise SdftError(
            f"{place}: field {name!r} has type {kind_of(value)}: give a string or a list of chat messages."
        )
    return [_message(turn, number, name, place) for number, turn in enumerate(value)]


def as_records(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return a record of lists, of equal length, as a list of records."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def tool_calls(message: Message) -> list[dict[str, Any]]:
    """Return the tool calls of a message from `read_messages`, as {"name": ..., "arguments": {...}}."""
    calls = (call["function"] for call in message.get("tool_calls", ()))
    return [{"name": call["name"], "arguments": call["arguments"]} for call in calls]


def kind_of(value: Any) -> str:
    """Return the type of a value, and the types of its items if it is a list, for error messages."""
    item_types = {type(item).__name__ for item in value} if isinstance(value, list) else set()
    return type(value).__name__ + (f" of {' and '.join(sorted(item_types))}" if item_types else "")


def _message(turn: Any, number: int, name: str, place: str) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise SdftError(
            f"{place}: message {number} of field {name!r} is not a chat message: write it as "
            '{"role": ..., "content": ...}.'
        )
    # Datasets add the keys of other turns with the value None, which a chat template would print.
    message = {key: item for key, item in turn.items() if item is not None}
    calls = message.pop("tool_calls", None) or []
    here = f"{place}: message {number} of field {name!r}"
    refuse_media(message, here)
    if not isinstance(calls, list):
        raise SdftError(f"{here} has tool_calls of type {kind_of(calls)}: give a list of calls.")
    content = _content(message.get("content", "" if calls else None), number, name, place)
    return message | {"content": content} | ({"tool_calls": [_call(c, here) for c in calls]} if calls else {})


def _content(content: Any, number: int, name: str, place: str) -> str:
    """Return the text of a content; the texts of a list of parts are joined by newlines."""
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        for part in content:
            if part.get("type") == "text":
                refuse_media(part, f"{place}: message {number} of field {name!r}")
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise SdftError(
                    f"{place}: message {number} of field {name!r} has a part of type {part.get('type')!r}, "
                    "and models are trained on text only: remove the part, or the row."
                )
        return "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise SdftError(
            f"{place}: the content of message {number} of field {name!r} is not a string: give a string."
        )
    return content


def _call(call: Any, here: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object; they may be a JSON string."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise SdftError(
            f'{here} has a tool call without a name: write it as {{"type": "function", "function": '
            '{"name": ..., "arguments": {...}}}.'
        )
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        raise SdftError(
            f"{here} calls {function['name']} with arguments that are not a JSON object: give an object, or "
            "a string with one."
        )
    others = {key: item for key, item in call.items() if item is not None} if "function" in call else {}
    return {"type": "function", **others, "function": {**function, "arguments": dict(arguments)}}

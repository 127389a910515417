"""Scorer of tool calls in the formats of chat templates.

A completion is correct if it makes the calls of the reference, with equal names and arguments, in any order.
With an empty reference it is correct if it makes no call. Two formats are read:

* Hermes's, of Qwen2.5 and Qwen3: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>` for each call;
* Llama's: `{"name": "f", "parameters": {...}}` as the whole reply, or several, in a list or separated by `;`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import without_thoughts

_DECODER = json.JSONDecoder()
_OPENING = "<tool_call>"
_ARGUMENTS = ("arguments", "parameters")
"""The names of a call's arguments: Hermes's and Llama's."""


def score(completion: str, example: Example) -> bool:
    """Return True if the completion makes the reference's calls, in any order."""
    calls = read_calls(completion)
    return calls is not None and sorted(map(_canonical, calls)) == sorted(
        map(_canonical, _listed(example.answer))
    )


def problem(answer: object) -> str | None:
    """Return the problem with an answer, or None for a list of {"name": ..., "arguments": {...}}."""
    calls = _listed(answer)
    if isinstance(calls, list) and all(_call(call) is not None for call in calls):
        return None
    return (
        'it is not a list of {"name": name, "arguments": JSON object}; set data.answer to a field with such '
        "a list, or data.messages to a field with traces."
    )


def read_calls(completion: str) -> list[dict[str, Any]] | None:
    """Return the calls of a completion, without its thoughts; None if a call is malformed.

    >>> read_calls('Let me see. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
    [{'name': 'f', 'arguments': {'x': 1}}]
    >>> read_calls('{"name": "f", "parameters": {"x": 1}}')
    [{'name': 'f', 'arguments': {'x': 1}}]
    >>> read_calls("It rains."), read_calls("<tool_call>f(1)</tool_call>")
    ([], None)
    """
    reply = without_thoughts(completion).strip()
    if calls := _bare_calls(reply.removeprefix("<|python_tag|>")):
        return calls
    while _OPENING in reply:
        value, reply = _leading_json(reply.partition(_OPENING)[2])
        if (call := _call(value)) is None:
            return None
        calls.append(call)
    return calls


def _bare_calls(reply: str) -> list[dict[str, Any]]:
    """Return the calls of a reply that consists of JSON; [] if it is a text, or JSON that is no call."""
    calls = []
    while reply:
        value, reply = _leading_json(reply.lstrip("; \n"))
        for one in value if isinstance(value, list) else [value]:
            if (call := _call(one)) is None:
                return []
            calls.append(call)
    return calls


def _listed(answer: object) -> Any:
    """Return an answer; a JSON string is read."""
    if not isinstance(answer, str):
        return answer
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _leading_json(text: str) -> tuple[Any, str]:
    """Return the JSON value at the start of a text, and the rest; (None, text) if it is not valid."""
    text = text.lstrip()
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return value, text[end:]


def _call(value: object) -> dict[str, Any] | None:
    """Return the name and the arguments of a call, in any form of its keys; None if it is no call."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    key = next((key for key in _ARGUMENTS if key in value), None)
    arguments = value[key] if key else None
    if isinstance(arguments, str):
        arguments = _leading_json(arguments)[0]
    return {"name": value["name"], "arguments": dict(arguments)} if isinstance(arguments, Mapping) else None


def _canonical(call: object) -> str:
    """Return a text that two calls share if they are equal: 2.0 equals 2, but true does not equal 1."""
    return json.dumps(_without_fractions(_call(call)), sort_keys=True)


def _without_fractions(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _without_fractions(item) for key, item in value.items()}
    return [_without_fractions(item) for item in value] if isinstance(value, list) else value

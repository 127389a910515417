"""Traces: conversations of which every assistant turn is a demonstration, such as those of agents with tools.

A turn that answers a user message or a tool's result becomes an example: the messages before it are the
prompt. An assistant turn elsewhere, such as a greeting at the start, is part of the prompts of later turns
only, and so is one with `"weight": 0`, as in OpenAI's format of fine-tuning. A call needs no result to be a
demonstration, so that a trace may end in one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdft_jax.data.examples import Message
from sdft_jax.data.messages import kind_of, read_messages, tool_calls
from sdft_jax.errors import SdftError

_UNANSWERED = ("assistant", "system", "developer")
"""The roles of messages to which an assistant turn is no answer."""


def read_trace(value: Any, name: str, place: str) -> list[Message]:
    """Return the messages of a trace: a list, or a JSON string with one.

    Raises:
        SdftError: a message is malformed, or an assistant turn has neither a text nor a tool call.
    """
    messages = read_messages(_parsed(value, name, place), name, place)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and not message["content"].strip() and not tool_calls(message):
            raise SdftError(
                f"{place}: message {number} of field {name!r} is an assistant turn without a text or a tool "
                "call: remove it, or the row."
            )
    return messages


def demonstrated_turns(messages: Sequence[Message], name: str, place: str) -> list[int]:
    """Return the indices of the assistant turns that are demonstrations.

    Raises:
        SdftError: there is none.
    """
    turns = [
        number
        for number, (before, message) in enumerate(itertools.pairwise(messages), 1)
        if message["role"] == "assistant" and before["role"] not in _UNANSWERED and message.get("weight") != 0
    ]
    if not turns:
        raise SdftError(
            f"{place}: field {name!r} has no assistant turn that answers a user message or a tool's result, "
            "with a weight that is not 0: add one, or remove the row."
        )
    return turns


def read_tools(
    value: Any, messages: Sequence[Message], name: str, place: str
) -> tuple[Mapping[str, Any], ...]:
    """Return the JSON schemas of a trace's tools: a list, or a JSON string with one.

    Raises:
        SdftError: a tool is malformed, or messages call tools and there are none.
    """
    tools = _parsed(value, name, place) or []
    if not isinstance(tools, list):
        raise SdftError(
            f"{place}: field {name!r} has type {kind_of(tools)}: give a list of JSON schemas of tools."
        )
    for number, tool in enumerate(tools):
        if not tool_name(tool):
            raise SdftError(
                f"{place}: tool {number} of field {name!r} has no name: write it as "
                '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}.'
            )
    calling = [number for number, message in enumerate(messages) if tool_calls(message)]
    if calling and not tools:
        raise SdftError(
            f"{place}: message {calling[0]} calls a tool, and the row has no tools in field {name!r}: add "
            "their JSON schemas, name another field with data.tools=FIELD, or set data.tools=null if a "
            "message describes them."
        )
    return tuple(tools)


def tool_name(tool: Any) -> str | None:
    """Return the name in the JSON schema of a tool; None if it has none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) and name else None


def _parsed(value: Any, name: str, place: str) -> Any:
    """Return a value, or that of a JSON string: a column of a dataset cannot hold tools of unlike shapes."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise SdftError(
            f"{place}: field {name!r} is a string that is not valid JSON: give a list, or a JSON string with "
            "one."
        ) from None

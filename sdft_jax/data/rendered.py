"""Detection of chat templates that drop or change a part of a conversation.

Templates may change whitespace: many trim texts, and Qwen3's puts line breaks around the thoughts of an
answer. Some print a tool's result as a JSON string. In earlier assistant turns they may drop thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sdft_jax.data.examples import Example, Message
from sdft_jax.data.messages import tool_calls
from sdft_jax.data.thoughts import FIELDS, thoughts_of, without_thoughts
from sdft_jax.data.traces import tool_name
from sdft_jax.errors import SdftError


def require_rendered(text: Any, rendered: str, place: str, name: str, thoughts: bool = False) -> None:
    """Raise SdftError if the chat template changes a text by more than its whitespace.

    Args:
        text: the text, which is a part of a conversation.
        rendered: the text of the conversation.
        place: the source and the row, for the error message.
        name: the name of the part.
        thoughts: True if the whole text is thoughts.
    """
    if isinstance(text, str) and not _contains(_dense(rendered), text):
        remedy = "set data.thoughts=remove, or " if thoughts or without_thoughts(text) != text else ""
        raise SdftError(
            f"{place}: the chat template does not render the {name} as it is, but drops or changes a part of "
            f"it: {remedy}change the row, data.template_kwargs or the chat template."
        )


def require_trace(example: Example, rendered: str) -> None:
    """Raise SdftError if the chat template drops a part of a trace's prompt other than thoughts."""
    dense = _dense(rendered)
    for name, text in _parts(example):
        if not _contains(dense, text):
            raise SdftError(
                f"{example.location}: the chat template does not render {name}: use a model whose chat "
                "template does, or change the row."
            )


def require_turn(reply: Message, turn: str, place: str) -> None:
    """Raise SdftError if the chat template drops thoughts or tool calls of a demonstrated turn."""
    for key in FIELDS:
        require_rendered(reply.get(key), turn, place, f"{key} of the demonstration", thoughts=True)
    for call in tool_calls(reply):
        for text in (call["name"], *call["arguments"]):
            require_rendered(text, turn, place, f"tool call {call['name']} of the demonstration")


def count_lost_thoughts(messages: Sequence[Message], rendered: str) -> int:
    """Return the number of assistant turns of a prompt whose thoughts the chat template drops."""
    turns = [thoughts_of(message) for message in messages if message["role"] == "assistant"]
    dense = _dense(rendered) if any(turns) else ""
    return sum(not all(_contains(dense, thought) for thought in thoughts) for thoughts in turns)


def _parts(example: Example) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each part that a prompt must contain."""
    for tool in example.tools:
        function = tool.get("function", tool)
        yield f"the tool {tool_name(tool)!r}", str(function.get("description") or tool_name(tool))
    messages = () if isinstance(example.prompt, str) else example.prompt
    added = len(messages) - (example.turn or 0)  # a system prompt from a field of its own
    for number, message in enumerate(messages, -added):
        name = f"message {number}" if number >= 0 else "the system prompt"
        if message["role"] != "assistant":
            yield f"{name} (role {message['role']!r})", message["content"]
        for call in tool_calls(message):
            yield f"the tool call {call['name']!r} in {name}", call["name"]


def _dense(text: str) -> str:
    return "".join(text.split())


def _contains(dense: str, text: str) -> bool:
    return _dense(text) in dense or _dense(json.dumps(text, ensure_ascii=False)[1:-1]) in dense

"""The thoughts of reasoning models: `<think>...</think>` in texts, and fields of their own in messages."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from sdft_jax.data.examples import Example, Message
from sdft_jax.errors import SdftError

FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message that may contain its thoughts, apart from the content."""


def without_thoughts(text: str) -> str:
    """Return a reply without thoughts, even if the prompt opened one or the length limit truncated it."""
    closed = re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)
    return closed.rpartition("</think>")[2]


def _without_marked(text: str, place: str) -> str:
    """Return a text of a row without its thoughts; a tag that the text only mentions is refused.

    For example, `<think>a</think> 1` becomes ` 1`, and so does `a</think> 1`, where the prompt opened it.
    """
    kept = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    opened, closed = kept.find("<think>"), kept.find("</think>")
    if opened >= 0 and kept[:opened].strip():
        raise SdftError(
            f"{place}: <think> is not closed by </think>, and follows other text, so that the end of the "
            "thought is not known: set data.thoughts=keep, close it, or write the tag in another way."
        )
    if opened >= 0:
        return kept[:opened]
    return kept[closed + len("</think>") :] if closed >= 0 else kept


def thoughts_of(message: Message) -> list[str]:
    """Return the thoughts of a message that are not empty: closed ones in its content, and its fields."""
    parts = str(message["content"]).split("</think>")[:-1]
    thoughts = [part.rpartition("<think>")[2] for part in parts]
    thoughts += [message[key] for key in FIELDS if isinstance(message.get(key), str)]
    return [thought for thought in thoughts if thought.strip()]


def remove_thoughts(example: Example, demonstration: bool) -> Example:
    """Return an example without the thoughts of its assistant turns.

    Args:
        example: the example.
        demonstration: True to change its demonstration and its context as well.

    Raises:
        SdftError: the demonstration or the context has nothing but thoughts, or a thought has no end.
    """
    changes: dict[str, Any] = {}
    if not isinstance(example.prompt, str):
        changes["prompt"] = tuple(
            _removed(turn, example.location) if turn["role"] == "assistant" else turn
            for turn in example.prompt
        )
    if demonstration:
        changes |= {
            name: _demonstrated(getattr(example, name), name, example.location)
            for name in ("demonstration", "context")
        }
    return dataclasses.replace(example, **changes)


def _removed(value: Any, place: str) -> Any:
    """Return a text or a message without thoughts; one without any is unchanged."""
    if isinstance(value, str):
        kept = _without_marked(value, place)
        return value if kept == value else kept.strip()
    return {
        key: _removed(item, place) if key == "content" else item
        for key, item in value.items()
        if key not in FIELDS
    }


def _demonstrated(value: str | Message | None, name: str, place: str) -> str | Message | None:
    """Return a demonstration or a context without thoughts."""
    if not value:
        return value
    kept = _removed(value, place)
    if not (kept if isinstance(kept, str) else kept["content"].strip() or kept.get("tool_calls")):
        raise SdftError(
            f"{place}: the {name} has nothing but thoughts: set data.thoughts=keep, or remove the row."
        )
    return kept

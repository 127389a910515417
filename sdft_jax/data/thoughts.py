"""The thoughts of reasoning models: between markers in texts, and fields of their own in messages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from sdft_jax.data.examples import Example, Message
from sdft_jax.errors import SdftError

FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message that may contain its thoughts, apart from the content."""

MARKERS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, OLMo 3 Think and most others
    ("[THINK]", "[/THINK]"),  # Mistral: Magistral, Ministral 3 Reasoning, Mistral Small 4
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
"""The texts before and after thoughts; gpt-oss has channels instead."""

CHANNEL_TOKENS = frozenset({"<|channel|>", "<|channel>"})
"""The control tokens before the name of a channel, of gpt-oss and Gemma 4."""

_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(?P<channel>[^<]*(?:<\|constrain\|>[^<]*)?)"
    r"<\|message\|>(?P<text>.*?)"
    r"(?:<\|end\|>|<\|return\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.DOTALL,
)
"""A message in a channel of gpt-oss's format, harmony: `analysis` has thoughts, `final` has the answer."""
_NEXT_CHANNEL = re.compile(rf"\s*(?P<whole>{_CHANNEL.pattern})", re.DOTALL)
_CUT_HEADER = re.compile(r"\s*(?:<\|start\|>(?:assistant)?(?:<\|channel\|>[^<]*)?|<\|channel\|>[^<]*)")
"""The beginning of such a message that the length limit truncated before its text."""


def without_thoughts(text: str) -> str:
    """Return a reply without thoughts, even if the prompt opened one or the length limit truncated it.

    A mark that the reply only mentions is left as it is, except `<think>` and `</think>`: templates also open
    such thoughts in the prompt.
    """
    text = _without_analysis(text)
    for opening, closing in MARKERS:
        kept = _without_closed(text, opening, closing)
        if opening == "<think>":
            kept = kept.partition(opening)[0].rpartition(closing)[2]
        elif kept == text and kept.lstrip().startswith(opening):  # truncated by the limit
            kept = kept.partition(opening)[0]
        text = kept
    return text


def _without_analysis(text: str) -> str:
    """Return the answer in the messages with which a reply in gpt-oss's channels begins, and what follows."""
    kept, end = [], 0
    while message := _NEXT_CHANNEL.match(text, end):
        shown = {"analysis": "", "final": message["text"]}
        kept.append(shown.get(_channel(message), message["whole"]))
        end = message.end()
    return "".join([*kept, "" if _CUT_HEADER.fullmatch(text, end) else text[end:]])


def _without_closed(text: str, opening: str, closing: str) -> str:
    """Return a text without what is between an opening mark and the next closing one, in linear time."""
    kept, end = [], 0
    while (start := text.find(opening, end)) >= 0 and (stop := text.find(closing, start)) >= 0:
        kept.append(text[end:start])
        end = stop + len(closing)
    return "".join([*kept, text[end:]])


def opened_thought(text: str) -> str | None:
    """Return the marker that opens a thought at the end of a prompt, if there is one."""
    return next((opening for opening, _ in MARKERS if text.rstrip().endswith(opening)), None)


def begins_with_thought(text: str) -> bool:
    """Return True if a reply begins with a thought, which the prompt may have opened."""
    message = _NEXT_CHANNEL.match(text)
    opened = any(text.lstrip().startswith(opening) for opening, _ in MARKERS)
    before, closing, _ = text.partition("</think>")
    return (
        opened
        or bool(closing and "<think>" not in before)
        or bool(message and _channel(message) == "analysis")
    )


def prompt_thinks(text: str) -> bool | None:
    """Return True if a thought begins after a prompt, False if one was closed or passed over at its end, and
    None if its end shows neither.
    """
    text = text.rstrip()
    if opened_thought(text) or text.endswith(("<|channel|>analysis<|message|>", "<|start|>assistant")):
        return True  # gpt-oss always thinks first; its templates leave the channel to the model
    closings = tuple(closing for _, closing in MARKERS)
    return False if text.endswith((*closings, "<|channel|>final<|message|>")) else None


def without_channel_names(text: str) -> str:
    """Return a rendered turn whose marks of thoughts do not leave the names of channels, which are no control
    tokens, behind.
    """
    named = ("analysis", "final")
    text = _CHANNEL.sub(lambda m: f"{m['text']}\n\n" if _channel(m) in named else m[0], text)
    return text.replace("<|channel>thought\n", "")


def _channel(message: re.Match[str]) -> str:
    return message["channel"].strip()


def _without_marked(text: str, place: str) -> str:
    """Return a text of a row without its thoughts; a marker that the text only mentions is refused.

    For example, `<think>a</think> 1` becomes ` 1`, and so does `a</think> 1`, where the prompt opened it.
    """
    if _CHANNEL.search(text):
        channels = {_channel(message) for message in _CHANNEL.finditer(text)}
        if not channels <= {"analysis", "final"} or _CHANNEL.sub("", text).strip():
            raise SdftError(
                f"{place}: <|channel|> is in a text that is more than messages in the channels analysis and "
                "final, so that the answer is not known: set data.thoughts=keep, write tool calls as "
                "tool_calls, or write the marker in another way."
            )
        text = _CHANNEL.sub(lambda message: message["text"] * (_channel(message) == "final"), text)
    for opening, closing in MARKERS:
        text = _without_pair(text, opening, closing, place)
    return text


def _without_pair(text: str, opening: str, closing: str, place: str) -> str:
    """Return `_without_marked` for one pair of markers."""
    kept = _without_closed(text, opening, closing)
    opened, closed = kept.find(opening), kept.find(closing)
    if opened >= 0 and kept[:opened].strip():
        raise SdftError(
            f"{place}: {opening} is not closed by {closing}, and follows other text, so that the end of the "
            "thought is not known: set data.thoughts=keep, close it, or write the tag in another way."
        )
    if opened >= 0:
        return kept[:opened]
    if closed >= 0 and closing != "</think>":  # chat templates open no other thought in the prompt
        raise SdftError(
            f"{place}: {closing} closes no {opening}, so that the beginning of the thought is not known: set "
            "data.thoughts=keep, open it, or write the tag in another way."
        )
    return kept[closed + len(closing) :] if closed >= 0 else kept


def thoughts_of(message: Message) -> list[str]:
    """Return the thoughts of a message that are not empty: closed ones in its content, and its fields."""
    thoughts = list(_marked(str(message["content"])))
    thoughts += [message[key] for key in FIELDS if isinstance(message.get(key), str)]
    return [thought for thought in thoughts if thought.strip()]


def _marked(text: str) -> Iterator[str]:
    """Yield the closed thoughts in a text."""
    for message in _CHANNEL.finditer(text):
        if _channel(message) == "analysis":
            yield message["text"]
    for opening, closing in MARKERS:
        for part in text.split(closing)[:-1]:
            if opening in part or opening == "<think>":
                yield part.rpartition(opening)[2]


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

"""Scorer of the tool-use task (ToolAlpaca, in ReAct form).

Source: the SDFT paper's released evaluation. The multiset of action names must equal the reference's, and so
must the union of all action inputs (the last value of a key counts). Two of its bugs are fixed: inputs are
parsed as JSON, because its regular expression `{.*?}` ends at the first closing brace and misses nested
objects (a copy of the reference answers then scores at most 96.7 %); and calls in <think> do not count.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from sdft_jax.data.examples import Example

_DECODER = json.JSONDecoder()


def score(completion: str, example: Example) -> bool:
    """Return True if the completion calls the reference's tools with its inputs, in any order."""
    reply = _without_thoughts(completion)
    names = Counter(re.findall(r"\bAction:\s*(\S+)", reply))
    inputs: dict[str, Any] = {}
    for match in re.finditer(r"\bAction Input:\s*(?={)", reply):
        inputs |= _leading_object(reply[match.end() :])
    reference: dict[str, Any] = {}
    for action in example.answer:
        reference |= _input(action)
    return names == Counter(action["Action"] for action in example.answer) and inputs == reference


def problem(answer: object) -> str | None:
    """Return the problem with an answer, or None for a list of {"Action": ..., "Action_Input": ...}."""
    if isinstance(answer, list) and answer and all(_is_action(action) for action in answer):
        return None
    return (
        'it is not a list of {"Action": name, "Action_Input": JSON object}; set data.answer to a field with '
        "such a list, as golden_answer of ToolAlpaca."
    )


def _without_thoughts(completion: str) -> str:
    """Return the reply without thoughts, even if the prompt opened one or the length limit truncated it."""
    closed = re.sub(r"<think>.*?(</think>|\Z)", "", completion, flags=re.DOTALL)
    return closed.rpartition("</think>")[2]


def _leading_object(text: str) -> dict[str, Any]:
    """Return the JSON object at the start of `text`, or an empty one if it is not valid JSON."""
    try:
        return _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return {}


def _input(action: dict[str, Any]) -> dict[str, Any]:
    value = action["Action_Input"]
    return json.loads(value) if isinstance(value, str) else value


def _is_action(action: object) -> bool:
    try:
        return (
            isinstance(action, dict)
            and isinstance(action["Action"], str)
            and isinstance(_input(action), dict)
        )
    except (KeyError, ValueError, RecursionError):
        return False

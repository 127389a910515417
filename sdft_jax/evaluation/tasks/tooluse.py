"""Scorer of the tool-use task (ToolAlpaca, in ReAct form).

Source: the SDFT paper's released evaluation: the multiset of action names equals the reference's, and all
action inputs merged (a later key wins) equal the reference's merged. Two faults of it are fixed: inputs are
read as JSON, where its regular expression `{.*?}` ends at the first closing brace and misses nested objects
(a copy of the reference answer then scores at most 96.7 %); and drafts inside <think> do not count."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from sdft_jax.data.examples import Example

_DECODER = json.JSONDecoder()


def score(completion: str, example: Example) -> bool:
    """Return True if the reference's tools are called with its inputs, in any order."""
    reply = _without_thoughts(completion)
    names = Counter(re.findall(r"\bAction:\s*(\S+)", reply))
    inputs: dict[str, Any] = {}
    for match in re.finditer(r"\bAction Input:\s*(?={)", reply):
        inputs |= _leading_object(reply[match.end() :])
    golden: dict[str, Any] = {}
    for action in example.answer:
        golden |= _input(action)
    return names == Counter(action["Action"] for action in example.answer) and inputs == golden


def problem(answer: object) -> str | None:
    """Return what is wrong with an answer that is not a list of {"Action": ..., "Action_Input": ...}, or
    None."""
    if isinstance(answer, list) and answer and all(_is_action(action) for action in answer):
        return None
    return 'give a list of {"Action": name, "Action_Input": JSON object}, as data.answer=golden_answer does.'


def _without_thoughts(completion: str) -> str:
    """Return the reply without thoughts, which the prompt may open, and the length limit may leave open."""
    closed = re.sub(r"<think>.*?(</think>|\Z)", "", completion, flags=re.DOTALL)
    return closed.rpartition("</think>")[2]


def _leading_object(text: str) -> dict[str, Any]:
    """Return the JSON object that `text` starts with, or an empty one if it is not valid JSON."""
    try:
        return _DECODER.raw_decode(text)[0]
    except ValueError:
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
    except (KeyError, ValueError):
        return False

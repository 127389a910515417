"""Scorer of the tool-use task (ToolAlpaca, in ReAct form).

Source: the rule of the SDFT paper's released evaluation: the multiset of action names equals the golden
one, and all action inputs merged (a later key wins) equal the golden ones merged. Two faults of it are
mended: inputs are read as JSON, where its expression `{.*?}` ends at the first closing brace and misses
nested objects (copying the golden answer then tops out at 96.7 %); and drafts inside <think> do not count.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from sdft_jax.data.examples import Example

_DECODER = json.JSONDecoder()


def score(completion: str, example: Example) -> bool:
    """Whether the right tools are called with the right inputs; their order is free."""
    reply = _without_thoughts(completion)
    names = Counter(re.findall(r"\bAction:\s*(\S+)", reply))
    inputs: dict[str, Any] = {}
    for match in re.finditer(r"\bAction Input:\s*(?={)", reply):
        inputs |= _leading_object(reply[match.end() :])
    golden: dict[str, Any] = {}
    for action in example.answer:
        golden |= _input(action)
    return names == Counter(action["Action"] for action in example.answer) and inputs == golden


def complaint(answer: object) -> str | None:
    """An answer must be a list of {"Action": name, "Action_Input": JSON object or its text}."""
    if isinstance(answer, list) and answer and all(_is_action(action) for action in answer):
        return None
    return 'give a list of {"Action": name, "Action_Input": JSON object}, as data.answer=golden_answer does.'


def _without_thoughts(completion: str) -> str:
    """The reply itself; a thought may be opened by the prompt, or cut off by the length limit."""
    closed = re.sub(r"<think>.*?(</think>|\Z)", "", completion, flags=re.DOTALL)
    return closed.rpartition("</think>")[2]


def _leading_object(text: str) -> dict[str, Any]:
    """The JSON object that `text` starts with; one that cannot be read contributes nothing."""
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

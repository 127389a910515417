"""Scorers of the tool-use task (ToolAlpaca, in ReAct form).

`official` is the SDFT paper's released evaluation, faults included, so that accuracies compare with published
ones. The multiset of action names must equal the reference's, and so must the union of all action inputs (the
last value of a key counts). Its regular expression `{.*?}` ends at the first closing brace and so misses
inputs with a nested object, its names end at the first character outside [A-Za-z0-9_], and calls inside
<think> count. An exact copy of the reference answers therefore fails on some rows.

`score` (tooluse) makes the same comparison without these faults: inputs are parsed as JSON, and calls in
thoughts do not count.

`score_strict` also requires that each call has its own inputs, and that the calls are in the reference's
order. Order counts because later calls of a reference often depend on earlier ones; where they do not, a
correct answer in another order counts as wrong. Strict is thus the lower bound of the three.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import without_thoughts

_DECODER = json.JSONDecoder()
_NAME = r"\bAction:\s*(\S+)"
_INPUT = r"\bAction Input:\s*"
_OFFICIAL_NAME = re.compile(r"Action:\s*(\w+)")
_OFFICIAL_INPUT = re.compile(r"Action Input:\s*({.*?})", re.DOTALL)


def score(completion: str, example: Example) -> bool:
    """Return True if the completion calls the reference's tools with its inputs, in any order."""
    reply = without_thoughts(completion)
    names = re.findall(_NAME, reply)
    inputs = [_leading_object(reply[match.end() :]) or {} for match in re.finditer(_INPUT + "(?={)", reply)]
    return _same_names(names, example) and _union(inputs) == _union(map(_input, example.answer))


def score_official(completion: str, example: Example) -> bool:
    """Return the verdict of the released evaluation, with its faults."""
    inputs = [_leading_object(block) or {} for block in _OFFICIAL_INPUT.findall(completion)]
    names = _OFFICIAL_NAME.findall(completion)
    return _same_names(names, example) and _union(inputs) == _union(map(_input, example.answer))


def score_strict(completion: str, example: Example) -> bool:
    """Return True if the completion makes the reference's calls, in its order and each with its inputs."""
    before, *parts = re.split(_NAME, without_thoughts(completion))
    calls = [(name, _only_input(rest)) for name, rest in zip(parts[::2], parts[1::2], strict=True)]
    reference = [(action["Action"], _input(action)) for action in example.answer]
    return not re.search(_INPUT, before) and calls == reference


def problem(answer: object) -> str | None:
    """Return the problem with an answer, or None for a list of {"Action": ..., "Action_Input": ...}."""
    if isinstance(answer, list) and answer and all(_is_action(action) for action in answer):
        return None
    return (
        'it is not a list of {"Action": name, "Action_Input": JSON object}; set data.answer to a field with '
        "such a list, as golden_answer of ToolAlpaca."
    )


def _same_names(names: list[str], example: Example) -> bool:
    return Counter(names) == Counter(action["Action"] for action in example.answer)


def _union(inputs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for one in inputs for key, value in one.items()}


def _only_input(text: str) -> dict[str, Any] | None:
    """Return the input of a call from the text after its name; None unless there is exactly one."""
    _, *inputs = re.split(_INPUT, text)
    return _leading_object(inputs[0]) if len(inputs) == 1 else None


def _leading_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object at the start of `text`, or None if there is no valid one."""
    try:
        value = _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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

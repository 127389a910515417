"""The scorer of tool calls in the formats of chat templates."""

import doctest
import json

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scorers import toolcalls

OSLO = {"name": "weather", "arguments": {"city": "Oslo", "days": 2, "past": True}}
ROME = {"name": "weather", "arguments": {"city": "Rome </tool_call><tool_call>"}}


def hermes(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def llama(call):
    return json.dumps({"name": call["name"], "parameters": call["arguments"]})


def score(completion, *reference):
    return toolcalls.score(completion, Example("q", "d", list(reference), 0, "a.jsonl"))


@pytest.mark.parametrize(
    "completion",
    [
        hermes(OSLO, ROME),
        hermes(ROME, OSLO),
        "Let me see.\n" + hermes(OSLO, ROME) + "\nDone.",
        hermes(OSLO) + "<tool_call>" + json.dumps(ROME),  # the last tag is missing
        f"<think>\nOr {hermes(OSLO)}?\n</think>\n\n{hermes(OSLO, ROME)}",
        f"Or {hermes(OSLO)}?\n</think>\n\n{hermes(OSLO, ROME)}",
        f"{llama(OSLO)}; {llama(ROME)}",
        f" <|python_tag|>{llama(OSLO)}\n{llama(ROME)}\n",
        json.dumps([OSLO, ROME]),
        hermes({**OSLO, "arguments": json.dumps(OSLO["arguments"])}, ROME),
        hermes({"name": "weather", "arguments": {"past": True, "days": 2.0, "city": "Oslo"}}, ROME),
    ],
)
def test_equal_calls_in_any_order_and_format_are_correct(completion):
    assert score(completion, OSLO, ROME)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "The weather is fine.",
        hermes(OSLO),
        hermes(OSLO, ROME, ROME),
        hermes(OSLO, {**ROME, "name": "clock"}),
        hermes(OSLO, {**ROME, "arguments": {"city": "rome"}}),
        hermes({"name": "weather", "arguments": {"city": "Oslo", "days": True, "past": 1}}, ROME),
        hermes(OSLO, ROME).replace("}}", "}"),
        hermes(OSLO, ROME)[:-30],
        hermes(OSLO, ROME) + "<tool_call>",
        f"<think>{hermes(OSLO, ROME)}",
        f"{llama(OSLO)} {llama(ROME)} and so on",
        json.dumps([OSLO, {"city": "Rome"}]),
    ],
)
def test_other_calls_are_wrong(completion):
    assert not score(completion, OSLO, ROME)


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("It rains.", True),
        ('{"temperature": 5}', True),
        ("<think>\n" + hermes(OSLO) + "</think> No.", True),
        (hermes(OSLO), False),
        ("<tool_call>weather(Oslo)</tool_call>", False),
        (llama(OSLO), False),
    ],
)
def test_reference_without_calls_requires_a_reply_without_calls(completion, correct):
    assert score(completion) is correct


def test_valid_and_invalid_references():
    for answer in ([], [OSLO, ROME], json.dumps([OSLO]), [{"name": "f", "parameters": {}}]):
        assert toolcalls.problem(answer) is None
    for answer in (None, "", "weather", {}, OSLO, ["f"], [{"name": "f"}], [{"name": "f", "arguments": [1]}]):
        assert toolcalls.problem(answer).startswith('it is not a list of {"name": name, "arguments"')
    assert toolcalls.score(hermes(OSLO), Example("q", "d", json.dumps([OSLO]), 0, "a.jsonl"))


def test_examples_of_the_documentation():
    assert doctest.testmod(toolcalls).failed == 0

"""The scorer of tool calls in ReAct form."""

from pathlib import Path

import pytest

from sdft_jax.config.settings import DataConfig
from sdft_jax.data import make_examples, read_rows
from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scorers import tooluse

FIXTURE = str(Path(__file__).parents[2] / "fixtures" / "tooluse.jsonl")


def react(actions):
    """Return the completion that makes these calls."""
    return "\n".join(
        f"Thought: so\nAction: {a['Action']}\nAction Input: {a['Action_Input']}" for a in actions
    )


def test_reference_calls_score_with_and_without_nested_inputs():
    rows = make_examples(
        read_rows(FIXTURE), DataConfig(answer="golden_answer"), FIXTURE, demonstration=False, answer=True
    )
    for row in rows:
        assert tooluse.problem(row.answer) is None
        assert tooluse.score(react(row.answer), row), row.location
        assert tooluse.score_strict(react(row.answer), row), row.location
    nested = [any("{" in action["Action_Input"][1:] for action in row.answer) for row in rows]
    assert [tooluse.score_official(react(row.answer), row) for row in rows] == [not x for x in nested]
    assert True in nested


REFERENCE = [
    {"Action": "get", "Action_Input": '{"id": 1, "tags": {"a": ["x}"]}}'},
    {"Action": "put", "Action_Input": "{}"},
]
GET = 'Action: get\nAction Input: {"tags": {"a": ["x}"]}, "id": 1}\n'
PUT = "Action: put\nAction Input: {}\n"


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        (GET + PUT, True),
        (PUT + GET, True),
        (GET, False),
        (GET + GET + PUT, False),
        (GET.replace("1", "2") + PUT, False),
        (GET.replace("}\n", "\n") + PUT, False),
        (GET + PUT + 'Action Input: {"more": 1}', False),
        ("<think>" + GET + "</think>" + GET + PUT, True),
        (GET + "</think>" + GET + PUT, True),
        ("<think>" + GET + PUT, False),
        (GET + "<think>hm " + GET + "</think>" + PUT, True),
        ("I would call get.", False),
    ],
)
def test_scores(completion, correct):
    assert tooluse.score(completion, Example("q", "d", REFERENCE, 0, "rows.jsonl")) is correct


FLAT = [
    {"Action": "get", "Action_Input": '{"id": 1}'},
    {"Action": "put", "Action_Input": '{"name": "a"}'},
]
A, B = 'Action: get\nAction Input: {"id": 1}\n', 'Action: put\nAction Input: {"name": "a"}\n'
SWAPPED = A.replace('{"id": 1}', '{"name": "a"}') + B.replace('{"name": "a"}', '{"id": 1}')


@pytest.mark.parametrize(
    ("completion", "official", "fixed", "strict"),
    [
        (A + B, True, True, True),
        (B + A, True, True, False),
        (SWAPPED, True, True, False),
        (A + B + 'Action Input: {"id": 1}', True, True, False),
        ('Action Input: {"id": 1}\n' + A + B, True, True, False),
        ("<think>" + A + "</think>" + A + B, False, True, True),
        ("<think>" + A + B, True, False, False),
        (A + B.replace("put", "put-all"), False, False, False),
        (A.replace("get", "get!") + B, True, False, False),
        (A.replace("}\n", ', "id": 1, "x": {}}\n') + B, False, False, False),
        (A + B.replace('{"name": "a"}', "{bad} {}"), False, False, False),
        ("Action: get\n" + B, False, False, False),
        ("", False, False, False),
    ],
)
def test_official_fixed_and_strict_verdicts(completion, official, fixed, strict):
    example = Example("q", "d", FLAT, 0, "rows.jsonl")
    scorers = (tooluse.score_official, tooluse.score, tooluse.score_strict)
    assert [score(completion, example) for score in scorers] == [official, fixed, strict]


@pytest.mark.parametrize("depth", [500, 3000, 100_000])
def test_nested_inputs_of_any_depth_are_scored(depth):
    example = Example("q", "d", REFERENCE, 0, "rows.jsonl")
    for opening, closing in ("[", "]"), ('{"a": ', "}"):
        nested = '{"id": ' + opening * depth + "1" + closing * depth + "}"
        for value in (nested, nested[: len(nested) // 2]):
            assert tooluse.score(f"Action: get\nAction Input: {value}\n" + PUT, example) is False


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "get",
        [{"Action": "get"}],
        [{"Action": "get", "Action_Input": "{"}],
        [{"Action": "g", "Action_Input": "1"}],
    ],
)
def test_problem_of_an_invalid_answer(answer):
    assert 'it is not a list of {"Action": name, "Action_Input": JSON object}; set ' in tooluse.problem(
        answer
    )


def test_inputs_may_be_objects_instead_of_json_text():
    assert tooluse.problem([{"Action": "get", "Action_Input": {}}]) is None

import json
from pathlib import Path

import pytest

from sdft_jax.config.settings import DataConfig
from sdft_jax.data import make_examples, read_rows
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.tasks import TASKS, get_scorer, validate

TOOLUSE = str(Path(__file__).parents[1] / "fixtures" / "tooluse.jsonl")


def example(answer):
    return Example("q", "d", answer, 4, "rows.jsonl")


def react(actions):
    return "\n".join(
        f"Thought: so\nAction: {a['Action']}\nAction Input: {a['Action_Input']}" for a in actions
    )


@pytest.mark.parametrize(
    ("name", "completion", "answer", "right"),
    [
        ("exact", " 42\n", "42", True),
        ("exact", "42", 42, True),
        ("exact", "It is 42", "42", False),
        ("contains", "It is Paris.", "Paris ", True),
        ("contains", "It is paris.", "Paris", False),
        ("choice", "<reasoning>B</reasoning>\n<answer>\nA\n</answer>", "A", True),
        ("choice", "<answer>B</answer> no: <answer>A</answer>.", "A", True),
        ("choice", "<answer>A</answer> no: <answer>B</answer>", "A", False),
        ("choice", "<answer>A: water</answer>", "A", False),
        ("choice", "A", "A", False),
        ("choice", "<answer>A", "A", True),
        ("mini", "<think> reverse </think> c b a", "c b a", True),
        ("mini", "= c b a !", "c b a", True),
        ("mini", "a b c", "c b a", False),
    ],
)
def test_text_scorers(name, completion, answer, right):
    assert get_scorer(name)(completion, example(answer)) is right


def test_golden_tool_calls_score_nested_or_not():
    rows = make_examples(
        read_rows(TOOLUSE), DataConfig(answer="golden_answer"), TOOLUSE, demonstration=False, answer=True
    )
    validate("tooluse", rows)
    for row in rows:
        assert get_scorer("tooluse")(react(row.answer), row), row.where


GOLDEN = [
    {"Action": "get", "Action_Input": '{"id": 1, "tags": {"a": ["x}"]}}'},
    {"Action": "put", "Action_Input": "{}"},
]
GET = 'Action: get\nAction Input: {"tags": {"a": ["x}"]}, "id": 1}\n'
PUT = "Action: put\nAction Input: {}\n"


@pytest.mark.parametrize(
    ("completion", "right"),
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
def test_tooluse_by_hand(completion, right):
    assert get_scorer("tooluse")(completion, example(GOLDEN)) is right


@pytest.mark.parametrize("name", [name for name in TASKS if name != "tooluse"])
@pytest.mark.parametrize("answer", [None, "", " ", ["a"], True])
def test_text_answers_are_validated(name, answer):
    with pytest.raises(SdftError, match=rf"rows.jsonl, line 5: eval.task={name}"):
        validate(name, [example("fine"), example(answer)])


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
def test_tool_answers_are_validated(answer):
    with pytest.raises(SdftError, match=r"rows.jsonl, line 5: eval.task=tooluse .*golden_answer"):
        validate("tooluse", [example(answer)])
    validate("tooluse", [example([{"Action": "get", "Action_Input": json.loads("{}")}])])


def test_unknown_scorer_lists_the_names():
    with pytest.raises(
        SdftError, match="'rouge': there is no such scorer; choose one of exact, contains, choice, tooluse"
    ):
        get_scorer("rouge")

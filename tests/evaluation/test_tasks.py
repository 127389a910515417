"""The table of tasks: scorers by name, and the validation of reference answers."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.tasks import TASKS, get_scorer, validate


def example(answer):
    return Example("q", "d", answer, 4, "rows.jsonl")


ACTIONS = [{"Action": "get", "Action_Input": "{}"}]


@pytest.mark.parametrize(
    ("name", "completion", "answer", "correct"),
    [
        ("exact", " 42\n", "42", True),
        ("exact", "It is 42", "42", False),
        ("contains", "It is Paris.", "Paris ", True),
        ("choice", "<answer>A</answer> no: <answer>B</answer>", "A", False),
        ("tooluse", "Action: get\nAction Input: {}", ACTIONS, True),
        ("mini", "<think> reverse </think> c b a", "c b a", True),
        ("mini", "= c b a !", "c b a", True),
        ("mini", "a b c", "c b a", False),
        ("mini", "= 42 !", 42, True),
        ("storms", "a b", 42, False),
    ],
)
def test_scorers_by_name(name, completion, answer, correct):
    assert get_scorer(name)(completion, example(answer)) is correct


@pytest.mark.parametrize("name", [name for name in TASKS if name != "tooluse"])
@pytest.mark.parametrize("answer", [None, "", " ", ["a"], True])
def test_an_invalid_text_answer_is_an_error(name, answer):
    message = rf"rows\.jsonl, line 5: eval\.task={name} cannot use this row's answer: it is .*; (add|give) "
    with pytest.raises(SdftError, match=message):
        validate(name, [example("fine"), example(answer)])


@pytest.mark.parametrize("answer", [None, [], "get", [{"Action": "get"}]])
def test_an_invalid_list_of_calls_is_an_error(answer):
    with pytest.raises(
        SdftError, match=r"rows\.jsonl, line 5: eval\.task=tooluse .*; set data\.answer .*golden_answer"
    ):
        validate("tooluse", [example(ACTIONS), example(answer)])


def test_valid_answers_pass():
    for name in TASKS:
        validate(name, [example(ACTIONS if name == "tooluse" else "fine")])


def test_error_for_an_unknown_task_lists_the_names():
    message = "eval.task='rouge' does not exist: use one of exact, contains, choice, tooluse, mini, storms"
    with pytest.raises(SdftError, match=message):
        get_scorer("rouge")

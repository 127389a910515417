"""The table of tasks: scorers by name, and the validation of reference answers."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.scorers import TASKS, get_detail, get_scorer, validate


def example(answer):
    return Example("q", "d", answer, 4, "rows.jsonl")


ACTIONS = [{"Action": "get", "Action_Input": "{}"}]
CALLS = [{"name": "get", "arguments": {}}]


@pytest.mark.parametrize(
    ("name", "completion", "answer", "correct"),
    [
        ("exact", " 42\n", "42", True),
        ("exact", "It is 42", "42", False),
        ("contains", "It is Paris.", "Paris ", True),
        ("choice", "<answer>A</answer> no: <answer>B</answer>", "A", False),
        ("tooluse", "Action: get\nAction Input: {}", ACTIONS, True),
        ("toolcalls", '<tool_call>{"name": "get", "arguments": {}}</tool_call>', CALLS, True),
        ("mini", "<think> reverse </think> c b a", "c b a", True),
        ("mini", "= c b a !", "c b a", True),
        ("mini", "a b c", "c b a", False),
        ("mini", "= 42 !", 42, True),
        ("storms", "a b", 42, False),
    ],
)
def test_scorers_by_name(name, completion, answer, correct):
    assert get_scorer(name)(completion, example(answer)) is correct


ACTION_LISTS = ("tooluse", "tooluse_official", "tooluse_strict")
VALID = dict.fromkeys(ACTION_LISTS, ACTIONS) | {
    "toolcalls": CALLS,
    "letter": "C",
    "rule": ["max_words: 3", "json"],
}
"""Task -> an answer that its scorer can use; a text for all others."""


@pytest.mark.parametrize("name", [name for name in TASKS if name not in VALID])
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


OPTIONS = "q\nA: water\nB: heavy water\nC: ice\nD: steam"


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "valid"),
    [
        ("letter", OPTIONS, "D", True),
        ("letter", OPTIONS, "E", False),
        ("letter", "no options", "E", True),
        ("choice", OPTIONS, " B", True),
        ("choice", OPTIONS, "heavy water", True),
        ("choice", OPTIONS, "E", False),
        ("choice", OPTIONS, "fire", False),
        ("choice", OPTIONS + "\n(1) fire\n(2) air", "fire", True),
        ("choice", "\n".join(f"{x}: option {x}" for x in "ABCDEFGHIJKL"), "K", True),
        ("choice", "\n".join(f"{x}: option {x}" for x in "ABCDEFGHIJ") + "\nB: ten and one", "A", True),
        ("choice", "no options", "E", True),
        ("choice", "Q: 1 + 1?\nA: 2\nQ: 2 + 3?", "5", True),
        ("exact", OPTIONS, "E", True),
    ],
)
def test_an_answer_that_is_none_of_the_options_is_an_error(name, prompt, answer, valid):
    row = Example(({"role": "user", "content": prompt},), "d", answer, 4, "rows.jsonl")
    if valid:
        validate(name, [row])
        return
    problem = f"it is '{answer}', and the options of the prompt are A, B, C, D; give one of them"
    with pytest.raises(
        SdftError, match=rf"^rows\.jsonl, line 5: eval\.task={name} cannot use this row's answer: {problem}"
    ):
        validate(name, [row])


def test_valid_answers_pass():
    for name in TASKS:
        validate(name, [example(VALID.get(name, "fine"))])


def test_what_decided_a_verdict_is_named():
    assert get_detail("letter", "\\boxed{B}", example("B")) == "boxed"
    assert get_detail("rule", "a b", example(["lowercase", "max_words: 1"])) == "max_words: 1"
    assert get_detail("exact", "a", example("a")) is None


def test_error_for_an_unknown_task_lists_the_names():
    message = "use one of exact, contains, normalised, choice, letter, tooluse"
    with pytest.raises(SdftError, match=f"eval.task='rouge' does not exist: {message}"):
        get_scorer("rouge")

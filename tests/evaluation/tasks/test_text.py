"""The scorers of short text answers."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.evaluation.tasks import text

SCORERS = {"exact": text.score_exact, "contains": text.score_contains, "choice": text.score_choice}


@pytest.mark.parametrize(
    ("name", "completion", "answer", "correct"),
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
    ],
)
def test_scores(name, completion, answer, correct):
    assert SCORERS[name](completion, Example("q", "d", answer, 0, "rows.jsonl")) is correct


@pytest.mark.parametrize("answer", ["A", " A ", 42, 0, 0.5])
def test_valid_answers(answer):
    assert text.problem(answer) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "it is missing; add the field, or set data.answer"),
        ("", "it is ''; give a non-empty string or a number"),
        (" ", "it is ' '; give a non-empty string or a number"),
        (["a"], r"it is ['a']; give a non-empty string or a number"),
        (True, "it is True; give a non-empty string or a number"),
    ],
)
def test_problems_of_invalid_answers(answer, problem):
    assert problem in text.problem(answer)

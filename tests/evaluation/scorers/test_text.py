"""The scorers of short text answers."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scorers import text
from sdft_jax.evaluation.scorers.grade import Grade

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
        ("choice", " A\n", "A", True),
        ("choice", "The answer is A", "A", False),
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


def test_normalised_words():
    """Worked by hand; SQuAD's evaluation also folds case and removes articles and punctuation."""
    cases = {
        "The  cat, an OWL and a dog.": "cat owl and dog",
        "U.S. states' losses": "us states losses",
        "1,250,000.50 or 12,34": "1250000.50 or 12 34",
        "−5 °C to -3°C, 17-20, 7.7-magnitude": "-5 c to -3 c 17 20 7.7 magnitude",
        ".5 mg, −.5, (p<.05), ...5": "0.5 mg -0.5 p 0.05 5",
        "Seven of ten, eleven": "7 of 10 eleven",
        "**Straße** ﬁne x²": "strasse fine x2",
        "答案是北京。": "答 案 是 北 京",
        "हिन्दी, größer": "हिन्दी grösser",
        "a / the ?!": "",
    }
    assert {case: text.normalise(case) for case in cases} == cases


@pytest.mark.parametrize(
    ("completion", "answer", "grade"),
    [
        ("It struck on 28 March 2025, near Mandalay.", "28 March 2025", Grade.CORRECT),
        ("It struck in March 2025.", "28 March 2025", Grade.PARTLY),
        ("It struck in March.", "28 March 2025", Grade.WRONG),
        ("There were 17 dead.", 7, Grade.WRONG),
        ("Magnitude seven", 7, Grade.CORRECT),
        ("It was 77.", "7.7", Grade.WRONG),
        ("Give .5 mg.", "5 mg", Grade.PARTLY),
        ("<think>Mandalay or Sagaing?</think>It was Sagaing.", "Mandalay", Grade.WRONG),
        ("Mandalay or Sagaing?</think>It was Sagaing.", "Sagaing", Grade.CORRECT),
        ("", "Sagaing", Grade.WRONG),
    ],
)
def test_normalised_grades(completion, answer, grade):
    assert text.score_normalised(completion, Example("q", "d", answer, 0, "rows.jsonl")) is grade


def test_answer_without_words_after_normalisation():
    assert text.problem_normalised("Paris") is None
    assert text.problem_normalised("A") == (
        "it is 'A', of which normalisation leaves no word; use eval.task=exact or contains."
    )
    assert text.problem_normalised(None) == text.problem(None)

"""The scorer of multiple-choice letters: each extraction, and their order."""

from pathlib import Path

import pytest

from sdft_jax.config.settings import DataConfig
from sdft_jax.data import make_examples, read_rows
from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scorers import letter

FIXTURE = str(Path(__file__).parents[2] / "fixtures" / "science.jsonl")
PROMPT = "Which one? See A: here.\n\nA: water\nB: heavy water\nC: 2.5\nD: -2.5\nPlease reason step by step."


def example(answer="B", prompt=PROMPT):
    return Example(({"role": "user", "content": prompt},), "d", answer, 0, "rows.jsonl")


@pytest.mark.parametrize(
    ("completion", "extraction", "found"),
    [
        ("<reasoning>A or C</reasoning>\n<answer>\nB\n</answer>", "official", "B"),
        ("<answer>A</answer> wait <answer>B", "official", "B"),
        (" B\n", "official", "B"),
        ("<answer>(B) heavy water</answer>", "tag", "B"),
        ("<answer>heavy water</answer>", "tag", "B"),
        (r"first \boxed{A}, then \boxed{\text{B}}", "boxed", "B"),
        ("The correct answer is **B**.", "phrase", "B"),
        ("The answer is A. No: the answer is option (B)", "phrase", "B"),
        ("Answer: B", "phrase", "B"),
        ("**Answer:** B\n\nNote: this is unlike A.", "phrase", "B"),
        ("**Answer**: B, and never A.", "phrase", "B"),
        ("answer: a good one\nIt must be heavy water.", "option", "B"),
        ("A or B?\nThe value is 2.5.", "option", "C"),
        ("The value is -2.5", "option", "D"),
        ("The value is 2.53 or 12.5", "none", None),
        ("It is B, I think.", "last", "B"),
        ("A molecule is small.", "none", None),
        ("It is E", "none", None),
        ("<think><answer>A</answer></think>I take B.", "last", "B"),
        ("", "none", None),
    ],
)
def test_first_extraction_that_finds_a_letter_counts(completion, extraction, found):
    assert letter.detail(completion, example()) == extraction
    assert letter.extract(completion, letter.read_options(example())) == (found and (extraction, found))
    for answer in "ABCD":
        assert letter.score(completion, example(answer)) is (answer == found)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (PROMPT, {"A": "water", "B": "heavy water", "C": "2.5", "D": "-2.5"}),
        ("A. old\nB. older\n\nQ\n(A) new\n(B) newer", {"A": "new", "B": "newer"}),
        ("A) x\nC) not lettered without a gap", {"A": "x"}),
        ("no options", dict.fromkeys("ABCDEFGHIJ", "")),
    ],
)
def test_options_are_read_from_the_question(prompt, options):
    assert letter.read_options(example(prompt=prompt)) == options
    assert letter.read_options(Example(prompt, "d", "A", 0, "rows.jsonl")) == options


def test_options_of_released_rows():
    for row in make_examples(read_rows(FIXTURE), DataConfig(), FIXTURE, demonstration=False, answer=True):
        options = letter.read_options(row)
        assert list(options) == list("ABCD")
        text = f"I computed it.\nThe result is {options[row.answer]}."
        assert letter.extract(text, options) == ("option", row.answer)


@pytest.mark.parametrize("answer", ["B", " B "])
def test_valid_answers(answer):
    assert letter.problem(answer) is None


@pytest.mark.parametrize("answer", [None, "", "b", "AB", "Z", 1, ["A"]])
def test_problem_of_an_invalid_answer(answer):
    assert letter.problem(answer) == f"it is {answer!r}; give the capital letter of an option, from A to J."

"""The scorer of rules: each check, and the validation of a row's checks."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scorers import rule


def example(answer):
    return Example("q", "", answer, 0, "rows.jsonl")


@pytest.mark.parametrize(
    ("check", "passing", "failing"),
    [
        ("starts_with: Hi.", "Hi. a", "Hello. Hi."),
        ("ends_with: see: below", "a see: below\n", "see: below."),
        ("contains: NASA", "from Nasa", "from ESA"),
        ("excludes: e", "a b", "HELLO"),
        (r"matches: ^\d+\.", "1. a", "a 1."),
        ("max_words: 2", "a b", "a b c"),
        ("min_words: 2", "a\nb", "a"),
        ("max_lines: 1", "\n a \n\n", "a\nb"),
        ("json", '[{"a": 1}]', "```json\n{}\n```"),
        ("json", "null", "nul"),
        ("json_keys: answer, why", '{"why": 1, "answer": []}', '{"answer": 1}'),
        ("json_keys: a", '{"a": 1}', "[" * 100_000),
        ("lowercase", "a 1.", "a B"),
        ("uppercase", "A É 1.", "A b"),
    ],
)
def test_checks(check, passing, failing):
    assert rule.problem(check) is None
    assert rule.score(passing, example(check))
    assert rule.score(f"<think>{failing}</think> {passing}", example([check]))
    assert not rule.score(failing, example(check))
    assert rule.detail(failing, example(["min_words: 0", check])) == check
    assert rule.detail(passing, example(check)) == "passed"


def test_all_checks_of_a_row_must_pass():
    assert rule.broken("A b", example(["lowercase", "max_words: 2", "excludes: b"])) == [
        "lowercase",
        "excludes: b",
    ]


@pytest.mark.parametrize("completion", ["", " \n", "<think>Let me count the words"])
def test_an_empty_answer_is_wrong(completion):
    assert not rule.score(completion, example(["max_words: 15", "lowercase"]))
    assert rule.detail(completion, example("excludes: !")) == "empty"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "it is None; give a check such as 'max_words: 40', or a list of checks."),
        ([], "it is []; give a check such as"),
        (["max_words: 4", 3], "give a check such as"),
        ("polite", "there is no check 'polite'; use one of starts_with, ends_with,"),
        ("max_words: few", "the check 'max_words: few' needs a whole number; write it as in"),
        ("max_words: ²", "the check 'max_words: ²' needs a whole number"),
        ("ends_with:", "the check 'ends_with:' needs a text"),
        ("matches: (", "the check 'matches: (' needs a regular expression"),
        ("json_keys: a,", "the check 'json_keys: a,' needs keys, with commas between them"),
        ("json: yes", "the check 'json: yes' needs no argument"),
    ],
)
def test_problem_of_an_invalid_answer(answer, problem):
    assert problem in rule.problem(answer)

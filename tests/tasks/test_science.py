"""Conversion of SciKnowEval rows, in each of the formats in which they are released."""

import json
from pathlib import Path

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks.science import SYSTEM, convert

FIXTURE = Path(__file__).parents[1] / "fixtures" / "science.jsonl"
RAW = json.loads(FIXTURE.read_text(encoding="utf-8").splitlines()[0])
MESSAGES = [{"role": "system", "content": RAW["system"]}, {"role": "user", "content": RAW["prompt"]}]
ANSWER = RAW["answer"]
ANSWER_ONLY = f"<answer>\n{ANSWER}\n</answer>"
SOLUTION = f"<reasoning>\nBecause.\n</reasoning>\n{ANSWER_ONLY}"
SCIKNOWEVAL = {
    "question": "Which?",
    "choices": {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]},
    "answerKey": "C",
    "type": "mcq-4-choices",
    "details": {"level": "L3", "task": "t", "subtask": "s"},
}


def test_released_rows_have_one_result():
    expected = {"prompt": MESSAGES, "demonstration": ANSWER_ONLY, "answer": ANSWER}
    assert convert(RAW, "line 1") == expected
    assert convert(RAW | {"system": f"\n{RAW['system']}\n"}, "line 1") == expected
    assert convert({"prompt": MESSAGES, "answer": ANSWER}, "line 1") == expected
    trained = convert({"messages": MESSAGES, "output_text": SOLUTION}, "line 1")
    assert trained == expected | {"demonstration": SOLUTION}


def test_rows_of_sciknoweval_get_the_released_prompt():
    row = convert(SCIKNOWEVAL, "line 1")
    assert RAW["system"] == SYSTEM
    assert row["prompt"] == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Which?\n\nA: a\nB: b\nC: c\nD: d\nPlease reason step by step."},
    ]
    assert (row["answer"], row["demonstration"]) == ("C", "<answer>\nC\n</answer>")


def test_rows_of_other_tasks_of_sciknoweval_are_left_out():
    two = {"text": ["a", "b"], "label": ["A", "B"]}
    for change in ({"details": {"level": "L1"}}, {"choices": two}, {"choices": {"text": [], "label": []}}):
        assert convert(SCIKNOWEVAL | change, "line 1") is None


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (RAW | {"answer": "E"}, "field 'answer' has the answer 'E': give one of the options, A, B, C, D"),
        (
            {"messages": MESSAGES, "output_text": "<answer>E</answer>"},
            "field 'output_text' has the answer 'E': give one of the options",
        ),
        ({"messages": MESSAGES, "output_text": "It is A."}, "field 'output_text' has no <answer> tag"),
        (SCIKNOWEVAL | {"answerKey": "E"}, "field 'answerKey' has the answer 'E'"),
        (SCIKNOWEVAL | {"choices": {"text": ["a"], "label": []}}, "field 'choices' has 1 texts and 0 labels"),
        (SCIKNOWEVAL | {"choices": {"text": "a"}}, "field 'choices' has no lists of texts"),
        ({"output_text": SOLUTION}, "field 'messages' is missing"),
    ],
)
def test_invalid_rows(raw, problem):
    with pytest.raises(SdftError, match=rf"^raw\.jsonl, line 3: {problem}"):
        convert(raw, "raw.jsonl, line 3")


def test_unknown_format():
    with pytest.raises(
        SdftError, match=r"^raw\.jsonl, line 3 has the fields text: give messages and output_text"
    ):
        convert({"text": "a"}, "raw.jsonl, line 3")

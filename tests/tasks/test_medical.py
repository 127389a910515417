"""Conversion of medical rows, of the TRSD repository and of HuatuoGPT-o1."""

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks.medical import ANSWER, QUESTION, convert

PROMPT = [{"role": "user", "content": "q"}]
MESSAGES = [{"role": "system", "content": "s"}, *PROMPT]


@pytest.mark.parametrize(
    ("raw", "row"),
    [
        (
            {"messages": MESSAGES, "output_text": "o", "source_index": 3},
            {"prompt": MESSAGES, "demonstration": "o"},
        ),
        ({"prompt": MESSAGES, "answer": "a", "source_index": 3}, {"prompt": MESSAGES, "answer": "a"}),
        (
            {"Question": "q", "Complex_CoT": "long", "Response": "r"},
            {"prompt": PROMPT, "demonstration": "r"},
        ),
        ({QUESTION: "q", ANSWER: "a"}, {"prompt": PROMPT, "answer": "a"}),
    ],
)
def test_formats(raw, row):
    assert convert(raw, "line 1") == row


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({ANSWER: " ", QUESTION: "q"}, f": field '{ANSWER}' is ' ': give a text that is not empty"),
        ({"Response": "r"}, ": field 'Question' is missing"),
        ({"text": "a"}, " has the fields text: give messages and output_text, prompt and answer, Question"),
    ],
)
def test_invalid_rows(raw, problem):
    with pytest.raises(SdftError, match=rf"^raw\.jsonl, line 3{problem}"):
        convert(raw, "raw.jsonl, line 3")

"""Fields of raw rows: what is accepted, and the file, line and field of what is not."""

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks import fields

PLACE = "raw.jsonl, line 3"


def test_texts_and_messages():
    assert fields.text_of({"a": ["x", "y"]}, "a", PLACE) == "x\ny"
    assert fields.messages_of({"p": "q"}, "p", PLACE) == [{"role": "user", "content": "q"}]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q", "name": None}]
    assert fields.messages_of({"p": turns}, "p", PLACE) == fields.user_prompt("q", "s")
    assert fields.letter_of(" B ", {"A": "", "B": ""}, PLACE, "answer") == "B"


@pytest.mark.parametrize(
    ("text", "content"),
    [("<answer>A</answer> <answer>\nB\n</answer>", "B"), ("<answer>B", None), ("B", None)],
)
def test_last_closed_tag(text, content):
    assert fields.tag_of(text) == content


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is missing (found: p): add it"),
        (3, "is 3: give a text, or chat messages"),
        ("x" * 200, None),
        (" ", "is ' ': give a text that is not empty"),
        ([], "is []: give a text, or chat messages"),
        ([{"role": "user"}], "give a text, or chat messages"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "does not end with a user",
        ),
        ([{"role": "user", "content": " "}], "does not end with a user message"),
        ([["x" * 200]], "x...: give a text"),
    ],
)
def test_problem_with_a_prompt_names_line_and_field(value, problem):
    if problem is None:
        assert fields.messages_of({"p": value}, "p", PLACE)
        return
    with pytest.raises(
        SdftError, match=r"raw\.jsonl, line 3: field 'p' .*or leave such rows out with --skip"
    ) as e:
        fields.messages_of({"p": value}, "p", PLACE)
    assert problem in str(e.value)

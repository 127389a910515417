"""Thoughts of reasoning models in texts and messages: found, and removed."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import remove_thoughts, thoughts_of, without_thoughts
from sdft_jax.errors import SdftError

USER = {"role": "user", "content": "Is <think> a tag?"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>\nhm\n</think>\n\n2", "\n\n2"),
        ("hm </think> 2", " 2"),
        ("<think>cut off by the limit", ""),
        ("<think>a</think> 1 <think>b</think> 2", " 1  2"),
        (" 2 \n", " 2 \n"),
    ],
)
def test_reply_without_thoughts(text, reply):
    assert without_thoughts(text) == reply


@pytest.mark.parametrize(
    ("message", "thoughts"),
    [
        ({"content": "<think>a</think> 1 <think>b</think> 2"}, ["a", "b"]),
        ({"content": "opened by the prompt</think> 1"}, ["opened by the prompt"]),
        ({"content": "<think>\n\n</think>\n\n1", "reasoning": " "}, []),
        ({"content": "1", "reasoning_content": "a", "thinking": "b"}, ["a", "b"]),
        ({"content": "What is <think>?"}, []),
    ],
)
def test_thoughts_of_a_message(message, thoughts):
    assert thoughts_of({"role": "assistant", **message}) == thoughts


def example(demonstration, prompt=(USER,), context=None):
    return Example(prompt, demonstration, None, 0, "rows.jsonl", context)


def test_thoughts_are_removed_from_demonstrations_contexts_and_assistant_turns():
    earlier = {
        "role": "assistant",
        "content": "<think>\nyes\n</think>\n\nYes.",
        "reasoning": "a",
        "weight": 1,
    }
    row = example("<think>b</think> 2\n", (USER, earlier, USER), "c </think> an article")
    removed = remove_thoughts(row, demonstration=True)
    assert removed.prompt == (USER, {"role": "assistant", "content": "Yes.", "weight": 1}, USER)
    assert (removed.demonstration, removed.context) == ("2", "an article")
    assert remove_thoughts(row, demonstration=False).demonstration == row.demonstration
    turn = example({**CALL, "reasoning_content": "a"})
    assert remove_thoughts(turn, demonstration=True).demonstration == CALL


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think> 1 <think>b</think> 2", "1  2"),
        ("opened by the prompt</think> 1", "1"),
        ("a </think> 1, and end with </think>.", "1, and end with </think>."),
    ],
)
def test_only_thoughts_are_removed_from_a_demonstration(text, kept):
    assert remove_thoughts(example(text), demonstration=True).demonstration == kept


def test_a_tag_that_is_only_mentioned_truncates_nothing():
    row = example("Write <think> before you reason. Then give the answer.")
    with pytest.raises(SdftError, match=r"^rows\.jsonl, line 1: <think> is not closed by </think>"):
        remove_thoughts(row, demonstration=True)


@pytest.mark.parametrize("demonstration", [" 2 \n", "", {"role": "assistant", "content": " 2 "}])
def test_rows_without_thoughts_are_unchanged(demonstration):
    row = example(demonstration, "a </think> question of a user")
    assert remove_thoughts(row, demonstration=True) == row


@pytest.mark.parametrize(
    "demonstration", ["<think>a</think>\n", {"role": "assistant", "content": "<think>a", "thinking": "b"}]
)
def test_demonstration_with_nothing_but_thoughts_is_refused(demonstration):
    message = r"^rows\.jsonl, line 1: the demonstration has nothing but thoughts: set data\.thoughts=keep"
    with pytest.raises(SdftError, match=message):
        remove_thoughts(example(demonstration), demonstration=True)

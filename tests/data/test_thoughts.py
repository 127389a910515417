"""Thoughts of reasoning models in texts and messages: found, and removed."""

import re

import pytest

from fixtures.chat import HARMONY, build_bpe
from sdft_jax.config.settings import DataConfig
from sdft_jax.data.encoding import make_format, turn_text
from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import remove_thoughts, thoughts_of, without_thoughts
from sdft_jax.errors import SdftError
from sdft_jax.models.speaker import Speaker

USER = {"role": "user", "content": "Is <think> a tag?"}
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
CALLED = "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>\nhm\n</think>\n\n2", "\n\n2"),
        ("hm </think> 2", " 2"),
        ("<think>cut off by the limit", ""),
        ("<think>a</think> 1 <think>b</think> 2", " 1  2"),
        (" 2 \n", " 2 \n"),
        ("[THINK]a[/THINK]2", "2"),
        ("[THINK]cut off", ""),
        ("<|channel>thought\na\n<channel|>2", "2"),
        ("<|channel>thought\n<channel|>2", "2"),
        (f"{ANALYSIS}a<|end|>{FINAL}2<|return|>", "2"),
        (f"{ANALYSIS}a<|end|>{FINAL}2", "2"),
        (f"{ANALYSIS}cut off", ""),
        (f"{ANALYSIS}a<|end|>{CALLED}", CALLED),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>fin", ""),
        ("<|channel|>ana", ""),
        ("In [THINK] mode, 2.", "In [THINK] mode, 2."),
        ("It ends in [/THINK]: 2.", "It ends in [/THINK]: 2."),
        (f"Use {ANALYSIS} first: 2.", f"Use {ANALYSIS} first: 2."),
    ],
)
def test_reply_without_thoughts(text, reply):
    assert without_thoughts(text) == reply


@pytest.mark.parametrize(
    "text",
    [
        "[THINK]a[/THINK]2<|im_end|>",
        "<|channel>thought\na\n<channel|>2<|im_end|>",
        f"{ANALYSIS}a<|end|>{FINAL}2<|return|>",
    ],
)
def test_a_scorer_reads_no_thoughts_between_control_tokens(text):
    special = tuple(dict.fromkeys(re.findall(r"<\|?\w+\|?>|\[/?THINK\]", text)))
    tokenizer = build_bpe(special)
    ids = tokenizer.encode(text, add_special_tokens=False)
    speaker = Speaker(None, None, tokenizer, (ids[-1],))
    assert without_thoughts(speaker.decode(ids, thoughts=True)).strip() == "2"
    assert not any(token in speaker.decode(ids) for token in special)


def test_the_teacher_reads_a_turn_in_channels_without_their_names():
    tokenizer = build_bpe(
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|endoftext|>")
    )
    tokenizer.chat_template, tokenizer.pad_token = HARMONY, "<|endoftext|>"
    eos_ids = (tokenizer.convert_tokens_to_ids("<|return|>"),)
    reply = {"role": "assistant", "content": "It is 2.", "thinking": "1 + 1"}
    for thoughts, shown in (("keep", "1 + 1\n\nIt is 2."), ("remove", "It is 2.")):
        format = make_format(tokenizer, DataConfig(thoughts=thoughts), eos_ids)
        assert turn_text(example(reply), format) == shown


@pytest.mark.parametrize(
    ("message", "thoughts"),
    [
        ({"content": "<think>a</think> 1 <think>b</think> 2"}, ["a", "b"]),
        ({"content": "opened by the prompt</think> 1"}, ["opened by the prompt"]),
        ({"content": "<think>\n\n</think>\n\n1", "reasoning": " "}, []),
        ({"content": "1", "reasoning_content": "a", "thinking": "b"}, ["a", "b"]),
        ({"content": "What is <think>?"}, []),
        ({"content": "The tag <channel|> ends it."}, []),
        ({"content": "[THINK]a[/THINK]1"}, ["a"]),
        ({"content": "<|channel>thought\na<channel|>1"}, ["\na"]),
        ({"content": f"{ANALYSIS}a<|end|>{FINAL}1<|return|>"}, ["a"]),
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
        ("[THINK]a[/THINK]1", "1"),
        ("<|channel>thought\na\n<channel|>1", "1"),
        (f"{ANALYSIS}a<|end|>{FINAL}1<|return|>", "1"),
        (f"<|start|>assistant{ANALYSIS}a<|end|>{FINAL}1<|end|>", "1"),
        (f"{ANALYSIS}a<|end|>{ANALYSIS}b<|end|>{FINAL}1", "1"),
        (f"{FINAL}1", "1"),
    ],
)
def test_only_thoughts_are_removed_from_a_demonstration(text, kept):
    assert remove_thoughts(example(text), demonstration=True).demonstration == kept


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Write <think> before you reason. Then give the answer.", "<think> is not closed by </think>, and"),
        ("Write [THINK] first. Then give the answer.", r"\[THINK\] is not closed by \[/THINK\], and follows"),
        ("A thought ends in [/THINK]. Yes.", r"\[/THINK\] closes no \[THINK\], so that"),
        ("A thought ends in <channel|>. Yes.", r"<channel\|> closes no <\|channel>thought, so that"),
        (f"Write {ANALYSIS} first. Then give the answer.", r"<\|channel\|> is in a text that is more than"),
        (f"{ANALYSIS}a<|end|>1", r"<\|channel\|> is in a text that is more than messages in the channels"),
        (f"{ANALYSIS}a<|end|>{CALLED}", r"<\|channel\|> is in a text that is more than messages in the"),
        ("<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>", r"<\|channel\|> is in a text"),
    ],
)
def test_a_tag_that_is_only_mentioned_truncates_nothing(text, problem):
    with pytest.raises(SdftError, match=rf"^rows\.jsonl, line 1: {problem}"):
        remove_thoughts(example(text), demonstration=True)


@pytest.mark.parametrize("demonstration", [" 2 \n", "", {"role": "assistant", "content": " 2 "}])
def test_rows_without_thoughts_are_unchanged(demonstration):
    row = example(demonstration, "a </think> question of a user")
    assert remove_thoughts(row, demonstration=True) == row


@pytest.mark.parametrize(
    "demonstration",
    [
        "<think>a</think>\n",
        "[THINK]a",
        f"{ANALYSIS}a<|end|>",
        {"role": "assistant", "content": "<think>a", "thinking": "b"},
    ],
)
def test_demonstration_with_nothing_but_thoughts_is_refused(demonstration):
    message = r"^rows\.jsonl, line 1: the demonstration has nothing but thoughts: set data\.thoughts=keep"
    with pytest.raises(SdftError, match=message):
        remove_thoughts(example(demonstration), demonstration=True)

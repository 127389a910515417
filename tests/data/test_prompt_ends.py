"""The ends of both roles' prompts, and the pair of them with which training collapses."""

import pytest

from fixtures.chat import (
    DEFAULT_OFF,
    HARMONY,
    HERMES,
    MISTRAL,
    OPENED,
    QWEN,
    QWEN3,
    SYSTEM_SWITCH,
    build_tokenizer,
)
from sdft_jax.config.settings import DataConfig
from sdft_jax.data import encoding, prompt_ends
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError

ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
HIGH, NONE = {"reasoning_effort": "high"}, {"reasoning_effort": "none"}
CLOSED = "assistant\n<think>\n\n</think>\n\n"


def ends_of(template, student=None, teacher=None, prompt="Two?", with_teacher=True):
    tokenizer = build_tokenizer(template)
    config = DataConfig(template_kwargs=student or {}, teacher_template_kwargs=teacher or {})
    format = encoding.make_format(tokenizer, config, (tokenizer.eos_token_id,))
    row = encoding.encode(Example(prompt, "It is 2.", None, 0, "rows.jsonl"), format, teacher=with_teacher)
    return prompt_ends.prompt_ends(row, format)


def test_the_last_characters_of_both_prompts_are_shown_on_one_line_each():
    lines = list(prompt_ends.describe(ends_of(QWEN3, OFF, prompt="é" * 99 + "Two?")))
    assert lines == [
        "the student's prompt ends in "
        + repr("é" * 24 + "Two?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        "the teacher's prompt ends in "
        + repr("uding the thinking process.\n<|im_end|>\n<|im_start|>" + CLOSED),
    ]
    (line,) = prompt_ends.describe(ends_of(QWEN3, with_teacher=False))
    assert line.endswith(repr("Two?<|im_end|>\n<|im_start|>assistant\n")[1:])


@pytest.mark.parametrize(
    ("template", "arguments", "thinks"),
    [
        (QWEN3, {}, True),
        (QWEN3, ON, True),
        (QWEN3, OFF, False),
        (DEFAULT_OFF, {}, False),
        (DEFAULT_OFF, ON, True),
        (SYSTEM_SWITCH, {}, False),
        (SYSTEM_SWITCH, ON, True),
        (OPENED, {}, True),
        (OPENED.replace("<think>", "[THINK]"), {}, True),
        (OPENED.replace("<think>", "<|channel>thought"), {}, True),
        (OPENED.replace("<think>", "<|channel>thought\n<channel|>"), {}, False),
        (MISTRAL, {}, False),
        (MISTRAL, HIGH, True),
        (HARMONY, {}, True),
        (HARMONY, NONE, True),
        (HERMES, {}, None),
        (QWEN.replace("enable_thinking is false", "thinking is not true"), {}, False),
    ],
)
def test_thinking_is_read_off_the_rendered_prompt(template, arguments, thinks):
    ends = ends_of(template, arguments)
    assert [end.thinks for end in ends.values()] == [thinks, thinks]
    assert any("the student thinks: in some" in line for line in prompt_ends.describe(ends)) == bool(thinks)
    prompt_ends.refuse_thoughtless_teacher(ends)


@pytest.mark.parametrize(
    ("template", "student", "teacher"),
    [
        (QWEN3, {}, OFF),
        (QWEN3, ON, OFF),
        (DEFAULT_OFF, ON, OFF),
        (SYSTEM_SWITCH, ON, OFF),
        (MISTRAL, HIGH, NONE),
    ],
)
def test_student_that_thinks_with_a_teacher_that_does_not_is_refused(template, student, teacher):
    with pytest.raises(SdftError, match=r"^the student thinks, .* collapses in training \(sdft") as caught:
        prompt_ends.refuse_thoughtless_teacher(ends_of(template, student, teacher))
    if template == QWEN3:
        student = r"prompts that end in 'm_end|>\n<|im_start|>assistant\n'"
        assert f"{student}, and the teacher, with '>{repr(CLOSED)[1:]}, does not" in str(caught.value)


def test_teacher_that_thinks_with_a_student_that_does_not_is_remarked():
    ends = ends_of(QWEN3, OFF, ON)
    prompt_ends.refuse_thoughtless_teacher(ends)
    assert (ends["student"].thinks, ends["teacher"].thinks) == (False, True)
    assert list(prompt_ends.describe(ends))[2:] == [
        "thinking differs between the roles, which score the same tokens (sdft_jax/data/THINKING.md)"
    ]

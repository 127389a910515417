"""Traces as tokens, and chat templates that drop a part of them."""

import dataclasses

import pytest

from fixtures.chat import HERMES, LLAMA, QWEN, QWEN3, TOOLS, TRACE, build_tokenizer, weather_call
from sdft_jax.config.settings import DataConfig
from sdft_jax.data import encoding, make_examples
from sdft_jax.errors import SdftError

CONFIG = DataConfig(messages="messages")
ROW = {"messages": TRACE, "tools": TOOLS}
ONE_CALL = [*TRACE[:3], {"role": "assistant", "content": "No."}]
TEMPLATE = encoding.load_template("reference")


def encode(row, template=HERMES, config=CONFIG):
    """Return the examples of a row with their tokens, and a function that decodes tokens."""
    tokenizer = build_tokenizer(template)
    format = encoding.make_format(tokenizer, config, (tokenizer.eos_token_id,))
    rows = make_examples([row], config, "a.jsonl")
    encoded = [encoding.encode(one, format, target=True) for one in rows]
    return rows, encoded, lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def turns_of(*messages, tools=TOOLS):
    """Return a row in which the last message answers a question."""
    return {"messages": [TRACE[0], *messages], "tools": tools}


def test_target_is_the_turn_as_the_template_renders_it():
    _, encoded, text = encode(ROW)
    assert [row.turn for row in encoded] == [1, 3, 6]
    rome, bari = (
        f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
        for city in ("Rome", "Bari")
    )
    assert text(encoded[0].target) == rome.replace("Rome", "Oslo") + "<|im_end|>"
    assert text(encoded[1].target) == f"No. Elsewhere?\n{rome}\n{bari}<|im_end|>"
    assert text(encoded[2].target) == "It is warm in Rome and in Bari.<|im_end|>"
    for row in encoded:
        assert text(row.prompt).startswith(
            '<|im_start|>system\n{"type": "function", "function": {"name": "weather"'
        )
    conversation = text(encoded[2].prompt) + text(encoded[2].target)
    for row in encoded:
        assert conversation.startswith(text(row.prompt) + text(row.target))


@pytest.mark.parametrize(
    ("template", "messages"), [(HERMES, TRACE), (LLAMA, ONE_CALL)], ids=["HERMES", "LLAMA"]
)
def test_teacher_sees_the_demonstration_in_the_last_user_message_and_the_same_other_turns(template, messages):
    rows, encoded, text = encode({"messages": messages, "tools": TOOLS}, template)
    for row, one in zip(rows, encoded, strict=True):
        shown = text(one.target).removesuffix("<|im_end|>")
        question = TRACE[0]["content"]
        wrapped = TEMPLATE.substitute(question=question, demonstration=shown)
        assert shown
        student, teacher = text(one.prompt), text(one.teacher_prompt)
        assert (
            teacher.replace(wrapped, question) == student
            or teacher.replace(wrapped.strip(), question) == student
        )
        assert student.count("<|im_start|>") == teacher.count("<|im_start|>"), row.location


def test_teacher_message_is_the_last_user_message():
    rows, _, _ = encode(
        {"messages": [*TRACE, {"role": "user", "content": "Bye."}, *TRACE[-1:]], "tools": TOOLS}
    )
    messages = encoding.teacher_messages(dataclasses.replace(rows[-1], context="c"), TEMPLATE)
    assert messages[:-1] == list(rows[-1].prompt[:-1])
    assert messages[-1]["content"].startswith("\nBye.\n\nThis is an example")


def test_empty_thoughts_are_in_the_target_and_not_in_the_demonstration_of_the_teacher():
    """As Qwen3's template renders the last turn."""
    template = HERMES.replace(
        "{{ m['role'] }}\n{{ m['content'] }}",
        "{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}<think>\n"
        "{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}{{ m['content'] }}",
    )
    _, (plain,), text = encode(turns_of(TRACE[1]), template)
    assert text(plain.target).startswith("<think>\n\n</think>\n\n<tool_call>")
    assert "question:\n<tool_call>" in text(plain.teacher_prompt)
    _, (thinking,), text = encode(turns_of({**TRACE[1], "reasoning_content": "Call."}), template)
    assert text(thinking.target).startswith("<think>\nCall.\n</think>\n\n<tool_call>")
    assert "question:\n<think>\nCall.\n</think>\n\n<tool_call>" in text(thinking.teacher_prompt)


def test_turn_is_shown_to_the_teacher_with_the_arguments_of_its_prompt():
    """A student that does not think has no completion with thoughts; its teacher sees them nevertheless."""
    row = turns_of({**TRACE[-1], "reasoning_content": "Look it up."}, tools=None)
    on, off = {"enable_thinking": True}, {"enable_thinking": False}
    config = dataclasses.replace(CONFIG, template_kwargs=off, teacher_template_kwargs=on)
    tokenizer = build_tokenizer(QWEN3)
    (one,) = make_examples([row], config, "a.jsonl")
    for thoughts, shown in (("keep", "<think>\nLook it up.\n</think>\n\nIt is"), ("remove", "It is")):
        both = dataclasses.replace(config, thoughts=thoughts)
        encoded = encoding.encode(one, encoding.make_format(tokenizer, both, (tokenizer.eos_token_id,)))
        assert f"question:\n{shown} warm in Rome" in tokenizer.decode(encoded.teacher_prompt)
    _, (encoded,), text = encode(row, QWEN3, dataclasses.replace(CONFIG, teacher_template_kwargs=off))
    assert "question:\n<think>\nLook it up.\n</think>\n\nIt is" in text(encoded.teacher_prompt)
    with pytest.raises(SdftError, match=r"message 1: .* an end-of-turn token: set data\.thoughts=remove, or"):
        encode(row, QWEN3, dataclasses.replace(config, teacher_template_kwargs={}))


def test_template_for_tools_is_chosen_by_name():
    named = {"default": QWEN, "tool_use": HERMES}
    assert encode(ROW, named)[1][0].target.tolist() == encode(ROW)[1][0].target.tolist()


def test_control_tokens_in_calls_and_tools_are_refused_or_plain_text():
    row = turns_of({**TRACE[1], "tool_calls": [weather_call("Oslo<|im_end|>")]})
    with pytest.raises(
        SdftError, match=r"^a\.jsonl, line 1, message 1: the demonstration contains '<\|im_end\|>'"
    ):
        encode(row)
    _, (one,), text = encode(row, config=dataclasses.replace(CONFIG, control_tokens="text"))
    assert '"Oslo<|im_end|>"' in text(one.target)
    assert one.target.tolist().count(build_tokenizer().eos_token_id) == 1
    with pytest.raises(SdftError, match=r"message 1: the demonstration contains '<\|im_end\|>'"):
        encode(turns_of({**TRACE[1], "tool_calls": [weather_call("Oslo", **{"<|im_end|>": 1})]}))
    tools = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "description": "<bos>"}}]
    with pytest.raises(SdftError, match=r"message 1: a tool contains '<bos>'"):
        encode(turns_of(TRACE[1], tools=tools))


WITHOUT_CALLS = "{{ tools }}" + QWEN


@pytest.mark.parametrize(
    ("row", "template", "problem"),
    [
        (
            ROW,
            QWEN,
            "message 1: the chat template does not render the tool 'weather': use a model whose chat",
        ),
        (turns_of(TRACE[1]), WITHOUT_CALLS, "does not render the tool call weather of the demonstration"),
        ({"messages": ONE_CALL, "tools": TOOLS}, WITHOUT_CALLS, "the tool call weather of the demonstration"),
        (
            turns_of({**TRACE[1], "reasoning_content": "Call."}),
            HERMES,
            "message 1: the chat template does not render the reasoning_content of the demonstration as it",
        ),
        (ROW, LLAMA, r"message 3: .*rejects this conversation \(This model only supports single tool-calls"),
        (
            turns_of({**TRACE[1], "content": "Let me see."}),
            LLAMA,
            "message 1: the chat template does not render the demonstration as it is",
        ),
        (
            turns_of({"role": "developer", "content": "hidden"}, TRACE[0], TRACE[1]),
            HERMES.replace("{% for m in messages if", "{% for m in messages if m['role'] != 'developer' and"),
            r"message 3: the chat template does not render message 1 \(role 'developer'\)",
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, *TRACE[1:3], TRACE[-1]], "tools": TOOLS},
            HERMES,
            "message 3: no user message is before this turn, and the teacher's demonstration is added to",
        ),
        (
            turns_of(TRACE[1]),
            HERMES.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}"),
            "message 1: the chat template does not render this turn as a completion of its prompt",
        ),
    ],
)
def test_templates_that_cannot_render_a_trace_are_refused(row, template, problem):
    with pytest.raises(SdftError, match=rf"^a\.jsonl, line 1, .*{problem}"):
        encode(row, template)


def test_text_that_does_not_extend_its_prompt_becomes_text_and_eos():
    template = HERMES.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}")
    _, (one,), text = encode(turns_of(TRACE[-1], tools=None), template)
    assert text(one.target) == "It is warm in Rome and in Bari.<|im_end|>"
    assert "question:\nIt is warm in Rome and in Bari.\n" in text(one.teacher_prompt)


def test_turns_over_a_limit_are_dropped_alone():
    tokenizer = build_tokenizer(HERMES)
    _, encoded, _ = encode(ROW)
    config = dataclasses.replace(CONFIG, max_prompt=len(encoded[1].prompt))
    format = encoding.make_format(tokenizer, config, (tokenizer.eos_token_id,))
    kept, dropped = encoding.encode_all(make_examples([ROW], config, "a.jsonl"), format, config)
    assert [row.turn for row in kept] == [1, 3]
    assert str(dropped) == "1 over data.max_prompt (rows 0)"

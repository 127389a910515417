import dataclasses

import numpy as np
import pytest

from fixtures.chat import GEMMA, QWEN, QWEN3, build_tokenizer
from sdft_jax.config.settings import DataConfig
from sdft_jax.data import encoding
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.files import rendering

TOKENIZER = build_tokenizer()
EOS_IDS = (TOKENIZER.eos_token_id,)
CONFIG = DataConfig()


def example(prompt="Two?", demonstration="It is 2.", row=0):
    return Example(prompt, demonstration, None, row, "rows.jsonl")


def format_of(config=CONFIG, tokenizer=TOKENIZER):
    return encoding.make_format(tokenizer, config, EOS_IDS)


def encode_one(row, tokenizer=TOKENIZER, config=CONFIG):
    kept, _ = encoding.encode_all([row], format_of(config, tokenizer), config, max_target=5000)
    return kept[0]


def text(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_prompts_match_the_released_code_byte_for_byte():
    encoded = encode_one(example())
    assert text(encoded.prompt) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nTwo?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(encoded.teacher_prompt) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n"
        "\nTwo?\n\nThis is an example for a response to the question:\nIt is 2.\n\n"
        "Now answer with a response of your own, including the thinking process.\n"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(encoded.target) == "It is 2.<|im_end|>"
    assert encoded.prompt.dtype == encoded.teacher_prompt.dtype == encoded.target.dtype == np.int32


def test_tokens_match_the_tokenizers_apply_chat_template():
    chat = [{"role": "user", "content": "Two?"}]
    expected = TOKENIZER.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    np.testing.assert_array_equal(encode_one(example()).prompt, np.ravel(expected["input_ids"]))


def test_teacher_prompt_keeps_system_and_earlier_turns():
    chat = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    )
    row = example(chat)
    student = encoding.student_messages(row)
    teacher = encoding.teacher_messages(row, encoding.load_template("reference"))
    assert student == list(chat)
    assert teacher[:3] == list(chat[:3])
    assert teacher[3]["role"] == "user"
    assert teacher[3]["content"].startswith("\nTwo?\n\nThis is an example")
    assert "You are helpful" not in text(encode_one(row).teacher_prompt)


def test_teacher_prompt_contains_the_context_and_target_is_the_demonstration():
    encoded = encode_one(dataclasses.replace(example(), context="An article. It is 2."))
    assert "response to the question:\nAn article. It is 2.\n" in text(encoded.teacher_prompt)
    assert text(encoded.target) == "It is 2.<|im_end|>"
    assert "article" not in text(encoded.prompt)


@pytest.mark.parametrize(
    ("tokens", "prompt"), [({}, "<|im_end|>"), ({"bos_token": "<bos>"}, "<bos>")], ids=["EOS", "BOS"]
)
def test_prompt_of_a_raw_text_is_one_token(tokens, prompt):
    tokenizer = build_tokenizer(**tokens)
    rows = [example((), "It is 2.", row=3), example((), "x" * 50, row=4)]
    calls = []
    kept, dropped = encoding.encode_texts(
        rows,
        format_of(tokenizer=tokenizer),
        DataConfig(max_teacher_prompt=20, max_prompt=1),
        progress=lambda done, total: calls.append((done, total)),
    )
    (encoded,) = kept
    assert tokenizer.decode(encoded.prompt, skip_special_tokens=False) == prompt
    assert (len(encoded.prompt), len(encoded.teacher_prompt), encoded.row) == (1, 0, 3)
    assert tokenizer.decode(encoded.target, skip_special_tokens=False) == "It is 2."
    assert dropped == encoding.Dropped(text=(4,))
    assert str(dropped) == "1 over data.max_teacher_prompt (rows 4)"
    assert calls == [(1, 2), (2, 2)]


def test_overlong_text_raises_with_the_remedy():
    config = DataConfig(max_teacher_prompt=20, overlong="error")
    with pytest.raises(
        SdftError, match=r"line 1: the text has 50 tokens.*data.max_teacher_prompt=20: raise .* to 50"
    ):
        encoding.encode_texts([example((), "x" * 50)], format_of(), config)


def test_long_demonstration_does_not_truncate_the_question():
    # The released code truncates the teacher's prompt from the left to the student's limit.
    config = DataConfig(max_prompt=100, max_teacher_prompt=3000)
    encoded = encode_one(example("What is asked here?", "long " * 500), config=config)
    assert len(encoded.teacher_prompt) > 2500
    assert "What is asked here?" in text(encoded.teacher_prompt)


def test_dollar_signs_in_a_row_are_literal():
    row = example("Pay $5, $question, ${demonstration} or $$?", "$demonstration costs $1 $$ ${x}")
    wrapped = text(encode_one(row).teacher_prompt)
    assert "\nPay $5, $question, ${demonstration} or $$?\n" in wrapped
    assert "\n$demonstration costs $1 $$ ${x}\n" in wrapped


def test_templates_from_a_text_and_a_file(tmp_path):
    template = encoding.load_template("$$ $question ${demonstration}")
    assert template.substitute(question="q", demonstration="d") == "$ q d"
    file = tmp_path / "teacher.txt"
    file.write_bytes("\u00e9 $question\n$demonstration\n".encode())
    assert encoding.load_template(f"file:{file}").template == "\u00e9 $question\n$demonstration\n"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("only $question", r"data.template: \$demonstration is missing"),
        ("$demonstration", r"\$question is missing"),
        ("$question $demonstration $name", r"unknown placeholder \$name"),
        ("$question $demonstration 5$", r"a \$ does not start a placeholder: write \$\$"),
        ("file:/no/such.txt", "^/no/such.txt does not exist: give a text file in UTF-8 as data.template"),
    ],
)
def test_invalid_templates_raise(template, problem):
    with pytest.raises(SdftError, match=problem):
        encoding.load_template(template)


def test_template_kwargs_are_passed_to_the_chat_template():
    config = DataConfig(template_kwargs={"enable_thinking": False})
    encoded = encode_one(example(), config=config)
    assert text(encoded.prompt).endswith("assistant\n<think></think>")
    # The rendered assistant turn has no empty thought, so it does not extend the prompt: text and EOS.
    assert text(encoded.target) == "It is 2.<|im_end|>"


def test_each_role_has_its_own_arguments_of_the_chat_template():
    tokenizer = build_tokenizer(QWEN3)
    off, on = {"enable_thinking": False}, {"enable_thinking": True}
    closed = "assistant\n<think>\n\n</think>\n\n"
    for teacher, end in (({}, closed), (on, "assistant\n"), (off, closed)):
        config = DataConfig(template_kwargs=off, teacher_template_kwargs=teacher)
        encoded = encode_one(example(), tokenizer, config)
        assert text(encoded.prompt).endswith(closed)
        assert text(encoded.teacher_prompt).endswith("<|im_start|>" + end)
        assert text(encoded.target) == "It is 2.<|im_end|>"
    encoded = encode_one(example(), tokenizer, DataConfig(teacher_template_kwargs=off))
    assert text(encoded.prompt).endswith("<|im_start|>assistant\n")
    assert text(encoded.target) == "<think>\n\n</think>\n\nIt is 2.<|im_end|>"


def test_arguments_that_the_template_rejects_name_their_option():
    strict = QWEN3 + "{% if wanted is defined %}{{ 1 + wanted }}{% endif %}"
    for option in ("template_kwargs", "teacher_template_kwargs"):
        config = DataConfig(**{option: {"wanted": "a"}})
        with pytest.raises(SdftError, match=rf"rejects .*: change its roles or data\.{option}, or use"):
            encode_one(example(), build_tokenizer(strict), config)


def test_target_is_rendered_by_the_chat_template():
    spaced = build_tokenizer(QWEN.replace("{{ m['content'] }}", "{{ m['content'] | trim }} "))
    encoded = encode_one(example(demonstration=" It is 2.\n"), spaced)
    assert text(encoded.target) == "It is 2. <|im_end|>"


def test_target_falls_back_to_text_and_eos():
    # The Gemma-like template does not render this tokenizer's EOS.
    assert text(encode_one(example(), build_tokenizer(GEMMA)).target) == "It is 2.<|im_end|>"


def test_end_of_turn_token_in_a_demonstration_raises():
    with pytest.raises(
        SdftError, match=r"rows.jsonl, line 1: the demonstration contains .* an end-of-turn token"
    ):
        encode_one(example(demonstration="a<|im_end|>b"))


def test_conversation_rejected_by_the_chat_template_raises():
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
    with pytest.raises(
        SdftError, match=r"rows.jsonl, line 4: .*rejects this conversation \(System role not supported"
    ):
        encode_one(example(chat, row=3), build_tokenizer(GEMMA))


def test_dropped_rows_are_counted_by_limit():
    rows = [example(row=0), example("x" * 200, row=1), example(demonstration="y" * 300, row=2)]
    rows.append(example(demonstration="z" * 60, row=3))
    config = DataConfig(max_prompt=150, max_teacher_prompt=400)
    calls = []
    kept, dropped = encoding.encode_all(
        rows,
        format_of(config),
        config,
        max_target=50,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert [e.row for e in kept] == [0]
    assert dropped == encoding.Dropped(prompt=(1,), teacher_prompt=(2,), target=(3,))
    assert dropped.total == 3
    assert str(dropped) == (
        "1 over data.max_prompt (rows 1); 1 over data.max_teacher_prompt (rows 2); "
        "1 over sampling.max_new_tokens (rows 3)"
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_limit_is_inclusive():
    length = len(encode_one(example()).prompt)
    assert encode_one(example(), config=DataConfig(max_prompt=length)).row == 0
    with pytest.raises(SdftError, match=r"no row is left \(1 over data.max_prompt"):
        encode_one(example(), config=DataConfig(max_prompt=length - 1))


def test_only_requested_parts_are_encoded():
    config = DataConfig(max_teacher_prompt=1)
    kept, _ = encoding.encode_all([example(demonstration="")], format_of(config), config, teacher=False)
    assert len(kept[0].teacher_prompt) == len(kept[0].target) == 0


def test_each_of_several_demonstrations_is_in_a_teacher_prompt_and_a_target():
    encoded = encode_one(dataclasses.replace(example(), others=("It is two.", "2")))
    for shown, demonstration in zip(encoded.others, ("It is two.", "2"), strict=True):
        assert f"response to the question:\n{demonstration}\n" in text(shown.teacher_prompt)
        assert text(shown.target) == f"{demonstration}<|im_end|>"
    assert text(encoded.target) == "It is 2.<|im_end|>"
    assert len(encoding.encode(dataclasses.replace(example(), others=("a", "b")), format_of()).others) == 2


def test_only_the_demonstrations_over_a_limit_are_dropped():
    several = dataclasses.replace(example(demonstration="y" * 300), others=("2", "z" * 60, "two"))
    none = dataclasses.replace(example(demonstration="y" * 300, row=1), others=("z" * 60,))
    config = DataConfig(max_teacher_prompt=400)
    (kept,), dropped = encoding.encode_all([several, none], format_of(config), config, max_target=50)
    assert (text(kept.target), text(kept.others[0].target)) == ("2<|im_end|>", "two<|im_end|>")
    assert dropped == encoding.Dropped(teacher_prompt=(1,), demonstrations=2)
    assert str(dropped) == (
        "1 over data.max_teacher_prompt (rows 1); "
        "2 demonstrations over a limit, of rows that keep another one"
    )
    config = dataclasses.replace(config, overlong="error")
    with pytest.raises(SdftError, match=r"line 1: the teacher prompt has"):
        encoding.encode_all([several], format_of(config), config, max_target=50)


def test_overlong_row_raises_with_location_length_limit_and_remedy():
    config = DataConfig(max_teacher_prompt=200, overlong="error")
    tokens = len(encode_one(example(demonstration="y" * 100)).teacher_prompt)
    message = (
        f"rows.jsonl, line 8: the teacher prompt has {tokens} tokens, more than data.max_teacher_prompt=200: "
        f"raise data.max_teacher_prompt to {tokens} or more, or set data.overlong=drop."
    )
    with pytest.raises(SdftError) as caught:
        encode_one(example(demonstration="y" * 100, row=7), config=config)
    assert str(caught.value) == message


CONTROL = {
    "question": example("Two?<|im_end|>\n<|im_start|>assistant\n"),
    "demonstration": example(demonstration="2<|im_end|>"),
    "earlier turn": example(
        ({"role": "assistant", "content": "<|im_start|>"}, {"role": "user", "content": "q"})
    ),
    "context": Example("Two?", "2", None, 0, "rows.jsonl", context="It is<|im_end|>"),
}


@pytest.mark.parametrize("place", CONTROL)
def test_control_tokens_in_a_row_are_refused_for_every_method(place):
    message = r"^rows\.jsonl, line 1: the .* contains '<\|im_(start|end)\|>', which is a control token"
    for target in (None, 50):
        with pytest.raises(SdftError, match=message):
            encoding.encode_all([CONTROL[place]], format_of(), CONFIG, max_target=target)
    if place == "demonstration":
        with pytest.raises(SdftError, match=r"line 1: the text contains '<\|im_end\|>', which is a control"):
            encoding.encode_texts([CONTROL[place]], format_of(), CONFIG)


def test_token_that_the_model_does_not_have_is_refused():
    tokenizer = build_tokenizer()
    vocab_size = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    format = encoding.make_format(tokenizer, CONFIG, EOS_IDS, vocab_size)
    encoding.encode(example(), format)
    message = rf"^rows\.jsonl, line 1: the token '<extra>' has id {vocab_size}, and the model has only the"
    for row in (example("a <extra>"), example(demonstration="<extra>")):
        with pytest.raises(SdftError, match=message):
            encoding.encode(row, format)
    with pytest.raises(SdftError, match=message):
        encoding.encode_texts([example((), "<extra>")], format, CONFIG)
    with pytest.raises(SdftError, match=r"^the (pad_token|stop token) has id \d+, and the model has only"):
        encoding.make_format(tokenizer, CONFIG, EOS_IDS, 1)


TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ANSWER_ONLY = "m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content']"
THOUGHT = example(demonstration="<think> 1 + 1 </think> 2")


def test_template_that_drops_thoughts_is_refused_for_targets():
    tokenizer = build_tokenizer(TURN.replace("CONTENT", ANSWER_ONLY) + PROMPT)
    message = r"line 1: the chat template does not render the demonstration .*: set data\.thoughts=remove, or"
    with pytest.raises(SdftError, match=message):
        encode_one(THOUGHT, tokenizer)


def test_thoughts_of_a_demonstration_are_kept_or_removed():
    for thoughts, shown, target in (
        ("keep", "<think> 1 + 1 </think> 2", "<think>\n 1 + 1 \n</think>\n\n 2<|im_end|>"),
        ("remove", "2", "<think>\n\n</think>\n\n2<|im_end|>"),
    ):
        encoded = encode_one(THOUGHT, build_tokenizer(QWEN3), DataConfig(thoughts=thoughts))
        assert f"response to the question:\n{shown}\n\nNow" in text(encoded.teacher_prompt)
        assert text(encoded.target) == target
    dropping = build_tokenizer(TURN.replace("CONTENT", ANSWER_ONLY) + PROMPT)
    assert text(encode_one(THOUGHT, dropping, DataConfig(thoughts="remove")).target) == "2<|im_end|>"


def test_thoughts_of_earlier_turns_that_the_template_drops_are_counted():
    user = {"role": "user", "content": "And?"}
    contents = ("<think>\nGuess.\n</think>\n\n1", "2", "3")
    one, two, three = ({"role": "assistant", "content": content} for content in contents)
    row = example((user, one, user, two | {"reasoning_content": "Look it up."}, user, three, user))
    assert encode_one(row, build_tokenizer(QWEN3)).lost_thoughts == 2
    assert encode_one(row).lost_thoughts == 1, "a template that renders contents as they are"
    removed = encode_one(row, config=DataConfig(thoughts="remove"))
    assert (removed.lost_thoughts, "<think>" in text(removed.prompt)) == (0, False)


def test_template_may_change_whitespace():
    """As Qwen3's template does around thoughts, and Gemma's around every text."""
    content = "m['content'].replace('<think> ', '<think>\n').replace(' </think> ', '\n</think>\n\n') | trim"
    tokenizer = build_tokenizer(TURN.replace("CONTENT", content) + PROMPT)
    row = example(" Two? ", demonstration=THOUGHT.demonstration + "\n")
    assert text(encode_one(row, tokenizer).target) == "<think>\n1 + 1\n</think>\n\n2<|im_end|>"


def test_template_that_opens_the_thought_is_refused_for_demonstrations_that_open_it():
    opened = PROMPT.replace("assistant\n", "assistant\n<think>\n")
    tokenizer = build_tokenizer(TURN.replace("CONTENT", "m['content']") + opened)
    with pytest.raises(SdftError, match=r"line 1: the chat template begins an answer with <think>"):
        encode_one(THOUGHT, tokenizer)


@pytest.mark.parametrize(
    "demonstration", ["<think>1 + 1</think>2", "1 + 1</think>2", "<think>\n\n</think>\n\n2"]
)
def test_demonstrations_that_think_are_refused_as_targets_where_thinking_is_switched_off(demonstration):
    tokenizer, off = build_tokenizer(QWEN3), {"enable_thinking": False}
    message = {"role": "assistant", "content": demonstration}
    for row in (example(demonstration=demonstration), example(demonstration=message)):
        with pytest.raises(
            SdftError, match=r"thinking is switched off at the end .* data\.thoughts=remove, or"
        ):
            encode_one(row, tokenizer, DataConfig(template_kwargs=off))
        kept = encode_one(row, tokenizer, DataConfig(template_kwargs=off, thoughts="remove"))
        assert text(kept.target) == "2<|im_end|>"


def test_the_teacher_sees_the_mark_of_a_thought_that_the_prompt_opened():
    """In the style of Qwen3.5; an empty thought is not shown."""
    opened = QWEN3.replace("{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", "<think>\n")
    reply = {"role": "assistant", "content": "2", "reasoning_content": "1 + 1"}
    shown = encode_one(example(demonstration=reply), build_tokenizer(opened))
    assert "question:\n<think>\n1 + 1\n</think>\n\n2\n\nNow" in text(shown.teacher_prompt)
    assert text(shown.target) == "1 + 1\n</think>\n\n2<|im_end|>"
    shown = encode_one(example(demonstration=reply | {"reasoning_content": ""}), build_tokenizer(opened))
    assert "question:\n2\n\nNow" in text(shown.teacher_prompt)


def test_template_that_drops_the_question_is_refused():
    tokenizer = build_tokenizer(TURN.replace("CONTENT", "m['content'][:2]") + PROMPT)
    with pytest.raises(SdftError, match=r"line 1: the chat template does not render the prompt as it is"):
        encode_one(example(), tokenizer)


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m['role'] + loop.index }}{% endfor %}", {"tool_use": TURN}]
)
def test_any_error_of_a_template_names_the_row(template):
    tokenizer = build_tokenizer(TURN.replace("CONTENT", "m['content']"))
    tokenizer.chat_template = template
    with pytest.raises(SdftError, match=r"^rows\.jsonl, line 1: the model's chat template rejects this"):
        encode_one(example(), tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 0.5 s",
        ),
        ("{{ 'a' * 10**11 }}", "needs more than"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "maximum recursion depth exceeded"),
    ],
)
def test_template_over_a_limit_names_the_row(template, reason, monkeypatch):
    monkeypatch.setattr(rendering, "LIMITS", rendering.LIMITS._replace(seconds=0.5))
    message = rf"^rows\.jsonl, line 3: the model's chat template rejects this conversation \((it )?{reason}"
    with pytest.raises(SdftError, match=message):
        encode_one(example(row=2), build_tokenizer(template))


@pytest.mark.parametrize("place", CONTROL)
def test_control_tokens_in_a_row_are_plain_text_by_option(place):
    """The template's own control tokens stay, and decoding gives the row's text back."""
    config = dataclasses.replace(CONFIG, control_tokens="text")
    row = CONTROL[place]
    encoded = encode_one(row, config=config)
    rendered = [
        TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in (
            encoding.student_messages(row),
            encoding.teacher_messages(row, encoding.load_template("reference")),
        )
    ]
    turns = len(encoding.student_messages(row)) + 1  # the template adds a system prompt
    for ids, expected in zip((encoded.prompt, encoded.teacher_prompt), rendered, strict=True):
        assert text(ids) == expected
        assert np.isin(ids, EOS_IDS).sum() == turns
    assert text(encoded.target) == row.demonstration + "<|im_end|>"
    assert np.flatnonzero(encoded.target == EOS_IDS[0]).tolist() == [len(encoded.target) - 1]
    ((raw,), _) = encoding.encode_texts([row], format_of(config), config)
    assert text(raw.target) == row.demonstration
    assert not np.isin(raw.target, EOS_IDS).any()


def test_rows_without_control_tokens_have_the_same_tokens_with_the_option():
    config = dataclasses.replace(CONFIG, control_tokens="text")
    one, other = encode_one(example()), encode_one(example(), config=config)
    for part in ("prompt", "teacher_prompt", "target"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


@pytest.fixture
def untokenized(monkeypatch):
    """Fail if a text of more than a million characters is tokenized or rendered."""
    for name in ("tokenize", "render"):
        function = getattr(encoding, name)

        def checked(tokenizer, value, *rest, function=function):
            assert len(str(value)) < 1_000_000
            return function(tokenizer, value, *rest)

        monkeypatch.setattr(encoding, name, checked)


HUGE = "many words " * 1_000_000


def test_rows_far_over_a_limit_are_dropped_by_their_length(untokenized):
    rows = [example(row=0), example(HUGE, row=1), example(demonstration=HUGE, row=2)]
    rows.append(Example("Two?", HUGE, None, 3, "rows.jsonl", context="It is 2."))
    kept, dropped = encoding.encode_all(rows, format_of(), CONFIG, max_target=50)
    assert [e.row for e in kept] == [0]
    assert dropped == encoding.Dropped(prompt=(1,), teacher_prompt=(2,), target=(3,))
    (kept,), dropped = encoding.encode_texts([example((), "a"), example((), HUGE, 1)], format_of(), CONFIG)
    assert (kept.row, dropped) == (0, encoding.Dropped(text=(1,)))


def test_row_far_over_a_limit_raises_with_the_remedy(untokenized):
    config = dataclasses.replace(CONFIG, overlong="error")
    message = (
        r"^rows\.jsonl, line 1: the prompt has at least \d+ tokens, more than data.max_prompt=1024: raise"
    )
    with pytest.raises(SdftError, match=message):
        encoding.encode_all([example(HUGE)], format_of(), config, teacher=False)


def test_earlier_turns_far_over_a_limit_are_dropped_by_the_length_of_the_rendered_text(monkeypatch):
    """A template may drop earlier turns, so that only its text shows their length."""
    monkeypatch.setattr(encoding, "tokenize", lambda tokenizer, text: pytest.fail("tokenized"))
    for content in (HUGE, " " * 1_000_000 + "a"):
        chat = ({"role": "assistant", "content": content}, {"role": "user", "content": "Two?"})
        with pytest.raises(SdftError, match=r"no row is left \(1 over data.max_prompt \(rows 0\)\)"):
            encoding.encode_all([example(chat)], format_of(), CONFIG)


def test_long_row_that_fits_is_kept():
    """The template trims it to a few tokens."""
    tokenizer = build_tokenizer(QWEN.replace("m['content']", "m['content'] | trim"))
    row = example(" " * 1_000_000 + "Two?", demonstration="2" + " " * 1_000_000)
    format = format_of(tokenizer=tokenizer)
    (encoded,), _ = encoding.encode_all([row], format, CONFIG, max_target=2, teacher=False)
    assert text(encoded.prompt) == text(encode_one(example(), tokenizer).prompt)
    assert text(encoded.target) == "2<|im_end|>"


def test_text_that_the_tokenizer_cannot_encode_names_the_row():
    with pytest.raises(
        SdftError, match=r"^rows\.jsonl, line 1: the tokenizer cannot encode this row's text \("
    ):
        encode_one(example("half of a pair: \ud83d"))

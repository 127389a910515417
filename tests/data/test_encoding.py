import dataclasses
import json

import numpy as np
import pytest

from fixtures.chat import GEMMA, QWEN, build_tokenizer
from sdft_jax.config.settings import DataConfig
from sdft_jax.data import encoding
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.models.hf import tokenizer as tokenizer_module

TOKENIZER = build_tokenizer()
EOS = (TOKENIZER.eos_token_id,)
CONFIG = DataConfig()


def example(prompt="Two?", demonstration="It is 2.", row=0):
    return Example(prompt, demonstration, None, row, "rows.jsonl")


def encode_one(one, tokenizer=TOKENIZER, config=CONFIG, **kwargs):
    kept, _ = encoding.encode_all([one], tokenizer, config, eos=EOS, max_completion=5000, **kwargs)
    return kept[0]


def text(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_prompts_are_those_of_the_reference_byte_for_byte():
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
    assert text(encoded.demonstration) == "It is 2.<|im_end|>"
    assert encoded.prompt.dtype == encoded.teacher_prompt.dtype == encoded.demonstration.dtype == np.int32


def test_tokens_are_those_of_the_tokenizers_own_chat_path():
    chat = [{"role": "user", "content": "Two?"}]
    own = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    np.testing.assert_array_equal(encode_one(example()).prompt, np.ravel(own["input_ids"]))


def test_teacher_keeps_system_and_earlier_turns():
    chat = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    )
    one = example(chat)
    student, teacher = (
        encoding.student_messages(one),
        encoding.teacher_messages(one, encoding.load_template("reference")),
    )
    assert student == list(chat)
    assert teacher[:3] == list(chat[:3])
    assert teacher[3]["role"] == "user"
    assert teacher[3]["content"].startswith("\nTwo?\n\nThis is an example")
    assert "You are helpful" not in text(encode_one(one).teacher_prompt)


def test_the_teacher_is_shown_the_context_and_sft_the_demonstration():
    encoded = encode_one(dataclasses.replace(example(), context="An article. It is 2."))
    assert "response to the question:\nAn article. It is 2.\n" in text(encoded.teacher_prompt)
    assert text(encoded.demonstration) == "It is 2.<|im_end|>"
    assert "article" not in text(encoded.prompt)


@pytest.mark.parametrize(
    ("tokens", "start"), [({}, "<|im_end|>"), ({"bos_token": "<bos>"}, "<bos>")], ids=["EOS", "BOS"]
)
def test_raw_texts_stand_after_one_token(tokens, start):
    tokenizer = build_tokenizer(**tokens)
    rows = [example((), "It is 2.", row=3), example((), "x" * 50, row=4)]
    seen = []
    kept, dropped = encoding.encode_texts(
        rows,
        tokenizer,
        DataConfig(max_teacher_prompt=20, max_prompt=1),
        progress=lambda done, total: seen.append((done, total)),
    )
    (one,) = kept
    assert tokenizer.decode(one.prompt, skip_special_tokens=False) == start
    assert (len(one.prompt), len(one.teacher_prompt), one.row) == (1, 0, 3)
    assert tokenizer.decode(one.demonstration, skip_special_tokens=False) == "It is 2."
    assert dropped == encoding.Dropped(text=(4,))
    assert str(dropped) == "1 over data.max_teacher_prompt (rows 4)"
    assert seen == [(1, 2), (2, 2)]


def test_overlong_text_names_the_remedy():
    config = DataConfig(max_teacher_prompt=20, overlong="error")
    with pytest.raises(
        SdftError, match=r"line 1: text has 50 tokens.*data.max_teacher_prompt=20: raise .* to 50"
    ):
        encoding.encode_texts([example((), "x" * 50)], TOKENIZER, config)


def test_long_demonstration_never_costs_the_question():
    # The released code cuts the teacher's prompt from the left at the student's limit.
    config = DataConfig(max_prompt=100, max_teacher_prompt=3000)
    encoded = encode_one(example("What is asked here?", "long " * 500), config=config)
    assert len(encoded.teacher_prompt) > 2500
    assert "What is asked here?" in text(encoded.teacher_prompt)


def test_dollars_survive():
    hostile = example("Pay $5, $question, ${demonstration} or $$?", "$demonstration costs $1 $$ ${x}")
    wrapped = text(encode_one(hostile).teacher_prompt)
    assert "\nPay $5, $question, ${demonstration} or $$?\n" in wrapped
    assert "\n$demonstration costs $1 $$ ${x}\n" in wrapped


def test_own_templates(tmp_path):
    assert (
        encoding.load_template("$$ $question ${demonstration}").substitute(question="q", demonstration="d")
        == "$ q d"
    )
    file = tmp_path / "teacher.txt"
    file.write_bytes("\u00e9 $question\n$demonstration\n".encode())
    assert encoding.load_template(f"file:{file}").template == "\u00e9 $question\n$demonstration\n"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("only $question", r"data.template: \$demonstration is missing"),
        ("$demonstration", r"\$question is missing"),
        ("$question $demonstration $name", r"unknown placeholder \$name"),
        ("$question $demonstration 5$", "write \\$\\$"),
        ("file:/no/such.txt", "/no/such.txt cannot be read"),
    ],
)
def test_bad_templates_are_refused(template, problem):
    with pytest.raises(SdftError, match=problem):
        encoding.load_template(template)


def test_template_kwargs_reach_the_chat_template():
    config = DataConfig(template_kwargs={"enable_thinking": False})
    encoded = encode_one(example(), config=config)
    assert text(encoded.prompt).endswith("assistant\n<think></think>")
    # The rendered assistant turn lacks the empty thought, so it does not extend the prompt: text and EOS.
    assert text(encoded.demonstration) == "It is 2.<|im_end|>"


def test_completion_is_what_the_template_renders():
    spaced = build_tokenizer(QWEN.replace("{{ m['content'] }}", "{{ m['content'] | trim }} "))
    assert (
        text(encode_one(example(demonstration=" It is 2.\n"), spaced).demonstration) == "It is 2. <|im_end|>"
    )


def test_completion_falls_back_to_text_and_eos():
    # Gemma-like: the template knows no EOS of this tokenizer.
    assert text(encode_one(example(), build_tokenizer(GEMMA)).demonstration) == "It is 2.<|im_end|>"


def test_demonstration_with_end_of_turn_is_refused():
    with pytest.raises(
        SdftError, match=r"rows.jsonl, line 1: the demonstration contains an end-of-turn token"
    ):
        encode_one(example(demonstration="a<|im_end|>b"))


def test_chat_template_that_refuses_is_named():
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
    with pytest.raises(SdftError, match=r"rows.jsonl, line 4: .*System role not supported"):
        encode_one(example(chat, row=3), build_tokenizer(GEMMA))


def test_each_limit_has_its_own_count():
    rows = [example(row=0), example("x" * 200, row=1), example(demonstration="y" * 300, row=2)]
    rows.append(example(demonstration="z" * 60, row=3))
    config = DataConfig(max_prompt=150, max_teacher_prompt=400)
    seen = []
    kept, dropped = encoding.encode_all(
        rows,
        TOKENIZER,
        config,
        eos=EOS,
        max_completion=50,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [e.row for e in kept] == [0]
    assert dropped == encoding.Dropped(prompt=(1,), teacher_prompt=(2,), demonstration=(3,))
    assert dropped.total == 3
    assert str(dropped) == (
        "1 over data.max_prompt (rows 1); 1 over data.max_teacher_prompt (rows 2); "
        "1 over sampling.max_new_tokens (rows 3)"
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_limit_is_inclusive():
    length = len(encode_one(example()).prompt)
    assert encode_one(example(), config=DataConfig(max_prompt=length)).row == 0
    with pytest.raises(SdftError, match=r"no row is left: 1 over data.max_prompt"):
        encode_one(example(), config=DataConfig(max_prompt=length - 1))


def test_only_what_is_needed_is_encoded():
    kept, _ = encoding.encode_all(
        [example(demonstration="")], TOKENIZER, DataConfig(max_teacher_prompt=1), eos=EOS, teacher=False
    )
    assert len(kept[0].teacher_prompt) == len(kept[0].demonstration) == 0


def test_overlong_error_names_row_count_limit_and_remedy():
    config = DataConfig(max_teacher_prompt=200, overlong="error")
    tokens = len(encode_one(example(demonstration="y" * 100)).teacher_prompt)
    message = (
        f"rows.jsonl, line 8: teacher_prompt has {tokens} tokens, more than data.max_teacher_prompt=200: "
        f"raise data.max_teacher_prompt to {tokens} or more, or set data.overlong=drop."
    )
    with pytest.raises(SdftError) as caught:
        encode_one(example(demonstration="y" * 100, row=7), config=config)
    assert str(caught.value) == message


@pytest.mark.parametrize("part", ["chat_template", "pad_token", "eos_token"])
def test_incomplete_tokenizers_are_refused(part, tmp_path):
    build_tokenizer(**{part: None}).save_pretrained(tmp_path)
    with pytest.raises(SdftError, match=part.replace("_template", " template")):
        tokenizer_module.load_tokenizer(str(tmp_path))


def test_pad_may_be_eos():
    tokenizer_module.check_tokenizer(build_tokenizer(pad_token="<|im_end|>"), "here")


def test_load_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = tokenizer_module.load_tokenizer(str(tmp_path))
    np.testing.assert_array_equal(
        encode_one(example(), loaded).teacher_prompt, encode_one(example()).teacher_prompt
    )


def test_missing_and_broken_tokenizers_are_refused(tmp_path):
    with pytest.raises(SdftError, match="no tokenizer here"):
        tokenizer_module.load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(SdftError, match="the tokenizer cannot be loaded"):
        tokenizer_module.load_tokenizer(str(tmp_path))


def test_eos_ids(tmp_path):
    assert tokenizer_module.eos_ids(TOKENIZER, tmp_path) == EOS
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, EOS[0]]}))
    assert tokenizer_module.eos_ids(TOKENIZER, tmp_path) == (EOS[0], 9, 7)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SdftError, match=r"config.json is not valid JSON"):
        tokenizer_module.eos_ids(TOKENIZER, tmp_path)


def test_where_counts_as_the_reader_does():
    assert example(row=2).where == "rows.jsonl, line 3"
    assert dataclasses.replace(example(row=2), source="tfds:toy").where == "tfds:toy, row 2"

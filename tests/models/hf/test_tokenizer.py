"""Loading and checks of tokenizers, and the tokens that end a completion."""

import json

import pytest

from fixtures.chat import build_tokenizer
from sdft_jax.errors import SdftError
from sdft_jax.models.hf.tokenizer import check_tokenizer, load_tokenizer, read_eos_ids, stop_tokens

TOKENIZER = build_tokenizer()
EOS = TOKENIZER.eos_token_id


@pytest.mark.parametrize("part", ["chat_template", "pad_token", "eos_token"])
def test_incomplete_tokenizer_raises(part, tmp_path):
    build_tokenizer(**{part: None}).save_pretrained(tmp_path)
    with pytest.raises(SdftError, match=part.replace("_template", " template")):
        load_tokenizer(str(tmp_path))


def test_the_chat_template_of_a_processor_is_used_if_the_tokenizer_has_none(tmp_path):
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert load_tokenizer(str(tmp_path)).chat_template == "{{ messages }}"


def test_pad_token_may_be_the_eos_token():
    check_tokenizer(build_tokenizer(pad_token="<|im_end|>"), "here")


def test_loaded_tokenizer_renders_the_same_tokens(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\nTwo?\n\nThis is an example: It is 2.\n"},
    ]
    loaded, original = (
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        for tokenizer in (load_tokenizer(str(tmp_path)), TOKENIZER)
    )
    assert loaded["input_ids"] == original["input_ids"]


def test_missing_or_invalid_tokenizer_files_raise(tmp_path):
    with pytest.raises(SdftError, match="the directory has no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(SdftError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_wrong_value_in_config_json_is_not_blamed_on_the_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "rms_norm_eps": "1e-6"}))
    with pytest.raises(SdftError, match=r"config\.json: Validation error for field 'rms_norm_eps': .*'1e-6'"):
        load_tokenizer(str(tmp_path))


def test_eos_ids_of_the_tokenizer_and_both_config_files(tmp_path):
    assert read_eos_ids(TOKENIZER, tmp_path) == (EOS,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, EOS]}))
    assert read_eos_ids(TOKENIZER, tmp_path) == (EOS, 9, 7)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 8}}))
    assert read_eos_ids(TOKENIZER, tmp_path) == (EOS, 9, 8)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SdftError, match=r"config.json is not valid JSON"):
        read_eos_ids(TOKENIZER, tmp_path)


def test_stop_tokens_count_the_ids_of_the_tokenizer():
    tokenizer = build_tokenizer()
    assert stop_tokens(tokenizer, [EOS]) == ((EOS,), tokenizer.pad_token_id, 256 + 4)
    tokenizer.add_tokens(["<extra>"])
    assert stop_tokens(tokenizer, [EOS]).known == 256 + 5

"""Arguments of chat templates; the templates are those of the fixtures."""

import pytest

from fixtures.chat import OPENED, QWEN3, build_tokenizer
from sdft_jax.config.settings import DataConfig
from sdft_jax.data.template_arguments import check_arguments, names_in
from sdft_jax.errors import SdftError


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}, {"enable_thinking": None}])
def test_arguments_that_the_template_reads(arguments):
    check_arguments(build_tokenizer(QWEN3), DataConfig(template_kwargs=arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"enable_thinkin": False},
            r"enable_thinkin: the chat template does not read .*enable_thinking\)",
        ),
        (
            {"continue_final_message": True},
            "continue_final_message: the chat template does not read this argument",
        ),
        ({"messages": 1}, r"messages: each row determines this argument: remove it"),
        ({"add_generation_prompt": False}, "add_generation_prompt: each row determines"),
        (
            {"enable_thinking": "False"},
            "enable_thinking='False' is a text, which a template takes for true: remove the quotes",
        ),
    ],
    ids=str,
)
def test_arguments_without_effect_are_refused(arguments, message):
    for option in ("template_kwargs", "teacher_template_kwargs"):
        with pytest.raises(SdftError, match=rf"^data\.{option}\.{message}"):
            check_arguments(build_tokenizer(QWEN3), DataConfig(**{option: arguments}))


def test_a_template_that_reads_no_argument():
    with pytest.raises(SdftError, match=r"the chat template reads no arguments: remove it\.$"):
        check_arguments(build_tokenizer(OPENED), DataConfig(template_kwargs={"enable_thinking": False}))


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% if thinking %}{{ messages[0].content }}{% endif %}", {"messages", "thinking"}),
        ("{% set thinking = 1 %}{{ thinking }}{{ raise_exception('no') }}{{ range(2) }}", set()),
        (
            "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}",
            {"messages"},
        ),
        ("{% if %}", None),  # rendering reports it
        ({"default": "{{ messages }}"}, None),
    ],
)
def test_names_that_a_template_reads(template, names):
    assert names_in(template) == names

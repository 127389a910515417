"""Chat templates are rendered as by transformers, and a template without end or measure becomes a reason."""

import os
import signal

import pytest

from fixtures.chat import GEMMA, QWEN, build_tokenizer
from sdft_jax.files import rendering
from sdft_jax.files.rendering import RenderError, render

CHAT = [{"role": "user", "content": "Two \u00e9 \U0001f600?"}, {"role": "assistant", "content": "It is\n2."}]
TOOLS = [{"type": "function", "function": {"name": "get", "description": "a<b"}}]


@pytest.fixture
def short(monkeypatch):
    """Limit a rendering to half a second of processor time, 1 MiB of text and 256 MiB of memory."""
    monkeypatch.setattr(rendering, "LIMITS", rendering.Limits(0.5, 1 << 20, 1 << 28))


def tokenizer_of(template):
    return build_tokenizer(template, bos_token="<bos>")


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize(
    ("template", "kwargs"),
    [
        (QWEN, {}),
        (QWEN, {"enable_thinking": False}),
        (GEMMA, {}),
        (
            "{{ bos_token }}{{ eos_token }}{{ pad_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
            {},
        ),
        ("{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}", {"tools": TOOLS}),
        ("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", {}),
        ({"default": "plain", "tool_use": "tools"}, {"tools": TOOLS}),
    ],
)
def test_text_is_that_of_transformers(template, kwargs, generation_prompt):
    tokenizer = tokenizer_of(template)
    expected = tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=generation_prompt, **kwargs
    )
    assert render(tokenizer, CHAT, kwargs, generation_prompt) == expected


def test_half_of_a_surrogate_pair_is_passed_on():
    assert (
        render(tokenizer_of("{{ messages[0].content }}"), [{"role": "user", "content": "\ud83d"}], {})
        == "\ud83d"
    )


DOUBLED = (
    "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
)
HOSTILE = {
    "two loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**11 }}",
    "a text over the output": "{{ 'ab' * 1000000 }}",
    "a wide field": "{{ '%100000000000d' % 1 }}",
    "a doubled text": DOUBLED.replace("START", "'ab'").replace("NEXT", "ns.x + ns.x"),
    "a text of a doubled list": DOUBLED.replace("START", "['a']").replace("NEXT", "[ns.x, ns.x]"),
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "deep expressions": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "an exception": "{{ raise_exception('no system') }}",
    "another type": "{{ 'a' + 1 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_end_or_measure_becomes_a_reason(name, short):
    """And the next conversation is rendered."""
    with pytest.raises(RenderError) as caught:
        render(tokenizer_of(HOSTILE[name]), CHAT, {})
    assert 0 < len(str(caught.value).splitlines()) <= 1
    assert render(tokenizer_of("{{ messages[1].content }}"), CHAT, {}) == "It is\n2."


def test_reasons_name_the_limit(short):
    for name, reason in {
        "two loops": "it takes more than 0.5 s of processor time",
        "a long text": "it needs more than 256 MiB of memory",
        "a text over the output": "it makes more than 1 MiB of text",
        "an exception": "no system",
    }.items():
        with pytest.raises(RenderError, match=f"^{reason}$"):
            render(tokenizer_of(HOSTILE[name]), CHAT, {})


def test_a_long_conversation_may_have_a_long_text(monkeypatch):
    monkeypatch.setattr(rendering, "LIMITS", rendering.LIMITS._replace(output=100))
    long = [{"role": "user", "content": "a" * 100_000}]
    assert len(render(tokenizer_of("{{ messages[0].content * 2 }}"), long, {})) == 200_000
    with pytest.raises(RenderError, match="more than 0 MiB of text"):
        render(tokenizer_of("{{ 'a' * 200000 }}"), CHAT, {})


def test_an_argument_that_is_not_data_is_refused():
    with pytest.raises(RenderError, match="pickle"):
        render(tokenizer_of(QWEN), CHAT, {"tools": [lambda x: x]})


def test_a_process_that_was_ended_is_replaced():
    text = render(tokenizer_of(QWEN), CHAT, {})
    process = rendering._process(os.getpid())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert render(tokenizer_of(QWEN), CHAT, {}) == text


def test_an_interrupted_request_does_not_answer_the_next_one(monkeypatch):
    read = rendering._read

    def interrupted(pipe, size):
        monkeypatch.setattr(rendering, "_read", read)
        raise KeyboardInterrupt

    monkeypatch.setattr(rendering, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render(tokenizer_of("first"), CHAT, {})
    assert render(tokenizer_of("second"), CHAT, {}) == "second"

import pytest

from fixtures.chat import TRACE, weather_call
from sdft_jax.data.messages import kind_of, read_messages, read_text, tool_calls
from sdft_jax.errors import SdftError

PLACE = "a.jsonl, line 3"


def read(*messages):
    return read_messages(list(messages), "chat", PLACE)


def test_arguments_of_tool_calls_become_objects_and_their_missing_content_becomes_empty():
    messages = read(*TRACE)
    assert messages[1]["content"] == ""
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert messages[1]["tool_calls"][0]["id"] == "call-0"
    assert tool_calls(messages[3]) == [
        {"name": "weather", "arguments": {"city": city}} for city in ("Rome", "Bari")
    ]
    assert tool_calls(messages[0]) == []
    assert messages[2] == TRACE[2]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ({"arguments": '{"a": {"b": [1]}}'}, {"a": {"b": [1]}}),
        ({"arguments": {"a": 1}}, {"a": 1}),
        ({"arguments": ""}, {}),
        ({"arguments": None}, {}),
        ({}, {}),
    ],
)
def test_forms_of_arguments(function, arguments):
    function = {"name": "f", **function}
    for call in ({"type": "function", "function": function}, {"id": None, "function": function}, function):
        (message,) = read({"role": "assistant", "tool_calls": [call]})
        assert message["tool_calls"] == [
            {"type": "function", "function": {"name": "f", "arguments": arguments}}
        ], call


def test_nulls_and_empty_lists_of_calls_are_removed():
    turn = {"role": "user", "content": "a", "name": None, "tool_calls": []}
    assert read(turn) == [{"role": "user", "content": "a"}]


def test_texts_of_parts_are_joined_by_newlines():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read({"role": "user", "content": parts}) == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "assistant", "content": None}, "the content of message 1 of field 'chat' is not a string"),
        ({"from": "human", "value": "a"}, "message 1 of field 'chat' is not a chat message: write it as"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            "message 1 of field 'chat' has a part of type 'image_url', and models are trained on text only",
        ),
        (
            {"role": "user", "content": "a", "images": ["u"]},
            "message 1 of field 'chat': field 'images' contains an image, and models are trained on text",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "video": {"path": "u"}}]},
            "message 1 of field 'chat': field 'video' contains a video, and models are trained on text only",
        ),
        ({"role": "tool", "content": {"t": 5}}, "the content of message 1 of field 'chat' is not a string"),
        ({"role": "assistant", "tool_calls": "f()"}, "has tool_calls of type str: give a list of calls"),
        (
            {"role": "assistant", "tool_calls": ["f()"]},
            "message 1 .* has a tool call without a name: write it",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            "a tool call without a name",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x: 1"}]},
            "message 1 of field 'chat' calls f with arguments that are not a JSON object: give an object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]},
            "calls f with arguments that",
        ),
    ],
)
def test_invalid_messages_raise(message, problem):
    with pytest.raises(SdftError, match=rf"^a\.jsonl, line 3: .*{problem}|^a\.jsonl, line 3: {problem}"):
        read({"role": "user", "content": "q"}, message)


def test_record_of_lists_is_a_list_of_messages():
    record = {
        "role": ["user", "assistant"],
        "content": ["a", None],
        "tool_calls": [None, [weather_call("Oslo")]],
    }
    messages = read_messages(record, "chat", PLACE)
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert tool_calls(messages[1]) == [{"name": "weather", "arguments": {"city": "Oslo"}}]


def test_texts():
    assert read_text(["a", "b"], "f", PLACE) == "a\nb"
    with pytest.raises(SdftError, match=r"^a\.jsonl, line 3: field 'f' has type list of int and str: give"):
        read_text(["a", 1], "f", PLACE)
    assert kind_of([1, "a"]) == "list of int and str"

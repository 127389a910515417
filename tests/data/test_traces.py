import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from fixtures.chat import TOOLS, TRACE, weather_call
from sdft_jax.config.settings import DataConfig
from sdft_jax.data import make_examples, read_rows
from sdft_jax.data.sources import index_examples
from sdft_jax.data.traces import demonstrated_turns, read_tools, read_trace, tool_name
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.scorers import TASKS

CONFIG = DataConfig(messages="messages")
ROW = {"messages": TRACE, "tools": TOOLS, "answer": "Rome"}
ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def examples(*rows, config=CONFIG, **options):
    return make_examples(rows, config, "a.jsonl", **options)


def roles(*names):
    return [{"role": name, "content": "c"} for name in names]


def test_each_turn_is_an_example_with_the_messages_before_it_as_prompt():
    rows = examples(ROW)
    assert [row.turn for row in rows] == [1, 3, 6]
    for row in rows:
        assert row.prompt == tuple(read_trace(TRACE, "messages", "here")[: row.turn])
        assert row.demonstration == read_trace(TRACE, "messages", "here")[row.turn]
        assert row.tools == tuple(TOOLS)
        assert row.location == f"a.jsonl, line 1, message {row.turn}"
    assert [row.answer for row in rows] == [None, None, "Rome"]


def test_turns_that_answer_nothing_are_context_only():
    messages = roles("system", "assistant", "user", "assistant", "assistant", "tool", "assistant", "user")
    assert demonstrated_turns(messages, "messages", "here") == [3, 6]
    messages[3]["weight"], messages[6]["weight"] = 0, 1
    assert demonstrated_turns(messages, "messages", "here") == [6]


def test_trace_may_end_in_a_call():
    rows = examples({**ROW, "messages": TRACE[:2]})
    assert [row.turn for row in rows] == [1]
    assert rows[0].demonstration["tool_calls"][0]["function"]["name"] == "weather"


def test_rows_without_a_trace_have_a_prompt_and_a_demonstration():
    plain = {"messages": None, "prompt": "p", "demonstration": "d"}
    rows = examples(plain, ROW)
    assert [row.row for row in rows] == [0, 1, 1, 1]
    assert (rows[0].prompt, rows[0].demonstration) == (({"role": "user", "content": "p"},), "d")
    assert [row.row for row in examples(plain, ROW, config=DataConfig(messages="messages", limit=1))] == [0]


def test_turns_are_read_on_access_in_any_order():
    plain = {"prompt": "p", "demonstration": "d"}
    rows = [ROW, plain, {**ROW, "messages": TRACE[:2]}, ROW]
    indexed, listed = index_examples(rows, CONFIG, "a.jsonl"), examples(*rows)
    assert len(indexed) == len(listed) == 8
    assert [indexed[place] for place in (7, 0, 3, 4, 2, -1)] == [listed[i] for i in (7, 0, 3, 4, 2, 7)]


def test_system_prompt_and_context_belong_to_every_turn():
    config = DataConfig(messages="messages", context="policy")
    rows = examples({**ROW, "system": "s", "policy": "be kind"}, config=config, context=True)
    assert {row.context for row in rows} == {"be kind"}
    assert {row.prompt[0]["content"] for row in rows} == {"s"}
    assert [row.turn for row in rows] == [1, 3, 6]


def test_messages_and_tools_may_be_json_strings():
    rows = examples({"messages": json.dumps(TRACE), "tools": json.dumps(TOOLS)})
    assert rows == examples({"messages": TRACE, "tools": TOOLS})


def test_rows_of_parquet_are_those_of_json(tmp_path):
    """Arrow gives all calls and schemas the keys of all others, with null as the value."""
    other = [{"type": "function", "function": {"name": "clock", "description": "Time", "parameters": {}}}]
    called = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "CET"}'}}
    second = {"messages": [ASK, {**ANSWER, "tool_calls": [called]}], "tools": other, "answer": None}
    Dataset.from_list([ROW, second]).to_parquet(tmp_path / "a.parquet")
    rows = make_examples(read_rows(str(tmp_path / "a.parquet")), CONFIG, "a.jsonl")
    expected = examples(ROW, second)
    assert [(row.prompt, row.demonstration) for row in rows] == [
        (row.prompt, row.demonstration) for row in expected
    ]
    assert [tool_name(row.tools[0]) for row in rows] == ["weather"] * 3 + ["clock"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [ASK]}, "field 'messages' has no assistant turn that answers a user message or a tool"),
        ({"messages": roles("system", "assistant")}, "has no assistant turn that answers"),
        ({"messages": []}, "has no assistant turn that answers"),
        ({"chat": [ASK, ANSWER]}, r"field 'messages' is missing \(found: chat\).*data\.messages=FIELD"),
        ({"messages": "hello"}, "field 'messages' is a string that is not valid JSON: give a list"),
        ({"messages": 5}, "field 'messages' has type int"),
        (
            {"messages": [ASK, {**ANSWER, "content": " "}]},
            "message 1 .* assistant turn without a text or a tool",
        ),
        (
            {"messages": TRACE},
            r"message 1 calls a tool, and the row has no tools in field 'tools'.*set data\.tools=null",
        ),
        ({"messages": TRACE, "tools": []}, "message 1 calls a tool, and the row has no tools"),
        ({"messages": TRACE, "tools": "weather"}, "field 'tools' is a string that is not valid JSON"),
        (
            {"messages": TRACE, "tools": {"name": "f"}},
            "field 'tools' has type dict: give a list of JSON schemas",
        ),
        ({"messages": TRACE, "tools": ["weather"]}, "tool 0 of field 'tools' has no name: write it as"),
        ({"messages": TRACE, "tools": [{"function": {}}]}, "tool 0 of field 'tools' has no name"),
        (
            {"messages": roles("system", "user", "assistant"), "system": "s"},
            "fields 'system' and 'messages' both contain a system prompt",
        ),
    ],
)
def test_invalid_traces_raise_with_their_location(row, problem):
    with pytest.raises(SdftError, match=rf"^a\.jsonl, line 2: .*{problem}|^a\.jsonl, line 2: {problem}"):
        examples(ROW, row)


def test_rows_of_the_documentation():
    page = Path(__file__).parents[2] / "configs" / "README.md"
    blocks = re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    shown, trace, calls = map(json.loads, blocks)
    config = DataConfig(messages="messages", demonstrations="shown")
    rows = examples(shown, trace, config=config)
    assert [(row.row, len(row.others), row.turn) for row in rows] == [(0, 1, None), (1, 0, 1), (1, 0, 3)]
    assert TASKS["toolcalls"].problem(calls["answer"]) is None


def test_tools_that_a_message_describes_are_not_required():
    rows = examples({"messages": TRACE}, config=DataConfig(messages="messages", tools=None))
    assert {row.tools for row in rows} == {()}
    assert read_tools(None, [ASK, ANSWER], "tools", "here") == ()
    bare = [{"name": "f", "parameters": {}}]
    assert read_tools(bare, [{**ANSWER, "tool_calls": [weather_call("Oslo")]}], "tools", "here") == tuple(
        bare
    )

"""Evaluation rows: their fields, limits and tokens."""

import json

import pytest

from fixtures.chat import HERMES, TOOLS, TRACE
from fixtures.chat import build_tokenizer as build_bytes
from runs import config_of
from sdft_jax.data.encoding import make_format
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import encode_eval, load_eval_set, read_eval
from sdft_jax.models.hf.tokenizer import load_tokenizer, read_eos_ids

ROW = {"prompt": "please blax the letters a b", "demonstration": "= b a !", "answer": "b a"}


@pytest.fixture
def load(tiny_directory):
    """Return a function that loads the eval set of a configuration with these overrides."""

    def load(*overrides, teacher=True):
        config = config_of(tiny_directory, "unused", *overrides)
        tokenizer = load_tokenizer(str(tiny_directory))
        format = make_format(tokenizer, config.data, read_eos_ids(tokenizer, tiny_directory))
        return load_eval_set(config.eval.path, config, format, teacher), format

    return load


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a file with these rows."""
    file = tmp_path / "rows.jsonl"

    def read(*rows, overrides=(), teacher=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_eval(str(file), config_of("mini", "unused", *overrides), teacher)

    return read


def test_rows_are_those_of_the_file_up_to_eval_limit(load, read):
    rows, _ = load("eval.limit=5", "data.limit=3")
    assert [example.row for example in rows.examples] == list(range(5))
    assert rows.dropped.total == 0
    assert len(read(ROW, ROW, overrides=["data.limit=1", "eval.limit=null"])) == 2


def test_teacher_prompts_are_encoded_on_request(load):
    rows, format = load()
    for example, encoded in zip(rows.examples, rows.encoded, strict=True):
        assert example.demonstration in format.tokenizer.decode(encoded.teacher_prompt)
        assert len(encoded.target) == 0
    rows, _ = load(teacher=False)
    assert {len(encoded.teacher_prompt) for encoded in rows.encoded} == {0}
    assert {example.demonstration for example in rows.examples} == {""}


def test_examples_and_tokens_correspond_after_rows_are_dropped(load):
    rows, format = load("data.max_prompt=13", "eval.limit=24", teacher=False)
    assert 0 < rows.dropped.total < 24
    assert len(rows.examples) + rows.dropped.total == 24
    for example, encoded in zip(rows.examples, rows.encoded, strict=True):
        assert example.row == encoded.row
        assert example.prompt[0]["content"] in format.tokenizer.decode(encoded.prompt)


def test_loading_is_reading_and_encoding(load, tiny_directory):
    rows, format = load()
    config = config_of(tiny_directory, "unused")
    again = encode_eval(read_eval(config.eval.path, config, True), config, format, True)
    assert again.examples == rows.examples
    assert [x.prompt.tolist() for x in again.encoded] == [x.prompt.tolist() for x in rows.encoded]


def test_a_missing_answer_is_an_error(read):
    with pytest.raises(SdftError, match=r"rows\.jsonl, line 2: field 'answer' is missing"):
        read(ROW, ROW | {"answer": None})
    with pytest.raises(SdftError, match=r"contains an image, and .* give a data set of texts\.$"):
        read(ROW | {"image": "a.png"})


def test_an_answer_that_the_task_cannot_score_is_an_error(read):
    with pytest.raises(
        SdftError, match=r"rows\.jsonl, line 1: eval\.task=tooluse cannot use this row's answer"
    ):
        read(ROW, overrides=["eval.task=tooluse"])
    row = ROW | {"prompt": "q\nA: x\nB: y\nC: z\nD: w", "answer": "D"}
    for task in ("choice", "letter"):
        with pytest.raises(SdftError, match=r"rows\.jsonl, line 2: eval\.task=.* it is 'E', and the options"):
            read(row, row | {"answer": "E"}, overrides=[f"eval.task={task}"])


def test_error_for_a_missing_demonstration_mentions_eval_teacher(read):
    row = {"prompt": ROW["prompt"], "answer": ROW["answer"]}
    missing = r"rows\.jsonl, line 1: field 'demonstration' is missing .*\.demonstration=FIELD\."
    with pytest.raises(SdftError, match=missing + r" .* set eval\.teacher=false\.$"):
        read(row)
    with pytest.raises(SdftError, match=missing + "$"):  # an oracle always needs it
        read(row, overrides=["train.method=oracle"])
    assert len(read(row, teacher=False)) == 1


def test_only_the_first_demonstration_is_read(load, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps(ROW | {"shown": ["= b a !", other]}) + "\n" for other in ("b", "b " * 90))
    )
    limits = ("data.max_teacher_prompt=128", "data.overlong=error", "data.teacher_buckets=[64]")
    rows, format = load(f"eval.path={file}", "data.demonstrations=shown", *limits)
    texts = {format.tokenizer.decode(encoded.teacher_prompt) for encoded in rows.encoded}
    assert len(rows.encoded) == 2
    assert len(texts) == 1
    assert [encoded.others for encoded in rows.encoded] == [(), ()], "a batch needs no width for them"


TRACED = ("data.messages=messages", "eval.task=toolcalls")


def encoded_traces(examples, template, *overrides):
    config = config_of("mini", "unused", *TRACED, "data.max_prompt=2048", *overrides)
    tokenizer = build_bytes(template)
    return encode_eval(
        examples, config, make_format(tokenizer, config.data, (tokenizer.eos_token_id,)), False
    )


def test_references_of_traces_are_the_calls_of_every_turn(read):
    examples = read({"messages": TRACE, "tools": TOOLS, "answer": "Rome"}, overrides=TRACED)
    weather = [[{"name": "weather", "arguments": {"city": city}}] for city in ("Oslo", "Rome", "Bari")]
    assert [example.answer for example in examples] == [weather[0], weather[1] + weather[2], []]
    rows = encoded_traces(examples, HERMES)
    assert [(example.row, example.turn) for example in rows.examples] == [(0, 1), (0, 3), (0, 6)]
    assert [encoded.turn for encoded in rows.encoded] == [1, 3, 6]
    limit = f"data.max_prompt={len(rows.encoded[0].prompt)}"
    assert [example.turn for example in encoded_traces(examples, HERMES, limit).examples] == [1]


def test_reference_of_other_tasks_is_the_answer_after_the_last_turn(read):
    row, overrides = {"messages": TRACE, "tools": TOOLS}, ("data.messages=messages", "eval.task=contains")
    examples = read({**row, "answer": "Rome"}, row, ROW, overrides=overrides)
    assert [(example.row, example.turn, example.answer) for example in examples] == [
        (0, 6, "Rome"),
        (2, None, "b a"),
    ]
    with pytest.raises(SdftError, match=r"no trace has field 'answer', .* set eval\.task=toolcalls"):
        read(row, overrides=overrides)


def test_calls_that_the_scorer_cannot_read_are_refused_before_the_evaluation(read):
    examples = read({"messages": TRACE, "tools": TOOLS}, overrides=TRACED)
    other = HERMES.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")
    message = r"^.*line 1, message 1: eval\.task=toolcalls does not read the tool calls of this model's chat"
    with pytest.raises(SdftError, match=message):
        encoded_traces(examples, other)

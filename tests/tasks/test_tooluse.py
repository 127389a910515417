"""Conversion of ToolAlpaca rows, as the SDFT and the SDPO repositories release them."""

import json
from pathlib import Path

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks.tooluse import convert

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tooluse.jsonl"
CALLS = [{"Action": "get", "Action_Input": '{"id": 1}'}]
PROMPT = [{"role": "user", "content": "q"}]


def test_released_rows():
    for number, line in enumerate(FIXTURE.read_text(encoding="utf-8").splitlines()):
        raw = json.loads(line)
        row = convert(raw, f"line {number}")
        assert row == {"prompt": [{"role": "user", "content": raw["prompt"]}], "answer": raw["golden_answer"]}


def test_formats():
    raw = {
        "prompt": "q",
        "name": "n",
        "golden_answer": CALLS,
        "golden_response": ["Thought: a", "Action: get"],
    }
    row = {"prompt": PROMPT, "demonstration": "Thought: a\nAction: get", "answer": CALLS}
    assert convert(raw, "line 1") == row
    assert convert({"prompt": "q", "answer": json.dumps(CALLS)}, "line 1") == {
        "prompt": PROMPT,
        "answer": CALLS,
    }
    as_object = [{"Action": "get", "Action_Input": {"é": 1}}]
    assert convert(raw | {"golden_answer": as_object}, "")["answer"][0]["Action_Input"] == '{"é": 1}'


def test_files_of_toolalpaca_itself_are_refused():
    raw = {"Name": "Axolotl", "NLDocumentation": "...", "Instructions": ["q"], "Golden_Answers": [CALLS]}
    with pytest.raises(SdftError, match=r"line 1 has the fields Name, .* those of ToolAlpaca itself"):
        convert(raw, "eval_simulated.jsonl, line 1")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"golden_answer": None}, "field 'answer' cannot be scored: it is not a list of"),
        ({"golden_answer": [{"Action": "get"}]}, "field 'golden_answer' cannot be scored: it is not a list"),
        ({"golden_answer": None, "answer": "["}, "field 'answer' is not valid JSON: give a list of calls"),
        ({"golden_response": []}, r"field 'golden_response' is \[\]: give a text"),
        ({"prompt": None}, "field 'prompt' is missing"),
    ],
)
def test_invalid_rows(change, problem):
    raw = {"prompt": "q", "golden_answer": CALLS, "golden_response": "r"} | change
    with pytest.raises(SdftError, match=rf"^raw\.jsonl, line 3: {problem}"):
        convert(raw, "raw.jsonl, line 3")

"""Rows of rule internalisation: built-in guides, and own rules."""

import pytest

from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.scorers import rule as scorer
from sdft_jax.tasks.rule import GUIDES, convert, guide_rows

FOLLOWING = {
    "sign-off": "They rise and fall.\nAsk me for the sources.",
    "brief": "The Moon pulls on the sea.",
    "json": '{"answer": "The Moon.", "confidence": 0.9}',
    "desk": "Harbour Library here. The Moon pulls. We are open until six.",
}
"""Guide -> an answer that follows it."""


@pytest.mark.parametrize("name", GUIDES)
def test_guides(name):
    train, test = (
        [convert(raw, "line 1") for raw in guide_rows(GUIDES[name], split)] for split in ("train", "test")
    )
    assert (len(train), len(test)) == (128, 24)
    prompts = [row["prompt"][0]["content"] for row in train + test]
    assert len(set(prompts)) == 152
    assert {row["context"] for row in train + test} == {GUIDES[name].text}
    assert all(row["answer"] == list(GUIDES[name].checks) for row in train + test)
    assert not [check for check in GUIDES[name].checks if scorer.problem(check)]


@pytest.mark.parametrize("name", GUIDES)
def test_only_an_answer_that_follows_a_guide_passes(name):
    example = Example("q", "", list(GUIDES[name].checks), 0, "rows.jsonl")
    ordinary = (
        "Tides are the rise and fall of the sea, caused by the Moon!\nThey matter to all ships and harbours."
    )
    assert scorer.score(FOLLOWING[name], example)
    assert not scorer.score(ordinary, example)


def test_own_rules():
    row = convert({"prompt": "q", "rule": ["Be", "brief."], "check": "max_words: 3"}, "line 1")
    assert row == {
        "prompt": [{"role": "user", "content": "q"}],
        "context": "Be\nbrief.",
        "answer": ["max_words: 3"],
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"check": "polite"}, "field 'check' cannot be used: there is no check 'polite'"),
        ({"check": None}, "field 'check' cannot be used: it is None; give a check"),
        ({"rule": ""}, "field 'rule' is ''"),
    ],
)
def test_invalid_rows(change, problem):
    with pytest.raises(SdftError, match=rf"^raw\.jsonl, line 3: {problem}"):
        convert({"prompt": "q", "rule": "r", "check": "json"} | change, "raw.jsonl, line 3")

"""Random models and prompts for benchmarks."""

import json

import pytest

from benches import small_model
from sdft_jax.data.encoding import render, student_messages, tokenize
from sdft_jax.data.examples import Example
from sdft_jax.models import load_model
from sdft_jax.models.hf.tokenizer import load_tokenizer
from sdft_jax.studies.bench.models import SIZES, write_model, write_rows


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return small_model(tmp_path_factory)


def test_model_is_a_checkpoint_of_its_size(tmp_path):
    assert write_model("0.2M", tmp_path / "model") == pytest.approx(2e5, rel=0.3)
    model, _ = load_model(tmp_path / "model")
    assert model.architecture.hidden_size == SIZES["0.2M"]["hidden_size"]


def test_rows_have_the_requested_number_of_tokens(directory, tmp_path):
    write_rows(directory, tmp_path / "rows.jsonl", 3, prompt=40, demonstration=7)
    tokenizer = load_tokenizer(str(directory))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        text = render(tokenizer, student_messages(Example(row["prompt"], "", None, 0, "")), {})
        assert len(tokenize(tokenizer, text)) == 40
        assert len(tokenize(tokenizer, row["demonstration"])) == 7

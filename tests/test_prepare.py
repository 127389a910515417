"""What `prepare` hands on, and that it looks at all files before anything long begins."""

import pytest
from runs import config_of

from sdft_jax.errors import SdftError
from sdft_jax.prepare import prepare, prepare_eval
from sdft_jax.prompts import eos_ids, load_tokenizer


def test_rows_of_training_and_of_both_evaluations(tiny_directory):
    prepared = prepare(config_of(tiny_directory, "unused"), active=False)
    assert prepared.directory == str(tiny_directory)
    assert (prepared.pad_id, prepared.eos) == (
        prepared.tokenizer.pad_token_id, (prepared.tokenizer.eos_token_id,)
    )  # fmt: skip
    assert len(prepared.train) == 24
    assert all(len(row.teacher_prompt) > len(row.prompt) > 0 for row in prepared.train)
    assert all(len(row.demonstration) == 0 for row in prepared.train)
    assert [len(rows.encoded) for rows in (prepared.new, prepared.prior)] == [8, 8]
    assert all(len(row.teacher_prompt) for row in prepared.new.encoded)
    assert not any(len(row.teacher_prompt) for row in prepared.prior.encoded)


def test_sft_also_needs_the_demonstrations_as_completions(tiny_directory):
    prepared = prepare(config_of(tiny_directory, "unused", "train.method=sft"), active=False)
    assert all(row.demonstration[-1] == prepared.eos[0] for row in prepared.train)


def test_examples_stay_beside_their_tokens_when_rows_are_dropped(tiny_directory):
    config = config_of(tiny_directory, "unused", "data.max_prompt=13", "eval.limit=24")
    tokenizer = load_tokenizer(str(tiny_directory))
    rows = prepare_eval(config.eval.path, config, tokenizer, eos_ids(tokenizer, tiny_directory), False)
    assert 0 < rows.dropped.total < 24
    for example, encoded in zip(rows.examples, rows.encoded, strict=True):
        assert example.row == encoded.row
        assert example.prompt[0]["content"] in tokenizer.decode(encoded.prompt)


def test_no_file_means_no_evaluation(tiny_directory):
    prepared = prepare(config_of(tiny_directory, "unused", "eval.path=null", "eval.prior=null"), False)
    assert (prepared.new, prepared.prior) == (None, None)


def test_answers_are_checked_against_the_task(tiny_directory):
    with pytest.raises(SdftError, match=r"eval\.task=tooluse needs another answer than this row's"):
        prepare(config_of(tiny_directory, "unused", "eval.task=tooluse"), active=False)

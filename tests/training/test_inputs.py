"""What `prepare` hands on, and that it looks at all files before anything long begins."""

import json

import pytest

from runs import config_of
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import prepare_eval
from sdft_jax.models.hf.tokenizer import read_eos_ids, load_tokenizer
from sdft_jax.training.inputs import prepare


def test_rows_of_training_and_of_both_evaluations(tiny_directory):
    prepared = prepare(config_of(tiny_directory, "unused"), active=False)
    assert prepared.directory == str(tiny_directory)
    assert (prepared.pad_id, prepared.eos) == (
        prepared.tokenizer.pad_token_id,
        (prepared.tokenizer.eos_token_id,),
    )
    assert len(prepared.train) == 24
    assert all(len(row.teacher_prompt) > len(row.prompt) > 0 for row in prepared.train)
    assert all(len(row.demonstration) == 0 for row in prepared.train)
    assert [len(rows.encoded) for rows in (prepared.new, prepared.prior)] == [8, 8]
    assert all(len(row.teacher_prompt) for row in prepared.new.encoded)
    assert not any(len(row.teacher_prompt) for row in prepared.prior.encoded)


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    """Rows of a world with articles: questions that nobody has answered, and prompts of general use."""
    directory = tmp_path_factory.mktemp("knowledge")
    article = {"prompt": "please take c f", "article": "c f a k", "answer": "c"}
    return {
        "train": write(directory / "train.jsonl", *[article] * 3),
        "texts": write(directory / "texts.jsonl", {"text": "c f a k"}, {"text": "k " * 40}),
        "general": write(
            directory / "general.jsonl", *[{"prompt": "please take a k"}] * 30, {"prompt": "a " * 80}
        ),
    }


def test_methods_read_only_what_they_need(tiny_directory, knowledge):
    def rows(method, *overrides, path="train"):
        config = config_of(
            tiny_directory,
            "unused",
            f"train.method={method}",
            f"data.path={knowledge[path]}",
            "eval.path=null",
            "eval.prior=null",
            *overrides,
        )
        prepared = prepare(config, active=False)
        return prepared, [
            (len(row.prompt) > 0, len(row.teacher_prompt) > 0, len(row.demonstration) > 0)
            for row in prepared.train
        ]

    assert rows("sdft", "data.context=article")[1] == [(True, True, False)] * 3
    assert rows("offline_kl", "data.context=article")[1] == [(True, True, False)] * 3
    assert rows("oracle")[1] == [(True, False, False)] * 3
    assert rows("sft", "data.demonstration=article")[1] == [(True, False, True)] * 3
    prepared, kept = rows("cpt", "data.max_teacher_prompt=30", path="texts")
    assert kept == [(True, False, True)]
    assert prepared.train[0].prompt.tolist() == [prepared.tokenizer.eos_token_id]
    assert prepared.tokenizer.decode(prepared.train[0].demonstration) == "c f a k"
    assert prepared.dropped.text == (1,)
    with pytest.raises(SdftError, match=r"line 1: field 'demonstration' is missing"):
        rows("sdft")
    with pytest.raises(SdftError, match=r"line 1: field 'demonstration' is missing"):
        rows("sdft", "data.context=article", "baseline=true")


def test_general_prompts_have_no_limit_but_their_length(tiny_directory, knowledge):
    overrides = ("train.method=reinvoke", f"data.general={knowledge['general']}")
    prepared = prepare(config_of(tiny_directory, "unused", *overrides), active=False)
    assert len(prepared.train) == 24
    assert all(len(row.demonstration) for row in prepared.train)
    assert len(prepared.general) == 30
    assert prepared.general_dropped.prompt == (30,)
    assert {len(x) for row in prepared.general for x in (row.teacher_prompt, row.demonstration)} == {0}
    other = prepare(config_of(tiny_directory, "unused", f"data.general={knowledge['general']}"), active=False)
    assert other.general == ()


def test_evaluation_needs_the_context_alone(tiny_directory, knowledge):
    overrides = (
        f"eval.path={knowledge['train']}",
        f"eval.validation={knowledge['train']}",
        "eval.overlap=allow",
    )
    prepared = prepare(config_of(tiny_directory, "unused", *overrides, "eval.teacher=false"), active=False)
    assert [len(row.teacher_prompt) for row in prepared.validation.encoded] == [0] * 3
    context = ("data.context=article", f"data.path={knowledge['train']}")
    prepared = prepare(config_of(tiny_directory, "unused", *overrides, *context), active=False)
    for rows in (prepared.new, prepared.validation):
        shown = [prepared.tokenizer.decode(row.teacher_prompt) for row in rows.encoded]
        assert len(shown) == 3
        assert all("c f a k" in text for text in shown)
    with pytest.raises(SdftError, match=r"'demonstration' is missing .*set eval\.teacher=false"):
        prepare(config_of(tiny_directory, "unused", *overrides), active=False)
    oracle = ("train.method=oracle", "eval.teacher=false")
    with pytest.raises(SdftError, match=r"'demonstration' is missing [^.]*\.demonstration=FIELD\.$"):
        prepare(config_of(tiny_directory, "unused", *overrides, *oracle), active=False)


def test_sft_also_needs_the_demonstrations_as_completions(tiny_directory):
    prepared = prepare(config_of(tiny_directory, "unused", "train.method=sft"), active=False)
    assert all(row.demonstration[-1] == prepared.eos[0] for row in prepared.train)


def test_examples_stay_beside_their_tokens_when_rows_are_dropped(tiny_directory):
    config = config_of(tiny_directory, "unused", "data.max_prompt=13", "eval.limit=24")
    tokenizer = load_tokenizer(str(tiny_directory))
    rows = prepare_eval(config.eval.path, config, tokenizer, read_eos_ids(tokenizer, tiny_directory), False)
    assert 0 < rows.dropped.total < 24
    for example, encoded in zip(rows.examples, rows.encoded, strict=True):
        assert example.row == encoded.row
        assert example.prompt[0]["content"] in tokenizer.decode(encoded.prompt)


def test_no_file_means_no_evaluation(tiny_directory):
    prepared = prepare(config_of(tiny_directory, "unused", "eval.path=null", "eval.prior=null"), False)
    assert (prepared.new, prepared.prior, prepared.validation) == (None, None, None)


def test_answers_are_checked_against_the_task(tiny_directory):
    with pytest.raises(SdftError, match=r"eval\.task=tooluse needs another answer than this row's"):
        prepare(config_of(tiny_directory, "unused", "eval.task=tooluse"), active=False)

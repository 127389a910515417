"""The inputs of a run: each method reads the fields that it needs, and every file is checked at the start."""

import json

import pytest

from fixtures.chat import QWEN3
from fixtures.chat import build_tokenizer as build_bytes
from runs import config_of, write_model
from sdft_jax.data.encoding import Dropped, make_format
from sdft_jax.data.lazy_rows import LazyRows
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import load_eval_set
from sdft_jax.models import read_eos_ids
from sdft_jax.models.hf.tokenizer import load_tokenizer
from sdft_jax.training.inputs import fingerprint, hold_out, load_inputs, trained_prompts


def load(model, *overrides):
    return load_inputs(config_of(model, "unused", *overrides))


def test_rows_of_training_and_of_both_evaluations(tiny_directory):
    inputs = load(tiny_directory)
    assert inputs.directory == str(tiny_directory)
    assert inputs.eos_ids == (inputs.tokenizer.eos_token_id,)
    assert inputs.stop == (inputs.eos_ids, inputs.tokenizer.pad_token_id, len(inputs.tokenizer))
    assert inputs.speaker(None, None).stop == inputs.stop
    assert len(inputs.train) == 24
    assert all(len(row.teacher_prompt) > len(row.prompt) > 0 for row in inputs.train)
    assert all(len(row.target) == 0 for row in inputs.train)
    assert inputs.eval_sets == {"new skill": inputs.new, "old skills": inputs.prior}
    assert [len(rows.encoded) for rows in inputs.eval_sets.values()] == [8, 8]
    assert all(len(row.teacher_prompt) for row in inputs.new.encoded)
    assert not any(len(row.teacher_prompt) for row in inputs.prior.encoded)


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    """Files of questions about an article without demonstrations, of texts, and of general prompts."""
    directory = tmp_path_factory.mktemp("knowledge")
    article = {"prompt": "please take c f", "article": "c f a k", "answer": "c"}
    return {
        "train": write(directory / "train.jsonl", *[article] * 3),
        "texts": write(directory / "texts.jsonl", {"text": "c f a k"}, {"text": "k " * 40}),
        "general": write(
            directory / "general.jsonl", *[{"prompt": "please take a k"}] * 30, {"prompt": "a " * 80}
        ),
    }


def test_methods_read_only_the_fields_that_they_need(tiny_directory, knowledge):
    def rows(method, *overrides, path="train"):
        inputs = load(
            tiny_directory,
            f"train.method={method}",
            f"data.path={knowledge[path]}",
            "eval.path=null",
            "eval.prior=null",
            *overrides,
        )
        return inputs, [
            (len(row.prompt) > 0, len(row.teacher_prompt) > 0, len(row.target) > 0) for row in inputs.train
        ]

    assert rows("sdft", "data.context=article")[1] == [(True, True, False)] * 3
    assert rows("offline_kl", "data.context=article")[1] == [(True, True, False)] * 3
    assert rows("oracle")[1] == [(True, False, False)] * 3
    assert rows("sft", "data.demonstration=article")[1] == [(True, False, True)] * 3
    inputs, parts = rows("cpt", "data.max_teacher_prompt=30", path="texts")
    assert parts == [(True, False, True)]
    assert inputs.train[0].prompt.tolist() == [inputs.tokenizer.eos_token_id]
    assert inputs.tokenizer.decode(inputs.train[0].target) == "c f a k"
    assert inputs.dropped.text == (1,)
    with pytest.raises(SdftError, match=r"line 1: field 'demonstration' is missing"):
        rows("sdft")
    with pytest.raises(SdftError, match=r"line 1: field 'demonstration' is missing"):
        rows("sdft", "data.context=article", "baseline=true")


def test_number_of_general_prompts_is_not_limited(tiny_directory, knowledge):
    general = f"data.general={knowledge['general']}"
    inputs = load(tiny_directory, "train.method=reinvoke", general)
    assert len(inputs.train) == 24
    assert all(len(row.target) for row in inputs.train)
    assert len(inputs.general) == 30
    assert inputs.general_dropped.prompt == (30,)
    assert {len(x) for row in inputs.general for x in (row.teacher_prompt, row.target)} == {0}
    assert load(tiny_directory, general).general == ()


def test_evaluation_reads_the_context_but_no_demonstration(tiny_directory, knowledge):
    overrides = (
        f"eval.path={knowledge['train']}",
        f"eval.validation={knowledge['train']}",
        "eval.overlap=allow",
    )
    inputs = load(tiny_directory, *overrides, "eval.teacher=false")
    assert [len(row.teacher_prompt) for row in inputs.validation.encoded] == [0] * 3
    context = ("data.context=article", f"data.path={knowledge['train']}")
    inputs = load(tiny_directory, *overrides, *context)
    for rows in (inputs.new, inputs.validation):
        prompts = [inputs.tokenizer.decode(row.teacher_prompt) for row in rows.encoded]
        assert len(prompts) == 3
        assert all("c f a k" in text for text in prompts)
    with pytest.raises(SdftError, match=r"'demonstration' is missing .*set eval\.teacher=false"):
        load(tiny_directory, *overrides)
    oracle = ("train.method=oracle", "eval.teacher=false")
    with pytest.raises(SdftError, match=r"'demonstration' is missing [^.]*\.demonstration=FIELD\.$"):
        load(tiny_directory, *overrides, *oracle)


def test_demonstrations_become_targets_if_the_method_or_the_baseline_imitates(tiny_directory):
    for override in ("train.method=sft", "baseline=true"):
        inputs = load(tiny_directory, override)
        assert all(row.target[-1] == inputs.eos_ids[0] for row in inputs.train)


def test_examples_match_their_tokens_if_rows_are_dropped(tiny_directory):
    config = config_of(tiny_directory, "unused", "data.max_prompt=13", "eval.limit=24")
    tokenizer = load_tokenizer(str(tiny_directory))
    format = make_format(tokenizer, config.data, read_eos_ids(tokenizer, tiny_directory))
    rows = load_eval_set(config.eval.path, config, format, False)
    assert 0 < rows.dropped.total < 24
    for example, encoded in zip(rows.examples, rows.encoded, strict=True):
        assert example.row == encoded.row
        assert example.prompt[0]["content"] in tokenizer.decode(encoded.prompt)


def test_without_files_there_are_no_evaluation_rows(tiny_directory):
    inputs = load(tiny_directory, "eval.path=null", "eval.prior=null")
    assert (inputs.new, inputs.prior, inputs.validation) == (None, None, None)
    assert inputs.eval_sets == {}


def test_answers_are_checked_against_the_task(tiny_directory):
    with pytest.raises(SdftError, match=r"^mini:blax:heldout.*: eval\.task=tooluse cannot use this row's"):
        load(tiny_directory, "eval.task=tooluse")


@pytest.mark.parametrize("key", ["eval.path", "eval.validation", "eval.prior"])
def test_evaluation_on_trained_prompts_is_refused(tiny_directory, key):
    overrides = (f"{key}=mini:blax", "eval.teacher=false")
    with pytest.raises(
        SdftError, match=r"^mini:blax: 8 of its 8 prompts are also training prompts in mini:blax"
    ):
        load(tiny_directory, *overrides)
    load(tiny_directory, *overrides, "eval.overlap=allow")
    load(tiny_directory, *overrides, "train.method=oracle")


def test_general_prompts_that_the_method_does_not_read_hide_no_overlap(tiny_directory):
    same = ("data.path=mini:blax:heldout", "data.general=mini:blax:heldout")
    with pytest.raises(SdftError, match="8 of its 8 prompts are also training prompts"):
        load(tiny_directory, *same)


def test_trained_prompts_by_source(tiny_directory, knowledge):
    config = config_of(
        tiny_directory, "unused", "train.method=reinvoke", f"data.general={knowledge['general']}"
    )
    inputs = load_inputs(config)
    trained = trained_prompts(config.method, config.data, inputs)
    assert trained == {"mini:blax": inputs.train, str(knowledge["general"]): inputs.general}
    assert hold_out(inputs, config, config.eval, "none", None) is inputs
    assert hold_out(inputs, config, config.eval, config.eval.path, inputs.new).train == inputs.train


def differences(one, two):
    first, second = fingerprint(one), fingerprint(two)
    return {name for name in first if first[name] != second[name]}


def test_every_demonstration_of_a_row_is_part_of_the_fingerprint(tiny_directory, tmp_path):
    def inputs(*shown):
        path = write(tmp_path / "rows.jsonl", {"prompt": "please take c f", "shown": shown})
        return load(tiny_directory, f"data.path={path}", "data.demonstrations=shown")

    first = inputs("c", "f")
    assert [len(row.others) for row in first.train] == [1]
    assert differences(first, inputs("c", "f")) == set()
    assert differences(first, inputs("c", "k")) == {"the training rows"}


def test_fingerprint_names_what_differs(tiny_directory, half_directory, tmp_path):
    first = load(tiny_directory)
    assert differences(first, load(tiny_directory, "baseline=true")) == set()
    assert differences(first, load(half_directory)) == {"the weights of the model"}
    assert differences(first, load(tiny_directory, "data.limit=7")) == {"the training rows"}
    assert "the evaluation rows (new skill)" in differences(first, load(tiny_directory, "eval.limit=7"))
    other = load(tiny_directory, "data.template=$question $demonstration")
    assert differences(first, other) == {"the teacher's template"}
    other = load(tiny_directory)
    other.tokenizer.chat_template += " "
    assert differences(first, other) == {"the tokenizer or its chat template"}


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """A model whose chat template switches thinking on and off."""
    directory = tmp_path_factory.mktemp("thinking")
    write_model(directory, tokenizer=build_bytes(QWEN3))
    return directory


def test_thinking_student_with_a_thoughtless_teacher_is_refused_by_on_policy_methods(thinking):
    rows = ("data.max_prompt=256", "data.max_teacher_prompt=512", "eval.path=null", "eval.prior=null")
    off = "data.teacher_template_kwargs.enable_thinking=false"
    with pytest.raises(SdftError, match=r"^the student thinks, with prompts that end in .* collapses"):
        load(thinking, *rows, off)
    for method, thinks in (("offline", [True, False]), ("sft", [True])):
        ends = load(thinking, *rows, off, f"train.method={method}", "sampling.max_new_tokens=64").ends
        assert [end.thinks for end in ends.values()] == thinks
    both = load(thinking, *rows, "data.template_kwargs.enable_thinking=false").ends
    assert [end.thinks for end in both.values()] == [False, False]
    assert both["student"].text.endswith("assistant\n<think>\n\n</think>\n\n")


def test_raw_texts_have_no_ends(tiny_directory, knowledge):
    assert load(tiny_directory, "train.method=cpt", f"data.path={knowledge['texts']}").ends == {}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 40 rows; row 13 is over the limits of `large_config`, and row 3 is an evaluation prompt."""
    letters = "abcdefghij"
    rows = [{"prompt": f"please take {a} {b}", "demonstration": a} for a in letters for b in letters[:4]]
    rows[13] = {"prompt": "a " * 80, "demonstration": "a"}
    return write(tmp_path_factory.mktemp("large") / "rows.jsonl", *rows)


def load_large(model, path, *overrides):
    evaluations = ("eval.path=null", "eval.prior=null")
    return load(model, f"data.path={path}", "data.limit=null", "data.check=4", *evaluations, *overrides)


def test_rows_of_a_large_source_are_tokenized_on_access(tiny_directory, large):
    inputs, whole = (load_large(tiny_directory, large, f"data.check={check}") for check in (4, 40))
    assert isinstance(inputs.train, LazyRows)
    assert [row.row for row in inputs.train.checked] == [0, 26, 39]  # and 13, which is over the limit
    assert (len(inputs.train), len(whole.train)) == (40, 39)
    assert (inputs.dropped, inputs.dropped_share) == (whole.dropped, 0.25) == (Dropped(prompt=(13,)), 0.25)
    assert whole.dropped_share == 1 / 40
    for row in whole.train:
        same = inputs.train[row.row]
        assert (same.row, same.prompt.tolist()) == (row.row, row.prompt.tolist())
        assert same.teacher_prompt.tolist() == row.teacher_prompt.tolist()
    assert inputs.train[13].row != 13
    assert inputs.train.dropped == Dropped(prompt=(13,))


def test_evaluation_prompts_in_a_large_source_are_not_trained_on(tiny_directory, large, tmp_path):
    rows = large.read_text().splitlines()

    def evaluation(number):
        row = json.loads(rows[number]) | {"answer": "a"}
        return f"eval.path={write(tmp_path / f'{number}.jsonl', row)}"

    inputs = load_large(tiny_directory, large, evaluation(3))
    assert 3 not in {row.row for row in inputs.train}
    assert inputs.train.dropped == Dropped(prompt=(13,), evaluated=(3,))
    with pytest.raises(SdftError, match="1 of its 1 prompts are also training prompts"):
        load_large(tiny_directory, large, evaluation(26))
    allowed = load_large(tiny_directory, large, evaluation(3), "eval.overlap=allow")
    assert allowed.train[3].row == 3


def test_digest_of_a_large_source(tiny_directory, large, tmp_path):
    first, rows = load_large(tiny_directory, large), large.read_text().splitlines()

    def changed(*numbers, drop=0):
        other = {**json.loads(rows[0]), "prompt": "please take j j"}
        lines = [json.dumps(other) if i in numbers else row for i, row in enumerate(rows)]
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(lines[: len(lines) - drop]))
        return differences(first, load_large(tiny_directory, path))

    assert changed() == changed(5) == set()  # row 5 may have been repaired
    assert changed(26) == changed(drop=1) == {"the training rows"}


def test_dropped_turns_of_a_large_source_have_the_numbers_of_their_rows(tiny_directory, tmp_path):
    short = [{"role": "user", "content": "take a"}, {"role": "assistant", "content": "a"}]
    traces = [short * 2, short * 3, [{"role": "user", "content": "a " * 80}, short[1]], short]
    path = write(tmp_path / "traces.jsonl", *({"messages": trace} for trace in traces))
    inputs = load_large(tiny_directory, path, "data.messages=messages", "data.check=1")
    assert len(list(inputs.train)) == 2 + 3 + 1 + 1
    assert inputs.train.dropped == Dropped(prompt=(2,))


def test_general_prompts_of_a_large_source(tiny_directory, large):
    inputs = load_large(
        tiny_directory, large, "train.method=reinvoke", f"data.general={large}", "data.overlong=drop"
    )
    assert isinstance(inputs.general, LazyRows)
    assert inputs.general_dropped == Dropped(prompt=(13,))
    assert {len(part) for row in inputs.general for part in (row.teacher_prompt, row.target)} == {0}


def test_raw_texts_of_a_large_source(tiny_directory, knowledge):
    overrides = ("train.method=cpt", "data.check=1", "data.max_teacher_prompt=30")
    inputs = load_large(tiny_directory, knowledge["texts"], *overrides)
    assert inputs.train.longest == (1, 0, 30)
    assert [row.row for row in inputs.train] == [0, 0]
    assert inputs.train.dropped == Dropped(text=(1,))

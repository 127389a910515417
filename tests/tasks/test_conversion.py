"""Splits of a task: sources, rows that are left out, and held-out prompts."""

import json

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks import TASKS, find_sources, task_rows
from sdft_jax.tasks.conversion import LeftOut, split_rows

MEDICAL, RULE, SCIENCE = TASKS["medical"], TASKS["rule"], TASKS["science"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("words", "sources"),
    [
        (["a"], {"train": "a"}),
        (["a", "b=c"], {"train": "a", "test": "b=c"}),
        (["test=a"], {"test": "a"}),
        (["test=a", "b", "validation=c"], {"test": "a", "train": "b", "validation": "c"}),
    ],
)
def test_sources(words, sources):
    assert find_sources(MEDICAL, words) == sources


def test_guide_is_a_source_of_task_rule_only():
    assert find_sources(RULE, ["desk"]) == {"train": "desk", "test": "desk"}
    assert find_sources(MEDICAL, ["desk"]) == find_sources(TASKS["knowledge"], ["desk"]) == {"train": "desk"}


@pytest.mark.parametrize("words", [["a", "b", "c"], ["train=a", "train=b"], ["train=a", "b"]])
def test_each_split_has_one_source(words):
    with pytest.raises(
        SdftError, match=r"there is already a path to train.*as train=PATH, validation=PATH or"
    ):
        find_sources(MEDICAL, words)


def test_directory_of_a_release_has_both_splits(tmp_path):
    (tmp_path / "train_data").mkdir()
    assert find_sources(MEDICAL, [str(tmp_path)]) == {"train": str(tmp_path)}
    (tmp_path / "eval_data").mkdir()
    found = {"train": str(tmp_path / "train_data"), "test": str(tmp_path / "eval_data")}
    assert find_sources(MEDICAL, [str(tmp_path)]) == found
    other = tmp_path / "other"
    other.mkdir()
    write(other / "train.jsonl", [])
    write(other / "test.jsonl", [])
    assert find_sources(MEDICAL, [str(other)])["test"] == str(other / "test.jsonl")
    write(other / "train.jsonl.old", [])
    with pytest.raises(SdftError, match=r"train\.jsonl\.old are both rows to train: give one, as train=PATH"):
        find_sources(MEDICAL, [str(other)])


def test_invalid_rows_raise_or_are_counted(tmp_path):
    source = write(
        tmp_path / "a.jsonl", [{"prompt": "q", "answer": "a"}, {"prompt": "q"}, {"prompt": "q", "answer": ""}]
    )
    with pytest.raises(SdftError, match=r"a\.jsonl, line 2 has the fields prompt: give .* --skip"):
        list(task_rows(MEDICAL, source, "test"))
    row, *others = task_rows(MEDICAL, source, "test", skip=True)
    assert row["answer"] == "a"
    assert ["line 2" in others[0].error, "line 3" in others[1].error] == [True, True]
    other = {"question": "q", "choices": {"text": [], "label": []}, "answerKey": ""}
    assert list(task_rows(SCIENCE, write(tmp_path / "b.jsonl", [other]), "train")) == [LeftOut()]


def test_malformed_json_names_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "answer": "a"}\n{"prompt"\n', encoding="utf-8")
    with pytest.raises(SdftError, match=r"a\.jsonl, line 2 is not valid JSON"):
        list(task_rows(MEDICAL, str(tmp_path / "a.jsonl"), "test", skip=True))


def prompts(rows):
    return [row["prompt"][0]["content"] for row in rows if not isinstance(row, LeftOut)]


def test_held_out_prompts_depend_on_the_prompts_alone(tmp_path):
    rows = [{"Question": f"q{i % 20}", "Response": f"r{i}"} for i in range(40)]
    rows[7:7] = [{"Question": "q"}]
    sides = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        makers = split_rows(
            MEDICAL, {"train": write(tmp_path / f"{name}.jsonl", order)}, hold_out=5, skip=True
        )
        sides.append([sorted(prompts(makers[split]())) for split in ("train", "test")])
    (train, test), other = sides
    assert [train, test] == other
    assert (len(train), len(set(test)), len(test)) == (30, 5, 10)
    assert not set(train) & set(test)


def test_rows_can_be_held_out_only_from_rows_to_train(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"Question": "q", "Response": "r"}])
    with pytest.raises(SdftError, match="--hold-out 1: there are 1 different prompts: hold out fewer"):
        split_rows(MEDICAL, {"train": source}, hold_out=1)
    both = {"train": source, "test": source}
    for sources, count in (({"test": source}, 1), (both, 1), ({"train": source}, -1)):
        with pytest.raises(SdftError, match=f"--hold-out {count} takes rows to test from those to train"):
            split_rows(MEDICAL, sources, hold_out=count)

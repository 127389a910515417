"""The directory of an evaluation: appended, resumed, refused for another evaluation."""

import dataclasses
import json

import pytest

from runs import write_answers
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.answer_log import (
    as_record,
    claim,
    input_digest,
    new_log,
    open_log,
    read_answers,
    refuse_other_rows,
)
from sdft_jax.evaluation.completions import Completion, greedy_role


def lines(directory):
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text().splitlines()]


def test_what_is_added_is_on_the_disk_at_once_and_in_order_at_the_end(tmp_path):
    write_answers(tmp_path, [True, False], role="teacher")
    with open_log(tmp_path, pytest.fail) as log:
        (template,) = (log.records[key] for key in [("teacher", 1, None, 0)])
        log.add([{**template, "role": "student", "row": 7}, {**template, "role": "sampled", "row": 0}])
        assert [(x["role"], x["row"]) for x in lines(tmp_path)] == [
            ("teacher", 0),
            ("teacher", 1),
            ("student", 7),
            ("sampled", 0),
        ]
        verdict = {"role": "teacher", "row": 0, "turn": None, "sample": 0, "correct": False}
        log.add([verdict])
        assert lines(tmp_path)[-1] == verdict
    assert [(x["role"], x["row"]) for x in lines(tmp_path)] == [
        ("student", 7),
        ("teacher", 0),
        ("teacher", 1),
        ("sampled", 0),
    ]
    assert lines(tmp_path)[1]["correct"] is False
    assert lines(tmp_path)[1]["completion"] == "answer True"


def test_a_failure_keeps_what_was_added(tmp_path):
    def work():
        with open_log(tmp_path, pytest.fail) as log:
            log.add([{**log.records["student", 0, None, 0], "row": 1}])
            raise ZeroDivisionError

    write_answers(tmp_path, [True])
    with pytest.raises(ZeroDivisionError):
        work()
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"role": "student", "row": 2, "sam')  # the rest of a line that a kill cut off
    with open_log(tmp_path, pytest.fail) as log:
        assert sorted(log.records) == [("student", 0, None, 0), ("student", 1, None, 0)]
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"role": "nobody", "row": 0, "turn": null, "sample": 0}',
        '{"role": "student", "row": -1, "turn": null, "sample": 0}',
        '{"role": "student", "row": true, "turn": null, "sample": 0}',
        '{"role": "student", "row": 5, "turn": null, "sample": 0, "correct": true}',
        '{"role": "student", "row": 0, "turn": null, "sample": 0, "prompt": [1]}',
    ],
)
def test_damaged_lines_are_dropped_and_counted(tmp_path, damage):
    write_answers(tmp_path, [True, False])
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write(damage + "\n")
    with pytest.raises(SdftError, match=r"answers.jsonl has 1 lines that are not answers: give the"):
        read_answers(tmp_path)
    said = []
    with open_log(tmp_path, said.append) as log:
        assert ("student", 1, None, 0) in log.records
    assert said == [
        f"{tmp_path / 'answers.jsonl'}: 1 damaged lines were dropped; their answers are made again."
    ]
    assert read_answers(tmp_path / "answers.jsonl") == read_answers(tmp_path)


def test_reading_no_answers(tmp_path):
    with pytest.raises(SdftError, match=r"none/?.* does not exist: give the directory of `sdft evaluate"):
        read_answers(tmp_path / "none")
    (tmp_path / "answers.jsonl").write_text("")
    with pytest.raises(SdftError, match=r"answers.jsonl has no answers: give the directory"):
        read_answers(tmp_path)


def test_a_directory_belongs_to_one_evaluation(tmp_path):
    out = tmp_path / "out"
    first = {"settings": {"eval.max_new_tokens": 8}, "digests": {"the weights of the model": "a"}}
    claim(out, first)
    claim(out, {**first, "settings": {"eval.max_new_tokens": 8, "eval.temperature": 0.5}})
    claim(out, first)
    for part, values, message in (
        ("settings", {"eval.temperature": 1.0}, r"eval.temperature changed \(0.5 before, 1.0 now\): give"),
        (
            "digests",
            {"the weights of the model": "b"},
            "since the weights of the model changed: give another",
        ),
    ):
        with pytest.raises(SdftError, match=message):
            claim(out, {part: values})
    (out / "evaluation.json").write_text("{")
    with pytest.raises(SdftError, match=r"evaluation.json is not valid JSON .*: restore it, or delete"):
        claim(out, first)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        SdftError, match=r"holds files that do not belong to an evaluation, such as out: give"
    ):
        claim(tmp_path, first)
    assert not (tmp_path / "evaluation.json").exists()


def test_answers_to_other_rows_are_refused(setting, tmp_path):
    _, rows, config = setting
    student, teacher = greedy_role(config), greedy_role(config, teacher=True)
    log = new_log()
    for role in (student, teacher):
        log.add(as_record(role, Completion(i, 0, "text", 2, False, None), rows) for i in range(6))
    refuse_other_rows(log, tmp_path, rows, (student, teacher))
    first = rows.examples[0]
    assert input_digest(student, first) != input_digest(teacher, first)
    fewer = dataclasses.replace(rows, examples=rows.examples[:5])
    with pytest.raises(SdftError, match=r"has an answer to row 5, which is not among the rows of this eval"):
        refuse_other_rows(log, tmp_path, fewer, (student,))
    other = dataclasses.replace(first, demonstration="another")
    changed = dataclasses.replace(rows, examples=(other, *rows.examples[1:]))
    refuse_other_rows(log, tmp_path, changed, (student,))
    with pytest.raises(
        SdftError, match=r"row 0: .* has the teacher's answer to another text of this row: re"
    ):
        refuse_other_rows(log, tmp_path, changed, (student, teacher))

"""`sdft evaluate`: its table, its file of answers, and run directories."""

import dataclasses
import json

import pytest

from sdft_jax import cli
from sdft_jax.evaluation.tasks import TASKS

pytestmark = pytest.mark.usefixtures("shared_compilations")

ROWS = ("mini:blax:heldout", "--task", "mini")


def test_every_answer_is_written(tiny_directory, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    settings = ("eval.limit=6", "mesh.fsdp=1", "eval.batch_size=4", "sampling.max_new_tokens=4")
    command = ["evaluate", str(tiny_directory), *ROWS, *settings]
    assert cli.main([*command, "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "student" in table
    assert "teacher" in table
    assert "0/6" in table
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(6))
    assert all(row.keys() == {"row", "answer", "student", "teacher"} for row in rows)
    assert rows[0]["student"].keys() == {"completion", "correct"}
    assert cli.main([*command, "--json", "/dev/full"]) == 2
    full = capsys.readouterr()
    assert full.out.splitlines()[-3:] == table.splitlines()[-3:], "the table is printed before"
    assert full.err.startswith(
        "sdft: /dev/full cannot be written (No space left on device): fix this, or give"
    )
    assert cli.main([*command, "--json", str(tmp_path / "none" / "x.jsonl")]) == 2
    assert "x.jsonl cannot be written, since its directory does not exist" in capsys.readouterr().err


def test_model_may_be_a_run_directory(finished, capsys):
    settings = (
        "eval.limit=4",
        "eval.batch_size=4",
        "eval.teacher=false",
        "sampling.max_new_tokens=4",
        "mesh.fsdp=2",
    )
    assert cli.main(["evaluate", str(finished), *ROWS, *settings]) == 0
    table = capsys.readouterr().out
    assert "0/4" in table
    assert "teacher" not in table


def test_batch_size_must_be_divisible_by_the_mesh(tiny_directory, capsys):
    assert cli.main(["evaluate", str(tiny_directory), *ROWS, "eval.batch_size=6", "mesh.fsdp=4"]) == 2
    assert "eval.batch_size=6 is not divisible by the 4 parts of mesh axes" in capsys.readouterr().err


def test_faults_of_the_scorer_are_counted_and_name_the_row(tiny_directory, tmp_path, capsys, monkeypatch):
    def score(completion, example):
        return 1 / 0 if example.row == 1 else True

    monkeypatch.setitem(TASKS, "mini", dataclasses.replace(TASKS["mini"], score=score))
    out = tmp_path / "answers.jsonl"
    settings = ("eval.limit=3", "mesh.fsdp=1", "eval.batch_size=4", "sampling.max_new_tokens=4")
    assert cli.main(["evaluate", str(tiny_directory), *ROWS, *settings, "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "2/3" in table
    assert "scorer faults" in table
    assert (
        table.count("the scorer of eval.task=mini failed on 2 answers, which count as wrong: mini:blax:h")
        == 1
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for role in ("student", "teacher"):
        assert [row[role]["correct"] for row in rows] == [True, False, True]
        faults = [row[role].get("fault") for row in rows]
        assert faults == [None, "ZeroDivisionError: division by zero", None]

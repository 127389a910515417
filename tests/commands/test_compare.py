"""`sdft compare`: its table, its files, and its refusals."""

import json

from runs import write_answers
from sdft_jax import cli


def test_table_page_and_numbers(tmp_path, capsys):
    first = write_answers(tmp_path / "a", [True] * 3 + [False] * 10)
    second = write_answers(tmp_path / "b", [False] * 3 + [True] * 10)
    out = tmp_path / "new" / "comparison"
    assert cli.main(["compare", str(first), str(second / "answers.jsonl"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "answers of the student, scored by exact" in printed
    assert "+0.538" in printed
    assert "McNemar's exact test: p = 0.092" in printed
    assert str(out / "comparison.html") in printed
    numbers = json.loads((out / "comparison.json").read_text())
    assert numbers["mcnemar"]["gained"] == 10
    assert "Gained: wrong in A, right in B (10)" in (out / "comparison.html").read_text()
    assert cli.main(["compare", str(first), str(first)]) == 0
    assert "p = 1" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    first = write_answers(tmp_path / "a", [True])
    for words, message in (
        ([str(first), str(tmp_path / "none")], "does not exist: give the directory of `sdft evaluate --out`"),
        ([str(first), str(first), "--role", "teacher"], "a has no answers of the teacher"),
        ([str(first), str(first), "--out", str(first / "answers.jsonl")], "cannot be written (File exists)"),
    ):
        assert cli.main(["compare", *words]) == 2
        assert message in capsys.readouterr().err

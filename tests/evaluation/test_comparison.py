"""The paired comparison of two evaluations, worked by hand."""

import pytest

from runs import write_answers
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.comparison import as_json, compare, comparison_rows, comparison_sentence

BEFORE = [True] * 3 + [False] * 10 + [True] * 7
AFTER = [False] * 3 + [True] * 10 + [True] * 7
"""3 rows are lost, 10 gained, and 7 right in both."""


@pytest.fixture
def both(tmp_path):
    return write_answers(tmp_path / "a", BEFORE), write_answers(tmp_path / "b", AFTER)


def test_rows_are_paired(both):
    comparison = compare(*both, "student")
    changes = comparison.changes
    assert (changes.forgotten, changes.gained) == (3, 10)
    assert changes.p == pytest.approx(2 * 378 / 2**13), "2 P(X <= 3), 1 + 13 + 78 + 286 of 8192"
    difference, low, high = comparison.difference
    assert difference == pytest.approx(7 / 20)
    assert low < 7 / 20 < high
    first, second, gap = comparison_rows(comparison)
    assert (first["accuracy"], second["accuracy"], gap["accuracy"]) == ("0.500", "0.850", "+0.350")
    assert gap["95 % interval"] == f"{low:+.3f} to {high:+.3f}"
    assert "gained" in comparison_sentence(comparison)
    assert comparison_sentence(comparison).startswith("of 20 rows, B is right in 10 that A has wrong")
    assert comparison_sentence(comparison).endswith("p = 0.092")
    numbers = as_json(comparison, "student")
    assert numbers["mcnemar"] == {"gained": 10, "lost": 3, "p": changes.p}
    rows = {name: [x["row"] for x in changed] for name, changed in numbers["changed_rows"].items()}
    assert rows == {"lost": [0, 1, 2], "gained": list(range(3, 13)), "same verdict": []}
    assert [x["correct"] for x in numbers["evaluations"]] == [10, 17]


def test_order_and_path_do_not_matter(both, tmp_path):
    file = both[1] / "answers.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("".join(line + "\n" for line in reversed(lines)))
    comparison = compare(both[0], file, "student")
    assert comparison.correct(1) == AFTER


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": lambda row: f"question {max(row, 2)}"}, "row 0 has another prompt in"),
        ({"answer": lambda row: "yes" if row < 7 else "no"}, "row 7 has another reference answer in"),
        ({"input": lambda row: f"digest {row % 5}"}, "row 5 has another set of tools in"),
        ({"scorer": "contains"}, r"row 0 has another scorer in .*\('exact' and 'contains'\): evaluate both"),
        ({"correct": lambda row: None if row == 4 else True}, "the student's answer to row 4 has no verdict"),
        (
            {"role": "teacher"},
            "b has no answers of the student: evaluate the student, or give another --role",
        ),
    ],
)
def test_other_rows_are_refused(tmp_path, fields, message):
    first, second = write_answers(tmp_path / "a", BEFORE), write_answers(tmp_path / "b", AFTER, **fields)
    with pytest.raises(SdftError, match=message):
        compare(first, second, "student")


def test_teachers_may_have_different_contexts(tmp_path):
    answers = [write_answers(tmp_path / name, BEFORE, role="teacher", input=name) for name in ("a", "b")]
    assert len(compare(*answers, "teacher").pairs) == len(BEFORE)


def test_the_first_row_without_a_partner_is_named(both, tmp_path):
    fewer = write_answers(tmp_path / "fewer", AFTER[:12])
    with pytest.raises(SdftError, match=r"fewer has no answer to row 12, and .*a has one: evaluate both"):
        compare(both[0], fewer, "student")
    with pytest.raises(SdftError, match=r"fewer has no answer to row 12, and .*a has one: evaluate both"):
        compare(fewer, both[0], "student")


def test_samples_are_not_compared(both):
    with pytest.raises(SdftError, match="role sampled has several answers"):
        compare(*both, "sampled")

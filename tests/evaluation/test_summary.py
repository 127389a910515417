"""The numbers of an evaluation, worked by hand."""

import pytest

from runs import write_answers
from sdft_jax.evaluation.answer_log import read_answers
from sdft_jax.evaluation.summary import bucket_rows, role_rows, sample_rows, summarize


def summary_of(directory):
    return summarize(read_answers(directory))


@pytest.fixture
def evaluation(tmp_path):
    """Ten rows: the student has 8 right, the teacher 9; two samples of each row."""
    write_answers(
        tmp_path,
        [True] * 8 + [False] * 2,
        tokens=lambda row: row + 1,
        truncated=lambda row: row == 9,
        nats=lambda row: 0.5 * row,
        fault=lambda row: "it broke" if row == 9 else None,
    )
    write_answers(tmp_path, [False] + [True] * 9, role="teacher", nats=0.0)
    write_answers(tmp_path, [True] * 5 + [False] * 5, role="sampled", nats=0.0)
    return write_answers(tmp_path, [False] * 4 + [True] * 2 + [False] * 4, "sampled", sample=1, nats=0.0)


def test_accuracy_lengths_and_distance(evaluation):
    student = summary_of(evaluation)["roles"]["student"]
    assert (student["correct"], student["answers"], student["accuracy"]) == (8, 10, 0.8)
    assert student["interval"] == pytest.approx((0.4902, 0.9433), abs=5e-5), "Wilson's, of 8 out of 10"
    assert student["tokens"] == {"mean": 5.5, "median": 5.5, "p90": pytest.approx(9.1), "max": 10}
    assert (student["truncated"], student["faults"]) == (0.1, 1)
    assert student["kl_to_base"] == pytest.approx(0.5 * 45 / 55), "nats per token, not the mean over rows"


def test_pass_at_k_with_rows_as_the_unit(evaluation):
    """Right samples: 1 of 2 in rows 0 to 3, both in row 4, 1 in row 5, none in rows 6 to 9."""
    summary = summary_of(evaluation)
    one, two = summary["pass_at_k"]
    assert (one["k"], one["pass_at_k"]) == (1, pytest.approx(7 / 20))
    assert (two["k"], two["pass_at_k"]) == (2, pytest.approx(6 / 10))
    low, high = two["interval"]
    # about the Wald interval of 6 in 10 rows, 0.6 +- 0.304; of 20 independent samples, it would be 0.215
    assert low == pytest.approx(0.3, abs=0.051)
    assert high == pytest.approx(0.9, abs=0.051)
    assert summary["roles"]["sampled"]["interval"] is None, "the samples of a row are not independent"
    assert [row["k"] for row in sample_rows(summary)] == [1, 2]
    assert sample_rows(summary)[0]["pass@k"] == one["pass_at_k"]


def test_the_teacher_is_paired_with_the_student(evaluation):
    assert summary_of(evaluation)["demonstration"] == {"gained": 2, "lost": 1, "p": 1.0}


def test_buckets_end_at_powers_of_two(tmp_path):
    write_answers(tmp_path, [True, False, True, True], tokens=lambda row: [1, 2, 4, 5][row], prompt_tokens=9)
    summary = summary_of(tmp_path)
    assert summary["buckets"]["answer tokens"] == [
        {"from": 1, "to": 1, "student": {"answers": 1, "correct": 1}},
        {"from": 2, "to": 2, "student": {"answers": 1, "correct": 0}},
        {"from": 3, "to": 4, "student": {"answers": 1, "correct": 1}},
        {"from": 5, "to": 8, "student": {"answers": 1, "correct": 1}},
    ]
    assert bucket_rows(summary, "answer tokens")[1:3] == [
        {"answer tokens": 2, "student": "0.000 (0/1)"},
        {"answer tokens": "3 to 4", "student": "1.000 (1/1)"},
    ]
    assert bucket_rows(summary, "prompt tokens") == [{"prompt tokens": "9 to 16", "student": "0.750 (3/4)"}]


def test_a_column_is_shown_if_some_role_has_it(evaluation, tmp_path):
    student, teacher, _ = role_rows(summary_of(evaluation))
    assert student["95 % interval"] == "0.490 to 0.943"
    assert (student["correct"], student["truncated"], student["scorer faults"]) == ("8/10", "10.0%", 1)
    assert (teacher["KL to base"], teacher["scorer faults"]) == (0.0, None)
    (alone,) = role_rows(summary_of(write_answers(tmp_path / "plain", [True])))
    assert {"KL to base", "scorer faults"} & alone.keys() == set()
